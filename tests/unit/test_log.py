"""The log: what is redacted, and that both forms hold one event per line."""

import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime

import pytest

from qgisd import log


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    tornado = logging.getLogger("tornado").level
    yield root
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("tornado").setLevel(tornado)


@pytest.mark.parametrize(
    "text",
    [
        "dbname='gis' host=db user='anna' password='hunter2' sslmode=disable",
        'password="hunter2" key=id',
        "password=hunter2",
        "PASSWORD = 'hunter2'",
        "password='hunter2 with blanks'",
        "pwd=hunter2;Server=db",
        "passwd=hunter2&x=1",
        "authcfg=hunter2",
        "token=hunter2",
        "https://tiles/?token=hunter2&z={z}",
        "secret: x secret=hunter2",
        "postgresql://anna:hunter2@db/gis",
        "connect to https://anna:hunter2@tiles.example/wms failed",
        "username=hunter2 password=hunter2",
        "url=https://h/wms&password=hunter2&username=hunter2",
        "password='hunter2' and again password='hunter2'",
        r"password='it\'s hunter2' dbname=x",
        r"""password='a\\' user='hunter2'""",
        "'password': 'hunter2'",
        '{"password": "hunter2"}',
    ],
)
def test_no_secret_is_left(text: str) -> None:
    assert "hunter2" not in log.redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "the project file changed",
        "table roads of dbname='gis' host=db port=5432",
        "https://maps.example/ows/?MAP=world&REQUEST=GetMap",
        "worker 7 (pid 123) ended: crash, signal 11",
        "mail to anna@example.org",
        "passwords are never logged",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert log.redact(text) == text


def test_the_rest_of_a_connection_string_stays_readable() -> None:
    shown = log.redact("dbname='gis' user='anna' password='x' table=\"public\".\"roads\"")
    assert "dbname='gis'" in shown and '"public"."roads"' in shown and "password=***" in shown


def _record(root: logging.Logger, capture: pytest.CaptureFixture[str]) -> str:
    logger = logging.getLogger("qgisd.pool.x")
    try:
        raise ValueError("password='hunter2'")
    except ValueError:
        logger.exception(
            "failed with %s", "token=hunter2", extra={"request_id": "abc", "status": 502}
        )
    return capture.readouterr().err


def test_text_is_one_line_with_time_level_and_name(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", "text")
    logging.getLogger("qgisd.x").info("hello %s", "there")
    logging.getLogger("qgisd.x").debug("not shown")
    (line,) = capsys.readouterr().err.splitlines()
    when, rest = line.split(" ", 1)
    assert datetime.fromisoformat(when).tzinfo is not None
    assert re.fullmatch(r"info +qgisd\.x: hello there", rest)


def test_json_is_one_object_a_line_with_the_fields_of_the_request(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", "json")
    (line,) = _record(root_logger, capsys).splitlines()
    record = json.loads(line)
    assert record["level"] == "error" and record["logger"] == "qgisd.pool.x"
    assert (record["request_id"], record["status"]) == ("abc", 502)
    assert "ValueError" in record["traceback"]
    assert datetime.fromisoformat(record["time"]).tzinfo is not None


@pytest.mark.parametrize("form", ["text", "json"])
def test_neither_message_nor_traceback_shows_a_secret(
    form: str, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", form)
    assert "hunter2" not in _record(root_logger, capsys)


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_message_cannot_forge_a_second_line(
    form: str, root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", form)
    logging.getLogger("qgisd.x").info("MAP is %s", "a\n2026-01-01 error qgisd: all is lost")
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_configuring_twice_does_not_log_twice(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", "text")
    log.configure("warning", "text")
    logging.getLogger("qgisd.x").info("hidden")
    logging.getLogger("qgisd.x").warning("once")
    assert len(capsys.readouterr().err.splitlines()) == 1
