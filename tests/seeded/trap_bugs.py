"""For each trap a bug that springs it, and its test below ``tests/traps/`` that must notice."""

from __future__ import annotations

from tests.seeded import adapter_bugs, consumer_bugs, relay_bugs, store_bugs
from tests.seeded.bug import Bug, Edit

_KNOWN = {
    one.name: one
    for one in (*relay_bugs.BUGS, *consumer_bugs.BUGS, *store_bugs.BUGS, *adapter_bugs.BUGS)
}


def _springs(
    number: int, test: str, bug: Bug | str, *, servers: str = "", slow: bool = False
) -> Bug:
    """Return *bug*, which may be the name of a known one, as one that springs the trap *number*."""
    known = _KNOWN[bug] if isinstance(bug, str) else bug
    where = f" on {' and '.join(servers.split())}" if servers else ""
    return Bug(
        f"trap {number}{where}: {known.name}",
        known.edits,
        (f"traps/{test}",),
        servers=tuple(servers.split()),
        trap=number,
        slow=slow,
    )


def _new(name: str, path: str, old: str, new: str) -> Bug:
    return Bug(name, (Edit(path, old, new),), ())


_NO_KEEP_ALIVE = _new(
    "what handlers work on is not kept alive",
    "reliable_mq/consumer/group.py",
    "                subscription.keep_alive(held)",
    "                pass",
)
_GROUPS_AT_THE_END = _new(
    "Redis: a group begins behind what is there",
    "reliable_mq_redis/lua/declare_group.lua",
    "'0', 'MKSTREAM'",
    "'$', 'MKSTREAM'",
)
_CLEANED_BY_AGE = _new(
    "the inbox forgets by age what waits or lies dead",
    "reliable_mq/store/inbox.py",
    "columns.done_at < self._store.now()",
    "columns.received_at <= self._store.now()",
)
_NO_RETENTION_CHECK = _new(
    "nobody compares the inbox's retention with the broker's",
    "reliable_mq/declaring.py",
    "if deduplicates and bound",
    "if not settings and bound",
)
_DUPLICATES_STAY = _new(
    "duplicates are not acknowledged",
    "reliable_mq/consumer/subjects.py",
    "            transaction.commit()\n            return Ended.DUPLICATE",
    "            return Again(0.05)",
)
_CLEANED_AT_ONCE = _new(
    "the inbox is cleaned in one transaction, however much there is",
    "reliable_mq/store/inbox.py",
    "            .limit(CLEAN_CHUNK)\n",
    "",
)
_RETRIES_FORGOTTEN = _new(
    "nobody looks for retries that are due",
    "reliable_mq/consumer/retry_loop.py",
    "            if not group.waiting:\n",
    "            if group:\n",
)
_HANDLERS_ON_INTAKE = _new(
    "the broker is not served while a handler runs",
    "reliable_mq/consumer/group.py",
    "        trouble = self._try_to_acknowledge(subscription)\n",
    "        self.scheduler.wait_for(lambda: not self.scheduler.working, 30.0)\n"
    "        trouble = self._try_to_acknowledge(subscription)\n",
)

_01 = "test_01_ack_before_the_effect_is_durable.py::test_trap_01_"
_02 = "test_02_only_the_contiguous_watermark_is_committed.py::test_trap_02_"
_03 = "test_03_dedup_outside_the_handlers_transaction.py::test_trap_03_"
_04 = "test_04_dedup_key_not_scoped.py::test_trap_04_"
_05 = "test_05_dedup_window_and_duplicates.py::"
_06 = "test_06_sent_without_confirmed_and_routed.py::test_trap_06_"
_07 = "test_07_id_order_taken_for_commit_order.py::test_trap_07_"
_08 = "test_08_redis_pending_entries.py::test_trap_08_"
_09 = "test_09_a_lease_without_fencing.py::TestTheBrokersBooks::test_trap_09_"
_10 = "test_10_a_poison_outbox_row.py::test_trap_10_"
_11 = "test_11_order_broken_by_a_partial_failure.py::test_trap_11_"
_12 = "test_12_a_transaction_across_a_broker_send.py::"
_13 = "test_13_retry_count_dead_letter_and_replay.py::test_trap_13_"
_14 = "test_14_shutdown_that_drops_or_commits.py::test_trap_14_"
_15 = "test_15_a_publish_past_the_outbox.py::test_trap_15_"
_16 = "test_16_failures_nobody_retries.py::test_trap_16_"
_17 = "test_17_a_hot_key.py::test_trap_17_"
_18 = "test_18_handlers_in_the_poll_loop.py::test_trap_18_"
_19 = "test_19_crash_tests_that_stop_politely.py::test_trap_19_"

BUGS = (
    _springs(
        1,
        _01 + "a_process_killed_in_its_handler_has_acknowledged_nothing[redis]",
        "a delivery is acknowledged before its commit",
        servers="redis postgresql",
    ),
    _springs(
        1,
        _01 + "a_failure_that_cannot_be_written_down_is_not_acknowledged[redis]",
        "a dead letter that cannot be written is acknowledged all the same",
        servers="redis postgresql",
    ),
    _springs(
        2,
        _02 + "what_is_done_behind_an_unfinished_offset_does_not_move_the_commit_past_it[kafka]",
        "Kafka: offsets are committed past an unfinished one",
        servers="kafka postgresql",
    ),
    _springs(
        3,
        _03 + "a_message_whose_handler_died_is_new_when_it_comes_again[sql-sqlite]",
        "the inbox row is committed before the handler runs",
    ),
    _springs(
        4,
        _04 + "each_group_and_each_topic_sees_the_same_id_once[sql]",
        "the inbox does not know groups",
    ),
    _springs(
        4,
        _04 + "another_message_under_a_known_id_is_not_taken_for_the_first_one[sql]",
        "another message under a known id is a duplicate",
    ),
    _springs(
        5,
        _05 + "TestTheWindow::"
        "test_trap_05_an_inbox_that_forgets_before_the_broker_does_is_refused[sql]",
        _NO_RETENTION_CHECK,
    ),
    _springs(
        5,
        _05 + "TestTheWindow::test_trap_05_what_lies_dead_is_remembered_however_long[sql]",
        _CLEANED_BY_AGE,
    ),
    _springs(
        5,
        _05 + "test_trap_05_a_duplicate_is_acknowledged_and_does_not_come_again[sql]",
        _DUPLICATES_STAY,
        slow=True,
    ),
    _springs(
        6,
        _06 + "a_message_for_a_topic_that_does_not_exist_stays_until_it_does[sql]",
        "a message without a route counts as sent",
    ),
    _springs(
        6,
        _06 + "a_message_for_a_topic_that_does_not_exist_stays_until_it_does[rabbitmq]",
        "a message without a route counts as sent",
        servers="rabbitmq",
    ),
    _springs(
        7,
        _07 + "a_transaction_that_drew_its_id_first_and_committed_last_is_sent_in_order"
        "[sql-postgresql]",
        "the outbox is read on from the last id",
        servers="postgresql",
        slow=True,
    ),
    _springs(
        8,
        _08 + "a_living_handler_keeps_its_entry_longer_than_a_lease[redis]",
        _NO_KEEP_ALIVE,
        servers="redis postgresql",
    ),
    _springs(
        8,
        _08 + "a_group_gets_what_was_there_before_it[redis]",
        _GROUPS_AT_THE_END,
        servers="redis postgresql",
    ),
    _springs(
        9,
        _09 + "a_stopped_owner_is_replaced_and_changes_nothing_when_it_goes_on",
        "a former owner moves the cursor of a partition",
    ),
    _springs(
        10,
        _10 + "a_row_that_cannot_be_read_is_held_and_shown_and_the_others_go_on[sql]",
        "a row that cannot be read vanishes",
    ),
    _springs(
        10,
        _10 + "a_row_that_cannot_be_read_is_held_and_shown_and_the_others_go_on[sql]",
        "a row that cannot be read ends the round",
    ),
    _springs(
        11,
        _11 + "a_message_that_cannot_be_read_stops_its_key_and_no_other[sql]",
        "messages go on behind a held one of their key",
    ),
    _springs(
        11,
        _11 + "a_message_too_large_for_its_topic_stops_its_key_and_no_other[kafka]",
        "messages go on behind a held one of their key",
        servers="kafka",
    ),
    _springs(
        12,
        _12 + "TestABrokerThatDoesNotAnswer::test_trap_12_keeps_no_transaction_open",
        "a transaction is open while the broker is asked",
        servers="postgresql",
    ),
    _springs(
        12,
        _12 + "test_trap_12_cleaning_takes_a_bounded_number_of_rows_at_a_time[sql]",
        _CLEANED_AT_ONCE,
    ),
    _springs(
        13,
        _13 + "attempts_are_counted_through_a_kill_and_end_in_one_dead_letter[sql]",
        "attempts are not counted in the store",
    ),
    _springs(
        13,
        _13 + "a_replay_is_done_once_however_often_it_is_asked_for[sql]",
        "a dead letter stays after its replay",
    ),
    _springs(
        14,
        _14 + "sigterm_lets_what_runs_end_and_leaves_the_rest_to_others[sql]",
        "a stop acknowledges what did not run",
        servers="postgresql",
    ),
    _springs(
        15,
        _15 + "a_publish_outside_a_transaction_raises[sql]",
        "a publish without a transaction goes past the outbox",
    ),
    _springs(
        16,
        _16 + "what_failed_in_a_process_that_died_is_retried_by_another[sql]",
        _RETRIES_FORGOTTEN,
        slow=True,
    ),
    _springs(
        17,
        _17 + "a_hot_key_fills_whole_batches_and_keeps_its_order[sql]",
        "of each key one message goes into a batch",
    ),
    _springs(
        18,
        _18 + "a_handler_may_take_longer_than_the_broker_waits_for_a_sign_of_life[kafka]",
        _HANDLERS_ON_INTAKE,
        servers="kafka postgresql",
    ),
    _springs(
        19,
        _19 + "a_killed_process_gives_nothing_back_and_others_take_over_all_the_same[sql]",
        "what a dead process held is free only if it gave it back",
        slow=True,
    ),
)
