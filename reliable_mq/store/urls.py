"""Database URLs: parsing, the sync or async sibling, and whether two mean one database."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy import URL, Dialect, Engine, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from reliable_mq.errors import ConfigurationError, MissingExtraError
from reliable_mq.redaction import redact_url

Identity = Hashable
"""What is equal for two engines exactly where they reach the same database."""

_FAMILIES = {"postgresql": "postgresql", "mysql": "mysql", "mariadb": "mysql", "sqlite": "sqlite"}
_PORTS = {"postgresql": 5432, "mysql": 3306}
_SYNC_DRIVER = {"postgresql": "psycopg", "mysql": "pymysql", "sqlite": "pysqlite"}
_ASYNC_DRIVER = {"postgresql": "psycopg", "mysql": "asyncmy", "sqlite": "aiosqlite"}
_EXTRA = {"postgresql": "postgresql", "mysql": "mysql"}

# Drivers whose URL options mean the same: all of them can be carried from one to the other.
_ALIKE = ({"psycopg", "psycopg_async", "psycopg2"}, {"pysqlite", "aiosqlite"})
# Elsewhere only what both sides spell alike.
_CARRIED = {
    "postgresql": {"host", "port"},
    "mysql": {"charset", "connect_timeout", "init_command", "unix_socket"},
    "sqlite": set[str](),
}


def parse_url(text: str) -> URL:
    """Return *text* as a URL with a driver; a bare ``postgresql://`` or ``mysql://`` gets ours.

    Raises ``ConfigurationError`` for what is no database URL or no database a store can live in.
    """
    try:
        _check_text(text)
        url = make_url(text)
    except (ArgumentError, ValueError):
        # As if it had a scheme, so that a password is found where only that was forgotten.
        shown = redact_url(text if "://" in text else f"x://{text}").removeprefix("x://")
        raise ConfigurationError(
            f"database_url {shown!r} is not a URL; write for example "
            "postgresql+psycopg://user@host/database or sqlite:///file.db"
        ) from None
    family = family_of(url)
    if "+" not in url.drivername and family != "sqlite":
        url = url.set(drivername=f"{url.drivername}+{_SYNC_DRIVER[family]}")
    return url


def _check_text(text: str) -> None:
    """Raise ``ValueError`` for bytes of an environment that are no text, and for NUL."""
    text.encode()
    if "\0" in unquote(text):
        raise ValueError


def family_of(url: URL) -> str:
    """Return ``postgresql``, ``mysql`` (MariaDB too) or ``sqlite``."""
    backend = url.get_backend_name()
    try:
        return _FAMILIES[backend]
    except KeyError:
        raise ConfigurationError(
            f"no store for the database {backend!r}: use postgresql, mariadb, mysql or sqlite"
        ) from None


def is_async(url: URL) -> bool:
    """Tell whether the URL names an async driver only."""
    return bool(_dialect_class(url).is_async)


def sync_url(url: URL) -> URL:
    """Return *url* where its driver is a sync one, else that of its sync sibling."""
    if not is_async(url):
        return url
    return _sibling(url, _SYNC_DRIVER[family_of(url)])


def async_url(url: URL) -> URL:
    """Return *url* where its driver is an async one, else that of its async sibling."""
    if is_async(url):
        return url
    return _sibling(url, _ASYNC_DRIVER[family_of(url)])


def _sibling(url: URL, driver: str) -> URL:
    own = _driver_name(url)
    family = family_of(url)
    if not any({own, driver} <= alike for alike in _ALIKE):
        lost = sorted(set(url.query) - _CARRIED[family])
        if lost:
            raise ConfigurationError(
                f"the option {', '.join(map(repr, lost))} of {redact_url(str(url))!r} is one of "
                f"{own} and has no counterpart in {driver}, which is needed too: pass both "
                "engine= and async_engine="
            )
    if family == "postgresql":
        return url.set(drivername=f"postgresql+{driver}")
    return url.set(drivername=f"{url.get_backend_name()}+{driver}")


def _driver_name(url: URL) -> str:
    _, plus, driver = url.drivername.partition("+")
    return driver if plus else _dialect_class(url).driver


def _dialect_class(url: URL) -> type[Dialect]:
    try:
        return url.get_dialect()
    except NoSuchModuleError:
        raise ConfigurationError(
            f"unknown database driver {url.drivername!r} in {redact_url(str(url))!r}"
        ) from None


def require_driver(url: URL, *, asynchronous: bool = False) -> None:
    """Import the driver of *url*; raise :class:`MissingExtraError` where it is not installed."""
    dialect = _dialect_class(url)
    if asynchronous:
        dialect = dialect.get_async_dialect_cls(url)
    try:
        dialect.import_dbapi()
    except ImportError as error:
        driver = dialect.driver
        extra = _EXTRA.get(family_of(url))
        offered = driver in {"psycopg", "asyncpg", "pymysql", "asyncmy"}
        remedy = f"'reliable-mq[{extra}]'" if extra and offered else "its package"
        raise MissingExtraError(
            f"{redact_url(str(url))!r} needs the driver {driver} ({error}): pip install {remedy}"
        ) from error


def is_memory(url: URL) -> bool:
    """Tell whether *url* is an SQLite database that lives in one connection only."""
    if family_of(url) != "sqlite":
        return False
    database = url.database or ""
    return (
        database in {"", ":memory:", "file::memory:"}
        or url.query.get("mode") == "memory"
        or (database.startswith("file:") and "mode=memory" in database)
    )


def identity_of(url: URL, engine: Engine | None = None) -> Identity:
    """Return what is equal for the same database: family, host, port and database.

    An *engine* that hides where it connects (a ``creator``, SQLite in memory) equals itself only.
    """
    family = family_of(url)
    nameless = not url.host and not url.database and not url.query
    if engine is not None and (is_memory(url) or nameless):
        return (family, id(engine.pool))
    if family == "sqlite":
        return (family, sqlite_file(url))
    hosts = url.query.get("host") or url.host or "localhost"
    port = url.port or _PORTS[family]
    return (family, hosts, port, url.database or url.username)


def sqlite_file(url: URL) -> str:
    """Return the absolute path of an SQLite database, whatever spelling the URL uses."""
    name = (url.database or "").removeprefix("file:").partition("?")[0]
    return str(Path(name).resolve())
