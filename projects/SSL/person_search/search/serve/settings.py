"""Settings of the server: who may ask, and how much may be sent."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

LOOPBACK_HOSTS = frozenset({"127.0.0.1", "localhost", "::1"})
MIN_TOKEN_LENGTH = 16


@dataclass(frozen=True)
class ServeSettings:
    """Limits and access of a server.

    Attributes:
        token: what a visitor has to know, None where everybody who reaches the address may ask.
        hosts: names and addresses that a `Host` header may hold, in lower case and without port.
        any_address: whether every IP address is accepted as `Host` too; a foreign name never is, because a name can
            be pointed at this machine by whoever owns it (DNS rebinding), an address cannot.
        max_upload_bytes: size of the largest picture that is accepted.
        max_upload_pixels: width times height of the largest picture that is accepted.
        max_body_bytes: size of the largest request that carries no picture.
        max_shelf_bytes: memory for query pictures; the least recently used are dropped.
        max_cache_bytes: memory for crops and frames.
        max_clip_seconds: length of the longest clip that is encoded for the page.
    """

    token: str | None = None
    hosts: frozenset[str] = LOOPBACK_HOSTS
    any_address: bool = False
    max_upload_bytes: int = 25_000_000
    max_upload_pixels: int = 50_000_000
    max_body_bytes: int = 256_000
    max_shelf_bytes: int = 256_000_000
    max_cache_bytes: int = 64_000_000
    max_clip_seconds: float = 60.0


def is_loopback(host: str) -> bool:
    """Whether a name or address reaches this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def allowed_hosts(host: str, extra: Iterable[str] = ()) -> frozenset[str]:
    """Names that visitors may use for a server bound to `host`, in lower case."""
    names = {name.lower() for name in extra} | LOOPBACK_HOSTS
    if not is_loopback(host):
        names |= {host.lower(), socket.gethostname().lower()}
    return frozenset(names)
