"""Store in a folder or an S3 bucket, kept by LanceDB: two tables, of the detections and of what else is remembered."""

from __future__ import annotations

import os
import random
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .bookkeeping import Bookkeeping
from .locks import shared_lock, try_exclusive_lock
from .store import (
    EVERYTHING,
    EXACT_BELOW,
    Filter,
    StoreError,
    StoreInfo,
    check_columns,
    check_deletable,
    check_info,
    check_limit,
    check_queries,
    check_rows,
    detections_schema,
    hit_columns,
    info_text,
    one_line,
    read_info,
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
_UPSERTS_BETWEEN_OPTIMIZATIONS = 64  # every upsert leaves a small file, and many of them make searches slow
# A probe is one of the index's partitions; more are visited until a filter has let enough rows through.
_PROBES = 20
_FRAGMENT_BITS = 32  # a row's id is the number of its fragment, then its place therein
# What Lance's messages mean to who ran the program; the first one that is found counts.
_ADVICE = {
    r"os error (28|27|122)\b|no space left|quota": "the disk is full: free space and go on, what was written stays",
    r"os error (13|1|30)\b|permission denied|read-only": "this user may not write here, or the disk is read-only",
    "CredentialsNotLoaded": "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "NoSuchBucket": "the bucket does not exist: make it first, the store is made within it",
    "Failed to resolve region": "the bucket's region is unknown: check its name, set AWS_REGION",
    r"AccessDenied|SignatureDoesNotMatch|InvalidAccessKeyId|40[13] (Forbidden|Unauth)": "the credentials are refused",
    "ConnectError|RetryError|timed? ?out": "the server does not answer: check AWS_ENDPOINT_URL and the network",
}


class LanceStore(Bookkeeping):
    """Store in a folder or below `s3://bucket/prefix`; `LanceStore.open` makes one."""

    def __init__(self, uri: str, info: StoreInfo, folder: Path | None, detections: Any, notes: Any) -> None:
        self.uri, self.info = uri, info
        self.exact_below = EXACT_BELOW
        self._folder, self._detections, self._notes = folder, detections, notes
        self._upserts = 0

    @classmethod
    def open(cls, uri: str, *, info: StoreInfo | None, create: bool) -> LanceStore:
        """Store at a URI; see `open_store`."""
        folder = None
        if "://" not in uri or uri.startswith("file://"):
            folder = Path(uri.removeprefix("file://")).absolute()
            _check_folder(folder, create)
        shown = without_password(uri) if folder is None else str(folder)
        with _errors(shown):
            connection = _connect(uri if folder is None else str(folder))
            # The detections come last: where they are, the store is complete. (An empty table is false.)
            notes = _open_table(connection, "notes", _notes_schema() if create else None)
            detections = _open_table(connection, "detections", _stored_schema(info) if create and info else None)
            if notes is None or detections is None:
                raise StoreError(f"{shown} is not a store of detections: index footage into it first")
            stored = read_info(shown, (detections.schema.metadata or {}).get(_INFO))
        check_info(shown, stored, info)
        return cls(shown, stored, folder, detections, notes)

    def upsert(self, rows: pa.Table) -> None:
        rows = check_rows(self.uri, rows, self.info.dimension)
        if not len(rows):
            return
        self._merge(self._detections, "id", rows)
        self._upserts += 1
        if self._upserts % _UPSERTS_BETWEEN_OPTIMIZATIONS == 0:
            with suppress(StoreError):  # the rows are written; the next writer tries again
                self.optimize()

    def search(
        self, embeddings: np.ndarray, *, where: Filter = EVERYTHING, limit: int = 100, with_embeddings: bool = False
    ) -> list[pa.Table]:
        queries = check_queries(self.uri, embeddings, self.info.dimension)
        check_limit(self.uri, limit)
        columns = hit_columns(self.info.dimension, with_embeddings)
        condition = to_sql(where)

        def ask(query: np.ndarray) -> pa.Table:
            builder = self._detections.search(query).distance_type("dot").select([*columns, "_distance"]).limit(limit)
            if self._detections.count_rows() < self.exact_below:
                builder = builder.bypass_vector_index()
            else:
                builder = builder.minimum_nprobes(_PROBES).maximum_nprobes(0)  # 0: as many as the filter needs
            if condition:
                builder = builder.where(condition, prefilter=True)
            return _with_similarity(builder.to_arrow())

        with _errors(self.uri):
            return [self._reading(partial(ask, query)) for query in queries]

    def scan(self, where: Filter = EVERYTHING, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        names = check_columns(self.uri, columns, self.info.dimension)
        condition = to_sql(where)
        with _errors(self.uri):
            builder = self._detections.search().select(list(dict.fromkeys(["id", *names])))
            if condition:
                builder = builder.where(condition)
            for batch in self._reading(lambda: builder.to_batches(_BATCH)):
                if batch.num_rows:
                    yield batch.sort_by("id").select(names)

    def count(self, where: Filter = EVERYTHING) -> int:
        with _errors(self.uri):
            return self._reading(lambda: self._detections.count_rows(to_sql(where) or None))

    def delete(self, where: Filter) -> int:
        check_deletable(self.uri, where)
        with _errors(self.uri):
            return self._writing(lambda: self._detections.delete(to_sql(where))).num_deleted_rows

    def optimize(self) -> None:
        with _errors(self.uri):
            for table in (self._notes, self._detections):
                # Programs that read or write meanwhile go on using the versions of the last minutes.
                self._writing(partial(table.optimize, cleanup_older_than=timedelta(minutes=10)))
            self._writing(self._index)

    def purge(self) -> None:
        """Frees the bytes of everything that was deleted or replaced.

        In a bucket, files that a killed program left stay for seven days: nobody can know that it does not live.
        """
        with _errors(self.uri), try_exclusive_lock(self._lock_file) as alone:
            for table in (self._notes, self._detections):
                steps = [_vacuum, self._rewrite_holed, _rebuild_vector_index]
                # Merging and bringing the other indices up to date makes a version more, hence twice.
                for step in (*steps, _vacuum, _vacuum):
                    self._retry(partial(step, table, alone))

    def close(self) -> None:
        self._detections = self._notes = None

    # What Bookkeeping asks for.

    def _read_notes(self, prefix: str) -> dict[str, str]:
        with _errors(self.uri):
            query = self._notes.search().where(f"starts_with(key, {_quoted(prefix)})").select(["key", "value"])
            rows = self._reading(query.to_arrow)
        return dict(zip(rows["key"].to_pylist(), rows["value"].to_pylist(), strict=True))

    def _write_notes(self, notes: dict[str, str]) -> None:
        import pyarrow as pa

        self._merge(self._notes, "key", pa.table({"key": list(notes), "value": list(notes.values())}, _notes_schema()))

    def _delete_note(self, key: str) -> None:
        with _errors(self.uri):
            self._writing(lambda: self._notes.delete(f"key = {_quoted(key)}"))

    # Writers and readers at the same time: Lance commits optimistically, so a writer may find that another was faster.

    @property
    def _lock_file(self) -> Path | None:
        return self._folder and self._folder / ".lock"

    def _merge(self, table: Any, key: str, rows: pa.Table) -> None:
        with _errors(self.uri):
            merge = table.merge_insert(key).when_matched_update_all().when_not_matched_insert_all()
            self._writing(lambda: merge.execute(rows))

    def _writing(self, write: Callable[[], _T]) -> _T:
        with shared_lock(self._lock_file):
            return self._retry(write)

    def _retry(self, write: Callable[[], _T]) -> _T:
        for trial in range(_RETRIES):
            try:
                return write()
            except (RuntimeError, OSError, ValueError) as error:
                # A version that is gone: a purge removed it between two steps of the write, which the next trial reads.
                passing = "conflict|concurrent|not found.*_versions"
                if trial == _RETRIES - 1 or not re.search(passing, str(error), re.IGNORECASE | re.DOTALL):
                    raise
                time.sleep(random.uniform(0.5, 1) * min(0.05 * 2**trial, 2))
        raise AssertionError("the last trial returns or raises")

    def _reading(self, read: Callable[[], _T]) -> _T:
        for trial in range(_RETRIES):
            try:
                return read()
            except (RuntimeError, OSError, ValueError) as error:
                # A purge removed the version that was being read; the next one is there.
                if trial == _RETRIES - 1 or "not found" not in str(error).lower():
                    raise
                time.sleep(0.05)
        raise AssertionError("the last trial returns or raises")

    # Indices and files.

    def _index(self) -> None:
        from lancedb.index import Bitmap, BTree

        there = {index.columns[0] for index in self._detections.list_indices()}
        for column in ("id", "source", "camera", "time", "tracklet"):
            if column not in there:
                self._detections.create_index(column, config=Bitmap() if column == "camera" else BTree())
        if "embedding" not in there and self._detections.count_rows() >= self.exact_below:
            _build_vector_index(self._detections)

    def _rewrite_holed(self, table: Any, alone: bool) -> None:
        """Copies the rows of files with deleted rows, which Lance leaves as they are while few are deleted."""
        if self._folder is None:
            holed = None  # a listing of the bucket would need a second S3 client: all rows are copied
        else:
            deletions = (self._folder / f"{table.name}.lance" / "_deletions").glob("*-*-*")
            holed = sorted({int(file.name.split("-")[0]) for file in deletions})
        column = table.schema.names[-1]
        if holed is None:
            table.update(values_sql={column: column})
            return
        for fragment in holed:
            first, behind = fragment << _FRAGMENT_BITS, (fragment + 1) << _FRAGMENT_BITS
            table.update(where=f"_rowid >= {first} AND _rowid < {behind}", values_sql={column: column})


def to_sql(where: Filter) -> str:
    """Condition of a filter as Lance's SQL, "" for an empty filter."""
    lists = {"camera": where.cameras, "source": where.sources, "tracklet": where.tracklets, "id": where.ids}
    conditions = [f"{name} IN ({', '.join(map(_quoted, values))})" for name, values in lists.items() if values]
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


def _build_vector_index(table: Any) -> None:
    from lancedb.index import IvfFlat

    table.create_index("embedding", config=IvfFlat(distance_type="dot"), replace=True)


def _rebuild_vector_index(table: Any, alone: bool) -> None:
    if any(index.columns == ["embedding"] for index in table.list_indices()):
        _build_vector_index(table)  # the old one holds the vectors still


def _vacuum(table: Any, alone: bool) -> None:
    with warnings.catch_warnings():
        # The warning is of readers of older versions: they ask again, see `_reading`.
        warnings.filterwarnings("ignore", "optimize.cleanup_older_than=0", UserWarning)
        table.optimize(cleanup_older_than=timedelta(0), delete_unverified=alone)


def _connect(address: str) -> Any:
    os.environ.setdefault("LANCE_LOG", "error")  # its warnings are of conflicts, which are retried here
    import lancedb

    # Lance's own limits of its caches are gigabytes; a store of 200,000 detections shall be searched in less than one.
    session = lancedb.Session(index_cache_size_bytes=256 << 20, metadata_cache_size_bytes=64 << 20)
    options = None
    if address.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        options = {"client_max_retries": "3", "client_retry_timeout": "20", "connect_timeout": "10s"}
        if endpoint:
            options |= {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
    return lancedb.connect(address, read_consistency_interval=timedelta(0), session=session, storage_options=options)


def _open_table(connection: Any, name: str, schema: pa.Schema | None) -> Any | None:
    """Table of a name, made where a schema is given and it is missing; None where it is missing."""
    for create in (False, True):
        try:
            if create and schema is not None:
                return connection.create_table(name, schema=schema)
            return connection.open_table(name)
        except (ValueError, RuntimeError) as error:
            if not re.search("was not found|already exists", str(error)):
                raise
    if schema is None:
        return None
    return connection.open_table(name)  # another process made it between the two trials


def _stored_schema(info: StoreInfo) -> pa.Schema:
    schema = detections_schema(info.dimension)
    metadata = {_INFO: info_text(info).encode()}
    return schema.set(0, schema.field("id").with_metadata(_KEY)).with_metadata(metadata)


def _notes_schema() -> pa.Schema:
    import pyarrow as pa

    key = pa.field("key", pa.string(), nullable=False, metadata=_KEY)
    return pa.schema([key, pa.field("value", pa.string(), nullable=False)])


def _check_folder(folder: Path, create: bool) -> None:
    try:
        if not folder.exists():
            if not create:
                raise StoreError(f"{folder} does not exist: index footage into it first")
            return
        if not folder.is_dir():
            raise StoreError(f"{folder} is a file: a store is a folder")
        if create and not any(folder.glob("*.lance")) and any(folder.iterdir()):
            raise StoreError(f"{folder} holds other files: give the store a folder of its own")
    except OSError as error:
        raise StoreError(f"{folder}: {error.strerror or error}") from error


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turns what LanceDB raises into one line that names the store."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{uri}: {explained(error)}") from error


def explained(error: Exception) -> str:
    """What went wrong and what to do, in one line, for an error of LanceDB."""
    text = str(error)
    for pattern, advice in _ADVICE.items():
        if re.search(pattern, text, re.IGNORECASE):
            return advice
    return one_line(error)
