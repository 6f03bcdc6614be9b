"""Times that must fit together: how long things are remembered, and how late they may come."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta

from reliable_mq.adapter import Adapter, Finding, Severity
from reliable_mq.doctor.broker import is_networked, shown
from reliable_mq.doctor.case import Case, group_name
from reliable_mq.durations import seconds
from reliable_mq.errors import ReliableMQError
from reliable_mq.handlers import Guarantee
from reliable_mq.redaction import redact_url


def window_findings(case: Case, adapter: Adapter, topics: Iterable[str]) -> Iterator[Finding]:
    """Compare ``inbox.retention`` with the broker's bound for *topics*. Asks the broker."""
    names = sorted(set(topics))
    if not names or not _deduplicates(case):
        return
    try:
        bound = adapter.redelivery_bound(names)
    except ReliableMQError as error:
        yield _unknown(case, error)
        return
    retention = seconds(case.settings.inbox.retention)
    if bound is None:
        yield _unbounded(case, retention)
    elif bound.total_seconds() > retention:
        yield _too_short(bound, retention)


def _deduplicates(case: Case) -> bool:
    guarantees = {spec.guarantee for spec in case.handlers.values()}
    return not guarantees or Guarantee.EFFECTIVELY_ONCE in guarantees


def _unknown(case: Case, error: Exception) -> Finding:
    return Finding(
        code="not-checked",
        severity=Severity.WARNING,
        subject="inbox.retention",
        what=f"how late the broker may deliver is unknown: {redact_url(str(error))}",
        why="a copy that comes after the inbox forgot its message is handled again",
        remedy="mend what the broker says",
    )


def _unbounded(case: Case, retention: float) -> Finding:
    return Finding(
        code="inbox-unbounded",
        severity=Severity.INFO,
        subject="inbox.retention",
        what=f"{shown(case)} states no bound on how late it may deliver; the inbox remembers "
        f"{timedelta(seconds=retention)}",
        why="a copy that comes later than that is handled again",
        remedy="keep inbox.retention above the longest time your consumers may be away",
    )


def _too_short(bound: timedelta, retention: float) -> Finding:
    return Finding(
        code="inbox-retention",
        severity=Severity.ERROR,
        subject="inbox.retention",
        what=f"it is {timedelta(seconds=retention)}, and the broker may deliver a message again "
        f"for {bound}",
        why="the inbox has forgotten the message by then, and its handler runs once more",
        remedy="raise inbox.retention above the broker's retention, or lower that",
    )


def setting_findings(case: Case) -> Iterator[Finding]:
    """Yield what does not fit together in the application itself. Asks nobody."""
    retention = seconds(case.settings.inbox.retention)
    for key, spec in case.handlers.items():
        longest = seconds(spec.retry.max_delay) * (1 + spec.retry.jitter)
        if longest >= retention and spec.retry.max_attempts > 1:
            yield Finding(
                code="retry-delay",
                severity=Severity.WARNING,
                subject=group_name(key),
                what=f"a retry may wait {longest:g} s, inbox.retention is {retention:g} s",
                why="a copy of a message that is handled so late may come after it was forgotten",
                remedy="raise inbox.retention, or lower max_delay of the handler's retry policy",
            )
    if case.store.dialect.name == "sqlite" and is_networked(case):
        yield _local_store(case)


def _local_store(case: Case) -> Finding:
    return Finding(
        code="sqlite-networked-broker",
        severity=Severity.WARNING,
        subject=case.store.shown_url,
        what=f"the store is a file of this machine, and the broker {shown(case)} can be reached "
        "from others",
        why="each machine has an inbox of its own: a message that is delivered again to another "
        "one is handled twice, and retries of a lost machine are lost",
        remedy="use PostgreSQL or MariaDB, or run every process of the group on this machine",
    )
