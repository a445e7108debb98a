"""The demo's data, cut down: shared lines simplified once, names placed, neighbours told apart."""

import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from math import cos, radians, sqrt
from pathlib import Path
from statistics import median
from typing import Any

from qgis.core import (
    QgsCoordinateTransformContext,
    QgsDistanceArea,
    QgsFeature,
    QgsGeometry,
    QgsPointXY,
    QgsVectorFileWriter,
    QgsVectorLayer,
    QgsWkbTypes,
)
from qgis.PyQt.QtGui import QTransform

Point = tuple[float, float]
Ring = list[Point]
Polygons = list[list[Ring]]
Row = tuple[QgsGeometry, list[Any]]

TOLERANCE = 0.018  # degrees, about 2 km: two pixels at 1:3,500,000, and a folder git can bear
ISLET = 0.004  # square degrees, about 50 km²: smaller parts go, unless a feature has nothing else
COUNTY = 0.47  # square degrees, about 5,800 km²: countries cut finer have no states, just noise
FROZEN = ("AQ", "GL")  # white, and no states: nobody draws provinces on an ice sheet
TINTS = 6


def rings_of(layer: QgsVectorLayer) -> list[tuple[QgsFeature, Polygons]]:
    found = []
    for feature in layer.getFeatures():
        shape = feature.geometry()
        shape.convertToMultiType()
        found.append(
            (
                feature,
                [
                    [[(p.x(), p.y()) for p in ring[:-1]] for ring in part]
                    for part in shape.asMultiPolygon()
                ],
            )
        )
    return found


class Arcs:
    """Rings as chains of arcs between the points where three or more areas meet.

    Simplifying polygon by polygon opens slivers between neighbours. An arc has one simplified
    form whoever asks, so countries, states, borders and coast stay on one another.
    """

    def __init__(self, polygons: Iterable[Polygons]) -> None:
        around: dict[Point, set[Point]] = defaultdict(set)
        for ring in (ring for parts in polygons for part in parts for ring in part):
            for before, point in zip(ring[-1:] + ring[:-1], ring, strict=True):
                around[point].add(before)
                around[before].add(point)
        self.junctions = {point for point, others in around.items() if len(others) > 2}
        self.tolerance = TOLERANCE
        self.simple: dict[tuple[Point, Point], Ring] = {}

    def cut(self, ring: Ring) -> Iterator[tuple[tuple[Point, Point], Ring]]:
        ends = [i for i, point in enumerate(ring) if point in self.junctions]
        first = ends[0] if ends else ring.index(min(ring))
        turned = ring[first:] + ring[: first + 1]
        stops = [i - first for i in ends] or [0]
        for start, stop in zip(stops, [*stops[1:], len(ring)], strict=True):
            arc = turned[start : stop + 1]
            flip = (arc[-1], arc[-2]) < (arc[0], arc[1])
            arc = arc[::-1] if flip else arc
            key = (arc[0], arc[1])
            if key not in self.simple:
                shrink, tolerance = east_west(arc), coarseness(arc, self.tolerance)
                if not ends:  # an island or a lake: small ones would be splinters
                    tolerance = min(tolerance, sqrt(area(ring)) / 8)
                line = QgsGeometry.fromPolylineXY([QgsPointXY(x * shrink, y) for x, y in arc])
                points = line.simplify(tolerance).asPolyline()
                inner = [(p.x() / shrink, p.y()) for p in points[1:-1]]
                self.simple[key] = [arc[0], *inner, arc[-1]]
            yield key, self.simple[key][::-1] if flip else self.simple[key]

    def rebuild(self, parts: Polygons) -> tuple[QgsGeometry, list[tuple[Point, Point]]]:
        """The simplified shape, and which arcs it was made of."""
        kept, used, biggest = [], [], max(parts, key=lambda part: area(part[0]))
        for part in parts:
            rings = []
            for ring in part:
                outer = ring is part[0]
                if area(ring) < coarseness(ring, ISLET) and not (part is biggest and outer):
                    if outer:
                        break
                    continue
                arcs = list(self.cut(ring))
                line = [point for _, arc in arcs for point in arc[:-1]]
                rings.append(line if len(line) > 2 else ring)
                used += [key for key, _ in arcs]
            if rings:
                kept.append([[QgsPointXY(*p) for p in [*ring, ring[0]]] for ring in rings])
        shape = QgsGeometry.fromMultiPolygonXY(kept)
        if not shape.isGeosValid():
            shape = shape.makeValid()
            shape.convertGeometryCollectionToSubclass(QgsWkbTypes.PolygonGeometry)
            shape.convertToMultiType()
        return shape, used


def east_west(line: Ring) -> float:
    """How much shorter a degree of longitude is there: else the Arctic takes half of the file."""
    return max(0.1, cos(radians(sum(y for _, y in line) / len(line))))


def coarseness(line: Ring, temperate: float) -> float:
    """Four times as coarse by the poles: half of all vertices are fjords that few look at."""
    return temperate * (4 if abs(line[0][1]) > 58 else 1)


def area(ring: Ring) -> float:
    """In square degrees as they are at the equator."""
    return (
        east_west(ring)
        * abs(
            sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(ring, ring[1:] + ring[:1], strict=True))
        )
        / 2
    )


def on_land(arc: Ring) -> list[list[QgsPointXY]]:
    """The arc without the edges of the sheet (the antimeridian, the pole): no coast is there."""
    runs: list[list[QgsPointXY]] = [[]]
    for point, after in zip(arc, [*arc[1:], None], strict=True):
        runs[-1].append(QgsPointXY(*point))
        if after and (min(abs(point[0]), abs(after[0])) > 179.85 or max(point[1], after[1]) < -89):
            runs.append([])
    return [run for run in runs if len(run) > 1]


def measures(shape: QgsGeometry) -> list[float]:
    """Area in km² and where a name goes: far from every edge, width counting half, as names lie."""
    ruler = QgsDistanceArea()
    ruler.setEllipsoid("EPSG:7030")
    part = max(shape.asGeometryCollection(), key=lambda part: part.area())
    part.transform(QTransform.fromScale(0.5, 1))
    pole = part.poleOfInaccessibility(0.02)[0].asPoint()
    return [round(ruler.measureArea(shape) / 1e6, 1), round(2 * pole.x(), 3), round(pole.y(), 3)]


def colouring(shapes: list[QgsGeometry]) -> list[int]:
    """Greedy map colouring, the most entangled country first; among the free tints the rarest."""
    near = [shape.buffer(0.3, 2) for shape in shapes]
    boxes = [shape.boundingBox() for shape in near]
    touch = [
        {
            j
            for j in range(len(shapes))
            if j != i and boxes[i].intersects(boxes[j]) and near[i].intersects(near[j])
        }
        for i in range(len(shapes))
    ]
    tint, counts = [-1] * len(shapes), Counter(range(TINTS))
    for i in sorted(range(len(shapes)), key=lambda i: (-len(touch[i]), i)):
        free = set(range(TINTS)) - {tint[j] for j in touch[i]} or set(range(TINTS))
        tint[i] = min(free, key=lambda colour: (counts[colour], colour))
        counts[tint[i]] += 1
    return tint


def tables(source: Path) -> dict[str, tuple[str, list[str], list[Row]]]:
    """Table → geometry type, columns, rows."""
    read = {
        name: rings_of(QgsVectorLayer(f"{source}|layername={name}", name, "ogr"))
        for name in ("countries", "states", "lakes")
    }
    arcs = Arcs(parts for name in ("countries", "states") for _, parts in read[name])
    owners: dict[tuple[Point, Point], set[str]] = defaultdict(set)
    countries: list[Row] = []
    for feature, parts in read["countries"]:
        shape, used = arcs.rebuild(parts)
        code = feature["iso_a2"]
        name = feature["NAME"] or {"TK": "Tokelau"}.get(code, "")
        countries.append((shape, [name, code, feature["ISO_A3"] or "", *measures(shape)]))
        for key in used:
            owners[key].add(name)
    for (_, row), tint in zip(countries, colouring([shape for shape, _ in countries]), strict=True):
        row.append(tint)
    arcs.tolerance *= 2.5  # of lines between states; those on coasts and borders are made already
    states, sizes = [], defaultdict(list)
    for feature, parts in read["states"]:
        sizes[feature["admin"]].append(sum(area(part[0]) for part in parts))
    for feature, parts in read["states"]:
        several = sizes[feature["admin"]]
        if len(several) < 2 or median(several) < COUNTY or feature["iso_a2"] in FROZEN:
            continue
        shape = arcs.rebuild(parts)[0]
        states.append((shape, [feature["name"] or "", feature["admin"], *measures(shape)]))
    lines: dict[tuple[str, ...], list[list[QgsPointXY]]] = defaultdict(list)
    for key, names in owners.items():
        lines[tuple(sorted(names))] += on_land(arcs.simple[key])
    shared = {names: QgsGeometry.fromMultiPolylineXY(runs) for names, runs in lines.items() if runs}
    lakes: list[Row] = [
        (Arcs([parts]).rebuild(parts)[0], [])
        for _, parts in read["lakes"]
        if max(area(part[0]) for part in parts) > 2 * ISLET
    ]
    measured = ["area_km2:double", "label_x:double", "label_y:double"]
    return {
        "countries": (
            "MultiPolygon",
            ["name:string", "iso_a2:string", "iso_a3:string", *measured, "tint:int"],
            countries,
        ),
        "states": ("MultiPolygon", ["name:string", "country:string", *measured], states),
        "lakes": ("MultiPolygon", [], lakes),
        "coastline": (
            "MultiLineString",
            ["country:string"],
            [(shape, [*names]) for names, shape in shared.items() if len(names) == 1],
        ),
        "borders": (
            "MultiLineString",
            ["between:string", "settled:int"],
            [
                (shape, [" / ".join(filter(None, names)), int(all(names))])
                for names, shape in shared.items()
                if len(names) > 1
            ],
        ),
    }


def write_tables(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    write = getattr(QgsVectorFileWriter, "writeAsVectorFormatV3", None)
    for name, (kind, columns, rows) in tables(source).items():
        fields = "".join(f"&field={column}" for column in columns)
        layer = QgsVectorLayer(f"{kind}?crs=EPSG:4326{fields}", name, "memory")
        features = []
        for shape, values in rows:
            feature = QgsFeature(layer.fields())
            feature.setGeometry(shape)
            feature.setAttributes(values)
            features.append(feature)
        layer.dataProvider().addFeatures(features)
        options = QgsVectorFileWriter.SaveVectorOptions()
        options.layerName = name
        if target.exists():
            options.actionOnExistingFile = QgsVectorFileWriter.CreateOrOverwriteLayer
        result = (write or QgsVectorFileWriter.writeAsVectorFormatV2)(
            layer, str(target), QgsCoordinateTransformContext(), options
        )
        if result[0]:
            sys.exit(f"cannot write {name}: {result[1]}")
        print(
            f"{name}: {len(rows)} features, {sum(len(s.asWkb()) for s, _ in rows) / 1e6:.2f} MB, "
            f"{sum(not s.isGeosValid() for s, _ in rows)} invalid"
        )
