"""`natgrad-acktr` from outside: exit codes, messages, run folders."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.cli import main
from natgrad_apps.runner import checkpoints, metrics
from natgrad_apps.runner.checkpoints import CheckpointStore

Capture = pytest.CaptureFixture[str]


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_run_folder_is_complete(finished_run: Path) -> None:
    assert {"config.yaml", "metrics.csv", "results.json", "log.txt", "figures/learning_curve.png"} <= files(finished_run)
    assert any("tfevents" in name for name in files(finished_run / "tensorboard"))
    assert (finished_run / "figures" / "learning_curve.png").stat().st_size > 10_000
    assert not [name for name in files(finished_run) if name.endswith(".tmp")]
    assert "done at step 1280" in (finished_run / "log.txt").read_text()


def test_results_have_the_promised_keys(finished_run: Path) -> None:
    results = json.loads((finished_run / "results.json").read_text())
    evaluation = results["evaluation"]
    assert (evaluation["episodes"], len(evaluation["returns"]), results["steps"], results["updates"]) == (4, 4, 1280, 20)
    assert evaluation["mean_return"] == pytest.approx(sum(evaluation["returns"]) / 4)
    assert evaluation["std_return"] >= 0
    assert results["steps_per_second"] == pytest.approx(1280 / results["training_seconds"])
    assert results["duration_seconds"] >= results["training_seconds"] > 0
    assert results["seeds"]["run"] == 0
    assert results["packages"]["torch"].startswith(torch.__version__.split("+", maxsplit=1)[0])
    assert {"commit", "modified"} == set(results["source"])
    assert results["machine"]["device"] == "cpu"
    assert (results["sessions"], results["resumed_exactly"]) == (1, True)
    best = results["best_checkpoint"]
    assert best["step"] == checkpoints.load(CheckpointStore(finished_run / "checkpoint").find("best")).step
    assert best["evaluation"]["episodes"] == 4
    assert (best["evaluation"] == evaluation) == (best["step"] == results["steps"])


def test_metrics_have_a_row_every_second_update_and_the_known_names(finished_run: Path) -> None:
    rows = metrics.read_rows(finished_run / "metrics.csv")
    assert [int(row["step"]) for row in rows] == list(range(128, 1281, 128))
    names = {"rollout/ep_rew_mean", "rollout/ep_len_mean", "train/policy_loss", "train/value_loss", "train/explained_variance", "time/fps"}
    own = {"train/predicted_kl", "train/measured_kl", "train/kl_scale", "train/actor_share", "train/critic_share", "train/min_eigenvalue"}
    assert names | own | {"eval/mean_reward", "eval/mean_ep_length"} <= set(rows[0])
    # Every row was measured, and the learning rate falls in a line: after update k of 20 it is that of the update, 0.25 (1 - k/20).
    assert [rate for _, rate in metrics.column(rows, "train/learning_rate")] == pytest.approx(
        [0.25 * (1 - k / 20) for k in range(2, 21, 2)]
    )
    assert len(metrics.column(rows, "train/measured_kl")) == 10
    assert [step for step, _ in metrics.column(rows, "eval/mean_reward")] == [640, 1280]


def test_tensorboard_tells_the_same(finished_run: Path) -> None:
    events = EventAccumulator(str(finished_run / "tensorboard"))
    events.Reload()
    rows = metrics.read_rows(finished_run / "metrics.csv")
    for name in ("rollout/ep_rew_mean", "train/predicted_kl", "eval/mean_reward"):
        steps, values = zip(*metrics.column(rows, name), strict=True)
        assert tuple(event.step for event in events.Scalars(name)) == steps
        assert tuple(event.value for event in events.Scalars(name)) == pytest.approx(values)  # events are single precision


def test_the_resolved_configuration_repeats_the_run(finished_run: Path, tmp_path: Path) -> None:
    assert main(["train", "--config", str(finished_run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, second = (metrics.read_rows(folder / "metrics.csv") for folder in (finished_run, tmp_path / "again"))
    assert [{k: v for k, v in row.items() if not k.startswith("time/")} for row in first] == [
        {k: v for k, v in row.items() if not k.startswith("time/")} for row in second
    ]
    assert (finished_run / "config.yaml").read_text() == (tmp_path / "again" / "config.yaml").read_text()


def test_print_config_resolves_and_writes_nothing(
    small_config: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--agent.natural_gradient.damping.value", "1e-3", "--agent.n_steps", "1e1", "--environment.kwargs.x_threshold", "3"]
    assert main(["train", "--config", str(small_config), "--print_config", *arguments]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["agent"]["n_steps"] == 10
    assert shown["agent"]["natural_gradient"]["damping"] == {"name": "tikhonov", "value": 0.001}
    assert shown["environment"]["kwargs"] == {"x_threshold": 3}
    assert not files(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "--out DIR is needed"),
        (["trane"], "did you mean 'train'"),
        (["train", "--agent.n_stepz", "3"], "did you mean '--agent.n_steps'"),
        (["train", "--agent.n_steps", "0", "--out", "OUT"], "agent.n_steps (command line): got '0'; legal: a whole number >= 1"),
        (
            ["train", "--agent.learning_rate", "lin_x", "--out", "OUT"],
            "agent.learning_rate (command line): got 'lin_x'; legal: a number > 0 or a schedule such as lin_0.25",
        ),
        (["train", "--agent.learning_rate", "0", "--out", "OUT"], "learning_rate"),
        (["train", "--agent.policy", "MlpPolici", "--out", "OUT"], "did you mean 'MlpPolicy'"),
        (["train", "--agent.natural_gradient.curvature", "kfak", "--out", "OUT"], "did you mean 'kfac'"),
        (["train", "--agent.natural_gradient.damping", "-1", "--out", "OUT"], "damping must be"),
        (["train", "--agent.network.net_arch", "[64, 0]", "--out", "OUT"], "agent.network.net_arch[1]"),
        (["train", "--seed", "-1", "--out", "OUT"], "seed (command line)"),
        (["train", "--config", "cartpol", "--out", "OUT"], "did you mean 'cartpole'"),
        (["train", "--environment.id", "CartPol-v1", "--out", "OUT"], "nearest ids: CartPole-v1"),
        (["train", "--agent.policy", "CnnPolicy", "--out", "OUT"], "agent"),
        (["train", "--environment.id", "Blackjack-v1", "--out", "OUT"], "environment 'Blackjack-v1' has observations Tuple"),
        (["train", "--resume", "OUT"], "there is no run folder"),
        (["check", "--agent.gamma", "1.5"], "a number in (0, 1]"),
        (["evaluate", "OUT"], "give a run folder or a checkpoint"),
        (["evaluate", "OUT", "--episodes", "none"], "--episodes (command line): got 'none'; legal: a whole number >= 1"),
        (["evaluate", "OUT", "--checkpoint", "first"], "--checkpoint is last or best"),
        (["evaluate", "OUT", "--device", "gpu"], "did you mean 'cpu'"),
        (["plot", "OUT"], "there is no run folder"),
        (["plot", "OUT", "--out", "x.pdf"], "must end in .png"),
    ],
)
def test_bad_input_is_told_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([word.replace("OUT", str(tmp_path / "out")) for word in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("natgrad-acktr: error: ")
    assert message in error
    assert "Traceback" not in error
    assert not files(tmp_path)


def test_the_console_command_tells_bad_input_without_loading_sb3(tmp_path: Path) -> None:
    code = (
        "import sys; from natgrad_apps.agents.cli import main; code = main(sys.argv[1:]); "
        "print(sorted({'stable_baselines3', 'gymnasium', 'matplotlib'} & set(sys.modules))); sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, "train", "--out", "out", "--agent.n_steps", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "[]\n")
    assert done.stderr == "natgrad-acktr: error: agent.n_steps (command line): got '0'; legal: a whole number >= 1\n"
    assert not files(tmp_path)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_an_absent_device_is_told(device: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert main(["train", "--device", device, "--out", str(tmp_path / "out")]) == 2
    assert f"device '{device}' is not available" in capsys.readouterr().err
    assert not files(tmp_path)


def test_a_folder_in_use_is_refused(finished_run: Path, small_config: Path, capsys: Capture) -> None:
    before = files(finished_run)
    assert main(["train", "--config", str(small_config), "--out", str(finished_run)]) == 2
    assert f"--resume {finished_run}" in capsys.readouterr().err
    assert files(finished_run) == before


def test_resuming_takes_no_settings(finished_run: Path, capsys: Capture) -> None:
    assert main(["train", "--resume", str(finished_run), "--seed", "3"]) == 2
    assert "drop --seed" in capsys.readouterr().err


def test_resuming_a_finished_run_says_so(finished_run: Path, capsys: Capture) -> None:
    before = files(finished_run)
    assert main(["train", "--resume", str(finished_run)]) == 0
    told = capsys.readouterr().out
    assert "is complete" in told
    agent = finished_run / "checkpoint" / "step_000000001280" / "agent.zip"
    assert f'ACKTR.load("{agent}", env).learn(' in told
    assert agent.is_file()
    assert files(finished_run) == before


def test_a_failure_is_one_line_with_the_traceback_in_the_log(
    small_config: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object) -> None:
        raise RuntimeError("the update exploded")

    monkeypatch.setattr(ACKTR, "train", fail)
    out = tmp_path / "out"
    assert main(["train", "--config", str(small_config), "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert f"natgrad-acktr: failed: RuntimeError: the update exploded; the traceback is in {out / 'log.txt'}" in error
    assert "Traceback" not in error
    log = (out / "log.txt").read_text()
    assert "Traceback" in log
    assert 'raise RuntimeError("the update exploded")' in log
    assert not (out / "results.json").exists()


def test_evaluation_repeats_the_final_one(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    results = json.loads((finished_run / "results.json").read_text())
    assert main(["evaluate", str(finished_run), "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "evaluation.json").read_text())
    assert report["evaluation"] == results["evaluation"]
    assert (report["steps"], report["checkpoint"]) == (1280, "step_000000001280")
    assert report["steps_per_second"] > 0
    mean = results["evaluation"]["mean_return"]
    assert f"mean return {mean:.2f}" in capsys.readouterr().out


def test_evaluation_of_a_checkpoint_away_from_its_run(finished_run: Path, tmp_path: Path) -> None:
    source = CheckpointStore(finished_run / "checkpoint").find("best")
    shutil.copytree(source, tmp_path / "moved")
    assert main(["evaluate", str(tmp_path / "moved"), "--episodes", "3", "--seed", "5", "--stochastic"]) == 0
    report = json.loads((tmp_path / "moved" / "evaluation.json").read_text())
    assert (report["evaluation"]["episodes"], report["evaluation"]["seed"], report["evaluation"]["deterministic"]) == (3, 5, False)
    assert checkpoints.load(tmp_path / "moved").step == report["steps"]


def test_a_damaged_checkpoint_is_not_evaluated(finished_run: Path, tmp_path: Path, capsys: Capture) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    agent = CheckpointStore(copy / "checkpoint").find() / "agent.zip"
    data = bytearray(agent.read_bytes())
    data[len(data) // 2] ^= 1
    agent.write_bytes(bytes(data))
    assert main(["evaluate", str(copy), "--episodes", "1"]) == 2
    assert "is damaged: agent.zip has SHA-256" in capsys.readouterr().err


def test_plot_draws_where_it_is_told(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(finished_run, copy)
    assert main(["plot", str(finished_run), "--out", "one.png"]) == 0
    assert main(["plot", str(finished_run), str(copy)]) == 0
    assert capsys.readouterr().out.split() == ["one.png", "learning_curves.png"]
    assert (tmp_path / "one.png").read_bytes() == (finished_run / "figures" / "learning_curve.png").read_bytes()


def test_a_run_in_which_no_episode_ends_has_no_picture(tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    short = ["--environment.id", "Pendulum-v1", "--agent.n_steps", "8", "--total_timesteps", "64", "--evaluation.final_episodes", "1"]
    assert main(["train", "--out", str(out), *short]) == 0
    told = capsys.readouterr().out
    assert "picture: none, because no episode ended" in told
    assert ", 1 episode\n" in told
    assert json.loads((out / "results.json").read_text())["evaluation"]["episodes"] == 1
    assert main(["plot", str(out)]) == 2
    assert "no episode has ended yet" in capsys.readouterr().err


def test_check_reports_layers_and_cost_and_writes_nothing(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "--environment.id", "Pendulum-v1", "--environment.n_envs", "2", "--agent.n_steps", "8"]) == 0
    report = capsys.readouterr().out
    assert "mlp_extractor.policy_net.2  linear  64 x 65          65 and 64" in report
    assert "Fisher known in closed form: log_std" in report
    assert "diagonal fallback: no parameter" in report
    assert "6,250 updates of 8 x 2 steps: 100,000 steps" in report
    assert "estimate      about" in report
    assert not files(tmp_path)
