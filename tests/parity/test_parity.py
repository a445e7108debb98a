"""Every source in every mode, answered by qgisd as a plain QgsServer answers it."""

import os
import random

import pytest

from tests.e2e.helpers import difference
from tests.parity.cases import CASES
from tests.parity.long import Subject, run
from tests.parity.runner import BY_NAME as MODE_BY_NAME
from tests.parity.runner import EXTENTS, LETTERS, MODES, SEED, Mode, Suite, ask, compare, hollow
from tests.parity.sources import BY_NAME, SOURCES, VARIANTS, Source

#: `make parity` asks everything in every mode.
WHOLE = bool(os.environ.get("PARITY_RESULTS"))
PAIRS = [
    pytest.param(
        mode,
        source,
        id=f"{mode.name}-{source.name}",
        marks=[pytest.mark.variant] if source.name in VARIANTS else [],
    )
    for mode in MODES
    for source in SOURCES
    if source.name not in mode.without
    if WHOLE or mode.name == "cold" or source.name not in VARIANTS
]


@pytest.mark.parametrize(("mode", "source"), PAIRS)
def test_the_answers_are_those_of_a_plain_server(suite: Suite, mode: Mode, source: Source) -> None:
    results = suite.results(mode, source)
    wrong = [f"{result.case.id}: {result.difference}" for result in results if result.difference]
    empty = [f"{result.case.id}: {result.hollow}" for result in results if result.hollow]
    assert not wrong, f"{len(wrong)} of {len(results)} differ:\n" + "\n".join(wrong)
    assert not empty, f"{len(empty)} of {len(results)} hold nothing:\n" + "\n".join(empty)


@pytest.mark.parametrize(
    ("cause", "name"), [(EXTENTS, "gpkg"), (LETTERS, "postgres-raster")], ids=["extents", "letters"]
)
def test_what_differs_by_the_order_differs_in_a_plain_server_too(
    suite: Suite, cause: str, name: str
) -> None:
    """What the mode `random` takes for a known difference is none of the fork's.

    A QGIS that does not know it (extents, from 3.40 on) must not have met it there either.
    """
    source = BY_NAME[name]
    before = suite.answers(source)
    other = suite.another_plain(f"other_{name.replace('-', '_')}")
    cases = [case for case in suite.cases(source) if not case.writes]
    random.Random(SEED).shuffle(cases)
    results = [
        compare(source, case, other.ask(source, case), before[case.id], shuffled=True)
        for case in cases
    ]
    assert not [result.case.id for result in results if result.difference]
    relied_on = [
        (*key, result.case.id)
        for key, found in suite.done().items()
        for result in found
        if result.cause == cause
    ]
    assert cause in {result.cause for result in results} or not relied_on, relied_on


@pytest.mark.parametrize("source", MODE_BY_NAME["random"].without)
def test_what_the_random_order_does_without_depends_on_the_order_in_a_plain_server_too(
    suite: Suite, source: str
) -> None:
    asked = BY_NAME[source]
    before, other = suite.answers(asked), suite.another_plain(source.replace("-", "_"))
    cases = [case for case in suite.cases(asked) if not case.writes]
    random.Random(SEED).shuffle(cases)
    assert any(difference(other.ask(asked, case), before[case.id]) for case in cases)


def test_answers_are_right_while_workers_are_killed(suite: Suite) -> None:
    """The bounded run of long.py."""
    sources = [BY_NAME[name] for name in ("shp", "gpkg", "csv", "postgres")]
    names = ("land", "spots")
    subjects = [
        Subject(
            one.map, suite.path(one, "killed"), names, names, names if one.name == "gpkg" else ()
        )
        for one in sources
    ]
    daemon = suite.another(MODE_BY_NAME["random"])
    # Over data that nobody has written to: an update moves a row of PostgreSQL to the end.
    plain = suite.another_plain("killed")
    outcome = run(daemon, subjects, lambda one, target: plain.get(one.path, target), 400, 25, 1)
    assert not outcome.wrong, outcome.wrong[:5]
    assert outcome.kills > 5
    # A killed worker's request is tried again; one whose head was out is cut off.
    assert outcome.right >= 400 - outcome.kills


@pytest.mark.parametrize("before", [(), ("map-filter", "write-insert-1.1")])
def test_a_feature_of_a_geopackage_is_changed_by_ogc_api(
    suite: Suite, before: tuple[str, ...]
) -> None:
    """The handler saves with a cursor open: with the journal kept that is "database is locked".

    Which it is, too, by a request before that kept it, in the same worker.
    """
    daemon = suite.another(MODE_BY_NAME["cold"])
    for name in before:
        (case,) = (case for case in CASES if case.id == name)
        answer, _ = ask(daemon, BY_NAME["gpkg"], case)
        assert answer.status == 200
    changes = [case for case in CASES if case.id in ("api-write-put", "api-write-patch")]
    for case in changes:
        answer, _ = ask(daemon, BY_NAME["gpkg"], case)
        assert not hollow(case, answer), hollow(case, answer)
    assert len(changes) == 2
