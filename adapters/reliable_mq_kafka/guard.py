"""Which properties of librdkafka an application may set, and which would break a promise."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from reliable_mq.errors import ConfigurationError
from reliable_mq.redaction import is_secret

log = logging.getLogger("reliable_mq.kafka")

CALLBACKS = frozenset({"oauth_cb", "stats_cb", "throttle_cb"})
"""What may be given as a function; the adapter calls the others itself."""

_TOLD = frozenset({"stats_cb", "throttle_cb"})
"""Of these the ones that are only told something."""

_URL = "it is part of broker_url"
_STORED = "a message counts as sent once every in-sync replica has it, once and in order"
_ROUTED = "a topic that nobody declared must be an outcome, not a new topic: call declare()"
_COMMITTED = "only what a handler has finished is committed, by the adapter"
_MEMBERS = "all members of a group must share partitions in the same way"
_CHECKED = "an unverified server could be anybody: put its authority into the option ca"
_CALLED = "the adapter needs this callback itself; see the logger reliable_mq.kafka"

_ONLY: Mapping[str, tuple[frozenset[str], str]] = {
    "acks": (frozenset({"all", "-1"}), _STORED),
    "request.required.acks": (frozenset({"all", "-1"}), _STORED),
    "enable.idempotence": (frozenset({"true"}), _STORED),
    "enable.gapless.guarantee": (frozenset({"true"}), _STORED),
    "queuing.strategy": (frozenset({"fifo"}), _STORED),
    "delivery.report.only.error": (frozenset({"false"}), _STORED),
    "partitioner": (
        frozenset({"murmur2_random"}),
        "every publisher must put a key into the same partition",
    ),
    "allow.auto.create.topics": (frozenset({"false"}), _ROUTED),
    "enable.auto.commit": (frozenset({"false"}), _COMMITTED),
    "auto.commit.enable": (frozenset({"false"}), _COMMITTED),
    "enable.auto.offset.store": (frozenset({"false"}), _COMMITTED),
    "offset.store.method": (frozenset({"broker"}), _COMMITTED),
    "enable.partition.eof": (frozenset({"true"}), _COMMITTED),
    "isolation.level": (
        frozenset({"read_committed"}),
        "messages of an aborted transaction were never sent",
    ),
    "auto.offset.reset": (
        frozenset({"earliest", "smallest", "beginning"}),
        "a group that is new starts at the earliest retained message",
    ),
    "group.protocol": (frozenset({"classic"}), _MEMBERS),
    "partition.assignment.strategy": (frozenset({"cooperative-sticky"}), _MEMBERS),
    "enable.ssl.certificate.verification": (frozenset({"true"}), _CHECKED),
    "ssl.endpoint.identification.algorithm": (frozenset({"https"}), _CHECKED),
}

_NEVER: Mapping[str, str] = {
    "bootstrap.servers": _URL,
    "metadata.broker.list": _URL,
    "security.protocol": f"{_URL}: kafka:// is plain text, kafka+ssl:// is encrypted",
    "sasl.mechanism": f"{_URL}: the option mechanism",
    "sasl.mechanisms": f"{_URL}: the option mechanism",
    "sasl.username": f"{_URL}: user:password@",
    "sasl.password": f"{_URL}: user:password@",
    "session.timeout.ms": f"{_URL}: the option session_timeout",
    "group.id": "it is the group of the handler",
    "group.instance.id": f"{_URL}: the option static_id",
    "group.remote.assignor": _MEMBERS,
    "transactional.id": "two processes with one id would fence each other off",
    "transaction.timeout.ms": f"{_URL}: the option transaction_timeout",
    "message.timeout.ms": "relay.publish_timeout and publish_direct(timeout=) say how long",
    "delivery.timeout.ms": "relay.publish_timeout and publish_direct(timeout=) say how long",
    "message.max.bytes": "it follows from max_message_bytes and max_header_bytes",
    "default.topic.config": "give its properties directly",
    "enabled_events": _CALLED,
    "error_cb": _CALLED,
    "log_cb": _CALLED,
    "logger": _CALLED,
    "log.queue": _CALLED,
    "on_commit": _CALLED,
    "on_delivery": _CALLED,
}


def checked(options: Mapping[str, object]) -> dict[str, object]:
    """Return the application's client options; ``ConfigurationError`` for one that cannot be.

    Whether librdkafka knows the others, and accepts their values, is left to librdkafka.
    """
    for name, value in options.items():
        _check(name, value)
    return {name: _safe(name, value) for name, value in options.items()}


def _safe(name: str, value: object) -> object:
    """Wrap a function that is only told something: it must not raise.

    From within a call of the client's its error would come out of that call in the place of what
    it did: of the records that were read, or of a commit's success.
    """
    if name not in _TOLD or not callable(value):
        return value

    def safe(*arguments: object) -> None:
        try:
            value(*arguments)
        except Exception:
            log.exception("client_options: %s has failed", name)

    return safe


def _check(name: str, value: object) -> None:
    if name in _NEVER:
        raise ConfigurationError(f"client_options: {name!r} cannot be set: {_NEVER[name]}")
    allowed, why = _ONLY.get(name, (None, ""))
    if allowed is not None and _text(value) not in allowed:
        raise ConfigurationError(
            f"client_options: {name!r} must be {' or '.join(sorted(allowed))}, "
            f"not {value!r}: {why}; leave it out"
        )
    if name in CALLBACKS:
        if not callable(value):
            raise ConfigurationError(f"client_options: {name!r} must be a function")
    elif not isinstance(value, str | int | float):
        shown = "***" if is_secret(name) else repr(value)
        raise ConfigurationError(
            f"client_options: {name!r} must be a string, a number or a boolean, not {shown}"
        )


def _text(value: object) -> str:
    return str(value).strip().lower()
