"""What the detector learns does not depend on what the re-id losses read beside its RoIs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from person_search.modeling.embedding import PooledFeatures

OBJECTIVES = {
    "exemplars": ("SSLObjective", True),
    "persons": ("SSLObjective", False),
    "rois": ("OIMObjective", False),
}


def scene(seed: int) -> dict[str, Any]:
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10.0, 40.0, 80.0], [60.0, 20.0, 90.0, 90.0]]))
    instances.gt_classes = torch.zeros(2, dtype=torch.int64)
    instances.gt_instance_index = torch.tensor([2 * seed, 2 * seed + 1])
    image = torch.randint(0, 256, (3, 96, 128), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": 96, "width": 128, "file_name": f"{seed}.png"}


def step(cfg: CfgNode, kind: str, norm: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Detection losses and running statistics after one step; the embedding's calls and the objective's batch."""
    objective, exemplars = OBJECTIVES[kind]
    cfg = cfg.clone()
    cfg.merge_from_list([
        *("MODEL.OBJECTIVE.NAME", objective, "SSL.EXEMPLAR.ENABLED", exemplars, "MODEL.RESNETS.NORM", norm),
        *("MODEL.BACKBONE.FREEZE_AT", 0),
    ])  # fmt: skip
    torch.manual_seed(0)
    model = build_model(cfg)
    identities = torch.zeros(4, dtype=torch.int64) if objective == "OIMObjective" else None
    model.objective.allocate(torch.tensor([0, 0, 1, 1]), identities)
    calls: dict[str, Any] = {}
    embed, losses_of = model.roi_heads.reid_head.embedding.forward, model.objective.forward

    def embedded(pooled: PooledFeatures, others: PooledFeatures | None = None) -> Any:
        calls["counted"], calls["others"] = pooled, others
        calls["embeddings"], logits = embed(pooled, others)
        return calls["embeddings"], logits

    def remembered(batch: Any) -> dict[str, Any]:
        calls["batch"] = batch
        if objective == "SSLObjective":
            model.objective.set_threshold(0.7)
        return losses_of(batch)

    model.roi_heads.reid_head.embedding.forward, model.objective.forward = embedded, remembered
    torch.manual_seed(1)
    with EventStorage():
        losses = model([scene(0), scene(1)])
    detection = ("loss_rpn_cls", "loss_rpn_loc", "loss_box_head_cls", "loss_box_head_box", "loss_reid_head_cls")
    learnt = {name: losses[name].detach() for name in (*detection, "loss_reid_head_box")}
    learnt |= {k: v.clone() for k, v in model.state_dict().items() if "running" in k and "exemplar" not in k}
    calls["model"] = model
    return learnt, calls


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_detection_losses_and_statistics_are_those_of_the_rois_alone(narrow_cfg, norm):
    expected, calls = step(narrow_cfg, "rois", norm)
    assert calls["others"] is None and calls["batch"].persons is None, "OIM reads no features of annotated boxes"
    moved = {
        k: v
        for k, v in expected.items()
        if k.startswith("roi_heads.reid_head.embedding") and k.endswith("running_mean")
    }
    assert len(moved) == 3 and all(v.any() for v in moved.values())
    for kind, rows in (("persons", 4), ("exemplars", 4 + 4 * 3)):
        learnt, calls = step(narrow_cfg, kind, norm)
        assert len(calls["others"].res4) == rows
        assert learnt.keys() == expected.keys()
        assert [k for k, v in learnt.items() if not torch.equal(v, expected[k])] == []


def test_persons_and_exemplars_are_normalized_with_the_statistics_of_the_rois(narrow_cfg):
    _, calls = step(narrow_cfg, "exemplars", "FrozenBN")
    embedding, vectors = calls["model"].roi_heads.reid_head.embedding, []
    counted, others = calls["counted"], calls["others"]
    for projector, level in ((embedding.res4_projector, "res4"), (embedding.res5_projector, "res5")):
        rois, rest = (projector[0](getattr(p, level)) for p in (counted, others))
        scale = projector[1].weight / (rois.var(dim=0, correction=0) + 1e-5).sqrt()
        vectors.append((rest - rois.mean(dim=0)) * scale + projector[1].bias)
    joined = torch.cat(vectors, dim=1)
    expected = joined / joined.norm(dim=1, keepdim=True)
    torch.testing.assert_close(calls["embeddings"][len(counted.res4) :], expected, rtol=1e-3, atol=1e-4)
    batch = calls["batch"]
    torch.testing.assert_close(batch.persons, expected[:4], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(batch.exemplars, expected[4:].view(4, 3, -1), rtol=1e-3, atol=1e-4)
