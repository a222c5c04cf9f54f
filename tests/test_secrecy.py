"""The key: whatever echoes it, and however, it is on no screen, in no file, in no object's repr, and at no other host."""

from __future__ import annotations

import base64
import contextlib
import gc
import html
import io
import json
import logging
import os
import pickle
import re
import socket
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable
from urllib.parse import quote, unquote

import generate
import pytest
from conftest import Outcome
from gateway import KEY, Gateway, Received, Reply
from generate import ImageGenError
from pictures import picture

PNG, SHOE = picture(80, 60, noise=True), picture(80, 60, noise=True, seed=1)
PROMPT = ("--prompt", "a red apple")
OPENAI = (*PROMPT, "--model", "gpt-image-2", "--output", "apple.png")
GEMINI = (*PROMPT, "--output", "apple.png")

KEYS = {
    "usual": KEY,
    "hexadecimal": "9f86d081884c7d659a2feaa0c55ad015",
    "capitals and dots": "AKIA.ZX7Q.M2P9.LKD3.WVT8",
    "base64": "dGhpcyBpcy9hIGtleSt3aXRoPXNpZ25z+/4=",
    "short": "k3y9Zq_x7",
    "signs": "sk~p+l/u=s&a%m:b@l;e,t!i(c)*$^|-0123",
}


# --- The scanner ---


def decoded(text: str) -> Iterator[str]:
    """Everything that a text may be an encoding of."""
    yield unquote(text)
    yield html.unescape(text)
    yield text.replace("\\", "")
    yield re.sub(r"\\+(?:u00|x)([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), text, flags=re.I)
    for run in re.findall(r"(?:[0-9a-f]{2}){8,}|[0-9a-f]{17,}", text, re.I):
        for start in (0, 1):
            digits = run[start:]
            yield bytes.fromhex(digits[: len(digits) // 2 * 2]).decode("latin-1")
    for run in re.findall(r"[\w+/-]{16,}", text.replace("\\/", "/"), re.A):
        plain = run.replace("-", "+").replace("_", "/")
        for start in range(4):
            piece = plain[start:]
            yield base64.b64decode(piece[: len(piece) // 4 * 4]).decode("latin-1")


def leaks(text: str, key: str, depth: int = 2) -> list[str]:
    """The stretches of 12 characters of the key (or all of a shorter one) that stand in a text, encoded or not."""
    stretches = {key[i : i + 12].lower() for i in range(max(1, len(key) - 11))}
    level, found = {text}, set()
    for _ in range(depth + 1):
        found |= {stretch for view in level for stretch in stretches if stretch in view.lower()}
        level = {view for each in level for view in decoded(each)} - level
    return sorted(found)


def double_quoted(key: str) -> str:
    return quote(quote(key, safe=""), safe="")


def escaped(key: str, digits: str = "x") -> str:
    return "".join(f"\\u{ord(letter):04{digits}}" for letter in key)


def in_base64(key: str, before: str = "", after: str = "", safe: bool = False) -> str:
    encode = base64.urlsafe_b64encode if safe else base64.b64encode
    return encode(f"{before}{key}{after}".encode()).decode()


ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "Bearer": lambda key: f"Bearer {key}",
    "headers": lambda key: str({"Authorization": f"Bearer {key}", "Accept": "*/*"}),
    "quoted": lambda key: f'"{key}"',
    "masked in the middle": lambda key: f"{key[:7]}********{key[-12:]}",
    "masked at the start": lambda key: "*" * (len(key) - 12) + key[-12:],
    "only the end": lambda key: f"…{key[-12:]}",
    "without the start": lambda key: key[3:],
    "in two halves": lambda key: f"{key[: len(key) // 2]} {key[len(key) // 2 :]}",
    "URL-encoded": lambda key: quote(key, safe=""),
    "URL-encoded, small letters": lambda key: (
        quote(key, safe="").lower() if key == key.lower() else quote(key, safe="")
    ),
    "URL-encoded, every letter": lambda key: "".join(f"%{ord(letter):02X}" for letter in key),
    "URL-encoded twice": double_quoted,
    "query": lambda key: f"?api_key={quote(key, safe='')}&n=1",
    "base64": in_base64,
    "base64 of Bearer": lambda key: in_base64(key, "Bearer "),
    "base64 of user:key": lambda key: in_base64(key, "user:"),
    "base64 of key:": lambda key: in_base64(key, "", ":"),
    "base64, shifted by 1": lambda key: in_base64(key, "x", "yz"),
    "base64, shifted by 2": lambda key: in_base64(key, "xy", "z"),
    "base64, URL-safe": lambda key: in_base64(key, "?>?", "?>?", safe=True),
    "base64, without padding": lambda key: in_base64(key, "xy").rstrip("="),
    "base64 of the end": lambda key: in_base64(key[-12:]),
    "JSON-escaped": escaped,
    "JSON-escaped in capitals": lambda key: escaped(key, "X"),
    "hex": lambda key: key.encode().hex(),
    "HEX": lambda key: key.encode().hex().upper(),
    "hex with \\x": lambda key: "".join(f"\\x{ord(letter):02x}" for letter in key),
    "HTML entities": lambda key: "".join(f"&#{ord(letter)};" for letter in key),
    "HTML entities in hex": lambda key: "".join(f"&#x{ord(letter):x};" for letter in key),
    "HTML-escaped": html.escape,
    "in capitals": str.upper,
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_scanner_finds_the_key(key: str, encode: Callable[[str], str]) -> None:
    """The scanner that all tests here rest on would find each of the encodings, in the middle of a text."""
    assert leaks(f'{{"a": "see <b>{encode(key)}</b>"}}', key) or len(key) < 24


def test_scanner_has_no_false_alarm() -> None:
    masked = f"key {generate.mask_key(KEY)} from OMNIMAAS_API_KEY, {'*' * 40}, {base64.b64encode(PNG).decode()}"
    assert leaks(masked, KEY) == []


# --- The scene ---


class Scene:
    """A gateway with a key, and everything that the program may have left behind."""

    def __init__(self, gateway: Gateway, folder: Path, kept: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.gateway, self.key, self.folder, self.kept, self.caplog = gateway, gateway.key, folder, kept, caplog
        self.exempt: set[Path] = set()

    def files(self) -> dict[str, bytes]:
        """Names and contents of all files."""
        places = [(place, path) for place in (self.folder, self.kept, Path.home()) for path in place.rglob("*")]
        return {
            str(path.relative_to(place)): path.read_bytes()
            for place, path in places
            if path.is_file() and path not in self.exempt
        }

    def leaks(self, *texts: object) -> list[str]:
        """What can be found of the key, in these texts, in all files and in the log of every module at every level."""
        files = self.files()
        pictures = [data for data in files.values() if generate.sniff_format(data)]  # too long to look for encodings in
        assert not any(self.key.encode() in data for data in pictures)
        contents = [data.decode("latin-1") for data in files.values() if data not in pictures]
        return leaks("\n\n".join(map(str, [*texts, *files, *contents, self.caplog.text])), self.key)


@pytest.fixture
def stage(
    kept: Path, short_waits: None, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Scene]]:
    """stage(key): a gateway with this key, configured in the environment, and a ledger."""
    caplog.set_level(logging.DEBUG)
    # What urllib3 logs of its own is the embedding program's affair; the command line shows none of it.
    for name in ("urllib3.connection", "urllib3.connectionpool"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    with contextlib.ExitStack() as stack:

        def build(key: str = KEY, configured: bool = True) -> Scene:
            gateway = stack.enter_context(Gateway(key=key))
            if configured:
                monkeypatch.setenv("OMNIMAAS_API_KEY", key)
                monkeypatch.setenv("OMNIMAAS_BASE_URL", gateway.url)
            monkeypatch.setenv("PRODUCT_SHOTS_IMAGEGEN_LEDGER", str(tmp_path / "ledger.jsonl"))
            return Scene(gateway, tmp_path, kept, caplog)

        yield build


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def error(**fields: Any) -> dict[str, Any]:
    return {"error": {"message": "No.", "type": "invalid_request_error", "param": None, "code": None, **fields}}


def chat(content: Any, **fields: Any) -> dict[str, Any]:
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop", **fields}]}


Echo = Callable[[str, Gateway], Reply]

PLACES: dict[str, Echo] = {  # where a gateway puts what it echoes
    "401 message": lambda x, g: Reply(
        401, body=error(message=f"Incorrect API key provided: {x}.", code="invalid_api_key")
    ),
    "400 message": lambda x, g: Reply(400, body=error(message=x)),
    "400 code": lambda x, g: Reply(400, body=error(code=x)),
    "400 type": lambda x, g: Reply(400, body=error(type=x, message=None)),
    "400 param": lambda x, g: Reply(400, body=error(param=x)),
    "400 name of a field": lambda x, g: Reply(400, body={"error": {x: x}}),
    "429 text": lambda x, g: Reply(429, {"Retry-After": "0"}, body=f"Too many requests of {x}"),
    "500 message": lambda x, g: Reply(500, body=error(message=f"Upstream said: {{'Authorization': 'Bearer {x}'}}")),
    "500 over 300 letters": lambda x, g: Reply(500, body=error(message="x" * (293 - len(x) // 2) + " " + x)),
    "502 title": lambda x, g: Reply(502, body=f"<html><title>{x}</title></html>"),
    "502 page": lambda x, g: Reply(502, body=f"<html><body><pre>authorization: Bearer {x}</pre></body></html>"),
    "422 detail": lambda x, g: Reply(422, body={"detail": [{"loc": ["header", x], "msg": x}]}),
    "403 raw JSON": lambda x, g: Reply(
        403, body=b'{"error": {"message": "' + re.sub(r'["]', r"\"", x).encode() + b'"}}'
    ),
    "302 Location": lambda x, g: Reply(302, {"Location": f"https://login.example/?next={x}".replace("…", "_")}),
    "401 headers": lambda x, g: Reply(
        401, {"WWW-Authenticate": f'Bearer realm="{x}"'.replace("…", "_"), "X-Debug": x.replace("…", "_")}
    ),
    "200 error": lambda x, g: Reply(body=error(message=x, code=401)),
    "200 text": lambda x, g: Reply(body=chat(f"You are {x}")),
    "200 finish_reason": lambda x, g: Reply(body=chat("", finish_reason=f"SAFETY {x}")),
    "200 refusal": lambda x, g: Reply(body={"choices": [{"message": {"refusal": x}}]}),
    "200 task": lambda x, g: Reply(body={"task_id": x}),
    "200 page": lambda x, g: Reply(body=f"<title>{x}</title>"),
    "200 plain text": lambda x, g: Reply(body=x),
    "200 dead link": lambda x, g: Reply(body={"data": [{"url": f"{g.origin}/media/gone.png?token={x}"}]}),
    "200 dead path": lambda x, g: Reply(body={"data": [{"url": f"/media/{x}/gone.png"}]}),
    "200 data URL": lambda x, g: Reply(body={"data": [{"url": f"data:image/{x};base64,AAAA"}]}),
    "200 two links, one dead": lambda x, g: Reply(
        body={"data": [{"url": g.publish("a.png", PNG)}, {"url": f"{g.origin}/media/gone.png?token={x}"}]}
    ),
    "picture and usage": lambda x, g: Reply(
        body={"data": [{"b64_json": b64(PNG)}], "usage": {"total_tokens": x, x: {"by": [x]}}}
    ),
    "picture and words": lambda x, g: Reply(
        body={"id": x, "data": [{"b64_json": b64(PNG), "revised_prompt": x}], "model": x}
    ),
    "picture and headers": lambda x, g: Reply(
        headers={"X-Request-Id": x.replace("…", "_")}, body={"data": [{"b64_json": b64(PNG)}]}
    ),
    "picture behind a link": lambda x, g: Reply(body={"data": [{"url": g.publish("a.png", PNG) + f"?token={x}"}]}),
}


# Every place with some encodings, and every encoding at some places; test_redact has all of both.
SOME_PLACES = ["401 message", "302 Location", "200 dead link", "picture and usage"]
SOME_ENCODINGS = [
    "plain",
    "URL-encoded, every letter",
    "base64 of Bearer",
    "JSON-escaped",
    "hex",
    "masked in the middle",
]
ECHOES = dict.fromkeys(
    [(name, encode) for name in PLACES for encode in SOME_ENCODINGS]
    + [(name, encode) for name in SOME_PLACES for encode in ENCODINGS]
)


@pytest.mark.parametrize(("name", "encode"), ECHOES)
def test_echo(stage: Callable[..., Scene], run: Callable[..., Outcome], name: str, encode: str) -> None:
    """However and wherever the gateway echoes the key: not on the screen, not in the JSON, not in a file, not in a log."""
    scene = stage()
    scene.gateway.answer_always(PLACES[name](ENCODINGS[encode](KEY), scene.gateway))
    done = run(*OPENAI, "--n", 2, "--json")
    assert scene.gateway.calls
    assert (done.code == 0) == done.json["ok"]
    assert scene.leaks(done.out, done.err, json.dumps(done.json, ensure_ascii=False)) == []


@pytest.mark.parametrize("name", SOME_PLACES)
@pytest.mark.parametrize("encode", SOME_ENCODINGS)
@pytest.mark.parametrize("key", [name for name in KEYS if name != "usual"])
def test_echo_of_other_keys(
    stage: Callable[..., Scene], run: Callable[..., Outcome], key: str, name: str, encode: str
) -> None:
    """Keys do not all look like sk-…; one shorter than 12 characters is hidden as a whole."""
    scene = stage(KEYS[key])
    scene.gateway.answer_always(PLACES[name](ENCODINGS[encode](scene.key), scene.gateway))
    done = run(*OPENAI, "--json")
    assert scene.gateway.calls
    assert scene.leaks(done.out, done.err, json.dumps(done.json, ensure_ascii=False)) == []


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("encode", ["plain", "base64 of Bearer", "masked in the middle"])
def test_echo_to_the_library(stage: Callable[..., Scene], place: Echo, encode: str) -> None:
    """A key given as an argument is known to nobody but the call; the error it raises, and the log, are as clean."""
    scene = stage(configured=False)
    gateway = scene.gateway
    gateway.answer_always(place(ENCODINGS[encode](KEY), gateway))
    shown: list[object] = []
    try:
        made = generate.generate_openai("a cup", "gpt-image-2", n=2, api_key=KEY, base_url=gateway.url)
        shown += [made, repr(made), made.usage]
    except ImageGenError as caught:
        shown += everything(caught)
    assert gateway.calls and shown
    assert scene.leaks(*shown) == []


def everything(caught: BaseException) -> list[object]:
    """All that an exception shows, and those that led to it."""
    shown: list[object] = ["".join(traceback.format_exception(type(caught), caught, caught.__traceback__))]
    chain: list[BaseException] = [caught]
    while chain[-1].__cause__ or (chain[-1].__context__ and not chain[-1].__suppress_context__):
        chain.append(chain[-1].__cause__ or chain[-1].__context__)  # type: ignore[arg-type]
    for each in chain:
        shown += [str(each), repr(each), each.args, vars(each), pickle.dumps(str(vars(each))).decode("latin-1")]
    return shown


@pytest.mark.parametrize("encode", SOME_ENCODINGS)
def test_retries_say_nothing(
    stage: Callable[..., Scene], run: Callable[..., Outcome], tmp_path: Path, encode: str
) -> None:
    """The line that each retry logs quotes the gateway."""
    scene = stage()
    (tmp_path / "shoe.png").write_bytes(SHOE)
    scene.gateway.answer(
        *[Reply(503, body=error(message=f"busy with {ENCODINGS[encode](KEY)}", type="server_error"))] * 2,
        Reply(body={"data": [{"b64_json": b64(picture(90, 60, noise=True))}]}),
    )
    done = run(*OPENAI, "--reference-image", "shoe.png")
    assert (done.code, len(scene.gateway.calls)) == (0, 3)
    assert "busy with" in done.err
    assert scene.leaks(done.out, done.err) == []


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        pytest.param({"Location": f"https://a.example/{KEY[:19]}"}, KEY[19:], id="Location and body"),
        pytest.param({"X-Key": KEY[:19]}, error(message=KEY[19:]), id="header and message"),
        pytest.param({}, error(code=KEY[:19], message=KEY[19:]), id="code and message"),
        pytest.param({}, error(code=KEY[:19], message=f"{KEY[19:]} {KEY[:19]}"), id="code and message, both ways"),
        pytest.param({}, {"detail": [{"loc": [KEY[:13], KEY[13:26]], "msg": KEY[26:]}]}, id="three fields"),
        pytest.param({}, error(code=KEY[:26], message=KEY[26:]), id="the end alone"),
        pytest.param({}, error(message=KEY.replace("-", "-\n")), id="line feeds"),
    ],
)
@pytest.mark.parametrize("status", [302, 401, 500])
def test_split_echo(
    stage: Callable[..., Scene], run: Callable[..., Outcome], status: int, headers: dict[str, str], body: Any
) -> None:
    scene = stage()
    scene.gateway.answer(Reply(status, headers, body))
    done = run(*GEMINI, "--json")
    shown = f"{done.out}{done.err}"
    assert done.code in (4, 6, 7)
    assert scene.leaks(shown) == []
    assert KEY[-12:] not in re.sub(r"[^\w-]", "", shown)


def test_status_line_that_echoes(stage: Callable[..., Scene], run: Callable[..., Outcome]) -> None:
    """No HTTP at all, and a reason phrase: what the libraries below make exceptions of."""
    scene = stage()
    for raw in (
        f"{KEY}\r\n\r\n",
        f"HTTP/1.1 {KEY}\r\n\r\n",
        f"HTTP/1.1 401 {KEY}\r\nContent-Length: 0\r\n\r\n",
        f"HTTP/1.1 200 OK\r\n{KEY}\r\n\r\n",
    ):
        scene.gateway.answer(Reply(raw=raw.encode()))
        done = run(*GEMINI)
        assert done.code in (4, 6, 7)
        assert scene.leaks(done.out, done.err) == []


# --- What the program says by itself ---

SAYINGS: dict[str, tuple[tuple[object, ...], int]] = {
    "help": (("--help",), 0),
    "version": (("--version",), 0),
    "models": (("--list-models",), 0),
    "models as JSON": (("--list-models", "--json"), 0),
    "check": (("--check",), 0),
    "check as JSON": (("--check", "--json"), 0),
    "dry run": ((*OPENAI, "--dry-run"), 0),
    "dry run as JSON": ((*GEMINI, "--dry-run", "--json"), 0),
    "picture": (OPENAI, 0),
    "picture as JSON": ((*GEMINI, "--json"), 0),
    "quiet": ((*GEMINI, "--quiet"), 0),
    "no prompt": ((), 2),
    "the key as the prompt, dry": (("--prompt", KEY, "--output", "a.png", "--dry-run"), 0),
    "the key as the prompt, dry, as JSON": (("--prompt", KEY, "--output", "a.png", "--dry-run", "--json"), 0),
    "the key as a field, dry": ((*OPENAI, "--param", f"user={KEY}", "--dry-run"), 0),
    "the key as the name of a field": ((*OPENAI, "--param", KEY), 2),
    "the key as the model": ((*PROMPT, "--model", KEY), 2),
    "the key as the size": ((*OPENAI, "--size", KEY), 2),
    "the key as the ratio": ((*OPENAI, "--aspect-ratio", KEY), 2),
    "the key as n": ((*OPENAI, "--n", KEY), 2),
    "the key as the timeout": ((*OPENAI, "--timeout", KEY), 2),
    "the key as the family": ((*OPENAI, "--family", KEY), 2),
    "the key as a reference": ((*OPENAI, "--reference-image", f"{KEY}.png"), 2),
    "the key as a mask": ((*OPENAI, "--mask", KEY), 2),
    "the key as the prompt file": (("--prompt-file", KEY), 2),
    "the key as an extension": ((*PROMPT, "--output", f"a.{KEY}"), 2),
    "the key as a folder": ((*PROMPT, "--output", f"/proc/{KEY}/a.png"), 2),
    "the key as a proxy": ((*OPENAI, "--proxy", KEY), 2),
    "the key in a proxy": ((*OPENAI, "--proxy", f"http://user:{quote(KEY)}@127.0.0.1:1", "--timeout", 2), 6),
    "the key as a flag of its own": ((*OPENAI, "--api-key", KEY), 2),
    "the key as a flag with =": ((*OPENAI, f"--key={KEY}"), 2),
    "the key as a word": ((KEY,), 2),
}


@pytest.mark.parametrize(("argv", "code"), SAYINGS.values(), ids=SAYINGS)
def test_sayings(stage: Callable[..., Scene], run: Callable[..., Outcome], argv: tuple[object, ...], code: int) -> None:
    """A key pasted into the wrong flag is not repeated either."""
    scene = stage()
    done = run(*argv)
    assert done.code == code
    assert done.out + done.err
    assert scene.leaks(done.out, done.err) == []


@pytest.mark.parametrize(
    "argv", [("--check",), (*OPENAI, "--dry-run"), ("--check", "--json")], ids=["check", "dry", "JSON"]
)
@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_first_eight_at_most(
    stage: Callable[..., Scene], run: Callable[..., Outcome], key: str, argv: tuple[object, ...]
) -> None:
    """Enough to tell two keys apart, and never more than half."""
    scene = stage(key)
    done = run(*argv)
    start = key[: min(8, len(key) // 2)]
    assert done.code == 0
    assert start in done.out.replace("\\u2026", "…")
    assert key[: len(start) + 1] not in done.out + done.err
    assert scene.leaks(done.out, done.err) == []


@pytest.mark.parametrize(
    "argv",
    [
        ("--check",),
        ("--check", "--json"),
        OPENAI,
        (*OPENAI, "--json"),
        (*OPENAI, "--dry-run"),
        (*PROMPT, "--size", "1"),
    ],
)
def test_key_in_the_base_url(
    stage: Callable[..., Scene], run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, argv: tuple[object, ...]
) -> None:
    """Some gateways want it in the path, and then the URL is a secret, in the ledger, too."""
    scene = stage()
    scene.caplog.set_level(logging.INFO, "urllib3")  # whose own record of each URL nobody can help
    monkeypatch.setenv("OMNIMAAS_BASE_URL", f"{scene.gateway.origin}/{KEY}/v1")
    done = run(*argv)
    assert scene.leaks(done.out, done.err) == []


@pytest.mark.parametrize("argv", [("--check",), OPENAI, (*OPENAI, "--json")], ids=["check", "run", "JSON"])
@pytest.mark.parametrize(
    ("variable", "value", "code"),
    [
        pytest.param("OMNIMAAS_BASE_URL", f"http://user:{KEY}@127.0.0.1:9/v1", 3, id="in the URL's user"),
        pytest.param("OMNIMAAS_BASE_URL", f"http://127.0.0.1:9/v1?key={KEY}", 3, id="in the URL's query"),
        pytest.param("OMNIMAAS_BASE_URL", f"http://127.0.0.1:9/v1#{KEY}", 3, id="in the URL's fragment"),
        pytest.param("OMNIMAAS_BASE_URL", KEY, 3, id="in place of the URL"),
        pytest.param("OMNIMAAS_BASE_URL", f"{KEY}.invalid", 3, id="as a host without a scheme"),
        pytest.param(
            "OMNIMAAS_BASE_URL", f"https://127.0.0.1:9/{KEY}/chat/completions", 3, id="in the URL of an endpoint"
        ),
        pytest.param("OMNIMAAS_BASE_URL", f"http://{KEY}:9/v1", 6, id="as a host"),
        pytest.param("OMNIMAAS_API_KEY", f"{KEY[:20]}\n{KEY[20:]}", 3, id="broken by a line feed"),
        pytest.param("OMNIMAAS_API_KEY", f"{KEY} # mine", 3, id="with a comment"),
        pytest.param("OMNIMAAS_API_KEY", f"“{KEY}”", 3, id="in curly quotes"),
        pytest.param("OMNIMAAS_API_KEY", f"export OMNIMAAS_API_KEY={KEY}", 3, id="as the whole command"),
        pytest.param("PRODUCT_SHOTS_IMAGEGEN_LEDGER", f"/proc/{KEY}/ledger", None, id="in the ledger's name"),
    ],
)
def test_configuration_errors(
    stage: Callable[..., Scene], run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch,
    variable: str, value: str, code: int | None, argv: tuple[object, ...],
) -> None:  # fmt: skip
    scene = stage()
    monkeypatch.setenv(variable, value)
    done = run(*argv, *(("--timeout", 5) if code == 6 else ()))
    assert done.code == code or (code is None and done.code == 0)
    assert scene.leaks(done.out, done.err) == []


@pytest.mark.parametrize("place", ["401 message", "502 page", "200 dead link", "picture and usage"])
@pytest.mark.parametrize("source", [*(row[0] for row in generate.CONFIG_ROWS), *generate.KEY_FILES])
def test_key_from_anywhere(
    stage: Callable[..., Scene], run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, source: str, place: str
) -> None:
    """A key in a file is as secret as one in a variable."""
    scene = stage(configured=False)
    variable = dict(generate.CONFIG_ROWS).get(source, generate.CONFIG_ROWS[1][1])
    monkeypatch.setenv(variable, scene.gateway.url)
    if source.startswith("~"):
        path = Path(source).expanduser()
        path.write_text(f"{KEY}\n")
        path.chmod(0o600)
        scene.exempt.add(path)
    else:
        monkeypatch.setenv(source, KEY)
    scene.gateway.answer(PLACES[place](KEY, scene.gateway))
    done = run(*OPENAI, "--json")
    assert scene.gateway.calls[0].headers["Authorization"] == f"Bearer {KEY}"
    assert scene.leaks(done.out, done.err) == []


def test_keys_that_are_not_in_use(
    stage: Callable[..., Scene], run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second key in the environment is as secret as the first, and goes nowhere."""
    scene = stage()
    second = KEYS["capitals and dots"]
    monkeypatch.setenv("RENDER_API_KEY", second)
    scene.gateway.answer(Reply(400, body=error(message=f"also seen: {second}")))
    done = run(*OPENAI)
    assert "also seen" in done.err
    assert leaks(done.out + done.err, second) == []
    assert leaks(wire(scene.gateway), second) == []


def test_ledger_is_written_and_clean(stage: Callable[..., Scene], run: Callable[..., Outcome], tmp_path: Path) -> None:
    """The scanner really looks into the ledger: it has a line for each call, failed ones too."""
    scene = stage()
    for place in ("401 message", "500 message", "200 dead link", "picture and usage"):
        scene.gateway.answer(PLACES[place](KEY, scene.gateway))
        run(*OPENAI)
    assert len((tmp_path / "ledger.jsonl").read_text().splitlines()) == 4
    assert scene.leaks() == []


# --- Internal errors ---

HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


def chained() -> None:
    try:
        raise KeyError(KEY)
    except KeyError as cause:
        raise RuntimeError(f"request failed: {HEADERS}") from cause


def nested() -> None:
    try:
        json.loads(f'{{"key": "{KEY}"')
    except ValueError:
        raise OSError(5, "Input/output error", f"/{KEY}") from None


BREAKDOWNS: dict[str, Callable[[], None]] = {
    "chained": chained,
    "nested": nested,
    **{
        f"{type(each).__name__} {number}": (lambda each=each: (_ for _ in ()).throw(each))  # type: ignore[misc]
        for number, each in enumerate(
            [
                RuntimeError(str(HEADERS)),
                RuntimeError(HEADERS),
                ValueError(f"Invalid header value b'Bearer {KEY}'"),
                ValueError(KEY.encode()),
                TypeError(base64.b64encode(f"x:{KEY}".encode())),
                KeyError(KEY),
                UnicodeDecodeError("utf-8", f"Bearer {KEY}".encode(), 0, 1, KEY),
                AssertionError(KEY.encode().hex()),
                Exception(quote(KEY), [KEY], {"key": KEY}),
                RecursionError(f"{KEY}\n{KEY}"),
                MemoryError(KEY),
            ]
        )
    },
}


@pytest.mark.parametrize("as_json", [False, True], ids=["text", "JSON"])
@pytest.mark.parametrize("where", ["compose_prompt", "load_target", "read_answer"])
@pytest.mark.parametrize("breakdown", BREAKDOWNS.values(), ids=BREAKDOWNS)
def test_internal_error(
    stage: Callable[..., Scene], run: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch,
    breakdown: Callable[[], None], where: str, as_json: bool,
) -> None:  # fmt: skip
    """A bug may carry the headers in its message: the traceback is there, the key is not."""
    scene = stage()
    monkeypatch.setattr(generate, where, lambda *_, **__: breakdown())
    done = run(*OPENAI, *(["--json"] if as_json else []))
    assert done.code == 1 or (where == "read_answer" and isinstance_of_value_error(breakdown) and done.code == 7)
    assert "Traceback" in done.err or done.code == 7
    assert scene.leaks(done.out, done.err) == []
    assert not as_json or done.json["error"]["kind"] in ("internal", "response")


def isinstance_of_value_error(breakdown: Callable[[], None]) -> bool:
    try:
        breakdown()
    except ValueError:
        return True
    except BaseException:
        return False
    return False


@pytest.mark.parametrize("breakdown", BREAKDOWNS.values(), ids=BREAKDOWNS)
def test_breakdown_on_the_way(
    stage: Callable[..., Scene],
    run: Callable[..., Outcome],
    monkeypatch: pytest.MonkeyPatch,
    breakdown: Callable[[], None],
) -> None:
    """An exception from deep below the request, on whatever thread it happens."""
    scene = stage()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: breakdown())
    monkeypatch.setenv("OMNIMAAS_BASE_URL", scene.gateway.url.replace("127.0.0.1", "localhost"))
    done = run(*OPENAI, "--timeout", 5)
    assert done.code in (1, 6)
    assert scene.leaks(done.out, done.err) == []


# --- Objects ---


def test_no_object_shows_the_key(stage: Callable[..., Scene], tmp_path: Path) -> None:
    """Not one object of the module, as a debugger, a traceback or a log line would print it after a call."""
    scene = stage()
    (tmp_path / "shoe.png").write_bytes(SHOE)
    scene.gateway.answer(Reply(body={"data": [{"b64_json": b64(PNG)}]}), Reply(401, body=error(message=KEY)))
    older = gc.get_objects()  # what other tests have left
    known = set(map(id, older))
    target = generate.load_target()
    made = generate.generate_openai("a cup", "gpt-image-2", ref_images=["shoe.png"], attempts=1)
    with pytest.raises(ImageGenError) as caught:
        generate.generate_gemini("a cup")
    args = generate.validate_args(generate.Args("a cup"))
    named = [target, args, generate.maybe_resize("shoe.png"), made, caught.value, vars(generate)]
    pairs = [generate.load_api_key(), generate.load_base_url()]
    ours = [each for each in gc.get_objects() if id(each) not in known and type(each).__module__ == "generate"]
    assert {"Target", "Generation", "Args", "Reference", "AuthError"} <= {type(each).__name__ for each in named + ours}
    shown = {repr(each) for each in [*named, *pairs, *ours]} | {str([each]) for each in ours}
    shown |= {view(each) for each in named for view in (str, "{}".format, "{!a}".format)}
    assert scene.leaks(*(text[:30_000] for text in shown)) == []  # the rest is a picture's bytes
    assert generate.mask_key(KEY) in repr(target)


def test_target_still_works(stage: Callable[..., Scene]) -> None:
    """Hidden, not lost."""
    stage()
    assert generate.load_target().key == KEY == generate.load_api_key()[0]


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
def test_mask(key: str) -> None:
    masked = generate.mask_key(key)
    assert key.startswith(masked[:-1]) and masked.endswith("…")
    assert len(masked) - 1 <= min(8, len(key) / 2)


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS)
@pytest.mark.parametrize("encode", ENCODINGS.values(), ids=ENCODINGS)
def test_redact(key: str, encode: Callable[[str], str]) -> None:
    """In a text, and anywhere in a tree, names included; what stands around it stays."""
    text = f"the gateway said {encode(key)} and no more"
    tree = generate.redact({"a": [text, {encode(key): text}], "n": 7, "x": None, "b": True}, [key])
    assert leaks(json.dumps(tree, ensure_ascii=False), key) == []
    assert (tree["n"], tree["x"], tree["b"]) == (7, None, True)
    assert tree["a"][0].startswith("the gateway said ")


@pytest.mark.parametrize(
    "text", ["", "a red apple", "the stand-in gateway", "sk-", "0123", "https://api.omnimaas.com/v1", KEY[:8] + "…"]
)
def test_redact_leaves_the_rest_alone(text: str) -> None:
    assert generate.redact(text, [KEY]) == text


# --- Other hosts ---


def wire(gateway: Gateway) -> str:
    """All that has arrived at a gateway."""
    return "\n".join(
        f"{each.method} {each.target}\n{each.headers}\n{each.body.decode('latin-1')}" for each in gateway.requests
    )


@pytest.fixture
def other() -> Iterator[Gateway]:
    """Another host, which takes down whatever it is told."""
    with Gateway(key="another-key") as other:
        yield other


def links(picture_link: str, encode: Callable[[str], str]) -> dict[str, str]:
    scheme, _, rest = picture_link.partition("://")
    secret = quote(encode(KEY), safe="%")
    return {
        "plain": picture_link,
        "query": f"{picture_link}?token={secret}",
        "path": picture_link.replace("/media/", f"/media/{secret}/"),
        "user": f"{scheme}://{secret}@{rest}",
        "user and password": f"{scheme}://user:{secret}@{rest}",
        "fragment": f"{picture_link}#{secret}",
    }


@pytest.mark.parametrize("form", links("http://x/media/", str))
@pytest.mark.parametrize("encode", ["plain", "URL-encoded, every letter", "base64 of Bearer", "only the end"])
@pytest.mark.parametrize("how", ["link", "redirect", "second redirect"])
def test_result_on_another_host(
    stage: Callable[..., Scene], run: Callable[..., Outcome], other: Gateway, how: str, encode: str, form: str
) -> None:
    """Where the picture lies never learns the key, not even when the gateway tries to pass it on in the link."""
    scene = stage()
    gateway = scene.gateway
    link = links(other.publish("a.png", PNG), ENCODINGS[encode])[form]
    if how == "second redirect":
        gateway.answer_always(Reply(302, {"Location": link}), path="/media/two")
        link = f"{gateway.origin}/media/two"
    if how != "link":
        gateway.answer_always(Reply(301, {"Location": link}), path="/media/one")
        link = f"{gateway.origin}/media/one"
    gateway.answer(Reply(headers={"Set-Cookie": f"session={KEY}; Path=/"}, body={"data": [{"url": link}]}))
    done = run(*OPENAI, "--json")
    assert len(gateway.calls) == 1
    assert done.code == 0 or form != "plain"
    assert not [each for each in other.requests if each.headers.get("Authorization", "").startswith("Bearer")]
    assert leaks(wire(other), KEY) == []
    assert [each for each in gateway.requests if each.method == "GET" and each.headers.get("Authorization")] == []
    assert scene.leaks(done.out, done.err) == []


def test_picture_on_another_host_is_fetched(
    stage: Callable[..., Scene], run: Callable[..., Outcome], other: Gateway, tmp_path: Path
) -> None:
    """Not sending the key is not the same as not asking."""
    scene = stage()
    scene.gateway.answer(Reply(body={"data": [{"url": other.publish("a.png", PNG)}]}))
    assert run(*OPENAI).code == 0
    assert (tmp_path / "apple.png").read_bytes() == PNG
    assert [each.method for each in other.requests] == ["GET"]
    assert sorted(other.requests[0].headers) == sorted(
        ["Host", "User-Agent", "Accept-Encoding", "Accept", "Connection"]
    )


@pytest.mark.parametrize("key", ["test", "none", "sk-media-apples-1234"])
def test_a_key_of_common_letters_spoils_no_link_and_no_path(
    stage: Callable[..., Scene], run: Callable[..., Outcome], tmp_path: Path, key: str
) -> None:
    """Whoever guards a gateway of their own with a word finds that word everywhere; paths have to be told as they are."""
    scene = stage(key)
    link = scene.gateway.publish("none/test.png", PNG)
    scene.gateway.answer(Reply(body={"data": [{"url": link}]}))
    done = run(*OPENAI[:-1], tmp_path / "none-media-apples" / "test.png", "--json")
    assert done.code == 0
    assert Path(done.json["path"]).read_bytes() == PNG


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
@pytest.mark.parametrize("argv", [OPENAI, GEMINI, ("--check",)], ids=["openai", "gemini", "check"])
def test_redirect_to_another_host(
    stage: Callable[..., Scene], run: Callable[..., Outcome], other: Gateway, argv: tuple[object, ...], status: int
) -> None:
    """A gateway that moves away gets one request; the new place gets none, for it has not been trusted with the key."""
    scene = stage()
    reply = Reply(status, {"Location": other.url + "/chat/completions", "Refresh": f"0; url={other.url}"}, b"")
    scene.gateway.answer_always(reply, path="/v1/")
    done = run(*argv)
    assert len(scene.gateway.requests) == 1
    assert other.requests == []
    assert done.code == 7 or argv == ("--check",)
    assert scene.leaks(done.out, done.err) == []


def test_other_ways_to_name_a_host(stage: Callable[..., Scene], run: Callable[..., Outcome], other: Gateway) -> None:
    """Headers and pages that a browser would follow."""
    scene = stage()
    headers = {
        "Alt-Svc": f'http="{other.origin[7:]}"',
        "Link": f"<{other.url}>; rel=preload",
        "Content-Location": other.url,
    }
    page = f'<meta http-equiv="refresh" content="0; url={other.url}"><base href="{other.url}/"><script src="{other.url}/a.js">'
    scene.gateway.answer(
        Reply(headers=headers, body=page), Reply(401, {**headers, "WWW-Authenticate": "Basic"}), Reply(407, headers)
    )
    assert [run(*GEMINI).code for _ in range(3)] == [7, 4, 7]
    assert other.requests == []


# --- The environment ---


def shape(received: Received) -> dict[str, Any]:
    """A request without what differs from run to run."""
    headers = {name: re.sub(r"boundary=\w+", "", value) for name, value in received.headers.items() if name != "Host"}
    return {"method": received.method, "path": received.path, "headers": headers, "json": received.json}


def said(text: str) -> str:
    return re.sub(r"[\d.]+", "#", text)


def proxied(address: str) -> dict[str, str]:
    names = ("http_proxy", "https_proxy", "all_proxy", "ftp_proxy")
    return {name: address for each in names for name in (each, each.upper())}


@pytest.mark.parametrize("where", ["library", "process"])
@pytest.mark.parametrize(
    "name",
    [
        "dead proxy",
        "live proxy",
        "SOCKS proxy",
        "broken proxy",
        "no_proxy",
        "netrc",
        "NETRC",
        "warnings",
        "dev mode",
        "CA",
        "debug",
        "encoding",
    ],
)
def test_environment_changes_nothing(
    stage: Callable[..., Scene], run: Callable[..., Outcome], cli: Callable[..., Outcome], other: Gateway,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, where: str,
) -> None:  # fmt: skip
    """Proxy variables, .netrc and Python's own switches: the same request, the same words, nothing for anyone else."""
    scene = stage()
    call = run if where == "library" else cli
    plain = call(*GEMINI)
    netrc = "machine 127.0.0.1 login me password hush\ndefault login me password hush\n"
    changes = {
        "dead proxy": proxied("http://127.0.0.1:9"),
        "live proxy": proxied(other.origin),
        "SOCKS proxy": proxied("socks5://127.0.0.1:9"),
        "broken proxy": proxied("not a proxy"),
        "no_proxy": {"no_proxy": "*", "NO_PROXY": "*"},
        "netrc": {},
        "NETRC": {"NETRC": str(tmp_path / "netrc")},
        "warnings": {"PYTHONWARNINGS": "error"},
        "dev mode": {"PYTHONDEVMODE": "1", "PYTHONTRACEMALLOC": "5"},
        "CA": {"CURL_CA_BUNDLE": "/nowhere"},
        "debug": {"PYTHONDEBUG": "1", "PYTHONASYNCIODEBUG": "1", "PYTHONFAULTHANDLER": "1"},
        "encoding": {"PYTHONIOENCODING": "utf-8", "PYTHONUTF8": "1", "LC_ALL": "C"},
    }
    for path in {"netrc": [Path.home() / ".netrc", Path.home() / "_netrc"], "NETRC": [tmp_path / "netrc"]}.get(
        name, []
    ):
        path.write_text(netrc)
        path.chmod(0o600)
    for variable, value in changes[name].items():
        monkeypatch.setenv(variable, value)
    changed = call(*GEMINI)
    assert (changed.code, changed.out, said(changed.err)) == (0, plain.out, said(plain.err))
    first, second = map(shape, scene.gateway.requests)
    assert first == second
    assert first["headers"]["Authorization"] == f"Bearer {KEY}"
    assert other.requests == []
    assert scene.leaks(changed.out, changed.err) == []


@pytest.mark.parametrize(
    "name", ["401 message", "502 page", "302 Location", "200 dead link", "200 text", "picture and usage"]
)
@pytest.mark.parametrize("encode", ["plain", "base64 of Bearer"])
def test_echo_to_a_process(stage: Callable[..., Scene], cli: Callable[..., Outcome], name: str, encode: str) -> None:
    """The same as a user runs it, with Python's warnings as errors."""
    scene = stage()
    scene.gateway.answer(PLACES[name](ENCODINGS[encode](KEY), scene.gateway))
    done = cli(*OPENAI, "--json", env={"PYTHONWARNINGS": "error"})
    assert done.json["ok"] == (done.code == 0)
    assert scene.leaks(done.out, done.err) == []


def test_key_is_on_no_command_line(stage: Callable[..., Scene], start: Callable[..., Any]) -> None:
    """Other users of the machine can list processes and their arguments."""
    scene = stage()
    scene.gateway.answer(Reply(hang="accept"))
    process = start(*GEMINI)
    scene.gateway.wait_for(1)
    if Path("/proc/self/cmdline").exists():
        seen = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if readable(path)]
        assert any(b"generate.py" in line for line in seen)
        assert not any(KEY.encode() in line for line in seen)
    else:
        seen_args = os.popen(f"ps -o args= -p {process.pid}").read()
        assert "generate.py" in seen_args and KEY not in seen_args
    scene.gateway.release()
    out, err = process.communicate(timeout=30)
    assert scene.leaks(out, err) == []


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def test_key_is_sent_in_one_header_only(stage: Callable[..., Scene], tmp_path: Path) -> None:
    """Authorization, and nothing else of the request: no cookie, no query, no form field."""
    scene = stage()
    (tmp_path / "shoe.png").write_bytes(SHOE)
    generate.generate_openai("a cup", "gpt-image-2")
    generate.generate_openai("a cup", "gpt-image-2", ref_images=["shoe.png"])
    generate.generate_gemini("a cup")
    generate.generate_gemini("a cup", ref_images=["shoe.png"])
    for received in scene.gateway.requests:
        assert received.headers.get_all("Authorization") == [f"Bearer {KEY}"]
        del received.headers["Authorization"]
    assert len(scene.gateway.requests) == 4
    assert leaks(wire(scene.gateway), KEY) == []


def test_key_survives_a_closed_screen(
    stage: Callable[..., Scene], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Output that cannot be written makes no detour into another stream."""
    scene = stage()
    scene.gateway.answer(PLACES["401 message"](KEY, scene.gateway))
    kept = io.StringIO()
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setattr(sys, "stdout", kept)
    assert generate.main(list(GEMINI)) == 4
    assert scene.leaks(kept.getvalue()) == []
