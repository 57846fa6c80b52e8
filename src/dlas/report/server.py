"""A small web server for looking at studies: a list, each study's report, and the same as JSON.

It answers GET and HEAD only, binds to this machine unless told otherwise, and answers only to names that are its own,
so that no web page can reach it through a name of the page's choosing ("DNS rebinding"). Nothing that it sends fetches
anything from elsewhere.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import json
import re
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from dlas.core.errors import DlasError, OptionError
from dlas.report import html
from dlas.report.data import plain
from dlas.report.shelf import Entry, Shelf, digest, places
from dlas.report.summary import Answer

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_CLOSED = "default-src 'none'"  # the policy of what is no page
_HTML, _JSON, _TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"
_PATIENCE_S = 10.0  # for a client to say what it wants


def serve(
    given: Sequence[str | Path] = (),
    *,
    out: str | Path = "dlas-out",
    host: str = "127.0.0.1",
    port: int = 8000,
    ready: Callable[[str], None] = lambda url: None,
    tell: Callable[[str], None] = lambda text: None,
) -> None:
    """Serve studies until interrupted.

    Args:
        given: Folders, study files, stack files or names of studies of ``out``; by default all studies of ``out``.
        out: Folder that studies are written to.
        host: Address or name of this machine to bind to; anything but loopback lets others read the results.
        port: Port, 0 for a free one.
        ready: Told the address once it answers.
        tell: Receives one line per warning or defect.

    Raises:
        DlasError: Something of ``given`` is not there, or the address cannot be had.
    """
    shelf = Shelf(places(given, Path(out)), tell)
    with StudyServer(shelf, host, port, tell) as server, contextlib.suppress(KeyboardInterrupt):
        ready(server.url)
        server.serve_forever()


class StudyServer(socketserver.ThreadingMixIn, HTTPServer):
    """The server; use as a context manager and call ``serve_forever``.

    Args:
        shelf: What there is to be shown.
        host: Address or name of this machine.
        port: Port, 0 for a free one.
        tell: Receives one line per warning or defect.

    Raises:
        DlasError: The address cannot be had.
    """

    daemon_threads = True
    allow_reuse_port = False

    def __init__(
        self,
        shelf: Shelf,
        host: str = "127.0.0.1",
        port: int = 8000,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not isinstance(port, int) or not 0 <= port <= 65535:
            raise OptionError("port", port, "a whole number from 0 to 65535")
        self.shelf = shelf
        self.tell = tell
        self.turn = threading.Lock()  # one page is made at a time: others may be measuring on this machine
        try:
            family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.address_family = family
            super().__init__(address[:2], _Handler)  # type: ignore[arg-type]
        except (OSError, UnicodeError) as error:
            raise _refusal(host, port, error) from error
        bound = ipaddress.ip_address(str(self.server_address[0]))
        self.names = _names(host, bound)
        if not bound.is_loopback:
            tell(f"warning: anyone who can reach {host} port {self.server_port} can read these results")

    @property
    def url(self) -> str:
        """Address of the list of studies."""
        bound = ipaddress.ip_address(str(self.server_address[0]))
        if bound.is_unspecified:
            bound = ipaddress.ip_address("127.0.0.1" if bound.version == 4 else "::1")
        return f"http://{bound if bound.version == 4 else f'[{bound}]'}:{self.server_port}/"

    def server_bind(self) -> None:
        """Bind without asking the network for a name of the address, as the class above does."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to speak of."""
        error = sys.exception() if hasattr(sys, "exception") else sys.exc_info()[1]
        if not isinstance(error, OSError):
            self.tell(f"internal error: {type(error).__name__}: {error} (this is a defect of dlas)")

    def knows(self, host: str) -> bool:
        """Whether a Host header names this server; the port may be that of a tunnel."""
        match = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([^\[\]:]+))(?::\d{1,5})?", host.strip().lower())
        name = (match[1] or match[2]) if match else ""
        return bool(name) and (name in self.names or ("" in self.names and _is_address(name)))


def _names(host: str, bound: ipaddress.IPv4Address | ipaddress.IPv6Address) -> frozenset[str]:
    """What may stand in a Host header; an empty name stands for every address."""
    names = {host.lower(), str(bound), "localhost"}
    if bound.is_loopback:
        names |= {"127.0.0.1", "::1"}
    elif bound.is_unspecified:  # a page that abuses a name of its own cannot send a bare address
        names |= {"", socket.gethostname().lower()}
    return frozenset(names)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _refusal(host: str, port: int, error: Exception) -> DlasError:
    number = getattr(error, "errno", None)
    if number == errno.EADDRINUSE:
        return DlasError(f"port {port} of {host} is in use", "choose another --port; 0 takes a free one")
    if number in (errno.EACCES, errno.EPERM):
        return DlasError(f"port {port} may not be used: {error}", "choose a --port above 1023")
    return DlasError(
        f"{host} port {port} cannot be served: {error}", "give --host an address of this machine"
    )


class _Handler(BaseHTTPRequestHandler):
    """One request."""

    server: StudyServer  # type: ignore[assignment]
    timeout = _PATIENCE_S

    def version_string(self) -> str:
        """No versions for strangers."""
        return "dlas"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are not worth a line."""

    def do_GET(self) -> None:
        """Answer with a body."""
        self._answer(*self._found())

    do_HEAD = do_GET  # noqa: N815 - the name is that of the base class

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse in one line; what the client sent is not repeated."""
        if code == 501:
            self._answer(405, _TEXT, "Only GET and HEAD are answered.\n", {"Allow": "GET, HEAD"})
        else:
            self._answer(code, _TEXT, "This is no request that is understood.\n", {})

    def _found(self) -> tuple[int, str, str, dict[str, str]]:
        """Status, type, text and further headers."""
        hosts = self.headers.get_all("Host") or []
        if len(hosts) != 1 or not self.server.knows(hosts[0]):
            return 421, _TEXT, "This server does not go by that name.\n", {}
        kind = _JSON if self.path.startswith("/api/") else _TEXT
        try:
            return self._page(unquote(self.path.partition("?")[0].rpartition("/")[2]))
        except DlasError as error:
            code, text = 500, str(error)
        except Exception as error:
            code, text = 500, f"internal error: {type(error).__name__}: {error} (this is a defect of dlas)"
            self.server.tell(text)
        return code, kind, _json({"error": text}) if kind is _JSON else text + "\n", {}

    def _page(self, last: str) -> tuple[int, str, str, dict[str, str]]:
        """What stands at the address that ends in ``last``."""
        shelf = self.server.shelf
        folder = self.path.partition("?")[0].rpartition("/")[0]
        if (folder, last) == ("", ""):
            return self._index(shelf.entries())
        if (folder, last) == ("/api", "studies"):
            entries = shelf.entries()
            return self._unless_known(_version(entries), _JSON, lambda: _json([row(e) for e in entries]))
        entry = shelf.find(last) if folder in ("/study", "/api/studies") else None
        if entry is None:
            kind = _JSON if folder.startswith("/api") else _TEXT
            text = "There is no such page; the list of studies is at /"
            return 404, kind, _json({"error": text}) if kind is _JSON else text + "\n", {}
        if folder == "/study":
            return self._report(entry)
        return self._unless_known(entry.version, _JSON, lambda: _json(shelf.result(entry).to_dict()))

    def _index(self, entries: list[Entry]) -> tuple[int, str, str, dict[str, str]]:
        version = _version(entries)

        def make() -> str:
            return html.render_index(
                version=version,
                running=any(entry.running for entry in entries),
                entries=[(entry, row(entry)) for entry in entries],
                places=[str(place.path) for place in self.server.shelf.places],
            )

        return self._unless_known(version, _HTML, make, html.policy([html.live_script()], live=True))

    def _report(self, entry: Entry) -> tuple[int, str, str, dict[str, str]]:
        live = html.Live(entry.version, entry.running)
        with self.server.turn:
            policy = html.policy([*html.report_scripts(), html.live_script()], live=True)
        return self._unless_known(
            entry.version, _HTML, lambda: html.render(self.server.shelf.result(entry), live), policy
        )

    def _unless_known(
        self, version: str, kind: str, make: Callable[[], str], policy: str = _CLOSED
    ) -> tuple[int, str, str, dict[str, str]]:
        """What ``make`` makes, unless the client has this version or wants no body."""
        headers = {"ETag": f'"{version}"', "Content-Security-Policy": f"{policy}; frame-ancestors 'none'"}
        if headers["ETag"] in (self.headers.get("If-None-Match") or ""):
            return 304, kind, "", headers
        if self.command == "HEAD":
            return 200, kind, "", headers
        with self.server.turn:
            return 200, kind, make(), headers

    def _answer(self, code: int, kind: str, text: str, headers: dict[str, str]) -> None:
        body = text.encode("utf-8", "replace")
        self.close_connection = True
        self.send_response(code)
        for key, value in {"Content-Security-Policy": _CLOSED, **_HEADERS, **headers}.items():
            self.send_header(key, value)
        self.send_header("Content-Type", kind)
        if code != 304 and self.command != "HEAD":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if code != 304 and self.command != "HEAD":
            self.wfile.write(body)


def row(entry: Entry) -> dict[str, Any]:
    """One study of ``/api/studies``."""
    card = entry.card
    return {
        "name": entry.name,
        "state": entry.state,
        "url": "" if card is None else "/study/" + quote(entry.id, safe=""),
        "api": "" if card is None else "/api/studies/" + quote(entry.id, safe=""),
        "file": str(entry.path),
        "changed": _when(entry.changed),
        "problem": entry.problem,
        "model": card.model if card else "",
        "dataset": card.dataset if card else "",
        "points": card.points if card else 0,
        "pending": card.pending if card else 0,
        "outcomes": dict(card.outcomes) if card else {},
        "best": [_best(answer) for answer in card.answers] if card else [],
    }


def _best(answer: Answer) -> dict[str, Any]:
    figures = {name: words.replace("\u00a0", " ") for name, words, _ in answer.figures}
    return {"question": answer.question, "choice": answer.label, "figures": figures}


def _when(changed: float) -> str:
    """A time of this machine's clock as ``2026-11-21 14:03:59``; empty where there is none."""
    try:
        return datetime.fromtimestamp(changed).isoformat(" ", "seconds") if changed > 0 else ""
    except (OverflowError, ValueError, OSError):
        return ""


def _version(entries: Sequence[Entry]) -> str:
    return digest(*(f"{entry.id} {entry.state} {entry.version}" for entry in entries))


def _json(value: Any) -> str:
    return json.dumps(plain(value), indent=2, allow_nan=False) + "\n"
