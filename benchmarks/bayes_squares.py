r"""How far the squares of gradients that mean-field methods use are from the curvature of the ELBO.

    python benchmarks/bayes_squares.py --write

At an optimum of the ELBO over independent normal weights, ``1 / sigma_j^2 = N h_j + p`` with ``h_j = E_q d^2 L / d w_j^2`` and the mean
loss ``L = 1/N sum_i l_i``. The methods put squares of gradients in its place. With ``g_i`` the gradient of ``l_i``, ``g`` their mean,
``f_i`` the output, ``s`` the deviation of the noise and minibatches of ``M`` rows drawn with replacement::

    noisy Adam           E_q mean_i (d f_i / d w_j)^2 / s^2              (the generalized Gauss-Newton matrix)
    VOGN                 E_q mean_i g_ij^2
    Vadam                E_q E_batch M (mean_batch g_j)^2  =  E_q [mean_i g_ij^2 + (M - 1) g_j^2]
    Vadam, as published  the same divided by M

and ``h_j = E_q [(w_j - mu_j) g_j] / sigma_j^2`` (Stein's lemma), from antithetic pairs. All are measured at one posterior, which noisy Adam
has found, with the model and the settings of bayes_mean_field.py, over `SAMPLES` draws and all training rows, so a method's own minibatch
noise plays no part.

Columns: ``N sum_j sigma_j^2 c_j`` for each curvature ``c``, over that of ``h``: 1 is right, larger is a posterior that is too narrow; and
the negative ELBO with the same mean and the variances ``1 / (N c_j + p)``, minus that with the variances of ``h`` (where ``h_j`` is
negative by chance, 0). Mean and standard error over splits.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__" and not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file: make the folder `benchmarks` importable

import torch
from torch import Tensor

from benchmarks._mean_field import NOISE_STD, Data, Ours, build
from benchmarks._pages import mean_and_error, write_block
from benchmarks._timing import environment
from benchmarks.bayes_mean_field import BATCH, DOCUMENT, RATES, SETS

BEGIN, END = "<!-- results of bayes_squares.py: begin -->", "<!-- results of bayes_squares.py: end -->"
SAMPLES, ELBO_SAMPLES, STEPS = 1000, 200, 1500
EXACT = "E_q Hessian"


@dataclass(frozen=True)
class Gaussian:
    """Independent normal weights of a net with one hidden layer, float64; the bias is the last column of each matrix.

    Attributes:
        means: ``[H, D + 1]`` and ``[1, H + 1]``.
        variances: Likewise.
    """

    means: tuple[Tensor, Tensor]
    variances: tuple[Tensor, Tensor]

    @staticmethod
    def of(contender: Ours) -> Gaussian:
        """The posterior of a contender."""

        def matrices(values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
            first, second = (torch.cat([values[f"{i}.weight"], values[f"{i}.bias"][:, None]], 1).detach().double() for i in (0, 2))
            return first, second

        return Gaussian(matrices(contender.vi.posterior.mean), matrices(contender.vi.posterior.variances()))

    def draw(self, generator: torch.Generator) -> list[Tensor]:
        """Deviations from the mean."""
        return [v.sqrt() * torch.empty_like(v).normal_(generator=generator) for v in self.variances]


@dataclass(frozen=True)
class Slopes:
    """Gradients of the loss at some weights, one entry for each layer.

    Attributes:
        mean: ``g``.
        squares: ``mean_i g_i^2``.
        gauss_newton: ``mean_i (d f_i / d w)^2 / s^2``.
    """

    mean: list[Tensor]
    squares: list[Tensor]
    gauss_newton: list[Tensor]


def outputs(weights: Sequence[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden units with a one behind them ``[N, H + 1]``, and outputs ``[N]``, for inputs ``[N, D + 1]``."""
    first, second = weights
    hidden = (x @ first.mT).relu()
    hidden = torch.cat([hidden, hidden.new_ones(len(x), 1)], 1)
    return hidden, hidden @ second[0]


def slopes(weights: Sequence[Tensor], x: Tensor, y: Tensor) -> Slopes:
    """Of ``l_i = (y_i - f_i)^2 / (2 s^2)``; each gradient is an outer product of input and output gradient of its layer.

    Args:
        weights: Of both layers.
        x: Inputs with a one behind them ``[N, D + 1]``.
        y: Targets ``[N]``.
    """
    hidden, f = outputs(weights, x)
    slope = ((f - y) / NOISE_STD**2).unsqueeze(-1)
    count = len(x)
    found = Slopes([], [], [])
    for a, back in ((x, (hidden[:, :-1] > 0) * weights[1][:, :-1]), (hidden, torch.ones_like(slope))):
        found.mean.append((slope * back).mT @ a / count)
        found.squares.append((slope * back).square().mT @ a.square() / count)
        found.gauss_newton.append(back.square().mT @ a.square() / count / NOISE_STD**2)
    return found


def curvatures(q: Gaussian, x: Tensor, y: Tensor, samples: int = SAMPLES) -> dict[str, list[Tensor]]:
    """Every curvature of the module's table, layer by layer.

    Args:
        q: Where.
        x: Inputs with a one behind them ``[N, D + 1]``.
        y: Targets ``[N]``.
        samples: Antithetic pairs.
    """
    generator = torch.Generator().manual_seed(0)
    totals: dict[str, list[Tensor]] = {}

    def add(name: str, layer: int, value: Tensor) -> None:
        totals.setdefault(name, [torch.zeros_like(m) for m in q.means])[layer] += value / (2 * samples)

    for _ in range(samples):
        noise = q.draw(generator)
        for sign in (1, -1):
            found = slopes([m + sign * e for m, e in zip(q.means, noise, strict=True)], x, y)
            for i, (e, g) in enumerate(zip(noise, found.mean, strict=True)):
                add(EXACT, i, sign * e * g / q.variances[i])
                add("noisy Adam", i, found.gauss_newton[i])
                add("VOGN", i, found.squares[i])
                add("Vadam", i, found.squares[i] + (BATCH - 1) * g.square())
    totals["Vadam, as published"] = [value / BATCH for value in totals["Vadam"]]
    return totals


def negative_elbo(q: Gaussian, x: Tensor, y: Tensor) -> float:
    """Nats of the whole training set; prior precision 1."""
    generator, nll = torch.Generator().manual_seed(1), []
    for _ in range(ELBO_SAMPLES // 2):
        noise = q.draw(generator)
        for sign in (1, -1):
            f = outputs([m + sign * e for m, e in zip(q.means, noise, strict=True)], x)[1]
            nll.append(float(0.5 * ((f - y) / NOISE_STD).square().sum()) + len(y) * (math.log(NOISE_STD) + 0.5 * math.log(2 * math.pi)))
    kl = sum(float((v + m.square() - 1 - v.log()).sum()) / 2 for m, v in zip(q.means, q.variances, strict=True))
    return statistics.mean(nll) + kl


def measure(data: Data, seed: int, steps: int) -> dict[str, tuple[float, float]]:
    """Ratio of the weighted sum, and the loss of negative ELBO, by curvature.

    Args:
        data: The rows.
        seed: Of the training.
        steps: Of the training.
    """
    contender, generator = build("noisy_adam", data, RATES["noisy_adam"], seed), torch.Generator().manual_seed(seed)
    assert isinstance(contender, Ours)
    for i in range(steps):
        rows = torch.randint(len(data.x), (BATCH,), generator=generator)
        contender.step(data.x[rows], data.y[rows], 0.5 * (1 + math.cos(math.pi * i / steps)))
    q, count = Gaussian.of(contender), len(data.x)
    x, y = torch.cat([data.x, data.x.new_ones(count, 1)], 1).double(), data.y[:, 0].double()
    found = curvatures(q, x, y)
    weighted = {name: sum(float((c * v).sum()) for c, v in zip(layers, q.variances, strict=True)) for name, layers in found.items()}
    elbos = {}
    for name, layers in found.items():
        first, second = (1 / (count * c.clamp_min(0) + 1) for c in layers)
        elbos[name] = negative_elbo(Gaussian(q.means, (first, second)), x, y)
    return {name: (weighted[name] / weighted[EXACT], elbos[name] - elbos[EXACT]) for name in found if name != EXACT}


def main(argv: Sequence[str] | None = None) -> None:
    """Run.

    Args:
        argv: The command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--splits", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--write", action="store_true", help="put the table into docs/bayes-methods.md")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = ["| set | curvature | over that of the ELBO | more -ELBO, nats |", "|---|---|---|---|"]
    for name in options.sets:
        found = [measure(Data.load(name, split), split, STEPS) for split in options.splits]
        for method in found[0]:
            ratio, loss = (mean_and_error([f[method][i] for f in found], 2) for i in (0, 1))
            lines.append(f"| {name} | {method} | {ratio} | {loss} |")
            print(lines[-1], flush=True)
    described = ", ".join(f"{k} {v}" for k, v in environment(("torch", "numpy", "natgrad-apps")).items())
    chosen = f"--sets {' '.join(options.sets)} --splits {' '.join(map(str, options.splits))}"
    text = f"command: `python benchmarks/bayes_squares.py {chosen}`   {described}\n\n" + "\n".join(lines)
    print("\n" + text)
    if options.write:
        write_block(text, document=DOCUMENT, marks=(BEGIN, END))


if __name__ == "__main__":
    main()
