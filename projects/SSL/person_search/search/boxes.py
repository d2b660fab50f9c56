"""Boxes of persons in footage that nobody has annotated: from a detector, a checkpoint of this project, or a file."""

from __future__ import annotations

import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.box_files import PERSON_CATEGORY, read_coco_results, read_mot_lines
from ..errors import CheckpointError, ConfigError, DatasetError
from .sources import Source

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from .video import Frame

BoxFinder = Callable[[Source, "Frame"], tuple[np.ndarray, np.ndarray]]
"""Gives boxes (N, 4), x0, y0, x1, y1 in pixels, and scores (N,) of a frame."""

COCO_DETECTOR = "COCO-Detection/faster_rcnn_R_50_FPN_3x"
COCO_WEIGHTS = f"detectron2://{COCO_DETECTOR}/137849458/model_final_280758.pkl"
_PERSON = 0  # Detectron2's class
_PREFILTER = 0.05


def box_finder(whence: str, *, config_file: str | None, weights: str | None, device: str | None) -> BoxFinder:
    """What draws the boxes.

    Args:
        whence: "coco" for Detectron2's Faster R-CNN, a checkpoint of this project (.pth), COCO results (.json), or MOT
            detections: a .txt file for one video, a folder of them, named as the videos, for several.
        config_file: Configuration of a checkpoint that carries none.
        weights: File of the COCO detector's weights; None downloads them.
        device: Device for a detector.

    Raises:
        CheckpointError: The detector's weights cannot be had.
        DatasetError: A file of boxes cannot be read.
        ConfigError: `whence` is none of these.
    """
    path = Path(whence)
    if whence == "coco":
        return _coco_detector(weights, device)
    if path.suffix.lower() == ".pth":
        return _own_detector(whence, config_file, device)
    if path.suffix.lower() == ".json":
        return _coco_results(path)
    if path.suffix.lower() == ".txt" or path.is_dir():
        return _mot_detections(path)
    raise ConfigError(
        f"boxes {whence!r}: expected 'coco', a checkpoint (.pth), COCO results (.json), or MOT detections (.txt, or a "
        "folder of them)"
    )


def _own_detector(weights: str, config_file: str | None, device: str | None) -> BoxFinder:
    from .searcher import PersonSearcher

    searcher = PersonSearcher(config_file, weights, device=device)

    def find(source: Source, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        found = searcher.detect(frame.image)
        return found.boxes, found.scores

    return find


def coco_detector_config(weights: str | None, device: str | None) -> CfgNode:
    """Configuration of Detectron2's Faster R-CNN, read where it is installed: its model zoo needs a retired module."""
    import torch
    from detectron2.config import get_cfg

    spec = importlib.util.find_spec("detectron2")
    assert spec is not None and spec.origin is not None
    cfg = get_cfg()
    cfg.merge_from_file(str(Path(spec.origin).parent / "model_zoo" / "configs" / f"{COCO_DETECTOR}.yaml"))
    cfg.MODEL.WEIGHTS = weights or COCO_WEIGHTS
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = _PREFILTER
    return cfg


def _coco_detector(weights: str | None, device: str | None) -> BoxFinder:
    import torch
    from detectron2.data import transforms as T
    from detectron2.modeling import build_model

    from ..weights.checkpoint import PersonSearchCheckpointer

    cfg = coco_detector_config(weights, device)
    model = build_model(cfg).eval()
    try:
        checkpointer = PersonSearchCheckpointer(model)
        checkpointer.load(cfg.MODEL.WEIGHTS, checkpointables=[])
    except CheckpointError as error:
        raise CheckpointError(
            f"the detector's weights cannot be had: {error}. Fetch {COCO_WEIGHTS.replace('detectron2:/', 'the file')} "
            "of Detectron2's model zoo and name it with --detector-weights, or give boxes with --boxes"
        ) from error
    resize = T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    @torch.no_grad()
    def find(source: Source, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        image = np.ascontiguousarray(frame.image[:, :, ::-1])  # this detector was trained on BGR
        height, width = image.shape[:2]
        pixels = resize.get_transform(image).apply_image(image).transpose(2, 0, 1)
        (output,) = model([{"image": torch.as_tensor(np.ascontiguousarray(pixels)), "height": height, "width": width}])
        persons = output["instances"][output["instances"].pred_classes == _PERSON].to("cpu")
        return persons.pred_boxes.tensor.numpy(), persons.scores.numpy()

    return find


def _coco_results(path: Path) -> BoxFinder:
    """Boxes of a COCO results file.

    The image_id of a photo is its file name, of a frame of a video "<file name>#frame=<number from 0>".
    """
    found: dict[str, list[list[float]]] = defaultdict(list)
    for box in read_coco_results(path):
        if box.category_id == PERSON_CATEGORY:
            found[str(box.image_id)].append([*box.bbox, box.score])

    def find(source: Source, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        name = os.path.basename(source.name)
        return _split(found.get(name if source.kind == "photo" else f"{name}#frame={frame.number}", []))

    return find


def _mot_detections(path: Path) -> BoxFinder:
    """Boxes of MOT files: lines "frame from 1, id, x, y, w, h, score"; ids are not read."""
    files: dict[str, dict[int, list[list[float]]]] = {}

    def boxes_of(source: Source) -> dict[int, list[list[float]]]:
        if source.name not in files:
            file = path / f"{Path(source.name).stem}.txt" if path.is_dir() else path
            files[source.name] = _scored_boxes(file)
        return files[source.name]

    if not path.is_dir():
        _scored_boxes(path)  # says at once what is wrong with it

    def find(source: Source, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
        if source.kind != "video":
            raise DatasetError(f"{path}: MOT detections are of videos; {source.name} is a {source.kind}")
        return _split(boxes_of(source).get(frame.number + 1, []))

    return find


def _scored_boxes(file: Path) -> dict[int, list[list[float]]]:
    """Frame from 1 -> its boxes, each x0, y0, x1, y1 and the score (1 where the file has none)."""
    found: dict[int, list[list[float]]] = defaultdict(list)
    for line in read_mot_lines(file):
        found[line.frame].append([*line.bbox, 1.0 if line.mark is None else line.mark])
    return found


def _split(rows: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    array = np.array(rows, np.float64).reshape(-1, 5)
    return array[:, :4], array[:, 4]
