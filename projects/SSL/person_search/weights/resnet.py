"""Weights of a torchvision ResNet under this project's names, which are Detectron2's."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from torch import Tensor

from ..errors import CheckpointError

RESNET50_BLOCKS = (3, 4, 6, 3)
NORM_VALUES = ("weight", "bias", "running_mean", "running_var")
_SEPARATE = "exemplar_branch.separate"
# res5 exists once in each head; both start from the same weights, as does a separate exemplar backbone.
_RES5_COPIES = ("roi_heads.box_head.res5", "roi_heads.reid_head.res5", f"{_SEPARATE}.res5")
_BACKBONE_COPIES = ("backbone", f"{_SEPARATE}.backbone")


def is_torchvision_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of a torchvision ResNet."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def convert_torchvision_resnet(state: Mapping[str, Tensor], targets: Collection[str]) -> dict[str, Tensor]:
    """Renames a torchvision ResNet's weights.

    Args:
        state: a torchvision ResNet's state dict.
        targets: the names of the model that will load the result; names that it lacks are left out (the classifier,
            `num_batches_tracked` of frozen layers, the copies of an exemplar backbone that is shared).

    Returns:
        the weights under this project's names, each copy of res5 included.
    """
    converted = {}
    for name, value in state.items():
        for renamed in _copies(name):
            if renamed in targets:
                converted[renamed] = value
    return converted


def convert_torchvision_resnet50(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Renames a whole torchvision ResNet-50, for a model that is not at hand.

    Args:
        state: its state dict.

    Returns:
        the weights under this project's names for backbone and both heads, and the sorted names that were not used
        (the classifier's; counters of batch normalisation are not listed, since they never matter).

    Raises:
        CheckpointError: a weight is missing, or there are more layers than a ResNet-50 has.
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
    """Gives a separate exemplar backbone the main branch's weights where a checkpoint has none for it.

    Args:
        state: weights under this project's names.
        targets: the names of the model that will load them.

    Returns:
        `state`, with the names of `targets` below exemplar_branch.separate that it lacked.
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
    """Names of a torchvision ResNet-50 without its classifier and the counters of its batch normalisation."""
    layers = [("conv1", "bn1")]
    for stage, blocks in enumerate(RESNET50_BLOCKS, start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            layers += [(f"{prefix}.conv{i}", f"{prefix}.bn{i}") for i in (1, 2, 3)]
            if block == 0:
                layers.append((f"{prefix}.downsample.0", f"{prefix}.downsample.1"))
    return [name for conv, norm in layers for name in (f"{conv}.weight", *(f"{norm}.{value}" for value in NORM_VALUES))]


def rename_resnet(name: str) -> tuple[int, str]:
    """Detectron2's name of a torchvision ResNet's weight.

    Args:
        name: such as "layer4.0.downsample.1.bias".

    Returns:
        the stage (1: the stem, 2 to 5: res2 to res5) and the name in it, such as (5, "0.shortcut.norm.bias").
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
