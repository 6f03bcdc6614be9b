"""``sql://``: topics in the application's own database, with no other server.

A topic is a log of rows. A publish is one transaction, durable when it is committed; a group's
place in a partition is a row too, and only the member that holds the partition's lease moves it.
Works on PostgreSQL, MariaDB, MySQL and SQLite, the tables being those of the store.
"""

from __future__ import annotations

from reliable_mq_sql.adapter import SqlAdapter, open_adapter

__all__ = ["SqlAdapter", "open_adapter"]
