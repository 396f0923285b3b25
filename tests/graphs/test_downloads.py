"""Downloads from a server on this machine, and sets of the Open Graph Benchmark by a stand-in for its loader."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import http.server
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch_geometric.data import Data

from natgrad_apps.errors import ConfigError
from natgrad_apps.graphs import data as graphs_data
from natgrad_apps.graphs import runs
from natgrad_apps.graphs.config import TrainConfig
from natgrad_apps.graphs.data import load_public
from natgrad_apps.graphs.downloads import PLANETOID_HOME, Home, fetch

ROOT = os.environ.get("NATGRAD_DATA")
needs_data = pytest.mark.skipif(not ROOT or not (Path(ROOT) / "planetoid").is_dir(), reason="NATGRAD_DATA has no planetoid/")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing."""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which a server on this machine shows it."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}/"
    server.shutdown()
    thread.join()
    server.server_close()


def home_of(folder: Path, url: str) -> Home:
    return Home(url, {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()})


def test_files_are_fetched_once_and_checked_always(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a.bin").write_bytes(b"one")
    (folder / "b.bin").write_bytes(b"two")
    home, target = home_of(folder, url), tmp_path / "cache" / "raw"
    fetch(["a.bin", "b.bin"], target, home)
    assert {file.name: file.read_bytes() for file in target.iterdir()} == {"a.bin": b"one", "b.bin": b"two"}
    (folder / "a.bin").unlink()
    fetch(["a.bin", "b.bin"], target, home)  # what is there is not asked for again
    (target / "a.bin").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match=r"could not be downloaded from http://127.0.0.1.*404"):
        fetch(["a.bin"], target, home)


def test_another_sum_is_refused_and_leaves_no_file(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, url = served
    (folder / "a.bin").write_bytes(b"one")
    home = home_of(folder, url)
    (folder / "a.bin").write_bytes(b"something else")
    with pytest.raises(ConfigError, match=r"(?i)hash.*NATGRAD_DATA"):
        fetch(["a.bin"], tmp_path / "cache", home)
    assert list((tmp_path / "cache").iterdir()) == []


@needs_data
def test_the_sums_are_those_of_the_files() -> None:
    assert ROOT is not None
    for name, expected in PLANETOID_HOME.sums.items():
        assert hashlib.sha256((Path(ROOT) / "planetoid" / name).read_bytes()).hexdigest() == expected


@needs_data
def test_cora_comes_from_its_home(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ROOT is not None
    folder, url = served
    for file in (Path(ROOT) / "planetoid").glob("ind.cora.*"):
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.delenv("NATGRAD_DATA")
    monkeypatch.setattr(graphs_data, "PLANETOID_HOME", dataclasses.replace(PLANETOID_HOME, url=url))
    data = load_public("Cora", tmp_path / "cache")
    assert (data.nodes, data.edge_index.shape[1], data.classes) == (2708, 10556, 7)
    (folder / "ind.cora.x").write_bytes(b"")
    with pytest.raises(ConfigError, match="could not be downloaded"):
        load_public("Cora", tmp_path / "other")


def test_ogb_that_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", None)
    with pytest.raises(ConfigError, match=r"'ogbn-arxiv' is read by the package ogb, .*run: pip install ogb"):
        load_public("ogbn-arxiv", tmp_path)


def test_an_ogb_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in reads its processed file as releases of ogb do: by ``torch.load`` without ``weights_only``."""
    x = torch.tensor([[1.0, -1.0], [0.5, 2.0], [0.0, 0.0], [3.0, 1.0]])
    y = torch.tensor([[0], [1], [2], [1]])
    torch.save((Data(x=x, edge_index=torch.tensor([[0, 1, 2], [1, 2, 3]]), y=y, num_nodes=4), None), tmp_path / "processed.pt")

    class Stub:
        num_classes = 3

        def __init__(self, name: str, root: str) -> None:
            assert (name, root) == ("ogbn-arxiv", str(tmp_path / "ogb"))
            self._data, _ = torch.load(tmp_path / "processed.pt")

        def __getitem__(self, index: int) -> Data:
            assert index == 0
            return self._data

        def get_idx_split(self) -> dict[str, torch.Tensor]:
            return {"train": torch.tensor([0, 1]), "valid": torch.tensor([2]), "test": torch.tensor([3])}

    module = ModuleType("ogb.nodeproppred")
    module.PygNodePropPredDataset = Stub  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ogb", ModuleType("ogb"))
    monkeypatch.setitem(sys.modules, "ogb.nodeproppred", module)
    monkeypatch.setattr(graphs_data, "cache_folder", lambda _: tmp_path)
    made = TrainConfig(dataset="ogbn-arxiv")
    data = runs.open_data(made)
    assert torch.equal(data.x, x)  # not divided by sums
    assert data.y.tolist() == [0, 1, 2, 1]
    assert data.edge_index.tolist() == [[0, 1, 1, 2, 2, 3], [1, 0, 2, 1, 3, 2]]
    _, split = runs.split_data(made, data)
    assert [part.tolist() for part in (split.train, split.val, split.test)] == [[0, 1], [2], [3]]
    assert split.name == "public"
