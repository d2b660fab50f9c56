"""Weights of a pretrained network in a model: for its trunk, and for the last stage of each head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import Backbone
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import Tensor, nn

from ..errors import CheckpointError
from ..modeling.backbone import LastStage
from .files import Pixels, WeightFile
from .layouts import NetworkWeights, is_detector, to_network
from .seqnet import is_seqnet

# Tolerances of the mean, in grey values of 255, and of the deviation, as a fraction: far less than networks notice, and
# enough for rounding such as 127 and 127.5.
_MEAN_TOLERANCE, _STD_TOLERANCE = 1.0, 0.02
# State that weights may lack: counters, and buffers computed when a network is built.
_COMPUTED = ("num_batches_tracked", "relative_position_index", "attn_mask")
_NAMED = 4


@dataclass(frozen=True)
class Start:
    """Initial weights of a model from a pretrained network.

    Attributes:
        state: weights under the model's names.
        message: one line on what was loaded, is left over, and starts from scratch.
    """

    state: dict[str, Tensor]
    message: str


def place_pretrained(file: WeightFile, path: str, model: nn.Module) -> Start:
    """Weights of a pretrained network under the names of a model, copied for each of its trunks and last stages.

    Args:
        file: content of the file.
        path: path of the file, as in MODEL.WEIGHTS.
        model: model to load them, with `pixel_mean`, `pixel_std` and `input_format`.

    Raises:
        CheckpointError: a weight of a trunk or last stage is missing or has another shape, and would be random, or the
            weights expect other pixels than the model's.
    """
    parts = pretrained_parts(model)
    trunk = next(module for module in model.modules() if isinstance(module, Backbone))
    try:
        if is_seqnet(file.state):
            raise CheckpointError("they are SeqNet's: convert them with tools/convert_weights.py")
        weights = to_network(file, path, trunk)
        state, used = _placed(weights, parts, model.state_dict())
        if not used:
            raise CheckpointError(
                f"none of its weights has a name of this model or of its backbone ({_listed(sorted(file.state))})"
            )
        _refuse_random(weights, state, parts, model.state_dict())
        _refuse_other_pixels(weights, model, trunk)
    except CheckpointError as error:
        raise CheckpointError(f"MODEL.WEIGHTS {path}: {error}") from error
    left_over = [name for name in weights.state if name not in used and not name.endswith(_COMPUTED)]
    scratch = {
        ".".join(name.split(".")[:2])
        for name in model.state_dict()
        if name not in state and not name.endswith(_COMPUTED) and not name.startswith(("objective.", "pixel_", *parts))
    }
    loaded = ", ".join(f"{sum(n.startswith(p) for n in state)} into {p.rstrip('.')}" for p in parts)
    message = f"MODEL.WEIGHTS {path} ({weights.source}): weights loaded: {loaded}"
    message += f"; left over: {_listed(sorted(left_over + weights.left_over)) or 'none'}"
    return Start(state, f"{message}; missing, so from scratch: {', '.join(sorted(scratch)) or 'nothing'}")


def pretrained_parts(model: nn.Module) -> dict[str, str]:
    """Prefixes of a model's trunks and last stages, each with its prefix in the network's own names."""
    parts = {}
    for name, module in model.named_modules():
        if isinstance(module, Backbone):
            parts[f"{name}."] = ""
        elif isinstance(module, LastStage):
            parts[f"{name}."] = module.network_prefix
    return parts


def is_own(file: WeightFile, model: nn.Module) -> bool:
    """Whether weights have a model's names: of more than its trunk, or of the whole trunk."""
    own = [name for name in model.state_dict() if not name.startswith("pixel_")]
    trunks = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Backbone))
    if file.key not in ("", "model") or is_detector(file.state):
        return False
    return any(name in file.state for name in own if not name.startswith(trunks)) or all(
        name in file.state for name in own if name.startswith(trunks) and not name.endswith(_COMPUTED)
    )


def refuse_random_parts(state: Mapping[str, Tensor], path: str, model: nn.Module) -> None:
    """Checks that weights under the model's own names are complete for trunk and last stages.

    Args:
        state: weights by name.
        path: path of their file, as in MODEL.WEIGHTS.
        model: model to load them.

    Raises:
        CheckpointError: weights are missing; the message names the first ones.
    """
    own = [n for n in model.state_dict() if n.startswith(tuple(pretrained_parts(model)))]
    missing = [n for n in own if n not in state and not n.endswith(_COMPUTED)]
    if missing:
        raise CheckpointError(
            f"MODEL.WEIGHTS {path}: {len(missing)} of {len(own)} weights of trunk and last stages are missing "
            f'({_listed(missing)}) and would be random: give weights of the same backbone, or none ("")'
        )


def refuse_frozen_scratch(model: nn.Module) -> None:
    """Checks, for training from scratch, that neither part of the trunk nor its normalization is frozen at random.

    Args:
        model: model without weights.

    Raises:
        CheckpointError: something is frozen; the message names the keys.
    """
    trunk = next(module for module in model.modules() if isinstance(module, Backbone))
    counts = {
        "frozen weights": sum(not p.requires_grad for p in trunk.parameters()),
        "layers of frozen batch normalization": sum(isinstance(m, FrozenBatchNorm2d) for m in trunk.modules()),
    }
    frozen = [f"{count} {what}" for what, count in counts.items() if count]
    if frozen:
        raise CheckpointError(
            f'MODEL.WEIGHTS is "", but the backbone has {" and ".join(frozen)}, which would stay random: name '
            "initial weights (docs/weights.md), or train all of it with MODEL.BACKBONE.FREEZE_AT 0 and "
            'MODEL.RESNETS.NORM "BN" (for timm networks MODEL.TIMM.FROZEN_NORM False)'
        )


def _placed(
    weights: NetworkWeights, parts: Mapping[str, str], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], set[str]]:
    """Weights by the model's names, and the network's names that were used."""
    state, used = {}, set()
    for target in own:
        for part, prefix in parts.items():
            name = prefix + target.removeprefix(part)
            if target.startswith(part) and name in weights.state:
                state[target] = weights.state[name]
                used.add(name)
    return state, used


def _refuse_random(
    weights: NetworkWeights, state: Mapping[str, Tensor], parts: Mapping[str, str], own: Mapping[str, Tensor]
) -> None:
    wrong = [n for n, value in state.items() if value.shape != own[n].shape]
    if wrong:
        raise CheckpointError(
            f"weights ({weights.source}) are of another backbone: {wrong[0]} is {tuple(state[wrong[0]].shape)}, and "
            f"{tuple(own[wrong[0]].shape)} with this config ({len(wrong)} such weights); give weights that fit, change "
            'the backbone, or start from scratch with MODEL.WEIGHTS ""'
        )
    for part in parts:
        needed = [n for n in own if n.startswith(part) and not n.endswith(_COMPUTED)]
        missing = [n for n in needed if n not in state]
        if missing:
            raise CheckpointError(
                f"weights ({weights.source}) lack {len(missing)} of the {len(needed)} of {part.rstrip('.')} "
                f"({_listed(missing)}), which would be random: give weights of the same backbone, or start from "
                'scratch with MODEL.WEIGHTS ""'
            )


def _refuse_other_pixels(weights: NetworkWeights, model: nn.Module, trunk: nn.Module) -> None:
    """Checks the pixel format that the weights expect against the model's."""
    expected: Pixels | None = weights.pixels
    if expected is None or not hasattr(model, "pixel_mean"):
        return
    mean, std = (getattr(model, f"pixel_{name}").flatten().cpu().numpy() for name in ("mean", "std"))
    same = (
        expected.order == (model.input_format or expected.order)
        and np.abs(mean - expected.mean).max() <= _MEAN_TOLERANCE
        and np.abs(std / expected.std - 1).max() <= _STD_TOLERANCE
    )
    if not same:
        raise CheckpointError(
            f"{weights.source} weights expect INPUT.FORMAT {expected.order}, MODEL.PIXEL_MEAN {list(expected.mean)} "
            f"and MODEL.PIXEL_STD {list(expected.std)}, but the config has {model.input_format}, "
            f"{np.round(mean, 3).tolist()} and {np.round(std, 3).tolist()}: set them"
        )
    block = next(
        (m for m in trunk.modules() if isinstance(m, BottleneckBlock) and m.conv2.stride != m.conv1.stride), None
    )
    if weights.source == "Caffe2" and block is not None and block.conv2.stride != (1, 1):
        raise CheckpointError(
            "Caffe2 weights have their strides in 1x1 convolutions: set MODEL.RESNETS.STRIDE_IN_1X1 True"
        )


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest
