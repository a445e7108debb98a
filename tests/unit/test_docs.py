"""The configuration page is made of the models and of etc/qgisd.toml: nothing is missing there."""

import importlib.util
import re
from pathlib import Path

from qgisd.config import Config
from qgisd.http.api import ROUTES
from qgisd.verbs import control

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "docs_configuration.py"
_spec = importlib.util.spec_from_file_location("docs_configuration", SCRIPT)
assert _spec is not None and _spec.loader is not None
docs = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(docs)


def test_every_key_is_on_the_page_with_its_default_and_why() -> None:
    told = docs.explanations(docs.EXAMPLE.read_text())
    page = "\n".join(docs.tables())
    for key, _ in docs.keys(Config()):
        value, why = told[key]
        assert why and f"| `{key.rpartition('.')[2]}` | `{value}` |" in page


def test_tables_have_a_heading_and_say_what_they_are_for() -> None:
    page = "\n".join(docs.tables())
    for table in ("http", "limits", "admin", "log", "daemon", "pool", "pool.projects", "pool.qgis"):
        assert f"## [{table}]" in page


def test_a_comment_goes_on_below_its_line() -> None:
    found = docs.explanations(
        '[a]   # all\nkey = "x"  # one\n      # two\n\n# far away\nother = 1\n'
    )
    assert found == {"a": ("", "all"), "a.key": ('"x"', "one two"), "a.other": ("1", "")}


def test_what_is_no_mark_stays() -> None:
    assert docs.on_page_markdown("# Title\n") == "# Title\n"
    assert "[pool.qgis]" in docs.on_page_markdown(f"# Title\n{docs.MARK}\n")


def test_verbs_that_are_told_of_exist() -> None:
    top = SCRIPT.parents[1]
    pages = [top / "README.md", top / "CHANGELOG.md", top / "CONTRIBUTING.md"]
    pages += [
        *(top / "docs").rglob("*.md"),
        *(top / "etc").rglob("*.*"),
        *(top / "systemd").iterdir(),
    ]
    told = {
        (page.name, verb)
        for page in pages
        if page.is_file()
        for verb in re.findall(r"qgisd ctl ([a-z][a-z-]+)", page.read_text())
    }
    assert len(told) > 20
    assert {(page, verb) for page, verb in told if verb not in control.commands} == set()


def test_paths_of_the_api_that_are_told_of_exist() -> None:
    page = (SCRIPT.parents[1] / "docs" / "api.md").read_text()
    told = set(re.findall(r"\$ADMIN(/[\w%./-]*)", page))
    assert len(told) > 12
    served = [re.sub(r"\{\w+\}", "[^/]+", template) for template, _ in ROUTES]
    assert [path for path in told if not any(re.fullmatch(one, path) for one in served)] == []
