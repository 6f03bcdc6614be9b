"""The first service of the README."""

from __future__ import annotations

import sqlite3

from tests.examples.conftest import ROOT, Example

EXPECTED = """\
charged order 1 of ann
charged order 2 of bob
2 sent, 2 handled
"""


def test_the_quickstart_prints_what_the_readme_says(example: Example) -> None:
    assert example.run("examples.quickstart.orders") == 0, example.said
    assert example.said == EXPECTED
    with sqlite3.connect(example.folder / "orders.db") as database:
        assert database.execute("SELECT order_id FROM charges").fetchall() == [(1,), (2,)]
    database.close()


def test_the_readme_shows_the_code_and_the_output_of_the_quickstart() -> None:
    readme = (ROOT / "README.md").read_text()
    code = (ROOT / "examples/quickstart/orders.py").read_text()
    assert f"```python\n{code}```\n" in readme
    assert f"```\n{EXPECTED}```\n" in readme
