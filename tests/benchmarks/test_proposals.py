"""The sweep over proposals against plain evaluations with the same settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from person_search.engine import PersonSearchTrainer

from ..programs import load_program


@torch.no_grad()
def median_objectness(cfg: CfgNode, model: torch.nn.Module) -> float:
    """Of the proposals of the first frame."""
    inputs = next(iter(PersonSearchTrainer.build_test_loader(cfg, "synthetic_tiny_test")))
    images = model.preprocess_image(inputs)
    ((proposals,), _) = model.proposal_generator(images, model.backbone(images.tensor), None)
    return float(proposals.objectness_logits.sigmoid().median())


def test_each_pruning_has_the_figures_of_an_evaluation_with_its_settings(
    narrow_cfg: CfgNode, repository: Path, tmp_path_factory, tmp_path: Path, monkeypatch, capsys, balance
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path_factory.mktemp("datasets")))
    benchmark = load_program(repository / "benchmarks" / "proposals.py")
    narrow_cfg.merge_from_list([
        *("DATASETS.TEST", ("synthetic_tiny_test",), "INPUT.MIN_SIZE_TEST", 144, "INPUT.MAX_SIZE_TEST", 256),
        *("OUTPUT_DIR", str(tmp_path), "MODEL.RPN.PRE_NMS_TOPK_TEST", 6000),
    ])  # fmt: skip
    torch.manual_seed(5)
    model = PersonSearchTrainer.build_model(narrow_cfg)
    model.roi_heads.box_head.predictor.cls_score.weight.data.normal_(std=0.3)
    model.proposal_generator.rpn_head.objectness_logits.weight.data.normal_(std=0.2)
    inputs = next(iter(PersonSearchTrainer.build_test_loader(narrow_cfg, "synthetic_tiny_test")))
    balance(model, inputs[0]["image"])
    threshold = median_objectness(narrow_cfg, model.eval())
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(narrow_cfg.dump())
    benchmark.main([
        *("--config-file", str(tmp_path / "config.yaml"), "--weights", str(tmp_path / "model.pth")),
        *("--topk", "40,9", "--objectness", str(threshold), "--nms", "0.7,0.4"),
    ])  # fmt: skip
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["nms"], row["topk"], row["objectness"]) for row in rows] == [
        (0.7, 40, 0), (0.7, 9, 0), (0.4, 40, 0), (0.4, 9, 0), (0.7, 40, threshold)
    ]  # fmt: skip
    assert rows[1]["proposals"] == 9 < rows[4]["proposals"] < rows[0]["proposals"] <= 40
    for row in (rows[1], rows[3], rows[4]):
        cfg = narrow_cfg.clone()
        cfg.merge_from_list([
            *("MODEL.RPN.NMS_THRESH", row["nms"], "MODEL.RPN.POST_NMS_TOPK_TEST", row["topk"]),
            *("MODEL.PROPOSAL_GENERATOR.SCORE_THRESH_TEST", row["objectness"]),
        ])  # fmt: skip
        model = PersonSearchTrainer.build_model(cfg)
        model.load_state_dict(torch.load(tmp_path / "model.pth")["model"])
        figures = PersonSearchTrainer.test(cfg, model)
        capsys.readouterr()
        for name in ("detection/AP", "detection/recall", "search/mAP", "search/top1"):
            part, figure = name.split("/")
            assert row[name] == pytest.approx(figures[part][figure], abs=0.006), (row, name)
    assert len({row["detections"] for row in rows}) > 2
