"""The command line: one thin function a command, heavy imports inside."""

from scanprior.cli.app import app, main

from scanprior.cli import data, training, results, explanation, exporting, serving, browsing, studies, about  # isort: skip  # the order of --help

__all__ = [
    "about",
    "app",
    "browsing",
    "data",
    "explanation",
    "exporting",
    "main",
    "results",
    "serving",
    "studies",
    "training",
]
