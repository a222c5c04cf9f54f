"""The stand-in gateway is faithful: it contents the official client and refuses what the real API refuses."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gateway as stand_in
import openai
import pytest
import requests
from conftest import table
from gateway import Gateway, Received, Reply, draw
from PIL import Image

BAND = "A band of light across a glass bottle"
GENERATION = {"model": "gpt-image-2", "prompt": BAND, "n": 1, "size": "1024x1024"}
PNG = draw("reference", (64, 48))
JPEG = draw("reference", (64, 48), fmt="JPEG")
WEBP = draw("reference", (64, 48), fmt="WEBP")


def size_of(data: bytes) -> tuple[int, int]:
    assert len(data) > 10_000
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        return image.size


def data_url(data: bytes, mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def message(*parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": content}


def image_part(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def post(gateway: Gateway, path: str, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {gateway.key}", **options.pop("headers", {})}
    return requests.post(gateway.url + path, headers=headers, timeout=10, **options)


def raw_exchange(gateway: Gateway, body: bytes = b"{}") -> bytes:
    """All that comes back over a bare socket, up to its end; b"RESET" marks a connection reset."""
    with socket.create_connection(("127.0.0.1", int(gateway.origin.rpartition(":")[2])), timeout=10) as sock:
        sock.sendall(b"POST /v1/images/generations HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        received = b""
        try:
            while data := sock.recv(65_536):
                received += data
        except ConnectionResetError:
            received += b"RESET"
        return received


# --- The official client ---


@pytest.fixture
def client(gateway: Gateway) -> Any:
    return openai.OpenAI(api_key=gateway.key, base_url=gateway.url, max_retries=0)


@pytest.mark.parametrize("size", ["1024x1024", "1536x864", "864x1536", "1568x672"])
def test_client_generates(client: Any, size: str) -> None:
    answer = client.images.generate(model="gpt-image-2", prompt=BAND, n=1, size=size)
    assert size_of(base64.b64decode(answer.data[0].b64_json)) == tuple(map(int, size.split("x")))
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens > 0


def test_client_gets_n_different_pictures(client: Any) -> None:
    answer = client.images.generate(model="gpt-image-1", prompt=BAND, n=3, size="1024x1536", output_format="webp")
    pictures = {base64.b64decode(item.b64_json) for item in answer.data}
    assert len(pictures) == 3
    assert {Image.open(io.BytesIO(picture)).format for picture in pictures} == {"WEBP"}


def test_client_gets_a_transparent_background(client: Any) -> None:
    answer = client.images.generate(model="gpt-image-1", prompt=BAND, background="transparent")
    assert Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json))).getchannel("A").getpixel((0, 0)) == 0


def test_client_gets_a_url_from_dall_e_3(client: Any) -> None:
    url = client.images.generate(model="dall-e-3", prompt=BAND, size="1792x1024").data[0].url
    assert size_of(requests.get(url, timeout=10).content) == (1792, 1024)
    assert requests.get(url, timeout=10, headers={"Authorization": "Bearer any"}).status_code == 403


def test_client_gets_base64_from_dall_e_3(client: Any) -> None:
    answer = client.images.generate(model="dall-e-3", prompt=BAND, response_format="b64_json", style="vivid")
    assert size_of(base64.b64decode(answer.data[0].b64_json)) == (1024, 1024)


@pytest.mark.parametrize("count", [1, 3])
def test_client_edits(client: Any, gateway: Gateway, tmp_path: Path, count: int) -> None:
    paths = [tmp_path / f"{number}.png" for number in range(count)]
    for path in paths:
        path.write_bytes(PNG)
    image: Any = paths[0] if count == 1 else paths
    answer = client.images.edit(model="gpt-image-2", image=image, prompt=BAND, size="1024x1280", n=1)
    assert size_of(base64.b64decode(answer.data[0].b64_json)) == (1024, 1280)
    assert [part.data for part in gateway.calls[0].files] == [PNG] * count
    assert gateway.calls[0].fields == {"model": "gpt-image-2", "prompt": BAND, "size": "1024x1280", "n": "1"}


@pytest.mark.parametrize("ratio, size", [("1:1", (1024, 1024)), ("21:9", (1024, 439)), ("9:16", (576, 1024))])
def test_client_chats(client: Any, ratio: str, size: tuple[int, int]) -> None:
    prompt = f"{BAND} (aspect ratio: {ratio}) Avoid: text"
    answer = client.chat.completions.create(
        model="gemini-3-pro-image-preview", messages=[{"role": "user", "content": prompt}]
    )
    assert size_of(picture_in(answer.choices[0].message.content)) == size
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0


def test_client_chats_with_references(client: Any) -> None:
    content = message(BAND, image_part(data_url(PNG)), image_part(data_url(JPEG, "image/jpeg")))
    answer = client.chat.completions.create(
        model="gemini-3.1-flash-image-preview", messages=[content], extra_body={"image_config": {"image_size": "2K"}}
    )
    assert size_of(picture_in(answer.choices[0].message.content)) == (2048, 2048)


def test_client_sees_the_models(client: Any) -> None:
    assert {"gpt-image-2", "dall-e-3", "gemini-3-pro-image-preview"} <= {model.id for model in client.models.list()}


def test_client_with_a_wrong_key(gateway: Gateway) -> None:
    client = openai.OpenAI(api_key="sk-wrong-0123456789", base_url=gateway.url, max_retries=0)
    with pytest.raises(openai.AuthenticationError) as caught:
        client.images.generate(model="gpt-image-2", prompt=BAND)
    assert caught.value.code == "invalid_api_key"
    assert "0123456" not in str(caught.value)


def picture_in(content: str) -> bytes:
    match = re.fullmatch(r"Here you go\n!\[image\]\(data:image/jpeg;base64,([^)]+)\)", content)
    assert match
    return base64.b64decode(match[1])


# --- Refusals ---


@table(
    "changes, param, code",
    {
        "no model": ({"model": None}, "model", "missing_required_parameter"),
        "model is a number": ({"model": 2}, "model", "invalid_type"),
        "unknown model": ({"model": "gpt-image-3"}, "model", "model_not_found"),
        "chat model": ({"model": "gemini-3-pro-image-preview"}, "model", "model_not_found"),
        "no prompt": ({"prompt": None}, "prompt", "missing_required_parameter"),
        "prompt is a list": ({"prompt": ["a"]}, "prompt", "invalid_type"),
        "blank prompt": ({"prompt": " \n"}, "prompt", "empty_string"),
        "long prompt": ({"prompt": "a" * 32_001}, "prompt", "string_above_max_length"),
        "n is a string": ({"n": "1"}, "n", "invalid_type"),
        "n is a boolean": ({"n": True}, "n", "invalid_type"),
        "n is a decimal": ({"n": 1.0}, "n", "invalid_type"),
        "n too small": ({"n": 0}, "n", "integer_below_min_value"),
        "n too large": ({"n": 11}, "n", "integer_above_max_value"),
        "size not in 16s": ({"size": "1000x1000"}, "size", "invalid_value"),
        "size too flat": ({"size": "3200x1024"}, "size", "invalid_value"),
        "size too small": ({"size": "512x512"}, "size", "invalid_value"),
        "size too large": ({"size": "3840x3840"}, "size", "invalid_value"),
        "size in words": ({"size": "square"}, "size", "invalid_value"),
        "gpt-image-1's sizes": ({"model": "gpt-image-1", "size": "1536x864"}, "size", "invalid_value"),
        "quality of another model": ({"quality": "hd"}, "quality", "invalid_value"),
        "stream": ({"stream": True}, "stream", "invalid_value"),
        "stream is a string": ({"stream": "false"}, "stream", "invalid_type"),
        "compression": ({"output_compression": 101}, "output_compression", "integer_above_max_value"),
        "response_format": ({"response_format": "b64_json"}, "response_format", "unknown_parameter"),
        "unknown field": ({"negative_prompt": "text"}, "negative_prompt", "unknown_parameter"),
        "field of another service": ({"aspect_ratio": "1:1"}, "aspect_ratio", "unknown_parameter"),
        "clear jpeg": ({"background": "transparent", "output_format": "jpeg"}, "background", "invalid_value"),
        "dall-e-3 makes one": ({"model": "dall-e-3", "n": 2}, "n", "integer_above_max_value"),
        "dall-e-3's sizes": ({"model": "dall-e-3", "size": "1536x1024"}, "size", "invalid_value"),
        "dall-e-3 without auto": ({"model": "dall-e-3", "size": "auto"}, "size", "invalid_value"),
    },
)
def test_generation_is_refused(gateway: Gateway, changes: dict[str, Any], param: str, code: str) -> None:
    answer = post(gateway, "/images/generations", json={**GENERATION, **changes})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404 if "found" in code else 400, param, code)
    assert error.keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "extra",
    [
        {"quality": "high", "background": "opaque", "moderation": "low", "user": "me"},
        {"output_format": "jpeg", "output_compression": 0, "stream": False, "partial_images": 0},
        {"size": "auto", "n": None},
        {"size": "3840x2160"},
    ],
)
def test_generation_takes_optional_fields(gateway: Gateway, extra: dict[str, Any]) -> None:
    assert post(gateway, "/images/generations", json={**GENERATION, **extra}).status_code == 200


ONE = ("image[]", ("a.png", PNG, "image/png"))
FORM = {key: str(value) for key, value in GENERATION.items()}
SEE_THROUGH = io.BytesIO()
Image.new("RGBA", (64, 48)).save(SEE_THROUGH, "PNG")
OTHER_SIZE = io.BytesIO()
Image.new("RGBA", (48, 64)).save(OTHER_SIZE, "PNG")


@table(
    "changes, files, param, code",
    {
        "no image": ({}, [], "image", "missing_required_parameter"),
        "dall-e-3": ({"model": "dall-e-3"}, [ONE], "model", "invalid_value"),
        "n in words": ({"n": "many"}, [ONE], "n", "invalid_type"),
        "n too large": ({"n": "11"}, [ONE], "n", "integer_above_max_value"),
        "unknown field": ({"strength": "1"}, [ONE], "strength", "unknown_parameter"),
        "image without filename": ({"image": "a.png"}, [ONE], "image", "invalid_type"),
        "unknown file": ({}, [ONE, ("photo", ONE[1])], "photo", "invalid_type"),
        "two under the singular name": ({}, [("image", ONE[1])] * 2, "image", "duplicate_parameter"),
        "17 images": ({}, [ONE] * 17, "image", "array_above_max_length"),
        "octets": ({}, [("image[]", ("a.png", PNG, "application/octet-stream"))], "image", "unsupported_file_mimetype"),
        "jpg": ({}, [("image[]", ("a.jpg", JPEG, "image/jpg"))], "image", "unsupported_file_mimetype"),
        "no type": ({}, [("image[]", ("a.png", PNG, None))], "image", "unsupported_file_mimetype"),
        "lying type": ({}, [("image[]", ("a.png", JPEG, "image/png"))], "image", "image_type_mismatch"),
        "lying name": ({}, [("image[]", ("a.jpg", PNG, "image/png"))], "image", "invalid_file_extension"),
        "bare name": ({}, [("image[]", ("a", PNG, "image/png"))], "image", "invalid_file_extension"),
        "truncated": ({}, [("image[]", ("a.png", PNG[:50], "image/png"))], "image", "invalid_image_file"),
        "empty": ({}, [("image[]", ("a.png", b"", "image/png"))], "image", "invalid_image_file"),
        "opaque mask": ({}, [ONE, ("mask", ONE[1])], "mask", "invalid_mask"),
        "mask of another size": (
            {},
            [ONE, ("mask", ("m.png", OTHER_SIZE.getvalue(), "image/png"))],
            "mask",
            "invalid_mask",
        ),
    },
)
def test_edit_is_refused(gateway: Gateway, changes: dict[str, str], files: list[Any], param: str, code: str) -> None:
    fields = [(name, (None, value)) for name, value in {**FORM, **changes}.items()]
    answer = post(gateway, "/images/edits", files=[*fields, *files])
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, param, code)


def test_edit_takes_every_format_and_a_mask(gateway: Gateway) -> None:
    files = [
        ("image[]", ("a.PNG", PNG, "image/png")),
        ("image[]", ("b.jpeg", JPEG, "image/jpeg")),
        ("image[]", ("c.webp", WEBP, "image/webp")),
        ("mask", ("mask.png", SEE_THROUGH.getvalue(), "image/png")),
    ]
    answer = post(gateway, "/images/edits", data={**FORM, "input_fidelity": "high"}, files=files)
    assert size_of(base64.b64decode(answer.json()["data"][0]["b64_json"])) == (1024, 1024)
    assert [part.filename for part in gateway.calls[0].files] == ["a.PNG", "b.jpeg", "c.webp", "mask.png"]


@table(
    "changes, param, code",
    {
        "image model": ({"model": "gpt-image-2"}, "model", "model_not_found"),
        "no messages": ({"messages": None}, "messages", "missing_required_parameter"),
        "messages is a string": ({"messages": BAND}, "messages", "invalid_type"),
        "empty messages": ({"messages": []}, "messages", "empty_string"),
        "message is a string": ({"messages": [BAND]}, "messages[0]", "invalid_type"),
        "empty": ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
        "role": ({"messages": [{"role": "me", "content": "a"}]}, "messages[0].role", "invalid_value"),
        "blank text": ({"messages": [message(" ")]}, "messages[0].content[0].text", "empty_string"),
        "part type": (
            {"messages": [message({"type": "image", "url": ""})]},
            "messages[0].content[0].type",
            "invalid_value",
        ),
        "part": (
            {"messages": [message(BAND, {"type": "text", "txt": ""})]},
            "messages[0].content[1].txt",
            "unknown_parameter",
        ),
        "size": ({"size": "1024x1024"}, "size", "unknown_parameter"),
        "aspect_ratio": ({"aspect_ratio": "1:1"}, "aspect_ratio", "unknown_parameter"),
        "stream": ({"stream": True}, "stream", "invalid_value"),
        "n is a string": ({"n": "1"}, "n", "invalid_type"),
        "image_size": ({"image_config": {"image_size": "8K"}}, "image_size", "invalid_value"),
        "10": ({"messages": [message(BAND, *[image_part(data_url(PNG))] * 10)]}, "messages", "array_above_max_length"),
    },
)
def test_chat_is_refused(gateway: Gateway, changes: dict[str, Any], param: str, code: str) -> None:
    body = {"model": "gemini-3-pro-image-preview", "messages": [message(BAND)], **changes}
    answer = post(gateway, "/chat/completions", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"], error["code"]) == (404 if "found" in code else 400, param, code)


@table(
    "url, code",
    {
        "png called jpeg": (data_url(PNG, "image/jpeg"), "image_type_mismatch"),
        "image/jpg": (data_url(JPEG, "image/jpg"), "unsupported_file_mimetype"),
        "truncated": (data_url(PNG[:50]), "invalid_image_file"),
        "not base64": (data_url(PNG)[:-3] + "*==", "invalid_base64"),
        "a link": ("https://example.com/a.png", "invalid_image_url"),
    },
)
def test_chat_refuses_images(gateway: Gateway, url: str, code: str) -> None:
    body = {"model": "gemini-3-pro-image-preview", "messages": [message(BAND, image_part(url))]}
    answer = post(gateway, "/chat/completions", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    assert answer.json()["error"]["param"] == "messages[0].content[1].image_url.url"


def test_chat_takes_optional_fields(gateway: Gateway) -> None:
    messages = [{"role": "system", "content": "Draw."}, message(BAND)]
    extra = {
        "temperature": 1,
        "max_tokens": 4096,
        "modalities": ["image", "text"],
        "n": 1,
        "stream": False,
        "user": "me",
    }
    body = {"model": "gemini-2.5-flash-image", "messages": messages, "image_config": {"aspect_ratio": "3:2"}, **extra}
    answer = post(gateway, "/chat/completions", json=body)
    assert size_of(picture_in(answer.json()["choices"][0]["message"]["content"])) == (1024, 683)


@table(
    "method, path, headers, body, status, code",
    {
        "no key": ("POST", "/images/generations", {"Authorization": ""}, "{}", 401, "invalid_api_key"),
        "basic": ("POST", "/images/generations", {"Authorization": "Basic a"}, "{}", 401, "invalid_api_key"),
        "models, wrong key": ("GET", "/models", {"Authorization": "Bearer a"}, "", 401, "invalid_api_key"),
        "v1 twice": ("POST", "/v1/images/generations", {}, "{}", 404, "unknown_url"),
        "GET": ("GET", "/images/generations", {}, "", 404, "unknown_url"),
        "no content type": ("POST", "/images/generations", {}, "{}", 400, "unsupported_content_type"),
        "broken JSON": ("POST", "/images/generations", {"Content-Type": "application/json"}, "{", 400, "invalid_json"),
        "list": ("POST", "/images/generations", {"Content-Type": "application/json"}, "[]", 400, "invalid_type"),
        "edit": ("POST", "/images/edits", {"Content-Type": "application/json"}, "{}", 400, "unsupported_content_type"),
        "end": (
            "POST",
            "/images/edits",
            {"Content-Type": "multipart/form-data; boundary=b"},
            "--b\r\n",
            400,
            "invalid_multipart",
        ),
        "media with a key": ("GET", "/../media/none.png", {}, "", 403, "access_denied"),
        "unknown media": ("GET", "/../media/none.png", {"Authorization": ""}, "", 404, "not_found"),
    },
)
def test_other_refusals(
    gateway: Gateway, method: str, path: str, headers: dict[str, str], body: str, status: int, code: str
) -> None:
    headers = {"Authorization": f"Bearer {gateway.key}", **headers}
    url = gateway.origin + path[3:] if path.startswith("/..") else gateway.url + path
    answer = requests.request(method, url, headers=headers, data=body, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


# --- Google's own route ---


def test_native_route(gateway: Gateway) -> None:
    parts = [{"text": BAND}, {"inline_data": {"mime_type": "image/png", "data": base64.b64encode(PNG).decode()}}]
    config = {"imageConfig": {"aspectRatio": "16:9"}, "thinkingConfig": {"includeThoughts": True}}
    body = {"contents": [{"role": "user", "parts": parts}], "generationConfig": config}
    url = f"{gateway.origin}/v1beta/models/gemini-3-pro-image-preview:generateContent"
    answer = requests.post(url, json=body, headers={"x-goog-api-key": gateway.key}, timeout=10).json()
    (candidate,) = answer["candidates"]
    draft, final = candidate["content"]["parts"]
    assert (draft["thought"], final.get("thought"), candidate["finishReason"]) == (True, None, "STOP")
    assert size_of(base64.b64decode(final["inlineData"]["data"])) == (1024, 576)
    assert answer["usageMetadata"]["totalTokenCount"] > 0


@table(
    "path, body, status",
    {
        "wrong key": ("models/gemini-3-pro-image-preview:generateContent?key=wrong", {}, 401),
        "unknown model": ("models/gemini-9:generateContent", {}, 404),
        "no contents": ("models/gemini-3-pro-image-preview:generateContent", {}, 400),
    },
)
def test_native_route_refuses(gateway: Gateway, path: str, body: dict[str, Any], status: int) -> None:
    path += "" if "?" in path else f"?key={gateway.key}"
    answer = requests.post(f"{gateway.origin}/{path}", json=body, timeout=10)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, status)


def test_drafts_come_before_the_result() -> None:
    with Gateway(drafts=2) as gateway:
        body = {"model": "gemini-3-pro-image-preview", "messages": [message(BAND)]}
        content = post(gateway, "/chat/completions", json=body).json()["choices"][0]["message"]["content"]
        assert content.count("![image](data:image/jpeg;base64,") == 3


# --- Scripted replies ---


def test_replies_are_taken_in_turn_then_all_is_normal(gateway: Gateway) -> None:
    gateway.answer(Reply(429, {"Retry-After": "2"}), lambda received: Reply(503, body=received.json["prompt"]))
    gateway.answer(Reply(418), path="/chat")
    answers = [post(gateway, "/images/generations", json=GENERATION) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [429, 503, 200]
    assert answers[0].headers["Retry-After"] == "2"
    assert answers[0].json()["error"].keys() == {"message", "type", "param", "code"}
    assert answers[1].text == BAND
    assert post(gateway, "/chat/completions", json={}).status_code == 418


def test_reply_for_always_lasts_until_reset(gateway: Gateway) -> None:
    gateway.answer_always(Reply(500))
    gateway.answer(Reply(502))
    statuses = [post(gateway, "/images/generations", json=GENERATION).status_code for _ in range(3)]
    gateway.reset()
    assert [*statuses, post(gateway, "/images/generations", json=GENERATION).status_code] == [502, 500, 500, 200]


def test_get_requests_are_scripted_by_path_only(gateway: Gateway) -> None:
    url = gateway.publish("a.png", PNG)
    gateway.answer(Reply(500))
    assert requests.get(url, timeout=10).content == PNG
    gateway.answer(Reply(404, body="gone"), path="/media/")
    assert requests.get(url, timeout=10).text == "gone"
    assert (len(gateway.requests), len(gateway.calls)) == (2, 0)


def test_callable_that_fails_is_a_500_and_kept() -> None:
    def fail(received: Received) -> Reply:
        raise AssertionError("as planned")

    with Gateway() as gateway:
        gateway.answer(fail)
        assert post(gateway, "/images/generations", json=GENERATION).status_code == 500
        assert [str(error) for error in gateway.errors] == ["as planned"]


@table(
    "reply",
    {
        "chunked": (Reply(chunked=True),),
        "gzip": (Reply(gzip=True),),
        "chunked gzip": (Reply(chunked=True, gzip=True),),
        "trickle": (Reply(trickle=(100_000, 0.001)),),
        "chunked trickle": (Reply(trickle=(100_000, 0.001), chunked=True, trickle_head=True),),
        "blanks": (Reply(blanks=3),),
        "chunked blanks": (Reply(blanks=3, chunked=True),),
        "no length": (Reply(headers={"Content-Length": None}),),
        "headers": (Reply(delay=0.01, headers={"Content-Type": "text/html", "X-Extra": "1"}),),
    },
)
def test_harmless_replies_carry_the_default_picture(gateway: Gateway, reply: Reply) -> None:
    gateway.answer(reply)
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {gateway.key}"
        for _ in range(2):  # the second one proves that the connection is in order
            answer = session.post(f"{gateway.url}/images/generations", json=GENERATION, timeout=10)
            assert size_of(base64.b64decode(answer.json()["data"][0]["b64_json"])) == (1024, 1024)


@table(
    "reply, pattern",
    {
        "drop before": (Reply(drop="before"), rb"RESET"),
        "drop headers": (Reply(drop="headers", body="hello"), rb"HTTP/1.1 200 OK\r\n(?!.*\r\n\r\n).*RESET"),
        "drop body": (Reply(drop="body", body="hello"), rb"HTTP/1.1 200 .*Content-Length: 5\r\n\r\nheRESET"),
        "truncate": (Reply(truncate=3, body="hello"), rb"HTTP/1.1 200 .*Content-Length: 5\r\n\r\nhel"),
        "cut chunks": (
            Reply(truncate=3, body="hello", chunked=True),
            rb".*Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
        ),
        "raw": (Reply(raw=b"SSH-2.0-x\r\n"), rb"SSH-2.0-x\r\n"),
        "redirect": (
            Reply(302, {"Location": "/x", "Connection": "close"}, body="<p>"),
            rb"HTTP/1.1 302 Found.*text/html.*Location: /x.*<p>",
        ),
        "no body": (Reply(524, {"Connection": "close"}, body=b""), rb"HTTP/1.1 524 .*Content-Length: 0.*"),
        "chunks": (
            Reply(chunked=True, body="hello", headers={"Connection": "close"}, trickle=(3, 0)),
            rb".*\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        ),
    },
)
def test_reply_on_the_wire(gateway: Gateway, reply: Reply, pattern: bytes) -> None:
    gateway.answer(reply)
    assert re.fullmatch(pattern, raw_exchange(gateway), re.DOTALL)


def test_gzip_on_the_wire(gateway: Gateway) -> None:
    gateway.answer(Reply(body={"a": 1}, gzip=True, headers={"Connection": "close"}))
    head, _, body = raw_exchange(gateway).partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert json.loads(gzip.decompress(body)) == {"a": 1}


@table(
    "reply, seen",
    {
        "accept": (Reply(hang="accept", body="hello"), b""),
        "headers": (Reply(hang="headers", body="hello"), b"HTTP/1.1 200 OK\r\n"),
        "body": (Reply(hang="body", body="hello"), b"\r\n\r\nhe"),
        "delay": (Reply(delay=60, body="hello", headers={"Connection": "close"}), b""),
    },
)
def test_hang_lasts_until_released(gateway: Gateway, reply: Reply, seen: bytes) -> None:
    gateway.answer(reply)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(raw_exchange, gateway)
        gateway.wait_for(1)
        assert not answer.done()
        gateway.release()
        assert seen in answer.result(timeout=5)
    assert bool(answer.result()) == bool(seen or reply.delay)


@pytest.mark.parametrize("chunked", [False, True])
def test_endless_body_ends_with_the_client(gateway: Gateway, chunked: bool) -> None:
    gateway.answer(Reply(body="hello", endless=True, chunked=chunked))
    with post(gateway, "/images/generations", json=GENERATION, stream=True) as answer:
        pieces = answer.iter_content(65_536)
        assert sum(len(next(pieces)) for _ in range(20)) > 200_000


def test_misspelt_reply_is_an_error() -> None:
    with pytest.raises(ValueError, match="no such place: header"):
        Reply(hang="header")


def test_leaving_is_prompt_and_silent(capfd: pytest.CaptureFixture[str]) -> None:
    with ThreadPoolExecutor(3) as pool:
        with Gateway() as gateway:
            gateway.answer(Reply(hang="accept"), Reply(hang="body", body="hello"), Reply(endless=True, trickle=(1, 60)))
            answers = [pool.submit(raw_exchange, gateway) for _ in range(3)]
            gateway.wait_for(3)
        assert all(answer.result(timeout=5) is not None for answer in answers)
    assert capfd.readouterr() == ("", "")


def test_wait_for_gives_up(gateway: Gateway) -> None:
    with pytest.raises(TimeoutError, match="0 of 1 requests"):
        gateway.wait_for(1, timeout=0.01)


def test_limit_and_peak() -> None:
    with Gateway(limit=2, delay=60) as gateway, ThreadPoolExecutor(3) as pool:
        held = [pool.submit(post, gateway, "/images/generations", json=GENERATION) for _ in range(2)]
        gateway.wait_for(2)
        refused = post(gateway, "/images/generations", json=GENERATION)
        gateway.release()
        assert [answer.result(timeout=10).status_code for answer in held] == [200, 200]
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert gateway.peak == 3


def test_limit_counts_no_answered_request() -> None:
    with Gateway(limit=1) as gateway, requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {gateway.key}"
        gateway.answer_always(Reply(body="ok"))
        statuses = {session.post(f"{gateway.url}/images/generations", timeout=10).status_code for _ in range(200)}
        assert (statuses, gateway.peak) == ({200}, 1)


def test_request_is_recorded_as_it_came(gateway: Gateway) -> None:
    post(gateway, "/images/generations?a=1", json=GENERATION, headers={"X-Extra": "1"})
    (received,) = gateway.requests
    assert (received.method, received.target, received.path) == (
        "POST",
        "/v1/images/generations?a=1",
        "/v1/images/generations",
    )
    assert received.headers.get("x-EXTRA") == "1"
    assert received.json == json.loads(received.body) == GENERATION


def test_gateway_serves_as_a_proxy(gateway: Gateway) -> None:
    answer = requests.post(
        "http://gateway.invalid/v1/images/generations",
        json=GENERATION,
        headers={"Authorization": f"Bearer {gateway.key}"},
        proxies={"http": gateway.origin},
        timeout=10,
    )
    assert answer.status_code == 200
    assert gateway.calls[0].target == "http://gateway.invalid/v1/images/generations"


# --- The picture ---


@pytest.mark.parametrize("size", [(1024, 1024), (1024, 439), (576, 1024), (64, 64), (1, 1)])
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_drawing(size: tuple[int, int], fmt: str) -> None:
    assert size_of(draw(BAND, size, [PNG, JPEG, WEBP], fmt=fmt)) == size


@table(
    "prompt",
    {
        "long Chinese": ("一瓶精华液放在大理石台面上，" * 300,),
        "one word": ("x" * 4000,),
        "what no font has": ("\0\t\ud800\u202e🍎 naïve",),
        "empty": ("",),
    },
)
@pytest.mark.parametrize("old", [False, True])
def test_drawing_copes(prompt: str, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if old:  # Pillow before 10.1
        bitmap = stand_in.ImageFont.load_default_imagefont()
        monkeypatch.setattr(stand_in, "face", lambda size, script=0: bitmap)
    assert size_of(draw(prompt, (512, 512), [PNG] * 16)) == (512, 512)


def test_drawing_tells_requests_apart() -> None:
    pictures = {draw(prompt, (256, 256), label=label) for prompt in "ab" for label in "cd"}
    assert len(pictures) == 4
    assert draw("a", (256, 256), label="c") in pictures


# --- The command line ---

COMMAND = [sys.executable, stand_in.__file__]
ASK = """
import os, urllib.request
request = urllib.request.Request(os.environ["OMNIMAAS_BASE_URL"] + "/models")
request.add_header("Authorization", "Bearer " + os.environ["OMNIMAAS_API_KEY"])
print(urllib.request.urlopen(request).status, sorted(name for name in os.environ if name.endswith(("_KEY", "_URL"))))
"""


def test_command_finds_the_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    for prefix in ("PRODUCT_SHOTS_IMAGEGEN", "RENDER", "CANVASFLOW_IMAGEGEN"):
        monkeypatch.setenv(f"{prefix}_API_KEY", "rival")
        monkeypatch.setenv(f"{prefix}_BASE_URL", "http://rival.invalid/v1")
    done = finished([*COMMAND, "--", sys.executable, "-c", ASK])
    names = [name for name in os.environ if name.endswith(("_KEY", "_URL")) and not re.match("PROD|REND|CANV", name)]
    assert done.stdout == f"200 {sorted({*names, 'OMNIMAAS_API_KEY', 'OMNIMAAS_BASE_URL'})}\n"
    assert (done.returncode, done.stderr) == (0, "")


@table(
    "command, code",
    {
        "its own": ([sys.executable, "-c", "raise SystemExit(7)"], 7),
        "killed": ([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], 137),
        "not found": (["no-such-command"], 127),
    },
)
def test_command_exit_code(command: list[str], code: int) -> None:
    done = finished([*COMMAND, "--", *command])
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (code == 127)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_command_gets_the_signal(signum: int) -> None:
    child = f"""
import signal
signal.signal({signum:d}, lambda *_: exit(5))
print("ready", flush=True)
signal.pause()
"""
    with started("--", sys.executable, "-c", child) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signum)
        assert process.communicate(timeout=10) == ("", "")
    assert process.returncode == 5


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_without_command_it_serves(signum: int) -> None:
    with started() as process:
        lines = [process.stdout.readline() for _ in range(2)]
        script = "".join(lines) + 'printf "%s\\n" "$OMNIMAAS_API_KEY" "$OMNIMAAS_BASE_URL"'
        key, url = finished(["sh", "-c", script]).stdout.split()
        models = requests.get(f"{url}/models", headers={"Authorization": f"Bearer {key}"}, timeout=10)
        process.send_signal(signum)
        out, err = process.communicate(timeout=10)
    assert (models.status_code, process.returncode, out) == (200, 0, "")
    assert "Traceback" not in err


def test_port_in_use(gateway: Gateway) -> None:
    port = gateway.origin.rpartition(":")[2]
    done = finished([*COMMAND, "--port", port])
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)


def test_without_pillow_it_says_what_to_do(tmp_path: Path) -> None:
    program = without_pillow(tmp_path)
    done = finished([*program, "--", "true"])
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr == "[gateway] Pillow is missing: run `bash scripts/setup.sh` first.\n"


def test_without_pillow_it_runs_in_the_skill_s_environment(tmp_path: Path) -> None:
    program = without_pillow(tmp_path)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    done = finished([*program, "--", "sh", "-c", "exit 9"])
    assert (done.returncode, done.stderr) == (9, "")


def without_pillow(folder: Path) -> list[str]:
    """The gateway in a folder of its own, under an interpreter that sees the standard library only."""
    copy = folder / "tests" / "gateway.py"
    copy.parent.mkdir()
    copy.write_bytes(Path(stand_in.__file__).read_bytes())
    return [sys.executable, "-I", "-S", str(copy)]


def finished(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def started(*argv: str) -> Any:
    return subprocess.Popen(
        [*COMMAND, *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
