"""Faster inference: fewer proposals, half precision and channels-last give what they should."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from person_search.modeling.layers import fold_batch_norms


@pytest.fixture
def image() -> torch.Tensor:
    torch.manual_seed(1)
    coarse = torch.rand(1, 3, 9, 16)
    return (torch.nn.functional.interpolate(coarse, (144, 256), mode="bilinear")[0] * 255).to(torch.uint8)


@pytest.fixture
def build(balance, image):
    """The same random weights whatever the options, with scores on both sides of the thresholds."""

    def build(cfg: CfgNode, *options: object) -> torch.nn.Module:
        torch.manual_seed(5)
        plain = build_model(cfg)
        torch.manual_seed(6)
        plain.roi_heads.box_head.predictor.cls_score.weight.data.normal_(std=0.3)
        plain.proposal_generator.rpn_head.objectness_logits.weight.data.normal_(std=0.2)
        balance(plain, image)
        cfg = cfg.clone()
        cfg.merge_from_list(list(options))
        model = build_model(cfg).eval()
        model.load_state_dict(plain.state_dict())
        return model

    return build


@torch.no_grad()
def run(model: torch.nn.Module, image: torch.Tensor) -> dict:
    size = {"height": image.shape[1], "width": image.shape[2]}
    (output,) = model(
        [{"image": image, "given_boxes": torch.tensor([[20.0, 30, 60, 130], [100, 5, 150, 120]]), **size}]
    )
    return output


def box_head_boxes(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The proposals that reach the box head."""
    seen = []
    original = model.roi_heads.candidates
    model.roi_heads.candidates = lambda feature, proposals: (
        seen.append(proposals[0].proposal_boxes.tensor) or original(feature, proposals)
    )
    run(model, image)
    return seen[0]


def test_only_proposals_of_enough_objectness_reach_the_box_head(build, narrow_cfg, image):
    model = build(narrow_cfg)
    boxes = box_head_boxes(model, image)
    inputs = model.preprocess_image([{"image": image}])
    with torch.no_grad():
        ((proposals,), _) = model.proposal_generator(inputs, model.backbone(inputs.tensor), None)
    objectness = proposals.objectness_logits.sigmoid()
    assert len(boxes) == len(proposals) == narrow_cfg.MODEL.RPN.POST_NMS_TOPK_TEST
    threshold = float(objectness.median())
    few = build(narrow_cfg, "MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST", threshold)
    assert torch.equal(box_head_boxes(few, image), proposals.proposal_boxes.tensor[objectness >= threshold])
    assert 0 < len(box_head_boxes(few, image)) < len(boxes)


def test_dropping_weak_proposals_is_the_same_before_and_after_the_rpn_s_suppression(build, narrow_cfg, image):
    """A weaker box never suppresses a stronger one, so fewer proposals to the heads is all that changes."""
    many = build(narrow_cfg, "MODEL.RPN.POST_NMS_TOPK_TEST", 60)
    few = build(narrow_cfg, "MODEL.RPN.POST_NMS_TOPK_TEST", 9)
    assert torch.equal(box_head_boxes(few, image), box_head_boxes(many, image)[:9])


def test_without_any_proposal_nothing_is_detected_and_given_boxes_are_embedded(build, narrow_cfg, image):
    output = run(build(narrow_cfg, "MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST", 1.1), image)
    assert len(output["instances"]) == 0 and output["instances"].embeddings.shape == (0, 16)
    expected = run(build(narrow_cfg), image)["given_embeddings"]
    torch.testing.assert_close(output["given_embeddings"], expected, atol=1e-5, rtol=0)


def assert_close(found: dict, expected: dict, tolerance: float) -> None:
    for name in ("pred_boxes", "scores", "embeddings"):
        values = [getattr(output["instances"], name) for output in (found, expected)]
        left, right = (getattr(value, "tensor", value).cpu() for value in values)
        assert left.dtype == torch.float32
        torch.testing.assert_close(left, right, atol=tolerance * (100 if name == "pred_boxes" else 1), rtol=0)
    torch.testing.assert_close(found["given_embeddings"].cpu(), expected["given_embeddings"], atol=tolerance, rtol=0)


def test_channels_last_changes_the_place_in_memory_and_nothing_else(build, narrow_cfg, image):
    model = build(narrow_cfg, "TEST.CHANNELS_LAST", True)
    formats = []

    def note(module, inputs, output):
        pixels = inputs[0]
        formats.append(pixels.is_contiguous(memory_format=torch.channels_last) and not pixels.is_contiguous())

    for part in (model.backbone.res4, model.roi_heads.box_head.res5, model.roi_heads.reid_head.res5):
        part.register_forward_hook(note)
    expected = run(build(narrow_cfg), image)
    assert len(expected["instances"]) > 3
    assert_close(run(model, image), expected, 1e-4)
    assert formats == [True] * 3


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_folded_batch_normalization_is_the_same_function(build, narrow_cfg, image, norm):
    thresholds = ("MODEL.BOX_HEAD.SCORE_THRESH_TEST", 0.0, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    narrow_cfg.merge_from_list(["MODEL.RESNETS.NORM", norm, *thresholds])
    model = build(narrow_cfg)
    convolutions = [
        m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and getattr(m, "norm", None) is not None
    ]
    for convolution in convolutions:  # statistics and scales that matter
        layer = convolution.norm
        layer.weight.data.uniform_(0.6, 1.4)
        layer.bias.data.normal_(std=0.1)
        layer.running_mean.normal_(std=0.1)
        layer.running_var.uniform_(0.5, 1.5)
    expected = run(model, image)
    assert len(expected["instances"]) > 0
    # The stem, 13 blocks of three with three shortcuts before res5, and two copies of res5 of three blocks.
    assert fold_batch_norms(model) == len(convolutions) == 1 + 13 * 3 + 3 + 2 * (3 * 3 + 1)
    assert not any(isinstance(m, (torch.nn.BatchNorm2d, FrozenBatchNorm2d)) for m in model.modules())
    assert_close(run(model, image), expected, 1e-4)


def similar(found: dict, expected: dict) -> torch.Tensor:
    return (found["given_embeddings"].cpu() * expected["given_embeddings"]).sum(dim=1)


def test_half_precision_on_the_cpu_is_bfloat16_inside_and_single_outside(build, narrow_cfg, image):
    model = build(narrow_cfg, "TEST.HALF_PRECISION", True)
    types = {}
    for name in (
        "backbone.res4",
        "roi_heads.box_head.res5",
        "roi_heads.reid_head.res5",
        "roi_heads.box_head.predictor.cls_score",
    ):
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: types.__setitem__(name, output.dtype)
        )
    expected, found = run(build(narrow_cfg), image), run(model, image)
    assert types.pop("roi_heads.box_head.predictor.cls_score") == torch.float32
    assert set(types.values()) == {torch.bfloat16}
    for name in ("scores", "embeddings"):
        assert getattr(found["instances"], name).dtype == torch.float32
    # Eight bits of precision: a different direction for each box would give similarities far below this.
    assert similar(found, expected).min() > 0.99 and not torch.equal(
        found["given_embeddings"], expected["given_embeddings"]
    )
    assert abs(len(found["instances"]) - len(expected["instances"])) <= 0.3 * len(expected["instances"])


def test_half_precision_and_channels_last_on_a_gpu(build, narrow_cfg, image, gpu, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    expected = run(build(narrow_cfg), image)
    on_gpu = ("MODEL.DEVICE", gpu, "TEST.CHANNELS_LAST", True)
    found = run(build(narrow_cfg, *on_gpu), image)
    assert similar(found, expected).min() > 0.9999
    # Many boxes of a random network lie at the score threshold.
    assert abs(len(found["instances"]) - len(expected["instances"])) <= 0.1 * len(expected["instances"])
    assert similar(run(build(narrow_cfg, *on_gpu, "TEST.HALF_PRECISION", True), image), expected).min() > 0.99
