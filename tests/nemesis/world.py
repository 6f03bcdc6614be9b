"""Servers, links, processes and schedules of one run, from its beginning to the final look."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from sqlalchemy import create_engine, insert, make_url
from sqlalchemy.exc import OperationalError

from reliable_mq import ReliableMQ
from tests.brokers import Server
from tests.e2e.brokers import quick
from tests.nemesis.ambush import Ambush
from tests.nemesis.application import ACCOUNTS, EXACTLY, Arena, account, build, groups_of
from tests.nemesis.clocks import MINUTE, Clocks
from tests.nemesis.disks import Disk, move_onto_disk
from tests.nemesis.exchange import broken_promises
from tests.nemesis.faults import Ourselves, Schedule, Surroundings
from tests.nemesis.members import Crew
from tests.nemesis.proxy import Proxy
from tests.nemesis.rival import Rival
from tests.nemesis.soak import Life, Watch
from tests.nemesis.truth import Findings, by_kind, read, waiting
from tests.nemesis.unable import UnableError
from tests.progress import Progress
from tests.sweep.application import metadata
from tests.sweep.invariants import missing

Start = Callable[..., Server]
Plot = Callable[[Crew, Rival], list[Schedule]]
P = ParamSpec("P")
T = TypeVar("T")
SECONDS = float(os.environ.get("RMQ_NEMESIS_SECONDS", "100"))
"""How long faults are dealt."""
SETTLE = float(os.environ.get("RMQ_NEMESIS_SETTLE", "300"))
"""Seconds without any progress after which it is said what is not at rest after the faults."""
LONG = 60.0
"""Seconds of a run from which on a dead letter must have been replayed, and one discarded."""
ANSWER = 60.0
"""Seconds in which a broker must answer when everybody is gone."""
START = 240.0
"""Seconds in which everybody must be at work, before the first one."""
DISK_MIB = {
    "sqlite": 64 + SECONDS / 20,
    "postgresql": 256 + SECONDS / 10,
    "mariadb": 384 + SECONDS / 5,
}
"""The disks that get full, by their database. Empty, PostgreSQL takes 40 MiB, MariaDB 125 MiB."""
AHEAD_ON_KAFKA = 50 * MINUTE
"""How far ahead a clock may stay there: messages from more than an hour ahead are refused."""
FULL = ("No space left on device", "database or disk is full", "failed with error 28")
"""What one reads of a full disk."""


@dataclass
class Result:
    """What came of a run."""

    findings: Findings
    violations: list[str]
    lasted: float
    """Seconds in which faults were dealt."""
    faults: Counter[str]
    hits: dict[str, int]
    rival: tuple[int, int]
    """Transactions of the rival that went through, and that had to give way."""
    lives: list[Life]
    refusals: int
    """How often somebody was told that the disk is full."""
    settled: float
    """Seconds from the end of the faults until nothing waited any more."""


@dataclass(frozen=True)
class Cast:
    """Who plays in a run."""

    crew: Crew
    rival: Rival
    lives: list[Life]
    schedules: list[Schedule]


class World:
    """Everything there is in one run."""

    def __init__(self, stack: ExitStack, place: Arena, seed: int, start: Start, database: str):
        self._stack = stack
        self._seed = seed
        self.servers: dict[str, Server] = {}
        self.proxies: dict[str, Proxy] = {}
        self._folder = Path(place.folder)
        self._disk: Disk | None = None
        self._clocks = self._if_able(self._make_clocks, place.broker_url, database)
        direct_database, database_url = self._database(database, start)
        direct_broker, broker_url = self._broker(place.broker_url, start)
        self._arena = replace(place, broker_url=broker_url, database_url=database_url)
        self.direct = replace(place, broker_url=direct_broker, database_url=direct_database)

    # --- servers and links ----------------------------------------------------------------------

    def _database(self, kind: str, start: Start) -> tuple[str, str]:
        """Return its URL, and that of the link to it: of a file they are the same."""
        if kind == "sqlite":
            folder = self._folder / "disk"
            folder.mkdir()
            self._disk = self._if_able(Disk, folder, DISK_MIB[kind])
            self._unmount_in_the_end()
            url = f"sqlite:///{folder / 'store.db'}"
            return url, url
        server = self.servers["database"] = start(kind, DATABASE_SETTINGS.get(kind))
        if kind in DISK_MIB:
            self._disk = self._if_able(move_onto_disk, server, DISK_MIB[kind])
            self._unmount_in_the_end()
        proxy = self._proxy("database")
        proxy.start(make_url(server.url).port or 0)
        return server.url, _through(proxy, server.url)

    def _broker(self, kind: str, start: Start) -> tuple[str, str]:
        if kind == "sql":
            return "sql://", "sql://"
        proxy = self._proxy("broker")
        server = self.servers["broker"] = start(kind, _settings(kind, proxy))
        proxy.start(make_url(server.url).port or 0)
        # We look when the broker is there, and then it has time to answer.
        away = quick(kind, server.url, goes_away=True)
        return quick(kind, server.url), _through(proxy, away)

    def _if_able(self, make: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Return what *make* makes, None where this machine cannot; say why."""
        try:
            return make(*args, **kwargs)
        except UnableError as error:
            print(f"left out: {error}")
            return None

    def _unmount_in_the_end(self) -> None:
        if self._disk is not None:
            self._stack.callback(self._disk.close)

    def _make_clocks(self, broker: str, database: str) -> Clocks:
        bearable = AHEAD_ON_KAFKA if broker == "kafka" else None
        return Clocks(self._folder, one_machine=database == "sqlite", bearable=bearable)

    def _proxy(self, name: str) -> Proxy:
        proxy = self.proxies[name] = Proxy(random.Random(f"{self._seed} proxy {name}"))
        self._stack.callback(proxy.close)
        return proxy

    # --- a run ----------------------------------------------------------------------------------

    def run(self, seconds: float) -> Result:
        """Let it all happen for *seconds*, heal everything, wait for rest, look.

        It goes on for up to twice as long where chance has left something out by then.
        """
        return self._play(self._chance, lambda cast: self._wait(cast, seconds))

    def ambush(self, times: int) -> Result:
        """As ``run``, but what happens is that so often all consumers are killed at their work."""
        return self._play(self._ambush, lambda cast: cast.schedules[0].wait_for(times))

    def _play(self, plot: Plot, wait: Callable[[Cast], object]) -> Result:
        """Let the *plot* go on until *wait* returns."""
        mq = self._stack.enter_context(build(self.direct))
        self._make_tables()
        mq.declare()
        cast = self._cast(mq, plot)
        self._await_work(mq, cast.crew)
        began = time.monotonic()
        with _watched(cast.lives), _under(cast.schedules):
            wait(cast)
        return self._look(mq, cast, time.monotonic() - began)

    def _wait(self, cast: Cast, seconds: float) -> None:
        threading.Event().wait(seconds)
        deadline = time.monotonic() + 2 * seconds
        while not self._has_had_all(cast, seconds) and time.monotonic() < deadline:
            threading.Event().wait(2.0)

    def _has_had_all(self, cast: Cast, seconds: float) -> bool:
        """Tell whether what must be part of a run was part of it."""
        faults = sum((schedule.done for schedule in cast.schedules), Counter[str]())
        kills = sum(count for name, count in faults.items() if "killed" in name)
        hit = all(proxy.hits for proxy in self.proxies.values())
        fates = seconds < LONG or self._dead_letters_had_both_fates()
        return kills >= fewest_kills(seconds) and hit and fates

    def _dead_letters_had_both_fates(self) -> bool:
        lines = by_kind(self._folder)
        replayed = any(line["group"] == "ordered" for line in lines["replay"])
        return replayed and bool(lines["discarded"])

    def _await_work(self, mq: ReliableMQ, crew: Crew) -> None:
        """Wait until every group has handled something: there is nothing to disturb before."""
        deadline = time.monotonic() + START
        while not all(read(mq, self.direct).truth.effects.values()):
            ended = [one.role for one in crew.members if one.exit_code is not None]
            assert not ended, crew.said()
            assert time.monotonic() < deadline, f"not at work: {mq.status()}\n{crew.said()}"
            threading.Event().wait(0.5)

    def _cast(self, mq: ReliableMQ, plot: Plot) -> Cast:
        (self._folder / "history").touch()
        crew = Crew(self._arena, self._seed, self._clocks)
        self._stack.callback(crew.close)
        crew.start()
        rival = Rival(self.direct.database_url, mq, random.Random(f"{self._seed} rival"))
        self._stack.callback(rival.close)
        return Cast(
            crew=crew,
            rival=rival,
            lives=[Life(one.role, one.pid) for one in crew.members if one.spared],
            schedules=plot(crew, rival),
        )

    def _chance(self, crew: Crew, rival: Rival) -> list[Schedule]:
        return [
            Surroundings(self._seed, self._folder, self.servers, self.proxies, self._disk),
            Ourselves(self._seed, self._folder, crew, rival, self._clocks),
        ]

    def _ambush(self, crew: Crew, _: Rival) -> list[Schedule]:
        return [Ambush(self._seed, self._folder, crew, self.servers["database"])]

    def _look(self, mq: ReliableMQ, cast: Cast, lasted: float) -> Result:
        violations = [line for schedule in cast.schedules for line in schedule.violations]
        violations += cast.crew.stop("producer", "replayer")
        healed = time.monotonic()
        self._settle(mq, cast.schedules)
        settled = time.monotonic() - healed
        violations += cast.crew.stop("relay", "consumer")
        # Now, for what is delivered and not acknowledged goes back to the broker and shows there.
        self._await_answers(mq)
        findings = read(mq, self.direct)
        violations += findings.violations()
        if EXACTLY in groups_of(self.direct):
            bootstrap = f"127.0.0.1:{make_url(self.servers['broker'].url).port}"
            violations += broken_promises(self.direct, bootstrap)
        violations += [line for life in cast.lives for line in life.violations()]
        return Result(
            findings=findings,
            violations=violations,
            lasted=lasted,
            faults=sum((schedule.done for schedule in cast.schedules), Counter()),
            hits={name: proxy.hits for name, proxy in self.proxies.items()},
            rival=(cast.rival.locked, cast.rival.refused),
            lives=cast.lives,
            refusals=self._refusals(),
            settled=settled,
        )

    def _refusals(self) -> int:
        logs = [self._folder / "members.log", self._folder / "history"]
        if "database" in self.servers:
            logs.append(self.servers["database"].log)
        texts = [log.read_text(errors="replace") for log in logs if log.exists()]
        return sum(text.count(refusal) for text in texts for refusal in FULL)

    def _settle(self, mq: ReliableMQ, schedules: list[Schedule]) -> None:
        """Wait until nothing waits and nothing is missing; the checks say what then still is."""
        progress = Progress(SETTLE)
        while not progress.is_over:
            for schedule in schedules:
                schedule.keep()
            # Where the server of the tables has crashed just now: see Surroundings.keep.
            with suppress(OperationalError):
                # The history is long: it is read when it may say that this is the end.
                if not (left := waiting(mq) or self._missing(mq)):
                    return
                progress.note(left)
            threading.Event().wait(0.5)
        print(f"not at rest, and no progress for {SETTLE:g} s: {mq.status()}")

    def _missing(self, mq: ReliableMQ) -> int:
        return sum(map(len, missing(read(mq, self.direct).truth).values()))

    def _await_answers(self, mq: ReliableMQ) -> None:
        """Wait until every lag is told: one that is not counts as a message that waits."""
        deadline = time.monotonic() + ANSWER
        while any(group.lag is None for group in mq.status().groups.values()):
            if time.monotonic() >= deadline:
                return
            threading.Event().wait(0.5)

    def _make_tables(self) -> None:
        engine = create_engine(self.direct.database_url)
        metadata.create_all(engine)
        with engine.begin() as connection:
            for number in range(ACCOUNTS):
                row = insert(account).values(id=number + 1, consumer_group="batch", handled=0)
                connection.execute(row)
        engine.dispose()


def fewest_kills(seconds: float) -> float:
    """Return how many kills a run of so many seconds must have had."""
    return seconds / 30


DATABASE_SETTINGS = {"postgresql": {"max_wal_size": "96MB", "min_wal_size": "32MB"}}
"""Settings with which the log of the database leaves room on a small disk."""


def _through(proxy: Proxy, url: str) -> str:
    before, _, rest = url.partition("127.0.0.1:")
    return f"{before}127.0.0.1:{proxy.port}{rest.lstrip('0123456789')}"


def _settings(kind: str, proxy: Proxy) -> dict[str, str] | None:
    """Kafka's clients go where the broker says that it is."""
    if kind != "kafka":
        return None
    return {"advertised.listeners": f"PLAINTEXT://127.0.0.1:{proxy.port}"}


@contextmanager
def _watched(lives: list[Life]) -> Iterator[None]:
    watch = Watch(lives)
    try:
        yield
    finally:
        watch.close()


@contextmanager
def _under(schedules: list[Schedule]) -> Iterator[None]:
    """Both schedules run; at the end everything is healed."""
    for schedule in schedules:
        schedule.start()
    try:
        yield
    finally:
        for schedule in schedules:
            schedule.over.set()
        for schedule in schedules:
            schedule.stop()
