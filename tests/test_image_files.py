"""The one decoder: what a user's image files hold is read upright and in 8 bits, or named."""

import io
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageCms

from ldm.data.images import ImageSource, load_image
from ldm.images import read_image
from ldm.util import UserError

ORIENTATION = 0x0112
# Left red, right blue, and the lower half darker: no two turns of it are alike.
UPRIGHT = np.zeros((16, 32, 3), np.uint8)
UPRIGHT[:, :16, 0], UPRIGHT[:, 16:, 2], UPRIGHT[8:] = 240, 240, UPRIGHT[8:] // 2
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
         5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}
BACK = {6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}  # of turns that are not their own inverse


def ramp(*, dtype, full):
    return np.linspace(0, full, 256).reshape(16, 16).astype(dtype)


def saved(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    return path


def png(path, color=(255, 0, 0)):
    return saved(path, Image.new("RGB", (8, 8), color))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("orientation", sorted(TURNS))
def test_every_orientation_is_turned_upright(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = Image.fromarray(UPRIGHT).transpose(BACK.get(orientation, TURNS[orientation]))
    path = saved(tmp_path / f"a{suffix}", stored, exif=exif, **({"quality": 95} if suffix != ".tif" else {}))
    image = read_image(path)
    assert image.shape == UPRIGHT.shape and np.abs(image.astype(int) - UPRIGHT).mean() < 12
    square = (load_image(ImageSource(path), 16).permute(1, 2, 0).numpy() + 1) * 127.5
    assert np.abs(square - UPRIGHT[:, 8:24]).mean() < 12


def test_exif_that_cannot_be_written_again_still_turns_an_image_upright(tmp_path, monkeypatch):
    exif = Image.Exif()
    exif[ORIENTATION] = 3
    path = saved(tmp_path / "a.png", Image.fromarray(UPRIGHT).transpose(TURNS[3]), exif=exif)
    monkeypatch.setattr(Image.Exif, "tobytes", lambda *_: 1 / 0)
    assert np.array_equal(read_image(path), UPRIGHT)


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"no exif at all",
                                  b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x04abc\0\0\0\0\0",   # an orientation that is text
                                  b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0\0\0\0\0"])  # the orientation 99
def test_damaged_exif_leaves_a_good_image_as_it_is(tmp_path, exif):
    path = saved(tmp_path / "a.jpg", Image.fromarray(UPRIGHT), exif=exif, quality=95)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.abs(read_image(path).astype(int) - UPRIGHT).mean() < 12


@pytest.mark.parametrize(("suffix", "dtype", "full"), [
    (".png", np.uint16, 65535), (".tif", np.uint16, 65535), (".pgm", np.uint16, 65535), (".tif", np.int32, 65535),
    (".tif", np.int32, 2**31 - 1), (".tif", np.float32, 1), (".tif", np.float32, 255), (".tif", np.float32, 65535)])
def test_deep_grey_values_are_scaled_and_not_clipped(tmp_path, suffix, dtype, full):
    image = read_image(saved(tmp_path / f"a{suffix}", Image.fromarray(ramp(dtype=dtype, full=full))))
    assert image.shape == (16, 16, 3) and np.abs(image[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


def test_values_that_are_no_numbers_are_black(tmp_path):
    values = ramp(dtype=np.float32, full=1)
    values[0, :3] = np.nan, np.inf, -1
    assert read_image(saved(tmp_path / "a.tif", Image.fromarray(values)))[0, :3].max() == 0


def test_an_image_without_a_number_is_refused(tmp_path):
    with pytest.raises(UserError, match="no pixel of it is a finite number"):
        read_image(saved(tmp_path / "a.tif", Image.fromarray(np.full((4, 4), np.nan, np.float32))))


def test_the_transparent_value_of_16_bits_lies_over_white(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.array([[0, 257]], np.uint16)).save(path)
    chunk = b"tRNS" + bytes([0, 0])
    head, data, rest = path.read_bytes().partition(b"IDAT")
    path.write_bytes(head[:-4] + bytes([0, 0, 0, 2]) + chunk + zlib.crc32(chunk).to_bytes(4) + head[-4:] + data + rest)
    assert read_image(path)[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "PA"])
def test_transparency_lies_over_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 2), (200, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 2, 2))
    if mode == "P":
        path = saved(tmp_path / "a.gif", image.convert("P"), transparency=image.convert("P").getpixel((3, 0)))
    else:
        path = saved(tmp_path / ("a.png" if mode != "PA" else "a.webp"), image if mode in ("RGBA", "PA") else image.convert(mode))
    pixels = read_image(path)
    assert pixels[0, 0].max() < 5 and pixels[0, 3].min() > 250


def lab_tiff(path):
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    return saved(path, ImageCms.applyTransform(Image.new("RGB", (4, 4), (200, 40, 40)), transform))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_other_color_spaces_become_rgb(tmp_path, mode):
    red = Image.new("RGB", (4, 4), (200, 40, 40))
    path = lab_tiff(tmp_path / "a.tif") if mode == "LAB" else saved(tmp_path / "a.jpg", red.convert(mode), quality=95)
    assert np.abs(read_image(path).astype(int) - np.array([200, 40, 40])).max() < 12


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette_images_become_rgb(tmp_path, mode):
    assert np.array_equal(read_image(saved(tmp_path / "a.png", Image.new("L", (3, 2), 255).convert(mode))), np.full((2, 3, 3), 255))


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_an_animation_is_its_first_frame(tmp_path, suffix):
    first, second = (Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 0, 255)))
    path = saved(tmp_path / f"a{suffix}", first, save_all=True, append_images=[second])
    assert np.abs(read_image(path).astype(int) - np.array([255, 0, 0])).max() < 8


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (300, 1)])
def test_the_smallest_images_are_read(tmp_path, size):
    path = saved(tmp_path / "a.png", Image.new("RGB", size, "white"))
    assert read_image(path).shape == (size[1], size[0], 3) and load_image(ImageSource(path), 8).min() == 1


def bmp(path, width, height):
    """A file of a few bytes that claims to be large."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "BMP")
    content = buffer.getvalue()
    path.write_bytes(content[:18] + struct.pack("<ii", width, height) + content[26:])
    return path


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.jpg", b"", "it is empty"), ("a.jpg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "begins with b.<svg"),
    ("a.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "no format that Pillow opens"), ("a.png", b"%!PS-Adobe-3.0 EPSF-3.0\n", "no format"),
    ("a.png", b"version https://git-lfs.github.com/spec/v1", "begins with b'version"), ("a.gif", b"GIF89a", "cannot be read")])
def test_what_is_no_image_is_named_with_how_it_begins(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name} cannot be read.*{words}|{name} .*{words}"):
        read_image(tmp_path / name)
    with pytest.raises(UserError, match=name):
        load_image(ImageSource(tmp_path / name), 8)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif", ".bmp", ".jp2", ".avif"])
def test_a_cut_file_is_refused_whatever_its_format(tmp_path, suffix):
    path = saved(tmp_path / f"a{suffix}", Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[:int(share * len(content))])
        with pytest.raises(UserError, match=f"a{suffix} cannot be read"):
            read_image(path)


def test_a_decompression_bomb_is_refused_and_a_large_image_warns_of_nothing(tmp_path):
    with pytest.raises(UserError, match=r"bomb\.bmp cannot be read.*pixels.*scale it down"):
        read_image(bmp(tmp_path / "bomb.bmp", 20_000, 20_000))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match="truncated"):
            read_image(bmp(tmp_path / "large.bmp", 10_000, 10_000))
    assert not said


def test_a_file_whose_suffix_lies_and_one_that_is_not_there(tmp_path):
    saved(tmp_path / "a.jpg", Image.fromarray(UPRIGHT), format="PNG")
    assert np.array_equal(read_image(tmp_path / "a.jpg"), UPRIGHT)
    with pytest.raises(UserError, match=r"none\.png cannot be read"):
        read_image(tmp_path / "none.png")


def test_threads_decode_alike(tmp_path):
    paths = [png(tmp_path / f"{number}.png", (number, 0, 0)) for number in range(32)]
    with ThreadPoolExecutor(8) as threads:
        assert [image[0, 0, 0] for image in threads.map(read_image, paths)] == list(range(32))
