"""The log: one line per event on standard error, as text for people or JSON for machines.

Secrets do not get in: connection strings are redacted here, in whatever message they appear.
"""

import json
import logging
import re
import sys
from datetime import datetime, timezone

_SECRET = re.compile(
    r"""(?ix) \b (password|passwd|pwd|authcfg|token|secret|user(?:name)?) (["']?\s*[=:]\s*)
    ( '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" | [^\s'"&;]+ )"""
)
_URL_PASSWORD = re.compile(r"(?<=//)[^/\s:@]+:[^/\s@]+(?=@)")
#: Fields of a record that a request line carries besides its message.
REQUEST_FIELDS = (
    "request_id", "pool", "project", "request_class", "status", "wait_ms", "bytes", "worker",
)  # fmt: skip


def redact(text: str) -> str:
    """`text` without passwords, user names and tokens of connection strings and URLs."""
    return _URL_PASSWORD.sub("***:***", _SECRET.sub(r"\1\2***", text))


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = (
            datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        )
        # One event, one line: what a client or a provider wrote must not look like another event.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        text = f"{when} {record.levelname.lower():7} {record.name}: {message}"
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return redact(text)


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat()
        fields: dict[str, object] = {
            "time": when,
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        fields |= {name: getattr(record, name) for name in REQUEST_FIELDS if hasattr(record, name)}
        if record.exc_info:
            fields["traceback"] = redact(self.formatException(record.exc_info))
        return json.dumps(fields)


def configure(level: str, form: str) -> None:
    """Send all logging to standard error in this form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # Its own lines about closed connections and malformed requests; ours say more.
    logging.getLogger("tornado").setLevel(logging.ERROR)
