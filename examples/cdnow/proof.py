"""Does the ledger agree with the file: count, sum to the cent, each customer's order?"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from sqlalchemy import Engine, select

from examples.cdnow.data import read_rows
from examples.cdnow.service import Entry, Purchase


@dataclass
class Proof:
    """What was found; ``errors`` is empty if all agrees."""

    purchases: int = 0
    customers: int = 0
    cents: int = 0
    errors: list[str] = field(default_factory=list)


def prove(engine: Engine, rows: int | None) -> Proof:
    """Compare the file, the shop's table and the ledger."""
    expected: dict[str, list[int]] = defaultdict(list)
    for row in read_rows(rows):
        expected[row.customer].append(row.cents)
    proof = Proof(
        purchases=sum(map(len, expected.values())),
        customers=len(expected),
        cents=sum(map(sum, expected.values())),
    )
    with engine.connect() as connection:
        sold = list(connection.scalars(select(Purchase.cents)))
        ledger = connection.execute(
            select(Entry.customer, Entry.number, Entry.cents, Entry.balance).order_by(Entry.id)
        ).all()
    _compare(proof, "the shop", len(sold), sum(sold))
    _compare(proof, "the ledger", len(ledger), sum(entry.cents for entry in ledger))
    booked: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for entry in ledger:
        booked[entry.customer].append((entry.number, entry.cents, entry.balance))
    for customer, cents in expected.items():
        if booked[customer] != _history(cents):
            proof.errors.append(f"customer {customer}: {booked[customer][:5]}...")
    return proof


def _compare(proof: Proof, what: str, count: int, cents: int) -> None:
    if count != proof.purchases:
        proof.errors.append(f"{what} has {count} purchases, the file {proof.purchases}")
    if cents != proof.cents:
        proof.errors.append(f"{what} has {cents} cents, the file {proof.cents}")


def _history(cents: list[int]) -> list[tuple[int, int, int]]:
    """Return number, amount and balance of each entry as they must follow each other."""
    balance = 0
    history = []
    for number, amount in enumerate(cents, 1):
        balance += amount
        history.append((number, amount, balance))
    return history
