"""ResNet stages behind the shared backbone: the copies of res5 that the heads apply to RoI features."""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling.backbone.resnet import BottleneckBlock, ResNet
from torch import nn


def res5_channels(cfg: CfgNode) -> int:
    """Output channels of res5."""
    return cfg.MODEL.RESNETS.RES2_OUT_CHANNELS * 8


def build_res5(cfg: CfgNode) -> nn.Sequential:
    """A res5 of its own, (R, C4, h, w) -> (R, C5, h/2, w/2), for a bottleneck ResNet (depth 50, 101 or 152)."""
    resnets = cfg.MODEL.RESNETS
    out_channels = res5_channels(cfg)
    blocks = ResNet.make_stage(
        BottleneckBlock,
        3,
        stride_per_block=[2, 1, 1],
        in_channels=out_channels // 2,
        bottleneck_channels=resnets.NUM_GROUPS * resnets.WIDTH_PER_GROUP * 8,
        out_channels=out_channels,
        num_groups=resnets.NUM_GROUPS,
        norm=resnets.NORM,
        stride_in_1x1=resnets.STRIDE_IN_1X1,
    )
    return nn.Sequential(*blocks)
