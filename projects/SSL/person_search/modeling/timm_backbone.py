"""Backbones of timm cut in two: a trunk over whole images, and a last stage that each head and the exemplars own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from ..errors import ConfigError
from ..values import check_values
from .backbone import LAST_STAGES, LastStage, LastStageBuilder
from .layers import FusedFrozenBatchNorm2d

# Name of the trunk's output, whatever the network calls it: that of a ResNet, which MODEL.RPN.IN_FEATURES and
# MODEL.ROI_HEADS.IN_FEATURES name.
OUTPUT = "res4"
# Stride of the trunk's last stage and of the last stage behind it, as timm counts them.
_TRUNK_REDUCTION, _LAST_REDUCTION = 16, 32
# Side of the images with which a cut network is compared with the whole one.
_PROBE = 64
# Normalisation behind the last stage that belongs to a network's features (Swin, ConvNeXt).
_FINAL_NORMS = ("norm", "norm_pre")


@dataclass(frozen=True)
class Cut:
    """Place where a network of timm is cut.

    Attributes:
        trunk, last: dotted names of the modules, each in the order in which they run.
        frozen: how many of `trunk` MODEL.BACKBONE.FREEZE_AT 0, 1, 2, 3 and 4 freeze.
        channels: output channels of trunk and last stage.
        index: place of the trunk's output among the network's features.
        channels_last: whether its modules pass (B, H, W, C) on.
    """

    trunk: list[str]
    last: list[str]
    frozen: list[int]
    channels: tuple[int, int]
    index: int
    channels_last: bool


class FrozenBatchNormAct2d(FusedFrozenBatchNorm2d):
    """timm's `BatchNormAct2d` with fixed statistics and affine parameters: normalisation, then the activation."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        """
        Args:
            norm: the layer whose values, and activation where it has one, it takes over.
        """
        super().__init__(norm.num_features, norm.eps)
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(self, name, getattr(norm, name).detach().clone())
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W) of the same type."""
        return self.act(self.drop(super().forward(x)))


class _Steps(nn.Module):
    """Modules of a network, under the network's own names, that run one after another on (B, C, H, W)."""

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
        """Multiplies batch normalisation of fixed statistics into the convolutions before it; returns how many.

        Which convolution a normalisation follows is found by running the modules once.

        Raises:
            ConfigError: the network does more with its convolutions, so that it would no longer be the same function.
        """
        training, example = self.training, torch.randn(self._example, generator=torch.Generator().manual_seed(0))
        self.eval()
        example = example.to(next(self.parameters()).device)
        pairs = _norms_behind_convolutions(self, lambda: self._run(example))
        before = self._run(example)
        parents = {child: (parent, name) for parent in self.modules() for name, child in parent.named_children()}
        for conv, norm in pairs:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            parent, name = parents[norm]
            setattr(
                parent, name, nn.Sequential(getattr(norm, "drop", nn.Identity()), getattr(norm, "act", nn.Identity()))
            )
        if not torch.allclose(self._run(example), before, rtol=1e-2, atol=1e-3 * float(before.abs().max())):
            raise ConfigError(
                "TEST.FOLD_BATCH_NORM is True, which this network of timm does not allow: set it to False"
            )
        self.train(training)
        return len(pairs)


class TimmTrunk(_Steps, Backbone):
    """The stages of a timm network up to stride 16, as Detectron2's `Backbone` with the output "res4".

    Images whose sides are no multiples of the stride are padded with zeros on the right and below, so that no stage
    cuts off what is left over, and cells lie alike in images of any size.
    """

    def __init__(self, network: nn.Module, name: str, cut: Cut, stride: int, channels: int = 3) -> None:
        """
        Args:
            network: the whole network; its modules become this one's.
            name: timm's name of it.
            cut: see `find_cut`.
            stride: of the output, in pixels.
            channels: of the images.
        """
        super().__init__(network, cut.trunk, cut.channels_last)
        self.name = name
        self._stride, self._channels = stride, cut.channels[0]
        self._example = (1, channels, _PROBE, _PROBE)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) -> {"res4": (B, C4, ceil(H / stride), ceil(W / stride))}."""
        height, width = images.shape[-2:]
        bottom, right = -height % _TRUNK_REDUCTION, -width % _TRUNK_REDUCTION
        if torch.jit.is_tracing() or bottom or right:  # the example's remainder is not that of other images
            images = F.pad(images, (0, right, 0, bottom))
        features = self._run(images)
        return {OUTPUT: features[..., : -(-height // self._stride), : -(-width // self._stride)]}

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Channels and stride of the output."""
        return {OUTPUT: ShapeSpec(channels=self._channels, stride=self._stride)}

    def freeze(self, steps: int) -> None:
        """Fixes the parameters and statistics of the first steps."""
        for name in self._names[:steps]:
            *parents, own = name.split(".")
            parent = self.get_submodule(".".join(parents))
            frozen = freeze_norms(getattr(parent, own))
            frozen.requires_grad_(False)
            setattr(parent, own, frozen)


class TimmLastStage(_Steps, LastStage):
    """The last stage of a timm network, for RoIs and crops: (R, C4, h, w) -> (R, C5, ceil(h / 2), ceil(w / 2))."""

    def __init__(self, network: nn.Module, cut: Cut) -> None:
        """
        Args:
            network: the whole network; its modules become this one's.
            cut: see `find_cut`.
        """
        super().__init__(network, cut.last, cut.channels_last)
        self._input_last = True
        self._example = (1, cut.channels[0], 4, 4)
        self._cuts_off = False
        with torch.no_grad():
            self._cuts_off = self._run(torch.zeros(1, cut.channels[0], 2, 3)).shape[3] < 2
        self.fixed_by_tracing = self._cuts_off or cut.channels_last  # sizes decide what is padded, parted into windows

    def forward(self, features: Tensor) -> Tensor:
        """See the class. A last odd row or column, which some networks would drop, counts."""
        height, width = features.shape[-2:]
        # Windows cannot be parted without any; a row of zeros keeps the graph whole.
        if not torch.jit.is_tracing() and not len(features):
            return self.forward(features.new_zeros(1, *features.shape[1:]))[:0]
        if self._cuts_off and (height % 2 or width % 2):
            features = F.pad(features, (0, width % 2, 0, height % 2), mode="replicate")
        return self._run(features)


# ---------------------------------------------------------------------- building


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmTrunk:
    """The stages up to stride 16 of the network that MODEL.TIMM describes, without weights (MODEL.WEIGHTS loads them).

    MODEL.BACKBONE.FREEZE_AT counts as for a ResNet: 1 freezes the stem, 2 all up to stride 4, 3 up to 8, 4 the trunk.

    Raises:
        ConfigError: timm has no such network, it has no stages, or it cannot be changed as the keys say.
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
    """A last stage of its own for the network that MODEL.TIMM describes, without weights.

    Raises:
        ConfigError: see `build_timm_backbone`.
    """
    network = create_network(cfg.MODEL.TIMM.NAME)
    stage = TimmLastStage(network, find_cut(network, cfg.MODEL.TIMM.NAME))
    return freeze_norms(stage) if cfg.MODEL.TIMM.FROZEN_NORM else stage


def timm_last_channels(cfg: CfgNode) -> int:
    """Output channels of the last stage of the network that MODEL.TIMM describes."""
    return find_cut(create_network(cfg.MODEL.TIMM.NAME), cfg.MODEL.TIMM.NAME).channels[1]


LAST_STAGES["build_timm_backbone"] = LastStageBuilder(build_timm_last_stage, timm_last_channels)


def create_network(name: str, channels: int = 3, **options: Any) -> nn.Module:
    """A network of timm without weights, in evaluation mode, without stochastic depth, for images of any size.

    Args:
        name: timm's name of it, such as "tf_efficientnet_lite2" or "convnext_tiny.fb_in22k".
        channels: of the images.
        options: arguments of the network, such as `output_stride`.

    Raises:
        ConfigError: timm has no network of that name, or it does not take the options.
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
    """The module timm, which takes seconds to import and only networks of timm need.

    Raises:
        ConfigError: it is not installed.
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
    """Place where a network is cut: behind its last stage of stride 16.

    Args:
        network: a network of timm.
        name: timm's name of it, for messages.

    Raises:
        ConfigError: it has no stages of strides 16 and 32.
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
    """The module with every `BatchNorm2d` in it replaced by one of fixed statistics, under the same names."""
    if isinstance(module, nn.BatchNorm2d):
        return FrozenBatchNormAct2d(module)
    for name, child in list(module.named_children()):
        setattr(module, name, freeze_norms(child))
    return module


def _norms_behind_convolutions(module: nn.Module, run: Callable[[], Any]) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Pairs of a convolution and the normalisation of fixed statistics that reads its output."""
    outputs: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # with the tensors, so that no other gets the same id
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
    """Networks of windows take images of any size only when told so, and others do not know the argument."""
    try:
        return timm.create_model(name, strict_img_size=False, **kwargs)
    except TypeError as error:
        if "strict_img_size" not in str(error):
            raise
        return timm.create_model(name, **kwargs)


def _steps_up_to(network: nn.Module, ends: Sequence[str], name: str) -> list[str]:
    """The modules that run one after another up to the last feature, containers of features taken apart."""
    containers = {end.rpartition(".")[0] for end in ends} - {""}
    steps: list[str] = []
    for child, module in network.named_children():
        if child in containers:
            steps += [f"{child}.{inner}" for inner, _ in module.named_children()]
        elif ends[-1] not in steps or child in _FINAL_NORMS:
            steps.append(child)
    if not set(ends) <= set(steps):
        raise ConfigError(f"MODEL.TIMM.NAME is {name!r}, whose stages are not modules of their own: choose another")
    return steps


@torch.no_grad()
def _compare(network: nn.Module, cut: Cut, name: str, channels: int) -> None:
    """Refuses a network that does more than run its modules one after another."""
    images = torch.linspace(-1, 1, channels * _PROBE * _PROBE).reshape(1, channels, _PROBE, _PROBE).sin()
    whole = network.forward_intermediates(images, norm=True, intermediates_only=True)
    network = copy.deepcopy(network)
    features = TimmTrunk(network, name, cut, _TRUNK_REDUCTION, channels)(images)[OUTPUT]
    last = TimmLastStage(network, cut)(features)
    for ours, theirs in ((features, whole[cut.index]), (last, whole[-1])):
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5):
            raise ConfigError(
                f"MODEL.TIMM.NAME is {name!r}, which cannot be cut into trunk and last stage without changing what it "
                "computes: choose another"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
