"""Where a run takes place: servers, databases, names that nobody else has."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import redis
from sqlalchemy import make_url

from tests.brokers import RabbitMQ, Redis, Server, find, server, variable
from tests.brokers.databases import fresh_database

_SETTINGS: Mapping[str, Mapping[str, str]] = {
    # The tests' server saves the disk; here a commit is durable, as with the defaults.
    "postgresql": {
        "fsync": "on",
        "full_page_writes": "on",
        "shared_buffers": "1GB",
        "max_wal_size": "8GB",
        "checkpoint_timeout": "30min",
    },
}


class Lab:
    """Starts servers when they are first asked for; all are gone after the ``with`` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}
        self._numbers = itertools.count(1)
        self._prefix = f"b{os.getpid()}"

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def unique(self, word: str) -> str:
        """Return a name that nobody else has."""
        return f"{self._prefix}_{word}_{next(self._numbers)}"

    def url(self, kind: str) -> str:
        """Return the URL of the server of this *kind*."""
        return self._server(kind).url

    def _server(self, kind: str) -> Server:
        if kind not in self._servers:
            named = variable(kind) in os.environ
            made = find(kind) if named else server(kind, _SETTINGS.get(kind))
            self._servers[kind] = self._stack.enter_context(made)
        return self._servers[kind]

    def described(self) -> dict[str, str]:
        """Return what was measured on, for the report."""
        return {kind: _description(kind) for kind in self._servers}

    @contextmanager
    def database(self, kind: str = "postgresql") -> Iterator[str]:
        """Create a database; it is gone after the block."""
        with fresh_database(self.url(kind), self.unique("db")) as url:
            yield url

    @contextmanager
    def broker(self, kind: str) -> Iterator[str]:
        """Give a part of the broker that is empty: a virtual host, a database."""
        found = self._server(kind)
        if isinstance(found, RabbitMQ):
            name = self.unique("vhost")
            yield found.create_vhost(name)
            found.delete_vhost(name)
        elif isinstance(found, Redis):
            url = found.fresh_database()
            yield url
            with closing(redis.Redis.from_url(url)) as client:
                client.flushdb()
        else:
            yield found.url


def _description(kind: str) -> str:
    if variable(kind) in os.environ:
        return f"named in {variable(kind)}"
    settings = _SETTINGS.get(kind, {})
    return ", ".join(["private", *(f"{name}={value}" for name, value in settings.items())])


def dsn_of(url: str) -> str:
    """Return a database URL as libpq wants it, without SQLAlchemy's driver."""
    return make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)


def connect(url: str) -> Any:
    """Return a psycopg connection."""
    import psycopg

    return psycopg.connect(dsn_of(url))
