"""Pixels of a record: image files with their orientation applied, and single frames of videos."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import detection_utils
from PIL import Image

from ..errors import ConfigError, DatasetError
from .video import read_video_frame, split_video_frame

_ORIENTATION = 0x0112  # the EXIF tag; from 5 on the picture lies on its side
_HEADER_THREADS = 8


def read_image(file_name: str, format: str = "RGB") -> np.ndarray:
    """Reads the image that a record names.

    Args:
        file_name: an image file, or "video.avi#frame=123" for a frame of a video, counted from 0.
        format: order of the channels, "RGB" or "BGR".

    Returns:
        uint8 (H, W, 3), contiguous and writable, turned upright as EXIF says.

    Raises:
        DatasetError: the file is missing, no image, truncated, or the video has no such frame.
        ConfigError: another format.
    """
    if format not in ("RGB", "BGR"):
        raise ConfigError(f"INPUT.FORMAT is {format!r}; expected 'RGB' or 'BGR'")
    frame = split_video_frame(file_name)
    if frame is not None:
        image = read_video_frame(*frame)
        return image if format == "BGR" else np.ascontiguousarray(image[:, :, ::-1])
    try:
        # The copy makes it writable: Pillow lends its buffer read-only.
        return np.array(detection_utils.read_image(file_name, format=format), order="C")
    except Exception as error:  # damaged files make Pillow's many decoders raise almost anything
        raise _unreadable(file_name, error) from error


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
        DatasetError: the file is missing or no image.
    """
    try:
        with Image.open(file) as image:
            width, height = image.size
            sideways = image.getexif().get(_ORIENTATION, 1) >= 5
    except Exception as error:  # as in read_image
        raise _unreadable(file, error) from error
    return (width, height) if sideways else (height, width)


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
