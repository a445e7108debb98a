"""The way to the page that docs/ui.md shows to a team: an nginx with its own authentication."""

import base64
import contextlib
import http.client
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nginx import replaced, serving
from tests.support import Daemon, eventually, free_port, marked, start_daemon, write_fake_project

DOCS = Path(__file__).resolve().parents[2] / "docs"
NAME = "qgisd-admin.example.org"
KNOWN = {"Host": NAME, "Authorization": "Basic " + base64.b64encode(b"me:secret").decode()}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon, as it is seen through an nginx with the lines of the page."""
    roots, folder = tmp_path_factory.mktemp("projects"), tmp_path_factory.mktemp("nginx")
    write_fake_project(roots / "a.qgs", text="hello")
    environment = {"QGISD_ADMIN__HOSTS": f'["{NAME}"]'}
    daemon = start_daemon(tmp_path_factory.mktemp("daemon"), roots, environment=environment)
    (snippet,) = re.findall(r"```nginx\n(.*?)```", (DOCS / "ui.md").read_text(), re.DOTALL)
    at = f"127.0.0.1:{free_port()}"
    (folder / "users").write_text("me:{PLAIN}secret\n")
    site = replaced(
        snippet,
        ("443 ssl", at),
        ("unix:/run/qgisd/admin.sock:", f"{daemon.admin}:"),
        ("/etc/nginx/qgisd-admin.htpasswd", f"{folder}/users"),
    )
    with serving(folder, site, at) as nginx:
        yield nginx.front(daemon)
    daemon.stop()
    eventually(lambda: not marked(daemon.mark), timeout=5)


def test_only_who_is_known_gets_the_page(front: Daemon) -> None:
    assert front.get("/ui/", headers={"Host": NAME}).status == 401
    answer = front.get("/ui/", headers=KNOWN)
    assert answer.status == 200 and b"js/main.js" in answer.body
    assert front.get("/", headers=KNOWN).headers["Location"] == "/ui/"


def test_the_api_answers_to_the_name_of_the_page_alone(front: Daemon) -> None:
    assert front.get("/api/v1/", headers=KNOWN).json()["role"] == "admin"
    assert front.get("/api/v1/", headers=KNOWN | {"Host": "other.example.org"}).status == 421
    ours = KNOWN | {"Origin": f"https://{NAME}", "Sec-Fetch-Site": "same-origin"}
    assert front.request("POST", "/api/v1/reload", headers=ours).status == 200
    others = KNOWN | {"Origin": "https://other.example.org"}
    assert front.request("POST", "/api/v1/reload", headers=others).status == 403


def test_events_come_through_as_they_happen(front: Daemon) -> None:
    with contextlib.closing(http.client.HTTPConnection(front.listen, timeout=10)) as line:
        line.request("GET", "/api/v1/events", headers=KNOWN)
        answer = line.getresponse()
        assert answer.status == 200
        # The stream has no end: what can be read now was not held back.
        assert answer.readline() == b"event: stats\n"
        assert b'"pool":"default"' in answer.readline()
