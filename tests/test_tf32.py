"""The switch for TF32, in both ways that PyTorch has."""

from __future__ import annotations

import pytest
from person_search.tf32 import full_precision


@pytest.mark.parametrize("failing", [False, True])
@pytest.mark.parametrize(
    ("name", "chosen", "full"),
    [("allow_tf32", True, False), ("allow_tf32", False, False), ("fp32_precision", "tf32", "ieee")],
)
def test_tf32_is_off_within_and_as_before_afterwards(matmul, name, chosen, full, failing):
    if not hasattr(matmul, name):
        pytest.skip(f"this PyTorch has no {name}")
    setattr(matmul, name, chosen)
    try:
        with full_precision():
            assert getattr(matmul, name) == full
            if failing:
                raise KeyError
    except KeyError:
        assert failing
    assert getattr(matmul, name) == chosen
