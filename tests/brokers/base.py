"""What all servers have in common: a private folder, start, kill, restart, stop."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self
from weakref import WeakSet

from .process import Port, Process

_TAIL_BYTES = 6000
_POLL = 0.03

started: WeakSet[Server] = WeakSet()
"""Those of this process that were started and not stopped."""


class ServerMissing(Exception):
    """The server's program is not on this machine; the text has the command that gets it."""


class ServerFailed(Exception):
    """The server is there and did not start; the text ends with its log."""


class NotOurs(Exception):
    """An external server cannot be killed, paused or restarted from here."""


def variable(kind: str) -> str:
    """The environment variable that names an external server of this kind."""
    return f"RMQ_TEST_{kind.upper().replace('-', '_')}_URL"


def missing(kind: str, what: str, packages: str) -> ServerMissing:
    """The error for a program that was not found."""
    return ServerMissing(
        f"{what} not found. Get it with\n"
        f"    apt-get update && apt-get install -y --no-install-recommends {packages}\n"
        f"or name a running server in {variable(kind)}."
    )


class Server(ABC):
    """A private server on loopback that this process starts and ends.

    ``settings`` are added to the server's own configuration, in its own spelling, and win over
    ours. After ``start`` or ``restart`` it answers requests. The port and the data survive
    ``kill`` and ``restart``; ``stop`` removes the data. If this process dies without ``stop``,
    SIGKILL included, the server is killed and its folder removed all the same.

    Not thread-safe.
    """

    kind: ClassVar[str]
    start_timeout: ClassVar[float] = 120.0

    def __init__(self, settings: Mapping[str, str] | None = None) -> None:
        self.settings = dict(settings or {})
        self._folder: Path | None = None
        self._ports: dict[str, Port] = {}
        self._processes: list[Process] = []

    # What a kind of server has to say.

    @property
    @abstractmethod
    def url(self) -> str:
        """Where clients connect; known before the start and the same after a restart."""

    @abstractmethod
    def check(self) -> None:
        """Raises ServerMissing unless all programs needed are there."""

    @abstractmethod
    def prepare(self) -> None:
        """Lays out a new folder: configuration, empty data."""

    @abstractmethod
    def launch(self) -> None:
        """Starts the processes on what is in the folder, without waiting."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it serves requests now. An exception counts as no."""

    # What they all do alike.

    def start(self) -> Self:
        """Starts with empty data and waits until it is ready."""
        if self._folder is not None:
            raise RuntimeError(f"{self.kind} is started already; restart() keeps the data")
        self.check()
        # Short, because paths of Unix sockets end at 107 characters.
        self._folder = Path(tempfile.mkdtemp(prefix=f"rmq-{self.kind[:5]}-"))
        started.add(self)
        try:
            self.prepare()
            self._launch_and_wait()
        except BaseException:
            self.stop()
            raise
        return self

    def kill(self) -> None:
        """SIGKILL to everything of it. The data stays. Harmless when it is dead already."""
        for process in reversed(self._processes):
            process.kill()
        self._processes.clear()

    def terminate(self) -> None:
        """SIGTERM to each leading process, and SIGKILL to what then lingers. The data stays."""
        for process in reversed(self._processes):
            process.terminate()
        self.kill()

    def restart(self) -> None:
        """Kills it if it lives, starts it on the same port and data, waits until it is ready."""
        if self._folder is None:
            raise RuntimeError(f"{self.kind} was never started")
        self.kill()
        self._launch_and_wait()

    def stop(self) -> None:
        """Kills it, removes its folder and gives its ports back. Harmless when repeated."""
        self.kill()
        started.discard(self)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        for port in self._ports.values():
            port.release()
        self._ports.clear()

    def pause(self) -> None:
        """SIGSTOP to everything of it: connections stay open and nothing answers."""
        for process in self._processes:
            process.pause()

    def resume(self) -> None:
        """SIGCONT to everything of it."""
        for process in self._processes:
            process.resume()

    def port(self, name: str = "main") -> int:
        """The port reserved under this name; the same until ``stop``."""
        if name not in self._ports:
            self._ports[name] = Port()
        return self._ports[name].number

    @property
    def folder(self) -> Path:
        """The private folder: configuration, data, logs."""
        if self._folder is None:
            raise RuntimeError(f"{self.kind} is not started")
        return self._folder

    @property
    def log(self) -> Path:
        """What the server printed since ``start``, restarts included."""
        return self.folder / "server.log"

    @property
    def running(self) -> bool:
        """Whether all its processes live (paused ones do)."""
        return bool(self._processes) and all(process.alive for process in self._processes)

    @property
    def pids(self) -> list[int]:
        """The leading process of each command that was started."""
        return [process.pid for process in self._processes]

    def spawn(
        self,
        command: list[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        """Starts one command in the folder, logging to ``log``; ``env`` is added to ours."""
        self._processes.append(
            Process(
                command,
                folder=self.folder,
                log=self.log,
                env={**os.environ, **(env or {})},
                user=user,
            )
        )

    def check_alive(self) -> None:
        """Raises ServerFailed where a process that nobody ended has ended."""
        ended = [process.status for process in self._processes if not process.alive]
        if ended:
            raise self.failed(f"ended by itself (status {ended[0]})")

    def failed(self, why: str) -> ServerFailed:
        """The error for a failed start, with the end of the log."""
        return ServerFailed(f"{self.kind} {why}; the end of its log:\n{self.tail(_TAIL_BYTES)}")

    def tail(self, size: int) -> str:
        """The last so many bytes of the log."""
        tail = self.log.read_bytes()[-size:] if self.log.exists() else b""
        return tail.decode(errors="replace")

    def wait_ready(self) -> None:
        """Waits until ``ready``; a process that ends meanwhile, or the time-out: ServerFailed."""
        deadline = time.monotonic() + self.start_timeout
        cause: Exception | None = None
        while time.monotonic() < deadline:
            if not self.running:
                raise self.failed("ended while starting")
            try:
                if self.ready():
                    return
            except ImportError:
                raise  # the client library is missing, and waiting brings none
            except Exception as error:  # noqa: BLE001 - not ready yet; shown if it stays so
                cause = error
            time.sleep(_POLL)
        raise self.failed(f"was not ready within {self.start_timeout:g} s ({cause!r})")

    def _launch_and_wait(self) -> None:
        self.launch()
        self.wait_ready()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()


class External(Server):
    """A server that somebody else runs, named in the environment: it has only a URL."""

    def __init__(self, kind: str, url: str) -> None:
        super().__init__()
        self._kind = kind
        self._url = url

    @property
    def url(self) -> str:
        return self._url

    def check(self) -> None:
        """Nothing to look for."""

    def start(self) -> Self:
        """It runs already."""
        return self

    def stop(self) -> None:
        """It is not ours to end."""

    def prepare(self) -> None:
        raise self._not_ours("prepare")

    def launch(self) -> None:
        raise self._not_ours("start")

    def ready(self) -> bool:
        raise self._not_ours("watch")

    def kill(self) -> None:
        raise self._not_ours("kill")

    def terminate(self) -> None:
        raise self._not_ours("end")

    def restart(self) -> None:
        raise self._not_ours("restart")

    def pause(self) -> None:
        raise self._not_ours("pause")

    def resume(self) -> None:
        raise self._not_ours("resume")

    def _not_ours(self, what: str) -> NotOurs:
        return NotOurs(f"cannot {what} the {self._kind} server of {variable(self._kind)}")


def run_as(user: str) -> str | None:
    """``user`` when we are root (some servers refuse to run as root), else ourselves."""
    return user if os.geteuid() == 0 else None
