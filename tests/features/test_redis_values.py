"""Replies to MGETs, read off a socket that hands them over in any pieces."""

import contextlib
import socket
import threading
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
import redis.exceptions as theirs
from hypothesis import given
from hypothesis import strategies as st

from headrace.features.store.wire import NotValuesError, read_values
from headrace.kernels.spans import values_of

VALUES = st.lists(
    st.none() | st.binary(max_size=40) | st.sampled_from([b"\r\n", b"$-1\r\n", b"x" * 70_000]), max_size=8
)


def reply(values):
    """What Redis writes."""
    parts = [b"$-1\r\n" if value is None else b"$%d\r\n%s\r\n" % (len(value), value) for value in values]
    return b"*%d\r\n" % len(values) + b"".join(parts)


def as_list(values):
    """Values as bytes and None."""
    spans = zip(values.starts.tolist(), values.ends.tolist(), strict=True)
    return [None if start < 0 else values.data[start:end].tobytes() for start, end in spans]


def read(data, counts, sizes=()):
    """What is read of `data`, which comes in pieces of these sizes and then at once; then the server hangs up."""
    here, there = socket.socketpair()
    here.settimeout(10)

    def send():
        cuts = [*accumulate(sizes, initial=0), len(data)]
        with there, contextlib.suppress(BrokenPipeError):  # the reader may have seen enough
            for begin, end in pairwise(cuts):
                there.sendall(data[begin:end])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        return [as_list(values) for values in read_values(SimpleNamespace(_sock=here), counts)]
    finally:
        here.close()
        sender.join()


@given(st.lists(VALUES, min_size=1, max_size=4), st.lists(st.integers(1, 30), max_size=30))
def test_replies_are_read_whatever_the_pieces(replies, sizes):
    """Missing, empty and long values, some that look like the wire format."""
    assert read(b"".join(map(reply, replies)), [len(values) for values in replies], sizes) == replies


def test_a_reply_larger_than_the_buffer_is_read_whole():
    """The buffer grows in the middle of a reply."""
    values = [b"a" * 700_000, None, b"b" * 900_000, b"c"]
    assert read(reply(values) * 2, [4, 4]) == [values, values]


@pytest.mark.parametrize(
    "data", [b"-LOADING it loads\r\n", b"+OK\r\n", b"*3\r\n$1\r\na\r\n", b"*2\r\n:1\r\n$1\r\na\r\n"]
)
def test_any_other_reply_is_told_apart(data):
    """An error, a status, another number of values, another kind of value."""
    with pytest.raises(NotValuesError):
        read(data, [2])


def test_a_server_that_hangs_up_is_an_error():
    """The reply breaks off."""
    with pytest.raises(theirs.ConnectionError):
        read(b"*2\r\n$1\r\na\r\n$5\r\nab", [2])


def test_bytes_become_values_and_back():
    """Empty ones are not missing ones."""
    blobs = [None, b"", b"abc", None]
    assert as_list(values_of(blobs)) == blobs
    assert as_list(values_of([])) == []
