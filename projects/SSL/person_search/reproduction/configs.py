"""Effective configs: that of a dataset, with the keys of a row on top."""

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
    """The config that a dataset is trained with: configs/<dataset>.yaml where there is one.

    Args:
        dataset: as in "prw", "synthetic_demo" (which takes synthetic.yaml), or the prefix of a set of one's own.
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
    """The config of a dataset, which every row starts from; registers its own sets (DATASETS.CUSTOM).

    Args:
        configs: folder of the config files.
        dataset: prefix of <dataset>_train and <dataset>_test, or name of a config file there.
        config_file: a config to use instead of the dataset's.
        train, test: names of the sets, where they differ from those.
        epochs: length of the training, steps of the learning rate moved in proportion; 0: as the config has it.
        options: KEY VALUE KEY VALUE ...

    Raises:
        ConfigError: a key or value is wrong, a set is not registered, or there is not exactly one test set.
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
    # Features and boxes of the evaluation are kept, since figures 6 and 7 are drawn from them.
    cfg.TEST.PERSON_SEARCH.SAVE_PROBLEM = True
    cfg.freeze()
    return cfg


def _set_epochs(cfg: CfgNode, epochs: int) -> None:
    solver = cfg.SOLVER
    if solver.MAX_ITER > 0:
        raise ConfigError(f"--epochs {epochs} and SOLVER.MAX_ITER {solver.MAX_ITER} are both given: leave one out")
    solver.STEP_EPOCHS = tuple(round(step * epochs / solver.MAX_EPOCH, 3) for step in solver.STEP_EPOCHS)
    solver.MAX_EPOCH = epochs


def _check_datasets(cfg: CfgNode) -> None:
    if len(cfg.DATASETS.TEST) != 1:
        raise ConfigError(f"DATASETS.TEST is {cfg.DATASETS.TEST}: a table is made of exactly one test set")
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name not in DatasetCatalog:
            raise ConfigError(
                f"dataset {name} is not registered: give --dataset prw, cuhk_sysu, synthetic_demo or the name of a "
                "config file, --train and --test, or a --config-file with DATASETS.CUSTOM"
            )


def own_keys(file: Path) -> dict[str, Any]:
    """What a config file sets itself, without its dataset and output folder.

    A file that is based on another one of the same folder has that one's keys too; beyond the folder stand the configs
    of datasets, in whose place a row is put on another one.

    Args:
        file: a YAML file.

    Raises:
        ConfigError: there is no such file, or it is not YAML.
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
    """The effective config of one training.

    Args:
        base: see `base_config`.
        row: what is different.
        seed: SEED, 0 or more.
        folder: OUTPUT_DIR.
        configs: folder that the row's config file is relative to.

    Raises:
        ConfigError: the row's config file does not exist or sets a key that does not.
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
    """16 hexadecimal digits that differ wherever a key does; where the output goes is left out."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    return hashlib.sha256(cfg.dump().encode()).hexdigest()[:16]


def differing_keys(base: CfgNode, cfg: CfgNode) -> dict[str, Any]:
    """Keys whose values differ from the base config's, apart from SEED and OUTPUT_DIR."""
    before, after = _flat(base), _flat(cfg)
    return {k: v for k, v in after.items() if k not in ("SEED", "OUTPUT_DIR") and (k not in before or before[k] != v)}


def _flat(node: CfgNode, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in node.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, CfgNode) else {prefix + name: value}
    return flat
