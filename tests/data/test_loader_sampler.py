"""The order of training images: epochs, resumption, ranks."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from person_search.data.loader import EpochSampler
from person_search.errors import ConfigError


def take(sampler: EpochSampler, count: int) -> list[tuple[int, int]]:
    return list(itertools.islice(sampler, count))


def single(size: int, batch: int, seed: int = 3, **options) -> EpochSampler:
    return EpochSampler(size, batch, seed, rank=0, world_size=1, **options)


SIZES = st.integers(1, 40)
BATCHES = st.integers(1, 12)


@given(size=SIZES, batch=BATCHES, seed=st.integers(0, 2**32 - 1), epoch=st.integers(0, 50))
def test_an_epoch_is_a_permutation_padded_with_its_first_entries(size, batch, seed, epoch):
    sampler = single(size, batch, seed)
    order = sampler.epoch_order(epoch).tolist()
    assert sampler.iterations_per_epoch == -(-size // batch)
    assert len(order) == sampler.iterations_per_epoch * batch
    assert sorted(order[:size]) == list(range(size))
    assert order[size:] == (order[:size] * batch)[: len(order) - size]


@given(size=SIZES, batch=BATCHES, start=st.integers(0, 60))
def test_starting_later_gives_the_tail_of_the_stream(size, batch, start):
    whole = take(single(size, batch), (start + 5) * batch)
    assert take(single(size, batch, start_iteration=start), 5 * batch) == whole[start * batch :]


@given(size=SIZES, per_rank=st.integers(1, 3), ranks=st.integers(1, 4), start=st.integers(0, 9))
def test_the_ranks_together_see_the_batches_of_one_process(size, per_rank, ranks, start):
    batch = per_rank * ranks
    alone = take(single(size, batch, start_iteration=start), 7 * batch)
    shares = [
        take(EpochSampler(size, batch, 3, start_iteration=start, rank=r, world_size=ranks), 7 * per_rank)
        for r in range(ranks)
    ]
    for i in range(7):
        union = [draw for share in shares for draw in share[i * per_rank : (i + 1) * per_rank]]
        assert sorted(union) == alone[i * batch : (i + 1) * batch]
        assert [draw[0] % ranks for draw in shares[-1][i * per_rank :][:per_rank]] == [ranks - 1] * per_rank


def test_positions_number_all_draws():
    assert [position for position, _ in take(single(5, 3), 20)] == list(range(20))


def test_order_depends_on_seed_and_epoch_only():
    first, again, other = single(100, 4), single(100, 10), single(100, 4, seed=4)
    assert first.epoch_order(0)[:100].tolist() == again.epoch_order(0)[:100].tolist()
    assert first.epoch_order(0).tolist() != first.epoch_order(1).tolist()
    assert first.epoch_order(0).tolist() != other.epoch_order(0).tolist()
    # Pinned: another order would make a resumed run of an older version see other images.
    assert single(6, 1, seed=7).epoch_order(2).tolist() == [4, 1, 5, 2, 0, 3]


def test_without_shuffling_the_order_is_that_of_the_data():
    assert [index for _, index in take(single(3, 2, shuffle=False), 8)] == [0, 1, 2, 0, 0, 1, 2, 0]


def test_first_places_are_spread_evenly_over_the_images():
    counts = Counter(int(single(10, 1).epoch_order(epoch)[0]) for epoch in range(2000))
    assert max(abs(counts[i] - 200) for i in range(10)) < 60  # 4.5 standard deviations


@pytest.mark.parametrize(
    ("arguments", "ranks", "message"),
    [
        ((10, 3, 0), 2, "SOLVER.IMS_PER_BATCH is 3"),
        ((10, 0, 0), 1, "SOLVER.IMS_PER_BATCH is 0"),
        ((10, 2, -1), 1, "SEED is -1"),
    ],
)
def test_bad_configuration_is_named(arguments, ranks, message):
    with pytest.raises(ConfigError, match=message):
        EpochSampler(*arguments, rank=0, world_size=ranks)


@pytest.mark.parametrize("options", [{"size": 0}, {"start_iteration": -1}, {"rank": 2, "world_size": 2}])
def test_impossible_arguments_are_refused(options):
    with pytest.raises(ValueError, match="images from iteration"):
        EpochSampler(**{"size": 4, "batch_size": 2, "seed": 0, "rank": 0, "world_size": 1, **options})
