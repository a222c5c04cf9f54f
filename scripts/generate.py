#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["requests>=2.28", "Pillow>=9.2"]
# ///
"""Turn a prompt, and optional reference pictures, into a picture file through an OpenAI-compatible image gateway.

    generate.py --prompt "a red apple on wood" --output apple.jpeg
    generate.py --prompt "on a marble table" --reference-image shoe.png --model gpt-image-2 --output shoe.png

    from generate import generate_image
    path = generate_image("a red apple on wood", aspect_ratio="16:9", output_path="apple.jpeg")

gpt-image models answer on /images/generations and /images/edits, Gemini's Nano Banana models on /chat/completions:
the model's name decides. Saved paths go to stdout, one a line, all else to stderr. Exit codes: see `--help`.
"""

from __future__ import annotations

import os
import signal
import sys

if __name__ == "__main__":  # an interrupt while the rest still loads ends as quietly as a later one
    for _signal in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_signal, lambda *_: os._exit(130))

import argparse
import base64
import contextlib
import functools
import io
import itertools
import json
import logging
import re
import stat
import threading
import time
import warnings
from collections import namedtuple

VERSION = "1.0"
DEFAULT_MODEL = "gemini-3-pro-image-preview"
DEFAULT_BASE_URL = "https://api.omnimaas.com/v1"
DEFAULT_SIZE = "1024x1024"
MAX_PROMPT_CHARS = 4000
REFERENCE_EDGES_PX = (1024, 768, 512)  # the first at the start, the next ones after a 524 or a read timeout
REFERENCE_LIMIT_BYTES = 1_048_576
REFERENCE_QUALITIES = (88, 80, 70, 55, 40)  # below the first only while the file is over the limit
SAVED_JPEG_QUALITY = 95
MIN_IMAGE_BYTES = 10_000  # the specification's self-check: a file that is not larger is a broken answer
MAX_ANSWER_BYTES = 64 * 2**20  # a picture; gpt-image-2's largest PNG, 8.3 megapixels, is about 33 MB of base64
MAX_PAGE_BYTES = 2**20  # an answer that is an error
RATIO_TOLERANCE = 0.05
TIMEOUT_S, CONNECT_TIMEOUT_S = 300.0, 30.0
RETRY_WAITS_S, MAX_RETRY_AFTER_S = (1.0, 4.0, 16.0), 60.0  # before the second attempt, the third, and every later one
FETCH_TRIES, MAX_REDIRECTS = 3, 5
MAX_DEPTH = 400  # of an answer's tree: what is deeper is not looked at
INTERRUPT_GRACE_S = 10.0  # what is under way gets to unwind, and a paid picture to reach the disk, after Ctrl-C
POLL_S = 0.1

if __name__ != "__main__":  # for type checkers and an importer's tools; it would lengthen every start of the command
    from pathlib import Path
    from typing import Any, Callable, Iterable, Iterator, Mapping, NoReturn, Sequence, Union

    PathLike = Union[str, os.PathLike[str]]

log = logging.getLogger("image-gen")
log.addHandler(logging.NullHandler())
SIGNALLED: list[bool] = []  # not empty once a signal came: to note that is all that a handler can safely do
STOP = threading.Event()  # set by an interrupt: what waits or has not been sent yet raises Interrupted

# --- Errors ---


class ImageGenError(Exception):
    """Why there is no picture: `message` says what happened, `hint` what to do next.

    kind, exit_code   one of EXIT_CODES                     status      the HTTP status, if there was one
    billed            was money spent: yes, no or maybe     image_url   where a paid picture may still be had
    retryable         may the same call succeed later       saved_at    where the bytes that did arrive were kept
    """

    kind, exit_code, billed, retryable, hint = "", 1, "maybe", False, ""
    status: int | None = None
    image_url: str | None = None
    saved_at: str | None = None
    timed_out, retry_after_s, salvage = False, 0.0, b""  # salvage: what arrived of a picture and is not on disk yet

    def __init_subclass__(cls, **facts: Any) -> None:
        for name, value in {"kind": cls.__name__.replace("Error", "").lower(), **facts}.items():
            setattr(cls, name, value)

    def __init__(self, message: str, hint: str = "", **facts: Any) -> None:
        super().__init__(message, hint)
        self.message, self.hint = message, hint or self.hint
        self.__dict__.update(facts)

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def as_json(self) -> dict[str, Any]:
        names = ("kind", "message", "hint", "status", "retryable", "billed", "image_url", "saved_at")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None or name == "status"}


# fmt: off
class InternalError(ImageGenError):
    """a bug; the traceback is on stderr"""
class UsageError(ImageGenError, exit_code=2, billed="no"):
    """bad argument, unreadable reference, unwritable destination: nothing was sent"""
class ConfigError(ImageGenError, exit_code=3, billed="no"):
    """no key, no URL, conflicting or malformed ones, or a package is missing: nothing was sent"""
class AuthError(ImageGenError, exit_code=4, billed="no", hint="Check the key and its gateway: generate.py --check."):
    """the gateway refuses the key (401, 403)"""
class QuotaError(ImageGenError, exit_code=5, billed="no", hint="Wait a minute or top up the account, then try again."):
    """rate limit or no credit left (429, 402, or the answer says so)"""
class UnavailableError(ImageGenError, exit_code=6, retryable=True, hint="Try again later; this may have been billed."):
    """connection failed, timed out, or 5xx, after the attempts allowed"""
class RefusedError(ImageGenError, exit_code=7, billed="no", hint="Reword the prompt or choose another reference."):
    """moderation refuses the prompt or a reference"""
class RejectedError(ImageGenError, exit_code=7, billed="no", hint="Correct what it names; see --list-models, --check."):
    """the gateway rejects the request (other 4xx)"""
class ResponseError(ImageGenError, exit_code=7, billed="yes", hint="Read what the gateway said before paying again."):
    """an answer without a usable image"""
class SaveError(ImageGenError, exit_code=8, billed="yes"):
    """the image could not be stored where asked; it is kept elsewhere, see the path"""
class Interrupted(ImageGenError, exit_code=130, hint="Nothing half-written is left; the call may have been billed."):
    """Ctrl-C or SIGTERM; nothing half-written is left"""
# fmt: on

EXIT_CODES = tuple((row.exit_code, row.kind, row.billed, row.__doc__) for row in ImageGenError.__subclasses__())


def reason(exc: Exception) -> str:
    return getattr(exc, "strerror", None) or str(exc) or type(exc).__name__


# --- Values ---

Model = namedtuple("Model", "name family price_cny max_references max_n typical sizes")
Args = namedtuple(  # what a caller asks for; see validate_args
    "Args", "prompt model family aspect_ratio size negative_prompt n "
    "reference_images mask params output timeout attempts proxy",
    defaults=(DEFAULT_MODEL, None, None, None, None, 1,
              (), None, {}, None, TIMEOUT_S, 3, None),
)  # fmt: skip
Target = namedtuple("Target", "key key_source url url_source")
Call = namedtuple("Call", "url body files")  # files: (field, file name, Reference)
Find = namedtuple("Find", "path data link")  # what may be a result: bytes or a link, and its place in the answer
Picture = namedtuple("Picture", "data format size link")  # encoded; Pillow's name; (width, height) in pixels; its link
Place = namedtuple("Place", "path unique format")  # where to save, and as what


class Key(str):
    """An API key that tracebacks and logs show masked."""

    def __repr__(self) -> str:
        return repr(mask_key(self))


class Reference(namedtuple("Reference", "data mime size full_size")):
    """A picture ready to be sent, its size and the size of its file in pixels; as text <image/jpeg, 123456 bytes>."""

    def __repr__(self) -> str:
        return f"<{self.mime}, {len(self.data)} bytes>"

    def data_url(self) -> str:
        return f"data:{self.mime};base64,{base64.b64encode(self.data).decode('ascii')}"


class Generation:
    """What a call made: all `images` as encoded bytes, and the gateway's `usage`; unpacks as (first image, usage)."""

    def __init__(self, pictures: Sequence[Picture], usage: dict[str, Any], endpoint: str, attempts: int) -> None:
        self.pictures, self.usage, self.endpoint, self.attempts = pictures, usage, endpoint, attempts
        self.images = [picture.data for picture in pictures]
        self.saved: list[tuple[str, Picture]] = []
        self.tokens = usage.get("total_tokens", usage.get("totalTokenCount"))
        self.elapsed_s = 0.0
        self.cost_cny: float | None = None

    def __repr__(self) -> str:
        return f"<Generation: {len(self.images)} images, usage {self.usage}>"

    def __iter__(self) -> Iterator[Any]:
        return iter((self.images[0], self.usage))


# --- Tables ---

# Prices: the specification and its ecosystem's catalogue, November 2026. Sizes: OpenAI API description, August 2026.
_GPT_SIZES = "1024x1024 1536x1024 1024x1536 auto"
_DALLE_SIZES = "1024x1024 1792x1024 1024x1792"
CATALOGUE = (
    #     name                              family   ¥/image refs  n  typical     sizes
    Model("gemini-3-pro-image-preview",     "gemini", 1.00,    9,  1, "50-70 s", ""),
    Model("gemini-3.1-flash-image-preview", "gemini", 0.20,    9,  1, "50-70 s", ""),
    Model("gemini-2.5-flash-image",         "gemini", 0.15,    9,  1, "50-70 s", ""),
    Model("gemini-2.5-flash-image-preview", "gemini", 0.15,    9,  1, "50-70 s", ""),
    Model("gpt-image-2",                    "openai", 0.35,   16, 10, "60-300 s", _GPT_SIZES + " WxH"),
    Model("gpt-image-1",                    "openai", 0.50,   16, 10, "60-300 s", _GPT_SIZES),
    Model("dall-e-3",                       "openai", 0.26,    0,  1, "60-300 s", _DALLE_SIZES),
)  # fmt: skip
# Names outside the catalogue, after an optional vendor prefix such as google/; a family's first row stands for it.
PATTERNS = (
    Model(r"(chat)?gpt-image-.+",           "openai", None,   16, 10, "60-300 s", _GPT_SIZES),
    Model(r"dall-e-.+",                     "openai", None,   16, 10, "60-300 s", _DALLE_SIZES),
    Model(r"gemini-.*image.*",              "gemini", None,    9,  1, "50-70 s", ""),
)  # fmt: skip
OPENAI_SIZE_BY_RATIO = {
    "1:1": "1024x1024", "3:2": "1536x1024", "2:3": "1024x1536", "4:3": "1536x1152", "3:4": "1152x1536",
    "16:9": "1536x864", "9:16": "864x1536", "4:5": "1024x1280", "5:4": "1280x1024", "21:9": "1568x672",
}  # fmt: skip

# A key and a URL of one row belong together; rows, and then the files, in order of precedence.
OWNERS = ("OMNIMAAS", "PRODUCT_SHOTS_IMAGEGEN", "RENDER", "CANVASFLOW_IMAGEGEN")
CONFIG_ROWS = tuple((f"{owner}_API_KEY", f"{owner}_BASE_URL") for owner in OWNERS)
KEY_FILES = ("~/.product_shots_imagegen_api_key", "~/.product_shots_render_api_key", "~/.canvasflow_imagegen_api_key")
KEY_SOURCES = (*dict(CONFIG_ROWS), *KEY_FILES)
ENDPOINTS = {"edits": "/images/edits", "openai": "/images/generations", "gemini": "/chat/completions"}
# Fields that a flag or the program itself sets, so that --param must not; streamed answers are not asked for.
RESERVED_PARAMS = r"model|prompt|messages|n|size|image(\[\])?|mask|aspect_ratio|negative_prompt|stream"

# The first bytes of the formats that are decoded, by Pillow's names. No others: EPS, for one, would run a program.
SIGNATURES = {
    "PNG": rb"\x89PNG\r\n\x1a\n", "JPEG": rb"\xff\xd8\xff", "WEBP": rb"RIFF....WEBP", "GIF": rb"GIF8[79]a",
    "BMP": rb"BM.{12}[\x0c-\x7c]\0\0\0", "TIFF": rb"II\*\0|MM\0\*", "AVIF": rb"....ftypavi[fs]",
    "HEIF": rb"....ftyp(he[iv][a-z]|mif1|msf1)",
}  # fmt: skip
SENT_FORMATS = ("PNG", "JPEG", "WEBP")
EXTENSIONS = {".png": "PNG", ".jpeg": "JPEG", ".jpg": "JPEG"}  # those that are known without a look into Pillow

# What a status, and an error body's codes and sentence, mean: the first row that fits both. A code has underscores.
# Gateways' documentation and issue threads, November 2026. Gemini's RESOURCE_EXHAUSTED speaks of quota but passes by
# itself, so it comes first; a code that stays true on a second try outranks a 5xx.
REFUSAL = (
    r"(?i)moderation(?!['\"])|(content|usage)[ _]?(polic|filter)|policy_violation|safety(?!_id)|nsfw"
    r"|prohibited_|prompt_?blocked|blocklist|inappropriate|spii|recitation|data_inspection|敏感|违规"
    r"|(?<!case.)sensitive|(input|prompt|request|image) was flagged"
)
MEANINGS = (
    # error, may pass by itself, status, codes and sentence
    (QuotaError, True, "", r"resource_exhausted|rate[ _]limit|too_many_requests|throttl"),
    (QuotaError, False, "", r"insufficient_(?!permission|scope)|overdue|free_tier_only|exceeded_current_quota|no_credit"
                            r"|(insufficient|enough|no|exhausted|any|available) (\w+ )?(balance|credits?|quota|funds)\b"
                            r"(?! were)|out of credit|credits?_(exhausted|depleted)|quota_(failed|not_enough)|arrear"
                            r"|(billing|balance|payment|budget)_|balance is (too|insuff)"
                            r"|(余额|额度)不足|额度已用尽|欠费"),
    (RefusedError, False, "", REFUSAL),
    (AuthError, False, "(?!429)", r"api_?key|(invalid|incorrect) api key|api key not valid|invalid_token"
                                  r"|no_db_connection|authentication_|_authentication|unauthori[sz]ed|unauthenticated"),
    (AuthError, False, "40[13]", ""),
    (QuotaError, False, "402", ""),
    (QuotaError, True, "429", ""),
    (RejectedError, False, "[25]..", r"invalid_(request|param|value|arg|model|size|image|type|url)|not_found|missing_"
                                     r"|unsupported|convert_request|bad_request|validation_|unknown_(model|param)"),
    (UnavailableError, True, "[15]..", ""),
    (ResponseError, False, "2..", ""),
    (RejectedError, False, "", ""),
)  # fmt: skip
# The wire's exceptions in plain words; their own text, which may quote headers, is never shown.
TIME_IS_OVER = "the time allowed is over"
WIRE_FAULTS = (
    (r"resolv|getaddrinfo|name or service|nodename", "its name cannot be resolved"),
    (r"CA certificate bundle", "the CA bundle of REQUESTS_CA_BUNDLE or SSL_CERT_FILE cannot be read"),
    (r"certificate|SSL", "TLS failed: it speaks no TLS or its certificate is not trusted"),
    (r"SOCKS", "a SOCKS proxy needs the package PySocks"),
    (r"proxy", "the proxy cannot be reached"),
    (r"timed? ?out", TIME_IS_OVER),
    (r"refused", "connection refused"),
    (r"reset|broken pipe|closed|incomplete|disconnected|remote end", "the connection broke off"),
    (r"more than \d+ bytes", "it is endless"),
)

# Keys under which an answer never has its result, and those under which it has it when nothing better is there.
AVATAR = r"(?i:avatar|favicon|emoji)"
IGNORED_KEYS = (  # words of their own, as in inputImage or input_image
    rf"{AVATAR}|(?<![A-Za-z])(?i:author|user|profile|input|request|prompt|mask|help|support|docs?|documentation|homepage"
    r"|website|terms|policy|policies|callback|webhook|citations?|annotations?)(?![a-z])"
)
DRAFT_KEYS = r"(?i)thumb|preview|draft|partial|thought|thinking|reasoning|icon|logo"
LINK_KEYS = r"(?i)ur[li]|link|href|src|path|image|file|output|result"
CANNOT = (
    r"(?is)\b(can['’]?t|cannot|can not|unable to|won['’]t|not able to|decline to)\b.{0,40}\b(generat|creat|mak|draw"
    r"|produc|help|assist|fulfil|edit|comply|process|provide|do)|抱歉|(无法|不能).{0,6}(生|创|绘|画|制|提|协|帮|处|满)"
)
NOT_SPOKEN = r'(?s)"[^"]*"|<think>(?:(?!<think>).)*?</think>'  # an echo of the prompt, and thoughts
UNFINISHED = r"(?i)queue|pending|process|submit|in_?progress|running|created|waiting|start"
BASE64 = r"[A-Za-z0-9_+/%-]{56}[A-Za-z0-9_+/%\r\n\t -]*={0,2}"
LOOSE_BASE64 = r"(?:base64,|\A)\s*([A-Za-z0-9_+/%\r\n\t -]{56,}={0,2})"  # with blanks even in its first letters
LINK = (  # in markdown, in HTML, bare, or the only word of its text
    r"(?i)(?:!?\[[^][]*\]\(\s*<?|<img\b[^<>]*?\bsrc=[\"']?|(?=https?://)|\A(?=\S+\Z))"
    r"((?:\w+:/|/|[\w.-]+[/.])[^\s\"'<>)\]`、。，；：！？）】」]+)"
)
WHOLE_LINK = r"(?i)https?://[^\s<>]+(?: (?!https?:)[^\s<>]+)*(?<![.,;:!?*])"  # with blanks, brackets, quotes in it
PICTURE_LINK = r"(?i)^(\[?!|<)|^\[[^\]]*(image|picture|photo|download|图|下载)|\.(png|jpe?g|webp|gif|avif)\b"

# Required word for word, see the specification's section Onboarding.
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


def mask_key(key: str) -> str:
    """The first 8 characters of a key and never more than half of it: sk-wPfH6K…"""
    return key[: min(8, len(key) // 2)] + "…"


def redact(value: Any, keys: Sequence[str], public: str = "") -> Any:
    """Blot every trace of the keys out of a text, or out of all texts of a JSON tree.

    Gateways echo keys whole, masked in the middle, encoded or split over two fields: any 8 characters in a row count,
    except the first 8 standing alone, which `mask_key` shows, and what stands in a public text, too: the key "test" is
    no secret beside the output test/cup.png, which has to be told.
    """
    if isinstance(value, dict):
        return {redact(name, keys, public): redact(item, keys, public) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [redact(item, keys, public) for item in value]
    if not isinstance(value, str):
        return value
    forms = []
    for key in keys:
        raw = key.encode("utf-8", "surrogateescape")
        forms += [key, raw.hex()]
        if len(key) > 7:  # then it is a secret wherever it stands
            public = public.replace(key, "")
        for shift in range(3):  # base64 depends on where the key stands, and its ends on what stands beside it
            for encode in (base64.b64encode, base64.urlsafe_b64encode):
                forms.append(encode(b"\0" * shift + raw)[4 if shift else 0 : -4].decode("ascii"))
    pieces = {form[i : i + 8 + (not i)].lower() for form in filter(None, forms) for i in range(max(1, len(form) - 7))}
    coded = r"(?i)(?:%(?:25)*|\\+(?:u00|x)|(&#x0*))([0-7][0-9a-f])(?(1);)|&#0*(\d{2,3});"  # in a URL, JSON or HTML
    plain = re.sub(coded, lambda match: chr(int(match[2], 16) if match[2] else int(match[3])), value)
    known = public.lower()
    pieces = {piece for piece in pieces if piece not in known}
    if not any(map(plain.lower().__contains__, pieces)):
        return value
    return re.sub(rf"(?is)(?:(?={'|'.join(map(re.escape, pieces))}).)+.{{,7}}", "[key]", plain)


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
    except (OSError, ValueError) as exc:
        raise ConfigError(f"The key file {source} cannot be read: {reason(exc)}.", "Mend or remove it.") from None


def first_set(sources: Iterable[str], given: str | None, argument: str) -> tuple[str, str]:
    """(value, source) of the argument that was given, else of the first source that is set; ("", "") without any."""
    found = ((value, source) for source in sources if (value := read_source(source)))
    return next(found, ("", "")) if given is None else (given, argument)


def load_api_key(given: str | None = None) -> tuple[Key, str]:
    """The API key given, else that of the variables of CONFIG_ROWS, then KEY_FILES; returns (key, source).

    raises: ConfigError when there is none (its hint is the onboarding message) or when it is malformed
    """
    key, source = first_set(KEY_SOURCES, given, "api_key")
    if not source:
        raise ConfigError("No API key is configured.", ONBOARDING)
    if source in KEY_FILES and os.name == "posix" and os.stat(os.path.expanduser(source)).st_mode & 0o077:
        log.warning("the key file %s can be read by others; type: chmod 600 %s", source, source)
    if not re.fullmatch(r"[!-~]+", key):
        raise ConfigError(f"The key from {source} is not printable ASCII without spaces.", "Copy it again, alone.")
    return Key(key), source


def load_base_url(key_source: str | None = None, given: str | None = None) -> tuple[str, str]:
    """The gateway's URL given, else that of the variables of CONFIG_ROWS, or the default one, which is enough for the
    first variable and the first file; returns (url, source).

    raises: ConfigError when there is none or when it is malformed
    """
    url, source = first_set(dict(CONFIG_ROWS).values(), given, "base_url")
    if not source:
        key_source = key_source or load_api_key()[1]
        if key_source in (KEY_SOURCES[0], KEY_FILES[0]):
            return DEFAULT_BASE_URL, "default"
        wanted = dict(CONFIG_ROWS).get(key_source, CONFIG_ROWS[1][1])
        raise ConfigError(f"The key from {key_source} has no base URL.", f"Set {wanted} to your gateway's URL.")
    url = url.rstrip("/")
    keys = [read_source(variable) for variable, _ in CONFIG_ROWS]
    shown = "" if "@" in url else f" {redact(url, keys)!r}"  # it may hold a password
    right = next((url[: -len(end)] for end in ENDPOINTS.values() if url.endswith(end)), "")
    parts = re.fullmatch(r"(?ai)(?!.*[?#@])https?://(?:\[[\da-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?(?:/[!-~]*)?", url)
    if right or not parts or int(parts[1] or 0) > 65_535:
        fault = "ends in an endpoint" if right else "is not an http or https address"
        right = right or "an address like https://gateway.example/v1, without user, query and fragment."
        raise ConfigError(f"The base URL{shown} from {source} {fault}.", f"Set it to: {right}")
    if re.match(r"(?i)http:(?!//(localhost|127(\.\d+){3}|\[::1\])(:|/|$))", url):
        log.warning("the base URL%s from %s is plain http: the key travels unencrypted", shown, source)
    return url, source


def load_target(api_key: str | None = None, base_url: str | None = None) -> Target:
    """Key and URL from the arguments, else from the configuration; refused when the key belongs to another gateway."""
    key, key_source = load_api_key(api_key)
    url, url_source = load_base_url(key_source, base_url)
    own = url_source.replace("_BASE_URL", "_API_KEY")
    if own not in (key_source, url_source):
        if read_source(own) not in ("", api_key):
            fault = f"The key from {key_source} would go to the gateway of {url_source}, whose own key is in {own}."
            raise ConfigError(fault, f"Unset {url_source}, or unset {key_source} so that {own} is used.")
        log.warning("the key from %s goes to the gateway from %s", key_source, url_source)
    return Target(key, key_source, url, url_source)


# --- Routing and validation ---


def find_model(name: str, family: str | None = None) -> Model:
    """The catalogue's row of a model, or one made for a name outside it.

    gpt-image-2 -> its row    google/gemini-9-image -> a gemini row without a price    gpt-5 -> UsageError
    """
    plain = str(name).rsplit("/", 1)[-1].lower()
    rows = [row for row in CATALOGUE if row.name == name]
    rows += [row for row in PATTERNS if re.fullmatch(row.name, plain)]
    rows += [row for row in PATTERNS if row.family == family and plain.strip()]
    if not rows:
        known = ", ".join(row.name for row in CATALOGUE)
        hint = f"Use one of {known}; for another image model of your gateway add --family openai or gemini."
        raise UsageError(f"The model {name!r} is not a known image model.", hint)
    if family not in (None, rows[0].family):
        fault = f"The family of {name!r} is {rows[0].family!r}, not {family!r}."
        raise UsageError(fault, "Let the name decide, or choose another model.")
    return rows[0]._replace(name=name)


def model_family(model: str) -> str:
    """The family of a model's name, "openai" or "gemini"; raises UsageError with the supported list."""
    return str(find_model(model).family)


def choose_size(model: Model, aspect_ratio: str | None = None, size: str | None = None) -> str:
    """The pixel size an openai model is asked for: the given one, the ratio's exact one, or the nearest shape it has.

    16:9 -> 1536x864 with gpt-image-2, 1536x1024 with gpt-image-1, 1792x1024 with dall-e-3
    raises: UsageError for a size that the model is known to refuse
    """
    sizes, ratio = model.sizes.split(), aspect_ratio or "1:1"
    if size is None:
        width, height = map(int, ratio.split(":"))
        nearest = sizes[0 if width == height else 1 if width > height else 2]
        return OPENAI_SIZE_BY_RATIO[ratio] if "WxH" in sizes else nearest
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", str(size), re.A)
    short, long = sorted(map(int, match.groups())) if match else (0, 0)
    fits = short % 16 == long % 16 == 0 and long <= min(3840, 3 * short) and 655_360 <= short * long <= 8_294_400
    if (size in sizes and size != "WxH") or (fits and "WxH" in sizes) or (match and model not in CATALOGUE):
        return size
    rule = ", WxH: multiples of 16, 1:3 to 3:1, 655,360 to 8,294,400 pixels, no edge over 3840"
    raise UsageError(f"The size is {size!r}.", f"{model.name} takes {', '.join(sizes).replace(', WxH', rule)}.")


def faults_of(args: Args, model: Model) -> Iterator[tuple[str, str]]:
    """What is wrong with arguments, as (message, hint), most basic first."""
    for what, text in (("prompt", args.prompt), ("negative prompt", args.negative_prompt or "none")):
        if not isinstance(text, str) or not text.strip() or re.search("[\ud800-\udfff]", text):
            yield f"The {what} {text!a:.40} is blank or not UTF-8.", "Say what the picture shows."
        elif len(text) > MAX_PROMPT_CHARS:
            yield f"The {what} has {len(text)} characters.", f"Use at most {MAX_PROMPT_CHARS}."
    if args.aspect_ratio not in (None, *OPENAI_SIZE_BY_RATIO):
        yield f"The aspect ratio is {args.aspect_ratio!r}.", f"Use one of {', '.join(OPENAI_SIZE_BY_RATIO)}."
    for what, value, high in (("n", args.n, 10), ("attempts", args.attempts, 5)):
        if type(value) is not int or not 1 <= value <= high:
            yield f"{what} is {value!r}.", f"Use a whole number from 1 to {high}."
    if type(args.timeout) not in (int, float) or not 0 < args.timeout <= 86_400:
        yield f"The timeout is {args.timeout!r}.", "Use a number of seconds above 0, at most 86400."
    if model.family == "openai" and args.n > model.max_n:
        yield f"n is {args.n}.", f"{model.name} makes one image a call: leave n out."
    if (count := len(args.reference_images)) > model.max_references:
        yield f"The number of reference images is {count}.", f"{model.name} takes {model.max_references or 'none'}."
    if args.mask is not None and not args.reference_images:
        yield f"The mask {os.fspath(args.mask)!r} has no reference image to go with.", "Add the reference image."
    for name in [name for name in args.params if re.fullmatch(RESERVED_PARAMS, name)]:
        yield f"The parameter {name!r} is set by the program itself.", "Use the flag of that name, if there is one."
    if re.search("[\ud800-\udfff]", str(args.params)):
        yield "A parameter is not valid text.", "Pass it as UTF-8."
    if args.proxy is not None and not re.fullmatch(r"(https?|socks5h?)://([^/@]*@)?[\w.\[\]:-]+/?", str(args.proxy)):
        yield "The proxy is not an address such as http://127.0.0.1:7890.", "Correct the proxy."


def validate_args(args: Args) -> Args:
    """Check all that can be checked without files and network, and fill in family and size.

    raises: UsageError naming the argument, its value and what would be right
    """
    model, given = find_model(args.model, args.family), args.reference_images or ()
    try:
        paths = (given,) if isinstance(given, (str, os.PathLike)) else tuple(given)
        paths = tuple(os.fsdecode(os.path.expanduser(path)) for path in paths)
    except (TypeError, ValueError):
        raise UsageError("A reference image is not a path.", "Save the picture and give its path.") from None
    args = args._replace(family=model.family, reference_images=paths, params=args.params or {})
    for message, hint in faults_of(args, model):
        raise UsageError(message, hint)
    if model not in CATALOGUE:
        log.warning("the model %s is not in the catalogue: taken for %s, its price unknown", model.name, model.family)
    if model.family == "openai":
        if args.size is not None and args.aspect_ratio is not None:
            log.warning("the size %s wins over the aspect ratio %s", args.size, args.aspect_ratio)
        return args._replace(size=choose_size(model, args.aspect_ratio, args.size))
    effects = (("n", 1, "one image is made"), ("size", None, "use the ratio"), ("mask", None, "all may change"))
    for name, default, effect in effects:
        if getattr(args, name) != default:
            log.warning("%s takes no %s, it is left out: %s", model.name, name, effect)
    return args._replace(n=1, size=None, mask=None)


def compose_prompt(prompt: str, negative_prompt: str | None, aspect_ratio: str | None, family: str) -> str:
    """The prompt that is sent: ("a cup", "text", "16:9", "gemini") -> "a cup (aspect ratio: 16:9) Avoid: text"."""
    ratio = f"(aspect ratio: {aspect_ratio})" if aspect_ratio and family == "gemini" else ""
    return " ".join(filter(None, (prompt, ratio, f"Avoid: {negative_prompt}" if negative_prompt else "")))


# --- Requests ---


def build_call(args: Args, url: str, references: Sequence[Reference], mask: Reference | None,
               show: Callable[[Reference], str] = Reference.data_url) -> Call:  # fmt: skip
    """The one request of validated arguments, with the pictures in JSON as `show` makes them."""
    prompt = compose_prompt(args.prompt, args.negative_prompt, args.aspect_ratio, str(args.family))
    if args.family == "gemini":
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        content += [{"type": "image_url", "image_url": {"url": show(image)}} for image in references]
        body = {"model": args.model, "messages": [{"role": "user", "content": content}], **args.params}
        return Call(url + ENDPOINTS["gemini"], body, ())
    body = {"model": args.model, "prompt": prompt, "n": args.n, "size": args.size, **args.params}
    if not references:
        return Call(url + ENDPOINTS["openai"], body, ())
    fields = {name: value if isinstance(value, str) else json.dumps(value) for name, value in body.items()}
    parts = [("image[]", image) for image in references] + ([("mask", mask)] if mask else [])
    # Some gateways trust the file name's extension over the Content-Type.
    files = [(field, f"image-{i}.{image.mime[6:]}", image) for i, (field, image) in enumerate(parts, 1)]
    return Call(url + ENDPOINTS["edits"], fields, files)


# --- Pictures ---


def sniff_format(data: bytes | bytearray) -> str | None:
    """Pillow's name of the format that the first bytes announce, whatever label they came with."""
    return next((name for name, signature in SIGNATURES.items() if re.match(signature, data[:64], re.S)), None)


@contextlib.contextmanager
def decoding(data: bytes) -> Iterator[Any]:
    """A Pillow image of untrusted bytes; ValueError when they are no picture, damaged, or too large to decode."""
    from PIL import Image

    if not (name := sniff_format(data)):
        raise ValueError("it is not a picture" if data else "it is empty")
    try:
        with Image.open(io.BytesIO(data), formats=[name]) as image:
            yield image
    except Exception as exc:  # Pillow's decoders raise whatever a broken file provokes
        fault = f"there is no decoder for {name}" if isinstance(exc, KeyError) else str(exc).partition(" <")[0]
        raise ValueError(fault) from None


def read_picture(data: bytes, link: str | None = None) -> Picture:
    """Prove that bytes are a whole picture by decoding them; raises ValueError."""
    with decoding(data) as image:
        name, size = image.format, image.size
        image.draft(None, (size[0] // 8, size[1] // 8))  # a JPEG is still read to its end, at a 64th of the memory
        image.load()
    return Picture(data, "JPEG" if name == "MPO" else name, size, link)


def standardise(image: Any, edge_px: int | None = None) -> Any:
    """Upright, sRGB, 8 bits a channel, no metadata, at most edge_px on the longer side; RGBA if it is transparent."""
    from PIL import Image, ImageCms, ImageOps

    mode = "RGBA" if "A" in image.getbands() or "transparency" in image.info else "RGB"
    if image.mode[0] in "IF":  # 16 or 32 bits of grey, which convert() would clip
        scale = 1 / 256 if image.mode[0] == "I" else 255 / max(1.0, image.getextrema()[1])
        image = image.convert("F").point(lambda value: value * scale).convert("L")
    elif image.mode in ("1", "P") or mode == "RGBA":
        image = image.convert(mode)
    if edge_px:  # a gap of 1.5 is twice as fast as LANCZOS alone, and 54 dB from it
        image.thumbnail((edge_px, edge_px), getattr(Image, "Resampling", Image).LANCZOS, reducing_gap=1.5)
    with contextlib.suppress(Exception):  # broken EXIF
        image = ImageOps.exif_transpose(image)
    if profile := image.info.get("icc_profile"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            image = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode=mode)
        except (ImageCms.PyCMSError, OSError):
            log.warning("a colour profile does not fit its picture and is left out: colours may be off")
    image = image.convert(mode)
    image.info = {}
    return image if mode == "RGB" or image.getextrema()[3][0] < 255 else image.convert("RGB")


def heed_stop() -> None:
    if STOP.is_set():
        raise Interrupted("Interrupted.", "Nothing was sent.", billed="no")


def encode(image: Any, name: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, name, **options)
    return stream.getvalue()


@contextlib.contextmanager
def bytes_of(path: PathLike, what: str, hint: str) -> Iterator[bytes]:
    """The bytes of a caller's file; what turns out to be wrong with them is a UsageError that names it."""
    heed_stop()
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError("it is not a file")
        with open(path, "rb") as file:
            yield file.read()
    except (OSError, ValueError) as exc:
        hint = "Check the path." if isinstance(exc, OSError) else hint
        raise UsageError(f"The {what} {str(path)!r:.300} cannot be used: {reason(exc)}.", hint) from exc


def shrink(data: bytes, max_dim: int, max_bytes: int = REFERENCE_LIMIT_BYTES) -> Reference:
    """An encoded picture within the limits: see `maybe_resize`; raises ValueError."""
    with decoding(data) as image:
        size, orientation = image.size, 1
        image.draft(None, (max_dim * 3 // 2, max_dim * 3 // 2))  # a large JPEG is read at a fraction of its size
        image.load()  # before getexif, which may hide that the picture is damaged
        with contextlib.suppress(Exception):  # a picture with broken EXIF is a good picture
            orientation = int(image.getexif().get(0x0112, 1))
        fits = max(size) <= max_dim and len(data) <= max_bytes and orientation < 2
        if fits and image.format in SENT_FORMATS and getattr(image, "n_frames", 1) == 1:
            return Reference(data, f"image/{image.format.lower()}", size, size)
        image = standardise(image, max_dim)
    lossy, first = ("JPEG", []) if image.mode == "RGB" else ("WEBP", [("PNG", 100)])
    while True:  # less and less quality, then less and less pixels
        for name, quality in first + [(lossy, quality) for quality in REFERENCE_QUALITIES]:
            data = encode(image, name, quality=quality)
            if len(data) <= max_bytes or max(image.size) == 1:
                return Reference(data, f"image/{name.lower()}", image.size, size[::-1] if orientation > 4 else size)
        image.thumbnail((max(image.size) * 3 // 4, max(image.size) * 3 // 4))


def maybe_resize(path: PathLike, max_dim: int = REFERENCE_EDGES_PX[0], max_bytes: int = 1_048_576) -> Reference:
    """Read a reference picture as the gateways take it: within the limits, upright, and PNG, JPEG or WebP.

    A file that is all this already goes out byte for byte. Any other is remade in memory: its first frame, in sRGB, as
    JPEG, or with transparency as PNG or WebP; never enlarged. 4000x3000 -> 1024x768, 800x600 -> 800x600
    raises: UsageError naming the file
    """
    with bytes_of(path, "reference image", "Convert it to PNG or JPEG.") as data:
        return shrink(data, max_dim, max_bytes)


def fit_mask(path: PathLike | None, references: Sequence[Reference]) -> Reference | None:
    """A mask at the size of the first reference, byte for byte when it fits as it is; None without a mask."""
    if path is None:
        return None
    from PIL import Image

    first = references[0]
    with bytes_of(path, "mask", "Give a PNG of that size, partly transparent.") as data, decoding(data) as image:
        if image.format != "PNG" or not ("A" in image.getbands() or "transparency" in image.info):
            raise ValueError("it is not a PNG with transparency")
        if image.size != first.full_size:
            raise ValueError("it is {}x{}, and its reference {}x{} pixels".format(*image.size, *first.full_size))
        alpha = image.convert("RGBA").getchannel("A").resize(first.size)
        if image.size != first.size or len(data) > REFERENCE_LIMIT_BYTES:
            data = encode(Image.merge("RGBA", [alpha] * 4), "PNG")
        return Reference(data, "image/png", first.size, first.full_size)


# --- Answers ---


def parse_body(body: Any) -> Any:
    """A body as a JSON tree, an event stream as a list of its events' trees and their joined text, or else as text."""
    if isinstance(body, (bytes, bytearray)):
        body = body.decode(json.detect_encoding(body), "replace")
    if not isinstance(body, str):
        return body
    body = body.strip("\ufeff\0 \t\r\n")
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(body)
    with contextlib.suppress(ValueError, RecursionError):
        if events := json.loads("[" + ",".join(re.findall(r"^(?:data:)?\s*(\{.*)", body, re.M)) + "]"):
            return [*events, "".join(text for path, text in walk(events) if path[-2:] == ("delta", "content"))]
    body = re.sub(r"\\u00([0-7][0-9a-fA-F])", lambda match: chr(int(match[1], 16)), body)  # perhaps JSON cut short
    return re.sub(r"\\[nr]", "\n", body.replace("\\/", "/"))


def walk(tree: Any, most_nodes: int = 10_000_000) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every text and number of a tree in order, with its path; JSON in a text is entered, a list of bytes base64."""
    budget = iter(range(most_nodes))

    def visit(node: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], str]]:
        if isinstance(node, str) and node[:1] in ("{", "["):
            with contextlib.suppress(ValueError, RecursionError):
                node = json.loads(node)
        if isinstance(node, list) and node and isinstance(node[0], int):
            with contextlib.suppress(ValueError, TypeError):
                node = base64.b64encode(bytes(node)).decode("ascii")
        if isinstance(node, (str, int)):
            yield path, str(node)
        elif isinstance(node, (dict, list)) and len(path) < MAX_DEPTH:
            if isinstance(node, dict) and (node.get("thought") is True or "partial_image_index" in node):
                path += ("draft",)
            for _, (step, item) in zip(budget, node.items() if isinstance(node, dict) else enumerate(node)):
                yield from visit(item, (*path, step))

    return visit(tree, ())


def texts_under(tree: Any, keys: str) -> list[str]:
    """The texts of a tree whose own key matches, blank ones left out; a text that is the whole tree has the key ""."""
    near = walk(tree, 10_000)  # what is far from the top is a picture's, if anything
    return [text for path, text in near if re.fullmatch(keys, str(("", *path)[-1]), re.I) and text.strip()]


def decode_base64(text: str) -> bytes:
    """Base64 of either alphabet, padded or not, in lines or not; b"" unless its first bytes are a picture's."""
    from binascii import a2b_base64  # unlike b64decode it makes no copy of the text
    from urllib.parse import unquote

    text = unquote(text).replace("-", "+").replace("_", "/").rstrip()
    for end in (None, -1):  # one letter less: cut off inside a group of four
        with contextlib.suppress(ValueError):
            data = a2b_base64(text[:end] + "==")
            return data if sniff_format(data) else b""
    return b""


def find_links(path: Sequence[Any], text: str) -> Iterator[str]:
    """The links in a text that may lead to the result."""
    whole = r"(\w+:)?/" if re.search(LINK_KEYS, str(path)) else "https?:"
    for match in re.finditer(LINK, text):
        likely = re.search(PICTURE_LINK, match[0]) or (match[0] == text and re.match(whole, text, re.I))
        if likely and match[1].isprintable():
            yield match[1].rstrip(".,;:!?*").replace("&amp;", "&")
    if re.search(LINK_KEYS, str(path)) and re.fullmatch(WHOLE_LINK, text):
        yield text


def find_images(tree: Any) -> Iterator[Find]:
    """All that may be the result, wherever it stands: base64 whose first bytes are a picture's, and links."""
    for path, text in walk(tree):
        if len(text) < 3 or re.search(IGNORED_KEYS, str(path)):
            continue
        for pattern in (BASE64, LOOSE_BASE64):
            if found := list(filter(None, map(decode_base64, re.findall(pattern, text)))):
                break
        yield from (Find(path, data, "") for data in found)
        if found:
            continue
        text = text.strip()
        text = text[:8000] + text[max(8000, len(text) - 8000) :]  # a link may stand behind long thoughts
        spoken = re.sub(NOT_SPOKEN, lambda match: " " * len(match[0]), text)
        for link in dict.fromkeys(find_links(path, text)):
            start = text.find(link)
            avatar = re.search(AVATAR, text[max(0, start - 30) : start] + link)  # if asked for at all, the last choice
            before = spoken if avatar else spoken[:start]
            if not re.search(CANNOT, before.lstrip()[:300]):  # a refusal comes first, before its link
                yield Find((*path, "icon") if avatar else path, b"", link)


def choose_results(finds: Sequence[Find], family: str) -> list[list[list[Find]]]:
    """How an answer can be read, likeliest first; a reading has for every picture made its alternatives, best first.

    openai: each element of a list, in PHP perhaps {"0": …}, is a picture; what stands under one top key is one reading.
    gemini: there is one picture, the last; the ones before it are drafts.
    """
    readings: dict[Any, dict[Any, list[Find]]] = {}
    for find in [find for find in finds if not re.search(DRAFT_KEYS, str(find.path))] or finds:
        path = find.path if family == "openai" else ()
        depth = max((i for i, step in enumerate(path, 1) if str(step).isdigit()), default=0)
        top = "" if not path or str(path[0]).isdigit() else path[0]
        readings.setdefault(top, {}).setdefault(path[:depth], []).insert(0, find)
    ordered = [list(groups.values()) for groups in readings.values()]
    for group in itertools.chain(*ordered):
        group.sort(key=lambda find: (not find.data, "/" not in find.link))  # a bare file name is hardly an address
    return sorted(ordered, key=lambda groups: not any(group[0].data for group in groups))


def read_answer(
    body: bytes | bytearray, args: Args, echoes: Sequence[bytes], fetch: Callable[[str, int], Picture]
) -> tuple[list[Picture], dict[str, Any]]:
    """All pictures of a successful answer, and its usage; `fetch` gets the one behind a link, given how many wait."""
    tree = parse_body(base64.b64encode(body) if sniff_format(body) else body)
    if isinstance(body, bytearray):
        body.clear()  # a large answer would stand in memory twice
    refused = refusal_in(tree)
    finds = [find for find in find_images(tree) if (find.data or not refused or args.n > 1) and find.data not in echoes]
    readings = choose_results(finds, str(args.family))
    pictures, faults, links, salvage = list[Picture](), dict[str, None](), list[str](), b""
    for group in (group for reading in readings if not pictures for group in reading):  # the first that has any
        for find in group:
            try:
                picture = read_picture(find.data) if find.data else fetch(find.link, max(1, args.n - len(pictures)))
                if picture.data not in echoes:
                    pictures.append(picture)
                    break
            except (ValueError, ResponseError, Interrupted) as exc:
                if isinstance(exc, Interrupted) and not pictures:
                    raise
                faults[one_line(getattr(exc, "message", str(exc))).rstrip(".")] = None
                links += [getattr(exc, "image_url", None) or find.link] * bool(find.link)
                salvage = find.data or salvage
    if not pictures and not faults:
        classify_response_error(str(args.family), tree)
    if not pictures:
        task = "".join(f" of the task {one_line(task)}" for task in task_ids(tree)[:1])
        fault = f"The gateway's picture{task} cannot be had: {one_line('; '.join(faults), 900)}."
        raise ResponseError(fault, salvage=salvage, image_url=next(iter(links), None))
    if len(pictures) < args.n:
        log.warning("the gateway made %d of the %s", len(pictures), " ".join([f"{args.n} images asked for", *links]))
    if faults and args.family == "gemini":
        log.warning("the last picture cannot be had, and an earlier one is taken: %s", "; ".join(faults))
    return pictures, find_usage(tree)


def find_usage(tree: Any, depth: int = 4) -> dict[str, Any]:
    """The numbers of tokens that a gateway states, at the top or near it; the last ones of a stream."""
    items: Any = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ()
    own = [tree.get("usage"), tree.get("usageMetadata")] if isinstance(tree, dict) else []
    below = (find_usage(item, depth - 1) for item in reversed(items) if depth and isinstance(item, (dict, list)))
    return next((usage for usage in itertools.chain(own, below) if usage and isinstance(usage, dict)), {})


def refusal_in(tree: Any) -> str:
    """Why a model says that it refused, "" when it does not."""
    refusals = texts_under(tree, "refusal|block_?reason|rai_?filtered_?reason")
    endings = texts_under(tree, "(native_)?(finish|stop|failure)_?reason")
    return next(iter(refusals + [text for text in endings if re.search(REFUSAL, text)]), "")


def task_ids(tree: Any) -> list[str]:
    """The ids by which a gateway names work that it has only begun."""
    unfinished = any(re.search(UNFINISHED, state) for state in texts_under(tree, "status|state"))
    return texts_under(tree, "(task|job|generation|prediction)_?id" + "|(request_?)?id" * unfinished)


def one_line(text: str, limit: int = 300) -> str:
    """Untrusted text as one short printable line; of an HTML page its title."""
    title = re.search(r"<title[^>]*>(.*?)</title>", text[:20_000], re.I | re.S)
    text = title[1] if title else re.sub(r"<[^>]*>", " ", text[:20_000])
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= limit else text[: limit - 1] + "…"


def gateway_error(status: int, body: Any, headers: Mapping[str, str] = {}) -> ImageGenError:
    """The one error that a status and a body's sentence and codes amount to: the first fitting row of MEANINGS.

    {"error": {"message": "No", "type": "bad", "code": null}} has the sentence "No" and the code "bad"
    """
    tree = parse_body(body)
    texts = texts_under(tree, "|((error|status)_?)?(message|msg)")
    texts = texts or texts_under(tree, r"detail|(error_)?description|error|title|\d+")
    places = ".".join(text for path, text in walk(tree, 1000) if "loc" in path)
    message = one_line(": ".join(filter(None, [places, *texts[:1]])))
    words = texts_under(tree, "(error_?)?code|reason") + texts_under(tree, "type|status|error")  # best ones first
    words = [word for word in words if re.fullmatch(r"(?=.*[^\W\d])[\w.:-]{1,80}", word)]
    codes = re.sub("(?<=[a-z])(?=[A-Z])", "_", " ".join(words))
    said = "".join(f" ({word})" for word in words[:1]) + (f": {message}" if message else "")
    hint = "Check the base URL (most end in /v1) and the model's name: generate.py --check." if status == 404 else ""
    for error, retryable, for_status, for_words in MEANINGS:
        if re.match(for_status, str(status)) and re.search(for_words, f"{codes} {message}", re.I):
            facts = {"status": status, "retryable": retryable, "retry_after_s": read_retry_after(headers)}
            return error(f"The gateway answered {status}{said}".rstrip(".") + ".", hint, **facts)
    raise AssertionError("the last row fits all")


def read_retry_after(headers: Mapping[str, str]) -> float:
    """The seconds that Retry-After (a number or a date) or retry-after-ms asks for, at most 60; 0 without a wish."""
    from email.utils import mktime_tz, parsedate_tz

    wish = headers.get("retry-after", "").strip()
    with contextlib.suppress(Exception):  # whatever it is, it is no reason to fail
        if date := parsedate_tz(wish):  # without a zone it is GMT
            seconds = mktime_tz((*date[:9], date[9] or 0)) - time.time()
        else:
            seconds = float(wish) if wish else float(headers["retry-after-ms"]) / 1000
        return min(max(0.0, seconds), MAX_RETRY_AFTER_S)
    return 0.0


def handle_http_error(family: str, status: int, body: Any, headers: Mapping[str, str] = {}) -> NoReturn:
    """Raise the ImageGenError of an answer whose status is no success; the body is bytes, text or a JSON tree."""
    headers = {name.lower(): value for name, value in headers.items()}
    if 300 <= status < 400:
        body = f"it redirects to {headers.get('location', 'nowhere')}, which a POST must not follow"
    raise gateway_error(status, body, headers)


def classify_response_error(family: str, body: Any) -> NoReturn:
    """Raise the ImageGenError of a successful answer without a picture; the body is bytes, text or a JSON tree."""
    tree, told = parse_body(body), list[object]()
    for path, text in walk(tree, 10_000):  # what the gateway says of itself: not the model's words, nor other attempts'
        place = ".".join(step for step in path if isinstance(step, str))
        if not path or re.match(r"(?i)(\w+\.)?error|((base_resp|output)\.)?\w+$", place):
            told.append({path[-1]: text} if path else text)
    stated = [int(text) for text in texts_under(told, "code|status") if re.fullmatch("[45][0-9][0-9]", text)]
    error = gateway_error(stated[0] if stated else 200, told)
    if not isinstance(error, ResponseError):
        raise error
    if refusal := refusal_in(tree):
        raise RefusedError(f"The model refused: {one_line(refusal)}.")
    ids = task_ids(tree)
    texts = texts_under(tree, "|content|text|((task_)?status_)?(message|msg)|detail|error")
    texts = texts or texts_under(tree, "finish_?reason|result|description")
    held = f"no image but the unfinished task {one_line(ids[0])}" if ids else "no image"
    said = f": {one_line(' '.join(texts))}" if texts else ""
    talk = " ".join(text for path, text in walk(tree, 10_000) if not re.search(IGNORED_KEYS, str(path)))
    page = re.match(r"(?i)<(!|html|head|body)", talk)
    link = None if page else re.search(r"(?i)https?://[^\s\"'<>)\]`]+", talk)  # it may be the paid picture's
    hint = "Check the base URL: most end in /v1." if page else ""
    hint = "Ask the gateway for that task's result; only answers that hold the image are read here." if ids else hint
    raise ResponseError(f"The answer holds {held}{said}".rstrip(".") + ".", hint, image_url=link[0] if link else None)


# --- Wire: the only code that opens sockets ---


@functools.lru_cache(None)
def watched(pool: Any) -> Any:
    """A class of urllib3's connection pools whose connections hand their sockets to the Exchange that makes them."""

    from http.client import HTTPResponse, parse_headers

    class Response(HTTPResponse):
        def _read_status(self) -> Any:  # http.client passes over no interim answer but 100
            while (line := super()._read_status())[1] in (102, 103):  # type: ignore[misc]
                parse_headers(self.fp)
            return line

    def connect(connection: Any) -> None:
        pool.ConnectionCls.connect(connection)
        exchange: Any = threading.current_thread()
        connection.sock.settimeout(exchange.args.timeout)  # a long upload may take more than the time for connecting
        exchange.sockets.append(connection.sock)

    connection_class = type("Connection", (pool.ConnectionCls,), {"connect": connect, "response_class": Response})
    return type(pool.__name__, (pool,), {"ConnectionCls": connection_class})


class Exchange(threading.Thread):
    """One HTTP request on a thread of its own, so that no silent, trickling or endless server outlasts its deadline."""

    status = 0  # none has arrived yet
    fault = ""  # why the answer ended early, "" when it is whole
    headers: Mapping[str, str] = {}

    def __init__(self, url: str, args: Args, deadline: float, **content: Any) -> None:
        super().__init__(daemon=True)
        self.url, self.args, self.deadline, self.content = url, args, deadline, content
        self.received, self.limit_bytes = bytearray(), MAX_ANSWER_BYTES * max(args.n, 3)  # drafts come along
        self.sockets: list[Any] = []

    def answer(self) -> Exchange:
        """Send, and come back by the deadline (of time.monotonic()) with what arrived.

        raises: UnavailableError when not even a status arrived, Interrupted
        """
        import socket
        import zlib

        connect_by = min(self.deadline, time.monotonic() + CONNECT_TIMEOUT_S)
        self.start()
        while (rest_s := (self.deadline if self.sockets else connect_by) - time.monotonic()) > 0:
            if self.sockets:  # while the gateway makes the picture, load what reads it
                from PIL import Image, JpegImagePlugin, PngImagePlugin  # noqa: F401
            self.join(min(POLL_S, rest_s))
            if STOP.is_set() or not self.is_alive():
                break
        if self.is_alive():
            self.fault = TIME_IS_OVER
            for sock in self.sockets:  # below TLS, whose own shutdown() would race with the thread that reads
                with contextlib.suppress(OSError, TypeError):
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)
            self.join(POLL_S)  # the thread hands over what it has
            if STOP.is_set():
                raise Interrupted("Interrupted.")
        host = self.url.partition("//")[2].partition("/")[0]
        if not self.sockets:
            hint = "Check the network, the base URL, the proxy and the timeout; nothing was billed."
            facts = {"billed": "no", "retryable": not re.search("TLS|SOCKS|CA bundle", self.fault)}
            raise UnavailableError(f"{host} cannot be reached: {self.fault}.", hint, **facts)
        if not self.status:
            late = self.fault == TIME_IS_OVER
            hint = "Allow more with --timeout; this may have been billed." if late else ""
            raise UnavailableError(f"{host} gave no answer: {self.fault}.", hint, timed_out=late)
        packed: bytes | bytearray = self.received
        plain = bytearray()
        # Gzip or zlib, declared or not, is unpacked up to the limit and as far as it is whole.
        with contextlib.suppress(zlib.error):
            while packed and len(plain) < self.limit_bytes:
                member = zlib.decompressobj(47)
                plain += member.decompress(packed, self.limit_bytes - len(plain))
                packed = member.unused_data
        self.received = plain or self.received
        return self

    def run(self) -> None:
        rest_s = max(0.0, self.deadline - time.monotonic()) + 2 * POLL_S  # `answer` loses patience first
        waits, method = (min(CONNECT_TIMEOUT_S + POLL_S, rest_s), rest_s), "POST" if "data" in self.content else "GET"
        try:
            with self.session() as session:
                response = session.request(method, self.url, timeout=waits, allow_redirects=False, **self.content)
                self.headers, self.status = response.headers, response.status_code
                limit_bytes = self.limit_bytes if self.status < 300 else MAX_PAGE_BYTES
                while chunk := response.raw._fp.read1(65_536):  # what is there; read() would lose it on a reset
                    self.received += chunk
                    if len(self.received) > limit_bytes:
                        raise ValueError(f"more than {limit_bytes} bytes")
                if response.raw._fp.length:  # so many bytes were announced and did not come
                    raise ValueError("closed")
        except Exception as exc:
            text = f"{type(exc).__name__} {exc}"
            meanings = (words for pattern, words in WIRE_FAULTS if re.search(pattern, text, re.I))
            self.fault = self.fault or next(meanings, type(exc).__name__)

    def session(self) -> Any:
        """A requests session that heeds no proxy variables and no .netrc, and whose connections are `watched`."""
        import requests

        session: Any = requests.Session()
        session.trust_env, session.stream, session.proxies = False, True, {"all": self.args.proxy}
        session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE") or True
        session.headers.update({"User-Agent": f"product-shots-image-gen/{VERSION}", "Accept-Encoding": "gzip"})
        adapter = session.get_adapter("https://")
        session.mount("http://", adapter)
        utils: Any = requests.utils
        proxy = self.args.proxy and utils.prepend_scheme_if_needed(self.args.proxy, "http")  # as requests spells it
        proxies = [adapter.proxy_manager_for(proxy)] if proxy else []
        for manager in (adapter.poolmanager, *proxies):
            classes = manager.pool_classes_by_scheme
            manager.pool_classes_by_scheme = {scheme: watched(pool) for scheme, pool in classes.items()}
        return session


def send(call: Call, target: Target, args: Args, deadline: float) -> Exchange:
    """Make a call; raises the ImageGenError of an answer that is no success, and of none."""

    def authorise(request: Any) -> Any:  # as an auth object, so that nothing can put another in its place
        request.headers["Authorization"] = f"Bearer {target.key}"
        return request

    heed_stop()
    content: dict[str, Any] = {"auth": authorise}
    if call.files:
        content.update(data=call.body, files=[(field, (name, r.data, r.mime)) for field, name, r in call.files])
    elif call.body:
        content.update(data=json.dumps(call.body).encode("ascii"), headers={"Content-Type": "application/json"})
    answer = Exchange(call.url, args, deadline, **content).answer()
    if not 200 <= answer.status < 300:
        handle_http_error(str(args.family), answer.status, answer.received, answer.headers)
    return answer


def join_link(base: str, link: str, key: str) -> str:
    """The whole address of a link found at another, without the key; one of under 8 letters is a word like others."""
    from urllib.parse import urljoin

    return str(redact(urljoin(base, link), [key] if len(key) > 7 else [], base))


def fetch(url: str, key: str, args: Args, rest_s: float) -> bytes:
    """The bytes behind a result's link, in several tries: they cost nothing. The key does not go along, in no part."""
    log.info("fetching the picture from %s", one_line(url))
    deadline, fault = time.monotonic() + rest_s, TIME_IS_OVER
    for tries, wait_s in zip(range(FETCH_TRIES, 0, -1), (*RETRY_WAITS_S[: FETCH_TRIES - 1], 0.0)):
        place, now = url, time.monotonic()
        if now >= deadline:
            break
        try:
            for _ in range(1 + MAX_REDIRECTS):
                answer = Exchange(place, args, now + (deadline - now) / tries).answer()
                if not 300 <= answer.status < 400:
                    break
                location = answer.headers.get("location", "").encode("latin-1", "replace").decode("utf-8", "replace")
                place = join_link(place, location, key)
            if answer.status == 200 and not answer.fault:
                return bytes(answer.received)
            fault = f"the server answered {answer.status} {answer.fault}".strip()
        except ImageGenError as exc:
            fault = exc.message
        if STOP.wait(min(wait_s, deadline - time.monotonic())):
            raise Interrupted("Interrupted.", image_url=url, billed="yes")
    raise ResponseError(f"{one_line(url)} cannot be fetched: {fault}", image_url=url)


# --- Disk: the only code that writes ---


def prove_writable(output: PathLike | None, family: str | None) -> Place:
    """Make sure, before money is spent, that a picture can be stored; returns where and as what; raises UsageError."""
    given = os.path.expanduser(os.fspath(output)) if output is not None else "./"
    unique = not os.path.basename(given) or os.path.isdir(given)
    name = f"output-{int(time.time())}.{'png' if family == 'openai' else 'jpeg'}"
    path = os.path.join(given, name) if unique else given
    extension = os.path.splitext(path)[1].lower().rstrip(".")
    form = EXTENSIONS.get(extension, "")
    try:
        path = os.path.abspath(path)
        real = folder = os.path.realpath(path)
        with contextlib.suppress(FileNotFoundError):
            if not given.strip() or not stat.S_ISREG(os.lstat(real).st_mode) or not os.access(real, os.W_OK):
                raise ValueError("it is blank, not a file, or write-protected")
        while folder == real or not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        with partial_file(folder, bytes(MIN_IMAGE_BYTES)):
            pass
    except (OSError, ValueError) as exc:
        raise UsageError(f"The output {given!r} cannot be written: {reason(exc)}.", "Choose another place.") from exc
    if extension and not form:
        from PIL import Image

        try:
            form = Image.registered_extensions()[extension]
            encode(Image.new("RGB", (16, 16)), form)  # not every format that is registered can be written
        except Exception:
            raise UsageError(f"The output's extension is {extension!r}.", "Use .jpeg, .png, .webp or none.") from None
    return Place(path, unique, form)


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


def store(data: bytes, path: str, unique: bool) -> str:
    """Write a file whole or not at all; a unique one gets a number when its name is taken. Returns its path."""
    real = os.path.realpath(path)
    os.makedirs(os.path.dirname(real), exist_ok=True)
    with partial_file(os.path.dirname(real), data) as part:
        for number in itertools.count(1) if unique else ():
            free = numbered(path, number)
            with contextlib.suppress(FileExistsError):
                try:
                    os.link(part, free)
                except OSError:  # taken, or no hard links here: an empty file holds the name until the rename
                    open(free, "xb").close()
                    os.replace(part, free)
                return free
        with contextlib.suppress(OSError):
            os.chmod(part, stat.S_IMODE(os.stat(real).st_mode))
        os.replace(part, real)
    return path


def numbered(path: str, number: int) -> str:
    return path if number == 1 else f"-{number}".join(os.path.splitext(path))


def in_format(picture: Picture, name: str) -> Picture:
    """The picture in the format that its file's name promises, untouched when it has it already."""
    if name in ("", picture.format):
        return picture
    from PIL import Image

    with decoding(picture.data) as source:
        image = standardise(source)
    options = {"quality": SAVED_JPEG_QUALITY} if name == "JPEG" else {}
    if options and image.mode == "RGBA":
        log.warning("JPEG has no transparency: the picture is laid on white")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return picture._replace(data=encode(image, name, **options), format=name, size=image.size)


def keep_elsewhere(data: bytes) -> str | None:
    """Store bytes that have no other place in the first folder that takes them; returns the path."""
    import tempfile

    name = f"image-gen-kept-{int(time.time())}.{sniff_format(data)}".lower()
    for folder in (tempfile.gettempdir, lambda: os.path.expanduser("~"), os.getcwd):
        with contextlib.suppress(OSError):
            return store(data, os.path.join(folder(), name), unique=True)
    return None


def save_all(pictures: Sequence[Picture], place: Place) -> list[tuple[str, Picture]]:
    """Store the pictures, the second as -2 and so on; returns what lies where.

    raises: SaveError when one had to be kept elsewhere, ResponseError when one is too small to be real
    """
    saved, kept, fault, link = [], [], "", None
    for number, picture in enumerate(pictures, 1):
        try:
            final = in_format(picture, place.format)
            path = place.path if place.unique else numbered(place.path, number)
            path = store(final.data, path, place.unique)
            os.stat(path)
            saved.append((path, final))
        except (OSError, ValueError) as exc:
            fault, link = reason(exc), link or picture.link
            kept.append(keep_elsewhere(picture.data) or picture.link or "nowhere")
    if fault:
        fault = f"The image could not be stored at {place.path}: {'; saved: '.join([fault, *dict(saved)])}."
        hint = f"Move it from where it is kept: {' '.join(kept)}"
        raise SaveError(fault, hint, saved_at=next(filter(os.path.exists, kept), None), image_url=link)
    for path, picture in saved:
        if (size := len(picture.data)) <= MIN_IMAGE_BYTES:
            fault = f"The image has only {size} bytes, too few to be real; it is kept at {path}."
            raise ResponseError(fault, saved_at=path)
    return saved


def append_ledger(entry: Mapping[str, Any]) -> None:
    """Add a line to the file that PRODUCT_SHOTS_IMAGEGEN_LEDGER names, in one write, whole whoever else writes."""
    ledger = os.path.expanduser(os.environ.get("PRODUCT_SHOTS_IMAGEGEN_LEDGER", "").strip())
    if not ledger:
        return
    how = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0)  # no wait for the reader of a pipe
    try:
        with open(os.open(ledger, how, 0o600), "ab") as file:
            file.write(json.dumps(entry).encode("ascii") + b"\n")
    except (OSError, ValueError) as exc:
        log.warning("the ledger that PRODUCT_SHOTS_IMAGEGEN_LEDGER names could not be written: %s", reason(exc))


# --- Library ---


def generate_image(prompt: str, model: str = DEFAULT_MODEL, aspect_ratio: str | None = None,
                   negative_prompt: str | None = None, reference_images: Sequence[PathLike] = (),
                   output_path: PathLike | None = None, **options: Any) -> Path:  # fmt: skip
    """Make a picture and save it; returns its absolute path (with n > 1 that of the first; the next are -2, -3).

    options: api_key, base_url, and the rest of `Args`: size, n, mask, params, timeout (s), attempts, proxy …
    raises: ImageGenError, a subclass for each kind of failure; TypeError for an argument that there is not
    """
    target = load_target(options.pop("api_key", None), options.pop("base_url", None))
    args = Args(prompt, model, aspect_ratio=aspect_ratio, negative_prompt=negative_prompt,
                reference_images=reference_images, output=output_path, **options)  # fmt: skip
    return Path(run(validate_args(args), target, save=True).saved[0][0])


def generate_openai(prompt: str, model: str, size: str | None = DEFAULT_SIZE, n: int = 1,
                    ref_images: Sequence[PathLike] = (), api_key: str | None = None,
                    base_url: str | None = None, **options: Any) -> Generation:  # fmt: skip
    """Make pictures with an openai model, unsaved: `image, usage = generate_openai(…)`; see `generate_image`."""
    size = None if options.get("aspect_ratio") and size == DEFAULT_SIZE else size  # a default gives way
    args = Args(prompt, model, "openai", size=size, n=n, reference_images=ref_images, output=None, **options)
    return run(validate_args(args), load_target(api_key, base_url), save=False)


def generate_gemini(prompt: str, model: str = DEFAULT_MODEL, ref_images: Sequence[PathLike] = (),
                    api_key: str | None = None, base_url: str | None = None, **options: Any) -> Generation:  # fmt: skip
    """Make a picture with a gemini model, unsaved: `image, usage = generate_gemini(…)`; see `generate_image`."""
    args = Args(prompt, model, "gemini", reference_images=ref_images, output=None, **options)
    return run(validate_args(args), load_target(api_key, base_url), save=False)


def prepare(args: Args) -> tuple[list[Reference], Reference | None]:
    """The references and the mask as they are sent; two at a time, as more would only take more memory."""
    if not args.reference_images:
        return [], None
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        references = list(pool.map(maybe_resize, args.reference_images))
    return references, fit_mask(args.mask, references)


def run(args: Args, target: Target, save: bool) -> Generation:
    """The whole procedure for validated arguments; what got as far as calling is one line in the ledger."""
    require_packages()
    place = prove_writable(args.output, args.family) if save else None
    references, mask = prepare(args)
    started, price = time.monotonic(), find_model(args.model, args.family).price_cny
    entry: dict[str, Any] = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
    entry.update(redact({"model": args.model, "n": args.n, "base_url": target.url}, [target.key]))
    entry.update(ok=False, kind="internal", billed="maybe", paths=[])
    count = args.n
    try:
        made = call_with_retries(args, target, references, mask)
        count = len(made.pictures)
        made.saved = save_all(made.pictures, place) if place else []
        entry.update(ok=True, kind=None, billed="yes", paths=[path for path, _ in made.saved])
    except ImageGenError as error:
        entry.update(kind=error.kind, billed=error.billed)
        raise
    finally:
        elapsed_s = round(time.monotonic() - started, 3)
        cost_cny = 0 if entry["billed"] == "no" else price and round(price * count, 4)
        append_ledger({**entry, "estimated_cost_cny": cost_cny, "elapsed_s": elapsed_s})
    made.elapsed_s, made.cost_cny = elapsed_s, cost_cny
    call = f"{elapsed_s:.1f} s, {made.tokens or 'unknown'} tokens" + f" for all {count}" * (count > 1)
    asked = re.fullmatch(r"(\d+)[x:](\d+)", args.aspect_ratio or args.size or "")
    for path, picture in made.saved:
        width, height = picture.size
        facts = f"{width}x{height}, {len(picture.data)} bytes, {call}, about {price or 'unknown'} CNY"
        log.info("saved %s: %s, key from %s, URL from %s", path, facts, target.key_source, target.url_source)
        if asked and abs(width * int(asked[2]) / (height * int(asked[1])) - 1) > RATIO_TOLERANCE:
            log.warning("%s is %dx%d, not the shape %s", path, width, height, asked[0])
    return made


def call_with_retries(args: Args, target: Target, references: list[Reference], mask: Reference | None) -> Generation:
    """Only image-to-image is tried again, and only after errors that may pass by themselves: a POST is not idempotent,
    and the attempt that failed may have been billed. After a 524 or a read timeout the references get smaller."""
    attempts, edges, billed, salvage = args.attempts if references else 1, iter(REFERENCE_EDGES_PX[1:]), ["no"], b""
    typical = find_model(args.model, args.family).typical
    for attempt in itertools.count(1):
        waiting = f"{args.model}, typically {typical}, attempt {attempt} of {attempts}"
        log.info("waiting for %s", waiting, extra={"waiting": waiting})
        try:
            return call_once(args, target, references, mask, attempt)
        except ImageGenError as error:
            for name in ("message", "hint", "image_url"):
                setattr(error, name, redact(getattr(error, name), [target.key], target.url))
            billed.append(error.billed)
            salvage = max(salvage, error.salvage, key=len)
            if attempt == attempts or not error.retryable:
                error.billed = max(billed, key=("no", "maybe", "yes").index)
                if isinstance(error, Interrupted) and error.billed != "no":
                    error.hint = Interrupted.hint
                if salvage and (path := keep_elsewhere(salvage)):
                    error.saved_at, error.hint = path, f"{error.hint} What arrived is kept at {path}."
                error.args = (error.message, error.hint)
                raise error from None  # the cause may quote the key
            spent = "was not billed" if error.billed == "no" else "may have been billed"
            wait_s = max(RETRY_WAITS_S[min(attempt, len(RETRY_WAITS_S)) - 1], error.retry_after_s)
            log.warning("%s That attempt %s; the next comes in %g s.", error.message, spent, wait_s)
            if error.status == 524 or error.timed_out:
                edge = next(edges, REFERENCE_EDGES_PX[-1])
                smaller = [shrink(r.data, edge)._replace(full_size=r.full_size) for r in references]
                with contextlib.suppress(UsageError, Interrupted):  # the mask's file is gone: the same is sent again
                    mask, references = fit_mask(args.mask, smaller), smaller
        STOP.wait(wait_s)
    raise AssertionError("the last attempt returns or raises")


def call_once(
    args: Args, target: Target, references: Sequence[Reference], mask: Reference | None, attempt: int
) -> Generation:
    def fetch_picture(link: str, waiting: int) -> Picture:  # one silent server must leave time for the other pictures
        url = join_link(target.url, link, target.key)
        data = fetch(url, target.key, args, (deadline - time.monotonic()) / waiting)
        try:
            return read_picture(data, url)
        except ValueError as exc:
            raise ResponseError(f"{one_line(url)} holds no picture: {exc}", image_url=url) from None

    deadline = time.monotonic() + args.timeout
    call = build_call(args, target.url, references, mask)
    answer = send(call, target, args, deadline)
    log.info("the answer has arrived")
    try:
        pictures, usage = read_answer(answer.received, args, [r.data for r in references], fetch_picture)
    except ImageGenError as error:
        error.status = error.status or answer.status
        if not answer.fault or error.image_url:
            raise
        fault, late = f"The answer broke off: {answer.fault}.", answer.fault == TIME_IS_OVER
        raise UnavailableError(fault, timed_out=late, salvage=error.salvage) from None
    try:
        usage = redact(usage, [target.key])
    except RecursionError:  # too deep to be numbers of tokens
        usage = {}
    return Generation(pictures, usage, call.url[len(target.url) :], attempt)


def missing_package() -> str:
    """The first of the packages that are needed and not installed, "" when all are here."""
    import importlib.util

    packages = {"requests": "requests", "PIL": "Pillow"}
    return next((package for module, package in packages.items() if not importlib.util.find_spec(module)), "")


def require_packages() -> None:
    if package := missing_package():
        setup = os.path.join(os.path.dirname(os.path.realpath(__file__)), "setup.sh")
        hint = f"Run: bash '{setup}', and use the Python that it names."
        raise ConfigError(f"The package {package} is not installed for {sys.executable}.", hint)


# --- Command line: the only code that prints ---


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message[:1].upper() + message[1:] + ".", "See --help.")


def numeral(text: str) -> Any:
    """A number, or the text itself, for validation to name."""
    return int(text) if re.fullmatch(r"-?\d{1,9}", text, re.A) else float(text) if "." in text else text


def read_prompt(path: str) -> str:
    try:
        with open(0 if path == "-" else os.path.expanduser(path), encoding="utf-8-sig", newline="") as file:
            return file.read(2 * MAX_PROMPT_CHARS).rstrip("\r\n")
    except (OSError, ValueError) as exc:
        fault = f"The prompt file {path!r} cannot be read: {reason(exc)}."
        raise UsageError(fault, "Give the path of a UTF-8 text.") from None


def read_param(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"The parameter {text!r} is not KEY=VALUE.", "Write it like --param quality=high.")
    try:
        return name, json.loads(value, parse_constant=str)  # NaN, which Python takes for JSON, is text
    except ValueError:
        return name, value


def build_parser() -> Parser:
    rows = [(0, "saved", "yes", "the image is on disk"), *EXIT_CODES]
    codes = "\n".join(f"  {code:>3}  {kind:<12} {billed:<6} {when}" for code, kind, billed, when in rows)
    parser = Parser("generate.py", description="Turn a prompt, and optional reference pictures, into a picture file.",
                    epilog=f"exit codes, kind, billed (was money spent?):\n{codes}", allow_abbrev=False,
                    formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=110))  # fmt: skip
    prompt, flag = parser.add_mutually_exclusive_group().add_argument, parser.add_argument
    prompt("--prompt", metavar="TEXT", help=f"what the picture shows, at most {MAX_PROMPT_CHARS} characters")
    prompt("--prompt-file", metavar="PATH", dest="prompt", type=read_prompt, help="a UTF-8 file, - for standard input")
    flag("--model", metavar="NAME", default=DEFAULT_MODEL, help="default: %(default)s; its name decides the family")
    flag("--family", choices=("openai", "gemini"), help="only for a model name that cannot be placed")
    flag("--aspect-ratio", metavar="R", help=" ".join(OPENAI_SIZE_BY_RATIO))
    flag("--size", metavar="WxH", help=f"openai; wins over --aspect-ratio; default: the ratio's, else {DEFAULT_SIZE}")
    flag("--negative-prompt", metavar="TEXT", help="what to avoid; appended to the prompt")
    flag("--n", metavar="N", type=numeral, default=1, help="openai: how many images, 1 to 10, all saved")
    flag("--reference-image", metavar="PATH", dest="reference_images", action="append", default=[],
         help="repeatable; how many depends on the model: see --list-models")  # fmt: skip
    flag("--mask", metavar="PATH", help="openai: PNG with alpha, of the first reference's pixel size")
    flag("--param", metavar="KEY=VALUE", dest="params", action="append", default=[], type=read_param,
         help="repeatable; extra request field, JSON or text")  # fmt: skip
    flag("--output", metavar="PATH", help="file or folder; default: ./output-<time>.png (openai) or .jpeg (gemini)")
    flag("--timeout", metavar="SECONDS", type=numeral, default=TIMEOUT_S, help="for one attempt; default: %(default)g")
    flag("--attempts", metavar="N", type=numeral, default=3, help="image-to-image only, 1 to 5; default: %(default)s")
    flag("--proxy", metavar="URL", help="the only way to a proxy: the environment's proxy variables are ignored")
    flag("--json", action="store_true", help="exactly one JSON object on standard output, success or failure")
    flag("--dry-run", action="store_true", help="check everything and show the request, send nothing")
    flag("--check", action="store_true", help="show key, URL and versions, ask whether the key is accepted; free")
    flag("--list-models", action="store_true", help="show the catalogue; needs no key")
    flag("--quiet", action="store_true", help="only warnings and errors on standard error")
    flag("--version", action="version", version=f"generate.py {VERSION}")
    return parser


def read_args(options: argparse.Namespace) -> Args:
    """The arguments that a command line amounts to, validated."""
    if options.prompt is None:
        raise UsageError("There is no prompt.", "Add --prompt or --prompt-file.")
    fields = {name: getattr(options, name) for name in Args._fields}
    return validate_args(Args(**{**fields, "params": dict(options.params)}))


def aligned(rows: Sequence[Sequence[object]]) -> list[str]:
    widths = [max(len(str(cell)) for cell in column) for column in zip(*rows)]
    return ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def act_generate(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    target, args = load_target(), read_args(options)
    made = run(args, target, save=True)
    path, first = made.saved[0]
    paths = [path for path, _ in made.saved]
    return {
        "path": path, "paths": paths, "model": args.model, "family": args.family, "endpoint": made.endpoint,
        "format": first.format, "width": first.size[0], "height": first.size[1], "bytes": len(first.data),
        "elapsed_s": round(made.elapsed_s, 2), "attempts": made.attempts, "usage": made.usage,
        "total_tokens": made.tokens, "estimated_cost_cny": made.cost_cny,
        "base_url": target.url, "key_source": target.key_source, "url_source": target.url_source,
    }, paths  # fmt: skip


def act_dry_run(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    target, args = load_target(), read_args(options)
    require_packages()
    prove_writable(args.output, args.family)
    call = build_call(args, target.url, *prepare(args), repr)
    facts: dict[str, Any] = {
        "method": "POST", "url": call.url, "headers": {"Authorization": f"Bearer {mask_key(target.key)}"},
        "fields" if call.files else "json": call.body,
    }  # fmt: skip
    if call.files:
        facts["files"] = [{"name": field, "filename": name, "content": repr(r)} for field, name, r in call.files]
    return facts, [json.dumps(redact(facts, [target.key]), indent=2, ensure_ascii=False)]


def act_list_models(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    head = ["model", "family", "CNY/image", "references", "per call", "typical", "sizes"]
    rows = [[*model[:2], f"{model.price_cny:.2f}", *model[3:6], model.sizes or "-"] for model in CATALOGUE]
    models = [{**model._asdict(), "sizes": model.sizes.split()} for model in CATALOGUE]
    return {"models": models}, aligned([head, *rows])


def act_check(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Ask GET /models, which is free, whether the gateway takes the key."""
    target = load_target()
    require_packages()
    import PIL
    import requests

    facts: dict[str, Any] = {
        "key": mask_key(target.key), "key_source": target.key_source, "base_url": target.url,
        "url_source": target.url_source, "version": VERSION, "python": sys.version.split()[0],
        "requests": requests.__version__, "pillow": PIL.__version__, "accepted": None, "models": None,
    }  # fmt: skip

    def table() -> list[str]:
        shown = {"True": "yes", "False": "no", "None": "unknown"}
        return aligned([[name, shown.get(str(fact), redact(str(fact), [target.key]))] for name, fact in facts.items()])

    args = validate_args(Args("none", timeout=options.timeout, proxy=options.proxy))
    call = Call(target.url + "/models", None, ())
    try:
        answer = send(call, target, args, time.monotonic() + min(args.timeout, CONNECT_TIMEOUT_S))
        tree = parse_body(answer.received)
        models = tree.get("data", tree.get("models")) if isinstance(tree, dict) else None
        if not isinstance(models, list):
            classify_response_error("", tree)
        facts.update(accepted=True, models=len(models))
    except RejectedError as error:
        told = redact(error.message, [target.key])
        log.warning("whether the key is accepted cannot be told (most base URLs end in /v1): %s", told)
    except ImageGenError as error:
        error.billed, error.hint = "no", "Correct the key, the base URL or the proxy, or ask again: asking is free."
        facts["accepted"] = False if isinstance(error, AuthError) else None
        log.info("%s", "\n".join(table()))
        raise
    return facts, table()


ACTIONS = {"list_models": act_list_models, "check": act_check, "dry_run": act_dry_run}


def put(stream: Any, text: str) -> None:
    """Write, with escapes for what the stream cannot hold; a closed or broken one is no reason to lose a picture."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            stream.write(text)
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "backslashreplace").decode())
        stream.flush()


class Console(logging.Handler):
    """Standard error: a line for each message and, on a terminal, a live line while the gateway works."""

    def __init__(self, quiet: bool) -> None:
        super().__init__(logging.WARNING if quiet else logging.INFO)
        self.keys, self.warnings = list[str](), list[str]()
        self.waiting, self.since = "", 0.0  # the text of the live line, if there is one

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            self.warnings.append(text)
            self.say(f"warning: {text}")
        elif hasattr(record, "waiting") and sys.stderr and sys.stderr.isatty():
            self.waiting, self.since = text, time.monotonic()
        else:
            self.say(text)

    def say(self, text: str) -> None:
        self.write("".join(f"[image-gen] {line}\n" for line in text.splitlines()))

    def paint(self) -> None:
        """Draw the live line anew."""
        if self.waiting:
            elapsed_s = time.monotonic() - self.since
            line = f"[image-gen] {'|/-'[int(elapsed_s * 10) % 3]} {elapsed_s:3.0f} s  {self.waiting}"
            with contextlib.suppress(OSError):  # the terminal is gone
                self.write(line[: os.get_terminal_size(sys.stderr.fileno()).columns - 1], self.waiting)

    def write(self, text: str, waiting: str = "") -> None:
        """Text in place of the live line, if there is one; it stays the live line when something is waited for."""
        put(sys.stderr, "\r\x1b[K" * bool(self.waiting) + redact(text, self.keys))
        self.waiting = waiting


class Command(threading.Thread):
    """A command line at work, on a thread of its own, which no signal reaches."""

    def __init__(self, argv: Sequence[str], console: Console) -> None:
        super().__init__(daemon=True)
        self.argv, self.console, self.grace_s = argv, console, 0.0
        self.facts: dict[str, Any] = {}
        self.lines: list[str] = []
        self.error: ImageGenError | None = Interrupted("Interrupted.", "Nothing was sent.", billed="no")

    def run(self) -> None:
        level = log.level
        try:
            for source in KEY_SOURCES:  # all keys there are, to be able to blot them out
                with contextlib.suppress(ConfigError):
                    self.console.keys.append(read_source(source))
            log.addHandler(self.console)
            log.setLevel(logging.INFO)
            options = build_parser().parse_args(self.argv)
            self.grace_s = INTERRUPT_GRACE_S
            heed_stop()  # an interrupt until here was given no grace
            self.error = Interrupted("Interrupted.")  # unless it comes to another end
            action = next((act for name, act in ACTIONS.items() if getattr(options, name)), act_generate)
            self.facts, self.lines = action(options)
            self.error = None
        except SystemExit:  # --help and --version have spoken
            self.error = None
        except ImageGenError as error:
            self.error = error
        except Exception as exc:
            import traceback

            self.console.say(traceback.format_exc())
            fault = f"Internal error {type(exc).__name__}: {exc}."
            self.error = InternalError(fault, "Report it with the lines above.")
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
        console.paint()
        command.join(POLL_S)
    if SIGNALLED:
        STOP.set()
        command.join(command.grace_s)
    facts, lines, error = command.facts, command.lines, command.error
    if error and error.hint == ONBOARDING:
        console.write(ONBOARDING + "\n")
    else:
        console.say(f"error: {error.message}\n{error.hint}" if error else "")  # even nothing wipes the live line away
    if "--json" in argv and (facts or error):
        outcome: dict[str, Any] = {"ok": False, "error": error.as_json()} if error else {"ok": True, **facts}
        public = " ".join([*facts.get("paths", []), facts.get("base_url", "")])
        lines = [json.dumps(redact({**outcome, "warnings": console.warnings}, console.keys, public))]
    put(sys.stdout, "".join(f"{line}\n" for line in lines))
    return error.exit_code if error else 0


def own_the_process() -> None:
    """What a script may do to its process and a library must not: stdout, warnings, another interpreter, signals."""
    if os.name == "posix" and isinstance(sys.stdout, io.TextIOWrapper):  # a path in the file system's own bytes
        sys.stdout.reconfigure(encoding=sys.getfilesystemencoding(), errors="surrogateescape")
    warnings.simplefilter("ignore")
    venv = os.path.join(os.path.dirname(os.path.realpath(__file__)), "..", ".venv")
    python = os.path.join(venv, "Scripts/python.exe" if os.name == "nt" else "bin/python")
    other = os.path.exists(python) and os.path.realpath(sys.prefix) != os.path.realpath(venv)
    if other and missing_package():
        if os.name == "nt":  # where exec would not wait for the new process
            import subprocess

            raise SystemExit(subprocess.call([python, *sys.argv]))
        os.execv(python, [python, *sys.argv])
    for caught in (signal.SIGINT, signal.SIGTERM):
        signal.signal(caught, lambda *_: SIGNALLED.append(True))


if __name__ == "__main__":
    own_the_process()
    os._exit(main())  # at once: without what still unwinds, and before a late signal can spoil it
