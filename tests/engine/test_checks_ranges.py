"""The numbers that training accepts, and the words for them."""

from __future__ import annotations

import math
import re

import pytest
from detectron2.config import get_cfg
from hypothesis import given
from hypothesis import strategies as st
from person_search import add_ssl_config
from person_search.engine.checks import TRAINING_RANGES, Range, check_ranges
from person_search.errors import ConfigError

NUMBERS = st.floats(allow_nan=True, allow_infinity=True)


@given(NUMBERS, st.floats(-3, 3), st.floats(-3, 3))
def test_a_closed_interval_holds_its_bounds_and_what_lies_between(value, one, other):
    low, high = sorted((one, other))
    assert (value in Range(low, high)) == (low <= value <= high)
    assert low in Range(low, high) and high in Range(low, high)


@given(NUMBERS)
def test_what_is_above_a_number_excludes_it_and_whatever_is_not_finite(value):
    assert (value in Range(above=0)) == (0 < value < math.inf)
    assert (value in Range()) == math.isfinite(value)


@pytest.mark.parametrize(
    ("accepted", "words"),
    [
        (Range(0, 1), "a number from 0 to 1"),
        (Range(low=2), "2 or more"),
        (Range(above=0), "a number above 0"),
        (Range(above=0, high=1), "a number above 0 and up to 1"),
        (Range(), "a finite number"),
    ],
)
def test_ranges_in_words(accepted, words):
    assert str(accepted) == words


def test_the_defaults_lie_within_and_what_lies_outside_is_named():
    cfg = get_cfg()
    add_ssl_config(cfg)
    check_ranges(cfg)
    for key in TRAINING_RANGES:
        wrong = cfg.clone()
        wrong.merge_from_list([key, -5 if isinstance(value_of(cfg, key), int) else math.inf])
        with pytest.raises(
            ConfigError, match=re.escape(f"{key} is {value_of(wrong, key)}, expected {TRAINING_RANGES[key]}")
        ):
            check_ranges(wrong)


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
