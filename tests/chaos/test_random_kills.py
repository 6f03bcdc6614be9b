"""10,000 messages through processes that are killed at random: none lost, none twice, in order."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path

import pytest
from sqlalchemy import Engine, String, cast, create_engine, func, select

from reliable_mq import ReliableMQ
from tests.chaos.application import Step, build, effects, metadata

MESSAGES = 10_000
KEYS = 200
PER_TRANSACTION = 10
KILL_EVERY = (0.5, 2.0)
DEADLINE = 280.0
SCRIPT = Path(__file__).with_name("application.py")


class Member:
    """One process of the application, killed and started again by the test."""

    def __init__(self, role: str, log: Path) -> None:
        self.role = role
        self._log = log
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self._begin = self._log.stat().st_size
            return subprocess.Popen(
                [sys.executable, str(SCRIPT), self.role], stdout=log, stderr=log
            )

    def kill_and_restart(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process = self._start()

    def obeys(self) -> bool:
        """Tell whether it has said who it is: from then on it heeds signals."""
        return f"reliable-mq {version('reliable-mq')}:".encode() in self._said()[self._begin :]

    def exit_code(self) -> int | None:
        return self._process.poll()

    def stop(self) -> int:
        """End it with SIGTERM; it must go by itself."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        finally:
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def tail(self) -> str:
        return "\n".join(self._said().decode(errors="replace").splitlines()[-15:])

    def _said(self) -> bytes:
        return self._log.read_bytes()


def produce(mq: ReliableMQ, topic: str, part: int, parts: int) -> None:
    """Publish this part's keys, each message of a key in a transaction of its own."""
    keys = [f"k{number}" for number in range(KEYS) if number % parts == part]
    for number in range(MESSAGES // KEYS):
        for start in range(0, len(keys), PER_TRANSACTION):
            with mq.transaction():
                for key in keys[start : start + PER_TRANSACTION]:
                    mq.publish(topic, Step(key=key, number=number), key=key)


def done(engine: Engine) -> bool:
    message = effects.c.key + "/" + cast(effects.c.number, String)
    query = select(effects.c.consumer_group, func.count(func.distinct(message)))
    with engine.connect() as connection:
        rows = connection.execute(query.group_by(effects.c.consumer_group)).all()
    counts = {row[0]: row[1] for row in rows}
    return counts == {"ordered": MESSAGES, "unordered": MESSAGES}


@contextmanager
def environment(**values: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@pytest.mark.chaos
@pytest.mark.timeout(400)
@pytest.mark.parametrize("broker", ["sql", "kafka", "rabbitmq", "redis"])
def test_random_kills_lose_nothing_double_nothing_and_keep_the_order(
    broker: str, request: pytest.FixtureRequest, postgresql_url: str, unique: str, tmp_path: Path
) -> None:
    url = "sql://" if broker == "sql" else request.getfixturevalue(f"{broker}_url")
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    with ExitStack() as stack:
        stack.enter_context(
            environment(
                CHAOS_TOPIC=unique,
                RELIABLE_MQ_BROKER_URL=url,
                RELIABLE_MQ_DATABASE_URL=postgresql_url,
                RELIABLE_MQ_RELAY__LEASE="3",
                RELIABLE_MQ_RELAY__PUBLISH_TIMEOUT="2",
                RELIABLE_MQ_CONSUMER__LEASE="3",
                RELIABLE_MQ_CONSUMER__IDLE_IN_TRANSACTION="10",
            )
        )
        engine = create_engine(postgresql_url)
        stack.callback(engine.dispose)
        metadata.create_all(engine)
        mq = stack.enter_context(build())
        mq.declare()
        members = [
            Member(role, tmp_path / f"{role}-{number}.log")
            for role, count in (("relay", 2), ("consume", 3))
            for number in range(count)
        ]
        for member in members:
            stack.callback(member.kill)
        producers = [
            threading.Thread(target=produce, args=(mq, unique, part, 2)) for part in range(2)
        ]
        for producer in producers:
            producer.start()
        kills = attack(members, producers, engine, random.Random(seed))
        try:
            wait_until(lambda: done(engine), "every effect is there")
            wait_until(lambda: at_rest(mq, unique), "nothing waits any more")
            # One that was started last may be about to begin.
            wait_until(lambda: all(member.obeys() for member in members), "all can be stopped")
        except TimeoutError as error:
            logs = "\n\n".join(f"{member.role}:\n{member.tail()}" for member in members)
            pytest.fail(f"{error}, {mq.status()}\n{logs}")
        assert [member.stop() for member in members] == [0] * len(members)
        print(f"{kills} kills")
        assert kills >= 5
        verify(engine)
        assert mq.dead_letters() == []


def attack(
    members: list[Member], producers: list[threading.Thread], engine: Engine, rng: random.Random
) -> int:
    """Kill members at random while messages are produced, and half as long after."""
    pause = threading.Event()
    kills = 0
    started = time.monotonic()
    until: float | None = None
    while until is None or time.monotonic() < until:
        pause.wait(rng.uniform(*KILL_EVERY))
        rng.choice(members).kill_and_restart()
        kills += 1
        if until is None and not any(producer.is_alive() for producer in producers):
            until = time.monotonic() + max(10.0, (time.monotonic() - started) / 2)
        assert time.monotonic() - started < DEADLINE, "the producers are stuck"
    return kills


def wait_until(condition: object, what: str) -> None:
    pause = threading.Event()
    deadline = time.monotonic() + DEADLINE
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise TimeoutError(f"not in time: {what}")
        pause.wait(0.25)


def at_rest(mq: ReliableMQ, topic: str) -> bool:
    status = mq.status()
    groups = [status.groups[topic, group] for group in ("ordered", "unordered")]
    return status.outbox.pending == 0 and all(
        group.lag == 0 and group.retries == 0 for group in groups
    )


def verify(engine: Engine) -> None:
    query = select(effects.c.consumer_group, effects.c.key, effects.c.number).order_by(effects.c.id)
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    expected = {(f"k{key}", n) for key in range(KEYS) for n in range(MESSAGES // KEYS)}
    for group in ("ordered", "unordered"):
        counted = Counter((key, number) for g, key, number in rows if g == group)
        assert expected - counted.keys() == set(), f"{group}: lost"
        assert {what: n for what, n in counted.items() if n != 1} == {}, f"{group}: applied twice"
    by_key: dict[str, list[int]] = defaultdict(list)
    for group, key, number in rows:
        if group == "ordered":
            by_key[key].append(number)
    broken = {key: numbers for key, numbers in by_key.items() if numbers != sorted(numbers)}
    assert broken == {}, "out of order"
