"""Datasets by name: built-in ones, custom ones listed in DATASETS.CUSTOM, and those registered by other code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..errors import ConfigError, DatasetError
from ..synthetic.datasets import register_builtin_synthetic
from .catalog import dataset_root, is_own, register_dataset, resolve_path
from .coco_json import PERSON_NAMES, load_coco_json, load_coco_protocol, register_coco_json
from .cuhk_sysu import load_cuhk_sysu, load_cuhk_sysu_protocol
from .masks import EmptyMaskError, mask_of_annotation
from .mot import register_mot
from .prw import load_prw, load_prw_protocol
from .records import UNLABELLED, Frame, Person, Record, SearchProtocol, build_records, chosen_queries

logger = logging.getLogger(__name__)

_KEY = "DATASETS.CUSTOM"
_QUERIES_PER_IDENTITY = 10  # for datasets registered by other code


@dataclass(frozen=True)
class _Format:
    """Keys of entries of a format: (argument of `register`, type of the value) by key."""

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
    """Registers the datasets listed in DATASETS.CUSTOM. Reads no file.

    Args:
        entries: mappings with NAME and FORMAT ("coco" or "mot"); for coco also JSON, IMAGES and RESULTS; for mot also
            IMAGES, GT, FRAMES and CAMERA; for both QUERIES_PER_IDENTITY, STRICT, MIN_SCORE and CATEGORIES. For their
            meaning see `register_coco_json` and `register_mot`.
        root: folder that paths are relative to, before the current one; None for $DETECTRON2_DATASETS.

    Raises:
        ConfigError: an entry lacks a key, has an unknown key or an invalid value, or its name is taken by another
            dataset.
    """
    folder = Path(root) if root is not None else None
    # All entries are checked before any is registered.
    calls = [_arguments(entry, f"{_KEY}[{i}]", folder) for i, entry in enumerate(entries)]
    for register, name, arguments in calls:
        register(name, **arguments)


def _arguments(entry: Any, where: str, root: Path | None) -> tuple[Callable[..., None], str, dict[str, Any]]:
    """Register function, dataset name and keyword arguments of an entry."""
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


@dataclass(frozen=True)
class Split:
    """Split of an official dataset: folder below $DETECTRON2_DATASETS, and functions that read it."""

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
    """Registers `SPLITS` and the synthetic presets without reading files. Names taken by other code are left alone."""
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


# The root is resolved on reading, so DETECTRON2_DATASETS may be set after the import.
def _load_records(split: Split) -> list[Record]:
    return split.load(dataset_root() / split.folder, split.split)


def _load_protocol(load: Callable[[Path], SearchProtocol], folder: str) -> SearchProtocol:
    return load(dataset_root() / folder)


def check_registered(name: str) -> None:
    """Raises a ConfigError, which lists the registered names, unless a dataset is registered as `name`."""
    if name not in DatasetCatalog.list():
        theirs = ("coco_", "keypoints_coco_", "lvis_", "cityscapes", "voc_", "ade20k")
        ours = sorted(n for n in DatasetCatalog.list() if not n.startswith(theirs))
        raise ConfigError(
            f"dataset {name} is not registered; registered are {', '.join(ours)} (custom datasets: DATASETS.CUSTOM)"
        )


def registered_records(name: str) -> list[Record]:
    """Records of a registered dataset, whoever registered it.

    If the metadata has `load_protocol`, the code knows this project and its records are returned unchanged. For
    datasets of `register_coco_instances`, the JSON file is read as by `register_coco_json`. All others return
    Detectron2's records, of which the annotations of persons are used, with `person_id` and `camera_id` if present.

    Raises:
        ConfigError: the name is not registered; the message lists the registered ones.
        DatasetError: the dataset cannot be read, or has no person category.
    """
    check_registered(name)
    if is_own(name) or _protocol(name) is not None:
        return DatasetCatalog.get(name)
    coco = _coco_files(name)
    if coco is not None:
        return load_coco_json(name, *coco)
    try:
        found = DatasetCatalog.get(name)
        frames = [_frame(name, record) for record in found]
    except DatasetError:
        raise
    except Exception as error:  # foreign code may raise anything
        raise DatasetError(
            f"{name}: is registered by other code, which does not return records in Detectron2's format "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); register its files with "
            "register_coco_json or register_mot, or in DATASETS.CUSTOM"
        ) from error
    return build_records(name, frames)


def protocol_reader(name: str) -> Callable[[], SearchProtocol] | None:
    """Function that reads the queries of a registered dataset; None if it has none, as training sets."""
    if is_own(name) or _protocol(name) is not None:
        return _protocol(name)

    def load() -> SearchProtocol:
        coco = _coco_files(name)
        if coco is not None:
            return load_coco_protocol(name, *coco)
        return chosen_queries(name, registered_records(name), _QUERIES_PER_IDENTITY)

    return load


def _protocol(name: str) -> Callable[[], SearchProtocol] | None:
    return MetadataCatalog.get(name).get("load_protocol", None)


def _coco_files(name: str) -> tuple[Path, Path] | None:
    """JSON file and image folder of a dataset of `register_coco_instances`; None for any other."""
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file", None), metadata.get("image_root", None)
    if metadata.get("evaluator_type", None) != "coco" or json_file is None or image_root is None:
        return None
    return Path(PathManager.get_local_path(json_file)), Path(PathManager.get_local_path(image_root))


def _frame(name: str, record: Mapping[str, Any]) -> Frame:
    """Frame of a record in Detectron2's format."""
    height, width = int(record["height"]), int(record["width"])
    persons = []
    for number, annotation in enumerate(record.get("annotations", ())):
        if annotation.get("iscrowd", 0) or not _shows_a_person(name, annotation):
            continue
        where = f"{name}: annotation {number} of {record['file_name']}"
        try:
            mask = mask_of_annotation(annotation.get("segmentation"), height, width, where)
        except EmptyMaskError:
            mask = None
        x0, y0, x1, y1 = map(
            float, BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
        )
        persons.append(Person((x0, y0, x1, y1), int(annotation.get("person_id", UNLABELLED)), mask))
    image_id = str(record.get("image_id", record["file_name"]))
    return Frame(str(record["file_name"]), image_id, height, width, persons, record.get("camera_id"))


def _shows_a_person(name: str, annotation: Mapping[str, Any]) -> bool:
    classes: Sequence[str] | None = MetadataCatalog.get(name).get("thing_classes", None)
    if classes is None or len(classes) == 1:
        return True
    if not any(category.lower() in PERSON_NAMES for category in classes):
        raise DatasetError(
            f"{name}: none of its {len(classes)} categories is named person ({', '.join(classes[:5])} ...); it is "
            "registered by other code, which sets thing_classes in its metadata"
        )
    return classes[annotation["category_id"]].lower() in PERSON_NAMES
