"""Recipes: what they may say, and the steps they become."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml

from scanprior.config import build
from scanprior.errors import ConfigError
from scanprior.studies.plan import steps_of
from scanprior.studies.recipe import Recipe, known_recipes, read_recipe

TREE: dict[str, Any] = {
    "name": "made",
    "data": {"a": {}, "b": {}},
    "settings": {"engine": {"steps": 5}, "data": {"size": 32}},
    "pretraining": {"mae": {"data": ["a", "b"], "objective": "mae"}},
    "inits": {"scratch": {}, "mae": {"start": "mae", "settings": {"engine": {"layer_decay": 0.5}}}},
    "tasks": {
        "one": {
            "data": "a",
            "labels": [10, 40, "all"],
            "metrics": ["auroc"],
            "tune": {"labels": [10, 100], "grid": {"engine.lr": [0.1, 0.2], "engine.steps": [5, 6]}},
            "elsewhere": {"b": {"data": "b"}},
            "drifts": ["gamma"],
        },
        "two": {
            "data": "b",
            "metrics": ["dice"],
            "settings": {"task": {"name": "segment"}},
            "inits": ["scratch", "mae"],
        },
    },
    "shift": {"b": {"encoder": "mae", "reference": "a", "target": "b"}},
    "seeds": [3, 4],
}


ENSEMBLE = "tasks/one/ensembles/both"


def changed(place: str, value: Any) -> dict[str, Any]:
    tree = copy.deepcopy(TREE)
    *path, last = place.split("/")
    node = tree
    for name in path:
        node = node.setdefault(name, {})
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("tasks/one/data", "aa", r"tasks.one.data: there is no data set 'aa' in the recipe; did you mean 'a'"),
        ("tasks/one/inits", ["may"], "tasks.one.inits: there is no init 'may' in the recipe; did you mean 'mae'"),
        ("tasks/one/elsewhere/b", {"data": "x"}, "tasks.one.elsewhere.b.data: there is no data set 'x'"),
        ("tasks/one/elsewhere/test", {"data": "b"}, "'test' is the name of the task's own images"),
        ("tasks/one/drifts", ["gama"], "there is no drift 'gama'; did you mean 'gamma'"),
        ("tasks/one/labels", [0], "labels"),
        ("tasks/one/metrics", [], "metrics"),
        ("tasks/one/tune/grid", {"engine.lr": []}, "engine.lr: give at least one value"),
        ("baseline", "none", "baseline: there is no init 'none' in the recipe; known here: scratch, mae"),
        ("pretraining/mae/data", ["c"], "pretraining.mae.data: there is no data set 'c'"),
        ("pretraining/mae/start", "x", "pretraining.mae.start: there is no pretraining 'x'"),
        ("shift/b/encoder", "scratch", "'scratch' has no start, so no encoder to look with"),
        ("tasks/one/settings/data", {"split": {"seed": 1}}, "patients divided once for the whole study"),
        ("inits/mae/settings/data", {"label_columns": ["x"]}, "inits.mae.settings.data.label_columns: images are read"),
        ("settings/data/label_map", {"x": "y"}, "settings.data.label_map: say how a data set is read in data.NAME"),
        ("tasks/one/elsewhere/b", {"data": "a"}, "tasks.one.elsewhere.b.data: 'a' is what the task is trained on"),
        ("tasks/one/metrics", ["aurocc"], "tasks.one.metrics: there is no 'aurocc'; did you mean 'auroc'"),
        ("tasks/two/metrics", ["auroc"], "tasks.two.metrics: there is no 'auroc'; choose of dice"),
        ("tasks/one/subgroups", {"age": [65, 0]}, "age: the edges of bands must rise, found"),
        ("tassks", {}, "tassks: unknown configuration key; did you mean 'tasks'"),
        ("seeds", [], "seeds"),
        ("seeds", [0, 1, 0], "seeds: 0 is given twice; keep one of them"),
        ("tasks/one/labels", ["all", 10, "all"], "tasks.one.labels: 'all' is given twice"),
        ("tasks/one/tune/labels", [10, 10], "tasks.one.tune.labels: 10 is given twice"),
        ("tasks/one/tune/grid", {"engine.lr": [0.1, 0.1]}, "engine.lr: 0.1 is given twice"),
        ("tasks/one/metrics", ["auroc", "auroc"], "tasks.one.metrics: 'auroc' is given twice"),
        ("tasks/one/inits", [], r"tasks.one.inits: \[\] will not do; list should have at least 1 item"),
        ("inits", {}, "inits: {} will not do"),
        ("tasks/one/inits", ["mae"], "tasks.one.inits: the baseline 'scratch' is not among them"),
        ("tasks/one/zzz", 1, "tasks.one.zzz: unknown configuration key; known here: contrasts, data, drifts"),
        ("tasks/one/elsewhere/b/zzz", 1, "tasks.one.elsewhere.b.zzz: unknown configuration key; known here: data, map"),
        (ENSEMBLE, {"members": ["mae"]}, "tasks.one.ensembles.both.members: .* at least 2 items"),
        (ENSEMBLE, {"members": ["mae", "mae"]}, r"members: 'mae' is given twice; for another training .* mae\+1"),
        (ENSEMBLE, {"members": ["mae", "mae+0"]}, "tasks.one.ensembles.both.members"),
        (ENSEMBLE, {"members": ["mae", "scratsh"]}, "the task has no init 'scratsh'; did you mean 'scratch'"),
        (ENSEMBLE, {"members": ["mae", "scratch"], "method": "median"}, "tasks.one.ensembles.both.method: 'median'"),
        ("tasks/one/ensembles", {"mae": {"members": ["mae", "scratch"]}}, "ensembles.mae: there is an init of this"),
        ("tasks/two/ensembles", {"both": {"members": ["mae", "mae+1"]}}, "tasks.two.ensembles: the task is a segment"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(place: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(Recipe, changed(place, value))


def test_a_circle_of_pretrainings_is_named() -> None:
    tree = changed("pretraining/second", {"data": ["a"], "objective": "mae", "start": "mae"})
    tree["pretraining"]["mae"]["start"] = "second"
    with pytest.raises(ConfigError, match="goes round in a circle: mae <- second <- mae"):
        build(Recipe, tree)


def test_the_steps_of_a_recipe() -> None:
    tree = changed("pretraining/next", {"data": ["a"], "objective": "gmml", "start": "mae"})
    tree["inits"]["next"] = {"start": "next"}
    tree["tasks"]["one"]["inits"] = ["mae", "scratch"]
    tree["pretraining"] = dict(reversed(tree["pretraining"].items()))  # the order of the file does not matter
    steps = {step.name: step for step in steps_of(build(Recipe, tree))}
    assert len(steps) == 2 + 1 + 2 * 2 * 4 + 2 * (3 * 2 + 2)
    assert steps["pretrained/next"].needs == ("pretrained/mae",) == (steps["pretrained/next"].start,)
    names = list(steps)
    for place, step in enumerate(steps.values()):
        assert all(names.index(need) < place for need in step.needs)
    tuned = steps["tuning/one/mae/100/3"]
    assert tuned.options["engine"] == {"steps": 6, "layer_decay": 0.5, "seed": 100, "lr": 0.2}
    assert tuned.options["labels"] == {"seed": 100, "count": 100}
    run = steps["runs/one/mae/40/seed4"]
    # 40 lies nearer to 100 than to 10 by ratio
    assert [name for name, _ in run.tuned_by] == [f"tuning/one/mae/100/{n}" for n in range(4)]
    assert run.tuned_by[1][1] == {"engine": {"lr": 0.1, "steps": 6}}
    assert run.start == "pretrained/mae" and run.options["labels"] == {"seed": 4, "count": 40}
    whole = steps["runs/one/scratch/all/seed3"]
    assert whole.options["labels"] == {"seed": 3} and whole.start is None
    assert whole.drifts == ("gamma",) and not run.drifts  # curves are of the largest budget
    assert steps["runs/two/mae/all/seed3"].options["task"] == {"name": "segment"}
    assert "runs/two/next/all/seed3" not in steps


def test_runs_of_a_study_keep_no_training_images_unless_the_recipe_asks() -> None:
    steps = [step for step in steps_of(build(Recipe, TREE)) if step.kind in ("tune", "finetune")]
    assert {step.facts["task"] for step in steps} == {"one", "two"}  # classes and masks
    assert all(step.options["trust"] == {"reference_images": 0} for step in steps)
    asked = steps_of(build(Recipe, changed("tasks/two/settings/trust", {"reference_images": 9})))
    kept = {step.facts["task"]: step.options["trust"] for step in asked if step.kind == "finetune"}
    assert kept == {"one": {"reference_images": 0}, "two": {"reference_images": 9}}


def test_the_steps_of_ensembles() -> None:
    tree = changed(ENSEMBLE, {"members": ["scratch", "mae+1"], "method": "geometric"})
    tree["tasks"]["one"]["ensembles"]["twins"] = {"members": ["mae", "mae+1", "mae+2"]}
    before = {step.name: step for step in steps_of(build(Recipe, TREE))}
    steps = {step.name: step for step in steps_of(build(Recipe, tree))}
    assert {name: step for name, step in steps.items() if name in before} == before, "the rest stays as it is"
    assert len(steps) == len(before) + 2 * 3 * (2 + 2)
    names = list(steps)
    for place, step in enumerate(steps.values()):
        assert all(names.index(need) < place for need in step.needs), step.name
    both = steps["runs/one/both/all/seed4"]
    assert both.kind == "ensemble" and both.method == "geometric"
    assert both.needs == ("runs/one/scratch/all/seed4", "runs/one/mae+1/all/seed4")
    assert both.drifts == ("gamma",) and both.elsewhere == {"b": ("b", {})}
    assert both.facts == {"task": "one", "init": "both", "labels": "all", "seed": 4}
    again, own = steps["runs/one/mae+1/40/seed3"], steps["runs/one/mae/40/seed3"]
    assert again.kind == "member" and again.needs == own.needs and again.tuned_by == own.tuned_by
    assert again.options["labels"] == own.options["labels"] == {"seed": 3, "count": 40}
    assert (own.options["engine"]["seed"], again.options["engine"]["seed"]) == (3, 1003)
    assert not again.elsewhere and not again.drifts
    tree["seeds"] = [3, 1003]
    with pytest.raises(ConfigError, match="seeds: two differ by a multiple of 1000"):
        build(Recipe, tree)


def test_an_ensemble_goes_with_a_member_that_goes() -> None:
    tree = changed("data/c", {})
    tree["pretraining"]["far"] = {"data": ["c"], "objective": "mae"}
    tree["inits"]["far"] = {"start": "far"}
    tree["tasks"]["one"]["ensembles"] = {
        "left": {"members": ["scratch", "mae+1"]}, "gone": {"members": ["mae", "far+1"]}
    }  # fmt: skip
    assert list(build(Recipe, tree).without(["c"]).tasks["one"].ensembles) == ["left"]


def test_exclusive_keys_of_the_engine_replace_each_other() -> None:
    tree = changed("settings/engine", {"epochs": 3, "lr": 0.5})
    tree["tasks"]["one"]["settings"] = {"engine": {"steps": 7}}
    tree["tasks"]["one"]["tune"]["grid"] = {"engine.lr_per_256": [0.1, 0.2]}
    steps = {step.name: step for step in steps_of(build(Recipe, tree))}
    tuned = steps["tuning/one/scratch/10/1"].options["engine"]
    assert tuned == {"steps": 7, "lr_per_256": 0.2, "seed": 100}
    assert steps["runs/two/mae/all/seed3"].options["engine"]["epochs"] == 3


def test_what_needs_data_that_is_not_there_is_left_out() -> None:
    tree = changed("pretraining/onlyb", {"data": ["b"], "objective": "mae"})
    tree["pretraining"]["after"] = {"data": ["a"], "objective": "mae", "start": "onlyb"}
    tree["inits"]["after"] = {"start": "after"}
    tree["tasks"]["one"]["inits"] = ["scratch", "after"]
    left = build(Recipe, tree).without(["b"])
    assert list(left.tasks) == ["one"] and not left.tasks["one"].elsewhere and not left.shift
    assert list(left.pretraining) == ["mae"] and left.pretraining["mae"].data == ["a"]
    assert list(left.inits) == ["scratch", "mae"] and left.tasks["one"].inits == ["scratch"]
    with pytest.raises(
        ConfigError, match="made: no data for any task; give --data NAME=PATH for one of a, b"
    ):
        build(Recipe, TREE).without(["a", "b"])


def test_recipes_of_the_package_are_sound() -> None:
    assert "ss-cxr" in known_recipes() and "ss-cxr-quick" in known_recipes()
    for name in known_recipes():
        recipe = read_recipe(name)
        assert recipe.question and steps_of(recipe)


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean ss-cxr"):
        read_recipe("sscxr")
    with pytest.raises(ConfigError, match="no such configuration file"):
        read_recipe(tmp_path / "mine.yaml")
    with pytest.raises(ConfigError, match="has no quick form; these have: entropy-mae, ss-cxr"):
        read_recipe(tmp_path / "mine.yaml", quick=True)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(changed("tasks/one/data", "aa")))
    with pytest.raises(ConfigError, match=r"mine.yaml: tasks.one.data: there is no data set 'aa'"):
        read_recipe(tmp_path / "mine.yaml")
