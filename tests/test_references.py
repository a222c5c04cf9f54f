"""References: what reaches the gateway is upright, in sRGB, small enough, and labelled as what it is."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable

import generate
import pictures
import pytest
from gateway import Gateway, Reply
from pictures import REFUSED, REMADE, SAME, TRAPS
from PIL import Image

GEMINI, GPT = "gemini-3-pro-image-preview", "gpt-image-2"
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp", "MPO": "image/jpeg"}
ENDINGS = {"PNG": {"png"}, "JPEG": {"jpg", "jpeg"}, "WEBP": {"webp"}, "MPO": {"jpg", "jpeg"}}
GOOD = [name for name, trap in TRAPS.items() if trap.fate != REFUSED]
BAD = [name for name, trap in TRAPS.items() if trap.fate == REFUSED]
SLOW = {"noise-1024-alpha.png", "noise-3000.png", "96-mp.jpg"}
LIMIT = 1_048_576
RESULT = {"data": [{"b64_json": base64.b64encode(pictures.picture(64, 64, noise=True)).decode()}]}


@pytest.fixture
def send(gateway: Gateway, run: Callable[..., Any], tmp_path: Path) -> Callable[..., bytes]:
    """send(name) gives one trap to the program as a reference; returns the bytes that arrived, checked for labels."""
    gateway.answer_always(Reply(body=RESULT))

    def call(name: str, data: bytes | None = None) -> bytes:
        (tmp_path / name).write_bytes(TRAPS[name].data if data is None else data)
        outcome = run("--prompt", "a cup", "--model", GPT, "--reference-image", name, "--output", "out.png")
        assert outcome.code == 0, outcome.err
        (part,) = gateway.calls[-1].files
        kind = Image.open(io.BytesIO(part.data)).format
        assert part.content_type == MIME[kind]
        assert str(part.filename).rpartition(".")[2] in ENDINGS[kind]
        return part.data

    return call


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def size_upright(name: str) -> tuple[int, int]:
    """The size of a trap's picture as a viewer shows it."""
    image = Image.open(io.BytesIO(TRAPS[name].data))
    turned = any(f"-{n}" in name for n in range(5, 9)) and name.startswith(("exif-", "xmp-"))
    known_turned = turned and not name.endswith(".tiff")  # Pillow turns these by itself
    return image.size[::-1] if known_turned else image.size


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in GOOD])
def test_every_good_picture_arrives_as_it_is_meant(send: Callable[..., bytes], name: str) -> None:
    """A product that arrives lying on its side, or in false colours, comes back so."""
    trap = TRAPS[name]
    data = send(name)
    image = opened(data)
    assert image.format in MIME
    assert max(image.size) <= 1024
    assert len(data) <= LIMIT
    if trap.fate == SAME:
        assert data == trap.data
        return
    if trap.fate == REMADE:
        assert getattr(image, "n_frames", 1) == 1
        assert not image.getexif()
        assert not {"xmp", "icc_profile", "comment"} & set(image.info)
        assert image.mode in ("RGB", "RGBA")
        see_through = trap.transparent or name in ("noise-1024-alpha.png", "cutout.png")
        assert image.format in (("PNG", "WEBP") if see_through else ("JPEG",))
    if trap.tolerance:
        assert pictures.upright(data, trap.tolerance), pictures.corners(data)
        assert pictures.has_hole(data) == trap.transparent
    width, height = size_upright(name)  # never enlarged, never squeezed, no smaller than need be
    longest = max(width, height)
    wanted = max(image.size) if "noise" in name else min(longest, 1024)
    assert image.size == pytest.approx((width * wanted / longest, height * wanted / longest), abs=1)
    assert wanted <= min(longest, 1024)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("model", [GEMINI, GPT])
def test_what_cannot_be_sent_is_a_usage_error_that_names_the_file(
    gateway: Gateway, run: Callable[..., Any], tmp_path: Path, name: str, model: str
) -> None:
    (tmp_path / "good.png").write_bytes(pictures.picture())
    (tmp_path / name).write_bytes(TRAPS[name].data)
    references = ["--reference-image", "good.png", "--reference-image", name]
    outcome = run("--prompt", "a cup", "--model", model, *references)
    assert (outcome.code, outcome.out) == (2, "")
    assert gateway.requests == []
    message, hint = outcome.err.splitlines()
    assert name in message
    assert "good.png" not in outcome.err
    assert message.endswith(".")
    assert "PNG" in hint, "what to do"
    assert "Traceback" not in outcome.err
    assert "0x" not in outcome.err, "no Python object shows"


@pytest.mark.parametrize("name", ["exif-6.jpg", "p3.png", "hole-large.png", "plain.webp", "frames-1280.gif"])
def test_gemini_gets_the_same_pictures_as_data_urls(
    gateway: Gateway, run: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    (tmp_path / name).write_bytes(TRAPS[name].data)
    assert run("--prompt", "a cup", "--reference-image", name).code == 0
    url = gateway.calls[0].json["messages"][0]["content"][1]["image_url"]["url"]
    head, _, encoded = url.partition(";base64,")
    data = base64.b64decode(encoded, validate=True)
    assert head == f"data:{MIME[opened(data).format]}"
    assert data == generate.maybe_resize(tmp_path / name).data
    assert pictures.upright(data)


@pytest.mark.parametrize("said", ["png", "jpg", "webp", "gif", "txt", "JPEG", ""])
@pytest.mark.parametrize("real", ["PNG", "JPEG", "WEBP"])
def test_a_file_name_that_lies_does_not_become_a_label_that_lies(
    send: Callable[..., bytes], real: str, said: str
) -> None:
    """Downloads are often called .png whatever they are; gateways refuse a label that is not true."""
    data = pictures.picture(fmt=real)
    assert send(f"photo.{said}" if said else "photo", data) == data


@pytest.mark.parametrize("length", [LIMIT - 1, LIMIT, LIMIT + 1], ids=["just under", "exact", "just over"])
@pytest.mark.parametrize("fmt", ["PNG", "JPEG"])
def test_the_limit_of_bytes_is_exact(send: Callable[..., bytes], fmt: str, length: int) -> None:
    data = pictures.padded(length, fmt)
    assert (send("padded", data) == data) == (length <= LIMIT)


@pytest.mark.parametrize("size", [(1024, 1024), (1024, 1), (1, 1024), (1025, 1), (1, 1025), (1025, 1024)])
def test_the_limit_of_pixels_is_exact(send: Callable[..., bytes], size: tuple[int, int]) -> None:
    data = pictures.picture(*size)
    sent = send("edge.png", data)
    assert (sent == data) == (max(size) <= 1024)
    assert max(opened(sent).size) == min(1024, max(size))


def test_sixteen_bits_are_scaled_and_not_clipped(send: Callable[..., bytes]) -> None:
    """Pillow's own conversion turns everything but the darkest 1/256 into white."""
    image = opened(send("16-bit-ramp.png")).convert("L")
    for share in (0.02, 0.25, 0.5, 0.75, 0.98):
        assert image.getpixel((int(share * (image.width - 1)), image.height // 2)) == pytest.approx(255 * share, abs=4)


def test_invisible_colours_do_not_leak_into_the_edge(send: Callable[..., bytes]) -> None:
    """A cut-out product would get a dark rim."""
    assert pictures.darkest_fringe(send("cutout.png")) >= 235


@pytest.mark.slow
def test_transparency_that_does_not_fit_as_png_goes_as_webp(send: Callable[..., bytes]) -> None:
    image = opened(send("noise-1024-alpha.png"))
    assert (image.format, image.mode) == ("WEBP", "RGBA")
    assert image.getchannel("A").getextrema()[0] < 128


def test_an_opaque_alpha_channel_is_no_transparency(send: Callable[..., bytes]) -> None:
    assert opened(send("opaque-alpha.png")).format == "JPEG"


def test_jpeg_quality_is_88_when_that_fits(send: Callable[..., bytes]) -> None:
    tables = Image.open(io.BytesIO(pictures.picture(fmt="JPEG", quality=88, subsampling=-1))).quantization
    assert Image.open(io.BytesIO(send("large.png"))).quantization == tables


def test_noise_loses_quality_before_it_loses_pixels(send: Callable[..., bytes]) -> None:
    data = send("noise-1024.png")
    assert len(data) > 300_000, "no smaller than need be"


# --- The function itself ---


@pytest.mark.parametrize("edge", [1, 7, 100, 512, 768])
@pytest.mark.parametrize("name", ["large.png", "hole-large.png", "exif-6-large.jpg", "noise-1024.png"])
def test_another_limit_of_pixels_holds_too(tmp_path: Path, name: str, edge: int) -> None:
    path = tmp_path / name
    path.write_bytes(TRAPS[name].data)
    assert max(opened(generate.maybe_resize(path, max_dim=edge).data).size) == edge


@pytest.mark.parametrize("limit", [2_000, 20_000, 100_000])
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_another_limit_of_bytes_holds_too(tmp_path: Path, mode: str, limit: int) -> None:
    path = tmp_path / "noise.png"
    path.write_bytes(pictures.picture(300, 200, mode, noise=True))
    reference = generate.maybe_resize(path, max_bytes=limit)
    assert limit / 20 < len(reference.data) <= limit


@pytest.mark.parametrize("kind", ["str", "Path", "home", "relative", "link"])
def test_any_kind_of_path_will_do(gateway: Gateway, run: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    data = pictures.picture()
    (tmp_path / "ref.png").write_bytes(data)
    (Path.home() / "ref.png").write_bytes(data)
    (tmp_path / "link.png").symlink_to("ref.png")
    names = {"str": str(tmp_path / "ref.png"), "Path": tmp_path / "ref.png", "home": "~/ref.png"}
    name = {**names, "relative": "./ref.png", "link": "link.png"}[kind]
    gateway.answer_always(Reply(body=RESULT))
    assert run("--prompt", "a cup", "--model", GPT, "--reference-image", name, "--output", "out.png").code == 0
    generate.generate_openai("a cup", GPT, ref_images=[name])
    assert [[part.data for part in call.files] for call in gateway.calls] == [[data], [data]]


@pytest.mark.parametrize("name", ["ref é 茶 🍵.png", "-dash.png", "quo'te\".png", "a;b&c|d$e.png", "new\nline.png"])
def test_a_strange_file_name_is_not_sent(gateway: Gateway, run: Callable[..., Any], tmp_path: Path, name: str) -> None:
    """Multipart file names with such letters are read differently everywhere; and they are private."""
    (tmp_path / name).write_bytes(pictures.picture())
    assert run("--prompt", "a cup", "--model", GPT, f"--reference-image={name}").code == 0
    (part,) = gateway.calls[0].files
    assert str(part.filename).isascii()
    assert name not in gateway.calls[0].body.decode("latin-1")


def test_the_original_files_are_left_alone(gateway: Gateway, run: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("exif-6-large.jpg", "large.png"):
        (tmp_path / name).write_bytes(TRAPS[name].data)
    argv = ["--reference-image", "exif-6-large.jpg", "--reference-image", "large.png"]
    assert run("--prompt", "a cup", *argv, "--output", "out.jpeg").code == 0
    assert all((tmp_path / name).read_bytes() == TRAPS[name].data for name in ("exif-6-large.jpg", "large.png"))


def test_a_reference_may_be_the_output(gateway: Gateway, run: Callable[..., Any], tmp_path: Path) -> None:
    """Editing in place: the old picture goes out, the new one replaces it."""
    data = pictures.picture()
    (tmp_path / "shoe.png").write_bytes(data)
    argv = ["--model", GPT, "--reference-image", "shoe.png", "--output", "shoe.png"]
    assert run("--prompt", "a cup", *argv).code == 0
    assert gateway.calls[0].files[0].data == data
    assert (tmp_path / "shoe.png").read_bytes() != data
    assert opened((tmp_path / "shoe.png").read_bytes()).size == (1024, 1024)


@pytest.mark.parametrize("answer", [None, Reply(500), Reply(400)], ids=["saved", "unavailable", "rejected"])
def test_no_temporary_file_outlives_a_run(
    gateway: Gateway, cli: Callable[..., Any], tmp_path: Path, answer: Reply | None
) -> None:
    for name in ("large.png", "exif-6-large.jpg", "cut.jpg"):
        (tmp_path / name).write_bytes(TRAPS[name].data)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    if answer:
        gateway.answer_always(answer)
    good = ["--reference-image", "large.png", "--reference-image", "exif-6-large.jpg", "--attempts", "1"]
    for argv in (good, [*good, "--reference-image", "cut.jpg"]):
        env = {"TMPDIR": str(temporary)}
        outcome = cli("--prompt", "a cup", *argv, "--output", "out.jpeg", env=env)
        assert outcome.code == (2 if "cut.jpg" in argv else {None: 0, 500: 6, 400: 7}[answer and answer.status])
    assert list(temporary.iterdir()) == []
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_after_a_524_the_references_get_smaller(
    gateway: Gateway, run: Callable[..., Any], tmp_path: Path, short_waits: None
) -> None:
    """An edge proxy gives up after 100 s; a smaller picture is faster."""
    (tmp_path / "large.png").write_bytes(TRAPS["large.png"].data)
    (tmp_path / "small.png").write_bytes(pictures.picture(300, 200))
    gateway.answer(Reply(524), Reply(524))
    argv = ["--model", GPT, "--reference-image", "large.png", "--reference-image", "small.png"]
    assert run("--prompt", "a cup", *argv).code == 0
    sizes = [[opened(part.data).size for part in call.files] for call in gateway.calls]
    assert sizes == [[(edge, edge * 3 // 4), (300, 200)] for edge in (1024, 768, 512)]


def test_a_heic_decoder_that_pillow_has_is_used(tmp_path: Path) -> None:
    """Who has installed a decoder for telephone pictures may use it."""
    path = tmp_path / "photo.heic"
    path.write_bytes(TRAPS["photo.heic"].data)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import generate, pillow_heif; pillow_heif.register_heif_opener()\n"
        "reference = generate.maybe_resize(sys.argv[2])\n"
        "sys.stdout.buffer.write(reference.data)"
    )
    scripts = str(Path(generate.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code, scripts, str(path)], capture_output=True, check=True, timeout=30)
    assert opened(done.stdout).format == "JPEG"
    assert pictures.upright(done.stdout)


@pytest.mark.slow
def test_nine_large_references_are_all_there_in_order(
    gateway: Gateway, run: Callable[..., Any], tmp_path: Path
) -> None:
    argv, wanted = [], []
    for number in range(9):
        (tmp_path / f"{number}.jpg").write_bytes(pictures.picture(1500 + 10 * number, 1000, fmt="JPEG"))
        argv += ["--reference-image", f"{number}.jpg"]
        wanted.append(generate.maybe_resize(tmp_path / f"{number}.jpg").data)
    assert run("--prompt", "a cup", *argv).code == 0
    content = gateway.calls[0].json["messages"][0]["content"]
    sent = [base64.b64decode(part["image_url"]["url"].partition(",")[2]) for part in content[1:]]
    assert sent == wanted
    assert len(set(sent)) == 9
