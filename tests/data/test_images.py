import cv2
import numpy as np
import PIL.Image
import pytest

from nonlocal_jax import data
from nonlocal_jax.data import images
from nonlocal_jax.errors import InputError


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


def test_lists_files_as_given_and_directories_sorted(tmp_path, picture):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("b.PNG", "a.jpg", "c.jpeg"):
        save(folder / name, picture)
    (folder / "notes.txt").touch()
    other = save(tmp_path / "other.bmp", picture)
    assert data.list_images([other, str(folder)]) == [
        other,
        folder / "a.jpg",
        folder / "b.PNG",
        folder / "c.jpeg",
    ]


def test_refuses_an_empty_directory_and_a_missing_path(tmp_path):
    with pytest.raises(InputError, match=r"has no .*png file; use"):
        data.list_images([tmp_path])
    with pytest.raises(InputError, match=r"cannot read .*nowhere: no such file .*; check"):
        data.list_images([tmp_path / "nowhere"])


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
def test_writes_what_is_read_back(tmp_path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    data.write_png(tmp_path / "a.png", array)
    np.testing.assert_array_equal(np.asarray(PIL.Image.open(tmp_path / "a.png")), array)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


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
