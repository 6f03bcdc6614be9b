"""What a queue's own settings, or a policy, would do to messages nobody handled yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from reliable_mq.adapter import Finding, Severity
from reliable_mq_rabbitmq.topology import NO_DELIVERY_LIMIT

_REPLICAS = 3
_LIMITED_BY_DEFAULT = 4
"""The first major version whose quorum queues have a delivery limit that nobody asked for."""
_DEFAULT_LIMIT = 20

Settings = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Rule:
    """A setting that should not be, unless *harmless* says so of all the settings together."""

    name: str
    why: str
    severity: Severity = Severity.ERROR
    harmless: Callable[[Settings], bool] = lambda settings: False


def _refuses(settings: Settings) -> bool:
    """Tell whether a full queue refuses new messages, which then wait in the outbox.

    A quorum queue does not know ``reject-publish-dlx``: it drops its oldest (seen with 3.10).
    """
    return settings.get("overflow") == "reject-publish"


def _unlimited(settings: Settings) -> bool:
    limit = settings["delivery-limit"]
    return isinstance(limit, int) and limit >= NO_DELIVERY_LIMIT


def _in_effect(settings: Mapping[str, Any], version: int) -> dict[str, Any]:
    """Return *settings* as the broker's major version takes them: until 4.0 -1 drops everything."""
    limit = settings.get("delivery-limit")
    if version >= _LIMITED_BY_DEFAULT and isinstance(limit, int) and limit < 0:
        return {**settings, "delivery-limit": NO_DELIVERY_LIMIT}
    return dict(settings)


_RULES = (
    _Rule("message-ttl", "messages that wait too long are dropped, handled or not"),
    _Rule("expires", "a queue whose consumers are away is deleted with all its messages"),
    _Rule(
        "max-length", "a full queue drops its oldest messages, handled or not", harmless=_refuses
    ),
    _Rule(
        "max-length-bytes",
        "a full queue drops its oldest messages, handled or not",
        harmless=_refuses,
    ),
    _Rule(
        "delivery-limit",
        "each lost connection counts as a delivery of every unacknowledged message: what exceeds "
        "the limit is dropped although no handler ever saw it",
        harmless=_unlimited,
    ),
    _Rule(
        "dead-letter-exchange",
        "nothing of this library needs it (dead letters are rows, and a topic): what ends up "
        "there was taken from the group without being handled",
        severity=Severity.WARNING,
    ),
)


def drops(queue: Mapping[str, Any], version: int) -> Iterator[Finding]:
    """Return what policies and arguments of a queue, as the management API shows it, break.

    *version* is the broker's, the first number of it.
    """
    policy = _in_effect(queue.get("effective_policy_definition") or {}, version)
    given = (queue.get("arguments") or {}).items()
    arguments = _in_effect({name.removeprefix("x-"): value for name, value in given}, version)
    # A policy's overflow applies to an argument's length, and the reverse.
    overflow = {"overflow": arguments.get("overflow", policy.get("overflow"))}
    names = [name for name in (queue.get("policy"), queue.get("operator_policy")) if name]
    source = f"by policy {' and '.join(map(repr, names))}" if names else "by a policy"
    yield from _broken(queue["name"], {**policy, **overflow}, source, "change the policy")
    remedy = "delete the queue when it is empty, and declare anew"
    yield from _broken(queue["name"], {**arguments, **overflow}, "by its arguments", remedy)
    unsaid = "delivery-limit" not in policy and "delivery-limit" not in arguments
    if unsaid and version >= _LIMITED_BY_DEFAULT and queue.get("type") == "quorum":
        default = {"delivery-limit": _DEFAULT_LIMIT}
        yield from _broken(queue["name"], default, "by the broker's default", remedy)


def _broken(queue: str, settings: Settings, source: str, remedy: str) -> Iterator[Finding]:
    for rule in _RULES:
        if rule.name in settings and not rule.harmless(settings):
            shown = f"{rule.name}={settings[rule.name]!r}"
            yield Finding(
                code=f"rabbitmq-{rule.name}",
                severity=rule.severity,
                subject=f"queue {queue!r}",
                what=f"it has {shown} {source}",
                why=rule.why,
                remedy=remedy,
            )


def kind(queue: Mapping[str, Any]) -> Iterator[Finding]:
    """Return what is wrong with the type of a queue."""
    wrong = [f"of type {queue.get('type')!r}"] if queue.get("type") != "quorum" else []
    wrong += [] if queue.get("durable", True) else ["not durable"]
    wrong += [name for name in ("auto_delete", "exclusive") if queue.get(name)]
    if wrong:
        yield Finding(
            code="rabbitmq-queue-kind",
            severity=Severity.ERROR,
            subject=f"queue {queue['name']!r}",
            what=f"it is {', '.join(wrong)}",
            why="only a quorum queue is on several nodes, and gives back in order what a consumer "
            "that is gone has not acknowledged",
            remedy="delete it when it is empty and declare anew, or use a new group name",
        )


def replicas(queue: Mapping[str, Any], nodes: int) -> Iterator[Finding]:
    """Return what is wrong with the replicas of a quorum queue in a cluster of *nodes* nodes.

    The number of nodes is 0 where it is unknown.
    """
    members, online = queue.get("members") or (), queue.get("online") or ()
    subject = f"queue {queue['name']!r}"
    if members and 2 * len(online) <= len(members):
        yield Finding(
            code="rabbitmq-no-majority",
            severity=Severity.ERROR,
            subject=subject,
            what=f"{len(online)} of its {len(members)} replicas are online, which is no majority",
            why="it neither takes nor delivers messages",
            remedy="start the nodes of the others",
        )
    if members and len(members) < min(_REPLICAS, nodes):
        yield Finding(
            code="rabbitmq-few-replicas",
            severity=Severity.WARNING,
            subject=subject,
            what=f"it has {len(members)} replicas in a cluster of {nodes} nodes",
            why="what was confirmed is lost, or waits, with one node",
            remedy="rabbitmq-queues grow <node> all, and leave out replication_factor",
        )
