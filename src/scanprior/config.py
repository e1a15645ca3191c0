"""The typed configuration: strict models, YAML in and out, ``--set a.b=c``.

A resolved configuration is built from layers, later ones over earlier ones: the defaults of the
models, the published settings of the objective, a YAML file, the options of the command line.
Unknown keys are errors with a suggestion; nothing is ignored.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from scanprior.errors import ConfigError

Tree = dict[str, Any]


class Config(BaseModel):
    """Base of every section of the configuration: typed, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", validate_default=True, coerce_numbers_to_str=True)


Model = TypeVar("Model", bound=BaseModel)


class DoubledKey(yaml.YAMLError):
    """A key that stands twice in one mapping, of which YAML would silently keep the last."""


class _Loader(yaml.SafeLoader):
    """Reads plain YAML, and refuses a key that is given twice."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            line, name = key.start_mark.line + 1, (key.tag, str(key.value))
            if name in lines:
                where = f"lines {lines[name]} and {line}" if lines[name] != line else f"line {line}"
                raise DoubledKey(f"the key {key.value!r} is given twice ({where}); keep one of them")
            lines[name] = line
        return node


def parse_yaml(text: str) -> Any:
    """Read plain YAML.

    Raises:
        yaml.YAMLError: it is none, or gives a key twice (``DoubledKey``).
    """
    return yaml.load(text, Loader=_Loader)


def nest(flat: Mapping[str, Any]) -> Tree:
    """Turn dotted keys into a tree: ``{"a.b": 1}`` gives ``{"a": {"b": 1}}``."""
    tree: Tree = {}
    for dotted, value in flat.items():
        *path, last = dotted.split(".")
        node = tree
        for name in path:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{dotted}: {name!r} has a value of its own; give one or the other")
        node[last] = value
    return tree


def parse_settings(settings: Iterable[str]) -> Tree:
    """Read ``a.b=c`` settings; values are YAML, so ``1e-3``, ``true``, ``[1, 2]`` and ``null`` work.

    Raises:
        ConfigError: a setting without ``=`` or with a value that is not YAML.
    """
    flat: Tree = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set {setting!r}: write it as key=value, for example engine.batch_size=32")
        flat[name.strip()] = _parse_value(name, text)
    return nest(flat)


def _parse_value(name: str, text: str) -> Any:
    try:
        value = parse_yaml(text)
    except DoubledKey as error:
        raise ConfigError(f"--set {name}: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {name}: {text!r} is not a value ({type(error).__name__})") from error
    if isinstance(value, str) and value == text.strip():  # not quoted
        try:
            return float(value)  # YAML 1.1 reads 1e-3 as text
        except ValueError:
            return value
    return value


def merge(*layers: Mapping[str, Any]) -> Tree:
    """Merge trees, later ones over earlier ones; trees are merged key by key, other values replaced."""
    merged: Tree = {}
    for layer in layers:
        for name, value in layer.items():
            if isinstance(value, Mapping):
                below = merged.get(name)
                merged[name] = merge(below if isinstance(below, Mapping) else {}, value)
            else:
                merged[name] = value
    return merged


def load_yaml(path: Path) -> Tree:
    """Read a configuration file.

    Raises:
        ConfigError: the file is missing, is not YAML, gives a key twice, or does not hold keys and values.
    """
    try:
        tree = parse_yaml(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except DoubledKey as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not readable as YAML ({' '.join(str(error).split())})") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{path}: a configuration holds keys and values, this holds a {type(tree).__name__}"
        )
    return tree


def dump_yaml(model: BaseModel) -> str:
    """Write a complete configuration as YAML, in the order of its definition."""
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def build(model: type[Model], *layers: Mapping[str, Any]) -> Model:
    """Merge the layers and validate them.

    Raises:
        ConfigError: one sentence about the first wrong key or value.
    """
    try:
        return model.model_validate(merge(*layers))
    except ValidationError as error:
        raise ConfigError(_explain(error, model)) from error


def _explain(error: ValidationError, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(model, first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.6)
        advice = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(sorted(known))}"
        return f"{place}: unknown configuration key; {advice}"
    if first["type"] == "value_error":
        message = str(first["ctx"]["error"])
        return f"{place}: {message}" if place else message
    message = first["msg"][0].lower() + first["msg"][1:]
    return f"{place}: {first['input']!r} will not do; {message}"


def _fields_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section at a place, below lists and freely named entries too."""
    here: Any = model
    for part in path:
        here = _inside(here, part)
    section = _section(here)
    return list(section.model_fields) if section is not None else []


def _inside(annotation: Any, part: int | str) -> Any:
    """Return the type of an entry of a section, a mapping or a list."""
    section = _section(annotation)
    if section is not None:
        field = section.model_fields.get(str(part))
        return field.annotation if field is not None else None
    for entry in _alternatives(annotation):
        if get_origin(entry) in (dict, list, tuple):
            return get_args(entry)[-1]
    return None


def _section(annotation: Any) -> type[BaseModel] | None:
    for entry in _alternatives(annotation):
        if isinstance(entry, type) and issubclass(entry, BaseModel):
            return entry
    return None


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types that an annotation allows, without what only annotates them."""
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [found for part in get_args(annotation) for found in _alternatives(part)]
    return [annotation]
