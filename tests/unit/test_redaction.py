"""A canary password is planted in every documented kind of URL and must never come out."""

from __future__ import annotations

import time
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reliable_mq.redaction import is_secret, redact_options, redact_url

CANARY = "CANARY"

# A canary between any characters: what a person puts into a URL without encoding it.
_noise = st.text(st.characters(codec="utf-8"), max_size=12) | st.text(":/?#[]@!$&'()*+,;=% \"<>\n")
_raw = st.builds(lambda before, after: f"{before}{CANARY}{after}", _noise, _noise)
_encoded = _raw.map(lambda password: quote(password, safe=""))
_users = st.sampled_from(["", "app", "app%40corp"])

_USERINFO_SHAPES = [
    "kafka://{user}:{password}@h1:9092",
    "kafka://{user}:{password}@h1,h2:9093,[::1]:9094",
    "kafka+ssl://{user}:{password}@h1:9092/?sasl.mechanism=PLAIN",
    "amqp://{user}:{password}@localhost",
    "amqps://{user}:{password}@localhost:5671/%2Fvhost?heartbeat=10",
    "redis://{user}:{password}@localhost:6379/0",
    "rediss://{user}:{password}@[::1]:6379",
    "redis+sentinel://{user}:{password}@s1:26379,s2/mymaster/0",
    "redis+cluster://{user}:{password}@n1:7000,n2:7001",
    "rocketmq://{user}:{password}@proxy:8081",
    "postgresql+psycopg://{user}:{password}@localhost/app",
    "postgresql+asyncpg://{user}:{password}@/app?host=/run/postgresql",
    "mysql+pymysql://{user}:{password}@localhost:3306/app?charset=utf8mb4",
]
_PER_HOST_SHAPES = [
    "kafka://{user}:{password}@h1:9092,{user}:{password}@h2:9092",
    "amqp://{user}:{password}@h1,{user}:{password}@h2,{user}:{password}@[::1]:5672/vhost",
]
_PARAMETER_SHAPES = [
    "kafka://h1:9092/?sasl.username=u&sasl.password={password}&sasl.mechanism=PLAIN",
    "kafka+ssl://h1,h2/?ssl.key.password={password}",
    "redis://localhost/0?password={password}",
    "redis+sentinel://s1/mymaster?sentinel_password={password}&db=1",
    "postgresql://localhost/app?user=u&password={password}",
    "amqps://localhost/?api_key={password}",
]


@pytest.mark.parametrize("shape", _USERINFO_SHAPES)
@given(user=_users, password=_raw | _encoded)
@example(user="app", password=f"p@{CANARY}")
@example(user="app", password=f"a@b,{CANARY}")
@example(user="app", password=f"a://{CANARY}")
@example(user="app", password=f"{CANARY} and more")
@example(user="app", password=f"?password=x&{CANARY}")
@example(user="app", password=f"{CANARY}?token=x")
def test_no_password_survives_in_the_user_part_of_a_url(shape, user, password):
    assert CANARY not in redact_url(shape.format(user=user, password=password))


@pytest.mark.parametrize("shape", _PER_HOST_SHAPES)
@given(user=_users, password=_raw | _encoded)
def test_no_password_survives_where_every_host_has_its_own(shape, user, password):
    assert CANARY not in redact_url(shape.format(user=user, password=password))


@pytest.mark.parametrize("shape", _PARAMETER_SHAPES)
@given(password=_raw.filter(lambda p: "&" not in p) | _encoded)
@example(password=f"p@{CANARY}")
@example(password=f"a#{CANARY};b")
def test_no_password_survives_in_a_parameter_of_a_url(shape, password):
    assert CANARY not in redact_url(shape.format(password=password))


@pytest.mark.parametrize("name", ["my pass", "ssl.key .password", "pass\tphrase", "p%61ssword"])
@given(password=_raw.filter(lambda p: "&" not in p) | _encoded)
def test_no_password_survives_in_a_parameter_whose_name_is_mistyped(name, password):
    assert CANARY not in redact_url(f"kafka://h1:9092/?linger.ms=5&{name}={password}")


@pytest.mark.parametrize("before", ["u:", ":", "h1:9092,u:", "u:p@h:", "[::1]:", "u:p@h1,h2:"])
@pytest.mark.parametrize("after", ["", "/", "/0?a=b", ",h2:9092", "?x"])
@given(password=_raw.filter(lambda p: "@" not in p) | _encoded)
@example(password=f"{CANARY}/{CANARY}?{CANARY}")
@example(password=f"9/{CANARY}:x")
def test_no_password_survives_where_the_host_after_it_was_forgotten(before, after, password):
    password = password.lstrip("0123456789,/?#")  # what begins like a port is one
    assert CANARY not in redact_url(f"kafka://{before}{password}{after}")


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach amqp://h:5672: timed out",
        "(redis://h:6379)",
        "SASL_SSL://:9092, PLAINTEXT://[::1]:9092.",
        "kafka://h1:9092,h2,[::1]:9092/?a=b:c",
        "see https://h/page:1, sqlite:////C:/x.db",
    ],
)
def test_hosts_and_ports_within_a_text_stay_readable(text):
    assert redact_url(text) == text


@pytest.mark.parametrize("shape", [*_USERINFO_SHAPES, *_PER_HOST_SHAPES, *_PARAMETER_SHAPES])
@given(
    user=_users,
    password=_encoded,
    before=st.sampled_from(
        ["", "OperationalError: ", "cannot reach ", "b'", '"', "(", "<", "=", "x"]
    ),
    after=st.sampled_from(["", ": timed out", "'", '"', ")", ">", "\nmail ops@example.org"]),
)
def test_no_encoded_password_survives_in_a_url_within_a_text(shape, user, password, before, after):
    text = before + shape.format(user=user, password=password) + after
    assert CANARY not in redact_url(text)


@given(st.lists(st.sampled_from(_USERINFO_SHAPES), min_size=2, max_size=4), _encoded)
def test_no_password_survives_where_a_text_holds_several_urls(shapes, password):
    text = "broker " + " and ".join(s.format(user="app", password=password) for s in shapes)
    assert CANARY not in redact_url(text)


@given(_users, _raw, st.sampled_from(_USERINFO_SHAPES))
def test_redacting_twice_changes_nothing_more(user, password, shape):
    once = redact_url(shape.format(user=user, password=password))
    assert redact_url(once) == once


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sql://", "sql://"),
        ("sqlite:///reliable_mq.db", "sqlite:///reliable_mq.db"),
        ("kafka://h1:9092,h2:9092", "kafka://h1:9092,h2:9092"),
        ("amqps://app:pw@mq:5671/v?heartbeat=9", "amqps://app:***@mq:5671/v?heartbeat=9"),
        ("redis://:pw@localhost:6379/0", "redis://:***@localhost:6379/0"),
        ("redis://app@localhost", "redis://app@localhost"),
        ("kafka://u:p@h1:1,h2:2/?a=b", "kafka://u:***@h1:1,h2:2/?a=b"),
        ("kafka://u:p@h1:1,u:p@h2:2", "kafka://u:***@h1:1,u:***@h2:2"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
    ],
)
def test_users_hosts_ports_paths_and_harmless_parameters_stay_readable(url, shown):
    assert redact_url(url) == shown


@given(st.text())
def test_a_text_without_a_url_and_without_parameters_is_left_alone(text):
    if "://" not in text:
        assert redact_url(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        "x://" * 250_000,
        "a:b@" * 250_000,
        "x://" + "a:b@h," * 150_000 + "a:b@h",
        "x://" + "?pass" * 200_000,
        "see x://h " + "&token=" * 150_000,
        "x://h?" + "a b" * 300_000,
        "x://" + "h:1," * 250_000 + "u:p",
    ],
)
def test_a_huge_error_text_is_redacted_in_linear_time(text):
    started = time.process_time()
    redact_url(text)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "name",
    [
        "password",
        "sasl.password",
        "SASL_PASSWORD",
        "sasl.oauthbearer.client.secret",
        "sasl.jaas.config",
        "ssl.key.pem",
        "ssl_keyfile_password",
        "aws_access_key",
        "api-key",
        "ApiKey",
        "token",
        "pwd",
        "credentials",
    ],
)
def test_an_option_whose_name_suggests_a_secret_is_one(name):
    assert is_secret(name)


@pytest.mark.parametrize("name", ["bootstrap.servers", "client.id", "linger.ms", "heartbeat"])
def test_an_option_that_helps_to_find_a_fault_is_no_secret(name):
    assert not is_secret(name)


_plain = st.none() | st.booleans() | st.integers() | st.just("localhost")
_trees = st.recursive(
    _plain | st.just(f"amqp://u:{CANARY}@h") | st.just({"password": CANARY}),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.sampled_from(["a", "b", "sentinels"]), inner, max_size=3)
        | inner.map(lambda value: {"sasl.password": [CANARY, value]})
    ),
)


@given(st.dictionaries(st.sampled_from(["client", "sasl"]), _trees))
@example({"sentinels": [{"password": CANARY}, f"redis://:{CANARY}@h"]})
@example({"hosts": ({"a": ({"password": CANARY},)},)})
def test_no_secret_survives_at_any_depth_of_the_options(options):
    assert CANARY not in repr(redact_options(options))


def test_options_without_secrets_are_shown_as_they_are():
    options = {"linger.ms": 5, "ssl": {"verify": True}, "hosts": ["a", "b"], "none": None}
    assert redact_options(options) == options
