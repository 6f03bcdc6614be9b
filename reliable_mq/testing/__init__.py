"""Help for testing applications, and for testing adapters.

``Harness`` runs a whole application without a server or a sleep; ``capture``, ``pending``,
``make_message`` and ``make_delivery`` serve small tests; ``reliable_mq.testing.contract`` is the
suite an adapter of your own must pass (it needs pytest).
"""

from __future__ import annotations

from reliable_mq.testing.clock import FakeClock
from reliable_mq.testing.harness import Harness, Outcome
from reliable_mq.testing.memory import MemoryBroker
from reliable_mq.testing.messages import capture, make_delivery, make_message, pending

__all__ = [
    "FakeClock",
    "Harness",
    "MemoryBroker",
    "Outcome",
    "capture",
    "make_delivery",
    "make_message",
    "pending",
]
