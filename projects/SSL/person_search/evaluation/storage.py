"""Search problems and results as files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DatasetError
from ..io import read_arrays, replacing, write_arrays
from .problem import UNLABELLED, Galleries, SearchProblem, own_frame_galleries, with_galleries

# Keys in the file by array of a problem.
_KEYS = {
    "det_frame": "det_frame",
    "det_box": "det_box",
    "det_score": "det_score",
    "det_feature": "det_feature",
    "frame_name": "frame_name",
    "gt_frame": "gt_frame",
    "gt_box": "gt_box",
    "gt_person_id": "gt_pid",
    "query_frame": "query_frame",
    "query_box": "query_box",
    "query_person_id": "query_pid",
    "query_feature": "query_feature",
}
_GALLERY_FIELDS = tuple(field.name for field in fields(Galleries) if field.name != "other_cameras_only")

_OPTIONAL = ("frame_offset", "frame", "excluded_frame")


def save_problem(problem: SearchProblem, path: str | os.PathLike[str]) -> None:
    """Writes a search problem as an npz file, atomically; `load_problem` reads it.

    Raises:
        DatasetError: the file cannot be written.
    """
    arrays: dict[str, Any] = {key: np.asarray(getattr(problem, name)) for name, key in _KEYS.items()}
    if problem.frame_camera is not None:
        arrays["frame_camera"] = problem.frame_camera
    arrays["galleries"] = np.array(list(problem.galleries), dtype=np.str_)
    arrays["main_gallery"] = np.array(problem.main_gallery, dtype=np.str_)
    for name, galleries in problem.galleries.items():
        arrays[f"gallery.{name}.other_cameras_only"] = np.array(galleries.other_cameras_only)
        for part in _GALLERY_FIELDS:
            if getattr(galleries, part) is not None:
                arrays[f"gallery.{name}.{part}"] = getattr(galleries, part)
    write_arrays(path, arrays)


def load_problem(path: str | os.PathLike[str]) -> SearchProblem:
    """Search problem from an npz file.

    Two more layouts than that of `save_problem` are supported: the same without galleries, which then are all frames
    but the query's own ("all_cameras" and, with `frame_camera`, "cross_camera"), and CUHK-SYSU's, with `image_name`,
    `det_image` and `query_name` instead of `frame_name`, `det_frame` and `query_frame` and without annotations, whose
    galleries must be added (`with_galleries`).

    Raises:
        DatasetError: the file is missing, not an npz file, or lacks an array or has one that does not fit.
    """
    arrays = read_arrays(path, "a search problem")
    if "image_name" in arrays:
        arrays = _from_cuhk_layout(arrays, path)
    missing = [key for key in _KEYS.values() if key not in arrays]
    if missing:
        raise DatasetError(f"{path}: array {missing[0]} is missing; there are {', '.join(sorted(arrays)) or 'none'}")
    values: dict[str, Any] = {name: arrays[key] for name, key in _KEYS.items()}
    values["frame_name"] = tuple(values["frame_name"].tolist())
    for name in ("det_frame", "gt_frame", "query_frame", "gt_person_id", "query_person_id"):
        if values[name].dtype.kind in "iu":  # others are rejected by the problem
            values[name] = values[name].astype(np.int64, copy=False)
    try:
        problem = SearchProblem(**values, frame_camera=arrays.get("frame_camera"))
        if "galleries" in arrays:
            return with_galleries(problem, _read_galleries(arrays), str(arrays.get("main_gallery", "")))
        return _with_own_frame_galleries(problem)
    except KeyError as error:
        raise DatasetError(f"{path}: array {error.args[0]} is missing") from error
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from error


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes `content` as JSON, atomically.

    Raises:
        DatasetError: the file cannot be written.
    """
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Content of a JSON file of an evaluation.

    Raises:
        DatasetError: the file is missing or not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DatasetError(f"{path} cannot be read ({error.strerror}); an evaluation of a search writes it") from error
    except ValueError as error:
        raise DatasetError(f"{path} is not the evaluator's {Path(path).name} ({error!r}); evaluate again") from error


def _gallery_arrays(arrays: Mapping[str, np.ndarray], name: str) -> dict[str, Any]:
    """Arrays by field of `Galleries`; None for missing optional ones."""
    required = [part for part in _GALLERY_FIELDS if part not in _OPTIONAL]
    found: dict[str, Any] = {part: arrays[f"gallery.{name}.{part}"] for part in required}
    return found | {part: arrays.get(f"gallery.{name}.{part}") for part in _OPTIONAL}


def _read_galleries(arrays: Mapping[str, np.ndarray]) -> dict[str, Galleries]:
    return {
        name: Galleries(
            **_gallery_arrays(arrays, name),
            other_cameras_only=bool(arrays[f"gallery.{name}.other_cameras_only"]),
        )
        for name in arrays["galleries"].tolist()
    }


def _with_own_frame_galleries(problem: SearchProblem) -> SearchProblem:
    if not len(problem.gt_frame):
        return problem
    galleries = {"all_cameras": own_frame_galleries(problem, cross_camera=False)}
    if problem.frame_camera is not None:
        galleries["cross_camera"] = own_frame_galleries(problem, cross_camera=True)
    return with_galleries(problem, galleries)


def _from_cuhk_layout(arrays: dict[str, np.ndarray], path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    arrays = dict(arrays)
    try:
        frame_name, query_name = arrays.pop("image_name"), arrays.pop("query_name").tolist()
        frame_of = {name: frame for frame, name in enumerate(frame_name.tolist())}
        query_frame = np.array([frame_of[name] for name in query_name], np.int64)
        arrays["det_frame"] = arrays.pop("det_image")
    except KeyError as error:
        raise DatasetError(f"{path}: {error.args[0]} is missing among the arrays or in image_name") from error
    nobody = {"gt_frame": np.zeros(0, np.int64), "gt_box": np.zeros((0, 4)), "gt_pid": np.zeros(0, np.int64)}
    query_pid = np.full(len(query_frame), UNLABELLED)
    return {"query_pid": query_pid, **nobody, **arrays, "frame_name": frame_name, "query_frame": query_frame}
