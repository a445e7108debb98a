"""The part of the machine that loads a project again when its data changes. Pure.

QGIS keeps what it read at the load: extents, counts, the open file of a shapefile or GeoTIFF that
was since replaced. So a change of a data file makes a new generation, beside the one that serves:

- once the files have been quiet for `data_settle_s`, as a shapefile is replaced file by file;
- at the latest `longest` after the change, for a GeoPackage that is written all the time;
- never sooner after the load before than a pause that doubles with each such load, from the time
  that a load takes up to `longest` (policy.longest_data_pause): a tenth of a core at most;
- not before somebody asks for the project again: what nobody uses is not loaded twice.

A generation in which a layer does not open that does in the one that serves is refused: the file
may be half written, or its database away for a moment. It is tried again (`generations.py`).
"""

from qgisd.supervisor import events as e
from qgisd.supervisor import policy
from qgisd.supervisor.generations import Generations
from qgisd.supervisor.model import Generation, Project
from qgisd.words import Reason


class Outdated(Generations):
    """Base of `machine.Machine`: see there."""

    def _on_data_changed(self, event: e.DataChanged) -> None:
        project = self.projects.get(event.project)
        serving = project.serving if project is not None else None
        if project is None or serving is None or serving.number != event.generation:
            return
        if serving.outdated_since is None:
            serving.outdated_since = self.now
            self._note(20, f"its data changed: {event.path}", project.key)
        due = min(
            self.now + self.limits.data_settle_s,
            serving.outdated_since + self._longest_pause(serving),
        )
        self.timers.set(("data", project.key), max(due, project.data_not_before))

    def _longest_pause(self, generation: Generation) -> float:
        return policy.longest_data_pause(self.limits.data_reload_s, generation.load_ms / 1000)

    def _on_data_due(self, key: str) -> None:
        """The data is at rest and the pause is over: load, if somebody is there for it."""
        project = self.projects.get(key)
        serving = project.serving if project is not None else None
        if project is None or serving is None or serving.outdated_since is None:
            return
        if project.coming is not None or self.over_budget:
            # What comes may come to nothing.
            self.timers.set(("data", key), self.now + self.limits.data_reload_s)
        elif self.now < project.data_not_before:
            self.timers.set(("data", key), project.data_not_before)
        elif project.last_used < serving.since:
            serving.awaits_use = True
        else:
            self._load_for_data(project, serving)

    def _used(self, project: Project) -> None:
        """Somebody asked for it: note that, and load what was outdated while nobody did."""
        project.last_used = self.now
        if project.serving is not None and project.serving.awaits_use:
            project.serving.awaits_use = False
            self._on_data_due(project.key)

    def _load_for_data(self, project: Project, serving: Generation) -> None:
        longest, load_s = self._longest_pause(serving), serving.load_ms / 1000
        if self.now - project.data_not_before > longest:
            project.data_loads = 0  # quiet for long: the next change is served at once again
        project.data_loads += 1
        pause = policy.data_pause(project.data_loads, load_s, longest)
        project.data_not_before = self.now + load_s + pause
        self._new_generation(project, Reason.RELOAD)
        assert project.coming is not None
        project.coming.for_data = True
