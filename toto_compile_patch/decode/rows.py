"""How the patches of a forecast lie in the rows of a hidden state."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rows:
    """Rows of a ``batch variate n`` block, in that order, and perhaps some of zeros after them.

    Attributes:
        batch: series at once.
        variates: of each.
        count: ``n``: the positions of a context, or the samples of one position.
        least: fewer rows than these are filled up: a compiler makes a constant of a size of one,
            and a product with one row is slower than with a few on a CPU.
    """

    batch: int
    variates: int
    count: int
    least: int

    @property
    def series(self) -> int:
        """Batch times variates."""
        return self.batch * self.variates

    def flatten(self, block: torch.Tensor) -> torch.Tensor:
        """``batch variate n features`` to ``row features``."""
        return self.pad(block.reshape(-1, block.shape[-1]), dim=0).contiguous()

    def unflatten(self, rows: torch.Tensor) -> torch.Tensor:
        """``row features`` to ``batch variate n features``."""
        real = rows[: self.series * self.count]
        return real.view(self.batch, self.variates, self.count, *rows.shape[1:])

    def pad(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        """Fill up to the least number of rows."""
        missing = self.least - rows.shape[dim]
        if missing <= 0:
            return rows
        zeros = rows.new_zeros(1).expand(*rows.shape[:dim], missing, *rows.shape[dim + 1 :])
        return torch.cat([rows, zeros], dim=dim)

    def with_count(self, count: int) -> Rows:
        """Rows of as many series with another ``n``."""
        return Rows(self.batch, self.variates, count, self.least)
