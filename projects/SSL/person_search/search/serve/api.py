"""Routes of the API.

All but the sign-in are plain functions, which FastAPI runs on threads: a long search or a slow disk does not keep the
server from answering others.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response, UploadFile
from fastapi.responses import FileResponse

from ..maintenance import forget, forget_person
from ..store import Filter, source_key
from . import schemas
from .answers import source_message
from .desk import Desk, TheDesk
from .export import MEDIA_TYPES, export_answer
from .footage import box_of
from .guard import cookie_name, same_token, session_value
from .players import played_type
from .summary import summarize
from .uploads import RequestError, ShelvedPicture, decode_picture, encode_jpeg

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorMessage, "description": text}
    for status, text in (
        (401, "a token is needed"),
        (403, "sent by another site's page"),
        (404, "not in the store (any more)"),
        (413, "too large"),
        (421, "sent to a name that is not the server's"),
        (422, "does not fit"),
        (500, "the store cannot answer"),
    )
}
_WRONG_TOKEN_SECONDS = 0.5
_SECONDS_AROUND = 2.0

router = APIRouter(responses=_ERRORS)


def _file_of(media_type: str) -> dict[str, Any]:
    """Description of a route that answers with a file."""
    return {
        "response_class": Response,
        "responses": {200: {"content": {media_type: {"schema": {"type": "string", "format": "binary"}}}}},
    }


@router.post("/login", status_code=204)
async def sign_in(token: schemas.Token, request: Request, desk: TheDesk) -> Response:
    """Signs a browser in: the answer sets a cookie."""
    expected = desk.settings.token
    if expected is not None and not same_token(token.token, expected):
        await asyncio.sleep(_WRONG_TOKEN_SECONDS)
        raise RequestError("this is not the token", 401)
    response = Response(status_code=204)
    if expected is not None:
        secure = request.url.scheme == "https"
        response.set_cookie(
            cookie_name(expected), session_value(expected), httponly=True, samesite="strict", secure=secure
        )
    return response


@router.get("/api/store")
def store(desk: TheDesk) -> schemas.StoreSummary:
    """Content of the store, its cameras, and the limits of this server."""
    return summarize(desk)


@router.get("/api/sources")
def sources(
    desk: TheDesk,
    camera: Annotated[str | None, Query(max_length=1000)] = None,
    skip: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> schemas.SourcePage:
    """Sources of all cameras or of one."""
    states = [state for state in desk.footage.sources().values() if camera is None or state.camera == camera]
    states.sort(key=lambda state: (state.camera, state.start is None, state.start, state.source))
    return schemas.SourcePage(total=len(states), sources=[source_message(s) for s in states[skip : skip + limit]])


@router.get("/api/sources/{source}/frames")
def indexed_frame(
    desk: TheDesk,
    source: schemas.SourceId,
    index: Annotated[int | None, Query(description="position among the frames with persons")] = None,
    at: Annotated[float | None, Query(description="seconds; the nearest frame with persons")] = None,
    frame: Annotated[int | None, Query(description="number of the frame; the nearest with persons")] = None,
) -> schemas.IndexedFrame:
    """Frame of a source with everybody who was detected there; the first if nothing else is asked for."""
    if at is not None:
        index = desk.footage.index_at(source, at)
    elif frame is not None:
        index = desk.footage.index_of(source, frame)
    return _frame_message(desk, source, index or 0)


@router.get("/api/sources/{source}/playback")
def playback(desk: TheDesk, source: schemas.SourceId) -> schemas.Playback:
    """How a source can be watched."""
    state = desk.footage.source(source)
    if state.kind != "video":
        kind = "a live stream is not recorded" if state.kind == "stream" else "this is a photo"
        return schemas.Playback(mode="none", reason=kind)
    try:
        played = played_type(state.source)
    except RequestError as error:
        return schemas.Playback(mode="none", reason=str(error))
    if played is None:
        return schemas.Playback(mode="clip", reason="browsers do not play this format: parts are encoded anew")
    return schemas.Playback(mode="video", reason="")


@router.get("/api/sources/{source}/video", **_file_of("video/mp4"))
def video(desk: TheDesk, source: schemas.SourceId) -> FileResponse:
    """Indexed video as it lies on the disk, whole or by ranges of bytes; only formats that browsers play."""
    state = desk.footage.source(source)
    media_type = played_type(state.source) if state.kind == "video" else None
    if media_type is None:
        raise RequestError("this source is no video that browsers play; ask for a clip", 415)
    return FileResponse(state.source, media_type=media_type)


@router.get("/api/sources/{source}/clip", **_file_of("video/mp4"))
def clip(
    desk: TheDesk,
    source: schemas.SourceId,
    start: Annotated[float, Query(ge=0, le=1e7, allow_inf_nan=False)],
    end: Annotated[float, Query(gt=0, le=1e7, allow_inf_nan=False)],
) -> FileResponse:
    """Part of an indexed video, encoded anew; cut off where it is longer than a minute."""
    state = desk.footage.source(source)
    if state.kind != "video":
        raise RequestError("this source is no video", 415)
    if end <= start:
        raise RequestError("end: has to be later than start")
    end = min(end, start + desk.settings.max_clip_seconds)
    file, media_type = desk.clips.clip(state.source, start, end)
    return FileResponse(file, media_type=media_type)


@router.post("/api/pictures", status_code=201)
def upload(desk: TheDesk, file: UploadFile) -> schemas.Picture:
    """Takes a query picture and says who was detected there."""
    if not desk.answers.can_embed:
        raise RequestError("the server runs without weights: pick a person from the footage, or add --weights", 409)
    limit = desk.settings.max_upload_bytes
    data = file.file.read(limit + 1)
    if len(data) > limit:
        raise RequestError(f"the picture is larger than {limit / 1e6:.0f} MB; send a smaller one", 413)
    image = decode_picture(data, desk.settings.max_upload_pixels)
    return _picture_message(desk.answers.add_picture(file.filename or "", image))


@router.get("/api/pictures/{picture}", **_file_of("image/jpeg"))
def picture(desk: TheDesk, picture: schemas.PictureId) -> Response:
    """Query picture, upright."""
    return Response(encode_jpeg(desk.shelf.get(picture).image), media_type="image/jpeg")


@router.delete("/api/pictures", status_code=204)
def drop_pictures(desk: TheDesk) -> Response:
    """Forgets all query pictures."""
    desk.shelf.clear()
    return Response(status_code=204)


@router.post("/api/search")
def search(desk: TheDesk, request: schemas.SearchRequest) -> schemas.Answer:
    """Ranked appearances of the person of the queries."""
    return desk.answers.search(request)


@router.post("/api/answers/{answer}/export", **_file_of("application/octet-stream"))
def export(desk: TheDesk, answer: schemas.PictureId, request: schemas.ExportRequest) -> Response:
    """Answer as a file: JSON lines, CSV, or an HTML sheet with pictures."""
    given = desk.answers.answer(answer)
    desk.footage.rows([appearance.best.id for appearance in given.appearances])  # nobody may be forgotten meanwhile
    content = export_answer(given, request, desk.footage.crop)
    name = f'attachment; filename="appearances.{request.format}"'
    return Response(content, media_type=MEDIA_TYPES[request.format], headers={"Content-Disposition": name})


@router.get("/api/detections/{detection}/crop", **_file_of("image/jpeg"))
def crop(desk: TheDesk, detection: schemas.DetectionId) -> Response:
    """Picture of a detected person."""
    return Response(desk.footage.crop(detection), media_type="image/jpeg")


@router.get("/api/detections/{detection}/frame", **_file_of("image/jpeg"))
def whole_frame(desk: TheDesk, detection: schemas.DetectionId) -> Response:
    """Whole frame of a detection."""
    return Response(desk.footage.frame(detection), media_type="image/jpeg")


@router.get("/api/detections/{detection}/persons")
def persons(desk: TheDesk, detection: schemas.DetectionId) -> schemas.IndexedFrame:
    """Frame of a detection with everybody who was detected there."""
    (row,) = desk.footage.rows([detection])
    source = source_key(row["source"], row["camera"])
    return _frame_message(desk, source, desk.footage.index_of(source, row["frame"]))


@router.get("/api/tracklets/{tracklet}")
def track(desk: TheDesk, tracklet: schemas.TrackletId) -> schemas.Track:
    """Way of a person through the picture."""
    rows = desk.footage.track(tracklet)
    points = [schemas.TrackPoint(id=row["id"], offset=row["offset"], box=box_of(row)) for row in rows]
    source = source_message(desk.footage.source_of(rows[0]))
    return schemas.Track(source=source, width=rows[0]["width"], height=rows[0]["height"], points=points)


@router.post("/api/forget")
def forget_some(desk: TheDesk, request: schemas.ForgetRequest) -> schemas.Forgotten:
    """Counts, or with `confirm` deletes, everything before a time, of cameras, or of tracklets."""
    given = [name for name in ("before", "cameras", "tracklets") if getattr(request, name)]
    if len(given) != 1:
        raise RequestError("give exactly one of before, cameras and tracklets")
    where = Filter(cameras=tuple(request.cameras), until=request.before, tracklets=tuple(request.tracklets))
    matching = desk.store.count(where)
    deleted = 0
    if request.confirm and matching:
        person = request.tracklets
        deleted = forget_person(desk.store, person) if person else forget(desk.store, where)
        desk.forget_copies()
    return schemas.Forgotten(matching=matching, deleted=deleted)


def _picture_message(picture: ShelvedPicture) -> schemas.Picture:
    height, width = picture.image.shape[:2]
    found = [
        schemas.PersonFound(box=(float(box[0]), float(box[1]), float(box[2]), float(box[3])), score=float(score))
        for box, score in zip(picture.boxes, picture.scores, strict=True)
    ]
    return schemas.Picture(id=picture.id, name=picture.name, width=width, height=height, persons=found)


def _frame_message(desk: Desk, source: str, index: int) -> schemas.IndexedFrame:
    rows = desk.footage.persons(source, index)
    timeline = desk.footage.timeline(source)
    first = rows[0]
    return schemas.IndexedFrame(
        source=source_message(desk.footage.source(source)),
        index=min(max(index, 0), len(timeline.ids) - 1),
        frames=len(timeline.ids),
        frame=first["frame"],
        offset=first["offset"],
        time=first["time"],
        width=first["width"],
        height=first["height"],
        persons=[
            schemas.IndexedPerson(id=row["id"], tracklet=row["tracklet"], box=box_of(row), score=row["score"])
            for row in rows
        ],
    )
