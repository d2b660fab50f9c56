"""Moving pictures for the page: the indexed file where browsers can play it, else a part encoded anew."""

from __future__ import annotations

import hashlib
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...errors import DatasetError
from ..video import open_video, seek_video, upright, video_start
from .caching import LimitedCache
from .footage import without_path
from .uploads import RequestError

if TYPE_CHECKING:
    from av.container import InputContainer, OutputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_PLAYED = {
    "video/mp4": ({"mov", "mp4"}, {"h264", "av1", "vp9"}),
    "video/webm": ({"webm", "matroska"}, {"vp8", "vp9", "av1"}),
}
_PLAYED_PIXELS = {"yuv420p", "yuvj420p"}
_ENCODERS = (("libx264", "video/mp4", ".mp4"), ("libvpx", "video/webm", ".webm"))
_MAX_CLIP_WIDTH = 960
_MAX_CLIPS = 16
_TIME_BASE = Fraction(1, 90_000)


def played_type(file: str) -> str | None:
    """Media type of a video that browsers play as it is, None of any other.

    Raises:
        RequestError: the file is missing or no video.
    """
    with _opened(file) as container:
        stream = container.streams.video[0]
        formats, codec = set(container.format.name.split(",")), stream.codec_context.name
        for media_type, (containers, codecs) in _PLAYED.items():
            if formats & containers and codec in codecs and stream.codec_context.pix_fmt in _PLAYED_PIXELS:
                return media_type
    return None


class ClipMaker:
    """Parts of videos in a form that browsers play, in a temporary folder that goes with the server."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="person-search-")
        self._clips: LimitedCache[tuple[Path, str]] = LimitedCache(_MAX_CLIPS, dropped=_remove)
        self._encoding = threading.Lock()  # one at a time: encoding takes all cores

    def clip(self, file: str, start: float, end: float) -> tuple[Path, str]:
        """The part of a video between two times in seconds from its first frame, and its media type.

        Raises:
            RequestError: the file is missing, no video, or has no frame between the times.
        """
        name = hashlib.sha256(f"{file}|{start:.3f}|{end:.3f}".encode()).hexdigest()[:32]
        with self._encoding:
            known = self._clips.get(name)
            if known is None:
                known = self._encode(file, start, end, Path(self._folder.name) / name)
                self._clips.put(name, known)
        return known

    def clear(self) -> None:
        """Deletes all clips."""
        self._clips.clear()

    def close(self) -> None:
        """Deletes the folder."""
        self._clips.clear()
        self._folder.cleanup()

    def _encode(self, file: str, start: float, end: float, target: Path) -> tuple[Path, str]:
        import av

        encoder, media_type, suffix = _encoder()
        made = target.with_suffix(suffix)
        try:
            with _opened(file) as source, av.open(str(made), "w", options=_fast_start(suffix)) as clip:
                written = _copy_frames(source, clip, encoder, (start, end))
        except av.FFmpegError as error:
            made.unlink(missing_ok=True)
            raise RequestError(f"{Path(file).name}: this part cannot be shown ({error.strerror})", 422) from error
        if not written:
            made.unlink(missing_ok=True)
            raise RequestError(f"{Path(file).name} has no frame between {start:.1f} and {end:.1f} seconds", 404)
        return made, media_type


def _copy_frames(source: InputContainer, clip: OutputContainer, encoder: str, part: tuple[float, float]) -> int:
    """Encodes the frames of a part; returns their number."""
    stream = source.streams.video[0]
    stream.thread_type = "AUTO"
    base = float(video_start(source))
    seek_video(source, part[0])
    output: Any = None
    written = 0
    for frame in _frames(source):
        if frame.time is None or frame.time - base < part[0] - 1e-6:
            continue
        if frame.time - base > part[1]:
            break
        frame = _turned(frame)
        if output is None:
            output = _stream(clip, encoder, frame, stream.average_rate)
        small = frame.reformat(output.width, output.height, "yuv420p")
        small.pts, small.time_base = round((frame.time - base - part[0]) / _TIME_BASE), _TIME_BASE
        clip.mux(output.encode(small))
        written += 1
    if output is not None:
        clip.mux(output.encode(None))
    return written


def _frames(container: InputContainer) -> Iterator[VideoFrame]:
    """Frames from where a file stands; what is damaged is left out."""
    import av

    packets = container.demux(container.streams.video[0])
    while True:
        try:
            packet = next(packets, None)
            if packet is None:
                return
        except av.FFmpegError:  # the file ends here
            return
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _stream(clip: OutputContainer, encoder: str, frame: VideoFrame, rate: Fraction | None) -> VideoStream:
    scale = min(1.0, _MAX_CLIP_WIDTH / frame.width)
    options = {"preset": "veryfast", "crf": "24"} if encoder == "libx264" else {"deadline": "realtime", "crf": "20"}
    stream = clip.add_stream(encoder, rate=Fraction(rate or 25).limit_denominator(1001), options=options)
    output = cast("VideoStream", stream)  # the type depends on the encoder's name, which PyAV's stubs do not know
    output.width, output.height = (max(2, round(side * scale) // 2 * 2) for side in (frame.width, frame.height))
    output.pix_fmt = "yuv420p"
    output.codec_context.time_base = _TIME_BASE
    return output


def _turned(frame: VideoFrame) -> VideoFrame:
    """The frame turned and mirrored as its display matrix says."""
    import av

    if frame.side_data.get("DISPLAYMATRIX") is None:
        return frame
    turned = av.VideoFrame.from_ndarray(upright(frame), format="rgb24")
    turned.pts, turned.time_base = frame.pts, frame.time_base
    return turned


@contextmanager
def _opened(file: str) -> Iterator[InputContainer]:
    """A video file, whose errors name it without its folder."""
    try:
        container = open_video(file)
    except DatasetError as error:
        raise RequestError(without_path(error, file), 404) from error
    with container:
        yield container


def _encoder() -> tuple[str, str, str]:
    import av

    for encoder in _ENCODERS:
        if encoder[0] in av.codecs_available:
            return encoder
    raise RequestError("this build of PyAV has no encoder that browsers can play; install av from PyPI", 501)


def _fast_start(suffix: str) -> dict[str, str]:
    return {"movflags": "faststart"} if suffix == ".mp4" else {}


def _remove(clip: tuple[Path, str]) -> None:
    clip[0].unlink(missing_ok=True)
