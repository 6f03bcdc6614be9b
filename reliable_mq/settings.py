"""All configuration in one validated object, from keywords or ``RELIABLE_MQ_*`` variables."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from reliable_mq.durations import PositiveDuration, seconds
from reliable_mq.errors import ConfigurationError
from reliable_mq.names import MAX_GROUP, MAX_TOPIC, check_group, check_topic
from reliable_mq.redaction import redact_options, redact_url
from reliable_mq.retry import RetryPolicy

log = logging.getLogger("reliable_mq")

PREFIX = "RELIABLE_MQ_"
NESTING = "__"
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_SCHEMA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_PLACEHOLDER = re.compile(r"\{(topic|group)\}")


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class RelaySettings(_Section):
    """How the outbox is sent. Durations in seconds or as ``timedelta``.

    *batch_size* rows are published at a time; an idle relay looks every *poll_interval*;
    a relay that is silent for *lease* loses its share of the keys to another; a batch that is
    not confirmed within *publish_timeout* is of unknown outcome and is sent again.
    """

    batch_size: int = Field(default=500, ge=1, le=10_000)
    poll_interval: PositiveDuration = 1.0
    lease: PositiveDuration = 30.0
    publish_timeout: PositiveDuration = 20.0


class ConsumerSettings(_Section):
    """How messages are taken in. Durations in seconds or as ``timedelta``.

    A group of a process holds at most *prefetch* unacknowledged messages; ownership that is not
    renewed for *lease* moves to another process; the database ends a handler's transaction that
    is silent for *idle_in_transaction*; a stopping process waits *shutdown_timeout* for handlers;
    a group with *max_waiting_retries* rows waiting for a retry takes nothing new in.
    """

    prefetch: int = Field(default=500, ge=1, le=100_000)
    lease: PositiveDuration = 30.0
    idle_in_transaction: PositiveDuration = 60.0
    shutdown_timeout: PositiveDuration = 30.0
    max_waiting_retries: int = Field(default=10_000, ge=1)


class InboxSettings(_Section):
    """How long a handled message is remembered, and so how late a duplicate may come."""

    retention: PositiveDuration = timedelta(days=14)


class DeadLetterSettings(_Section):
    """What happens to a message given up on, besides its row in the store.

    With *publish* a copy goes to *topic*, in which ``{topic}`` and ``{group}`` are filled in.
    The stored cause is cut to *max_error_bytes* bytes.
    """

    publish: bool = True
    topic: str = "{topic}.{group}.dlq"
    max_error_bytes: int = Field(default=8192, ge=64, le=1_000_000)

    @field_validator("topic")
    @classmethod
    def _fits(cls, value: str) -> str:
        if set(_PLACEHOLDER.findall(value)) != {"topic", "group"}:
            raise ValueError("it must hold {topic} and {group}, or groups would share dead letters")
        check_topic(_PLACEHOLDER.sub("x", value))
        return value

    def topic_for(self, topic: str, group: str) -> str:
        """Return the dead-letter topic of *group* on *topic*; too long: ``ConfigurationError``."""
        values = {"topic": topic, "group": group}
        name = _PLACEHOLDER.sub(lambda match: values[match[1]], self.topic)
        if len(name) > MAX_TOPIC:
            raise ConfigurationError(
                f"the dead-letter topic {name!r} has {len(name)} characters, the limit is "
                f"{MAX_TOPIC}: shorten the topic, the group or dead_letter.topic"
            )
        return name


class Settings(BaseSettings):
    """Everything that can be set, checked as a whole.

    A value comes from the keyword, else from ``RELIABLE_MQ_<NAME>`` (sections with a double
    underscore: ``RELIABLE_MQ_RELAY__LEASE``), else from its default. Immutable.

    Raises pydantic's ``ValidationError`` for a field by itself and :class:`ConfigurationError`
    for values that contradict each other or a variable that looks like a typing error.
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter=NESTING,
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        validate_default=True,
    )

    broker_url: str = "sql://"
    database_url: str = "sqlite:///reliable_mq.db"
    group: str | None = None
    client_options: dict[str, Any] = Field(default_factory=dict)
    table_prefix: str = "reliable_mq_"
    db_schema: str | None = None
    auto_declare: bool = True
    max_message_bytes: int = Field(default=1_000_000, ge=1)
    max_header_count: int = Field(default=100, ge=8)
    max_header_bytes: int = Field(default=65_536, ge=1024)
    retry: RetryPolicy = RetryPolicy()
    relay: RelaySettings = RelaySettings()
    consumer: ConsumerSettings = ConsumerSettings()
    inbox: InboxSettings = InboxSettings()
    dead_letter: DeadLetterSettings = DeadLetterSettings()

    if not TYPE_CHECKING:

        def __init__(self, **values: Any) -> None:
            _check_environment(type(self))
            super().__init__(**values)
            # Here, not in a validator: pydantic would wrap the error into its own.
            self._check_together()

    @field_validator("group")
    @classmethod
    def _group_is_valid(cls, value: str | None) -> str | None:
        return None if value is None else check_group(value)

    @field_validator("table_prefix")
    @classmethod
    def _prefix_is_valid(cls, value: str) -> str:
        if not _TABLE_NAME.fullmatch(value):
            raise ValueError("use letters, digits and '_', 40 characters at most")
        return value

    @field_validator("db_schema")
    @classmethod
    def _schema_is_valid(cls, value: str | None) -> str | None:
        if value is not None and not _SCHEMA_NAME.fullmatch(value):
            raise ValueError("use letters, digits and '_', 63 characters at most")
        return value

    def _check_together(self) -> None:
        relay = self.relay
        lease, publish = seconds(relay.lease), seconds(relay.publish_timeout)
        if publish > lease * 0.8:
            raise ConfigurationError(
                f"relay.publish_timeout ({publish:g} s) must end well before relay.lease "
                f"({lease:g} s) does: at most {lease * 0.8:g} s, or raise the lease"
            )
        retention = seconds(self.inbox.retention)
        slowest = seconds(self.retry.max_delay)
        if retention <= max(slowest, publish):
            raise ConfigurationError(
                f"inbox.retention ({retention:g} s) must exceed retry.max_delay ({slowest:g} s) "
                f"and relay.publish_timeout ({publish:g} s): a late copy would be applied again"
            )
        self.dead_letter.topic_for("x", "x" * MAX_GROUP)

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            if isinstance(value, str):
                yield name, redact_url(value)
            elif isinstance(value, Mapping):
                yield name, redact_options(value)
            else:
                yield name, value

    __str__ = BaseModel.__repr__

    def replace(self, **changes: Any) -> Self:
        """Return a copy with *changes*, checked as a whole again."""
        kept = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**kept, **changes})


# --- typing errors in the environment ----------------------------------------------------------


def _check_environment(cls: type[Settings]) -> None:
    prefix = str(cls.model_config.get("env_prefix", PREFIX)).upper()
    known = {prefix + name for name in _variables(cls)}
    others = _prefixes_of_subclasses(prefix)
    for name in sorted(os.environ):
        upper = name.upper()
        if not upper.startswith(prefix) or _is_known(upper, known):
            continue
        if any(upper.startswith(other) for other in others):
            continue
        _complain(upper, known)


def _variables(model: type[BaseModel], lead: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield lead + name.upper()
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _variables(annotation, lead + name.upper() + NESTING)


def _is_known(name: str, known: Iterable[str]) -> bool:
    options = f"{PREFIX}CLIENT_OPTIONS{NESTING}"
    return name in set(known) or name.startswith(options)


def _prefixes_of_subclasses(own: str) -> set[str]:
    found: set[str] = set()
    pending = list(Settings.__subclasses__())
    while pending:
        cls = pending.pop()
        found.add(str(cls.model_config.get("env_prefix", PREFIX)).upper())
        pending.extend(cls.__subclasses__())
    return {prefix for prefix in found if prefix.startswith(own) and prefix != own}


def _complain(name: str, known: Iterable[str]) -> None:
    near = min(known, key=lambda candidate: (_distance(name, candidate), candidate))
    if _distance(name, near) <= 2:
        raise ConfigurationError(f"unknown environment variable {name}: did you mean {near}?")
    log.warning("environment variable %s sets nothing", name)


def _distance(one: str, other: str) -> int:
    """Return the Levenshtein distance, cut off above what counts as a typing error."""
    if abs(len(one) - len(other)) > 2:
        return 3
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = row[j], min(
                row[j] + 1, row[j - 1] + 1, diagonal + (left != right)
            )
    return row[-1]
