"""Every kind of image file has the right pixels, or an error with its name; the same in training and prediction."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from whtnet.data import DatasetError
from whtnet.data.pixels import image_suffixes, open_rgb
from whtnet.data.splits import eval_transform


def encoded(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    buffer.seek(0)
    return buffer


def pixels(image, format="PNG", **options):
    rgb = open_rgb(encoded(image, format, **options), "it")
    assert rgb.mode == "RGB"
    return np.asarray(rgb).tolist()


def grey(*values):
    return [[[value] * 3 for value in values]]


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_is_scaled(format):
    values = np.array([[0, 128, 129, 257, 514, 32768, 65535]], dtype=np.uint16)
    expected = grey(*(round(value / 257) for value in values[0].tolist()))
    assert pixels(Image.fromarray(values), format) == expected
    assert expected == grey(0, 0, 1, 1, 2, 128, 255)


def test_32_bit_integers_are_taken_for_16_bits_or_refused():
    assert pixels(Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32)), "TIFF") == grey(0, 1, 255)
    for beyond in (-1, 65536):
        with pytest.raises(DatasetError, match=rf"it can't be decoded.*pixels go from.*{beyond}"):
            pixels(Image.fromarray(np.array([[7, beyond]], dtype=np.int32)), "TIFF")


def test_big_endian_16_bits():
    image = Image.frombytes("I;16B", (3, 1), np.array([0, 257, 65535], dtype=">u2").tobytes())
    assert pixels(image, "TIFF") == grey(0, 1, 255)


@pytest.mark.parametrize(
    ("bits", "white_is", "data", "expected"),
    [
        (16, 0, (0).to_bytes(2, "little") + (65535).to_bytes(2, "little"), (255, 0)),
        (12, 1, bytes([0xFF, 0xF8, 0x08]), (255, 128)),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_tiffs_of_12_bits_and_those_whose_zero_is_white(bits, white_is, data, expected, turned):
    entries = {256: 2, 257: 1, 258: bits, 259: 1, 262: white_is, 273: 8, 274: 1 + turned, 277: 1, 278: 1}
    entries[279] = len(data)
    fields = b"".join(struct.pack("<HHII", tag, 4 if tag == 273 else 3, 1, value) for tag, value in entries.items())
    start = 8 + len(data) + len(data) % 2
    head = struct.pack("<2sHI", b"II", 42, start) + data.ljust(start - 8, b"\0")
    tiff = head + struct.pack("<H", len(entries)) + fields + bytes(4)
    values = np.asarray(open_rgb(io.BytesIO(tiff), "it")).tolist()
    assert values == grey(*(expected[::-1] if turned else expected))


def test_floating_point_is_refused():
    with pytest.raises(DatasetError, match=r"it can't be decoded.*floating-point.*8 or 16 bits"):
        pixels(Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32)), "TIFF")


def test_grey_black_and_white():
    assert pixels(Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8))) == grey(0, 7, 255)
    assert pixels(Image.fromarray(np.array([[False, True]]))) == grey(0, 255)


def test_what_is_transparent_lies_on_white():
    colours = [(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 51)]
    image = Image.new("RGBA", (3, 1))
    image.putdata(colours)
    assert pixels(image) == [[[255, 0, 0], [255, 255, 255], [204, 204, 204]]]
    assert pixels(image, "WEBP", lossless=True, exact=True) == pixels(image)
    grey_alpha = Image.new("LA", (2, 1))
    grey_alpha.putdata([(10, 255), (10, 0)])
    assert pixels(grey_alpha) == grey(10, 255)


def palette():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    return image


def test_palettes():
    assert pixels(palette()) == [[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]
    for format in ("PNG", "GIF"):
        assert pixels(palette(), format, transparency=1) == [[[255, 0, 0], [255, 255, 255], [0, 0, 255]]]
    half = pixels(palette(), transparency=bytes([255, 0, 51]))
    assert half == [[[255, 0, 0], [255, 255, 255], [204, 204, 255]]]


def test_a_colour_that_stands_for_transparent():
    image = Image.new("RGB", (2, 1))
    image.putdata([(1, 2, 3), (4, 5, 6)])
    assert pixels(image, transparency=(1, 2, 3)) == [[[255, 255, 255], [4, 5, 6]]]
    assert pixels(Image.fromarray(np.array([[9, 10]], dtype=np.uint8)), transparency=9) == grey(255, 10)

    assert pixels(Image.fromarray(np.array([[257, 514]], dtype=np.uint16)), transparency=257) == grey(255, 2)


@pytest.mark.parametrize("shape", [(3, 1200), (1200, 3)])
def test_of_long_images_the_middle(shape, monkeypatch):
    values = np.full((*shape, 3), 7, np.uint8)
    values[tuple(slice(side // 2 - 6, side // 2 + 6) if side > 3 else slice(None) for side in shape)] = 200
    transform = eval_transform((32, 32), crop_pct=1.0, use_prefetcher=True)
    sizes, resize = [], Image.Image.resize

    def spy(image, size, *options):
        sizes.append(size)
        return resize(image, size, *options)

    monkeypatch.setattr(Image.Image, "resize", spy)
    assert (np.asarray(transform(Image.fromarray(values))) == 200).all()
    assert max(sizes[0]) == 32 * 16


def test_what_other_programs_would_have_to_decode_is_refused_whatever_its_name(tmp_path):
    (tmp_path / "it.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DatasetError, match=r"it\.png can't be decoded as an image: no format that"):
        open_rgb(tmp_path / "it.png")


def test_the_content_tells_the_format(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "it.jpg", "PNG")
    assert np.asarray(open_rgb(tmp_path / "it.jpg")).tolist() == [[[1, 2, 3]]]


def test_images_too_large_to_be_true_are_named():
    size = (20_000).to_bytes(4, "big")
    chunks = [(b"IHDR", size + size + bytes([8, 0, 0, 0, 0])), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    parts = [len(d).to_bytes(4, "big") + n + d + zlib.crc32(n + d).to_bytes(4, "big") for n, d in chunks]
    with pytest.raises(DatasetError, match=r"it can't be decoded as an image: Image size \(400000000 pixels\)"):
        open_rgb(io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(parts)), "it")


@pytest.mark.parametrize("format", ["TIFF", "JPEG"])  # a JPEG of CMYK holds it inverted, as Adobe does
def test_cmyk(format):
    red, white, grey = (0, 255, 255, 0), (0, 0, 0, 0), (0, 0, 0, 127)
    options = {"quality": 100, "subsampling": 0} if format == "JPEG" else {}
    image = Image.new("CMYK", (24, 8))
    for i, colour in enumerate((red, white, grey)):
        image.paste(colour, (8 * i, 0, 8 * i + 8, 8))
    found = np.asarray(open_rgb(encoded(image, format, **options)))[4, 4::8]
    assert np.abs(found.astype(int) - [[255, 0, 0], [255, 255, 255], [128, 128, 128]]).max() <= 2


def test_ycbcr_and_lab():
    image = Image.new("RGB", (8, 8), (200, 100, 50))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    for other in (image.convert("YCbCr"), ImageCms.applyTransform(image, to_lab)):
        found = np.asarray(open_rgb(encoded(other, "TIFF")))
        assert np.abs(found.astype(int) - [200, 100, 50]).max() <= 3


# Where EXIF's eight orientations put row 0 and column 0 of the stored image, as NumPy turns that upright.
UPRIGHT = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: np.transpose, 6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_exif_orientation(orientation, depth):
    stored = np.arange(6, dtype=depth).reshape(2, 3) * (257 if depth is np.uint16 else 1)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = np.array(pixels(Image.fromarray(stored), exif=exif))[..., 0]
    assert found.tolist() == UPRIGHT[orientation](np.arange(6).reshape(2, 3)).tolist()


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_once(format):
    stored = np.kron(np.arange(0, 240, 40, dtype=np.uint8).reshape(2, 3), np.ones((8, 8), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    found = np.array(pixels(Image.fromarray(stored), format, exif=exif, quality=100)).astype(int)[..., 0]
    assert np.abs(found - np.rot90(stored, -1)).max() <= 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first(format):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if format == "WEBP" else {}
    found = np.array(pixels(first, format, save_all=True, append_images=[second], **options))
    assert (found == [255, 0, 0]).all()


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files_are_named(format, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), format).read()
    for kept in (len(whole) // 2, 20):
        path = tmp_path / f"cut.{format}"
        path.write_bytes(whole[:kept])
        with pytest.raises(DatasetError, match=rf"cut\.{format} can't be decoded as an image"):
            open_rgb(path)
    with pytest.raises(DatasetError, match="text can't be decoded as an image: no format that"):
        open_rgb(io.BytesIO(b"not an image"), "text")


def test_endings_of_images():
    known = image_suffixes()
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".mpo"} <= known
    assert not {".pdf", ".h5", ".eps", ".mpg", ".txt", ".npy"} & known
