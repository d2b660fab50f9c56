"""What a training or an evaluation leaves in its output folder, for the tools that read it afterwards."""

from __future__ import annotations

from pathlib import Path

from detectron2.config import CfgNode, get_cfg

from ..config import add_ssl_config, merge_file_and_options
from ..data import register_custom
from ..errors import DatasetError


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
    cfg = get_cfg()
    add_ssl_config(cfg)
    merge_file_and_options(cfg, str(file), [])
    register_custom(cfg.DATASETS.CUSTOM)
    return cfg


def evaluated_sets(run_dir: Path) -> dict[str, Path]:
    """Test set -> folder of its evaluation, for those that have a queries.json, by name."""
    return {file.parent.name: file.parent for file in sorted(run_dir.glob("inference/*/queries.json"))}
