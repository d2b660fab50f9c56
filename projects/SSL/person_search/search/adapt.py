"""Adapting a model to footage that nobody has annotated: boxes, a data set, training without identities, an index."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from .boxes import BoxFinder, box_finder
from .cli import OFF
from .indexed_source import IndexedSource
from .sources import Source, find_sources, read_photo, video_frames, video_source
from .store import SourceState
from .tracklets import TrackletNumbers

if TYPE_CHECKING:
    from detectron2.config import CfgNode

    from .video import Frame

logger = logging.getLogger(__name__)

DATASET = "footage"
_JPEG_QUALITY = 95
_SMALLEST = 8.0  # pixels: what is lower than this shows nobody
_FEWEST = 50  # boxes; of fewer nothing is learnt
_UNKNOWN_RATE = 25.0  # frames a second
_ROUNDING = 1e-6  # of a time that lies on a multiple of another
# Frames are resized until half of the persons are higher than this many pixels: below it the network sees too little of
# them, and above it takes long. The bounds are of the frames' shorter side, which is a multiple of the last number.
_PERSON_HEIGHT, _SHORTEST, _LONGEST, _STEP = 104, 384, 1152, 16


def adapt_footage(args: argparse.Namespace) -> int:
    """Runs `person-search adapt`: boxes, training, index; what an earlier run has finished is taken over.

    Raises:
        PersonSearchError: A source, the boxes, the configuration or the weights cannot be used.
    """
    out = Path(args.out).absolute()
    sources = find_sources(args.sources, camera=args.camera, start=args.start)
    if any(source.kind == "stream" for source in sources):
        raise ConfigError("a live stream cannot be adapted to: record it, then name the files")
    boxes = boxes_file(args, sources, out)
    cfg = training_config(args, boxes, out)
    _train(cfg)
    return _index(args, sources, Path(cfg.OUTPUT_DIR) / "model_final.pth", out)


# ---------------------------------------------------------------------- boxes


def boxes_file(args: argparse.Namespace, sources: Sequence[Source], out: Path) -> Path:
    """The COCO file of the boxes, made anew unless it was made of the same sources in the same way."""
    file = out / "boxes.json"
    names = [f"{source.name} {os.path.getmtime(source.address)}" for source in sources]
    made_of = [names, str(args.every), args.boxes, args.min_score]
    if args.tracklets != OFF:
        made_of.append(str(args.tracklets))
    digest = hashlib.sha256(json.dumps(made_of).encode()).hexdigest()
    if file.is_file() and json.loads(file.read_text(encoding="utf-8"))["info"]["made_of"] == digest:
        logger.info("%s: boxes of an earlier run are taken over", file)
        return file
    find = box_finder(args.boxes, config_file=None, weights=args.detector_weights, device=args.device)
    content = collect_boxes(sources, args.every, find, out / "frames", args.min_score, _tracking(args))
    content["info"] = {"description": "footage, boxes without identities", "made_of": digest}
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(file)
    return file


@dataclass(frozen=True)
class Tracking:
    """How boxes are joined to tracklets.

    Attributes:
        every: Seconds from one frame of a video that the tracker looks at to the next, None takes all.
    """

    every: Fraction | None


def _tracking(args: argparse.Namespace) -> Tracking | None:
    if args.tracklets == OFF:
        return None
    if args.every is not None and args.tracklets is not None and args.tracklets <= args.every:
        return Tracking(args.tracklets)
    if args.tracklets is None:
        return Tracking(None)
    every = "all" if args.every is None else f"{float(args.every):g}s"
    raise ConfigError(
        f"--tracklets {float(args.tracklets):g}s is longer than --every {every}: the tracker has to see every frame of "
        "the training"
    )


def collect_boxes(
    sources: Sequence[Source],
    every: Fraction | None,
    find: BoxFinder,
    folder: Path,
    min_score: float,
    tracking: Tracking | None = None,
) -> dict[str, Any]:
    """COCO annotations of footage, whose frames are written as JPEG files.

    Args:
        sources: Photos and videos; one that is damaged is named and left out.
        every: Seconds between two frames of a video, None takes all.
        find: Draws the boxes.
        folder: For the frames; emptied first.
        min_score: Score that a box needs.
        tracking: How boxes of videos get a `tracklet_id`, None leaves that out. A tracker knows no identities.

    Raises:
        DatasetError: There are too few boxes to learn from.
    """
    shutil.rmtree(folder, ignore_errors=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    cameras = {name: number for number, name in enumerate(sorted({source.camera for source in sources}))}
    looked_at = every if tracking is None else tracking.every
    joined = None if tracking is None else _Tracklets(looked_at)
    with tqdm(total=_expected(sources, looked_at), unit="frame", desc="boxes") as progress:
        for source, frame, chosen in _frames(sources, every, looked_at):
            progress.update()
            boxes, scores = find(source, frame)
            kept, scores = _usable(boxes, scores, frame.image.shape[:2], min_score)
            tracklets = None if joined is None else joined.update(source, frame, kept, scores)
            if len(kept) and chosen:
                name = _write(folder, source, frame)
                height, width = frame.image.shape[:2]
                images.append({
                    "id": len(images), "file_name": name, "height": height, "width": width,
                    "camera_id": cameras[source.camera],
                })  # fmt: skip
                annotations += [
                    {
                        "id": len(annotations) + k, "image_id": images[-1]["id"], "category_id": 1, "iscrowd": 0,
                        "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                        **({} if tracklets is None else {"tracklet_id": int(tracklets[k])}),
                    }
                    for k, (x0, y0, x1, y1) in enumerate(kept.tolist())
                ]  # fmt: skip
            progress.set_postfix_str(f"{len(annotations)} persons", refresh=False)
    if len(annotations) < _FEWEST:
        raise DatasetError(
            f"only {len(annotations)} persons of score {min_score} or more were found in {len(sources)} sources; "
            f"training needs {_FEWEST}: give more footage, a lower --min-score, or other --boxes"
        )
    return {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]}


class _Tracklets:
    """Numbers of tracklets over all sources; every person of a photo has one of its own."""

    def __init__(self, every: Fraction | None) -> None:
        self._every = every
        self._source: Source | None = None
        self._tracker: TrackletNumbers | None = None
        self._first = self._next = 0

    def update(self, source: Source, frame: Frame, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Numbers (N,) of the boxes of the next frame."""
        if source is not self._source:
            self._source, self._first, self._tracker = source, self._next, None
            if source.kind == "video":
                spacing = 1 / (video_source(source)[1] or _UNKNOWN_RATE)
                self._tracker = TrackletNumbers(spacing if self._every is None else max(float(self._every), spacing))
        if self._tracker is None:
            numbers = np.arange(len(boxes))
        else:
            numbers = self._tracker.update(frame.offset, boxes.astype(np.float32), scores.astype(np.float32))
        numbers = numbers + self._first
        self._next = max(self._next, 1 + int(numbers.max(initial=-1)))
        return numbers


def _frames(
    sources: Sequence[Source], every: Fraction | None, looked_at: Fraction | None
) -> Iterator[tuple[Source, Frame, bool]]:
    """Frames that are looked at, and whether each is one that `every` takes."""
    for source in sources:
        slot: int | None = None
        try:
            frames: Iterable[Frame] = (
                [read_photo(source.address)] if source.kind == "photo" else video_frames(source.address, looked_at)
            )
            for frame in frames:
                previous, slot = slot, frame.number if every is None else int(frame.offset / float(every) + _ROUNDING)
                yield source, frame, slot != previous
        except DatasetError as error:
            logger.warning("left out: %s", error)


def _expected(sources: Sequence[Source], every: Fraction | None) -> int:
    count = 0
    for source in sources:
        fps = duration = 0.0
        if source.kind == "video":
            try:
                _, fps, duration = video_source(source)
            except DatasetError:  # named when it is read
                continue
        state = SourceState(source.name, source.camera, source.kind, "", None, 0, 0.0, False, "", fps, duration)
        count += IndexedSource(source, state, 1).expected(every)
    return count


def _usable(
    boxes: np.ndarray, scores: np.ndarray, size: tuple[int, int], min_score: float
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) inside the picture, of enough score and size, and their scores (N,)."""
    clipped = np.asarray(boxes, np.float64).reshape(-1, 4).clip(min=0, max=[size[1], size[0]] * 2)
    sides = clipped[:, 2:] - clipped[:, :2]
    kept = (np.asarray(scores) >= min_score) & (sides[:, 0] > 1) & (sides[:, 1] >= _SMALLEST)
    return clipped[kept], np.asarray(scores)[kept]


def _write(folder: Path, source: Source, frame: Frame) -> str:
    import cv2

    key = hashlib.sha1(source.name.encode()).hexdigest()[:8]
    name = f"{Path(source.name).stem}-{key}/{frame.number:08d}.jpg"
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    _, data = cv2.imencode(".jpg", frame.image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    path.write_bytes(data.tobytes())
    return name


# ---------------------------------------------------------------------- training


def training_config(args: argparse.Namespace, boxes: Path, out: Path) -> CfgNode:
    """Configuration of the training: of a file, of the checkpoint that it starts from, or the one for footage.

    Raises:
        ConfigError: A key does not exist or a value does not fit.
        CheckpointError: The checkpoint cannot be read.
    """
    import torch
    from detectron2.config import get_cfg

    from .. import add_ssl_config
    from ..config import merge_file_and_options
    from .checkpoint_config import merge_checkpoint_config

    cfg = get_cfg()
    add_ssl_config(cfg)
    if args.config_file:
        merge_file_and_options(cfg, args.config_file, [])
    elif args.weights:
        merge_checkpoint_config(cfg, args.weights)
    else:
        merge_file_and_options(cfg, "footage", [])
        shorter = frame_size(json.loads(boxes.read_text(encoding="utf-8")))
        logger.info("frames are resized to %d pixels on the shorter side, by the heights of the boxes", shorter)
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (shorter,), shorter
        cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST = round(shorter * 16 / 9)
    cfg.DATASETS.CUSTOM = [
        {"NAME": DATASET, "FORMAT": "coco", "JSON": str(boxes), "IMAGES": str(out / "frames")}
    ]  # fmt: skip
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (DATASET,), ()
    cfg.INPUT.PERSON_MASKS = []
    cfg.OUTPUT_DIR = str(out / "training")
    cfg.TEST.EVAL_EPOCHS, cfg.TEST.EVAL_PERIOD, cfg.TEST.EVAL_BEFORE_TRAINING = 0, 0, False
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    if args.epochs:
        cfg.SOLVER.MAX_EPOCH, cfg.SOLVER.MAX_ITER = args.epochs, 0
    if args.tracklets != OFF:
        cfg.SSL.CLUSTERING.TRACKLETS = True
    cfg.MODEL.DEVICE = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    merge_file_and_options(cfg, "", [word for pair in args.set for word in pair])
    cfg.freeze()
    return cfg


def frame_size(boxes: Mapping[str, Any]) -> int:
    """Shorter side in pixels that frames are resized to, so that the persons have a size that is good to look at.

    Args:
        boxes: Content of `collect_boxes`.
    """
    shorter = {image["id"]: min(image["height"], image["width"]) for image in boxes["images"]}
    share = float(np.median([entry["bbox"][3] / shorter[entry["image_id"]] for entry in boxes["annotations"]]))
    return int(np.clip(round(_PERSON_HEIGHT / share / _STEP) * _STEP, _SHORTEST, _LONGEST))


def _train(cfg: CfgNode) -> None:
    """Trains, or goes on where an earlier run was; prints how long it will take once that is known."""
    from detectron2.utils.env import seed_all_rng

    from ..engine.logging import quiet_expected_errors, setup_logging
    from ..engine.trainer import PersonSearchTrainer

    if (Path(cfg.OUTPUT_DIR) / "model_final.pth").is_file():
        logger.info("%s: the training of an earlier run is taken over", cfg.OUTPUT_DIR)
        return
    logging.getLogger("person_search").handlers.clear()  # the training's own take over, or each line would come twice
    setup_logging(cfg.OUTPUT_DIR)
    quiet_expected_errors()
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.register_hooks([_time_needed()])
    trainer.train()


def _time_needed() -> Any:
    """A hook that says after some iterations how long the training will take."""
    from detectron2.engine import HookBase

    class TimeNeeded(HookBase):
        """Prints the length of the training once, measured on its first iterations. Runs after each of them."""

        _FIRST, _LAST = 2, 12  # the very first ones are slower

        def after_step(self) -> None:
            done = self.trainer.iter - self.trainer.start_iter
            if done == self._FIRST:
                self._start = time.monotonic()
            if done == self._LAST:
                each = (time.monotonic() - self._start) / (self._LAST - self._FIRST)
                left = timedelta(seconds=round(each * (self.trainer.max_iter - self.trainer.iter)))
                logger.info(
                    "training: %d iterations of %.2f s, about %s, until %s; killed, the same command goes on",
                    self.trainer.max_iter, each, left, f"{datetime.now() + left:%H:%M}",
                )  # fmt: skip

    return TimeNeeded()


# ---------------------------------------------------------------------- index


def _index(args: argparse.Namespace, sources: Sequence[Source], weights: Path, out: Path) -> int:
    from .index import IndexOptions, index
    from .searcher import PersonSearcher
    from .store import open_store

    searcher = PersonSearcher(None, weights, device=args.device)
    store = open_store(str(out / "store"), info=searcher.info, create=True)
    report = index(searcher, store, sources, IndexOptions(every=args.every))
    for error in report.left_out.values():
        print(f"left out: {error}")
    print(
        f"{store.count()} detections are indexed. Search them with\n"
        f"  person-search search --weights {weights} --store {out / 'store'} PICTURE\n"
        f"  person-search serve --weights {weights} --store {out / 'store'}"
    )
    store.close()
    return 0
