"""References: what reaches the gateway is upright, in sRGB, small enough, and labelled rightly."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, Callable

import generate
import pictures
import pytest
from conftest import Run, table
from gateway import Gateway, Reply
from pictures import REFUSED, REMADE, SAME, TRAPS
from PIL import Image

GPT = "gpt-image-2"
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
ENDINGS = {"PNG": {"png"}, "JPEG": {"jpg", "jpeg"}, "WEBP": {"webp"}}
LIMIT = 1_048_576
PNG = pictures.picture()
RESULT = base64.b64encode(pictures.picture(64, 64, noise=True)).decode()

GOOD = [name for name, trap in TRAPS.items() if trap.fate != REFUSED]
Send = Callable[[str, bytes], bytes]


@pytest.fixture
def send(gateway: Gateway, run: Run, tmp_path: Path) -> Send:
    """send(name, data): the program with this reference; returns the bytes that arrived."""
    gateway.answer_always(Reply(body={"data": [{"b64_json": RESULT}]}))

    def call(name: str, data: bytes) -> bytes:
        (tmp_path / name).write_bytes(data)
        flags = ["--model", GPT, f"--reference-image={name}", "--output", "result.png"]
        outcome = run("--prompt", "a cup", *flags)
        assert outcome.code == 0, outcome.err
        assert (tmp_path / name).read_bytes() == data, "the original is left alone"
        (part,) = gateway.calls[-1].files
        kind = opened(part.data).format
        assert part.content_type == MIME[kind]
        assert part.filename.isascii()
        assert part.filename.rpartition(".")[2] in ENDINGS[kind]
        return part.data

    return call


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", GOOD)
def test_good_picture_arrives_as_it_is_meant(send: Send, name: str) -> None:
    """Always ≤ 1024 px, ≤ 1 MiB, upright, in sRGB: or a product comes back lying on its side."""
    trap = TRAPS[name]
    data = send(name, trap.data)
    image = opened(data)
    assert max(image.size) <= 1024 and len(data) <= LIMIT
    if trap.fate == SAME:
        assert data == trap.data
    if trap.fate == REMADE:
        see_through = image.format in ("PNG", "WEBP") and image.mode == "RGBA"
        assert see_through or (image.format, image.mode) == ("JPEG", "RGB")
        assert see_through == (trap.transparent or name == "cutout.png")
        assert getattr(image, "n_frames", 1) == 1
        assert not image.getexif()
        assert not {"xmp", "icc_profile", "comment"} & set(image.info)
    if trap.tolerance:
        assert pictures.upright(data, trap.tolerance), pictures.corners(data)
        assert pictures.has_hole(data) == trap.transparent
    size = sorted(Image.open(io.BytesIO(trap.data)).size, reverse=name != "1x5000.png")
    scale = min(1, 1024 / max(size))
    if "noise" not in name:  # which alone must lose pixels to lose bytes
        assert image.size == pytest.approx([edge * scale for edge in size], abs=1)


@pytest.mark.parametrize("turn", range(1, 9))
def test_mask_lies_on_the_upright_picture(gateway: Gateway, run: Run, turn: int) -> None:
    """All eight EXIF orientations: the mask has the size that a viewer shows, and is sent so."""
    mask = pictures.picture(400, 300, "RGBA")
    Path("photo.jpg").write_bytes(pictures.orientation(turn))
    Path("mask.png").write_bytes(mask)
    flags = ["--model", GPT, "--reference-image", "photo.jpg", "--mask", "mask.png"]
    assert run("--prompt", "a cup", *flags).code == 0
    photo, sent = gateway.calls[0].files
    assert (opened(photo.data).size, sent.data) == ((400, 300), mask)


@pytest.mark.parametrize(
    ("real", "name"),
    [("PNG", "x.jpg"), ("JPEG", "x.PNG"), ("WEBP", "x.gif"), ("PNG", "x.sh"), ("WEBP", "x")],
)
def test_name_that_lies_does_not_become_a_label_that_lies(send: Send, real: str, name: str) -> None:
    """The MIME type and file extension of its real bytes."""
    data = pictures.picture(fmt=real)
    assert send(name, data) == data


@pytest.mark.parametrize("length", [LIMIT, LIMIT + 1])
@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_limit_of_bytes_is_exact(send: Send, fmt: str, length: int) -> None:
    data = pictures.padded(length, fmt)
    assert (send("padded", data) == data) == (length == LIMIT)


@pytest.mark.parametrize("size", [(1024, 1024), (1024, 1), (1, 1024), (1025, 1), (1, 1025)])
def test_limit_of_pixels_is_exact(send: Send, size: tuple[int, int]) -> None:
    data = pictures.picture(*size)
    sent = send("edge.png", data)
    assert (sent == data) == (max(size) == 1024)
    assert max(opened(sent).size) == 1024


def test_sixteen_bits_are_scaled_and_not_clipped(send: Send) -> None:
    """Pillow's own conversion turns everything but the darkest 1/256 into white."""
    image = opened(send("ramp.png", pictures.deep_ramp())).convert("L")
    for share in (0.02, 0.25, 0.5, 0.75, 0.98):
        seen = image.getpixel((int(share * (image.width - 1)), image.height // 2))
        assert seen == pytest.approx(255 * share, abs=4)


def test_invisible_colours_do_not_leak_into_the_edge(send: Send) -> None:
    """A cut-out product would get a dark rim."""
    assert pictures.darkest_fringe(send("cutout.png", pictures.cutout())) >= 235


def test_jpeg_quality_is_88_when_that_fits(send: Send) -> None:
    sent = send("large.jpg", pictures.picture(1280, 960, fmt="JPEG"))
    expected = opened(pictures.picture(fmt="JPEG", quality=88))
    assert opened(sent).quantization == expected.quantization


@pytest.mark.parametrize(
    ("mode", "size", "fmt"), [("RGB", (1024, 1024), "JPEG"), ("RGBA", (600, 500), "WEBP")]
)
def test_noise_loses_quality_before_pixels(send: Send, mode: str, size: Any, fmt: str) -> None:
    """Opaque → JPEG; with transparency WebP when the PNG is over the limit; then lower quality."""
    sent = send("noise.png", pictures.picture(*size, mode, noise=True))
    image = opened(sent)
    assert (image.format, image.mode, image.size) == (fmt, mode, size)
    assert len(sent) > 300_000


def test_gemini_gets_the_same_pictures_as_data_urls(gateway: Gateway, run: Run) -> None:
    """Prepared in parallel threads, nine references are all there, in order, as what they are."""
    names = ["plain.webp", "hole-large.png", *(f"exif-{turn}.jpg" for turn in range(2, 9))]
    for name in names:
        Path(name).write_bytes(TRAPS[name].data)
    assert run("--prompt", "x", *(f"--reference-image={name}" for name in names)).code == 0
    content = gateway.calls[0].json["messages"][0]["content"]
    assert len(content) == 1 + 9
    for part, name in zip(content[1:], names):
        head, _, encoded = part["image_url"]["url"].partition(";base64,")
        data = base64.b64decode(encoded, validate=True)
        assert data == generate.maybe_resize(name).data
        assert head == f"data:{MIME[opened(data).format]}"


def test_other_limits_hold_too() -> None:
    Path("noise.png").write_bytes(pictures.picture(300, 200, "RGBA", noise=True))
    for edge in (1, 256):
        assert max(opened(generate.maybe_resize("noise.png", max_dim=edge).data).size) == edge
    for limit in (2_000, 20_000, 100_000):
        data = generate.maybe_resize("noise.png", max_bytes=limit).data
        assert limit / 20 < len(data) <= limit


def test_heic_decoder_that_pillow_has_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has installed a decoder for telephone pictures may use it."""
    pillow_heif = pytest.importorskip("pillow_heif")
    for registry in ("ID", "OPEN", "SAVE", "EXTENSION", "MIME"):
        monkeypatch.setattr(Image, registry, getattr(Image, registry).copy())
    Path("photo.heic").write_bytes(pictures.heic())
    pillow_heif.register_heif_opener()
    data = generate.maybe_resize("photo.heic").data
    assert opened(data).format == "JPEG" and pictures.upright(data)


@pytest.mark.parametrize("name", ["~/home.png", "./real.png", "link.png", Path("real.png")])
def test_any_kind_of_path_will_do(gateway: Gateway, name: str | Path) -> None:
    for path in (Path.home() / "home.png", Path("real.png")):
        path.write_bytes(PNG)
    Path("link.png").symlink_to("real.png")
    generate.generate_openai("a cup", GPT, ref_images=[name])
    assert [part.data for part in gateway.calls[0].files] == [PNG]


def test_reference_may_be_the_output(gateway: Gateway, run: Run) -> None:
    """Editing in place: the old picture goes out, the new one replaces it."""
    Path("shoe.png").write_bytes(PNG)
    flags = ["--reference-image", "shoe.png", "--output", "shoe.png"]
    assert run("--prompt", "a cup", "--model", GPT, *flags).code == 0
    assert gateway.calls[0].files[0].data == PNG
    assert Image.open("shoe.png").size == (1024, 1024)


BAD = {
    **{name: trap.data for name, trap in TRAPS.items() if trap.fate == REFUSED},
    "png behind html.png": pictures.HTML.encode() + PNG,
    "png behind a blank.png": b"\n" + PNG,
    "zip.png": pictures.zipped(),
    "magic only.png": PNG[:8],
    "wave.webp": b"RIFF\x24\0\0\0WAVEfmt " + bytes(40),
    "no size.png": PNG[:16] + bytes(8) + PNG[24:],
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_sent_is_a_usage_error(gateway: Gateway, run: Run, name: str) -> None:
    """A usage error that names the file and what to do, before anything is sent."""
    Path("good.png").write_bytes(PNG)
    Path(name).write_bytes(BAD[name])
    outcome = run("--prompt", "x", "--reference-image=good.png", f"--reference-image={name}")
    assert (outcome.code, outcome.out, gateway.requests) == (2, "", [])
    message, hint = outcome.err.splitlines()
    assert name in message
    assert "good.png" not in outcome.err
    assert "PNG" in hint
    assert "0x" not in outcome.err, "no Python object shows"


@table(
    "name",
    {
        "missing": ("two\nlines \x1b[31m.png",),
        "folder": (".",),
        "device": ("/dev/null",),
        "circle of links": ("circle.png",),
        "too long": ("x" * 252 + ".png",),
        "file as a folder": ("good.png/x.png",),
    },
)
def test_what_is_no_file_is_a_usage_error(gateway: Gateway, run: Run, name: str) -> None:
    """Told in lines that all carry the program's prefix, whatever the name."""
    Path("good.png").write_bytes(PNG)
    Path("circle.png").symlink_to("circle.png")
    outcome = run("--json", "--prompt", "x", f"--reference-image={name}")
    error = outcome.json["error"]
    assert (outcome.code, error["kind"], error["billed"]) == (2, "usage", "no")
    assert error["hint"] == "Check the path."
    assert all(line.startswith("[image-gen] ") for line in outcome.err.splitlines())
    assert gateway.requests == []


@pytest.mark.parametrize(("status", "code"), [(200, 0), (500, 6), (400, 7)])
def test_no_temporary_file_outlives_the_run(
    gateway: Gateway, run: Run, kept: Path, status: int, code: int
) -> None:
    """No temporary file outlives the run, whatever ends it."""
    Path("large.png").write_bytes(TRAPS["large.png"].data)
    gateway.answer_always(Reply(status))
    flags = ["--reference-image", "large.png", "--attempts", "1", "--output", "out.jpeg"]
    assert run("--prompt", "a cup", *flags).code == code
    assert [*kept.iterdir(), *Path.cwd().glob(".*")] == []
