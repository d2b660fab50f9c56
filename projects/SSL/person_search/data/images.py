"""Pixels of records: image files with orientation and bit depth applied, and video frames."""

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
}  # transposition that turns a picture of this value upright; from 5 on, height and width are swapped
_HEADER_THREADS = 8
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_GREY_16_AS_32 = ("PNG", "PPM")  # formats of at most 16 bits that Pillow may decode to 32-bit integers
_RAW_LEVELS = 1 << 12  # a 16-bit picture with at most this many levels has raw values of a 10- or 12-bit sensor


@dataclass(frozen=True)
class _Picture:
    """Open image file, not decoded yet, and its transposition."""

    image: Image.Image
    turn: Image.Transpose | None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels after transposition."""
        width, height = self.image.size
        lying = self.turn is not None and self.turn in (_UPRIGHT[value] for value in (5, 6, 7, 8))
        return (width, height) if lying else (height, width)


@contextlib.contextmanager
def _opened(file: str | Path) -> Iterator[_Picture]:
    """Opened image file. Orientation and depth are handled here, for sizes and pixels alike.

    Raises:
        DatasetError: the file is missing, not an image, too large, or of a depth with unknown range.
    """
    try:
        with Image.open(file) as image:
            _check_depth(file, image)
            turn = _UPRIGHT.get(_orientation(image))
            if image.format == "TIFF" and turn is not None:
                image.load()  # Pillow transposes such files itself, and some versions report the size before that
                turn = _UPRIGHT.get(_orientation(image))
            yield _Picture(image, turn)
    except DatasetError:
        raise
    except Image.DecompressionBombError as error:
        raise DatasetError(
            f"{file}: the image is larger than Pillow decodes ({error}): cut it into tiles or downscale it, together "
            "with its annotations"
        ) from error
    except Exception as error:  # Pillow's decoders raise almost anything for damaged files
        raise _unreadable(file, error) from error


def _orientation(image: Image.Image) -> int:
    """EXIF orientation of an image; 1 (upright) if it is missing or damaged, which is no reason to reject the image."""
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # the EXIF parser raises almost anything, too
        return 1
    return value if isinstance(value, int) else 1


def _check_depth(file: str | Path, image: Image.Image) -> None:
    """Raises a DatasetError for depths without a known white level: floats and 32-bit integers."""
    if image.mode == "F" or (image.mode == "I" and image.format not in _GREY_16_AS_32):
        kind = "floating-point numbers" if image.mode == "F" else "whole numbers of 32 bits"
        raise DatasetError(
            f"{file}: the pixels are {kind}, whose black and white levels are unknown: convert the image to 8 bits"
        )


def _to_rgb(file: str | Path, image: Image.Image) -> Image.Image:
    """Image of any mode accepted by `_check_depth` as 8-bit RGB, with transparency on black.

    Raises:
        DatasetError: a 16-bit image uses too few of its levels.
    """
    if image.mode == "I" or image.mode in _GREY_16:
        levels = np.asarray(image).astype(np.int64)
        if 0 < levels.max() < _RAW_LEVELS:
            raise DatasetError(
                f"{file}: the brightest of its 16-bit pixels is {levels.max()} of 65535, so these are raw sensor "
                "values, which would be read as black: stretch the image to 8 bits"
            )
        return Image.fromarray(((levels + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Image of a record.

    Args:
        file_name: image file, or "video.avi#frame=123" for a frame of a video, counted from 0.
        format: order of the channels, "RGB" or "BGR".

    Returns:
        uint8 (H, W, 3), contiguous and writable, with EXIF orientation applied. 16-bit images are reduced to their
        upper 8 bits; transparency becomes black.

    Raises:
        DatasetError: the file is missing, not an image, truncated, too large, of 32 bits or floating point, or the
            video has no such frame.
        ConfigError: `format` is unknown.
    """
    check_value("INPUT.FORMAT", format)
    frame = split_video_frame(file_name)
    if frame is not None:
        image = read_video_frame(*frame)
        return image if format == "BGR" else np.ascontiguousarray(image[:, :, ::-1])
    with _opened(file_name) as picture:
        rgb = _to_rgb(file_name, picture.image)
        pixels = np.asarray(rgb if picture.turn is None else rgb.transpose(picture.turn))
    # Copied to be writable, since Pillow's buffer is read-only.
    return np.array(pixels if format == "RGB" else pixels[:, :, ::-1], order="C")


def frame_reader(records: Sequence[Mapping[str, Any]]) -> Callable[[str], np.ndarray]:
    """Function that reads a frame of a dataset, uint8 (H, W, 3) RGB, given its image_id.

    It raises a DatasetError for unknown names, and as `read_image` does.
    """
    files = {record["image_id"]: record["file_name"] for record in records}

    def read_frame(name: str) -> np.ndarray:
        if name not in files:
            raise DatasetError(f"frame {name} is not in the dataset; evaluate again on the current one")
        return read_image(files[name])

    return read_frame


def image_size(file: str | Path) -> tuple[int, int]:
    """(height, width) in pixels as of `read_image`, from the header alone.

    Raises:
        DatasetError: the file is missing or cannot be read by `read_image`.
    """
    with _opened(file) as picture:
        return picture.size


def image_sizes(files: Iterable[str | Path]) -> list[tuple[int, int] | None]:
    """`image_size` of many files, in order; None for damaged ones.

    Reads in parallel, for disks with high latency.

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
        return DatasetError(f"{file}: the image is missing; restore it or remove its frame from the annotations")
    return DatasetError(f"{file}: cannot be read as an image ({type(error).__name__}: {error}); replace the file")
