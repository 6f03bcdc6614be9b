"""What is left when a member is killed or stopped. Real processes, real signals."""

from __future__ import annotations

from reliable_mq.adapter import Adapter
from reliable_mq.testing.contract.base import (
    ContractBase,
    Declare,
    OpenAnother,
    OpenReader,
    StartProcess,
    send,
)
from reliable_mq.testing.contract.ledger import Ledger
from reliable_mq.testing.contract.messages import ids_of, message, number_of, numbered, numbers_of
from reliable_mq.testing.contract.order import ACKED, HELD, SENT_COUNT
from reliable_mq.testing.contract.waiting import wait_for


class CrashContract(ContractBase):
    """Take-over from a member that does not say good-bye."""

    def test_what_a_killed_member_held_is_delivered_to_another(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        another: OpenAnother,
        process: StartProcess,
    ) -> None:
        topic = declare(partitions=4)
        batch = [message(topic, key=f"key-{index}") for index in range(50)]
        send(adapter, batch)
        victim = process(topic)
        victim.wait_for_deliveries(50)
        victim.kill()
        taken = reader(topic, adapter=another(lease=self.short_lease)).take(50)
        assert sorted(ids_of(taken)) == sorted(one.id for one in batch)

    def test_a_flushed_ack_survives_the_kill_of_its_member(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        another: OpenAnother,
        process: StartProcess,
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(50)))
        victim = process(topic, ack=20)
        victim.wait_for_acks(20)
        victim.wait_for_deliveries(50)
        victim.kill()
        survivor = reader(topic, adapter=another(lease=self.short_lease))
        assert sorted(numbers_of(survivor.take_only(30))) == list(range(20, 50))

    def test_nothing_is_lost_when_a_member_is_killed_amid_its_acks(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        another: OpenAnother,
        process: StartProcess,
    ) -> None:
        topic = declare(partitions=4)
        batch = [message(topic, key=f"key-{index}") for index in range(2000)]
        send(adapter, batch)
        victim = process(topic, prefetch=50, ack=10_000)
        victim.wait_for_deliveries(300)
        victim.kill()
        seen = {event["id"] for event in victim.events("deliver")}
        survivor = reader(topic, adapter=another(lease=self.short_lease))

        def turn() -> None:
            taken = survivor.step()
            survivor.ack(taken)
            seen.update(ids_of(taken))

        wait_for(lambda: len(seen) == len(batch), "every message, at one of them", meanwhile=turn)

    def test_a_stopped_member_settles_nothing_of_what_another_took_over(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        another: OpenAnother,
        process: StartProcess,
    ) -> None:
        topic = declare(partitions=1)
        send(adapter, numbered(topic, range(50)))
        victim = process(topic)
        victim.wait_for_deliveries(50)
        victim.stop_before_ack()
        heir = reader(topic, adapter=another(lease=self.short_lease))
        heir.take(50)
        victim.go_on_with_ack(meanwhile=heir.idle)
        victim.command("close", "closed", meanwhile=heir.idle)
        heir.close()
        assert sorted(numbers_of(reader(topic).take(50))) == list(range(50))

    def test_a_killed_owner_is_followed_from_its_first_unacknowledged_in_order(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        another: OpenAnother,
        process: StartProcess,
    ) -> None:
        topic = declare(partitions=1, ordered=True)
        send(adapter, numbered(topic, range(SENT_COUNT)))
        victim = process(topic, ordered=True, prefetch=HELD, ack=ACKED)
        victim.wait_for_deliveries(ACKED + HELD)
        victim.kill()
        ledger = _knowing_of_the_victims_acks()
        heir = reader(topic, ordered=True, adapter=another(lease=self.short_lease))
        ledger.drain([heir], SENT_COUNT)
        assert ledger.effects == {"key": list(range(ACKED, SENT_COUNT))}

    def test_a_stopped_owner_is_replaced_and_changes_nothing_when_it_goes_on(
        self,
        adapter: Adapter,
        declare: Declare,
        reader: OpenReader,
        another: OpenAnother,
        process: StartProcess,
    ) -> None:
        topic = declare(partitions=1, ordered=True)
        send(adapter, numbered(topic, range(SENT_COUNT)))
        victim = process(topic, ordered=True, prefetch=HELD, ack=ACKED)
        victim.wait_for_deliveries(ACKED + HELD)
        victim.stop_before_ack()
        ledger = _knowing_of_the_victims_acks()
        # The victim's lease decides when it is replaced. The heir's is the long one: it is to keep
        # the partition on a busy machine too.
        heir = reader(topic, ordered=True, prefetch=HELD, adapter=another())
        held = heir.take(HELD)
        ledger.deliver(heir, held)
        assert number_of(held[0]) == ACKED
        victim.go_on_with_ack(meanwhile=heir.idle)
        victim.command("close", "closed", meanwhile=heir.idle)
        assert not heir.has_lost(held[0])
        heir.close()
        third = reader(topic, ordered=True)
        begin = third.take(1)
        ledger.deliver(third, begin)
        assert number_of(begin[0]) == ACKED
        ledger.drain([third], SENT_COUNT)


def _knowing_of_the_victims_acks() -> Ledger:
    ledger = Ledger()
    ledger.ack_elsewhere("key", range(ACKED))
    return ledger
