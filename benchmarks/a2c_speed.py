"""Training speed of ACKTR beside Stable-Baselines3's A2C: agent steps per second on Pong, in one run.

    python benchmarks/a2c_speed.py --updates 8

Both use the same environments (Atari wrappers, 4 stacked frames, 32 copies stepped in this process), the same rollouts (20 steps), the
same network (`ACKTRCnn`, so that A2C too has 32 channels in its third convolution) and the same losses. They take turns, A2C, ACKTR, A2C,
..., with a few updates a turn; the ratio of a turn of ACKTR is taken against the A2C turns before and after it, and the median over turns
is reported. An update is everything that `learn` does: emulation, the policy's forward passes, and training. ACKTR runs the options of
a preset: `atari`, which measures every step, or `pong`, which does not. The bar is 0.8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

import ale_py
import gymnasium
import torch
import yaml
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack

from benchmarks._timing import ROOT, Duration, environment, stopwatch
from natgrad_apps.agents import ACKTR, ACKTRCnn

BAR = 0.8
PRESETS = ROOT / "configs" / "agents"


def environments(name: str, copies: int) -> VecEnv:
    """The environments of the zoo's Atari runs."""
    gymnasium.register_envs(ale_py)
    return VecFrameStack(make_atari_env(name, n_envs=copies, seed=0), n_stack=4)


def turn(algorithm: OnPolicyAlgorithm, updates: int) -> Duration:
    """Train for some updates; seconds of one agent step."""
    steps = updates * algorithm.n_steps * algorithm.n_envs
    done = stopwatch(lambda: algorithm.learn(steps, reset_num_timesteps=False), 1, "cpu")
    return Duration(done.cpu / steps, done.wall / steps)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison; 1 if ACKTR is slower than the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=10, help="updates a turn; 10 hold one inversion, as in training")
    parser.add_argument("--turns", type=int, default=4, help="turns of ACKTR; A2C has one more")
    parser.add_argument("--preset", choices=["atari", "pong"], default="atari", help="whose options ACKTR has (default %(default)s)")
    parser.add_argument("--env", default="PongNoFrameskip-v4")
    parser.add_argument("--n-envs", type=int, default=32)
    parser.add_argument("--n-steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    preset = yaml.safe_load((PRESETS / f"{args.preset}.yaml").read_text())["agent"]
    shared = {"n_steps": args.n_steps, "gamma": preset["gamma"], "ent_coef": preset["ent_coef"], "seed": 0, "device": "cpu"}
    network = {"features_extractor_class": ACKTRCnn}
    # Copies, because A2C writes its optimizer into the mapping.
    a2c = A2C("CnnPolicy", environments(args.env, args.n_envs), policy_kwargs=dict(network), **shared)
    options = preset["natural_gradient"]
    acktr = ACKTR("CnnPolicy", environments(args.env, args.n_envs), policy_kwargs=dict(network), natural_gradient=options, **shared)
    for algorithm in (a2c, acktr):
        turn(algorithm, 1)
    baseline, ours = [turn(a2c, args.updates)], []
    for _ in range(args.turns):
        ours.append(turn(acktr, args.updates))
        baseline.append(turn(a2c, args.updates))
    slowdowns = [own.over(before, after) for before, own, after in zip(baseline, ours, baseline[1:], strict=False)]
    wall, cpu = [1 / s.wall for s in slowdowns], [1 / s.cpu for s in slowdowns]
    result = {
        "a2c_steps_per_second": 1 / statistics.median(t.wall for t in baseline),
        "acktr_steps_per_second": 1 / statistics.median(t.wall for t in ours),
        "ratio": statistics.median(wall),
        "ratio_cpu": statistics.median(cpu),
    }
    print(f"{args.env}, {args.n_envs} environments x {args.n_steps} steps, {args.threads} threads, {args.updates} updates a turn")
    print(f"A2C    {result['a2c_steps_per_second']:.0f} agent steps per second")
    print(f"ACKTR  {result['acktr_steps_per_second']:.0f} agent steps per second")
    print(f"ratio  {result['ratio']:.2f} elapsed ({min(wall):.2f}-{max(wall):.2f}), {result['ratio_cpu']:.2f} CPU time; bar {BAR}")
    setup = environment(("torch", "stable-baselines3", "ale-py", "natgrad-apps"))
    print(", ".join(f"{key} {value}" for key, value in setup.items()))
    if args.out:
        turns = {"a2c": [asdict(t) for t in baseline], "acktr": [asdict(t) for t in ours]}
        content = {"setup": setup, "arguments": {**vars(args), "out": str(args.out)}, **result, "turns": turns}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(content, indent=1) + "\n")
    return 0 if result["ratio"] >= BAR else 1


if __name__ == "__main__":
    raise SystemExit(main())
