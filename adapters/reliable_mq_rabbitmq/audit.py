"""What the management API shows of settings that would break the promises."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from reliable_mq.adapter import Finding, GroupSpec, Severity, TopicSpec
from reliable_mq_rabbitmq import limits
from reliable_mq_rabbitmq.management import SERVICE_UNAVAILABLE, Denied, Management, Unavailable
from reliable_mq_rabbitmq.topology import Layout, matches, partitions_of

_COLUMNS = "name,type,durable,auto_delete,exclusive,arguments,policy,operator_policy"
_COLUMNS += ",effective_policy_definition,members,online"

Binding = Mapping[str, Any]


class Audit:
    """One look at the cluster, with the eyes of its management plugin.

    It sees the queues of all groups, also of those that other services declared.
    """

    def __init__(self, management: Management, version: int) -> None:
        self._management = management
        self._version = version
        self._queues: dict[str, Mapping[str, Any]] = {}
        self._nodes = 0

    def findings(
        self, topics: Mapping[str, TopicSpec], groups: Collection[GroupSpec]
    ) -> Iterator[Finding]:
        """Look at the cluster, then at each topic. An API that fails is a finding, too."""
        try:
            yield from self._alarms()
            yield from self._cluster()
            found = self._management.get("queues", "{vhost}", query=f"columns={_COLUMNS}")
            self._queues = {queue["name"]: queue for queue in found or ()}
            for topic in sorted({*topics, *(group.topic for group in groups)}):
                members = [group for group in groups if group.topic == topic]
                spec = topics.get(topic) or TopicSpec(name=topic)
                yield from self._topic(spec, members, compare=bool(groups))
        except Unavailable as error:
            yield _not_asked(error)

    # --- the cluster ---

    def _alarms(self) -> Iterator[Finding]:
        status, body = self._management.ask("health", "checks", "alarms")
        if status != SERVICE_UNAVAILABLE:
            return  # An API that answers anything but this and 200 fails at the next question.
        alarms = (body or {}).get("alarms", ())
        names = sorted({f"{one.get('resource')} of {one.get('node')}" for one in alarms})
        yield Finding(
            code="rabbitmq-alarm",
            severity=Severity.WARNING,
            subject="RabbitMQ",
            what=f"an alarm is in effect: {', '.join(names) or 'unknown'}",
            why="the broker takes no messages; they wait in the outbox",
            remedy="free memory or disk of the node, or raise its limits",
        )

    def _cluster(self) -> Iterator[Finding]:
        try:
            nodes = self._management.get("nodes")
        except Denied:
            yield Finding(
                code="rabbitmq-not-checked",
                severity=Severity.INFO,
                subject="RabbitMQ",
                what="the nodes of the cluster were not looked at: the user may not see them",
                why="a dead node, or queues with too few replicas, stay unseen",
                remedy="give the user of the management API the tag monitoring",
            )
            return
        if nodes is None:
            raise Unavailable("it has no list of nodes: is this the management API?")
        self._nodes = len(nodes)
        dead = sorted(node["name"] for node in nodes if not node.get("running"))
        if dead:
            yield _dead_nodes(dead)
        split = sorted(node["name"] for node in nodes if node.get("partitions"))
        if split:
            yield _split_cluster(split)
        if self._nodes == 1:
            yield _ONE_NODE

    # --- a topic ---

    def _topic(
        self, spec: TopicSpec, groups: Sequence[GroupSpec], *, compare: bool
    ) -> Iterator[Finding]:
        """Look at one topic; without *compare* nobody knows what the application asks for."""
        exchange = self._management.get("exchanges", "{vhost}", spec.name)
        if exchange is None:
            return  # AMQP says so as well.
        yield from _exchange_kind(spec.name, exchange)
        yield from self._alternate(spec.name, exchange)
        bindings = self._management.get("exchanges", "{vhost}", spec.name, "bindings", "source")
        bindings = bindings or ()
        partitions = spec.partitions or (1 if compare else _bound_partitions(bindings))
        layout = Layout(spec.name, partitions)
        yield from _routes(layout, bindings)
        for group in groups:
            yield from self._group_bindings(layout, group, bindings)
            yield from self._order(layout, group)
        for name in sorted(self._names(layout, spec, groups, bindings)):
            yield from self._queue(self._queues[name])

    def _alternate(self, topic: str, exchange: Mapping[str, Any]) -> Iterator[Finding]:
        where = exchange.get("arguments", {}).get("alternate-exchange")
        policy = exchange.get("policy")
        if where is None and policy is not None:
            found = self._management.get("policies", "{vhost}", policy)
            where = (found or {}).get("definition", {}).get("alternate-exchange")
        if where is not None:
            yield Finding(
                code="rabbitmq-alternate-exchange",
                severity=Severity.ERROR,
                subject=f"topic {topic!r}",
                what=f"its exchange has the alternate exchange {where!r}",
                why="a message that no group's queue takes goes there and counts as sent, "
                "instead of waiting in the outbox",
                remedy=f"take it away{f' from policy {policy!r}' if policy else ''}",
            )

    def _group_bindings(
        self, layout: Layout, group: GroupSpec, bindings: Sequence[Binding]
    ) -> Iterator[Finding]:
        bound = {
            one["destination"]
            for one in bindings
            for partition in range(layout.partitions)
            if one["destination"] == layout.queue(group.group, partition)
            and matches(one["routing_key"], layout.routing_key(partition))
        }
        missing = [q for q in layout.queues(group.group) if q in self._queues and q not in bound]
        if missing:
            yield Finding(
                code="rabbitmq-unbound",
                severity=Severity.ERROR,
                subject=f"group {group.group!r} of topic {group.topic!r}",
                what=f"the exchange does not route to {_listed(missing)}",
                why="where another group gets a message it counts as sent, and this one never "
                "gets it",
                remedy="run declare, which binds the queues",
            )

    def _order(self, layout: Layout, group: GroupSpec) -> Iterator[Finding]:
        existing = [name for name in layout.queues(group.group) if name in self._queues]
        wrong = [name for name in existing if _is_ordered(self._queues[name]) != group.ordered]
        if wrong:
            yield Finding(
                code="rabbitmq-order",
                severity=Severity.ERROR,
                subject=f"group {group.group!r} of topic {group.topic!r}",
                what=f"its handler is {'ordered' if group.ordered else 'unordered'}, and "
                f"{_listed(wrong)} is made for the other",
                why="several consumers would mix up the order, or only one gets anything",
                remedy="give the changed handler a new group name",
            )

    def _names(
        self,
        layout: Layout,
        spec: TopicSpec,
        groups: Sequence[GroupSpec],
        bindings: Sequence[Binding],
    ) -> set[str]:
        """Return the queues of the topic that exist: of known groups, and of what looks like one.

        A queue that somebody else bound under another name is that one's business.
        """
        names = {name for group in groups for name in layout.queues(group.group)}
        bound = {one["destination"] for one in bindings if one["destination_type"] == "queue"}
        names |= {name for name in bound if name.startswith(f"{layout.topic}.")}
        if spec.catch_all:
            names.add(spec.name)
        return names & self._queues.keys()

    def _queue(self, queue: Mapping[str, Any]) -> Iterator[Finding]:
        yield from limits.kind(queue)
        yield from limits.drops(queue, self._version)
        yield from limits.replicas(queue, self._nodes)


def _is_ordered(queue: Mapping[str, Any]) -> bool:
    return bool((queue.get("arguments") or {}).get("x-single-active-consumer"))


def _exchange_kind(topic: str, exchange: Mapping[str, Any]) -> Iterator[Finding]:
    wrong = [] if exchange.get("type") == "topic" else [f"of type {exchange.get('type')!r}"]
    wrong += [] if exchange.get("durable") else ["not durable"]
    wrong += [name for name in ("auto_delete", "internal") if exchange.get(name)]
    if wrong:
        yield Finding(
            code="rabbitmq-exchange-kind",
            severity=Severity.ERROR,
            subject=f"topic {topic!r}",
            what=f"its exchange is {', '.join(wrong)}",
            why="partitions are routed by a topic exchange, which a restart must not delete",
            remedy="delete it, and declare anew, which binds the queues again",
        )


def _bound_partitions(bindings: Sequence[Binding]) -> int:
    """Return for how many partitions queues are bound; 1 where they do not agree on a number."""
    found = {partitions_of(one["routing_key"]) for one in bindings} - {None}
    return found.pop() or 1 if len(found) == 1 else 1


def _routes(layout: Layout, bindings: Sequence[Binding]) -> Iterator[Finding]:
    """Say which partitions nobody gets messages of."""
    keys = {partition: layout.routing_key(partition) for partition in range(layout.partitions)}
    lost = [
        key
        for key in keys.values()
        if not any(matches(one["routing_key"], key) for one in bindings)
    ]
    if not lost:
        return
    nowhere = len(lost) == len(keys)
    yield Finding(
        code="rabbitmq-unrouted",
        severity=Severity.ERROR if bindings else Severity.WARNING,
        subject=f"topic {layout.topic!r}",
        what=(
            f"no queue gets messages with routing key {_listed(lost)}"
            if bindings or not nowhere
            else "no queue is bound to its exchange"
        ),
        why="a publish is unroutable; the messages wait in the outbox",
        remedy="declare its groups, with the same number of partitions in every service",
    )


def unchecked() -> Finding:
    """Say that nobody looked at what only the management API shows."""
    return Finding(
        code="rabbitmq-not-checked",
        severity=Severity.INFO,
        subject="RabbitMQ",
        what="policies, bindings, replicas and alarms were not checked: AMQP does not show them",
        why="a policy may drop messages, or limit how often they are delivered",
        remedy="add management=http://host:15672 (or https) to broker_url",
    )


def _not_asked(error: Unavailable) -> Finding:
    return Finding(
        code="rabbitmq-not-checked",
        severity=Severity.WARNING,
        subject="RabbitMQ",
        what=f"not everything was checked, the management API could not be asked: {error}",
        why="a policy may drop messages, or limit how often they are delivered",
        remedy="check the option management, and that its user has the tag monitoring or "
        "management and a permission on the virtual host",
    )


def _dead_nodes(names: Sequence[str]) -> Finding:
    return Finding(
        code="rabbitmq-dead-node",
        severity=Severity.WARNING,
        subject="RabbitMQ",
        what=f"nodes of the cluster do not run: {', '.join(names)}",
        why="without a majority of their replicas queues neither take nor deliver messages",
        remedy="start them again, or take them out of the cluster",
    )


def _split_cluster(names: Sequence[str]) -> Finding:
    return Finding(
        code="rabbitmq-split",
        severity=Severity.ERROR,
        subject="RabbitMQ",
        what=f"the cluster has been split, as seen by {', '.join(names)}",
        why="its parts may know different exchanges, bindings and policies",
        remedy="restart the nodes of the smaller part; set cluster_partition_handling to "
        "pause_minority",
    )


_ONE_NODE = Finding(
    code="rabbitmq-one-node",
    severity=Severity.INFO,
    subject="RabbitMQ",
    what="the cluster has one node",
    why="its disk has the only copy of what was confirmed, and nothing moves while it is down",
    remedy="run three nodes in production",
)


def _listed(names: Sequence[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
