"""Ranges of the numbers of a config: what lies outside would train without a word, to nothing, or end in a
traceback."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from detectron2.config import CfgNode

from ..errors import ConfigError


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low, high: its bounds, which belong to it.
        above: where given, the numbers have to be larger than this.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"a number from {self.low:g} to {self.high:g}"
        if math.isfinite(self.above):
            return f"a number above {self.above:g}" + (f" and up to {self.high:g}" if math.isfinite(self.high) else "")
        return f"{self.low:g} or more" if math.isfinite(self.low) else "a finite number"


_NOT_NEGATIVE, _POSITIVE, _FINITE = Range(low=0), Range(above=0), Range()
_SHARE, _SOME_SHARE = Range(0, 1), Range(above=0, high=1)

SOLVER_RANGES = {
    "BASE_LR": _NOT_NEGATIVE,
    "BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "MOMENTUM": _SHARE,
    "WEIGHT_DECAY": _NOT_NEGATIVE,
    "WEIGHT_DECAY_NORM": _NOT_NEGATIVE,
    "WEIGHT_DECAY_BIAS": _NOT_NEGATIVE,
    "GAMMA": _NOT_NEGATIVE,
    "WARMUP_FACTOR": _SHARE,
    "WARMUP_ITERS": _NOT_NEGATIVE,
    "CHECKPOINTS_KEPT": Range(low=1),
    "CHECKPOINT_PERIOD": Range(low=1),
    "LOG_PERIOD": Range(low=1),
    "CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
}
LOSS_RANGES = {
    "MODEL.FIRST_HEAD.BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.SECOND_HEAD.BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.SECOND_HEAD.CLS_LOSS_WEIGHT": _NOT_NEGATIVE,
    "SSL.MEMORY.MOMENTUM": _SHARE,
    "SSL.THRESHOLD.INITIAL": Range(-1, 1),  # a cosine similarity
    "SSL.THRESHOLD.ALPHA": _FINITE,
    "SSL.THRESHOLD.BETA": _FINITE,
    "SSL.SCALE_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.SCALE_LOSS.MARGIN": _NOT_NEGATIVE,
    "SSL.SCALE_LOSS.GAMMA": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.DELTA": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO": _SOME_SHARE,
    "SSL.CLUSTER_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.CLUSTER_LOSS.TEMPERATURE": _POSITIVE,
    "SSL.CLUSTER_LOSS.HARD_NEGATIVE_MASS": _SOME_SHARE,
    "OIM.WEIGHT": _NOT_NEGATIVE,
    "OIM.MOMENTUM": _SHARE,
    "CGPS.CONTEXT_WEIGHT": _NOT_NEGATIVE,
    "CGPS.MARGIN": _NOT_NEGATIVE,
    "CGPS.BACKGROUND_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.REGION_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.SIMILARITY_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.SIMILARITY_TEMPERATURE": _POSITIVE,
}
TRAINING_RANGES: Mapping[str, Range] = {**{f"SOLVER.{key}": r for key, r in SOLVER_RANGES.items()}, **LOSS_RANGES}


def check_ranges(cfg: CfgNode, ranges: Mapping[str, Range] = TRAINING_RANGES) -> None:
    """Refuses numbers outside their ranges; a key whose value is None is not looked at.

    Args:
        cfg: a configuration with the project's keys.
        ranges: dotted key -> the numbers that it takes.

    Raises:
        ConfigError: naming the first such key, its value and what it takes.
    """
    for key, accepted in ranges.items():
        value = cfg
        for part in key.split("."):
            value = value[part]
        if value is not None and value not in accepted:
            raise ConfigError(f"{key} is {value}, expected {accepted}")
