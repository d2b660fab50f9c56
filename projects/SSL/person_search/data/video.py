"""Single frames of videos, by their number.

A decoder's own seeking cannot be trusted: it lands by time stamps, and a video with a gap or with varying frame rate
then gives another frame than the annotations were made on. So a video is decoded once from end to end without keeping
pixels, the time stamps of its frames are stored, and after each jump the stamp tells which frame the decoder has really
reached.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from ..errors import DatasetError
from .cache import Arrays, cached_arrays
from .catalog import dataset_root

_FRAME_MARK = "#frame="
_READER_VERSION = 2
_OPEN_VIDEOS = 8  # decoders kept open in a process; each holds a file and its threads
_GRAB_AHEAD = 64  # frames: decoding so many costs about as much as one jump
_TEXT_BYTES = 1 << 16  # every video has a zero byte in its first ones, no text has one
_SAME_STAMP = 1e-3  # milliseconds
_GAP = 1.5  # times the usual step from one frame to the next

logger = logging.getLogger(__name__)


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
    return len(_index(str(video))["stamps"]), height, width


def check_numbering(video: str | Path) -> None:
    """Refuses a video of which frames are lost on the way, so that nobody can say which is the k-th.

    The header promises a number of frames. Where fewer can be decoded and the time stamps show gaps, frames are
    missing between others; where the stamps run on evenly the end is missing, and the numbers before it stand.

    Raises:
        DatasetError: frames are missing in between.
    """
    index = _index(str(video))
    stamps, promised = index["stamps"], int(index["promised"])
    if len(stamps) >= promised - 1:  # a header that counts from the length in seconds rounds
        return
    usual = float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.0
    gaps = np.flatnonzero(np.diff(stamps, prepend=-usual) > _GAP * usual)
    if usual <= 0 or len(gaps):
        where = f"frame {gaps[0] + 1}" if usual > 0 else "an unknown frame"
        raise DatasetError(
            f"{video}: promises {promised} frames, but only {len(stamps)} can be decoded and those before {where} are "
            "missing, so the numbers of the annotations do not tell frames: repair the video, or take the annotated "
            "frames as images"
        )
    logger.warning("%s: ends after %d of the %d frames that it promises", video, len(stamps), promised)


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
            self._stamps = _index(self.file)["stamps"]
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


def _index(file: str) -> Arrays:
    """Index of a video, from decoding it end to end once; kept by `cached_arrays`.

    Returns:
        "stamps": (frames,) float64, the time in milliseconds of each frame that can be decoded; "promised": int, the
        frames that the header counts, or estimates from the length.
    """
    path = Path(file)
    name = f"video_{hashlib.sha256(os.path.abspath(file).encode(errors='surrogateescape')).hexdigest()[:16]}"
    return cached_arrays(name, dataset_root(), [path], _READER_VERSION, lambda: _scan(file))


def _scan(file: str) -> Arrays:
    capture = _open(file)
    promised = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
    stamps = []
    with tqdm(total=max(promised, 0) or None, desc=f"indexing {Path(file).name}", unit=" frames", delay=2) as progress:
        while capture.grab():
            stamps.append(capture.get(cv2.CAP_PROP_POS_MSEC))
            progress.update()
    capture.release()
    return {"stamps": np.array(stamps, dtype=np.float64), "promised": np.array(promised)}
