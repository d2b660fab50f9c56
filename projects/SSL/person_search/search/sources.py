"""Sources of pictures: photos, videos and live streams, what is known of them, and their frames."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ..errors import ConfigError, DatasetError
from .store import Kind, source_key, without_password
from .video import Frame, VideoFrames, read_header, read_video_picture

if TYPE_CHECKING:
    from .store import SourceState, Store

PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"})
VIDEO_SUFFIXES = frozenset({
    ".mp4", ".avi", ".mov", ".mkv", ".m4v", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv", ".3gp",
    ".asf", ".dav", ".h264", ".264", ".hevc", ".vob", ".ogv", ".mxf",
})  # fmt: skip
_PROBE_BYTES = 1 << 16
_EXIF_IFD, _TAKEN, _TAKEN_ZONE, _TAKEN_FRACTION = 0x8769, 36867, 36881, 37521
FRAMES_FOLDER = "frames_folder"
"""Name of the store's setting that says where pictures of live streams are kept."""


@dataclass(frozen=True)
class Source:
    """A photo, a video or a live stream.

    Attributes:
        name: Absolute path, or URL without its password: what the store knows it by.
        address: What is opened.
        kind: "photo", "video" or "stream".
        camera: Name of the camera.
        start: Time of the first frame where it was given; else the file's own counts.
    """

    name: str
    address: str
    kind: Kind
    camera: str
    start: datetime | None = None


def find_sources(
    arguments: Sequence[str | Path], *, camera: str | None = None, start: datetime | None = None
) -> list[Source]:
    """Sources that paths and URLs stand for, in the order given, each once.

    A folder stands for all photos and videos in and below it. Hidden files and others are left out of folders; a file
    that is named itself is taken for a video unless its ending is a photo's.

    Args:
        arguments: Files, folders and URLs such as "rtsp://user:password@camera/stream".
        camera: Name of their camera, in which "{stem}" stands for the file's name without its ending and "{folder}"
            for the name of its folder; by default "{stem}" for videos, "{folder}" for photos, host and path for URLs.
        start: Time of the first frame of every video, with a time zone.

    Raises:
        DatasetError: A path does not exist, or a folder holds neither photo nor video.
        ConfigError: There is no source, a camera's name cannot be formed, or `start` has no time zone.
    """
    if start is not None and start.tzinfo is None:
        raise ConfigError(f"start {start.isoformat()} has no time zone: add one, such as +00:00")
    sources: dict[tuple[str, str], Source] = {}
    for argument in [os.fspath(argument) for argument in arguments]:
        for source in _sources_of(argument, camera, start):
            sources.setdefault((source.name, source.camera), source)
    if not sources:
        raise ConfigError("no source was given: name photos, videos, folders of them or the URL of a stream")
    return list(sources.values())


def _sources_of(argument: str, camera: str | None, start: datetime | None) -> Iterable[Source]:
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", argument):
        if argument.startswith("file://"):
            raise ConfigError(f"{argument}: give the path of a file without file://")
        name = without_password(argument)
        parts = urlsplit(name)
        default = (parts.hostname or "stream") + parts.path.rstrip("/").replace("/", "-")
        yield Source(name, argument, "stream", _camera(camera or default, Path(parts.path or "/"), argument), None)
        return
    path = Path(argument)
    if not path.exists():
        raise DatasetError(f"{argument}: there is no such file or folder; check the path")
    files = [path] if path.is_file() else _files_below(path)
    if not files:
        raise DatasetError(
            f"{argument}: the folder holds no photo and no video ({', '.join(sorted(PHOTO_SUFFIXES | VIDEO_SUFFIXES))})"
        )
    for file in files:
        name = os.path.abspath(file)
        if file.suffix.lower() in PHOTO_SUFFIXES:
            yield Source(name, name, "photo", _camera(camera or "{folder}", Path(name), argument), None)
        else:
            yield Source(name, name, "video", _camera(camera or "{stem}", Path(name), argument), start)


def _files_below(folder: Path) -> list[Path]:
    known = PHOTO_SUFFIXES | VIDEO_SUFFIXES
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(parent, n) for n in sorted(names) if not n.startswith(".") and Path(n).suffix.lower() in known]
    return found


def _camera(pattern: str, path: Path, argument: str) -> str:
    try:
        name = pattern.format(stem=path.stem, folder=path.parent.name)
    except (KeyError, IndexError, ValueError) as error:
        raise ConfigError(f"camera {pattern!r}: expected a name, with {{stem}} or {{folder}} in it") from error
    if not name.strip():
        raise ConfigError(f"{argument}: camera {pattern!r} gives an empty name; choose another with --camera")
    return name


def fingerprint(source: Source, every: Fraction | None) -> str:
    """Digest of what the rows of a source depend on: its content, the frames that are looked at and its start.

    The size and both ends of a file stand for its content, so that a copy counts as the same.

    Raises:
        DatasetError: The file cannot be read.
    """
    settings = f"{every} {source.start and source.start.isoformat()}" if source.kind == "video" else ""
    if source.kind == "stream":
        return ""
    try:
        with open(source.address, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(_PROBE_BYTES)
            if size > 2 * _PROBE_BYTES:
                file.seek(-_PROBE_BYTES, os.SEEK_END)
            content += file.read()
    except OSError as error:
        raise DatasetError(f"{source.name}: cannot be read ({error.strerror}); restore the file") from error
    return hashlib.sha256(f"{size} {settings}\n".encode() + content).hexdigest()[:32]


def read_photo(path: str) -> Frame:
    """A photo with the time at which it was taken, as its EXIF data says; local time where that names no zone.

    Raises:
        DatasetError: The file is missing or cannot be read as an image.
    """
    from ..data.images import read_image

    return Frame(read_image(path, "RGB"), 0, 0.0, photo_time(path))


def photo_time(path: str) -> datetime | None:
    """Time at which a photo was taken, None where its EXIF data has none."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            exif = image.getexif().get_ifd(_EXIF_IFD)
        taken, zone = str(exif[_TAKEN]).strip("\0 "), str(exif.get(_TAKEN_ZONE, "")).strip("\0 ")
        time = datetime.strptime(taken, "%Y:%m:%d %H:%M:%S")
        fraction = str(exif.get(_TAKEN_FRACTION, "")).strip("\0 ")
        if fraction.isdigit():
            time = time.replace(microsecond=int(f"{fraction:0<6.6}"))
        time = datetime.fromisoformat(time.isoformat() + zone) if re.fullmatch(r"[+-]\d\d:\d\d", zone) else time
        return time.astimezone()
    except (OSError, KeyError, ValueError, OverflowError, SyntaxError):  # absent, or written by a careless program
        return None


def video_source(source: Source) -> tuple[datetime | None, float, float]:
    """Start, frames a second and length in seconds of a video; a start that was given goes before the file's.

    Raises:
        DatasetError: The file is missing or no video.
    """
    header = read_header(source.address)
    return source.start or header.start, header.fps, header.duration


def video_frames(path: str, every: Fraction | None, done: tuple[int, float] | None = None) -> VideoFrames:
    """Frames of a video that are looked at, see `VideoFrames`."""
    return VideoFrames(path, every, done)


def time_of(start: datetime | None, offset: float) -> datetime | None:
    """Time of a frame from that of the source's start."""
    return None if start is None else start + timedelta(seconds=offset)


def read_frame(store: Store, row: Mapping[str, Any]) -> np.ndarray:
    """Picture that a stored detection was found in, uint8 (height, width, 3), RGB, upright.

    Args:
        store: The store that the row comes from; a source that it does not list is not opened.
        row: A detection with source, camera, frame and offset.

    Raises:
        DatasetError: The source is not in the store, is missing, or has no such frame any more; or it is a live
            stream whose pictures were not kept.
    """
    state = source_state(store, row["source"], row["camera"])
    if state is None:
        raise DatasetError(f"{row['source']}: is no source of {store.uri}, so it is not opened")
    if state.kind == "photo":
        return read_photo(state.source).image
    if state.kind == "video":
        return read_video_picture(state.source, int(row["frame"]), float(row["offset"]))
    path = kept_picture(store, state.source, state.camera, int(row["frame"]))
    if path is None or not path.is_file():
        raise DatasetError(f"{state.source}: pictures of this live stream were not kept; index it with --keep-frames")
    return read_photo(str(path)).image


def source_state(store: Store, source: str, camera: str) -> SourceState | None:
    """State of a source in a store, None where it is not listed."""
    return next((s for s in store.sources() if (s.source, s.camera) == (source, camera)), None)


def kept_picture(store: Store, source: str, camera: str, frame: int) -> Path | None:
    """Where the picture of a live stream's frame is kept, None where the store names no folder for them."""
    folder = store.setting(FRAMES_FOLDER)
    return None if not folder else Path(folder) / source_key(source, camera) / f"{frame:010d}.jpg"
