"""A name without a suffix means the same file at any time, whatever happened before."""

from collections.abc import Callable
from pathlib import Path

from tests.support import Daemon, eventually, write_fake_project

StartDaemon = Callable[..., Daemon]


def test_a_name_goes_back_to_the_file_that_it_means_first(
    daemons: StartDaemon, tmp_path: Path
) -> None:
    """town.qgs is deleted for a while, and town.qgz stands in for it."""
    root = tmp_path / "root"
    write_fake_project(root / "town.qgs", text="first")
    write_fake_project(root / "town.qgz", text="second")
    daemon = daemons(root)

    def says(text: bytes) -> bool:
        answer = daemon.ows("town")
        return answer.status == 200 and text in answer.body

    assert says(b"first")
    (root / "town.qgs").unlink()
    eventually(lambda: says(b"second"))
    write_fake_project(root / "town.qgs", text="first again")
    eventually(lambda: says(b"first again"), timeout=10)
