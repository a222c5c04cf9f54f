"""What goes over the wire: the exact request of each route, and what each flag changes in it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Callable

import pictures
import pytest
from bodies import chat_request, data_url, image_request, image_url, references_in
from conftest import table
from gateway import Gateway, Received
from PIL import Image

GEMINI, GPT, GPT_1 = "gemini-3-pro-image-preview", "gpt-image-2", "gpt-image-1"
PROMPT = '一杯茶 "tea"\nwith\tmilk 🍵 \\ é  two  blanks'
HEADERS = {
    *("host", "user-agent", "accept", "accept-encoding", "connection"),
    *("content-type", "content-length", "authorization"),
}
KINDS = {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}
TYPES = ["image/png", "image/jpeg", "image/webp"]


@pytest.fixture
def refs(tmp_path: Path) -> Callable[..., list[str]]:
    """refs("png", "jpg") writes a small picture of each kind; the flags that name them."""

    def make(*kinds: str) -> list[str]:
        flags = []
        for number, kind in enumerate(kinds):
            path = tmp_path / f"отражение {number}.{kind}"
            path.write_bytes(pictures.picture(300 + number, 200, fmt=KINDS[kind]))
            flags += ["--reference-image", str(path)]
        return flags

    return make


def sent(gateway: Gateway) -> Received:
    """The one request that was made; nothing but its header Authorization says who asks."""
    (received,) = gateway.requests
    assert received.headers.get_all("Authorization") == [f"Bearer {gateway.key}"]
    others = [value for name, value in received.headers.items() if name != "Authorization"]
    assert gateway.key not in received.target + repr(others) + repr(received.body)
    assert {name.lower() for name in received.headers} <= HEADERS
    assert received.headers["User-Agent"].startswith("product-shots-image-gen/")
    assert received.headers["Accept-Encoding"] == "gzip"
    kind = "multipart/form-data" if received.path.endswith("/edits") else "application/json"
    assert received.headers.get_content_type() == kind
    return received


def data_of(flags: list[str]) -> list[bytes]:
    return [Path(flag).read_bytes() for flag in flags[1::2]]


def size_of(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


# --- The four routes ---


def test_text_to_image_of_gemini(gateway: Gateway, run: Any) -> None:
    """POST /chat/completions `{model, messages: [{role: "user", content: [{type: "text"…}]}]}`"""
    assert run("--prompt", PROMPT).code == 0
    assert sent(gateway).target == "/v1/chat/completions"
    assert sent(gateway).json == chat_request(PROMPT)


def test_image_to_image_of_gemini(gateway: Gateway, run: Any, refs: Any) -> None:
    """Text first, then every reference as a data URL in the order given."""
    flags = refs("png", "jpg", "webp")
    assert run("--prompt", PROMPT, *flags).code == 0
    assert sent(gateway).target == "/v1/chat/completions"
    links = map(data_url, data_of(flags), TYPES)
    assert sent(gateway).json == chat_request(PROMPT, *map(image_url, links))


def test_text_to_image_of_openai(gateway: Gateway, run: Any) -> None:
    """`POST /images/generations` JSON `{model, prompt, n, size}`, with no extra field."""
    assert run("--prompt", PROMPT, "--model", GPT).code == 0
    assert sent(gateway).target == "/v1/images/generations"
    assert sent(gateway).json == image_request(PROMPT)
    assert type(sent(gateway).json["n"]) is int


def test_image_to_image_of_openai(gateway: Gateway, run: Any, refs: Any) -> None:
    """`POST /images/edits` multipart, one `image[]` a reference, with name and type that fit.

    Some gateways trust the file name's extension, some the Content-Type, some the order.
    """
    flags = refs("png", "jpg", "webp")
    assert run("--prompt", PROMPT, "--model", GPT, *flags).code == 0
    received = sent(gateway)
    assert received.target == "/v1/images/edits"
    assert received.fields == {"model": GPT, "prompt": PROMPT, "n": "1", "size": "1024x1024"}
    assert [part.name for part in received.form[4:]] == ["image[]"] * 3
    assert references_in(received) == list(zip(TYPES, data_of(flags)))
    names = [part.filename for part in received.files]
    assert names == ["image-1.png", "image-2.jpeg", "image-3.webp"]


@pytest.mark.parametrize(("model", "most"), [(GEMINI, 9), (GPT, 16)])
def test_as_many_references_as_the_model_takes_keep_their_order(
    gateway: Gateway, run: Any, refs: Any, model: str, most: int
) -> None:
    """Gemini ≤ 9, openai ≤ 16; prepared in parallel, the one that takes longest stays first."""
    flags = refs(*["png", "jpg", "webp"] * 5, "png")[: 2 * most]
    Path(flags[1]).write_bytes(pictures.picture(2000, 1500, noise=True))
    flags[-1] = flags[3]  # one picture may be given twice
    assert run("--prompt", "a cup", "--model", model, *flags).code == 0
    images = [data for _, data in references_in(sent(gateway))]
    assert images[1:] == data_of(flags)[1:]
    assert size_of(images[0]) == (1024, 768)


# --- What flags change ---


@table(
    "words, model, changes",
    {
        "ratio, gemini": (
            ["--aspect-ratio=16:9"],
            GEMINI,
            {"prompt": "a cup (aspect ratio: 16:9)"},
        ),
        "ratio, openai": (["--aspect-ratio=16:9"], GPT, {"size": "1536x864"}),
        "size auto": (["--size=auto"], GPT, {"size": "auto"}),
        "size and ratio": (["--size=1024x1536", "--aspect-ratio=1:1"], GPT, {"size": "1024x1536"}),
        "size for gemini": (["--size=1024x1536"], GEMINI, {}),
        "n": (["--n=3"], GPT, {"n": 3}),
        "n for gemini": (["--n=3"], GEMINI, {}),
        "negative, openai": (["--negative-prompt=字"], GPT, {"prompt": "a cup Avoid: 字"}),
        "negative, gemini": (
            ["--negative-prompt=text, 字", "--aspect-ratio=4:5"],
            GEMINI,
            {"prompt": "a cup (aspect ratio: 4:5) Avoid: text, 字"},
        ),
        "equals signs": (["--param=user=a b=c"], GPT, {"user": "a b=c"}),
        "a number": (["--param=output_compression=80"], GPT, {"output_compression": 80}),
        "a list": (['--param=modalities=["image"]'], GEMINI, {"modalities": ["image"]}),
        "an object": (['--param=image_config={"a": 0.5}'], GEMINI, {"image_config": {"a": 0.5}}),
        "quoted JSON": (['--param=user="123"'], GPT, {"user": "123"}),
        "null": (["--param=user=null"], GPT, {"user": None}),
        "NaN, no JSON": (["--param=user=NaN"], GPT, {"user": "NaN"}),
        "Infinity, no JSON": (["--param=user=-Infinity"], GPT, {"user": "-Infinity"}),
        "the last counts": (
            ["--param=quality=low", "--param=quality=high"],
            GPT,
            {"quality": "high"},
        ),
        "two": (
            ["--param=background=transparent", "--param=output_format=webp"],
            GPT_1,
            {"background": "transparent", "output_format": "webp"},
        ),
    },
)
def test_a_flag_changes_its_field_and_no_other(
    gateway: Gateway, run: Any, words: list[str], model: str, changes: dict[str, Any]
) -> None:
    """Exactly the specification's requests, with no extra field unless a flag asks for it."""
    assert run("--prompt", "a cup", "--model", model, *words).code == 0
    prompt = changes.get("prompt", "a cup")
    others = {name: value for name, value in changes.items() if name != "prompt"}
    bare = chat_request(prompt) if model == GEMINI else image_request(prompt, model=model)
    assert sent(gateway).json == {**bare, **others}


@pytest.mark.parametrize("size", [(300, 200), (2000, 1000)], ids=["small", "resized"])
def test_a_mask_goes_along_at_the_size_of_the_first_reference(
    gateway: Gateway, run: Any, refs: Any, size: tuple[int, int]
) -> None:
    """PNG with alpha, same pixel size as the first reference; resized in step with it."""
    flags = refs("png", "png")
    Path(flags[1]).write_bytes(pictures.picture(*size))
    mask = pictures.picture(*size, mode="RGBA")
    Path("m a s k.png").write_bytes(mask)
    assert run("--prompt", "a cup", "--model", GPT, *flags, "--mask", "m a s k.png").code == 0
    first, second, last = sent(gateway).files
    assert [first.name, second.name, last.name] == ["image[]", "image[]", "mask"]
    assert (last.content_type, str(last.filename).rpartition(".")[2]) == ("image/png", "png")
    assert size_of(first.data) == size_of(last.data) == (min(size[0], 1024), min(size[1], 512))
    assert pictures.has_hole(last.data)
    assert size[0] > 1024 or last.data == mask
