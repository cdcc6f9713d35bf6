"""`senn fit --watch`: the run's page in a browser while training goes on, on this machine only.

Records reach the page as server-sent events. Nothing that a browser does can reach the run: requests are answered by
threads of their own, from copies.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from senn.cli.fit_arguments import FitArguments
from senn.training.callbacks import Callback
from senn.viz.report import RunReport, charting_library, downsample_record, page

LOOPBACK = "127.0.0.1"
_PATIENCE = 1.0
"""Seconds that the end of a run waits for browsers to hear of it."""
_PULSE = 5.0
"""Seconds of silence after which a browser that has gone away is noticed."""


@contextmanager
def watching(
    arguments: FitArguments, name: str, say: Callable[[str], None], earlier: Sequence[Mapping[str, Any]] = ()
) -> Iterator[tuple[Callback, ...]]:
    """What shows a run in a browser while it goes on, if that is asked for; nothing else.

    Args:
        arguments: of `senn fit`.
        name: of the run.
        say: takes a line, where lines are wanted.
        earlier: records from before it was interrupted.
    """
    if not arguments.watch:
        yield ()
        return

    def aloud(line: str) -> None:  # whoever asks for it must learn where it is
        print(line, file=sys.stderr) if arguments.is_silent else say(line)

    with Watch(name, arguments.port, aloud, earlier) as watch:
        yield (watch,)


class Watch(Callback):
    """Shows a run's records as they come; used as a context, at whose end browsers are told that it is over.

    Args:
        name: of the run.
        port: to listen at; 0 for any that is free.
        say: takes one line: where the page is, or why there is none.
        earlier: records of the run from before it was interrupted.

    Attributes:
        url: of the page; None where the port is taken.

    Raises:
        SennError: the charting library isn't installed.
    """

    def __init__(
        self, name: str, port: int, say: Callable[[str], None], earlier: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        charting_library()  # the page needs it: if it is missing, that is said before the run
        self.name = name
        self.url: str | None = None
        self._raw: list[Mapping[str, Any]] = list(earlier)
        self._told = [downsample_record(record) for record in earlier]
        self._news = threading.Condition()
        self._over: str | None = None
        self._listeners = 0
        self._server: _Server | None = None
        try:
            self._server = _Server((LOOPBACK, port), self)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            say(f"note: the run can't be watched at port {port} ({reason}), and goes on unwatched")
            return
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        say(f"watch it at {self.url}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: object) -> None:
        self.close("" if kind is None else " by an error" if issubclass(kind, Exception) else " by an interruption")

    def close(self, how: str = "") -> None:
        """Tell all who watch that the run has ended, and stop listening."""
        with self._news:
            if self._server is None or self._over is not None:
                return
            self._over = how
            self._news.notify_all()
            self._news.wait_for(lambda: self._listeners == 0, _PATIENCE)
        self._server.shutdown()
        self._server.server_close()

    def on_start(self, record: Mapping[str, Any]) -> None:
        """Pass it on, unless the run is one that goes on."""
        if not self._raw:
            self._add(record)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Pass it on."""
        self._add(record)

    def on_growth_round(self, record: Mapping[str, Any]) -> None:
        """Pass it on."""
        self._add(record)

    def on_rollback(self, record: Mapping[str, Any]) -> None:
        """Pass it on."""
        self._add(record)

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """Pass it on."""
        self._add(record)

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Pass it on."""
        self._add(record)

    def _add(self, record: Mapping[str, Any]) -> None:
        if self._server is None:
            return
        with self._news:
            self._raw.append(record)
            self._told.append(downsample_record(record))
            self._news.notify_all()

    def page(self) -> str:
        """The page with the records so far."""
        with self._news:
            told = list(self._raw)
        return page([RunReport(self.name, told)], live=True)

    def follow(self, send: Callable[[str, Any], None]) -> None:
        """Send all records, then each as it comes, until the run is over or the browser is gone.

        Args:
            send: takes the name of an event and its data; raises OSError once nobody listens.
        """
        with self._news:
            self._listeners += 1
        try:
            seen, over = 0, None
            send("start", None)
            while over is None:
                with self._news:
                    if len(self._told) == seen and self._over is None:
                        self._news.wait(_PULSE)
                    more, over = self._told[seen:], self._over
                send("more", more)
                seen += len(more)
            send("over", over)
        finally:
            with self._news:
                self._listeners -= 1
                self._news.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], watch: Watch) -> None:
        self.watch = watch
        super().__init__(address, _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that goes away is no error."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        """The page, or its events."""
        port = self.server.server_port
        if self.headers.get("Host") not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            # Another site's name that was made to point here must not read the run.
            self.send_error(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._answer("text/html; charset=utf-8", self.server.watch.page().encode("utf-8"))
        elif self.path == "/events":
            self._events()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _events(self) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

        def send(event: str, data: Any) -> None:
            self.wfile.write(f"event: {event}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode())
            self.wfile.flush()

        with suppress(OSError):
            self.server.watch.follow(send)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""
