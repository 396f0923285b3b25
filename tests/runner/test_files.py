"""Run folders, checkpoints and metrics: whole or absent, verified, and refused where they would be overwritten."""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import shutil
import warnings
from pathlib import Path

import pytest

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import atomic, checkpoints, metrics
from natgrad_apps.runner.checkpoints import CheckpointStore
from natgrad_apps.runner.folder import RunFolder, check_new, read_results
from natgrad_apps.runner.guards import warnings_to
from natgrad_apps.runner.metrics import MetricsFile
from natgrad_apps.runner.progress import ProgressView


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    atomic.write_json(file, {"old": 1})

    def fail(*arguments: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        atomic.write_json(file, {"new": 2})
    assert json.loads(file.read_text()) == {"old": 1}
    assert names(tmp_path) == {"a.json"}


def test_json_has_no_nan(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "a.json", {"x": [float("nan"), 1.0, (float("inf"), "text", None)]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": [None, 1.0, [None, "text", None]]}


def test_checkpoints_come_back_and_old_ones_go(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoint", keep=2)
    for step in (10, 20, 30, 40):
        store.save(step, {"a": bytes([step]), "b": b"x" * step}, best=step == 20)
    assert store.steps() == [20, 30, 40]  # the two newest and the best
    last, best = checkpoints.load(store.find()), checkpoints.load(store.find("best"))
    assert (last.step, dict(last.files)) == (40, {"a": bytes([40]), "b": b"x" * 40})
    assert (best.step, best.files["a"]) == (20, bytes([20]))


def test_the_same_step_is_written_once(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(5, {"a": b"first"})
    store.save(5, {"a": b"second"}, best=True)
    assert checkpoints.load(store.find("best")).files["a"] == b"first"


@pytest.mark.parametrize("fault", ["flip", "cut", "missing", "manifest"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, fault: str) -> None:
    store = CheckpointStore(tmp_path)
    file = store.save(7, {"agent.zip": b"0123456789"}) / "agent.zip"
    if fault == "flip":
        file.write_bytes(b"0123456780")
    elif fault == "cut":
        file.write_bytes(b"01234")
    elif fault == "missing":
        file.unlink()
    else:
        (file.parent / "manifest.json").write_text('{"step": 7')
    with pytest.raises(ConfigError, match=r"is damaged.*no other checkpoint is intact, so start anew"):
        checkpoints.load(store.find())


def test_the_error_says_how_to_go_back_to_an_intact_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "with space", keep=4)
    folders = [store.save(step, {"a": bytes([step])}) for step in (1, 2, 3, 4)]
    for damaged in (folders[0], folders[2], folders[3]):
        (damaged / "a").write_bytes(b"")
    with pytest.raises(checkpoints.DamagedError, match="step_000000000002 is intact; to go back to it: rm -r ") as caught:
        checkpoints.load(store.find())
    words = shlex.split(str(caught.value).rpartition("rm -r ")[2])
    assert set(words) == {str(folders[2]), str(folders[3])}
    for word in words:
        shutil.rmtree(word)
    assert checkpoints.load(store.find()).step == 2
    with pytest.raises(checkpoints.DamagedError, match=r"step_000000000002 is intact$"):
        checkpoints.load(folders[0])


def test_an_unfinished_checkpoint_does_not_count_and_is_removed(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, {"a": b"1"})
    leftover = tmp_path / ".step_000000000002.abcd.tmp"
    leftover.mkdir()
    (leftover / "a").write_bytes(b"half")
    assert store.steps() == [1]
    store.save(3, {"a": b"3"})
    assert not leftover.exists()


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds no checkpoint"):
        store.find()
    with pytest.raises(ConfigError, match="no best checkpoint"):
        store.find("best")
    with pytest.raises(ConfigError, match="no checkpoint"):
        checkpoints.load(tmp_path)


def test_metrics_keep_every_digit_and_take_new_columns(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    file.write(1, {"a": 1 / 3})
    file.write(2, {"a": 2.0, "b": 7})
    file.write(3, {"b": 8})
    file.close()
    assert (tmp_path / "metrics.csv").read_text() == f"step,a,b\n1,{1 / 3!r},\n2,2.0,7\n3,,8\n"
    rows = metrics.read_rows(file.path)
    assert metrics.column(rows, "a") == [(1, 1 / 3), (2, 2.0)]
    assert metrics.column(rows, "none") == []


def test_metrics_are_cut_at_a_checkpoint(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path / "metrics.csv")
    for step in (1, 2, 3):
        file.write(step, {"a": step})
    file.close()
    again = MetricsFile(file.path)
    again.cut(2)
    again.write(5, {"a": 5})
    again.close()
    assert metrics.column(metrics.read_rows(file.path), "a") == [(1, 1.0), (2, 2.0), (5, 5.0)]


def test_a_row_cut_short_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,a\n1,2\n2,")
    assert metrics.read_rows(path) == [{"step": "1", "a": "2"}]
    file = MetricsFile(path)
    file.write(3, {"a": 4})
    file.close()
    assert path.read_text() == "step,a\n1,2\n3,4\n"


def test_what_is_no_metrics_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(ConfigError, match="no metrics file"):
        metrics.read_rows(path)


def test_a_new_folder_holds_config_and_log(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "a" / "b", "seed: 1\n")
    folder.log("one\ntwo")
    folder.write_results({"x": 1})
    folder.close()
    assert (folder.path / "config.yaml").read_text() == "seed: 1\n"
    assert [line.split(" ", 2)[2] for line in (folder.path / "log.txt").read_text().splitlines()] == ["one", "two"]
    assert read_results(folder.path) == {"x": 1}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty; to start anew"):
        check_new(tmp_path)
    assert names(tmp_path) == {"other"}
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ConfigError, match="to continue that run: --resume"):
        check_new(tmp_path)


def test_a_run_that_kept_nothing_makes_room_for_another(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "run", "seed: 1\n")
    folder.log("failed")
    (folder.path / "tensorboard").mkdir()
    with pytest.raises(ConfigError, match="another process is writing"):
        RunFolder.create(folder.path, "")
    folder.close()
    again = RunFolder.create(folder.path, "seed: 2\n")
    assert (again.path / "config.yaml").read_text() == "seed: 2\n"
    assert "failed" in (again.path / "log.txt").read_text()
    again.metrics.write(1, {"a": 1})
    again.close()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        check_new(again.path)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is a file"):
        check_new(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot be made: '.*file' is a file"):
        check_new(tmp_path / "file" / "sub")


def test_a_folder_without_permission_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # a mode would not stop root
    with pytest.raises(ConfigError, match="no permission"):
        check_new(tmp_path / "new")


def test_reopening_needs_a_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run folder"):
        RunFolder.reopen(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"is no run folder: it has no config\.yaml"):
        RunFolder.reopen(tmp_path)


def test_damaged_results_are_refused(tmp_path: Path) -> None:
    assert read_results(tmp_path) is None
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(ConfigError, match="no valid JSON"):
        read_results(tmp_path)


def _reopen(path: Path, answers: multiprocessing.Queue[str]) -> None:
    try:
        RunFolder.reopen(path).close()
        answers.put("opened")
    except ConfigError as error:
        answers.put(str(error))


def test_one_process_at_a_time(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[str] = context.Queue()
    folder = RunFolder.create(tmp_path / "run", "")
    for expected in ("another process is writing", "opened"):
        process = context.Process(target=_reopen, args=(folder.path, answers))
        process.start()
        assert expected in answers.get(timeout=30)
        process.join()
        folder.close()


@pytest.mark.filterwarnings("default:.*WARN:UserWarning")
def test_warnings_are_logged_without_colors() -> None:
    lines: list[str] = []
    with warnings_to(ProgressView("title", 1, 0, lines.append)):
        warnings.warn("\x1b[33mWARN: out of bounds\x1b[0m", UserWarning, stacklevel=1)
    assert lines == ["UserWarning: WARN: out of bounds"]
