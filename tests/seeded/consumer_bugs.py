"""Bugs of the consumer: when it acknowledges, what it remembers, what it does with a failure."""

from __future__ import annotations

from tests.seeded.bug import Bug, Edit, bug

_GROUP = "reliable_mq/consumer/group.py"
_PROCESSOR = "reliable_mq/consumer/processor.py"
_SUBJECTS = "reliable_mq/consumer/subjects.py"
_TRANSACTION = "reliable_mq/consumer/transaction.py"
_GUARD = "reliable_mq/consumer/guard.py"
_SCHEDULER = "reliable_mq/consumer/scheduler.py"
_BATCHES = "reliable_mq/consumer/batches.py"
_FAILURES = "reliable_mq/consumer/failures.py"
_LANES = "reliable_mq/consumer/lanes.py"
_LEDGER = "reliable_mq/consumer/ledger.py"
_APP = "reliable_mq/app.py"

_HANDLING = "consumer/test_handling.py::"
_ORDERED = (
    "consumer/test_ordered.py::"
    "test_later_messages_of_a_failed_key_wait_behind_it_and_other_keys_go_on[sqlite-1-1]"
)
_TOO_LARGE = "consumer/test_too_large.py::"
_COMMIT = "        self.committing = True\n        self.connection.commit()"

BUGS = (
    bug(
        "a delivery is acknowledged before its commit",
        _GROUP,
        "        self._accept(batch)\n",
        "        subscription.ack(batch.deliveries)\n        self._accept(batch)\n",
        _HANDLING + "test_effectively_once_is_not_acknowledged_before_its_commit[sqlite]",
    ),
    bug(
        "a delivery about which nothing was decided is acknowledged",
        _SCHEDULER,
        "ended = [i for i, r in results if not isinstance(r, Again)]",
        "ended = [i for i, _ in results]",
        "consumer/test_scheduler.py::test_again_without_a_delay_comes_back_first",
    ),
    bug(
        "a dead letter that cannot be written is acknowledged all the same",
        _PROCESSOR,
        "            # Also after a COMMIT of unknown outcome: the delivery starts again",
        "            return Ended.DEAD #",
        "consumer/test_group.py::"
        "test_an_at_most_once_handler_whose_failure_cannot_be_stored_yet_is_not_run_again",
    ),
    bug(
        "an at-most-once delivery is acknowledged after its handler",
        _GROUP,
        "            self._ack_first = AckFirst()\n",
        "",
        _HANDLING + "test_at_most_once_is_acknowledged_before_the_handler_runs[sqlite]",
    ),
    bug(
        "more is acknowledged while it is not known whether the last was",
        _GROUP,
        "if self._ack_first is not None and not self._ack_first.idle:",
        "if False:",
        "consumer/test_group.py::"
        "test_what_cannot_be_acknowledged_is_not_handled_and_no_more_is_taken_in",
    ),
    bug(
        "an acknowledgement that came too late counts",
        "reliable_mq/testing/memory/broker.py",
        "            return bool(member.lost)",
        "            return False",
        "consumer/test_group.py::"
        "test_a_message_whose_acknowledgement_did_nothing_is_not_handled_before_it_comes_again",
    ),
    bug(
        "the inbox is written and not asked",
        _SUBJECTS,
        "return claimed if claimed.new else self._not_new(transaction, subject, claimed.known)",
        "return claimed",
        _HANDLING + "test_the_same_message_again_is_skipped[sqlite]",
    ),
    bug(
        "the inbox row is committed before the handler runs",
        _SUBJECTS,
        "        claimed = books.claim(transaction, self, done=True)\n",
        "        claimed = books.claim(transaction, self, done=True)\n"
        "        transaction.guard.finishing = True\n"
        "        transaction.connection.exec_driver_sql('COMMIT')\n"
        "        transaction.connection.exec_driver_sql('BEGIN')\n"
        "        transaction.guard.finishing = False\n",
        _HANDLING + "test_a_failure_undoes_its_effects_and_is_tried_again_after_the_delay[sqlite]",
    ),
    Bug(
        "the inbox does not know groups",
        (
            Edit(
                "reliable_mq/store/inbox.py",
                '"consumer_group": group,',
                '"consumer_group": "everybody",',
            ),
            Edit(
                "reliable_mq/store/inbox.py",
                "        return [\n            columns.consumer_group == group,",
                '        return [\n            columns.consumer_group == "everybody",',
            ),
        ),
        (_HANDLING + "test_two_groups_have_their_own_memory[sqlite]",),
    ),
    bug(
        "another message under a known id is a duplicate",
        "reliable_mq/store/inbox.py",
        "return Seen.DUPLICATE if same else Seen.CONFLICT",
        "return Seen.DUPLICATE",
        _HANDLING + "test_the_same_id_with_another_body_is_a_dead_letter_and_replays_under_an_id"
        "_of_its_own[sqlite]",
    ),
    bug(
        "attempts are not counted in the store",
        "reliable_mq/store/retries.py",
        "                attempt=attempt,\n                due_at=",
        "                attempt=waiting.attempt,\n                due_at=",
        _HANDLING + "test_a_failure_undoes_its_effects_and_is_tried_again_after_the_delay[sqlite]",
    ),
    bug(
        "a dead letter stays after its replay",
        "reliable_mq/store/dead_letters.py",
        "deleted = connection.execute(delete(self._table).where(self._table.c.id == id_))\n"
        "        return _stored(row) if deleted.rowcount == 1 else None",
        "return _stored(row)",
        _HANDLING + "test_a_replay_is_handled_once_and_may_die_again[sqlite]",
    ),
    bug(
        "a dead letter is not sent to its topic",
        _FAILURES,
        "if not self._settings.dead_letter.publish:",
        "if self._settings.dead_letter.publish:",
        _HANDLING + "test_the_last_failure_makes_a_dead_letter_with_everything_in_it[sqlite]",
    ),
    bug(
        "a database error that the handler swallowed is overlooked",
        _GUARD,
        "        if self.error is not None:\n            raise",
        "        if False:\n            raise",
        _HANDLING + "test_a_swallowed_database_error_does_not_end_as_handled[sqlite]",
    ),
    bug(
        "a handler may commit by SQL",
        _GUARD,
        "        guard.refuse(statement)\n",
        "        return\n",
        _HANDLING + "test_a_handler_cannot_end_its_transaction_by_sql[sqlite-COMMIT]",
    ),
    bug(
        "a handler that wants to end the process has succeeded",
        _PROCESSOR,
        "return self._judge(subject, stopped, progress, tries)",
        "return Ended.HANDLED",
        _HANDLING + "test_a_handler_that_wants_to_end_the_process_has_failed[sqlite-SystemExit]",
    ),
    bug(
        "a handler that ran out of time has succeeded",
        _LANES,
        "    async with asyncio.timeout(timeout):\n        await handler",
        "    try:\n        async with asyncio.timeout(timeout):\n            await handler\n"
        "    except TimeoutError:\n        return",
        "consumer/test_async.py::test_a_timeout_cancels_the_attempt_and_undoes_its_effects[sqlite]",
    ),
    bug(
        "what follows a failed message of its key does not wait",
        _SUBJECTS,
        "        if not waits:",
        "        if True or not waits:",
        _ORDERED,
    ),
    Bug(
        "waiting messages of a key are retried in any order",
        (
            Edit(
                "reliable_mq/store/retries.py",
                "            query = query.where(~self._earlier_exists())\n        return [",
                "            pass\n        return [",
            ),
            Edit(
                _SUBJECTS,
                "if self._books.ordered and not retries.is_head(connection, self._waiting):",
                "if False:",
            ),
        ),
        (_ORDERED,),
    ),
    bug(
        "a batch whose handler failed is acknowledged whole",
        _BATCHES,
        'log.debug("a batch of %d failed, each by itself now: %r", len(together), error)',
        "return [(item, Ended.HANDLED) for item in items]",
        "consumer/test_batches.py::"
        "test_a_failure_in_a_batch_is_the_failed_messages_alone_and_the_batch_was_no_attempt"
        "[sqlite]",
    ),
    bug(
        "a batch handles what was handled before",
        _BATCHES,
        "in zip(items, payloads, strict=True)\n                if item.message.id in new\n",
        "in zip(items, payloads, strict=True)\n",
        "consumer/test_batches.py::"
        "test_copies_inside_a_batch_and_from_before_are_applied_once[sqlite]",
    ),
    bug(
        "a stop acknowledges what did not run",
        _SCHEDULER,
        "            self._stopped = True\n",
        "            self._stopped = True\n"
        "            self._finished.extend(item.received for item in self._live.values())\n",
        "consumer/test_group.py::test_a_stop_says_exactly_how_many_deliveries_it_left",
    ),
    bug(
        "deliveries of a lost partition are acknowledged",
        _SCHEDULER,
        "        if id(item) in self._live:\n            self._forget(item)\n",
        "        if True:\n            self._live.pop(id(item), None)\n",
        "consumer/test_scheduler.py::test_work_that_was_lost_meanwhile_is_not_acknowledged",
    ),
    bug(
        "two workers take one key",
        _SCHEDULER,
        "                    self._enqueue(key, item)",
        "                    self._free.append(item)",
        "consumer/test_scheduler.py::test_a_key_is_given_to_one_worker_at_a_time",
    ),
    bug(
        "a publish without a transaction goes past the outbox",
        _APP,
        "        target = session if session is not None else",
        "        if session is None and current.innermost(runtime.store) is None:\n"
        "            return self._send(message, None)\n"
        "        target = session if session is not None else",
        _HANDLING
        + "test_at_least_once_has_no_current_transaction_and_retries_from_the_store[sqlite]",
    ),
    bug(
        "a COMMIT of unknown outcome counts as a success",
        _TRANSACTION,
        _COMMIT,
        "        self.committing = True\n"
        "        try:\n            self.connection.commit()\n"
        "        except Exception:\n            pass",
        "e2e/test_unknown_commit.py::test_of_a_handler_its_effects_are_there_once"
        "[postgresql-before_commit]",
        servers="postgresql",
    ),
    bug(
        "an idle worker takes a part of a key from a busy one",
        _SCHEDULER,
        "            if key is None or key != self._key(work.items[start - 1]):",
        "            if key is not start:",
        "consumer/test_scheduler.py::"
        "test_a_key_whose_next_delivery_waits_for_a_retry_is_not_taken_apart",
    ),
    bug(
        "what waits behind a slow handler is left to its worker",
        _SCHEDULER,
        "if items else self._take_away()",
        "if items else None",
        "consumer/test_scheduler.py::"
        "test_an_idle_worker_takes_half_of_what_a_busy_one_has_not_begun",
    ),
    bug(
        "what another worker takes away meanwhile is given back as well",
        _SCHEDULER,
        "        with self._changed:\n"
        "            # Only here: until now another worker may have taken some of them away.\n"
        "            unbegun = [(item, 0.0) for item in work.items if id(item) not in known]\n",
        "        unbegun = [(item, 0.0) for item in work.items if id(item) not in known]\n"
        "        with self._changed:\n",
        "consumer/test_scheduler.py::"
        "test_what_is_taken_from_a_worker_that_is_giving_up_just_then_has_one_worker[False]",
    ),
    bug(
        "a retry row is handled without a look at whether it is still there",
        _PROCESSOR,
        "        if isinstance(subject, Fresh) or self._at_most_once:",
        "        if subject is not None:",
        _HANDLING
        + "test_a_row_that_another_process_ended_after_it_was_read_is_not_handled[sqlite]",
    ),
    bug(
        "a retry row that ended since it was read is handed over",
        _SCHEDULER,
        "            if waiting.seq in self._retries_left:\n                return False\n",
        "",
        "consumer/test_scheduler.py::"
        "test_a_retry_row_that_was_left_since_the_look_began_is_not_as_it_was_read",
    ),
    bug(
        "what is too large to wait in the store waits there without its body",
        _PROCESSOR,
        "stays = shortage is not None and isinstance(decision, TryLater)",
        "stays = False",
        _TOO_LARGE + "test_its_attempts_are_made_in_place_with_all_of_it[sqlite]",
    ),
    bug(
        "a dead letter that lacks its body is replayed",
        "reliable_mq/store/dead_letters.py",
        "if not stored.letter.complete:",
        "if False:",
        _TOO_LARGE + "test_a_replay_is_refused_and_says_why_and_discarding_is_not[sqlite]",
    ),
    bug(
        "a message that is retried in memory is handled in a batch, as if for the first time",
        _BATCHES,
        " or any(item.attempts for item in items)",
        "",
        _TOO_LARGE + "test_its_attempts_are_counted_where_there_are_batches[sqlite]",
    ),
    bug(
        "the row that follows in its key may be handed over beside",
        _SCHEDULER,
        "            self._retries_known.add(following.seq)\n",
        "",
        "consumer/test_scheduler.py::"
        "test_the_row_that_follows_in_its_key_is_in_hand_and_the_first_one_no_more",
    ),
    bug(
        "exactly once: an output without a topic is tried again with everything else",
        _LEDGER,
        "line.completion is None or line.not_before > now",
        "line.completion is None",
        "consumer/test_ledger.py::test_what_is_postponed_keeps_back_its_own_partition_alone",
    ),
    bug(
        "exactly once: one partition that waits takes the room of all",
        _LEDGER,
        "        return is_stuck and count >= most\n",
        "        return False\n",
        "consumer/test_ledger.py::"
        "test_where_there_is_no_room_left_every_partition_that_does_not_go_on_is_held_back",
    ),
    bug(
        "exactly once: after an outage a partition waits as long as it was tried in vain",
        _LEDGER,
        "        return max(took, PENALTY) if is_its_own_fault else PENALTY\n",
        "        return max(took, PENALTY)\n",
        "consumer/test_ledger.py::"
        "test_after_an_outage_no_partition_waits_as_long_as_it_was_tried_in_vain",
    ),
    bug(
        "exactly once: a partition that fails again and again gets most of the time",
        _LEDGER,
        "        return max(took, PENALTY) if is_its_own_fault else PENALTY\n",
        "        return PENALTY\n",
        "consumer/test_ledger.py::"
        "test_a_partition_that_fails_again_while_others_do_not_waits_as_long_as_it_took",
    ),
    bug(
        "exactly once: a transaction that failed is made again as it was",
        _LEDGER,
        "            self._limits[place[0]] = max(1, count // 2)\n",
        "",
        "consumer/test_ledger.py::"
        "test_after_a_failure_each_partition_comes_alone_and_with_half_of_it",
    ),
)
