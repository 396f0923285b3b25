"""Several processes that train one model on parts of a batch: what they average, and how they stay equal to the bit."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from natgrad_apps.errors import ConfigError


class Ranks:
    """The processes of a group, each with its own part of every batch.

    Every rank calls the same methods in the same order. Sums are taken by one ``all_reduce`` over one flat buffer a dtype, whose result
    is the same on every rank to the bit, so ranks that begin with equal weights keep equal weights.

    Args:
        device: Where small tensors of its own live; that of the model.
        group: A process group of `torch.distributed`; None for the default one.

    Attributes:
        size: Number of ranks.
        rank: Number of this one.

    Raises:
        ConfigError: `torch.distributed` is not initialized.
    """

    def __init__(self, device: torch.device, group: Any = None) -> None:
        if not distributed.is_available() or not distributed.is_initialized():
            raise ConfigError(
                "no process group: call torch.distributed.init_process_group() first, in every process, as `torchrun` prepares it"
            )
        self.device, self._group = device, group
        self.size = distributed.get_world_size(group)
        self.rank = distributed.get_rank(group)

    def total(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Sum of each tensor over the ranks; new tensors. Shapes and dtypes agree between ranks."""
        result: list[Tensor | None] = [None] * len(tensors)
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            places = [i for i, t in enumerate(tensors) if t.dtype == dtype]
            flat = torch.cat([tensors[i].detach().reshape(-1) for i in places])
            distributed.all_reduce(flat, group=self._group)
            for i, part in zip(places, flat.split([tensors[i].numel() for i in places]), strict=True):
                result[i] = part.view(tensors[i].shape)
        return [t for t in result if t is not None]

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Mean of each tensor over the ranks."""
        return [t / self.size for t in self.total(tensors)]

    def moments(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and unbiased standard deviation of the values of all ranks, 0-d tensors; every rank has equally many."""
        wide = values.double()
        [mean] = self.mean([wide.mean()])
        [squares] = self.total([(wide - mean).square().sum()])
        return mean.to(values), (squares / (self.size * values.numel() - 1)).sqrt().to(values)

    def every(self, flag: Tensor) -> Tensor:
        """Whether a 0-d boolean tensor is true on every rank."""
        [count] = self.total([flag.to(torch.float32)])
        return count == self.size

    def first(self, value: Any) -> Any:
        """The value of the first rank, for all of them; it travels as a pickle."""
        box = [value]
        distributed.broadcast_object_list(box, self._source(), group=self._group)
        return box[0]

    def require_equal_names(self, names: Iterable[str], what: str) -> None:
        """Check that every rank has the same names, so that a difference is an error and not a hang or a wrong sum.

        Raises:
            ConfigError: They differ; raised on every rank.
        """
        mine = sorted(names)
        # One small reduction a step; the names themselves travel only for the message.
        code = float(zlib.crc32("\n".join(mine).encode()))
        extremes = torch.tensor([code, -code], dtype=torch.float64, device=self.device)
        distributed.all_reduce(extremes, distributed.ReduceOp.MAX, group=self._group)
        if extremes[0] == -extremes[1]:
            return
        everybody: list[Any] = [None] * self.size
        distributed.all_gather_object(everybody, mine, group=self._group)
        rank = next(r for r, theirs in enumerate(everybody) if theirs != everybody[0])
        different = ", ".join(sorted(set(everybody[rank]) ^ set(everybody[0])))
        raise ConfigError(f"{what} differ between rank 0 and rank {rank}: {different}; every rank must use the same layers in each step")

    @torch.no_grad()
    def synchronize(self, model: nn.Module) -> None:
        """Give every rank the parameters and buffers of the first one."""
        for tensor in (*model.parameters(), *model.buffers()):
            distributed.broadcast(tensor, self._source(), group=self._group)

    def _source(self) -> int:
        return distributed.get_global_rank(self._group, 0) if self._group is not None else 0
