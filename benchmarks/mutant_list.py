"""Hand-picked mutants of formulas: one factor, sign, transpose or fold each. A list, so longer than other files."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change of one formula.

    Attributes:
        file: path below `src/senn`.
        what: what is wrong in it.
        old: text to be changed, which stands in the file exactly once.
        new: text in its place.
        tests: paths of the tests that should notice.
    """

    file: str
    what: str
    old: str
    new: str
    tests: tuple[str, ...]


FORMULAS = "scoring/formulas.py"
GAINS = "scoring/gains.py"
RESIDUAL = "scoring/residual_statistics.py"
FACTORS = "kfac/factors.py"
POLICY = "policies/policy.py"
_SCORING = (
    "tests/scoring/test_formulas.py",
    "tests/scoring/test_scoring_session.py",
    "tests/scoring/test_growth_rounds.py",
    "tests/grower/test_grower_figures.py",
)
_POLICIES = ("tests/grower/test_policies.py", "tests/grower/test_grower_figures.py")
_LOSSES = (
    "tests/kfac/test_loss_metric.py",
    "tests/kfac/test_loss_per_position.py",
    "tests/kfac/test_loss_units.py",
)
_NORMS = ("tests/surgery/test_norm_kinds.py", "tests/graph/test_tracing_rules.py")


def _mutants(file: str, tests: tuple[str, ...], *changes: tuple[str, str, str]) -> list[Mutant]:
    return [
        Mutant(file=file, what=what, old=old, new=new, tests=tests) for what, old, new in changes
    ]


MUTANTS = [
    *_mutants(
        FORMULAS,
        _SCORING,
        (
            "eta without its locations",
            "return locations * half.square().sum((-2, -1))",
            "return half.square().sum((-2, -1))",
        ),
        (
            "the natural step is not transposed back",
            "return solve(cholesky(A, damping), solve(cholesky(S, damping), G).mT).mT",
            "return solve(cholesky(A, damping), solve(cholesky(S, damping), G).mT)",
        ),
        (
            "the cross moment keeps what existing columns explain",
            "return C - G @ prediction",
            "return C + 0 * G @ prediction",
        ),
        (
            "the Schur complement adds the prediction",
            "return A_pp - prediction.mT @ A_cp",
            "return A_pp + prediction.mT @ A_cp",
        ),
        (
            "the gain is that of its lower bound",
            "return trace_product(white, white, schur + _level(A_pp, damping), locations=locations)",
            "return trace_product(white, white, A_pp.double(), locations=locations)",
        ),
        (
            "a quadratic's decrease without its factor 2",
            "return 2 * length * slope - length**2 * curvature",
            "return length * slope - length**2 * curvature",
        ),
        (
            "a quadratic's decrease with half of its curvature",
            "return 2 * length * slope - length**2 * curvature",
            "return 2 * length * slope - length**2 * curvature / 2",
        ),
        (
            "a held-out gain without S",
            "curvature = ((S.double() @ step) * (step @ A.double())).sum((-2, -1))",
            "curvature = (step * (step @ A.double())).sum((-2, -1))",
        ),
        (
            "a pruning cost of the weights as they are",
            "    v = w.double() - step.double()\n",
            "    v = w.double() + 0 * step.double()\n",
        ),
        (
            "a pruning cost without S",
            "return trace_product(v, S.double() @ v, A_inv.double(), locations=locations)",
            "return trace_product(v, v, A_inv.double(), locations=locations)",
        ),
        (
            "compensation of the wrong sign",
            "taken_over: Tensor = -torch.linalg.solve",
            "taken_over: Tensor = torch.linalg.solve",
        ),
        (
            "rows are multiplied by the moment, not by its inverse",
            "return rows / moment if moment.shape[-1] == 1",
            "return rows * moment if moment.shape[-1] == 1",
        ),
        (
            "the bound on additions without its first one",
            "return 1.0 - math.log(alpha) / math.log1p(tau)",
            "return -math.log(alpha) / math.log1p(tau)",
        ),
    ),
    *_mutants(
        GAINS,
        _SCORING,
        (
            "held-out values count what accepted units predict already",
            "value = quadratic_decrease(held_out_slope - crossed, curvature, length)",
            "value = quadratic_decrease(held_out_slope, curvature, length)",
        ),
        (
            "the length of a step forgets the accepted ones",
            "slope = (fitted_slope - crossed).clamp_min(0)",
            "slope = fitted_slope.clamp_min(0)",
        ),
        (
            "steps are longer than K-FAC's own",
            "return flat, slope / torch.maximum(curvature, slope).clamp_min(1e-30)",
            "return flat, slope / curvature.clamp_min(1e-30)",
        ),
        (
            "a step is valued on the fold that it was fitted on",
            "held_out_slope = (step * _by_group(self.held_out.cross, columns)).sum((-2, -1))",
            "held_out_slope = (step * _by_group(self.fit.cross, columns)).sum((-2, -1))",
        ),
        (
            "a whitened step is taken for the map's own in its length",
            "        flat = unwhiten_outputs(self.whitener, flat)\n        curvature",
            "        curvature",
        ),
        (
            "an accepted unit doesn't count in eta",
            "self.eta += float(self.gain(group, output_basis)[0])",
            "self.eta += 0 * float(self.gain(group, output_basis)[0])",
        ),
        (
            "the standard error is that of the samples, not of their mean",
            "stderr = (by_sample / self.locations).std(0, correction=0) / self.n_held_out**0.5",
            "stderr = (by_sample / self.locations).std(0, correction=0)",
        ),
        (
            "the natural step stays whitened",
            "return unwhiten_outputs(self.whitener, self._white_step)",
            "return self._white_step",
        ),
        (
            "weights after their step move uphill",
            "whiten_weights(self.whitener, weight.double()) - steps",
            "whiten_weights(self.whitener, weight.double()) + steps",
        ),
        (
            "activation parameters by the wrong side of their columns",
            "metric = through.mT @ through  # M^T S M",
            "metric = torch.eye(through.shape[1], dtype=through.dtype)  # M^T S M",
        ),
    ),
    *_mutants(
        RESIDUAL,
        _SCORING,
        (
            "an eliminated column stays in the cross moment",
            "cross=self.cross - self.cross[:, columns] @ share.mT,",
            "cross=self.cross,",
        ),
        (
            "an eliminated column stays in the residual moment",
            "residual=self.residual - share @ self.residual[columns],",
            "residual=self.residual,",
        ),
        (
            "an eliminated column stays in the kept samples",
            "samples=None if self.samples is None else self.samples.without(columns, share),",
            "samples=self.samples,",
        ),
        (
            "the last accepted step alone is remembered",
            "total = effect[:, 0] if self.accepted is None else self.accepted + effect[:, 0]",
            "total = effect[:, 0]",
        ),
    ),
    *_mutants(
        "scoring/insertions.py",
        _SCORING,
        (
            "an identity insertion through the whitener, not transposed",
            "return whiten_weights(self.layer_gains[point].whitener, self._weight(point))",
            "return self.layer_gains[point].whitener @ self._weight(point)",
        ),
        (
            "an identity insertion without the inverse of its base",
            "self.whitened_weight(point) @ torch.linalg.inv(layer.weight.double())",
            "self.whitened_weight(point) @ layer.weight.double()",
        ),
    ),
    *_mutants(
        "scoring/account_steps.py",
        ("tests/scoring/test_births.py",),
        (
            "existing columns give what they should take back",
            "return [step, -step @ prediction(gains, columns).mT]",
            "return [step, step @ prediction(gains, columns).mT]",
        ),
        (
            "a birth's length of the wrong fold",
            "before.fit = gains.first_fit",
            "before.fit = gains.held_out",
        ),
    ),
    *_mutants(
        "scoring/births.py",
        ("tests/scoring/test_births.py",),
        (
            "a birth that all rows contradict is kept",
            "if stepped and keeps:",
            "if stepped:",
        ),
        (
            "a step is given up at a 64th of its length",
            "*(0.25**k for k in range(3, 11)))",
            "0.25**3)",
        ),
        (
            "the whole of the best length is given",
            "silent, given = loss(), STEP_FRACTION * length",
            "silent, given = loss(), length",
        ),
        (
            "a parabola's vertex on the wrong side",
            "return b - ((b - a) * left",
            "return b + ((b - a) * left",
        ),
    ),
    *_mutants(
        "scoring/ablation.py",
        ("tests/grower/test_grower.py",),
        (
            "units go and nothing takes over",
            "= weight[:, gone] @ coefficients",
            "= 0",
        ),
    ),
    *_mutants(
        "scoring/greedy.py",
        ("tests/scoring/test_births.py",),
        (
            "units are chosen however little of them is new",
            "worth * share.clamp(0, 1)",
            "worth",
        ),
    ),
    *_mutants(
        "scoring/pruning_costs.py",
        _SCORING,
        (
            "kept columns don't take over",
            "self.weights = self.weights[..., rest] + self.weights[..., gone] @ coefficients",
            "self.weights = self.weights[..., rest]",
        ),
        (
            "the inverse of what stays is a block of the former one",
            "self._now = inverse[rest][:, rest] + inverse[rest][:, gone] @ coefficients",
            "self._now = inverse[rest][:, rest]",
        ),
        (
            "costs of one fold only",
            "return self._products(columns, 1, 2)",
            "return self._products(columns, 1, 1)",
        ),
    ),
    *_mutants(
        "scoring/network_score.py",
        _SCORING,
        (
            "the network's score without its curvature",
            "return min(slope**2 / max(curvature, 1e-300), score_limit) if slope > 0 else 0.0",
            "return min(slope, score_limit) if slope > 0 else 0.0",
        ),
    ),
    *_mutants(
        FACTORS,
        _SCORING,
        (
            "the covariance of pseudo-gradients over the rows of A",
            "return _mean(self.grad_cov, self.rows)",
            "return _mean(self.grad_cov, 2 * self.rows)",
        ),
        (
            "damping that ignores the scale",
            "diagonal += diagonal.mean(-1, keepdim=True).clamp_min(1e-30) * damping",
            "diagonal += damping",
        ),
        (
            "Woodbury's inverse without its rows",
            "return (right - self.a.mT @ solve(self.products, self.a @ right)) / self.level",
            "return right / self.level",
        ),
        (
            "ridge residuals that are off by the number of rows",
            "return len(new) * self.level * solve(self.products, new)",
            "return self.level * solve(self.products, new)",
        ),
    ),
    *_mutants(
        POLICY,
        _POLICIES,
        (
            "the paper's threshold is the smaller of the two",
            "threshold = max(self.tau * max(c.eta, 0.0)",
            "threshold = min(self.tau * max(c.eta, 0.0)",
        ),
        (
            "the paper's removals are compared with lambda, not with eta",
            "self.prune_fraction * max(c.eta, 0.0)",
            "self.prune_fraction * c.score_limit",
        ),
        (
            "the paper's score isn't capped by lambda",
            "return min(candidate.eta + gain, candidate.score_limit) - candidate.eta",
            "return gain",
        ),
        (
            "a price that forgets the number of samples",
            "return self.kappa * parameters / max(counted, 1)",
            "return self.kappa * parameters",
        ),
        (
            "standard errors are added to a decrease",
            "decrease = candidate.expected_decrease - self.confidence * stderr",
            "decrease = candidate.expected_decrease + self.confidence * stderr",
        ),
        (
            "a layer pays like a unit",
            "            decrease /= self.layer_cost\n",
            "            decrease /= 1.0\n",
        ),
    ),
    *_mutants(
        "policies/candidate.py",
        _POLICIES,
        (
            "a decrease of the whole score, not half of it",
            "return gain / (2 * self.loss_per_nat)",
            "return gain / self.loss_per_nat",
        ),
    ),
    *_mutants(
        "kfac/closed_forms.py",
        _LOSSES,
        (
            "cross-entropy's Hessian forgets weights and ignored targets",
            "curvature=SoftmaxHessian(p=log_p.clamp_min(-LOGIT).exp(), total=total),",
            "curvature=SoftmaxHessian(p=log_p.clamp_min(-LOGIT).exp(), total=torch.ones_like(total)),",
        ),
        (
            "ignored targets count in the mean",
            "scale: Tensor = (len(y) / share.sum()) * used",
            "scale: Tensor = (1 / y[0, 0].numel()) * used",
        ),
        (
            "smoothing without the share of the other classes",
            "smooth = torch.full_like(y, smoothing / classes)",
            "smooth = torch.zeros_like(y)",
        ),
        (
            "a squared error with half of its curvature",
            "curvature=DiagonalHessian(torch.full_like(residual, 2 / m)),",
            "curvature=DiagonalHessian(torch.full_like(residual, 1 / m)),",
        ),
        (
            "binary cross-entropy of logits forgets pos_weight in its curvature",
            "curvature = scale * (positive + 1 - t) * clamped",
            "curvature = scale * clamped",
        ),
        (
            "a divergence whose gradient isn't divided by the outputs",
            "gradient=-scale * t.flatten(1),",
            "gradient=-t.flatten(1),",
        ),
        (
            "a label at each ignored position",
            'return float((target != options["ignore_index"]).sum()) / max(len(target), 1)',
            "return positions",
        ),
    ),
    *_mutants(
        "kfac/output_metric.py",
        _LOSSES,
        (
            "the curvature from the secant is twice too large",
            "    return 1 / (low + high)\n",
            "    return 2 / (low + high)\n",
        ),
    ),
    *_mutants(
        "kfac/gaussian_nll.py",
        _LOSSES,
        (
            "the information of a variance is that of a mean",
            "shared / (2 * v**2)",
            "shared / v",
        ),
        (
            "one variance of several targets counts once",
            "shared = mean.shape[1] / v.shape[1]",
            "shared = 1",
        ),
    ),
    *_mutants(
        "kfac/loss_metric.py",
        _LOSSES,
        (
            "a dispersion upside down",
            "return max(gradient_square / max(curvature_trace, 1e-300), 1e-30)",
            "return max(curvature_trace / max(gradient_square, 1e-300), 1e-30)",
        ),
    ),
    *_mutants(
        "graph/norm_record.py",
        _NORMS,
        (
            "a norm's factor upside down",
            "return (width - self.spare) / (width + units - self.spare)",
            "return (width + units - self.spare) / (width - self.spare)",
        ),
        (
            "an unbiased variance divides by all units",
            "return (width - self.spare) / (width + units - self.spare)",
            "return width / (width + units)",
        ),
    ),
    *_mutants(
        "scoring/validation_samples.py",
        ("tests/scoring/test_validation_samples.py",),
        (
            "a standard error of one part, not of their mean",
            "float(rises.std()) / math.sqrt(len(rises))",
            "float(rises.std())",
        ),
        (
            "losses of the parts unpaired",
            "rises = after - before",
            "rises = after - before.flip(0)",
        ),
    ),
    *_mutants(
        "events/frontier_records.py",
        ("tests/grower/test_frontier.py",),
        (
            "a number of units that grows with the exponent, not with its inverse",
            "times_data ** (1 / self.cost_exponent)",
            "times_data**self.cost_exponent",
        ),
    ),
    *_mutants(
        "batch_norms.py",
        ("tests/training/test_batch_norm.py",),
        (
            "an average over the last batches in place of a mean",
            "one.momentum = None  # the mean of all batches",
            "one.momentum = 0.1",
        ),
    ),
    *_mutants(
        "peft/directions.py",
        ("tests/lora/test_directions.py",),
        (
            "new directions that existing units have already",
            "whitened = whitened - (whitened @ basis) @ basis.mT",
            "whitened = whitened - 0 * (whitened @ basis) @ basis.mT",
        ),
        (
            "singular values in place of their squares",
            "gains=factors.locations * sigma.square()",
            "gains=factors.locations * sigma",
        ),
        (
            "a removed unit without what the others take over",
            "return (inverse / inverse.diagonal()[:, None]) @ down",
            "return down",
        ),
    ),
    *_mutants(
        "peft/scored_pairs.py",
        ("tests/lora/test_rank_allocator.py",),
        (
            "a step whose curvature counts in full",
            "decreases = lengths * slopes[:new] - lengths**2 * curvatures[:new] / 2",
            "decreases = lengths * slopes[:new] - lengths**2 * curvatures[:new]",
        ),
        (
            "a removal against the slope of a step",
            "costs = curvatures[new:] / 2 - slopes[new:]",
            "costs = curvatures[new:] / 2 + slopes[new:]",
        ),
    ),
]
