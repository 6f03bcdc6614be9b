"""The statements by which PostgreSQL claims messages: one round trip each.

Each sets the lock time-out, inserts, and restores the lock time-out, so that the handler's own
statements keep their limit. Each step reads from the one before it, and an aggregate reads all
rows before its SELECT list is evaluated: so that is their order.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    LargeBinary,
    Select,
    String,
    Table,
    bindparam,
    case,
    column,
    exists,
    func,
    literal_column,
    select,
    true,
)
from sqlalchemy.dialects.postgresql import insert

from reliable_mq.store.arrays import array
from reliable_mq.store.dialects.claims import Expressions
from reliable_mq.store.direct import Direct

TIMES = ("received_at", "done_at")

_LOCK_TIMEOUT: ColumnElement[str] = literal_column("'lock_timeout'", String)


def claim(inbox: Table, expressions: Expressions) -> Select[Any]:
    """Return the claim of any number of messages; it gives the ids of the new ones."""
    before, bounded = _bounds()
    given = func.unnest(array("ids", String()), array("fingerprints", LargeBinary()))
    items = given.table_valued(column("id", String), column("fingerprint", LargeBinary))
    items = items.render_derived("item")
    source = {
        **_common(expressions),
        "message_id": items.c.id,
        "fingerprint": items.c.fingerprint,
    }
    chosen = select(*source.values()).select_from(items).join(bounded, true())
    new = _new(inbox, source, chosen)
    return select(func.array_agg(new.c.message_id), _restored(before))


def claim_one(inbox: Table, expressions: Expressions, retry: Table | None = None) -> Direct:
    """Return the claim of one message: how many were new, and the fingerprint of one that was not.

    Arrays of one would cost the driver and the server more than all the rest. With the *retry*
    table given, it also tells whether a row of the same key waits there.
    """
    before, bounded = _bounds()
    source: dict[str, Any] = {
        **_common(expressions),
        "message_id": bindparam("message_id", type_=String),
        "fingerprint": bindparam("fingerprint", type_=LargeBinary),
    }
    new = _new(inbox, source, select(*source.values()).select_from(bounded))
    count = func.count(new.c.message_id)
    known = select(inbox.c.fingerprint).where(
        inbox.c.consumer_group == source["consumer_group"],
        inbox.c.topic == source["topic"],
        inbox.c.message_id == source["message_id"],
    )
    told = [count, _restored(before), case((count == literal_column("0"), known.scalar_subquery()))]
    if retry is not None:
        told.append(
            exists()
            .where(
                retry.c.consumer_group == source["consumer_group"],
                retry.c.topic == source["topic"],
                retry.c.message_key == bindparam("message_key", type_=LargeBinary),
            )
            .label("waits")
        )
    names = {"lock_timeout", *source} - expressions.keys()
    return Direct(select(*told), names if retry is None else names | {"message_key"})


def _common(expressions: Expressions) -> dict[str, Any]:
    return {
        "consumer_group": bindparam("consumer_group", type_=String),
        "topic": bindparam("topic", type_=String),
        **{name: expressions.get(name, bindparam(name, type_=BigInteger)) for name in TIMES},
    }


def _bounds() -> tuple[CTE, CTE]:
    """Return the step that reads the lock time-out, and the one that sets ours."""
    before = _step(select(func.current_setting(_LOCK_TIMEOUT).label("value")), "before")
    limit = func.set_config(_LOCK_TIMEOUT, bindparam("lock_timeout", type_=String), true())
    return before, _step(select(limit.label("value")).select_from(before), "bounded")


def _new(inbox: Table, source: dict[str, Any], chosen: Select[Any]) -> CTE:
    statement = insert(inbox).from_select(list(source), chosen).on_conflict_do_nothing()
    return statement.returning(inbox.c.message_id).cte("new")


def _restored(before: CTE) -> ColumnElement[Any]:
    return func.set_config(_LOCK_TIMEOUT, select(before.c.value).scalar_subquery(), true())


def _step(query: Select[Any], name: str) -> CTE:
    return query.cte(name).prefix_with("MATERIALIZED", dialect="postgresql")
