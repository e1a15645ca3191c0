"""The application that the commands register with, and how errors leave it."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from scanprior import __version__
from scanprior.errors import ScanpriorError, system_sentence

app = typer.Typer(
    name="scanprior",
    help="Learn a prior from the scans you have, and spend your few labels well.",
    epilog="First steps: scanprior demo, then scanprior check YOUR_FOLDER. Research use only, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Run the command line; user errors become one sentence and exit code 2."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], standalone_mode=True)
    except ScanpriorError as error:
        if debug:
            raise
        _fail(str(error))
    except OSError as error:
        sentence = system_sentence(error)
        if debug or sentence is None:
            raise
        _fail(sentence)


def _fail(sentence: str) -> None:
    from rich.console import Console

    Console(stderr=True, highlight=False).print(f"error: {sentence}", markup=False, soft_wrap=True)
    raise SystemExit(2)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"scanprior {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Global options."""


def say(*lines: str) -> None:
    """Print lines as they are."""
    from scanprior.terminal import console

    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def console_reporter() -> Any:
    """Return what shows progress on the terminal."""
    from scanprior.console import ConsoleReporter

    return ConsoleReporter()
