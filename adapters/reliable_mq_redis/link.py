"""One connection, used by one thread at a time, with a deadline on every step."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

from redis.exceptions import ConnectionError as ClientConnectionError
from redis.exceptions import NoScriptError, ResponseError

from reliable_mq_redis.client import raw_socket
from reliable_mq_redis.location import Address
from reliable_mq_redis.packing import Packed
from reliable_mq_redis.scripts import SOURCES

Command: TypeAlias = "tuple[str | bytes | int | float, ...]"
AnyCommand: TypeAlias = "Command | Packed"
Reply: TypeAlias = Any
"""What the server answered; an error reply is a ``ResponseError`` among the replies."""

_LEAST = 0.001
_ABORT = struct.pack("ii", 1, 0)


class Link:
    """Sends commands and reads their replies, never repeating anything by itself.

    Whatever an exchange raises, the link is broken and to be aborted: replies may be under way.
    Scripts that the server does not know (it was restarted, or is another one) are loaded and
    run: a server that says so has not run them.
    """

    def __init__(self, connection: Any, address: Address) -> None:
        self.address = address
        self.suspect = False
        """Set where the server answered in a way that may mean it is the wrong one by now."""
        self._connection = connection

    def open(self, seconds: float) -> None:
        """Connect, authenticate and choose the database, each step within *seconds*."""
        connection = self._connection
        connection.socket_timeout = min(connection.socket_timeout, seconds)
        connection.socket_connect_timeout = min(connection.socket_connect_timeout, seconds)
        connection.connect()

    def exchange(self, commands: Sequence[AnyCommand], deadline: float) -> list[Reply]:
        """Return one reply a command. *deadline* is a time of the monotonic clock."""
        self.send(commands, deadline)
        return self.replies(commands, deadline)

    def send(self, commands: Sequence[AnyCommand], deadline: float) -> None:
        """Send *commands* without waiting for their replies."""
        pieces: list[bytes] = []
        for command in commands:
            if isinstance(command, Packed):
                pieces.append(command.data)
            else:
                pieces += self._connection.pack_command(*command)
        if raw_socket(self._connection) is None:
            # redis-py would connect again by itself, to whatever listens there now.
            raise ClientConnectionError("the connection was closed")
        self._limit(deadline)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._connection.send_packed_command([data], check_health=False)

    def replies(self, commands: Sequence[AnyCommand], deadline: float) -> list[Reply]:
        """Return the replies of *commands*, which were sent."""
        found = [self._read(deadline) for _ in commands]
        unknown = [i for i, reply in enumerate(found) if isinstance(reply, NoScriptError)]
        if unknown:
            again = self._run_unknown([commands[i] for i in unknown], deadline)
            for i, reply in zip(unknown, again, strict=True):
                found[i] = reply
        return found

    def _run_unknown(self, commands: Sequence[AnyCommand], deadline: float) -> list[Reply]:
        loads: list[Command] = [
            ("SCRIPT", "LOAD", SOURCES[sha]) for sha in sorted(set(map(_script_of, commands)))
        ]
        self.send([*loads, *commands], deadline)
        loaded = [self._read(deadline) for _ in loads]
        again = [self._read(deadline) for _ in commands]
        refused = next((reply for reply in loaded if isinstance(reply, ResponseError)), None)
        return again if refused is None else [refused] * len(commands)

    def _read(self, deadline: float) -> Reply:
        self._limit(deadline)
        try:
            return self._connection.read_response(disable_decoding=True)
        except ResponseError as error:
            return error

    @staticmethod
    def left(deadline: float) -> float:
        """Return the seconds until *deadline*; never 0, which sockets take for "do not wait"."""
        return max(deadline - time.monotonic(), _LEAST)

    def _limit(self, deadline: float) -> None:
        opened = raw_socket(self._connection)
        if opened is not None:
            opened.settimeout(self.left(deadline))

    def quiet(self, seconds: float = 0.0) -> bool:
        """Tell whether an idle link is fine: open, and not a word from the server.

        Waits for *seconds*, or until the server closes it.
        """
        opened = raw_socket(self._connection)
        if opened is None:
            return False
        poller = select.poll()
        poller.register(opened, select.POLLIN)
        return not poller.poll(seconds * 1000)

    def close(self) -> None:
        """Close it. Everything sent was answered, so nothing is under way."""
        self._connection.disconnect()

    def abort(self) -> None:
        """Close it and drop what this machine has not sent yet.

        The server may still execute what had reached it.
        """
        opened = raw_socket(self._connection)
        if opened is not None:
            with contextlib.suppress(OSError):  # Closed already: nothing is left to drop.
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
        self._connection.disconnect()

    def interrupt(self) -> None:
        """Make the thread that waits on this link fail at once. Callable by any thread."""
        opened = raw_socket(self._connection)
        if opened is not None:
            with contextlib.suppress(OSError):  # Not connected any more: nobody waits.
                opened.shutdown(socket.SHUT_RDWR)


def _script_of(command: AnyCommand) -> str:
    return command.sha if isinstance(command, Packed) else str(command[1])
