"""Publishing into an ORM session with savepoints: a message shares the fate of its savepoint."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, SessionTransaction

from reliable_mq.errors import NoTransactionError
from tests.store.shop import Order, listening, orders, publish, stored


def test_a_savepoint_that_is_released_keeps_its_messages_and_their_order(store, shop):
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        with session.begin_nested():
            publish(store, session, "b")
            with session.begin_nested():
                publish(store, session, "c")
            publish(store, session, "d")
        publish(store, session, "e")
    assert stored(store) == list("abcde")


def test_a_savepoint_that_is_rolled_back_takes_its_messages_with_it(store, shop):
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        savepoint = session.begin_nested()
        publish(store, session, "b")
        savepoint.rollback()
        publish(store, session, "c")
    assert stored(store) == ["a", "c"]


def test_an_outer_savepoint_rolled_back_takes_a_released_inner_ones_messages(store, shop):
    with Session(shop) as session, session.begin():
        outer = session.begin_nested()
        with session.begin_nested():
            publish(store, session, "a")
        publish(store, session, "b")
        outer.rollback()
        publish(store, session, "c")
    assert stored(store) == ["c"]


def test_an_error_inside_a_savepoint_takes_only_its_messages(store, shop):
    with Session(shop) as session, session.begin():
        session.add(Order(number=1, customer="ann"))
        session.flush()
        publish(store, session, "a")

        def work() -> None:
            with session.begin_nested():
                publish(store, session, "b")
                session.execute(insert(Order).values(number=1, customer="bob"))

        with pytest.raises(IntegrityError):
            work()
        publish(store, session, "c")
    assert stored(store) == ["a", "c"]


def test_a_flush_that_failed_inside_a_savepoint_takes_only_its_messages(store, shop):
    with Session(shop) as session, session.begin():
        session.add(Order(number=1, customer="ann"))
        session.flush()
        publish(store, session, "a")
        session.expunge_all()

        def work() -> None:
            with session.begin_nested():
                publish(store, session, "b")
                session.add(Order(number=1, customer="bob"))

        with pytest.raises(IntegrityError):
            work()
        publish(store, session, "c")
    assert stored(store) == ["a", "c"]


def test_session_commit_inside_savepoints_commits_all_of_them(store, shop):
    with Session(shop) as session:
        publish(store, session, "a")
        session.begin_nested()
        publish(store, session, "b")
        session.begin_nested()
        publish(store, session, "c")
        session.commit()
        session.commit()
        session.commit()
    assert stored(store) == list("abc")


@pytest.mark.parametrize("depth", [1, 2])
def test_savepoints_left_open_at_the_end_of_the_block_are_committed_in_order(store, shop, depth):
    with Session(shop) as session, session.begin():
        publish(store, session, "a")
        for level in range(depth):
            session.begin_nested()
            publish(store, session, f"b{level}")
    assert stored(store) == ["a", *(f"b{level}" for level in range(depth))]


def test_a_hook_may_publish_while_savepoints_left_open_are_committed(store, shop):
    with Session(shop) as session:

        def hook(session: Session, context: Any) -> None:
            publish(store, session, f"hook{len(session.new)}")

        with listening(session, "after_flush", hook), session.begin():
            session.begin_nested()
            publish(store, session, "a")
            session.add(Order(number=1, customer="ann"))
    assert stored(store) == ["a", "hook1"]


def test_a_hook_may_publish_once_the_savepoints_left_open_are_committed(store, shop):
    with Session(shop) as session:

        def add_another(session: Session, transaction: SessionTransaction) -> None:
            if transaction.nested:
                session.add(Order(number=1, customer="ann"))

        def hook(session: Session, context: Any) -> None:
            publish(store, session, "hook")

        with (
            listening(session, "after_transaction_end", add_another),
            listening(session, "after_flush", hook),
            session.begin(),
        ):
            publish(store, session, "a")
            session.begin_nested()
            publish(store, session, "b")
    assert (stored(store), orders(store)) == (["a", "b", "hook"], 1)


def test_a_savepoint_of_the_connection_that_the_session_does_not_know_is_refused(store, shop):
    with Session(shop) as session, session.begin():
        session.add(Order(number=1, customer="ann"))
        session.flush()
        with session.connection().begin_nested() as savepoint:
            with pytest.raises(NoTransactionError, match="savepoint"):
                publish(store, session, "a")
            savepoint.rollback()
        publish(store, session, "b")
    assert stored(store) == ["b"]


def test_the_same_within_a_savepoint_of_the_session(store, shop):
    with Session(shop) as session, session.begin():
        with session.begin_nested():
            with session.connection().begin_nested() as savepoint:
                with pytest.raises(NoTransactionError, match="savepoint"):
                    publish(store, session, "a")
                savepoint.rollback()
            publish(store, session, "b")
        publish(store, session, "c")
    assert stored(store) == ["b", "c"]
