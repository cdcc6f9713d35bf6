"""Policies of Stable-Baselines3 grow while they learn, and are saved and loaded as before."""

from __future__ import annotations

import pytest
import torch

import senn

pytest.importorskip("stable_baselines3")

from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO

from senn.integrations.stable_baselines3 import PolicyExpansion, _Objective, _Outputs
from senn.training import TrainConfig


def small(kind=PPO, env="CartPole-v1", **settings):
    settings = {"n_steps": 128, "seed": 0, "device": "cpu", **settings}
    return kind("MlpPolicy", env, policy_kwargs={"net_arch": [2]}, **settings)


@pytest.mark.parametrize(("kind", "env"), [(PPO, "CartPole-v1"), (A2C, "Pendulum-v1")])
def test_both_networks_grow_and_a_saved_model_is_loaded(kind, env, tmp_path):
    growth = PolicyExpansion()
    model = small(kind, env).learn(1024, callback=growth)
    events = [one for one in growth.session.history if one["event"] == "growth"]
    assert events
    assert not [one for one in growth.session.history if one["event"] == "fault"]
    held = {id(one) for group in model.policy.optimizer.param_groups for one in group["params"]}
    assert held == {id(one) for one in model.policy.parameters()}
    widths = model.policy_kwargs["net_arch"]
    assert widths["pi"][0] + widths["vf"][0] > 4
    model.save(tmp_path / "model")
    again = kind.load(tmp_path / "model", env=model.get_env())
    seen = torch.randn(5, *model.observation_space.shape)
    with torch.no_grad():
        assert torch.equal(_Outputs(again.policy)(seen), _Outputs(model.policy)(seen))
    again.learn(256)  # the optimizer's state has the sizes, too


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_objective_has_the_policy_gradient_and_the_fisher_of_the_distribution(env):
    model = small(env=env)
    objective, actions = _Objective(model.policy), model.policy.action_net.out_features
    torch.manual_seed(0)
    observations = torch.randn(6, *model.observation_space.shape)
    outputs = _Outputs(model.policy)(observations).detach().requires_grad_()
    distribution = model.policy.get_distribution(observations).distribution
    acted, advantage, returned = distribution.sample(), torch.randn(6, 1), torch.randn(6, 1)
    former = distribution.log_prob(acted).detach().view(6, -1)
    targets = [acted.view(6, -1), advantage, former, returned, torch.full((6, 1), 2.0)]
    targets = torch.cat(targets, dim=1)

    def scores(draws):
        """Derivatives of the log-probability by what the policy says."""
        z = outputs[:, :-1].detach()
        if env == "CartPole-v1":
            return torch.nn.functional.one_hot(draws.long(), actions) - z.softmax(1)
        return (draws - z) / model.policy.log_std.detach().exp() ** 2

    (gradient,) = torch.autograd.grad(objective.loss(outputs, targets), outputs)
    assert torch.allclose(6 * gradient[:, :-1], -advantage * scores(acted), atol=1e-5)
    assert torch.allclose(6 * gradient[:, -1:], (outputs[:, -1:] - returned) / 4, atol=1e-5)
    found = objective.hessian(outputs, targets).detach()
    drawn = scores(distribution.sample((20_000,)))
    fisher = (drawn[..., :, None] * drawn[..., None, :]).mean(0)
    assert torch.allclose(found[:, :-1, :-1], fisher, rtol=0.05, atol=0.02)
    assert torch.equal(found[:, -1, -1], torch.full((6,), 0.25))
    assert not found[:, -1, :-1].any()


def test_what_isnt_understood_is_refused_by_name():
    with pytest.raises(senn.SennError, match="'width' and 'prune', not 'depth'"):
        PolicyExpansion(TrainConfig(moves=("depth",)))
    with pytest.raises(senn.UnsupportedError, match="DQN is no on-policy algorithm"):
        DQN("MlpPolicy", "CartPole-v1", device="cpu").learn(8, callback=PolicyExpansion())
    model = small()
    model.policy.action_space = spaces.MultiBinary(3)
    with pytest.raises(senn.UnsupportedError, match=r"actions of MultiBinary\(3\)"):
        _Objective(model.policy)
