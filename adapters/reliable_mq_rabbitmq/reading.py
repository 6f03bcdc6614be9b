"""Pika's I/O services, with reads of more than the 4 KiB that pika asks for at a time.

A read costs about as much as a small message, and several of those would wait in the socket.
"""

from __future__ import annotations

import socket
from typing import Any

from pika.adapters.utils.selector_ioloop_adapter import SelectorIOServicesAdapter

_BYTES = 64 * 1024


class _Socket(socket.socket):
    def recv(self, size: int, flags: int = 0) -> bytes:
        """Return what is there, and more than *size* bytes of it: pika does not mind."""
        return super().recv(max(size, _BYTES), flags)


class Services(SelectorIOServicesAdapter):  # type: ignore[misc]  # pika has no type information
    """What pika's connections work with. One with TLS reads record by record, as OpenSSL does."""

    def create_streaming_connection(
        self,
        protocol_factory: Any,
        sock: socket.socket,
        on_done: Any,
        ssl_context: Any = None,
        server_hostname: str | None = None,
    ) -> Any:
        """See pika's ``AbstractIOServices``; the socket is owned here from now on."""
        if ssl_context is None:
            sock = _taken_over(sock)
        return super().create_streaming_connection(
            protocol_factory, sock, on_done, ssl_context, server_hostname
        )


def _taken_over(sock: socket.socket) -> _Socket:
    family, kind, protocol, timeout = sock.family, sock.type, sock.proto, sock.gettimeout()
    wide = _Socket(family, kind, protocol, fileno=sock.detach())
    wide.settimeout(timeout)
    return wide
