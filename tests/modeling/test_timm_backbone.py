"""Networks of timm cut into trunk and last stage: the same function, any size of image, and the whole model on them."""

from __future__ import annotations

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from person_search.errors import ConfigError
from person_search.modeling.backbone import build_res5, res5_channels
from person_search.modeling.exemplars import fits_a_mosaic
from person_search.modeling.layers import fold_batch_norms
from person_search.modeling.timm_backbone import build_timm_backbone

from .scenes import scene

LITE = "tf_efficientnet_lite0"


def timm_cfg(cfg: CfgNode, name: str = LITE, freeze_at: int = 0, **keys: object) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    cfg.MODEL.TIMM.NAME = name
    cfg.MODEL.TIMM.merge_from_list([x for key, value in keys.items() for x in (key, value)])
    return cfg


def build(cfg: CfgNode) -> tuple[torch.nn.Module, torch.nn.Module]:
    torch.manual_seed(0)
    return build_timm_backbone(cfg, ShapeSpec(channels=3)).eval(), build_res5(cfg).eval()


def give_statistics(module: torch.nn.Module) -> None:
    """Batch normalization with statistics and scales of its own, as a trained network has."""
    torch.manual_seed(1)
    for layer in module.modules():
        if hasattr(layer, "running_var"):
            for name in ("weight", "running_var"):
                getattr(layer, name).data.uniform_(0.5, 1.5)
            for name in ("bias", "running_mean"):
                getattr(layer, name).data.normal_(std=0.1)


def whole_network(name: str) -> torch.nn.Module:
    options = {"strict_img_size": False} if name.startswith("swin") else {}
    network = timm.create_model(name, pretrained=False, num_classes=0, **options).eval()
    give_statistics(network)
    return network


@pytest.mark.parametrize("name", ["resnet18", LITE, "convnext_atto", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_trunk_and_last_stage_are_the_whole_network(narrow_cfg, name):
    cfg = timm_cfg(narrow_cfg, name)
    trunk, last = build(cfg)
    whole = whole_network(name)
    weights = whole.state_dict()
    for part in (trunk, last):  # under the network's own names
        own = part.state_dict()
        assert set(own) <= set(weights)
        part.load_state_dict({key: weights[key] for key in own})
    images = torch.randn(2, 3, 96, 64)
    features = trunk(images)["res4"]
    result = last(features)
    expected = whole.forward_features(images)
    if name.startswith("swin"):
        expected = expected.permute(0, 3, 1, 2)
    if name == LITE:  # which ends in a convolution for its classifier
        result = whole.bn2(whole.conv_head(result))
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert trunk.output_shape()["res4"] == ShapeSpec(channels=features.shape[1], stride=16)
    assert last(features).shape[1] == res5_channels(cfg)


@pytest.mark.parametrize("name", ["resnet18", LITE, "convnext_atto", "swin_tiny_patch4_window7_224"])
@torch.no_grad()
def test_crops_of_any_size_and_no_crop_at_all(narrow_cfg, name):
    trunk, last = build(timm_cfg(narrow_cfg, name))
    for height, width in ((53, 21), (7, 5), (48, 16)):
        features = trunk(torch.randn(1, 3, height, width))["res4"]
        assert features.shape[2:] == (-(-height // 16), -(-width // 16))
        assert last(features).shape[2:] == (-(-height // 32), -(-width // 32))
    channels = trunk.output_shape()["res4"].channels
    assert last(torch.zeros(0, channels, 6, 4)).shape == (0, last(torch.zeros(1, channels, 2, 2)).shape[1], 3, 2)


@torch.no_grad()
def test_a_column_left_over_is_seen(narrow_cfg):
    _, last = build(timm_cfg(narrow_cfg, "convnext_atto"))
    features = torch.randn(1, 160, 2, 3)
    moved = features.clone()
    moved[..., 2] += 1
    assert not torch.equal(last(features), last(moved))


@torch.no_grad()
def test_a_dilated_trunk_is_the_strided_one_seen_more_densely(narrow_cfg):
    coarse, _ = build(timm_cfg(narrow_cfg, "resnet18"))
    fine, last = build(timm_cfg(narrow_cfg, "resnet18", STRIDE=8))
    give_statistics(coarse)
    fine.load_state_dict(coarse.state_dict())
    images = torch.randn(1, 3, 64, 96)
    dense = fine(images)["res4"]
    assert fine.output_shape()["res4"].stride == 8 and dense.shape[2:] == (8, 12)
    torch.testing.assert_close(dense[..., ::2, ::2], coarse(images)["res4"], rtol=1e-4, atol=1e-4)
    assert fine(torch.randn(1, 3, 40, 24))["res4"].shape[2:] == (5, 3)
    assert last(dense).shape[2:] == (4, 6)


@pytest.mark.parametrize(
    ("freeze_at", "frozen"),
    [
        (0, []), (1, ["conv_stem", "blocks.0"]), (2, ["conv_stem", "blocks.0", "blocks.1"]),
        (4, ["conv_stem", *(f"blocks.{i}" for i in range(5))]),
    ],
)  # fmt: skip
def test_freezing_counts_strides(narrow_cfg, freeze_at, frozen):
    trunk, _ = build(timm_cfg(narrow_cfg, freeze_at=freeze_at, FROZEN_NORM=False))
    trunk.train()
    for name, layer in trunk.named_modules():
        still = name.startswith(tuple(f"{part}." for part in frozen)) or name in frozen
        if isinstance(layer, torch.nn.Conv2d):
            assert layer.weight.requires_grad != still, name
        if hasattr(layer, "running_var") and name != "bn1":
            assert isinstance(layer, torch.nn.BatchNorm2d) != still, name
    assert isinstance(trunk.bn1, torch.nn.BatchNorm2d) == (freeze_at == 0)


def test_frozen_normalization_is_that_of_evaluation_and_lets_gradients_pass(narrow_cfg):
    learning, _ = build(timm_cfg(narrow_cfg, FROZEN_NORM=False))
    give_statistics(learning)
    frozen, _ = build(timm_cfg(narrow_cfg))
    frozen.load_state_dict({k: v for k, v in learning.state_dict().items() if k in frozen.state_dict()})
    images = torch.randn(2, 3, 64, 64)
    output = frozen.train()(images)["res4"]
    torch.testing.assert_close(output, learning(images)["res4"], rtol=1e-4, atol=1e-4)
    output.square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in frozen.parameters())
    before = {k: v.clone() for k, v in frozen.state_dict().items() if "running" in k}
    frozen(images)
    assert before and all(torch.equal(frozen.state_dict()[k], v) for k, v in before.items())


@pytest.mark.parametrize("frozen_norm", [True, False])
@pytest.mark.parametrize("name", [LITE, "resnet18"])
@torch.no_grad()
def test_folded_normalization_is_the_same_function(narrow_cfg, name, frozen_norm):
    trunk, last = build(timm_cfg(narrow_cfg, name, FROZEN_NORM=frozen_norm))
    model = torch.nn.ModuleList([trunk, last])
    give_statistics(model)
    images = torch.randn(1, 3, 64, 96)
    expected = last(trunk(images)["res4"])
    norms = sum(hasattr(m, "running_var") for m in model.modules())
    assert fold_batch_norms(model) == norms >= 20
    assert not any(hasattr(m, "running_var") for m in model.modules())
    torch.testing.assert_close(last(trunk(images)["res4"]), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("efficientnet_lite", {}, "'efficientnet_lite', which timm .* does not have; it has"),
        ("vit_tiny_patch16_224", {}, "vit_tiny_patch16_224', which has no stages of strides 16 and 32"),
        ("hrnet_w18_small", {}, "hrnet_w18_small', whose stages are not separate modules"),
        ("ghostnet_050", {}, "ghostnet_050', which cannot be split into trunk and last stage"),
        (
            "mobilenetv3_small_050",
            {"STRIDE": 8},
            "mobilenetv3_small_050' and MODEL.TIMM.STRIDE 8: timm cannot build it",
        ),
        (LITE, {"STRIDE": 4}, "MODEL.TIMM.STRIDE is 4, expected 16 or 8"),
        (LITE, {"freeze_at": 5}, "MODEL.BACKBONE.FREEZE_AT is 5, expected a number from 0 to 4: 0 freezes nothing"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(narrow_cfg, name, keys, message):
    with pytest.raises(ConfigError, match=message) as refusal:
        build(timm_cfg(narrow_cfg, name, **keys))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("shared", [True, False])
def test_the_whole_model_embeds_persons_and_crops(narrow_cfg, shared):
    cfg = timm_cfg(narrow_cfg, freeze_at=2)
    cfg.merge_from_list([
        *("SSL.EXEMPLAR.SHARED_BACKBONE", shared, "SSL.EXEMPLAR.SCALES", ((32, 16), (48, 20))),
        *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", 6, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 8),
    ])  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    assert not fits_a_mosaic(model.backbone, build_res5(cfg))
    rows, persons, exemplars = model.embed_persons([scene(), scene()])
    assert rows.tolist() == [3, 1, 3, 1] and persons.shape == exemplars.shape == (4, 16)
    model.eval()
    with torch.no_grad():
        (output,) = model([{**scene(), "given_boxes": scene()["instances"].gt_boxes.tensor}])
    torch.testing.assert_close(output["given_embeddings"].norm(dim=1), torch.ones(2))
    if not shared:
        separate = model.exemplar_branch.separate.state_dict()
        assert torch.equal(separate["backbone.conv_stem.weight"], model.backbone.conv_stem.weight)
