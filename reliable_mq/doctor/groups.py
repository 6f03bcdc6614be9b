"""Consumer groups: declared, consumed, and with nothing left behind."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection, and_, func, or_, select

from reliable_mq.adapter import Finding, Severity
from reliable_mq.doctor.broker import Lag
from reliable_mq.doctor.case import LONG, Case, GroupKey, group_name
from reliable_mq.doctor.leases import Share, is_alive
from reliable_mq.durations import seconds
from reliable_mq.handlers import Guarantee, HandlerSpec
from reliable_mq.operations import known_groups
from reliable_mq.store import Store
from reliable_mq.store.dead_letters import DeadLetters
from reliable_mq.store.retries import Retries, lease_kind


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupState:
    """What the store knows of a group. ``overdue`` is in seconds, None without retries due."""

    key: GroupKey
    declared: bool
    alive: bool
    retries: int = 0
    overdue: float | None = None
    dead_letters: int = 0


def read_groups(
    connection: Connection, case: Case, shares: Mapping[str, Share]
) -> list[GroupState]:
    """Return the state of each group that the store or the application knows."""
    store = case.store
    declared = known_groups(connection, store)
    waiting = _waiting(connection, store)
    dead = DeadLetters(store).counts(connection)
    keys = {*declared, *case.handlers, *waiting, *dead, *_embedded(connection, case)}
    keys |= _remembered(connection, store)
    return [
        GroupState(
            key=key,
            declared=key in declared,
            alive=is_alive(shares, lease_kind(*key)),
            retries=waiting.get(key, 0),
            overdue=_overdue(connection, case, key) if key in waiting else None,
            dead_letters=dead.get(key, 0),
        )
        for key in sorted(keys)
    ]


def _waiting(connection: Connection, store: Store) -> dict[GroupKey, int]:
    c = store.tables.retry.c
    query = select(c.topic, c.consumer_group, func.count()).group_by(c.topic, c.consumer_group)
    return {(topic, group): count for topic, group, count in connection.execute(query)}


def _overdue(connection: Connection, case: Case, key: GroupKey) -> float | None:
    spec = case.handlers.get(key)
    # Of a group that may be ordered only heads: what waits behind one is due all the time.
    left = Retries(case.store).next_due_in(
        connection, key[1], key[0], heads_only=spec is None or spec.ordered
    )
    return -left if left is not None and left < 0 else None


def _embedded(connection: Connection, case: Case) -> set[GroupKey]:
    """Return the groups for which topics in the database keep their messages."""
    if case.store.adapter != "sql":
        return set()
    c = case.store.tables.topic_cursor.c
    found = connection.execute(select(c.topic, c.consumer_group).distinct())
    return {(topic, group) for topic, group in found}


def _remembered(connection: Connection, store: Store) -> set[GroupKey]:
    """Return the groups of the inbox, which may be huge: from one to the next by its key."""
    c = store.tables.inbox.c
    found: set[GroupKey] = set()
    step = select(c.consumer_group, c.topic).order_by(c.consumer_group, c.topic).limit(1)
    row = connection.execute(step).first()
    while row is not None:
        group, topic = row
        found.add((topic, group))
        same, later = and_(c.consumer_group == group, c.topic > topic), c.consumer_group > group
        row = connection.execute(step.where(same)).first()
        row = row or connection.execute(step.where(or_(later))).first()
    return found


# --- findings -----------------------------------------------------------------------------------


def group_findings(
    case: Case, states: Iterable[GroupState], lags: Mapping[GroupKey, Lag]
) -> Iterator[Finding]:
    """Yield what is wrong with each group, and what waits for a person."""
    for state in states:
        lag = lags.get(state.key)
        handler = case.handlers.get(state.key)
        if handler is not None and (not state.declared or isinstance(lag, str)):
            yield _undeclared(state, lag)
        else:
            yield from _unattended(state, lag, handler, known=bool(case.handlers))
        yield from _retries(case, state)
        if state.dead_letters:
            yield _dead_letters(state)


def _undeclared(state: GroupState, lag: Lag | None) -> Finding:
    return Finding(
        code="group-undeclared",
        severity=Severity.ERROR,
        subject=group_name(state.key),
        what=lag if isinstance(lag, str) else "there is a handler, and the store knows no group",
        why="what is published before the group is declared may not reach it",
        remedy="run reliable-mq declare",
    )


def _unattended(
    state: GroupState, lag: Lag | None, handler: HandlerSpec | None, *, known: bool
) -> Iterator[Finding]:
    if isinstance(lag, str):
        yield _lag_unknown(state, lag)
    if state.alive:
        return  # by this application or by another one on the same tables
    left = [f"{lag} messages"] if lag and not isinstance(lag, str) else []
    left += [f"{state.retries} retries"] if state.retries else []
    if handler is not None and handler.guarantee is Guarantee.EXACTLY_ONCE:
        yield _unseen(state, left)
    elif known and handler is None:
        left += [f"{state.dead_letters} dead letters"] if state.dead_letters else []
        yield _orphaned(state, left)
    elif state.declared or left:
        yield _idle(state, left)


def _lag_unknown(state: GroupState, reason: str) -> Finding:
    return Finding(
        code="not-checked",
        severity=Severity.WARNING,
        subject=group_name(state.key),
        what=f"its lag is unknown: {reason}",
        why="what waits for it on the broker is not seen",
        remedy="give --app, which knows the topic's partitions; or declare the group",
    )


def _orphaned(state: GroupState, left: list[str]) -> Finding:
    return Finding(
        code="group-orphaned",
        severity=Severity.WARNING if left else Severity.INFO,
        subject=group_name(state.key),
        what="the application has no handler for it, and no process runs one"
        + (f"; {', '.join(left)} wait for it" if left else ""),
        why="the broker keeps every message for it, and its retries are never made",
        remedy="if it was renamed or given up, delete it on the broker (docs/doctor.md) with its "
        "rows; if another application has it, start that",
    )


def _idle(state: GroupState, left: list[str]) -> Finding:
    return Finding(
        code="group-idle",
        severity=Severity.WARNING if left else Severity.INFO,
        subject=group_name(state.key),
        what="no process runs its handler" + (f"; {', '.join(left)} wait" if left else ""),
        why="its messages are kept, and nothing is done with them",
        remedy="start reliable-mq run or reliable-mq consume",
    )


def _unseen(state: GroupState, left: list[str]) -> Finding:
    return Finding(
        code="group-unseen",
        severity=Severity.INFO,
        subject=group_name(state.key),
        what="whether a process runs its handler cannot be seen: exactly-once leaves no lease in "
        "the database" + (f"; {', '.join(left)} wait" if left else ""),
        why="if none runs, its messages are kept, and nothing is done with them",
        remedy="look at the members of the group with Kafka's tools",
    )


def _retries(case: Case, state: GroupState) -> Iterator[Finding]:
    limit = case.settings.consumer.max_waiting_retries
    if state.retries >= limit:
        yield Finding(
            code="retries-full",
            severity=Severity.WARNING,
            subject=group_name(state.key),
            what=f"{state.retries} messages wait for a retry, the limit is {limit}",
            why="the group takes nothing new in until some are done",
            remedy="mend what its handler needs; the log has the causes",
        )
    late = max(LONG, 2 * seconds(case.settings.consumer.lease))
    if state.alive and state.overdue is not None and state.overdue > late:
        yield Finding(
            code="retries-overdue",
            severity=Severity.WARNING,
            subject=group_name(state.key),
            what=f"a retry has been due for {state.overdue:.0f} s, though a process runs",
            why="its handler takes that long, all workers are busy, or the process stands still",
            remedy="see its log; give the handler a timeout, or the group more concurrency",
        )


def _dead_letters(state: GroupState) -> Finding:
    return Finding(
        code="dead-letters",
        severity=Severity.WARNING,
        subject=group_name(state.key),
        what=f"{state.dead_letters} dead letters wait for a decision",
        why="these messages were not handled, and never will be by themselves",
        remedy="reliable-mq dlq ls shows why; replay or discard them",
    )
