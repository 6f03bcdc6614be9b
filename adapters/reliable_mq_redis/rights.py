"""The rights a user of the server needs, in the words of its ACL."""

from __future__ import annotations

USE = (
    "+evalsha +script|load +time +select "
    "+exists +get +set +unlink +pttl +pexpireat "
    "+hget +hmget +hset +hincrby +sadd +smismember +zadd +zcard +zrem +zremrangebyscore "
    "+xadd +xack +xclaim +xgroup|create +xgroup|delconsumer +xinfo|consumers +xinfo|groups "
    "+xlen +xpending +xrange +xread +xreadgroup +xtrim"
)
"""To declare, publish, consume and count the lag, on the keys ``~{<topic>}:*``.

With ``wait`` also ``+wait``, with ``wait_aof`` ``+waitaof +command|info``, in a cluster
``+cluster|slots``.
"""

INSPECT = "+info +config|get"
"""For ``inspect()``; without the second it says what it could not see."""
