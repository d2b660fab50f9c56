"""Effective configs: the config of a dataset with the keys of a row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog

from ..config import add_ssl_config, merge_file_and_options
from ..data import register_custom
from ..errors import ConfigError
from .rows import Row

_PREFIX_CONFIGS = {"synthetic_": "synthetic.yaml"}
_FALLBACK = "Base-SSL-R50-C4.yaml"


def dataset_config_file(dataset: str, configs: Path) -> Path:
    """Config file of a dataset: configs/<dataset>.yaml if it exists.

    Args:
        dataset: name such as "prw" or "synthetic_demo" (which uses synthetic.yaml), or prefix of a custom dataset.
        configs: folder of the config files.
    """
    own = configs / f"{dataset}.yaml"
    if dataset and own.is_file():
        return own
    for prefix, name in _PREFIX_CONFIGS.items():
        if dataset.startswith(prefix):
            return configs / name
    return configs / _FALLBACK


def base_config(
    configs: Path,
    dataset: str = "",
    config_file: str = "",
    train: str = "",
    test: str = "",
    epochs: int = 0,
    options: Sequence[str] = (),
) -> CfgNode:
    """Config of a dataset that all rows start from. Registers its custom datasets (DATASETS.CUSTOM).

    Args:
        configs: folder of the config files.
        dataset: prefix of <dataset>_train and <dataset>_test, or name of a config file there.
        config_file: config to use instead of the dataset's.
        train, test: names of the datasets, if different.
        epochs: length of the training, with the steps of the learning rate scaled in proportion; 0 for the config's.
        options: KEY VALUE KEY VALUE ...

    Raises:
        ConfigError: a key or value is invalid, a dataset is not registered, or there is not exactly one test set.
    """
    cfg = get_cfg()
    add_ssl_config(cfg)
    file = Path(config_file) if config_file else dataset_config_file(dataset, configs)
    merge_file_and_options(cfg, str(file), options)
    named = "DATASETS.TRAIN" in options or "DATASETS.TEST" in options
    if dataset and file.stem != dataset and not named:
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{dataset}_train",), (f"{dataset}_test",)
    if train:
        cfg.DATASETS.TRAIN = (train,)
    if test:
        cfg.DATASETS.TEST = (test,)
    if epochs:
        _set_epochs(cfg, epochs)
    register_custom(cfg.DATASETS.CUSTOM)
    _check_datasets(cfg)
    # Keep features and boxes of the evaluation for figures 6 and 7.
    cfg.TEST.PERSON_SEARCH.SAVE_PROBLEM = True
    cfg.freeze()
    return cfg


def _set_epochs(cfg: CfgNode, epochs: int) -> None:
    solver = cfg.SOLVER
    if solver.MAX_ITER > 0:
        raise ConfigError(f"--epochs {epochs} and SOLVER.MAX_ITER {solver.MAX_ITER} are both given: remove one")
    solver.STEP_EPOCHS = tuple(round(step * epochs / solver.MAX_EPOCH, 3) for step in solver.STEP_EPOCHS)
    solver.MAX_EPOCH = epochs


def _check_datasets(cfg: CfgNode) -> None:
    if len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(f"DATASETS.TEST is {cfg.DATASETS.TEST}: a table needs exactly one test set")
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog:
            raise ConfigError(
                f"dataset {name} is not registered: give --dataset prw, cuhk_sysu, synthetic_demo or the name of a "
                "config file, --train and --test, or a --config-file with DATASETS.CUSTOM"
            )


def own_keys(file: Path) -> dict[str, Any]:
    """Keys set by a config file itself, without its dataset and output folder.

    Keys of base files in the same folder are included; base files elsewhere are the configs of datasets, which a row
    replaces by another.

    Args:
        file: YAML file.

    Raises:
        ConfigError: the file does not exist, or is not YAML.
    """
    try:
        keys = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"config file {file} does not exist: the row cannot be trained without it") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: {error}") from error
    base = keys.pop("_BASE_", None)
    for key in ("DATASETS", "OUTPUT_DIR", "VERSION"):
        keys.pop(key, None)
    if base and (file.parent / base).resolve().parent == file.parent.resolve():
        return _merged(own_keys(file.parent / base), keys)
    return keys


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], dict) and isinstance(above[key], dict):
            both[key] = _merged(below[key], above[key])
    return both


def row_config(base: CfgNode, row: Row, seed: int, folder: Path, configs: Path) -> CfgNode:
    """Effective config of a training.

    Args:
        base: see `base_config`.
        row: row with the differences.
        seed: SEED, 0 or more.
        folder: OUTPUT_DIR.
        configs: folder that the row's config file is relative to.

    Raises:
        ConfigError: the row's config file does not exist or sets an unknown key.
    """
    cfg = base.clone()
    cfg.defrost()
    if row.config:
        file = configs / row.config
        try:
            cfg.merge_from_other_cfg(CfgNode(own_keys(file)))
        except (KeyError, ValueError, AssertionError) as error:
            raise ConfigError(f"{file}: {error.args[0] if error.args else error}") from error
    cfg.merge_from_list([*row.adapt(base), "SEED", seed, "OUTPUT_DIR", str(folder)])
    cfg.freeze()
    return cfg


def config_digest(cfg: CfgNode) -> str:
    """Digest of a config, 16 hexadecimal digits, without its output folder."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    return hashlib.sha256(cfg.dump().encode()).hexdigest()[:16]


def differing_keys(base: CfgNode, cfg: CfgNode) -> dict[str, Any]:
    """Keys with other values than the base config's, except SEED and OUTPUT_DIR."""
    before, after = _flat(base), _flat(cfg)
    return {k: v for k, v in after.items() if k not in ("SEED", "OUTPUT_DIR") and (k not in before or before[k] != v)}


def _flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {prefix + name: value}
    return flat
