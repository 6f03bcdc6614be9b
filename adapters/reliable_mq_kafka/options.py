"""The adapter's own options: query parameters of the broker URL."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from reliable_mq.errors import ConfigurationError

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
    return Options(**{name: _parse(name, text) for name, text in query.items()})


def _parse(name: str, text: str) -> Any:
    if name not in _PARSERS:
        known = ", ".join(field.name for field in fields(Options))
        raise ConfigurationError(
            f"broker_url has the unknown option {name!r}; known are {known} "
            "(properties of librdkafka go into client_options)"
        )
    parse, expected = _PARSERS[name]
    try:
        return parse(text)
    except ValueError:
        raise ConfigurationError(
            f"broker_url has {name}={text!r} where {expected} is expected"
        ) from None


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


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value <= most:  # False for NaN too.
            raise ValueError
        return value

    return parse


_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "mechanism": (_mechanism, f"one of {', '.join(MECHANISMS)}"),
    "ca": (_path, "the path of a PEM file"),
    "cert": (_path, "the path of a PEM file"),
    "key": (_path, "the path of a PEM file"),
    "session_timeout": (_seconds(0.5, 1800), "seconds, 0.5 to 1800,"),
    "commit_interval": (_seconds(0.02, 1.0), "seconds, 0.02 to 1,"),
    "connect_timeout": (_seconds(1, 300), "seconds, 1 to 300,"),
    "transaction_timeout": (_seconds(1, 900), "seconds, 1 to 900,"),
    "static_id": (_name, "a name of letters, digits, '.', '_' and '-', up to 100,"),
}
