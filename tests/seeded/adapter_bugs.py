"""Bugs of what talks to Kafka, RabbitMQ and Redis."""

from __future__ import annotations

from tests.seeded.bug import Bug, Edit, bug

_PARTITIONS = "reliable_mq_kafka/partitions.py"
_STARTS = "reliable_mq_kafka/starts.py"
_IDENTITIES = "adapters/kafka/test_identities.py::"
_RECREATED = "adapters/kafka/test_recreated_topics.py::"
_TRANSACTIONS = "reliable_mq_kafka/transactions.py"
_OUTPUTS = "reliable_mq_kafka/outputs.py"
_LATE = "adapters/kafka/test_late_requests.py::test_"
_AS_IT_LIKES = "TopicPartition(*place, OFFSET_INVALID)"
_TAGS = "reliable_mq_rabbitmq/tags.py"
_RUNS = "reliable_mq_rabbitmq/runs.py"
_LUA = "reliable_mq_redis/lua/"
_FULL = "adapters/redis/test_full.py::"
_SWEEPS_MEMBERS = "redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)\n"
_ADDS_ITSELF = "redis.call('ZADD', KEYS[1], until_, me)\n"
_LIFE_OF_THE_GUARD = "  local life = redis.call('PTTL', current)\n"

BUGS: tuple[Bug, ...] = (
    bug(
        "Kafka: a transaction is begun while a request of the last one may be on its way",
        _TRANSACTIONS,
        "return fits and (client.may_begin_another or not client.is_ready)",
        "return fits",
        *(
            f"{_LATE}{what}[{how}]"
            for what in (
                "a_commit_that_comes_late_commits_no_part_of_the_next_transaction",
                "an_abort_that_comes_late_undoes_no_part_of_the_next_transaction",
            )
            for how in ("cut off", "no answer")
        ),
        servers="kafka",
    ),
    bug(
        "Kafka: a transaction is committed while a request of it may still be on its way",
        _TRANSACTIONS,
        "        if client.health.interrupted:\n",
        "        if False:\n",
        *(
            f"{_LATE}offsets_that_come_late_neither_lead_back_nor_keep_anybody_waiting[{when}-{how}]"
            for when in ("once they are undone", "with those of the next transaction")
            for how in ("cut off", "no answer")
        ),
        servers="kafka",
    ),
    bug(
        "Kafka: interruptions are only known where librdkafka makes much of them",
        "reliable_mq_kafka/config.py",
        "            debug=InterruptionLog.contexts(chosen),\n",
        "",
        f"{_LATE}a_commit_that_comes_late_commits_no_part_of_the_next_transaction[cut off]",
        servers="kafka",
    ),
    bug(
        "Kafka: a connection that ends while it authenticates anew interrupts nothing",
        "reliable_mq_kafka/client_log.py",
        "state[1] not in _NOT_CONNECTED",
        'state[1] == "UP"',
        "adapters/kafka/test_client_log.py::test_the_end_of_a_connection_that_was_in_use_may_"
        "interrupt_a_request[REAUTH]",
    ),
    bug(
        "Kafka: a transaction is undone while one of its outputs has no answer",
        "reliable_mq_kafka/txn_client.py",
        "return not (self.unanswered or self.health.interrupted)",
        "return not self.health.interrupted",
        f"{_LATE}no_output_is_taken_for_the_copy_of_an_undone_one",
        servers="kafka",
    ),
    bug(
        "Kafka: a transaction is undone without a new epoch while its offsets may be on their way",
        "reliable_mq_kafka/txn_client.py",
        "return not (self.unanswered or self.health.interrupted)",
        "return not self.unanswered",
        f"{_LATE}offsets_that_come_late_are_not_committed_for_an_undone_transaction",
        servers="kafka",
    ),
    bug(
        "Kafka: each producer is let go of after its first transaction",
        _TRANSACTIONS,
        "return fits and (client.may_begin_another or not client.is_ready)",
        "return not client.is_ready",
        f"{_LATE}a_producer_is_kept_as_long_as_nothing_interrupts_it[as it is]",
        servers="kafka",
    ),
    bug(
        "Kafka: the end of a connection that no transaction uses undoes one",
        "reliable_mq_kafka/client_log.py",
        "return _BOOTSTRAP not in line and (",
        "return (",
        "adapters/kafka/test_client_log.py::test_an_address_of_the_broker_url_is_sent_nothing_of_"
        "a_transaction",
    ),
    bug(
        "Kafka: a transaction is undone where its error is handled, which keeps the producer",
        _TRANSACTIONS,
        """        error = caught(partial(self._store, client, outputs, offsets, member, deadline))
""",
        """        error: Exception | None = None
        try:
            self._store(client, outputs, offsets, member, deadline)
        except Exception as failed:
            return self._undo(client, outputs, failed), False
""",
        "adapters/kafka/test_transactions.py::test_no_producer_outlives_its_failure",
        servers="kafka",
    ),
    bug(
        "Kafka: a message is handed over behind one that another publish has taken out",
        "reliable_mq_kafka/producing.py",
        """        with self._gate:
            self._given_up.set()
""",
        "        self._given_up.set()\n",
        "adapters/kafka/test_producing.py::"
        "test_nothing_is_handed_over_behind_what_another_publish_has_taken_out",
    ),
    bug(
        "Kafka: offsets are committed past an unfinished one",
        _PARTITIONS,
        "return next(iter(self._open), self._next)",
        "return self._next",
        "adapters/kafka/test_partitions.py::"
        "test_the_watermark_is_the_first_offset_that_is_not_done",
    ),
    bug(
        "Kafka: an acknowledgement of a former ownership counts for the new one",
        _PARTITIONS,
        "return one if one is not None and one.epoch == epoch else None",
        "return one",
        "adapters/kafka/test_partitions.py::"
        "test_a_partition_is_not_found_under_the_epoch_of_an_ownership_that_is_over",
    ),
    bug(
        "Kafka: a record read for an ownership that is over is taken for the next one",
        "reliable_mq_kafka/intake.py",
        "self._certain(records) if self._just_assigned else records",
        "records",
        "adapters/kafka/test_doubtful_records.py::"
        "test_what_was_read_for_an_ownership_that_is_over_is_not_taken_for_the_next",
    ),
    bug(
        "Kafka: the cluster is asked for by a call of the client that may end the process",
        "reliable_mq_kafka/admin.py",
        "found = client.list_topics(topic, timeout=self._timeout)",
        "found = client.describe_cluster(request_timeout=self._timeout).result()",
        "adapters/kafka/test_nameless_brokers.py::"
        "test_a_broker_that_names_no_brokers_is_not_ready_and_ends_no_process",
    ),
    Bug(
        "Kafka: it is left to the client where to begin",
        (
            Edit(_STARTS, "TopicPartition(*place, starts.get(place, OFFSET_END))", _AS_IT_LIKES),
            Edit(_STARTS, "one.start = starts.get(place)", "one.start = OFFSET_INVALID"),
            Edit(_STARTS, "import OFFSET_BEGINNING,", "import OFFSET_INVALID, OFFSET_BEGINNING,"),
        ),
        (
            "adapters/kafka/test_starting_points.py::"
            "test_a_rebalance_while_that_is_not_known_leads_nobody_back_to_the_beginning"
            "[exactly-once]",
        ),
        servers=("kafka",),
    ),
    bug(
        "Kafka: what the client takes for stored without an answer counts as sent",
        "reliable_mq_kafka/shipments.py",
        "        elif record.offset() is None and not self._line",
        "        elif record.offset() == -1 and not self._line",
        "adapters/kafka/test_refused_requests.py::test_what_counts_as_sent_is_stored[keys]",
        "adapters/kafka/test_refused_requests.py::test_what_counts_as_sent_is_stored[no key]",
        servers="kafka",
    ),
    bug(
        "Kafka: what the client takes for stored without an answer counts as an output",
        _OUTPUTS,
        "        if error is None and record.offset() is None:\n",
        "        if error is None and record.offset() == -1:\n",
        "adapters/kafka/test_refused_requests.py::test_what_counts_as_an_output_is_stored",
        servers="kafka",
    ),
    bug(
        "Kafka: an output without a topic is the fault of its whole transaction",
        _OUTPUTS,
        "outcome_of(found, self.messages[index].topic), Refused | Unroutable",
        "outcome_of(found, self.messages[index].topic), Refused",
        "adapters/kafka/test_transactions.py::test_an_output_without_a_topic_is_named_and_"
        "nothing_is_stored_until_the_topic_is_there",
        "adapters/kafka/test_transactions.py::test_an_output_whose_topic_was_deleted_meanwhile_is_"
        "named_and_stored_once_it_is_back[undone_at_once]",
        servers="kafka",
    ),
    bug(
        "Kafka: an unforeseen error of a commit is taken for one that stored nothing",
        _TRANSACTIONS,
        "        elif not error_of(error).txn_requires_abort():\n",
        "        elif False:\n",
        "adapters/kafka/test_transactions.py::test_what_nobody_foresees_from_the_commit_leaves_it_"
        "to_the_brokers_what_is_stored",
        servers="kafka",
    ),
    bug(
        "Kafka: what an exactly-once consumer wants no more of is read all the same",
        "reliable_mq_kafka/steering.py",
        "            one.held_back = one.name in names\n",
        "            one.held_back = False\n",
        "contract/test_kafka.py::TestKafkaContract::"
        "test_what_is_held_back_takes_no_room_and_comes_when_it_is_wanted_again",
        servers="kafka",
    ),
    bug(
        "Kafka: a topic that was made anew is taken for the former one",
        _PARTITIONS,
        "        if known in former and log != self.signed:\n",
        "        if False:\n",
        _RECREATED + "test_a_topic_that_is_made_anew_is_read_from_its_beginning[exactly-once-250]",
        _RECREATED + "test_a_topic_that_is_made_anew_is_read_from_its_beginning[at-least-once-20]",
        servers="kafka",
    ),
    bug(
        "Kafka: a topic with another id than that of the commit is read from its beginning",
        _PARTITIONS,
        "        if known in former and log != self.signed:\n",
        "        if known and log and known != log:\n",
        "adapters/kafka/test_partitions.py::"
        "test_another_id_of_which_nobody_knows_that_it_is_the_newer_says_nothing",
    ),
    bug(
        "Kafka: what a topic was before the ownership is taken for what is read",
        _PARTITIONS,
        "        if asked_at > self._since:\n",
        "        if True:\n",
        "adapters/kafka/test_partitions.py::"
        "test_what_a_topic_was_before_the_ownership_says_nothing_of_what_is_read",
    ),
    bug(
        "Kafka: what was done of a topic elsewhere is taken for done",
        _STARTS,
        "            if signed in (None, now):\n",
        "            if True:\n",
        _RECREATED + "test_an_offset_of_a_topic_elsewhere_counts_and_what_was_done_behind_it_does_"
        "not[False]",
        servers="kafka",
    ),
    bug(
        "Kafka: a broker that is late with its news makes a topic new",
        "reliable_mq_kafka/identities.py",
        "        if log != before:\n",
        "        if False:\n",
        _IDENTITIES + "test_an_older_answer_that_comes_after_a_newer_one_changes_nothing",
        _IDENTITIES + "test_while_a_new_id_is_in_doubt_nothing_is_told_of_the_topic",
    ),
    bug(
        "Kafka: the ids of another cluster are taken for those of new topics",
        "reliable_mq_kafka/identities.py",
        "        if cluster and self._cluster and cluster != self._cluster:\n",
        "        if False:\n",
        _IDENTITIES + "test_another_cluster_at_the_same_addresses_has_other_ids_for_the_same_"
        "topics",
    ),
    bug(
        "Kafka: a commit for the former topic is taken for one of the new",
        _PARTITIONS,
        "        self._late = True\n",
        "",
        "adapters/kafka/test_partitions.py::"
        "test_nothing_of_another_log_is_skipped_and_the_commit_goes_back_to_its_beginning",
    ),
    bug(
        "Kafka: that a log ends before what was read of it is not noticed",
        _PARTITIONS,
        "            self._ended_early, self._ended_at = offset, now\n",
        "            pass\n",
        "adapters/kafka/test_partitions.py::"
        "test_without_ids_a_log_that_ends_early_is_not_read_from_its_beginning",
    ),
    bug(
        "RabbitMQ: a multiple acknowledgement covers an unfinished one",
        _TAGS,
        "            if not done:\n                break\n",
        "",
        "adapters/rabbitmq/test_tags.py::test_competing_acks_behind_a_gap_are_sent_one_by_one",
        "adapters/rabbitmq/test_tags.py::test_ordered_acks_behind_a_gap_wait_for_it",
    ),
    bug(
        "RabbitMQ: a returned message counts as sent, for it is confirmed",
        _RUNS,
        "outcome if item.returned is None else Unroutable(item.returned)",
        "outcome",
        "adapters/rabbitmq/test_runs.py::"
        "test_a_returned_message_is_unroutable_though_it_is_confirmed_and_so_are_its_followers",
    ),
    bug(
        "RabbitMQ: the next of a key is sent whatever became of the one before",
        _RUNS,
        "        if outcome == SENT:\n            self._ready.append(item.follower)",
        "        if True:\n            self._ready.append(item.follower)",
        "adapters/rabbitmq/test_runs.py::test_a_nack_stops_its_key_and_no_other",
    ),
    bug(
        "Redis: XACK without a look at who has the entry",
        _LUA + "ack.lua",
        "local ids = mine(KEYS[1], ARGV[1], ARGV[2], 3)",
        "local ids = {unpack(ARGV, 3)}",
        "adapters/redis/test_unordered.py::"
        "test_a_stopped_member_acknowledges_nothing_that_was_taken_over",
        servers="redis",
    ),
    bug(
        "Redis: a former owner acknowledges in an ordered group",
        _LUA + "ack_owned.lua",
        "if own[1] ~= ARGV[2] or own[2] ~= ARGV[3] then return -1 end",
        "",
        "adapters/redis/test_ordered.py::"
        "test_a_member_that_lost_its_partition_reports_it_and_settles_nothing",
        servers="redis",
    ),
    bug(
        "Redis: a call that the server refused as too late counts as published",
        "reliable_mq_redis/publisher.py",
        "return self._raise_generation(send.topic, at_least=rest[0])",
        "return send.stored()",
        "adapters/redis/test_forking.py::"
        "test_a_forked_child_publishes_although_its_parents_failure_has_raised_the_floor",
        "adapters/redis/test_forking.py::test_however_calls_are_lost_or_late_"
        "each_message_of_parent_and_child_is_stored_once_in_order",
        servers="redis",
    ),
    Bug(
        "Redis: a full server keeps an ordered group from its partitions",
        (Edit(_LUA + "tend.lua", _SWEEPS_MEMBERS + _ADDS_ITSELF, _ADDS_ITSELF + _SWEEPS_MEMBERS),),
        (_FULL + "test_on_a_full_server_partitions_change_hands_in_order",),
        slow=True,
    ),
    Bug(
        "Redis: on a full server nobody gets the turn to trim",
        (Edit(_LUA + "turn.lua", "redis.call('UNLINK', KEYS[1])\n", ""),),
        (
            _FULL + "test_members_join_and_handle_and_trim_on_a_server_that_stays_full[unordered]",
            _FULL + "test_members_join_and_handle_and_trim_on_a_server_that_stays_full[ordered]",
        ),
        slow=True,
    ),
    Bug(
        "Redis: a publish begins with what a full server lets pass, and is not refused",
        (
            Edit(
                _LUA + "publish.lua",
                _LIFE_OF_THE_GUARD,
                "  redis.call('SREM', current, '')\n" + _LIFE_OF_THE_GUARD,
            ),
        ),
        (_FULL + "test_a_full_server_stores_nothing_and_takes_the_messages_later[300]",),
        slow=True,
    ),
)
