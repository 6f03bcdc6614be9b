"""RabbitMQ adapter of reliable-mq: ``amqp://`` and ``amqps://``.

URL::

    amqp://user:password@host1:5672,host2/vhost?heartbeat=10

User, password and virtual host are percent-encoded; without them ``guest``, ``guest`` and ``/``.
Several hosts are nodes of one cluster: each connection tries them in random order. ``amqps://``
(port 5671) checks the certificate and the host name, always, and never falls back to plain text.

Query options, all others are refused (times in seconds):

``heartbeat`` (10)
    A process or broker silent for two of them has gone: its connection ends, and what it held is
    delivered to others after 2 to 3 of them. At least 1; it cannot be switched off.
``connection_timeout`` (5)
    For one host: TCP, TLS and AMQP handshake together.
``blocked_connection_timeout`` (30)
    How long a connection may be blocked by an alarm of the broker before it is given up.
``operation_timeout`` (30)
    How long ``declare``, ``lag`` and ``inspect`` wait for each reply.
``confirm_window`` (1000)
    Unconfirmed messages of one topic in one call of ``publish``; at most 8 MiB of bodies, too.
``cafile``, ``certfile``, ``keyfile``, ``server_hostname`` (encrypted only)
    Paths of PEM files: the authorities to trust instead of the system's, and a client certificate
    with its key. The name the certificate must have, where it is not the host's.
``management``
    ``http://host1:15672,host2`` or ``https://``: the management plugin's API, for ``inspect``
    alone; ``https`` takes the options above, and ``amqps://`` allows ``http`` to this machine only.
``management_user``, ``management_password``
    Its user, where it is not the one of the URL. The tag ``monitoring`` lets it see everything.

Client options: ``channel_max``, ``client_properties``, ``frame_max``, ``locale``,
``tcp_options``, as pika's ``ConnectionParameters`` takes them.

On the broker, everything durable:

- topic exchange ``{topic}``; messages persistent and ``mandatory``, with routing key ``p.{N}.{i}``
  for partition i of N, ``p.1.0`` where there is one;
- with one partition a queue ``{topic}.{group}`` bound with ``#``, otherwise queues
  ``{topic}.{group}.{i}`` bound with ``p.{N}.{i}``; quorum queues without a delivery limit, of an
  ordered group with ``x-single-active-consumer``;
- of an ordered group with several partitions a classic queue ``{topic}.{group}:members``, which
  is always empty and expires; while its node is down ``{topic}.{group}:members.1`` or ``.2``;
- for a topic that must keep its messages without any group a queue ``{topic}`` bound with ``#``.

A message is AMQP content: ``message_id``, ``content_type`` and ``timestamp`` are native, the
headers ``message-time`` (microseconds) and ``message-key`` and the application's own are in the
header table, text as long strings, bytes as byte arrays.

``replication_factor`` of a topic is the initial group size of its quorum queues.

The permissions that a user needs on the virtual host are listed in
:mod:`reliable_mq_rabbitmq.rights`.
"""

from __future__ import annotations

from reliable_mq.adapter import Adapter, AdapterContext
from reliable_mq_rabbitmq.adapter import RabbitAdapter
from reliable_mq_rabbitmq.options import parse

__all__ = ["open_adapter"]


def open_adapter(url: str, context: AdapterContext) -> Adapter:
    """Return the adapter for *url*, not connected yet.

    Raises ``ConfigurationError`` for a URL or client option that is not understood or would
    break a promise.
    """
    return RabbitAdapter(parse(url, context.client_options), context)
