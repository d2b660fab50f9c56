"""Synthetic datasets on disk: generated in one step, found again by their configuration."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from iopath.common.file_io import file_lock
from pycocotools import mask as mask_util
from tqdm import tqdm

from ..errors import ConfigError, DatasetError
from .config import GENERATOR_VERSION, SPLITS, STREAM_QUERIES, SyntheticConfig, random_stream
from .frame import VisiblePerson, render_frame
from .plan import FramePlan, plan_split

CONFIG_FILE = "config.json"
_ENCODING = {"png": [cv2.IMWRITE_PNG_COMPRESSION, 1], "jpg": [cv2.IMWRITE_JPEG_QUALITY, 95]}
_QUERY_VISIBILITY = 0.5  # queries show at least this much of the person, as real ones do


def generate(config: SyntheticConfig, root: str | Path, progress: bool = True, workers: int = 1) -> Path:
    """Make sure that the dataset of a configuration lies below a folder.

    A finished dataset is used as it is. Generation writes into `<name>.partial`, which becomes the dataset only when
    everything is there, and is removed when generation fails. Processes that ask for one dataset at the same time
    wait for each other.

    Args:
        config: what to generate.
        root: folder below which `config.folder_name` is put; made where it is missing.
        progress: show a progress bar with the time left.
        workers: processes that render; the result does not depend on it.

    Returns:
        the dataset's folder: train/ and test/ with the frames, train.json and test.json in COCO's format (test.json
        with `queries`), config.json.

    Raises:
        ConfigError: `workers` is not positive.
        DatasetError: the folder holds something else, or cannot be written.
    """
    if workers < 1:
        raise ConfigError(f"workers = {workers}: expected at least 1")
    folder = Path(root).expanduser().absolute() / config.folder_name
    if _is_finished(config, folder):
        return folder
    partial_folder = folder.with_name(folder.name + ".partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(str(folder.with_name("." + folder.name))):
            if _is_finished(config, folder):  # by the process that held the lock
                return folder
            shutil.rmtree(partial_folder, ignore_errors=True)  # left by a process that was killed
            try:
                _write_dataset(config, partial_folder, progress, workers)
                os.replace(partial_folder, folder)
            except BaseException:
                shutil.rmtree(partial_folder, ignore_errors=True)
                raise
    except OSError as error:
        raise DatasetError(f"the synthetic dataset {folder} cannot be written: {error}") from error
    return folder


def read_config(folder: str | Path) -> SyntheticConfig:
    """The configuration of a finished dataset.

    Raises:
        DatasetError: the folder is no synthetic dataset of this version of the generator.
    """
    file = Path(folder) / CONFIG_FILE
    advice = "expected a synthetic dataset; remove the folder or choose another place"
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        version, values = stored["generator_version"], stored["config"]
        config = SyntheticConfig(**values)
    except (OSError, ValueError, KeyError, TypeError, ConfigError) as error:
        raise DatasetError(f"{file}: {type(error).__name__}: {error}; {advice}") from error
    if version != GENERATOR_VERSION:
        raise DatasetError(f"{file}: generator_version is {version!r}, this is version {GENERATOR_VERSION}; {advice}")
    return config


def _is_finished(config: SyntheticConfig, folder: Path) -> bool:
    if not folder.exists():
        return False
    if read_config(folder) != config:
        raise DatasetError(
            f"{folder / CONFIG_FILE}: describes another dataset than the folder's name says; remove the folder"
        )
    return True


def _write_dataset(config: SyntheticConfig, folder: Path, progress: bool, workers: int) -> None:
    frames = sum(config.frames(split) for split in SPLITS)
    with ExitStack() as stack:
        mapper: Any = map
        if workers > 1:
            # A forked child could inherit a locked thread pool of OpenCV or torch: start afresh.
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, initializer=cv2.setNumThreads, initargs=(1,))
            mapper = partial(stack.enter_context(pool).map, chunksize=4)
        bar = stack.enter_context(tqdm(total=frames, desc=config.folder_name, unit="frame", disable=not progress))
        for split in SPLITS:
            (folder / split).mkdir(parents=True)
            plans = plan_split(config, split)
            rendered = []
            for persons in mapper(partial(_render_file, config, split, folder / split), plans):
                rendered.append(persons)
                bar.update()
            _write_json(folder / f"{split}.json", _coco(config, split, plans, rendered))
    _write_json(folder / CONFIG_FILE, {"generator_version": GENERATOR_VERSION, "config": asdict(config)})


def _render_file(config: SyntheticConfig, split: str, folder: Path, plan: FramePlan) -> list[dict[str, Any]]:
    """Write the image of one frame; return its annotations but for their ids."""
    image, persons = render_frame(config, split, plan)
    suffix = config.image_format
    encoded, data = cv2.imencode(f".{suffix}", image[..., ::-1], _ENCODING[suffix])
    file = folder / _file_name(config, plan)
    if not encoded:
        raise DatasetError(f"{file}: OpenCV cannot encode images as {suffix}")
    file.write_bytes(data.tobytes())
    return [_annotation(person) for person in persons]


def _file_name(config: SyntheticConfig, plan: FramePlan) -> str:
    return f"c{plan.camera_id}_{plan.frame:06d}.{config.image_format}"


def _annotation(person: VisiblePerson) -> dict[str, Any]:
    x0, y0, x1, y1 = person.bbox
    mask = mask_util.encode(np.asfortranarray(person.mask.astype(np.uint8)))
    return {
        "category_id": 1,
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(person.mask.sum()),
        "iscrowd": 0,
        "person_id": person.person_id,
        "visibility": round(person.visibility, 4),
        "segmentation": {"size": list(person.mask.shape), "counts": mask["counts"].decode("ascii")},
    }


def _coco(
    config: SyntheticConfig, split: str, plans: Iterable[FramePlan], rendered: list[list[dict[str, Any]]]
) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (plan, persons) in enumerate(zip(plans, rendered, strict=True), start=1):
        images.append(
            {
                "id": number,
                "file_name": _file_name(config, plan),
                "height": config.image_height,
                "width": config.image_width,
                "camera_id": plan.camera_id,
            }
        )
        for person in persons:
            annotations.append({"id": len(annotations) + 1, "image_id": number, **person})
    content: dict[str, Any] = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}],
    }
    if split == "test":
        content["queries"] = _choose_queries(config, images, annotations)
    return content


def _choose_queries(
    config: SyntheticConfig, images: list[dict[str, Any]], annotations: list[dict[str, Any]]
) -> list[int]:
    """Ids of the annotations to search for: of every identity in turn from each camera, in random order.

    Only identities that are seen in another frame too can be found.
    """
    camera_of = {image["id"]: image["camera_id"] for image in images}
    of_person: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in annotations:
        if annotation["person_id"] >= 0:
            of_person[annotation["person_id"]].append(annotation)
    queries = []
    for person_id in sorted(of_person):
        found = of_person[person_id]
        if len(found) < 2:
            continue
        rng = random_stream(config, STREAM_QUERIES, person_id)
        turns: dict[int, int] = defaultdict(int)
        candidates = []
        for index in rng.permutation(len(found)):
            if found[index]["visibility"] >= _QUERY_VISIBILITY:
                camera = camera_of[found[index]["image_id"]]
                candidates.append((turns[camera], found[index]["id"]))
                turns[camera] += 1
        candidates.sort(key=lambda candidate: candidate[0])  # stable: first one of each camera, then a second
        queries += sorted(number for _, number in candidates[: config.queries_per_identity])
    return queries


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, sort_keys=True) + "\n", encoding="utf-8")
