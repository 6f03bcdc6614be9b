"""Subscriptions: whoever listens hears it, and nobody who listens can do harm."""

from __future__ import annotations

import logging
import threading

from reliable_mq.events import BrokerDown, BrokerUp, Event, Events, MessageSent

SENT = MessageSent("orders", "1", 0.5)


def test_a_subscriber_hears_its_own_type_and_no_other():
    events, heard = Events(), list[Event]()
    events.subscribe(MessageSent, heard.append)
    events.emit(SENT)
    events.emit(BrokerUp("relay"))
    assert heard == [SENT]


def test_a_subscriber_of_the_base_hears_every_event():
    events, heard = Events(), list[Event]()
    events.subscribe(Event, heard.append)
    events.emit(SENT)
    events.emit(BrokerUp("relay"))
    assert heard == [SENT, BrokerUp("relay")]


def test_an_ended_subscription_hears_nothing_and_leaves_the_others():
    events, gone, staying = Events(), list[Event](), list[Event]()
    end = events.subscribe(MessageSent, gone.append)
    events.subscribe(MessageSent, staying.append)
    end()
    end()
    events.emit(SENT)
    assert (gone, staying) == ([], [SENT])


def test_a_subscriber_that_raises_is_logged_and_the_next_one_still_hears(caplog):
    events, heard = Events(), list[Event]()

    def broken(event: MessageSent) -> None:
        raise RuntimeError("no metrics today")

    events.subscribe(MessageSent, broken)
    events.subscribe(MessageSent, heard.append)
    with caplog.at_level(logging.ERROR, "reliable_mq"):
        events.emit(SENT)
    assert heard == [SENT]
    assert "MessageSent" in caplog.text
    assert "no metrics today" in caplog.text


def test_wants_tells_whether_an_event_would_be_heard():
    events = Events()
    assert not events.wants(MessageSent)
    end = events.subscribe(MessageSent, lambda event: None)
    assert events.wants(MessageSent)
    assert not events.wants(BrokerDown)
    end()
    assert not events.wants(MessageSent)
    events.subscribe(Event, lambda event: None)
    assert events.wants(BrokerDown)


def test_a_callback_may_subscribe_and_unsubscribe_while_it_is_called():
    events, heard = Events(), list[Event]()

    def once(event: MessageSent) -> None:
        end()
        events.subscribe(MessageSent, heard.append)

    end = events.subscribe(MessageSent, once)
    events.emit(SENT)
    events.emit(SENT)
    assert heard == [SENT]


def test_subscribing_from_many_threads_loses_no_subscription():
    events, heard, start = Events(), list[Event](), threading.Barrier(8)

    def subscribe() -> None:
        start.wait()
        for _ in range(100):
            events.subscribe(MessageSent, heard.append)

    threads = [threading.Thread(target=subscribe) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events.emit(SENT)
    assert len(heard) == 800


def test_events_carry_no_payload():
    for event in Event.__subclasses__():
        assert not {"body", "payload", "headers"} & set(event.__dataclass_fields__), event
