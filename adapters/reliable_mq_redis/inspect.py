"""What in the servers' own settings would break a promise."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from redis.exceptions import ResponseError

from reliable_mq.adapter import Finding, Severity
from reliable_mq_redis.errors import translated
from reliable_mq_redis.link import Reply
from reliable_mq_redis.location import Address
from reliable_mq_redis.options import Options
from reliable_mq_redis.servers import Servers

Facts = Mapping[str, str]

_WATCHED = ("maxmemory", "maxmemory-policy", "appendonly", "appendfsync")
_OLDEST = (6, 2)


def inspect(servers: Servers, options: Options) -> list[Finding]:
    """Return the findings of every server that takes messages."""
    deadline = time.monotonic() + servers.dialer.socket_timeout
    with translated("inspecting the servers"):
        addresses = servers.locator.everywhere(deadline)
    return [finding for one in addresses for finding in _inspect_one(servers, one, options)]


def _inspect_one(servers: Servers, address: Address, options: Options) -> list[Finding]:
    deadline = time.monotonic() + servers.dialer.socket_timeout
    with translated(f"inspecting {address}"), servers.link(address, deadline) as link:
        info, *settings = link.exchange(
            [("INFO",), *(("CONFIG", "GET", name) for name in _WATCHED)], deadline
        )
        servers.checked([info])
    facts = {**_parse_info(info), **_parse_settings(settings)}
    subject = f"redis {address}"
    return [
        *_version(subject, facts),
        *_memory(subject, facts),
        *_disk(subject, facts),
        *_replicas(subject, facts, options),
    ]


def _parse_info(text: bytes) -> dict[str, str]:
    lines = text.decode(errors="replace").splitlines()
    return dict(line.split(":", 1) for line in lines if ":" in line)


def _parse_settings(replies: list[Reply]) -> dict[str, str]:
    # CONFIG is often forbidden; what INFO says of the same things then has to do.
    known = [reply for reply in replies if reply and not isinstance(reply, ResponseError)]
    return {f"config {name.decode()}": value.decode() for name, value in known}


def _version(subject: str, facts: Facts) -> Iterator[Finding]:
    text = facts.get("redis_version", "")
    if tuple(int(part) for part in text.split(".")[:2] if part.isdecimal()) < _OLDEST:
        yield Finding(
            severity=Severity.ERROR,
            subject=subject,
            what=f"the version is {text or 'unknown'}",
            why="the adapter needs commands of Redis 6.2 (XPENDING IDLE, SMISMEMBER, XTRIM MINID)",
            remedy="upgrade the server",
        )


def _memory(subject: str, facts: Facts) -> Iterator[Finding]:
    policy = facts.get("config maxmemory-policy") or facts.get("maxmemory_policy", "noeviction")
    limit = int(facts.get("config maxmemory") or facts.get("maxmemory", "0"))
    if policy == "noeviction":
        return
    everything = policy.startswith("allkeys")
    severity = Severity.ERROR if everything else Severity.WARNING
    yield Finding(
        severity=severity if limit else Severity.WARNING,
        subject=subject,
        what=f"maxmemory-policy is {policy}"
        + (f" with maxmemory {limit}" if limit else " (without maxmemory, so not in force)"),
        why="a server that is full would delete whole topics"
        if everything
        else "a server that is full would forget what was published of late: duplicates",
        remedy="set maxmemory-policy noeviction: publishes then fail and stay in the outbox",
    )


def _disk(subject: str, facts: Facts) -> Iterator[Finding]:
    if facts.get("aof_enabled") == "0":
        yield Finding(
            severity=Severity.ERROR,
            subject=subject,
            what="appendonly is no",
            why="a restart loses every message since the last snapshot, confirmed ones too",
            remedy="set appendonly yes",
        )
        return
    when = facts.get("config appendfsync")
    if when is None:
        yield _unreadable(subject)
    elif when != "always":
        yield Finding(
            severity=Severity.WARNING,
            subject=subject,
            what=f"appendfsync is {when}",
            why="a power failure loses confirmed messages of the last "
            + ("second" if when == "everysec" else "half minute or more"),
            remedy="set appendfsync always, or have replicas confirm with wait=1 in broker_url",
        )


def _unreadable(subject: str) -> Finding:
    return Finding(
        severity=Severity.INFO,
        subject=subject,
        what="appendfsync cannot be read",
        why="with anything but 'always' a power failure loses the latest confirmed messages",
        remedy="allow the user CONFIG GET, or check it on the server",
    )


def _replicas(subject: str, facts: Facts, options: Options) -> Iterator[Finding]:
    replicas = int(facts.get("connected_slaves", "0"))
    if replicas < options.wait:
        yield Finding(
            severity=Severity.ERROR,
            subject=subject,
            what=f"wait={options.wait} in broker_url, and {replicas} replicas are connected",
            why="no publish can be confirmed; the outbox keeps growing",
            remedy="connect more replicas, or lower wait",
        )
    elif replicas and not options.wait:
        yield Finding(
            severity=Severity.WARNING,
            subject=subject,
            what=f"{replicas} replicas follow asynchronously",
            why="a fail-over loses confirmed messages that no replica had yet",
            remedy="put wait=1 into broker_url: that makes such a loss rare, though not impossible",
        )
    elif replicas:
        yield Finding(
            severity=Severity.INFO,
            subject=subject,
            what=f"each publish waits for {options.wait} of {replicas} replicas",
            why="a fail-over may still choose a replica that lacks the latest messages",
            remedy="nothing, or as many as there are replicas in wait",
        )
