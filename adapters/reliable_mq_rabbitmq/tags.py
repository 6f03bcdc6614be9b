"""Which deliveries of a channel are unacknowledged, and the fewest acknowledgements for some."""

from __future__ import annotations

from collections.abc import Iterable


class CompetingTags:
    """Deliveries that are acknowledged in any order: the front in one go, others one by one."""

    def __init__(self) -> None:
        self._outstanding: dict[int, bool] = {}

    def __len__(self) -> int:
        return len(self._outstanding)

    def deliver(self, tag: int) -> None:
        """Note a delivery; tags rise."""
        self._outstanding[tag] = False

    def ack(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """Return the acknowledgements to send: tag, and whether all before it are meant too.

        Tags that are not outstanding are ignored: the broker closes the channel for those.
        """
        done = [tag for tag in tags if self._outstanding.get(tag) is False]
        for tag in done:
            self._outstanding[tag] = True
        front = self._take_front()
        rest = [(tag, False) for tag in done if self._outstanding.pop(tag, None)]
        return front + rest

    def _take_front(self) -> list[tuple[int, bool]]:
        front = []
        for tag, done in self._outstanding.items():
            if not done:
                break
            front.append(tag)
        for tag in front:
            del self._outstanding[tag]
        return [(front[-1], True)] if front else []

    def release(self, tags: Iterable[int]) -> list[int]:
        """Return those of *tags* that are outstanding, and forget them."""
        return [tag for tag in tags if self._outstanding.pop(tag, None) is not None]


class OrderedTags(CompetingTags):
    """Deliveries of which only the front is acknowledged.

    A later one waits until all before it are done, so that the next owner finds no gap behind
    the first unacknowledged message.
    """

    def ack(self, tags: Iterable[int]) -> list[tuple[int, bool]]:
        """Return the acknowledgement of the front, if it moved."""
        for tag in tags:
            if tag in self._outstanding:
                self._outstanding[tag] = True
        return self._take_front()
