"""One page of a run, served to this machine alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from safemerge.errors import UserError

HOST = "127.0.0.1"


@contextmanager
def served_page(page: Path, port: int) -> Iterator[str]:
    """Serve a page on the loopback interface for a block.

    Nothing but the page is served: no folder, no other file; its downloads are in it. Requests
    under another host's name are refused, so that no site can reach it by a name of its own.

    Args:
        page: The file; it may not be there yet.
        port: The port; 0 for a free one.

    Yields:
        The page's address.

    Raises:
        UserError: If the port cannot be had.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--serve-report: a port is 0 to 65535; got {port}.")
    try:
        server = _Server((HOST, port), _handler(page))
    except OSError as error:
        raise UserError(
            f"--serve-report: needs a free port; got {port} ({error.strerror}). Name another, or "
            "0 for any."
        ) from None
    thread = threading.Thread(target=server.serve_forever, name="report", daemon=True)
    thread.start()
    try:
        yield f"http://{HOST}:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Keep the terminal for the search: a browser that leaves half-way is no error of it."""


def _handler(page: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "safemerge", ""

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def log_message(self, *_: object) -> None:
            """Keep the terminal for the search."""

        def _answer(self, *, with_body: bool) -> None:
            name = self.headers.get("Host", "").partition(":")[0]
            if name not in (HOST, "localhost"):
                return self.send_error(HTTPStatus.FORBIDDEN)
            if self.path.partition("?")[0] not in ("/", f"/{page.name}"):
                return self.send_error(HTTPStatus.NOT_FOUND)
            try:
                status, content = HTTPStatus.OK, page.read_bytes()
            except OSError:
                status = HTTPStatus.SERVICE_UNAVAILABLE
                content = b"<!doctype html><title>safemerge</title><p>No trial has ended yet."
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            if status != HTTPStatus.OK:
                self.send_header("Refresh", "3")
            self.end_headers()
            if with_body:
                self.wfile.write(content)

    return Handler
