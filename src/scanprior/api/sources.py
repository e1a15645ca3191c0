"""From what the user names to a prepared store with a split: index and prepare, cached by content."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scanprior.api.division import Learn, as_it_is, divided, leakage_across, split_card
from scanprior.api.settings import DataConfig
from scanprior.data.index import index as index_source
from scanprior.data.manifest import LABEL_ORDER, Manifest
from scanprior.data.masks import Masks, mask_columns, prepare_masks
from scanprior.data.split import NEAR_DUPLICATES
from scanprior.data.store import OWN_COLUMNS, ImageStore, Store, concatenate
from scanprior.data.store_writer import Preparation, prepare_together, request_key
from scanprior.data.transforms import Form, Preprocessing
from scanprior.engine import Reporter
from scanprior.errors import ConfigError, DataError


@dataclass
class Images:
    """A prepared store together with the split of its rows.

    Attributes:
        store: the images; ``frame`` has one row an image.
        frame: the store's table with ``split`` filled in (NA where an image belongs to none).
        sources: what the card says of every source.
        split: what the card says of the split.
        leakage: what the card says of patients and duplicates across the split.
        masks: the images' masks, where they are learned from.
        forms: the same rows stored in other forms than ``store``'s, where an ensemble needs them.
    """

    store: ImageStore
    frame: pd.DataFrame
    sources: list[dict[str, object]]
    split: dict[str, object]
    leakage: dict[str, object]
    masks: Masks | None = None
    forms: dict[Form, ImageStore] = field(default_factory=dict)

    def stored_as(self, form: Form) -> ImageStore:
        """Return the store of a form; ``store`` where the form is none of the others."""
        return self.forms.get(form, self.store)

    def changed(self, change: Callable[[ImageStore], ImageStore]) -> Images:
        """Return the same images, every store changed."""
        forms = {form: change(store) for form, store in self.forms.items()}
        return replace(self, store=change(self.store), forms=forms)

    def rows(self, split: str) -> NDArray[np.int64]:
        """Return the rows of a split, in order."""
        return np.flatnonzero((self.frame["split"] == split).to_numpy()).astype(np.int64)

    def preprocessing(self, data: DataConfig, rows: NDArray[np.int64]) -> Preprocessing:
        """Return what a network that is trained on some rows will expect; mean and deviation are theirs."""
        mean, std = self.store.statistics(rows)
        return Preprocessing(
            size=data.size, channels=self.store.channels, depth=data.depth, fit=data.fit,
            stored_size=self.store.size, mean=mean, std=std, standardize=data.standardize,
        )  # fmt: skip


_NOT_SIDE = {"image", "patient", NEAR_DUPLICATES, "split", "label", LABEL_ORDER, "source", *OWN_COLUMNS}

KEPT_COLUMNS = ("image", "patient", NEAR_DUPLICATES, "source", "split", "pixels")
"""What ``data.parquet`` of a run says of an image, beside what it was used for."""


def side_columns(images: Images) -> list[str]:
    """Return the columns that say more of an image: site, age, sex, view; not labels and masks."""
    known = {*_NOT_SIDE, *images.store.label_columns, *mask_columns(images.frame)}
    return [str(name) for name in images.frame.columns if name not in known]


def cache_folder() -> Path:
    """Return the folder of prepared stores: ``SCANPRIOR_CACHE``, or one in the user's cache."""
    named = os.environ.get("SCANPRIOR_CACHE")
    return (
        Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "scanprior"
    )


def salt_of(data: DataConfig) -> str:
    """Return the secret for hashing identifiers: of the file named, or this user's own.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    if data.salt_file is None:
        return own_salt()
    try:
        secret = Path(data.salt_file).expanduser().read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.salt_file: {data.salt_file} cannot be read as text ({error})") from None
    if not secret:
        raise ConfigError(f"data.salt_file: {data.salt_file} is empty; put a long random text into it")
    return secret


def own_salt() -> str:
    """Return this user's secret for hashing identifiers, made on first use and readable by the user alone."""
    path = cache_folder() / "salt"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"salt-{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(secrets.token_hex(16))
        with contextlib.suppress(FileExistsError):
            os.link(part, path)  # the first one stays, whoever else is making one
        part.unlink()
    return path.read_text().strip()


def read_manifest(source: str | Path, data: DataConfig) -> Manifest:
    """Index one source as the configuration says."""
    manifest = index_source(
        source,
        layout=data.layout,
        label_columns=data.label_columns,
        image_column=data.image_column,
        patient_column=data.patient_column,
        root=data.root,
        salt=salt_of(data),
    )
    return fill_findings(map_labels(manifest, data.label_map), data.blank_findings)


def fill_findings(manifest: Manifest, blank: Literal["missing", "absent"]) -> Manifest:
    """Return a multi-label manifest with the findings that its rows leave empty as 0, where ``blank`` says so.

    A row without a single finding is unlabelled, and stays so.

    Raises:
        DataError: the manifest has no findings.
    """
    if blank == "missing":
        return manifest
    if manifest.task != "multilabel":
        raise DataError(f"{manifest.name}: data.blank_findings=absent is about findings, this has none")
    values = manifest.frame[manifest.label_columns]
    known = values.notna().any(axis=1)
    filled = {name: values[name].mask(known & values[name].isna(), 0.0) for name in manifest.label_columns}
    return replace(manifest, frame=manifest.frame.assign(**filled))


def map_labels(manifest: Manifest, names: Mapping[str, str]) -> Manifest:
    """Rename labels of a multi-class manifest.

    Raises:
        DataError: a label to rename does not occur.
    """
    if not names:
        return manifest
    if manifest.label_columns != ["label"]:
        raise DataError(
            f"{manifest.name}: data.label_map renames the values of one label column, this has none"
        )
    labels = renamed(manifest.frame, names, manifest.name)
    return replace(manifest, frame=manifest.frame.assign(label=labels))


def renamed(frame: pd.DataFrame, names: Mapping[str, str], what: str) -> pd.Series:
    """Return the labels of a table with other names.

    Args:
        frame: with a column ``label``.
        names: old name: new name.
        what: how an error calls the data.

    Raises:
        DataError: there is no such column, or a label to rename does not occur.
    """
    if "label" not in frame:
        raise DataError(f"{what}: a label map renames the values of one label column, this has none")
    present = set(frame["label"].dropna())
    for old in names:
        if old not in present:
            raise DataError(
                f"{what}: the label {old!r} of the label map does not occur; the labels are "
                f"{', '.join(map(str, sorted(present)))}"
            )
    return frame["label"].replace(dict(names))


def open_store(source: str | Path, data: DataConfig, reporter: Reporter) -> Store:
    """Open a prepared store, or index and prepare a source into the cache, and say so."""
    return open_stores(source, data, (), reporter)[0]


def open_stores(
    source: str | Path, data: DataConfig, forms: Sequence[Form], reporter: Reporter
) -> list[Store]:
    """Open a source as ``open_store`` does, and in further forms; an image that is in no cache is decoded once.

    Args:
        source: a folder, a table, a manifest or a store.
        data: how to read it; the channels are known where there are further forms.
        forms: further forms.
        reporter: shows progress.

    Raises:
        DataError: a prepared store holds another form.
    """
    path = Path(source)
    if (path / "store.json").exists():
        store = Store.open(path)
        for form in (None, *forms):
            _fits(store, data if form is None else _in_form(data, form), exactly=form is not None)
        named = (data.label_columns, data.patient_column)
        if named != (None, None) or data.label_map or data.blank_findings != "missing":
            manifest = read_manifest(source, data)
            store.frame, store.label_columns = manifest.frame, manifest.label_columns
        reporter.note(f"{path}: prepared store, {len(store):,} images of {store.size} px")
        return [store] * (1 + len(forms))
    manifest = read_manifest(source, data)
    reporter.note(manifest.found)
    asked = [data, *(_in_form(data, form) for form in forms)]
    found = [_cached(manifest, each.store_size or each.size, each) for each in asked]
    wanted = [
        Preparation(manifest, place, each.store_size or each.size, each.channels, each.depth, each.fit)
        for each, (place, store) in zip(asked, found, strict=True)
        if store is None
    ]
    made = iter(prepare_together(wanted, data.workers, reporter.preparing) if wanted else [])
    stores = []
    for place, there in found:
        opened = there or next(made)
        left_out = len(opened.audit["left_out"])
        gone = f", {left_out} left out (see {place / 'store.json'})" if left_out else ""
        what = "using" if there else "prepared"
        reporter.note(f"{what} {len(opened):,} images at {opened.size} px in {place}{gone}")
        stores.append(opened)
    return stores


def _in_form(data: DataConfig, form: Form) -> DataConfig:
    return data.model_copy(update={**form._asdict(), "store_size": form.size})


def _cached(manifest: Manifest, size: int, data: DataConfig) -> tuple[Path, Store | None]:
    """Return the folder of a store in the cache, and the store if it is there.

    One whose channels were found out serves where those are the wanted ones.
    """
    place = Path()
    for channels in (None, data.channels):
        request = request_key(manifest, size=size, channels=channels, depth=data.depth, fit=data.fit)
        key = hashlib.sha256(f"{request} {manifest.root.resolve()}".encode()).hexdigest()[:16]
        place = cache_folder() / f"{manifest.name}-{size}px-{key}"
        if (place / "store.json").exists():
            store = Store.open(place)
            if data.channels in (None, store.channels):
                return place, store
    return place, None


def _fits(store: Store, data: DataConfig, exactly: bool = False) -> None:
    wanted = data.store_size or data.size
    if store.size < data.size:
        raise DataError(
            f"{store.path}: the store holds {store.size} px images, data.size={data.size} needs at least as many; "
            f"prepare it again with --size {wanted}"
        )
    if data.channels is not None and store.channels != data.channels:
        raise DataError(
            f"{store.path}: the store has {store.channels} channels, data.channels={data.channels}"
        )
    if exactly and (store.depth, store.fit) != (data.depth, data.fit):
        raise DataError(
            f"{store.path}: the store holds {store.depth} bits and fit={store.fit}, a member of the ensemble needs "
            f"{data.depth} and {data.fit}; give the folder or table that it was made from"
        )


def load(
    sources: Sequence[str | Path],
    data: DataConfig,
    reporter: Reporter,
    *,
    learn: Learn,
    divide: bool = True,
    training: bool = True,
    forms: Sequence[Form] = (),
) -> Images:
    """Open all sources and divide them.

    A source with a split keeps it; of one that has only train and test, validation images are cut
    from train. A source with labels or masks and no split is divided by ``data.split``; without, all
    its images are for training. Every source is divided by itself, so that pretraining on
    several and fine-tuning on one of them agree.

    Args:
        sources: folders, tables, manifests or stores.
        data: how to read them.
        reporter: shows progress.
        learn: what of them is learned from; masks are prepared only then.
        divide: whether to divide what has no split.
        training: whether folds are an error of a source with val or test images of its own; else it keeps them.
        forms: further forms in which the images are needed; then ``data`` names the channels.

    Raises:
        DataError: no source, sources that do not fit together, or none of what is to be learned from.
        SplitError: a source cannot be divided as ``data.split`` says.
    """
    if not sources:
        raise DataError("no source given; name a folder, a table, a manifest or a store")
    opened = [open_stores(source, data, forms, reporter) for source in sources]
    stores = [first for first, *_ in opened]
    frames = []
    for store in stores:
        frame = divided(store, data, learn, training, reporter) if divide else as_it_is(store, data, reporter)
        frames.append(frame.assign(source=store.name))
    together = concatenate(stores)
    frame = pd.concat(frames, ignore_index=True)
    frame["row"] = np.arange(len(frame))
    cards = [_source_card(store) for store in stores]
    images = Images(together, frame, cards, {}, leakage_across(frame))
    if data.exclude_leaks:
        _exclude_leaks(images, reporter)
    images.split = split_card(images.frame, data)
    if learn == "masks":
        images.masks = _masks(stores, data, reporter)
    for number, form in enumerate(forms, start=1):
        images.forms[form] = _same_rows(together, concatenate([each[number] for each in opened]))
    return images


def _same_rows(first: ImageStore, other: ImageStore) -> ImageStore:
    """Return the other store, which holds the images of the first in another form.

    Raises:
        DataError: the files have changed between the two.
    """
    if other.frame["pixels"].tolist() != first.frame["pixels"].tolist():
        raise DataError(f"{other.name}: its files have changed while they were read; run this again")
    return other


def _masks(stores: Sequence[Store], data: DataConfig, reporter: Reporter) -> Masks:
    """Prepare the masks of the stores in the cache, beside their images where these are there."""

    def place(store: Store, manifest: Manifest) -> Path:
        request = request_key(manifest, size=store.size, channels=1, fit=store.fit, masks=True)
        key = hashlib.sha256(f"{request} {store.root}".encode()).hexdigest()[:16]
        return cache_folder() / f"{manifest.name}-{store.size}px-{key}"

    masks = prepare_masks(stores, place, workers=data.workers, progress=reporter.preparing)
    if masks is None:
        raise DataError(
            "the sources name no masks; give a table with a mask column, a masks/ folder beside the images, or "
            "files called IMAGE_mask.png"
        )
    gone = f"; {len(masks.left_out)} cannot be used" if masks.left_out else ""
    reporter.note(f"{int(masks.has.sum()):,} of {len(masks.has):,} images have a mask{gone}")
    for entry in masks.left_out[:5]:
        reporter.note(f"left out {entry['mask']}: {entry['reason']}")
    return masks


def _source_card(store: Store) -> dict[str, object]:
    frame = store.frame
    patients = int(frame["patient"].nunique()) if "patient" in frame else None
    return {
        "name": store.name,
        "images": len(store),
        "patients": patients,
        "fingerprint": store.fingerprint,
        "left_out": store.audit["left_out"],
        "layout": store.layout,
        "root": str(store.root),
    }


def _exclude_leaks(images: Images, reporter: Reporter) -> None:
    frame = images.frame
    held_out = set(frame.loc[frame["split"].isin(["val", "test"]), "pixels"])
    leaks = (frame["split"] == "train") & frame["pixels"].isin(held_out)
    if leaks.any():
        frame.loc[leaks, "split"] = pd.NA
        images.leakage["excluded"] = int(leaks.sum())
        images.leakage["summary"] = (
            f"{images.leakage['summary']}; {int(leaks.sum())} training images left out for it"
        )
        reporter.note(f"left out {int(leaks.sum())} training images that equal a validation or test image")
