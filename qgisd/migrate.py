"""`qgisd migrate`: from the configuration of py-qgis-server to one of qgisd. Pure but for `read`.

Every key of py-qgis-server 1.9 (its config.py) is in one of two tables: MOVED, with what it
becomes, or GONE, with what takes its place. Whatever cannot be carried over is said; nothing is
left out silently.
"""

import configparser
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qgisd.errors import ConfigError, Problem

#: Section and key of py-qgis-server.
Key = tuple[str, str]


@dataclass
class Translation:
    """What became of a configuration: dotted key → value, and what somebody must read."""

    values: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def toml(self) -> str:
        """A file that qgisd reads, remarks first."""
        lines = [f"# {line}" for remark in self.remarks for line in remark.splitlines()]
        tables: dict[str, list[str]] = {}
        for key, value in self.values.items():
            table, _, name = key.rpartition(".")
            tables.setdefault(table, []).append(f"{name} = {_toml(value)}")
        for table in sorted(tables):
            lines += ["", f"[{table}]", *tables[table]]
        return "\n".join(lines).lstrip("\n") + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(k)} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # Of text, numbers, true and false JSON and TOML have the same spelling.
    return json.dumps(value, ensure_ascii=False)


def _yes(text: str) -> bool:
    known = configparser.ConfigParser.BOOLEAN_STATES
    if text.lower() not in known:
        raise ValueError(f"{text!r} is neither yes nor no")
    return known[text.lower()]


def _positive(text: str) -> int | None:
    return int(text) if int(text) > 0 else None


def _path(text: str) -> str | None:
    if text and not text.startswith("/"):
        raise ValueError(f"{text!r} is not an absolute path")
    return text or None


def _level(text: str) -> str:
    level = text.lower()
    return {"critical": "error", "warn": "warning", "req": "info", "rreq": "info"}.get(level, level)


def _flag(text: str) -> str | None:
    return "1" if _yes(text) else None


#: Key → where it goes, and how its value is read; None for a value that says nothing.
MOVED: dict[Key, tuple[str, Callable[[str], Any]]] = {
    ("server", "workers"): ("pool.workers", int),
    ("server", "timeout"): ("pool.request_timeout_s", int),
    ("server", "cross_origin"): ("http.cors_origins", lambda text: ["*"] if _yes(text) else []),
    ("server", "getfeaturelimit"): ("limits.features", _positive),
    ("server", "pluginpath"): ("pool.qgis.plugin_path", str),
    ("server", "restartmon"): ("pool.restart_file", _path),
    ("logging", "level"): ("log.level", _level),
    ("projects.cache", "strict_check"): (
        "pool.projects.bad_layers",
        lambda text: "strict" if _yes(text) else "ignore",
    ),
    ("projects.cache", "check_interval"): ("pool.projects.check_interval_s", _positive),
    ("projects.cache", "trust_layer_metadata"): (
        "pool.qgis.env.QGIS_SERVER_TRUST_LAYER_METADATA",
        _flag,
    ),
    ("projects.cache", "disable_getprint"): ("pool.qgis.env.QGIS_SERVER_DISABLE_GETPRINT", _flag),
    ("projects.cache", "force_readonly_layers"): (
        "pool.qgis.env.QGIS_SERVER_FORCE_READONLY_LAYERS",
        _flag,
    ),
    ("zmq", "maxqueue"): ("pool.queue", int),
}

#: Key → what takes its place. A section with "*" stands for all its other keys.
GONE: dict[Key, str] = {
    ("server", "enable_filters"): "filters of server plugins are always called",
    ("server", "http_proxy"): "the public URL is that of the proxies in http.trusted_proxies",
    ("server", "proxy_url"): "let Nginx send Host and X-Forwarded-Proto (etc/nginx/qgisd.conf)",
    ("server", "ssl"): "TLS is Nginx's",
    ("server", "ssl_cert"): "TLS is Nginx's",
    ("server", "ssl_key"): "TLS is Nginx's",
    ("server", "status_page"): "look at /ui/ and /api/v1/ of the admin listener, or use qgisd ctl",
    ("server", "allow_headers"): "X-Qgis-* and X-Lizmap-* are believed from http.trusted_proxies",
    ("server", "memory_high_water_mark"): "pool.memory and pool.worker_memory are in bytes",
    ("logging", "qgis_info"): "what QGIS says is in the log with the number of its request",
    ("projects.cache", "size"): "as many projects stay loaded as pool.memory has room for",
    ("projects.cache", "insecure"): "no project outside pool.projects.roots is ever served",
    ("projects.cache", "disable_owsurls"): "project URLs are QGIS's own matter here",
    ("projects.cache", "force_etag"): "what is kept has an ETag",
    ("projects.cache", "default_handler"): "projects are files below pool.projects.roots",
    ("projects.cache", "allow_storage_schemes"): "projects are files below pool.projects.roots",
    ("projects.cache", "observers"): "listen to /api/v1/events",
    ("projects.cache", "advanced_report"): "qgisd ctl project NAME tells of bad layers",
    ("zmq", "timeout"): "pool.request_timeout_s is for waiting and work together",
    ("zmq", "*"): "processes talk over sockets of daemon.runtime_dir; proxies are Nginx or HAProxy",
    ("monitor:amqp", "*"): "scrape /metrics of the admin listener",
    ("management", "*"): "the admin listener, admin.listen, is a Unix socket by default",
    ("metadata", "*"): "the project's own metadata is served",
}

#: Its defaults where ours are others.
DEFAULTS: dict[Key, str] = {
    ("server", "workers"): "2",
    ("projects.cache", "strict_check"): "yes",
    ("projects.cache", "force_readonly_layers"): "yes",
}

#: What is put together from several keys, in `translate`.
_TOGETHER = {
    ("server", "port"), ("server", "interfaces"),
    ("projects.cache", "rootdir"), ("projects.cache", "preload_config"),
}  # fmt: skip
_LANDING = "api:landing_page"
_TOGETHER_SECTIONS = {"api.endpoints", "api.enabled", "projects.schemes", _LANDING}

#: Variables whose names do not follow QGSRV_SECTION_KEY.
_VARIABLES: dict[str, Key] = {
    "QGSRV_SERVER_HTTP_PORT": ("server", "port"),
    "QGSRV_TRUST_LAYER_METADATA": ("projects.cache", "trust_layer_metadata"),
    "QGSRV_DISABLE_GETPRINT": ("projects.cache", "disable_getprint"),
    "QGSRV_API_ENDPOINTS_LIZMAP": ("api.endpoints", "lizmap_api"),
    "QGSRV_API_ENABLED_LIZMAP": ("api.enabled", "lizmap_api"),
}
_PREFIXES = {
    "QGSRV_SERVER_": "server", "QGSRV_LOGGING_": "logging", "QGSRV_CACHE_": "projects.cache",
    "QGSRV_ZMQ_": "zmq", "QGSRV_API_ENDPOINTS_": "api.endpoints",
    "QGSRV_API_ENABLED_": "api.enabled", "QGSRV_MANAGEMENT_": "management",
    "QGSRV_PROJECTS_SCHEMES_": "projects.schemes",
}  # fmt: skip


def read(path: Path) -> dict[Key, str]:
    """The keys of py-qgis-server's INI file, or of a file of QGSRV_… variables.

    Raises ConfigError.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([Problem(str(path), f"cannot be read: {error}")]) from None
    if not any(line.lstrip().startswith("[") for line in text.splitlines()):
        return _variables(_assignments(text))
    parser = configparser.ConfigParser(interpolation=configparser.ExtendedInterpolation())
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names of APIs have a case
    try:
        parser.read_string(text)
        return {
            (name, key): parser[name][key] for name in parser.sections() for key in parser[name]
        }
    except configparser.Error as error:
        message = str(error).replace("\n", " ")
        raise ConfigError(
            [Problem(str(path), f"is no file of py-qgis-server: {message}")]
        ) from None


def _assignments(text: str) -> dict[str, str]:
    """NAME=value lines, as of systemd's EnvironmentFile or Docker's env_file."""
    pairs = (line.strip().removeprefix("export ").partition("=") for line in text.splitlines())
    return {
        name.strip(): value.strip().strip("\"'")
        for name, sign, value in pairs
        if sign and not name.startswith("#")
    }


def _variables(environment: Mapping[str, str]) -> dict[Key, str]:
    found: dict[Key, str] = {}
    for name, value in environment.items():
        if name in _VARIABLES:
            found[_VARIABLES[name]] = value
            continue
        for prefix, section in _PREFIXES.items():
            if name.startswith(prefix):
                found[section, name.removeprefix(prefix).lower()] = value
    return found


def translate(keys: Mapping[Key, str], preload: Callable[[str], str]) -> Translation:
    """What they become. preload: the text of the file that lists projects to load; raises OSError.

    Raises ConfigError with every value that makes no sense.
    """
    done = Translation()
    problems: list[Problem] = []
    keys = DEFAULTS | dict(keys)
    for (section, key), text in keys.items():
        target = MOVED.get((section, key))
        if target is not None:
            try:
                value = target[1](text)
            except ValueError as error:
                problems.append(Problem(f"[{section}] {key}", str(error)))
                continue
            if value not in (None, ""):
                done.values[target[0]] = value
        elif (section, key) not in _TOGETHER and section not in _TOGETHER_SECTIONS:
            why = GONE.get((section, key)) or GONE.get((section, "*"))
            done.remarks.append(f"[{section}] {key}: {why or 'not a key of py-qgis-server'}")
    _listen(keys, done)
    _roots(keys, done)
    _pinned(keys, done, preload)
    try:
        _apis(keys, done)
    except ValueError as error:
        problems.append(Problem("[api.enabled]", str(error)))
    if problems:
        raise ConfigError(problems)
    return done


def _listen(keys: Mapping[Key, str], done: Translation) -> None:
    port = keys.get(("server", "port"), "8080")
    host = keys.get(("server", "interfaces"), "0.0.0.0")  # its default
    done.values["http.listen"] = f"{host}:{port}"
    if host not in ("127.0.0.1", "::1", "localhost"):
        done.remarks.append(
            f"http.listen is open to the network as before ({host}); behind Nginx on the same "
            'machine use "127.0.0.1:7080" or a Unix socket'
        )


def _roots(keys: Mapping[Key, str], done: Translation) -> None:
    roots = {}
    if root := keys.get(("projects.cache", "rootdir"), ""):
        roots["/"] = root
    for (section, name), base in keys.items():
        if section != "projects.schemes":
            continue
        path = base.removeprefix("file:").split("?")[0]
        if path.startswith("/"):
            roots[f"/{name}"] = path.replace("{path}", "").rstrip("/") or "/"
            done.remarks.append(f"MAP={name}:PROJECT is now MAP={name}/PROJECT")
        else:
            done.remarks.append(f"[projects.schemes] {name}: only files are served, not {base}")
    if roots:
        done.values["pool.projects.roots"] = roots
    else:
        done.remarks.append("say where the projects are: pool.projects.roots")


def _pinned(keys: Mapping[Key, str], done: Translation, preload: Callable[[str], str]) -> None:
    name = keys.get(("projects.cache", "preload_config"), "")
    if not name:
        return
    try:
        lines = [line.strip() for line in preload(name).splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        done.remarks.append(f"[projects.cache] preload_config: {name} cannot be read: {error}")
        return
    projects = [line.removeprefix("file:") for line in lines if line and not line.startswith("#")]
    # Below its root a project has no leading slash; a scheme has become a root.
    done.values["pool.projects.pinned"] = [
        project.replace(":", "/", 1).lstrip("/") for project in projects
    ]


def _apis(keys: Mapping[Key, str], done: Translation) -> None:
    usual = {"lizmap_api": "/lizmap", "landing_page": "/catalog"}
    enabled = [
        name for (section, name), text in keys.items() if section == "api.enabled" and _yes(text)
    ]
    paths = []
    for name in enabled:
        path = keys.get(("api.endpoints", name)) or usual.get(name, "")
        if path:
            paths.append(path)
            if name == "lizmap_api":
                # Lizmap refuses a server that its plugin does not know.
                done.values["pool.qgis.py_qgis_server"] = True
            elif name == "landing_page":
                _landing_page(keys, done, path)
        else:
            done.remarks.append(f"[api.enabled] {name}: [api.endpoints] does not say at which path")
    if paths:
        done.values["http.apis"] = paths


def _landing_page(keys: Mapping[Key, str], done: Translation, path: str) -> None:
    """What QGIS wants to know of it, and what its own section says."""
    told = {
        "QGIS_SERVER_LANDING_PAGE_PREFIX": path,
        "QGIS_SERVER_LANDING_PAGE_PROJECTS_DIRECTORIES": keys.get(
            ("projects.cache", "rootdir"), ""
        ),
    }
    told |= {name: text for (section, name), text in keys.items() if section == _LANDING}
    for name, value in told.items():
        if value:
            done.values[f"pool.qgis.env.{name}"] = value
