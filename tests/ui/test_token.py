"""The page on a TCP listener, where the API wants a token."""

from collections.abc import Iterator

import pytest

from tests.support import eventually, free_port, marked, start_daemon, write_fake_project
from tests.ui.browser import Browser, browser

ADMIN, READER = "a" * 20, "r" * 20


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the admin listener is; the fake backend will do, as no map is looked at."""
    root = tmp_path_factory.mktemp("projects")
    write_fake_project(root / "a.qgs", text="hello")
    address = f"127.0.0.1:{free_port()}"
    daemon = start_daemon(
        tmp_path_factory.mktemp("daemon"),
        root,
        projects='pinned = ["a"]',
        environment={
            "QGISD_ADMIN__LISTEN": address,
            "QGISD_ADMIN__TOKENS": f'["{ADMIN}"]',
            "QGISD_ADMIN__READ_TOKENS": f'["{READER}"]',
        },
    )
    yield address
    daemon.stop()
    eventually(lambda: not marked(daemon.mark), timeout=5)


@pytest.fixture(scope="module")
def page(address: str, programs: tuple[str, str]) -> Iterator[Browser]:
    with browser(f"http://{address}", *programs) as opened:
        yield opened


def enter(page: Browser, token: str) -> None:
    page.sees("This listener wants a token")
    (field,) = page.all("input")
    assert field.accessible_name == "Token"
    field.send_keys(token)
    page.press("Go on")


def test_a_token_is_asked_for_and_kept_in_the_tab(page: Browser) -> None:
    page.open()
    enter(page, "wrong" * 5)
    enter(page, ADMIN)  # asked again
    page.sees("live", "#line")
    page.sees("a.qgs", "main")
    page.press("Reload all …")
    page.press("Reload all", "dialog")
    page.sees("a.qgs: ", "#notices")
    page.open()
    page.sees("a.qgs", "main")
    assert page.run("return Object.keys(localStorage).length + document.cookie.length") == 0
    assert not [entry for entry in page.complaints() if "401" not in entry]


def test_who_may_only_look_gets_no_buttons(page: Browser) -> None:
    page.driver.get("about:blank")
    page.driver.get(f"{page.base}/ui/icon.svg")
    page.run("sessionStorage.clear()")
    page.open()
    enter(page, READER)
    page.sees("you may look, not act")
    page.sees("a.qgs", "main")
    buttons = [one for one in page.all("main button") if one.is_displayed()]
    assert len(buttons) >= 3
    assert not any(one.is_enabled() for one in buttons)
    assert "read" in str(buttons[0].get_attribute("title"))
