"""A private Redis server."""

from __future__ import annotations

import itertools
import shutil
import socket
from collections.abc import Mapping

from .base import Server, missing

DATABASES = 512


class Redis(Server):
    """One Redis node with an append-only file; ``settings`` are options of its command line.

    Every acknowledged write survives ``kill``: the file is written (though not synced) before
    the reply.
    """

    kind = "redis"

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(settings)
        self._numbers = itertools.cycle(range(1, DATABASES))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port()}/0"

    def check(self) -> None:
        if shutil.which("redis-server") is None:
            raise missing(self.kind, "redis-server", "redis-server")

    def prepare(self) -> None:
        """Nothing: all configuration is on the command line."""

    def launch(self) -> None:
        options = {
            "bind": "127.0.0.1",
            "port": str(self.port()),
            "dir": str(self.folder),
            "databases": str(DATABASES),
            "appendonly": "yes",
            "save": "",
            **self.settings,
        }
        flags = [word for name, value in options.items() for word in (f"--{name}", value)]
        self.spawn(["redis-server", *flags])

    def ready(self) -> bool:
        """Answers PING; while it loads its file it answers with an error."""
        return self.command("PING") == "+PONG"

    def fresh_database(self) -> str:
        """The URL of an empty database: the next number, and round again after 511."""
        number = next(self._numbers)
        answer = self.command(f"SELECT {number}", "FLUSHDB")
        if answer != "+OK":
            raise self.failed(f"refused to empty database {number}: {answer}")
        return f"redis://127.0.0.1:{self.port()}/{number}"

    def command(self, *lines: str) -> str:
        """Sends inline commands over one connection; the first line of the last one's reply."""
        with socket.create_connection(("127.0.0.1", self.port()), timeout=5) as connection:
            connection.sendall("".join(f"{line}\r\n" for line in lines).encode())
            replies = connection.makefile("rb")
            return [replies.readline().rstrip().decode() for _ in lines][-1]
