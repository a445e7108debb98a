"""`ctl` against what is no daemon, or one that hangs."""

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import click
import pytest

from qgisd import ctl, verbs

PAGE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>"
NAMES = (
    b'[{"project": "a/b c.qgs"}, {"project": "town.qgs"}, {"project": "$(reboot).qgs"}, '
    b'{"project": "x\\ny.qgs"}]'
)


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[str]:
    """A listener that gives each client `answer`, or nothing at all if that is empty."""
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with closing(listener.accept()[0]) as client:
                client.recv(4096)
                if answer:
                    client.sendall(answer)
                client.recv(4096)  # until it has gone

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"unix:{path}"
        thread.join(5)
        assert not thread.is_alive()


def look(admin: str, token: str = "") -> object:
    return ctl.fetch(admin, "GET", "/api/v1/stats", token)


def listen(admin: str, token: str = "") -> object:
    return list(ctl.events(admin, token))


@pytest.mark.parametrize("ask", [look, listen])
def test_a_daemon_that_hangs_is_not_waited_for(
    ask: Callable[[str], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctl, "SILENCE_S", 0.05)
    with answering(tmp_path / "s", b"") as admin, pytest.raises(ctl.NoDaemon, match="timed out"):
        ask(admin)


@pytest.mark.parametrize("ask", [look, listen])
def test_what_is_no_daemon_is_said(ask: Callable[[str], object], tmp_path: Path) -> None:
    with answering(tmp_path / "s", PAGE) as admin, pytest.raises(ctl.CtlError, match="not qgisd"):
        ask(admin)


def test_an_address_that_is_none_is_said() -> None:
    with pytest.raises(ctl.NoDaemon, match="nonnumeric port"):
        look("localhost:town")


@pytest.mark.parametrize("token", ["one\ntwo", "\u20ac", "a\x00"])
def test_a_token_that_is_none_is_not_sent_nor_shown(token: str) -> None:
    with pytest.raises(ctl.NotAllowed) as refused:
        look("unix:/nowhere", token)
    assert token not in str(refused.value)


def test_a_socket_that_one_may_not_open_is_not_allowed(tmp_path: Path) -> None:
    with answering(tmp_path / "s", PAGE) as admin:
        (tmp_path / "s").chmod(0)
        user = os.geteuid()
        os.seteuid(65534 if user == 0 else user)
        try:
            with pytest.raises(ctl.NotAllowed):
                look(admin)
        finally:
            os.seteuid(user)
        (tmp_path / "s").chmod(0o600)
        with pytest.raises(ctl.CtlError):
            look(admin)


def completed(admin: str) -> list[str]:
    context = click.Context(click.Command("project"), parent=click.Context(verbs.control))
    assert context.parent is not None
    context.parent.params = {"admin": admin}
    return verbs._known_projects(context, click.Argument(["project"]), "")


def test_names_that_a_shell_would_run_are_not_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctl, "SILENCE_S", ctl.SILENCE_S)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(NAMES)
    with answering(tmp_path / "s", head + NAMES) as admin:
        assert completed(admin) == ["town.qgs"]


def test_completion_does_not_wait_for_a_daemon_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ctl, "SILENCE_S", ctl.SILENCE_S)
    monkeypatch.setattr(verbs, "_COMPLETION_S", 0.05)
    with answering(tmp_path / "s", b"") as admin:
        assert completed(admin) == []
