"""Waiting until as many servers have what was written as the options ask for."""

from __future__ import annotations

from reliable_mq_redis.link import Command, Reply
from reliable_mq_redis.options import Options


def asked_for(options: Options) -> bool:
    """Tell whether there is anything to wait for."""
    return bool(options.wait or options.wait_aof)


def command(options: Options, seconds: float) -> Command:
    """Return what waits for the copies of all that this connection wrote before."""
    milliseconds = max(1, round(min(options.wait_timeout, seconds) * 1000))
    if options.wait_aof:
        return ("WAITAOF", 1, options.wait, milliseconds)
    return ("WAIT", options.wait, milliseconds)


def lacking(options: Options, reply: Reply) -> str | None:
    """Return what the copies lack by the *reply* of that command; None where all are there."""
    local, replicas = reply if options.wait_aof else (0, reply)
    if replicas >= options.wait and local >= int(options.wait_aof):
        return None
    synced = f" and {local} of 1 local file" if options.wait_aof else ""
    return f"stored, but {replicas} of {options.wait} replicas{synced} confirmed it in time"
