"""Values that config keys take, ranges and choices in one table, and the error about those that they do not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Range:
    """An interval of numbers.

    Attributes:
        low, high: its bounds, which belong to it.
        above: where given, the numbers have to be larger than this.
        note: what the numbers mean, for messages.
    """

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    note: str = ""

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and value > self.above

    def __str__(self) -> str:
        return self._words() + (f": {self.note}" if self.note else "")

    def _words(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high):
            return f"a number from {self.low:g} to {self.high:g}"
        if math.isfinite(self.above):
            return f"a number above {self.above:g}" + (f" and up to {self.high:g}" if math.isfinite(self.high) else "")
        return f"{self.low:g} or more" if math.isfinite(self.low) else "a finite number"


class OneOf:
    """The values that a key chooses from."""

    def __init__(self, *known: str | int) -> None:
        self.known = known

    def __contains__(self, value: object) -> bool:
        return value in self.known

    def __str__(self) -> str:
        *first, last = map(repr, self.known)
        return f"{', '.join(first)} or {last}"


_NOT_NEGATIVE, _POSITIVE, _FINITE, _COUNT = Range(low=0), Range(above=0), Range(), Range(low=1)
_SHARE, _SOME_SHARE = Range(0, 1), Range(above=0, high=1)
_LONGEST_SIDE = Range(
    low=1, note="the largest length of the longer side in pixels; a large number such as 100000 sets no bound"
)

INFERENCE_VALUES: Mapping[str, Range | OneOf] = {
    "DATALOADER.NUM_WORKERS": Range(low=0, note="processes that read images; with 0 the main process does"),
    "DATALOADER.TIMEOUT": Range(low=0, note="seconds; 0 waits for ever"),
    "INPUT.FORMAT": OneOf("RGB", "BGR"),
    "INPUT.RESIZE": OneOf("pillow", "torchvision"),
    "INPUT.MAX_SIZE_TEST": _LONGEST_SIDE,
    "INPUT.MIN_SIZE_TEST": Range(low=0, note="pixels of the shorter side; 0 leaves frames as they are"),
    "TEST.PERSON_SEARCH.QUERY_FEATURE": OneOf("ground_truth", "detection"),
    "TEST.PERSON_SEARCH.GALLERY": OneOf("detections", "ground_truth"),
    "TEST.PERSON_SEARCH.SCORE_THRESHOLD": _SHARE,
    "TEST.PERSON_SEARCH.MIN_FRAME_GAP": Range(low=0, note="frames; 0 leaves none out"),
}
"""Values of the keys that evaluation reads as training does."""

TRAINING_VALUES: Mapping[str, Range | OneOf] = {
    "INPUT.MAX_SIZE_TRAIN": _LONGEST_SIDE,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": OneOf("choice", "range"),
    "INPUT.RANDOM_FLIP": OneOf("none", "horizontal", "vertical"),
    "SOLVER.IMS_PER_BATCH": _COUNT,
    "SOLVER.OPTIMIZER": OneOf("SGD", "AdamW"),
    "SOLVER.LR_SCHEDULER_NAME": OneOf("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR"),
    "SOLVER.BASE_LR": _NOT_NEGATIVE,
    "SOLVER.BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "SOLVER.MOMENTUM": _SHARE,
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_NORM": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": _NOT_NEGATIVE,
    "SOLVER.GAMMA": _NOT_NEGATIVE,
    "SOLVER.WARMUP_METHOD": OneOf("linear", "constant"),
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINTS_KEPT": _COUNT,
    "SOLVER.CHECKPOINT_PERIOD": _COUNT,
    "SOLVER.LOG_PERIOD": _COUNT,
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "MODEL.BOX_HEAD.BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.REID_HEAD.BOX_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.REID_HEAD.CLS_LOSS_WEIGHT": _NOT_NEGATIVE,
    "SSL.MEMORY.LAMBDA": _SHARE,
    "SSL.MEMORY.LABEL_SOURCE": OneOf("mean", "instance"),
    "SSL.THRESHOLD.INITIAL": Range(-1, 1),  # a cosine similarity
    "SSL.THRESHOLD.ALPHA": _FINITE,
    "SSL.THRESHOLD.BETA": _FINITE,
    "SSL.THRESHOLD.CALIBRATION": OneOf("none", "same_image"),
    "SSL.SCALE_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.SCALE_LOSS.MARGIN": _NOT_NEGATIVE,
    "SSL.SCALE_LOSS.GAMMA": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.DELTA": _NOT_NEGATIVE,
    "SSL.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO": _SOME_SHARE,
    "SSL.MULTI_LABEL_LOSS.REDUCTION": OneOf("sum", "mean"),
    "SSL.EXEMPLAR.BACKGROUND": OneOf("black", "mean"),
    "SSL.EXEMPLAR.RANDOM_ERASING": _SHARE,
    "SSL.TEACHER.MOMENTUM": _SHARE,
    "SSL.IN_SCENE_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.IN_SCENE_LOSS.MARGIN": Range(-1, 1),
    "SSL.CLUSTERING.PERIOD": Range(low=1, note="epochs from one clustering to the next"),
    "SSL.CLUSTERING.FEATURES": OneOf("bank", "extract"),
    "SSL.CLUSTER_LOSS.WEIGHT": _NOT_NEGATIVE,
    "SSL.CLUSTER_LOSS.TEMPERATURE": _POSITIVE,
    "SSL.CLUSTER_LOSS.HARD_NEGATIVE_MASS": _SOME_SHARE,
    "SSL.CLUSTER_LOSS.EPSILON": _SHARE,
    "OIM.WEIGHT": _NOT_NEGATIVE,
    "OIM.MOMENTUM": _SHARE,
    "CGPS.CONTEXT_WEIGHT": _NOT_NEGATIVE,
    "CGPS.MARGIN": _NOT_NEGATIVE,
    "CGPS.BACKGROUND_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.REGION_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.SIMILARITY_WEIGHT": _NOT_NEGATIVE,
    "RSIAMNET.SIMILARITY_TEMPERATURE": _POSITIVE,
}
"""Values of the keys that every training reads."""

VALUES: Mapping[str, Range | OneOf] = {
    **INFERENCE_VALUES,
    **TRAINING_VALUES,
    "INPUT.CROP.TYPE": OneOf("relative", "relative_range", "absolute", "absolute_range"),
    "MODEL.BACKBONE.FREEZE_AT": Range(
        0, 4, note="0 freezes nothing, 1 the stem, 2 all up to stride 4, 3 up to stride 8, 4 the whole trunk"
    ),
    "MODEL.REID_HEAD.EMBEDDING": OneOf("norm_aware", "linear", "fused_linear", "bn_neck"),
    "MODEL.REID_HEAD.GLOBAL_POOLING": OneOf("max", "average"),
    "MODEL.REID_HEAD.STRIPES": _COUNT,
    "MODEL.TIMM.STRIDE": OneOf(16, 8),
    "OIM.QUEUE_SIZE": Range(low=0, note="rows; with 0 there is no queue"),
    "OIM.TEMPERATURE": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": OneOf("full_model", "norm", "value"),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": _POSITIVE,
    "SOLVER.NUM_DECAYS": _COUNT,
    "TEST.PERSON_SEARCH.CBGM.K1": _COUNT,
    "TEST.PERSON_SEARCH.CBGM.K2": _COUNT,
    "TEST.PERSON_SEARCH.CBGM.QUERY_NMS": _SHARE,
    "TEST.PERSON_SEARCH.RERANKING.K1": _COUNT,
    "TEST.PERSON_SEARCH.RERANKING.K2": _COUNT,
    "TEST.PERSON_SEARCH.RERANKING.LAMBDA": _SHARE,
}
"""Values of all keys, those included that only some choice of another key brings into use."""


def check_value(key: str, value: Any) -> None:
    """Refuses a value that its key does not take.

    Args:
        key: a key of `VALUES`.
        value: from a configuration, or an argument that stands for the key.

    Raises:
        ConfigError: naming the key, the value and what the key takes.
    """
    if value not in VALUES[key]:
        raise ConfigError(f"{key} is {value!r}, expected {VALUES[key]}")


def check_values(cfg: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Refuses a configuration with a value that its key does not take; None, where a key has it, is not looked at.

    Args:
        cfg: a configuration with the project's keys.
        keys: dotted keys of `VALUES`.

    Raises:
        ConfigError: see `check_value`; about the first such key.
    """
    for key in keys:
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if value is not None:
            check_value(key, value)
