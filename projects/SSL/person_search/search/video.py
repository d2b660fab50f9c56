"""Frames of video files by PyAV: in order with exact times, or a single one sought by its time and checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..errors import DatasetError

if TYPE_CHECKING:
    import av
    from typing_extensions import Buffer

# Demuxers that read one file and nothing else. Playlists, which name other files and addresses, are none of them, nor
# is "tty", which shows any text as a video.
_DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,asf,flv,h264,hevc,m4v,mjpeg,ogg,mxf,gif,ivf,dv,rm,"
    "nut,vob,av1,obu"
)
_SAME_TIME = 1e-6  # seconds; times are computed anew from the file's whole numbers and so are nearly equal


@dataclass(frozen=True)
class Frame:
    """A picture of a source.

    Attributes:
        image: (height, width, 3) uint8, RGB, upright.
        number: Position among the frames of the source, from 0; of a live stream, whole milliseconds since its start.
        offset: Seconds from the start of the source.
        time: When it was taken, with a time zone; None where that is unknown.
    """

    image: np.ndarray
    number: int
    offset: float
    time: datetime | None


@dataclass(frozen=True)
class VideoHeader:
    """What a video file says of itself.

    Attributes:
        fps: Frames a second, 0 where unknown.
        duration: Seconds, 0 where unknown.
        start: Time at which the recording began, as the file's metadata has it; None where it has none.
    """

    fps: float
    duration: float
    start: datetime | None


def read_header(path: str) -> VideoHeader:
    """Header of a video file.

    Raises:
        DatasetError: The file is missing or no video.
    """
    with open_video(path) as container:
        stream = container.streams.video[0]
        if stream.duration:
            duration = stream.duration * _time_base(stream)
        else:
            duration = Fraction(container.duration or 0, 10**6)
        rate = stream.average_rate or stream.guessed_rate or 0
        stated = container.metadata.get("creation_time") or stream.metadata.get("creation_time")
        return VideoHeader(float(rate), float(duration), _stated_time(stated))


class VideoFrames:
    """Iterator over the frames of a video file that are looked at.

    Frames are numbered as plain decoding from the start gives them, and timed by the file's own time stamps from its
    start, whatever its frame rate claims. Parts that cannot be decoded are skipped and counted.

    Attributes:
        damaged: Packets so far that could not be decoded.
    """

    def __init__(self, path: str, every: Fraction | None = None, done: tuple[int, float] | None = None) -> None:
        """
        Args:
            path: The file.
            every: Seconds from one frame that is looked at to the next: of the frames between two multiples of it the
                first is taken. None takes all.
            done: Number and offset of the last frame that was looked at before; the iterator goes on behind it.
        """
        self._path, self._every, self._done = path, every, done
        self._resumed = False  # whether seeking has led to the frame that was looked at last
        self.damaged = 0

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order, without `time`.

        Raises:
            DatasetError: The file is missing, no video, or holds no frame that can be decoded.
        """
        if self._done is not None:
            yield from self._from(*self._done)
        if not self._resumed:
            yield from self._all()

    def _all(self) -> Iterator[Frame]:
        with open_video(self._path) as container:
            done, last = self._done, None
            number = -1
            for number, (offset, picture) in enumerate(self._decoded(container)):
                slot = self._slot(offset)
                if slot != last and (done is None or number > done[0]):
                    yield Frame(upright(picture), number, float(offset), None)
                last = slot
        if number < 0:
            raise DatasetError(f"{self._path}: no frame of this video can be decoded; restore the file")

    def _from(self, number: int, offset: float) -> Iterator[Frame]:
        """Frames behind a known one, found by its time; none at all where seeking does not lead to it."""
        with open_video(self._path) as container:
            last = None
            seek_video(container, offset)
            for place, picture in self._decoded(container):
                slot = self._slot(place)
                if last is None:
                    if float(place) < offset - _SAME_TIME:
                        continue
                    if float(place) > offset + _SAME_TIME:
                        return  # the decoder has landed behind it
                    self._resumed = True
                else:
                    number += 1
                    if slot != last:
                        yield Frame(upright(picture), number, float(place), None)
                last = slot

    def _slot(self, offset: Fraction) -> Any:
        return offset if self._every is None else math.floor(offset / self._every)

    def _decoded(self, container: av.container.InputContainer) -> Iterator[tuple[Fraction, av.VideoFrame]]:
        import av

        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        start = video_start(container)
        rate = stream.average_rate or Fraction(25)
        offset = None
        for packet in _packets(container, stream):
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:
                self.damaged += 1
                continue
            for picture in pictures:
                # Raw streams have no time stamps; their frames follow each other at the stated rate.
                if picture.pts is not None:
                    offset = max(picture.pts * _time_base(picture) - start, Fraction(0))
                else:
                    offset = Fraction(0) if offset is None else offset + 1 / rate
                yield offset, picture


def read_video_picture(path: str, number: int, offset: float) -> np.ndarray:
    """Picture of a video that `VideoFrames` gave before, uint8 (height, width, 3), RGB, upright.

    Args:
        path: The file.
        number, offset: Those of the frame. The offset finds it; where that fails, the number counts it off.

    Raises:
        DatasetError: The file is missing, no video, or has no such frame any more.
    """
    reader = VideoFrames(path)
    with open_video(path) as container:
        seek_video(container, offset)
        for place, picture in reader._decoded(container):
            if abs(float(place) - offset) <= _SAME_TIME:
                return upright(picture)
            if float(place) > offset:
                break
    with open_video(path) as container:
        for count, (_, picture) in enumerate(reader._decoded(container)):
            if count == number:
                return upright(picture)
    raise DatasetError(f"{path}: has no frame {number} at {offset:.3f} s any more; index the file again")


def upright(picture: av.VideoFrame) -> np.ndarray:
    """Pixels of a decoded frame, uint8 (height, width, 3), RGB, turned and mirrored as its display matrix says."""
    image = picture.to_ndarray(format="rgb24")
    matrix = picture.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    # Rows of (x, y, w) in 16.16 fixed point: x' = a x + c y, y' = b x + d y.
    # PyAV does not declare that side data is a buffer.
    a, b, _, c, d = np.frombuffer(memoryview(cast("Buffer", matrix)), dtype=np.int32, count=5)
    if abs(int(a)) < abs(int(c)):
        image, across, down = image.swapaxes(0, 1), c, b
    else:
        across, down = a, d
    image = image[:, ::-1] if across < 0 else image
    return np.ascontiguousarray(image[::-1] if down < 0 else image)


def open_video(path: str) -> av.container.InputContainer:
    """An open video with at least one video stream.

    Raises:
        DatasetError: The file is missing or no video; a playlist is none.
    """
    import av

    if not Path(path).is_file():
        raise DatasetError(f"{path}: the video is missing; restore it, or fix its path")
    try:
        container = av.open(path, options={"format_whitelist": _DEMUXERS})
    except (av.error.FFmpegError, ValueError, OSError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise DatasetError(f"{path}: cannot be read as a video ({reason}); restore or convert it") from error
    if not container.streams.video:
        container.close()
        raise DatasetError(f"{path}: holds no video stream")
    return container


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet[av.VideoStream]]:
    """Packets up to the end or to where the file is cut off."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except av.error.FFmpegError:
            return
        if packet is None:
            return
        yield packet


def _time_base(timed: av.VideoStream | av.VideoFrame) -> Fraction:
    """Time base in seconds, which everything that is read from a file has."""
    if timed.time_base is None:
        raise ValueError("the video stream has no time base")
    return timed.time_base


def video_start(container: av.container.InputContainer) -> Fraction:
    """Seconds at which a player's clock shows 0.

    The container's own start counts, which an earlier sound track may set; it is rounded to microseconds, so that the
    stream's stands in for it where they agree.
    """
    stream = container.streams.video[0]
    own = None if stream.start_time is None else stream.start_time * _time_base(stream)
    whole = None if container.start_time is None else Fraction(container.start_time, 10**6)
    if whole is None or (own is not None and abs(own - whole) < Fraction(1, 1000)):
        return own or Fraction(0)
    return whole


def seek_video(container: av.container.InputContainer, offset: float) -> None:
    """Moves to a key frame at or before an offset; stays where it is if the file cannot seek."""
    import av

    stream = container.streams.video[0]
    target = math.floor((Fraction(offset) + video_start(container) + Fraction(1, 10**6)) / _time_base(stream))
    try:
        container.seek(target, stream=stream, backward=True)
    except av.error.FFmpegError:
        return


def _stated_time(value: str | None) -> datetime | None:
    """Time that a file's metadata gives, UTC where it names no zone; 1904 and 1970 are clocks that were never set."""
    if not value:
        return None
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        return None
    time = time if time.tzinfo else time.replace(tzinfo=timezone.utc)
    return time if time.year > 1980 else None
