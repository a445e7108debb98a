"""Limits in front: what one request may ask for before it costs a worker anything. Pure.

Sizes of pictures, numbers of layers and features, and parameters by which a client makes the
server fetch something of the client's choice (SLD=, EXTERNAL_WMS).
"""

import html
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlencode
from xml.parsers import expat

from qgisd.errors import BadRequest, Forbidden

_INTEGER = re.compile(r"^\s*\+?(\d{1,18})\s*$")
#: DPI at which a picture has as many pixels as WIDTH and HEIGHT say (QGIS assumes 96; a client
#: that sends another one also sends larger WIDTH and HEIGHT, but QGIS's work grows with both).
_BASE_DPI = 96.0
_MM_PER_INCH = 25.4
_DECIMAL = re.compile(r"^\s*\+?(\d*\.?\d+(?:[eE][+-]?\d{1,3})?)\s*$")
#: Lengths of a legend in mm, and sizes of its fonts, that make its picture as large as they say.
_LEGEND_SIZES = (
    "SYMBOLWIDTH", "SYMBOLHEIGHT", "BOXSPACE", "LAYERSPACE", "LAYERTITLESPACE", "SYMBOLSPACE",
    "ICONLABELSPACE", "LAYERFONTSIZE", "ITEMFONTSIZE",
)  # fmt: skip
#: Parameters with symbols in them; those of the maps of a print have "MAP0:" before.
_SYMBOLS = ("SLD_BODY", "HIGHLIGHT_SYMBOL")
_HREF = re.compile(r"""href\s*=\s*(["'])\s*(.*?)\1""", re.IGNORECASE | re.DOTALL)
#: A graphic of QGIS's own folders of symbols, or one that is in the symbol itself.
_NEAR = re.compile(r"base64:|(?!/|\\|.*:|.*\.\.)", re.IGNORECASE | re.DOTALL)
#: The parameter that bounds the number of features, by version of WFS.
_COUNT_NAMES = ("COUNT", "MAXFEATURES")


@dataclass(frozen=True)
class Limits:
    """The [limits] of the configuration; 0 means no limit."""

    pixels: int
    dpi: int
    layers: int
    features: int
    external_sld: bool
    external_wms: bool


def check(parameters: Mapping[str, str], limits: Limits) -> None:
    """Raises BadRequest or Forbidden, naming the parameter and the limit.

    parameters: of an OWS request, names in upper case.
    """
    _check_size(parameters, limits)
    for names in _layers(parameters):
        if limits.layers and len(names) > limits.layers:
            raise BadRequest(f"LAYERS names {len(names)} layers; at most {limits.layers} are drawn")
        if not limits.external_wms and any(
            name.strip().upper().startswith("EXTERNAL_WMS:") for name in names
        ):
            raise Forbidden("layers of an EXTERNAL_WMS are not drawn here")
    if limits.external_sld:
        return
    if parameters.get("SLD"):
        raise Forbidden("SLD by URL is not fetched here; send it as SLD_BODY")
    for name, value in parameters.items():
        if name.endswith(_SYMBOLS):
            _check_symbol(name, value)


def _check_symbol(name: str, value: str) -> None:
    """QGIS fetches an ExternalGraphic from wherever its href says, or reads it from that file."""
    text = html.unescape(value)
    if re.search("<!(DOCTYPE|ENTITY)", text):
        raise Forbidden(f"{name} has a document type, which is not read here")
    for _, where in _HREF.findall(text):
        if not _NEAR.match(where):
            raise Forbidden(f"{name} has a graphic at {where[:100]!r}, which is not fetched here")


def _layers(parameters: Mapping[str, str]) -> Iterator[list[str]]:
    """The names of each map: QGIS draws what LAYER says and what LAYERS says, and a print has more
    maps, with the layers of MAP0:LAYERS and so on."""
    plain = (parameters.get("LAYER", ""), parameters.get("LAYERS", ""))
    yield [name for value in plain if value for name in value.split(",")]
    for name, value in parameters.items():
        if name.endswith(":LAYERS"):
            yield value.split(",")


def _check_size(parameters: Mapping[str, str], limits: Limits) -> None:
    dpi = _number(parameters, "DPI") or _BASE_DPI
    if limits.dpi and dpi > limits.dpi:
        raise BadRequest(f"DPI is {dpi:g}; at most {limits.dpi} is drawn")
    if limits.pixels and parameters.get("REQUEST", "").upper().startswith("GETLEGENDGRAPHIC"):
        most = math.sqrt(limits.pixels) * _MM_PER_INCH / dpi
        for name in _LEGEND_SIZES:
            given = _DECIMAL.match(parameters.get(name, ""))
            if given and float(given[1]) > most:
                raise BadRequest(
                    f"{name} is {given[1]}; at most {most:.0f} is drawn at {dpi:g} dpi"
                )
    width, height = _number(parameters, "WIDTH"), _number(parameters, "HEIGHT")
    if not limits.pixels or width is None or height is None:
        return
    pixels = width * height * max(1.0, dpi / _BASE_DPI) ** 2
    if pixels > limits.pixels:
        raise BadRequest(
            f"a picture of {width:.0f} x {height:.0f} at {dpi:g} dpi has {pixels:.0f} pixels; "
            f"at most {limits.pixels} are drawn"
        )


def _number(parameters: Mapping[str, str], name: str) -> float | None:
    """A size, or None where it is not given or no whole number (QGIS then says so itself)."""
    match = _INTEGER.match(parameters.get(name, ""))
    return float(match[1]) if match else None


def clamp_query(query: str, parameters: Mapping[str, str], features: int) -> str:
    """The query of a WFS GetFeature with its COUNT or MAXFEATURES at most `features`."""
    if not features or parameters.get("REQUEST", "").upper() != "GETFEATURE":
        return query
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode(_clamped(pairs, _COUNT_NAMES, "COUNT", features, parameters))


def lists_items(path: str) -> bool:
    """Whether a path of OGC API Features is that of the items of a collection. QGIS decodes it, and
    takes it with an ending (".json") or a slash."""
    return unquote(path).rstrip("/").rpartition("/")[2].partition(".")[0] == "items"


def clamp_items(query: str, features: int) -> str:
    """The query of OGC API Features items with its limit at most `features`."""
    if not features:
        return query
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode(_clamped(pairs, ("LIMIT",), "limit", features, {}))


def _clamped(
    pairs: list[tuple[str, str]],
    names: tuple[str, ...],
    added: str,
    features: int,
    parameters: Mapping[str, str],
) -> list[tuple[str, str]]:
    out, found = [], False
    for name, value in pairs:
        if name.upper() in names:
            match = _INTEGER.match(value)
            found = True
            if match is None or int(match[1]) > features:
                value = str(features)
        out.append((name, value))
    if not found:
        old = parameters.get("VERSION", "").startswith(("1.0", "1.1"))
        out.append(("MAXFEATURES" if old and added == "COUNT" else added, str(features)))
    return out


_COUNT_ATTRIBUTE = re.compile(
    rb"(?i)(\s)((?:[\w.-]+:)?(?:maxFeatures|count))(\s*=\s*)(\"[^\"]*\"|'[^']*')"
)


def clamp_xml(body: bytes, attributes: Mapping[str, str], features: int) -> bytes:
    """The XML of a WFS GetFeature with maxFeatures (count from 2.0 on) at most `features`.

    body is well-formed (ows.inspect_xml has seen it); attributes are those of its root. Raises
    BadRequest where it is in an encoding that bytes cannot be written into.
    """
    if not features:
        return body
    # QGIS minds neither their case nor their prefix.
    given = [
        value
        for name, value in attributes.items()
        if name.rpartition(" ")[2].upper() in _COUNT_NAMES
    ]
    numbers = [_INTEGER.match(value) for value in given]
    if given and all(number is not None and int(number[1]) <= features for number in numbers):
        return body
    start, end = _root_tag(body)
    tag = body[start:end]
    if not tag.startswith(b"<") or b"\0" in tag:
        raise BadRequest("send the XML in UTF-8")
    if given:
        tag = _COUNT_ATTRIBUTE.sub(b'\\1\\2\\3"%d"' % features, tag)
    else:
        name = b"count" if attributes.get("version", "").startswith("2") else b"maxFeatures"
        close = -2 if tag.endswith(b"/>") else -1
        tag = tag[:close] + b' %s="%d"' % (name, features) + tag[close:]
    return body[:start] + tag + body[end:]


def _root_tag(body: bytes) -> tuple[int, int]:
    """Where the root's start tag begins and ends, told by the parser: comments may look like it."""
    parser = expat.ParserCreate()
    found: list[int] = []

    def start(*_: object) -> None:
        if not found:
            found.append(parser.CurrentByteIndex)

    parser.StartElementHandler = start
    parser.Parse(body, True)
    quote = 0
    for index in range(found[0], len(body)):
        byte = body[index]
        if quote:
            quote = 0 if byte == quote else quote
        elif byte in b"\"'":
            quote = byte
        elif byte == ord(">"):
            return found[0], index + 1
    return found[0], found[0]
