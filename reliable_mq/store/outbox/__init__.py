"""The outbox: messages that a committed transaction wants sent."""

from __future__ import annotations

from reliable_mq.store.outbox.appending import append, pending

__all__ = ["append", "pending"]
