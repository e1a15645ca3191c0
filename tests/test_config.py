"""The configuration: layers, settings on the command line, and sentences about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from scanprior.config import Config, build, dump_yaml, load_yaml, merge, nest, parse_settings
from scanprior.errors import ConfigError


class Inner(Config):
    learning_rate: float = Field(1e-3, gt=0)
    names: list[str] = Field([])


class Outer(Config):
    engine: Inner
    other: Inner | None = None
    flag: bool = False
    named: dict[str, Inner] = Field({})
    listed: list[Inner] | None = None


def test_settings_are_yaml_values() -> None:
    made = parse_settings(["engine.learning_rate=1e-4", "engine.names=[a, b]", "flag=true", "other=null"])
    assert made == {"engine": {"learning_rate": 1e-4, "names": ["a", "b"]}, "flag": True, "other": None}


def test_later_layers_win_key_by_key() -> None:
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert merge({"a": 1}, {"a": {"b": 3}}) == {"a": {"b": 3}}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            ["engine.learning_rte=1"],
            "engine.learning_rte: unknown configuration key; did you mean 'learning_rate'?",
        ),
        (
            ["other.learning_rte=1"],
            "other.learning_rte: unknown configuration key; did you mean 'learning_rate'?",
        ),
        (["engin.x=1"], "engin: unknown configuration key; did you mean 'engine'?"),
        (["zzz=1"], "zzz: unknown configuration key; known here: engine, flag, listed, named, other"),
        (["named.one.zzz=1"], "named.one.zzz: unknown configuration key; known here: learning_rate, names"),
        (["listed=[{zzz: 1}]"], "listed.0.zzz: unknown configuration key; known here: learning_rate, names"),
        (["engine.learning_rate=-1"], "engine.learning_rate: -1 will not do; input should be greater than 0"),
        (["engine.learning_rate=fast"], "engine.learning_rate: 'fast' will not do"),
    ],
)
def test_a_mistake_is_one_sentence(settings: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(Outer, {"engine": {}}, parse_settings(settings))
    assert str(error.value).startswith(sentence)


def test_settings_without_a_value_are_refused() -> None:
    with pytest.raises(ConfigError, match="write it as key=value"):
        parse_settings(["engine.learning_rate"])
    with pytest.raises(ConfigError, match="is not a value"):
        parse_settings(["a=[1"])
    with pytest.raises(ConfigError, match="give one or the other"):
        nest({"a": 1, "a.b": 2})


def test_yaml_comes_back_as_it_went(tmp_path: Path) -> None:
    model = build(Outer, {"engine": {"names": ["ü"]}, "flag": True})
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(model))
    assert build(Outer, load_yaml(path)) == model


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such configuration file"):
        load_yaml(tmp_path / "none.yaml")
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n")
    with pytest.raises(ConfigError, match="this holds a list"):
        load_yaml(path)
    path.write_text("a: [1")
    with pytest.raises(ConfigError, match="not readable as YAML"):
        load_yaml(path)


def test_a_key_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("engine:\n  steps: 1\n  lr: 2\n  steps: 3\n")
    with pytest.raises(
        ConfigError, match=r"config.yaml: the key 'steps' is given twice \(lines 2 and 4\); keep one"
    ):
        load_yaml(path)
    with pytest.raises(ConfigError, match=r"--set a: the key 'x' is given twice"):
        parse_settings(["a={x: 1, x: 1}"])
    path.write_text(
        "base: &base {x: 1, y: 2}\nmine: {<<: *base, x: 3}\nother: {x: 1}\n"
    )  # what YAML is meant to do
    assert load_yaml(path)["mine"] == {"x": 3, "y": 2}
