"""Empty scenes of a camera: ground in perspective, building fronts, sky, and light."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import cv2
import numpy as np

from .camera import Camera
from .looks import Color

_FINE = 2  # oversampling, which smooths joints and edges


def render_background(camera: Camera, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Empty scene, (height, width, 3) float32 RGB, 0..255."""
    image = np.zeros((height * _FINE, width * _FINE, 3), np.float32)
    base = int(_FINE * wall_row(camera))
    painter = _FRONTS[camera.scene]
    if base > 4:
        front = image[:base]
        painter(front, 0.85 * camera.far * _FINE, rng)
        front += 9 * value_noise(rng, front.shape[:2], 24)[..., None]
    ground = image[max(base, 0) :]
    rows = np.arange(max(base, 0), len(image), dtype=np.float32) / _FINE
    ground[:] = _ground(camera, rows, width, rng)
    if base > 4:
        _contact_shadow(image, base)
    return np.clip(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), 0, 255)


def wall_row(camera: Camera) -> float:
    """Row where the ground ends and the fronts begin, a little behind the farthest persons."""
    return camera.row(0.85 * camera.far)


def render_daylight(camera: Camera, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Brightness of the light on the ground, (height, width) float32, 0.55 .. 1.05, with cast shadows."""
    light = np.full((height, width), 1.05, np.float32)
    for _ in range(int(rng.integers(1, 4))):
        top, bottom = camera.row(camera.far * rng.uniform(0.9, 2.5)), height
        left, slope, broad = width * rng.uniform([-0.2, -0.5, 0.12], [0.9, 0.5, 0.4])
        lower = left + slope
        outline = np.array([[left, top], [left + 0.5 * broad, top], [lower + broad, bottom], [lower, bottom]])
        cv2.fillPoly(light, [np.round(outline).astype(np.int32)], float(rng.uniform(0.6, 0.8)))
    return cv2.GaussianBlur(light, (0, 0), 2.0)


def value_noise(rng: np.random.Generator, shape: tuple[int, int], cell: float) -> np.ndarray:
    """Smooth random values, `shape` float32, about -1 .. 1, that vary over `cell` pixels and half as many."""
    total = np.zeros(shape, np.float32)
    for octave in (1.0, 0.5, 0.25):
        grid = (max(2, int(shape[0] / (cell * octave)) + 1), max(2, int(shape[1] / (cell * octave)) + 1))
        coarse = rng.uniform(-1, 1, grid).astype(np.float32)
        total += octave * cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return total


def _contact_shadow(image: np.ndarray, base: int) -> None:
    reach = min(6 * _FINE, len(image) - base)
    image[base : base + reach] *= np.linspace(0.6, 1, reach, dtype=np.float32)[:, None, None]


def _ground(camera: Camera, rows: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """Ground at image rows `rows` (pixels), (n, width * _FINE, 3) float32."""
    scale = np.maximum((rows - camera.horizon) / camera.height, 1e-3)[:, None]
    columns = (np.arange(width * _FINE, dtype=np.float32) / _FINE - width / 2)[None, :]
    aside, ahead = columns / scale, np.broadcast_to(0.9 * width / scale, (len(rows), columns.shape[1]))
    color, detail = _GROUNDS[camera.scene](aside, ahead)
    # Fine detail fades with the distance.
    fade = np.clip(scale / (0.5 * camera.near), 0.25, 1)
    speckle = rng.standard_normal(aside.shape, dtype=np.float32) * 5
    brightness = 1 + 0.07 * value_noise(rng, aside.shape, 60 * _FINE)
    return (color + (fade * (detail + speckle))[..., None]) * brightness[..., None]


def _tiles(aside: np.ndarray, ahead: np.ndarray, size: float, joint: float) -> np.ndarray:
    """Mask of the joints of square tiles of `size` metres."""
    return ((aside / size) % 1 < joint) | ((ahead / size) % 1 < joint)


def _paving(aside: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    checker = (np.floor(aside / 0.8) + np.floor(ahead / 0.8)) % 2
    return np.array([168, 160, 150], np.float32), np.where(_tiles(aside, ahead, 0.8, 0.05), -42.0, 9 * checker)


def _road(aside: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    color = np.full((*aside.shape, 3), (96, 97, 102), np.float32)
    color[(np.abs(aside + 2.4) < 1.6) & ((ahead / 0.9) % 1 < 0.5)] = (196, 196, 192)  # zebra crossing
    far_edge = float(ahead.max())
    color[ahead > far_edge - 0.35 * (far_edge - float(ahead.min()))] = (142, 138, 132)  # pavement before the fronts
    return color, np.zeros_like(aside)


def _lawn(aside: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    color = np.full((*aside.shape, 3), (98, 124, 70), np.float32)
    path = np.abs(aside - 0.9 * np.sin(ahead / 4)) < 1.7 + 0.05 * ahead
    color[path] = (186, 168, 138)
    mown = 7 * np.sign(np.sin(aside * 2.2 + ahead * 0.6))  # the mower's stripes
    return color, np.where(path, 0.0, mown)


def _slabs(aside: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    shade = ((np.floor(aside / 1.6) * 7 + np.floor(ahead / 1.2) * 13) % 5) * 5.0
    joints = ((aside / 1.6) % 1 < 0.02) | ((ahead / 1.2) % 1 < 0.03)
    return np.array([138, 142, 146], np.float32), np.where(joints, -50.0, shade)


def _platform(aside: np.ndarray, ahead: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    color = np.full((*aside.shape, 3), (146, 136, 128), np.float32)
    middle = float(np.median(ahead))
    color[np.abs(ahead - middle) < 0.12 * middle] = (206, 188, 96)  # tactile strip
    return color, np.where(_tiles(aside, ahead, 0.5, 0.06), -30.0, 0.0)


_GROUNDS: dict[str, Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]] = {
    "shops": _paving,
    "park": _lawn,
    "brick": _road,
    "offices": _slabs,
    "station": _platform,
}


def _box(image: np.ndarray, corner: tuple[float, float], size: tuple[float, float], color: Sequence[float]) -> None:
    """Draws a rectangle from its upper left corner, in pixels of `image`."""
    (x, y), (w, h) = corner, size
    cv2.rectangle(image, (round(x), round(y)), (round(x + w), round(y + h)), color, -1)


def _shops(image: np.ndarray, metre: float, rng: np.random.Generator) -> None:
    """Draws shop windows with awnings, posters and doors; `metre` is the number of pixels per metre at the wall."""
    height, width = image.shape[:2]
    image[:] = (176, 150, 122)
    awnings: tuple[Color, ...] = ((150, 52, 48), (58, 104, 84), (62, 82, 130), (190, 150, 70))
    x = -rng.uniform(0, 2) * metre
    while x < width:
        broad = rng.uniform(3, 5) * metre
        _box(image, (x, height - 2.9 * metre), (0.94 * broad, 2.5 * metre), (72, 84, 92))
        for _ in range(3):  # goods behind the glass
            place = (x + rng.uniform(0.05, 0.75) * broad, height - rng.uniform(1.2, 2.4) * metre)
            _box(image, place, (rng.uniform(0.3, 0.9) * metre, 0.8 * metre), tuple(map(int, rng.integers(60, 210, 3))))
        _box(image, (x + 0.7 * broad, height - 2.3 * metre), (0.9 * metre, 2.3 * metre), (92, 64, 46))
        color = awnings[int(rng.integers(len(awnings)))]
        for k in range(8):
            shade = color if k % 2 else (222, 214, 200)
            _box(image, (x + k * 0.94 * broad / 8, height - 3.3 * metre), (0.94 * broad / 8, 0.55 * metre), shade)
        x += broad


def _park(image: np.ndarray, metre: float, rng: np.random.Generator) -> None:
    """Draws sky, trees and a hedge."""
    height, width = image.shape[:2]
    rows = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    image[:] = (1 - rows) * np.array([150, 182, 214], np.float32) + rows * np.array([214, 222, 224], np.float32)
    for _ in range(int(width / (1.6 * metre)) + 2):
        x, crown = rng.uniform(0, width), rng.uniform(0.9, 1.8) * metre
        top = height - rng.uniform(2.2, 3.8) * metre
        _box(image, (x - 0.12 * metre, top), (0.24 * metre, height - top), (86, 66, 48))
        for _ in range(7):
            place = (int(x + rng.normal(0, 0.6) * crown), int(top + rng.normal(0, 0.4) * crown))
            green = rng.uniform(0.75, 1.15)
            cv2.circle(image, place, int(0.6 * crown), (70 * green, 104 * green, 58 * green), -1)
    _box(image, (0, height - 1.0 * metre), (width, metre), (58, 88, 52))


def _brick(image: np.ndarray, metre: float, rng: np.random.Generator) -> None:
    """Draws a brick wall with windows."""
    height, width = image.shape[:2]
    image[:] = (142, 84, 68)
    course = max(2.0, 0.24 * metre)
    for k in range(int(height / course) + 1):
        y = height - k * course
        cv2.line(image, (0, round(y)), (width, round(y)), (166, 128, 110), 1)
        for x in np.arange((k % 2) * course, width, 2 * course):
            cv2.line(image, (round(x), round(y)), (round(x), round(y - course)), (160, 118, 102), 1)
    x = rng.uniform(0, 2) * metre
    while x < width:
        glass = tuple(int(v) for v in np.array([110, 128, 142]) * rng.uniform(0.5, 1.1))
        for floor in (2.5, 5.6):
            _box(image, (x, height - floor * metre), (1.4 * metre, 1.6 * metre), (216, 210, 200))
            _box(image, (x + 0.12 * metre, height - (floor - 0.12) * metre), (1.16 * metre, 1.36 * metre), glass)
        x += rng.uniform(2.2, 3.6) * metre


def _offices(image: np.ndarray, metre: float, rng: np.random.Generator) -> None:
    """Draws a curtain wall of glass."""
    height, width = image.shape[:2]
    image[:] = (86, 96, 104)
    for y in np.arange(height, -2 * metre, -1.7 * metre):
        for x in np.arange(-0.5 * metre, width, 1.3 * metre):
            tone = rng.uniform(0.7, 1.25)
            _box(image, (x, y - 1.6 * metre), (1.18 * metre, 1.5 * metre), (104 * tone, 134 * tone, 152 * tone))


def _station(image: np.ndarray, metre: float, rng: np.random.Generator) -> None:
    """Draws a tiled wall with advertising posters and columns."""
    height, width = image.shape[:2]
    image[:] = (198, 200, 190)
    for y in np.arange(height, 0, -0.5 * metre):
        cv2.line(image, (0, round(y)), (width, round(y)), (172, 174, 166), 1)
    x = rng.uniform(0, 1) * metre
    while x < width:
        colors = [tuple(int(v) for v in c) for c in rng.integers(50, 220, (3, 3))]
        _box(image, (x, height - 2.6 * metre), (1.7 * metre, 2.1 * metre), colors[0])
        _box(image, (x + 0.2 * metre, height - 2.3 * metre), (1.3 * metre, 0.6 * metre), colors[1])
        cv2.circle(image, (round(x + 0.85 * metre), round(height - 1.1 * metre)), round(0.4 * metre), colors[2], -1)
        _box(image, (x + 2.2 * metre, 0), (0.5 * metre, height), (120, 126, 130))
        x += rng.uniform(3.2, 4.6) * metre


_FRONTS: dict[str, Callable[[np.ndarray, float, np.random.Generator], None]] = {
    "shops": _shops,
    "park": _park,
    "brick": _brick,
    "offices": _offices,
    "station": _station,
}
