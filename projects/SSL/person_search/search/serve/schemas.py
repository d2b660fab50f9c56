"""Messages of the HTTP API."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from ..store import Kind

DetectionId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}:[0-9]{1,19}:[0-9]{1,10}$")]
TrackletId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}:[0-9:]{1,40}$")]
SourceId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
PictureId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{24}$")]
Box = Annotated[tuple[float, float, float, float], Field(description="x0, y0, x1, y1 in pixels of the picture")]
Verdict = Literal["likely", "uncertain", "unlikely"]
Mark = Literal["right", "wrong"]


class Message(BaseModel):
    """Base of all messages; an unknown key of a request is an error, not silence."""

    model_config = ConfigDict(extra="forbid")


class ErrorMessage(Message):
    """Answer to a request that failed."""

    error: str = Field(description="one line: what is wrong and what to do")


class Token(Message):
    """Proof that a visitor may ask."""

    token: str = Field(max_length=512)


class PersonFound(Message):
    """Person detected in a query picture."""

    box: Box
    score: float


class Picture(Message):
    """Uploaded query picture, upright; boxes refer to this width and height."""

    id: PictureId
    name: str
    width: int
    height: int
    persons: list[PersonFound] = Field(description="detected persons, best score first")


class PictureQuery(Message):
    """Person in an uploaded picture: one of the detected, or a box of one's own."""

    picture: PictureId
    person: int | None = Field(None, ge=0, description="position in the picture's `persons`")
    box: Box | None = None


class DetectionQuery(Message):
    """Person who is indexed already."""

    detection: DetectionId


class SearchRequest(Message):
    """Search for one person; several queries show the same person."""

    queries: list[PictureQuery | DetectionQuery] = Field(min_length=1, max_length=20)
    cameras: list[str] = Field([], max_length=1000, description="empty for all")
    since: AwareDatetime | None = Field(None, description="inclusive; leaves out footage without a known time")
    until: AwareDatetime | None = Field(None, description="exclusive; leaves out footage without a known time")
    top: int = Field(24, ge=1, le=200, description="number of appearances")
    rerank: bool = Field(False, description="k-reciprocal re-ranking")
    right: list[DetectionId] = Field([], max_length=100, description="best detections of appearances marked right")
    wrong: list[DetectionId] = Field([], max_length=100, description="best detections of appearances marked wrong")


class Source(Message):
    """File or stream that is indexed."""

    id: SourceId
    name: str = Field(description="file name, or address without path credentials")
    camera: str
    kind: Kind
    start: AwareDatetime | None
    duration: float = Field(description="seconds, 0 where unknown")
    finished: bool
    error: str


class SourcePage(Message):
    """Part of the list of sources."""

    total: int
    sources: list[Source]


class Best(Message):
    """Detection that an appearance is shown by."""

    id: DetectionId
    frame: int
    offset: float
    box: Box
    score: float
    width: int
    height: int


class Appearance(Message):
    """Person in view of one camera for a while."""

    tracklet: TrackletId
    camera: str
    source: Source
    start: AwareDatetime | None
    end: AwareDatetime | None
    start_offset: float = Field(description="seconds from the start of the source")
    end_offset: float
    similarity: float
    verdict: Verdict
    false_match_rate: float | None = Field(
        description="share of other people to expect among the appearances that are as similar or more; null where the "
        "store holds too few frames with several persons to tell"
    )
    detections: int
    best: Best
    mark: Mark | None
    is_query: bool = Field(description="whether one of the queries was taken from this appearance")


class QueryUsed(Message):
    """Query as it was searched for."""

    picture: PictureId | None
    detection: DetectionId | None
    box: Box


class Answer(Message):
    """Ranked appearances of a person."""

    id: str
    found: bool = Field(description="whether an appearance other than the queries' own is likely this person")
    statement: str = Field(description="the answer in a sentence")
    appearances: list[Appearance]
    queries: list[QueryUsed]
    searched: int = Field(description="number of detections that were compared")
    seconds: float


class ExportRequest(Message):
    """Form in which an answer is taken away."""

    format: Literal["jsonl", "csv", "html"]
    right: list[DetectionId] = Field([], max_length=200)
    wrong: list[DetectionId] = Field([], max_length=200)


class IndexedPerson(Message):
    """Detection of an indexed frame."""

    id: DetectionId
    tracklet: TrackletId
    box: Box
    score: float


class IndexedFrame(Message):
    """Frame with everybody who was detected there."""

    source: Source
    index: int = Field(description="position among the source's frames with persons")
    frames: int = Field(description="number of the source's frames with persons")
    frame: int
    offset: float
    time: AwareDatetime | None
    width: int
    height: int
    persons: list[IndexedPerson]


class TrackPoint(Message):
    """Place of a person at a moment."""

    id: DetectionId
    offset: float
    box: Box


class Track(Message):
    """Way of a person through the picture."""

    source: Source
    width: int
    height: int
    points: list[TrackPoint]


class Playback(Message):
    """How a source can be watched in a browser."""

    mode: Literal["video", "clip", "none"] = Field(
        description="video: the file itself; clip: only parts encoded anew; none: single frames at best"
    )
    reason: str


class Camera(Message):
    """Camera and what is known of its footage."""

    name: str
    sources: int
    detections: int
    sample: DetectionId | None = Field(description="some detection, whose frame shows what the camera sees")
    first: AwareDatetime | None
    last: AwareDatetime | None


class StoreSummary(Message):
    """Content of the store."""

    name: str
    model: str
    dimension: int
    detections: int
    cameras: list[Camera]
    sources: int
    unfinished: int = Field(description="sources that are not indexed to their end")
    damaged: int = Field(description="sources that could not be read")
    retention_days: int | None = Field(description="days for which detections are kept; null: forever")
    can_embed: bool = Field(description="whether pictures can be uploaded (the server has weights)")
    max_upload_bytes: int
    max_upload_pixels: int


class ForgetRequest(Message):
    """Selection to delete: exactly one of `before`, `cameras` and `tracklets`."""

    before: AwareDatetime | None = None
    cameras: list[str] = Field([], max_length=1000)
    tracklets: list[TrackletId] = Field([], max_length=1000)
    confirm: bool = Field(False, description="false counts only")


class Forgotten(Message):
    """What a deletion reaches."""

    matching: int
    deleted: int
