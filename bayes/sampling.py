"""The weights at which the steps of a training look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from natgrad_apps.bayes.distributions import Normal
from natgrad_apps.bayes.methods.base import check_count
from natgrad_apps.bayes.posterior import Posterior

Kept = Mapping[str, tuple[Normal, Tensor]]
"""By part: the distribution of the last draw, and what `Normal.mirror` makes its mirror image of."""


@dataclass(frozen=True)
class Samples:
    r"""Weight samples of a step, in antithetic pairs: the second, fourth, ... mirrors the one before it at the mean.

    Each sample ``mu + e`` has the distribution of the posterior, and so has ``mu - e``. In the mean gradient of a pair the terms that are
    odd in ``e`` cancel: ``g(mu + e) + g(mu - e) = 2 g(mu) + O(e^2)``.

    With `across_steps` the samples of all steps are one sequence of pairs, so a step of one sample mirrors that of the step before it,
    and half of the draws cost a subtraction. The running averages of a method see both halves of a pair. What is lost: curvatures are
    even in ``e``, so they see half as many different weights; and the mean has moved between the halves, so the odd terms cancel up to
    the learning rate. A part of the posterior whose distribution has changed in between is mirrored where that is cheap (independent
    weights: by the same standard normal numbers), and drawn anew where it is not.

    Attributes:
        count: Samples of a step.
        across_steps: Whether a step may mirror the last sample of the step before it. It makes no difference to an even count.

    Raises:
        ConfigError: The count is no positive integer.
    """

    count: int = 1
    across_steps: bool = False

    def __post_init__(self) -> None:
        check_count("num_samples", self.count)


class Draws:
    """The sequence of samples of a training.

    Args:
        samples: How they are paired.

    Attributes:
        kept: What the next sample mirrors; the other parts are drawn anew. Neither the mapping nor its tensors change, so holding on to it
            and putting it back undoes a draw.
    """

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.kept: Kept = {}

    @torch.no_grad()
    def weights(self, posterior: Posterior, index: int, generator: torch.Generator) -> dict[str, Tensor]:
        """A sample of the weights, by parameter.

        Args:
            posterior: Is sampled.
            index: Number of the sample in its step.
            generator: Of the standard normal numbers.
        """
        mean, sources = posterior.mean, self.kept
        pairs = self._samples.across_steps or index + 1 < self._samples.count
        kept: dict[str, tuple[Normal, Tensor]] = {}
        found: dict[str, Tensor] = {}
        for name, part in posterior.parts.items():
            drawn = part.normal.mirror(sources[name][1], sources[name][0]) if name in sources else None
            own = True
            if drawn is None and pairs:
                drawn, image = part.normal.draw_kept(generator)
                kept[name], own = (part.normal, image), image is not drawn
            elif drawn is None:
                drawn = part.normal.draw(generator)
            for parameter, value in part.scatter(drawn).items():
                found[parameter] = value.add_(mean[parameter]) if own and value.is_contiguous() else mean[parameter] + value
        self.kept = kept
        return found

    def state_dict(self, posterior: Posterior) -> dict[str, Tensor]:
        """What the next sample mirrors, by part.

        Args:
            posterior: As it is now; what it can no longer mirror is left out.
        """
        kept = {name: (source, image) for name, (source, image) in self.kept.items() if name in posterior.parts}
        return {name: i.clone() for name, (s, i) in kept.items() if posterior.parts[name].normal.mirror(i, s) is not None}

    def load_state_dict(self, saved: Mapping[str, Tensor], posterior: Posterior) -> None:
        """Restore `state_dict`.

        Args:
            saved: From `state_dict`.
            posterior: As it was then.
        """
        normals = {name: posterior.parts[name].normal for name in saved}
        self.kept = {name: (normals[name], image.to(normals[name].like, copy=True)) for name, image in saved.items()}
