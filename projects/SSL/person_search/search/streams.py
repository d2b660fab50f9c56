"""Live streams: the newest pictures of a camera, connected to again whenever it is lost."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from fractions import Fraction
from typing import TYPE_CHECKING

from .store import without_password
from .video import Frame, upright

if TYPE_CHECKING:
    from av.container import InputContainer

logger = logging.getLogger(__name__)

TIMEOUT = 10.0
"""Seconds without a picture after which a camera counts as lost."""
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 30.0  # seconds before a connection is tried again; doubled from try to try


class LiveFrames:
    """Iterator over the frames of a live stream that are looked at, without an end of its own.

    A camera that cannot be reached, that breaks off or whose stream ends counts as lost and is connected to again. The
    time of a frame is that of its arrival: clocks of cameras are seldom right. Its number counts milliseconds from the
    start of the stream, so that no two frames share one, however often a program is started again.

    Attributes:
        lost: How often the camera was lost so far.
        error: Why it was lost last, "" while it is there.
    """

    def __init__(
        self,
        address: str,
        start: datetime,
        every: Fraction | None,
        stop: threading.Event,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(timezone.utc),
        pause: float = _FIRST_PAUSE,
    ) -> None:
        """
        Args:
            address: URL, with user and password where the camera wants them.
            start: When the stream was first indexed; numbers and offsets count from there.
            every: Seconds from one frame that is looked at to the next, None takes all.
            stop: Ends the iterator once it is set.
            clock: Gives the time, with a time zone.
            pause: Seconds before the first try to connect again.
        """
        self._address, self._name = address, without_password(address)
        self._start, self._every, self._stop, self._clock, self._pause = start, every, stop, clock, pause
        self._last = -1
        self.lost, self.error = 0, ""

    def __iter__(self) -> Iterator[Frame]:
        """Frames as they come."""
        pause = self._pause
        while not self._stop.is_set():
            before = self._last
            yield from self._connected()
            if self._stop.is_set():
                return
            self.lost += 1
            pause = self._pause if self._last > before else min(2 * pause, _LONGEST_PAUSE)
            logger.warning("%s: camera lost (%s); trying again in %.0f s", self._name, self.error, pause)
            self._stop.wait(pause)

    def _connected(self) -> Iterator[Frame]:
        """Frames of one connection; sets `error` when it ends."""
        import av

        options = {"rtsp_transport": "tcp"} if self._address.startswith("rtsp") else {}
        try:
            with av.open(self._address, options=options, timeout=(TIMEOUT, TIMEOUT)) as container:
                if not container.streams.video:
                    self.error = "it sends no video"
                    return
                self.error = ""
                yield from self._received(container)
                self.error = self.error or "its stream ended"
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.error = " ".join(str(getattr(error, "strerror", None) or error).split())

    def _received(self, container: InputContainer) -> Iterator[Frame]:
        import av

        slot = None
        for packet in container.demux(video=0):
            if self._stop.is_set():
                return
            try:
                pictures = packet.decode()
            except av.error.FFmpegError:  # damaged in transit; the next key frame repairs it
                continue
            for picture in pictures:
                now = self._clock()
                offset = (now - self._start).total_seconds()
                previous, slot = slot, offset if self._every is None else int(offset // float(self._every))
                number = int(offset * 1000)
                if slot == previous or number <= self._last:
                    continue
                self._last = number
                yield Frame(upright(picture), number, offset, now)
