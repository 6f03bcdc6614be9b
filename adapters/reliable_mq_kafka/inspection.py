"""Looking at brokers, topics and groups for what would break the promises."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TypeVar

from confluent_kafka.admin import TopicDescription

from reliable_mq.adapter import Finding, GroupSpec, Severity, TopicSpec
from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq_kafka.admin import Admin
from reliable_mq_kafka.broker_checks import (
    OFFSETS,
    TRANSACTIONS,
    Settings,
    of_broker,
    of_internal_topics,
)
from reliable_mq_kafka.declare import places_of
from reliable_mq_kafka.options import Options
from reliable_mq_kafka.topic_checks import missing, of_topic

T = TypeVar("T")

_INTERNAL = (OFFSETS, TRANSACTIONS)


class Inspection:
    """One look at everything. What the user has no right to see becomes a finding as well."""

    def __init__(self, admin: Admin, options: Options, message_bytes: int) -> None:
        self._admin = admin
        self._options = options
        self._message_bytes = message_bytes
        self._unseen: list[Finding] = []

    def findings(
        self, topics: Mapping[str, TopicSpec], groups: Iterable[GroupSpec]
    ) -> list[Finding]:
        """See ``Adapter.inspect``: every broker, the *topics*, the brokers' own, the *groups*.

        Raises where no broker can be reached, or the login is refused.
        """
        names = [*topics, *_INTERNAL]
        brokers = self._admin.broker_ids(names[0])
        described = self._describe(names)
        found = [*self._of_brokers(brokers, described)]
        found += [missing(name) for name in sorted(topics) if name not in described]
        for name, description in sorted(described.items()):
            if description is not None:
                found += self._of_topic(name, description, topics.get(name))
        seen = {name: one for name, one in described.items() if one is not None}
        found += [finding for one in groups for finding in self._of_group(one, seen)]
        return [*found, *self._unseen]

    def _describe(self, names: Iterable[str]) -> dict[str, TopicDescription | None]:
        """Return the topics that exist; None stands for one that may not be seen."""
        found: dict[str, TopicDescription | None] = {}
        for name in names:
            answer = self._asked(f"topic {name}", partial(self._admin.describe, [name]))
            if answer is None:
                found[name] = None
            else:
                found |= answer
        return found

    def _of_brokers(
        self, brokers: Iterable[int], described: Mapping[str, object]
    ) -> Iterator[Finding]:
        """Yield what is wrong with the brokers, once for all that it is wrong with."""
        ids = sorted(brokers)
        absent = set(_INTERNAL) - described.keys()
        alike: dict[Finding, list[int]] = defaultdict(list)
        for one in ids:
            settings = self._settings_of_broker(one)
            if settings is None:
                continue
            for finding in of_broker("", settings, self._options, self._message_bytes):
                alike[finding].append(one)
            for finding in of_internal_topics("", settings, absent, brokers=len(ids)):
                alike[finding].append(one)
        for finding, where in alike.items():
            plural = "s" if len(where) > 1 else ""
            yield replace(finding, subject=f"broker{plural} {', '.join(map(str, where))}")

    def _settings_of_broker(self, broker: int) -> Settings | None:
        try:
            return self._asked(f"broker {broker}", partial(self._admin.broker_settings, broker))
        except TransportError as error:
            # It has to answer for itself; the others may answer for theirs.
            self._unseen.append(_unseen(f"broker {broker}", error, Severity.WARNING))
            return None

    def _of_topic(
        self, name: str, description: TopicDescription, spec: TopicSpec | None
    ) -> Iterator[Finding]:
        settings = self._asked(f"topic {name}", lambda: self._settings(name))
        partitions = None if spec is None else spec.partitions
        yield from of_topic(name, description, settings, self._message_bytes, partitions)

    def _settings(self, topic: str) -> Settings:
        return self._admin.topic_settings([topic])[topic]

    def _of_group(
        self, spec: GroupSpec, described: Mapping[str, TopicDescription]
    ) -> Iterator[Finding]:
        if spec.topic not in described:
            return
        subject = f"group {spec.group} of topic {spec.topic}"
        places = places_of([spec.topic], described)
        committed = self._asked(subject, lambda: self._admin.committed(spec.group, places))
        if committed is None:
            return
        without = [number for topic, number in places if (topic, number) not in committed]
        if without:
            yield Finding(
                code="kafka-group-new",
                severity=Severity.WARNING,
                subject=subject,
                what=f"it has acknowledged nothing in partitions {', '.join(map(str, without))}",
                why="it begins there at the earliest message; if it is not new, its offsets have "
                "expired or were deleted, and everything that is retained comes again",
                remedy="for a new group call declare(); else look at offsets.retention.minutes",
            )

    def _asked(self, subject: str, ask: Callable[[], T]) -> T | None:
        """Return the answer; None where it is not for this user, which becomes a finding."""
        try:
            return ask()
        except ConfigurationError as error:
            self._unseen.append(_unseen(subject, error, Severity.INFO))
            return None


def _unseen(subject: str, error: Exception, severity: Severity) -> Finding:
    return Finding(
        code="kafka-not-checked",
        severity=severity,
        subject=subject,
        what=f"it could not be checked: {error}",
        why="what is not seen may still break a promise",
        remedy="give the user the rights that docs/brokers.md lists for doctor, or check it by "
        "hand",
    )
