"""The example of an exactly-once handler."""

from __future__ import annotations

from tests.conftest import OwnServer
from tests.examples.conftest import Example

EXPECTED = [
    "order 1: shipped a lamp",
    "order 2: the vase broke",
    "order 2: shipped a cup",
    "order 2: shipped a vase",
    "5 handled, 1 retried",
]


def test_the_parcels_of_a_failed_attempt_are_never_shipped(
    example: Example, own_server: OwnServer
) -> None:
    # Its topics have plain names, so it has a broker to itself.
    example.env["RELIABLE_MQ_BROKER_URL"] = own_server("kafka").url
    assert example.run("examples.exactly_once.packing", timeout=180) == 0, example.said
    # Between its own lines the library warns of the failed attempt, and of a broker that is slow.
    said = [
        line
        for line in example.said.splitlines()
        if line.startswith("order ") or line.endswith("retried")
    ]
    # What is shipped and what is packed meanwhile may be said in any order.
    assert sorted(said) == sorted(EXPECTED)
    assert said.index("order 2: the vase broke") < said.index("order 2: shipped a cup")


def test_it_is_tested_without_kafka(example: Example) -> None:
    assert example.run("pytest", "examples/exactly_once") == 0, example.said
    assert "1 passed" in example.said
