"""Which topic, group and message names are accepted, on every broker alike."""

from __future__ import annotations

import re

from reliable_mq.errors import ConfigurationError

MAX_TOPIC = 249
"""Characters: the limit of a Kafka topic name, the smallest of the brokers'."""

MAX_GROUP = 64
MAX_MESSAGE_ID_BYTES = 255
"""Bytes of UTF-8: RabbitMQ's limit for a ``message_id`` and the width of our key columns."""

MAX_KEY_BYTES = 1024

MAX_HEADER_NAME_BYTES = 255
"""AMQP's limit for a header's name."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def plain(text: str) -> str:
    """Return *text* as ``str`` and no kind of it: a member of an Enum shows its own name."""
    return str.__str__(text)


def check_topic(name: str) -> str:
    """Return *name*, plain, or raise :class:`ConfigurationError` that says what a topic may be."""
    if not _matches(_TOPIC, name) or name in {".", ".."}:
        raise ConfigurationError(
            f"topic {_shown(name)} is not valid: use letters, digits, '.', '_' and '-'"
        )
    if len(name) > MAX_TOPIC:
        raise ConfigurationError(
            f"topic {_shown(name)} has {len(name)} characters; the limit is {MAX_TOPIC}"
        )
    return plain(name)


def check_group(name: str) -> str:
    """Return *name*, plain, or raise :class:`ConfigurationError` that says what a group may be.

    A group has no dot, so that names derived from topic and group cannot collide.
    """
    if not _matches(_GROUP, name):
        raise ConfigurationError(
            f"group {_shown(name)} is not valid: start with a letter or '_', then letters, "
            f"digits, '_' and '-', {MAX_GROUP} characters at most"
        )
    return plain(name)


def _matches(pattern: re.Pattern[str], name: object) -> bool:
    return isinstance(name, str) and pattern.fullmatch(name) is not None


def _shown(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 100 else f"{text[:97]}..."


def has_control_characters(text: str) -> bool:
    """Tell whether *text* holds NUL, a line break or another C0 control or DEL."""
    return bool(_CONTROL.search(text))
