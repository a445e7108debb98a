"""QGIS's own messages reach the log with the request, or the load, that they belong to."""

import re
from pathlib import Path

from tests.e2e.helpers import ProjectSet
from tests.support import Daemon, eventually


def said(daemon: Daemon, pattern: str) -> list[str]:
    """The lines of the log that fit, once there are any."""
    return list(eventually(lambda: re.findall(pattern, daemon.log())))


def test_an_error_of_qgis_is_told_with_the_request_and_no_other(
    qgisd: Daemon, demo: ProjectSet
) -> None:
    good = demo.target(
        SERVICE="WMS", VERSION="1.3.0", REQUEST="GetMap", LAYERS=demo.vector, STYLES="",
        CRS="EPSG:4326", BBOX="40,0,50,10", WIDTH=50, HEIGHT=50, FORMAT="image/png",
    )  # fmt: skip
    bad = good.replace(f"LAYERS={demo.vector}", "LAYERS=no-such-layer")
    for number in range(6):
        name, target, status = (
            (f"good-{number}", good, 200) if number % 2 else (f"bad-{number}", bad, 400)
        )
        assert qgisd.get(target, headers={"X-Request-Id": name}).status == status
    lines = said(qgisd, r"(.*qgisd\.qgis\.default: (?:bad|good)-\d.*LayerNotDefined.*)")
    named = [re.search(r"default: (\S+) demo/world\.qgs: Server: ", line) for line in lines]
    assert [match[1] for match in named if match] == ["bad-0", "bad-2", "bad-4"]
    assert all(" warning " in line for line in lines)


def test_what_qgis_says_while_it_loads_is_told_with_the_project(
    qgisd: Daemon, broken: ProjectSet, roots: Path
) -> None:
    target = broken.target(SERVICE="WMS", REQUEST="GetCapabilities")
    assert qgisd.get(target).status == 200
    lines = said(qgisd, rf"(.*qgisd\.qgis\.default: snapshot {broken.name}\.qgs: .*)")
    assert lines and not any(str(roots) in line and "password" in line for line in lines)
