"""Any course of sessions and savepoints on one connection: each message is where its call was."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Connection, NestedTransaction
from sqlalchemy.orm import Session, SessionTransaction

from reliable_mq.store import Store
from tests.store.shop import publish, stored
from tests.store.test_outbox_append_model import _write_early, clear, many, place

__all__ = ["_write_early", "place"]

STEPS = ["connection", "connection", "session", "session", "open", "join", "release", "undo"]


@dataclass
class Level:
    """What can be undone by itself: a savepoint of the connection or of a session, or a session.

    *session* is the innermost one, if it is the one to publish with.
    """

    undone_by: NestedTransaction | SessionTransaction | Session | None
    session: Session | None
    names: list[str] = field(default_factory=list)


class Play:
    """Does steps to *connection*, which is in a transaction, and to a model.

    One session is there all the time and commits last, as that of a handler does.
    """

    def __init__(self, store: Store, connection: Connection) -> None:
        self.store = store
        self.connection = connection
        self.first = Session(connection, join_transaction_mode="rollback_only")
        self.first.connection()
        self.levels = [Level(None, self.first)]

    def step(self, step: str, name: str) -> None:
        top = self.levels[-1]
        if step == "connection":
            publish(self.store, self.connection, name)
            top.names.append(name)
        elif step == "session" and top.session is not None:
            publish(self.store, top.session, name)
            top.names.append(name)
        elif step == "open":
            self.levels.append(self.savepoint(top))
        elif step == "join":
            session = Session(self.connection, join_transaction_mode="create_savepoint")
            session.connection()
            self.levels.append(Level(session, session))
        elif step in ("release", "undo") and len(self.levels) > 1:
            self.close(commit=step == "release")

    def savepoint(self, top: Level) -> Level:
        # That of the connection would be one that the first session does not know of.
        if top.session in (None, self.first):
            return Level(self.connection.begin_nested(), None)
        savepoint = top.session.begin_nested()
        top.session.connection()
        return Level(savepoint, top.session)

    def close(self, *, commit: bool) -> None:
        level = self.levels.pop()
        assert level.undone_by is not None
        if commit:
            level.undone_by.commit()
            self.levels[-1].names.extend(level.names)
        else:
            level.undone_by.rollback()
        if isinstance(level.undone_by, Session):
            level.undone_by.close()

    def end(self) -> list[str]:
        while len(self.levels) > 1:
            self.close(commit=True)
        self.first.commit()
        self.first.close()
        return sorted(self.levels[0].names)


@many
@given(steps=st.lists(st.sampled_from(STEPS), max_size=25))
def test_sessions_on_a_connection_store_what_the_model_says_in_the_order_of_the_calls(place, steps):
    store, engine = place
    clear(engine, store)
    with engine.connect() as connection, connection.begin():
        play = Play(store, connection)
        for number, step in enumerate(steps):
            play.step(step, f"{number:03}")
        expected = play.end()
    assert stored(store) == expected
