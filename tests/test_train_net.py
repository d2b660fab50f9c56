"""The entry point: the two commands of the README, and one clear line for every kind of bad input."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from detectron2.engine import default_argument_parser
from detectron2.utils.logger import setup_logger

from .programs import load_program

COMMON = [
    *("DATASETS.TRAIN", "('synthetic_tiny_train',)", "DATASETS.TEST", "('synthetic_tiny_test',)"),
    *("INPUT.MIN_SIZE_TRAIN", "(144,)", "INPUT.MAX_SIZE_TRAIN", "256", "INPUT.MIN_SIZE_TEST", "144"),
    *("INPUT.MAX_SIZE_TEST", "256", "SOLVER.MAX_ITER", "2", "MODEL.DEVICE", "cpu"),
    *("SSL.CLUSTERING.K1", "8", "SSL.CLUSTERING.K2", "3", "SSL.MEMORY.CALIBRATION_FRAMES", "2"),
    *("MODEL.RESNETS.STEM_OUT_CHANNELS", "8", "MODEL.RESNETS.RES2_OUT_CHANNELS", "16"),
    *("MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION", "4", "SSL.EXEMPLAR.SCALES", "((24, 12), (48, 24))"),
]


@pytest.fixture(scope="module")
def train_net(repository: Path) -> ModuleType:
    return load_program(repository / "train_net.py")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("datasets")


@pytest.fixture(autouse=True)
def dataset_root(scenes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(scenes))


@pytest.fixture(autouse=True)
def fresh_logging() -> None:
    """Handlers of an earlier test write to its captured streams, which are closed by now."""
    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "person_search"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True  # else the test runner adds a handler of its own


def call(train_net: ModuleType, repository: Path, output: Path, *words: str, options: tuple[str, ...] = ()):
    config = str(repository / "projects" / "SSL" / "configs" / "synthetic.yaml")
    arguments = ["--config-file", config, *words, *COMMON, "OUTPUT_DIR", str(output), *options]
    return train_net.main(default_argument_parser().parse_args(arguments))


@pytest.fixture(scope="module")
def trained(train_net: ModuleType, repository: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a training that evaluated before and after."""
    output = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(scenes))
        call(train_net, repository, output, options=("TEST.EVAL_BEFORE_TRAINING", "True"))
    return output


def refused(capfd: pytest.CaptureFixture[str], train_net, repository, output, *words, options=()) -> str:
    """The one line with which a call ends; no traceback may be printed."""
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        call(train_net, repository, output, *words, options=options)
    printed = "".join(capfd.readouterr())
    assert exit_info.value.code == 2 and "Traceback" not in printed
    assert printed.strip(), "nothing was printed"
    return printed.strip().splitlines()[-1]


def test_what_a_gpu_trained_is_evaluated_on_a_cpu_with_the_same_figures(train_net, repository, tmp_path, gpu):
    output = tmp_path / "run"
    call(train_net, repository, output, options=("MODEL.DEVICE", gpu))
    weights = ("MODEL.WEIGHTS", str(output / "model_final.pth"))
    there, here = (
        call(train_net, repository, output, "--eval-only", options=(*weights, "MODEL.DEVICE", device))
        for device in (gpu, "cpu")
    )
    assert there["search"]["mAP"] == pytest.approx(here["search"]["mAP"], abs=1.0)
    assert there["detection"]["AP"] == pytest.approx(here["detection"]["AP"], abs=1.0)


@pytest.mark.parametrize("words", [(), ("--resume",)], ids=["weights", "last checkpoint"])
def test_trains_then_evaluates_from_the_checkpoint(train_net, repository, trained, tmp_path, words):
    output = shutil.copytree(trained, tmp_path / "run")
    lines = [json.loads(line) for line in (output / "metrics.json").open()]
    logged = {key for line in lines for key in line}
    assert {"loss_scale", "pseudo_labels/clusters", "search/mAP", "untrained/search/mAP", "detection/AP"} <= logged
    shutil.rmtree(output / "inference")
    weights = () if words else ("MODEL.WEIGHTS", str(output / "model_final.pth"))
    results = call(train_net, repository, output, "--eval-only", *words, options=weights)
    final = next(line for line in reversed(lines) if "search/mAP" in line)
    assert results["search"]["mAP"] == pytest.approx(final["search/mAP"], abs=1e-6)
    assert results["detection"]["AP"] == pytest.approx(final["detection/AP"], abs=1e-6)
    folder = output / "inference" / "synthetic_tiny_test"
    queries = json.loads((folder / "queries.json").read_text())
    assert queries and (folder / "results.json").exists()


def test_an_unknown_key(capfd, train_net, repository, tmp_path):
    line = refused(capfd, train_net, repository, tmp_path, options=("SSL.MEMORY.LAMBDAA", "0.5"))
    assert "unknown config key SSL.MEMORY.LAMBDAA; did you mean SSL.MEMORY.LAMBDA" in line


def test_a_data_set_that_is_not_registered_or_not_there(capfd, train_net, repository, tmp_path):
    line = refused(capfd, train_net, repository, tmp_path, options=("DATASETS.TRAIN", "('prw_trian',)"))
    assert "dataset prw_trian is not registered" in line and "prw_train" in line
    line = refused(capfd, train_net, repository, tmp_path, options=("DATASETS.TRAIN", "('prw_train',)"))
    assert "PRW" in line and "DETECTRON2_DATASETS" in line


def test_weights_that_are_missing_or_of_a_backbone_alone(capfd, train_net, repository, tmp_path):
    line = refused(capfd, train_net, repository, tmp_path, "--eval-only")
    assert "MODEL.WEIGHTS is empty" in line
    line = refused(capfd, train_net, repository, tmp_path, "--eval-only", options=("MODEL.WEIGHTS", "nowhere.pth"))
    assert "nowhere.pth do not exist" in line
    torch.save({"backbone.stem.conv1.weight": torch.zeros(16, 3, 7, 7)}, tmp_path / "backbone.pth")
    weights = ("MODEL.WEIGHTS", str(tmp_path / "backbone.pth"))
    line = refused(capfd, train_net, repository, tmp_path, "--eval-only", options=weights)
    assert "is not a trained person search model" in line


def test_an_unreadable_image_stops_the_evaluation_and_is_skipped_in_training(
    capfd, train_net, repository, tmp_path, scenes, trained
):
    (folder,) = (p for p in scenes.glob("synthetic-tiny-*") if p.is_dir() and not p.name.endswith(".partial"))
    broken = [sorted((folder / split).glob("*.png"))[1] for split in ("train", "test")]
    whole = [path.read_bytes() for path in broken]
    try:
        for path, content in zip(broken, whole, strict=True):
            path.write_bytes(content[: len(content) // 2])
        weights = ("MODEL.WEIGHTS", str(trained / "model_final.pth"))
        line = refused(capfd, train_net, repository, tmp_path, "--eval-only", options=weights)
        assert str(broken[1]) in line
        line = refused(capfd, train_net, repository, tmp_path / "again", options=("SOLVER.MAX_ITER", "9"))
        assert str(broken[1]) in line  # the evaluation at the end; the training went through
        assert (tmp_path / "again" / "model_final.pth").exists()
        log = (tmp_path / "again" / "log.txt").read_text()
        assert f"skipped: {broken[0]}" in log and "Skipped 1 unreadable images" in log
    finally:
        for path, content in zip(broken, whole, strict=True):
            path.write_bytes(content)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("MODEL.DEVICE", "tpu"), "MODEL.DEVICE is 'tpu', expected a device"),
        (("SEED", "99999999999"), "SEED is 99999999999, expected less than"),
        (("OUTPUT_DIR", "{}/a.txt"), "the name of a folder must not end in .txt or .log"),
        (("OUTPUT_DIR", "{}/taken/x"), "taken/x cannot be written"),
        (("OUTPUT_DIR", "{}/taken"), "taken cannot be written"),
    ],
)
def test_values_that_the_set_up_would_stumble_over(capfd, train_net, repository, tmp_path, options, message):
    (tmp_path / "taken").write_text("a file")
    options = tuple(word.format(tmp_path) for word in options)
    assert message in refused(capfd, train_net, repository, tmp_path / "run", options=options)


def test_a_bad_test_set_ends_the_run_before_its_training(capfd, train_net, repository, tmp_path):
    for name, message in (("prw_tset", "dataset prw_tset is not registered"), ("prw_test", "PRW is missing")):
        line = refused(capfd, train_net, repository, tmp_path, options=("DATASETS.TEST", f"('{name}',)"))
        assert message in line
    options = ("TEST.PERSON_SEARCH.GALLERY", "nothing")
    assert "TEST.PERSON_SEARCH.GALLERY" in refused(capfd, train_net, repository, tmp_path, options=options)
    assert not list(tmp_path.glob("*.pth")) and not (tmp_path / "metrics.json").exists()


def test_an_evaluation_needs_a_test_set(capfd, train_net, repository, tmp_path):
    line = refused(capfd, train_net, repository, tmp_path, "--eval-only", options=("DATASETS.TEST", "()"))
    assert "DATASETS.TEST is empty" in line


def test_an_evaluation_refuses_what_it_cannot_be_built_from(capfd, train_net, repository, tmp_path):
    for key, value in (("MODEL.META_ARCHITECTURE", "Nothing"), ("DATALOADER.NUM_WORKERS", "-1")):
        line = refused(capfd, train_net, repository, tmp_path, "--eval-only", options=(key, value))
        assert f"{key} is" in line


def test_without_detectron2_one_line_says_what_to_do(repository):
    hidden = "import sys, runpy; sys.modules['detectron2'] = None; runpy.run_path('train_net.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", hidden], cwd=repository, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: person_search needs Detectron2") and len(done.stderr.splitlines()) == 1
