"""What to say when a batch does not fit into memory: how many images would."""

from __future__ import annotations

from collections.abc import Callable

import torch

_CPU = ("can't allocate memory", "not enough memory")
"""What PyTorch's allocator says of the main memory, as a plain RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out, on a GPU or in main memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _CPU)


def fitting(attempt: Callable[[int], None], images: int) -> int:
    """Return the largest half, quarter, ... of a number of images that can be worked on; 0 = not even one.

    Args:
        attempt: works on so many images, and raises what ``is_out_of_memory`` knows where they are too many.
        images: that are too many.
    """
    count = images
    while count > 1 and count % 2 == 0:
        count //= 2
        try:
            attempt(count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        return count
    return 0
