"""A pytest plugin: what each adapter passes of the contract suite, as a table.

    pytest -p reliable_mq.testing.matrix --contract-matrix contract.md

writes the table to ``contract.md`` and prints it; ``-`` only prints it. A row is a case of
:class:`reliable_mq.testing.contract.AdapterContract`, a column an adapter
(``ContractBase.column``). A cell says ``pass``; or which capability the adapter does not declare;
or why there is nothing to test (``ContractBase.without``); or that it failed; or ``not run``: the
hook is missing, or the case was not selected. Works with pytest-xdist.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from reliable_mq.testing.contract import AdapterContract, ContractBase

__all__ = ["Case", "Matrix", "cases"]

_LACKS = {
    "durable": "messages do not outlive the process",
    "log": "members of an unordered group compete for single messages; no partition is owned",
    "detects_unroutable": "a publish to a topic that nobody declared is not noticed",
    "stable_position": "a foreign message without an id has no lasting place to be known by",
    "raw_headers": "duplicate header names and values that are no text do not survive",
    "transactions": "messages and acknowledgements are not stored in one step",
    "retains": "a group receives what is published from its declaration on, nothing older",
}
_MISSING_CAPABILITY = re.compile(r"capability (\w+) not declared")
_MISSING_HOOK = re.compile(r"hook (\w+) not given")
_BEST_FIRST = ("pass", "lacks", "without", "not run", "failed")


class Case(NamedTuple):
    """A row: the part of the contract, and what is promised."""

    part: str
    promise: str


class Cell(NamedTuple):
    """What became of a case: one of ``_BEST_FIRST``, with the capability or the reason."""

    state: str
    note: str = ""

    def text(self, notes: list[str]) -> str:
        """Return the cell; a reason goes to *notes*, and the cell has its number."""
        if self.state == "lacks":
            return f"no `{self.note}`"
        if self.state != "without":
            return self.state
        if self.note not in notes:
            notes.append(self.note)
        return f"n/a ({notes.index(self.note) + 1})"


def cases(suite: type[ContractBase] = AdapterContract) -> list[Case]:
    """Return the cases of *suite* in their order."""
    return [
        Case(_part(owner), _promise(name))
        for owner in suite.__mro__
        if issubclass(owner, ContractBase)
        for name in vars(owner)
        if name.startswith("test_")
    ]


def _part(owner: type) -> str:
    return owner.__name__.removesuffix("Contract")


def _promise(name: str) -> str:
    return name.removeprefix("test_").replace("_", " ")


class Matrix:
    """Collects the outcomes of the tests and turns them into a table."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, Case], dict[str, Cell]] = {}

    @property
    def columns(self) -> list[str]:
        """The adapters by name."""
        return sorted({column for column, _ in self._cells})

    def note(self, column: str, case: Case, variant: str, cell: Cell) -> None:
        """Take one outcome in.

        Of several classes with one column the best outcome counts, but a failure always.
        """
        variants = self._cells.setdefault((column, case), {})
        before = variants.get(variant, cell)
        failed = "failed" in (before.state, cell.state)
        variants[variant] = (max if failed else min)(before, cell, key=_rank)

    def cell(self, column: str, case: Case) -> Cell:
        """Return what became of *case*: of its variants, the worst."""
        variants = self._cells.get((column, case), {"": Cell("not run")})
        return max(variants.values(), key=_rank)

    def markdown(self) -> str:
        """Return the table, a part of the contract at a time, and the explanations."""
        known = dict.fromkeys([*cases(), *(case for _, case in self._cells)])
        notes: list[str] = []
        lines = [line for part in _parts(known) for line in self._section(part, known, notes)]
        return "\n".join([*lines, *self._legend(notes)]) + "\n"

    def _section(self, part: str, known: Iterable[Case], notes: list[str]) -> list[str]:
        rows = [case for case in known if case.part == part]
        lines = [f"## {part}", "", _row("", self.columns), _row("---", ["---"] * len(self.columns))]
        for case in rows:
            cells = [self.cell(column, case).text(notes) for column in self.columns]
            lines.append(_row(case.promise, cells))
        return [*lines, ""]

    def _legend(self, notes: list[str]) -> list[str]:
        lacking = {
            cell.note
            for variants in self._cells.values()
            for cell in variants.values()
            if cell.state == "lacks"
        }
        lines = ["## What is missing", ""]
        lines += [f"- no `{name}`: {_LACKS.get(name, name)}" for name in sorted(lacking)]
        lines += [f"- n/a ({number}): {note}" for number, note in enumerate(notes, 1)]
        return lines if lacking or notes else [*lines, "Nothing."]


def _rank(cell: Cell) -> int:
    return _BEST_FIRST.index(cell.state)


def _parts(known: Iterable[Case]) -> list[str]:
    return list(dict.fromkeys(case.part for case in known))


def _row(first: str, rest: Iterable[str]) -> str:
    return f"| {' | '.join([first, *rest])} |"


# --- pytest ---------------------------------------------------------------------------------------


class _Reporter(Protocol):
    """What is used of pytest's own reporter."""

    def section(self, title: str) -> None: ...

    def write_line(self, line: str) -> None: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.getgroup("reliable_mq").addoption(
        "--contract-matrix",
        metavar="FILE",
        help="write what each adapter passes of the contract suite to FILE as Markdown, and "
        "print it (-: print only)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Begin to collect, where the option is given."""
    file = config.getoption("--contract-matrix")
    if file:
        config.pluginmanager.register(_Collector(file), "reliable_mq.contract_matrix")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note on the report of a contract test which cell it belongs to."""
    report = yield
    owner = getattr(item, "cls", None)
    if isinstance(owner, type) and issubclass(owner, ContractBase):
        # A plain value: it travels from the workers of pytest-xdist.
        report.contract = _told(item, owner, report)  # type: ignore[attr-defined]
    return report


def _told(
    item: pytest.Item, owner: type[ContractBase], report: pytest.TestReport
) -> list[str] | None:
    cell = _cell(report, owner.without)
    if cell is None:
        return None
    name: str = getattr(item, "originalname", item.name)
    # Where it was promised first: a subclass may have its own way of testing it.
    part = [_part(base) for base in owner.__mro__ if name in vars(base)][-1]
    column = owner.column or owner.__name__.removeprefix("Test").removesuffix("Contract")
    variant = item.name.removeprefix(name)
    return [column, part, _promise(name), variant, *cell]


def _cell(report: pytest.TestReport, without: Mapping[str, str]) -> Cell | None:
    """Return the outcome; None for a phase that says nothing (a set-up that went well)."""
    if report.failed:
        return Cell("failed")
    if report.passed:
        return Cell("pass") if report.when == "call" else None
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
    if found := _MISSING_CAPABILITY.search(reason):
        return Cell("lacks", found[1])
    found = _MISSING_HOOK.search(reason)
    if found and found[1] in without:
        return Cell("without", without[found[1]])
    return Cell("not run")


class _Collector:
    """Runs where the whole result is known: in pytest itself, not in a worker of pytest-xdist."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._matrix = Matrix()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Take the outcome in."""
        told: list[str] | None = getattr(report, "contract", None)
        if told is not None:
            column, part, promise, variant, state, note = told
            self._matrix.note(column, Case(part, promise), variant, Cell(state, note))

    def pytest_terminal_summary(self, terminalreporter: _Reporter, config: Any) -> None:
        """Print the table, and write it."""
        if hasattr(config, "workerinput"):
            return
        table = self._matrix.markdown()
        terminalreporter.section("contract matrix")
        for line in table.splitlines():
            terminalreporter.write_line(line)
        if self._file != "-":
            Path(self._file).write_text(_HEAD + table, encoding="utf-8")


_HEAD = """\
# What each adapter keeps

Written by a run of the contract suite with `--contract-matrix`, not by hand. A row is a promise
that was put to the test on the real broker. `pass`: kept. `no ...`: the adapter declares that its
broker cannot do it. `n/a`: there is nothing to test, for the reason below.

"""
