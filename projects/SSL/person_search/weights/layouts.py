"""Conversion of names in weight files of pretrained networks to the names of the networks here."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from detectron2.modeling.backbone.resnet import ResNet
from torch import Tensor, nn

from ..errors import CheckpointError
from ..modeling.timm_backbone import TimmTrunk, create_network
from .files import IMAGENET, Pixels, WeightFile
from .resnet import is_torchvision_resnet, rename_resnet

_LUPERSON = Pixels((89.896, 79.2, 80.073), (63.872, 64.305, 63.839))
_SOLIDER = Pixels((127.5, 127.5, 127.5), (127.5, 127.5, 127.5))
_CAFFE2 = Pixels((103.53, 116.28, 123.675), (1.0, 1.0, 1.0), "BGR")
# Prefixes of a network's names in files that wrap it: of distributed training, and of MoCo, CION and re-id code.
_WRAPPERS = ("module.", "backbone.", "base.", "encoder_q.")


@dataclass(frozen=True)
class NetworkWeights:
    """Weights under the names of a network that is split into trunk and last stage.

    Attributes:
        state: tensors by name.
        left_over: names in the file that the network does not have.
        source: origin of the weights, such as "CION".
        pixels: expected pixel format; None if unknown.
    """

    state: dict[str, Tensor]
    left_over: list[str]
    source: str
    pixels: Pixels | None


def to_network(file: WeightFile, path: str, trunk: nn.Module) -> NetworkWeights:
    """Weights of a whole network under the names of the network with the given trunk.

    Args:
        file: content of the file.
        path: path of the file, which may show its origin.
        trunk: trunk of a Detectron2 ResNet or of a timm network.

    Raises:
        CheckpointError: they are of a variant that no network here equals.
    """
    _refuse_variants(file.state)
    if is_detector(file.state):
        return _detector(file)
    state = _unwrapped(file.state)
    left_over = sorted(set(file.state) - {name for name, _ in state.values()})
    named = {own: value for own, (_, value) in state.items()}
    source, pixels = _source(file, path, named)
    if isinstance(trunk, TimmTrunk):
        renamed = timm_names(named, trunk.name)
    elif isinstance(trunk, ResNet):
        renamed = _resnet_names(named)
    else:
        renamed = named
    return NetworkWeights(renamed, left_over, source, pixels)


def is_detector(state: Mapping[str, Tensor]) -> bool:
    """Whether weights have the names of Detectron2's C4 detector, whose single head has res5."""
    return any(name.startswith("roi_heads.res5.") for name in state)


def _refuse_variants(state: Mapping[str, Tensor]) -> None:
    """Raises a CheckpointError for variants of a network whose weights fit in part, or fit with another meaning."""
    for name in state:
        if ".IN.weight" in name or ".IN.bias" in name:
            raise CheckpointError(
                f"they are of an IBN network, which normalizes half of its channels by instance ({name}), as no "
                "backbone here does; use the variant without IBN"
            )
        if "attnpool." in name or name.startswith("visual.") or "text_projection" in name:
            raise CheckpointError(
                f"they are of a CLIP-like network ({name}), whose stem and pooling no backbone here has; "
                "CLIP networks in timm can be loaded by timm://NAME"
            )


def _unwrapped(state: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Weights without the prefixes of wrappers: original name and tensor by the remaining name.

    If only a part has a wrapper's prefix, this part is the network, and the rest something else, such as a projection
    head.
    """
    current = {name: (name, value) for name, value in state.items()}
    while True:
        wrapper = next((w for w in _WRAPPERS if any(name.startswith(w) for name in current)), None)
        if wrapper is None:
            return current
        current = {n.removeprefix(wrapper): pair for n, pair in current.items() if n.startswith(wrapper)}


def _source(file: WeightFile, path: str, named: Mapping[str, Tensor]) -> tuple[str, Pixels | None]:
    """Origin of the weights, and the pixel format that they expect."""
    author = str(file.rest.get("__author__", ""))
    if file.origin:
        return file.origin, file.pixels
    if _is_mmcv_swin(named):
        solider = file.key == "teacher" or any(name.startswith("semantic_embed_") for name in named)
        return ("SOLIDER", _SOLIDER) if solider else ("mmcv Swin", None)
    if file.key in ("teacher", "student"):
        return "CION", IMAGENET
    if os.path.basename(path).lower().startswith("lup"):
        return "LUPerson", _LUPERSON
    if "conv1_w" in named or author in ("Caffe2", "MSRA"):
        return "Caffe2", _CAFFE2
    if author:
        return f"Detectron2's zoo ({author})", IMAGENET if author == "torchvision" else None
    return ("torchvision" if is_torchvision_resnet(named) else "pretrained"), None


# ---------------------------------------------------------------------- Detectron2's networks


def _resnet_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of Detectron2's ResNet, from torchvision's (which timm shares), Caffe2's or its own."""
    if "conv1_w" in state:
        from detectron2.checkpoint.c2_model_loading import convert_c2_detectron_names

        return convert_c2_detectron_names(dict(state))[0]
    if not is_torchvision_resnet(state):
        return dict(state)
    renamed = {}
    for name, value in state.items():
        stage, local = rename_resnet(name)
        renamed[name if name.startswith("fc.") else f"{'stem' if stage == 1 else f'res{stage}'}.{local}"] = value
    return renamed


def _detector(file: WeightFile) -> NetworkWeights:
    """Backbone and res5 of a C4 detector of Detectron2's model zoo."""
    state, left_over = {}, []
    for name, value in file.state.items():
        prefix = next((p for p in ("backbone.", "roi_heads.") if name.startswith((f"{p}res", f"{p}stem"))), None)
        if prefix is None:
            left_over.append(name)
        else:
            state[name.removeprefix(prefix)] = value
    return NetworkWeights(state, sorted(left_over), "Detectron2's zoo (a C4 detector)", _CAFFE2)


# ---------------------------------------------------------------------- timm's networks


def timm_names(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Weights under timm's names, from those of timm, of the network's original code, of EfficientNet-PyTorch or of
    mmcv.

    Args:
        state: weights of the whole network.
        name: name of the network in timm.
    """
    if "_conv_stem.weight" in state:
        return _efficientnet_names(state, create_network(name))
    if _is_mmcv_swin(state):
        state = _original_swin(state)
    network = create_network(name)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None:
        return state
    try:
        return dict(convert(state, network))
    except (KeyError, AttributeError, RuntimeError, ValueError):  # not a network of that kind
        return state


def _efficientnet_names(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Weights under timm's names, from EfficientNet-PyTorch's, which numbers blocks consecutively."""
    places = [
        (f"blocks.{stage}.{number}", "conv_pwl" in dict(block.named_children()))
        for stage, blocks in enumerate(getattr(network, "blocks", []))
        for number, block in enumerate(blocks)
    ]
    top = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    # First blocks do not expand channels, and timm numbers their layers accordingly.
    inverted = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
                "_project_conv": "conv_pwl", "_bn2": "bn3"}  # fmt: skip
    separable = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    squeeze = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    renamed = {}
    for name, value in state.items():
        block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name)
        if block is None:
            layer, _, rest = name.partition(".")
            renamed[f"{top.get(layer, layer)}.{rest}"] = value
        elif int(block[1]) < len(places):
            place, expands = places[int(block[1])]
            layers = {**(inverted if expands else separable), **squeeze}
            renamed[f"{place}.{layers.get(block[2], block[2])}.{block[3]}"] = value
        else:
            renamed[name] = value
    return renamed


def _is_mmcv_swin(state: Mapping[str, Tensor]) -> bool:
    return "patch_embed.projection.weight" in state


def _original_swin(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the Swin Transformer's authors, which timm reads, from mmcv's.

    mmcv merges patches channel by channel and row by row, the authors patch by patch and column by column.
    """
    last = max((int(n.split(".")[1]) for n in state if n.startswith("stages.")), default=0)
    replaced = (
        ("patch_embed.projection.", "patch_embed.proj."),
        ("attn.w_msa.", "attn."),
        ("ffn.layers.0.0.", "mlp.fc1."),
        ("ffn.layers.1.", "mlp.fc2."),
    )
    renamed = {}
    for name, value in state.items():
        if ".downsample." in name:
            channels = value.shape[-1] // 4
            value = value.reshape(*value.shape[:-1], channels, 4)[..., [0, 2, 1, 3]].transpose(-1, -2)
            value = value.reshape(*value.shape[:-2], 4 * channels)
        name = re.sub(r"^stages\.", "layers.", name)
        name = re.sub(rf"^norm{last}\.", "norm.", name)
        for theirs, ours in replaced:
            name = name.replace(theirs, ours)
        renamed[name] = value.contiguous() if isinstance(value, torch.Tensor) else value
    return renamed
