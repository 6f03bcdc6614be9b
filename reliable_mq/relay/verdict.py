"""From the broker's answers to what becomes of each row: a pure function."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from reliable_mq.adapter import Outcome, Refused, Sent, Unknown, Unroutable
from reliable_mq.relay.waiting import delay_after
from reliable_mq.store.outbox.outgoing import Outgoing, RowKey
from reliable_mq.store.outbox.sending import (
    MAX_CAUSE_BYTES,
    NO_ROUTE,
    NO_ROUTE_FOR_KEY,
    UNCONFIRMED,
    Later,
    Unfit,
)
from reliable_mq.store.texts import clean


@dataclass(slots=True)
class Verdict:
    """What becomes of the rows of one batch.

    ``stopped`` are the keys of which not every row was sent: the rest of them must wait for the
    next read. ``without_route`` are topics that none of the rows reached, with seconds to wait.
    ``outage`` is the cause where not one outcome is known: the broker is away.
    """

    sent: list[Outgoing] = field(default_factory=list)
    unfit: list[Unfit] = field(default_factory=list)
    later: list[Later] = field(default_factory=list)
    stopped: set[RowKey] = field(default_factory=set)
    without_route: dict[str, float] = field(default_factory=dict)
    outage: str | None = None

    def refuse(self, row: Outgoing, cause: str) -> None:
        """Note that *row* can never be sent; what follows it in its key is stopped."""
        self.unfit.append(Unfit(row, cause))
        self.stop(row)

    def stop(self, row: Outgoing) -> None:
        """Let what follows *row* in its key wait for the next read."""
        if row.key is not None:
            self.stopped.add(row.key)

    def is_stopped(self, row: Outgoing) -> bool:
        """Tell whether an earlier row of the same key was not sent."""
        return row.key is not None and row.key in self.stopped


def judge(rows: Sequence[Outgoing], outcomes: Sequence[Outcome], verdict: Verdict) -> Verdict:
    """Complete *verdict* with the *outcomes* of *rows*, which are in the order of their ids.

    Of each key only the first row that was not sent tells anything: by the prefix rule the ones
    behind it were not even tried.
    """
    failed: list[tuple[Outgoing, Outcome]] = []
    for row, outcome in zip(rows, outcomes, strict=True):
        if isinstance(outcome, Sent):
            verdict.sent.append(row)
        elif not verdict.is_stopped(row):
            failed.append((row, outcome))
            verdict.stop(row)
    _find_outage(verdict, failed)
    _find_routes(verdict, failed)
    for row, outcome in failed:
        _note(verdict, row, outcome)
    return verdict


def _find_outage(verdict: Verdict, failed: Iterable[tuple[Outgoing, Outcome]]) -> None:
    outcomes = [outcome for _, outcome in failed]
    unknown = [outcome for outcome in outcomes if isinstance(outcome, Unknown)]
    if unknown and len(unknown) == len(outcomes) and not verdict.sent:
        verdict.outage = _said(unknown[0])


def _find_routes(verdict: Verdict, failed: Iterable[tuple[Outgoing, Outcome]]) -> None:
    reached = {row.topic for row in verdict.sent}
    attempts: dict[str, int] = {}
    for row, outcome in failed:
        if isinstance(outcome, Unroutable) and row.topic not in reached:
            attempts[row.topic] = max(row.attempts, attempts.get(row.topic, 0))
    verdict.without_route = {topic: delay_after(count) for topic, count in attempts.items()}


def _said(outcome: Refused | Unroutable | Unknown) -> str:
    # What a broker says goes into logs, events and columns, none of which take every text.
    return clean(outcome.cause, MAX_CAUSE_BYTES)


def _note(verdict: Verdict, row: Outgoing, outcome: Outcome) -> None:
    if isinstance(outcome, Refused):
        verdict.refuse(row, _said(outcome))
    elif isinstance(outcome, Unroutable):
        whole = verdict.without_route.get(row.topic)
        prefix, delay = (
            (NO_ROUTE_FOR_KEY, delay_after(row.attempts)) if whole is None else (NO_ROUTE, whole)
        )
        verdict.later.append(Later(row, prefix + _said(outcome), delay, no_route=True))
    elif isinstance(outcome, Unknown):
        cause = UNCONFIRMED + _said(outcome)
        verdict.later.append(Later(row, cause, _delay_unconfirmed(verdict, row)))


def _delay_unconfirmed(verdict: Verdict, row: Outgoing) -> float | None:
    # In an outage it is the relay that waits, not each row; and once may be a coincidence.
    if verdict.outage is not None or row.attempts == 0:
        return None
    return delay_after(row.attempts - 1)
