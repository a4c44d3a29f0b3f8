"""Send many commands to a Redis Cluster in one round trip: all nodes get theirs before any reply is read.

redis-py's cluster pipeline rejects EVALSHA and MGET, and retries each command of a dead node, one time-out after
another. Here each node gets its commands in one packet, an unavailable node is an error at once, and commands rejected
because their slot has moved are sent again after refreshing the slot map.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.features.store.client import DISCONNECTED, MovedError, ResponseError

MOVES_MAX = 5
"""Maximum number of times that commands are sent again because their slot moved."""

Command = tuple[Any, ...]
"""Name and arguments of a command, as for redis-py's `execute_command`."""


def send_to_cluster(client: Any, commands: Sequence[Command], keys: Sequence[bytes]) -> list[Any]:
    """The raw reply or error reply to each of `commands`; `keys` has one key per command, which determines its node.

    `client`: a `redis.cluster.RedisCluster`, half of whose methods are untyped.
    All keys of a command must be in one slot. Replies are in RESP2 form: HGETALL returns a flat list.

    Raises:
        redis.ConnectionError, redis.TimeoutError: a node is unavailable; which commands ran is unknown.
    """
    replies: list[Any] = [None] * len(commands)
    open_indexes: Sequence[int] = range(len(commands))
    for _ in range(MOVES_MAX + 1):
        by_node: dict[Any, list[int]] = {}
        for index in open_indexes:
            by_node.setdefault(client.get_node_from_key(keys[index]), []).append(index)
        try:
            _exchange(client, by_node, commands, replies)
        except DISCONNECTED:
            client.nodes_manager.initialize()  # a replica may have taken over: the caller's next try should go there
            raise
        open_indexes = [index for index in open_indexes if isinstance(replies[index], MovedError)]
        if not open_indexes:
            break
        client.nodes_manager.initialize()
    return replies


def by_hash_tag(keys: Sequence[bytes]) -> dict[bytes, list[int]]:
    """Indexes of `keys`, grouped by the text that determines their slot: the text in braces, else the whole key.

    >>> by_hash_tag([b"a:{7}:x", b"a:{8}:x", b"a:{7}:y", b"plain"])
    {b'7': [0, 2], b'8': [1], b'plain': [3]}
    """
    tags: dict[bytes, list[int]] = {}
    for index, key in enumerate(keys):
        start = key.find(b"{")
        end = key.find(b"}", start + 1) if start >= 0 else -1
        tags.setdefault(key[start + 1 : end] if end > start + 1 else key, []).append(index)
    return tags


def _exchange(
    client: Any, by_node: Mapping[Any, Sequence[int]], commands: Sequence[Command], replies: list[Any]
) -> None:
    """Send to each node its commands, and store the replies at their indexes in `replies`."""
    taken: list[tuple[Any, Any]] = []
    try:
        for node, indexes in by_node.items():
            pool = client.get_redis_connection(node).connection_pool
            connection = pool.get_connection()
            taken.append((pool, connection))
            connection.send_packed_command(connection.pack_commands([commands[index] for index in indexes]))
        for (_, connection), indexes in zip(taken, by_node.values(), strict=True):
            for index in indexes:
                try:
                    replies[index] = connection.read_response()
                except ResponseError as exc:
                    replies[index] = exc
    except BaseException:
        for _, connection in taken:
            connection.disconnect()  # unread replies would be taken for those of the next command
        raise
    finally:
        for pool, connection in taken:
            pool.release(connection)
