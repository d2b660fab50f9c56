"""A search problem: everything that the figures of person search depend on, as plain arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import DatasetError
from .galleries import Galleries, all_frames_but_own

UNLABELLED = -1
"""Person id of an annotated person without identity. Every negative id counts as unlabelled."""


@dataclass(frozen=True)
class SearchProblem:
    """D detections and G annotated boxes in F frames, Q queries and the galleries in which they are searched.

    Boxes are (x0, y0, x1, y1) in pixels of the original frame; `..._frame` are indices into the F frames.

    Attributes:
        det_frame: (D,) int64, in any order. The order within a frame is the stored order of its detections.
        det_box: (D, 4) float32 or float64.
        det_score: (D,) float32 or float64.
        det_feature: (D, d) float32 or float64, unit length.
        frame_name: F unique names.
        gt_frame: (G,) int64.
        gt_box: (G, 4) float64.
        gt_person_id: (G,) int64, < 0 where unlabelled.
        query_frame: (Q,) int64.
        query_box: (Q, 4) float64.
        query_person_id: (Q,) int64.
        query_feature: (Q, d), unit length; a row of zeros is a query without a feature: it finds nothing.
        frame_camera: (F,) int64; None where unknown.
        galleries: galleries by name, all of these queries.
        main_gallery: name of the gallery whose figures stand for the problem; "": the first.

    Raises:
        DatasetError: an array has a wrong shape or type, an index is out of range, a number is not finite, or two
            frames have one name.
    """

    det_frame: np.ndarray
    det_box: np.ndarray
    det_score: np.ndarray
    det_feature: np.ndarray
    frame_name: tuple[str, ...]
    gt_frame: np.ndarray
    gt_box: np.ndarray
    gt_person_id: np.ndarray
    query_frame: np.ndarray
    query_box: np.ndarray
    query_person_id: np.ndarray
    query_feature: np.ndarray
    frame_camera: np.ndarray | None = None
    galleries: Mapping[str, Galleries] = field(default_factory=dict)
    main_gallery: str = ""

    def __post_init__(self) -> None:
        num_det, num_gt, num_query = len(self.det_frame), len(self.gt_frame), len(self.query_frame)
        dimension = self.det_feature.shape[1] if self.det_feature.ndim == 2 else 0
        shapes = {
            "det_frame": (num_det,), "det_box": (num_det, 4), "det_score": (num_det,),
            "det_feature": (num_det, dimension), "gt_frame": (num_gt,), "gt_box": (num_gt, 4),
            "gt_person_id": (num_gt,), "query_frame": (num_query,), "query_box": (num_query, 4),
            "query_person_id": (num_query,), "query_feature": (num_query, dimension),
        }  # fmt: skip
        if self.frame_camera is not None:
            shapes["frame_camera"] = (len(self.frame_name),)
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise DatasetError(f"search problem: {name} has shape {array.shape}, expected {shape}")
            kinds = "iu" if name.endswith("_id") else "iuf"
            if array.dtype.kind not in kinds and not name.endswith("_frame"):
                what = "numbers" if "f" in kinds else "integers"
                raise DatasetError(f"search problem: {name} has to hold {what}, not {array.dtype}")
            if array.dtype.kind == "f" and not _is_finite(array):
                raise DatasetError(f"search problem: {name} holds numbers that are not finite")
        if len(set(self.frame_name)) != len(self.frame_name):
            twice = next(name for name, count in Counter(self.frame_name).items() if count > 1)
            raise DatasetError(
                f"search problem: frame_name has {twice!r} more than once; frames need names of their own"
            )
        for name in ("det_frame", "gt_frame", "query_frame"):
            _check_frames(name, getattr(self, name), len(self.frame_name))
        for name, galleries in self.galleries.items():
            galleries.check(name, num_query, len(self.frame_name))
            if galleries.other_cameras_only and self.frame_camera is None:
                raise DatasetError(f"search problem: gallery {name!r} needs frame_camera, which is not known")
        if self.main_gallery and self.main_gallery not in self.galleries:
            raise DatasetError(f"search problem: main gallery {self.main_gallery!r} is not in {list(self.galleries)}")

    def gallery_name(self, name: str | None = None) -> str:
        """`name`, or the main gallery's where it is None.

        Raises:
            DatasetError: there is no such gallery.
        """
        name = name or self.main_gallery or next(iter(self.galleries), "")
        if name not in self.galleries:
            raise DatasetError(f"search problem: no gallery {name!r}; there are {list(self.galleries) or 'none'}")
        return name


def own_frame_galleries(problem: SearchProblem, cross_camera: bool) -> Galleries:
    """Galleries of every frame but the query's own, from the annotations of the problem (PRW, custom sets).

    Args:
        problem: its own galleries are not looked at.
        cross_camera: search only frames of other cameras than the query's.

    Raises:
        DatasetError: cross_camera and the cameras are not known.
    """
    if cross_camera and problem.frame_camera is None:
        raise DatasetError("cross-camera search: the cameras of the frames are not known (camera_id of the records)")
    return all_frames_but_own(
        problem.query_frame,
        problem.query_person_id,
        problem.gt_frame,
        problem.gt_box,
        problem.gt_person_id,
        problem.frame_camera if cross_camera else None,
    )


def with_galleries(problem: SearchProblem, galleries: Mapping[str, Galleries], main: str = "") -> SearchProblem:
    """The same problem with other galleries.

    Raises:
        DatasetError: they do not fit the problem, or `main` is not one of them.
    """
    return replace(problem, galleries=dict(galleries), main_gallery=main)


def _is_finite(array: np.ndarray, rows: int = 4096) -> bool:
    # In blocks: a mask over all features of a large set would cost a quarter of their memory.
    return all(np.isfinite(array[i : i + rows]).all() for i in range(0, len(array), rows))


def _check_frames(name: str, index: np.ndarray, num_frames: int) -> None:
    if index.dtype.kind not in "iu":
        raise DatasetError(f"search problem: {name} has to hold integers, not {index.dtype}")
    if len(index) and not 0 <= index.min() <= index.max() < num_frames:
        raise DatasetError(
            f"search problem: {name} runs from {index.min()} to {index.max()}, expected 0 to {num_frames - 1}"
        )
