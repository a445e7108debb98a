"""The watch on project files says what changed, and nothing else."""

import asyncio
import logging
from pathlib import Path

from qgisd.supervisor import events as e
from qgisd.supervisor.catalog import Catalog, version_of
from qgisd.supervisor.files import ProjectFiles
from qgisd.supervisor.model import Project


def test_only_a_file_that_changed_is_worth_an_event(tmp_path: Path) -> None:
    projects = {}
    for key in ("a.qgs", "b.qgs"):
        path = tmp_path / key
        path.write_text("as it was")
        version = version_of(str(path))
        assert version is not None
        projects[key] = Project(key, str(path), version)
    events: list[e.Event] = []

    async def story() -> None:
        catalog = Catalog({"/": str(tmp_path)})
        log = logging.getLogger("test")
        files = ProjectFiles(catalog, 1.0, "", lambda: False, projects, events.append, log)
        await files.check()
        assert events == []
        (tmp_path / "b.qgs").write_text("as it is now")
        await files.check()

    asyncio.run(story())
    (changed,) = events
    assert isinstance(changed, e.Changed)
    assert (changed.ref.key, changed.ref.version) == ("b.qgs", version_of(projects["b.qgs"].path))
