"""The output folder of a training or an evaluation: how it begins, and what tools read there afterwards."""

from __future__ import annotations

import logging
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import get_config
from ..data import register_custom
from ..errors import ConfigError, DatasetError
from ..io import probe_folder, replacing
from .logging import log_start, setup_logging


def begin_run(cfg: CfgNode) -> None:
    """Makes OUTPUT_DIR with config.yaml, and logs there and on the console unless the program logs already.

    For trainings that a program starts; `train_net.py` calls Detectron2's `default_setup`, which does the same.

    Raises:
        ConfigError: the folder cannot be written.
    """
    check_output_dir(cfg.OUTPUT_DIR)
    if not logging.getLogger("person_search").hasHandlers():
        setup_logging(cfg.OUTPUT_DIR)
        log_start(cfg.OUTPUT_DIR, cfg.MODEL.DEVICE)
    if comm.is_main_process():
        with replacing(Path(cfg.OUTPUT_DIR) / "config.yaml", error=ConfigError) as temporary:
            temporary.write_text(cfg.dump(), encoding="utf-8")


def check_output_dir(folder: str) -> None:
    """Makes a run's folder.

    Raises:
        ConfigError: it cannot be written, or Detectron2 would take its name for that of a log.
    """
    if folder.endswith((".txt", ".log")):
        raise ConfigError(f"OUTPUT_DIR is {folder}: give a folder whose name ends with neither .txt nor .log")
    try:
        probe_folder(folder)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {folder} cannot be written ({error}): choose another folder") from error


def config_of_run(run_dir: Path) -> CfgNode:
    """The configuration of a run; its custom datasets are registered.

    Args:
        run_dir: OUTPUT_DIR of the run.

    Raises:
        DatasetError: the folder holds no config.yaml.
        ConfigError: the config does not fit this version.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise DatasetError(f"{file} is missing: give the OUTPUT_DIR of a training or an evaluation")
    cfg = get_config(str(file))
    register_custom(cfg.DATASETS.CUSTOM)
    return cfg


def evaluated_sets(run_dir: Path) -> dict[str, Path]:
    """Test set -> folder of its evaluation, for those that have a queries.json, by name."""
    return {file.parent.name: file.parent for file in sorted(run_dir.glob("inference/*/queries.json"))}
