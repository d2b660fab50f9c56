"""Store on a Milvus server: a collection of detections, and one of what else is remembered."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from .bookkeeping import Bookkeeping
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
    embeddings_of,
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
# A search must see what was written before it, by whatever program; Milvus does not promise that unless asked.
_CONSISTENCY = "Strong"
_UNKNOWN = -(2**62)  # time of a detection of unknown time, for which this version of Milvus has no null
_MOST = 16_384  # results of one search that Milvus allows
_BATCH = 2048
_REQUEST_BYTES = 8 << 20  # Milvus takes requests of up to 64 MB
_LISTS, _PROBES = 1024, 64  # lists of the index, and how many of them a search without a filter looks into
_CONNECT_SECONDS, _PATIENCE_SECONDS = 10, 60
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)


class MilvusStore(Bookkeeping):
    """Store in the collection `name` of a server, and in `name_notes`; `MilvusStore.open` makes one.

    The URI is `http(s)://[user:password@]host[:port][/name]`; MILVUS_TOKEN in the environment serves as a password
    that stands in no URI.
    """

    def __init__(self, uri: str, info: StoreInfo, client: Any, name: str) -> None:
        self.uri, self.info = uri, info
        self.exact_below = EXACT_BELOW
        self._client, self._name, self._notes = client, name, f"{name}_notes"

    @classmethod
    def open(cls, uri: str, *, info: StoreInfo | None, create: bool) -> MilvusStore:
        """Store at a URI; see `open_store`."""
        shown = without_password(uri)
        client, name = _connect(uri)
        with _errors(shown):
            if create and info is not None and not client.has_collection(name):
                # The detections come last: where they are, the store is complete.
                _create(client, f"{name}_notes", *_notes_collection(client))
                _create(client, name, *_detections_collection(client, info))
            if not client.has_collection(name):
                raise StoreError(f"{shown} is not there: the server has no collection {name}; index footage into it")
            stored = read_info(shown, client.describe_collection(name).get("description", ""))
            check_info(shown, stored, info)
            for collection in (f"{name}_notes", name):
                client.load_collection(collection)
        return cls(shown, stored, client, name)

    def upsert(self, rows: pa.Table) -> None:
        import pyarrow as pa

        rows = check_rows(self.uri, rows, self.info.dimension)
        ticks = rows["time"].cast(pa.int64()).fill_null(_UNKNOWN)
        plain = rows.set_column(rows.column_names.index("time"), "time", ticks).drop_columns(["embedding"])
        step = max(1, _REQUEST_BYTES // (4 * self.info.dimension + 512))
        for start in range(0, len(rows), step):
            vectors = embeddings_of(rows.slice(start, step))
            entities = [
                e | {"embedding": v} for e, v in zip(plain.slice(start, step).to_pylist(), vectors, strict=True)
            ]
            self._call(partial(self._client.upsert, self._name, entities))

    def search(
        self, embeddings: np.ndarray, *, where: Filter = EVERYTHING, limit: int = 100, with_embeddings: bool = False
    ) -> list[pa.Table]:
        queries = check_queries(self.uri, embeddings, self.info.dimension)
        check_limit(self.uri, limit, _MOST)
        columns = hit_columns(self.info.dimension, with_embeddings)
        # With a filter all lists are looked into, so that nothing that meets it is missed.
        probes = _PROBES if where.empty else _LISTS
        answers = self._call(
            lambda: self._client.search(
                self._name,
                data=list(queries),
                anns_field="embedding",
                filter=to_expression(where),
                limit=limit,
                output_fields=columns,
                search_params={"metric_type": "IP", "params": {"nprobe": probes}},
                consistency_level=_CONSISTENCY,
            )
        )
        return [self._hits(hits, columns) for hits in answers]

    def scan(self, where: Filter = EVERYTHING, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        names = check_columns(self.uri, columns, self.info.dimension)
        for entities in self._iterate(self._name, to_expression(where), list(dict.fromkeys(["id", *names]))):
            entities.sort(key=lambda entity: entity["id"])
            yield from self._table(entities, names).combine_chunks().to_batches()

    def count(self, where: Filter = EVERYTHING) -> int:
        answer = self._call(
            lambda: self._client.query(
                self._name,
                filter=to_expression(where),
                output_fields=["count(*)"],
                consistency_level=_CONSISTENCY,
            )
        )
        return int(answer[0]["count(*)"])

    def delete(self, where: Filter) -> int:
        check_deletable(self.uri, where)
        removed = 0
        # Deleted by their ids: Milvus itself may overlook rows that were written just before.
        for batch in self.scan(where, ["id"]):
            ids = batch["id"].to_pylist()
            self._call(partial(self._client.delete, self._name, ids=ids))
            removed += len(ids)
        return removed

    def optimize(self) -> None:
        with _errors(self.uri):
            kind = self._client.describe_index(self._name, "embedding")["index_type"]
        wanted = "FLAT" if self.count() < self.exact_below else "IVF_FLAT"
        if kind == wanted:
            return
        with _errors(self.uri):  # searches of other programs wait meanwhile, see `_call`
            self._client.release_collection(self._name)
            self._client.drop_index(self._name, "embedding")
            self._client.create_index(self._name, _index(self._client, wanted))
            self._client.load_collection(self._name)

    def purge(self) -> None:
        """Has the server write its files without what was deleted or replaced.

        The old files go when the server next collects its garbage, after the `dataCoord.gc.dropTolerance` of its
        configuration.
        """
        for name in (self._notes, self._name):
            self._call(partial(self._client.flush, name))
            job = self._call(partial(self._client.compact, name))
            end = time.monotonic() + _PATIENCE_SECONDS
            while self._call(partial(self._client.get_compaction_state, job)) == "Executing":
                if time.monotonic() > end:
                    break  # the server goes on by itself
                time.sleep(0.2)

    def close(self) -> None:
        self._client.close()

    # What Bookkeeping asks for.

    def _read_notes(self, prefix: str) -> dict[str, str]:
        batches = self._iterate(self._notes, f"key like {_quoted(prefix + '%')}", ["key", "value"])
        return {note["key"]: note["value"] for batch in batches for note in batch}

    def _write_notes(self, notes: dict[str, str]) -> None:
        entities = [{"key": key, "value": value, "nothing": [0.0, 0.0]} for key, value in notes.items()]
        for start in range(0, len(entities), _BATCH):
            part = entities[start : start + _BATCH]
            self._call(partial(self._client.upsert, self._notes, part))

    def _delete_note(self, key: str) -> None:
        self._call(lambda: self._client.delete(self._notes, ids=[key]))

    # Requests and answers.

    def _iterate(self, collection: str, expression: str, fields: list[str]) -> Iterator[list[dict[str, Any]]]:
        open_iterator = lambda: self._client.query_iterator(  # noqa: E731
            collection, batch_size=_BATCH, filter=expression, output_fields=fields, consistency_level=_CONSISTENCY
        )
        iterator = self._call(open_iterator)
        try:
            while batch := self._call(iterator.next):
                yield list(batch)
        finally:
            iterator.close()

    def _call(self, request: Callable[[], _T]) -> _T:
        """Answer to a request, which waits while another program has the index rebuilt."""
        from pymilvus.exceptions import MilvusException

        end = time.monotonic() + _PATIENCE_SECONDS
        with _errors(self.uri):
            while True:
                try:
                    return request()
                except MilvusException as error:
                    if time.monotonic() > end or not re.search("not.*loaded|not available|rate limit", str(error)):
                        raise
                time.sleep(0.5)

    def _table(self, entities: list[dict[str, Any]], names: list[str]) -> pa.Table:
        import numpy as np
        import pyarrow as pa

        schema = detections_schema(self.info.dimension)
        columns = []
        for name in names:
            values = [entity[name] for entity in entities]
            if name == "time":
                values = [None if value == _UNKNOWN else value for value in values]
            if name == "embedding":
                flat = np.asarray(values, np.float32).reshape(-1)
                columns.append(pa.FixedSizeListArray.from_arrays(pa.array(flat), self.info.dimension))
            else:
                columns.append(pa.array(values, schema.field(name).type))
        return pa.Table.from_arrays(columns, schema=pa.schema([schema.field(name) for name in names]))

    def _hits(self, hits: list[dict[str, Any]], columns: list[str]) -> pa.Table:
        import pyarrow as pa

        table = self._table([hit["entity"] for hit in hits], columns)
        return table.append_column("similarity", pa.array([hit["distance"] for hit in hits], pa.float32()))


def to_expression(where: Filter) -> str:
    """Condition of a filter as Milvus's boolean expression, "" for an empty filter."""
    lists = {"camera": where.cameras, "source": where.sources, "tracklet": where.tracklets, "id": where.ids}
    conditions = [f"{name} in [{', '.join(map(_quoted, values))}]" for name, values in lists.items() if values]
    if where.since is not None:
        conditions.append(f"time >= {_ticks(where.since)}")
    if where.until is not None:
        conditions.append(f"time < {_ticks(where.until)}")
        if where.since is None:
            conditions.append(f"time > {_UNKNOWN}")
    if where.undated:
        conditions.append(f"time == {_UNKNOWN}")
    return " and ".join(conditions)


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _ticks(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)


def _connect(uri: str) -> tuple[Any, str]:
    """Client of the server and the name of the collection of a URI."""
    shown = without_password(uri)
    try:
        parts = urlsplit(uri)
        port = parts.port or (443 if parts.scheme == "https" else 19530)
    except ValueError as error:
        raise StoreError(f"{shown} is no URI of a server: {error}") from error
    name = parts.path.strip("/") or "person_search"
    if not re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name):
        raise StoreError(f"{shown}: {name} cannot name a collection, expected letters, digits and underscores")
    token = os.environ.get("MILVUS_TOKEN", "")
    if parts.username is not None:
        token = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    from pymilvus import MilvusClient

    # Errors are raised and shown in one line; pymilvus logs each with its traceback beside that.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    with _errors(shown):
        address = f"{parts.scheme}://{parts.hostname}:{port}"
        return MilvusClient(uri=address, token=token, timeout=_CONNECT_SECONDS), name


def _create(client: Any, name: str, schema: Any, index: Any) -> None:
    """Makes a collection, its index included, and has it loaded; one that is there already stays as it is."""
    client.create_collection(name, schema=schema, index_params=index, consistency_level=_CONSISTENCY)


def _index(client: Any, kind: str, field: str = "embedding") -> Any:
    index = client.prepare_index_params()
    index.add_index(field, index_type=kind, metric_type="IP", params={"nlist": _LISTS} if kind == "IVF_FLAT" else {})
    return index


def _detections_collection(client: Any, info: StoreInfo) -> tuple[Any, Any]:
    from pymilvus import DataType

    description = info_text(info)
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False, description=description)
    schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
    schema.add_field("source", DataType.VARCHAR, max_length=8192)
    schema.add_field("camera", DataType.VARCHAR, max_length=1024)
    schema.add_field("time", DataType.INT64)
    schema.add_field("offset", DataType.DOUBLE)
    schema.add_field("frame", DataType.INT64)
    for name in ("x0", "y0", "x1", "y1"):
        schema.add_field(name, DataType.FLOAT)
    for name in ("width", "height"):
        schema.add_field(name, DataType.INT32)
    schema.add_field("score", DataType.FLOAT)
    schema.add_field("tracklet", DataType.VARCHAR, max_length=64)
    schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=info.dimension)
    return schema, _index(client, "FLAT")


def _notes_collection(client: Any) -> tuple[Any, Any]:
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("key", DataType.VARCHAR, max_length=256, is_primary=True)
    schema.add_field("value", DataType.VARCHAR, max_length=65_535)
    schema.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # Milvus has no collection without a vector
    return schema, _index(client, "FLAT", "nothing")


@contextmanager
def _errors(uri: str) -> Iterator[None]:
    """Turns what pymilvus raises into one line that names the store."""
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except StoreError:
        raise
    except MilvusException as error:
        text = f"{error.message or error}"
        if re.search("connecting|unavailable|Deadline|timeout", text, re.IGNORECASE):
            text = "the Milvus server does not answer: check host, port and whether it runs"
        elif re.search("auth|permission|Unauthenticated", text, re.IGNORECASE):
            text = "the server refuses the user or password: give user:password@ in the URI or set MILVUS_TOKEN"
        elif re.search("disk|quota|memory", text, re.IGNORECASE):
            text = f"the server is out of space or memory: {one_line(Exception(text))}"
        raise StoreError(f"{uri}: {one_line(Exception(text))}") from error
