"""A real gateway: LiteLLM's proxy on loopback, before the stand-in, with its own ideas of errors.

It asks the stand-in as it would ask OpenAI (gpt-image-1) and Google (gemini-3-pro-image-preview).
Its start takes most of a minute, so that one test has all cases: it starts once a session.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import Run
from gateway import KEY, Gateway, Received, Reply, draw

PROGRAM = Path(__file__).resolve().parent.parent / ".venv-litellm" / "bin" / "litellm"
MASTER_KEY = "sk-litellm-master-0123456789abcdef"
OPENAI, GEMINI = "gpt-image-1", "gemini-3-pro-image-preview"
START_S = 240
PROMPT = "a red apple on wood"
REFERENCES = [draw(f"reference {number}", (320, 240)) for number in range(3)]


def settings(upstream: Gateway) -> str:
    """LiteLLM's own. What fails is passed on at once, and nothing is ever put on ice."""
    rows = []
    urls = {OPENAI: ("openai", upstream.url), GEMINI: ("gemini", upstream.origin)}
    for name, (provider, url) in urls.items():
        params = {"model": f"{provider}/{name}", "api_base": url, "api_key": KEY, "max_retries": 0}
        rows.append({"model_name": name, "litellm_params": params})
    return json.dumps({
        "model_list": rows,
        "general_settings": {"master_key": MASTER_KEY},
        "litellm_settings": {"num_retries": 0, "request_timeout": 60, "telemetry": False},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
    })  # fmt: skip


@pytest.fixture
def upstream(clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """The stand-in behind LiteLLM, which the environment leads to."""
    program = Path(os.environ.get("LITELLM", PROGRAM))
    if not program.exists():
        pytest.skip(f"LiteLLM is not installed at {program}: bash tests/run.sh --all")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {"PATH": os.defpath, "HOME": os.getcwd(), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with Gateway() as upstream, open("log", "wb") as log:
        Path("config.yaml").write_text(settings(upstream))
        argv = [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", port]
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log)
        try:
            await_readiness(process, f"http://127.0.0.1:{port}/health/readiness")
            monkeypatch.setenv("OMNIMAAS_BASE_URL", f"http://127.0.0.1:{port}/v1")
            monkeypatch.setenv("OMNIMAAS_API_KEY", MASTER_KEY)
            yield upstream
        finally:
            process.terminate()
            process.wait(60)
    assert not upstream.errors


def await_readiness(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException):
            if requests.get(url, timeout=5).ok:
                return
        time.sleep(0.2)
    pytest.fail(Path("log").read_text(errors="replace")[-4000:], pytrace=False)


def arrived(received: Received) -> tuple[str, list[bytes]]:
    """The prompt and the references of a request as LiteLLM put it."""
    if received.headers.get_content_type() == "multipart/form-data":
        return received.fields["prompt"], [part.data for part in received.files]
    if "contents" not in received.json:
        return received.json["prompt"], []
    parts = [part for content in received.json["contents"] for part in content["parts"]]
    inline = [part.get("inlineData") or part.get("inline_data") for part in parts]
    prompt = "".join(part.get("text", "") for part in parts)
    return prompt, [base64.b64decode(image["data"]) for image in inline if image]


def google(**body: Any) -> Reply:
    return Reply(body={**body, "usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}})


TOLD = google(candidates=[{"content": {"role": "model", "parts": [{"text": "Which apple?"}]}}])
SAFETY = "Your request was rejected by the safety system."  # LiteLLM drops the code beside it
BLOCKED = Reply(400, body={"error": {"message": SAFETY, "code": "moderation_blocked"}})
PROHIBITED = google(promptFeedback={"blockReason": "PROHIBITED_CONTENT"})
WITHHELD = google(candidates=[{"finishReason": "IMAGE_SAFETY", "index": 0}])
BUSY = Reply(429, body={"error": {"message": "Too many.", "code": "rate_limit_exceeded"}})
ERRORS = {  # model, what its provider answers, kind, retryable, billed, calls with a reference
    "moderation": (OPENAI, BLOCKED, "refused", False, "no", 1),
    "prompt blocked": (GEMINI, PROHIBITED, "refused", False, "no", 1),
    "picture withheld": (GEMINI, WITHHELD, "refused", False, "no", 1),
    "words": (GEMINI, TOLD, "response", False, "maybe", 1),
    "busy": (OPENAI, BUSY, "quota", True, "no", 3),
    "wrong key": (OPENAI, Reply(401), "auth", False, "no", 1),
    "outage": (OPENAI, Reply(500), "unavailable", True, "maybe", 3),
    "outage of Google": (GEMINI, Reply(502, body="<html>"), "unavailable", True, "maybe", 3),
    "other model": ("gpt-image-2", None, "rejected", False, "no", 0),
}


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("short_waits")
def test_litellm(run: Run, upstream: Gateway, subtests: Any, monkeypatch: Any) -> None:
    """What goes out arrives, what comes back is saved, and its errors are understood."""
    paths = [Path(f"reference {number}") for number in range(3)]
    for path, data in zip(paths, REFERENCES):
        path.write_bytes(data)
    flags = [word for path in paths for word in ("--reference-image", path)]

    for model, count in ((OPENAI, 0), (OPENAI, 3), (GEMINI, 0), (GEMINI, 3)):
        with subtests.test(f"{model} with {count} references"):
            upstream.requests.clear()
            upstream.drafts = 2  # of which none is the result
            given = ("--prompt", PROMPT, "--model", model, *flags[: 2 * count])
            done = run(*given, "--output", "apple", "--json")
            assert (done.code, done.json["attempts"]) == (0, 1), done.err
            assert list(map(arrived, upstream.calls)) == [(PROMPT, REFERENCES[:count])]
            fmt = {OPENAI: "PNG", GEMINI: "JPEG"}[model]
            size = (1024, 768) if model == GEMINI and count else (1024, 1024)
            card = draw(PROMPT, size, REFERENCES[:count], model, fmt)
            assert Path("apple").read_bytes() == card

    for name, (model, reply, *wanted, calls) in ERRORS.items():
        with subtests.test(name):
            upstream.requests.clear()
            upstream.reset()
            upstream.answer_always(reply)
            error = run("--prompt", "x", "--model", model, "--json", *flags[:2]).json["error"]
            assert [error["kind"], error["retryable"], error["billed"]] == wanted
            assert len(upstream.calls) == calls

    for argv in (("--prompt", "x", "--model", OPENAI), ("--prompt", "x"), ("--check",)):
        monkeypatch.setenv("OMNIMAAS_API_KEY", "sk-wrong-0123456789abcdefgh")
        assert run(*argv).code == 4
