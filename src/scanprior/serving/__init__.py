"""The server: runs answer images that come over HTTP, for programs and for a page in a browser."""

from __future__ import annotations

from scanprior.errors import ConfigError

try:
    from scanprior.serving.server import serve
except ModuleNotFoundError as error:
    if error.name is None or error.name.startswith("scanprior"):
        raise
    raise ConfigError(f"serve needs {error.name}; pip install 'scanprior[serve]'") from None

__all__ = ["serve"]
