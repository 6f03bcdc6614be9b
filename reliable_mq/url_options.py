"""Options in the query of a broker URL: names, values and the errors for both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from reliable_mq.errors import ConfigurationError

Kind: TypeAlias = tuple[Callable[[str], Any], str]
"""What makes a value of a text, ``ValueError`` where it cannot, and what it expects, in words."""


def parse_options(query: Mapping[str, str], kinds: Mapping[str, Kind], rest: str) -> dict[str, Any]:
    """Return the options of *query* by name.

    *rest* says where options of the client library go. Raises ``ConfigurationError`` for an
    option that is not among *kinds*, naming those that are, and for a bad value.
    """
    return {name: _parse(name, text, kinds, rest) for name, text in query.items()}


def _parse(name: str, text: str, kinds: Mapping[str, Kind], rest: str) -> Any:
    if name not in kinds:
        raise ConfigurationError(
            f"broker_url has the unknown option {name!r}; known are {', '.join(kinds)} "
            f"({rest} go into client_options)"
        )
    parse, expected = kinds[name]
    try:
        return parse(text)
    except ValueError:
        raise ConfigurationError(
            f"broker_url has {name}={text!r} where {expected} is expected"
        ) from None


def in_seconds(least: float, most: float) -> Callable[[str], float]:
    """Return what reads a duration from *least* to *most* seconds."""

    def parse(text: str) -> float:
        value = float(text)
        if not least <= value <= most:  # NaN fails it, too.
            raise ValueError
        return value

    return parse
