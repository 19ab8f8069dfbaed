"""From an image file to pixels: the one way in training, evaluation and prediction."""

from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from whtnet.data.errors import DatasetError

# Opened by Pillow, but only to hand them on to a program that may not be there, or without pixels at all.
_WITHOUT_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF"}


def image_suffixes() -> frozenset[str]:
    """Lower-case endings of the files that Pillow reads here, such as ``.webp``."""
    formats = {*_formats(), "MPO"}  # which is opened as JPEG
    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats)


def _formats() -> list[str]:
    Image.init()
    return sorted(set(Image.OPEN) - _WITHOUT_PIXELS)


def open_rgb(file: str | Path | BinaryIO, name: str = "") -> Image.Image:
    """Decode an image, the first one of several in a file: ``(H, W, 3)``, uint8, upright.

    Args:
        file: the encoded image.
        name: for messages; the path if empty.

    Raises:
        DatasetError: if it can't be decoded, or has no range of brightness that is known (:func:`to_rgb`).
    """
    try:
        with Image.open(file, formats=_formats()) as image:
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise DatasetError(f"{name or file} can't be decoded as an image: no format that Pillow knows") from error
    except Exception as error:  # on a damaged file, Pillow's readers raise nearly anything
        raise DatasetError(f"{name or file} can't be decoded as an image: {error}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image as EXIF says, and bring any kind of pixel to RGB of 8 bits.

    16-bit grey is scaled (65535 is white, 4095 in a TIFF of 12 bits), not clipped. What is transparent lies on white,
    as in most viewers. CMYK is converted by Pillow's rule, without a colour profile; it knows that JPEG files of that
    kind are inverted.

    Raises:
        ValueError: for floating-point pixels and integers outside 0..65535, whose white is unknown.
    """
    tags = getattr(image, "tag_v2", {})  # of a TIFF; the image turned upright has none
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        white = 4095 if tags.get(ExifTags.Base.BitsPerSample) == (12,) else 65535
        return _from_16_bits(image, white, inverted=tags.get(ExifTags.Base.PhotometricInterpretation) == 0)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image, white: int, inverted: bool) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > white:
        raise ValueError(f"its pixels go from {values.min()} to {values.max()}; save it with 8 or 16 bits")
    if inverted:  # 0 is white, which Pillow heeds in images of 8 bits alone
        values = white - values
    values[values == image.info.get("transparency", -1)] = white  # the grey that stands for transparent
    return Image.fromarray(((255 * values + white // 2) // white).astype(np.uint8)).convert("RGB")
