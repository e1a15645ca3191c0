"""How much a request may ask for, so that no sender can stop the server for the others."""

from __future__ import annotations

from dataclasses import dataclass, fields

from scanprior.data.readers.image import MAX_PIXELS
from scanprior.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """What one request may ask for, and all of them together.

    Attributes:
        upload_mb: megabytes of one request.
        files: of one request.
        pixels: of one image.
        upload_seconds: that a request may take to arrive.
        read_seconds: that one file may take to be decoded; then its decoder is ended.
        images_waiting: images of all requests together that have arrived and are not answered.
        memory_mb: megabytes of all uploads together that are arriving or waiting, as sent; decoded images come on top.
        batch_size: images that go through the network together.
    """

    upload_mb: int = 200
    files: int = 64
    pixels: int = 50_000_000
    upload_seconds: int = 60
    read_seconds: int = 20
    images_waiting: int = 512
    memory_mb: int = 1_000
    batch_size: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value < 1:
                raise ConfigError(f"--{field.name.replace('_', '-')} {value}: give a number of at least 1")
        if self.pixels > MAX_PIXELS:
            raise ConfigError(f"--pixels {self.pixels}: at most {MAX_PIXELS} are ever read; give fewer")
        if self.files > self.images_waiting:
            raise ConfigError(
                f"--files {self.files}: at most {self.images_waiting} images can wait; give fewer"
            )
        if self.memory_mb < self.upload_mb:
            raise ConfigError(
                f"--memory-mb {self.memory_mb}: one request alone may have {self.upload_mb} MB; give at least that"
            )

    @property
    def upload_bytes(self) -> int:
        """Bytes of one request."""
        return self.upload_mb * 1_000_000
