"""A TCP proxy between our processes and one server, which does to connections what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

_ABORT = struct.pack("ii", 1, 0)
_SLICED = 300
"""Bytes at the front of each chunk that travel in small pieces; the rest follows at once."""


class Trouble(Enum):
    """What a link does while it lasts."""

    LATENCY = "latency"
    """Each chunk is late, in both directions."""
    BLACKHOLE = "blackhole"
    """Nothing arrives. What was sent meanwhile arrives later, even from a client that is gone."""
    RESET = "reset"
    """Connections are reset: those that are open, and new ones at their first byte."""
    SLICES = "slices"
    """Chunks arrive in pieces of a few bytes."""
    LOST_REPLY = "lost reply"
    """A request goes through, and its connection ends instead of the reply."""
    LOST_COMMIT = "lost commit"
    """The same, of a COMMIT alone."""


@dataclass(frozen=True)
class Spell:
    """A trouble for a while. Of all connections, the *share* suffers."""

    trouble: Trouble
    share: float
    delay: float = 0.0
    over: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Link:
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    luck: float
    committing: bool = False

    def reset(self) -> None:
        for writer in (self.client, self.server):
            raw = writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ABORT)
            writer.transport.abort()


class Proxy:
    """Forwards between clients and one server. Made before the server, whose port comes later.

    ``begin``, ``end`` and ``close`` are for one other thread.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._target = 0
        self._spell: Spell | None = None
        self._links: set[_Link] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.hits = 0
        """Chunks, or connections, to which something was done."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy")

    def start(self, target: int) -> None:
        """Forward to this port of this machine from now on."""
        self._target = target
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)

    def begin(self, trouble: Trouble, *, share: float, delay: float = 0.0) -> None:
        """Let the *share* of connections suffer until ``end``."""
        self._call(lambda: self._begin(Spell(trouble, share, delay)))

    def end(self) -> None:
        """Forward everything again, what was held back first."""
        self._call(self._end)

    def close(self) -> None:
        """End all connections and the thread."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._shut(), self._loop).result(30)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)
        self._listener.close()
        self._loop.close()

    # --- on the loop ----------------------------------------------------------------------------

    def _call(self, function: Callable[[], None]) -> None:
        async def call() -> None:
            function()

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, sock=self._listener)

    def _begin(self, spell: Spell) -> None:
        self._end()
        self._spell = spell
        if spell.trouble is Trouble.RESET:
            for link in [one for one in self._links if one.luck < spell.share]:
                self.hits += 1
                link.reset()

    def _end(self) -> None:
        if self._spell is not None:
            self._spell.over.set()
        self._spell = None

    async def _shut(self) -> None:
        self._end()
        self._server.close()
        for link in list(self._links):
            link.reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.sleep(0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far, out = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(writer, out, self._rng.random())
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(reader, out, link), self._pump(far, writer, link))
        finally:
            self._links.discard(link)
            link.client.close()
            link.server.close()

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, link: _Link
    ) -> None:
        """Forward one direction until it ends, which ends the other too."""
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if not await self._forward(data, target, link):
                    break
                await target.drain()
        link.client.close()
        link.server.close()

    async def _forward(self, data: bytes, target: asyncio.StreamWriter, link: _Link) -> bool:
        """Hand *data* on, as the spell has it. False: the connection is over."""
        spell = self._spell
        if spell is not None and link.luck < spell.share:
            if self._is_lost(spell.trouble, data, link, reply=target is link.client):
                self.hits += 1
                return False
            await self._hinder(spell, link)
            if spell.trouble is Trouble.SLICES:
                data = await self._in_pieces(data, target)
        target.write(data)
        return True

    def _is_lost(self, trouble: Trouble, data: bytes, link: _Link, *, reply: bool) -> bool:
        if trouble is Trouble.RESET:
            link.reset()
            return True
        if trouble is Trouble.LOST_COMMIT:
            if not reply:
                link.committing = b"COMMIT" in data.upper()
            return reply and link.committing
        return reply and trouble is Trouble.LOST_REPLY

    async def _hinder(self, spell: Spell, link: _Link) -> None:
        if spell.trouble is Trouble.LATENCY:
            self.hits += 1
            await asyncio.sleep(spell.delay)
        elif spell.trouble is Trouble.BLACKHOLE:
            self.hits += 1
            await spell.over.wait()

    async def _in_pieces(self, data: bytes, target: asyncio.StreamWriter) -> bytes:
        """Write the front of *data* in pieces, return what is left."""
        self.hits += 1
        place = 0
        while place < min(len(data), _SLICED):
            end = place + self._rng.randint(1, 40)
            target.write(data[place:end])
            place = end
            await asyncio.sleep(0.001)
        return data[place:]
