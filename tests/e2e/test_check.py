"""`qgisd check`: says in plain words what is missing; its exit code says whether anything is."""

import os
import subprocess
import sys
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def check(
    config: Path, environment: dict[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "qgisd", "check", "-c", str(config)],
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def write(folder: Path, roots: Path, more: str = "") -> Path:
    config = folder / "qgisd.toml"
    config.write_text(
        f'[http]\nlisten = "unix:{folder}/http.sock"\n'
        f'[admin]\nlisten = "unix:{folder}/admin.sock"\n'
        f'[pool.projects]\nroots = {{ "/" = "{roots}" }}\n{more}'
    )
    return config


def test_a_machine_that_has_all_is_told_so(tmp_path: Path) -> None:
    done = check(write(tmp_path, EXAMPLES / "world"))
    assert done.returncode == 0, done.stdout
    assert "FAIL" not in done.stdout
    for word in ("QGIS 3", "WMS, WFS", "font", "with 1 projects"):
        assert word in done.stdout


def test_no_pyqgis_for_this_interpreter(tmp_path: Path) -> None:
    package = tmp_path / "hidden" / "qgis"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('No module named qgis')")
    done = check(write(tmp_path, EXAMPLES), {"PYTHONPATH": str(package.parent)})
    assert done.returncode == 1
    assert f"no PyQGIS for {sys.executable}" in done.stdout
    assert "apt-get install" in done.stdout and "--system-site-packages" in done.stdout


def test_service_modules_that_are_missing(tmp_path: Path) -> None:
    empty = tmp_path / "modules"
    empty.mkdir()
    hidden = tmp_path / "hidden" / "sitecustomize.py"
    hidden.parent.mkdir()
    # A registry that has nothing: what QgsServer offers where qgis-server is not installed.
    hidden.write_text(
        "import qgis.server\n"
        "class _None:\n"
        "    def serverInterface(self): return self\n"
        "    def serviceRegistry(self): return self\n"
        "    def getService(self, name): return None\n"
        "qgis.server.QgsServer = _None\n"
    )
    done = check(write(tmp_path, EXAMPLES), {"PYTHONPATH": str(hidden.parent)})
    assert done.returncode == 1
    assert "no service modules for WCS, WFS, WMS, WMTS" in done.stdout
    assert "qgis-server" in done.stdout


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    done = check(write(tmp_path, tmp_path / "nowhere"))
    assert done.returncode == 1
    assert f"root / is {tmp_path}/nowhere, which is no folder" in done.stdout


def test_plugins_and_their_metadata(tmp_path: Path) -> None:
    plugins = tmp_path / "plugins"
    for name, metadata in (("good", "[general]\nserver=True\n"), ("desk", "[general]\n")):
        (plugins / name).mkdir(parents=True)
        (plugins / name / "metadata.txt").write_text(metadata)
    for name in ("bare", ".git", "__pycache__"):
        (plugins / name).mkdir()
    config = write(
        tmp_path,
        EXAMPLES,
        f'[pool.qgis]\nplugin_path = "{plugins}"\nrequired_plugins = ["good", "missing"]\n',
    )
    done = check(config)
    assert done.returncode == 1
    assert "plugin good is for servers" in done.stdout
    assert "plugin desk is not for servers" in done.stdout
    assert "FAIL pool default: plugin bare has no metadata.txt" in done.stdout
    assert ".git" not in done.stdout and "__pycache__" not in done.stdout
    assert "FAIL pool default: the required plugin missing is not below" in done.stdout
    assert "required plugin good" not in done.stdout


def test_a_configuration_that_is_wrong_is_told_whole(tmp_path: Path) -> None:
    config = tmp_path / "qgisd.toml"
    config.write_text('[http]\nlisten = "nowhere"\nport = 1\n[pool]\nworkers = 0\n')
    done = check(config)
    assert done.returncode == 2
    for key in ("http.listen", "http.port", "pool.workers"):
        assert key in done.stderr
