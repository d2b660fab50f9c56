"""Registration of datasets by name: the built-in ones, and custom ones of the list DATASETS.CUSTOM."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..synthetic.datasets import register_builtin_synthetic
from .catalog import dataset_root, register_dataset, resolve_path
from .coco_json import register_coco_json
from .cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol
from .mot import register_mot
from .prw import load_prw, load_prw_protocol
from .records import Record, SearchProtocol

_KEY = "DATASETS.CUSTOM"


@dataclass(frozen=True)
class _Format:
    """Keys of an entry of a format: key -> (argument of `register`, kind of value)."""

    register: Callable[..., None]
    required: dict[str, tuple[str, type]]
    optional: dict[str, tuple[str, type]]


_COMMON = {
    "QUERIES_PER_IDENTITY": ("queries_per_identity", int),
    "STRICT": ("strict", bool),
    "MIN_SCORE": ("min_score", float),
    "CATEGORIES": ("categories", Sequence),
}
_FORMATS = {
    "coco": _Format(
        register_coco_json,
        {"JSON": ("json_file", Path), "IMAGES": ("image_root", Path)},
        {"RESULTS": ("results_file", Path), **_COMMON},
    ),
    "mot": _Format(
        register_mot,
        {"IMAGES": ("images", Path), "GT": ("gt_file", Path)},
        {"FRAMES": ("frames", Sequence), "CAMERA": ("camera_id", int), **_COMMON},
    ),
}  # fmt: skip


def register_custom(entries: Sequence[Mapping[str, Any]], root: str | Path | None = None) -> None:
    """Registers the datasets that DATASETS.CUSTOM lists. Reads no file.

    Args:
        entries: mappings with NAME, FORMAT ("coco" or "mot"), and for coco JSON, IMAGES and RESULTS, for mot IMAGES,
            GT, FRAMES and CAMERA; both may have QUERIES_PER_IDENTITY, STRICT, MIN_SCORE and CATEGORIES. They mean what
            the arguments of `register_coco_json` and `register_mot` mean.
        root: folder that relative paths start from, then the current one; default $DETECTRON2_DATASETS.

    Raises:
        ConfigError: an entry lacks a key, has an unknown one or a bad value, or its name stands for another dataset.
    """
    folder = Path(root) if root is not None else None
    # All are checked before the first is registered, so that an error leaves nothing half done.
    calls = [_arguments(entry, f"{_KEY}[{i}]", folder) for i, entry in enumerate(entries)]
    for register, name, arguments in calls:
        register(name, **arguments)


def _arguments(entry: Any, where: str, root: Path | None) -> tuple[Callable[..., None], str, dict[str, Any]]:
    """(register function, name of the dataset, keyword arguments) of one entry."""
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{where} is {entry!r}, expected a mapping with NAME, FORMAT and the keys of the format")
    name = entry.get("NAME")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: NAME is {name!r}, expected the name of the dataset")
    where = f"{where} ({name})"
    form = _FORMATS.get(str(entry.get("FORMAT")))
    if form is None:
        raise ConfigError(f"{where}: FORMAT is {entry.get('FORMAT')!r}, expected {' or '.join(_FORMATS)}")
    keys = {**form.required, **form.optional}
    for key in entry:
        if key not in keys and key not in ("NAME", "FORMAT"):
            raise ConfigError(f"{where}: unknown key {key!r}; FORMAT {entry['FORMAT']} has {', '.join(keys)}")
    for key in form.required:
        if key not in entry:
            raise ConfigError(f"{where}: {key} is missing; FORMAT {entry['FORMAT']} needs {', '.join(form.required)}")
    arguments = {}
    for key, (argument, kind) in keys.items():
        if entry.get(key) is not None:
            arguments[argument] = _value(entry[key], kind, f"{where}: {key}", root)
    return form.register, name, arguments


def _value(value: Any, kind: type, where: str, root: Path | None) -> Any:
    expected: Any = {Path: str, float: (int, float), Sequence: (list, tuple)}.get(kind, kind)
    if not isinstance(value, expected) or (isinstance(value, bool) and kind is not bool) or value == "":
        kinds = {Path: "a path", int: "a whole number", float: "a number", bool: "True or False", Sequence: "a list"}
        raise ConfigError(f"{where} is {value!r}, expected {kinds[kind]}")
    return resolve_path(str(value), root) if kind is Path else value


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
