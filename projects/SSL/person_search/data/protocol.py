"""What a search asks: the queries of a dataset and the frames in which each is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

BoxXYXY = tuple[float, float, float, float]


@dataclass(frozen=True)
class Query:
    """One person to search for.

    Attributes:
        image_id: the frame that shows the person (the `image_id` of a dataset record).
        bbox: (x0, y0, x1, y1) in pixels of that frame.
        person_id: identity, >= 0.
    """

    image_id: str
    bbox: BoxXYXY
    person_id: int


@dataclass(frozen=True)
class Gallery:
    """The frames in which one query is searched, where a protocol file fixes them (CUHK-SYSU).

    Attributes:
        image_ids: the frames, in the order of the protocol file.
        boxes: for each of those frames that shows the person, the box (x0, y0, x1, y1) in pixels.
    """

    image_ids: tuple[str, ...]
    boxes: Mapping[str, BoxXYXY]


@dataclass(frozen=True)
class SearchProtocol:
    """The search task of one test set.

    Attributes:
        kind: "prw" (all cameras and cross-camera), "cuhk_sysu" (galleries from protocol files) or
            "custom" (every frame but the query's own).
        queries: the persons to search for.
        galleries: gallery name (for example "100") -> one Gallery for each query. Empty where every query is
            searched in all frames but its own and the ground truth comes from the annotations.
    """

    kind: str
    queries: tuple[Query, ...]
    galleries: Mapping[str, tuple[Gallery, ...]] = field(default_factory=dict)
