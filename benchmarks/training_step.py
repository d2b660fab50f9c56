"""What an iteration of training costs, row by row of the paper's Table 1; prints one JSON line.

    python benchmarks/training_step.py --config-file projects/SSL/configs/prw.yaml [KEY VALUE ...]
    python benchmarks/training_step.py --config-file projects/SSL/configs/cuhk_sysu.yaml --persons 5 --boxes 55272

The batch is drawn: frames as large as PRW's are after resizing (1080 x 1920 before), with persons of many sizes and
foreground masks. The rows share one network and take turns in each round, so that their ratios are fair on a machine
that is not quiet. A step is everything but reading images: forward, backward, clipping, optimizer and bank update.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.layers import FrozenBatchNorm2d
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from person_search import add_ssl_config
from person_search.config import merge_file_and_options
from person_search.engine import PersonSearchTrainer
from person_search.engine.checks import check_mixed_precision
from person_search.errors import PersonSearchError
from person_search.modeling import SSLPersonSearch
from process_memory import peak_mb, reset_peak

# Rows of Table 1, below them the detector alone, and which of the method's parts each has.
ROWS = {
    "detector": (),
    "cluster": ("cluster",),
    "cluster_dml": ("cluster", "multi_label"),
    "cluster_sl": ("cluster", "scale"),
    "all": ("cluster", "multi_label", "scale"),
}
FRAME = (1080, 1920)
# Heights of persons as shares of the frame's; widths are 0.4 of them.
HEIGHTS = (0.15, 0.6)
# Persons of a cluster in the drawn labels.
CLUSTER_SIZE = 4

Batch = list[dict[str, Any]]


def draw_batch(cfg: CfgNode, persons: int, boxes: int, seed: int = 0) -> Batch:
    """One batch as the mapper makes it.

    Args:
        cfg: sizes of images and batch.
        persons: in each image.
        boxes: N, the bank rows that the persons' are drawn from, those of an image side by side.
        seed: of the drawing.
    """
    random = np.random.default_rng(seed)
    height, width = ResizeShortestEdge.get_output_shape(*FRAME, cfg.INPUT.MIN_SIZE_TRAIN[0], cfg.INPUT.MAX_SIZE_TRAIN)
    chosen = random.choice(max(boxes // persons, 1), cfg.SOLVER.IMS_PER_BATCH)
    batch = []
    for image in chosen:
        coarse = torch.from_numpy(random.uniform(0, 255, (1, 3, 24, 40)).astype(np.float32))
        pixels = F.interpolate(coarse, size=(height, width), mode="bilinear")[0].to(torch.uint8)
        tall = height * random.uniform(*HEIGHTS, persons)
        left, top = random.uniform(0, width - 0.4 * tall), random.uniform(0, height - tall)
        corners = np.stack([left, top, left + 0.4 * tall, top + tall], axis=1).astype(np.float32)
        instances = Instances((height, width), gt_boxes=Boxes(torch.from_numpy(corners)))
        instances.gt_classes = torch.zeros(persons, dtype=torch.int64)
        instances.gt_instance_index = int(image) * persons + torch.arange(persons)
        instances.gt_masks = BitMasks(_ellipses(instances.gt_boxes.tensor, height, width))
        batch.append({"image": pixels, "height": height, "width": width, "instances": instances})
    return batch


def _ellipses(boxes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    centre, radius = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) / 2
    y, x = torch.arange(height)[None, :, None], torch.arange(width)[None, None]
    across, down = (x - centre[:, :1, None]) / radius[:, :1, None], (y - centre[:, 1:, None]) / radius[:, 1:, None]
    return across**2 + down**2 < 1


class Bench:
    """A model, its optimizer and a batch; its steps are those of a row."""

    def __init__(self, cfg: CfgNode, persons: int, boxes: int) -> None:
        torch.manual_seed(0)
        self.device = torch.device(cfg.MODEL.DEVICE)
        self.model = PersonSearchTrainer.build_model(cfg).train()
        assert isinstance(self.model, SSLPersonSearch)
        self.optimizer = PersonSearchTrainer.build_optimizer(cfg, self.model)
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # every step sees the same network
        self.batch = draw_batch(cfg, persons, boxes)
        # As Detectron2's AMPTrainer has them.
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=cfg.SOLVER.AMP.ENABLED)
        objective = self.objective = self.model.objective
        objective.allocate(torch.arange(boxes) // persons)
        objective.set_threshold(cfg.SSL.THRESHOLD.INITIAL + cfg.SSL.THRESHOLD.ALPHA)
        objective.cluster_labels.copy_(torch.arange(boxes) // CLUSTER_SIZE)
        for bank in (objective.instance_bank, objective.multi_scale_bank):
            bank.features.copy_(F.normalize(torch.randn_like(bank.features), dim=1))
        self._branch, self._bank = self.model.exemplar_branch, objective.multi_scale_bank
        with _calibrated(self.model), torch.no_grad(), EventStorage():
            self.model(self.batch)
        if self.device.type == "cuda":
            self.step("all")  # the first one also chooses kernels

    def step(self, row: str) -> None:
        """One iteration as `row` trains."""
        self.select(row)
        with EventStorage(), torch.autocast(self.device.type, torch.float16, enabled=self._scaler.is_enabled()):
            losses = self.model(self.batch)
        self.optimizer.zero_grad()
        self._backward(self._scaler.scale(sum(losses.values())))
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.objective.apply_pending()

    def select(self, row: str) -> None:
        """Switches the parts of the method on that `row` has, and the others off."""
        parts = ROWS[row]
        self.model.exemplar_branch = self._branch if "scale" in parts else None
        self.objective.multi_scale_bank = self._bank if "scale" in parts else None
        self.objective.cluster_weight = float("cluster" in parts)
        self.objective.multi_label_weight = float("multi_label" in parts)

    def _backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def timed_step(self, row: str) -> tuple[float, float, float]:
        """Seconds, CPU seconds and peak MiB of one iteration."""
        self.synchronize()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        reset_peak()
        start, start_cpu = time.perf_counter(), time.process_time()
        self.step(row)
        self.synchronize()
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
        peak = torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else peak_mb()
        return seconds, cpu_seconds, peak

    def parts(self) -> dict[str, float]:
        """Milliseconds of the parts of one iteration with everything, none of them counted in another."""
        model, objective = self.model, self.objective
        self.select("all")
        targets = {
            "backbone": (model.backbone, "forward"),
            "rpn": (model.proposal_generator, "forward"),
            "heads": (model.roi_heads, "forward_train"),
            "exemplars": (model.exemplar_branch, "forward"),
            "crops": (model.exemplar_branch, "crops"),
            "predict_labels": (objective, "predict_labels"),
            "scale_loss": (objective, "_scale_loss"),
            "cluster_loss": (objective, "_cluster_losses"),
            "multi_label_loss": (objective, "_multi_label_losses"),
            "backward": (self, "_backward"),
            "optimizer": (self.optimizer, "step"),
            "bank_update": (objective, "apply_pending"),
        }
        with stopwatch(targets, self.synchronize) as seconds:
            self.step("all")
        return {name: round(1000 * value, 2) for name, value in seconds.items()}


@contextlib.contextmanager
def _calibrated(model: SSLPersonSearch) -> Iterator[None]:
    """Within, frozen batch normalization takes its statistics from what it sees first, which are scenes, not crops.

    Without pre-trained weights its placeholders let activations grow from block to block, and proposals fall outside.
    """
    waiting = {m for m in model.modules() if isinstance(m, FrozenBatchNorm2d)}

    def calibrate(layer: FrozenBatchNorm2d, inputs: tuple[torch.Tensor]) -> None:
        if layer in waiting:
            waiting.remove(layer)
            layer.running_mean.copy_(inputs[0].detach().mean((0, 2, 3)))
            layer.running_var.copy_(inputs[0].detach().var((0, 2, 3)) + layer.eps)

    handles = [layer.register_forward_pre_hook(calibrate) for layer in waiting]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def stopwatch(targets: dict[str, tuple[object, str]], synchronize: Callable[[], None]) -> Iterator[dict[str, float]]:
    """Replaces methods of objects by ones that add up their seconds, each without what is spent in inner ones."""
    seconds: dict[str, float] = defaultdict(float)
    running: list[str] = []
    since = 0.0

    def switch() -> None:
        nonlocal since
        synchronize()
        now = time.perf_counter()
        if running:
            seconds["/".join(running)] += now - since
        since = now

    def wrap(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            switch()
            running.append(name)
            try:
                return method(*args, **kwargs)
            finally:
                switch()
                running.pop()

        return timed

    for name, (owner, method) in targets.items():
        setattr(owner, method, wrap(name, getattr(owner, method)))
    try:
        yield seconds
    finally:
        for owner, method in targets.values():
            delattr(owner, method)


def measure(bench: Bench, rows: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Medians over the rounds for each row: images per second, seconds, CPU seconds (of all threads; on a machine that
    is not quiet they are the fairer measure), their ratios to the row "cluster", and the peak memory."""
    taken: dict[str, list[tuple[float, float, float]]] = {row: [] for row in rows}
    for number in range(rounds):
        for row in rows:
            print(f"round {number + 1} of {rounds}: {row}", file=sys.stderr)
            taken[row].append(bench.timed_step(row))
    figures = {}
    for row, values in taken.items():
        seconds, cpu_seconds, peak = (statistics.median(column) for column in zip(*values, strict=True))
        figures[row] = {
            "images_per_second": round(len(bench.batch) / seconds, 4),
            "seconds": round(seconds, 4),
            "cpu_seconds": round(cpu_seconds, 4),
            "peak_mb": round(peak),
        }
        for place, name in enumerate(("ratio", "cpu_ratio")) if "cluster" in rows else ():
            ratios = [own[place] / base[place] for own, base in zip(values, taken["cluster"], strict=True)]
            figures[row][name] = round(statistics.median(ratios), 4)
    return figures


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measures what the arguments say and returns the JSON line."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    merge_file_and_options(cfg, args.config_file, ["MODEL.DEVICE", device, *args.opts])
    check_mixed_precision(cfg)
    bench = Bench(cfg, args.persons, args.boxes)
    line: dict[str, Any] = {
        "config": args.config_file,
        "size": list(bench.batch[0]["image"].shape[1:]),
        "batch": len(bench.batch),
        "persons": args.persons,
        "boxes": args.boxes,
        "device": torch.cuda.get_device_name(bench.device) if bench.device.type == "cuda" else cfg.MODEL.DEVICE,
        "mixed_precision": cfg.SOLVER.AMP.ENABLED,
        "threads": torch.get_num_threads(),
        "rows": measure(bench, args.rows, args.rounds),
    }
    if not args.no_parts:
        line["parts_ms"] = bench.parts()
        labels = sum(value for name, value in line["parts_ms"].items() if "multi_label" in name)
        line["multi_label_share"] = round(labels / sum(line["parts_ms"].values()), 5)
    return line


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", required=True, metavar="FILE")
    parser.add_argument("--rows", default=",".join(ROWS), help="which of them, separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="steps of each row; the median counts")
    parser.add_argument("--persons", type=int, default=3, help="in each image")
    parser.add_argument("--boxes", type=int, default=18048, help="N, annotated boxes of the training set")
    parser.add_argument("--no-parts", action="store_true", help="leave out the milliseconds of the parts")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config")
    args = parser.parse_args(arguments)
    args.rows = args.rows.split(",")
    if unknown := [row for row in args.rows if row not in ROWS]:
        parser.error(f"--rows: there is no {unknown[0]!r}, only {', '.join(ROWS)}")
    for name, least in (("rounds", 1), ("persons", 1), ("boxes", args.persons)):
        if getattr(args, name) < least:
            parser.error(f"--{name} {getattr(args, name)}: expected {least} or more")
    return args


def main() -> None:
    args = parse()
    try:
        print(json.dumps(run(args)))
    except PersonSearchError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
