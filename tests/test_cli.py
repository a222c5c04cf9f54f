"""The command line: streams, exit codes, JSON, and the flags that send nothing."""

from __future__ import annotations

import base64
import errno
import fcntl
import json
import os
import platform
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any, Callable

import generate
import pictures
import PIL
import pytest
import requests
from gateway import CHAT_MODELS, IMAGE_MODELS, Gateway, Reply
from PIL import Image

GEMINI, GPT = "gemini-3-pro-image-preview", "gpt-image-2"
SUCCESS = {
    *("ok", "path", "paths", "model", "family", "endpoint", "format", "width", "height", "bytes", "elapsed_s"),
    *("attempts", "usage", "total_tokens", "estimated_cost_cny", "base_url", "key_source", "url_source", "warnings"),
}
FAILURE = {"kind", "message", "hint", "status", "retryable", "billed"}
FLAGS = [
    *("--prompt", "--prompt-file", "--model", "--family", "--aspect-ratio", "--size", "--negative-prompt", "--n"),
    *("--reference-image", "--mask", "--param", "--output", "--timeout", "--attempts", "--proxy", "--json"),
    *("--dry-run", "--check", "--list-models", "--quiet", "--version", "--help"),
]


def chat_answer(data: bytes) -> dict[str, Any]:
    content = f"![image](data:image/png;base64,{base64.b64encode(data).decode()})"
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}


def error_body(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


# --- Standard output ---


@pytest.mark.parametrize("model", [GEMINI, GPT])
@pytest.mark.parametrize("count", [0, 2])
def test_standard_output_is_the_absolute_path_and_nothing_else(
    gateway: Gateway, run: Any, tmp_path: Path, model: str, count: int
) -> None:
    """A caller writes path=$(generate.py …)."""
    (tmp_path / "ref.png").write_bytes(pictures.picture())
    outcome = run(
        "--prompt", "a cup", "--model", model, "--output", "new/cup.png", *["--reference-image", "ref.png"] * count
    )
    assert (outcome.code, outcome.out) == (0, f"{tmp_path}/new/cup.png\n")
    assert all(line.startswith("[image-gen] ") for line in outcome.err.splitlines())
    assert Image.open(outcome.out.strip()).format == "PNG"


def test_several_images_are_several_lines(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    outcome = run("--prompt", "a cup", "--model", GPT, "--n", "3", "--output", "cup.png")
    assert outcome.out == f"{tmp_path}/cup.png\n{tmp_path}/cup-2.png\n{tmp_path}/cup-3.png\n"
    assert len({Path(line).read_bytes() for line in outcome.out.split()}) == 3


def test_a_path_on_standard_output_is_in_the_file_system_s_own_bytes(
    gateway: Gateway, start: Callable[..., Any], tmp_path: Path
) -> None:
    """path=$(generate.py …) must name the file, whatever the console can show."""
    env = {"PYTHONIOENCODING": "ascii"}
    process = start("--prompt", "a cup", "--output", "苹果 é.jpeg", env=env)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert out == f"{tmp_path}/苹果 é.jpeg\n"
    assert (tmp_path / "苹果 é.jpeg").exists()


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["path", "json"])
def test_a_reader_that_leaves_early_is_no_traceback(
    gateway: Gateway, cli: Any, tmp_path: Path, flags: list[str]
) -> None:
    """generate.py … | true"""
    generator = Path(generate.__file__)
    script = f'"{sys.executable}" "{generator}" --prompt cup --output cup.png {" ".join(flags)} | true'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (tmp_path / "cup.png").exists()


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"], ids=["stdin", "stdout", "stderr", "all"])
def test_closed_streams_do_not_cost_the_picture(gateway: Gateway, tmp_path: Path, closed: str) -> None:
    """As under cron, and some agents."""
    script = f'"{sys.executable}" "{generate.__file__}" --prompt cup --output cup.png {closed}'
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert (tmp_path / "cup.png").stat().st_size > 10_000


def test_quiet_says_nothing_but_the_path(gateway: Gateway, cli: Any, tmp_path: Path) -> None:
    outcome = cli("--prompt", "a cup", "--quiet", "--output", "cup.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"{tmp_path}/cup.png\n", "")


def test_quiet_keeps_warnings_and_errors(gateway: Gateway, run: Any) -> None:
    outcome = run("--prompt", "a cup", "--quiet", "--n", "2")
    assert (outcome.code, outcome.err.count("warning")) == (0, outcome.err.count("\n"))
    assert outcome.err
    assert "5:7" in run("--prompt", "a cup", "--quiet", "--aspect-ratio", "5:7").err


# --- JSON ---


@pytest.mark.parametrize("model", [GEMINI, GPT, "dall-e-3"])
def test_json_of_a_success_has_exactly_the_documented_keys(
    gateway: Gateway, run: Any, tmp_path: Path, model: str
) -> None:
    outcome = run("--prompt", "a cup", "--model", model, "--json", "--output", "cup.webp", "--aspect-ratio", "1:1")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 1
    facts = outcome.json
    assert set(facts) == SUCCESS
    path = tmp_path / "cup.webp"
    assert (facts["ok"], facts["path"], facts["paths"]) == (True, str(path), [str(path)])
    family = "gemini" if model in CHAT_MODELS else "openai"
    endpoint = "/chat/completions" if family == "gemini" else "/images/generations"
    assert (facts["model"], facts["family"]) == (model, family)
    assert facts["endpoint"] in (endpoint, gateway.url + endpoint)
    assert (facts["format"].upper(), facts["width"], facts["height"]) == ("WEBP", 1024, 1024)
    assert facts["bytes"] == path.stat().st_size
    assert 0 < facts["elapsed_s"] < 30
    assert facts["attempts"] == 1
    assert facts["total_tokens"] == facts["usage"].get("total_tokens")
    assert (model == "dall-e-3") == (facts["total_tokens"] is None)
    assert facts["estimated_cost_cny"] == {GEMINI: 1.00, GPT: 0.35, "dall-e-3": 0.26}[model]
    assert (facts["base_url"], facts["key_source"]) == (gateway.url, "OMNIMAAS_API_KEY")
    assert facts["url_source"] == "OMNIMAAS_BASE_URL"
    assert facts["warnings"] == []


def test_json_of_several_images_adds_up(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    facts = run("--prompt", "a cup", "--model", GPT, "--n", "3", "--json", "--output", "cup.png").json
    assert facts["paths"] == [str(tmp_path / name) for name in ("cup.png", "cup-2.png", "cup-3.png")]
    assert facts["path"] == facts["paths"][0]
    assert facts["estimated_cost_cny"] == pytest.approx(3 * 0.35)


def test_a_price_that_nobody_knows_is_null(gateway: Gateway, run: Any) -> None:
    """Null and never 0: a budget must not take it for free."""
    gateway.answer(Reply(body=chat_answer(pictures.picture(320, 320, noise=True))))
    facts = run("--prompt", "a cup", "--model", "gemini-9-image", "--json").json
    assert facts["estimated_cost_cny"] is None
    assert (facts["usage"], facts["total_tokens"]) == ({}, None)
    assert any("catalogue" in text for text in facts["warnings"])


def test_json_counts_attempts_and_carries_warnings(
    gateway: Gateway, run: Any, tmp_path: Path, short_waits: None
) -> None:
    (tmp_path / "ref.png").write_bytes(pictures.picture())
    gateway.answer(Reply(500), Reply(503))
    outcome = run("--prompt", "a cup", "--reference-image", "ref.png", "--json")
    assert (outcome.code, outcome.json["attempts"]) == (0, 3)
    assert len(outcome.json["warnings"]) == 2
    assert [line for line in outcome.err.splitlines() if "500" in line and "billed" in line]


FAILURES = {  # name: argv, answers, exit code, kind, billed, retryable, status
    "usage": (["--aspect-ratio", "5:7"], [], 2, "usage", "no", False, None),
    "usage, unknown flag": (["--colour", "red"], [], 2, "usage", "no", False, None),
    "usage, missing value": (["--output"], [], 2, "usage", "no", False, None),
    "usage, n": (["--n", "two"], [], 2, "usage", "no", False, None),
    "usage, reference": (["--reference-image", "none.png"], [], 2, "usage", "no", False, None),
    "auth 401": ([], [Reply(401, body=error_body("No.", "invalid_api_key"))], 4, "auth", "no", False, 401),
    "auth 403": ([], [Reply(403, body=error_body("No."))], 4, "auth", "no", False, 403),
    "quota 429": ([], [Reply(429, body=error_body("Slow down."))], 5, "quota", "no", True, 429),
    "quota 402": ([], [Reply(402, body=error_body("Pay."))], 5, "quota", "no", False, 402),
    "quota 403": ([], [Reply(403, body=error_body("No.", "insufficient_user_quota"))], 5, "quota", "no", False, 403),
    "unavailable 500": ([], [Reply(500)], 6, "unavailable", "maybe", True, 500),
    "unavailable 524": ([], [Reply(524, body="<html>A timeout occurred")], 6, "unavailable", "maybe", True, 524),
    "unavailable, reset": ([], [Reply(drop="before")], 6, "unavailable", "maybe", True, None),
    "refused": ([], [Reply(400, body=error_body("No.", "moderation_blocked"))], 7, "refused", "no", False, 400),
    "rejected": ([], [Reply(404, body=error_body("No.", "model_not_found"))], 7, "rejected", "no", False, 404),
    "response": ([], [Reply(body={"choices": []})], 7, "response", "yes", False, 200),
}


@pytest.mark.parametrize(
    ("argv", "answers", "code", "kind", "billed", "retryable", "status"), FAILURES.values(), ids=FAILURES
)
def test_json_of_a_failure_is_one_object_too(
    gateway: Gateway,
    run: Any,
    argv: list[str],
    answers: list[Reply],
    code: int,
    kind: str,
    billed: str,
    retryable: bool,
    status: int | None,
) -> None:
    gateway.answer(*answers)
    outcome = run("--json", "--prompt", "a cup", *argv)
    assert outcome.code == code
    assert len(outcome.out.splitlines()) == 1
    facts, error = outcome.json, outcome.json["error"]
    assert facts["ok"] is False
    assert set(error) == FAILURE
    assert (error["kind"], error["billed"], error["retryable"], error["status"]) == (kind, billed, retryable, status)
    assert error["message"]
    assert error["hint"]
    assert error["message"].rstrip(".") in outcome.err.replace("\n[image-gen] ", " ")
    assert len(gateway.calls) == len(answers)


@pytest.mark.parametrize("argv", [["--json"], ["--json", "--json"], ["--json", "--n"], ["--bad", "--json"]])
def test_json_of_a_command_line_that_cannot_be_read(gateway: Gateway, cli: Any, argv: list[str]) -> None:
    outcome = cli(*argv)
    assert (outcome.code, outcome.json["ok"], outcome.json["error"]["kind"]) == (2, False, "usage")
    assert gateway.requests == []


def test_json_with_a_prompt_that_looks_like_the_flag(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    """--prompt=--json is a prompt."""
    outcome = run("--prompt=--json", "--output", "cup.jpeg")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path}/cup.jpeg\n")
    assert gateway.calls[0].json["messages"][0]["content"][0]["text"] == "--json"


def test_json_is_ascii_and_whole_on_any_console(gateway: Gateway, cli: Any, tmp_path: Path) -> None:
    env = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    outcome = cli("--prompt", "a cup", "--json", "--output", "茶.jpeg", env=env)
    assert outcome.code == 0
    assert outcome.out.isascii()
    assert outcome.json["path"] == str(tmp_path / "茶.jpeg")


def test_json_of_an_error_with_a_link_names_it(gateway: Gateway, run: Any) -> None:
    """A picture that is paid for and could not be fetched can still be had."""
    url = f"{gateway.origin}/media/gone.png"
    gateway.answer(Reply(body={"data": [{"url": url, "b64_json": ""}]}))
    gateway.answer_always(Reply(404), path="/media/")
    outcome = run("--prompt", "a cup", "--model", GPT, "--json", "--timeout", "2")
    assert outcome.code == 7
    assert set(outcome.json["error"]) == FAILURE | {"image_url"}
    assert outcome.json["error"]["image_url"] == url
    assert outcome.json["error"]["billed"] == "yes"
    assert url in outcome.err


# --- Exit codes, each at least once without --json ---


@pytest.mark.parametrize(
    ("argv", "answers", "code"),
    [
        pytest.param([], [], 0, id="0 saved"),
        pytest.param(["--n", "0"], [], 2, id="2 usage"),
        pytest.param([], [Reply(401)], 4, id="4 auth"),
        pytest.param([], [Reply(429)], 5, id="5 quota"),
        pytest.param([], [Reply(502)], 6, id="6 unavailable"),
        pytest.param([], [Reply(400, body=error_body("No.", "content_policy_violation"))], 7, id="7 refused"),
        pytest.param([], [Reply(422, body={"detail": "No."})], 7, id="7 rejected"),
        pytest.param([], [Reply(body=chat_answer(pictures.picture(64, 64)))], 7, id="7 response, too small"),
    ],
)
def test_exit_codes_of_the_process(
    gateway: Gateway, cli: Any, argv: list[str], answers: list[Reply], code: int
) -> None:
    gateway.answer(*answers)
    outcome = cli("--prompt", "a cup", *argv)
    assert outcome.code == code
    assert bool(outcome.out) == (code == 0)
    assert "Traceback" not in outcome.err


def test_exit_code_3(gateway: Gateway, cli: Any) -> None:
    outcome = cli("--prompt", "a cup", env={"OMNIMAAS_BASE_URL": "gateway.example/v1"})
    assert (outcome.code, outcome.out) == (3, "")


def test_exit_code_6_when_nobody_listens_costs_nothing(cli: Any) -> None:
    with Gateway() as gone:
        url = gone.url
    outcome = cli("--prompt", "a cup", "--json", env={"OMNIMAAS_API_KEY": "sk-12345678", "OMNIMAAS_BASE_URL": url})
    assert (outcome.code, outcome.json["error"]["billed"]) == (6, "no")
    assert "refused" in outcome.json["error"]["message"]


def test_exit_code_8_keeps_the_picture_elsewhere(gateway: Gateway, cli: Any, tmp_path: Path) -> None:
    """The folder is taken away while the gateway works: the picture is paid for, so it must be somewhere."""
    picture = pictures.picture(320, 320, noise=True)

    def sabotage(_: Any) -> Reply:
        shutil.rmtree(tmp_path / "out")
        (tmp_path / "out").write_text("a file where the folder was")
        return Reply(body=chat_answer(picture))

    (tmp_path / "kept").mkdir()
    gateway.answer(sabotage, sabotage)
    for flags in ([], ["--json"]):
        (tmp_path / "out").unlink(missing_ok=True)
        (tmp_path / "out").mkdir()
        outcome = cli("--prompt", "a cup", "--output", "out/cup.png", *flags, env={"TMPDIR": str(tmp_path / "kept")})
        assert outcome.code == 8
        assert "Traceback" not in outcome.err
        (kept,) = (tmp_path / "kept").iterdir()
        assert kept.read_bytes() == picture
        assert str(kept) in outcome.err
        if flags:
            assert set(outcome.json["error"]) == FAILURE | {"saved_at"}
            assert outcome.json["error"]["saved_at"] == str(kept)
            assert (outcome.json["error"]["kind"], outcome.json["error"]["billed"]) == ("save", "yes")
        else:
            assert outcome.out == ""
        kept.unlink()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["path", "json"])
def test_exit_code_130(
    gateway: Gateway, start: Callable[..., Any], tmp_path: Path, flags: list[str], signum: int
) -> None:
    gateway.answer(Reply(hang="accept"))
    process = start("--prompt", "a cup", *flags, "--output", "cup.jpeg")
    gateway.wait_for(1)
    process.send_signal(signum)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
    if flags:
        error = json.loads(out)["error"]
        assert (error["kind"], error["billed"]) == ("interrupted", "maybe")
    else:
        assert out == ""
        assert "[image-gen]" in err


@pytest.mark.parametrize("signums", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGINT, signal.SIGTERM] * 3])
def test_exit_code_130_while_the_prompt_is_read(start: Callable[..., Any], signums: list[int]) -> None:
    """Somebody who forgot to type it, and is impatient: the end comes at once, as nothing is under way."""
    process = start("--json", "--prompt-file", "-", stdin=subprocess.PIPE)
    process.stdin.write("half a")
    process.stdin.flush()
    while struct.unpack("i", fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4)))[0]:
        time.sleep(0.01)  # until it has been read
    for signum in signums:
        process.send_signal(signum)
    assert process.wait(5) == 130
    error = json.loads(process.stdout.read())["error"]
    assert (error["kind"], error["billed"]) == ("interrupted", "no")
    assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["path", "json"])
def test_exit_code_1_shows_the_traceback_without_the_key(
    gateway: Gateway, run: Any, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    """A bug of our own is told as such, and even then the key stays unseen."""

    def broken(*_: Any, **__: Any) -> str:
        raise RuntimeError(f"a bug with Bearer {gateway.key} in it")

    monkeypatch.setattr(generate, "compose_prompt", broken)
    outcome = run("--prompt", "a cup", *flags)
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "RuntimeError" in outcome.err
    assert gateway.key not in outcome.out + outcome.err
    assert gateway.key[-12:] not in outcome.out + outcome.err
    if flags:
        assert (outcome.json["error"]["kind"], outcome.json["error"]["billed"]) == ("internal", "maybe")
    else:
        assert outcome.out == ""


# --- Prompts from elsewhere ---


@pytest.mark.parametrize(
    ("written", "prompt"),
    [
        pytest.param("a cup\n", "a cup", id="one line"),
        pytest.param("a cup\r\n", "a cup", id="one line of Windows"),
        pytest.param("\ufeffa cup", "a cup", id="byte order mark"),
        pytest.param("一杯茶 🍵", "一杯茶 🍵", id="Chinese"),
        pytest.param("first\nsecond\n", "first\nsecond", id="two lines"),
        pytest.param("x" * 4000 + "\n", "x" * 4000, id="as long as may be"),
    ],
)
@pytest.mark.parametrize("place", ["file", "standard input"])
def test_prompt_from_a_file_or_standard_input(
    gateway: Gateway, cli: Any, tmp_path: Path, place: str, written: str, prompt: str
) -> None:
    """Long prompts with quotes in them are no fun in a shell; a console's encoding must not matter."""
    env = {"PYTHONIOENCODING": "gbk", "PYTHONUTF8": "0"}
    if place == "file":
        (tmp_path / "p.txt").write_bytes(written.encode())
        outcome = cli("--prompt-file", "p.txt", env=env)
    else:
        outcome = cli("--prompt-file", "-", stdin=written, env=env)
    assert outcome.code == 0
    assert gateway.calls[0].json["messages"][0]["content"][0]["text"].rstrip("\r\n") == prompt


def test_blank_standard_input_is_a_usage_error(gateway: Gateway, cli: Any) -> None:
    for given in (b"", b" \n"):
        assert cli("--prompt-file", "-", stdin=given).code == 2
    assert cli("--prompt-file", "-", stdin=b"\xff\xfe").code == 2
    assert gateway.requests == []


@pytest.mark.parametrize("prompt", ["-minus", "--double", "@file", "%s %d {0} $HOME `id`", "a=b", "'\""])
def test_a_prompt_is_taken_letter_for_letter(gateway: Gateway, run: Any, prompt: str) -> None:
    assert run(f"--prompt={prompt}").code == 0
    assert gateway.calls[0].json["messages"][0]["content"][0]["text"] == prompt


# --- Help, version, models ---


def test_help_names_every_flag(run: Any) -> None:
    outcome = run("--help")
    assert (outcome.code, outcome.err) == (0, "")
    for flag in FLAGS:
        assert re.search(rf"(?<![\w-]){flag}\b", outcome.out), flag
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", outcome.out)) == set(FLAGS)
    for default in (GEMINI, "1024x1024", "300", "./output-"):
        assert default in outcome.out


@pytest.mark.parametrize("encoding", ["ascii", "gbk", "cp1252"])
def test_help_survives_any_console(cli: Any, encoding: str) -> None:
    outcome = cli("--help", env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"})
    assert (outcome.code, outcome.err) == (0, "")
    assert "--prompt" in outcome.out


def test_version(run: Any) -> None:
    outcome = run("--version")
    assert (outcome.code, outcome.err) == (0, "")
    assert re.fullmatch(r"\S.* 1\.\d\S*\n", outcome.out)


def test_list_models_is_a_table_for_people(run: Any) -> None:
    outcome = run("--list-models")
    assert (outcome.code, outcome.err) == (0, "")
    head, *rows = outcome.out.splitlines()
    assert [row.split()[0] for row in rows] == [model.name for model in generate.CATALOGUE]
    for model, row in zip(generate.CATALOGUE, rows):
        assert model.family in row.split()
        assert f"{model.price_cny:.2f}" in row.split()
    assert [row[head.index("per call") :].split()[0] for row in rows] == [str(m.max_n) for m in generate.CATALOGUE]
    family = head.index("family")
    assert {row[family : family + 6] for row in rows} == {"gemini", "openai"}
    assert len({row[: family - 1].rstrip() for row in rows}) == len(rows)


def test_list_models_as_json(run: Any) -> None:
    outcome = run("--list-models", "--json")
    assert (outcome.code, outcome.err, outcome.json["ok"]) == (0, "", True)
    rows = {row["name"]: row for row in outcome.json["models"]}
    assert {name: (row["family"], row["price_cny"], row["sizes"]) for name, row in rows.items()} == {
        model.name: (model.family, model.price_cny, model.sizes.split()) for model in generate.CATALOGUE
    }


@pytest.mark.parametrize("flags", [["--list-models"], ["--version"], ["--help"]])
def test_looking_things_up_needs_no_key_and_asks_nobody(gateway: Gateway, cli: Any, flags: list[str]) -> None:
    for env in ({}, {"OMNIMAAS_API_KEY": None, "OMNIMAAS_BASE_URL": None}, {"OMNIMAAS_API_KEY": "mal formed"}):
        assert cli(*flags, env=env).code == 0
    assert gateway.requests == []


# --- Check ---


def test_check_shows_what_is_configured_and_asks_for_free(gateway: Gateway, run: Any) -> None:
    """The first thing that somebody types who gets a 401."""
    outcome = run("--check")
    assert outcome.code == 0
    for fact in (gateway.key[:8], "OMNIMAAS_API_KEY", gateway.url, "OMNIMAAS_BASE_URL", "3."):
        assert fact in outcome.out
    for package in ("requests", "Pillow", "python"):
        assert re.search(rf"{package}\b.*\d+\.\d+", outcome.out, re.IGNORECASE), package
    assert gateway.key[:9] not in outcome.out + outcome.err
    assert [(got.method, got.path) for got in gateway.requests] == [("GET", "/v1/models")]
    assert gateway.requests[0].headers["Authorization"] == f"Bearer {gateway.key}"


def test_check_is_aligned(gateway: Gateway, run: Any) -> None:
    lines = run("--check").out.splitlines()
    starts = {len(re.match(r"\S+( \S+)*\s\s+", line)[0]) for line in lines if line.strip()}
    assert len(lines) >= 5
    assert len(starts) == 1


def test_check_as_json(gateway: Gateway, run: Any) -> None:
    outcome = run("--check", "--json")
    facts = outcome.json
    assert (outcome.code, facts["ok"], facts["accepted"]) == (0, True, True)
    assert facts["models"] == len(CHAT_MODELS) + len(IMAGE_MODELS)
    assert (facts["key_source"], facts["base_url"]) == ("OMNIMAAS_API_KEY", gateway.url)
    assert facts["url_source"] == "OMNIMAAS_BASE_URL"
    assert gateway.key.startswith(facts["key"].rstrip("…"))
    assert len(facts["key"]) <= 9
    for version in (requests.__version__, PIL.__version__, platform.python_version()):
        assert version in outcome.out


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(Reply(401), 4, id="refused"),
        pytest.param(Reply(403), 4, id="forbidden"),
        pytest.param(Reply(500), 6, id="broken"),
        pytest.param(Reply(drop="before"), 6, id="reset"),
        pytest.param(Reply(hang="accept"), 6, id="silent"),
        pytest.param(Reply(body={"error": {"code": 401, "message": "No."}}), 4, id="refused with a 200"),
        pytest.param(Reply(body={"code": 401, "msg": "No."}), 4, id="refused with a 200, flat"),
        pytest.param(Reply(body={"data": 5}), 7, id="no list"),
        pytest.param(Reply(body="<html>Welcome to the shop</html>"), 7, id="a web page: /v1 is missing"),
    ],
)
def test_check_fails_as_a_call_would(gateway: Gateway, run: Any, answer: Reply, code: int) -> None:
    gateway.answer_always(answer, path="/models")
    outcome = run("--check", "--json", "--timeout", "2")
    error = outcome.json["error"]
    assert (outcome.code, outcome.json["ok"], error["billed"]) == (code, False, "no")
    assert "billed" not in error["message"] + error["hint"] and "--check" not in error["hint"]
    assert gateway.calls == []
    for fact in (gateway.key[:8], "OMNIMAAS_API_KEY", gateway.url):  # what is in use is shown all the more
        assert fact in outcome.err
    assert re.search(r"accepted +" + ("no\n" if code == 4 else "unknown"), outcome.err)


@pytest.mark.parametrize("words", [("--timeout", "abc"), ("--timeout", "-5"), ("--proxy", "foo bar")], ids=" ".join)
def test_check_checks_its_own_arguments(gateway: Gateway, run: Any, words: tuple[str, str]) -> None:
    assert run("--check", *words).code == 2
    assert gateway.requests == []


def test_check_of_a_gateway_without_that_page_says_that_it_cannot_tell(gateway: Gateway, run: Any) -> None:
    gateway.answer_always(Reply(404), path="/models")
    outcome = run("--check", "--json")
    assert (outcome.code, outcome.json["accepted"]) == (0, None)
    assert "/v1" in outcome.json["warnings"][0]


def test_check_with_a_wrong_key_does_not_show_it(gateway: Gateway, cli: Any) -> None:
    wrong = "sk-Zq7XwV4uTs2XwV4uTs2-other"
    outcome = cli("--check", env={"OMNIMAAS_API_KEY": wrong})
    assert outcome.code == 4
    assert wrong[8:] not in outcome.out + outcome.err
    assert wrong[-4:] not in outcome.out


# --- Dry run ---


@pytest.mark.parametrize(
    ("model", "count"),
    [(GEMINI, 0), (GEMINI, 2), (GPT, 0), (GPT, 2)],
    ids=["text, gemini", "images, gemini", "text, openai", "images, openai"],
)
def test_a_dry_run_shows_the_request_that_would_be_sent(
    gateway: Gateway, run: Any, tmp_path: Path, model: str, count: int
) -> None:
    """What is shown is what is sent, but for the key and the pictures' bytes."""
    data = pictures.picture(fmt="JPEG")
    (tmp_path / "ref.jpg").write_bytes(data)
    argv = ["--prompt", "一杯茶", "--model", model, "--aspect-ratio", "3:2", "--negative-prompt", "text"]
    argv += ["--reference-image", "ref.jpg"] * count + ["--output", "new/cup.png"]
    outcome = run(*argv, "--dry-run")
    assert outcome.code == 0
    assert gateway.requests == []
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["ref.jpg"]
    shown = outcome.json
    assert shown["headers"]["Authorization"].startswith(f"Bearer {gateway.key[:8]}")
    assert gateway.key[:9] not in outcome.out + outcome.err

    assert run(*argv).code == 0
    (received,) = gateway.requests
    assert (shown["method"], shown["url"]) == ("POST", gateway.origin + received.target)
    placeholder = f"<image/jpeg, {len(data)} bytes>"
    if received.path.endswith("/edits"):
        assert shown["fields"] == received.fields
        files = [{"name": part.name, "filename": part.filename, "content": placeholder} for part in received.files]
        assert shown["files"] == files
    else:
        sent = json.dumps(received.json)
        url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        assert shown["json"] == json.loads(sent.replace(json.dumps(url), json.dumps(placeholder)))
        assert json.dumps(shown).count(placeholder) == count


def test_a_dry_run_with_json_is_one_object(gateway: Gateway, run: Any) -> None:
    plain, wrapped = run("--prompt", "a cup", "--dry-run"), run("--prompt", "a cup", "--dry-run", "--json")
    assert (wrapped.code, len(wrapped.out.splitlines()), wrapped.json["ok"]) == (0, 1, True)
    assert {name: wrapped.json[name] for name in plain.json} == plain.json
    assert gateway.requests == []


def test_a_dry_run_shows_mask_and_params(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    (tmp_path / "ref.png").write_bytes(pictures.picture())
    mask = pictures.picture(mode="RGBA")
    (tmp_path / "mask.png").write_bytes(mask)
    flags = ["--reference-image", "ref.png", "--mask", "mask.png", "--param", "quality=high", "--n", "2"]
    shown = run("--prompt", "a cup", "--model", GPT, *flags, "--dry-run").json
    assert (shown["fields"]["quality"], shown["fields"]["n"]) == ("high", "2")
    assert [file["name"] for file in shown["files"]] == ["image[]", "mask"]
    assert shown["files"][1]["content"] == f"<image/png, {len(mask)} bytes>"


def test_a_dry_run_leaves_the_old_file_alone(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    (tmp_path / "cup.png").write_bytes(b"old")
    assert run("--prompt", "a cup", "--output", "cup.png", "--dry-run").code == 0
    assert (tmp_path / "cup.png").read_bytes() == b"old"


# --- While waiting ---


def test_without_a_terminal_there_is_no_live_line(
    gateway: Gateway, run: Any, tmp_path: Path, short_waits: None
) -> None:
    """A log file full of carriage returns helps nobody: one line at the start, one at each retry."""
    (tmp_path / "ref.png").write_bytes(pictures.picture())
    gateway.answer(Reply(500), Reply(delay=0.5))
    outcome = run("--prompt", "a cup", "--reference-image", "ref.png", "--output", "cup.png")
    assert outcome.code == 0
    lines = outcome.err.splitlines()
    assert not re.search(r"[\r\x1b]", outcome.err)
    assert all(line.startswith("[image-gen] ") for line in lines)
    assert len([line for line in lines if "attempt 1 of 3" in line]) == 1
    assert len([line for line in lines if "500" in line]) == 1
    assert len(lines) <= 6


class Terminal:
    """A pseudo-terminal of 100 columns as a process's standard error."""

    def __init__(self) -> None:
        self.main, self.side = pty.openpty()
        fcntl.ioctl(self.side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        self.seen = ""

    def read_until(self, pattern: str, timeout: float = 15) -> str:
        """All that was shown, as soon as it matches; at the end of the output whatever it is."""
        deadline = time.monotonic() + timeout
        while not re.search(pattern, self.seen) and time.monotonic() < deadline:
            if select.select([self.main], [], [], 0.1)[0]:
                try:
                    data = os.read(self.main, 65_536)
                except OSError as error:
                    if error.errno == errno.EIO:  # the other side is closed
                        break
                    raise
                self.seen += data.decode()
        return self.seen

    def screen(self) -> list[str]:
        """The lines that are left standing."""
        lines = []
        for line in self.seen.replace("\r\n", "\n").split("\n"):
            shown = re.split(r"\r\x1b\[K|\x1b\[2K\r|\r", line)[-1]
            lines.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
        return [line for line in lines if line.strip()]


def test_on_a_terminal_one_live_line_shows_that_it_works_and_is_gone_at_the_end(
    gateway: Gateway, start: Callable[..., Any]
) -> None:
    gateway.answer(Reply(delay=30))
    terminal = Terminal()
    process = start("--prompt", "a cup", "--output", "cup.jpeg", stderr=terminal.side)
    os.close(terminal.side)
    gateway.wait_for(1)
    live = terminal.read_until(r"[ \r]1 s\b.*[\r]")
    assert re.search(r"\b0 s\b", live), "elapsed seconds from the start"
    assert re.search(r"\b1 s\b", live), "and going on"
    assert "50-70 s" in live or "50–70 s" in live, "the typical time"
    assert "attempt 1 of 1" in live
    assert GEMINI in live
    assert "\n" not in live.rpartition("0 s")[2], "one line only, drawn anew"
    gateway.release()
    out, _ = process.communicate(timeout=15)
    terminal.read_until(r"(?!)")
    os.close(terminal.main)
    assert (process.returncode, len(out.splitlines())) == (0, 1)
    assert terminal.seen.count("\n") <= 4
    assert all(line.startswith("[image-gen] ") for line in terminal.screen())
    assert not [line for line in terminal.screen() if "attempt 1 of 1" in line]
    assert any("saved" in line for line in terminal.screen())
    assert max(len(piece) for piece in re.split(r"\r|\n|\x1b\[\d?[A-Za-z]", live)) < 100, "no line breaks by itself"


def test_a_live_line_is_wiped_away_by_an_interrupt(gateway: Gateway, start: Callable[..., Any]) -> None:
    gateway.answer(Reply(hang="accept"))
    terminal = Terminal()
    process = start("--prompt", "a cup", stderr=terminal.side)
    os.close(terminal.side)
    gateway.wait_for(1)
    terminal.read_until(r"\b0 s\b")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=15)
    terminal.read_until(r"(?!)")
    os.close(terminal.main)
    assert process.returncode == 130
    assert not [line for line in terminal.screen() if re.search(r"\b\d+ s\b", line)]
    assert any("nterrupt" in line for line in terminal.screen())


def test_quiet_shows_no_live_line_on_a_terminal_either(gateway: Gateway, start: Callable[..., Any]) -> None:
    gateway.answer(Reply(delay=0.5))
    terminal = Terminal()
    process = start("--prompt", "a cup", "--quiet", stderr=terminal.side)
    os.close(terminal.side)
    process.communicate(timeout=15)
    terminal.read_until(r"(?!)", timeout=3)
    os.close(terminal.main)
    assert (process.returncode, terminal.seen) == (0, "")
