"""Images as the mapper gets them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from detectron2.data import detection_utils
from person_search.data.images import image_size, image_sizes, read_image
from person_search.data.video import video_frame_name
from person_search.errors import ConfigError, DatasetError
from PIL import Image


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 255, (30, 50, 3), dtype=np.uint8)


def test_channels_come_in_the_order_asked_for(tmp_path, pixels):
    file = str(tmp_path / "a.png")
    Image.fromarray(pixels).save(file)
    rgb, bgr = read_image(file), read_image(file, "BGR")
    np.testing.assert_array_equal(rgb, pixels)
    np.testing.assert_array_equal(bgr, pixels[:, :, ::-1])
    for image in (rgb, bgr):
        assert image.dtype == np.uint8 and image.flags.c_contiguous and image.flags.writeable


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["tif", "webp", "png"])
def test_size_and_pixels_agree_on_the_orientation(tmp_path, pixels, orientation, ending):
    """Pillow turns TIFF files itself while it loads them; nobody may turn them again."""
    files = [str(tmp_path / f"a.{ending}"), str(tmp_path / "b.png")]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for file in files:
        Image.fromarray(pixels).save(file, exif=exif, **({"lossless": True} if ending == "webp" else {}))
    images = [read_image(file) for file in files]
    np.testing.assert_array_equal(*images)
    assert [image_size(file) for file in files] == [images[0].shape[:2]] * 2


def test_a_damaged_exif_block_costs_no_picture(tmp_path, pixels):
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file, exif=b"Exif\0\0no TIFF header")
    np.testing.assert_array_equal(read_image(str(file)), pixels)
    assert image_size(file) == (30, 50)


@pytest.mark.parametrize("ending", ["png", "tif", "pgm", "jp2"])
def test_sixteen_bits_are_read_as_the_same_picture_in_eight(tmp_path, pixels, ending):
    grey = pixels[:, :, 0]
    file = tmp_path / f"a.{ending}"
    Image.fromarray(grey.astype(np.uint16) * 257).save(file)
    np.testing.assert_array_equal(read_image(str(file)), np.repeat(grey[:, :, None], 3, axis=2))


def test_sixteen_bits_of_color_are_read_as_the_same_picture_in_eight(tmp_path, pixels):
    file = str(tmp_path / "a.png")
    cv2.imwrite(file, pixels[:, :, ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(file), pixels)


def test_raw_values_of_a_sensor_are_refused(tmp_path, pixels):
    file = str(tmp_path / "a.png")
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 16).save(file)
    with pytest.raises(DatasetError, match="a.png: the brightest of its 16-bit pixels is 40[0-9]+ of 65535.*8 bits"):
        read_image(file)
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file)
    assert read_image(file).max() == 0  # a black frame is black


@pytest.mark.parametrize("kind, message", [(np.float32, "floating-point"), (np.int32, "whole numbers of 32 bits")])
def test_depths_without_a_white_are_refused_by_name(tmp_path, pixels, kind, message):
    file = tmp_path / "a.tif"
    Image.fromarray(pixels[:, :, 0].astype(kind)).save(file)
    for read in (read_image, image_size):
        with pytest.raises(DatasetError, match=f"a.tif: the pixels are {message}.*convert the image to 8 bits"):
            read(str(file))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_black(tmp_path, pixels, mode):
    file = str(tmp_path / "a.png")
    image = Image.fromarray(pixels).convert("RGBA")
    image.paste((200, 30, 40, 0), (0, 0, 10, 10))
    if mode == "P":
        image = image.quantize(32)
    image.convert(mode).save(file)
    read = read_image(file)
    assert read[:10, :10].max() == 0 and read[10:, 10:].max() > 100


def test_a_picture_that_pillow_does_not_decode_is_named_with_advice(tmp_path, pixels, monkeypatch):
    file = tmp_path / "a.png"
    Image.fromarray(pixels).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 700)
    for read in (read_image, image_size):
        with pytest.raises(DatasetError, match=r"a.png: the image is larger than Pillow decodes \(.*1500 pix.*tiles"):
            read(str(file))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_as_detectron2_does(tmp_path, pixels, orientation):
    file = str(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(file, exif=exif)
    image = read_image(file)
    np.testing.assert_array_equal(image, detection_utils.read_image(file, "RGB"))
    assert image.shape[:2] == image_size(file) == ((30, 50) if orientation < 5 else (50, 30))
    assert orientation == 1 or not np.array_equal(image, pixels)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_other_modes_become_three_channels(tmp_path, pixels, mode):
    file = str(tmp_path / "a.tif")
    Image.fromarray(pixels).convert(mode).save(file)
    image = read_image(file)
    np.testing.assert_array_equal(image, np.asarray(Image.open(file).convert("RGB")))
    assert image.shape == (30, 50, 3)


def test_sizes_of_real_frames(shared):
    files = sorted((shared / "data" / "cuhk_sysu" / "frames").iterdir())
    sizes = image_sizes(files)
    assert sizes == [read_image(str(file)).shape[:2] for file in files]
    assert len(sizes) == 8


def test_the_size_of_a_damaged_image_is_none(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    assert image_sizes([tmp_path / "a.png", tmp_path / "b.png"]) == [(20, 30), None]
    with pytest.raises(DatasetError, match="c.png: the image is missing"):
        image_sizes([tmp_path / "a.png", tmp_path / "c.png"])


def test_video_frames_are_read_in_both_orders(shared, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    file = shared / "data" / "pets09_s2l1" / "vtest.avi"
    capture = cv2.VideoCapture(str(file))
    for number in range(4):
        expected = capture.read()[1]
        np.testing.assert_array_equal(read_image(video_frame_name(file, number), "BGR"), expected)
        rgb = read_image(video_frame_name(file, number))
        np.testing.assert_array_equal(rgb, expected[:, :, ::-1])
        assert rgb.flags.c_contiguous and rgb.flags.writeable


def test_a_missing_image_is_named(tmp_path):
    for read in (read_image, image_size):
        with pytest.raises(DatasetError, match="a.jpg: the image is missing"):
            read(str(tmp_path / "a.jpg"))


@pytest.mark.parametrize("content", [b"", b"no image", b"\xff\xd8\xff\xe0broken"])
def test_what_is_no_image_is_named(tmp_path, content):
    file = tmp_path / "a.jpg"
    file.write_bytes(content)
    for read in (read_image, image_size):
        with pytest.raises(DatasetError, match="a.jpg: cannot be read as an image"):
            read(str(file))


@pytest.mark.parametrize("ending", ["jpg", "png"])
@pytest.mark.parametrize("share", [0.4, 0.95])
def test_a_truncated_image_is_named(tmp_path, shared, ending, share):
    source = next((shared / "data" / "prw" / "frames").iterdir())
    file = tmp_path / f"a.{ending}"
    Image.open(source).resize((320, 180)).save(file)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(DatasetError, match=f"a.{ending}: cannot be read as an image"):
        read_image(str(file))


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(DatasetError, match="cannot be read as an image"):
        read_image(str(tmp_path))


def test_an_unknown_order_is_named():
    with pytest.raises(ConfigError, match="INPUT.FORMAT is 'HSV', expected 'RGB' or 'BGR'"):
        read_image("a.jpg", "HSV")
