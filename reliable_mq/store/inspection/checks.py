"""What the checks of all databases share: what is expected, a finding, a round of checks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from reliable_mq.adapter import Finding, Severity
from reliable_mq.store.dialects import Trouble
from reliable_mq.store.store import Store
from reliable_mq.store.texts import cause_of

Facts = Mapping[str, str]

_CAUSE_BYTES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What the database has to bear. Times are in seconds.

    ``connections`` is how many one process may use at a time; ``embedded`` says that the topics
    are tables as well. A transaction older than ``old_transaction``, or a clock that differs by
    more than ``skew``, is a finding.
    """

    max_message_bytes: int = 1_000_000
    idle_in_transaction: float = 60.0
    connections: int = 1
    embedded: bool = False
    old_transaction: float = 900.0
    skew: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One subject's check. *needs* says what an ordinary user lacks to make it, if anything."""

    subject: str
    find: Callable[[Connection, Store, Expected], Iterable[Finding]]
    needs: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A setting of the server that must not have some values. The code is made of its name."""

    setting: str
    is_bad: Callable[[str], bool]
    severity: Severity
    why: str
    remedy: str
    code: str = ""


def broken(rules: Iterable[Rule], facts: Facts, product: str) -> Iterator[Finding]:
    """Yield a finding for each rule that the settings break. A setting not there breaks none."""
    for rule in rules:
        value = facts.get(rule.setting)
        if value is not None and rule.is_bad(value):
            name = rule.setting.replace("_", "-")
            yield Finding(
                code=rule.code or f"{product.lower()}-{name}",
                severity=rule.severity,
                subject=f"{product} {rule.setting}",
                what=f"{rule.setting} is {value or 'empty'}",
                why=rule.why,
                remedy=rule.remedy,
            )


def made(
    checks: Iterable[Check], connection: Connection, store: Store, expected: Expected
) -> Iterator[Finding]:
    """Make the checks one by one; one that fails is a finding, and the next one is made.

    A lost connection is raised.
    """
    for check in checks:
        try:
            yield from list(check.find(connection, store, expected))
        except DBAPIError as error:
            if store.dialect.classify(error) is Trouble.GONE:
                raise
            yield _not_made(check, error)
        finally:
            if not connection.invalidated:
                connection.rollback()


def _not_made(check: Check, error: DBAPIError) -> Finding:
    return Finding(
        code="not-checked",
        severity=Severity.INFO if check.needs else Severity.WARNING,
        subject=check.subject,
        what=f"this could not be checked: {cause_of(error, _CAUSE_BYTES)}",
        why="what is not seen may still break a promise",
        remedy=check.needs or "mend what the database says, or check it by hand",
    )
