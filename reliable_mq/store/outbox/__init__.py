"""The outbox: messages that a committed transaction wants sent."""

from __future__ import annotations

from reliable_mq.store.outbox.appending import append, flush, pending

__all__ = ["append", "flush", "pending"]
