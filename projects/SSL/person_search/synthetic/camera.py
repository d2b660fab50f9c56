"""Cameras: position, light, and response of the sensor."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from .config import MEAN_STATURE, STREAM_CAMERA, SyntheticConfig, random_stream

SCENES = ("shops", "park", "brick", "offices", "station")


@dataclass(frozen=True)
class Camera:
    """Pinhole camera with a level optical axis above flat ground.

    Attributes:
        camera_id: number, from 1.
        scene: kind of background, one of `SCENES`.
        height: height of the lens above the ground in metres.
        horizon: row of the horizon in pixels; may lie above the image.
        near, far: pixels per metre at the near and the far end of the ground that persons walk on.
        light: direction of the light, -1 (left) .. 1 (right).
        mix: (3, 3) color matrix of the sensor, row by row.
        gamma: exponent of the sensor's response.
        blur: standard deviation of the lens blur in pixels, 0 for none.
        noise: standard deviation of the sensor noise in grey levels.
    """

    camera_id: int
    scene: str
    height: float
    horizon: float
    near: float
    far: float
    light: float
    mix: tuple[tuple[float, float, float], ...]
    gamma: float
    blur: float
    noise: float

    def scale(self, row: float) -> float:
        """Pixels per metre of objects that stand on the ground at an image row."""
        return (row - self.horizon) / self.height

    def row(self, scale: float) -> float:
        """Image row of the ground where objects have `scale` pixels per metre."""
        return self.horizon + scale * self.height

    def scale_at(self, nearness: float) -> float:
        """Pixels per metre at a position between the far (0) and the near (1) end of the ground.

        Mostly logarithmic, so that all sizes occur, but with less of the far end, where persons are mere specks.
        """
        return self.far * (self.near / self.far) ** (nearness**0.7)

    def develop(self, rgb: np.ndarray, exposure: float, rng: np.random.Generator) -> np.ndarray:
        """Image of a scene after the sensor.

        Args:
            rgb: (h, w, 3) float32 scene, 0..255; overwritten.
            exposure: factor of the brightness.
            rng: random stream of the noise.

        Returns:
            (h, w, 3) uint8 RGB.
        """
        if self.blur > 0:
            rgb = cv2.GaussianBlur(rgb, (0, 0), self.blur)
        rgb = cv2.transform(rgb, np.asarray(self.mix, np.float32) * exposure)
        levels = np.clip(np.rint(rgb), 0, 255).astype(np.uint8)
        curve = 255 * (np.arange(256) / 255) ** self.gamma
        levels = np.asarray(cv2.LUT(levels, np.rint(curve).astype(np.uint8)), np.uint8)
        if self.noise == 0:
            return levels
        noise = rng.standard_normal(levels.shape, dtype=np.float32) * np.asarray(self.noise, np.float32)
        return np.clip(np.rint(noise) + levels, 0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def camera(config: SyntheticConfig, camera_id: int) -> Camera:
    """Camera of a number in 1 .. `config.cameras`; depends on seed and number, not on the number of cameras."""
    rng = random_stream(config, STREAM_CAMERA, camera_id)
    near = config.max_person_height / MEAN_STATURE
    far = config.min_person_height / MEAN_STATURE
    # Between eye level and a low surveillance camera, so that the head of the nearest tall person stays in the image.
    ground = 0.975 * config.image_height
    highest = min(2.3, 0.97 * ground / near)
    height = float(rng.uniform(0.72, 1.0)) * highest
    shift = config.camera_shift
    gains = np.exp(shift * rng.uniform(-0.14, 0.14, 3)) * np.exp(shift * rng.uniform(-0.2, 0.12))
    leak = 0.06 * shift * rng.random((3, 3))
    mix = np.diag(gains) @ (np.eye(3) * (1 - leak.sum(1)) + leak)
    return Camera(
        camera_id=camera_id,
        scene=SCENES[(config.seed + camera_id - 1) % len(SCENES)],
        height=height,
        horizon=ground - near * height,
        near=near,
        far=far,
        light=float(rng.uniform(-1, 1)),
        mix=tuple((float(red), float(green), float(blue)) for red, green, blue in mix),
        gamma=float(np.exp(shift * rng.uniform(-0.22, 0.22))),
        blur=float(rng.choice([0.0, 0.4, 0.6])),
        noise=config.noise * float(rng.uniform(0.6, 1.3)),
    )
