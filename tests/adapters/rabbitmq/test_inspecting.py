"""Each thing that ``inspect`` looks for, on a broker where it is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from reliable_mq.adapter import SENT, Adapter, Finding, GroupSpec, Severity, TopicSpec
from reliable_mq.testing.contract.messages import numbered
from reliable_mq.testing.contract.waiting import wait_for
from reliable_mq_rabbitmq import limits
from reliable_mq_rabbitmq.inspection import Inspection, plain_text_findings
from reliable_mq_rabbitmq.options import parse
from tests.adapters.rabbitmq.conftest import GROUP, Broker
from tests.adapters.rabbitmq.foreign import channel
from tests.brokers import RabbitMQ
from tests.conftest import OwnServer

Declare = Callable[..., str]
Opened = Callable[..., Adapter]

ORDERS = TopicSpec(name="orders")
BILLING = GroupSpec(topic="orders", group=GROUP)


@pytest.fixture
def management(broker: Broker) -> str:
    """The option of the URL that names the management API."""
    return f"?management=http://127.0.0.1:{broker.node.port('management')}"


@pytest.fixture
def adapter(opened: Opened, management: str) -> Adapter:
    """An adapter that may ask the management API, as the broker's only user."""
    return opened(query=management)


@pytest.fixture
def policy(broker: Broker) -> Callable[..., None]:
    """Sets the policy ``spoiler`` on the queues of the virtual host, or on its exchanges."""

    def put(apply_to: str = "queues", kind: str = "policies", **definition: Any) -> None:
        named = {name.replace("_", "-"): value for name, value in definition.items()}
        body = {"pattern": "^orders", "apply-to": apply_to, "definition": named}
        broker.api("PUT", f"/{kind}/{{vhost}}/spoiler", body)
        wait_for(lambda: "spoiler" in applied(apply_to), "the policy to apply")

    def applied(to: str) -> set[str]:
        found = broker.api("GET", f"/{to}/{{vhost}}")
        return {one.get("policy") or one.get("operator_policy") for one in found}

    return put


def serious(adapter: Adapter) -> list[Finding]:
    findings = adapter.inspect()
    assert all(one.code and one.subject and one.what and one.why and one.remedy for one in findings)
    return [one for one in findings if one.severity is not Severity.INFO]


def found(adapter: Adapter) -> Finding:
    (finding,) = serious(adapter)
    return finding


def test_nothing_is_wrong_with_what_was_declared(adapter: Adapter, declare: Declare) -> None:
    declare(partitions=2, ordered=True)
    declare("other")
    declare("other.billing.dlq", groups=(), catch_all=True)
    assert [(one.severity, one.what) for one in adapter.inspect()] == [
        (Severity.INFO, "the cluster has one node")
    ]


def test_without_the_management_api_it_says_that_policies_were_not_checked(
    opened: Opened, declare: Declare
) -> None:
    declare()
    (finding,) = opened().inspect()
    assert finding.severity is Severity.INFO
    assert "policies" in finding.what
    assert "management=" in finding.remedy


def test_what_is_missing_and_what_is_different_is_seen_over_amqp(
    opened: Opened, rabbitmq_url: str, topics: dict[str, TopicSpec]
) -> None:
    adapter = opened()
    for name in ("deleted", "classic", "resized"):
        topics[name] = TopicSpec(name=name)
        adapter.declare([topics[name]], [GroupSpec(topic=name, group=GROUP)])
    with channel(rabbitmq_url) as plain:
        plain.queue_delete("deleted.billing")
        plain.queue_delete("classic.billing")
        plain.queue_declare("classic.billing", durable=True)
    topics["resized"] = TopicSpec(name="resized", partitions=4)
    topics["undeclared"] = TopicSpec(name="undeclared")
    findings = serious(adapter)
    assert {one.severity for one in findings} == {Severity.ERROR}
    texts = sorted(f"{one.subject}: {one.what}" for one in findings)
    assert len(texts) == 4
    assert "classic" in texts[0]
    assert "'deleted.billing'" in texts[1]
    assert "exist for 1 partitions, 4 are named" in texts[2]
    assert "'undeclared'" in texts[3]


def test_a_group_that_is_only_subscribed_to_is_looked_at_too(adapter: Adapter) -> None:
    adapter.declare([ORDERS], [])
    subscription = adapter.subscribe(["orders"], "late", prefetch=1, ordered=False)
    assert any("'orders.late'" in one.what for one in serious(adapter))
    subscription.close()


@pytest.mark.parametrize("with_management", [True, False])
def test_the_groups_of_the_application_are_looked_at_though_nothing_was_declared(
    adapter: Adapter, opened: Opened, management: str, *, with_management: bool
) -> None:
    adapter.declare([ORDERS], [BILLING])
    groups = [
        GroupSpec(topic="orders", group=GROUP, ordered=True),
        GroupSpec(topic="orders", group="audit"),
    ]
    doctor = opened(query=management if with_management else "", groups=groups)
    texts = sorted(f"{one.subject} {one.what}" for one in serious(doctor))
    assert "'orders.audit'" in texts[0]
    assert all("'billing'" in text for text in texts[1:])
    assert "x-single-active-consumer" in texts[-1]
    assert len(texts) == 2 + with_management


def test_partitions_that_nobody_named_are_those_that_exist(
    adapter: Adapter, opened: Opened, management: str
) -> None:
    adapter.declare([TopicSpec(name="orders", partitions=3)], [BILLING])
    assert serious(opened(query=management, topics={"orders": ORDERS})) == []
    named_one = opened(query=management, topics={"orders": ORDERS}, groups=[BILLING])
    assert {one.severity for one in serious(named_one)} == {Severity.ERROR}


def test_an_exchange_of_another_kind_is_an_error(
    opened: Opened, management: str, topics: dict[str, TopicSpec], rabbitmq_url: str
) -> None:
    topics["orders"] = ORDERS
    with channel(rabbitmq_url) as plain:
        plain.exchange_declare("orders", "fanout", durable=False)
        plain.queue_declare("orders.x", durable=True, arguments={"x-queue-type": "quorum"})
        plain.queue_bind("orders.x", "orders", "#")
    for query in ("", management):
        kinds = [one for one in serious(opened(query=query)) if one.subject == "topic 'orders'"]
        assert {one.code for one in kinds} == {"rabbitmq-exchange-kind"}
        assert {one.severity for one in kinds} == {Severity.ERROR}
        assert any("fanout" in one.what for one in kinds)


# --- policies -----------------------------------------------------------------------------------

DROPPING: list[dict[str, Any]] = [
    {"message_ttl": 60_000},
    {"expires": 600_000},
    {"max_length": 1000},
    {"max_length": 1000, "overflow": "drop-head"},
    {"max_length_bytes": 1_000_000},
    {"delivery_limit": 3},
]


@pytest.mark.parametrize("definition", DROPPING, ids=str)
@pytest.mark.parametrize("kind", ["policies", "operator-policies"])
def test_a_policy_that_drops_messages_is_an_error(
    adapter: Adapter,
    declare: Declare,
    policy: Callable[..., None],
    definition: dict[str, Any],
    kind: str,
) -> None:
    if kind == "operator-policies":
        definition = {name: value for name, value in definition.items() if name != "overflow"}
    declare()
    policy(kind=kind, **definition)
    finding = found(adapter)
    assert finding.severity is Severity.ERROR
    assert finding.subject == "queue 'orders.billing'"
    setting = next(iter(definition)).replace("_", "-")
    assert f"{setting}={next(iter(definition.values()))}" in finding.what
    assert "'spoiler'" in finding.what


def test_an_overflow_that_quorum_queues_do_not_know_is_an_error_because_they_drop(
    adapter: Adapter, declare: Declare, policy: Callable[..., None]
) -> None:
    topic = declare()
    policy(max_length=3, overflow="reject-publish-dlx")
    assert adapter.publish(numbered(topic, range(10)), 30.0) == [SENT] * 10
    wait_for(lambda: adapter.lag(topic, GROUP) <= 3, "the loss of what was confirmed")
    assert (found(adapter).code, found(adapter).severity) == ("rabbitmq-max-length", Severity.ERROR)


def test_a_policy_that_dead_letters_is_a_warning(
    adapter: Adapter, declare: Declare, policy: Callable[..., None]
) -> None:
    declare()
    policy(dead_letter_exchange="graveyard")
    assert found(adapter).severity is Severity.WARNING
    assert "graveyard" in found(adapter).what


@pytest.mark.parametrize(
    "definition",
    [
        {"max_length": 1000, "overflow": "reject-publish"},
        {"max_length_bytes": 1000, "overflow": "reject-publish"},
        {"delivery_limit": 2147483647},
        {"max_in_memory_length": 10},
    ],
    ids=str,
)
def test_a_policy_that_drops_nothing_is_fine(
    adapter: Adapter,
    declare: Declare,
    policy: Callable[..., None],
    definition: dict[str, Any],
) -> None:
    declare()
    policy(**definition)
    assert serious(adapter) == []


def test_the_queue_of_a_dead_letter_topic_is_looked_at_too(
    adapter: Adapter, declare: Declare, policy: Callable[..., None]
) -> None:
    declare("orders.billing.dlq", groups=(), catch_all=True)
    policy(message_ttl=1000)
    assert found(adapter).subject == "queue 'orders.billing.dlq'"


def test_an_alternate_exchange_by_a_policy_is_an_error(
    adapter: Adapter, declare: Declare, policy: Callable[..., None]
) -> None:
    declare()
    policy("exchanges", alternate_exchange="elsewhere")
    finding = found(adapter)
    assert finding.severity is Severity.ERROR
    assert "'elsewhere'" in finding.what
    assert "'spoiler'" in finding.remedy


def test_an_alternate_exchange_of_the_exchange_itself_is_an_error(
    adapter: Adapter, topics: dict[str, TopicSpec], rabbitmq_url: str
) -> None:
    topics["orders"] = ORDERS
    with channel(rabbitmq_url) as plain:
        arguments = {"alternate-exchange": "elsewhere"}
        plain.exchange_declare("orders", "topic", durable=True, arguments=arguments)
        plain.queue_declare("orders.x", durable=True, arguments={"x-queue-type": "quorum"})
        plain.queue_bind("orders.x", "orders", "#")
    assert "'elsewhere'" in found(adapter).what


@pytest.mark.parametrize(
    ("version", "arguments", "limits_found"),
    [
        (3, {}, []),
        (3, {"x-delivery-limit": -1}, ["-1 by its arguments"]),
        (4, {}, ["20 by the broker's default"]),
        (4, {"x-delivery-limit": -1}, []),
        (4, {"x-delivery-limit": 0}, ["0 by its arguments"]),
        (4, {"x-delivery-limit": 2147483647}, []),
    ],
)
def test_a_delivery_limit_means_what_the_version_of_the_broker_makes_of_it(
    version: int, arguments: dict[str, Any], limits_found: list[str]
) -> None:
    queue = {"name": "orders.billing", "type": "quorum", "arguments": arguments}
    whats = [one.what for one in limits.drops(queue, version)]
    assert whats == [f"it has delivery-limit={limit}" for limit in limits_found]


@pytest.mark.parametrize(
    ("members", "online", "nodes", "expected"),
    [
        ("abc", "abc", 3, []),
        ("abc", "ab", 3, []),
        ("abc", "a", 3, ["rabbitmq-no-majority"]),
        ("ab", "a", 2, ["rabbitmq-no-majority"]),
        ("ab", "ab", 2, []),
        ("ab", "ab", 3, ["rabbitmq-few-replicas"]),
        ("a", "a", 0, []),
        ("a", "", 5, ["rabbitmq-no-majority", "rabbitmq-few-replicas"]),
    ],
)
def test_replicas_that_are_away_and_replicas_that_were_never_made_are_told_apart(
    members: str, online: str, nodes: int, expected: list[str]
) -> None:
    queue = {"name": "orders.billing", "members": [*members], "online": [*online]}
    assert [one.code for one in limits.replicas(queue, nodes)] == expected


# --- queues of other services -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"durable": True}, "'classic'"),
        ({"durable": False}, "not durable"),
        ({"durable": True, "auto_delete": True}, "auto_delete"),
        (
            {"durable": True, "arguments": {"x-queue-type": "quorum", "x-message-ttl": 1000}},
            "message-ttl=1000 by its arguments",
        ),
        (
            {"durable": True, "arguments": {"x-queue-type": "quorum", "x-delivery-limit": 5}},
            "delivery-limit=5 by its arguments",
        ),
    ],
)
def test_a_queue_that_another_service_made_is_looked_at_too(
    adapter: Adapter,
    declare: Declare,
    rabbitmq_url: str,
    options: dict[str, Any],
    words: str,
) -> None:
    declare()
    with channel(rabbitmq_url) as plain:
        plain.queue_declare("orders.theirs", **options)
        plain.queue_bind("orders.theirs", "orders", "#")
        finding = found(adapter)
    assert finding.severity is Severity.ERROR
    assert finding.subject == "queue 'orders.theirs'"
    assert words in finding.what


def test_a_queue_under_another_name_is_not_ours_to_judge(
    adapter: Adapter, declare: Declare, rabbitmq_url: str
) -> None:
    declare()
    with channel(rabbitmq_url) as plain:
        plain.queue_declare("tap", durable=False, auto_delete=True)
        plain.queue_bind("tap", "orders", "#")
        assert serious(adapter) == []


# --- routes -------------------------------------------------------------------------------------


def test_a_topic_without_any_queue_is_a_warning(adapter: Adapter, declare: Declare) -> None:
    declare(groups=())
    finding = found(adapter)
    assert (finding.severity, finding.subject) == (Severity.WARNING, "topic 'orders'")
    assert "unroutable" in finding.why


def test_a_publisher_with_another_number_of_partitions_is_told(
    opened: Opened, broker: Broker, adapter: Adapter
) -> None:
    adapter.declare([TopicSpec(name="orders", partitions=2)], [BILLING])
    port = broker.node.port("management")
    publisher = opened(
        query=f"?management=http://127.0.0.1:{port}",
        topics={"orders": TopicSpec(name="orders", partitions=3)},
    )
    finding = found(publisher)
    assert finding.severity is Severity.ERROR
    assert "'p.3.0', 'p.3.1', 'p.3.2'" in finding.what


def test_a_group_whose_binding_is_gone_is_found_though_another_group_gets_the_messages(
    adapter: Adapter, declare: Declare, rabbitmq_url: str
) -> None:
    declare(groups=("billing", "audit"))
    with channel(rabbitmq_url) as plain:
        plain.queue_unbind("orders.billing", "orders", "#")
    finding = found(adapter)
    assert finding.severity is Severity.ERROR
    assert finding.subject == "group 'billing' of topic 'orders'"
    assert "'orders.billing'" in finding.what
    declare(groups=("billing", "audit"))
    assert serious(adapter) == []


# --- the broker ---------------------------------------------------------------------------------


def test_an_alarm_is_a_warning(own_server: OwnServer, opened: Opened) -> None:
    server = own_server("rabbitmq")
    assert isinstance(server, RabbitMQ)
    adapter = opened(f"{server.url}?management=http://127.0.0.1:{server.port('management')}")
    server.control("set_disk_free_limit", "900GB")
    (finding,) = wait_for(lambda: serious(adapter), "a finding")
    assert finding.severity is Severity.WARNING
    assert "alarm" in finding.what
    assert "disk" in finding.what


@pytest.mark.parametrize(("version", "codes"), [("3.7.28", ["rabbitmq-version"]), ("3.8.0", [])])
def test_a_version_without_quorum_queues_is_an_error(version: str, codes: list[str]) -> None:
    client = SimpleNamespace(server_properties={"version": version})
    connection: Any = SimpleNamespace(opened=lambda: client)
    found = [*Inspection(connection, parse("amqp://localhost", {})).findings({}, [])]
    errors = [one for one in found if one.severity is Severity.ERROR]
    assert [one.code for one in errors] == codes


# --- what the page says -------------------------------------------------------------------------


def test_every_finding_is_described_and_nothing_else() -> None:
    root = Path(__file__).parents[3]
    cells = re.findall(r"^\| (`rabbitmq-[^|]+) \|", (root / "docs/brokers.md").read_text(), re.M)
    described = {code for cell in cells for code in re.findall(r"`([a-z-]+)`", cell)}
    sources = (root / "adapters/reliable_mq_rabbitmq").glob("*.py")
    existing = {
        code
        for source in sources
        for code in re.findall(r'"(rabbitmq-[a-z-]+)"', source.read_text())
    }
    assert described == existing | {f"rabbitmq-{rule.name}" for rule in limits._RULES}


# --- asking the management API ------------------------------------------------------------------


def test_a_user_without_the_tag_monitoring_cannot_see_the_nodes_but_all_else(
    broker: Broker, opened: Opened, declare: Declare, policy: Callable[..., None]
) -> None:
    declare()
    policy(message_ttl=1000)
    user = f"looker-{broker.vhost}"
    broker.api("PUT", f"/users/{user}", {"password": "pw", "tags": "management"})
    broker.api("PUT", f"/permissions/{{vhost}}/{user}", {"configure": "", "write": "", "read": ""})
    place = f"http://127.0.0.1:{broker.node.port('management')}"
    adapter = opened(query=f"?management={place}&management_user={user}&management_password=pw")
    whats = [one.what for one in adapter.inspect()]
    assert any("message-ttl" in what for what in whats)
    assert any("nodes of the cluster were not looked at" in what for what in whats)
    broker.api("DELETE", f"/users/{user}")


@pytest.mark.parametrize(
    ("place", "credentials"),
    [
        ("http://127.0.0.1:1", ""),
        ("https://127.0.0.1:{port}", ""),
        ("http://127.0.0.1:{port}/elsewhere", ""),
        ("http://127.0.0.1:{port}", "&management_user=guest&management_password=sesame-open"),
    ],
    ids=["nobody there", "no TLS there", "something else there", "wrong password"],
)
def test_an_api_that_cannot_be_asked_is_a_warning_without_secrets(
    broker: Broker, opened: Opened, declare: Declare, place: str, credentials: str
) -> None:
    declare()
    where = place.format(port=broker.node.port("management"))
    adapter = opened(query=f"?management={where}{credentials}")
    finding = found(adapter)
    assert finding.severity is Severity.WARNING
    assert "could not be asked" in finding.what
    assert "sesame" not in str(finding)


def test_one_living_host_of_the_api_among_dead_ones_is_enough(
    broker: Broker, opened: Opened, declare: Declare
) -> None:
    declare()
    port = broker.node.port("management")
    assert serious(opened(query=f"?management=http://127.0.0.1:1,127.0.0.1:{port}")) == []


def test_a_password_that_travels_as_plain_text_is_a_warning() -> None:
    (finding,) = plain_text_findings(parse("amqp://localhost,broker.example", {}))
    assert finding.severity is Severity.WARNING
    assert "broker.example" in finding.what
    (finding,) = plain_text_findings(parse("amqp://localhost?management=http://h.example", {}))
    assert "http://" in finding.what
    assert "h.example" in finding.what
    assert list(plain_text_findings(parse("amqps://h?management=https://h", {}))) == []
    assert list(plain_text_findings(parse("amqp://localhost,127.0.0.2,[::1]", {}))) == []
