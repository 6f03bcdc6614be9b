"""How much a group has left, and how long messages last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from reliable_mq.errors import ConfigurationError
from reliable_mq_kafka.admin import Admin
from reliable_mq_kafka.declare import places_of
from reliable_mq_kafka.groups import Progress

_NOTHING = Progress(0)


def lag(admin: Admin, topic: str, group: str) -> int:
    """See ``Adapter.lag``.

    Counted in offsets, from the committed one (else the earliest retained) to the end, without
    those behind it that the commit names as done. Exact unless the topic is compacted or written
    in transactions: the end of one is an offset too, and counts until the group has passed it.
    What lies behind an open transaction is not counted, because it cannot be delivered yet.
    """
    described = admin.describe([topic])
    if topic not in described:
        raise ConfigurationError(f"topic {topic!r} does not exist: call declare()")
    places = places_of([topic], described)
    committed = admin.committed(group, places)
    # The ends last: what is counted as acknowledged is never behind them then.
    begins, ends = admin.earliest(places), admin.ends(places)
    return sum(committed.get(place, _NOTHING).left(begins[place], ends[place]) for place in places)


def redelivery_bound(admin: Admin, topics: Sequence[str]) -> timedelta | None:
    """See ``Adapter.redelivery_bound``: the longest of the topics, if each has one.

    Kafka deletes whole segments, once the newest message of one is past ``retention.ms``. The
    oldest one may be older by ``segment.ms``, for which a segment is written. Until then a group
    whose offset was set back receives it again. Not counted is how often the brokers look
    (``log.retention.check.interval.ms``, 5 minutes).
    """
    existing = admin.describe(topics)
    bounds = [_lifetime(found) for found in admin.topic_settings(existing).values()]
    known = [bound for bound in bounds if bound is not None]
    return max(known) if known and len(known) == len(bounds) else None


def _lifetime(settings: Mapping[str, str | None]) -> timedelta | None:
    retention, segment = (int(settings.get(name) or -1) for name in ("retention.ms", "segment.ms"))
    policy = (settings.get("cleanup.policy") or "").split(",")
    if retention < 0 or segment < 0 or "delete" not in policy:
        return None
    return timedelta(milliseconds=retention + segment)
