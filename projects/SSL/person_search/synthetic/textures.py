"""Unrolled surfaces of a person: trunk, head and limbs as pictures around the body, from a look."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

from .canvas import plain, shading
from .looks import Color, Look

# A surface has 192 columns for 360 degrees: column 96 is the front, 96 + 48 the body's left side, 0 the back.
TURN = 192
FRONT = TURN // 2
TRUNK_ROWS, HEAD_ROWS, LIMB_ROWS = 96, 64, 24


def darker(color: Color, factor: float) -> Color:
    """The color times a factor, rounded down."""
    red, green, blue = (int(min(255, c * factor)) for c in color)
    return red, green, blue


def visible_half(texture: np.ndarray, yaw: float, light: float, columns: int = 72) -> np.ndarray:
    """The half of an unrolled surface (h, TURN, 3) that faces the camera, (h, columns, 3) uint8, shaded as a cylinder.

    `yaw` and `light` are those of `Pose.yaw` and `Canvas.light`.
    """
    # At yaw 0 the body's left side is on the right of the image, so columns run the same way; turning the body by
    # yaw brings the columns of angle -yaw to the middle.
    angles = np.arcsin(np.linspace(-0.99, 0.99, columns)) - yaw
    index = np.floor(FRONT + angles * TURN / (2 * np.pi)).astype(int) % TURN
    return np.clip(texture[:, index] * shading(columns, light)[None, :, None], 0, 255).astype(np.uint8)


@lru_cache(maxsize=1024)
def trunk(look: Look) -> np.ndarray:
    """(TRUNK_ROWS, TURN, 3) uint8: shirt from the shoulders to its hem, with the straps of a bag."""
    texture = np.full((TRUNK_ROWS, TURN, 3), look.top_color, np.uint8)
    if look.pattern != "plain":
        _PAINTERS[look.pattern](texture, look)
    # Neckline, and the hem that sets shirt and trousers of like colors apart.
    cv2.ellipse(texture, (FRONT, 0), (15, 10), 0, 0, 360, look.skin, -1)
    texture[-3:] = (texture[-3:] * 0.75).astype(np.uint8)
    _straps(texture, look)
    return texture


def _stripes(texture: np.ndarray, look: Look) -> None:
    rows = np.arange(TRUNK_ROWS) % 16 < 8
    texture[rows] = look.accent


def _pinstripes(texture: np.ndarray, look: Look) -> None:
    texture[:, np.arange(TURN) % 12 < 4] = look.accent


def _checks(texture: np.ndarray, look: Look) -> None:
    rows = (np.arange(TRUNK_ROWS) // 12 % 2).astype(bool)[:, None]
    columns = (np.arange(TURN) // 12 % 2).astype(bool)[None, :]
    half = tuple((np.array(look.accent) + look.top_color) // 2)
    texture[rows ^ columns] = half
    texture[rows & columns] = look.accent


def _dots(texture: np.ndarray, look: Look) -> None:
    for row, y in enumerate(range(14, TRUNK_ROWS, 14)):
        for x in range(8 * (row % 2), TURN, 16):
            cv2.circle(texture, (x, y), 4, look.accent, -1)


def _two_tone(texture: np.ndarray, look: Look) -> None:
    texture[TRUNK_ROWS // 2 :] = look.accent


def _chest_band(texture: np.ndarray, look: Look) -> None:
    texture[26:48] = look.accent


def _sash(texture: np.ndarray, look: Look) -> None:
    # Down across the chest, and up again across the back, which the texture cuts in two.
    cv2.line(texture, (FRONT - 44, 0), (FRONT + 44, TRUNK_ROWS), look.accent, 17)
    for back in (0, TURN):
        cv2.line(texture, (back - 44, TRUNK_ROWS), (back + 44, 0), look.accent, 17)


def _logo(texture: np.ndarray, look: Look) -> None:
    cv2.circle(texture, (FRONT, 38), 19, look.accent, -1)
    cv2.circle(texture, (FRONT, 38), 9, look.top_color, -1)


def _back_print(texture: np.ndarray, look: Look) -> None:
    for centre in (0, TURN):
        cv2.rectangle(texture, (centre - 24, 20), (centre + 24, 62), look.accent, -1)
        cv2.rectangle(texture, (centre - 14, 32), (centre + 14, 44), look.top_color, -1)
    cv2.rectangle(texture, (FRONT + 10, 24), (FRONT + 24, 36), look.accent, -1)


def _open_jacket(texture: np.ndarray, look: Look) -> None:
    texture[:, FRONT - 15 : FRONT + 15] = look.accent
    for column in (FRONT - 16, FRONT + 14):
        texture[:, column : column + 3] = darker(look.top_color, 0.6)


_PAINTERS: dict[str, Callable[[np.ndarray, Look], None]] = {
    "stripes": _stripes,
    "pinstripes": _pinstripes,
    "checks": _checks,
    "dots": _dots,
    "two_tone": _two_tone,
    "chest_band": _chest_band,
    "sash": _sash,
    "logo": _logo,
    "back_print": _back_print,
    "open_jacket": _open_jacket,
}


def _straps(texture: np.ndarray, look: Look) -> None:
    if look.bag == "backpack":
        for column in (FRONT - 32, FRONT + 24):
            texture[:58, column : column + 8] = look.bag_color
    elif look.bag == "shoulder":
        # From the right shoulder over chest and back to the left hip.
        cv2.line(texture, (FRONT - 40, 0), (FRONT + 46, TRUNK_ROWS), look.bag_color, 6)
        cv2.line(texture, (TURN, 24), (FRONT + 50, TRUNK_ROWS), look.bag_color, 6)
        cv2.line(texture, (0, 24), (FRONT - 62, 0), look.bag_color, 6)


@lru_cache(maxsize=1024)
def head(look: Look) -> np.ndarray:
    """(HEAD_ROWS, TURN, 3) uint8: face, hair and headwear."""
    texture = np.full((HEAD_ROWS, TURN, 3), look.skin, np.uint8)
    _face(texture, look)
    if look.hair_style == "bald":
        return texture
    angle = np.abs(np.arange(TURN) - FRONT) * 360.0 / TURN
    # The hairline: high over the face, down beside the ears and to the nape behind.
    ends = np.interp(angle, [0, 42, 58, 85, 110, 180], [18, 20, 34, 38, 52, 56])
    if look.hair_style == "long":
        ends = np.interp(angle, [0, 35, 55, 180], [17, 20, 60, HEAD_ROWS])
    hair = np.arange(HEAD_ROWS)[:, None] < ends[None, :]
    texture[hair] = look.hair_color
    # Strands, so that hair is not one flat color.
    strands = hair & (np.arange(TURN) % 9 < 3)[None, :]
    texture[strands] = darker(look.hair_color, 0.8)
    if look.hair_style in ("cap", "beanie"):
        rows = 24 if look.hair_style == "cap" else 29
        texture[:rows] = look.headwear
        texture[rows - 6 : rows] = darker(look.headwear, 0.75)
    return texture


def _face(texture: np.ndarray, look: Look) -> None:
    dark, lips = darker(look.skin, 0.35), darker(look.skin, 0.72)
    for side in (-1, 1):
        cv2.ellipse(texture, (FRONT + side * 14, 31), (5, 2), 0, 0, 360, dark, -1)
        cv2.line(texture, (FRONT + side * 8, 26), (FRONT + side * 20, 26), darker(look.hair_color, 0.9), 2)
        cv2.ellipse(texture, (FRONT + side * 48, 34), (4, 6), 0, 0, 360, lips, -1)
    cv2.line(texture, (FRONT, 33), (FRONT, 41), darker(look.skin, 0.85), 4)
    cv2.line(texture, (FRONT - 9, 49), (FRONT + 9, 49), (min(255, lips[0] + 20), lips[1] - 10, lips[2] - 10), 3)


def sleeves(look: Look) -> tuple[np.ndarray, np.ndarray]:
    """(LIMB_ROWS, 3) float32 colors along the upper arm and along the forearm."""
    upper = plain(look.top_color, LIMB_ROWS)
    if look.pattern == "stripes":
        upper[np.arange(LIMB_ROWS) % 8 < 4] = look.accent
    lower = upper.copy()
    if not look.long_sleeves:
        upper[int(0.62 * LIMB_ROWS) :] = look.skin
        lower[:] = look.skin
    return upper, lower


def legs(look: Look) -> tuple[np.ndarray, np.ndarray]:
    """(LIMB_ROWS, 3) float32 colors along the thigh and along the shin."""
    thigh = plain(look.bottom_color, LIMB_ROWS)
    shin = thigh.copy()
    if look.bottom == "shorts":
        thigh[int(0.8 * LIMB_ROWS) :] = look.skin
        shin[:] = look.skin
        shin[int(0.85 * LIMB_ROWS) :] = 225.0  # socks
    elif look.bottom == "skirt":
        thigh[:] = look.skin
        shin[:] = look.skin
    return thigh, shin
