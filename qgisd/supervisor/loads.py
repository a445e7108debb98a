"""The part of the machine that knows zygotes, and what becomes of projects. Pure.

What is loaded, and when it takes over, is in `generations.py`.
"""

from qgisd.errors import LoopDetected, ProjectNotFound, ProjectUnusable, RequestError, Unavailable
from qgisd.supervisor import events as e
from qgisd.supervisor import policy
from qgisd.supervisor.model import MOST_DEPTH, Job, Project, ProjectRef, Zygote
from qgisd.supervisor.outdated import Outdated
from qgisd.supervisor.states import ZYGOTE, GenerationState, ZygoteState, advance
from qgisd.words import NoteKind, Reason


class Loads(Outdated):
    """Base of `machine.Machine`: see there."""

    # zygotes

    def _on_started(self, event: e.Started) -> None:
        self._start_zygote(self.zygote)

    def _start_zygote(self, zygote: Zygote) -> None:
        zygote.since = self.now
        self.timers.set(("zygote", zygote.number), self.now + self.limits.zygote_timeout_s)
        self._out.append(e.StartZygote(zygote.number))

    def _on_zygote_up(self, event: e.ZygoteUp) -> None:
        if self.successor is not None and self.successor.number == event.number:
            self.zygote.state = advance(ZYGOTE, self.zygote.state, "end", "zygote")
            self._out.append(e.EndZygote(self.zygote.number))
            self.timers.cancel(("zygote", self.zygote.number))
            self.zygote, self.successor = self.successor, None
            self._out.append(e.Settled("", self.zygote.number, True, "new zygote"))
            for project in list(self.projects.values()):
                begun = project.coming and project.coming.state is not GenerationState.PENDING
                if project.serving is not None or project.error or begun:
                    self._new_generation(project, Reason.RELOAD)
        if self.zygote.number == event.number:
            self.timers.cancel(("zygote", event.number))
            self.zygote.state = advance(ZYGOTE, self.zygote.state, "up", "zygote")
            self.ever_up = True
            self._note(10, f"zygote {event.number} is up", kind=NoteKind.ZYGOTE_UP)

    def _on_zygote_down(self, event: e.ZygoteDown) -> None:
        self.timers.cancel(("zygote", event.number))
        if self.successor is not None and self.successor.number == event.number:
            self.successor = None
            self._out.append(e.Settled("", event.number, False, event.message))
            return
        if self.zygote.number != event.number or self.zygote.state is ZygoteState.ENDED:
            return
        if not self.ever_up:
            self._out.append(e.GiveUp(event.message))
            return
        zygote = self.zygote
        if self.now - zygote.since > self.limits.backoff_limit_s:
            zygote.failures = 0  # one that dies every twenty seconds has not been well
        zygote.state = advance(ZYGOTE, zygote.state, "exit", "zygote")
        zygote.failures += 1
        wait = policy.backoff(zygote.failures, self.limits.backoff_limit_s, self._jitter())
        text = f"the zygote ended: {event.message}; a new one in {wait:.1f} s"
        self._note(40, text, kind=NoteKind.ZYGOTE_ENDED)
        self.timers.set(("zygote", zygote.number), self.now + wait)

    def _on_zygote_due(self, number: int) -> None:
        zygote = self.zygote
        if zygote.number == number and zygote.state is ZygoteState.BACKOFF:
            zygote.state = advance(ZYGOTE, zygote.state, "start", "zygote")
            zygote.number = self._next_zygote()
            self._start_zygote(zygote)
        else:
            # Did not come up in time. Its exit, which follows, is what counts.
            limit = f"{self.limits.zygote_timeout_s:g}"
            self._out.append(e.EndZygote(number, f"not up within zygote_timeout_s = {limit}"))

    def _next_zygote(self) -> int:
        self._zygotes += 1
        return self._zygotes

    # projects

    def _adopt(self, ref: ProjectRef) -> Project:
        cap, room = policy.project_limits(ref.key, self.limits)
        project = Project(ref.key, ref.path, ref.version, cap, room, since=self.now)
        self.projects[ref.key] = project
        return project

    def _refusal(self, project: Project, ref: ProjectRef, job: Job) -> RequestError | None:
        """Why a request for this project is answered with an error without being queued."""
        if project.serving is None and project.coming is None:
            failed_before = bool(project.error) and ref.version == project.version
            if failed_before and self.now < project.retry_at:
                return ProjectUnusable("the project cannot be loaded")
            project.path, project.version = ref.path, ref.version
        if project.serving is None and project.coming is None and self.over_budget:
            # One sample ends idle workers, the next evicts a snapshot (pressure.py).
            soon = policy.retry_after(2 * self.sampled_every)
            return Unavailable("no memory to load another project", soon)
        if job.depth == MOST_DEPTH and project.serving is None:
            # Its load may itself be what waits for this answer: projects that draw each other.
            return LoopDetected("a project in a chain that draws each other is not loaded")
        if project.breaker is not None:
            wait = project.breaker.refuses(self.now, job.id)
            if wait is not None:
                return Unavailable("this project failed too often of late", retry_after=wait)
        return None

    def _need_generation(self, project: Project) -> None:
        if project.coming is not None:
            return
        serving = project.serving
        if serving is None:
            self._new_generation(project, Reason.BOOT)
        elif serving.barren and self.now >= project.retry_at:
            self._new_generation(project, Reason.CRASH)

    def _on_retry_due(self, key: str) -> None:
        project = self.projects.get(key)
        if project is not None and (project.pinned or project.serving is not None):
            self._need_generation(project)

    def _on_changed(self, event: e.Changed) -> None:
        project = self.projects.get(event.ref.key)
        if project is None or project.version == event.ref.version:
            return
        project.path, project.version = event.ref.path, event.ref.version
        project.failures, project.retry_at, project.heals = 0, 0.0, 0
        if project.breaker is not None:
            project.breaker.reset()
        if project.serving is None and project.coming is None and not project.pinned:
            return
        self._note(20, "the project file changed", project.key, NoteKind.PROJECT_CHANGED)
        if project.coming is not None:
            # A load that is overtaken is given up once (it may hang); the next one comes to its
            # end, and what it lacks is loaded after it: else a file that changes more often than it
            # takes to load would never be loaded.
            if project.overtaken:
                return
            project.overtaken += 1
        self._new_generation(project, Reason.RELOAD)

    def _on_vanished(self, event: e.Vanished) -> None:
        project = self.projects.get(event.project)
        if project is None:
            return
        if project.serving or project.coming:
            self._note(30, "the project file is gone", project.key, NoteKind.PROJECT_GONE)
        for job in self.queue.drain(project.key):
            self._fail(job, ProjectNotFound("no such project"))
        self._unload(project, Reason.STOP)
        project.version, project.error = (0, 0, 0), ""
        self._maybe_forget(project)

    def _unload(self, project: Project, reason: Reason) -> None:
        if project.coming is not None:
            self._cancel(project, project.coming, "the project was unloaded", reason)
        if project.serving is not None:
            self._retire(project, project.serving, reason)
            project.serving = None
