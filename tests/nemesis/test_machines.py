"""Clocks jump and disks are full as the nemesis has it, and discards are held against it all."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError

from tests.conftest import OwnServer
from tests.e2e.waiting import until
from tests.nemesis.application import GROUPS, Arena, build
from tests.nemesis.clocks import HOUR, MINUTE, Clocks
from tests.nemesis.disks import Disk, move_onto_disk, recover
from tests.nemesis.faults import Surroundings
from tests.nemesis.truth import Findings, read
from tests.nemesis.unable import UnableError
from tests.nemesis.world import DATABASE_SETTINGS, DISK_MIB
from tests.sweep.application import History, Job, metadata

DEADLINE = 60.0
WAIT = 0.45
"""Seconds that three waits take at least, two of them until a time of the wall clock."""

# --- clocks -------------------------------------------------------------------------------------

SPEAKING_CLOCK = """
import ctypes, struct, sys, threading, time
from datetime import datetime, UTC
libc = ctypes.CDLL(None)
mutex, condition, now = (ctypes.create_string_buffer(64) for _ in range(3))
libc.mtx_init(mutex, 1)
libc.cnd_init(condition)
libc.mtx_lock(mutex)
for _ in sys.stdin:
    began = time.monotonic()
    threading.Event().wait(0.05)
    for wait in (libc.cnd_timedwait, libc.pthread_cond_timedwait):
        libc.timespec_get(now, 1)
        later = struct.unpack("qq", now[:16])
        later = divmod(later[0] * 10**9 + later[1] + 2 * 10**8, 10**9)
        wait(condition, mutex, struct.pack("qq", *later))
    here = datetime.now(UTC).timestamp()
    print(here, time.time() - here, time.monotonic() - began, flush=True)
"""


@pytest.fixture
def clocks(tmp_path: Path) -> Callable[..., Clocks]:
    def make(*, one_machine: bool, bearable: int | None = None) -> Clocks:
        try:
            return Clocks(tmp_path, one_machine=one_machine, bearable=bearable)
        except UnableError as error:
            pytest.skip(str(error))

    return make


@contextmanager
def speaking(clocks: Clocks) -> Iterator[subprocess.Popen[str]]:
    """Run a process that ``heard`` can ask for the time."""
    with subprocess.Popen(
        [sys.executable, "-c", SPEAKING_CLOCK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **clocks.environment(0)},
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def heard(process: subprocess.Popen[str]) -> tuple[float, float]:
    """Return how far the wall clock of *process* is from ours, and how long two waits took it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    now, differs, waited = map(float, process.stdout.readline().split())
    assert abs(differs) < DEADLINE
    return now - time.time(), waited


@pytest.mark.parametrize("one_machine", [False, True])
def test_a_clock_jumps_for_a_process_that_runs_and_its_waits_do_not(
    clocks: Callable[..., Clocks], one_machine: bool
) -> None:
    made, rng = clocks(one_machine=one_machine), random.Random(4)
    with speaking(made) as process:
        assert abs(heard(process)[0]) < DEADLINE
        far = []
        for _ in range(20):
            made.jump(rng)
            moved, waited = heard(process)
            assert WAIT <= waited < DEADLINE
            far.append(moved)
    assert max(far) > HOUR
    assert (min(far) < -HOUR) != one_machine
    if one_machine:
        # Up to what passes between two looks at two clocks.
        assert all(later > earlier - 1 for earlier, later in pairwise(far))


def test_no_clock_stays_further_ahead_than_is_bearable(clocks: Callable[..., Clocks]) -> None:
    made, rng = clocks(one_machine=False, bearable=MINUTE), random.Random(4)
    for _ in range(20):
        made.jump(rng)
    assert set(made.calm_down()) == {MINUTE}
    assert made.calm_down() == []
    with speaking(made) as process:
        assert heard(process)[0] < MINUTE + DEADLINE


# --- disks --------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        disk = Disk(folder, 8)
    except UnableError as error:
        pytest.skip(str(error))
    yield disk
    disk.close()
    assert not folder.is_mount()


def filled(disk: Disk, look: Callable[[], bool]) -> None:
    """Fill *disk* until *look* is true."""
    over = threading.Event()
    filling = threading.Thread(target=disk.fill, args=(3600.0, over))
    filling.start()
    try:
        deadline = time.monotonic() + DEADLINE
        while not look():
            assert time.monotonic() < deadline
            over.wait(0.05)
    finally:
        over.set()
        filling.join()


def test_a_full_disk_takes_nothing_until_it_is_freed(disk: Disk) -> None:
    file = disk.folder / "file"

    def refused() -> bool:
        try:
            with file.open("ab", buffering=0) as growing:
                return growing.write(bytes(100_000)) < 100_000
        except OSError as error:
            return error.errno == errno.ENOSPC

    filled(disk, refused)
    assert not refused()


def test_sqlite_on_a_full_disk_refuses_though_its_log_had_room(disk: Disk) -> None:
    file = disk.folder / "store.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE kept (padding BLOB)")
        connection.execute("INSERT INTO kept VALUES (zeroblob(1000000))")

        def refused() -> bool:
            try:
                connection.execute("INSERT INTO kept VALUES (zeroblob(10000))")
            except sqlite3.OperationalError:
                return True
            return False

        filled(disk, refused)
        assert not refused()


@pytest.mark.parametrize("kind", [kind for kind in DISK_MIB if kind != "sqlite"])
def test_a_server_on_a_full_disk_refuses_and_recovers_with_what_it_has(
    own_server: OwnServer, kind: str
) -> None:
    server = own_server(kind, DATABASE_SETTINGS.get(kind))
    try:
        disk = move_onto_disk(server, DISK_MIB[kind])
    except UnableError as error:
        pytest.skip(str(error))
    engine = create_engine(server.url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE kept (number int, padding text)"))
    written = 0

    def refused() -> bool:
        nonlocal written
        rows = [{"number": written, "padding": "x" * 2000}] * 50
        try:
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO kept VALUES (:number, :padding)"), rows)
        except DBAPIError:
            return True
        written += 1
        return False

    try:
        filled(disk, refused)
        recover(server)
        with engine.connect() as connection:
            kept = connection.scalar(text("SELECT count(DISTINCT number) FROM kept"))
        assert kept >= written
        assert not refused()
    finally:
        disk.close()


# --- discards -----------------------------------------------------------------------------------


def test_a_server_that_crashes_by_itself_is_started_again_and_counted(
    own_server: OwnServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = own_server("redis")
    schedule = Surroundings(1, tmp_path, {"broker": server}, {})
    schedule.keep()
    assert not schedule.done
    os.kill(server.pids[0], signal.SIGKILL)
    until(lambda: not server.running, "death")
    schedule.keep()
    assert schedule.done == {"broker crashed": 1}
    assert server.running
    assert "ended by itself (status -9)" in capsys.readouterr().out


@pytest.fixture
def arena(tmp_path: Path) -> Arena:
    arena = Arena("cell", "sql://", f"sqlite:///{tmp_path / 'store.db'}", str(tmp_path))
    engine = create_engine(arena.database_url)
    metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO sweep_marker (cell, number) VALUES ('cell', 1)"))
    engine.dispose()
    job = Job(number=1, fails=99)
    history = History(tmp_path)
    history.note("invoke", numbers=[1], jobs=[json.loads(job.model_dump_json())])
    history.note("ok", numbers=[1])
    return arena


def found(arena: Arena, *, handled: tuple[str, ...]) -> Findings:
    engine = create_engine(arena.database_url)
    statement = text(
        "INSERT INTO sweep_effect (cell, consumer_group, number) VALUES ('cell', :g, 1)"
    )
    with engine.begin() as connection:
        for group in handled:
            connection.execute(statement, {"g": group})
    engine.dispose()
    if "least" in handled:
        History(Path(arena.folder)).note("done", group="least", number=1)
    with build(arena) as mq:
        mq.declare()
        return read(mq, arena)


def test_what_was_discarded_is_not_missing_in_that_group_and_must_not_be_handled_there(
    arena: Arena,
) -> None:
    history = History(Path(arena.folder))
    assert any("I1 batch" in line for line in found(arena, handled=("ordered",)).violations())
    history.note("discard", group="batch", number=1)
    history.note("discarded", group="batch", number=1)
    others = tuple(group for group in GROUPS if group not in ("batch", "ordered"))
    assert found(arena, handled=others).violations() == []
    assert any("I5 batch" in line for line in found(arena, handled=("batch",)).violations())


def test_what_may_have_been_discarded_may_have_been_handled_as_well(arena: Arena) -> None:
    History(Path(arena.folder)).note("discard", group="batch", number=1)
    others = tuple(group for group in GROUPS if group != "batch")
    assert found(arena, handled=others).violations() == []
    assert found(arena, handled=("batch",)).violations() == []
