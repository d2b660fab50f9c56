"""The exemplar branch beyond its crops."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.structures import BitMasks, Boxes, Instances
from person_search.modeling.backbone import build_res5
from person_search.modeling.embedding import GlobalPooling
from person_search.modeling.exemplars import ExemplarBranch, pool_crops
from person_search.modeling.layers import running_statistics
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


def test_exemplars_leave_the_running_statistics_alone():
    module = nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3).eval())
    before = module[0].running_mean.clone()
    with running_statistics(module):
        module(torch.randn(2, 3, 4, 4) + 5)
    assert torch.equal(module[0].running_mean, before)
    assert [m.training for m in module] == [True, False]


@pytest.fixture
def scenes() -> tuple[torch.Tensor, list[Instances]]:
    """Two images (2, 3, 120, 160) with three persons and one; masks of the first alone."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 120, 160, generator=generator)
    first = Instances((120, 160), gt_boxes=Boxes([[3.5, 8, 40.2, 100], [60, 10, 92, 70], [100, 30, 128, 66]]))
    first.gt_masks = BitMasks(torch.rand(3, 120, 160, generator=generator) < 0.7)
    return images, [first, Instances((110, 150), gt_boxes=Boxes([[20, 20, 90, 109]]))]


def build_branch(
    scales: Sequence[tuple[int, int]],
    *,
    original: bool = True,
    mask_background: bool = True,
    pooling: GlobalPooling | None = None,
    random_erasing: float = 0.0,
) -> ExemplarBranch:
    return ExemplarBranch(
        scales=scales,
        original=original,
        mask_background=mask_background,
        background=None,
        pooling=pooling or GlobalPooling(),
        separate=None,
        random_erasing=random_erasing,
    )


@pytest.mark.parametrize(("scales", "original"), [
    ([(48, 24), (96, 48), (28, 12)], True), ([(48, 24), (96, 48), (28, 12)], False), ([], True)
])  # fmt: skip
@pytest.mark.parametrize("way", ["in_one_pass", "size_by_size"])
def test_exemplars_are_those_of_each_crop_alone(narrow_cfg, scenes, device, scales, original, way, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    backbone, res5 = (module.to(device).train() for module in (build_backbone(narrow_cfg), build_res5(narrow_cfg)))
    for module in (*backbone.modules(), *res5.modules()):
        if isinstance(module, nn.BatchNorm2d):  # so that nothing outside the crops stays zero by itself
            nn.init.uniform_(module.bias, 0.1, 0.9)
    branch = build_branch(scales, original=original)
    images, targets = scenes[0].to(device), [target.to(device) for target in scenes[1]]
    crops = branch.crops(images, targets, [t.gt_boxes.tensor for t in scenes[1]])
    expected = []
    with running_statistics(backbone), running_statistics(res5):
        found = getattr(branch, way)(crops, backbone, res5)
        for person, size in enumerate(crops.sizes):
            alone = [crops.resized(scale)[[person]] for scale in scales]
            alone += [crops.cut([person], size)] if original else []
            expected += [pool_crops(crop, backbone, res5, GlobalPooling()) for crop in alone]
    for name in ("res4", "res5"):
        wanted = torch.cat([getattr(e, name) for e in expected])
        torch.testing.assert_close(getattr(found, name), wanted, rtol=1e-3, atol=1e-3)
    assert found.res4.requires_grad


def test_all_exemplars_take_one_pass_on_a_gpu_and_one_a_size_on_a_cpu(narrow_cfg, scenes, device):
    backbone, res5 = (module.to(device) for module in (build_backbone(narrow_cfg), build_res5(narrow_cfg)))
    passes = []
    backbone.stem.register_forward_hook(lambda *_: passes.append(1))
    branch = build_branch([(48, 24), (96, 48)])
    branch(
        scenes[0].to(device), [t.to(device) for t in scenes[1]], [t.gt_boxes.tensor for t in scenes[1]], backbone, res5
    )
    assert len(passes) == {"cuda": 1, "cpu": 6}[device]


@pytest.mark.parametrize(("kind", "stripes"), [("max", 3), ("average", 1), ("average", 4)])
def test_exemplars_are_pooled_as_regions_are(narrow_cfg, scenes, device, kind, stripes):
    torch.manual_seed(0)
    backbone, res5 = (module.to(device).eval() for module in (build_backbone(narrow_cfg), build_res5(narrow_cfg)))
    pooling = GlobalPooling(kind, stripes)
    branch = build_branch([(96, 48)], original=False, mask_background=False, pooling=pooling)
    images, targets = scenes[0].to(device), [target.to(device) for target in scenes[1]]
    boxes = [t.gt_boxes.tensor for t in scenes[1]]
    found = branch(images, targets, boxes, backbone, res5)
    features = backbone(branch.crops(images, targets, boxes).resized((96, 48)))["res4"]
    torch.testing.assert_close(found.res4, pooling(features))
    torch.testing.assert_close(found.res5, pooling(res5(features)))


def test_the_way_of_a_gpu_mixes_no_devices(narrow_cfg, scenes):
    """With tensors that know their device and no values, so that no GPU is needed."""
    backbone, res5 = build_backbone(narrow_cfg), build_res5(narrow_cfg)
    branch = build_branch([(48, 24), (96, 48)])
    crops = branch.crops(*scenes, [t.gt_boxes.tensor for t in scenes[1]])
    with FakeTensorMode(allow_non_fake_inputs=True):
        for module in (*backbone.modules(), *res5.modules()):
            for name, value in module.named_parameters(recurse=False):
                setattr(module, name, nn.Parameter(torch.empty_like(value, device="cuda")))
            for name, value in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(value, device="cuda"))
        sent = ("_planes", "_image", "_first", "_length", "_masks")
        for name in sent:
            setattr(crops, name, torch.empty_like(getattr(crops, name), device="cuda"))
        found = branch.in_one_pass(crops, backbone, res5)
        assert found.res4.device.type == found.res5.device.type == "cuda" and len(found.res4) == 4 * 3
        for name in sent:  # the test has teeth
            on_gpu = getattr(crops, name)
            setattr(crops, name, torch.empty_like(on_gpu, device="cpu"))
            with pytest.raises(RuntimeError, match="device"):
                branch.in_one_pass(crops, backbone, res5)
            setattr(crops, name, on_gpu)


def test_nothing_waits_for_a_gpu(narrow_cfg, scenes, gpu):
    backbone, res5 = (module.to(gpu) for module in (build_backbone(narrow_cfg), build_res5(narrow_cfg)))
    branch = build_branch([(48, 24), (96, 48)])
    images, targets = scenes[0].to(gpu), [t.to(gpu) for t in scenes[1]]
    torch.cuda.set_sync_debug_mode("error")
    try:
        branch(images, targets, [t.gt_boxes.tensor for t in scenes[1]], backbone, res5)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("original", [True, False])
@pytest.mark.parametrize("way", ["in_one_pass", "size_by_size"])
def test_random_erasing_paints_exemplars_in_training_alone(narrow_cfg, scenes, original, way):
    torch.manual_seed(0)
    backbone, res5 = build_backbone(narrow_cfg), build_res5(narrow_cfg)
    images, targets = scenes
    boxes = [t.gt_boxes.tensor for t in targets]

    def features(rate: float, training: bool = True) -> torch.Tensor:
        branch = build_branch([(48, 24)], original=original, mask_background=False, random_erasing=rate)
        with running_statistics(backbone), running_statistics(res5), torch.no_grad():
            return getattr(branch.train(training), way)(branch.crops(images, targets, boxes), backbone, res5).res4

    whole = features(0.0)
    assert torch.equal(features(1.0, training=False), whole)
    changed = (features(1.0) != whole).any(dim=1)
    assert changed.all()
    before = images.clone()
    features(1.0)
    assert torch.equal(images, before)
