"""The page of the parity suite: made of what was kept, and a difference shows in it."""

from pathlib import Path

from tests.parity import table
from tests.parity.cases import CASES, cases_of
from tests.parity.runner import Result
from tests.parity.sources import SOURCES


def test_the_page_is_made_of_the_kept_results() -> None:
    assert table.PAGE.read_text() == table.page(table.kept_versions())


def test_a_difference_shows_with_its_cause(tmp_path: Path) -> None:
    same, other, named = CASES[0], CASES[1], CASES[2]
    results = [
        Result(same, "", ""),
        Result(other, "bytes", ""),
        Result(named, "", "", cause="on purpose"),
    ]
    table.keep(tmp_path, "3.22.16", {("cold", "gpkg"): results})
    table.keep(tmp_path, "3.22.16", {("loaded", "gpkg"): results[:1]})
    (kept,) = table.kept_versions(tmp_path)
    text = table.page([kept])
    assert "| gpkg | 1/3 C, 1 L |" in text
    assert "| not explained | 1 | gpkg |" in text
    assert "| on purpose | 1 | gpkg |" in text


def test_every_case_is_asked_of_some_source_and_named_once() -> None:
    asked = {case.id for source in SOURCES for case in cases_of(source)}
    assert asked == {case.id for case in CASES}
    assert len({case.id for case in CASES}) == len(CASES)
