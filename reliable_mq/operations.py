"""What a person or a tool asks of the store: status, dead letters, known groups."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, func, select

from reliable_mq.adapter import Adapter
from reliable_mq.crashpoints import crash_point
from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.handlers import Guarantee, HandlerSpec
from reliable_mq.redaction import redact_url
from reliable_mq.status import GroupStatus, Status
from reliable_mq.store import Store
from reliable_mq.store.dead_letters import DeadLetters, StoredDeadLetter
from reliable_mq.store.leases import ensure_leases
from reliable_mq.store.outbox.held import outbox_status
from reliable_mq.store.retries import SLOT_NAMES, Retries, lease_kind

log = logging.getLogger("reliable_mq")

_OFF = {"relay": "off", "consumer": "off", "retries": "off"}


def declare_groups(store: Store, specs: Iterable[HandlerSpec]) -> None:
    """Write the lease rows of the handlers' retry slots: they are the known groups."""
    with store.transaction() as connection:
        for spec in specs:
            ensure_leases(connection, store, lease_kind(spec.topic, spec.group), SLOT_NAMES)


def check_nothing_waits(store: Store, specs: Iterable[HandlerSpec]) -> None:
    """Raise where messages wait in the store for a handler that would never look there."""
    retries = Retries(store)
    with store.reading() as connection:
        for spec in specs:
            if spec.guarantee is not Guarantee.EXACTLY_ONCE:
                continue
            waiting = retries.count(connection, spec.group, spec.topic)
            if waiting:
                raise ConfigurationError(
                    f"handler {spec.call.name}: {waiting} messages of {spec.topic}/{spec.group} "
                    "wait in the database for a retry, which guarantee 'exactly-once' does not "
                    "do: let them end under 'effectively-once' first"
                )


def check_replayable(store: Store, id_: int, specs: Iterable[HandlerSpec]) -> None:
    """Raise where nobody would handle the dead letter *id_* again, though its group is here."""
    exactly_once = [spec for spec in specs if spec.guarantee is Guarantee.EXACTLY_ONCE]
    found = dead_letter(store, id_) if exactly_once else None
    if found is None:
        return
    place = (found.letter.message.topic, found.letter.group)
    for spec in exactly_once:
        if (spec.topic, spec.group) == place:
            raise ConfigurationError(
                f"dead letter {id_} cannot be replayed: handler {spec.call.name} has guarantee "
                "'exactly-once' now, which takes nothing from the database; publish it anew, or "
                "replay it under 'effectively-once'"
            )


def known_groups(connection: Connection, store: Store) -> set[tuple[str, str]]:
    """Return every (topic, group) that any process has declared in this store."""
    kinds = select(store.tables.lease.c.kind).distinct()
    found = set()
    for kind in connection.execute(kinds).scalars():
        what, _, rest = kind.partition(":")
        topic, _, group = rest.rpartition(":")
        if what == "retry" and topic:
            found.add((topic, group))
    return found


def status(
    store: Store,
    adapter: Adapter,
    specs: Iterable[HandlerSpec],
    *,
    parts: Mapping[str, str] | None,
) -> Status:
    """Return the state of the outbox and of every known group."""
    retries = store.tables.retry.c
    waiting_query = select(retries.topic, retries.consumer_group, func.count()).group_by(
        retries.topic, retries.consumer_group
    )
    with store.reading() as connection:
        store.verify(connection)
        outbox = outbox_status(connection, store)
        waiting = {(t, g): n for t, g, n in connection.execute(waiting_query)}
        dead = DeadLetters(store).counts(connection)
        groups = known_groups(connection, store)
    groups |= {spec.key for spec in specs} | set(waiting) | set(dead)
    lags = _lags(adapter, sorted(groups))
    return Status(
        outbox=outbox,
        groups={
            key: GroupStatus(
                lag=lags.get(key), retries=waiting.get(key, 0), dead_letters=dead.get(key, 0)
            )
            for key in sorted(groups)
        },
        parts=dict(_OFF if parts is None else parts),
    )


def _lags(adapter: Adapter, groups: Iterable[tuple[str, str]]) -> dict[tuple[str, str], int]:
    found = {}
    for topic, group in groups:
        try:
            found[topic, group] = adapter.lag(topic, group)
        except ReliableMQError as error:
            log.warning("the lag of %s/%s is unknown: %s", topic, group, redact_url(str(error)))
            if isinstance(error, TransportError):
                break  # each further question would wait for the same broker
    return found


def dead_letters(
    store: Store,
    *,
    topic: str | None = None,
    group: str | None = None,
    limit: int = 100,
    after: int | None = None,
) -> list[StoredDeadLetter]:
    """Return dead letters by rising id, with their raw headers."""
    with store.reading() as connection:
        return DeadLetters(store).list(
            connection, topic=topic, group=group, limit=limit, after=after
        )


def dead_letter(store: Store, id_: int) -> StoredDeadLetter | None:
    """Return one dead letter, or None."""
    with store.reading() as connection:
        return DeadLetters(store).get(connection, id_)


def replay(store: Store, id_: int) -> bool:
    """Turn a dead letter into a retry that is due now; False where it is gone."""

    def write() -> bool:
        with store.transaction() as connection:
            found = DeadLetters(store).replay(connection, id_)
            crash_point("replay.written")
        return found

    replayed = store.patiently(write)
    crash_point("replay.committed")
    return replayed


def discard(store: Store, id_: int) -> bool:
    """Delete a dead letter; False where it is gone."""

    def write() -> bool:
        with store.transaction() as connection:
            found = DeadLetters(store).discard(connection, id_)
            crash_point("discard.written")
        return found

    return store.patiently(write)
