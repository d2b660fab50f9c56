"""Frames: cameras, backgrounds, and exactly what can be seen of whom."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from person_search.synthetic import PRESETS
from person_search.synthetic import frame as module
from person_search.synthetic.background import render_background, render_daylight, wall_row
from person_search.synthetic.camera import Camera, camera
from person_search.synthetic.canvas import Sprite
from person_search.synthetic.config import MEAN_STATURE
from person_search.synthetic.frame import Layer, VisiblePerson, render_frame
from person_search.synthetic.looks import identity_look
from person_search.synthetic.plan import plan_split

TINY = PRESETS["tiny"]
Rendered = list[tuple[np.ndarray, list[VisiblePerson]]]


@pytest.fixture(scope="module")
def rendered() -> Rendered:
    return [render_frame(TINY, "train", plan) for plan in plan_split(TINY, "train")]


def test_frames_have_the_configured_shape_and_persons(rendered: Rendered) -> None:
    for (image, persons), plan in zip(rendered, plan_split(TINY, "train"), strict=True):
        assert image.shape == (TINY.image_height, TINY.image_width, 3) and image.dtype == np.uint8
        assert {person.person_id for person in persons} <= {person.person_id for person in plan.persons}
    planned = sum(len(plan.persons) for plan in plan_split(TINY, "train"))
    assert sum(len(persons) for _, persons in rendered) >= 0.95 * planned


def test_masks_lie_in_their_boxes_and_do_not_overlap(rendered: Rendered) -> None:
    for image, persons in rendered:
        owned = np.zeros(image.shape[:2], int)
        for person in persons:
            x0, y0, x1, y1 = (int(v) for v in person.bbox)
            assert 0 <= x0 < x1 <= image.shape[1] and 0 <= y0 < y1 <= image.shape[0]
            inside = person.mask[y0:y1, x0:x1]
            assert inside.sum() == person.mask.sum() > 0
            owned += person.mask
            if person.visibility > 0.999:  # nothing hidden: the box is tight
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        assert owned.max() <= 1


def test_masks_are_the_pixels_that_change_when_the_person_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    """With neither shadows nor lens nor noise a person changes the scene within its mask (and its soft edge) only."""
    config = replace(TINY, noise=0.0, camera_shift=0.0)
    monkeypatch.setattr(module, "_drop_shadow", lambda image, layer, view: None)
    place = module._place(config, 1)
    layers: list[Layer] = list(place.furniture)
    rng = np.random.default_rng(3)
    for planned in plan_split(config, "train")[0].persons:
        module._put_person(config, place.camera, planned, layers, rng)
    layers.sort(key=lambda layer: layer.foot)
    shape = place.background.shape[:2]
    full = module._compose(place, layers)
    for layer in [layer for layer in layers if layer.person_id is not None]:
        without = module._compose(place, [other for other in layers if other is not layer])
        changed = np.abs(full - without).max(-1) > 0
        person = next(p for p in module._visible_persons(layers, shape) if p.person_id == layer.person_id)
        edge = cv2.dilate(person.mask.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
        hidden_edge = changed & ~edge
        # Pixels outside the mask's edge: half-covered outlines behind which the person shines through.
        assert hidden_edge.sum() <= 0.05 * person.mask.sum() + 4
        assert (changed & person.mask).sum() >= 0.97 * person.mask.sum()


def test_nobody_is_hidden_more_than_configured_and_some_are_hidden() -> None:
    config = replace(TINY, crowding=1.0, min_visible=0.5, min_persons=4)
    seen = [p.visibility for plan in plan_split(config, "train") for p in render_frame(config, "train", plan)[1]]
    assert min(seen) >= 0.5
    assert np.mean(np.array(seen) < 0.9) > 0.2
    apart = replace(config, crowding=0.0)
    alone = [p.visibility for plan in plan_split(apart, "train") for p in render_frame(apart, "train", plan)[1]]
    assert np.mean(alone) > np.mean(seen)


def _square(color: float, side: int, anchor: tuple[int, int]) -> Sprite:
    return Sprite(np.full((side, side, 3), color, np.float32), np.ones((side, side), np.float32), anchor)


def test_visibility_counts_what_others_and_the_frame_hide() -> None:
    far = Layer(_square(10, 10, (5, 10)), (-5, 10), 20.0, person_id=4)  # half outside the frame
    near = Layer(_square(20, 10, (5, 10)), (0, 15), 25.0, person_id=-1)  # hides half of what is left
    thing = Layer(_square(30, 4, (2, 4)), (2, 18), 30.0)
    first, second = module._visible_persons([far, near, thing], (40, 40))
    assert (first.person_id, second.person_id) == (4, -1)
    assert first.bbox == (0, 10, 5, 20) and second.bbox == (0, 15, 10, 25)
    assert first.visibility == pytest.approx(25 / 100) and first.mask.sum() == 25
    assert second.visibility == pytest.approx(84 / 100) and not second.mask[18:22, 2:6].any()
    assert module._least_visible([far, near, thing], (40, 40)) == pytest.approx(0.25)
    assert module._inside(far, (40, 40)) == pytest.approx(0.5)


@pytest.mark.parametrize("corner", [(-20, 3), (3, -20), (60, 3), (3, 60)])
def test_what_lies_outside_the_frame_has_an_empty_window(corner: tuple[int, int]) -> None:
    window, part = module._windows(corner, (10, 10), (40, 50))
    assert np.zeros((40, 50))[window].size == 0
    assert np.zeros((10, 10))[part].size == 0


def test_size_follows_the_foot_on_the_ground(rendered: Rendered) -> None:
    """Perspective: what stands lower in the image is larger, in proportion to its distance from the horizon."""
    checked = 0
    for (image, persons), plan in zip(rendered, plan_split(TINY, "train"), strict=True):
        view = camera(TINY, plan.camera_id)
        for person in persons:
            _, y0, _, y1 = person.bbox
            if person.person_id < 0 or y0 <= 0 or y1 >= image.shape[0]:
                continue
            expected = identity_look(TINY, person.person_id).stature * view.scale(y1)
            assert 0.8 * expected - 3 <= y1 - y0 <= 1.12 * expected + 3
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_cameras_hold_persons_of_every_size(preset: str) -> None:
    config = PRESETS[preset]
    for camera_id in range(1, config.cameras + 1):
        view = camera(config, camera_id)
        assert view.scale_at(0.0) * MEAN_STATURE == pytest.approx(config.min_person_height)
        assert view.scale_at(1.0) * MEAN_STATURE == pytest.approx(config.max_person_height)
        for nearness in np.linspace(0, 1, 9):
            row = view.row(view.scale_at(nearness))
            assert view.scale(row) == pytest.approx(view.scale_at(nearness))
            assert row - 1.9 * view.scale(row) >= 0 and row < config.image_height


def test_cameras_differ_in_place_color_and_background() -> None:
    config = PRESETS["demo"]
    views = [camera(config, number) for number in (1, 2, 3)]
    assert len({view.scene for view in views}) == 3 and len({view.mix for view in views}) == 3
    empty = [render_background(view, 288, 512, np.random.default_rng(0)) for view in views]
    means = [image.mean((0, 1)) for image in empty]
    for i in range(3):
        assert empty[i].shape == (288, 512, 3) and empty[i].std() > 15
        for j in range(i):
            assert np.abs(means[i] - means[j]).max() > 8
    neutral = camera(replace(config, camera_shift=0.0), 1)
    assert np.allclose(neutral.mix, np.eye(3)) and neutral.gamma == 1.0


@pytest.mark.parametrize("scene", ["shops", "park", "brick", "offices", "station"])
def test_every_scene_has_fronts_above_the_ground(scene: str) -> None:
    view = replace(camera(PRESETS["hard"], 1), scene=scene)
    image = render_background(view, 384, 640, np.random.default_rng(1))
    base = int(wall_row(view))
    assert 0 < base < 192
    front, ground = image[: base - 2], image[base + 8 :]
    assert np.abs(front.mean((0, 1)) - ground.mean((0, 1))).max() > 5
    light = render_daylight(view, 384, 640, np.random.default_rng(1))
    assert 0.5 < light.min() < 0.9 < light.max() <= 1.06


def _still(view: Camera, **changes: float) -> Camera:
    identity = tuple(tuple(row) for row in np.eye(3).tolist())
    return replace(view, **{"mix": identity, "gamma": 1.0, "blur": 0.0, "noise": 0.0, **changes})


def test_the_sensor_applies_exposure_gamma_and_noise() -> None:
    view = camera(TINY, 1)
    scene = np.full((40, 60, 3), 100, np.float32)
    rng = np.random.default_rng(0)
    assert (_still(view).develop(scene.copy(), 1.0, rng) == 100).all()
    assert (_still(view).develop(scene.copy(), 1.5, rng) == 150).all()
    assert (_still(view).develop(scene.copy(), 9.0, rng) == 255).all()
    assert (_still(view, gamma=2.0).develop(scene.copy(), 1.0, rng) == round(255 * (100 / 255) ** 2)).all()
    noisy = _still(view, noise=5.0).develop(scene.copy(), 1.0, rng).astype(float)
    assert noisy.mean() == pytest.approx(100, abs=0.5) and noisy.std() == pytest.approx(5, abs=0.3)
    scene[20:, :, :] = 0
    blurred = _still(view, blur=2.0).develop(scene.copy(), 1.0, rng)
    assert 20 < blurred[20, 30, 0] < 80


def test_a_frame_depends_on_nothing_but_its_plan(rendered: Rendered) -> None:
    """Neither frames rendered before, nor caches, nor OpenCV's threads change a byte."""
    plans = plan_split(TINY, "train")
    threads = cv2.getNumThreads()
    module._place.cache_clear()
    try:
        for number in (7, 2, 11):
            cv2.setNumThreads(1 if number == 2 else 4)
            image, persons = render_frame(TINY, "train", plans[number])
            assert (image == rendered[number][0]).all()
            for mine, other in zip(persons, rendered[number][1], strict=True):
                assert mine.bbox == other.bbox and (mine.mask == other.mask).all()
    finally:
        cv2.setNumThreads(threads)
    test_frame, _ = render_frame(TINY, "test", plans[7])
    assert (test_frame != rendered[7][0]).any(), "train and test frames of one number are the same picture"
