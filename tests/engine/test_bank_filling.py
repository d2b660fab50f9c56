"""What the first bank is made with: frames spread over the whole set, and statistics of all their rows."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from person_search.data.training_set import number_rows
from person_search.engine import PersonSearchTrainer
from person_search.engine.bank_filling import calibrate_embedding, calibration_frames
from person_search.modeling import LinearEmbedding, PooledFeatures


def cameras_one_after_another(frames: int) -> list[dict]:
    """As in PRW: the frames of a camera lie side by side; every seventh frame shows nobody."""
    return [
        {"image_id": str(i), "file_name": f"{i}.jpg", "camera_id": 6 * i // frames, "annotations": [{}] * (i % 7)}
        for i in range(frames)
    ]


@pytest.mark.parametrize(("frames", "count"), [(5704, 50), (60, 50), (13, 50), (100, 1), (100, 0)])
def test_calibration_frames_are_spread_evenly_over_cameras(frames, count):
    training_set = number_rows(cameras_one_after_another(frames))
    chosen = calibration_frames(training_set, count)
    with_persons = [r for r in training_set.records if r["annotations"]]
    assert len(chosen) == min(count, len(with_persons)) and all(r["annotations"] for r in chosen)
    places = [with_persons.index(r) for r in chosen]
    assert places == sorted(set(places))
    if count == 50:
        assert {r["camera_id"] for r in chosen} == set(range(6))
        steps = np.diff([-1, *places, len(with_persons)])
        assert steps.max() <= 2 * max(1, len(with_persons) / len(chosen)) + 1
        seen = np.bincount([r["camera_id"] for r in chosen], minlength=6)
        assert seen.max() - seen.min() <= max(2, len(chosen) // 10)


def test_the_banks_start_with_the_statistics_of_all_rows_together(cfg: CfgNode, caplog):
    cfg.SSL.MEMORY.CALIBRATION_FRAMES = 5
    trainer = PersonSearchTrainer(cfg)
    model = trainer.person_search_model
    records = calibration_frames(trainer.training_set, 5)
    with caplog.at_level(logging.INFO, logger="person_search.engine.bank_filling"):
        calibrate_embedding(model, trainer.bank_loader(records))
    model.eval()
    pooled = [PooledFeatures.cat(model.pool_persons(b).parts) for b in trainer.bank_loader(records)]
    rows = torch.cat([p.res5 for p in pooled])
    linear, norm = model.roi_heads.reid_head.embedding.res5_projector
    with torch.no_grad():
        vectors = linear(rows)
    torch.testing.assert_close(norm.running_mean, vectors.mean(dim=0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, vectors.var(dim=0), rtol=1e-3, atol=1e-6)
    assert norm.momentum == 0.1 and not norm.training and not model.training
    cameras = {r["camera_id"] for r in records}
    assert f"with {len(rows)} boxes and exemplars of 5 frames, seen by {len(cameras)} cameras" in caplog.text


def test_an_embedding_without_batch_normalization_needs_no_frames():
    model = SimpleNamespace(roi_heads=SimpleNamespace(reid_head=SimpleNamespace(embedding=LinearEmbedding(4, 2))))
    calibrate_embedding(model, iter(()))
