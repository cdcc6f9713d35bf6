"""Predictions of a finished run over HTTP: the application behind `senn serve`.

`GET /health` says that it is up, `GET /model` what is predicted from what; `POST /predict` predicts rows or images. The
last two need the token. Bodies are JSON; whatever is wrong with one is told in a sentence, as `{"error": ...}`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import h11
import pandas as pd
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from senn import atomic_files
from senn._memory import is_out_of_memory
from senn.data import TableEncoder
from senn.data.images import ImageEncoder
from senn.data.images.folders import Entry, squares
from senn.errors import EVERYDAY, SennError
from senn.training.trained_run import TrainedRun, probabilities

SILENCE = 10.0
"""Seconds after which a connection is closed that has begun no request: there is room for few, and all may connect."""
HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a service.

    Attributes:
        rows: of a request; images count as rows.
        body_bytes: of a request.
        seconds: that a body may take to arrive, and an answer to be computed.
        waiting: requests that are computed or wait for it at a time; the next one is told to come later.
    """

    rows: int = 10_000
    body_bytes: int = 16 << 20
    seconds: float = 30.0
    waiting: int = 16


def application(run: TrainedRun, token: str, limits: Limits) -> Starlette:
    """Build the application that answers requests.

    Args:
        run: whose network predicts.
        token: that requests must bear.
        limits: of requests.
    """
    service = _Service(run, token, limits)
    routes = [
        Route("/health", service.health, methods=["GET"]),
        Route("/model", service.model, methods=["GET"]),
        Route("/predict", service.predict, methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _explained})


async def _explained(request: Request, error: Exception) -> JSONResponse:
    """Answer a refused request with the reason."""
    assert isinstance(error, HTTPException)
    headers = {**HEADERS, **(error.headers or {})}
    return JSONResponse({"error": error.detail}, error.status_code, headers)


class ImpatientProtocol(H11Protocol):
    """HTTP of uvicorn's, which itself waits for ever for the headers of a request."""

    _watch: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection, and begin to watch it."""
        super().connection_made(transport)
        self._watch = self.loop.call_later(SILENCE, self._close_if_silent, None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a connection."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self, before: object) -> None:
        """Close the connection if it waits for the request that it waited for the last time."""
        now = self.cycle if self.conn.their_state is h11.IDLE else object()
        if now is before:
            self.transport.close()
        else:
            self._watch = self.loop.call_later(SILENCE, self._close_if_silent, now)


class _Service:
    """What the paths do."""

    def __init__(self, run: TrainedRun, token: str, limits: Limits) -> None:
        self.run, self.limits = run, limits
        self._token = f"Bearer {token}".encode()
        # One at a time: PyTorch spreads a prediction over the processor's cores by itself.
        self._worker = ThreadPoolExecutor(1)
        self._waiting = 0

    async def health(self, request: Request) -> JSONResponse:
        """Say that predictions are to be had."""
        return JSONResponse({"status": "ok"}, headers=HEADERS)

    async def model(self, request: Request) -> JSONResponse:
        """Say what is predicted, and from what."""
        self._admit(request)
        return JSONResponse(_about(self.run, self.limits), headers=HEADERS)

    async def predict(self, request: Request) -> JSONResponse:
        """Predict rows or images."""
        self._admit(request)
        body = await self._body(request)
        if self._waiting >= self.limits.waiting:
            raise HTTPException(
                503, "too many requests are waiting; try again", {"Retry-After": "1"}
            )
        self._waiting += 1
        work = asyncio.get_running_loop().run_in_executor(self._worker, self._answer, body)
        work.add_done_callback(self._finished)
        try:
            answer = await asyncio.wait_for(asyncio.shield(work), self.limits.seconds)
        except TimeoutError as error:
            raise HTTPException(
                504, f"it takes more than {self.limits.seconds:g} seconds; ask for fewer rows"
            ) from error
        except SennError as error:
            raise HTTPException(400, str(error)) from error
        return JSONResponse(answer, headers=HEADERS)

    def _finished(self, work: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not work.cancelled():
            work.exception()  # one that came too late has been answered already

    def _admit(self, request: Request) -> None:
        """Refuse a request without the token, in a time that tells nothing of it."""
        given = request.headers.get("authorization", "").encode()
        if not hmac.compare_digest(given, self._token):
            raise HTTPException(
                401, "the header 'Authorization: Bearer TOKEN' is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )  # fmt: skip

    async def _body(self, request: Request) -> bytes:
        """Read a body, as far as it may go."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise HTTPException(415, "the body must be JSON, with 'Content-Type: application/json'")
        most = self.limits.body_bytes
        parts = bytearray()
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in request.stream():
                    parts += part
                    if len(parts) > most:
                        raise HTTPException(413, f"the body has more than {most:,} bytes")
        except TimeoutError as error:
            raise HTTPException(408, "the body took too long to arrive") from error
        return bytes(parts)

    def _answer(self, body: bytes) -> dict[str, Any]:
        """Compute an answer; in another thread."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are meant for whoever writes the frame
                return answer(self.run, body, self.limits.rows)
        except (*EVERYDAY, OverflowError, MemoryError) as error:
            if isinstance(error, SennError):
                raise
            if is_out_of_memory(error):
                raise SennError("there is too little memory for so many rows") from error
            raise SennError("the rows can't be predicted: a cell can't be read") from error


def _about(run: TrainedRun, limits: Limits) -> dict[str, Any]:
    known: dict[str, Any] = {"classes": run.classes, "most_rows": limits.rows}
    if isinstance(run.encoder, ImageEncoder):
        return {"task": "classification", "reads": "images", **known}
    columns = [column.name for column in run.encoder.columns]
    target = run.encoder.target
    return {
        "task": target.task,
        "reads": "rows",
        "target": target.name,
        "columns": columns,
        **known,
    }


def answer(run: TrainedRun, body: bytes, most_rows: int) -> dict[str, Any]:
    """Predict what a body asks for.

    Args:
        run: whose network predicts.
        body: JSON: `{"rows": [{"column": cell, ...}, ...]}`, or `{"images": ["base64", ...]}`; with `"proba": true` for
            the probability of each class.
        most_rows: that it may hold.

    Returns:
        `predictions` in the order of the rows; `notes` on what training never saw; `probabilities` by class, where
        they are wanted.

    Raises:
        SennError: it asks for something else, or a cell or an image can't be read.
    """
    try:
        wanted = atomic_files.parse(body)
    except ValueError as error:
        raise SennError(f"the body isn't JSON: {error}") from error
    what = "images" if isinstance(run.encoder, ImageEncoder) else "rows"
    if not isinstance(wanted, dict) or not isinstance(wanted.get(what), list):
        raise SennError(f"the body must be an object with a list of {what!r}")
    strange = sorted(set(wanted) - {what, "proba"})
    proba = wanted.get("proba", False)
    if strange or not isinstance(proba, bool):
        raise SennError(f"{strange[0]!r} isn't known" if strange else "'proba' is true or false")
    items = wanted[what]
    if not 0 < len(items) <= most_rows:
        raise SennError(f"a request has 1 to {most_rows:,} {what}, not {len(items):,}")
    if proba and run.classes is None:
        raise SennError("probabilities are for classes, and the target is a number")
    notes: list[str] = []
    if isinstance(run.encoder, ImageEncoder):
        outputs = _image_outputs(run, run.encoder, items)
    else:
        frame = _frame(items, run.encoder)
        notes = run.encoder.surprises(frame)
        outputs = run.row_outputs(frame)
    found: dict[str, Any] = {"predictions": atomic_files.plain(run.decode(outputs)), "notes": notes}
    if proba:
        names = [str(label) for label in run.classes or ()]
        found["probabilities"] = [
            dict(zip(names, row, strict=True)) for row in probabilities(outputs).tolist()
        ]
    return found


def _frame(rows: Sequence[Any], encoder: TableEncoder) -> pd.DataFrame:
    """Make a table of JSON objects, whose cells are texts, numbers, booleans or null."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise SennError(f"row {number} isn't an object of columns and cells")
        for name, cell in row.items():
            if isinstance(cell, dict | list):
                raise SennError(
                    f"row {number}: column {name!r} holds a list or an object, not a cell"
                )
    known = [column.name for column in encoder.columns]
    absent = [name for name in known if not any(name in row for row in rows)]
    if absent:
        raise SennError(f"the rows lack the column {absent[0]!r}")
    cells = {name: [row.get(name) for row in rows] for name in known}
    frame = pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in cells.items()})
    return frame.infer_objects().set_axis(pd.RangeIndex(1, len(rows) + 1), axis=0)


def _image_outputs(run: TrainedRun, encoder: ImageEncoder, images: Sequence[Any]) -> NDArray[Any]:
    """Compute outputs for images in base64."""
    entries = []
    for number, image in enumerate(images, start=1):
        try:
            content = base64.b64decode(image, validate=True)
        except (TypeError, ValueError, binascii.Error) as error:
            raise SennError(f"image {number} isn't a text in base64") from error
        entries.append(Entry(f"image {number}", content))
    made = squares(entries, encoder.side, encoder.channels)
    if made.left_out:
        raise SennError(made.left_out[0].reason)
    return run.pixel_outputs(made.pixels)
