"""What is known of a topic's id, whoever of the brokers answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reliable_mq.errors import TransportError
from reliable_mq_kafka.identities import Identities

OLD, NEW, NONE = "0" * 22, "1" * 22, "A" * 22


class Brokers:
    """Answers one after the other: an id, no topic, or an error."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self._answers = list(answers)

    def describe(self, topics: list[str]) -> dict[str, Any]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {} if answer is None else {topics[0]: SimpleNamespace(topic_id=answer)}


def looked_up(*answers: str | Exception | None) -> list[str | None]:
    """Return which id is known after each answer."""
    admin: Any = Brokers(*answers)
    identities = Identities(admin)
    identities.watch(["orders"])
    known = []
    for _ in answers:
        identities.look()
        found = identities.of("orders")
        known.append(None if found is None else found.log)
    identities.stop()
    return known


def test_a_topic_has_the_id_that_was_told_last() -> None:
    assert looked_up(OLD, NEW) == [OLD, NEW]


def test_a_broker_that_is_late_with_its_news_changes_nothing() -> None:
    assert looked_up(OLD, NEW, OLD, NEW) == [OLD, NEW, NEW, NEW]


@pytest.mark.parametrize("silence", [None, TransportError("no answer")])
def test_without_an_answer_the_id_stays_known(silence: Exception | None) -> None:
    assert looked_up(silence, OLD, silence) == [None, OLD, OLD]


def test_brokers_that_have_no_ids_tell_of_none() -> None:
    assert looked_up(NONE, NONE, OLD, NEW) == [None, None, OLD, NEW]
