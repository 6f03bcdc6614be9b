"""The outbox: messages that a committed transaction wants sent."""
