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

A gateway is any server with OpenAI's API. It answers for gpt-image models on /images/generations
and /images/edits, and for Gemini's Nano Banana models on /chat/completions: the model's name
decides. On the command line, the paths of saved pictures go to standard output, one a line, and
everything else goes to standard error. `generate.py --help` lists the flags and exit codes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import itertools
import json
import logging
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
SAVED_JPEG_QUALITY = 95
MIN_IMAGE_BYTES = 10_000  # the specification's self-check: a file must be larger than this
MAX_ANSWER_BYTES = 64 * 2**20  # gpt-image-2's largest PNG is about 33 MB of base64
MAX_ERROR_BYTES = 2**20  # of an answer whose status is an error
MAX_LINKED_REFERENCE_BYTES = 32_000_000
MAX_DEPTH = 200  # of an answer's tree: what lies deeper is not looked at
MAX_LINKS = 12  # of one answer, so that a page full of dead links ends in time
RATIO_TOLERANCE = 0.05
MAX_FIT_CUT = 0.03  # of a picture that a model made for --fit

TIMEOUT_S = 300.0
CONNECT_TIMEOUT_S = 30.0
FETCH_TIMEOUT_S = 30.0  # a link gets at least this: fetching it is free, and a result is paid for
RETRY_WAITS_S = (1.0, 4.0, 16.0)  # before the second attempt, the third, and every later one
MAX_RETRY_AFTER_S = 60.0
FETCH_TRIES = 3
MAX_REDIRECTS = 5
LEDGER_LOCK_S = 5.0
INTERRUPT_GRACE_S = 10.0  # for a paid picture to reach the disk after Ctrl-C
POLL_S = 0.1

PathLike = Union[str, "os.PathLike[str]"]
ReferenceLike = Union[PathLike, bytes]

log = logging.getLogger("image-gen")
log.addHandler(logging.NullHandler())
STOP = threading.Event()  # set by an interrupt: whatever waits, or has not been sent, gives up
COLLECTED: ContextVar[list[str]] = ContextVar(
    "COLLECTED"
)  # the warnings of the call in this thread


def warn(text: str, *values: object) -> None:
    """Log a warning and note it for `Generation.warnings`."""
    log.warning(text, *values)
    with contextlib.suppress(LookupError):
        COLLECTED.get().append(text % values)


# --- Errors ---


class ImageGenError(Exception):
    """Why there is no picture.

    message            what happened
    hint               what to do next
    kind, exit_code    which failure it is: see EXIT_CODES
    billed             was money spent: "yes", "no" or "maybe"
    possible_cost_cny  what may have been spent at most, in CNY; None when the price is unknown
    cost_cny           the part of that which was spent for certain
    retryable          may the same call succeed later?
    status             the HTTP status, if the gateway answered
    image_urls         links behind which a paid picture may still be found
    saved_at           where a picture, or a part of one, was kept instead
    draft_at           where the last draft of a broken stream was kept
    attempts           how many requests were sent

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
        self.retryable = self.retryable if retryable is None else retryable
        self.status = status
        self.image_urls = list(image_urls)
        self.saved_at = saved_at
        self.draft_at: str | None = None
        self.attempts = 0
        self.earlier_failures = 0  # attempts before the last that may have been billed
        self.cost_cny: float | None = 0.0
        self.possible_cost_cny: float | None = 0.0
        self.timed_out = False  # the references get smaller before the next attempt
        self.retry_after_s = 0.0
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
        names = ("kind", "message", "hint", "status", "retryable", "billed", "possible_cost_cny")
        extras = ("image_url", "image_urls", "saved_at", "draft_at")
        facts = {name: getattr(self, name) for name in names}
        return {**facts, **{name: getattr(self, name) for name in extras if getattr(self, name)}}


class InternalError(ImageGenError):
    """a bug; the traceback is on stderr"""

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
    """the connection failed, timed out or broke off, or 5xx, after all attempts"""

    kind, exit_code, retryable = "unavailable", 6, True
    hint = "Try again later."


class RefusedError(ImageGenError):
    """moderation refuses the prompt or a reference"""

    kind, exit_code, billed = "refused", 7, "no"
    hint = "Reword the prompt or choose another reference."


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
    """Ctrl-C or SIGTERM; nothing half-written is left"""

    kind, exit_code = "interrupted", 130
    hint = "Nothing half-written is left."


EXIT_CODES = tuple(
    (error.exit_code, error.kind, error.billed, error.__doc__)
    for error in ImageGenError.__subclasses__()
)


class PictureError(ValueError):
    """Why bytes are no picture that can be used; the hint is empty when converting them helps."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class LinkError(Exception):
    """Why a link gave nothing; `passing` when the same link may work later."""

    def __init__(self, message: str, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


class LedgerError(Exception):
    """Why the ledger cannot be used."""


def reason(error: BaseException) -> str:
    """An exception's own words, without the path that OSError puts behind them."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def heed_stop() -> None:
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
    def takes_mask(self) -> bool:
        return self.family == "openai" and self.max_references > 0


class Price(NamedTuple):
    """What a model's picture costs, in CNY; without token prices these decide nothing."""

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
    attempts: int = 3
    proxy: str | None = None
    stream: bool = False
    is_shaped: bool = False  # the caller chose a ratio, a size or pixels to fit
    spelling: Mapping[str, str] = {}  # what the caller knows a field by, where that differs

    def spelt(self, field: str) -> str:
        return self.spelling.get(field, field)


class Target(NamedTuple):
    key: str
    key_source: str
    url: str
    url_source: str


class Reference(NamedTuple):
    """A picture ready to be sent; as text it is <image/jpeg, 123456 bytes>."""

    data: bytes
    mime: str
    size: tuple[int, int]  # width and height in pixels, of the data
    full_size: tuple[int, int]  # of the caller's picture, upright

    def __repr__(self) -> str:
        return f"<{self.mime}, {len(self.data)} bytes>"

    def data_url(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


class Upload(NamedTuple):
    """One file of a form."""

    field: str
    filename: str
    content: Reference


class Call(NamedTuple):
    """A request: JSON, or a form when there are uploads."""

    url: str
    fields: dict[str, Any]
    uploads: tuple[Upload, ...] = ()


class Candidate(NamedTuple):
    """What may be the result: bytes or a link, and where in the answer it stood."""

    path: tuple[Any, ...]
    rank: int  # 0 is likely, higher is less so
    data: bytes = b""
    link: str = ""


class Picture(NamedTuple):
    """A picture that was made."""

    data: bytes  # encoded
    format: str  # Pillow's name
    size: tuple[int, int]  # width and height in pixels
    link: str | None = None  # where it was fetched


class Place(NamedTuple):
    """Where a picture will be saved, and as what."""

    path: str
    is_default: bool  # the name is the program's own: it gets a number when it is taken
    format: str  # Pillow's name, "" for whatever comes


class Generation:
    """What one call made. It unpacks as `image, usage = generate_openai(…)`.

    images             every picture's encoded bytes; with `fit`, the fitted ones
    paths              where they were saved; empty for generate_openai and generate_gemini
    originals          what the gateway sent, where `fit` changed it; None for the others
    usage              what the gateway says of tokens, {} if nothing
    tokens             their total, None if the gateway does not tell
    cost_cny           what the call cost in CNY, all pictures together; None without a price
    possible_cost_cny  the same at most: with attempts that failed, and by the tokens used
    elapsed_s          seconds, from preparing the references to the last saved byte
    attempts           how many requests were sent
    warnings           what the call warned of, one sentence each
    pictures           the images with what is known of each: data, format and size in pixels
    model              the model that made them
    endpoint           which of the gateway's endpoints answered
    """

    def __init__(
        self, pictures: Sequence[Picture], usage: dict[str, Any], model: str, endpoint: str
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


def total_tokens(usage: Mapping[str, Any]) -> int | None:
    total = usage.get("total_tokens", usage.get("totalTokenCount"))
    return total if isinstance(total, int) and not isinstance(total, bool) else None


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
OWNERS = ("OMNIMAAS", "PRODUCT_SHOTS_IMAGEGEN", "RENDER", "CANVASFLOW_IMAGEGEN")
CONFIG_ROWS = tuple((f"{owner}_API_KEY", f"{owner}_BASE_URL") for owner in OWNERS)
KEY_FILES = (
    "~/.product_shots_imagegen_api_key",
    "~/.product_shots_render_api_key",
    "~/.canvasflow_imagegen_api_key",
)
KEY_SOURCES = (*dict(CONFIG_ROWS), *KEY_FILES)
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
    "AVIF": rb"....ftypavi[fs]",
    "HEIF": rb"....ftyp(he[iv][a-z]|mif1|msf1)",
}
ORIENTATION = 0x0112  # EXIF's tag
MENDED_BIG_TIFF = b"MM+\0"
GZIP_START = b"\x1f\x8b"
SENT_FORMATS = ("PNG", "JPEG", "WEBP")
EXTENSIONS = {".png": "PNG", ".jpeg": "JPEG", ".jpg": "JPEG"}  # those that need no look into Pillow


class Meaning(NamedTuple):
    """What an answer without a picture means, when its status and its code or sentence fit.

    A row without codes and phrases goes by the status alone.
    """

    error: type[ImageGenError]
    retryable: bool
    status: str  # regular expression; "" fits any
    codes: str = ""  # stems, looked for in codes in snake case
    phrases: str = ""  # looked for in the sentence, unless the status is a 5xx
    hint: str = ""


TOP_UP = "Top up the account, then run the same command again."
SEE_MODELS = "See which image models the gateway has: generate.py --check."
REFUSAL_CODES = (
    r"moderation_(block|fail|flag|refus)|moderated|\bmoderation\b|content_?(policy|filter)"
    r"|policy_violation|sensitive_(word|content)|prompt_?block|block_?list|data_inspection_failed"
    r"|risk_detection|unsafe|nsfw|safety\b|safety_violation|prohibited_content|recitation|\bspii\b"
)
# The first row that fits decides. The sentences are real ones, seen in gateways' sources, manuals
# and issue threads in November 2026.
MEANINGS = (
    # 429 RESOURCE_EXHAUSTED (Google): "You exceeded your current quota, please check your plan and
    #   billing details." Others say that of an empty account, but this one passes by itself.
    # 429 Throttling.RateQuota (DashScope): "Requests rate limit exceeded, please try again later."
    # 429 (SiliconFlow): "Request was rejected due to rate limiting. Details: TPM limit reached."
    # 200 with base_resp 1002 (MiniMax): "rate limit"
    Meaning(
        QuotaError,
        True,
        "",
        codes=r"resource_exhausted|rate_?limit|too_many_requests|throttling|concurrency_limit",
        phrases=r"resource_exhausted|rate[ -]limit|too many requests|请求过于频繁",
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
    Meaning(
        QuotaError,
        False,
        "",
        codes=r"insufficient_(\w+_)?(quota|balance|credits?|funds)|quota_(failed|not_enough|exceeded)"
        r"|exceeded_current_quota|billing_hard_limit|overdue|arrear|free_tier_only|budget_exceeded"
        r"|entitlement_\w*limit_exceeded|no_credits?|credits?_(exhausted|depleted)|payment_required",
        phrases=r"exceeded your current quota|quota is not enough|billing hard limit"
        r"|insufficient (\w+ )?(balance|credits?|quota|funds)|requires more credits"
        r"|balance is (insufficient|not enough|too low)|(exhausted|overdue) balance"
        r"|in good standing|free (tier|quota)[^.]*(exhausted|used up)|budget has been exceeded"
        r"|(any|all available) credits|(out of|not enough) credits?|credits? (exhausted|depleted)"
        r"|(余额|额度)不足|额度已用尽|额度失败|欠费",
        hint=TOP_UP,
    ),
    # 403 (Azure): "Your resource has been temporarily blocked because we detected behavior that may
    #   violate our content policy." Every prompt fails then, so this is about the account.
    Meaning(AuthError, False, "403", phrases=r"your resource has been (temporarily )?blocked"),
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
    Meaning(
        RefusedError,
        False,
        "",
        codes=REFUSAL_CODES,
        phrases=r"(by|of) (the|our) safety system|content management policy|contentpolicyviolation"
        r"|sensitive words detected|(input|prompt|request|image|content) (was|is|has been) flagged"
        r"|flagged by a|contains? (\w+ )?(sensi?tive|inappropriate|prohibited|unsafe) ?\w*"
        r"|includes? (sensitive|inappropriate) content|material flagged|new_sensitive"
        r"|(prompt|request|image|input) (may |might )?violat|violates (our|the) \w+ polic"
        r"|(prompt|request|image|response) (was|has been) blocked"
        r"|(包含|含有|涉及)[^，。]{0,8}(敏感|违规|不安全)|敏感(词|内容|信息)|内容违规",
    ),
    # 400 API_KEY_INVALID (Google): "API key not valid. Please pass a valid API key."
    # 401 invalid_api_key (OpenAI): "Incorrect API key provided: sk-abc***xyz."
    # 401 (LiteLLM): "Authentication Error, Invalid proxy server token passed."
    # 401 (new-api): "无效的令牌"
    # 400 no_db_connection (LiteLLM, of a key that is not its own): "No connected db."
    # 200 with base_resp 2049 (MiniMax): "invalid api key"
    Meaning(
        AuthError,
        False,
        "(?!429)",
        codes=r"api_?key_(invalid|missing|expired|not_valid)|(invalid|incorrect)_?api_?key"
        r"|invalid_token|authentication|unauthori[sz]ed|unauthenticated|no_db_connection",
        phrases=r"(incorrect|invalid) (api[ -]?key|proxy server token)|api key not valid"
        r"|无效的令牌|令牌状态不可用",
    ),
    # 503 model_not_found (new-api): "No available channel for model X under group default"
    # 404 model_not_found (OpenAI): "The model 'x' does not exist."
    # 400 (LiteLLM): "Invalid model name passed in model=x. Call `/v1/models` to view available …"
    Meaning(
        RejectedError,
        False,
        "",
        codes=r"model_?not_?(found|open)|(invalid|unknown)_model",
        phrases=r"invalid model name|model( \S+)? (does not|doesn't) exist",
        hint=SEE_MODELS,
    ),
    Meaning(AuthError, False, "401|403"),
    Meaning(QuotaError, False, "402", hint=TOP_UP),
    Meaning(QuotaError, True, "429"),
    # 500 convert_request_failed, invalid_request, model_price_error (new-api): sent to nobody
    # 200 with base_resp 2013 (MiniMax): "invalid params"
    Meaning(
        RejectedError,
        False,
        "[25]..",
        codes=r"invalid_(request|param|value|arg|size|image|type|url|input)|not_found|missing_"
        r"|unsupported|convert_request|bad_request|validation_|unknown_param|model_price_error",
        phrases=r"invalid params",
    ),
    # 408 (LiteLLM): "APITimeoutError - Request timed out. model: azure/…"
    Meaning(UnavailableError, True, "408|425|5.."),
    # data: {"error": {"code": 502, "message": "Provider returned error"}} (OpenRouter, in a stream)
    # event: error with the type server_error (OpenAI, in a stream)
    # 200 with base_resp 1001 (MiniMax): "request timeout", and 1033: "system error"
    Meaning(
        UnavailableError,
        True,
        "2..",
        codes=r"(server|upstream|internal|provider|api)_?error|overloaded|unavailable|timeout"
        r"|deadline_exceeded|(do_request|get_channel)_failed|bad_response|empty_response",
        phrases=r"provider returned error|overloaded|request timeout"
        r"|(system|internal|unknown) error",
    ),
    Meaning(ResponseError, False, "2.."),
    Meaning(RejectedError, False, "404", hint="Check the base URL: most end in /v1."),
    Meaning(RejectedError, False, ""),
)
QUOTED = r"(?<!\w)'[^']*'(?!\w)"  # Unknown parameter: 'thinking_budget_tokens'.

# Exceptions of the wire in plain words. Their own text may quote headers and is never shown.
TIME_IS_OVER = "the time allowed is over"
WIRE_FAULTS = (
    (r"resolv|getaddrinfo|name or service|nodename", "its name cannot be resolved"),
    (
        r"CA certificate bundle",
        "the CA bundle that REQUESTS_CA_BUNDLE or SSL_CERT_FILE names cannot be read",
    ),
    (
        r"certificate|SSL",
        "TLS failed: the server does not use TLS, or its certificate is not trusted",
    ),
    (r"SOCKS", "a SOCKS proxy needs the package PySocks"),
    (r"proxy", "the proxy cannot be reached"),
    (r"timed? ?out", TIME_IS_OVER),
    (r"decompress", "its compression is broken"),
    (r"refused", "connection refused"),
    (r"more than \d+ bytes", "it is too long"),
    (r"reset|broken pipe|closed|incomplete|disconnected|remote end", "the connection broke off"),
)

# Where in an answer a picture stands, by the names of the keys on the way to it.
# rank 1: a draft or a smaller one: thumbnail_url (Replicate's relatives), reasoning_details
# (OpenRouter), partial_image_b64 (OpenAI's Responses)
DRAFT_KEYS = r"(?i)thumb|preview|draft|partial|thought|thinking|reasoning"
# rank 2: what was sent, or whose it is: input_image, prompt.image (ComfyUI), user.avatar
FOREIGN_KEYS = (
    r"(?i:avatar|favicon|emoji|icon|logo)"
    r"|(?<![A-Za-z])(?i:author|user|profile|input|request|prompt|mask|help|support|docs?|homepage"
    r"|website|terms|policy|policies|callback|webhook|citations?|annotations?)(?![a-z])"
)
LINK_KEYS = (
    r"(?i)ur[li]|link|href|src|path|image|file|output|result"  # their text may be a bare path
)
BASE64 = r"[A-Za-z0-9+/_%-]{56}[A-Za-z0-9+/_%\r\n-]*={0,2}"
# ![image](https://…) (new-api), <img src="…">, and any other address
SHOWN_LINK = r"(?i)!\[[^][]*\]\(\s*<?([^\s\"'<>)]+)|<img\b[^<>]*?\bsrc=[\"']?([^\s\"'<>]+)"
OTHER_SCHEME = r"(?i)(?!https?:)[a-z][\w+.-]*:"  # data:, file:, javascript:
BARE_LINK = r"(?i)https?://(?:\[[\da-f:.]+\])?[^\s\"'<>)\]`、。，；：！？）】」]+"
# With blanks and quotes in it, or with a scheme that is only told: gs://… (Vertex).
WHOLE_LINK = r"(?i)\w+://[^\s<>]+(?: (?!https?:)[^\s<>]+)*"
MAX_LINK_CHARS = 4000
PICTURE_NAME = r"(?i)\.(png|jpe?g|webp|gif|avif)\b"
PICTURE_LABEL = r"(?i)(image|picture|photo|download|图|下载)[^][\n]{0,20}\]?[(:：]?\s*<?$"
AVATAR = r"(?i)avatar|favicon|emoji"
UNLIKELY = 3  # the rank of a link that only stands in prose
# "I'm sorry, but I can't create images of real people." (OpenAI); "抱歉，我无法生成这张图片。"
# Not so: "I can't draw real logos, but here is a generic one: ![image](…)"
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
# An id belongs to work that has only begun when the answer also says so: Midjourney's proxies.
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


ESCAPED = r"(?i)%(?:25)*([2-7][0-9a-f])|\\+u00([2-7][0-9a-f])"  # of a letter, in a URL or in JSON


class Key(str):
    """An API key, which tracebacks and logs show masked."""

    def __repr__(self) -> str:
        return repr(mask_key(self))


def mask_key(key: str) -> str:
    """The first 8 characters of a key, and never more than half of it: sk-wPfH6K…"""
    return key[: min(8, len(key) // 2)] + "…"


def is_secret(key: str) -> bool:
    """A key of up to 7 letters, such as LiteLLM's "test", may be a word of any path or link."""
    return len(key) > 7


def spellings(key: str) -> Iterator[str]:
    """A key as it is, and as base64 has it."""
    yield key
    for shift in range(3):  # base64 depends on where the key stands, and its ends on its neighbours
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            encoded = encode(b"\0" * shift + key.encode("utf-8", "surrogateescape"))
            yield encoded[4 if shift else 0 : -4].decode("ascii")


def pieces_of(key: str) -> set[str]:
    """Every 12 letters in a row of a key's spellings, in lower case."""
    forms = [form.lower() for form in spellings(key)]
    return {form[i : i + 12] for form in forms for i in range(max(1, len(form) - 11))}


def scrub(text: str, keys: Iterable[str]) -> str:
    """A gateway's text without the keys: no 12 letters in a row of any spelling are left.

    A short key is taken out where it stands alone, so that links stay whole.
    """
    for key in filter(None, keys):
        if is_secret(key):
            text = scrub_secret(text, key)
        else:
            alone = rf"(?<![\w/.=&?%-]){re.escape(key)}(?![\w/=&%-])"
            text = re.sub(alone, "[key]", text)
    return text


def scrub_secret(text: str, key: str) -> str:
    plain = re.sub(ESCAPED, lambda match: chr(int(match[1] or match[2], 16)), text)
    lowered = plain.lower()
    found = [piece for piece in pieces_of(key) if piece in lowered]
    if not found:
        return text
    starts = "|".join(re.escape(piece) for piece in found)
    rest = len(found[0]) - 1  # of the last piece in a row of them
    return re.sub(rf"(?is)(?:(?={starts}).)+.{{,{rest}}}", "[key]", plain)


def clean(tree: Any, keys: Sequence[str], depth: int = MAX_DEPTH) -> Any:
    """A gateway's JSON without the keys, as deep as it is looked at.

    This is the one door for what a gateway says. A text that is as long as a picture is only
    searched at its start, which is all that a message ever shows of it.
    """
    if isinstance(tree, str):
        head = tree[:10_000]
        scrubbed = scrub(head, keys)
        return tree if scrubbed == head else scrubbed + tree[10_000:]
    if not isinstance(tree, (dict, list)):
        return tree
    if depth == 0:
        return None
    if isinstance(tree, list):
        return [clean(item, keys, depth - 1) for item in tree]
    return {scrub(name, keys): clean(item, keys, depth - 1) for name, item in tree.items()}


def blot(text: str, keys: Iterable[str]) -> str:
    """The last guard of everything that leaves the program: whole keys are blotted out."""
    for key in filter(is_secret, keys):
        for form in (key, json.dumps(key)[1:-1]):
            text = text.replace(form, "[key]")
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
        fault = f"The key file {source} cannot be read: {reason(error)}."
        raise ConfigError(fault, "Make it readable, or remove it.") from None


def known_keys() -> list[str]:
    """Every key that is configured, in use or not."""
    keys = []
    for source in KEY_SOURCES:
        with contextlib.suppress(ConfigError):
            keys.append(read_source(source))
    return list(filter(None, keys))


def first_set(sources: Iterable[str]) -> tuple[str, str]:
    """(value, source) of the first source that is set, ("", "") when none is."""
    found = ((value, source) for source in sources if (value := read_source(source)))
    return next(found, ("", ""))


def load_api_key(given: str | None = None) -> tuple[Key, str]:
    """The API key and where it comes from: the argument, CONFIG_ROWS' variables, then KEY_FILES.

    raises: ConfigError without a key (its hint is the onboarding message), or for a malformed one
    """
    key, source = first_set(KEY_SOURCES) if given is None else (given, "api_key")
    if not source:
        raise ConfigError("No API key is configured.", ONBOARDING)
    is_file = source in KEY_FILES and os.name == "posix"
    if is_file and os.stat(os.path.expanduser(source)).st_mode & 0o077:
        warn("the key file %s can be read by others; type: chmod 600 %s", source, source)
    if not isinstance(key, str) or not re.fullmatch(r"[!-~]+", key):
        fault = f"The key from {source} is not printable ASCII without spaces."
        raise ConfigError(fault, "Copy the key again, without any other characters.")
    return Key(key), source


def load_base_url(key_source: str | None = None, given: str | None = None) -> tuple[str, str]:
    """The gateway's URL and where it comes from: the argument, or CONFIG_ROWS' variables.

    The first variable and the first key file need no URL: DEFAULT_BASE_URL goes with them.
    raises: ConfigError without a URL, or for a malformed one
    """
    urls = dict(CONFIG_ROWS).values()
    url, source = first_set(urls) if given is None else (given, "base_url")
    if source:
        return check_url(url.rstrip("/"), source), source
    key_source = key_source or load_api_key()[1]
    if key_source in (KEY_SOURCES[0], KEY_FILES[0]):
        return DEFAULT_BASE_URL, "default"
    wanted = dict(CONFIG_ROWS).get(key_source, "PRODUCT_SHOTS_IMAGEGEN_BASE_URL")
    fault = f"The key from {key_source} has no base URL."
    raise ConfigError(fault, f"Set {wanted} to the URL of your gateway.")


def check_url(url: str, source: str) -> str:
    """The URL itself; raises ConfigError, and warns when the key would travel unencrypted."""
    shown = "" if "@" in url else f" {scrub(url, known_keys())!r}"  # it may hold a password
    for endpoint in ENDPOINTS.values():
        if url.endswith(endpoint):
            fault = f"The base URL{shown} from {source} ends in an endpoint."
            raise ConfigError(fault, f"Set it to {url[: -len(endpoint)]}")
    host = r"(?:\[[\da-f:.]+\]|[\w.-]+)"
    parts = re.fullmatch(rf"(?ai)(?!.*[?#@])https?://{host}(?::(\d{{1,5}}))?(?:/[!-~]*)?", url)
    if not parts or int(parts[1] or 0) > 65_535:
        fault = f"The base URL{shown} from {source} is not an http or https address."
        hint = (
            "Set it to an address like https://gateway.example/v1, without user, query or fragment."
        )
        raise ConfigError(fault, hint)
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
    own = url_source.replace("_BASE_URL", "_API_KEY")
    if own not in (key_source, url_source):
        if read_source(own) not in ("", api_key):
            fault = (
                f"The key from {key_source} would go to the gateway of {url_source}, "
                f"whose own key is in {own}."
            )
            raise ConfigError(fault, f"Unset {url_source}, or unset {key_source} to use {own}.")
        warn("the key from %s goes to the gateway from %s", key_source, url_source)
    return Target(key, key_source, url, url_source)


def read_amount(text: str) -> float:
    """A sum of money of 0 or more; raises ValueError."""
    if not re.fullmatch(r"\s*(\d{1,12}(\.\d*)?|\.\d+)\s*", text, re.A):
        raise ValueError(f"{text!r} is not a sum of money")
    return float(text)


def load_budget() -> float | None:
    """What may be spent in a calendar day, in CNY; None without a budget. Raises ConfigError."""
    text = read_source(BUDGET_VARIABLE)
    try:
        return read_amount(text) if text else None
    except ValueError:
        fault = f"The budget {text!r} in {BUDGET_VARIABLE} is not a sum of money."
        raise ConfigError(fault, "Set it to CNY a day, such as 50, or unset it.") from None


def load_prices() -> dict[str, float]:
    """One's own prices by plain model name, in CNY a picture; raises ConfigError."""
    text = read_source(PRICES_VARIABLE)
    prices = {}
    for item in filter(str.strip, text.split(",")):
        name, _, amount = item.partition("=")
        try:
            prices[plain_name(name.strip())] = read_amount(amount)
        except ValueError:
            name = ""
        if not plain_name(name.strip()):
            fault = f"The price {item!r} in {PRICES_VARIABLE} is malformed."
            raise ConfigError(fault, "Write prices like gpt-image-2=0.35,seedream-4=0.2.")
    return prices


def ledger_path() -> str | None:
    """Where the ledger is, None when it is turned off."""
    chosen = read_source(LEDGER_VARIABLE)
    if chosen:
        return None if chosen.lower() == "off" else os.path.abspath(os.path.expanduser(chosen))
    state = os.environ.get("XDG_STATE_HOME", "")
    if not os.path.isabs(state):
        state = os.path.expanduser("~/.local/state")
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
    rows += [row for row in PATTERNS if row.family == family and plain]
    if not rows:
        hint = suggest_model(plain, family_flag)
        raise UsageError(f"The model {name!r} is not a known image model.", hint)
    if family not in (None, rows[0].family):
        fault = f"The family of {name!r} is {rows[0].family!r}, not {family!r}."
        raise UsageError(fault, f"Leave {family_flag} out, or choose another model.")
    return rows[0]._replace(name=str(name))


def suggest_model(plain: str, family_flag: str) -> str:
    """A hint for a model's name that cannot be placed."""
    names = [row.name for row in CATALOGUE]
    near = nearest(plain, names)
    question = f"Did you mean {near}? " if near else ""
    return (
        f"{question}Use one of {', '.join(names)}; "
        f"for another image model of your gateway add {family_flag} openai or gemini."
    )


def nearest(word: str, known: Sequence[str]) -> str:
    """The known word that a mistyped one is most like, "" when it is like none."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word, known, 1, 0.7)), "")


def model_family(model: str) -> str:
    """The family of a model's name; raises UsageError with the supported list."""
    return find_model(model).family


def price_of(model: str) -> Price:
    """What a picture of a model costs: by one's own prices, else by the catalogue."""
    plain = plain_name(model)
    own = load_prices().get(plain)
    if own is not None:
        return Price(own)
    listed = (Price(row.price_cny, row.token_prices_cny) for row in CATALOGUE if row.name == plain)
    return next(listed, Price())


def pixels_of(size: str | None) -> tuple[int, int]:
    """1080x1350 -> (1080, 1350); (0, 0) for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(size), re.A)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def shape_of(ratio: str) -> float:
    """Width over height: 16:9 -> 1.78, 1024x1536 -> 0.67."""
    width, height = re.split("[x:]", ratio)
    return float(width) / float(height)


def part_cut(shape: float, wanted: float) -> float:
    """The part of a picture that is cut away to give it another shape: square to 2:1 -> 0.5."""
    return 1 - min(shape, wanted) / max(shape, wanted)


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
    takes_any = "WxH" in model.sizes
    if size is None:
        ratio = aspect_ratio or "1:1"
        shape = shape_of(ratio)
        kind = 0 if shape == 1 else 1 if shape > 1 else 2
        return OPENAI_SIZE_BY_RATIO[ratio] if takes_any else model.sizes[kind]
    width, height = pixels_of(size)
    if size in model.sizes and size != "WxH":
        return size
    is_catalogued = model.price_cny is not None  # of other models nobody knows what they refuse
    if width and (not is_catalogued or (takes_any and is_free_size(width, height))):
        return size
    rule = (
        "any WxH: multiples of 16, ratios from 1:3 to 3:1, 655,360 to 8,294,400 pixels, "
        "no side over 3840"
    )
    allowed = ", ".join(model.sizes).replace("WxH", rule)
    raise UsageError(f"The size {size!r} is not available.", f"{model.name} takes {allowed}.")


def size_for_fit(model: Model, width: int, height: int) -> str:
    """The size to ask an openai model for, so that little is lost when it is cut to these pixels.

    Where the model takes any: the least area that covers the wish and of which at most MAX_FIT_CUT
    is cut; if none covers it, the largest at the nearest shape. 1080x1350 -> 1088x1360
    """
    wanted = width / height
    if "WxH" not in model.sizes:
        fixed = [size for size in model.sizes if size != "auto"]
        return min(fixed, key=lambda size: part_cut(shape_of(size), wanted))
    grid = range(16, 3841, 16)
    covering, others = [], []
    for across in grid:
        for down in grid:
            if not is_free_size(across, down):
                continue
            cut = part_cut(across / down, wanted)
            if across >= width and down >= height and cut <= MAX_FIT_CUT:
                covering.append((across * down, cut, across, down))
            others.append((round(cut, 2), -across * down, across, down))
    *_, across, down = min(covering or others)
    return f"{across}x{down}"


# --- Validation ---


def text_faults(args: Args) -> Iterator[tuple[str, str]]:
    for field in ("prompt", "negative_prompt"):
        text = getattr(args, field)
        if field == "negative_prompt" and not text:
            continue
        what = field.replace("_", " ")
        if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
            yield f"The {what} {text!a:.40} is blank or not UTF-8.", "Say what the picture shows."
        elif len(text) > MAX_PROMPT_CHARS:
            yield f"The {what} has {len(text)} characters.", f"Use at most {MAX_PROMPT_CHARS}."


def shape_faults(args: Args) -> Iterator[tuple[str, str]]:
    if args.aspect_ratio not in (None, *OPENAI_SIZE_BY_RATIO):
        known = ", ".join(OPENAI_SIZE_BY_RATIO)
        yield f"The aspect ratio {args.aspect_ratio!r} is not supported.", f"Use one of {known}."
    if args.fit is not None:
        sides = pixels_of(args.fit)
        if not all(MIN_FIT_PX <= side <= MAX_FIT_PX for side in sides):
            hint = f"Use WIDTHxHEIGHT, each from {MIN_FIT_PX} to {MAX_FIT_PX}, such as 1080x1350."
            yield f"The value of {args.spelt('fit')}, {args.fit!r}, is not valid.", hint


def number_faults(args: Args, model: Model) -> Iterator[tuple[str, str]]:
    n, attempts = args.spelt("n"), args.spelt("attempts")
    timeout, stream = args.spelt("timeout"), args.spelt("stream")
    for name, value, most in ((n, args.n, 10), (attempts, args.attempts, 5)):
        if type(value) is not int or not 1 <= value <= most:
            yield (
                f"The value of {name}, {value!r}, is not valid.",
                f"Use a whole number from 1 to {most}.",
            )
    if type(args.timeout) not in (int, float) or not 0 < args.timeout <= 86_400:
        hint = "Use a number of seconds above 0, at most 86400."
        yield f"The value of {timeout}, {args.timeout!r}, is not valid.", hint
    if model.family == "gemini":
        return  # it makes one picture, whatever n is
    if args.n > model.max_n:
        yield (
            f"The value of {n} is {args.n}.",
            f"{model.name} makes one picture a call: leave {n} out.",
        )
    if args.stream and args.n > 1:
        yield f"{stream} needs {n} to be 1, and it is {args.n}.", "Leave one of the two out."


def picture_faults(args: Args, model: Model) -> Iterator[tuple[str, str]]:
    count = len(args.reference_images)
    if count > model.max_references:
        most = model.max_references or "none"
        fault = f"The number of reference images is {count}, and {model.name} takes {most}."
        yield fault, f"Leave {args.spelt('reference_images')} out, or choose another model."
    if args.mask is None:
        return
    if not isinstance(args.mask, (str, os.PathLike)):
        yield "The mask is not a path.", "Save the mask as a PNG and give its path."
        return
    if not model.takes_mask:
        hint = f"Leave {args.spelt('mask')} out, or choose an openai model such as gpt-image-2."
        yield f"{model.name} takes no mask.", hint
    elif not args.reference_images:
        fault = f"The mask {os.fspath(args.mask)!r} has no reference image to go with."
        yield fault, f"Add {args.spelt('reference_images')}."


def request_faults(args: Args) -> Iterator[tuple[str, str]]:
    if not isinstance(args.params, Mapping):
        yield f"{args.spelt('params')} is not a mapping.", 'Write it like {"quality": "high"}.'
        return
    if not isinstance(args.output, (str, os.PathLike, type(None))):
        yield f"{args.spelt('output')} is not a path.", "Give the path of a file or folder."
    for name in args.params:
        if name in ARGUMENT_OF_PARAM:
            hint = f"Use {args.spelt(ARGUMENT_OF_PARAM[name])} instead."
            yield f"The parameter {name!r} cannot be set with {args.spelt('params')}.", hint
    try:
        json.dumps(dict(args.params), allow_nan=False, ensure_ascii=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        yield "A parameter cannot be written as JSON.", "Use text, numbers, lists and objects."
    address = r"(https?|socks5h?)://([^/@]*@)?[\w.\[\]:-]+/?"
    if args.proxy is not None and not re.fullmatch(address, str(args.proxy)):
        yield "The proxy is not an address.", "Use one like http://127.0.0.1:7890."


def read_references(args: Args) -> tuple[ReferenceLike, ...]:
    """The references as bytes, links and paths; raises UsageError."""
    given = args.reference_images or ()
    try:
        items = (given,) if isinstance(given, (str, bytes, os.PathLike)) else tuple(given)
        return tuple(
            item if isinstance(item, bytes) else os.fsdecode(os.path.expanduser(item))
            for item in items
        )
    except (TypeError, ValueError):
        fault = "A reference image is neither a path nor bytes."
        raise UsageError(fault, "Give its path, its link or its bytes.") from None


def validate_args(args: Args) -> Args:
    """Check all that can be checked without files and network; fill in model, family and size.

    raises: UsageError naming the argument, its value and what would be right
    """
    if args.use_case not in (None, *MODEL_BY_USE_CASE):
        known = ", ".join(MODEL_BY_USE_CASE)
        raise UsageError(f"The use case {args.use_case!r} is not known.", f"Use one of {known}.")
    name = args.model
    if name is None:
        name = MODEL_BY_USE_CASE[args.use_case] if args.use_case else DEFAULT_MODEL
    if args.family not in (None, "openai", "gemini"):
        raise UsageError(f"The family {args.family!r} is not known.", "Use openai or gemini.")
    model = find_model(name, args.family, args.spelt("family"))
    args = args._replace(
        model=model.name,
        family=model.family,
        reference_images=read_references(args),
        params=args.params or {},
    )
    faults = itertools.chain(
        text_faults(args),
        shape_faults(args),
        number_faults(args, model),
        picture_faults(args, model),
        request_faults(args),
    )
    for message, hint in faults:
        raise UsageError(message, hint)
    if args.use_case == "text-overlay" and model.family == "gemini":
        warn("%s garbles small letters: gpt-image-2 is the model for text", model.name)
    if price_of(model.name).picture is None:
        text = "the model %s is not in the catalogue: it is treated as %s, and its price is unknown"
        warn(text, model.name, model.family)
    shaped = bool(args.aspect_ratio or args.size or args.fit)
    return settle_shape(args._replace(is_shaped=shaped), model)


def settle_shape(args: Args, model: Model) -> Args:
    """Fill in the size of an openai model, or take out what a gemini model has no field for."""
    has_size = args.size is not None and model.family == "openai"
    free = None if args.aspect_ratio or has_size else args.fit
    width, height = pixels_of(free)
    if model.family == "openai":
        if args.size is not None and args.aspect_ratio is not None:
            size, ratio = args.spelt("size"), args.spelt("aspect_ratio")
            warn("%s %s wins over %s %s", size, args.size, ratio, args.aspect_ratio)
            args = args._replace(aspect_ratio=None)
        if free:
            return args._replace(size=size_for_fit(model, width, height))
        return args._replace(size=choose_size(model, args.aspect_ratio, args.size))
    if args.n != 1:
        warn("%s ignores %s: it makes one picture", model.name, args.spelt("n"))
    if args.size is not None:
        hint = f"use {args.spelt('aspect_ratio')}"
        warn("%s ignores %s: %s", model.name, args.spelt("size"), hint)
    if free:
        cuts = {ratio: part_cut(shape_of(ratio), width / height) for ratio in OPENAI_SIZE_BY_RATIO}
        args = args._replace(aspect_ratio=min(cuts, key=lambda ratio: cuts[ratio]))
    return args._replace(n=1, size=None)


# --- Requests ---


def compose_prompt(
    prompt: str, negative_prompt: str | None, aspect_ratio: str | None, family: str
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
    prompt = compose_prompt(args.prompt, args.negative_prompt, args.aspect_ratio, args.family or "")
    extras: dict[str, Any] = {"stream": True} if args.stream else {}
    if args.family == "gemini":
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        content += [
            {"type": "image_url", "image_url": {"url": show(image)}} for image in references
        ]
        messages = [{"role": "user", "content": content}]
        fields = {"model": args.model, "messages": messages, **extras, **args.params}
        return Call(url + ENDPOINTS["gemini"], fields)
    if args.stream:
        extras["partial_images"] = 2
    fields = {"model": args.model, "prompt": prompt, "n": args.n, "size": args.size}
    fields.update({**extras, **args.params})
    if not references:
        return Call(url + ENDPOINTS["openai"], fields)
    parts = [("image[]", image) for image in references]
    if mask:
        parts.append(("mask", mask))
    # Some gateways trust the file name's extension over the Content-Type.
    uploads = tuple(
        Upload(field, f"image-{number}.{image.mime.partition('/')[2]}", image)
        for number, (field, image) in enumerate(parts, 1)
    )
    texts = {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in fields.items()
    }
    return Call(url + ENDPOINTS["edits"], texts, uploads)


# --- Pictures ---


def sniff_format(data: bytes | bytearray) -> str | None:
    """Pillow's name of the format that the first bytes announce, whatever label they came with."""
    head = bytes(data[:64])
    return next((name for name, first in SIGNATURES.items() if re.match(first, head, re.S)), None)


def register_heif() -> None:
    """Teach Pillow to read HEIC, what phones make; raises PictureError without pillow-heif."""
    import importlib.util
    import shlex

    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        python = shlex.quote(sys.executable)
        command = f"{python} -m pip install pillow-heif"
        if not importlib.util.find_spec("pip"):
            command = f"uv pip install --python {python} pillow-heif"
        fault = "reading HEIC needs the package pillow-heif"
        raise PictureError(fault, f"Install it with: {command}") from None
    register_heif_opener()


def mend_big_tiff(data: bytes) -> bytes:
    """A big-endian BigTIFF as Pillow reads it: it looks for the mark in the third byte only."""
    from PIL import TiffImagePlugin

    if MENDED_BIG_TIFF not in TiffImagePlugin.PREFIXES:
        TiffImagePlugin.PREFIXES = [*TiffImagePlugin.PREFIXES, MENDED_BIG_TIFF]
    return MENDED_BIG_TIFF + data[4:]


@contextlib.contextmanager
def decoding(data: bytes) -> Iterator[Any]:
    """A Pillow image of untrusted bytes.

    raises: PictureError when they are no picture, damaged, or too large to decode
    """
    from PIL import Image

    name = sniff_format(data)
    if not name:
        raise PictureError("it is not a picture" if data else "it is empty")
    if name == "HEIF":
        register_heif()
    if data[:4] == b"MM\0+":
        data = mend_big_tiff(data)
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            if data[:4] == MENDED_BIG_TIFF:  # whose tags Pillow cannot read a second time
                exif = Image.Exif()
                exif[ORIENTATION] = image.tag_v2.get(ORIENTATION, 1)
                image.info["exif"] = exif.tobytes()
            colour = image.info.get("transparency")
            if name == "PNG" and data[24] == 16 and isinstance(colour, tuple):
                # Pillow keeps 8 of the 16 bits of every colour but the transparent one.
                image.info["transparency"] = tuple(sample >> 8 for sample in colour)
            yield image
    except PictureError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a broken file provokes
        fault = f"there is no decoder for {name}" if isinstance(error, KeyError) else str(error)
        raise PictureError(fault.partition(" <")[0] or type(error).__name__) from None


def orientation_of(image: Any) -> int:
    """EXIF's orientation, 1 to 8; from 5 on the picture is seen with its sides swapped."""
    with contextlib.suppress(Exception):  # a picture with broken EXIF is a good picture
        return int(image.getexif().get(ORIENTATION, 1))
    return 1


def upright_size(image: Any, size: tuple[int, int]) -> tuple[int, int]:
    return size[::-1] if orientation_of(image) > 4 else size


def read_picture(data: bytes, link: str | None = None) -> Picture:
    """Prove that bytes are a whole picture by decoding them; raises PictureError."""
    with decoding(data) as image:
        name, size = image.format, image.size
        # A JPEG is still read to its end, at a 64th of the memory.
        image.draft(None, (size[0] // 8, size[1] // 8))
        image.load()  # before getexif, which may hide that the picture is damaged
        size = upright_size(image, size)
    return Picture(data, "JPEG" if name == "MPO" else name, size, link)


def reduce_depth(image: Any) -> Any:
    """8 bits a sample, of pictures that have 16 or 32 bits of grey, which convert() would clip."""
    from PIL import Image, ImageChops

    info = dict(image.info)
    transparent = info.pop("transparency", None)
    if image.mode == "I" and image.format == "PNG":  # what Pillow before 11 makes of 16 bits
        image = image.convert("I;16")
    if not image.mode.startswith("I;16"):
        scale = 1 / 256 if image.mode == "I" else 255 / max(1.0, image.getextrema()[1])
        grey = image.convert("F").point(lambda value: value * scale).convert("L")
    else:
        data = image.tobytes()
        halves = [Image.frombytes("L", image.size, data[start::2]) for start in (0, 1)]
        high, low = halves if image.mode.endswith("B") else reversed(halves)
        grey = high.copy()
        if transparent is not None:
            is_high = high.point([255 * (value == transparent >> 8) for value in range(256)])
            is_low = low.point([255 * (value == transparent & 255) for value in range(256)])
            grey.putalpha(ImageChops.invert(ImageChops.multiply(is_high, is_low)))
    grey.info = info
    return grey


def standardise(image: Any, edge_px: int | None = None) -> Any:
    """The image upright, in sRGB, without metadata, and at most edge_px on its longer side.

    out: RGBA when any of it is transparent, else RGB
    """
    from PIL import Image, ImageCms, ImageOps

    if image.mode[0] in "IF":
        image = reduce_depth(image)
    mode = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
    if image.mode in ("1", "P") or mode == "RGBA":
        image = image.convert(mode)
    if edge_px:  # a gap of 1.5 is twice as fast as LANCZOS alone, and 54 dB from it
        lanczos = getattr(Image, "Resampling", Image).LANCZOS
        image.thumbnail((edge_px, edge_px), lanczos, reducing_gap=1.5)
    with contextlib.suppress(Exception):  # broken EXIF
        image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile")
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            target = ImageCms.createProfile("sRGB")
            image = ImageCms.profileToProfile(image, source, target, outputMode=mode)
        except (ImageCms.PyCMSError, OSError):
            warn("a colour profile does not fit its picture and is ignored: colours may be off")
    image = image.convert(mode)
    image.info = {}
    is_opaque = mode == "RGB" or image.getextrema()[3][0] == 255
    return image.convert("RGB") if is_opaque else image


def encode(image: Any, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


def shrink(data: bytes, max_dim: int, max_bytes: int = REFERENCE_LIMIT_BYTES) -> Reference:
    """An encoded picture within the limits, see `maybe_resize`; raises PictureError."""
    with decoding(data) as image:
        size = image.size
        # A large JPEG is read at a fraction of its size, but not below 1.4 times what is needed.
        room = 1.4 * max_dim / max(size)
        image.draft(None, (int(size[0] * room), int(size[1] * room)))
        image.load()
        fits = max(size) <= max_dim and len(data) <= max_bytes and orientation_of(image) < 2
        if fits and image.format in SENT_FORMATS and getattr(image, "n_frames", 1) == 1:
            return Reference(data, f"image/{image.format.lower()}", size, size)
        is_lossless = image.format in ("PNG", "GIF", "BMP", "TIFF") or data[12:16] == b"VP8L"
        upright = upright_size(image, size)
        image = standardise(image, max_dim)
    data, name = compress(image, max_bytes, is_lossless)
    return Reference(data, f"image/{name.lower()}", image.size, upright)


def compress(image: Any, max_bytes: int, is_lossless: bool) -> tuple[bytes, str]:
    """The image as a file of at most so many bytes, and its format; it may get smaller for that."""
    lossy = "JPEG" if image.mode == "RGB" else "WEBP"
    options = {"subsampling": 0} if lossy == "JPEG" else {}  # 4:2:0 turns thin red lines grey
    while True:  # less and less quality, then fewer and fewer pixels
        if is_lossless or lossy == "WEBP":
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


@contextlib.contextmanager
def bytes_of(source: ReferenceLike, what: str, hint: str) -> Iterator[bytes]:
    """The bytes of a caller's picture; what is wrong with them is a UsageError that names it."""
    heed_stop()
    named = f"of {len(source)} bytes" if isinstance(source, bytes) else f"{str(source)!r:.300}"
    try:
        if isinstance(source, bytes):
            yield source
            return
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise OSError("it is not a file")
        with open(source, "rb") as file:
            yield file.read()
    except (OSError, ValueError) as error:
        if isinstance(error, OSError):
            hint = "Check the path."
        fault = f"The {what} {named} cannot be used: {reason(error)}."
        raise UsageError(fault, getattr(error, "hint", "") or hint) from error


def maybe_resize(
    path: ReferenceLike,
    max_dim: int = REFERENCE_EDGES_PX[0],
    max_bytes: int = REFERENCE_LIMIT_BYTES,
) -> Reference:
    """Read a reference picture as the gateways take it, from a path or from bytes.

    It is upright, at most max_dim pixels on its longer side and max_bytes large, and PNG, JPEG or
    WebP. A file that is all this already goes out byte for byte. Any other is remade in memory
    from its first frame, in sRGB: as PNG when it is lossless or transparent and that fits, else as
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
    with bytes_of(path, "mask", "Give a PNG of that size, partly transparent.") as data:
        with decoding(data) as image:
            if image.format != "PNG" or not has_transparency(image):
                raise PictureError("it is not a PNG with transparency")
            if image.size != first.full_size:
                sizes = (*image.size, *first.full_size)
                raise PictureError("it is {}x{}, and its reference {}x{} pixels".format(*sizes))
            alpha = image.convert("RGBA").getchannel("A").resize(first.size)
            if image.size != first.size or len(data) > REFERENCE_LIMIT_BYTES:
                data = encode(Image.merge("RGBA", [alpha] * 4), "PNG")
        return Reference(data, "image/png", first.size, first.full_size)


def has_transparency(image: Any) -> bool:
    return "A" in image.getbands() or "transparency" in image.info


def in_format(picture: Picture, name: str) -> Picture:
    """The picture in the format that its file's name promises, untouched when it has that."""
    if name in ("", picture.format):
        return picture
    with decoding(picture.data) as source:
        return remade(standardise(source), name)


def remade(image: Any, name: str) -> Picture:
    """A standardised image as a file to be saved."""
    from PIL import Image

    if name == "JPEG" and image.mode == "RGBA":
        warn("JPEG has no transparency: transparent areas become white")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    options = {"quality": SAVED_JPEG_QUALITY} if name == "JPEG" else {}
    return Picture(encode(image, name, **options), name, image.size)


def fitted(picture: Picture, width: int, height: int, name: str) -> Picture:
    """The picture scaled to cover these pixels and cut at its centre, in the named format.

    One that has these pixels already is only brought into that format.
    """
    if picture.size == (width, height):
        return in_format(picture, name)
    from PIL import Image, ImageOps

    if picture.size[0] < width or picture.size[1] < height:
        warn("the picture of %dx%d had to be enlarged to %dx%d", *picture.size, width, height)
    cut = part_cut(picture.size[0] / picture.size[1], width / height)
    if cut > RATIO_TOLERANCE:
        warn("%.0f %% of the picture was cut away to make it %dx%d", 100 * cut, width, height)
    with decoding(picture.data) as source:
        image = standardise(source)
    lanczos = getattr(Image, "Resampling", Image).LANCZOS
    name = name or (picture.format if picture.format in SENT_FORMATS else "PNG")
    return remade(ImageOps.fit(image, (width, height), lanczos), name)


def nearest_ratio(size: tuple[int, int]) -> str:
    shape = size[0] / size[1]
    return min(OPENAI_SIZE_BY_RATIO, key=lambda ratio: part_cut(shape_of(ratio), shape))


def warn_of_shape(args: Args, references: Sequence[Reference]) -> None:
    """Say before anything is paid that an edit would get another shape than its reference."""
    if args.is_shaped or not references or args.family != "openai":
        return  # gemini keeps the shape of what it edits
    size = references[0].full_size
    if part_cut(size[0] / size[1], shape_of(args.size or DEFAULT_SIZE)) > RATIO_TOLERANCE:
        flag = f"{args.spelt('aspect_ratio')} {nearest_ratio(size)}"
        text = "the reference is %dx%d and the picture will be %s; to keep its shape add %s"
        warn(text, *size, args.size, flag)


# --- Answers ---


class Inbox:
    """What has arrived of an answer: its body, or of an event stream its events, one by one.

    A draft replaces the one before it, so that a long stream takes no more memory than a short
    one. `notify` is called with the number of drafts so far.
    Source: the WHATWG's HTML standard, section Server-sent events; an event counts as complete
    when its data is JSON, as not every gateway sends the blank line that should follow.
    """

    def __init__(self, notify: Callable[[int], None] | None = None) -> None:
        self.body = bytearray()
        self.events: list[Any] = []
        self.draft: Any = None  # the last draft's event
        self.drafts = 0
        self.is_stream: bool | None = None  # None until enough has arrived to tell
        self.is_finished = False  # a stream has said that its picture is complete
        self.is_over = False  # … and that nothing more will come
        self.has_failed = False  # … or that something went wrong
        self._notify = notify
        self._texts: list[str] = []  # the pieces of a chat's content
        self._searched = 0  # so many bytes of the body hold no end of a line
        self._event_name = ""
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> None:
        self.body += chunk
        if self.is_stream is None:
            self.body = self.body.lstrip(b"\xef\xbb\xbf \t\r\n")  # a mark, and blanks as keep-alive
            if len(self.body) >= len("data:image/"):
                self._decide()
        while self.is_stream and (end := self.body.find(b"\n", self._searched)) >= 0:
            line = bytes(self.body[:end])
            del self.body[: end + 1]
            self._searched = 0
            self._take_line(line.strip(b"\r"))
        self._searched = len(self.body) if self.is_stream else 0

    def tree(self, keys: Sequence[str] = ()) -> Any:
        """All of it as a JSON tree without the keys, or as text; the body is emptied."""
        if self.is_stream is None:
            self._decide()
        if self.is_stream:
            self._take_line(bytes(self.body).strip(b"\r"))
            self._take_data()
            self.body.clear()
            return clean([*self.events, {"content": "".join(self._texts)}], keys)
        if sniff_format(self.body):  # a picture and nothing else
            self.body[:] = base64.b64encode(self.body)
        text = self.body.decode(json.detect_encoding(self.body), "replace").strip("\ufeff\0 \t\r\n")
        self.body.clear()  # a large answer would stand in memory twice
        try:
            return clean(json.loads(text), keys)
        except (ValueError, RecursionError):
            return clean(text, keys)

    def _decide(self) -> None:
        start = bytes(self.body[:20])  # of a data URL, too, which is no stream
        self.is_stream = bool(re.match(rb"data:(?!image/)|event:|id:|retry:|:", start))

    def _take_line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        if not line:
            self._end_event()
        elif field == b"event":
            self._end_event()
            self._event_name = value.decode("utf-8", "replace").strip()
        elif field == b"data" or line.startswith(b"{"):  # some leave the field's name out
            self._data.append(value.strip() if field == b"data" else line)
            if len(self._data) == 1:  # most events are one line, and some gateways end them so
                self._take_data()

    def _end_event(self) -> None:
        self._take_data()
        text = b"\n".join(self._data).decode("utf-8", "replace")
        if text and text[0] not in '{["':  # no JSON at all; broken JSON is nothing
            is_error = self._event_name == "error"
            self.has_failed = self.has_failed or is_error
            self.events.append({"error" if is_error else "content": text})
        self._data.clear()
        self._event_name = ""

    def _take_data(self) -> None:
        """Read the event's data so far as JSON, if it is that already."""
        data = b"\n".join(self._data)
        if data == b"[DONE]":
            self.is_finished = self.is_finished or not self.has_failed
            self.is_over = True
            self._data.clear()
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            return  # more lines may complete it
        self._data.clear()
        if isinstance(event, dict):
            self._take_event(event, str(event.get("type") or self._event_name))
        else:
            self.events.append(event if isinstance(event, list) else {"content": str(event)})

    def _take_event(self, event: dict[str, Any], kind: str) -> None:
        is_done = is_final(event, kind)
        has_index = event.get("partial_image_index") is not None
        if kind.endswith("partial_image") or (has_index and not is_done):
            self.draft = event
            self.drafts += 1
            if self._notify:
                self._notify(self.drafts)
            return
        if kind in ("error", "upstream_error") and not event.get("error"):
            event = {"error": event}
        self.has_failed = self.has_failed or bool(event.get("error"))
        for choice in list_in(event, "choices"):
            delta = choice.get("delta")
            if not isinstance(delta, dict):
                continue
            if isinstance(delta.get("content"), str):
                self._texts.append(delta.pop("content"))
            if delta.get("images") or delta.get("image"):  # what came before was a draft
                self.events = [earlier for earlier in self.events if not has_images(earlier)]
        self.is_finished = self.is_finished or is_done
        self.events.append(event)


def has_images(event: Any) -> bool:
    """Whether a chat's event brings a picture."""
    if not isinstance(event, dict):
        return False
    deltas = [choice.get("delta") for choice in list_in(event, "choices")]
    return any(
        isinstance(delta, dict) and (delta.get("images") or delta.get("image")) for delta in deltas
    )


def list_in(tree: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The objects of a list that should stand under a key."""
    items = tree.get(key)
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def is_final(event: Mapping[str, Any], kind: str) -> bool:
    """Whether a stream's event says that the picture is complete.

    image_generation.completed (OpenAI), image_generation.partial_succeeded (Volcengine: a finished
    picture), a finish_reason (chats), finishReason (Google), or a whole answer in one event.
    """
    choices = [*list_in(event, "choices"), *list_in(event, "candidates")]
    reasons = [choice.get("finish_reason") or choice.get("finishReason") for choice in choices]
    if event.get("error") or "error" in reasons:  # OpenRouter ends a broken stream so
        return False
    return (
        kind.endswith(("completed", "partial_succeeded"))
        or bool(list_in(event, "data"))
        or any(reasons)
        or any("message" in choice for choice in choices)
    )


def parse_body(body: Any) -> Any:
    """A body of bytes or text as a JSON tree, an event stream as the list of its events."""
    if not isinstance(body, (bytes, bytearray, str)):
        return clean(body, ())
    inbox = Inbox()
    inbox.feed(body.encode("utf-8", "replace") if isinstance(body, str) else bytes(body))
    return inbox.tree()


def walk(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every text and number of a tree in order, with the keys and indices that lead to it."""
    if isinstance(tree, (str, int)):
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
    """The texts whose own key matches, blank ones left out; the key of a mere text is ""."""
    return [
        text
        for path, text in walk(tree)
        if text.strip() and re.fullmatch(keys, str(("", *path)[-1]), re.I)
    ]


def one_line(text: str, limit: int = 300) -> str:
    """Untrusted text as one short printable line; of an HTML page its title."""
    text = text[:20_000]
    if is_page(text):
        title = re.search(r"<title[^>]*>(.*?)</title>", text, re.I | re.S)
        text = title[1] if title else re.sub(r"<[^>]*>", " ", text)
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def ended(sentence: str) -> str:
    """A sentence with its full stop, unless it ends in another mark already."""
    return sentence if sentence.endswith(tuple("?!…。！？")) else sentence.rstrip(".") + "."


def is_page(text: str) -> bool:
    return bool(re.match(r"\s*<[!a-z]", text, re.I))


def decode_base64(text: str) -> bytes:
    """Base64 of either alphabet, padded or not, in lines or not; b"" unless it begins a picture."""
    from binascii import a2b_base64  # unlike b64decode it makes no copy of the text
    from urllib.parse import unquote

    text = unquote(text).replace("-", "+").replace("_", "/").rstrip()
    for end in (None, -1):  # one letter less: it was cut off inside a group of four
        with contextlib.suppress(ValueError):
            data = a2b_base64(text[:end] + "==")
            return data if sniff_format(data) else b""
    return b""


def rank_of(path: Sequence[Any]) -> int:
    """How likely the result stands here: 0 likely, 1 a draft, 2 something else altogether."""
    keys = ".".join(key for key in path if isinstance(key, str))
    return 2 if re.search(FOREIGN_KEYS, keys) else 1 if re.search(DRAFT_KEYS, keys) else 0


def find_candidates(tree: Any) -> Iterator[Candidate]:
    """All that may be the result, in order: base64 whose first bytes are a picture's, and links."""
    for path, text in walk(tree):
        if len(text) < 5:
            continue
        rank = rank_of(path)
        found = [data for match in re.findall(BASE64, text) if (data := decode_base64(match))]
        for data in found:
            yield Candidate(path, rank, data=data)
        if not found:
            for link, penalty in find_links(path, text).items():
                yield Candidate(path, rank + penalty, link=link)


def find_links(path: Sequence[Any], text: str) -> dict[str, int]:
    """The links in a text, and by how much each is less likely than one that surely is a picture's.

    ![image](/media/a.png) -> 0    the only word under a key such as url -> 0
    https://a.example/b.png in prose -> 0    https://a.example/terms in prose -> UNLIKELY
    """
    text = text.strip()
    if len(text) < MAX_LINK_CHARS:
        keys = ".".join(str(key) for key in path)
        only = lone_link(text, has_link_key=bool(re.search(LINK_KEYS, keys)))
        if only:
            return only
    links: dict[str, int] = {}
    # A link may stand behind long thoughts.
    text = text[:8000] + text[max(8000, len(text) - 8000) :]
    for match in re.finditer(SHOWN_LINK, text):
        link = tidy_link(match[1] or match[2])
        if not re.match(OTHER_SCHEME, link):
            links.setdefault(link, penalty_of(match[0]))
    for match in re.finditer(BARE_LINK, text):
        link = tidy_link(match[0])
        before = text[max(0, match.start() - 40) : match.start()]
        is_picture = re.search(PICTURE_NAME, link) or re.search(PICTURE_LABEL, before)
        links.setdefault(link, penalty_of(before + link) if is_picture else UNLIKELY)
    return links


def lone_link(text: str, has_link_key: bool) -> dict[str, int]:
    """A text that is a link and nothing else; {} for any other."""
    if not has_link_key:
        return {text: 0} if re.fullmatch(BARE_LINK, text) else {}
    if re.fullmatch(WHOLE_LINK, text):
        return {text: 0}
    if re.fullmatch(r"/\S+", text):
        return {text: 0}
    if re.search(PICTURE_NAME, text) and re.fullmatch(r"[^\s:]+", text):
        return {text: 0 if "/" in text else 1}  # fal's file_name is hardly an address
    return {}


def penalty_of(words: str) -> int:
    """![avatar](…) is likelier to be somebody's face than the result."""
    return 2 if re.search(AVATAR, words) else 0


def tidy_link(link: str) -> str:
    return link.rstrip(".,;:!?*").replace("&amp;", "&")


class Reading(NamedTuple):
    """One way to read an answer: for every picture that was made its alternatives, best first."""

    rank: int
    pictures: list[list[Candidate]]


def arrange(candidates: Sequence[Candidate], family: str) -> list[Reading]:
    """The ways to read an answer, likeliest first.

    openai: an element of a list is a picture; what stands under one top key is one reading.
    gemini: there is one picture, the last; those before it are drafts.
    """
    readings: dict[tuple[int, Any], dict[Any, list[Candidate]]] = {}
    for candidate in candidates:
        path = candidate.path if family == "openai" else ()
        top = path[0] if path and isinstance(path[0], str) else ""
        indices = [depth for depth, step in enumerate(path, 1) if isinstance(step, int)]
        place = path[: max(indices, default=0)]
        pictures = readings.setdefault((candidate.rank, top), {})
        pictures.setdefault(place, []).insert(0, candidate)
    ordered = []
    for (rank, _), pictures in readings.items():
        groups = list(pictures.values())
        for group in groups:
            group.sort(key=lambda candidate: not candidate.data)
        ordered.append(Reading(rank, groups))
    return sorted(ordered, key=lambda reading: (reading.rank, not reading.pictures[0][0].data))


class Take:
    """What comes of looking for pictures in an answer.

    echoes  the references as they were sent: a gateway that returns one has made nothing
    fetch   gets the picture behind a candidate's link; raises ResponseError
    """

    def __init__(
        self, wanted: int, echoes: Sequence[bytes], fetch: Callable[[Candidate], Picture]
    ) -> None:
        self.pictures: list[Picture] = []
        self.faults: dict[str, None] = {}  # in order, each once
        self.links: list[str] = []  # those of the faults
        self.partial = b""  # the longest piece of a picture that does not decode
        self._wanted = wanted
        self._echoes = echoes
        self._fetch = fetch
        self._links_left = MAX_LINKS

    def take_all(self, candidates: Sequence[Candidate], family: str) -> None:
        """Decode candidates until a reading has a picture; raises Interrupted before the first.

        Where a likely picture fails, a draft may stand in for it, but nothing less likely.
        """
        for reading in arrange(candidates, family):
            if self.pictures or (self.faults and reading.rank > 1):
                return
            for alternatives in reading.pictures:
                self._take_one(alternatives)

    def _take_one(self, alternatives: Sequence[Candidate]) -> None:
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
        self.faults[getattr(error, "message", str(error)).rstrip(".")] = None
        if candidate.link:
            self.links += getattr(error, "image_urls", None) or [candidate.link]
        self.partial = max(self.partial, candidate.data, key=len)


def read_answer(
    tree: Any, args: Args, echoes: Sequence[bytes], fetch: Callable[[Candidate], Picture]
) -> tuple[list[Picture], dict[str, Any]]:
    """All pictures of a successful answer, and its usage; see `Take` for echoes and fetch.

    raises: ResponseError, or the error that the answer amounts to
    """
    family = args.family or ""
    candidates = [found for found in find_candidates(tree) if found.data not in echoes]
    has_bytes = any(candidate.data for candidate in candidates)
    is_refusal = opens_as_refusal(tree) or (args.n == 1 and refusal_in(tree))
    if is_refusal and not has_bytes:  # its links lead to policies, not to a picture
        classify_response_error(family, tree)
    take = Take(args.n, echoes, fetch)
    take.take_all(candidates, family)
    if not take.pictures and not take.faults:
        classify_response_error(family, tree)
    faults = "; ".join(take.faults)
    if not take.pictures:
        task = "".join(f" of the task {one_line(task)}" for task in task_ids(tree)[:1])
        fault = f"The gateway's picture{task} could not be retrieved: {faults}."
        hint = ""
        if take.links:
            hint = f"It has been paid for. Download it soon by other means: {' '.join(take.links)}"
        error = ResponseError(fault, hint, image_urls=take.links)
        error.partial = take.partial
        raise error
    if len(take.pictures) < args.n:
        warn("the gateway made %d of the %d pictures asked for", len(take.pictures), args.n)
    if take.faults:
        lost = " ".join([f"{faults}.", *take.links])
        warn("the most likely picture could not be retrieved, so another one is used: %s", lost)
    return take.pictures, find_usage(tree)


def find_usage(tree: Any, depth: int = 4) -> dict[str, Any]:
    """The numbers of tokens that a gateway states, at the top or near it; the last of a stream."""
    if isinstance(tree, dict):
        for usage in (tree.get("usage"), tree.get("usageMetadata")):
            if usage and isinstance(usage, dict):
                return usage
    items = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    below = (find_usage(item, depth - 1) for item in reversed(list(items)) if depth)
    return next(filter(None, below), {})


def refusal_in(tree: Any) -> str:
    """The reason by which a model says that it refused, "" when it does not."""
    reasons = texts_under(tree, "refusal|block_?reason|rai_?filtered_?reason")
    endings = texts_under(tree, "(native_)?(finish|stop|failure)_?reason")
    reasons += [text for text in endings if re.search(REFUSAL_CODES, snake_case(text))]
    return next(iter(reasons), "")


def opens_as_refusal(tree: Any) -> bool:
    """Whether the model's words begin by saying that it will not or cannot."""
    words = " ".join(texts_under(tree, "|content|text"))[:20_000]
    words = re.sub(r"\A\s*<think>.*?</think>", "", words, count=1, flags=re.S)
    return bool(re.match(REFUSAL_OPENING, words.lstrip(' \n\t*>"“')))


def task_ids(tree: Any) -> list[str]:
    """The ids by which a gateway names work that it has only begun."""
    is_unfinished = any(re.search(UNFINISHED, state) for state in texts_under(tree, "status|state"))
    names = "(task|job|generation|prediction)_?id"
    return texts_under(tree, f"{names}|(request_?)?id" if is_unfinished else names)


def snake_case(words: str) -> str:
    """InputImageSensitive -> input_image_sensitive"""
    return re.sub("(?<=[a-z])(?=[A-Z])", "_", words).lower()


def meaning_of(status: int, codes: str, sentence: str) -> Meaning:
    """The first row of MEANINGS that fits. A 5xx is never judged by its sentence."""
    sentence = re.sub(QUOTED, "''", sentence)

    def fits(row: Meaning) -> bool:
        if not re.match(row.status, str(status)):
            return False
        if not row.codes and not row.phrases:
            return True
        by_code = bool(row.codes) and re.search(row.codes, codes)
        by_sentence = bool(row.phrases) and status < 500 and re.search(row.phrases, sentence, re.I)
        return bool(by_code or by_sentence)

    return next(filter(fits, MEANINGS))


def gateway_error(
    status: int, body: Any, headers: Mapping[str, str] | None = None
) -> ImageGenError:
    """The error that a status and a body's codes and sentence amount to.

    {"error": {"message": "No", "type": "bad", "code": null}} has the sentence "No", the code "bad"
    """
    tree = parse_body(body)
    sentences = texts_under(tree, "|((error|status)_?)?(message|msg)")
    if not sentences:
        sentences = texts_under(tree, r"detail|(error_)?description|error|title|\d+")
    place = ".".join(text for path, text in walk(tree) if "loc" in path)
    params = [text for text in texts_under(tree, "param") if text not in " ".join(sentences[:1])]
    sentence = one_line(": ".join(filter(None, [place, *params[:1], *sentences[:1]])))
    words = texts_under(tree, "(error_?)?code|reason") + texts_under(tree, "type|status|error")
    codes = [word for word in words if re.fullmatch(r"(?=.*[^\W\d])[\w.:-]{1,80}", word)]
    row = meaning_of(status, snake_case(" ".join(codes)), sentence)
    said = f" ({codes[0]})" if codes else ""
    said += f": {sentence}" if sentence else ""
    error = row.error(
        ended(f"The gateway answered {status}{said}"),
        row.hint,
        status=status,
        retryable=row.retryable,
    )
    error.retry_after_s = read_retry_after(headers or {})
    return error


def read_retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that Retry-After or retry-after-ms asks for, at most 60; 0 without a wish."""
    from email.utils import mktime_tz, parsedate_tz

    wish = headers.get("retry-after", "").strip()
    with contextlib.suppress(Exception):  # whatever it is, it is no reason to fail
        date = parsedate_tz(wish)
        if date:
            zone = date[9] or 0  # without a zone it is GMT
            seconds = mktime_tz((*date[:9], zone)) - time.time()
        else:
            seconds = float(wish) if wish else float(headers["retry-after-ms"]) / 1000
        return min(max(0.0, seconds), MAX_RETRY_AFTER_S)
    return 0.0


def handle_http_error(
    family: str, status: int, body: Any, headers: Mapping[str, str] | None = None
) -> NoReturn:
    """Raise the ImageGenError of an answer whose status is no success.

    body  bytes, text or a JSON tree
    """
    lowered = {name.lower(): value for name, value in (headers or {}).items()}
    if 300 <= status < 400:
        place = lowered.get("location", "nowhere")
        body = f"it redirects to {place}, which a POST must not follow"
    raise gateway_error(status, body, lowered)


def gateways_words(tree: Any) -> list[Any]:
    """What the gateway says of itself, not the model's words nor other attempts' logs.

    error.*, *.error.*, base_resp.* (MiniMax), output.* (DashScope), and what stands at the top
    """
    said: list[Any] = []
    for path, text in walk(tree):
        place = ".".join(step for step in path if isinstance(step, str))
        if not path:
            said.append(text)
        elif re.match(r"(?i)(\w+\.)?error|((base_resp|output)\.)?\w+$", place):
            said.append({path[-1]: text} if place != "content" else {})
    return said


def classify_response_error(family: str, body: Any) -> NoReturn:
    """Raise the ImageGenError of a successful answer without a picture.

    body  bytes, text or a JSON tree
    """
    tree = parse_body(body)
    said = gateways_words(tree)
    numbers = texts_under(said, "code|status")
    statuses = [int(number) for number in numbers if re.fullmatch("[45][0-9][0-9]", number)]
    error = gateway_error(statuses[0] if statuses else 200, said)
    links = list(dict.fromkeys(found.link for found in find_candidates(tree) if found.link))
    if not isinstance(error, ResponseError):
        error.image_urls = links
        raise error
    refusal = refusal_in(tree)
    if refusal:
        raise RefusedError(ended(f"The model refused: {one_line(refusal)}"), image_urls=links)
    words = texts_under(tree, "|content|text|((task_)?status_)?(message|msg)|detail|error")
    shown = words or texts_under(tree, "finish_?reason|result|description")
    quoted = f": {one_line(' '.join(shown))}" if shown else ""
    if isinstance(tree, str) and is_page(tree):
        hint = "Check the base URL: most end in /v1."
        raise ResponseError(ended(f"The answer is a web page{quoted}"), hint, billed="maybe")
    tasks = task_ids(tree)
    if tasks:
        fault = f"The answer holds no image but the unfinished task {one_line(tasks[0])}{quoted}"
        hint = "Ask the gateway for that task's result: only finished pictures are read here."
        raise ResponseError(ended(fault), hint, image_urls=links)
    fault = ended(f"The answer holds no image{quoted}")
    hint, billed = "", "yes"
    if words:
        hint = "The words may be a refusal, which costs little or nothing: ask before trying again."
        billed = "maybe"
    if links:
        hint = f"{hint} A link in it may lead to the picture: {' '.join(links)}".strip()
    raise ResponseError(fault, hint, billed=billed, image_urls=links)


def read_draft(inbox: Inbox, candidates: Sequence[Candidate]) -> bytes:
    """The last draft that decodes of a stream without its final picture; b"" without one."""
    drafts = [*find_candidates(inbox.draft), *candidates]
    for candidate in reversed(drafts):
        with contextlib.suppress(PictureError):
            if candidate.data:
                return read_picture(candidate.data).data
    return b""


# --- Wire: the only code that opens sockets ---


class Answer:
    """What has arrived of a server's answer; the thread that talks to the server fills it in.

    Whoever waits for it may abandon it. From then on nothing more is sent, nor taken in.
    """

    def __init__(self, notify: Callable[[int], None] | None = None) -> None:
        self.status = 0  # none has arrived yet
        self.headers: Mapping[str, str] = {}
        self.inbox = Inbox(notify)
        self.fault = ""  # why the answer ended early, "" when it is whole
        self.is_sent = False  # some of the request's body has gone out
        self.is_done = threading.Event()
        self._is_abandoned = False
        self._lock = threading.Lock()

    def claim_sending(self) -> None:
        with self._lock:
            if self._is_abandoned:
                raise OSError("nobody waits for the answer any more")
            self.is_sent = True

    def take_in(self, chunk: bytes) -> bool:
        """Feed the inbox; returns False once nothing more is wanted."""
        with self._lock:
            if not self._is_abandoned:
                self.inbox.feed(chunk)
            return not self._is_abandoned and not self.inbox.is_over

    def abandon(self) -> None:
        with self._lock:
            self._is_abandoned = True


class Body(io.BytesIO):
    """A request's body that says when it is first read, which is when a connection stands.

    A call of which nothing of this was read cannot have been billed, whatever went wrong.
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
    content_type: str = ""
    key: str = ""  # "" sends no Authorization
    proxy: str | None = None
    limit_bytes: int = MAX_ANSWER_BYTES
    has_events: bool = False  # the answer may be an event stream


def open_session(proxy: str | None) -> Any:
    """A requests session that heeds neither the environment's proxies nor .netrc."""
    import requests

    session = requests.Session()
    session.trust_env = False
    session.proxies = {"all": proxy} if proxy else {}
    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE")
    session.verify = bundle or True
    agent = f"product-shots-image-gen/{VERSION}"
    session.headers.update({"User-Agent": agent, "Accept-Encoding": "gzip"})
    return session


def converse(request: Request, answer: Answer, time_s: float) -> None:
    """Make a request and read its answer, as long as somebody waits for it."""

    def authorise(prepared: Any) -> Any:  # as an auth object, so that nothing can take its place
        if request.key:
            prepared.headers["Authorization"] = f"Bearer {request.key}"
        return prepared

    try:
        with open_session(request.proxy) as session:
            body = None if request.data is None else Body(request.data, answer)
            response = session.request(
                "GET" if body is None else "POST",
                request.url,
                data=body,
                headers={"Content-Type": request.content_type} if request.content_type else {},
                auth=authorise,
                timeout=(CONNECT_TIMEOUT_S, time_s),
                allow_redirects=False,
                stream=True,
            )
            answer.headers, answer.status = response.headers, response.status_code
            limit_bytes = request.limit_bytes if response.status_code < 300 else MAX_ERROR_BYTES
            size = 0
            for chunk in chunks_of(response):
                size += len(chunk)
                if size > limit_bytes:
                    raise ValueError(f"more than {limit_bytes} bytes")
                if not answer.take_in(chunk):
                    return
    except Exception as error:  # requests, urllib3, http.client, ssl and zlib each have their own
        answer.fault = wire_fault(error)
    finally:
        answer.is_done.set()


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


def wire_fault(error: Exception) -> str:
    """What an exception of the wire means in plain words."""
    text = f"{type(error).__name__} {error}"
    words = (words for pattern, words in WIRE_FAULTS if re.search(pattern, text, re.I))
    return next(words, type(error).__name__)


def exchange(
    request: Request, deadline: float, notify: Callable[[int], None] | None = None
) -> Answer:
    """Make a request and come back by the deadline (of time.monotonic()) with what arrived.

    One thread talks to the server and is left behind when it is late, so that no silent, trickling
    or endless server outlasts the deadline.
    raises: UnavailableError when not even a status arrived, Interrupted
    """
    answer = Answer(notify)
    if not request.has_events:
        answer.inbox.is_stream = False
    started = time.monotonic()
    connect_by = min(deadline, started + CONNECT_TIMEOUT_S)
    rest_s = max(POLL_S, deadline - started)
    threading.Thread(target=converse, args=(request, answer, rest_s), daemon=True).start()
    while not answer.is_done.is_set() and not STOP.is_set():
        is_connected = answer.is_sent or request.data is None
        rest_s = (deadline if is_connected else connect_by) - time.monotonic()
        if rest_s <= 0:
            break
        if answer.is_sent:  # while the gateway makes the picture, load what reads it
            from PIL import Image, JpegImagePlugin, PngImagePlugin  # noqa: F401
        answer.is_done.wait(min(POLL_S, rest_s))
    answer.abandon()
    if not answer.is_done.is_set():
        if STOP.is_set():
            billed = "maybe" if answer.is_sent else "no"
            raise Interrupted("Interrupted.", billed=billed)
        answer.fault = TIME_IS_OVER
    if not answer.status:
        raise silence(request, answer)
    return answer


def silence(request: Request, answer: Answer) -> UnavailableError:
    """The error of a request that was not answered at all."""
    host = re.sub("^.*//([^/@]*@)?|[/?#].*$", "", request.url)
    is_late = answer.fault == TIME_IS_OVER
    if answer.is_sent:
        hint = "Allow more time, with --timeout on the command line." if is_late else ""
        error = UnavailableError(f"{host} gave no answer: {answer.fault}.", hint)
        error.timed_out = is_late
        return error
    hint = "Check the network, the base URL and the proxy."
    if is_loopback(request.url):
        hint = (
            "The base URL is on this machine: if it is that of a trial gateway which has ended, "
            "unset OMNIMAAS_BASE_URL."
        )
    return UnavailableError(
        f"{host} cannot be reached: {answer.fault}.",
        hint,
        billed="no",
        retryable=not re.search("TLS|SOCKS|CA bundle", answer.fault),
    )


def better_hint(error: ImageGenError, args: Args, target: Target) -> str:
    """A hint that knows what was asked, and of whom."""
    stream = args.spelt("stream")
    names_stream = re.search(r"(?i)\bstream|partial_images|流式", error.message)
    if args.stream and isinstance(error, RejectedError) and names_stream:
        return f"Leave {stream} out: this gateway does not stream this model's pictures."
    if error.status == 524 and not args.stream and not args.reference_images:
        return f"Add {stream}: drafts that arrive in between keep a proxy from hanging up."
    if isinstance(error, AuthError) and is_loopback(target.url):
        return (
            f"The base URL from {target.url_source} is on this machine: if it is that of a trial "
            f"gateway, unset {target.url_source} to use your own."
        )
    return error.hint


def send(
    call: Call,
    target: Target,
    args: Args,
    deadline: float,
    notify: Callable[[int], None] | None = None,
) -> Answer:
    """Make a call; raises the ImageGenError of an answer that is no success, and of none."""
    heed_stop()
    request = Request(
        call.url,
        key=target.key,
        proxy=args.proxy,
        limit_bytes=MAX_ANSWER_BYTES * max(args.n, 3),  # drafts come along
        has_events=True,
    )
    if call.uploads:
        from urllib3.filepost import encode_multipart_formdata

        parts: list[Any] = list(call.fields.items())
        for field, filename, content in call.uploads:
            parts.append((field, (filename, content.data, content.mime)))
        data, content_type = encode_multipart_formdata(parts)
        request = request._replace(data=data, content_type=content_type)
    elif call.fields:
        data = json.dumps(call.fields).encode("ascii")
        request = request._replace(data=data, content_type="application/json")
    answer = exchange(request, deadline, notify)
    if 200 <= answer.status < 300:
        return answer
    keys = [target.key, *known_keys()]
    headers = {name: scrub(text, keys) for name, text in answer.headers.items()}
    try:
        handle_http_error(args.family or "", answer.status, answer.inbox.tree(keys), headers)
    except ImageGenError as error:
        error.hint = better_hint(error, args, target)
        raise


class AddressGuard:
    """Keeps a reference's link from leading to where only this machine can reach.

    Link-local addresses hold the credentials of cloud machines (169.254.169.254), and a public
    host has no business with a private one. With a proxy, a name that cannot be resolved here is
    the proxy's to judge.
    """

    def __init__(self, has_proxy: bool) -> None:
        self._has_proxy = has_proxy
        self._came_from_public = False

    def check(self, url: str) -> None:
        """Raise LinkError for an address that is refused."""
        addresses = self._resolve(url)
        if any(address.is_link_local for address in addresses):
            raise LinkError("its address is link-local, which is refused", passing=False)
        is_public = all(address.is_global for address in addresses)
        if self._came_from_public and not is_public:
            fault = "it redirects from a public host to a private one, which is refused"
            raise LinkError(fault, passing=False)
        self._came_from_public = is_public

    def _resolve(self, url: str) -> list[Any]:
        import ipaddress
        import socket
        from urllib.parse import urlsplit

        try:
            parts = urlsplit(url)
            found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        except (OSError, ValueError):
            if self._has_proxy:
                return []
            raise LinkError("its host's name cannot be resolved") from None
        addresses = [ipaddress.ip_address(str(row[4][0]).partition("%")[0]) for row in found]
        return [getattr(address, "ipv4_mapped", None) or address for address in addresses]


def join_link(base: str, link: str, keys: Sequence[str]) -> str:
    """The whole address of a link found at another, without the keys; raises LinkError."""
    from urllib.parse import urljoin

    without_user = re.sub("//[^/@]*@", "//", link)
    try:
        return scrub(urljoin(base, without_user), keys)
    except ValueError:
        raise LinkError("it is malformed", passing=False) from None


def fetch_once(request: Request, deadline: float, keys: Sequence[str], is_reference: bool) -> bytes:
    """The bytes behind a link and its redirects; raises LinkError, Interrupted."""
    guard = AddressGuard(has_proxy=bool(request.proxy))
    for _ in range(1 + MAX_REDIRECTS):
        if not re.match("(?i)https?://", request.url):
            raise LinkError("it is not an http or https address", passing=False)
        try:
            if is_reference:
                guard.check(request.url)
            answer = exchange(request, deadline)
        except UnavailableError as error:
            raise LinkError(error.message.rstrip(".")) from None
        location = answer.headers.get("location", "")
        if not (300 <= answer.status < 400 and location):
            break
        location = location.encode("latin-1", "replace").decode("utf-8", "replace")
        request = request._replace(url=join_link(request.url, location, keys))
    if answer.status == 200 and not answer.fault:
        return bytes(answer.inbox.body)
    is_too_long = len(answer.inbox.body) + 65_536 > request.limit_bytes
    if answer.status == 200 and is_too_long:
        raise LinkError(f"it is larger than {request.limit_bytes} bytes", passing=False)
    passing = answer.status >= 500 or answer.status in (200, 408, 425, 429)
    raise LinkError(f"the server answered {answer.status} {answer.fault}".strip(), passing)


def fetch(
    request: Request,
    time_s: float,
    keys: Sequence[str],
    tries: int = FETCH_TRIES,
    is_reference: bool = False,
) -> bytes:
    """The bytes behind a link, in several tries: they cost nothing. No key goes along.

    Of a reference, what will not pass by itself is not tried again.
    raises: LinkError, Interrupted
    """
    deadline = time.monotonic() + time_s
    fault = LinkError(TIME_IS_OVER)
    for number in range(tries):
        now = time.monotonic()
        if now >= deadline:
            break
        try:
            return fetch_once(
                request, now + (deadline - now) / (tries - number), keys, is_reference
            )
        except LinkError as error:
            fault = error
        if number + 1 == tries or (is_reference and not fault.passing):
            break
        wait_s = RETRY_WAITS_S[min(number, len(RETRY_WAITS_S) - 1)]
        if STOP.wait(max(0.0, min(wait_s, deadline - time.monotonic()))):
            raise Interrupted("Interrupted.")
    raise fault


def fetch_result(candidate: Candidate, target: Target, args: Args, deadline: float) -> Picture:
    """The picture behind a link of an answer.

    raises: ResponseError with the whole link, Interrupted
    """
    keys = [target.key, *known_keys()]
    url = candidate.link
    time_s = max(FETCH_TIMEOUT_S, deadline - time.monotonic())
    tries = FETCH_TRIES if candidate.rank < UNLIKELY else 1
    try:
        url = join_link(target.url, url, keys)
        log.info("fetching the picture from %s", url)
        data = fetch(Request(url, proxy=args.proxy), time_s, keys, tries)
        return read_picture(data, url)
    except LinkError as error:
        raise ResponseError(f"its link cannot be fetched: {error}", image_urls=[url]) from None
    except PictureError as error:
        fault = f"what its link leads to cannot be used: {error}"
        raise ResponseError(fault, image_urls=[url]) from None
    except Interrupted as error:
        error.billed, error.image_urls = "yes", [url]
        raise


def is_link(source: ReferenceLike) -> bool:
    return isinstance(source, str) and bool(re.match("(?i)https?://", source))


def public_link(url: str) -> str:
    """A link without user, query and fragment, which may be secrets."""
    return re.sub("//[^/@]*@", "//", re.split("[?#]", url)[0])


def fetch_reference(url: str, args: Args) -> bytes:
    """The bytes behind a reference's link; raises UsageError, UnavailableError."""
    shown = public_link(url)
    log.info("fetching the reference %s", shown)
    request = Request(url, proxy=args.proxy, limit_bytes=MAX_LINKED_REFERENCE_BYTES)
    try:
        return fetch(request, FETCH_TIMEOUT_S, known_keys(), is_reference=True)
    except LinkError as error:
        fault = f"The reference {shown} cannot be fetched: {error}."
        if error.passing:
            raise UnavailableError(fault, "Try again later.", billed="no") from None
        raise UsageError(fault, "Check the link, or save the picture and give its path.") from None


# --- Disk: the only code that writes ---


def prove_writable(output: PathLike | None, family: str | None) -> Place:
    """Make sure, before money is spent, that a picture can be stored.

    raises: UsageError for a place that cannot be written, or an extension that Pillow cannot write
    """
    given = os.path.expanduser(os.fspath(output)) if output is not None else "./"
    is_default = not os.path.basename(given) or os.path.isdir(given)
    name = f"output-{int(time.time())}.{'png' if family == 'openai' else 'jpeg'}"
    path = os.path.join(given, name) if is_default else given
    try:
        path = os.path.abspath(path)
        real = os.path.realpath(path)
        if not given.strip():
            raise ValueError("it is blank")
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.lstat(real).st_mode):
                raise ValueError("it is not a file")
            if not os.access(real, os.W_OK):
                raise ValueError("it is write-protected")
        folder = os.path.dirname(real)
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        with partial_file(folder, bytes(MIN_IMAGE_BYTES)):
            pass
    except (OSError, ValueError) as error:
        fault = f"The output {given!r} cannot be written: {reason(error)}."
        raise UsageError(fault, "Choose another place.") from error
    return Place(path, is_default, format_of(os.path.splitext(path)[1].lower().rstrip(".")))


def format_of(extension: str) -> str:
    """Pillow's name of the format that an extension promises, "" without one; raises UsageError."""
    if not extension or extension in EXTENSIONS:
        return EXTENSIONS.get(extension, "")
    from PIL import Image

    try:
        name = Image.registered_extensions()[extension]
        encode(Image.new("RGB", (16, 16)), name)  # not every registered format can be written
        return name
    except Exception:
        fault = f"The extension {extension!r} is not a picture format that can be written."
        raise UsageError(fault, "Use .jpeg, .png, .webp or none.") from None


@contextlib.contextmanager
def partial_file(folder: str, data: bytes) -> Iterator[str]:
    """The path of a new hidden file that holds the data, gone at the end unless it was renamed."""
    path = os.path.join(folder, f".image-gen-{os.urandom(8).hex()}.part")
    try:
        with open(path, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        yield path
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


def store(data: bytes, path: str, is_new: bool) -> str:
    """Write a file whole or not at all and return its path; a new one gets a number if need be."""
    real = os.path.realpath(path)
    os.makedirs(os.path.dirname(real), exist_ok=True)
    with partial_file(os.path.dirname(real), data) as part:
        if is_new:
            return claim_name(part, path)
        with contextlib.suppress(OSError):
            os.chmod(part, stat.S_IMODE(os.stat(real).st_mode))
        os.replace(part, real)
    return path


def claim_name(part: str, path: str) -> str:
    """Give a file the first free name of cup.png, cup-2.png …; no rival can have it as well."""
    for number in itertools.count(1):
        free = numbered(path, number)
        with contextlib.suppress(FileExistsError):
            try:
                os.link(part, free)
            except OSError:  # taken, or no hard links here: an empty file holds the name
                open(free, "xb").close()
                os.replace(part, free)
            return free
    raise AssertionError("numbers do not end")


def numbered(path: str, number: int) -> str:
    return path if number == 1 else f"-{number}".join(os.path.splitext(path))


def keep_elsewhere(data: bytes) -> str | None:
    """Store bytes that have no other place in the first folder that takes them."""
    import tempfile

    name = f"image-gen-kept-{int(time.time())}.{sniff_format(data)}".lower()
    for folder in (tempfile.gettempdir, lambda: os.path.expanduser("~"), os.getcwd):
        with contextlib.suppress(OSError):
            return store(data, os.path.join(folder(), name), is_new=True)
    return None


def save_one(picture: Picture, path: str, place: Place, fit: str | None) -> tuple[str, str | None]:
    """Store a picture, and beside it what the gateway sent if fitting changed it."""
    width, height = pixels_of(fit)
    final = (
        fitted(picture, width, height, place.format) if fit else in_format(picture, place.format)
    )
    path = store(final.data, path, place.is_default)
    if not fit or picture.size == final.size:
        return path, None
    beside = f"{os.path.splitext(path)[0]}-original.{picture.format.lower()}"
    return path, store(picture.data, beside, is_new=True)


def save_all(made: Generation, place: Place, fit: str | None = None) -> None:
    """Store a call's pictures, the second as -2 and so on, and note in it where they are.

    raises: SaveError when one had to be kept elsewhere, ResponseError when one is too small
    """
    kept: list[str] = []
    links: list[str] = []
    fault, small = "", None
    for number, picture in enumerate(made.pictures, 1):
        path = place.path if place.is_default else numbered(place.path, number)
        try:
            path, original = save_one(picture, path, place, fit)
            saved = read_back(path, picture)
        except (OSError, ValueError) as error:
            fault = fault or reason(error)
            kept.append(keep_elsewhere(picture.data) or picture.link or "nowhere")
            links += [picture.link] if picture.link else []
            continue
        made.paths.append(Path(path))
        made.originals.append(Path(original) if original else None)
        judged = picture if original else saved  # a simple picture of 320x320 is small
        if len(judged.data) <= MIN_IMAGE_BYTES:
            small = small or (path, len(judged.data))
        made.pictures[number - 1] = saved
    if fault:
        others = "".join(f"; saved: {path}" for path in made.paths)
        raise SaveError(
            f"The image could not be stored at {place.path}: {fault}{others}.",
            f"Move it from where it is kept: {' '.join(kept)}",
            saved_at=next(filter(os.path.exists, kept), None),
            image_urls=links,
        )
    if small:
        path, size = small
        fault = f"The image has only {size} bytes, too few to be real; it is kept at {path}."
        raise ResponseError(fault, saved_at=path)


def read_back(path: str, picture: Picture) -> Picture:
    """What lies on the disk now, which is the proof that it was stored."""
    with open(path, "rb") as file:
        data = file.read()
    return picture if data == picture.data else read_picture(data, picture.link)


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


def now_utc() -> str:
    from datetime import datetime, timezone

    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def day_limits(moment: str = "", days_back: int = 0) -> tuple[str, str]:
    """When a local day begins and ends, in UTC; today, or that of a moment in UTC."""
    from datetime import date, datetime, timedelta

    day = datetime.fromisoformat(moment).astimezone().date() if moment else date.today()
    return utc_midnight(day - timedelta(days_back)), utc_midnight(day + timedelta(1))


def utc_midnight(day: Any) -> str:
    """When a local day begins, in UTC; summer time makes some days 23 or 25 hours long."""
    from datetime import datetime, time, timezone

    return datetime.combine(day, time()).astimezone(timezone.utc).isoformat(timespec="seconds")


@contextlib.contextmanager
def open_ledger(path: str, to_write: bool = True) -> Iterator[sqlite3.Connection]:
    """The database in one transaction, which is committed at the end unless an error ends it.

    raises: LedgerError, whatever hinders it; a file that is no ledger stays as it is
    """
    try:
        import sqlite3
    except ImportError:
        raise LedgerError("this Python has no sqlite3") from None
    connection = None
    try:
        if to_write and not os.path.exists(path):
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        if not is_ledger_file(path):
            raise ValueError("it is not a database")
        uri = f"{Path(path).as_uri()}?mode=rw"  # to read, too: a killed writer leaves work behind
        connection = sqlite3.connect(uri, LEDGER_LOCK_S, isolation_level=None, uri=True)
        connection.row_factory = sqlite3.Row
        # A killed process loses nothing without it, and waiting for the disk may take 50 ms a call.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN IMMEDIATE" if to_write else "BEGIN")
        prepare_ledger(connection, to_write)
        yield connection
        connection.execute("COMMIT")
    except (sqlite3.Error, OSError, ValueError) as error:
        raise LedgerError(f"{path}: {reason(error)}") from None
    finally:
        if connection:
            connection.close()  # which rolls back what was not committed


def has_content(path: str) -> bool:
    """Whether there is anything at the ledger's place; raises LedgerError when nobody can tell."""
    try:
        facts = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise LedgerError(f"{path}: {reason(error)}") from None
    return facts.st_size > 0 or not stat.S_ISREG(facts.st_mode)


def is_ledger_file(path: str) -> bool:
    """Whether a file is empty or begins as SQLite's do; it takes a short text for an empty one."""
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(16) in (b"", b"SQLite format 3\0")


def prepare_ledger(connection: sqlite3.Connection, to_write: bool) -> None:
    """Make the table in an empty database; raises ValueError for one of another kind or version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == SCHEMA_VERSION:
        return
    (others,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if version or others:
        raise ValueError(f"it is a database of another kind, or of version {version}")
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    if to_write:
        connection.execute(f"CREATE TABLE calls ({columns})")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


SPENT = (
    "SELECT count(*) AS calls, total(pictures) AS pictures, total(cost_cny) AS cost_cny,"
    " total(possible_cost_cny) AS possible_cost_cny,"
    " total(CASE WHEN possible_cost_cny IS NULL THEN 1 END) AS unpriced,"
    " total(CASE WHEN kind = 'running' THEN possible_cost_cny END) AS open_cny"
    " FROM calls"
)


class Entry:
    """One call's row in the ledger, and its share of the day's budget."""

    def __init__(
        self, record: Mapping[str, Any], budget: float | None, keys: Sequence[str]
    ) -> None:
        self._record = dict(record)
        self._keys = keys
        self._budget = budget
        self._path = ledger_path()
        self._id: int | None = None
        self._started = now_utc()

    def reserve(self, spent: Cost, attempt: Cost, number: int) -> None:
        """Note an attempt before it is sent; `spent` is what those before it may have cost.

        raises: BudgetError when it does not fit into the day's budget, or nobody can tell
        """
        total = add_costs([spent, attempt])
        row = {"attempts": number, "cost_cny": spent.certain, "possible_cost_cny": total.possible}
        if self._budget is not None and attempt.possible is None:
            fault = f"The model has no price, and {BUDGET_VARIABLE} is set."
            raise BudgetError(fault, f"Set its price in {PRICES_VARIABLE}, or unset the budget.")
        if self._path is None:
            if self._budget is not None:
                fault = f"The budget of {BUDGET_VARIABLE} needs the ledger, which is off."
                raise BudgetError(fault, f"Unset {LEDGER_VARIABLE}, or unset the budget.")
            return
        try:
            with open_ledger(self._path) as connection:
                self._check_budget(connection, total, attempt)
                if self._id is None:
                    self._insert(connection, row)
                else:
                    self._update(connection, row)
        except LedgerError as error:
            if self._id is None:  # else the end of the call is another chance
                self._path = None
            self._complain(error)

    def close(self, **facts: Any) -> None:
        """Note what came of the call; without a row, nothing was sent."""
        if self._path is None or self._id is None:
            return
        row = {"ended": now_utc(), **facts}
        try:
            with open_ledger(self._path) as connection:
                self._update(connection, row)
        except LedgerError as error:
            warn("the outcome of the call could not be written to the ledger: %s", error)

    def _check_budget(self, connection: sqlite3.Connection, total: Cost, attempt: Cost) -> None:
        if self._budget is None:
            return
        begin, end = day_limits(self._started)
        where = " WHERE started >= ? AND started < ? AND id IS NOT ?"
        day = connection.execute(SPENT + where, (begin, end, self._id)).fetchone()
        if day["possible_cost_cny"] + (total.possible or 0) <= self._budget + 1e-9:
            return
        from datetime import datetime

        unfinished = ""
        if day["open_cny"]:
            unfinished = f", {day['open_cny']:.2f} of it by calls that are running or were killed"
        ends = datetime.fromisoformat(end).astimezone().strftime("%Y-%m-%d %H:%M")
        raise BudgetError(
            f"The budget of {self._budget:.2f} CNY a day does not allow this attempt of up to "
            f"{attempt.possible:.2f} CNY: {day['possible_cost_cny']:.2f} CNY may be spent already"
            f"{unfinished}.",
            f"The day ends at {ends}. To spend more before that, raise {BUDGET_VARIABLE}.",
        )

    def _insert(self, connection: sqlite3.Connection, row: Mapping[str, Any]) -> None:
        start = {"started": self._started, "kind": "running", "billed": "maybe", "pictures": 0}
        values = as_columns({**self._record, **start, **row}, self._keys)
        names, marks = ", ".join(values), ", ".join("?" for _ in values)
        statement = f"INSERT INTO calls ({names}) VALUES ({marks})"
        self._id = connection.execute(statement, list(values.values())).lastrowid

    def _update(self, connection: sqlite3.Connection, row: Mapping[str, Any]) -> None:
        values = as_columns(row, self._keys)
        settings = ", ".join(f"{name} = ?" for name in values)
        statement = f"UPDATE calls SET {settings} WHERE id = ?"
        connection.execute(statement, [*values.values(), self._id])

    def _complain(self, error: LedgerError) -> None:
        if self._budget is not None:
            fault = f"The ledger cannot be used, so the budget cannot be kept: {error}."
            raise BudgetError(fault, f"Repair or remove it, or unset {BUDGET_VARIABLE}.") from None
        tell = warn if read_source(LEDGER_VARIABLE) else log.info
        tell("the call is not recorded in the ledger: %s", error)


def as_columns(row: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """A row as the table has it: lists as JSON, money without stray decimals, and no key."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        if name in LIST_COLUMNS and value is not None:
            value = json.dumps(value, ensure_ascii=False)
        if isinstance(value, str):  # a path may have bytes that are no UTF-8
            value = blot(value.encode("utf-8", "backslashreplace").decode("utf-8"), keys)
        values[name] = tidy_number(value)
    return values


def tidy_number(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value


def read_costs(path: str | None) -> dict[str, Any]:
    """What was spent, by period and by model, and the last ten calls; zeros without a ledger.

    raises: LedgerError
    """
    from datetime import date

    today, tomorrow = day_limits()
    limits = {
        "today": (today, tomorrow),
        "seven_days": (day_limits(days_back=6)[0], tomorrow),
        "month": (utc_midnight(date.today().replace(day=1)), tomorrow),
        "all": ("", "~"),
    }
    if path is None or not has_content(path):
        nothing = {"calls": 0, "pictures": 0, "cost_cny": 0, "possible_cost_cny": 0, "unpriced": 0}
        periods = {name: dict(nothing) for name in limits}
        return {"ledger": None, "periods": periods, "models": [], "calls": []}
    by_model = SPENT.replace("SELECT", "SELECT model,")
    by_model += " GROUP BY model ORDER BY possible_cost_cny DESC, model"
    with open_ledger(path, to_write=False) as connection:
        periods = {
            name: connection.execute(f"{SPENT} WHERE started >= ? AND started < ?", pair).fetchone()
            for name, pair in limits.items()
        }
        models = connection.execute(by_model).fetchall()
        calls = connection.execute("SELECT * FROM calls ORDER BY id DESC LIMIT 10").fetchall()
        return {
            "ledger": path,
            "periods": {name: sums_of(row) for name, row in periods.items()},
            "models": [{"model": row["model"], **sums_of(row, "unpriced")} for row in models],
            "calls": [decoded(row) for row in calls],
        }


def sums_of(row: Any, without: str = "") -> dict[str, Any]:
    counts = {name: int(row[name]) for name in ("calls", "pictures")}
    money = {name: round(row[name], 4) for name in ("cost_cny", "possible_cost_cny")}
    rest = {"unpriced": int(row["unpriced"])}
    return {name: value for name, value in {**counts, **money, **rest}.items() if name != without}


def decoded(row: sqlite3.Row) -> dict[str, Any]:
    """A row with its lists as lists."""
    values = dict(row)
    for name in LIST_COLUMNS:
        with contextlib.suppress(TypeError, ValueError):
            values[name] = json.loads(values[name])
    return values


# --- Money ---


def add_costs(costs: Iterable[Cost]) -> Cost:
    """Their sum; unknown as soon as one of them is."""
    certain: float | None = 0.0
    possible: float | None = 0.0
    for cost in costs:
        certain = None if certain is None or cost.certain is None else certain + cost.certain
        possible = None if possible is None or cost.possible is None else possible + cost.possible
    return Cost(certain, possible)


def token_cost(price: Price, usage: Mapping[str, Any]) -> float:
    """What the tokens that a gateway reports come to, in CNY; 0 when that cannot be told."""
    counts = []
    for names in (
        ("input_tokens", "prompt_tokens", "promptTokenCount"),
        ("output_tokens", "completion_tokens", "candidatesTokenCount"),
    ):
        numbers = [usage[name] for name in names if type(usage.get(name)) in (int, float)]
        counts.append(next(filter(None, numbers), 0))
    if not price.tokens or not all(counts):
        return 0.0
    return float(sum(count * cny / 1000 for count, cny in zip(counts, price.tokens)))


class Tally:
    """What a call's attempts have cost so far."""

    def __init__(self, price: Price, n: int) -> None:
        self.billed = "no"
        self.attempts = 0
        self.failures = 0  # attempts that failed and may have been billed all the same
        self.by_tokens = False  # the tokens used come to more than the price
        self._price = price
        self._n = n
        self._has_succeeded = False
        self._costs: list[Cost] = []

    @property
    def total(self) -> Cost:
        return add_costs(self._costs)

    @property
    def attempt(self) -> Cost:
        """What an attempt may cost."""
        price = self._price.picture
        return Cost(None, None) if price is None else Cost(0.0, price * self._n)

    def fail(self, billed: str) -> None:
        self.attempts += 1
        self.failures += billed != "no"
        self._raise_billed(billed)
        if billed == "no":
            self._costs.append(Cost())
        elif billed == "yes":
            self._costs.append(Cost(self.attempt.possible, self.attempt.possible))
        else:
            self._costs.append(self.attempt)

    def succeed(self, pictures: int, usage: Mapping[str, Any]) -> None:
        self.attempts += 1
        self._has_succeeded = True
        self._raise_billed("yes")
        price = self._price.picture
        if price is None:
            self._costs.append(Cost(None, None))
        else:
            certain = price * pictures
            possible = max(certain, token_cost(self._price, usage))
            self.by_tokens = possible > certain
            self._costs.append(Cost(certain, possible))

    def settle(self, error: ImageGenError) -> None:
        """Write onto a call's last error what all of its attempts have cost."""
        error.billed = self.billed
        error.attempts = self.attempts
        error.earlier_failures = self.failures - (not self._has_succeeded)
        error.cost_cny, error.possible_cost_cny = map(tidy_number, self.total)
        if isinstance(error, Interrupted) and self.billed != "no":
            error.hint = Interrupted.hint

    def _raise_billed(self, billed: str) -> None:
        self.billed = max(self.billed, billed, key=("no", "maybe", "yes").index)


def money(amount: float) -> str:
    """0.35 -> 0.35 CNY, 0.001 -> less than 0.01 CNY"""
    return "less than 0.01 CNY" if 0 < amount < 0.005 else f"{amount:.2f} CNY"


def cost_text(cost: Cost, failures: int = 0, by_tokens: bool = False) -> str:
    """about 1.00 CNY, possibly 2.00 with the attempt that failed"""
    if cost.certain is None or cost.possible is None:
        return "price unknown"
    text = f"about {money(cost.certain)}".replace("about less", "less")
    if cost.possible <= cost.certain + 1e-9:
        return text
    reasons = ["by the tokens used"] if by_tokens else []
    if failures:
        attempts = "attempt" if failures == 1 else f"{failures} attempts"
        reasons.append(f"with the {attempts} that failed")
    return f"{text}, possibly {money(cost.possible).replace(' CNY', '')} {' and '.join(reasons)}"


def bill_text(error: ImageGenError) -> str:
    """The last line of an error that follows a call: was money spent, and how much at most?"""
    if error.billed == "no":
        return "not billed"
    cost = Cost(error.cost_cny, error.possible_cost_cny)
    if error.billed == "yes":
        failures = error.earlier_failures
        return f"billed: {cost_text(cost, failures, by_tokens=not failures)}"
    if cost.possible is None:
        return "may have been billed: price unknown"
    return f"may have been billed: up to {money(cost.possible)}"


# --- One call ---


def prepare(args: Args) -> tuple[list[Reference], Reference | None]:
    """The references and the mask as they are sent.

    Two at a time, as more would only take more memory. A link is fetched once.
    """
    if not args.reference_images:
        return [], None
    from concurrent.futures import ThreadPoolExecutor

    warnings_here = COLLECTED.get([])
    links = list(dict.fromkeys(source for source in args.reference_images if is_link(source)))
    with ThreadPoolExecutor(2, initializer=COLLECTED.set, initargs=(warnings_here,)) as pool:
        contents = pool.map(lambda link: fetch_reference(str(link), args), links)
        fetched = dict(zip(links, contents))
        sources = args.reference_images
        references = list(pool.map(lambda source: prepare_one(source, fetched), sources))
    return references, fit_mask(args.mask, references)


def prepare_one(source: ReferenceLike, fetched: Mapping[ReferenceLike, bytes]) -> Reference:
    if source not in fetched:
        return maybe_resize(source)
    try:
        return shrink(fetched[source], REFERENCE_EDGES_PX[0])
    except PictureError as error:
        fault = f"The reference {public_link(str(source))} cannot be used: {error}."
        raise UsageError(fault, error.hint or "Give a link that leads to a picture.") from None


def smaller(
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
    partial = draft = b""
    failure: ImageGenError | None = None
    for number in range(1, attempts + 1):
        try:
            entry.reserve(tally.total, tally.attempt, number)
        except BudgetError:
            if not failure:
                raise
            break
        try:
            announce(args, number, attempts)
            made = call_once(args, target, references, mask)
            tally.succeed(len(made.pictures), made.usage)
            return made
        except ImageGenError as error:
            failure = error
        except BaseException:  # a bug, or Ctrl-C in a library: the request may have been sent
            tally.fail("maybe")
            raise
        tally.fail(failure.billed)
        partial = max(partial, failure.partial, key=len)
        draft = failure.draft or draft
        if number == attempts or not failure.retryable:
            break
        wait_s = max(RETRY_WAITS_S[min(number, len(RETRY_WAITS_S)) - 1], failure.retry_after_s)
        spent = "was not billed" if failure.billed == "no" else "may have been billed"
        warn("%s That attempt %s; the next one starts in %g s.", failure.message, spent, wait_s)
        if failure.status == 524 or failure.timed_out:  # a proxy cut it off: send less
            edge_px = next(edges, REFERENCE_EDGES_PX[-1])
            with contextlib.suppress(UsageError, Interrupted):  # the mask's file is gone
                references, mask = smaller(args, references, edge_px)
        STOP.wait(wait_s)
    assert failure
    keep_remains(failure, partial, draft)
    raise failure


def announce(args: Args, number: int, attempts: int) -> None:
    """Say what is waited for; on a terminal that becomes the live line."""
    typical = find_model(args.model or "", args.family).typical
    text = f"waiting for {args.model}, typically {typical}, attempt {number} of {attempts}"
    log.info("%s", text, extra={"live": True})


def note_draft(count: int) -> None:
    log.info("draft %d has arrived", count, extra={"live": True})


def keep_remains(error: ImageGenError, partial: bytes, draft: bytes) -> None:
    """Store what arrived of a picture that is paid for, and name it in the error."""
    if draft:
        error.draft_at = keep_elsewhere(draft)
    if partial and not error.saved_at:
        error.saved_at = keep_elsewhere(partial)
    for what, path in (("last draft", error.draft_at), ("part that arrived", error.saved_at)):
        if path:
            error.hint = f"{error.hint} The {what} is kept at {path}."
    error.args = (error.message, error.hint)


def call_once(
    args: Args, target: Target, references: Sequence[Reference], mask: Reference | None
) -> Generation:
    """One attempt; raises the ImageGenError that it comes to."""
    deadline = time.monotonic() + args.timeout
    call = build_call(args, target.url, references, mask)
    answer = send(call, target, args, deadline, note_draft)
    log.info("the answer has arrived")
    inbox = answer.inbox
    tree = inbox.tree([target.key, *known_keys()])
    try:
        if inbox.is_stream and not inbox.is_finished:
            classify_response_error(args.family or "", tree)
        echoes = [reference.data for reference in references]
        pictures, usage = read_answer(
            tree, args, echoes, lambda found: fetch_result(found, target, args, deadline)
        )
    except ImageGenError as failure:
        error = explained(failure, answer, tree)
        error.hint = better_hint(error, args, target)
        raise error from None
    return Generation(pictures, usage, args.model or "", call.url[len(target.url) :])


def explained(error: ImageGenError, answer: Answer, tree: Any) -> ImageGenError:
    """The error of an answer without a picture, in the light of how the answer ended."""
    inbox = answer.inbox
    is_unfinished = bool(inbox.is_stream) and (not inbox.is_finished or inbox.drafts > 0)
    is_cut = bool(answer.fault) and not error.image_urls
    if inbox.is_stream:
        pictures = list(find_candidates(tree)) if not inbox.is_finished else []
        error.draft = read_draft(inbox, pictures)
    if isinstance(error, ResponseError) and (is_unfinished or is_cut):
        error = cut_off(error, answer, is_unfinished)
    error.status = error.status or answer.status
    return error


def cut_off(error: ImageGenError, answer: Answer, is_stream: bool) -> UnavailableError:
    """The error of an answer that ended before its picture was there."""
    fault = f"The answer broke off: {answer.fault}."
    if is_stream:
        words = f"{error.message} " if answer.inbox.has_failed else ""
        why = f": {answer.fault}" if answer.fault else ""
        fault = f"{words}The stream ended without its final picture{why}."
    drafts = [found.link for found in find_candidates(answer.inbox.draft) if found.link]
    links = list(dict.fromkeys([*error.image_urls, *drafts]))
    hint = f"Try again later. A draft may be at: {' '.join(links)}" if links else ""
    cut = UnavailableError(fault, hint, image_urls=links)
    cut.partial, cut.draft = error.partial, error.draft
    cut.timed_out = answer.fault == TIME_IS_OVER
    return cut


def record_of(args: Args, target: Target, keys: Sequence[str]) -> dict[str, Any]:
    """What the ledger notes of a call that is about to be sent, without any key."""

    def told(text: object) -> str:
        return scrub(str(text), keys)[:MAX_PROMPT_CHARS]

    references = [
        f"<{len(source)} bytes>"
        if isinstance(source, bytes)
        else told(public_link(str(source)) if is_link(source) else source)
        for source in args.reference_images
    ]
    return {
        "model": told(args.model),
        "family": args.family,
        "n": args.n,
        "prompt": told(args.prompt),
        "negative_prompt": told(args.negative_prompt) if args.negative_prompt else None,
        "reference_images": references,
        "output": told(os.fspath(args.output)) if args.output is not None else None,
        "base_url": told(target.url),
    }


def run(args: Args, target: Target, save: bool) -> Generation:
    """The whole procedure for validated arguments; a call that was sent is noted in the ledger."""
    require_packages()
    budget, price = load_budget(), price_of(args.model or "")
    place = prove_writable(args.output, args.family) if save else None
    started = time.monotonic()
    references, mask = prepare(args)
    warn_of_shape(args, references)
    tally = Tally(price, args.n)
    keys = [target.key, *known_keys()]
    entry = Entry(record_of(args, target, keys), budget, keys)
    made: Generation | None = None
    try:
        made = call_with_retries(args, target, references, mask, tally, entry)
        if place:
            save_all(made, place, args.fit)
    except BaseException as error:
        known = as_known(error)
        if tally.attempts:
            tally.settle(known)
        elapsed_s = round(time.monotonic() - started, 3)
        entry.close(**failure_record(known, made), elapsed_s=elapsed_s)
        if isinstance(known, InternalError):
            raise known from error
        raise
    made.elapsed_s = round(time.monotonic() - started, 3)
    made.attempts = tally.attempts
    made.cost_cny, made.possible_cost_cny = map(tidy_number, tally.total)
    entry.close(**success_record(made))
    report(made, args, target, tally)
    return made


def success_record(made: Generation) -> dict[str, Any]:
    return {
        "kind": None,
        "billed": "yes",
        "status": 200,
        "tokens": made.tokens,
        "elapsed_s": made.elapsed_s,
        "pictures": len(made.pictures),
        "cost_cny": made.cost_cny,
        "possible_cost_cny": made.possible_cost_cny,
        "paths": [str(path) for path in made.paths],
        "originals": [str(path) if path else None for path in made.originals],
        "image_urls": [picture.link for picture in made.pictures if picture.link],
    }


def as_known(error: BaseException) -> ImageGenError:
    """Any exception as one of the program's own; a KeyboardInterrupt goes on as itself."""
    if isinstance(error, ImageGenError):
        return error
    if not isinstance(error, Exception):
        return Interrupted("Interrupted.")
    fault = f"Internal error {type(error).__name__}: {error}."
    return InternalError(fault, "Report it with its traceback.")


def failure_record(error: ImageGenError, made: Generation | None) -> dict[str, Any]:
    """What the ledger notes of a call that failed."""
    paths = [str(path) for path in made.paths] if made else []
    if error.saved_at and error.saved_at not in paths:
        paths.append(error.saved_at)
    return {
        "kind": error.kind,
        "billed": error.billed,
        "status": error.status,
        "attempts": error.attempts,
        "tokens": made.tokens if made else None,
        "pictures": len(made.pictures) if made else 0,
        "cost_cny": error.cost_cny,
        "possible_cost_cny": error.possible_cost_cny,
        "paths": paths,
        "originals": [None for _ in paths],
        "image_urls": error.image_urls,
    }


def report(made: Generation, args: Args, target: Target, tally: Tally) -> None:
    """Say what was saved and what it cost, and warn of a shape that was not asked for."""
    tokens = f"{made.tokens} tokens" if made.tokens else "tokens unknown"
    cost = cost_text(tally.total, tally.failures, tally.by_tokens)
    call = f"{made.elapsed_s:.1f} s, {tokens}, {cost}"
    for path, picture in zip(made.paths, made.pictures):
        facts = "{}x{}, {} bytes".format(*picture.size, len(picture.data))
        log.info("saved %s: %s%s", path, facts, f", {call}" if len(made.paths) == 1 else "")
    if len(made.paths) > 1:
        log.info("%d pictures: %s", len(made.paths), call)
    source = f"URL from {target.url_source}, key from {target.key_source}"
    log.info("gateway %s (%s)", target.url, source)
    asked = args.aspect_ratio or args.size
    if args.fit or not asked or asked == "auto":
        return
    for path, picture in zip(made.paths, made.pictures):
        width, height = picture.size
        if part_cut(width / height, shape_of(asked)) > RATIO_TOLERANCE:
            warn("%s is %dx%d, not the shape %s", path, width, height, asked)


def missing_package() -> str:
    """The first of the packages that are needed and not installed, "" when all are here."""
    import importlib.util

    packages = {"requests": "requests", "PIL": "Pillow"}
    missing = (name for module, name in packages.items() if not importlib.util.find_spec(module))
    return next(missing, "")


def require_packages() -> None:
    """Raise ConfigError when a package is missing, with what to type."""
    import shlex

    missing = missing_package()
    if missing:
        setup = os.path.join(os.path.dirname(os.path.realpath(__file__)), "setup.sh")
        hint = f"Run this, and use the Python that it names: bash {shlex.quote(setup)}"
        raise ConfigError(f"The package {missing} is not installed for {sys.executable}.", hint)


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
    attempts: int = 3,
    proxy: str | None = None,
    stream: bool = False,
    api_key: str | None = None,
    base_url: str | None = None,
) -> Generation:
    """Make a picture, or n of them, and save it; returns all that is known of the call.

    prompt            what the picture shows, at most 4000 characters
    model             its name decides the family; None is the use case's, else DEFAULT_MODEL
    aspect_ratio      a key of OPENAI_SIZE_BY_RATIO, such as "16:9"
    negative_prompt   what to avoid
    reference_images  paths, http(s) links or the bytes of pictures to work from
    output_path       a file, which is replaced, or a folder; None is ./output-<time>.<extension>
    family            "openai" or "gemini", only for a model's name that cannot be placed
    use_case          a key of MODEL_BY_USE_CASE, such as "text-overlay"
    fit               exact pixels of the saved picture, such as "1080x1350"
    size              the pixels that an openai model is asked for; wins over aspect_ratio
    n                 how many pictures, 1 to 10; openai models only
    mask              path of a PNG that is transparent where the first reference may change
    params            more fields for the request, such as {"quality": "high"}
    timeout           seconds that one attempt may take
    attempts          how often an image-to-image call is sent at most, 1 to 5
    proxy             such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream            ask for drafts as the picture is made, so that no proxy hangs up
    api_key           in place of the configured key
    base_url          in place of the configured gateway
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
    attempts: int = 3,
    proxy: str | None = None,
    stream: bool = False,
    api_key: str | None = None,
    base_url: str | None = None,
) -> Path:
    """Make a picture and save it; returns its absolute path, with n > 1 that of the first.

    prompt            what the picture shows, at most 4000 characters
    model             its name decides the family; None is the use case's, else DEFAULT_MODEL
    aspect_ratio      a key of OPENAI_SIZE_BY_RATIO, such as "16:9"
    negative_prompt   what to avoid
    reference_images  paths, http(s) links or the bytes of pictures to work from
    output_path       a file, which is replaced, or a folder; None is ./output-<time>.<extension>
    family            "openai" or "gemini", only for a model's name that cannot be placed
    use_case          a key of MODEL_BY_USE_CASE, such as "text-overlay"
    fit               exact pixels of the saved picture, such as "1080x1350"
    size              the pixels that an openai model is asked for; wins over aspect_ratio
    n                 how many pictures, 1 to 10; the others are saved as -2, -3 and so on
    mask              path of a PNG that is transparent where the first reference may change
    params            more fields for the request, such as {"quality": "high"}
    timeout           seconds that one attempt may take
    attempts          how often an image-to-image call is sent at most, 1 to 5
    proxy             such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream            ask for drafts as the picture is made, so that no proxy hangs up
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
    attempts: int = 3,
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
    aspect_ratio     a key of OPENAI_SIZE_BY_RATIO, such as "16:9"; a size wins over it
    negative_prompt  what to avoid
    mask             path of a PNG that is transparent where the first reference may change
    params           more fields for the request, such as {"quality": "high"}
    timeout          seconds that one attempt may take
    attempts         how often an image-to-image call is sent at most, 1 to 5
    proxy            such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream           ask for drafts as the picture is made, so that no proxy hangs up

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
    attempts: int = 3,
    proxy: str | None = None,
    stream: bool = False,
) -> Generation:
    """Make a picture with a gemini model and save nothing: `image, usage = generate_gemini(…)`.

    prompt           what the picture shows, at most 4000 characters
    model            such as "gemini-3-pro-image-preview"
    ref_images       paths, http(s) links or the bytes of pictures to work from
    api_key          in place of the configured key
    base_url         in place of the configured gateway
    aspect_ratio     a key of OPENAI_SIZE_BY_RATIO, such as "16:9"
    negative_prompt  what to avoid
    params           more fields for the request
    timeout          seconds that one attempt may take
    attempts         how often an image-to-image call is sent at most, 1 to 5
    proxy            such as "http://127.0.0.1:7890"; the environment's proxies are ignored
    stream           ask for drafts as the picture is made, so that no proxy hangs up

    raises: ImageGenError, a subclass for each kind of failure
    """
    return perform({**locals(), "family": "gemini"}, save=False)


def perform(given: dict[str, Any], save: bool) -> Generation:
    """A library's call: read its arguments, run, and collect the warnings."""
    api_key, base_url = given.pop("api_key"), given.pop("base_url")
    fields = {"output_path": "output", "ref_images": "reference_images"}
    spelling = {field: name for name, field in fields.items() if name in given}
    prompt = given.pop("prompt")
    chosen = {fields.get(name, name): value for name, value in given.items() if value is not None}
    collected: list[str] = []
    token = COLLECTED.set(collected)
    try:
        target = load_target(api_key, base_url)
        args = validate_args(Args(prompt, **chosen, spelling=spelling))
        made = run(args, target, save)
    finally:
        COLLECTED.reset(token)
    made.warnings = collected
    return made


# --- Command line: the only code that prints ---

FLAGS = {field: f"--{field.replace('_', '-')}" for field in Args._fields if field != "spelling"}
FLAGS.update(reference_images="--reference-image", params="--param")


def nearest_flag(typed: str, flags: Sequence[str]) -> str:
    """The flag that was meant: --ref or --image -> --reference-image, --promt -> --prompt."""
    word = typed.strip("-")
    by_name = {flag.strip("-"): flag for flag in flags}
    for name, flag in by_name.items():
        if name.startswith(word) or word in name.split("-"):
            return flag
    return by_name.get(nearest(word, list(by_name)), "")


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        hint = "See --help."
        clash = re.fullmatch(r"argument (\S+): not allowed with argument (\S+)", message)
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if clash:
            message = f"{clash[1]} cannot be used together with {clash[2]}"
        elif unknown:
            near = nearest_flag(unknown[1], list(self._option_string_actions))
            hint = f"Did you mean {near}? {hint}" if near else hint
        raise UsageError(f"{message[:1].upper()}{message[1:]}.", hint)


def numeral(text: str) -> Any:
    """A number, or the text itself, for validation to name."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def read_prompt(path: str) -> str:
    try:
        source = 0 if path == "-" else os.path.expanduser(path)
        with open(source, encoding="utf-8-sig", newline="") as file:
            return file.read(2 * MAX_PROMPT_CHARS).rstrip("\r\n")
    except (OSError, ValueError) as error:
        fault = f"The prompt file {path!r} cannot be read: {reason(error)}."
        raise UsageError(fault, "Give the path of a UTF-8 text file.") from None


def read_param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"The parameter {text!r} is not KEY=VALUE.", "Write --param quality=high.")
    try:
        return name, json.loads(
            value, parse_constant=str
        )  # NaN, Python's own idea of JSON, is text
    except (ValueError, RecursionError):
        return name, value


def build_parser() -> Parser:
    rows = [(0, "saved", "yes", "the image is on disk"), *EXIT_CODES]
    codes = "\n".join(
        f"  {code:>3}  {kind:<12} {billed:<6} {when}" for code, kind, billed, when in rows
    )
    parser = Parser(
        "generate.py",
        description="Turn a prompt, and optional reference pictures, into a picture file.",
        epilog=f"exit codes, kind, billed (was money spent?):\n{codes}",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=100),
    )
    add_request_flags(parser)
    add_call_flags(parser)
    add_other_flags(parser)
    return parser


# fmt: off
def add_request_flags(parser: Parser) -> None:
    """What the picture shows, and how it looks."""
    prompt = parser.add_mutually_exclusive_group().add_argument
    prompt("--prompt", metavar="TEXT",
           help=f"what the picture shows, at most {MAX_PROMPT_CHARS} characters")
    prompt("--prompt-file", metavar="PATH", dest="prompt", type=read_prompt,
           help="read the prompt from a UTF-8 file, or from standard input with -")
    flag = parser.add_argument
    flag("--model", metavar="NAME",
         help=f"its name decides the family; default: {DEFAULT_MODEL}")
    flag("--family", choices=("openai", "gemini"),
         help="only needed for a model's name that is not recognised")
    flag("--use-case", metavar="NAME",
         help=f"choose the model by what it is for: {', '.join(MODEL_BY_USE_CASE)}")
    flag("--aspect-ratio", metavar="R",
         help=f"the picture's shape: {' '.join(OPENAI_SIZE_BY_RATIO)}")
    flag("--fit", metavar="WxH",
         help="the saved picture has exactly these pixels; the original is kept beside it")
    flag("--size", metavar="WxH",
         help="openai models: the pixels to ask for; overrides --aspect-ratio; default: "
              f"from the ratio, or {DEFAULT_SIZE}")
    flag("--negative-prompt", metavar="TEXT",
         help="what to avoid; appended to the prompt")
    flag("--n", metavar="N", type=numeral, default=1,
         help="openai models: how many pictures, 1 to 10; all are saved")
    flag("--reference-image", metavar="PATH", dest="reference_images", action="append", default=[],
         help="a picture to work from, by its path or its http(s) link; repeatable")
    flag("--mask", metavar="PATH",
         help="openai models: a PNG of the first reference's size, transparent where it may change")
    flag("--param", metavar="KEY=VALUE", dest="params", action="append", default=[],
         type=read_param, help="one more field for the request, JSON or text; repeatable")


def add_call_flags(parser: Parser) -> None:
    """Where the picture goes, and how the gateway is asked."""
    flag = parser.add_argument
    flag("--output", metavar="PATH",
         help="a file, replaced if it exists, or a folder; default: ./output-<time>.png or .jpeg")
    flag("--timeout", metavar="SECONDS", type=numeral, default=TIMEOUT_S,
         help="for one attempt from start to end; default: %(default)g")
    flag("--attempts", metavar="N", type=numeral, default=3,
         help="for calls with references, 1 to 5; others are sent once; default: %(default)s")
    flag("--proxy", metavar="URL",
         help="use this proxy; the environment's proxy variables are ignored")
    flag("--stream", action="store_true",
         help="ask for drafts while the picture is made, so that no proxy hangs up")
    flag("--json", action="store_true",
         help="exactly one JSON object on standard output, success or failure")
    flag("--quiet", action="store_true",
         help="only warnings and errors on standard error")


def add_other_flags(parser: Parser) -> None:
    """What to do in place of making a picture."""
    action = parser.add_mutually_exclusive_group().add_argument
    action("--dry-run", action="store_true",
           help="check everything and show the request and its price; send nothing")
    action("--check", action="store_true",
           help="show the set-up, and ask the gateway, for free, whether it accepts the key")
    action("--list-models", action="store_true",
           help="show the known models and their prices; needs no key")
    action("--costs", action="store_true",
           help="show what was spent, from the ledger; needs no key")
    parser.add_argument("--version", action="version", version=f"generate.py {VERSION}",
                        help="print the version")
# fmt: on


def read_args(options: argparse.Namespace) -> Args:
    """The arguments that a command line amounts to, validated."""
    if options.prompt is None:
        raise UsageError("There is no prompt.", "Add --prompt or --prompt-file.")
    fields = {field: getattr(options, field) for field in Args._fields if hasattr(options, field)}
    fields["params"] = dict(options.params)
    return validate_args(Args(**fields, spelling=FLAGS))


def aligned(rows: Sequence[Sequence[object]], right_from: int = 99) -> list[str]:
    """Rows as a table, with the columns from `right_from` on aligned to the right."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
    lines = []
    for row in rows:
        cells = [
            str(cell).rjust(width) if column >= right_from else str(cell).ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def act_generate(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    target, args = load_target(), read_args(options)
    made = run(args, target, save=True)
    first = made.pictures[0]
    paths = [str(path) for path in made.paths]
    facts = {
        "path": paths[0],
        "paths": paths,
        "model": args.model,
        "family": args.family,
        "endpoint": made.endpoint,
        "format": first.format,
        "width": first.size[0],
        "height": first.size[1],
        "bytes": len(first.data),
        "elapsed_s": round(made.elapsed_s, 2),
        "attempts": made.attempts,
        "usage": made.usage,
        "total_tokens": made.tokens,
        "estimated_cost_cny": made.cost_cny,
        "possible_cost_cny": made.possible_cost_cny,
        "originals": [str(path) if path else None for path in made.originals],
        "base_url": target.url,
        "key_source": target.key_source,
        "url_source": target.url_source,
    }
    return facts, paths


def act_dry_run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    target, args = load_target(), read_args(options)
    require_packages()
    load_budget()
    prove_writable(args.output, args.family)
    references, mask = prepare(args)
    warn_of_shape(args, references)
    call = build_call(args, target.url, references, mask, repr)
    facts: dict[str, Any] = {
        "method": "POST",
        "url": call.url,
        "headers": {"Authorization": f"Bearer {mask_key(target.key)}"},
        "fields" if call.uploads else "json": call.fields,
    }
    if call.uploads:
        facts["files"] = [
            {"name": field, "filename": filename, "content": repr(content)}
            for field, filename, content in call.uploads
        ]
    attempt = Tally(price_of(args.model or ""), args.n).attempt.possible
    attempts = args.attempts if references else 1
    facts["estimated_cost_cny"] = tidy_number(attempt)
    facts["possible_cost_cny"] = None if attempt is None else tidy_number(attempt * attempts)
    return facts, [json.dumps(facts, indent=2, ensure_ascii=False)]


def act_list_models(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    head = ["model", "family", "CNY/image", "references", "per call", "typical", "sizes"]
    rows = []
    for model in CATALOGUE:
        price = f"{price_of(model.name).picture:.2f}"
        sizes = " ".join(model.sizes) or "-"
        limits = (model.max_references, model.max_n, model.typical)
        rows.append([model.name, model.family, price, *limits, sizes])
    models = [
        {**model._asdict(), "price_cny": price_of(model.name).picture, "sizes": list(model.sizes)}
        for model in CATALOGUE
    ]
    return {"models": models}, aligned([head, *rows])


def act_costs(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    try:
        costs = read_costs(ledger_path())
    except LedgerError as error:
        fault = f"The ledger cannot be read: {error}."
        raise ConfigError(
            fault, f"Move it away, or set {LEDGER_VARIABLE} to another path."
        ) from None
    titles = {"today": "today", "seven_days": "7 days", "month": "this month", "all": "all time"}

    def cells(title: str, sums: Mapping[str, Any]) -> list[str]:
        amounts = [f"{sums[name]:.2f}" for name in ("cost_cny", "possible_cost_cny")]
        return [title, str(sums["calls"]), str(sums["pictures"]), *amounts]

    head = ["", "calls", "pictures", "CNY", "CNY at most"]
    models = [cells(row["model"], row) for row in costs["models"]]
    totals = [cells(title, costs["periods"][name]) for name, title in titles.items()]
    lines = [f"ledger: {costs['ledger'] or 'none'}"]
    if costs["calls"]:
        last = [["started (UTC)", "model", "outcome", "CNY at most", "saved"]]
        last += [call_cells(call) for call in reversed(costs["calls"])]
        lines += ["", *aligned(last)]
    lines += ["", *aligned([head, *models, *totals], right_from=1)]
    unpriced = costs["periods"]["all"]["unpriced"]
    if unpriced:
        lines += ["", f"Not in these sums: {unpriced} calls whose price is unknown."]
    return costs, lines


def call_cells(call: Mapping[str, Any]) -> list[str]:
    """One of the last calls, for a person."""
    cost = call["possible_cost_cny"]
    return [
        str(call["started"])[:19].replace("T", " "),
        str(call["model"]),
        call["kind"] or "saved",
        "unknown" if cost is None else f"{cost:.2f}",
        " ".join(call["paths"] or []),
    ]


def act_check(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Ask GET /models, which is free, whether the gateway takes the key."""
    target = load_target()
    require_packages()
    import PIL
    import requests

    facts: dict[str, Any] = {
        "key": mask_key(target.key),
        "key_source": target.key_source,
        "base_url": target.url,
        "url_source": target.url_source,
        "version": VERSION,
        "python": sys.version.split()[0],
        "requests": requests.__version__,
        "pillow": PIL.__version__,
        "budget_cny": load_budget(),
        "budget_left_cny": budget_left(),
        "accepted": None,
        "models": None,
        "image_models": [],
    }
    probe = Args("none", timeout=options.timeout, proxy=options.proxy, spelling=FLAGS)
    args = validate_args(probe)
    deadline = time.monotonic() + min(args.timeout, CONNECT_TIMEOUT_S)
    try:
        answer = send(Call(f"{target.url}/models", {}), target, args, deadline)
        names = model_names(answer.inbox.tree([target.key, *known_keys()]))
        facts.update(accepted=True, models=len(names), image_models=image_models(names))
    except RejectedError as error:
        text = "cannot tell whether the key is accepted (most base URLs end in /v1): %s"
        warn(text, error.message)
    except ImageGenError as error:
        error.billed = "no"
        if error.hint == type(error).hint and not isinstance(error, Interrupted):
            error.hint = "Correct the key, the base URL or the proxy; asking again is free."
        facts["accepted"] = False if isinstance(error, AuthError) else None
        log.info("%s", "\n".join(check_lines(facts)))
        raise
    return facts, check_lines(facts)


def check_lines(facts: Mapping[str, Any]) -> list[str]:
    """What --check found, for a person."""
    words = {"True": "yes", "False": "no", "None": "unknown"}
    rows = []
    for name, fact in facts.items():
        if name == "image_models" or (name.startswith("budget") and fact is None):
            continue
        rows.append([name, words.get(str(fact), fact)])
    lines = aligned(rows)
    prices = []
    for model in facts["image_models"]:
        price = model["price_cny"]
        prices.append([model["name"], "price unknown" if price is None else f"{price:.2f} CNY"])
    return [*lines, "", "image models:", *aligned(prices)] if prices else lines


def model_names(tree: Any) -> list[str]:
    """The names in a list of models; raises the error that another answer amounts to."""
    items = tree.get("data", tree.get("models")) if isinstance(tree, dict) else None
    if not isinstance(items, list):
        classify_response_error("", tree)
    names = [
        item.get("id") or item.get("name") if isinstance(item, dict) else item for item in items
    ]
    return [str(name) for name in names]


def image_models(names: Iterable[str]) -> list[dict[str, Any]]:
    """Those that this program can place, with their prices."""
    found = []
    for name in names:
        with contextlib.suppress(UsageError):
            find_model(name)
            found.append({"name": name, "price_cny": price_of(name).picture})
    return found


def budget_left() -> float | None:
    """What the day's budget still allows, in CNY; None when there is none or nobody can tell."""
    budget, path = load_budget(), ledger_path()
    if budget is None or path is None:
        return None
    try:
        today = read_costs(path)["periods"]["today"]
    except LedgerError as error:
        warn("cannot tell what is left of the budget: %s", error)
        return None
    return max(0.0, round(budget - float(today["possible_cost_cny"]), 4))


ACTIONS = {
    "list_models": act_list_models,
    "check": act_check,
    "dry_run": act_dry_run,
    "costs": act_costs,
}


def put(stream: Any, text: str) -> None:
    """Write, with escapes for what the stream cannot hold.

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
        self._since = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.warnings.append(text)
            self.say(f"warning: {text}")
        elif not hasattr(record, "live") or not (sys.stderr and sys.stderr.isatty()):
            self.say(text)
        elif self._live:
            self._live = f"{self._live.partition(';')[0]}; {text}"
        else:
            self._live, self._since = text, time.monotonic()

    def say(self, text: str) -> None:
        """Print lines in place of the live line, if there is one."""
        self._write("".join(f"[image-gen] {line}\n" for line in text.splitlines()))
        self._live = ""

    def show(self, text: str) -> None:
        """Print a text as it is."""
        self._write(text)
        self._live = ""

    def draw_live_line(self) -> None:
        if not self._live:
            return
        elapsed_s = time.monotonic() - self._since
        spinner = "|/-"[int(elapsed_s * 10) % 3]
        line = f"[image-gen] {spinner} {elapsed_s:3.0f} s  {self._live}"
        with contextlib.suppress(OSError):  # the terminal is gone
            width = os.get_terminal_size(sys.stderr.fileno()).columns
            self._write(line[: width - 1])

    def _write(self, text: str) -> None:
        wipe = "\r\x1b[K" if self._live else ""
        put(sys.stderr, wipe + blot(text, self.keys))


class Command(threading.Thread):
    """A command line at work, on a thread of its own, which no signal reaches.

    The main thread only waits for events and notes signals. KeyboardInterrupt around a plain join()
    was tried: an interrupt may then come between any two steps, even amid the tidying up.
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
            heed_stop()  # an interrupt until here was given no grace
            self.error = Interrupted("Interrupted.")  # unless it comes to another end
            chosen = [act for name, act in ACTIONS.items() if getattr(options, name)]
            action = chosen[0] if chosen else act_generate
            self.facts, self.lines = action(options)
            self.error = None
        except SystemExit:  # --help and --version have spoken
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
    argv = list(sys.argv[1:] if argv is None else argv)
    console = Console("--quiet" in argv)
    command = Command(argv, console)
    command.start()
    while command.is_alive() and not SIGNALLED:
        console.draw_live_line()
        command.join(POLL_S)
    if SIGNALLED:
        STOP.set()
        command.join(command.grace_s)
    tell_outcome(command, console, as_json="--json" in argv)
    return command.error.exit_code if command.error else 0


def tell_outcome(command: Command, console: Console, as_json: bool) -> None:
    """Print how it ended: the error on standard error, the result on standard output."""
    error, lines = command.error, command.lines
    if error and error.hint == ONBOARDING:
        console.show(ONBOARDING + "\n")
    elif error:
        console.say(f"error: {error.message}\n{error.hint}")
        if error.attempts:
            console.say(bill_text(error))
    else:
        console.show("")  # nothing, in place of the live line
    if as_json and error:
        outcome = {"ok": False, "error": error.as_json(), "warnings": console.warnings}
        lines = [json.dumps(outcome)]
    elif as_json and command.facts:
        lines = [json.dumps({"ok": True, **command.facts, "warnings": console.warnings})]
    put(sys.stdout, blot("".join(f"{line}\n" for line in lines), console.keys))


SIGNALLED: list[bool] = []  # not empty once a signal came: noting it is all that a handler may do


def own_the_process() -> None:
    """What a script may do to its process and a library must not."""
    if os.name == "posix" and isinstance(sys.stdout, io.TextIOWrapper):
        # A path goes out in the file system's own bytes.
        encoding = sys.getfilesystemencoding()
        sys.stdout.reconfigure(encoding=encoding, errors="surrogateescape")
    warnings.simplefilter("ignore")
    use_own_environment()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: SIGNALLED.append(True))


def use_own_environment() -> None:
    """Start again with the .venv that setup.sh made, when this Python lacks the packages."""
    venv = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", ".venv")
    python = os.path.join(venv, "Scripts/python.exe" if os.name == "nt" else "bin/python")
    is_other = os.path.realpath(sys.prefix) != os.path.realpath(venv)
    if not os.path.exists(python) or not is_other or not missing_package():
        return
    if os.name == "nt":  # where exec would not wait for the new process
        import subprocess

        raise SystemExit(subprocess.call([python, *sys.argv]))
    os.execv(python, [python, *sys.argv])


if __name__ == "__main__":
    own_the_process()
    os._exit(main())  # at once: without what still unwinds, and before a late signal can spoil it
