"""The purchase history, sold, booked and proved on every broker and database."""

from __future__ import annotations

import pytest

from tests.examples.conftest import Example

ROWS = 5000
DOLLARS = "184,441.61"
VERDICT = f"{ROWS} purchases of 1603 customers, {DOLLARS} dollars: count, sum and order agree\n"


@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("broker", "database"),
    [
        ("sql", "sqlite"),
        ("sql", "postgresql"),
        ("sql", "mariadb"),
        ("kafka", "postgresql"),
        ("rabbitmq", "postgresql"),
        ("redis", "mariadb"),
    ],
)
def test_the_ledger_agrees_although_processes_are_killed(
    example: Example, request: pytest.FixtureRequest, unique: str, broker: str, database: str
) -> None:
    broker_url = "sql://" if broker == "sql" else request.getfixturevalue(f"{broker}_url")
    code = example.run(
        "examples.cdnow",
        *("--rows", str(ROWS), "--topic", unique, "--timeout", "800"),
        *("--broker-url", broker_url),
        *("--database-url", request.getfixturevalue(f"{database}_url")),
        timeout=840,
    )
    assert code == 0, example.said
    assert VERDICT in example.said
    for victim in ("accounting-1", "shop", "relay"):
        assert f"{victim} is killed (SIGKILL)" in example.said
        assert f"{victim} is started again" in example.said


def test_what_an_earlier_run_has_left_is_refused(example: Example, sqlite_url: str) -> None:
    script = example.folder / "earlier.py"
    script.write_text(
        "from examples.cdnow.service import Base, Purchase, mq\n"
        "Base.metadata.create_all(mq.store.engine)\n"
        "with mq, mq.transaction() as session:\n"
        "    session.add(Purchase(line=1, customer='c', number=1, cents=1))\n"
    )
    example.env["RELIABLE_MQ_DATABASE_URL"] = sqlite_url
    assert example.run("earlier") == 0, example.said
    assert example.run("examples.cdnow", "--rows", "500", "--database-url", sqlite_url) == 1
    assert example.said.startswith("FAILED: an earlier run used this database or topic")


PROOF = """
import sys
from sqlalchemy import select, text
from examples.cdnow.data import read_rows
from examples.cdnow.proof import prove
from examples.cdnow.service import Base, Entry, Purchase, mq

Base.metadata.create_all(mq.store.engine)
balances = {}
with mq, mq.transaction() as session:
    for row in read_rows(500):
        given = dict(customer=row.customer, number=row.number, cents=row.cents)
        session.add(Purchase(line=row.line, **given))
        balances[row.customer] = balances.get(row.customer, 0) + row.cents
        session.add(Entry(**given, balance=balances[row.customer]))
        session.flush()
    session.execute(text(sys.argv[1]))
    session.commit()
    print(len(prove(mq.store.engine, 500).errors), "errors")
"""
# Lines 2 and 3 of the file are of one customer.
SWAP = "UPDATE cdnow_ledger SET id = -id WHERE id IN (2, 3)"


@pytest.mark.parametrize(
    ("tampering", "is_seen"),
    [
        ("SELECT 1", False),
        ("DELETE FROM cdnow_ledger WHERE id = 7", True),
        (
            "INSERT INTO cdnow_ledger (customer, number, cents, balance)"
            " SELECT customer, number, cents, balance FROM cdnow_ledger WHERE id = 7",
            True,
        ),
        ("UPDATE cdnow_ledger SET cents = cents + 1 WHERE id = 7", True),
        ("UPDATE cdnow_ledger SET balance = balance + 1 WHERE id = 7", True),
        (SWAP, True),
        ("DELETE FROM cdnow_purchase WHERE line = 7", True),
    ],
    ids=["nothing", "lost", "doubled", "changed", "balance", "order", "not sold"],
)
def test_the_proof_sees_what_is_wrong_with_a_ledger(
    example: Example, sqlite_url: str, tampering: str, is_seen: bool
) -> None:
    (example.folder / "tamper.py").write_text(PROOF)
    example.env["RELIABLE_MQ_DATABASE_URL"] = sqlite_url
    assert example.run("tamper", tampering) == 0, example.said
    assert (example.said != "0 errors\n") is is_seen
