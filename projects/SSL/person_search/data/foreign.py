"""Data sets that other code has registered with Detectron2: their persons as this project's records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from ..errors import DatasetError
from .catalog import is_own
from .coco_json import PERSON_NAMES, load_coco_json, load_coco_protocol
from .masks import EmptyMaskError, mask_of_annotation
from .records import UNLABELLED, Frame, Person, Record, SearchProtocol, build_records, chosen_queries

_QUERIES_PER_IDENTITY = 10


def read_records(name: str) -> list[Record]:
    """The records of a registered data set, whoever has registered it.

    Code that sets `load_protocol` in the set's metadata knows this project, and its records are taken as they are.
    Of a set of `register_coco_instances` the JSON file is read as `register_coco_json` would; other functions give
    Detectron2's records, of which the annotations of persons are taken. `person_id` and `camera_id` count where they
    are there.

    Raises:
        DatasetError: the set cannot be read, or has no category of persons.
    """
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
    except Exception as error:  # whatever the code of somebody else raises
        raise DatasetError(
            f"{name}: is registered by other code, which does not give records of Detectron2's form "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); register its files with "
            "register_coco_json or register_mot, or in DATASETS.CUSTOM"
        ) from error
    return build_records(name, frames)


def protocol_reader(name: str) -> Callable[[], SearchProtocol] | None:
    """Reader of the queries of a registered data set; None where there is none, as for a training set."""
    if is_own(name) or _protocol(name) is not None:
        return _protocol(name)

    def load() -> SearchProtocol:
        coco = _coco_files(name)
        if coco is not None:
            return load_coco_protocol(name, *coco)
        return chosen_queries(name, read_records(name), _QUERIES_PER_IDENTITY)

    return load


def _protocol(name: str) -> Callable[[], SearchProtocol] | None:
    return MetadataCatalog.get(name).get("load_protocol", None)


def _coco_files(name: str) -> tuple[Path, Path] | None:
    """JSON file and folder of the images of a set of `register_coco_instances`, None of any other."""
    metadata = MetadataCatalog.get(name)
    json_file, image_root = metadata.get("json_file", None), metadata.get("image_root", None)
    if metadata.get("evaluator_type", None) != "coco" or json_file is None or image_root is None:
        return None
    return Path(PathManager.get_local_path(json_file)), Path(PathManager.get_local_path(image_root))


def _frame(name: str, record: Mapping[str, Any]) -> Frame:
    """One record of Detectron2's form."""
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
            "registered by other code, whose metadata has thing_classes"
        )
    return classes[annotation["category_id"]].lower() in PERSON_NAMES
