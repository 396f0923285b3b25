"""Training runs: from a configuration to a run folder, and on from a checkpoint."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv

import natgrad_apps
from natgrad_apps.agents import environment_state, parallel, snapshot
from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.building import build_agent
from natgrad_apps.agents.callbacks import EvaluationInterruptedError, Hooks, Progress, RunCallback
from natgrad_apps.agents.config import PROGRAM, TrainConfig
from natgrad_apps.agents.context import ContextualPolicy
from natgrad_apps.agents.environments import close, find_normalization, make_evaluation
from natgrad_apps.agents.evaluation import FINAL_SEED, PERIODIC_SEED, Evaluation, evaluate
from natgrad_apps.agents.plotting import NothingToDrawError, plot_runs
from natgrad_apps.agents.sizes import wide_lines
from natgrad_apps.agents.writing import RunWriter
from natgrad_apps.errors import ConfigError
from natgrad_apps.runner import checkpoints, provenance, schema
from natgrad_apps.runner.folder import RunFolder, check_new
from natgrad_apps.runner.guards import failures_to, warnings_to
from natgrad_apps.runner.interrupts import InterruptedRunError, InterruptFlag
from natgrad_apps.runner.processes import Processes, join, resume_command
from natgrad_apps.runner.progress import ProgressView
from natgrad_apps.runner.resuming import reopen_together
from natgrad_apps.runner.words import counted, number

SESSION_SEED = 7919
PACKAGES = ("natgrad-apps", "torch", "numpy", "stable-baselines3", "gymnasium", "ale-py", "mujoco")


def train(config: TrainConfig, out: Path) -> None:
    """Train an agent and leave a run folder.

    Args:
        config: The run.
        out: A folder that does not exist or is empty.

    Raises:
        ConfigError: The configuration cannot be used; nothing has been written then.
        EnvironmentFaultError: An environment broke in its first reset; nothing has been written then.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(join())
        if not processes.agreed(lambda: check_new(out)):
            return
        venv, agent = parallel.learner(config, processes, stack)
        opened: list[VecEnv] = []
        if not processes.agreed(lambda: opened.append(_open_evaluation(config, venv, stack, agent))):
            return
        if not processes.leads:
            parallel.follow(agent, venv, config, processes, None)
            return
        config_yaml = schema.to_yaml(config)
        folder = RunFolder.create(out, config_yaml)
        stack.callback(folder.close)
        _Session(config, config_yaml, folder, venv, opened[0], agent, Progress(), processes).run(None)


def resume(path: Path) -> None:
    """Continue a run from its last checkpoint to its original end.

    Args:
        path: The run folder.

    Raises:
        ConfigError: It is no run folder, or its checkpoint is damaged.
        InterruptedRunError: A signal arrived; the checkpoint is written.
        RunFailedError: Something else went wrong; ``log.txt`` has the traceback.
    """
    with ExitStack() as stack:
        processes = stack.enter_context(join())
        run = reopen_together(path, TrainConfig, parallel.COMMAND, processes, stack)
        if run is None:
            if processes.leads:
                print(snapshot.how_to_go_on(path))
            return
        config, files = run.config, run.files
        state = snapshot.RunState.unpack(files)
        venv, agent = parallel.learner(config, processes, stack)
        snapshot.take_statistics(venv, snapshot.normalization(files))
        snapshot.restore_agent(files, agent)
        if state.environments is None:
            # Without the states of the environments new episodes begin; other seeds keep them from repeating the first ones.
            venv.seed(parallel.seed_of(config, processes) + SESSION_SEED * state.progress.sessions)
            agent._last_obs = None
            state.progress.exact = False
        state.progress.sessions += 1
        if not processes.leads:
            parallel.follow(agent, venv, config, processes, state)
            return
        assert run.folder is not None
        evaluation = _open_evaluation(config, venv, stack)
        _Session(config, run.config_yaml, run.folder, venv, evaluation, agent, state.progress, processes).run(state)


def _open_evaluation(config: TrainConfig, venv: VecEnv, stack: ExitStack, agent: ACKTR | None = None) -> VecEnv:
    """The environment of evaluations, with the statistics of the training environment.

    Args:
        config: The run.
        venv: The training environment.
        stack: Closes it.
        agent: Of a new run: one episode is begun, so that what breaks at once does so before anything is written. Evaluations begin anew.
    """
    count = min(config.evaluation.n_envs, config.evaluation.final_episodes)
    evaluation = make_evaluation(config.environment, count, config.seed + PERIODIC_SEED, find_normalization(venv))
    stack.callback(close, evaluation)
    if agent is not None:
        evaluation.reset()
        if isinstance(agent.policy, ContextualPolicy):
            agent.policy.read_masks(evaluation)
    return evaluation


@dataclass
class _Session:
    """One process's part of a run."""

    config: TrainConfig
    config_yaml: str
    folder: RunFolder
    venv: VecEnv
    evaluation: VecEnv
    agent: ACKTR
    progress: Progress
    processes: Processes
    told_stateless: bool = False

    def run(self, state: snapshot.RunState | None) -> None:
        """Train to the end, evaluate, write results and picture.

        Args:
            state: What a checkpoint brought; None for a new run.
        """
        self.folder.log(f"{'start' if state is None else 'resume'} at step {self.agent.num_timesteps}")
        config = self.config
        title = f"ACKTR {config.environment.id}"
        view = ProgressView(title, config.total_timesteps, self.agent.num_timesteps, self.folder.log)
        with ExitStack() as stack:
            flag = stack.enter_context(InterruptFlag())
            stack.enter_context(failures_to(self.folder, self._resume_command()))
            stack.enter_context(view)
            stack.enter_context(warnings_to(view))
            view.say(f"{title}: {config.total_timesteps:,} steps, {self._batch()}, seed {config.seed}, {self.agent.device}")
            for line in wide_lines(self.agent):
                view.say(f"warning: {line}")
            self._start_logger(stack, state)
            if state is not None and not state.restore(self.venv, self.agent.logger):
                view.say("the states of these environments cannot be saved: new episodes begin")
            stack.enter_context(failures_to(self.folder, self._resume_command(), checked=True))
            self._learn(flag, view)
            result = self._final_evaluation(self.agent, self.evaluation, flag, view)
            best = self._best_evaluation(stack, result, flag, view)
        self._finish(result, best)

    def _batch(self) -> str:
        size = self.processes.size
        return f"batch {size * self.config.batch_size}" + (f" of {size} processes" if size > 1 else "")

    def _start_logger(self, stack: ExitStack, state: snapshot.RunState | None) -> None:
        kept: int | None = None
        if state is not None:
            # The last update's own row is written again, too, where its evaluation is still due.
            handled = self.progress.handled_updates == self.agent._n_updates
            kept = self.agent.num_timesteps - (0 if handled else 1)
            self.folder.metrics.cut(kept)
        logger = Logger(None, [RunWriter(self.folder.metrics, self.folder.tensorboard, kept)])
        stack.callback(logger.close)
        self.agent.set_logger(logger)

    def _learn(self, flag: InterruptFlag, view: ProgressView) -> None:
        """Train for what is left; a run that was interrupted during its last evaluation has nothing left."""
        settings = self.config.evaluation

        def check() -> None:
            if flag.is_set:
                raise EvaluationInterruptedError

        def measure() -> Evaluation:
            seed = self.config.seed + PERIODIC_SEED
            return evaluate(self.agent, self.evaluation, settings.episodes, seed, deterministic=settings.deterministic, check=check)

        def save(best: bool) -> None:
            files = self.processes.gathered_files(snapshot.pack(self.agent, self.venv, self.progress, self.config_yaml))
            self.folder.checkpoints.save(self.agent.num_timesteps, files, best=best)
            self._tell_stateless(view)

        def stop() -> None:
            self._interrupt(flag)

        callback = RunCallback(self.config, self.progress, Hooks(measure, save, stop, flag, view, self.processes))
        parallel.learn(self.agent, self.config.total_timesteps, callback, lambda: callback.between_updates(last=True))

    def _tell_stateless(self, view: ProgressView) -> None:
        reason = environment_state.why_no_state(self.venv)
        if reason is not None and not self.told_stateless:
            view.say(f"the states of these environments cannot be saved, so a resumed run begins new episodes: {reason}")
            self.told_stateless = True

    def _final_evaluation(self, agent: ACKTR, venv: VecEnv, flag: InterruptFlag, view: ProgressView) -> Evaluation:
        settings = self.config.evaluation

        def check() -> None:
            if flag.is_set:
                self._interrupt(flag)

        check()
        view.say(f"final evaluation of the agent of step {agent.num_timesteps:,}, episodes: {settings.final_episodes}")
        start = time.perf_counter()
        seed = self.config.seed + FINAL_SEED
        result = evaluate(agent, venv, settings.final_episodes, seed, deterministic=settings.deterministic, check=check)
        self.progress.seconds += time.perf_counter() - start
        return result

    def _best_evaluation(
        self, stack: ExitStack, last: Evaluation, flag: InterruptFlag, view: ProgressView
    ) -> tuple[int, Evaluation] | None:
        """Step and evaluation of the checkpoint that periodic evaluations found best; None if there is none, or it was damaged."""
        if self.progress.best is None:
            return None
        try:
            saved = checkpoints.load(self.folder.checkpoints.find("best"))
        except ConfigError as error:
            view.say(f"the best checkpoint cannot be evaluated: {error}")
            return None
        if saved.step == self.agent.num_timesteps:
            return saved.step, last
        config = self.config
        count = min(config.evaluation.n_envs, config.evaluation.final_episodes)
        venv = make_evaluation(config.environment, count, config.seed + FINAL_SEED, None)
        stack.callback(close, venv)
        snapshot.take_statistics(venv, snapshot.normalization(saved.files))
        agent = build_agent(config, venv)
        snapshot.restore_agent(saved.files, agent)
        return saved.step, self._final_evaluation(agent, venv, flag, view)

    def _interrupt(self, flag: InterruptFlag) -> NoReturn:
        self.folder.log(f"interrupted by {flag.name} at step {self.agent.num_timesteps}")
        raise InterruptedRunError(self._resume_command())

    def _resume_command(self) -> str:
        return resume_command(*parallel.COMMAND, self.folder.path, self.processes.size)

    def _finish(self, result: Evaluation, best: tuple[int, Evaluation] | None) -> None:
        self.folder.write_results(self._results(result, best))
        try:
            with failures_to(self.folder, self._resume_command()):
                picture = str(plot_runs([self.folder.path], self.folder.figures / "learning_curve.png"))
        except NothingToDrawError:
            picture = "none, because no episode ended during training"
        episodes = counted(len(result.returns), "episode")
        summary = f"evaluation: mean return {number(result.mean)}, standard deviation {number(result.std)}, {episodes}"
        self.folder.log(f"done at step {self.agent.num_timesteps}; {summary}")
        print(summary)
        if best is not None and best[0] != self.agent.num_timesteps:
            print(f"best checkpoint (step {best[0]:,}): mean return {number(best[1].mean)}, standard deviation {number(best[1].std)}")
        print(f"run folder: {self.folder.path}   picture: {picture}")

    def _results(self, result: Evaluation, best: tuple[int, Evaluation] | None) -> dict[str, Any]:
        progress, config = self.progress, self.config
        return {
            "runner": PROGRAM,
            "environment": config.environment.id,
            "evaluation": result.to_dict(),
            "steps": self.agent.num_timesteps,
            "updates": self.agent._n_updates,
            "steps_per_second": self.agent.num_timesteps / max(progress.training_seconds, 1e-9),
            "training_seconds": progress.training_seconds,
            "duration_seconds": progress.seconds,
            "best_periodic_evaluation": progress.best,
            "best_checkpoint": None if best is None else {"step": best[0], "evaluation": best[1].to_dict()},
            "seeds": {"run": config.seed, "periodic_evaluation": config.seed + PERIODIC_SEED, "final_evaluation": result.seed},
            "sessions": progress.sessions,
            "processes": self.processes.size,
            "resumed_exactly": progress.exact,
            "packages": provenance.package_versions(PACKAGES),
            "source": provenance.git_commit(Path(natgrad_apps.__file__)),
            "machine": provenance.machine(self.agent.device),
        }
