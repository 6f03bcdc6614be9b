"""What killed processes have seen is read whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import notes
from benchmarks.notes import HANDLED, HOLDING, Notes


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Notes]:
    made = Notes(tmp_path / "notes")
    yield made
    made.close()


def test_the_first_note_of_a_kind_counts(written: Notes) -> None:
    for what, number in ((HOLDING, 1), (HANDLED, 1), (HANDLED, 2), (HANDLED, 1)):
        written.add(what, number)
    one, two = written.wait(HANDLED, 1, 2)
    assert (one.number, two.number) == (1, 2)
    assert one.at < two.at


def test_a_line_that_is_not_whole_yet_is_read_later(written: Notes, tmp_path: Path) -> None:
    with (tmp_path / "notes").open("a") as file:
        file.write("handled 1 10 0.5\nhandled 2 1")
        file.flush()
        assert written.wait(HANDLED, 1)[0].pid == 10
        file.write("1 0.75\n")
    assert written.wait(HANDLED, 2)[0].pid == 11


def test_only_one_of_all_who_ask_is_the_first(tmp_path: Path) -> None:
    asked = [Notes.first(tmp_path / "held-7") for _ in range(3)]
    assert asked == [True, False, False]


def test_what_nobody_noted_is_named(written: Notes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notes, "_PATIENCE", 0.0)
    with pytest.raises(RuntimeError, match=r"not handled within 0 s: \[3\]"):
        written.wait(HANDLED, 3)
