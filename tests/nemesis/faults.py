"""What goes wrong, and when: two schedules at a time, one for servers and links, one for us."""

from __future__ import annotations

import random
import signal
import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tests.brokers import Server, ServerFailed
from tests.nemesis.clocks import Clocks
from tests.nemesis.disks import Disk, recover
from tests.nemesis.members import Crew, Member
from tests.nemesis.proxy import Proxy, Trouble
from tests.nemesis.rival import Rival
from tests.sweep.application import History

Fault = Callable[[], None]


class Schedule(ABC):
    """Faults one after the other, on a thread of its own. Each comes once before any comes twice.

    The same seed gives the same faults in the same order with the same lengths; what they hit is
    up to the machine.
    """

    gap = (0.5, 2.5)

    def __init__(self, seed: int, folder: Path) -> None:
        self.rng = random.Random(f"{seed} {type(self).__name__}")
        self.over = threading.Event()
        self.done: Counter[str] = Counter()
        self.violations: list[str] = []
        self._history = History(folder)
        self._thread = threading.Thread(target=self._run, name=type(self).__name__)

    @abstractmethod
    def faults(self) -> Mapping[str, Fault]:
        """Return all faults of this schedule by name."""

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def keep(self) -> None:  # noqa: B027 - not every schedule has something to keep
        """Put right what went wrong by itself, between faults and when they are over."""

    def stop(self) -> None:
        """End, after the present fault is healed."""
        self.over.set()
        self._thread.join()

    def wait_for(self, times: int) -> None:
        """Wait until so many faults were dealt, or one could not be."""
        while self.done.total() < times and not self.violations:
            self.over.wait(0.1)

    def note(self, fault: str, **values: object) -> None:
        """Put it into the history."""
        self._history.note("fault", fault=fault, **values)

    def _run(self) -> None:
        try:
            for name, fault in self._deck():
                self.over.wait(self.rng.uniform(*self.gap))
                if self.over.is_set():
                    return
                self.keep()
                self.note(name, step="begin")
                fault()
                self.note(name, step="end")
                self.done[name] += 1
        except Exception as error:  # noqa: BLE001 - a broken nemesis must fail the test
            self.violations.append(f"the nemesis failed: {type(error).__name__}: {error}")

    def _deck(self) -> Iterator[tuple[str, Fault]]:
        faults = self.faults()
        while True:
            names = list(faults)
            self.rng.shuffle(names)
            yield from ((name, faults[name]) for name in names)


class Surroundings(Schedule):
    """Servers are killed and stopped, links go bad, a disk is full."""

    def __init__(
        self,
        seed: int,
        folder: Path,
        servers: Mapping[str, Server],
        proxies: Mapping[str, Proxy],
        disk: Disk | None = None,
    ) -> None:
        super().__init__(seed, folder)
        self._servers = servers
        self._proxies = proxies
        self._disk = disk

    def faults(self) -> Mapping[str, Fault]:
        """Return kill and freeze for each server, every trouble for each link, a full disk."""
        found: dict[str, Fault] = {}
        for name, server in self._servers.items():
            found[f"{name} killed"] = partial(self._kill, server)
            found[f"{name} stopped"] = partial(self._freeze, server)
        for name, proxy in self._proxies.items():
            for trouble in Trouble:
                if trouble is not Trouble.LOST_COMMIT or name == "database":
                    found[f"{name} {trouble.value}"] = partial(self._trouble, proxy, trouble)
        if self._disk is not None:
            found["disk full"] = partial(self._fill, self._disk)
        return found

    def keep(self) -> None:
        """Start a server again that has crashed, as its keeper would; say how it did.

        MariaDB 10.11 does, once in some hours of this (SIGSEGV): a fault like any other.
        """
        for name, server in self._servers.items():
            try:
                server.check_alive()
            except ServerFailed as error:
                print(f"restarted, and it is none of our faults: {error}")
                self.note(name, step="crashed")
                self.done[f"{name} crashed"] += 1
                server.restart()

    def _kill(self, server: Server) -> None:
        server.kill()
        self.over.wait(self.rng.uniform(0.0, 3.0))
        server.restart()

    def _freeze(self, server: Server) -> None:
        server.pause()
        self.over.wait(self.rng.uniform(1.0, 6.0))
        server.resume()

    def _fill(self, disk: Disk) -> None:
        disk.fill(self.rng.uniform(2.0, 6.0), self.over)
        if "database" in self._servers:
            recover(self._servers["database"])

    def _trouble(self, proxy: Proxy, trouble: Trouble) -> None:
        proxy.begin(
            trouble, share=self.rng.choice((0.5, 1.0)), delay=self.rng.choice((0.02, 0.1, 0.4))
        )
        self.over.wait(self.rng.uniform(1.5, 6.0))
        proxy.end()


class Ourselves(Schedule):
    """Processes of the application are killed, stopped, replaced, joined; their clocks jump.

    A rival takes locks.
    """

    def __init__(
        self, seed: int, folder: Path, crew: Crew, rival: Rival, clocks: Clocks | None = None
    ) -> None:
        super().__init__(seed, folder)
        self._clocks = clocks
        self._crew = crew
        self._rival = rival

    def faults(self) -> Mapping[str, Fault]:
        """Return a kill for each role and the rest; kills of what works are the most frequent."""
        jumps = {} if self._clocks is None else {"clocks jump": partial(self._jump, self._clocks)}
        return jumps | {
            "relay killed": partial(self._kill, "relay"),
            "consumer killed": partial(self._kill, "consumer"),
            "consumer killed again": partial(self._kill, "consumer"),
            "producer killed": partial(self._kill, "producer"),
            "replayer killed": partial(self._kill, "replayer"),
            "relay stopped": partial(self._stop, "relay"),
            "consumer stopped": partial(self._stop, "consumer"),
            "producer stopped": partial(self._stop, "producer"),
            "consumer replaced": self._replace,
            "rebalance storm": self._storm,
            "rival": self._harass,
        }

    def _chosen(self, role: str) -> Member:
        self._look_for_the_dead()
        return self.rng.choice([one for one in self._crew.of(role) if not one.spared])

    def _look_for_the_dead(self) -> None:
        for member in self._crew.members:
            if (code := member.exit_code) is not None:
                self.violations.append(f"I12: a {member.role} ended by itself with {code}")
                member.restart()

    def _kill(self, role: str) -> None:
        member = self._chosen(role)
        self.note(role, killed=member.pid)
        member.kill()
        self.over.wait(self.rng.uniform(0.0, 1.5))
        member.restart()

    def _stop(self, role: str) -> None:
        """Stop one, at times for longer than its leases; the spared are not spared this."""
        member = self.rng.choice(list(self._crew.of(role)))
        self._look_for_the_dead()
        self.note(role, stopped=member.pid)
        member.pause()
        self.over.wait(self.rng.uniform(1.0, 10.0))
        member.resume()

    def _replace(self) -> None:
        member = self._chosen("consumer")
        member.ask_to_stop()
        if (code := member.wait()) not in (0, -signal.SIGTERM):  # the latter before it has begun
            self.violations.append(f"I10: a {member.role} that was replaced ended with {code}")
        member.restart()

    def _jump(self, clocks: Clocks) -> None:
        """Move one clock after the other; where they are in the end, there they stay.

        Those that nobody could live with are put back to where it is just bearable.
        """
        for _ in range(6):
            self.note("clock", now=clocks.jump(self.rng))
            self.over.wait(self.rng.uniform(0.3, 1.2))
        for there in clocks.calm_down():
            self.note("clock", now=there)

    def _harass(self) -> None:
        self._rival.harass(self.rng.uniform(3.0, 8.0), self.over)

    def _storm(self) -> None:
        """Members join and leave, faster than a rebalance ends."""
        joined = []
        for _ in range(3):
            joined.append(self._crew.launch("consumer"))
            self.over.wait(self.rng.uniform(0.5, 2.0))
        self.over.wait(self.rng.uniform(1.0, 3.0))
        for process in joined:
            process.send_signal(self.rng.choice((signal.SIGKILL, signal.SIGTERM)))
            self.over.wait(self.rng.uniform(0.0, 0.5))
