"""Generated pictures that make mistakes visible, one for each trap a reference image can spring.

The motif is four quadrants, so that a wrong orientation, a lost colour profile or a wrong frame
shows in a handful of pixels:

    RED    | GREEN        With alpha there is a transparent square in the middle (`has_hole`).
    -------+-------       Second frames are black. The four colours have four different
    BLUE   | YELLOW       luminances, so `upright` judges grey and dithered pictures too.
"""

from __future__ import annotations

import importlib
import io
import itertools
import random
import struct
import zipfile
import zlib
from functools import cache, partial
from typing import Any, Callable, NamedTuple

from PIL import Image, ImageChops, ImageCms, ImageDraw

RED, GREEN, BLUE, YELLOW = MOTIF = (200, 20, 20), (30, 180, 60), (20, 40, 200), (250, 220, 30)
SMALL, LARGE = (400, 300), (1280, 960)  # within and over the limit of 1024 px
HTML = "<!doctype html><title>502 Bad Gateway</title><script>alert(1)</script>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="40" height="30"><circle r="9"/></svg>'

# --- Drawing and judging ---


def quadrants(mode, colours, size) -> Image.Image:
    pixels = bytes(itertools.chain.from_iterable(colours))
    return Image.frombytes(mode, (2, 2), pixels).resize(size, Image.Resampling.NEAREST)


def punch(image: Image.Image, fill: Any) -> None:
    """Draw the square in the middle, which `has_hole` looks for."""
    square = [edge * share for share in (3 / 8, 5 / 8) for edge in image.size]
    ImageDraw.Draw(image).rectangle(square, fill=fill)


@cache
def motif(size=SMALL, mode: str = "RGB") -> Image.Image:
    """The motif; shared, so treat it as read-only."""
    image = quadrants("RGB", MOTIF, size)
    if mode in ("RGBA", "LA"):
        opaque = Image.new("L", size, 255)
        punch(opaque, 0)
        image.putalpha(opaque)
    if mode == "P":  # colours 0 to 3; 4 to 7 are spare
        image = quadrants("P", [range(4)], size)
        image.putpalette(bytes(itertools.chain(*MOTIF, [0] * 12)))
    return image if image.mode == mode else image.convert(mode)


@cache
def slope(width: int, height: int) -> Image.Image:
    """Red grows from left to right and green from top to bottom: see `part_shown`."""
    down = Image.linear_gradient("L").resize((width, height), Image.Resampling.BILINEAR)
    across = Image.linear_gradient("L").rotate(90)
    across = across.resize((width, height), Image.Resampling.BILINEAR)
    return Image.merge("RGB", [across, down, Image.new("L", (width, height), 128)])


def part_shown(data: bytes) -> tuple[float, float, float, float]:
    """Which part of a whole `slope` this is: left, top, right and bottom, from 0 to 1."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    right, bottom = image.width - 1, image.height - 1
    left, top, *_ = image.getpixel((0, 0))
    right, bottom, *_ = image.getpixel((right, bottom))
    return left / 255, top / 255, right / 255, bottom / 255


@cache
def photo(width: int, height: int) -> bytes:
    """A JPEG with as much detail at each scale as a photograph has."""
    image = Image.new("L", (width, height), 128)
    for step in (2, 4, 8, 16, 32, 64, 128, 256):
        size = width // step + 1, height // step + 1
        noise = Image.frombytes("L", size, random.Random(step).randbytes(size[0] * size[1]))
        image = Image.blend(image, noise.resize(image.size, Image.Resampling.BICUBIC), 0.4)
    return encoded(image.convert("RGB"), "JPEG", quality=92)


@cache
def logo(fmt: str = "PNG") -> bytes:
    """Thin green lines on blue: a palette of two colours at 1 bit, as a JPEG at full resolution."""
    image = Image.new("P", LARGE, 0)
    image.putpalette(bytes((*BLUE, *GREEN)))
    for x in range(100, LARGE[0], 10):
        ImageDraw.Draw(image).line((x, 0, x, LARGE[1]), fill=1, width=3)
    return encoded(image if fmt == "PNG" else image.convert("RGB"), fmt)


def picture(width=400, height=300, mode="RGB", fmt="PNG", noise=False, seed=0, **save) -> bytes:
    """The motif, or incompressible noise; everything else goes to `Image.save`."""
    image = motif((width, height), mode)
    if noise:
        samples = random.Random(seed).randbytes(len(image.tobytes()))
        image = Image.frombytes(mode, (width, height), samples)
    return encoded(image, fmt, **save)


def encoded(image: Image.Image, fmt: str, **save: Any) -> bytes:
    """JPEG without chroma subsampling, WebP without loss: what differs later, others did."""
    defaults: dict[str, dict[str, Any]] = {
        "PNG": {"compress_level": 1},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "method": 0},
    }
    file = io.BytesIO()
    image.save(file, fmt, **{**defaults.get(fmt, {}), **save})
    return file.getvalue()


def corners(data: bytes) -> list[Any]:
    """Mean colour inside each quadrant, seen without regard for EXIF, profiles and alpha."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    seen = []
    for y, x in itertools.product((3 / 16, 11 / 16), repeat=2):
        left, top = image.width * x, image.height * y
        box = (left, top, left + image.width / 8, top + image.height / 8)
        seen.append(image.resize((1, 1), Image.Resampling.BOX, box=box).getpixel((0, 0)))
    return seen


def upright(data: bytes, tolerance: int = 40) -> bool:
    """Whether this is the motif, right way up, each channel as near as `tolerance` (of 255)."""
    seen, wanted = corners(data), MOTIF
    if all(max(colour) - min(colour) <= 2 for colour in seen):
        wanted = corners(picture(mode="L"))
    return all(abs(s - w) <= tolerance for pair in zip(seen, wanted) for s, w in zip(*pair))


def has_hole(data: bytes) -> bool:
    """Whether the transparent square in the middle is still transparent."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return image.getpixel((image.width // 2, image.height // 2))[3] < 8


def darkest_fringe(data: bytes) -> int:
    """Lowest channel value where alpha is over 25 %; 255 when `cutout` has no dark rim."""
    *colours, alpha = Image.open(io.BytesIO(data)).convert("RGBA").split()
    invisible = alpha.point(lambda value: 255 if value <= 64 else 0)
    return min(ImageChops.lighter(band, invisible).getextrema()[0] for band in colours)


# EXIF orientation → the turn that undoes it, i.e. how the stored pixels differ from the upright
STORED_AS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
ORIENTATION = 0x0112
BROKEN_EXIF = b"Exif\0\0MM\0?not a TIFF"


def orientation(n: int, fmt: str = "JPEG", size=SMALL) -> bytes:
    """The motif stored turned, with the EXIF tag that says how to turn it back."""
    image = motif(size)
    stored = image.transpose(STORED_AS[n]) if n in STORED_AS else image
    if fmt == "TIFF":
        return encoded(stored, fmt, tiffinfo={ORIENTATION: n})
    exif = Image.Exif()
    exif[ORIENTATION] = n
    return encoded(stored, fmt, exif=exif)


def xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


WHITE = xyz(0.9642, 1.0, 0.8249)


def icc(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC v2.4 profile: 128-byte header, tag table, tag data (ICC.1:2001-04)."""
    name = b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78)
    named = {b"desc": name, b"cprt": b"text\0\0\0\0none\0", b"wtpt": WHITE, **tags}
    table, body, start = b"", b"", 128 + 4 + 12 * len(named)
    for key, tag in named.items():
        table += struct.pack(">4sII", key, start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, kind, space, pcs)
    header += struct.pack(">6H4s28x", 2026, 1, 1, 0, 0, 0, b"acsp") + WHITE[8:] + bytes(48)
    return header + struct.pack(">I", len(named)) + table + body


def p3_profile() -> bytes:
    """Display P3: its primaries as XYZ under D50, and a tone curve that is nearly sRGB's."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256))
    tags = dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    tags[b"rXYZ"] = xyz(0.51512, 0.24120, -0.00105)
    tags[b"gXYZ"] = xyz(0.29198, 0.69225, 0.04189)
    tags[b"bXYZ"] = xyz(0.15710, 0.06657, 0.78407)
    return icc(b"mntr", b"RGB ", b"XYZ ", tags)


def cmyk_profile() -> bytes:
    """A printer's lookup table: no ink, Y, M, MY, C, CY, CM, CMY as Lab, and black wherever K is.

    Yellow and the three overprints print as the motif's colours: only who uses this sees them.
    """
    inks = bytes.fromhex("ff8080 e17fd3 7aca7d 6fc1b3 8c5b4e a447b0 45ac2c 3a8080")
    table = b"".join(inks[i : i + 3] + b"\0\x80\x80" for i in range(0, 24, 3))
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    ramps = bytes(range(256))
    lut = b"mft1\0\0\0\0\4\3\2\0" + identity + ramps * 4 + table + ramps * 3
    return icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


DISPLAY_P3 = p3_profile()
PRESS = cmyk_profile()


def display_p3(size=LARGE, fmt: str = "JPEG", mode: str = "RGB") -> bytes:
    """The motif in Display P3 numbers: up to 40 off until they are converted to sRGB."""
    target = ImageCms.ImageCmsProfile(io.BytesIO(DISPLAY_P3))
    image = motif(size, "RGBA" if mode == "RGBA" else "RGB")
    image = ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), target)
    return encoded(image.quantize(8) if mode == "P" else image, fmt, icc_profile=DISPLAY_P3)


def cmyk(profile: bool = True, size=LARGE, fmt: str = "JPEG") -> bytes:
    """Solid inks with a profile that makes them the motif; or the motif's plain complement."""
    if not profile:
        return encoded(motif(size).convert("CMYK"), fmt)
    solids = [[255 * (ink in solid) for ink in "CMYK"] for solid in ("MY", "CY", "CM", "Y")]
    return encoded(quadrants("CMYK", solids, size), fmt, icc_profile=PRESS)


def deep_ramp(width: int = 1280, height: int = 40) -> bytes:
    """16-bit grey from 0 to 65535, left to right; >> 8 gives the right 8-bit value."""
    row = struct.pack(f"<{width}H", *(65535 * x // (width - 1) for x in range(width)))
    return encoded(Image.frombytes("I;16", (width, height), row * height), "PNG")


def deep_motif() -> bytes:
    """The motif in grey as numbers far beyond 255, of which the greatest is white."""
    return encoded(motif(mode="L").convert("F").point(lambda value: value * 3000 + 0), "TIFF")


def chunk(kind: bytes, data: bytes) -> bytes:
    """One chunk of a PNG."""
    length, check = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
    return length + kind + data + check


def keyed_png(size: tuple[int, int], bits: int, key: tuple[int, ...], rows: bytes) -> bytes:
    """A PNG of grey or RGB samples of that depth, in which this grey or colour is transparent."""
    colour_type = 2 if len(key) == 3 else 0
    header = struct.pack(">IIBBBBB", *size, bits, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", header), chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))]
    parts += [chunk(b"IDAT", zlib.compress(rows, 1)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def deep_keyed(mode: str = "RGB", size=(1280, 96)) -> bytes:
    """As `keyed`, at 16 bits; in grey, red and green share a byte each with the key."""
    colours = [(257 * red, 257 * green, 257 * blue) for red, green, blue in MOTIF]
    key: tuple[int, ...] = (0x0107, 0x0208, 0x0309)
    if mode == "L":
        greys = motif((2, 2), "L").tobytes()
        colours = [(256 * grey + low,) for low, grey in enumerate(greys)]
        key = (256 * greys[0] + 1,)
    samples = [struct.pack(f">{len(key)}H", *colour) for colour in (*colours, key)]
    (width, height), pixel = size, len(samples[0])
    rows = b""
    for y in range(height):
        left, right = samples[:2] if 2 * y < height else samples[2:4]
        row = left * (width // 2) + right * (width // 2)
        if 3 / 8 <= y / height < 5 / 8:
            edge = width * 3 // 8 * pixel
            row = row[:edge] + samples[4] * (width // 4) + row[-edge:]
        rows += b"\0" + row
    return keyed_png(size, 16, key, rows)


def faint_keyed() -> bytes:
    """As `keyed`, at 4 bits of grey, of which the brightest is the key."""
    image = motif(LARGE, "L").point(lambda value: value * 15 // 255)
    punch(image, 15)
    pixels = image.tobytes()
    packed = bytes(high << 4 | low for high, low in zip(pixels[::2], pixels[1::2]))
    length = LARGE[0] // 2
    rows = b"".join(b"\0" + packed[at : at + length] for at in range(0, len(packed), length))
    return keyed_png(LARGE, 4, (15,), rows)


def big_tiff(order: str = "<", size=SMALL) -> bytes:
    """The motif as a BigTIFF in this byte order (libtiff.gitlab.io/libtiff: BigTIFF)."""
    (width, height), pixels = size, motif(size).tobytes()
    tags = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height, 279: len(pixels)}
    start = 16 + 8 + 20 * (len(tags) + 2) + 8  # of the pixels
    rows = [struct.pack(f"{order}HHQ3H2x", 258, 3, 3, 8, 8, 8)]
    for tag, value in {**tags, 273: start}.items():
        rows.append(struct.pack(f"{order}HHQQ", tag, 16, 1, value))
    rows.sort(key=lambda row: struct.unpack(f"{order}H", row[:2]))
    head = struct.pack(f"{order}HHHQQ", 43, 8, 0, 16, len(rows))
    return (b"II" if order == "<" else b"MM") + head + b"".join(rows) + bytes(8) + pixels


def keyed(mode: str = "RGB", size=LARGE, fmt: str = "PNG") -> bytes:
    """A transparent square made by one colour, or one palette entry, in place of alpha."""
    image = motif(size, mode).copy()
    key = {"RGB": (1, 2, 3), "L": 3, "P": 7}[mode]
    punch(image, key)
    return encoded(image, fmt, transparency=key)


def cutout(size=(1280, 1280), fmt: str = "PNG") -> bytes:
    """A white disc whose transparent surroundings hide black (`darkest_fringe`)."""
    disc = Image.radial_gradient("L").resize(size).point(lambda value: 255 * (value < 150))
    return encoded(Image.merge("RGBA", [disc] * 4), fmt)


def frames(fmt: str, size=LARGE, mode: str = "RGB") -> bytes:
    """The motif, then a black frame (GIF, WEBP, PNG, TIFF, MPO)."""
    image = motif(size, "P" if fmt == "GIF" else mode)
    return encoded(image, fmt, save_all=True, append_images=[Image.new("RGB", size)])


def padded(size: int, fmt: str = "JPEG") -> bytes:
    """A good picture of exactly `size` bytes; what follows its end is ignored."""
    return picture(fmt=fmt).ljust(size, b"\0")


def flipped(data: bytes, seed: int, flips: int = 20) -> bytes:
    """Some random bytes replaced; the first eight, which name the format, stay."""
    dice, broken = random.Random(seed), bytearray(data)
    for _ in range(flips):
        broken[dice.randrange(8, len(broken))] = dice.randrange(256)
    return bytes(broken)


def huge(width: int = 12_000, height: int = 8_000) -> bytes:
    """The motif as a JPEG of 96 megapixels, two bits a pixel at most."""
    return encoded(motif((width, height)), "JPEG", quality=50, subsampling=2)


def bomb() -> bytes:
    """A PNG of 900 megapixels, as it says."""
    data = picture()
    header = chunk(b"IHDR", struct.pack(">II", 30_000, 30_000) + data[24:29])
    return data[:8] + header + data[33:]


def cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


@cache
def heic() -> bytes:
    """As a phone makes it: in Display P3, stored turned."""
    file, pillow_heif = io.BytesIO(), importlib.import_module("pillow_heif")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    stored = Image.open(io.BytesIO(display_p3(fmt="PNG"))).transpose(STORED_AS[6])
    photo = pillow_heif.from_pillow(stored)
    photo.info["icc_profile"] = DISPLAY_P3
    photo.save(file, quality=95, exif=exif.tobytes())
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("index.html", HTML)
    return file.getvalue()


SAME, REMADE, SENT, REFUSED = "same", "remade", "sent", "refused"


class Trap(NamedTuple):
    """One picture and its due: SAME bytes, REMADE, SENT (either will do), or REFUSED."""

    make: Callable[[], bytes]
    fate: str
    transparent: bool = False  # there is a hole in the middle (`has_hole`)
    tolerance: int = 40  # for `upright`; 0: not the motif

    @property
    def data(self) -> bytes:
        return self.make()


big = partial(picture, *LARGE)
FRAMED = {"gif": "GIF", "webp": "WEBP", "png": "PNG", "jpg": "MPO", "tiff": "TIFF"}
TRAPS: dict[str, Trap] = {
    "plain.png": Trap(picture, SAME, tolerance=1),
    "plain.jpg": Trap(partial(picture, fmt="JPEG"), SAME, tolerance=8),
    "plain.webp": Trap(partial(picture, fmt="WEBP"), SAME, tolerance=1),
    "large.png": Trap(big, REMADE, tolerance=12),
    "lossless.webp": Trap(partial(big, fmt="WEBP"), REMADE, tolerance=12),
    "small.bmp": Trap(partial(picture, fmt="BMP"), REMADE, tolerance=12),
    "1x5000.png": Trap(partial(picture, 1, 5000), REMADE, tolerance=0),
    "noise-1024.png": Trap(partial(picture, 1024, 1024, noise=True), REMADE, tolerance=0),
    "96-mp.jpg": Trap(huge, REMADE),
    "zip-behind.png": Trap(lambda: picture() + zipped(), SAME),
    **{f"exif-{n}.jpg": Trap(partial(orientation, n), REMADE) for n in STORED_AS},
    **{f"exif-6.{e}": Trap(partial(orientation, 6, e.upper()), REMADE) for e in ("png", "tiff")},
    "exif-6.webp": Trap(partial(orientation, 6, "WEBP", LARGE), REMADE),
    "exif-broken.png": Trap(partial(picture, exif=BROKEN_EXIF), SAME),
    "exif-broken-large.webp": Trap(partial(big, fmt="WEBP", exif=BROKEN_EXIF), REMADE),
    "cmyk-profile.jpg": Trap(cmyk, REMADE, tolerance=14),
    "cmyk.jpg": Trap(partial(cmyk, False), REMADE, tolerance=14),
    "p3.jpg": Trap(display_p3, REMADE, tolerance=10),
    "p3-hole.png": Trap(partial(display_p3, LARGE, "PNG", "RGBA"), REMADE, True, 10),
    "p3-palette.png": Trap(partial(display_p3, LARGE, "PNG", "P"), REMADE, tolerance=10),
    "rgb-with-cmyk-profile.jpg": Trap(partial(big, fmt="JPEG", icc_profile=PRESS), REMADE),
    "garbage-profile.jpg": Trap(partial(big, fmt="JPEG", icc_profile=b"none" * 60), REMADE),
    "16-bit-ramp.png": Trap(deep_ramp, REMADE, tolerance=0),
    "16-bit-keyed.png": Trap(deep_keyed, REMADE, True),
    "16-bit-grey-keyed.png": Trap(partial(deep_keyed, "L"), REMADE, True),
    "4-bit-grey-keyed.png": Trap(faint_keyed, REMADE, True),
    "big-ii.tiff": Trap(big_tiff, REMADE, tolerance=1),
    "big-mm.tiff": Trap(partial(big_tiff, ">"), REMADE, tolerance=1),
    "float.tiff": Trap(deep_motif, REMADE, tolerance=50),
    "1-bit.png": Trap(partial(big, "1"), REMADE),
    "palette-keyed.png": Trap(partial(keyed, "P"), REMADE, True),
    "grey-hole.png": Trap(partial(big, "LA"), REMADE, True),
    "hole.png": Trap(partial(picture, mode="RGBA"), SAME, True),
    "hole-large.png": Trap(partial(big, "RGBA"), REMADE, True),
    "opaque-alpha.png": Trap(lambda: encoded(motif(LARGE).convert("RGBA"), "PNG"), REMADE),
    "cutout.png": Trap(cutout, REMADE, tolerance=0),
    **{f"frames.{end}": Trap(partial(frames, FRAMED[end]), REMADE) for end in FRAMED},
    "bomb.png": Trap(bomb, REFUSED),
    "cut.jpg": Trap(lambda: cut(picture(fmt="JPEG", noise=True)), REFUSED),
    "empty.png": Trap(bytes, REFUSED),
    "drawing.eps": Trap(partial(picture, fmt="EPS"), REFUSED),  # Pillow would run Ghostscript
}
