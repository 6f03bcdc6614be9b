"""From a broker URL to where the servers are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from reliable_mq.errors import ConfigurationError
from reliable_mq.redaction import redact_hosts, redact_url


class Address(NamedTuple):
    """Where one server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Kind(Enum):
    """How the server of a topic is found."""

    SERVER = "one server"
    SENTINEL = "the primary the sentinels name"
    CLUSTER = "the node of the topic's hash slot"


_SCHEMES = {
    "redis": (Kind.SERVER, False, 6379),
    "rediss": (Kind.SERVER, True, 6379),
    "redis+sentinel": (Kind.SENTINEL, False, 26379),
    "redis+cluster": (Kind.CLUSTER, False, 6379),
}


_MOST_DIGITS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """What a URL says of the servers; ``query`` is left to the options."""

    kind: Kind
    hosts: tuple[Address, ...]
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    database: int = 0
    service: str | None = None
    query: Mapping[str, str] = field(default_factory=dict)


def parse_url(url: str) -> Location:
    """Return what *url* says; ``ConfigurationError`` names the part that cannot be."""
    scheme, _, rest = url.partition("://")
    if scheme.lower() not in _SCHEMES:
        raise _wrong(url, f"has the scheme {scheme!r}; known are {', '.join(_SCHEMES)}")
    kind, tls, port = _SCHEMES[scheme.lower()]
    rest, _, query = rest.partition("?")
    credentials, _, places = rest.rpartition("@")
    hosts, _, path = places.partition("/")
    username, password = _credentials(credentials)
    service, database = _path(url, kind, unquote(path).strip("/"))
    return Location(
        kind=kind,
        hosts=_hosts(url, kind, hosts, port),
        tls=tls,
        username=username,
        password=password,
        database=database,
        service=service,
        query=_query(url, query),
    )


def _wrong(url: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"broker_url {redact_url(url)!r} {why}")


def _credentials(text: str) -> tuple[str | None, str | None]:
    username, _, password = text.partition(":")
    return unquote(username) or None, unquote(password) or None


def _hosts(url: str, kind: Kind, text: str, port: int) -> tuple[Address, ...]:
    hosts = tuple(_address(url, part, port) for part in text.split(",")) if text else ()
    if not hosts:
        hosts = (Address("localhost", port),)
    if kind is Kind.SERVER and len(hosts) > 1:
        raise _wrong(
            url, "names several hosts: use redis+sentinel:// or redis+cluster:// for more than one"
        )
    return hosts


def _address(url: str, text: str, default: int) -> Address:
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    else:
        host, _, port = text.partition(":")
    if not host or (port and not _is_number(port)) or not 0 < int(port or default) < 65536:
        raise _wrong(url, f"has {redact_hosts(text)!r} where host or host:port is expected")
    return Address(host, int(port or default))


def _is_number(text: str) -> bool:
    # int() refuses thousands of digits with an error that names no setting.
    return text.isdecimal() and len(text) <= _MOST_DIGITS


def _path(url: str, kind: Kind, path: str) -> tuple[str | None, int]:
    if kind is Kind.SENTINEL:
        service, _, path = path.partition("/")
        if not service:
            raise _wrong(
                url, "names no service: write redis+sentinel://host:26379/<service monitored>"
            )
    else:
        service = None
    if path and not _is_number(path):
        raise _wrong(url, f"has {path!r} where the number of the database is expected")
    if kind is Kind.CLUSTER and int(path or 0):
        raise _wrong(url, f"asks for database {path}: a cluster has database 0 only")
    return service, int(path or 0)


def _query(url: str, text: str) -> dict[str, str]:
    pairs = parse_qsl(text, keep_blank_values=True)
    query = dict(pairs)
    if len(query) < len(pairs):
        raise _wrong(url, "gives an option twice")
    return query
