"""Valid values of config keys: ranges and choices in one table, and their checks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ConfigError


@dataclass(frozen=True)
class Range:
    """Interval of finite numbers.

    Attributes:
        low, high: inclusive bounds.
        above: exclusive lower bound.
        note: meaning of the numbers, for messages.
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
    """Choice of values."""

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
    low=1, note="maximum length of the longer side in pixels; for no limit use a large number such as 100000"
)

INFERENCE_VALUES: Mapping[str, Range | OneOf] = {
    "DATALOADER.NUM_WORKERS": Range(low=0, note="worker processes; with 0 images are read by the main process"),
    "DATALOADER.TIMEOUT": Range(low=0, note="seconds; 0 to wait forever"),
    "INPUT.FORMAT": OneOf("RGB", "BGR"),
    "INPUT.RESIZE": OneOf("pillow", "torchvision"),
    "INPUT.MAX_SIZE_TEST": _LONGEST_SIDE,
    "INPUT.MIN_SIZE_TEST": Range(low=0, note="pixels of the shorter side; 0 to keep the size of the frames"),
    "TEST.PERSON_SEARCH.QUERY_FEATURE": OneOf("ground_truth", "detection"),
    "TEST.PERSON_SEARCH.GALLERY": OneOf("detections", "ground_truth"),
    "TEST.PERSON_SEARCH.SCORE_THRESHOLD": _SHARE,
    "TEST.PERSON_SEARCH.MIN_FRAME_GAP": Range(low=0, note="frames; 0 to keep all"),
}
"""Valid values of the keys used by evaluation and training."""

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
    "SSL.CLUSTERING.PERIOD": Range(low=1, note="epochs between clusterings"),
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
"""Valid values of the keys used by every training."""

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
    "OIM.QUEUE_SIZE": Range(low=0, note="rows; 0 for no queue"),
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
"""Valid values of all keys, including those that are only used with certain values of others."""


def check_value(key: str, value: Any) -> None:
    """Checks the value of a key.

    Args:
        key: key of `VALUES`.
        value: value in a config, or argument that stands for it.

    Raises:
        ConfigError: the value is invalid; the message names key, value and valid values.
    """
    if value not in VALUES[key]:
        raise ConfigError(f"{key} is {value!r}, expected {VALUES[key]}")


def check_values(cfg: Mapping[str, Any], keys: Iterable[str]) -> None:
    """Checks the values of keys in a config; values of None are skipped.

    Args:
        cfg: config with the project's keys.
        keys: dotted keys of `VALUES`.

    Raises:
        ConfigError: a value is invalid; see `check_value`.
    """
    for key in keys:
        value: Any = cfg
        for part in key.split("."):
            value = value[part]
        if value is not None:
            check_value(key, value)
