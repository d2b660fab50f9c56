"""Content of the store in a few numbers."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from pathlib import PurePath

from ..maintenance import retention
from ..store import Filter, SourceState, Store, without_password
from . import schemas
from .desk import Desk


def summarize(desk: Desk) -> schemas.StoreSummary:
    """Summary of the store that a server shows."""
    states = list(desk.footage.sources().values())
    return schemas.StoreSummary(
        name=PurePath(without_password(desk.store.uri)).name,
        model=desk.store.info.model,
        dimension=desk.store.info.dimension,
        detections=desk.store.count(),
        cameras=[_camera(desk.store, name, states) for name in sorted({state.camera for state in states})],
        sources=len(states),
        unfinished=sum(not state.finished and not state.error for state in states),
        damaged=sum(bool(state.error) for state in states),
        retention_days=retention(desk.store),
        can_embed=desk.answers.can_embed,
        max_upload_bytes=desk.settings.max_upload_bytes,
        max_upload_pixels=desk.settings.max_upload_pixels,
    )


def _camera(store: Store, name: str, states: Iterable[SourceState]) -> schemas.Camera:
    own = [state for state in states if state.camera == name]
    starts = [state.start for state in own if state.start is not None]
    ends = [_end(state, state.start) for state in own if state.start is not None]
    where = Filter(cameras=(name,))
    return schemas.Camera(
        name=name,
        sources=len(own),
        detections=store.count(where),
        sample=next((batch["id"][0].as_py() for batch in store.scan(where, ["id"])), None),
        first=min(starts, default=None),
        last=max(ends, default=None),
    )


def _end(state: SourceState, start: datetime) -> datetime:
    return start + timedelta(seconds=max(state.duration, state.seconds_done))
