"""The stand-in contents the official client."""

from __future__ import annotations

import base64
import io
from typing import Any

import openai
import pytest
import requests
from gateway import Gateway, draw
from PIL import Image

pytestmark = pytest.mark.long
CUP = "A cup (aspect ratio: 16:9)"
PNG = draw("reference", (64, 48))
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


def test_client_reads_chat_streams(client: Any) -> None:
    messages = [{"role": "user", "content": CUP}]
    chunks = [*client.chat.completions.create(model=GEMINI, messages=messages, stream=True)]
    deltas = [chunk.choices[0].delta.model_dump() for chunk in chunks]
    parts = [part for each in deltas for part in each.get("images", [])]
    [url] = [part["image_url"]["url"] for part in parts]
    assert size_of(url.partition(";base64,")[2]) == (1024, 576)
    assert chunks[-1].choices[0].finish_reason == "stop"
