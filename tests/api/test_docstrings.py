"""Every example in a docstring runs and says the truth, and every verb is documented."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

import scanprior
from scanprior import api, serving, studies

MODULES = [
    module.name
    for module in pkgutil.walk_packages(scanprior.__path__, "scanprior.")
    if not module.name.endswith("__main__")
]


def test_examples_in_docstrings() -> None:
    tried = failed = 0
    for name in MODULES:
        module = importlib.import_module(name)
        if ">>>" in inspect.getsource(module):
            result = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
            tried, failed = tried + result.attempted, failed + result.failed
    assert tried >= 3 and not failed


HOMES = {"study": studies, "serve": serving}  # of the others: api
VERBS = [name for name in scanprior.__all__ if name != "__version__"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_is_in_the_package_and_says_what_it_takes(verb: str) -> None:
    function = getattr(HOMES.get(verb, api), verb)
    assert function is getattr(scanprior, verb)
    text = inspect.getdoc(function) or ""
    named = [name for name in inspect.signature(function).parameters if name not in ("arguments",)]
    missing = [name for name in named if name not in text]
    assert verb == "probe" or not missing, f"{verb}: {missing}"


def test_names_that_are_none() -> None:
    for module in (scanprior, api):
        with pytest.raises(AttributeError, match="pretrian"):
            getattr(module, "pretrian")  # noqa: B009
