"""Sizes of the Kronecker factors of an agent's layers, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from gymnasium import spaces

from natgrad_apps.agents.acktr import ACKTR
from natgrad_apps.agents.heads import actor_likelihood
from natgrad_apps.curvature.gram_kfac import GramKFAC
from natgrad_apps.curvature.kfac import KFAC

FLOAT_BYTES = 4

WIDE = 2000
"""Width of a factor that takes seconds to factorize on a CPU: an eigendecomposition costs about 9 n^3 operations."""


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


def layer_lines(agent: ACKTR) -> list[str]:
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


def wide_lines(agent: ACKTR) -> list[str]:
    """One line for each layer whose factors are so wide that the agent spends its time on them; where pixels are the reason, it says so."""
    lines = []
    for block in agent.optimizer.preconditioner.blocks.values():
        width = max(block.spec.d_in, block.spec.d_out)
        if not isinstance(block.curvature, KFAC) or isinstance(block.curvature, GramKFAC) or width <= WIDE:
            continue
        space = agent.observation_space
        pixels = isinstance(space, spaces.Box) and len(space.shape) == 3 and "Cnn" not in type(agent.policy).__name__
        remedy = (
            f"for pictures such as {space} use CnnPolicy"
            if pixels
            else "a larger natural_gradient.refresh.inverse_period does it less often"
        )
        lines.append(f"layer {block.spec.name} has a factor {width:,} wide, each refresh of which takes seconds or more: {remedy}")
    return lines
