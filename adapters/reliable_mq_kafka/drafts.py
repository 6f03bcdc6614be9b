"""The outcomes of one publish as they become known, under the prefix rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reliable_mq.adapter import SENT, Outcome, Unknown
from reliable_mq.message import Message

_BEHIND = Unknown("an earlier message of its key was not stored")

Place = tuple[str, str]


def place_of(message: Message) -> Place | None:
    """Return what orders *message*, if anything: its topic and key."""
    return None if message.key is None else (message.topic, message.key)


class Draft:
    """Messages, and what is known of each. Used by one thread."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.suspicious = False
        """Whether brokers refused requests of several messages of which one may be at fault."""
        self._outcomes: dict[int, Outcome] = {}
        self._stopped: dict[Place, int] = {}

    @property
    def complete(self) -> bool:
        """Tell whether every outcome is known."""
        return len(self._outcomes) == len(self.messages)

    def open(self) -> Iterator[tuple[int, Message]]:
        """Yield what has no outcome; what follows a message that was not stored gets one here."""
        return self._open() if self._outcomes else enumerate(self.messages)

    def _open(self) -> Iterator[tuple[int, Message]]:
        for index, message in enumerate(self.messages):
            if index in self._outcomes:
                continue
            if self._is_behind(index, message):
                self._outcomes[index] = _BEHIND
            else:
                yield index, message

    def heads(self) -> list[tuple[int, Message]]:
        """Return of what is open the first message of each key, and all without a key."""
        seen: set[Place | None] = set()
        found = []
        for index, message in self.open():
            place = place_of(message)
            if place is None or place not in seen:
                seen.add(place)
                found.append((index, message))
        return found

    def settle(self, index: int, outcome: Outcome) -> None:
        """Note an outcome."""
        self._outcomes[index] = outcome
        place = place_of(self.messages[index])
        if outcome is not SENT and place is not None:
            self._stopped[place] = min(index, self._stopped.get(place, index))

    def settle_all(self, outcome: Outcome) -> None:
        """Note the same outcome for every message."""
        self._outcomes = dict.fromkeys(range(len(self.messages)), outcome)

    def settle_open(self, outcome: Outcome) -> None:
        """Note the same outcome for everything that has none."""
        for index, _ in self.open():
            self._outcomes[index] = outcome

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes, one a message; each must be known."""
        return [self._outcomes[index] for index in range(len(self.messages))]

    def _is_behind(self, index: int, message: Message) -> bool:
        place = place_of(message)
        return place is not None and self._stopped.get(place, index) < index
