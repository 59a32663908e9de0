import io
import os
import random
import struct
import zlib

import cv2
import numpy as np
import PIL.Image
import pytest

from nonlocal_jax import data
from nonlocal_jax.data import images
from nonlocal_jax.data._decoder_messages import decoder_messages
from nonlocal_jax.errors import InputError
from tests.fuzz import images as fuzz


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)


def save(path, array, **kwargs):
    PIL.Image.fromarray(array).save(path, **kwargs)
    return path


def test_reads_rgb_in_this_channel_order(tmp_path, picture):
    np.testing.assert_array_equal(data.read_image(save(tmp_path / "a.png", picture)), picture)


def test_reads_gray_as_rgb(tmp_path, picture):
    gray = picture[..., 0]
    read = data.read_image(save(tmp_path / "a.png", gray))
    np.testing.assert_array_equal(read, np.repeat(gray[..., None], 3, -1))


def test_drops_alpha(tmp_path, picture):
    rgba = np.concatenate([picture, picture[..., :1]], -1)
    np.testing.assert_array_equal(data.read_image(save(tmp_path / "a.png", rgba)), picture)


def test_reads_the_high_byte_of_16_bits(tmp_path, picture):
    deep = picture[..., 0].astype(np.uint16) * 256 + 77
    cv2.imwrite(str(tmp_path / "a.png"), deep)
    read = data.read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, np.repeat(picture[..., :1], 3, -1))


def test_reads_a_palette_as_its_colors(tmp_path):
    index = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    colors = np.array([(255, 0, 0), (0, 200, 0), (1, 2, 3)], np.uint8)
    paletted = PIL.Image.fromarray(index, mode=None).convert("P")
    paletted.putpalette(colors.tobytes())
    paletted.save(tmp_path / "a.png")
    np.testing.assert_array_equal(data.read_image(tmp_path / "a.png"), colors[index])


def test_ignores_the_orientation_that_exif_asks_for(tmp_path, picture):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    path = save(tmp_path / "a.jpg", picture, exif=exif)
    assert PIL.ImageOps.exif_transpose(PIL.Image.open(path)).size == (12, 20)
    assert data.read_image(path).shape == (12, 20, 3)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_an_upright_image_is_the_one_that_other_programs_show(tmp_path, picture, kind):
    for orientation in range(1, 9):
        exif = PIL.Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / "a", picture, format=kind, exif=exif)
        shown = PIL.ImageOps.exif_transpose(PIL.Image.open(path))
        np.testing.assert_array_equal(data.read_image(path, upright=True), np.asarray(shown))


def truncated(path, picture, suffix):
    save(path.with_suffix(suffix), picture)
    whole = path.with_suffix(suffix).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize(
    "make",
    [
        lambda path, picture: truncated(path, picture, ".png"),
        lambda path, picture: truncated(path, picture, ".jpg"),
        lambda path, picture: path.write_text("not an image"),
        lambda path, picture: path.write_bytes(b""),
        lambda path, picture: None,
        lambda path, picture: path.mkdir(),
    ],
    ids=["truncated png", "truncated jpeg", "text", "empty", "missing", "directory"],
)
def test_a_file_that_is_not_a_complete_image_is_named(tmp_path, picture, make):
    path = tmp_path / "input"
    make(path, picture)
    with pytest.raises(InputError, match="input"):
        data.read_image(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("png of 10,000 megapixels", "100000x100000 pixels, more than the limit of 128 megapixels"),
        ("jpeg of 1,024 megapixels", "32000x32000 pixels, more than the limit of 128 megapixels"),
        ("png with a chunk of 2 GiB", "not a complete PNG or JPEG"),
        ("bmp of 900 megapixels", "is a BMP image; export or convert it to JPEG or PNG"),
        ("html", "is an HTML page"),
    ],
)
def test_an_image_is_not_decoded_if_it_claims_too_much(monkeypatch, name, message):
    monkeypatch.setattr(cv2, "imdecode", None)
    with pytest.raises(InputError, match=f"^the image .*{message}"):
        images.decode_image(fuzz.hostile()[name], "the image")


def test_the_limit_of_the_size_is_an_argument(tmp_path, picture):
    path = save(tmp_path / "a.png", picture)  # 20 x 12
    assert data.read_image(path, max_megapixels=240e-6).shape == (12, 20, 3)
    with pytest.raises(InputError, match=r"20x12 pixels, more than the limit of 0\.000239 mega"):
        data.read_image(path, max_megapixels=239e-6)


def test_the_size_is_the_one_that_the_decoder_uses():
    content = fuzz.hostile()["jpeg with a size behind a zero marker"]
    with pytest.raises(InputError, match=r"has 44x36 pixels, more than the limit of 0\.001 mega"):
        images.decode_image(content, "a.jpg", max_megapixels=1e-3)


def test_a_jpeg_that_was_cut_short_inside_is_refused(tmp_path):
    """With an end of its own, or with zeros to its length. Neither is an error in OpenCV."""
    for name in ("jpeg RGB", "jpeg CMYK", "jpeg restarts"):
        whole = fuzz.whole()[name]
        start = whole.index(b"\xff\xda") + 14
        for cut in range(start, len(whole) - 16, 40):
            for rest in (b"\xff\xd9", bytes(len(whole) - cut)):
                (tmp_path / "a.jpg").write_bytes(whole[:cut] + rest)
                with pytest.raises(InputError, match=r"a\.jpg is (damaged or was cut|not a compl)"):
                    data.read_image(tmp_path / "a.jpg")


def test_what_follows_a_jpeg_is_ignored(tmp_path):
    """Cameras append previews and more."""
    whole = fuzz.whole()["jpeg RGB"]
    for rest in (b"MotionPhoto", whole, whole[:200]):
        (tmp_path / "a.jpg").write_bytes(whole + rest)
        np.testing.assert_array_equal(
            data.read_image(tmp_path / "a.jpg"), images.decode_image(whole, "a")
        )


def test_decoding_is_that_of_opencv():
    """Bit for bit, for all types: training data and published numbers depend on it."""
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    for name, content in fuzz.whole().items():
        expected = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
        np.testing.assert_array_equal(images.decode_image(content, name), expected, err_msg=name)


def test_warnings_of_the_decoders_name_the_file(tmp_path, capfd):
    (tmp_path / "profile.png").write_bytes(fuzz.whole()["png profile"])
    whole = fuzz.whole()["jpeg RGB"]
    (tmp_path / "extra.jpg").write_bytes(whole[:-2] + 60 * b"a" + whole[-2:])
    for name in ("profile.png", "extra.jpg"):
        data.read_image(tmp_path / name)
    png, jpeg = capfd.readouterr().err.splitlines()
    assert png == f"warning: {tmp_path / 'profile.png'}: libpng warning: iCCP: too short"
    assert jpeg.startswith(f"warning: {tmp_path / 'extra.jpg'}: Corrupt JPEG data: ")
    assert jpeg.endswith("extraneous bytes before marker 0xd9")


def test_what_others_print_while_an_image_is_decoded_is_not_lost(capfd):
    with decoder_messages() as messages:
        os.write(2, b"predicting: 1/2\nlibpng warning: iCCP: \x1b[31m\n")
    assert capfd.readouterr().err == "predicting: 1/2\n"
    assert messages == ["libpng warning: iCCP: \\x1b[31m"]


def test_damaged_images_are_read_or_refused(tmp_path, capfd):
    """A part of the fuzzing."""
    path = tmp_path / "a.img"
    contents = [*fuzz.hostile().values()]
    contents += [fuzz.random_one(random.Random(seed)) for seed in range(400)]
    messages = []
    for content in contents:
        path.write_bytes(content)
        try:
            fuzz.read(path)
        except InputError as error:
            messages.append(str(error))
    assert 0.5 < len(messages) / len(contents) < 1
    assert all(map(str.isprintable, messages))
    err = capfd.readouterr().err
    assert all(line.startswith(f"warning: {path}: ") for line in err.splitlines())


def test_a_pipe_or_a_device_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    for path, kind in ((tmp_path / "a.png", "a named pipe"), ("/dev/zero", "a device")):
        for read in (data.read_image, lambda path: data.list_images([path])):
            with pytest.raises(InputError, match=f"cannot read {path}: it is {kind}, not a file"):
                read(path)


@pytest.mark.parametrize(
    ("suffix", "what"),
    [
        (".webp", "a WebP image"),
        (".gif", "a GIF image"),
        (".tiff", "a TIFF image"),
    ],
)
def test_images_of_other_formats_are_recognized(tmp_path, picture, suffix, what):
    path = save(tmp_path / f"a{suffix}", picture)
    with pytest.raises(InputError, match=f"{path} is {what}; export or convert it to JPEG or PNG"):
        data.read_image(path)


def test_avif_images_are_recognized(tmp_path):
    path = tmp_path / "a.avif"
    path.write_bytes(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(100))
    with pytest.raises(InputError, match=f"{path} is an AVIF image; export or convert it"):
        data.read_image(path)


def test_heic_images_are_recognized(tmp_path):
    path = tmp_path / "IMG_4711.HEIC"
    path.write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100))
    with pytest.raises(InputError, match=f"{path} is a HEIC image; export or convert it"):
        data.read_image(path)
    with pytest.raises(InputError, match=r"png file, only\n  IMG_4711.HEIC\nuse a directory of im"):
        data.list_images([tmp_path])


def test_lists_files_as_given_and_directories_sorted(tmp_path, picture, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.PNG", "a.jpg", "c.jpeg"):
        save(folder / name, picture)
    for name in ("notes.txt", "IMG_4711.HEIC", ".hidden"):
        (folder / name).touch()
    other = save(tmp_path / "other.bmp", picture)
    assert data.list_images([other, str(folder)]) == [
        other,
        folder / "a.jpg",
        folder / "b.PNG",
        folder / "c.jpeg",
    ]
    assert capsys.readouterr().err == (
        f"warning: only .jpeg, .jpg, .png files are read; skipped in {folder}:\n"
        "  IMG_4711.HEIC\n  notes.txt\n"
    )


def test_refuses_an_empty_directory_and_a_missing_path(tmp_path):
    with pytest.raises(InputError, match=r"has no .*png file; use"):
        data.list_images([tmp_path])
    with pytest.raises(InputError, match=r"cannot read .*nowhere: No such file .*; check"):
        data.list_images([tmp_path / "nowhere"])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_writes_what_is_read_back(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data.write_png(tmp_path / "a.png", array)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "a.png")), array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("number", [2, 3, 150, 256])
def test_class_indices_with_a_palette_are_read_as_indices_and_shown_as_colors(number):
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 256, (number, 3), np.uint8)
    labels = rng.integers(0, number, (9, 11)).astype(np.uint8)
    content = images.encode_png(labels, palette)
    np.testing.assert_array_equal(images.decode_label(content, "labels"), labels)
    np.testing.assert_array_equal(images.decode_image(content, "colors"), palette[labels])
    assert PIL.Image.open(io.BytesIO(content)).mode == "P"


def test_a_palette_that_only_opencv_can_read_is_refused():
    """PIL limits the size of texts in a PNG."""
    content = images.encode_png(np.zeros((9, 11), np.uint8), [(0, 0, 0)])
    text = b"zTXt" + b"a\0\0" + zlib.compress(bytes(5_000_000))
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    with pytest.raises(InputError, match=r"labels is damaged \(.*; replace the file"):
        images.decode_label(content[:33] + chunk + content[33:], "labels")


def test_a_palette_of_many_pixels_is_read_without_a_warning():
    """PIL warns of more than 90 megapixels. Warnings are errors in tests."""
    labels = np.zeros((9_500, 10_000), np.uint8)
    assert images.decode_label(images.encode_png(labels, [(0, 0, 0)]), "a").shape == labels.shape


@pytest.mark.parametrize("name", ["png RGB", "png I;16", "png LA"])
def test_a_picture_is_no_map_of_class_indices(name):
    with pytest.raises(
        InputError, match=r"labels is uint\d+ .*; use a PNG with a palette or 8-bit"
    ):
        images.decode_label(fuzz.whole()[name], "labels")


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4), np.int32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_arrays_that_are_not_images_are_not_written(tmp_path, array):
    with pytest.raises(InputError, match="uint8"):
        data.write_png(tmp_path / "a.png", array)


# Sizes that mmcv.imrescale returns for (image, base).
@pytest.mark.parametrize(
    ("image_size", "base_size", "expected"),
    [
        ((1024, 2048), (2048, 1024), (1024, 2048)),
        ((1024, 2048), (1024, 512), (512, 1024)),
        ((480, 640), (2048, 512), (512, 683)),
        ((640, 480), (2048, 512), (683, 512)),
        ((100, 1000), (2048, 512), (205, 2048)),
        ((333, 500), (2049, 1025), (1025, 1539)),
    ],
)
def test_keep_ratio_size(image_size, base_size, expected):
    assert data.keep_ratio_size(image_size, base_size) == expected
    assert data.keep_ratio_size(image_size, base_size[::-1]) == expected


def bilinear(image, size):
    """Half-pixel centers, edges repeated, in float64."""
    result = image.astype(float)
    for axis, n in enumerate(size):
        extent = image.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * extent / n - 0.5, 0, extent - 1)
        low = np.floor(at).astype(int)
        high = np.minimum(low + 1, extent - 1)
        shape = [1, 1, 1]
        shape[axis] = n
        weight = (at - low).reshape(shape)
        result = result.take(low, axis) * (1 - weight) + result.take(high, axis) * weight
    return result


@pytest.mark.parametrize("size", [(24, 40), (9, 31), (6, 10)])
def test_resize_is_bilinear(picture, size):
    resized = data.resize_image(picture, size)
    assert resized.dtype == np.uint8
    np.testing.assert_allclose(resized, bilinear(picture, size), atol=1)


def noise(rng, height, width):
    """The hardest image to interpolate: black and white pixels, and a few labels."""
    image = rng.choice(np.array([0, 255], np.uint8), (height, width, 3))
    return image, rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))


def window(rng, size):
    starts = [int(rng.integers(n)) for n in size]
    return tuple(
        slice(start, int(rng.integers(start, n)) + 1) for start, n in zip(starts, size, strict=True)
    )


def test_a_window_is_that_of_the_resized_image():
    """Any size to any size, and to almost the same size."""
    rng = np.random.default_rng(0)
    for number in range(400):
        image, label = noise(rng, *rng.integers(1, 120, 2))
        size = tuple(int(n) for n in rng.integers(1, 300, 2))
        if number % 4 == 0:
            size = tuple(max(n + int(rng.integers(-2, 3)), 1) for n in label.shape)
        part = window(rng, size)
        expected = cv2.resize(label, size[::-1], interpolation=cv2.INTER_NEAREST)
        np.testing.assert_array_equal(images.resize_label_window(label, size, part), expected[part])
        expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)[part]
        np.testing.assert_array_equal(images.resize_window(image, size, part), expected)


def test_columns_of_all_sizes_are_those_of_opencv():
    """Including the sizes for which rounding decides, as 1000 / (1 / 3)."""
    for extent in (1, 3, 49, 64, 100, 255):
        label = np.arange(extent, dtype=np.uint8)[None]
        for n in range(1, 4 * extent):
            expected = cv2.resize(label, (n, 1), interpolation=cv2.INTER_NEAREST)
            whole = slice(0, 1), slice(0, n)
            np.testing.assert_array_equal(
                images.resize_label_window(label, (1, n), whole), expected
            )
            tall = images.resize_label_window(label.T.copy(), (n, 1), whole[::-1])
            np.testing.assert_array_equal(tall.T, expected)


def test_an_image_that_is_not_resized_is_not_resampled():
    image, label = noise(np.random.default_rng(0), 20, 30)
    part = slice(3, 10), slice(4, 30)
    image.flags.writeable = label.flags.writeable = False  # like those of a cache
    for array, resample in ((image, images.resize_window), (label, images.resize_label_window)):
        out = resample(array, (20, 30), part)
        np.testing.assert_array_equal(out, array[part])
        assert np.shares_memory(out, array)
