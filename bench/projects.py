"""The projects that are served, made once and kept between runs.

light/light.qgs     one layer: the countries of the world
places/places.qgs   one layer: 5,000 points
world/, heavy/      as ../shared/make_projects.py makes them
"""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from bench.processes import log

#: Layers of the heavy project.
HEAVY = 200
#: Countries whose outlines together make some 70 kB of GeoJSON.
FEATURES = ("Austria", "France", "Germany", "Switzerland")
_DONE = "done"


def make(shared: Path, cache: Path) -> Path:
    """The folder of projects, made if it is not there or was made by other scripts."""
    scripts = [shared / "make_projects.py", Path(__file__).with_name("make_light.py")]
    stamp = hashlib.sha256(b"".join(script.read_bytes() for script in scripts)).hexdigest()
    folder = cache / "projects"
    done = folder / _DONE
    if done.exists() and done.read_text() == stamp:
        return folder
    log("making the projects, once; takes half a minute")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = os.environ | {"QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": str(folder)}
    commands = [
        [str(scripts[0]), str(folder), "--only", "world", "--heavy", str(HEAVY)],
        [str(scripts[1]), str(shared / "data" / "world.gpkg"), str(folder)],
    ]
    for command in commands:
        result = subprocess.run(
            [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=600
        )
        if result.returncode:
            raise SystemExit(f"cannot make the projects: {result.stderr[-2000:]}")
    done.write_text(stamp)
    return folder


def feature_ids(folder: Path) -> list[int]:
    """The ids of FEATURES in the light project."""
    marks = ", ".join("?" * len(FEATURES))
    uri = f"file:{folder / 'light' / 'light.gpkg'}?mode=ro&immutable=1"
    with closing(sqlite3.connect(uri, uri=True)) as database:
        rows = database.execute(
            f"SELECT fid FROM countries WHERE NAME IN ({marks}) ORDER BY fid", FEATURES
        ).fetchall()
    return [row[0] for row in rows]
