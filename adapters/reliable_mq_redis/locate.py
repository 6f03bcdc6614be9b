"""Which server has a topic: the one named, the sentinels' primary, or the slot's node."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from redis.crc import key_slot
from redis.exceptions import ResponseError

from reliable_mq.errors import ConfigurationError, TransportError
from reliable_mq_redis import keys
from reliable_mq_redis.client import Dialer
from reliable_mq_redis.errors import FAILURES, text_of, translate
from reliable_mq_redis.link import Command, Link, Reply
from reliable_mq_redis.location import Address, Kind, Location


class Locator(Protocol):
    """Finds servers. Thread-safe. Raises the library's errors where none can be found."""

    def locate(self, topic: str, deadline: float) -> Address:
        """Return the server that takes the commands of *topic* now."""
        ...

    def everywhere(self, deadline: float) -> list[Address]:
        """Return every server that takes commands of some topic."""
        ...

    def failed(self, address: Address) -> None:
        """Take note that *address* may not be the right server any more: look again."""
        ...

    def share(self, topics: Sequence[str]) -> list[list[str]]:
        """Return *topics* in sets whose keys one command may use together."""
        ...


def locator(location: Location, dialer: Dialer) -> Locator:
    """Return the way to find the servers of *location*."""
    if location.kind is Kind.SENTINEL:
        return SentinelLocator(location, dialer)
    if location.kind is Kind.CLUSTER:
        return ClusterLocator(location, dialer)
    return ServerLocator(location)


class ServerLocator:
    """The one server of the URL."""

    def __init__(self, location: Location) -> None:
        self._address = location.hosts[0]

    def locate(self, topic: str, deadline: float) -> Address:
        """Return the server."""
        return self._address

    def everywhere(self, deadline: float) -> list[Address]:
        """Return the server."""
        return [self._address]

    def failed(self, address: Address) -> None:
        """There is no other one."""

    def share(self, topics: Sequence[str]) -> list[list[str]]:
        """Return all topics together."""
        return [list(topics)]


class SentinelLocator:
    """The primary that the sentinels name. Asked again after each failure of a connection."""

    def __init__(self, location: Location, dialer: Dialer) -> None:
        self._sentinels = list(location.hosts)
        self._service = location.service or ""
        self._dialer = dialer
        self._primary: Address | None = None

    def locate(self, topic: str, deadline: float) -> Address:
        """Return the primary."""
        found = self._primary
        if found is None:
            found = self._primary = self._ask(deadline)
        return found

    def everywhere(self, deadline: float) -> list[Address]:
        """Return the primary."""
        return [self.locate("", deadline)]

    def failed(self, address: Address) -> None:
        """Forget the primary if it was *address*."""
        if self._primary == address:
            self._primary = None

    def share(self, topics: Sequence[str]) -> list[list[str]]:
        """Return all topics together."""
        return [list(topics)]

    def _ask(self, deadline: float) -> Address:
        command: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        answers: list[str] = []
        for sentinel in list(self._sentinels):
            try:
                reply = _ask(self._dialer.sentinel(sentinel), sentinel, command, deadline)
            except FAILURES as error:
                answers.append(f"{sentinel}: {text_of(error)}")
                continue
            if reply is not None:
                host, port = reply
                return Address(host.decode(), int(port))
            answers.append(f"{sentinel}: does not monitor it")
        raise self._not_found(answers)

    def _not_found(self, answers: Sequence[str]) -> ConfigurationError | TransportError:
        text = f"no sentinel names a primary for {self._service!r} ({'; '.join(answers)})"
        if all(answer.endswith("does not monitor it") for answer in answers):
            return ConfigurationError(f"{text}: correct the service in broker_url")
        return TransportError(text)


class ClusterLocator:
    """The node that serves the hash slot of a topic. The map is read again after a failure."""

    def __init__(self, location: Location, dialer: Dialer) -> None:
        self._seeds = location.hosts
        self._dialer = dialer
        self._slots: list[tuple[int, int, Address]] = []
        self._lock = threading.Lock()

    def locate(self, topic: str, deadline: float) -> Address:
        """Return the primary node of the slot."""
        slot = key_slot(keys.meta(topic).encode())
        for first, last, address in self._map(deadline):
            if first <= slot <= last:
                return address
        self._slots = []
        raise TransportError(f"the cluster serves no node for slot {slot} of topic {topic!r}")

    def everywhere(self, deadline: float) -> list[Address]:
        """Return every primary node."""
        return sorted({address for _, _, address in self._map(deadline)})

    def failed(self, address: Address) -> None:
        """Read the map again before the next use."""
        self._slots = []

    def share(self, topics: Sequence[str]) -> list[list[str]]:
        """Return each topic alone: another one is in another slot."""
        return [[topic] for topic in topics]

    def _map(self, deadline: float) -> list[tuple[int, int, Address]]:
        found = self._slots
        if not found:
            with self._lock:
                found = self._slots or self._read(deadline)
                if found:
                    self._seeds = tuple(
                        dict.fromkeys([*(address for _, _, address in found), *self._seeds])
                    )
                self._slots = found
        return found

    def _read(self, deadline: float) -> list[tuple[int, int, Address]]:
        problems: list[str] = []
        for seed in self._seeds:
            try:
                reply = _ask(self._dialer.server(seed), seed, ("CLUSTER", "SLOTS"), deadline)
            except ResponseError as error:
                raise _no_cluster(seed, error) from error
            except FAILURES as error:
                problems.append(f"{seed}: {text_of(error)}")
                continue
            return [(first, last, _node(node, seed)) for first, last, node, *_ in reply]
        raise TransportError(f"no node of the cluster answers ({'; '.join(problems)})")


def _no_cluster(seed: Address, error: ResponseError) -> Exception:
    if "cluster support disabled" in str(error):
        return ConfigurationError(f"{seed} is not part of a cluster: use redis:// or rediss://")
    return translate(error, f"asking {seed} for the map of the cluster")


def _node(node: list[Reply], seed: Address) -> Address:
    # A node that does not know its own host leaves it to the client: the one it was asked at.
    host = node[0].decode() if node[0] else ""
    return Address(seed.host if host in {"", "?"} else host, int(node[1]))


def _ask(connection: object, address: Address, command: Command, deadline: float) -> Reply:
    link = Link(connection, address)
    try:
        link.open(link.left(deadline))
        (reply,) = link.exchange([command], deadline)
    finally:
        link.close()
    if isinstance(reply, ResponseError):
        raise reply
    return reply
