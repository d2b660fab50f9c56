"""Cluster labels of whole epochs: the reference's labels, options, degenerate banks and state."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from person_search.labels import SelfPacedDBSCAN, invalid_rows, pair_precision_recall
from sklearn.metrics import adjusted_rand_score


def persons(count: int, sightings: int, seed: int = 0, spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """Unit features (count * sightings, 32) and identities: well separated persons in random order."""
    random = np.random.default_rng(seed)
    person = random.permutation(np.repeat(np.arange(count), sightings))
    rows = random.standard_normal((count, 32))[person] + spread * random.standard_normal((len(person), 32))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), person


def is_contiguous(labels: np.ndarray) -> bool:
    return labels.dtype == np.int64 and set(labels.tolist()) == set(range(labels.max() + 1))


@pytest.mark.parametrize("as_tensor", [False, True])
def test_equals_the_reference_over_two_epochs(shared: Path, as_tensor: bool) -> None:
    golden = np.load(shared / "golden" / "pseudo_labels.npz")
    features = [golden["feature"], golden["feature2"]]
    if as_tensor:
        features = [torch.from_numpy(rows) for rows in features]
    model = SelfPacedDBSCAN(
        tuple(golden["eps"]), int(golden["min_samples"]), k1=int(golden["k1"]), k2=int(golden["k2"])
    )
    for rows, expected in zip(features, (golden["labels1"], golden["labels2"]), strict=True):
        labels = model.fit(rows, golden["image"])
        assert adjusted_rand_score(labels, expected) == 1.0 and is_contiguous(labels)
        assert model.threshold == float(golden["threshold"])
    assert set(model.timings) == {"search", "distance", "clustering", "criterion"}
    assert all(seconds > 0 for seconds in model.timings.values())


def test_a_resumed_run_gives_the_same_labels(shared: Path, tmp_path: Path) -> None:
    golden = np.load(shared / "golden" / "pseudo_labels.npz")
    first, resumed = SelfPacedDBSCAN(), SelfPacedDBSCAN()
    first.fit(golden["feature"], golden["image"])
    torch.save(first.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth", weights_only=True))
    assert np.array_equal(
        first.fit(golden["feature2"], golden["image"]), resumed.fit(golden["feature2"], golden["image"])
    )
    # A fresh one learns its threshold from the second epoch and labels differently: the state matters.
    assert not np.array_equal(
        SelfPacedDBSCAN().fit(golden["feature2"], golden["image"]), resumed.fit(golden["feature2"], golden["image"])
    )


def test_labels_follow_a_permutation_of_the_rows() -> None:
    features, person = persons(30, 8, spread=0.9)
    images = np.arange(len(person)) // 3
    order = np.random.default_rng(1).permutation(len(person))
    labels = SelfPacedDBSCAN(k1=15).fit(features, images)
    permuted = SelfPacedDBSCAN(k1=15).fit(features[order], images[order])
    assert len(set(labels.tolist())) > 30 and adjusted_rand_score(labels[order], permuted) == 1.0


def test_rows_need_not_have_unit_length() -> None:
    features, person = persons(20, 6)
    scale = np.random.default_rng(0).uniform(0.1, 9, (len(person), 1)).astype(np.float32)
    images = np.arange(len(person))
    labels, scaled = (SelfPacedDBSCAN().fit(rows, images) for rows in (features, features * scale))
    assert adjusted_rand_score(labels, scaled) == 1.0


def test_same_image_rule_can_be_switched_off() -> None:
    features, person = persons(20, 6)
    images = np.array([f"frame {i // 2}" for i in range(len(person))])
    # Each person's sightings are side by side now, two to an image.
    order = np.argsort(person, kind="stable")
    labels, free = (SelfPacedDBSCAN(k1=8, same_image_rule=rule).fit(features[order], images) for rule in (True, False))
    assert adjusted_rand_score(free, person[order]) == 1.0
    for image in set(images):
        assert len(set(labels[images == image].tolist())) == 2


def test_one_eps_switches_the_criterion_off() -> None:
    features, person = persons(20, 6)
    model = SelfPacedDBSCAN(eps=[0.7], k1=8)
    assert adjusted_rand_score(model.fit(features, np.arange(120)), person) == 1.0
    assert model.threshold is None


def test_hdbscan_finds_well_separated_persons() -> None:
    features, person = persons(300, 8)
    labels = SelfPacedDBSCAN(k1=10, clusterer="hdbscan").fit(features, np.arange(len(person)))
    precision, recall = pair_precision_recall(labels, person)
    assert precision > 0.98 and recall > 0.9


@pytest.mark.parametrize("clusterer", ["dbscan", "hdbscan"])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 29])
def test_few_rows(count: int, clusterer: str) -> None:
    features = persons(max(count, 1), 1)[0][:count]
    model = SelfPacedDBSCAN(clusterer=clusterer)
    labels = model.fit(features, np.arange(count))
    assert labels.shape == (count,) and labels.dtype == np.int64
    assert len(set(labels.tolist())) <= count


def test_no_cluster_learns_no_threshold() -> None:
    model = SelfPacedDBSCAN(k1=5)
    far_apart = np.eye(40, dtype=np.float32)[:3]
    assert model.fit(far_apart, np.arange(3)).tolist() == [0, 1, 2] and model.threshold is None
    features, person = persons(20, 6)
    model.fit(features, np.arange(120))
    assert model.threshold is not None


@pytest.mark.parametrize("clusterer", ["dbscan", "hdbscan"])
def test_one_person_is_one_cluster(clusterer: str) -> None:
    features, _ = persons(1, 25, spread=0.1)
    assert SelfPacedDBSCAN(clusterer=clusterer, same_image_rule=False).fit(features, np.arange(25)).max() <= 3
    labels = SelfPacedDBSCAN().fit(features, np.arange(25))
    assert (labels == 0).all()
    # All in one image: all different people.
    assert len(set(SelfPacedDBSCAN().fit(features, np.zeros(25, dtype=int)).tolist())) == 25


def test_identical_features_are_one_cluster() -> None:
    features = np.full((80, 16), 0.25, dtype=np.float32)
    labels = SelfPacedDBSCAN(k1=20).fit(features, np.arange(80))
    assert np.bincount(labels).max() > 40


def test_rows_never_seen_are_singletons_and_change_no_other_label() -> None:
    features, person = persons(20, 6)
    images = np.arange(120)
    with_zeros = np.insert(features, [0, 50, 50, 120], 0, axis=0)
    zero = np.flatnonzero(~with_zeros.any(1))
    labels = SelfPacedDBSCAN().fit(with_zeros, np.arange(124))
    assert invalid_rows(with_zeros).tolist() == zero.tolist() and is_contiguous(labels)
    assert all((labels == labels[row]).sum() == 1 for row in zero)
    assert adjusted_rand_score(np.delete(labels, zero), SelfPacedDBSCAN().fit(features, images)) == 1.0
    assert SelfPacedDBSCAN().fit(np.zeros((3, 4), dtype=np.float32), np.arange(3)).tolist() == [0, 1, 2]


def test_lists_invalid_rows() -> None:
    features = torch.ones(6, 4)
    features[1] = 0
    features[2, 3] = torch.nan
    features[4, 0] = -torch.inf
    features[5, 1:] = 0
    assert invalid_rows(features).tolist() == invalid_rows(features.numpy()).tolist() == [1, 2, 4]
    assert invalid_rows(features).dtype == np.int64


def test_rejects_features_that_are_not_finite() -> None:
    features, _ = persons(5, 2)
    features[7, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 10 feature rows .* the first is row 7"):
        SelfPacedDBSCAN().fit(features, np.arange(10))


def test_rejects_arrays_that_do_not_fit() -> None:
    features, _ = persons(5, 2)
    with pytest.raises(ValueError, match=r"image_ids has shape \(9,\), expected \(10,\)"):
        SelfPacedDBSCAN().fit(features, np.arange(9))
    with pytest.raises(ValueError, match=r"camera_ids has shape \(1,\), expected \(10,\)"):
        SelfPacedDBSCAN().fit(features, np.arange(10), camera_ids=[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"eps": (0.7, 0.6, 0.8)}, "eps is"),
        ({"eps": (0.6, 0.7)}, "eps is"),
        ({"eps": (0.6, 0.7, 1.0)}, "eps is"),
        ({"eps": ()}, "eps is"),
        ({"min_samples": 0}, "min_samples is 0"),
        ({"k1": 0}, "k1 is 0"),
        ({"k2": 0}, "k2 is 0"),
        ({"quantile": 1.5}, "quantile is 1.5"),
        ({"clusterer": "kmeans"}, "clusterer is 'kmeans', expected one of dbscan, hdbscan"),
    ],
)
def test_rejects_unusable_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SelfPacedDBSCAN(**arguments)


@pytest.mark.parametrize("state", [{}, {"threshold": "0.5"}, {"threshold": 1.5}, {"threshold": float("nan")}])
def test_rejects_a_damaged_state(state: dict) -> None:
    with pytest.raises(ValueError, match="threshold is"):
        SelfPacedDBSCAN().load_state_dict(state)


def test_state_without_a_threshold() -> None:
    model = SelfPacedDBSCAN()
    assert model.state_dict() == {"threshold": None}
    model.threshold = 0.5
    model.load_state_dict({"threshold": None})
    assert model.threshold is None


def test_shows_progress_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    features, person = persons(10, 4)
    SelfPacedDBSCAN().fit(features, np.arange(40))
    assert capsys.readouterr().err == ""
    SelfPacedDBSCAN(progress=True).fit(features, np.arange(40))
    shown = capsys.readouterr().err
    assert "nearest neighbors" in shown and "Jaccard distance" in shown
