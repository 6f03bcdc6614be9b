"""One producer for transactions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from confluent_kafka import KafkaError, KafkaException, Producer

from reliable_mq_kafka.calls import caught, repeat
from reliable_mq_kafka.errors import ROUTE, error_of
from reliable_mq_kafka.health import Health

log = logging.getLogger("reliable_mq.kafka")

_LOOK_UP = 5.0


class TxnClient:
    """A producer of one epoch, and what is known of it. Used by one thread."""

    def __init__(self, make: Callable[[Health], Producer], *, one_by_one: bool = False) -> None:
        self.one_by_one = one_by_one
        """Whether each output is a request of its own."""
        self.health = Health()
        self.producer = make(self.health)
        self.is_ready = False
        self.unanswered: set[int] = set()
        """The positions of outputs that were handed over and not reported yet."""
        self._known: set[str] = set()

    def initialise(self, deadline: float) -> None:
        """Get an epoch. What the one before has left open is undone then."""
        repeat(self.producer.init_transactions, deadline)
        self.is_ready = True

    def serve(self) -> None:
        """Run the callbacks of what has ended, and take what the client has to say."""
        try:
            self.producer.poll(0)
        except KafkaException as error:
            # The fatal error of a producer comes out of each poll; the next call tells of it too.
            self.health.on_error(error_of(error))
        except Exception:  # noqa: BLE001 - a filter of the application's, say, fails on a log line
            # A line that was lost with it may have told of one.
            self.health.on_interruption()

    @property
    def may_begin_another(self) -> bool:
        """Tell whether nothing of its last transaction may still reach a broker.

        The end of a transaction leaves the epoch as it is, and the next one goes on with the
        sequence numbers of outputs that have no answer, stored or not
        (``rd_kafka_toppar_purge_queues``): a broker that has stored one takes the next output
        for its copy, confirms it and throws it away. And whatever comes late is taken for a part
        of the next transaction. The epoch of a successor is new.
        """
        self.serve()
        return not (self.unanswered or self.health.interrupted)

    def let_go(self) -> None:
        """Send nothing more. What is left open is undone by a successor, or by a time-out."""
        error = caught(self.producer.purge)
        if error is not None:
            log.debug("a producer that is let go of: %r", error)
        self.serve()

    # --- topics ---

    def look_up(self, topics: Iterable[str]) -> dict[str, KafkaError]:
        """Ask for those of *topics* that are new to it: by itself it learns of them late.

        Returns those that cannot be written to, with the reason.
        """
        homeless = {}
        for topic in set(topics) - self._known:
            error = self.producer.list_topics(topic, timeout=_LOOK_UP).topics[topic].error
            if error is None:
                self._known.add(topic)
            elif error.code() in ROUTE:
                homeless[topic] = error
            else:
                raise KafkaException(KafkaError(error.code(), f"topic {topic!r}"))
        return homeless

    def forget(self, topics: Iterable[str]) -> None:
        """Ask for *topics* anew."""
        self._known.difference_update(topics)
