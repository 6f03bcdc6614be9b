"""Disks that are full for a while: a small tmpfs under a database. Mounting needs root."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sqlite3
import subprocess
import threading
from pathlib import Path

from tests.brokers import Server, ServerFailed
from tests.nemesis.unable import UnableError

MIB = 1 << 20
_TOP_UP_EVERY = 0.05
_BUSY = 10.0
"""Seconds to wait for those who read or write a file."""


class Disk:
    """A file system of *mib* MiB in *folder*. ``close`` unmounts it, and what is on it is gone.

    A test run that is killed leaves it behind: ``mount`` shows it as ``nemesis``.
    """

    def __init__(self, folder: Path, mib: float) -> None:
        """Raise ``UnableError`` where nothing can be mounted."""
        self.folder = folder
        self._ballast = folder / "ballast"
        if os.geteuid() != 0:
            raise UnableError("a disk that is full needs root, who may mount one")
        command = ["mount", "-t", "tmpfs", "-o", f"size={int(mib)}m", "nemesis", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UnableError(f"no disk can be mounted: {done.stderr.strip()}")

    def fill(self, seconds: float, over: threading.Event) -> None:
        """Leave no byte free for so long, also of what others free meanwhile."""
        waited = 0.0
        _empty_logs(self.folder)
        try:
            while waited < seconds and not over.wait(_TOP_UP_EVERY):
                self._take_all()
                waited += _TOP_UP_EVERY
        finally:
            self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount, now or when the last user is gone."""
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    def _take_all(self) -> None:
        with self._ballast.open("ab", buffering=0) as file:
            for size in (MIB, 4096):
                _append_until_full(file.fileno(), size)


def _empty_logs(folder: Path) -> None:
    """Take the room from SQLite that it has in a log which it writes over and over."""
    for file in folder.glob("*.db"):
        with (
            contextlib.suppress(sqlite3.OperationalError),  # busy
            contextlib.closing(sqlite3.connect(file, timeout=_BUSY)) as connection,
        ):
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def _append_until_full(file: int, size: int) -> None:
    with contextlib.suppress(_Full):
        while True:
            try:
                written = os.write(file, bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
                raise _Full from None
            if written < size:
                raise _Full


class _Full(Exception):
    pass


def move_onto_disk(server: Server, mib: float) -> Disk:
    """Move the data of *server*, which lie in its folder ``data``, to a disk of their own."""
    data, before = server.folder / "data", server.folder / "data-before"
    server.terminate()
    data.rename(before)
    data.mkdir()
    try:
        disk = Disk(data, mib)
    except UnableError:
        data.rmdir()
        before.rename(data)
        server.restart()
        raise
    subprocess.run(["cp", "-a", f"{before}/.", str(data)], check=True)
    shutil.rmtree(before)
    server.restart()
    return disk


def recover(server: Server) -> None:
    """Wait until *server* serves again; one that gave up is started again, as by its keeper."""
    try:
        server.wait_ready()
    except ServerFailed:
        server.restart()
