"""Who appears where: every identity in every camera and over the whole range of sizes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from person_search.synthetic import PRESETS, SyntheticConfig
from person_search.synthetic.plan import PlannedPerson, plan_split


def appearances(config: SyntheticConfig, split: str) -> dict[int, list[tuple[int, int, PlannedPerson]]]:
    """Identity -> (frame, camera, person) of each of its appearances."""
    found = defaultdict(list)
    for plan in plan_split(config, split):
        for person in plan.persons:
            found[person.person_id].append((plan.frame, plan.camera_id, person))
    return found


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_identity_is_seen_by_two_cameras_near_and_far(preset: str, split: str) -> None:
    config = PRESETS[preset]
    found = appearances(config, split)
    assert set(found) - {-1} == set(config.identities(split))
    for person_id in config.identities(split):
        frames, cameras, persons = zip(*found[person_id], strict=True)
        assert len(set(frames)) == len(frames) >= 4
        assert len(set(cameras)) >= 2
        places = sorted(person.nearness for person in persons)
        assert places[0] < 0.1 and places[-1] > 0.9


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 5), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2), st.integers(20, 60), st.floats(0, 0.5)
)
def test_plans_keep_to_the_configuration(
    seed: int, cameras: int, fewest: int, more: int, frames: int, unlabelled: float
) -> None:
    config = replace(
        PRESETS["tiny"],
        seed=seed,
        cameras=cameras,
        min_persons=fewest,
        max_persons=fewest + more,
        train_frames=frames,
        test_frames=20,
        train_identities=5,
        test_identities=5,
        unlabelled_fraction=unlabelled,
    )
    plans = plan_split(config, "train")
    assert [plan.frame for plan in plans] == list(range(frames))
    shown = defaultdict(int)
    for plan in plans:
        assert plan.camera_id == plan.frame % cameras + 1
        assert fewest <= len(plan.persons) <= fewest + more
        labelled = [person.person_id for person in plan.persons if person.person_id >= 0]
        assert labelled and len(set(labelled)) == len(labelled), "one person is one place at a time"
        assert all(0 <= person.nearness <= 1 for person in plan.persons)
        for person_id in labelled:
            shown[person_id, plan.camera_id] += 1
    for camera in range(1, cameras + 1):
        counts = [shown[person_id, camera] for person_id in config.identities("train")]
        assert max(counts) - min(counts) <= 1, "a camera shows one identity more often than another"
    assert plans == plan_split(config, "train")


def test_the_share_of_passers_by_is_the_configured_one() -> None:
    config = replace(PRESETS["hard"], unlabelled_fraction=0.3)
    found = appearances(config, "train")
    everybody = sum(map(len, found.values()))
    assert len(found[-1]) / everybody == pytest.approx(0.3, abs=0.03)
    assert -1 not in appearances(replace(config, unlabelled_fraction=0.0), "train")


def test_train_and_test_are_planned_independently() -> None:
    config = PRESETS["tiny"]
    more = replace(config, train_frames=40)
    assert plan_split(config, "test") == plan_split(more, "test")
    assert plan_split(config, "train") != plan_split(replace(config, seed=1), "train")
