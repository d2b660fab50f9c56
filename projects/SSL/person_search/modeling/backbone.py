"""Backbones missing from Detectron2, and the last stage (res5) that heads apply to RoIs.

A network is split into a trunk, applied to whole images with the output "res4", and its last stage, of which every head
has a copy. Both are called by ResNet's names, whatever the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, BottleneckBlock, ResNet
from torch import nn

from ..errors import ConfigError

# Number of blocks in res2 to res5 by depth; basic blocks up to 34, bottlenecks above.
_BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}


class LastStage(nn.Module):
    """Last stage of a network, applied to RoIs by the heads and to crops by the exemplar branch.

    Attributes:
        network_prefix: prefix of its weights' names in the whole network.
    """

    network_prefix = ""


class ResNetLastStage(LastStage, nn.Sequential):
    """res5 of Detectron2's ResNet: (R, C4, h, w) -> (R, C5, h / 2, w / 2)."""

    network_prefix = "res5."


class LastStageBuilder(NamedTuple):
    """Builder of last stages for a kind of network.

    Attributes:
        build: returns a new last stage without pretrained weights.
        channels: returns the number of its output channels.
    """

    build: Callable[[CfgNode], LastStage]
    channels: Callable[[CfgNode], int]


# By MODEL.BACKBONE.NAME; any other backbone is a ResNet described by MODEL.RESNETS.
LAST_STAGES: dict[str, LastStageBuilder] = {}


def res5_channels(cfg: CfgNode) -> int:
    """Number of output channels of the last stage."""
    builder = LAST_STAGES.get(cfg.MODEL.BACKBONE.NAME)
    return builder.channels(cfg) if builder else cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8


def build_res5(cfg: CfgNode) -> LastStage:
    """New last stage for the configured backbone, (R, C4, h, w) -> (R, C5, ceil(h / 2), ceil(w / 2))."""
    builder = LAST_STAGES.get(cfg.MODEL.BACKBONE.NAME)
    if builder:
        return builder.build(cfg)
    return ResNetLastStage(*_build_stage(cfg, 5, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 4))


@BACKBONE_REGISTRY.register()
def build_slim_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNet:
    """Stem to res4 of a ResNet-10, 18 or 34 of any width, for training from scratch.

    Detectron2's builder fixes the width of ResNet-18 and 34 for ImageNet weights, and has no ResNet-10.

    Raises:
        ConfigError: MODEL.RESNETS.DEPTH or OUT_FEATURES is not supported.
    """
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in (10, 18, 34) or list(resnets.OUT_FEATURES) != ["res4"]:
        raise ConfigError(
            f"build_slim_resnet_backbone: MODEL.RESNETS.DEPTH {resnets.DEPTH} with outputs {resnets.OUT_FEATURES}, "
            "expected 10, 18 or 34 with ['res4']"
        )
    stem = BasicStem(input_shape.channels, resnets.STEM_OUT_CHANNELS, norm=resnets.NORM)
    stages, channels = [], resnets.STEM_OUT_CHANNELS
    for stage in (2, 3, 4):
        stages.append(_build_stage(cfg, stage, channels))
        channels = resnets.RES2_OUT_CHANNELS * 2 ** (stage - 2)
    return ResNet(stem, stages, out_features=["res4"], freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT)


def _build_stage(cfg: CfgNode, stage: int, in_channels: int) -> list[nn.Module]:
    resnets = cfg.MODEL.RESNETS
    if resnets.DEPTH not in _BLOCKS:
        raise ConfigError(f"MODEL.RESNETS.DEPTH is {resnets.DEPTH}, expected one of {', '.join(map(str, _BLOCKS))}")
    blocks = _BLOCKS[resnets.DEPTH][stage - 2]
    bottleneck = {
        "bottleneck_channels": resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 2 ** (stage - 2),
        "num_groups": resnets.NUM_GROUPS,
        "stride_in_1x1": resnets.STRIDE_IN_1X1,
    }
    return ResNet.make_stage(
        BottleneckBlock if resnets.DEPTH >= 50 else BasicBlock,
        blocks,
        stride_per_block=[1 if stage == 2 else 2] + [1] * (blocks - 1),
        in_channels=in_channels,
        out_channels=resnets.RES2_OUT_CHANNELS * 2 ** (stage - 2),
        norm=resnets.NORM,
        **(bottleneck if resnets.DEPTH >= 50 else {}),
    )
