"""The work: what is asked of the servers, and what a right answer is."""

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import quote

from bench.client import Check

PNG = b"\x89PNG\r\n\x1a\n"
LIGHT, PLACES = "light/light.qgs", "places/places.qgs"
WORLD, HEAVY = "world/world.qgs", "heavy/heavy.qgs"
#: The three layers that are drawn of the heavy project.
HEAVY_LAYERS = "countries_0,lakes_2,borders_4"


@dataclass(frozen=True)
class Scenario:
    """One kind of request to one project."""

    name: str
    title: str
    #: What the project is, in words.
    about: str
    project: str
    connections: tuple[int, ...]
    #: Seed → queries without MAP. The same seed gives every server the same queries.
    queries: Callable[[int], Iterator[str]]
    check: Check
    #: Whether all servers must send the same bytes.
    same_bytes: bool = False

    @property
    def first_query(self) -> str:
        """One request of this kind."""
        return next(self.queries(0))


def check_png(kind: str, body: bytes) -> str:
    """A whole PNG."""
    if not kind.startswith("image/png"):
        return f"content type {kind!r}"
    if not body.startswith(PNG) or b"IEND" not in body[-12:]:
        return "no whole PNG"
    return ""


def check_capabilities(kind: str, body: bytes) -> str:
    """A whole WMS_Capabilities document."""
    if "xml" not in kind:
        return f"content type {kind!r}"
    if b"<WMS_Capabilities" not in body[:500] or not body.rstrip().endswith(b"</WMS_Capabilities>"):
        return "no whole WMS_Capabilities"
    return ""


def check_features(count: int) -> Check:
    """A whole feature collection with that many features."""

    def check(kind: str, body: bytes) -> str:
        if "json" not in kind:
            return f"content type {kind!r}"
        if not body.rstrip().endswith(b"}"):
            return "the collection is cut"
        found = body.count(b'"type":"Feature"')
        return "" if found == count else f"{found} features, not {count}"

    return check


def same(query: str) -> Callable[[int], Iterator[str]]:
    """Always this query."""
    return lambda seed: itertools.repeat(query)


def maps(layers: str) -> Callable[[int], Iterator[str]]:
    """256 x 256 pixels anywhere on Earth, 5 or 20 degrees wide; hardly one comes twice."""

    def queries(seed: int) -> Iterator[str]:
        rng = random.Random(seed)
        while True:
            x, y, width = rng.uniform(-150, 120), rng.uniform(-50, 50), rng.choice((5, 20))
            yield (
                "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&STYLES=&FORMAT=image/png"
                f"&LAYERS={layers}&CRS=EPSG:4326&WIDTH=256&HEIGHT=256"
                f"&BBOX={y:.6f},{x:.6f},{y + width / 2:.6f},{x + width:.6f}"
            )

    return queries


CAPABILITIES = same("SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities")


def _features(layer: str, more: str) -> Callable[[int], Iterator[str]]:
    return same(
        "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&OUTPUTFORMAT=application/json"
        f"&TYPENAME={layer}{more}"
    )


def scenarios(feature_ids: list[int]) -> list[Scenario]:
    """All of them. feature_ids: the countries that make 70 kB."""
    ids = quote(",".join(f"countries.{number}" for number in feature_ids))
    few, all_of_them = len(feature_ids), 5000
    light, world, heavy = (
        "one layer, 240 countries",
        "6 vector layers and a raster, styled, labelled",
        "200 layers, 40 MB of .qgs",
    )
    steps = (1, 4, 16)
    return [
        Scenario("light-map", "GetMap, light", light, LIGHT, steps,
                 maps("countries"), check_png, True),
        Scenario("light-capabilities", "GetCapabilities, light", light, LIGHT, steps,
                 CAPABILITIES, check_capabilities),
        Scenario("light-features", "GetFeature, 70 kB", f"{light}; {few} of them as GeoJSON",
                 LIGHT, steps, _features("countries", f"&FEATUREID={ids}"), check_features(few)),
        Scenario("many-features", "GetFeature, 5,000 features", "one layer, 5,000 points; GeoJSON",
                 PLACES, (1, 2), _features("places", ""), check_features(all_of_them)),
        Scenario("world-map", "GetMap, world", world, WORLD, steps,
                 maps("relief,countries,states,lakes"), check_png, True),
        Scenario("heavy-map", "GetMap of 3 layers, heavy", heavy, HEAVY, (4,),
                 maps(HEAVY_LAYERS), check_png, True),
        Scenario("heavy-capabilities", "GetCapabilities, heavy", heavy, HEAVY, (4,),
                 CAPABILITIES, check_capabilities),
    ]  # fmt: skip
