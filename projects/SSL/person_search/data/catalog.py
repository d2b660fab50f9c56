"""Names of datasets: the root folder, paths in configs and below it, and registration with Detectron2."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import ConfigError, DatasetError
from .records import SearchProtocol

EVALUATOR_TYPE = "person_search"
_ENTRY = "registered_entry"


def dataset_root() -> Path:
    """The folder that holds the datasets: $DETECTRON2_DATASETS, as Detectron2 has it, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser().absolute()


def resolve_path(path: str | Path, root: Path | None = None) -> Path:
    """Absolute form of a path of a config: below `root` (default `dataset_root()`), else below the current folder.

    Where neither exists the one below `root` is given, so that the reader's message names it.
    """
    path = Path(path).expanduser()
    below_root = (root or dataset_root()).absolute() / path  # an absolute path stays itself
    here = Path.cwd() / path
    return here if here.exists() and not below_root.exists() else below_root


def is_own(name: str) -> bool:
    """Whether a data set was registered by `register_dataset`, and not by other code."""
    return hasattr(MetadataCatalog.get(name), _ENTRY)


def check_at_least(name: str, key: str, value: Any, least: int) -> None:
    """Raises ConfigError unless `value`, given as `key` for the dataset `name`, is a whole number >= `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: {key} is {value!r}, expected a whole number of {least} or more")


def check_score(name: str, min_score: float | None) -> None:
    """Raises ConfigError unless `min_score`, given for the dataset `name`, is a number or None."""
    number = isinstance(min_score, int | float) and not isinstance(min_score, bool) and math.isfinite(min_score)
    if min_score is not None and not number:
        raise ConfigError(f"{name}: min_score is {min_score!r}, expected the least score that counts, such as 0.5")


def register_dataset(
    name: str,
    entry: dict[str, Any],
    load_records: Callable[[], list[dict[str, Any]]],
    load_protocol: Callable[[], SearchProtocol] | None = None,
) -> None:
    """Registers a person search dataset with Detectron2's catalogs. Reads no file.

    Args:
        name: as in DATASETS.TRAIN and DATASETS.TEST.
        entry: what the dataset is made of; the same name with an equal entry again changes nothing.
        load_records: reads the records.
        load_protocol: reads the queries, for datasets that have some.

    Raises:
        ConfigError: the name stands for another dataset.
    """
    if name in DatasetCatalog:
        before = getattr(MetadataCatalog.get(name), _ENTRY, None)
        if before == entry:
            return
        raise ConfigError(
            f"the dataset name {name!r} is taken: it is registered as {before or 'a dataset of other code'}, "
            f"so it cannot also be {entry}; choose another name"
        )
    if hasattr(MetadataCatalog.get(name), _ENTRY):
        MetadataCatalog.pop(name)  # left over from a dataset that was removed from DatasetCatalog
    DatasetCatalog.register(name, load_records)
    metadata = MetadataCatalog.get(name)
    metadata.set(thing_classes=["person"], evaluator_type=EVALUATOR_TYPE, **{_ENTRY: entry})
    if load_protocol is not None:
        metadata.set(load_protocol=load_protocol)


def require_folder(dataset: str, path: Path, expected: str) -> None:
    """Raises DatasetError, saying what is expected in `path`, unless it is a folder."""
    if not path.is_dir():
        raise DatasetError(_missing(dataset, "folder", path, expected))


def require_file(dataset: str, path: Path, expected: str) -> None:
    """Raises DatasetError, saying what is expected at `path`, unless it is a file."""
    if not path.is_file():
        raise DatasetError(_missing(dataset, "file", path, expected))


def _missing(dataset: str, kind: str, path: Path, expected: str) -> str:
    return (
        f"{dataset}: the {kind} {path} is missing; expected there: {expected}. "
        "Set DETECTRON2_DATASETS to the folder that holds the datasets (trees: datasets/README.md)"
    )
