"""Answer requests for predictions over HTTP: the command `senn serve`."""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
import socket
import sys
from pathlib import Path

from senn._extras import importing
from senn.errors import SennError
from senn.training.trained_run import load_run

TOKEN = "SENN_TOKEN"
"""Name of the environment variable with the token: options can be read by other accounts of a machine."""
MOST_CONNECTIONS = 64


def run(
    *, folder: Path, host: str, port: int, token: str | None, max_rows: int, max_body: int
) -> int:
    """Answer requests until a signal ends the process.

    Args:
        folder: folder of a finished run.
        host: name or address to listen on.
        port: to listen on; 0 for any that is free.
        token: that requests must bear; None for that in the environment, or one drawn now, which is printed.
        max_rows: rows of a request, at most.
        max_body: bytes of a request, at most.

    Returns:
        Exit code.

    Raises:
        SennError: the folder holds no network of `senn fit`, the port is taken, or a package is missing.
    """
    with importing("senn serve", "serve"):
        import uvicorn

        from senn.cli.prediction_service import ImpatientProtocol, Limits, application
    given = token if token is not None else os.environ.get(TOKEN)
    if given is not None and (not given or re.search(r"[^\x21-\x7e]", given)):
        raise SennError(
            f"the token must be printable ASCII without blanks; it stands in --token or {TOKEN}"
        )
    trained = load_run(folder)
    secret = given if given is not None else secrets.token_urlsafe(24)
    app = application(trained, secret, Limits(rows=max_rows, body_bytes=max_body))
    with _listening(host, port) as listener:
        address, bound = listener.getsockname()[:2]
        shown = f"[{address}]" if ":" in address else address
        print(f"predictions of {folder} at http://{shown}:{bound}/predict", flush=True)
        if given is None:
            print(f"header of each request: Authorization: Bearer {secret}", flush=True)
        if not ipaddress.ip_address(address).is_loopback:
            print("note: others can reach it, and nothing is encrypted; a proxy with TLS helps")
            sys.stdout.flush()
        settings = uvicorn.Config(
            app,
            http=ImpatientProtocol,
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            limit_concurrency=MOST_CONNECTIONS,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
        )
        uvicorn.Server(settings).run(sockets=[listener])
    return 0


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SennError(f"{host!r} can't be listened to at port {port}: {reason}") from error
