"""What an OWS request asks for: parsed once, checked, classified. Pure but for the XML parser.

Turns an HTTP request into the fields of an Order; which project, and what becomes of it, is
decided elsewhere.
"""

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode
from xml.parsers import expat

from qgisd.errors import BadRequest, BodyTooLarge
from qgisd.words import RequestClass

_TAG = re.compile(r"</?[A-Za-z_][^<>]*>")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")

#: Bytes of a form: it becomes a URL, which must fit into one header (wire.MAX_HEADER).
_LONGEST_FORM = 1 << 20
#: Levels of XML; real filters have some ten.
_DEEPEST = 500
#: Letters outside ASCII whose capitals are in it: Qt makes LIZMAP_USER of "l\u0131zmap_user".
_UNUSUAL = (("\u0131".encode(), b"I"), ("\u017f".encode(), b"S"))
#: The bytes of names that are looked for in bodies.
_OF_NAMES = sorted(set(b"LIZMAP_lizmap_SERVICEservice" + b"".join(one for one, _ in _UNUSUAL)))
_SERVICE = re.compile(rb"(?:^(?:\xef\xbb\xbf)?|&)SERVICE(?:=|&|$)")
#: Parameters that hold XML.
_XML_PARAMETERS = ("FILTER", "SLD_BODY", "SLD")

#: REQUEST → class; what is not here is FEATURE for WFS and WCS, CAPABILITIES otherwise.
_CLASSES = {
    "GETCAPABILITIES": RequestClass.CAPABILITIES,
    "GETPROJECTSETTINGS": RequestClass.CAPABILITIES,
    "GETCONTEXT": RequestClass.CAPABILITIES,
    "DESCRIBELAYER": RequestClass.CAPABILITIES,
    "DESCRIBEFEATURETYPE": RequestClass.CAPABILITIES,
    "DESCRIBECOVERAGE": RequestClass.CAPABILITIES,
    "GETSCHEMAEXTENSION": RequestClass.CAPABILITIES,
    "GETSTYLE": RequestClass.LEGEND,
    "GETSTYLES": RequestClass.LEGEND,
    "GETLEGENDGRAPHIC": RequestClass.LEGEND,
    "GETLEGENDGRAPHICS": RequestClass.LEGEND,
    "GETMAP": RequestClass.MAP,
    "GETTILE": RequestClass.TILE,
    "GETFEATUREINFO": RequestClass.INFO,
    "GETFEATURE": RequestClass.FEATURE,
    "GETCOVERAGE": RequestClass.FEATURE,
    "GETPRINT": RequestClass.PRINT,
    "GETPRINTATLAS": RequestClass.PRINT,
    "TRANSACTION": RequestClass.WRITE,
}


@dataclass(frozen=True, slots=True)
class OwsRequest:
    """An OWS request after parsing."""

    #: What goes behind the "?": MAP as the client wrote it, so that capabilities point back here.
    query: str
    #: Names in upper case.
    parameters: dict[str, str]
    method: str
    body: bytes
    cls: RequestClass
    #: Of the root element of an XML body.
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def idempotent(self) -> bool:
        """May be run twice."""
        return self.cls is not RequestClass.WRITE


def parse_query(query: str) -> list[tuple[str, str]]:
    """Pairs of a query string or form. Raises BadRequest for what does not decode."""
    if _BROKEN_ESCAPE.search(query):
        raise BadRequest("the query has a % that is not followed by two hexadecimal digits")
    if "#" in query:
        # QGIS reads a URL, which ends there; a check would see more than it draws by.
        raise BadRequest("the query has a #; inside a value it is written %23")
    if "\0" in query or "%00" in query:
        raise BadRequest("the query holds a NUL character")
    try:
        return parse_qsl(query, keep_blank_values=True, errors="strict", max_num_fields=1000)
    except UnicodeDecodeError:
        raise BadRequest("the query is not UTF-8 after percent-decoding") from None
    except ValueError:
        raise BadRequest("the query has more than 1000 parameters") from None


def believed_query(query: str, trusted: bool) -> tuple[str, list[tuple[str, str]]]:
    """The query and its pairs, without the LIZMAP_* that say who somebody is, unless trusted.

    Raises BadRequest as `parse_query` does.
    """
    pairs = parse_query(query)
    if not trusted and any(name.upper().startswith("LIZMAP_") for name, _ in pairs):
        pairs = [(name, value) for name, value in pairs if not name.upper().startswith("LIZMAP_")]
        query = urlencode(pairs)
    return query, pairs


def check_identity(body: bytes, trusted: bool) -> None:
    """Raises BadRequest if a body says LIZMAP_*, of a peer that is not trusted.

    QGIS takes the attributes of a document's root for parameters, and what it cannot read as XML
    for a form.
    """
    if not trusted and b"LIZMAP_" in _as_names(body):
        raise BadRequest("LIZMAP_* in a body is taken from trusted peers only")


def check_api(pairs: list[tuple[str, str]], content_types: list[str], body: bytes) -> None:
    """Raises BadRequest if a request to an API would be one to OWS for QGIS: SERVICE says so, in
    the query as in a body, and none of what is checked and bounded for OWS would be."""
    named = any(name.upper() == "SERVICE" for name, _ in pairs)
    # QGIS leaves JSON alone (QgsRequestHandler::parseInput).
    if body and not (len(content_types) == 1 and "json" in content_types[0]):
        named = named or _SERVICE.search(_as_names(body)) is not None
        if body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
            named = named or "SERVICE" in _parameters_of(inspect_xml(body)[1])
    if named:
        raise BadRequest("SERVICE is for /ows/: this path is of an API")


def _as_names(body: bytes) -> bytes:
    """A body such that names in it are found, whatever their case and percent-encoding.

    Not decoded as a whole: of 16 MiB of "%41" that takes 1.4 s of a processor.
    """
    plain = body.upper()
    if b"%" in plain:
        for byte in _OF_NAMES:
            plain = plain.replace(b"%%%02X" % byte, bytes([byte]))
        plain = plain.upper()
    for letter, capital in _UNUSUAL:
        plain = plain.replace(letter, capital)
    return plain


def by_name(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Parameters by upper-case name. Raises BadRequest where one is given twice and differs:
    servers disagree on which counts, so nobody can mean it."""
    found: dict[str, str] = {}
    for name, value in pairs:
        upper = name.upper()
        if found.setdefault(upper, value) != value:
            raise BadRequest(f"the parameter {upper[:64]} is given more than once")
    return found


def parse(method: str, query: str, content_type: str, body: bytes, trusted: bool) -> OwsRequest:
    """Parse a GET, or a POST with a form or an XML document.

    trusted: whether LIZMAP_* parameters of this peer count. Raises BadRequest.
    """
    query, pairs = believed_query(query, trusted)
    if method != "POST":
        parameters = by_name(pairs)
        _check_xml(parameters)
        return OwsRequest(query, parameters, "GET", b"", classify(parameters))
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "application/x-www-form-urlencoded" and not body.lstrip().startswith(b"<"):
        if len(body) > _LONGEST_FORM:
            raise BodyTooLarge(f"a form has at most {_LONGEST_FORM} bytes here")
        try:
            form = body.decode("ascii").strip()
        except UnicodeDecodeError:
            raise BadRequest("a form body is percent-encoded ASCII") from None
        # A form too long for a URL is a GET in all but name: QGIS and its filters treat it so.
        return parse("GET", "&".join(filter(None, (query, form))), "", b"", trusted)
    if kind == "multipart/form-data":
        raise BadRequest("multipart forms are not taken; send application/x-www-form-urlencoded")
    parameters = by_name(pairs)
    if not body:
        return OwsRequest(query, parameters, "GET", b"", classify(parameters))
    check_identity(body, trusted)
    root, attributes = inspect_xml(body)
    asked = parameters.get("REQUEST", "")
    parameters |= {"REQUEST": root} | _parameters_of(attributes)
    _check_xml(parameters)
    # What any of them calls a write is not run twice.
    writes = "TRANSACTION" in (asked.upper(), root.upper())
    cls = RequestClass.WRITE if writes else classify(parameters)
    return OwsRequest(query, parameters, "POST", body, cls, attributes)


def _check_xml(parameters: dict[str, str]) -> None:
    for name in _XML_PARAMETERS:
        check_nesting(parameters.get(name, ""))


def _parameters_of(attributes: dict[str, str]) -> dict[str, str]:
    """What the attributes of a root are to QGIS, over what the query says. Raises BadRequest.

    Only MAP is not: which project is meant stands in the URL.
    """
    if not all(name.isascii() for name in attributes):
        raise BadRequest("an attribute of the XML's root has a name that is not ASCII")
    found = by_name([(name.rpartition(" ")[2], value) for name, value in attributes.items()])
    if "MAP" in found:
        raise BadRequest("MAP stands in the URL, not in the body")
    return found


def classify(parameters: dict[str, str]) -> RequestClass:
    """The class of a request by its REQUEST."""
    request = parameters.get("REQUEST", "").upper()
    known = _CLASSES.get(request)
    if known is not None:
        return known
    data = parameters.get("SERVICE", "").upper() in ("WFS", "WCS")
    return RequestClass.FEATURE if data else RequestClass.CAPABILITIES


def check_nesting(text: str) -> None:
    """Raises BadRequest if `text` opens more elements inside each other than QGIS survives.

    For parameters, whose XML may be several documents in parentheses: counts tags, and leaves it
    to QGIS whether they make sense.
    """
    depth = 0
    for tag in _TAG.finditer(text):
        if tag[0].startswith("</"):
            depth -= 1
        elif not tag[0].endswith("/>"):
            depth += 1
            if depth > _DEEPEST:
                raise BadRequest(f"the XML is nested more than {_DEEPEST} levels deep")


def inspect_xml(body: bytes) -> tuple[str, dict[str, str]]:
    """Local name and attributes of the root element of a well-formed document.

    Raises BadRequest for what is not well-formed, for a DTD and for what is nested without end:
    QGIS would take the first for a form, expand the entities of the second, and crash on the
    third (measured: 100,000 levels, stack overflow).
    """
    parser = expat.ParserCreate(namespace_separator=" ")
    root: list[tuple[str, dict[str, str]]] = []
    depth = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise BadRequest(f"the XML is nested more than {_DEEPEST} levels deep")
        if not root:
            root.append((name.rpartition(" ")[2], attributes))

    def end(_: str) -> None:
        nonlocal depth
        depth -= 1

    def doctype(*_: object) -> None:
        raise BadRequest("a document type declaration is not taken")

    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.StartDoctypeDeclHandler = doctype
    try:
        parser.Parse(body, True)
    except expat.ExpatError as error:
        text = expat.errors.messages[error.code]
        raise BadRequest(f"the XML body is not well-formed: {text}, line {error.lineno}") from None
    except (LookupError, ValueError) as error:
        raise BadRequest(f"the XML body cannot be read: {error}") from None
    return root[0]
