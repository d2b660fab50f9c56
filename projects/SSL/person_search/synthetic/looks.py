"""Looks of persons: stature, skin, hair, clothes, patterns and bag, with traits shared between identities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .config import STREAM_FAMILIES, STREAM_LOOKS, SyntheticConfig, random_stream

Color = tuple[int, int, int]  # RGB, 0..255

# Garment colors, most distinct first: a config uses the first `colors` of them.
GARMENTS: tuple[Color, ...] = (
    (38, 40, 48),  # black
    (214, 212, 204),  # white
    (176, 44, 44),  # red
    (44, 70, 138),  # blue
    (132, 134, 138),  # grey
    (62, 116, 68),  # green
    (206, 166, 58),  # mustard
    (120, 168, 204),  # light blue
    (124, 84, 56),  # brown
    (128, 70, 132),  # purple
)
SKINS: tuple[Color, ...] = ((238, 200, 172), (222, 176, 140), (190, 138, 102), (138, 92, 64), (88, 58, 44))
HAIRS: tuple[Color, ...] = ((30, 26, 24), (74, 48, 32), (146, 98, 52), (206, 170, 104), (150, 146, 142))
PATTERNS = (
    "plain",
    "stripes",
    "logo",
    "checks",
    "two_tone",
    "pinstripes",
    "chest_band",
    "dots",
    "sash",
    "back_print",
    "open_jacket",
)
HAIR_STYLES = ("short", "long", "bald", "ponytail", "cap", "bun", "beanie")
BAGS = ("none", "backpack", "shoulder", "hand")
BOTTOMS = ("trousers", "trousers", "shorts", "skirt", "trousers", "coat")
_DETAILS = (PATTERNS, HAIR_STYLES, BAGS, BOTTOMS)


@dataclass(frozen=True)
class Look:
    """Appearance of a person; stature in metres, `build` a factor of widths, colors RGB."""

    stature: float
    build: float
    skin: Color
    hair_color: Color
    hair_style: str
    top_color: Color
    accent: Color
    pattern: str
    long_sleeves: bool
    bottom: str
    bottom_color: Color
    shoes: Color
    bag: str
    bag_color: Color
    headwear: Color


@lru_cache(maxsize=4096)
def identity_look(config: SyntheticConfig, person_id: int) -> Look:
    """Look of an identity.

    Identities `family_size * f` .. `family_size * (f + 1) - 1` share the colors of shirt and trousers; pattern, hair,
    bag and kind of bottom are permuted within the family, so its members differ in several details at once, most of
    which are only visible at close range.
    """
    family, member = divmod(person_id, config.family_size)
    shared = random_stream(config, STREAM_FAMILIES, family)
    own = random_stream(config, STREAM_LOOKS, person_id)
    palette = GARMENTS[: config.colors]
    top, bottom = (palette[i] for i in shared.choice(len(palette), size=2, replace=False))
    details = tuple(str(shared.permutation(names)[member % len(names)]) for names in _DETAILS)
    return _look(own, palette, top, bottom, details)


def passer_by_look(config: SyntheticConfig, rng: np.random.Generator) -> Look:
    """Look of an unlabelled person, from the same palette and details as those of identities."""
    palette = GARMENTS[: config.colors]
    top, bottom = (palette[i] for i in rng.choice(len(palette), size=2, replace=False))
    details = tuple(str(rng.choice(names)) for names in _DETAILS)
    return _look(rng, palette, top, bottom, details)


def _look(
    rng: np.random.Generator, palette: tuple[Color, ...], top: Color, bottom: Color, details: tuple[str, ...]
) -> Look:
    pattern, hair_style, bag, bottom_kind = details
    others = [color for color in GARMENTS if color != top]

    def pick(colors: tuple[Color, ...] | list[Color]) -> Color:
        return colors[int(rng.integers(len(colors)))]

    return Look(
        stature=float(np.clip(rng.normal(1.70, 0.085), 1.53, 1.9)),
        build=float(rng.uniform(0.88, 1.2)),
        skin=pick(SKINS),
        hair_color=pick(HAIRS),
        hair_style=hair_style,
        top_color=top,
        accent=pick(others),
        pattern=pattern,
        long_sleeves=bool(rng.random() < 0.5) or bottom_kind == "coat",
        bottom=bottom_kind,
        bottom_color=bottom,
        shoes=pick([(28, 28, 30), (226, 224, 220), (110, 70, 44), pick(palette)]),
        bag=bag,
        bag_color=pick(GARMENTS),
        headwear=pick(GARMENTS),
    )
