"""Every error this library raises by itself.

::

    ReliableMQError
     +- ConfigurationError (ValueError)
     |   +- MissingExtraError
     +- NoTransactionError
     +- InvalidMessageError (ValueError)
     |   +- MessageTooLargeError
     +- TransportError
     |   +- PublishUnconfirmedError
     +- PublishRejectedError
     +- StaleDeliveryError
     +- DecodeError
     +- IncompleteDeadLetterError

The application's own exceptions, SQLAlchemy's and pydantic's pass through unwrapped. Texts
never contain a password or a message body.
"""

from __future__ import annotations

__all__ = [
    "ConfigurationError",
    "DecodeError",
    "IncompleteDeadLetterError",
    "InvalidMessageError",
    "MessageTooLargeError",
    "MissingExtraError",
    "NoTransactionError",
    "PublishRejectedError",
    "PublishUnconfirmedError",
    "ReliableMQError",
    "StaleDeliveryError",
    "TransportError",
]


class ReliableMQError(Exception):
    """Base of every error the library raises by itself."""


class ConfigurationError(ReliableMQError, ValueError):
    """The settings, the handlers or what exists on the broker cannot work together.

    The text names the value and what to change. Nothing was lost and nothing was sent.
    """


class MissingExtraError(ConfigurationError):
    """A URL or a handler needs a package that is not installed; the text has the command."""


class NoTransactionError(ReliableMQError):
    """``publish`` was called where no transaction would make the message atomic with anything."""


class InvalidMessageError(ReliableMQError, ValueError):
    """The message given to ``publish`` cannot be sent by any broker; nothing was stored."""


class MessageTooLargeError(InvalidMessageError):
    """The database takes no row as large as this message needs; nothing was stored."""


class TransportError(ReliableMQError):
    """The broker cannot be reached or refused the operation for now; trying again may succeed."""


class PublishUnconfirmedError(TransportError):
    """A direct publish has no confirmed outcome, or no route yet.

    The message may or may not be stored. Calling again with the same ``message_id`` is safe:
    consumers recognise the second copy.
    """


class PublishRejectedError(ReliableMQError):
    """The broker refused the message for good (too large, malformed); it is not stored."""


class StaleDeliveryError(ReliableMQError):
    """The delivery now belongs to another consumer; its late result was not applied."""


class DecodeError(ReliableMQError):
    """The body does not fit the payload type the handler asks for."""


class IncompleteDeadLetterError(ReliableMQError):
    """The dead letter lacks a part of its message, so that no handler may be given it again."""
