"""Figures into Markdown, between two marks of a page whose other text stays."""

from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median

from bench import first_answer
from bench.alone import CONNECTIONS, Killed, Scaled
from bench.servers import ALL
from bench.throughput import Cell, Round

BEGIN = "<!-- bench: begin. What stands up to the end mark is written by `python -m bench`. -->"
END = "<!-- bench: end -->"
_TITLES = {server.name: server.title for server in ALL}
#: Above this share of a core, the client may have been what was measured.
_BUSY_CLIENT = 0.7

INTRO = f"""# Performance

qgisd beside its peers on the same work: QGIS's own FCGI server behind nginx, and py-qgis-server.
All three run the same QGIS on the same machine with the same number of workers; `make bench`
starts them, checks every answer and writes the tables below.

How to read them: machines differ and are noisy, so the absolute figures say little. The servers
are asked in turn within each round, so a disturbance meets all of them, and what counts are the
**ratios**: the median over the rounds of (this server / that server) in the same round. Above 1
is faster. Behind each rate stands its smallest and largest round; ratios of servers whose spreads
overlap widely mean little.

{BEGIN}
{END}
"""

_NOTES = """\
Loads are closed loops over loopback, keep-alive, on the same cores as the servers. qgisd and
py-qgis-server are asked directly, FCGI through its nginx. All log errors only (qgisd: warnings).
Maps are of random places, so that hardly any is asked for twice. An answer that is not whole and
right (status, type, PNG to its end, root element, number of features) is counted as failed and
not in the rate. "front" is CPU time, user and system, of the processes between client and
workers, per request: qgisd's daemon; nginx; py-qgis-server's HTTP process and broker."""


def write(path: Path, section: str) -> None:
    """Put `section` between the marks of the page, which is made if it is not there."""
    text = path.read_text() if path.exists() else INTRO
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{path} has no bench marks; add these two lines:\n{BEGIN}\n{END}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}{BEGIN}\n\n{section.strip()}\n\n{END}{tail}")


def render(
    command: str,
    versions: Mapping[str, str],
    workers: int,
    cells: Sequence[Cell],
    remarks: Sequence[str],
    killed: Mapping[str, Killed],
    scaled: Scaled | None,
    firsts: Sequence[first_answer.First] = (),
) -> str:
    """The whole section."""
    facts = ", ".join(f"{name} {value}" for name, value in versions.items())
    parts = [f"`{command}`, {workers} workers each. {facts}.", _NOTES, *_quiet(cells)]
    for _, group in groupby(cells, key=lambda cell: cell.scenario.name):
        parts.append(_throughput(list(group)))
    if killed:
        parts.append(_kill(killed))
    if scaled is not None:
        parts.append(_scale(scaled))
    if firsts:
        parts.append(_firsts(firsts))
    parts += [f"Noticed: {remark}." for remark in remarks]
    return "\n\n".join(parts)


def ratio(cell: Cell, of: str, to: str) -> float | None:
    """Median over the rounds of rate / rate in the same round."""
    ours, theirs = cell.rounds.get(of, []), cell.rounds.get(to, [])
    pairs = [
        one.measured.rate / other.measured.rate
        for one, other in zip(ours, theirs, strict=False)
        if other.measured.rate
    ]
    return median(pairs) if pairs and of != to else None


def _throughput(cells: Sequence[Cell]) -> str:
    scenario = cells[0].scenario
    rows = []
    for cell in cells:
        for name, rounds in cell.rounds.items():
            rates = [one.measured.rate for one in rounds]
            failed = sum(one.measured.failed for one in rounds)
            sent = sum(one.measured.sent for one in rounds)
            rows.append(
                [
                    str(cell.connections),
                    _TITLES[name],
                    f"{_figure(median(rates))} ({_figure(min(rates))}–{_figure(max(rates))})",
                    _of(rounds, lambda one: one.measured.percentile(0.5), 1),
                    _of(rounds, lambda one: one.measured.percentile(0.99), 1),
                    _of(rounds, lambda one: one.front_ms, 2),
                    f"{failed} of {sent:,}" if failed else "0",
                    _times(ratio(cell, name, "fcgi")),
                    _times(ratio(cell, name, "v1")),
                ]
            )
    header = ["connections", "server", "req/s (min–max)", "p50 ms", "p99 ms", "front ms", "failed",
              "to FCGI", "to py-qgis-server"]  # fmt: skip
    remarks = _failures(cells) + _busy(cells)
    return "\n\n".join(
        [f"### {scenario.title}\n\n{scenario.about}", _table(header, rows), *remarks]
    )


def _failures(cells: Sequence[Cell]) -> list[str]:
    found: dict[str, dict[str, int]] = {}
    for cell in cells:
        for name, rounds in cell.rounds.items():
            for one in rounds:
                for what, count in one.measured.failures.items():
                    whats = found.setdefault(name, {})
                    whats[what] = whats.get(what, 0) + count
    return [
        f"Failed with {_TITLES[name]}: "
        + "; ".join(f"{what} ({count})" for what, count in sorted(whats.items())[:8])
        + "."
        for name, whats in found.items()
    ]


def _busy(cells: Sequence[Cell]) -> list[str]:
    most = max(one.measured.client_load for cell in cells for one in _all(cell))
    if most < _BUSY_CLIENT:
        return []
    return [f"The client itself used up to {most:.0%} of a core here: read ratios near 1 as 1."]


def _quiet(cells: Sequence[Cell]) -> list[str]:
    """How much else the machine did meanwhile."""
    others = [one.others for cell in cells for one in _all(cell)]
    if not others:
        return []
    return [
        "Meanwhile other processes, the idle servers included, kept "
        f"{median(others):.2f} cores busy (median of the loads; at most {max(others):.2f})."
    ]


def _all(cell: Cell) -> list[Round]:
    return [one for rounds in cell.rounds.values() for one in rounds]


def _kill(killed: Mapping[str, Killed]) -> str:
    rows = []
    for name, found in killed.items():
        before = [run["rate_before"] for run in found.runs]
        after = [run["rate_after_10s"] for run in found.runs]
        kept = [b / a for a, b in zip(before, after, strict=True) if a]
        failed = sum(run["before"].get("failed", 0) + run["after"]["failed"] for run in found.runs)
        rows.append(
            [
                _TITLES[name],
                f"{median(before):.0f}",
                f"{max(run['after']['max_ms'] for run in found.runs):,.0f} ms",
                str(failed),
                f"{median(after):.0f}",
                f"{median(kept):.0%}" if kept else "–",
                f"{found.pss:,.0f} MiB",
            ]
        )
    header = ["server", "req/s before", "slowest request after it", "failed",
              "req/s in the 10 s after it", "of before", "PSS of all processes"]  # fmt: skip
    times = max(len(found.runs) for found in killed.values())
    about = (
        f"Heavy project, GetMap of 3 layers, {CONNECTIONS} connections, one worker killed with "
        f"SIGKILL ({times} x, a server at a time; the slowest of all, the median of the rates). "
        "PSS before the kill, after load."
    )
    return f"### A worker is killed\n\n{about}\n\n{_table(header, rows)}"


def _scale(scaled: Scaled) -> str:
    rows = [
        [
            f"{scaled.all_there_s:.2f} s",
            f"{scaled.all_served_s:.2f} s",
            f"{scaled.pss_before:,.0f} MiB",
            f"{scaled.pss:,.0f} MiB",
            str(scaled.failed),
        ]
    ]
    header = [f"until {scaled.workers} workers are there", "until each has answered",
              "PSS with 1 worker", f"PSS with {scaled.workers} workers", "failed"]  # fmt: skip
    about = (
        f"qgisd on the heavy project: {scaled.workers} requests at once, kept up, where one worker "
        "was enough before. PSS of all processes after load."
    )
    return f"### From 1 to {scaled.workers} workers\n\n{about}\n\n{_table(header, rows)}"


def _firsts(found: Sequence[first_answer.First]) -> str:
    header = ["warmup", "first answer: median (min–max)", "later ones", "ratio",
              "private memory after 7", "load", "what was done"]  # fmt: skip
    about = (
        "qgisd on the heavy project, GetMap of 3 layers: the first answer of "
        f"{len(found[0].firsts)} workers, each forked a moment before and "
        "alone, and those that it gives after that."
    )
    return (
        f"### The first answer of a fork\n\n{about}\n\n{_table(header, first_answer.rows(found))}"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _of(rounds: Sequence[Round], value: Callable[[Round], float], digits: int) -> str:
    return f"{median(value(one) for one in rounds):.{digits}f}"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def _times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
