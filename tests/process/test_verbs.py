"""The verbs of `qgisd ctl`, in this process, against a daemon that they share."""

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qgisd.cli import main
from qgisd.verbs import control
from tests.process.tools import background
from tests.support import Daemon, eventually, free_port, marked, start_daemon, write_fake_project

Ctl = Callable[..., Result]
TOKEN, READER = "t" * 32, "r" * 32


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with its admin listener on TCP, as that needs all that a Unix socket does."""
    root = tmp_path_factory.mktemp("projects")
    for name in ("a", "b"):
        write_fake_project(root / f"{name}.qgs", text=name)
    port = free_port()
    daemon = start_daemon(
        tmp_path_factory.mktemp("daemon"),
        root,
        environment={
            "QGISD_ADMIN__LISTEN": f"127.0.0.1:{port}",
            "QGISD_ADMIN__TOKENS": TOKEN,
            "QGISD_ADMIN__READ_TOKENS": READER,
        },
    )
    daemon.extra["admin"] = f"127.0.0.1:{port}"
    yield daemon
    daemon.stop()
    eventually(lambda: not marked(daemon.mark), timeout=5)


@pytest.fixture
def ctl(shared: Daemon) -> Ctl:
    """`qgisd ctl …` with a token."""

    def run(*words: str, code: int = 0, token: str = TOKEN) -> Result:
        environment = {"QGISD_ADMIN_TOKEN": token}
        command = ["ctl", "--admin", shared.extra["admin"], *words]
        result = CliRunner().invoke(main, command, env=environment, catch_exceptions=False)
        assert result.exit_code == code, result.output
        return result

    return run


def as_json(ran: Result) -> Any:
    return json.loads(ran.stdout)


def test_all_verbs_of_the_design_are_there(ctl: Ctl) -> None:
    help_text = ctl("--help").stdout
    for verb in ("reload", "stats", "projects", "project", "load", "drop-project", "pin", "unpin",
                 "workers", "top", "slowlog", "drain", "undrain", "plugins", "config", "kill",
                 "why", "events", "requests", "health"):  # fmt: skip
        assert f"\n  {verb} " in help_text, verb


@pytest.mark.parametrize(
    "verb", ["stats", "workers", "projects", "requests", "plugins", "slowlog", "health", "config"]
)
def test_what_only_looks_is_for_readers_as_well(ctl: Ctl, verb: str) -> None:
    assert ctl(verb, token=READER).stdout
    assert isinstance(as_json(ctl("--json", verb, token=READER)), (list, dict))


def test_every_verb_takes_json_before_and_after_it(ctl: Ctl) -> None:
    for verb in control.commands:
        assert "--json" in ctl(verb, "--help").stdout, verb
    assert as_json(ctl("load", "a", "--json"))["ok"]
    assert as_json(ctl("load", "--json", "a")) == as_json(ctl("--json", "load", "a"))
    assert not ctl("stats").stdout.startswith("[")


# tokens and exit codes


def test_who_may_not_is_told_so_with_a_code_of_its_own(ctl: Ctl, tmp_path: Path) -> None:
    assert "token" in ctl("stats", token="", code=4).stderr
    assert "not one of admin.tokens" in ctl("stats", token="wrong", code=4).stderr
    assert "may look" in ctl("load", "a", token=READER, code=4).stderr
    assert ctl("events", token="wrong", code=4).stderr
    given = tmp_path / "token"
    given.write_text(TOKEN + "\n")
    assert ctl("--token-file", str(given), "stats", token="wrong").stdout
    assert "no-such" in ctl("--token-file", str(tmp_path / "no-such"), "stats", code=2).stderr


def test_failures_have_their_codes(ctl: Ctl) -> None:
    assert "no such project" in ctl("load", "none", code=1).stderr
    assert "there is no pool 'x'" in ctl("--pool", "x", "stats", code=1).stderr
    assert "no request never" in ctl("why", "never", code=1).stderr
    ctl("kill", "cat", "1", code=2)
    result = CliRunner().invoke(main, ["ctl", "--admin", "127.0.0.1:1", "stats"])
    assert (result.exit_code, "Does qgisd run?" in result.stderr) == (3, True)


# projects


def test_pin_load_unpin_drop(ctl: Ctl) -> None:
    assert ctl("pin", "b").stdout.split()[3:5] == ["b.qgs", "ok"]
    assert as_json(ctl("--json", "project", "b"))["pinned"] is True
    assert "no longer pinned" in ctl("unpin", "b").stdout
    assert "already loaded" in ctl("load", "b").stdout
    assert "dropped" in ctl("drop-project", "b").stdout
    eventually(lambda: "b.qgs" not in ctl("projects").stdout)  # once its worker has ended
    assert "is not loaded" in ctl("project", "b", code=1).stderr


def test_a_table_is_as_wide_as_it_may_be(ctl: Ctl) -> None:
    ctl("load", "a")

    def widest(*words: str) -> int:
        return max(map(len, ctl(*words).stdout.splitlines()))

    assert widest("--width", "60", "config") <= 60 < widest("config")
    for verb in ("projects", "stats"):
        assert widest("--width", "80", verb) <= 80 < widest(verb)
    ctl("--width", "1", "config", code=2)


# requests


def test_a_stuck_request_is_seen_explained_and_ended(shared: Daemon, ctl: Ctl) -> None:
    with background() as clients:
        target = "/ows/?MAP=a&do=hang&SERVICE=WMS&REQUEST=GetMap"
        headers = {"X-Request-Id": "stuck-in-a"}
        answer = clients.run(lambda: shared.get(target, headers=headers))
        eventually(lambda: "stuck-in-a" in ctl("top", "--once").stdout, timeout=5)
        eventually(lambda: as_json(ctl("--json", "requests"))[0]["state"] == "running")
        (row,) = as_json(ctl("--json", "requests"))
        assert "running now" in ctl("why", "stuck-in-a").stdout
        assert "stuck-in-a" in ctl("kill", "request", "stuck-in-a").stdout
        assert answer.result().status == 503
    told = eventually(lambda: "operator" in (text := ctl("why", "stuck-in-a").stdout) and text)
    assert f"worker {row['worker']}" in told and "status 503" in told
    assert "an operator of this server ended the request" in told
    assert as_json(ctl("--json", "why", "stuck-in-a"))["outcome"] == "failed"
    fresh = eventually(lambda: [each["id"] for each in as_json(ctl("--json", "workers"))
                                if each["state"] == "idle"])  # fmt: skip
    assert "was idle" in ctl("kill", "worker", str(fresh[0])).stdout


def test_drain_waits_for_what_runs(shared: Daemon, ctl: Ctl) -> None:
    shared.ows("a", do="text")
    with background() as clients:
        answer = clients.run(lambda: shared.ows("a", do="text", s=1))
        eventually(lambda: as_json(ctl("--json", "requests")))
        assert "nothing" in ctl("drain", "--wait").stdout
        assert as_json(ctl("--json", "requests")) == []
        assert answer.result().status == 200
    assert shared.ows("a", do="text").status == 503
    assert "requests" in ctl("undrain").stdout
    assert shared.ows("a", do="text").status == 200


def test_top_in_json_is_one_picture_a_line(ctl: Ctl) -> None:
    content = as_json(ctl("--json", "top", "--once"))
    assert [pool["pool"] for pool in content["pools"]] == ["default"]


# in a terminal


def in_terminal(shared: Daemon, *words: str) -> "tuple[subprocess.Popen[bytes], int]":
    """`qgisd ctl …` on a terminal of 80 x 24: the process, and our end of it."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"QGISD_ADMIN_TOKEN": TOKEN, "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(
        [sys.executable, "-m", "qgisd", "ctl", "--admin", shared.extra["admin"], *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        # Whoever runs the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    return process, ours


def shown(ours: int, mark: bytes, times: int = 1) -> bytes:
    """What a terminal got, once it has got `mark` so many times."""
    got = b""
    while got.count(mark) < times:
        got += os.read(ours, 65536)
    return got


@pytest.mark.parametrize(
    ("words", "mark", "times"),
    [(("top", "--interval", "0.2"), b"ZYGOTE", 3), (("events",), b"pinned", 1)],
)
def test_what_goes_on_ends_with_ctrl_c(
    shared: Daemon, ctl: Ctl, words: tuple[str, ...], mark: bytes, times: int
) -> None:
    process, ours = in_terminal(shared, *words)
    try:
        if words[0] == "events":
            eventually(lambda: ctl("pin", "a") and ctl("unpin", "a") and readable(ours))
        assert b"Traceback" not in shown(ours, mark, times)
        process.send_signal(2)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def readable(descriptor: int) -> bool:
    import select

    return bool(select.select([descriptor], [], [], 0.1)[0])


def test_the_shell_completes_verbs_and_projects(shared: Daemon, ctl: Ctl) -> None:
    ctl("load", "a")

    def complete(*words: str) -> str:
        environment = {
            "_QGISD_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["qgisd", *words]),
            "COMP_CWORD": str(len(words)),
            "QGISD_ADMIN_TOKEN": TOKEN,
        }
        return CliRunner().invoke(main, [], env=environment, prog_name="qgisd").stdout

    assert "drop-project" in complete("ctl", "dr")
    assert "a.qgs" in complete("ctl", "--admin", shared.extra["admin"], "reload", "")
    assert complete("ctl", "--admin", "127.0.0.1:1", "reload", "").strip() == ""


def test_who_may_read_the_secrets_needs_no_token_besides(shared: Daemon) -> None:
    """`systemctl reload` is such a one. Who may not read them is not allowed; the file is right."""
    listener = {"QGISD_ADMIN__LISTEN": shared.extra["admin"], "QGISD_ADMIN_TOKEN": None}
    with_secret = listener | {"QGISD_ADMIN__TOKENS": TOKEN}
    for environment, code in ((with_secret, 0), (listener, 4)):
        result = CliRunner().invoke(main, ["ctl", "reload", "a"], env=environment)
        assert result.exit_code == code, result.output
