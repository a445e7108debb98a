"""The log: one line per event, as text for people, as JSON for machines, or into the journal.

Secrets do not get in: connection strings are redacted here, in whatever message they appear.
What is said again and again is said a few times, and then how often (`repeats.py`).

A record may carry `fields`: what JSON and the journal show besides the message, or a function
that makes it when it is wanted. With
`safe` it promises that nothing in its message came from outside as it was, and is not searched
for secrets: there is a line for each request, and the search costs as much as all the rest.
"""

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping

from qgisd import journal
from qgisd.repeats import Repeats

_NAMES = (
    r"[a-z0-9]*password|passwd|passphrase|(?:user)?pwd|authcfg|(?:access|refresh|auth|id)?_?token"
    r"|(?:client_?)?secret|secret_(?:access_)?key|api[_-]?key|sig(?:nature)?|session_?id|user(?:name)?"
)
_SECRET = re.compile(
    # A name may follow on _ or -, as in access_token and X-Api-Key, but not end another word.
    rf"""(?ix) (?<![a-z0-9]) ({_NAMES}) (["']?\s*(?:[=:]|%3D)\s*)
    # A quote may be missing where a text was cut.
    ( '(?:[^'\\]|\\.)*(?:'|\Z) | "(?:[^"\\]|\\.)*(?:"|\Z) | [^\s'"&;]+ )"""
)
_URL_USER = re.compile(r"(?<=//)[^/\s'\"]+(?=@)")
_HEADER = re.compile(
    r"""(?ix) \b ((?:proxy-)?authorization|(?:set-)?cookie) (["']?\s*[:=,]\s*["']?) [^"'\r\n]+"""
)
_BEARER = re.compile(r"(?i)\b(bearer)\s+[\w.~+/=-]{8,}")

#: What ends a line or steers a terminal.
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")

#: The journal's levels, those of syslog(3).
_PRIORITY = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}


def redact(text: str) -> str:
    """`text` without passwords, user names and tokens of connection strings, URLs and headers."""
    text = _HEADER.sub(r"\1\2***", text)
    text = _URL_USER.sub("***", _SECRET.sub(r"\1\2***", text))
    return _BEARER.sub(r"\1 ***", text)


def message_of(record: logging.LogRecord) -> str:
    """What a record says, without secrets."""
    message = record.getMessage()
    return message if getattr(record, "safe", False) else redact(message)


def fields_of(record: logging.LogRecord) -> Mapping[str, object]:
    """What a record says besides."""
    fields: Mapping[str, object] | Callable[[], Mapping[str, object]]
    fields = getattr(record, "fields", {})
    return fields() if callable(fields) else fields


class _Clock:
    """Times of records as text. Most fall into the second of the one before."""

    def __init__(self, utc: bool) -> None:
        self._parts = time.gmtime if utc else time.localtime
        self._second = -1
        self._date = self._zone = ""

    def text(self, created: float) -> str:
        """ISO 8601 with milliseconds and zone."""
        second = int(created)
        if second != self._second:
            parts = self._parts(second)
            zone = time.strftime("%z", parts)
            self._date, self._zone = time.strftime("%Y-%m-%dT%H:%M:%S", parts), zone
            self._zone, self._second = f"{zone[:3]}:{zone[3:]}", second
        return f"{self._date}.{int((created - second) * 1000):03}{self._zone}"


class _Text(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock(utc=False)

    def format(self, record: logging.LogRecord) -> str:
        # One event, one line: what a client or a provider wrote must not look like another event.
        message = _CONTROL.sub(lambda found: repr(found[0])[1:-1], message_of(record))
        when, level = self._clock.text(record.created), record.levelname.lower()
        text = f"{when} {level:7} {record.name}: {message}"
        if record.exc_info:
            text += "\n" + redact(self.formatException(record.exc_info))
        return text


class _Json(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._clock = _Clock(utc=True)

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": self._clock.text(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message_of(record),
        }
        fields |= fields_of(record)
        if record.exc_info:
            fields["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(fields)


class _Journal(logging.Handler):
    """Into systemd's journal, with fields; to standard error while it cannot be reached."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._journal = journal.Journal(path)
        self._instead = logging.StreamHandler(sys.stderr)
        self._instead.setFormatter(_Text())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._journal.send(self._fields(record))
        except OSError:
            self._instead.emit(record)

    def _fields(self, record: logging.LogRecord) -> dict[str, object]:
        message = message_of(record)
        if record.exc_info:
            message += "\n" + redact(logging.Formatter().formatException(record.exc_info))
        fields: dict[str, object] = {
            "MESSAGE": message,
            "PRIORITY": _PRIORITY.get(record.levelno, 7),
            "SYSLOG_IDENTIFIER": "qgisd",
            "QGISD_LOGGER": record.name,
        }
        for name, value in fields_of(record).items():
            # The id is not ours alone: nginx and others log it by the same name.
            key = "REQUEST_ID" if name == "request_id" else f"QGISD_{name.upper()}"
            fields[key] = value
        return fields

    def close(self) -> None:
        self._journal.close()
        super().close()


def configure(
    level: str, form: str, environment: Mapping[str, str] = os.environ, socket: str = journal.SOCKET
) -> Repeats:
    """Send all logging where `form` says: "text", "json" (both to standard error) or "journald".

    "auto" is the journal if standard error leads there ($JOURNAL_STREAM), else text.
    Returns what keeps repeats short; its `look` is to be called now and then.
    """
    if form == "auto":
        form = "journald" if journal.hears_stderr(environment) else "text"
    handler: logging.Handler
    if form == "journald":
        handler = _Journal(socket)
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Json() if form == "json" else _Text())
    repeats = Repeats(handler.handle)
    handler.addFilter(repeats)
    root = logging.getLogger()
    for before in root.handlers:
        if isinstance(before, _Journal):
            before.close()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Nothing shows these, and to find them out costs (logging's documentation, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # Its own lines about closed connections and malformed requests; ours say more.
    logging.getLogger("tornado").setLevel(logging.ERROR)
    return repeats
