"""Rows of the paper's tables and of the parameter sweep, and the results in the papers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode

from ..errors import ConfigError


class Published(NamedTuple):
    """mAP and top-1 of a row as published, in percent."""

    mAP: float
    top1: float


PRW_ARXIV = "PRW (arXiv text)"
PRW_ICCV = "PRW (ICCV text)"
PRW_OWN = "PRW"
CUHK_ARXIV = "CUHK-SYSU (arXiv text)"
CUHK_OWN = "CUHK-SYSU"

# With "ICCV text", the method differs as well: see ablations/iccv2023_prw.yaml. Its baseline is trained with
# multi-labels at the fixed threshold 0.7 instead of cluster labels, and its one scale is 154x58.
PUBLISHED: dict[str, dict[str, dict[str, Published]]] = {
    "1": {
        "baseline": {
            PRW_ARXIV: Published(18.8, 67.0), CUHK_ARXIV: Published(80.7, 82.5), PRW_ICCV: Published(13.0, 63.8),
        },
        "dml": {PRW_ARXIV: Published(20.8, 70.8), CUHK_ARXIV: Published(84.5, 86.3), PRW_ICCV: Published(16.8, 66.9)},
        "sl": {PRW_ARXIV: Published(26.2, 76.4), CUHK_ARXIV: Published(86.2, 87.4), PRW_ICCV: Published(27.4, 81.4)},
        "ssl": {PRW_ARXIV: Published(30.7, 80.6), CUHK_ARXIV: Published(87.4, 88.5), PRW_ICCV: Published(33.9, 82.7)},
    },
    "2": {
        "original_scale": {PRW_ICCV: Published(29.4, 79.7)},
        "one_scale": {PRW_ICCV: Published(30.1, 80.2)},
        "multi_scale": {PRW_ICCV: Published(32.5, 81.6)},
        "multi_scale_masked": {PRW_ICCV: Published(33.9, 82.7)},
    },
    "3": {
        "fixed_low": {PRW_ICCV: Published(27.8, 76.1)},
        "fixed_high": {PRW_ICCV: Published(27.4, 81.4)},
        "ssl": {PRW_ICCV: Published(33.9, 82.7)},
    },
    # From the papers of the methods; OIM as quoted by later papers.
    "4": {
        "oim": {PRW_OWN: Published(21.3, 49.9), CUHK_OWN: Published(75.5, 78.7)},
        "nae": {PRW_OWN: Published(43.3, 80.9), CUHK_OWN: Published(91.5, 92.4)},
        "seqnet": {PRW_OWN: Published(46.7, 83.4), CUHK_OWN: Published(93.8, 94.6)},
        "cgps": {PRW_OWN: Published(16.2, 68.0), CUHK_OWN: Published(80.0, 82.3)},
        "rsiamnet": {PRW_OWN: Published(21.2, 73.4), CUHK_OWN: Published(86.0, 87.1)},
        "ssl": {PRW_OWN: Published(30.7, 80.6), CUHK_OWN: Published(87.4, 88.5)},
    },
    "beyond": {},
}  # fmt: skip


Options = list[object]
"""KEY, value, KEY, value, ... as for `CfgNode.merge_from_list`."""


def _nothing(base: CfgNode) -> Options:
    return []


@dataclass(frozen=True)
class Row:
    """Row of a table: a training with some other keys than the dataset's config.

    Rows with the same name are one training: "ssl" of Table 1, of Table 3 and of the sweep is trained once.

    Attributes:
        name: name of its folder.
        title: title in tables and figures.
        config: config file below configs/ whose own keys the row sets; "" for none.
        adapt: returns further options for the base config, for values that depend on it (its scales, its t_s).
    """

    name: str
    title: str
    config: str = ""
    adapt: Callable[[CfgNode], Options] = _nothing


def middle_scale(base: CfgNode) -> Options:
    """Exemplars at the middle one of the dataset's fixed scales only."""
    scales = base.SSL.EXEMPLAR.SCALES
    if not len(scales):
        raise ConfigError(
            "SSL.EXEMPLAR.SCALES is empty: the row with one scale uses the middle one of the base config's"
        )
    return ["SSL.EXEMPLAR.SCALES", (tuple(scales[len(scales) // 2]),)]


def lowest_threshold(base: CfgNode) -> Options:
    """Multi-labels at t_s from the first epoch on (0.6 with the paper's values)."""
    return ["SSL.THRESHOLD.INITIAL", float(base.SSL.THRESHOLD.INITIAL), "SSL.THRESHOLD.ALPHA", 0.0]


def highest_threshold(base: CfgNode) -> Options:
    """Multi-labels at t_s + alpha up to the last epoch (0.7 with the paper's values)."""
    threshold = round(base.SSL.THRESHOLD.INITIAL + base.SSL.THRESHOLD.ALPHA, 6)
    return ["SSL.THRESHOLD.INITIAL", threshold, "SSL.THRESHOLD.ALPHA", 0.0]


def _constant(options: Options) -> Callable[[CfgNode], Options]:
    return lambda base: options


def _all_beyond(base: CfgNode) -> Options:
    """All keys of `BEYOND` together."""
    return [option for options in BEYOND.values() for option in options[1]]


SSL = Row("ssl", "SSL")
BEYOND: dict[str, tuple[str, Options]] = {
    "radii": ("+ calibrated radii", ["SSL.CLUSTERING.EPS_QUANTILE", 0.005]),
    "one_to_one": ("+ one-to-one matching", ["SSL.CLUSTERING.ONE_TO_ONE", True]),
    "consensus": ("+ temporal consensus", ["SSL.CLUSTERING.CONSENSUS", True]),
    "in_scene": ("+ in-scene separation", ["SSL.IN_SCENE_LOSS.WEIGHT", 1.0]),
    "teacher": ("+ teacher", ["SSL.TEACHER.ENABLED", True]),
    "erasing": ("+ random erasing", ["SSL.EXEMPLAR.RANDOM_ERASING", 0.5]),
}
"""Extensions beyond the paper: title and options by name of the row."""
TABLES: dict[str, tuple[str, tuple[Row, ...]]] = {
    "1": (
        "the two components",
        (
            Row("baseline", "baseline", "ablations/baseline.yaml"),
            Row("dml", "+ DML", "ablations/dml.yaml"),
            Row("sl", "+ SL", "ablations/sl.yaml"),
            Row("ssl", "+ SL + DML (SSL)"),
        ),
    ),
    "2": (
        "exemplars, labels from M_I",
        (
            Row("original_scale", "original scale", "ablations/original_scale.yaml"),
            Row("one_scale", "one scale", "ablations/one_scale.yaml", middle_scale),
            Row("multi_scale", "multi-scale", "ablations/multi_scale.yaml"),
            Row("multi_scale_masked", "multi-scale, background filtered", "ablations/multi_scale_masked.yaml"),
        ),
    ),
    "3": (
        "multi-label threshold",
        (
            Row("fixed_low", "fixed, t = t_s", "ablations/fixed_threshold.yaml", lowest_threshold),
            Row("fixed_high", "fixed, t = t_s + alpha", "ablations/fixed_threshold.yaml", highest_threshold),
            Row("ssl", "dynamic (SSL)"),
        ),
    ),
    "4": (
        "methods",
        (
            Row("oim", "OIM (supervised)", "methods/oim.yaml"),
            Row("nae", "NAE (supervised)", "methods/nae.yaml"),
            Row("seqnet", "SeqNet (supervised)", "methods/seqnet.yaml"),
            Row("cgps", "CGPS", "methods/cgps.yaml"),
            Row("rsiamnet", "R-SiamNet", "methods/rsiamnet.yaml", middle_scale),
            SSL,
        ),
    ),
    "beyond": (
        "beyond the paper",
        (
            SSL,
            *(Row(name, title, adapt=_constant(options)) for name, (title, options) in BEYOND.items()),
            Row("all_beyond", "+ all of these", adapt=_all_beyond),
        ),
    ),
}


# ---------------------------------------------------------------------- sensitivity


@dataclass(frozen=True)
class Parameter:
    """Parameter of the sweep.

    Attributes:
        name: name on the command line.
        title: title in the figure.
        key: config key.
        values: values to try besides the dataset's own; with `relative`, differences from it.
        options: returns the options for a value, if they are more than the key.
        own: returns the dataset's own value, if it is not that of the key.
        lowest, highest: bounds of valid values.
        whole: whether values must be integers.
    """

    name: str
    title: str
    key: str
    values: tuple[float, ...]
    options: Callable[[CfgNode, float], Options] | None = None
    own: Callable[[CfgNode], float] | None = None
    relative: bool = False
    lowest: float = -math.inf
    highest: float = math.inf
    whole: bool = False

    def default(self, base: CfgNode) -> float:
        """The dataset's own value."""
        if self.own is not None:
            return self.own(base)
        node = base
        for part in self.key.split("."):
            node = node[part]
        return float(node)

    def default_values(self, base: CfgNode) -> list[float]:
        """Default values to try."""
        return [round(self.default(base) + value, 6) if self.relative else value for value in self.values]

    def fits(self, value: float) -> bool:
        """Whether a value is valid."""
        return self.lowest <= value <= self.highest and math.isfinite(value) and not (self.whole and value % 1)

    @property
    def range(self) -> str:
        """Valid values in words."""
        bounds = (("of at least", self.lowest), ("and of at most", self.highest))
        words = " ".join(f"{word} {bound:g}" for word, bound in bounds if math.isfinite(bound))
        return f"{'whole ' if self.whole else ''}numbers {words}".strip()

    def row(self, base: CfgNode, value: float) -> Row:
        """Training with a value; with the dataset's own it is the row "ssl"."""
        if value == self.default(base):
            return SSL
        # Bound here, so that `adapt` does not see the next value of a loop.
        make = self.options or (lambda _, number: [self.key, number])
        return Row(f"{self.name}_{value:g}", f"{self.title} = {value:g}", adapt=lambda cfg: make(cfg, value))


def spaced_scales(base: CfgNode, count: int) -> tuple[tuple[int, int], ...]:
    """Another number of fixed scales over the range of the dataset's own.

    Args:
        base: config with SSL.EXEMPLAR.SCALES, (height, width) pairs.
        count: number of scales; 1 gives the middle one, the number of the base's gives those, others are spaced by a
            constant ratio from the smallest to the largest.

    Returns:
        (height, width) pairs in pixels, ascending.

    Raises:
        ConfigError: the base has no scale, or `count` is below 1.
    """
    own = sorted(tuple(scale) for scale in base.SSL.EXEMPLAR.SCALES)
    if not own or count < 1:
        raise ConfigError(
            f"{count} fixed scales over the range of SSL.EXEMPLAR.SCALES {own}: expected 1 or more of each"
        )
    if count == len(own):
        return tuple(own)
    if count == 1:
        return (own[len(own) // 2],)
    sides = np.geomspace(own[0], own[-1], count).round().astype(int)
    return tuple((int(height), int(width)) for height, width in sides)


PARAMETERS = {
    parameter.name: parameter
    for parameter in (
        Parameter("m", "margin m", "SSL.SCALE_LOSS.MARGIN", (0.1, 0.2, 0.3, 0.5, 0.8), lowest=0.0),
        Parameter(
            "gamma", "weight gamma of the original scale", "SSL.SCALE_LOSS.GAMMA", (0.0, 0.05, 0.2, 0.5), lowest=0.0
        ),
        Parameter(
            "delta", "weight delta of the positives", "SSL.MULTI_LABEL_LOSS.DELTA", (1.0, 2.0, 5.0, 10.0), lowest=0.0
        ),
        Parameter(
            "hard", "share of the negatives that count", "SSL.MULTI_LABEL_LOSS.HARD_NEGATIVE_RATIO",
            (0.01, 0.1, 0.5, 1.0), lowest=0.0, highest=1.0,
        ),
        Parameter("t_s", "lowest threshold t_s", "SSL.THRESHOLD.INITIAL", (-0.1, -0.05, 0.05, 0.1), relative=True),
        Parameter("alpha", "threshold's range alpha", "SSL.THRESHOLD.ALPHA", (0.0, 0.05, 0.1, 0.2)),
        Parameter("beta", "threshold's decay beta", "SSL.THRESHOLD.BETA", (-0.2, -0.1, -0.05, -0.02)),
        Parameter(
            "scales", "number of fixed scales", "SSL.EXEMPLAR.SCALES", (1.0, 2.0, 3.0, 4.0),
            lambda base, count: ["SSL.EXEMPLAR.SCALES", spaced_scales(base, int(count))],
            lambda base: float(len(base.SSL.EXEMPLAR.SCALES)), lowest=1.0, whole=True,
        ),
        Parameter(
            "lambda", "weight lambda of the new feature", "SSL.MEMORY.LAMBDA", (0.2, 0.5, 0.8, 1.0),
            lowest=0.0, highest=1.0,
        ),
        Parameter(
            "backbone", "exemplar backbone (0: shared, 1: separate)", "SSL.EXEMPLAR.SHARED_BACKBONE", (0.0, 1.0),
            lambda base, separate: ["SSL.EXEMPLAR.SHARED_BACKBONE", not separate],
            lambda base: float(not base.SSL.EXEMPLAR.SHARED_BACKBONE), lowest=0.0, highest=1.0, whole=True,
        ),
    )
}  # fmt: skip


def sweep_points(words: Sequence[str], base: CfgNode) -> dict[Parameter, dict[float, Row]]:
    """Trainings of a sweep.

    Args:
        words: "NAME" or "NAME=VALUE,VALUE,..."; () for all parameters.
        base: config of the dataset; its own value is always included.

    Returns:
        rows by parameter and value (ascending).

    Raises:
        ConfigError: a parameter is unknown, or a value is not a number or out of range.
    """
    points: dict[Parameter, dict[float, Row]] = {}
    for word in words or PARAMETERS:
        name, given, values = word.partition("=")
        if name not in PARAMETERS:
            raise ConfigError(f"--sweep {word}: expected one of {', '.join(PARAMETERS)}, or NAME=VALUE,VALUE")
        parameter = PARAMETERS[name]
        try:
            chosen = [float(value) for value in values.split(",")] if given else parameter.default_values(base)
        except ValueError as error:
            raise ConfigError(f"--sweep {word}: expected numbers separated by commas, as in {name}=0.1,0.2") from error
        if wrong := [value for value in chosen if not parameter.fits(value)]:
            raise ConfigError(f"--sweep {word}: {wrong[0]:g} cannot be trained: {name} takes {parameter.range}")
        every = sorted({*chosen, parameter.default(base)})
        points[parameter] = {value: parameter.row(base, value) for value in every}
    return points
