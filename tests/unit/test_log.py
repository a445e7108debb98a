"""The log: what is redacted, and that both forms hold one event per line."""

import array
import json
import logging
import os
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from qgisd import journal, log
from qgisd.repeats import BURST, WINDOW_S, Repeats


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """The root logger, put back as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    tornado = logging.getLogger("tornado").level
    asked = ("logThreads", "logProcesses", "logMultiprocessing")
    before = {name: getattr(logging, name) for name in asked}
    yield root
    for name, value in before.items():
        setattr(logging, name, value)
    for handler in set(root.handlers) - set(handlers):
        handler.close()
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
        "https://tiles/?access_token=hunter2&z=1",
        "X-Api-Key: hunter2",
        "apikey=hunter2",
        "https://h/ows?x=1&PASSWORD%3Dhunter2",
        "service='gis' authcfg='hunter2' table=roads",
        "service=gis passphrase=hunter2",
        "postgresql://db/gis?user=anna&password=hunter2",
        "postgresql://anna:hunter2@/gis?host=db",
        "redis://:hunter2@db",
        "https://hunter2@git.example/x",
        "Authorization: Bearer hunter2.hunter2",
        "authorization=Basic hunter2hunter2==",
        "('Authorization', 'Basic hunter2')",
        "Proxy-Authorization: Digest username=x, response=hunter2",
        "Cookie: a=1; session=hunter2; b=hunter2",
        "sent Bearer hunter2hunter2",
        "client_secret=hunter2",
        "X-Amz-Signature=hunter2",
        "host=db sslpassword=hunter2",
        "PGPASSWORD=hunter2",
        "cut: password='two words, hunter2",
        'cut: {"password": "hunter2',
        "GDAL_HTTP_USERPWD=anna:hunter2",
        "AWS_SECRET_ACCESS_KEY=hunter2",
        "https://store/x.tif?sv=1&sig=hunter2",
        "https://anna:h@hunter2@tiles.example/wms",
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
        "the basic symbology of roads",
        "cookies are not kept",
        "mail://anna/x and x@y",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert log.redact(text) == text


def test_the_rest_of_a_connection_string_stays_readable() -> None:
    shown = log.redact("dbname='gis' user='anna' password='x' table=\"public\".\"roads\"")
    assert "dbname='gis'" in shown and '"public"."roads"' in shown and "password=***" in shown


def _record(root: logging.Logger, capture: pytest.CaptureFixture[str] | None) -> str:
    logger = logging.getLogger("qgisd.pool.x")
    try:
        raise ValueError("password='hunter2'")
    except ValueError:
        logger.exception(
            "failed with %s",
            "token=hunter2",
            extra={"fields": {"request_id": "abc", "status": 502}},
        )
    return capture.readouterr().err if capture is not None else ""


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


def test_times_are_those_of_the_record_to_the_millisecond(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    created = [1700000000.9996, 1700000001.0, 1700000001.25, 1700086400.004]
    for form in ("text", "json"):
        log.configure("info", form)
        for at in created:
            record = logging.makeLogRecord({"name": "x", "levelno": 20, "created": at, "msg": "m"})
            logging.getLogger().handle(record)
    lines = capsys.readouterr().err.splitlines()
    seen = [line.split()[0] for line in lines[:4]] + [
        json.loads(line)["time"] for line in lines[4:]
    ]
    for shown, at in zip(seen, created * 2, strict=True):
        off = datetime.fromtimestamp(at).astimezone() - datetime.fromisoformat(shown)
        assert timedelta(0) <= off < timedelta(milliseconds=1.001), shown


def test_fields_may_be_made_when_they_are_wanted(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def fields() -> dict[str, object]:
        asked.append(1)
        return {"worker": 7}

    log.configure("info", "text")
    logging.getLogger("x").info("a", extra={"fields": fields})
    assert asked == []
    log.configure("info", "json")
    capsys.readouterr()
    logging.getLogger("x").info("a", extra={"fields": fields})
    assert json.loads(capsys.readouterr().err)["worker"] == 7


def test_a_safe_record_is_not_searched(
    root_logger: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", "text")
    logging.getLogger("x").info("token=fine", extra={"safe": True})
    assert "token=fine" in capsys.readouterr().err


# the journal


class FakeJournal:
    """A real datagram socket that reads entries as journald does."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(5)
        self.socket.bind(self.path)

    def close(self) -> None:
        self.socket.close()

    def entry(self) -> dict[str, str]:
        """The next one."""
        descriptors = array.array("i")
        data, control, _, _ = self.socket.recvmsg(1 << 20, socket.CMSG_SPACE(4))
        for _, _, content in control:
            descriptors.frombytes(content)
        for descriptor in descriptors:
            with open(descriptor, "rb") as file:
                file.seek(0)
                data = file.read()
        found = {}
        while data:
            line, _, data = data.partition(b"\n")
            name, equals, value = line.partition(b"=")
            if not equals:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[9 + size :]
            found[name.decode()] = value.decode()
        return found


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[FakeJournal]:
    with closing(FakeJournal(tmp_path / "socket")) as made:
        yield made


def test_the_journal_gets_message_level_and_fields(
    root_logger: logging.Logger, journald: FakeJournal
) -> None:
    log.configure("info", "journald", socket=journald.path)
    fields = {"request_id": "abc", "project": "town/streets.qgs", "queue_ms": 1.5}
    logging.getLogger("qgisd.x").warning("two\nlines, password=hunter2", extra={"fields": fields})
    assert journald.entry() == {
        "MESSAGE": "two\nlines, password=***",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "qgisd",
        "QGISD_LOGGER": "qgisd.x",
        "REQUEST_ID": "abc",
        "QGISD_PROJECT": "town/streets.qgs",
        "QGISD_QUEUE_MS": "1.5",
    }
    _record(root_logger, None)
    entry = journald.entry()
    assert entry["PRIORITY"] == "3" and "ValueError" in entry["MESSAGE"]
    assert "hunter2" not in entry["MESSAGE"]


def test_an_entry_too_large_for_a_datagram_goes_by_a_file(
    root_logger: logging.Logger, journald: FakeJournal
) -> None:
    log.configure("info", "journald", socket=journald.path)
    logging.getLogger("x").info("y" * (9 << 20))
    assert len(journald.entry()["MESSAGE"]) == 9 << 20


def test_without_a_journal_standard_error_gets_it(
    root_logger: logging.Logger, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", "journald", socket=str(tmp_path / "nobody"))
    logging.getLogger("x").info("hello")
    assert "hello" in capsys.readouterr().err


def test_a_journal_that_does_not_read_holds_nobody_up(
    root_logger: logging.Logger, journald: FakeJournal, capsys: pytest.CaptureFixture[str]
) -> None:
    log.configure("info", "journald", socket=journald.path)
    for number in range(2000):
        logging.getLogger("x").info("line %d", number, extra={"safe": True})
    assert "line 1999" in capsys.readouterr().err


def test_the_journal_is_chosen_where_standard_error_leads_to_it(
    root_logger: logging.Logger,
    journald: FakeJournal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        found = os.fstat(stderr.fileno())
        named = f"{found.st_dev}:{found.st_ino}"
        assert journal.hears_stderr({"JOURNAL_STREAM": named})
        assert not journal.hears_stderr({"JOURNAL_STREAM": f"{named}0"})
        assert not journal.hears_stderr({})
        log.configure("info", "auto", {"JOURNAL_STREAM": named}, journald.path)
        logging.getLogger("x").info("there")
        log.configure("info", "auto", {}, journald.path)
        logging.getLogger("x").info("here")
    assert journald.entry()["MESSAGE"] == "there"
    text = (tmp_path / "stderr").read_text()
    assert "here" in text and "there" not in text


# repeats


class Told:
    """A logger behind a rate limit, with a clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0
        self.lines: list[str] = []
        handler = logging.Handler()
        handler.emit = lambda record: self.lines.append(record.getMessage())  # type: ignore[method-assign]
        self.repeats = Repeats(handler.handle, lambda: self.now)
        handler.addFilter(self.repeats)
        self.logger = logging.Logger("x")
        self.logger.addHandler(handler)


def test_what_is_said_again_and_again_is_counted() -> None:
    told = Told()
    for number in range(BURST + 7):
        told.logger.warning("worker %d died", number)
        told.logger.warning("another %d", 1) if number == 0 else None
    assert len(told.lines) == BURST + 1
    told.now = WINDOW_S - 1
    told.repeats.look()
    assert len(told.lines) == BURST + 1
    told.now = WINDOW_S
    told.repeats.look()
    assert told.lines[-1] == f"worker {BURST + 6} died … repeated 7 times in {WINDOW_S:g} s"
    assert told.repeats.left_out == 7
    told.logger.warning("worker %d died", 99)
    assert told.lines[-1] == "worker 99 died"


def test_other_arguments_are_another_message_and_ids_do_not_count() -> None:
    told = Told()
    for number in range(BURST + 5):
        told.logger.info("plugin %s loaded", "abcdefghijklmnop"[number])
        told.logger.info("request %s runs again", f"{number:016x}")
        told.logger.info("asked by %s", f"me{'x' * number}", extra={"same": "asked"})
    words = [line.split()[0] for line in told.lines]
    assert words.count("plugin") == BURST + 5
    assert words.count("request") == words.count("asked") == BURST


def test_who_changed_what_is_told_each_time() -> None:
    told = Told()
    admin = logging.Logger("qgisd.admin")
    admin.addHandler(told.logger.handlers[0])
    for _ in range(BURST + 5):
        admin.info("POST /api/v1/reload by uid 0: 200")
    assert len(told.lines) == BURST + 5


def test_the_numbers_do_not_count() -> None:
    told = Told()
    for number in range(50):
        told.logger.info(f"a.qgs: worker {number} ended")
        told.logger.info(f"b{'b' * number}: other words")
    assert len(told.lines) == BURST + 50


def test_a_new_window_tells_of_the_one_before() -> None:
    told = Told()
    for _ in range(BURST + 2):
        told.logger.info("same")
    told.now = WINDOW_S + 1
    told.logger.info("same")
    assert told.lines[-2:] == [f"same … repeated 2 times in {WINDOW_S:g} s", "same"]


def test_lines_of_requests_are_never_left_out() -> None:
    told = Told()
    for _ in range(BURST + 5):
        told.logger.info("a request", extra={"safe": True})
    assert len(told.lines) == BURST + 5


def test_no_more_than_so_many_different_messages_are_remembered() -> None:
    told = Told()
    for _ in range(BURST + 1):
        told.logger.info("the first")
    for number in range(5000):
        told.logger.info("x" * number)
    assert len(told.repeats._seen) <= 1000
    assert f"the first … repeated 1 times in {WINDOW_S:g} s" in told.lines


def test_at_the_end_all_is_told() -> None:
    told = Told()
    for _ in range(BURST + 3):
        told.logger.info("same")
    told.repeats.finish()
    assert told.lines[-1].endswith("repeated 3 times in 60 s")
    told.repeats.finish()
    assert len(told.lines) == BURST + 1


def test_no_message_steers_a_terminal_or_looks_like_another(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log.configure("info", "text")
    logging.getLogger("qgisd.x").warning("a\x1b[2Jb\x9bc\x0bd\u2028e\tf\r\ng")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("a\\x1b[2Jb\\x9bc\\x0bd\\u2028e\tf\\r\\ng")
