"""Show a run in a browser on this machine while it trains: `senn fit --watch`.

Records reach the page as server-sent events. Nothing that a browser does can affect the run: requests are answered by
threads of their own, from copies of the records. All accounts of a machine can reach the port, so the address holds a
secret, drawn for each run, without which there is no answer.
"""

from __future__ import annotations

import hmac
import json
import secrets
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

# Not 0.0.0.0: nothing is encrypted on the way, and the data may be private.
LOOPBACK = "127.0.0.1"
_PATIENCE = 1.0
"""Seconds that the end of a run waits for browsers to hear of it."""
# Half would only send more empty events; twice keeps threads of closed tabs for longer.
_PULSE = 5.0
"""Seconds of silence after which a browser that has gone away is noticed."""
# A tab has two at most. Half would refuse the tabs of a meeting; each takes a descriptor and a thread of training.
MOST_CONNECTIONS = 32
"""Connections that are answered at a time."""
REQUEST_SECONDS = 20.0
"""Seconds after which a connection is closed that sends no request, or takes nothing of an answer."""
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",  # the address holds the secret
}


@contextmanager
def watching(
    arguments: FitArguments,
    name: str,
    say: Callable[[str], None],
    earlier: Sequence[Mapping[str, Any]] = (),
) -> Iterator[tuple[Callback, ...]]:
    """Context with the callbacks that show a run in a browser, if `--watch` is given.

    Args:
        arguments: arguments of `senn fit`.
        name: name of the run.
        say: prints a line on standard output.
        earlier: records from before the run was interrupted.

    Yields:
        One callback, or none.
    """
    if not arguments.watch:
        yield ()
        return

    def aloud(
        line: str,
    ) -> None:  # the address is printed even with --quiet: without it the page can't be opened
        print(line, file=sys.stderr) if arguments.is_silent else say(line)

    with Watch(name, arguments.port, aloud, earlier) as watch:
        yield (watch,)


class Watch(Callback):
    """Serve a run's records as they come; a context, at whose end browsers hear that the run is over.

    Args:
        name: name of the run.
        port: port to listen on; 0 for any that is free.
        say: prints one line: where the page is, or why there is none.
        earlier: records from before the run was interrupted.

    Attributes:
        secret: first part of the paths that are answered.
        url: address of the page; None if the port is taken.

    Raises:
        SennError: the charting library isn't installed.
    """

    def __init__(
        self,
        name: str,
        port: int,
        say: Callable[[str], None],
        earlier: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        charting_library()  # raises now if it is missing, not after training
        self.name = name
        self.secret = secrets.token_urlsafe(16)
        self.url: str | None = None
        self._records: list[Mapping[str, Any]] = list(earlier)
        # Shortened once for all browsers, not anew for each.
        self._shown = [downsample_record(record) for record in earlier]
        self._changed = threading.Condition()
        self._over: str | None = None
        self._listeners = 0
        self._server: _Server | None = None
        try:
            self._server = _Server((LOOPBACK, port), self)
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            say(
                f"note: the run can't be watched at port {port} ({reason}), so it continues unwatched"
            )
            return
        self.url = f"http://{LOOPBACK}:{self._server.server_port}/{self.secret}/"
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        say(f"watch it at {self.url}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: object
    ) -> None:
        self.close(
            ""
            if kind is None
            else " by an error"
            if issubclass(kind, Exception)
            else " by an interruption"
        )

    def close(self, how: str = "") -> None:
        """Tell all browsers that the run has ended, and stop listening.

        Args:
            how: end of the sentence "The run has ended", such as " by an interruption".
        """
        with self._changed:
            if self._server is None or self._over is not None:
                return
            self._over = how
            self._changed.notify_all()
            # Browsers that hear of the end say so on the page; the others report a lost connection.
            self._changed.wait_for(lambda: self._listeners == 0, _PATIENCE)
        self._server.shutdown()
        self._server.server_close()

    def on_start(self, record: Mapping[str, Any]) -> None:
        """Send the record to all browsers; a resumed run has sent it before."""
        if not self._records:
            self._add(record)

    def on_epoch(self, record: Mapping[str, Any]) -> None:
        """Send the record to all browsers."""
        self._add(record)

    def on_growth_round(self, record: Mapping[str, Any]) -> None:
        """Send the record to all browsers."""
        self._add(record)

    def on_rollback(self, record: Mapping[str, Any]) -> None:
        """Send the record to all browsers."""
        self._add(record)

    def on_growth(self, record: Mapping[str, Any]) -> None:
        """Send the record to all browsers."""
        self._add(record)

    def on_members(self, record: Mapping[str, Any]) -> None:
        """Send the record to all browsers."""
        self._add(record)

    def on_end(self, record: Mapping[str, Any]) -> None:
        """Send the record to all browsers."""
        self._add(record)

    def _add(self, record: Mapping[str, Any]) -> None:
        if self._server is None:
            return
        with self._changed:
            self._records.append(record)
            self._shown.append(downsample_record(record))
            self._changed.notify_all()

    def page(self) -> str:
        """Return the page with the records so far."""
        with self._changed:
            records = list(self._records)
        return page([RunReport(self.name, records)], live=True)

    def follow(self, send: Callable[[str, Any], None]) -> None:
        """Send all records, then each as it comes, until the run is over or the browser is gone.

        Args:
            send: takes the name of an event and its data; raises OSError once nobody listens.
        """
        with self._changed:
            self._listeners += 1
        try:
            seen, over = 0, None
            send("start", None)
            while over is None:
                with self._changed:
                    # Woken without news after _PULSE, an empty event finds out that the browser is gone.
                    if len(self._shown) == seen and self._over is None:
                        self._changed.wait(_PULSE)
                    more, over = self._shown[seen:], self._over
                # Outside the lock, which training takes for each record: a slow browser must not
                # hold it up.
                send("more", more)
                seen += len(more)
            send("over", over)
        finally:
            with self._changed:
                self._listeners -= 1
                self._changed.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A browser that hangs must not keep the run from ending.
    block_on_close = False
    # A port stays reserved for a minute after a run; the next one may use it.
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], watch: Watch) -> None:
        self.watch = watch
        self._free = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread of its own, or hang up if there are too many already."""
        if self._free.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, then make room for another connection."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of connections: a browser may go away at any time."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS
    server_version, sys_version = "senn", ""

    def do_GET(self) -> None:
        """Answer with the page, or with the stream of its events."""
        port, host = self.server.server_port, self.headers.get("Host", "").lower()
        secret, _, name = self.path.removeprefix("/").partition("/")
        # Compared in constant time, so that the time of an answer tells nothing of the secret.
        is_ours = hmac.compare_digest(secret.encode(), self.server.watch.secret.encode())
        if host not in (f"{LOOPBACK}:{port}", f"localhost:{port}"):
            # Another site's name that was made to point here must not read the run.
            self.send_error(HTTPStatus.FORBIDDEN)
        elif is_ours and name == "":
            self._answer("text/html; charset=utf-8", self.server.watch.page().encode("utf-8"))
        elif is_ours and name == "events":
            self._events()
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def _begin(self, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        for name, value in _HEADERS.items():
            self.send_header(name, value)

    def _answer(self, kind: str, body: bytes) -> None:
        self._begin(kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _events(self) -> None:
        self._begin("text/event-stream")
        self.end_headers()

        def send(event: str, data: Any) -> None:
            self.wfile.write(
                f"event: {event}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()
            )
            self.wfile.flush()

        # The browser was closed.
        with suppress(OSError):
            self.server.watch.follow(send)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: standard error is for the run."""
