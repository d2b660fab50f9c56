"""Evaluations that take features from disk: no second run of the network, resumed ones, several processes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from person_search.engine import PersonSearchTrainer
from person_search.engine.testing import check_expected_results, verify_expected_results
from person_search.errors import ConfigError, DatasetError, ExpectationError

from ..processes import launch_two

NUM_FRAMES = 12


class Counting(torch.nn.Module):
    """A network that counts its frames and stops as if interrupted when `limit` have gone through."""

    def __init__(self, model: torch.nn.Module, limit: int | None = None) -> None:
        super().__init__()
        self.model, self.limit, self.frames = model, limit, 0

    def forward(self, inputs: list[dict]) -> list[dict]:
        if self.frames == self.limit:
            raise KeyboardInterrupt
        self.frames += len(inputs)
        return self.model(inputs)

    def state_dict(self, *args, **kwargs):
        return self.model.state_dict(*args, **kwargs)


def build(cfg: CfgNode, balance: Callable, *options: object, limit: int | None = None) -> Counting:
    """The same random weights whatever the options."""
    torch.manual_seed(5)
    plain = PersonSearchTrainer.build_model(cfg)
    plain.roi_heads.box_head.predictor.cls_score.weight.data.normal_(std=0.3)
    balance(plain, next(iter(PersonSearchTrainer.build_test_loader(cfg, "synthetic_tiny_test")))[0]["image"])
    cfg = cfg.clone()
    cfg.merge_from_list(list(options))
    model = PersonSearchTrainer.build_model(cfg)
    model.load_state_dict(plain.state_dict())
    return Counting(model, limit)


@pytest.fixture
def evaluate(balance: Callable) -> Callable[..., tuple[dict, int]]:
    """Evaluates with some options; figures, and how many frames went through the network."""

    def evaluate(cfg: CfgNode, *options: object, keep: bool = True, limit: int | None = None) -> tuple[dict, int]:
        model = build(cfg, balance, *options, limit=limit)
        cfg = cfg.clone()
        cfg.merge_from_list(list(options))
        return PersonSearchTrainer.test(cfg, model, keep_features=keep), model.frames

    return evaluate


def evaluate_in_process(config: str, weights: str, output: str) -> None:
    """What each of several processes runs: two evaluations, one after the other."""
    from detectron2.config import get_cfg
    from person_search import add_ssl_config

    torch.set_num_threads(1)
    cfg = get_cfg()
    add_ssl_config(cfg)
    cfg.merge_from_file(config)
    results = []
    for _ in range(2):
        model = Counting(PersonSearchTrainer.build_model(cfg))
        model.model.load_state_dict(torch.load(weights))
        results.append((PersonSearchTrainer.test(cfg, model, keep_features=True), model.frames))
    Path(f"{output}.{comm.get_rank()}").write_text(json.dumps(results))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("datasets"))


@pytest.fixture
def cfg(shallow_cfg: CfgNode, scenes: str, tmp_path: Path) -> CfgNode:
    os.environ["DETECTRON2_DATASETS"] = scenes
    shallow_cfg.merge_from_list([
        *("DATASETS.TEST", ("synthetic_tiny_test",), "INPUT.MIN_SIZE_TEST", 144, "INPUT.MAX_SIZE_TEST", 256),
        *("OUTPUT_DIR", str(tmp_path)),
    ])  # fmt: skip
    return shallow_cfg


def folder_of(cfg: CfgNode) -> Path:
    return Path(cfg.OUTPUT_DIR) / "inference" / "features"


def read(cfg: CfgNode, name: str) -> dict | list:
    return json.loads((Path(cfg.OUTPUT_DIR) / "inference" / "synthetic_tiny_test" / name).read_text())


PROTOCOLS = {
    "query feature": ("TEST.PERSON_SEARCH.QUERY_FEATURE", "detection"),
    "unweighted": ("TEST.PERSON_SEARCH.SCORE_WEIGHTED", False),
    "threshold": ("TEST.PERSON_SEARCH.SCORE_THRESHOLD", 0.6),
    "context matching": ("TEST.PERSON_SEARCH.CBGM.ENABLED", True),
    "re-ranking": ("TEST.PERSON_SEARCH.RERANKING.ENABLED", True),
    "ground truth": ("TEST.PERSON_SEARCH.GALLERY", "ground_truth"),
}


def test_another_protocol_runs_no_network_and_gives_the_figures_of_a_fresh_run(evaluate, cfg):
    first, frames = evaluate(cfg)
    assert frames == NUM_FRAMES and first["detection"]["recall"] > 0
    assert evaluate(cfg) == (first, 0)
    for options in PROTOCOLS.values():
        stored, frames = evaluate(cfg, *options)
        queries = read(cfg, "queries.json")
        fresh, fresh_frames = evaluate(cfg, *options, keep=False)
        assert (frames, fresh_frames) == (0, NUM_FRAMES)
        assert stored == fresh and queries == read(cfg, "queries.json")


def test_other_weights_or_settings_have_features_of_their_own(evaluate, cfg, balance):
    evaluate(cfg)
    assert evaluate(cfg, "MODEL.RPN.POST_NMS_TOPK_TEST", 11)[1] == NUM_FRAMES
    assert evaluate(cfg, "INPUT.MIN_SIZE_TEST", 120)[1] == NUM_FRAMES
    model = build(cfg, balance)
    model.model.roi_heads.reid_head.embedding.rescaler.bias.data += 1e-3
    PersonSearchTrainer.test(cfg, model, keep_features=True)
    assert model.frames == NUM_FRAMES
    assert len(list(folder_of(cfg).iterdir())) == 4
    assert evaluate(cfg)[1] == 0


def test_the_store_can_be_moved_and_switched_off(evaluate, cfg, tmp_path):
    keys = "TEST.PERSON_SEARCH.FEATURE_STORE"
    figures, _ = evaluate(cfg, f"{keys}.ENABLED", False)
    assert evaluate(cfg, keep=False) == (figures, NUM_FRAMES)  # as evaluations during training
    assert not folder_of(cfg).exists()
    elsewhere = (f"{keys}.FOLDER", str(tmp_path / "elsewhere"))
    assert evaluate(cfg, *elsewhere) == (figures, NUM_FRAMES)
    assert evaluate(cfg, *elsewhere, "OUTPUT_DIR", str(tmp_path / "other")) == (figures, 0)
    assert not folder_of(cfg).exists()


def test_an_interrupted_extraction_goes_on(evaluate, cfg, caplog):
    expected, _ = evaluate(cfg, keep=False)
    for number in (5, 4):
        with pytest.raises(KeyboardInterrupt):
            evaluate(cfg, limit=number)
    with caplog.at_level(logging.INFO):
        assert evaluate(cfg) == (expected, NUM_FRAMES - 9)
    assert "features of 9 of 12 frames from" in caplog.text and "3 frames in " in caplog.text
    assert evaluate(cfg) == (expected, 0)


def test_a_damaged_file_and_a_changed_image_are_redone(evaluate, cfg, scenes, caplog):
    expected, _ = evaluate(cfg)
    (file,) = folder_of(cfg).glob("*/*.npz")
    file.write_bytes(file.read_bytes()[:-99])
    assert evaluate(cfg) == (expected, NUM_FRAMES)
    assert f"{file} is damaged" in caplog.text
    images = sorted(Path(scenes).glob("synthetic-tiny-*/test/*.png"))
    assert len(images) == NUM_FRAMES
    os.utime(images[2])
    assert evaluate(cfg) == (expected, 1)
    assert "1 of its 12 frames are outdated" in caplog.text
    images[4].rename(images[4].with_suffix(".gone"))
    try:
        with pytest.raises(DatasetError, match=images[4].name):
            evaluate(cfg)
    finally:
        images[4].with_suffix(".gone").rename(images[4])
    assert evaluate(cfg) == (expected, 0)


def test_two_processes_share_the_frames_and_resume_what_one_began(evaluate, cfg, tmp_path, balance):
    expected, _ = evaluate(cfg, keep=False)
    queries = read(cfg, "queries.json")
    (tmp_path / "config.yaml").write_text(cfg.dump())

    with pytest.raises(KeyboardInterrupt):
        evaluate(cfg, limit=5)
    output = str(tmp_path / "figures")
    weights = str(tmp_path / "weights.pth")
    torch.save(build(cfg, balance).state_dict(), weights)
    launch_two(evaluate_in_process, str(tmp_path / "config.yaml"), weights, output)
    first, second = (json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(2))
    # Figures are the first process's; of the seven frames left each did its part, and then nothing was left.
    assert first == [[expected, 4], [expected, 0]] and second == [[{}, 3], [{}, 0]]
    assert read(cfg, "queries.json") == queries
    for file in sorted(folder_of(cfg).glob("*/*.npz"))[1:]:
        file.unlink()
    figures, frames = evaluate(cfg)  # and one goes on with what two began
    assert figures == expected and 0 < frames < NUM_FRAMES


def expecting(cfg, *entries):
    cfg.TEST.EXPECTED_RESULTS = list(entries)
    return cfg


FIGURES = {"search": {"mAP": 41.23, "top1": 60.0}, "detection": {"AP": float("nan")}}


def test_results_are_compared_with_what_is_expected(cfg):
    verify_expected_results(expecting(cfg), FIGURES)
    verify_expected_results(expecting(cfg, ["search", "mAP", 41.2, 0.1], ["search", "top1", 60.0, 0.0]), FIGURES)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (["search", "mAP", 40.0, 0.5], "search/mAP is 41.2300, expected 40 within 0.5"),
        (["detection", "AP", 40.0, 99.0], "detection/AP is nan, expected 40"),
        (["bbox", "AP", 40.0, 0.5], "bbox/AP does not exist .there are search/mAP, search/top1, detection/AP"),
    ],
)
def test_results_that_are_not_as_expected_are_named(cfg, entry, message):
    with pytest.raises(ExpectationError, match=f"TEST.EXPECTED_RESULTS: {message}"):
        verify_expected_results(expecting(cfg, entry), FIGURES)


@pytest.mark.parametrize("entry", [["search", "mAP", 40.0], ["search", "mAP", "40", 1.0], "search", [1, 2, 3, 4]])
def test_malformed_expectations_are_refused_at_the_start(cfg, entry):
    with pytest.raises(ConfigError, match=r"TEST.EXPECTED_RESULTS holds .*expected \[task, metric, value, tolerance\]"):
        check_expected_results(expecting(cfg, entry))


def test_expectations_need_one_test_set(cfg):
    expecting(cfg, ["search", "mAP", 40.0, 1.0]).DATASETS.TEST = ()
    with pytest.raises(ConfigError, match="DATASETS.TEST names 0"):
        check_expected_results(cfg)
