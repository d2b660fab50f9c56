"""The memory bank against Eq. 5."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from person_search.modeling import MemoryBank


def filled(size: int = 5, dim: int = 4) -> MemoryBank:
    bank = MemoryBank(size, dim)
    bank.fill(torch.arange(size), torch.randn(size, dim, generator=torch.Generator().manual_seed(0)))
    return bank


def test_update_weights_the_new_feature():
    bank = filled()
    before, new = bank.features.clone(), F.normalize(torch.ones(1, 4), dim=1)
    bank.update(torch.tensor([2]), new, new_weight=0.8)
    expected = 0.8 * new[0] + 0.2 * before[2]
    torch.testing.assert_close(bank.features[2], expected / expected.norm())
    untouched = [0, 1, 3, 4]
    torch.testing.assert_close(bank.features[untouched], before[untouched])


def test_update_without_renormalization_keeps_the_length():
    bank = filled()
    before, new = bank.features.clone(), F.normalize(torch.ones(1, 4), dim=1)
    bank.update(torch.tensor([2]), new, new_weight=0.8, renormalize=False)
    torch.testing.assert_close(bank.features[2], 0.8 * new[0] + 0.2 * before[2])


def test_a_row_seen_twice_does_not_depend_on_the_order():
    first, second = filled(), filled()
    features = F.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    first.update(torch.tensor([1, 3, 1]), features, 0.8)
    second.update(torch.tensor([1, 1, 3]), features[[2, 0, 1]], 0.8)
    torch.testing.assert_close(first.features, second.features)
    mean = (features[0] + features[2]) / 2
    expected = F.normalize(0.8 * mean + 0.2 * filled().features[1], dim=0)
    torch.testing.assert_close(first.features[1], expected)


def test_the_rows_are_part_of_the_state():
    assert set(MemoryBank(3, 2).state_dict()) == {"features"}
