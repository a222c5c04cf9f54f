"""A real gateway: LiteLLM's proxy on loopback, in front of the stand-in, with its own ideas of shapes and errors.

It asks the stand-in as it would ask OpenAI and Google: /v1/images/* for gpt-image-1, Google's native generateContent for
gemini-3-pro-image-preview. tests/run.sh installs it into tests/.venv-litellm; elsewhere the variable LITELLM names it.
"""

from __future__ import annotations

import contextlib
import io
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
from PIL import Image, ImageChops

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


def sent_upstream(received: Received) -> tuple[str, list[bytes]]:
    """The prompt and the references of a request as LiteLLM rewrote it."""
    if received.headers.get_content_type() == "multipart/form-data":
        return received.fields["prompt"], [part.data for part in received.files]
    if "messages" in received.json or "contents" not in received.json:
        return received.json["prompt"], []
    parts = [part for content in received.json["contents"] for part in content["parts"]]
    inline = [part.get("inlineData") or part.get("inline_data") for part in parts]
    import base64
    return ...
