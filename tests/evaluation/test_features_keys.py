"""Keys of stored features: they change with what changes the outputs, and with nothing else."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from person_search.evaluation.features import frame_keys, network_key, weights_key

BOXES = {"a": np.float32([[1, 2, 3, 4]]), "b": np.zeros((0, 4), np.float32)}


@pytest.fixture
def model(narrow_cfg: CfgNode) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(narrow_cfg)


def test_every_weight_that_inference_reads_counts(model):
    """Changing any weight or statistic changes the key, down to the last bit of one number."""
    before = weights_key(model)
    assert weights_key(model) == before
    for name in (
        *("backbone.stem.conv1.weight", "roi_heads.reid_head.embedding.rescaler.running_mean"),
        *("roi_heads.reid_head.res5.0.conv1.norm.running_var", "roi_heads.box_head.predictor.bbox_pred.bias"),
    ):
        value = model.state_dict()[name].view(-1)
        kept = value[0].clone()
        value[0] = torch.nextafter(kept, kept + 1)
        assert weights_key(model) != before, name
        value[0] = kept
    assert weights_key(model) == before


def test_banks_and_counters_do_not_count(model):
    before = weights_key(model)
    model.objective.allocate(torch.zeros(5, dtype=torch.int64))
    model.objective.instance_bank.features.normal_()
    model.roi_heads.reid_head.embedding.rescaler.num_batches_tracked += 3
    assert weights_key(model) == before


@pytest.mark.parametrize("key, value, changes", [
    ("MODEL.RPN.POST_NMS_TOPK_TEST", 7, True),
    ("MODEL.BOX_HEAD.SCORE_THRESH_TEST", 0.1, True),
    ("MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlign", True),
    ("INPUT.MIN_SIZE_TEST", 100, True),
    ("INPUT.RESIZE", "torchvision", True),
    ("TEST.DETECTIONS_PER_IMAGE", 3, True),
    ("MODEL.WEIGHTS", "other.pth", False),
    ("MODEL.DEVICE", "cuda", False),
    ("OUTPUT_DIR", "elsewhere", False),
    ("TEST.PERSON_SEARCH.SCORE_WEIGHTED", False, False),
    ("TEST.PERSON_SEARCH.CBGM.ENABLED", True, False),
    ("TEST.PERSON_SEARCH.GALLERY", "ground_truth", False),
    ("INPUT.MIN_SIZE_TRAIN", (1,), False),
])  # fmt: skip
def test_settings_that_change_the_outputs_count(model, narrow_cfg, key, value, changes):
    before = network_key(model, narrow_cfg)
    narrow_cfg.merge_from_list([key, value])
    assert (network_key(model, narrow_cfg) != before) == changes


def test_an_image_is_told_by_its_content_not_by_its_place(tmp_path):
    def keys(folder: str, boxes=BOXES):
        records = [{"image_id": name, "file_name": str(tmp_path / folder / f"{name}.jpg")} for name in ("a", "b")]
        return frame_keys(records, boxes)

    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            (tmp_path / folder / f"{name}.jpg").write_bytes(name.encode() * 50)
            os.utime(tmp_path / folder / f"{name}.jpg", ns=(5, 5_000_000_000))
    before = keys("one")
    assert keys("two") == before and before["a"] != before["b"]
    (tmp_path / "two" / "a.jpg").write_bytes(b"a" * 51)
    os.utime(tmp_path / "two" / "a.jpg", ns=(5, 5_000_000_000))
    os.utime(tmp_path / "two" / "b.jpg", ns=(5, 6_000_000_000))
    assert not set(keys("two").values()) & set(before.values())
    moved = keys("one", {**BOXES, "a": np.float32([[1, 2, 3, 5]])})
    assert moved["a"] != before["a"] and moved["b"] == before["b"]
    (tmp_path / "two" / "b.jpg").unlink()
    assert keys("two")["b"] not in before.values()


def test_frames_of_a_video_differ(tmp_path):
    (tmp_path / "film.avi").write_bytes(b"film")
    records = [{"image_id": str(i), "file_name": f"{tmp_path}/film.avi#frame={i}"} for i in range(3)]
    none = np.zeros((0, 4), np.float32)
    assert len(set(frame_keys(records, {str(i): none for i in range(3)}).values())) == 3
