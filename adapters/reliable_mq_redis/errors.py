"""What the client library and the server raise, told once in the library's own words."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as client

from reliable_mq.adapter import Outcome, Unknown, Unroutable
from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.redaction import redact_url
from reliable_mq_redis import rights

FAILURES = (client.RedisError, OSError)
"""Everything a call through the client library can raise for the server's or network's sake."""

_MAX_TEXT = 300
_CODE = re.compile(
    r"\b(WRONGTYPE|NOGROUP|NOPERM|WRONGPASS|NOAUTH|DENIED|OOM|MISCONF|NOREPLICAS|READONLY|LOADING"
    r"|MASTERDOWN|CLUSTERDOWN|TRYAGAIN|MOVED|ASK|CROSSSLOT)\b"
)
_UNCODED = {
    "user executing the script can't": "NOPERM",
    "acl failure in script": "NOPERM",
    "unknown command": "SERVER",
    "unknown redis command": "SERVER",
    "db index is out of range": "DATABASE",
}
_CLASSES: tuple[tuple[type[Exception], str], ...] = (
    (client.AuthenticationError, "WRONGPASS"),
    (client.AuthorizationError, "WRONGPASS"),
    (client.AuthenticationWrongNumberOfArgsError, "WRONGPASS"),
    (client.NoPermissionError, "NOPERM"),
    (client.OutOfMemoryError, "OOM"),
    (client.ReadOnlyError, "READONLY"),
    (client.BusyLoadingError, "LOADING"),
    (client.MovedError, "MOVED"),
    (client.AskError, "ASK"),
)
_REMEDIES = {
    "WRONGPASS": "check the user and the password of broker_url",
    "NOAUTH": "the server wants a password: put it into broker_url",
    "DENIED": "the server is in protected mode: give it a password or let it bind elsewhere",
    "NOPERM": f"the user needs these rights on the keys of its topics, such as ~{{orders}}:*: "
    f"{rights.USE}; with wait +wait, in a cluster +cluster|slots",
    "WRONGTYPE": "another program uses a key of this topic: give the topic another name",
    "NOGROUP": "the topic or the group does not exist (any more): call declare()",
    "TLS": "check the certificate of the server, its host name, and ssl_ca_certs in client_options",
    "SERVER": "this server cannot do it: Redis 6.2 or later, or Valkey, is needed",
    "DATABASE": "the database of broker_url does not exist on this server",
}
"""What a person can do about the errors that do not go away by themselves."""


def code_of(error: BaseException) -> str:
    """Return the kind of *error*: the server's own word for it, or one of :data:`_REMEDIES`."""
    for class_, code in _CLASSES:
        if isinstance(error, class_):
            return code
    if _is_bad_certificate(error):
        return "TLS"
    return code_of_text(str(error)) if isinstance(error, client.ResponseError) else ""


def code_of_text(text: str) -> str:
    """Return the kind of an error reply."""
    if found := _CODE.search(text):
        return found[1]
    return next((code for part, code in _UNCODED.items() if part in text.lower()), "")


def _is_bad_certificate(error: BaseException | None) -> bool:
    # redis-py makes a plain ConnectionError of it, and keeps the original only as its context.
    while error is not None:
        # A file that is missing can only be one of the certificates, on a TCP connection.
        if isinstance(error, ssl.SSLCertVerificationError | FileNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False


def translate(error: BaseException, doing: str) -> ReliableMQError:
    """Return the library's error for *error*: retryable, unless only a person can mend it."""
    remedy = _REMEDIES.get(code_of(error))
    if remedy is None:
        return TransportError(f"{doing}: {text_of(error)}")
    return ConfigurationError(f"{doing}: {text_of(error)}; {remedy}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Raise whatever the client raises in the block as an error of the library, chained."""
    try:
        yield
    except FAILURES as error:
        raise translate(error, doing) from error


def outcome_of(error: BaseException) -> Outcome:
    """Return what becomes of a message that *error* kept from being stored, for certain.

    Where trying again soon may help it is ``Unknown``, as for a server that is away;
    ``Unroutable`` where somebody must change something first.
    """
    if isinstance(error, ConfigurationError):
        return Unroutable(str(error))
    if isinstance(error, ReliableMQError):
        return Unknown(str(error))
    return outcome_of_text(code_of(error), text_of(error))


def outcome_of_text(code: str, text: str) -> Outcome:
    """Return the same for an error reply of kind *code*."""
    remedy = _REMEDIES.get(code)
    if remedy is not None:
        return Unroutable(f"{text}; {remedy}")
    if "last possible ID" in text or "equal or smaller" in text:
        return Unroutable(f"{text}; a foreign entry id has used the stream up: delete that entry")
    return Unknown(text)


def text_of(error: BaseException) -> str:
    """Return what *error* says, short, with the server's code and without secrets."""
    text = str(error) or type(error).__name__
    # The client takes the code off where it has a class for it.
    code = next((code for class_, code in _CLASSES if isinstance(error, class_)), "")
    if code and code not in text:
        text = f"{getattr(error, 'status_code', None) or code} {text}"
    return redact_url(text)[:_MAX_TEXT]
