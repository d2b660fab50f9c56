"""Application that serves the page and its API."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ... import __version__
from ...errors import PersonSearchError
from ..maintenance import apply_retention
from ..sources import read_frame
from ..store import Store
from . import api
from .answers import Answers
from .desk import Desk
from .footage import Footage, ReadFrame
from .guard import Guard
from .players import ClipMaker
from .settings import ServeSettings
from .uploads import RequestError, Shelf

if TYPE_CHECKING:
    from ..searcher import PersonSearcher

_HERE = Path(__file__).parent
_RETENTION_SECONDS = 3600.0


def create_app(
    store: Store,
    searcher: PersonSearcher | None = None,
    settings: ServeSettings | None = None,
    *,
    reader: ReadFrame | None = None,
) -> FastAPI:
    """Application for a store.

    Args:
        store: store of detections.
        searcher: model that made the store; without it only indexed persons can be searched for.
        settings: access and limits.
        reader: reads the frame of a detection, `sources.read_frame` of the store by default.
    """
    settings = settings or ServeSettings()
    footage = Footage(store, reader or partial(read_frame, store), settings.max_cache_bytes)
    shelf = Shelf(settings.max_shelf_bytes)
    clips = ClipMaker()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        keeping = asyncio.create_task(_keep_retention(app.state.desk))
        yield
        keeping.cancel()
        clips.close()

    app = FastAPI(
        title="Person search",
        version=__version__,
        summary="Find a person in indexed footage",
        # The interactive pages load scripts from elsewhere; the document itself is enough.
        docs_url=None,
        redoc_url=None,
        openapi_url="/api/openapi.json",
        # Whom one searches for is nobody else's business, whatever the environment's variables say.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        lifespan=lifespan,
    )
    pages = Environment(
        loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    app.state.desk = Desk(settings, store, footage, Answers(store, footage, searcher, shelf), shelf, clips)
    app.include_router(api.router)
    app.mount("/static", StaticFiles(directory=_HERE / "static"))
    _add_pages(app, pages, settings)
    _add_errors(app)
    app.add_middleware(Guard, settings=settings)
    return app


async def _keep_retention(desk: Desk) -> None:
    """Deletes what is older than the store keeps it, at the start and every hour."""
    while True:
        try:
            if await run_in_threadpool(apply_retention, desk.store):
                desk.forget_copies()
        except PersonSearchError as error:
            print(f"what is too old could not be deleted: {error}", file=sys.stderr)
        await asyncio.sleep(_RETENTION_SECONDS)


def _add_pages(app: FastAPI, pages: Environment, settings: ServeSettings) -> None:
    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse(pages.get_template("page.html").render(version=__version__))

    @app.get("/login", include_in_schema=False)
    def login() -> HTMLResponse:
        return HTMLResponse(pages.get_template("login.html").render(needed=settings.token is not None))


def _add_errors(app: FastAPI) -> None:
    """Makes every error one line of JSON."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> JSONResponse:
        return _error(error.status, str(error))

    @app.exception_handler(PersonSearchError)
    async def failed(request: Request, error: PersonSearchError) -> JSONResponse:
        return _error(500, str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return _error(422, "; ".join(_complaint(one["loc"], one["msg"]) for one in error.errors()[:3]))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, status_code=error.status_code, headers=error.headers)


def _complaint(place: tuple[str | int, ...], text: str) -> str:
    where = ".".join(str(part) for part in place[1:]) or str(place[0])
    return f"{where}: {text[:1].lower()}{text[1:]}"


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": " ".join(text.split())}, status_code=status)
