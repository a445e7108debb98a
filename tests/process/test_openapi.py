"""The API does what its own description says, whatever it is asked: schemathesis asks.

Answers have a status, a type and a shape that is described; what is malformed is refused with 4xx;
nothing is a 5xx but where the description allows it; without a token nothing is said.
"""

import json
import urllib.request
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings
from schemathesis import Case
from schemathesis.openapi import from_dict

from qgisd.http.api import ROUTES
from qgisd.http.openapi import describe
from tests.support import eventually, free_port, marked, start_daemon, write_fake_project

TOKEN = "o" * 32
EXAMPLES = 15


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where a daemon with some life in it is asked."""
    root = tmp_path_factory.mktemp("projects")
    write_fake_project(root / "a.qgs", text="hello")
    port = free_port()
    daemon = start_daemon(
        tmp_path_factory.mktemp("daemon"),
        root,
        environment={
            "QGISD_ADMIN__LISTEN": f"127.0.0.1:{port}",
            "QGISD_ADMIN__TOKENS": TOKEN,
        },
    )
    daemon.ows("a", do="text")
    daemon.ows("a", do="crash")
    yield f"http://127.0.0.1:{port}"
    assert "Traceback" not in daemon.log()
    daemon.stop()
    eventually(lambda: not marked(daemon.mark), timeout=5)


DESCRIPTION = describe(ROUTES)
# Without end is what events are: test_api.py listens to them.
schema = from_dict(DESCRIPTION).exclude(path="/api/v1/events")
HEADERS = {"Authorization": f"Bearer {TOKEN}"}


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_it_does_what_it_says(case: Case, base: str) -> None:
    case.call_and_validate(base_url=base, headers=HEADERS, timeout=30)


def test_it_is_openapi() -> None:
    from_dict(DESCRIPTION).validate()


def test_the_description_that_is_served_is_the_one_that_was_tried(base: str) -> None:
    request = urllib.request.Request(base + "/api/v1/openapi.json", headers=HEADERS)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert json.load(answer) == json.loads(json.dumps(DESCRIPTION))
