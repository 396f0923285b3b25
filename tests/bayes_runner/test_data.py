"""Data sets: published splits, downloads with checksums, standardization, tables of the user."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from natgrad_apps.bayes.config import RecipeConfig
from natgrad_apps.bayes.data import UCI, Scaling, Table, TableFile, load, load_uci, random_split, read_inputs, read_table
from natgrad_apps.bayes.data import uci as uci_module
from natgrad_apps.bayes.data.uci import Home, public_home, read_uci
from natgrad_apps.bayes.fitting import Fit
from natgrad_apps.errors import ConfigError
from tests.bayes_runner._uci import ROWS, write_uci


def test_a_uci_folder_gives_columns_and_splits(tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    data = np.loadtxt(tmp_path / "yacht" / "data.txt")
    table = read_uci(tmp_path / "yacht", "yacht")
    np.testing.assert_array_equal(table.x, data[:, [0, 1, 3]])
    np.testing.assert_array_equal(table.y, data[:, 2])
    assert (len(table.splits), table.hidden, table.classes, table.constant) == (2, 5, (), ("x1",))
    for split in table.splits:
        np.testing.assert_array_equal(np.sort(np.concatenate([split.train, split.test])), np.arange(ROWS))


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("index_test_0.txt", "1\n1\n", "split 0 is damaged"),
        ("index_test_1.txt", "99\n", "split 1 is damaged"),
        ("index_features.txt", "0\n9\n", "name column 9, but data.txt has 4 columns"),
        ("n_splits.txt", "1.5\n", "must hold whole numbers"),
        ("data.txt", "a b\n", "cannot be read"),
        ("index_train_1.txt", None, "incomplete"),
    ],
)
def test_a_damaged_uci_folder_is_refused(file: str, text: str | None, message: str, tmp_path: Path) -> None:
    write_uci(tmp_path / "yacht")
    if text is None:
        (tmp_path / "yacht" / file).unlink()
    else:
        (tmp_path / "yacht" / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_uci(tmp_path / "yacht", "yacht")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Home]:
    """A server of one set on this machine, and an empty cache."""
    monkeypatch.delenv("NATGRAD_DATA", raising=False)
    registry = write_uci(tmp_path / "site" / "yacht")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site"))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Home(f"http://127.0.0.1:{server.server_port}/{{folder}}/", registry, tmp_path / "cache")
        server.shutdown()
        thread.join()


def test_a_missing_set_is_downloaded_once_and_checked(home: Home, tmp_path: Path) -> None:
    first = load_uci("yacht", home)
    assert {p.name for p in (tmp_path / "cache" / "yacht").iterdir()} == {p.name for p in (tmp_path / "site" / "yacht").iterdir()}
    for path in (tmp_path / "site" / "yacht").iterdir():
        path.unlink()  # what is in the cache is not asked for again
    np.testing.assert_array_equal(load_uci("yacht", home).x, first.x)


def test_a_wrong_checksum_is_refused_and_nothing_wrong_is_kept(home: Home, tmp_path: Path) -> None:
    (tmp_path / "site" / "yacht" / "data.txt").write_text("1 2 3 4\n")
    with pytest.raises(ConfigError, match=r"'yacht' could not be downloaded .* set NATGRAD_DATA"):
        load_uci("yacht", home)
    assert not (tmp_path / "cache" / "yacht" / "data.txt").exists()


def test_a_set_without_checksums_is_never_downloaded(home: Home) -> None:
    with pytest.raises(ConfigError, match="has no checksums here"):
        load_uci("wine", home)


def test_the_local_folder_comes_first(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_uci(tmp_path / "own" / "uci" / "yacht")
    monkeypatch.setenv("NATGRAD_DATA", str(tmp_path / "own"))
    assert load("yacht").name == "yacht"
    assert load("yacht").hidden == 5


def test_the_registry_names_every_file_of_the_seven_sets() -> None:
    registry = public_home().registry
    assert all(len(digest) == 64 and int(digest, 16) for digest in registry.values())
    for folder, splits in {**dict.fromkeys(UCI.values(), 20), "protein-tertiary-structure": 5}.items():
        if folder in {"energy", "wine-quality-red"}:  # no copy was at hand to take checksums of
            continue
        names = {"data", "index_features", "index_target", "n_splits", "n_hidden"}
        names |= {f"index_{part}_{s}" for part in ("train", "test") for s in range(splits)}
        assert {f"{folder}/{name}.txt" for name in names} <= set(registry)


def test_the_address_is_pinned_to_a_commit() -> None:
    assert len(uci_module.BASE_URL.split("/")[5]) == 40


def test_scaling_keeps_constant_columns_finite_and_inverts() -> None:
    x = np.random.default_rng(1).normal(size=(50, 3)) * [1.0, 1e-4, 1.0] + [5.0, 1e3, 0.0]
    x[:, 2] = 0.1  # not exact in binary: its deviation is rounding, not 0
    scaling = Scaling.fit(x)
    z = scaling.apply(x)
    # float64: a mean of 1e3 over a deviation of 1e-4 loses 7 digits of 16
    np.testing.assert_allclose(z[:, :2].mean(0), 0, atol=1e-8)
    np.testing.assert_allclose(z[:, :2].std(0), 1, rtol=1e-8)
    np.testing.assert_allclose(z[:, 2], 0, atol=1e-15)
    assert scaling.scale[2] == 1
    np.testing.assert_allclose(scaling.invert(z), x, rtol=1e-12)
    again = Scaling.from_dict(scaling.to_dict())
    np.testing.assert_array_equal(again.apply(x), z)
    assert Scaling.fit(x[:, 0]).scale == pytest.approx(x[:, 0].std(), rel=1e-12)


def test_columns_of_one_unit_share_a_deviation() -> None:
    x = np.random.default_rng(1).normal(size=(50, 3)) * [1.0, 1e-3, 2.0] + [5.0, 1.0, 0.0]
    scaling = Scaling.fit(x, one_unit=True)
    np.testing.assert_allclose(scaling.scale, math.sqrt(x.var(0).mean()), rtol=1e-12)
    np.testing.assert_allclose(scaling.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(scaling.apply(x).var(0).mean(), 1, rtol=1e-12)
    assert (Scaling.fit(np.full((4, 2), 0.1), one_unit=True).scale == 1).all()


def test_pixels_are_standardized_together(tmp_path: Path) -> None:
    assert load("digits").one_unit
    assert not load("breast_cancer").one_unit
    path = tmp_path / "t.csv"
    path.write_text("a,b,y\n" + "".join(f"{i},{100 * i},{i % 3}\n" for i in range(12)))
    for one_unit in (False, True):
        table = load(str(path), TableFile("y", one_unit=one_unit))
        fit = Fit(table, random_split(table, 0.25, 0), RecipeConfig(), 0)
        ratio = fit.scales.x.scale[1] / fit.scales.x.scale[0]
        assert ratio == pytest.approx(1 if one_unit else 100, rel=1e-9)


@pytest.mark.parametrize(
    ("name", "shape", "classes"), [("diabetes", (442, 10), 0), ("breast_cancer", (569, 30), 2), ("digits", (1797, 64), 10)]
)
def test_embedded_sets(name: str, shape: tuple[int, int], classes: int) -> None:
    table = load(name)
    assert (table.x.shape, len(table.classes)) == (shape, classes)
    assert table.y.dtype == (np.int64 if classes else np.float64)


def test_random_splits_repeat_and_differ_by_seed() -> None:
    table = load("diabetes")
    a, b, c = random_split(table, 0.1, 3), random_split(table, 0.1, 3), random_split(table, 0.1, 4)
    np.testing.assert_array_equal(a.test, b.test)
    assert set(a.test) != set(c.test)
    assert (len(a.test), len(a.train)) == (44, 398)
    assert not set(a.test) & set(a.train)


def test_a_class_without_training_rows_is_told() -> None:
    y = np.zeros(12, dtype=np.int64)
    y[0] = 1
    table = Table("t", np.random.default_rng(0).normal(size=(12, 1)), y, ("a",), "y", ("no", "yes"))
    seed = next(s for s in range(100) if 0 in np.random.default_rng(s).permutation(12)[:6])
    with pytest.raises(ConfigError, match="no training row of class 'yes'"):
        random_split(table, 0.5, seed)


@pytest.fixture
def frame() -> pd.DataFrame:
    g = np.random.default_rng(0)
    words = np.where(g.random(30) < 0.5, "cat", "dog")
    return pd.DataFrame({"a": g.normal(size=30), "b": g.integers(0, 9, size=30), "kind": words, "y": g.normal(size=30)})


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_tables_of_every_format(suffix: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / f"mine{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if suffix == ".tsv" else ",")
    table = read_table(path, TableFile(target="y", exclude=["kind"]))
    assert (table.name, table.features, table.classes) == ("mine", ("a", "b"), ())
    np.testing.assert_array_equal(table.x, frame[["a", "b"]].to_numpy())
    by_kind = read_table(path, TableFile(target="kind"))
    assert (by_kind.features, by_kind.classes) == (("a", "b", "y"), ("cat", "dog"))
    np.testing.assert_array_equal(by_kind.y, (frame["kind"] == "dog").astype(int))
    np.testing.assert_array_equal(read_inputs(path, ["b", "a"]), frame[["b", "a"]].to_numpy())


@pytest.mark.parametrize(
    ("change", "how", "message"),
    [
        (lambda f: f, TableFile(), "table.target is needed"),
        (lambda f: f, TableFile(target="z"), "unknown column of mine.csv 'z'"),
        (lambda f: f, TableFile(target="y", exclude=["knd"]), "did you mean 'kind'"),
        (lambda f: f, TableFile(target="y", exclude=["y"]), "cannot be both"),
        (lambda f: f, TableFile(target="y"), "'kind' is no column of numbers"),
        (lambda f: f, TableFile(target="kind", task="regression"), "use table.task: classification"),
        (lambda f: f.assign(a=f.a.mask(f.index == 4)), TableFile(target="y", exclude=["kind"]), r"'a' \(1\), the first in row 4"),
        (lambda f: f.assign(y=f.y.mask(f.index == 0)), TableFile(target="y", exclude=["kind"]), r"'y' \(1\)"),
        (lambda f: f.assign(a=np.inf), TableFile(target="y", exclude=["kind"]), "'a' is missing or infinite in 30 of 30 rows"),
        (lambda f: f.assign(a=3), TableFile(target="y", exclude=["kind"]), "'a' has one value only"),
        (lambda f: f.assign(kind="cat"), TableFile(target="kind"), "only one class"),
        (lambda f: f.assign(y=1.5), TableFile(target="y", exclude=["kind"]), "only one value"),
        (lambda f: f.head(9), TableFile(target="y", exclude=["kind"]), "has 9 rows; at least 10"),
        (lambda f: f[["y"]], TableFile(target="y"), "no input column"),
    ],
)
def test_bad_tables_are_told(change: object, how: TableFile, message: str, frame: pd.DataFrame, tmp_path: Path) -> None:
    assert callable(change)
    change(frame).to_csv(tmp_path / "mine.csv", index=False)
    with pytest.raises(ConfigError, match=message):
        read_table(tmp_path / "mine.csv", how)


def test_rows_with_empty_cells_can_be_left_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.assign(a=frame.a.mask(frame.index == 4)).to_csv(tmp_path / "mine.csv", index=False)
    table = read_table(tmp_path / "mine.csv", TableFile(target="y", exclude=["kind"], missing="drop"))
    np.testing.assert_allclose(table.y, frame.y.drop(4))


def test_bad_files_are_told(frame: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "empty.csv").write_text("")
    frame.to_csv(tmp_path / "mine.csv", index=False)
    for name, message in {"none.csv": "there is no table", "broken.parquet": "cannot be read", "empty.csv": "cannot be read"}.items():
        with pytest.raises(ConfigError, match=message):
            load(str(tmp_path / name), TableFile(target="y"))
    with pytest.raises(ConfigError, match="lacks the column 'q'"):
        read_inputs(tmp_path / "mine.csv", ["a", "q"])
    with pytest.raises(ConfigError, match="did you mean 'concrete'"):
        load("concret")


def test_slips_among_numbers_are_no_classes(tmp_path: Path) -> None:
    texts = [str(v) for v in range(20)]
    pd.DataFrame({"a": range(20), "y": [*texts[:7], "oops", *texts[8:]]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ConfigError, match="1 cells that are no numbers, the first is 'oops' in row 7"):
        read_table(tmp_path / "t.csv", TableFile(target="y"))
    with pytest.raises(ConfigError, match="20 classes in 20 rows, fewer than two rows a class"):
        read_table(tmp_path / "t.csv", TableFile(target="y", task="classification"))
    (tmp_path / "h.csv").write_text("a,y\n")
    with pytest.raises(ConfigError, match="has no rows, only the columns a, y"):
        read_table(tmp_path / "h.csv", TableFile(target="y"))


def test_training_rows_without_variation_are_told() -> None:
    x = np.random.default_rng(0).normal(size=(12, 2))
    table = Table("t", x, x[:, 0], ("a", "b"), "y")
    assert len(random_split(table, 0.8, 0).train) == 2
    with pytest.raises(ConfigError, match="the 1 training rows of split 0 with test_fraction 0"):
        random_split(table, 0.99, 0)
