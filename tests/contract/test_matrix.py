"""The matrix adapter x case: what its cells say, and that the one in the documentation is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reliable_mq.testing.matrix import Case, Cell, Matrix, cases

_MATRIX = Path(__file__).parents[2] / "docs" / "contract.md"
_COLUMNS = [
    "kafka",
    "memory",
    "rabbitmq",
    "redis",
    "sql: MariaDB",
    "sql: PostgreSQL",
    "sql: SQLite",
]

_SUITE = """
    import pytest
    from reliable_mq.testing.contract import ContractBase

    class PartContract(ContractBase):
        def test_it_works(self): pass
        def test_it_fails(self): assert False
        def test_it_needs_more(self): pytest.skip("capability retains not declared")
        def test_it_needs_a_hook(self): pytest.skip("hook foreign not given")
        def test_it_needs_another_hook(self): pytest.skip("hook broker not given")
        def test_it_is_skipped(self): pytest.skip("for no good reason")

        @pytest.mark.parametrize("way", ["one", "other"])
        def test_it_works_one_way_only(self, way): assert way == "one"

    class TestOne(PartContract):
        column = "one"
        without = {"broker": "there is none"}

    class TestAnother(PartContract):
        def test_it_fails(self): pass
        def test_it_needs_a_hook(self): pass
"""


def rows_of(text: str) -> dict[Case, list[str]]:
    """The cells of a matrix by case."""
    found, part = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            part = line.removeprefix("## ")
        elif line.startswith("| ") and not line.startswith(("|  |", "| ---")):
            promise, *cells = line.strip("| ").split(" | ")
            found[Case(part, promise)] = cells
    return found


def test_the_matrix_in_the_documentation_has_the_cases_of_the_suite():
    assert list(rows_of(_MATRIX.read_text())) == cases()


def test_the_matrix_in_the_documentation_has_every_adapter_and_no_hole():
    text = _MATRIX.read_text()
    headings = re.findall(r"^\|  \| (.*) \|$", text, re.MULTILINE)
    assert {tuple(heading.split(" | ")) for heading in headings} == {tuple(_COLUMNS)}
    for case, cells in rows_of(text).items():
        assert len(cells) == len(_COLUMNS), case
        assert all(re.fullmatch(r"pass|no `\w+`|n/a \(\d+\)", cell) for cell in cells), case


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["in one process", "on two workers"])
def test_a_cell_says_what_became_of_the_case(pytester: pytest.Pytester, workers: tuple[str, ...]):
    pytester.makepyfile(_SUITE)
    options = ("-p", "reliable_mq.testing.matrix", "--contract-matrix", "matrix.md")
    result = pytester.runpytest_subprocess(*options, *workers)
    text = (pytester.path / "matrix.md").read_text()
    assert {
        case.promise: cells for case, cells in rows_of(text).items() if case.part == "Part"
    } == {
        "it works": ["pass", "pass"],
        "it fails": ["pass", "failed"],
        "it needs more": ["no `retains`", "no `retains`"],
        "it needs a hook": ["pass", "not run"],
        "it needs another hook": ["not run", "n/a (1)"],
        "it is skipped": ["not run", "not run"],
        "it works one way only": ["failed", "failed"],
    }
    assert "|  | Another | one |" in text
    assert "- n/a (1): there is none" in text
    result.stdout.fnmatch_lines(["*contract matrix*", "| it works | pass | pass |"])


def test_without_the_option_there_is_no_matrix(pytester: pytest.Pytester):
    pytester.makepyfile(_SUITE)
    result = pytester.runpytest_subprocess("-p", "reliable_mq.testing.matrix")
    result.stdout.no_fnmatch_line("*contract matrix*")


def test_classes_of_one_column_complete_each_other():
    matrix, case = Matrix(), Case("Part", "it works")
    for state in ("not run", "pass", "not run"):
        matrix.note("one", case, "", Cell(state))
    assert matrix.cell("one", case).state == "pass"
    for state in ("failed", "pass"):
        matrix.note("one", case, "", Cell(state))
    assert matrix.cell("one", case).state == "failed"
