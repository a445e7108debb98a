"""Server plugins: loaded once, in every worker, as in a plain QgsServer; and those that misbehave.

The plugins are those of tests/e2e/plugins; what each does is said at its head.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.helpers import (
    EXAMPLES,
    HERE,
    Reference,
    assert_same,
    crashes,
    in_parallel,
    without_box,
)
from tests.support import Daemon, Response, eventually

StartDaemon = Callable[..., Daemon]
PLUGINS = HERE / "plugins"
GOOD = ("a_filter", "b_service", "c_api", "d_access", "e_cache", "f_writer", "g_talker")
CAPABILITIES = {"SERVICE": "WMS", "VERSION": "1.3.0", "REQUEST": "GetCapabilities"}
FEATURES = "SERVICE=WFS&VERSION=1.1.0&REQUEST=GetFeature&TYPENAME=countries&OUTPUTFORMAT=geojson"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of examples/world: many (several workers), single (one), own (to write to)."""
    root = tmp_path_factory.mktemp("plugin_roots")
    for name in ("many", "single", "own"):
        shutil.copytree(EXAMPLES / "world", root / name)
    return root


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A plugin_path with some of the plugins, of the test's own."""

    def copy(*names: str) -> Path:
        folder = tmp_path_factory.mktemp("plugins")
        for name in names:
            shutil.copytree(PLUGINS / name, folder / name)
        return folder

    return copy


@pytest.fixture(scope="module")
def everything(copies: Callable[..., Path]) -> Path:
    """A plugin_path with all plugins that may be in one process."""
    apart = ("q_crash", "t_thread", "lizmap_server", "h_slow")
    names = sorted(path.parent.name for path in PLUGINS.glob("*/metadata.txt"))
    return copies(*(name for name in names if name not in apart))


@pytest.fixture(scope="module")
def daemon(session_daemons: StartDaemon, root: Path, everything: Path) -> Iterator[Daemon]:
    """All of them in one pool."""
    yield session_daemons(
        root,
        pool="workers = 4\nproject_workers = 4\nidle_worker_s = 600\n"
        'overrides = { "single/*" = { workers = 1 } }',
        http='apis = ["/hello"]',
        extra=f'[pool.qgis]\nplugin_path = "{everything}"\nrequired_plugins = ["b_service"]',
    )


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reference]:
    """A plain QgsServer with the good ones, loaded by QGIS's own functions."""
    reference = Reference(tmp_path_factory.mktemp("reference"), plugins=[str(PLUGINS), *GOOD[:-1]])
    yield reference
    reference.stop()


def count(daemon: Daemon, project: str) -> dict[str, Any]:
    answer = daemon.ows(project, SERVICE="COUNT")
    assert answer.status == 200, answer.body
    return dict(answer.json())


def plugins_of(daemon: Daemon) -> dict[str, dict[str, Any]]:
    return {plugin["name"]: plugin for plugin in daemon.api("GET", "/api/v1/plugins")}


def features(daemon: Daemon, project: str, group: str | None) -> Response:
    headers = {} if group is None else {"X-Lizmap-User-Groups": group}
    answer = daemon.get(f"/ows/?MAP={project}&{FEATURES}", headers=headers)
    # The box of the whole is the extent of the layer, which a subset string changes for good, in a
    # plain server as well.
    return without_box(answer)


# what becomes of each


def test_each_plugin_is_named_with_its_state_and_its_error(daemon: Daemon) -> None:
    rows = plugins_of(daemon)
    assert {name: (row["state"], row["version"]) for name, row in rows.items()} == {
        "a_filter": ("loaded", "1.0"),
        "b_service": ("loaded", "1.1"),
        "c_api": ("loaded", "1.2"),
        "d_access": ("loaded", "1.3"),
        "e_cache": ("loaded", "1.4"),
        "f_writer": ("loaded", "1.5"),
        "g_talker": ("loaded", "1.6"),
        "m_request": ("loaded", "1.7"),
        "n_import": ("failed", "2.0"),
        "o_factory": ("failed", "2.1"),
        "p_exit": ("failed", "2.2"),
        "r_metadata": ("failed", ""),
    }
    errors = {name: row["error"] for name, row in rows.items() if row["error"]}
    assert errors == {
        "n_import": "ImportError: no module named frobnicate (n_import/__init__.py, line 3)",
        "o_factory": "KeyError: 'configuration' (o_factory/__init__.py, line 5)",
        "p_exit": "SystemExit: not on this machine (p_exit/__init__.py, line 5)",
        "r_metadata": "its metadata.txt cannot be read: MissingSectionHeaderError",
    }
    assert {(row["pool"], row["note"]) for row in rows.values()} == {("default", "")}
    shown = daemon.ctl("plugins")
    assert shown.returncode == 0, shown.stderr
    for name, error in errors.items():
        assert f"{name}: {error}" in shown.stdout


def test_plugins_find_each_other_where_qgis_keeps_them(daemon: Daemon) -> None:
    seen = count(daemon, "many/world")
    loaded = [name for name, row in plugins_of(daemon).items() if row["state"] == "loaded"]
    assert seen["active"] == seen["known"] == loaded
    assert seen["version"] == "1.1"


def test_only_the_enabled_are_loaded_and_in_their_order(
    real_daemons: StartDaemon, root: Path, everything: Path
) -> None:
    daemon = real_daemons(
        root,
        extra='[pool.qgis]\nplugins = ["m_request", "b_service", "z_desktop", "nowhere"]',
        environment={"QGIS_PLUGINPATH": str(everything)},
    )
    rows = plugins_of(daemon)
    assert list(rows)[:4] == ["m_request", "b_service", "z_desktop", "nowhere"]
    states = {name: row["state"] for name, row in rows.items()}
    assert {name for name, state in states.items() if state == "loaded"} == {
        "m_request", "b_service",
    }  # fmt: skip
    assert rows["nowhere"]["error"] == "it is not below plugin_path"
    assert rows["z_desktop"]["error"] == "its metadata.txt does not say server=True"
    assert states["a_filter"] == states["n_import"] == "disabled"
    assert count(daemon, "many/world")["active"] == ["b_service", "m_request"]


@pytest.mark.parametrize(
    ("required", "reason"),
    [
        ("o_factory", "the required plugin o_factory failed: KeyError: 'configuration'"),
        ("nowhere", "the required plugin nowhere failed: it is not below plugin_path"),
        # Nobody asked for it, but it takes the process along.
        ("b_service", "it ended while loading the plugin q_crash: exit code 9"),
    ],
)
def test_a_pool_does_not_start_without_what_it_requires(
    real_daemons: StartDaemon, root: Path, required: str, reason: str
) -> None:
    names = ["b_service", required] if required != "b_service" else ["b_service", "q_crash"]
    daemon = real_daemons(
        root,
        wait=False,
        extra=f'[pool.qgis]\nplugin_path = "{PLUGINS}"\nplugins = {names}\n'
        f'required_plugins = ["{required}"]',
    )
    assert daemon.process.wait(60) == 1
    assert f"cannot start: {reason}" in daemon.log()


def test_a_reload_that_lacks_a_required_plugin_leaves_the_old_ones(
    real_daemons: StartDaemon, root: Path, copies: Callable[..., Path]
) -> None:
    folder = copies("b_service", "a_filter")
    daemon = real_daemons(
        root, extra=f'[pool.qgis]\nplugin_path = "{folder}"\nrequired_plugins = ["b_service"]'
    )
    first = count(daemon, "many/world")
    shutil.rmtree(folder / "a_filter")
    good = daemon.api("POST", "/api/v1/reload")
    assert all(row["ok"] for row in good) and list(plugins_of(daemon)) == ["b_service"]
    second = count(daemon, "many/world")
    assert second["loaded_by"] != first["loaded_by"]
    (folder / "b_service" / "__init__.py").write_text("import nothing_of_the_kind\n")
    shutil.rmtree(folder / "b_service" / "__pycache__", ignore_errors=True)
    [row] = daemon.api("POST", "/api/v1/reload")
    assert not row["ok"]
    assert "the required plugin b_service failed: ModuleNotFoundError" in row["detail"]
    assert count(daemon, "many/world")["loaded_by"] == second["loaded_by"]
    assert plugins_of(daemon)["b_service"]["state"] == "loaded"


# what they do, in every worker


def test_filters_services_apis_and_access_control_answer_as_in_a_plain_server(
    daemon: Daemon, plain: Reference, root: Path
) -> None:
    path = root / "many" / "world.qgs"
    ows = "/ows/?MAP=many/world&"
    picture = (
        "SERVICE=WMS&VERSION=1.3.0&REQUEST=GetMap&STYLES=&CRS=EPSG:4326&BBOX=-90,-180,90,180"
        "&WIDTH=300&HEIGHT=150&FORMAT=image/png&LAYERS="
    )
    capabilities = f"{ows}SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities"
    requests: dict[str, tuple[str, dict[str, str]]] = {
        "capabilities": (capabilities, {}),
        "no lakes": (capabilities, {"X-Lizmap-User-Groups": "none"}),
        "lakes refused": (f"{ows}{picture}lakes", {"X-Lizmap-User-Groups": "none"}),
        "api": ("/hello/layers?MAP=many/world", {}),
        "all": (f"{ows}{FEATURES}", {}),
        "loud": (f"{capabilities}&SHOUT=1", {"X-Lizmap-User": ""}),
        "marked": (f"{ows}{FEATURES}&MARK=1", {}),
        # From here on the extent of the layer is another: it has had a subset string.
        "north": (f"{ows}{FEATURES}", {"X-Lizmap-User-Groups": "north"}),
        "north drawn": (f"{ows}{picture}countries", {"X-Lizmap-User-Groups": "north"}),
        "anna": (f"{ows}{FEATURES}", {"X-Lizmap-User": "anna"}),
    }
    answers: dict[str, Response] = {}
    for name, (target, headers) in requests.items():
        expected = answers[name] = plain.ask(path, target, headers=headers)
        for ours in in_parallel(4, lambda _: daemon.get(target, headers=headers)):  # noqa: B023
            assert_same(without_box(ours), without_box(expected))
    saw = {name: answers[name].headers["X-Saw-User"] for name in ("all", "loud", "anna")}
    assert saw == {"all": "none", "loud": "<>", "anna": "<anna>"}
    assert answers["all"].headers["X-Config-File"] == str(path)
    # And the plugins did what they are there for, in the plain server and so in ours.
    assert b"<Name>lakes</Name>" in answers["capabilities"].body
    assert b"<Name>lakes</Name>" not in answers["no lakes"].body
    assert answers["lakes refused"].status != 200
    assert json.loads(answers["api"].body)["project"] is True
    assert len(answers["north"].body) < len(answers["all"].body) / 5
    assert b"<NAME>LAKES</NAME>" in answers["loud"].body
    marks = answers["marked"].body.count(b'"marks": 1')
    assert marks == answers["all"].body.count(b'"Feature"') > 100


def test_what_one_group_may_see_does_not_leak_into_the_next_request(daemon: Daemon) -> None:
    """One worker, asked in turn; two requests that fail among them."""
    names: dict[str | None, set[bytes]] = {None: set(), "north": set(), "": set()}
    for round_ in range(6):
        for group in names:
            answer = features(daemon, "single/world", group)
            assert answer.status == 200
            names[group].add(answer.body)
            if round_ % 2:
                bad = daemon.get(
                    f"/ows/?MAP=single/world&{FEATURES}&TYPENAME2=x&FILTER=<broken",
                    headers={"X-Lizmap-User-Groups": "north"},
                )
                assert bad.status >= 400
    assert [len(bodies) for bodies in names.values()] == [1, 1, 1]
    assert names[None] == names[""] != names["north"]
    workers = [row for row in daemon.workers() if row["project"] == "single/world.qgs"]
    assert len(workers) == 1


def test_a_plugin_keeps_its_state_in_its_worker_and_begins_anew_in_the_next(
    daemon: Daemon,
) -> None:
    begun = count(daemon, "single/world")
    following = [count(daemon, "single/world") for _ in range(3)]
    assert {row["pid"] for row in following} == {begun["pid"]}
    assert [row["asked"] for row in following] == [begun["asked"] + step for step in (1, 2, 3)]
    rows = in_parallel(4, lambda _: [count(daemon, "many/world") for _ in range(5)])
    for pid in {row["pid"] for some in rows for row in some}:
        asked = [row["asked"] for some in rows for row in some if row["pid"] == pid]
        assert len(asked) == len(set(asked)), "no worker shares its count with another"
    # Imported once, for all: by the zygote.
    assert len({row["loaded_by"] for some in rows for row in [*some, begun]}) == 1
    daemon.api("DELETE", "/api/v1/projects/single/world.qgs")
    fresh = count(daemon, "single/world")
    assert (fresh["asked"], fresh["loaded_by"]) == (1, begun["loaded_by"])
    assert fresh["pid"] != begun["pid"]


def test_a_cache_filter_answers_instead_of_qgis(daemon: Daemon, plain: Reference) -> None:
    def capabilities(name: str) -> Response:
        target = "/ows/?MAP=single/world&SERVICE=WMS&VERSION=1.3.0&REQUEST=GetCapabilities"
        return daemon.get(target, headers={"X-Keep": name})

    first, second, other = (capabilities(name) for name in ("a", "a", "b"))
    assert first.status == second.status == 200
    assert b"<!-- kept -->" not in first.body and b"<!-- kept -->" not in other.body
    assert second.body.count(b"<!-- kept -->") == 1


def test_capabilities_are_not_kept_by_the_daemon_beside_plugins(daemon: Daemon) -> None:
    before = daemon.projects()["single/world.qgs"]["cached"]
    answers = [daemon.ows("single/world", **CAPABILITIES) for _ in range(2)]
    assert [answer.status for answer in answers] == [200, 200]
    assert [answer.headers.get("ETag") for answer in answers] == [None, None]
    assert daemon.projects()["single/world.qgs"]["cached"] == before


def test_what_a_plugin_writes_to_the_project_stays_in_its_worker(
    daemon: Daemon, root: Path
) -> None:
    assert count(daemon, "own/world")["title"] != "mine"
    wrote = daemon.ows("own/world", SERVICE="COUNT", TITLE="mine").json()
    rows = [row for some in in_parallel(4, lambda _: count(daemon, "own/world")) for row in [some]]
    mine = {row["pid"] for row in rows if row["title"] == "mine"}
    assert mine <= {wrote["pid"]}
    # One that writes the file makes a new generation, whose workers all have it.
    before = daemon.projects()["own/world.qgs"]["generations"][0]["number"]
    daemon.ows("own/world", SERVICE="COUNT", TITLE="saved", SAVE="1")

    def renewed() -> bool:
        project = daemon.projects()["own/world.qgs"]
        assert not project["error"], project["error"]
        numbers = [row["number"] for row in project["generations"] if row["state"] == "serving"]
        return numbers != [before] and len(project["generations"]) == 1

    eventually(renewed, timeout=30)
    titles = {row["title"] for row in in_parallel(4, lambda _: count(daemon, "own/world"))}
    assert titles == {"saved"}


def test_an_api_that_needs_no_project_is_refused_without_http_apis(qgisd: Daemon) -> None:
    assert qgisd.get("/hello/layers?MAP=demo/world").status == 404


# those that misbehave at request time


def test_a_filter_or_service_that_throws_costs_its_own_request_alone(daemon: Daemon) -> None:
    pid = count(daemon, "single/world")["pid"]
    thrown = daemon.ows("single/world", **CAPABILITIES, BAD="throw")
    service = daemon.ows("single/world", SERVICE="BAD")
    assert (thrown.status, service.status) == (500, 500)
    assert b"ServiceException" in thrown.body and b"thrown" not in thrown.body + service.body
    assert count(daemon, "single/world")["pid"] == pid
    assert "the plugin m_request threw ValueError: thrown by a service" in daemon.log()


def test_access_control_that_throws_does_not_open_the_data(daemon: Daemon) -> None:
    """QGIS would go on with the method's default, which allows everything."""
    answer = features(daemon, "single/world", "broken")
    assert answer.status == 500
    assert b"Norway" not in answer.body
    assert "the plugin d_access threw RuntimeError" in daemon.log()
    assert features(daemon, "single/world", None).status == 200


def test_sys_exit_at_request_time_ends_a_request_and_at_most_its_worker(daemon: Daemon) -> None:
    for query in ({**CAPABILITIES, "BAD": "exit"}, {"SERVICE": "BAD", "HOW": "exit"}):
        answer = daemon.ows("single/world", **query)
        assert answer.status in (500, 502)
        assert count(daemon, "single/world")["asked"] >= 1
    assert crashes(daemon).keys() <= {"single/world.qgs"}


def test_what_plugins_print_is_in_the_log_and_in_no_answer(daemon: Daemon) -> None:
    answer = daemon.ows("single/world", **CAPABILITIES)
    assert answer.status == 200 and b"talker" not in answer.body
    assert "the talker was imported" in daemon.log()
    eventually(lambda: "the talker heard of a request" in daemon.log())


# threads


def test_a_plugin_with_a_thread_is_loaded_by_each_worker(
    real_daemons: StartDaemon, root: Path, copies: Callable[..., Path]
) -> None:
    daemon = real_daemons(
        root,
        pool="workers = 3\nproject_workers = 3",
        http='apis = ["/hello"]',
        extra=f'[pool.qgis]\nplugin_path = "{copies("b_service", "c_api", "t_thread")}"\n'
        'required_plugins = ["t_thread"]',
    )
    why = "the plugin t_thread has Python thread 'ticker'"
    rows = plugins_of(daemon)
    assert {row["state"] for row in rows.values()} == {"loaded"}
    assert rows["t_thread"]["note"].startswith("loaded by each worker")
    assert "Python thread 'ticker'" in rows["t_thread"]["note"]
    assert rows["b_service"]["note"] == ""
    answers = in_parallel(3, lambda _: daemon.ows("many/world", SERVICE="TICKS"))
    assert all(answer.json()["lives"] for answer in answers), "its thread runs in each worker"
    [generation] = daemon.projects()["many/world.qgs"]["generations"]
    assert (generation["mode"], generation["why"]) == ("loaded", why)
    assert f"loaded in each worker: {why}" in daemon.ctl("projects").stdout
    # The other one was loaded once, by the zygote that all were forked from.
    counted = count(daemon, "many/world")
    assert counted["loaded_by"] != counted["pid"]
    assert counted["active"] == ["b_service", "c_api", "t_thread"]
    # What needs no project finds all of them, too.
    assert daemon.get("/hello/layers").json()["project"] is False
    assert daemon.projects()["(none)"]["generations"][0]["why"] == why
    assert daemon.ows("many/world", **CAPABILITIES).status == 200
    assert crashes(daemon) == {}


# what they cost


def test_only_filters_that_look_at_answers_are_shown_each_part(tmp_path: Path) -> None:
    """QGIS's own filter, and one of a plugin that looks at requests, do not slow down answers."""
    script = """if True:
        import os
        from qgis.core import QgsApplication
        from qgis.server import QgsServer, QgsServerFilter
        from qgisd.worker.plugins import see_answers

        class AtRequests(QgsServerFilter):
            def requestReady(self): pass

        class AtAnswers(AtRequests):
            def responseComplete(self): pass

        application = QgsApplication([], False)
        interface = QgsServer().serverInterface()
        seen = [see_answers(interface.filters())]
        for kind in (AtRequests, AtAnswers):
            interface.registerFilter(kind(interface), 10)
            seen.append(see_answers(interface.filters()))
        print(seen, len(interface.filters()[10]), flush=True)
        os._exit(0)
        """
    environment = os.environ | {
        "QT_QPA_PLATFORM": "offscreen", "QGIS_OPTIONS_PATH": str(tmp_path), "HOME": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.stdout.splitlines()[-1:] == ["[False, False, True] 2"], done.stderr
