"""Names of the activations that a model uses, as hints for what to insert."""

from __future__ import annotations

# Modules that are a per-unit non-linearity; other modules are recognised by the operations that they call.
_MODULES = frozenset(
    (
        *("CELU", "ELU", "GELU", "Hardshrink", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyReLU", "LogSigmoid"),
        *("Mish", "PReLU", "RReLU", "Rational", "ReLU", "ReLU6", "SELU", "SiLU", "Sigmoid", "Softplus", "Softshrink"),
        *("Softsign", "Tanh", "Tanhshrink", "Threshold"),
    )
)
_OPERATIONS = {
    "celu": "CELU",
    "elu": "ELU",
    "gelu": "GELU",
    "hardsigmoid": "Hardsigmoid",
    "hardswish": "Hardswish",
    "hardtanh": "Hardtanh",
    "leaky_relu": "LeakyReLU",
    "log_sigmoid_forward": "LogSigmoid",
    "mish": "Mish",
    "prelu_kernel": "PReLU",
    "relu": "ReLU",
    "sigmoid": "Sigmoid",
    "silu": "SiLU",
    "softplus": "Softplus",
    "tanh": "Tanh",
}


def activation_of(module: str, operation: str) -> str | None:
    """Class name of the activation that an operation is, inside a module of the given class."""
    return module if module in _MODULES else _OPERATIONS.get(operation)
