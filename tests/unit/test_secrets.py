"""Secrets in files: their names, their place in the precedence, and that nobody sees them."""

import json
from pathlib import Path

import pytest

from qgisd import config, secret_files
from qgisd.daemon import describe
from qgisd.errors import ConfigError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for secrets."""
    made = tmp_path / "secrets"
    made.mkdir()
    return made


def load(folder: Path, text: str = "", **environment: str) -> config.Loaded:
    """The configuration of `text`, with that folder as systemd's."""
    file = folder.parent / "qgisd.toml"
    file.write_text(text)
    return config.load(file, {"CREDENTIALS_DIRECTORY": str(folder)} | environment)


@pytest.mark.parametrize(
    "name",
    [
        "pool.qgis.plugin_path",
        "QGISD_POOL__QGIS__PLUGIN_PATH",
        "secrets_pool.qgis.plugin_path",  # of LoadCredential=secrets:FOLDER
        "secrets_QGISD_POOL__QGIS__PLUGIN_PATH",
    ],
)
def test_a_secret_is_named_by_its_key_or_its_variable(folder: Path, name: str) -> None:
    (folder / name).write_text("/plugins\n")
    loaded = load(folder)
    assert loaded.config.pool.qgis.plugin_path == "/plugins"
    assert loaded.sources == {"pool.qgis.plugin_path": f"secret {folder / name}"}


@pytest.mark.parametrize("text", ["12345", "true", "1e5", "with space", "a=b # c", "[not toml", ""])
def test_a_secret_that_looks_like_something_else_stays_a_text(folder: Path, text: str) -> None:
    (folder / "pool.qgis.env.PGPASSWORD").write_text(text + "\n")
    assert load(folder).config.pool.qgis.env == {"PGPASSWORD": text}


def test_numbers_lists_and_sizes_may_come_from_files_too(folder: Path) -> None:
    (folder / "pool.workers").write_text("7")
    (folder / "http.trusted_proxies").write_text('["10.0.0.1"]\n')
    (folder / "pool.memory").write_text("1GiB\n")
    found = load(folder).config
    assert found.pool.workers == 7
    assert found.http.trusted_proxies == ["10.0.0.1"]
    assert found.pool.memory == 1 << 30


def test_flags_and_environment_come_before_secrets_and_those_before_the_file(folder: Path) -> None:
    (folder / "pool.workers").write_text("7")
    text = "[pool]\nworkers = 2\n"
    assert load(folder, text).config.pool.workers == 7
    other = load(folder, text, QGISD_POOL__WORKERS="5")
    assert other.config.pool.workers == 5
    assert other.sources["pool.workers"] == "environment QGISD_POOL__WORKERS"
    environment = {"CREDENTIALS_DIRECTORY": str(folder)}
    assert config.load(None, environment, {"pool.workers": 3}).config.pool.workers == 3


def test_a_folder_of_our_own_counts_less_than_that_of_systemd(folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    for one, workers in ((own, "3"), (folder, "4")):
        (one / "pool.workers").write_text(workers)
    (own / "pool.queue").write_text("9")
    text = f'[daemon]\nsecrets_dir = "{own}"\n'
    found = load(folder, text).config.pool
    assert (found.workers, found.queue) == (4, 9)
    from_environment = config.load(None, {"QGISD_DAEMON__SECRETS_DIR": str(own)})
    assert from_environment.config.pool.workers == 3


def test_other_files_are_not_for_us(folder: Path) -> None:
    for name in ("db_password", "tls.key", ".hidden", "QGISD_NOTHING", "pool"):
        (folder / name).write_text("x")
    (folder / "..2026_01_01").mkdir()
    (folder / "..2026_01_01" / "pool.workers").write_text("6")
    # As Kubernetes mounts them: links into a folder with a date.
    (folder / "pool.workers").symlink_to(folder / "..2026_01_01" / "pool.workers")
    loaded = load(folder)
    assert list(loaded.sources) == ["pool.workers"]
    assert loaded.config.pool.workers == 6


def test_a_secret_of_no_key_is_an_error_with_its_file(folder: Path) -> None:
    (folder / "admin.tokn").write_text("s3cret-value")
    with pytest.raises(ConfigError) as refusal:
        load(folder)
    assert f"secret {folder}/admin.tokn, admin.tokn: there is no such key" in str(refusal.value)
    assert "s3cret-value" not in str(refusal.value)


@pytest.mark.parametrize("key", ["http.listen", "http.max_body", "pool.workers", "log.level"])
def test_errors_do_not_quote_a_secret(folder: Path, key: str) -> None:
    (folder / key).write_text("s3cret-value")
    with pytest.raises(ConfigError) as refusal:
        load(folder)
    assert key in str(refusal.value)
    assert "s3cret-value" not in str(refusal.value)


def test_the_configuration_that_is_shown_has_no_secrets(folder: Path) -> None:
    (folder / "pool.qgis.plugin_path").write_text("s3cret-one")
    (folder / "http.cors_origins").write_text('["s3cret-two"]')
    (folder / "pool.qgis.env").write_text('{ PGPASSWORD = "s3cret-three" }')
    loaded = load(folder, '[pools.one]\nroute = ""\n[pools.two]\nroute = "/two"\n')
    assert loaded.config.pools["two"].qgis.env == {"PGPASSWORD": "s3cret-three"}
    shown = describe(loaded)
    assert "s3cret" not in json.dumps(shown)
    assert shown["config"]["pools"]["two"]["qgis"]["plugin_path"] == "***"  # type: ignore[index]
    assert shown["sources"]["pool.qgis.plugin_path"].startswith("secret ")  # type: ignore[index]
    assert shown["config"]["http"]["listen"] == "127.0.0.1:7080"  # type: ignore[index]


def test_the_record_of_a_secret_does_not_show_it(folder: Path) -> None:
    (folder / "pool.qgis.plugin_path").write_text("s3cret-value")
    (found,) = secret_files.read(folder, ["pool"], [], forgiving=False)
    assert found.text == "s3cret-value"
    assert "s3cret" not in f"{found} {found!r}"


def test_what_cannot_be_read_is_a_problem_but_not_for_ctl(folder: Path) -> None:
    (folder / "pool.queue").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError) as refusal:
        load(folder, f'[daemon]\nsecrets_dir = "{folder}/missing"\n')
    text = str(refusal.value)
    assert "missing: cannot be read: No such file or directory" in text
    assert "pool.queue: is not text" in text


def test_a_secret_that_this_user_may_not_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "pool.workers").write_text("7")

    def refuse(self: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)  # root may read everything
    environment = {"CREDENTIALS_DIRECTORY": str(folder)}
    with pytest.raises(ConfigError) as refusal:
        config.load(None, environment)
    assert f"{folder}: cannot be read: Permission denied" in str(refusal.value)
    assert config.load(None, environment, forgiving=True).config.pool.workers == 4


def test_a_file_that_is_too_long_is_no_secret(folder: Path) -> None:
    (folder / "pool.qgis.plugin_path").write_text("x" * 70_000)
    with pytest.raises(ConfigError) as refusal:
        load(folder)
    assert "is over 65536 bytes" in str(refusal.value)


def test_tokens_of_the_admin_listener_come_from_a_secret(folder: Path) -> None:
    token = "0123456789abcdef" * 4
    (folder / "admin.tokens").write_text(f"{token}\n{token[::-1]}\n")
    loaded = load(folder, '[admin]\nlisten = "127.0.0.1:7081"\n')
    assert [one.get_secret_value() for one in loaded.config.admin.tokens] == [token, token[::-1]]
    assert token not in json.dumps(describe(loaded))
    (folder / "admin.tokens").write_text("s3cret")
    with pytest.raises(ConfigError) as refusal:
        load(folder)
    assert f"secret {folder}/admin.tokens, admin.tokens.0: a token is at least" in str(
        refusal.value
    )
    assert "s3cret" not in str(refusal.value)
