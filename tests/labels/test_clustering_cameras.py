"""Camera-aware features: what they take out, and that labels get better for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from person_search.labels import SelfPacedDBSCAN, pair_precision_recall
from person_search.labels.clustering import centre_cameras


def seen_by_cameras(persons: int, cameras: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Features (N, 64) of persons seen four times by each camera, whose look shifts every feature."""
    random = np.random.default_rng(seed)
    person, camera = (x.ravel() for x in np.meshgrid(np.arange(persons), np.repeat(np.arange(cameras), 4)))
    look, shift = random.standard_normal((persons, 64)), 1.5 * random.standard_normal((cameras, 64))
    features = look[person] + shift[camera] + 0.3 * random.standard_normal((len(person), 64))
    return torch.nn.functional.normalize(torch.from_numpy(features).float(), dim=1), person, camera


def test_aligns_the_means_of_cameras() -> None:
    features, _, camera = seen_by_cameras(200, 3)
    moved = centre_cameras(features, camera)
    assert torch.allclose(moved.norm(dim=1), torch.ones(len(moved)), atol=1e-5)

    def spread(rows: torch.Tensor) -> float:
        means = torch.stack([rows[torch.from_numpy(camera == c)].mean(0) for c in range(3)])
        return (means - means.mean(0)).norm(dim=1).mean().item()

    assert spread(moved) < 0.05 * spread(features)


def test_labels_join_persons_across_cameras() -> None:
    features, person, camera = seen_by_cameras(40, 3)
    images = np.arange(len(person))
    plain, aware = (
        pair_precision_recall(SelfPacedDBSCAN(k1=15).fit(features, images, cameras), person)
        for cameras in (None, camera)
    )
    assert min(plain) < 0.3 and min(aware) > 0.9


def test_rows_of_unknown_cameras_stay() -> None:
    features, _, camera = seen_by_cameras(20, 2)
    camera = np.where(np.arange(len(camera)) % 5 == 0, -1, camera)
    moved = centre_cameras(features, camera)
    unknown = torch.from_numpy(camera < 0)
    assert torch.equal(moved[unknown], features[unknown])
    assert not torch.allclose(moved[~unknown], features[~unknown], atol=1e-2)
    assert torch.equal(centre_cameras(features, np.full(len(camera), -1)), features)


def test_a_camera_seen_once_is_hardly_moved() -> None:
    features, _, camera = seen_by_cameras(50, 2)
    camera[0] = 7
    moved = centre_cameras(features, camera)
    assert (moved[0] @ features[0]).item() > 0.98


def test_one_camera_changes_nothing() -> None:
    features, _, camera = seen_by_cameras(10, 1)
    assert centre_cameras(features, camera).numpy() == pytest.approx(features.numpy(), abs=1e-5)
