"""The output folder of a training or an evaluation: how it begins, and what tools read there afterwards."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.utils import comm

from ..config import get_config
from ..config_files import flatten
from ..data import register_custom
from ..errors import CheckpointError, ConfigError, DatasetError
from ..io import probe_folder, replacing
from .logging import log_start, setup_logging

logger = logging.getLogger(__name__)


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


_START = "it has done its work before the first iteration"
_REFUSED: Mapping[str, str] = {
    "SOLVER.IMS_PER_BATCH": "epochs, and the frames that are still to come, are counted in batches of that size",
    "SOLVER.OPTIMIZER": "the state of the one does not fit the other",
    "SOLVER.AMP.ENABLED": "the state of the optimizer belongs to the one precision",
    "SEED": "it settles which frames are still to come",
    "MODEL.OBJECTIVE.NAME": "what it remembers belongs to it",
    "MODEL.BACKBONE.FREEZE_AT": "the optimizer's state belongs to the weights that were trained",
    "SSL.CLUSTERING.INDEPENDENCE_QUANTILE": "the threshold is frozen since the first clustering",
    "SSL.MEMORY.CALIBRATION_FRAMES": _START,
}
# Where a run writes and reads, and how fast: of no effect on what is learnt.
_UNMENTIONED = ("MODEL.WEIGHTS", "MODEL.DEVICE", "OUTPUT_DIR", "VERSION", "DATALOADER.")


def check_resumed_config(cfg: CfgNode, text: str | None) -> None:
    """Compares the config of a resumed training with that of its checkpoint, and says which keys have changed.

    Args:
        cfg: config of now, its schedule written in iterations.
        text: config of the checkpoint as YAML text; None: an old checkpoint, which carries none.

    Raises:
        CheckpointError: a key has changed that cannot be applied any more.
    """
    before = _parse(text)
    changed = {
        key: (before[key], value) for key, value in flatten(cfg).items() if key in before and before[key] != value
    }
    refused = [key for key in changed if key in _REFUSED]
    if refused:
        key = refused[0]
        raise CheckpointError(
            f"{key} is {_shown(changed[key][1])}, but the training began with {_shown(changed[key][0])} and cannot "
            f"change it: {_REFUSED[key]}. Set it back, or start anew in another OUTPUT_DIR"
        )
    applied = [
        f"{key} {_shown(old)} -> {_shown(new)}"
        for key, (old, new) in changed.items()
        if not key.startswith(_UNMENTIONED)
    ]
    if "MODEL.WEIGHTS" in changed:
        logger.warning("MODEL.WEIGHTS is not read: a resumed training goes on from its own weights")
    if applied:
        logger.warning("Resuming with changed settings, which count from now on: %s", "; ".join(applied))


def _parse(text: str | None) -> dict[str, Any]:
    """Dotted key -> value of a config as text; {} where it cannot be read (a checkpoint does not fail for that)."""
    try:
        content = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    return flatten(content) if isinstance(content, Mapping) else {}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
