"""All configuration in one validated object, from keywords or ``RELIABLE_MQ_*`` variables."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import InitErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from reliable_mq.durations import PositiveDuration, seconds
from reliable_mq.errors import ConfigurationError
from reliable_mq.names import MAX_GROUP, MAX_TOPIC, check_group, check_topic
from reliable_mq.redaction import redact_option
from reliable_mq.retry import RetryPolicy

log = logging.getLogger("reliable_mq")

PREFIX = "RELIABLE_MQ_"
NESTING = "__"
MAX_DISTANCE = 2
"""Edits between a variable and a field's name up to which it counts as a typing error."""

_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
_SCHEMA_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,62}")
_PLACEHOLDER = re.compile(r"\{(topic|group)\}")


class _Section(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True
    )


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
            try:
                super().__init__(**values)
            except SettingsError as error:
                # Not chained: the JSON error in it carries the whole value.
                raise ConfigurationError(f"{error}: it must be JSON") from None
            except RecursionError:
                raise ConfigurationError(
                    f"a variable {PREFIX}* is nested more deeply than JSON can be read"
                ) from None
            # Here, not in a validator: pydantic would wrap the error into its own.
            self._check_together()

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except ValidationError as error:
                # The error for a frozen instance, alone of all, shows the value regardless.
                raise _without_input(error) from None

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return pydantic's sources, the environment without the variables warned about.

        A variable that a later version will know must not stop this one.
        """
        if isinstance(env_settings, EnvSettingsSource):
            variables = env_settings.env_vars
            ignored = set(_unknown_variables(cls, variables))
            env_settings.env_vars = {n: v for n, v in variables.items() if n not in ignored}
        return init_settings, env_settings, dotenv_settings, file_secret_settings

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
            yield name, redact_option(name or "", value)

    __str__ = BaseModel.__repr__

    def replace(self, **changes: Any) -> Self:
        """Return a copy with *changes*, checked as a whole again; the environment is not read."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        copy = type(self).__new__(type(self))
        BaseModel.__init__(copy, **{**values, **changes})
        object.__setattr__(copy, "__pydantic_fields_set__", self.model_fields_set | set(changes))
        copy._check_together()
        return copy


def _without_input(error: ValidationError) -> ValidationError:
    lines = [
        InitErrorDetails(type=problem["type"], loc=problem["loc"], input=None)
        for problem in error.errors(include_input=False)
    ]
    return ValidationError.from_exception_data(error.title, lines, hide_input=True)


# --- typing errors in the environment ----------------------------------------------------------


def _check_environment(cls: type[Settings]) -> None:
    for name in _unknown_variables(cls, os.environ):
        _complain(name.upper(), _known_variables(cls))


def _unknown_variables(cls: type[Settings], environment: Iterable[str]) -> list[str]:
    """Return the variables that bear the prefix of *cls* and mean nothing to any settings."""
    prefix = _prefix(cls)
    if not prefix:
        return []  # nothing tells a typing error from the rest of the environment
    known = _known_variables(cls)
    elsewhere = tuple(
        {_prefix(other) for other in _family() if _prefix(other).startswith(prefix)} - {prefix}
    )
    return [
        name
        for name in sorted(environment)
        if name.upper().startswith(prefix)
        and name.upper() not in known
        and not name.upper().startswith((*elsewhere, f"{prefix}CLIENT_OPTIONS{NESTING}"))
    ]


def _known_variables(cls: type[Settings]) -> frozenset[str]:
    prefix = _prefix(cls)
    same = [cls, *(other for other in _family() if _prefix(other) == prefix)]
    return frozenset(prefix + name for each in same for name in _variables(each))


def _prefix(cls: type[Settings]) -> str:
    return str(cls.model_config.get("env_prefix", PREFIX)).upper()


def _family() -> Iterator[type[Settings]]:
    pending = [Settings]
    while pending:
        cls = pending.pop()
        yield cls
        pending.extend(cls.__subclasses__())


def _variables(model: type[BaseModel], lead: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield lead + name.upper()
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _variables(annotation, lead + name.upper() + NESTING)


def _complain(name: str, known: Iterable[str]) -> None:
    near = min(known, key=lambda candidate: (_distance(name, candidate), candidate))
    if _distance(name, near) <= MAX_DISTANCE:
        raise ConfigurationError(f"unknown environment variable {name}: did you mean {near}?")
    log.warning("environment variable %s sets nothing", name)


def _distance(one: str, other: str) -> int:
    """Return the Levenshtein distance, cut off above what counts as a typing error."""
    if abs(len(one) - len(other)) > MAX_DISTANCE:
        return MAX_DISTANCE + 1
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            diagonal, row[j] = (
                row[j],
                min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right)),
            )
    return row[-1]
