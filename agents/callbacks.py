"""What happens between two updates of a run: evaluation, a row of metrics, a checkpoint, progress, and the end when a signal asks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.evaluation import Evaluation
from natgrad_apps.runner.interrupts import InterruptFlag
from natgrad_apps.runner.processes import ALONE, Processes
from natgrad_apps.runner.progress import ProgressView
from natgrad_apps.runner.words import counted, number

BAR_SECONDS = 0.2
NEVER = 2**62
"""A log interval that SB3's loop does not reach: it writes before an update, the runner after it."""


@dataclass
class Progress:
    """How far a run is; part of every checkpoint.

    Attributes:
        handled_updates: Last update after which everything that was due has been done.
        evaluated_at: Step of the last evaluation.
        saved_at: Step of the last checkpoint.
        best: Highest mean return of an evaluation.
        returns: Returns of the episodes that have ended since the last row of metrics.
        training_seconds: Time spent on rollouts and updates.
        seconds: Time since the start, without pauses between interruption and resumption.
        sessions: Number of processes that took part.
        exact: Whether every resumption so far went on in the middle of its episodes.
    """

    handled_updates: int = 0
    evaluated_at: int = 0
    saved_at: int = -1
    best: float | None = None
    returns: list[float] = field(default_factory=list)
    training_seconds: float = 0.0
    seconds: float = 0.0
    sessions: int = 1
    exact: bool = True


@dataclass(frozen=True)
class Decision:
    """What the processes of a run do between two updates.

    Attributes:
        save: Whether a checkpoint is written.
        stop: Whether the run stops after that.
    """

    save: bool
    stop: bool


class EvaluationInterruptedError(Exception):
    """A signal arrived during an evaluation, which will be repeated."""


@dataclass(frozen=True)
class Hooks:
    """What the callback needs from the run.

    Attributes:
        evaluate: Runs a periodic evaluation; may raise `EvaluationInterruptedError`.
        save: Writes a checkpoint; its argument says whether it is the best one.
        stop: Called when a signal has arrived and the checkpoint is written; raises.
        flag: Says whether a signal has arrived.
        view: Shows the progress.
        processes: Those that learn together; the decisions of this one, which leads, are told to the others.
    """

    evaluate: Callable[[], Evaluation]
    save: Callable[[bool], None]
    stop: Callable[[], None]
    flag: InterruptFlag
    view: ProgressView
    processes: Processes = ALONE


class RunCallback(BaseCallback):
    """Acts between updates, when agent, environments and generators are in a state that a checkpoint can hold.

    Args:
        config: The run.
        progress: How far it is; changed in place.
        hooks: What to call.
    """

    def __init__(self, config: TrainConfig, progress: Progress, hooks: Hooks) -> None:
        super().__init__()
        self.config, self.progress, self.hooks = config, progress, hooks
        self._clock = time.perf_counter()
        self._bar_clock = float("-inf")

    @property
    def agent(self) -> ACKTR:
        """The agent that is trained."""
        assert isinstance(self.model, ACKTR)
        return self.model

    def _on_training_start(self) -> None:
        self._clock = time.perf_counter()

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            episode = info.get("episode")
            if episode is not None:
                self.progress.returns.append(float(episode["r"]))
        return True

    def _on_rollout_start(self) -> None:
        """SB3 calls this before each rollout, which is after each update."""
        self.between_updates(last=False)

    def _on_rollout_end(self) -> None:
        """Measurements that cost something are made in updates that a row will report."""
        count_others(self.agent, self.hooks.processes)
        last = self.agent.num_timesteps >= self.config.total_timesteps
        self.agent.measure_next_update = self._is_row(self.agent._n_updates + 1, last=last)  # the agents of all processes agree on it

    def _on_training_end(self) -> None:
        self.between_updates(last=True)

    def between_updates(self, *, last: bool) -> None:
        """Do what is due after the last update.

        Args:
            last: Whether the run ends here.
        """
        progress, hooks = self.progress, self.hooks
        self._count_time(training=True)
        updates, best = self.agent._n_updates, False
        try:
            if updates != progress.handled_updates:
                best = self._handle(updates, last=last)
        except EvaluationInterruptedError:
            pass  # the flag is set: the checkpoint below is written with the evaluation still due
        stop = hooks.flag.is_set and not last
        due = _crossed(progress.saved_at, self.agent.num_timesteps, self.config.checkpoint_every) or progress.saved_at < 0
        decision = hooks.processes.told(Decision(save=due or best or stop or last, stop=stop))
        if decision.save:
            progress.saved_at = self.agent.num_timesteps
            self._count_time(training=False)
            hooks.save(best)
        if stop:
            hooks.stop()
        self._show(last=last)
        self._count_time(training=False)

    def _handle(self, updates: int, *, last: bool) -> bool:
        """Evaluate and write a row where they are due; returns whether the evaluation was the best so far."""
        progress, logger = self.progress, self.agent.logger
        row, best = self._is_row(updates, last=last), False
        if self._is_evaluation():
            result = self.hooks.evaluate()
            self._count_time(training=False)
            progress.evaluated_at = self.agent.num_timesteps
            logger.record("eval/mean_reward", result.mean)
            logger.record("eval/std_reward", result.std)
            logger.record("eval/mean_ep_length", float(np.mean(result.lengths)))
            best = progress.best is None or result.mean > progress.best
            progress.best = result.mean if best else progress.best
            self.hooks.view.say(
                f"step {self.agent.num_timesteps:,}: evaluation {number(result.mean)} +- {number(result.std)} over "
                + counted(len(result.returns), "episode")
            )
        if row:
            self._write_row(updates)
        progress.handled_updates = updates
        return best

    def _is_evaluation(self) -> bool:
        return _crossed(self.progress.evaluated_at, self.agent.num_timesteps, self.config.evaluation.every_steps)

    def _is_row(self, updates: int, *, last: bool) -> bool:
        return last or updates % self.config.log_every == 0 or self._is_evaluation()

    def _write_row(self, updates: int) -> None:
        progress, logger, model = self.progress, self.agent.logger, self.agent
        episodes = model.ep_info_buffer
        if episodes:
            logger.record("rollout/ep_rew_mean", float(np.mean([e["r"] for e in episodes])))
            logger.record("rollout/ep_len_mean", float(np.mean([e["l"] for e in episodes])))
        if progress.returns:
            logger.record("rollout/recent_return", float(np.mean(progress.returns)))
        if model.ep_success_buffer:
            logger.record("rollout/success_rate", float(np.mean(model.ep_success_buffer)))
        progress.returns.clear()
        logger.record("time/iterations", updates, exclude="tensorboard")
        logger.record("time/fps", self._speed())
        logger.record("time/time_elapsed", progress.seconds, exclude="tensorboard")
        logger.dump(step=self.agent.num_timesteps)

    def _speed(self) -> float:
        return self.agent.num_timesteps / max(self.progress.training_seconds, 1e-9)

    def _count_time(self, *, training: bool) -> None:
        now = time.perf_counter()
        self.progress.seconds += now - self._clock
        if training:
            self.progress.training_seconds += now - self._clock
        self._clock = now

    def _show(self, *, last: bool) -> None:
        now = time.perf_counter()
        if not self.agent._n_updates or (not last and now - self._bar_clock < BAR_SECONDS):
            return
        self._bar_clock = now
        numbers, episodes = {}, self.agent.ep_info_buffer
        if episodes:
            numbers["return"] = number(float(np.mean([e["r"] for e in episodes])))
        if "predicted_kl" in self.agent.last_update:
            numbers["predicted KL"] = f"{self.agent.last_update['predicted_kl']:.2g}"
        numbers["steps/s"] = f"{self._speed():.0f}"
        self.hooks.view.update(self.agent.num_timesteps, numbers, last=last)


class FollowerCallback(BaseCallback):
    """Keeps a process that does not lead in step with the one that does.

    Args:
        processes: Those that learn together.
        save: Hands this process's part of a checkpoint over.
        stop: Called when the run is interrupted; raises.
    """

    def __init__(self, processes: Processes, save: Callable[[], None], stop: Callable[[], None]) -> None:
        super().__init__()
        self._processes, self._save, self._stop = processes, save, stop

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.between_updates()

    def _on_rollout_end(self) -> None:
        assert isinstance(self.model, ACKTR)
        count_others(self.model, self._processes)

    def _on_training_end(self) -> None:
        self.between_updates()

    def between_updates(self) -> None:
        """Do what the leading process has decided."""
        decision = self._processes.told(Decision(save=False, stop=False))
        if decision.save:
            self._save()
        if decision.stop:
            self._stop()


def count_others(agent: ACKTR, processes: Processes) -> None:
    """Add the steps that the other processes have made in a rollout: the counter is that of the run."""
    agent.num_timesteps += (processes.size - 1) * agent.n_steps * agent.n_envs


def _crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in ``(before, now]``; never for 0."""
    return every > 0 and now // every > max(before, 0) // every
