"""The stand-in contents the official client, and refuses what the real services refuse."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from typing import Any

import gateway as stand_in
import openai
import pytest
import requests
from conftest import table
from gateway import Gateway, draw
from PIL import Image

pytestmark = pytest.mark.long
CUP = "A cup (aspect ratio: 16:9)"
PNG, JPEG = draw("reference", (64, 48)), draw("reference", (64, 48), fmt="JPEG")
GPT, GEMINI = {"model": "openai/GPT-Image-2", "prompt": CUP}, "google/gemini-3-pro-image"


@pytest.fixture
def client(gateway: Gateway) -> Any:
    return openai.OpenAI(api_key=gateway.key, base_url=gateway.url, max_retries=0)


def size_of(encoded: str) -> tuple[int, int]:
    return Image.open(io.BytesIO(base64.b64decode(encoded))).size


def test_client_generates_and_edits(client: Any, gateway: Gateway) -> None:
    made = client.images.generate(**GPT, n=2, size="1536x864")
    assert [size_of(item.b64_json) for item in made.data] == [(1536, 864)] * 2
    edited = client.images.edit(**GPT, image=[("a.png", PNG, "image/png")] * 2)
    assert [size_of(item.b64_json) for item in edited.data] == [(1024, 1024)]
    assert [part.data for part in gateway.calls[1].files] == [PNG, PNG]
    url = client.images.generate(model="dall-e-3", prompt=CUP).data[0].url
    assert requests.get(url, headers={"Authorization": "Bearer any"}).status_code == 403


@pytest.mark.parametrize("kind", ["image_generation", "image_edit"])
def test_client_reads_image_streams(client: Any, kind: str) -> None:
    options = {**GPT, "stream": True, "partial_images": 2}
    if kind == "image_edit":
        *drafts, final = client.images.edit(**options, image=("a.png", PNG, "image/png"))
    else:
        *drafts, final = client.images.generate(**options)
    assert [draft.partial_image_index for draft in drafts] == [0, 1]
    assert {draft.type for draft in drafts} == {f"{kind}.partial_image"}
    assert (final.type, final.usage.output_tokens) == (f"{kind}.completed", 1048 + 2 * 100)
    assert len({item.b64_json for item in (*drafts, final)}) == 3


@pytest.mark.parametrize("style", stand_in.STYLES)
def test_client_reads_chat_streams(client: Any, gateway: Gateway, style: str) -> None:
    gateway.style, messages = style, [{"role": "user", "content": CUP}]
    chunks = [*client.chat.completions.create(model=GEMINI, messages=messages, stream=True)]
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
    images = [part["image_url"] for delta in deltas for part in delta.get("images", [])]
    images += [delta["image"] for delta in deltas if "image" in delta]
    shown = "".join(delta.get("content") or "" for delta in deltas)
    url = images[0]["url"] if images else shown.partition("(")[2].rstrip(")")
    assert size_of(url.partition(";base64,")[2]) == (1024, 576)
    assert chunks[-1].choices[0].finish_reason == "stop"


@table(
    "call, options, code",
    {
        "unknown model": ("generate", {"model": "gpt-image-3"}, "model_not_found"),
        "two in a stream": ("generate", {"n": 2, "stream": True}, "invalid_value"),
        "dall-e-3": ("generate", {"model": "dall-e-3", "stream": True}, "unknown_parameter"),
        "no type": ("edit", {"image": ("a.png", PNG, "image/jpg")}, "unsupported_file_mimetype"),
        "lying type": ("edit", {"image": ("a.png", JPEG, "image/png")}, "image_type_mismatch"),
        "lying name": ("edit", {"image": ("a", PNG, "image/png")}, "invalid_file_extension"),
    },
)
def test_requests_are_refused(client: Any, call: str, options: Any, code: str) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        getattr(client.images, call)(**{**GPT, **options})
    assert caught.value.code == code


def test_command_finds_the_gateway() -> None:
    words = ["sh", "-c", 'echo "$OMNIMAAS_API_KEY $OMNIMAAS_BASE_URL"; exit 7']
    program = [sys.executable, stand_in.__file__, "--stream-style", "new-api", "--"]
    done = subprocess.run([*program, *words], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.startswith(f"{stand_in.KEY} http://127.0.0.1:")
