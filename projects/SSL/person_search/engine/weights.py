"""Weights of other code bases under this project's names."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ..errors import CheckpointError

TORCHVISION_PREFIX = "torchvision://"
# res5 exists once in each head; both start from the same weights, as does a separate exemplar backbone.
_RES5_COPIES = ("roi_heads.first_res5", "roi_heads.second_res5", "exemplar_branch.separate.res5")
_BACKBONE_COPIES = ("backbone", "exemplar_branch.separate.backbone")


def is_torchvision_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of a torchvision ResNet."""
    return "conv1.weight" in state and "layer1.0.conv1.weight" in state


def convert_torchvision_resnet(state: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Renames a torchvision ResNet's weights.

    Args:
        state: a torchvision ResNet's state dict.
        targets: the state dict of the model that will load the result; names that it lacks are left out (the
            classifier, `num_batches_tracked` of frozen layers, the copies of an exemplar backbone that is shared).

    Returns:
        the weights under this project's names, each copy of res5 included.
    """
    converted = {}
    for name, value in state.items():
        for renamed in _torchvision_names(name):
            if renamed in targets:
                converted[renamed] = value
    return converted


def _torchvision_names(name: str) -> list[str]:
    local = name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
    local = re.sub(r"bn(\d)", r"conv\1.norm", local)
    stage = re.match(r"layer(\d)\.(.*)", local)
    if stage is None:
        return [f"{copy}.stem.{local}" for copy in _BACKBONE_COPIES]
    number, rest = int(stage.group(1)) + 1, stage.group(2)
    if number == 5:
        return [f"{copy}.{rest}" for copy in _RES5_COPIES]
    return [f"{copy}.res{number}.{rest}" for copy in _BACKBONE_COPIES]


def download_torchvision(url: str) -> dict[str, Tensor]:
    """State dict of a torchvision weight such as "torchvision://ResNet50_Weights.IMAGENET1K_V1".

    Raises:
        CheckpointError: the name is unknown or the download failed; the message says what to do without a network.
    """
    import torchvision

    name = url.removeprefix(TORCHVISION_PREFIX)
    try:
        weights = torchvision.models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise CheckpointError(f"MODEL.WEIGHTS {url}: torchvision has no weights of that name ({error})") from error
    file_name = weights.url.rsplit("/", 1)[-1]
    try:
        return torch.hub.load_state_dict_from_url(weights.url, map_location="cpu", progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"MODEL.WEIGHTS {url}: could not download {weights.url} ({error}). Fetch that file where there is a "
            f"network, then put it into {torch.hub.get_dir()}/checkpoints/ or give its path: MODEL.WEIGHTS {file_name}"
        ) from error
