"""``doctor``: what in the settings of broker, database and application would break the promises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

import typer

from reliable_mq.adapter import Finding, Severity
from reliable_mq.cli.choosing import Json
from reliable_mq.cli.output import print_json, print_uncut, say
from reliable_mq.cli.targets import AppOption, open_target
from reliable_mq.doctor import diagnose

_COLUMNS = ("severity", "what", "why it matters", "how to mend it", "code")


def doctor(app: AppOption = None, json: Json = False) -> None:
    """Check broker, database and application; exit code 1 where a promise is broken."""
    # A database that is not there is a finding like others; nothing is created.
    with open_target(app, creates=True) as mq:
        found = diagnose(mq)
    if json:
        print_json([_as_json(finding) for finding in found])
    else:
        _show(found)
    if any(finding.severity is Severity.ERROR for finding in found):
        raise typer.Exit(1)


def _as_json(finding: Finding) -> dict[str, str]:
    return {"code": finding.code, **asdict(finding)}


def _show(found: Sequence[Finding]) -> None:
    if found:
        print_uncut(_COLUMNS, [_row(finding) for finding in found])
        say("")
    counts = Counter(finding.severity for finding in found)
    say(", ".join(f"{severity.value}: {counts[severity]}" for severity in Severity))


def _row(one: Finding) -> tuple[str, ...]:
    return one.severity.value, f"{one.subject}: {one.what}", one.why, one.remedy, one.code
