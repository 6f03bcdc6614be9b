"""What librdkafka and the brokers report, told once in the library's own words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from confluent_kafka import KafkaError, KafkaException

from reliable_mq.adapter import Outcome, Refused, Unknown, Unroutable
from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.redaction import redact_url

_MAX_TEXT = 300

_REMEDIES: Mapping[int, str] = {
    KafkaError._AUTHENTICATION: "check the user, the password and the mechanism of broker_url",
    KafkaError.SASL_AUTHENTICATION_FAILED: "check the user and the password of broker_url",
    KafkaError.UNSUPPORTED_SASL_MECHANISM: "check the option mechanism of broker_url",
    KafkaError.ILLEGAL_SASL_STATE: "check whether the brokers want a user: user:password@",
    KafkaError.SECURITY_DISABLED: "the brokers have no access control switched on",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "let the user WRITE the topics it publishes to, READ "
    "those it receives, CREATE those it declares",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "let the user READ its groups",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "let the user WRITE the topics it publishes to (on "
    "brokers before 2.8 also IDEMPOTENT_WRITE on the cluster)",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "let the user WRITE the transactional ids "
    "that begin with the group and a dot",
    KafkaError.UNKNOWN_TOPIC_OR_PART: "call declare()",
    KafkaError._UNKNOWN_TOPIC: "call declare()",
    KafkaError._UNKNOWN_PARTITION: "call declare()",
    KafkaError.TOPIC_EXCEPTION: "the brokers do not accept this name",
    KafkaError.INVALID_PARTITIONS: "change partitions",
    KafkaError.INVALID_REPLICATION_FACTOR: "change replication_factor, or add brokers",
    KafkaError.INVALID_CONFIG: "change the topic's options",
    KafkaError.POLICY_VIOLATION: "the cluster's policy forbids it",
    KafkaError.INCONSISTENT_GROUP_PROTOCOL: "other members of this group share partitions in "
    "another way: stop them, or use another group",
    KafkaError.INVALID_SESSION_TIMEOUT: "change the option session_timeout of broker_url to "
    "within the brokers' group.min/max.session.timeout.ms",
    KafkaError.FENCED_INSTANCE_ID: "another process has joined with the same static_id: give each "
    "process its own in broker_url, and start this one again",
    KafkaError.GROUP_MAX_SIZE_REACHED: "the group has as many members as the brokers allow",
    KafkaError.UNSUPPORTED_VERSION: "these brokers are too old: Kafka 2.4 or later is needed",
    KafkaError._UNSUPPORTED_FEATURE: "these brokers are too old: Kafka 2.4 or later is needed",
    KafkaError._INVALID_ARG: "change client_options or the options of broker_url",
}
"""What a person can do about the errors that do not go away by themselves."""

FORBIDDEN = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
"""The user lacks a right."""

CREDENTIALS = frozenset(
    {
        KafkaError._AUTHENTICATION,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
        KafkaError.ILLEGAL_SASL_STATE,
    }
)
_BAD_CERTIFICATE = "certificate verify failed"

MISSING = frozenset(
    {
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError._UNKNOWN_TOPIC,
        KafkaError._UNKNOWN_PARTITION,
    }
)
"""The topic does not exist."""

ROUTE = MISSING | {
    KafkaError.TOPIC_EXCEPTION,
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
}
"""Nothing of the topic was stored, and somebody must change something first."""

UNFIT = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError._INVALID_DIFFERENT_RECORD,
        KafkaError.INVALID_TIMESTAMP,
    }
)
"""The brokers refuse a whole request for these, though one message of it may be the reason."""

_TOO_LARGE = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
    }
)
_CLOCK = (
    "the clock of this machine and those of the brokers differ by more than the topic's "
    "message.timestamp.after.max.ms or message.timestamp.before.max.ms: set them right"
)


def error_of(error: Exception) -> KafkaError:
    """Return the error that the client's exception carries; of any other, one that tells of it."""
    found = error.args[0] if error.args else None
    if isinstance(found, KafkaError):
        return found
    text = str(error) if isinstance(error, KafkaException) else repr(error)
    return KafkaError(KafkaError._FAIL, text)


def text_of(error: KafkaError) -> str:
    """Return what *error* says, short, with its code and without secrets."""
    return redact_url(f"{error.str()} ({error.name()})")[:_MAX_TEXT]


def is_refusal(error: KafkaError) -> bool:
    """Tell whether the connection was refused for a reason that only a person can mend."""
    return error.code() in CREDENTIALS or is_bad_certificate(error)


def is_fatal(error: KafkaError) -> bool:
    """Tell whether the client that reported *error* can do nothing more."""
    # What a poll returns in the place of a record carries the code alone.
    return error.fatal() or error.code() == KafkaError._FATAL


def reason_of(error: KafkaError) -> KafkaError:
    """Return what a fatal error of a consumer stands for, where that is known; else itself."""
    fenced = KafkaError(KafkaError.FENCED_INSTANCE_ID)
    # The client tells the reason in words only.
    return fenced if is_fatal(error) and fenced.str() in error.str() else error


def is_bad_certificate(error: KafkaError) -> bool:
    """Tell whether the server's certificate is not to be trusted."""
    return error.code() == KafkaError._SSL and _BAD_CERTIFICATE in error.str()


def translate(error: KafkaError, doing: str, needs: str = "") -> ReliableMQError:
    """Return the library's error for *error*: retryable, unless only a person can mend it.

    *needs* names the rights that it takes, where that is known better here than from the error.
    """
    remedy = _REMEDIES.get(error.code())
    if needs and error.code() in FORBIDDEN:
        remedy = f"let the user {needs}"
    if is_bad_certificate(error):
        remedy = "check the servers' certificate, their host names and the option ca of broker_url"
    if remedy is None:
        return TransportError(f"{doing}: {text_of(error)}")
    return ConfigurationError(f"{doing}: {text_of(error)}; {remedy}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise whatever the client raises in the block as an error of the library, chained."""
    try:
        yield
    except KafkaException as error:
        raise translate(error_of(error), doing) from error


def outcome_of(error: KafkaError, topic: str) -> Outcome:
    """Return what became of a message of *topic* by itself that ended with *error*."""
    code = error.code()
    if code in ROUTE:
        return Unroutable(f"topic {topic!r}: {text_of(error)}; {_REMEDIES[code]}")
    if code == KafkaError.INVALID_TIMESTAMP:
        # Nobody's fault but the clock's: the same message is fit once that is right.
        return Unroutable(f"topic {topic!r}: {text_of(error)}; {_CLOCK}")
    if code in UNFIT:
        remedy = "; see its max.message.bytes" if code in _TOO_LARGE else ""
        return Refused(f"topic {topic!r}: {text_of(error)}{remedy}")
    return Unknown(text_of(error))
