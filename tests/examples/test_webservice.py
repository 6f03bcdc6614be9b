"""The web service, over real HTTP."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.examples.conftest import Example

PATIENCE = 60.0


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.02)


@pytest.fixture
def client(example: Example) -> Iterator[httpx.Client]:
    """The service on a free port of its own choice; it is stopped as a service manager does it."""
    process = example.start("uvicorn", "examples.webservice.app:app", "--port", "0")
    until(
        lambda: "Uvicorn running" in example.said or process.poll() is not None, "the service is up"
    )
    found = re.search(r"Uvicorn running on (http://[\d.:]+)", example.said)
    assert found is not None, example.said
    # A connection per request: a failed one may take its connection with it.
    with httpx.Client(
        base_url=found[1], headers={"Connection": "close"}, timeout=PATIENCE
    ) as client:
        yield client
    process.send_signal(signal.SIGTERM)
    process.wait(PATIENCE)
    assert "Application shutdown complete" in example.said


def test_what_is_answered_is_committed_and_its_shipment_follows(
    example: Example, client: httpx.Client
) -> None:
    database = sqlite3.connect(example.folder / "web.db")
    for number in range(1, 21):
        answer = client.post("/orders", json={"customer": f"c{number}"})
        assert answer.status_code == 201
        assert answer.json() == {"id": number, "customer": f"c{number}"}
        (committed,) = database.execute("SELECT count(*) FROM web_order").fetchone()
        assert committed == number
    until(lambda: client.get("/shipments").json() == 20, "all are shipped")
    shipped = database.execute("SELECT order_id FROM web_shipment ORDER BY order_id").fetchall()
    assert [order for (order,) in shipped] == list(range(1, 21))
    # What was sent is deleted a little later.
    left = "SELECT count(*) FROM reliable_mq_outbox"
    until(lambda: database.execute(left).fetchone() == (0,), "the outbox is empty")
    assert "Traceback" not in example.said, example.said
    database.close()


def test_a_request_that_fails_leaves_neither_order_nor_message(
    example: Example, client: httpx.Client
) -> None:
    database = sqlite3.connect(example.folder / "web.db")
    # The service's own INSERT of the order goes through, that of the message does not.
    database.executescript(
        "CREATE TRIGGER refuse BEFORE INSERT ON reliable_mq_outbox"
        " BEGIN SELECT RAISE(ABORT, 'no room'); END"
    )
    assert client.post("/orders", json={"customer": "ann"}).status_code == 500
    database.executescript("DROP TRIGGER refuse")
    assert client.post("/orders", json={"customer": "bob"}).status_code == 201
    until(lambda: client.get("/shipments").json() == 1, "the second is shipped")
    assert database.execute("SELECT customer FROM web_order").fetchall() == [("bob",)]
    database.close()
