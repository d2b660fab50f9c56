"""The main branch gives SeqNet's boxes, scores and embeddings when it has SeqNet's weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from person_search import add_ssl_config
from person_search.engine import PersonSearchCheckpointer
from person_search.weights.seqnet import convert_seqnet, convert_to_seqnet
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from . import seqnet
from .seqnet import FRAME, FULL, NARROW, Case, Detections

CONFIGS = Path(__file__).resolve().parent.parent.parent / "projects" / "SSL" / "configs"
TOLERANCE = 1e-4
PROPOSALS = 150


def seqnet_cfg(width: int, proposals: int, *options: object) -> CfgNode:
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_file(str(CONFIGS / "seqnet.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.RPN.POST_NMS_TOPK_TEST", proposals, *options])
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = width
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 4 * width
    return cfg


def ours(cfg: CfgNode, state: dict[str, Tensor]) -> nn.Module:
    model = build_model(cfg).eval()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and all(name.startswith("objective.") for name in missing)
    return model


@torch.no_grad()
def run(model: nn.Module, image: Tensor, boxes: Tensor | None = None) -> tuple[Detections, Tensor]:
    inputs = {"image": image, "height": image.shape[1], "width": image.shape[2]}
    if boxes is not None:
        inputs["given_boxes"] = boxes
    (output,) = model([inputs])
    found = output["instances"]
    return Detections(found.pred_boxes.tensor, found.scores, found.embeddings), output["given_embeddings"]


def difference(a: Detections, b: Detections) -> float:
    """Largest difference of a number; infinite where there are more or fewer detections."""
    if len(a.boxes) != len(b.boxes):
        return float("inf")
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="module")
def narrow() -> Case:
    return seqnet.make_case(NARROW, PROPOSALS)


def converted(case: Case) -> dict[str, Tensor]:
    return convert_seqnet(case.reference.seqnet_state())[0]


def assert_equal(found: Detections, expected: Detections) -> None:
    assert len(found.boxes) == len(expected.boxes)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(3))
def test_detections_are_those_of_seqnet(narrow, seed):
    torch.manual_seed(seed)
    image = seqnet.make_image(FRAME)
    expected = narrow.reference.detect(image.float())
    assert len(expected.boxes) >= 30
    assert_equal(run(ours(seqnet_cfg(NARROW, PROPOSALS), converted(narrow)), image)[0], expected)


def test_torchvisions_own_resnet50_at_full_width():
    case = seqnet.make_case(FULL, 16)
    assert len(case.expected.boxes) >= 3
    assert_equal(run(ours(seqnet_cfg(FULL, 16), converted(case)), case.image)[0], case.expected)


def test_without_a_bn_neck():
    case = seqnet.make_case(NARROW, PROPOSALS, bn_neck=False)
    assert len(case.expected.boxes) >= 10
    model = ours(seqnet_cfg(NARROW, PROPOSALS, "MODEL.REID_HEAD.BN_NECK", False), converted(case))
    assert_equal(run(model, case.image)[0], case.expected)


def test_features_of_query_boxes(narrow):
    boxes = torch.tensor([[3.0, 5.0, 60.5, 138.0], [100.2, 10.0, 160.0, 90.0], [0.0, 0.0, 246.0, 140.0]])
    expected = narrow.reference.embed_boxes(narrow.image.float(), boxes)
    found, given = run(ours(seqnet_cfg(NARROW, PROPOSALS), converted(narrow)), narrow.image, boxes)
    torch.testing.assert_close(given, expected, rtol=0, atol=TOLERANCE)
    assert_equal(found, narrow.expected)


def test_the_input_is_seqnets_normalized_and_padded_image(narrow):
    model = ours(seqnet_cfg(NARROW, PROPOSALS), converted(narrow))
    theirs = GeneralizedRCNNTransform(FRAME[0], 1500, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]).eval()
    expected = theirs([narrow.image / 255])[0]
    found = model.preprocess_image([{"image": narrow.image}])
    assert found.tensor.shape == (1, 3, 160, 256) and found.image_sizes == expected.image_sizes == [FRAME]
    torch.testing.assert_close(found.tensor, expected.tensors, rtol=0, atol=1e-6)


def test_boxes_are_in_pixels_of_the_original_frame(narrow):
    torch.manual_seed(0)
    frame = seqnet.make_image((210, 369)).float()
    expected = narrow.reference.detect(frame)
    model = ours(seqnet_cfg(NARROW, PROPOSALS), converted(narrow))
    resized = F.interpolate(frame[None], size=FRAME, mode="bilinear")[0]
    with torch.no_grad():
        found = model([{"image": resized, "height": 210, "width": 369}])[0]["instances"]
    assert len(found) == len(expected.boxes) >= 30 and float(expected.boxes[:, 2].max()) > FRAME[1]
    # SeqNet normalizes before it resizes; a different rounding moves the boxes by a few units of the last place.
    torch.testing.assert_close(found.pred_boxes.tensor, expected.boxes, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.embeddings, expected.embeddings, rtol=0, atol=TOLERANCE)


def test_seqnet_reads_what_is_converted_back(narrow):
    state, unused = convert_to_seqnet(ours(seqnet_cfg(NARROW, PROPOSALS), converted(narrow)).state_dict())
    other = seqnet.Reference(NARROW, PROPOSALS).eval()
    missing, unexpected = other.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["roi_heads.reid_loss.lut", "roi_heads.reid_loss.cq"], [])
    assert all(name.startswith("objective.") for name in unused)
    assert_equal(other.detect(narrow.image.float()), narrow.expected)


# Were a setting of configs/seqnet.yaml or a choice of the conversion wrong, the tests above would fail: each of them
# changes the outcome.
@pytest.mark.parametrize(
    "options",
    [
        ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignV2"),
        ("MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO", 1),
        ("MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0, 1.0, 1.0, 1.0)),
        ("MODEL.ANCHOR_GENERATOR.NAME", "DefaultAnchorGenerator"),
        ("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5),
        ("MODEL.RPN.NMS_THRESH", 0.6),
        ("MODEL.BOX_HEAD.SCORE_THRESH_TEST", 0.6),
        ("MODEL.BOX_HEAD.NMS_THRESH_TEST", 0.5),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.4),
        ("MODEL.ROI_HEADS.NMS_THRESH_TEST", 0.6),
        ("MODEL.REID_HEAD.BOX_HEAD_SCORE", False),
        ("INPUT.SIZE_DIVISIBILITY", 0),
        ("INPUT.SIZE_DIVISIBILITY", 16),
        ("MODEL.PIXEL_MEAN", (103.53, 116.28, 123.675)),
    ],
    ids=lambda o: f"{o[0]}={o[1]}",
)
def test_another_setting_gives_other_detections(narrow, options):
    found, _ = run(ours(seqnet_cfg(NARROW, PROPOSALS, *options), converted(narrow)), narrow.image)
    assert difference(found, narrow.expected) > 10 * TOLERANCE


def _swap_heads(state: dict[str, Tensor], _: dict[str, Tensor]) -> None:
    for name in [n for n in state if n.startswith("roi_heads.box_head.res5.")]:
        other = name.replace("box_head", "reid_head")
        state[name], state[other] = state[other], state[name]


def _drop_neck(state: dict[str, Tensor], _: dict[str, Tensor]) -> None:
    norm = "roi_heads.reid_head.regressor.norm"
    for value, constant in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        state[f"{norm}.{value}"] = torch.full((4,), constant)


def _unsorted(theirs: str, name: str):
    """Takes the first rows of SeqNet's as they come."""

    def mutate(state: dict[str, Tensor], original: dict[str, Tensor]) -> None:
        state[name] = original[theirs][: len(state[name])]

    return mutate


THEIRS, FIRST, SECOND = (
    "roi_heads.faster_rcnn_predictor",
    "roi_heads.box_head.predictor",
    "roi_heads.reid_head.regressor",
)
MUTATIONS = {
    "anchors": _unsorted("rpn.head.cls_logits.weight", "proposal_generator.rpn_head.objectness_logits.weight"),
    "deltas of anchors": _unsorted("rpn.head.bbox_pred.weight", "proposal_generator.rpn_head.anchor_deltas.weight"),
    "classes": _unsorted(f"{THEIRS}.cls_score.weight", f"{FIRST}.cls_score.weight"),
    "first boxes": _unsorted(f"{THEIRS}.bbox_pred.weight", f"{FIRST}.bbox_pred.weight"),
    "second boxes": _unsorted("roi_heads.box_predictor.bbox_pred.0.weight", f"{SECOND}.linear.weight"),
    "neck": _unsorted("roi_heads.box_predictor.bbox_pred.1.bias", f"{SECOND}.norm.bias"),
    "no neck": _drop_neck,
    "heads": _swap_heads,
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_weights_in_another_place_give_other_detections(narrow, mutation):
    state = converted(narrow)
    MUTATIONS[mutation](state, narrow.reference.seqnet_state())
    found, _ = run(ours(seqnet_cfg(NARROW, PROPOSALS), state), narrow.image)
    assert difference(found, narrow.expected) > 10 * TOLERANCE


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "separate"])
def test_a_weakly_supervised_run_starts_from_it(narrow, tmp_path, shared):
    path = tmp_path / "converted.pth"
    torch.save({"model": converted(narrow)}, path)
    model = build_model(seqnet_cfg(NARROW, PROPOSALS, "SSL.EXEMPLAR.SHARED_BACKBONE", shared)).eval()
    model.objective.allocate(torch.zeros(4, dtype=torch.int64))
    PersonSearchCheckpointer(model, str(tmp_path)).resume_or_load(str(path), resume=False)
    assert_equal(run(model, narrow.image)[0], narrow.expected)
    if not shared:
        separate, state = model.exemplar_branch.separate, model.state_dict()
        for name, value in separate["backbone"].state_dict().items():
            assert torch.equal(value, state[f"backbone.{name}"])
        for name, value in separate["res5"].state_dict().items():
            assert torch.equal(value, state[f"roi_heads.reid_head.res5.{name}"])
