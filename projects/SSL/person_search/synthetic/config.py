"""Settings of synthetic datasets: sizes, difficulty and seed, and the random streams derived from them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType

import numpy as np

from ..errors import ConfigError

# Part of every folder's name: increased whenever the drawing changes, so that old folders are not taken for new ones.
GENERATOR_VERSION = 1
SPLITS = ("train", "test")
IMAGE_FORMATS = ("png", "jpg")
# Stature in metres that the heights in a config refer to; others scale with their own.
MEAN_STATURE = 1.7
PALETTE_SIZE = 10

# Numbers of the random streams. They are independent, so for example more training frames change neither looks nor
# cameras nor test frames.
STREAM_LOOKS, STREAM_FAMILIES, STREAM_CAMERA, STREAM_PLAN, STREAM_FRAME, STREAM_QUERIES = range(6)


@dataclass(frozen=True)
class SyntheticConfig:
    """All settings that determine the content of a synthetic dataset.

    Attributes:
        name: short name, part of the folder's name; letters, digits, "_" and ".".
        seed: >= 0; equal settings give equal bytes.
        image_height, image_width: size of a frame in pixels.
        image_format: "png", or "jpg" (quality 95).
        cameras: number of cameras, each with its own position, perspective, light and sensor; numbered from 1.
        train_frames, test_frames: frames of each split, spread evenly over the cameras.
        train_identities, test_identities: labelled identities; training has 0..T-1, test the following numbers.
        min_persons, max_persons: persons per frame, labelled or not.
        min_person_height, max_person_height: height in pixels of a person of 1.7 m, feet to crown, at the far and at
            the near end of the ground.
        unlabelled_fraction: fraction of passers-by without identity (person_id -1).
        crowding: fraction of the persons placed beside or behind another person or an object.
        min_visible: minimum visible fraction of a person's pixels, for all persons in a frame.
        queries_per_identity: test queries per identity, from different cameras as far as possible.
        colors: number of garment colors, 2..10; fewer make identities more similar.
        family_size: number of identities that share the colors of shirt and trousers, and differ in details.
        camera_shift: strength of the cameras' color casts and exposures, 0 (none) to 2.
        noise: standard deviation of the sensor noise in grey levels.

    Raises:
        ConfigError: a field has an invalid value; the message names it.
    """

    name: str = "custom"
    seed: int = 0
    image_height: int = 288
    image_width: int = 512
    image_format: str = "png"
    cameras: int = 3
    train_frames: int = 160
    test_frames: int = 80
    train_identities: int = 30
    test_identities: int = 20
    min_persons: int = 3
    max_persons: int = 5
    min_person_height: float = 39.0
    max_person_height: float = 244.0
    unlabelled_fraction: float = 0.15
    crowding: float = 0.15
    min_visible: float = 0.5
    queries_per_identity: int = 3
    colors: int = 8
    family_size: int = 3
    camera_shift: float = 1.0
    noise: float = 4.0

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_type(field.name, type(field.default))
        for name, holds, expected in _rules(self):
            if not holds:
                raise ConfigError(f"SyntheticConfig.{name} = {getattr(self, name)!r}: expected {expected}")

    def _check_type(self, field: str, kind: type) -> None:
        value = getattr(self, field)
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            # 34 and 34.0 are equal settings and must have the same digest.
            object.__setattr__(self, field, float(value))
        elif not isinstance(value, kind) or isinstance(value, bool):
            raise ConfigError(f"SyntheticConfig.{field} = {value!r}: expected a value of type {kind.__name__}")

    @property
    def digest(self) -> str:
        """Digest of all fields and the generator's version, eight hexadecimal digits."""
        text = json.dumps([GENERATOR_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def folder_name(self) -> str:
        """Name of the dataset's folder, for example "synthetic-demo-1f2e3d4c"."""
        return f"synthetic-{self.name}-{self.digest}"

    def frames(self, split: str) -> int:
        """Number of frames of "train" or "test"."""
        return {"train": self.train_frames, "test": self.test_frames}[split]

    def identities(self, split: str) -> range:
        """Identities of "train" or "test"."""
        if split == "train":
            return range(self.train_identities)
        return range(self.train_identities, self.train_identities + self.test_identities)


def _rules(c: SyntheticConfig) -> Sequence[tuple[str, bool, str]]:
    """(field, whether its value is valid, expectation) of every rule."""
    rules = [
        ("name", bool(c.name) and all(s.isalnum() or s in "_." for s in c.name), 'letters, digits, "_" and "."'),
        ("seed", c.seed >= 0, "an integer >= 0"),
        ("image_height", c.image_height >= 64, "at least 64 pixels"),
        ("image_width", c.image_width >= 64, "at least 64 pixels"),
        ("image_format", c.image_format in IMAGE_FORMATS, f"one of {IMAGE_FORMATS}"),
        ("cameras", 1 <= c.cameras <= 99, "1 to 99"),
        ("min_persons", c.min_persons >= 1, "at least 1"),
        ("max_persons", c.max_persons >= c.min_persons, f"at least min_persons ({c.min_persons})"),
        ("min_person_height", c.min_person_height >= 16, "at least 16 pixels"),
        (
            "max_person_height",
            c.min_person_height < c.max_person_height <= 0.85 * c.image_height,
            f"more than min_person_height ({c.min_person_height}) and at most 0.85 image_height",
        ),
        ("unlabelled_fraction", 0 <= c.unlabelled_fraction <= 0.9, "0 to 0.9"),
        ("crowding", 0 <= c.crowding <= 1, "0 to 1"),
        ("min_visible", 0.1 <= c.min_visible <= 1, "0.1 to 1"),
        ("queries_per_identity", c.queries_per_identity >= 1, "at least 1"),
        ("colors", 2 <= c.colors <= PALETTE_SIZE, f"2 to {PALETTE_SIZE}"),
        ("family_size", c.family_size >= 1, "at least 1"),
        ("camera_shift", 0 <= c.camera_shift <= 2, "0 to 2"),
        ("noise", 0 <= c.noise <= 40, "0 to 40 grey levels"),
    ]
    for split in SPLITS:
        frames, identities = f"{split}_frames", f"{split}_identities"
        rules.append((frames, getattr(c, frames) >= 2, "at least 2: every identity is seen in two frames or more"))
        known = getattr(c, identities)
        rules.append((identities, known >= c.max_persons, "at least max_persons (all differ in a frame)"))
        slots = int(getattr(c, frames) * c.min_persons * (1 - c.unlabelled_fraction))
        expected = f"at most half of the about {slots} labelled persons of {frames}, so that each is seen twice"
        rules.append((identities, 2 * known <= slots, expected))
    return rules


def random_stream(config: SyntheticConfig, stream: int, *numbers: int) -> np.random.Generator:
    """Random generator that depends on seed, stream and numbers (for example split and frame) only."""
    return np.random.default_rng([config.seed, stream, *numbers])


PRESETS = MappingProxyType(
    {
        # Learnable in minutes by a pretrained network, but not by colors alone: each camera has its own light, so
        # clothes change their colors between cameras. Persons are large enough for a stride of 16, with heights over a
        # factor of 2.5.
        "demo": SyntheticConfig(
            name="demo",
            train_frames=100,
            test_frames=50,
            train_identities=12,
            test_identities=12,
            min_person_height=90.0,
            max_person_height=230.0,
            crowding=0.0,
            min_visible=0.8,
            colors=10,
            family_size=1,
            camera_shift=1.2,
            noise=2.0,
        ),
        "tiny": SyntheticConfig(
            name="tiny",
            image_height=144,
            image_width=256,
            cameras=2,
            train_frames=16,
            test_frames=12,
            train_identities=8,
            test_identities=6,
            min_persons=2,
            max_persons=4,
            min_person_height=17.0,
            max_person_height=110.0,
            queries_per_identity=2,
        ),
        # Harder and larger than the demo, with frames of the same size, for trainings with several seeds on two CPU
        # cores.
        "town": SyntheticConfig(
            name="town",
            cameras=4,
            train_frames=240,
            test_frames=120,
            train_identities=48,
            test_identities=36,
            min_persons=3,
            max_persons=6,
            unlabelled_fraction=0.2,
            crowding=0.3,
            min_visible=0.4,
            colors=9,
            family_size=2,
            camera_shift=0.8,
        ),
        "hard": SyntheticConfig(
            name="hard",
            image_height=384,
            image_width=640,
            image_format="jpg",
            cameras=5,
            train_frames=1000,
            test_frames=500,
            train_identities=100,
            test_identities=100,
            min_persons=4,
            max_persons=8,
            min_person_height=34.0,
            max_person_height=290.0,
            unlabelled_fraction=0.25,
            crowding=0.5,
            min_visible=0.3,
            colors=6,
            family_size=5,
            camera_shift=1.3,
            noise=6.0,
        ),
    }
)
