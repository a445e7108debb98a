"""The configuration: TOML file, environment and secrets, validated whole, errors all at once.

Precedence: flags, environment, secrets, file, defaults. Unknown keys are errors. Sizes are
written "512MiB", times are seconds with the unit in the key. `etc/qgisd.toml` shows every key
with its default; a test keeps the two together.
"""

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

from qgisd import config_tree, secret_files
from qgisd.errors import ConfigError, Problem
from qgisd.words import RequestClass

DEFAULT_PATH = "/etc/qgisd/qgisd.toml"
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
#: Shortest token that is no joke.
_TOKEN = 16
_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i)?B\s*$")


def parse_size(value: object) -> object:
    """ "512MiB" → bytes. Raises ValueError for text that is not of this form."""
    if not isinstance(value, str):
        raise ValueError('a size is written with its unit, as in "512MiB"')
    match = _SIZE.match(value)
    if match is None:
        raise ValueError(f'{value!r} is not a size; write it as in "512MiB"')
    return int(float(match[1]) * _UNITS[(match[2] or "") + "B"])


Size = Annotated[int, BeforeValidator(parse_size)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of all tables of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


def _check_listen(value: str) -> str:
    if value.startswith("unix:"):
        if not value[5:].startswith("/"):
            raise ValueError('a Unix socket is written "unix:/absolute/path"')
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError('write it as "127.0.0.1:7080" or "unix:/run/qgisd/http.sock"')
    return value


def _split(value: object) -> object:
    """Secrets come as text: one token a line."""
    return value.split() if isinstance(value, str) else value


def _check_token(value: SecretStr) -> SecretStr:
    token = value.get_secret_value()
    if len(token) < _TOKEN or not token.isascii() or any(each <= " " for each in token):
        raise ValueError(
            f"a token is at least {_TOKEN} ASCII characters without spaces, as from "
            "`openssl rand -hex 32`"
        )
    return value


def _check_optional(value: SecretStr) -> SecretStr:
    return _check_token(value) if value.get_secret_value() else value


Token = Annotated[SecretStr, AfterValidator(_check_token)]
Tokens = Annotated[list[Token], BeforeValidator(_split)]
OptionalToken = Annotated[SecretStr, AfterValidator(_check_optional)]
Listen = Annotated[str, BeforeValidator(lambda value: _check_listen(str(value)))]


class Http(Section):
    """The public listener."""

    listen: Listen = "127.0.0.1:7080"
    #: Peers whose X-Forwarded-*, X-Qgis-*, X-Lizmap-* and X-Request-Id are believed.
    trusted_proxies: list[str] = ["127.0.0.1", "::1", "unix"]
    max_body: Size = "16MiB"  # type: ignore[assignment]
    max_url: Size = "64KiB"  # type: ignore[assignment]
    cors_origins: list[str] = ["*"]
    buffer: Size = "1MiB"  # type: ignore[assignment]
    spool: Size = "512MiB"  # type: ignore[assignment]
    client_timeout_s: Seconds = 60
    apis: list[str] = []
    #: "" means one of this daemon's own.
    nesting_token: OptionalToken = SecretStr("")


class RequestLimits(Section):
    """What one request may ask for; 0 means no limit."""

    pixels: Annotated[int, Field(ge=0)] = 64_000_000
    dpi: Annotated[int, Field(ge=0)] = 600
    layers: Annotated[int, Field(ge=0)] = 500
    features: Annotated[int, Field(ge=0)] = 0
    external_sld: bool = False
    external_wms: bool = False


class Admin(Section):
    """The listener of `ctl`, REST and metrics."""

    listen: Listen = "unix:/run/qgisd/admin.sock"
    #: Over TCP: who may do all, and who may look.
    tokens: Tokens = []
    read_tokens: Tokens = []
    #: Over a Unix socket, besides root and the daemon's own user: names or numbers.
    users: list[str] = []
    groups: list[str] = []
    read_users: list[str] = []
    read_groups: list[str] = []
    #: Names under which it may be asked, besides localhost and addresses.
    hosts: list[str] = []


class Log(Section):
    """The log, on standard error or in the journal."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "text", "json", "journald"] = "auto"


class Metrics(Section):
    """What /metrics tells of single projects: of those with the most requests, of all, of none."""

    projects: Literal["top", "all", "off"] = "top"
    top: Count = 20


class Daemon(Section):
    """The process itself."""

    #: "" means $RUNTIME_DIRECTORY, or a fresh temporary folder.
    runtime_dir: str = ""
    #: Files with values of keys, beside those of $CREDENTIALS_DIRECTORY; "" for none.
    secrets_dir: str = ""
    shutdown_timeout_s: Seconds = 30


class Projects(Section):
    """Which projects a pool serves."""

    roots: dict[str, str] = {"/": "/srv/qgis"}
    pinned: list[str] = []
    on_demand: bool = True
    bad_layers: Literal["ignore", "strict"] = "ignore"
    check_interval_s: Seconds = 2
    watch_data: bool = True
    data_reload_s: Seconds = 30

    @field_validator("roots")
    @classmethod
    def _absolute(cls, value: dict[str, str]) -> dict[str, str]:
        for prefix, folder in value.items():
            if not prefix.startswith("/"):
                raise ValueError(f'the name of a root begins with "/": {prefix!r}')
            if not folder.startswith("/"):
                raise ValueError(f"a root is an absolute path: {folder!r}")
        return value


class Override(Section):
    """What differs for the projects that a pattern names; None means as in the pool."""

    workers: Count | None = None
    queue: Count | None = None
    request_timeout_s: Seconds | None = None


class Qgis(Section):
    """The environment of QGIS."""

    plugin_path: str = ""
    plugins: list[str] = []
    required_plugins: list[str] = []
    py_qgis_server: bool = False
    network_timeout_s: Seconds = 10
    log_level: Literal["critical", "warning", "info"] = "warning"
    env: dict[str, str] = {}


class Pool(Section):
    """A zygote and all under it. [pools.NAME] overrides any of these keys of [pool]."""

    route: str = ""
    backend: Literal["qgis", "fake"] = "qgis"
    workers: Count = 4
    project_workers: Annotated[int, Field(ge=0)] = 0
    print_workers: Count = 2
    lend_after_s: Seconds = 1
    lent_workers: Annotated[int, Field(ge=0)] = 0
    max_loads: Annotated[int, Field(ge=0)] = 0
    memory: Size = "4GiB"  # type: ignore[assignment]
    worker_memory: Size = "512MiB"  # type: ignore[assignment]
    memory_interval_s: Seconds = 5
    cache: Size = "64MiB"  # type: ignore[assignment]
    max_requests: Annotated[int, Field(ge=0)] = 0
    breaker_failures: Count = 5
    breaker_window_s: Seconds = 60
    breaker_pause_s: Seconds = 10
    slow_s: Seconds = 3
    class_slow_s: dict[RequestClass, Seconds] = {}
    native_stacks: bool = False
    queue: Count = 200
    project_queue: Count = 50
    request_timeout_s: Seconds = 20
    print_timeout_s: Seconds = 120
    class_timeouts_s: dict[RequestClass, Seconds] = {}
    stream_timeout_s: Seconds = 20
    zygote_timeout_s: Seconds = 120
    load_timeout_s: Seconds = 600
    boot_timeout_s: Seconds = 10
    stop_timeout_s: Seconds = 5
    quiesce_s: Seconds = 2
    disconnect_grace_s: Annotated[float, Field(ge=0)] = 1
    idle_worker_s: Seconds = 60
    ping_interval_s: Seconds = 10
    ping_timeout_s: Seconds = 5
    backoff_limit_s: Seconds = 60
    snapshot: bool = True
    warmup: Literal["off", "capabilities", "map"] = "map"
    warmup_s: Seconds = 6
    #: Pattern of project keys, as in "tenant/*" → what differs; the first that fits counts.
    overrides: dict[str, Override] = {}
    restart_file: str = ""
    projects: Projects = Projects()
    qgis: Qgis = Qgis()

    @field_validator("restart_file")
    @classmethod
    def _restart_file(cls, value: str) -> str:
        if value and not value.startswith("/"):
            raise ValueError(f'an absolute path, or "" for none: {value!r}')
        return value

    @field_validator("route")
    @classmethod
    def _route(cls, value: str) -> str:
        if value and not re.fullmatch(r"(/[A-Za-z0-9_.-]+)+", value):
            raise ValueError('a route is a path such as "/tenant", or "" for none')
        return value


class Config(Section):
    """All of it."""

    http: Http = Http()
    limits: RequestLimits = RequestLimits()
    admin: Admin = Admin()
    log: Log = Log()
    metrics: Metrics = Metrics()
    daemon: Daemon = Daemon()
    pool: Pool = Pool()
    pools: dict[str, Pool] = {}

    def all_pools(self) -> dict[str, Pool]:
        """Name → pool: those of [pools.*], or the one [pool] by the name "default"."""
        return self.pools or {"default": self.pool}


@dataclass(frozen=True)
class Loaded:
    """The configuration, and where each value that is no default came from."""

    config: Config
    #: Dotted key → "file …", "secret …", "environment QGISD_…" or "flag".
    sources: dict[str, str]


def load(
    path: Path | None,
    environment: Mapping[str, str],
    flags: Mapping[str, Any] | None = None,
    forgiving: bool = False,
) -> Loaded:
    """Read, merge and validate. Raises ConfigError with every problem there is.

    path: the file, or None for the default one if it is there.
    flags: dotted key → value, from the command line.
    forgiving: secrets that this user may not read are left out.
    """
    problems: list[Problem] = []
    sources: dict[str, str] = {}
    tree: dict[str, Any] = {}
    if path is None and Path(DEFAULT_PATH).exists():
        path = Path(DEFAULT_PATH)
    if path is not None:
        tree = config_tree.read(path, problems)
        for key in config_tree.leaves(tree):
            sources[key] = f"file {path}"
    given_by = [
        (f"environment {name}", key, text)
        for name, text in sorted(environment.items())
        if (key := secret_files.key_of_variable(name))
    ]
    secrets = []
    secrets_dir = config_tree.secrets_dir(tree, environment, flags or {})
    for folder in secret_files.folders(environment, secrets_dir):
        secrets += secret_files.read(folder, Config.model_fields, problems, forgiving)
    given_by = [(f"secret {one.path}", one.key, one.text) for one in secrets] + given_by
    for source, key, text in given_by:
        config_tree.put(tree, key, config_tree.from_text(text), problems, source)
        sources[key] = source
    for key, value in (flags or {}).items():
        config_tree.put(tree, key, value, problems, "flag")
        sources[key] = "flag"
    config_tree.inherit(tree)
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        for detail in error.errors():
            problem = _problem(detail, sources, path)
            if problem not in problems:  # once, not for each pool that inherits it
                problems.append(problem)
        raise ConfigError(problems) from None
    if not forgiving:  # what was left out may be what is missing
        problems += _contradictions(config, path)
    if problems:
        raise ConfigError(problems)
    return Loaded(config, sources)


def _problem(detail: Any, sources: dict[str, str], path: Path | None) -> Problem:
    key = ".".join(str(part) for part in detail["loc"])
    inherited = re.sub(r"^pools\.[^.]+\.", "pool.", key)
    if key not in sources and inherited in sources:
        key = inherited
    above = (key.rsplit(".", count)[0] for count in range(key.count(".") + 1))
    where = next((sources[one] for one in above if one in sources), None)
    where = where or (f"file {path}" if path else "defaults")
    if detail["type"] == "extra_forbidden":
        return Problem(f"{where}, {key}", "there is no such key")
    message = detail["msg"].removeprefix("Value error, ")
    if secret_files.is_secret(key, sources) and str(detail["input"]) in message:
        message = "does not fit this key"
    return Problem(f"{where}, {key}", message)


def _contradictions(config: Config, path: Path | None) -> list[Problem]:
    """What each key allows by itself, but not together."""
    where = f"file {path}" if path else "defaults"
    problems = []
    routes: dict[str, str] = {}
    for name, pool in config.all_pools().items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            problems.append(Problem(f"{where}, pools.{name}", "letters, digits, - and _ only"))
        if pool.route in routes:
            problems.append(
                Problem(
                    f"{where}, pools.{name}.route",
                    f"pool {routes[pool.route]!r} has the same route {pool.route!r}",
                )
            )
        routes[pool.route] = name
        if pool.project_workers > pool.workers:
            problems.append(
                Problem(f"{where}, pools.{name}.project_workers", "is more than workers")
            )
        left_out = set(pool.qgis.required_plugins) - set(pool.qgis.plugins)
        if pool.qgis.plugins and left_out:
            problems.append(
                Problem(
                    f"{where}, pools.{name}.qgis.required_plugins",
                    f"names what plugins leaves out: {', '.join(sorted(left_out))}",
                )
            )
    if config.http.listen == config.admin.listen:
        problems.append(Problem(f"{where}, admin.listen", "is the same as http.listen"))
    admin = config.admin
    if not admin.listen.startswith("unix:") and not (admin.tokens or admin.read_tokens):
        problems.append(
            Problem(
                f"{where}, admin.listen",
                "on TCP only a token tells who asks: set admin.tokens, or use a Unix socket",
            )
        )
    return problems


def runtime_dir(config: Config, environment: Mapping[str, str]) -> tuple[Path, bool]:
    """The folder for sockets and profiles, and whether it is ours to remove at the end."""
    given = config.daemon.runtime_dir or environment.get("RUNTIME_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given), False
    return Path(tempfile.mkdtemp(prefix="qgisd-", dir=environment.get("XDG_RUNTIME_DIR"))), True


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0))
