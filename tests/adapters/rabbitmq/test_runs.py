from __future__ import annotations

from pika.exceptions import ChannelClosedByBroker, ConnectionClosed, StreamLostError

from reliable_mq.adapter import SENT, Outcome, Refused, Unknown, Unroutable
from reliable_mq_rabbitmq.runs import Item, Run

NACKED = Unknown("nack")


class FakeChannel:
    """Numbers what a run writes, like a channel in confirm mode."""

    blocked = False
    properties_max = 1000

    def __init__(self) -> None:
        self.written: list[list[int]] = []
        self._count = 0

    def write(self, items: list[Item]) -> range:
        self.written.append([item.index for item in items])
        first, self._count = self._count + 1, self._count + len(items)
        return range(first, self._count + 1)


class Case:
    """A run of items with the given keys (None: no key) on a fake channel."""

    def __init__(self, *keys: str | None, window: int = 100) -> None:
        self.outcomes: dict[int, Outcome] = {}
        self.finished = 0
        self.channel = FakeChannel()
        self.items = [self._item(index) for index in range(len(keys))]
        last: dict[str, Item] = {}
        heads = []
        for key, item in zip(keys, self.items, strict=True):
            if key in last:
                last[key].follower = item
            else:
                heads.append(item)
            if key is not None:
                last[key] = item
        self.run = Run(heads, window=window, settle=self.settle)
        self.run.finished = self.finish

    def _item(self, index: int) -> Item:
        return Item(index, f"id-{index}", "p.1.0", b"", b"", b"body")

    def settle(self, index: int, outcome: Outcome) -> None:
        assert index not in self.outcomes
        self.outcomes[index] = outcome

    def finish(self) -> None:
        self.finished += 1

    def pump(self) -> None:
        self.run.pump(self.channel)

    def confirm(self, tag: int, *, multiple: bool = False, outcome: Outcome = SENT) -> None:
        self.run.confirmed(tag, multiple, outcome)
        self.pump()


def test_the_first_message_goes_alone_and_the_others_after_its_confirm() -> None:
    case = Case(None, None, None)
    case.pump()
    assert case.channel.written == [[0]]
    case.confirm(1)
    assert case.channel.written == [[0], [1, 2]]
    case.confirm(3, multiple=True)
    assert case.outcomes == {0: SENT, 1: SENT, 2: SENT}
    assert case.finished == 1


def test_no_more_than_the_window_is_unconfirmed() -> None:
    case = Case(*[None] * 10, window=3)
    case.pump()
    case.confirm(1)
    case.confirm(2)
    case.confirm(4)
    assert case.channel.written == [[0], [1, 2, 3], [4], [5]]


def test_of_each_key_one_message_is_unconfirmed() -> None:
    case = Case(None, "a", "b", "a", "b", "a")
    case.pump()
    case.confirm(1)
    assert case.channel.written[-1] == [1, 2]
    case.confirm(3)
    assert case.channel.written[-1] == [4]
    case.confirm(2)
    assert case.channel.written[-1] == [3]


def test_a_nack_stops_its_key_and_no_other() -> None:
    case = Case(None, "a", "b", "a", "a", "b")
    case.pump()
    case.confirm(1)
    case.confirm(2, outcome=NACKED)
    case.confirm(3)
    case.confirm(4)
    assert case.channel.written == [[0], [1, 2], [5]]
    assert case.outcomes[1] == NACKED
    assert isinstance(case.outcomes[3], Unknown)
    assert isinstance(case.outcomes[4], Unknown)
    assert case.outcomes[2] == case.outcomes[5] == SENT
    assert case.finished == 1


def test_a_returned_message_is_unroutable_though_it_is_confirmed_and_so_are_its_followers() -> None:
    case = Case("a", "a", "b")
    case.pump()
    case.run.returned("id-0", "p.1.0", "no queue")
    case.confirm(1)
    case.confirm(2)
    assert case.outcomes == {0: Unroutable("no queue"), 1: Unroutable("no queue"), 2: SENT}


def test_of_two_messages_with_one_id_each_takes_its_own_return() -> None:
    case = Case(None, None, None)
    case.pump()
    case.confirm(1)
    case.items[2].message_id = "id-1"
    case.run.returned("id-1", "p.1.0", "first")
    case.run.returned("id-1", "p.1.0", "second")
    case.confirm(3, multiple=True)
    assert [case.outcomes[1], case.outcomes[2]] == [Unroutable("first"), Unroutable("second")]


def test_a_missing_exchange_makes_everything_unroutable_when_nothing_else_was_on_its_way() -> None:
    case = Case(None, "a", "a")
    case.pump()
    case.run.fail(ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'x'"))
    assert {type(outcome) for outcome in case.outcomes.values()} == {Unroutable}
    assert case.finished == 1


def test_an_exchange_deleted_on_the_way_leaves_unknown_what_was_sent() -> None:
    case = Case(None, "a", "a")
    case.pump()
    case.confirm(1)
    case.run.fail(ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'x'"))
    assert [type(case.outcomes[index]) for index in range(3)] == [type(SENT), Unknown, Unroutable]


def test_a_body_too_large_for_the_broker_is_refused_and_its_neighbours_are_unknown() -> None:
    case = Case(None, None, "a", "a", None)
    case.items[2].body = bytes(500)
    case.pump()
    case.confirm(1)
    text = "PRECONDITION_FAILED - message size 500 is larger than configured max size 400"
    case.run.fail(ChannelClosedByBroker(406, text))
    assert [type(case.outcomes[index]) for index in (1, 2, 3, 4)] == [
        *(Unknown, Refused, Unknown, Unknown)
    ]


def test_headers_that_do_not_fit_a_frame_are_refused_before_the_send() -> None:
    case = Case(None, "a", "a", "b")
    case.items[1].properties = bytes(1001)
    case.pump()
    case.confirm(1)
    case.confirm(2)
    assert case.channel.written == [[0], [3]]
    assert [type(case.outcomes[index]) for index in (1, 2)] == [Refused, Unknown]
    assert case.finished == 1


def test_a_lost_connection_leaves_everything_unknown() -> None:
    for cause in (StreamLostError("eof"), ConnectionClosed(320, "shutdown")):
        case = Case(None, "a", "a", None)
        case.pump()
        case.confirm(1)
        case.run.fail(cause)
        case.run.fail(cause)
        assert [type(case.outcomes[index]) for index in (1, 2, 3)] == [Unknown] * 3
        assert case.finished == 1


def test_a_blocked_connection_is_sent_nothing_until_it_is_unblocked() -> None:
    case = Case(None)
    case.channel.blocked = True
    case.pump()
    assert case.channel.written == []
    case.channel.blocked = False
    case.pump()
    assert case.channel.written == [[0]]
