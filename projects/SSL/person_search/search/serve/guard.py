"""Access to the server: which requests are let through, and the headers that every answer bears."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .settings import ServeSettings

UPLOAD_PATH = "/api/pictures"
_OPEN_PATHS = ("/login", "/static/")  # nothing of the footage
_SAFE_METHODS = ("GET", "HEAD")
_MULTIPART_SLACK = 16_384  # the wrapping of a form around its file

_HEADERS = {
    # Without 'unsafe-inline': a name that slipped through as markup still could not run.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "media-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Pictures of people do not belong into a browser's cache on disk.
    "Cache-Control": "no-store",
}


def cookie_name(token: str) -> str:
    """Name of the cookie for a token: browsers share cookies between the servers of one address."""
    return f"person_search_{hashlib.sha256(token.encode()).hexdigest()[:8]}"


def session_value(token: str) -> str:
    """Content of the cookie of somebody who knows the token; the token cannot be read from it."""
    return hmac.new(token.encode(), b"person-search session", hashlib.sha256).hexdigest()


def same_token(given: str, expected: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode(), expected.encode())


class Guard:
    """Middleware that refuses foreign hosts, foreign pages, unauthorized users and oversized bodies."""

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = Headers(scope=scope)
        limit = self._body_limit(scope["path"])
        refusal = self._refusal(scope, headers, limit)
        answer = self._app if refusal is None else refusal
        await answer(scope, _limited(receive, limit), _with_headers(send))

    def _body_limit(self, path: str) -> int:
        if path == UPLOAD_PATH:
            return self._settings.max_upload_bytes + _MULTIPART_SLACK
        return self._settings.max_body_bytes

    def _refusal(self, scope: Scope, headers: Headers, limit: int) -> Response | None:
        """The answer to a request that goes no further, None for one that may pass."""
        if not self._known_host(headers.get("host", "")):
            return _error(421, "this name is not one of the server's; add it with --allow-host NAME")
        if not _own_page(scope["method"], headers):
            return _error(403, "requests from other sites' pages are refused")
        if not self._allowed(scope["path"], headers):
            if scope["path"] == "/":
                return RedirectResponse("/login", status_code=303)
            return _error(401, "a token is needed: sign in at /login or send 'Authorization: Bearer TOKEN'")
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or int(length) > limit:
            return _error(413, f"the request is larger than {limit:,} bytes")
        return None

    def _known_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name.rstrip(".") in self._settings.hosts:
            return True
        return self._settings.any_address and _is_address(name)

    def _allowed(self, path: str, headers: Headers) -> bool:
        token = self._settings.token
        if token is None or path == _OPEN_PATHS[0] or path.startswith(_OPEN_PATHS[1]):
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and same_token(given.strip(), token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(cookie_name(token))
        except CookieError:
            return False
        return cookie is not None and same_token(cookie.value, session_value(token))


def _own_page(method: str, headers: Headers) -> bool:
    """Whether no other site's page sent a request; programs that are no browsers send neither header."""
    if method in _SAFE_METHODS and headers.get("sec-fetch-mode") == "navigate":
        return True  # a link to the page may be followed from anywhere
    if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    if origin is None:
        return True
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and parts.netloc.lower() == headers.get("host", "").lower()


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status_code=status)


def _limited(receive: Receive, limit: int) -> Receive:
    """A body that ends with an error behind `limit` bytes, whatever its sender announced."""
    seen = 0

    async def receive_some() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise HTTPException(413, f"the request is larger than {limit:,} bytes")
        return message

    return receive_some


def _with_headers(send: Send) -> Send:
    async def send_with_headers(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return send_with_headers
