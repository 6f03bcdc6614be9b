"""Each broker as a foreign program sees it: raw bytes put where our consumers read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import create_engine, text

KINDS = ("sql", "rabbitmq", "redis", "kafka")
_QUICK = {"rabbitmq": "?heartbeat=4", "kafka": "?session_timeout=1.5"}
"""RabbitMQ ends a connection that is silent for two heartbeats: no fewer seconds than a process may
stand still for on a crowded machine (with heartbeat=1, declare() met that in a run of CI)."""

_GIVING_UP = {"kafka": "&connect_timeout=2"}

Headers = Sequence[tuple[str, bytes]]


@dataclass(frozen=True)
class Broker:
    """A broker and the database of the test, which with ``sql://`` are one."""

    kind: str
    url: str
    database_url: str

    def put(self, topic: str, *bodies: bytes, headers: Headers = ()) -> None:
        """Publish with a client of the broker's own, confirmed; nothing of it is ours."""
        _PUT[self.kind](self, topic, bodies, headers)


def quick(kind: str, url: str, *, goes_away: bool = False) -> str:
    """Return *url* with options that make the broker notice a dead consumer within seconds.

    And us a broker that *goes_away*. Where it does not, a busy one has the usual time to answer.
    """
    return url + _QUICK.get(kind, "") + (_GIVING_UP.get(kind, "") if goes_away else "")


def patient(broker: Broker) -> str:
    """Return its URL with an option that leaves the ownership to who stands still for seconds.

    Only Kafka has one: with the others it is ``consumer.lease``, or the connection.
    """
    place = broker.url.partition("?")[0]
    return f"{place}?session_timeout=30" if broker.kind == "kafka" else broker.url


# --- the clients --------------------------------------------------------------------------------


def _put_sql(broker: Broker, topic: str, bodies: Sequence[bytes], headers: Headers) -> None:
    where = "topic = :topic AND partition = 0"
    if not broker.database_url.startswith("sqlite"):
        where = where.replace("partition", _quoted(broker, "partition"))
    engine = create_engine(broker.database_url)
    with engine.begin() as connection:
        for body in bodies:
            _insert(connection, broker, where, topic, body, headers)
    engine.dispose()


def _quoted(broker: Broker, name: str) -> str:
    return f"`{name}`" if broker.database_url.startswith("mysql") else f'"{name}"'


def _insert(
    connection: Any, broker: Broker, where: str, topic: str, body: bytes, headers: Headers
) -> None:
    table = "reliable_mq_topic_partition"
    connection.execute(
        text(f"UPDATE {table} SET next_offset = next_offset + 1 WHERE {where}"), {"topic": topic}
    )
    offset = connection.execute(
        text(f"SELECT next_offset - 1 FROM {table} WHERE {where}"), {"topic": topic}
    ).scalar_one()
    names = ["topic", "partition", "log_offset", "message_id", "body", "headers"]
    names += ["message_time", "created_at"]
    columns = ", ".join(_quoted(broker, name) for name in names)
    values = ", ".join(f":{name}" for name in names)
    connection.execute(
        text(f"INSERT INTO reliable_mq_topic_log ({columns}) VALUES ({values})"),
        {
            "topic": topic,
            "partition": 0,
            "log_offset": offset,
            "message_id": f"foreign-{offset}",
            "body": body,
            "headers": json.dumps([[k, v.decode("latin-1")] for k, v in headers]).encode(),
            "message_time": 0,
            "created_at": 0,
        },
    )


def _put_rabbitmq(broker: Broker, topic: str, bodies: Sequence[bytes], headers: Headers) -> None:
    with amqp_channel(broker.url) as channel:
        channel.confirm_delivery()
        for body in bodies:
            channel.basic_publish(topic, "", body, _amqp_properties(headers), mandatory=True)


def _amqp_properties(headers: Headers) -> Any:
    import pika

    found = {name: value.decode("latin-1") for name, value in headers}
    # RabbitMQ gives a message no place that lasts: without an id each delivery has a new one.
    id_ = found.pop("message-id", None)
    return pika.BasicProperties(headers=found or None, message_id=id_)


@contextlib.contextmanager
def amqp_channel(url: str) -> Iterator[Any]:
    """A blocking channel of a plain pika client."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url.partition("?")[0]))
    try:
        yield connection.channel()
    finally:
        if connection.is_open:
            connection.close()


def _put_redis(broker: Broker, topic: str, bodies: Sequence[bytes], headers: Headers) -> None:
    import redis

    with redis.Redis.from_url(broker.url) as client:
        for body in bodies:
            client.xadd(f"{{{topic}}}:0", {"body": body, **dict(headers)})


def _put_kafka(broker: Broker, topic: str, bodies: Sequence[bytes], headers: Headers) -> None:
    from confluent_kafka import Producer

    producer = Producer({"bootstrap.servers": urlsplit(broker.url).netloc})
    failed: list[Any] = []
    for body in bodies:
        producer.produce(
            topic,
            body,
            headers=list(headers),
            partition=0,
            on_delivery=lambda error, _: failed.append(error) if error else None,
        )
    assert producer.flush(20) == 0
    assert failed == []


_PUT = {
    "sql": _put_sql,
    "rabbitmq": _put_rabbitmq,
    "redis": _put_redis,
    "kafka": _put_kafka,
}
