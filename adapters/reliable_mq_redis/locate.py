"""Which server has a topic: the one named, the sentinels' primary, or the slot's node."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
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
        """Forget the primary if it was *address*, and ask another sentinel first next time.

        One that is cut off from the others goes on naming a primary that is none any more.
        """
        if self._primary == address:
            self._primary = None
            self._sentinels = [*self._sentinels[1:], *self._sentinels[:1]]

    def share(self, topics: Sequence[str]) -> list[list[str]]:
        """Return all topics together."""
        return [list(topics)]

    def problems(self) -> Iterator[tuple[Address, str]]:
        """Give each sentinel that does not answer, or that sees too few others, and what it says.

        One that does not allow the question (``+sentinel|ckquorum``) is passed over.
        """
        command: Command = ("SENTINEL", "CKQUORUM", self._service)
        for sentinel in sorted(self._sentinels):
            end = time.monotonic() + self._dialer.connect_timeout
            try:
                _ask(self._dialer.sentinel(sentinel), sentinel, command, end)
            except FAILURES as error:
                if not isinstance(error, ResponseError) or "QUORUM" in str(error):
                    yield sentinel, text_of(error)

    def _ask(self, deadline: float) -> Address:
        command: Command = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        sentinels, silent = self._sentinels, Unanswered()
        for number, sentinel in enumerate(sentinels):
            end = _share(deadline, len(sentinels) - number, self._dialer.connect_timeout)
            try:
                reply = _ask(self._dialer.sentinel(sentinel), sentinel, command, end)
            except FAILURES as error:
                silent.note(sentinel, error)
                continue
            if reply is not None:
                host, port = reply
                self._sentinels = [*sentinels[number:], *sentinels[:number]]
                return Address(host.decode(), int(port))
            silent.note(sentinel)
        raise silent.sentinels(self._service) from silent.cause


class Unanswered:
    """Why those who were asked did not help: down, or something that a person must mend."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._strangers = 0
        self._error: Exception | None = None
        self._refusal: ConfigurationError | None = None

    def note(self, address: Address, error: Exception | None = None) -> None:
        """Note that *address* failed with *error*; without one, that it knows nothing."""
        self._strangers += error is None
        self._texts.append(f"{address}: {text_of(error) if error else 'does not monitor it'}")
        translated = translate(error, f"asking {address}") if error else None
        if isinstance(translated, ConfigurationError) or self._error is None:
            self._error = error
        if isinstance(translated, ConfigurationError):
            self._refusal = translated

    @property
    def cause(self) -> Exception | None:
        """What the client raised, the most telling of it."""
        return self._error

    def sentinels(self, service: str) -> ConfigurationError | TransportError:
        """Return the error where no sentinel named a primary."""
        text = f"no sentinel names a primary for {service!r} ({'; '.join(self._texts)})"
        if self._strangers == len(self._texts):
            return ConfigurationError(f"{text}: correct the service in broker_url")
        if self._refusal is None:
            return TransportError(text)
        return ConfigurationError(
            f"{text}: the sentinels have a user and a password of their own, sentinel_username "
            "and sentinel_password in client_options, and the same authorities (ssl_ca_certs)"
        )

    def nodes(self) -> ConfigurationError | TransportError:
        """Return the error where no node of a cluster told its map."""
        return self._refusal or TransportError(
            f"no node of the cluster answers ({'; '.join(self._texts)})"
        )


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
        seeds, silent = self._seeds, Unanswered()
        for number, seed in enumerate(seeds):
            end = _share(deadline, len(seeds) - number, self._dialer.connect_timeout)
            try:
                reply = _ask(self._dialer.server(seed), seed, ("CLUSTER", "SLOTS"), end)
            except ResponseError as error:
                raise _no_cluster(seed, error) from error
            except FAILURES as error:
                silent.note(seed, error)
                continue
            return [(first, last, _node(node, seed)) for first, last, node, *_ in reply]
        raise silent.nodes() from silent.cause


def _share(deadline: float, left: int, most: float) -> float:
    """Return when to give up on one of *left* servers, so that the others get their turn.

    A machine without power does not even refuse a connection.
    """
    now = time.monotonic()
    return now + min(most, (deadline - now) / left)


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
