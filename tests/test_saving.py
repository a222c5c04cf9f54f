"""Saving: the bytes that were paid for, under the name that was asked for, whole or not at all."""

from __future__ import annotations

import io
import os
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bodies
import generate
import pictures
import pytest
from conftest import MODELS, Run
from gateway import Gateway, Received, Reply
from PIL import Image

GPT = "gpt-image-2"
OLD = b"what was there before"


def noise(width: int = 160, height: int = 120, fmt: str = "PNG", seed: int = 0) -> bytes:
    """A picture that no encoder gets below 10,000 bytes."""
    return pictures.picture(width, height, fmt=fmt, noise=True, seed=seed)


PICTURE = noise()


def answer(*images: bytes) -> Reply:
    return Reply(body=bodies.made(*images, usage={}))


@pytest.fixture
def save(gateway: Gateway, run: Run) -> Run:
    """save(picture, …, flags): the program against a gateway that makes these pictures."""

    def call(*words: object) -> Any:
        gateway.answer(answer(*(word for word in words if isinstance(word, bytes))))
        flags = [word for word in words if not isinstance(word, bytes)]
        return run("--prompt", "a cup", "--model", GPT, *flags)

    return call


def warnings(outcome: Any) -> list[str]:
    return [line for line in outcome.err.splitlines() if "warning" in line]


FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "jpe": "JPEG", "jfif": "JPEG"}
FORMATS.update({"webp": "WEBP", "gif": "GIF", "bmp": "BMP", "tif": "TIFF", "tiff": "TIFF"})


@pytest.mark.parametrize("sent", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("name", [*map("cup.{}".format, FORMATS), "cup.JPG", "cup", "cup.", ".cup"])
def test_file_is_what_its_name_says(save: Run, name: str, sent: str) -> None:
    """Bytes that already fit are written untouched, else re-encoded. No extension: untouched."""
    data = noise(fmt=sent)
    assert save(data, "--output", name).code == 0
    saved = Path(name).read_bytes()
    image = Image.open(io.BytesIO(saved))
    image.load()
    wanted = FORMATS.get(name.lower().partition("cup.")[2], sent)
    assert (image.format, image.size) == (wanted, (160, 120))
    assert (saved == data) == (wanted == sent)


def test_re_encoding_is_upright_srgb_at_quality_95(save: Run) -> None:
    save(pictures.display_p3((1600, 1200), "PNG"), "--output", "cup.jpg")
    data = Path("cup.jpg").read_bytes()
    expected = Image.open(io.BytesIO(pictures.picture(fmt="JPEG", quality=95)))
    assert Image.open(io.BytesIO(data)).quantization == expected.quantization
    assert pictures.upright(data, tolerance=12)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_goes_onto_white_in_a_jpeg(save: Run, mode: str) -> None:
    """Transparency flattened onto white only for JPEG, with a warning: never onto black."""
    outcome = save(pictures.picture(1024, 1024, mode), "--output", "cup.jpg")
    image = Image.open("cup.jpg").convert("RGB")
    assert min(image.getpixel((512, 512))) >= 250
    assert pictures.upright(Path("cup.jpg").read_bytes(), tolerance=20)
    assert ["transparen" in line for line in warnings(outcome)] == [True]


@pytest.mark.parametrize("extension", ["webp", "tiff", "gif"])
def test_transparency_stays_where_the_format_can_hold_it(save: Run, extension: str) -> None:
    outcome = save(pictures.picture(1024, 1024, "RGBA"), "--output", f"cup.{extension}")
    assert pictures.has_hole(Path(f"cup.{extension}").read_bytes())
    assert warnings(outcome) == []


@pytest.mark.parametrize("family", ["openai", "gemini"])
@pytest.mark.parametrize("output", ["", "folder", "link", "new/er/", "~"])
def test_default_name(gateway: Gateway, run: Run, family: str, output: str) -> None:
    """./output-<unix_ts>.<ext>; a directory (or trailing `/`) gets the default name inside it."""
    Path("folder").mkdir()
    Path("link").symlink_to("folder")
    flags = ["--output", output] if output else []
    path = Path(run("--prompt", "a cup", "--model", MODELS[family], *flags).out.rstrip("\n"))
    assert str(path.parent) == os.path.abspath(os.path.expanduser(output or "."))
    ending = {"openai": "png", "gemini": "jpeg"}[family]
    assert re.fullmatch(rf"output-\d{{10}}\.{ending}", path.name)
    assert Image.open(path).format == ending.upper()


def no_links(*_: object, **__: object) -> None:
    """As on some file systems: FAT, some network shares."""
    raise PermissionError


@pytest.mark.parametrize("links", [True, False])
def test_default_names_never_collide(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """However many runs start in the same second in the same folder: a number is added."""
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    made = [noise(seed=seed) for seed in range(12)]
    together = threading.Barrier(12)

    def reply(received: Received) -> Reply:
        together.wait(30)
        return answer(made[int(received.json["prompt"])])

    gateway.answer_always(reply)
    with ThreadPoolExecutor(12) as pool:
        paths = list(pool.map(lambda number: generate.generate_image(str(number), GPT), range(12)))
    assert [path.read_bytes() for path in paths] == made
    assert sorted(tmp_path.iterdir()) == sorted(paths)


def test_default_name_that_is_taken_is_left_alone(save: Run) -> None:
    taken = [Path(f"output-{int(time.time()) + second}.png") for second in range(60)]
    for path in taken:
        path.write_bytes(OLD)
    path = Path(save(PICTURE).out.strip())
    assert re.fullmatch(r"output-\d{10}-2\.png", path.name)
    assert {path.read_bytes() for path in taken} == {OLD}


@pytest.mark.parametrize("name", ["cup{}.png", "cup{}", "c.u.p{}.png", "new/cup-2{}.png"])
def test_several_pictures_are_numbered(save: Run, tmp_path: Path, name: str) -> None:
    """The first image has the asked name, the next get `-2`, `-3` before the extension."""
    names = [name.format(number) for number in ("", "-2", "-3")]
    images = [noise(seed=seed) for seed in range(3)]
    outcome = save(*images, "--n", "3", "--output", names[0])
    assert outcome.out.splitlines() == [str(tmp_path / name) for name in names]
    assert [Path(name).read_bytes() for name in names] == images


@pytest.mark.parametrize("asked", ["1", "4"])
def test_all_that_came_is_saved_whatever_was_asked(save: Run, asked: str) -> None:
    """All are paid for; fewer than asked for are worth a warning."""
    outcome = save(PICTURE, noise(seed=1), "--n", asked, "--size", "auto")
    assert (outcome.code, len(outcome.out.splitlines())) == (0, 2)
    told = ["2" in line and "4" in line for line in warnings(outcome)]
    assert told == [True] * (asked == "4")


@pytest.mark.parametrize("given", ["a/b/c.png", "./a/../b/c.png", "~/new/c.png", "'q\" é 茶/c.png"])
def test_parents_are_created(save: Run, given: str) -> None:
    """stdout carries the absolute path; parents are created."""
    place = os.path.abspath(os.path.expanduser(given))
    outcome = save(PICTURE, "--output", given)
    assert (outcome.code, outcome.out) == (0, f"{place}\n")
    assert Path(place).read_bytes() == PICTURE


def test_failure_leaves_no_folder_and_no_file(gateway: Gateway, run: Run, tmp_path: Path) -> None:
    gateway.answer(Reply(400))
    assert run("--prompt", "a cup", "--output", "new/cup.png").code == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o664])
def test_existing_file_is_whole_old_or_whole_new(
    gateway: Gateway, save: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int
) -> None:
    """Written to a temporary file in the same folder, fsynced, then renamed; its mode stays.

    Who has the old file open reads it to its end: nothing is written into it.
    """
    path = tmp_path / "cup.png"
    path.write_bytes(OLD)
    path.chmod(mode)
    steps: list[str] = []
    for name in ("fsync", "replace", "rename"):
        real = getattr(os, name)
        spy = lambda *words, name=name, real=real: steps.append(name) or real(*words)  # noqa: E731
        monkeypatch.setattr(os, name, spy)
    with path.open("rb") as reader:
        assert save(PICTURE, "--output", "cup.png").code == 0
        assert reader.read() == OLD
    assert path.read_bytes() == PICTURE
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert steps[-2] == "fsync" and steps[-1] in ("replace", "rename")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("flags", [["--output", "cup.png"], []], ids=["asked", "default"])
def test_new_file_has_the_permissions_of_any_new_file(save: Run, flags: list[str]) -> None:
    """Temporary files are private; pictures are for the web server, too."""
    before = os.umask(0o027)
    try:
        path = Path(save(PICTURE, *flags).out.strip())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(("size", "code"), [(10_000, 7), (10_001, 0)])
@pytest.mark.parametrize("flags", [["--output", "cup.png"], []], ids=["asked", "default"])
def test_file_too_small_to_be_real(save: Run, size: int, code: int, flags: list[str]) -> None:
    """Self-check: exists and larger than 10,000 bytes; a smaller one is kept and reported."""
    data = pictures.padded(size, "PNG")
    outcome = save(data, *flags, "--json")
    (path,) = Path.cwd().iterdir()
    assert path.read_bytes() == data
    assert outcome.code == code
    if code:
        error = outcome.json["error"]
        assert (error["kind"], error["billed"]) == ("response", "yes")
        assert error["saved_at"] == str(path)
        assert str(size) in error["message"].replace(",", "")


SQUARE, LONG = ["--aspect-ratio", "1:1"], ["--size", "1536x1024"]
SHAPES = [(SQUARE, (208, 200), False), (SQUARE, (212, 200), True), (SQUARE, (200, 213), True)]
SHAPES += [(LONG, (300, 200), False), (LONG, (200, 300), True)]
SHAPES += [(["--size", "auto"], (300, 200), False), ([], (1024, 1024), False)]


@pytest.mark.parametrize(("flags", "size", "off"), SHAPES)
def test_picture_of_another_shape(save: Run, flags: list[str], size: Any, off: bool) -> None:
    """When the picture's shape is more than 5 % off the asked ratio, a warning says so."""
    outcome = save(noise(*size), *flags)
    told = [line for line in warnings(outcome) if "{}x{}".format(*size) in line]
    assert [flags[1] in line for line in told] == [True] * off


def test_one_line_says_all_about_the_picture(gateway: Gateway, run: Run, tmp_path: Path) -> None:
    """Gateway source, elapsed, size in bytes and pixels, tokens, estimated cost, path."""
    outcome = run("--prompt", "a cup", "--model", GPT, "--n", "2", "--output", "cup.png")
    for name in ("cup.png", "cup-2.png"):
        (line,) = [line for line in outcome.err.splitlines() if f"{tmp_path}/{name}" in line]
        size = (tmp_path / name).stat().st_size
        facts = rf"\d\.\d s|tokens for all 2|{size}|1024x1024|about 0\.35 CNY|OMNIMAAS_API_KEY"
        assert len(set(re.findall(facts, line.replace(",", "")))) == 6, line


def test_unknown_tokens_and_costs_are_called_so(save: Run) -> None:
    outcome = save(PICTURE, "--model", "gpt-image-9", "--output", "cup.png")
    (line,) = [line for line in outcome.err.splitlines() if "saved" in line]
    assert len(re.findall(r"unknown (tokens|CNY)", line)) == 2
