"""Phantoms: the same whoever makes them, findings where their masks are, labels that add up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import binary_dilation, label
from sklearn.metrics import roc_auc_score

from scanprior.data.index import index
from scanprior.data.phantom import (
    FINDINGS,
    PhantomConfig,
    Phantoms,
    positions,
    render,
    tabulate,
    write_finding_table,
    write_phantoms,
)
from scanprior.data.phantom_fields import Plane, bezier, splat
from scanprior.errors import DataError

SMALL = PhantomConfig(patients=12, size=48, seed=3)
MANY = PhantomConfig(patients=200, size=64, seed=5)


@pytest.fixture(scope="module")
def many() -> tuple[Phantoms, Phantoms]:
    """The same films with findings and in health, at 64 pixels."""
    places = positions(MANY)
    return render(MANY, places), render(MANY, places, findings=False)


def alone(table: pd.DataFrame, finding: str) -> np.ndarray:
    """Rows whose only finding is ``finding``."""
    return np.flatnonzero((table[finding] == 1) & (table[list(FINDINGS)].sum(axis=1) == 1))


@settings(deadline=None, max_examples=8)
@given(st.permutations(range(9)), st.integers(1, 9))
def test_an_image_does_not_depend_on_its_batch_or_on_the_order(order: list[int], size: int) -> None:
    places = positions(SMALL)[:9]
    whole = render(SMALL, places)
    for start in range(0, 9, size):
        chosen = np.asarray(order[start : start + size])
        part = render(SMALL, places[chosen])
        assert np.array_equal(part.images, whole.images[chosen])
        assert np.array_equal(part.lungs, whole.lungs[chosen])
        assert all(np.array_equal(part.findings[name], whole.findings[name][chosen]) for name in FINDINGS)
        pd.testing.assert_frame_equal(part.table, whole.table.iloc[chosen].reset_index(drop=True))


def test_more_patients_leave_the_first_ones_as_they_are_and_another_seed_does_not() -> None:
    more = SMALL.model_copy(update={"patients": 40})
    places = positions(SMALL)
    assert np.array_equal(positions(more)[: len(places)], places)
    assert np.array_equal(render(more, places[:4]).images, render(SMALL, places[:4]).images)
    other = SMALL.model_copy(update={"seed": 4})
    assert not np.array_equal(render(other, places[:4]).images, render(SMALL, places[:4]).images)


def test_files_do_not_depend_on_workers(tmp_path: Path) -> None:
    config = SMALL.model_copy(update={"patients": 20})
    solo, pool = (write_phantoms(tmp_path / str(n), config, workers=n) for n in (0, 2))
    names = sorted(str(path.relative_to(solo)) for path in solo.rglob("*") if path.is_file())
    assert names == sorted(str(path.relative_to(pool)) for path in pool.rglob("*") if path.is_file())
    assert all((solo / name).read_bytes() == (pool / name).read_bytes() for name in names)


def test_folder_is_complete_readable_and_says_it_is_synthetic(tmp_path: Path) -> None:
    out = write_phantoms(tmp_path / "made", SMALL)
    table = pd.read_csv(out / "labels.csv")
    made = render(SMALL, positions(SMALL))
    assert len(table) == len(positions(SMALL))
    for row, record in table.iterrows():
        with Image.open(out / record["image"]) as picture, Image.open(out / record["mask"]) as mask:
            assert (picture.format, picture.mode, mask.mode) == ("PNG", "L", "1")
            assert np.array_equal(np.asarray(picture), made.images[row, 0])
            assert np.array_equal(np.asarray(mask), made.lungs[row])
        for finding in FINDINGS:
            path = out / "findings" / f"{Path(record['image']).stem}-{finding}.png"
            assert path.exists() == bool(record[finding])
            if path.exists():
                assert np.array_equal(np.asarray(Image.open(path)), made.findings[finding][row])
    assert "not real images" in (out / "SOURCE.md").read_text(encoding="utf-8")


def test_a_table_says_where_the_findings_are(tmp_path: Path) -> None:
    out = write_phantoms(tmp_path / "made", SMALL)
    labels = pd.read_csv(out / "labels.csv")
    sick = labels[labels[list(FINDINGS)].any(axis=1)]
    wanted = set(labels["image"][:30])
    for chosen, rows in ((None, sick), (wanted, sick[sick["image"].isin(wanted)])):
        table = pd.read_csv(write_finding_table(out, tmp_path / "findings.csv", chosen))
        assert table["image"].tolist() == [f"made/{image}" for image in rows["image"]] and len(table)
        assert table["patient"].tolist() == rows["patient"].tolist()
    for record in table.to_dict("records"):
        parts = (out / "findings").glob(f"{Path(record['image']).stem}-*.png")
        whole = np.any([np.asarray(Image.open(part)) for part in parts], axis=0)
        assert np.array_equal(np.asarray(Image.open(tmp_path / record["mask"])), whole) and whole.any()
    write_phantoms(out, SMALL, overwrite=True)  # the masks of all findings are phantoms, too
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantoms(out, SMALL)


def test_only_phantoms_are_drawn_over(tmp_path: Path) -> None:
    out = write_phantoms(tmp_path / "made", SMALL)
    before = (out / "labels.csv").read_bytes()
    (out / "labels.csv").unlink()  # as after a kill
    write_phantoms(out, SMALL, overwrite=True)
    assert (out / "labels.csv").read_bytes() == before
    (out / "mine.txt").write_text("kept")
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantoms(out, SMALL, overwrite=True)
    foreign = tmp_path / "foreign"
    (foreign / "images").mkdir(parents=True)
    (foreign / "SOURCE.md").write_text("my radiographs")
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantoms(foreign, SMALL, overwrite=True)
    assert (out / "mine.txt").exists() and (foreign / "SOURCE.md").exists()


def test_folder_is_indexed_as_a_table_of_labels(tmp_path: Path) -> None:
    manifest = index(write_phantoms(tmp_path / "made", SMALL), label_columns=["label"])
    assert len(manifest) == len(positions(SMALL))
    assert (manifest.task, manifest.classes) == ("multiclass", ["abnormal", "normal"])
    assert {"patient", "site", "mask", "age", "sex", "view"} <= set(manifest.frame.columns)
    multi = index(tmp_path / "made", label_columns=list(FINDINGS))
    assert (multi.task, multi.label_columns) == ("multilabel", list(FINDINGS))


def test_table_is_consistent_within_patients_and_with_the_masks(many: tuple[Phantoms, Phantoms]) -> None:
    made, health = many
    table = made.table
    assert table["image"].is_unique
    assert (table.groupby("patient")[["age", "sex", "site"]].nunique() == 1).all(axis=None)
    assert set(table.groupby("patient").size()) == {1, 2, 3}
    assert table["age"].between(20, 90).all()
    assert ((table["label"] == "abnormal") == table[list(FINDINGS)].any(axis=1)).all()
    for name in FINDINGS:
        assert np.array_equal(made.findings[name].any(axis=(1, 2)), table[name] == 1), name
        assert not health.findings[name].any()


def test_images_of_a_patient_share_the_body_but_not_the_film(many: tuple[Phantoms, Phantoms]) -> None:
    """Lung masks, moved so that their centres meet, agree better within patients than between them."""
    table, lungs = many[1].table, many[1].lungs
    erect = (table["view"] == "PA").to_numpy()
    centred = [np.roll(m, tuple(int(32 - c.mean()) for c in np.nonzero(m)), (0, 1)) for m in lungs]
    patient = table["patient"].to_numpy()
    same, other = [], []
    for first in range(0, len(table) - 1):
        second, far = first + 1, (first + 50) % len(table)
        for near, where in ((second, same), (far, other)):
            if erect[first] and erect[near] and (patient[first] == patient[near]) == (where is same):
                both = centred[first] & centred[near]
                where.append(2 * both.sum() / (centred[first].sum() + centred[near].sum()))
                assert not np.array_equal(many[1].images[first], many[1].images[near])
    assert min(len(same), len(other)) > 30
    assert np.mean(same) > np.mean(other) + 0.01


def test_prevalences_sexes_and_sites_are_those_asked_for() -> None:
    config = PhantomConfig(patients=4000, seed=1, images_per_patient=1)
    table = tabulate(config, positions(config))
    wanted = config.prevalence.model_dump()
    for name in FINDINGS:
        error = 4 * np.sqrt(wanted[name] * (1 - wanted[name]) / 4000)
        assert abs(table[name].mean() - wanted[name]) < error, name
    assert abs((table["sex"] == "F").mean() - 0.5) < 0.04
    assert abs((table["site"] == "a").mean() - 0.5) < 0.04
    for column in ("sex", "site", "view"):
        rates = table.assign(sick=table["label"] == "abnormal").groupby(column)["sick"].mean()
        assert np.ptp(rates) < 0.08, f"{column} goes with the label"
    only = config.model_copy(update={"sites": ("b",)})
    assert set(tabulate(only, positions(only))["site"]) == {"b"}


def test_label_noise_changes_labels_and_not_pictures() -> None:
    noisy = MANY.model_copy(update={"label_noise": 0.4})
    places = positions(MANY)
    clean, wrong = tabulate(MANY, places), tabulate(noisy, places)
    assert 0.3 < (clean["label"] != wrong["label"]).mean() < 0.5
    assert ((wrong["label"] == "abnormal") == wrong[list(FINDINGS)].any(axis=1)).all()
    assert np.array_equal(render(MANY, places[:8]).images, render(noisy, places[:8]).images)


def test_lungs_are_two_dark_regions_inside_the_chest_and_the_right_is_larger(
    many: tuple[Phantoms, Phantoms],
) -> None:
    health = many[1]
    inner = np.zeros((64, 64), dtype=bool)
    inner[2:-2, 4:-4] = True
    right_larger = 0
    for row in np.flatnonzero(health.table["site"] == "a"):
        lungs, grey = health.lungs[row], health.images[row, 0].astype(float)
        parts, count = label(lungs)
        sizes = np.sort(np.bincount(parts.ravel())[1:])[::-1]
        assert count >= 2 and sizes[:2].sum() > 0.97 * lungs.sum()
        assert 0.12 < lungs.mean() < 0.45
        assert not (lungs & ~inner).any()
        around = binary_dilation(lungs, iterations=4) & ~binary_dilation(lungs)
        assert grey[lungs].mean() < grey[around].mean() - 15
        columns = [
            np.nonzero(parts == part)[1].mean()
            for part in (np.argsort(np.bincount(parts.ravel())[1:])[-2:] + 1)
        ]
        right_larger += columns[1] < columns[0]  # the largest comes last; the right lung is on the left
    assert right_larger > 0.85 * (health.table["site"] == "a").sum()


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_changes_its_region_and_is_visible(many: tuple[Phantoms, Phantoms], finding: str) -> None:
    made, health = many
    rows = alone(made.table, finding)
    assert len(rows) >= 8
    visible = []
    for row in rows:
        change = np.abs(made.images[row, 0].astype(float) - health.images[row, 0])
        mask = made.findings[finding][row]
        region = binary_dilation(mask, iterations=3)
        assert (change[region] ** 2).sum() > 0.85 * (change**2).sum()
        assert change[~region].mean() < 2.5
        # The grain is 2 to 6 grey levels; the clearest quarter of the finding must stand above it.
        visible.append(np.sort(change[mask])[-max(4, mask.sum() // 4) :].mean() > 10)
    assert np.mean(visible) > 0.8


def test_films_without_findings_are_the_same_in_health(many: tuple[Phantoms, Phantoms]) -> None:
    made, health = many
    normal = (made.table["label"] == "normal").to_numpy()
    assert normal.sum() > 50
    assert np.array_equal(made.images[normal], health.images[normal])
    assert not np.array_equal(made.images[~normal], health.images[~normal])


def test_hearts_are_enlarged_beyond_half_the_chest(many: tuple[Phantoms, Phantoms]) -> None:
    made, health = many
    for row in alone(made.table, "cardiomegaly"):
        chest = np.ptp(np.nonzero(health.lungs[row].any(axis=0))[0]) + 1
        heart = np.ptp(np.nonzero(made.findings["cardiomegaly"][row].any(axis=0))[0]) + 1
        assert 0.5 < heart / chest < 0.75
        assert made.lungs[row].sum() < health.lungs[row].sum()


def test_no_simple_feature_gives_the_label_away(many: tuple[Phantoms, Phantoms]) -> None:
    made = many[0]
    grey, sick = made.images[:, 0] / 255.0, made.table["label"] == "abnormal"
    lungs = made.lungs
    features = {
        "mean": grey.mean(axis=(1, 2)),
        "spread": grey.std(axis=(1, 2)),
        "lungs": (grey * lungs).sum(axis=(1, 2)) / lungs.sum(axis=(1, 2)),
        "middle": grey[:, 20:45, 16:48].mean(axis=(1, 2)),
        "bright": np.percentile(grey, 95, axis=(1, 2)),
        "age": made.table["age"].to_numpy(),
    }
    sites = [np.ones(len(sick), dtype=bool), made.table["site"] == "a", made.table["site"] == "b"]
    for name, values in features.items():
        for rows in sites:
            assert 0.3 < roc_auc_score(sick[rows], values[rows]) < 0.7, name


def test_sites_differ_and_inversion_is_exact() -> None:
    plain, turned = (MANY.model_copy(update={"inverted": share}) for share in (0.0, 1.0))
    places = positions(MANY)[:120]
    first, second = render(plain, places), render(turned, places)
    at_b = (first.table["site"] == "b").to_numpy()
    assert np.array_equal(first.images[~at_b], second.images[~at_b])
    total = first.images[at_b].astype(int) + second.images[at_b]
    assert np.abs(total - 255).max() <= 1
    grey = first.images[:, 0].astype(float)
    contrast = np.array([g[m].std() for g, m in zip(grey, first.lungs, strict=True)])
    corners = grey[:, [0, 0, -1, -1], [0, -1, 0, -1]].max(axis=1)
    assert roc_auc_score(~at_b, contrast) > 0.8
    assert roc_auc_score(at_b, corners) > 0.7


def test_confounding_by_devices_is_at_site_b_only() -> None:
    places = positions(MANY)[:90]
    free = render(MANY, places)
    bound = render(MANY.model_copy(update={"device_confounding": 1.0}), places)
    changed = (free.images != bound.images).any(axis=(1, 2, 3))
    at_b = (free.table["site"] == "b").to_numpy()
    assert not changed[~at_b].any()
    sick = (free.table["label"] == "abnormal").to_numpy()
    assert changed[at_b & sick].mean() > 0.6 > 0.4 > changed[at_b & ~sick].mean()


@pytest.mark.parametrize(
    "wrong", [{"size": 8}, {"patients": 0}, {"sites": ("c",)}, {"sites": ()}, {"sizes": 64}]
)
def test_wrong_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        PhantomConfig.model_validate(wrong)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.integers(4, 12))
def test_splat_equals_a_loop_over_points(seed: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    column, row = draw.uniform(-2, size + 1, (2, 2, 7))
    mass = draw.uniform(0, 1, (2, 7))
    wanted = np.zeros((2, size, size))
    for image in range(2):
        for c, r, m in zip(column[image], row[image], mass[image], strict=True):
            for y in range(size):
                for x in range(size):
                    wanted[image, y, x] += m * max(0, 1 - abs(x - c)) * max(0, 1 - abs(y - r))
    assert np.allclose(splat(column, row, mass, size), wanted, atol=1e-6)


def test_plane_finds_its_own_pixels_and_curves_end_where_told() -> None:
    one = np.ones((1, 1, 1), dtype=np.float32)
    plane = Plane(16, 1.1 * one, 0.2 * one, (0.1 * one, -0.05 * one))
    column, row = plane.pixels(plane.x.reshape(1, -1), plane.y.reshape(1, -1))
    rows, columns = np.indices((16, 16))
    assert np.allclose(column, columns.reshape(1, -1), atol=1e-4)
    assert np.allclose(row, rows.reshape(1, -1), atol=1e-4)
    control = np.array([[0, 0], [1, 3], [2, -3], [4, 1]], dtype=np.float32)
    assert np.allclose(bezier(control, 5)[[0, -1]], control[[0, -1]])
