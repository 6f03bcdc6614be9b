"""The version row: which schema, which store and which broker the tables belong to."""

from __future__ import annotations

import uuid
from typing import NamedTuple

from sqlalchemy import ColumnElement, Connection, Table, exists, func, insert, select, update

from reliable_mq.errors import ConfigurationError
from reliable_mq.store.tables import SCHEMA_VERSION, Tables

ROW_ID = 1


class Version(NamedTuple):
    """What the row says. ``store_id`` is random and given once, with the tables."""

    schema_version: int
    store_id: str
    adapter: str


def read_version(connection: Connection, table: Table) -> Version | None:
    """Return the row, or None where nobody declared the store yet."""
    columns = table.c
    row = connection.execute(
        select(columns.schema_version, columns.store_id, columns.adapter).where(
            columns.id == ROW_ID
        )
    ).one_or_none()
    return None if row is None else Version(*row)


def check_schema_version(found: Version) -> None:
    """Raise ``ConfigurationError`` unless the tables are of the version this code works with."""
    if found.schema_version != SCHEMA_VERSION:
        newer = found.schema_version > SCHEMA_VERSION
        remedy = "upgrade reliable-mq here" if newer else "migrate the tables"
        raise ConfigurationError(
            f"the tables have schema version {found.schema_version}, this reliable-mq works "
            f"with {SCHEMA_VERSION}: {remedy}"
        )


def check_adapter(found: Version, adapter: str) -> None:
    """Raise ``ConfigurationError`` unless the outbox is sent to the broker we are set up for."""
    if found.adapter != adapter:
        raise ConfigurationError(
            f"these tables belong to the broker {found.adapter!r}, this process is set up for "
            f"{adapter!r}: give it another table_prefix, or, to move for good, let the relay "
            "empty the outbox, stop every process and run declare()"
        )


def settle_version(
    connection: Connection,
    tables: Tables,
    *,
    adapter: str,
    now: ColumnElement[int],
    instance: str | None = None,
) -> Version:
    """Return the row, written if it was missing, moved to *adapter* if nothing stands against it.

    To be called with the schema locked. Leases of *instance*, our own, do not count.
    """
    found = read_version(connection, tables.version)
    if found is None:
        found = Version(SCHEMA_VERSION, str(uuid.uuid4()), adapter)
        connection.execute(insert(tables.version).values(id=ROW_ID, **found._asdict()))
        return found
    check_schema_version(found)
    if found.adapter == adapter:
        return found
    _check_movable(connection, tables, found, adapter, now, instance)
    connection.execute(update(tables.version).values(adapter=adapter))
    return found._replace(adapter=adapter)


def _check_movable(
    connection: Connection,
    tables: Tables,
    found: Version,
    adapter: str,
    now: ColumnElement[int],
    instance: str | None,
) -> None:
    lead = f"these tables belong to the broker {found.adapter!r} and cannot move to {adapter!r}: "
    unsent = _count(connection, tables.outbox)
    if unsent:
        raise ConfigurationError(
            f"{lead}{unsent} messages in the outbox are not sent yet; run the relay with "
            f"{found.adapter!r} until it is empty"
        )
    held = _count(connection, tables.outbox_held)
    if held:
        raise ConfigurationError(
            f"{lead}{held} messages are held; retry or discard them first (outbox ls)"
        )
    if _is_leased(connection, tables.lease, now, instance):
        raise ConfigurationError(f"{lead}another process still runs with it; stop it first")


def _count(connection: Connection, table: Table) -> int:
    return connection.execute(select(func.count()).select_from(table)).scalar_one()


def _is_leased(
    connection: Connection, table: Table, now: ColumnElement[int], instance: str | None
) -> bool:
    alive = select(table.c.owner).where(table.c.owner.is_not(None), table.c.expires_at > now)
    if instance is not None:
        alive = alive.where(table.c.owner != instance)
    return bool(connection.execute(select(exists(alive))).scalar_one())
