"""A private PostgreSQL server."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from .base import Server, missing, run_as
from .process import run


class PostgreSQL(Server):
    """One PostgreSQL server, superuser and database ``app``; ``settings`` go to ``-c``.

    Without fsync: every committed transaction survives ``kill``, though not a power failure.
    (synchronous_commit=off would not survive it: never put that into the settings.)
    """

    kind = "postgresql"

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://app:app@127.0.0.1:{self.port()}/app"

    def check(self) -> None:
        _programs()

    def prepare(self) -> None:
        user = run_as("postgres")
        if user is not None:
            shutil.chown(self.folder, user, user)
        password = self.folder / "password"
        password.write_text("app\n")
        password.chmod(0o644)
        command: list[str | Path] = [
            _programs() / "initdb",
            *("-D", self.folder / "data", "-U", "app", "--pwfile", password),
            *("-A", "scram-sha-256", "--locale=C.UTF-8", "--encoding=UTF8", "--no-sync"),
        ]
        if run(command, log=self.log, user=user) != 0:
            raise self.failed("could not be initialised")

    def launch(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port()),
            "unix_socket_directories": str(self.folder),
            "fsync": "off",
            "full_page_writes": "off",
            "log_statement": "none",
            "max_connections": "200",
            "shared_buffers": "64MB",
            # In the data folder: a killed server leaves its segments, and nobody would remove them.
            "dynamic_shared_memory_type": "mmap",
            **self.settings,
        }
        options = [word for pair in settings.items() for word in ("-c", "=".join(pair))]
        program = _programs() / "postgres"
        self.spawn([program, "-D", self.folder / "data", *options], user=run_as("postgres"))

    def ready(self) -> bool:
        """Accepts a login and has the database ``app``."""
        import psycopg

        login = f"host=127.0.0.1 port={self.port()} user=app password=app connect_timeout=5"
        with psycopg.connect(f"{login} dbname=postgres", autocommit=True) as connection:
            query = "SELECT 1 FROM pg_database WHERE datname = 'app'"
            if connection.execute(query).fetchone() is None:
                connection.execute("CREATE DATABASE app")
        return True


def _programs() -> Path:
    """The folder with initdb and postgres; Debian keeps it off the PATH. The newest wins."""
    installed = Path("/usr/lib/postgresql")
    places = sorted(
        (place for place in installed.glob("*/bin") if place.parent.name.isdigit()),
        key=lambda place: int(place.parent.name),
        reverse=True,
    )
    found = shutil.which("postgres")
    if found is not None:
        places.append(Path(os.path.realpath(found)).parent)
    for place in places:
        if (place / "initdb").exists() and (place / "postgres").exists():
            return place
    raise missing("postgresql", "postgres and initdb", "postgresql")
