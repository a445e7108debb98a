"""What Lizmap Web Client asks of a server, asked as it does, through a real nginx.

Its side is played by `Lizmap`, after 3liz/lizmap-web-client a6792ed: lizmap/modules/lizmap/lib/
Request/Proxy.php and OGCRequest.php (headers, forms, parameters), lib/Server/Server.php (what it
looks for in answers). The plugin's side is tests/e2e/plugins/lizmap_server.
"""

import contextlib
import http.client
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.e2e.helpers import EXAMPLES, HERE, crashes, need_program
from tests.support import Daemon, Response, eventually, free_port

StartDaemon = Callable[..., Daemon]
CONFIG = {
    "options": {"acl": ["NO", "FR", "admins", ""]},
    "layers": {"Countries": {}, "Lakes": {"group_visibility": ["admins"]}},
    "loginFilteredLayers": {
        "Countries": {"layerId": "x", "filterAttribute": "iso_a2", "filterPrivate": "False"}
    },
}
SECRET = {"options": {"acl": ["admins"]}, "layers": {"Countries": {}}}
GET_FEATURE = {
    "service": "WFS", "version": "1.1.0", "request": "GetFeature", "typename": "countries",
    "outputformat": "GeoJSON", "propertyname": "iso_a2",
}  # fmt: skip


@dataclass
class Lizmap:
    """Sends what it would send."""

    server: str
    project: str = "town/world.qgs"

    def ask(
        self,
        user: str = "",
        groups: str = "",
        method: str = "GET",
        xml: str = "",
        override: str = "",
        headers: dict[str, str] | None = None,
        **parameters: str,
    ) -> Response:
        """An OGC request for its project (OGCRequest::request)."""
        mine = {"Lizmap_User": user, "Lizmap_User_Groups": groups}
        query = urlencode({"map": self.project} | parameters | mine)
        service = {
            "X-Qgis-Service-Url": "https://maps.example/index.php/lizmap/service?project=town",
            "X-Forwarded-Host": "maps.example",
            "X-Forwarded-Proto": "https",
            "Forwarded": "host=maps.example;proto=https",
            "X-Lizmap-Override-Filter": override,
        }
        target, body = f"/ows/?{query}", b""
        if xml:
            service, method, body = service | {"Content-Type": "text/xml"}, "POST", xml.encode()
        elif method == "POST":
            # Proxy::buildHeaders moves the query into the body.
            service["Content-type"] = "application/x-www-form-urlencoded"
            target, body = "/ows/", query.encode()
        return self.send(method, target, user, groups, body, service | (headers or {}))

    def send(
        self,
        method: str,
        target: str,
        user: str = "",
        groups: str = "",
        body: bytes = b"",
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Proxy::sendRequest."""
        sent = {
            "Connection": "close",
            "Accept": "*/*",
            "X-Lizmap-User": user,
            "X-Lizmap-User-Groups": groups,
            "X-Request-Id": "68b9-0123456789abcdef",
        }
        return exchange(self.server, method, target, body, sent | (headers or {}))

    def countries(self, *arguments: str, **options: Any) -> set[str]:
        """The countries that somebody sees."""
        answer = self.ask(*arguments, **GET_FEATURE, **options)
        assert answer.status == 200, answer.body[:500]
        return {row["properties"]["iso_a2"] for row in answer.json()["features"]}


def exchange(
    server: str,
    method: str,
    target: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    source: str = "127.0.0.1",
) -> Response:
    """One request, with these headers in this spelling."""
    client = http.client.HTTPConnection(server, timeout=60, source_address=(source, 0))
    with contextlib.closing(client) as connection:
        connection.request(method, target, body or None, headers or {})
        answer = connection.getresponse()
        return Response(answer.status, answer.headers, answer.read())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """town and secret have the file of Lizmap beside their project, open has none."""
    root = tmp_path_factory.mktemp("lizmap")
    for name, config in (("town", CONFIG), ("secret", SECRET), ("open", None)):
        shutil.copytree(EXAMPLES / "world", root / name)
        if config is not None:
            (root / name / "world.qgs.cfg").write_text(json.dumps(config))
    return root


@pytest.fixture(scope="module")
def plugin_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plugins")
    for name in ("lizmap_server", "h_slow"):
        shutil.copytree(HERE / "plugins" / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def daemon(session_daemons: StartDaemon, root: Path, plugin_path: Path) -> Iterator[Daemon]:
    """As docs/lizmap.md says, on a TCP port; 127.0.0.1 is trusted, 127.0.0.2 is not."""
    daemon = session_daemons(
        root,
        listen=f"127.0.0.1:{free_port()}",
        http='apis = ["/lizmap"]\ntrusted_proxies = ["127.0.0.1"]',
        pool="workers = 3\nclass_timeouts_s = { legend = 1.5 }\n"
        f'restart_file = "{root.parent / f"{root.name}-restart"}"',
        extra="[pool.qgis]\npy_qgis_server = true\n"
        f'plugin_path = "{plugin_path}"\nrequired_plugins = ["lizmap_server"]\n'
        'env = { QGIS_SERVER_LIZMAP_REVEAL_SETTINGS = "TRUE" }',
    )
    yield daemon
    assert crashes(daemon).keys() <= {"open/world.qgs"}


@pytest.fixture(scope="module")
def lizmap(tmp_path_factory: pytest.TempPathFactory, daemon: Daemon) -> Iterator[Lizmap]:
    """Lizmap Web Client, with nginx between it and qgisd."""
    prefix = tmp_path_factory.mktemp("nginx")
    address = f"127.0.0.1:{free_port()}"
    folders = "".join(
        f"{kind}_temp_path {prefix}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (prefix / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; pid {prefix}/pid; error_log {prefix}/error.log;
        events {{}}
        http {{
            access_log off;
            {folders}
            upstream qgisd {{ server {daemon.listen}; keepalive 4; }}
            server {{
                listen {address};
                location / {{
                    proxy_pass http://qgisd;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_set_header Host $http_host;
                }}
            }}
        }}
        """
    )
    process = subprocess.Popen(
        [need_program("nginx"), "-p", str(prefix), "-c", str(prefix / "nginx.conf")],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def is_up() -> bool:
        try:
            return exchange(address, "GET", "/healthz").status == 200
        except OSError:
            return False

    try:
        eventually(is_up, timeout=10, period=0.1)
        yield Lizmap(address)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


def seen(answer: Response) -> dict[str, Any]:
    """What the plugin saw of a request for SERVICE=LIZMAP."""
    assert answer.status == 200, answer.body[:500]
    return dict(answer.json())


# who somebody is


def test_each_user_sees_what_is_theirs_whatever_was_asked_before(lizmap: Lizmap) -> None:
    for _ in range(3):
        assert lizmap.countries("ola", "NO") == {"NO"}
        assert lizmap.countries("", "") == set(), "nobody is logged in: empty, and not missing"
        assert lizmap.countries("eva", "NO, FR") == {"NO", "FR"}
        assert len(lizmap.countries("root", "admins", override="1")) > 100
        assert lizmap.countries("root", "FR", method="POST") == {"FR"}


def test_headers_arrive_in_exact_case_and_empty_ones_arrive(lizmap: Lizmap) -> None:
    nobody = seen(lizmap.ask(service="LIZMAP"))
    assert nobody["headers"] == {
        "X-Lizmap-User": "", "X-Lizmap-User-Groups": "", "X-Lizmap-Override-Filter": "",
    }  # fmt: skip
    assert nobody["groups"] == [""]
    lizmap = Lizmap(lizmap.server, "open/world.qgs")
    # As a proxy that speaks HTTP/2 to its clients writes them.
    odd = {"x-lizmap-edition-context": "TRUE"}
    somebody = seen(
        lizmap.ask("änne".encode().decode("latin-1"), "a, b", headers=odd, service="LIZMAP")
    )
    assert somebody["headers"]["X-Lizmap-User-Groups"] == "a, b"
    assert somebody["headers"]["X-Lizmap-Edition-Context"] == "TRUE"
    assert somebody["groups"] == ["a", "b"]


def test_parameters_say_it_too_in_a_query_and_in_a_form(lizmap: Lizmap) -> None:
    for method in ("GET", "POST"):
        found = seen(lizmap.ask("ola", "NO", method=method, service="LIZMAP"))
        assert found["parameters"] == {"LIZMAP_USER": "ola", "LIZMAP_USER_GROUPS": "NO"}


def test_the_config_beside_the_project_is_found_by_its_path(lizmap: Lizmap, root: Path) -> None:
    assert seen(lizmap.ask(service="LIZMAP"))["config"] == str(root / "town" / "world.qgs")
    lizmap = Lizmap(lizmap.server, "secret/world.qgs")
    capabilities = {"service": "WMS", "request": "GetCapabilities", "version": "1.3.0"}
    refused = lizmap.ask("ola", "NO", **capabilities)
    assert refused.status == 403 and b"No ACL permissions" in refused.body
    assert lizmap.ask("root", "admins", **capabilities).status == 200
    assert lizmap.ask("", "", **capabilities).status == 403


def test_a_layer_is_in_the_capabilities_of_its_groups_alone(lizmap: Lizmap) -> None:
    capabilities = {"service": "WMS", "request": "GetCapabilities", "version": "1.3.0"}
    for groups, visible in (("admins", True), ("NO", False), ("", False)) * 2:
        answer = lizmap.ask("somebody", groups, **capabilities)
        assert (b"<Name>lakes</Name>" in answer.body) is visible


def test_what_the_plugin_sets_in_the_project_ends_with_the_request(lizmap: Lizmap) -> None:
    lizmap.countries("ola", "NO")
    assert "lizmap_user" not in seen(lizmap.ask("eva", "FR", service="LIZMAP"))["variables"]


FORGERIES: dict[str, tuple[str, str, bytes, dict[str, str]]] = {
    "headers": (
        "GET", "", b"",
        {"X-Lizmap-User": "x", "X-Lizmap-User-Groups": "admins", "X-Lizmap-Override-Filter": "1"},
    ),
    "underscores": (
        "GET", "", b"", {"X_Lizmap_User_Groups": "admins", "X_LIZMAP_OVERRIDE_FILTER": "1"},
    ),
    "parameters": ("GET", "&Lizmap_User_Groups=admins&LIZMAP_OVERRIDE_FILTER=1", b"", {}),
    "escaped": ("GET", "&%4Cizmap_User_Groups=admins&LIZMAP%5FOVERRIDE_FILTER=1", b"", {}),
    "form": (
        "POST", "", b"LIZMAP_OVERRIDE_FILTER=1&LIZMAP_USER_GROUPS=admins",
        {"Content-Type": "application/x-www-form-urlencoded"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_peer_that_is_not_trusted_is_nobody_whatever_it_says(daemon: Daemon, name: str) -> None:
    method, query, body, headers = FORGERIES[name]
    target = f"/ows/?map=town/world.qgs&{urlencode(GET_FEATURE)}{query}"
    forged = exchange(daemon.listen, method, target, body, headers, "127.0.0.2")
    assert forged.status == 200, forged.body[:300]
    # Anonymous, and not somebody of whom nothing is said: that would open all of it.
    assert forged.json()["features"] == []
    believed = exchange(daemon.listen, method, target, body, headers, "127.0.0.1")
    if name != "underscores":
        assert len(believed.json()["features"]) > 100


def test_an_identity_in_an_xml_body_is_refused_from_who_is_not_trusted(daemon: Daemon) -> None:
    """QGIS takes the attributes of the root element for parameters."""
    xml = (
        '<GetFeature service="WFS" version="1.1.0" outputFormat="GeoJSON" {} '
        'xmlns="http://www.opengis.net/wfs"><Query typeName="countries"/></GetFeature>'
    )
    target, kind = "/ows/?map=town/world.qgs", {"Content-Type": "text/xml"}
    plain = xml.format("").encode()
    forged = xml.format('LIZMAP_OVERRIDE_FILTER="1" LIZMAP_USER_GROUPS="admins"').encode()
    nobody = exchange(daemon.listen, "POST", target, plain, kind, "127.0.0.2")
    assert nobody.status == 200 and nobody.json()["features"] == []
    refused = exchange(daemon.listen, "POST", target, forged, kind, "127.0.0.2")
    assert refused.status == 400 and b"Norway" not in refused.body
    assert b"ExceptionReport" in refused.body
    # The way in is real: from a peer whose word counts it works.
    believed = exchange(daemon.listen, "POST", target, forged, kind, "127.0.0.1")
    assert len(believed.json()["features"]) > 100
    by_api = "/lizmap/server.json?map=town/world.qgs"
    form = exchange(daemon.listen, "POST", by_api, b"a=1&lizmap%5Fuser=root", {}, "127.0.0.2")
    assert form.status == 400


def test_the_log_says_whose_headers_were_not_believed(daemon: Daemon) -> None:
    headers = {"X-Lizmap-User": "root"}
    exchange(daemon.listen, "GET", "/ows/?map=open/world&SERVICE=LIZMAP", b"", headers, "127.0.0.2")
    assert "127.0.0.2 is not one of http.trusted_proxies" in daemon.log()


# requests


def test_xml_and_long_forms(lizmap: Lizmap) -> None:
    xml = (
        '<GetFeature service="WFS" version="1.1.0" outputFormat="GeoJSON" '
        'xmlns="http://www.opengis.net/wfs"><Query typeName="countries"/></GetFeature>'
    )
    answer = lizmap.ask("ola", "NO", xml=xml)
    assert [row["properties"]["iso_a2"] for row in answer.json()["features"]] == ["NO"]
    names = ", ".join(f"'{name}'" for name in ["FR", "NO", *range(20_000)])
    wanted = f'"iso_a2" IN ({names})'
    assert lizmap.countries("eva", "FR", method="POST", exp_filter=wanted) == {"FR"}
    assert lizmap.countries("eva", "FR", method="POST", exp_filter="FALSE") == set()


def test_capabilities_point_to_the_address_that_lizmap_names(lizmap: Lizmap) -> None:
    answer = lizmap.ask("root", "admins", service="WMS", request="GetCapabilities", version="1.3.0")
    links = re.findall(rb'xlink:href="(http[^"]*)"', answer.body)
    mine = b"https://maps.example/index.php/lizmap/service?project=town"
    assert any(link.startswith(mine) for link in links), links
    assert not [link for link in links if b"127.0.0.1" in link]


def test_a_request_id_comes_back_whatever_becomes_of_the_request(lizmap: Lizmap) -> None:
    missing = Lizmap(lizmap.server, "town/nothing.qgs")
    for answer in (
        lizmap.ask("root", "admins", service="WMS", request="GetCapabilities"),
        missing.ask(service="WMS", request="GetCapabilities"),
        lizmap.ask(service="WMS", request="NoSuchThing"),
    ):
        assert answer.headers["X-Request-Id"] == "68b9-0123456789abcdef"


def test_capabilities_without_a_project_tell_that_a_server_is_there(lizmap: Lizmap) -> None:
    """Server.php tryQgisServer."""
    answer = lizmap.send("GET", "/ows/?service=WMS&request=GetCapabilities")
    assert re.search(rb"ServerException|ServiceExceptionReport|WMS_Capabilities", answer.body)
    assert answer.headers.get_content_type() == "text/xml"


def test_an_answer_or_an_error_comes_before_lizmap_gives_up(lizmap: Lizmap) -> None:
    lizmap = Lizmap(lizmap.server, "open/world.qgs")
    begun = time.monotonic()
    answer = lizmap.ask(
        service="WMS", request="GetLegendGraphic", version="1.3.0", layer="countries",
        format="image/png", sleep="60",
    )  # fmt: skip
    assert answer.status == 504 and b"ServiceException" in answer.body
    assert 1 < time.monotonic() - begun < 10
    assert answer.headers["X-Request-Id"] == "68b9-0123456789abcdef"


# what the server is


@pytest.mark.parametrize("path", ["/lizmap/server.json", "/ows/lizmap/server.json"])
def test_the_server_tells_what_it_is(lizmap: Lizmap, daemon: Daemon, path: str) -> None:
    """Server.php getQgisServerMetadata and checkQgisServerWrapper, with allowFcgi off; the second
    path is where lizmapServices.class.php looks while lizmapPluginAPIURL is empty."""
    answer = lizmap.send("GET", path)
    assert answer.status == 200, answer.body
    assert answer.headers.get_content_type() == "application/json"
    found = answer.json()["qgis_server"]
    assert found["metadata"]["version"]
    wrapper = found["py_qgis_server"]
    assert wrapper["found"] is True and wrapper["stable"] is True
    assert wrapper["version"].startswith("qgisd-")
    assert {"WMS", "WFS", "WCS", "WMTS", "LIZMAP"} <= set(found["services"])
    assert found["fonts"]
    assert found["plugins"]["lizmap_server"] == {
        "name": "Lizmap server", "version": "2.15.3", "commitSha1": "fd2359e",
    }  # fmt: skip
    assert set(found["plugins"]) == {"lizmap_server", "h_slow"}
    assert daemon.projects()["(none)"]["state"] == "serving"
    assert lizmap.send("HEAD", path).status == 200


def test_without_a_project_nothing_else_is_served(daemon: Daemon, root: Path) -> None:
    secret = root / "secret" / "world.qgs"
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    for method, target, body in (
        ("POST", "/lizmap/server.json", f"MAP={secret}".encode()),
        ("GET", f"/lizmap/server.json?MAP={secret}", b""),
        ("GET", f"/lizmap/server.json?MAP=&map={secret}", b""),
        ("GET", "/lizmap/server.json?MAP=(none)", b""),
        ("GET", "/wfs3/collections", b""),
        ("GET", "/ows/?SERVICE=LIZMAP", b""),
    ):
        answer = exchange(daemon.listen, method, target, body, form)
        assert answer.status in (400, 404), (target, answer.body)
        assert b"Countries" not in answer.body


def test_touching_the_restart_file_loads_everything_anew(
    daemon: Daemon, lizmap: Lizmap, root: Path, plugin_path: Path
) -> None:
    def version() -> str:
        [row] = [
            row for row in daemon.api("GET", "/api/v1/plugins") if row["name"] == "lizmap_server"
        ]
        return str(row["version"])

    def numbers() -> dict[str, list[int]]:
        return {
            key: [row["number"] for row in daemon.projects()[key]["generations"]]
            for key in ("town/world.qgs", "(none)")
        }

    assert version() == "2.15.3" and lizmap.countries("ola", "NO") == {"NO"}
    assert lizmap.send("GET", "/lizmap/server.json").status == 200
    old = numbers()
    metadata = plugin_path / "lizmap_server" / "metadata.txt"
    metadata.write_text(metadata.read_text().replace("2.15.3", "2.16.0"))
    (root.parent / f"{root.name}-restart").touch()
    eventually(lambda: version() == "2.16.0", timeout=60)

    def renewed() -> bool:
        return all(len(row) == 1 and row > old[key] for key, row in numbers().items())

    eventually(renewed, timeout=30)
    assert lizmap.countries("ola", "NO") == {"NO"}
    info = lizmap.send("GET", "/lizmap/server.json").json()["qgis_server"]
    assert info["plugins"]["lizmap_server"]["version"] == "2.16.0"


def test_without_the_key_no_plugin_finds_py_qgis_server(
    real_daemons: StartDaemon, root: Path, plugin_path: Path
) -> None:
    daemon = real_daemons(
        root,
        http='apis = ["/lizmap"]',
        projects="on_demand = false",
        extra=f'[pool.qgis]\nplugin_path = "{plugin_path}"\nplugins = ["lizmap_server"]\n'
        'env = { QGIS_SERVER_LIZMAP_REVEAL_SETTINGS = "TRUE" }',
    )
    found = daemon.get("/lizmap/server.json").json()["qgis_server"]
    assert found["py_qgis_server"] == {"found": False, "version": "not used"}
    assert set(found["plugins"]) == {"lizmap_server"}
