"""The command line: streams, JSON, the process, the live line, and the flags that send nothing."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import generate
import pictures
import pytest
from bodies import data_url, prompt_in
from conftest import table
from gateway import Gateway, Reply

GEMINI, GPT = "gemini-3-pro-image-preview", "gpt-image-2"
ASK = ("--prompt", "a cup", "--output", "cup.jpeg")
LONG = "x" * 4000


def test_standard_output_is_absolute_paths_and_nothing_else(
    gateway: Gateway, run: Any, tmp_path: Path
) -> None:
    """One path a line on stdout; everything human goes to stderr, prefixed `[image-gen]`."""
    environment = dict(os.environ)
    outcome = run("--prompt", "a cup", "--model", GPT, "--n", "3", "--output", "new/cup.png")
    paths = [tmp_path / "new" / name for name in ("cup.png", "cup-2.png", "cup-3.png")]
    assert (outcome.code, outcome.out) == (0, "".join(f"{path}\n" for path in paths))
    assert len({path.read_bytes() for path in paths}) == 3
    assert all(line.startswith("[image-gen] ") for line in outcome.err.splitlines())
    assert dict(os.environ) == environment


def test_any_console_will_do(gateway: Gateway, cli: Any, tmp_path: Path) -> None:
    """A prompt from stdin is UTF-8, and path=$(generate.py …) names the file, whatever it shows."""
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    words = ("--prompt-file", "-", "--output", "苹果 é.jpeg")
    outcome = cli(*words, stdin="一杯茶 🍵\r\n", env=env)
    assert (outcome.code, outcome.out) == (0, f"{tmp_path}/苹果 é.jpeg\n")
    assert prompt_in(gateway.calls[0]) == "一杯茶 🍵"


@pytest.mark.parametrize("end", ["<&- >&- 2>&-", "--json | true"])
def test_streams_that_are_gone_do_not_cost_the_picture(gateway: Gateway, end: str) -> None:
    """As under cron and with some agents, or when the reader leaves early."""
    script = f'"{sys.executable}" "{generate.__file__}" {" ".join(ASK[2:])} --prompt cup {end}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0
    assert not re.search("Traceback|BrokenPipe", done.stderr)
    assert Path("cup.jpeg").stat().st_size > 10_000


def test_quiet_leaves_the_path_and_warnings(watch: Any, run: Any) -> None:
    """`--quiet`: only warnings and errors on standard error, no live line either."""
    assert watch("", Reply(delay=0.2), "--quiet") == ([], [])
    outcome = run(*ASK, "--quiet", "--n", "2")
    assert outcome.out == f"{Path('cup.jpeg').absolute()}\n"
    assert (outcome.err.count("warning"), outcome.err.count("\n")) == (1, 1)


@table(
    "model, endpoint, n, cost",
    {
        "gemini": (GEMINI, "/chat/completions", 1, 1.00),
        "openai": (GPT, "/images/generations", 2, 0.70),
        "no usage": ("dall-e-3", "/images/generations", 1, 0.26),
    },
)
def test_json_of_a_success(
    gateway: Gateway, run: Any, tmp_path: Path, model: str, endpoint: str, n: int, cost: float
) -> None:
    """`--json`: exactly one object on stdout; the cost is that of all pictures."""
    words = ["--model", model, "--n", n, "--aspect-ratio", "1:1", "--output", "茶.webp"]
    outcome = run("--prompt", "a cup", *words, "--json")
    assert (outcome.code, outcome.out.count("\n"), outcome.out.isascii()) == (0, 1, True)
    facts = outcome.json
    paths = [str(tmp_path / name) for name in ("茶.webp", "茶-2.webp")[:n]]
    assert (facts["ok"], facts["path"], facts["paths"]) == (True, paths[0], paths)
    assert facts["endpoint"] == endpoint
    assert (facts["format"].upper(), facts["width"], facts["height"]) == ("WEBP", 1024, 1024)
    assert facts["bytes"] == Path(paths[0]).stat().st_size
    assert facts["total_tokens"] == facts["usage"].get("total_tokens")
    assert (facts["total_tokens"] is None) == (model == "dall-e-3")
    assert facts["estimated_cost_cny"] == pytest.approx(cost)
    assert (facts["base_url"], facts["attempts"], facts["warnings"]) == (gateway.url, 1, [])


@pytest.mark.parametrize("prompt", ["--json", "-m", "@file", "%s %d {0} $HOME `id`", "a=b", "'\""])
def test_a_prompt_is_taken_letter_for_letter(gateway: Gateway, run: Any, prompt: str) -> None:
    """--prompt=--json is a prompt."""
    outcome = run(f"--prompt={prompt}", *ASK[2:])
    assert (outcome.code, outcome.out) == (0, f"{Path('cup.jpeg').absolute()}\n")
    assert prompt_in(gateway.calls[0]) == prompt


def test_exit_code_130(gateway: Gateway, start: Any, tmp_path: Path) -> None:
    """Ctrl-C or SIGTERM; nothing half-written is left, maybe billed."""
    gateway.answer(Reply(hang="accept"))
    process = start(*ASK)
    gateway.wait_for(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, list(tmp_path.iterdir())) == (130, "", [])
    assert "[image-gen] error: " in err and "Traceback" not in err
    assert err.endswith("] may have been billed: up to 1.00 CNY\n")


def test_exit_code_130_while_the_prompt_is_read(start: Any) -> None:
    """Somebody who forgot to type it, and is impatient: nothing is under way."""
    process = start("--json", "--prompt-file", "-", stdin=subprocess.PIPE)
    os.write(process.stdin.fileno(), b"half a")
    while struct.unpack("i", fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)))[0]:
        time.sleep(0.01)  # until it has been read
    for signum in [signal.SIGINT, signal.SIGTERM] * 3:
        process.send_signal(signum)
    assert process.wait(30) == 130
    error = json.loads(process.stdout.read())["error"]
    assert (error["kind"], error["billed"]) == ("interrupted", "no")


@pytest.mark.parametrize(
    ("written", "prompt"),
    [("a\r\ncup\r\n", "a\r\ncup"), ("\ufeff一杯\n 茶\n", "一杯\n 茶"), (LONG + "\n", LONG)],
    ids=["CR LF", "byte order mark", "as long as may be"],
)
def test_prompt_from_a_file(gateway: Gateway, run: Any, written: str, prompt: str) -> None:
    """`--prompt-file PATH`: read the prompt from a UTF-8 file."""
    Path("p.txt").write_bytes(written.encode())
    assert run("--prompt-file", "p.txt").code == 0
    assert prompt_in(gateway.calls[0]) == prompt


@pytest.mark.parametrize("flag", ["--list-models", "--version", "--help"])
def test_what_needs_no_key(gateway: Gateway, run: Any, monkeypatch: Any, flag: str) -> None:
    """The catalogue, the version and this help are shown without asking anybody."""
    monkeypatch.delenv("OMNIMAAS_API_KEY")
    outcome = run(flag)
    assert (outcome.code, outcome.err, gateway.requests) == (0, "", [])


def test_check_shows_what_is_configured_and_asks_for_free(gateway: Gateway, run: Any) -> None:
    """`--check`: key source and first 8 characters, URL and its source, versions; GET /models."""
    gateway.answer_always(Reply(body={"data": [{"id": "a"}, {"id": "b"}]}), path="/models")
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in run("--check").out.splitlines())
    facts = run("--check", "--json").json
    assert facts["key"] == f"{gateway.key[:8]}…"
    assert (facts["key_source"], facts["url_source"]) == ("OMNIMAAS_API_KEY", "OMNIMAAS_BASE_URL")
    assert (facts["base_url"], facts["accepted"], facts["models"]) == (gateway.url, True, 2)
    assert facts["python"] == sys.version.split()[0]
    assert lines.pop("key accepted") == "yes"
    shown = {label.replace(" ", "_").lower(): text for label, text in lines.items()}
    assert shown.items() <= {name: str(fact) for name, fact in facts.items()}.items()
    unsaid = {name for name, fact in facts.items() if fact in (None, [], True)}
    assert set(facts) - set(shown) == unsaid  # no budget, no warnings, no image models
    assert {(got.method, got.path) for got in gateway.requests} == {("GET", "/v1/models")}
    assert gateway.requests[0].headers["Authorization"] == f"Bearer {gateway.key}"


@table(
    "answer, code, accepted",
    {
        "refused": (Reply(401), 4, "no"),
        "broken": (Reply(500), 6, "unknown"),
        "silent": (Reply(hang="accept"), 6, "unknown"),
        "refused with a 200": (Reply(body={"code": 401, "msg": "No."}), 4, "no"),
        "a web page: /v1 is missing": (Reply(body="<html>Shop"), 9, "unknown"),
    },
)
def test_check_fails_as_a_call_would(
    gateway: Gateway, run: Any, answer: Reply, code: int, accepted: str
) -> None:
    """What is in use is shown all the more, and that asking is free."""
    gateway.answer_always(answer, path="/models")
    outcome = run("--check", "--json", "--timeout", "0.5")
    error = outcome.json["error"]
    assert (outcome.code, outcome.json["ok"], error["billed"]) == (code, False, "no")
    assert "billed" not in error["message"] + error["hint"] and "--check" not in error["hint"]
    assert re.search(rf"key accepted +{accepted}\n", outcome.err)
    assert f"{gateway.key[:8]}…" in outcome.err and gateway.url in outcome.err
    assert gateway.calls == []


@table("module, package", {"requests": ("requests", "requests"), "PIL": ("PIL", "Pillow")})
def test_missing_package(
    gateway: Gateway, run: Any, monkeypatch: Any, module: str, package: str
) -> None:
    """'A missing package' is a configuration error, which names the installer; nothing is sent."""
    monkeypatch.setitem(sys.modules, module, None)
    for words in (ASK, (*ASK, "--dry-run"), ("--check",)):
        outcome = run(*words, "--json")
        error = outcome.json["error"]
        assert (outcome.code, error["kind"], gateway.requests) == (3, "config", [])
        assert f"The package {package} is not installed" in error["message"]
        assert re.search(r"bash .+/setup\.sh", error["hint"])


def test_control_characters_do_not_reach_a_terminal(gateway: Gateway, run: Any) -> None:
    """Wherever a gateway puts them: in a link or in a model's name."""
    gateway.answer_always(Reply(body=[{"id": "flux\x1b[31mred"}]), path="/models")
    gateway.answer(Reply(body={"data": [{"url": "http://127.0.0.1:1/\x1b]0;a\x07.png"}]}))
    for words in (["--check"], ["--prompt", "a cup", "--model", GPT]):
        outcome = run(*words)
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", outcome.out + outcome.err)
    assert "flux" in run("--check").out and "0;a" in outcome.err


def test_check_of_a_gateway_without_that_page_cannot_tell(gateway: Gateway, run: Any) -> None:
    """Ask `GET {base}/models` whether the key is accepted: a 404 says neither yes nor no."""
    gateway.answer_always(Reply(404), path="/models")
    outcome = run("--check", "--json")
    assert (outcome.code, outcome.json["accepted"]) == (0, None)
    assert "/v1" in outcome.json["warnings"][0]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("model", [GEMINI, GPT])
def test_a_dry_run_shows_the_request(gateway: Gateway, run: Any, model: str, count: int) -> None:
    """Validate everything, print the request as JSON, key masked, image bytes as `<…>`."""
    data, mask = pictures.picture(256, 256, fmt="JPEG"), pictures.picture(256, 256, mode="RGBA")
    Path("ref.jpg").write_bytes(data)
    Path("mask.png").write_bytes(mask)
    words = ["--prompt", "一杯茶", "--model", model, "--output", "new/cup.png"]
    words += ["--reference-image", "ref.jpg"] * count
    words += ["--mask", "mask.png", "--param", "quality=high"] * (model == GPT and count > 0)
    plain, wrapped = run(*words, "--dry-run"), run(*words, "--dry-run", "--json")
    shown = plain.json
    assert "一杯茶" in plain.out  # readable, as it was typed
    assert (wrapped.code, gateway.requests, Path("new").exists()) == (0, [], False)
    warnings = wrapped.json["warnings"]
    assert wrapped.json == {"ok": True, "warnings": warnings, **shown}
    assert ("several times as much" in str(warnings)) == (model == GPT and count > 0)
    assert ("with all attempts; nothing was sent" in wrapped.err) == (count > 0)
    assert shown["headers"] == {"Authorization": f"Bearer {gateway.key[:8]}…"}
    prices = [shown["estimated_cost_cny"], shown["possible_cost_cny"]]
    price = 1 if model == GEMINI else 0.35
    assert prices == pytest.approx([price, price * (3 if count else 1)])
    run(*words)
    (sent,) = gateway.requests
    assert (shown["method"], shown["url"]) == ("POST", gateway.origin + sent.target)
    told = f"<image/jpeg, {len(data)} bytes>"
    if "files" not in shown:
        text = sent.body.decode().replace(data_url(data, "image/jpeg"), told)
        assert (shown["json"], text.count(told)) == (json.loads(text), count)
        return
    assert shown["fields"] == sent.fields
    files = [(part["name"], part["filename"]) for part in shown["files"]]
    assert files == [(part.name, part.filename) for part in sent.files]
    contents = [told, told, f"<image/png, {len(mask)} bytes>"]
    assert [part["content"] for part in shown["files"]] == contents


def shown(terminal: int, pattern: str) -> str:
    """What a terminal shows until it matches or is over."""
    text = ""
    with contextlib.suppress(OSError):  # the other side is closed
        while not re.search(pattern, text) and select.select([terminal], [], [], 15)[0]:
            text += os.read(terminal, 65_536).decode()
    return text


@pytest.fixture
def watch(gateway: Gateway, run: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """watch(pattern, reply): a run on a terminal, answered when that is shown; (live, left)."""

    def watch(pattern: str, reply: Reply, *words: str, columns: int = 100) -> Any:
        terminal, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        texts = []
        gateway.answer(lambda _: texts.append(shown(terminal, pattern)) or reply)
        with open(side, "w") as stderr, monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            run(*ASK, *words)
        lines = ("".join(texts) + shown(terminal, "(?!)")).split("\r\n")
        os.close(terminal)
        live = [piece for line in lines for piece in line.split("\r\x1b[K")[:-1] if piece]
        return live, [line.split("\r\x1b[K")[-1] for line in lines[:-1]]

    return watch


@table("reply, end", {"saved": (Reply(), "saved"), "refused": (Reply(401), "error: ")})
def test_a_live_line_shows_that_it_works(watch: Any, reply: Reply, end: str) -> None:
    """On a terminal, stderr shows a live elapsed-seconds line while the gateway works."""
    live, left = watch(r"(?s) (\d+) s wait.* (?!\1 )\d+ s wait", reply)
    seconds = [int(re.findall(r" (\d+) s wait", line)[0]) for line in live]
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1] < 60
    assert all(GEMINI in line and "typically 50-70 s" in line for line in live)
    assert all(line.startswith("[image-gen] ") and "typically" not in line for line in left)
    assert [line for line in left if end in line]


@pytest.mark.parametrize(("columns", "end"), [(40, "waiting for gemin"), (80, "typically 50-70 s")])
def test_a_live_line_never_fills_the_terminal(watch: Any, columns: int, end: str) -> None:
    """In the last column it would make some terminals begin another line, and ^C needs two more."""
    live, left = watch(r" \d+ s wait", Reply(), columns=columns)
    assert all(line.endswith(end) and len(line) <= columns - 3 for line in live)
    assert max(map(len, left)) > 40, "what stays is whole"
