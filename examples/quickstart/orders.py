"""The smallest service: an order and its message in one transaction, charged once.

python -m examples.quickstart.orders
"""

from pydantic import BaseModel
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from reliable_mq import ReliableMQ, Settings


class Base(DeclarativeBase):
    pass


class OrderRow(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str] = mapped_column(String(100))


class Charge(Base):
    __tablename__ = "charges"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int]


class Order(BaseModel):
    id: int
    customer: str


mq = ReliableMQ(Settings(database_url="sqlite:///orders.db"))
orders = mq.topic("orders", Order)


@mq.handler(orders, group="billing")
def charge(order: Order, session: Session) -> None:
    """Runs in one transaction with the record that this message was handled."""
    session.add(Charge(order_id=order.id))
    print(f"charged order {order.id} of {order.customer}")


def place_order(customer: str) -> None:
    """The row and the message are committed together, or not at all."""
    with mq.transaction() as session:
        row = OrderRow(customer=customer)
        session.add(row)
        session.flush()
        mq.publish(orders, Order(id=row.id, customer=customer), key=customer)


if __name__ == "__main__":
    with mq.transaction() as session:
        Base.metadata.create_all(session.connection())
    place_order("ann")
    place_order("bob")
    counts = mq.run_until_idle()  # a service calls mq.run() instead
    print(f"{counts.sent} sent, {counts.handled} handled")
    mq.close()
