"""The adapter for Kafka, on the client confluent-kafka (librdkafka).

Broker URLs::

    kafka://host[:9092],host[:9092],...
    kafka+ssl://[user:password@]host[:9092],host,...

``kafka+ssl`` is encrypted; certificate and host name of the brokers are always checked. With a
user, SASL is used. A user with ``kafka://`` is possible for the SCRAM mechanisms, which do not
send the password. Reserved characters in user and password are percent-encoded.

Options, as query parameters of the URL (durations in seconds):

``mechanism=SCRAM-SHA-512``
    The SASL mechanism: SCRAM-SHA-512, SCRAM-SHA-256, PLAIN (encrypted only), and without a user
    OAUTHBEARER and GSSAPI, whose properties go into ``client_options``.
``ca=path``
    PEM file of the authorities that may sign the brokers' certificates. Default: the system's.
``cert=path``, ``key=path``
    PEM files of a client certificate and its key. The key's pass phrase, if it has one, is the
    client option ``ssl.key.password``.
``session_timeout=6``
    The partitions of a process that was killed or stopped go to others after so long. To be
    within the brokers' ``group.min.session.timeout.ms`` and ``group.max.session.timeout.ms``.
``commit_interval=0.5``
    How often acknowledgements are committed, at most 1. What was acknowledged later than that
    comes again after a kill.
``connect_timeout=10``
    How long a connection, or an answer of a broker, may take.
``transaction_timeout=10``
    How long a transaction of an exactly-once handler may take. What a killed process has left open
    is undone by the brokers after so long (they look every 10 s); until then readers of its
    outputs, and whoever takes its partitions over, wait. To be within the brokers'
    ``transaction.max.timeout.ms``.

``static_id=name``
    A name for this process in its groups that lasts over its restarts (static membership), and
    that no other process has. Who comes back within ``session_timeout`` finds its partitions
    where they were, and nobody else notices. It does not leave its groups when it ends: its
    partitions wait that long. Of two processes with one name the elder is out and says so.

``client_options`` are properties of librdkafka, each given to the clients that it applies to:
``client.id``, ``linger.ms``, ``compression.type``, ``fetch.min.bytes``, ``max.poll.interval.ms``,
``client.rack`` and so on, and the functions ``oauth_cb``, ``stats_cb`` and ``throttle_cb``.
Properties that would break a promise are refused, and so are names librdkafka does not know.

A topic's ``options`` are topic settings of Kafka, such as ``retention.ms``. ``declare`` makes a
topic with as many replicas as there are brokers, up to three, with ``min.insync.replicas=2``
where there are three, and with a ``max.message.bytes`` that fits ``max_message_bytes``.

Names for foreign producers and for people: the topic is ``{topic}``, the record key is the
message's key, the consumer group is ``{group}``. Other headers are listed in
:mod:`reliable_mq.wire`. Partitions are chosen as Kafka's Java client does (``murmur2_random``).

What is promised
----------------
*Sent* means: acknowledged by all in-sync replicas (``acks=all``) to an idempotent producer. Kafka
writes to disk later: how many brokers may fail at once is for replication factor and
``min.insync.replicas`` to say, and ``inspect()`` says where they are too low.

A message of *unknown* outcome is not in the client any more when ``publish`` returns. A broker
that was sent it may still store it, as a copy of what is sent again before anything younger.

Where deliveries are acknowledged out of order, the committed offset is the first that is not
done, and those done behind it are named in the commit's metadata, as far as 3 KiB go: the next
owner leaves them out.

A partition belongs to one member of a group at a time. When it moves, what the old owner has
finished is committed first; after a crash it moves when the session has expired, and what a
stopped former owner does later has no effect. Where all brokers are away, what is with the
application is given up and read again.

Every handler of a process is a member of its group by itself.

Librdkafka's own log lines go to the logger ``reliable_mq.kafka`` at DEBUG.
"""

from reliable_mq_kafka.adapter import open_adapter

__all__ = ["open_adapter"]
