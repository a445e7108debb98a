"""The units in systemd/: systemd finds nothing wrong with them, and little that is exposed. Times
and sizes in them and in etc/nginx/qgisd.conf fit the defaults of the configuration.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from qgisd import config, service

SOURCE = Path(__file__).resolve().parents[2]
UNITS = SOURCE / "systemd"
#: Of 10 (systemd-analyze security); what is left below it QGIS needs.
EXPOSURE = 3.0


def analyze(*words: str, path: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """`systemd-analyze …`; with units of `path` before those of the system."""
    program = shutil.which("systemd-analyze")
    assert program, "systemd-analyze is missing: scripts/system-packages test installs it"
    environment = {"SYSTEMD_UNIT_PATH": f"{path}:"} if path else {}
    return subprocess.run(
        [program, "--no-pager", *words],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The units as they are installed, with a program that is there."""
    folder = tmp_path_factory.mktemp("units")
    program = folder / "qgisd"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    for unit in (*UNITS.glob("*.service"), *UNITS.glob("*.socket")):
        text = unit.read_text()
        (folder / unit.name).write_text(text.replace("/opt/qgisd/bin/qgisd", str(program)))
    yield folder


@pytest.mark.parametrize(
    "unit", ["qgisd.service", "qgisd.socket", "qgisd@town.service", "qgisd@town.socket"]
)
def test_systemd_has_nothing_to_say_against_it(installed: Path, unit: str) -> None:
    done = analyze("verify", "--man=no", unit, path=installed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_check_would_find_a_mistake(installed: Path, tmp_path: Path) -> None:
    text = (installed / "qgisd.service").read_text()
    (tmp_path / "qgisd.service").write_text(text.replace("ProtectSystem=", "ProtectSistem="))
    shutil.copy(installed / "qgisd.socket", tmp_path)
    done = analyze("verify", "--man=no", "qgisd.service", path=tmp_path)
    assert "ProtectSistem" in done.stderr


@pytest.mark.parametrize("unit", ["qgisd.service", "qgisd@town.service"])
def test_little_is_exposed(installed: Path, unit: str) -> None:
    done = analyze("security", "--offline=true", unit, path=installed)
    found = re.search(rf"exposure level for {unit}: ([0-9.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) < EXPOSURE


def settings(name: str) -> set[str]:
    """The lines of a unit that set something."""
    lines = (UNITS / name).read_text().splitlines()
    return {line for line in lines if "=" in line and not line.startswith("#")}


def test_an_instance_differs_only_in_its_names() -> None:
    for kind in ("service", "socket"):
        single, instance = settings(f"qgisd.{kind}"), settings(f"qgisd@.{kind}")
        assert all("%i" in line for line in instance - single)
        # Each has its counterpart, but for the admin socket, which a configuration has by itself.
        keys = {line.partition("=")[0] for line in instance - single} - {"Environment"}
        assert keys == {line.partition("=")[0] for line in single - instance}


def test_users_and_folders_of_the_units_are_made() -> None:
    unit = (UNITS / "qgisd.service").read_text()
    assert "\nUser=qgisd\n" in unit
    assert "\nu qgisd " in (UNITS / "qgisd.sysusers").read_text()
    folders = (UNITS / "qgisd.tmpfiles").read_text()
    credential = re.search(r"LoadCredential=secrets:(\S+)", unit)
    assert credential and f"d {credential[1]} 0700 root root" in folders


def number(text: str, name: str) -> int:
    """The figure of a setting, without its unit."""
    found = re.search(rf"^\s*{name}[ =](?:\d+ )?(\d+)[a-z]*;?", text, re.MULTILINE)
    assert found, name
    return int(found[1])


def test_times_of_the_unit_fit_those_of_the_daemon() -> None:
    unit = (UNITS / "qgisd.service").read_text()
    pool, daemon = config.Pool(), config.Daemon()
    assert number(unit, "TimeoutStartSec") >= pool.zygote_timeout_s
    assert number(unit, "TimeoutStopSec") > daemon.shutdown_timeout_s + pool.stop_timeout_s
    # What extends a start would stretch the watchdog as well.
    assert number(unit, "WatchdogSec") > service.EXTEND_S


def test_times_and_sizes_of_nginx_fit_those_of_the_daemon() -> None:
    site = (SOURCE / "etc" / "nginx" / "qgisd.conf").read_text()
    pool, http = config.Pool(), config.Http()
    assert number(site, "client_max_body_size") << 20 == http.max_body
    assert number(site, "large_client_header_buffers") << 10 >= http.max_url
    assert number(site, "proxy_send_timeout") == http.client_timeout_s
    assert number(site, "proxy_read_timeout") > pool.print_timeout_s + pool.stream_timeout_s
