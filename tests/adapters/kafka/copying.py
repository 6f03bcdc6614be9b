"""Inputs, processes of ``exactly_once_program.py`` that copy them, and readers of the copies."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from reliable_mq import ReliableMQ
from reliable_mq.adapter import SENT
from reliable_mq.testing.contract.messages import numbered
from tests.adapters.kafka.exactly_once_program import build
from tests.brokers import Kafka
from tests.e2e.waiting import until

PARTITIONS = 3
OPTIONS = "session_timeout=2&transaction_timeout=3"
PATIENT = "session_timeout=2&transaction_timeout=120"
"""Nothing ends by a time-out of the transaction: what is refused is refused for its member."""


class Program:
    """A process of ``exactly_once_program.py``."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.adapters.kafka.exactly_once_program"],
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
            )

    def said(self) -> str:
        """Return its log."""
        return self._log.read_text(errors="replace")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait_for_death(self) -> None:
        """Wait until it has been killed."""
        until(lambda: self._process.poll() is not None, self.said)
        assert self._process.returncode == -signal.SIGKILL, self.said()

    def leave(self) -> None:
        """Let it stop of itself, and wait until it has."""
        self.signal(signal.SIGTERM)
        until(lambda: self._process.poll() is not None, self.said)
        assert self._process.returncode == 0, self.said()

    def end(self) -> None:
        """Kill it, if it still lives."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"{self._log.name} said:\n{self.said()[-5000:]}")
        self.end()


class Copying:
    """Inputs, the processes that copy them, and readers of what comes out."""

    def __init__(self, server: Kafka, prefix: str, folder: Path, stack: ExitStack) -> None:
        self.server = server
        self.prefix = prefix
        self._folder = folder
        self._stack = stack
        self._numbers = itertools.count()
        self._logs = itertools.count()
        self._sender = self.application(OPTIONS)
        self._sender.declare()
        self._sent = 0

    def database(self) -> str:
        return f"sqlite:///{self._folder / 'store.db'}"

    def application(self, options: str = OPTIONS) -> ReliableMQ:
        """Return the application, without a handler."""
        mq = build(f"{self.server.url}?{options}", self.database(), self.prefix)
        self._stack.callback(mq.close)
        return mq

    def start(
        self,
        point: str = "",
        *,
        at: int = 1,
        how: str = "SIGKILL",
        options: str = OPTIONS,
        work: float = 0.0,
    ) -> Program:
        """Start a process, whose handler works for so many seconds on each input."""
        environment = {
            "URL": f"{self.server.url}?{options}",
            "DATABASE": self.database(),
            "PREFIX": self.prefix,
            "POINT": point,
            "AT": str(at),
            "HOW": how,
            "WORK": str(work),
        }
        log = self._folder / f"program-{next(self._logs)}.log"
        return self._stack.enter_context(Program(environment, log))

    def send(self, count: int) -> None:
        """Send so many inputs."""
        for number in itertools.islice(self._numbers, count):
            self._sender.publish_direct(
                f"{self.prefix}-in", number, key=f"k{number % 7}", timeout=60
            )
        self._sent += count

    def fill(self, count: int) -> None:
        """Send so many inputs at once."""
        topic, numbers = f"{self.prefix}-in", list(itertools.islice(self._numbers, count))
        batch = [numbered(topic, [one], key=f"k{one % 7}")[0] for one in numbers]
        assert self._sender._runtime.adapter.publish(batch, 60.0) == [SENT] * count
        self._sent += count

    @contextmanager
    def traffic(self) -> Iterator[None]:
        """Send inputs all the time until the block ends."""
        end = threading.Event()

        def run() -> None:
            while not end.wait(0.05):
                self.fill(10)

        with ThreadPoolExecutor() as pool:
            sending = pool.submit(run)
            try:
                yield
            finally:
                end.set()
            sending.result()

    def send_raw(self, body: bytes) -> None:
        """Send an input as somebody else's program would."""
        producer = Producer({"bootstrap.servers": self.server.bootstrap})
        producer.produce(f"{self.prefix}-in", body)
        assert producer.flush(60) == 0

    def outputs(self, isolation: str = "read_committed", suffix: str = "out") -> list[int]:
        """Return every output that such a reader sees now."""
        return [int(body) for body in self.bodies(f"{self.prefix}-{suffix}", isolation)]

    def bodies(self, topic: str, isolation: str = "read_committed") -> list[bytes]:
        """Return the body of everything that such a reader sees now."""
        return read_all(self.server.bootstrap, topic, isolation)

    def check(self) -> None:
        """Wait for the last output and the last open transaction; then each is there once."""
        until(lambda: len(set(self.outputs())) == self._sent, self._shown)
        settle(self.server.bootstrap, f"{self.prefix}-out")
        assert sorted(self.outputs()) == list(range(self._sent)), self._shown()
        topic = f"{self.prefix}-in"
        until(lambda: self._sender._runtime.adapter.lag(topic, self.prefix) == 0)

    def _shown(self) -> str:
        outputs = Counter(self.outputs())
        twice = [number for number, times in outputs.items() if times > 1]
        missing = sorted(set(range(self._sent)) - set(outputs))
        careless = Counter(self.outputs("read_uncommitted"))
        sent = Counter(self.bodies(f"{self.prefix}-in"))
        whereabouts = [f"{n}: {sent[b'%d' % n]} sent, {careless[n]} undone" for n in missing[:20]]
        said = "\n".join(log.read_text()[-3000:] for log in sorted(self._folder.glob("*.log")))
        return (
            f"{len(outputs)} of {self._sent}; missing {missing[:20]} ({'; '.join(whereabouts)}); "
            f"twice {twice[:20]}\n{said}"
        )


def _reader(bootstrap: str, isolation: str) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "reader",
            "isolation.level": isolation,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )


def read_all(bootstrap: str, topic: str, isolation: str) -> list[bytes]:
    consumer = _reader(bootstrap, isolation)
    found: list[bytes] = []
    ended = 0
    try:
        places = _places(consumer, topic)
        consumer.assign(places)
        while ended < len(places):
            record = consumer.poll(30)
            assert record is not None, "the reader gets no answer"
            error = record.error()
            if error is None:
                found.append(record.value() or b"")
            elif error.code() == KafkaError._PARTITION_EOF:
                ended += 1
    finally:
        consumer.close()
    return found


def delete(bootstrap: str, topic: str) -> None:
    """Delete a topic; returns once the brokers do not know it any more."""
    client = AdminClient({"bootstrap.servers": bootstrap})
    client.delete_topics([topic], operation_timeout=30)[topic].result(60)
    until(lambda: topic not in client.list_topics(timeout=30).topics, topic)


def settle(bootstrap: str, topic: str) -> None:
    """Wait until no transaction is open in a topic; whoever calls it leaves none open.

    A commit is answered once it is decided. That it was, each partition is told only afterwards;
    until then a reader of committed messages sees nothing of it.
    """
    levels = ("read_committed", "read_uncommitted")

    def settled() -> bool:
        stable, end = (_ends(bootstrap, topic, level) for level in levels)
        return stable == end

    until(settled, f"the end of the last transaction in {topic}")


def _ends(bootstrap: str, topic: str, isolation: str) -> list[int]:
    consumer = _reader(bootstrap, isolation)
    try:
        places = _places(consumer, topic)
        return [consumer.get_watermark_offsets(place, timeout=30)[1] for place in places]
    finally:
        consumer.close()


def _places(consumer: Consumer, topic: str) -> list[TopicPartition]:
    """Return the beginning of each partition."""
    partitions = len(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
    return [TopicPartition(topic, number, 0) for number in range(partitions)]
