"""Fixtures of the tests that train."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from detectron2.config import CfgNode


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of data sets, which the tiny scenes are generated into at first use."""
    folder = tmp_path_factory.mktemp("datasets")
    os.environ["DETECTRON2_DATASETS"] = str(folder)
    return folder


@pytest.fixture
def cfg(shallow_cfg: CfgNode, scenes: Path, tmp_path: Path) -> CfgNode:
    """Two epochs of eight iterations on the tiny scenes, without an evaluation."""
    shallow_cfg.merge_from_list([
        *("DATASETS.TRAIN", ("synthetic_tiny_train",), "DATASETS.TEST", ()),
        *("INPUT.MIN_SIZE_TRAIN", (144,), "INPUT.MAX_SIZE_TRAIN", 256, "INPUT.MIN_SIZE_TEST", 144),
        *("INPUT.MAX_SIZE_TEST", 256, "SOLVER.MAX_EPOCH", 2, "SOLVER.STEP_EPOCHS", (1,), "SOLVER.WARMUP_ITERS", 4),
        *("SOLVER.CHECKPOINT_EPOCHS", 0, "SOLVER.CHECKPOINT_PERIOD", 3, "SOLVER.LOG_PERIOD", 1),
        *("SSL.CLUSTERING.K1", 8, "SSL.CLUSTERING.K2", 3, "SSL.CLUSTERING.MIN_SAMPLES", 2),
        *("OUTPUT_DIR", str(tmp_path / "run"), "SEED", 3),
    ])  # fmt: skip
    return shallow_cfg
