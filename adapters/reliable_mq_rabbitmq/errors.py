"""Pika's errors and the broker's replies as errors of this library, without secrets."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable

from pika import exceptions
from pika.adapters.utils import connection_workflow

from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.redaction import redact_url

ACCESS_REFUSED = 403
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406
NOT_ALLOWED = 530

_CODE = re.compile(r"\((\d{3})\)")
_TLS_MISMATCH = frozenset({"WRONG_VERSION_NUMBER", "UNSUPPORTED_PROTOCOL"})


class ChannelRefused(Exception):
    """The broker answered an operation by closing its channel."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


def describe(error: BaseException | None) -> str:
    """Return one line about *error*, fit to be shown and stored."""
    if isinstance(error, ReliableMQError):
        return str(error)
    if isinstance(error, exceptions.ConnectionClosed | exceptions.ChannelClosed):
        return f"{error.reply_code} {redact_url(str(error.reply_text))}"
    text = " ".join(str(part) for part in getattr(error, "args", ())) or "no reason given"
    return f"{type(error).__name__}: {redact_url(text)}"


def refused(error: ChannelRefused, what: str, permission: str = "it needs") -> ReliableMQError:
    """Return the error of an operation (*what*) whose channel the broker closed.

    *permission* is the one that may be missing.
    """
    text = f"RabbitMQ refused {what}: {error}"
    if error.code in (ACCESS_REFUSED, NOT_ALLOWED):
        return ConfigurationError(f"{text}; grant the user the permission {permission}")
    if error.code in (PRECONDITION_FAILED, RESOURCE_LOCKED):
        return ConfigurationError(text)
    return TransportError(text)


def connection_failed(errors: Iterable[BaseException], where: str) -> ReliableMQError:
    """Return the error of a connection that no host accepted.

    One host that says what a person must change outweighs others that cannot be reached.
    """
    causes = [cause for error in errors for cause in _innermost(error)]
    for cause in causes:
        remedy = _remedy(cause)
        if remedy is not None:
            return ConfigurationError(f"RabbitMQ at {where}: {describe(cause)}; {remedy}")
    last = describe(causes[-1]) if causes else "no host"
    return TransportError(f"RabbitMQ at {where} cannot be reached: {last}")


def _innermost(error: BaseException) -> list[BaseException]:
    if isinstance(error, connection_workflow.AMQPConnectionWorkflowFailed):
        return [cause for nested in error.exceptions for cause in _innermost(nested)]
    nested = getattr(error, "exception", None)
    return _innermost(nested) if isinstance(nested, BaseException) else [error]


def _remedy(cause: BaseException) -> str | None:
    """Return what a person must do, or None where trying again may help."""
    if isinstance(cause, ssl.SSLCertVerificationError):
        return "check the option cafile and that the certificate names the host"
    if isinstance(cause, ssl.SSLError) and cause.reason in _TLS_MISMATCH:
        return "the port does not speak TLS; use its TLS port, or amqp:// for plain text"
    if isinstance(cause, exceptions.AuthenticationError):
        return "the broker offers no PLAIN login"
    code = _CODE.search(describe(cause))
    if isinstance(cause, exceptions.ProbableAuthenticationError) and code:
        return "check user and password of broker_url" if code[1] == "403" else None
    if isinstance(cause, exceptions.ProbableAccessDeniedError) and code and code[1] == "530":
        temporary = "limit" in str(cause)
        return None if temporary else "check the virtual host of broker_url and its permissions"
    return None
