"""Bugs of the relay: what it counts as sent, what it does after a failure, whose rows it sends."""

from __future__ import annotations

from tests.seeded.bug import Bug, Edit, bug

_RELAY = "reliable_mq/relay/relay.py"
_VERDICT = "reliable_mq/relay/verdict.py"
_READING = "reliable_mq/store/outbox/reading.py"
_SENDING = "reliable_mq/store/outbox/sending.py"
_IS_SENT = "if isinstance(outcome, Sent):"
_PUBLISH = "            outcomes = self._sender.publish("

BUGS = (
    Bug(
        "rows are deleted before they are published",
        (
            Edit(
                _RELAY, "outbox.sending import sendable", "outbox.sending import sendable, settle"
            ),
            Edit(
                _RELAY,
                _PUBLISH,
                "            settle(self._store, [row for row, _ in readable], [])\n" + _PUBLISH,
            ),
        ),
        (
            "relay/test_outcomes.py::test_trap_6_an_outage_deletes_nothing_and_is_told_once_each_way"
            "[sqlite]",
        ),
    ),
    bug(
        "an unknown outcome counts as sent",
        _VERDICT,
        _IS_SENT,
        "if isinstance(outcome, Sent | Unknown):",
        "relay/test_outcomes.py::test_trap_6_an_outage_deletes_nothing_and_is_told_once_each_way"
        "[sqlite]",
    ),
    bug(
        "a message without a route counts as sent",
        _VERDICT,
        _IS_SENT,
        "if isinstance(outcome, Sent | Unroutable):",
        "relay/test_outcomes.py::"
        "test_trap_6_a_topic_nobody_listens_to_stays_is_shown_and_is_tried_again[sqlite]",
    ),
    bug(
        "a refused message counts as sent",
        _VERDICT,
        _IS_SENT,
        "if isinstance(outcome, Sent | Refused):",
        "relay/test_outcomes.py::test_a_refused_message_is_held_with_its_cause[sqlite]",
    ),
    bug(
        "a key is not stopped at its first failure",
        _VERDICT,
        "            verdict.stop(row)",
        "            pass",
        "relay/test_order.py::"
        "test_keys_that_a_batch_did_not_send_are_left_out_of_the_next_one[sqlite]",
    ),
    bug(
        "a key goes on behind a message that was skipped",
        "reliable_mq/relay/relay.py",
        "                verdict.stop(row)\n",
        "",
        "relay/test_order.py::"
        "test_what_is_behind_a_skipped_message_is_skipped_though_its_topic_has_a_route_by_then"
        "[sqlite]",
    ),
    bug(
        "messages go on behind a held one of their key",
        _READING,
        "held.c.topic == outbox.c.topic, held.c.message_key == outbox.c.message_key",
        "held.c.id == outbox.c.id",
        "relay/test_order.py::test_messages_committed_behind_a_held_one_wait_too[sqlite]",
        "relay/test_order.py::test_trap_11_a_refused_message_stops_its_key_and_no_other[sqlite]",
    ),
    bug(
        "the outbox is read on from the last id",
        _READING,
        "            found.sort(key=itemgetter(_ID))\n",
        "            last = getattr(self, '_last', 0)\n"
        "            found = sorted((r for r in found if r[_ID] > last), key=itemgetter(_ID))\n"
        "            self._last = max([last, *(r[_ID] for r in found)])\n",
        "relay/test_order.py::"
        "test_an_unknown_outcome_is_sent_again_with_the_same_id_before_what_follows_it[sqlite]",
    ),
    bug(
        "a row that cannot be read ends the round",
        _RELAY,
        "unreadable.append((row, str(error)))",
        "raise",
        "relay/test_outcomes.py::"
        "test_trap_10_a_row_that_cannot_be_read_is_held_and_blocks_nobody[sqlite-headers]",
    ),
    bug(
        "a row that cannot be read vanishes",
        _RELAY,
        "verdict.refuse(row, cause)",
        "verdict.sent.append(row)",
        "relay/test_outcomes.py::"
        "test_trap_10_a_row_that_cannot_be_read_is_held_and_blocks_nobody[sqlite-key]",
    ),
    bug(
        "the relay's loop ends with the first exception",
        _RELAY,
        "            self._failures += 1\n",
        "            self._failures += 1\n            raise\n",
        "relay/test_loop.py::test_trap_10_whatever_a_round_meets_does_not_end_the_loop[sqlite]",
    ),
    bug(
        "a relay holds rows whose slot is no longer its own",
        _SENDING,
        "wanted = [item for item in unfit if str(item.row.slot) in ours]",
        "wanted = list(unfit)",
        "relay/test_sharing.py::test_trap_9_a_stopped_relay_that_resumes_holds_nothing[sqlite]",
    ),
    bug(
        "a relay publishes without looking at its lease",
        _RELAY,
        "return left >= self._publish_timeout / 2",
        "return True",
        "relay/test_sharing.py::"
        "test_trap_9_a_stopped_relay_that_resumes_publishes_nothing_more[sqlite]",
    ),
    bug(
        "a transaction is open while the broker is asked",
        _RELAY,
        _PUBLISH,
        "            connection = self._store.engine.connect()\n"
        "            connection.exec_driver_sql('SELECT 1')\n"
        "            outcomes = self._sender.publish(",
        "relay/test_order.py::test_trap_12_no_transaction_is_open_while_it_publishes[sqlite]",
    ),
    bug(
        "of each key one message goes into a batch",
        _RELAY,
        "readable.append((row, row.message()))",
        "readable.append((row, row.message()))\n                broken.add(row.key)",
        "relay/test_reading.py::test_trap_17_one_hot_key_fills_whole_batches[sqlite]",
    ),
    bug(
        "what was read ahead is sent although a row before it was not",
        _RELAY,
        "if sent < len(rows) or stop.is_set()",
        "if stop.is_set()",
        "relay/test_ahead.py::"
        "test_what_had_no_confirmation_is_sent_again_before_what_was_read_ahead_of_its_key"
        "[postgresql]",
        "relay/test_ahead.py::test_what_was_read_ahead_behind_a_refused_message_waits[postgresql]",
        servers="postgresql",
    ),
    bug(
        "what was read ahead is sent although the slots may have moved",
        _RELAY,
        "stop.is_set() or self._renewal_is_due():",
        "stop.is_set():",
        "relay/test_ahead.py::"
        "test_what_was_read_ahead_is_dropped_where_the_slots_may_have_moved[postgresql]",
        servers="postgresql",
    ),
    bug(
        "a read ahead begins behind the last row in flight",
        _READING,
        "if row[_ID] not in in_flight.ids]",
        "if row[_ID] > in_flight.last.get(row[_SLOT], _NONE)]",
        "relay/test_ahead.py::"
        "test_a_late_commit_with_a_lower_id_than_those_in_flight_is_sent_before_its_follower"
        "[postgresql]",
        servers="postgresql",
    ),
    bug(
        "rows that are being settled are not told to be in flight",
        _RELAY,
        "InFlight.of([*self._settler.unsettled_rows(), *rows])",
        "InFlight.of(rows)",
        "relay/test_ahead.py::test_what_is_being_deleted_is_not_sent_again[postgresql]",
        servers="postgresql",
    ),
    bug(
        "what was confirmed is not settled at the end",
        _RELAY,
        "            self._settle_at_last()\n",
        "",
        "relay/test_loop.py::"
        "test_what_the_database_would_not_settle_before_the_stop_is_settled_after_it[sqlite]",
    ),
    bug(
        "idle is said before the relay has counted what it deleted",
        "reliable_mq/service.py",
        "self.relay.sendable() or self.relay.unsettled",
        "self.relay.sendable()",
        "consumer/test_idle.py::test_what_is_deleted_and_not_counted_yet_is_waited_for",
    ),
    bug(
        "every share of the slots that there has been leaves its compiled read",
        _READING,
        "        connection.execution_options(compiled_cache=self._compiled)\n",
        "",
        "relay/test_reading.py::"
        "test_a_share_of_the_slots_that_is_over_leaves_nothing_in_memory[sqlite]",
    ),
)
