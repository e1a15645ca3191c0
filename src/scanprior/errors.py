"""The errors a user can meet. Each message is one sentence: what, the value found, what to do.

The command line prints the message alone and exits with code 2; ``--debug`` adds the traceback.
"""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Numbers of the system's errors that mean: no space is left."""


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


def system_sentence(error: OSError) -> str | None:
    """Return what the user is told of an error of the system: the file, the reason, and what to do.

    None where it names no file and is no full disk: then it is a fault of the program.
    """
    reason = (error.strerror or str(error)).lower()
    full = error.errno in FULL
    if error.filename is None and not full:
        return None
    where = f"{error.filename}: " if error.filename is not None else ""
    return f"{where}{reason}{'; free some and run this again' if full else ''}"
