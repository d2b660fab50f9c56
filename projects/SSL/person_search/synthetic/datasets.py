"""Synthetic datasets for Detectron2: reading, and registration by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ..data.catalog import dataset_root, register_dataset
from ..data.coco_json import load_coco_json, load_coco_protocol
from ..data.records import Record, SearchProtocol
from ..errors import DatasetError
from .config import GENERATOR_VERSION, PRESETS, SPLITS, SyntheticConfig
from .storage import generate

Root = str | Path | None


def load_synthetic(folder: str | Path, split: str) -> list[Record]:
    """The records of one split, with `camera_id`, `person_id` and exact foreground masks (`segmentation`).

    Args:
        folder: as `generate` returns it.
        split: "train" or "test".

    Raises:
        DatasetError: the split is unknown, or the annotations are missing or damaged.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise DatasetError(f"split {split!r} of {folder}: expected one of {SPLITS}")
    return load_coco_json(f"{folder.name} ({split})", folder / f"{split}.json", folder / split)


def load_synthetic_protocol(folder: str | Path) -> SearchProtocol:
    """The queries of the test split, each searched in every test frame but its own (kind "custom").

    Raises:
        DatasetError: the annotations are missing or damaged.
    """
    folder = Path(folder)
    return load_coco_protocol(f"{folder.name} (test)", folder / "test.json", folder / "test")


def register_synthetic(name: str, config: SyntheticConfig, root: Root = None, progress: bool = True) -> None:
    """Register `<name>_train` and `<name>_test` (with queries). Reads and writes no file.

    The dataset is generated when it is first used, and found again afterwards.

    Args:
        name: prefix of both names.
        config: what to generate.
        root: folder below which it is put; None is $DETECTRON2_DATASETS at the time of use.
        progress: show a bar while the dataset is generated.

    Raises:
        ConfigError: a name stands for another dataset.
    """
    make = partial(_generate, config, root, progress)
    for split in SPLITS:
        entry = {
            "format": "synthetic",
            "split": split,
            "root": None if root is None else str(root),
            "generator_version": GENERATOR_VERSION,
            **asdict(config),
        }
        protocol = partial(_protocol, make) if split == "test" else None
        register_dataset(f"{name}_{split}", entry, partial(_records, make, split), protocol)


def register_builtin_synthetic(root: Root = None) -> None:
    """Register synthetic_<preset>_train and synthetic_<preset>_test of every preset. Reads and writes no file.

    Raises:
        ConfigError: a name stands for another dataset.
    """
    for name, config in PRESETS.items():
        register_synthetic(f"synthetic_{name}", config, root)


def _generate(config: SyntheticConfig, root: Root, progress: bool) -> Path:
    return generate(config, dataset_root() if root is None else root, progress)


def _records(make: Callable[[], Path], split: str) -> list[Record]:
    return load_synthetic(make(), split)


def _protocol(make: Callable[[], Path]) -> SearchProtocol:
    return load_synthetic_protocol(make())
