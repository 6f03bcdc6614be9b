"""Client-side reliability over existing brokers: outbox, inbox, retries, dead letters."""

from reliable_mq.app import ReliableMQ
from reliable_mq.errors import (
    ConfigurationError,
    DecodeError,
    IncompleteDeadLetterError,
    InvalidMessageError,
    MessageTooLargeError,
    MissingExtraError,
    NoTransactionError,
    PublishRejectedError,
    PublishUnconfirmedError,
    ReliableMQError,
    StaleDeliveryError,
    TransportError,
)
from reliable_mq.handlers import Guarantee
from reliable_mq.message import DeadLetter, Delivery, Message, Topic
from reliable_mq.retry import Reject, Retry, RetryPolicy
from reliable_mq.settings import (
    ConsumerSettings,
    DeadLetterSettings,
    InboxSettings,
    RelaySettings,
    Settings,
)
from reliable_mq.status import Counts, GroupStatus, OutboxStatus, Status

__all__ = [
    "ConfigurationError",
    "ConsumerSettings",
    "Counts",
    "DeadLetter",
    "DeadLetterSettings",
    "DecodeError",
    "Delivery",
    "GroupStatus",
    "Guarantee",
    "InboxSettings",
    "IncompleteDeadLetterError",
    "InvalidMessageError",
    "Message",
    "MessageTooLargeError",
    "MissingExtraError",
    "NoTransactionError",
    "OutboxStatus",
    "PublishRejectedError",
    "PublishUnconfirmedError",
    "Reject",
    "RelaySettings",
    "ReliableMQ",
    "ReliableMQError",
    "Retry",
    "RetryPolicy",
    "Settings",
    "StaleDeliveryError",
    "Status",
    "Topic",
    "TransportError",
]
