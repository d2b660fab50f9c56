"""Own data in COCO's JSON format, with `person_id` on annotations and `camera_id` on images where they are known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pycocotools import mask as mask_util

from ..errors import DatasetError
from .catalog import check_at_least, register_dataset
from .images import image_sizes
from .records import (
    UNLABELLED,
    Frame,
    Person,
    Query,
    Record,
    SearchProtocol,
    build_records,
    check_queries,
    clip_box,
    require_file,
    spread_queries,
)

_PERSON_NAMES = ("person", "pedestrian")
_LARGEST = 2**63 - 1  # what arrays of whole numbers hold


def register_coco_json(
    name: str, json_file: str | Path, image_root: str | Path, *, queries_per_identity: int = 10, strict: bool = False
) -> None:
    """Registers a COCO JSON file as the person search dataset `name`. Reads no file.

    Beyond COCO's fields, an image may have `camera_id` (int) and an annotation `person_id` (int; negative, null or
    absent is unlabelled). A list `queries` of annotation ids at the top of the file fixes the queries; without it
    `spread_queries` chooses them. Crowds (`iscrowd` 1) and categories other than person are left out; a file's only
    category is taken for persons whatever its name.

    Args:
        name: as in DATASETS.TRAIN and DATASETS.TEST.
        json_file: the annotations.
        image_root: folder below which `file_name` lies.
        queries_per_identity: most queries of an identity under a camera, where they are chosen.
        strict: a box that shows nothing of its frame is an error instead of being dropped.

    Raises:
        ConfigError: a bad value, or the name stands for another dataset.
    """
    check_at_least(name, "queries_per_identity", queries_per_identity, 1)
    json_file, image_root = Path(json_file).absolute(), Path(image_root).absolute()
    entry = {
        "format": "coco",
        "json_file": str(json_file),
        "image_root": str(image_root),
        "queries_per_identity": queries_per_identity,
        "strict": strict,
    }
    load = partial(load_coco_json, name, json_file, image_root, strict)
    register_dataset(name, entry, load, partial(load_coco_protocol, name, json_file, image_root, queries_per_identity))


def load_coco_json(dataset: str, json_file: Path, image_root: Path, strict: bool = False) -> list[Record]:
    """The records of a COCO JSON file; `register_coco_json` says what it may hold.

    Raises:
        DatasetError: the file is missing, no JSON (the message gives the line), or an entry is malformed (its place).
    """
    return build_records(dataset, _read(dataset, json_file, image_root).frames, strict)


def load_coco_protocol(
    dataset: str, json_file: Path, image_root: Path, queries_per_identity: int = 10
) -> SearchProtocol:
    """The queries of a COCO JSON file, its own or chosen ones; each is searched in all frames but its own.

    Raises:
        DatasetError: as `load_coco_json`; or a query is no annotation of a labelled person, or there is none.
    """
    content = _read(dataset, json_file, image_root)
    # Built for its checks too: the queries must refer to a dataset that can be read.
    records = build_records(dataset, content.frames)
    if content.queries is None:
        queries = spread_queries(records, queries_per_identity)
    else:
        queries = tuple(
            _query(content, number, f"{json_file}: queries[{i}]") for i, number in enumerate(content.queries)
        )
    return check_queries(dataset, SearchProtocol("custom", queries), (record["image_id"] for record in records))


@dataclass(frozen=True)
class _Content:
    """A JSON file taken apart; `persons` has every person by the id of its annotation."""

    frames: list[Frame]
    persons: dict[Any, tuple[Frame, Person]]
    queries: list[Any] | None


def _query(content: _Content, number: Any, where: str) -> Query:
    """The query that is the annotation of the id `number`."""
    if not isinstance(number, int | str) or number not in content.persons:
        raise DatasetError(f"{where}: {number!r} is not the id of a person's annotation")
    frame, person = content.persons[number]
    if frame.height is None or frame.width is None:
        raise DatasetError(f"{where}: the image of the annotation {number!r} cannot be read: {frame.file_name}")
    bbox = clip_box(person.bbox, frame.height, frame.width)
    if person.person_id < 0 or bbox is None:
        problem = "has no person_id" if person.person_id < 0 else "shows nothing of its frame"
        raise DatasetError(f"{where}: the annotation {number!r} (frame {frame.image_id!r}) {problem}")
    return Query(frame.image_id, bbox, person.person_id)


def _read(dataset: str, json_file: Path, image_root: Path) -> _Content:
    data = _parse(dataset, json_file)
    frames: dict[Any, Frame] = {}
    persons_in: dict[Any, list[Person]] = {}  # the frames hold these very lists
    for i, image in enumerate(_field(data, "images", list, str(json_file))):
        where = f"{json_file}: images[{i}]"
        number = _field(image, "id", (int, str), where)
        if number in frames:
            raise DatasetError(f"{where}: the id {number!r} stands for two images")
        persons_in[number] = []
        frames[number] = _frame(image, image_root, persons_in[number], where)
    persons: dict[Any, tuple[Frame, Person]] = {}
    categories = _categories(data, json_file)
    for i, annotation in enumerate(_field(data, "annotations", list, str(json_file))):
        where = f"{json_file}: annotations[{i}]"
        number = _field(annotation, "image_id", (int, str), where)
        if number not in frames:
            raise DatasetError(f"{where}: image_id {number!r} is not the id of an image")
        if _is_person(annotation, categories, where):
            person = _person(annotation, frames[number], where)
            persons_in[number].append(person)
            identifier = _field(annotation, "id", (int, str), where, None)
            if identifier is not None and identifier in persons:
                raise DatasetError(f"{where}: the id {identifier!r} stands for two annotations")
            persons[identifier] = frames[number], person
    return _Content(list(frames.values()), persons, _field(data, "queries", list, str(json_file), None))


def _parse(dataset: str, json_file: Path) -> dict[str, Any]:
    require_file(dataset, json_file, "annotations in COCO's JSON format")
    try:
        data = json.loads(json_file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise DatasetError(f"{json_file}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise DatasetError(f"{json_file}: is no JSON ({error})") from None
    if not isinstance(data, dict):
        raise DatasetError(
            f"{json_file}: expected an object with images and annotations, found a {type(data).__name__}"
        )
    return data


_REQUIRED = object()


def _field(item: Any, key: str, kinds: type | tuple[type, ...], where: str, default: Any = _REQUIRED) -> Any:
    """`item[key]`, once it is known to be of one of the kinds; null counts as absent."""
    if not isinstance(item, Mapping):
        raise DatasetError(f"{where}: expected an object, found a {type(item).__name__}")
    value = item.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if value is None:
        raise DatasetError(f"{where}: has no {key!r}")
    large = isinstance(value, int) and abs(value) > _LARGEST
    if not isinstance(value, kinds) or isinstance(value, bool) or large:
        names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
        raise DatasetError(f"{where}: {key!r} is {str(value)[:60]}, expected {names}{' of 64 bits' if large else ''}")
    return value


def _frame(image: Any, image_root: Path, persons: list[Person], where: str) -> Frame:
    name = _field(image, "file_name", str, where)
    file = str(image_root / name)
    height, width = _field(image, "height", int, where, None), _field(image, "width", int, where, None)
    if height is None or width is None:
        height, width = image_sizes([file])[0] or (None, None)
    elif height < 1 or width < 1:
        raise DatasetError(f"{where}: the frame has the size {width} x {height}, expected pixels of 1 or more")
    return Frame(file, name, height, width, persons, _field(image, "camera_id", int, where, None))


def _categories(data: dict[str, Any], json_file: Path) -> dict[int, bool] | None:
    """Category id -> whether it means persons; None where the file names no categories."""
    names: dict[int, str] = {}
    for i, category in enumerate(_field(data, "categories", list, str(json_file), ())):
        where = f"{json_file}: categories[{i}]"
        names[_field(category, "id", int, where)] = _field(category, "name", str, where)
    if not names:
        return None
    persons = {number: len(names) == 1 or name.lower() in _PERSON_NAMES for number, name in names.items()}
    if not any(persons.values()):
        raise DatasetError(f"{json_file}: no category is named person; there are {', '.join(names.values())}")
    return persons


def _is_person(annotation: Mapping[str, Any], categories: dict[int, bool] | None, where: str) -> bool:
    if annotation.get("iscrowd"):
        return False
    if categories is None:
        return True
    category = _field(annotation, "category_id", int, where)
    if category not in categories:
        raise DatasetError(f"{where}: category_id {category} is not the id of a category")
    return categories[category]


def _person(annotation: Mapping[str, Any], frame: Frame, where: str) -> Person:
    bbox = _field(annotation, "bbox", list, where)
    if len(bbox) != 4 or not all(_is_coordinate(v) for v in bbox):
        raise DatasetError(f"{where}: 'bbox' is {str(bbox)[:60]}, expected [x, y, width, height]")
    x, y, w, h = map(float, bbox)
    identity = _field(annotation, "person_id", int, where, UNLABELLED)
    return Person((x, y, x + w, y + h), identity, _run_lengths(annotation.get("segmentation"), frame, where))


def _is_coordinate(value: Any) -> bool:
    """Whether a value of a box is a number that a float can hold; NaN and infinity are: their boxes show nothing."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return whole or isinstance(value, float)


def _run_lengths(segmentation: Any, frame: Frame, where: str) -> dict[str, Any] | None:
    """A mask as COCO run lengths over the frame, from run lengths or polygons; None where there is none."""
    if not segmentation or frame.height is None:  # nobody will see the pixels of an image that cannot be read
        return None
    size = [frame.height, frame.width]
    try:
        if isinstance(segmentation, list):
            return mask_util.merge(mask_util.frPyObjects(segmentation, *size))
        if list(segmentation["size"]) != size:
            raise ValueError(f"its size is {segmentation['size']}, that of the frame is {size}")
        if isinstance(segmentation["counts"], list):
            return mask_util.frPyObjects(segmentation, *size)
        return {"size": size, "counts": segmentation["counts"]}
    except Exception as error:  # pycocotools raises bare exceptions
        raise DatasetError(f"{where}: 'segmentation' is neither polygons nor run lengths ({error})") from None
