"""What in the servers' own settings would break a promise."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from redis.exceptions import ResponseError

from reliable_mq.adapter import Finding, Severity
from reliable_mq_redis.errors import translated
from reliable_mq_redis.link import Reply
from reliable_mq_redis.locate import Locator, SentinelLocator, ServerLocator
from reliable_mq_redis.location import Address
from reliable_mq_redis.options import Options
from reliable_mq_redis.servers import Servers

Facts = Mapping[str, str]

_WATCHED = (
    "maxmemory",
    "maxmemory-policy",
    "save",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "min-replicas-to-write",
    "min-replicas-max-lag",
)
_OLDEST = (6, 2)
_FULL = 0.9
_LAG = 30
"""Seconds for which a primary without replicas may go on: what sentinels take to replace it."""


def inspect(servers: Servers, options: Options) -> list[Finding]:
    """Return the findings of every server that takes messages, and of the sentinels."""
    deadline = time.monotonic() + servers.dialer.socket_timeout
    locator = servers.locator
    with translated("inspecting the servers"):
        addresses = locator.everywhere(deadline)
    findings = [finding for one in addresses for finding in _inspect_one(servers, one, options)]
    if isinstance(locator, SentinelLocator):
        findings += _sentinels(locator)
    return findings


def _inspect_one(servers: Servers, address: Address, options: Options) -> list[Finding]:
    deadline = time.monotonic() + servers.dialer.socket_timeout
    with translated(f"inspecting {address}"), servers.link(address, deadline) as link:
        info, *settings = link.exchange(
            [("INFO",), *(("CONFIG", "GET", name) for name in _WATCHED)], deadline
        )
        servers.checked([info])
    facts = {**_parse_info(info), **_parse_settings(settings)}
    subject = f"redis {address}"
    if facts.get("role") == "slave":
        return [_read_only(subject)]
    return [
        *_version(subject, facts),
        *_memory(subject, facts),
        *_evicted(subject, facts),
        *_disk(subject, facts),
        *_replicas(subject, facts, options),
        *_too_few(subject, facts),
        *_successor(subject, facts, servers.locator),
    ]


def _read_only(subject: str) -> Finding:
    return Finding(
        code="redis-read-only",
        severity=Severity.ERROR,
        subject=subject,
        what="it is a replica",
        why="nothing can be published to it or acknowledged on it",
        remedy="name the primary in broker_url, or the sentinels with redis+sentinel://, which "
        "follow a fail-over",
    )


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
            code="redis-version",
            severity=Severity.ERROR,
            subject=subject,
            what=f"the version is {text or 'unknown'}",
            why="the adapter needs commands of Redis 6.2 (XPENDING IDLE, SMISMEMBER, XTRIM MINID)",
            remedy="upgrade the server",
        )


def _memory(subject: str, facts: Facts) -> Iterator[Finding]:
    policy = facts.get("config maxmemory-policy") or facts.get("maxmemory_policy", "noeviction")
    limit = int(facts.get("config maxmemory") or facts.get("maxmemory", "0"))
    if policy != "noeviction":
        yield _eviction(subject, policy, limit)
    elif limit and int(facts.get("used_memory", "0")) > _FULL * limit:
        yield Finding(
            code="redis-memory-full",
            severity=Severity.WARNING,
            subject=subject,
            what=f"{facts['used_memory']} bytes of maxmemory {limit} are used",
            why="a server that is full refuses publishes: they stay in the outbox",
            remedy="raise maxmemory, or find the group that acknowledges nothing (status)",
        )


def _eviction(subject: str, policy: str, limit: int) -> Finding:
    everything = policy.startswith("allkeys")
    return Finding(
        code="redis-eviction",
        severity=Severity.ERROR if everything and limit else Severity.WARNING,
        subject=subject,
        what=f"maxmemory-policy is {policy}"
        + (f" with maxmemory {limit}" if limit else " (without maxmemory, so not in force)"),
        why="a server that is full would delete whole topics"
        if everything
        else "a server that is full would forget what was published of late: duplicates",
        remedy="set maxmemory-policy noeviction: publishes then fail and stay in the outbox",
    )


def _evicted(subject: str, facts: Facts) -> Iterator[Finding]:
    count = int(facts.get("evicted_keys", "0"))
    if count:
        yield Finding(
            code="redis-evicted",
            severity=Severity.WARNING,
            subject=subject,
            what=f"{count} keys were evicted since the server started",
            why="topics with all their messages may have been among them",
            remedy="set maxmemory-policy noeviction, look whether topics are missing, then "
            "CONFIG RESETSTAT",
        )


def _disk(subject: str, facts: Facts) -> Iterator[Finding]:
    if facts.get("aof_enabled") == "0":
        yield _volatile(subject, facts.get("config save"))
        return
    when = facts.get("config appendfsync")
    if when is None:
        yield _unreadable(subject)
    elif when != "always":
        yield Finding(
            code="redis-appendfsync",
            severity=Severity.WARNING,
            subject=subject,
            what=f"appendfsync is {when}",
            why="a power failure loses confirmed messages of the last "
            + ("second" if when == "everysec" else "half minute or more"),
            remedy="set appendfsync always, or have replicas confirm with wait=1 in broker_url",
        )
    elif facts.get("config no-appendfsync-on-rewrite") == "yes":
        yield Finding(
            code="redis-fsync-on-rewrite",
            severity=Severity.WARNING,
            subject=subject,
            what="no-appendfsync-on-rewrite is yes",
            why="while the file is rewritten nothing is synced: a power failure then loses "
            "confirmed messages of half a minute or more",
            remedy="set no-appendfsync-on-rewrite no",
        )


def _volatile(subject: str, snapshots: str | None) -> Finding:
    lost = "everything" if snapshots == "" else "every message since the last snapshot"
    return Finding(
        code="redis-volatile",
        severity=Severity.ERROR,
        subject=subject,
        what="appendonly is no" + (", and no snapshots are taken" if snapshots == "" else ""),
        why=f"a restart loses {lost}, confirmed messages too",
        remedy="set appendonly yes",
    )


def _unreadable(subject: str) -> Finding:
    return Finding(
        code="redis-appendfsync-unknown",
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
            code="redis-wait",
            severity=Severity.ERROR,
            subject=subject,
            what=f"wait={options.wait} in broker_url, and {replicas} replicas are connected",
            why="no publish can be confirmed; the outbox keeps growing",
            remedy="connect more replicas, or lower wait",
        )
    elif replicas and not options.wait:
        yield Finding(
            code="redis-asynchronous",
            severity=Severity.WARNING,
            subject=subject,
            what=f"{replicas} replicas follow asynchronously",
            why="a fail-over loses confirmed messages that no replica had yet",
            remedy="put wait=1 into broker_url: that makes such a loss rare; as many as there are "
            "replicas makes it impossible",
        )
        # INFO has this line only where both settings are above 0.
        if "min_slaves_good_slaves" not in facts:
            yield _cut_off(subject)
        elif int(facts.get("config min-replicas-max-lag", "0")) > _LAG:
            yield _late(subject, facts["config min-replicas-max-lag"])
    elif replicas > options.wait:
        yield Finding(
            code="redis-wait-for-some",
            severity=Severity.INFO,
            subject=subject,
            what=f"each publish waits for {options.wait} of {replicas} replicas",
            why="a fail-over may still choose a replica that lacks the latest messages",
            remedy=f"nothing, or wait={replicas}: then nothing is confirmed while one is away",
        )


def _cut_off(subject: str) -> Finding:
    return Finding(
        code="redis-min-replicas",
        severity=Severity.WARNING,
        subject=subject,
        what="min-replicas-to-write is 0",
        why="a primary that is cut off from its replicas goes on confirming messages; they are "
        "lost when it follows the new primary",
        remedy="set min-replicas-to-write 1, or put wait=1 into broker_url",
    )


def _late(subject: str, lag: str) -> Finding:
    return Finding(
        code="redis-replica-lag",
        severity=Severity.WARNING,
        subject=subject,
        what=f"min-replicas-max-lag is {lag} s",
        why="a primary that is cut off from its replicas goes on confirming messages for so long; "
        "they are lost when it follows the new primary",
        remedy="set min-replicas-max-lag 10, or put wait=1 into broker_url",
    )


def _too_few(subject: str, facts: Facts) -> Iterator[Finding]:
    good, asked = facts.get("min_slaves_good_slaves"), facts.get("config min-replicas-to-write")
    if good is not None and asked is not None and int(good) < int(asked):
        yield Finding(
            code="redis-too-few-replicas",
            severity=Severity.ERROR,
            subject=subject,
            what=f"min-replicas-to-write is {asked}, and {good} replicas follow closely enough",
            why="the server refuses every publish and acknowledgement; the outbox keeps growing",
            remedy="connect more replicas, or lower min-replicas-to-write",
        )


def _successor(subject: str, facts: Facts, locator: Locator) -> Iterator[Finding]:
    if isinstance(locator, ServerLocator) or int(facts.get("connected_slaves", "0")):
        return
    yield Finding(
        code="redis-no-replica",
        severity=Severity.WARNING,
        subject=subject,
        what="it has no replica",
        why="nobody takes over when it dies",
        remedy="connect a replica; after a fail-over, start the dead server again",
    )


def _sentinels(locator: SentinelLocator) -> Iterator[Finding]:
    for sentinel, problem in locator.problems():
        yield Finding(
            code="redis-sentinel",
            severity=Severity.WARNING,
            subject=f"sentinel {sentinel}",
            what=problem,
            why="when the primary dies the others may be too few to choose a new one",
            remedy="start the missing sentinels; run three, with a quorum of two",
        )
