"""``index``, ``check`` and ``prepare``: from a folder to a table, its defects, and a store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from scanprior.api.settings import DataConfig
from scanprior.api.sources import read_manifest
from scanprior.config import build, merge, nest, parse_settings
from scanprior.data.check import Audit
from scanprior.data.check import check as check_manifest
from scanprior.data.manifest import Manifest
from scanprior.data.store import Store
from scanprior.data.store import prepare as prepare_store
from scanprior.engine import Reporter


def _data_config(options: Mapping[str, Any] | None, settings: Iterable[str]) -> DataConfig:
    given = nest({name: value for name, value in (options or {}).items() if value is not None})
    tree = merge(given, parse_settings(settings))
    return build(DataConfig, tree.get("data", {}))


def index(
    source: str | Path,
    *,
    out: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> Manifest:
    """Read a source into a manifest: one row an image, with patient, split, label and side columns.

    Args:
        source: a folder, a table, a DICOM tree, an ``.npz`` file or ``medmnist:NAME``.
        out: a ``.parquet`` or ``.csv`` file to write.
        options, settings: ``data.*`` keys, such as ``{"data.label_columns": ["effusion"]}``.
        reporter: told what was found.
    """
    manifest = read_manifest(source, _data_config(options, settings))
    (reporter or Reporter()).note(manifest.found)
    if out is not None:
        manifest.save(Path(out))
    return manifest


def check(
    source: str | Path,
    *,
    near: bool = True,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> Audit:
    """Look for broken images, duplicates, patients in two splits, and gaps in the labels.

    Args:
        source: as for ``index``.
        near: look for near-duplicates too, not only for identical images.
        options, settings: ``data.*`` keys.
        reporter: shows progress.
    """
    reporter = reporter or Reporter()
    config = _data_config(options, settings)
    manifest = read_manifest(source, config)
    return check_manifest(
        manifest, workers=config.workers, near=near,
        progress=lambda done, total: reporter.counted(done, total, "images read"),
    )  # fmt: skip


def prepare(
    source: str | Path,
    *,
    out: str | Path,
    options: Mapping[str, Any] | None = None,
    settings: Iterable[str] = (),
    reporter: Reporter | None = None,
) -> Store:
    """Decode the images of a source once into a memory-mapped store; goes on where it was stopped.

    Args:
        source: as for ``index``.
        out: the folder to write.
        options, settings: ``data.*`` keys, such as ``{"data.size": 224}``.
        reporter: shows progress.
    """
    reporter = reporter or Reporter()
    config = _data_config(options, settings)
    manifest = read_manifest(source, config)
    reporter.note(manifest.found)
    return prepare_store(
        manifest, Path(out), size=config.store_size or config.size, channels=config.channels, depth=config.depth,
        fit=config.fit, workers=config.workers, progress=reporter.preparing,
    )  # fmt: skip
