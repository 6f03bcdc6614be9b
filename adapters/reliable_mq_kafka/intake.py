"""One member of a group: a consumer client, what it owns, and what was read ahead."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from reliable_mq.adapter import Lost, Received
from reliable_mq.errors import ReliableMQError
from reliable_mq_kafka.ahead import SPARE, Ahead, Window
from reliable_mq_kafka.commits import Commits
from reliable_mq_kafka.config import Clients
from reliable_mq_kafka.errors import error_of, is_fatal, reason_of, translate, translated
from reliable_mq_kafka.health import Health
from reliable_mq_kafka.identities import Identities
from reliable_mq_kafka.partitions import OwnedPartition, Place, Share, places_of
from reliable_mq_kafka.records import KafkaRecord
from reliable_mq_kafka.starts import Starts
from reliable_mq_kafka.steering import Steering

log = logging.getLogger("reliable_mq.kafka")

_PROBE = 1.0
_COMMIT_POLL = 0.01
_OUTCOME = 0.02
_ANOTHER = "its topic was made anew, or has lost all it had; it is read from its beginning"
_SHORTER = "its log has lost its end, of which more was read; it is read on from where it ends now"


class Intake:
    """Joins the group when it is made; used by one thread, which also runs the callbacks.

    No other thread touches the client: a call would wait for the running poll to end.
    """

    def __init__(
        self, clients: Clients, identities: Identities, topics: Sequence[str], group: str
    ) -> None:
        self._identities = identities
        self._looks = 0
        self._topics = list(topics)
        self._doing = f"cannot receive from {', '.join(topics)} as group {group!r}"
        self._health = Health()
        self._share = Share()
        self._ahead = Ahead()
        self._window = Window()
        self._steering = Steering(self._share, self._doing)
        self._starts = Starts(self._share, self._steering, identities, self._doing)
        self._just_assigned: set[Place] = set()
        self._generation: object = None
        self._look_again = 0.0
        self._trouble: ReliableMQError | None = None
        self._lost: list[Lost] = []
        self._leaving = False
        self._closing = False
        self.broken = False
        """Whether the client can do nothing more, and a new one is needed."""
        self.barred: ReliableMQError | None = None
        """Why no new client may take its place, if so: it would push out who took this one's."""
        self.commits = Commits(self._share, clients.options.commit_interval)
        self._consumer = clients.member(self._health, group, topics, self.commits.on_commit)
        with translated(self._doing):
            self._consumer.subscribe(
                self._topics,
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )

    # --- receiving ---

    @property
    def held(self) -> int:
        """Return how many deliveries are with the application."""
        return self._share.held

    @property
    def has_news(self) -> bool:
        """Tell whether something was lost since the last :meth:`lost`."""
        return bool(self._lost)

    @property
    def is_ready(self) -> bool:
        """Tell whether a delivery can be handed out without reading."""
        return len(self._ahead) > 0

    def take(self, limit: int) -> list[Received]:
        """Return up to *limit* deliveries of what was read."""
        taken = self._ahead.take(limit)
        if taken:
            self._trouble = None
            if self._health.troubled:
                self._health.recovered()
        return taken

    def lost(self) -> list[Lost]:
        """Return what was lost since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def pull(self, asked: int, timeout: float) -> None:
        """Serve the client for up to *timeout* s, reading ahead so that *asked* can be taken.

        Returns early with the first record.
        """
        try:
            self._pull(asked, timeout)
        except KafkaException as error:
            self._fail(error_of(error))
            self.broken = True
            raise translate(reason_of(error_of(error)), self._doing) from error
        except Exception:
            # What the client gave and was not taken in would be passed over: another one reads
            # it again.
            self.broken = True
            raise

    def _pull(self, asked: int, timeout: float) -> None:
        self.commits.send_if_due(self._consumer)
        self._starts.find(self._consumer)
        self._check_logs()
        self._steering.position(self._consumer)
        self._steering.watch(troubled=self._health.troubled)
        if self._steering.halted and len(self._ahead) <= asked:
            self._steering.go_on(self._consumer)
            self._window.restart()
        room = self._ahead.room(asked)
        if (room <= 0 and timeout) or self._must_look_through():
            self._steering.halt(self._consumer)
        if self._steering.halted:
            self._poll(timeout)
        elif room > 0:
            self._read(room, timeout)
        elif room > -SPARE:
            self._look_for_outcome()

    def _must_look_through(self) -> bool:
        """Tell whether what the client has queued must be emptied to see what waits behind it.

        That is a rebalance as a rule, and the generation of the group tells of it at once.
        """
        if self._steering.halted or not self._window.look():
            return False
        before, self._generation = self._generation, self._consumer.consumer_group_metadata()
        changed = before is not None and before != self._generation
        return changed or self.commits.failure is not None or self._window.overdue

    def _look_for_outcome(self) -> None:
        """See whether the commit that is under way has ended: that comes before all records.

        Behind it comes a record, for which there is no room, so it is not looked for too often.
        """
        now = time.monotonic()
        if self.commits.under_way and now >= self._look_again:
            self._look_again = now + _OUTCOME
            self._poll(0.0)

    def _read(self, room: int, timeout: float) -> None:
        count = self._consume(room)
        if not count and timeout and self._poll(timeout):
            count = 1 + self._consume(room - 1)
        self._window.note(count, room)

    def _poll(self, timeout: float) -> bool:
        record = self._consumer.poll(timeout)
        if record is None:
            return False
        self._take_in(record)
        return True

    def _consume(self, room: int) -> int:
        if room <= 0:
            return 0
        self._just_assigned.clear()
        records = self._consumer.consume(room, 0)
        for record in self._certain(records) if self._just_assigned else records:
            self._take_in(record)
        return len(records)

    def _certain(self, records: Sequence[KafkaRecord]) -> list[KafkaRecord]:
        """Leave out partitions that were assigned while *records* were being collected.

        Records of theirs may stem from an ownership that ended meanwhile: this one begins
        elsewhere, so that they would leave a gap, or be done already. It is read anew.
        """
        certain = []
        for record in records:
            one = self._share.at(record.topic(), record.partition())
            if one is not None and one.place in self._just_assigned:
                self._steering.lead_back(one)
            else:
                certain.append(record)
        self._steering.position(self._consumer)
        return certain

    def _take_in(self, record: KafkaRecord) -> None:
        if self._leaving:
            return
        error = record.error()
        if error is not None:
            self._note(error, record)
            return
        one = self._share.at(record.topic(), record.partition())
        offset = record.offset()
        if one is None or offset is None or not one.read(offset):
            return
        self._ahead.put(one, record)
        if self._steering.is_unwanted(one):
            self._steering.pause(self._consumer, [one])

    def _note(self, error: KafkaError, record: KafkaRecord) -> None:
        """Note what the client reports in the place of a record."""
        one = self._share.at(record.topic(), record.partition())
        if error.code() == KafkaError._PARTITION_EOF:
            if one is not None:
                one.reached_end(record.offset() or 0, time.monotonic())
        elif error.code() == KafkaError._MAX_POLL_EXCEEDED:
            log.warning("%s: nobody asked for too long (max.poll.interval.ms)", self._doing)
        else:
            self._fail(error)

    def _fail(self, error: KafkaError) -> None:
        """Note an error of the client's; a fatal one means that it will never receive again."""
        reason = reason_of(error)
        self._trouble = translate(reason, self._doing)
        self.broken = self.broken or is_fatal(error)
        if reason.code() == KafkaError.FENCED_INSTANCE_ID:
            self.barred = self._trouble

    def hold_back(self, names: Collection[str]) -> None:
        """Read no more of the partitions *names*, and go on with all others."""
        with translated(self._doing):
            self._steering.hold_back(self._consumer, names)

    # --- committing ---

    def commit_now(self) -> None:
        """Send what is to be committed, unless a commit is under way."""
        self.commits.send_now(self._consumer)

    def unanswered(self, doing: str) -> ReliableMQError:
        """Return the error for something that the brokers did not answer."""
        failure = self.commits.failure
        return self._health.error(doing) if failure is None else translate(failure, doing)

    # --- trouble ---

    def raise_trouble(self) -> None:
        """Raise what keeps this member from receiving; nothing otherwise.

        Where the brokers cannot be reached, whatever is with the application is lost before.
        """
        trouble, self._trouble = self._trouble or self.commits.trouble(self._doing), None
        if trouble is not None:
            raise trouble
        if self._health.troubled and not self._answers():
            for one in self._share:
                if one.held:
                    self.begin_again(one)
            raise self._health.error(self._doing)

    def _answers(self) -> bool:
        try:
            self._consumer.list_topics(self._topics[0], timeout=_PROBE)
        except KafkaException:
            # It says only that; why is reported by the next poll.
            return False
        self._health.recovered()
        return True

    # --- ownership ---

    def under(self, name: str, epoch: int) -> OwnedPartition | None:
        """Return the partition *name* where it is owned under *epoch* still."""
        return self._share.under(name, epoch)

    def named(self, name: str) -> OwnedPartition | None:
        """Return the partition *name* where it is owned."""
        return self._share.named(name)

    def begin_again(self, one: OwnedPartition, last: int | None = None) -> None:
        """Read a partition again from its first record that is not done, under a new epoch.

        With *last* from that offset at the latest: what is there is not what was read before.
        """
        self._ahead.drop(one)
        self._lost.append(self._share.begin_again(one, last))
        self._steering.lead_back(one)
        self._steering.position(self._consumer)

    def _check_logs(self) -> None:
        """Begin again with each partition whose log is not, or not all, what was read of it."""
        looks, self._looks = self._looks, self._identities.looks
        for one in self._share if self._looks > looks else ():
            identity = self._identities.of(one.topic)
            foreign = None if identity is None else one.foreign_from(*identity)
            if foreign is not None:
                log.warning("%s: %s", one.name, _SHORTER if foreign else _ANOTHER)
                self.begin_again(one, foreign)

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:
            return
        self._generation = consumer.consumer_group_metadata()
        self._health.recovered()
        self._just_assigned.update(places_of(partitions))
        self._starts.begin(consumer, partitions)

    def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:
            return
        leaving = self._lose(partitions)
        self.commits.send_last(consumer, leaving)

    def _on_lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        if self._closing:
            return
        if any(one.dirty for one in self._lose(partitions)):
            self.commits.forfeited = True

    def _lose(self, partitions: list[TopicPartition]) -> list[OwnedPartition]:
        found = [one for place in places_of(partitions) if (one := self._share.remove(place))]
        for one in found:
            self._ahead.drop(one)
            self._steering.forget(one)
            self._lost.append(one.lost())
        return found

    # --- the end ---

    def leave(self, patience: float) -> None:
        """Commit what is done and leave the group, within twice *patience* seconds.

        Where the brokers do not answer in time, the client is thrown away instead: the group
        goes on without this member once its session has expired.
        """
        self._leaving = True
        polite = not self.broken and self._commit_all(patience)
        self._closing = True
        consumer = self._consumer
        del self._consumer
        # A client that cannot reach its brokers may take minutes to end. Nobody waits for that.
        end = threading.Thread(
            target=_end, args=(consumer, polite), name="reliable-mq-kafka-end", daemon=True
        )
        del consumer
        end.start()
        end.join(patience)

    def _commit_all(self, patience: float) -> bool:
        """Return whether the brokers know everything that is done."""
        deadline = time.monotonic() + patience
        while not self.commits.settled:
            if self._health.troubled or time.monotonic() >= deadline:
                return False
            self.commits.send_now(self._consumer)
            try:
                self._consumer.poll(_COMMIT_POLL)
            except KafkaException as error:
                log.debug("%s: %s", self._doing, error)
                return False
        return not self._health.troubled

    def forsake(self) -> list[Lost]:
        """Give up whatever a broken client owned; return what was lost since the last time."""
        self._lose([TopicPartition(*one.place) for one in self._share])
        return self.lost()

    def abandon(self) -> list[Lost]:
        """Throw a broken client away; return the loss of everything."""
        lost = self.forsake()
        self.leave(0.1)
        return lost


def _end(consumer: Consumer, polite: bool) -> None:
    """End a client, on a thread of its own; without *polite* the brokers are not told."""
    if polite:
        # Everything is committed. Should the brokers not hear of it, the session expires.
        with suppress(KafkaException):
            consumer.close()
    # Else the last reference goes here, and with it the client.
