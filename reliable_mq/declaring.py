"""What an application has asked for, as the specs an adapter declares."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta

from reliable_mq.adapter import GroupSpec, TopicSpec
from reliable_mq.durations import seconds
from reliable_mq.errors import ConfigurationError
from reliable_mq.handlers import Guarantee, HandlerSpec
from reliable_mq.message import Topic
from reliable_mq.settings import Settings


class TopicBook(Mapping[str, TopicSpec]):
    """The topics declared so far, by name; a live view for adapters.

    Dead-letter topics are in it too: they have one partition whatever a publisher's default is.
    """

    def __init__(self) -> None:
        self._specs: dict[str, TopicSpec] = {}

    def add(self, topic: Topic[object]) -> None:
        """Add *topic*; ``ConfigurationError`` where it contradicts an earlier one of its name."""
        spec = TopicSpec(
            name=topic.name,
            partitions=topic.partitions,
            replication_factor=topic.replication_factor,
            options=dict(topic.options),
        )
        known = self._specs.get(topic.name)
        self._specs[topic.name] = spec if known is None else _merged(known, spec)

    def add_dead_letters(self, name: str) -> None:
        """Add a dead-letter topic."""
        self._specs.setdefault(name, TopicSpec(name=name, partitions=1, catch_all=True))

    def __getitem__(self, name: str) -> TopicSpec:
        return self._specs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._specs))

    def __len__(self) -> int:
        return len(self._specs)


def _merged(known: TopicSpec, new: TopicSpec) -> TopicSpec:
    for field in ("partitions", "replication_factor"):
        one, other = getattr(known, field), getattr(new, field)
        if one is not None and other is not None and one != other:
            raise ConfigurationError(
                f"topic {known.name!r} was given with {field}={one} and with {field}={other}: "
                "name one of them"
            )
    return TopicSpec(
        name=known.name,
        partitions=known.partitions or new.partitions,
        replication_factor=known.replication_factor or new.replication_factor,
        options={**known.options, **new.options},
        catch_all=known.catch_all,
    )


def topics_to_declare(
    book: Mapping[str, TopicSpec], specs: Iterable[HandlerSpec]
) -> list[TopicSpec]:
    """Return the topics of ``topic()``, of the handlers, and their dead-letter topics."""
    wanted = {name: book[name] for name in book}
    for spec in specs:
        wanted.setdefault(spec.topic, TopicSpec(name=spec.topic))
    return list(wanted.values())


def groups_to_declare(specs: Iterable[HandlerSpec]) -> list[GroupSpec]:
    """Return the groups of the handlers."""
    return [GroupSpec(topic=s.topic, group=s.group, ordered=s.ordered) for s in specs]


def check_retention(
    settings: Settings, specs: Iterable[HandlerSpec], bound: timedelta | None
) -> None:
    """Raise where the broker may redeliver what the inbox has forgotten by then."""
    deduplicates = any(spec.guarantee is Guarantee.EFFECTIVELY_ONCE for spec in specs)
    retention = seconds(settings.inbox.retention)
    if deduplicates and bound is not None and bound.total_seconds() > retention:
        raise ConfigurationError(
            f"the broker keeps messages for {bound.total_seconds():g} s and may deliver them "
            f"again that late, but inbox.retention is {retention:g} s: raise the retention to "
            "more than the broker's, or lower the broker's"
        )
