"""The datasets that exist by name as soon as `person_search.data` is imported."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..errors import ConfigError
from .catalog import dataset_root, register_dataset
from .cuhk_galleries import load_cuhk_sysu_protocol
from .cuhk_sysu import load_cuhk_sysu
from .protocol import SearchProtocol
from .prw import load_prw, load_prw_protocol
from .records import Record
from .synthetic import register_builtin_synthetic

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """A split of an official dataset: its folder below $DETECTRON2_DATASETS and the functions that read it."""

    folder: str
    split: str
    load: Callable[[Path, str], list[Record]]
    load_protocol: Callable[[Path], SearchProtocol] | None = None


SPLITS = {
    "prw_train": Split("PRW", "train", load_prw),
    "prw_test": Split("PRW", "test", load_prw, load_prw_protocol),
    "cuhk_sysu_train": Split("CUHK-SYSU", "train", load_cuhk_sysu),
    "cuhk_sysu_test": Split("CUHK-SYSU", "test", load_cuhk_sysu, load_cuhk_sysu_protocol),
}


def register_builtin() -> None:
    """Registers `SPLITS` and the synthetic presets, reading no file; a name taken by other code stays as it is."""
    for name, split in SPLITS.items():
        protocol = partial(_load_protocol, split.load_protocol, split.folder) if split.load_protocol else None
        entry = {"format": "builtin", "folder": split.folder, "split": split.split}
        try:
            register_dataset(name, entry, partial(_load_records, split), protocol)
        except ConfigError as error:
            logger.warning("The built-in dataset %s is not available: %s", name, error)
    try:
        register_builtin_synthetic()
    except ConfigError as error:
        logger.warning("Not all synthetic datasets are available: %s", error)


# The root is looked up when a dataset is read, so that DETECTRON2_DATASETS may be set after the import.
def _load_records(split: Split) -> list[Record]:
    return split.load(dataset_root() / split.folder, split.split)


def _load_protocol(load: Callable[[Path], SearchProtocol], folder: str) -> SearchProtocol:
    return load(dataset_root() / folder)
