"""Which content a data file has, told by a look at its inode: the same in snapshot and daemon."""

import os

#: (mtime in ns, size, inode); any difference is another content. A rename makes another inode.
Version = tuple[int, int, int]
#: Path → version, None for a file that is not there.
Versions = dict[str, Version | None]

#: Of a file that changed while it was loaded: which content was read nobody knows.
CHANGING: Version = (0, 0, 0)


def version_of(path: str) -> Version | None:
    """The version of a file, or of a folder that is a database; None where there is none.

    SQLite's empty write-ahead log is as good as none: a reader makes and removes it, too.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not status.st_size and path.endswith("-wal"):
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def changed_since(path: str, when_ns: int) -> bool:
    """Whether a file was written or put in its place (ctime) at or after `when_ns`, Unix time."""
    try:
        return os.stat(path).st_ctime_ns >= when_ns
    except (OSError, ValueError):
        return False
