"""Throughput: all servers side by side, asked one after the other, round by round."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from bench import client, processes
from bench.processes import log
from bench.servers import Server
from bench.work import CAPABILITIES, Scenario

WARM_S = 0.5


@dataclass(frozen=True)
class Round:
    """One load on one server."""

    measured: client.Measured
    #: Milliseconds of CPU of the processes between client and workers, per request.
    front_ms: float
    #: Cores kept busy meanwhile by what is neither this server nor the client.
    others: float


@dataclass
class Cell:
    """All rounds of one scenario with so many connections: server name → its rounds."""

    scenario: Scenario
    connections: int
    rounds: dict[str, list[Round]] = field(default_factory=dict)


def run(
    servers: Sequence[Server], scenarios: Sequence[Scenario], rounds: int, seconds: float
) -> tuple[list[Cell], list[str]]:
    """The figures, and what was noticed on the way."""
    cells = [Cell(each, count) for each in scenarios for count in each.connections]
    for project in dict.fromkeys(scenario.project for scenario in scenarios):
        for server in servers:
            log(f"{server.name}: loads {project}")
            # Cheap for every server, so that what takes long is a load and nothing else.
            server.warm(project, next(CAPABILITIES(0)))
    remarks = [remark for each in scenarios if (remark := _compare(servers, each))]
    for number in range(rounds):
        # Another one begins in each round: who follows whom is not to matter.
        shift = number % len(servers)
        order = [*servers[shift:], *servers[:shift]]
        for cell in cells:
            for server in order:
                found = _one(server, cell, number, seconds)
                cell.rounds.setdefault(server.name, []).append(found)
                log(
                    f"round {number + 1} {cell.scenario.name} x{cell.connections} {server.name}: "
                    f"{found.measured.rate:.1f}/s, front {found.front_ms:.2f} ms, "
                    f"{found.measured.failed} failed {found.measured.failures or ''}"
                )
    return cells, remarks


def _one(server: Server, cell: Cell, number: int, seconds: float) -> Round:
    scenario = cell.scenario
    seed = 1000 * number + cell.connections
    front = server.front_pids()
    before, clock = _clocks(server, front), time.perf_counter()
    measured = client.load(
        server.port,
        (server.target(scenario.project, query) for query in scenario.queries(seed)),
        scenario.check,
        cell.connections,
        seconds,
        WARM_S,
        at_least=2,
    )
    after, elapsed = _clocks(server, front), time.perf_counter() - clock
    spent, tree, machine = (b - a for a, b in zip(before, after, strict=True))
    others = (machine - tree) / elapsed - measured.client_load
    return Round(measured, spent * 1000 / max(1, measured.sent), max(0.0, others))


def _clocks(server: Server, front: list[int]) -> tuple[float, float, float]:
    """CPU seconds of the front, of all of the server, of the machine."""
    return processes.cpu_s(front), processes.cpu_s(server.pids()), processes.machine_cpu_s()


def _compare(servers: Sequence[Server], scenario: Scenario) -> str:
    """Whether all send the same bytes for one request, where they have to."""
    if not scenario.same_bytes or len(servers) < 2:
        return ""
    bodies = {
        client.get(server.port, server.target(scenario.project, scenario.first_query)).body
        for server in servers
    }
    return "" if len(bodies) == 1 else f"{scenario.title}: the servers send different pictures"
