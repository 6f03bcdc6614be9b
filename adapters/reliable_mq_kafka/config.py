"""The properties each kind of client is made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import Any

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from reliable_mq.adapter import AdapterContext
from reliable_mq.errors import ConfigurationError
from reliable_mq_kafka.client_log import ClientLog, InterruptionLog
from reliable_mq_kafka.errors import error_of, text_of, translated
from reliable_mq_kafka.guard import checked
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.location import Location
from reliable_mq_kafka.options import WITH_PASSWORD, Options

HEADER_ROOM = 128 * 1024
"""Bytes that a message may have besides its body: key and headers at their limits, framing."""

_MAX_NAME = 249
_LOG = ClientLog()

Properties = dict[str, Any]
OnCommit = Callable[[Any, list[TopicPartition]], None]


class Clients:
    """Makes clients. Holds secrets, and shows none."""

    def __init__(self, location: Location, options: Options, context: AdapterContext) -> None:
        self._location = location
        self.options = options
        self._chosen = checked(context.client_options)
        self._message_bytes = context.max_message_bytes + HEADER_ROOM
        self._check()

    @property
    def timeout(self) -> float:
        """How long a broker may take to answer, in seconds."""
        return self.options.connect_timeout

    @property
    def message_bytes(self) -> int:
        """The largest record that a producer makes."""
        return self._message_bytes

    @property
    def batch_bytes(self) -> int:
        """The largest request a producer fills with messages, as the application has set it."""
        return int(str(self._chosen.get("batch.size", 1_000_000)))

    # --- clients ---

    def producer(self, health: Health, logger: ClientLog = _LOG, /, **changes: object) -> Producer:
        """Return a new producer; *changes*, with '_' for '.', win over everything."""
        renamed = {name.replace("_", "."): value for name, value in changes.items()}
        with translated("cannot make a producer"):
            return Producer({**self._producer(health), **renamed}, logger=logger)

    def transactional_producer(
        self, health: Health, transactional_id: str, **changes: object
    ) -> Producer:
        """Return a new producer for transactions, not initialised yet.

        Its *health* learns of interruptions.
        """
        milliseconds = round(self.options.transaction_timeout * 1000)
        chosen = str(self._chosen.get("debug", ""))
        return self.producer(
            health,
            InterruptionLog(health, verbose=bool(chosen)),
            debug=InterruptionLog.contexts(chosen),
            transactional_id=transactional_id,
            transaction_timeout_ms=milliseconds,
            message_timeout_ms=milliseconds,
            socket_timeout_ms=min(milliseconds, round(self.timeout * 1000)),
            # A request that has no answer ends its connection, and with it the transaction.
            socket_max_fails=1,
            # What is refused ends the transaction, and with it everything that follows.
            enable_gapless_guarantee=False,
            **changes,
        )

    def consumer(self, health: Health, group: str, on_commit: OnCommit | None = None) -> Consumer:
        """Return a new consumer of *group*, which is not to join it."""
        with translated("cannot make a consumer"):
            return Consumer(self._consumer(health, group, on_commit), logger=_LOG)

    def member(
        self, health: Health, group: str, topics: Sequence[str], on_commit: OnCommit
    ) -> Consumer:
        """Return a new consumer that is to join *group* and subscribe to *topics*."""
        properties = self._consumer(health, group, on_commit)
        if self.options.static_id is not None:
            properties["group.instance.id"] = _static_id(self.options.static_id, topics)
        with translated("cannot make a consumer"):
            return Consumer(properties, logger=_LOG)

    def admin(self, health: Health) -> AdminClient:
        """Return a new client for administration."""
        properties: Properties = {
            **self._common(),
            **self._chosen,
            "allow.auto.create.topics": False,
            "error_cb": health.on_error,
        }
        with translated("cannot make a client"):
            return AdminClient(properties, logger=_LOG)

    # --- properties ---

    def _common(self) -> Properties:
        milliseconds = round(self.options.connect_timeout * 1000)
        return {
            "bootstrap.servers": self._location.bootstrap,
            "client.id": "reliable-mq",
            "socket.timeout.ms": milliseconds,
            "socket.connection.setup.timeout.ms": milliseconds,
            # A broker that comes back is found within a second, not ten.
            "reconnect.backoff.max.ms": 1000,
            **self._security(),
        }

    def _security(self) -> Properties:
        location, options = self._location, self.options
        sasl = location.user is not None or options.mechanism is not None
        found: Properties = {
            "security.protocol": ("sasl_" if sasl else "")
            + ("ssl" if location.encrypted else "plaintext"),
        }
        if sasl:
            found["sasl.mechanism"] = _mechanism(location, options)
        if location.user is not None:
            found |= {"sasl.username": location.user, "sasl.password": location.password}
        if location.encrypted:
            found |= {
                "enable.ssl.certificate.verification": True,
                "ssl.endpoint.identification.algorithm": "https",
            }
        files = {
            "ssl.ca.location": options.ca,
            "ssl.certificate.location": options.cert,
            "ssl.key.location": options.key,
        }
        return found | {name: path for name, path in files.items() if path is not None}

    def _producer(self, health: Health) -> Properties:
        return {
            **self._common(),
            # A flush of a batch would not wait for it either; a single message must not.
            "linger.ms": 0,
            # How long a topic may be unknown before its messages have no route. librdkafka's 30 s
            # are for brokers that learn late of a new topic; here the relay tries again.
            "topic.metadata.propagation.max.ms": 1000,
            **self._chosen,
            "message.max.bytes": self._message_bytes,
            "acks": "all",
            "enable.idempotence": True,
            # A message refused by a broker ends the producer, so that nothing behind it in its
            # partition is stored.
            "enable.gapless.guarantee": True,
            # publish() ends what takes too long, and purges it.
            "message.timeout.ms": 0,
            "partitioner": "murmur2_random",
            "allow.auto.create.topics": False,
            "error_cb": health.on_error,
        }

    def _consumer(self, health: Health, group: str, on_commit: OnCommit | None) -> Properties:
        session = round(self.options.session_timeout * 1000)
        return {
            **self._common(),
            # The default of a second halts fetching for that long whenever the queue is full.
            "fetch.queue.backoff.ms": 10,
            # What is fetched ahead is bounded, because a lost partition throws it away.
            "queued.min.messages": 2000,
            "queued.max.messages.kbytes": 16384,
            # Of a rebalance the members learn by their heartbeats.
            "heartbeat.interval.ms": max(1, min(1000, session // 6)),
            **self._chosen,
            "group.id": group,
            "session.timeout.ms": session,
            "group.protocol": "classic",
            "partition.assignment.strategy": "cooperative-sticky",
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "earliest",
            "isolation.level": "read_committed",
            # Tells where a partition ends behind what is no message (ends of transactions).
            "enable.partition.eof": True,
            "error_cb": health.on_error,
            **({} if on_commit is None else {"on_commit": on_commit}),
        }

    # --- checking ---

    def _check(self) -> None:
        """Let librdkafka judge names, values and files; nothing is connected."""
        health = Health()
        kinds: tuple[tuple[type[Producer] | type[Consumer], Properties], ...] = (
            (Producer, self._producer(health)),
            (Consumer, self._consumer(health, "check", None)),
        )
        for kind, properties in kinds:
            try:
                kind(_unconnected(properties, self._location), logger=_LOG).close()
            except (KafkaException, TypeError, ValueError) as error:
                raise ConfigurationError(_unusable(error)) from error


def _static_id(process: str, topics: Sequence[str]) -> str:
    """Return a name for the member: each handler of a process is a member by itself."""
    name = f"{process}.{'.'.join(sorted(topics))}"
    if len(name) <= _MAX_NAME:
        return name
    return f"{process}.{sha256(name.encode()).hexdigest()[:32]}"


def _mechanism(location: Location, options: Options) -> str:
    mechanism = options.mechanism or "SCRAM-SHA-512"
    if mechanism in WITH_PASSWORD and location.user is None:
        raise ConfigurationError(
            f"broker_url has mechanism={mechanism} and no user: write user:password@ before the "
            "hosts"
        )
    if mechanism not in WITH_PASSWORD and location.user is not None:
        raise ConfigurationError(
            f"broker_url has mechanism={mechanism}, which takes no password: leave user:password@ "
            "out; its properties go into client_options"
        )
    if mechanism == "PLAIN" and not location.encrypted:
        raise ConfigurationError(
            "broker_url has mechanism=PLAIN with kafka://, which sends the password readable: "
            "use kafka+ssl://, or a SCRAM mechanism"
        )
    return mechanism


def _unconnected(properties: Properties, location: Location) -> Properties:
    # Some SASL mechanisms fetch a token or run a program as soon as the client exists.
    left = {"bootstrap.servers", "oauth_cb"}
    kept = {name: value for name, value in properties.items() if name not in left}
    return kept | {"security.protocol": "ssl" if location.encrypted else "plaintext"}


def _unusable(error: Exception) -> str:
    text = text_of(error_of(error)) if isinstance(error, KafkaException) else str(error)
    return (
        f"librdkafka cannot use these options: {text}; change client_options or the options of "
        "broker_url"
    )
