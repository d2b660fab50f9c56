#!/usr/bin/env python3
"""Finds how few proposals the box head needs: figures of a trained network with ever fewer of them, in one pass.

    python benchmarks/proposals.py --config-file F --weights model.pth [--topk 300,100,50] [--objectness 0.02,0.1]

Backbone and RPN run once a frame of DATASETS.TEST and the box head once on all proposals: what it says of one does
not depend on the others. Each pruning then picks its own, and suppression, re-id head and evaluation follow as
always. One JSON line for each pruning goes to stdout: figures in percent, proposals and boxes a frame.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import GeneralizedRCNN, build_model
from detectron2.structures import Boxes, Instances
from person_search import add_ssl_config
from person_search.config import merge_file_and_options
from person_search.data import register_custom
from person_search.engine import PersonSearchCheckpointer, PersonSearchTrainer
from person_search.errors import ConfigError, PersonSearchError
from person_search.evaluation import PersonSearchEvaluator
from person_search.modeling import SSLPersonSearch
from person_search.modeling.heads import PersonSearchROIHeads
from tqdm import tqdm


@dataclass(frozen=True)
class Pruning:
    """Which proposals reach the box head: those of the RPN's suppression `nms` that are among the first `topk` by
    objectness and have at least `objectness`."""

    nms: float
    topk: int
    objectness: float

    def kept(self, proposals: Instances) -> torch.Tensor:
        """(n,) int64, places of those that stay among proposals in falling order of objectness."""
        strong = proposals.objectness_logits.sigmoid() >= self.objectness
        return torch.nonzero(strong[: self.topk])[:, 0]


class Sweep:
    """A network with its proposals pruned in several ways at once."""

    def __init__(self, cfg: CfgNode, model: SSLPersonSearch, prunings: list[Pruning]) -> None:
        """
        Args:
            cfg: POST_NMS_TOPK_TEST is at least every `topk`.
            model: with its weights, in evaluation mode.
            prunings: all ways.
        """
        (self.dataset,) = cfg.DATASETS.TEST
        self.model, self.frames = model, 0
        self.boxes: dict[Pruning, Counter[str]] = {pruning: Counter() for pruning in prunings}
        self.evaluators = {pruning: PersonSearchEvaluator(cfg, self.dataset) for pruning in prunings}

    @torch.no_grad()
    def run(self, inputs: list[dict[str, Any]]) -> None:
        """Detects in one frame, in every way."""
        model = self.model
        images = model.preprocess_image(inputs)
        features = model.backbone(images.tensor)
        given = [Boxes(x["given_boxes"].to(model.device)) for x in inputs]
        for nms in sorted({pruning.nms for pruning in self.boxes}):
            model.proposal_generator.nms_thresh = nms
            proposals, _ = model.proposal_generator(images, features, None)
            for pruning, results, embeddings in self._detect(images, features, proposals[0], given, nms):
                outputs = GeneralizedRCNN._postprocess(results, inputs, images.image_sizes)
                outputs[0]["given_embeddings"] = embeddings[0]
                self.evaluators[pruning].process(inputs, outputs)
        self.frames += 1

    def rows(self) -> Iterator[dict[str, Any]]:
        """What is printed of each pruning."""
        for pruning, evaluator in self.evaluators.items():
            figures = evaluator.evaluate()
            counts = {name: round(number / self.frames, 2) for name, number in self.boxes[pruning].items()}
            rounded = {
                f"{part}/{name}": round(figures[part][name], 2)
                for part, name in (("detection", "AP"), ("detection", "recall"), ("search", "mAP"), ("search", "top1"))
            }
            yield asdict(pruning) | counts | rounded

    def _detect(
        self, images: Any, features: dict[str, torch.Tensor], proposals: Instances, given: list[Boxes], nms: float
    ) -> Iterator[tuple[Pruning, list[Instances], list[torch.Tensor]]]:
        heads = self.model.roi_heads
        scores, deltas = heads.box_head(heads.pool(features[heads.in_feature], [proposals.proposal_boxes]))
        for pruning, boxes in self.boxes.items():
            if pruning.nms != nms:
                continue
            kept = pruning.kept(proposals)
            heads.box_head.forward = lambda _, kept=kept: (scores[kept], deltas[kept])
            results, embeddings = heads.forward_test(images, features, [proposals[kept]], given)
            del heads.box_head.forward
            boxes["proposals"] += len(kept)
            boxes["detections"] += len(results[0])
            yield pruning, results, embeddings


def sweep(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Runs all frames and gives the lines to print.

    Raises:
        PersonSearchError: config, weights or data set cannot be used.
    """
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, args.config_file, args.opts)
    most = max(args.topk)
    cfg.merge_from_list(["MODEL.RPN.PRE_NMS_TOPK_TEST", 6000, "MODEL.RPN.POST_NMS_TOPK_TEST", most])
    cfg.MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST = 0.0
    cfg.SSL.EXEMPLAR.ENABLED = False
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    register_custom(cfg.DATASETS.CUSTOM)
    model = build_model(cfg).eval()
    if not isinstance(model.roi_heads, PersonSearchROIHeads):
        raise ConfigError(
            f"MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME}; only PersonSearchROIHeads has a box head"
        )
    PersonSearchCheckpointer(model).load_for_inference(args.weights)
    first = args.nms[0]
    prunings = [Pruning(nms, topk, 0.0) for nms in args.nms for topk in args.topk]
    prunings += [Pruning(first, most, objectness) for objectness in args.objectness]
    runner = Sweep(cfg, model, list(dict.fromkeys(prunings)))
    loader = PersonSearchTrainer.build_test_loader(cfg, runner.dataset)
    for inputs in tqdm(loader, unit="frame"):
        runner.run(inputs)
    return runner.rows()


def _numbers(kind: type) -> Callable[[str], list]:
    """Reads numbers between commas."""
    return lambda text: [kind(part) for part in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--weights", required=True, help="a trained checkpoint")
    parser.add_argument("--topk", type=_numbers(int), default="300,200,100,50,30,20,10")
    parser.add_argument("--objectness", type=_numbers(float), default="0.01,0.02,0.05,0.1,0.2,0.5")
    parser.add_argument("--nms", type=_numbers(float), default="0.7", help="of the RPN; objectness goes with the first")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="config keys")
    return parser


def main(arguments: list[str] | None = None) -> None:
    args = _parser().parse_args(arguments)
    try:
        for row in sweep(args):
            print(json.dumps(row))
    except PersonSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
