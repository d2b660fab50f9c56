"""Configurations of synthetic datasets: checked when made, and told apart by their digests."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace

import pytest
from person_search.errors import ConfigError
from person_search.synthetic import PRESETS, SyntheticConfig
from person_search.synthetic.config import random_stream

# For every field a value that works and differs from the default, so that no field is forgotten by the digest.
OTHER = {
    "name": "mine",
    "seed": 1,
    "image_height": 300,
    "image_width": 480,
    "image_format": "jpg",
    "cameras": 2,
    "train_frames": 161,
    "test_frames": 81,
    "train_identities": 31,
    "test_identities": 21,
    "min_persons": 2,
    "max_persons": 6,
    "min_person_height": 33.5,
    "max_person_height": 200.0,
    "unlabelled_fraction": 0.1,
    "crowding": 0.2,
    "min_visible": 0.4,
    "queries_per_identity": 2,
    "colors": 5,
    "family_size": 4,
    "camera_shift": 0.5,
    "noise": 2.0,
}
BAD = [
    ("name", "a/b"),
    ("name", ""),
    ("seed", -1),
    ("seed", 1.5),
    ("seed", True),
    ("image_height", 20),
    ("image_width", "512"),
    ("image_format", "bmp"),
    ("cameras", 0),
    ("train_frames", 1),
    ("train_identities", 4),
    ("test_identities", 103),
    ("min_persons", 0),
    ("max_persons", 2),
    ("min_person_height", 3.0),
    ("max_person_height", 287.0),
    ("max_person_height", 30.0),
    ("unlabelled_fraction", 1.0),
    ("crowding", -0.1),
    ("min_visible", 0.0),
    ("queries_per_identity", 0),
    ("colors", 11),
    ("family_size", 0),
    ("camera_shift", 3.0),
    ("noise", float("nan")),
]


@pytest.mark.parametrize(("field", "value"), BAD)
def test_a_bad_value_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"SyntheticConfig\.{field} = .*expected"):
        SyntheticConfig(**{field: value})


@pytest.mark.parametrize("field", [field.name for field in fields(SyntheticConfig)])
def test_every_field_changes_the_digest(field: str) -> None:
    assert replace(SyntheticConfig(), **{field: OTHER[field]}).digest != SyntheticConfig().digest


def test_whole_numbers_stand_for_floats() -> None:
    config = SyntheticConfig(noise=3)
    assert config == SyntheticConfig(noise=3.0)
    assert config.digest == SyntheticConfig(noise=3.0).digest


def test_the_generators_version_is_part_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    before = SyntheticConfig().folder_name
    monkeypatch.setattr("person_search.synthetic.config.GENERATOR_VERSION", 1000)
    assert SyntheticConfig().folder_name != before


def test_presets_are_named_after_themselves_and_cannot_change() -> None:
    assert set(PRESETS) == {"demo", "tiny", "town", "hard"}
    assert all(config.name == name for name, config in PRESETS.items())
    with pytest.raises(TypeError):
        PRESETS["demo"] = SyntheticConfig()  # type: ignore[index]
    with pytest.raises(FrozenInstanceError):
        PRESETS["demo"].seed = 3  # type: ignore[misc]


def test_presets_span_a_range_of_sizes_and_share_no_identity() -> None:
    for name, config in PRESETS.items():
        # The demo's persons suit a stride of 16; the others' are meant to be hard.
        assert config.max_person_height >= (2.5 if name == "demo" else 6) * config.min_person_height
        assert not set(config.identities("train")) & set(config.identities("test"))
        assert len(config.identities("test")) == config.test_identities


def test_random_streams_depend_on_seed_stream_and_numbers_only() -> None:
    config = PRESETS["tiny"]
    first = random_stream(config, 1, 2, 3).random(4)
    assert (first == random_stream(replace(config, noise=0), 1, 2, 3).random(4)).all()
    for other in (
        random_stream(replace(config, seed=1), 1, 2, 3),
        random_stream(config, 0, 2, 3),
        random_stream(config, 1, 2, 4),
    ):
        assert not (first == other.random(4)).any()
