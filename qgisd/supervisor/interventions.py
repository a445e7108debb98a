"""The part of the machine that does what operators order. Pure.

Load, reload, drop, pin; end a request or a worker; drain. The end of the daemon is in `machine`.
"""

from qgisd.errors import EndedByOperator
from qgisd.supervisor import events as e
from qgisd.supervisor.model import Job, Project, Zygote
from qgisd.supervisor.pressure import Pressure
from qgisd.supervisor.states import JobState
from qgisd.words import NoteKind, Reason

_TOLD = "an operator of this server ended the request"


class Interventions(Pressure):
    """Base of `machine.Machine`: see there."""

    #: No new requests are taken.
    draining = False

    def _on_load_ordered(self, event: e.LoadOrdered) -> None:
        project = self.projects.get(event.ref.key) or self._adopt(event.ref)
        if project.serving is None and project.coming is None:
            project.path, project.version = event.ref.path, event.ref.version
        if event.pin and not project.pinned:
            project.pinned = True
            self.pinned.add(project.key)
            self.bare.add(project.key)
            self._note(20, "pinned", project.key, NoteKind.PINNED)
        if project.serving is not None and project.coming is None:
            self._out.append(e.Settled(project.key, project.serving.number, True, "already loaded"))
        self._need_generation(project)

    def _on_reload_ordered(self, event: e.ReloadOrdered) -> None:
        if event.project is not None:
            project = self.projects.get(event.project)
            if project is not None:
                self._forgive(project)
                self._new_generation(project, Reason.RELOAD)
            return
        for project in self.projects.values():
            self._forgive(project)
        if self.successor is None:
            self.successor = Zygote(self._next_zygote())
            self._start_zygote(self.successor)

    @staticmethod
    def _forgive(project: Project) -> None:
        """Who orders a reload has mended something."""
        if project.breaker is not None:
            project.breaker.reset()

    def _on_drop_ordered(self, event: e.DropOrdered) -> None:
        project = self.projects.get(event.project)
        if project is None:
            return
        project.pinned, project.error = False, ""
        self.pinned.discard(project.key)
        self._note(20, "dropped", project.key, NoteKind.PROJECT_DROPPED)
        self._unload(project, Reason.STOP)
        self._out.append(e.Settled(project.key, 0, True, "dropped"))
        if self.queue.waiting(project.key):
            self._need_generation(project)
        self._maybe_forget(project)

    def _on_unpin_ordered(self, event: e.UnpinOrdered) -> None:
        project = self.projects.get(event.project)
        if project is None or not project.pinned:
            return
        project.pinned = False
        self.pinned.discard(project.key)
        self._note(20, "no longer pinned", project.key, NoteKind.UNPINNED)
        self._maybe_forget(project)

    def _on_worker_kill_ordered(self, event: e.WorkerKillOrdered) -> None:
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        job = self.jobs.get(worker.job)
        if job is not None and job.worker == worker.id:
            self._end_job(job)
        self._kill(worker, Reason.OPERATOR)

    def _on_job_kill_ordered(self, event: e.JobKillOrdered) -> None:
        job = self.jobs.get(event.job)
        if job is None:
            return
        if job.state is JobState.QUEUED:
            self.queue.remove(job)
            self._fail(job, EndedByOperator(_TOLD))
            return
        worker = self.workers[job.worker]
        self._end_job(job)
        self._kill(worker, Reason.OPERATOR)

    def _end_job(self, job: Job) -> None:
        """What is ended on purpose is not tried once more."""
        if job.state is JobState.STREAMING:
            self._abort(job, _TOLD)
        else:
            self._fail(job, EndedByOperator(_TOLD))

    def _on_drain_ordered(self, event: e.DrainOrdered) -> None:
        if event.on != self.draining:
            self.draining = event.on
            text = "draining: no new requests" if event.on else "requests are taken again"
            self._note(30, text, kind=NoteKind.DRAINING if event.on else NoteKind.UNDRAINED)
