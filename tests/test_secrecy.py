"""The key: whatever echoes it is on no screen, in no file, in no object's repr, at no other host.

'The key is redacted from everything the program prints or raises, gateway error bodies included.'
"""

from __future__ import annotations

import base64
import gc
import logging
import os
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import generate
import pytest
from bodies import chat
from conftest import MODELS, Outcome, Run, table
from gateway import KEY, Gateway, Reply
from pictures import picture

PNG = picture(80, 60, noise=True)
B64 = base64.b64encode(PNG).decode()
OPENAI = ("--prompt", "a cup", "--model", MODELS["openai"], "--output", "cup.png")
SECOND = "AKIA.ZX7Q.M2P9.LKD3.WVT8"


def decoded(text: str) -> Iterator[str]:
    """The text, and everything that it may be an encoding of."""
    yield text
    yield unquote(unquote(text))
    yield re.sub(r"\\+u00([0-9a-fA-F]{2})", lambda match: chr(int(match[1], 16)), text)
    for run in re.findall(r"[\w+/-]{16,}", text, re.ASCII):
        plain = run.replace("-", "+").replace("_", "/")
        for start in range(4):
            piece = plain[start : start + (len(plain) - start) // 4 * 4]
            yield base64.b64decode(piece).decode("latin-1")


def leaks(*texts: object, key: str = KEY) -> list[str]:
    """The stretches of 12 letters of the key (or all of a shorter one) that can be read there."""
    stretches = [key[i : i + 12].lower() for i in range(max(1, len(key) - 11))]
    views = [view.lower() for text in texts for view in decoded(str(text))]
    return [stretch for stretch in stretches if any(stretch in view for view in views)]


def shown(done: Outcome) -> list[str]:
    """All that a run has left: what it printed, and the files, but for the pictures' pixels."""
    places = (Path(), Path.home() / ".local")  # with the ledger
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    return [done.out, done.err, *map(str, files)]


def failed(message: str, **fields: Any) -> Any:
    return {"error": {"message": message, **fields}}


def in_base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# --- Echoes ---

ECHOES = {
    "whole": KEY,
    "in capitals": KEY.upper(),
    "masked in the middle": f"{KEY[:7]}********{KEY[-12:]}",
    "masked at the start": "*" * 25 + KEY[-12:],
    "in two halves": f"{KEY[:19]} {KEY[19:]}",
    "URL-encoded": "".join(f"%{ord(letter):02X}" for letter in KEY),
    "URL-encoded twice": "".join(f"%25{ord(letter):02X}" for letter in KEY),
    "JSON-escaped": "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    "base64": in_base64(KEY),
    "base64 of Bearer": in_base64(f"Bearer {KEY}"),
    "base64, shifted": in_base64(f"x{KEY}yz"),
    "base64, unpadded": in_base64(f"xy{KEY}").rstrip("="),
}


@pytest.mark.parametrize("echo", ECHOES.values(), ids=ECHOES)
def test_redaction(gateway: Gateway, run: Run, echo: str) -> None:
    """However the gateway quotes the key; what stands around it stays."""
    assert leaks(echo)
    gateway.answer(Reply(400, body=failed(f"the gateway said {echo}")))
    done = run(*OPENAI, "--json")
    assert "the gateway said " in done.json["error"]["message"]
    assert leaks(*shown(done), done.json) == []


def test_redaction_of_either_base64(gateway: Gateway, run: Run, monkeypatch: Any) -> None:
    """Of a key whose base64 has letters in which the two alphabets differ."""
    key = "sk-~~~???>>>~o?~o?~o?"
    monkeypatch.setenv("OMNIMAAS_API_KEY", key)
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        gateway.answer(Reply(400, body=failed(encode(key.encode()).decode())))
        assert leaks(run(*OPENAI, "--json").json, key=key) == []


def test_redaction_of_a_long_text_leaves_the_rest() -> None:
    """Of what is as long as a picture only the ends are searched."""
    ends = (f"{KEY} begins ", f" ends {KEY}")
    middle = "y" * 30_000
    expected = f"[key] begins {middle} ends [key]"
    assert generate.redact_tree(middle.join(ends), [KEY]) == expected


DRAFT = {"type": "image_generation.partial_image", "partial_image_index": 0}  # then it breaks off
PLACES: dict[str, Any] = {  # exit code, and where a gateway puts what it echoes
    "401 message": (4, lambda x, g: Reply(401, body=failed(f"Incorrect key: {x}", code="api_key"))),
    "400 in halves": (7, lambda x, g: Reply(400, body=failed(x[19:], code=x[:19]))),
    "422 detail": (7, lambda x, g: Reply(422, body={"detail": [{"loc": ["header", x], "msg": x}]})),
    "429 text": (5, lambda x, g: Reply(429, body=f"Too many requests of {x}")),
    "500 cut at 300": (6, lambda x, g: Reply(500, body=failed("x" * 280 + " " + x))),
    "502 title": (6, lambda x, g: Reply(502, body=f"<html><title>{x}</title></html>")),
    "302 Location": (7, lambda x, g: Reply(302, {"Location": f"https://login.example/?next={x}"})),
    "reason phrase": (4, lambda x, g: Reply(raw=f"HTTP/1.1 401 {x}\r\n\r\n".encode())),
    "200 error": (4, lambda x, g: Reply(body=failed(x, code=401))),
    "200 words": (9, lambda x, g: Reply(body={"choices": [{"message": {"content": f"I am {x}"}}]})),
    "200 long words": (9, lambda x, g: Reply(body=chat("word " * 5000 + f"{g.origin}/gone?k={x}"))),
    "200 draft": (6, lambda x, g: Reply(events=[{**DRAFT, "url": f"{g.origin}/gone.png?k={x}"}])),
    "200 dead link": (9, lambda x, g: Reply(body={"data": [{"url": f"{g.origin}/gone.png?{x}"}]})),
    "usage": (0, lambda x, g: Reply(body={"data": [{"b64_json": B64}], "usage": {x: [x]}})),
}


@pytest.mark.usefixtures("short_waits")
@table("code, place", PLACES)
def test_places(
    gateway: Gateway, run: Run, reference: Path, caplog: Any, code: int, place: Any
) -> None:
    """Wherever it stands: in text, retries' lines too, in JSON, in what the library raises."""
    caplog.set_level(logging.INFO)
    gateway.answer_always(place(KEY, gateway), path="/images")
    plain = run(*OPENAI, "--reference-image", reference)
    done = run(*OPENAI, "--json")
    assert (plain.code, done.code) == (code, code)
    seen = [*shown(plain), *shown(done), done.json]
    del os.environ["OMNIMAAS_API_KEY"]  # from here on it is known to nobody but the call
    try:
        made = generate.generate_openai("a cup", "gpt-image-2", api_key=KEY, base_url=gateway.url)
        seen += [repr(made), made.usage]
    except generate.ImageGenError as error:
        seen += [traceback.format_exc(), repr(error), vars(error), repr(error.__context__)]
    assert leaks(*seen, caplog.text) == []


ROWS = generate.URL_VARIABLES


@pytest.mark.parametrize("source", [*ROWS, *generate.KEY_FILES[:-1]])
def test_key_from_anywhere(gateway: Gateway, run: Run, monkeypatch: Any, source: str) -> None:
    """'… wherever it came from', the keys that are not in use included, which go nowhere."""
    for name in ("OMNIMAAS_API_KEY", "OMNIMAAS_BASE_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv(ROWS.get(source, "RENDER_BASE_URL"), gateway.url)
    if source in ROWS:
        monkeypatch.setenv(source, KEY)
    else:
        Path(source).expanduser().write_text(f"{KEY}\n")
    Path(generate.KEY_FILES[-1]).expanduser().write_text(SECOND)
    gateway.answer(Reply(400, body=failed(f"the keys {KEY} and {SECOND}")))
    done = run(*OPENAI)
    assert "the keys" in done.err
    assert leaks(*shown(done)) == leaks(*shown(done), *wire(gateway), key=SECOND) == []


# --- What the program says by itself ---


def guarded(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """From now on the gateway's key is this one."""
    gateway.key = key
    monkeypatch.setenv("OMNIMAAS_API_KEY", key)


@pytest.mark.parametrize(
    "key", [KEY, SECOND, "k3y9Zq_", "k3y9Zq_x", "k3y9Zq_x7", "sk~p+l/u=s&a%m:b"]
)
def test_first_eight_at_most(gateway: Gateway, run: Run, monkeypatch: Any, key: str) -> None:
    """'Only the first 8 characters of a key are ever shown, and never more than half of it.'"""
    guarded(gateway, monkeypatch, key)
    encoded = [in_base64(f"{before}{key}yz") for before in ("", "x", "xy")]
    gateway.answer(Reply(400, body=failed(f"You are {key} {' '.join(encoded)}")))
    start = key[: min(8, len(key) // 2)]
    for argv in (("--check",), ("--check", "--json"), (*OPENAI, "--dry-run"), OPENAI):
        done = run(*argv)
        assert f"{start}…" in done.out.replace("\\u2026", "…") or argv == OPENAI
        assert key[: len(start) + 1] not in done.out + done.err
    assert done.code == 7
    for text in encoded if len(key) > 8 else ():  # shorter ones may be part of any base64
        assert text[4:12] not in done.err


@pytest.mark.parametrize("key", ["test", "none"])
def test_a_key_that_is_a_word(gateway: Gateway, run: Run, monkeypatch: Any, key: str) -> None:
    """A word that guards a gateway of one's own spoils no link, no path, and no other word."""
    guarded(gateway, monkeypatch, key)
    words = "the contents of a test: attested, none"
    dry = run("--prompt", words, "--param", f"user={key}", "--dry-run").json
    assert dry["json"]["messages"][0]["content"][0]["text"] == words
    assert dry["json"]["user"] == key
    gateway.answer(Reply(400, body=failed(f"its contents are untested by {key}.")))
    assert "contents are untested by [key]." in run(*OPENAI, "--json").json["error"]["message"]
    path = Path("none", "test.png").resolve()
    gateway.answer(Reply(body={"data": [{"url": gateway.publish("none/test.png", PNG)}]}))
    done = run(*OPENAI[:-1], path, "--json")
    assert (done.code, done.json["path"]) == (0, str(path))
    assert path.read_bytes() == PNG


URL, NOWHERE = "OMNIMAAS_BASE_URL", "http://127.0.0.1:9"
PASTED = {  # the key where it does not belong: in the environment, in the arguments; the exit code
    "field": ({}, (*OPENAI, "--param", f"user={KEY}", "--dry-run"), 0),
    "user of a proxy": ({}, (*OPENAI, "--proxy", f"http://user:{KEY}@127.0.0.1:1"), 6),
    "flag of its own": ({}, (*OPENAI, "--api-key", KEY), 2),
    "URL's user": ({URL: f"http://user:{KEY}@127.0.0.1:9/v1"}, OPENAI, 3),
    "URL's place": ({URL: KEY}, OPENAI, 3),
    "URL's path": ({URL: f"{NOWHERE}/{KEY}/v1"}, ("--check",), 6),
    "line feed": ({"OMNIMAAS_API_KEY": f"{KEY[:20]}\n{KEY[20:]}"}, OPENAI, 3),
    "quotes": ({"OMNIMAAS_API_KEY": f"“{KEY}”"}, OPENAI, 3),
}


@table("settings, argv, code", PASTED)
def test_pasted(
    gateway: Gateway, run: Run, monkeypatch: Any, settings: dict[str, str], argv: Any, code: int
) -> None:
    """A key in the wrong place is not repeated either: 'an error that does not show it'."""
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    for done in (run(*argv), run(*argv, "--json")):
        assert (done.code, gateway.requests) == (code, [])
        assert done.out + done.err
        assert leaks(*shown(done)) == []


def test_traceback(gateway: Gateway, run: Run, monkeypatch: Any) -> None:
    """'A bug; traceback, key redacted.'"""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError({"Authorization": f"Bearer {KEY}"}) from KeyError(KEY)

    monkeypatch.setattr(generate, "compose_prompt", fail)
    done = run(*OPENAI, "--json")
    assert (done.code, done.json["error"]["kind"]) == (1, "internal")
    assert "RuntimeError" in done.json["error"]["message"]
    assert "Traceback" in done.err and "KeyError" in done.err
    assert leaks(*shown(done)) == []


def test_no_object_shows_the_key(gateway: Gateway, reference: Path) -> None:
    """'repr masks secrets': of every object of the module that a call has made."""
    older_objects = gc.get_objects()  # kept, so that no new one gets the id of an older one
    older = {id(each) for each in older_objects}
    pair = generate.load_api_key()
    made = generate.generate_openai("a cup", "gpt-image-2", ref_images=[reference])
    gateway.answer(Reply(401, body=failed(KEY)))
    with pytest.raises(generate.AuthError) as caught:
        generate.generate_gemini("a cup")
    ours = [each for each in gc.get_objects() if id(each) not in older]
    ours = [each for each in ours if type(each).__module__ == "generate"]
    assert made in ours and caught.value in ours
    assert leaks(pair, *(repr(each)[:9999] for each in ours)) == []


# --- Other hosts, proxies, netrc ---


@pytest.fixture
def other() -> Iterator[Gateway]:
    """Another host, which takes down whatever it is told."""
    with Gateway(key="another-key") as other:
        yield other


def wire(gateway: Gateway) -> list[str]:
    """All that has arrived at a gateway, but for the key's own header."""
    own = f"Authorization: Bearer {KEY}"
    heads = [str(each.headers).replace(own, "", 1) for each in gateway.requests]
    return [*heads, *(f"{each.target} {each.body!r}" for each in gateway.requests)]


LINKS = ["{0}://{1}", "{0}://{1}?token={2}", "{0}://{2}@{1}", "{0}://{1}#{2}"]


@pytest.mark.parametrize("redirected", [0, 300, 301, 302, 303, 307, 308])
@pytest.mark.parametrize("form", LINKS)
def test_result_elsewhere(
    gateway: Gateway, run: Run, other: Gateway, form: str, redirected: int
) -> None:
    """'A result URL is fetched without the key', even when the gateway puts it into the link."""
    scheme, _, rest = other.publish("a.png", PNG).partition("://")
    link = form.format(scheme, rest, KEY)
    gateway.answer(Reply(redirected, {"Location": link}), path="/media/one")
    link = f"{gateway.origin}/media/one" if redirected else link
    headers = {"Set-Cookie": f"session={KEY}; Path=/"}
    gateway.answer(Reply(headers=headers, body={"data": [{"url": link}]}))
    done = run(*OPENAI)
    assert (done.code, len(other.requests)) == (0, 1)
    sent = [each for each in gateway.requests + other.requests if each.method == "GET"]
    assert [each.headers["Authorization"] for each in sent] == [None] * (1 + bool(redirected))
    assert leaks(*shown(done), *wire(other)) == []


NETRC = "machine 127.0.0.1 login me password hush\ndefault login me password hush\n"


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "live"])
def test_environment(
    gateway: Gateway, run: Run, other: Gateway, monkeypatch: Any, reference: Path, proxy: str
) -> None:
    """'The environment's proxy variables and .netrc are ignored', and one header has the key."""
    for name in ("http_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.replace("live", other.origin))
    monkeypatch.setenv("NETRC", "netrc")
    for path in (Path("netrc"), Path.home() / ".netrc", Path.home() / "_netrc"):
        path.write_text(NETRC)
    gateway.answer(Reply(body={"data": [{"url": gateway.publish("a.png", PNG)}]}))
    assert run(*OPENAI).code == run(*OPENAI, "--reference-image", reference).code == 0
    sent = [each.headers.get_all("Authorization") for each in gateway.requests]
    assert (sent, other.requests) == ([[f"Bearer {KEY}"], None, [f"Bearer {KEY}"]], [])
    assert leaks(*wire(gateway)) == []
