"""A real gateway: LiteLLM's proxy on loopback, in front of the stand-in, with its own ideas of shapes and errors.

It asks the stand-in as it would ask OpenAI and Google: /v1/images/* for gpt-image-1, Google's own generateContent for
gemini-3-pro-image-preview. tests/run.sh installs it into tests/.venv-litellm; the variable LITELLM may name another.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
import requests
from conftest import Outcome
from gateway import KEY, Gateway, Received, Reply, draw

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("litellm")]

PROGRAM = Path(__file__).resolve().parent / ".venv-litellm" / "bin" / "litellm"
MASTER_KEY = "sk-litellm-master-0123456789abcdef"
OPENAI, GEMINI = "gpt-image-1", "gemini-3-pro-image-preview"
BOTH = pytest.mark.parametrize("model", [OPENAI, GEMINI])
START_S = 180  # a first start compiles some thousand modules
PROMPT = "a red apple on wood"
REFERENCES = [draw(f"reference {number}", (320, 240)) for number in range(3)]  # PNGs, which go out byte for byte


class Proxy(NamedTuple):
    url: str
    upstream: Gateway


def settings(upstream: Gateway) -> str:
    """LiteLLM's YAML, of which JSON is a part. What fails is passed on at once, and nothing is ever put on ice."""
    routes = {OPENAI: ("openai", upstream.url), GEMINI: ("gemini", upstream.origin)}
    rows = [
        {
            "model_name": model,
            "litellm_params": {"model": f"{provider}/{model}", "api_base": url, "api_key": KEY, "max_retries": 0},
        }
        for model, (provider, url) in routes.items()
    ]
    return json.dumps(
        {
            "model_list": rows,
            "general_settings": {"master_key": MASTER_KEY},
            "litellm_settings": {"num_retries": 0, "request_timeout": 60, "telemetry": False},
            "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        }
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_readiness(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_S
    with requests.Session() as session:
        session.trust_env = False
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(requests.RequestException):
                if session.get(f"{url}/health/readiness", timeout=5).ok:
                    return
            time.sleep(0.2)
    state = f"ended with {process.returncode}" if process.poll() is not None else f"is not ready after {START_S} s"
    pytest.fail(f"LiteLLM {state}. Its last words:\n{log.read_text(errors='replace')[-4000:]}", pytrace=False)


@pytest.fixture(scope="session")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    program = Path(os.environ.get("LITELLM", PROGRAM))
    if not program.exists():
        pytest.fail(f"LiteLLM is not installed at {program}: run `bash tests/run.sh` once.", pytrace=False)
    folder = tmp_path_factory.mktemp("litellm")
    with Gateway() as upstream, (folder / "log").open("wb") as log:
        (folder / "config.yaml").write_text(settings(upstream))
        port = free_port()
        process = subprocess.Popen(
            [str(program), "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env={"PATH": os.defpath, "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
        try:
            await_readiness(process, f"http://127.0.0.1:{port}", folder / "log")
            yield Proxy(f"http://127.0.0.1:{port}/v1", upstream)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@pytest.fixture
def upstream(proxy: Proxy, clean_environment: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """The stand-in behind the proxy that the environment leads to, with nothing left of the test before."""
    monkeypatch.setenv("OMNIMAAS_BASE_URL", proxy.url)
    monkeypatch.setenv("OMNIMAAS_API_KEY", MASTER_KEY)
    proxy.upstream.reset()
    proxy.upstream.requests.clear()
    proxy.upstream.drafts = 0
    yield proxy.upstream
    assert not proxy.upstream.errors


Run = Callable[..., Outcome]


def reference_flags(folder: Path, references: Sequence[bytes], suffix: str = ".png") -> list[str]:
    flags = []
    for number, data in enumerate(references):
        path = folder / f"reference {number}{suffix}"
        path.write_bytes(data)
        flags += ["--reference-image", str(path)]
    return flags


def received_upstream(received: Received) -> tuple[str, list[bytes]]:
    """The prompt and the references of a request as LiteLLM put it."""
    if received.headers.get_content_type() == "multipart/form-data":
        return received.fields["prompt"], [part.data for part in received.files]
    if "contents" not in received.json:
        return received.json["prompt"], []
    parts = [part for content in received.json["contents"] for part in content["parts"]]
    inline = [part.get("inlineData") or part.get("inline_data") for part in parts]
    texts = [part["text"] for part in parts if "text" in part]
    return "".join(texts), [base64.b64decode(image["data"]) for image in inline if image]


# --- The four routes ---

ROUTES = {
    OPENAI: ("/images/generations", "/v1/images/generations", PROMPT, (1536, 1024), "png"),
    GEMINI: (
        "/chat/completions",
        f"/models/{GEMINI}:generateContent",
        f"{PROMPT} (aspect ratio: 16:9)",
        (1024, 576),
        "jpeg",
    ),
}


@BOTH
@pytest.mark.parametrize("count", [0, 1, 3])
def test_route(cli: Run, upstream: Gateway, tmp_path: Path, model: str, count: int) -> None:
    """Whether any of this works with a gateway that its authors did not write."""
    endpoint, path, prompt, size, fmt = ROUTES[model]
    if count and model == OPENAI:
        endpoint, path = "/images/edits", "/v1/images/edits"
    flags = reference_flags(tmp_path, REFERENCES[:count])
    output = tmp_path / f"apple.{fmt}"
    argv = ("--prompt", PROMPT, "--model", model, "--aspect-ratio", "16:9", "--output", output, "--json")
    outcome = cli(*argv, *flags)
    assert outcome.code == 0, outcome.err

    assert [(received.path, *received_upstream(received)) for received in upstream.calls] == [
        (path, prompt, REFERENCES[:count])
    ]
    # The stand-in draws the same picture for the same request: the bytes came through untouched.
    assert output.read_bytes() == draw(prompt, size, REFERENCES[:count], model, fmt.upper())
    facts = outcome.json
    expected = {"endpoint": endpoint, "model": model, "width": size[0], "height": size[1], "attempts": 1, "ok": True}
    assert {name: facts[name] for name in expected} == expected
    assert facts["total_tokens"] == facts["usage"]["total_tokens"] > 0


@pytest.mark.parametrize("count", [0, 3])
@pytest.mark.parametrize("drafts", [1, 2])
def test_of_drafts_the_last_is_the_result(cli: Run, upstream: Gateway, tmp_path: Path, drafts: int, count: int) -> None:
    """A sketch of a thinking model, saved as the result."""
    upstream.drafts = drafts
    flags = reference_flags(tmp_path, REFERENCES[:count])
    outcome = cli("--prompt", PROMPT, "--output", tmp_path / "apple.jpeg", *flags)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "apple.jpeg").read_bytes() == draw(PROMPT, (1024, 1024), REFERENCES[:count], GEMINI, "JPEG")


def test_several_at_once(cli: Run, upstream: Gateway, tmp_path: Path) -> None:
    """Two paid pictures, of which one is dropped."""
    outcome = cli("--prompt", PROMPT, "--model", OPENAI, "--n", 2, "--output", tmp_path / "apple.png")
    assert outcome.out.splitlines() == [str(tmp_path / "apple.png"), str(tmp_path / "apple-2.png")]
    for number, path in enumerate(outcome.out.splitlines(), 1):
        assert Path(path).read_bytes() == draw(PROMPT, (1024, 1024), (), f"{OPENAI}   {number}/2")


@BOTH
def test_references_that_are_no_png(cli: Run, upstream: Gateway, tmp_path: Path, model: str) -> None:
    """A JPEG that arrives as something else. LiteLLM calls every file image.png, so that its type has to be right."""
    jpeg = draw("a photograph", (640, 480), fmt="JPEG")
    seen: list[Received] = []

    def answer(received: Received) -> Reply:
        seen.append(received)
        image = base64.b64encode(draw("made of it", (512, 512))).decode()
        details = {"text_tokens": 5, "image_tokens": 258}
        usage = {"input_tokens": 263, "input_tokens_details": details, "output_tokens": 1024, "total_tokens": 1287}
        return Reply(body={"created": 1, "data": [{"b64_json": image}], "usage": usage})

    if model == OPENAI:
        upstream.answer(answer)
    flags = reference_flags(tmp_path, [jpeg], ".jpg")
    outcome = cli("--prompt", PROMPT, "--model", model, "--output", tmp_path / "apple.png", *flags)
    assert outcome.code == 0, outcome.err
    assert [received_upstream(received)[1] for received in upstream.calls] == [[jpeg]]
    assert all(part.content_type == "image/jpeg" for received in seen for part in received.files)


def test_check(cli: Run, upstream: Gateway) -> None:
    facts = cli("--check", "--json").json
    assert (facts["ok"], facts["accepted"], facts["models"]) == (True, True, 2)


# --- Its errors ---


def error_of(outcome: Outcome) -> dict[str, Any]:
    assert outcome.json["ok"] is False
    assert "Traceback" not in outcome.err
    error: dict[str, Any] = outcome.json["error"]
    assert error["hint"]
    return error


@pytest.mark.parametrize("key", ["sk-wrong-0123456789abcdefgh", "wrong-0123456789abcdefgh"])
@pytest.mark.parametrize(
    "argv", [("--prompt", "x", "--model", OPENAI), ("--prompt", "x", "--model", GEMINI), ("--check",)], ids=" ".join
)
def test_wrong_key(cli: Run, upstream: Gateway, argv: tuple[str, ...], key: str) -> None:
    """Without a database LiteLLM says "No connected db." to every key but its master key, with status 400."""
    outcome = cli(*argv, "--json", env={"OMNIMAAS_API_KEY": key})
    error = error_of(outcome)
    assert (outcome.code, error["kind"], error["retryable"], error["billed"]) == (4, "auth", False, "no")
    assert "key" in error["hint"]
    assert key not in outcome.out + outcome.err
    assert not upstream.calls


@pytest.mark.parametrize("model", ["gpt-image-2", "gemini-2.5-flash-image"])
def test_unknown_model(cli: Run, upstream: Gateway, model: str) -> None:
    """A model that the program knows and this gateway does not offer."""
    outcome = cli("--prompt", "x", "--model", model, "--json")
    error = error_of(outcome)
    assert (outcome.code, error["kind"], error["status"], error["billed"]) == (7, "rejected", 400, "no")
    assert f"model={model}" in error["message"]
    assert not upstream.calls


@BOTH
@pytest.mark.parametrize("body", [None, "<html><title>502 Bad Gateway</title></html>"], ids=["JSON", "HTML"])
def test_upstream_fails(cli: Run, upstream: Gateway, model: str, body: Any) -> None:
    """Text-to-image is one attempt, and what it cost is not known."""
    upstream.answer_always(Reply(502 if body else 500, body=body))
    outcome = cli("--prompt", "x", "--model", model, "--json")
    error = error_of(outcome)
    assert (outcome.code, error["kind"], error["retryable"], error["billed"]) == (6, "unavailable", True, "maybe")
    assert error["status"] in range(500, 504)
    assert "attempt 2" not in outcome.err


@BOTH
def test_upstream_fails_once(run: Run, upstream: Gateway, tmp_path: Path, short_waits: None, model: str) -> None:
    """Image-to-image gets over a fault that passes."""
    upstream.answer(Reply(500))
    flags = reference_flags(tmp_path, REFERENCES[:1])
    outcome = run("--prompt", PROMPT, "--model", model, "--output", tmp_path / "apple.png", "--json", *flags)
    assert (outcome.code, outcome.json["attempts"], len(upstream.calls)) == (0, 2, 2), outcome.err


SPENT = {"usageMetadata": {"promptTokenCount": 5, "totalTokenCount": 5}}
REFUSALS = {
    "moderation": (
        OPENAI,
        Reply(400, body={"error": {
            "message": "Your request was rejected by the safety system.", "type": "image_generation_user_error",
            "param": None, "code": "moderation_blocked",
        }}),
    ),
    "prompt blocked": (GEMINI, Reply(body={"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, **SPENT})),
    "picture withheld": (GEMINI, Reply(body={"candidates": [{"finishReason": "IMAGE_SAFETY", "index": 0}], **SPENT})),
}  # fmt: skip


@pytest.mark.parametrize("references", [0, 1])
@pytest.mark.parametrize(("model", "reply"), [pytest.param(*row, id=name) for name, row in REFUSALS.items()])
def test_upstream_refuses(
    cli: Run, upstream: Gateway, tmp_path: Path, model: str, reply: Reply, references: int
) -> None:
    """A refusal that is paid for again with every attempt, or reported as a technical fault."""
    upstream.answer_always(reply)
    flags = reference_flags(tmp_path, REFERENCES[:references])
    outcome = cli("--prompt", "x", "--model", model, "--json", *flags)
    error = error_of(outcome)
    assert (outcome.code, error["kind"], error["retryable"], error["billed"]) == (7, "refused", False, "no")
    assert len(upstream.calls) == 1


@pytest.mark.parametrize("references", [0, 1])
def test_upstream_answers_in_words(cli: Run, upstream: Gateway, tmp_path: Path, references: int) -> None:
    """What the model had to say for its money, kept from the user."""
    content = {"role": "model", "parts": [{"text": "Which apple do you mean?"}]}
    upstream.answer_always(Reply(body={"candidates": [{"content": content, "finishReason": "STOP"}], **SPENT}))
    outcome = cli("--prompt", "x", "--json", *reference_flags(tmp_path, REFERENCES[:references]))
    error = error_of(outcome)
    assert (outcome.code, error["kind"], error["retryable"], error["billed"]) == (7, "response", False, "yes")
    assert "Which apple do you mean?" in error["message"]
    assert len(upstream.calls) == 1


@BOTH
def test_upstream_is_busy(cli: Run, upstream: Gateway, model: str) -> None:
    body = {"error": {"message": "Too many requests", "type": "requests", "param": None, "code": "rate_limit_exceeded"}}
    upstream.answer_always(Reply(429, body=body))
    outcome = cli("--prompt", "x", "--model", model, "--json")
    error = error_of(outcome)
    assert (outcome.code, error["kind"], error["status"], error["billed"]) == (5, "quota", 429, "no")
    assert error["retryable"] is True


@BOTH
def test_upstream_refuses_the_key_of_the_proxy(cli: Run, upstream: Gateway, model: str) -> None:
    upstream.answer_always(Reply(401))
    outcome = cli("--prompt", "x", "--model", model, "--json")
    assert (outcome.code, error_of(outcome)["kind"]) == (4, "auth")
