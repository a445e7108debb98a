"""Imports go one way, pure modules import no clock and no I/O, no module is too long.

The rules are those of docs and design ("The house"). The checker itself is tried on small trees
with planted violations.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import qgisd

HOUSE = Path(qgisd.__file__).parent
LONGEST = 450

#: Who may import whom: part of the package → parts it may import besides itself.
_BASE = {"errors", "words"}
_COMMON = _BASE | {
    "wire", "config", "config_tree", "secret_files", "log", "journal", "repeats", "channel",
    "sdnotify", "worker_settings", "datafiles",
}  # fmt: skip
_ALL = _COMMON | {"supervisor", "worker", "http"}
ALLOWED: dict[str, set[str]] = (
    dict.fromkeys(_BASE, _BASE)
    | dict.fromkeys(_COMMON - _BASE, _COMMON)
    | {
        "supervisor": _COMMON,
        "worker": _COMMON,
        "http": _COMMON | {"supervisor"},
        "health": _COMMON,
        "service": _COMMON | {"supervisor"},
        "daemon": _ALL | {"health", "service"},
        "ctl": {"errors"},
        "tables": set(),
        "verbs": {"errors", "config", "ctl", "tables"},
        "check": {"errors", "config"},
        "migrate": {"errors"},
        "cli": _ALL | {"health", "service", "daemon", "verbs", "check", "migrate"},
        "__main__": {"cli"},
    }
)
#: What HTTP sees of the supervisor: the two views, and records that they are made of.
HTTP_SEES = {
    "supervisor.exchange", "supervisor.stats", "supervisor.model", "supervisor.story",
    "supervisor.measures",
}  # fmt: skip

PURE = {
    "errors", "words", "wire",
    "supervisor.states", "supervisor.events", "supervisor.model", "supervisor.policy",
    "supervisor.scheduler", "supervisor.timers", "supervisor.machine", "supervisor.loads",
    "supervisor.breaker", "supervisor.pressure", "supervisor.core", "supervisor.dispatch",
    "supervisor.generations", "supervisor.story", "supervisor.measures", "supervisor.cache",
    "supervisor.interventions", "supervisor.history",
    "supervisor.outdated",
}  # fmt: skip
IMPURE = {
    "asyncio", "os", "signal", "socket", "subprocess", "time", "tornado", "zmq", "psutil",
    "random", "threading",
}  # fmt: skip


def modules(house: Path) -> Iterator[tuple[str, Path]]:
    """Dotted name below the package, and file, of every module but the empty-ish __init__s."""
    for path in sorted(house.rglob("*.py")):
        parts = path.relative_to(house).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        yield name, path


def imports(house: Path, name: str, path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, also inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = [house.name, *filter(None, package.split("."))]
                above = above[: len(above) - (node.level - 1)]
                base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                inner = house.parent.joinpath(*base.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def violations(house: Path) -> list[str]:
    """Every breach of the rules in a package, as "module:line: what"."""
    found = []
    for name, path in modules(house):
        part = name.partition(".")[0]
        for line, imported in imports(house, name, path):
            where = f"{name or '__init__'}:{line}"
            top, _, inner = imported.partition(".")
            if top == "qgis" and part != "worker":
                found.append(f"{where}: imports qgis")
            if name in PURE and top in IMPURE:
                found.append(f"{where}: is pure and imports {imported}")
            if top != house.name or not inner:
                continue
            target = inner.partition(".")[0]
            if not part or part not in ALLOWED:
                found.append(f"{where}: is in no layer and imports {imported}")
            elif (target != part and target not in ALLOWED[part]) or (
                part == "http" and target == "supervisor" and inner not in HTTP_SEES
            ):
                found.append(f"{where}: imports {imported}")
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > LONGEST:
            found.append(f"{name}: has {length} lines")
    return found


def test_the_house_keeps_its_rules() -> None:
    assert violations(HOUSE) == []


def test_every_pure_module_is_there() -> None:
    names = {name for name, _ in modules(HOUSE)}
    assert names >= PURE


def test_every_module_has_its_layer() -> None:
    parts = {name.partition(".")[0] for name, _ in modules(HOUSE)} - {""}
    assert parts == set(ALLOWED)


def plant(folder: Path, files: dict[str, str]) -> Path:
    """A package named qgisd of these files, and all __init__s that it needs."""
    house = folder / "qgisd"
    for name in ("errors", "wire", "supervisor/machine", "supervisor/pool", "supervisor/exchange",
                 "worker/fork", "http/app", "daemon", "cli", "ctl", "config"):  # fmt: skip
        path = house / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('"""Empty."""\n')
    for package in (house, house / "supervisor", house / "worker", house / "http"):
        (package / "__init__.py").write_text("")
    for name, text in files.items():
        (house / name).write_text(text)
    return house


def test_the_checker_is_silent_on_a_clean_tree(tmp_path: Path) -> None:
    house = plant(
        tmp_path,
        {
            "worker/fork.py": "import os\nimport qgis.core\nfrom qgisd import wire\n",
            "http/app.py": "from qgisd.supervisor.exchange import Order\n",
            "daemon.py": "import asyncio\nfrom qgisd.supervisor.pool import Pool\n",
            "cli.py": "from qgisd import __version__, daemon\n",
        },
    )
    assert violations(house) == []


@pytest.mark.parametrize(
    ("file", "source", "found"),
    [
        ("wire.py", "from qgisd.supervisor import pool", "wire:1: imports qgisd.supervisor.pool"),
        ("wire.py", "import qgisd.http.app", "wire:1: imports qgisd.http.app"),
        ("errors.py", "from qgisd import wire", "errors:1: imports qgisd.wire"),
        ("supervisor/pool.py", "from qgisd.worker import fork", "imports qgisd.worker.fork"),
        ("supervisor/pool.py", "from ..worker import fork", "imports qgisd.worker.fork"),
        ("supervisor/pool.py", "from ..http.app import x", "imports qgisd.http.app"),
        ("worker/fork.py", "import qgisd.supervisor.pool as p", "imports qgisd.supervisor.pool"),
        ("http/app.py", "from qgisd.supervisor import pool", "imports qgisd.supervisor.pool"),
        ("http/app.py", "from qgisd.supervisor.pool import Pool", "imports qgisd.supervisor.pool"),
        ("http/app.py", "from qgisd.worker import fork", "imports qgisd.worker.fork"),
        ("http/app.py", "from qgisd import daemon", "imports qgisd.daemon"),
        ("daemon.py", "from qgisd import cli", "imports qgisd.cli"),
        ("ctl.py", "from qgisd import config", "imports qgisd.config"),
        ("http/app.py", "import qgis.core", "imports qgis"),
        ("daemon.py", "def late():\n    from qgis.core import Qgis", "daemon:2: imports qgis"),
        ("supervisor/machine.py", "import time", "is pure and imports time"),
        ("supervisor/machine.py", "from os import path", "is pure and imports os"),
        ("supervisor/machine.py", "def f():\n    import asyncio", "is pure and imports asyncio"),
        ("wire.py", "from zmq.utils import z85", "is pure and imports zmq.utils"),
        ("__init__.py", "from qgisd import daemon", "__init__:1: is in no layer"),
        ("stray.py", "from qgisd import wire", "stray:1: is in no layer"),
        ("daemon.py", "x = 1\n" * (LONGEST + 1), f"daemon: has {LONGEST + 1} lines"),
    ],
)
def test_the_checker_finds_what_is_planted(
    tmp_path: Path, file: str, source: str, found: str
) -> None:
    (only,) = violations(plant(tmp_path, {file: source}))
    assert found in only


def test_the_length_that_is_allowed_is_allowed(tmp_path: Path) -> None:
    assert violations(plant(tmp_path, {"daemon.py": "x = 1\n" * LONGEST})) == []
