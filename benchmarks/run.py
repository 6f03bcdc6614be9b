"""``python -m benchmarks.run``: measure, verify, print, and say which goals are missed.

The exit status is 0 whatever the figures are, and 1 where a run lost, doubled or reordered a
message or did not come to its end: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.bench import Bench, Options, Outcome, Row, measure
from benchmarks.conditions import as_json, conditions
from benchmarks.lab import Lab
from benchmarks.processes import ChildFailed
from benchmarks.profile import show_profiles
from benchmarks.rows import ROWS
from benchmarks.tables import page, spread, write
from benchmarks.tally import WrongCount
from tests.brokers import ServerFailed, ServerMissing


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the chosen rows."""
    given = _parser().parse_args(arguments)
    if given.list:
        for name, kind in ROWS_BY_NAME.items():
            print(f"{name:24} {kind.title}")
        return 0
    options = _options(given)
    rows = [ROWS_BY_NAME[name]() for name in given.only or _usual()]
    outcomes: list[Outcome] = []
    with Lab() as lab:
        for row in rows:
            outcomes.append(_run(row, Bench(lab, options)))
            _tell(outcomes[-1])
            _write(outcomes, conditions(options, lab.described()), given)
        print(page(outcomes, conditions(options, lab.described())))
    if options.profile is not None:
        show_profiles(options.profile)
    return _status(outcomes)


ROWS_BY_NAME: dict[str, type[Row]] = {row.name: row for row in ROWS}


def _usual() -> list[str]:
    return [name for name, row in ROWS_BY_NAME.items() if not row.by_name_only]


def _run(row: Row, bench: Bench) -> Outcome:
    outcome = Outcome(row, 0)
    try:
        measure(outcome, bench, _say)
    except (WrongCount, ChildFailed, ServerMissing, ServerFailed, RuntimeError) as error:
        # The other rows are worth having, and the exit status tells of this one.
        outcome.failure = f"{type(error).__name__}: {error}"
    return outcome


def _tell(outcome: Outcome) -> None:
    if outcome.failure:
        _say(f"{outcome.row.name} FAILED: {outcome.failure}")
    for verdict in outcome.verdicts():
        word = "met   " if verdict.met else "MISSED"
        _say(f"{word} {outcome.row.name}: {verdict.goal.text}: {spread(verdict.reached)}")


def _write(outcomes: Sequence[Outcome], lines: Sequence[str], given: argparse.Namespace) -> None:
    """After each row, so that a run that is stopped leaves what it has."""
    if given.json is not None:
        given.json.write_text(json.dumps(as_json(outcomes, lines), indent=1) + "\n")
    if given.markdown is not None:
        write(page(outcomes, lines), given.markdown)


def _status(outcomes: Sequence[Outcome]) -> int:
    verdicts = [verdict for outcome in outcomes for verdict in outcome.verdicts()]
    missed = sum(not verdict.met for verdict in verdicts)
    failed = [outcome.row.name for outcome in outcomes if outcome.failure]
    _say(
        f"{len(verdicts)} goals judged, {missed} missed; failed rows: {', '.join(failed) or 'none'}"
    )
    return 1 if failed else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _options(given: argparse.Namespace) -> Options:
    usual = 1 if given.profile else 3 if given.short else 5
    return Options(
        short=given.short,
        repeat=given.repeat or usual,
        count=given.count,
        peers=not given.no_peers,
        contestants=given.contestants,
        profile=given.profile,
    )


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _names(text: str) -> tuple[str, ...]:
    names = _words(text)
    for name in names:
        if name not in ROWS_BY_NAME:
            raise argparse.ArgumentTypeError(
                f"no row {name!r}; there are {', '.join(ROWS_BY_NAME)}"
            )
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    add = parser.add_argument
    add("--list", action="store_true", help="print the rows and end")
    add("--only", type=_names, default=(), metavar="ROW,...", help="these rows, not all")
    add("--short", action="store_true", help="few messages and 3 rounds: seconds a cell")
    add("--repeat", type=int, metavar="N", help="rounds (5; short 3; with a profile 1)")
    add("--count", type=int, metavar="N", help="messages a round, instead of each row's number")
    add("--no-peers", action="store_true", help="raw clients and the library only")
    add("--contestants", type=_words, default=(), metavar="WORD,...",
        help="only those whose name has one of these words in it")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write the results, every round of them")
    add("--markdown", type=Path, metavar="FILE",
        help="write the tables; between the marks where FILE has them")  # fmt: skip
    add("--profile", type=Path, metavar="FOLDER",
        help="run only the library, under py-spy: folded stacks into FOLDER")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
