"""What is known of a topic's id, whoever of the brokers answers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from reliable_mq.errors import TransportError
from reliable_mq_kafka.identities import Identities

OLD, NEW, NONE = "0" * 22, "1" * 22, "A" * 22
HERE, ELSEWHERE = "here", "elsewhere"


class Brokers:
    """Answers one after the other: an id, no topic, or an error; of a cluster."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self._answers = list(answers)
        self.cluster: str | None = HERE

    def cluster_id(self, topic: str) -> str | None:
        return self.cluster

    def describe(self, topics: list[str]) -> dict[str, Any]:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {} if answer is None else {topics[0]: SimpleNamespace(topic_id=answer)}


class Watch:
    """Looks at a topic when it is told to, and not by itself."""

    def __init__(self, *answers: str | Exception | None) -> None:
        self.brokers = Brokers(*answers)
        admin: Any = self.brokers
        self._identities = Identities(admin)
        self._identities.stop()
        self._identities.watch(["orders"])

    def look(self) -> str | None:
        """Return the id that is known after another look."""
        self._identities.look()
        found = self._identities.of("orders")
        return None if found is None else found.log

    @property
    def former(self) -> frozenset[str]:
        found = self._identities.of("orders")
        return frozenset() if found is None else found.former

    @property
    def looks(self) -> int:
        return self._identities.looks


def looked_up(*answers: str | Exception | None) -> tuple[list[str | None], set[str]]:
    """Return which id is known after each answer, and which are known to be over."""
    watch = Watch(*answers)
    return [watch.look() for _ in answers], set(watch.former)


def test_a_topic_has_the_id_that_was_told_twice_in_a_row() -> None:
    assert looked_up(OLD, NEW, NEW) == ([OLD, OLD, NEW], {OLD})


def test_a_broker_that_tells_late_of_the_former_topic_changes_nothing() -> None:
    known = [OLD, OLD, NEW, NEW, NEW, NEW]
    assert looked_up(OLD, NEW, NEW, OLD, OLD, NEW) == (known, {OLD})


def test_an_older_answer_that_comes_after_a_newer_one_changes_nothing() -> None:
    assert looked_up(NEW, OLD, NEW, OLD, NEW) == ([NEW] * 5, set())


def test_while_a_new_id_is_in_doubt_nothing_is_told_of_the_topic() -> None:
    watch = Watch(OLD, NEW, OLD, NEW, NEW)
    looks = []
    for _ in range(5):
        watch.look()
        looks.append(watch.looks)
    assert looks == [1, 1, 2, 2, 3]


@pytest.mark.parametrize("silence", [None, TransportError("no answer")])
def test_without_an_answer_the_id_stays_known(silence: Exception | None) -> None:
    assert looked_up(silence, OLD, silence, silence) == ([None, OLD, OLD, OLD], set())


def test_a_topic_that_was_deleted_and_comes_back_with_its_id_is_the_same() -> None:
    assert looked_up(OLD, None, None, OLD) == ([OLD] * 4, set())


def test_brokers_that_have_no_ids_tell_of_none() -> None:
    assert looked_up(NONE, NONE, OLD, NONE, OLD) == ([None, None, OLD, OLD, OLD], set())


def test_another_cluster_at_the_same_addresses_has_other_ids_for_the_same_topics() -> None:
    watch = Watch(OLD, NEW, NEW, OLD, OLD)
    assert watch.look() == OLD
    watch.brokers.cluster = ELSEWHERE
    assert [watch.look(), watch.look()] == [NEW, NEW]
    watch.brokers.cluster = HERE
    assert [watch.look(), watch.look(), watch.former] == [OLD, OLD, frozenset()]


def test_a_cluster_that_tells_no_name_is_the_one_that_answered_before() -> None:
    watch = Watch(OLD, NEW, NEW)
    watch.look()
    watch.brokers.cluster = None
    assert [watch.look(), watch.look(), watch.former] == [OLD, NEW, {OLD}]
