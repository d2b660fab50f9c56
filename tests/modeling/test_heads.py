"""The single head of OIM, NAE and CGPS, on a tiny model."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from person_search.errors import ConfigError
from person_search.modeling import FusedLinearEmbedding, LinearEmbedding, OneHeadROIHeads, PooledFeatures
from person_search.modeling.embedding import BNNeckEmbedding, GlobalPooling
from torchvision.ops import nms

from .scenes import scene

KINDS = {"nae": ("norm_aware", "max"), "oim": ("linear", "average"), "cgps": ("fused_linear", "max")}


def one_head(cfg: CfgNode, kind: str) -> torch.nn.Module:
    embedding, pooling = KINDS[kind]
    cfg.merge_from_list([
        *("MODEL.ROI_HEADS.NAME", "OneHeadROIHeads", "MODEL.REID_HEAD.EMBEDDING", embedding),
        *("MODEL.REID_HEAD.GLOBAL_POOLING", pooling, "SSL.EXEMPLAR.ENABLED", False),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "MODEL.REID_HEAD.BOX_LOSS_WEIGHT", 10.0),
    ])  # fmt: skip
    torch.manual_seed(0)
    return build_model(cfg)


def test_linear_embedding_is_a_projection_and_a_classifier_of_res5():
    torch.manual_seed(0)
    embedding, res5 = LinearEmbedding(8, 4), torch.randn(5, 8)
    vectors, logits = embedding(PooledFeatures(torch.zeros(5, 3), res5))
    projected = res5 @ embedding.projector.weight.T + embedding.projector.bias
    torch.testing.assert_close(vectors, projected / projected.norm(dim=1, keepdim=True))
    torch.testing.assert_close(logits, (res5 @ embedding.classifier.weight.T)[:, 0])
    # One logit is the softmax over two of which only the difference matters.
    pair = torch.stack([logits, torch.zeros(5)], dim=1)
    labels = torch.tensor([1.0, 0, 1, 1, 0])
    expected = F.cross_entropy(pair, (1 - labels).long())
    torch.testing.assert_close(F.binary_cross_entropy_with_logits(logits, labels), expected)


def test_fused_linear_embedding_projects_both_levels_without_normalization():
    torch.manual_seed(0)
    embedding = FusedLinearEmbedding(6, 8, 5)
    rois, others = (PooledFeatures(torch.randn(n, 6), torch.randn(n, 8)) for n in (4, 3))
    vectors, logits = embedding(rois, others)
    res4, res5 = torch.cat([rois.res4, others.res4]), torch.cat([rois.res5, others.res5])
    joined = torch.cat([res4 @ embedding.res4_projector.weight.T, res5 @ embedding.res5_projector.weight.T], dim=1)
    torch.testing.assert_close(vectors, joined / joined.norm(dim=1, keepdim=True))
    torch.testing.assert_close(logits, (rois.res5 @ embedding.classifier.weight.T)[:, 0])
    assert embedding.res4_projector.weight.shape == (2, 6) and embedding.res5_projector.weight.shape == (3, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_there_is_no_box_head_and_every_parameter_learns(narrow_cfg, kind):
    model = one_head(narrow_cfg, kind)
    assert type(model.roi_heads) is OneHeadROIHeads and model.roi_heads.box_head is None
    assert not [name for name in model.state_dict() if "box_head" in name]
    with EventStorage():
        losses = model([scene(), scene()])
    assert {k for k in losses if not k.startswith("loss_rpn")} == {"loss_reid_head_cls", "loss_reid_head_box"}
    loss = sum(losses.values())
    loss.backward()
    # The projectors of a plain embedding learn from the objective alone, which has no memory here.
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert [n for n in idle if not (n.startswith("roi_heads.reid_head.embedding.") and "projector" in n)] == []


@pytest.mark.parametrize("kind", KINDS)
def test_training_and_inference_look_at_the_rpns_boxes(narrow_cfg, kind):
    model, input = one_head(narrow_cfg, kind), scene()
    heads, seen = model.roi_heads, []
    boxes = Boxes(torch.tensor([[12.0, 8.0, 44.0, 82.0], [0.0, 0.0, 8.0, 8.0], [100.0, 50.0, 120.0, 90.0]]))
    proposals = [Instances((96, 128), proposal_boxes=boxes, objectness_logits=torch.zeros(3))]
    images = model.preprocess_image([input])
    features = model.backbone(images.tensor)
    original = heads.label_and_sample_proposals
    heads.label_and_sample_proposals = lambda *a: seen.append(original(*a)) or seen[-1]
    with EventStorage():
        embeddings, _ = heads.forward_train(images, features, proposals, [input["instances"]], None)
    (sampled,) = seen[0]
    assert len(embeddings.rois) == int((sampled.gt_classes == 0).sum()) == 3  # two annotated boxes and one near them
    assert len(embeddings.backgrounds) == int((sampled.gt_classes == 1).sum()) == 2
    assert sorted(embeddings.roi_instance_index.tolist()) == [1, 3, 3] and embeddings.instance_index.tolist() == [3, 1]

    model.eval()
    with torch.no_grad():
        found, given = heads.forward_test(images, features, proposals, [boxes[:1]])
        pooled = heads.pool_boxes(features, [boxes])
        vectors, logits = heads.reid_head.embedding(pooled)
        moved = heads.reid_head.transform.apply_deltas(heads.reid_head.regressor(pooled.res5), boxes.tensor)
    refined = Boxes(moved)
    refined.clip((96, 128))
    keep = nms(refined.tensor, logits.sigmoid(), heads.nms_thresh)
    torch.testing.assert_close(found[0].pred_boxes.tensor, refined.tensor[keep])
    torch.testing.assert_close(found[0].scores, logits.sigmoid()[keep])
    torch.testing.assert_close(found[0].embeddings, vectors[keep])
    torch.testing.assert_close(given[0], vectors[:1])


def test_stripes_keep_the_vertical_order():
    features = torch.randn(2, 3, 8, 5, generator=torch.Generator().manual_seed(0))
    for kind, pool in (("max", torch.amax), ("average", torch.mean)):
        found = GlobalPooling(kind, 4)(features).reshape(2, 3, 4)
        for stripe in range(4):
            torch.testing.assert_close(found[..., stripe], pool(features[:, :, 2 * stripe : 2 * stripe + 2], (2, 3)))
        torch.testing.assert_close(GlobalPooling(kind)(features), pool(features, (2, 3)))
        # Turned upside down a person is somebody else, which one global pooling cannot see.
        torch.testing.assert_close(GlobalPooling(kind, 4)(features.flip(2)).reshape(2, 3, 4), found.flip(2))
    assert GlobalPooling("average", 4)(torch.ones(1, 3, 2, 2)).shape == (1, 12)


def test_bn_neck_starts_from_the_pooled_features():
    torch.manual_seed(0)
    embedding = BNNeckEmbedding(3, 8)
    pooled = PooledFeatures(torch.randn(6, 3) + 5, 4 * torch.randn(6, 8))
    vectors, logits = embedding(pooled)
    joined = torch.cat([pooled.res4, pooled.res5], dim=1)
    normalized = (joined - joined.mean(dim=0)) / (joined.var(dim=0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(vectors, F.normalize(normalized, dim=1))
    torch.testing.assert_close(logits, embedding.classifier(pooled.res5)[:, 0])
    none = embedding(PooledFeatures(torch.zeros(0, 3), torch.zeros(0, 8)))
    assert none[0].shape == (0, 11) and none[1].shape == (0,)


def test_stripes_and_bn_neck_detect_and_embed(narrow_cfg):
    options = ["MODEL.REID_HEAD.STRIPES", 4, "MODEL.REID_HEAD.EMBEDDING", "bn_neck"]
    narrow_cfg.merge_from_list(options)
    with pytest.raises(ConfigError, match=r"EMBEDDING_DIM is \d+, .*: set it to (\d+)") as refused:
        build_model(narrow_cfg)
    dim = int(str(refused.value).rsplit(" ", 1)[1])
    narrow_cfg.merge_from_list(["MODEL.REID_HEAD.EMBEDDING_DIM", dim])
    model = build_model(narrow_cfg)
    with EventStorage():
        sum(model([scene(), scene()]).values()).backward()
    # Without banks no loss reads the direction of the embedding.
    learns = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert set(learns) == {"roi_heads.reid_head.embedding.norm.weight", "roi_heads.reid_head.embedding.norm.bias"}
    model.eval()
    with torch.inference_mode():
        (output,) = model([{**scene(), "given_boxes": scene()["instances"].gt_boxes.tensor}])
    assert output["given_embeddings"].shape == (2, dim)


def test_no_stripe_is_refused(narrow_cfg):
    narrow_cfg.merge_from_list(["MODEL.REID_HEAD.STRIPES", 0])
    with pytest.raises(ConfigError, match="MODEL.REID_HEAD.STRIPES is 0, expected 1 or more"):
        build_model(narrow_cfg)


@pytest.mark.parametrize("key", ["EMBEDDING", "GLOBAL_POOLING"])
def test_unknown_kinds_are_refused(narrow_cfg, key):
    narrow_cfg.merge_from_list([f"MODEL.REID_HEAD.{key}", "median"])
    with pytest.raises(ConfigError, match=f"MODEL.REID_HEAD.{key} is 'median', expected"):
        build_model(narrow_cfg)
