"""Saving: the bytes that were paid for, under the name that was asked for, whole or not at all."""

from __future__ import annotations

import base64
import io
import os
import re
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable

import generate
import pictures
import pytest
from gateway import Gateway, Reply
from PIL import Image

GEMINI, GPT = "gemini-3-pro-image-preview", "gpt-image-2"
OLD = b"what was there before"
EXTENSIONS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".jfif": "JPEG",
    ".webp": "WEBP",
    ".gif": "GIF",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".PNG": "PNG",
    ".JPG": "JPEG",
    ".WebP": "WEBP",
}


def noise(width: int = 160, height: int = 120, mode: str = "RGB", fmt: str = "PNG") -> bytes:
    """A picture that no encoder gets below 10,000 bytes."""
    return pictures.picture(width, height, mode, fmt, noise=True)


def answer(*images: bytes) -> Reply:
    """An image endpoint's answer with these pictures."""
    return Reply(body={"data": [{"b64_json": base64.b64encode(image).decode()} for image in images]})


@pytest.fixture
def save(gateway: Gateway, run: Callable[..., Any]) -> Callable[..., Any]:
    """save(picture, …, flags) runs the program against a gateway that makes these pictures."""

    def call(*words: object) -> Any:
        images = [word for word in words if isinstance(word, bytes)]
        gateway.answer(answer(*images))
        flags = [word for word in words if not isinstance(word, bytes)]
        return run("--prompt", "a cup", "--model", GPT, *flags)

    return call


def warnings(outcome: Any) -> list[str]:
    return [line for line in outcome.err.splitlines() if "warning" in line]


def hidden(folder: Path) -> list[str]:
    """Temporary files that were left behind."""
    return [
        path.name for path in folder.rglob("*") if path.name.startswith(".") or path.name.endswith((".part", ".tmp"))
    ]


# --- Formats ---


@pytest.mark.parametrize(
    ("fmt", "name"),
    [("PNG", "cup.png"), ("PNG", "cup.PNG"), ("JPEG", "cup.jpg"), ("JPEG", "cup.jpeg"), ("JPEG", "cup.JPEG")]
    + [("WEBP", "cup.webp"), ("GIF", "cup.gif"), ("BMP", "cup.bmp"), ("TIFF", "cup.tiff"), ("TIFF", "cup.tif")]
    + [(fmt, name) for fmt in ("PNG", "JPEG", "WEBP") for name in ("cup", "cup.", ".cup")],
)
def test_bytes_that_fit_their_name_are_written_untouched(save: Any, tmp_path: Path, fmt: str, name: str) -> None:
    """Every re-encoding of a JPEG costs quality, and drops what the gateway wrote about the picture's origin."""
    data = noise(fmt=fmt)
    outcome = save(data, "--output", name)
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / name}\n")
    assert (tmp_path / name).read_bytes() == data
    assert hidden(tmp_path) in ([], [name] if name.startswith(".") else [])


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP", "GIF"])
@pytest.mark.parametrize("extension", EXTENSIONS)
def test_a_file_is_what_its_name_says(save: Any, tmp_path: Path, extension: str, fmt: str) -> None:
    """Gateways send a JPEG when a PNG was asked for; programs down the line trust the extension."""
    data = noise(fmt=fmt)
    assert save(data, "--output", f"cup{extension}").code == 0
    saved = (tmp_path / f"cup{extension}").read_bytes()
    image = Image.open(io.BytesIO(saved))
    image.load()
    assert image.format == EXTENSIONS[extension]
    assert image.size == (160, 120)
    assert (saved == data) == (image.format == fmt)


@pytest.mark.parametrize("extension", [".png", ".webp", ".tiff", ".bmp"])
def test_colours_survive_re_encoding(save: Any, tmp_path: Path, extension: str) -> None:
    data = pictures.picture(400, 300, fmt="JPEG", comment=b"x" * 12_000)
    extra = 0 if extension != ".webp" else 12
    outcome = save(data, "--output", f"cup{extension}")
    saved = tmp_path / f"cup{extension}"
    assert outcome.code in (0, 7)  # the motif compresses well: small files are kept and reported
    assert pictures.upright(saved.read_bytes(), tolerance=20 + extra)


def test_jpeg_is_re_encoded_at_quality_95(save: Any, tmp_path: Path) -> None:
    assert save(noise(), "--output", "cup.jpg").code == 0
    expected = Image.open(io.BytesIO(pictures.picture(fmt="JPEG", quality=95))).quantization
    assert Image.open(tmp_path / "cup.jpg").quantization == expected


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("fmt", ["PNG", "WEBP"])
def test_transparency_goes_onto_white_in_a_jpeg_with_a_warning(save: Any, tmp_path: Path, mode: str, fmt: str) -> None:
    """A product cut out on nothing must not come back on black."""
    data = pictures.picture(640, 480, mode, fmt)
    outcome = save(data, "--output", "cup.jpg", "--size", "1024x768")
    image = Image.open(tmp_path / "cup.jpg")
    assert image.mode in ("RGB", "L")
    assert min(Image.open(tmp_path / "cup.jpg").convert("RGB").getpixel((320, 240))) >= 250
    assert pictures.upright((tmp_path / "cup.jpg").read_bytes(), tolerance=20)
    assert len(warnings(outcome)) == 1
    assert re.search("transparen", warnings(outcome)[0])


@pytest.mark.parametrize("extension", [".webp", ".png", ".tiff", ".gif"])
def test_transparency_stays_where_the_format_can_hold_it(save: Any, tmp_path: Path, extension: str) -> None:
    fmt = "WEBP" if extension != ".webp" else "PNG"
    outcome = save(pictures.picture(1024, 1024, "RGBA", fmt), "--output", f"cup{extension}")
    assert pictures.has_hole((tmp_path / f"cup{extension}").read_bytes())
    assert not warnings(outcome)


def test_an_opaque_alpha_channel_is_no_reason_to_warn(save: Any, tmp_path: Path) -> None:
    data = pictures.encoded(pictures.motif((1024, 1024)).convert("RGBA"), "PNG")
    outcome = save(data, "--output", "cup.jpg")
    assert Image.open(tmp_path / "cup.jpg").mode == "RGB"
    assert not warnings(outcome)


# --- Names ---


@pytest.mark.parametrize(("model", "ending", "fmt"), [(GPT, "png", "PNG"), (GEMINI, "jpeg", "JPEG")])
@pytest.mark.parametrize("output", [None, "folder", "folder/", "new/", "new/er/", "./", "~/", "~"])
def test_default_names(
    gateway: Gateway, run: Any, tmp_path: Path, output: str | None, model: str, ending: str, fmt: str
) -> None:
    (tmp_path / "folder").mkdir()
    flags = [] if output is None else ["--output", output]
    outcome = run("--prompt", "a cup", "--model", model, *flags)
    assert outcome.code == 0
    path = Path(outcome.out.strip())
    assert path.is_absolute()
    assert path.parent == Path(os.path.abspath(os.path.expanduser(output or ".")))
    assert re.fullmatch(rf"output-\d{{10}}\.{ending}", path.name)
    assert Image.open(path).format == fmt


def test_default_names_in_the_same_second_do_not_collide(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    """Ten runs from a loop: ten pictures."""
    paths = [run("--prompt", f"cup {number}", "--model", GPT).out.strip() for number in range(5)]
    assert len(set(paths)) == len(list(tmp_path.glob("output-*.png"))) == 5
    assert len({Path(path).read_bytes() for path in paths}) == 5


def test_default_names_of_many_runs_at_once_do_not_collide(gateway: Gateway, tmp_path: Path) -> None:
    """Thirty threads that start in the same second, in the same folder."""
    picture = [noise(100 + number, 100) for number in range(30)]
    barrier = threading.Barrier(30)

    def one(number: int) -> Path:
        barrier.wait()
        return generate.generate_image(f"{number}", GPT)

    gateway.answer_always(lambda received: answer(picture[int(received.json["prompt"])]))
    with ThreadPoolExecutor(30) as pool:
        paths = list(pool.map(one, range(30)))
    assert [path.read_bytes() for path in paths] == picture
    assert len(list(tmp_path.iterdir())) == 30


def test_a_taken_default_name_is_left_alone(save: Any, tmp_path: Path) -> None:
    now = int(time.time())
    taken = [tmp_path / f"output-{second}.png" for second in range(now, now + 30)]
    for path in taken:
        path.write_bytes(OLD)
    outcome = save(noise())
    path = Path(outcome.out.strip())
    assert re.fullmatch(r"output-\d{10}-2\.png", path.name)
    assert all(other.read_bytes() == OLD for other in taken)


@pytest.mark.parametrize(
    ("output", "names"),
    [
        ("cup.png", ["cup.png", "cup-2.png", "cup-3.png"]),
        ("cup", ["cup", "cup-2", "cup-3"]),
        ("c.u.p.webp", ["c.u.p.webp", "c.u.p-2.webp", "c.u.p-3.webp"]),
        ("new/cup-2.jpg", ["new/cup-2.jpg", "new/cup-2-2.jpg", "new/cup-2-3.jpg"]),
    ],
)
def test_several_images_are_numbered_before_the_extension(
    save: Any, tmp_path: Path, output: str, names: list[str]
) -> None:
    images = [noise(160 + 16 * number, 120) for number in range(3)]
    outcome = save(*images, "--n", "3", "--output", output)
    assert outcome.out.splitlines() == [str(tmp_path / name) for name in names]
    assert [Image.open(tmp_path / name).size for name in names] == [(160, 120), (176, 120), (192, 120)]


def test_several_images_under_default_names(save: Any, tmp_path: Path) -> None:
    images = [noise(160 + number, 120) for number in range(3)]
    lines = save(*images, "--n", "3").out.splitlines()
    assert [Path(line).read_bytes() for line in lines] == images
    assert lines[1:] == [lines[0].replace(".png", f"-{number}.png") for number in (2, 3)]


def test_fewer_images_than_asked_for_are_saved_with_a_warning(save: Any, tmp_path: Path) -> None:
    outcome = save(noise(), noise(), "--n", "4", "--output", "cup.png")
    assert outcome.code == 0
    assert len(outcome.out.splitlines()) == 2
    assert [line for line in warnings(outcome) if "2" in line and "4" in line]


def test_all_images_of_a_generous_gateway_are_saved(save: Any, tmp_path: Path) -> None:
    """All are paid for."""
    assert len(save(noise(), noise(), "--output", "cup.png").out.splitlines()) == 2


# --- Places ---


@pytest.mark.parametrize("output", ["a/b/c/cup.png", "./a/../b/cup.png", "~/new/cup.png", "a blank/'q\" é 茶/cup.png"])
def test_parents_are_created(save: Any, tmp_path: Path, output: str) -> None:
    outcome = save(noise(), "--output", output)
    assert outcome.out == os.path.abspath(os.path.expanduser(output)) + "\n"
    assert Path(outcome.out.strip()).stat().st_size > 10_000


@pytest.mark.parametrize("code", [400, 401, 500], ids=str)
def test_a_failure_leaves_no_folder_and_no_file(gateway: Gateway, run: Any, tmp_path: Path, code: int) -> None:
    gateway.answer(Reply(code))
    assert run("--prompt", "a cup", "--output", "new/cup.png").code != 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o664, 0o755], ids=oct)
def test_an_existing_file_is_replaced_and_keeps_its_permissions(save: Any, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "cup.png"
    path.write_bytes(OLD)
    path.chmod(mode)
    data = noise()
    assert save(data, "--output", "cup.png").code == 0
    assert path.read_bytes() == data
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
@pytest.mark.parametrize("output", ["cup.png", None], ids=["asked", "default"])
def test_a_new_file_has_the_permissions_that_any_new_file_has(
    save: Any, tmp_path: Path, umask: int, output: str | None
) -> None:
    """Temporary files are private; pictures are for the web server, too."""
    before = os.umask(umask)
    try:
        path = Path(save(noise(), *(["--output", output] if output else [])).out.strip())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda link, target: link.symlink_to(target), id="absolute link"),
        pytest.param(lambda link, target: link.symlink_to(os.path.relpath(target, link.parent)), id="relative link"),
    ],
)
@pytest.mark.parametrize("existing", [True, False], ids=["to a file", "dangling"])
def test_a_link_is_written_through(save: Any, tmp_path: Path, make: Any, existing: bool) -> None:
    """current.png → releases/7/cup.png stays a link."""
    target, link = tmp_path / "real" / "target.png", tmp_path / "cup.png"
    target.parent.mkdir()
    if existing:
        target.write_bytes(OLD)
    make(link, target)
    data = noise()
    outcome = save(data, "--output", "cup.png")
    assert (outcome.code, outcome.out) == (0, f"{link}\n")
    assert link.is_symlink()
    assert target.read_bytes() == data
    assert hidden(tmp_path) == []


def test_a_folder_may_be_a_link(save: Any, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    data = noise()
    assert save(data, "--output", "link/cup.png").code == 0
    assert (tmp_path / "real" / "cup.png").read_bytes() == data
    assert save(data, "--output", "link").out.startswith(f"{tmp_path}/link/output-")


def test_a_link_in_a_circle_is_a_usage_error(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    (tmp_path / "cup.png").symlink_to("other.png")
    (tmp_path / "other.png").symlink_to("cup.png")
    outcome = run("--prompt", "a cup", "--output", "cup.png")
    assert (outcome.code, outcome.out) == (2, "")
    assert gateway.requests == []


def test_the_folder_is_clean_afterwards(save: Any, tmp_path: Path) -> None:
    assert save(noise(), noise(), "--n", "2", "--output", "new/cup.jpg").code == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cup-2.jpg", "cup.jpg", "new"]


def test_a_file_is_whole_old_or_whole_new_at_every_moment(gateway: Gateway, tmp_path: Path) -> None:
    """Somebody who looks while the picture is replaced never sees half of one."""
    path = tmp_path / "cup.png"
    versions = [noise(400, 300 + number) for number in range(8)]
    path.write_bytes(versions[0])
    gateway.answer(*map(answer, versions[1:]))
    seen, done = set(), threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        for _ in versions[1:]:
            generate.generate_image("a cup", GPT, output_path=path)
    finally:
        done.set()
        watcher.join()
    assert seen <= set(versions)
    assert len(seen) > 1
    assert path.read_bytes() == versions[-1]


# --- When it goes wrong ---


def test_the_folder_that_went_away_is_made_again(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    data = noise()

    def sabotage(_: Any) -> Reply:
        (tmp_path / "out").rmdir()
        return answer(data)

    (tmp_path / "out").mkdir()
    gateway.answer(sabotage)
    assert run("--prompt", "a cup", "--model", GPT, "--output", "out/cup.png").code == 0
    assert (tmp_path / "out" / "cup.png").read_bytes() == data


@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "WEBP"])
def test_a_picture_that_cannot_be_stored_is_kept_byte_for_byte(
    gateway: Gateway, run: Any, tmp_path: Path, kept: Path, fmt: str
) -> None:
    data = noise(fmt=fmt)

    def sabotage(_: Any) -> Reply:
        (tmp_path / "out").rmdir()
        (tmp_path / "out").write_bytes(OLD)
        return answer(data)

    (tmp_path / "out").mkdir()
    gateway.answer(sabotage)
    outcome = run("--prompt", "a cup", "--model", GPT, "--output", "out/cup.png", "--json")
    assert outcome.code == 8
    error = outcome.json["error"]
    (path,) = kept.iterdir()
    assert (error["kind"], error["billed"], error["saved_at"]) == ("save", "yes", str(path))
    assert path.read_bytes() == data
    assert path.suffix in (".png", ".jpeg", ".jpg", ".webp")
    assert str(tmp_path / "out" / "cup.png") in error["message"]
    assert str(path) in error["message"] + error["hint"]
    assert str(path) in outcome.err
    assert (tmp_path / "out").read_bytes() == OLD


def test_of_several_pictures_every_one_is_saved_or_kept(gateway: Gateway, run: Any, tmp_path: Path, kept: Path) -> None:
    """The second name turns out to be a folder: one picture on disk, one kept, none lost."""
    images = [noise(160, 120), noise(176, 120), noise(192, 120)]
    (tmp_path / "cup-2.png").mkdir()
    gateway.answer(answer(*images))
    outcome = run("--prompt", "a cup", "--model", GPT, "--n", "3", "--output", "cup.png", "--json")
    saved = [path.read_bytes() for path in sorted(tmp_path.glob("cup*.png")) if path.is_file()]
    assert sorted(saved + [path.read_bytes() for path in kept.iterdir()]) == sorted(images)
    assert outcome.code == 8
    everything = outcome.json["error"]["message"] + outcome.json["error"]["hint"]
    assert all(str(path) in everything for path in [tmp_path / "cup.png", *kept.iterdir()])


@pytest.mark.parametrize(
    ("size", "code"), [(9_999, 7), (10_000, 7), (10_001, 0)], ids=["under", "exactly 10,000 bytes", "over"]
)
@pytest.mark.parametrize("flags", [["--output", "cup.png"], []], ids=["asked", "default"])
def test_a_file_too_small_to_be_real_is_kept_and_reported(
    save: Any, tmp_path: Path, size: int, code: int, flags: list[str]
) -> None:
    data = pictures.padded(size, "PNG")
    outcome = save(data, *flags, "--json")
    assert outcome.code == code
    (path,) = tmp_path.glob("*.png")
    assert path.read_bytes() == data
    if code:
        error = outcome.json["error"]
        assert (error["kind"], error["billed"], error["saved_at"]) == ("response", "yes", str(path))
        assert str(size) in error["message"].replace(",", "")
        assert str(path) in error["message"] + error["hint"]


def test_the_library_reports_it_too(gateway: Gateway, tmp_path: Path) -> None:
    gateway.answer(answer(pictures.padded(9_000, "PNG")))
    with pytest.raises(generate.ResponseError) as caught:
        generate.generate_image("a cup", GPT, output_path="cup.png")
    assert caught.value.saved_at == str(tmp_path / "cup.png")
    assert (tmp_path / "cup.png").stat().st_size == 9_000


# --- What is said afterwards ---

SHAPES = {  # name: flags, model, picture's size, is it off
    "as asked": (["--aspect-ratio", "16:9"], GPT, (1600, 900), False),
    "as asked, of another size": (["--aspect-ratio", "16:9"], GPT, (320, 180), False),
    "four percent off": (["--aspect-ratio", "1:1"], GPT, (208, 200), False),
    "six percent off": (["--aspect-ratio", "1:1"], GPT, (212, 200), True),
    "six percent off, upright": (["--aspect-ratio", "1:1"], GPT, (200, 213), True),
    "lying for standing": (["--aspect-ratio", "9:16"], GPT, (320, 180), True),
    "square for wide": (["--aspect-ratio", "21:9"], GPT, (200, 200), True),
    "square for wide, gemini": (["--aspect-ratio", "16:9"], GEMINI, (200, 200), True),
    "as asked, gemini": (["--aspect-ratio", "4:5"], GEMINI, (160, 200), False),
    "nothing asked, gemini": ([], GEMINI, (160, 120), False),
    "another shape than the size": (["--size", "1536x1024"], GPT, (200, 200), True),
    "the size's shape": (["--size", "1536x1024"], GPT, (300, 200), False),
    "auto": (["--size", "auto"], GPT, (300, 200), False),
    "nearest of gpt-image-1": (["--aspect-ratio", "16:9"], "gpt-image-1", (1536, 1024), True),
}


@pytest.mark.parametrize(("flags", "model", "size", "off"), SHAPES.values(), ids=SHAPES)
def test_a_picture_of_another_shape_is_warned_of(
    gateway: Gateway, run: Any, flags: list[str], model: str, size: tuple[int, int], off: bool
) -> None:
    """A banner in a square costs the user a second call: better told than found out."""
    data = base64.b64encode(noise(*size)).decode()
    chat = {"choices": [{"message": {"content": f"![image](data:image/png;base64,{data})"}}]}
    gateway.answer(Reply(body={"data": [{"b64_json": data}]} if model != GEMINI else chat))
    outcome = run("--prompt", "a cup", "--model", model, *flags)
    assert outcome.code == 0
    told = [line for line in warnings(outcome) if f"{size[0]}x{size[1]}" in line]
    assert len(told) == off
    assert not told or flags[1] in told[0]


def test_one_line_says_all_about_the_picture(gateway: Gateway, run: Any, tmp_path: Path) -> None:
    """Source, time, size, tokens, cost and path: what a user adds up in the evening."""
    outcome = run("--prompt", "a cup", "--model", GPT, "--output", "cup.png")
    (line,) = [line for line in outcome.err.splitlines() if str(tmp_path / "cup.png") in line]
    size = (tmp_path / "cup.png").stat().st_size
    for fact in ("OMNIMAAS_API_KEY", r"\d+\.\d s", str(size), "1024x1024", r"\d+ tokens", r"0\.35"):
        assert re.search(fact, line.replace(",", "")), fact


def test_tokens_and_time_of_several_pictures_are_those_of_all(gateway: Gateway, run: Any) -> None:
    """Four lines with the whole call's tokens on each would be added up to four times of what was spent."""
    outcome = run("--prompt", "a cup", "--model", GPT, "--n", "2", "--output", "cup.png")
    lines = [line for line in outcome.err.splitlines() if "saved" in line]
    assert [re.search(r"tokens for all 2, about 0\.35 CNY", line) is not None for line in lines] == [True, True]


def test_unknown_tokens_and_costs_are_called_so(gateway: Gateway, run: Any) -> None:
    gateway.answer(answer(noise()))
    outcome = run("--prompt", "a cup", "--model", "gpt-image-9", "--output", "cup.png")
    (line,) = [line for line in outcome.err.splitlines() if "cup.png" in line and "warning" not in line]
    assert len(re.findall(r"(\?|unknown) (tokens|CNY)", line)) == 2
    assert not re.search(r"None|\b0(\.0)? (tokens|CNY)", line)
