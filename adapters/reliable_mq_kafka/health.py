"""What a client says of its connections."""

from __future__ import annotations

import logging

from confluent_kafka import KafkaError

from reliable_mq.errors import ReliableMQError, TransportError
from reliable_mq_kafka.errors import is_refusal, text_of, translate

log = logging.getLogger("reliable_mq.kafka")

PATIENCE = 3.0
"""Seconds after which it is believed that no broker can be reached. A client with a choice of
addresses says so of the first one already."""


class Health:
    """Collects what a client reports to ``error_cb``; one object a client.

    librdkafka tries for ever to reach its brokers and reports only what fails, never that it
    succeeded: whoever sees an answer of a broker calls :meth:`recovered`. Written by the thread
    that polls the client, read by any.
    """

    def __init__(self) -> None:
        self._cause: KafkaError | None = None
        self._refusal: KafkaError | None = None
        self._down = False
        self._interrupted = False

    def on_error(self, error: KafkaError) -> None:
        """Note *error*. Never raises: an exception here would come out of the client's poll."""
        log.debug("%s", text_of(error))
        if error.code() == KafkaError._ALL_BROKERS_DOWN:
            self._down = True
        elif is_refusal(error):
            self._refusal = error
        elif self._cause is None or not self._cause.fatal():
            # Behind a fatal error the client only tells of what follows from its end.
            self._cause = error

    def on_interruption(self) -> None:
        """Note that a request may have lost its answer."""
        self._interrupted = True

    def uninterrupted(self) -> None:
        """Forget interruptions: no request waits for its answer."""
        self._interrupted = False

    def recovered(self) -> None:
        """Forget what was, but for a fatal error and an interruption: a broker has answered."""
        self._refusal = None
        self._down = False
        if self._cause is not None and not self._cause.fatal():
            self._cause = None

    @property
    def interrupted(self) -> bool:
        """Tell whether a request may still be on its way that the client does not wait for.

        Where a connection ends librdkafka sends most of what had no answer again, and says
        nothing of it once that is answered. What was sent first may come later than that answer.
        Noted by an ``InterruptionLog``, until :meth:`uninterrupted`.
        """
        return self._interrupted

    @property
    def troubled(self) -> bool:
        """Tell whether no broker could be reached of late, or one refused the connection."""
        return self._down or self._refusal is not None

    @property
    def refused(self) -> bool:
        """Tell whether a broker refused the connection: credentials, certificate."""
        return self._refusal is not None

    @property
    def has_no_id(self) -> bool:
        """Tell whether a producer is refused its id, without which it sends nothing."""
        cause = self._cause
        return cause is not None and cause.code() == KafkaError.CLUSTER_AUTHORIZATION_FAILED

    def error(self, doing: str) -> ReliableMQError:
        """Return the error for an operation that got no answer."""
        cause = self._refusal or self._cause
        if cause is None:
            return TransportError(f"{doing}: the brokers did not answer in time")
        return translate(cause, doing)

    def raise_if_refused(self, doing: str) -> None:
        """Raise ``ConfigurationError`` where a broker refused the connection."""
        if self._refusal is not None:
            raise self.error(doing)

    def why(self) -> str:
        """Return the latest trouble in words, or an empty string."""
        cause = self._refusal or self._cause
        return "" if cause is None else text_of(cause)
