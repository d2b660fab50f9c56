"""Values that keys take, and the words for them."""

from __future__ import annotations

import math
import re

import pytest
from detectron2.config import get_cfg
from hypothesis import given
from hypothesis import strategies as st
from person_search import add_ssl_config
from person_search.errors import ConfigError
from person_search.values import VALUES, OneOf, Range, check_values

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
        (Range(low=0, note="seconds"), "0 or more: seconds"),
    ],
)
def test_ranges_in_words(accepted, words):
    assert str(accepted) == words


def test_choices_in_words():
    assert str(OneOf("sum", "mean")) == "'sum' or 'mean'"
    assert str(OneOf("none", "horizontal", "vertical")) == "'none', 'horizontal' or 'vertical'"


def test_the_defaults_are_taken_and_what_is_not_taken_is_named():
    cfg = get_cfg()
    add_ssl_config(cfg)
    check_values(cfg, VALUES)
    for key, accepted in VALUES.items():
        wrong = cfg.clone()
        value = value_of(cfg, key)
        wrong.merge_from_list(
            [key, "no such" if isinstance(value, str) else -5 if isinstance(value, int) else math.inf]
        )
        message = f"{key} is {value_of(wrong, key)!r}, expected {accepted}"
        with pytest.raises(ConfigError, match=re.escape(message)):
            check_values(wrong, [key])


def value_of(cfg, key):
    for part in key.split("."):
        cfg = cfg[part]
    return cfg
