"""The demo preset is neither trivial nor hopeless: what color alone can do, scales, cameras and occlusion."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import cv2
import numpy as np
import pytest
from person_search.synthetic import PRESETS
from person_search.synthetic.frame import render_frame
from person_search.synthetic.plan import plan_split

DEMO = PRESETS["demo"]


class Crop(NamedTuple):
    """One person of the demo's test split; `inside` and `whole` are color histograms of unit length."""

    person_id: int
    frame: int
    camera_id: int
    height: float
    visibility: float
    inside: np.ndarray
    whole: np.ndarray


def _histogram(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Square roots of the shares of 6 x 6 x 6 colors, (216,): two give their Bhattacharyya coefficient as product."""
    counts = cv2.calcHist([image], [0, 1, 2], mask, [6] * 3, [0, 256] * 3).ravel()
    return np.sqrt(counts / counts.sum())


@pytest.fixture(scope="module")
def crops() -> list[Crop]:
    found = []
    for plan in plan_split(DEMO, "test"):
        image, persons = render_frame(DEMO, "test", plan)
        for person in persons:
            x0, y0, x1, y1 = (int(v) for v in person.bbox)
            pixels = np.ascontiguousarray(image[y0:y1, x0:x1])
            mask = np.ascontiguousarray(person.mask[y0:y1, x0:x1].astype(np.uint8))
            inside, whole = _histogram(pixels, mask), _histogram(pixels, None)
            about = (person.person_id, plan.frame, plan.camera_id, y1 - y0, person.visibility)
            found.append(Crop(*about, inside, whole))
    return found


def _mean_average_precision(crops: list[Crop], features: np.ndarray) -> float:
    """Every labelled person searched among the persons of the other frames by the product of features."""
    person, frame = np.array([c.person_id for c in crops]), np.array([c.frame for c in crops])
    precisions = []
    for query in np.flatnonzero(person >= 0):
        gallery = np.flatnonzero(frame != frame[query])
        ranked = gallery[np.argsort(-features[gallery] @ features[query], kind="stable")]
        hits = np.flatnonzero(person[ranked] == person[query])
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    return float(np.mean(precisions))


def test_color_histograms_help_but_do_not_suffice(crops: list[Crop]) -> None:
    chance = _mean_average_precision(crops, np.random.default_rng(0).standard_normal((len(crops), 32)))
    whole = _mean_average_precision(crops, np.array([crop.whole for crop in crops]))
    inside = _mean_average_precision(crops, np.array([crop.inside for crop in crops]))
    assert chance < 0.15
    assert 1.5 * chance < whole < 0.35, "boxes: the background misleads"
    assert 2 * chance < inside < 0.6, "masks: the light of the cameras misleads"


def test_persons_span_twice_the_height(crops: list[Crop]) -> None:
    heights = defaultdict(list)
    for crop in crops:
        heights[crop.person_id].append(crop.height)
    everything = [height for of_person in heights.values() for height in of_person]
    assert max(everything) >= 2.5 * min(everything)
    assert 75 <= min(everything) and max(everything) <= 0.95 * DEMO.image_height
    ratios = [max(of_person) / min(of_person) for person_id, of_person in heights.items() if person_id >= 0]
    assert min(ratios) >= 1.8 and np.median(ratios) >= 2.2


def test_every_identity_is_seen_by_every_camera(crops: list[Crop]) -> None:
    cameras = defaultdict(set)
    for crop in crops:
        cameras[crop.person_id].add(crop.camera_id)
    assert set(cameras) - {-1} == set(DEMO.identities("test"))
    assert all(len(seen) == DEMO.cameras for seen in cameras.values())


def test_some_are_hidden_in_part_and_some_have_no_name(crops: list[Crop]) -> None:
    visibility = np.array([crop.visibility for crop in crops])
    assert visibility.min() >= DEMO.min_visible
    assert 0.02 < np.mean(visibility < 0.95) < 0.4
    assert 0.05 < np.mean([crop.person_id == -1 for crop in crops]) < 0.3
