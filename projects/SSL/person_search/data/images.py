"""Pixels of a record: image files with their orientation and depth applied, and frames of videos."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import DatasetError
from ..values import check_value
from .video import read_video_frame, split_video_frame

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # what turns a picture of its value upright; from 5 on height and width change places
_HEADER_THREADS = 8
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_16_AS_32 = ("PNG", "PPM")  # formats of 16 bits at most, which Pillow may hand over as whole numbers of 32 bits
_RAW_LEVELS = 1 << 12  # a 16-bit picture of at most so many levels holds the raw values of a 10- or 12-bit sensor


@dataclass(frozen=True)
class _Picture:
    """An open image file, whose pixels are not decoded yet, and what turns it upright."""

    image: Image.Image
    turn: Image.Transpose | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels once it is upright."""
        width, height = self.image.size
        lying = self.turn is not None and self.turn in (_UPRIGHT[value] for value in (5, 6, 7, 8))
        return (width, height) if lying else (height, width)


@contextlib.contextmanager
def _opened(file: str | Path) -> Iterator[_Picture]:
    """Opens an image file: the one place that decides on orientation and depth, for sizes and for pixels.

    Raises:
        DatasetError: the file is missing, no image, too large, or of a depth whose range is unknown.
    """
    try:
        with Image.open(file) as image:
            _check_depth(file, image)
            turn = _UPRIGHT.get(_orientation(image))
            if image.format == "TIFF" and turn is not None:
                image.load()  # Pillow then turns such files itself, and some versions give their size turned before
                turn = _UPRIGHT.get(_orientation(image))
            yield _Picture(image, turn)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{file}: the image is larger than Pillow decodes ({error}): cut it into tiles or make it smaller, and its "
            "annotations with it"
        ) from error
    except Exception as error:  # damaged files make Pillow's many decoders raise almost anything
        raise _unreadable(file, error) from error


def _orientation(image: Image.Image) -> int:
    """The EXIF tag of an image, 1 (upright) where there is none or it is damaged: that costs no picture."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the parser of EXIF raises almost anything, too
        return 1
    return value if isinstance(value, int) else 1


def _check_depth(file: str | Path, image: Image.Image) -> None:
    """Refuses what has no known white: floating-point numbers, and whole numbers of 32 bits."""
    if image.mode == "F" or (image.mode == "I" and image.format not in _GREY_16_AS_32):
        kind = "floating-point numbers" if image.mode == "F" else "whole numbers of 32 bits"
        raise DatasetError(
            f"{file}: the pixels are {kind}, of which nothing says what is black and what is white: convert the "
            "image to 8 bits"
        )


def _to_rgb(file: str | Path, image: Image.Image) -> Image.Image:
    """An image of any mode that `_check_depth` lets through as 8-bit RGB; what is transparent is black.

    Raises:
        DatasetError: a 16-bit image whose values fill too few of its bits.
    """
    if image.mode == "I" or image.mode in _GREY_16:
        levels = np.asarray(image).astype(np.int64)
        if 0 < levels.max() < _RAW_LEVELS:
            raise DatasetError(
                f"{file}: the brightest of its 16-bit pixels is {levels.max()} of 65535, so these are the raw values "
                "of a sensor and would be read as black: stretch the image to 8 bits"
            )
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Reads the image that a record names.

    Args:
        file_name: an image file, or "video.avi#frame=123" for a frame of a video, counted from 0.
        format: order of the channels, "RGB" or "BGR".

    Returns:
        uint8 (H, W, 3), contiguous and writable, turned upright as EXIF says. Of 16 bits the upper 8 count; what is
        transparent is black.

    Raises:
        DatasetError: the file is missing, no image, truncated, too large, of 32 bits or floating point, or the video
            has no such frame.
        ConfigError: another format.
    """
    check_value("INPUT.FORMAT", format)
    frame = split_video_frame(file_name)
    if frame is not None:
        image = read_video_frame(*frame)
        return image if format == "BGR" else np.ascontiguousarray(image[:, :, ::-1])
    with _opened(file_name) as picture:
        rgb = _to_rgb(file_name, picture.image)
        pixels = np.asarray(rgb if picture.turn is None else rgb.transpose(picture.turn))
    # The copy makes it writable: Pillow lends its buffer read-only.
    return np.array(pixels if format == "RGB" else pixels[:, :, ::-1], order="C")


def frame_reader(records: Sequence[Mapping[str, Any]]) -> Callable[[str], np.ndarray]:
    """A function that reads a frame of a dataset, uint8 (H, W, 3) RGB, by its image_id.

    It raises DatasetError for a name that is not among the records, and where `read_image` does.
    """
    files = {record["image_id"]: record["file_name"] for record in records}

    def read_frame(name: str) -> np.ndarray:
        if name not in files:
            raise DatasetError(f"frame {name} is not in the dataset; evaluate again on the present one")
        return read_image(files[name])

    return read_frame


def image_size(file: str | Path) -> tuple[int, int]:
    """(height, width) in pixels as `read_image` gives them, from the file's header alone.

    Raises:
        DatasetError: the file is missing, no image, or none that `read_image` reads.
    """
    with _opened(file) as picture:
        return picture.size


def image_sizes(files: Iterable[str | Path]) -> list[tuple[int, int] | None]:
    """`image_size` of many files, in their order, None of damaged ones.

    Several are read at once, because slow disks answer late.

    Raises:
        DatasetError: a file is missing.
    """
    with ThreadPoolExecutor(_HEADER_THREADS) as pool:
        return list(pool.map(_size_or_none, files))


def _size_or_none(file: str | Path) -> tuple[int, int] | None:
    try:
        return image_size(file)
    except DatasetError:
        if not Path(file).exists():
            raise
        return None


def _unreadable(file: str | Path, error: Exception) -> DatasetError:
    if isinstance(error, FileNotFoundError):
        return DatasetError(f"{file}: the image is missing; restore it or take its frame out of the annotations")
    return DatasetError(f"{file}: cannot be read as an image ({type(error).__name__}: {error}); replace the file")
