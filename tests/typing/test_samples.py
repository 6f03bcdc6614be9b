"""mypy and pyright judge the samples as they would in a user's project: their own strict mode.

The configuration of this repository plays no part here; the lint run uses it on the same files.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_MARK = re.compile(r"  # type: ignore\[[a-z-]+\]$")

Faults = Mapping[str, set[int]]
"""File name to the lines in which a checker finds an error."""


def _run(directory: Path, *command: str) -> str:
    result = subprocess.run(
        [sys.executable, "-m", *command, "accepted.py", "rejected.py"],
        cwd=directory,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode in (0, 1), result.stdout + result.stderr
    return result.stdout


def _mypy(directory: Path) -> list[tuple[str, int]]:
    output = _run(directory, "mypy", "--strict", "--config-file=", "--no-error-summary")
    found = re.findall(r"^(\w+\.py):(\d+): error: ", output, re.MULTILINE)
    assert len(found) == output.count(": error: "), output
    return [(name, int(line)) for name, line in found]


def _pyright(directory: Path) -> list[tuple[str, int]]:
    (directory / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    output = json.loads(_run(directory, "pyright", "--outputjson", "--pythonpath", sys.executable))
    return [
        (Path(each["file"]).name, each["range"]["start"]["line"] + 1)
        for each in output["generalDiagnostics"]
        if each["severity"] == "error"
    ]


@pytest.fixture(scope="module", params=["mypy", "pyright"])
def faults(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Faults:
    """What one checker finds in the samples, the marks of the mistakes taken away."""
    pytest.importorskip(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    for name in ("accepted.py", "rejected.py"):
        lines = (HERE / name).read_text().splitlines()
        (directory / name).write_text("\n".join(_MARK.sub("", line) for line in lines) + "\n")
    found = {"mypy": _mypy, "pyright": _pyright}[request.param](directory)
    return {
        name: {line for file, line in found if file == name}
        for name in {"accepted.py", "rejected.py", *(file for file, _ in found)}
    }


@pytest.mark.slow
def test_nothing_is_wrong_with_an_application_that_uses_everything(faults: Faults) -> None:
    assert faults["accepted.py"] == set()


@pytest.mark.slow
def test_every_marked_mistake_is_found_and_nothing_else(faults: Faults) -> None:
    lines = (HERE / "rejected.py").read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if _MARK.search(line)}
    assert len(marked) > 40
    assert faults["rejected.py"] == marked


@pytest.mark.slow
def test_no_error_is_reported_inside_of_the_library(faults: Faults) -> None:
    assert set(faults) == {"accepted.py", "rejected.py"}
