"""Any course of savepoints, commits and rollbacks: the outbox holds what a simple model says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, Engine, create_engine, delete, event
from sqlalchemy.orm import Session

from reliable_mq.store import Store
from reliable_mq.store.outbox import writing
from tests.store.shop import Order, publish, stored

pytestmark = [
    # A savepoint rolled back under an open inner one.
    pytest.mark.filterwarnings("ignore:nested transaction already deassociated"),
    pytest.mark.filterwarnings("ignore:Session's state has been changed"),
]

STEPS = ["publish", "publish", "publish", "work", "open", "open", "release", "undo", "undo outer"]
ENDS = ["commit", "commit", "commit", "rollback", "leave"]


class Model:
    """Which messages are still to come, by savepoint."""

    def __init__(self) -> None:
        self.levels: list[list[str]] = [[]]

    def step(self, step: str, name: str) -> None:
        if step == "publish":
            self.levels[-1].append(name)
        elif step == "open":
            self.levels.append([])
        elif step == "release":
            self.levels[-2:] = [self.levels[-2] + self.levels[-1]]
        elif step == "undo":
            self.levels.pop()
        elif step == "undo outer":
            del self.levels[-2:]

    def possible(self, step: str) -> bool:
        depth = len(self.levels) - 1
        return depth >= {"release": 1, "undo": 1, "undo outer": 2}.get(step, 0)

    def committed(self) -> list[str]:
        return [name for level in self.levels for name in level]


def play(store: Store, target: Any, steps: list[str], work: Callable[[], object]) -> Model:
    """Do *steps* to *target*, a Session or Connection in a transaction, and to a model."""
    model, savepoints = Model(), []
    for number, step in enumerate(steps):
        if not model.possible(step):
            continue
        if step == "publish":
            publish(store, target, f"{number:03}")
        elif step == "work":
            work()
        elif step == "open":
            savepoints.append(target.begin_nested())
        elif step == "release":
            savepoints.pop().commit()
        elif step == "undo":
            savepoints.pop().rollback()
        elif step == "undo outer":
            savepoints.pop()
            savepoints.pop().rollback()
        model.step(step, f"{number:03}")
    return model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Engine]]:
    url = f"sqlite:///{tmp_path_factory.mktemp('model') / 'store.db'}"
    store = Store(database_url=url)
    store.create()
    Order.metadata.create_all(store.engine)
    # Savepoints need a BEGIN of their own before them, which sqlite3 leaves out.
    engine = create_engine(url)
    event.listen(engine, "connect", _prepare)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN"))
    yield store, engine
    engine.dispose()
    store.dispose()


def _prepare(connection: Any, record: object) -> None:
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=OFF")


@pytest.fixture(autouse=True, scope="module")
def _write_early() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "MAX_ROWS", 4)
        yield


def clear(engine: Engine, store: Store) -> None:
    with engine.begin() as connection:
        connection.execute(delete(store.tables.outbox))
        connection.execute(delete(Order))


many = settings(max_examples=300, deadline=None)
courses = st.lists(st.sampled_from(STEPS), max_size=25)


@many
@given(steps=courses, end=st.sampled_from(ENDS))
def test_a_session_stores_what_the_model_says(place, steps, end):
    store, engine = place
    clear(engine, store)
    with Session(engine) as session:
        session.begin()
        numbers = iter(range(100))

        def work() -> None:
            session.add(Order(number=next(numbers), customer="ann"))
            session.flush()

        model = play(store, session, steps, work)
        if end == "commit":
            session.commit()
        elif end == "rollback":
            session.rollback()
    assert stored(store) == (model.committed() if end == "commit" else [])


@many
@given(steps=courses)
def test_a_sessions_block_stores_what_the_model_says(place, steps):
    store, engine = place
    clear(engine, store)
    with Session(engine) as session, session.begin():
        model = play(store, session, steps, lambda: session.execute(Order.__table__.select()))
    assert stored(store) == model.committed()


@many
@given(steps=courses, end=st.sampled_from(ENDS))
def test_a_connection_stores_what_the_model_says(place, steps, end):
    store, engine = place
    clear(engine, store)
    with engine.connect() as connection:
        transaction = connection.begin()
        model = play(store, connection, steps, lambda: _read(connection))
        if end == "commit":
            transaction.commit()
        elif end == "rollback":
            transaction.rollback()
    assert stored(store) == (model.committed() if end == "commit" else [])


def _read(connection: Connection) -> None:
    connection.execute(Order.__table__.select())
