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

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
_GROUP = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def check_topic(name: str) -> str:
    """Return *name*, or raise :class:`ConfigurationError` that says what a topic may be."""
    if not isinstance(name, str) or name in {".", ".."} or not _TOPIC.fullmatch(name):
        raise ConfigurationError(
            f"topic {name!r} is not valid: use letters, digits, '.', '_' and '-'"
        )
    if len(name) > MAX_TOPIC:
        raise ConfigurationError(
            f"topic {name[:40]!r}... has {len(name)} characters; the limit is {MAX_TOPIC}"
        )
    return name


def check_group(name: str) -> str:
    """Return *name*, or raise :class:`ConfigurationError` that says what a group may be.

    A group has no dot, so that names derived from topic and group cannot collide.
    """
    if not isinstance(name, str) or not _GROUP.fullmatch(name):
        raise ConfigurationError(
            f"group {name!r} is not valid: start with a letter or '_', then letters, digits, "
            f"'_' and '-', {MAX_GROUP} characters at most"
        )
    return name


def has_control_characters(text: str) -> bool:
    """Tell whether *text* holds NUL, a line break or another C0 control or DEL."""
    return bool(_CONTROL.search(text))
