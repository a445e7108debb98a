#!/usr/bin/env python3
"""Write the table of metrics into docs/metrics.md, from what the daemon tells.

scripts/metrics-table.py            after a change to qgisd/http/metric_table.py
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from qgisd.http.metric_table import METRICS  # noqa: E402

PAGE = ROOT / "docs" / "metrics.md"
BEGIN, END = "<!-- made by scripts/metrics-table.py -->", "<!-- end -->"


def table() -> str:
    """In Markdown, with its marks."""
    lines = [BEGIN, "", "| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(metric.labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n".join([*lines, "", END])


def page(before: str) -> str:
    """A page with the table as it is now."""
    head, _, rest = before.partition(BEGIN)
    return head + table() + rest.partition(END)[2]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
