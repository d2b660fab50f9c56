"""Batch normalisation folded into the convolutions before it: the same function of the image with fewer passes."""

from __future__ import annotations

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> int:
    """Multiplies the scales of batch normalisation into the convolutions, in place. For inference only.

    It applies to Detectron2's convolutions with a `norm` of fixed statistics: `FrozenBatchNorm2d`, or any
    `BatchNorm2d` in evaluation mode. Outputs stay the same but for rounding. Names in the state dict change, so that
    the model can neither be trained nor load a checkpoint afterwards.

    Args:
        model: with its weights.

    Returns:
        how many were folded.
    """
    folded = 0
    for conv in model.modules():
        norm = getattr(conv, "norm", None)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, (FrozenBatchNorm2d, nn.BatchNorm2d)):
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        conv.norm = None
        folded += 1
    return folded
