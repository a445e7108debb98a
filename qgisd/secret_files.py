"""Secrets: values of the configuration that lie in files of their own, one each.

In `$CREDENTIALS_DIRECTORY`, where systemd puts what LoadCredential= names (systemd.exec(5)), and
in `daemon.secrets_dir`, as Compose and Kubernetes mount them. The name of a file is its key
("admin.tokens") or its variable ("QGISD_ADMIN__TOKENS"); what has neither form is not for us.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from qgisd.errors import Problem

PREFIX = "QGISD_"
#: Longest secret: a key of the configuration is no place for more.
_MOST = 64 << 10
#: LoadCredential=secrets:/a/folder puts this before the name of each file.
_CREDENTIAL = "secrets_"


@dataclass(frozen=True)
class Secret:
    """One value. `text` is never shown, logged or put into an error."""

    key: str
    path: Path
    text: str

    def __repr__(self) -> str:
        return f"Secret({self.key!r}, {str(self.path)!r})"


def folders(environment: Mapping[str, str], secrets_dir: str) -> list[Path]:
    """Where secrets lie, later ones before earlier ones."""
    given = (secrets_dir, environment.get("CREDENTIALS_DIRECTORY", ""))
    return [Path(folder) for folder in given if folder]


def read(
    folder: Path, sections: Collection[str], problems: list[Problem], forgiving: bool
) -> list[Secret]:
    """The secrets of a folder; what cannot be read becomes a problem.

    sections: the tables of the configuration, by which a dotted name is told from other files.
    forgiving: what this user may not read is left out; `ctl` needs no secret of the daemon's.
    """
    found = []
    path = folder
    try:
        for path in sorted(folder.iterdir()):
            key = _key(path.name, sections)
            if key and path.is_file():
                with path.open("rb") as file:
                    text = file.read(_MOST + 1)
                if len(text) > _MOST:
                    problems.append(Problem(str(path), f"is over {_MOST} bytes: no secret"))
                    continue
                found.append(Secret(key, path, text.decode("utf-8").rstrip("\r\n")))
    except PermissionError as error:
        if not forgiving:
            problems.append(Problem(str(path), f"cannot be read: {error.strerror}"))
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        problems.append(Problem(str(path), "is not text in UTF-8"))
    return found


def _key(name: str, sections: Collection[str]) -> str:
    name = name.removeprefix(_CREDENTIAL)
    if name.startswith(PREFIX):
        return key_of_variable(name)
    section, dot, rest = name.partition(".")
    return name if dot and rest and section in sections else ""


def key_of_variable(name: str) -> str:
    """ "QGISD_HTTP__LISTEN" → "http.listen"; "" for other variables."""
    if not name.startswith(PREFIX) or "__" not in name:
        return ""
    return name[len(PREFIX) :].lower().replace("__", ".")


def is_secret(key: str, sources: Mapping[str, str]) -> bool:
    """Whether the value of a key, or of a table that it lies in, came from a secret.

    A pool inherits the secrets of [pool].
    """
    parts = key.split(".")
    keys = [parts] + ([["pool", *parts[2:]]] if parts[0] == "pools" else [])
    return any(
        sources.get(".".join(one[:end]), "").startswith("secret ")
        for one in keys
        for end in range(1, len(one) + 1)
    )


def masked(tree: Mapping[str, object], sources: Mapping[str, str], prefix: str = "") -> object:
    """The tree with "***" in place of what came from a secret."""
    shown: dict[str, object] = {}
    for name, value in tree.items():
        key = prefix + name
        if is_secret(key, sources):
            shown[name] = "***"
        elif isinstance(value, Mapping):
            shown[name] = masked(value, sources, key + ".")
        else:
            shown[name] = value
    return shown
