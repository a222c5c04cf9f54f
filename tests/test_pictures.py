"""The pictures are what they claim to be, so that tests which send them around mean something."""

from __future__ import annotations

import io
import struct
import time
import zipfile

import pictures
import pytest
from pictures import MOTIF, REFUSED, TRAPS, Trap
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

pytestmark = pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")  # 96-mp.jpg

GOOD = [name for name, trap in TRAPS.items() if trap.fate != REFUSED]
# What Pillow cannot judge: EPS is a good picture to it, if Ghostscript is about.
BAD = [name for name, trap in TRAPS.items() if trap.fate == REFUSED and name != "drawing.eps"]
COLOUR = ["p3", "swapped", "cmyk-profile", "grey-profile"]  # names begin like this: numbers are not sRGB


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def converted(data: bytes) -> Image.Image:
    """The embedded profile → sRGB, by LittleCMS."""
    image = opened(data)
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    if image.mode == "P":
        image = image.convert("RGB")
    return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")


def as_png(image: Image.Image) -> bytes:
    return pictures.encoded(image, "PNG")


def bit_depth(png: bytes) -> tuple[int, int]:
    return png[24], png[25]


# ---------------------------------------------------------------------------------------------------------- the judges


def test_the_motif_has_its_colours_in_their_places():
    assert pictures.corners(pictures.picture()) == MOTIF
    assert [opened(pictures.picture()).getpixel(spot) for spot in [(0, 0), (399, 0), (0, 299), (399, 299)]] == [*MOTIF]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "F", "CMYK"])
def test_the_motif_is_recognised_in_every_mode(mode):
    assert pictures.upright(pictures.picture(mode=mode, fmt="TIFF" if mode in ("F", "CMYK") else "PNG"), tolerance=3)


@pytest.mark.parametrize("mode", ["RGB", "L", "1"])
@pytest.mark.parametrize("turn", list(Image.Transpose))
def test_a_turned_motif_is_noticed_in_colour_and_in_grey(mode, turn):
    assert not pictures.upright(as_png(pictures.motif(mode=mode).transpose(turn)), tolerance=20)


def test_a_black_frame_noise_and_a_hole_are_told_apart():
    assert not pictures.upright(as_png(Image.new("RGB", (400, 300))))
    assert not pictures.upright(pictures.picture(noise=True))
    assert pictures.has_hole(pictures.picture(mode="RGBA"))
    assert not pictures.has_hole(pictures.picture())


def test_a_dark_fringe_is_seen():
    image = opened(pictures.cutout())
    careless = Image.merge("RGBA", [band.resize((1000, 1000), Image.Resampling.LANCZOS) for band in image.split()])
    assert pictures.darkest_fringe(pictures.cutout()) == 255
    assert pictures.darkest_fringe(as_png(image.resize((1000, 1000), Image.Resampling.LANCZOS))) >= 250
    assert pictures.darkest_fringe(as_png(careless)) < 128


def test_noise_is_reproducible_and_does_not_compress():
    assert pictures.picture(64, 64, noise=True, seed=1) == pictures.picture(64, 64, noise=True, seed=1)
    assert pictures.picture(64, 64, noise=True, seed=1) != pictures.picture(64, 64, noise=True, seed=2)
    assert len(as_png(opened(TRAPS["noise-1024.png"].data))) > 3_000_000


# ----------------------------------------------------------------------------------------------------------- the table


def test_making_all_pictures_takes_seconds():
    start = time.perf_counter()
    total = sum(len(trap.make()) for trap in TRAPS.values())
    assert time.perf_counter() - start < 10  # two on a quiet machine
    assert total < 100_000_000


@pytest.mark.parametrize("name", GOOD)
def test_good_pictures_open_and_load(name):
    image = opened(TRAPS[name].data)
    image.load()
    assert image.getpixel((0, 0)) is not None


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures_do_not(name):
    with pytest.raises((OSError, UnidentifiedImageError, Image.DecompressionBombError)):
        opened(TRAPS[name].data).load()


@pytest.mark.parametrize("name", [name for name in GOOD if name != "96-mp.jpg"])
def test_good_pictures_are_the_motif_once_they_are_read_as_meant(name):
    """EXIF obeyed and profile used: then the promise of the table holds for the source, too."""
    trap = TRAPS[name]
    if trap.tolerance:
        image = converted(trap.data) if name.startswith(tuple(COLOUR)) else opened(trap.data)
        if "broken" not in name:
            image = ImageOps.exif_transpose(image)
        if image.mode in ("LAB", "F", "CMYK"):
            image = image.convert("RGB")
        assert pictures.upright(as_png(image), trap.tolerance)
    assert pictures.has_hole(trap.data) == trap.transparent or name == "noise-1024-alpha.png"


def test_some_pictures_are_within_the_limits_and_some_are_over_them():
    for name, trap in TRAPS.items():
        if trap.fate == pictures.SAME:
            assert max(opened(trap.data).size) <= 1024, name
            assert len(trap.data) <= 1_048_576, name
    assert len(TRAPS["exactly-1-mib.jpg"].data) == 1_048_576
    assert len(TRAPS["metadata-2-mib.jpg"].data) > 2_000_000
    assert opened(TRAPS["metadata-2-mib.jpg"].data).size == pictures.SMALL


def test_factories_are_called_once():
    calls = []
    trap = Trap(lambda: calls.append(1) or b"made", REFUSED)
    assert trap.data == trap.data == b"made"
    assert calls == [1]


# --------------------------------------------------------------------------------------------------------- orientation


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("n", range(1, 9))
def test_orientation_is_tagged_and_turns_the_motif_upright(n, fmt):
    data = pictures.orientation(n, fmt)
    image = opened(data)
    assert image.getexif().get(pictures.ORIENTATION) == n
    assert n == 1 or fmt == "TIFF" or not pictures.upright(data)  # Pillow turns TIFFs while loading
    turned = ImageOps.exif_transpose(image)
    assert turned.size == pictures.SMALL
    assert pictures.upright(as_png(turned))


def test_the_stored_pixels_of_a_tiff_are_turned():
    stored = opened(pictures.orientation(6, "TIFF")).tag_v2
    assert (stored[256], stored[257]) == (300, 400)


@pytest.mark.parametrize("name", ["exif-broken.png", "exif-broken-large.webp"])
def test_broken_exif_cannot_be_read(name):
    with pytest.raises(SyntaxError):
        opened(TRAPS[name].data).getexif()


@pytest.mark.parametrize("fmt", ["JPEG", "PNG", "WEBP"])
def test_xmp_orientation_is_there_without_exif(fmt):
    data = pictures.orientation(6, fmt, xmp=True)
    assert b'tiff:Orientation="6"' in data
    assert "exif" not in opened(data).info
    assert opened(data).size == (300, 400)


# -------------------------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize(
    ("profile", "space"),
    [
        (pictures.SRGB, "RGB "),
        (pictures.DISPLAY_P3, "RGB "),
        (pictures.SWAPPED, "RGB "),
        (pictures.LINEAR_GREY, "GRAY"),
        (pictures.PRESS, "CMYK"),
    ],
)
def test_profiles_are_valid(profile, space):
    read = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
    assert read.xcolor_space == space
    assert read.version == 2.4
    assert struct.unpack_from(">I", profile)[0] == len(profile)


@pytest.mark.parametrize(
    ("p3", "srgb"),
    [((234, 51, 35), (255, 0, 0)), ((117, 251, 76), (0, 255, 0)), ((0, 0, 245), (0, 0, 255)), ((99,) * 3, (99,) * 3)],
)
def test_display_p3_colours_have_their_known_srgb_values(p3, srgb):
    image = Image.new("RGB", (1, 1), p3)
    seen = converted(pictures.encoded(image, "PNG", icc_profile=pictures.DISPLAY_P3)).getpixel((0, 0))
    assert all(abs(a - b) <= 4 for a, b in zip(seen, srgb))


def test_our_srgb_is_srgb():
    seen = converted(pictures.picture(icc_profile=pictures.SRGB))
    assert all(abs(a - b) <= 1 for pair in zip(pictures.corners(as_png(seen)), MOTIF) for a, b in zip(*pair))


@pytest.mark.parametrize("name", [name for name in GOOD if name.startswith(tuple(COLOUR)) and "small" not in name])
def test_colours_are_wrong_without_their_profile_and_right_with_it(name):
    trap = TRAPS[name]
    assert not pictures.upright(trap.data, trap.tolerance)
    assert pictures.upright(as_png(converted(trap.data)), trap.tolerance)


@pytest.mark.parametrize("name", ["cmyk-profile.jpg", "cmyk-profile.tiff", "cmyk.jpg", "cmyk-ycck.jpg"])
def test_cmyk_is_cmyk(name):
    image = opened(TRAPS[name].data)
    assert image.mode == "CMYK"
    assert ("icc_profile" in image.info) == ("profile" in name)


def test_the_adobe_marker_says_how_ink_is_stored():
    assert opened(TRAPS["cmyk.jpg"].data).info["adobe_transform"] == 0
    assert opened(TRAPS["cmyk-ycck.jpg"].data).info["adobe_transform"] == 2


@pytest.mark.parametrize("name", ["garbage-profile.jpg", "garbage-profile.png"])
def test_garbage_profiles_are_garbage(name):
    with pytest.raises((OSError, ImageCms.PyCMSError)):  # on reading the one, on using the other
        converted(TRAPS[name].data)


@pytest.mark.parametrize("name", ["grey-with-rgb-profile.jpg", "rgb-with-cmyk-profile.jpg"])
def test_profiles_of_another_colour_space_cannot_be_used(name):
    with pytest.raises(ImageCms.PyCMSError):
        converted(TRAPS[name].data)


# ------------------------------------------------------------------------------------------- depth, palettes and alpha


@pytest.mark.parametrize(("mode", "kind"), [("L", 0), ("RGB", 2), ("LA", 4), ("RGBA", 6)])
def test_deep_pictures_have_16_bits_a_sample(mode, kind):
    assert bit_depth(TRAPS[f"16-bit-{mode}.png"].data) == (16, kind)


def test_a_16_bit_tiff_stays_16_bit():
    assert opened(TRAPS["16-bit.tiff"].data).mode == "I;16"


def test_the_ramp_spans_all_of_16_bits():
    image = opened(TRAPS["16-bit-ramp.png"].data)
    assert image.mode == "I;16"
    assert image.getextrema() == (0, 65535)
    assert [image.getpixel((x, 20)) for x in (0, 1, 640, 1279)] == [0, 51, 32793, 65535]


@pytest.mark.parametrize(
    ("name", "mode", "kind"),
    [("1-bit", "1", (1, 0)), ("palette", "P", None), ("palette-keyed", "P", None), ("rgb-keyed", "RGB", (8, 2))]
    + [("grey-keyed", "L", (8, 0)), ("grey-hole", "LA", (8, 4)), ("opaque-alpha", "RGBA", (8, 6))],
)
def test_modes(name, mode, kind):
    data = TRAPS[f"{name}.png"].data
    image = opened(data)
    assert image.mode == mode
    assert kind is None or bit_depth(data) == kind
    assert ("transparency" in image.info) == ("keyed" in name)


@pytest.mark.parametrize("size", [pictures.SMALL, pictures.LARGE])
@pytest.mark.parametrize(
    ("suffix", "fmt"), [("gif", "GIF"), ("webp", "WEBP"), ("png", "PNG"), ("jpg", "MPO"), ("tiff", "TIFF")]
)
def test_there_are_two_frames_the_second_is_black(suffix, fmt, size):
    image = opened(TRAPS[f"frames-{size[0]}.{suffix}"].data)
    assert (image.format, image.n_frames, image.size) == (fmt, 2, size)
    image.seek(1)
    assert image.convert("RGB").getextrema() == ((0, 0),) * 3


# ---------------------------------------------------------------------------------------------- monsters and impostors


def test_the_96_megapixel_picture_is_whole_and_upright():
    image = opened(TRAPS["96-mp.jpg"].data)
    assert image.size == (12_000, 8_000)
    image.draft("RGB", (1024, 1024))
    image.load()
    assert pictures.upright(as_png(image), tolerance=8)


def test_the_bombs_are_tiny_files():
    for name in ("bomb.png", "bomb.gif"):
        assert len(TRAPS[name].data) < 500
        with pytest.raises(Image.DecompressionBombError):
            opened(TRAPS[name].data)


@pytest.mark.parametrize("name", [name for name in BAD if name.startswith("cut")])
def test_cut_pictures_open_but_do_not_load(name):
    image = opened(TRAPS[name].data) if name != "cut.webp" else None  # whose decoder wants it all
    with pytest.raises(OSError):
        (image or opened(TRAPS[name].data)).load()


def test_polyglots_are_both():
    assert zipfile.ZipFile(io.BytesIO(TRAPS["zip-behind.png"].data)).namelist() == ["index.html"]
    assert pictures.HTML.encode() in TRAPS["html-behind.png"].data
    assert opened(TRAPS["html-inside.jpg"].data).info["comment"] == pictures.HTML.encode()


@pytest.mark.parametrize(
    ("name", "magic"),
    [
        ("photo.heic", b"ftyphei"),
        ("header.avif", b"ftypavif"),
        ("drawing.eps", b"%!PS-Adobe"),
        ("document.pdf", b"%PDF"),
    ],
)
def test_impostors_have_the_magic_of_what_they_are(name, magic):
    assert magic in TRAPS[name].data[:16]


def test_flipping_changes_some_bytes_the_same_ones_every_time():
    data = pictures.picture()
    broken = pictures.flipped(data, seed=7, flips=5)
    assert broken == pictures.flipped(data, seed=7, flips=5)
    assert len(broken) == len(data)
    assert 1 <= sum(a != b for a, b in zip(broken, data)) <= 5
    assert broken[:8] == data[:8]
