"""The operators' page, at /ui/ of the admin listener: files, and nothing else.

They hold no data, so anybody who reaches the listener may have them. All that the page shows it
asks of the REST API, which wants to know who asks.
"""

from pathlib import Path
from typing import Any

from tornado.web import HTTPError, RedirectHandler, StaticFileHandler

from qgisd.http.admin import Mount

FILES = Path(__file__).parent / "static"

#: Only our own files run or style anything; no markup is made from strings (Trusted Types: names
#: and errors of projects are hostile). Pictures are blobs: they are fetched, to show their errors.
POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types default",
    )
)
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageFiles(StaticFileHandler):
    """GET, HEAD: a file of the page, with an ETag."""

    def set_default_headers(self) -> None:
        self.set_header("Content-Security-Policy", POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        # Asked for again each time: the page and the API are of one version.
        self.set_header("Cache-Control", "no-cache")

    def parse_url_path(self, url_path: str) -> str:
        """A NUL would end as a ValueError of the operating system's calls."""
        if "\0" in url_path:
            raise HTTPError(404)
        return super().parse_url_path(url_path)

    def get_content_type(self) -> str:
        """Not guessed from the machine's table of types: scripts run only with theirs."""
        assert self.absolute_path is not None
        return _TYPES.get(Path(self.absolute_path).suffix, "text/plain; charset=utf-8")

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code} {self._reason}\n")


MOUNTS = (
    Mount("/(?:ui)?", RedirectHandler, {"url": "/ui/", "permanent": False}, open=True),
    Mount("/ui/(.*)", PageFiles, {"path": str(FILES), "default_filename": "index.html"}, open=True),
)
