"""All connections of an adapter: found, opened, kept for the next call, given up when broken."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from redis.exceptions import MovedError, ResponseError

from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq_redis.client import Dialer
from reliable_mq_redis.errors import translated
from reliable_mq_redis.link import Command, Link, Reply
from reliable_mq_redis.locate import Locator, ServerLocator
from reliable_mq_redis.location import Address

_KEPT = 16
"""Idle connections kept for each server."""


class Servers:
    """Thread-safe. A link is one thread's own between its taking and its giving back."""

    def __init__(self, dialer: Dialer, locator: Locator) -> None:
        self.dialer = dialer
        self.locator = locator
        self._lock = threading.Lock()
        self._idle: dict[Address, list[Link]] = {}
        self._busy: set[Link] = set()
        self._pid = os.getpid()
        self._closed = False

    def dial(self, address: Address, deadline: float) -> Link:
        """Return a new open link that the caller owns and closes; raises the client's errors."""
        link = Link(self.dialer.server(address), address)
        try:
            link.open(Link.left(deadline))
        except BaseException:
            link.close()
            self.locator.failed(address)
            raise
        return link

    @contextmanager
    def link(self, address: Address, deadline: float) -> Iterator[Link]:
        """Lend a link for the block. Whatever the block raises, or a suspect link, is aborted."""
        link = self._take(address, deadline)
        try:
            yield link
        except BaseException:
            self.give_up(link)
            raise
        if link.suspect:
            self.give_up(link)
        else:
            self._give_back(link)

    def give_up(self, link: Link) -> None:
        """Abort a broken link, drop the idle ones beside it, and look for the server anew."""
        with self._lock:
            self._busy.discard(link)
            idle = self._idle.pop(link.address, [])
        link.abort()
        for one in idle:
            one.close()
        self.locator.failed(link.address)

    def call(self, topic: str, commands: Sequence[Command], doing: str) -> list[Reply]:
        """Run *commands* on the server of *topic*; an error reply is raised.

        Only what may run twice: an error leaves open whether it ran. Raises the library's errors.
        """
        deadline = time.monotonic() + self.dialer.socket_timeout
        with translated(doing):
            address = self.locator.locate(topic, deadline)
            with self.link(address, deadline) as link:
                return self.checked(link.exchange(commands, deadline))

    def checked(self, replies: list[Reply]) -> list[Reply]:
        """Return *replies*, or raise the first error among them."""
        for reply in replies:
            problem = self.problem(reply)
            if problem is not None:
                raise problem
        return replies

    def problem(self, reply: Reply) -> Exception | None:
        """Return what is wrong with a reply: the server's error, as a rule."""
        if isinstance(reply, MovedError) and isinstance(self.locator, ServerLocator):
            return ConfigurationError(
                "the server is a node of a cluster: use redis+cluster:// in broker_url"
            )
        return reply if isinstance(reply, ResponseError) else None

    def close(self) -> None:
        """Close what is idle, and make every thread that waits fail at once. Idempotent."""
        with self._lock:
            self._closed = True
            idle = [link for links in self._idle.values() for link in links]
            self._idle.clear()
            busy = list(self._busy)
        for link in idle:
            link.close()
        for link in busy:
            link.interrupt()

    def _take(self, address: Address, deadline: float) -> Link:
        idle = self._idle_link(address)
        if idle is not None:
            if idle.quiet():
                return idle
            self.give_up(idle)
        link = self.dial(address, deadline)
        with self._lock:
            if not self._closed:
                self._busy.add(link)
                return link
        link.close()
        raise TransportError("the adapter is closed")

    def _idle_link(self, address: Address) -> Link | None:
        with self._lock:
            if self._closed:
                raise TransportError("the adapter is closed")
            if self._pid != os.getpid():
                # After a fork the parent's connections are the parent's.
                self._idle, self._busy, self._pid = {}, set(), os.getpid()
            links = self._idle.get(address)
            if not links:
                return None
            link = links.pop()
            self._busy.add(link)
            return link

    def _give_back(self, link: Link) -> None:
        with self._lock:
            self._busy.discard(link)
            links = self._idle.setdefault(link.address, [])
            kept = not self._closed and len(links) < _KEPT
            if kept:
                links.append(link)
        if not kept:
            link.close()
