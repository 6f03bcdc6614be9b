"""Starts one server so that it cannot outlive the test run.

Run as a script, ``python -I -S guard.py OWNER FD FOLDER USER COMMAND...``: this process becomes
COMMAND (as USER, unless that is ``-``), after leaving behind a small watcher in a session of its
own. The watcher holds the reading end FD of a pipe whose writing end belongs to the test run.
When that end closes without a farewell, or process OWNER is gone, the test run has died: the
watcher kills the server with all its descendants and removes FOLDER.

Only the standard library, and nothing else of this package: it has to start fast.
"""

import contextlib
import os
import pwd
import select
import shutil
import signal
import sys
import time
from typing import NamedTuple

FAREWELL = b"k"
_CHECK_OWNER_EVERY = 0.5
_DEATH_TIMEOUT = 10.0
_STILL = frozenset("TtZX")
"""Stopped, and dead."""


class _Kin(NamedTuple):
    parent: int
    group: int
    session: int
    born: int


def _living() -> dict[int, _Kin]:
    """All processes but zombies, who are dead and only wait to be noticed."""
    result: dict[int, _Kin] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                state, *numbers = file.read().rpartition(b")")[2].split()
        except OSError:
            continue  # gone in between
        if state not in (b"Z", b"X"):
            result[int(entry)] = _Kin(*map(int, (*numbers[:3], numbers[18])))
    return result


def born(pid: int) -> int:
    """When a process began, in ticks since the machine did; 0 when it is gone.

    Together with its number it names a process for ever: numbers are given out again, here after
    some ten thousand processes.
    """
    kin = _living().get(pid)
    return 0 if kin is None else kin.born


def family(leader: int, since: int) -> set[int]:
    """The living processes that belong to ``leader``: its group, its session, their descendants.

    Descendants matter because some servers (PostgreSQL) give each child a session of its own.
    Where another process, not ``born`` at ``since``, has the leader's number, there are none: a
    number is not given out again while it names a group or a session.
    """
    living = _living()
    if leader in living and living[leader].born != since:
        return set()
    members = {pid for pid, kin in living.items() if leader in (pid, kin.group, kin.session)}
    while True:
        found = {pid for pid, kin in living.items() if kin.parent in members} - members
        if not found:
            return members
        members |= found


def send(pids: set[int], number: int) -> None:
    """Sends a signal to each process that still exists."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def freeze(leader: int, since: int) -> set[int]:
    """Stops the family with SIGSTOP, children born meanwhile included; returns its members."""
    stopped: set[int] = set()
    while new := family(leader, since) - stopped:
        send(new, signal.SIGSTOP)
        stopped |= new
    return stopped


def frozen(pids: set[int]) -> bool:
    """Whether no thread of these processes runs any more: on a busy machine that takes a while."""
    return all(state in _STILL for pid in pids for state in _states(pid))


def _states(pid: int) -> list[str]:
    """The state of each thread."""
    states = []
    with contextlib.suppress(OSError):  # gone in between
        for thread in os.listdir(f"/proc/{pid}/task"):
            with (
                contextlib.suppress(OSError),
                open(f"/proc/{pid}/task/{thread}/stat", "rb") as file,
            ):
                states.append(file.read().rpartition(b")")[2].split()[0].decode())
    return states


def kill_family(leader: int, since: int) -> None:
    """Kills the whole family with SIGKILL; returns when all are dead.

    It is frozen first: a child whose parent dies in between could no longer be recognised.
    """
    members = freeze(leader, since)
    send(members, signal.SIGKILL)
    deadline = time.monotonic() + _DEATH_TIMEOUT
    while members & _living().keys() and time.monotonic() < deadline:
        time.sleep(0.005)


def _owner_lives(owner: int) -> bool:
    try:
        os.kill(owner, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _watch(owner: int, pipe: int, leader: int, since: int, folder: str) -> None:
    while _owner_lives(owner):
        ready, _, _ = select.select([pipe], [], [], _CHECK_OWNER_EVERY)
        if ready:
            if os.read(pipe, 1) == FAREWELL:
                return
            break
    kill_family(leader, since)
    shutil.rmtree(folder, ignore_errors=True)


def _leave_watcher(owner: int, pipe: int, folder: str) -> None:
    """Forks twice, so that the watcher is no child of the server and not in its family."""
    leader, since = os.getpid(), born(os.getpid())
    middle = os.fork()
    if middle:
        os.waitpid(middle, 0)
        return
    os.setsid()
    if os.fork() == 0:
        _watch(owner, pipe, leader, since, folder)
    os._exit(0)


def _become(user: str) -> None:
    entry = pwd.getpwnam(user)
    os.initgroups(user, entry.pw_gid)
    os.setgid(entry.pw_gid)
    os.setuid(entry.pw_uid)


def main(owner: str, pipe: str, folder: str, user: str, *command: str) -> None:
    """Leaves the watcher behind and becomes the server."""
    _leave_watcher(int(owner), int(pipe), folder)
    os.close(int(pipe))
    if user != "-":
        _become(user)
    os.execvp(command[0], command)  # noqa: S606 - becoming the command is the purpose


if __name__ == "__main__":
    main(*sys.argv[1:])
