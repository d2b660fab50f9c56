"""Output folder of a training or evaluation."""

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
    """Creates OUTPUT_DIR with config.yaml, and sets up logging unless the program has.

    For trainings started from Python; `train_net.py` calls Detectron2's `default_setup` instead, which does the same.

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
    """Creates the folder of a run.

    Raises:
        ConfigError: the folder cannot be written, or Detectron2 would mistake its name for a log file.
    """
    if folder.endswith((".txt", ".log")):
        raise ConfigError(f"OUTPUT_DIR is {folder}: the name of a folder must not end in .txt or .log")
    try:
        probe_folder(folder)
    except OSError as error:
        raise ConfigError(f"OUTPUT_DIR {folder} cannot be written ({error}): choose another folder") from error


def config_of_run(run_dir: Path) -> CfgNode:
    """Config of a run. Registers its custom datasets.

    Args:
        run_dir: OUTPUT_DIR of the run.

    Raises:
        DatasetError: the folder has no config.yaml.
        ConfigError: the config does not fit this version.
    """
    file = run_dir / "config.yaml"
    if not file.is_file():
        raise DatasetError(f"{file} is missing: give the OUTPUT_DIR of a training or an evaluation")
    cfg = get_config(str(file))
    register_custom(cfg.DATASETS.CUSTOM)
    return cfg


def evaluated_sets(run_dir: Path) -> dict[str, Path]:
    """Folders of evaluations by name of the test set, as far as they have a queries.json."""
    return {file.parent.name: file.parent for file in sorted(run_dir.glob("inference/*/queries.json"))}


# Keys that must not change, with the reason.
_REFUSED: Mapping[str, str] = {
    "SOLVER.IMS_PER_BATCH": "epochs and the remaining frames are counted in batches of that size",
    "SOLVER.OPTIMIZER": "the saved state does not fit another optimizer",
    "SOLVER.AMP.ENABLED": "the optimizer's state depends on the precision",
    "SEED": "it determines the remaining frames",
    "MODEL.OBJECTIVE.NAME": "the saved memory does not fit another objective",
    "MODEL.BACKBONE.FREEZE_AT": "the optimizer's state belongs to the weights that were trained",
    "SSL.CLUSTERING.INDEPENDENCE_QUANTILE": "the threshold was frozen at the first clustering",
    "SSL.MEMORY.CALIBRATION_FRAMES": "it is only used before the first iteration",
}
# Prefixes of keys that affect where and how fast a run reads and writes, but not the result.
_UNMENTIONED = ("MODEL.WEIGHTS", "MODEL.DEVICE", "OUTPUT_DIR", "VERSION", "DATALOADER.")


def check_resumed_config(cfg: CfgNode, text: str | None) -> None:
    """Compares the config of a resumed training with that of its checkpoint, and logs the changed keys.

    Args:
        cfg: current config, with its schedule in iterations.
        text: config of the checkpoint as YAML; None for old checkpoints, which have none.

    Raises:
        CheckpointError: a key has changed that must not.
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
            f"change it: {_REFUSED[key]}. Restore it, or start over in another OUTPUT_DIR"
        )
    applied = [
        f"{key} {_shown(old)} -> {_shown(new)}"
        for key, (old, new) in changed.items()
        if not key.startswith(_UNMENTIONED)
    ]
    if "MODEL.WEIGHTS" in changed:
        logger.warning("MODEL.WEIGHTS is ignored: a resumed training continues from its own weights")
    if applied:
        logger.warning("Resuming with changed settings, applied from now on: %s", "; ".join(applied))


def _parse(text: str | None) -> dict[str, Any]:
    """Values by dotted key of a config in YAML; {} if it cannot be parsed, which should not prevent resuming."""
    try:
        content = yaml.safe_load(text or "")
    except yaml.YAMLError:
        return {}
    return flatten(content) if isinstance(content, Mapping) else {}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
