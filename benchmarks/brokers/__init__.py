"""Filling the brokers before a run and counting on them after it, with raw clients."""
