"""HTTP for the page: what is served, to whom, and how much is taken in.

Served are the files of this package and what the App answers; no path of a request ever becomes the path of a file.
Other sites in the visitor's browser cannot ask: they do not know a token, and their Origin and Host give them away.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
import signal
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prismatic.demo.app import App
from prismatic.demo.desk import Event
from prismatic.demo.visitors import BusyError, GoneError, Visitor
from prismatic.report.style import STYLE

log = logging.getLogger(__name__)

BODY_LIMIT_BYTES = 1 << 20  # of a request that is no upload
LINGER_BYTES = 64 << 20  # of a refused upload that are still taken off the line
SILENCE_S = 60  # a connection on which nothing moves for so long is closed
GRACE_S = 2.0  # for the model to end the token that it is at, when the program ends
STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/asking.js": ("asking.js", "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data: blob:; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


STATUS: dict[type[Exception], HTTPStatus] = {
    GoneError: HTTPStatus.GONE,
    BusyError: HTTPStatus.CONFLICT,
    OSError: HTTPStatus.INTERNAL_SERVER_ERROR,
}


class RefusedError(ValueError):
    """A request that is not answered, with its status."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Listens from the start, so that a bad address is known before a model is loaded; answers once `serve` is called.

    Raises OSError when there is nothing to listen on at that address. A port that is taken gives way to a free one.
    """

    daemon_threads = True
    app: App

    def __init__(self, host: str, port: int) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.host = host
        self.files = {path: _packaged(name) for path, (name, _) in STATIC.items()}
        try:
            super().__init__((host, port), Handler)
        except socket.gaierror as error:
            raise ValueError(f"--host {host} is no address of this machine: {error.strerror}") from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise ValueError(f"--host {host} --port {port}: {error.strerror}") from error
            self.server_close()
            super().__init__((host, 0), Handler)

    def server_bind(self) -> None:
        """Without the look-up of the host's name, which may wait for a network that is not there."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in ("localhost", "::1") or self.host.startswith("127.")

    @property
    def address(self) -> str:
        """What to open in a browser."""
        host = socket.gethostname() if self.host in ("0.0.0.0", "::") else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.server_port}/"

    def serve(self, app: App) -> int:
        """Answer until Ctrl-C (130) or SIGTERM (0), then stop the model, delete the uploads, and give the exit code."""
        self.app = app
        signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=self.shutdown).start())
        code = 0
        try:
            self.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:
            code = 128 + signal.SIGINT
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one would leave uploads behind
            at_rest = app.close(GRACE_S)
            self.server_close()
        if not at_rest:
            # A thread inside PyTorch that comes back while the interpreter goes down would abort the process.
            logging.shutdown()
            os._exit(code)
        return code

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the visitor's affair."""
        log.debug("a connection failed", exc_info=True)


class Handler(BaseHTTPRequestHandler):
    """One request, on a thread of its own. HTTP/1.0: the end of the connection is the end of the reply."""

    server: PageServer
    server_version, sys_version = "prismatic", ""
    timeout = SILENCE_S

    def do_GET(self) -> None:
        """The page, its files, or the clip that the visitor looks at."""
        self._answered(self._get)

    def do_POST(self) -> None:
        """Requests of the page, JSON both ways."""
        self._answered(self._post)

    def do_PUT(self) -> None:
        """An upload: the body is the file."""
        self._answered(self._put)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  the base class names it so
        """Requests are no news."""
        log.debug(format, *args)

    def _answered(self, request: Callable[[], None]) -> None:
        try:
            self._check_sender()
            request()
        except (ConnectionError, TimeoutError):
            raise  # nobody is there to be told
        except (ValueError, OSError) as error:
            self._refuse(error)

    def _refuse(self, error: ValueError | OSError) -> None:
        if isinstance(error, OSError):
            log.warning("%s", error)
        status = next((status for kind, status in STATUS.items() if isinstance(error, kind)), HTTPStatus.BAD_REQUEST)
        self._reply({"error": str(error)}, error.status if isinstance(error, RefusedError) else status)
        # Closing while an upload still comes in would lose the reply.
        self.connection.shutdown(socket.SHUT_WR)
        left = LINGER_BYTES
        while left > 0 and (data := self.rfile.read1(BODY_LIMIT_BYTES)):
            left -= len(data)

    def _check_sender(self) -> None:
        """Refuses other sites: those whose name was made to mean this machine, and those that name themselves."""
        host, origin = self.headers.get("Host", ""), self.headers.get("Origin")
        name = urlsplit(f"//{host}").hostname or ""
        if self.server.is_local and name not in ("localhost", "::1", self.server.host) and not name.startswith("127."):
            raise RefusedError(HTTPStatus.FORBIDDEN, f"'{name}' is not a name of this machine")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RefusedError(HTTPStatus.FORBIDDEN, "another site may not ask here")

    def _get(self) -> None:
        path = urlsplit(self.path).path
        if path == "/api/clip":
            file, kind = self.server.app.playable(self._visitor())
            with file.open("rb") as source:
                self._head(HTTPStatus.OK, kind, os.fstat(source.fileno()).st_size)
                shutil.copyfileobj(source, self.wfile)
        elif path in STATIC:
            data = self.server.files[path]
            self._head(HTTPStatus.OK, STATIC[path][1], len(data))
            self.wfile.write(data)
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")

    def _post(self) -> None:
        app, path = self.server.app, urlsplit(self.path).path
        body = self._body()
        if path == "/api/enter":
            self._reply(app.enter())
            return
        request = app.requests.get(f"POST {path}")
        if request is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")
        reply = request(self._visitor(), body)
        if isinstance(reply, dict):
            self._reply(reply)
        else:
            self._stream(reply)

    def _put(self) -> None:
        app, url = self.server.app, urlsplit(self.path)
        if url.path != "/api/upload":
            raise RefusedError(HTTPStatus.NOT_FOUND, "there is nothing here")
        length, visitor = self._length(app.upload_limit), self._visitor()
        self._reply(app.upload(visitor, self.rfile, length, parse_qs(url.query).get("name", ["clip"])[0]))

    def _visitor(self) -> Visitor:
        return self.server.app.visitors.find(self.headers.get("X-Visitor", ""))

    def _length(self, limit: int) -> int:
        text = self.headers.get("Content-Length", "")
        if not text.isdecimal():
            raise RefusedError(HTTPStatus.LENGTH_REQUIRED, "the length of the request is missing")
        if int(text) > limit:
            reason = f"{int(text) / 2**20:,.0f} MB are more than the {limit >> 20} MB that are taken here"
            raise RefusedError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"{reason} (--max_upload_mb)")
        return int(text)

    def _body(self) -> dict[str, Any]:
        data = self.rfile.read(self._length(BODY_LIMIT_BYTES))
        try:
            body = json.loads(data or b"{}")
        except (ValueError, RecursionError) as error:
            raise ValueError("the request is no JSON") from error
        if not isinstance(body, dict):
            raise ValueError("the request is no JSON object")
        return body

    def _reply(self, content: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        data = json.dumps(content).encode()
        self._head(status, "application/json", len(data))
        self.wfile.write(data)

    def _stream(self, events: Iterator[Event]) -> None:
        """One line of JSON an event. A visitor who goes away closes `events`, and so stops the model."""
        with contextlib.closing(events):
            first = next(events)  # what is refused at once has a status of its own
            self._head(HTTPStatus.OK, "application/x-ndjson")
            for event in itertools.chain([first], events):
                self.wfile.write(json.dumps(event).encode() + b"\n")

    def _head(self, status: HTTPStatus, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.end_headers()


def _packaged(name: str) -> bytes:
    data = resources.files("prismatic.demo").joinpath(name).read_bytes()
    return STYLE.encode() + data if name.endswith(".css") else data
