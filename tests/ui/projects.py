"""The projects that the tests of the page look at."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.sax.saxutils import escape

from tests.e2e.helpers import EXAMPLES

#: It would run if it became markup anywhere.
HOSTILE = "<img src=x onerror=document.title='owned'>"


def write_projects(root: Path, source: str) -> None:
    """world; `bad`, a layer of which is missing and has a hostile name; one with a hostile name
    and a layer with such a title; stuck, with a layer of the WMS at the URL `source`, which must
    answer while this runs.
    """
    root.mkdir(parents=True, exist_ok=True)
    for name in ("world.qgs", "world.gpkg", "relief.tif"):
        shutil.copy(EXAMPLES / "world" / name, root / name)
    text = (root / "world.qgs").read_text()
    missing = text.replace("./world.gpkg|layername=lakes", "./missing.gpkg|layername=lakes")
    assert missing != text
    named = missing.replace(
        "<layername>Lakes</layername>", f"<layername>{escape(HOSTILE)}</layername>"
    )
    assert named != missing
    (root / "bad.qgs").write_text(named)
    titled = text.replace("<title>Countries</title>", f"<title>{escape(HOSTILE)}</title>")
    assert titled != text
    (root / f"{HOSTILE}.qgs").write_text(titled)
    done = subprocess.run(
        [sys.executable, str(EXAMPLES.parent / "tests" / "chaos" / "make_remote.py"), source,
         str(root / "world.gpkg"), str(root / "stuck.qgs")],
        env=os.environ | {"QT_QPA_PLATFORM": "offscreen"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
