"""Who a member is for its group, as the client's metadata tell it."""

from __future__ import annotations

import struct

import pytest

from reliable_mq.errors import ConfigurationError
from reliable_mq_kafka.membership import Membership, membership


def described(generation: int, member: str, group: str = "billing", rest: bytes = b"\0") -> bytes:
    head = b"CGMDv2:" + struct.pack("=i", generation)
    return head + group.encode() + b"\0" + member.encode() + b"\0" + rest


def test_the_clients_group_metadata_tell_generation_and_member() -> None:
    data = described(7, "reliable-mq-1234")
    assert membership(data) == Membership(data, 7, "reliable-mq-1234")
    assert membership(data).is_valid
    assert membership(described(3, "m", rest=b"\1web-1\0")).member == "m"


@pytest.mark.parametrize(("generation", "member"), [(-1, ""), (-1, "m"), (4, "")])
def test_whoever_is_in_no_generation_is_no_member(generation: int, member: str) -> None:
    # The brokers take the offsets of such a one without a look.
    assert not membership(described(generation, member)).is_valid


@pytest.mark.parametrize("data", [b"", b"CGMDv3:\0\0\0\0g\0m\0", described(1, "m")[1:]])
def test_metadata_of_an_unknown_form_are_an_error(data: bytes) -> None:
    with pytest.raises(ConfigurationError, match="exactly-once"):
        membership(data)


@pytest.mark.parametrize("end", [7, 9, 12, 20])
def test_metadata_that_end_early_are_an_error(end: int) -> None:
    with pytest.raises(ConfigurationError, match="exactly-once"):
        membership(described(1, "member")[:end])
