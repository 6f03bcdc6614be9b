"""Publishing into an ORM session: sent exactly if, and in the order in which, it commits."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from sqlalchemy import Connection, select
from sqlalchemy.exc import IntegrityError, InvalidRequestError, PendingRollbackError
from sqlalchemy.orm import Session

from reliable_mq.errors import NoTransactionError
from reliable_mq.store import outbox
from reliable_mq.store.tables import slot_of
from tests.store.shop import Order, inserts, listening, message, orders, publish, stored

# --- commit and rollback ------------------------------------------------------------------------


def test_a_message_is_stored_with_the_business_row(store, shop):
    with Session(shop) as session, session.begin():
        session.add(Order(number=1, customer="ann"))
        publish(store, session, "a")
        assert stored(store) == []
    assert (stored(store), orders(store)) == (["a"], 1)


def test_every_column_of_the_row_is_what_the_message_says(store, shop):
    sent = message("a", body=b"\x00\xff{}")
    with Session(shop) as session, session.begin():
        outbox.append(store, session, sent)
    with store.engine.connect() as connection:
        row = connection.execute(select(store.tables.outbox)).one()
        now = connection.execute(select(store.now())).scalar_one()
    assert (row.message_id, row.topic, bytes(row.message_key)) == ("a", "orders", b"ann")
    assert bytes(row.body) == b"\x00\xff{}"
    assert bytes(row.headers) == b"[]"
    assert row.content_type is None
    assert row.slot == slot_of("ann", "a", 64)
    assert row.message_time == round(sent.time.timestamp() * 1_000_000)
    assert (row.attempts, row.cause, row.try_at) == (0, None, None)
    assert 0 <= now - row.created_at < 10_000_000


def test_nothing_is_stored_when_the_transaction_is_rolled_back(store, shop):
    with Session(shop) as session:
        session.add(Order(number=1, customer="ann"))
        publish(store, session, "a")
        session.rollback()
        session.commit()
    assert (stored(store), orders(store)) == ([], 0)


def test_nothing_is_stored_when_the_block_raises(store, shop):
    def work() -> None:
        with Session(shop) as session, session.begin():
            publish(store, session, "a")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert stored(store) == []


def test_a_session_can_publish_in_one_transaction_after_another(store, shop):
    with Session(shop) as session:
        publish(store, session, "a")
        session.commit()
        publish(store, session, "b")
        session.rollback()
        publish(store, session, "c")
        session.commit()
    assert stored(store) == ["a", "c"]


def test_messages_get_their_numbers_in_the_order_of_publishing(store, shop):
    names = [f"{n:04}" for n in range(300)]
    with Session(shop) as session, session.begin():
        publish(store, session, *names)
    assert stored(store) == names


def test_a_commit_writes_all_messages_by_one_insert(store, shop):
    with inserts(shop, store) as seen, Session(shop) as session, session.begin():
        publish(store, session, *map(str, range(200)))
        session.add(Order(number=1, customer="ann"))
    assert seen == [200]


def test_a_publish_begins_a_transaction_as_an_add_does(store, shop):
    with Session(shop) as session:
        publish(store, session, "a")
        assert session.in_transaction()
        session.commit()
    assert stored(store) == ["a"]


def test_a_commit_that_fails_stores_nothing(store, shop):
    with Session(shop) as session, session.begin():
        session.add(Order(number=1, customer="ann"))
    with Session(shop) as session:
        session.add(Order(number=1, customer="bob"))
        publish(store, session, "a")
        with pytest.raises(IntegrityError):
            session.commit()
        session.rollback()
        publish(store, session, "b")
        session.commit()
    assert stored(store) == ["b"]


def test_a_flush_that_failed_takes_its_messages_with_it(store, shop):
    with Session(shop) as session:
        session.add(Order(number=1, customer="ann"))
        session.commit()
        publish(store, session, "a")
        session.add(Order(number=1, customer="bob"))
        with pytest.raises(IntegrityError):
            session.flush()
        with pytest.raises(PendingRollbackError):
            publish(store, session, "b")
        session.rollback()
        publish(store, session, "c")
        session.commit()
    assert stored(store) == ["c"]


def test_a_closed_transaction_refuses_a_message(store, shop):
    with Session(shop) as session, session.begin():
        session.commit()
        with pytest.raises(InvalidRequestError):
            publish(store, session, "a")
    assert stored(store) == []


def test_without_autobegin_a_transaction_must_have_been_begun(store, shop):
    with Session(shop, autobegin=False) as session:
        with pytest.raises(NoTransactionError, match="autobegin"):
            publish(store, session, "a")
        with session.begin():
            publish(store, session, "b")
    assert stored(store) == ["b"]


# --- the application's hooks -----------------------------------------------------------------


@pytest.mark.parametrize("early", [(), ("a",)], ids=["first", "not first"])
@pytest.mark.parametrize("name", ["before_commit", "before_flush", "after_flush"])
def test_a_hook_of_the_commit_may_publish(store, shop, name, early):
    with Session(shop) as session:
        calls = []

        def hook(session: Session, *_: Any) -> None:
            calls.append(name)
            publish(store, session, f"hook{len(calls)}")

        with listening(session, name, hook), session.begin():
            session.add(Order(number=1, customer="ann"))
            publish(store, session, *early)
    assert calls
    assert stored(store) == [*early, *(f"hook{n + 1}" for n in range(len(calls)))]


def test_a_hook_that_publishes_after_ours_is_written_behind_the_others(store, shop):
    names = iter(["x", "y", "z"])
    with Session(shop) as session:

        def add_another(session: Session) -> None:
            session.add(Order(number=2, customer="bob"))

        def hook(session: Session, context: Any) -> None:
            publish(store, session, next(names))

        # Ours flushes first; then comes this one, whose order makes another flush.
        with (
            listening(session, "before_commit", add_another),
            listening(session, "after_flush", hook),
            session.begin(),
        ):
            session.add(Order(number=1, customer="ann"))
            publish(store, session, "a")
    assert stored(store) == ["a", "x", "y"]


def test_a_savepoint_of_a_late_hook_may_publish(store, shop):
    with Session(shop) as session:

        def hook(session: Session) -> None:
            if not session.in_nested_transaction():
                with session.begin_nested():
                    publish(store, session, "b")

        with listening(session, "before_commit", hook), session.begin():
            publish(store, session, "a")
    assert stored(store) == ["a", "b"]


def test_a_hook_that_fails_the_commit_leaves_a_transaction_that_goes_on(store, shop):
    failures = iter([True, False])
    with Session(shop) as session:

        def hook(session: Session) -> None:
            if next(failures):
                raise ZeroDivisionError

        with listening(session, "before_commit", hook):
            publish(store, session, "a")
            with pytest.raises(ZeroDivisionError):
                session.commit()
            publish(store, session, "b")
            session.commit()
    assert stored(store) == ["a", "b"]


def test_a_commit_that_could_not_write_the_messages_keeps_them_for_the_next(
    store, shop, monkeypatch
):
    def fail(connection: Connection) -> None:
        raise ZeroDivisionError

    with Session(shop) as session:
        session.add(Order(number=1, customer="ann"))
        publish(store, session, "a", "b")
        with monkeypatch.context() as patch:
            patch.setattr(store, "verify", fail)
            with pytest.raises(ZeroDivisionError):
                session.commit()
        session.commit()
    assert (stored(store), orders(store)) == (["a", "b"], 1)


def test_a_savepoints_commit_that_a_hook_failed_once_keeps_every_message_in_its_place(store, shop):
    failures = iter([True])

    def hook(session: Session) -> None:
        if next(failures, False):
            raise ZeroDivisionError

    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        outer = session.begin_nested()
        publish(store, session, "b")
        inner = session.begin_nested()
        publish(store, session, "c")
        with listening(session, "before_commit", hook):
            with pytest.raises(ZeroDivisionError):
                inner.commit()
            inner.commit()
        outer.rollback()
        publish(store, session, "d")
    assert stored(store) == ["a", "d"]


# --- many messages ------------------------------------------------------------------------------


def test_more_than_a_thousand_messages_are_written_as_they_come(store, shop):
    names = [f"{n:05}" for n in range(2500)]
    with inserts(shop, store) as seen, Session(shop) as session, session.begin():
        publish(store, session, *names)
        assert seen == [1000, 1000]
    assert seen == [1000, 1000, 500]
    assert stored(store) == names


def test_more_than_a_mebibyte_is_written_as_it_comes(store, shop):
    with inserts(shop, store) as seen, Session(shop) as session, session.begin():
        for name in "abc":
            outbox.append(store, session, message(name, body=b"x" * 600_000))
        assert seen == [2]
    assert stored(store) == list("abc")


def test_what_was_written_early_is_rolled_back_too(store, shop):
    with Session(shop) as session:
        publish(store, session, *map(str, range(1500)))
        session.rollback()
        savepoint = session.begin_nested()
        publish(store, session, *map(str, range(1500)))
        savepoint.rollback()
        publish(store, session, "a")
        session.commit()
    assert stored(store) == ["a"]


def test_an_outer_message_survives_a_savepoint_with_very_many(store, shop):
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        savepoint = session.begin_nested()
        publish(store, session, *map(str, range(1500)))
        savepoint.rollback()
        with session.begin_nested():
            publish(store, session, *(f"{n:04}" for n in range(1500)))
        publish(store, session, "z")
    assert stored(store) == ["a", *(f"{n:04}" for n in range(1500)), "z"]


# --- messages that nobody committed -----------------------------------------------------------


def test_messages_dropped_by_a_close_are_reported_once_by_topic_and_number(store, shop, caplog):
    with caplog.at_level(logging.WARNING, "reliable_mq"), Session(shop) as session:
        publish(store, session, "a")
        session.commit()
        publish(store, session, "b", "c")
        session.begin_nested()
        publish(store, session, "d")
    assert stored(store) == ["a"]
    (record,) = caplog.records
    assert "3 to 'orders'" in record.getMessage()


def test_a_rollback_is_not_reported(store, shop, caplog):
    def fail_in_savepoint() -> None:
        with Session(shop) as session, session.begin():
            session.begin_nested()
            publish(store, session, "c")
            raise ZeroDivisionError

    with caplog.at_level(logging.WARNING, "reliable_mq"):
        with Session(shop) as session:
            publish(store, session, "a")
            session.begin_nested()
            publish(store, session, "b")
            session.rollback()
            session.rollback()
        with pytest.raises(ZeroDivisionError):
            fail_in_savepoint()
    assert not caplog.records


def test_a_session_keeps_nothing_after_its_transaction(store, shop):
    with Session(shop) as session:
        publish(store, session, "a")
        session.commit()
        assert not session.info
        session.execute(select(Order))
        session.rollback()
        assert not session.info


def test_pending_messages_can_be_looked_at(store, shop):
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        with session.begin_nested():
            publish(store, session, "b")
            assert [found.id for found in outbox.pending(session)] == ["a", "b"]
        savepoint = session.begin_nested()
        publish(store, session, "c")
        savepoint.rollback()
        assert [found.id for found in outbox.pending(session)] == ["a", "b"]
    assert outbox.pending(session) == []
