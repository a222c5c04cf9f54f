#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.28", "Pillow>=9.2"]
# ///
"""Turn a prompt, and optional reference pictures, into a picture file through an image gateway.

On the command line:

    generate.py --prompt "a red apple on wood" --output apple.jpeg
    generate.py --prompt "on a marble table" --reference-image shoe.png --model gpt-image-2

From Python:

    from generate import generate_image
    path = generate_image("a red apple on wood", aspect_ratio="16:9", output_path="apple.jpeg")

`generate` does the same and also returns what the picture cost. `generate_openai` and
`generate_gemini` return the picture's bytes and save nothing. Every failure is an ImageGenError.

A gateway is any server with OpenAI's API. It serves gpt-image models on /images/generations
and /images/edits, and for Gemini's Nano Banana models on /chat/completions: the model's name
decides. On the command line, the paths of saved pictures go to standard output, one per line, and
everything else goes to standard error. `generate.py --help` lists the flags and exit codes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import io
import itertools
import json
import logging
import math
import os
import re
import signal
import stat
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, NoReturn, Union

if TYPE_CHECKING:
    import sqlite3

__all__ = [
    "AuthError",
    "BudgetError",
    "ConfigError",
    "Generation",
    "ImageGenError",
    "InternalError",
    "Interrupted",
    "Picture",
    "QuotaError",
    "RefusedError",
    "RejectedError",
    "ResponseError",
    "SaveError",
    "UnavailableError",
    "UsageError",
    "generate",
    "generate_gemini",
    "generate_image",
    "generate_openai",
]

VERSION = "2.0"
DEFAULT_MODEL = "gemini-3-pro-image-preview"
DEFAULT_BASE_URL = "https://api.omnimaas.com/v1"
DEFAULT_SIZE = "1024x1024"

MAX_PROMPT_CHARS = 4000
MIN_FIT_PX, MAX_FIT_PX = 16, 8192
REFERENCE_EDGES_PX = (1024, 768, 512)  # at first, then one after each 524 or read timeout
REFERENCE_LIMIT_BYTES = 1_048_576
REFERENCE_QUALITIES = (88, 80, 70, 55, 40)  # below the first only while the file is too large
MIN_IMAGE_BYTES = 10_000  # the specification's self-check: a file must be larger than this
MAX_ANSWER_BYTES = 64 * 2**20  # gpt-image-2's largest PNG is about 33 MB of base64
MAX_ERROR_BYTES = 2**20  # of an answer whose status is an error
MAX_LINKED_REFERENCE_BYTES = 32_000_000
MAX_QUOTE_CHARS = 300  # of what a gateway says, in a message
MAX_DEPTH = 200  # of an answer's tree: what lies deeper is not looked at
MAX_LINKS = 12  # of one answer, so that a page full of dead links ends in time
RATIO_TOLERANCE = 0.05
MAX_FIT_CUT = 0.03  # of a picture that a model made for --fit

TIMEOUT_S = 300.0
CONNECT_TIMEOUT_S = 30.0
FETCH_TIMEOUT_S = 30.0  # a link gets at least this: fetching it is free, and a result is paid for
ATTEMPTS = 3  # of a call with references
RETRY_WAITS_S = (1.0, 4.0, 16.0)  # before the second attempt, the third, and every later one
MAX_RETRY_AFTER_S = 60.0
FETCH_TRIES = 3
MAX_REDIRECTS = 5
LEDGER_LOCK_S = 5.0
INTERRUPT_GRACE_S = 10.0  # for a paid picture to reach the disk after Ctrl-C
POLL_S = 0.1

PathLike = Union[str, "os.PathLike[str]"]
ReferenceLike = Union[PathLike, bytes]
Size = tuple[int, int]  # width and height in pixels
JsonObject = dict[str, Any]
Route = tuple[Any, ...]  # the keys and indices that lead to a place in a JSON tree

log = logging.getLogger("image-gen")
log.addHandler(logging.NullHandler())
STOP = threading.Event()  # set by an interrupt: whatever waits, or has not been sent, gives up
# The warnings of the call in this thread.
COLLECTED: ContextVar[list[str]] = ContextVar("COLLECTED")


def warn(text: str, *values: object) -> None:
    """Log a warning and note it for `Generation.warnings`."""
    log.warning(text, *values)
    with contextlib.suppress(LookupError):
        COLLECTED.get().append(text % values)


# --- Errors ---


class ImageGenError(Exception):
    """The base class of all failures, which says why there is no picture.

    message            what happened
    hint               what to do next
    kind, exit_code    which failure it is: see EXIT_CODES
    billed             was money spent: "yes", "no" or "maybe"
    possible_cost_cny  what may have been spent at most, in CNY; None when the price is unknown
    cost_cny           the part of that which was certainly spent
    retryable          may the same call succeed later?
    status             the HTTP status, if the gateway answered
    image_urls         links behind which a paid picture may still be found
    saved_at           where a picture, or a part of one, was kept instead
    draft_at           where the last draft of a broken stream was kept
    attempts           how many requests were sent
    retry_after_s      how long the gateway asks to wait, 0 when it does not say

    ImageGenError
     +-- InternalError     1      +-- UnavailableError   6
     +-- UsageError        2      +-- RefusedError       7
     +-- ConfigError       3      +-- RejectedError      7
     +-- AuthError         4      +-- SaveError          8
     +-- QuotaError        5      +-- ResponseError      9
     +-- Interrupted     130      +-- BudgetError       10
    """

    kind = ""
    exit_code = 1
    billed = "maybe"
    retryable = False
    hint = ""

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        billed: str = "",
        retryable: bool | None = None,
        status: int | None = None,
        image_urls: Sequence[str] = (),
        saved_at: str | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint or self.hint
        self.billed = billed or self.billed
        if retryable is not None:
            self.retryable = retryable
        self.status = status
        self.image_urls = list(image_urls)
        self.saved_at = saved_at
        self.draft_at: str | None = None
        self.attempts = 0
        self.retry_after_s = 0.0
        self.cost_cny: float | None = 0.0
        self.possible_cost_cny: float | None = 0.0
        # Between the parts of this program:
        self.bill = ""  # billed and the cost in words, once a call was sent
        self.usage: JsonObject = {}  # the tokens that the gateway reports
        self.timed_out = False  # the references get smaller before the next attempt
        self.partial = b""  # what arrived of a picture
        self.draft = b""  # the last draft of a stream that broke off

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    @property
    def image_url(self) -> str | None:
        """The first of `image_urls`."""
        return self.image_urls[0] if self.image_urls else None

    def as_json(self) -> dict[str, Any]:
        """What --json shows; links and paths only where there are any."""
        always = ("kind", "message", "hint", "status", "retryable", "billed", "possible_cost_cny")
        facts = {name: getattr(self, name) for name in always}
        for name in ("image_url", "image_urls", "saved_at", "draft_at"):
            place = getattr(self, name)
            if place:
                facts[name] = place
        return facts


class InternalError(ImageGenError):
    """a bug; report it with its traceback"""

    kind = "internal"


class UsageError(ImageGenError):
    """bad argument, unreadable reference, or unwritable output: nothing was sent"""

    kind, exit_code, billed = "usage", 2, "no"


class ConfigError(ImageGenError):
    """no key or URL, bad settings, or a missing package: nothing was sent"""

    kind, exit_code, billed = "config", 3, "no"


class AuthError(ImageGenError):
    """the gateway refuses the key (401, 403)"""

    kind, exit_code, billed = "auth", 4, "no"
    hint = "Check the key and the gateway that it belongs to: generate.py --check."


class QuotaError(ImageGenError):
    """rate limit, or no credit left (429, 402, or the answer says so)"""

    kind, exit_code, billed = "quota", 5, "no"
    hint = "Wait a minute, then try again with fewer calls at a time."


class UnavailableError(ImageGenError):
    """no connection, a timeout, a broken answer or a 5xx, after all attempts"""

    kind, exit_code, retryable = "unavailable", 6, True
    hint = "Before you try again, consider that this may have been billed."


class RefusedError(ImageGenError):
    """moderation refuses the prompt or a reference"""

    kind, exit_code, billed = "refused", 7, "no"
    hint = "Reword the prompt, or change the reference if there is one."


class RejectedError(ImageGenError):
    """the gateway rejects the request (other 4xx)"""

    kind, exit_code, billed = "rejected", 7, "no"
    hint = "Correct what the message names."


class SaveError(ImageGenError):
    """the image could not be stored where asked; it is kept elsewhere"""

    kind, exit_code, billed = "save", 8, "yes"


class ResponseError(ImageGenError):
    """an answer without a usable image (maybe billed if it is only words)"""

    kind, exit_code, billed = "response", 9, "yes"
    hint = "Read what the gateway said before you pay again."


class BudgetError(ImageGenError):
    """the day's budget would be exceeded: nothing was sent"""

    kind, exit_code, billed = "budget", 10, "no"


class Interrupted(ImageGenError):
    """Ctrl-C or SIGTERM; no half-written file is left"""

    kind, exit_code = "interrupted", 130
    hint = "No half-written file is left."


EXIT_CODES = tuple(
    (error.exit_code, error.kind, error.billed, error.__doc__)
    for error in ImageGenError.__subclasses__()
)


class PictureError(ValueError):
    """Bytes are not a usable picture; the hint is empty when converting them helps."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LinkError(Exception):
    """A link could not be fetched; `is_temporary` when the same link may work later."""

    def __init__(self, message: str, is_temporary: bool = True) -> None:
        super().__init__(message)
        self.is_temporary = is_temporary


class LedgerError(Exception):
    """The ledger cannot be used, for the reason given."""


def reason(error: BaseException) -> str:
    """An exception's own words, without the path that OSError appends."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def raise_if_interrupted() -> None:
    """Raise Interrupted before anything is sent, if an interrupt came."""
    if STOP.is_set():
        raise Interrupted("Interrupted.", "Nothing was sent.", billed="no")


# --- Values ---


class Model(NamedTuple):
    name: str  # in PATTERNS a regular expression
    family: str  # "openai" or "gemini"
    price_cny: float | None  # a picture
    token_prices_cny: tuple[float, float] | None  # 1,000 input tokens, 1,000 output tokens
    max_references: int
    max_n: int
    typical: str  # how long a picture takes
    sizes: tuple[str, ...]  # square, landscape, portrait, others; WxH stands for any that fits

    @property
    def is_catalogued(self) -> bool:
        """Whether it is known what a picture costs, and which sizes are refused."""
        return self.price_cny is not None

    @property
    def takes_mask(self) -> bool:
        return self.family == "openai" and self.max_references > 0


class Price(NamedTuple):
    """What a model's picture costs, in CNY; without token prices, tokens are not counted."""

    picture: float | None = None
    tokens: tuple[float, float] | None = None  # 1,000 input tokens, 1,000 output tokens


class Cost(NamedTuple):
    """Money spent, in CNY; None when the price is unknown."""

    certain: float | None = 0.0
    possible: float | None = 0.0  # at most, the certain part included


class Args(NamedTuple):
    """What a caller asks for; see `validate_args`."""

    prompt: str
    model: str | None = None
    family: str | None = None
    aspect_ratio: str | None = None
    use_case: str | None = None
    fit: str | None = None
    size: str | None = None
    negative_prompt: str | None = None
    n: int = 1
    reference_images: Sequence[ReferenceLike] = ()
    mask: PathLike | None = None
    params: Mapping[str, Any] = {}
    output: PathLike | None = None
    timeout: float = TIMEOUT_S  # seconds
    attempts: int = ATTEMPTS
    proxy: str | None = None
    stream: bool = False
    is_shaped: bool = False  # the caller chose a ratio, a size or pixels to fit
    labels: Mapping[str, str] = {}  # the caller's name for a field, where that differs

    def label(self, field: str) -> str:
        return self.labels.get(field, field)


class Target(NamedTuple):
    key: str
    key_source: str
    url: str
    url_source: str


class Reference(NamedTuple):
    """A picture ready to be sent; as text it is <image/jpeg, 123456 bytes>."""

    data: bytes
    mime: str
    size: Size  # of the data
    full_size: Size  # of the caller's picture, upright

    def __repr__(self) -> str:
        return f"<{self.mime}, {len(self.data)} bytes>"

    def data_url(self) -> str:
        text = base64.b64encode(self.data).decode("ascii")
        return f"data:{self.mime};base64,{text}"


class Upload(NamedTuple):
    """One file of a form."""

    field: str
    filename: str
    content: Reference


class Call(NamedTuple):
    """A request: JSON, or a form when there are uploads."""

    url: str
    fields: JsonObject
    uploads: tuple[Upload, ...] = ()


class Candidate(NamedTuple):
    """What may be the result: bytes or a link, and where in the answer it stood."""

    path: Route
    rank: int  # 0 is likely, higher is less so
    data: bytes = b""
    link: str = ""


class Picture(NamedTuple):
    """A picture that was made."""

    data: bytes  # encoded
    format: str  # Pillow's name
    size: Size
    link: str | None = None  # where it was fetched

    def __repr__(self) -> str:
        width, height = self.size
        return f"<{self.format}, {width}x{height}, {len(self.data)} bytes>"


class Place(NamedTuple):
    """Where a picture will be saved, and as what."""

    path: str
    is_default: bool  # the name is the program's own: it gets a number when it is taken
    format: str  # Pillow's name, "" for whatever arrives


def total_tokens(usage: Mapping[str, Any]) -> int | None:
    total = usage.get("total_tokens", usage.get("totalTokenCount"))
    is_sane = type(total) is int and 0 <= total < 10**12
    return total if is_sane else None


class Generation:
    """What one call made. It unpacks as `image, usage = generate_openai(…)`.

    images             every picture's encoded bytes; with `fit`, the fitted ones
    paths              where they were saved; empty for generate_openai and generate_gemini
    originals          paths of what the gateway sent, where `fit` changed it; None for the others
    usage              the tokens that the gateway reports, {} if none
    tokens             their total, None if the gateway does not report it
    cost_cny           what the call cost in CNY, all pictures together; None without a price
    possible_cost_cny  the most it may have cost, counting failed attempts and the tokens used
    elapsed_s          seconds, from preparing the references to the last saved byte
    attempts           how many requests were sent
    warnings           the warnings of the call, one sentence each
    pictures           the images with what is known of each: data, format and size in pixels
    model              the model that made them
    endpoint           which of the gateway's endpoints answered
    """

    def __init__(
        self,
        pictures: Sequence[Picture],
        usage: JsonObject,
        model: str,
        endpoint: str,
    ) -> None:
        self.pictures = list(pictures)
        self.model = model
        self.usage = usage
        self.endpoint = endpoint
        self.paths: list[Path] = []
        self.originals: list[Path | None] = []
        self.tokens: int | None = total_tokens(usage)
        self.cost_cny: float | None = None
        self.possible_cost_cny: float | None = None
        self.elapsed_s = 0.0
        self.attempts = 1
        self.warnings: list[str] = []

    @property
    def images(self) -> list[bytes]:
        return [picture.data for picture in self.pictures]

    def __repr__(self) -> str:
        what = [str(path) for path in self.paths] or f"{len(self.pictures)} pictures"
        return f"<Generation: {what}, cost_cny={self.cost_cny}, usage={self.usage}>"

    def __iter__(self) -> Iterator[Any]:
        return iter((self.images[0], self.usage))


# --- Tables ---

# Prices: the specification and its ecosystem's catalogue, November 2026.
# Sizes: OpenAI's description of its API, August 2026.
GPT_SIZES = ("1024x1024", "1536x1024", "1024x1536", "auto")
FREE_SIZES = (*GPT_SIZES, "WxH")
DALLE_SIZES = ("1024x1024", "1792x1024", "1024x1792")
CATALOGUE = (
    #     name                             family   ¥ each  ¥/1,000 tokens refs  n  typical   sizes
    Model("gemini-3-pro-image-preview",     "gemini", 1.00, (0.0128, 0.7668), 9, 1, "50-70 s", ()),
    Model("gemini-3-pro-image",             "gemini", 1.00, (0.0128, 0.7668), 9, 1, "50-70 s", ()),
    Model("gemini-3.1-flash-image-preview", "gemini", 0.20, (0.0032, 0.3834), 9, 1, "50-70 s", ()),
    Model("gemini-3.1-flash-image",         "gemini", 0.20, (0.0032, 0.3834), 9, 1, "50-70 s", ()),
    Model("gemini-2.5-flash-image",         "gemini", 0.15, (0.0019, 0.1917), 9, 1, "50-70 s", ()),
    Model("gemini-2.5-flash-image-preview", "gemini", 0.15, (0.0019, 0.1917), 9, 1, "50-70 s", ()),
    Model("gpt-image-2", "openai", 0.35, (0.0511, 0.1917), 16, 10, "60-300 s", FREE_SIZES),
    Model("gpt-image-1", "openai", 0.50, (0.0319, 0.2556), 16, 10, "60-300 s", GPT_SIZES),
    Model("dall-e-3",    "openai", 0.26, None,              0,  1, "60-300 s", DALLE_SIZES),
)  # fmt: skip
# Names outside the catalogue, in lower case and without a vendor such as google/: the first that
# matches. A later version has its kind's sizes and no price. A family's first row stands for it.
OTHERS = r"(imagen-|(doubao-)?seedream|qwen-image|flux|grok-imagine).*|.+-image"
PATTERNS = (
    #     names                        family  price tokens refs  n  typical    sizes
    Model(r"gpt-image-([2-9]|\d\d).*", "openai", None, None, 16, 10, "60-300 s", FREE_SIZES),
    Model(r"(chat)?gpt-image-.+",      "openai", None, None, 16, 10, "60-300 s", GPT_SIZES),
    Model(r"dall-e-.+",                "openai", None, None, 16, 10, "60-300 s", DALLE_SIZES),
    Model(r"gemini-.*image.*|.*nano-?banana.*", "gemini", None, None, 9, 1, "50-70 s", ()),
    Model(OTHERS,                      "openai", None, None, 16, 10, "60-300 s", GPT_SIZES),
)  # fmt: skip
OPENAI_SIZE_BY_RATIO = {
    "1:1": "1024x1024",
    "3:2": "1536x1024",
    "2:3": "1024x1536",
    "4:3": "1536x1152",
    "3:4": "1152x1536",
    "16:9": "1536x864",
    "9:16": "864x1536",
    "4:5": "1024x1280",
    "5:4": "1280x1024",
    "21:9": "1568x672",
    "1.91:1": "1712x896",
    "2.35:1": "1504x640",
}
MODEL_BY_USE_CASE = {
    "text-overlay": "gpt-image-2",
    "photorealistic": "gpt-image-2",
    "creative": "gemini-3-pro-image-preview",
    "image-to-image": "gemini-3-pro-image-preview",
    "cost-sensitive": "gemini-3.1-flash-image-preview",
    "general": "gemini-3-pro-image-preview",
}

# A key and a URL of one row belong together; rows, and then files, in order of precedence.
URL_VARIABLES = {
    "OMNIMAAS_API_KEY": "OMNIMAAS_BASE_URL",
    "PRODUCT_SHOTS_IMAGEGEN_API_KEY": "PRODUCT_SHOTS_IMAGEGEN_BASE_URL",
    "RENDER_API_KEY": "RENDER_BASE_URL",
    "CANVASFLOW_IMAGEGEN_API_KEY": "CANVASFLOW_IMAGEGEN_BASE_URL",
}
KEY_FILES = (
    "~/.product_shots_imagegen_api_key",
    "~/.product_shots_render_api_key",
    "~/.canvasflow_imagegen_api_key",
)
KEY_SOURCES = (*URL_VARIABLES, *KEY_FILES)
# http or https and a host, IPv6 in brackets; no user, query or fragment.
BASE_URL = r"(?ai)(?!.*[?#@])https?://(\[[\da-f:.]+\]|[\w.-]+)(:(?P<port>\d{1,5}))?(/[!-~]*)?"
LEDGER_VARIABLE = "PRODUCT_SHOTS_IMAGEGEN_LEDGER"
BUDGET_VARIABLE = "PRODUCT_SHOTS_IMAGEGEN_BUDGET_CNY"
PRICES_VARIABLE = "PRODUCT_SHOTS_IMAGEGEN_PRICES"

ENDPOINTS = {
    "edits": "/images/edits",
    "openai": "/images/generations",
    "gemini": "/chat/completions",
}
# Fields of a request that an argument sets, so that --param must not.
ARGUMENT_OF_PARAM = {
    "model": "model",
    "prompt": "prompt",
    "messages": "prompt",
    "n": "n",
    "size": "size",
    "image": "reference_images",
    "image[]": "reference_images",
    "mask": "mask",
    "aspect_ratio": "aspect_ratio",
    "negative_prompt": "negative_prompt",
    "stream": "stream",
}

# The first bytes of the formats that are decoded, by Pillow's names. There are no others: EPS, for
# one, would run a program. The second pair of TIFF's is BigTIFF.
SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n",
    "JPEG": rb"\xff\xd8\xff",
    "WEBP": rb"RIFF....WEBP",
    "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c-\x7c]\0\0\0",
    "TIFF": rb"II\*\0|MM\0\*|II\+\0|MM\0\+",
    "AVIF": rb"....ftyp(avi[fs]|m[is]f1.{4,40}avi[fs])",
    "HEIF": rb"....ftyp(he[iv][a-z]|mif1|msf1)",
}
ORIENTATION = 0x0112  # EXIF's tag
MENDED_BIG_TIFF = b"MM+\0"
LOSSLESS_FORMATS = ("PNG", "GIF", "BMP", "TIFF")
GZIP_START = b"\x1f\x8b"
SENT_FORMATS = ("PNG", "JPEG", "WEBP")
EXTENSIONS = {".png": "PNG", ".jpeg": "JPEG", ".jpg": "JPEG"}  # known without Pillow
SAVE_OPTIONS: dict[str, dict[str, Any]] = {  # of the formats that lose something
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
}
TRANSPARENT_FORMATS = ("PNG", "WEBP", "GIF", "TIFF", "AVIF", "JPEG2000", "TGA")


class Meaning(NamedTuple):
    """What an answer without a picture means, when its status and its code or sentence fit.

    A row without codes and phrases goes by the status alone.
    """

    error: type[ImageGenError]
    retryable: bool = False
    status: str = ""  # regular expression; "" fits any
    codes: str = ""  # stems, looked for in codes in snake case
    phrases: str = ""  # looked for in the sentence, unless the status is a 5xx
    hint: str = ""


TOP_UP = "Top up the account, then run the same command again."
SEE_MODELS = "See which image models the gateway has: generate.py --check."
# The first row that fits decides. The sentences are real ones, seen in gateways' sources, manuals
# and issue threads in November 2026.
MEANINGS = (
    # 429 RESOURCE_EXHAUSTED (Google): "Your prepayment credits are depleted."
    # 429 RESOURCE_EXHAUSTED (Google): "Your project has exceeded its monthly spending cap."
    # 412 PRECONDITION_FAILED (Fireworks): "… possibly due to reaching the monthly spending limit"
    # 403 (OpenRouter): "Key limit exceeded (total limit)."
    # 429 1102 (Kling): "Account balance not enough", and 1101: "Account in arrears"
    # 429 QuotaExceeded, TooManyRequests (Volcengine): "… has exhausted its free trial quota"
    # 429 SetLimitExceeded (Volcengine): "… has reached the set inference limit"
    # 429 (Cloudflare): "you have used up your daily free allocation of 10,000 neurons"
    # 403 BILLING_BALANCE_NOT_ENOUGH (Novita): "billing balance not enough"
    # 401 (LiteLLM): "Authentication Error, ExceededTokenBudget: Current spend for token: …"
    # 200 with base_resp 2056 (MiniMax): "usage limit exceeded, 5-hour usage limit reached"
    # 200 (jimeng-free-api): "积分不足"
    Meaning(
        QuotaError,
        codes=r"balance_not_enough|\bset_limit_exceeded",
        phrases=r"credits (are|have been) (exhausted|depleted)|spending (cap|limit)"
        r"|key limit exceeded|(account|billing) balance not enough|account in arrears"
        r"|free trial quota|daily free allocation|set inference limit|exceeded(token)?budget:"
        r"|hour usage limit|积分不足",
        hint=TOP_UP,
    ),
    # 429 RESOURCE_EXHAUSTED (Google): "You exceeded your current quota, please check your plan and
    #   billing details." Others say that of an empty account, but this one passes by itself.
    # 429 Throttling.RateQuota (DashScope): "Requests rate limit exceeded, please try again later."
    # 429 (SiliconFlow): "Request was rejected due to rate limiting. Details: TPM limit reached."
    # 200 with base_resp 1002 (MiniMax): "rate limit", and 2045: "rate growth limit"
    # 200 18 (Baidu): "Open api qps request limit reached"
    # 200 RequestLimitExceeded (Tencent): "请求的次数超过了频率限制。"
    Meaning(
        QuotaError,
        retryable=True,
        codes=r"resource_exhausted|rate_?limit|too_many_requests|throttling|concurrency_limit"
        r"|request_limit_exceeded",
        phrases=r"resource_exhausted|\brate( growth|-)? ?limit|request limit reached"
        r"|too many requests|请求过于频繁|频率限制",
    ),
    # 403 insufficient_user_quota (new-api): "用户额度不足, 剩余额度: ＄0.000000"
    # 403 pre_consume_token_quota_failed (new-api): "token quota is not enough"
    # 429 insufficient_quota (OpenAI): "You exceeded your current quota, please check your plan"
    # 400 billing_hard_limit_reached (OpenAI): "Billing hard limit has been reached"
    # 402 (OpenRouter): "Insufficient credits.", "This request requires more credits"
    # 403 30001 (SiliconFlow): "Sorry, your account balance is insufficient"
    # 403 (fal): "User is locked. Reason: Exhausted balance."
    # 403 AccountOverdueError (Volcengine): "… because your account has an overdue balance."
    # 400 Arrearage (DashScope): "… please make sure your account is in good standing."
    # 403 AllocationQuota.FreeTierOnly (DashScope): "The free tier of the model has been exhausted."
    # 400 budget_exceeded (LiteLLM): "Budget has been exceeded! Current cost: 26.075"
    # 429 (xAI): "Your team has used all available credits."
    # 403 NOT_ENOUGH_BALANCE (Novita): "not enough balance"
    # 400 not_enough_credits (Recraft): "You do not have enough credits"
    # 400 (Leonardo): "not enough api tokens"
    # 429 billing_not_active (OpenAI): "Your account is not active, please check your billing …"
    Meaning(
        QuotaError,
        codes=r"insufficient_(\w+_)?(quota|balance|credits?|funds)"
        r"|not_enough_(balance|credits?)|quota_(failed|not_enough|exceeded)"
        r"|exceeded_current_quota|billing_(hard_limit|not_active)"
        r"|overdue|arrear|free_tier_only|budget_exceeded"
        r"|entitlement_\w*limit_exceeded|no_credits?|credits?_(exhausted|depleted)"
        r"|payment_required",
        phrases=r"exceeded your current quota|quota is not enough|billing hard limit"
        r"|insufficient (\w+ )?(balance|credits?|quota|funds)|requires more credits"
        r"|balance is (insufficient|not enough|too low)|(exhausted|overdue) balance"
        r"|in good standing|free (tier|quota)[^.]*(exhausted|used up)|budget has been exceeded"
        r"|(any|all available) credits|out of credits?|credits? (exhausted|depleted)"
        r"|not (have )?enough (api )?(balance|credits?|tokens)"
        r"|(余额|额度)不足|额度已用尽|额度失败|欠费",
        hint=TOP_UP,
    ),
    # 403 (Azure): "Your resource has been temporarily blocked because we detected behavior that may
    #   violate our content policy." Every prompt fails then, so this is about the account.
    Meaning(AuthError, status="403", phrases=r"your resource has been (temporarily )?blocked"),
    # 400 moderation_blocked (OpenAI): "Your request was rejected by the safety system."
    # 400 content_policy_violation (OpenAI): "… rejected as a result of our safety system."
    # 400 content_filter (Azure): "… triggering Azure OpenAI's content management policy."
    # 400 (LiteLLM): "litellm.ContentPolicyViolationError: AzureException"
    # 500 sensitive_words_detected (new-api): "user sensitive words detected"
    # 403 (OpenRouter): "Your chosen model requires moderation and your input was flagged for …"
    # 400 InputTextSensitiveContentDetected (Volcengine): "… may contain sensitive information."
    # 400 DataInspectionFailed (DashScope): "Input data may contain inappropriate content."
    # 403 ModelArts.81011 (Huawei): "May contain senstive....."
    # 400 PUBLIC_ERROR_UNSAFE_GENERATION (Google): "Request contains an invalid argument."
    # 400 1301 (Zhipu): "系统检测到输入或生成内容可能包含不安全或敏感内容"
    # 200 with base_resp 1026 (MiniMax): "input new_sensitive"
    # 400 (xAI, which bills it): "Generated image rejected by content moderation."
    # 400 (Replicate, kie.ai): "The input or output was flagged as sensitive. (E005)"
    # 422 (Ideogram): "Prompt provided failed safety check due to the inclusion of prohibited …"
    # 400 (Imagen): "Your current safety filter threshold prohibited one or more words"
    # 400 3030 (Cloudflare): "AiError: Input prompt contains NSFW content"
    # 422 (Together): "Request blocked: NSFW content detected in prompt."
    # 400 (kie.ai): "Your prompt was caught by our AI moderator."
    # 400 (Fireworks): "Content moderation triggered: prompt"
    # 400 unexpected (Leonardo): "content moderation filter"
    # 400 (Kling): "The request triggers the risk control strategy of the platform."
    # 200 (Luma): "400: prompt not allowed because advanced moderation failed"
    # 400 (Volcengine): "… because the input image may contain real person."
    # 451 censorship_blocked (StepFun): "The content you provided or machine outputted is blocked."
    # 400 IPInfringementSuspect (DashScope): "… suspected of being involved in IP infringement."
    # 200 336104 (Baidu): "The content is inappropriate or sensitive"
    # 400 (SenseNova): "prompt content is risk"
    # 424 (Cloudflare): "Prompt blocked due to security configurations"
    # 400 (LiteLLM): "{'error': 'Violated guardrail policy', 'bedrock_guardrail_response': 'No'}"
    # 400 (Amazon): "All of the generated images have been blocked by our content filters."
    # 400 10013 (iFlytek): "输入内容审核不通过"
    Meaning(
        RefusedError,
        codes=r"moderation_(block|fail|flag|refus)|moderated|\b((in|out)put_)?moderation\b"
        r"|content_?(policy|filter(?!_(error|timeout)))|policy_violation|sensitive_(word|content)"
        r"|prompt_?block|block_?list|data_inspection_failed|risk_detection|unsafe|nsfw|safety\b"
        r"|safety_violation|prohibited_content|recitation|\bspii\b|censorship|ip_?infringement",
        phrases=r"(by|of) (the|our) safety system|content management policy|contentpolicyviolation"
        r"|sensitive words detected|(input|prompt|request|image|content) (was|is|has been) flagged"
        r"|flagged by a|output was flagged|material flagged|rejected by content moderation"
        r"|contains? (\w+ )?(sensi?tive|inappropriate|prohibited|unsafe|nsfw)|new_sensitive"
        r"|includes? (sensitive|inappropriate) content|content is (inappropriate|sensitive|risk)"
        r"|(prompt|request|image|input) (may |might )?violat|violates (our|the) \w+ polic"
        r"|violated (\w+ )*polic|(prompt|request|image|response) (was|has been) blocked"
        r"|(prompt|response) blocked|blocked (by our content filter|due to safety)"
        r"|provided failed safety check|safety filter threshold prohibited|nsfw content detected"
        r"|ai moderator|moderation (triggered|filter$)|advanced moderation failed"
        r"|risk control s(trategy|ystem)|contain real person"
        r"|(包含|含有|涉及)[^，。]{0,8}(敏感|违规|不安全)|敏感(词|内容|信息)|内容审核不通过"
        r"|内容违规",
    ),
    # 400 API_KEY_INVALID (Google): "API key not valid. Please pass a valid API key."
    # 401 invalid_api_key (OpenAI): "Incorrect API key provided: sk-abc***xyz."
    # 401 (LiteLLM): "Authentication Error, Invalid proxy server token passed."
    # 401 (new-api): "无效的令牌"
    # 400 no_db_connection (LiteLLM, of a key that is not its own): "No connected db."
    # 200 with base_resp 2049 (MiniMax): "invalid api key", and 1004: "login fail"
    # 200 110 (Baidu): "Access token invalid or no longer valid"
    # 200 AuthFailure.SignatureFailure (Tencent): "The provided credentials could not be validated."
    Meaning(
        AuthError,
        status="(?!429)",
        codes=r"api_?key_(invalid|missing|expired|not_valid)|(invalid|incorrect)_?api_?key"
        r"|invalid_token|authentication|unauthori[sz]ed|unauthenticated|no_db_connection"
        r"|\bauth_failure",
        phrases=r"(incorrect|invalid) (api[ -]?key|proxy server token)|api key not valid"
        r"|login fail|access token invalid"
        r"|无效的令牌|令牌状态不可用",
    ),
    # 503 model_not_found (new-api): "No available channel for model X under group default"
    # 404 model_not_found (OpenAI): "The model 'x' does not exist."
    # 400 (LiteLLM): "Invalid model name passed in model=x. Call `/v1/models` to view available …"
    Meaning(
        RejectedError,
        codes=r"model_?not_?(found|open)|(invalid|unknown)_model",
        phrases=r"invalid model name|model( \S+)? (does not|doesn't) exist",
        hint=SEE_MODELS,
    ),
    Meaning(AuthError, status="401|403"),
    Meaning(QuotaError, status="402", hint=TOP_UP),
    Meaning(QuotaError, retryable=True, status="429"),
    # 500 convert_request_failed, invalid_request, model_price_error (new-api): sent to nobody
    # 200 with base_resp 2013 (MiniMax): "invalid params"
    Meaning(
        RejectedError,
        status="[25]..",
        codes=r"invalid_(request|param|value|arg|size|image|type|url|input)|not_found|missing_"
        r"|unsupported|convert_request|bad_request|validation_|unknown_param|model_price_error",
        phrases=r"invalid params",
    ),
    # 103: an interim answer, which a proxy sent as the last one
    # 499 (nginx, Google's CANCELLED): somebody on the way hung up
    # 408 (LiteLLM): "APITimeoutError - Request timed out. model: azure/…"
    # 424 (Hugging Face, Bedrock): "Request failed during generation"
    Meaning(UnavailableError, retryable=True, status="1..|408|424|425|499|5.."),
    # data: {"error": {"code": 502, "message": "Provider returned error"}} (OpenRouter, in a stream)
    # event: error with the type server_error (OpenAI, in a stream)
    # 200 with base_resp 1001 (MiniMax): "request timeout", and 1033: "system error"
    Meaning(
        UnavailableError,
        retryable=True,
        status="2..",
        codes=r"(server|upstream|internal|provider|api)_?error|overloaded|unavailable|timeout"
        r"|deadline_exceeded|(do_request|get_channel)_failed|bad_response|empty_response",
        phrases=r"provider returned error|overloaded|request timeout"
        r"|(system|internal|unknown) error",
    ),
    Meaning(ResponseError, status="2.."),
    Meaning(RejectedError, status="404", hint="Check the base URL: most end in /v1."),
    Meaning(RejectedError, status="3..", hint="Set the base URL to where it redirects."),
    Meaning(RejectedError, status="413", hint="Send fewer references, or smaller ones."),
    Meaning(RejectedError),
)
REFUSAL = next(row for row in MEANINGS if row.error is RefusedError)
# Where a gateway's own words are: error.*, *.error.*, base_resp.* (MiniMax), output.* (DashScope),
# header.* (iFlytek), and what stands at the top.
GATEWAYS_PLACE = r"(?i)(?!content$)((\w+\.)?error|((base_resp|output|header)\.)?\w+$)"
# Unknown parameter: 'thinking_budget_tokens'. Invalid prompt 'a sign: out of credits'.
QUOTED = r"(?<!\w)'[\w.-]*'(?!\w)|(?<=\w )'[^']*'(?!\w)"
PAGE = r"(?i)\s*<(!|\?xml|(html|head|title|body|meta|script|center|h1)\b)"


class Fault(NamedTuple):
    """Why a server's answer ended early."""

    words: str
    is_temporary: bool = True  # the same request may get further another time

    def __str__(self) -> str:
        return self.words


TIME_IS_OVER = Fault("the time limit was reached")
TOO_LONG = Fault("it is too long", is_temporary=False)
BROKE_OFF = Fault("the connection was lost")
# Exceptions of the wire, by their names and texts, which may quote headers and are never shown.
WIRE_FAULTS = (
    (r"InvalidURL|LocationParse|IPv6 URL", Fault("its address is malformed", is_temporary=False)),
    (r"resolv|getaddrinfo|name or service|nodename", Fault("its name cannot be resolved")),
    (
        r"CA certificate bundle",
        Fault(
            "the CA bundle that REQUESTS_CA_BUNDLE or SSL_CERT_FILE names cannot be read",
            is_temporary=False,
        ),
    ),
    (r"EOF occurred|UNEXPECTED_EOF|SSLZeroReturn", BROKE_OFF),
    (
        r"certificate|SSL",
        Fault(
            "TLS failed: the server does not use TLS, or its certificate is not trusted",
            is_temporary=False,
        ),
    ),
    (r"SOCKS", Fault("a SOCKS proxy needs the package PySocks", is_temporary=False)),
    (r"proxy", Fault("the proxy cannot be reached")),
    (r"timed? ?out", TIME_IS_OVER),
    (r"decompress", Fault("its compression is broken")),
    (r"refused", Fault("connection refused")),
    (r"unreachable|no route", Fault("there is no route to it")),
    (r"reset|broken pipe|closed|incomplete|disconnected|remote end", BROKE_OFF),
)

# The kinds of a stream's events: image_generation.partial_image (OpenAI), image.generation.chunk
# (chatgpt2api), image_generation.partial_succeeded (Volcengine: a finished picture)
DRAFT_EVENT = r"partial_image$|image.*\.chunk$"
FINAL_EVENT = r"(completed|partial_succeeded)$"
ERROR_EVENT = r"(^|[._])(error|failed)$"

# Where in an answer a picture stands, by the names of the keys on the way to it.
# rank 1: a draft or a smaller one: thumbnail_url (Replicate's relatives), reasoning_details
# (OpenRouter), partial_image_b64 (OpenAI's Responses)
DRAFT_KEYS = r"(?i)thumb|preview|draft|partial|thought|thinking|reasoning"
# rank 2: what was sent, or whose it is, or no picture: input_image (Replicate), param (kie.ai),
# meta.init_image (ModelsLab), prompt.image (ComfyUI), user.avatar, status_url (fal), video_url
FOREIGN_KEYS = (
    r"(?i:avatar|emoji|icon|logo|qr_?code)"
    r"|(?<![A-Za-z])(?i:author|user|profile|input|init|params?|parameters|request|prompt|mask|help"
    r"|support|docs?|homepage|website|terms|policy|policies|callback|webhook|citations?"
    r"|annotations?|error|grounding|status|fetch|stream|video|audio)(?![a-z])"
)
# urls.cancel (Replicate), delete_url (imgbb): to open such a link does something
ACTING_KEYS = r"(?i)(^|\.)(delete|cancel)(_?(ur[li]|link))?$"
# Where the API itself puts the result, whatever else a gateway adds: data[].url, a chat's content,
# and Google's parts
STANDARD_PLACE = (
    r"(data\.)?(url|b64_json)|(choices\.(message|delta)\.)?content(\..*)?"
    r"|choices\.(message|delta)\.images(\..*)?|candidates\.content\.parts\.inline_?[Dd]ata\.data"
)
LINK_KEYS = r"(?i)ur[li]|link|href|src|path|image|file|output|result"
BASE64 = r"[A-Za-z0-9+/_%-]{56}[A-Za-z0-9+/_%\r\n-]*={0,2}"
# ![image](https://…) (new-api), <img src="…">, and any other address
SHOWN_LINK = (
    r"(?i)!\[[^][]*\]\(\s*<?((?:\([^\s()]*\)|[^\s\"'<>()])+)"
    r"|<img\b[^<>]*?\bsrc=[\"']?([^\s\"'<>]+)"
)
OTHER_SCHEME = r"(?i)(?!https?:)[a-z][\w+.-]*:"  # data:, file:, javascript:
BARE_LINK = r"(?i)https?://(?:\[[\da-f:.]+\])?(?:\([^\s()]*\)|[^\s\"'<>()\]`、。，；：！？）】」])+"
# What may stand under one of LINK_KEYS: an address that has blanks and quotes in it, or a scheme
# that is reported but never fetched, such as gs:// (Vertex); a path; a file's name.
ADDRESS = (
    r"(?i)\w+://[^\s<>]+(?: (?!https?:)[^\s<>]+)*|/\S+"
    r"|[^\s:]*\.(png|jpe?g|webp|gif|avif)\b[^\s:]*"
)
MAX_LINK_CHARS = 4000
PICTURE_NAME = r"(?i)\.(png|jpe?g|webp|gif|avif)\b"
PICTURE_LABEL = r"(?i)(image|picture|photo|download|图|下载)[^][\n]{0,20}\]?[(:：]?\s*<?$"
# ![avatar](…), ![logo](…): a service's own, below the picture
AVATAR = r"(?i)avatar|favicon|emoji|\b(logo|icon|badge|banner|qr(code)?)\b"
# error_msg (Baidu), finishMessage (Google), task_status_msg (Kling); a bare string has no key.
MESSAGE_KEYS = r"|\w*(message|msg)"
UNLIKELY = 3  # the rank of a link that only stands in prose
# "I'm sorry, but I can't create images of real people." (OpenAI); "抱歉，我无法生成这张图片。"
# Not a refusal: "I can't draw real logos, but here is a generic one: ![image](…)"
REFUSAL_OPENING = (
    r"(?i)(?!.{0,200}\bhere(['’]s| is| are)\b)"
    r"((i['’]?m (very |really |so )?(sorry|afraid)|sorry|unfortunately|i apologi[sz]e)"
    r"[^.!?\n]{0,30}?\b)?(i|we)(['’]m| am| are)? "
    r"(can['’]?t|can ?not|unable to|not able to|won['’]t|will not|must decline to) "
    r"(\w+ly |be able to )?"
    r"(generat|creat|mak|draw|produc|help(?! but)|assist|fulfil|edit|comply|process|provide|do\b)"
    r"|(很|非常)?(抱歉|对不起|遗憾)[^。！\n]{0,12}(无法|不能|没办法)"
    r"|我?(暂时)?(无法|不能|没办法)[^。！\n]{0,6}(生|创|绘|画|制|提|协|帮|处|满|完成|编辑)"
)
NO_REASON = r"(?i)false|none|\w*unspecified"  # BLOCK_REASON_UNSPECIFIED (Google)
# A bare id is that of unfinished work only if the answer says so, too (Midjourney's proxies).
STATE_KEY = r"(?i)(task_?)?(status|state)"
FAILED = r"(?i)fail|error|cancel"
UNFINISHED = r"(?i)queue|pending|process|submit|in_?progress|running|created|waiting|start"

# Required word for word by the specification's section Onboarding.
ONBOARDING = """\
**This skill needs an image-gateway API key before it can generate.** You haven't configured one yet — here's the 30-second setup:

**Option A — temporary (this terminal only):**
```bash
export OMNIMAAS_API_KEY="sk-..."             # your OmniMaaS / Cloubic token
# optional: only set this if you have a private gateway endpoint
# export OMNIMAAS_BASE_URL="https://api.omnimaas.com/v1"
```

**Option B — persistent across sessions:**
Add the same `export` line to your `~/.zshrc` (or `~/.bashrc`), then `source ~/.zshrc`.

**Option C — file-based (no env vars):**
```bash
echo "sk-..." > ~/.product_shots_imagegen_api_key
chmod 600 ~/.product_shots_imagegen_api_key
```

**Where the key comes from:** [docs.cloubic.com](https://docs.cloubic.com) — get a token from the OmniMaaS / Cloubic dashboard. The same token covers both OpenAI `gpt-image-2` and Gemini `gemini-3-pro-image-preview` (Nano Banana Pro).

Any OpenAI-SDK-compatible image gateway also works — replace `OMNIMAAS_*` with `PRODUCT_SHOTS_IMAGEGEN_BASE_URL` + `PRODUCT_SHOTS_IMAGEGEN_API_KEY` pointing at your gateway.

Once configured, re-run the original request."""  # noqa: E501


# --- Secrecy ---


ESCAPED = r"(?i)(?:%(?:25)*|\\+u00)([2-7][0-9a-f])"  # an escaped character, in a URL or in JSON


class Key(str):
    """An API key, which tracebacks and logs show masked."""

    def __repr__(self) -> str:
        return repr(mask_key(self))


def mask_key(key: str) -> str:
    """The first 8 characters of a key, and never more than half of it: sk-wPfH6K…"""
    return key[: min(8, len(key) // 2)] + "…"


def is_secret(key: str) -> bool:
    """Whether a key is too long to occur by chance in a path or link, as LiteLLM's "test" may."""
    return len(key) > 7


def spellings(key: str) -> Iterator[str]:
    """A key as it is, and as base64 has it."""
    yield key
    raw = key.encode("utf-8", "surrogateescape")
    for shift in range(3):  # base64 depends on where the key stands, and its ends on its neighbours
        encoded = base64.b64encode(b"\0" * shift + raw).decode("ascii")
        inner = encoded[4 if shift else 0 : -4]
        if is_secret(inner):  # any picture's base64 may hold a shorter one
            yield inner
            yield inner.replace("+", "-").replace("/", "_")


@functools.lru_cache(maxsize=16)
def pieces_of(key: str) -> set[str]:
    """Every run of 12 characters in a key's spellings, in lower case."""
    pieces = set()
    for spelling in spellings(key):
        for start in range(max(1, len(spelling) - 11)):
            piece = spelling[start : start + 12]
            pieces.add(piece.lower())
    return pieces


def redact(text: str, keys: Iterable[str]) -> str:
    """A gateway's text without the keys: no 12 characters in a row of any spelling are left.

    A short key is taken out where it stands alone, so that links stay whole.
    """
    for key in filter(None, keys):
        if is_secret(key):
            text = redact_long(text, key)
        else:
            alone = rf"(?<![\w/.=&?%-]){re.escape(key)}(?![\w/=&%-])"
            text = re.sub(alone, "[key]", text)
    return text


def redact_long(text: str, key: str) -> str:
    """A text without a long key; unescaped only when something was found."""
    plain = re.sub(ESCAPED, lambda match: chr(int(match[1], 16)), text)
    lowered = plain.lower()
    found = [piece for piece in pieces_of(key) if piece in lowered]
    if not found:
        return text
    starts = "|".join(map(re.escape, found))
    rest = max(map(len, found)) - 1  # of the last piece in a row of them
    leaked = rf"(?is)(?:(?={starts}).)+.{{,{rest}}}"
    return re.sub(leaked, "[key]", plain)


def redact_tree(tree: Any, keys: Sequence[str], depth: int = MAX_DEPTH) -> Any:
    """A gateway's JSON without the keys, as deep as it is looked at.

    Everything that a gateway says passes through here. In a text as long as a picture, only the
    ends are cleaned, since nothing else of it is ever shown or searched for links.
    """
    if isinstance(tree, str) and len(tree) <= 20_000:
        return redact(tree, keys)
    if isinstance(tree, str):
        ends = (tree[:10_000], tree[-10_000:])
        head, tail = (redact(end, keys) for end in ends)
        return tree if (head, tail) == ends else head + tree[10_000:-10_000] + tail
    if isinstance(tree, float) and not math.isfinite(tree):
        return None  # 1e999, which JSON cannot say again
    if not isinstance(tree, (dict, list)):
        return tree
    if depth == 0:
        return None
    if isinstance(tree, list):
        return [redact_tree(item, keys, depth - 1) for item in tree]
    cleaned = {}
    for name, item in tree.items():
        cleaned[redact(name, keys)] = redact_tree(item, keys, depth - 1)
    return cleaned


def redact_whole(text: str, keys: Iterable[str]) -> str:
    """Replace whole keys in a text that leaves the program, as a last safeguard."""
    for key in filter(is_secret, keys):
        as_json = json.dumps(key)[1:-1]
        text = text.replace(key, "[key]").replace(as_json, "[key]")
    return text


# --- Configuration ---


def read_source(source: str) -> str:
    """What a variable or a file holds, "" when it is unset, missing or blank."""
    if source not in KEY_FILES:
        return os.environ.get(source, "").strip()
    try:
        with open(os.path.expanduser(source), encoding="utf-8-sig") as file:
            return file.read(10_000).strip()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The key file {source} cannot be read: {reason(error)}.",
            "Make it readable, or remove it.",
        ) from None


def known_keys(*in_use: str) -> list[str]:
    """Every key that is in use or configured, each once."""
    keys = list(in_use)
    for source in KEY_SOURCES:
        with contextlib.suppress(ConfigError):
            keys.append(read_source(source))
    return list(dict.fromkeys(filter(None, keys)))


def first_set(sources: Iterable[str]) -> tuple[str, str]:
    """(value, source) of the first source that is set, ("", "") when none is."""
    for source in sources:
        value = read_source(source)
        if value:
            return value, source
    return "", ""


def load_api_key(given: str | None = None) -> tuple[Key, str]:
    """The API key and where it comes from: the argument, URL_VARIABLES, then KEY_FILES.

    raises: ConfigError without a key (its hint is the onboarding message), or for a malformed one
    """
    key, source = first_set(KEY_SOURCES) if given is None else (given, "api_key")
    if not source:
        raise ConfigError("No API key is configured.", ONBOARDING)
    if source in KEY_FILES and os.name == "posix":
        mode = os.stat(os.path.expanduser(source)).st_mode
        if mode & 0o077:
            warn("the key file %s can be read by others; type: chmod 600 %s", source, source)
    if key == "sk-...":
        raise ConfigError(f"The key from {source} is only an example.", "Set your own key.")
    if not isinstance(key, str) or not re.fullmatch(r"[!-~]+", key):
        fault = "is not printable ASCII without spaces" if key else "is empty"
        raise ConfigError(
            f"The key from {source} {fault}.",
            "Copy the key again, without any other characters.",
        )
    return Key(key), source


def load_base_url(key_source: str | None = None, given: str | None = None) -> tuple[str, str]:
    """The gateway's URL and where it comes from: the argument, or URL_VARIABLES.

    The first variable and the first key file need no URL: DEFAULT_BASE_URL goes with them.
    raises: ConfigError without a URL, or for a malformed one
    """
    variables = URL_VARIABLES.values()
    url, source = first_set(variables) if given is None else (given, "base_url")
    if source:
        return check_url(str(url).rstrip("/"), source), source
    if not key_source:
        _, key_source = load_api_key()
    if key_source in (KEY_SOURCES[0], KEY_FILES[0]):
        return DEFAULT_BASE_URL, "default"
    wanted = URL_VARIABLES.get(key_source, "PRODUCT_SHOTS_IMAGEGEN_BASE_URL")
    if key_source == "api_key":
        wanted = f"base_url, or {wanted},"
    raise ConfigError(
        f"The key from {key_source} has no base URL.",
        f"Set {wanted} to the URL of your gateway.",
    )


def check_url(url: str, source: str) -> str:
    """The URL itself; raises ConfigError, and warns when the key would travel unencrypted."""
    shown = ""
    if "@" not in url:  # else it may hold a password
        shown = f" {redact(url, known_keys())!r}"
    for endpoint in ENDPOINTS.values():
        if url.endswith(endpoint):
            raise ConfigError(
                f"The base URL{shown} from {source} ends in an endpoint.",
                f"Set it to {url[: -len(endpoint)]}",
            )
    address = re.fullmatch(BASE_URL, url)
    port = int(address["port"] or 0) if address else 0
    if not address or port > 65_535:
        raise ConfigError(
            f"The base URL{shown} from {source} is not an http or https address.",
            "Set it to an address like https://gateway.example/v1, "
            "without user, query or fragment.",
        )
    if url.lower().startswith("http:") and not is_loopback(url):
        warn("the base URL%s from %s is plain http: the key travels unencrypted", shown, source)
    return url


def is_loopback(url: str) -> bool:
    return bool(re.match(r"(?i)https?://(localhost|127(\.\d+){3}|\[::1\])(:|/|$)", url))


def load_target(api_key: str | None = None, base_url: str | None = None) -> Target:
    """Key and URL, from the arguments or the configuration.

    raises: ConfigError when the key would go to a gateway that has another one of its own
    """
    key, key_source = load_api_key(api_key)
    url, url_source = load_base_url(key_source, base_url)
    target = Target(key, key_source, url, url_source)
    own = url_source.replace("_BASE_URL", "_API_KEY")  # base_url and default have none
    if api_key is not None or url_source == "default" or own == key_source:
        return target
    if own in KEY_SOURCES and read_source(own):
        raise ConfigError(
            f"The key from {key_source} would go to the gateway of {url_source}, "
            f"whose own key is in {own}.",
            f"Unset {url_source}, or unset {key_source} to use {own}.",
        )
    warn("the key from %s goes to the gateway from %s", key_source, url_source)
    return target


def read_amount(text: str) -> float | None:
    """An amount of money, 0 or more; None for anything else."""
    is_amount = re.fullmatch(r"\s*(\d{1,12}(\.\d*)?|\.\d+)\s*", text, re.A)
    return float(text) if is_amount else None


def load_budget() -> float | None:
    """What may be spent in a calendar day, in CNY; None without a budget. Raises ConfigError."""
    text = read_source(BUDGET_VARIABLE)
    budget = read_amount(text)
    if text and budget is None:
        raise ConfigError(
            f"The budget {text!r} in {BUDGET_VARIABLE} is not an amount of money.",
            "Set it to an amount in CNY a day, such as 50, or unset it.",
        )
    return budget


def load_prices() -> dict[str, float]:
    """The user's own prices by plain model name, in CNY per picture; raises ConfigError."""
    text = read_source(PRICES_VARIABLE)
    prices = {}
    for item in filter(str.strip, text.split(",")):
        name, _, amount = item.partition("=")
        name = name.strip()
        price = read_amount(amount)
        if price is None or not re.fullmatch(r"[^\s;]*[^\s;/]", name):
            raise ConfigError(
                f"The price {item!r} in {PRICES_VARIABLE} is malformed.",
                "Write prices like gpt-image-2=0.35,seedream-4=0.2.",
            )
        prices[plain_name(name)] = price
    return prices


def ledger_path() -> str | None:
    """Where the ledger is, None when it is turned off."""
    chosen = read_source(LEDGER_VARIABLE)
    if chosen.lower() == "off":
        return None
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.expanduser("~/.local/state")
    if not os.path.isabs(state):
        return None  # a user without a home
    return os.path.join(state, "product-shots-image-gen", "ledger.db")


# --- Routing and sizes ---


def plain_name(model: str) -> str:
    """A model's name in lower case, without a vendor: Google/Gemini-X -> gemini-x."""
    return model.rsplit("/", 1)[-1].lower()


def find_model(name: str, family: str | None = None, family_flag: str = "family") -> Model:
    """The catalogue's row of a model, or that of its kind, with the name as it was given.

    gpt-image-2 -> its row    openai/GPT-Image-2.6-x -> gpt-image-2's sizes, without a price
    raises: UsageError with the supported names for any other
    """
    plain = plain_name(str(name))
    rows = [row for row in CATALOGUE if row.name == plain]
    rows += [row for row in PATTERNS if re.fullmatch(row.name, plain)]
    if plain:
        rows += [row for row in PATTERNS if row.family == family]
    if not rows:
        raise UsageError(
            f"The model {name!r} is not a known image model.",
            suggest_model(plain, family_flag),
        )
    model = rows[0]
    if family not in (None, model.family):
        raise UsageError(
            f"The family of {name!r} is {model.family!r}, not {family!r}.",
            "Choose another model or family.",
        )
    return model._replace(name=str(name))


def model_of(args: Args) -> Model:
    """The model that validated arguments name."""
    return find_model(args.model or DEFAULT_MODEL, args.family)


def suggest_model(plain: str, family_flag: str) -> str:
    """A hint for a model's name that is not recognised."""
    names = [row.name for row in CATALOGUE]
    near = nearest(plain, names)
    question = f"Did you mean {near}? " if near else ""
    return (
        f"{question}Use one of {', '.join(names)}; "
        f"for another image model of your gateway add {family_flag} openai or gemini."
    )


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that begins with a mistyped one or is most like it, "" when none is."""
    from difflib import get_close_matches

    begun = [name for name in known if word and name.startswith(word)]
    matches = begun or get_close_matches(word, known, 1, 0.7)
    return matches[0] if matches else ""


def model_family(model: str) -> str:
    """The family of a model's name; raises UsageError with the supported list."""
    return find_model(model).family


def price_of(model: str) -> Price:
    """What a picture of a model costs: by the user's own prices, else by the catalogue."""
    plain = plain_name(model)
    own = load_prices().get(plain)
    if own is not None:
        return Price(own)
    for row in CATALOGUE:
        if row.name == plain:
            return Price(row.price_cny, row.token_prices_cny)
    return Price()


def pixels_of(size: str | None) -> Size:
    """Read a size in pixels: 1080x1350 -> (1080, 1350); (0, 0) for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(size), re.A)
    if not match:
        return 0, 0
    return int(match[1]), int(match[2])


def shape_of(ratio: str) -> float:
    """Width over height: 16:9 -> 1.78, 1024x1536 -> 0.67."""
    width, height = re.split("[x:]", ratio)
    return float(width) / float(height)


def part_cut(shape: float, wanted: float) -> float:
    """The part of a picture that is cut away to give it another shape: square to 2:1 -> 0.5."""
    return 1 - min(shape, wanted) / max(shape, wanted)


def nearest_ratio(size: Size) -> str:
    width, height = size
    return nearest_shape(OPENAI_SIZE_BY_RATIO, width / height)


def is_other_shape(width: int, height: int, asked: str | None) -> bool:
    """Whether a picture has another shape than a ratio or size; "auto" has no shape."""
    if not re.fullmatch(r"[\d.]+[x:]\d+", asked or ""):
        return False
    return part_cut(width / height, shape_of(str(asked))) > RATIO_TOLERANCE


def nearest_shape(names: Iterable[str], shape: float) -> str:
    """The ratio or size that is most like a shape: of 3:2 and 1:1, for 1.4 -> 3:2"""
    return min(names, key=lambda name: part_cut(shape_of(name), shape))


def is_free_size(width: int, height: int) -> bool:
    """Whether gpt-image-2 makes this size (OpenAI's description of its API, August 2026)."""
    short, long = sorted((width, height))
    return (
        width % 16 == height % 16 == 0
        and 0 < long <= min(3840, 3 * short)
        and 655_360 <= width * height <= 8_294_400
    )


def choose_size(model: Model, aspect_ratio: str | None = None, size: str | None = None) -> str:
    """The pixel size that an openai model is asked for.

    It is the given size, else the ratio's exact one, else the nearest shape that the model has:
    16:9 -> 1536x864 with gpt-image-2, 1536x1024 with gpt-image-1, 1792x1024 with dall-e-3
    raises: UsageError for a size that the model is known to refuse
    """
    if size is not None:
        return check_size(model, size)
    ratio = aspect_ratio or "1:1"
    if "WxH" in model.sizes:
        return OPENAI_SIZE_BY_RATIO[ratio]
    square, landscape, portrait, *_ = model.sizes
    shape = shape_of(ratio)
    if shape == 1:
        return square
    return landscape if shape > 1 else portrait


def check_size(model: Model, size: str) -> str:
    """The size itself; raises UsageError for one that the model is known to refuse."""
    width, height = pixels_of(size)
    is_unjudged = size.strip() and not model.is_catalogued  # 2K (Seedream)
    if size != "WxH" and (size in model.sizes or is_unjudged):
        return size
    if "WxH" in model.sizes and is_free_size(width, height):
        return size
    rule = (
        "any WxH: multiples of 16, ratios from 1:3 to 3:1, 655,360 to 8,294,400 pixels, "
        "no side over 3840"
    )
    allowed = ", ".join(model.sizes).replace("WxH", rule)
    raise UsageError(
        f"The size {size!r} is not available.",
        f"{model.name} takes {allowed}.",
    )


def size_for_fit(model: Model, width: int, height: int) -> str:
    """The size to ask an openai model for, so that little is lost in cropping to these pixels.

    If the model takes any size, it is the smallest that covers these pixels and loses at most
    MAX_FIT_CUT; if none covers them, it is the largest of the nearest shape. 1080x1350 -> 1088x1360
    """
    wanted = width / height
    if "WxH" not in model.sizes:
        return nearest_shape(model.sizes[:3], wanted)

    def rank(size: Size) -> tuple[int, float, float]:
        across, down = size
        area = across * down
        cut = part_cut(across / down, wanted)
        if across >= width and down >= height and cut <= MAX_FIT_CUT:
            return 0, area, cut
        return 1, round(cut, 2), -area

    edges = range(16, 3841, 16)
    grid = itertools.product(edges, edges)
    free = [size for size in grid if is_free_size(*size)]
    across, down = min(free, key=rank)
    return f"{across}x{down}"


# --- Validation ---


def check_texts(args: Args) -> None:
    texts = {"prompt": (args.prompt, "Say what the picture shows.")}
    if args.negative_prompt:
        hint = "Say what to avoid, or leave it out."
        texts["negative prompt"] = (args.negative_prompt, hint)
    for what, (text, hint) in texts.items():
        if not isinstance(text, str) or re.search("[\ud800-\udfff]", text):
            kind = "UTF-8 text" if isinstance(text, str) else "text"
            raise UsageError(
                f"The {what} {text!a:.40} is not {kind}.",
                hint,
            )
        if not text.strip():
            raise UsageError(
                f"The {what} {text!r} is blank.",
                hint,
            )
        if len(text) > MAX_PROMPT_CHARS:
            raise UsageError(
                f"The {what} has {len(text)} characters.",
                f"Use at most {MAX_PROMPT_CHARS}.",
            )


def bad_value(args: Args, field: str, hint: str) -> UsageError:
    value = getattr(args, field)
    return UsageError(f"The value of {args.label(field)}, {value!r}, is not valid.", hint)


def check_shape(args: Args) -> None:
    if args.aspect_ratio not in (None, *OPENAI_SIZE_BY_RATIO):
        meant = re.sub(r"[x×/：]", ":", str(args.aspect_ratio))
        question = f"Did you mean {meant}? " if meant in OPENAI_SIZE_BY_RATIO else ""
        ratios = ", ".join(OPENAI_SIZE_BY_RATIO)
        exact = f", or {args.label('fit')} for exact pixels" if "fit" in args.labels else ""
        raise UsageError(
            f"The aspect ratio {args.aspect_ratio!r} is not supported.",
            f"{question}Use one of {ratios}{exact}.",
        )
    if not isinstance(args.size, (str, type(None))):
        raise bad_value(args, "size", "Write it like 1024x1024.")
    if args.fit is None:
        return
    width, height = pixels_of(args.fit)
    if min(width, height) < MIN_FIT_PX or max(width, height) > MAX_FIT_PX:
        hint = f"Use {MIN_FIT_PX} to {MAX_FIT_PX} pixels a side, written like 1080x1350."
        raise bad_value(args, "fit", hint)


def check_numbers(args: Args, model: Model) -> None:
    for field, most in (("n", 10), ("attempts", 5)):
        value = getattr(args, field)
        if type(value) is not int or not 1 <= value <= most:
            raise bad_value(args, field, f"Use a whole number from 1 to {most}.")
    is_number = type(args.timeout) in (int, float)
    if not is_number or not 0 < args.timeout <= 86_400:
        raise bad_value(args, "timeout", "Use a number of seconds above 0, at most 86400.")
    if model.family == "gemini":
        return  # it makes one picture, whatever n is
    n, stream = args.label("n"), args.label("stream")
    if args.n > model.max_n:
        raise UsageError(
            f"The value of {n} is {args.n}.",
            f"{model.name} makes one picture a call: leave {n} out.",
        )
    if args.stream and args.n > 1:
        raise UsageError(
            f"{stream} needs {n} to be 1, and it is {args.n}.",
            f"Leave {stream} or {n} out.",
        )


def check_pictures(args: Args, model: Model) -> None:
    count = len(args.reference_images)
    references, mask = args.label("reference_images"), args.label("mask")
    if count and not model.max_references:
        raise UsageError(
            f"{model.name} takes no reference images.",
            f"Leave {references} out, or choose another model.",
        )
    if count > model.max_references:
        raise UsageError(
            f"There are {count} reference images.",
            f"{model.name} takes at most {model.max_references}.",
        )
    if args.mask is None:
        return
    if not isinstance(args.mask, (str, os.PathLike)):
        raise UsageError(
            "The mask is not a path.",
            "Save the mask as a PNG and give its path.",
        )
    if not model.takes_mask:
        raise UsageError(
            f"{model.name} takes no mask.",
            f"Leave {mask} out, or choose an openai model such as gpt-image-2.",
        )
    if not count:
        raise UsageError(
            f"The mask {os.fspath(args.mask)!r} has no reference image to go with.",
            f"Add {references}.",
        )


def check_request(args: Args) -> None:
    params, output = args.label("params"), args.label("output")
    if not isinstance(args.params, Mapping) or not all(isinstance(n, str) for n in args.params):
        raise UsageError(
            f"{params} is not a mapping of names.",
            'Write it like {"quality": "high"}.',
        )
    if not isinstance(args.output, (str, os.PathLike, type(None))):
        raise UsageError(
            f"{output} is not a path.",
            "Give the path of a file or folder.",
        )
    for name in args.params:
        if name in ARGUMENT_OF_PARAM:
            raise UsageError(
                f"{params} cannot set the field {name!r}, which has its own argument.",
                f"Use {args.label(ARGUMENT_OF_PARAM[name])} instead.",
            )
    try:
        text = json.dumps(dict(args.params), allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        raise UsageError(
            "A parameter cannot be written as JSON.",
            "Use text, numbers, lists and objects.",
        ) from None
    address = r"(https?|socks5h?)://([^/@]*@)?[\w.\[\]:-]+/?"
    if args.proxy is not None and not re.fullmatch(address, str(args.proxy)):
        raise UsageError(
            "The proxy is not an address.",
            "Use one like http://127.0.0.1:7890.",
        )


def read_references(args: Args) -> tuple[ReferenceLike, ...]:
    """The references as bytes, links and paths; raises UsageError."""
    given: Any = args.reference_images
    if given is None:
        given = ()
    if isinstance(given, (str, bytes, os.PathLike)):
        given = (given,)
    try:
        return tuple(
            item if isinstance(item, bytes) else os.fsdecode(os.path.expanduser(item))
            for item in given
        )
    except (TypeError, ValueError):
        raise UsageError(
            "A reference image is neither a path nor bytes.",
            "Give its path, its link or its bytes.",
        ) from None


def validate_args(args: Args) -> Args:
    """Check all that can be checked without files and network; fill in model, family and size.

    raises: UsageError naming the argument, its value and what would be right
    """
    if args.use_case not in (None, *MODEL_BY_USE_CASE):
        raise UsageError(
            f"The use case {args.use_case!r} is not known.",
            f"Use one of {', '.join(MODEL_BY_USE_CASE)}.",
        )
    name = args.model
    if name is None:
        name = MODEL_BY_USE_CASE.get(args.use_case or "", DEFAULT_MODEL)
    if args.family not in (None, "openai", "gemini"):
        raise UsageError(
            f"The family {args.family!r} is not known.",
            "Use openai or gemini.",
        )
    model = find_model(name, args.family, args.label("family"))
    args = args._replace(
        model=model.name,
        family=model.family,
        reference_images=read_references(args),
        params=args.params or {},
        is_shaped=bool(args.aspect_ratio or args.size or args.fit),
    )
    check_texts(args)
    check_shape(args)
    check_numbers(args, model)
    check_pictures(args, model)
    check_request(args)
    if args.use_case == "text-overlay" and model.family == "gemini":
        warn("%s garbles small letters; use gpt-image-2 for text", model.name)
    if price_of(model.name).picture is None:
        text = "the model %s is not in the catalogue: it is treated as %s, and its price is unknown"
        warn(text, model.name, model.family)
    if model.family == "openai":
        return shape_for_openai(args, model)
    return shape_for_gemini(args)


def warn_of_cut(args: Args) -> None:
    """Warn that a picture of the requested shape cannot fit without cropping."""
    asked = args.size or args.aspect_ratio
    if args.fit and is_other_shape(*pixels_of(args.fit), asked):
        text = "%s %s differs in shape from %s: part of the picture will be cropped"
        warn(text, args.label("fit"), args.fit, asked)


def shape_for_openai(args: Args, model: Model) -> Args:
    """Fill in the size that the model is asked for."""
    if args.size and args.aspect_ratio:
        size, ratio = args.label("size"), args.label("aspect_ratio")
        warn("%s %s overrides %s %s", size, args.size, ratio, args.aspect_ratio)
        args = args._replace(aspect_ratio=None)
    warn_of_cut(args)
    if args.fit and not args.aspect_ratio and args.size is None:
        size = size_for_fit(model, *pixels_of(args.fit))
    else:
        size = choose_size(model, args.aspect_ratio, args.size)
    return args._replace(size=size)


def shape_for_gemini(args: Args) -> Args:
    """Fill in the ratio that `fit` needs, and take out what the model has no field for."""
    if args.n != 1:
        warn("%s ignores %s: it makes one picture a call", args.model, args.label("n"))
    if args.size is not None:
        ratio, fit = args.label("aspect_ratio"), args.label("fit")
        text = "%s ignores %s: use %s for a shape, or %s for exact pixels"
        warn(text, args.model, args.label("size"), ratio, fit)
    args = args._replace(n=1, size=None)
    warn_of_cut(args)
    if args.fit and not args.aspect_ratio:
        args = args._replace(aspect_ratio=nearest_ratio(pixels_of(args.fit)))
    return args


# --- Requests ---


def compose_prompt(
    prompt: str,
    negative_prompt: str | None,
    aspect_ratio: str | None,
    family: str,
) -> str:
    """The prompt that is sent, its parts joined with one space.

    ("a cup", "text", "16:9", "gemini") -> "a cup (aspect ratio: 16:9) Avoid: text"
    """
    parts = [prompt]
    if aspect_ratio and family == "gemini":
        parts.append(f"(aspect ratio: {aspect_ratio})")
    if negative_prompt:
        parts.append(f"Avoid: {negative_prompt}")
    return " ".join(parts)


def build_call(
    args: Args,
    url: str,
    references: Sequence[Reference],
    mask: Reference | None,
    show: Callable[[Reference], str] = Reference.data_url,
) -> Call:
    """The one request of validated arguments, with the pictures in JSON as `show` makes them."""
    family = model_of(args).family
    prompt = compose_prompt(args.prompt, args.negative_prompt, args.aspect_ratio, family)
    fields: JsonObject = {"model": args.model}
    if family == "gemini":
        content: list[JsonObject] = [{"type": "text", "text": prompt}]
        for image in references:
            content.append({"type": "image_url", "image_url": {"url": show(image)}})
        fields["messages"] = [{"role": "user", "content": content}]
    else:
        fields.update(prompt=prompt, n=args.n, size=args.size)
    if args.stream:
        fields["stream"] = True
        if family == "openai":
            fields["partial_images"] = 2
    fields.update(args.params)
    if family == "openai" and references:
        return build_form(url + ENDPOINTS["edits"], fields, references, mask)
    return Call(url + ENDPOINTS[family], fields)


def build_form(
    url: str,
    fields: Mapping[str, Any],
    references: Sequence[Reference],
    mask: Reference | None,
) -> Call:
    """A request as a form, which can hold files; values that are not text become JSON."""
    texts = {}
    for name, value in fields.items():
        texts[name] = value if isinstance(value, str) else json.dumps(value)
    parts = [("image[]", image) for image in references]
    if mask:
        parts.append(("mask", mask))
    uploads = []
    for number, (field, image) in enumerate(parts, 1):
        # Some gateways trust the file name's extension over the Content-Type.
        extension = image.mime.partition("/")[2]
        uploads.append(Upload(field, f"image-{number}.{extension}", image))
    return Call(url, texts, tuple(uploads))


# --- Pictures ---


def sniff_format(data: bytes | bytearray) -> str | None:
    """Pillow's name of the format that the first bytes announce, whatever label they came with."""
    head = bytes(data[:64])
    for name, signature in SIGNATURES.items():
        if re.match(signature, head, re.S):
            return name
    return None


def register_heif() -> None:
    """Let Pillow read HEIC, which phones make; raises PictureError without pillow-heif."""
    import importlib
    import importlib.util
    import shlex

    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        python = shlex.quote(sys.executable)
        command = f"{python} -m pip install pillow-heif"
        if not importlib.util.find_spec("pip"):
            command = f"uv pip install --python {python} pillow-heif"
        raise PictureError(
            "reading HEIC needs the package pillow-heif",
            f"Install it with: {command}",
        ) from None


def mend_big_tiff(data: bytes) -> bytes:
    """Patch a big-endian BigTIFF for Pillow, which looks for the mark only in the third byte."""
    from PIL import TiffImagePlugin

    if MENDED_BIG_TIFF not in TiffImagePlugin.PREFIXES:
        TiffImagePlugin.PREFIXES = [*TiffImagePlugin.PREFIXES, MENDED_BIG_TIFF]
    return MENDED_BIG_TIFF + data[4:]


def mend_info(image: Any, data: bytes) -> None:
    """Correct what Pillow reports about some pictures."""
    from PIL import Image

    colour = image.info.get("transparency")
    if image.format == "PNG" and colour is not None:
        # Pillow converts samples of 2, 4 or 16 bits to 8, but not the transparent colour.
        depth = data[24]
        if isinstance(colour, tuple) and depth == 16:
            image.info["transparency"] = tuple(sample >> 8 for sample in colour)
        elif isinstance(colour, int) and image.mode == "L" and depth < 8:
            image.info["transparency"] = colour * 255 // (2**depth - 1)
    if data.startswith(MENDED_BIG_TIFF):  # Pillow cannot read its tags a second time
        exif = Image.Exif()
        exif[ORIENTATION] = image.tag_v2.get(ORIENTATION, 1)
        image.info["exif"] = exif.tobytes()


@contextlib.contextmanager
def decoding(data: bytes) -> Iterator[Any]:
    """A Pillow image of untrusted bytes.

    raises: PictureError when they are no picture, damaged, or too large to decode
    """
    from PIL import Image

    name = sniff_format(data)
    if not name:
        fault = "it is not a picture" if data else "it is empty"
        raise PictureError(fault, "" if data else "Give a PNG or JPEG picture.")
    if name == "HEIF":
        register_heif()
    if data.startswith(b"MM\0+"):
        data = mend_big_tiff(data)
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            mend_info(image, data)
            yield image
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file provokes
        fault = str(error).partition(" <")[0] or type(error).__name__
        if isinstance(error, KeyError):
            fault = f"there is no decoder for {name}"
        raise PictureError(fault) from None


def load(image: Any, share: float) -> None:
    """Decode a picture; a large JPEG only as far as this share of its width and height.

    Call it before getexif, which may hide that a picture is damaged.
    """
    width, height = image.size
    image.draft(None, (math.ceil(width * share), math.ceil(height * share)))
    image.load()


def orientation_of(image: Any) -> int:
    """EXIF's orientation, 1 to 8; from 5 on, width and height are swapped."""
    with contextlib.suppress(Exception):  # a picture with broken EXIF is a good picture
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def upright_size(image: Any, size: Size) -> Size:
    """The size of a loaded image as it is seen; `size` is what its file says."""
    if image.format == "TIFF":  # Pillow turned it as it loaded it
        loaded: Size = image.size
        return loaded
    return size[::-1] if orientation_of(image) > 4 else size


def read_picture(data: bytes, link: str | None = None) -> Picture:
    """Prove that bytes are a whole picture by decoding them; raises PictureError."""
    with decoding(data) as image:
        name, size = image.format, image.size
        load(image, 1 / 8)  # a JPEG is still read to its end, at a 64th of the memory
        size = upright_size(image, size)
    if name == "MPO":  # a JPEG with more pictures behind the first
        name = "JPEG"
    return Picture(data, name, size, link)


def has_transparency(image: Any) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def reduce_depth(image: Any) -> Any:
    """Reduce grey pictures of 16 or 32 bits to 8 bits a sample; convert() would clip them."""
    from PIL import ImageChops

    transparent = image.info.pop("transparency", None)
    deep = image.convert("F")
    _, brightest = deep.getextrema()
    scale = 1 / 256
    if image.mode == "F" or brightest > 65_535:
        scale = 255 / max(1.0, brightest)
    grey = deep.point(lambda value: value * scale).convert("L")
    if transparent is not None:  # one of a PNG's greys: what is brighter or darker is opaque
        level = 255 * transparent
        brighter = deep.point(lambda value: value * 255 + -level).convert("L")
        darker = deep.point(lambda value: value * -255 + level).convert("L")
        grey.putalpha(ImageChops.lighter(brighter, darker))
    return grey


def to_srgb(image: Any, mode: str) -> Any:
    """The image in RGB or RGBA, its colours as its profile means them."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image.convert(mode)
    from PIL import ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        target = ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, source, target, outputMode=mode)
    except (ImageCms.PyCMSError, OSError):
        warn("a colour profile does not fit its picture and is ignored: colours may be off")
    return image.convert(mode)


def standardise(image: Any, edge_px: int | None = None) -> Any:
    """The image upright, in sRGB, without metadata, and at most edge_px on its longer side.

    returns: RGBA when any of it is transparent, else RGB
    """
    from PIL import Image, ImageOps

    image.load()
    is_turned = image.format == "TIFF"  # Pillow turns these as it loads them
    if image.mode[0] in "IF":
        image = reduce_depth(image)
    mode = "RGBA" if has_transparency(image) else "RGB"
    if image.mode in ("1", "P") or mode == "RGBA":
        image = image.convert(mode)
    if edge_px:  # a gap of 1.5 is twice as fast as LANCZOS alone, and 54 dB from it
        image.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS, reducing_gap=1.5)
    if not is_turned:
        with contextlib.suppress(Exception):  # broken EXIF
            image = ImageOps.exif_transpose(image)
    image = to_srgb(image, mode)
    image.info = {}
    if mode == "RGB":
        return image
    least_alpha, _ = image.getextrema()[3]
    return image.convert("RGB") if least_alpha == 255 else image


def encode(image: Any, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def shrink(data: bytes, max_dim: int, max_bytes: int = REFERENCE_LIMIT_BYTES) -> Reference:
    """An encoded picture within the limits, see `maybe_resize`; raises PictureError."""
    with decoding(data) as image:
        size = image.size
        load(image, 1.4 * max_dim / max(size))  # some more than is needed, for a good scaling
        full_size = upright_size(image, size)
        is_small = max(size) <= max_dim and len(data) <= max_bytes
        is_still = getattr(image, "n_frames", 1) == 1
        is_upright = orientation_of(image) < 2
        if is_small and is_still and is_upright and image.format in SENT_FORMATS:
            return Reference(data, f"image/{image.format.lower()}", size, size)
        is_lossless = image.format in LOSSLESS_FORMATS or data[12:16] == b"VP8L"  # a lossless WebP
        image = standardise(image, max_dim)
    data, name = compress(image, max_bytes, is_lossless)
    text = "a reference of %dx%d is sent as %dx%d %s, %d bytes"
    log.info(text, *full_size, *image.size, name, len(data))
    return Reference(data, f"image/{name.lower()}", image.size, full_size)


def may_fit_as_png(image: Any, max_bytes: int) -> bool:
    """Guess from every fourth row, since encoding a photograph as PNG is slow and rarely fits."""
    from PIL import Image

    rows = image.resize((image.width, math.ceil(image.height / 4)), Image.Resampling.NEAREST)
    return 3 * len(encode(rows, "PNG")) <= max_bytes


def compress(image: Any, max_bytes: int, is_lossless: bool) -> tuple[bytes, str]:
    """The image as a file of at most so many bytes, and its format; scaled down if need be."""
    lossy = "JPEG" if image.mode == "RGB" else "WEBP"
    options = {"subsampling": 0} if lossy == "JPEG" else {}  # 4:2:0 turns thin red lines grey
    while True:  # less and less quality, then fewer and fewer pixels
        if lossy == "WEBP" or (is_lossless and may_fit_as_png(image, max_bytes)):
            data = encode(image, "PNG")
            if len(data) <= max_bytes:
                return data, "PNG"
        for quality in REFERENCE_QUALITIES:
            data = encode(image, lossy, quality=quality, **options)
            if len(data) <= max_bytes or max(image.size) == 1:
                return data, lossy
        is_lossless = False
        edge = max(image.size) * 3 // 4
        image.thumbnail((edge, edge))


def name_of(source: ReferenceLike) -> str:
    """What a message calls a caller's picture."""
    if isinstance(source, bytes):
        return f"of {len(source)} bytes"
    return f"{str(source)!r:.300}"


@contextlib.contextmanager
def bytes_of(source: ReferenceLike, what: str, hint: str) -> Iterator[bytes]:
    """The bytes of a caller's picture; any fault becomes a UsageError that names the picture."""
    raise_if_interrupted()
    try:
        yield source if isinstance(source, bytes) else read_file(source)
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            hint = "Check the path."
        raise UsageError(
            f"The {what} {name_of(source)} cannot be used: {reason(error)}.",
            getattr(error, "hint", "") or hint,
        ) from error


def read_file(path: PathLike) -> bytes:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is not a file")
    with open(path, "rb") as file:
        return file.read()


def maybe_resize(
    path: ReferenceLike,
    max_dim: int = REFERENCE_EDGES_PX[0],
    max_bytes: int = REFERENCE_LIMIT_BYTES,
) -> Reference:
    """Read a reference picture as the gateways take it, from a path or from bytes.

    It is upright, at most max_dim pixels on its longer side and max_bytes large, and PNG, JPEG or
    WebP. A file that is all this already goes out byte for byte. Any other is re-encoded in memory
    from its first frame, in sRGB: as PNG if it is lossless or transparent and that fits, else as
    JPEG or, with transparency, WebP. It is never enlarged. 4000x3000 -> 1024x768
    raises: UsageError naming the file
    """
    with bytes_of(path, "reference image", "Convert it to PNG or JPEG.") as data:
        return shrink(data, max_dim, max_bytes)


def fit_mask(path: PathLike | None, references: Sequence[Reference]) -> Reference | None:
    """A mask at the size of the first reference, byte for byte when it fits."""
    if path is None:
        return None
    from PIL import Image

    first = references[0]
    hint = "Give a partly transparent PNG of the reference's size."
    with bytes_of(path, "mask", hint) as data, decoding(data) as image:
        if image.format != "PNG" or not has_transparency(image):
            raise PictureError("it is not a PNG with transparency")
        if image.size != first.full_size:
            fault = "it has {}x{} pixels, and its reference has {}x{}"
            raise PictureError(fault.format(*image.size, *first.full_size))
        alpha = image.convert("RGBA").getchannel("A")
        if image.size != first.size or len(data) > REFERENCE_LIMIT_BYTES:
            alpha = alpha.resize(first.size)
            data = encode(Image.merge("RGBA", [alpha] * 4), "PNG")
        return Reference(data, "image/png", first.size, first.full_size)


def in_format(picture: Picture, name: str) -> Picture:
    """The picture in the format that its file's name promises, untouched when it has that."""
    if name in ("", picture.format):
        return picture
    with decoding(picture.data) as source:
        return remade(standardise(source), name)


def remade(image: Any, name: str) -> Picture:
    """A standardised image as a file to be saved."""
    from PIL import Image

    if image.mode == "RGBA" and name not in TRANSPARENT_FORMATS:
        warn("%s has no transparency: transparent areas become white", name)
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    data = encode(image, name, **SAVE_OPTIONS.get(name, {}))
    return Picture(data, name, image.size)


def fitted(picture: Picture, width: int, height: int, name: str) -> Picture:
    """The picture scaled to cover these pixels and cropped around its centre, in the named format.

    One that already has these pixels is only converted to that format.
    """
    with decoding(picture.data) as source:
        is_stored_upright = source.size == picture.size
    if picture.size == (width, height) and is_stored_upright:
        return in_format(picture, name)
    from PIL import Image, ImageOps

    across, down = picture.size
    if across < width or down < height:
        warn("the %dx%d picture had to be enlarged to %dx%d", across, down, width, height)
    cut = part_cut(across / down, width / height)
    if cut > RATIO_TOLERANCE:
        warn("%.0f %% of the picture was cropped to make it %dx%d", 100 * cut, width, height)
    if not name:
        name = picture.format if picture.format in SENT_FORMATS else "PNG"
    with decoding(picture.data) as source:
        image = standardise(source)
    return remade(ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS), name)


def warn_of_shape(args: Args, references: Sequence[Reference]) -> None:
    """Warn, before anything is paid for, that an edit would not keep its reference's shape."""
    if args.is_shaped or not references or args.family != "openai":
        return  # gemini keeps the shape of what it edits
    size = references[0].full_size
    width, height = size
    if is_other_shape(width, height, args.size):
        flag = f"{args.label('aspect_ratio')} {nearest_ratio(size)}"
        text = "the reference is %dx%d, but the picture will be %s; to match the reference, add %s"
        warn(text, width, height, args.size, flag)


# --- Answers ---


class Inbox:
    """Collects an answer as it arrives: its body, or the events of an event stream.

    A draft replaces the one before it, so that a long stream takes no more memory than a short one.
    Source: the WHATWG's HTML standard, section Server-sent events; an event counts as complete
    when its data is JSON, as not every gateway sends the blank line that should follow.
    """

    def __init__(self) -> None:
        self.body = bytearray()
        self.events: list[Any] = []
        self.draft_event: Any = None  # the last one
        self.draft_count = 0
        self.is_stream: bool | None = None  # None until enough has arrived to tell
        self.is_finished = False  # a stream has said that its picture is complete
        self.is_over = False  # a stream has said that nothing more will come
        self.has_failed = False  # a stream has reported an error
        self._texts: list[str] = []  # the pieces of a chat's content
        self._event_name = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        if self.is_stream is None:
            chunk = bytes(self.body + chunk).lstrip(b"\xef\xbb\xbf \t\r\n")  # a BOM, keep-alives
            self.body.clear()
            if len(chunk) >= len("data:image/"):
                self._decide(chunk)
        if not self.is_stream:
            self.body += chunk
            return
        head, *others = chunk.split(b"\n")
        self.body += head
        for start in others:
            line = bytes(self.body)
            self.body = bytearray(start)
            self._take_line(line.removesuffix(b"\r"))

    def tree(self, keys: Sequence[str] = ()) -> Any:
        """All of it as a JSON tree without the keys, or as text; the body is emptied."""
        if self.is_stream is None:
            self._decide(bytes(self.body))
        if self.is_stream:
            rest = bytes(self.body)
            self.body.clear()
            self.feed(rest + b"\n\n")  # the gateway need not have ended it
            self.draft_event = redact_tree(self.draft_event, keys)
            words = {"content": "".join(self._texts)}
            return redact_tree([*self.events, words], keys)
        if sniff_format(self.body):  # a picture and nothing else
            self.body[:] = base64.b64encode(self.body)
        text = self.body.decode(json.detect_encoding(self.body), "replace")
        text = text.strip("\ufeff\0 \t\r\n")
        self.body.clear()  # a large answer would stand in memory twice
        try:
            return redact_tree(json.loads(text), keys)
        except (ValueError, RecursionError):
            return redact_tree(text, keys)

    def _decide(self, start: bytes) -> None:
        """Tell a stream from all else, such as a data URL."""
        self.is_stream = bool(re.match(rb"data:(?!image/)|event:|id:|retry:|:", start))

    def _take_line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if not line:
            self._end_event()
        elif field == b"event":
            self._end_event()
            self._event_name = value.decode("utf-8", "replace").strip()
        elif field == b"data" and value[:20].strip() == b"[DONE]":
            self._end_event()
            self.is_finished |= not self.has_failed
            self.is_over = True
        elif field == b"data" or line.startswith(b"{"):  # some leave the field's name out
            self._data.append(value if field == b"data" else line)
            if len(self._data) == 1:  # most events are one line, and some lack the blank line
                self._take_data()

    def _end_event(self) -> None:
        self._take_data()
        text = b"\n".join(self._data).decode("utf-8", "replace").strip()
        if text and text[0] not in '{["':  # no JSON at all; broken JSON is nothing
            key = "content"
            if self._event_name == "error":
                key = "error"
                self.has_failed = True
            self.events.append({key: text})
        self._data.clear()
        self._event_name = ""

    def _take_data(self) -> None:
        """Read the event's data so far as JSON, if it is that already."""
        try:
            event = json.loads(b"\n".join(self._data))
        except (ValueError, RecursionError):
            return  # more lines may complete it
        self._data.clear()
        if isinstance(event, dict):
            kind = event.get("type") or self._event_name or event.get("object")
            self._take_event(event, str(kind))
        elif isinstance(event, list):
            self.events.append(event)
        elif event is not None:
            self.events.append({"content": str(event)})

    def _take_event(self, event: JsonObject, kind: str) -> None:
        is_done = is_final(event, kind)
        has_index = event.get("partial_image_index") is not None
        if re.search(DRAFT_EVENT, kind) or (has_index and not is_done):
            self.draft_event = event
            self.draft_count += 1
            log.info("draft %d has arrived", self.draft_count, extra={"live": True})
            return
        if re.search(ERROR_EVENT, kind) and not event.get("error"):
            event = {"error": event}
        self.has_failed |= bool(event.get("error"))
        for choice in list_in(event, "choices"):
            delta = choice.get("delta")
            if isinstance(delta, dict) and isinstance(delta.get("content"), str):
                self._texts.append(delta.pop("content"))
        if has_images(event):  # what came before was a draft
            self.events = [earlier for earlier in self.events if not has_images(earlier)]
        self.is_finished |= is_done
        self.is_over |= is_done and kind.endswith("completed")
        self.events.append(event)


def has_images(event: Any) -> bool:
    """Whether a chat's event brings a picture."""
    if not isinstance(event, dict):
        return False
    for choice in list_in(event, "choices"):
        delta = choice.get("delta")
        if isinstance(delta, dict) and (delta.get("images") or delta.get("image")):
            return True
    return False


def list_in(tree: JsonObject, key: str) -> list[JsonObject]:
    """The objects of a list that should stand under a key."""
    items = tree.get(key)
    if not isinstance(items, list):
        return []
    return [item for item in items if isinstance(item, dict)]


def is_final(event: JsonObject, kind: str) -> bool:
    """Whether a stream's event says that the picture is complete.

    It is a FINAL_EVENT, has a finish_reason (chats), a finishReason (Google) or the status
    succeeded (GrsAI), or is a whole answer in one event.
    """
    choices = [*list_in(event, "choices"), *list_in(event, "candidates")]
    reasons = [choice.get("finish_reason") or choice.get("finishReason") for choice in choices]
    if event.get("error") or "error" in reasons:  # this is how OpenRouter ends a broken stream
        return False
    has_ended = any(reasons) or re.search(FINAL_EVENT, kind) or event.get("status") == "succeeded"
    is_whole = list_in(event, "data") or any(choice.get("message") for choice in choices)
    return bool(has_ended or is_whole)


def parse_body(body: Any) -> Any:
    """A body of bytes or text as a JSON tree, an event stream as the list of its events."""
    if isinstance(body, str):
        body = body.encode("utf-8", "replace")
    if not isinstance(body, (bytes, bytearray)):
        return redact_tree(body, ())
    inbox = Inbox()
    inbox.feed(bytes(body))
    return inbox.tree()


def walk(tree: Any, path: Route = ()) -> Iterator[tuple[Route, str]]:
    """Every text and number of a tree in order, with the keys and indices that lead to it."""
    if isinstance(tree, (str, int, float)):
        yield path, str(tree)
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from walk(item, (*path, index))
    elif isinstance(tree, dict):
        if tree.get("thought") is True:  # Google's mark for a part that is a draft
            path = (*path, "thought")
        for key, item in tree.items():
            yield from walk(item, (*path, key))


def texts_under(tree: Any, keys: str) -> list[str]:
    """The texts whose own key matches, blank ones left out; the key of a bare string is ""."""
    texts = []
    for path, text in walk(tree):
        key = str(path[-1]) if path else ""
        is_said = text.strip() not in ("", "None")  # "type": "None" (LiteLLM)
        if is_said and re.fullmatch(keys, key, re.I):
            texts.append(text)
    return texts


def one_line(text: str) -> str:
    """Untrusted text as one short printable line; of an HTML page its title."""
    text = text[:20_000]
    if is_page(text):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.I | re.S)
        text = title[1] if title else re.sub(r"<[^>]*>", " ", text)
    printable = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(printable.split())
    if len(text) > MAX_QUOTE_CHARS:
        text = text[: MAX_QUOTE_CHARS - 1] + "…"
    return text


def is_page(text: Any) -> bool:
    """Whether an answer is a web page, such as a log-in's."""
    return isinstance(text, str) and bool(re.match(PAGE, text))


def as_sentence(text: str) -> str:
    """A text that may end in what a gateway said, with its full stop or other mark."""
    if text.endswith(tuple("?!…。！？")):
        return text
    return text.rstrip(".") + "."


def decode_base64(text: str) -> bytes:
    """Base64 of either alphabet, padded or not, in lines or not; b"" if it is no picture."""
    from binascii import a2b_base64  # unlike b64decode it makes no copy of the text
    from urllib.parse import unquote

    text = unquote(text).replace("-", "+").replace("_", "/").rstrip()
    for end in (None, -1):  # one letter less: it was cut off inside a group of four
        with contextlib.suppress(ValueError):
            data = a2b_base64(text[:end] + "==")
            return data if sniff_format(data) else b""
    return b""


def keys_of(path: Route) -> str:
    """The keys on the way to a place, without the indices: data.url"""
    return ".".join(step for step in path if isinstance(step, str))


def rank_of(path: Route) -> int:
    """How likely the result stands here: 0 likely, 1 a draft, 2 something else altogether."""
    keys = keys_of(path)
    if re.search(FOREIGN_KEYS, keys):
        return 2
    return 1 if re.search(DRAFT_KEYS, keys) else 0


def find_candidates(tree: Any) -> Iterator[Candidate]:
    """All that may be the result, in order: base64 whose first bytes are a picture's, and links."""
    for path, text in walk(tree):
        if len(text) < 5:
            continue
        rank = rank_of(path)
        if "\\" in text:  # JSON within JSON (kie.ai)
            text = text.replace("\\/", "/").replace("\\u0026", "&").replace("\\u003d", "=")
        decoded = [decode_base64(match) for match in re.findall(BASE64, text)]
        for data in filter(None, decoded):
            yield Candidate(path, rank, data=data)
        if any(decoded):
            continue
        for link, penalty in find_links(path, text).items():
            yield Candidate(path, rank + penalty, link=link)


def find_links(path: Route, text: str) -> dict[str, int]:
    """The links in a text, and how much less likely each is than one that surely is a picture's.

    A link may be the whole text, as under a key such as url; otherwise see `links_in_prose`.
    """
    text = text.strip()
    if re.search(ACTING_KEYS, keys_of(path)):
        return {}
    address = ADDRESS if re.search(LINK_KEYS, keys_of(path)) else BARE_LINK
    if len(text) < MAX_LINK_CHARS and re.fullmatch(address, text):
        return {text: 0 if "/" in text else 1}  # fal's file_name is hardly an address
    head, rest = text[:8000], text[8000:]
    return links_in_prose(head + rest[-8000:])  # it may stand behind long thoughts


def links_in_prose(text: str) -> dict[str, int]:
    """The links in running text, with penalties as in `find_links`.

    ![image](/media/a.png) -> 0    https://a.example/b.png -> 0    https://a.example -> UNLIKELY
    """
    links: dict[str, int] = {}
    for match in re.finditer(SHOWN_LINK, text):
        link = tidy_link(match[1] or match[2])
        if not re.match(OTHER_SCHEME, link):
            links.setdefault(link, penalty_of(match[0]))
    is_shown = bool(links)  # then a mere address is more likely a source
    for match in re.finditer(BARE_LINK, text):
        link = tidy_link(match[0])
        before = text[: match.start()][-40:]
        penalty = UNLIKELY
        if re.search(PICTURE_LABEL, before):
            penalty = penalty_of(before + link)
        elif re.search(PICTURE_NAME, link):
            penalty = max(penalty_of(before + link), is_shown)
        links.setdefault(link, penalty)
    return links


def penalty_of(words: str) -> int:
    """How much less likely a link is by the words around it: ![avatar](…) is hardly the result."""
    return 2 if re.search(AVATAR, words) else 0


def tidy_link(link: str) -> str:
    return link.rstrip(".,;:!?*").replace("&amp;", "&")


# One way to read an answer: for each picture that was made, its alternatives, best first.
Reading = list[list[Candidate]]


def likelihood(candidate: Candidate) -> tuple[int, bool, bool]:
    """To sort by: the likelier rank, where the API puts the result, and bytes come first."""
    is_standard = re.fullmatch(STANDARD_PLACE, keys_of(candidate.path))
    return candidate.rank, not is_standard, not candidate.data


def place_of(path: Route) -> tuple[str, Route]:
    """The key at the top and the innermost list's element: data.0.url -> data, data.0"""
    top = ""
    if path and isinstance(path[0], str):
        top = path[0]
    while path and not isinstance(path[-1], int):
        path = path[:-1]
    return top, path


def arrange(candidates: Sequence[Candidate], family: str) -> list[Reading]:
    """The ways to read an answer, likeliest first.

    openai: an element of a list is a picture; what stands under one top key is one reading.
    gemini: there is one picture, the last; those before it are drafts.
    """
    readings: dict[Any, dict[Route, list[Candidate]]] = {}
    for candidate in candidates:
        path = candidate.path if family == "openai" else ()
        top, element = place_of(path)
        rank, is_elsewhere, _ = likelihood(candidate)
        pictures = readings.setdefault((rank, is_elsewhere, top), {})
        pictures.setdefault(element, []).insert(0, candidate)
    ordered = []
    for pictures in readings.values():
        ordered.append([sorted(group, key=likelihood) for group in pictures.values()])
    return sorted(ordered, key=lambda reading: likelihood(reading[0][0]))


Fetch = Callable[[Candidate], Picture]


class Retrieval:
    """Retrieves the pictures of an answer, and notes what went wrong.

    echoes  the references as they were sent: a gateway that returns one has made nothing
    fetch   gets the picture behind a candidate's link; raises ResponseError
    """

    def __init__(self, wanted: int, echoes: Sequence[bytes], fetch: Fetch) -> None:
        self.pictures: list[Picture] = []
        self.faults: list[str] = []
        self.links: list[str] = []  # those of the faults
        self.partial = b""  # the longest piece of a picture that does not decode
        self._wanted = wanted
        self._echoes = echoes
        self._fetch = fetch
        self._links_left = MAX_LINKS

    def run(self, candidates: Sequence[Candidate], family: str) -> None:
        """Decode candidates until a reading has a picture; raises Interrupted before the first.

        Where a likely picture fails, a draft may stand in for it, but nothing less likely.
        """
        for reading in arrange(candidates, family):
            if self.pictures or (self.faults and reading[0][0].rank > 1):
                return
            for alternatives in reading:
                self._retrieve(alternatives)

    def _retrieve(self, alternatives: Sequence[Candidate]) -> None:
        for candidate in alternatives:
            try:
                picture = self._open(candidate)
            except Interrupted as error:
                if not self.pictures:
                    raise
                self._note(candidate, error)
                return
            except (PictureError, ResponseError) as error:
                if candidate.rank < UNLIKELY:
                    self._note(candidate, error)
                continue
            if picture.data not in self._echoes and not self._is_repeated(picture):
                self.pictures.append(picture)
                return

    def _is_repeated(self, picture: Picture) -> bool:
        """Whether a relay sends the same picture once more, in its last event."""
        is_known = any(picture.data == taken.data for taken in self.pictures)
        return is_known and len(self.pictures) >= self._wanted

    def _open(self, candidate: Candidate) -> Picture:
        if candidate.data:
            return read_picture(candidate.data)
        if not self._links_left:
            raise PictureError(f"only {MAX_LINKS} links of an answer are fetched")
        self._links_left -= 1
        return self._fetch(candidate)

    def _note(self, candidate: Candidate, error: Exception) -> None:
        fault = getattr(error, "message", str(error)).rstrip(".")
        if fault not in self.faults:
            self.faults.append(fault)
        if candidate.link:
            self.links += getattr(error, "image_urls", None) or [candidate.link]
        self.partial = max(self.partial, candidate.data, key=len)


def read_answer(
    tree: Any,
    args: Args,
    echoes: Sequence[bytes],
    fetch: Fetch,
) -> tuple[list[Picture], JsonObject]:
    """All pictures of a successful answer, and its usage; see `Retrieval` for echoes and fetch.

    raises: ResponseError, or the error that the answer amounts to
    """
    family = model_of(args).family
    if is_page(tree):
        classify_response_error(family, tree)
    refusal = refusal_in(tree)
    found = [candidate for candidate in find_candidates(tree) if candidate.data not in echoes]
    candidates = plausible(found, tree, refusal)
    has_bytes = any(candidate.data for candidate in candidates)
    if opens_as_refusal(tree) and not has_bytes:  # its links lead to policies, not to a picture
        classify_response_error(family, tree)
    retrieval = Retrieval(args.n, echoes, fetch)
    retrieval.run(candidates, family)
    if not retrieval.pictures and not retrieval.faults:
        classify_response_error(family, tree)
    if not retrieval.pictures:
        raise lost_picture_error(retrieval, tree)
    if refusal:  # CONTENT_FILTERED (Stability) comes with a blurred picture
        warn("the gateway says about its answer: %s", one_line(refusal))
    if len(retrieval.pictures) < args.n:
        warn("the gateway made only %d of %d pictures", len(retrieval.pictures), args.n)
    if retrieval.faults:
        faults = as_sentence("; ".join(retrieval.faults))
        lost = " ".join([faults, *retrieval.links])
        text = "the most likely picture could not be retrieved, so another one is used: %s"
        warn("a picture could not be retrieved: %s" if args.n > 1 else text, lost)
    return retrieval.pictures, find_usage(tree)


def plausible(candidates: Sequence[Candidate], tree: Any, refusal: str) -> list[Candidate]:
    """Those that may be the result, by what the answer says about itself.

    If its work has failed, only bytes and what stands where the API puts the result may be it. If
    the answer speaks of an error or a refusal, or its work is unfinished, what stands under a
    foreign name is not, such as what was sent.
    """
    state = state_of(tree)
    has_failed = re.search(FAILED, state)
    is_error = not isinstance(stated_error(tree), ResponseError)
    is_doubtful = is_error or refusal or re.search(UNFINISHED, state)
    chosen = []
    for candidate in candidates:
        rank, is_elsewhere, has_no_bytes = likelihood(candidate)
        is_sure = rank == 0 and not (is_elsewhere and has_no_bytes)
        if is_sure or not (has_failed or (is_doubtful and rank > 1)):
            chosen.append(candidate)
    return chosen


def state_of(tree: Any) -> str:
    """The state of an answer's work as a whole, not of one of its pictures or attempts."""
    states = []
    for path, text in walk(tree):
        is_in_list = any(isinstance(step, int) for step in path)
        if path and not is_in_list and re.fullmatch(STATE_KEY, path[-1]):
            states.append(text)
    return " ".join(states)


def lost_picture_error(retrieval: Retrieval, tree: Any) -> ResponseError:
    """The error for an answer whose picture is paid for but could not be retrieved."""
    what = "The gateway's picture"
    tasks = task_ids(tree)
    if tasks:
        what += f" of the task {one_line(tasks[0])}"
    hint = ""
    if retrieval.links:
        hint = f"It has been paid for. Download it soon by other means: {' '.join(retrieval.links)}"
    error = ResponseError(
        f"{what} could not be retrieved: {'; '.join(retrieval.faults)}.",
        hint,
        image_urls=retrieval.links,
    )
    error.partial = retrieval.partial
    return error


def find_usage(tree: Any) -> JsonObject:
    """The numbers of tokens that a gateway states, from the top down; the last of a stream."""
    items = tree if isinstance(tree, list) else []
    if isinstance(tree, dict):
        for usage in (tree.get("usage"), tree.get("usageMetadata")):
            if usage and isinstance(usage, dict):
                return usage
        items = list(tree.values())
    for item in reversed(items):
        usage = find_usage(item)
        if usage:
            return usage
    return {}


def refusal_in(tree: Any) -> str:
    """The reason that a model gives for refusing, "" when it gives none."""
    reasons = texts_under(tree, "refusal|block_?reason|rai_?filtered_?reason")
    reasons = [text for text in reasons if not re.fullmatch(NO_REASON, text)]
    # content_filter (OpenAI), IMAGE_SAFETY (Google), the status "Content Moderated" (BFL), failMsg
    # "Content was flagged by …" (kie.ai)
    for ending in texts_under(tree, r"\w*(reason|msg)|status|state|error"):
        sentence = ending[:1000]
        code = "" if len(sentence.split()) > 2 else snake_case(sentence)
        if fits(REFUSAL, 200, code, sentence):
            reasons.append(ending)
    return reasons[0] if reasons else ""


def opens_as_refusal(tree: Any) -> bool:
    """Whether the model's words begin by saying that it will not or cannot."""
    words = " ".join(texts_under(tree, "|content|text"))[:20_000]
    words = re.sub(r"(?s)\A\s*<think>.*?</think>", "", words)
    opening = words.lstrip(' \n\t*>"“')
    return bool(re.match(REFUSAL_OPENING, opening))


def task_ids(tree: Any) -> list[str]:
    """The ids of work that a gateway has begun but not finished, and that has not failed."""
    names = "(task|job|generation|prediction)_?id"
    states = " ".join(texts_under(tree, r"\w*(status|state)"))
    if re.search(FAILED, states):
        return []
    if re.search(UNFINISHED, states):
        names += "|(request_?)?id"
    return texts_under(tree, names)


def snake_case(words: str) -> str:
    """Words in snake case: InputImageSensitive -> input_image_sensitive"""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", words).lower()


def fits(row: Meaning, status: int, codes: str, sentence: str) -> bool:
    """Whether a row of MEANINGS fits an answer.

    A 5xx is never judged by its sentence, and only a gateway's own 500 and 503 by their codes.
    """
    if not re.match(row.status, str(status)):
        return False
    has_own_codes = status < 500 or status in (500, 503)
    if row.codes and has_own_codes and re.search(row.codes, codes):
        return True
    if row.phrases and status < 500 and re.search(row.phrases, sentence, re.I):
        return True
    return not row.codes and not row.phrases


def sentence_of(tree: Any) -> str:
    """What a gateway says about an error, preceded by the field that it blames.

    FastAPI's loc: body.n: too large    OpenAI's param, when the sentence does not name it
    """
    said = texts_under(tree, MESSAGE_KEYS)
    said = said or texts_under(tree, r"detail|(error_)?description|error|title|\d+")
    sentence = "".join(said[:1])
    fields = [text for path, text in walk(tree) if "loc" in path]
    params = [param for param in texts_under(tree, "param") if param not in sentence]
    parts = [".".join(fields), *params[:1], sentence]
    return one_line(": ".join(filter(None, parts)))


def gateway_error(status: int, tree: Any) -> ImageGenError:
    """The error that a status and a body's codes and sentence amount to.

    {"error": {"message": "No", "type": "bad", "code": null}} has the sentence "No", the code "bad"
    """
    sentence = sentence_of(tree)
    words = texts_under(tree, "(error_?)?code|reason") + texts_under(tree, "type|status|error")
    codes = [word for word in words if re.fullmatch(r"(?=.*[^\W\d])[\w.:-]{1,80}", word)]
    stems = snake_case(" ".join(codes))
    unquoted = re.sub(QUOTED, "''", sentence)
    row = next(row for row in MEANINGS if fits(row, status, stems, unquoted))
    said = f"The gateway answered {status}"
    if codes:
        said += f" ({codes[0]})"
    if sentence:
        said += f": {sentence}"
    return row.error(
        as_sentence(said),
        row.hint,
        status=status,
        retryable=row.retryable,
    )


def read_retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that Retry-After or retry-after-ms asks for, at most 60; 0 if neither is set."""
    from email.utils import mktime_tz, parsedate_tz

    wish = headers.get("retry-after", "").strip()
    with contextlib.suppress(Exception):  # whatever it is, it is no reason to fail
        date = parsedate_tz(wish)
        if date:
            zone = date[9] or 0  # without a zone it is GMT
            seconds = mktime_tz((*date[:9], zone)) - time.time()
        elif wish:
            seconds = float(wish)
        else:
            seconds = float(headers["retry-after-ms"]) / 1000
        return min(max(0.0, seconds), MAX_RETRY_AFTER_S)
    return 0.0


def handle_http_error(
    family: str,
    status: int,
    body: Any,
    headers: Mapping[str, str] | None = None,
) -> NoReturn:
    """Raise the ImageGenError of an answer whose status is not a success.

    family  does not matter
    body    bytes, text or a JSON tree
    """
    lowered = {name.lower(): value for name, value in (headers or {}).items()}
    if 300 <= status < 400:
        place = lowered.get("location", "nowhere")
        body = f"it redirects to {place}, and a request that may be billed follows no redirect"
    tree = parse_body(body)
    error = gateway_error(status, tree)
    counts = find_usage(tree).values()
    if error.billed == "no" and any(type(count) is int and count > 0 for count in counts):
        error.billed = "maybe"  # xAI: "usage": {"cost_in_usd_ticks": 200000000}
    if "retry-after-ms" not in lowered:
        # "retryDelay": "34.07s" (Google), "retry_after": 30 (Cloudflare)
        delays = texts_under(tree, "retry_?(delay|after)")
        lowered.setdefault("retry-after", "".join(delays[:1]).rstrip("s"))
    error.retry_after_s = read_retry_after(lowered)
    raise error


def gateways_words(tree: Any) -> list[Any]:
    """The gateway's own words, without the model's and without other attempts' logs."""
    said: list[Any] = []
    for path, text in walk(tree):
        if not path:
            said.append(text)
        elif re.match(GATEWAYS_PLACE, keys_of(path)):
            said.append({path[-1]: text})
    return said


def stated_error(tree: Any) -> ImageGenError:
    """The error that a gateway speaks of in a successful answer; ResponseError for none."""
    said = gateways_words(tree)
    numbers = texts_under(said, r"\w*(code|status)")
    statuses = [int(number) for number in numbers if re.fullmatch("[45][0-9][0-9]", number)]
    return gateway_error(statuses[0] if statuses else 200, said)


def classify_response_error(family: str, body: Any) -> NoReturn:
    """Raise the ImageGenError of a successful answer without a picture.

    family  does not matter
    body    bytes, text or a JSON tree
    """
    tree = parse_body(body)
    error = stated_error(tree)
    found_links = [found.link for found in find_candidates(tree) if found.link]
    links = list(dict.fromkeys(found_links))  # each once
    if isinstance(error, ResponseError):  # the gateway reports no error
        raise no_image_error(tree, links)
    error.image_urls = links
    raise error


def no_image_error(tree: Any, links: Sequence[str]) -> ImageGenError:
    """The error for an answer that reports no error but has no picture either."""
    refusal = refusal_in(tree)
    if refusal:
        return RefusedError(
            as_sentence(f"The model refused: {one_line(refusal)}"),
            image_urls=links,
        )
    words = texts_under(tree, f"{MESSAGE_KEYS}|content|text|detail|error")
    said = words or [f"{keys_of(path)}: {text[:80]};" for path, text in walk(tree) if text.strip()]
    shown = one_line(" ".join(said)).rstrip(";")
    quoted = f": {shown}" if shown else ""
    if is_page(tree):
        return ResponseError(
            as_sentence(f"The answer is a web page{quoted}"),
            "Check the base URL: most end in /v1.",
            billed="maybe",
        )
    for task in task_ids(tree):
        what = f"The answer has no image, only the unfinished task {one_line(task)}"
        return ResponseError(
            as_sentence(what + quoted),
            "Ask the gateway for the result of that task: this program reads only finished ones.",
            image_urls=links,
        )
    hints = []
    if words:
        hints.append(
            "The words may be a refusal, which costs little or nothing: "
            "reword the prompt, and ask before trying again."
        )
    if links:
        hints.append(f"A link in it may lead to the picture: {' '.join(links)}")
    return ResponseError(
        as_sentence(f"The answer holds no image{quoted}"),
        " ".join(hints),
        billed="maybe" if words else "yes",
        image_urls=links,
    )


def read_draft(inbox: Inbox, candidates: Sequence[Candidate]) -> bytes:
    """The last draft that decodes of a stream without its final picture; b"" without one."""
    drafts = [*find_candidates(inbox.draft_event), *candidates]
    for candidate in reversed(drafts):
        with contextlib.suppress(PictureError):
            if candidate.data:
                return read_picture(candidate.data).data
    return b""


# --- Wire: the only code that opens sockets ---


class Answer:
    """What has arrived of a server's answer; the thread that talks to the server fills it in.

    Whoever waits for it may end it first. From then on, nothing more is sent or received.
    """

    def __init__(self) -> None:
        self.status = 0  # none has arrived yet
        self.headers: Mapping[str, str] = {}
        self.inbox = Inbox()
        self.fault: Fault | None = None  # why it ended early; None when it is whole
        self.is_sent = False  # some of the request's body has gone out
        self._has_ended = False
        self._lock = threading.Lock()

    def claim_sending(self) -> None:
        with self._lock:
            if self._has_ended:
                raise OSError("nobody waits for the answer any more")
            self.is_sent = True

    def take_in(self, chunk: bytes) -> bool:
        """Feed the inbox; returns False once nothing more is wanted."""
        with self._lock:
            if self._has_ended:
                return False
            self.inbox.feed(chunk)
            return not self.inbox.is_over

    def end(self, fault: Fault | None) -> bool:
        """End the answer, unless it has ended already; returns whether this was its end."""
        with self._lock:
            if self._has_ended:
                return False
            self._has_ended = True
            self.fault = fault
            return True


class Body(io.BytesIO):
    """A request's body that notes when it is first read: the connection is then established.

    If none of the body was read, the call cannot have been billed, whatever went wrong.
    """

    def __init__(self, data: bytes, answer: Answer) -> None:
        super().__init__(data)
        self._answer = answer

    def read(self, size: int | None = -1) -> bytes:
        self._answer.claim_sending()
        return super().read(size)


class Request(NamedTuple):
    """One HTTP request; POST with data, else GET."""

    url: str
    data: bytes | None = None
    content_type: str | None = None
    key: str = ""  # "" sends no Authorization
    proxy: str | None = None
    limit_bytes: int = MAX_ANSWER_BYTES


def open_session(proxy: str | None) -> Any:
    """A requests session that ignores the environment's proxies and .netrc."""
    import requests

    session = requests.Session()
    session.trust_env = False
    if proxy:
        session.proxies = {"all": proxy}
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    if bundle:
        session.verify = bundle
    session.headers["User-Agent"] = f"product-shots-image-gen/{VERSION}"
    session.headers["Accept-Encoding"] = "gzip"
    return session


def converse(request: Request, answer: Answer, time_s: float) -> None:
    """Make a request and read its answer for as long as somebody waits for it."""

    def authorise(prepared: Any) -> Any:  # as an auth object, so that nothing can take its place
        if request.key:
            prepared.headers["Authorization"] = f"Bearer {request.key}"
        return prepared

    fault = None
    try:
        with open_session(request.proxy) as session:
            body = None if request.data is None else Body(request.data, answer)
            response = session.request(
                "GET" if body is None else "POST",
                request.url,
                data=body,
                headers={"Content-Type": request.content_type},  # None leaves it out
                auth=authorise,
                timeout=(CONNECT_TIMEOUT_S, time_s),
                allow_redirects=False,
                stream=True,
            )
            answer.headers = response.headers
            answer.status = response.status_code
            limit_bytes = request.limit_bytes if answer.status < 300 else MAX_ERROR_BYTES
            size = 0
            for chunk in chunks_of(response):
                size += len(chunk)
                if size > limit_bytes:
                    fault = TOO_LONG
                    break
                if not answer.take_in(chunk):
                    break
    except Exception as error:  # requests, urllib3, http.client, ssl and zlib each have their own
        fault = wire_fault(error)
    answer.end(fault)


def chunks_of(response: Any) -> Iterator[bytes]:
    """The body as it arrives, unpacked when it is gzip; raises ValueError when it is not whole."""
    import zlib

    source = response.raw._fp  # read1() hands over what is there; read() would lose it on a reset
    chunk = source.read1(65_536)
    is_packed = bool(chunk) and GZIP_START.startswith(chunk[:2])  # declared or not
    member = zlib.decompressobj(31)
    while chunk:
        if not is_packed:
            yield chunk
        while chunk and is_packed:
            yield member.decompress(chunk, 2**20)
            chunk = member.unconsumed_tail or member.unused_data
            if member.eof:
                member = zlib.decompressobj(31)
        chunk = source.read1(65_536)
    if source.length:  # so many bytes were announced and did not come
        raise ValueError("closed")


def wire_fault(error: Exception) -> Fault:
    """What an exception of the wire means."""
    name = type(error).__name__
    text = re.sub(r"host='[^']*'|url: \S+", "", f"{name} {error}")  # these may hold such words
    for pattern, fault in WIRE_FAULTS:
        if re.search(pattern, text, re.I):
            return fault
    return Fault(name)


def exchange(request: Request, deadline: float) -> Answer:
    """Make a request and return what has arrived by the deadline (in time.monotonic()).

    A thread talks to the server and is abandoned when it is late, so that no silent, trickling
    or endless server outlasts the deadline.
    raises: UnavailableError when not even a status arrived, Interrupted
    """
    answer = Answer()
    started = time.monotonic()
    connect_by = min(deadline, started + CONNECT_TIMEOUT_S)
    time_s = max(POLL_S, deadline - started)
    thread = threading.Thread(target=converse, args=(request, answer, time_s), daemon=True)
    try:
        thread.start()
        wait_for_answer(thread, request, answer, deadline, connect_by)
    finally:  # whatever ends the waiting, Ctrl-C in a library too: nothing more may be sent
        is_given_up = answer.end(TIME_IS_OVER)
    if is_given_up and STOP.is_set() and not answer.inbox.is_finished:
        billed = "maybe" if answer.is_sent else "no"
        raise Interrupted("Interrupted.", billed=billed)
    if not answer.status:
        raise no_answer_error(request, answer)
    return answer


def wait_for_answer(
    thread: threading.Thread, request: Request, answer: Answer, deadline: float, connect_by: float
) -> None:
    """Wait until the thread is done, an interrupt comes, or the time is over."""
    while thread.is_alive() and not STOP.is_set():
        is_connected = answer.is_sent or request.data is None
        rest_s = (deadline if is_connected else connect_by) - time.monotonic()
        if rest_s <= 0:
            break
        if answer.is_sent:  # while the gateway makes the picture, load what reads it
            from PIL import Image, JpegImagePlugin, PngImagePlugin  # noqa: F401
        thread.join(min(POLL_S, rest_s))


def no_answer_error(request: Request, answer: Answer) -> UnavailableError:
    """The error of a request that was not answered at all."""
    host = re.split("[/?#]", request.url)[2].rpartition("@")[2]
    fault = answer.fault
    if not answer.is_sent:
        return UnavailableError(
            f"{host} cannot be reached: {fault}.",
            "Check the network, the base URL and the proxy.",
            billed="no",
            retryable=fault is None or fault.is_temporary,
        )
    error = UnavailableError(f"{host} gave no answer: {fault}.")
    error.timed_out = fault == TIME_IS_OVER
    return error


def better_hint(error: ImageGenError, args: Args, target: Target) -> str:
    """The hint of an error, adapted to the call and the gateway."""
    stream = args.label("stream")
    names_stream = re.search(r"(?i)\bstream|partial_images|流式", error.message)
    if args.stream and isinstance(error, RejectedError) and names_stream:
        return f"Leave {stream} out: this gateway does not stream this model's pictures."
    if error.status == 524 and not args.stream:
        return (
            "Before you pay again, consider that this may have been billed; then add "
            f"{stream}: drafts that arrive in the meantime keep the connection alive."
        )
    if error.timed_out and error.hint == UnavailableError.hint:
        return f"Allow more time with {args.label('timeout')}."
    is_unreached = isinstance(error, UnavailableError) and error.billed == "no"
    is_doubtful = is_unreached or isinstance(error, AuthError)
    if is_doubtful and is_loopback(target.url) and target.url_source in os.environ:
        sources = (target.url_source, target.key_source, LEDGER_VARIABLE)
        variables = " ".join(source for source in sources if source in os.environ)
        return (
            f"{error.hint} The base URL is on this machine: if it belongs to a stand-in gateway "
            f"that is no longer running, type: unset {variables}"
        )
    return error.hint


def encode_call(call: Call) -> tuple[bytes | None, str | None]:
    """A call's body and its content type; none for a GET."""
    if call.uploads:
        from urllib3.filepost import encode_multipart_formdata

        parts: list[Any] = list(call.fields.items())
        for field, filename, content in call.uploads:
            file = (filename, content.data, content.mime)
            parts.append((field, file))
        return encode_multipart_formdata(parts)
    if call.fields:
        return json.dumps(call.fields).encode("ascii"), "application/json"
    return None, None


def send(call: Call, target: Target, args: Args, deadline: float) -> Answer:
    """Make a call; raises an ImageGenError if the answer is not a success or none came."""
    raise_if_interrupted()
    data, content_type = encode_call(call)
    limit_bytes = MAX_ANSWER_BYTES * max(args.n, 3)  # drafts come along
    request = Request(call.url, data, content_type, target.key, args.proxy, limit_bytes)
    answer = exchange(request, deadline)
    if 200 <= answer.status < 300:
        return answer
    keys = known_keys(target.key)
    headers = {name: redact(text, keys) for name, text in answer.headers.items()}
    tree = answer.inbox.tree(keys)
    handle_http_error(model_of(args).family, answer.status, tree, headers)


def check_address(request: Request, is_from_public: bool) -> bool:
    """Whether the host of a reference's link is public; raises LinkError when it is refused.

    Link-local addresses hold the credentials of cloud machines (169.254.169.254), and a public
    host has no business redirecting to a private one.
    """
    addresses = resolve(request)
    if any(address.is_link_local for address in addresses):
        raise LinkError("its address is link-local, which is refused", is_temporary=False)
    is_public = all(address.is_global for address in addresses)
    if is_from_public and not is_public:
        fault = "it redirects from a public host to a private one, which is refused"
        raise LinkError(fault, is_temporary=False)
    return is_public


def resolve(request: Request) -> list[Any]:
    """The addresses of a link's host; raises LinkError.

    With a proxy there may be none: a name that is unknown here is left to the proxy.
    """
    import socket

    from urllib3.util import parse_url  # requests parses the address with it, too

    try:
        host = str(parse_url(request.url).host).strip("[]")
        rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except ValueError:
        raise LinkError("it is malformed", is_temporary=False) from None
    except OSError:
        if request.proxy:
            return []
        raise LinkError("its host's name cannot be resolved") from None
    return [read_address(str(address)) for *_, (address, *_) in rows]


def read_address(text: str) -> Any:
    """An IP address, without its zone: fe80::1%eth0; one of IPv4 as such: ::ffff:127.0.0.1."""
    import ipaddress

    address = ipaddress.ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


def without_user(link: str) -> str:
    """A link without user and password: https://me:secret@h/x.png -> https://h/x.png"""
    return re.sub(r"^(\w+:)?//[^/@]*@", r"\1//", link)


def join_link(base: str, link: str, keys: Sequence[str]) -> str:
    """The whole address of a link found at another, without the keys; raises LinkError."""
    from urllib.parse import urljoin

    try:
        return redact(urljoin(base, without_user(link)), keys)
    except ValueError:
        raise LinkError("it is malformed", is_temporary=False) from None


def fetch_once(request: Request, deadline: float, keys: Sequence[str], is_reference: bool) -> bytes:
    """The bytes behind a link and its redirects; raises LinkError, Interrupted."""
    is_public = False
    for _ in range(1 + MAX_REDIRECTS):
        if not re.match("(?i)https?://[^/?#]", request.url):
            raise LinkError("it is not an http or https address", is_temporary=False)
        if is_reference:
            is_public = check_address(request, is_public)
        try:
            answer = exchange(request, deadline)
        except UnavailableError as error:
            raise LinkError(error.message.rstrip("."), error.retryable) from None
        location = answer.headers.get("location")
        if not location or not 300 <= answer.status < 400:
            break
        # Headers are read as Latin-1, and most servers that write others mean UTF-8.
        location = location.encode("latin-1", "replace").decode("utf-8", "replace")
        link = join_link(request.url, location, keys)
        request = request._replace(url=link)
    return whole_body(answer, request.limit_bytes)


def whole_body(answer: Answer, limit_bytes: int) -> bytes:
    """What a link led to; raises LinkError unless all of it arrived."""
    status = answer.status
    if not 200 <= status < 300:
        is_temporary = status >= 500 or status in (408, 425, 429)
        raise LinkError(f"the server answered {status}", is_temporary)
    if answer.fault == TOO_LONG:
        raise LinkError(f"it is larger than {limit_bytes} bytes", TOO_LONG.is_temporary)
    if answer.fault:
        raise LinkError(f"its answer is incomplete: {answer.fault}")
    return bytes(answer.inbox.body)


def fetch(
    request: Request,
    time_s: float,
    keys: Sequence[str],
    tries: int = FETCH_TRIES,
    is_reference: bool = False,
) -> bytes:
    """Fetch the bytes behind a link, in several tries, as they are free. No key is sent.

    For a reference, only temporary faults are tried again; see also `check_address`.
    raises: LinkError, Interrupted
    """
    deadline = time.monotonic() + time_s
    for wait_s in RETRY_WAITS_S[: tries - 1]:
        now = time.monotonic()
        try:  # two thirds of what is left: 20 s, then 6.7 s, of 30 s
            return fetch_once(request, now + (deadline - now) / 1.5, keys, is_reference)
        except LinkError as error:
            is_late = time.monotonic() + wait_s >= deadline
            if is_late or (is_reference and not error.is_temporary):
                raise
        if STOP.wait(wait_s):
            raise Interrupted("Interrupted.")
    return fetch_once(request, deadline, keys, is_reference)


def fetch_result(
    candidate: Candidate, target: Target, args: Args, deadline: float, last_deadline: float
) -> Picture:
    """The picture behind a link of an answer.

    It may take until the deadline of the call, or FETCH_TIMEOUT_S if that is longer, but all links
    together must be done by the last deadline.
    raises: ResponseError with the whole link, Interrupted
    """
    keys = known_keys(target.key)
    url = candidate.link
    now = time.monotonic()
    time_s = min(max(FETCH_TIMEOUT_S, deadline - now), last_deadline - now)
    tries = FETCH_TRIES if candidate.rank < UNLIKELY else 1
    try:
        url = join_link(target.url, url, keys)
        log.info("fetching the picture from %s", url)
        request = Request(url, proxy=args.proxy)
        data = fetch(request, time_s, keys, tries)
        return read_picture(data, url)
    except LinkError as error:
        raise ResponseError(f"its link cannot be fetched: {error}", image_urls=[url]) from None
    except PictureError as error:
        fault = f"what its link leads to cannot be used: {error}"
        raise ResponseError(fault, image_urls=[url]) from None
    except Interrupted as error:
        error.billed = "yes"
        error.image_urls = [url]
        raise


def is_link(source: ReferenceLike) -> bool:
    return isinstance(source, str) and bool(re.match(r"(?i)\s*https?://", source))


def public_link(url: str) -> str:
    """A link without user, query and fragment, which may be secrets."""
    page = re.split("[?#]", url)[0]
    return without_user(page)


def fetch_reference(url: str, args: Args) -> bytes:
    """The bytes behind a reference's link; raises UsageError, UnavailableError."""
    shown = public_link(url)
    log.info("fetching the reference %s", shown)
    request = Request(url.strip(), proxy=args.proxy, limit_bytes=MAX_LINKED_REFERENCE_BYTES)
    try:
        return fetch(request, FETCH_TIMEOUT_S, known_keys(), is_reference=True)
    except LinkError as error:
        fault = f"The reference {shown} cannot be fetched: {error}."
        if error.is_temporary:
            hint = "Check the link, or try again later."
            raise UnavailableError(fault, hint, billed="no") from None
        raise UsageError(fault, "Check the link, or save the picture and give its path.") from None


# --- Disk: the only code that writes pictures ---


class Saved(NamedTuple):
    path: Path
    original: Path | None  # what the gateway sent, if that is something else
    picture: Picture  # what lies at the path


def prove_writable(output: PathLike | None, family: str | None) -> Place:
    """Make sure, before money is spent, that a picture can be stored.

    raises: UsageError for a place that cannot be written, or an extension that Pillow cannot write
    """
    given = "./" if output is None else os.path.expanduser(os.fspath(output))
    is_default = not os.path.basename(given) or os.path.isdir(given)
    path = os.path.join(given, default_name(family)) if is_default else given
    try:
        if not given.strip():
            raise ValueError("it is blank")
        path = os.path.abspath(path)
        try_place(os.path.realpath(path))
    except (OSError, ValueError) as error:
        fault = f"The output {given!r} cannot be written: {reason(error)}."
        raise UsageError(fault, "Choose another file or folder.") from error
    _, extension = os.path.splitext(path)
    extension = extension.lower().rstrip(".")
    return Place(path, is_default, format_of(extension))


def default_name(family: str | None) -> str:
    extension = "png" if family == "openai" else "jpeg"
    return f"output-{int(time.time())}.{extension}"


def try_place(path: str) -> None:
    """Write beside a path as a picture would be; raises OSError or ValueError."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise ValueError("it is not a file")
        if not os.access(path, os.W_OK):
            raise ValueError("it is write-protected")
    folder = os.path.dirname(path)
    while not os.path.lexists(folder) and os.path.dirname(folder) != folder:
        folder = os.path.dirname(folder)
    with partial_file(folder, bytes(MIN_IMAGE_BYTES)):
        pass


def format_of(extension: str) -> str:
    """Pillow's name of the format that an extension promises, "" without one; raises UsageError."""
    if not extension:
        return ""
    if extension in EXTENSIONS:
        return EXTENSIONS[extension]
    from PIL import Image

    size = (300, 200)
    try:
        name = Image.registered_extensions()[extension]
        data = encode(Image.new("RGB", size), name)  # not every registered format can be written
        with Image.open(io.BytesIO(data)) as image:
            if image.size != size:
                raise ValueError("an icon holds other sizes than were asked for")
        return name
    except Exception:
        fault = f"The extension {extension!r} is not a picture format that can be written."
        raise UsageError(fault, "Use .jpeg, .png or .webp, or no extension.") from None


@contextlib.contextmanager
def partial_file(folder: str, data: bytes) -> Iterator[str]:
    """The path of a new hidden file that holds the data, gone at the end unless it was renamed."""
    name = f".image-gen-{os.urandom(8).hex()}.part"
    path = os.path.join(folder, name)
    try:
        with open(path, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if read_file(path) != data:
            raise OSError("what was written is not what can be read")
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def store(data: bytes, path: str, is_new: bool) -> str:
    """Write a file whole or not at all and return its path; a new one gets a number if need be."""
    real = os.path.realpath(path)
    folder = os.path.dirname(real)
    os.makedirs(folder, exist_ok=True)
    with partial_file(folder, data) as part:
        if is_new:
            return claim_name(part, path)
        with contextlib.suppress(OSError):
            mode = os.stat(real).st_mode
            os.chmod(part, stat.S_IMODE(mode))
        os.replace(part, real)
    return path


def claim_name(part: str, path: str) -> str:
    """Give a file the first free name of cup.png, cup-2.png …; no rival can have it as well."""
    number = 1
    while True:
        free = numbered(path, number)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(part, free)
            except OSError:  # taken, or no hard links here: an empty file holds the name
                open(free, "xb").close()
                os.replace(part, free)
            return free
        number += 1


def numbered(path: str, number: int) -> str:
    """The path of the n-th picture: cup.png, cup-2.png, cup-3.png."""
    if number == 1:
        return path
    stem, extension = os.path.splitext(path)
    return f"{stem}-{number}{extension}"


def keep_elsewhere(data: bytes) -> str | None:
    """Store bytes that have no other place in the first folder that takes them."""
    import tempfile

    extension = str(sniff_format(data)).lower()
    name = f"image-gen-kept-{int(time.time())}.{extension}"
    find_folder: Callable[[], PathLike]
    for find_folder in (tempfile.gettempdir, Path.home, Path.cwd):
        with contextlib.suppress(OSError, RuntimeError):
            path = os.path.join(find_folder(), name)
            return store(data, path, is_new=True)
    return None


def keep_remains(error: ImageGenError, partial: bytes, draft: bytes) -> None:
    """Store what arrived of a picture that is paid for, and name it in the error."""
    if draft:
        error.draft_at = keep_elsewhere(draft)
    if partial:
        error.saved_at = keep_elsewhere(partial)
    if error.draft_at:
        error.hint += f" The last draft is kept at {error.draft_at}."
    if partial and error.saved_at:
        error.hint += f" The part that arrived is kept at {error.saved_at}."


def save_one(picture: Picture, path: str, place: Place, fit: str | None) -> Saved:
    """Store a picture, and beside it what the gateway sent if fitting changed it."""
    if fit:
        final = fitted(picture, *pixels_of(fit), place.format)
    else:
        final = in_format(picture, place.format)
    path = store(final.data, path, place.is_default)
    final = final._replace(link=picture.link)
    if not fit or picture.size == final.size:
        return Saved(Path(path), None, final)
    return Saved(Path(path), keep_original(picture, path), final)


def keep_original(picture: Picture, path: str) -> Path | None:
    """Store what the gateway sent beside the picture that was made of it."""
    stem = os.path.splitext(path)[0]
    beside = f"{stem}-original.{picture.format.lower()}"
    try:
        return Path(store(picture.data, beside, is_new=True))
    except OSError as error:
        kept = keep_elsewhere(picture.data)
        text = "the original of %s could not be stored beside it: %s; it is %s"
        warn(text, path, reason(error), f"kept at {kept}" if kept else "lost")
        return Path(kept) if kept else None


def save_all(made: Generation, place: Place, fit: str | None = None) -> None:
    """Store a call's pictures, the second as -2 and so on, and note their paths in it.

    raises: SaveError when one had to be kept elsewhere, ResponseError when one is too small
    """
    kept: list[str | None] = []
    links: list[str | None] = []
    fault = ""
    small: ResponseError | None = None
    for number, picture in enumerate(made.pictures, 1):
        path = place.path if place.is_default else numbered(place.path, number)
        try:
            saved = save_one(picture, path, place, fit)
        except Exception as error:  # even a MemoryError must not lose a paid picture
            fault = fault or reason(error)
            kept.append(keep_elsewhere(picture.data))
            links.append(picture.link)
            continue
        made.paths.append(saved.path)
        made.originals.append(saved.original)
        made.pictures[number - 1] = saved.picture
        sizes = [len(picture.data)]  # a small one may be made of a real one, by --fit or as AVIF
        if not saved.original:
            sizes.append(len(saved.picture.data))
        small = small or small_picture_error(max(sizes), saved.path)
    if fault:
        others = "".join(f"; saved: {path}" for path in made.paths)
        places = " ".join(path or link or "(nowhere)" for path, link in zip(kept, links))
        raise SaveError(
            f"The image could not be stored at {place.path}: {fault}{others}.",
            f"Fetch it from where it is kept: {places}",
            saved_at=next(filter(None, kept), None),
            image_urls=list(filter(None, links)),
        )
    if small:
        raise small


def small_picture_error(size: int, path: Path) -> ResponseError | None:
    """The error of a picture of so many bytes, None when it can be a real one."""
    if size > MIN_IMAGE_BYTES:
        return None
    fault = f"The image has only {size} bytes, too few to be real; it is kept at {path}."
    return ResponseError(fault, saved_at=str(path))


# --- The ledger ---

COLUMNS = {
    "id": "INTEGER PRIMARY KEY",
    "started": "TEXT",  # ISO 8601, in UTC
    "ended": "TEXT",  # null while the call runs
    "model": "TEXT",
    "family": "TEXT",
    "n": "INTEGER",
    "prompt": "TEXT",
    "negative_prompt": "TEXT",
    "reference_images": "TEXT",  # a JSON list, as are the other plurals
    "output": "TEXT",
    "base_url": "TEXT",
    "attempts": "INTEGER",
    "kind": "TEXT",  # of the error; null for a picture, running while the call runs
    "billed": "TEXT",  # yes, no or maybe
    "status": "INTEGER",
    "tokens": "INTEGER",
    "elapsed_s": "REAL",
    "pictures": "INTEGER",
    "cost_cny": "REAL",
    "possible_cost_cny": "REAL",
    "paths": "TEXT",
    "originals": "TEXT",
    "image_urls": "TEXT",
}
LIST_COLUMNS = ("reference_images", "paths", "originals", "image_urls")
SCHEMA_VERSION = 1
# It covers all that is summed up, so that long prompts need not be read.
INDEX = (
    "CREATE INDEX calls_by_start ON calls"
    " (started, model, kind, pictures, cost_cny, possible_cost_cny)"
)
SUMS = (
    "count(*) AS calls, coalesce(sum(pictures), 0) AS pictures,"
    " round(total(cost_cny), 4) AS cost_cny,"
    " round(total(possible_cost_cny), 4) AS possible_cost_cny"
)
PERIOD_SUMS = f"SELECT {SUMS}, count(*) - count(possible_cost_cny) AS unpriced FROM calls"
MODEL_SUMS = (
    f"SELECT model, {SUMS} FROM calls GROUP BY model ORDER BY possible_cost_cny DESC, model"
)
# What the calls of a day may have cost, and how much of that is for calls that have not ended.
SPENT = (
    "SELECT total(possible_cost_cny) AS cny,"
    " total(CASE WHEN kind = 'running' THEN possible_cost_cny END) AS open_cny FROM calls"
)
IN_PERIOD = " WHERE started >= ? AND started < ?"
LAST_CALLS = "SELECT * FROM calls ORDER BY id DESC LIMIT 10"
Row = Mapping[str, Any]


def now_utc() -> str:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def utc_midnight(day: Any) -> str:
    """When a local day begins, in UTC; summer time makes some days 23 or 25 hours long."""
    from datetime import datetime, time, timezone

    midnight = datetime.combine(day, time())
    return midnight.astimezone(timezone.utc).isoformat(timespec="seconds")


def local_time(moment: str) -> str:
    """A moment in UTC in local time: 2026-11-25 14:03:09."""
    from datetime import datetime

    return datetime.fromisoformat(moment).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def create_private(path: str) -> None:
    """Make an empty file, which only its owner can read; raises OSError."""
    folder = os.path.dirname(path)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.close(descriptor)


def has_content(path: str) -> bool:
    """Whether there is anything at the ledger's place; raises LedgerError if that is unknown."""
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise LedgerError(f"{path}: {reason(error)}") from None
    return facts.st_size > 0 or not stat.S_ISREG(facts.st_mode)


def is_ledger_file(path: str) -> bool:
    """Whether a file is empty or a SQLite database; SQLite takes a short text for an empty one."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        start = file.read(16)
    return start in (b"", b"SQLite format 3\0")


@contextlib.contextmanager
def open_ledger(path: str | None, to_write: bool = True) -> Iterator[sqlite3.Connection]:
    """The database in one transaction, which is committed at the end unless an error ends it.

    Without a path it is an empty one in memory.
    raises: LedgerError, whatever goes wrong; a file that is not a ledger stays as it is
    """
    try:
        import sqlite3
    except ImportError:
        raise LedgerError("this Python has no sqlite3") from None
    connection = None
    try:
        if path and to_write and not os.path.exists(path):
            create_private(path)
        if path and not is_ledger_file(path):
            raise ValueError("it is not a database")
        connection = sqlite3.connect(
            path or ":memory:",
            timeout=LEDGER_LOCK_S,
            isolation_level=None,  # transactions are begun by hand
        )
        connection.row_factory = sqlite3.Row
        # A killed process loses nothing without it, and waiting for the disk may take 50 ms a call.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE" if to_write else "BEGIN")
        prepare_ledger(connection)
        yield connection
        connection.execute("COMMIT")
    except (sqlite3.Error, OSError, ValueError, OverflowError) as error:
        raise LedgerError(f"{path}: {reason(error)}") from None
    finally:
        if connection:
            connection.close()  # which rolls back what was not committed


def prepare_ledger(connection: sqlite3.Connection) -> None:
    """Make the table in an empty database; raises ValueError for one of another kind or version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    (others,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version or others:
        raise ValueError(f"it is a database of another kind, or of version {version}")
    columns = ", ".join(map(" ".join, COLUMNS.items()))
    connection.execute(f"CREATE TABLE calls ({columns})")
    connection.execute(INDEX)
    connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def check_terms(attempt_cny: float | None, path: str | None) -> None:
    """Raise BudgetError when a budget cannot be enforced."""
    if attempt_cny is None:
        fault = f"The model has no price, and {BUDGET_VARIABLE} is set."
        raise BudgetError(fault, f"Set its price in {PRICES_VARIABLE}, or unset the budget.")
    if path is None:
        fault = f"The budget of {BUDGET_VARIABLE} needs the ledger, which is off."
        raise BudgetError(fault, f"Unset {LEDGER_VARIABLE}, or unset the budget.")


class Entry:
    """One call's row in the ledger, and its share of the day's budget."""

    def __init__(self, record: Row, budget: float | None, keys: Sequence[str]) -> None:
        self._row: dict[str, Any] = {
            **record,
            "id": None,  # not before it is committed
            "started": now_utc(),
            "kind": "running",
            "billed": "maybe",
            "pictures": 0,
        }
        self._keys = keys
        self._budget = budget
        self._path = ledger_path()  # None when nothing is noted: it is off, or cannot be opened

    def reserve(self, spent: Cost, attempt_cny: float | None, number: int) -> None:
        """Note an attempt before it is sent; `spent` is what those before it may have cost.

        raises: BudgetError when it does not fit into the day's budget, or that cannot be checked
        """
        if self._budget is not None:
            check_terms(attempt_cny, self._path)
        if self._path is None:
            return
        call_cny = round((spent.possible or 0.0) + (attempt_cny or 0.0), 4)
        row = {
            "attempts": number,
            "cost_cny": spent.certain,
            "possible_cost_cny": None if attempt_cny is None else call_cny,
        }
        try:
            with open_ledger(self._path) as connection:
                self._check_budget(connection, call_cny, attempt_cny or 0.0)
                row_id = self._write(connection, row)
            self._row["id"] = row_id
        except LedgerError as error:
            if self._row["id"] is None:  # else the end of the call is another chance
                self._path = None
            self._complain(error)

    def close(self, outcome: Row) -> None:
        """Record the outcome of the call; without a row, nothing was sent."""
        if self._path is None or self._row["id"] is None:
            return
        try:
            with open_ledger(self._path) as connection:
                self._write(connection, outcome)
        except LedgerError as error:
            warn("the outcome of the call could not be written to the ledger: %s", error)

    def _check_budget(
        self, connection: sqlite3.Connection, call_cny: float, attempt_cny: float
    ) -> None:
        """Raise BudgetError when this call may cost more than the others leave of the budget."""
        if self._budget is None:
            return
        from datetime import datetime, timedelta

        day = datetime.fromisoformat(self._row["started"]).astimezone().date()
        tomorrow = day + timedelta(days=1)
        values = (utc_midnight(day), utc_midnight(tomorrow), self._row["id"])
        others = connection.execute(f"{SPENT}{IN_PERIOD} AND id IS NOT ?", values).fetchone()
        if others["cny"] + call_cny <= self._budget + 1e-9:
            return
        spent_cny = others["cny"] + call_cny - attempt_cny
        unfinished = ""
        hint = f"Wait until {tomorrow} 00:00"
        if others["open_cny"]:
            unfinished = (
                f", {others['open_cny']:.2f} of it by calls that are running or were killed"
            )
            hint = f"Wait for the running calls, or until {tomorrow} 00:00"
        raise BudgetError(
            f"The budget of {self._budget:.2f} CNY a day does not allow this attempt of up to "
            f"{attempt_cny:.2f} CNY: up to {spent_cny:.2f} CNY is already spent{unfinished}.",
            f"{hint}; only the user should raise {BUDGET_VARIABLE}.",
        )

    def _write(self, connection: sqlite3.Connection, row: Row) -> int | None:
        """Make the call's row, or replace it; returns its id."""
        values = as_columns({**self._row, **row}, self._keys)
        names = ", ".join(values)
        marks = ", ".join("?" * len(values))
        statement = f"REPLACE INTO calls ({names}) VALUES ({marks})"
        return connection.execute(statement, list(values.values())).lastrowid

    def _complain(self, error: LedgerError) -> None:
        if self._budget is not None:
            fault = f"The ledger cannot be used, so the budget cannot be enforced: {error}."
            raise BudgetError(fault, f"Repair or remove it, or unset {BUDGET_VARIABLE}.") from None
        tell = warn if read_source(LEDGER_VARIABLE) else log.info
        tell("the call is not recorded in the ledger: %s", error)


def as_columns(row: Row, keys: Sequence[str]) -> dict[str, Any]:
    """A row as the table has it: its lists as JSON, and no key."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name in LIST_COLUMNS:
            value = json.dumps(value, ensure_ascii=False)
        if isinstance(value, str):  # a path may have bytes that are no UTF-8
            text = value.encode("utf-8", "backslashreplace").decode("utf-8")
            value = redact_whole(text, keys)
        values[name] = value
    return values


def read_costs(path: str | None) -> dict[str, Any]:
    """What was spent, by period and by model, and the last ten calls; zeros without a ledger.

    raises: LedgerError
    """
    from datetime import date, timedelta

    today = date.today()
    tomorrow = utc_midnight(today + timedelta(days=1))
    limits = {
        "today": (utc_midnight(today), tomorrow),
        "seven_days": (utc_midnight(today - timedelta(days=6)), tomorrow),
        "month": (utc_midnight(today.replace(day=1)), tomorrow),
        "all": ("", "~"),
    }
    database = path if path and has_content(path) else None
    with open_ledger(database, to_write=False) as connection:
        sums = {}
        for period, pair in limits.items():
            row = connection.execute(PERIOD_SUMS + IN_PERIOD, pair).fetchone()
            sums[period] = dict(row)
        models = connection.execute(MODEL_SUMS).fetchall()
        calls = connection.execute(LAST_CALLS).fetchall()
    return {
        "ledger": path,
        "periods": sums,
        "models": [dict(row) for row in models],
        "calls": [decoded(row) for row in calls],
    }


def decoded(row: sqlite3.Row) -> dict[str, Any]:
    """A row with its lists as lists."""
    values = dict(row)
    for name in LIST_COLUMNS:
        with contextlib.suppress(TypeError, ValueError):
            values[name] = json.loads(values[name])
    return values


# --- Money ---

# Input and output tokens, as OpenAI's image endpoints, chats and Google's own API call them.
TOKEN_NAMES = (
    ("input_tokens", "prompt_tokens", "promptTokenCount"),
    ("output_tokens", "completion_tokens", "candidatesTokenCount"),
)


def token_cost(price: Price, usage: Mapping[str, Any]) -> float:
    """What the tokens that a gateway reports come to, in CNY; 0 when that cannot be told."""
    total = 0.0
    for names, price_cny in zip(TOKEN_NAMES, price.tokens or ()):
        counts = [usage[name] for name in names if type(usage.get(name)) in (int, float)]
        count = next(filter(None, counts), 0)
        if not 0 < count < 10**12:
            return 0.0
        total += count * price_cny / 1000
    return total


class Tally:
    """Adds up a call's attempts so far: the money, and parts of pictures that arrived."""

    def __init__(self, price: Price, n: int) -> None:
        self.billed = "no"
        self.attempts = 0
        self.partial = b""  # the longest part of a picture that arrived
        self.draft = b""  # the last draft of a stream that broke off
        self._price = price
        self._n = n
        self._certain = self._possible = 0.0  # CNY
        self._failures = 0  # attempts that failed and may have been billed all the same
        self._by_tokens = False  # the tokens used come to more than the price
        self._are_missing = False  # fewer pictures came than were asked for

    @property
    def attempt_cny(self) -> float | None:
        """What an attempt may cost."""
        picture_cny = self._price.picture
        return None if picture_cny is None else round(picture_cny * self._n, 4)

    @property
    def total(self) -> Cost:
        if self._price.picture is None and self.billed != "no":
            return Cost(None, None)
        return Cost(round(self._certain, 4), round(self._possible, 4))

    def fail(self, error: ImageGenError) -> None:
        self.partial = max(self.partial, error.partial, key=len)
        self.draft = error.draft or self.draft
        cost_cny = self.attempt_cny or 0.0
        certain = cost_cny if error.billed == "yes" else 0.0
        possible = 0.0 if error.billed == "no" else cost_cny
        # Words cost less than a picture's tokens would.
        usage = error.usage if error.billed == "yes" else {}
        self._add(error.billed, certain, possible, usage)
        if error.billed == "maybe":
            self._failures += 1

    def succeed(self, made: Generation) -> None:
        self.partial = self.draft = b""
        picture_cny = self._price.picture or 0.0
        certain = picture_cny * len(made.pictures)
        asked = picture_cny * self._n  # all may be billed, though fewer could be had
        self._are_missing = asked > certain
        self._add("yes", certain, max(certain, asked), made.usage)

    def settle(self, error: ImageGenError) -> None:
        """Write onto a call's last error what all of its attempts have come to."""
        error.billed = self.billed
        error.attempts = self.attempts
        error.cost_cny, error.possible_cost_cny = self.total
        error.bill = self.bill()
        if isinstance(error, Interrupted) and self.billed != "no":
            error.hint = Interrupted.hint

    def bill(self) -> str:
        """The last line of an error that follows a call: was money spent, and how much at most?"""
        possible = self.total.possible
        if self.billed == "no":
            return "not billed"
        if self.billed == "yes":
            return f"billed: {self.cost_text()}"
        if possible is None:
            return "may have been billed: price unknown"
        return f"may have been billed: up to {money(possible)}"

    def cost_text(self) -> str:
        """The cost in words: about 1.00 CNY, possibly 2.00 with the attempt that failed"""
        certain, possible = self.total
        if certain is None or possible is None:
            return "price unknown"
        text = money(certain)
        if not text.startswith("less"):
            text = f"about {text}"
        if possible <= certain:
            return text
        reasons = []
        if self._by_tokens:
            reasons.append("by the tokens used")
        if self._are_missing:
            reasons.append("with the pictures that are missing")
        if self._failures == 1:
            reasons.append("with the attempt that failed")
        elif self._failures:
            reasons.append(f"with the {self._failures} attempts that failed")
        return f"{text}, possibly {money(possible).removesuffix(' CNY')} {' and '.join(reasons)}"

    def _add(self, billed: str, certain: float, possible: float, usage: JsonObject) -> None:
        """Count one attempt; its tokens may come to more than its price."""
        self.attempts += 1
        certainty = ("no", "maybe", "yes").index
        self.billed = max(self.billed, billed, key=certainty)
        by_tokens = token_cost(self._price, usage)
        self._by_tokens = self._by_tokens or by_tokens > possible
        self._certain += certain
        self._possible += max(possible, by_tokens)


def money(amount: float) -> str:
    """An amount in words: 0.35 -> 0.35 CNY, 0.001 -> less than 0.01 CNY"""
    if 0 < amount < 0.005:
        return "less than 0.01 CNY"
    return f"{amount:.2f} CNY"


# --- One call ---


def prepare(args: Args) -> tuple[list[Reference], Reference | None]:
    """The references and the mask as they are sent.

    Two at a time, as more would only take more memory.
    """
    if not args.reference_images:
        return [], None
    from concurrent.futures import ThreadPoolExecutor

    collected = COLLECTED.get([])  # the warnings of the call, which belongs to this thread
    with ThreadPoolExecutor(2, initializer=COLLECTED.set, initargs=(collected,)) as pool:
        prepared = pool.map(prepare_one, args.reference_images, itertools.repeat(args))
        references = list(prepared)
    return references, fit_mask(args.mask, references)


def prepare_one(source: ReferenceLike, args: Args) -> Reference:
    if not is_link(source):
        return maybe_resize(source)
    link = str(source)
    data = fetch_reference(link, args)
    try:
        return shrink(data, REFERENCE_EDGES_PX[0])
    except PictureError as error:
        fault = f"The reference {public_link(link)} cannot be used: {error}."
        raise UsageError(fault, error.hint or "Give a link that leads to a picture.") from None


def shrink_all(
    args: Args, references: Sequence[Reference], edge_px: int
) -> tuple[list[Reference], Reference | None]:
    """The references and the mask again, with fewer pixels; raises UsageError."""
    shrunk = [
        shrink(reference.data, edge_px)._replace(full_size=reference.full_size)
        for reference in references
    ]
    return shrunk, fit_mask(args.mask, shrunk)


def call_with_retries(
    args: Args,
    target: Target,
    references: list[Reference],
    mask: Reference | None,
    tally: Tally,
    entry: Entry,
) -> Generation:
    """Make the call, several times if need be, and note each attempt before it is sent.

    Only image-to-image is tried again, and only after errors that may pass by themselves: a POST
    is not idempotent, and the attempt that failed may have been billed.
    """
    attempts = args.attempts if references else 1
    edges = iter(REFERENCE_EDGES_PX[1:])
    failure: ImageGenError | None = None
    while True:
        number = tally.attempts + 1
        try:
            entry.reserve(tally.total, tally.attempt_cny, number)
        except BudgetError as error:
            if not failure:
                raise
            warn("no further attempt is made. %s", error.message)
            raise failure from None
        try:
            announce(args, number, attempts)
            made = call_once(args, target, references, mask)
            tally.succeed(made)
            return made
        except BaseException as error:  # a bug, too: the request may have been sent
            failure = as_known(error)
            failure.hint = better_hint(failure, args, target)
            tally.fail(failure)
            if number == attempts or not failure.retryable:
                raise
        wait_s = RETRY_WAITS_S[min(number, len(RETRY_WAITS_S)) - 1]
        wait_s = max(wait_s, failure.retry_after_s)
        spent = "was not billed" if failure.billed == "no" else "may have been billed"
        warn("%s That attempt %s; the next one starts in %g s.", failure.message, spent, wait_s)
        if failure.status == 524 or failure.timed_out:  # a proxy cut it off: send less
            edge_px = next(edges, REFERENCE_EDGES_PX[-1])
            with contextlib.suppress(UsageError, Interrupted):  # the mask's file is gone
                references, mask = shrink_all(args, references, edge_px)
        if STOP.wait(wait_s):
            raise Interrupted("Interrupted.")


def announce(args: Args, number: int, attempts: int) -> None:
    """Log what the call waits for; on a terminal, this becomes the live line."""
    model = model_of(args)
    text = f"waiting for {model.name}, typically {model.typical}"
    if attempts > 1:
        text += f", attempt {number} of {attempts}"
    log.info("%s", text, extra={"live": True})


def call_once(
    args: Args, target: Target, references: Sequence[Reference], mask: Reference | None
) -> Generation:
    """One attempt; raises the ImageGenError that it comes to."""
    deadline = time.monotonic() + args.timeout
    call = build_call(args, target.url, references, mask)
    answer = send(call, target, args, deadline)
    inbox = answer.inbox
    tree = inbox.tree(known_keys(target.key))
    echoes = [reference.data for reference in references]
    last_deadline = max(deadline, time.monotonic()) + FETCH_TIMEOUT_S * args.n

    def fetch_candidate(candidate: Candidate) -> Picture:
        return fetch_result(candidate, target, args, deadline, last_deadline)

    try:
        if inbox.is_stream and not inbox.is_finished:
            classify_response_error(model_of(args).family, tree)
        pictures, usage = read_answer(tree, args, echoes, fetch_candidate)
    except ImageGenError as failure:
        raise explained(failure, answer, tree) from None
    endpoint = call.url[len(target.url) :]
    return Generation(pictures, usage, model_of(args).name, endpoint)


def explained(error: ImageGenError, answer: Answer, tree: Any) -> ImageGenError:
    """The error of an answer without a picture, adapted to how the answer ended."""
    inbox = answer.inbox
    ended_early = bool(answer.fault) and not error.image_urls
    if inbox.is_stream:
        ended_early = ended_early or not inbox.is_finished or inbox.draft_count > 0
        pictures = [] if inbox.is_finished else list(find_candidates(tree))
        error.draft = read_draft(inbox, pictures)
    if isinstance(error, ResponseError) and ended_early:
        error = broken_off_error(error, answer)
    error.status = error.status or answer.status
    error.usage = find_usage(tree)
    return error


def broken_off_error(error: ImageGenError, answer: Answer) -> UnavailableError:
    """The error of an answer that ended before its picture was there."""
    inbox = answer.inbox
    what = "The answer was cut off"
    if inbox.is_stream:
        what = "The stream ended without its final picture"
    if inbox.has_failed:
        what = f"{error.message} {what}"
    why = f": {answer.fault}" if answer.fault else ""
    drafts = [draft.link for draft in find_candidates(inbox.draft_event) if draft.link]
    links = list(dict.fromkeys([*error.image_urls, *drafts]))
    hint = f"A draft may be at: {' '.join(links)}" if links else ""
    cut = UnavailableError(f"{what}{why}.", hint, image_urls=links)
    cut.partial = error.partial
    cut.draft = error.draft
    cut.timed_out = answer.fault == TIME_IS_OVER
    return cut


def record_of(args: Args, target: Target, keys: Sequence[str]) -> dict[str, Any]:
    """What the ledger notes of a call that is about to be sent, without any key."""

    def noted(text: object) -> str:
        return redact(str(text), keys)[:MAX_PROMPT_CHARS]

    references = []
    for source in args.reference_images:
        if isinstance(source, bytes):
            source = f"<{len(source)} bytes>"
        elif is_link(source):
            source = public_link(str(source))
        references.append(noted(source))
    return {
        "model": noted(args.model),
        "family": args.family,
        "n": args.n,
        "prompt": noted(args.prompt),
        "negative_prompt": noted(args.negative_prompt) if args.negative_prompt else None,
        "reference_images": references,
        "output": None if args.output is None else noted(os.fspath(args.output)),
        "base_url": noted(target.url),
    }


def run(args: Args, target: Target, save: bool) -> Generation:
    """The whole procedure for validated arguments; a call that was sent is noted in the ledger."""
    require_packages()
    budget = load_budget()
    tally = Tally(price_of(model_of(args).name), args.n)
    place = prove_writable(args.output, args.family) if save else None
    started = time.monotonic()
    references, mask = prepare(args)
    warn_of_shape(args, references)
    keys = known_keys(target.key)
    entry = Entry(record_of(args, target, keys), budget, keys)
    made = Generation([], {}, "", "")  # nothing so far
    failure: ImageGenError | None = None
    try:
        made = call_with_retries(args, target, references, mask, tally, entry)
        if place:
            save_all(made, place, args.fit)
    except BaseException as error:
        failure = as_known(error)
        if tally.attempts:
            tally.settle(failure)
            keep_remains(failure, tally.partial, tally.draft)
            tell_gateway(target)
        if isinstance(failure, InternalError):
            raise failure from error
        raise  # in a library, Ctrl-C stays a KeyboardInterrupt
    finally:
        made.attempts = tally.attempts
        made.elapsed_s = round(time.monotonic() - started, 3)
        made.cost_cny, made.possible_cost_cny = tally.total
        entry.close(outcome_of(made, failure))
    report(made, args, target, tally)
    return made


def as_known(error: BaseException) -> ImageGenError:
    """Any exception as an ImageGenError, bugs and Ctrl-C included."""
    if isinstance(error, ImageGenError):
        return error
    if not isinstance(error, Exception):
        return Interrupted("Interrupted.")
    fault = f"Internal error {type(error).__name__}: {error}."
    return InternalError(fault, "Report it with its traceback.")


def outcome_of(made: Generation, failure: ImageGenError | None) -> dict[str, Any]:
    """What the ledger notes of a call that has ended."""
    paths = texts_of(made.paths)
    originals = texts_of(made.originals)
    links = [picture.link for picture in made.pictures if picture.link]
    usage = made.usage
    if failure:
        links = failure.image_urls
        usage = usage or failure.usage
        if failure.saved_at and failure.saved_at not in paths:
            paths.append(failure.saved_at)
            originals.append(None)
    return {
        "ended": now_utc(),
        "kind": failure.kind if failure else None,
        "billed": failure.billed if failure else "yes",
        "status": failure.status if failure else 200,
        "attempts": made.attempts,
        "tokens": total_tokens(usage),
        "elapsed_s": made.elapsed_s,
        "pictures": len(made.pictures),
        "cost_cny": made.cost_cny,
        "possible_cost_cny": made.possible_cost_cny,
        "paths": paths,
        "originals": originals,
        "image_urls": links,
    }


def texts_of(paths: Sequence[Path | None]) -> list[str | None]:
    """Paths as JSON has them."""
    return [str(path) if path else None for path in paths]


def report(made: Generation, args: Args, target: Target, tally: Tally) -> None:
    """Say what was saved and what it cost, and warn of a shape that was not asked for."""
    count = len(made.paths)
    tokens = f"{made.tokens} tokens" if made.tokens else "tokens unknown"
    call = f"{made.elapsed_s:.1f} s, {tokens}, {tally.cost_text()}"
    for path, original, picture in zip(made.paths, made.originals, made.pictures):
        width, height = picture.size
        facts = f"{width}x{height}, {len(picture.data)} bytes"
        if count == 1:
            facts += f", {call}"
        log.info("saved %s: %s", path, facts)
        if original:
            log.info("the original is kept at %s", original)
        warn_of_other_shape(path, width, height, args)
    if count > 1:
        log.info("%d pictures: %s", count, call)
    tell_gateway(target)


def tell_gateway(target: Target) -> None:
    """Log which gateway was called, and where its URL and key came from."""
    text = "gateway %s (URL: %s, key: %s)"
    log.info(text, target.url, target.url_source, target.key_source)


def warn_of_other_shape(path: Path, width: int, height: int, args: Args) -> None:
    """Warn if a saved picture does not have the shape that was asked for."""
    asked = args.aspect_ratio or args.size
    if not args.fit and is_other_shape(width, height, asked):
        warn("%s is %dx%d, not the shape %s", path, width, height, asked)


def own_folder() -> str:
    return os.path.dirname(os.path.realpath(__file__))


def missing_package() -> str:
    """The first of the packages that are needed and not installed, "" when all are here."""
    import importlib.util

    for module, package in (("requests", "requests"), ("PIL", "Pillow")):
        if not importlib.util.find_spec(module):
            return package
    return ""


def require_packages() -> None:
    """Raise ConfigError when a package is missing, with what to type."""
    import shlex

    missing = missing_package()
    if missing:
        setup = shlex.quote(os.path.join(own_folder(), "setup.sh"))
        fault = f"The package {missing} is not installed for {sys.executable}."
        raise ConfigError(fault, f"Run this, and use the Python that it names: bash {setup}")


# --- Library ---


def generate(
    prompt: str,
    model: str | None = None,
    aspect_ratio: str | None = None,
    negative_prompt: str | None = None,
    reference_images: Sequence[ReferenceLike] = (),
    output_path: PathLike | None = None,
    *,
    family: str | None = None,
    use_case: str | None = None,
    fit: str | None = None,
    size: str | None = None,
    n: int = 1,
    mask: PathLike | None = None,
    params: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    proxy: str | None = None,
    stream: bool = False,
    api_key: str | None = None,
    base_url: str | None = None,
) -> Generation:
    """Make a picture, or n of them, and save it; returns a Generation with the details.

    prompt            what the picture shows, at most 4000 characters
    model             its name decides the family; None is the use case's, else DEFAULT_MODEL
    aspect_ratio      1:1 16:9 9:16 4:3 3:4 3:2 2:3 4:5 5:4 21:9 1.91:1 2.35:1
    negative_prompt   what to avoid
    reference_images  paths, http(s) links or the bytes of pictures to work from
    output_path       a file, which is replaced, or a folder; None is ./output-<time>.<extension>
    family            "openai" or "gemini", only if the model's name is not recognised
    use_case          text-overlay photorealistic creative image-to-image cost-sensitive general
    fit               exact pixels of the saved picture, such as "1080x1350"
    size              the pixels that an openai model is asked for; overrides aspect_ratio
    n                 how many pictures, 1 to 10; openai models only
    mask              path of a PNG that is transparent where the first reference may change
    params            more fields for the request, such as {"quality": "high"}
    timeout           seconds that one attempt may take
    attempts          how often an image-to-image call may be sent, 1 to 5
    proxy             such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream            ask for drafts as the picture is made, so that proxies stay connected
    api_key           in place of the configured key
    base_url          in place of the configured gateway

    returns: a Generation, with paths, cost_cny and more
    raises: ImageGenError, a subclass for each kind of failure
    """
    return perform(locals(), save=True)


def generate_image(
    prompt: str,
    model: str | None = None,
    aspect_ratio: str | None = None,
    negative_prompt: str | None = None,
    reference_images: Sequence[ReferenceLike] = (),
    output_path: PathLike | None = None,
    *,
    family: str | None = None,
    use_case: str | None = None,
    fit: str | None = None,
    size: str | None = None,
    n: int = 1,
    mask: PathLike | None = None,
    params: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    proxy: str | None = None,
    stream: bool = False,
    api_key: str | None = None,
    base_url: str | None = None,
) -> Path:
    """Make a picture and save it; returns its absolute path, with n > 1 that of the first.

    prompt            what the picture shows, at most 4000 characters
    model             its name decides the family; None is the use case's, else DEFAULT_MODEL
    aspect_ratio      1:1 16:9 9:16 4:3 3:4 3:2 2:3 4:5 5:4 21:9 1.91:1 2.35:1
    negative_prompt   what to avoid
    reference_images  paths, http(s) links or the bytes of pictures to work from
    output_path       a file, which is replaced, or a folder; None is ./output-<time>.<extension>
    family            "openai" or "gemini", only if the model's name is not recognised
    use_case          text-overlay photorealistic creative image-to-image cost-sensitive general
    fit               exact pixels of the saved picture, such as "1080x1350"
    size              the pixels that an openai model is asked for; overrides aspect_ratio
    n                 how many pictures, 1 to 10; the others are saved as -2, -3 and so on
    mask              path of a PNG that is transparent where the first reference may change
    params            more fields for the request, such as {"quality": "high"}
    timeout           seconds that one attempt may take
    attempts          how often an image-to-image call may be sent, 1 to 5
    proxy             such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream            ask for drafts as the picture is made, so that proxies stay connected
    api_key           in place of the configured key
    base_url          in place of the configured gateway

    raises: ImageGenError, a subclass for each kind of failure
    """
    return generate(**locals()).paths[0]


def generate_openai(
    prompt: str,
    model: str,
    size: str | None = None,
    n: int = 1,
    ref_images: Sequence[ReferenceLike] = (),
    api_key: str | None = None,
    base_url: str | None = None,
    *,
    aspect_ratio: str | None = None,
    negative_prompt: str | None = None,
    mask: PathLike | None = None,
    params: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    proxy: str | None = None,
    stream: bool = False,
) -> Generation:
    """Make pictures with an openai model and save nothing: `image, usage = generate_openai(…)`.

    prompt           what the picture shows, at most 4000 characters
    model            such as "gpt-image-2"
    size             the pixels to ask for; None is the ratio's size, else 1024x1024
    n                how many pictures, 1 to 10
    ref_images       paths, http(s) links or the bytes of pictures to work from
    api_key          in place of the configured key
    base_url         in place of the configured gateway
    aspect_ratio     such as "16:9", see generate; a size wins over it
    negative_prompt  what to avoid
    mask             path of a PNG that is transparent where the first reference may change
    params           more fields for the request, such as {"quality": "high"}
    timeout          seconds that one attempt may take
    attempts         how often an image-to-image call may be sent, 1 to 5
    proxy            such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream           ask for drafts as the picture is made, so that proxies stay connected

    raises: ImageGenError, a subclass for each kind of failure
    """
    return perform({**locals(), "family": "openai"}, save=False)


def generate_gemini(
    prompt: str,
    model: str = DEFAULT_MODEL,
    ref_images: Sequence[ReferenceLike] = (),
    api_key: str | None = None,
    base_url: str | None = None,
    *,
    aspect_ratio: str | None = None,
    negative_prompt: str | None = None,
    params: Mapping[str, Any] | None = None,
    timeout: float = TIMEOUT_S,
    attempts: int = ATTEMPTS,
    proxy: str | None = None,
    stream: bool = False,
) -> Generation:
    """Make a picture with a gemini model and save nothing: `image, usage = generate_gemini(…)`.

    prompt           what the picture shows, at most 4000 characters
    model            such as "gemini-3-pro-image-preview"
    ref_images       paths, http(s) links or the bytes of pictures to work from
    api_key          in place of the configured key
    base_url         in place of the configured gateway
    aspect_ratio     such as "16:9", see generate
    negative_prompt  what to avoid
    params           more fields for the request
    timeout          seconds that one attempt may take
    attempts         how often an image-to-image call may be sent, 1 to 5
    proxy            such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream           ask for drafts as the picture is made, so that proxies stay connected

    raises: ImageGenError, a subclass for each kind of failure
    """
    return perform({**locals(), "family": "gemini"}, save=False)


def perform(given: dict[str, Any], save: bool) -> Generation:
    """A library's call: read its arguments, run, and collect the warnings."""
    api_key = given.pop("api_key")
    base_url = given.pop("base_url")
    fields = {"output_path": "output", "ref_images": "reference_images"}
    prompt = given.pop("prompt")
    labels = {}
    chosen = {}
    for name, value in given.items():
        field = fields.get(name, name)
        labels[field] = name
        if value is not None:
            chosen[field] = value
    collected: list[str] = []
    token = COLLECTED.set(collected)
    try:
        target = load_target(api_key, base_url)
        args = validate_args(Args(prompt, **chosen, labels=labels))
        made = run(args, target, save)
    finally:
        COLLECTED.reset(token)
    made.warnings = collected
    return made


# --- Command line: the only code that prints ---

# What the command line calls the fields of Args.
FLAGS = {field: f"--{field.replace('_', '-')}" for field in Args._fields}
FLAGS.update(reference_images="--reference-image", params="--param")
Cells = Sequence[object]  # a row of a table
Outcome = tuple[dict[str, Any], list[str]]  # for --json, and as lines for a person


def nearest_flag(typed: str, flags: Iterable[str]) -> str:
    """The flag that was meant: --ref or --image -> --reference-image, --aspct -> --aspect-ratio."""
    by_word = {flag.strip("-"): flag for flag in flags}
    for name, flag in list(by_word.items()):
        for word in name.split("-"):
            by_word.setdefault(word, flag)
    word = typed.strip("-")
    near = word if word in by_word else nearest(word, list(by_word))
    return by_word.get(near, "")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = "See --help."
        clash = re.fullmatch(r"argument (\S+): not allowed with argument (\S+)", message)
        if clash:
            message = f"{clash[1]} cannot be used together with {clash[2]}"
        lacking = re.fullmatch(r"argument (\S+): expected one argument", message)
        if lacking:
            message = f"{lacking[1]} needs a value"
        unknown = re.match(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown:
            near = nearest_flag(unknown[1], self._option_string_actions)
            hint = f"Did you mean {near}? {hint}" if near else hint
        elif message.startswith("unrecognized"):
            hint = "Put the whole prompt in quotes, and --reference-image before each picture."
        sentence = message[:1].upper() + message[1:]
        raise UsageError(f"{sentence}.", hint)


def numeral(text: str) -> Any:
    """A number, or the text itself, for validation to report."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def read_prompt(path: str) -> str:
    try:
        source = 0 if path == "-" else os.path.expanduser(path)
        with open(source, encoding="utf-8-sig", newline="") as file:
            return file.read(10**6).rstrip("\r\n")
    except (OSError, ValueError) as error:
        fault = f"The prompt file {path!r} cannot be read: {reason(error)}."
        raise UsageError(fault, "Give the path of a UTF-8 text file.") from None


def read_param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"The parameter {text!r} is not KEY=VALUE.", "Write --param quality=high.")
    try:
        # Python's json also reads NaN, which is not JSON: it stays text.
        return name, json.loads(value, parse_constant=str)
    except (ValueError, RecursionError):
        return name, value


DESCRIPTION = """\
Turn a prompt, and optional reference pictures, into a picture file.

  generate.py --prompt "a red apple on wood" --output apple.jpeg
  generate.py --prompt "on a marble table" --reference-image shoe.png --aspect-ratio 4:3
  generate.py --prompt "a poster: SALE 50%" --model gpt-image-2 --fit 1080x1350"""


def help_format(prog: str) -> argparse.HelpFormatter:
    import shutil

    columns = shutil.get_terminal_size((102, 24)).columns
    return argparse.RawDescriptionHelpFormatter(prog, width=min(100, columns - 2))


def build_parser() -> Parser:
    codes = ["exit code, kind, billed (was money spent?), meaning:"]
    for row in ((0, "saved", "yes", "the image is on disk"), *EXIT_CODES):
        codes.append("  {:>3}  {:<12} {:<6} {}".format(*row))
    parser = Parser(
        "generate.py",
        description=DESCRIPTION,
        epilog="\n".join(codes),
        allow_abbrev=False,
        formatter_class=help_format,
    )
    add_prompt_flags(parser)
    add_shape_flags(parser)
    add_reference_flags(parser)
    add_call_flags(parser)
    add_other_flags(parser)
    return parser


def add_prompt_flags(parser: Parser) -> None:
    """What the picture shows, and which model makes it."""
    group = parser.add_argument_group("prompt and model")
    prompt = group.add_mutually_exclusive_group().add_argument
    prompt(
        "--prompt",
        metavar="TEXT",
        help=f"what the picture shows, at most {MAX_PROMPT_CHARS} characters",
    )
    prompt(
        "--prompt-file",
        metavar="PATH",
        dest="prompt",
        type=read_prompt,
        help="read the prompt from a UTF-8 file, or from standard input with -",
    )
    flag = group.add_argument
    flag("--model", metavar="NAME", help=f"see --list-models; default: {DEFAULT_MODEL}")
    flag(
        "--family",
        metavar="{openai,gemini}",
        help="needed only if the model's name is not recognised",
    )
    flag(
        "--use-case",
        metavar="NAME",
        help=f"choose the model by use case: {', '.join(MODEL_BY_USE_CASE)}",
    )


def add_shape_flags(parser: Parser) -> None:
    """Which shape the picture has, and what it lacks."""
    flag = parser.add_argument_group("shape and number").add_argument
    flag(
        "--aspect-ratio", metavar="R", help=f"the picture's shape: {' '.join(OPENAI_SIZE_BY_RATIO)}"
    )
    flag(
        "--fit",
        metavar="WxH",
        help="the exact pixels of the saved picture; the original is kept beside it",
    )
    flag(
        "--size",
        metavar="WxH",
        help="openai models: the pixels to ask for; overrides --aspect-ratio; default: "
        f"from the ratio, or {DEFAULT_SIZE}",
    )
    flag("--negative-prompt", metavar="TEXT", help="what to avoid; appended to the prompt")
    flag(
        "--n",
        metavar="N",
        type=numeral,
        default=1,
        help="openai models: how many pictures, 1 to 10; all are saved",
    )


def add_reference_flags(parser: Parser) -> None:
    """What the picture is made from, and what else the gateway is told."""
    flag = parser.add_argument_group("reference pictures and other fields").add_argument
    flag(
        "--reference-image",
        metavar="PATH",
        dest="reference_images",
        action="append",
        default=[],
        help="a picture to work from, by its path or its http(s) link; repeatable",
    )
    flag(
        "--mask",
        metavar="PATH",
        help="openai models: a PNG of the first reference's size, transparent where to paint",
    )
    flag(
        "--param",
        metavar="KEY=VALUE",
        dest="params",
        action="append",
        default=[],
        type=read_param,
        help="one more field for the request, JSON or text; repeatable",
    )


def add_call_flags(parser: Parser) -> None:
    """Where the picture goes, and how the gateway is asked."""
    flag = parser.add_argument_group("output and connection").add_argument
    flag(
        "--output",
        metavar="PATH",
        help="a file, replaced if it exists, or a folder; default: ./output-<time>.png or .jpeg",
    )
    flag(
        "--timeout",
        metavar="SECONDS",
        type=numeral,
        default=TIMEOUT_S,
        help="time limit for one attempt, from start to end; default: %(default)g",
    )
    flag(
        "--attempts",
        metavar="N",
        type=numeral,
        default=ATTEMPTS,
        help="limit for calls with references, 1 to 5; others are sent once; default: %(default)s",
    )
    flag(
        "--proxy",
        metavar="URL",
        help="use this proxy; the environment's proxy variables are ignored",
    )
    flag(
        "--stream",
        action="store_true",
        help="ask for drafts while the picture is made, so that proxies stay connected",
    )
    flag(
        "--json",
        action="store_true",
        help="print exactly one JSON object on standard output, on success or failure",
    )
    flag("--quiet", action="store_true", help="print only warnings and errors on standard error")


def add_other_flags(parser: Parser) -> None:
    """What to do in place of making a picture."""
    group = parser.add_argument_group("in place of making a picture")
    action = group.add_mutually_exclusive_group().add_argument
    action(
        "--dry-run",
        action="store_true",
        help="check everything and show the request and its price; send nothing",
    )
    action(
        "--check",
        action="store_true",
        help="show the settings and ask the gateway, for free, whether it accepts the key",
    )
    action(
        "--list-models",
        action="store_true",
        help="show the known models and their prices; needs no key",
    )
    action(
        "--costs", action="store_true", help="show what was spent, from the ledger; needs no key"
    )
    parser.add_argument(
        "--version", action="version", version=f"generate.py {VERSION}", help="print the version"
    )


def read_args(options: argparse.Namespace) -> Args:
    """The arguments that a command line amounts to, validated."""
    if options.prompt is None:
        raise UsageError("There is no prompt.", "Add --prompt or --prompt-file.")
    given = {name: value for name, value in vars(options).items() if name in Args._fields}
    given["params"] = dict(options.params)
    return validate_args(Args(**given, labels=FLAGS))


def cell_text(cell: object) -> str:
    """A cell as text, money with two decimals."""
    return f"{cell:.2f}" if isinstance(cell, float) else str(cell)


def aligned(rows: Sequence[Cells]) -> list[str]:
    """Rows as a table; columns of numbers, judging by the last row, are aligned right."""
    columns = []
    for column in zip(*rows):
        texts = [cell_text(cell) for cell in column]
        width = max(map(len, texts))
        pad = str.rjust if isinstance(column[-1], (int, float)) else str.ljust
        columns.append([pad(text, width) for text in texts])
    return ["  ".join(cells).rstrip() for cells in zip(*columns)]


def act_generate(options: argparse.Namespace) -> Outcome:
    target = load_target()
    args = read_args(options)
    made = run(args, target, save=True)
    first = made.pictures[0]
    width, height = first.size
    paths = [str(path) for path in made.paths]
    facts = {
        "path": paths[0],
        "paths": paths,
        "model": args.model,
        "family": args.family,
        "endpoint": made.endpoint,
        "format": first.format,
        "width": width,
        "height": height,
        "bytes": len(first.data),
        "elapsed_s": round(made.elapsed_s, 2),
        "attempts": made.attempts,
        "usage": made.usage,
        "total_tokens": made.tokens,
        "estimated_cost_cny": made.cost_cny,
        "possible_cost_cny": made.possible_cost_cny,
        "originals": texts_of(made.originals),
        "base_url": target.url,
        "key_source": target.key_source,
        "url_source": target.url_source,
    }
    return facts, paths


def is_costly(args: Args) -> bool:
    """Whether a picture takes far more tokens than the usual one, for which the price holds."""
    width, height = pixels_of(args.size)
    return width * height > 2 * 1536 * 1024 or args.params.get("quality") == "high"


def act_dry_run(options: argparse.Namespace) -> Outcome:
    target = load_target()
    args = read_args(options)
    require_packages()
    attempt_cny = Tally(price_of(model_of(args).name), args.n).attempt_cny
    if load_budget() is not None:
        check_terms(attempt_cny, ledger_path())
    prove_writable(args.output, args.family)
    references, mask = prepare(args)
    warn_of_shape(args, references)
    attempts = args.attempts if references else 1
    tell_price(args, attempt_cny, attempts)
    call = build_call(args, target.url, references, mask, repr)
    facts: dict[str, Any] = {
        "method": "POST",
        "url": call.url,
        "headers": {"Authorization": f"Bearer {mask_key(target.key)}"},
    }
    if call.uploads:
        facts["fields"] = call.fields
        facts["files"] = [
            {"name": field, "filename": filename, "content": repr(content)}
            for field, filename, content in call.uploads
        ]
    else:
        facts["json"] = call.fields
    facts["estimated_cost_cny"] = attempt_cny
    facts["possible_cost_cny"] = attempt_cny and round(attempt_cny * attempts, 4)
    return facts, [json.dumps(facts, indent=2, ensure_ascii=False)]


def tell_price(args: Args, attempt_cny: float | None, attempts: int) -> None:
    """Say what a call would cost, and whether that may be too little or too much."""
    if attempt_cny is None:
        log.info("price unknown; nothing was sent")
        return
    text = f"about {money(attempt_cny)}"
    if attempts > 1:
        text += f", and up to {money(attempt_cny * attempts)} with all attempts"
    log.info("%s; nothing was sent", text)
    if is_costly(args):
        warn("a large size or high quality may cost several times as much")
    left_cny = budget_left()
    if left_cny is not None and attempt_cny > left_cny:
        warn("the budget would refuse this call: it leaves %s today", money(left_cny))


MODEL_TITLES: Cells = (
    "model",
    "family",
    "CNY/image",
    "references",
    "images/call",
    "typical",
    "sizes",
)


def act_list_models(options: argparse.Namespace) -> Outcome:
    models = []
    rows = [MODEL_TITLES]
    for model in CATALOGUE:
        price = price_of(model.name).picture
        models.append({**model._asdict(), "price_cny": price})
        rows.append(
            (
                model.name,
                model.family,
                price,
                model.max_references,
                model.max_n,
                model.typical,
                " ".join(model.sizes) or "-",
            )
        )
    return {"models": models}, aligned(rows)


CALL_TITLES: Cells = ("started", "model", "outcome", "CNY", "CNY at most", "saved")
SUM_TITLES: Cells = ("", "calls", "pictures", "CNY", "CNY at most")
PERIOD_TITLES = {
    "today": "today",
    "seven_days": "7 days",
    "month": "this month",
    "all": "all time",
}


def call_cells(call: Row) -> Cells:
    """One of the last calls, for a person."""
    outcome = "running or killed" if call["kind"] == "running" else call["kind"]
    costs = (call["cost_cny"], call["possible_cost_cny"])
    return (
        local_time(call["started"]),
        call["model"],
        outcome or "saved",
        *("unknown" if cost_cny is None else f"{cost_cny:.2f}" for cost_cny in costs),
        " ".join(call["paths"] or []),
    )


def sum_cells(title: str, sums: Row) -> Cells:
    """What a model or a period came to, for a person."""
    return (
        title,
        sums["calls"],
        sums["pictures"],
        sums["cost_cny"],
        sums["possible_cost_cny"],
    )


def act_costs(options: argparse.Namespace) -> Outcome:
    try:
        costs = read_costs(ledger_path())
    except LedgerError as error:
        fault = f"The ledger cannot be read: {error}."
        hint = f"Move it away, or set {LEDGER_VARIABLE} to another path."
        raise ConfigError(fault, hint) from None
    lines = [f"ledger: {costs['ledger'] or 'off'}"]
    if costs["calls"]:
        calls = [call_cells(call) for call in reversed(costs["calls"])]
        lines += ["", f"the last {len(calls)} calls:", *aligned([CALL_TITLES, *calls])]
    sums = [SUM_TITLES]
    for model in costs["models"]:
        sums.append(sum_cells(model["model"], model))
    periods = costs["periods"]
    for name, title in PERIOD_TITLES.items():
        sums.append(sum_cells(title, periods[name]))
    lines += ["", *aligned(sums)]
    unpriced = periods["all"]["unpriced"]
    if unpriced:
        lines += ["", f"Calls of unknown price, which these sums leave out: {unpriced}."]
    return costs, lines


CHECK_TITLES = {
    "key": "key",
    "key_source": "key source",
    "base_url": "base URL",
    "url_source": "URL source",
    "version": "version",
    "python": "python",
    "requests": "requests",
    "pillow": "pillow",
    "budget_cny": "budget, CNY a day",
    "budget_left_cny": "budget left, CNY",
    "accepted": "key accepted",
    "models": "models",
}


def act_check(options: argparse.Namespace) -> Outcome:
    """Ask the gateway with GET /models, which is free, whether it accepts the key."""
    target = load_target()
    require_packages()
    from importlib.metadata import version

    facts: dict[str, Any] = {
        "key": mask_key(target.key),
        "key_source": target.key_source,
        "base_url": target.url,
        "url_source": target.url_source,
        "version": VERSION,
        "python": sys.version.split()[0],
        "requests": version("requests"),
        "pillow": version("Pillow"),
        "budget_cny": load_budget(),
        "budget_left_cny": budget_left(),
        "accepted": None,
        "models": None,
        "image_models": [],
    }
    probe = Args("none", timeout=options.timeout, proxy=options.proxy, labels=FLAGS)
    args = validate_args(probe)
    try:
        names = ask_for_models(target, args)
        facts.update(accepted=True, models=len(names), image_models=image_models(names))
    except RejectedError as error:
        text = "cannot tell whether the key is accepted (most base URLs end in /v1): %s"
        warn(text, error.message)
    except ImageGenError as error:
        error.billed = "no"
        error.hint = better_hint(error, args, target)
        usual = type(error).hint
        if usual and not isinstance(error, Interrupted):
            hint = "Correct the key, the base URL or the proxy; asking again is free."
            error.hint = error.hint.replace(usual, hint)
        if isinstance(error, AuthError):
            facts["accepted"] = False
        log.info("%s", "\n".join(check_lines(facts)))
        raise
    return facts, check_lines(facts)


def check_lines(facts: Row) -> list[str]:
    """What --check found, for a person."""
    words = {True: "yes", False: "no", None: "unknown"}
    rows = []
    for name, title in CHECK_TITLES.items():
        fact = facts[name]
        is_unset_budget = name.startswith("budget") and fact is None
        if not is_unset_budget:
            is_word = fact is None or isinstance(fact, bool)
            text = words[fact] if is_word else cell_text(fact)
            rows.append((title, text))
    lines = aligned(rows)
    prices = []
    for model in facts["image_models"]:
        price = model["price_cny"]
        text = "price unknown" if price is None else f"{price:.2f} CNY"
        prices.append((model["name"], text))
    if prices:
        lines += ["", "image models:", *aligned(prices)]
    return lines


def ask_for_models(target: Target, args: Args) -> list[str]:
    """The names of the gateway's models; raises ImageGenError, also for an answer without them."""
    patience_s = min(args.timeout, CONNECT_TIMEOUT_S)
    deadline = time.monotonic() + patience_s
    call = Call(f"{target.url}/models", {})
    answer = send(call, target, args, deadline)
    return model_names(answer.inbox.tree(known_keys(target.key)))


def model_names(tree: Any) -> list[str]:
    """The names in a gateway's list of models.

    {"data": [{"id": …}]} (OpenAI), {"models": [{"name": …}]} (Google), or plain strings
    """
    items = tree  # Together's is a bare list
    if isinstance(tree, dict):
        items = tree.get("data", tree.get("models"))
    if not isinstance(items, list):
        classify_response_error("", tree)
    names = []
    for item in items:
        if isinstance(item, dict):
            item = item.get("id") or item.get("name")
        names.append(one_line(str(item)))
    return names


def image_models(names: Iterable[str]) -> list[dict[str, Any]]:
    """The image models among a gateway's models, with their prices."""
    found = []
    for name in names:
        with contextlib.suppress(UsageError):
            find_model(name)
            found.append({"name": name, "price_cny": price_of(name).picture})
    return found


def budget_left() -> float | None:
    """What the day's budget still allows, in CNY; None when there is none or that is unknown."""
    budget = load_budget()
    path = ledger_path()
    if budget is None or path is None:
        return None
    try:
        today = read_costs(path)["periods"]["today"]
    except LedgerError as error:
        warn("cannot tell what is left of the budget: %s", error)
        return None
    left: float = budget - today["possible_cost_cny"]
    return max(0.0, round(left, 4))


ACTIONS = {
    "list_models": act_list_models,
    "check": act_check,
    "dry_run": act_dry_run,
    "costs": act_costs,
}


def put(stream: Any, text: str) -> None:
    """Write a text, with escapes for what the stream cannot encode.

    A closed or broken stream is no reason to lose a picture.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "backslashreplace").decode())
        stream.flush()


class Console(logging.Handler):
    """Standard error: a line for each message and, on a terminal, a live line while it waits."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(logging.WARNING if quiet else logging.INFO)
        self.keys: list[str] = []
        self.warnings: list[str] = []
        self._live = ""  # what is waited for, "" when there is no live line
        self._news = ""  # of what is waited for
        self._since = 0.0
        self._turn = threading.RLock()  # two threads print: the command's and the main one

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.warnings.append(text)
            self.say(f"warning: {text}")
        elif not (hasattr(record, "live") and sys.stderr and sys.stderr.isatty()):
            self.say(text)
        elif self._live:
            self._news = f"{text}, "
        else:
            self._news = ""
            self._since = time.monotonic()
            self._live = text

    def say(self, text: str) -> None:
        """Print lines in place of the live line, if there is one."""
        text = re.sub(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", " ", text)  # a link may hold any letter
        lines = [f"[image-gen] {line}\n" for line in text.splitlines()]
        self.show("".join(lines))

    def show(self, text: str) -> None:
        """Print a text as it is."""
        with self._turn:
            self._write(text)
            self._live = ""

    def draw_live_line(self) -> None:
        with self._turn, contextlib.suppress(OSError):  # the terminal is gone
            if not self._live:
                return
            elapsed_s = time.monotonic() - self._since
            spinner = "|/-"[int(elapsed_s * 10) % 3]
            line = f"[image-gen] {spinner} {elapsed_s:3.0f} s {self._news}{self._live}"
            columns = os.get_terminal_size(sys.stderr.fileno()).columns
            width = (columns or 80) - 3  # room for ^C
            while len(line) > width and ", " in line:
                line = line.rpartition(", ")[0]
            self._write(line[:width])

    def _write(self, text: str) -> None:
        wipe = "\r\x1b[K" if self._live else ""
        put(sys.stderr, wipe + redact_whole(text, self.keys))


class Command(threading.Thread):
    """Runs a command line on a thread of its own, which no signal reaches.

    The main thread only waits for events and notes signals. KeyboardInterrupt around a plain join()
    was tried: an interrupt may then come between any two steps, even during clean-up.
    """

    def __init__(self, argv: Sequence[str], console: Console) -> None:
        super().__init__(daemon=True)
        self.argv = argv
        self.console = console
        self.grace_s = 0.0  # how long an interrupt waits for it to unwind
        self.facts: dict[str, Any] = {}
        self.lines: list[str] = []
        self.error: ImageGenError | None = Interrupted(
            "Interrupted.", "Nothing was sent.", billed="no"
        )

    def run(self) -> None:
        level = log.level
        try:
            self.console.keys = known_keys()
            log.addHandler(self.console)
            log.setLevel(logging.INFO)
            options = build_parser().parse_args(self.argv)
            self.grace_s = INTERRUPT_GRACE_S
            raise_if_interrupted()  # an interrupt until here was given no grace
            self.error = Interrupted("Interrupted.")  # unless it comes to another end
            action = act_generate
            for flag, other in ACTIONS.items():
                if getattr(options, flag):
                    action = other
            self.facts, self.lines = action(options)
            self.error = None
        except SystemExit:  # --help and --version have printed their text
            self.error = None
        except Exception as error:
            self.error = as_known(error)
            if isinstance(self.error, InternalError):
                import traceback

                self.console.say(traceback.format_exc())
        finally:
            log.removeHandler(self.console)
            log.setLevel(level)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    words = sys.argv[1:] if argv is None else list(argv)
    console = Console(quiet="--quiet" in words)
    command = Command(words, console)
    command.start()
    while command.is_alive() and not SIGNALLED:
        console.draw_live_line()
        command.join(POLL_S)
    if SIGNALLED:
        STOP.set()
        command.join(command.grace_s)
    tell_outcome(command, console, as_json="--json" in words)
    return command.error.exit_code if command.error else 0


def tell_outcome(command: Command, console: Console, as_json: bool) -> None:
    """Print how it ended: the error on standard error, the result on standard output."""
    error = command.error
    lines = command.lines
    if error is None:
        console.show("")  # nothing, in place of the live line
    elif error.hint == ONBOARDING:
        console.show(ONBOARDING + "\n")
    else:
        console.say(f"error: {error.message}\n{error.hint}")
        if error.bill:
            console.say(error.bill)
    if as_json and (error or command.facts):
        facts = {"error": error.as_json()} if error else command.facts
        outcome = {
            "ok": error is None,
            **facts,
            "warnings": console.warnings,
        }
        lines = [json.dumps(outcome)]
    text = "".join(f"{line}\n" for line in lines)
    put(sys.stdout, redact_whole(text, console.keys))


SIGNALLED: list[bool] = []  # not empty once a signal came: noting it is all that a handler may do


def prepare_process() -> None:
    """Set up the process, as a script may and a library must not."""
    if os.name == "posix" and isinstance(sys.stdout, io.TextIOWrapper):
        # A path goes out in the file system's own bytes.
        encoding = sys.getfilesystemencoding()
        sys.stdout.reconfigure(encoding=encoding, errors="surrogateescape")
    warnings.simplefilter("ignore")
    use_own_environment()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: SIGNALLED.append(True))


def use_own_environment() -> None:
    """Restart in the .venv that setup.sh made, when this Python lacks the packages."""
    venv = os.path.realpath(os.path.join(own_folder(), "../.venv"))
    python = os.path.join(venv, "Scripts/python.exe" if os.name == "nt" else "bin/python")
    if os.path.realpath(sys.prefix) == venv or not os.path.exists(python):
        return
    if not missing_package():
        return
    command = [python, *sys.argv]
    if os.name == "nt":  # where exec would not wait for the new process
        import subprocess

        raise SystemExit(subprocess.call(command))
    os.execv(python, command)


if __name__ == "__main__":
    prepare_process()
    os._exit(main())  # at once: no thread is waited for, and no late signal changes the exit code
