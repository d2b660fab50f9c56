"""What a store of detections is: its rows, its filters, what it remembers, and how one is opened by its URI."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import TYPE_CHECKING, Literal, Protocol
from urllib.parse import parse_qsl, urlencode

from ..errors import PersonSearchError

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

EXACT_BELOW = 500_000  # rows; a store with fewer is searched exactly, a larger one through an index
Kind = Literal["photo", "video", "stream"]
"""Kind of a source."""
_SECRETS = re.compile(r"pass|pwd|token|secret|auth|api_?key|signature", re.IGNORECASE)


class StoreError(PersonSearchError):
    """A store is missing, unreachable, of another model or full; the message names its URI."""


@dataclass(frozen=True)
class StoreInfo:
    """Model that a store's embeddings come from; a store holds one model's and refuses every other's.

    Attributes:
        model: Name for people, such as that of the configuration.
        weights_digest: SHA-256 of the weights, hexadecimal.
        dimension: Length of an embedding.
        format: Version of the rows' schema.
    """

    model: str
    weights_digest: str
    dimension: int
    format: int = 1


@dataclass(frozen=True)
class Filter:
    """Conditions on detections, all of which must hold; an empty one holds for every detection.

    Attributes:
        cameras: Names of cameras, one of which a detection must have.
        since: Earliest time, with a time zone. A detection of unknown time does not meet it.
        until: Time, with a time zone, before which a detection must lie. Nor does an unknown time meet this.
        sources: Sources, one of which a detection must have.
        tracklets: Tracklets, one of which a detection must belong to.
        ids: Ids of detections.
        undated: Whether only detections of unknown time meet the filter.
    """

    cameras: tuple[str, ...] = ()
    since: datetime | None = None
    until: datetime | None = None
    sources: tuple[str, ...] = ()
    tracklets: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    undated: bool = False

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            time = getattr(self, name)
            if time is not None and time.tzinfo is None:
                raise StoreError(f"Filter.{name} is {time.isoformat()}, without a time zone: say which, such as +00:00")
        for name in ("cameras", "sources", "tracklets", "ids"):
            if isinstance(getattr(self, name), str):
                raise StoreError(f"Filter.{name} is one string, expected a tuple of strings")

    @property
    def empty(self) -> bool:
        """Whether every detection meets the filter."""
        return self == EVERYTHING


EVERYTHING = Filter()


@dataclass(frozen=True)
class SourceState:
    """How far a source has been indexed.

    Attributes:
        source: Absolute path, or URL without its password.
        camera: Name of the camera.
        kind: "photo", "video" or "stream".
        fingerprint: What tells whether the file has changed since.
        start: Time of the first frame, where known.
        frames_done: Frames whose detections are in the store.
        seconds_done: Seconds of the source that they cover.
        finished: Whether there is nothing left to index.
        error: Why the source could not be read to its end, or "".
        fps: Frames a second, 0 where it has none.
        duration: Length in seconds, 0 where unknown.
    """

    source: str
    camera: str
    kind: Kind
    fingerprint: str
    start: datetime | None
    frames_done: int
    seconds_done: float
    finished: bool
    error: str = ""
    fps: float = 0.0
    duration: float = 0.0


class Store(Protocol):
    """Detections of one model with their embeddings, and how far each source has been indexed.

    Every method is safe while other threads and processes read and write the same store.
    """

    uri: str
    info: StoreInfo
    exact_below: int  # `EXACT_BELOW`

    def upsert(self, rows: pa.Table) -> None:
        """Adds rows of the schema `detections_schema`; a row whose id is there already is replaced."""

    def search(
        self, embeddings: np.ndarray, *, where: Filter = EVERYTHING, limit: int = 100, with_embeddings: bool = False
    ) -> list[pa.Table]:
        """Detections most similar to each of the embeddings (q, d): a table a query, best first.

        The tables have the columns of the schema, the embedding only if asked for, and `similarity`, the cosine.
        """

    def scan(self, where: Filter = EVERYTHING, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Detections in batches, each ordered by id, read while one goes through them; all columns if None."""

    def count(self, where: Filter = EVERYTHING) -> int:
        """Number of detections that meet a filter."""

    def delete(self, where: Filter) -> int:
        """Number of detections removed; an empty filter is refused. `maintenance.forget` also frees their bytes."""

    def sources(self) -> list[SourceState]:
        """States of all sources, by source and camera."""

    def set_source(self, state: SourceState) -> None:
        """Remembers the state of a source, in place of an older one of the same source and camera."""

    def set_sources(self, states: Sequence[SourceState]) -> None:
        """Remembers the states of many sources in one write."""

    def sources_written(self) -> dict[tuple[str, str], datetime]:
        """Time at which the state of each source and camera was last written."""

    def remove_source(self, source: str, camera: str) -> None:
        """Forgets the state of a source; its detections stay."""

    def setting(self, name: str) -> str | None:
        """Value of a setting that the store remembers, None if it was never set."""

    def set_setting(self, name: str, value: str | None) -> None:
        """Remembers a setting; None takes it back."""

    def optimize(self) -> None:
        """Brings the files and indices into the state in which searches are fast."""

    def purge(self) -> None:
        """Frees the bytes of everything that was deleted or replaced."""

    def close(self) -> None:
        """Ends the connection."""


def detections_schema(dimension: int) -> pa.Schema:
    """Schema of the detections: one row each, the embedding of unit length and the given dimension.

    `time` is null where it is unknown. `offset` counts seconds from the start of the source, the box is in pixels of
    the upright picture of `width` x `height` pixels.
    """
    import pyarrow as pa

    def field(name: str, kind: pa.DataType) -> pa.Field:
        return pa.field(name, kind, nullable=False)

    return pa.schema(
        [
            field("id", pa.string()),
            field("source", pa.string()),
            field("camera", pa.string()),
            pa.field("time", pa.timestamp("us", tz="UTC")),
            field("offset", pa.float64()),
            field("frame", pa.int64()),
            *(field(name, pa.float32()) for name in ("x0", "y0", "x1", "y1")),
            *(field(name, pa.int32()) for name in ("width", "height")),
            field("score", pa.float32()),
            field("tracklet", pa.string()),
            field("embedding", pa.list_(pa.float32(), dimension)),
        ]
    )


def source_key(source: str, camera: str) -> str:
    """Short digest of a source and its camera, which the ids of its detections and tracklets begin with."""
    return hashlib.sha1(f"{without_password(source)}|{camera}".encode()).hexdigest()[:16]


def detection_id(source: str, camera: str, frame: int, box: int) -> str:
    """Id of a detection: the same for the same box of the same frame whenever it is indexed."""
    return f"{source_key(source, camera)}:{frame:010d}:{box:04d}"


def tracklet_id(source: str, camera: str, number: int) -> str:
    """Id of the tracklet of a number of a source."""
    return f"{source_key(source, camera)}:{number:06d}"


def without_password(url: str) -> str:
    """URL without user, password and secret parameters; anything but a URL as it is."""
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    address, mark, query = rest.partition("?")
    first, at, after = address.rpartition("@")
    # A password may hold a slash that its writer forgot to escape; a path may hold an @ that belongs to it.
    if at and (":" in first.partition("/")[0] or "/" not in first):
        address = after
    if _SECRETS.search(query):
        query = urlencode([pair for pair in parse_qsl(query, keep_blank_values=True) if not _SECRETS.search(pair[0])])
        mark = "?" if query else ""
    return f"{scheme}://{address}{mark}{query}"


def open_store(uri: str, *, info: StoreInfo | None = None, create: bool = False) -> Store:
    """Store behind a URI: LanceDB for a folder or `s3://bucket/prefix`, Milvus for `http(s)://host:port/collection`.

    Args:
        uri: A password in it is used and never remembered.
        info: Model whose embeddings will be written or asked with; an existing store of another model is refused.
        create: Whether to make a store that does not exist; needs `info`.

    Raises:
        StoreError: there is no store, it cannot be reached, or it is of another model.
    """
    if create and info is None:
        raise StoreError(f"{without_password(uri)} cannot be created without the model whose embeddings it will hold")
    if uri.startswith(("http://", "https://")):
        from .milvus import MilvusStore

        return MilvusStore.open(uri, info=info, create=create)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]+)://", uri)
    if scheme and scheme[1] not in ("s3", "file"):
        raise StoreError(f"{without_password(uri)} is not a store: expected a folder, s3://, http:// or https://")
    from .lance import LanceStore

    return LanceStore.open(uri, info=info, create=create)


def check_info(uri: str, stored: StoreInfo, wanted: StoreInfo | None) -> None:
    """Refuses a model that a store does not hold.

    Raises:
        StoreError: the store is of another model; the message says what differs.
    """
    current = StoreInfo("", "", 0).format
    if stored.format != current:
        raise StoreError(f"{uri} has rows of format {stored.format}, this version of person_search reads {current}")
    if wanted is None or wanted == stored:
        return
    names = [f.name for f in fields(StoreInfo) if getattr(stored, f.name) != getattr(wanted, f.name)]
    differences = ", ".join(f"{n} {_short(getattr(stored, n))} instead of {_short(getattr(wanted, n))}" for n in names)
    raise StoreError(
        f"{uri} holds embeddings of another model ({differences}): use the weights it was indexed with, or index into "
        "a new store"
    )


def info_text(info: StoreInfo) -> str:
    """JSON that a store keeps of its model."""
    return json.dumps(vars(info), sort_keys=True)


def read_info(uri: str, text: str | bytes | None) -> StoreInfo:
    """Model of a store from its JSON, see `info_text`.

    Raises:
        StoreError: it is none, or there is none.
    """
    try:
        return StoreInfo(**json.loads(text or ""))
    except (TypeError, ValueError) as error:
        raise StoreError(f"{uri} is not a store of person_search: its table of detections names no model") from error


def check_rows(uri: str, rows: pa.Table, dimension: int) -> pa.Table:
    """Rows in the order and types of the schema, sources without passwords.

    Raises:
        StoreError: a column is missing, of another type or null, an id occurs twice, or an embedding has another
            dimension or another length than 1.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = detections_schema(dimension)
    missing = [name for name in schema.names if name not in rows.column_names]
    if missing:
        raise StoreError(f"{uri}: the rows lack the columns {', '.join(missing)}")
    found = rows.schema.field("embedding").type
    if pa.types.is_fixed_size_list(found) and found.list_size != dimension:
        raise StoreError(f"{uri} holds embeddings of dimension {dimension}, the rows have {found.list_size}")
    try:
        rows = rows.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise StoreError(f"{uri}: the rows do not fit the schema: {one_line(error)}") from error
    if len(pc.unique(rows["id"])) != len(rows):
        raise StoreError(f"{uri}: an id occurs twice in the rows of one write")
    if len(rows):
        norms = np.linalg.norm(embeddings_of(rows), axis=1)
        if not np.all(np.abs(norms - 1) < 1e-3):  # also refuses NaN
            worst = norms[np.abs(norms - 1).argmax()]
            raise StoreError(f"{uri}: embeddings must have length 1, one of the rows has length {worst:.4g}")
    sources = rows["source"].combine_chunks().dictionary_encode()
    clean = pa.array([without_password(source) for source in sources.dictionary.to_pylist()], pa.string())
    column = clean.take(sources.indices)
    return rows.set_column(schema.get_field_index("source"), schema.field("source"), column)


def check_queries(uri: str, embeddings: np.ndarray, dimension: int) -> np.ndarray:
    """Queries (q, d) as float32 of unit length.

    Raises:
        StoreError: another shape, another dimension, or a query without a direction.
    """
    import numpy as np

    queries = np.atleast_2d(np.asarray(embeddings, dtype=np.float32))
    if queries.ndim != 2 or queries.shape[1] != dimension:
        raise StoreError(f"{uri} holds embeddings of dimension {dimension}, the query has shape {queries.shape}")
    norms = np.linalg.norm(queries, axis=1, keepdims=True)
    if not np.all(np.isfinite(norms)) or (norms == 0).any():
        raise StoreError(f"{uri}: a query holds no direction: it is zero or not finite")
    return queries / norms


def check_columns(uri: str, columns: Sequence[str] | None, dimension: int) -> list[str]:
    """Names of the columns asked for, all of them for None.

    Raises:
        StoreError: there is no such column.
    """
    names = detections_schema(dimension).names
    if columns is None:
        return names
    unknown = [name for name in columns if name not in names]
    if unknown or not columns:
        raise StoreError(f"{uri} has no column {', '.join(unknown) or 'without a name'}; it has {', '.join(names)}")
    return list(columns)


def hit_columns(dimension: int, with_embeddings: bool) -> list[str]:
    """Names of the columns that a search returns beside the similarity."""
    return [name for name in detections_schema(dimension).names if with_embeddings or name != "embedding"]


def check_deletable(uri: str, where: Filter) -> None:
    """Refuses the filter that every detection meets.

    Raises:
        StoreError: it is empty.
    """
    if where.empty:
        raise StoreError(f"{uri}: an empty filter would delete every detection; name a camera, time or person")


def check_limit(uri: str, limit: int, most: int | None = None) -> None:
    """Refuses a number of results that cannot be had.

    Raises:
        StoreError: it is below 1 or above what the store can return.
    """
    if limit < 1 or (most is not None and limit > most):
        raise StoreError(f"{uri}: {limit} results are asked for, expected 1 to {most or 'as many as there are'}")


def embeddings_of(rows: pa.Table | pa.RecordBatch) -> np.ndarray:
    """Embeddings (N, d) of a table or batch, float32."""
    import numpy as np
    import pyarrow as pa

    column = rows["embedding"]
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return np.asarray(column.flatten()).reshape(len(column), column.type.list_size)


def clean_state(state: SourceState) -> SourceState:
    """State whose source and error tell no password."""
    error = re.sub(r"\w+://\S+?(?=[:;,.]*(?:\s|$))", lambda match: without_password(match[0]), state.error)
    return replace(state, source=without_password(state.source), error=error)


def one_line(error: BaseException) -> str:
    """Message of a library's error as one short line without its backtrace."""
    text = re.split(r"\n|, /|\bBacktrace\b|\bLocation:", str(error).strip() or type(error).__name__)[0]
    return text[:300].rstrip(" ,:")


def _short(value: object) -> str:
    return f"{value[:12]}…" if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,}", value) else str(value)
