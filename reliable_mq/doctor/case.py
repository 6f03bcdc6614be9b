"""What is examined: settings, store, topics and handlers of one application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reliable_mq.adapter import TopicSpec
from reliable_mq.handlers import HandlerSpec
from reliable_mq.settings import Settings
from reliable_mq.store import Store

GroupKey = tuple[str, str]

LONG = 60.0
"""Seconds after which what should move by itself counts as standing still."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One application. Without handlers nothing is said about which groups should be there."""

    settings: Settings
    store: Store
    topics: Mapping[str, TopicSpec]
    handlers: Mapping[GroupKey, HandlerSpec]

    @property
    def connections(self) -> int:
        """How many database connections one process with these handlers may use at a time."""
        workers = sum(spec.concurrency for spec in self.handlers.values())
        return workers + len(self.handlers) + _OWN_CONNECTIONS


_OWN_CONNECTIONS = 8
"""What the relay reads, settles and, on `sql://`, publishes; the retries; and the hints sent and
heard, of the outbox and of `sql://`.

Hints are PostgreSQL's alone; elsewhere it is a few too many, which is the safe side.
"""


def group_name(key: GroupKey) -> str:
    """Return how findings name a group."""
    topic, group = key
    return f"group {group} of topic {topic}"
