"""Street furniture, which partly hides persons."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .canvas import Canvas, Sprite, plain, shaded
from .looks import GARMENTS, Color
from .textures import darker

_FINE = 3
_REACH = {
    "lamp": (0.6, 0.6, 4.6),
    "bollard": (0.2, 0.2, 1.0),
    "planter": (0.9, 0.9, 1.3),
    "bin": (0.4, 0.4, 1.1),
    "bench": (1.1, 1.1, 1.0),
    "sign": (0.5, 0.5, 1.3),
    "car": (2.2, 2.2, 1.6),
    "post": (0.4, 0.4, 2.6),
}
KINDS = tuple(_REACH)


def draw_furniture(kind: str, scale: float, light: float, rng: np.random.Generator) -> Sprite:
    """Sprite of a piece of furniture of one of `KINDS`, at `scale` pixels per metre, with details from `rng`."""
    left, right, up = _REACH[kind]
    canvas = Canvas((left, right, up, 0.05), scale, _FINE, light)
    _PAINTERS[kind](canvas, rng)
    return canvas.sprite()


def _color(rng: np.random.Generator, *choices: Color) -> Color:
    return choices[int(rng.integers(len(choices)))]


def _post(canvas: Canvas, x: float, low: float, high: float, radius: float, color: Color) -> None:
    """Draws an upright post in one color."""
    canvas.limb(np.array([x, high]), np.array([x, low]), (radius, radius), plain(color, 2))


def _slab(canvas: Canvas, box: tuple[float, float, float, float], color: Color) -> None:
    """Draws a rectangle (left, low, right, high) in metres, slightly darker towards its foot."""
    left, low, right, high = box
    corners = np.array([[left, high], [right, high], [right, low], [left, low]])
    rows = (np.linspace(1.08, 0.86, 8)[:, None] * np.asarray(color, np.float32)).astype(np.float32)
    canvas.paint(shaded(rows, 0.3 * canvas.light), corners, corners)


def _lamp(canvas: Canvas, rng: np.random.Generator) -> None:
    steel = _color(rng, (70, 78, 76), (120, 124, 126), (52, 66, 58))
    _post(canvas, 0.0, 0.0, 4.2, 0.055, steel)
    _post(canvas, 0.0, 0.0, 0.7, 0.1, darker(steel, 0.85))
    _slab(canvas, (-0.45, 4.2, 0.45, 4.35), darker(steel, 0.7))


def _bollard(canvas: Canvas, rng: np.random.Generator) -> None:
    _post(canvas, 0.0, 0.05, 0.85, 0.085, _color(rng, (84, 86, 90), (58, 62, 60), (170, 166, 158)))
    _slab(canvas, (-0.09, 0.66, 0.09, 0.76), (216, 210, 196))


def _planter(canvas: Canvas, rng: np.random.Generator) -> None:
    for _ in range(26):
        place = np.array([rng.uniform(-0.68, 0.68), rng.uniform(0.5, 1.0)])
        radius = float(rng.uniform(0.09, 0.17))
        leaf = darker(_color(rng, (74, 112, 60), (94, 128, 70)), float(rng.uniform(0.75, 1.15)))
        canvas.limb(place, place + [0.0, -0.02], (radius, radius), plain(leaf, 2))
    _slab(canvas, (-0.8, 0.0, 0.8, 0.55), _color(rng, (126, 96, 70), (150, 148, 142), (104, 84, 76)))


def _bin(canvas: Canvas, rng: np.random.Generator) -> None:
    body = _color(rng, (70, 92, 78), (96, 98, 102), (60, 74, 104))
    _slab(canvas, (-0.27, 0.0, 0.27, 0.86), body)
    _slab(canvas, (-0.31, 0.86, 0.31, 0.98), darker(body, 0.65))


def _bench(canvas: Canvas, rng: np.random.Generator) -> None:
    wood = _color(rng, (140, 100, 66), (118, 84, 60), (92, 104, 96))
    for x in (-0.75, 0.75):
        _post(canvas, x, 0.0, 0.85, 0.035, (62, 64, 68))
    for low in (0.42, 0.6, 0.76):
        _slab(canvas, (-0.95, low, 0.95, low + 0.11), wood)


def _sign(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draws an advertising stand, with bars for text."""
    _slab(canvas, (-0.36, 0.0, 0.36, 1.12), darker((92, 70, 54), 0.9))
    _slab(canvas, (-0.3, 0.14, 0.3, 1.06), GARMENTS[int(rng.integers(len(GARMENTS)))])
    for low in (0.78, 0.58, 0.4):
        _slab(canvas, (-0.22, low, float(rng.uniform(0.0, 0.22)), low + 0.08), (228, 224, 214))


def _car(canvas: Canvas, rng: np.random.Generator) -> None:
    """Draws a parked car from the side, with its wheels on the ground."""
    paint = _color(rng, (150, 154, 160), (52, 56, 64), (126, 48, 46), (60, 84, 124), (206, 206, 202))
    mirror = 1.0 if rng.random() < 0.5 else -1.0
    body = np.array([[-2.1, 0.3], [-2.05, 0.8], [-1.3, 0.92], [1.9, 0.95], [2.1, 0.6], [2.08, 0.3]])
    roof = np.array([[-1.3, 0.9], [-0.7, 1.38], [0.9, 1.42], [1.7, 0.93]])
    glass = np.array([[-1.08, 0.93], [-0.62, 1.3], [0.85, 1.34], [1.42, 0.95]])
    pillar = np.array([[0.05, 0.92], [0.05, 1.36], [0.15, 1.36], [0.15, 0.92]])
    sill = np.array([[-2.1, 0.3], [-2.08, 0.46], [2.1, 0.46], [2.08, 0.3]])
    for outline, color in (
        (body, paint),
        (roof, darker(paint, 0.92)),
        (glass, (62, 74, 84)),
        (pillar, darker(paint, 0.9)),
        (sill, darker(paint, 0.7)),
    ):
        canvas.fill(outline * [mirror, 1.0], color)
    for x in (-1.35, 1.3):
        for radius, color in ((0.33, (30, 30, 32)), (0.18, (150, 152, 154))):
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            wheel = np.stack([np.cos(angles), np.sin(angles)], 1) * radius + [mirror * x, 0.33]
            canvas.fill(wheel, color)


def _traffic_post(canvas: Canvas, rng: np.random.Generator) -> None:
    _post(canvas, 0.0, 0.0, 2.3, 0.035, (142, 146, 148))
    shield = _color(rng, (44, 80, 150), (176, 48, 44), (214, 180, 60))
    canvas.limb(np.array([0.0, 2.26]), np.array([0.0, 2.24]), (0.26, 0.26), plain(shield, 2))
    _slab(canvas, (-0.15, 2.2, 0.15, 2.3), (228, 226, 220))


_PAINTERS: dict[str, Callable[[Canvas, np.random.Generator], None]] = {
    "lamp": _lamp,
    "bollard": _bollard,
    "planter": _planter,
    "bin": _bin,
    "bench": _bench,
    "sign": _sign,
    "car": _car,
    "post": _traffic_post,
}
