"""Images as the mapper gets them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from detectron2.data import detection_utils
from person_search.data.images import image_size, image_sizes, read_image, video_frame_name
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
    with pytest.raises(ConfigError, match="INPUT.FORMAT is 'HSV'; expected 'RGB' or 'BGR'"):
        read_image("a.jpg", "HSV")
