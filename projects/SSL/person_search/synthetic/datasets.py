"""Synthetic datasets for Detectron2: records, and registration by name."""

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
    """Records of a split, with `camera_id`, `person_id` and exact foreground masks (`segmentation`).

    Args:
        folder: folder returned by `generate`.
        split: "train" or "test".

    Raises:
        DatasetError: the split is unknown, or the annotations are missing or damaged.
    """
    folder = Path(folder)
    if split not in SPLITS:
        raise DatasetError(f"split {split!r} of {folder}: expected one of {SPLITS}")
    return load_coco_json(f"{folder.name} ({split})", folder / f"{split}.json", folder / split)


def load_synthetic_protocol(folder: str | Path) -> SearchProtocol:
    """Queries of the test split, each searched in all test frames but its own (kind "custom").

    Raises:
        DatasetError: the annotations are missing or damaged.
    """
    folder = Path(folder)
    return load_coco_protocol(f"{folder.name} (test)", folder / "test.json", folder / "test")


def register_synthetic(name: str, config: SyntheticConfig, root: Root = None, progress: bool = True) -> None:
    """Registers `<name>_train` and `<name>_test` (with queries). Reads and writes no file.

    The dataset is generated on first use, and reused afterwards.

    Args:
        name: prefix of both names.
        config: settings of the dataset.
        root: folder to generate it in; None for $DETECTRON2_DATASETS at the time of use.
        progress: whether to show a progress bar during generation.

    Raises:
        ConfigError: a name is taken by another dataset.
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
    """Registers synthetic_<preset>_train and synthetic_<preset>_test of all presets. Reads and writes no file.

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
