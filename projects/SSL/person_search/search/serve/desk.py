"""What the routes of a server share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from ..store import Store
from .answers import Answers
from .footage import Footage
from .players import ClipMaker
from .settings import ServeSettings
from .uploads import Shelf


@dataclass(frozen=True)
class Desk:
    """Parts of a running server."""

    settings: ServeSettings
    store: Store
    footage: Footage
    answers: Answers
    shelf: Shelf
    clips: ClipMaker

    def forget_copies(self) -> None:
        """Drops whatever is kept of detections, after some of them were deleted."""
        self.footage.clear()
        self.answers.clear()
        self.clips.clear()


def _desk(request: Request) -> Desk:
    return request.app.state.desk


TheDesk = Annotated[Desk, Depends(_desk)]
