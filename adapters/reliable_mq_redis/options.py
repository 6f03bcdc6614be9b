"""The adapter's own options: query parameters of the broker URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from reliable_mq.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Durations are in seconds. What each one does is told in the package's docstring."""

    wait: int = 0
    wait_aof: bool = False
    wait_timeout: float = 1.0
    guard: float = 300.0
    trim: float = 10.0
    tls: bool = False


def parse_options(query: Mapping[str, str]) -> Options:
    """Return the options of a URL; ``ConfigurationError`` names an unknown one or a bad value."""
    values = {name: _parse(name, text) for name, text in query.items()}
    return Options(**values)


def _parse(name: str, text: str) -> Any:
    if name not in _PARSERS:
        known = ", ".join(field.name for field in fields(Options))
        raise ConfigurationError(
            f"broker_url has the unknown option {name!r}; known are {known} "
            "(options of the client library go into client_options)"
        )
    parse, expected = _PARSERS[name]
    try:
        return parse(text)
    except ValueError:
        raise ConfigurationError(
            f"broker_url has {name}={text!r} where {expected} is expected"
        ) from None


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) > 100:
        raise ValueError
    return int(text)


def _flag(text: str) -> bool:
    return {"0": False, "1": True, "false": False, "true": True}[text.lower()]


def _switch(text: str) -> bool:
    try:
        return _flag(text)
    except KeyError:
        raise ValueError from None


def _seconds(least: float, most: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value <= most:  # NaN fails it, too.
            raise ValueError
        return value

    return parse


_PARSERS: dict[str, tuple[Callable[[str], Any], str]] = {
    "wait": (_count, "a number of replicas, 0 to 100,"),
    "wait_aof": (_switch, "0 or 1"),
    "wait_timeout": (_seconds(0.001, 3600), "seconds, 0.001 to 3600,"),
    "guard": (_seconds(0, 86_400), "seconds, 0 (off) to 86400,"),
    "trim": (_seconds(0, 86_400), "seconds, 0 (never) to 86400,"),
    "tls": (_switch, "0 or 1"),
}
