"""Weights of torchvision's ResNet under this project's names, which are Detectron2's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from ..errors import CheckpointError

RESNET50_BLOCKS = (3, 4, 6, 3)
NORM_VALUES = ("weight", "bias", "running_mean", "running_var")
_SEPARATE = "exemplar_branch.separate"
# Each head has a res5; all are initialized with the same weights, as is a separate exemplar backbone.
_RES5_COPIES = ("roi_heads.box_head.res5", "roi_heads.reid_head.res5", f"{_SEPARATE}.res5")
_BACKBONE_COPIES = ("backbone", f"{_SEPARATE}.backbone")


def is_torchvision_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of torchvision's ResNet."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def convert_torchvision_resnet(state: Mapping[str, Tensor], targets: Collection[str]) -> dict[str, Tensor]:
    """Weights of torchvision's ResNet under this project's names, with all copies of res5.

    Args:
        state: state dict of torchvision's ResNet.
        targets: names in the model to load them; others are dropped (the classifier, `num_batches_tracked` of frozen
            layers, the copies for a shared exemplar backbone).
    """
    converted = {}
    for name, value in state.items():
        for renamed in _copies(name):
            if renamed in targets:
                converted[renamed] = value
    return converted


def convert_torchvision_resnet50(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Weights of torchvision's ResNet-50 under this project's names, without a model at hand.

    Args:
        state: its state dict.

    Returns:
        weights of backbone and both heads, and the sorted names that were not used (those of the classifier; counters
        of batch normalization are not listed, since they have no effect).

    Raises:
        CheckpointError: a weight is missing, or there are more layers than in a ResNet-50.
    """
    names = resnet50_names()
    missing = [name for name in names if name not in state]
    unused = sorted(set(state) - set(names))
    unused = [name for name in unused if not name.endswith("num_batches_tracked")]
    deeper = [name for name in unused if name.startswith("layer")]
    if missing or deeper:
        what = f"{missing[0]} is missing" if missing else f"{deeper[0]} is one too many"
        raise CheckpointError(f"these are not the weights of a torchvision ResNet-50: {what}")
    targets = [copy for name in names for copy in _copies(name) if not copy.startswith(_SEPARATE)]
    return convert_torchvision_resnet(state, set(targets)), unused


def complete_exemplar_backbone(state: Mapping[str, Tensor], targets: Collection[str]) -> dict[str, Tensor]:
    """Weights completed with those of the main branch for a separate exemplar backbone, if a checkpoint has none.

    Args:
        state: weights under this project's names.
        targets: names in the model to load them.

    Returns:
        `state` with the missing names of `targets` below exemplar_branch.separate.
    """
    completed = dict(state)
    for name in targets:
        if name.startswith(_SEPARATE) and name not in state:
            local = name.removeprefix(f"{_SEPARATE}.")
            source = f"roi_heads.reid_head.{local}" if local.startswith("res5.") else local
            if source in state:
                completed[name] = state[source]
    return completed


def resnet50_names() -> list[str]:
    """Names of torchvision's ResNet-50 without classifier and counters of batch normalization."""
    layers = [("conv1", "bn1")]
    for stage, blocks in enumerate(RESNET50_BLOCKS, start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            layers += [(f"{prefix}.conv{i}", f"{prefix}.bn{i}") for i in (1, 2, 3)]
            if block == 0:
                layers.append((f"{prefix}.downsample.0", f"{prefix}.downsample.1"))
    return [name for conv, norm in layers for name in (f"{conv}.weight", *(f"{norm}.{value}" for value in NORM_VALUES))]


def rename_resnet(name: str) -> tuple[int, str]:
    """Detectron2's name of a weight of torchvision's ResNet.

    Args:
        name: name such as "layer4.0.downsample.1.bias".

    Returns:
        the stage (1: stem, 2 to 5: res2 to res5) and the name within, such as (5, "0.shortcut.norm.bias").
    """
    local = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    local = re.sub(r"bn(\d)", r"conv\1.norm", local)
    stage = re.match(r"layer(\d)\.(.*)", local)
    return (1, local) if stage is None else (int(stage.group(1)) + 1, stage.group(2))


def _copies(name: str) -> list[str]:
    stage, local = rename_resnet(name)
    if stage == 5:
        return [f"{copy}.{local}" for copy in _RES5_COPIES]
    return [f"{copy}.{'stem' if stage == 1 else f'res{stage}'}.{local}" for copy in _BACKBONE_COPIES]
