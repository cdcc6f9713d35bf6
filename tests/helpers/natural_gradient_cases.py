"""Small problems in float64 and their dense curvature, for the tests of `NaturalGradient`."""

import torch
import torch.nn.functional as F

from senn.optim import NaturalGradient

D = torch.float64
EXACT = {"momentum": 0.0, "norm_constraint": None, "lr": 1.0}


def problem(model, n=40, outputs=3, seed=0, loss=F.cross_entropy):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=generator, dtype=D)
    if loss is F.cross_entropy:
        return model.to(D), x, torch.randint(0, outputs, (n,), generator=generator)
    return model.to(D), x, torch.randn(n, outputs, generator=generator, dtype=D)


def dense(model, x, y, loss):
    """Gradient and Gauss-Newton matrix of all parameters, from torch.func alone."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    output = torch.func.functional_call(model, parameters, (x,))
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(model, p, (x,)))(parameters)
    j = torch.cat([block.reshape(*output.shape, -1) for block in jacobian.values()], 2)
    hessian = torch.func.hessian(lambda out: loss(out, y))(output)
    gradient = torch.func.grad(lambda out: loss(out, y))(output)
    fisher = torch.einsum("nia,ninj,njb->ab", j, hessian, j)
    return torch.einsum("nia,ni->a", j, gradient), fisher


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def one_step(model, x, y, loss, **options):
    before = flat(model)
    optimizer = NaturalGradient(model, loss=loss, **options)
    optimizer.step(x, y)
    return flat(model) - before, optimizer


def solve(fisher, gradient, damping):
    return torch.linalg.solve(fisher + damping * torch.eye(len(gradient), dtype=D), gradient)
