"""What a store remembers beside its detections: the states of sources and its settings, as notes of key and text."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from .store import SourceState, clean_state, source_key


class Bookkeeping(ABC):
    """Sources and settings on top of three methods that a store's backend has: read, write and delete notes."""

    @abstractmethod
    def _read_notes(self, prefix: str) -> dict[str, str]:
        """Notes whose key begins with a prefix."""

    @abstractmethod
    def _write_notes(self, notes: dict[str, str]) -> None:
        """Writes notes, in place of older ones of the same keys, all or none."""

    @abstractmethod
    def _delete_note(self, key: str) -> None:
        """Deletes the note of a key, where there is one."""

    def sources(self) -> list[SourceState]:
        states = [_state(json.loads(text)) for text in self._read_notes("source:").values()]
        return sorted(states, key=lambda state: (state.source, state.camera))

    def set_source(self, state: SourceState) -> None:
        self.set_sources([state])

    def set_sources(self, states: Sequence[SourceState]) -> None:
        now = datetime.now(timezone.utc).isoformat()
        notes = {}
        for state in map(clean_state, states):
            values = vars(state) | {"start": state.start and state.start.isoformat(), "written": now}
            notes[_source_note(state.source, state.camera)] = json.dumps(values, sort_keys=True)
        if notes:
            self._write_notes(notes)

    def remove_source(self, source: str, camera: str) -> None:
        self._delete_note(_source_note(source, camera))

    def sources_written(self) -> dict[tuple[str, str], datetime]:
        """Time at which the state of each source and camera was last written."""
        values = map(json.loads, self._read_notes("source:").values())
        return {(v["source"], v["camera"]): datetime.fromisoformat(v["written"]) for v in values}

    def setting(self, name: str) -> str | None:
        key = f"setting:{name}"
        return self._read_notes(key).get(key)

    def set_setting(self, name: str, value: str | None) -> None:
        if value is None:
            self._delete_note(f"setting:{name}")
        else:
            self._write_notes({f"setting:{name}": value})


def _source_note(source: str, camera: str) -> str:
    return f"source:{source_key(source, camera)}"


def _state(values: dict[str, object]) -> SourceState:
    start = values["start"]
    known: dict[str, Any] = {name: values[name] for name in SourceState.__dataclass_fields__ if name in values}
    return SourceState(**known | {"start": datetime.fromisoformat(str(start)) if start else None})
