"""What in the settings of broker, database and application would break the promises.

``reliable-mq doctor`` shows what :func:`diagnose` returns. docs/doctor.md lists the findings.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from sqlalchemy.exc import DBAPIError

from reliable_mq.adapter import Finding, Severity
from reliable_mq.declaring import topics_to_declare
from reliable_mq.doctor import broker, groups, leases, outbox, windows
from reliable_mq.doctor.case import Case
from reliable_mq.durations import seconds
from reliable_mq.relay.relay import LEASE_KIND
from reliable_mq.store.inspection import Expected, inspect_store
from reliable_mq.store.texts import cause_of

if TYPE_CHECKING:
    from reliable_mq.app import ReliableMQ

__all__ = ["diagnose"]

_ORDER = list(Severity)


def diagnose(mq: ReliableMQ) -> list[Finding]:
    """Look at everything *mq* depends on; return the findings, the worst first.

    Changes nothing, and declares nothing. Uses the store's engine and an adapter of its own.
    Blocks: for what cannot be reached, as long as its client tries to connect. Does not raise
    for broker's or database's sake; a part that cannot be checked is a finding.
    """
    specs = mq.handlers
    case = Case(
        settings=mq.settings,
        store=mq.store,
        topics={spec.name: spec for spec in topics_to_declare(mq.topics, specs)},
        handlers={spec.key: spec for spec in specs},
    )
    found = [*_examined(case)]
    return sorted(found, key=lambda finding: _ORDER.index(finding.severity))


def _examined(case: Case) -> Iterator[Finding]:
    if not case.handlers:
        yield _no_handlers()
    yield from windows.setting_findings(case)
    report = inspect_store(case.store, _expected(case))
    yield from report.findings
    state = _State()
    if report.complete:
        yield from state.read(case)
    if report.reachable or broker.is_networked(case):
        yield from _of_broker(case, state)


def _expected(case: Case) -> Expected:
    return Expected(
        max_message_bytes=case.settings.max_message_bytes,
        idle_in_transaction=seconds(case.settings.consumer.idle_in_transaction),
        connections=case.connections,
        embedded=case.store.adapter == "sql",
    )


def _no_handlers() -> Finding:
    return Finding(
        code="no-handlers",
        severity=Severity.INFO,
        subject="application",
        what="no handlers are known",
        why="which topics and groups should be there, and how, cannot be compared",
        remedy="give --app module:attr of the application that has the handlers",
    )


class _State:
    """What the library's tables say of groups. Empty until it was read."""

    def __init__(self) -> None:
        self.groups: list[groups.GroupState] = []

    def read(self, case: Case) -> Iterator[Finding]:
        """Read it, and yield what is wrong with the outbox and the leases."""
        store = case.store
        try:
            with store.engine.connect() as connection:
                shares = leases.read_shares(connection, store)
                topics = outbox.read_topics(connection, store)
                held = outbox.count_held(connection, store)
                self.groups = groups.read_groups(connection, case, shares)
        except DBAPIError as error:
            yield _not_read(error)
            return
        relay = leases.is_alive(shares, LEASE_KIND)
        yield from leases.lease_findings(shares.values())
        yield from outbox.outbox_findings(topics, held, relay=relay)


def _not_read(error: DBAPIError) -> Finding:
    return Finding(
        code="not-checked",
        severity=Severity.WARNING,
        subject="tables",
        what=f"outbox, groups and leases could not be read: {cause_of(error, 500)}",
        why="what waits, and for whom, is not seen",
        remedy="GRANT SELECT on all tables of the library to the application's user",
    )


def _of_broker(case: Case, state: _State) -> Iterator[Finding]:
    keys = [group.key for group in state.groups]
    with closing(broker.open_broker(case, keys)) as adapter:
        reachable = True
        # Topics in the database: it was looked at before, by what this application expects.
        if case.store.adapter != "sql":
            found, reachable = broker.broker_findings(case, adapter)
            yield from found
        lags: dict[tuple[str, str], broker.Lag] = {}
        if reachable:
            lags = broker.lags(adapter, keys)
            handled = case.handlers or keys
            yield from windows.window_findings(case, adapter, [topic for topic, _ in handled])
    yield from groups.group_findings(case, state.groups, lags)
