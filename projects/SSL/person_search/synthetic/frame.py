"""Rendering of frames: placement of persons and objects on the ground, and exact visibility."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .background import render_background, render_daylight
from .camera import Camera, camera
from .canvas import Sprite
from .config import SPLITS, STREAM_CAMERA, STREAM_FRAME, SyntheticConfig, random_stream
from .figure import draw_person
from .furniture import KINDS, draw_furniture
from .looks import identity_look, passer_by_look
from .plan import FramePlan, PlannedPerson
from .pose import sample_pose

_TRIES = 40
_LEAST_INSIDE = 0.75  # minimum fraction of a person's pixels inside the frame


@dataclass(frozen=True)
class Layer:
    """Object on the ground: sprite, upper left corner (x, y), and row of its foot (pixels)."""

    sprite: Sprite
    corner: tuple[int, int]
    foot: float
    person_id: int | None = None  # None for an object, -1 for a passer-by


@dataclass(frozen=True)
class VisiblePerson:
    """Annotation of a person.

    Attributes:
        person_id: identity, or -1.
        bbox: (x0, y0, x1, y1) of the whole body including hidden parts, clipped to the frame; pixels.
        mask: (h, w) bool over the frame, visible pixels of the person.
        visibility: visible fraction of the person's pixels; pixels outside the frame count as hidden.
    """

    person_id: int
    bbox: tuple[float, float, float, float]
    mask: np.ndarray
    visibility: float


@dataclass(frozen=True)
class Place:
    """Constant content of a camera's frames: background (h, w, 3) float32, light (h, w) float32, furniture."""

    camera: Camera
    background: np.ndarray
    daylight: np.ndarray
    furniture: tuple[Layer, ...]


def render_frame(config: SyntheticConfig, split: str, plan: FramePlan) -> tuple[np.ndarray, list[VisiblePerson]]:
    """Image of a planned frame, with annotations.

    Persons are dropped if there is no position where everybody stays visible enough.

    Returns:
        (h, w, 3) uint8 RGB image, and its persons in the order of the plan.
    """
    rng = random_stream(config, STREAM_FRAME, SPLITS.index(split), plan.frame)
    place = _place(config, plan.camera_id)
    layers = list(place.furniture)
    if rng.random() < 0.6:
        layers.append(_object(place.camera, config.image_width, rng))
    for person in plan.persons:
        _put_person(config, place.camera, person, layers, rng)
    layers.sort(key=lambda layer: layer.foot)
    image = _compose(place, layers)
    exposure = float(np.exp(rng.normal(0, 0.08)))
    persons = _visible_persons(layers, image.shape[:2])
    return place.camera.develop(image, exposure, rng), persons


@lru_cache(maxsize=16)
def _place(config: SyntheticConfig, camera_id: int) -> Place:
    rng = random_stream(config, STREAM_CAMERA, camera_id, 1)
    view = camera(config, camera_id)
    background = render_background(view, config.image_height, config.image_width, rng)
    daylight = render_daylight(view, config.image_height, config.image_width, rng)
    furniture = tuple(_object(view, config.image_width, rng) for _ in range(5))
    return Place(view, background, daylight, furniture)


def _object(view: Camera, width: int, rng: np.random.Generator) -> Layer:
    """Piece of furniture on the farther part of the ground; cars are at its far end."""
    kind = str(rng.choice(KINDS))
    scale = view.scale_at(float(rng.uniform(0.01, 0.14 if kind == "car" else 0.55)))
    sprite = draw_furniture(kind, scale, view.light, rng)
    return _layer(sprite, float(rng.uniform(0, width)), view.row(scale))


def _layer(sprite: Sprite, x: float, foot: float, person_id: int | None = None) -> Layer:
    return Layer(sprite, (round(x) - sprite.anchor[0], round(foot) - sprite.anchor[1]), foot, person_id)


def _put_person(
    config: SyntheticConfig, view: Camera, person: PlannedPerson, layers: list[Layer], rng: np.random.Generator
) -> None:
    """Adds a person to the layers if everybody keeps `config.min_visible`; otherwise layers are unchanged."""
    scale = view.scale_at(person.nearness)
    look = passer_by_look(config, rng) if person.person_id < 0 else identity_look(config, person.person_id)
    sprite = draw_person(look, sample_pose(rng), scale, view.light)
    shape = (config.image_height, config.image_width)
    crowded = rng.random() < config.crowding
    for _ in range(_TRIES):
        x = _propose(layers, scale, config.image_width, crowded, rng)
        layer = _layer(sprite, x, view.row(scale), person.person_id)
        together = sorted([*layers, layer], key=lambda one: one.foot)
        if _inside(layer, shape) >= _LEAST_INSIDE and _least_visible(together, shape) >= config.min_visible:
            layers.append(layer)
            return
        crowded = False


def _propose(layers: list[Layer], scale: float, width: int, crowded: bool, rng: np.random.Generator) -> float:
    """Column for a person's feet: beside another person or an object if crowded, else anywhere."""
    if not crowded or not layers:
        return float(rng.uniform(0, width))
    persons = [layer for layer in layers if layer.person_id is not None]
    near = persons if persons and rng.random() < 0.7 else layers
    other = near[int(rng.integers(len(near)))]
    middle = other.corner[0] + other.sprite.anchor[0]
    return middle + float(rng.uniform(-0.45, 0.45)) * scale


_Window = tuple[slice, slice]  # (rows, columns)


def _windows(corner: tuple[int, int], size: tuple[int, int], shape: tuple[int, int]) -> tuple[_Window, _Window]:
    """Overlap of a picture of `size` (h, w), with its upper left corner at `corner` (x, y), and a frame of `shape`.

    Returns:
        windows of the frame and of the picture, of equal size, possibly empty.
    """
    frame, picture = [], []
    for start, length, limit in zip(corner[::-1], size, shape, strict=True):
        low = min(max(0, start), limit)
        high = max(low, min(limit, start + length))
        frame.append(slice(low, high))
        picture.append(slice(low - start, high - start))
    return (frame[0], frame[1]), (picture[0], picture[1])


def _inside(layer: Layer, shape: tuple[int, int]) -> float:
    """Fraction of the sprite's solid pixels inside the frame."""
    _, part = _windows(layer.corner, layer.sprite.alpha.shape, shape)
    solid = layer.sprite.solid
    return float(solid[part].sum() / solid.sum())


def _owners(layers: list[Layer], shape: tuple[int, int]) -> np.ndarray:
    """Number of the visible layer at each pixel, (h, w) int16; -1 for the background."""
    owner = np.full(shape, -1, np.int16)
    for number, layer in enumerate(layers):
        window, part = _windows(layer.corner, layer.sprite.alpha.shape, shape)
        owner[window][layer.sprite.solid[part]] = number
    return owner


def _least_visible(layers: list[Layer], shape: tuple[int, int]) -> float:
    """Minimum visibility of the persons in the layers, which are sorted from far to near."""
    counts = np.bincount((_owners(layers, shape) + 1).ravel(), minlength=len(layers) + 1)[1:]
    persons = [(layer, n) for layer, n in zip(layers, counts, strict=True) if layer.person_id is not None]
    return float(min(n / layer.sprite.solid.sum() for layer, n in persons))


def _visible_persons(layers: list[Layer], shape: tuple[int, int]) -> list[VisiblePerson]:
    owner = _owners(layers, shape)
    persons = []
    for number, layer in enumerate(layers):
        if layer.person_id is None:
            continue
        solid, mask = layer.sprite.solid, owner == number
        rows, columns = np.flatnonzero(solid.any(1)), np.flatnonzero(solid.any(0))
        x, y = layer.corner
        box = np.array([x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1], dtype=float)
        box = np.clip(box, 0, [shape[1], shape[0]] * 2)
        persons.append(VisiblePerson(layer.person_id, tuple(box.tolist()), mask, float(mask.sum() / solid.sum())))
    # In order of identity, with passers-by last: the order from far to near would reveal the depth.
    return sorted(persons, key=lambda person: (person.person_id < 0, person.person_id))


def _compose(place: Place, layers: list[Layer]) -> np.ndarray:
    """Scene before the sensor, (h, w, 3) float32: layers from far to near, with shadows on the ground."""
    image = place.background * place.daylight[..., None]
    shape = image.shape[:2]
    for layer in layers:
        _drop_shadow(image, layer, place.camera)
    for layer in layers:
        window, part = _windows(layer.corner, layer.sprite.alpha.shape, shape)
        column = int(np.clip(layer.corner[0] + layer.sprite.anchor[0], 0, shape[1] - 1))
        light = place.daylight[int(np.clip(layer.foot, 0, shape[0] - 1)), column]
        covered = image[window]
        covered *= (1 - layer.sprite.alpha[part])[..., None]
        covered += layer.sprite.rgb[part] * light
    return image


def _drop_shadow(image: np.ndarray, layer: Layer, view: Camera) -> None:
    """Darkens the ground around the foot of a layer, away from the light."""
    solid = layer.sprite.solid
    broad = 0.5 * np.flatnonzero(solid[len(solid) // 2 :].any(0)).size
    scale = view.scale(layer.foot)
    axes = (max(2, round(0.9 * broad)), max(1, round(0.12 * scale)))
    soft = max(0.6, 0.04 * scale)
    margin = np.array(axes) + int(np.ceil(4 * soft))
    shadow = np.zeros((2 * margin[1] + 1, 2 * margin[0] + 1), np.float32)
    cv2.ellipse(shadow, (int(margin[0]), int(margin[1])), axes, 0, 0, 360, 0.5, -1)
    shadow = cv2.GaussianBlur(shadow, (0, 0), soft)
    x = layer.corner[0] + layer.sprite.anchor[0] - round(0.15 * view.light * scale)
    corner = (x - int(margin[0]), round(layer.foot) - int(margin[1]))
    window, part = _windows(corner, shadow.shape, image.shape[:2])
    image[window] *= (1 - shadow[part])[..., None]
