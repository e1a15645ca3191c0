"""The errors a user can meet. Each message is one sentence: what, the value found, what to do.

The command line prints the message alone and exits with code 2; ``--debug`` adds the traceback.
"""

from __future__ import annotations


class ScanpriorError(Exception):
    """Base of every error that the user, not the program, can mend."""


class ConfigError(ScanpriorError):
    """A configuration key or value is wrong."""


class DataError(ScanpriorError):
    """A source, manifest, table or store is unusable as given."""


class ImageReadError(DataError):
    """One image cannot be read; ``reason`` names the defect without the path.

    Args:
        path: the file as the user named it.
        reason: what is wrong with it, in a few words.
    """

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type[ImageReadError], tuple[str, str]]:
        return ImageReadError, (self.path, self.reason)


class SplitError(DataError):
    """A split cannot be made or used as asked."""


class WeightsError(ScanpriorError):
    """A weights file is unsafe, damaged, or of another network."""


class RunError(ScanpriorError):
    """A run folder exists, is missing, incomplete, or from a newer version."""


class TrainingError(ScanpriorError):
    """Training cannot go on (a loss that is not finite, no data, a full disk)."""
