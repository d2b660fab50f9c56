"""Store in a folder or an S3 bucket, kept by LanceDB: two tables, of the detections and of what else is remembered."""

from __future__ import annotations

import json
import random
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .bookkeeping import Bookkeeping
from .store import (
    EVERYTHING,
    Filter,
    StoreError,
    StoreInfo,
    check_info,
    check_queries,
    check_rows,
    detections_schema,
    one_line,
    without_password,
)

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

_T = TypeVar("_T")
# Lance detects two writers of the same id only where the schema names the key; without it both insert the row.
_KEY = {"lance-schema:unenforced-primary-key": "true"}
_INFO = b"person_search"
_BATCH = 8192  # rows of a batch of `scan`: 8 MB of embeddings of dimension 256
_RETRIES = 20


class LanceStore(Bookkeeping):
    """Store in a folder or below `s3://bucket/prefix`; `LanceStore.open` makes one."""

    def __init__(self, uri: str, info: StoreInfo, connection: Any, detections: Any, notes: Any) -> None:
        self.uri, self.info = uri, info
        self._connection, self._detections, self._notes = connection, detections, notes

    @classmethod
    def open(cls, uri: str, *, info: StoreInfo | None, create: bool) -> LanceStore:
        """Store at a URI; see `open_store`."""
        shown = without_password(uri)
        folder = None if "://" in uri and not uri.startswith("file://") else Path(uri.removeprefix("file://"))
        if folder is not None:
            _check_folder(folder, create)
        with _errors(shown):
            connection = _connect(uri if folder is None else str(folder.absolute()))
            names = _table_names(connection)
            if create and info is not None and not {"detections", "notes"} <= names:
                _create_table(connection, "notes", _notes_schema())
                # The detections come last: where they are, the store is complete.
                _create_table(connection, "detections", _detections_schema(info))
            elif "detections" not in names:
                raise StoreError(f"{shown} is not a store: it has no detections; index footage into it first")
            detections, notes = connection.open_table("detections"), connection.open_table("notes")
            stored = _read_info(shown, detections.schema)
        check_info(shown, stored, info)
        return cls(shown, stored, connection, detections, notes)

    def upsert(self, rows: pa.Table) -> None:
        rows = check_rows(self.uri, rows, self.info.dimension)
        if len(rows):
            self._merge(self._detections, "id", rows)

    def search(
        self, embeddings: np.ndarray, *, where: Filter = EVERYTHING, limit: int = 100, with_embeddings: bool = False
    ) -> list[pa.Table]:
        queries = check_queries(self.uri, embeddings, self.info.dimension)
        columns = [n for n in detections_schema(self.info.dimension).names if with_embeddings or n != "embedding"]
        condition = to_sql(where)

        def ask(query: np.ndarray) -> pa.Table:
            builder = self._detections.search(query).distance_type("dot").select([*columns, "_distance"]).limit(limit)
            if condition:
                builder = builder.where(condition, prefilter=True)
            return _with_similarity(builder.to_arrow())

        with _errors(self.uri):
            return [self._reading(lambda query=query: ask(query)) for query in queries]

    def scan(self, where: Filter = EVERYTHING, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        names = list(columns) if columns is not None else detections_schema(self.info.dimension).names
        unknown = set(names) - set(detections_schema(self.info.dimension).names)
        if unknown:
            raise StoreError(f"{self.uri} has no column {', '.join(sorted(unknown))}")
        builder = self._detections.search().select(list(dict.fromkeys(["id", *names])))
        condition = to_sql(where)
        if condition:
            builder = builder.where(condition)
        with _errors(self.uri):
            for batch in builder.to_batches(_BATCH):
                if batch.num_rows:
                    yield batch.sort_by("id").select(names)

    def count(self, where: Filter = EVERYTHING) -> int:
        with _errors(self.uri):
            return self._reading(lambda: self._detections.count_rows(to_sql(where) or None))

    def delete(self, where: Filter) -> int:
        if where.empty:
            raise StoreError(f"{self.uri}: an empty filter would delete every detection; name a camera, time or person")
        with _errors(self.uri):
            return self._writing(lambda: self._detections.delete(to_sql(where))).num_deleted_rows

    def optimize(self) -> None:
        with _errors(self.uri):
            for table in (self._notes, self._detections):
                self._writing(lambda table=table: table.optimize(cleanup_older_than=timedelta(minutes=10)))

    def purge(self) -> None:
        with _errors(self.uri), warnings.catch_warnings():
            # The warning is of readers of older versions: they ask again, see _reading.
            warnings.filterwarnings("ignore", "optimize.cleanup_older_than=0", UserWarning)
            for table in (self._notes, self._detections):
                self._writing(lambda table=table: table.optimize(cleanup_older_than=timedelta(0)))

    def close(self) -> None:
        self._detections = self._notes = self._connection = None

    # What Bookkeeping asks for.

    def _read_notes(self, prefix: str) -> dict[str, str]:
        with _errors(self.uri):
            query = self._notes.search().where(f"starts_with(key, {_quoted(prefix)})")
            rows = self._reading(lambda: query.select(["key", "value"]).to_arrow())
        return dict(zip(rows["key"].to_pylist(), rows["value"].to_pylist(), strict=True))

    def _write_notes(self, notes: dict[str, str]) -> None:
        import pyarrow as pa

        rows = pa.table({"key": list(notes), "value": list(notes.values())}, schema=_notes_schema())
        self._merge(self._notes, "key", rows)

    def _delete_note(self, key: str) -> None:
        with _errors(self.uri):
            self._writing(lambda: self._notes.delete(f"key = {_quoted(key)}"))

    # Concurrency: Lance commits optimistically, so that a writer may find that another one was faster.

    def _merge(self, table: Any, key: str, rows: pa.Table) -> None:
        with _errors(self.uri):
            merge = table.merge_insert(key).when_matched_update_all().when_not_matched_insert_all()
            self._writing(lambda: merge.execute(rows))

    def _writing(self, write: Callable[[], _T]) -> _T:
        for trial in range(_RETRIES):
            try:
                return write()
            except (RuntimeError, OSError, ValueError) as error:
                if trial == _RETRIES - 1 or not _is_conflict(error):
                    raise
                time.sleep(random.uniform(0.5, 1) * min(0.05 * 2**trial, 2))
        raise AssertionError("unreachable")

    def _reading(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except (RuntimeError, OSError, ValueError) as error:
            if "not found" not in str(error).lower():
                raise
            return read()  # a purge removed the version that was being read; the next one is there


def to_sql(where: Filter) -> str:
    """Condition of a filter as Lance's SQL, "" for an empty filter."""
    conditions = [
        f"{column} IN ({', '.join(map(_quoted, values))})"
        for column, values in (
            ("camera", where.cameras),
            ("source", where.sources),
            ("tracklet", where.tracklets),
            ("id", where.ids),
        )
        if values
    ]
    if where.since is not None:
        conditions.append(f"time >= {_timestamp(where.since)}")
    if where.until is not None:
        conditions.append(f"time < {_timestamp(where.until)}")
    if where.undated:
        conditions.append("time IS NULL")
    return " AND ".join(conditions)


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _timestamp(moment: datetime) -> str:
    return f"timestamp '{moment.astimezone(timezone.utc).replace(tzinfo=None).isoformat(' ', 'microseconds')}'"


def _with_similarity(rows: pa.Table) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    similarity = pc.subtract(pa.scalar(1.0, pa.float32()), rows["_distance"])
    return rows.drop_columns(["_distance"]).append_column("similarity", similarity)


def _connect(address: str) -> Any:
    import lancedb

    # Lance's own limits of its caches are gigabytes; a store of 200,000 detections shall be searched in less than one.
    session = lancedb.Session(index_cache_size_bytes=256 << 20, metadata_cache_size_bytes=64 << 20)
    return lancedb.connect(address, read_consistency_interval=timedelta(0), session=session)


def _table_names(connection: Any) -> set[str]:
    return set(connection.list_tables().tables)


def _create_table(connection: Any, name: str, schema: pa.Schema) -> None:
    try:
        connection.create_table(name, schema=schema)
    except (ValueError, RuntimeError) as error:
        if "already exists" not in str(error):  # another process was faster
            raise


def _detections_schema(info: StoreInfo) -> pa.Schema:
    schema = detections_schema(info.dimension)
    metadata = {_INFO: json.dumps(vars(info), sort_keys=True).encode()}
    return schema.set(0, schema.field("id").with_metadata(_KEY)).with_metadata(metadata)


def _notes_schema() -> pa.Schema:
    import pyarrow as pa

    key = pa.field("key", pa.string(), nullable=False, metadata=_KEY)
    return pa.schema([key, pa.field("value", pa.string(), nullable=False)])


def _read_info(uri: str, schema: pa.Schema) -> StoreInfo:
    try:
        return StoreInfo(**json.loads((schema.metadata or {})[_INFO]))
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{uri} is not a store of person_search: its table of detections names no model") from error


def _check_folder(folder: Path, create: bool) -> None:
    if not folder.exists():
        if not create:
            raise StoreError(f"{folder} does not exist: index footage into it first")
        return
    if not folder.is_dir():
        raise StoreError(f"{folder} is a file: a store is a folder")
    if create and not any(folder.glob("*.lance")) and any(folder.iterdir()):
        raise StoreError(f"{folder} holds other files: give the store a folder of its own")


def _is_conflict(error: Exception) -> bool:
    text = str(error).lower()
    return "conflict" in text or "concurrent" in text or "retry" in text


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turns what LanceDB raises into one line that names the store."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{uri}: {one_line(error)}") from error
