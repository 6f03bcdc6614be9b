"""The adapter for Kafka 2.4 or later, on confluent-kafka (librdkafka)."""

from reliable_mq_kafka.adapter import open_adapter

__all__ = ["open_adapter"]
