"""Pseudo labels of two epochs against those of the reference implementations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from person_search.labels import SelfPacedDBSCAN, jaccard_distance, pair_precision_recall
from sklearn.metrics import adjusted_rand_score


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "pseudo_labels.npz") as arrays:
        return dict(arrays)


def test_distances(golden):
    distance = jaccard_distance(golden["feature"], 30, 6)
    dense = np.ones(distance.shape, np.float32)
    stored = distance.tocoo()
    dense[stored.row, stored.col] = stored.data
    np.testing.assert_allclose(dense, golden["distance"], atol=1e-5)


def test_labels_and_threshold_of_two_epochs(golden):
    clusterer = SelfPacedDBSCAN(tuple(golden["eps"].tolist()), int(golden["min_samples"]))
    first = clusterer.fit(torch.from_numpy(golden["feature"]), golden["image"])
    assert adjusted_rand_score(golden["labels1"], first) == 1.0
    assert clusterer.threshold == pytest.approx(float(golden["threshold"]), abs=1e-6)
    resumed = SelfPacedDBSCAN(tuple(golden["eps"].tolist()), int(golden["min_samples"]))
    resumed.load_state_dict(clusterer.state_dict())
    for same in (clusterer, resumed):
        assert adjusted_rand_score(golden["labels2"], same.fit(golden["feature2"], golden["image"])) == 1.0
    # A fresh clusterer learns another threshold from the second epoch: the frozen one matters.
    fresh = SelfPacedDBSCAN(tuple(golden["eps"].tolist()), int(golden["min_samples"]))
    fresh.fit(golden["feature2"], golden["image"])
    assert fresh.threshold != clusterer.threshold


def test_labels_on_a_gpu(golden, gpu):
    clusterer = SelfPacedDBSCAN(tuple(golden["eps"].tolist()), int(golden["min_samples"]))
    for epoch in (1, 2):
        features = torch.from_numpy(golden["feature" if epoch == 1 else "feature2"]).to(gpu)
        assert adjusted_rand_score(golden[f"labels{epoch}"], clusterer.fit(features, golden["image"])) == 1.0
    assert clusterer.threshold == pytest.approx(float(golden["threshold"]), abs=1e-6)


def test_clusters_keep_one_person_an_image_and_are_as_pure_as_the_reference(golden):
    labels = SelfPacedDBSCAN().fit(golden["feature"], golden["image"])
    pairs = np.stack([labels, golden["image"]], axis=1)
    assert len(np.unique(pairs, axis=0)) == len(pairs)
    expected = pair_precision_recall(golden["labels1"], golden["pid"])
    assert pair_precision_recall(labels, golden["pid"]) == pytest.approx(expected)
    assert expected[0] > 10 * pair_precision_recall(np.zeros_like(labels), golden["pid"])[0]


@pytest.mark.parametrize("n", [0, 1, 3])
def test_few_rows_are_singletons(n):
    features = torch.nn.functional.normalize(torch.randn(n, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert sorted(SelfPacedDBSCAN().fit(features, np.arange(n)).tolist()) == list(range(n))


def test_identical_rows_and_rows_never_seen():
    features = torch.zeros(12, 4)
    features[:10, 0] = 1
    labels = SelfPacedDBSCAN().fit(features, np.arange(12))
    assert len(set(labels[:10].tolist())) == 1 and len(set(labels.tolist())) == 3
    with pytest.raises(ValueError, match="NaN|finite"):
        SelfPacedDBSCAN().fit(features / 0.0, np.arange(12))
