"""The configuration: every error at once, sizes, precedence and sources, pools, roots, routes."""

from pathlib import Path
from typing import Any

import pytest

from qgisd import config
from qgisd.errors import ConfigError, Problem


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "qgisd.toml"
    path.write_text(text)
    return path


def load(tmp_path: Path, text: str = "", **environment: str) -> config.Loaded:
    return config.load(write(tmp_path, text), environment)


def problems(tmp_path: Path, text: str = "", **environment: str) -> list[Problem]:
    with pytest.raises(ConfigError) as refusal:
        load(tmp_path, text, **environment)
    return refusal.value.problems


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    assert loaded.config == config.Config() and loaded.sources == {}
    assert list(loaded.config.all_pools()) == ["default"]


def test_all_errors_are_reported_at_once_with_their_place(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        '[http]\nlisten = "nowhere"\nmax_body = 5\nlisen = "x"\n'
        '[pool]\nworkers = 0\n[pool.projects]\nbad_layers = "maybe"\n[colour]\nx = 1\n',
        QGISD_LOG__LEVEL="loud",
    )
    text = "\n".join(map(str, found))
    for key in ("http.listen", "http.max_body", "http.lisen", "pool.workers",
                "pool.projects.bad_layers", "colour", "log.level"):  # fmt: skip
        assert key in text, key
    assert len(found) == 7
    assert "environment QGISD_LOG__LEVEL, log.level" in text
    assert f"file {tmp_path}/qgisd.toml, http.lisen: there is no such key" in text


@pytest.mark.parametrize(
    ("text", "size"),
    [("512MiB", 512 << 20), ("1.5 GiB", 3 << 29), ("0B", 0), ("64KiB", 65536), (" 1TiB ", 1 << 40)],
)
def test_sizes_are_written_with_their_unit(tmp_path: Path, text: str, size: int) -> None:
    assert load(tmp_path, f'[http]\nmax_body = "{text}"').config.http.max_body == size


@pytest.mark.parametrize("text", ['"512"', "512", '"512MB"', '"-1MiB"', '"MiB"', "true", '"1e3B"'])
def test_what_is_no_size_is_refused(tmp_path: Path, text: str) -> None:
    (found,) = problems(tmp_path, f"[http]\nmax_body = {text}")
    assert "512MiB" in found.message


@pytest.mark.parametrize(
    "line",
    [
        "request_timeout_s = 0", "request_timeout_s = -1", "request_timeout_s = nan",
        'request_timeout_s = "soon"', "workers = -1", "workers = 1.5", "queue = 0",
        'backend = "other"', "project_workers = 5", 'route = "tenant"', 'route = "/a b"',
        'route = "/"',
    ],
)  # fmt: skip
def test_values_that_make_no_sense_are_refused(tmp_path: Path, line: str) -> None:
    (found,) = problems(tmp_path, f"[pool]\n{line}")
    assert line.partition(" ")[0] in found.where


@pytest.mark.parametrize("listen", ["127.0.0.1:7080", "[::1]:80", "unix:/run/x", "0.0.0.0:0"])
def test_listeners_are_addresses_or_sockets(tmp_path: Path, listen: str) -> None:
    assert load(tmp_path, f'[http]\nlisten = "{listen}"').config.http.listen == listen


@pytest.mark.parametrize("listen", ["7080", ":7080", "unix:x", "unix:", "host:port", "host:70000"])
def test_other_listeners_are_refused(tmp_path: Path, listen: str) -> None:
    (found,) = problems(tmp_path, f'[http]\nlisten = "{listen}"')
    assert "http.listen" in found.where


def test_the_two_listeners_cannot_be_the_same(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, '[http]\nlisten = "unix:/x"\n[admin]\nlisten = "unix:/x"')
    assert "admin.listen" in found.where


def test_flags_go_before_the_environment_before_the_file(tmp_path: Path) -> None:
    path = write(
        tmp_path, '[pool]\nworkers = 1\nqueue = 1\nproject_queue = 1\n[log]\nlevel="error"'
    )
    loaded = config.load(
        path,
        {"QGISD_POOL__WORKERS": "2", "QGISD_POOL__QUEUE": "2", "OTHER_POOL__QUEUE": "9"},
        {"pool.workers": 3},
    )
    pool = loaded.config.pool
    assert (pool.workers, pool.queue, pool.project_queue) == (3, 2, 1)
    assert loaded.sources == {
        "pool.workers": "flag",
        "pool.queue": "environment QGISD_POOL__QUEUE",
        "pool.project_queue": f"file {path}",
        "log.level": f"file {path}",
    }


@pytest.mark.parametrize(
    ("name", "text", "key", "value"),
    [
        ("QGISD_HTTP__LISTEN", "127.0.0.1:1", "http.listen", "127.0.0.1:1"),
        ("QGISD_HTTP__MAX_BODY", "1MiB", "http.max_body", 1 << 20),
        ("QGISD_POOL__SNAPSHOT", "false", "pool.snapshot", False),
        ("QGISD_POOL__REQUEST_TIMEOUT_S", "2.5", "pool.request_timeout_s", 2.5),
        ("QGISD_POOL__PROJECTS__PINNED", '["a", "b"]', "pool.projects.pinned", ["a", "b"]),
        ("QGISD_POOL__PROJECTS__ROOTS", '{ "/" = "/x" }', "pool.projects.roots", {"/": "/x"}),
        ("QGISD_POOL__QGIS__ENV", '{ A = "1" }', "pool.qgis.env", {"A": "1"}),
    ],
)
def test_any_key_can_be_set_from_the_environment(
    tmp_path: Path, name: str, text: str, key: str, value: Any
) -> None:
    found: Any = load(tmp_path, "", **{name: text}).config
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_an_unknown_key_of_the_environment_is_an_error(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "", QGISD_HTTP__LISEN="x")
    assert found.where == "environment QGISD_HTTP__LISEN, http.lisen"


def test_a_table_is_no_value(tmp_path: Path) -> None:
    found = problems(tmp_path, "http = 3\n", QGISD_HTTP__LISTEN="[::1]:80")
    assert any("http is a value, not a table" in problem.message for problem in found)


def test_a_file_that_is_named_must_be_there_and_be_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path / "nothing.toml", {})
    (found,) = problems(tmp_path, "[http\n")
    assert "is not TOML" in found.message
    path = tmp_path / "latin1.toml"
    path.write_bytes(b'[log]\nlevel = "\xe9"')
    with pytest.raises(ConfigError, match="is not TOML"):
        config.load(path, {})


def test_a_pool_of_its_own_overrides_any_key_of_the_common_one(tmp_path: Path) -> None:
    pools = load(
        tmp_path,
        '[pool]\nworkers = 7\nqueue = 9\n[pool.projects]\nroots = { "/" = "/a" }\npinned = ["x"]\n'
        '[pools.one]\n[pools.two]\nroute = "/two"\nworkers = 2\n'
        '[pools.two.projects]\nroots = { "/b" = "/b" }\n',
    ).config.all_pools()
    assert list(pools) == ["one", "two"]
    one, two = pools["one"], pools["two"]
    assert (one.workers, one.queue, one.route) == (7, 9, "")
    assert (two.workers, two.queue, two.route) == (2, 9, "/two")
    assert two.projects.pinned == ["x"]
    assert two.projects.roots["/b"] == "/b"


def test_the_pools_of_the_file_are_overlaid_with_the_environment(tmp_path: Path) -> None:
    pools = load(
        tmp_path,
        '[pools.one]\n[pools.two]\nroute = "/two"\nqueue = 3',
        QGISD_POOL__QUEUE="5",
        QGISD_POOLS__ONE__WORKERS="9",
    ).config.all_pools()
    assert (pools["one"].queue, pools["two"].queue, pools["one"].workers) == (5, 3, 9)


def test_two_pools_cannot_have_one_route_nor_any_name(tmp_path: Path) -> None:
    found = problems(tmp_path, '[pools.one]\n[pools.two]\n[pools."a/b"]\nroute = "/x"')
    text = "\n".join(map(str, found))
    assert len(found) == 2
    assert "pools.two.route: pool 'one' has the same route ''" in text
    assert "pools.a/b: letters" in text


def test_a_required_plugin_is_among_those_to_load(tmp_path: Path) -> None:
    text = '[pool.qgis]\nplugins = ["a"]\nrequired_plugins = ["a", "b"]'
    [problem] = problems(tmp_path, text)
    assert "required_plugins" in str(problem) and "leaves out: b" in str(problem)
    load(tmp_path, '[pool.qgis]\nrequired_plugins = ["b"]')


def test_a_restart_file_is_an_absolute_path(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, '[pool]\nrestart_file = "restart"')
    assert "pool.restart_file" in str(problem) and "absolute path" in str(problem)


def test_an_error_of_the_common_pool_is_not_repeated_for_each_pool(tmp_path: Path) -> None:
    found = problems(tmp_path, '[pools.one]\n[pools.two]\nroute = "/two"', QGISD_POOL__QUEUE="0")
    assert [problem.where for problem in found] == ["environment QGISD_POOL__QUEUE, pool.queue"]


def test_relative_roots_are_relative_to_the_file(tmp_path: Path) -> None:
    loaded = load(
        tmp_path,
        '[pool.projects]\nroots = { "/" = "maps", "/up" = "../x", "/abs" = "/srv" }\n'
        '[pools.one.projects]\nroots = { "/" = "." }\n',
    )
    assert loaded.config.pool.projects.roots == {
        "/": str(tmp_path / "maps"),
        "/up": str(tmp_path.parent / "x"),
        "/abs": "/srv",
    }
    assert loaded.config.pools["one"].projects.roots["/"] == str(tmp_path)


@pytest.mark.parametrize("roots", ['{ "x" = "/srv" }', '{ "/" = "" }', '{ "/" = 5 }', '"/srv"'])
def test_roots_that_make_no_sense_are_refused(tmp_path: Path, roots: str) -> None:
    (found,) = problems(tmp_path, f"[pool.projects]\nroots = {roots}")
    assert "pool.projects.roots" in found.where


def test_a_relative_root_of_the_environment_is_refused(tmp_path: Path) -> None:
    (found,) = problems(tmp_path, "", QGISD_POOL__PROJECTS__ROOTS='{ "/" = "maps" }')
    assert "absolute" in found.message


def test_a_configuration_cannot_be_changed(tmp_path: Path) -> None:
    loaded = load(tmp_path)
    with pytest.raises(ValueError, match="frozen"):
        loaded.config.pool.workers = 9


def test_the_runtime_folder_is_the_given_one_or_that_of_systemd_or_a_fresh_one(
    tmp_path: Path,
) -> None:
    given = load(tmp_path, '[daemon]\nruntime_dir = "/run/mine"').config
    assert config.runtime_dir(given, {"RUNTIME_DIRECTORY": "/run/a"}) == (Path("/run/mine"), False)
    plain = load(tmp_path).config
    assert config.runtime_dir(plain, {"RUNTIME_DIRECTORY": "/run/a:/run/b"}) == (
        Path("/run/a"),
        False,
    )
    fresh, ours = config.runtime_dir(plain, {"XDG_RUNTIME_DIR": str(tmp_path)})
    assert ours and fresh.parent == tmp_path and fresh.is_dir()
