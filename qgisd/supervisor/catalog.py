"""MAP → project: which file a name means, and which version of it is there.

Blocking calls (a project folder may be on NFS): the pool runs them in a thread. No decision
about loading is made here.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from qgisd.errors import ProjectNotFound
from qgisd.supervisor.model import ProjectRef, Version

SUFFIXES = (".qgs", ".qgz")
#: Bytes of a MAP; longer names are not of files.
_LONGEST = 1024


@dataclass(frozen=True)
class Root:
    """One entry of `pool.projects.roots`."""

    #: Slash-separated segments that MAP starts with; () for "/".
    prefix: tuple[str, ...]
    folder: Path


class Catalog:
    """The project roots of one pool."""

    def __init__(self, roots: dict[str, str]) -> None:
        entries = [
            Root(tuple(filter(None, prefix.split("/"))), Path(folder))
            for prefix, folder in roots.items()
        ]
        # Longest first, so that "/town" wins over "/" for MAP=town/streets.
        self._roots = sorted(entries, key=lambda root: -len(root.prefix))

    def resolve(self, name: str) -> ProjectRef:
        """The project that MAP `name` means, with or without its suffix.

        Raises ProjectNotFound, in the same words whether there is none or it lies outside the
        roots: the answer must not tell which files exist.
        """
        missing = ProjectNotFound(
            "no such project: MAP is the path of a .qgs or .qgz below a project root"
        )
        segments = [segment for segment in name.split("/") if segment]
        if (
            not segments
            or len(name) > _LONGEST
            or not _encodes(name)
            or "\0" in name
            or "\\" in name
            or any(segment in (".", "..") or ":" in segment for segment in segments)
        ):
            raise missing
        for root in self._roots:
            depth = len(root.prefix)
            if tuple(segments[:depth]) == root.prefix and len(segments) > depth:
                found = self._find(root, segments[depth:])
                if found is None:
                    raise missing
                return found
        raise missing

    @staticmethod
    def _find(root: Root, segments: list[str]) -> ProjectRef | None:
        top = os.path.realpath(root.folder)
        asked = os.path.join(top, *segments)
        names = [asked] if asked.endswith(SUFFIXES) else [asked + suffix for suffix in SUFFIXES]
        for candidate in names:
            # A link is followed, as long as what it leads to is below the same root.
            real = os.path.realpath(candidate)
            if os.path.commonpath([top, real]) != top or not real.endswith(SUFFIXES):
                continue
            version = version_of(real)
            if version is not None:
                below = os.path.relpath(candidate, top)
                return ProjectRef("/".join([*root.prefix, below]), candidate, version)
        return None


def _encodes(name: str) -> bool:
    try:
        os.fsencode(name)
    except ValueError:
        return False
    return True


def version_of(path: str) -> Version | None:
    """(mtime in ns, size, inode) of a regular file, or None. Any difference is a new version."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not os.path.isfile(path):
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def readable(path: str) -> bool:
    """Whether this process may read `path`, for `qgisd check`."""
    return os.access(path, os.R_OK | os.X_OK if os.path.isdir(path) else os.R_OK)
