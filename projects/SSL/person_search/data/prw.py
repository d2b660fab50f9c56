"""PRW in its official format: MATLAB annotations, one file per frame, and query_info.txt."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import DatasetError
from . import matlab
from .cache import Arrays, FrameTable, cached_arrays
from .catalog import require_file, require_folder
from .images import image_sizes
from .records import (
    UNLABELLED,
    Query,
    Record,
    SearchProtocol,
    build_records,
    check_queries,
    clip_box,
)

logger = logging.getLogger(__name__)

_READER_VERSION = 1
_EXPECTED = "the official PRW download (frame_train.mat, frame_test.mat, annotations/, frames/, query_info.txt)"
# Most files name the array box_new; some still have the names of earlier annotation rounds.
_BOX_VARIABLES = ("box_new", "anno_file", "anno_previous")
_FRAME_NAME = re.compile(r"c(\d)s\d+_\d+(?:\.jpg)?")
# Height and width by camera, for annotations without images: only camera 6 is of standard definition.
_SIZES = {6: (576, 720)}
_USUAL_SIZE = (1080, 1920)
_THREADS = 8  # 11,816 small files: disk latency dominates


def load_prw(root: Path, split: str) -> list[Record]:
    """Records of PRW's training or test set; identities as in the files, with unlabelled (-2) as -1.

    Training identities are 1-478, 480-483 and 932. Negative coordinates are set to 0 with width and height kept, as in
    the readers behind all published results; boxes are clipped on the other sides. Images are not needed: frame sizes
    come from readable images, else from the camera.

    Args:
        root: folder of PRW.
        split: "train" or "test".

    Raises:
        DatasetError: a file is missing, damaged or malformed; the message names it.
    """
    dataset = f"prw_{split}"
    require_folder(dataset, root, _EXPECTED)
    return build_records(dataset, _frame_table(root, split).frames(root.absolute() / "frames", camera_of))


def load_prw_protocol(root: Path) -> SearchProtocol:
    """The 2,057 queries of query_info.txt ("id x y w h frame", CRLF or LF), searched in all test frames.

    Raises:
        DatasetError: the file is missing, a line is malformed, or a query's frame is not a test frame.
    """
    require_folder("prw_test", root, _EXPECTED)
    table = _frame_table(root, "test")
    sizes = dict(zip(table.image_ids.tolist(), table.sizes.tolist(), strict=True))
    file = root / "query_info.txt"
    require_file("prw_test", file, "PRW's list of queries")
    queries = []
    for number, line in enumerate(file.read_text(errors="replace").splitlines(), 1):
        if line.strip():
            queries.append(_parse_query(line, f"{file}: line {number}", sizes))
    if not queries:
        raise DatasetError(f"{file}: has no queries; download the file again")
    return check_queries("prw_test", SearchProtocol("prw", tuple(queries)), sizes)


def camera_of(image_id: str) -> int:
    """Camera of a frame, 1-6: the digit after the c in its name ("c1s1_001051.jpg").

    Raises:
        DatasetError: the name has another form.
    """
    match = _FRAME_NAME.fullmatch(image_id)
    if match is None:
        raise DatasetError(f"PRW: the frame name {image_id!r} is not of the form c1s1_001051.jpg")
    return int(match.group(1))


def _parse_query(line: str, where: str, sizes: dict[str, list[int]]) -> Query:
    """Query of a line of query_info.txt; `sizes` has (height, width) by test frame."""
    fields = line.split()
    try:
        person_id, name = int(fields[0]), fields[5]
        # Corners are truncated to whole pixels, as in the common protocol (SeqNet, NAE, CGPS).
        bbox = np.trunc(_corners(np.array([fields[1:5]], dtype=np.float64)))[0].tolist()
        if len(fields) != 6 or person_id < 0:
            raise ValueError
    except (ValueError, IndexError):
        raise DatasetError(f"{where}: expected 'id x y w h frame', found {line.strip()!r}") from None
    image_id = name if name.endswith(".jpg") else f"{name}.jpg"
    if image_id not in sizes:
        raise DatasetError(f"{where}: the query's frame {image_id!r} is not one of PRW's {len(sizes)} test frames")
    clipped = clip_box(bbox, *sizes[image_id])
    if clipped is None:
        height, width = sizes[image_id]
        raise DatasetError(
            f"{where}: the query's box is empty or outside the frame {image_id!r} of {width} x {height} pixels; "
            "fix the line, or download the image again if it was resized"
        )
    return Query(image_id, clipped, person_id)


def _frame_table(root: Path, split: str) -> FrameTable:
    """All annotations of a split, cached."""
    sources = [root / f"frame_{split}.mat", root / "annotations", root / "frames"]
    arrays = cached_arrays(f"prw_{split}", root, sources, _READER_VERSION, lambda: _read_split(root, split))
    return FrameTable(**arrays)


def _read_split(root: Path, split: str) -> Arrays:
    dataset = f"prw_{split}"
    frame_list = root / f"frame_{split}.mat"
    require_file(dataset, frame_list, _EXPECTED)
    require_folder(dataset, root / "annotations", "one .mat file for each frame of PRW")
    names = [f"{name}.jpg" for name in matlab.texts(frame_list, f"img_index_{split}")]
    try:
        cameras = [camera_of(name) for name in names]
    except DatasetError as error:
        raise DatasetError(f"{frame_list}: {error}; fetch the file again") from None
    if not names:
        raise DatasetError(f"{frame_list}: img_index_{split} names no frame; fetch the file again")
    files = [root / "annotations" / f"{name}.mat" for name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        reading = pool.map(_read_annotation, files)
        annotations = list(tqdm(reading, desc=f"reading {dataset}", total=len(files), unit=" frames", delay=2))
    boxes, person_ids = [b for b, _ in annotations], [p for _, p in annotations]
    return FrameTable.from_frames(names, _sizes(root, dataset, names, cameras), boxes, person_ids).arrays()


def _read_annotation(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (n, 4) as corners and identities (n,) of a frame; rows of the file are id, x, y, w, h."""
    rows = matlab.load_variable(file, _BOX_VARIABLES)
    if rows.size == 0:
        return np.zeros((0, 4)), np.zeros(0, np.int64)
    if rows.ndim != 2 or rows.shape[1] != 5 or rows.dtype.kind not in "uif":
        raise DatasetError(f"{file}: expected rows of id, x, y, w, h, found {rows.dtype} of shape {rows.shape}")
    ids = rows[:, 0].astype(np.float64)
    if not np.array_equal(ids, np.round(ids)):  # NaN differs from itself, so it is rejected too
        raise DatasetError(f"{file}: the identities {ids[ids != np.round(ids)].tolist()} are not integers")
    return _corners(rows[:, 1:].astype(np.float64)), np.maximum(ids.astype(np.int64), UNLABELLED)


def _corners(xywh: np.ndarray) -> np.ndarray:
    """Corners x0, y0, x1, y1 (n, 4) of x, y, w, h; for negative ones see `load_prw`."""
    xywh = np.maximum(xywh, 0)
    return np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)


def _sizes(root: Path, dataset: str, names: Sequence[str], cameras: Sequence[int]) -> list[tuple[int, int]]:
    """(height, width) of each frame: from the header of a readable image, else from the camera."""
    folder = root / "frames"
    present = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    existing = [name for name in names if name in present]
    sizes = dict(zip(existing, image_sizes(folder / name for name in existing), strict=True))
    missing, unreadable = len(names) - len(existing), [name for name in sizes if sizes[name] is None]
    if missing:
        logger.warning("%s: %d of %d images are missing below %s", dataset, missing, len(names), folder)
    if unreadable:
        logger.warning(
            "%s: %d images cannot be read (for example %s): training skips them, evaluation fails on them",
            dataset, len(unreadable), folder / unreadable[0],
        )  # fmt: skip
    return [sizes.get(n) or _SIZES.get(c, _USUAL_SIZE) for n, c in zip(names, cameras, strict=True)]
