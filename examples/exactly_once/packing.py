"""From Kafka to Kafka, exactly once: orders come in, a parcel for each of their items goes out.

RELIABLE_MQ_BROKER_URL=kafka://localhost:9092 python -m examples.exactly_once.packing
"""

import os

from pydantic import BaseModel

from reliable_mq import Delivery, ReliableMQ, RetryPolicy, Settings


class Order(BaseModel):
    id: int
    items: list[str]


class Parcel(BaseModel):
    order: int
    item: str


mq = ReliableMQ(
    Settings(
        broker_url=os.environ.get("RELIABLE_MQ_BROKER_URL", "kafka://localhost:9092"),
        database_url="sqlite:///packing.db",
    )
)
orders = mq.topic("orders", Order)
parcels = mq.topic("parcels", Parcel)


@mq.handler(
    orders,
    group="packing",
    guarantee="exactly-once",
    retry=RetryPolicy(initial_delay=0.1),
)
def pack(order: Order, delivery: Delivery) -> None:
    """Its parcels and the end of its order are one Kafka transaction: all of it, or nothing."""
    for item in order.items:
        mq.publish(parcels, Parcel(order=order.id, item=item), key=str(order.id))
        if item == "vase" and delivery.attempt == 1:
            print(f"order {order.id}: the vase broke")
            raise RuntimeError("broken")  # nobody sees the parcels of this attempt


@mq.handler(parcels, group="shipping")
def ship(parcel: Parcel) -> None:
    """Any reader with ``isolation.level=read_committed`` sees the same."""
    print(f"order {parcel.order}: shipped a {parcel.item}")


if __name__ == "__main__":
    mq.publish_direct(orders, Order(id=1, items=["lamp"]))
    mq.publish_direct(orders, Order(id=2, items=["cup", "vase"]))
    counts = mq.run_until_idle(timeout=120)
    print(f"{counts.handled} handled, {counts.retried} retried")
    mq.close()
