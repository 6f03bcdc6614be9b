"""A private PgBouncer before a PostgreSQL server."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlalchemy import make_url

from .base import Server, ServerMissing, run_as


class PgBouncer(Server):
    """A pooler whose clients share the sessions of *database*, transaction by transaction."""

    kind = "pgbouncer"

    def __init__(self, database: str, *, sessions: int) -> None:
        super().__init__()
        self._database = make_url(database)
        self._sessions = sessions

    @property
    def url(self) -> str:
        url = self._database.set(host="127.0.0.1", port=self.port())
        return url.render_as_string(hide_password=False)

    def check(self) -> None:
        _program()

    def prepare(self) -> None:
        to = self._database
        lines = [
            "[databases]",
            f"* = host={to.host} port={to.port} user={to.username} password={to.password or ''}",
            "[pgbouncer]",
            "listen_addr = 127.0.0.1",
            f"listen_port = {self.port()}",
            "unix_socket_dir =",
            "auth_type = any",
            "pool_mode = transaction",
            f"default_pool_size = {self._sessions}",
        ]
        configuration = self.folder / "pgbouncer.ini"
        configuration.write_text("\n".join(lines) + "\n")
        user = run_as("postgres")
        if user is not None:
            for path in (self.folder, configuration):
                shutil.chown(path, user, user)

    def launch(self) -> None:
        self.spawn([_program(), self.folder / "pgbouncer.ini"], user=run_as("postgres"))

    def ready(self) -> bool:
        """Lets a client through to the database."""
        import psycopg

        to = self._database
        login = f"host=127.0.0.1 port={self.port()} user={to.username} dbname={to.database}"
        with psycopg.connect(f"{login} connect_timeout=5", prepare_threshold=None) as connection:
            return connection.execute("SELECT 1").fetchone() == (1,)


def _program() -> Path:
    for place in (shutil.which("pgbouncer"), "/usr/sbin/pgbouncer"):
        if place is not None and Path(place).exists():
            return Path(place)
    raise ServerMissing(
        "pgbouncer not found. Get it with\n"
        "    apt-get update && apt-get install -y --no-install-recommends pgbouncer"
    )
