"""The adapter's own options: query parameters of the broker URL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from reliable_mq import url_options
from reliable_mq.url_options import Kind, in_seconds


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
    return Options(**url_options.parse_options(query, _KINDS, "options of the client library"))


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


_KINDS: dict[str, Kind] = {
    "wait": (_count, "a number of replicas, 0 to 100,"),
    "wait_aof": (_switch, "0 or 1"),
    "wait_timeout": (in_seconds(0.001, 3600), "seconds, 0.001 to 3600,"),
    "guard": (in_seconds(0, 86_400), "seconds, 0 (off) to 86400,"),
    "trim": (in_seconds(0, 86_400), "seconds, 0 (never) to 86400,"),
    "tls": (_switch, "0 or 1"),
}
