"""timm backbones, split into a trunk for whole images and a last stage for RoIs and crops."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ..errors import ConfigError
from ..values import check_values
from .backbone import LAST_STAGES, LastStage, LastStageBuilder
from .layers import FusedFrozenBatchNorm2d, fold_batch_norm

# Name of the trunk's output for every network, as in MODEL.RPN.IN_FEATURES and MODEL.ROI_HEADS.IN_FEATURES.
OUTPUT = "res4"
# Strides of trunk and last stage in timm's feature_info.
_TRUNK_REDUCTION, _LAST_REDUCTION = 16, 32
# Side in pixels of the images used to compare a split network with the original.
_PROBE = 64
# Final normalization that is part of a network's features (Swin, ConvNeXt).
_FINAL_NORMS = ("norm", "norm_pre")


@dataclass(frozen=True)
class Cut:
    """Split of a timm network.

    Attributes:
        trunk, last: dotted module names of trunk and last stage, in execution order.
        frozen: number of `trunk` modules frozen by MODEL.BACKBONE.FREEZE_AT 0, 1, 2, 3 and 4.
        channels: output channels of trunk and last stage.
        index: position of the trunk's output among the network's features.
        channels_last: whether the modules work on (B, H, W, C).
    """

    trunk: list[str]
    last: list[str]
    frozen: list[int]
    channels: tuple[int, int]
    index: int
    channels_last: bool


class _StagedNetwork(Protocol):
    """timm network with access to the output of every stage."""

    def forward_intermediates(self, x: Tensor, *, norm: bool, intermediates_only: bool) -> list[Tensor]: ...


class FrozenBatchNormAct2d(FusedFrozenBatchNorm2d):
    """timm's `BatchNormAct2d` with frozen statistics and affine parameters: normalization, then activation."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """
        Args:
            norm: layer to copy values and, if present, the activation from.
        """
        super().__init__(norm.num_features, norm.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(self, name, getattr(norm, name).detach().clone())
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """Normalized, activated features: (B, C, H, W) -> (B, C, H, W), dtype kept."""
        return self.act(self.drop(super().forward(x)))


class _Steps(nn.Module):
    """Sequence of a network's modules under their original names, applied to (B, C, H, W)."""

    def __init__(self, network: nn.Module, names: Sequence[str], channels_last: bool) -> None:
        super().__init__()
        self._names, self._channels_last = list(names), channels_last
        self._input_last = False
        self._example: tuple[int, ...] = (1, 3, _PROBE, _PROBE)
        for name in names:
            *parents, own = name.split(".")
            parent: nn.Module = self
            for part in parents:
                if part not in dict(parent.named_children()):
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(own, network.get_submodule(name))

    def _run(self, x: Tensor) -> Tensor:
        if self._channels_last and self._input_last:
            x = x.permute(0, 2, 3, 1)
        for name in self._names:
            x = self.get_submodule(name)(x)
        return x.permute(0, 3, 1, 2).contiguous() if self._channels_last else x

    @torch.no_grad()
    def fold_batch_norms(self) -> int:
        """Folds frozen batch normalization into the preceding convolutions; returns the number of layers folded.

        A forward pass finds the convolution that each normalization follows.

        Raises:
            ConfigError: folding changes the network's output.
        """
        training, example = self.training, torch.randn(self._example, generator=torch.Generator().manual_seed(0))
        self.eval()
        example = example.to(next(self.parameters()).device)
        pairs = _norms_behind_convolutions(self, lambda: self._run(example))
        before = self._run(example)
        parents = {child: (parent, name) for parent in self.modules() for name, child in parent.named_children()}
        for conv, norm in pairs:
            fold_batch_norm(conv, norm)
            parent, name = parents[norm]
            setattr(
                parent, name, nn.Sequential(getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity()))
            )
        if not torch.allclose(self._run(example), before, rtol=1e-2, atol=1e-3 * float(before.abs().max())):
            raise ConfigError("TEST.FOLD_BATCH_NORM is True, which this timm network does not support: set it to False")
        self.train(training)
        return len(pairs)


class TimmTrunk(_Steps, Backbone):
    """Stages of a timm network up to stride 16, as Detectron2's `Backbone` with the output "res4".

    Images are zero-padded at the bottom and on the right to a multiple of the stride, so that no stage drops pixels and
    cells are aligned alike in images of any size.
    """

    def __init__(self, network: nn.Module, name: str, cut: Cut, stride: int, channels: int = 3) -> None:
        """
        Args:
            network: the whole network, from which the modules are taken.
            name: name of the network in timm.
            cut: see `find_cut`.
            stride: stride of the output in pixels.
            channels: number of image channels.
        """
        super().__init__(network, cut.trunk, cut.channels_last)
        self.name = name
        self._stride, self._channels = stride, cut.channels[0]
        self._example = (1, channels, _PROBE, _PROBE)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Features {"res4": (B, C4, ceil(H / stride), ceil(W / stride))} of images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        bottom, right = -height % _TRUNK_REDUCTION, -width % _TRUNK_REDUCTION
        if torch.jit.is_tracing() or bottom or right:  # a traced model gets images with other remainders
            images = F.pad(images, (0, right, 0, bottom))
        features = self._run(images)
        return {OUTPUT: features[..., : -(-height // self._stride), : -(-width // self._stride)]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Shape of the output: its channels and stride."""
        return {OUTPUT: ShapeSpec(channels=self._channels, stride=self._stride)}

    def freeze(self, steps: int) -> None:
        """Freezes parameters and statistics of the first `steps` modules."""
        for name in self._names[:steps]:
            *parents, own = name.split(".")
            parent = self.get_submodule(".".join(parents))
            frozen = freeze_norms(getattr(parent, own))
            frozen.requires_grad_(False)
            setattr(parent, own, frozen)


class TimmLastStage(_Steps, LastStage):
    """Last stage of a timm network, for RoIs and crops: (R, C4, h, w) -> (R, C5, ceil(h / 2), ceil(w / 2))."""

    def __init__(self, network: nn.Module, cut: Cut) -> None:
        """
        Args:
            network: the whole network, from which the modules are taken.
            cut: see `find_cut`.
        """
        super().__init__(network, cut.last, cut.channels_last)
        self._input_last = True
        self._example = (1, cut.channels[0], 4, 4)
        self._cuts_off = False
        with torch.no_grad():
            self._cuts_off = self._run(torch.zeros(1, cut.channels[0], 2, 3)).shape[3] < 2
        self.fixed_by_tracing = self._cuts_off or cut.channels_last  # padding and windows depend on the size

    def forward(self, features: Tensor) -> Tensor:
        """Features of RoIs; see the class. An odd last row or column, which some networks drop, is kept."""
        height, width = features.shape[-2:]
        # Window partitioning fails on no rows; a row of zeros keeps the graph connected.
        if not torch.jit.is_tracing() and not len(features):
            return self.forward(features.new_zeros(1, *features.shape[1:]))[:0]
        if self._cuts_off and (height % 2 or width % 2):
            features = F.pad(features, (0, width % 2, 0, height % 2), mode="replicate")
        return self._run(features)


# ---------------------------------------------------------------------- building


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmTrunk:
    """Trunk of the network described by MODEL.TIMM, up to stride 16, without weights (MODEL.WEIGHTS loads them).

    MODEL.BACKBONE.FREEZE_AT works as for a ResNet: 1 freezes the stem, 2 up to stride 4, 3 up to 8, 4 the whole trunk.

    Raises:
        ConfigError: timm has no such network, the network has no stages, or it does not support the keys.
    """
    timm_cfg = cfg.MODEL.TIMM
    check_values(cfg, ["MODEL.TIMM.STRIDE", "MODEL.BACKBONE.FREEZE_AT"])
    network = create_network(timm_cfg.NAME, input_shape.channels)
    cut = find_cut(network, timm_cfg.NAME)
    _compare(network, cut, timm_cfg.NAME, input_shape.channels)
    if timm_cfg.STRIDE != _TRUNK_REDUCTION:
        network = create_network(timm_cfg.NAME, input_shape.channels, output_stride=timm_cfg.STRIDE)
    trunk = TimmTrunk(network, timm_cfg.NAME, cut, timm_cfg.STRIDE, input_shape.channels)
    trunk.freeze(cut.frozen[cfg.MODEL.BACKBONE.FREEZE_AT])
    return freeze_norms(trunk) if timm_cfg.FROZEN_NORM else trunk


def build_timm_last_stage(cfg: CfgNode) -> TimmLastStage:
    """New last stage of the network described by MODEL.TIMM, without weights.

    Raises:
        ConfigError: see `build_timm_backbone`.
    """
    network = create_network(cfg.MODEL.TIMM.NAME)
    stage = TimmLastStage(network, find_cut(network, cfg.MODEL.TIMM.NAME))
    return freeze_norms(stage) if cfg.MODEL.TIMM.FROZEN_NORM else stage


def timm_last_channels(cfg: CfgNode) -> int:
    """Number of output channels of the last stage of the network described by MODEL.TIMM."""
    return find_cut(create_network(cfg.MODEL.TIMM.NAME), cfg.MODEL.TIMM.NAME).channels[1]


LAST_STAGES["build_timm_backbone"] = LastStageBuilder(build_timm_last_stage, timm_last_channels)


def create_network(name: str, channels: int = 3, **options: Any) -> nn.Module:
    """timm network for images of any size, without weights or stochastic depth, in evaluation mode.

    Args:
        name: name in timm, such as "tf_efficientnet_lite2" or "convnext_tiny.fb_in22k".
        channels: number of image channels.
        options: arguments of the network, such as `output_stride`.

    Raises:
        ConfigError: timm has no network of that name, or the network does not take the options.
    """
    timm = import_timm()
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0].split('_')[0]}*")[:5]
        hint = f"; it has {', '.join(near)}, ..." if near else ""
        raise ConfigError(f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have{hint}")
    kwargs = {"pretrained": False, "in_chans": channels, "num_classes": 0}
    try:
        network = _create_for_any_size(timm, name, {**kwargs, **options})
    except (TypeError, NotImplementedError, AssertionError) as error:
        keys = " and MODEL.TIMM.STRIDE 8" if "output_stride" in options else ""
        raise ConfigError(f"MODEL.TIMM.NAME {name!r}{keys}: timm cannot build it ({_first_line(error)})") from error
    for module in network.modules():
        if isinstance(module, timm.layers.DropPath):
            module.drop_prob = 0.0
    return network.eval()


def import_timm() -> Any:
    """Module timm, imported on demand since that takes seconds.

    Raises:
        ConfigError: timm is not installed.
    """
    try:
        import timm
        import timm.layers
    except ImportError as error:
        raise ConfigError(
            "MODEL.BACKBONE.NAME build_timm_backbone needs the package timm: install it with pip install timm"
        ) from error
    return timm


def find_cut(network: nn.Module, name: str) -> Cut:
    """Split of a network after its last stage of stride 16.

    Args:
        network: a timm network.
        name: its name, for messages.

    Raises:
        ConfigError: the network has no stages of strides 16 and 32.
    """
    levels = [dict(level) for level in getattr(network, "feature_info", [])]
    reductions = [level["reduction"] for level in levels]
    if _TRUNK_REDUCTION not in reductions or reductions[-1:] != [_LAST_REDUCTION]:
        raise ConfigError(
            f"MODEL.TIMM.NAME is {name!r}, which has no stages of strides 16 and 32 (its strides are {reductions}): "
            "choose a staged network, such as a ResNet, ConvNeXt, EfficientNet or Swin"
        )
    index = len(reductions) - 1 - reductions[::-1].index(_TRUNK_REDUCTION)
    ends = [level["module"] for level in levels]
    steps = _steps_up_to(network, ends, name)
    first_last = steps.index(ends[index]) + 1
    trunk = steps[:first_last]
    stem = next(steps.index(end) for end, own in zip(ends, reductions, strict=True) if own > 2)
    frozen = [0, stem]
    for reduction in (4, 8, 16):
        ending = [end for end, own in zip(ends, reductions, strict=True) if own <= reduction]
        frozen.append(max(stem, steps.index(ending[-1]) + 1) if ending else stem)
    return Cut(
        trunk=trunk,
        last=steps[first_last:],
        frozen=frozen,
        channels=(levels[index]["num_chs"], levels[-1]["num_chs"]),
        index=index,
        channels_last=getattr(network, "output_fmt", "NCHW") == "NHWC",
    )


def freeze_norms(module: nn.Module) -> Any:
    """Module with every `BatchNorm2d` replaced by a frozen one of the same name."""
    if isinstance(module, nn.BatchNorm2d):
        return FrozenBatchNormAct2d(module)
    for name, child in list(module.named_children()):
        setattr(module, name, freeze_norms(child))
    return module


def _norms_behind_convolutions(module: nn.Module, run: Callable[[], Any]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the frozen normalization applied to its output."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # tensors are kept alive, so ids stay unique
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def seen(conv: nn.Conv2d, _: Any, output: Tensor) -> None:
        outputs[id(output)] = (conv, output)

    def reads(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in outputs:
            pairs.append((outputs[id(inputs[0])][0], norm))

    handles = []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(layer.register_forward_hook(seen))
        elif isinstance(layer, (FusedFrozenBatchNorm2d, nn.BatchNorm2d)):
            handles.append(layer.register_forward_pre_hook(reads))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def _create_for_any_size(timm: Any, name: str, kwargs: dict[str, Any]) -> nn.Module:
    """timm network for images of any size: window-based ones need an argument that others do not know."""
    try:
        return timm.create_model(name, strict_img_size=False, **kwargs)
    except TypeError as error:
        if "strict_img_size" not in str(error):
            raise
        return timm.create_model(name, **kwargs)


def _steps_up_to(network: nn.Module, ends: Sequence[str], name: str) -> list[str]:
    """Names of the modules applied in sequence up to the last feature, with feature containers unpacked."""
    containers = {end.rpartition(".")[0] for end in ends} - {""}
    steps: list[str] = []
    for child, module in network.named_children():
        if child in containers:
            steps += [f"{child}.{inner}" for inner, _ in module.named_children()]
        elif ends[-1] not in steps or child in _FINAL_NORMS:
            steps.append(child)
    if not set(ends) <= set(steps):
        raise ConfigError(f"MODEL.TIMM.NAME is {name!r}, whose stages are not separate modules: choose another network")
    return steps


@torch.no_grad()
def _compare(network: nn.Module, cut: Cut, name: str, channels: int) -> None:
    """Raises a ConfigError if the network is not equal to its modules applied in sequence."""
    images = torch.linspace(-1, 1, channels * _PROBE * _PROBE).reshape(1, channels, _PROBE, _PROBE).sin()
    # nn.Module types every unknown attribute as tensor or module.
    staged = cast(_StagedNetwork, network)
    whole = staged.forward_intermediates(images, norm=True, intermediates_only=True)
    network = copy.deepcopy(network)
    features = TimmTrunk(network, name, cut, _TRUNK_REDUCTION, channels)(images)[OUTPUT]
    last = TimmLastStage(network, cut)(features)
    for ours, theirs in ((features, whole[cut.index]), (last, whole[-1])):
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
            raise ConfigError(
                f"MODEL.TIMM.NAME is {name!r}, which cannot be split into trunk and last stage without changing its "
                "output: choose another network"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
