"""Topics and groups: what is accepted, and what the refusal says."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.errors import ConfigurationError
from reliable_mq.names import check_group, check_topic, has_control_characters


@pytest.mark.parametrize("name", ["a", "orders", "Orders.v2", "a-b_c.d", "...", "x" * 249, "0"])
def test_a_topic_of_letters_digits_dot_underscore_and_dash_is_accepted(name):
    assert check_topic(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a b", "a/b", "a\n", "\n", "ä", "a:b", "{x}", "a\x00", "a*", "x" * 250]
)
def test_a_topic_that_some_broker_would_refuse_is_refused(name):
    with pytest.raises(ConfigurationError, match="topic"):
        check_topic(name)


@pytest.mark.parametrize("name", ["a", "_", "_a", "Billing", "a-b_c", "a" * 64])
def test_a_group_that_starts_with_a_letter_or_underscore_is_accepted(name):
    assert check_group(name) == name


@pytest.mark.parametrize("name", ["", "1a", "-a", "a.b", "a b", "a\n", "ä", "a" * 65])
def test_a_group_with_anything_else_is_refused(name):
    with pytest.raises(ConfigurationError, match="group"):
        check_group(name)


@pytest.mark.parametrize("check", [check_topic, check_group])
@pytest.mark.parametrize("value", [None, 1, b"orders", ["orders"]])
def test_a_name_that_is_no_string_is_refused(check, value):
    with pytest.raises(ConfigurationError):
        check(value)


@pytest.mark.parametrize("check", [check_topic, check_group])
def test_the_refusal_of_a_huge_name_is_short_and_names_it(check):
    with pytest.raises(ConfigurationError) as refused:
        check("no way" * 100_000)
    assert len(str(refused.value)) < 300
    assert "no way" in str(refused.value)


def test_the_refusal_of_a_long_topic_names_both_lengths():
    with pytest.raises(ConfigurationError, match=r"250 characters; the limit is 249"):
        check_topic("x" * 250)


_names = st.from_regex(r"[A-Za-z0-9._-]{1,5}", fullmatch=True)
_groups = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,4}", fullmatch=True)


@given(_names.filter(lambda n: n not in {".", ".."}), _groups)
def test_topic_and_group_can_be_read_back_from_a_derived_name(topic, group):
    derived = f"{check_topic(topic)}.{check_group(group)}"
    assert tuple(derived.rsplit(".", 1)) == (topic, group)


@given(st.text())
def test_control_characters_are_the_c0_block_and_del(text):
    assert has_control_characters(text) == bool(re.search(r"[\x00-\x1f\x7f]", text))
