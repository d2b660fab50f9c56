"""Custom datasets in COCO's JSON format, with optional `person_id` of annotations and `camera_id` of images."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DatasetError
from .box_files import PERSON_CATEGORY, read_coco_results
from .catalog import check_at_least, check_score, register_dataset, require_file
from .images import image_sizes
from .masks import EmptyMaskError, mask_of_annotation
from .records import (
    UNLABELLED,
    Frame,
    Person,
    Query,
    Record,
    SearchProtocol,
    build_records,
    check_queries,
    chosen_queries,
    clip_box,
    say_once,
)

PERSON_NAMES = ("person", "pedestrian")
_LARGEST = 2**63 - 1  # of int64
_UNKNOWN = -1  # width and height that VIA writes if it does not know them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choice:
    """Selection of boxes from a JSON file.

    Attributes:
        categories: names of the person categories; () for `PERSON_NAMES`.
        results_file: COCO results whose boxes replace the annotations of the file; None for none.
        min_score: minimum score of the boxes in `results_file`.
    """

    categories: tuple[str, ...] = ()
    results_file: Path | None = None
    min_score: float = 0.0


_ANNOTATIONS = Choice()


def register_coco_json(
    name: str,
    json_file: str | Path,
    image_root: str | Path,
    *,
    queries_per_identity: int = 10,
    strict: bool = False,
    categories: Sequence[str] = (),
    results_file: str | Path | None = None,
    min_score: float | None = None,
) -> None:
    """Registers a COCO JSON file as the person search dataset `name`. Reads no file.

    In addition to COCO's fields, images may have `camera_id` (int) and annotations `person_id` (int; negative, null or
    missing means unlabelled; CVAT's `attributes.track_id` is used if it is missing) and `tracklet_id` (int, assigned by
    a tracker without identities, see SSL.CLUSTERING.TRACKLETS). A top-level list `queries` of
    annotation ids defines the queries; without it, `spread_queries` selects them. Crowds (`iscrowd` 1), regions to
    `ignore` and categories other than person are skipped; if the file has a single category, it means person whatever
    its name. Integers may be written as 7, 7.0 or "7"; a width or height of -1 is unknown.

    Args:
        name: name in DATASETS.TRAIN and DATASETS.TEST.
        json_file: annotation file.
        image_root: folder that `file_name` is relative to.
        queries_per_identity: maximum number of queries per identity and camera, if queries are selected.
        strict: raise an error for a box that is empty or outside its frame, instead of dropping it.
        categories: names of the person categories, if other than "person" and "pedestrian".
        results_file: boxes of a detector, a list of {"image_id", "category_id", "bbox", "score"}, which replace the
            annotations. The JSON file then only provides images and categories; without categories, 1 is person, as in
            COCO. `image_id` is the id of an image or its `file_name`.
        min_score: minimum score in `results_file`; required with it.

    Raises:
        ConfigError: a value is invalid, or the name is taken by another dataset.
    """
    check_at_least(name, "queries_per_identity", queries_per_identity, 1)
    choice = _choice(name, categories, results_file, min_score)
    json_file, image_root = Path(json_file).absolute(), Path(image_root).absolute()
    entry = {
        "format": "coco",
        "json_file": str(json_file),
        "image_root": str(image_root),
        "queries_per_identity": queries_per_identity,
        "strict": strict,
        "categories": choice.categories,
        "results_file": None if choice.results_file is None else str(choice.results_file),
        "min_score": choice.min_score,
    }
    load = partial(load_coco_json, name, json_file, image_root, strict, choice)
    protocol = partial(load_coco_protocol, name, json_file, image_root, queries_per_identity, choice)
    register_dataset(name, entry, load, protocol)


def _choice(name: str, categories: Sequence[str], results_file: str | Path | None, min_score: float | None) -> Choice:
    if isinstance(categories, str) or not all(isinstance(category, str) for category in categories):
        raise ConfigError(f"{name}: categories is {categories!r}, expected names of categories, such as ['rider']")
    check_score(name, min_score)
    if (results_file is None) != (min_score is None):
        raise ConfigError(
            f"{name}: min_score is {min_score} and results_file {results_file}: give both or neither, since detectors "
            "also write boxes of very low score"
        )
    file = None if results_file is None else Path(results_file).absolute()
    return Choice(tuple(categories), file, min_score or 0.0)


def load_coco_json(
    dataset: str, json_file: Path, image_root: Path, strict: bool = False, choice: Choice = _ANNOTATIONS
) -> list[Record]:
    """Records of a COCO JSON file; for its content see `register_coco_json`.

    Raises:
        DatasetError: the file is missing or not JSON (the message gives the line), or an entry is malformed (its path).
    """
    content = _read(dataset, json_file, image_root, choice)
    if content.left_out:
        reasons = ", ".join(f"{number} {why}" for why, number in content.left_out.most_common())
        level = logging.INFO if content.kept else logging.WARNING
        say_once(logger, level, f"{dataset}: {content.kept} boxes used; skipped {reasons}")
    if content.useless_masks:
        count, example = len(content.useless_masks), content.useless_masks[0]
        message = f"{dataset}: {count} masks are empty, their persons have none (for example {example})"
        say_once(logger, logging.WARNING, message)
    return build_records(dataset, content.frames, strict)


def load_coco_protocol(
    dataset: str,
    json_file: Path,
    image_root: Path,
    queries_per_identity: int = 10,
    choice: Choice = _ANNOTATIONS,
) -> SearchProtocol:
    """Queries of a COCO JSON file, listed in it or selected; each is searched in all frames but its own.

    Raises:
        DatasetError: see `load_coco_json`; or a query is not the annotation of a labelled person.
    """
    content = _read(dataset, json_file, image_root, choice)
    # Builds the records for their checks: the dataset must be readable.
    records = build_records(dataset, content.frames)
    if content.queries is None:
        return chosen_queries(dataset, records, queries_per_identity)
    queries = tuple(_query(content, number, f"{json_file}: queries[{i}]") for i, number in enumerate(content.queries))
    return check_queries(dataset, SearchProtocol("custom", queries), (record["image_id"] for record in records))


@dataclass
class _Content:
    """Parsed content of a JSON file.

    Attributes:
        frames: frames in the order of the file.
        queries: annotation ids; None if the file lists no queries.
        persons: frame and person by annotation id.
        kept: number of boxes used.
        left_out: number of boxes skipped, by reason.
        useless_masks: position and problem of each empty mask.
    """

    frames: list[Frame]
    queries: list[Any] | None
    persons: dict[Any, tuple[Frame, Person]] = field(default_factory=dict)
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    useless_masks: list[str] = field(default_factory=list)


def _query(content: _Content, number: Any, where: str) -> Query:
    """Query made from the annotation with the id `number`."""
    found = _entry(content.persons, number)
    if found is None:
        raise DatasetError(f"{where}: {number!r} is not the id of a person's annotation")
    frame, person = content.persons[found]
    if frame.height is None or frame.width is None:
        raise DatasetError(f"{where}: the image of the annotation {number!r} cannot be read: {frame.file_name}")
    bbox = clip_box(person.bbox, frame.height, frame.width)
    if person.person_id < 0 or bbox is None:
        problem = "has no person_id" if person.person_id < 0 else "is empty or outside its frame"
        raise DatasetError(f"{where}: the annotation {number!r} (frame {frame.image_id!r}) {problem}")
    return Query(frame.image_id, bbox, person.person_id)


def _read(dataset: str, json_file: Path, image_root: Path, choice: Choice) -> _Content:
    data = _parse(dataset, json_file)
    frames: dict[Any, Frame] = {}
    persons_in: dict[Any, list[Person]] = {}  # shared with the frames
    for i, image in enumerate(_field(data, "images", list, str(json_file))):
        where = f"{json_file}: images[{i}]"
        number = _field(image, "id", (int, str), where)
        if number in frames:
            raise DatasetError(f"{where}: the id {number!r} is used by two images")
        persons_in[number] = []
        frames[number] = _frame(image, image_root, persons_in[number], where)
    content = _Content(list(frames.values()), _field(data, "queries", list, str(json_file), None))
    categories = _categories(data, json_file, choice.categories)
    if choice.results_file is not None:
        require_file(dataset, choice.results_file, "boxes of a detector as COCO results")
        _add_results(content, choice, categories, frames, persons_in)
        return content
    for i, annotation in enumerate(_field(data, "annotations", list, str(json_file))):
        where = f"{json_file}: annotations[{i}]"
        number = _field(annotation, "image_id", (int, str), where)
        image = _entry(frames, number)
        if image is None:
            raise DatasetError(f"{where}: image_id {number!r} is not the id of an image")
        if _flag(annotation, "iscrowd", where) or _flag(annotation, "ignore", where):
            content.left_out["marked iscrowd or ignore"] += 1
        elif other := _other_category(annotation, categories, where):
            content.left_out[f"of category {other}"] += 1
        else:
            content.kept += 1
            person = _person(annotation, frames[image], where, content.useless_masks)
            persons_in[image].append(person)
            identifier = _field(annotation, "id", (int, str), where, None)
            if identifier is not None and identifier in content.persons:
                raise DatasetError(f"{where}: the id {identifier!r} is used by two annotations")
            content.persons[identifier] = frames[image], person
    return content


def _add_results(
    content: _Content,
    choice: Choice,
    categories: dict[int, tuple[str, bool]] | None,
    frames: Mapping[Any, Frame],
    persons_in: Mapping[Any, list[Person]],
) -> None:
    """Adds a detector's boxes to the frames. Boxes of categories that the file does not know are skipped."""
    assert choice.results_file is not None
    known = categories or {PERSON_CATEGORY: ("person", True)}
    by_name = {frame.image_id: number for number, frame in frames.items()}
    for i, box in enumerate(read_coco_results(choice.results_file)):
        image = _entry(frames, box.image_id)
        image = by_name.get(str(box.image_id)) if image is None else image
        if image is None:
            raise DatasetError(
                f"{choice.results_file}: entry {i}: image_id {box.image_id!r} is neither the id nor the file_name of "
                "an image"
            )
        name, is_person = known.get(box.category_id, (str(box.category_id), False))
        if not is_person:
            content.left_out[f"of category {name}"] += 1
        elif box.score < choice.min_score:
            content.left_out[f"below the score {choice.min_score:g}"] += 1
        else:
            content.kept += 1
            persons_in[image].append(Person(box.bbox))


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
    """Value of a key after a check of its type; null counts as missing."""
    if not isinstance(item, Mapping):
        raise DatasetError(f"{where}: expected an object, found a {type(item).__name__}")
    value = item.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if value is None:
        raise DatasetError(f"{where}: has no {key!r}")
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if int in kinds:
        value = _whole(value, texts=str not in kinds)
    large = isinstance(value, int) and abs(value) > _LARGEST
    if not isinstance(value, kinds) or isinstance(value, bool) or large:
        names = " or ".join(kind.__name__ for kind in kinds)
        raise DatasetError(f"{where}: {key!r} is {repr(value)[:60]}, expected {names}{' of 64 bits' if large else ''}")
    return value


def _whole(value: Any, texts: bool) -> Any:
    """Integer written as 7.0 or, if `texts`, as "7"; other values are returned unchanged."""
    if texts and isinstance(value, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,19}(\.0*)?\s*", value):
        return int(value.partition(".")[0])
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _LARGEST else value


def _flag(item: Mapping[str, Any], key: str, where: str) -> bool:
    """Whether a 0/1 flag is set; missing and null count as 0."""
    value = _field(item, key, (int, str, bool), where, 0) if not isinstance(item.get(key), bool) else item[key]
    words = {"0": False, "1": True, "false": False, "true": True, "": False}
    flag = words.get(str(value).strip().lower())
    if flag is None:
        raise DatasetError(f"{where}: {key!r} is {repr(value)[:60]}, expected 0 or 1")
    return flag


def _entry(table: Mapping[Any, Any], number: Any) -> Any:
    """Key of `table` that an id refers to: equal, or the same number as text; None if there is none."""
    number = _whole(number, texts=False)
    if isinstance(number, bool) or not isinstance(number, int | str):
        return None
    if number in table:
        return number
    other = _whole(number, texts=True) if isinstance(number, str) else str(number)
    return other if other in table else None


def _frame(image: Any, image_root: Path, persons: list[Person], where: str) -> Frame:
    name = _field(image, "file_name", str, where)
    file = str(image_root / name)
    height, width = _field(image, "height", int, where, None), _field(image, "width", int, where, None)
    if height in (None, _UNKNOWN) or width in (None, _UNKNOWN):
        height, width = image_sizes([file])[0] or (None, None)
    elif height < 1 or width < 1:
        raise DatasetError(f"{where}: the frame has the size {width} x {height}, expected at least 1 pixel each")
    return Frame(file, name, height, width, persons, _field(image, "camera_id", int, where, None))


def _categories(data: dict[str, Any], json_file: Path, wanted: Sequence[str]) -> dict[int, tuple[str, bool]] | None:
    """Names by category id, each with whether it means person; None if the file has no categories."""
    names: dict[int, str] = {}
    for i, category in enumerate(_field(data, "categories", list, str(json_file), ())):
        where = f"{json_file}: categories[{i}]"
        names[_field(category, "id", int, where)] = _field(category, "name", str, where)
    found = f"there are {', '.join(names.values()) or 'none'}"
    absent = [name for name in wanted if name.lower() not in {known.lower() for known in names.values()}]
    if absent:
        raise DatasetError(f"{json_file}: CATEGORIES has {', '.join(absent)}, which is not a category; {found}")
    if not names:
        return None
    persons = {name.lower() for name in wanted} or set(PERSON_NAMES)
    lone = len(names) == 1
    categories = {number: (name, lone or name.lower() in persons) for number, name in names.items()}
    if not any(is_person for _, is_person in categories.values()):
        raise DatasetError(f"{json_file}: no category is named person; {found}: set CATEGORIES to those of persons")
    return categories


def _other_category(annotation: Mapping[str, Any], categories: dict[int, tuple[str, bool]] | None, where: str) -> str:
    """Category of an annotation that shows no person; "" for persons."""
    if categories is None:
        return ""
    category = _field(annotation, "category_id", int, where)
    if category not in categories:
        raise DatasetError(f"{where}: category_id {category} is not the id of a category")
    name, is_person = categories[category]
    return "" if is_person else name


def _person(annotation: Mapping[str, Any], frame: Frame, where: str, useless_masks: list[str]) -> Person:
    bbox = _field(annotation, "bbox", list, where)
    if len(bbox) != 4 or not all(_is_coordinate(v) for v in bbox):
        raise DatasetError(f"{where}: 'bbox' is {str(bbox)[:60]}, expected [x, y, width, height]")
    x, y, w, h = map(float, bbox)
    try:
        mask = mask_of_annotation(annotation.get("segmentation"), frame.height, frame.width, where)
    except EmptyMaskError as error:
        useless_masks.append(str(error))
        mask = None
    tracklet = _field(annotation, "tracklet_id", int, where, UNLABELLED)
    return Person((x, y, x + w, y + h), _identity(annotation, where), mask, tracklet)


def _identity(annotation: Mapping[str, Any], where: str) -> int:
    """Identity of an annotation: `person_id`, else CVAT's track attribute, else unlabelled."""
    attributes = annotation.get("attributes")
    if annotation.get("person_id") is None and isinstance(attributes, Mapping):
        return _field(attributes, "track_id", int, f"{where}: attributes", UNLABELLED)
    return _field(annotation, "person_id", int, where, UNLABELLED)


def _is_coordinate(value: Any) -> bool:
    """Whether a box coordinate is a number that fits into a float; NaN and infinity are allowed and dropped later."""
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST
    return whole or isinstance(value, float)
