"""Pseudo labels in training: each key against brute force, clusterings of nothing, and processes that have to wait."""

from __future__ import annotations

import copy
import datetime
import json
import runpy
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from person_search import add_ssl_config
from person_search.data import training_set
from person_search.data.training_set import load_training_set, number_rows
from person_search.engine import PersonSearchTrainer
from person_search.engine.checks import build_clusterer, cluster_cameras
from person_search.engine.hooks import ClusterLabels
from person_search.errors import ConfigError, TrainingError
from person_search.labels import SelfPacedDBSCAN, jaccard_distance, pair_precision_recall
from person_search.labels.clustering import hdbscan
from person_search.modeling import SSLObjective
from sklearn.cluster import DBSCAN
from sklearn.metrics import adjusted_rand_score
from torch import Tensor
from torch.multiprocessing import start_processes

K1, K2 = 8, 3


def clustering(*options: object) -> CfgNode:
    """One radius, so that labels are those of the clusterer and of the same-image rule alone."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_list(["SSL.CLUSTERING.K1", K1, "SSL.CLUSTERING.K2", K2, "SSL.CLUSTERING.EPS", (0.6,), *options])
    return cfg


def seen_persons(persons: int, sightings: int, noise: float, seed: int = 0) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Unit features (N, 16) of persons seen twice in each image, and cameras whose look shifts every feature."""
    random = np.random.default_rng(seed)
    person = np.repeat(np.arange(persons), sightings)
    camera = np.tile(np.arange(sightings) // 2 % 2, persons)
    features = random.standard_normal((persons, 16))[person] + 1.2 * random.standard_normal((2, 16))[camera]
    features += noise * random.standard_normal(features.shape)
    return F.normalize(torch.from_numpy(features).float(), dim=1), np.arange(len(person)) // 2, camera


def one_to_an_image(labels: np.ndarray, features: Tensor, images: np.ndarray) -> np.ndarray:
    """Outliers and all but the central one of a cluster's members in an image become singletons; by loops."""
    result = np.where(labels < 0, 10_000 + np.arange(len(labels)), labels)
    for label in set(labels[labels >= 0].tolist()):
        members = np.flatnonzero(labels == label)
        near = (features[members] @ features[members].mean(0)).numpy()
        for row, own in zip(members, near, strict=True):
            if any(images[o] == images[row] and x > own for o, x in zip(members, near, strict=True)):
                result[row] = 20_000 + row
    return result


def on_full_matrix(features: Tensor) -> np.ndarray:
    """scikit-learn's DBSCAN on the full Jaccard distance."""
    stored = jaccard_distance(features, K1, K2).tocoo()
    full = np.ones(stored.shape)
    full[stored.row, stored.col] = stored.data
    return DBSCAN(eps=0.6, min_samples=4, metric="precomputed").fit_predict(full)


def centred(features: Tensor, cameras: np.ndarray) -> Tensor:
    """Each camera's offset from the mean of all taken out, the mean weighted as if 16 more rows were seen at no
    offset."""
    result = features.clone()
    for camera in set(cameras.tolist()):
        own = torch.from_numpy(cameras == camera)
        offset = (features[own] - features.mean(0)).sum(0) / (own.sum() + 16)
        result[own] = F.normalize(features[own] - offset, dim=1)
    return result


def test_each_key_changes_the_labels_as_brute_force_says():
    features, images, cameras = seen_persons(30, 8, noise=0.6)
    joined = on_full_matrix(features)
    free = np.where(joined < 0, 10_000 + np.arange(len(joined)), joined)
    expected = {
        (): one_to_an_image(joined, features, images),
        ("SSL.CLUSTERING.SAME_IMAGE_RULE", False): free,
        ("SSL.CLUSTERING.CAMERA_AWARE", True): one_to_an_image(
            on_full_matrix(centred(features, cameras)), centred(features, cameras), images
        ),
        ("SSL.CLUSTERING.ALGORITHM", "hdbscan"): one_to_an_image(
            hdbscan(jaccard_distance(features, K1, K2), 0.6, 4), features, images
        ),
    }
    records = [{"camera_id": int(c), "annotations": [{}, {}]} for c in cameras[::2]]
    for options, labels in expected.items():
        cfg = clustering(*options)
        found = build_clusterer(cfg).fit(features, images, cluster_cameras(cfg, number_rows(records)))
        assert adjusted_rand_score(labels, found) == 1.0, options
        assert not options or adjusted_rand_score(expected[()], found) < 1, options


def test_cameras_of_two_sets_differ_and_unknown_ones_are_refused(cfg, monkeypatch):
    read = training_set.registered_records
    name = "synthetic_tiny_train"
    assert len(set(load_training_set([name]).camera_index)) == len({r["camera_id"] for r in read(name)})
    both = load_training_set([name, "synthetic_tiny_test"])
    first = both.camera_index[both.image_index < len([r for r in read(name) if r["annotations"]])]
    assert not set(first) & set(both.camera_index[len(first) :])

    def unknown(name: str):
        return [{k: v for k, v in r.items() if k != "camera_id"} for r in read(name)]

    monkeypatch.setattr(training_set, "registered_records", unknown)
    assert (load_training_set([name]).camera_index == -1).all()
    cfg.SSL.CLUSTERING.CAMERA_AWARE = True
    with pytest.raises(ConfigError, match="no frame of synthetic_tiny_train has a camera_id"):
        PersonSearchTrainer(cfg)


def test_tracklets_join_their_boxes_where_the_key_is_set_and_are_refused_where_there_are_none(cfg, monkeypatch):
    read, name = training_set.registered_records, "synthetic_tiny_train"

    def tracked(name: str):
        """Boxes by their places in the frame, four frames at a time: nothing to do with who they are."""
        records = copy.deepcopy(read(name))
        for number, record in enumerate(records):
            for place, annotation in enumerate(record["annotations"]):
                annotation["tracklet_id"] = 100 * (number // 4) + place
        return records

    cfg.SSL.CLUSTERING.TRACKLETS = True
    with pytest.raises(ConfigError, match="no box of synthetic_tiny_train has a tracklet_id"):
        PersonSearchTrainer(cfg)
    monkeypatch.setattr(training_set, "registered_records", tracked)
    tracklets = load_training_set([name]).tracklet_index
    for used in (True, False):
        cfg.SSL.CLUSTERING.TRACKLETS = used
        cfg.OUTPUT_DIR = f"{cfg.OUTPUT_DIR}/{used}"
        trainer = PersonSearchTrainer(cfg)
        trainer.resume_or_load(resume=False)
        (hook,) = (hook for hook in trainer._hooks if isinstance(hook, ClusterLabels))
        hook.trainer = SimpleNamespace(iter=0, storage=EventStorage(0))
        random = torch.Generator().manual_seed(0)
        bank = hook.objective.instance_bank.features
        bank.copy_(F.normalize(torch.randn(bank.shape, generator=random), dim=1))
        if hook.objective.multi_scale_bank is not None:
            hook.objective.multi_scale_bank.features.copy_(bank)
        hook.objective.set_threshold(0.5)
        hook.before_step()
        labels = hook.objective.cluster_labels.numpy()
        joined = [len(set(labels[tracklets == tracklet].tolist())) == 1 for tracklet in set(tracklets.tolist())]
        assert all(joined) == used


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("ALGORITHM", "kmeans"), "ALGORITHM: clusterer is 'kmeans', expected one of dbscan, hdbscan"),
        (("EPS", (0.6, 0.7)), "EPS: eps is"),
        (("MIN_SAMPLES", 0), "MIN_SAMPLES: min_samples is 0"),
        (("INDEPENDENCE_QUANTILE", 1.5), "INDEPENDENCE_QUANTILE: quantile is 1.5"),
        (("PERIOD", 0), "PERIOD is 0"),
        (("FEATURES", "disk"), "FEATURES is 'disk', expected 'bank' or 'extract'"),
    ],
)
def test_unusable_values_are_refused(cfg, options, message):
    cfg.merge_from_list([f"SSL.CLUSTERING.{options[0]}", options[1]])
    with pytest.raises(ConfigError, match=f"SSL.CLUSTERING.{message}"):
        PersonSearchTrainer(cfg)


def test_extracting_for_labels_that_no_loss_reads_is_refused(cfg):
    cfg.merge_from_list(["SSL.CLUSTERING.FEATURES", "extract", "SSL.CLUSTER_LOSS.WEIGHT", 0.0])
    with pytest.raises(ConfigError, match="SSL.CLUSTER_LOSS.WEIGHT 0 no loss uses the cluster labels"):
        PersonSearchTrainer(cfg)


# ---------------------------------------------------------------------- training


class Kill(HookBase):
    """Stops the training after an iteration, when its checkpoint stands."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self) -> None:
        if self.trainer.iter == self.iteration:
            raise KeyboardInterrupt


@pytest.fixture
def few_frames(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> CfgNode:
    """Two epochs of two iterations, each with a checkpoint."""
    read = training_set.registered_records
    monkeypatch.setattr(training_set, "registered_records", lambda name: read(name)[:4])
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    return cfg


def trained(cfg: CfgNode, folder: Path, resume: bool = False, kill_at: int | None = None) -> PersonSearchTrainer:
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(folder)
    folder.mkdir(exist_ok=True)
    trainer = PersonSearchTrainer(cfg)
    trainer.resume_or_load(resume)
    if kill_at is None:
        trainer.train()
        return trainer
    trainer.register_hooks([Kill(kill_at)])
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    return trainer


def embedded_one_by_one(trainer: PersonSearchTrainer, batches: list[list[dict]]) -> Tensor:
    """Mean of f_i and f^h of every person (Eq. 6), each box and each exemplar through the network by itself."""
    model = trainer.person_search_model.eval()
    result = torch.zeros(model.objective.size, model.objective.dim)
    for batch in batches:
        for i, row in enumerate(batch[0]["instances"].gt_instance_index.tolist()):
            alone = dict(batch[0], instances=batch[0]["instances"][i : i + 1])
            _, instance, multi_scale = model.embed_persons([alone])
            result[row] = F.normalize(F.normalize(instance, dim=1) + F.normalize(multi_scale, dim=1), dim=1)[0]
    model.train()
    return result


def test_extraction_clusters_features_of_the_current_network_and_leaves_the_banks_alone(
    few_frames, tmp_path, monkeypatch
):
    few_frames.SSL.CLUSTERING.FEATURES = "extract"
    few_frames.OUTPUT_DIR = str(tmp_path)
    seen: list[tuple[Tensor, Tensor]] = []
    trainer = PersonSearchTrainer(few_frames)
    batches = list(trainer.bank_loader())

    def fit(self: SelfPacedDBSCAN, features: Tensor, *_: object) -> np.ndarray:
        assert trainer.model.training and trainer.person_search_model.roi_heads.reid_head.embedding.training
        seen.append(
            (features, embedded_one_by_one(trainer, batches), trainer.person_search_model.objective.label_features())
        )
        return np.zeros(len(features), np.int64)

    monkeypatch.setattr(SelfPacedDBSCAN, "fit", fit)
    trainer.train()
    assert len(seen) == 2
    for features, expected, _ in seen:
        torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    # Before the first iteration the banks hold the same features, and later older ones.
    torch.testing.assert_close(seen[0][0], seen[0][2], rtol=1e-5, atol=1e-5)
    assert (seen[1][0] - seen[1][2]).abs().max() > 1e-3


def test_every_option_resumes_to_the_unbroken_run(few_frames, tmp_path):
    few_frames.merge_from_list([
        *("SSL.CLUSTERING.FEATURES", "extract", "SSL.CLUSTERING.ALGORITHM", "hdbscan"),
        *("SSL.CLUSTERING.CAMERA_AWARE", True),
        *("SSL.CLUSTERING.SAME_IMAGE_RULE", False, "SSL.CLUSTERING.EPS", (0.5, 0.6, 0.8)),
    ])  # fmt: skip
    expected = trained(few_frames, tmp_path / "unbroken")
    # Once between two epochs, where the next thing is a clustering, and once within an epoch, whose labels are kept.
    trained(few_frames, tmp_path / "broken", kill_at=1)
    trained(few_frames, tmp_path / "broken", resume=True, kill_at=2)
    resumed = trained(few_frames, tmp_path / "broken", resume=True)
    assert resumed.start_iter == 3
    states = [t.person_search_model.state_dict() for t in (expected, resumed)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    thresholds = [next(h for h in t._hooks if isinstance(h, ClusterLabels)).state_dict() for t in (expected, resumed)]
    assert thresholds[0] == thresholds[1] and thresholds[0]["threshold"] is not None


def test_multi_labels_are_judged_at_the_threshold_that_the_epoch_trains_with(few_frames, tmp_path, monkeypatch):
    predict, judge = SSLObjective.predict_labels, ClusterLabels.judge
    seen: list[tuple[str, int, float]] = []
    now = {"who": "trained", "iteration": 0}

    def predicted(self: SSLObjective, rows: Tensor) -> Tensor:
        seen.append((str(now["who"]), int(now["iteration"]), self.threshold))
        return predict(self, rows)

    def judged(self: ClusterLabels) -> None:
        now.update(who="judged", iteration=self.trainer.iter)
        judge(self)
        now.update(who="trained")

    monkeypatch.setattr(SSLObjective, "predict_labels", predicted)
    monkeypatch.setattr(ClusterLabels, "judge", judged)
    trained(few_frames, tmp_path / "run", kill_at=1)
    trained(few_frames, tmp_path / "run", resume=True)  # from the first iteration of the second epoch
    keys = few_frames.SSL.THRESHOLD
    first, second = (keys.INITIAL + keys.ALPHA * np.exp(keys.BETA * epoch) for epoch in (0, 1))
    assert {(who, at) for who, at, _ in seen} == {(who, at) for who in ("judged", "trained") for at in (0, 2)}
    for who, at, threshold in seen:
        assert threshold == pytest.approx(second if at else first), (who, at)


@pytest.mark.parametrize("clusters", ["none", "one", "singletons"])
def test_clusterings_of_nothing_train_on(few_frames, tmp_path, monkeypatch, clusters):
    if clusters == "none":
        few_frames.SSL.CLUSTERING.MIN_SAMPLES = 100  # more than there are rows
    else:
        label = {"one": np.zeros, "singletons": np.arange}[clusters]
        monkeypatch.setattr(SelfPacedDBSCAN, "fit", lambda self, features, *_: label(len(features), dtype=np.int64))
    trainer = trained(few_frames, tmp_path / "run")
    labels = trainer.person_search_model.objective.cluster_labels
    assert len(labels.unique()) == (1 if clusters == "one" else len(labels))
    assert all(v.isfinite().all() for v in trainer.person_search_model.state_dict().values())
    assert trainer.storage.latest()["loss_cluster_instance"][0] >= 0


def test_the_options_of_a_finished_run_are_compared(few_frames, tmp_path, repository, monkeypatch, capsys):
    few_frames.SOLVER.MAX_ITER = 1
    trainer = trained(few_frames, tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text(few_frames.dump())
    main = runpy.run_path(str(repository / "benchmarks" / "clustering_options.py"))["main"]
    monkeypatch.setattr("sys.argv", ["clustering_options.py", str(tmp_path / "run")])
    main()
    line = json.loads(capsys.readouterr().out)
    assert line["n"] == len(trainer.training_set) and list(line["rows"])[:2] == ["paper", "extract"]
    labels = build_clusterer(few_frames).fit(
        trainer.person_search_model.objective.label_features(), trainer.training_set.image_index
    )
    expected = pair_precision_recall(labels, trainer.training_set.person_ids)
    assert (line["rows"]["paper"]["precision"], line["rows"]["paper"]["recall"]) == pytest.approx(expected, abs=1e-4)
    for row in line["rows"].values():
        assert 0 <= row["precision"] <= 1 and 2 * row["clusters"] + row["singletons"] <= line["n"]
    monkeypatch.setattr("sys.argv", ["clustering_options.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="holds no training run"):
        main()


# ---------------------------------------------------------------------- the hook alone


def hook_of(rows: int, clusterer: object, features: Tensor | None = None) -> ClusterLabels:
    """A hook at iteration 0 over banks of `rows` persons, two to a frame."""
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.MODEL.REID_HEAD.EMBEDDING_DIM = 4
    objective = SSLObjective(cfg)
    records = [{"file_name": f"frame{i}.jpg", "annotations": [{}, {}]} for i in range(rows // 2)]
    objective.allocate(torch.from_numpy(number_rows(records).image_index))
    if features is not None:
        objective.instance_bank.features.copy_(features)
    hook = ClusterLabels(objective, clusterer, number_rows(records), iterations=1)
    hook.trainer = SimpleNamespace(iter=0, storage=EventStorage(0))
    return hook


def test_rows_that_cannot_be_clustered_are_reported_with_their_frames(caplog):
    features = F.normalize(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    features[5] = 0
    hook = hook_of(8, SelfPacedDBSCAN(k1=3, k2=1), features)
    hook.before_step()
    assert "1 of 8 features are zero" in caplog.text and "in frame2.jpg, become singletons" in caplog.text
    assert (hook.objective.cluster_labels == hook.objective.cluster_labels[5]).sum() == 1
    features[2, 1], features[7, 0] = torch.nan, torch.inf
    with pytest.raises(
        TrainingError, match=r"^2 features .* NaN or infinite at iteration 0; .* frame1.jpg, frame3.jpg\."
    ):
        hook_of(8, SelfPacedDBSCAN(), features).before_step()


def test_features_that_cannot_be_clustered_stop_the_training(monkeypatch):
    monkeypatch.setattr("person_search.labels.jaccard.MAX_PAIRS", 10)
    with pytest.raises(TrainingError, match="the clustering before iteration 0 failed: more than 10 pairs of 8 rows"):
        hook_of(8, SelfPacedDBSCAN(), torch.ones(8, 4) / 2).before_step()


class SlowClusterer:
    """Takes longer than the collectives may wait."""

    def fit(self, features: Tensor, *_: object) -> np.ndarray:
        time.sleep(2.5)
        return np.arange(len(features)) // 3


def cluster_slowly(rank: int, folder: str) -> None:
    torch.set_num_threads(1)  # threads of the forked process do not exist here
    # The processes first meet with patience, since they start one after the other.
    for name, seconds in (("meeting", 60), ("training", 1)):
        limit = datetime.timedelta(seconds=seconds)
        dist.init_process_group("gloo", f"file://{folder}/{name}", world_size=2, rank=rank, timeout=limit)
        dist.barrier()
        if name == "meeting":
            dist.destroy_process_group()
    hook = hook_of(12, SlowClusterer(), torch.ones(12, 4) / 2)
    hook.before_train()
    hook.before_step()
    tripped = False
    try:  # What the usual limit does when the first process is as late again.
        if rank == 0:
            time.sleep(2.5)
        dist.barrier()
    except RuntimeError:
        tripped = True
    torch.save({"labels": hook.objective.cluster_labels, "tripped": tripped}, f"{folder}/labels.{rank}")


def test_other_processes_wait_longer_than_the_collectives_time_limit(tmp_path):
    # Forked: a new process would spend ten times longer on its imports.
    start_processes(cluster_slowly, (str(tmp_path),), nprocs=2, start_method="fork")
    first, second = (torch.load(tmp_path / f"labels.{rank}") for rank in (0, 1))
    assert torch.equal(first["labels"], torch.arange(12) // 3) and torch.equal(second["labels"], first["labels"])
    assert second["tripped"]
