"""A stand-in for an OpenAI-compatible image gateway, on loopback, with the standard library and Pillow alone.

It checks requests as strictly as the real services do and answers with a drawn picture that shows what it received:
the prompt, the shape asked for and the references. Nothing leaves the machine and nothing is billed.

As a program, around one command or in a terminal of its own:

    python3 tests/gateway.py -- python3 scripts/generate.py --prompt "a red apple on wood" --output apple.jpeg
    python3 tests/gateway.py --port 8080

In a test, with full control over what comes back:

    with Gateway() as gateway:
        gateway.answer(Reply(429, headers={"Retry-After": "1"}), Reply(drop="body"))  # then back to normal
        ...
        assert gateway.calls[0].json["n"] == 1

Sources: OpenAI's API description (August 2026) for fields, sizes and error bodies; Google's reference of
generateContent for the native route, which a proxy in between may prefer.
"""

from __future__ import annotations

import argparse
import base64
import colorsys
import contextlib
import email
import enum
import functools
import gzip
import http.client
import io
import json
import os
import random
import re
import shlex
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Union
from urllib.parse import parse_qs, urlsplit

try:
    from PIL import Image, ImageChops, ImageDraw, ImageFont, ImageOps
except ImportError:  # main() goes on with the skill's own environment
    if __name__ != "__main__":
        raise

if TYPE_CHECKING:
    from typing_extensions import Self

KEY = "sk-standin-0123456789abcdefghijklmnop"
VENV = Path(__file__).resolve().parent.parent / ".venv"
SMALLEST_BYTES = 10_001  # clients take anything smaller for a broken answer
BLANK_S = 0.05
AT_ONCE = (65_536, 0.0)  # (bytes, seconds between): the pace of an answer that nothing slows down


# --- Values ---


class Refusal(Exception):
    """The request is at fault; carries what the error body says."""

    def __init__(self, code: str | None, message: str, param: str | None = None, status: int = 400):
        super().__init__(message)
        self.code, self.message, self.param, self.status = code, message, param, status


class Part(NamedTuple):
    """One part of a multipart form; filename is None for plain fields."""

    name: str
    filename: str | None
    content_type: str | None
    data: bytes


@dataclass(frozen=True, eq=False)
class Received:
    """A request as it arrived."""

    method: str
    target: str  # as on the request line: a path, or a whole URL when the client takes this for a proxy
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
        return {part.name: part.data.decode("utf-8", "replace") for part in self.form if part.filename is None}

    @property
    def files(self) -> list[Part]:
        return [part for part in self.form if part.filename is not None]


@dataclass(frozen=True)
class Reply:
    """What to answer, and everything that can go wrong on the way."""

    status: int = 200
    headers: Mapping[str, str | None] = field(default_factory=dict)  # None takes a header away
    body: Any = None  # bytes, text or JSON material; None: the drawn picture, from status 300 up an error body
    delay: float = 0.0  # seconds before the first byte; release() cuts it short
    chunked: bool = False
    gzip: bool = False
    truncate: int | None = None  # so many bytes of the announced body, then close
    trickle: tuple[int, float] | None = None  # (bytes, seconds between): the body bit by bit
    trickle_head: bool = False  # … and the status line and headers too
    hang: str | None = None  # fall silent after "accept", amid "headers" or amid the "body"
    drop: str | None = None  # reset the connection "before" the answer, amid "headers" or amid the "body"
    endless: bool = False  # the body goes on until the client goes
    raw: bytes | None = None  # these bytes in place of any HTTP
    blanks: int = 0  # line feeds before the body, one every BLANK_S, as keep-alive

    def __post_init__(self) -> None:
        if self.hang not in (None, "accept", "headers", "body") or self.drop not in (None, "before", "headers", "body"):
            raise ValueError(f"no such place: {self.hang or self.drop}")


Answer = Union[Reply, Callable[["Received"], Reply]]


class Job(NamedTuple):
    """A request that passed every check."""

    model: str
    prompt: str
    size: tuple[int, int]
    references: Sequence[bytes]
    options: Mapping[str, Any]


def parts(headers: Message, body: bytes) -> Iterator[Part]:
    """The parts of a multipart/form-data body, byte for byte."""
    boundary = headers.get_boundary()
    if headers.get_content_type() != "multipart/form-data" or not boundary:
        raise Refusal("unsupported_content_type", "Expected a multipart/form-data body.")
    _, *sections, end = (b"\r\n" + body).split(b"\r\n--" + boundary.encode())
    if not end.startswith(b"--"):
        raise Refusal("invalid_multipart", "The multipart body does not end with its boundary.")
    for section in sections:
        head, _, data = section.partition(b"\r\n\r\n")
        message = email.message_from_bytes(head.lstrip())
        name = message.get_param("name", header="content-disposition")
        yield Part(str(name), message.get_filename(), message.get("Content-Type"), data)


# --- What the service accepts ---

KINDS = {bool: "a boolean", int: "an integer", float: "a decimal", str: "a string", list: "an array", dict: "an object"}


class Rule(NamedTuple):
    """What one field may be: a type, the least and most (a string's length counts), the values."""

    types: tuple[type, ...]
    least: float | None = None
    most: float | None = None
    values: Sequence[Any] | Callable[[str], bool] = ()

    def check(self, name: str, value: Any) -> None:
        if type(value) not in self.types:
            expected, got = KINDS[self.types[0]], KINDS.get(type(value), "null")
            raise Refusal("invalid_type", f"Invalid type for '{name}': expected {expected}, but got {got}.", name)
        if isinstance(value, str) and not value.strip():
            raise Refusal("empty_string", f"Invalid '{name}': empty string.", name)
        size, kind = (len(value), "string") if isinstance(value, str) else (value, "integer")
        if self.least is not None and size < self.least:
            raise Refusal(f"{kind}_below_min_value", f"Invalid '{name}': expected at least {self.least}.", name)
        if self.most is not None and size > self.most:
            limit = "max_length" if kind == "string" else "max_value"
            raise Refusal(f"{kind}_above_{limit}", f"Invalid '{name}': expected at most {self.most}.", name)
        if self.values and not (self.values(value) if callable(self.values) else value in self.values):
            supported = "" if callable(self.values) else f" Supported values are: {', '.join(map(repr, self.values))}."
            raise Refusal("invalid_value", f"Invalid value: '{value}'.{supported}", name)


def one_of(*values: Any) -> Rule:
    return Rule((type(values[0]),), values=values)


def text(limit: int) -> Rule:
    return Rule((str,), most=limit)


def whole(least: int, most: int) -> Rule:
    return Rule((int,), least, most)


def free_size(size: str) -> bool:
    """Any WxH in multiples of 16, from 1:3 to 3:1, within the pixel limits; or auto."""
    match = re.fullmatch(r"([1-9]\d{1,3})x([1-9]\d{1,3})", size)
    short, long = sorted(int(edge) for edge in match.groups()) if match else (1, 1)
    fits = short % 16 == long % 16 == 0 and long <= min(3 * short, 3840) and 655_360 <= short * long <= 8_294_400
    return fits or size == "auto"


STRING, ARRAY, OBJECT, NUMBER = Rule((str,)), Rule((list,)), Rule((dict,)), Rule((float, int))
IMAGE = {"model": text(256), "prompt": text(32_000), "n": whole(1, 10), "user": text(512)}
GPT_IMAGE = {
    **IMAGE,
    "size": one_of("auto", "1024x1024", "1536x1024", "1024x1536"),
    "quality": one_of("auto", "low", "medium", "high"),
    "background": one_of("auto", "transparent", "opaque"),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": whole(0, 100),
    "moderation": one_of("auto", "low"),
    "partial_images": whole(0, 3),
    "stream": one_of(False),
}
DALL_E = {
    **IMAGE,
    "prompt": text(4_000),
    "n": whole(1, 1),
    "size": one_of("1024x1024", "1792x1024", "1024x1792"),
    "quality": one_of("auto", "standard", "hd"),
    "style": one_of("vivid", "natural"),
    "response_format": one_of("url", "b64_json"),
}
EDIT = {"input_fidelity": one_of("high", "low")}  # on top of the model's own
CHAT = {
    **dict.fromkeys(("temperature", "top_p", "frequency_penalty", "presence_penalty"), NUMBER),
    **dict.fromkeys(("max_tokens", "max_completion_tokens", "seed"), whole(0, 2**31)),
    "model": text(256),
    "messages": ARRAY,
    "modalities": ARRAY,
    "image_config": OBJECT,
    "n": whole(1, 8),
    "stream": one_of(False),
    "user": text(512),
}


class Model(NamedTuple):
    rules: Mapping[str, Rule]
    references: int  # most of them in one request


IMAGE_MODELS = {
    "gpt-image-2": Model({**GPT_IMAGE, "size": Rule((str,), values=free_size)}, 16),
    "gpt-image-1": Model(GPT_IMAGE, 16),
    "dall-e-3": Model(DALL_E, 0),
}
CHAT_MODELS = {
    "gemini-3-pro-image-preview": Model(CHAT, 9),
    "gemini-3.1-flash-image-preview": Model(CHAT, 9),
    "gemini-2.5-flash-image": Model(CHAT, 9),
    "gemini-2.5-flash-image-preview": Model(CHAT, 9),
}
PICTURES = {  # MIME type: (first bytes, file extensions)
    "image/png": (b"\x89PNG\r\n\x1a\n", (".png",)),
    "image/jpeg": (b"\xff\xd8\xff", (".jpg", ".jpeg")),
    "image/webp": (b"RIFF", (".webp",)),
}
LONG_EDGE_PX = {"1K": 1024, "2K": 2048, "4K": 4096}


def missing(param: str) -> Refusal:
    return Refusal("missing_required_parameter", f"Missing required parameter: '{param}'.", param)


def check_keys(value: Any, param: str, needed: set[str], optional: set[str]) -> None:
    """An object with these keys and no others."""
    OBJECT.check(param or "body", value)
    path = f"{param}." if param else ""
    for key in value:
        if key not in needed | optional:
            raise Refusal("unknown_parameter", f"Unknown parameter: '{path}{key}'.", path + key)
    for key in sorted(needed):
        if value.get(key) is None:
            raise missing(path + key)


def check_fields(given: Mapping[str, Any], models: Mapping[str, Model], required: str, **more: Rule) -> Model:
    """Every rule on single fields; returns the model's row."""
    if given.get("model") is None:
        raise missing("model")
    STRING.check("model", given["model"])
    if given["model"] not in models:
        raise Refusal("model_not_found", f"The model '{given['model']}' does not exist.", "model", 404)
    rules = {**models[given["model"]].rules, **more}
    check_keys(given, "", {required}, set(rules))
    for key, value in given.items():
        if value is not None:  # null is the same as left out
            rules[key].check(key, value)
    if given.get("background") == "transparent" and given.get("output_format") == "jpeg":
        raise Refusal("invalid_value", "A jpeg cannot have a transparent background.", "background")
    return models[given["model"]]


def check_count(param: str, references: Sequence[Any], most: int) -> None:
    if len(references) > most:
        raise Refusal("array_above_max_length", f"At most {most} images, not {len(references)}.", param)


def check_picture(param: str, data: bytes, mime: Any, filename: str | None = None) -> Image.Image:
    """The picture, when it is one and what its MIME type and file name say it is."""
    if mime not in PICTURES:
        expected = ", ".join(PICTURES)
        raise Refusal("unsupported_file_mimetype", f"'{param}' is '{mime}'. Supported: {expected}.", param)
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except Exception:  # noqa: BLE001 (Pillow's plugins raise almost anything)
        raise Refusal("invalid_image_file", f"'{param}' is not a readable image.", param) from None
    magic, suffixes = PICTURES[mime]
    if not data.startswith(magic):
        raise Refusal("image_type_mismatch", f"'{param}' is declared {mime}, but is {image.format}.", param)
    if filename is not None and PurePath(filename).suffix.lower() not in suffixes:
        raise Refusal("invalid_file_extension", f"'{param}' is {mime}, but is called '{filename}'.", param)
    return image


def check_base64(param: str, encoded: Any, mime: Any) -> bytes:
    try:
        data = base64.b64decode(encoded, validate=True)
    except (TypeError, ValueError):
        raise Refusal("invalid_base64", f"'{param}' is not base64.", param) from None
    check_picture(param, data, mime)
    return data


# --- Drawing ---

LEADING = 1.32  # line height over type size
INK, FAINT, LINE = (255, 253, 247, 255), (255, 253, 247, 175), (255, 253, 247, 70)
FACES = (  # a run of letters, and the system's fonts for what Pillow's own lacks: all but ASCII
    (r"[\0-\x7f]+", ()),
    (r"[\x80-\u2e7f]+", ("DejaVuSans.ttf", "Arial.ttf", "arial.ttf", "LiberationSans-Regular.ttf")),
    (
        r"[^\0-\u2e7f]+",
        ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "DroidSansFallbackFull.ttf")
        + ("DroidSansFallback.ttf", "PingFang.ttc", "Hiragino Sans GB.ttc", "msyh.ttc"),
    ),
)
RUN = re.compile("|".join(f"({letters})" for letters, _ in FACES))
WORD = re.compile(r"\s+|[\u2e80-\U0010ffff]|[^\s\u2e80-\U0010ffff]+")  # where lines may break


@functools.lru_cache(maxsize=256)
def face(size: int, script: int = 0) -> Any:
    """A font for one of FACES. Pillow's own comes in a single size before 10.1."""
    for name in FACES[script][1]:
        try:
            return ImageFont.truetype(name, size)
        except (OSError, ImportError):
            continue
    try:
        return ImageFont.load_default(size)
    except (TypeError, ImportError):
        return ImageFont.load_default()


def runs(line: str, size: int) -> Iterator[tuple[str, Any]]:
    """The line in pieces of one font each, without what that font cannot be asked for."""
    for match in RUN.finditer(line):
        font = face(size, int(match.lastindex or 1) - 1)
        charset = "utf-8" if isinstance(font, ImageFont.FreeTypeFont) else "latin-1"
        yield match[0].encode(charset, "replace").decode(charset), font


def width_of(line: str, size: int) -> float:
    return sum(font.getlength(run) for run, font in runs(line, size))


def write(pen: ImageDraw.ImageDraw, x: float, y: float, line: str, size: int, fill: Any) -> None:
    """The line from x to the right, on the base line y."""
    for run, font in runs(line, size):
        pen.text((x, y), run, font=font, fill=fill, anchor="ls")
        x += font.getlength(run)


def wrapped(words: Sequence[tuple[str, float]], room: float) -> list[str]:
    """Lines no wider than room, from words that come with their widths."""
    lines, line, used = [], "", 0.0
    for word, width in words:
        if line and used + width > room:
            lines.append(line)
            line, used = "", 0.0
        while width > room and len(word) > 1:  # one word longer than a line
            cut = max(1, min(len(word) - 1, int(len(word) * room / width)))
            lines.append(word[:cut])
            word, width = word[cut:], width * (len(word) - cut) / len(word)
        if line or not word.isspace():
            line, used = line + word, used + width
    return [*lines, line]


def fitted(prompt: str, width: float, height: float, largest: int) -> tuple[list[str], int]:
    """The prompt in the largest type that fits: its lines and the size. What never fits is cut off."""
    tame = "".join(letter if letter.isprintable() else " " for letter in prompt)
    words = [(word, width_of(word, 64) / 64) for word in WORD.findall(tame)]
    size = largest
    while True:
        lines = wrapped([(word, ems * size) for word, ems in words], width)
        most = max(1, int(height / (size * LEADING)))
        if len(lines) <= most or size <= 10:
            return lines[:most], size
        size = max(10, int(size * 0.92))


def backdrop(size: tuple[int, int], seed: bytes) -> Image.Image:
    """A soft mesh of neighbouring hues, between teal and orange by way of blue, with a little grain."""
    dice = random.Random(seed)
    hue, mesh = 0.48 + 0.58 * dice.random(), Image.new("RGB", (3, 3))
    for spot in range(9):
        tint = colorsys.hsv_to_rgb(
            (hue + dice.uniform(-0.08, 0.08)) % 1, dice.uniform(0.4, 0.7), dice.uniform(0.25, 0.6)
        )
        mesh.putpixel((spot % 3, spot // 3), tuple(round(255 * channel) for channel in tint))
    noise = Image.frombytes("L", (256, 256), dice.getrandbits(8 * 65_536).to_bytes(65_536, "big"))
    noise = noise.point([125 + value * 7 // 256 for value in range(256)])
    grain = Image.new("L", size)
    for left in range(0, size[0], 256):
        for top in range(0, size[1], 256):
            grain.paste(noise, (left, top))
    return ImageChops.add(mesh.resize(size, Image.Resampling.BICUBIC), Image.merge("RGB", [grain] * 3), 1, -128)


def rounded(size: tuple[int, int], radius: float) -> Image.Image:
    """A mask with smooth round corners."""
    mask = Image.new("L", (size[0] * 2, size[1] * 2))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] * 2 - 1, size[1] * 2 - 1), radius * 2, fill=255)
    return mask.resize(size, Image.Resampling.BOX)


def lay_out(
    canvas: Image.Image, references: Sequence[bytes], left: float, base: float, width: float, height: float
) -> float:
    """The references side by side on the base line, as prints with a thin white edge; how high they came to be."""
    prints, gap, edge = [], height * 0.1, max(2, round(height * 0.025))
    for data in references:
        source = Image.open(io.BytesIO(data))
        source.draft("RGB", (int(2 * height), int(height)))
        image = ImageOps.exif_transpose(source).convert("RGBA")
        image.thumbnail((int(2 * height), int(height)))
        prints.append(image)
    room = width + gap - 2 * edge * len(prints)
    scale = max(0.05, min(1.0, room / sum(image.width + gap for image in prints)))
    highest = 0
    for image in prints:
        image.thumbnail((max(1, int(image.width * scale)), image.height))
        frame = Image.new("RGB", (image.width + 2 * edge, image.height + 2 * edge), INK[:3])
        frame.paste(image, (edge, edge), image)
        canvas.paste(frame, (round(left), round(base - frame.height)), rounded(frame.size, 2.5 * edge))
        left, highest = left + frame.width + gap * scale, max(highest, frame.height)
    return highest


def draw(
    prompt: str,
    size: tuple[int, int],
    references: Sequence[bytes] = (),
    label: str = "",
    fmt: str = "PNG",
    quality: int = 90,
    transparent: bool = False,
) -> bytes:
    """A card that shows what was asked for, as an encoded picture of more than 10,000 bytes."""
    width, height = size
    margin, small = min(size) * 0.07, max(9, round(min(size) * 0.024))
    canvas = backdrop(size, f"{prompt}\0{label}".encode("utf-8", "replace"))
    pen = ImageDraw.Draw(canvas, "RGBA")

    def note(words: str, y: float, right: bool = False) -> None:
        write(pen, width - margin - width_of(words, small) if right else margin, y, words, small, FAINT)

    top, bottom, foot = margin + small * 2.8, height - margin - small * 2.6, height - margin
    note("STAND-IN GATEWAY", margin + small * 0.8)
    note(label, margin + small * 0.8, right=True)
    pen.line((margin, top - small, width - margin, top - small), fill=LINE, width=max(1, min(size) // 700))
    note(f"{width} x {height}", foot)
    if references:
        note(f"{len(references)} reference{'s' * (len(references) > 1)}", foot, right=True)
        row = max(8, min(min(size) * 0.26, (bottom - top) * 0.4))
        bottom -= lay_out(canvas, references, margin, bottom, width - 2 * margin, row) + margin * 0.7
    lines, type_size = fitted(prompt, width - 2 * margin, bottom - top, max(12, round(min(size) * 0.085)))
    for number, line in enumerate(lines):
        y = (top + bottom) / 2 + type_size * (LEADING * (number - len(lines) / 2) + 1)
        write(pen, margin, y, line, type_size, INK)
    if transparent:
        canvas.putalpha(rounded(size, min(size) * 0.06))
    buffer = io.BytesIO()
    canvas.save(buffer, fmt, **({"compress_level": 1} if fmt == "PNG" else {"quality": quality, "method": 0}))
    return buffer.getvalue().ljust(SMALLEST_BYTES, b"\0")  # decoders stop at the end mark


# --- Answers ---


def usage(job: Job, pictures: int, received: str, made: str) -> dict[str, int]:
    """Tokens in and out, about as a real service counts them, under that service's names."""
    spent = len(job.prompt) // 4 + 1 + 258 * len(job.references)
    output = pictures * job.size[0] * job.size[1] // 256
    total = "totalTokenCount" if made.endswith("Count") else "total_tokens"
    return {received: spent, made: output, total: spent + output}


def give_images(job: Job, gateway: Gateway) -> Reply:
    options: dict[str, Any] = {"n": 1, "output_format": "png", "background": "opaque", "output_compression": 90}
    options.update((name, value) for name, value in job.options.items() if value is not None)
    fmt, count, data = options["output_format"], options["n"], []
    for number in range(1, count + 1):
        label = job.model + (f"   {number}/{count}" if count > 1 else "")
        see_through = options["background"] == "transparent"
        image = draw(*job[1:4], label, fmt.upper(), options["output_compression"], see_through)
        if job.model == "dall-e-3" and options.get("response_format") != "b64_json":
            url = gateway.publish(f"{uuid.uuid4().hex}.png", image)
            data.append({"url": url, "revised_prompt": job.prompt})
        else:
            data.append({"b64_json": base64.b64encode(image).decode()})
    answer: dict[str, Any] = {"created": int(time.time()), "data": data}
    if job.model != "dall-e-3":
        answer.update({"background": options["background"], "output_format": fmt, "size": "{}x{}".format(*job.size)})
        details = {"text_tokens": len(job.prompt) // 4 + 1, "image_tokens": 258 * len(job.references)}
        answer["usage"] = {**usage(job, count, "input_tokens", "output_tokens"), "input_tokens_details": details}
    return Reply(body=answer)


def with_drafts(job: Job, drafts: int) -> list[str]:
    """JPEGs in base64, of which the last is the result."""
    labels = [f"{job.model}   draft {number}" for number in range(1, drafts + 1)] + [job.model]
    return [base64.b64encode(draw(*job[1:4], label, "JPEG")).decode() for label in labels]


def give_chat(job: Job, gateway: Gateway) -> Reply:
    images = with_drafts(job, gateway.drafts)
    content = "\n".join(["Here you go", *(f"![image](data:image/jpeg;base64,{image})" for image in images)])
    message = {"role": "assistant", "content": content}
    answer = {
        "id": f"chatcmpl-{uuid.uuid4().hex}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": job.model,
        "choices": [
            {"index": i, "message": message, "finish_reason": "stop"} for i in range(job.options.get("n") or 1)
        ],
        "usage": usage(job, len(images), "prompt_tokens", "completion_tokens"),
    }
    return Reply(body=answer)


def give_native(job: Job, gateway: Gateway) -> Reply:
    thinking = (job.options.get("thinkingConfig") or {}).get("includeThoughts", False)
    images = with_drafts(job, gateway.drafts or int(thinking))
    inline: list[dict[str, Any]] = [{"inlineData": {"mimeType": "image/jpeg", "data": image}} for image in images]
    for draft in inline[:-1]:
        draft["thought"] = True
    answer = {
        "candidates": [{"content": {"role": "model", "parts": inline}, "finishReason": "STOP", "index": 0}],
        "usageMetadata": usage(job, len(images), "promptTokenCount", "candidatesTokenCount"),
        "modelVersion": job.model,
        "responseId": uuid.uuid4().hex,
    }
    return Reply(body=answer)


def openai_error(refusal: Refusal) -> dict[str, Any]:
    kind = "server_error" if refusal.status >= 500 else "invalid_request_error"
    return {"error": {"message": refusal.message, "type": kind, "param": refusal.param, "code": refusal.code}}


def google_error(refusal: Refusal) -> dict[str, Any]:
    status = {401: "UNAUTHENTICATED", 404: "NOT_FOUND"}.get(refusal.status, "INVALID_ARGUMENT")
    return {"error": {"code": refusal.status, "message": refusal.message, "status": status}}


# --- Requests ---


def json_body(received: Received) -> dict[str, Any]:
    if received.headers.get_content_type() != "application/json":
        raise Refusal("unsupported_content_type", "Expected an application/json body.")
    try:
        given = received.json
    except ValueError:
        raise Refusal("invalid_json", "We could not parse the JSON body of your request.") from None
    OBJECT.check("body", given)
    return given


def pixels(size: str | None) -> tuple[int, int]:
    width, height = ("1024x1024" if size in (None, "auto") else str(size)).split("x")
    return int(width), int(height)


def asked_shape(prompt: str, ratio: Any, edge: Any) -> tuple[int, int]:
    """From the fields, else from "(aspect ratio: X:Y)" in the prompt, else square: 16:9 -> (1024, 576)"""
    one_of(*LONG_EDGE_PX).check("image_size", edge or "1K")
    ratio = ratio or (re.findall(r"\(aspect ratio: (.+?)\)", prompt) or ["1:1"])[-1]
    match = re.fullmatch(r"([1-9]\d?):([1-9]\d?)", str(ratio))
    if not match:
        raise Refusal("invalid_value", f"Invalid value: '{ratio}'.", "aspect_ratio")
    scale = LONG_EDGE_PX[edge or "1K"] / max(int(match[1]), int(match[2]))
    return round(int(match[1]) * scale), round(int(match[2]) * scale)


def generation(received: Received, gateway: Gateway) -> Reply:
    given = json_body(received)
    check_fields(given, IMAGE_MODELS, "prompt")
    return give_images(Job(given["model"], given["prompt"], pixels(given.get("size")), (), given), gateway)


def form_value(name: str, value: str) -> Any:
    """A form carries text only: back to what JSON would have said."""
    numbers = ("n", "output_compression", "partial_images")
    return json.loads(value) if (name in numbers and value.isdecimal()) or value in ("true", "false") else value


def edit(received: Received, gateway: Gateway) -> Reply:
    names = [part.name for part in received.form]
    for name, filename, *_ in received.form:
        if names.count(name) > 1 and name != "image[]":
            raise Refusal("duplicate_parameter", f"Duplicate parameter: '{name}'. For a list, use '{name}[]'.", name)
        if (name in ("image", "image[]", "mask")) != (filename is not None):
            raise Refusal("invalid_type", f"Invalid type for '{name}': a file, or not a file.", name)
    given = {name: form_value(name, value) for name, value in received.fields.items()}
    model = check_fields(given, IMAGE_MODELS, "prompt", **EDIT)
    if not model.references:
        raise Refusal("invalid_value", f"The model '{given['model']}' does not edit images.", "model")
    images = [part for part in received.files if part.name != "mask"]
    if not images:
        raise missing("image")
    check_count("image", images, model.references)
    first, *_ = [check_picture("image", part.data, part.content_type, part.filename) for part in images]
    for part in received.files:
        if part.name == "mask":
            mask = check_picture("mask", part.data, part.content_type, part.filename)
            if part.content_type != "image/png" or "A" not in mask.getbands() or mask.size != first.size:
                raise Refusal("invalid_mask", "Expected a PNG with alpha, of the first image's size.", "mask")
    references, size = [part.data for part in images], pixels(given.get("size"))
    return give_images(Job(given["model"], given["prompt"], size, references, given), gateway)


def chat(received: Received, gateway: Gateway) -> Reply:
    given = json_body(received)
    model = check_fields(given, CHAT_MODELS, "messages")
    prompt, references = "", []
    for number, message in enumerate(given["messages"]):
        here = f"messages[{number}]"
        check_keys(message, here, {"role", "content"}, {"name"})
        one_of("user", "system", "developer", "assistant").check(f"{here}.role", message["role"])
        texts, images = content_of(f"{here}.content", message["content"])
        references += images
        prompt = "\n".join(texts) if message["role"] == "user" else prompt
    STRING.check("messages", prompt)
    check_count("messages", references, model.references)
    config = given.get("image_config") or {}
    size = asked_shape(prompt, config.get("aspect_ratio"), config.get("image_size"))
    return give_chat(Job(given["model"], prompt, size, references, given), gateway)


def content_of(param: str, content: Any) -> tuple[list[str], list[bytes]]:
    """The texts and the pictures of one message."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    ARRAY.check(param, parts)
    texts, images = [], []
    for number, part in enumerate(parts):
        here = f"{param}[{number}]"
        OBJECT.check(here, part)
        one_of("text", "image_url").check(f"{here}.type", part.get("type"))
        check_keys(part, here, {"type", part["type"]}, set())
        if part["type"] == "text":
            STRING.check(f"{here}.text", part["text"])
            texts.append(part["text"])
        else:
            check_keys(part["image_url"], f"{here}.image_url", {"url"}, {"detail"})
            match = re.fullmatch(r"data:([^;,]*);base64,(.*)", str(part["image_url"]["url"]), re.DOTALL)
            if not match:
                raise Refusal("invalid_image_url", "Expected a base64 data URL.", f"{here}.image_url.url")
            images.append(check_base64(f"{here}.image_url.url", match[2], match[1]))
    return texts, images


def native(received: Received, gateway: Gateway) -> Reply:
    """Google's own request: contents → parts → text or inlineData, in camel or snake case."""
    given, name = json_body(received), received.path.rpartition("/")[2].partition(":")[0]
    if name not in CHAT_MODELS:
        raise Refusal("model_not_found", f"models/{name} is not found.", "model", 404)
    ARRAY.check("contents", given.get("contents"))
    prompt, references = "", []
    for content in given["contents"]:
        check_keys(content, "contents", {"parts"}, {"role"})
        for part in content["parts"]:
            OBJECT.check("parts", part)
            prompt += part.get("text", "")
            inline = part.get("inlineData") or part.get("inline_data")
            if inline:
                mime = inline.get("mimeType") or inline.get("mime_type")
                references.append(check_base64("inlineData", inline.get("data"), mime))
    STRING.check("contents", prompt)
    options = given.get("generationConfig") or {}
    config = options.get("imageConfig") or {}
    size = asked_shape(prompt, config.get("aspectRatio"), config.get("imageSize"))
    return give_native(Job(name, prompt, size, references, options), gateway)


def models(received: Received, gateway: Gateway) -> Reply:
    names = [*IMAGE_MODELS, *CHAT_MODELS]
    rows = [{"id": name, "object": "model", "created": 1_754_006_400, "owned_by": "stand-in"} for name in names]
    return Reply(body={"object": "list", "data": rows})


def media(received: Received, gateway: Gateway) -> Reply:
    if received.headers.get("Authorization"):
        raise Refusal("access_denied", "A signed URL takes no Authorization header.", None, 403)
    data, kind = gateway.media.get(received.path[len("/media/") :], (None, ""))
    if data is None:
        raise Refusal("not_found", "There is no such picture.", None, 404)
    return Reply(headers={"Content-Type": kind}, body=data)


def bearer(received: Received) -> str | None:
    scheme, _, key = (received.headers.get("Authorization") or "").partition(" ")
    return key if scheme == "Bearer" else None


def google_key(received: Received) -> str | None:
    return received.headers.get("x-goog-api-key") or parse_qs(urlsplit(received.target).query).get("key", [None])[0]


class Route(NamedTuple):
    method: str
    path: str
    key: Callable[[Received], str | None] | None
    answer: Callable[[Received, Gateway], Reply]
    error: Callable[[Refusal], dict[str, Any]] = openai_error


ROUTES = (
    Route("POST", r"/v1/images/generations", bearer, generation),
    Route("POST", r"/v1/images/edits", bearer, edit),
    Route("POST", r"/v1/chat/completions", bearer, chat),
    Route("POST", r".*/models/[^/:]+:generateContent", google_key, native, google_error),
    Route("GET", r"/v1/models", bearer, models),
    Route("GET", r"/media/.+", None, media),
)


# --- The wire ---


class End(enum.Enum):
    KEEP = "keep the connection"
    CLOSE = "close it"
    RESET = "reset it"
    HANG = "say no more until released, then close it"


Step = Union[bytes, float, End]  # bytes to send, seconds to wait, how it ends


def payload(reply: Reply) -> tuple[bytes, str]:
    """The body's bytes and their MIME type."""
    if isinstance(reply.body, bytes):
        data, kind = reply.body, "application/octet-stream"
    elif isinstance(reply.body, str):
        data, kind = reply.body.encode(), f"text/{'html' if reply.body.startswith('<') else 'plain'}; charset=utf-8"
    else:
        data, kind = json.dumps(reply.body).encode(), "application/json"
    return (gzip.compress(data, 1) if reply.gzip else data), kind


def head_of(reply: Reply, kind: str, length: int) -> bytes:
    """Status line and headers; a body that tells its end in no other way closes the connection."""
    headers: dict[str, str | None] = {
        "content-type": kind,
        "x-request-id": f"req_{uuid.uuid4().hex}",
        "content-encoding": "gzip" if reply.gzip else None,
        "transfer-encoding": "chunked" if reply.chunked else None,
        "content-length": None if reply.chunked or reply.endless else str(length),
        **{name.lower(): value for name, value in reply.headers.items()},
    }
    if not headers["transfer-encoding"] and not headers["content-length"]:
        headers["connection"] = "close"
    lines = [f"HTTP/1.1 {reply.status} {http.client.responses.get(reply.status, 'Unknown')}"]
    lines += [f"{name.title()}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def paced(data: bytes, pace: tuple[int, float], frame: Callable[[bytes], bytes] = bytes) -> Iterator[Step]:
    size, pause = pace
    for start in range(0, len(data), size):
        yield frame(data[start : start + size])
        yield pause


def steps(reply: Reply) -> Iterator[Step]:
    """A reply as what to do on the socket, one after the other; the last one is an End."""
    fault = reply.hang or reply.drop
    end = End.HANG if reply.hang else End.RESET if reply.drop else End.CLOSE
    yield reply.delay
    if fault in ("accept", "before"):
        yield end
        return
    body, kind = payload(reply)
    head = reply.raw if reply.raw is not None else head_of(reply, kind, reply.blanks + len(body))
    pace, frame = reply.trickle or AT_ONCE, chunk if reply.chunked else bytes
    yield from paced(head[: len(head) // 2] if fault == "headers" else head, pace if reply.trickle_head else AT_ONCE)
    if fault == "headers" or reply.raw is not None:
        yield end
        return
    yield from paced(b"\n" * reply.blanks, (1, BLANK_S), frame)
    yield from paced(body[: len(body) // 2 if fault else reply.truncate], pace, frame)
    while reply.endless:
        yield from paced(b" " * AT_ONCE[0], pace, frame)
    if not fault and reply.truncate is None:
        yield b"0\r\n\r\n" if reply.chunked else b""
        end = End.CLOSE if b"connection: close" in head.lower() else End.KEEP
    yield end


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

    def perform(self, script: Iterator[Step], released: threading.Event, started: Callable[[], None]) -> None:
        for step in script:
            if isinstance(step, bytes):
                started()
                self.connection.sendall(step)
            elif not isinstance(step, End):
                if step:
                    released.wait(step)
            elif step is not End.KEEP:
                self.close_connection = True
                if step is End.HANG:
                    released.wait()
                elif step is End.RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    socket.close(self.connection.detach())

    def log_message(self, *_: Any) -> None:
        """Silent: Gateway.requests is the log."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def __init__(self, gateway: Gateway, port: int):
        self.gateway = gateway
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the name service
        self.server_port = self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if error and not isinstance(error, OSError):  # an OSError is a client that has left
            self.gateway.errors.append(error)

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


# --- The gateway ---


class Gateway:
    """A gateway on a loopback port, from entering the with block to leaving it.

    limit    most POSTs in work at once; any more are answered 429
    delay    seconds that each picture takes
    drafts   pictures before the final one, in chat and native answers
    """

    def __init__(self, key: str = KEY, limit: int | None = None, delay: float = 0.0, drafts: int = 0, port: int = 0):
        self.key, self.limit, self.delay, self.drafts = key, limit, delay, drafts
        self.requests: list[Received] = []
        self.errors: list[BaseException] = []  # what callable replies raised, and bugs in here
        self.media: dict[str, tuple[bytes, str]] = {}
        self.peak = 0  # most POSTs in work at once, those over the limit included
        self._working: set[int] = set()
        self._queue: list[tuple[str | None, Answer]] = []
        self._always: list[tuple[str | None, Answer]] = []
        self._changed = threading.Condition()
        self._released = threading.Event()
        self._server = Server(self, port)
        self.origin = f"http://127.0.0.1:{self._server.server_port}"
        self.url = f"{self.origin}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self._server.stop()

    @property
    def calls(self) -> list[Received]:
        """The POSTs among the requests."""
        return [received for received in self.requests if received.method == "POST"]

    def answer(self, *replies: Answer, path: str | None = None) -> None:
        """Each of the next requests with path in their path takes one of these; without a path, each POST."""
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
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.requests) >= count, timeout):
                raise TimeoutError(f"{len(self.requests)} of {count} requests arrived within {timeout} s")
            return list(self.requests)

    def publish(self, name: str, data: bytes, content_type: str = "image/png") -> str:
        """The URL at which these bytes are now served, to clients that bring no key."""
        self.media[name] = (data, content_type)
        return f"{self.origin}/media/{name}"

    def release(self) -> None:
        """End the hangs and delays of all requests that are here now."""
        with self._changed:
            released, self._released = self._released, threading.Event()
        released.set()

    def wait_until_idle(self, timeout: float = 10) -> None:
        """Block until no POST is in work, those of clients that are gone included."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._working, timeout):
                raise TimeoutError(f"{len(self._working)} requests are still in work after {timeout} s")

    def serve(self, received: Received, perform: Callable[..., None]) -> None:
        """Record one request and have its answer performed."""
        with self._changed:
            released = self._released
            if received.method == "POST":
                self._working.add(id(received))
                self.peak = max(self.peak, len(self._working))
            crowded = id(received) in self._working and self.limit is not None and len(self._working) > self.limit
            scripted = too_many if crowded else self._scripted(received)
            self.requests.append(received)
            self._changed.notify_all()
        try:
            # subtle: the work is over before the client can know, so that its next request is never one too many
            perform(steps(self._reply(received, scripted)), released, lambda: self._working.discard(id(received)))
        finally:
            with self._changed:
                self._working.discard(id(received))
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
            if reply.body is not None or reply.raw is not None or reply.hang == "accept" or reply.drop == "before":
                return reply
            if reply.status >= 300:
                reason = http.client.responses.get(reply.status, "A timeout occurred")
                return replace(reply, body=openai_error(Refusal(None, reason, None, reply.status)))
            default = self._default(received)
            status = reply.status if default.status == 200 else default.status
            return replace(reply, status=status, headers={**default.headers, **reply.headers}, body=default.body)
        except Exception as error:  # noqa: BLE001 (whatever a test's callable raises)
            self.errors.append(error)
            return Reply(500, body=openai_error(Refusal("stand_in_error", repr(error), None, 500)))

    def _default(self, received: Received) -> Reply:
        """What the real service would say."""
        routes = [r for r in ROUTES if r.method == received.method and re.fullmatch(r.path, received.path)]
        error = routes[0].error if routes else openai_error
        try:
            if not routes:
                raise Refusal("unknown_url", f"Invalid URL ({received.method} {received.path})", None, 404)
            key = routes[0].key(received) if routes[0].key else self.key
            if key != self.key:
                shown = f"{key[:7]}***{key[-4:]}" if key and len(key) > 16 else "***" if key else "none"
                raise Refusal("invalid_api_key", f"Incorrect API key provided: {shown}.", None, 401)
            reply = routes[0].answer(received, self)
            return replace(reply, delay=self.delay) if received.method == "POST" else reply
        except Refusal as refusal:
            return Reply(refusal.status, body=error(refusal))


def too_many(received: Received) -> Reply:
    refusal = Refusal("rate_limit_exceeded", "Rate limit reached: too many requests at once.", None, 429)
    return Reply(429, {"Retry-After": "1"}, openai_error(refusal))


# --- Command line ---


def settings(gateway: Gateway) -> dict[str, str]:
    """The two variables that lead to this gateway."""
    return {"OMNIMAAS_API_KEY": gateway.key, "OMNIMAAS_BASE_URL": gateway.url}


def environment(gateway: Gateway) -> dict[str, str]:
    """This process's, without any variable that would lead elsewhere."""
    rival = re.compile(r"(PRODUCT_SHOTS_IMAGEGEN|RENDER|CANVASFLOW_IMAGEGEN)_(API_KEY|BASE_URL)")
    return {**{name: value for name, value in os.environ.items() if not rival.fullmatch(name)}, **settings(gateway)}


def say(sentence: str) -> None:
    print(f"[gateway] {sentence}", file=sys.stderr, flush=True)


def terminal_tells_both() -> bool:
    """Whether Ctrl-C in the terminal reaches the command without help."""
    try:
        return os.name == "nt" or os.tcgetpgrp(2) == os.getpgrp()
    except OSError:
        return False


def run(command: Sequence[str], gateway: Gateway) -> int:
    """The command's exit code, as a shell would report it."""
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(signum: int, _: object = None) -> None:
        if not children:
            early.append(signum)
        elif signum != signal.SIGINT or not terminal_tells_both():
            children[0].send_signal(signum)

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, pass_on)
    try:
        children.append(subprocess.Popen(command, env=environment(gateway)))
    except OSError as error:
        say(f"cannot run {command[0]}: {error.strerror}.")
        return 127
    for number in early:
        pass_on(number)
    code = children[0].wait()
    return code if code >= 0 else 128 - code


def stay(gateway: Gateway) -> int:
    stopped = threading.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: stopped.set())
    for name, value in settings(gateway).items():
        print(f"export {name}={shlex.quote(value)}", flush=True)
    say("Type these two lines in another terminal; Ctrl-C here ends the gateway.")
    while not stopped.wait(0.5):  # subtle: on Windows, Ctrl-C comes through between two waits only
        pass
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
    os.execv(command[0], command)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    if "Image" not in globals():
        return start_over(argv)
    own, command = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(
        description="A stand-in image gateway on loopback.",
        usage="%(prog)s [--port N] [--delay S] [-- COMMAND ARGS...]",
    )
    parser.add_argument("--port", type=int, default=0, help="default: any free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds that each picture takes")
    options = parser.parse_args(own)
    try:
        gateway = Gateway(port=options.port, delay=options.delay)
    except (OSError, OverflowError) as error:
        say(f"cannot listen on port {options.port}: {error}.")
        return 2
    with gateway:
        return run(command, gateway) if command else stay(gateway)


if __name__ == "__main__":
    raise SystemExit(main())
