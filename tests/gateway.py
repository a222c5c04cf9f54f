"""A stand-in for an OpenAI-compatible image gateway, on loopback, with Pillow and nothing else.

It checks requests as strictly as the real services do and answers with a drawn picture that shows
what it received: the prompt, the shape and the references; streamed where the request says so.

    python3 tests/gateway.py -- python3 scripts/generate.py --prompt "a red apple" --output a.jpeg

    with Gateway() as gateway:  # in a test, with full control over what comes back
        gateway.answer(Reply(429, {"Retry-After": "1"}), Reply(drop="body"))  # then as usual
        gateway.answer(Reply(events=[draft, ": ping", final], fault_after=1, hang="body"))
        assert gateway.calls[0].json["n"] == 1

Sources: OpenAI's API description (August 2026) for fields, sizes, events and errors; Google's
reference of generateContent for the native route, which a proxy in between may prefer.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import email
import functools
import gzip
import http.client
import io
import json
import os
import re
import shlex
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import Any, Callable, NamedTuple, Union
from urllib.parse import urlsplit

try:
    from PIL import Image, ImageDraw, ImageFont, ImageOps
except ImportError:  # main() goes on with the skill's own environment
    if __name__ != "__main__":
        raise

KEY = "sk-standin-0123456789abcdefghijklmnop"
VENV = Path(__file__).resolve().parent.parent / ".venv"
SMALLEST_BYTES = 10_001  # clients take anything smaller for a broken answer
AT_ONCE = (65_536, 0.0)  # (bytes, seconds between): the pace of an answer that nothing slows down


# --- Values ---


@dataclass(eq=False)
class Refusal(Exception):
    """The request is at fault; this is what the error body says."""

    code: str | None
    message: str
    param: str | None = None
    status: int = 400


class Part(NamedTuple):
    name: str
    filename: str | None  # None for plain fields
    content_type: str | None
    data: bytes


@dataclass(frozen=True, eq=False)
class Received:
    """A request as it arrived."""

    method: str
    target: str  # as on the request line: a path, or a whole URL when the client sees a proxy here
    headers: Message  # get() ignores case
    body: bytes = field(repr=False)
    at: float  # time.monotonic()

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @functools.cached_property
    def json(self) -> Any:
        return json.loads(self.body)

    @functools.cached_property
    def form(self) -> list[Part]:
        return list(parts(self.headers, self.body))

    @property
    def fields(self) -> dict[str, str]:
        plain = [part for part in self.form if part.filename is None]
        return {part.name: part.data.decode("utf-8", "replace") for part in plain}

    @property
    def files(self) -> list[Part]:
        return [part for part in self.form if part.filename is not None]


@dataclass(frozen=True)
class Reply:
    """What to answer, and everything that can go wrong on the way."""

    status: int = 200
    headers: Mapping[str, str | None] = field(default_factory=dict)  # None takes a header away
    body: Any = None  # bytes, text or JSON material; None: the picture, from status 300 up an error
    events: Sequence[Any] | None = None  # in place of a body: bytes as they are, or see event()
    fault_after: int | None = None  # so many events, then hang or drop "body", or else close
    delay: float = 0.0  # seconds before the first byte; release() cuts it short
    chunked: bool | None = None  # None: events are, bodies are not
    gzip: bool = False
    blanks: int = 0  # line feeds before the body, 20 a second, as keep-alive
    truncate: int | None = None  # so many bytes of the body, or of the next event, then close
    trickle: tuple[int, float] | None = None  # (bytes, seconds between): the body bit by bit
    trickle_head: bool = False  # … and the status line and headers too
    hang: str | None = None  # fall silent after "accept", amid "headers" or amid the "body"
    drop: str | None = None  # reset the connection "before" the answer, amid "headers" or "body"
    endless: bool = False  # the body goes on until the client goes
    raw: bytes | None = None  # these bytes in place of any HTTP

    def __post_init__(self) -> None:
        if self.chunked is None:
            object.__setattr__(self, "chunked", self.events is not None)


CROWDED = Reply(429, {"Retry-After": "1"})
Answer = Union[Reply, Callable[["Received"], Reply]]


def parts(headers: Message, body: bytes) -> Iterator[Part]:
    """The parts of a multipart/form-data body, byte for byte."""
    boundary = headers.get_boundary()
    fine = headers.get_content_type() == "multipart/form-data" and boundary
    demand(fine, "unsupported_content_type", "Expected a multipart/form-data body.")
    _, *sections, end = (b"\r\n" + body).split(b"\r\n--" + str(boundary).encode())
    demand(end.startswith(b"--"), "invalid_multipart", "The body does not end with its boundary.")
    for section in sections:
        head, _, data = section.partition(b"\r\n\r\n")
        message = email.message_from_bytes(head.lstrip())
        name = message.get_param("name", header="content-disposition")
        yield Part(str(name), message.get_filename(), message.get("Content-Type"), data)


def event(data: Mapping[str, Any] | str, newline: str = "\n", named: bool = True) -> bytes:
    """One server-sent event, from JSON material or from its lines, such as ": ping"."""
    lines = [data] if isinstance(data, str) else [f"data: {json.dumps(data)}"]
    if named and not isinstance(data, str) and "type" in data:
        lines.insert(0, f"event: {data['type']}")
    return newline.join([*lines, "", ""]).encode()


# --- What the service accepts ---


Rule = Callable[[Any], bool]  # whether one field may have this value


def one_of(*values: Any) -> Rule:
    return lambda value: type(value) is type(values[0]) and value in values


def text(limit: int) -> Rule:
    return lambda value: isinstance(value, str) and 0 < len(value.strip()) <= len(value) <= limit


def whole(least: int, most: int) -> Rule:
    return lambda value: type(value) is int and least <= value <= most


def free_size(size: str) -> bool:
    """Any WxH in multiples of 16, from 1:3 to 3:1, within the pixel limits; or auto."""
    match = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", str(size))
    if not match:
        return size == "auto"
    short, long = sorted(int(edge) for edge in match.groups())
    in_steps = short % 16 == 0 and long % 16 == 0
    shapely = long <= 3 * short and long <= 3840
    return in_steps and shapely and 655_360 <= short * long <= 8_294_400


IMAGE = {"model": text(256), "prompt": text(32_000), "n": whole(1, 10), "user": text(512)}
GPT_IMAGE = {
    **IMAGE,
    "size": one_of("auto", "1024x1024", "1536x1024", "1024x1536"),
    "quality": one_of("auto", "low", "medium", "high"),
    "background": one_of("auto", "transparent", "opaque"),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": whole(0, 100),
    "partial_images": whole(0, 3),
    "stream": one_of(False, True),
}
DALL_E = {
    **IMAGE,
    "prompt": text(4_000),
    "n": whole(1, 1),
    "size": one_of("1024x1024", "1792x1024", "1024x1792"),
    "quality": one_of("auto", "standard", "hd"),
    "response_format": one_of("url", "b64_json"),
}
EDIT = {"input_fidelity": one_of("high", "low")}  # on top of the model's own
CHAT = {
    **dict.fromkeys(("messages", "modalities", "image_config", "stream_options"), bool),
    **dict.fromkeys(("model", "user"), text(512)),
    "n": whole(1, 1),
    "stream": one_of(False, True),
}
IMAGE_MODELS = {
    "gpt-image-2": {**GPT_IMAGE, "size": free_size},
    "gpt-image-1": GPT_IMAGE,
    "dall-e-3": DALL_E,
}
CHAT_MODELS = {
    "gemini-3-pro-image-preview": CHAT,
    "gemini-3-pro-image": CHAT,
    "gemini-3.1-flash-image-preview": CHAT,
    "gemini-3.1-flash-image": CHAT,
    "gemini-2.5-flash-image": CHAT,
    "gemini-2.5-flash-image-preview": CHAT,
}
PICTURES = {  # MIME type: (Pillow's name, file extensions)
    "image/png": ("PNG", (".png",)),
    "image/jpeg": ("JPEG", (".jpg", ".jpeg")),
    "image/webp": ("WEBP", (".webp",)),
}
STAGED = re.compile(r"\[([45]\d\d)(?: (\w+))?\]")  # in a prompt: answer it so
LONG_EDGE_PX = {"1K": 1024, "2K": 2048, "4K": 4096}


def demand(fine: object, code: str, message: str, param: Any = None, status: int = 400) -> None:
    if not fine:
        raise Refusal(code, message, param, status)


def missing(param: str) -> tuple[str, str, str]:
    return "missing_required_parameter", f"Missing required parameter: '{param}'.", param


def known(name: Any, models: Mapping[str, Any]) -> str:
    """The catalogue's name of a model: openai/GPT-Image-2 -> gpt-image-2"""
    demand(name, *missing("model"))
    plain = name.rpartition("/")[2].lower()
    demand(plain in models, "model_not_found", f"No model '{name}' exists.", "model", 404)
    return str(plain)


def check_fields(given: Mapping[str, Any], rules: Mapping[str, Rule], required: str) -> None:
    """Every rule on single fields, and those on two of them."""
    for key, value in given.items():
        demand(key in rules, "unknown_parameter", f"Unknown parameter: '{key}'.", key)
        fine = value is None or rules[key](value)  # null is the same as left out
        demand(fine, "invalid_value", f"Invalid value for '{key}': {str(value)[:60]!r}.", key)
    demand(given.get(required), *missing(required))
    clear = given.get("background") == "transparent" and given.get("output_format") == "jpeg"
    demand(not clear, "invalid_value", "A jpeg cannot be transparent.", "background")
    several = given.get("stream") and (given.get("n") or 1) > 1
    demand(not several, "invalid_value", "Streaming is only supported with n=1.", "n")


def check_picture(param: str, data: bytes, mime: Any, name: str | None = None) -> Image.Image:
    """The picture, when it is one and what its MIME type and file name say it is."""
    demand(mime in PICTURES, "unsupported_file_mimetype", f"'{param}' is '{mime}'.", param)
    fmt, suffixes = PICTURES[mime]
    named = name is None or PurePath(name).suffix.lower() in suffixes
    demand(named, "invalid_file_extension", f"A {mime} is called '{name}'.", param)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception as error:  # noqa: BLE001 (Pillow's plugins raise almost anything)
        raise Refusal("invalid_image_file", f"Not a readable image: {error}", param) from None
    message = f"'{param}' is declared {mime}, but is {image.format}."
    demand(image.format == fmt, "image_type_mismatch", message, param)
    return image


# --- Drawing ---

FONTS = (  # for what Pillow's own lacks: all but ASCII
    *("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf"),
    *("PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc", "DejaVuSans.ttf", "Arial.ttf"),
)


@functools.lru_cache(maxsize=256)
def typeface(size: int, names: tuple[str, ...] = ()) -> Any:
    """The first of these fonts that the system has, else Pillow's own."""
    for name in names:
        with contextlib.suppress(OSError, ImportError):
            return ImageFont.truetype(name, size)
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):  # before Pillow 10.1, or without FreeType: of a single size
        return ImageFont.load_default()


def write(pen: ImageDraw.ImageDraw, at: tuple[float, float], words: str, size: int) -> None:
    font = typeface(size, () if words.isascii() else FONTS)
    charset = "utf-8" if isinstance(font, ImageFont.FreeTypeFont) else "latin-1"
    pen.multiline_text(at, words.encode(charset, "replace").decode(charset), "white", font)


def draw(prompt, size, references=(), label="", fmt="PNG", quality=90, draft=False) -> bytes:
    """A card that shows what was asked for, as an encoded picture of more than 10,000 bytes."""
    (width, height), margin, row = size, min(size) // 14, max(1, min(size) // 4)
    hue = zlib.crc32(f"{prompt}\0{label}".encode("utf-8", "replace")) % 360
    backdrop = Image.linear_gradient("L").resize(size)
    canvas = ImageOps.colorize(backdrop, f"hsl({hue}, 45%, 20%)", f"hsl({hue}, 45%, 45%)")
    pen = ImageDraw.Draw(canvas)
    note = f"STAND-IN GATEWAY   {label}   {width} x {height}"
    write(pen, (margin, margin / 2), note, max(9, min(size) // 40))
    bottom = height - margin - (row if references else 0)
    for number, data in enumerate(references):  # each in an equal share of the width
        share = width / len(references)
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")
        image.thumbnail((max(1, int(share * 0.9)), row))
        canvas.paste(image, (int(share * (number + 0.05)), bottom), image)
    tame = "".join(letter if letter.isprintable() else " " for letter in prompt)
    height_px = max(10, min(size) // (14 if len(prompt) < 80 else 28))
    columns = width / height_px / (0.7 if prompt.isascii() else 1.2)
    lines = textwrap.wrap(tame, max(1, int(columns)))[: max(1, bottom // (2 * height_px))]
    write(pen, (margin, 2 * margin), "\n".join(lines), height_px)
    if draft:
        write(pen, (margin, height // 2), "DRAFT", max(12, width // 5))
    buffer = io.BytesIO()
    how = {"compress_level": 1} if fmt == "PNG" else {"quality": quality, "method": 0}
    canvas.save(buffer, fmt, **how)
    return buffer.getvalue().ljust(SMALLEST_BYTES, b"\0")  # decoders stop at the end mark


# --- Answers ---

LOOKS = {"background": "opaque", "output_format": "png", "quality": "auto"}
DEFAULTS = {**LOOKS, "n": 1, "output_compression": 90, "partial_images": 0}


class Job(NamedTuple):
    """A request that passed every check."""

    model: str
    prompt: str
    size: tuple[int, int]
    references: Sequence[bytes]
    options: Mapping[str, Any]

    def option(self, name: str) -> Any:
        value = self.options.get(name)
        return DEFAULTS.get(name) if value is None else value

    def picture(self, note: str = "", draft: bool = False) -> bytes:
        fmt, quality = self.option("output_format"), self.option("output_compression")
        return draw(*self[1:4], self.model + note, fmt.upper(), quality, draft)

    def encoded(self, note: str = "", draft: bool = False) -> str:
        return base64.b64encode(self.picture(note, draft)).decode()

    def with_drafts(self, count: int) -> list[str]:
        """Pictures in base64, of which the last is the result."""
        drafts = [self.encoded(f"   draft {number + 1}", True) for number in range(count)]
        return [*drafts, self.encoded()]

    def usage(self, made: int, *names: str) -> dict[str, Any]:
        """Tokens in, out and in all, about as a real service counts them, under its names."""
        spent = len(self.prompt) // 4 + 1 + 258 * len(self.references)
        return dict(zip(names, (spent, made, spent + made)))


def image_usage(job: Job, pictures: int, drafts: int = 0) -> dict[str, Any]:
    names = "input_tokens", "output_tokens", "total_tokens"
    made = pictures * job.size[0] * job.size[1] // 1000 + 100 * drafts  # as at medium quality
    usage, images = job.usage(made, *names), 258 * len(job.references)
    details = {"text_tokens": usage["input_tokens"] - images, "image_tokens": images}
    return {**usage, "input_tokens_details": details}  # without which LiteLLM fails


def looks(job: Job) -> dict[str, Any]:
    return {**{name: job.option(name) for name in LOOKS}, "size": "{}x{}".format(*job.size)}


def give_images(job: Job, gateway: Gateway, stream: str) -> Reply:
    if job.option("stream"):
        return Reply(events=image_events(job, stream))
    count, data = job.option("n"), []
    for number in range(1, count + 1):
        note = f"   {number}/{count}" if count > 1 else ""
        if job.model == "dall-e-3" and job.option("response_format") != "b64_json":
            url = gateway.publish(f"{uuid.uuid4().hex}.png", job.picture(note))
            data.append({"url": url, "revised_prompt": job.prompt})
        else:
            data.append({"b64_json": job.encoded(note)})
    answer: dict[str, Any] = {"created": int(time.time()), "data": data}
    if job.model != "dall-e-3":
        answer.update(looks(job), usage=image_usage(job, count))
    return Reply(body=answer)


def image_events(job: Job, stream: str) -> list[Any]:
    """OpenAI's: drafts, and then the picture."""
    *drafts, final = job.with_drafts(job.option("partial_images"))
    common = {"created_at": int(time.time()), **looks(job)}
    made: list[Any] = []
    for index, draft in enumerate(drafts):
        kind = {"type": f"{stream}.partial_image", "partial_image_index": index}
        made.append({**kind, "b64_json": draft, **common})
    usage = image_usage(job, 1, len(drafts))
    return [*made, {"type": f"{stream}.completed", "b64_json": final, **common, "usage": usage}]


def give_chat(job: Job, gateway: Gateway) -> Reply:
    images = [f"data:image/jpeg;base64,{image}" for image in job.with_drafts(gateway.drafts)]
    made = 1120 * len(images)  # what Gemini 3 Pro Image reports for one of up to 2K
    usage = job.usage(made, "prompt_tokens", "completion_tokens", "total_tokens")
    head = {"id": uuid.uuid4().hex, "created": int(time.time()), "model": job.model}
    if job.option("stream"):
        return Reply(events=chat_events(head, images, usage))
    content = "\n".join(["Here you go", *(f"![image]({image})" for image in images)])
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return Reply(body={"object": "chat.completion", **head, "choices": [choice], "usage": usage})


def chat_events(head: Mapping[str, Any], images: Sequence[str], usage: Any) -> list[Any]:
    """As OpenRouter has it: comments, a chunk for each picture, and the end."""

    def piece(delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": reason}
        return {"object": "chat.completion.chunk", **head, "choices": [choice]}

    chunks: list[Any] = [": OPENROUTER PROCESSING", piece({"content": ""})]
    for image in images:
        part = {"type": "image_url", "image_url": {"url": image}, "index": 0}
        chunks.append(piece({"content": "", "images": [part]}))
    return [*chunks, {**piece({}, "stop"), "usage": usage}, "data: [DONE]"]


def error_body(refusal: Refusal) -> dict[str, Any]:
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    blame = {"param": refusal.param, "code": refusal.code}
    return {"error": {"message": refusal.message, "type": kind, **blame}}


# --- Requests ---


def json_body(received: Received) -> dict[str, Any]:
    fine = received.headers.get_content_type() == "application/json"
    demand(fine, "unsupported_content_type", "Expected an application/json body.")
    return dict(received.json)


def pixels(size: str | None) -> tuple[int, int]:
    width, height = ("1024x1024" if size in (None, "auto") else str(size)).split("x")
    return int(width), int(height)


def asked_shape(prompt: str, ratio: Any, edge: Any, references: list[bytes]) -> tuple[int, int]:
    """That of the fields, of "(aspect ratio: X:Y)" in the prompt, or of the first reference."""
    width, height = 1.0, 1.0
    ratios = re.findall(r"\(aspect ratio: (.+?)\)", prompt)
    if ratio or ratios:
        width, height = (float(share) for share in (ratio or ratios[-1]).split(":"))
    elif references:
        width, height = Image.open(io.BytesIO(references[0])).size
    scale = LONG_EDGE_PX[edge or "1K"] / max(width, height)
    return round(width * scale), round(height * scale)


def generation(received: Received, gateway: Gateway) -> Reply:
    given = json_body(received)
    model = known(given.get("model"), IMAGE_MODELS)
    check_fields(given, IMAGE_MODELS[model], "prompt")
    job = Job(model, given["prompt"], pixels(given.get("size")), (), given)
    return give_images(job, gateway, "image_generation")


def form_value(name: str, value: str) -> Any:
    """A form carries text only: back to what JSON would have said."""
    numeric = name in ("n", "output_compression", "partial_images") and value.isdecimal()
    return json.loads(value) if numeric or value in ("true", "false") else value


def edit(received: Received, gateway: Gateway) -> Reply:
    images, masks = [], []
    for name, filename, mime, data in received.form:
        place = {"image": images, "image[]": images, "mask": masks}.get(name)
        right = (place is None) == (filename is None)
        demand(right, "invalid_type", f"'{name}' is a file, or should be one.", name)
        if place is not None:
            place.append(check_picture(name.rstrip("[]"), data, mime, filename))
    given = {name: form_value(name, value) for name, value in received.fields.items()}
    model = known(given.get("model"), IMAGE_MODELS)
    check_fields(given, {**IMAGE_MODELS[model], **EDIT}, "prompt")
    demand(model != "dall-e-3", "invalid_value", "dall-e-3 edits no images.", "model")
    demand(images, *missing("image"))
    demand(len(images) <= 16, "array_above_max_length", "At most 16 images.", "image")
    for mask in masks:
        fine = "A" in mask.getbands() and (mask.format, mask.size) == ("PNG", images[0].size)
        demand(fine, "invalid_mask", "Expected a PNG with alpha, as large as the image.", "mask")
    references = [part.data for part in received.files if part.name != "mask"]
    job = Job(model, given["prompt"], pixels(given.get("size")), references, given)
    return give_images(job, gateway, "image_edit")


def chat(received: Received, gateway: Gateway) -> Reply:
    given = json_body(received)
    model = known(given.get("model"), CHAT_MODELS)
    check_fields(given, CHAT_MODELS[model], "messages")
    prompt, references = "", []
    for message in given["messages"]:
        role = message["role"]
        demand(role in ("user", "system"), "invalid_value", f"Whose role is {role}?", "role")
        words, images = content_of(message["content"])
        references += images
        prompt = words if role == "user" else prompt
    demand(prompt.strip(), *missing("prompt"))
    demand(len(references) <= 9, "array_above_max_length", "At most 9 images.", "messages")
    config = given.get("image_config") or {}
    size = asked_shape(prompt, config.get("aspect_ratio"), config.get("image_size"), references)
    options = {"output_format": "jpeg", **given}
    return give_chat(Job(model, prompt, size, references, options), gateway)


def content_of(content: Any) -> tuple[str, list[bytes]]:
    texts, images = [], []
    for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
        fine = set(part) == {"type", part["type"]}
        demand(fine, "unknown_parameter", f"No part of a message: {list(part)}", "messages")
        if part["type"] == "text":
            demand(part["text"].strip(), "empty_string", "Invalid 'text': empty string.", "text")
            texts.append(part["text"])
        else:
            mime, _, encoded = part["image_url"]["url"].partition(";base64,")
            images.append(base64.b64decode(encoded, validate=True))
            check_picture("image_url", images[-1], mime[len("data:") :])
    return "\n".join(texts), images


def native(received: Received, gateway: Gateway) -> Reply:
    """Google's own: contents → parts → text or inlineData, in camel or snake case."""
    given = json_body(received)
    model = known(received.path.rpartition("/")[2].partition(":")[0], CHAT_MODELS)
    parts = [part for content in given["contents"] for part in content["parts"]]
    prompt = "".join(part.get("text", "") for part in parts)
    inline = [part.get("inlineData") or part.get("inline_data") for part in parts]
    references = [base64.b64decode(image["data"], validate=True) for image in inline if image]
    config = (given.get("generationConfig") or {}).get("imageConfig") or {}
    size = asked_shape(prompt, config.get("aspectRatio"), config.get("imageSize"), references)
    job = Job(model, prompt, size, references, {"output_format": "jpeg"})
    made: list[dict[str, Any]] = []
    for image in job.with_drafts(gateway.drafts):
        made.append({"thought": True, "inlineData": {"mimeType": "image/jpeg", "data": image}})
    del made[-1]["thought"]
    candidate = {"content": {"role": "model", "parts": made}, "finishReason": "STOP", "index": 0}
    names = "promptTokenCount", "candidatesTokenCount", "totalTokenCount"
    usage = job.usage(1120 * len(made), *names)
    return Reply(body={"candidates": [candidate], "usageMetadata": usage, "modelVersion": model})


def models(received: Received, gateway: Gateway) -> Reply:
    row = {"object": "model", "created": 1_754_006_400, "owned_by": "stand-in"}
    rows = [{"id": name, **row} for name in (*IMAGE_MODELS, *CHAT_MODELS)]
    return Reply(body={"object": "list", "data": rows})


def media(received: Received, gateway: Gateway) -> Reply:
    with_key = received.headers.get("Authorization")
    demand(not with_key, "access_denied", "A signed URL takes no Authorization.", None, 403)
    data, kind = gateway.media.get(received.path[len("/media/") :], (None, ""))
    demand(data is not None, "not_found", "There is no such picture.", None, 404)
    return Reply(headers={"Content-Type": kind}, body=data)


def check_key(received: Received, right: str) -> None:
    scheme, _, key = (received.headers.get("Authorization") or "").partition(" ")
    shown = f"{key[:7]}***{key[-4:]}" if len(key) > 16 else "***" if key else "none"
    message = f"Incorrect API key provided: {shown}."
    demand((scheme, key) == ("Bearer", right), "invalid_api_key", message, None, 401)


ROUTES = {
    r"POST /v1/images/generations": generation,
    r"POST /v1/images/edits": edit,
    r"POST /v1/chat/completions": chat,
    r"POST .*/models/[^/:]+:generateContent": native,
    r"GET /v1/models": models,
    r"GET /media/.+": media,
}


# --- The wire ---

# Bytes to send, seconds to wait, or the end: a connection to "keep", "close" or "reset", or a
# "hang" until released
Step = Union[bytes, float, str]


def encoded_events(reply: Reply) -> list[bytes]:
    return [item if isinstance(item, bytes) else event(item) for item in reply.events or ()]


def payload(reply: Reply) -> tuple[bytes, str]:
    """The body's bytes and their MIME type."""
    if reply.events is not None:
        return b"".join(encoded_events(reply)), "text/event-stream"
    if isinstance(reply.body, bytes):
        return reply.body, "application/octet-stream"
    if isinstance(reply.body, str):
        kind = "html" if reply.body.startswith("<") else "plain"
        return reply.body.encode(), f"text/{kind}; charset=utf-8"
    return json.dumps(reply.body).encode(), "application/json"


def head_of(reply: Reply, kind: str, length: int) -> bytes:
    """Status line and headers; a body that tells its end in no other way closes the connection."""
    headers: dict[str, str | None] = {
        "content-type": kind,
        "content-encoding": "gzip" if reply.gzip else None,
        "transfer-encoding": "chunked" if reply.chunked else None,
        "content-length": None if reply.chunked or reply.endless else str(length),
    }
    headers.update((name.lower(), value) for name, value in reply.headers.items())
    if not headers["transfer-encoding"] and not headers["content-length"]:
        headers["connection"] = "close"
    reason = http.client.responses.get(reply.status, "Unknown")
    lines = [f"HTTP/1.1 {reply.status} {reason}"]
    lines += [f"{name.title()}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def paced(data: bytes, pace: tuple[int, float], chunked: bool | None = False) -> Iterator[Step]:
    size, pause = pace
    for start in range(0, len(data), size):
        piece = data[start : start + size]
        yield b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece
        yield pause


def steps(reply: Reply) -> Iterator[Step]:
    """A reply as what to do, one after the other; the last step is how it ends."""
    fault = reply.hang or reply.drop
    end = "hang" if reply.hang else "reset" if reply.drop else "close"
    yield reply.delay
    if fault in ("accept", "before"):
        yield end
        return
    body, kind = payload(reply)
    body = gzip.compress(body, 1) if reply.gzip else body
    head = head_of(reply, kind, reply.blanks + len(body)) if reply.raw is None else reply.raw
    shown = head[: len(head) // 2] if fault == "headers" else head
    yield from paced(shown, reply.trickle if reply.trickle_head and reply.trickle else AT_ONCE)
    if fault == "headers" or reply.raw is not None:
        yield end
        return
    yield from body_steps(reply, body)
    if not fault and reply.truncate is reply.fault_after is None:
        yield b"0\r\n\r\n" if reply.chunked else b""
        end = "close" if b"connection: close" in head.lower() else "keep"
    yield end


def body_steps(reply: Reply, body: bytes) -> Iterator[Step]:
    pace, chunked = reply.trickle or AT_ONCE, reply.chunked
    yield from paced(b"\n" * reply.blanks, (1, 0.05), chunked)
    if reply.events is not None:
        pieces = encoded_events(reply)
        for piece in pieces[: reply.fault_after]:
            yield from paced(piece, pace, chunked)
        body = b"" if reply.truncate is None else b"".join(pieces[reply.fault_after or 0 :])
    elif reply.hang or reply.drop:
        body = body[: len(body) // 2]
    yield from paced(body[: reply.truncate], pace, chunked)
    while reply.endless:
        yield from paced(b" " * AT_ONCE[0], pace, chunked)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def handle_request(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) == length:  # else the client has left
            received = Received(self.command, self.path, self.headers, body, time.monotonic())
            self.server.gateway.serve(received, self.perform)

    do_GET = do_POST = do_PUT = do_DELETE = handle_request

    def perform(self, step: Step, released: threading.Event) -> None:
        if self.server.gateway.closed:
            raise ConnectionAbortedError
        if isinstance(step, bytes):
            self.connection.sendall(step)
        elif not isinstance(step, str):
            released.wait(step)
        elif step != "keep":
            self.close_connection = True
            if step == "hang":
                released.wait()
            elif step == "reset":
                at_once = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
                socket.close(self.connection.detach())

    def log_message(self, *_: Any) -> None: ...  # Gateway.requests is the log


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    gateway: Gateway

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the name service
        self.server_port = self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error and not isinstance(error, OSError):  # an OSError is a client that has left
            self.gateway.errors.append(error)


# --- The gateway ---


@dataclass(eq=False, repr=False)
class Gateway:
    """A gateway on a loopback port, from entering the with block to leaving it."""

    key: str = KEY
    limit: int | None = None  # most POSTs in work at once; any more are answered 429
    delay: float = 0.0  # seconds that each picture takes
    drafts: int = 0  # pictures before the final one, in chat and native answers
    requests: list[Received] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)  # requests that make no sense, bugs
    media: dict[str, tuple[bytes, str]] = field(default_factory=dict)
    peak: int = 0  # most POSTs in work at once, those over the limit included
    closed: bool = False

    def __post_init__(self) -> None:
        self._working: set[int] = set()
        self._queue: list[tuple[str | None, Answer]] = []
        self._always: list[tuple[str | None, Answer]] = []
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._server = Server(("127.0.0.1", 0), Handler)
        self._server.gateway = self
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.origin}/v1"

    def __enter__(self) -> Gateway:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True
        self._released.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def calls(self) -> list[Received]:
        """The POSTs among the requests."""
        return [received for received in self.requests if received.method == "POST"]

    def answer(self, *replies: Answer, path: str | None = None) -> None:
        """Each of the next requests with path in their path, or each POST, takes one of these."""
        with self._changed:
            self._queue += [(path, reply) for reply in replies]

    def answer_always(self, reply: Answer, path: str | None = None) -> None:
        """As answer(), but whenever nothing is queued, until reset()."""
        with self._changed:
            self._always.insert(0, (path, reply))

    def reset(self) -> None:
        """Back to default answers; what was received stays."""
        with self._changed:
            self._queue.clear()
            self._always.clear()

    def wait_for(self, count: int, timeout: float = 10) -> list[Received]:
        """Block until so many requests have arrived."""
        self._await(lambda: len(self.requests) >= count, timeout)
        return list(self.requests)

    def wait_until_idle(self, timeout: float = 10) -> None:
        """Block until no POST is in work, those of clients that are gone included."""
        self._await(lambda: not self._working, timeout)

    def _await(self, done: Callable[[], bool], timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout):
                counts = f"{len(self.requests)} requests, {len(self._working)} of them in work"
                raise TimeoutError(f"{timeout} s, {counts}")

    def publish(self, name: str, data: bytes, content_type: str = "image/png") -> str:
        """The URL at which these bytes are now served, to clients that bring no key."""
        self.media[name] = (data, content_type)
        return f"{self.origin}/media/{name}"

    def release(self) -> None:
        """End the hangs and delays of all requests that are here now."""
        with self._changed:
            released, self._released = self._released, threading.Event()
        released.set()

    def serve(self, received: Received, perform: Callable[[Step, threading.Event], None]) -> None:
        """Record one request and have its answer performed."""
        me = id(received)
        with self._changed:
            released = self._released
            if received.method == "POST":
                self._working.add(me)
            self.peak = max(self.peak, len(self._working))
            crowded = self.limit is not None and len(self._working) > self.limit
            scripted = CROWDED if crowded and me in self._working else self._scripted(received)
            self.requests.append(received)
            self._changed.notify_all()
        try:
            for step in steps(self._reply(received, scripted)):
                if isinstance(step, bytes):
                    # subtle: before the client can know, so that its next one is never too many
                    self._working.discard(me)
                perform(step, released)
        finally:
            with self._changed:
                self._working.discard(me)
                self._changed.notify_all()

    def _scripted(self, received: Received) -> Answer | None:
        def matches(path: str | None) -> bool:
            return received.method == "POST" if path is None else path in received.path

        for index, (path, answer) in enumerate(self._queue):
            if matches(path):
                del self._queue[index]
                return answer
        return next((answer for path, answer in self._always if matches(path)), None)

    def _reply(self, received: Received, scripted: Answer | None) -> Reply:
        """The scripted answer, with the default one where it leaves a gap."""
        try:
            reply = scripted(received) if callable(scripted) else scripted
            if reply is None:
                return self._default(received)
            early = reply.hang == "accept" or reply.drop == "before"
            if early or (reply.body, reply.events, reply.raw) != (None, None, None):
                return reply
            if reply.status >= 300:
                reason = http.client.responses.get(reply.status, "A timeout occurred")
                return replace(reply, body=error_body(Refusal(None, reason, None, reply.status)))
            made = self._default(received)
            status = reply.status if made.status == 200 else made.status
            headers = {**made.headers, **reply.headers}
            chunked = reply.chunked or made.chunked
            material = {"body": made.body, "events": made.events, "chunked": chunked}
            return replace(reply, status=status, headers=headers, **material)
        except Exception as error:  # noqa: BLE001 (whatever a test's callable raises)
            self.errors.append(error)
            return Reply(500, body=error_body(Refusal("stand_in", repr(error), None, 500)))

    def _default(self, received: Received) -> Reply:
        """What the real service would say."""
        line = f"{received.method} {received.path}"
        fits = (row for pattern, row in ROUTES.items() if re.fullmatch(pattern, line))
        try:
            answer = next(fits, None)
            demand(answer, "unknown_url", f"Invalid URL ({line})", None, 404)
            if answer in (generation, edit, chat, models):
                check_key(received, self.key)
            staged = STAGED.search(received.body.decode("latin-1"))
            if staged:
                raise Refusal(staged[2], "The prompt asks for this.", None, int(staged[1]))
            reply = answer(received, self)
            return replace(reply, delay=self.delay) if received.method == "POST" else reply
        except Refusal as refusal:
            return Reply(refusal.status, body=error_body(refusal))


# --- Command line ---


def settings(gateway: Gateway, ledger: str) -> dict[str, str]:
    """What leads here; the ledger is one of its own, so that trials do not count as money."""
    return {
        "OMNIMAAS_API_KEY": gateway.key,
        "OMNIMAAS_BASE_URL": gateway.url,
        "PRODUCT_SHOTS_IMAGEGEN_LEDGER": ledger,
    }


def say(sentence: str) -> None:
    print(f"[gateway] {sentence}", file=sys.stderr, flush=True)


def run(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The command's exit code, as a shell would report it."""
    signal.signal(signal.SIGINT, lambda *_: None)  # the terminal tells the command, too
    try:
        child = subprocess.Popen(command, env={**os.environ, **environment})
    except OSError as error:
        say(f"cannot run {command[0]}: {error.strerror}.")
        return 127
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    code = child.wait()
    return code if code >= 0 else 128 - code


def stay(environment: Mapping[str, str]) -> int:
    say("Copy these lines into another terminal; Ctrl-C here ends the gateway.")
    for name, value in environment.items():
        print(f"export {name}={shlex.quote(value)}", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            time.sleep(1)
    return 0


def start_over(argv: Sequence[str]) -> int:
    """Run again, with the interpreter that scripts/setup.sh has prepared."""
    python = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not python.exists() or Path(sys.prefix).resolve() == VENV.resolve():
        say("Pillow is missing: run `bash scripts/setup.sh` first.")
        return 3
    command = [str(python), str(Path(__file__).resolve()), *argv]
    if os.name == "nt":
        return subprocess.call(command)
    return os.execv(command[0], command)


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "Image" not in globals():
        return start_over(argv)
    border = argv.index("--") if "--" in argv else len(argv)
    parser = argparse.ArgumentParser(
        usage="gateway.py [--delay S] [-- COMMAND ARGS...]",
        description="A gateway that draws what it is asked for, in place of a real picture.",
        epilog="[402] or [400 moderation_blocked] in a prompt makes the gateway fail so. "
        "With -- COMMAND it runs that, and ends with it.",
    )
    parser.add_argument("--delay", type=float, default=0.0, help="seconds for each picture")
    delay = parser.parse_args(argv[:border]).delay
    with Gateway(delay=delay) as gateway, tempfile.TemporaryDirectory(prefix="stand-in-") as folder:
        environment = settings(gateway, str(Path(folder, "ledger.db")))
        command = argv[border + 1 :]
        return run(command, environment) if command else stay(environment)


if __name__ == "__main__":
    raise SystemExit(main())
