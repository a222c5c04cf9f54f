"""The ledger: one whole JSON line for each call, so that a caller can add up what was spent.

The fears: two processes that write into each other's lines, spending that no line tells of, a key in a file that is
kept, and a picture lost because a log could not be written.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import generate
import pictures
import pytest
from conftest import SCRIPTS, Run, table
from gateway import Gateway, Reply

PICTURE = pictures.picture(120, 90, fmt="JPEG", noise=True)
VARIABLE = "PRODUCT_SHOTS_IMAGEGEN_LEDGER"
ENCODED = base64.b64encode(PICTURE).decode()
CHAT = Reply(body={"choices": [{"message": {"content": f"![image](data:image/jpeg;base64,{ENCODED})"}}]})


def images(count: int) -> Reply:
    return Reply(body={"data": [{"b64_json": ENCODED}] * count})


@pytest.fixture
def ledger(tmp_path_factory: pytest.TempPathFactory, short_waits: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path_factory.mktemp("books") / "ledger.jsonl"
    monkeypatch.setenv(VARIABLE, str(path))
    return path


def entries(ledger: Path) -> list[dict[str, Any]]:
    """The lines, each of which must be one JSON object and end in a line feed."""
    if not ledger.exists():
        return []
    text = ledger.read_bytes()
    assert text.endswith(b"\n")
    lines = [json.loads(line) for line in text.splitlines()]
    assert all(isinstance(line, dict) for line in lines)
    return lines


# --- Many writers ---

# 50 processes for the start-up cost of one: everything is loaded, then the process multiplies.
FLOCK = """
import os, sys
sys.path.insert(0, sys.argv[1])
import generate, requests
from PIL import Image, JpegImagePlugin, PngImagePlugin
Image.init()
ready, go = os.pipe()
children = []
for number in range(50):
    child = os.fork()
    if not child:
        os.close(go)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.read(ready, 1)
        codes = [99]
        try:
            for turn in range(3):
                words = ["--quiet", "--model", sys.argv[2], "--family", "gemini", "--prompt", "x"]
                codes.append(generate.main([*words, "--output", f"{number}-{turn}-" + "x" * 180 + ".jpeg"]))
        finally:
            os._exit(sum(codes[1:]) if len(codes) == 4 else 99)
    children.append(child)
os.close(go)
for child in children:
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the flock of processes is made by fork")
def test_fifty_processes_write_at_once(gateway: Gateway, ledger: Path, tmp_path: Path) -> None:
    """150 calls of 50 processes, every third of them failed: 150 whole lines, none torn, none lost.

    The lines are long (a model name of 6,000 letters), so that a write in pieces would show.
    """
    turns = iter(range(10_000))
    gateway.answer_always(lambda received: Reply(401) if next(turns) % 3 == 0 else CHAT)
    model = "some/" + "m" * 6000
    command = [sys.executable, "-c", FLOCK, str(SCRIPTS), model]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    codes = [int(line) for line in done.stdout.split() if line.isdigit()]
    told = re.sub("m{99,}", "m…", done.stderr)
    assert (len(gateway.calls), len(codes), sum(codes)) == (150, 50, 50 * 4), told  # 50 refusals with exit code 4
    lines = entries(ledger)
    assert len(lines) == 150 and {line["model"] for line in lines} == {model}
    assert sum(not line["ok"] for line in lines) == 50
    paths = [path for line in lines for path in line["paths"]]
    assert sorted(paths) == sorted(str(path) for path in tmp_path.iterdir())


def test_threads_write_at_once(gateway: Gateway, ledger: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    gateway.answer_always(CHAT)
    with ThreadPoolExecutor(16) as pool:
        paths = list(pool.map(lambda number: generate.generate_image(f"run {number}"), range(64)))
    assert sorted(path for line in entries(ledger) for path in line["paths"]) == sorted(map(str, paths))


# --- What a line says ---


def test_line_of_a_success(run: Run, gateway: Gateway, ledger: Path) -> None:
    gateway.answer(CHAT)
    outcome = run("--json", "--prompt", "x", "--output", "x.jpeg")
    (line,) = entries(ledger)
    assert (line["ok"], line["kind"], line["billed"]) == (True, None, "yes")
    assert line["model"] == "gemini-3-pro-image-preview" and line["base_url"] == gateway.url
    assert line["paths"] == outcome.json["paths"]
    assert line["estimated_cost_cny"] == outcome.json["estimated_cost_cny"] == 1.0
    assert line["elapsed_s"] >= 0 and line["time"].startswith("20")


def refusal(code: str) -> dict[str, Any]:
    return {"error": {"message": "No.", "type": "error", "param": None, "code": code}}


FAILURES = {  # (what the gateway does, kind, billed)
    "auth": (Reply(401), "auth", "no"),
    "quota": (Reply(429), "quota", "no"),
    "no-credit": (Reply(402), "quota", "no"),
    "moderation": (Reply(400, body=refusal("moderation_blocked")), "refused", "no"),
    "rejected": (Reply(400), "rejected", "no"),
    "500": (Reply(500), "unavailable", "maybe"),
    "524": (Reply(524), "unavailable", "maybe"),
    "reset": (Reply(drop="before"), "unavailable", "maybe"),
    "timeout": (Reply(hang="accept"), "unavailable", "maybe"),
    "no-picture": (Reply(body={"choices": []}), "response", "yes"),
    "tiny-picture": (
        Reply(body={"data": [{"b64_json": base64.b64encode(pictures.picture(8, 8)).decode()}]}),
        "response",
        "yes",
    ),
}


@table("reply, kind, billed", FAILURES)
def test_failed_calls_are_told_too(
    run: Run, gateway: Gateway, ledger: Path, reply: Reply, kind: str, billed: str
) -> None:
    """Some failures cost money; a line tells which, and what cost nothing adds nothing to the sum."""
    gateway.answer(reply)
    outcome = run("--json", "--prompt", "x", "--timeout", 0.5, "--output", "x.png")
    (line,) = entries(ledger)
    assert (line["ok"], line["kind"], line["billed"]) == (False, kind, billed)
    assert outcome.json["error"]["billed"] == billed
    assert line["estimated_cost_cny"] == (0 if billed == "no" else 1.0)


def test_failure_to_save_is_told(run: Run, gateway: Gateway, ledger: Path, tmp_path: Path) -> None:
    """Paid, and not where it was asked for."""
    taken = tmp_path / "out" / "x.jpeg"

    def busy(received: Any) -> Reply:
        taken.mkdir(parents=True)
        (taken / "file").touch()
        return CHAT

    gateway.answer(busy)
    outcome = run("--prompt", "x", "--output", taken)
    (line,) = entries(ledger)
    assert outcome.code == 8
    assert (line["ok"], line["kind"], line["billed"], line["estimated_cost_cny"]) == (False, "save", "yes", 1.0)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_interrupted_call_is_told(gateway: Gateway, ledger: Path, start: Any, signum: int) -> None:
    """Ctrl-C does not undo what the gateway has begun and may bill."""
    gateway.answer(Reply(hang="accept"))
    process = start("--prompt", "x", "--output", "x.png")
    gateway.wait_for(1)
    process.send_signal(signum)
    process.communicate(timeout=30)
    assert process.returncode == 130
    (line,) = entries(ledger)
    assert (line["ok"], line["kind"], line["billed"], line["estimated_cost_cny"]) == (
        False,
        "interrupted",
        "maybe",
        1.0,
    )


def test_retried_call_is_one_line(run: Run, gateway: Gateway, ledger: Path, tmp_path: Path) -> None:
    reference = tmp_path / "reference.png"
    reference.write_bytes(pictures.picture(40, 30))
    gateway.answer(Reply(503), Reply(429), CHAT)
    assert run("--prompt", "x", "--reference-image", reference, "--output", "x.jpeg").code == 0
    assert [line["ok"] for line in entries(ledger)] == [True]


@table(
    "words, reply, cost",
    {
        "one": (("--model", "gpt-image-2"), images(1), 0.35),
        "four": (("--model", "gpt-image-2", "--n", "4"), images(4), 1.4),
        "four-of-which-one-came": (("--model", "gpt-image-2", "--n", "4"), images(1), 0.35),
        "flash": (("--model", "gemini-3.1-flash-image-preview"), CHAT, 0.2),
        "unknown-price": (("--model", "acme/paint-1", "--family", "gemini"), CHAT, None),
    },
)
def test_costs_add_up(run: Run, gateway: Gateway, ledger: Path, words: Any, reply: Reply, cost: Any) -> None:
    """Each line has the price of what was made, null (never 0) when nobody knows it."""
    gateway.answer(reply)
    outcome = run("--json", "--prompt", "x", "--output", "x.jpeg", *words)
    (line,) = entries(ledger)
    assert outcome.code == 0 and len(line["paths"]) == len(outcome.json["paths"])
    assert line["estimated_cost_cny"] == outcome.json["estimated_cost_cny"] == cost


@table(
    "call, reply",
    {
        "generate_image": (lambda: generate.generate_image("x"), CHAT),
        "generate_gemini": (lambda: generate.generate_gemini("x"), CHAT),
        "generate_openai": (lambda: generate.generate_openai("x", "gpt-image-2"), images(1)),
    },
)
def test_library_keeps_the_books_too(gateway: Gateway, ledger: Path, call: Any, reply: Reply) -> None:
    gateway.answer(reply, Reply(401))
    call()
    with pytest.raises(generate.AuthError):
        call()
    assert [(line["ok"], line["billed"]) for line in entries(ledger)] == [(True, "yes"), (False, "no")]


# --- When there is no line ---

NOTHING_SENT = {
    "blank-prompt": (("--prompt", " "), 2),
    "bad-ratio": (("--prompt", "x", "--aspect-ratio", "5:7"), 2),
    "no-such-flag": (("--prompt", "x", "--colour"), 2),
    "missing-reference": (("--prompt", "x", "--reference-image", "nowhere.png"), 2),
    "unknown-extension": (("--prompt", "x", "--output", "x.docx"), 2),
    "dry-run": (("--prompt", "x", "--dry-run"), 0),
    "check": (("--check",), 0),
    "list-models": (("--list-models",), 0),
    "help": (("--help",), 0),
    "version": (("--version",), 0),
}


@table("words, code", NOTHING_SENT)
def test_no_line_when_nothing_was_sent(run: Run, gateway: Gateway, ledger: Path, words: Any, code: int) -> None:
    assert run(*words).code == code
    assert not gateway.calls and not ledger.exists()


def test_no_line_without_a_key(run: Run, ledger: Path) -> None:
    assert run("--prompt", "x").code == 3
    assert not ledger.exists()


@pytest.mark.parametrize("value", ["", "  ", "\t"])
def test_blank_variable_is_no_ledger(
    run: Run, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    gateway.answer(CHAT)
    assert run("--prompt", "x", "--output", "x.jpeg").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.jpeg"]


# --- Where it lies ---


def test_lines_are_added_to_what_is_there(run: Run, gateway: Gateway, ledger: Path) -> None:
    ledger.write_text('{"earlier": true}\n')
    gateway.answer_always(CHAT)
    for number in range(3):
        assert run("--prompt", "x", "--output", f"{number}.jpeg").code == 0
    assert entries(ledger)[0] == {"earlier": True} and len(entries(ledger)) == 4


def test_new_ledger_is_private(run: Run, gateway: Gateway, ledger: Path) -> None:
    gateway.answer(CHAT)
    run("--prompt", "x", "--output", "x.jpeg")
    assert stat.S_IMODE(ledger.stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("value", ["books.jsonl", "~/books.jsonl", "books with blanks é 账.jsonl"])
def test_ledger_s_name_is_a_path_like_any(
    run: Run, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv(VARIABLE, value)
    gateway.answer(CHAT)
    assert run("--prompt", "x", "--output", "x.jpeg").code == 0
    assert len(entries(Path(os.path.expanduser(value)))) == 1


def test_ledger_that_is_a_link_is_written_through(run: Run, gateway: Gateway, ledger: Path) -> None:
    target = ledger.with_name("target.jsonl")
    ledger.symlink_to(target)
    gateway.answer(CHAT)
    assert run("--prompt", "x", "--output", "x.jpeg").code == 0
    assert ledger.is_symlink() and len(entries(target)) == 1


# --- When it cannot be written ---


def a_folder(path: Path) -> None:
    path.mkdir()


def no_parent(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("a file")


def a_loop(path: Path) -> None:
    path.symlink_to(path)


def a_full_disk(path: Path) -> None:
    path.symlink_to("/dev/full")


def a_pipe_without_a_reader(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(path))


UNWRITABLE = {
    "folder": (a_folder,),
    "parent-is-a-file": (no_parent,),
    "loop": (a_loop,),
    "full-disk": (a_full_disk,),
    "pipe-without-a-reader": (a_pipe_without_a_reader,),
    "socket": (a_socket,),
}


@table("spoil", UNWRITABLE)
def test_ledger_that_cannot_be_written(
    gateway: Gateway, ledger: Path, cli: Any, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    """The picture is what counts: a ledger that fails is a warning, and never holds the program up."""
    spoil(ledger)
    gateway.answer(CHAT)
    outcome = cli("--json", "--prompt", "x", "--output", "x.jpeg", timeout=15)
    assert outcome.code == 0 and (tmp_path / "x.jpeg").read_bytes() == PICTURE
    assert any("ledger" in warning for warning in outcome.json["warnings"])
    assert "warning" in outcome.err and "Traceback" not in outcome.err


def test_ledger_that_cannot_be_written_hides_no_error(run: Run, gateway: Gateway, ledger: Path) -> None:
    ledger.mkdir()
    gateway.answer(Reply(401))
    outcome = run("--json", "--prompt", "x", "--output", "x.jpeg")
    assert (outcome.code, outcome.json["error"]["kind"]) == (4, "auth")
    assert any("ledger" in warning for warning in outcome.json["warnings"])


# --- The key ---


@table(
    "reply",
    {
        "success": (CHAT,),
        "echo-in-usage": (lambda received: Reply(body={**CHAT.body, "usage": {"key": bearer(received)}}),),
        "echo-in-an-error": (lambda received: Reply(400, body=refusal(f"bad_{bearer(received)}")),),
        "echo-in-a-link": (lambda received: linked(f"/media/x.jpg?key={bearer(received)}"),),
        "echo-in-a-redirect": (lambda received: Reply(302, {"Location": f"/x?key={bearer(received)}"}),),
    },
)
def test_key_is_never_in_the_ledger(run: Run, gateway: Gateway, ledger: Path, reply: Any) -> None:
    gateway.answer(reply)
    run("--prompt", "x", "--timeout", 1, "--output", "x.jpeg")
    text = ledger.read_text()
    assert len(entries(ledger)) == 1
    assert gateway.key not in text and gateway.key[-12:] not in text


def test_key_as_a_model_s_name_is_blotted_out(run: Run, gateway: Gateway, ledger: Path) -> None:
    """Pasted into the wrong place by mistake."""
    gateway.answer(CHAT)
    run("--prompt", "x", "--output", "x.jpeg", "--model", gateway.key, "--family", "gemini")
    assert entries(ledger) and gateway.key[-12:] not in ledger.read_text()


def bearer(received: Any) -> str:
    return str(received.headers["Authorization"].partition(" ")[2])


def linked(url: str) -> Reply:
    return Reply(body={"choices": [{"message": {"content": f"![image]({url})"}}]})
