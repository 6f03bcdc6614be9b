"""SQLite: silent on what docs/stores.md recommends, and each fault is seen."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, StaticPool, create_engine, event

from reliable_mq.adapter import Severity
from reliable_mq.doctor import diagnose
from reliable_mq.store import Store
from reliable_mq.store.inspection import Expected, inspect_store, sqlite
from tests.doctor.conftest import OpenMQ, codes, seen, worse_than_info

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO

MakeEngine = Callable[..., Engine]


@pytest.fixture
def make_engine(sqlite_url: str) -> Iterator[MakeEngine]:
    """An application's own engine, whose connections begin with *pragmas*."""
    made: list[Engine] = []

    def make(*pragmas: str, **options: Any) -> Engine:
        engine = create_engine(sqlite_url, **options)
        made.append(engine)

        @event.listens_for(engine, "connect")
        def prepare(connection: sqlite3.Connection, record: object) -> None:
            for pragma in pragmas:
                connection.execute(f"PRAGMA {pragma}").close()

        return engine

    yield make
    for engine in made:
        engine.dispose()


@pytest.fixture
def store(sqlite_url: str) -> Iterator[Store]:
    store = Store(database_url=sqlite_url)
    store.create()
    yield store
    store.dispose()


def test_topics_in_the_file_itself_have_no_finding(open_mq: OpenMQ) -> None:
    mq = open_mq()
    mq.declare()
    assert worse_than_info(diagnose(mq)) == []


@pytest.mark.parametrize(
    ("pragmas", "expected"),
    [
        (["synchronous = FULL"], {}),
        (["synchronous = NORMAL"], {"sqlite-synchronous": WARNING}),
        (["synchronous = OFF"], {"sqlite-synchronous": ERROR}),
        (["journal_mode = MEMORY"], {"sqlite-journal-mode": ERROR}),
        (["journal_mode = OFF"], {"sqlite-journal-mode": ERROR}),
        (["journal_mode = DELETE"], {"sqlite-journal-mode": INFO}),
        (
            ["journal_mode = DELETE", "locking_mode = EXCLUSIVE"],
            # The second connection of the check itself is locked out, too.
            {
                "sqlite-journal-mode": INFO,
                "sqlite-locking-mode": ERROR,
                "not-checked": WARNING,
            },
        ),
        (["busy_timeout = 0"], {"sqlite-busy-timeout": WARNING}),
    ],
    ids=lambda value: "-".join(value).replace(" = ", "_") if isinstance(value, list) else "",
)
def test_each_setting_of_the_applications_engine_is_judged(
    pragmas: list[str], expected: dict[str, Severity], store: Store, make_engine: MakeEngine
) -> None:
    store.dispose()
    assert seen(Store(engine=make_engine(*pragmas))) == expected


def test_a_write_lock_that_is_never_given_back_is_a_warning(
    store: Store, sqlite_url: str, make_engine: MakeEngine
) -> None:
    waits_briefly = Store(engine=make_engine("busy_timeout = 1000"))
    path = sqlite_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, isolation_level=None)) as stopped:
        stopped.execute("BEGIN IMMEDIATE")
        assert seen(waits_briefly) == {"old-transaction": WARNING}
    assert seen(waits_briefly) == {}


def test_a_file_that_can_only_be_read_is_an_error(store: Store, sqlite_url: str) -> None:
    store.dispose()
    path = sqlite_url.removeprefix("sqlite:///")
    engine = create_engine(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert seen(Store(engine=engine)) == {"database-read-only": ERROR}
    engine.dispose()


def test_to_look_at_a_missing_file_is_a_finding_and_makes_none(
    open_mq: OpenMQ, sqlite_url: str
) -> None:
    found = codes(open_mq())
    assert found == {"database-missing": ERROR, "no-handlers": INFO}
    assert not Path(sqlite_url.removeprefix("sqlite:///")).exists()


def test_a_file_beside_a_networked_broker_is_a_warning(open_mq: OpenMQ, store: Store) -> None:
    networked = open_mq(broker_url="redis://127.0.0.1:1/0")
    assert codes(networked)["sqlite-networked-broker"] is WARNING
    for local in ("sql://", "memory://"):
        assert "sqlite-networked-broker" not in codes(open_mq(broker_url=local))


def test_a_database_in_memory_outlives_the_look_at_it() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    store = Store(engine=engine)
    store.create()
    assert seen(store) == {"sqlite-journal-mode": ERROR}
    assert store.check() == []
    engine.dispose()


def test_an_sqlite_too_old_is_an_error(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_OLDEST", (99,))
    assert seen(store) == {"sqlite-version": ERROR}


def test_a_file_that_is_no_database_is_a_finding(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_bytes(b"this is not a database" * 100)
    store = Store(database_url=f"sqlite:///{tmp_path / 'store.db'}")
    report = inspect_store(store, Expected())
    store.dispose()
    assert not report.complete
    assert any("not a database" in one.what for one in report.findings), report.findings
