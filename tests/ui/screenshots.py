"""Make the pictures of docs/ui.md: python -m tests.ui.screenshots [--minutes 4] [--out docs]

Everything in them is real: QGIS, projects, clients that ask for maps, a project that is stuck
because its source never answers, and the click that ends it. Says how long that took to be seen.
"""

import argparse
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver.common.action_chains import ActionChains

from tests.chaos.source import Source
from tests.support import Daemon, eventually
from tests.ui.browser import Browser, browser
from tests.ui.forward import forwarded
from tests.ui.projects import write_projects
from tests.ui.scene import MAP, serving, stuck

DOCS = Path(__file__).resolve().parents[2] / "docs"
_LAYERS = ("countries", "lakes,countries", "states,countries", "borders,lakes,countries,relief")


def write_town(root: Path) -> None:
    """Two more projects, below a folder."""
    (root / "town").mkdir()
    text = (root / "world.qgs").read_text().replace("./world.gpkg", "../world.gpkg")
    for name in ("parks", "streets"):
        (root / "town" / f"{name}.qgs").write_text(text.replace("./relief.tif", "../relief.tif"))


@contextmanager
def clients(daemon: Daemon) -> Iterator[None]:
    """Some that ask for maps, now more and now less."""
    over = threading.Event()
    chance = random.Random(7)

    def ask() -> None:
        begun = time.monotonic()
        while not over.is_set():
            name = chance.choice(("world", "world", "world", "town/streets", "town/parks", "bad"))
            left, bottom = chance.uniform(-170, 100), chance.uniform(-60, 40)
            box = f"{left},{bottom},{left + 60},{bottom + 30}"
            layers = "countries" if name == "bad" else chance.choice(_LAYERS)
            daemon.ows(name, LAYERS=layers, **(MAP | {"BBOX": box}))
            minute = int((time.monotonic() - begun) / 60)
            over.wait(chance.expovariate(1 + 3 * ((minute * 7) % 4)))

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(60)


def take(page: Browser, daemon: Daemon, source: Source, out: Path) -> None:
    """The pictures, in the order of the story."""
    page.size(1160, 760)
    page.prefer("light")
    page.open()
    page.sees("live", "#line")
    page.sees("world.qgs", "main")
    with stuck(daemon, source) as answer:
        begun = time.monotonic()
        eventually(lambda: "stuck.qgs" in page.text(".alarm"), timeout=5, period=0.02)
        print(f"a stuck request was on the page after {time.monotonic() - begun:.1f} s")
        eventually(lambda: "running for more" in page.text(".alarm"))
        page.picture(out / "ui-stuck.png")
        page.prefer("dark")
        begun = time.monotonic()
        number = page.text(".alarm a[href^='#/request/']")
        page.press(f"End it: request {number}", ".alarm")
        print(f"its client got {answer.result(20).status} {time.monotonic() - begun:.1f} s after")
        page.sees("ended", "#notices")
        eventually(lambda: not page.text(".alarm"))
        page.picture(out / "ui-ended.png")
    page.prefer("light")
    page.size(1000, 700)
    page.open("#/project/default/world.qgs")
    page.sees("live", "#line")
    page.sees("GetMap ", "main")
    eventually(lambda: page.run("return document.querySelector('.legend')?.complete"))
    page.all(".map-panel summary")[0].click()
    (relief,) = [label for label in page.all(".layers label") if label.text == "Relief"]
    relief.click()  # shading makes a large picture
    plane = page.all(".map")[0]
    into_brazil = (-round(plane.size["width"] * 0.13), round(plane.size["height"] * 0.08))
    chain = ActionChains(page.driver)
    chain.move_to_element_with_offset(plane, *into_brazil).click().perform()
    page.sees("Brazil", ".info")
    eventually(lambda: not page.all(".map[aria-busy]"))
    page.picture(out / "ui-project.png")
    page.size(360, 740, phone=True)
    page.open()
    page.sees("live", "#line")
    page.sees("world.qgs", "main")
    page.picture(out / "ui-phone.png")
    page.press("Drain …")
    page.picture(out / "ui-dialog.png")
    page.press("Cancel", "dialog")
    complaints = page.complaints()
    assert not complaints, complaints


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.ui.screenshots", description=__doc__)
    parser.add_argument("--minutes", type=float, default=4.0, help="of clients before the first")
    parser.add_argument("--out", type=Path, default=DOCS)
    options = parser.parse_args()
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        print("needs Debian's chromium and chromium-driver", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="qgisd-screenshots-") as folder:
        source = Source()
        try:
            root = Path(folder) / "projects"
            write_projects(root, source.url)
            write_town(root)
            with (
                serving(Path(folder) / "daemon", root) as daemon,
                clients(daemon),
                forwarded(daemon.folder / "admin.sock") as port,
                browser(f"http://localhost:{port}", chromium, driver) as page,
            ):
                time.sleep(60 * options.minutes)
                take(page, daemon, source, options.out)
        finally:
            source.stop()
    for path in sorted(options.out.glob("ui-*.png")):
        print(f"{path.name}: {os.path.getsize(path) / 1000:.0f} kB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
