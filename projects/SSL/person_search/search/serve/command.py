"""The command `person-search serve`: its arguments, and the server's life."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from ...errors import PersonSearchError
from .settings import MIN_TOKEN_LENGTH, ServeSettings, allowed_hosts, is_loopback

TOKEN_VARIABLE = "PERSON_SEARCH_TOKEN"
_WAIT_SECONDS = 3


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `person-search serve`."""
    parser.add_argument("--store", required=True, metavar="URI", help="store that `person-search index` made")
    parser.add_argument(
        "--weights", type=Path, help="weights that the store was made with; without them only indexed persons are found"
    )
    parser.add_argument("--config-file", type=Path, help="configuration of weights that do not carry their own")
    parser.add_argument("--device", help="device of the network, such as cpu or cuda (default: the best there is)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=int, default=8765, help="port to listen at, 0 for a free one (%(default)s)")
    parser.add_argument(
        "--token-file",
        type=Path,
        help=f"file with the token that visitors need, at least {MIN_TOKEN_LENGTH} characters; another address than "
        f"this machine's always needs one: from here, from ${TOKEN_VARIABLE}, or made up and printed",
    )
    parser.add_argument("--allow-host", action="append", default=[], metavar="NAME", help="further name of the server")
    parser.add_argument("--certificate", type=Path, help="TLS certificate (PEM), for https")
    parser.add_argument("--certificate-key", type=Path, help="private key of the certificate (PEM)")
    parser.add_argument("--max-upload", type=float, default=25, metavar="MB", help="largest picture (%(default)s MB)")
    parser.add_argument("--open", action="store_true", help="open the page in the browser")


def run_serve(args: argparse.Namespace, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serves the page until it is interrupted.

    Args:
        args: arguments of `add_serve_arguments`.
        ready: called with the address of the page once it answers.

    Raises:
        PersonSearchError: the store, the weights, the address, the token or the certificate cannot be used.
    """
    token, made_up = _token(args.token_file, args.host)
    _check_certificate(args)
    settings = ServeSettings(
        token=token,
        hosts=allowed_hosts(args.host, args.allow_host),
        any_address=not is_loopback(args.host),
        max_upload_bytes=_upload_bytes(args.max_upload),
    )
    listener = _listen(args.host, args.port)  # first: a port that is taken is known before the network is loaded
    try:
        _serve(args, settings, listener, ready, token if made_up else None)
    finally:
        listener.close()


def _serve(
    args: argparse.Namespace,
    settings: ServeSettings,
    listener: socket.socket,
    ready: Callable[[str], None],
    shown_token: str | None,
) -> None:
    try:
        import uvicorn

        from .app import create_app
    except ImportError as error:
        raise PersonSearchError(
            f"the page needs the package {error.name}: pip install 'person_search_ssl[search]'"
        ) from error
    from ..searcher import PersonSearcher
    from ..store import open_store

    searcher = PersonSearcher(args.config_file, args.weights, device=args.device) if args.weights else None
    store = open_store(args.store, info=searcher.info if searcher else None)
    address = _address(args, listener)
    shown = address if shown_token is None else f"{address}login#{shown_token}"

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                print(f"Person search is at {shown} (Ctrl+C ends it)", file=sys.stderr, flush=True)
                ready(address)
                if args.open:
                    webbrowser.open(shown)

    config = uvicorn.Config(
        create_app(store, searcher, settings),
        log_level="warning",
        server_header=False,
        proxy_headers=False,
        limit_concurrency=100,
        timeout_graceful_shutdown=_WAIT_SECONDS,
        ssl_certfile=args.certificate,
        ssl_keyfile=args.certificate_key,
    )
    try:
        Server(config).run(sockets=[listener])
    finally:
        store.close()


def _token(file: Path | None, host: str) -> tuple[str | None, bool]:
    """The token that visitors need, None if none, and whether it was made up here."""
    if file is not None:
        try:
            token = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PersonSearchError(f"--token-file {file}: cannot be read ({error})") from error
        return _long_enough(token, f"--token-file {file}"), False
    if os.environ.get(TOKEN_VARIABLE):
        return _long_enough(os.environ[TOKEN_VARIABLE].strip(), f"${TOKEN_VARIABLE}"), False
    if is_loopback(host):
        return None, False
    return secrets.token_urlsafe(24), True


def _long_enough(token: str, where: str) -> str:
    if len(token) < MIN_TOKEN_LENGTH:
        raise PersonSearchError(
            f"{where} holds {len(token)} characters; a token has {MIN_TOKEN_LENGTH} at least, for example "
            f"{secrets.token_urlsafe(24)}"
        )
    return token


def _check_certificate(args: argparse.Namespace) -> None:
    if bool(args.certificate) != bool(args.certificate_key):
        raise PersonSearchError("--certificate and --certificate-key belong together: give both or none")
    for name in ("certificate", "certificate_key"):
        file = getattr(args, name)
        if file is not None and not file.is_file():
            raise PersonSearchError(f"--{name.replace('_', '-')} {file}: there is no such file")


def _upload_bytes(megabytes: float) -> int:
    if not 0 < megabytes <= 1000:
        raise PersonSearchError(f"--max-upload {megabytes:g}: expected megabytes above 0 and up to 1000")
    return int(megabytes * 1e6)


def _listen(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise PersonSearchError(f"--port {port}: expected 0 to 65535")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise PersonSearchError(f"--host {host}: no address of this machine ({error.strerror})") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
    except OSError as error:
        listener.close()
        raise PersonSearchError(
            f"--host {host} --port {port}: cannot be listened at ({error.strerror}); choose another port"
        ) from error
    return listener


def _address(args: argparse.Namespace, listener: socket.socket) -> str:
    """Address of the page as a visitor of this machine types it."""
    scheme = "https" if args.certificate else "http"
    name = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(args.host, args.host)
    name = f"[{name}]" if ":" in name else name
    return f"{scheme}://{name}:{listener.getsockname()[1]}/"
