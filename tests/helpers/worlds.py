"""Functions run in several processes of one `torch.distributed` group, and the command in a process of its own."""

from __future__ import annotations

import io
import multiprocessing
import os
import queue
import sys
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, TextIO

import torch
import torch.distributed as dist

_context = multiprocessing.get_context("forkserver")
_preloaded = ["senn.training.loop", "senn.cli.workers", "torch._dynamo"]  # which optimizers import
_context.set_forkserver_preload(_preloaded)


def preload(*modules: str) -> None:
    """Have processes that start from now on share what takes long to import, if none has started yet."""
    _preloaded.extend(modules)
    _context.set_forkserver_preload(_preloaded)


def world(size: int, run: Callable[..., Any], *arguments: Any, timeout: float = 60) -> list[Any]:
    """What `run(rank, *arguments)` returns in each of so many processes; an exception as text, None of a dead one."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    answers = _context.Queue()
    processes = [
        _context.Process(target=_child, args=(rank, size, store.port, answers, run, arguments))
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found: list[Any] = [None] * size
    try:
        while any(process.is_alive() for process in processes) or not answers.empty():
            try:
                rank, answer = answers.get(timeout=0.2)
            except queue.Empty:
                continue
            found[rank] = (
                torch.load(io.BytesIO(answer), weights_only=False)
                if isinstance(answer, bytes)
                else answer
            )
    finally:
        for process in processes:
            process.join(timeout)
            if process.is_alive():
                process.kill()
    return found


def _child(
    rank: int,
    size: int,
    port: int,
    answers: Any,
    run: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    try:
        answers.put((rank, run(rank, *arguments)))
    except BaseException as error:
        traceback.print_exc()
        answers.put((rank, f"{type(error).__name__}: {error}"))


def command(argv: Sequence[str]) -> tuple[BaseProcess, TextIO, TextIO]:
    """`senn ...` in a process that shares what takes long to import; with its standard output and standard error."""
    streams = [_context.Pipe(duplex=False) for _ in range(2)]
    process = _context.Process(target=_command, args=(argv, *(into for _, into in streams)))
    process.start()
    for _, into in streams:
        into.close()
    out, error = (os.fdopen(os.dup(of.fileno())) for of, _ in streams)
    return process, out, error


def _command(argv: Sequence[str], out: Connection, error: Connection) -> None:
    from senn.cli.main import main

    os.dup2(out.fileno(), 1)
    os.dup2(error.fileno(), 2)
    out.close()
    error.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    sys.exit(main(argv))
