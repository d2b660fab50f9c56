#!/usr/bin/env python3
"""Search in an indexed video whose persons are annotated: mAP and top-1, beside a color histogram. One JSON line.

python benchmarks/footage_search.py --store store --video vtest.avi --gt gt.txt [--first 398] [--apart 40]

Detections of the store are matched with the annotation (IoU of 0.5, one to one) and get its identities; the others stay
as distractors. Every fifth matched detection is a query, searched in all other frames by cosine. The color histogram
sees the same boxes: 48 x 96 pixels, HSV, six stripes of 12 x 4 x 4 bins, square roots of the shares. `random` is a
vector of noise for each box.

`tracklets`: how many there are, how many a person has, and the share of matched detections that show the person whom
most of their tracklet shows.

`verdicts`: each query is searched in all tracklets but its own. `true_called_likely` is the share of the person's other
appearances that are called likely, `likely_false` the share of what is called likely that shows someone else, and
`likely_false_a_search` the mean of that share over the searches (0 where nothing is called so): what "likely" bounds.
`found` is the share of searches that call a right one likely where there is one. `uncertain` says the same of what is
called likely or uncertain. For `false_alarms` the same person is taken out of what is searched: the share of such
searches that call anything likely. Tracklets of nobody annotated count nowhere.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from person_search.data.mot import read_ground_truth
from person_search.search.calibration import Calibration, calibrate
from person_search.search.query import find_person
from person_search.search.sources import read_frame
from person_search.search.store import Filter, Store, embeddings_of, open_store
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import average_precision_score

NOBODY = -1


def main() -> None:
    """Reads the store, matches, searches and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--video", required=True, help="the annotated video, as it was indexed")
    parser.add_argument("--gt", required=True, type=Path, help="MOT ground truth, frames counted from 1")
    parser.add_argument("--first", type=int, default=1, help="first annotated frame that is looked at")
    parser.add_argument(
        "--apart", type=int, default=1, help="frames that lie between a query and what it is searched in"
    )
    parser.add_argument("--every-query", type=int, default=5)
    args = parser.parse_args()
    store = open_store(args.store)
    rows, embeddings = detections(store, str(Path(args.video).absolute()), args.first)
    person = identities(rows, args.gt)
    frames = np.array([row["frame"] for row in rows])
    queries = np.flatnonzero(person != NOBODY)[:: args.every_query]
    features = {
        "model": embeddings,
        "color_histogram": np.stack([histogram(crop) for crop in crops(store, rows)]),
        "random": unit(np.random.default_rng(0).normal(size=embeddings.shape)),
    }
    print(
        json.dumps({
            "benchmark": "footage_search",
            "detections": len(rows),
            "matched": int((person != NOBODY).sum()),
            "persons": len(set(person.tolist()) - {NOBODY}),
            "queries": len(queries),
            "apart": args.apart,
            **{name: figures(feature, person, frames, queries, args.apart) for name, feature in features.items()},
            "tracklets": tracking(rows, person),
            "verdicts": verdicts(store, rows, embeddings, person, queries),
        })
    )  # fmt: skip


def detections(store: Store, source: str, first: int) -> tuple[list[dict], np.ndarray]:
    """Rows of a source without embeddings, from an annotated frame on, and their embeddings (N, d)."""
    rows: list[dict] = []
    vectors = []
    for batch in store.scan(Filter(sources=(source,))):
        vectors.append(embeddings_of(batch))
        rows += batch.drop_columns(["embedding"]).to_pylist()
    if not rows:
        raise SystemExit(f"{source} is not in {store.uri}")
    order = [i for i in sorted(range(len(rows)), key=lambda i: rows[i]["id"]) if rows[i]["frame"] + 1 >= first]
    return [rows[i] for i in order], np.concatenate(vectors)[order]


def identities(rows: Sequence[dict], gt: Path) -> np.ndarray:
    """Identity (N,) of each detection, NOBODY where no annotated box matches it."""
    truth = read_ground_truth(gt)
    by_frame: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        by_frame.setdefault(row["frame"], []).append(place)
    person = np.full(len(rows), NOBODY)
    for frame, places in by_frame.items():
        annotated = [p for _, p in truth.get(frame + 1, [])]
        if not annotated:
            continue
        overlap = iou(
            np.array([[rows[p][c] for c in ("x0", "y0", "x1", "y1")] for p in places]),
            np.array([p.bbox for p in annotated], np.float64),
        )
        for i, j in zip(*linear_sum_assignment(-overlap), strict=True):
            if overlap[i, j] >= 0.5:
                person[places[i]] = annotated[j].person_id
    return person


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(n, m) overlaps of boxes (n, 4) and (m, 4)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.maximum(high - low, 0).prod(axis=2)
    area = [(box[:, 2:] - box[:, :2]).prod(axis=1) for box in (a, b)]
    return shared / (area[0][:, None] + area[1][None] - shared)


def crops(store: Store, rows: Sequence[dict]) -> list[np.ndarray]:
    """What each detection shows, 96 x 48 pixels, RGB."""
    cut, frame, image = [], None, np.zeros(0)
    for row in rows:
        if row["frame"] != frame:
            frame, image = row["frame"], read_frame(store, row)
        x0, y0, x1, y1 = (round(row[c]) for c in ("x0", "y0", "x1", "y1"))
        part = image[max(y0, 0) : max(y1, y0 + 1), max(x0, 0) : max(x1, x0 + 1)]
        cut.append(cv2.resize(part, (48, 96), interpolation=cv2.INTER_AREA))
    return cut


def histogram(crop: np.ndarray) -> np.ndarray:
    """Colors of six horizontal stripes as a vector of unit length."""
    hsv = cv2.cvtColor(crop, cv2.COLOR_RGB2HSV)
    bins, ranges = [12, 4, 4], [0, 180, 0, 256, 0, 256]
    stripes = [cv2.calcHist([part], [0, 1, 2], None, bins, ranges).ravel() for part in np.split(hsv, 6)]
    return unit(np.sqrt(np.concatenate([stripe / stripe.sum() for stripe in stripes])))


def figures(
    feature: np.ndarray, person: np.ndarray, frames: np.ndarray, queries: np.ndarray, apart: int
) -> dict[str, float]:
    """mAP and top-1 in percent; queries without a match in their gallery are left out."""
    precision, first = [], []
    for query in queries:
        gallery = np.abs(frames - frames[query]) >= apart
        right = person[gallery] == person[query]
        if right.any():
            similarity = feature[gallery] @ feature[query]
            precision.append(average_precision_score(right, similarity))
            first.append(right[similarity.argmax()])
    return {"mAP": round(100 * float(np.mean(precision)), 1), "top1": round(100 * float(np.mean(first)), 1)}


def shown(rows: Sequence[dict], person: np.ndarray) -> dict[str, list[int]]:
    """Identities of the matched detections of each tracklet; a tracklet without any has an empty list."""
    found: dict[str, list[int]] = {}
    for row, identity in zip(rows, person.tolist(), strict=True):
        found.setdefault(row["tracklet"], []).extend([identity] if identity != NOBODY else [])
    return found


def most(identities: Sequence[int]) -> int:
    """The identity that most have, NOBODY of none."""
    return max(set(identities), key=identities.count) if identities else NOBODY


def tracking(rows: Sequence[dict], person: np.ndarray) -> dict[str, float]:
    """How well the tracker has joined the detections."""
    of = shown(rows, person)
    persons = {most(identities) for identities in of.values()} - {NOBODY}
    right = sum(identities.count(most(identities)) for identities in of.values() if identities)
    return {
        "all": len(of),
        "of_nobody": sum(not identities for identities in of.values()),
        "a_person": round(sum(map(bool, of.values())) / max(len(persons), 1), 2),
        "purity": round(100 * right / max(sum(map(len, of.values())), 1), 1),
    }


def verdicts(
    store: Store, rows: Sequence[dict], embeddings: np.ndarray, person: np.ndarray, queries: np.ndarray
) -> dict:
    """What the verdicts are worth, for who is there and for who is not."""
    calibration = calibrate(store)
    who = {name: most(identities) for name, identities in shown(rows, person).items()}
    likely, uncertain, alarms = Tally(), Tally(), 0
    for query in queries.tolist():
        own, asked = rows[query]["tracklet"], int(person[query])
        others = [name for name in who if name != own and who[name] != NOBODY]
        there = sum(who[name] == asked for name in others)
        verdict = judged(store, embeddings[query], others, calibration)
        likely.add([who[n] == asked for n, v in verdict.items() if v == "likely"], there)
        uncertain.add([who[n] == asked for n, v in verdict.items() if v != "unlikely"], there)
        strangers = [name for name in others if who[name] != asked]
        alarms += "likely" in judged(store, embeddings[query], strangers, calibration).values()
    return {
        "pairs": calibration.pairs,
        "true_appearances": likely.there,
        "searches_for_who_is_there": likely.searches,
        **likely.figures("likely"),
        "uncertain": uncertain.figures("uncertain"),
        "searches_for_who_is_not": len(queries),
        "false_alarms": share(alarms, len(queries)),
    }


@dataclass
class Tally:
    """Appearances that are called something, over searches."""

    there: int = 0
    searches: int = 0
    right: int = 0
    wrong: int = 0
    found: int = 0
    false_shares: list[float] = field(default_factory=list)

    def add(self, hits: Sequence[bool], there: int) -> None:
        """A search's hits, each right or not, and how many appearances of the person there are."""
        self.there, self.searches = self.there + there, self.searches + (there > 0)
        self.right, self.wrong, self.found = (
            self.right + sum(hits),
            self.wrong + len(hits) - sum(hits),
            self.found + any(hits),
        )
        self.false_shares.append(1 - sum(hits) / len(hits) if hits else 0.0)

    def figures(self, name: str) -> dict[str, float | None]:
        """Counts and shares in percent."""
        return {
            f"true_called_{name}": share(self.right, self.there),
            name: self.right + self.wrong,
            f"{name}_false": share(self.wrong, self.right + self.wrong),
            f"{name}_false_a_search": round(100 * float(np.mean(self.false_shares)), 1),
            "found": share(self.found, self.searches),
        }


def judged(store: Store, embedding: np.ndarray, among: Sequence[str], calibration: Calibration) -> dict[str, str]:
    """Tracklets that a search among some finds, and what it calls them."""
    if not among:  # a filter without names would be none
        return {}
    where = Filter(tracklets=tuple(among))
    answer = find_person(store, embedding, where=where, top=len(among), calibration=calibration)
    return {hit.tracklet: hit.verdict for hit in answer.appearances}


def share(part: int, whole: int) -> float | None:
    """Percent; None of nothing."""
    return round(100 * part / whole, 1) if whole else None


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of unit length along the last axis."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


if __name__ == "__main__":
    main()
