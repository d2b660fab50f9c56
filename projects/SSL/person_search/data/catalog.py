"""Dataset catalog: root folder, paths in configs, and registration with Detectron2."""

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
    """Folder of the datasets: $DETECTRON2_DATASETS, as in Detectron2, or "datasets"."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser().absolute()


def resolve_path(path: str | Path, root: Path | None = None) -> Path:
    """Absolute path of a path in a config: below `root` (default `dataset_root()`), else below the current folder.

    If neither exists, the one below `root` is returned, which error messages then name.
    """
    path = Path(path).expanduser()
    below_root = (root or dataset_root()).absolute() / path  # absolute paths are unchanged
    here = Path.cwd() / path
    return here if here.exists() and not below_root.exists() else below_root


def is_own(name: str) -> bool:
    """Whether a dataset was registered by `register_dataset` rather than by other code."""
    return hasattr(MetadataCatalog.get(name), _ENTRY)


def check_at_least(name: str, key: str, value: Any, least: int) -> None:
    """Raises ConfigError unless `value`, given as `key` of the dataset `name`, is an integer >= `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{name}: {key} is {value!r}, expected an integer of {least} or more")


def check_score(name: str, min_score: float | None) -> None:
    """Raises ConfigError unless `min_score` of the dataset `name` is a finite number or None."""
    number = isinstance(min_score, int | float) and not isinstance(min_score, bool) and math.isfinite(min_score)
    if min_score is not None and not number:
        raise ConfigError(f"{name}: min_score is {min_score!r}, expected the minimum score, such as 0.5")


def register_dataset(
    name: str,
    entry: dict[str, Any],
    load_records: Callable[[], list[dict[str, Any]]],
    load_protocol: Callable[[], SearchProtocol] | None = None,
) -> None:
    """Registers a person search dataset with Detectron2's catalogs. Reads no file.

    Args:
        name: name in DATASETS.TRAIN and DATASETS.TEST.
        entry: description of the dataset; registering an equal entry again has no effect.
        load_records: reads the records.
        load_protocol: reads the queries; None for datasets without.

    Raises:
        ConfigError: the name is taken by another dataset.
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
    """Raises a DatasetError, with the expected content, unless `path` is a folder."""
    if not path.is_dir():
        raise DatasetError(_missing(dataset, "folder", path, expected))


def require_file(dataset: str, path: Path, expected: str) -> None:
    """Raises a DatasetError, with the expected content, unless `path` is a file."""
    if not path.is_file():
        raise DatasetError(_missing(dataset, "file", path, expected))


def _missing(dataset: str, kind: str, path: Path, expected: str) -> str:
    return (
        f"{dataset}: the {kind} {path} is missing, expected {expected}. "
        "Set DETECTRON2_DATASETS to the folder with the datasets (see datasets/README.md)"
    )
