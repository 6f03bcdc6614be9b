"""One operating-system process of a server, and the ports it listens on."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import guard

_GUARD = Path(guard.__file__)
_KILL_TIMEOUT = 10.0
_PAUSE_TIMEOUT = 30.0
_TERMINATE_TIMEOUT = 30.0


class Process:
    """A command in a session of its own that ends with this Python process, however that ends.

    Signals go to the command with all its descendants. Not thread-safe.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        *,
        folder: Path,
        log: Path,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self.log = log
        reading, self._pipe = os.pipe()
        arguments = [str(os.getpid()), str(reading), str(folder), user or "-"]
        try:
            with log.open("ab") as output:
                self._popen = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(_GUARD), *arguments, *map(str, command)],
                    cwd=folder,
                    env=None if env is None else dict(env),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(reading,),
                    start_new_session=True,
                )
        except BaseException:
            os.close(self._pipe)
            raise
        finally:
            os.close(reading)
        self._born = guard.born(self.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def alive(self) -> bool:
        return self._popen.poll() is None

    @property
    def status(self) -> int | None:
        """How it ended: an exit status, or the negative number of a signal; None while it lives."""
        return self._popen.poll()

    def kill(self) -> None:
        """SIGKILL; returns when everything is dead. Harmless when it is dead already."""
        guard.kill_family(self.pid, self._born)
        self._popen.wait(_KILL_TIMEOUT)
        self._dismiss_watcher()

    def terminate(self) -> None:
        """SIGTERM to the leading process; returns when it has ended, or after a while."""
        if self.alive:
            self._popen.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(_TERMINATE_TIMEOUT)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, nothing answers; returns when nothing runs any more."""
        members = guard.freeze(self.pid, self._born)
        deadline = time.monotonic() + _PAUSE_TIMEOUT
        while not guard.frozen(members):
            if time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} goes on after a SIGSTOP")
            time.sleep(0.002)

    def resume(self) -> None:
        """SIGCONT."""
        guard.send(guard.family(self.pid, self._born), signal.SIGCONT)

    def _dismiss_watcher(self) -> None:
        if self._pipe >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._pipe, guard.FAREWELL)
            os.close(self._pipe)
            self._pipe = -1


def run(
    command: Sequence[str | Path],
    *,
    log: Path,
    user: str | None = None,
    env: Mapping[str, str] | None = None,
) -> int:
    """Runs a preparing command to its end, its output appended to ``log``; returns its status."""
    with log.open("ab") as output:
        return subprocess.run(
            list(map(str, command)),
            cwd=log.parent,
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
            check=False,
        ).returncode


class Port:
    """A free loopback port, reserved against other test runs of this user until ``release()``.

    Taken from below the ephemeral range: a client that keeps dialling a dead server's port could
    otherwise be given that very port as its own and connect to itself, and the server could not
    come back on it.
    """

    def __init__(self) -> None:
        folder = Path(tempfile.gettempdir()) / f"rmq-test-ports-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        for number in _candidates():
            lock = os.open(folder / str(number), os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            if _locked(lock) and _free(number):
                self.number = number
                self._lock = lock
                return
            os.close(lock)
        raise OSError("no free loopback port")

    def release(self) -> None:
        """Gives the port back. Harmless when repeated."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _candidates() -> list[int]:
    first_ephemeral = 32768
    with contextlib.suppress(OSError, ValueError):
        words = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
        first_ephemeral = int(words[0])
    ports = range(10240, first_ephemeral) if first_ephemeral > 11240 else range(10240, 32768)
    return random.sample(ports, 200)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _free(number: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", number))
        except OSError:
            return False
    return True
