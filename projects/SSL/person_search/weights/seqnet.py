"""Weights of SeqNet's public code under this project's names, and back.

Both are the same network; for the names see docs/weights.md. There are three other differences: SeqNet orders its
anchors by ratio (Detectron2: by size), has the background before the person in its classifier (Detectron2: after it),
and also regresses boxes of the background, which are never used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import CheckpointError
from .resnet import NORM_VALUES, rename_resnet, resnet50_names

_SIZES, _RATIOS = 5, 3
# Row i of ours is row _ANCHORS[i] of SeqNet's; _DELTAS is the same for the four deltas of each anchor.
_ANCHORS = tuple(ratio * _SIZES + size for size in range(_SIZES) for ratio in range(_RATIOS))
_DELTAS = tuple(4 * anchor + delta for anchor in _ANCHORS for delta in range(4))
_CLASSES = (1, 0)
_PERSON_DELTAS = (4, 5, 6, 7)
# torchvision has used both names for the RPN's convolution; SeqNet's checkpoints have the first.
_RPN_CONV = {"rpn.head.conv.0.0.weight": "rpn.head.conv.weight", "rpn.head.conv.0.0.bias": "rpn.head.conv.bias"}
_COUNTER = "num_batches_tracked"
_TRAINING_STATE = ("objective.", "exemplar_branch.")


class Pair(NamedTuple):
    """Weight in both code bases.

    Attributes:
        seqnet, ours: names.
        rows: rows of SeqNet's, with `ours = seqnet[rows]`; None if both are equal.
        size: number of rows of SeqNet's, if `rows` are given.
        fill: value of SeqNet's rows that ours lacks.
    """

    seqnet: str
    ours: str
    rows: tuple[int, ...] | None = None
    size: int = 0
    fill: float = 0.0


def is_seqnet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of SeqNet."""
    return any(name.startswith("roi_heads.reid_head.layer4.") for name in state)


def is_person_search(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of this project's model."""
    return any(name.startswith("roi_heads.reid_head.res5.") for name in state)


def convert_seqnet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of SeqNet under this project's names.

    Args:
        state: SeqNet's state dict, with or without its BN neck.

    Returns:
        the weights, and the sorted names that were not used (OIM's tables of identities). Counters of the backbone's
        batch normalization, which is frozen here, are neither used nor listed.

    Raises:
        CheckpointError: a weight is missing or has another number of rows.
    """
    state = {_RPN_CONV.get(name, name): value for name, value in state.items()}
    pairs = name_pairs("roi_heads.box_predictor.bbox_pred.1.weight" in state)
    _refuse_missing([p.seqnet for p in pairs if not _is_counter(p.ours)], state, "SeqNet")
    converted = {}
    for pair in pairs:
        if pair.seqnet in state:
            converted[pair.ours] = _select(state[pair.seqnet], pair)
    known = {pair.seqnet for pair in pairs}
    frozen = ("backbone.", "roi_heads.box_head.", "roi_heads.reid_head.")
    unused = [n for n in state if n not in known and not (n.startswith(frozen) and _is_counter(n))]
    return converted, sorted(unused)


def convert_to_seqnet(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of this project under SeqNet's names; the inverse of `convert_seqnet`.

    Args:
        state: state dict of this project's model.

    Returns:
        the weights, complete except for OIM's tables (SeqNet accepts that), and the sorted names that were not used:
        memory banks, labels, a separate exemplar backbone.

    Raises:
        CheckpointError: a weight is missing, or SeqNet has no counterpart for some (other depths, deformable pooling),
            so it would not be the same network.
    """
    pairs = name_pairs("roi_heads.reid_head.regressor.norm.weight" in state)
    needed = [p.ours for p in pairs if not _is_counter(p.ours)]
    _refuse_missing(needed, state, "a ResNet-50 person search model of this project")
    converted = {}
    for pair in pairs:
        if pair.ours in state:
            converted[pair.seqnet] = _spread(state[pair.ours], pair)
        else:
            converted[pair.seqnet] = torch.zeros((), dtype=torch.int64)
    frozen = ("backbone.", "roi_heads.box_head.res5.", "roi_heads.reid_head.res5.")
    counters = {n for n in state if n.startswith(frozen) and _is_counter(n)}
    unused = sorted(set(state) - {pair.ours for pair in pairs} - counters)
    foreign = [name for name in unused if not name.startswith(_TRAINING_STATE)]
    if foreign:
        raise CheckpointError(
            f'SeqNet has no counterpart of {foreign[0]}: only a ResNet-50 with POOLING "align" has the form of SeqNet'
        )
    for name in _backbone_counters():
        converted[name] = torch.zeros((), dtype=torch.int64)
    return converted, unused


def name_pairs(bn_neck: bool = True) -> list[Pair]:
    """All weights of SeqNet used for inference, in both code bases.

    Args:
        bn_neck: whether the re-id head's box regressor ends in batch normalization.
    """
    pairs = []
    for name in resnet50_names():
        stage, local = rename_resnet(name)
        if stage == 5:
            pairs.append(Pair(f"roi_heads.box_head.{name}", f"roi_heads.box_head.res5.{local}"))
            pairs.append(Pair(f"roi_heads.reid_head.{name}", f"roi_heads.reid_head.res5.{local}"))
        else:
            pairs.append(Pair(f"backbone.{name}", f"backbone.{'stem' if stage == 1 else f'res{stage}'}.{local}"))
    return pairs + _rpn_pairs() + _box_head_pairs() + _reid_head_pairs(bn_neck)


def _rpn_pairs() -> list[Pair]:
    ours, anchors = "proposal_generator.rpn_head", len(_ANCHORS)
    pairs = []
    for value in ("weight", "bias"):
        pairs += [
            Pair(f"rpn.head.conv.{value}", f"{ours}.conv.{value}"),
            Pair(f"rpn.head.cls_logits.{value}", f"{ours}.objectness_logits.{value}", _ANCHORS, anchors),
            Pair(f"rpn.head.bbox_pred.{value}", f"{ours}.anchor_deltas.{value}", _DELTAS, 4 * anchors),
        ]
    return pairs


def _box_head_pairs() -> list[Pair]:
    theirs, ours = "roi_heads.faster_rcnn_predictor", "roi_heads.box_head.predictor"
    pairs = []
    for value in ("weight", "bias"):
        pairs += [
            Pair(f"{theirs}.cls_score.{value}", f"{ours}.cls_score.{value}", _CLASSES, 2),
            Pair(f"{theirs}.bbox_pred.{value}", f"{ours}.bbox_pred.{value}", _PERSON_DELTAS, 8),
        ]
    return pairs


def _reid_head_pairs(bn_neck: bool) -> list[Pair]:
    theirs, ours = "roi_heads.box_predictor.bbox_pred", "roi_heads.reid_head.regressor"
    linear = f"{theirs}.0" if bn_neck else theirs
    pairs = [Pair(f"{linear}.{v}", f"{ours}.linear.{v}", _PERSON_DELTAS, 8) for v in ("weight", "bias")]
    if bn_neck:
        for value in NORM_VALUES:
            fill = 1.0 if value in ("weight", "running_var") else 0.0
            pairs.append(Pair(f"{theirs}.1.{value}", f"{ours}.norm.{value}", _PERSON_DELTAS, 8, fill))
        pairs.append(Pair(f"{theirs}.1.{_COUNTER}", f"{ours}.norm.{_COUNTER}"))
    theirs, ours = "roi_heads.embedding_head", "roi_heads.reid_head.embedding"
    for level in ("res4", "res5"):
        values = ["0.weight", "0.bias", *(f"1.{v}" for v in (*NORM_VALUES, _COUNTER))]
        pairs += [Pair(f"{theirs}.projectors.feat_{level}.{v}", f"{ours}.{level}_projector.{v}") for v in values]
    return pairs + [Pair(f"{theirs}.rescaler.{v}", f"{ours}.rescaler.{v}") for v in (*NORM_VALUES, _COUNTER)]


def _backbone_counters() -> list[str]:
    norms = [n.replace("running_mean", _COUNTER) for n in resnet50_names() if n.endswith("running_mean")]
    heads = ("roi_heads.box_head", "roi_heads.reid_head")
    return [f"{p}.{n}" for n in norms for p in (heads if n.startswith("layer4.") else ("backbone",))]


def _select(value: Tensor, pair: Pair) -> Tensor:
    if pair.rows is None:
        return value
    if len(value) != pair.size:
        raise CheckpointError(f"{pair.seqnet} has {len(value)} rows, SeqNet's has {pair.size}")
    return value[list(pair.rows)]


def _spread(value: Tensor, pair: Pair) -> Tensor:
    if pair.rows is None:
        return value
    if len(value) != len(pair.rows):
        raise CheckpointError(f"{pair.ours} has {len(value)} rows, SeqNet needs {len(pair.rows)}")
    spread = torch.full((pair.size, *value.shape[1:]), pair.fill, dtype=value.dtype)
    spread[list(pair.rows)] = value
    return spread


def _is_counter(name: str) -> bool:
    return name.endswith(_COUNTER)


def _refuse_missing(names: list[str], state: Mapping[str, Tensor], what: str) -> None:
    missing = [name for name in names if name not in state]
    if missing:
        listed = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise CheckpointError(f"these are not the weights of {what}: {len(missing)} of {len(names)} missing ({listed})")
