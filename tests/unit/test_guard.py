"""The guard of the admin listener, where no daemon is needed to try it."""

import os
import socket
from contextlib import closing

import pytest

from qgisd.config import Admin
from qgisd.errors import StartError
from qgisd.http.guard import Guard


def test_a_tcp_socket_without_tokens_is_refused_whoever_opened_it() -> None:
    """systemd may hand one over though the configuration names a Unix socket."""
    with (
        closing(socket.socket(socket.AF_INET)) as tcp,
        closing(socket.socket(socket.AF_INET6)) as six,
    ):
        for listener in (tcp, six):
            with pytest.raises(StartError, match=r"admin\.tokens"):
                Guard(Admin()).check_listeners([listener])
            Guard(Admin(read_tokens=["r" * 16])).check_listeners([listener])  # type: ignore[list-item]


def test_a_unix_socket_needs_no_token() -> None:
    with closing(socket.socket(socket.AF_UNIX)) as local:
        Guard(Admin()).check_listeners([local])


@pytest.mark.parametrize("key", ["users", "groups", "read_users", "read_groups"])
def test_people_may_be_named_or_numbered_and_must_exist(key: str) -> None:
    Guard(Admin(**{key: ["root", str(os.getuid()), "4711"]}))
    with pytest.raises(StartError, match=f"admin.{key}: there is no 'nobody-of-that-name'"):
        Guard(Admin(**{key: ["nobody-of-that-name"]}))
