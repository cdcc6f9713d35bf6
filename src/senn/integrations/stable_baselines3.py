"""Growth of a policy that Stable-Baselines3 trains: `PPO(...).learn(steps, callback=PolicyExpansion())`.

The networks of an on-policy algorithm (PPO, A2C), those of the policy and of the value, start small and grow while they
learn. A round looks at a rollout at the moment when it has been collected: then the policy is the one that acted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from senn.errors import SennError, UnsupportedError
from senn.training.callbacks import Callback as Listener
from senn.training.growth_session import GrowthSession
from senn.training.train_config import TrainConfig

try:
    from gymnasium import spaces
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
    from stable_baselines3.common.policies import ActorCriticPolicy
except ImportError as error:
    raise SennError(
        "senn.integrations.stable_baselines3 needs stable-baselines3: pip install 'senn[rl]'"
    ) from error

__all__ = ["PolicyExpansion"]

logger = logging.getLogger("senn")

ROUNDS = TrainConfig(
    growth_steps=10**9,  # of the whole run, however long
    addition_rounds=(0.05, 0.1, 0.2, 0.3, 0.4),
    pruning_rounds=(0.6,),
    moves=("width", "prune"),
    max_scoring_samples=2048,
)
"""Settings of growth where none are given: `learn` takes hundreds of thousands of steps, so rounds spread over it."""

_CLIP = 0.2
"""How far from 1 a ratio of probabilities may move before the objective stops to rewards it (PPO's own default)."""


class PolicyExpansion(BaseCallback):
    """Grows the networks of an on-policy algorithm while it learns.

    Rounds minimize PPO's clipped objective plus half the squared error of the value in units of the returns' variance,
    on the rollout's samples with normalized advantages (Schulman et al. 2017, *Proximal policy optimization
    algorithms*, arXiv 1707.06347, equations 7 and 9, without the entropy). The metric is the Fisher of the policy and
    of a value of that variance, as in ACKTR (Wu et al. 2017, *Scalable trust-region method for deep reinforcement
    learning using Kronecker-factored approximation*, arXiv 1708.05144). One optimizer has the parameters of both
    networks, and its state is carried along. `policy_kwargs` of the algorithm say the new widths, so that `save` and
    `load` go on to work.

    Args:
        recipe: settings of growth; None for `ROUNDS`. `GrowthSession` lists the fields that are used; steps are those
            of the environment. Layers can't be added: `policy_kwargs` would not say where.
        samples: number of samples, for prices; None for that of a rollout.
        callbacks: listeners to the records (`senn.training.Callback`).
        verbose: as of Stable-Baselines3.

    Attributes:
        session: the `GrowthSession`: `session.history` has all records.

    Raises:
        SennError: the recipe adds layers.
        UnsupportedError: at the start of training, of an algorithm, a policy or an action space that isn't understood.

    Example:
        >>> from stable_baselines3 import PPO
        >>> from senn.integrations.stable_baselines3 import PolicyExpansion
        >>> model = PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [2]}, n_steps=64, seed=0, device="cpu")
        >>> growth = PolicyExpansion()
        >>> model = model.learn(256, callback=growth)
        >>> sum(record["event"] == "growth_round" for record in growth.session.history) > 0
        True
    """

    def __init__(
        self,
        recipe: TrainConfig | None = None,
        *,
        samples: int | None = None,
        callbacks: Iterable[Listener] = (),
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        recipe = recipe or ROUNDS
        if "depth" in recipe.moves_of(is_table=False):
            raise SennError("the moves of a policy are 'width' and 'prune', not 'depth'")
        self._recipe, self._samples, self._listeners = recipe, samples, [*callbacks]
        self.session: GrowthSession

    def _on_training_start(self) -> None:
        model = self.model
        if not isinstance(model, OnPolicyAlgorithm):
            raise UnsupportedError(
                f"{type(model).__name__} is no on-policy algorithm: PPO and A2C can grow, but not algorithms with "
                "target networks or several optimizers"
            )
        if not isinstance(model.policy, ActorCriticPolicy):
            raise UnsupportedError(f"{type(model.policy).__name__} is no actor-critic policy")
        objective = _Objective(model.policy)
        self.session = GrowthSession(
            self._recipe,
            loss=objective.loss,
            loss_hessian=objective.hessian,
            samples=self._samples or model.n_steps * model.n_envs,
            ignore=("policy.features_extractor",),
            callbacks=self._listeners,
        )
        self.session.start(
            _Outputs(model.policy), model.policy.optimizer, steps=model._total_timesteps
        )

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        step = self.num_timesteps
        # A round needs one rollout, the latest: an older one was collected by another policy.
        if not self.session.needs_batch(step):
            return
        self.session.add_batch(_samples(self.model), step)
        if self.session.grow(step):
            self._write_widths()

    def _on_training_end(self) -> None:
        self.session.close(self.num_timesteps)

    def _write_widths(self) -> None:
        """Say the widths where Stable-Baselines3 looks for them when it builds the policy anew."""
        policy = self.model.policy
        assert isinstance(policy, ActorCriticPolicy)  # as at the start
        networks = {"pi": policy.mlp_extractor.policy_net, "vf": policy.mlp_extractor.value_net}
        widths = {
            key: [one.out_features for one in net if isinstance(one, nn.Linear)]
            for key, net in networks.items()
        }
        policy.net_arch = self.model.policy_kwargs["net_arch"] = widths
        extractor = policy.mlp_extractor
        extractor.latent_dim_pi = widths["pi"][-1] if widths["pi"] else extractor.latent_dim_pi
        extractor.latent_dim_vf = widths["vf"][-1] if widths["vf"] else extractor.latent_dim_vf


class _Outputs(nn.Module):
    """What a policy computes before it draws: parameters of the distribution, and the value, (N, k + 1)."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, observations: Tensor) -> Tensor:
        policy = self.policy
        features = policy.extract_features(observations)
        if policy.share_features_extractor:
            of_policy, of_value = policy.mlp_extractor(features)
        else:
            of_policy = policy.mlp_extractor.forward_actor(features[0])
            of_value = policy.mlp_extractor.forward_critic(features[1])
        return torch.cat([policy.action_net(of_policy), policy.value_net(of_value)], dim=1)


class _Objective:
    """Loss of these outputs, and its Gauss-Newton Hessian.

    Targets are (N, a + 3): the action, its advantage, its log-probability under the policy that acted, and the return
    in standard deviations of the returns, by which values are divided as well.

    Args:
        policy: says how actions are distributed.

    Raises:
        UnsupportedError: actions are neither discrete nor Gaussian.
    """

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.policy = policy
        self.is_discrete = isinstance(policy.action_space, spaces.Discrete)
        is_gaussian = isinstance(policy.action_space, spaces.Box) and not policy.use_sde
        if not self.is_discrete and not is_gaussian:
            how = " with use_sde" if policy.use_sde else ""
            raise UnsupportedError(
                f"actions of {policy.action_space}{how} aren't supported: Discrete and Box are"
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss of samples."""
        advantage, former, returned, deviation = targets[:, -4:].T
        ratio = (self._log_probability(outputs[:, :-1], targets[:, :-4]) - former).exp()
        clipped = ratio.clamp(1 - _CLIP, 1 + _CLIP)
        gain = torch.minimum(ratio * advantage, clipped * advantage)
        error = (outputs[:, -1] - returned) / deviation
        value: Tensor = (error.square() / 2 - gain).mean()
        return value

    def hessian(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Compute the Fisher of each sample's outputs, (N, k + 1, k + 1)."""
        count = outputs.shape[1]
        found = outputs.new_zeros(len(outputs), count, count)
        if self.is_discrete:
            chance = outputs[:, :-1].softmax(1)
            found[:, :-1, :-1] = chance.diag_embed() - chance[:, :, None] * chance[:, None, :]
        else:
            precision = self._log_std().mul(-2).exp().expand(len(outputs), -1)
            found[:, :-1, :-1] = precision.diag_embed()
        found[:, -1, -1] = targets[:, -1] ** -2
        return found

    def _log_probability(self, outputs: Tensor, actions: Tensor) -> Tensor:
        if self.is_discrete:
            return F.log_softmax(outputs, dim=1).gather(1, actions.long())[:, 0]
        normal = torch.distributions.Normal(outputs, self._log_std().exp())
        found: Tensor = normal.log_prob(actions).sum(1)  # type: ignore[no-untyped-call]
        return found

    def _log_std(self) -> Tensor:
        found: Tensor = self.policy.log_std.detach()
        return found


def _samples(model: Any) -> tuple[Tensor, Tensor]:
    """Read the rollout that has just been collected: observations, and targets of the objective."""
    buffer = model.rollout_buffer

    def flat(array: Any) -> Tensor:
        return torch.as_tensor(buffer.swap_and_flatten(array), device=model.device)

    advantage, returned = flat(buffer.advantages), flat(buffer.returns)
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    deviation = torch.full_like(returned, float(returned.std()) + 1e-8)
    parts = [flat(buffer.actions).float(), advantage, flat(buffer.log_probs), returned, deviation]
    return flat(buffer.observations).float(), torch.cat(parts, dim=1)
