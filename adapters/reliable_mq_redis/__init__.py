"""The adapter for Redis Streams: Redis 6.2 or later, Valkey; one server, Sentinel or Cluster.

Broker URLs::

    redis://[user:password@]host[:6379][/database]
    rediss://...                  encrypted; certificate and host name are always checked
    redis+sentinel://[user:password@]host[:26379],host,.../service[/database]
    redis+cluster://[user:password@]host[:6379],host,...

Options, as query parameters of the URL (durations in seconds):

``wait=0``
    A publish counts as sent once so many replicas have it (``WAIT`` on the same connection).
    Before the handler of an at-most-once group runs, so many have the acknowledgement.
``wait_aof=0``
    1: it counts as sent once the server, and the replicas of ``wait``, have synced it to disk
    (``WAITAOF``, Redis 7.2 or later).
``wait_timeout=1``
    How long to wait for them; what was not confirmed then is of unknown outcome.
``guard=300``
    A message published again within so many seconds (same id, same body: the reply to the first
    publish was lost) is not added again. Up to twice as long in practice; 0: off. Costs the
    server about 60 bytes for each message published within twice that time.
``trim=10``
    How often subscriptions delete what nobody needs any more; 0: never.
``tls=0``
    1: encrypt, with ``redis+sentinel://`` (the sentinels too) and ``redis+cluster://``.

``client_options`` are keyword arguments of redis-py's ``Connection``, such as ``socket_timeout``
(5: how long a server may be silent), ``socket_connect_timeout`` (5), ``socket_keepalive``,
``client_name``, ``username``, ``password``, ``credential_provider`` and, where encrypted,
``ssl_ca_certs``, ``ssl_certfile``, ``ssl_keyfile``; and ``sentinel_username``,
``sentinel_password``. Those that would break a promise are refused, retries of the client and
unverified certificates among them.

A topic's ``options`` may have ``retention``: seconds or a ``timedelta`` after which its entries
are deleted, read or not. Without it an entry is deleted once every group has acknowledged it; a
topic without groups keeps everything.

Names on the server, for foreign producers and for people. The braces are literal: the topic is
the hash tag.

=============================  ==========================================================
``{topic}:0``, ``{topic}:1``   the streams of the partitions. A foreign producer adds to 0:
                               the field ``body`` is the body (none: an empty one), every
                               other field a header
``{topic}:meta``               hash: ``partitions``, ``retention`` (ms), ``group:<name>``
``{topic}:own:<group>:<n>``    hash: owner, epoch and end of the lease of a partition
``{topic}:members:<group>``    sorted set: members of an ordered group
``{topic}:seen:0``, ``:1``     sets: what was published of late (``guard``)
``{topic}:floor:<instance>``   which publishes of a process came too late to count
``{topic}:turn``               who has trimmed last
=============================  ==========================================================

The rights that the server's user needs on these keys are listed in :mod:`reliable_mq_redis.rights`.

What is promised
----------------
*Sent* means: added, and confirmed as ``wait`` and ``wait_aof`` say. How long it then lasts is the
server's setting: with ``appendfsync everysec`` a power failure loses about a second, without
``wait`` a fail-over loses what no replica had. ``inspect()`` says which of it applies.

A publish of *unknown* outcome may be executed after it was reported as such (the server had
been stopped, say), but never after a younger publish of the same adapter to that topic: the
script refuses it then. Between processes the ``guard`` keeps the order of the outbox, whose
relays send the same messages again in the same order; within its window.

Members of a group need the same ``consumer.lease``. An unordered group takes over what a dead
member held after 1 to 1.25 leases, an ordered one its partitions after 1 lease and half a second
at most. A partition of an ordered group belongs to one member at a time; acknowledgements and
reads of a former owner have no effect.
"""

from reliable_mq_redis.adapter import open_adapter

__all__ = ["open_adapter"]
