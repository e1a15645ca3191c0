"""One self-contained HTML page about a run: what was done, how good it is, and how far to trust it."""

from scanprior.reporting.page import write_report

__all__ = ["write_report"]
