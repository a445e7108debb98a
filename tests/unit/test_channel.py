"""The control channel: whole messages, descriptors, what is cut off, and the closed end."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from qgisd import channel, wire
from qgisd.errors import WireError

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def ends() -> Iterator[Pair]:
    left, right = channel.pair()
    with left, right:
        yield left, right


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_messages_come_whole_and_in_order(ends: Pair) -> None:
    sent = [wire.Failed("x" * length) for length in (0, 1, 50_000, 3)]
    for message in sent:
        channel.send(ends[0], message)
    for message in sent:
        data, fds = channel.receive(ends[1])
        assert wire.decode_from_forker(data) == message and fds == []


def test_a_descriptor_arrives_as_a_copy_that_does_not_survive_an_exec(
    ends: Pair, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    with path.open("rb") as file:
        channel.send(ends[0], wire.Forked("worker 1", 7), [file.fileno()])
    data, (fd,) = channel.receive(ends[1])
    assert wire.decode_from_forker(data) == wire.Forked("worker 1", 7)
    assert os.read(fd, 100) == b"content"
    assert not os.get_inheritable(fd)
    os.close(fd)


def test_four_descriptors_are_taken_and_more_are_refused_and_closed(ends: Pair) -> None:
    with ExitStack() as files:
        ours = [files.enter_context(open(os.devnull, "rb")).fileno() for _ in range(7)]
        channel.send(ends[0], wire.Forked("worker 1", 7), ours[:4])
        _, fds = channel.receive(ends[1])
        assert len(fds) == 4 and all(stat.S_ISCHR(os.fstat(fd).st_mode) for fd in fds)
        for fd in fds:
            os.close(fd)
        before = descriptors()
        channel.send(ends[0], wire.Forked("worker 1", 7), ours)
        with pytest.raises(WireError, match="cut off"):
            channel.receive(ends[1])
        assert descriptors() == before, "those that came are not leaked"


def test_a_message_over_the_limit_is_not_sent(ends: Pair) -> None:
    with pytest.raises(WireError, match="bytes"):
        channel.send(ends[0], wire.Failed("x" * wire.MAX_CONTROL))
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        channel.receive(ends[1])


def test_the_largest_message_that_may_be_sent_arrives(ends: Pair) -> None:
    room = wire.MAX_CONTROL - len(wire.encode(wire.Failed("x" * 100_000))) + 100_000
    message = wire.Failed("x" * room)
    assert len(wire.encode(message)) == wire.MAX_CONTROL
    channel.send(ends[0], message)
    data, _ = channel.receive(ends[1])
    assert wire.decode_from_forker(data) == message


def test_a_packet_over_the_limit_is_refused_whole(ends: Pair) -> None:
    ends[0].send(b"\x01" + b"x" * (wire.MAX_CONTROL + 10))
    channel.send(ends[0], wire.Loading())
    with pytest.raises(WireError, match="cut off"):
        channel.receive(ends[1])
    data, _ = channel.receive(ends[1])
    assert wire.decode_from_forker(data) == wire.Loading()


def test_the_closed_end_is_told_after_what_was_sent_before(ends: Pair) -> None:
    channel.send(ends[0], wire.Loading())
    ends[0].close()
    assert channel.receive(ends[1])[0]
    with pytest.raises(channel.ChannelClosed):
        channel.receive(ends[1])
    with pytest.raises(channel.ChannelClosed):
        channel.send(ends[1], wire.Loading())


def test_an_end_closed_with_messages_unread_is_a_closed_end(ends: Pair) -> None:
    channel.send(ends[1], wire.Loading())
    ends[0].close()
    with pytest.raises(channel.ChannelClosed):
        channel.receive(ends[1])


def test_a_full_channel_that_does_not_block_says_so(ends: Pair) -> None:
    ends[0].setblocking(False)
    with pytest.raises(BlockingIOError):
        for _ in range(100_000):
            channel.send(ends[0], wire.Failed("x" * 1000))


def test_an_empty_packet_with_descriptors_leaks_none(ends: Pair) -> None:
    before = descriptors()
    with open(os.devnull, "rb") as file:
        socket.send_fds(ends[0], [b""], [file.fileno()])
    with pytest.raises((channel.ChannelClosed, WireError)):
        channel.receive(ends[1])
    assert descriptors() == before


def test_neither_end_survives_an_exec(ends: Pair) -> None:
    assert not any(end.get_inheritable() for end in ends)
