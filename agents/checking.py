"""The verb ``check``: everything that can be known about a run before it starts. Writes nothing."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.building import build_agent, open_environment
from natgrad_apps.agents.callbacks import NEVER
from natgrad_apps.agents.config import TrainConfig
from natgrad_apps.agents.environments import make_evaluation
from natgrad_apps.agents.heads import actor_likelihood

TRIAL_SECONDS, TRIAL_UPDATES = 5.0, 20
FLOAT_BYTES = 4


def check(config: TrainConfig) -> str:
    """Make the environments and the agent, try a few updates, and report sizes and cost.

    Args:
        config: The run.

    Returns:
        The report.

    Raises:
        ConfigError: The run could not start.
    """
    with ExitStack() as stack:
        venv = open_environment(config, stack)
        make_evaluation(config.environment, 1, config.seed, None).close()
        agent = build_agent(config, venv)
        agent.set_logger(Logger(None, []))
        trial = _Trial()
        agent.learn(TRIAL_UPDATES * config.batch_size, trial, log_interval=NEVER)
        env, updates = config.environment, -(-config.total_timesteps // config.batch_size)
        lines = [
            f"environment   {env.id}, {env.n_envs} copies ({env.vectorization})",
            f"spaces        observations {venv.observation_space}, actions {venv.action_space}",
            f"agent         {config.agent.policy}, {sum(p.numel() for p in agent.policy.parameters()):,} parameters, on {agent.device}",
            f"run           {updates:,} updates of {config.agent.n_steps} x {env.n_envs} steps: {updates * config.batch_size:,} steps",
            "",
            *_layer_lines(agent),
            "",
            *_cost_lines(trial, updates),
        ]
    return "\n".join(lines)


@dataclass(frozen=True)
class _Row:
    name: str
    kind: str
    weight: str
    factors: tuple[int, ...]
    copies: int

    @property
    def cube(self) -> int:
        """Number that the cost of a factorization is proportional to."""
        return self.copies * sum(n**3 for n in self.factors)

    @property
    def memory(self) -> int:
        """Bytes of the factors and of their inverses."""
        return 2 * FLOAT_BYTES * self.copies * sum(n**2 for n in self.factors)


def _layer_lines(agent: ACKTR) -> list[str]:
    """One line a layer with the sizes of its Kronecker factors, and the parameters that no layer covers."""
    blocks = agent.optimizer.preconditioner.blocks
    rows = []
    for layer in blocks.layers:
        spec = layer.spec
        shape = " x ".join(str(n) for n in spec.shape)
        rows.append(_Row(spec.name, spec.kind, shape, (spec.d_in, spec.d_out), int(np.prod(spec.lead, initial=1))))
    total = max(sum(row.cube for row in rows), 1)
    width = max((len(row.name) for row in rows), default=0)
    lines = [f"{'layer':<{width}}  kind    weight           factors          refresh  memory"]
    for row in rows:
        factors = " and ".join(str(n) for n in row.factors)
        lines.append(
            f"{row.name:<{width}}  {row.kind:<6}  {row.weight:<15}  {factors:<15}  {row.cube / total:>6.1%}  {row.memory / 2**20:>7.2f} MiB"
        )
    known = {id(parameter) for parameter, _ in actor_likelihood(agent.policy).known_fisher()}
    bare = [block.spec.name for block in blocks.bare if id(block.parameters[0]) not in known]
    closed = [block.spec.name for block in blocks.bare if id(block.parameters[0]) in known]
    lines.append(f"Fisher known in closed form: {', '.join(closed) or 'no bare parameter'}")
    lines.append(f"diagonal fallback: {', '.join(bare) or 'no parameter'}")
    return lines


def _cost_lines(trial: _Trial, updates: int) -> list[str]:
    # The first update allocates and warms up.
    rollout, update = (float(np.mean(times[1:])) for times in (trial.rollouts, trial.updates))
    seconds = updates * (rollout + update)
    return [
        f"measured      {len(trial.updates) - 1} updates: rollout {1e3 * rollout:.1f} ms, update {1e3 * update:.1f} ms",
        f"estimate      about {_duration(seconds)} of training, without evaluations",
    ]


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


@dataclass
class _Trial(BaseCallback):
    """Times rollouts and updates, and ends the trial when it has enough of them."""

    rollouts: list[float] = field(default_factory=list)
    updates: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._start = self._clock = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.rollouts:
            self.updates.append(self._lap())
        self._lap()

    def _on_rollout_end(self) -> None:
        self.rollouts.append(self._lap())

    def _on_step(self) -> bool:
        return len(self.updates) < 3 or time.perf_counter() - self._start < TRIAL_SECONDS

    def _on_training_end(self) -> None:
        if len(self.updates) < len(self.rollouts):
            self.updates.append(self._lap())

    def _lap(self) -> float:
        before, self._clock = self._clock, time.perf_counter()
        return self._clock - before
