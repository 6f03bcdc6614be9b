"""What the tables say: what waits, for whom, and who should take care of it. On each database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import insert, literal, update

from reliable_mq import RetryPolicy
from reliable_mq.adapter import Finding, Severity
from reliable_mq.app import ReliableMQ
from reliable_mq.doctor import diagnose
from reliable_mq.settings import Settings
from reliable_mq.store.dead_letters import DeadLetters
from reliable_mq.store.inbox import Inbox
from reliable_mq.store.retries import Retries
from reliable_mq.store.times import duration_micros
from reliable_mq.testing.messages import make_message

ERROR, WARNING, INFO = Severity.ERROR, Severity.WARNING, Severity.INFO

MakeMQ = Callable[..., ReliableMQ]


@pytest.fixture
def make_mq(store_url: str) -> Iterator[MakeMQ]:
    """Applications of one service: topics in the database itself."""
    with ExitStack() as stack:

        def make(*groups: str, topic: str = "orders", **settings: Any) -> ReliableMQ:
            mq = stack.enter_context(ReliableMQ(Settings(database_url=store_url, **settings)))
            for group in groups:
                mq.handler(topic, group=group)(_ignore)
            return mq

        yield make


def _ignore(order: str) -> None:
    """Never called."""


def found(mq: ReliableMQ, *codes: str) -> list[Finding]:
    return [one for one in diagnose(mq) if one.code in codes]


def the(mq: ReliableMQ, code: str) -> Finding:
    (finding,) = found(mq, code)
    return finding


def seen(mq: ReliableMQ, code: str) -> Severity | None:
    return next((one.severity for one in found(mq, code)), None)


def age_outbox(mq: ReliableMQ, seconds: float, **values: Any) -> None:
    """Make the outbox older, and note what a relay would."""
    table = mq.store.tables.outbox
    with mq.store.transaction() as connection:
        older = table.c.created_at - duration_micros(seconds)
        connection.execute(update(table).values(created_at=older, **values))


def lease(mq: ReliableMQ, kind: str, name: str, owner: str | None, expires_in: float) -> None:
    """Write a lease row as a process would have left it."""
    table = mq.store.tables.lease
    expires = mq.store.now() + literal(duration_micros(expires_in))
    values = {"owner": owner, "expires_at": expires if owner else 0}
    with mq.store.transaction() as connection:
        done = connection.execute(
            update(table).where(table.c.kind == kind, table.c.name == name).values(values)
        )
        if not done.rowcount:
            connection.execute(insert(table).values(kind=kind, name=name, **values))


def publish(mq: ReliableMQ, topic: str = "orders") -> None:
    with mq.transaction():
        mq.publish(topic, "unicorn")


# --- the outbox ---------------------------------------------------------------------------------


def test_messages_that_no_relay_sends_are_a_warning(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    mq.declare()
    assert seen(mq, "relay-missing") is INFO
    publish(mq)
    assert the(mq, "relay-missing").what == "no relay runs, and 1 messages wait in the outbox"
    assert seen(mq, "relay-missing") is WARNING
    lease(mq, "relay", "0", "somebody", 60)
    assert seen(mq, "relay-missing") is None
    assert seen(mq, "outbox-waiting") is None
    age_outbox(mq, 120, cause="unconfirmed: the broker is away")
    assert "the broker is away" in the(mq, "outbox-waiting").what


def test_messages_without_a_route_are_named_by_their_topic(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.declare()
    publish(mq, "nowhere")
    age_outbox(mq, 120, cause="unroutable: there is no topic 'nowhere'")
    finding = the(mq, "outbox-unroutable")
    assert (finding.severity, finding.subject) == (WARNING, "topic nowhere")
    assert finding.what.startswith("1 messages in the outbox have no place to go, the oldest is 12")


def test_a_topic_that_the_broker_does_not_know_is_found_after_a_real_relay_tried_it(
    make_mq: MakeMQ,
) -> None:
    mq = make_mq("billing")
    mq.declare()
    publish(mq, "nowhere")
    mq.run_until_idle()
    assert the(mq, "outbox-unroutable").subject == "topic nowhere"


def test_held_messages_are_a_warning(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.declare()
    table = mq.store.tables.outbox_held
    row = {
        **{column.name: 0 for column in table.c if column.type.python_type is int},
        "message_id": "1",
        "topic": "orders",
        "body": b"{}",
        "headers": b"[]",
    }
    with mq.store.transaction() as connection:
        connection.execute(insert(table).values(row))
    assert the(mq, "outbox-held").what == "1 messages were refused for good and are held"


# --- leases -------------------------------------------------------------------------------------


def test_leases_of_a_killed_process_that_nobody_took_over_are_a_warning(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    mq.declare()
    assert found(mq, "lease-expired", "lease-unowned") == []
    kind = "retry:orders:billing"
    lease(mq, kind, "3", "dead", -90)
    lease(mq, kind, "@dead", "dead", -90)
    finding = the(mq, "lease-expired")
    assert finding.severity is WARNING
    assert finding.subject == "leases: retries of group billing of topic orders"
    assert finding.what.startswith("1 leases ran out 9")
    lease(mq, kind, "@living", "living", 60)
    assert seen(mq, "lease-expired") is None
    # The one that ran out and the seven that nobody ever had.
    assert the(mq, "lease-unowned").what.startswith("8 leases have no owner")


def test_a_process_that_runs_leaves_no_lease_without_owner(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    other = make_mq("billing")
    with mq.running():
        wait_until(lambda: not found(other, "relay-missing", "group-idle", "lease-unowned"))
    assert found(other, "lease-expired", "lease-unowned") == []
    assert {one.severity for one in found(other, "relay-missing", "group-idle")} == {INFO}


# --- groups -------------------------------------------------------------------------------------


def test_a_handler_whose_group_was_never_declared_is_an_error(make_mq: MakeMQ) -> None:
    make_mq("billing").declare()
    mq = make_mq("billing", "shipping")
    finding = the(mq, "group-undeclared")
    assert (finding.severity, finding.subject) == (ERROR, "group shipping of topic orders")


def test_a_group_without_a_handler_is_said_and_is_a_warning_once_something_waits_for_it(
    make_mq: MakeMQ,
) -> None:
    old = make_mq("billing", "renamed")
    old.declare()
    mq = make_mq("billing")
    finding = the(mq, "group-orphaned")
    assert (finding.severity, finding.subject) == (INFO, "group renamed of topic orders")
    publish(mq)
    mq.run_until_idle()
    assert "1 messages wait for it" in the(mq, "group-orphaned").what
    assert seen(mq, "group-orphaned") is WARNING
    # Another application on the same tables may have it.
    lease(mq, "retry:orders:renamed", "@other", "other", 60)
    assert seen(mq, "group-orphaned") is None


def test_without_handlers_a_group_that_nobody_runs_is_idle_and_not_orphaned(
    make_mq: MakeMQ,
) -> None:
    mq = make_mq("billing")
    mq.declare()
    publish(mq)
    mq.run_until_idle(consume=False)
    publisher = make_mq()
    assert seen(publisher, "no-handlers") is INFO
    finding = the(publisher, "group-idle")
    assert (finding.severity, finding.subject) == (WARNING, "group billing of topic orders")
    assert "1 messages wait" in finding.what
    assert found(publisher, "group-orphaned", "group-undeclared") == []


def test_a_group_that_only_the_inbox_remembers_is_found_by_its_key(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    mq.declare()
    inbox = Inbox(mq.store)
    with mq.store.transaction() as connection:
        for group, topic in (("a", "x"), ("a", "y"), ("b", "x"), ("billing", "orders")):
            messages = [make_message(topic=topic) for _ in range(3)]
            inbox.claim(connection, group, messages, lock_timeout=5)
    subjects = [one.subject for one in found(mq, "group-orphaned")]
    assert subjects == [f"group {group} of topic {topic}" for topic, group in ("xa", "xb", "ya")]


def test_dead_letters_are_a_warning_with_their_group(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    mq.declare()
    letters = DeadLetters(mq.store)
    with mq.store.transaction() as connection:
        message = make_message(topic="orders")
        letters.add(connection, "billing", message, [], attempts=8, cause="ValueError")
    finding = the(mq, "dead-letters")
    assert (finding.severity, finding.what) == (WARNING, "1 dead letters wait for a decision")


def test_retries_that_are_overdue_though_a_process_runs_are_a_warning(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    mq.declare()
    retries = Retries(mq.store)
    with mq.store.transaction() as connection:
        message = make_message(topic="orders")
        retries.add(connection, "billing", message, [], attempt=1, delay=-200)
    assert "1 retries wait" in the(mq, "group-idle").what
    assert seen(mq, "retries-overdue") is None
    lease(mq, "retry:orders:billing", "0", "living", 60)
    assert the(mq, "retries-overdue").what.startswith("a retry has been due for 20")


def test_what_waits_behind_an_earlier_retry_of_its_key_is_not_overdue(make_mq: MakeMQ) -> None:
    mq = make_mq()
    mq.handler("orders", group="billing", ordered=True)(_ignore)
    mq.declare()
    retries = Retries(mq.store)
    with mq.store.transaction() as connection:
        for delay in (300, -200):
            message = make_message(topic="orders", key="ann")
            retries.add(connection, "billing", message, [], attempt=1, delay=delay)
    lease(mq, "retry:orders:billing", "0", "living", 60)
    assert seen(mq, "retries-overdue") is None


def test_a_group_that_is_paused_by_its_retries_is_a_warning(make_mq: MakeMQ) -> None:
    mq = make_mq("billing", consumer={"max_waiting_retries": 2})
    mq.declare()
    retries = Retries(mq.store)
    for expected in (None, WARNING):
        with mq.store.transaction() as connection:
            message = make_message(topic="orders")
            retries.add(connection, "billing", message, [], attempt=1, delay=300)
        assert seen(mq, "retries-full") is expected


# --- times --------------------------------------------------------------------------------------


def test_a_broker_that_may_deliver_later_than_the_inbox_remembers_is_an_error(
    make_mq: MakeMQ,
) -> None:
    mq = make_mq("billing")
    mq.topic("orders", options={"retention": 3600})
    mq.declare()
    assert found(mq, "inbox-retention", "inbox-unbounded") == []
    short = make_mq("billing", inbox={"retention": timedelta(minutes=30)})
    finding = the(short, "inbox-retention")
    assert (finding.severity, finding.what) == (
        ERROR,
        "it is 0:30:00, and the broker may deliver a message again for 1:00:00",
    )


def test_a_broker_that_states_no_bound_is_said(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    mq.declare()
    assert seen(mq, "inbox-unbounded") is INFO


def test_a_handler_whose_retries_outlast_the_inbox_is_a_warning(make_mq: MakeMQ) -> None:
    mq = make_mq(inbox={"retention": timedelta(hours=1)}, retry={"max_delay": 60})
    slow = RetryPolicy(max_delay=timedelta(minutes=55))
    mq.handler("orders", group="billing", retry=slow)(_ignore)
    mq.handler("orders", group="shipping")(_ignore)
    assert the(mq, "retry-delay").subject == "group billing of topic orders"


def test_findings_are_sorted_by_severity(make_mq: MakeMQ) -> None:
    mq = make_mq("billing")
    mq.declare()
    publish(mq)
    severities = [one.severity for one in diagnose(make_mq("billing", "shipping"))]
    assert severities == sorted(severities, key=list(Severity).index)
    assert set(severities) == set(Severity)


def wait_until(condition: Callable[[], object]) -> None:
    import time

    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
