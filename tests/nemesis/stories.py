"""The whole story of a message: what everybody did with it, and the faults meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.nemesis.producing import NUMBERS
from tests.nemesis.truth import Findings, Line, history_lines

MANY = 6
"""Stories for each violation; more would hide the first."""
LONG = 8000
"""Characters of a violation that are shown; the log of a server that does not start has 6000."""
BRIEF = 300
"""Characters of a violation that are shown again at the end."""
AROUND = 3.0
"""Seconds before and after the life of a message whose faults belong to its story."""


def told(violations: Sequence[str], findings: Findings, folder: Path) -> str:
    """Return the violations, each with the stories of its messages, and at the end once more.

    Where only a part of a long text is kept, it is its beginning or its end.
    """
    if not violations:
        return ""
    lines = sorted(history_lines(folder), key=lambda line: float(line["t"]))
    parts = []
    for violation in violations:
        parts.append(violation[:LONG])
        for number in _numbers(violation)[:MANY]:
            parts += [f"  --- {number}", *(f"    {line}" for line in _story(number, lines))]
            parts += [f"    {line}" for line in _end(number, findings)]
    parts += [f"{len(violations)} violations:", *(one[:BRIEF] for one in violations)]
    return "\n".join(parts)


def _numbers(violation: str) -> list[int]:
    """The messages of a violation; where it is about an order, those at which that breaks."""
    found = [int(n) for n in re.findall(r"\b\d+\b", violation) if int(n) > NUMBERS]
    if violation.startswith("I4"):
        broken = [pair for pair in pairwise(found) if pair[0] >= pair[1]]
        return [number for pair in broken for number in pair]
    return found


def _story(number: int, lines: Sequence[Line]) -> Iterator[str]:
    ids = {one[1] for line in lines for one in line.get("sent", ()) if one[0] == number}
    own = [line for line in lines if number in _mentioned(line) or line.get("id") in ids]
    if not own:
        return
    begin, end = float(own[0]["t"]) - AROUND, float(own[-1]["t"]) + AROUND
    faults = [line for line in lines if line["what"] == "fault" and begin < line["t"] < end]
    for line in sorted([*own, *faults], key=lambda line: float(line["t"])):
        yield _shown(line, number)


def _mentioned(line: Line) -> set[int]:
    found = {one[0] for one in line.get("sent", ())} | set(line.get("numbers", ()))
    return found | ({line["number"]} if "number" in line else set())


def _shown(line: Line, number: int) -> str:
    values: dict[str, Any] = {n: v for n, v in line.items() if n not in ("t", "pid", "what")}
    if "jobs" in values:
        values["jobs"] = [job for job in values["jobs"] if job["number"] == number]
    if "sent" in values:
        values["sent"] = [one for one in values["sent"] if one[0] == number]
    if "numbers" in values:
        values["numbers"] = _places(values["numbers"], number)
    shown = " ".join(f"{name}={value}" for name, value in values.items() if value is not None)
    return f"{line['t']:.3f} {line['pid']} {line['what']} {shown}"


def _places(numbers: Sequence[int], number: int) -> str:
    """Return where *number* is among the many that came or went together."""
    if len(numbers) == 1:
        return str(numbers)
    places = [place for place, one in enumerate(numbers, 1) if one == number]
    return f"{places} of {len(numbers)}"


def _end(number: int, findings: Findings) -> Iterator[str]:
    truth = findings.truth
    yield f"committed: {number in truth.committed}"
    for group, numbers in truth.effects.items():
        buried = number in truth.buried(group)
        yield f"{group}: {list(numbers).count(number)} effects, dead letter: {buried}"
