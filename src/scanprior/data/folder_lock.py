"""One process at a time in a folder: an advisory lock on the folder itself, which leaves no file behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder that exists, waiting (and saying so) while another process holds it.

    The system lets go of it when the process ends, however it ends. File systems that have no such
    locks are worked on without one, which is said too.
    """
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("%s: another process is writing here; waiting until it is done", folder)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            log.warning("%s: cannot be locked (%s); let one process at a time write here", folder, error)
        yield
    finally:
        os.close(descriptor)
