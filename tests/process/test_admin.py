"""Who may use the admin listener: by peer credentials, by token, and never by way of a browser."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support import (
    Daemon,
    Response,
    eventually,
    free_port,
    marked,
    start_daemon,
    write_fake_project,
)

ADMIN, READER = "a" * 20, "r" * 20
Call = Callable[..., Response]


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("projects")
    write_fake_project(root / "a.qgs", text="hello")
    write_fake_project(root / "deep" / "b.qgs", text="other")
    return root


def started(folder: Path, roots: Path, **options: object) -> Iterator[Daemon]:
    daemon = start_daemon(folder, roots, **options)  # type: ignore[arg-type]
    yield daemon
    daemon.stop()
    eventually(lambda: not marked(daemon.mark), timeout=5)


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> Iterator[Daemon]:
    """On a Unix socket; nobody's group may look."""
    environment = {"QGISD_ADMIN__READ_GROUPS": '["65533"]', "QGISD_ADMIN__HOSTS": '["maps.test"]'}
    yield from started(tmp_path_factory.mktemp("local"), roots, environment=environment)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory, roots: Path) -> Iterator[Call]:
    """A call of a daemon whose admin listener is on TCP, with tokens."""
    port = free_port()
    environment = {
        "QGISD_ADMIN__LISTEN": f"127.0.0.1:{port}",
        "QGISD_ADMIN__TOKENS": f"{ADMIN}\n{'b' * 20}\n",
        "QGISD_ADMIN__READ_TOKENS": f'["{READER}"]',
    }

    daemons = started(tmp_path_factory.mktemp("remote"), roots, environment=environment)
    daemon = next(daemons)
    there = replace(daemon, listen=f"127.0.0.1:{port}")

    def call(method: str, path: str, token: str = "", **headers: str) -> Response:
        given = {"Authorization": f"Bearer {token}"} if token else {}
        return there.request(method, path, headers=given | headers)

    call.daemon = daemon  # type: ignore[attr-defined]
    yield call
    assert next(daemons, None) is None


def problem(answer: Response, status: int) -> str:
    """The detail of an error in the form of RFC 7807."""
    assert answer.status == status
    assert answer.headers["Content-Type"] == "application/problem+json"
    content = answer.json()
    assert content["status"] == status
    return str(content["detail"])


# over TCP


@pytest.mark.parametrize("path", ["/api/v1/", "/api/v1/stats", "/api/v1/no", "/api", "/metrics"])
def test_without_a_token_nothing_is_said_over_tcp(remote: Call, path: str) -> None:
    for token in ("", "wrong", ADMIN[:-1], ADMIN + "a"):
        answer = remote("GET", path, token)
        assert "token" in problem(answer, 401)
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")


def test_what_is_public_needs_no_token(remote: Call) -> None:
    assert remote("GET", "/healthz").status == 200
    assert remote("GET", "/readyz").status == 200
    assert remote("GET", "/ows/?MAP=a&do=text").body == b"hello"


def test_each_token_has_its_role(remote: Call) -> None:
    for token, role in ((ADMIN, "admin"), ("b" * 20, "admin"), (READER, "read")):
        assert remote("GET", "/api/v1/", token).json()["role"] == role
    assert problem(remote("POST", "/api/v1/projects/a", READER), 403)
    assert remote("GET", "/api/v1/projects/deep%2Fb", READER).status == 404
    assert remote("POST", "/api/v1/projects/deep%2Fb", ADMIN).json()["ok"] is True
    assert remote("GET", "/api/v1/projects/deep%2Fb", READER).json()["state"] == "serving"


def test_a_token_is_nowhere_to_be_read(remote: Call) -> None:
    content = remote("GET", "/api/v1/config", READER)
    assert content.json()["config"]["admin"]["tokens"] == ["**********"] * 2
    log = remote.daemon.log()  # type: ignore[attr-defined]
    for token in (ADMIN, "b" * 20, READER):
        assert token.encode() not in content.body
        assert token not in log
    assert "POST /api/v1/projects/deep%2Fb by token 1: 200" in log


@pytest.mark.parametrize("tokens", [None, "[]", '["short"]', '["with space in the middle of it"]'])
def test_on_tcp_a_daemon_without_a_good_token_does_not_start(
    tmp_path: Path, tokens: str | None
) -> None:
    environment = {"QGISD_ADMIN__LISTEN": "127.0.0.1:0"}
    if tokens is not None:
        environment["QGISD_ADMIN__TOKENS"] = tokens
    ran = subprocess.run(
        [sys.executable, "-m", "qgisd", "serve", "-c", os.devnull],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (ran.returncode, "token" in ran.stderr) == (2, True)
    assert "short" not in ran.stderr.replace("shortest", "")


# over a Unix socket


def ask_as(daemon: Daemon, uid: int, gid: int, groups: list[int], method: str = "GET") -> int:
    """The status that somebody else gets."""
    path = daemon.folder / "admin.sock"
    for folder in (path, *path.parents):
        folder.chmod(0o777 if folder == path else folder.stat().st_mode | 0o111)
    client = (
        "import socket, sys\n"
        "s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n"
        "s.sendall(f'{sys.argv[2]} /api/v1/projects/a HTTP/1.1\\r\\nHost: localhost\\r\\n'\n"
        "          'Connection: close\\r\\n\\r\\n'.encode())\n"
        "print(s.makefile('rb').readline().split()[1].decode())\n"
    )
    ran = subprocess.run(
        ["/usr/bin/python3", "-I", "-c", client, str(path), method],
        user=uid,
        group=gid,
        extra_groups=groups,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return int(ran.stdout)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_over_a_unix_socket_the_kernel_says_who_asks(local: Daemon) -> None:
    assert local.api("POST", "/api/v1/projects/a")["ok"]
    assert ask_as(local, 65534, 65534, []) == 403
    assert ask_as(local, 65534, 65533, []) == 200
    assert ask_as(local, 65534, 65534, [65533]) == 200
    assert ask_as(local, 65534, 65533, [], "POST") == 403
    assert ask_as(local, 0, 0, [], "POST") == 200


def test_people_who_do_not_exist_are_told_at_start(tmp_path: Path, roots: Path) -> None:
    environment = {"QGISD_ADMIN__USERS": '["nobody-of-that-name"]'}
    daemon = start_daemon(tmp_path / "d", roots, environment=environment, wait=False)
    assert daemon.process.wait(30) == 1
    assert "admin.users: there is no 'nobody-of-that-name'" in daemon.log()


# browsers


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:7090", "127.0.0.1:1", "[::1]:7", "maps.test", "MAPS.test:443"]
)
def test_it_knows_its_names(local: Daemon, host: str) -> None:
    assert local.get("/api/v1/", admin=True, headers={"Host": host}).status == 200


@pytest.mark.parametrize("host", ["evil.test", "localhost.evil.test", "127.0.0.1.evil.test", ""])
def test_a_name_that_is_not_ours_is_refused(local: Daemon, host: str) -> None:
    assert problem(local.get("/api/v1/", admin=True, headers={"Host": host}), 421)
    assert local.get("/healthz", admin=True, headers={"Host": host}).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost:7090", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Origin": "http://localhost:7090"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({}, 200),
        ({"Origin": "http://localhost:8000"}, 403),
        ({"Origin": "http://evil.test"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Origin": "http://localhost:7090", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_page_of_another_site_changes_nothing(
    local: Daemon, headers: dict[str, str], status: int
) -> None:
    given = {"Host": "localhost:7090"} | headers
    answer = local.request("POST", "/api/v1/projects/a", admin=True, headers=given)
    assert answer.status == status
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_bodies_are_read_and_forgotten(local: Daemon) -> None:
    before = peak_kib(local)
    answer = local.request("POST", "/api/v1/projects/a", admin=True, body=bytes(64 << 20))
    assert answer.json()["ok"] is True
    assert peak_kib(local) - before < 32 << 10


def peak_kib(daemon: Daemon) -> int:
    """The most memory that it ever had, KiB."""
    status = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


# errors


def test_errors_say_what_and_where(local: Daemon) -> None:
    def answer(method: str, path: str, status: int) -> str:
        return problem(local.request(method, path, admin=True), status)

    assert "openapi.json" in answer("GET", "/api/v1/nothing", 404)
    assert "openapi.json" in answer("GET", "/api/", 404)
    assert "colour" in answer("GET", "/api/v1/stats?colour=red", 400)
    assert "pin" in answer("POST", "/api/v1/projects/a?pin=perhaps", 400)
    assert "'100%'; there are default" in answer("GET", "/api/v1/stats?pool=100%25", 404)
    assert "no such project" in answer("POST", "/api/v1/projects/none", 404)
    wrong = local.request("PUT", "/api/v1/stats", admin=True)
    assert (problem(wrong, 405), wrong.headers["Allow"]) == (
        "this path takes GET, HEAD",
        "GET, HEAD",
    )
    assert local.request("HEAD", "/api/v1/stats", admin=True).status == 200


def test_the_description_names_every_path(local: Daemon) -> None:
    content = local.api("GET", "/api/v1/openapi.json")
    assert content["openapi"].startswith("3.1")
    assert set(content["paths"]["/api/v1/projects/{project}"]) == {"get", "post", "delete"}
    assert json.dumps(content).count("#/components/schemas/Problem") > 10


@pytest.mark.parametrize("headers", [{"Host": "["}, {"Host": "localhost", "Origin": "http://["}])
def test_an_address_that_cannot_be_read_is_refused_in_words(
    local: Daemon, headers: dict[str, str]
) -> None:
    answer = local.request("POST", "/api/v1/undrain", admin=True, headers=headers)
    assert answer.status in (403, 421)
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "Traceback" not in local.log()
