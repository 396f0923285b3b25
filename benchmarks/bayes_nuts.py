"""Predictive variances beside those of Hamiltonian Monte Carlo: how well each posterior knows where it is uncertain.

    NATGRAD_DATA=... python benchmarks/bayes_nuts.py --seeds 10     # concrete, 10 seeds: minutes

The question of Zhang et al. (2018) on nets that NUTS can handle: one hidden layer of 10 tanh units, 20 training rows of a UCI set drawn at
random, the predictive variance of the network's output at 200 other rows, and its Pearson correlation with that of NUTS. Prior precision 1
and noise precision 10 (of the standardized target) are the same for everyone and not learned. NUTS: Pyro's, in float64, 150 warm-up and 300
kept steps, trees of depth 5 at most; convergence is the split R-hat of the network's outputs at the 200 rows, and the correlation between
the variances of the chain's two halves. Methods: 600 steps on all rows with two weight samples; 500 samples to predict. AutoNormal is
Pyro's mean-field guide by Adam, 1,000 steps of one sample.

Prints the mean and the standard error over seeds of the correlation and of the ratio of mean variances (method / NUTS), and of the paired
difference to noisy Adam, the mean-field posterior of the same algorithm. ``--write`` puts the table into docs/bayes.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.infer
import pyro.optim
import torch
from pyro.infer import autoguide
from pyro.ops import stats
from torch import Tensor, nn

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

from benchmarks._pages import mean_and_error, write_block
from benchmarks.bayes_uci import DOCUMENT
from natgrad_apps.bayes import NoisyAdam, NoisyKFAC, Regression, Variational
from natgrad_apps.bayes.data import Scaling, load_uci
from natgrad_apps.bayes.methods.base import Method
from natgrad_apps.bayes.prediction import RegressionPrediction, predict
from natgrad_apps.bayes.pyro_bridge import pyro_model
from natgrad_apps.runner import atomic, provenance

BEGIN, END = "<!-- results of bayes_nuts.py: begin -->", "<!-- results of bayes_nuts.py: end -->"
HIDDEN, ROWS, FOREIGN = 10, 20, 200
NOISE_PRECISION, STEPS, DRAWS = 10.0, 600, 500
SVI_STEPS = 1000
WARM_UP, KEPT, DEPTH = 150, 300, 5
BASELINE = "noisy_adam"
METHODS: dict[str, Method] = {
    "noisy_kfac": NoisyKFAC(lr=0.05, decay=0.99, fisher="exact"),
    BASELINE: NoisyAdam(lr=0.05, decay=0.99, fisher="exact"),
}
Row = dict[str, float]
infer: Any = pyro.infer  # most of Pyro has no types
optim: Any = pyro.optim
guides: Any = autoguide
statistics: Any = stats


@dataclass(frozen=True)
class Problem:
    """Standardized rows.

    Attributes:
        x: Training inputs ``[ROWS, D]``.
        y: Targets ``[ROWS, 1]``.
        elsewhere: Other inputs ``[FOREIGN, D]``.
    """

    x: Tensor
    y: Tensor
    elsewhere: Tensor


def problem(name: str, seed: int) -> Problem:
    """Rows of a UCI set.

    Args:
        name: Of the set.
        seed: Which rows.
    """
    table = load_uci(name)
    order = np.random.default_rng(seed).permutation(len(table.x))
    train, other = order[:ROWS], order[ROWS : ROWS + FOREIGN]
    by_x, by_y = Scaling.fit(table.x[train]), Scaling.fit(table.y[train])
    x, elsewhere = torch.as_tensor(by_x.apply(table.x[train])), torch.as_tensor(by_x.apply(table.x[other]))
    return Problem(x, torch.as_tensor(by_y.apply(table.y[train]))[:, None], elsewhere)


def network(data: Problem, seed: int) -> nn.Sequential:
    """The net, in float64.

    Args:
        data: Says how many inputs.
        seed: Of the first weights.
    """
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(data.x.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1)).double()


def outputs(w: Tensor, x: Tensor) -> Tensor:
    """The network of a flat weight vector.

    Args:
        w: ``[..., P]``: the first layer row by row with the bias behind each row, then the second layer's row and its bias.
        x: ``[N, D]``.

    Returns:
        ``[..., N]``.
    """
    inputs = x.shape[1]
    first = w[..., : HIDDEN * (inputs + 1)].unflatten(-1, (HIDDEN, inputs + 1))
    second = w[..., HIDDEN * (inputs + 1) :]
    hidden = torch.tanh(x @ first[..., :-1].mT + first[..., None, :, -1])
    return (hidden @ second[..., :-1, None]).squeeze(-1) + second[..., -1:]


def hmc(data: Problem, seed: int) -> tuple[Tensor, Row]:
    """Variance of the output elsewhere under NUTS, ``[FOREIGN]``, and how well the chain's halves agree.

    Args:
        data: Rows.
        seed: Of the chain.
    """
    size = HIDDEN * (data.x.shape[1] + 1) + HIDDEN + 1

    def potential(values: dict[str, Tensor]) -> Tensor:
        w = values["w"]
        error = outputs(w, data.x) - data.y[:, 0]
        return 0.5 * (w.square().sum() + NOISE_PRECISION * error.square().sum())

    start = time.process_time()
    pyro.set_rng_seed(seed)
    kernel = infer.NUTS(potential_fn=potential, max_tree_depth=DEPTH, jit_compile=True, ignore_jit_warnings=True)
    first = {"w": torch.randn(size, dtype=torch.float64)}
    sampler = infer.MCMC(kernel, KEPT, warmup_steps=WARM_UP, initial_params=first, disable_progbar=True)
    sampler.run()
    f = outputs(sampler.get_samples()["w"], data.elsewhere)
    r_hat = statistics.split_gelman_rubin(f[None], chain_dim=0, sample_dim=1)
    halves = f.unflatten(0, (2, -1)).var(1)
    quality = {
        "r_hat_max": float(r_hat.max()),
        "r_hat_median": float(r_hat.median()),
        "correlation": _correlation(halves[0], halves[1]),
        "ratio": float(halves[1].mean() / halves[0].mean()),
        "seconds": time.process_time() - start,
    }
    return f.var(0), quality


def variational(data: Problem, method: Method, seed: int) -> Variational:
    """A fit on all rows.

    Args:
        data: Rows.
        method: Which.
        seed: Of everything.
    """
    vi = Variational(network(data, seed), method=method, task=Regression(NOISE_PRECISION), num_data=ROWS, num_samples=2, seed=seed)
    first = vi.lr
    for step in range(STEPS):
        vi.set_lr(first * 0.5 * (1 + math.cos(math.pi * step / STEPS)))
        vi.step(data.x, data.y)
    return vi


def natural(data: Problem, method: Method, seed: int) -> Tensor:
    """Variance of the output elsewhere, ``[FOREIGN]``."""
    found = predict(variational(data, method, seed), data.elsewhere, DRAWS, torch.Generator().manual_seed(seed))
    assert isinstance(found, RegressionPrediction)
    return found.epistemic


def autonormal(data: Problem, seed: int) -> Tensor:
    """The same of Pyro's mean-field guide on the same model."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    prior_only = Variational(network(data, seed), method=NoisyAdam(), task=Regression(NOISE_PRECISION), num_data=ROWS)
    model = pyro_model(prior_only)
    guide = guides.AutoNormal(model, init_scale=0.1)
    svi = infer.SVI(model, guide, optim.Adam({"lr": 0.01}), infer.TraceMeanField_ELBO())
    for _ in range(SVI_STEPS):
        svi.step(data.x, data.y)
    with torch.no_grad():
        drawn = [pyro.poutine.condition(model, guide(data.x))(data.elsewhere)[:, 0] for _ in range(DRAWS)]
    return torch.stack(drawn).var(0, correction=0)


def run(name: str, seed: int) -> dict[str, Row]:
    """NUTS and every method on the rows of a seed.

    Args:
        name: Of the set.
        seed: Of everything.
    """
    data = problem(name, seed)
    truth, quality = hmc(data, seed)
    found: dict[str, Row] = {"NUTS, second half against first": quality}
    work: dict[str, Callable[[], Tensor]] = {m: lambda m=m: natural(data, METHODS[m], seed) for m in METHODS}  # type: ignore[misc]
    for method, compute in (work | {"pyro AutoNormal": lambda: autonormal(data, seed)}).items():
        start = time.process_time()
        variance = compute().detach()
        seconds = time.process_time() - start
        found[method] = {"correlation": _correlation(variance, truth), "ratio": float(variance.mean() / truth.mean()), "seconds": seconds}
    return found


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def table(results: Sequence[dict[str, Row]]) -> str:
    """Markdown: a row for each method.

    Args:
        results: One mapping a seed.
    """
    lines = ["| posterior | correlation | minus noisy Adam | better on | variance / NUTS | CPU s |", "|---|---|---|---|---|---|"]
    for method in results[0]:
        values = [r[method]["correlation"] for r in results]
        against = [r[method]["correlation"] - r[BASELINE]["correlation"] for r in results]
        paired = ["", ""] if method == BASELINE else [mean_and_error(against, 3), f"{sum(d > 0 for d in against)} of {len(against)}"]
        seconds = np.mean([r[method]["seconds"] for r in results])
        cells = [mean_and_error(values, 3), *paired, mean_and_error([r[method]["ratio"] for r in results], 3), f"{seconds:.1f}"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    worst = [r["NUTS, second half against first"]["r_hat_max"] for r in results]
    median = [r["NUTS, second half against first"]["r_hat_median"] for r in results]
    note = f"Split R-hat of the outputs: largest {max(worst):.3f}, mean of the seeds' largest {np.mean(worst):.3f}, "
    note += f"median of their medians {np.median(median):.3f}."
    return "\n".join([*lines, "", note])


def main(argv: Sequence[str] | None = None) -> None:
    """Run.

    Args:
        argv: The command line.
    """
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--set", default="concrete", help="UCI set")
    parser.add_argument("--seeds", type=int, default=10, help="how many, from 0")
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bayes_nuts.json"), help="JSON file of all results; a run goes on from it")
    parser.add_argument("--write", action="store_true", help="put the table into docs/bayes.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    for seed in seeds:
        key = f"{options.set} {seed}"
        if key not in results:
            results[key] = run(options.set, seed)
            atomic.write_json(options.out, results)
            print(key, " ".join(f"{m} {r['correlation']:.3f}" for m, r in results[key].items()), flush=True)
    versions = ", ".join(f"{k} {v}" for k, v in provenance.package_versions(("torch", "pyro-ppl", "numpy", "natgrad-apps")).items())
    command = f"python benchmarks/bayes_nuts.py --set {options.set} --seeds {options.seeds}"
    text = f"command: `{command}`   {os.cpu_count()} cores shared with other work; {versions}\n\n"
    text += table([results[f"{options.set} {seed}"] for seed in seeds])
    print("\n" + text)
    if options.write:
        write_block(text, document=DOCUMENT, marks=(BEGIN, END))


if __name__ == "__main__":
    main()
