"""Models as graphs: `torch.export` and ONNX, with a batch of any size."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import tree_map

from senn import pytree
from senn.errors import SennError
from senn.export.atomic_folder import atomic_folder
from senn.export.check import Exported, at_least_two, check, summarize_error
from senn.preserve import preserve_model_state
from senn.pytree import Inputs

# A protobuf message, which an ONNX file is, ends at 2 GiB; 16 MiB are left for the graph itself.
_MOST_BYTES = 2**31 - 2**24
"""Size limit of a model's numbers in an ONNX file, in bytes."""


def to_pt2(
    model: nn.Module,
    path: str | Path,
    inputs: Inputs,
    *,
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a model as a `torch.export` program, which runs without the model's classes.

    `torch.export.load(path).module()` reads it.

    The model is exported in eval mode, for batches of any size. What was written is read back and compared with the
    model before it is renamed.

    Args:
        model: any module that torch.export understands.
        path: of the file, usually with the suffix `.pt2`.
        inputs: an example batch, as in `Grower.grow`. First dimensions of as many entries as there are samples are
            exported with any size.
        metadata: JSON-able data to keep in the file as `metadata.json`; None for none.
        overwrite: True if an existing file may be replaced.

    Returns:
        What was written and how it was checked; as text, one sentence.

    Raises:
        SennError: the model can't be exported, what was written doesn't compute the same, or it can't be written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     exported = to_pt2(nn.Linear(2, 3), Path(folder) / "net.pt2", torch.randn(4, 2))
    >>> exported.reader, exported.samples
    ('torch.export.load', (4, 3))
    """
    inputs = at_least_two(inputs)
    with atomic_folder(path, folder=False, overwrite=overwrite) as draft, _quiet():
        draft.write_bytes(_packed(_program(model, inputs), metadata or {}))
        back = _unpacked(draft.read_bytes())
        run = partial(_run_module, back)
        return check(Path(path), "torch.export.load", model, inputs, run=run)


def _run_module(module: nn.Module, batch: Inputs) -> list[Tensor]:
    return [x for x in pytree.tensor_leaves(pytree.call(module, batch)) if x.is_floating_point()]


def to_onnx(
    model: nn.Module,
    path: str | Path,
    inputs: Inputs,
    *,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a model as an ONNX file, in eval mode, for batches of any size.

    What was written is read back by ONNX Runtime, if that is installed, and compared with the model before it is
    renamed. Needs `pip install 'senn[export]'`.

    Args:
        model: any module that `torch.onnx` understands.
        path: of the file, usually with the suffix `.onnx`.
        inputs: an example batch, as in `Grower.grow`.
        input_names: of the graph; None for those of the forward's arguments.
        output_names: of the graph; None for `output`, or `output_0`, `output_1`, ... of several.
        metadata: texts to keep in the file, which ONNX Runtime returns as `custom_metadata_map`; None for none.
        overwrite: True if an existing file may be replaced.

    Returns:
        What was written and how it was checked; as text, one sentence.

    Raises:
        SennError: onnx isn't installed, the model can't be exported, what was written doesn't compute the same, or it
            can't be written.
    """
    onnx = _import_onnx()
    inputs = at_least_two(inputs)
    tensors = [x for x in model.state_dict().values() if isinstance(x, Tensor)]
    size = sum(x.numel() * x.element_size() for x in tensors)
    if size > _MOST_BYTES:
        raise SennError(
            f"an ONNX file ends at {_MOST_BYTES:,} bytes, and the model's numbers take {size:,}"
        )
    with atomic_folder(path, folder=False, overwrite=overwrite) as draft, _quiet():
        program = _program(model, inputs)
        names = list(input_names or _argument_names(model, inputs))
        outputs = list(output_names or _output_names(model, inputs))
        try:
            # Exporters leave traces: the mode, and buffers that a forward writes.
            with torch.no_grad(), preserve_model_state(model):
                made = torch.onnx.export(
                    program, input_names=names, output_names=outputs, verbose=False
                )
            assert made is not None
            proto = made.model_proto
        except Exception as error:
            raise SennError(
                f"the model can't be exported to ONNX: {summarize_error(error)}"
            ) from error
        _name_batch(proto.graph)
        onnx.helper.set_model_props(proto, {"producer": "senn", **(metadata or {})})
        draft.write_bytes(proto.SerializeToString())
        return _check_onnx(Path(path), draft, model, inputs)


def _name_batch(graph: Any) -> None:
    """Rename the number of samples to `batch`: exporters make up names such as `s77`."""
    sizes = []
    for value in graph.input:
        sizes += [size for size in value.type.tensor_type.shape.dim[:1] if size.dim_param]
    symbols = {size.dim_param for size in sizes}
    values = (*graph.input, *graph.output, *graph.value_info)
    named = [
        size for value in values for size in value.type.tensor_type.shape.dim if size.dim_param
    ]
    for symbol, size in itertools.product(symbols, named):
        # replaced within the text: a size may be an expression such as `2*s77`
        size.dim_param = size.dim_param.replace(symbol, "batch")


def _packed(program: ExportedProgram, metadata: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()  # a path would have to end in .pt2, and a draft's doesn't
    try:
        text = json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise SennError(f"metadata can't be written as JSON: {error}") from error
    torch.export.save(program, file, extra_files={"metadata.json": text})
    return file.getvalue()


def _unpacked(data: bytes) -> nn.Module:
    try:
        return torch.export.load(io.BytesIO(data)).module()
    except Exception as error:  # torch.fx fails on modules with a name of its own, such as `code`
        raise SennError(
            f"torch.export can't read back what it wrote: {summarize_error(error)}"
        ) from error


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise SennError(
            f"ONNX files need the package {error.name!r}: pip install 'senn[export]'"
        ) from error
    return onnx


def _check_onnx(
    path: Path,
    draft: Path,
    model: nn.Module,
    inputs: Inputs,
) -> Exported:
    try:
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError:
        return Exported(
            path=path,
            reader="ONNX Runtime",
            why_not="onnxruntime isn't installed (pip install onnxruntime)",
        )
    try:
        # On the CPU, which every build supports; a GPU's kernels may round to TF32.
        session = onnxruntime.InferenceSession(
            draft.read_bytes(), providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # it lacks some kernels, such as those of bfloat16
        raise SennError(
            f"ONNX Runtime can't read what was exported: {summarize_error(error)}"
        ) from error
    names = [one.name for one in session.get_inputs()]

    def run(batch: Inputs) -> list[Tensor]:
        arrays = [tensor.numpy(force=True) for tensor in pytree.tensor_leaves(batch)]
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        return [x for x in map(torch.from_numpy, results) if x.is_floating_point()]

    return check(path, "ONNX Runtime", model, inputs, run=run)


def _program(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """Export the model in eval mode for any number of samples."""
    count = pytree.count(inputs)
    args, kwargs = pytree.arguments(pytree.clone(inputs))

    batch_size = Dim("batch")

    def dims(x: Any) -> Any:
        # As in pytree.index_batch: a tensor with one entry per sample is cut, any other is a constant of the batch.
        is_batched = isinstance(x, Tensor) and x.dim() and len(x) == count
        return {0: batch_size} if is_batched else None

    shapes = {
        name: tree_map(dims, value) for name, value in _named_arguments(model, inputs).items()
    }
    try:
        with torch.no_grad(), preserve_model_state(model):
            return torch.export.export(model, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:
        raise SennError(
            f"the model can't be exported for batches of any size: {summarize_error(error)}"
        ) from error


def _named_arguments(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """Return the arguments of the forward by name."""
    args, kwargs = pytree.arguments(inputs)
    # Fewer arguments than parameters is usual: the others have defaults.
    return {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}


def _argument_names(model: nn.Module, inputs: Inputs) -> list[str]:
    """Name the tensors of the inputs after the forward's arguments."""
    names: list[str] = []
    for name, value in _named_arguments(model, inputs).items():
        names += _numbered(name, len(pytree.tensor_leaves(value)))
    return names


def _output_names(model: nn.Module, inputs: Inputs) -> list[str]:
    with torch.no_grad(), preserve_model_state(model):
        result = pytree.call(model, pytree.clone(inputs))
    return _numbered("output", len(pytree.tensor_leaves(result)))


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name}_{at}" for at in range(count)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what exporters print about their progress."""
    # torch.onnx prints through loggers and warnings alike.
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
