"""Pixels of a record: image files with their orientation applied, and single frames of videos.

A decoder's own seeking cannot be trusted with videos: it lands by time stamps, and a video with a gap or with varying
frame rate then gives another frame than the annotations were made on. So a video is decoded once from end to end
without keeping pixels, the time stamps of its frames are stored, and after each jump the stamp tells which frame the
decoder has really reached.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import detection_utils
from PIL import Image
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from .cache import Arrays, cached_arrays
from .catalog import dataset_root

_FRAME_MARK = "#frame="
_READER_VERSION = 1
_OPEN_VIDEOS = 8  # decoders kept open in a process; each holds a file and its threads
_GRAB_AHEAD = 64  # frames: decoding so many costs about as much as one jump
_TEXT_BYTES = 1 << 16  # every video has a zero byte in its first ones, no text has one
_SAME_STAMP = 1e-3  # milliseconds


def video_frame_name(video: str | Path, frame: int) -> str:
    """The `file_name` of a record that stands for a frame of a video, counted from 0: "video.avi#frame=123"."""
    return f"{video}{_FRAME_MARK}{frame}"


def split_video_frame(file_name: str) -> tuple[str, int] | None:
    """(video, frame) of a name that `video_frame_name` made, None of any other."""
    video, mark, frame = file_name.rpartition(_FRAME_MARK)
    return (video, int(frame)) if mark and frame.isascii() and frame.isdigit() else None


def read_video_frame(video: str, frame: int) -> np.ndarray:
    """One frame of a video. Reading frames in rising order is fast; any order gives the same pixels.

    Args:
        video: the file.
        frame: counted from 0.

    Returns:
        uint8 (H, W, 3) in BGR order, the caller's own.

    Raises:
        DatasetError: the file is missing or cannot be decoded, or has no such frame.
    """
    with _videos.lock:
        try:
            return _videos.open(video).read(frame)
        except DatasetError:
            _videos.close(video)  # after a failed read the decoder's place is unknown
            raise


def video_shape(video: str | Path) -> tuple[int, int, int]:
    """(frames, height, width) of a video: frames that can be decoded, not what its header promises.

    Raises:
        DatasetError: the file is missing or nothing in it can be decoded.
    """
    height, width = read_video_frame(str(video), 0).shape[:2]
    return len(_time_stamps(str(video))), height, width


class _Video:
    """An open video, the place of its decoder, and its time stamps once a jump has needed them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.next = 0  # the frame that grabbing once more would reach
        self._capture = _open(file)
        self._stamps: np.ndarray | None = None

    def read(self, frame: int) -> np.ndarray:
        if not self.next - 1 <= frame < self.next + _GRAB_AHEAD:
            self._jump(frame)
        while self.next <= frame:
            if not self._capture.grab():
                raise DatasetError(f"{self.file}: has no frame {frame}, counted from 0; it ends after {self.next}")
            self.next += 1
        decoded, image = self._capture.retrieve()
        if not decoded:
            raise DatasetError(f"{self.file}: frame {frame}, counted from 0, cannot be decoded; the file is damaged")
        return np.array(image)  # the decoder may use its buffer again

    def release(self) -> None:
        self._capture.release()

    def _jump(self, frame: int) -> None:
        """Moves to `frame` or before it; to the start where the decoder's seeking does not prove itself."""
        if self._stamps is None:
            self._stamps = _time_stamps(self.file)
        stamps = self._stamps
        if frame < len(stamps) and (np.diff(stamps) > 2 * _SAME_STAMP).all():
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, frame)
            if self._capture.grab():
                stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC)
                reached = int(np.abs(stamps - stamp).argmin())
                if reached <= frame and abs(stamps[reached] - stamp) < _SAME_STAMP:
                    self.next = reached + 1
                    return
        self.release()
        self._capture = _open(self.file)
        self.next = 0


class _Videos:
    """The open videos of this process, the one used last at the end."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._open: OrderedDict[str, _Video] = OrderedDict()

    def open(self, file: str) -> _Video:
        if file not in self._open:
            if len(self._open) == _OPEN_VIDEOS:
                self._open.popitem(last=False)[1].release()
            self._open[file] = _Video(file)
        self._open.move_to_end(file)
        return self._open[file]

    def close(self, file: str) -> None:
        if file in self._open:
            self._open.pop(file).release()


_videos = _Videos()
_inherited: list[_Videos] = []


def _start_anew() -> None:
    """Runs in a forked worker, whose decoders share their place in the file with the parent's.

    They are kept, not released: releasing would wait for decoder threads that a fork does not copy.
    """
    global _videos
    _inherited.append(_videos)
    _videos = _Videos()


os.register_at_fork(after_in_child=_start_anew)


def _open(file: str) -> cv2.VideoCapture:
    if not os.path.isfile(file):
        raise DatasetError(f"{file}: the video is missing; restore it, or mend the path in the dataset's registration")
    with open(file, "rb") as stream:
        if b"\0" not in stream.read(_TEXT_BYTES):  # OpenCV would show the letters of a text as a video
            raise DatasetError(f"{file}: cannot be read as a video, it is a text file; mend the path of the video")
    capture = cv2.VideoCapture(file)
    if not capture.isOpened():
        raise DatasetError(f"{file}: cannot be read as a video; convert it to a format that OpenCV decodes")
    return capture


def _time_stamps(file: str) -> np.ndarray:
    """(frames,) float64, the time in milliseconds of each frame, decoded once and then kept by `cached_arrays`."""
    path = Path(file)
    name = f"video_{hashlib.sha256(os.path.abspath(file).encode(errors='surrogateescape')).hexdigest()[:16]}"
    return cached_arrays(name, dataset_root(), [path], _READER_VERSION, lambda: _scan(file))["stamps"]


def _scan(file: str) -> Arrays:
    capture = _open(file)
    promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    stamps = []
    with tqdm(total=max(promised, 0) or None, desc=f"indexing {Path(file).name}", unit=" frames", delay=2) as progress:
        while capture.grab():
            stamps.append(capture.get(cv2.CAP_PROP_POS_MSEC))
            progress.update()
    capture.release()
    return {"stamps": np.array(stamps, dtype=np.float64)}


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
