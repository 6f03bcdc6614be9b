"""What consumers consume: the same messages, in a new topic or for a new group each time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from benchmarks.brokers import kafka, rabbitmq, redis
from benchmarks.lab import Lab
from benchmarks.ours.application import GROUP, prepare
from benchmarks.processes import child

KEYS = 1000


class Supply(ABC):
    """*count* messages on a broker that nobody has consumed yet."""

    partitions: ClassVar[int | None] = None

    def __init__(self, lab: Lab, url: str, database: str) -> None:
        self.lab = lab
        self.url = url
        self.database = database
        self.topic = ""
        self.group = GROUP
        self.ordered = False

    @abstractmethod
    def renew(self, count: int) -> None:
        """Set topic and group so that there are *count* messages to take."""

    @abstractmethod
    def raw_task(self) -> dict[str, Any]:
        """Return where a raw consumer finds them."""

    @abstractmethod
    def outstanding(self, count: int) -> int:
        """Return how many of them are not acknowledged."""

    def remove(self) -> None:  # noqa: B027 - a log keeps it for the next one
        """Remove what :meth:`renew` made."""

    @property
    def counts_when_alone(self) -> bool:
        """Tell whether consumers have to be gone before :meth:`outstanding` can count."""
        return False


class OnKafka(Supply):
    """A log: filled once, and read by one group after the other."""

    partitions = kafka.PARTITIONS

    def __init__(self, lab: Lab, url: str, database: str) -> None:
        super().__init__(lab, url, database)
        self._filled: dict[int, str] = {}

    def renew(self, count: int) -> None:
        if count not in self._filled:
            topic = self.lab.unique("topic")
            kafka.create(self.url, topic)
            kafka.fill(self.url, topic, count, KEYS)
            self._filled[count] = topic
        self.topic = self._filled[count]
        self.group = self.lab.unique("group")

    def raw_task(self) -> dict[str, Any]:
        return {"topic": self.topic, "group": self.group}

    def outstanding(self, count: int) -> int:
        return kafka.outstanding(self.url, self.topic, self.group)


class OnRedis(Supply):
    """A stream: filled once, and copied by the server, because the library trims what is read."""

    def __init__(self, lab: Lab, url: str, database: str) -> None:
        super().__init__(lab, url, database)
        self._filled: dict[int, str] = {}

    @property
    def stream(self) -> str:
        """The stream of the topic."""
        return redis.stream_of(self.topic)

    def fill(self, stream: str, count: int) -> None:
        """Write the entries that are copied."""
        redis.fill(self.url, stream, count, KEYS)

    def renew(self, count: int) -> None:
        if count not in self._filled:
            self._filled[count] = self.lab.unique("filled")
            self.fill(self._filled[count], count)
        self.topic = self.lab.unique("topic")
        redis.copy(self.url, self._filled[count], self.stream)

    def raw_task(self) -> dict[str, Any]:
        return {"stream": self.stream, "group": self.group}

    def outstanding(self, count: int) -> int:
        return redis.outstanding(self.url, self.stream, self.group, count)

    def remove(self) -> None:
        redis.delete(self.url, self.topic)


class OnRabbitMQ(Supply):
    """A quorum queue of the library's own declaration, filled each time."""

    @property
    def queue(self) -> str:
        """The queue of topic and group."""
        return f"{self.topic}.{self.group}"

    @property
    def counts_when_alone(self) -> bool:
        return True

    def renew(self, count: int) -> None:
        self.topic = self.lab.unique("topic")
        prepare(
            database_url=self.database,
            broker_url=self.url,
            topic=self.topic,
            partitions=None,
            ordered=self.ordered,
        )
        rabbitmq.fill(self.url, self.topic, self.queue, count, KEYS)

    def raw_task(self) -> dict[str, Any]:
        return {"queue": self.queue}

    def outstanding(self, count: int) -> int:
        return rabbitmq.outstanding(self.url, self.queue)

    def remove(self) -> None:
        rabbitmq.delete(self.url, self.topic, self.queue)


class OnRedisForFastStream(OnRedis):
    """Entries in the format of FastStream, which has one of its own."""

    def fill(self, stream: str, count: int) -> None:
        fill_by("benchmarks.peers.faststream:fill_redis", self.url, stream, count)


class OnTaskQueue(OnRabbitMQ):
    """A queue that a task library has declared and filled in its own format."""

    filler: ClassVar[str]

    @property
    def queue(self) -> str:
        """The queue is named like the topic."""
        return self.topic

    def renew(self, count: int) -> None:
        self.topic = self.lab.unique("tasks")
        fill_by(self.filler, self.url, self.queue, count)
        rabbitmq.wait_for(self.url, self.queue, count)


class ForDramatiq(OnTaskQueue):
    """Messages of dramatiq."""

    filler = "benchmarks.peers.dramatiq:fill"


class ForCelery(OnTaskQueue):
    """Messages of celery."""

    filler = "benchmarks.peers.celery:fill"


def fill_by(side: str, url: str, where: str, count: int) -> None:
    """Let a peer fill a queue or stream, in a process of its own."""
    task = {"broker_url": url, "where": where, "count": count, "keys": KEYS}
    with child(side, task) as filler:
        filler.expect("result", 600)
        filler.wait(60)


SUPPLIES: dict[str, type[Supply]] = {
    "kafka": OnKafka,
    "redis": OnRedis,
    "rabbitmq": OnRabbitMQ,
}
