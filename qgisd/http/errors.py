"""Errors in the form of the protocol that was asked for. The only place that knows status codes.

OWS: ServiceExceptionReport (WMS 1.1.1 and 1.3.0, WFS 1.0.0) or ows:ExceptionReport (WFS 1.1.0,
WCS, WMTS: OWS Common 1.0 and 1.1). Everything else: application/problem+json, RFC 7807.
"""

import json
import re
from xml.sax.saxutils import escape, quoteattr

from qgisd import errors

_STATUS: dict[type[errors.RequestError], tuple[int, str, str]] = {
    # error: status, OGC code, title
    errors.BadRequest: (400, "InvalidParameterValue", "Bad request"),
    errors.Forbidden: (403, "Forbidden", "Forbidden"),
    errors.NotFound: (404, "NotFound", "Not found"),
    errors.ProjectNotFound: (404, "ProjectNotFound", "No such project"),
    errors.MethodNotAllowed: (405, "OperationNotSupported", "Method not allowed"),
    errors.Conflict: (409, "InvalidParameterValue", "Conflict"),
    errors.BodyTooLarge: (413, "RequestTooLarge", "Body too large"),
    errors.UrlTooLong: (414, "RequestTooLarge", "URL too long"),
    errors.ProjectUnusable: (422, "ProjectUnusable", "Project unusable"),
    errors.InternalError: (500, "NoApplicableCode", "Internal error"),
    errors.WorkerLost: (502, "NoApplicableCode", "Worker lost"),
    errors.EndedByOperator: (503, "NoApplicableCode", "Ended by an operator"),
    errors.Unavailable: (503, "NoApplicableCode", "Unavailable"),
    errors.LoopDetected: (508, "NoApplicableCode", "Loop detected"),
    errors.DeadlineExceeded: (504, "NoApplicableCode", "Deadline exceeded"),
}

#: What XML 1.0 does not allow, section 2.2.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Answer = tuple[int, list[tuple[str, str]], bytes]


def status_of(error: errors.RequestError) -> int:
    """The HTTP status of an error."""
    return _STATUS[type(error)][0]


def render(error: errors.RequestError, form: str, request_id: str) -> Answer:
    """Status, headers and body. form: what `ows_form` says, or "" for JSON."""
    status, code, title = _STATUS[type(error)]
    headers = []
    if error.retry_after is not None:
        headers.append(("Retry-After", str(error.retry_after)))
    if isinstance(error, errors.MethodNotAllowed):
        headers.append(("Allow", ", ".join(error.allowed)))
    if form:
        kind, body = _xml(form, code, f"{error} (request {request_id})")
    else:
        kind = "application/problem+json"
        problem = {
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": str(error),
            "instance": f"urn:request:{request_id}",
        }
        body = json.dumps(problem)
    return status, [("Content-Type", kind), *headers], body.encode()


def ows_form(service: str, version: str) -> str:
    """Which XML the asker of `service` and `version` (both as given) understands."""
    service = service.upper()
    if service == "WFS":
        return "wfs-1.0" if version.startswith("1.0") else "ows-1.0"
    if service == "WCS":
        return "ows-1.0"
    if service == "WMTS":
        return "ows-1.1"
    return "wms-1.1" if version.startswith("1.1") else "wms-1.3"


def _xml(form: str, code: str, text: str) -> tuple[str, str]:
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    code, text = quoteattr(code), escape(_NOT_XML.sub("?", text))
    exception = f"<ServiceException code={code}>{text}</ServiceException>"
    if form == "wms-1.3":
        return "text/xml; charset=utf-8", (
            f'{head}<ServiceExceptionReport version="1.3.0" xmlns="http://www.opengis.net/ogc">'
            f"{exception}</ServiceExceptionReport>\n"
        )
    if form == "wms-1.1":
        return "application/vnd.ogc.se_xml; charset=utf-8", (
            f'{head}<ServiceExceptionReport version="1.1.1">{exception}</ServiceExceptionReport>\n'
        )
    if form == "wfs-1.0":
        return "text/xml; charset=utf-8", (
            f'{head}<ServiceExceptionReport version="1.2.0" xmlns="http://www.opengis.net/ogc">'
            f"{exception}</ServiceExceptionReport>\n"
        )
    version, space = (
        ("1.1.0", "http://www.opengis.net/ows/1.1")
        if form == "ows-1.1"
        else ("1.0.0", "http://www.opengis.net/ows")
    )
    return "text/xml; charset=utf-8", (
        f'{head}<ExceptionReport version="{version}" xmlns="{space}">'
        f"<Exception exceptionCode={code}><ExceptionText>{text}</ExceptionText></Exception>"
        f"</ExceptionReport>\n"
    )
