"""A run that lost, doubled or reordered a message is no result."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.arrivals import WARM_UP, latencies
from benchmarks.tally import Tally, WrongCount
from benchmarks.workload import BODY_BYTES, body_of, id_of, key_of, number_in, number_of

ROOT = Path(__file__).resolve().parents[2]


def test_everything_once_and_in_order_is_right():
    Tally.of([0, 1, 2, 3], 4, keys=2).check(ordered=True)


def test_a_lost_message_is_a_wrong_count():
    with pytest.raises(WrongCount, match="1 lost, 0 too many"):
        Tally.of([0, 1, 3], 4).check()


def test_a_doubled_message_is_a_wrong_count():
    with pytest.raises(WrongCount, match="0 lost, 1 too many"):
        Tally.of([0, 1, 2, 2, 3], 4).check()


def test_a_message_that_was_never_published_is_a_wrong_count():
    with pytest.raises(WrongCount, match="0 lost, 1 too many"):
        Tally.of([0, 1, 2, 3, 4], 4).check()


def test_order_counts_within_a_key_only():
    Tally.of([1, 3, 0, 2], 4, keys=2).check(ordered=True)
    with pytest.raises(WrongCount, match="1 out of order"):
        Tally.of([0, 2, 3, 1], 4, keys=2).check(ordered=True)


def test_a_body_is_json_of_the_stated_size_and_tells_its_number():
    body = body_of(4321, 1000)
    assert len(body) == BODY_BYTES
    assert int(json.loads(body)["n"]) == number_of(body) == number_in(b"\x89BIN" + body) == 4321
    assert json.loads(body)["customer"] == key_of(4321, 1000) == "customer-321"


def test_ids_differ_and_rise():
    ids = [id_of(n) for n in range(300)]
    assert sorted(set(ids)) == ids


def test_latencies_are_those_after_the_warm_up():
    left = [1_000_000 * n for n in range(WARM_UP + 2)]
    slow = [(n, at + 900_000_000) for n, at in enumerate(left[:WARM_UP])]
    quick = [(WARM_UP, left[-2] + 2_000_000), (WARM_UP + 1, left[-1] + 4_000_000)]
    found = latencies(left, [*slow, *quick])
    assert (found["p50_ms"], found["p99_ms"], found["count"]) == (2.0, 4.0, 2)


def test_a_message_that_never_arrived_is_a_wrong_count():
    with pytest.raises(WrongCount, match="1 lost"):
        latencies([0, 0], [(0, 1)])


def test_the_smallest_row_runs_on_sqlite(tmp_path: Path):
    # By its module, so with the checkout's library: what is tested here is the harness.
    results = tmp_path / "results.json"
    options = ["--only", "publish", "--contestants", "SQLite", "--repeat", "1", "--count", "100"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", *options, "--json", str(results)],
        check=False,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(results.read_text())["rows"]
    assert [one["count"] for one in row["samples"]["ours SQLite ORM"]] == [100]
    assert {goal["goal"] for goal in row["goals"]} == {
        "ours SQLite ORM kept >= 0.88",
        "ours SQLite ORM five_to_one <= 1.35",
    }
    assert "| publish | ours SQLite ORM kept >= 0.88 |" in done.stdout
