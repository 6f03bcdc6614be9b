"""Statistics, goals, tables: what is printed follows from what was measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench import Bench, Contestant, Options, Outcome, Row, measure, rated
from benchmarks.goals import at_least, at_most
from benchmarks.lab import Lab
from benchmarks.profile import hottest
from benchmarks.progress import together
from benchmarks.spread import Spread, percentile, ratios
from benchmarks.tables import BEGIN, END, goals_table, page, write
from benchmarks.tally import WrongCount


def test_a_spread_is_the_median_between_the_lowest_and_the_highest():
    assert Spread.of([5.0, 1.0, 100.0]) == Spread(5.0, 1.0, 100.0)


def test_ratios_are_taken_within_each_round():
    assert ratios([10.0, 40.0], [20.0, 40.0]) == [0.5, 1.0]


def test_ratios_of_unequally_many_rounds_are_refused():
    with pytest.raises(ValueError, match="argument 2"):
        ratios([10.0], [20.0, 40.0])


@pytest.mark.parametrize(("part", "value"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1)])
def test_a_percentile_is_a_value_that_was_measured(part, value):
    assert percentile(range(100, 0, -1), part) == value


def samples(**rates: list[float]) -> dict[str, Any]:
    return {name: [{"rate": one} for one in values] for name, values in rates.items()}


def test_a_goal_is_judged_by_the_median_of_the_rounds_ratios():
    verdict = at_least(0.5, "ours", "raw").judge(samples(ours=[9, 60, 6], raw=[10, 100, 10]))
    assert verdict is not None
    assert verdict.reached == Spread(0.6, 0.6, 0.9)
    assert verdict.met


def test_a_lower_bound_is_missed_below_it_and_an_upper_one_above_it():
    found = samples(ours=[1.0], raw=[2.0])
    low, high = at_least(0.6, "ours", "raw").judge(found), at_most(0.4, "ours", "raw").judge(found)
    assert low is not None
    assert high is not None
    assert not low.met
    assert not high.met


def test_a_bound_itself_is_good_enough():
    found = samples(ours=[1.0], raw=[2.0])
    low, high = at_least(0.5, "ours", "raw").judge(found), at_most(0.5, "ours", "raw").judge(found)
    assert low is not None
    assert high is not None
    assert low.met
    assert high.met


def test_a_goal_beside_somebody_who_did_not_take_part_is_not_judged():
    assert at_least(2, "ours", "peer").judge(samples(ours=[1.0])) is None


def test_the_rate_and_the_processor_time_are_of_one_message():
    figures = rated({"count": 200, "seconds": 2.0, "cpu_seconds": 0.5})
    assert (figures["rate"], figures["cpu_us"]) == (100, 2500)


def test_processes_that_overlap_are_rated_from_the_first_beginning_to_the_last_end():
    found = together(
        [
            {"begun": 10.0, "ended": 12.0, "between": 300, "all": 310, "rss_mb": 1.0},
            {"begun": 11.0, "ended": 14.0, "between": 500, "all": 520, "rss_mb": 3.0},
            {"begun": 0.0, "ended": 0.0, "between": 0, "all": 0, "rss_mb": 2.0},
        ]
    )
    assert found == {"count": 830, "rate": 200.0, "cost_us": 5000.0, "rss_mb": 3.0}


class _Row(Row):
    name = "example"
    title = "an example"
    count, short_count = 1000, 100
    goals = (at_least(0.5, "ours", "raw"),)

    def __init__(self, contestants: list[Contestant]) -> None:
        self._contestants = contestants

    @contextmanager
    def open(self, bench: Bench, count: int) -> Iterator[list[Contestant]]:
        yield self._contestants


def outcome_of(contestants: list[Contestant], **options: Any) -> Outcome:
    outcome = Outcome(_Row(contestants), 0)
    measure(outcome, Bench(Lab(), Options(**options)), lambda line: None)
    return outcome


def test_contestants_take_turns_round_after_round():
    turns: list[tuple[str, int]] = []

    def contestant(name: str, share: float = 1.0) -> Contestant:
        def take(count: int) -> dict[str, float]:
            turns.append((name, count))
            return {"rate": 1.0}

        return Contestant(name=name, measure=take, share=share)

    outcome_of([contestant("raw"), contestant("ours"), contestant("peer", 0.25)], repeat=2)
    assert turns == [("raw", 1000), ("ours", 1000), ("peer", 250)] * 2


def test_a_peer_that_is_missing_is_named_and_not_measured():
    def never(count: int) -> dict[str, float]:
        raise AssertionError("was measured")

    outcome = outcome_of([Contestant(name="peer", measure=never, missing="not there")], repeat=1)
    assert outcome.samples == {}
    assert "- peer: not measured, not there" in page([outcome], [])


def test_a_wrong_count_ends_the_row():
    def lose(count: int) -> dict[str, float]:
        raise WrongCount("1 lost")

    with pytest.raises(WrongCount):
        outcome_of([Contestant(name="ours", measure=lose)], repeat=3)


def test_the_table_of_goals_says_what_is_missed():
    outcome = Outcome(_Row([]), 1000, samples(ours=[1.0, 2.0], raw=[10.0, 10.0]))
    assert goals_table([outcome])[2:] == [
        "| example | ours / raw >= 0.5 | 0.15 (0.10 to 0.20) | **missed** |"
    ]


def test_a_goal_that_is_missed_by_a_hair_does_not_look_met():
    outcome = Outcome(_Row([]), 1000, samples(ours=[4.97, 4.98], raw=[10.0, 10.0]))
    assert goals_table([outcome])[2:] == [
        "| example | ours / raw >= 0.5 | 0.4975 (0.50 to 0.50) | **missed** |"
    ]


def test_results_are_written_between_the_marks_of_a_page(tmp_path: Path):
    path = tmp_path / "page.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write("new", path)
    write("newer", path)
    assert path.read_text() == f"before\n{BEGIN}\n\nnewer\n{END}\nafter\n"


def test_a_file_without_marks_is_written_as_a_whole(tmp_path: Path):
    path = tmp_path / "page.md"
    write("new", path)
    assert path.read_text() == "new"


def test_a_profile_leaves_imports_out():
    folded = "main;work 3\nmain;_find (<frozen importlib._bootstrap>);body 9\nmain;work;inner 1\n"
    total, own, with_callees = hottest(folded)
    assert (total, own, with_callees["main"]) == (4, {"work": 3, "inner": 1}, 4)
