#!/usr/bin/env python3
"""Times detection and embedding of whole frames, stage by stage; prints one JSON line.

    python benchmarks/inference.py --config-file F [--weights model.pth] [--images N] [--frames FOLDER] [KEY VALUE ...]
    python benchmarks/inference.py --config-file F --against-seqnet [...] MODEL.RPN.POST_NMS_TOPK_TEST 50

Frames are those of DATASETS.TEST, or the image files of a folder, one at a time. `--against-seqnet` runs each frame
twice, with the settings asked for and with SeqNet's (300 proposals to the box head, single precision) at equal
weights. Without weights the network is random, and the score that a box needs is set so that `--persons` boxes of the
first frame reach it, in both ways; stages then take the time that they take with trained weights that find as many.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from person_search import add_ssl_config
from person_search.config import merge_file_and_options
from person_search.data import register_custom
from person_search.data.images import image_size
from person_search.data.mapper import PersonSearchMapper
from person_search.data.registration import registered_records
from person_search.engine import PersonSearchCheckpointer
from person_search.errors import DatasetError, PersonSearchError
from person_search.modeling import SSLPersonSearch
from person_search.modeling.layers import fold_batch_norms

STAGES = (
    "load and resize", "backbone", "proposals", "box head", "box suppression", "re-id head", "embedding", "rest"
)  # fmt: skip
SEQNET = (
    *("MODEL.RPN.PRE_NMS_TOPK_TEST", 6000, "MODEL.RPN.POST_NMS_TOPK_TEST", 300, "MODEL.RPN.NMS_THRESH", 0.7),
    *("MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST", 0.0, "TEST.FOLD_BATCH_NORM", False),
    *("TEST.HALF_PRECISION", False, "TEST.CHANNELS_LAST", False),
)
IMAGE_FILES = (".jpg", ".jpeg", ".png")


class Stopwatch:
    """Seconds of each stage; what runs inside another stage counts for the inner one alone."""

    def __init__(self, device: torch.device, clock: Callable[[], float]) -> None:
        self.seconds: Counter[str] = Counter()
        self._device, self._clock = device, clock
        self._open: list[str] = []
        self._mark = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Counts what runs within."""
        self._lap()
        self._open.append(name)
        yield
        self._lap()
        self._open.pop()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Counts every call of a method of an object."""
        original = getattr(owner, method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return original(*args, **kwargs)

        setattr(owner, method, watched)

    def _lap(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._mark
        self._mark = now


class TimedModel:
    """A network whose stages are timed and whose boxes are counted, image by image."""

    def __init__(self, cfg: CfgNode, weights: str, clock: Callable[[], float]) -> None:
        """
        Args:
            cfg: its configuration.
            weights: a checkpoint; "": random ones, always the same.
            clock: gives seconds.
        """
        torch.manual_seed(0)
        self.cfg, self.images, self.boxes = cfg, 0, Counter()
        self.model: SSLPersonSearch = build_model(cfg).eval()
        if weights:
            PersonSearchCheckpointer(self.model).load_for_inference(weights)
        if cfg.TEST.FOLD_BATCH_NORM:
            fold_batch_norms(self.model)
        self._mapper = PersonSearchMapper(cfg, False)
        self.watch = Stopwatch(self.model.device, clock)
        heads = self.model.roi_heads
        self._count(heads, "candidates", lambda args, _: ("proposals", sum(map(len, args[1]))))
        self._count(heads, "candidates", lambda _, found: ("candidates", sum(map(len, found))))
        for owner, method, stage in (
            (self.model, "preprocess_image", "load and resize"), (self.model.backbone, "forward", "backbone"),
            (self.model.proposal_generator, "forward", "proposals"), (heads, "candidates", "box head"),
            (heads.box_head, "detect", "box suppression"), (heads, "pool_boxes", "re-id head"),
            (heads.reid_head.regressor, "forward", "re-id head"), (heads.reid_head.embedding, "forward", "embedding"),
        ):  # fmt: skip
            if owner is not None:  # some models have no box head
                self.watch.watch(owner, method, stage)

    @torch.no_grad()
    def run(self, record: dict[str, Any]) -> None:
        """Detects in a frame."""
        with self.watch.stage("load and resize"):
            inputs = [self._mapper(record)]
        with self.watch.stage("rest"):
            self.model(inputs)
        self.images += 1

    def warm_up(self, records: Sequence[dict[str, Any]]) -> None:
        """Runs frames that do not count."""
        for record in records:
            self.run(record)
        self.forget()

    def forget(self) -> None:
        """Starts counting anew."""
        self.images = 0
        self.boxes.clear()
        self.watch.seconds.clear()

    def fit_score_threshold(self, record: dict[str, Any], persons: int) -> None:
        """Sets the box head's score threshold so that `persons` boxes of a frame reach it, before suppression."""
        heads, scores = self.model.roi_heads, []
        original = heads.box_head.predictor.predict_probs
        heads.box_head.predictor.predict_probs = lambda *args: scores.extend(original(*args)) or scores
        self.run(record)
        del heads.box_head.predictor.predict_probs
        values = scores[0][:, 0].sort(descending=True).values
        heads.box_head.score_thresh = float(values[min(persons, len(values)) - 1])
        self.forget()

    def result(self) -> dict[str, Any]:
        """What is printed; all numbers are means over the images."""
        rpn, images = self.cfg.MODEL.RPN, max(self.images, 1)
        return {
            "images_per_second": round(images / sum(self.watch.seconds.values()), 4),
            "milliseconds": {stage: round(1000 * self.watch.seconds[stage] / images, 2) for stage in STAGES},
            "proposals": self.boxes["proposals"] / images,
            "boxes_in_reid_head": self.boxes["candidates"] / images,
            "settings": {
                "pre_nms_topk": rpn.PRE_NMS_TOPK_TEST,
                "post_nms_topk": rpn.POST_NMS_TOPK_TEST,
                "rpn_nms": rpn.NMS_THRESH,
                "objectness": self.cfg.MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST,
                "half_precision": self.cfg.TEST.HALF_PRECISION,
                "channels_last": self.cfg.TEST.CHANNELS_LAST,
                "folded": self.cfg.TEST.FOLD_BATCH_NORM,
            },
        }

    def _count(self, owner: Any, method: str, counted: Callable[[tuple, Any], tuple[str, int]]) -> None:
        original = getattr(owner, method)

        def counting(*args: Any) -> Any:
            returned = original(*args)
            name, number = counted(args, returned)
            self.boxes[name] += number
            return returned

        setattr(owner, method, counting)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the frames and returns what is printed.

    Raises:
        PersonSearchError: config, weights or frames cannot be read.
    """
    clock = time.process_time if args.cpu_time else time.perf_counter
    cfg = configuration(args)
    models = {"ours": TimedModel(cfg, args.weights, clock)}
    if args.against_seqnet:
        models["seqnet"] = TimedModel(configuration(args, SEQNET), args.weights, clock)
    records = frames(cfg, args.frames)
    for model in models.values():
        if args.weights or model.model.roi_heads.box_head is None:
            model.warm_up(records[:1])  # the first image pays for what is set up once
        else:
            model.fit_score_threshold(records[0], args.persons)
        if model.model.device.type == "cuda":
            model.warm_up(records[: args.images])  # each other number of boxes pays for its kernels
    for record in itertools.islice(itertools.cycle(records), args.images):
        for model in models.values():
            model.run(record)
    line = {
        "config": args.config_file,
        "weights": args.weights or "random",
        "device": _device_name(models["ours"].model.device),
        "threads": torch.get_num_threads(),
        "clock": "processor" if args.cpu_time else "wall",
        "size": [cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST],
        "images": args.images,
    }
    results = {name: model.result() for name, model in models.items()}
    if len(results) == 1:
        return line | results["ours"]
    speedup = results["ours"]["images_per_second"] / results["seqnet"]["images_per_second"]
    return line | results | {"speedup": round(speedup, 3)}


def configuration(args: argparse.Namespace, more: Sequence[object] = ()) -> CfgNode:
    """The config file with the options of the command line and then `more`, on a GPU where there is one."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, args.config_file, args.opts)
    cfg.merge_from_list(list(more))
    cfg.SSL.EXEMPLAR.ENABLED = False
    if args.size:
        cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = args.size
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    return cfg


def frames(cfg: CfgNode, folder: Path | None) -> list[dict[str, Any]]:
    """Records of the images of a folder, or of the first of DATASETS.TEST.

    Raises:
        DatasetError: the folder has no image, or the data set cannot be read.
    """
    if folder is None:
        register_custom(cfg.DATASETS.CUSTOM)
        return registered_records(cfg.DATASETS.TEST[0])
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_FILES)
    if not files:
        raise DatasetError(f"{folder} has no image file ({', '.join(IMAGE_FILES)}): check --frames")
    sizes = (image_size(file) for file in files)
    return [
        {"image_id": file.name, "file_name": str(file), "height": height, "width": width}
        for file, (height, width) in zip(files, sizes, strict=True)
    ]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", default="", help="a checkpoint; without: random weights")
    parser.add_argument("--images", type=int, default=3, help="how many are timed, after some that are not")
    parser.add_argument("--frames", type=Path, help="a folder of images; without: DATASETS.TEST")
    parser.add_argument("--size", type=int, nargs=2, metavar=("MIN", "MAX"), help="of the resized frame's sides")
    parser.add_argument("--persons", type=int, default=10, help="found with random weights in the first frame")
    parser.add_argument("--against-seqnet", action="store_true", help="also SeqNet's settings, frame by frame")
    parser.add_argument("--threads", type=int, help="of PyTorch on the CPU")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, where other programs run as well")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        print(json.dumps(measure(args)))
    except PersonSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
