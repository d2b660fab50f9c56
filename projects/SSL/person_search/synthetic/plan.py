"""Plan of a split: identities spread over frames, cameras and scales."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from .config import SPLITS, STREAM_PLAN, SyntheticConfig, random_stream


@dataclass(frozen=True)
class PlannedPerson:
    """Person in a frame.

    Attributes:
        person_id: identity, or -1 for a passer-by.
        nearness: position between the far (0) and the near (1) end of the ground, see `Camera.scale_at`.
    """

    person_id: int
    nearness: float


@dataclass(frozen=True)
class FramePlan:
    """Frame: number in the split, camera (from 1) and persons, identities first."""

    frame: int
    camera_id: int
    persons: tuple[PlannedPerson, ...]


def plan_split(config: SyntheticConfig, split: str) -> tuple[FramePlan, ...]:
    """Plan of all frames of "train" or "test".

    Cameras take turns. Each frame shows the identities that its camera has shown least so far. The positions of an
    identity are spread evenly between the far and the near end (in random order, slightly jittered), so every identity
    is seen over the whole range of sizes, whatever the cameras.
    """
    rng = random_stream(config, STREAM_PLAN, SPLITS.index(split))
    identities = np.array(config.identities(split))
    by_camera = np.zeros((config.cameras, len(identities)))
    crews: list[tuple[list[int], int]] = []
    for frame in range(config.frames(split)):
        count = int(rng.integers(config.min_persons, config.max_persons + 1))
        passers_by = min(count - 1, int((rng.random(count) < config.unlabelled_fraction).sum()))
        shown = by_camera[frame % config.cameras]
        # By the camera's own count, then by the count over all cameras, then at random.
        order = np.lexsort((rng.random(len(identities)), by_camera.sum(0), shown))
        chosen = order[: count - passers_by]
        shown[chosen] += 1
        crews.append(([int(identities[i]) for i in chosen], passers_by))
    return _with_places(config, crews, rng)


def _with_places(
    config: SyntheticConfig, crews: list[tuple[list[int], int]], rng: np.random.Generator
) -> tuple[FramePlan, ...]:
    times = Counter(person for crew, _ in crews for person in crew)
    places = {}
    for person in sorted(times):
        n = times[person]
        steps = rng.permutation(n) + rng.uniform(-0.3, 0.3, n)
        places[person] = list(np.clip(steps / (n - 1), 0, 1)) if n > 1 else [rng.random()]
    plans = []
    for frame, (crew, passers_by) in enumerate(crews):
        labelled = [PlannedPerson(person, float(places[person].pop())) for person in crew]
        others = [PlannedPerson(-1, float(place)) for place in rng.random(passers_by)]
        plans.append(FramePlan(frame, frame % config.cameras + 1, (*labelled, *others)))
    return tuple(plans)
