"""Recipe of `senn fit` for a table: from the options, and checked against the network at the start."""

from __future__ import annotations

from dataclasses import replace

import torch

from senn.cli.prepared_data import check_start, chosen_policy, recipe_fields
from senn.data import TableEncoder
from senn.runs import FitOptions, RunStart
from senn.training import TrainConfig
from senn.training.builders import build_model, start_widths


def table_recipe(options: FitOptions) -> TrainConfig:
    """Build the recipe of defaults and options.

    Args:
        options: of the run.

    Raises:
        SennError: an option is out of range, or belongs to another policy.
    """
    fields = recipe_fields(options)
    if options.cv is not None and options.max_seconds is not None:
        # The user's limit is one of the command's: folds and run share it.
        fields["max_seconds"] = options.max_seconds / (options.cv + 1)
    return TrainConfig(policy=chosen_policy(options), frontier=True, **fields)


def checked(
    recipe: TrainConfig, encoder: TableEncoder, features: int, begun_with: RunStart | None
) -> TrainConfig:
    """Check a recipe as far as is possible by now, and give it the widths that a resumed run began with.

    Args:
        recipe: of the options.
        encoder: of the rows.
        features: number of inputs.
        begun_with: how a run began that is resumed; None for a new one.

    Raises:
        SennError: a limit is below the network at the start, or an option is unknown.
    """
    start = start_widths(features, encoder.target.outputs, recipe)
    if begun_with is not None and begun_with.is_original:
        recipe = replace(recipe, members=1)  # version 0.1 trained one network
    if begun_with is not None and begun_with.widths not in (None, start):
        recipe = replace(recipe, hidden=begun_with.widths)
    # The draws for this network must not shift those of training.
    with torch.random.fork_rng(devices=[]):
        model = build_model(features, encoder.target.outputs, recipe)
    check_start(model, recipe, (features,))
    return recipe
