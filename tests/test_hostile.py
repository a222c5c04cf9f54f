"""Pictures, names and consoles that mean harm, or that nobody thought of.

The fears: a picture that fills the memory, a file that is not what it says, a device overwritten by root, a name that
is taken for a flag, and a traceback because a console knows no emoji.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import re
import resource
import shutil
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import generate
import pictures
import pytest
from conftest import MODELS, SCRIPTS, Run, both_families, table
from gateway import Gateway, Received, Reply
from PIL import Image

PICTURE = pictures.picture(120, 90, fmt="JPEG", noise=True)


def reply_with(data: bytes) -> Callable[[Received], Reply]:
    """This picture in the shape of the endpoint asked."""

    def reply(received: Received) -> Reply:
        encoded = base64.b64encode(data).decode()
        if received.path.endswith("/chat/completions"):
            content = f"![image](data:image/png;base64,{encoded})"
            return Reply(body={"choices": [{"message": {"content": content}}]})
        return Reply(body={"data": [{"b64_json": encoded}]})

    return reply


def references_in(received: Received) -> list[tuple[str, bytes]]:
    """MIME type and bytes of each reference in a request."""
    if received.path.endswith("/edits"):
        return [(str(part.content_type), part.data) for part in received.files]
    urls = [part["image_url"]["url"] for part in received.json["messages"][0]["content"] if "image_url" in part]
    return [(url[5:].partition(";")[0], base64.b64decode(url.partition(",")[2])) for url in urls]


def is_usage_error(outcome: Any, gateway: Gateway) -> dict[str, Any]:
    """Refused in plain words before anything was sent."""
    error = outcome.json["error"]
    assert (outcome.code, error["kind"], error["billed"]) == (2, "usage", "no")
    assert error["message"] and error["hint"] and "Traceback" not in outcome.err
    assert not gateway.requests
    return error


# --- Broken pictures ---

GOOD = [
    pictures.picture(300, 200, fmt="PNG"),
    pictures.picture(300, 200, fmt="JPEG"),
    pictures.picture(300, 200, fmt="WEBP"),
    pictures.frames("GIF", (300, 200)),
    pictures.picture(300, 200, fmt="TIFF"),
    pictures.picture(60, 40, fmt="BMP"),
    pictures.orientation(6, "JPEG"),
    pictures.cmyk(size=(300, 200)),
    pictures.deep("RGBA", (60, 40)),
    pictures.picture(300, 200, "P", fmt="PNG"),
]


@pytest.mark.parametrize("seed", range(100))
def test_broken_reference(run: Run, gateway: Gateway, tmp_path: Path, seed: int) -> None:
    """Bytes flipped anywhere: a usage error that names the file, or what is sent is a picture all the same."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(pictures.flipped(GOOD[seed % len(GOOD)], seed, flips=1 + seed // 4))
    gateway.answer_always(reply_with(PICTURE))
    outcome = run("--json", "--prompt", "x", "--reference-image", broken, "--output", "x.jpeg")
    if outcome.code:
        assert "broken.png" in is_usage_error(outcome, gateway)["message"]
    else:
        ((mime, data),) = references_in(gateway.calls[0])
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            assert mime == Image.MIME[image.format] and max(image.size) <= 1024 and len(data) <= 1_048_576


@pytest.mark.parametrize("seed", range(100))
def test_broken_result(run: Run, gateway: Gateway, kept: Path, seed: int) -> None:
    """Bytes flipped on the way back: a picture that decodes is saved, any other is kept as it came, for it was paid."""
    good = GOOD[seed % len(GOOD)]
    broken = pictures.flipped(good.ljust(10_001, b"\0"), 1000 + seed, flips=1 + seed // 4)
    gateway.answer(reply_with(broken))
    outcome = run("--json", "--prompt", "x", "--output", "x")
    assert "Traceback" not in outcome.err
    if outcome.code == 0:
        assert Path("x").read_bytes() == broken
        with Image.open("x") as image:
            image.load()
    else:
        error = outcome.json["error"]
        assert (outcome.code, error["kind"], error["billed"]) == (7, "response", "yes")
        assert not Path("x").exists()
        if broken[:16] == good[:16]:  # else it no longer looks like a picture at all
            assert Path(error["saved_at"]).read_bytes() == broken


# --- Bombs ---


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A good PNG with one more chunk after its header."""
    good = pictures.picture(300, 200)
    return good[:33] + chunk(kind, data) + good[33:]


def many_frames(count: int) -> bytes:
    gif = pictures.frames("GIF", (8, 8))
    start = gif.index(b"\x21\xf9")
    return gif[:start] + gif[start:-1] * (count // 2) + b";"


NOTHING = zlib.compress(bytes(200_000_000), 9)  # 200 KB that become 200 MB
BOMBS = {
    "png-of-900-megapixels": lambda: pictures.TRAPS["bomb.png"].data,
    "gif-of-4-gigapixels": lambda: pictures.TRAPS["bomb.gif"].data,
    "text-of-200-mb": lambda: with_chunk(b"zTXt", b"Comment\0\0" + NOTHING),
    "international-text-of-200-mb": lambda: with_chunk(b"iTXt", b"Comment\0\1\0\0\0" + NOTHING),
    "profile-of-200-mb": lambda: with_chunk(b"iCCP", b"icc\0\0" + NOTHING),
    "gif-of-20000-frames": lambda: many_frames(20_000),
    "webp-of-268-megapixels": lambda: b"RIFF\x26\0\0\0WEBPVP8L\x19\0\0\0\x2f\xff\xff\xff\x0f" + bytes(22),
    "tiff-of-4-gigapixels": lambda: tiff_header(65_000, 65_000),
    "bmp-of-4-gigapixels": lambda: (
        pictures.picture(8, 8, fmt="BMP")[:18]
        + struct.pack("<ii", 65_000, 65_000)
        + pictures.picture(8, 8, fmt="BMP")[26:]
    ),
    "jpeg-of-4-gigapixels": lambda: jpeg_header(65_000, 65_000),
}


def tiff_header(width: int, height: int) -> bytes:
    data = bytearray(pictures.picture(8, 8, fmt="TIFF"))
    (at,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, at)
    for entry in range(at + 2, at + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", data, entry)
        if tag in (256, 257):
            struct.pack_into("<HHII", data, entry, tag, 4, 1, width if tag == 256 else height)
    return bytes(data)


def jpeg_header(width: int, height: int) -> bytes:
    data = pictures.picture(8, 8, fmt="JPEG")
    frame = data.index(b"\xff\xc0")
    return data[: frame + 5] + struct.pack(">HH", height, width) + data[frame + 9 :]


def frugal(*words: object, memory_mb: int = 1200, env: dict[str, str] | None = None) -> Any:
    """The program as a process that gets so much memory and no more: exit code, JSON and seconds."""
    limit = memory_mb * 2**20
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, SCRIPTS / "generate.py", "--json", "--prompt", "x", *map(str, words)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        env={**os.environ, "MALLOC_ARENA_MAX": "2", **(env or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr and "MemoryError" not in done.stderr
    return done.returncode, json.loads(done.stdout), time.monotonic() - began


@pytest.mark.slow
@table("make", {name: (make,) for name, make in BOMBS.items()})
def test_bomb_as_a_reference(gateway: Gateway, tmp_path: Path, make: Callable[[], bytes]) -> None:
    """A few kilobytes that unfold to gigabytes: refused before anything is sent, or defused, within modest memory."""
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(make())
    gateway.answer(reply_with(PICTURE))
    code, facts, seconds = frugal("--reference-image", bomb, "--output", "x.jpeg")
    assert seconds < 20
    if code == 0:
        ((_, data),) = references_in(gateway.calls[0])
        assert max(Image.open(io.BytesIO(data)).size) <= 1024 and len(data) <= 1_048_576
    else:
        assert (code, facts["error"]["kind"], len(gateway.requests)) == (2, "usage", 0)
        assert "bomb.png" in facts["error"]["message"]


@pytest.mark.slow
@table("make", {name: (make,) for name, make in BOMBS.items()})
def test_bomb_as_a_result(gateway: Gateway, kept: Path, make: Callable[[], bytes]) -> None:
    """The same from a gateway: saved only if it decodes, otherwise kept as it came and told."""
    bomb = make()
    gateway.answer(reply_with(bomb))
    code, facts, seconds = frugal("--output", "x")
    assert seconds < 20
    if code == 0:
        assert Path("x").read_bytes() == bomb
    else:
        assert (code, facts["error"]["kind"], facts["error"]["billed"]) == (7, "response", "yes")
        assert not Path("x").exists()
        if len(bomb) > 100:
            assert Path(facts["error"]["saved_at"]).read_bytes() == bomb


def unfolding(start: bytes, megabytes: int = 1000) -> bytes:
    """Gzip of these bytes and then a gigabyte of blanks, in a megabyte and without the work: one piece, repeated."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = compressor.compress(start) + compressor.flush(zlib.Z_FULL_FLUSH)
    piece = compressor.compress(b" " * (1 << 20)) + compressor.flush(zlib.Z_FULL_FLUSH)
    return head + piece * megabytes


@pytest.mark.slow
@pytest.mark.parametrize("status", [200, 500])
@pytest.mark.parametrize("declared", ["gzip", None])
def test_compressed_answer_that_unfolds_for_ever(gateway: Gateway, status: int, declared: str | None) -> None:
    """One megabyte that becomes a gigabyte of blanks, whether or not it says that it is compressed."""
    headers = {"Content-Encoding": declared, "Content-Type": "application/json"}
    gateway.answer(Reply(status, body=unfolding(b""), headers=headers))
    code, facts, seconds = frugal("--output", "x.jpeg")
    assert seconds < 20
    assert (code, facts["error"]["kind"]) in ((7, "response"), (6, "unavailable"))


@pytest.mark.slow
def test_compressed_answer_with_a_picture_before_the_bomb(gateway: Gateway) -> None:
    """What was paid for stands before a gigabyte of blanks."""
    answer = json.dumps({"data": [{"b64_json": base64.b64encode(PICTURE).decode()}]}).encode()
    gateway.answer(Reply(body=unfolding(answer), headers={"Content-Encoding": "gzip"}))
    code, facts, seconds = frugal("--model", "gpt-image-2", "--output", "x.jpeg")
    assert seconds < 20
    assert code == 0 and Path("x.jpeg").read_bytes() == PICTURE


@pytest.mark.slow
def test_compressed_picture_url_that_unfolds_for_ever(gateway: Gateway) -> None:
    url = f"{gateway.origin}/media/x.jpeg"
    gateway.answer(Reply(body={"data": [{"url": url}]}))
    gateway.answer_always(Reply(body=unfolding(PICTURE), headers={"Content-Encoding": "gzip"}), path="/media")
    code, facts, seconds = frugal("--model", "gpt-image-2", "--output", "x.jpeg", "--timeout", 15)
    assert seconds < 20
    assert code == 0 or (code, facts["error"]["image_url"]) == (7, url)


# --- Polyglots and false labels ---

GIF_SCRIPT = b"GIF89a/*\0\x80\0\0" + bytes(6) + b"!\xfe\x04*/=1\0,\0\0\0\0\x2f\x2a\0\0\0\x02\x02D\x01\0;//*/;alert(1)"
LABELLED = {  # name on disk: (bytes, MIME type that goes out; None: refused)
    "png called jpg.jpg": (pictures.picture(), "image/png"),
    "jpeg called png.png": (pictures.picture(fmt="JPEG"), "image/jpeg"),
    "webp called gif.gif": (pictures.picture(fmt="WEBP"), "image/webp"),
    "png called pdf.pdf": (pictures.picture(), "image/png"),
    "png without extension": (pictures.picture(), "image/png"),
    "png called sh.sh": (pictures.picture(), "image/png"),
    "png with zip behind.png": (pictures.picture() + pictures.zipped(), "image/png"),
    "png with html behind.png": (pictures.picture() + pictures.HTML.encode(), "image/png"),
    "jpeg with html inside.jpg": (pictures.picture(fmt="JPEG", comment=pictures.HTML), "image/jpeg"),
    "jpeg with php behind.jpg": (pictures.picture(fmt="JPEG") + b"<?php system($_GET[0]); ?>", "image/jpeg"),
    "png behind html.png": (pictures.HTML.encode() + pictures.picture(), None),
    "png behind pdf.png": (pictures.PDF + pictures.picture(), None),
    "png behind a blank.png": (b"\n" + pictures.picture(), None),
    "zip called png.png": (pictures.zipped(), None),
    "pdf called png.png": (pictures.PDF, None),
    "svg called png.png": (pictures.SVG.encode(), None),
    "eps called png.png": (pictures.picture(fmt="EPS"), None),
    "script called png.png": (b"#!/bin/sh\ntouch /tmp/owned\n", None),
    "png magic only.png": (b"\x89PNG\r\n\x1a\n", None),
    "jpeg magic only.jpg": (b"\xff\xd8\xff\xe0", None),
    "riff but wave.webp": (b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), None),
    "png of no size.png": (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 0, 8, 2, 0, 0, 0)), None),
}


@both_families
@table("name, data, mime", {name: (name, *row) for name, row in LABELLED.items()})
def test_label_of_a_reference_is_that_of_its_bytes(
    run: Run, gateway: Gateway, tmp_path: Path, family: str, name: str, data: bytes, mime: str | None
) -> None:
    """Names lie, bytes do not: what goes out says what it is, byte for byte; what is no picture stays here."""
    (tmp_path / name).write_bytes(data)
    gateway.answer(reply_with(PICTURE))
    words = ("--model", MODELS[family], "--reference-image", name, "--output", "x.jpeg")
    outcome = run("--json", "--prompt", "x", *words)
    if mime is None:
        assert name in is_usage_error(outcome, gateway)["message"]
        return
    assert outcome.code == 0
    assert references_in(gateway.calls[0]) == [(mime, data)]
    if family == "openai":
        (part,) = gateway.calls[0].files
        assert str(part.filename).isascii() and Path(str(part.filename)).suffix[1:] in mime.replace("jpeg", "jpeg jpg")


def test_gif_that_is_a_script_is_remade(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(GIF_SCRIPT)
    gateway.answer(reply_with(PICTURE))
    outcome = run("--json", "--prompt", "x", "--reference-image", "x.gif", "--output", "x.jpeg")
    if outcome.code:
        is_usage_error(outcome, gateway)
    else:
        ((mime, data),) = references_in(gateway.calls[0])
        assert mime != "image/gif" and b"alert" not in data


@table(
    "data",
    {
        "zip-behind": (pictures.picture(120, 90, noise=True) + pictures.zipped(),),
        "html-behind": (pictures.picture(120, 90, noise=True) + pictures.HTML.encode(),),
    },
)
def test_polyglot_result_is_written_untouched(run: Run, gateway: Gateway, data: bytes) -> None:
    gateway.answer(reply_with(data))
    assert run("--prompt", "x", "--output", "x.png").code == 0
    assert Path("x.png").read_bytes() == data


@table("data", {"html": (pictures.HTML,), "svg": (pictures.SVG,), "pdf": (pictures.PDF,), "zip": (pictures.zipped(),)})
def test_result_that_is_no_picture(run: Run, gateway: Gateway, data: Any) -> None:
    gateway.answer(reply_with(data.encode() if isinstance(data, str) else data))
    outcome = run("--json", "--prompt", "x", "--output", "x.png")
    assert (outcome.code, outcome.json["error"]["kind"], outcome.json["error"]["billed"]) == (7, "response", "yes")
    assert not Path("x.png").exists()


def test_postscript_is_never_run(run: Run, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would start Ghostscript for an EPS: a canary of that name must not sing, whichever way the EPS comes."""
    canary, programs = tmp_path / "canary", tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch '{canary}'\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    eps = pictures.picture(fmt="EPS")
    (tmp_path / "x.png").write_bytes(eps)
    run("--prompt", "x", "--reference-image", "x.png", "--output", "y.png")
    gateway.answer(reply_with(eps))
    run("--prompt", "x", "--output", "y.png")
    assert len(gateway.calls) == 1 and not canary.exists()


# --- Names ---

NAMES = {
    "blanks": " a  b ",
    "quotes": 'it\'s "quoted" `so` $HOME',
    "line-feed": "two\nlines",
    "carriage-return": "a\rb",
    "tab": "a\tb",
    "emoji": "🍎 apple 👩‍👩‍👧",
    "chinese": "苹果",
    "accent-in-two-characters": "e\u0301",
    "right-to-left": "\u202eabc",
    "zero-width": "a\u200bb",
    "dash": "-n",
    "two-dashes": "--json",
    "dash-only": "-",
    "at-sign": "@file",
    "hidden": ".hidden",
    "dots": "a.b.c",
    "percent": "%s %d %(x)s 100%",
    "braces": "{x} {0}",
    "backslash": "a\\b\\n",
    "glob": "*?[x]",
    "shell": "a;touch b|c&d>e",
    "colon": "C:x",
    "url": "http:x",
    "hash": "a#b?c=d",
    "escape-sequence": "\x1b[31mred\x07",
    "not-utf-8": os.fsdecode(b"caf\xe9 \xff"),
    "200-letters": "x" * 200,
    "200-bytes-of-emoji": "🍎" * 50,
    "longest": "x" * 250,
}


@pytest.mark.slow
@table("name", {key: (name,) for key, name in NAMES.items()})
def test_strange_name(gateway: Gateway, tmp_path: Path, name: str) -> None:
    """The same strange name for the reference, the prompt file and the output: read, written and printed exactly."""
    (tmp_path / f"{name}.png").write_bytes(pictures.picture())
    (tmp_path / f"{name}.txt").write_text("a red apple")
    gateway.answer(reply_with(PICTURE))
    words = [f"--reference-image={name}.png", f"--prompt-file={name}.txt", f"--output={name}.jpeg"]
    command = [sys.executable, str(SCRIPTS / "generate.py"), "--model", "gpt-image-2", *words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == os.fsencode(f"{tmp_path}/{name}.jpeg") + b"\n"
    assert (tmp_path / f"{name}.jpeg").read_bytes() == PICTURE
    assert len(list(tmp_path.iterdir())) == 3
    (call,) = gateway.calls
    assert call.fields["prompt"] == "a red apple"
    assert [part.filename for part in call.files] == ["image-1.png"] or all(
        re.fullmatch(r"[\w.-]+\.png", str(part.filename), re.A) for part in call.files
    )


@table("name", {key: (name,) for key, name in NAMES.items()})
def test_strange_name_of_nothing(run: Run, gateway: Gateway, name: str) -> None:
    """A missing file with such a name: one error, whose lines all carry the program's prefix."""
    outcome = run("--json", "--prompt", "x", f"--reference-image={name}.png")
    is_usage_error(outcome, gateway)
    assert all(line.startswith("[image-gen] ") for line in outcome.err.split("\n") if line)


@table(
    "name",
    {
        "256-bytes": ("x" * 252 + ".png",),
        "200-emoji": ("🍎" * 200 + ".png",),
        "path-of-5000": ("x/" * 2500 + "x.png",),
        "nul": ("a\0b.png",),
        "empty": ("",),
        "blank": ("  ",),
        "file-as-folder": ("file/x.png",),
        "file-as-folder-with-slash": ("file/",),
    },
)
def test_impossible_output(run: Run, gateway: Gateway, name: str) -> None:
    """Known before any money is spent."""
    Path("file").write_text("precious")
    is_usage_error(run("--json", "--prompt", "x", f"--output={name}"), gateway)
    assert Path("file").read_text() == "precious" and len(list(Path.cwd().iterdir())) == 1


@pytest.mark.parametrize("name", ["x" * 252 + ".png", "a\0b.png", "", "x/" * 2500 + "x.png"])
def test_impossible_reference(run: Run, gateway: Gateway, name: str) -> None:
    is_usage_error(run("--json", "--prompt", "x", f"--reference-image={name}"), gateway)


def test_second_of_two_pictures_has_no_room_in_its_name(run: Run, gateway: Gateway, kept: Path) -> None:
    """The longest name there is, and n = 2 wants "-2" in it: known up front, or neither picture is lost."""
    gateway.answer(Reply(body={"data": [{"b64_json": base64.b64encode(PICTURE).decode()}] * 2}))
    name = "x" * 250 + ".jpeg"
    outcome = run("--json", "--prompt", "x", "--model", "gpt-image-2", "--n", 2, "--output", name)
    if outcome.code == 2:
        assert not gateway.requests
    else:
        assert outcome.code == 8 and Path(name).read_bytes() == PICTURE
        assert Path(outcome.json["error"]["saved_at"]).read_bytes() == PICTURE


@pytest.mark.parametrize("name", ["-x.jpeg", "--x.jpeg", "--json"])
def test_name_that_looks_like_a_flag(run: Run, gateway: Gateway, tmp_path: Path, name: str) -> None:
    """Without "=" argparse cannot know; it must not guess and send."""
    outcome = run("--json", "--prompt", "x", "--output", name)
    is_usage_error(outcome, gateway)
    assert not list(tmp_path.iterdir())


@table(
    "given, place",
    {
        "relative": ("x.jpeg", "x.jpeg"),
        "dot": ("./x.jpeg", "x.jpeg"),
        "up": ("../up.jpeg", "../up.jpeg"),
        "through-nothing": ("nowhere/../x.jpeg", "x.jpeg"),
        "new-folders": ("a/b/c/x.jpeg", "a/b/c/x.jpeg"),
        "double-slash": ("a//x.jpeg", "a/x.jpeg"),
        "home": ("~/x.jpeg", "~/x.jpeg"),
        "home-new-folder": ("~/pictures/x.jpeg", "~/pictures/x.jpeg"),
        "tilde-inside": ("a~/x.jpeg", "a~/x.jpeg"),
        "tilde-file": ("./~", "./~"),
        "upper-case-extension": ("X.JPEG", "X.JPEG"),
    },
)
def test_place_of_the_output(run: Run, gateway: Gateway, tmp_path: Path, given: str, place: str) -> None:
    gateway.answer(reply_with(PICTURE))
    outcome = run("--prompt", "x", "--output", given)
    expected = os.path.abspath(os.path.expanduser(place) if place.startswith("~/") else tmp_path / place)
    assert outcome.code == 0 and outcome.out == f"{expected}\n"
    assert Path(expected).read_bytes() == PICTURE


@pytest.mark.parametrize("given", [".", "./", "~", "~/", "sub", "sub/", "new/", "sub/.."])
def test_folder_as_output(run: Run, gateway: Gateway, tmp_path: Path, given: str) -> None:
    """A folder gets the default name inside it."""
    (tmp_path / "sub").mkdir()
    gateway.answer(reply_with(PICTURE))
    outcome = run("--prompt", "x", "--output", given)
    saved = Path(outcome.out.rstrip("\n"))
    assert outcome.code == 0 and re.fullmatch(r"output-\d+\.jpeg", saved.name)
    assert saved.parent == Path(os.path.abspath(os.path.expanduser(given)))
    assert saved.read_bytes() == PICTURE


@pytest.mark.parametrize("given", ["~/r.png", "sub/../r.png", "./r.png"])
def test_place_of_a_reference(run: Run, gateway: Gateway, tmp_path: Path, given: str) -> None:
    (tmp_path / "sub").mkdir()
    for folder in (tmp_path, Path.home()):
        (folder / "r.png").write_bytes(pictures.picture())
    gateway.answer(reply_with(PICTURE))
    assert run("--prompt", "x", "--reference-image", given, "--output", "x.jpeg").code == 0
    assert references_in(gateway.calls[0]) == [("image/png", pictures.picture())]


# --- Links ---


def link_to_file(folder: Path) -> Path:
    (folder / "target.jpeg").write_bytes(b"old")
    (folder / "link.jpeg").symlink_to(folder / "target.jpeg")
    return folder / "target.jpeg"


def relative_link(folder: Path) -> Path:
    (folder / "deep").mkdir()
    (folder / "deep" / "target.jpeg").write_bytes(b"old")
    (folder / "link.jpeg").symlink_to("deep/target.jpeg")
    return folder / "deep" / "target.jpeg"


def dangling_link(folder: Path) -> Path:
    (folder / "link.jpeg").symlink_to("target.jpeg")
    return folder / "target.jpeg"


def chain_of_links(folder: Path) -> Path:
    target = link_to_file(folder)
    (folder / "link.jpeg").rename(folder / "second.jpeg")
    (folder / "link.jpeg").symlink_to("second.jpeg")
    return target


def link_up_and_down(folder: Path) -> Path:
    (folder / "link.jpeg").symlink_to(f"../{folder.name}/target.jpeg")
    return folder / "target.jpeg"


def link_with_another_extension(folder: Path) -> Path:
    (folder / "target.bin").write_bytes(b"old")
    (folder / "link.jpeg").symlink_to("target.bin")
    return folder / "target.bin"


def link_into_a_linked_folder(folder: Path) -> Path:
    (folder / "real").mkdir()
    (folder / "alias").symlink_to("real")
    (folder / "link.jpeg").symlink_to("alias/target.jpeg")
    return folder / "real" / "target.jpeg"


LINKS = {
    make.__name__.replace("_", "-"): (make,)
    for make in (
        link_to_file,
        relative_link,
        dangling_link,
        chain_of_links,
        link_up_and_down,
        link_with_another_extension,
        link_into_a_linked_folder,
    )
}


@table("make", LINKS)
def test_output_that_is_a_link_is_written_through(
    run: Run, gateway: Gateway, tmp_path: Path, make: Callable[[Path], Path]
) -> None:
    """The link stays a link, and the picture is where it points."""
    target = make(tmp_path)
    gateway.answer(reply_with(PICTURE))
    outcome = run("--prompt", "x", "--output", "link.jpeg")
    assert outcome.code == 0 and outcome.out == f"{tmp_path / 'link.jpeg'}\n"
    assert (tmp_path / "link.jpeg").is_symlink() and not target.is_symlink()
    assert target.read_bytes() == (tmp_path / "link.jpeg").read_bytes() == PICTURE
    assert not list(tmp_path.rglob(".*"))


def test_link_to_a_folder_is_a_folder(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    gateway.answer(reply_with(PICTURE))
    assert run("--prompt", "x", "--output", "link").code == 0
    assert (tmp_path / "link").is_symlink() and [path.read_bytes() for path in (tmp_path / "real").iterdir()] == [
        PICTURE
    ]


def test_dangling_link_into_a_missing_folder(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    """The folder is made, or it is refused before anything is sent; the link is no file afterwards."""
    (tmp_path / "link.jpeg").symlink_to("missing/target.jpeg")
    gateway.answer(reply_with(PICTURE))
    outcome = run("--json", "--prompt", "x", "--output", "link.jpeg")
    assert (tmp_path / "link.jpeg").is_symlink()
    if outcome.code:
        is_usage_error(outcome, gateway)
    else:
        assert (tmp_path / "missing" / "target.jpeg").read_bytes() == PICTURE


@pytest.mark.parametrize("flag", ["--output", "--reference-image"])
def test_links_in_a_circle(run: Run, gateway: Gateway, tmp_path: Path, flag: str) -> None:
    (tmp_path / "a.jpeg").symlink_to("b.jpeg")
    (tmp_path / "b.jpeg").symlink_to("a.jpeg")
    is_usage_error(run("--json", "--prompt", "x", flag, "a.jpeg"), gateway)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpeg", "b.jpeg"]


@table("make", {name: row for name, row in LINKS.items() if "dangling" not in name})
def test_reference_through_a_link(run: Run, gateway: Gateway, tmp_path: Path, make: Callable[[Path], Path]) -> None:
    make(tmp_path).write_bytes(pictures.picture())
    gateway.answer(reply_with(PICTURE))
    assert run("--prompt", "x", "--reference-image", "link.jpeg", "--output", "x.jpeg").code == 0
    assert references_in(gateway.calls[0]) == [("image/png", pictures.picture())]


def test_several_pictures_beside_a_link(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    """n = 2: the first goes through the link, the second lies beside the link."""
    target = relative_link(tmp_path)
    gateway.answer(Reply(body={"data": [{"b64_json": base64.b64encode(PICTURE).decode()}] * 2}))
    assert run("--prompt", "x", "--model", "gpt-image-2", "--n", 2, "--output", "link.jpeg").code == 0
    assert target.read_bytes() == (tmp_path / "link-2.jpeg").read_bytes() == PICTURE


# --- What is neither a file nor a folder ---


def device(path: Path, number: int) -> None:
    """A device of our own: root, were the program wrong, would replace the machine's."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, number))
    except PermissionError:
        if os.geteuid() == 0:
            pytest.skip("this root may not make devices, and the machine's own are too dear")
        path.symlink_to({3: "/dev/null", 5: "/dev/zero", 7: "/dev/full"}[number])  # not ours to harm


def listening_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as place:
        place.bind(str(path))


def linked_device(path: Path) -> None:
    device(path.with_name("device"), 3)
    path.symlink_to("device")


SPECIALS = {
    "null": (lambda path: device(path, 3),),
    "zero": (lambda path: device(path, 5),),
    "full": (lambda path: device(path, 7),),
    "link-to-null": (linked_device,),
    "pipe": (os.mkfifo,),
    "socket": (listening_socket,),
}


@pytest.fixture
def corner() -> Iterator[Path]:
    """A folder with a short path, for the name of a socket has room for a hundred bytes."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@table("make", SPECIALS)
@pytest.mark.parametrize("name", ["x", "x.png"])
def test_special_file_as_output(
    cli: Any, gateway: Gateway, corner: Path, make: Callable[[Path], None], name: str
) -> None:
    """Refused at once, and still there afterwards: root must not turn /dev/null into a picture."""
    place = corner / name
    make(place)
    before = [(path.name, path.lstat().st_mode, path.lstat().st_rdev) for path in sorted(corner.iterdir())]
    is_usage_error(cli("--json", "--prompt", "x", "--output", place, timeout=20), gateway)
    assert [(path.name, path.lstat().st_mode, path.lstat().st_rdev) for path in sorted(corner.iterdir())] == before


@table("make", SPECIALS)
def test_special_file_as_reference(cli: Any, gateway: Gateway, corner: Path, make: Callable[[Path], None]) -> None:
    """No waiting for a pipe that nobody fills, no reading of zeros for ever."""
    make(corner / "x.png")
    is_usage_error(cli("--json", "--prompt", "x", "--reference-image", corner / "x.png", timeout=20), gateway)


@pytest.mark.parametrize("number", [3, 5])
def test_device_as_prompt_file(cli: Any, gateway: Gateway, corner: Path, number: int) -> None:
    """An empty prompt, or one without an end."""
    device(corner / "x", number)
    is_usage_error(cli("--json", "--prompt-file", corner / "x", timeout=20), gateway)


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/1", "/proc/version"])
def test_stream_as_output(cli: Any, gateway: Gateway, name: str) -> None:
    """Standard output is for the path."""
    is_usage_error(cli("--json", "--prompt", "x", "--output", name, timeout=20), gateway)


def test_folder_as_reference(run: Run, gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "x.png").mkdir()
    outcome = run("--json", "--prompt", "x", "--reference-image", "x.png")
    is_usage_error(outcome, gateway)
    assert outcome.json["error"]["hint"] == "Check the path."


# --- Consoles ---

CONSOLES = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "ascii-strict": {"PYTHONIOENCODING": "ascii:strict"},
    "gbk": {"PYTHONIOENCODING": "gbk"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "lang-c": {"LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": None, "PYTHONUTF8": None},
    "plain-ascii-locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
}
SAID = "提示词违规 🍎 é"


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", CONSOLES.values(), ids=CONSOLES)
def test_success_on_a_poor_console(gateway: Gateway, tmp_path: Path, surroundings: dict[str, Any]) -> None:
    """An emoji in the path, in a warning and in the prompt: the picture is saved, and the path is its very bytes."""
    gateway.answer(reply_with(PICTURE))
    gateway.answer(reply_with(PICTURE))
    prompt = "an apple" if "PYTHONCOERCECLOCALE" in surroundings else "苹果 🍎"
    command = [
        sys.executable,
        str(SCRIPTS / "generate.py"),
        "--prompt",
        prompt,
        "--model",
        "acme/🍎",
        "--family=gemini",
    ]
    environment = {name: value for name, value in {**os.environ, **surroundings}.items() if value is not None}
    if "PYTHONCOERCECLOCALE" in surroundings:
        command[5] = "acme/apple"
    for flags in ([], ["--json"]):
        done = subprocess.run(
            [*command, *flags, "--output", "🍎 é.jpeg"],
            cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert b"Traceback" not in done.stderr and b"Error" not in done.stderr
        saved = tmp_path / "🍎 é.jpeg"
        assert saved.read_bytes() == PICTURE
        if flags:
            path = json.loads(done.stdout)["path"]
            assert os.fsdecode(path.encode("utf-8", "surrogateescape")) == str(saved)
        else:
            assert done.stdout == os.fsencode(saved) + b"\n"
    assert gateway.calls[0].json["messages"][0]["content"][0]["text"] == prompt


def refusing(received: Received) -> Reply:
    return Reply(400, body={"error": {"message": SAID, "type": "x", "param": None, "code": "moderation_blocked"}})


UTTERANCES = {  # (words, variables, exit code, what must be readable on standard error or output)
    "help": (("--help",), {}, 0, "--prompt"),
    "models": (("--list-models",), {}, 0, "gpt-image-2"),
    "models-json": (("--list-models", "--json"), {}, 0, "gpt-image-2"),
    "check": (("--check",), {}, 0, "accepted"),
    "dry-run": (("--prompt-file", "prompt.txt", "--dry-run"), {}, 0, "/chat/completions"),
    "onboarding": (("--prompt", "x"), {"OMNIMAAS_API_KEY": None}, 3, "This skill needs an image-gateway API key"),
    "onboarding-json": (("--prompt", "x", "--json"), {"OMNIMAAS_API_KEY": None}, 3, "OMNIMAAS_API_KEY"),
    "missing-file": (("--prompt", "x", "--reference-image", "🍎 nowhere.png"), {}, 2, "nowhere.png"),
    "wrong-size": (("--prompt", "x", "--model", "gpt-image-2", "--size", "1024×1024"), {}, 2, "1024"),
    "wrong-flag": (("--farbe", "grün 🍎"), {}, 2, "farbe"),
    "key-with-a-dash": (("--prompt", "x"), {"OMNIMAAS_API_KEY": "sk—123456789012345"}, 3, "OMNIMAAS_API_KEY"),
    "refusal": (("--prompt", "x"), {}, 7, "moderation_blocked"),
    "refusal-json": (("--prompt", "x", "--json"), {}, 7, "moderation_blocked"),
}


@pytest.mark.slow
@pytest.mark.parametrize("surroundings", CONSOLES.values(), ids=CONSOLES)
@table("words, variables, code, readable", UTTERANCES)
def test_words_on_a_poor_console(
    gateway: Gateway, cli: Any, surroundings: dict[str, Any],
    words: tuple[str, ...], variables: dict[str, Any], code: int, readable: str,
) -> None:  # fmt: skip
    """What a console cannot show is shown as something else; it never ends the program."""
    Path("prompt.txt").write_text(SAID, encoding="utf-8")
    gateway.answer(refusing)
    outcome = cli(*words, env={**surroundings, **variables})
    assert outcome.code == code
    assert "Traceback" not in outcome.err and "UnicodeEncodeError" not in outcome.err
    assert readable in outcome.err + outcome.out
    if "--json" in words:
        assert outcome.json["ok"] is (code == 0)


def test_key_of_raw_bytes(cli: Any, gateway: Gateway) -> None:
    """A key variable that is no text at all: told without a traceback, and without showing it."""
    outcome = cli("--prompt", "x", env={"OMNIMAAS_API_KEY": os.fsdecode(b"sk-\xff\xfe123456789abcdef")})
    assert (outcome.code, len(gateway.requests)) == (3, 0)
    assert "Traceback" not in outcome.err and "789abcdef" not in outcome.err


def closed(number: int) -> dict[str, Any]:
    return {"preexec_fn": lambda: os.close(number)}


STREAMS = {
    "stdout-closed": lambda: closed(1),
    "stderr-closed": lambda: closed(2),
    "stdin-closed": lambda: closed(0),
    "all-closed": lambda: {"preexec_fn": lambda: [os.close(number) for number in (0, 1, 2)]},
    "stdout-full": lambda: {"stdout": os.open("/dev/full", os.O_WRONLY)},
    "stderr-full": lambda: {"stderr": os.open("/dev/full", os.O_WRONLY)},
    "stdout-without-a-reader": lambda: {"stdout": pipe_without_a_reader()},
    "stderr-without-a-reader": lambda: {"stderr": pipe_without_a_reader()},
}


def pipe_without_a_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@table("make", {name: (make,) for name, make in STREAMS.items()})
@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["plain", "json"])
def test_stream_that_takes_nothing(
    gateway: Gateway, start: Any, tmp_path: Path, make: Callable[[], dict[str, Any]], flags: tuple[str, ...]
) -> None:
    """`| head`, a full disk under a log, a daemon without streams: the paid picture is saved, quietly."""
    gateway.answer(reply_with(PICTURE))
    options = make()
    process = start("--prompt", "x", *flags, "--output", "x.jpeg", cwd=tmp_path, **options)
    for end in options.values():
        if isinstance(end, int):
            os.close(end)
    _, err = process.communicate(timeout=60)
    assert (tmp_path / "x.jpeg").read_bytes() == PICTURE
    assert process.returncode == 0
    assert not re.search("Traceback|Exception ignored|Error", err or "")


def test_library_says_nothing_on_any_console(
    gateway: Gateway, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Callers in Python get no stray output, whatever is wrong with the picture."""
    gateway.answer(reply_with(PICTURE))
    (tmp_path / "x.jpg").write_bytes(pictures.picture(fmt="JPEG", exif=pictures.BROKEN_EXIF))
    generate.generate_image("x", reference_images=["x.jpg"], output_path="🍎.jpeg")
    with contextlib.suppress(generate.ImageGenError):
        generate.generate_image("x", reference_images=["nowhere 🍎.png"])
    assert capfd.readouterr() == ("", "")
