"""Consume, process, produce: each input has its output once, as a committed reader sees it."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from confluent_kafka import Consumer, KafkaError, TopicPartition

from reliable_mq import ReliableMQ
from tests.adapters.kafka.conftest import started
from tests.adapters.kafka.exactly_once_program import build
from tests.brokers import Kafka, variable
from tests.e2e.waiting import until

PARTITIONS = 3
QUICK = {"transaction.abort.timed.out.transaction.cleanup.interval.ms": "500"}
OPTIONS = "session_timeout=2&transaction_timeout=3"
PATIENT = "session_timeout=2&transaction_timeout=120"
"""Nothing ends by a time-out of the transaction: what is refused is refused for its member."""


@pytest.fixture(scope="module")
def breakable(request: pytest.FixtureRequest) -> Iterator[Kafka]:
    """A broker that looks for transactions past their time-out more often than by default."""
    if os.environ.get(variable("kafka")):
        pytest.skip("a broker that somebody else runs cannot be killed from here")
    yield from started(request, Kafka(QUICK))


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
        self, point: str = "", *, at: int = 1, how: str = "SIGKILL", options: str = OPTIONS
    ) -> Program:
        """Start a process."""
        environment = {
            "URL": f"{self.server.url}?{options}",
            "DATABASE": self.database(),
            "PREFIX": self.prefix,
            "POINT": point,
            "AT": str(at),
            "HOW": how,
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

    def outputs(self, isolation: str = "read_committed", suffix: str = "out") -> list[int]:
        """Return every output that such a reader sees now."""
        return _read(self.server.bootstrap, f"{self.prefix}-{suffix}", isolation)

    def check(self) -> None:
        """Wait for the last output and the last open transaction; then each is there once."""
        until(lambda: len(set(self.outputs())) == self._sent, self._shown)
        until(self._nothing_is_open)
        assert sorted(self.outputs()) == list(range(self._sent)), self._shown()
        topic = f"{self.prefix}-in"
        until(lambda: self._sender._runtime.adapter.lag(topic, "copy") == 0)

    def _nothing_is_open(self) -> bool:
        topic = f"{self.prefix}-out"
        levels = ("read_committed", "read_uncommitted")
        stable, end = (_ends(self.server.bootstrap, topic, level) for level in levels)
        return stable == end

    def _shown(self) -> str:
        outputs = Counter(self.outputs())
        twice = [number for number, times in outputs.items() if times > 1]
        missing = sorted(set(range(self._sent)) - set(outputs))
        return f"{len(outputs)} of {self._sent}; missing {missing[:20]}; twice {twice[:20]}"


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


def _read(bootstrap: str, topic: str, isolation: str) -> list[int]:
    consumer = _reader(bootstrap, isolation)
    found: list[int] = []
    ended = 0
    try:
        partitions = len(consumer.list_topics(topic, timeout=30).topics[topic].partitions)
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        while ended < partitions:
            record = consumer.poll(30)
            assert record is not None, "the reader gets no answer"
            error = record.error()
            if error is None:
                found.append(int(record.value() or b""))
            elif error.code() == KafkaError._PARTITION_EOF:
                ended += 1
    finally:
        consumer.close()
    return found


def _ends(bootstrap: str, topic: str, isolation: str) -> list[int]:
    consumer = _reader(bootstrap, isolation)
    try:
        places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return [consumer.get_watermark_offsets(place, timeout=30)[1] for place in places]
    finally:
        consumer.close()


@pytest.fixture
def copying(own: Kafka, unique: str, tmp_path: Path) -> Iterator[Copying]:
    with ExitStack() as stack:
        yield Copying(own, unique, tmp_path, stack)


# --- kills ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["handler", "ended", "produced", "offsets", "committed"])
def test_a_killed_process_leaves_each_output_once(copying: Copying, point: str) -> None:
    with copying.start(point, at=2) as killed:
        copying.send(20)
        until(lambda: f"at {point}:" in killed.said() or copying.outputs(), killed.said)
        copying.send(20)
        killed.wait_for_death()
    if point in {"produced", "offsets"}:
        # There is something that a careless reader would see twice.
        left = len(copying.outputs("read_uncommitted"))
        assert left > len(copying.outputs())
    copying.start()
    copying.check()
    if point in {"produced", "offsets"}:
        assert len(copying.outputs("read_uncommitted")) > 40


def test_two_processes_that_are_killed_again_and_again_leave_each_output_once(
    copying: Copying,
) -> None:
    running = [copying.start(), copying.start()]
    for turn in range(4):
        _send_until_copied(copying, running[turn % 2])
        running[turn % 2].end()
        running[turn % 2] = copying.start()
    copying.send(40)
    copying.check()


def _send_until_copied(copying: Copying, running: Program) -> None:
    """Send inputs of which some are copied when it returns, and the last ones just sent."""
    before = len(copying.outputs())
    copying.send(10)
    until(lambda: len(copying.outputs()) > before, running.said)
    copying.send(30)


# --- fencing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["handler", "ended", "produced"])
def test_a_process_that_was_stopped_past_its_session_is_fenced_by_the_group(
    copying: Copying, point: str
) -> None:
    stopped = copying.start(point, how="SIGSTOP", options=PATIENT)
    copying.send(10)
    until(lambda: f"at {point}" in stopped.said(), stopped.said)
    copying.start(options=PATIENT)
    until(lambda: len(set(copying.outputs("read_uncommitted"))) == 10, stopped.said)
    stopped.signal(signal.SIGCONT)
    copying.check()
    copying.send(10)
    copying.check()


def test_a_transaction_of_a_stopped_process_is_over_when_it_comes_back(copying: Copying) -> None:
    stopped = copying.start("offsets", how="SIGSTOP")
    copying.send(10)
    until(lambda: "at offsets" in stopped.said(), stopped.said)
    copying.start()
    until(lambda: len(set(copying.outputs())) == 10, stopped.said)
    stopped.signal(signal.SIGCONT)
    copying.check()
    copying.send(10)
    copying.check()
