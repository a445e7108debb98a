"""`python -m bench`: start the servers, measure, write the page."""

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path

from bench import alone, faults, first_answer, processes, projects, report, throughput
from bench.processes import log
from bench.servers import ALL, Qgisd, Server, versions
from bench.work import Scenario, scenarios

WORKERS = 2
MANY_WORKERS = 8
_NEEDED = ("nginx", "multiwatch", "spawn-fcgi", "setpriv", "bash")


def main() -> int:
    """The command line."""
    options = _options()
    # nginx is in /usr/sbin, which is not on everybody's path.
    os.environ["PATH"] += os.pathsep + "/usr/sbin"
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"bench needs {', '.join(missing)}: scripts/system-packages bench")
    if not (options.shared / "bench" / "run_fcgi.sh").exists():
        raise SystemExit(f"{options.shared} has no bench/run_fcgi.sh; --shared says where it is")
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        section = _run(options)
    except KeyboardInterrupt:
        log("stopped")
        return 130
    finally:
        processes.end_all()
    print(section)
    if options.out is not None:
        report.write(options.out, section)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [scenario.name for scenario in scenarios([])] + [
        "kill",
        "scale",
        "first-answer",
        "faults",
    ]
    parser.add_argument("--quick", action="store_true", help="one short round: plausible, no more")
    parser.add_argument("--only", nargs="+", choices=names, metavar="SCENARIO",
                        help=", ".join(names))  # fmt: skip
    parser.add_argument("--servers", nargs="+", choices=[each.name for each in ALL],
                        default=[each.name for each in ALL])  # fmt: skip
    parser.add_argument("--rounds", type=int, help="default 3")
    parser.add_argument("--seconds", type=float, help="of each load; default 3")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    parser.add_argument("--cache", type=Path, help="projects and py-qgis-server; kept",
                        default=Path.home() / ".cache" / "qgisd-bench")  # fmt: skip
    parser.add_argument("--out", type=Path, help="page to write; default docs/performance.md, "
                        "or none with --quick, --only or --servers")  # fmt: skip
    options = parser.parse_args()
    whole = not options.quick and not options.only and len(options.servers) == len(ALL)
    options.rounds = options.rounds or (1 if options.quick else 3)
    options.seconds = options.seconds or (1.0 if options.quick else 3.0)
    options.out = options.out or (Path("docs/performance.md") if whole else None)
    options.only = options.only or names
    options.shared = options.shared.resolve()
    options.cache = options.cache.resolve()
    options.command = _command(options, whole)
    return options


def _command(options: argparse.Namespace, whole: bool) -> str:
    """The command as another machine would give it: without paths."""
    words = ["python -m bench", f"--rounds {options.rounds}", f"--seconds {options.seconds:g}"]
    if not whole:
        words += [f"--only {' '.join(options.only)}", f"--servers {' '.join(options.servers)}"]
    return " ".join(words)


def _run(options: argparse.Namespace) -> str:
    folder = projects.make(options.shared, options.cache)
    places = options.shared, options.cache, folder
    kinds = [kind for kind in ALL if kind.name in options.servers]
    chosen = [
        scenario
        for scenario in scenarios(projects.feature_ids(folder))
        if scenario.name in options.only
    ]
    loads = os.getloadavg()[0]
    cells: list[throughput.Cell] = []
    remarks: list[str] = []
    if chosen:
        servers: list[Server] = [kind(*places, WORKERS) for kind in kinds]
        cells, remarks = _throughput(servers, chosen, options)
    killed: dict[str, alone.Killed] = {}
    if "kill" in options.only:
        runs = 1 if options.quick else 2
        for kind in kinds:
            killed[kind.name] = alone.kill(kind(*places, WORKERS), runs, options.seconds)
    scaled = None
    if "scale" in options.only and Qgisd in kinds:
        scaled = alone.scale(Qgisd(*places, MANY_WORKERS), options.seconds)
    firsts = []
    if "first-answer" in options.only and Qgisd in kinds:
        forks = 5 if options.quick else first_answer.FORKS
        firsts = [
            first_answer.run(first_answer.Warmed(*places, 1), level, forks)
            for level in first_answer.LEVELS
        ]
    facts = versions(options.cache) | {"load average at the start": f"{loads:.2f}"}
    section = report.render(options.command, facts, WORKERS, cells, remarks, killed, scaled, firsts)
    if "faults" in options.only:
        names = [kind.name for kind in kinds]
        found = faults.run(names, *places, WORKERS, options.quick)
        section += "\n\n" + faults.render(found, {kind.name: kind.title for kind in kinds})
    return section


def _throughput(
    servers: list[Server], chosen: list[Scenario], options: argparse.Namespace
) -> tuple[list[throughput.Cell], list[str]]:
    try:
        for server in servers:
            log(f"{server.name}: starts")
            server.start()
        return throughput.run(servers, chosen, options.rounds, options.seconds)
    finally:
        for server in servers:
            server.stop()


if __name__ == "__main__":
    sys.exit(main())
