"""What the lines that librdkafka prints say of a request under way. No broker."""

from __future__ import annotations

import logging
from contextlib import suppress

import pytest
from confluent_kafka import Producer

from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_kafka.client_log import ClientLog, InterruptionLog
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.txn_client import TxnClient

BROKER = "[thrd:127.0.0.1:9092/1]: 127.0.0.1:9092/1: "
ENDED = "Disconnected (after 7ms in state {}) (_TRANSPORT)"


def interrupts(facility: str, line: str) -> bool:
    health = Health()
    log = InterruptionLog(health, verbose=False)
    log.log(logging.DEBUG, "%s [%s] %s", facility, "rdkafka#producer-1", line)
    return health.interrupted


@pytest.mark.parametrize(
    "state",
    [
        "INIT",
        "DOWN",
        "TRY_CONNECT",
        "CONNECT",
        "SSL_HANDSHAKE",
        "AUTH_LEGACY",
        "APIVERSION_QUERY",
    ],
)
def test_the_end_of_a_connection_that_was_never_there_interrupts_nothing(state: str) -> None:
    assert not interrupts("FAIL", BROKER + ENDED.format(state))


@pytest.mark.parametrize("state", ["UP", "AUTH_HANDSHAKE", "AUTH_REQ", "REAUTH", "SOME_NEW_ONE"])
def test_the_end_of_a_connection_that_was_in_use_may_interrupt_a_request(state: str) -> None:
    assert interrupts("FAIL", BROKER + ENDED.format(state))


@pytest.mark.parametrize(
    "text",
    ["Disconnected", "Closed in state DOWN", "in state INIT: (after 7ms in state UP)"],
    ids=["no state", "another text", "a state in the reason"],
)
def test_a_line_that_does_not_say_it_clearly_may_interrupt_a_request(text: str) -> None:
    assert interrupts("FAIL", BROKER + text)


def test_an_address_of_the_broker_url_is_sent_nothing_of_a_transaction() -> None:
    line = "[thrd:127.0.0.1:9092/bootstrap]: 127.0.0.1:9092/bootstrap: " + ENDED.format("UP")
    assert not interrupts("FAIL", line)


def test_a_request_without_an_answer_in_time_may_come_twice() -> None:
    line = BROKER + "Timed out 1 in-flight, 0 retry-queued, 0 out-queue, 0 partially-sent requests"
    assert interrupts("REQTMOUT", line)


def test_other_lines_interrupt_nothing() -> None:
    assert not interrupts("STATE", BROKER + "Broker changed state UP -> DOWN")


def test_once_no_request_is_under_way_an_interruption_does_not_matter() -> None:
    health = Health()
    health.on_interruption()
    health.recovered()
    assert health.interrupted
    health.uninterrupted()
    assert not health.interrupted


class Fails(ClientLog):
    """As with a filter of the application's that fails."""

    def log(self, level: int, text: str, *values: object) -> None:
        raise RuntimeError("of the application's")


def test_where_a_line_cannot_be_taken_in_it_may_have_been_that_one() -> None:
    def make(_: Health) -> Producer:
        return Producer({"bootstrap.servers": "127.0.0.1:1", "debug": "broker"}, logger=Fails())

    client = TxnClient(make)

    def is_interrupted() -> bool:
        client.serve()
        return client.health.interrupted

    wait_for(is_interrupted, "a line")
    with suppress(RuntimeError):
        client.producer.flush(0.0)
