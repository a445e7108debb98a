"""The part of the machine that loads a project again and again: its generations. Pure.

A project has at most one generation that serves and one that is coming; a load that fails
leaves the serving one alone. Loads are ordered one behind the other, `max_loads` at once.
"""

from qgisd.errors import ProjectUnusable
from qgisd.supervisor import events as e
from qgisd.supervisor import policy
from qgisd.supervisor.dispatch import Dispatch
from qgisd.supervisor.model import Generation, Project
from qgisd.supervisor.states import (
    GENERATION,
    WORKER,
    GenerationState,
    WorkerState,
    ZygoteState,
    advance,
)
from qgisd.words import Mode, NoteKind, Reason


class Generations(Dispatch):
    """Base of `machine.Machine`: see there."""

    def _new_generation(self, project: Project, reason: Reason) -> None:
        if project.coming is not None:
            same = project.coming.version == project.version
            if same and reason not in (Reason.RELOAD, Reason.CRASH):
                return
        before = project.coming
        self._generations += 1
        project.newest = self._generations
        self.coming[project.key] = None
        project.coming = Generation(
            project.newest, project.key, project.path, project.version, reason, self.now
        )
        project.counters.loads += 1
        if before is not None:
            self._cancel(project, before, "overtaken by a newer version", Reason.RELOAD)

    def _start_loads(self) -> None:
        """Let waiting loads begin: first those that requests wait for, then in order.

        What loads in the background gives way to those who serve, and takes long where they have
        much to do: the others do not wait for it.
        """
        if not self.coming or self.zygote.state is not ZygoteState.UP:
            return
        pending, ahead, behind = [], 0, 0
        for key in self.coming:
            project = self.projects[key]
            if project.coming is not None:
                loading = project.coming.state is GenerationState.LOADING
                pending += [project] if project.coming.state is GenerationState.PENDING else []
                ahead += loading and not project.coming.background
                behind += loading and project.coming.background
        pending.sort(key=lambda project: not self.queue.waiting(project.key))
        pending.sort(key=lambda project: self.queue.depth(project.key), reverse=True)
        for project in pending:
            # A slot more for each depth, as in `dispatch`: the load of a project that draws another
            # one waits for the capabilities of that one.
            background = project.serving is not None and not project.serving.barren
            others = ahead + behind if background else ahead
            if others >= self.limits.max_loads + self.queue.depth(project.key):
                continue
            ahead, behind = (ahead, behind + 1) if background else (ahead + 1, behind)
            generation = project.coming
            assert generation is not None
            generation.background = background
            generation.state = advance(GENERATION, generation.state, "start", project.key)
            generation.snapshot, generation.since = True, self.now
            limit = self.limits.load_timeout_s
            if background:
                limit *= policy.IN_BACKGROUND
            self.timers.set(("load", project.key, generation.number), self.now + limit)
            self._out.append(
                e.ForkSnapshot(
                    self.zygote.number,
                    project.key,
                    generation.number,
                    generation.path,
                    background,
                )
            )
            number, reason = generation.number, generation.reason
            text = f"loading generation {number}: {reason}"
            self._note(10, text, project.key, NoteKind.LOAD_BEGUN, number, 0, reason)

    def _on_snapshot_loaded(self, event: e.SnapshotLoaded) -> None:
        project = self.projects.get(event.project)
        generation = project.coming if project is not None else None
        if project is None or generation is None or generation.number != event.generation:
            return
        self.timers.cancel(("load", project.key, generation.number))
        generation.state = advance(GENERATION, generation.state, "loaded", project.key)
        generation.mode, generation.why = event.mode, event.why
        generation.layers, generation.bad_layers = event.layers, event.bad_layers
        generation.load_ms, generation.data_files = event.load_ms, event.data_files
        generation.contents = event.contents
        generation.warmup = event.warmup
        generation.snapshot = event.mode is Mode.FORKED
        self._out.append(e.LoadEnded(project.key, True, event.load_ms / 1000))
        if generation.for_data and project.serving is not None:
            lost = policy.layers_lost(project.serving.bad_layers, event.bad_layers)
            if lost:
                message = f"its data changed, and these do not open: {', '.join(sorted(lost))}"
                self._fail_generation(project, generation, message)
                return
        # As many workers as the generation before keeps: the switch must not be felt.
        wanted = project.serving.live() if project.serving else 0
        wanted = max(wanted, 1 if project.pinned or self.queue.waiting(project.key) else 0)
        if wanted == 0:
            self._switch(project, generation)
        for _ in range(min(wanted, project.cap)):
            self._fork_worker(generation)

    def _switch(self, project: Project, generation: Generation) -> None:
        """From now on this generation gets the requests."""
        before = project.serving
        generation.state = advance(GENERATION, generation.state, "switch", project.key)
        generation.serves_since = before.serves_since if before is not None else self.now
        project.serving, project.coming = generation, None
        self.bare.add(project.key)
        self.coming.pop(project.key, None)
        project.error, project.retry_at, project.overtaken = "", 0.0, 0
        project.switched_at = self.now
        bad = f", {len(generation.bad_layers)} bad layers" if generation.bad_layers else ""
        kept = f", each worker loads it: {generation.why}" if generation.why else ""
        detail = (
            f"generation {generation.number}: {generation.layers} layers "
            f"in {generation.load_ms / 1000:.2f} s{bad}{kept}"
        )
        self._note(20, detail, project.key, NoteKind.SWITCHED, generation.number)
        self._out.append(e.Settled(project.key, generation.number, True, detail))
        if before is not None:
            self._retire(project, before, Reason.RELOAD)
        self.timers.cancel(("data", project.key))
        self._await_healing(project)
        if generation.version != project.version:
            self._new_generation(project, Reason.RELOAD)

    def _await_healing(self, project: Project) -> None:
        """A generation without a layer whose source was down is not the last word."""
        serving = project.serving
        if serving is None or not policy.may_heal(serving.bad_layers):
            project.heals = 0
            self.timers.cancel(("heal", project.key))
            return
        longest = self.limits.backoff_limit_s * 5
        wait = policy.backoff(project.heals + 1, longest, self._jitter())
        self.timers.set(("heal", project.key), self.now + wait)

    def _on_heal_due(self, key: str) -> None:
        project = self.projects.get(key)
        if project is None or project.serving is None:
            return
        used = project.last_used >= project.serving.since
        if project.coming is None and used and not self.over_budget:
            project.heals += 1
            self._note(20, "loading again for the layers that did not open", key)
            self._new_generation(project, Reason.RELOAD)
        else:
            self._await_healing(project)  # nobody has missed them yet, or there is no room

    def _on_snapshot_down(self, event: e.SnapshotDown) -> None:
        project = self.projects.get(event.project)
        if project is None:
            return
        for generation in list(project.generations()):
            if generation.number != event.generation:
                continue
            if event.never_forked and generation.state is GenerationState.LOADING:
                self.timers.cancel(("load", project.key, generation.number))
                generation.state = advance(GENERATION, generation.state, "orphaned", project.key)
                generation.snapshot = False
            else:
                self._snapshot_gone(project, generation, event.message, event.crashed)

    def _snapshot_gone(
        self, project: Project, generation: Generation, message: str, crashed: bool
    ) -> None:
        expected = not generation.snapshot
        generation.snapshot = False
        if expected or generation.state is GenerationState.RETIRED:
            return
        if generation is project.coming:
            if crashed and not project.failures:
                # Like a request whose worker dies, a load whose process dies gets another try.
                self._load_failed(generation)
                self._count_load_failure(project)
                text = f"the load ended: {message}; once more"
                self._note(30, text, project.key, NoteKind.LOAD_FAILED, generation.number)
                self._new_generation(project, Reason.CRASH)
                assert project.coming is not None
                project.coming.for_data = generation.for_data
            else:
                self._fail_generation(project, generation, message)
            return
        # The one that serves: its workers go on, but no more can be forked from it.
        wait = self._count_load_failure(project)
        if project.coming is not None:
            return
        if project.failures == 1:
            text = f"the snapshot ended: {message}; loading anew"
            self._note(30, text, project.key, NoteKind.SNAPSHOT_ENDED, generation.number)
            self._new_generation(project, Reason.CRASH)
        else:
            text = f"the snapshot ended once more: {message}; loading anew in {wait:.1f} s"
            self._note(40, text, project.key, NoteKind.SNAPSHOT_ENDED, generation.number)

    def _load_failed(self, generation: Generation) -> None:
        if generation.state is GenerationState.LOADING:
            took = self.now - generation.since
            self._out.append(e.LoadEnded(generation.project, False, took))

    def _count_load_failure(self, project: Project) -> float:
        """One more in a row; seconds until it is worth another try, at which it is tried."""
        if project.switched_at and self.now - project.switched_at > self.limits.backoff_limit_s:
            project.failures, project.switched_at = 0, 0.0
        project.failures += 1
        wait = policy.backoff(project.failures, self.limits.backoff_limit_s, self._jitter())
        project.retry_at = self.now + wait
        if project.pinned or project.serving is not None:
            self.timers.set(("retry", project.key), project.retry_at)
        return wait

    def _on_load_deadline(self, key: str, number: int) -> None:
        project = self.projects.get(key)
        if project is None or project.coming is None or project.coming.number != number:
            return
        due = project.coming.since + self.limits.load_timeout_s
        if self.now < due:
            # Beside workers that are never at rest it would not end at all.
            self._out.append(e.HurrySnapshot(key, number))
            self.timers.set(("load", key, number), due)
        else:
            message = f"not loaded within load_timeout_s = {self.limits.load_timeout_s:g}"
            self._fail_generation(project, project.coming, message, Reason.DEADLINE)

    def _fail_generation(
        self,
        project: Project,
        generation: Generation,
        message: str,
        reason: Reason = Reason.BOOT,
    ) -> None:
        """This load came to nothing; one that still serves goes on serving."""
        project.error = message
        self._load_failed(generation)
        self._count_load_failure(project)
        serving = project.serving if project.serving is not generation else None
        still = f"; generation {serving.number} still serves" if serving else ""
        text = f"generation {generation.number} failed: {message}{still}"
        self._note(40, text, project.key, NoteKind.LOAD_FAILED, generation.number, 0, reason)
        self._cancel(project, generation, message, reason)
        project.overtaken = 0
        if serving is not None and serving.outdated_since is not None:
            # Whatever this load was for: it would have read the data that changed.
            self.timers.set(("data", project.key), project.retry_at)
        self._await_healing(project)
        if generation.version != project.version and project.coming is None:
            self._new_generation(project, Reason.RELOAD)  # it was of an older file
        elif serving is None:
            for job in self.queue.drain(project.key):
                self._fail(job, ProjectUnusable("the project cannot be loaded"))

    def _cancel(
        self, project: Project, generation: Generation, message: str, reason: Reason
    ) -> None:
        self.timers.cancel(("load", project.key, generation.number))
        generation.state = advance(GENERATION, generation.state, "fail", project.key)
        if generation is project.serving:
            project.serving = None
        elif generation is project.coming:
            project.coming = None
            self.coming.pop(project.key, None)
        self._end_snapshot(generation, reason)
        self._clear_workers(generation, reason)
        project.leaving.append(generation)
        self._out.append(e.Settled(project.key, generation.number, False, message))
        self._maybe_end(project, generation)

    def _retire(self, project: Project, generation: Generation, reason: Reason) -> None:
        generation.state = advance(GENERATION, generation.state, "retire", project.key)
        project.leaving.append(generation)
        self._end_snapshot(generation, reason)
        self._clear_workers(generation, reason)
        self._maybe_end(project, generation)

    def _end_snapshot(self, generation: Generation, reason: Reason) -> None:
        if generation.snapshot:
            generation.snapshot = False
            self._out.append(e.EndSnapshot(generation.project, generation.number, reason))

    def _clear_workers(self, generation: Generation, reason: Reason) -> None:
        for worker in list(generation.workers.values()):
            if worker.state is WorkerState.IDLE:
                self._stop(worker, "stop", reason)
            elif worker.state is WorkerState.BUSY:
                worker.state = advance(WORKER, worker.state, "retire", worker.id)
                worker.reason = reason
            elif worker.state is WorkerState.STARTING:
                self._kill(worker, Reason.STOP)

    def _maybe_end(self, project: Project, generation: Generation) -> None:
        if generation in project.leaving and not generation.workers:
            generation.state = advance(GENERATION, generation.state, "end", project.key)
            project.leaving.remove(generation)
            self._maybe_forget(project)

    def _maybe_forget(self, project: Project) -> None:
        """Records of projects that are gone would otherwise pile up."""
        if project.pinned or project.error or self.queue.waiting(project.key):
            return
        if any(job.project == project.key for job in self.jobs.values()):
            return
        if next(project.generations(), None) is None:
            self.projects.pop(project.key, None)
            self.timers.cancel(("data", project.key))
            self.timers.cancel(("retry", project.key))
            self.timers.cancel(("heal", project.key))
