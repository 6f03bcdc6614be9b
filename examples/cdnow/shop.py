"""The shop's process: each purchase and its message in one transaction."""

from __future__ import annotations

import argparse

from sqlalchemy import func, select

from examples.cdnow.data import Row, read_rows
from examples.cdnow.service import Purchase, Purchased, mq, purchases

SENT_TWICE_ONE_IN = 100


def sell(row: Row) -> None:
    """Store the purchase and announce it; both are there, or neither."""
    with mq.transaction() as session:
        session.add(
            Purchase(line=row.line, customer=row.customer, number=row.number, cents=row.cents)
        )
        announcement = Purchased(
            line=row.line, customer=row.customer, number=row.number, cents=row.cents
        )
        message = mq.publish(purchases, announcement, key=row.customer)
        if row.line % SENT_TWICE_ONE_IN == 0:
            # What a client does that never got its answer: the same message again.
            mq.publish(purchases, announcement, key=row.customer, message_id=message.id)


def sold() -> int:
    """Return the last line that is sold: a shop that was killed goes on behind it."""
    with mq.transaction() as session:
        return session.scalar(select(func.max(Purchase.line))) or 0


def main() -> None:
    """Sell every purchase of the file that is not sold yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=None, help="so many of them")
    rows = parser.parse_args().rows
    with mq:
        last = sold()
        for row in read_rows(rows):
            if row.line > last:
                sell(row)


if __name__ == "__main__":
    main()
