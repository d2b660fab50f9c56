"""Tracing: a traced model gives on other images what the model gives, whatever their size and number of persons."""

from __future__ import annotations

import pytest
import torch
from detectron2.export import TracingAdapter
from detectron2.modeling import build_model
from person_search.errors import ExportError


def picture(height: int, width: int, seed: int) -> torch.Tensor:
    coarse = torch.rand(1, 3, height // 16, width // 16, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0] * 255


EXAMPLE, NOBODY = picture(144, 256, 1), torch.zeros(3, 96, 96)
OTHERS = [picture(157, 211, 2), picture(304, 288, 3), NOBODY]


def build(cfg, balance):
    torch.manual_seed(6)
    model = build_model(cfg).eval()
    model.proposal_generator.rpn_head.objectness_logits.weight.data.normal_(std=0.2)
    if model.roi_heads.box_head is not None:
        model.roi_heads.box_head.predictor.cls_score.weight.data.normal_(std=0.3)
        balance(model, EXAMPLE.to(torch.uint8))
    return model


def traced_and_plain(model, example):
    """Outputs of the traced model, and of the model, for each of the other pictures."""
    adapter = TracingAdapter(model, [{"image": example}])
    traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    for image in OTHERS:
        with torch.no_grad():
            (plain,) = model([{"image": image}])
        (given,) = adapter.outputs_schema(traced(image))
        yield given["instances"], plain["instances"]


@pytest.mark.parametrize("example", [EXAMPLE, NOBODY], ids=["persons", "nobody"])
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("MODEL.REID_HEAD.BOX_HEAD_SCORE", False, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.45),
        ("MODEL.ROI_HEADS.NAME", "OneHeadROIHeads", "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.45),
        ("MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST", 0.5),
        (
            *("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "tf_efficientnet_lite0"),
            *("MODEL.REID_HEAD.EMBEDDING", "bn_neck", "MODEL.REID_HEAD.EMBEDDING_DIM", 1728),
            *("MODEL.REID_HEAD.GLOBAL_POOLING", "average", "MODEL.REID_HEAD.STRIPES", 4),
        ),
    ],
    ids=["two heads", "score of the re-id head", "one head", "objectness", "timm"],
)
def test_a_traced_model_finds_on_other_images_what_the_model_finds(narrow_cfg, balance, options, example):
    narrow_cfg.merge_from_list(list(options))
    counts = []
    for given, plain in traced_and_plain(build(narrow_cfg, balance), example):
        counts.append(len(plain))
        torch.testing.assert_close(given.pred_boxes.tensor, plain.pred_boxes.tensor, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(given.scores, plain.scores, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(given.embeddings, plain.embeddings, atol=1e-4, rtol=1e-4)
    assert len(set(counts)) > 1 and max(counts) > 3


def test_what_would_be_fixed_to_the_example_is_refused(narrow_cfg, balance):
    model = build(narrow_cfg, balance)
    for inputs in ([{"image": EXAMPLE}] * 2, [{"image": EXAMPLE, "given_boxes": torch.tensor([[5.0, 5, 40, 90]])}]):
        adapter = TracingAdapter(model, inputs)
        with pytest.raises(ExportError, match="Trace one image without given_boxes"):
            torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
    narrow_cfg.MODEL.ROI_BOX_HEAD.POOLING = "deformable"
    adapter = TracingAdapter(build(narrow_cfg, balance), [{"image": EXAMPLE}])
    with pytest.raises(ExportError, match="cannot trace DeformableRoIPooler: .*MODEL.ROI_BOX_HEAD.POOLING"):
        torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
