"""The adapter's own options: query parameters of the broker URL."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from reliable_mq import url_options
from reliable_mq.url_options import Kind, in_seconds

MECHANISMS = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN", "OAUTHBEARER", "GSSAPI")
WITH_PASSWORD = frozenset(MECHANISMS[:3])
_NAME = re.compile(r"[A-Za-z0-9._-]{1,100}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Durations are in seconds. What each one does is told in the package's docstring."""

    mechanism: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    session_timeout: float = 6.0
    commit_interval: float = 0.5
    connect_timeout: float = 10.0
    transaction_timeout: float = 10.0
    static_id: str | None = None


def parse_options(query: Mapping[str, str]) -> Options:
    """Return the options of a URL; ``ConfigurationError`` names an unknown one or a bad value."""
    return Options(**url_options.parse_options(query, _KINDS, "properties of librdkafka"))


def _mechanism(text: str) -> str:
    if text.upper() not in MECHANISMS:
        raise ValueError
    return text.upper()


def _name(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError
    return text


def _path(text: str) -> str:
    if not text:
        raise ValueError
    return text


_KINDS: dict[str, Kind] = {
    "mechanism": (_mechanism, f"one of {', '.join(MECHANISMS)}"),
    "ca": (_path, "the path of a PEM file"),
    "cert": (_path, "the path of a PEM file"),
    "key": (_path, "the path of a PEM file"),
    "session_timeout": (in_seconds(0.5, 1800), "seconds, 0.5 to 1800,"),
    "commit_interval": (in_seconds(0.02, 1.0), "seconds, 0.02 to 1,"),
    "connect_timeout": (in_seconds(1, 300), "seconds, 1 to 300,"),
    "transaction_timeout": (in_seconds(1, 900), "seconds, 1 to 900,"),
    "static_id": (_name, "a name of letters, digits, '.', '_' and '-', up to 100,"),
}
