"""The hash must be Kafka's own, bit by bit: a Java producer has to agree with us."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reliable_mq.partitioning import murmur2, partition_for


# From org.apache.kafka.common.utils.UtilsTest.testMurmur2 (signed there).
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_murmur2_agrees_with_the_vectors_of_kafkas_own_tests(data, expected):
    assert murmur2(data) == expected & 0xFFFFFFFF


def _reference(data: bytes) -> int:
    """Utils.murmur2 of Kafka, line by line, with Java's 32-bit arithmetic spelt out."""
    length, m, r, mask = len(data), 0x5BD1E995, 24, 0xFFFFFFFF
    h = 0x9747B28C ^ length
    for i in range(length // 4):
        j = i * 4
        k = data[j] + (data[j + 1] << 8) + (data[j + 2] << 16) + (data[j + 3] << 24)
        k = (k * m) & mask
        k ^= k >> r
        k = (k * m) & mask
        h = (h * m) & mask
        h ^= k
    rest = length & ~3
    if length % 4 == 3:
        h ^= data[rest + 2] << 16
    if length % 4 >= 2:
        h ^= data[rest + 1] << 8
    if length % 4 >= 1:
        h ^= data[rest]
        h = (h * m) & mask
    h ^= h >> 13
    h = (h * m) & mask
    return h ^ (h >> 15)


@given(st.binary(max_size=64))
def test_murmur2_agrees_with_a_transcription_of_kafkas_source(data):
    assert murmur2(data) == _reference(data)


@given(st.binary(max_size=64), st.integers(min_value=1, max_value=100_000))
def test_a_partition_is_in_range_and_made_positive_by_masking_as_kafka_does(key, partitions):
    partition = partition_for(key, partitions)
    assert 0 <= partition < partitions
    assert partition == (_reference(key) & 0x7FFFFFFF) % partitions


def test_a_negative_hash_is_masked_and_not_negated():
    # abs(-973932308) % 100 is 8; Kafka's toPositive gives 40.
    assert partition_for(b"21", 100) == (-973932308 & 0x7FFFFFFF) % 100 == 40


def test_keys_spread_evenly():
    counts = [0] * 12
    for number in range(12_000):
        counts[partition_for(f"customer-{number}".encode(), 12)] += 1
    assert min(counts) > 850
    assert max(counts) < 1150
