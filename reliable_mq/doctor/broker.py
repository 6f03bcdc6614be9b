"""The broker: what its adapter sees, and how far each group is."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from reliable_mq.adapter import Adapter, AdapterContext, Finding, Severity, TopicSpec
from reliable_mq.declaring import groups_to_declare
from reliable_mq.doctor.case import Case, GroupKey
from reliable_mq.durations import seconds
from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.message import new_message_id
from reliable_mq.redaction import redact_url
from reliable_mq.registry import open_adapter, scheme_of
from reliable_mq.store.texts import cause_of

log = logging.getLogger("reliable_mq")

Lag = int | str
"""How many messages wait, or why that is not known."""


def open_broker(case: Case, known: Iterable[GroupKey]) -> Adapter:
    """Return an adapter of our own, so that what is examined stays as it is. No I/O.

    Without handlers the topics are those of the *known* groups.
    """
    topics = dict(case.topics)
    if not case.handlers:
        for topic, group in known:
            for name in _names(case, topic, group):
                topics.setdefault(name, TopicSpec(name=name))
    settings = case.settings
    context = AdapterContext(
        instance=new_message_id(),
        topics=topics,
        client_options=settings.client_options,
        lease=seconds(settings.consumer.lease),
        max_message_bytes=settings.max_message_bytes,
        store=case.store,
        groups=tuple(groups_to_declare(case.handlers.values())),
    )
    return open_adapter(settings.broker_url, context)


def _names(case: Case, topic: str, group: str) -> list[str]:
    letters = case.settings.dead_letter
    return [topic, letters.topic_for(topic, group)] if letters.publish else [topic]


def broker_findings(case: Case, adapter: Adapter) -> tuple[list[Finding], bool]:
    """Return what the adapter finds, and whether the broker can be reached at all."""
    try:
        return adapter.inspect(), True
    except TransportError as error:
        return [_unreachable(case, error)], False
    except ConfigurationError as error:
        return [_refused(case, error)], True
    except Exception as error:  # an adapter's bug must not hide what else there is
        log.debug("the adapter's inspection failed", exc_info=True)
        return [_failed(case, error)], True


def shown(case: Case) -> str:
    """Return the broker's URL without its secrets."""
    return redact_url(case.settings.broker_url)


def _unreachable(case: Case, error: Exception) -> Finding:
    return Finding(
        code="broker-unreachable",
        severity=Severity.ERROR,
        subject=shown(case),
        what=str(error),
        why="nothing is sent and nothing received; what is published waits in the outbox",
        remedy="start the broker, or mend its address in broker_url",
    )


def _refused(case: Case, error: Exception) -> Finding:
    return Finding(
        code="broker-refused",
        severity=Severity.ERROR,
        subject=shown(case),
        what=str(error),
        why="its settings could not be checked",
        remedy="mend what it says; docs/brokers.md lists the permissions that are needed",
    )


def _failed(case: Case, error: Exception) -> Finding:
    return Finding(
        code="not-checked",
        severity=Severity.WARNING,
        subject=shown(case),
        what=f"its settings could not be checked: {cause_of(error, 500)}",
        why="what is not seen may still break a promise",
        remedy="report this; check the broker's settings by hand against docs/brokers.md",
    )


def lags(adapter: Adapter, keys: Iterable[GroupKey]) -> dict[GroupKey, Lag]:
    """Return each group's lag, or the reason why there is none.

    Asks no further once the broker does not answer: each question would wait as long again.
    """
    found: dict[GroupKey, Lag] = {}
    for topic, group in keys:
        try:
            found[topic, group] = adapter.lag(topic, group)
        except ReliableMQError as error:
            found[topic, group] = redact_url(str(error))
            if isinstance(error, TransportError):
                break
    return found


def is_networked(case: Case) -> bool:
    """Tell whether the broker can be reached from several machines."""
    return scheme_of(case.settings.broker_url) not in {"sql", "memory"}
