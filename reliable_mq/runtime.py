"""Everything a :class:`ReliableMQ` has opened, behind one object that a test can replace."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement

from reliable_mq.adapter import Adapter, AdapterContext, TopicSpec
from reliable_mq.clock import Clock, SystemClock
from reliable_mq.durations import seconds
from reliable_mq.message import new_message_id
from reliable_mq.registry import open_adapter, scheme_of
from reliable_mq.settings import Settings
from reliable_mq.store import Store
from reliable_mq.wakeup import Notifier

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

log = logging.getLogger("reliable_mq")


class Runtime:
    """One store and one adapter. No I/O until they are used."""

    def __init__(
        self,
        settings: Settings,
        topics: Mapping[str, TopicSpec],
        *,
        engine: Engine | None = None,
        async_engine: AsyncEngine | None = None,
        session_factory: Any = None,
        async_session_factory: Any = None,
        clock: Clock | None = None,
        now: ColumnElement[int] | None = None,
    ) -> None:
        self.clock: Clock = clock or SystemClock()
        self.instance = new_message_id()
        given = engine is not None or async_engine is not None
        self.store = Store(
            database_url=None if given else settings.database_url,
            engine=engine,
            async_engine=async_engine,
            session_factory=session_factory,
            async_session_factory=async_session_factory,
            table_prefix=settings.table_prefix,
            db_schema=settings.db_schema,
            adapter=scheme_of(settings.broker_url),
            now=now,
        )
        context = AdapterContext(
            instance=self.instance,
            topics=topics,
            client_options=settings.client_options,
            lease=seconds(settings.consumer.lease),
            max_message_bytes=settings.max_message_bytes,
            store=self.store,
        )
        self.adapter: Adapter = open_adapter(settings.broker_url, context)
        self.store.adapter = self.adapter.name
        self._hint()
        self.declared = False
        self.declare_again_at = float("-inf")
        self.declare_lock = threading.RLock()

    def _hint(self) -> None:
        """Tell the relays of other processes after each commit that appended; no I/O before."""
        self.notifier = Notifier(self.store)
        self.notifier.start()

    @property
    def owner(self) -> str:
        """The name under which this process holds leases: a fork has its parent's ``instance``."""
        return f"{self.instance}.{os.getpid()}"

    def close(self) -> None:
        """Close the adapter, for good, and the engines made here; the store connects again."""
        self.notifier.close()
        self.adapter.close()
        self.store.dispose()
        self._hint()

    async def aclose(self) -> None:
        """:meth:`close`, on the event loop that used the async engine."""
        await asyncio.to_thread(self.notifier.close)
        await asyncio.to_thread(self.adapter.close)
        await self.store.adispose()
        self._hint()
