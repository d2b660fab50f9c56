"""Pixels of a record: image files with their orientation applied, and single frames of videos.

A decoder's own seeking cannot be trusted with videos: it lands by time stamps, and a video with a gap or with varying
frame rate then gives another frame than the annotations were made on. So a video is decoded once from end to end
without keeping pixels, the time stamps of its frames are stored, and after each jump the stamp tells which frame the
decoder has really reached.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
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
    """What decoding a video from end to end tells, kept by `cached_arrays`.

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
    if format not in ("RGB", "BGR"):
        raise ConfigError(f"INPUT.FORMAT is {format!r}; expected 'RGB' or 'BGR'")
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
