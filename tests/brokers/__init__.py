"""Real servers for the tests, started on demand on this machine.

``server("kafka")`` gives a private one, not started yet; ``find("kafka")`` the one named in
RMQ_TEST_KAFKA_URL, if any, else the same. No client library is imported before it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from .base import External, NotOurs, Server, ServerFailed, ServerMissing, variable
from .kafka import Kafka
from .kafka.cluster import KafkaCluster
from .mariadb import MariaDB
from .pgbouncer import PgBouncer
from .postgresql import PostgreSQL
from .rabbitmq import RabbitMQ
from .rabbitmq_cluster import RabbitMQCluster
from .redis import Redis
from .redis_cluster import RedisCluster, RedisSentinels

__all__ = [
    "CLUSTERS",
    "KINDS",
    "External",
    "Kafka",
    "KafkaCluster",
    "MariaDB",
    "NotOurs",
    "PgBouncer",
    "PostgreSQL",
    "RabbitMQ",
    "RabbitMQCluster",
    "Redis",
    "RedisCluster",
    "RedisSentinels",
    "Server",
    "ServerFailed",
    "ServerMissing",
    "find",
    "server",
    "variable",
]

KINDS: Mapping[str, type[Server]] = {
    kind.kind: kind for kind in (Kafka, RabbitMQ, Redis, PostgreSQL, MariaDB)
}

CLUSTERS: Mapping[str, type[Server]] = {
    kind.kind: kind for kind in (KafkaCluster, RabbitMQCluster, RedisCluster, RedisSentinels)
}
"""Several nodes each, started only where they are asked for by name."""


def server(kind: str, settings: Mapping[str, str] | None = None) -> Server:
    """A private server of this kind, not started yet."""
    return {**KINDS, **CLUSTERS}[kind](settings)


def find(kind: str) -> Server:
    """The server that the environment names for this kind, which wins; else a private one."""
    url = os.environ.get(variable(kind))
    return External(kind, url) if url else server(kind)
