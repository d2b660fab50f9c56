"""Single frames of videos by number.

Decoders cannot be trusted to seek: they do so by time stamp, and in a video with gaps or a varying frame rate return
other frames than the annotated ones. Therefore a video is decoded once from end to end, without keeping pixels, to
store the time stamps of its frames; after each jump, the stamp tells which frame the decoder has reached.
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
OPEN_VIDEOS = 8  # open decoders per process; each holds a file and threads
_GRAB_AHEAD = 64  # frames that cost about as much to decode as a jump
_TEXT_BYTES = 1 << 16  # every video has a zero byte within these, text has none
_SAME_STAMP = 1e-3  # milliseconds
_GAP = 1.5  # multiple of the usual step between frames

logger = logging.getLogger(__name__)


def video_frame_name(video: str | Path, frame: int) -> str:
    """`file_name` of the record of a video frame, counted from 0: "video.avi#frame=123"."""
    return f"{video}{_FRAME_MARK}{frame}"


def split_video_frame(file_name: str) -> tuple[str, int] | None:
    """(video, frame) of a name made by `video_frame_name`; None for other names."""
    video, mark, frame = file_name.rpartition(_FRAME_MARK)
    return (video, int(frame)) if mark and frame.isascii() and frame.isdigit() else None


def read_video_frame(video: str, frame: int) -> np.ndarray:
    """Frame of a video. Ascending order is fast; the pixels are the same in any order.

    Args:
        video: video file.
        frame: frame number, from 0.

    Returns:
        uint8 (H, W, 3) in BGR order, writable.

    Raises:
        DatasetError: the file is missing or cannot be decoded, or has no such frame.
    """
    with _videos.lock:
        try:
            return _videos.open(video).read(frame)
        except DatasetError:
            _videos.close(video)  # the decoder's position is unknown after an error
            raise


def video_shape(video: str | Path) -> tuple[int, int, int]:
    """(frames, height, width) of a video, counting decodable frames rather than those promised by the header.

    Raises:
        DatasetError: the file is missing or has no decodable frame.
    """
    height, width = read_video_frame(str(video), 0).shape[:2]
    return len(_index(str(video))["stamps"]), height, width


def check_numbering(video: str | Path) -> None:
    """Checks that frames can be numbered, that is, that none is lost within the video.

    If fewer frames can be decoded than the header promises, gaps between time stamps show frames missing in between;
    with evenly spaced stamps the end is missing, and numbers are valid up to there.

    Raises:
        DatasetError: frames are missing in between.
    """
    index = _index(str(video))
    stamps, promised = index["stamps"], int(index["promised"])
    if len(stamps) >= promised - 1:  # headers may compute the number from the duration, and round
        return
    usual = float(np.median(np.diff(stamps))) if len(stamps) > 1 else 0.0
    gaps = np.flatnonzero(np.diff(stamps, prepend=-usual) > _GAP * usual)
    if usual <= 0 or len(gaps):
        where = f"frame {gaps[0] + 1}" if usual > 0 else "an unknown frame"
        raise DatasetError(
            f"{video}: promises {promised} frames, but only {len(stamps)} can be decoded and those before {where} are "
            "missing, so annotations cannot be matched by frame number: repair the video, or use the annotated frames "
            "as images"
        )
    logger.warning("%s: ends after %d of the %d frames that it promises", video, len(stamps), promised)


class _Video:
    """Open video, with the decoder's position, and time stamps once a jump has needed them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.next = 0  # frame that the next grab reaches
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
        return np.array(image)  # a copy, since the decoder may reuse its buffer

    def release(self) -> None:
        self._capture.release()

    def _jump(self, frame: int) -> None:
        """Seeks to `frame` or before it; to the start if the decoder's position cannot be verified."""
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
    """Open videos of this process, the most recently used one last."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._open: OrderedDict[str, _Video] = OrderedDict()

    def open(self, file: str) -> _Video:
        if file not in self._open:
            if len(self._open) == OPEN_VIDEOS:
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
    """Reset in a forked worker, whose decoders share file positions with the parent's.

    Decoders are kept rather than released: releasing would wait for threads that a fork does not copy.
    """
    global _videos
    _inherited.append(_videos)
    _videos = _Videos()


os.register_at_fork(after_in_child=_start_anew)


def _open(file: str) -> cv2.VideoCapture:
    if not os.path.isfile(file):
        raise DatasetError(f"{file}: the video is missing; restore it, or fix the path in the dataset's registration")
    with open(file, "rb") as stream:
        if b"\0" not in stream.read(_TEXT_BYTES):  # OpenCV would render the characters of a text as a video
            raise DatasetError(f"{file}: cannot be read as a video, it is a text file; fix the path of the video")
    capture = cv2.VideoCapture(file)
    if not capture.isOpened():
        raise DatasetError(f"{file}: cannot be read as a video; convert it to a format that OpenCV decodes")
    return capture


def _index(file: str) -> Arrays:
    """Index of a video, made by decoding it once; cached by `cached_arrays`.

    Returns:
        "stamps": (frames,) float64, time in milliseconds of each decodable frame; "promised": int, number of frames in
        the header, counted or estimated from the duration.
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
