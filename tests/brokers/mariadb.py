"""A private MariaDB server."""

from __future__ import annotations

import shutil

from .base import Server, missing, run_as
from .process import run

_SETUP = """\
CREATE DATABASE IF NOT EXISTS app;
CREATE USER IF NOT EXISTS app@'127.0.0.1' IDENTIFIED BY 'app';
GRANT ALL ON *.* TO app@'127.0.0.1' WITH GRANT OPTION;
"""


class MariaDB(Server):
    """One MariaDB server, user and database ``app``; ``settings`` are options of mariadbd.

    The redo log is written at each commit and synced once a second: every committed transaction
    survives ``kill``, though not a power failure.
    """

    kind = "mariadb"

    @property
    def url(self) -> str:
        return f"mysql+pymysql://app:app@127.0.0.1:{self.port()}/app"

    def check(self) -> None:
        for program in ("mariadbd", "mariadb-install-db"):
            if shutil.which(program) is None:
                raise missing(self.kind, program, "mariadb-server")

    def prepare(self) -> None:
        user = run_as("mysql")
        data, temporary = self.folder / "data", self.folder / "tmp"
        data.mkdir()
        # A server removes the temporary tables of others that it finds there.
        temporary.mkdir()
        (self.folder / "setup.sql").write_text(_SETUP)
        if user is not None:
            for place in (self.folder, data, temporary):
                shutil.chown(place, user, user)
        command = [
            *("mariadb-install-db", "--no-defaults", f"--datadir={data}"),
            f"--tmpdir={temporary}",
            *("--auth-root-authentication-method=normal", "--skip-test-db"),
            *([f"--user={user}"] if user else []),
        ]
        if run(command, log=self.log) != 0:
            raise self.failed("could not be initialised")

    def launch(self) -> None:
        user = run_as("mysql")
        options = {
            "datadir": str(self.folder / "data"),
            "tmpdir": str(self.folder / "tmp"),
            "socket": str(self.folder / "s"),
            "pid-file": str(self.folder / "pid"),
            "port": str(self.port()),
            "bind-address": "127.0.0.1",
            "init-file": str(self.folder / "setup.sql"),
            "innodb-buffer-pool-size": "64M",
            "innodb-flush-log-at-trx-commit": "2",
            "performance-schema": "OFF",
            "skip-name-resolve": "ON",
            "character-set-server": "utf8mb4",
            "collation-server": "utf8mb4_general_ci",
            **({"user": user} if user else {}),
            **self.settings,
        }
        flags = [f"--{name}={value}" for name, value in options.items()]
        self.spawn(["mariadbd", "--no-defaults", *flags])

    def ready(self) -> bool:
        """Accepts a login to the database ``app``."""
        import pymysql

        pymysql.connect(
            host="127.0.0.1",
            port=self.port(),
            user="app",
            password="app",
            database="app",
            connect_timeout=5,
        ).close()
        return True
