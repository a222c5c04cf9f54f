"""Saving: the bytes that were paid for, under the name that was asked for, whole or not at all."""

from __future__ import annotations

import io
import itertools
import os
import re
import stat
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bodies
import generate
import pictures
import pytest
from conftest import MODELS, Run
from gateway import Gateway, Received, Reply
from PIL import Image, ImageOps, JpegImagePlugin

GPT = "gpt-image-2"
PRO = "gemini-3-pro-image-preview"
OLD = b"what was there before"
DEFAULT, ASKED, FITTED = [], ["--output", "cup.png"], ["--output", "cup.png", "--fit", "40x30"]


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
    """And at full colour resolution: 4:2:0 turns thin coloured lines grey."""
    save(pictures.display_p3((1600, 1200), "PNG"), "--output", "cup.jpg")
    data = Path("cup.jpg").read_bytes()
    expected = Image.open(io.BytesIO(pictures.picture(fmt="JPEG", quality=95)))
    saved = Image.open(io.BytesIO(data))
    assert saved.quantization == expected.quantization
    assert JpegImagePlugin.get_sampling(saved) == 0
    assert pictures.upright(data, tolerance=12)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_goes_onto_white_in_a_jpeg(save: Run, mode: str) -> None:
    """Transparency flattened onto white only for JPEG, with a warning: never onto black."""
    outcome = save(pictures.picture(1024, 1024, mode), "--output", "cup.jpg")
    image = Image.open("cup.jpg").convert("RGB")
    assert min(image.getpixel((512, 512))) >= 250
    assert pictures.upright(Path("cup.jpg").read_bytes(), tolerance=20)
    assert ["transparen" in line for line in warnings(outcome)] == [True]


@pytest.mark.parametrize("extension", ["bmp", "pcx"])
def test_transparency_goes_onto_white_in_any_such_format(save: Run, extension: str) -> None:
    outcome = save(pictures.picture(1024, 1024, "RGBA"), "--output", f"cup.{extension}")
    assert Image.open(f"cup.{extension}").convert("RGB").getpixel((512, 512)) == (255, 255, 255)
    assert warnings(outcome) != []


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
    assert all(re.fullmatch(r"output-\d{10}(-\d+)?\.png", path.name) for path in paths)


NUMBERED = ["cup{}.png", "cup{}", "c.u.p{}.png", "./a/../b/cup-2{}.png", "~/new/'q\" é 茶{}.png"]


@pytest.mark.parametrize("name", NUMBERED)
def test_several_pictures_are_numbered(save: Run, name: str) -> None:
    """The asked name, then `-2`, `-3` before the extension; parents are created, paths absolute."""
    names = [name.format(number) for number in ("", "-2", "-3")]
    paths = [os.path.abspath(os.path.expanduser(name)) for name in names]
    images = [noise(seed=seed) for seed in range(3)]
    outcome = save(*images, "--n", "3", "--output", names[0])
    assert outcome.out.splitlines() == paths
    assert [Path(path).read_bytes() for path in paths] == images


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


@pytest.mark.parametrize("flags", [ASKED, DEFAULT])
def test_new_file_has_the_permissions_of_any_new_file(save: Run, flags: list[str]) -> None:
    """Temporary files are private; pictures are for the web server, too."""
    before = os.umask(0o027)
    try:
        path = Path(save(PICTURE, *flags).out.strip())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize(("size", "code"), [(10_000, 9), (10_001, 0)])
@pytest.mark.parametrize("flags", [ASKED, DEFAULT, FITTED])
def test_file_too_small_to_be_real(save: Run, size: int, code: int, flags: list[str]) -> None:
    """Self-check: larger than 10,000 bytes, or kept and reported; with --fit the original is."""
    data = pictures.padded(size, "PNG")
    outcome = save(data, *flags, "--json")
    assert outcome.code == code
    assert data in [path.read_bytes() for path in Path.cwd().iterdir()]
    if code:
        error = outcome.json["error"]
        assert (error["kind"], error["billed"]) == ("response", "yes")
        assert Path(error["saved_at"]).is_file()
        assert str(size) in error["message"].replace(",", "")


def test_real_picture_may_be_a_small_file(save: Run) -> None:
    """What the gateway sent is judged, not what became of it in another format."""
    assert save(pictures.padded(10_001, "PNG"), "--output", "cup.webp").code == 0
    assert Path("cup.webp").stat().st_size < 10_000


SQUARE, LONG = ["--aspect-ratio", "1:1"], ["--size", "1536x1024"]
SHAPES = [(SQUARE, (208, 200), False), (SQUARE, (212, 200), True), (SQUARE, (200, 213), True)]
SHAPES += [(LONG, (300, 200), False), (LONG, (200, 300), True)]


@pytest.mark.parametrize(("flags", "size", "off"), SHAPES)
def test_picture_of_another_shape(save: Run, flags: list[str], size: Any, off: bool) -> None:
    """When the picture's shape is more than 5 % off the asked ratio, a warning says so."""
    outcome = save(noise(*size), *flags)
    told = [line for line in warnings(outcome) if "{}x{}".format(*size) in line]
    assert [flags[1] in line for line in told] == [True] * off


def test_two_lines_say_all_about_the_picture(save: Run, gateway: Gateway, tmp_path: Path) -> None:
    """Path, pixels, bytes, elapsed, tokens, estimated cost; and the gateway with its sources."""
    one = save(PICTURE, "--output", "cup.png").err
    facts = f"saved {tmp_path}/cup\\.png: 160x120, {len(PICTURE)} bytes"
    assert re.search(rf"{facts}, \d\.\d s, tokens unknown, about 0\.35 CNY\n", one)
    sources = "URL: OMNIMAAS_BASE_URL, key: OMNIMAAS_API_KEY"
    assert f"[image-gen] gateway {gateway.url} ({sources})\n" in one
    flags = ["--n", "2", "--model", "gpt-image-9", "--output", "cup.png"]
    two = save(PICTURE, noise(seed=1), *flags).err
    assert re.search(facts + "\n", two) and "cup-2.png" in two
    assert re.search(r"2 pictures: \d\.\d s, tokens unknown, .*unknown", two)


@pytest.mark.parametrize("flags", [[], ["--fit", "160x120"]])
def test_turned_picture_of_the_right_size(save: Run, flags: list[str]) -> None:
    """Only what was scaled or cut has an original, and only that earns a warning."""
    exif = Image.Exif()
    exif[pictures.ORIENTATION] = 6
    data = pictures.picture(120, 160, fmt="JPEG", noise=True, exif=exif)
    facts = save(data, *flags, "--json", "--size", "auto", "--output", "cup.gif").json
    assert (facts["originals"], facts["warnings"], os.listdir()) == ([None], [], ["cup.gif"])
    assert (facts["width"], facts["height"]) == (160, 120)


@pytest.mark.parametrize("temporary", ["", "/dev/null/none"])
def test_memory_runs_out(save: Run, monkeypatch: Any, temporary: str) -> None:
    """The paid picture is kept all the same, at home where there is no temporary folder."""
    monkeypatch.setattr(ImageOps, "fit", lambda *_, **__: (_ for _ in ()).throw(MemoryError))
    monkeypatch.setattr("tempfile.tempdir", temporary or tempfile.tempdir)
    error = save(PICTURE, *FITTED, "--json").json["error"]
    assert (error["kind"], error["billed"]) == ("save", "yes")
    assert "MemoryError" in error["message"]
    assert Path(error["saved_at"]).read_bytes() == PICTURE
    assert (Path(error["saved_at"]).parent == Path.home()) == bool(temporary)


def test_file_that_is_not_what_was_written(save: Run, monkeypatch: Any) -> None:
    """A disk that lies: the picture is written once more, elsewhere."""
    rotten = []

    def rot(descriptor: int) -> None:
        if not rotten and os.fstat(descriptor).st_size == len(PICTURE):
            rotten.append(os.pwrite(descriptor, b"rot", 0))

    monkeypatch.setattr(os, "fsync", rot)
    error = save(PICTURE, *ASKED, "--json").json["error"]
    assert (error["kind"], "not what can be read" in error["message"]) == ("save", True)
    assert Path(error["saved_at"]).read_bytes() == PICTURE
    assert os.listdir() == []


def test_rivals_for_one_name(gateway: Gateway) -> None:
    """Whichever comes last wins; none takes the other's file for its own gone wrong."""
    made = [noise(seed=seed) for seed in range(8)]
    gateway.answer(*map(answer, made))
    with ThreadPoolExecutor(8) as pool:
        calls = [
            pool.submit(generate.generate_image, "a cup", GPT, output_path="cup.png") for _ in made
        ]
    assert {call.result().name for call in calls} == {"cup.png"}
    assert Path("cup.png").read_bytes() in made


def test_two_pictures_in_one_jpeg(save: Run) -> None:
    """As some phones and models make them; it is a JPEG all the same."""
    data = pictures.frames("MPO").ljust(10_001, b"\0")
    assert save(data, "--output", "cup.jpg", "--json").json["format"] == "JPEG"
    assert Path("cup.jpg").read_bytes() == data


def test_drive_that_does_not_exist(save: Run, monkeypatch: Any, tmp_path: Path) -> None:
    r"""The parent of Z:\ is Z:\ itself, and there is nothing there."""
    parent, climbed = os.path.dirname, iter(range(99))
    drive = lambda path: path if str(path) == str(tmp_path) else parent(path)  # noqa: E731
    monkeypatch.setattr(os.path, "dirname", drive)
    monkeypatch.setattr(os.path, "lexists", lambda path: next(climbed) < 0)
    assert save("--output", "new/cup.png", "--dry-run").code == 0


# --- For callers who name pixels or a purpose ---

MODELS_ASKED = ("gpt-image-2", "gemini", "gpt-image-1", "dall-e-3")
SHAPED = """
    2388x1024  2400x1024  21:9    1536x1024 1792x1024
    1536x1024  1536x1024  3:2     1536x1024 1792x1024
    1024x1024  1024x1024  1:1     1024x1024 1024x1024
    1080x1350  1088x1360  4:5     1024x1536 1024x1024
    1080x1920  1088x1920  9:16    1024x1536 1024x1792
    1080x1080  1088x1088  1:1     1024x1024 1024x1024
    1080x566   1120x592   1.91:1  1536x1024 1792x1024
    1440x2560  1440x2560  9:16    1024x1536 1024x1792
    1440x1800  1440x1808  4:5     1024x1536 1024x1024
    1200x628   1200x640   1.91:1  1536x1024 1792x1024
    1200x627   1200x640   1.91:1  1536x1024 1792x1024
    1200x630   1200x640   1.91:1  1536x1024 1792x1024
    1200x1200  1200x1200  1:1     1024x1024 1024x1024
    960x1200   960x1200   4:5     1024x1536 1024x1024
    1000x1500  1008x1504  2:3     1024x1536 1024x1792
    1000x1000  1008x1008  1:1     1024x1024 1024x1024
    900x383    1248x528   2.35:1  1536x1024 1792x1024
    1200x675   1200x688   16:9    1536x1024 1792x1024
    1280x720   1280x720   16:9    1536x1024 1792x1024
    320x320    816x816    1:1     1024x1024 1024x1024
    8192x8192  2880x2880  1:1     1024x1024 1024x1024
    3000x900   3840x1280  2.35:1  1536x1024 1792x1024
"""  # the wish, and what is asked for; the last two are wider than gpt-image-2 can make
FITS = [line.split() for line in SHAPED.strip().splitlines()]
EVERY_MODEL = [model.name for model in generate.CATALOGUE]


def pixels(text: str) -> tuple[float, float]:
    width, height = re.split("[x:]", text)
    return float(width), float(height)


def slope_for(received: Received) -> bytes:
    """A slope of the size that was asked for; of a ratio, about a megapixel."""
    ratio = re.search(r"\(aspect ratio: (.+)\)", bodies.prompt_in(received))
    width, height = pixels(ratio[1] if ratio else received.json["size"])
    scale = (2**20 / width / height) ** 0.5 if ratio else 1
    slope = pictures.slope(round(width * scale), round(height * scale))
    return pictures.encoded(slope, "PNG").ljust(10_001, b"\0")


@pytest.mark.parametrize("model", EVERY_MODEL)
def test_request_is_shaped_for_the_fit(gateway: Gateway, run: Run, model: str) -> None:
    """The least area that covers the wish, the nearest shape, or the nearest ratio."""
    column = [model.startswith(kind) for kind in MODELS_ASKED].index(True)
    for wish, *columns in FITS:
        words = ["--json", "--prompt", "a cup", "--model", model, "--fit", wish, "--dry-run"]
        fields, asked = run(*words).json["json"], columns[column]
        assert asked == fields.get("size") or f"a cup (aspect ratio: {asked})" in str(fields)


FEW = [("2388x1024", GPT), ("320x320", GPT), ("1080x1350", "gpt-image-1"), ("1080x566", "dall-e-3")]
FEW += [("900x383", PRO), ("1280x720", GPT)]
ALL = itertools.product((row[0] for row in FITS[:20]), EVERY_MODEL)
ALL = [pytest.param(*row, marks=pytest.mark.long) for row in ALL]


@pytest.mark.parametrize(("wish", "model"), [*FEW, *ALL])
def test_fit(gateway: Gateway, run: Run, tmp_path: Path, wish: str, model: str) -> None:
    """Exactly these pixels, cut evenly on both sides; what the gateway sent is kept beside it."""
    gateway.answer(lambda received: bodies.answer_to(received, slope_for(received)))
    flags = ["--model", model, "--fit", wish, "--output", "cup.png"]
    facts, saved = run("--json", "--prompt", "x", *flags).json, Path("cup.png").read_bytes()
    sent = slope_for(gateway.calls[0])
    (width, height), came = pixels(wish), Image.open(io.BytesIO(sent)).size
    assert Image.open("cup.png").size == (facts["width"], facts["height"]) == (width, height)
    assert (facts["path"], facts["bytes"]) == (f"{tmp_path}/cup.png", len(saved))
    original = "cup.png" if came == (width, height) else "cup-original.png"
    assert Path(original).read_bytes() == sent
    assert facts["originals"] == [None if original == "cup.png" else f"{tmp_path}/{original}"]
    left, top, right, bottom = pictures.part_shown(saved)
    share = width * came[1] / height / came[0]  # of the two shapes
    shown = [min(1, share), min(1, 1 / share)]
    assert [right - left, bottom - top] == pytest.approx(shown, abs=0.02)
    assert [left + right, top + bottom] == pytest.approx([1, 1], abs=0.02)
    cut = 1 - min(shown)
    told = " ".join(facts["warnings"])
    assert ("cropped" in told) == (cut > 0.05) and (cut <= 0.03 or model != GPT)
    assert ("enlarged" in told) == (width > came[0] or height > came[1])


NAMED = [("a.png", "a.png", "a-original.jpeg"), ("a.jpg", "a.jpg", "a-original.jpeg")]
NAMED += [("a", "a", "a-original.jpeg"), ("b/", r"b/output-\d+.png", r"b/output-\d+-original.jpeg")]
NAMED += [("taken.webp", "taken.webp", "taken-original-2.jpeg")]


@pytest.mark.parametrize(("output", "fitted", "original"), NAMED)
def test_names_of_fitted_pictures(save: Run, output: str, fitted: str, original: str) -> None:
    """NAME-original.EXT, EXT from the bytes; what lies there may be the customer's photograph."""
    photograph = Path("taken-original.jpeg")
    photograph.write_bytes(OLD)
    data = pictures.orientation(6, size=(200, 300)).ljust(10_001, b"\0")  # stored as 300x200
    done = save(data, "--json", "--fit", "300x200", "--output", output)
    facts = done.json
    assert f"the original is kept at {facts['originals'][0]}\n" in done.err
    assert ["enlarged" in facts["warnings"][0], "56 %" in facts["warnings"][1]] == [True, True]
    assert re.fullmatch(fitted, os.path.relpath(facts["path"]))
    assert re.fullmatch(original, os.path.relpath(facts["originals"][0]))
    assert Path(facts["originals"][0]).read_bytes() == data
    assert pictures.upright(Path(facts["path"]).read_bytes())
    assert photograph.read_bytes() == OLD


def test_original_that_cannot_lie_beside_is_kept_elsewhere(
    save: Run, monkeypatch: pytest.MonkeyPatch, kept: Path
) -> None:
    """The fitted picture is where it was asked for: that is a success, with a warning."""
    store = generate.store

    def full(data: bytes, path: str, is_new: bool) -> str:
        if path.endswith("/cup-original.png"):
            raise OSError("the disk is full")
        return store(data, path, is_new)

    monkeypatch.setattr(generate, "store", full)
    data = noise()
    done = save(data, "--json", "--fit", "80x60", "--output", "cup.png")
    (original,) = done.json["originals"]
    assert (done.code, Path(original).read_bytes()) == (0, data)
    assert Path(original).parent == kept and original in done.json["warnings"][-1]


def test_three_are_fitted_in_a_library_too(gateway: Gateway, tmp_path: Path) -> None:
    """Colours are those that were meant; one that has the pixels already is left alone."""
    webp = pictures.display_p3(fmt="WEBP").ljust(10_001, b"\0")
    made = [pictures.display_p3(), noise(300, 400, "JPEG"), webp]
    gateway.answer(answer(*made))
    wish = {"fit": "300x400", "aspect_ratio": "3:2"}  # which is what is asked for
    done = generate.generate("a cup", GPT, output_path="cup.jpeg", n=3, **wish)
    assert gateway.calls[0].json["size"] == "1536x1024"
    assert [path.name for path in done.paths] == ["cup.jpeg", "cup-2.jpeg", "cup-3.jpeg"]
    names = [path and path.name for path in done.originals]
    assert names == ["cup-original.jpeg", None, "cup-3-original.webp"]
    assert [path.read_bytes() for path in done.paths] == done.images
    assert done.images[1] == made[1]
    assert [Image.open(path).size for path in done.paths] == [(300, 400)] * 3
    assert pictures.upright(done.images[0], 12) and pictures.upright(done.images[2], 12)
    assert [path.read_bytes() for path in done.originals if path] == [made[0], made[2]]


BAD_FITS = ["15x100", "100x15", "8193x100", "100x8193", "1080", "1080:1350", "1080X1350", "x", ""]


@pytest.mark.parametrize("wish", [*BAD_FITS, " 99x99", "-99x99", "99x99x9", "99.0x99", "९९x99"])
def test_pixels_that_are_none(gateway: Gateway, run: Run, wish: str) -> None:
    outcome = run("--prompt", "x", "--json", f"--fit={wish}")
    assert (outcome.code, gateway.requests) == (2, [])
    assert "--fit" in outcome.json["error"]["message"] and "8192" in outcome.json["error"]["hint"]
    assert run("--prompt", "x", "--dry-run", "--fit", "16x8192").code == 0


@pytest.mark.parametrize("name", generate.MODEL_BY_USE_CASE)
def test_use_case_is_no_more_than_a_wish(gateway: Gateway, run: Run, name: str) -> None:
    """`--model` wins; text-overlay beside a gemini model earns a warning: letters come garbled."""
    words = ["--prompt", "x", "--json", "--dry-run", "--use-case", name]
    assert run(*words, "--model", GPT).json["json"]["model"] == GPT
    facts = run(*words, "--model", PRO).json
    assert facts["json"]["model"] == PRO
    assert [GPT in line for line in facts["warnings"]] == [True] * (name == "text-overlay")
    assert run("--prompt", "x", "--use-case", name.title()).code == 2
