"""Studies: finished trainings are kept, interruptions and failures say how to go on."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import study
from natgrad_apps.runner.command import RunFailedError
from natgrad_apps.runner.folder import RunFolder
from natgrad_apps.runner.interrupts import InterruptedRunError

PLAN = study.Plan("letters", "trainings", ["a", "b", "c"], "program --resume DIR")


def work(folder: RunFolder, *, stop_at: str = "", fail_at: str = "") -> list[str]:
    """Train what is left."""
    trained = []
    with study.session(PLAN, folder) as session:
        for name in session.left:
            if name == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)
            session.check()
            if name == fail_at:
                raise ValueError("no luck")
            session.keep(name, {"name": name}, f"{name} is done")
            trained.append(name)
    return trained


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    opened = RunFolder.create(tmp_path / "run", "config: 1\n")
    yield opened
    opened.close()


def test_a_study_goes_on_where_a_signal_stopped_it(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InterruptedRunError, match="to continue: program --resume DIR"):
        work(folder, stop_at="b")
    assert [file.name for file in (folder.path / "trainings").iterdir()] == ["a.json"]
    assert work(folder) == ["b", "c"]
    assert work(folder) == []
    assert json.loads((folder.path / "trainings" / "c.json").read_text()) == {"name": "c"}
    told = capsys.readouterr().err
    assert "letters  3/3 trainings" in told
    assert told.count("a is done") == told.count("c is done") == 1
    assert "interrupted by SIGTERM after 1 of 3 trainings" in (folder.path / "log.txt").read_text()


@pytest.mark.parametrize(("name", "hint"), [("a", False), ("b", True)])
def test_a_failure_tells_how_to_go_on_if_something_is_kept(folder: RunFolder, name: str, hint: bool) -> None:
    with pytest.raises(RunFailedError, match="ValueError: no luck") as failure:
        work(folder, fail_at=name)
    assert ("to go on: program --resume DIR" in str(failure.value)) is hint


def test_a_damaged_file_is_named(folder: RunFolder) -> None:
    work(folder)
    (folder.path / "trainings" / "b.json").write_text("{")
    with pytest.raises(ConfigError, match=r"b\.json' is damaged.*remove it to have that training done again"):
        work(folder)
