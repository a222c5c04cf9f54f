"""Pictures, names, files and consoles that mean harm, or that nobody thought of."""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import bodies
import pictures
import pytest
from conftest import SCRIPTS, Run, table
from gateway import Gateway, Reply
from PIL import Image

PICTURE = pictures.picture(120, 90, fmt="JPEG", noise=True)
GPT = "gpt-image-2"
WORDS = ["--json", "--prompt", "x", "--model", GPT]


def answer(*images: bytes) -> Reply:
    return Reply(body=bodies.made(*images))


def decodes(data: bytes) -> bool:
    """Whether Pillow reads these bytes to their end."""
    try:
        Image.open(io.BytesIO(data)).load()
    except Exception:  # noqa: BLE001 (whatever a broken file provokes)
        return False
    return True


GOOD = [pictures.picture(300, 200, fmt=fmt) for fmt in ("PNG", "JPEG", "WEBP", "TIFF")]
GOOD += [pictures.frames("GIF"), pictures.orientation(6), pictures.keyed()]
GOOD = [data.ljust(10_001, b"\0") for data in GOOD]  # no picture is too small


@pytest.mark.long
@pytest.mark.parametrize("seed", range(70))
def test_broken_picture(run: Run, gateway: Gateway, seed: int) -> None:
    """Bytes flipped anywhere: what decodes is sent and saved, any other is named, or kept."""
    good = GOOD[seed % len(GOOD)]
    broken = good[:16] + pictures.flipped(good, seed, flips=1 + seed // 4)[16:]
    Path("broken.png").write_bytes(broken)
    gateway.answer_always(answer(PICTURE))
    given = run(*WORDS, "--reference-image", "broken.png", "--output", "y.jpeg")
    gateway.answer_always(answer(broken))
    made = run(*WORDS, "--output", "x")
    if decodes(broken):
        (part,) = gateway.calls[0].files
        assert decodes(part.data) and len(part.data) <= 1_048_576
        assert made.code == 0 and Path("x").read_bytes() == broken
    else:
        assert (given.code, given.json["error"]["kind"], len(gateway.calls)) == (2, "usage", 1)
        assert "broken.png" in given.json["error"]["message"]
        error = made.json["error"]
        assert (error["kind"], error["billed"]) == ("response", "yes")
        assert Path(error["saved_at"]).read_bytes() == broken and not Path("x").exists()


def with_chunk(kind: bytes, data: bytes) -> bytes:
    """A good PNG with one more chunk after its header."""
    good = pictures.picture(300, 200)
    return good[:33] + pictures.chunk(kind, data) + good[33:]


NOTHING = zlib.compress(bytes(200_000_000), 9)  # 200 KB that become 200 MB
BOMBS = {
    "png-of-900-megapixels": (pictures.TRAPS["bomb.png"].data,),
    "webp-of-268-megapixels": (b"RIFF\x26\0\0\0WEBPVP8L\x19\0\0\0/\xff\xff\xff\x0f" + bytes(99),),
    "text-of-200-mb": (with_chunk(b"zTXt", b"Comment\0\0" + NOTHING),),
    "profile-of-200-mb": (with_chunk(b"iCCP", b"icc\0\0" + NOTHING),),
}


def frugal(*words: object, memory: int = 1_200_000_000) -> Any:
    """The program as a process that gets so much memory and no more: exit code and JSON."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "generate.py", *WORDS, *words],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (memory, memory)),
        env={**os.environ, "MALLOC_ARENA_MAX": "2"},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert b"Traceback" not in done.stderr and b"MemoryError" not in done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.mark.long
@table("bomb", BOMBS)
def test_bomb(gateway: Gateway, bomb: bytes) -> None:
    """A few kilobytes that unfold to gigabytes, there and back: told within modest memory."""
    Path("bomb.png").write_bytes(bomb)
    code, facts = frugal("--reference-image", "bomb.png", "--output", "x.jpeg")
    assert (code, gateway.requests) == (2, [])
    assert "bomb.png" in facts["error"]["message"]
    gateway.answer(answer(bomb))
    code, facts = frugal("--output", "x")
    assert (code, Path("x").exists()) == (9, False)
    assert Path(facts["error"]["saved_at"]).read_bytes() == bomb


def unfolding(start: bytes) -> bytes:
    """Gzip of these bytes and then a gigabyte of blanks, in a megabyte: one piece, repeated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(b" " * (1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + piece * 1000


@pytest.mark.long
@pytest.mark.parametrize(("start", "code"), [(json.dumps(answer(PICTURE).body), 0), ("", 6)])
def test_answer_that_unfolds_for_ever(gateway: Gateway, start: str, code: int) -> None:
    """What was paid for stands before a gigabyte of blanks."""
    gateway.answer(Reply(200, {"Content-Encoding": "gzip"}, unfolding(start.encode())))
    assert frugal("--output", "x.jpeg")[0] == code
    assert code or Path("x.jpeg").read_bytes() == PICTURE


@pytest.mark.long
def test_name_that_is_no_text(cli: Any, gateway: Gateway, tmp_path: Path) -> None:
    """What a file system takes, the program does: bytes that are not UTF-8."""
    name = os.fsdecode(b"caf\xe9 \xff.png")
    assert cli("--prompt", "x", "--model", GPT, f"--output={name}").code == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


LINKS = [
    ({"cup.png": "old.png"}, "old.png"),
    ({"cup.png": "{here}/old.png"}, "old.png"),
    ({"cup.png": "none/new.png"}, "none/new.png"),
    ({"cup.png": "way/new.png", "way": "real"}, "real/new.png"),
    ({"cup.png": "next.png", "next.png": "real/old.bin"}, "real/old.bin"),
]


@pytest.mark.parametrize(("links", "target"), LINKS)
def test_link_is_written_through(
    run: Run, gateway: Gateway, tmp_path: Path, links: dict[str, str], target: str
) -> None:
    """current.png → releases/7/cup.png stays a link; the second picture lies beside it."""
    (tmp_path / "real").mkdir()
    for name in ("old.png", "real/old.bin"):
        (tmp_path / name).write_bytes(b"old")
    for link, to in links.items():
        (tmp_path / link).symlink_to(to.format(here=tmp_path))
    first, second = (pictures.picture(200, 100, noise=True, seed=seed) for seed in range(2))
    gateway.answer(answer(first, second))
    outcome = run("--prompt", "x", "--model", GPT, "--n", "2", "--output", "cup.png")
    assert outcome.out == f"{tmp_path}/cup.png\n{tmp_path}/cup-2.png\n"
    assert all((tmp_path / link).is_symlink() for link in links)
    assert (tmp_path / target).read_bytes() == first
    assert (tmp_path / "cup-2.png").read_bytes() == second
