"""Makes docs/parity.md of the results that the suite has kept in docs/parity.

    PARITY_RESULTS=docs/parity python -m pytest tests/parity     keeps them, for this QGIS
    python -m tests.parity.table                                 makes the page of all that are kept

A part of the suite (-k warm) replaces its part of the results.
"""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.parity.cases import OPERATIONS
from tests.parity.runner import MODES, Result
from tests.parity.sources import SOURCES

HOME = Path(__file__).resolve().parents[2] / "docs"
KEPT, PAGE = HOME / "parity", HOME / "parity.md"

#: mode → source → operation → [answers compared, those that differ and should not,
#: {known cause: how many differ by it}]
Results = dict[str, dict[str, dict[str, list[Any]]]]


def counted(results: list[Result]) -> dict[str, list[Any]]:
    """Results of one mode and source, by operation."""
    found: dict[str, list[Any]] = {}
    for result in results:
        row = found.setdefault(result.case.operation, [0, 0, {}])
        row[0] += 1
        if result.difference:
            row[1] += 1
        elif result.cause:
            row[2][result.cause] = row[2].get(result.cause, 0) + 1
    return found


def keep(folder: Path, version: str, done: Mapping[tuple[str, str], list[Result]]) -> Path:
    """Put results into the file of this version of QGIS (3.22.16 → 3.22.json)."""
    path = folder / f"{'.'.join(version.split('.')[:2])}.json"
    kept = json.loads(path.read_text()) if path.exists() else {"results": {}}
    modes: Results = kept["results"]
    for (mode, source), results in done.items():
        modes.setdefault(mode, {})[source] = counted(results)
    for mode in MODES:
        for source in mode.without:
            modes.get(mode.name, {}).pop(source, None)
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"qgis": version, "results": modes}, sort_keys=True, separators=(",", ":"))
    path.write_text(text.replace('},"', '},\n"') + "\n")
    return path


WHY = """
What R does without answers by what it was asked before, in a plain server too: those providers
keep what they have fetched. `tests/parity/test_parity.py` proves it of plain servers each time, and
the same of extents and of letters. A plain server is started anew for each provider, and asked in
one order; so is qgisd in C, W and L, and there nothing may differ by the order.

For requests with a filter, and posts, the plain server is told by GDAL's `OGR_SQLITE_JOURNAL` to
keep a GeoPackage's journal, as qgisd does ([why](writers.md)). Without, it switches the file to
WAL; then its own extents are 0, and other plain servers that have the file open answer empty.

Not here, but byte for byte as well: the landing page (`tests/e2e/test_landing_page.py`).
"""

INTRO = """\
# The same picture

<!-- Made by `python -m tests.parity.table` from docs/parity/*.json. Not written by hand. -->

Every provider and every operation of QGIS Server, asked of qgisd and of a plain `QgsServer` in a
process of its own. The same means: the same status, the same headers of QGIS, the same body byte
for byte, pictures, prints and PDF files included. Blanked on both sides is only what two answers of
one server differ in: the time of making in a PDF file, `timeStamp` in OGC API Features and hits of
WFS.

`make parity` runs it again and makes this page. The requests are in `tests/parity/cases.py`, the
projects in `tests/parity/make.py`.

A cell says how many requests were compared and, by letter, in which modes all of them came out the
same; `31/33` means that two did not. A dash: the operation is nothing for this provider.

| | mode |
|---|---|
"""


def page(versions: list[dict[str, Any]]) -> str:
    """The whole of docs/parity.md."""
    text = INTRO
    for mode in MODES:
        left = f"; without {', '.join(mode.without)}" if mode.without else ""
        text += f"| {mode.letter} | {mode.name}: {mode.about}{left} |\n"
    text += WHY
    for version in versions:
        text += _section(version["qgis"], version["results"])
    return text


def _section(version: str, results: Results) -> str:
    rows = [row for modes in results.values() for cells in modes.values() for row in cells.values()]
    asked = sum(row[0] for row in rows)
    known = sum(sum(row[2].values()) for row in rows)
    other = sum(row[1] for row in rows)
    text = (
        f"\n## QGIS {version}\n\n{asked} answers compared in {len(results)} modes: {other} differ,"
        f" and {known} differ by a cause named below.\n\n"
    )
    text += (
        "| provider | " + " | ".join(OPERATIONS) + " |\n" + "|---" * (len(OPERATIONS) + 1) + "|\n"
    )
    for source in SOURCES:
        cells = [_cell(results, source.name, operation) for operation in OPERATIONS]
        text += f"| {source.name} | " + " | ".join(cells) + " |\n"
    notes = [f"- {source.name}: {source.note}.\n" for source in SOURCES if source.note]
    return text + "\n" + "".join(notes) + _causes(results)


def _cell(results: Results, source: str, operation: str) -> str:
    """E.g. "33 CLR", or "33 CL, 31/33 R"."""
    modes: dict[str, str] = {}
    for mode in MODES:
        row = results.get(mode.name, {}).get(source, {}).get(operation)
        if row is None:
            continue
        asked, differ = row[0], row[1] + sum(row[2].values())
        count = f"{asked - differ}/{asked}" if differ else str(asked)
        modes[count] = modes.get(count, "") + mode.letter
    return ", ".join(f"{count} {letters}" for count, letters in modes.items()) or "-"


def _causes(results: Results) -> str:
    """Each cause of differences, and where it was met."""
    found: dict[str, Counter[str]] = {}
    for mode, sources in results.items():
        for source, operations in sources.items():
            for _, other, causes in operations.values():
                for cause, count in causes.items():
                    found.setdefault(cause, Counter())[f"{source} ({mode})"] += count
                if other:
                    found.setdefault("not explained", Counter())[f"{source} ({mode})"] += other
    if not found:
        return "\nNo differences.\n"
    text = "\n| what differs | answers | where |\n|---|---|---|\n"
    for cause, places in sorted(found.items()):
        total = sum(places.values())
        where = ", ".join(sorted({place.split(" ")[0] for place in places}))
        text += f"| {cause} | {total} | {where} |\n"
    return text


def kept_versions(folder: Path = KEPT) -> list[dict[str, Any]]:
    """What is kept, the oldest QGIS first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda kept: [int(part) for part in kept["qgis"].split(".")])


if __name__ == "__main__":
    PAGE.write_text(page(kept_versions()))
    print(PAGE)
