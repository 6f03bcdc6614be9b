"""From a broker URL to its adapter, by entry points named after URL schemes."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from reliable_mq.adapter import Adapter, AdapterContext
from reliable_mq.errors import ConfigurationError, MissingExtraError
from reliable_mq.redaction import redact_url

GROUP = "reliable_mq.adapters"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")

_EXTRAS = {
    "kafka": "kafka",
    "kafka+ssl": "kafka",
    "amqp": "rabbitmq",
    "amqps": "rabbitmq",
    "redis": "redis",
    "rediss": "redis",
    "redis+sentinel": "redis",
    "redis+cluster": "redis",
}


def scheme_of(url: str) -> str:
    """Return the scheme of *url* in lower case.

    Raises ``ConfigurationError`` without one, and for bytes of an environment that are no UTF-8.
    """
    scheme, separator, _ = url.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme):
        # As if it had one, so that a password is found where only the scheme was forgotten.
        shown = redact_url(f"x://{url}").removeprefix("x://")
        raise ConfigurationError(
            f"broker_url {shown!r} has no scheme; "
            "write for example sql:// or kafka://localhost:9092"
        )
    try:
        url.encode()
    except UnicodeEncodeError:
        # Without the URL: what is no text may hide where its password begins.
        raise ConfigurationError(
            "broker_url holds bytes that are no UTF-8: percent-encode them"
        ) from None
    return scheme.lower()


def open_adapter(url: str, context: AdapterContext) -> Adapter:
    """Return the adapter for *url*, not connected yet.

    Raises ``ConfigurationError`` for a scheme nobody serves or options its adapter refuses, and
    :class:`MissingExtraError` where its client library is not installed.
    """
    scheme = scheme_of(url)
    factory = _load(_entry_point(scheme), scheme)
    return factory(url, context)


def _entry_point(scheme: str) -> EntryPoint:
    found = entry_points(group=GROUP)
    for entry in found:
        if entry.name == scheme:
            return entry
    known = ", ".join(sorted({f"{entry.name}://" for entry in found}))
    raise ConfigurationError(f"no adapter for the scheme {scheme}://; installed are: {known}")


def _load(entry: EntryPoint, scheme: str) -> Callable[[str, AdapterContext], Adapter]:
    try:
        return cast("Callable[[str, AdapterContext], Adapter]", entry.load())
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(scheme)
        if extra is None or (error.name or "").startswith("reliable_mq"):
            raise
        raise MissingExtraError(
            f"{scheme}:// needs the package {error.name!r}: pip install 'reliable-mq[{extra}]'"
        ) from error
