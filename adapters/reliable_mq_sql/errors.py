"""Database errors as the adapter protocol's errors; the only place where they are told apart."""

from __future__ import annotations

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from reliable_mq.errors import ConfigurationError, ReliableMQError, TransportError
from reliable_mq.redaction import redact_url
from reliable_mq.store import Store
from reliable_mq.store.dialects import Trouble

_DENIED_STATES = ("28", "42501", "3D000")  # invalid authorization, privilege, no such database
_DENIED_CODES = {1044, 1045, 1049, 1142, 1143, 1227, 1698}
_DENIED_TEXTS = ("authentication failed", "no pg_hba.conf entry", "readonly database")


def translate(error: DBAPIError | PoolTimeout, store: Store) -> ReliableMQError:
    """Return our error for *error*: its text names the database and holds no row's content."""
    if isinstance(error, PoolTimeout):
        return TransportError(f"no free connection to {store.shown_url}: enlarge the engine's pool")
    if store.dialect.is_missing_table(error):
        return ConfigurationError(f"{store.shown_url} has no table of topics: run declare() once")
    if _is_denied(error):
        return ConfigurationError(
            f"{store.shown_url} refuses us: {_reason(error)}; check user, password and grants"
        )
    if store.dialect.classify(error) is Trouble.OTHER:
        # Such a text may quote what was to be written.
        return TransportError(f"{store.shown_url} failed with {_kind(error)}")
    return TransportError(f"{store.shown_url} is not available: {_reason(error)}")


def _is_denied(error: DBAPIError) -> bool:
    state = getattr(error.orig, "sqlstate", None)
    if isinstance(state, str):
        return state.startswith(_DENIED_STATES)
    arguments = getattr(error.orig, "args", ())
    if arguments and arguments[0] in _DENIED_CODES:
        return True
    # psycopg reports a refused login without a state.
    return any(text in str(error.orig) for text in _DENIED_TEXTS)


def _reason(error: DBAPIError) -> str:
    lines = str(error.orig).strip().splitlines() or [_kind(error)]
    return redact_url(lines[0])[:300]


def _kind(error: DBAPIError) -> str:
    state = getattr(error.orig, "sqlstate", None)
    name = type(error.orig).__name__
    return f"{name} ({state})" if state else name
