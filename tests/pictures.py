"""Generated pictures that make mistakes visible, one for each trap a reference image can spring.

Everything here returns bytes and depends on nothing but Pillow. The motif is four quadrants, so that a wrong
orientation, a lost colour profile or a wrong frame shows in a handful of pixels:

    RED    | GREEN        With an alpha channel there is a fully transparent square in the middle (`has_hole`).
    -------+-------       Second frames are always black. The four colours have four different luminances,
    BLUE   | YELLOW       so `upright` judges grey and dithered pictures too.

`TRAPS` maps a file name to the picture stored under it and to what should become of it.
"""

from __future__ import annotations

import io
import itertools
import random
import struct
import zipfile
import zlib
from functools import cache, partial
from typing import Any, Callable, Iterable, NamedTuple

from PIL import Image, ImageChops, ImageCms, ImageDraw, ImageOps, features

MOTIF = RED, GREEN, BLUE, YELLOW = (200, 20, 20), (30, 180, 60), (20, 40, 200), (250, 220, 30)
SMALL, LARGE = (400, 300), (1280, 960)  # px; within and over the limit on the longer side (1024 px)

# ------------------------------------------------------------------------------------------------ drawing and judging


def _quadrants(mode: str, colours: Iterable[Iterable[int]], size: tuple[int, int]) -> Image.Image:
    pixels = bytes(itertools.chain.from_iterable(colours))
    return Image.frombytes(mode, (2, 2), pixels).resize(size, Image.Resampling.NEAREST)


@cache
def motif(size: tuple[int, int] = SMALL, mode: str = "RGB") -> Image.Image:
    """The motif; shared, so treat it as read-only."""
    image = _quadrants("RGB", MOTIF, size)
    if mode in ("RGBA", "LA", "PA"):
        hole = Image.new("L", size, 255)
        ImageDraw.Draw(hole).rectangle(_box(size, 3 / 8, 3 / 8, 5 / 8, 5 / 8), fill=0)
        image.putalpha(hole)
    if mode == "P":  # colours 0 to 3; 4 to 7 are spare
        image = _quadrants("P", [range(4)], size)
        image.putpalette(bytes(itertools.chain(*MOTIF, [0] * 12)))
    return image if image.mode == mode else image.convert(mode)


def picture(
    width: int = 400,
    height: int = 300,
    mode: str = "RGB",
    fmt: str = "PNG",
    noise: bool = False,
    seed: int = 0,
    **save: Any,
) -> bytes:
    """The motif, or incompressible noise; everything else goes to `Image.save`."""
    if noise:
        size = width * height * len(Image.new(mode, (1, 1)).getbands())
        samples = random.Random(seed).randbytes(size)
        if fmt == "PNG":
            return png(width, height, 8, mode, samples, level=0)  # Pillow takes much longer
        image = Image.frombytes(mode, (width, height), samples)
    else:
        image = motif((width, height), mode)
    return encoded(image, fmt, **save)


def encoded(image: Image.Image, fmt: str, **save: Any) -> bytes:
    """JPEGs are written without chroma subsampling and WebPs without loss: what differs later, others did."""
    defaults: dict[str, dict[str, Any]] = {
        "PNG": {"compress_level": 1},
        "JPEG": {"quality": 95, "subsampling": 0},
        "WEBP": {"lossless": True, "method": 0},
    }
    file = io.BytesIO()
    image.save(file, fmt, **{**defaults.get(fmt, {}), **save})
    return file.getvalue()


def corners(data: bytes) -> tuple[tuple[int, int, int], ...]:
    """Mean colour inside each quadrant, as a viewer shows it that ignores EXIF, profiles and transparency."""
    image = Image.open(io.BytesIO(data))
    if image.mode[0] == "I":  # 16 bits a sample, or 16 in 32
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    flat = image.convert("RGB")
    boxes = [_box(flat.size, x, y, x + 1 / 8, y + 1 / 8) for y in (3 / 16, 11 / 16) for x in (3 / 16, 11 / 16)]
    return tuple(flat.resize((1, 1), Image.Resampling.BOX, box=box).getpixel((0, 0)) for box in boxes)


def upright(data: bytes, tolerance: int = 40) -> bool:
    """Whether the picture is the motif, right way up, no channel further than `tolerance` (of 255) from its colour."""
    seen = corners(data)
    grey = all(max(colour) - min(colour) <= 2 for colour in seen)
    wanted = [(luma, luma, luma) for luma in map(_luma, MOTIF)] if grey else MOTIF
    return all(abs(s - w) <= tolerance for pair in zip(seen, wanted) for s, w in zip(*pair))


def has_hole(data: bytes) -> bool:
    """Whether the transparent square in the middle is still transparent."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    return image.getpixel((image.width // 2, image.height // 2))[3] < 8


def darkest_fringe(data: bytes) -> int:
    """Lowest channel value among pixels that can be seen (alpha over 25 %); 255 when `cutout` has no dark rim."""
    *colours, alpha = Image.open(io.BytesIO(data)).convert("RGBA").split()
    invisible = alpha.point(lambda value: 255 if value <= 64 else 0)
    return min(ImageChops.lighter(band, invisible).getextrema()[0] for band in colours)


def _box(size: tuple[int, int], left: float, top: float, right: float, bottom: float) -> tuple[float, ...]:
    return size[0] * left, size[1] * top, size[0] * right, size[1] * bottom


def _luma(colour: tuple[int, int, int]) -> int:
    return round(0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2])


# --------------------------------------------------------------------------------------------------------- orientation

# EXIF orientation → the turn that undoes it, i.e. how the stored pixels differ from the upright ones.
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
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="%d"/></rdf:RDF></x:xmpmeta>'
)


def orientation(n: int, fmt: str = "JPEG", size: tuple[int, int] = SMALL, xmp: bool = False) -> bytes:
    """The motif stored turned, with the tag (EXIF, or XMP only) that says how to turn it back."""
    image = motif(size)
    stored = image.transpose(STORED_AS[n]) if n in STORED_AS else image
    if xmp:
        packet = XMP % n
        if fmt != "PNG":
            return encoded(stored, fmt, xmp=packet)
        data = encoded(stored, fmt)  # its header ends at byte 33
        return data[:33] + _chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet) + data[33:]
    if fmt == "TIFF":
        return encoded(stored, fmt, tiffinfo={ORIENTATION: n})
    exif = Image.Exif()
    exif[ORIENTATION] = n
    return encoded(stored, fmt, exif=exif)


# ------------------------------------------------------------------------------------------------------ colour profiles


def _icc(kind: bytes, space: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC v2.4 profile: 128-byte header, tag table, tag data (ICC.1:2001-04)."""
    named = {
        b"desc": b"desc\0\0\0\0" + struct.pack(">I", 5) + b"test\0" + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        **tags,
    }
    table, body, start = b"", b"", 128 + 4 + 12 * len(named)
    for name, tag in named.items():
        table += struct.pack(">4sII", name, start + len(body), len(tag))
        body += tag + bytes(-len(tag) % 4)
    header = struct.pack(">I4xI4s4s4s", start + len(body), 0x02400000, kind, space, pcs)
    header += struct.pack(">6H4s28x", 2026, 1, 1, 0, 0, 0, b"acsp") + _xyz(0.9642, 1.0, 0.8249)[8:] + bytes(48)
    return header + struct.pack(">I", len(named)) + table + body


def _xyz(*values: float) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(value * 65536) for value in values))


def rgb_profile(red: tuple[float, ...], green: tuple[float, ...], blue: tuple[float, ...]) -> bytes:
    """Three primaries (XYZ, D50) with sRGB's tone curve."""
    curve = b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *(round(65535 * _linear(i / 1023)) for i in range(1024)))
    tags = {b"rXYZ": _xyz(*red), b"gXYZ": _xyz(*green), b"bXYZ": _xyz(*blue)}
    return _icc(b"mntr", b"RGB ", b"XYZ ", {**tags, b"rTRC": curve, b"gTRC": curve, b"bTRC": curve})


def _linear(v: float) -> float:
    return v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4


# Press inks in all 16 combinations, as Lab in the profile's own 8-bit encoding (L·2.55, a+128, b+128). The three
# overprints and yellow print as the motif's colours: only who uses the profile sees the motif.
INKS = {
    "": (255, 128, 128),
    "C": (140, 91, 78),
    "M": (122, 202, 125),
    "Y": (225, 127, 211),
    "CM": (69, 172, 44),
    "CY": (164, 71, 176),
    "MY": (111, 193, 179),
    "CMY": (58, 128, 128),
}


def cmyk_profile() -> bytes:
    """A printer profile with a two-point lookup table, CMYK → Lab; K is deep black, so all intents give the same."""
    table = b""
    for used in itertools.product((False, True), repeat=4):
        ink = "".join(itertools.compress("CMYK", used))
        table += bytes((0, 128, 128)) if "K" in ink else bytes(INKS[ink])
    identity = struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + identity + bytes(range(256)) * 4 + table + bytes(range(256)) * 3
    return _icc(b"prtr", b"CMYK", b"Lab ", {b"A2B0": lut})


_P3 = (0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)
_SRGB = (0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)
DISPLAY_P3 = rgb_profile(*_P3)
SRGB = rgb_profile(*_SRGB)
SWAPPED = rgb_profile(_SRGB[1], _SRGB[2], _SRGB[0])  # bands are green, blue, red: nobody can overlook it unused
LINEAR_GREY = _icc(b"mntr", b"GRAY", b"XYZ ", {b"kTRC": b"curv" + bytes(8)})
PRESS = cmyk_profile()


def display_p3(size: tuple[int, int] = LARGE, fmt: str = "JPEG") -> bytes:
    """The motif in Display P3 numbers: up to 40 off until they are converted to sRGB."""
    source, target = (ImageCms.ImageCmsProfile(io.BytesIO(profile)) for profile in (SRGB, DISPLAY_P3))
    return encoded(ImageCms.profileToProfile(motif(size), source, target), fmt, icc_profile=DISPLAY_P3)


def swapped(mode: str = "RGB", size: tuple[int, int] = LARGE, fmt: str = "PNG") -> bytes:
    """The motif with its bands (or its palette's) in another order, and a profile that puts them right."""
    red, green, blue, *alpha = motif(size, "RGBA" if mode == "RGBA" else "RGB").split()
    image = Image.merge("RGBA" if alpha else "RGB", (green, blue, red, *alpha))
    return encoded(image.quantize(8) if mode == "P" else image, fmt, icc_profile=SWAPPED)


def linear_grey(size: tuple[int, int] = LARGE, fmt: str = "JPEG") -> bytes:
    """The grey motif in linear light, much too dark without its profile."""
    image = motif(size, "L").point(lambda value: round(255 * _linear(value / 255)))
    return encoded(image, fmt, icc_profile=LINEAR_GREY)


def cmyk(profile: bool = True, size: tuple[int, int] = LARGE, fmt: str = "JPEG") -> bytes:
    """With the profile solid inks, which it makes the motif's colours; without it the plain complement of the motif."""
    if not profile:
        return encoded(motif(size).convert("CMYK"), fmt)
    solids = [[255 * (ink in solid) for ink in "CMYK"] for solid in ("MY", "CY", "CM", "Y")]
    return encoded(_quadrants("CMYK", solids, size), fmt, icc_profile=PRESS)


def ycck(size: tuple[int, int] = LARGE) -> bytes:
    """A CMYK JPEG as Photoshop stores it: luminance and chroma, inverted, Adobe transform 2."""
    bands = [ImageOps.invert(band) for band in ImageOps.invert(motif(size)).convert("YCbCr").split()]
    data = encoded(Image.merge("CMYK", [*bands, Image.new("L", size)]), "JPEG")
    flag = data.index(b"Adobe") + 11
    return data[:flag] + b"\2" + data[flag + 1 :]


# ------------------------------------------------------------------------------------------- depth, palettes and alpha


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, mode: str, samples: bytes, level: int = 1) -> bytes:
    """A PNG with any depth; Pillow itself writes 16 bits for grey only."""
    colour_type = {"L": 0, "RGB": 2, "LA": 4, "RGBA": 6}[mode]
    stride = len(samples) // height
    rows = b"".join(b"\0" + samples[start : start + stride] for start in range(0, len(samples), stride))
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    chunks = _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(rows, level)), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def deep(mode: str = "RGB", size: tuple[int, int] = LARGE) -> bytes:
    """The motif in 16 bits a sample; v·256 + 128, so that v is what dropping the low byte must give."""
    samples = motif(size, mode).tobytes()
    doubled = bytearray(b"\x80") * (2 * len(samples))
    doubled[::2] = samples
    return png(*size, 16, mode, bytes(doubled))


def deep_ramp(width: int = 1280, height: int = 40) -> bytes:
    """16-bit grey from 0 to 65535, left to right; column x is 65535·x/(width-1), and >> 8 the right 8-bit value."""
    row = struct.pack(f">{width}H", *(65535 * x // (width - 1) for x in range(width)))
    return png(width, height, 16, "L", row * height)


def keyed(mode: str = "RGB", size: tuple[int, int] = LARGE, fmt: str = "PNG") -> bytes:
    """A transparent square made by a tRNS chunk (one colour, or one palette entry) instead of an alpha channel."""
    image = motif(size, mode).copy()
    key = {"RGB": (1, 2, 3), "L": 3, "P": 7}[mode]
    ImageDraw.Draw(image).rectangle(_box(size, 3 / 8, 3 / 8, 5 / 8, 5 / 8), fill=key)
    return encoded(image, fmt, transparency=key)


def cutout(size: tuple[int, int] = (1280, 1280), fmt: str = "PNG") -> bytes:
    """A white disc whose transparent surroundings hide black; `darkest_fringe` sees if it leaks into the edge."""
    alpha = Image.radial_gradient("L").resize(size).point(lambda value: 255 if value < 150 else 0)
    return encoded(Image.merge("RGBA", [alpha] * 4), fmt)


def frames(fmt: str, size: tuple[int, int] = LARGE, mode: str = "RGB") -> bytes:
    """The motif, then a black frame (GIF, WEBP, PNG, TIFF, MPO)."""
    black = Image.new("RGB", size)
    options = {"MPO": {}, "TIFF": {}}.get(fmt, {"duration": 200, "loop": 0})
    return encoded(motif(size, "P" if fmt == "GIF" else mode), fmt, save_all=True, append_images=[black], **options)


# ---------------------------------------------------------------------------------------------- monsters and impostors


def padded(size: int, fmt: str = "JPEG") -> bytes:
    """A good picture of exactly `size` bytes; what follows its end is ignored."""
    return picture(fmt=fmt).ljust(size, b"\0")


def flipped(data: bytes, seed: int, flips: int = 20) -> bytes:
    """`data` with some random bytes replaced; the first eight, which name the format, stay."""
    dice, broken = random.Random(seed), bytearray(data)
    for _ in range(flips):
        broken[dice.randrange(8, len(broken))] = dice.randrange(256)
    return bytes(broken)


def huge(width: int = 12_000, height: int = 8_000) -> bytes:
    """A JPEG of 96 megapixels in milliseconds: two encoded strips of 16 lines, repeated between restart markers."""
    image = motif((width, 32))
    halves = (image.crop((0, top, width, top + 16)) for top in (0, 16))
    top, bottom = (encoded(half, "JPEG", quality=75, subsampling=2) for half in halves)
    frame, scan = top.index(b"\xff\xc0"), top.index(b"\xff\xda")
    header = top[: frame + 5] + struct.pack(">H", height) + top[frame + 7 : scan]
    every = b"\xff\xdd\0\4" + struct.pack(">H", width // 16)  # DRI: a restart marker after each strip
    strips = [(top if y < height // 2 else bottom)[scan + 14 : -2] for y in range(0, height, 16)]
    marked = (strip + bytes((0xFF, 0xD0 + i % 8)) for i, strip in enumerate(strips))
    return header + every + top[scan : scan + 14] + b"".join(marked)[:-2] + b"\xff\xd9"


def stuffed(size: int) -> bytes:
    """A small JPEG with that much metadata, in comments of 64 KiB."""
    data, comment = picture(fmt="JPEG"), b"\xff\xfe\xff\xff" + bytes(65533)
    return data[:2] + comment * (size // len(comment) + 1) + data[2:]


def cut(data: bytes, share: float = 0.6) -> bytes:
    return data[: int(len(data) * share)]


def heic() -> bytes:
    """A real HEIC where pillow_heif is installed, else a header that says so."""
    try:
        import pillow_heif
    except ImportError:
        return b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
    file = io.BytesIO()
    pillow_heif.from_pillow(motif()).save(file)
    return file.getvalue()


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("index.html", HTML)
    return file.getvalue()


HTML = "<!doctype html><title>502 Bad Gateway</title><script>alert(1)</script>"
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="400" height="300"><circle r="99" fill="red"/></svg>'
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[]/Count 0>>endobj\n%%EOF\n"
AVIF_HEADER = b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf" + bytes(64)

# ------------------------------------------------------------------------------------------------------------ the table

SAME, REMADE, SENT, REFUSED = "same", "remade", "sent", "refused"


class Trap(NamedTuple):
    """One picture and its due: SAME bytes go out, it is REMADE, it is SENT (either will do), or it is REFUSED."""

    make: Callable[[], bytes]
    fate: str
    transparent: bool = False  # there is a hole in the middle (`has_hole`)
    tolerance: int = 40  # for `upright`; 0: not the motif

    @property
    def data(self) -> bytes:
        return _made(self.make)


@cache
def _made(make: Callable[[], bytes]) -> bytes:
    return make()


def _big(mode: str = "RGB", fmt: str = "PNG", **save: Any) -> Callable[[], bytes]:
    return partial(picture, *LARGE, mode, fmt, **save)


def _noise(width: int, height: int, mode: str = "RGB") -> Callable[[], bytes]:
    return partial(picture, width, height, mode, noise=True)


TRAPS: dict[str, Trap] = {
    # within the limits
    "plain.png": Trap(picture, SAME, tolerance=1),
    "plain.jpg": Trap(partial(picture, fmt="JPEG"), SAME, tolerance=8),
    "plain.webp": Trap(partial(picture, fmt="WEBP"), SAME, tolerance=1),
    "hole.png": Trap(partial(picture, mode="RGBA"), SAME, transparent=True),
    "one-pixel.png": Trap(partial(picture, 1, 1), SAME, tolerance=0),
    "exactly-1024.png": Trap(partial(picture, 1024, 1024), SAME),
    "exactly-1-mib.jpg": Trap(partial(padded, 1_048_576), SAME),
    "a-byte-over-1-mib.jpg": Trap(partial(padded, 1_048_577), REMADE),
    "1025-wide.png": Trap(partial(picture, 1025, 700), REMADE),
    "large.png": Trap(_big(), REMADE, tolerance=12),
    "large.jpg": Trap(_big(fmt="JPEG"), REMADE, tolerance=12),
    "large.webp": Trap(_big(fmt="WEBP"), REMADE, tolerance=12),
    "large.bmp": Trap(_big(fmt="BMP"), REMADE, tolerance=12),
    "small.bmp": Trap(partial(picture, fmt="BMP"), REMADE, tolerance=12),
    "small.tiff": Trap(partial(picture, fmt="TIFF"), REMADE, tolerance=12),
    **({"small.avif": Trap(partial(picture, fmt="AVIF"), REMADE)} if features.check("avif") else {}),
    # orientation
    "exif-1.jpg": Trap(partial(orientation, 1), SAME),
    **{f"exif-{n}.jpg": Trap(partial(orientation, n), REMADE) for n in STORED_AS},
    **{f"exif-{n}.png": Trap(partial(orientation, n, "PNG"), REMADE) for n in STORED_AS},
    **{f"exif-{n}.webp": Trap(partial(orientation, n, "WEBP"), REMADE) for n in STORED_AS},
    **{f"exif-{n}.tiff": Trap(partial(orientation, n, "TIFF"), REMADE) for n in STORED_AS},
    "exif-6-large.jpg": Trap(partial(orientation, 6, "JPEG", LARGE), REMADE),
    "exif-6-large.tiff": Trap(partial(orientation, 6, "TIFF", LARGE), REMADE),
    "exif-broken.jpg": Trap(partial(picture, fmt="JPEG", exif=BROKEN_EXIF), SAME),
    "exif-broken.png": Trap(partial(picture, exif=BROKEN_EXIF), SAME),
    "exif-broken-large.png": Trap(_big(exif=BROKEN_EXIF), REMADE),
    "exif-broken-large.webp": Trap(_big(fmt="WEBP", exif=BROKEN_EXIF), REMADE),
    "xmp-6.jpg": Trap(partial(orientation, 6, "JPEG", xmp=True), REMADE),
    "xmp-6.png": Trap(partial(orientation, 6, "PNG", xmp=True), REMADE),
    "xmp-6.webp": Trap(partial(orientation, 6, "WEBP", xmp=True), REMADE),
    # colour
    "cmyk-profile.jpg": Trap(cmyk, REMADE, tolerance=14),
    "cmyk-profile.tiff": Trap(partial(cmyk, fmt="TIFF"), REMADE, tolerance=14),
    "cmyk-profile-small.jpg": Trap(partial(cmyk, size=SMALL), SENT, tolerance=80),
    "cmyk.jpg": Trap(partial(cmyk, False), REMADE, tolerance=14),
    "cmyk-ycck.jpg": Trap(ycck, REMADE, tolerance=14),
    "p3.jpg": Trap(display_p3, REMADE, tolerance=10),
    "p3.png": Trap(partial(display_p3, fmt="PNG"), REMADE, tolerance=10),
    "p3-small.jpg": Trap(partial(display_p3, SMALL), SENT, tolerance=80),
    "swapped.jpg": Trap(partial(swapped, fmt="JPEG"), REMADE, tolerance=10),
    "swapped.webp": Trap(partial(swapped, fmt="WEBP"), REMADE, tolerance=10),
    "swapped-hole.png": Trap(partial(swapped, "RGBA"), REMADE, transparent=True, tolerance=10),
    "swapped-palette.png": Trap(partial(swapped, "P"), REMADE, tolerance=10),
    "grey-profile.jpg": Trap(linear_grey, REMADE, tolerance=14),
    "grey-with-rgb-profile.jpg": Trap(_big("L", "JPEG", icc_profile=DISPLAY_P3), REMADE),
    "rgb-with-cmyk-profile.jpg": Trap(_big("RGB", "JPEG", icc_profile=PRESS), REMADE),
    "garbage-profile.jpg": Trap(_big(fmt="JPEG", icc_profile=b"not a profile" * 20), REMADE),
    "garbage-profile.png": Trap(_big(icc_profile=DISPLAY_P3[:300]), REMADE),
    # depth, palettes, alpha
    **{f"16-bit-{mode}.png": Trap(partial(deep, mode), REMADE, "A" in mode, 12) for mode in ("L", "RGB", "LA", "RGBA")},
    "16-bit-small.png": Trap(partial(deep, "L", SMALL), SENT, tolerance=12),
    "16-bit-wide.png": Trap(partial(deep, "L", (4200, 400)), REMADE, tolerance=12),  # Image.reduce cannot
    "16-bit.tiff": Trap(lambda: encoded(Image.open(io.BytesIO(deep("L", SMALL))), "TIFF"), REMADE, tolerance=12),
    "16-bit-ramp.png": Trap(deep_ramp, REMADE, tolerance=0),
    "1-bit.png": Trap(_big("1"), REMADE),
    "1-bit.tiff": Trap(partial(picture, mode="1", fmt="TIFF"), REMADE),
    "float.tiff": Trap(
        partial(picture, mode="F", fmt="TIFF"), REMADE, tolerance=60
    ),  # white may be 255, or the maximum
    "lab.tiff": Trap(partial(picture, mode="LAB", fmt="TIFF"), REMADE),
    "palette.png": Trap(_big("P"), REMADE),
    "palette-small.png": Trap(partial(picture, mode="P"), SENT),
    "palette-keyed.png": Trap(partial(keyed, "P"), REMADE, transparent=True),
    "palette-keyed.gif": Trap(partial(keyed, "P", SMALL, "GIF"), REMADE, transparent=True),
    "rgb-keyed.png": Trap(partial(keyed, "RGB"), REMADE, transparent=True),
    "grey-keyed.png": Trap(partial(keyed, "L"), REMADE, transparent=True),
    "grey.jpg": Trap(_big("L", "JPEG"), REMADE),
    "grey-hole.png": Trap(_big("LA"), REMADE, transparent=True),
    "hole-large.png": Trap(_big("RGBA"), REMADE, transparent=True),
    "hole-large.webp": Trap(_big("RGBA", "WEBP"), REMADE, transparent=True),
    "opaque-alpha.png": Trap(lambda: encoded(motif(LARGE).convert("RGBA"), "PNG"), REMADE),
    "cutout.png": Trap(cutout, REMADE, tolerance=0),
    # several frames
    **{
        f"frames-{size[0]}.{suffix}": Trap(partial(frames, fmt, size), REMADE if size == LARGE else SENT)
        for size in (SMALL, LARGE)
        for suffix, fmt in {"gif": "GIF", "webp": "WEBP", "png": "PNG", "jpg": "MPO", "tiff": "TIFF"}.items()
    },
    "frames-hole.png": Trap(partial(frames, "PNG", mode="RGBA"), REMADE, transparent=True),
    # shapes and sizes
    "1x5000.png": Trap(partial(picture, 1, 5000), REMADE, tolerance=0),
    "5000x1.png": Trap(partial(picture, 5000, 1), REMADE, tolerance=0),
    "noise-1024.png": Trap(_noise(1024, 1024), REMADE, tolerance=0),
    "noise-1024-alpha.png": Trap(_noise(1024, 1024, "RGBA"), REMADE, tolerance=0),
    "noise-3000.png": Trap(_noise(3000, 2000), REMADE, tolerance=0),
    "96-mp.jpg": Trap(huge, REMADE),
    # two things at once, and too much of one
    "metadata-2-mib.jpg": Trap(partial(stuffed, 2 << 20), REMADE),
    "zip-behind.png": Trap(lambda: picture() + zipped(), SAME),
    "html-behind.png": Trap(lambda: picture() + HTML.encode(), SAME),
    "html-inside.jpg": Trap(partial(picture, fmt="JPEG", comment=HTML), SAME),
    # not for sending
    "bomb.png": Trap(lambda: png(30_000, 30_000, 8, "RGB", bytes(30_000)), REFUSED),
    "bomb.gif": Trap(lambda: b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02L\x01\0;", REFUSED),
    "cut.jpg": Trap(lambda: cut(picture(800, 600, fmt="JPEG", noise=True)), REFUSED),
    "cut.png": Trap(lambda: cut(picture(800, 600, noise=True)), REFUSED),
    "cut.webp": Trap(lambda: cut(picture(800, 600, fmt="WEBP", noise=True)), REFUSED),
    "cut.gif": Trap(lambda: cut(frames("GIF"), 0.2), REFUSED),
    "cut.tiff": Trap(lambda: cut(picture(fmt="TIFF")), REFUSED),
    "cut-large.jpg": Trap(lambda: cut(picture(2000, 1500, fmt="JPEG", noise=True)), REFUSED),
    "empty.png": Trap(bytes, REFUSED),
    "html.png": Trap(HTML.encode, REFUSED),
    "text.jpg": Trap(lambda: b"the quick brown fox\n" * 100, REFUSED),
    "photo.heic": Trap(heic, REFUSED),
    "header.avif": Trap(lambda: AVIF_HEADER, REFUSED),
    "drawing.eps": Trap(partial(picture, fmt="EPS"), REFUSED),  # Pillow would run Ghostscript on it
    "drawing.svg": Trap(SVG.encode, REFUSED),
    "document.pdf": Trap(lambda: PDF, REFUSED),
}
