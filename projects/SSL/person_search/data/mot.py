"""Custom datasets in MOTChallenge's text format: a sequence, as a folder of frames or a video, and its boxes."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ..errors import ConfigError, DatasetError
from .box_files import MotLine, read_mot_lines
from .catalog import check_at_least, check_score, register_dataset, require_file
from .images import image_sizes
from .records import (
    UNLABELLED,
    Frame,
    Person,
    Record,
    SearchProtocol,
    build_records,
    chosen_queries,
    say_once,
)
from .video import check_numbering, video_frame_name, video_shape

_IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp"}
PEDESTRIAN = 1
"""Class of walking persons in MOT16."""

logger = logging.getLogger(__name__)


def register_mot(
    name: str,
    images: str | Path,
    gt_file: str | Path,
    *,
    frames: Sequence[int] | None = None,
    camera_id: int | None = None,
    queries_per_identity: int = 10,
    strict: bool = False,
    min_score: float | None = None,
    categories: Sequence[int] = (PEDESTRIAN,),
) -> None:
    """Registers a sequence with boxes in MOT's format as the person search dataset `name`. Reads no file.

    A line of the ground truth is "frame,id,x,y,w,h[,flag[,class[,visibility]]]", with frames counted from 1. Lines with
    flag 0 or a class other than pedestrian (1) are skipped; a negative id is unlabelled. With `min_score`, lines are
    those of a detector or tracker, "frame,id,x,y,w,h,score[,class[,visibility]]". Frame k is the k-th frame of a video,
    or the image in a folder with the number k in its name; names must not differ otherwise.

    Args:
        name: name in DATASETS.TRAIN and DATASETS.TEST.
        images: folder of images, or video file.
        gt_file: ground truth, or detections.
        frames: (first, last) frame to use, inclusive and numbered as in the ground truth, or (first, last, step) for
            every step-th one, since consecutive frames are nearly identical; None for all.
        camera_id: camera of the sequence, for cross-camera evaluation.
        queries_per_identity: maximum number of queries per identity; see `spread_queries`.
        strict: raise an error for a box that is empty or outside its frame, instead of dropping it.
        min_score: minimum score, in the detector's unit; None if the seventh column is a flag.
        categories: person classes, for files with a column of classes.

    Raises:
        ConfigError: a value is invalid, or the name is taken by another dataset.
    """
    check_at_least(name, "queries_per_identity", queries_per_identity, 1)
    if camera_id is not None:
        check_at_least(name, "camera_id", camera_id, 0)
    check_score(name, min_score)
    if not categories or not all(isinstance(c, int) and not isinstance(c, bool) for c in categories):
        raise ConfigError(f"{name}: categories is {categories!r}, expected numbers of MOT's classes, such as [1, 2, 7]")
    span, wanted = _check_span(name, frames), tuple(categories)
    images, gt_file = Path(images).absolute(), Path(gt_file).absolute()
    entry = {
        "format": "mot",
        "images": str(images),
        "gt_file": str(gt_file),
        "frames": span,
        "camera_id": camera_id,
        "queries_per_identity": queries_per_identity,
        "strict": strict,
        "min_score": min_score,
        "categories": wanted,
    }
    load = partial(load_mot, name, images, gt_file, span, camera_id, strict, min_score, wanted)
    register_dataset(name, entry, load, partial(_load_protocol, name, load, queries_per_identity))


def load_mot(
    dataset: str,
    images: Path,
    gt_file: Path,
    frames: Sequence[int] | None = None,
    camera_id: int | None = None,
    strict: bool = False,
    min_score: float | None = None,
    categories: Sequence[int] = (PEDESTRIAN,),
) -> list[Record]:
    """Records of a sequence, including frames without persons; for the files see `register_mot`.

    Raises:
        DatasetError: a file is missing or unreadable, a line is malformed or belongs to a missing frame (the message
            gives file and line), or the sequence lacks the requested frames.
    """
    require_file(dataset, gt_file, "ground truth in MOT's text format")
    names, size = _sequence(dataset, images)
    first, last, step = (*(frames or (min(names), max(names))), 1)[:3]
    taken = [number for number in names if first <= number <= last and not (number - first) % step]
    if frames is not None and (first not in names or last not in names):
        raise DatasetError(
            f"{dataset}: frames {first} to {last} are requested, {images} has {min(names)} to {max(names)}"
        )
    persons, left_out = _read_boxes(gt_file, min_score, categories)
    _tell(dataset, gt_file, persons, left_out)
    _check_start(dataset, gt_file, persons, names, frames[0] if frames is not None else None)
    _check_frames(gt_file, persons, names, first, last)
    sizes = [size] * len(taken) if size is not None else image_sizes(names[number] for number in taken)
    found = [
        Frame(names[n], Path(names[n]).name, height, width, [p for _, p in persons.get(n, ())], camera_id, n)
        for n, (height, width) in zip(taken, (known or (None, None) for known in sizes), strict=True)
    ]
    return build_records(dataset, found, strict)


def read_ground_truth(gt_file: Path) -> dict[int, list[tuple[int, Person]]]:
    """[(line number, person)] by frame, without skipped lines.

    Raises:
        DatasetError: a line is malformed; the message gives file and line.
    """
    return _read_boxes(gt_file, None, (PEDESTRIAN,))[0]


def _read_boxes(
    file: Path, min_score: float | None, categories: Sequence[int]
) -> tuple[dict[int, list[tuple[int, Person]]], Counter[str]]:
    """[(line number, person)] by frame, and the number of skipped lines by reason."""
    persons: dict[int, list[tuple[int, Person]]] = {}
    left_out: Counter[str] = Counter()
    for line in read_mot_lines(file):
        reason = _reason_against(file, line, min_score, categories)
        if reason:
            left_out[reason] += 1
        else:
            person = Person(line.bbox, max(line.identity, UNLABELLED))
            persons.setdefault(line.frame, []).append((line.number, person))
    return persons, left_out


def _reason_against(file: Path, line: MotLine, min_score: float | None, categories: Sequence[int]) -> str:
    """Reason to skip a line; "" to use it."""
    if min_score is None:
        if line.mark is not None and not line.mark.is_integer():
            raise DatasetError(
                f"{file}: line {line.number}: the seventh column is {line.mark:g}, which is a score rather than the "
                "flag of a ground truth (0 or 1): set MIN_SCORE, the minimum score"
            )
        if line.mark == 0:
            return "of flag 0"
    elif line.mark is None:
        raise DatasetError(f"{file}: line {line.number}: has no score, and MIN_SCORE asks for {min_score:g} or more")
    elif not line.mark >= min_score:
        return f"below the score {min_score:g}"
    return f"of class {line.category}" if line.category is not None and line.category not in categories else ""


def _tell(dataset: str, file: Path, persons: Mapping[int, Sequence[object]], left_out: Counter[str]) -> None:
    """Logs the number of skipped lines, as a warning if none is left."""
    if left_out:
        kept, reasons = sum(map(len, persons.values())), ", ".join(f"{n} {why}" for why, n in left_out.most_common())
        message = f"{dataset}: {kept} of {kept + left_out.total()} boxes of {file} used; skipped {reasons}"
        say_once(logger, logging.INFO if kept else logging.WARNING, message)


def _check_span(name: str, frames: Sequence[int] | None) -> tuple[int, ...] | None:
    if frames is None:
        return None
    whole = len(frames) in (2, 3) and all(isinstance(f, int) and not isinstance(f, bool) for f in frames)
    if not whole or not 0 <= frames[0] <= frames[1] or min(frames[2:], default=1) < 1:
        raise ConfigError(
            f"{name}: frames is {frames!r}, expected [first, last] or [first, last, step], "
            "counted as in the ground truth"
        )
    return tuple(frames)


def _sequence(dataset: str, images: Path) -> tuple[dict[int, str], tuple[int, int] | None]:
    """`file_name` by frame number, and (height, width) of a video's frames; None for images."""
    if images.is_file():
        if images.suffix.lower() in _IMAGE_ENDINGS:
            raise DatasetError(f"{dataset}: {images} is a single image; expected a folder of images or a video")
        count, height, width = video_shape(images)
        check_numbering(images)
        return {k + 1: video_frame_name(images, k) for k in range(count)}, (height, width)
    if not images.is_dir():
        raise DatasetError(f"{dataset}: {images} is missing; expected a folder of images or a video there")
    files = sorted(
        file for file in images.iterdir()
        if file.suffix.lower() in _IMAGE_ENDINGS and not file.name.startswith(".") and file.is_file()
    )  # fmt: skip
    if not files:
        raise DatasetError(f"{dataset}: {images} holds no image ({', '.join(sorted(_IMAGE_ENDINGS))})")
    names: dict[int, str] = {}
    for number, file in sorted(zip(_numbers(dataset, files), files, strict=True)):
        if number in names:
            raise DatasetError(f"{dataset}: {names[number]} and {file} are both frame {number}")
        names[number] = str(file)
    return names, None


def _numbers(dataset: str, files: Sequence[Path]) -> list[int]:
    """Frame number of each file of a sequence: the only number that differs between their names.

    Raises:
        DatasetError: a name has another form, or names differ in more than one number.
    """
    parts = [re.split(r"([0-9]+)", file.stem) for file in files]
    shapes = Counter(tuple(part[::2]) for part in parts)
    usual = shapes.most_common(1)[0][0]
    odd = [file for file, part in zip(files, parts, strict=True) if tuple(part[::2]) != usual]
    example = files[next(i for i, part in enumerate(parts) if tuple(part[::2]) == usual)]
    if odd or len(usual) == 1:
        raise DatasetError(
            f"{dataset}: the names of the images in {files[0].parent} have no frame number "
            f"({(odd or files)[0].name}{f' beside {example.name}' if odd else ''}); expected names that differ only in "
            "the number of the frame, such as frame_1.jpg or 000001.jpg: rename them, or remove what is not a frame"
        )
    columns = [list(map(int, column)) for column in zip(*(part[1::2] for part in parts), strict=True)]
    differing = [column for column in columns if len(set(column)) > 1] or columns[-1:]
    if len(differing) > 1:
        raise DatasetError(
            f"{dataset}: the images in {files[0].parent} differ in {len(differing)} numbers of their names "
            f"({files[0].name}, {files[-1].name}), so the frame number is ambiguous: rename them to the frame number "
            "alone, such as 000001.jpg"
        )
    return differing[0]


def _check_start(
    dataset: str, gt_file: Path, persons: Mapping[int, object], names: Mapping[int, str], first: int | None
) -> None:
    """Checks that images numbered from 0 match the ground truth, which may count from 1, unless FRAMES starts at 0.

    Raises:
        DatasetError: both are possible.
    """
    if min(names) == 0 and persons and min(persons) > 0 and first != 0:
        raise DatasetError(
            f"{dataset}: {names[0]} is frame 0, but {gt_file} has no line for frame 0 and may count frames from 1: "
            f"rename the images from 1, or set FRAMES [0, {max(names)}] if it counts from 0"
        )


def _check_frames(
    gt_file: Path, persons: dict[int, list[tuple[int, Person]]], names: dict[int, str], first: int, last: int
) -> None:
    """Checks that every frame of the ground truth within first..last has an image."""
    for number, of_frame in persons.items():
        if number not in names and (first <= number <= last or not min(names) <= number <= max(names)):
            raise DatasetError(
                f"{gt_file}: line {of_frame[0][0]}: frame {number} is not in the sequence, "
                f"whose frames are {min(names)} to {max(names)}"
            )


def _load_protocol(dataset: str, load: partial[list[Record]], queries_per_identity: int) -> SearchProtocol:
    return chosen_queries(dataset, load(), queries_per_identity)
