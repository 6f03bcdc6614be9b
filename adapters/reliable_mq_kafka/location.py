"""Where the brokers are and how to talk to them: the broker URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote

from reliable_mq.errors import ConfigurationError
from reliable_mq.redaction import redact_hosts, redact_url

PLAIN = "kafka"
ENCRYPTED = "kafka+ssl"

_DEFAULT_PORT = 9092
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """A parsed broker URL. ``bootstrap`` is ``host:port,...`` as Kafka's clients want it."""

    bootstrap: str
    encrypted: bool
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    query: Mapping[str, str] = field(default_factory=dict, repr=False)


def parse_url(url: str) -> Location:
    """Return the location that *url* names; ``ConfigurationError`` says what is wrong with it."""
    scheme, _, rest = url.partition("://")
    rest, _, fragment = rest.partition("#")
    place, _, query = rest.partition("?")
    credentials, _, hosts = place.rpartition("@")
    user, _, password = credentials.partition(":")
    if fragment:
        raise _wrong(url, "'#' must be written %23")
    if credentials and not (user and password):
        raise _wrong(url, "write user:password@ before the hosts, or neither")
    return Location(
        bootstrap=",".join(_address(url, host) for host in hosts.rstrip("/").split(",")),
        encrypted=scheme.lower() == ENCRYPTED,
        user=unquote(user) or None,
        password=unquote(password) or None,
        query=_query(url, query),
    )


def _address(url: str, text: str) -> str:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < int(match["port"] or _DEFAULT_PORT) < 65536:
        raise _wrong(
            url, f"{redact_hosts(text)!r} is no host[:port]; several are separated by commas"
        )
    return f"{match['host']}:{match['port'] or _DEFAULT_PORT}"


def _query(url: str, text: str) -> dict[str, str]:
    pairs = parse_qsl(text, keep_blank_values=True)
    query = dict(pairs)
    if len(query) < len(pairs):
        raise _wrong(url, "an option is given twice")
    return query


def _wrong(url: str, why: str) -> ConfigurationError:
    return ConfigurationError(
        f"broker_url {redact_url(url)!r}: {why}; expected is {PLAIN}://host[:port],... or "
        f"{ENCRYPTED}://user:password@host[:port],..., with '@', ':', '/', ',' in a password "
        "percent-encoded"
    )
