"""References: what reaches the gateway is upright, in sRGB, small enough, and labelled rightly."""

from __future__ import annotations

import io
import math
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Callable

import bodies
import generate
import pictures
import pytest
from conftest import Run, table
from gateway import Gateway, Reply
from pictures import REFUSED, REMADE, SAME, TRAPS
from PIL import Image, ImageChops, ImageStat, JpegImagePlugin

GPT, PRO = "gpt-image-2", "gemini-3-pro-image-preview"
MIME = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}
ENDINGS = {"PNG": {"png"}, "JPEG": {"jpg", "jpeg"}, "WEBP": {"webp"}}
LIMIT = 1_048_576
PNG, JPEG = pictures.picture(), pictures.picture(fmt="JPEG")
RESULT = pictures.picture(64, 64, noise=True)

GOOD = [name for name, trap in TRAPS.items() if trap.fate != REFUSED]
Send = Callable[[str, bytes], bytes]
Net = dict[str, str]  # the fixture `internet`: a host and its address


@pytest.fixture
def send(gateway: Gateway, run: Run, tmp_path: Path) -> Send:
    """send(name, data): the program with this reference; returns the bytes that arrived."""
    gateway.answer_always(Reply(body=bodies.made(RESULT)))

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
        see_through = trap.transparent or name == "cutout.png"
        assert image.mode == ("RGBA" if see_through else "RGB")
        is_lossless = name.endswith((".png", ".gif", ".bmp", ".tiff", "lossless.webp"))
        fits = name not in ("noise-1024.png", "1-bit.png")
        assert image.format == ("PNG" if fits and (see_through or is_lossless) else "JPEG")
        assert getattr(image, "n_frames", 1) == 1 and not image.getexif()
        assert not {"xmp", "icc_profile", "comment"} & set(image.info)
    if trap.tolerance:
        assert pictures.upright(data, trap.tolerance), pictures.corners(data)
        assert pictures.has_hole(data) == trap.transparent
    if name in ("noise-1024.png", "big-mm.tiff"):
        return  # the one must lose pixels, the other is beyond Pillow
    size = sorted(Image.open(io.BytesIO(trap.data)).size, reverse=name != "1x5000.png")
    scale = min(1, 1024 / max(size))
    assert image.size == pytest.approx([edge * scale for edge in size], abs=1)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_mask_lies_on_the_upright_picture(gateway: Gateway, run: Run, turn: int, kind: str) -> None:
    """All eight EXIF orientations: the mask has the size that a viewer shows, and is sent so."""
    mask = pictures.picture(400, 300, "RGBA")
    Path("photo").write_bytes(pictures.orientation(turn, kind))
    Path("mask.png").write_bytes(mask)
    flags = ["--model", GPT, "--reference-image", "photo", "--mask", "mask.png"]
    assert run("--prompt", "a cup", *flags).code == 0
    photo, sent = gateway.calls[0].files
    assert (opened(photo.data).size, sent.data) == ((400, 300), mask)


def test_name_that_lies_does_not_become_a_label_that_lies(send: Send) -> None:
    """The MIME type and file extension of its real bytes."""
    for name in ("x.jpg", "x.PNG", "x.gif", "x.sh", "x"):
        for data in (PNG, JPEG, pictures.picture(fmt="WEBP")):
            assert send(name, data) == data


@pytest.mark.parametrize("over", [0, 1])
def test_limits_are_exact(send: Send, over: int) -> None:
    for fmt in ("PNG", "JPEG"):
        data = pictures.padded(LIMIT + over, fmt)
        assert (send("padded", data) == data) == (over == 0)
    for size in ((1024 + over, 1024), (1024 + over, 1), (1, 1024 + over)):
        data = pictures.picture(*size)
        sent = send("edge.png", data)
        assert (sent == data, max(opened(sent).size)) == (over == 0, 1024)


def test_sixteen_bits_are_scaled_and_not_clipped(send: Send) -> None:
    """Pillow's own conversion turns everything but the darkest 1/256 into white."""
    image = opened(send("ramp.png", pictures.deep_ramp())).convert("L")
    for share in (0.02, 0.25, 0.5, 0.75, 0.98):
        seen = image.getpixel((int(share * (image.width - 1)), image.height // 2))
        assert seen == pytest.approx(255 * share, abs=4)
    dark = Image.linear_gradient("L").convert("F").point(lambda value: value * (1 / 510))
    sent = opened(send("dark.tiff", pictures.encoded(dark, "TIFF"))).convert("L")
    assert sent.getextrema() == pytest.approx((0, 127), abs=2)  # floats of 0 to 1: half is grey


def test_invisible_colours_do_not_leak_into_the_edge(send: Send) -> None:
    """A cut-out product would get a dark rim."""
    assert pictures.darkest_fringe(send("cutout.png", pictures.cutout())) >= 235


def test_thin_coloured_lines_keep_their_colour(send: Send) -> None:
    """JPEG of quality 88 at full colour resolution, as 4:2:0 turns them grey; a palette as PNG."""
    as_jpeg = opened(send("logo.jpg", pictures.logo("JPEG")))
    as_png = opened(send("logo.png", pictures.logo()))
    assert as_jpeg.quantization == opened(pictures.picture(fmt="JPEG", quality=88)).quantization
    assert JpegImagePlugin.get_sampling(as_jpeg) == 0
    assert (as_png.format, as_png.getpixel((0, 0))) == ("PNG", pictures.BLUE)
    for image in (as_jpeg, as_png):
        _, green, blue = image.split()
        assert ImageChops.subtract(green, blue).getextrema()[1] > 110


@pytest.mark.parametrize("size", [(2200, 1500), (1500, 2200), (4200, 2900)])
def test_large_jpeg_is_decoded_at_a_fraction(monkeypatch: pytest.MonkeyPatch, size: Any) -> None:
    """Half or a quarter of it, but no less than 1.4 times the need: 45 dB from a full LANCZOS."""
    monkeypatch.setattr(generate, "REFERENCE_QUALITIES", (100,))
    data = pictures.photo(*size)
    sent = opened(generate.maybe_resize(data, max_bytes=10**8).data)
    full = opened(data)
    full.thumbnail((1024, 1024), Image.Resampling.LANCZOS)
    assert max(sent.size) == 1024
    errors = ImageStat.Stat(ImageChops.difference(sent, full)).rms
    assert 20 * math.log10(255 / max(errors)) > (57 if max(size) == 2200 else 45)


@pytest.mark.parametrize(
    ("mode", "size", "fmt"), [("RGB", (1024, 1024), "JPEG"), ("RGBA", (600, 500), "WEBP")]
)
def test_noise_loses_quality_before_pixels(send: Send, mode: str, size: Any, fmt: str) -> None:
    """Opaque → JPEG; with transparency WebP when the PNG is over the limit; then lower quality."""
    sent = send("noise.png", pictures.picture(*size, mode, noise=True))
    image = opened(sent)
    assert (image.format, image.mode, image.size) == (fmt, mode, size)
    assert len(sent) > 300_000


def test_other_limits_hold_too() -> None:
    Path("noise.png").write_bytes(pictures.picture(300, 200, "RGBA", noise=True))
    for edge in (1, 256):
        assert max(opened(generate.maybe_resize("noise.png", max_dim=edge).data).size) == edge
    for limit in (2_000, 20_000, 100_000):
        data = generate.maybe_resize("noise.png", max_bytes=limit).data
        assert limit / 20 < len(data) <= limit


def test_heic_comes_out_right() -> None:
    """Orientation and Display P3 of what phones make of a product."""
    reference = generate.maybe_resize(pictures.heic())
    assert (reference.mime, reference.size) == ("image/jpeg", (1024, 768))
    assert pictures.upright(reference.data, 12)


@pytest.mark.parametrize("absent", ["pillow_heif", "pip"])
def test_heic_without_decoder(gateway: Gateway, run: Run, monkeypatch: Any, absent: str) -> None:
    """The error names the one command that installs it for this very Python."""
    Path("photo.heic").write_bytes(b"\0\0\0\x1cftypheic")
    monkeypatch.setattr(sys, "executable", "/opt/my tools/python3")
    for name in ("pillow_heif", absent):
        monkeypatch.setitem(sys.modules, name, None)
    error = run("--json", "--prompt", "x", "--reference-image", "photo.heic").json["error"]
    assert (error["kind"], "photo.heic" in error["message"]) == ("usage", True)
    command = "'/opt/my tools/python3' -m pip install pillow-heif"
    if absent == "pip":
        command = "uv pip install --python '/opt/my tools/python3' pillow-heif"
    assert command in error["hint"]


def test_format_without_decoder(gateway: Gateway, run: Run, monkeypatch: Any) -> None:
    """Some builds of Pillow lack AVIF or WebP."""
    Image.init()
    monkeypatch.delitem(Image.OPEN, "BMP")
    Path("x.bmp").write_bytes(TRAPS["small.bmp"].data)
    error = run("--json", "--prompt", "x", "--reference-image", "x.bmp").json["error"]
    assert "there is no decoder for BMP" in error["message"]


WIDE, TALL = (400, 300), (300, 400)
EDITS = [(WIDE, [], "4:3"), (TALL, [], "3:4"), ((209, 200), [], ""), ((212, 200), [], "1:1")]
EDITS += [(WIDE, [f"--{flag}"], "") for flag in ("aspect-ratio=1:1", "size=auto", "fit=99x99")]


@pytest.mark.parametrize(("size", "flags", "told"), [*EDITS, (WIDE, ["--model", PRO], "")])
def test_shape_of_an_edit(run: Run, gateway: Gateway, size: Any, flags: Any, told: str) -> None:
    """Nobody pays for a square from a landscape unawares: a warning names the flag to type."""
    Path("shoe.png").write_bytes(pictures.picture(*size))
    words = ["--prompt", "x", "--json", "--dry-run", "--model", GPT, *flags]
    text = " ".join(run(*words, "--reference-image", "shoe.png").json["warnings"])
    assert f"add --aspect-ratio {told}" in text if told else text == ""


def test_warning_of_a_reference(gateway: Gateway) -> None:
    """It comes from the thread that prepares it, and reaches the caller all the same."""
    data = TRAPS["garbage-profile.jpg"].data
    made = generate.generate_openai("a cup", GPT, "auto", ref_images=[data])
    assert ["colour profile does not fit" in text for text in made.warnings] == [True]


def test_shape_of_an_edit_in_a_library(gateway: Gateway) -> None:
    """There it is the argument's name; and references may be bytes."""
    made = generate.generate_openai("a cup", GPT, ref_images=[PNG, PNG])
    assert [part.data for part in gateway.calls[0].files] == [PNG, PNG]
    assert ["add aspect_ratio 4:3" in text for text in made.warnings] == [True]
    with pytest.raises(generate.UsageError, match="of 9 bytes .* not a picture"):
        generate.generate_openai("a cup", GPT, ref_images=[b"no, words"])


@pytest.mark.parametrize("name", ["~/home.png", "./real.png", "link.png", Path("real.png")])
def test_any_kind_of_path(gateway: Gateway, name: str | Path) -> None:
    """Editing in place, too: the old picture goes out, the new one replaces it."""
    for path in (Path.home() / "home.png", Path("real.png")):
        path.write_bytes(PNG)
    Path("link.png").symlink_to("real.png")
    path = generate.generate_image("a cup", GPT, reference_images=[name], output_path=name)
    assert [part.data for part in gateway.calls[0].files] == [PNG]
    assert Image.open(path).size == (1024, 1024)


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


@pytest.mark.parametrize(("status", "code"), [(200, 0), (500, 6), (400, 7)])
def test_no_leftovers(gateway: Gateway, run: Run, kept: Path, status: int, code: int) -> None:
    """No temporary file outlives the run, whatever ends it; a failure leaves no folder, either."""
    Path("large.png").write_bytes(TRAPS["large.png"].data)
    gateway.answer_always(Reply(status))
    flags = ["--reference-image", "large.png", "--attempts", "1", "--output", "new/cup.jpeg"]
    assert run("--prompt", "a cup", *flags).code == code
    files = ["large.png"] if code else ["large.png", "new", "new/cup.jpeg"]
    assert sorted(map(str, [*Path().rglob("*"), *kept.iterdir()])) == files


# --- References by link ---


@pytest.fixture
def internet(gateway: Gateway, monkeypatch: pytest.MonkeyPatch, short_waits: None) -> Net:
    """Names of hosts and their addresses; whatever is called, the stand-in answers."""
    known: dict[str, str] = {}
    resolve, connect = socket.getaddrinfo, socket.create_connection
    here = ("127.0.0.1", int(gateway.origin.rpartition(":")[2]))

    def answer(host: Any, *words: Any, **options: Any) -> Any:
        addresses = known.get(host, host).split()
        return [row for address in addresses for row in resolve(address, *words, **options)]

    def call(address: Any, timeout: float, **options: Any) -> socket.socket:
        return connect(address if address[1] == 1 else here, timeout)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    monkeypatch.setattr("urllib3.util.connection.create_connection", call)
    monkeypatch.setattr(generate, "FETCH_TIMEOUT_S", 30)  # what a test sets is undone
    return known


PLACE = "http://cdn.example/media/shoe.png"
SIGNED = f"{PLACE}?Signature={'s3cret%2B' * 84}&k=v#here"


def linked(run: Run, *links: str, flags: Any = ("--dry-run",)) -> Any:
    words = [f"--reference-image={link}" for link in links]
    outcome = run("--json", "--prompt", "x", "--model", GPT, "--size", "auto", *words, *flags)
    told = outcome.out + outcome.err
    assert not any(secret in told for secret in ("s3cret", "k=v", "pa55word", "Traceback"))
    assert "fetching the reference http" in told
    return outcome


def test_references_by_link(gateway: Gateway, run: Run, internet: Net) -> None:
    """Fetched in parallel, with its query, and without the key."""
    internet["cdn.example"] = "93.184.215.14"
    together = threading.Barrier(2)
    there = Reply(302, {"Location": gateway.publish("new.jpg", JPEG)})
    here = Reply(200, {"Content-Type": "text/html"}, PNG)

    def answer(received: Any) -> Reply:
        together.wait(10)
        return there if "old" in received.path else here

    gateway.answer(answer, answer, path="/media")
    links = [SIGNED, "HTTP://10.0.0.7/media/old"]
    assert linked(run, *links, flags=["--output", "cup.png"]).code == 0
    *fetches, call = gateway.requests
    assert [part.data for part in call.files] == [PNG, JPEG]
    targets = sorted(fetch.target for fetch in fetches)
    assert targets == ["/media/new.jpg", "/media/old", SIGNED[18:-5]]
    assert all(gateway.key not in f"{fetch.target} {fetch.headers}" for fetch in fetches)
    ledger = (Path.home() / ".local/state/product-shots-image-gen/ledger.db").read_bytes()
    assert PLACE.encode() in ledger and b"s3cret" not in ledger


FINE, AT_ONCE, LATER = (None, None, 1), ("usage", False, 1), ("unavailable", True, 3)
LINKS = {  # kind, retryable and number of requests
    "32 MB": (lambda _: Reply(body=pictures.padded(32_000_000)), FINE),
    "33 MB": (lambda _: Reply(body=pictures.padded(32_000_001)), AT_ONCE),
    "403": (Reply(403, body="<Error>expired</Error>"), AT_ONCE),
    "404": (Reply(404), AT_ONCE),
    "page": (Reply(body=pictures.HTML), AT_ONCE),
    "to a file": (Reply(302, {"Location": "file:///etc/passwd"}), AT_ONCE),
    "to itself": (Reply(302, {"Location": "?k=v"}), ("usage", False, 6)),
    "408": (Reply(408), LATER),
    "425": (Reply(425), LATER),
    "429": (Reply(429), LATER),
    "500": (Reply(500), LATER),
    "reset": (Reply(drop="before"), LATER),
    "cut": (Reply(body=PNG, truncate=99), LATER),
    "silence": (Reply(hang="accept"), LATER),
    "trickle": (Reply(body=PNG, trickle=(1, 0.2)), LATER),
}


@table("reply, expected", LINKS)
def test_link(gateway: Gateway, run: Run, internet: Net, reply: Any, expected: Any) -> None:
    """What is not there is a usage error at once; a host that fails may be better later."""
    internet["cdn.example"] = "127.0.0.1"
    gateway.answer_always(reply, path="/media")
    if isinstance(reply, Reply) and (reply.hang or reply.trickle):
        generate.FETCH_TIMEOUT_S = 1.5  # in all
    outcome = linked(run, SIGNED.replace("//", "//me:pa55word@"))
    error = outcome.json.get("error", {})
    fetches = [request for request in gateway.requests if request.method == "GET"]
    assert (error.get("kind"), error.get("retryable"), len(fetches)) == expected
    assert gateway.calls == [] and error.get("billed", "no") == "no"
    assert f"The reference {PLACE} " in error.get("message", f"The reference {PLACE} ")
    is_page = isinstance(reply, Reply) and reply.body == pictures.HTML
    assert is_page == ("leads to a picture" in error.get("hint", ""))


PUBLIC = "93.184.215.14"
ADDRESSES = {  # of a host and of that to which it redirects; how often the two are called
    "cloud": (("169.254.169.254", PUBLIC), 0),
    "cloud by IPv6": (("fe80::1", PUBLIC), 0),
    "cloud in IPv6": (("::ffff:169.254.169.254", PUBLIC), 0),
    "public to loopback": ((PUBLIC, "127.0.0.1"), 1),
    "public to private": ((PUBLIC, "10.0.0.7"), 1),
    "public to unique local": (("2606:2800:21f::1", "fd00::1"), 1),
    "public, and private to private": ((f"{PUBLIC} 10.0.0.7", "10.0.0.7"), 4),
    "public to one that is both": ((PUBLIC, f"{PUBLIC} 10.0.0.7"), 1),
    "private to cloud": (("10.0.0.7", "169.254.169.254"), 1),
    "private": (("10.0.0.7", "192.168.0.7"), 4),
    "private to public": (("10.0.0.7", PUBLIC), 4),
    "public": ((PUBLIC, "2606:2800:21f::1"), 4),
}


@table("hosts, calls", ADDRESSES)
def test_addresses(gateway: Gateway, run: Run, internet: Net, hosts: Any, calls: int) -> None:
    """Link-local ones, and private ones to which a public host sends, are not even called."""
    internet.update(zip(("first.example", "second.example"), hosts))
    there = Reply(302, {"Location": "http://second.example/media/b"})
    gateway.answer_always(there, path="/media/a")
    gateway.answer(Reply(500), Reply(body=PNG), path="/media/b")  # the second try begins anew
    outcome = linked(run, "http://first.example/media/a")
    assert len(gateway.requests) == calls
    assert (outcome.code, "refused" in outcome.out) == ((0, False) if calls == 4 else (2, True))


@pytest.mark.parametrize("rest", ["", "/x.png", "[::1/x.png", "h:99999/x.png", "[:::]/x"])
def test_link_that_cannot_be_one(gateway: Gateway, run: Run, rest: str) -> None:
    error = linked(run, f"https://{rest}").json["error"]
    assert (error["kind"], error["retryable"]) == ("usage", False)
    assert error["message"].rstrip(".").endswith(("malformed", "http or https address"))


def test_link_is_judged_by_the_host_that_is_called(run: Run, internet: Net) -> None:
    """Some readers take what follows the @ for the host, and what is called is before it."""
    internet["friendly.example"] = PUBLIC
    error = linked(run, "http://169.254.169.254\\@friendly.example/x.png").json["error"]
    assert (error["kind"], "link-local" in error["message"]) == ("usage", True)


def test_host_that_is_not_there(gateway: Gateway, run: Run, internet: Net) -> None:
    """Nothing is told of a link but its place; and where there is a proxy, it judges names."""
    for link in ("http://me:pa55word@127.0.0.1:1?k=v", "http://gone.invalid/x.png?k=v"):
        error = linked(run, link).json["error"]
        assert (error["kind"], error["billed"], error["retryable"]) == ("unavailable", "no", True)
    link = gateway.publish("x.png", PNG).replace("127.0.0.1", "gone.invalid")
    assert linked(run, link, flags=["--dry-run", "--proxy", gateway.origin]).code == 0
    assert gateway.requests[-1].target == link
