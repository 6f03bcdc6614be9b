"""A broker in this process's memory, for tests: ``memory://name``.

The same name is the same broker everywhere in the process. It has partitions, groups and
cursors like a log, and faults that a test switches on: :meth:`MemoryBroker.down`,
:meth:`~MemoryBroker.refuse`, :meth:`~MemoryBroker.duplicate`, :meth:`~MemoryBroker.unknown`,
:meth:`~MemoryBroker.lose_acks`, :meth:`~MemoryBroker.revoke`. Nothing is ever removed, and
nothing survives the process. It reads no clock but to bound a wait.
"""

from __future__ import annotations

from reliable_mq.testing.memory.adapter import MemoryAdapter, MemorySubscription, open_adapter
from reliable_mq.testing.memory.broker import MemoryBroker

__all__ = ["MemoryAdapter", "MemoryBroker", "MemorySubscription", "open_adapter"]
