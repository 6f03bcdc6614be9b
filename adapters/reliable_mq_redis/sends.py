"""How far the messages of one topic have come within one publish."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from reliable_mq.adapter import SENT, Outcome, Refused, Unknown
from reliable_mq.message import Message
from reliable_mq_redis.chunks import MAX_HEADERS, Chunk, Spreader, chunks_of

OUT_OF_TIME = Unknown("not sent: the time-out of the publish passed")
FOLLOWS = Unknown("not sent: an earlier message of this publish was not stored")


class Send:
    """The messages of one topic, cut into calls of which one at a time is under way.

    Writes into the shared list of outcomes, which begins as :data:`OUT_OF_TIME` everywhere.
    """

    def __init__(self, topic: str, outcomes: list[Outcome]) -> None:
        self.topic = topic
        self.partitions = 0
        self.chunk: Chunk | None = None
        self._messages: list[tuple[int, Message]] = []
        self._done = 0
        self._outcomes = outcomes
        self._chunks: Iterator[Chunk] = iter(())
        self._following: Chunk | None = None

    def append(self, index: int, message: Message) -> None:
        """Add a message, the *index*-th of the publish."""
        self._messages.append((index, message))

    def split(self, partitions: int, spreader: Spreader) -> None:
        """Cut what is left into calls, for a topic of so many partitions."""
        self.partitions = partitions
        self._chunks = chunks_of(self._messages[self._done :], partitions, spreader)
        self.chunk, self._following = next(self._chunks, None), None

    def prepare(self) -> None:
        """Encode the call after this one; done while the server works on this one."""
        if self._following is None:
            self._following = next(self._chunks, None)

    def stored(self) -> None:
        """Note that the server has everything of this call, and go on to the next one."""
        self._note(len(self.chunk.indexes) if self.chunk else 0, SENT)
        self.chunk, self._following = self._following or next(self._chunks, None), None

    def stored_up_to(self, count: int, stored: Outcome, failed: Outcome) -> None:
        """Note that the call ended after *count* messages, and the outcome of the next one."""
        self._note(count, stored)
        self._note(1, failed)
        self.stop(FOLLOWS)

    def doubt(self, outcome: Outcome) -> None:
        """Note that nobody knows how much of this call was stored: nothing more is sent."""
        self._note(len(self.chunk.indexes) if self.chunk else 0, outcome)
        self.stop(FOLLOWS)

    def stop(self, outcome: Outcome) -> None:
        """Send nothing more: this is the *outcome* of all that is left."""
        self._note(len(self._messages), outcome)
        self.chunk = None

    def _note(self, count: int, outcome: Outcome) -> None:
        for index, _ in self._messages[self._done : self._done + count]:
            self._outcomes[index] = outcome
        self._done = min(self._done + count, len(self._messages))


def sort(messages: Sequence[Message], outcomes: list[Outcome], limit: int) -> list[Send]:
    """Return what is to be sent, by topic. What is refused, and its followers, are noted."""
    sends: dict[str, Send] = {}
    stopped: set[tuple[str, str]] = set()
    for index, message in enumerate(messages):
        key = None if message.key is None else (message.topic, message.key)
        refused = _refusal(message, limit)
        if refused is not None and key is not None:
            stopped.add(key)
        if refused is not None:
            outcomes[index] = refused
        elif key in stopped:
            outcomes[index] = FOLLOWS
        else:
            send = sends.get(message.topic)
            if send is None:
                send = sends[message.topic] = Send(message.topic, outcomes)
            send.append(index, message)
    return list(sends.values())


def _refusal(message: Message, limit: int) -> Refused | None:
    if len(message.body) > limit:
        return Refused(f"the body has {len(message.body)} bytes, the limit is {limit}")
    if len(message.headers) > MAX_HEADERS:
        return Refused(
            f"there are {len(message.headers)} headers, a stream entry takes {MAX_HEADERS}"
        )
    return None
