"""The pictures are what they claim to be, so that tests which send them around mean something."""

from __future__ import annotations

import io

import pictures
import pytest
from PIL import Image, ImageCms, ImageOps


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("fmt", ["JPEG", "TIFF"])
@pytest.mark.parametrize("n", range(1, 9))
def test_orientation_is_tagged_and_turns_the_motif_upright(n: int, fmt: str) -> None:
    data = pictures.orientation(n, fmt)
    assert opened(data).getexif()[pictures.ORIENTATION] == n
    assert fmt == "TIFF" or pictures.upright(data) == (n == 1)  # Pillow turns TIFFs by itself
    turned = ImageOps.exif_transpose(opened(data))
    assert turned.size == pictures.SMALL
    assert pictures.upright(pictures.encoded(turned, "PNG"))


@pytest.mark.parametrize("make", [pictures.display_p3, pictures.cmyk])
def test_colours_are_wrong_without_their_profile_and_right_with_it(make) -> None:
    image = opened(make())
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    srgb = ImageCms.createProfile("sRGB")
    meant = ImageCms.profileToProfile(image, profile, srgb, outputMode="RGB")
    assert not pictures.upright(make(), 14)
    assert pictures.upright(pictures.encoded(meant, "PNG"), 14)


def test_ramp_spans_all_of_16_bits() -> None:
    assert opened(pictures.deep_ramp()).getextrema() == (0, 65535)
