"""Regimes of a recipe: what they may say, the steps they become, and what older recipes keep."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from scanprior.config import build
from scanprior.errors import ConfigError
from scanprior.studies.parts import Arm
from scanprior.studies.plan import steps_of
from scanprior.studies.recipe import Recipe, known_recipes, read_recipe
from studies.test_recipe import TREE

REGIMES: dict[str, Any] = {
    "linear": {"probe": "linear"},
    "attention": {"settings": {"adapt": {"train": "none"}, "task": {"pooling": "attention"}}},
    "full": {"settings": {"engine": {"layer_decay": 0.9}}, "inits": ["scratch", "mae"]},
}


def tree(**changes: Any) -> dict[str, Any]:
    made = copy.deepcopy({**TREE, "regimes": REGIMES, **changes})
    made["inits"]["given"] = {"settings": {"encoder": {"depth": 2}}}
    made["tasks"] = {"one": made["tasks"]["one"]}
    return made


def test_every_init_becomes_a_training_in_every_regime() -> None:
    recipe = build(Recipe, tree())
    steps = {step.name: step for step in steps_of(recipe)}
    arms = [
        *(f"{init}@{regime}" for regime in ("linear", "attention") for init in ("scratch", "mae", "given")),
        "scratch@full", "mae@full",
    ]  # fmt: skip
    assert [arm.name for arm in recipe.arms_of("one")] == arms
    runs = [step for step in steps.values() if step.kind == "finetune"]
    assert {step.name.split("/")[2] for step in runs} == set(arms)
    assert len(runs) == len(arms) * 3 * 2
    full = steps["runs/one/mae@full/40/seed4"]
    assert full.facts == {"task": "one", "init": "mae", "regime": "full", "labels": 40, "seed": 4}
    assert full.options["engine"]["layer_decay"] == 0.9, "a regime's settings lie over its init's"
    assert full.start == "pretrained/mae" and full.probe is None
    assert [name for name, _ in full.tuned_by] == [f"tuning/one/mae@full/100/{n}" for n in range(4)]
    attention = steps["runs/one/given@attention/all/seed3"]
    assert attention.options["task"] == {"pooling": "attention"}
    assert attention.options["encoder"] == {"depth": 2}
    probe = steps["runs/one/mae@linear/40/seed4"]
    assert probe.probe == "linear" and not probe.tuned_by, "a probe has nothing that the grid could choose"
    assert not any("@linear" in name for name in steps if name.startswith("tuning/"))
    assert probe.drifts == () and steps["runs/one/mae@linear/all/seed3"].drifts == ("gamma",)


def test_ensembles_are_of_inits_in_regimes() -> None:
    made = tree()
    made["tasks"]["one"]["ensembles"] = {"both": {"members": ["scratch@full", "mae@linear", "mae@full+1"]}}
    steps = {step.name: step for step in steps_of(build(Recipe, made))}
    both = steps["runs/one/both/all/seed3"]
    assert both.needs == tuple(
        f"runs/one/{name}/all/seed3" for name in ("scratch@full", "mae@linear", "mae@full+1")
    )
    assert both.facts == {"task": "one", "init": "both", "labels": "all", "seed": 3}
    again = steps["runs/one/mae@full+1/all/seed3"]
    assert again.kind == "member" and again.options["engine"]["seed"] == 1003
    made["tasks"]["one"]["ensembles"]["both"]["members"] = ["scratch@full", "mae"]
    with pytest.raises(ConfigError, match=r"the task has no init 'mae'; did you mean 'mae@linear'"):
        build(Recipe, made)
    made["tasks"]["one"]["ensembles"]["both"]["members"] = ["scratch@full", "mae@linear"]
    left = build(Recipe, made).without([], ["mae"])
    assert not left.tasks["one"].ensembles and list(left.inits) == ["scratch", "given"]
    assert left.regimes["full"].inits == ["scratch"]


RANDOM = {"scratch": {"random": True}, "mae": {"start": "mae"}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"regimes": {"full": {"inits": ["mea"]}}}, "regimes.full.inits: there is no init 'mea' .* did you mean 'mae'"),
        ({"regimes": {"full": {"inits": ["mae"]}}}, "regimes.full.inits: the baseline 'scratch' is not among them"),
        ({"regimes": {"full": {"probe": "lineal"}}}, "regimes.full.probe"),
        ({"regimes": {"full": {"settings": {"data": {"split": {}}}}}}, "regimes.full.settings.data.split: .* divided"),
        ({"regimes": {"a@b": {}}}, "regimes"),
        ({"baseline_regime": "ful"}, "baseline_regime: there is no regime 'ful' in the recipe; did you mean 'full'"),
        ({"inits": {**RANDOM, "mae": {"start": "mae", "random": True}}}, "inits.mae: random: an init that starts from"),
        ({"inits": {**RANDOM, "scratch": {"random": True, "settings": {"encoder": {"weights": "w.pth"}}}}},
         "inits.scratch.random: its encoder.weights is 'w.pth', so it has no random weights"),
        ({"inits": RANDOM, "settings": {"encoder": {"pretrained": True}}}, "inits.scratch.random: its encoder.pretra"),
        ({"inits": {**RANDOM, "mae": {"start": "mae", "if_absent": "skip"}}}, "inits.mae.if_absent"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_regimes_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(Recipe, {**copy.deepcopy(TREE), "regimes": {"full": {}}, **changes})


def test_segmentations_have_no_probe() -> None:
    with pytest.raises(ConfigError, match=r"regimes.linear.probe: tasks.two is a segmentation"):
        build(Recipe, {**copy.deepcopy(TREE), "regimes": REGIMES})


def test_what_is_written_of_a_recipe_without_the_newer_keys_is_as_it_was() -> None:
    """The fingerprint in results.json, and study.yaml, are of what is written."""
    recipe = build(Recipe, TREE)
    assert set(recipe.model_dump()) == {
        "name", "title", "question", "data", "settings", "pretraining", "inits", "baseline", "tasks", "seeds", "folds",
        "shift", "resamples", "level",
    }  # fmt: skip
    assert set(recipe.model_dump(mode="json")["inits"]["mae"]) == {"start", "settings"}
    assert recipe.arms_of("one") == [Arm("scratch"), Arm("mae")] and not recipe.corrects
    assert all("regime" not in step.facts for step in steps_of(recipe))
    again = build(Recipe, build(Recipe, tree(costs=True, correction="none")).model_dump())
    assert again.costs and not again.corrects and again.regimes["linear"].probe == "linear"


def test_the_recipe_of_the_package() -> None:
    assert {"transfer", "transfer-quick"} <= set(known_recipes())
    recipe = read_recipe("transfer")
    published = [name for name, init in recipe.inits.items() if not init.random]
    assert len(published) == 6 and all(recipe.inits[name].if_absent == "leave_out" for name in published)
    options = recipe.settings_of("retina", Arm("dinov2-b", "original"))
    assert options["augment"] == {"preset": "medical_transfer"}
    assert options["selection"] == {"metric": "quadratic_kappa"}
    frozen = recipe.settings_of("retina", Arm("dinov2-b", "attention"))
    assert frozen["augment"] == {"preset": "none"}, "so that features can be kept"
