"""The configuration before it is checked: tables of tables, put together from their sources."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qgisd.errors import Problem
from qgisd.secret_files import PREFIX

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib  # type: ignore[import-not-found,no-redef]


def secrets_dir(
    tree: Mapping[str, Any], environment: Mapping[str, str], flags: Mapping[str, Any]
) -> str:
    """daemon.secrets_dir, which has to be known before all is put together."""
    table = tree.get("daemon")
    in_file = table.get("secrets_dir", "") if isinstance(table, dict) else ""
    in_environment = environment.get(f"{PREFIX}DAEMON__SECRETS_DIR")
    return str(flags.get("daemon.secrets_dir") or in_environment or in_file)


def read(path: Path, problems: list[Problem]) -> dict[str, Any]:
    """The tables of a file; {} and a problem if it is none."""
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
        _anchor_roots(tree, path.resolve().parent)
        return tree
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), f"is not TOML: {error}"))
    return {}


def _anchor_roots(tree: dict[str, Any], folder: Path) -> None:
    """Roots that are relative are relative to the file that names them."""
    pools = tree.get("pools", {})
    for pool in [tree.get("pool"), *(pools.values() if isinstance(pools, dict) else ())]:
        projects = pool.get("projects") if isinstance(pool, dict) else None
        roots = projects.get("roots") if isinstance(projects, dict) else None
        if isinstance(roots, dict):
            for prefix, root in roots.items():
                if isinstance(root, str) and root:
                    roots[prefix] = os.path.normpath(folder / root)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of all values."""
    found = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found += leaves(value, f"{prefix}{key}.")
        else:
            found.append(prefix + key)
    return found


def from_text(text: str) -> Any:
    """A value as TOML would read it where it has quotes or brackets, else a string.

    Strings become numbers where a key wants one; a password of digits stays what it is.
    """
    if not text.startswith(('"', "'", "[", "{")):
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def put(tree: dict[str, Any], key: str, value: Any, problems: list[Problem], source: str) -> None:
    """Set a dotted key; its tables are made."""
    *sections, last = key.split(".")
    for section in sections:
        below = tree.setdefault(section, {})
        if not isinstance(below, dict):
            problems.append(Problem(source, f"{section} is a value, not a table"))
            return
        tree = below
    tree[last] = value


def inherit(tree: dict[str, Any]) -> None:
    """Lay each [pools.NAME] over [pool]."""

    def overlay(below: Any, above: Any) -> Any:
        if isinstance(below, dict) and isinstance(above, dict):
            return below | {key: overlay(below.get(key), value) for key, value in above.items()}
        return above

    pools = tree.get("pools")
    if isinstance(pools, dict):
        for name, pool in pools.items():
            pools[name] = overlay(tree.get("pool", {}), pool)
