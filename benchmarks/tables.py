"""Results as Markdown, to read and to put between two marks of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.bench import Outcome
from benchmarks.goals import Verdict
from benchmarks.spread import Spread, ratios

BEGIN = "<!-- benchmarks: begin -->"
END = "<!-- benchmarks: end -->"

_FIGURES = {
    "rate": "a second",
    "alone": "write alone, a second",
    "kept": "of the write alone",
    "five_to_one": "5 messages / 1, time",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "ms": "ms",
    "max_ms": "max ms",
    "cost_us": "µs each",
    "clients": "broker clients imported",
    "unacknowledged": "unacknowledged after 1 s",
    "cpu_us": "CPU µs each",
    "rss_mb": "memory MB",
}


def number(value: float) -> str:
    """Return *value* with about three digits that mean something."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def spread(found: Spread) -> str:
    """Return the median, and the spread where there is any."""
    if found.low == found.high:
        return number(found.median)
    return f"{number(found.median)} ({number(found.low)} to {number(found.high)})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _beside_raw(outcome: Outcome, name: str) -> str:
    raw, mine = outcome.samples.get("raw"), outcome.samples[name]
    if name == "raw" or not raw or "rate" not in mine[0]:
        return ""
    rates = [[one["rate"] for one in samples] for samples in (mine, raw)]
    return spread(Spread.of(ratios(*rates)))


def figures_table(outcome: Outcome) -> list[str]:
    """Return what each contestant of a row reached."""
    shown = [
        name for name in _FIGURES if any(name in samples[0] for samples in outcome.samples.values())
    ]
    rows = []
    for name, samples in outcome.samples.items():
        cells = [
            spread(Spread.of([one[figure] for one in samples])) if figure in samples[0] else ""
            for figure in shown
        ]
        rows.append([name, *cells, _beside_raw(outcome, name)])
    return _table(["", *(_FIGURES[name] for name in shown), "of raw"], rows)


def goals_table(outcomes: Iterable[Outcome]) -> list[str]:
    """Return every goal with what was reached."""
    rows = [
        [outcome.row.name, verdict.goal.text, _reached(verdict), _word(verdict)]
        for outcome in outcomes
        for verdict in outcome.verdicts()
    ]
    return _table(["row", "goal", "reached", ""], rows)


def _reached(verdict: Verdict) -> str:
    shown = spread(verdict.reached)
    median = number(verdict.reached.median)
    bounds = (verdict.goal.at_least, verdict.goal.at_most)
    if verdict.met or median not in [number(bound) for bound in bounds if bound is not None]:
        return shown
    # Rounded it would look as if it were met.
    return shown.replace(median, f"{verdict.reached.median:.4g}", 1)


def _word(verdict: Verdict) -> str:
    return "met" if verdict.met else "**missed**"


def _section(outcome: Outcome) -> list[str]:
    lines = ["", f"### {outcome.row.name}: {outcome.row.title}", ""]
    lines += [
        f"{outcome.count:,} messages a round (slow contestants: fewer), {outcome.row.unit}.",
        "",
    ]
    if outcome.failure:
        lines += [f"**Failed: {outcome.failure}**", ""]
    if outcome.samples:
        lines += figures_table(outcome)
    notes = [f"- {name}: {note}" for name, note in outcome.notes.items()]
    notes += [f"- {name}: not measured, {why}" for name, why in outcome.missing.items()]
    return [*lines, "", *notes] if notes else lines


def page(outcomes: Sequence[Outcome], conditions: Sequence[str]) -> str:
    """Return everything as one piece of Markdown."""
    lines = [*(f"- {line}" for line in conditions), "", *goals_table(outcomes)]
    for outcome in outcomes:
        lines += _section(outcome)
    return "\n".join(lines) + "\n"


def write(text: str, path: Path) -> None:
    """Write *text* to *path*, between the marks where the file has them."""
    old = path.read_text() if path.exists() else ""
    head, begun, rest = old.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if begun and ended:
        text = f"{head}{BEGIN}\n\n{text}\n{END}{tail}"
    path.write_text(text)
