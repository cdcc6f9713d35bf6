"""Runs that the tests of the report share: real ones, a long one, one with names that want to break out."""

import math
import random
from functools import cache

import torch

from senn.checkpoint import save
from senn.policies import PricePolicy
from senn.runs import RunFolder
from senn.training import TrainConfig, train

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=2'>&amp;\u2028{{}}<!--@script-->"


@cache
def waves(seed=0):
    """A real run in which layers are inserted, widened and pruned: (the run, its results)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(600, 2, generator=generator)
    y = ((2 * x[:, 0]).sin() * (2 * x[:, 1]).sin() > 0).long()
    policy = PricePolicy(kappa=0.003, layer_cost=1.0)
    recipe = TrainConfig(hidden=(3,), policy=policy, epochs=12, seed=seed, frontier=True)
    run = train(x, y, task="classification", outputs=2, recipe=recipe)
    data = {"name": "waves", "rows": 600, "train_rows": 500, "test_rows": 100, "features": 2,
            "target": "inside", "classes": ["no", "yes"],
            "columns": {"x": "number", "y": "number"}, "notes": []}  # fmt: skip
    results = {
        "task": "classification", "seed": seed, "optimizer": "adamw", "policy": "PricePolicy()", "data": data,
        "architecture": list(run.architecture), "parameters": run.parameters, "seconds": run.seconds,
        "best_epoch": run.best_epoch, "interrupted": False, "test": {"accuracy": 0.9, "log_loss": 0.3},
        "validation": run.validation, "growth_events": sum(one["event"] == "growth" for one in run.history),
        "versions": {"senn": "0"},
    }  # fmt: skip
    return run, results


PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJ"
    "RU5ErkJggg=="
)
PICTURE_DETAILS = {
    "pairs": None,
    "wrong": 3,
    "wrongest": [{"image": PIXEL, "true": 0, "taken_for": 1, "probability": 0.9}],
    "constant": [0.5, 0.5],
    "linear": None,
}
"""What is kept of a test of images, of which one is shown."""


def picture_results(results):
    """Results of a run on images of two classes."""
    data = {"name": "pets", "kind": "images", "shape": [48, 48, 3], "train_rows": 20, "test_rows": 10,
            "classes": ["cat", HOSTILE], "class_rows": [12, 18], "notes": []}  # fmt: skip
    return {
        **results,
        "data": data,
        "test": {"accuracy": 0.7, "f1": 0.5},
        "intervals": {"accuracy": [0.4, 0.9], "f1": None},
        "baselines": {"constant": {"accuracy": 0.5, "f1": 0.0}, "linear": {"accuracy": 0.6}},
        "confusion": [[3, 1], [2, 4]],
        "positive": "cat",
        "test_notes": ["the linear model is fitted to 5 of 20 rows, drawn at random"],
        "cross_validation": {
            "folds": [{"train_rows": 15, "test_rows": 5, "test": {"accuracy": 0.8, "f1": None},
                       "baselines": {}, "architecture": [4], "parameters": 30, "best_epoch": 1, "seconds": 1.0}],
            "mean": {"accuracy": 0.8, "f1": None, "parameters": 30.0},
            "spread": {"accuracy": 0.1, "f1": None, "parameters": 2.0},
            "baselines": {"constant": {"accuracy": 0.5}},
        },
    }  # fmt: skip


def folder_of(run, results, path):
    """A run's folder, as `senn fit` writes it."""
    with RunFolder(path) as folder:
        save(folder.draft, run.model, {})
        folder.write_history(run.history)
        folder.write_results(results)
        folder.publish()
    return path


def candidate(rng, kind, place, width, promise):
    price = abs(rng.gauss(0, 1)) * 1e-4
    sign = -1 if kind == "prune" else 1
    return {
        "kind": kind,
        "place": place,
        "detail": f"{rng.randint(1, 64)} of 256 candidates",
        "units": 1,
        "width": width,
        "parameters": sign * rng.randint(50, 900),
        "gain": 2 * promise,
        "gain_lower_bound": promise,
        "held_out_gain": 2 * promise,
        "held_out_stderr": abs(promise) / 5,
        "eta": 3.0,
        "score_limit": 0.7,
        "samples": 50000,
        "loss_per_nat": 1.0,
        "cross_fold_gain": promise,
        "expected_decrease": promise,
        "price": sign * price,
        "margin": promise - price,
        "reason": "",
    }


def long_run(events=500, seed=0, name=str):
    """The history of a run with so many changes of size, two a round, over ten layers and more.

    Args:
        events: changes.
        seed: of what is drawn.
        name: what places are called, from a number.
    """
    rng = random.Random(seed)
    widths = {f"body.{name(3 * at)}": 16 for at in range(10)}
    maps, steps = [*widths, "head"], 40 * events
    start = {"event": "start", "epoch": 0, "step": 0, "task": "classification", "epochs": 200, "steps": steps,
             "train_rows": 50000, "validation_rows": 5000, "architecture": list(widths.values()), "parameters": 9000,
             "optimizer": "adamw", "policy": "PricePolicy", "flops": 10**6}  # fmt: skip
    history, parameters, loss, epoch = [start], 9000, 2.3, 0
    for number in range(events // 2):
        step = (number + 1) * steps // (events // 2 + 1)
        while (epoch + 1) * steps // 200 < step:
            epoch += 1
            loss *= 0.985
            history.append({
                "event": "epoch", "epoch": epoch, "epochs": 200, "step": epoch * steps // 200, "steps": steps,
                "train_loss": loss, "validation_loss": loss * 1.1 + 0.05, "validation_score": 1 - loss / 3, "lr": 0.01,
                "architecture": list(widths.values()), "parameters": parameters, "flops": 100 * parameters,
                "seconds": epoch * 1.5,
            })  # fmt: skip
        places = rng.sample(sorted(widths), 2)
        accepted, changes = [], []
        for place in places:
            before, units = widths[place], rng.randint(1, 8)
            kind = "prune" if number % 5 == 4 and before > 20 else "widen"
            after = before - units if kind == "prune" else before + units
            chosen = [
                candidate(rng, kind, place, before + 1 + at, rng.random() / (number + 1))
                for at in range(units)
            ]
            accepted += chosen
            widths[place] = after
            cost = sum(one["parameters"] for one in chosen)
            parameters += cost
            changes.append(
                {
                    "event": "growth",
                    "epoch": epoch + 1,
                    "step": step,
                    "kind": kind,
                    "place": place,
                    "detail": "1 of 256",
                    "width_before": before,
                    "width_after": after,
                    "units": units,
                    "parameters": cost,
                    "gain": 0.1,
                    "gain_lower_bound": 0.05,
                    "held_out_gain": 0.1,
                    "held_out_stderr": 0.01,
                    "expected_decrease": sum(one["expected_decrease"] for one in chosen),
                    "price": 0.001,
                    "loss_per_nat": 1.0,
                    "eta_before": 3.0,
                    "eta_after": 3.1,
                    "score_limit": 0.7,
                    "loss_before": loss,
                    "loss_after": loss,
                    "output_change": 1e-7,
                    "round": number + 1,
                    "realized_decrease": rng.random() / (number + 1),
                    "text": "",
                }
            )
        kinds = ("widen", "insert", "prune")
        refused = [
            candidate(rng, kind, place, 30, -rng.random() / 1e4) for place in maps for kind in kinds
        ]
        history.append(
            {
                "event": "growth_round",
                "epoch": epoch + 1,
                "step": step,
                "round": number + 1,
                "moves": ["width", "depth"],
                "n_samples_seen": 1024,
                "samples": 50000,
                "loss": loss,
                "loss_per_nat": 1.0,
                "parameters": parameters,
                "eta": 3.0,
                "eta_by_map": {place: rng.random() for place in maps},
                "score_limit": 0.7,
                "accepted": accepted,
                "refused": refused,
            }
        )
        history += [{**change, "architecture": list(widths.values())} for change in changes]
    last = {"event": "end", "best_epoch": epoch, "epochs": epoch, "architecture": list(widths.values()),
            "parameters": parameters, "seconds": 300.0, "validation": {"loss": loss, "accuracy": 0.9},
            "interrupted": False, "reason": "all epochs done"}  # fmt: skip
    return [*history, last]


def few_candidates(history):
    """A history whose rounds list one candidate in eight."""
    for record in history:
        record |= {key: record[key][::8] for key in ("accepted", "refused") if key in record}
    return history


def short_run():
    """A history with one of everything, and little of it."""
    whole = few_candidates(long_run(4))
    for record in whole:
        record |= {"eta_by_map": {"body.0": 1.0, "head": 0.5}} if "eta_by_map" in record else {}
    rollback = {
        "event": "rollback",
        "epoch": 9,
        "step": 10**6,
        "text": "it raised the loss by 3, more than 1",
    }
    records = [
        *whole[:6],
        *(one for one in whole[6:] if one["event"] in ("growth_round", "growth")),
        rollback,
        whole[-1],
    ]
    return sorted(records, key=lambda one: one.get("step", math.inf))
