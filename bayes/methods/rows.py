"""What methods share that look at the gradients of single examples."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from natgrad_apps.bayes.methods.base import Batch, Outcome, Problem
from natgrad_apps.bayes.methods.flat import FlatLearner
from natgrad_apps.bayes.per_example import ExampleGradients, LinearPart, RowsPart, check_examples_independent, per_example_rows
from natgrad_apps.layers.discover import discover
from natgrad_apps.statistics.capture import Call, Capture


class RowsLearner(FlatLearner):
    """A flat learner that looks at per-example gradients ``J_n^T v_n``: of the log-likelihood, or of columns of the outputs' Fisher.

    Linear layers that are called once, on rows, give them as outer products of inputs and output gradients; every other parameter has
    them from `torch.func`.

    Args:
        problem: What is to be solved.
        lr: First learning rate.
        momentum: Weight of the old value in the running average of the gradient.
        fisher: ``"empirical"`` or ``"exact"``.
    """

    def __init__(self, problem: Problem, lr: float, momentum: float, fisher: str = "empirical") -> None:
        super().__init__(problem, lr, momentum)
        self._fisher = fisher
        found = discover(problem.model)
        self._layers = {
            layer.modules[0]: layer
            for layer in found.layers
            if layer.spec.kind == "linear" and len(layer.modules) == 1 and not _reads_weight(layer.modules[0])
        }
        self._capture = Capture(list(self._layers.values()))
        self._where = self.flat.slices()

    def gather(self, batch: Batch) -> Outcome:
        """Gradients of the batch, and of single examples where `due`, at the weight sample that the model holds."""
        if not self.due:
            return super().gather(batch)
        check_examples_independent(self.problem.model)
        with self._capture.open():
            outputs = self.forward(batch)
            likelihood, targets = self.judge(outputs, batch)
            with torch.no_grad():
                nll = -likelihood.log_prob(targets).mean()
                (score,) = likelihood.score(targets)
            calls = self._single_calls(len(score))
            if self.steps == 0:
                calls = self._verified(calls, outputs, score)
            share = batch.weight / likelihood.num_terms
            live = self.problem.weights.live
            found = torch.autograd.grad(outputs, list(live.values()), score * -share, retain_graph=True, allow_unused=True)
            self.add({name: g for name, g in zip(live, found, strict=True) if g is not None})
            chosen = self.chosen(len(score))
            share *= len(score) / len(range(len(score))[chosen])
            cotangents = [score] if self._fisher == "empirical" else [column for (column,) in likelihood.fisher_columns()]
            with torch.no_grad():
                for cotangent in cotangents:
                    self.fold(self._examples(batch, outputs, calls, cotangent, chosen), share)
        return Outcome(nll, self.problem.task.squared_error(outputs.detach(), targets))

    @property
    def due(self) -> bool:
        """Whether this step looks at single examples."""
        return True

    def chosen(self, examples: int) -> slice:
        """Which of the examples this step looks at; shares are scaled by what is left out.

        Args:
            examples: Their number in the batch.
        """
        del examples
        return slice(None)

    def _single_calls(self, examples: int) -> list[Call]:
        """Calls of the layers that were called once, on one row for each example."""
        count = Counter(call.module for call in self._capture.calls)
        single = [call for call in self._capture.calls if call.module in self._layers and count[call.module] == 1]
        return [call for call in single if call.x.dim() == 2 and len(call.x) == examples and call.x._version == call.version]

    def _verified(self, calls: Sequence[Call], outputs: Tensor, score: Tensor) -> list[Call]:
        """Calls whose outer products add up to autograd's gradient; a layer whose weight is also read elsewhere is left to `torch.func`."""
        verified = []
        tolerance = 1e-3 if score.dtype in (torch.float32, torch.float64) else 5e-2
        for call in calls:
            layer = self._layers[call.module]
            wanted: list[Any] = [call.edge, *layer.parameters]
            (g, *exact) = torch.autograd.grad(outputs, wanted, score, retain_graph=True)
            own, dtype = iter(exact), self.flat.dtype
            g = g.to(dtype)
            pairs = [(next(own), g.mT @ call.x.to(dtype))] if layer.weight is not None else []
            pairs += [(next(own), g.sum(0))] if layer.bias is not None else []
            if all(torch.allclose(a.to(dtype), b, rtol=0, atol=tolerance * float(b.abs().max())) for a, b in pairs):
                verified.append(call)
            else:
                del self._layers[call.module]
        return verified

    def _examples(self, batch: Batch, outputs: Tensor, calls: Sequence[Call], cotangents: Tensor, chosen: slice) -> ExampleGradients:
        """``J_n^T v_n`` for the chosen examples."""
        weights, dtype = self.problem.weights, self.flat.dtype
        found = torch.autograd.grad(outputs, [c.edge for c in calls], cotangents, retain_graph=True, allow_unused=True) if calls else ()
        linear, covered = [], set()
        for call, g in zip(calls, found, strict=True):
            layer = self._layers[call.module]
            own = [None if p is None else weights.names[p] for p in (layer.weight, layer.bias)]
            covered.update(own)
            gradient = call.x.new_zeros(len(call.x), layer.spec.d_out) if g is None else g
            weight, bias = (None if name is None else self._where[name] for name in own)
            linear.append(LinearPart(weight, bias, call.x[chosen].to(dtype), gradient[chosen].to(dtype)))
        names = [name for name in self.flat.names if name not in covered]
        rest = None
        if names:
            live = {name: weights.live[name] for name in names}
            chunks = per_example_rows(self.problem.model, live, tuple(x[chosen] for x in batch.inputs), cotangents[chosen])
            rows = torch.cat([torch.cat([chunk[name].flatten(1).to(dtype) for name in names], dim=1) for chunk in chunks])
            rest = RowsPart([self._where[name] for name in names], rows)
        return ExampleGradients(self.flat.size, len(cotangents[chosen]), linear, rest)

    @abstractmethod
    def fold(self, examples: ExampleGradients, share: float) -> None:
        """Look at the gradients of examples.

        Args:
            examples: Gradients of the log-likelihood with ``"empirical"``; else of one column of a root of the outputs' Fisher.
            share: ``1 / (terms samples)`` over the share of the examples that was chosen: their sum of squares times this has the
                expectation of the second moment.
        """


def _reads_weight(module: nn.Module) -> bool:
    """Whether a module's weight is computed (parametrized), so that its gradient is no outer product."""
    return nn.utils.parametrize.is_parametrized(module)
