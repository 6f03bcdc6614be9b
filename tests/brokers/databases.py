"""Fresh databases on a running PostgreSQL or MariaDB server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, make_url

_CONNECT_TIMEOUT = 10


@contextmanager
def fresh_database(server_url: str, name: str) -> Iterator[str]:
    """Creates the database ``name``, gives its URL, and drops it in the end.

    Connections still open to it are cut by the server: a leak does not block the drop.
    """
    url = make_url(server_url)
    work = _on_postgresql if url.get_backend_name() == "postgresql" else _on_mariadb
    work(url, f"CREATE DATABASE {name}", None)
    try:
        yield url.set(database=name).render_as_string(hide_password=False)
    finally:
        work(url, f"DROP DATABASE {name}", name)


def _on_postgresql(url: URL, statement: str, dropped: str | None) -> None:
    import psycopg

    if dropped is not None:
        statement += " WITH (FORCE)"
    login: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "password": url.password,
        "dbname": url.database,
    }
    with psycopg.connect(**login, autocommit=True, connect_timeout=_CONNECT_TIMEOUT) as connection:
        connection.execute(statement.encode())


def _on_mariadb(url: URL, statement: str, dropped: str | None) -> None:
    import pymysql

    connection = pymysql.connect(
        host=url.host,
        port=url.port or 3306,
        user=url.username,
        password=url.password or "",
        database=url.database,
        connect_timeout=_CONNECT_TIMEOUT,
        autocommit=True,
    )
    with connection, connection.cursor() as cursor:
        if dropped is not None:
            _disconnect(cursor, dropped)
        cursor.execute(statement)


def _disconnect(cursor: Any, database: str) -> None:
    """MariaDB's DROP waits for open transactions; there is no FORCE."""
    cursor.execute("SELECT id FROM information_schema.processlist WHERE db = %s", [database])
    for (thread,) in cursor.fetchall():
        # IF it is gone already, this is an error 1094 that changes nothing.
        try:
            cursor.execute(f"KILL {thread}")
        except Exception as error:
            if error.args[:1] != (1094,):
                raise
