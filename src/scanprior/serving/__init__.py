"""The server: runs answer images that come over HTTP, for programs and for a page in a browser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scanprior.errors import ConfigError

if TYPE_CHECKING:
    from scanprior.serving.server import serve

__all__ = ["serve"]


def __getattr__(name: str) -> Any:
    """Import the server on first use: the processes that decode uploads need none of it."""
    if name != "serve":
        raise AttributeError(f"module 'scanprior.serving' has no attribute {name!r}")
    try:
        from scanprior.serving.server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("scanprior"):
            raise
        raise ConfigError(f"serve needs {error.name}; pip install 'scanprior[serve]'") from None
    return serve
