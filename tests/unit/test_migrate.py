"""`qgisd migrate`: a configuration of py-qgis-server becomes one that qgisd accepts."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from qgisd import cli, config, migrate
from qgisd.errors import ConfigError

OLD = """
[server]
port = 8888
interfaces = 127.0.0.1
workers = 6
timeout = 45
getfeaturelimit = 5000
cross_origin = no
pluginpath = /srv/plugins
restartmon = /srv/restart
memory_high_water_mark = 0.8
ssl = no

[logging]
level = DEBUG

[api.enabled]
lizmap_api = yes
landing_page = yes
other = yes

[api.endpoints]
other = /other

[projects.cache]
rootdir = /srv/projects
strict_check = no
check_interval = 5
trust_layer_metadata = yes
disable_getprint = no
preload_config = preload.txt
size = 40

[projects.schemes]
tenant = file:/srv/tenant/
db = postgres://?service=x

[zmq]
maxqueue = 300
identity = X

[monitor:amqp]
host = amqp

[made.up]
key = 1
"""


def run(old: Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(cli.main, ["migrate", str(old)])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "py-qgis-server.conf"
    path.write_text(OLD)
    (tmp_path / "preload.txt").write_text("# ours\n/a/one.qgs\ntenant:two\n\n")
    return path


def loaded(tmp_path: Path, toml: str) -> config.Config:
    path = tmp_path / "qgisd.toml"
    path.write_text(toml)
    return config.load(path, {}).config


def test_what_comes_out_is_a_configuration_that_does_the_same(old: Path, tmp_path: Path) -> None:
    code, toml, _ = run(old)
    assert code == 0
    new = loaded(tmp_path, toml)
    pool = new.pool
    assert new.http.listen == "127.0.0.1:8888"
    assert (pool.workers, pool.request_timeout_s, pool.queue) == (6, 45, 300)
    assert new.limits.features == 5000 and new.http.cors_origins == []
    assert new.http.apis == ["/lizmap", "/catalog", "/other"] and new.log.level == "debug"
    assert pool.projects.roots == {"/": "/srv/projects", "/tenant": "/srv/tenant"}
    assert pool.projects.pinned == ["a/one.qgs", "tenant/two"]
    assert (pool.projects.bad_layers, pool.projects.check_interval_s) == ("ignore", 5)
    assert pool.qgis.plugin_path == "/srv/plugins" and pool.restart_file == "/srv/restart"
    assert pool.qgis.py_qgis_server, "Lizmap asks for it"
    assert pool.qgis.env["QGIS_SERVER_TRUST_LAYER_METADATA"] == "1"
    assert "QGIS_SERVER_DISABLE_GETPRINT" not in pool.qgis.env


def test_what_is_left_out_is_said_in_the_file_and_beside_it(old: Path) -> None:
    _, toml, beside = run(old)
    for remark in (
        "[server] memory_high_water_mark: pool.memory",
        "[server] ssl: TLS is Nginx's",
        "[projects.cache] size: as many",
        "[projects.schemes] db: only files",
        "MAP=tenant:PROJECT is now MAP=tenant/PROJECT",
        "[zmq] identity: processes talk",
        "[monitor:amqp] host: scrape /metrics",
        "[made.up] key: not a key of py-qgis-server",
    ):
        assert remark in beside
        assert f"# {remark}" in toml


def test_its_defaults_are_kept_where_ours_are_others(tmp_path: Path) -> None:
    path = tmp_path / "old.conf"
    path.write_text("[projects.cache]\nrootdir = /srv/projects\n")
    code, toml, beside = run(path)
    new = loaded(tmp_path, toml)
    assert code == 0
    assert (new.pool.workers, new.pool.projects.bad_layers) == (2, "strict")
    assert new.pool.qgis.env == {"QGIS_SERVER_FORCE_READONLY_LAYERS": "1"}
    assert new.http.listen == "0.0.0.0:8080" and "open to the network" in beside


def test_a_file_of_variables(tmp_path: Path) -> None:
    path = tmp_path / "qgis.env"
    path.write_text(
        "# as of docker compose\nexport QGSRV_SERVER_HTTP_PORT=7000\n"
        "QGSRV_SERVER_INTERFACES='127.0.0.1'\n"
        "QGSRV_SERVER_WORKERS=3\nQGSRV_CACHE_ROOTDIR=/srv/q\n"
        'QGSRV_PROJECTS_SCHEMES_X="file:/srv/x"\nQGSRV_API_ENABLED_LIZMAP=yes\nLANG=C\n'
    )
    code, toml, _ = run(path)
    new = loaded(tmp_path, toml)
    assert code == 0 and new.http.listen == "127.0.0.1:7000" and new.pool.workers == 3
    assert new.pool.projects.roots == {"/": "/srv/q", "/x": "/srv/x"}
    assert new.http.apis == ["/lizmap"]


def test_a_value_that_makes_no_sense_is_named_and_nothing_comes_out(tmp_path: Path) -> None:
    path = tmp_path / "old.conf"
    path.write_text(
        "[server]\nworkers = many\nrestartmon = here\n[projects.cache]\nstrict_check = perhaps\n"
    )
    code, toml, beside = run(path)
    assert code == 2 and toml == ""
    assert "[server] workers: invalid literal" in beside
    assert "[server] restartmon: 'here' is not an absolute path" in beside
    assert "[projects.cache] strict_check: 'perhaps' is neither yes nor no" in beside


@pytest.mark.parametrize("text", ["[server\nport=1\n", "[a]\nx = ${b:c}\n", "[a]\n[a]\n"])
def test_what_is_no_such_file_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.conf"
    path.write_text(text)
    code, toml, beside = run(path)
    assert code == 2 and toml == "" and "is no file of py-qgis-server" in beside


def test_a_preload_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "old.conf"
    path.write_text("[projects.cache]\nrootdir=/srv\npreload_config = missing.txt\n")
    code, _, beside = run(path)
    assert code == 0 and "preload_config: missing.txt cannot be read" in beside


def test_each_target_is_a_key_of_ours() -> None:
    tree = config.Config().model_dump()
    for target, _ in migrate.MOVED.values():
        *sections, last = target.split(".")
        table = tree
        for section in sections:
            table = table[section]
        assert last in table or sections[-1] == "env", target


def test_an_unreadable_file_is_a_problem_of_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "latin.conf"
    path.write_bytes(b"[server]\nx = \xe9\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        migrate.read(path)
