"""Publishing: rounds of one script call a topic, each answered before the next is sent.

How the promises are kept:

- *Prefix rule.* A call stops at its first message that cannot be added, and the next call of
  that topic is sent only when the one before added everything.
- *Lost replies.* The script remembers id and fingerprint of what it added, in two sets for two
  windows of time: the same message again, within a window at least, is not added again. The same
  id with another body is added: consumers report the conflict.
- *Late execution.* A call whose reply never came may still be executed later, say by a server
  that was stopped. Each topic has a generation, a number that this process raises before it
  reports such a call as unknown. Younger calls carry the higher number and leave it on the server
  as a floor; a call below the floor does nothing. So nothing given up is added after anything
  younger of this process. Across processes the guard does it for the outbox: whoever takes over
  sends the same messages in the same order, and late copies are known.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from redis.exceptions import ResponseError

from reliable_mq.adapter import SENT, AdapterContext, Outcome, Unknown, Unroutable
from reliable_mq.crashpoints import crash_point
from reliable_mq.errors import ReliableMQError
from reliable_mq.message import Message
from reliable_mq_redis import copies, keys
from reliable_mq_redis.chunks import Chunk, Spreader
from reliable_mq_redis.declare import not_declared
from reliable_mq_redis.errors import (
    FAILURES,
    code_of_text,
    outcome_of,
    outcome_of_text,
    text_of,
)
from reliable_mq_redis.link import Link, Reply
from reliable_mq_redis.location import Address
from reliable_mq_redis.options import Options
from reliable_mq_redis.packing import Packed
from reliable_mq_redis.sends import OUT_OF_TIME, Send, sort
from reliable_mq_redis.servers import Servers

_ERRORS = (*FAILURES, ReliableMQError)


class Publisher:
    """Thread-safe: each publish has connections of its own while it runs."""

    def __init__(self, servers: Servers, context: AdapterContext, options: Options) -> None:
        self._servers = servers
        self._context = context
        self._options = options
        self._spreader = Spreader()
        self._partitions: dict[str, int] = {}
        self._generations: dict[str, int] = {}
        self._lock = threading.Lock()

    def publish(self, messages: Sequence[Message], timeout: float) -> list[Outcome]:
        """Return one outcome a message, as :meth:`reliable_mq.adapter.Adapter.publish` says."""
        deadline = time.monotonic() + timeout
        outcomes: list[Outcome] = [OUT_OF_TIME] * len(messages)
        sends = sort(messages, outcomes, self._context.max_message_bytes)
        for send in sends:
            self._begin(send, deadline)
        while time.monotonic() < deadline:
            sends = [send for send in sends if send.chunk is not None]
            if not sends:
                break
            for address, there in self._by_server(sends, deadline).items():
                self._exchange(address, there, deadline)
        return outcomes

    def _begin(self, send: Send, deadline: float) -> None:
        try:
            send.split(self._partitions_of(send.topic, deadline), self._spreader)
        except _ERRORS as error:
            send.stop(outcome_of(error))

    def _partitions_of(self, topic: str, deadline: float) -> int:
        asked = self._asked(topic)
        if asked is not None:
            return asked
        if topic not in self._partitions:
            self._partitions[topic] = self._look_up(topic, deadline)
        return self._partitions[topic]

    def _asked(self, topic: str) -> int | None:
        spec = self._context.topics.get(topic)
        return None if spec is None else spec.partitions

    def _look_up(self, topic: str, deadline: float) -> int:
        address = self._servers.locator.locate(topic, deadline)
        with self._servers.link(address, deadline) as link:
            replies = link.exchange([("HGET", keys.meta(topic), "partitions")], deadline)
            (reply,) = self._servers.checked(replies)
        # Whether the topic exists is left to the script, which looks at each call.
        return int(reply or 1)

    def _by_server(self, sends: Sequence[Send], deadline: float) -> dict[Address, list[Send]]:
        found: dict[Address, list[Send]] = {}
        for send in sends:
            try:
                address = self._servers.locator.locate(send.topic, deadline)
            except _ERRORS as error:
                send.stop(outcome_of(error))
            else:
                found.setdefault(address, []).append(send)
        return found

    def _exchange(self, address: Address, sends: Sequence[Send], deadline: float) -> None:
        """Send one call of each topic to one server, and settle what it answers."""
        commands = [self._call(send, send.chunk) for send in sends if send.chunk]
        sent = False
        try:
            with self._servers.link(address, deadline) as link:
                sent = True
                link.send(commands, deadline)
                crash_point("publish.unconfirmed")
                for send in sends:
                    send.prepare()
                replies = link.replies(commands, deadline)
                crash_point("publish.answered")
                link.suspect = any(isinstance(reply, ResponseError) for reply in replies)
                lacking = self._lacking_copies(link, deadline)
        except _ERRORS as error:
            self._unanswered(sends, error, sent=sent)
        else:
            for send, reply in zip(sends, replies, strict=True):
                self._settle(send, reply, lacking)

    def _call(self, send: Send, chunk: Chunk) -> Packed:
        return chunk.call(
            send.topic,
            self._context.instance,
            partitions=send.partitions,
            generation=self._generations.get(send.topic, 0),
            window=round(self._options.guard * 1000),
        )

    def _lacking_copies(self, link: Link, deadline: float) -> str | None:
        """Return what the asked-for copies lack; None where all are there or none is asked for."""
        if not copies.asked_for(self._options):
            return None
        command = copies.command(self._options, Link.left(deadline))
        (reply,) = self._servers.checked(link.exchange([command], deadline))
        return copies.lacking(self._options, reply)

    def _unanswered(self, sends: Sequence[Send], error: Exception, *, sent: bool) -> None:
        """Settle calls that have no reply. Raises the generation of what may come late."""
        for send in sends:
            if sent:
                self._raise_generation(send.topic, at_least=0)
                send.doubt(Unknown(text_of(error)))
            else:
                send.stop(outcome_of(error))

    def _raise_generation(self, topic: str, *, at_least: int) -> None:
        with self._lock:
            self._generations[topic] = max(self._generations.get(topic, 0) + 1, at_least)

    def _settle(self, send: Send, reply: Reply, lacking: str | None) -> None:
        problem = self._servers.problem(reply)
        if problem is not None:
            # Nothing in the script can raise an error once it has added an entry.
            return send.stop(outcome_of(problem))
        status, *rest = reply
        if status == b"ok" and lacking is None:
            return send.stored()
        if status == b"ok" or status == b"late":
            return send.doubt(Unknown(lacking or rest[0].decode(errors="replace")))
        if status == b"failed":
            text = rest[1].decode(errors="replace")
            stored = SENT if lacking is None else Unknown(lacking)
            return send.stored_up_to(rest[0], stored, outcome_of_text(code_of_text(text), text))
        return self._settle_unsent(send, status, rest)

    def _settle_unsent(self, send: Send, status: bytes, rest: list[Reply]) -> None:
        """Settle a call that looked at the topic and added nothing."""
        if status == b"stale":
            # It was overtaken by the call of another thread that had just failed; send it again.
            return self._raise_generation(send.topic, at_least=rest[0])
        if status == b"missing":
            self._partitions.pop(send.topic, None)
            return send.stop(Unroutable(str(not_declared(send.topic))))
        actual, asked = int(rest[0]), self._asked(send.topic)
        if asked is not None:
            return send.stop(
                Unroutable(
                    f"topic {send.topic!r} is asked for with {asked} partitions and has {actual}"
                )
            )
        self._partitions[send.topic] = actual
        return send.split(actual, self._spreader)
