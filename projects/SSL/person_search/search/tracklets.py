"""Tracklets: detections of a source that follow each other from frame to frame, joined by ByteTrack."""

from __future__ import annotations

import numpy as np

# Least generalized IoU of a box and the place where the tracker expects it. At two frames a second a walking person
# leaves the previous box, so that plain IoU, which is 0 wherever boxes are apart, breaks tracklets with every step; the
# generalized one goes on below 0 with the distance. Over longer steps the nearest box is ever less likely the same
# person, and a broken tracklet does less harm than a mixed one.
_LEAST_OVERLAP, _STRICTEST, _LONG, _TOO_LONG = -0.2, 0.2, 0.5, 1.0  # two overlaps, two steps in seconds


class TrackletNumbers:
    """Numbers of the tracklets of a source's detections, frame after frame.

    The tracker is the `trackers` package's ByteTrack on the frames' times. It names a person from the second frame on;
    here the first one belongs to the tracklet too, and a detection that nothing follows is a tracklet of its own.
    Frames without detections may be left out. The numbers of a frame depend on the frames up to it alone, so that the
    same boxes shown again to a new instance continue where an interrupted run was.
    """

    def __init__(self, spacing: float) -> None:
        """
        Args:
            spacing: Usual seconds from one frame to the next.
        """
        from trackers import ByteTrackTracker
        from trackers.utils.iou import GIoU

        # Someone who is hidden for a second, or in two frames, keeps the tracklet. The package counts in thirtieths.
        lost = round(30 * max(1.0, 3.5 * spacing))
        self._overlap = GIoU()
        self._least = float(np.interp(spacing, [_LONG, _TOO_LONG], [_LEAST_OVERLAP, _STRICTEST]))
        self._tracker = ByteTrackTracker(
            lost_track_buffer=lost,
            frame_rate=1.0 / max(spacing, 1e-3),
            track_activation_threshold=0.0,  # the searcher has its own threshold
            high_conf_det_threshold=0.0,
            minimum_consecutive_frames=2,
            minimum_iou_threshold=self._least,
            iou=self._overlap,
        )
        self._numbers: dict[int, int] = {}
        self._next = 0
        self._open: list[tuple[np.ndarray, int]] = []

    def update(self, offset: float, boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
        """Tracklet numbers (N,) int64 of the detections of the next frame.

        Args:
            offset: Seconds from the start of the source, above that of the frame before.
            boxes: (N, 4) float32.
            scores: (N,) float32.
        """
        if not len(boxes):
            return np.zeros(0, np.int64)
        import supervision

        tracked = self._tracker.update(
            supervision.Detections(
                xyxy=boxes.astype(np.float64), confidence=scores.copy(), data={"place": np.arange(len(boxes))}
            ),
            timestamp=offset,
        )
        names = np.full(len(boxes), -1)
        names[tracked.data["place"]] = tracked.tracker_id
        self._link(names, boxes)
        numbers = np.zeros(len(boxes), np.int64)
        for place, name in enumerate(names.tolist()):
            if name < 0 or name not in self._numbers:
                numbers[place], self._next = self._next, self._next + 1
                if name >= 0:
                    self._numbers[name] = int(numbers[place])
            else:
                numbers[place] = self._numbers[name]
        self._open = [(boxes[i], int(numbers[i])) for i in np.flatnonzero(names < 0)]
        return numbers

    def _link(self, names: np.ndarray, boxes: np.ndarray) -> None:
        """Gives names that are new the number of the detection of the frame before that they began with."""
        new = [place for place, name in enumerate(names.tolist()) if name >= 0 and name not in self._numbers]
        if not new or not self._open:
            return
        overlap = self._overlap.compute(
            np.array([box for box, _ in self._open], np.float64), boxes[new].astype(np.float64)
        )
        used: set[int] = set()
        for place in np.argsort(-overlap, axis=None, kind="stable"):
            before, after = np.unravel_index(place, overlap.shape)
            name, number = int(names[new[after]]), self._open[before][1]
            if overlap[before, after] >= self._least and name not in self._numbers and number not in used:
                self._numbers[name] = number
                used.add(number)
