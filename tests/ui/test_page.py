"""The operators' page in a real browser, on a real daemon with real QGIS."""

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium_axe_python import Axe

from tests.chaos.source import Source
from tests.support import Daemon, eventually
from tests.ui.browser import Browser
from tests.ui.projects import HOSTILE
from tests.ui.scene import MAP, stuck


def project(name: str) -> str:
    return f"#/project/default/{name}"


def live(page: Browser, fragment: str = "#/") -> None:
    """Open a part of the page and wait until it is told what happens."""
    page.open(fragment)
    page.sees("live", "#line")


def rows(page: Browser, caption: str) -> list[list[str]]:
    """The cells of the rows of a table."""
    found: list[list[str]] = page.run(
        "const table = [...document.querySelectorAll('table')]"
        ".find((one) => one.caption.textContent === arguments[0]);"
        "return [...table.tBodies[0].rows]"
        ".map((row) => [...row.cells].map((cell) => cell.innerText))",
        caption,
    )
    return found


def test_projects_are_listed(page: Browser) -> None:
    live(page)
    page.sees("world.qgs", "main")
    (world,) = [row for row in rows(page, "Projects") if row[0] == "world.qgs"]
    assert "serving" in world[1] and "pinned" in world[1]
    eventually(lambda: "shared" in rows(page, "Projects")[0][2], timeout=20, period=0.2)
    assert page.text("#about").startswith("qgisd ")


def test_a_new_worker_appears_by_itself(page: Browser, qgisd: Daemon) -> None:
    live(page)
    page.sees("world.qgs", "main")
    before = {row[8] for row in rows(page, "Workers")}
    page.run("window.untouched = true")
    with ThreadPoolExecutor(2) as threads:
        answers = list(threads.map(lambda _: qgisd.ows("world", LAYERS="world", **MAP), range(2)))
    assert [answer.status for answer in answers] == [200, 200]
    fresh = {str(row["pid"]) for row in qgisd.workers()} - before
    assert fresh
    eventually(lambda: fresh <= {row[8] for row in rows(page, "Workers")}, timeout=10, period=0.1)
    assert page.run("return window.untouched") is True
    assert page.text("#line") == "live"
    assert any("worker started" in text for text in events(page))


def events(page: Browser) -> list[str]:
    page.go("#/events")
    page.sees("What happened", "main")
    return [item.text for item in page.all("ol.log li")]


def test_without_the_stream_it_asks_again_and_again(page: Browser, qgisd: Daemon) -> None:
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/api/v1/events*"]})
    try:
        page.open()
        page.sees("asking every 2 s", "#line")
        assert qgisd.ows("world", LAYERS="lakes", **MAP).status == 200
        served = {str(one["pid"]): str(one["served"]) for one in qgisd.workers()}
        eventually(lambda: {row[8]: row[5] for row in rows(page, "Workers")} == served, period=0.1)
    finally:
        page.driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
    complaints = page.complaints()
    assert all("/api/v1/events" in one for one in complaints)
    page.sees("live", "#line")  # it tries the stream again


def test_reload_says_what_will_happen_and_does_it(page: Browser, qgisd: Daemon) -> None:
    before = generation(qgisd, "world.qgs")
    live(page, project("world.qgs"))
    page.press("Reload …")
    page.sees("What will happen:", "dialog")
    assert "goes on serving" in page.text("dialog")
    page.press("Cancel", "dialog")
    eventually(lambda: not page.all("dialog"))
    assert generation(qgisd, "world.qgs") == before
    page.press("Reload …")
    page.press("Reload", "dialog")
    page.sees(f"world.qgs: generation {before + 1}", "#notices")
    assert generation(qgisd, "world.qgs") == before + 1
    eventually(
        lambda: [f"g{before + 1}", "serving"] in [row[:2] for row in rows(page, "Generations")]
    )


def generation(qgisd: Daemon, name: str) -> int:
    """The one that serves."""
    (number,) = [
        one["number"] for one in qgisd.projects()[name]["generations"] if one["state"] == "serving"
    ]
    return int(number)


def test_unpin_pin_drop_and_load(page: Browser, qgisd: Daemon) -> None:
    live(page, project("world.qgs"))

    def told(label: str, verb: str, words: str) -> None:
        page.press(label)
        assert words in page.text("dialog")
        page.press(verb, "dialog")
        eventually(lambda: not page.all("dialog"), timeout=20)

    told("Unpin …", "Unpin", "evicted")
    assert qgisd.projects()["world.qgs"]["pinned"] is False
    told("Drop …", "Drop", "The next request loads it again")
    eventually(lambda: "world.qgs" not in qgisd.projects())
    told("Load …", "Load", "before anybody asks")
    assert qgisd.projects()["world.qgs"]["state"] == "serving"
    told("Pin …", "Pin", "stays loaded")
    assert qgisd.projects()["world.qgs"]["pinned"] is True


def test_a_worker_is_killed(page: Browser, qgisd: Daemon) -> None:
    assert qgisd.ows("world", LAYERS="lakes", **MAP).status == 200
    live(page)
    worker = eventually(lambda: [one for one in qgisd.workers() if one["state"] == "idle"])[0]
    page.press(f"Kill worker {worker['id']} …")
    page.sees(f"Process {worker['pid']} of {worker['project']} ends at once.", "dialog")
    page.press("Kill", "dialog")
    eventually(lambda: worker["pid"] not in [one["pid"] for one in qgisd.workers()])
    eventually(lambda: str(worker["pid"]) not in [row[8] for row in rows(page, "Workers")])
    assert "operator" in page.text(".pools")


def test_drain_and_undrain(page: Browser, qgisd: Daemon) -> None:
    live(page)
    page.press("Drain …")
    assert "503 and Retry-After" in page.text("dialog")
    page.press("Drain", "dialog")
    page.sees("draining", ".pools")
    assert qgisd.get("/readyz").status == 503
    page.press("Undrain …")
    page.press("Undrain", "dialog")
    page.button("Drain …")
    assert qgisd.get("/readyz").status == 200


# the map

#: How many colours a picture has, and the share of its pixels that are not transparent.
LOOK = """
const picture = document.querySelector(arguments[0]);
const canvas = document.createElement("canvas");
canvas.width = picture.naturalWidth; canvas.height = picture.naturalHeight;
const context = canvas.getContext("2d");
context.drawImage(picture, 0, 0);
const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
const colours = new Set();
let drawn = 0;
for (let at = 0; at < data.length; at += 4) {
  if (data[at + 3] > 0) {
    drawn += 1;
    colours.add(data[at] << 16 | data[at + 1] << 8 | data[at + 2]);
  }
}
return {colours: colours.size, drawn: drawn / (data.length / 4)};
"""


def with_map(page: Browser, name: str) -> None:
    live(page, project(name))
    page.sees("GetMap ", "main")
    ready = (
        "return [...document.querySelectorAll('.map-picture, .legend')].map((one) => one.complete)"
    )
    eventually(lambda: page.run(ready) == [True, True], timeout=20, period=0.1)


def asked(page: Browser, request: str) -> dict[str, str]:
    """Parameters of the last request of that kind that the page has sent."""
    urls = page.run("return performance.getEntriesByType('resource').map((one) => one.name)")
    queries = [parse_qs(urlsplit(url).query) for url in urls]
    return {
        key: values[0]
        for key, values in [q for q in queries if q.get("REQUEST") == [request]][-1].items()
    }


def test_the_map_is_what_qgisd_serves(page: Browser) -> None:
    with_map(page, "world.qgs")
    map_look = page.run(LOOK, ".map-picture")
    assert map_look["colours"] > 1000 and map_look["drawn"] > 0.5
    legend = page.run(LOOK, ".legend")
    assert legend["colours"] > 10
    # The picture lies where it was asked for: all of the world in the middle of the plane.
    parameters = asked(page, "GetMap")
    box = [float(number) for number in parameters["BBOX"].split(",")]
    assert box[0] <= -180 and box[1] <= -90 and box[2] >= 180 and box[3] >= 90
    page.all(".leaflet-control-zoom-in")[0].click()
    eventually(lambda: asked(page, "GetMap") != parameters)


def test_a_click_asks_what_is_there(page: Browser) -> None:
    with_map(page, "world.qgs")
    left, bottom, right, top = (float(one) for one in asked(page, "GetMap")["BBOX"].split(","))
    plane = page.all(".map")[0]
    longitude, latitude = -53.0, -10.0  # Brazil
    across = ((longitude - left) / (right - left) - 0.5) * plane.size["width"]
    down = (0.5 - (latitude - bottom) / (top - bottom)) * plane.size["height"]
    actions = ActionChains(page.driver)
    actions.move_to_element_with_offset(plane, round(across), round(down)).click().perform()
    page.sees("Brazil", ".info")
    page.press("What is at the centre?")
    eventually(lambda: "Brazil" not in page.text(".info"))


def test_layers_can_be_left_out(page: Browser) -> None:
    with_map(page, "world.qgs")
    assert "relief" in asked(page, "GetMap")["LAYERS"].split(",")
    page.run("document.querySelector('.layers').parentElement.open = true")
    (relief,) = [label for label in page.all(".layers label") if label.text == "Relief"]
    relief.click()
    eventually(lambda: "relief" not in asked(page, "GetMap")["LAYERS"].split(","))


def test_what_a_project_did_is_drawn(page: Browser, qgisd: Daemon) -> None:
    assert qgisd.ows("world", LAYERS="lakes", **MAP).status == 200
    live(page)

    def world() -> list[str]:
        return next(row for row in rows(page, "Projects") if row[0] == "world.qgs")

    eventually(lambda: re.fullmatch(r"[\d.]+", world()[6].strip()), timeout=20, period=0.2)
    eventually(lambda: re.fullmatch(r"[\d.]+ m?s", world()[7].strip()), timeout=20, period=0.2)
    drawn = page.all(".spark[aria-label^='requests a minute'] .spark-line")
    assert any("h.01" in str(one.get_attribute("d")) for one in drawn)


# what is wrong, and what is hostile


def test_bad_layers_and_their_errors(page: Browser, qgisd: Daemon) -> None:
    assert qgisd.ows("bad", LAYERS="countries", **MAP).status == 200
    live(page)
    eventually(
        lambda: "1 bad layer" in next(r for r in rows(page, "Projects") if r[0] == "bad.qgs")[3]
    )
    page.go(project("bad.qgs"))
    eventually(lambda: rows(page, "Layers"), timeout=20)
    first = rows(page, "Layers")[0]
    assert (first[0], first[2]) == (HOSTILE, "bad") and first[4]
    good = {row[0]: row[1:4] for row in rows(page, "Layers")[1:]}
    assert {"Countries", "Relief"} <= set(good)
    assert good["Countries"][:2] == ["ogr", "good"]
    page.sees("6 layers, 1 of them bad.", "main")


def test_hostile_names_stay_text(page: Browser, qgisd: Daemon) -> None:
    name = f"{HOSTILE}.qgs"
    assert qgisd.ows(HOSTILE, LAYERS="countries", **MAP).status == 200
    assert qgisd.ows(HOSTILE, LAYERS=HOSTILE, **MAP).status == 400
    live(page)
    (link,) = eventually(
        lambda: [one for one in page.all("main td a, main th a") if one.text == name][:1]
    )
    link.click()
    page.sees(name, "h1")
    page.sees("GetMap ", "main")
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert HOSTILE in page.text(".layers")  # a title in the capabilities
    page.press("Reload …")
    assert name in page.text("dialog")
    page.press("Reload", "dialog")
    page.sees(name, "#notices")
    for fragment in ("#/", "#/events", "#/slowlog", "#/requests", f"#/request/{HOSTILE}"):
        page.go(fragment)
        eventually(lambda: page.all("main > *"))
    eventually(lambda: HOSTILE in page.text("h1"))
    assert not page.all("img[src='x']")
    assert "owned" not in str(page.run("return document.title")).replace(HOSTILE, "")
    # A request that does not exist is a 404 in the console.
    assert all("/requests/" in one for one in page.complaints())


# its parts


def test_times_are_told_as_people_do(page: Browser) -> None:
    page.open()
    told = {
        0: "0 ms", 0.9994: "999 ms", 0.9996: "1.0 s", 9.94: "9.9 s", 9.97: "10 s", 59.4: "59 s",
        59.7: "1 min 0 s", 119.6: "2 min 0 s", 3599.8: "1 h 0 min", 7260: "2 h 1 min",
        90000: "1 d 1 h",
    }  # fmt: skip
    script = (
        "const [seconds, done] = arguments;"
        "import('/ui/js/format.js').then((format) => done(seconds.map(format.span)))"
    )
    assert page.driver.execute_async_script(script, list(told)) == list(told.values())


def test_of_two_that_are_called_the_same_none_stays_behind(page: Browser) -> None:
    """Such as two requests to which a proxy gave one id."""
    page.open()
    script = """
        const done = arguments[0];
        import("/ui/js/dom.js").then(({ h, keyed }) => {
          const list = h("ul");
          const make = (item) => ({ element: h("li", {}, item), update() {} });
          const counts = [["a", "b", "a"], ["a", "a"], ["a"], []].map((items) => {
            keyed(list, items, (item) => item, make);
            return list.textContent;
          });
          done(counts);
        });
    """
    assert page.driver.execute_async_script(script) == ["aba", "aa", "a", ""]


# how it looks


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_inaccessible(page: Browser, qgisd: Daemon, scheme: str) -> None:
    page.prefer(scheme)
    live(page)
    page.sees("world.qgs", "main")
    ground = page.run("return getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in re.findall(r"\d+", ground)[:3]) / 3
    assert brightness > 200 if scheme == "light" else brightness < 60
    axe = Axe(page.driver)

    def problems() -> list[str]:
        axe.inject()
        found: list[dict[str, Any]] = axe.run()["violations"]
        return [f"{one['id']}: {node['html']}" for one in found for node in one["nodes"]]

    assert problems() == []
    page.press("Drain …")
    assert problems() == []
    page.press("Cancel", "dialog")
    with_map(page, "world.qgs")
    page.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert problems() == []
    number = qgisd.ows("world", LAYERS="countries", **MAP).headers["X-Request-Id"]
    for fragment, words in (
        ("#/events", "What happened"),
        ("#/slowlog", "Requests that are or were slow"),
        ("#/requests", "Requests under way"),
        (f"#/request/{number}", "Took in all"),
    ):
        page.go(fragment)
        page.sees(words, "main")
        assert problems() == []


#: Texts of figures that reach beyond their card.
BEYOND = """
const right = (element) => element.getBoundingClientRect().right;
return [...document.querySelectorAll(".facts dd, .facts dd *")]
    .filter((one) => right(one) > right(one.closest(".card"))).map((one) => one.textContent);
"""


def test_on_a_phone_nothing_is_wider_than_the_screen(page: Browser, qgisd: Daemon) -> None:
    page.size(360, 740, phone=True)
    assert qgisd.ows("bad", LAYERS="countries", **MAP).status == 200
    for fragment in ("#/", project("world.qgs"), project("bad.qgs"), "#/events", "#/slowlog"):
        live(page, fragment)
        if "project" in fragment:
            page.sees("GetMap ", "main")
        if fragment == "#/":
            page.sees(" private", ".pools .memory")  # it is not measured at once
        assert page.overflow() <= 0, fragment
        assert page.run(BEYOND) == [], fragment
    live(page)
    page.sees("world.qgs", "main")
    page.press("Drain …")
    dialog = page.all("dialog")[0].rect
    assert dialog["x"] >= 0 and dialog["x"] + dialog["width"] <= 360
    page.press("Cancel", "dialog")


def test_the_keyboard_is_enough(page: Browser) -> None:
    """Tab reaches every link and button of the header and the pool, each with a visible focus."""
    live(page)
    page.sees("world.qgs", "main")
    seen = []
    for _ in range(9):
        ActionChains(page.driver).send_keys("\ue004").perform()
        focused = page.driver.switch_to.active_element
        seen.append(focused.accessible_name)
        assert page.run("return getComputedStyle(arguments[0]).outlineStyle", focused) == "solid"
    wanted = ["Overview", "Slow log", "Reload all …", "Drain …"]
    assert [name for name in seen if name in wanted] == wanted


# what is stuck


def test_a_stuck_project_is_shown_within_5_s_and_ended_with_one_click(
    page: Browser, qgisd: Daemon, source: Source
) -> None:
    live(page)
    with stuck(qgisd, source) as answer:
        begun = time.monotonic()
        eventually(lambda: "stuck.qgs" in page.text(".alarm"), timeout=5, period=0.05)
        assert time.monotonic() - begun < 5
        assert not answer.done()
        (worker,) = [
            one for one in qgisd.workers() if one["project"] == "stuck.qgs" and one["request_id"]
        ]
        assert "End it" in page.text(".alarm button")
        page.press(f"End it: request {worker['request_id']}", ".alarm")
        assert answer.result(10).status == 503
        page.sees(f"Request {worker['request_id']} ended", "#notices")
    eventually(lambda: not page.text(".alarm"))
    assert worker["pid"] not in [one["pid"] for one in qgisd.workers()]
    assert qgisd.ows("stuck", LAYERS="borders", **MAP).status == 200


def goes_on_under_the_focus(page: Browser, fragment: str, figure: str) -> None:
    """What is told of a request that runs is kept up to date, and leaves the reader's place."""
    page.go(fragment)
    page.sees("running", "main")
    link = "main a[href='#/project/default/stuck.qgs']"
    page.run("document.querySelector(arguments[0]).focus()", link)
    before = page.text(f"main {figure}")
    eventually(lambda: page.text(f"main {figure}") != before, timeout=10, period=0.1)
    assert page.run("return document.activeElement.matches(arguments[0])", link)


def test_each_place_to_look_at_shows_what_is_stuck_within_5_s_and_a_command_ends_it(
    page: Browser, qgisd: Daemon, source: Source
) -> None:
    def slow() -> bool:
        text = qgisd.request("GET", "/metrics", admin=True).body.decode()
        return 'qgisd_project_requests_slow{pool="default",project="stuck.qgs"} 1.0' in text

    live(page)
    with stuck(qgisd, source) as answer:
        begun = time.monotonic()
        places: dict[str, Callable[[], bool]] = {
            "page": lambda: "stuck.qgs" in page.text(".alarm"),
            "top": lambda: "stuck.qgs" in qgisd.ctl("top", "--once").stdout,
            "slow log": lambda: "running: stuck.qgs map" in qgisd.ctl("slowlog").stdout,
            "metric": slow,
        }
        for place, shows in places.items():
            eventually(shows, timeout=begun + 5 - time.monotonic(), period=0.05)
            assert time.monotonic() - begun < 5, place
        assert not answer.done()
        (row,) = json.loads(qgisd.ctl("--json", "requests").stdout)
        for fragment, figure in (
            ("#/slowlog", "strong.number"),
            (f"#/request/{row['request_id']}", ".story"),
        ):
            goes_on_under_the_focus(page, fragment, figure)
        qgisd.ctl("kill", "request", row["request_id"])
        assert answer.result(10).status == 503
