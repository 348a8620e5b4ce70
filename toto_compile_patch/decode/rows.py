"""How the patches of a forecast lie in the rows of a hidden state."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Padding:
    """How many rows there should be.

    Attributes:
        least: fewer than these are filled up with zeros: on a CPU, a product with a few rows is
            faster than with one.
        but_not_one: a single row is left alone.
    """

    least: int
    but_not_one: bool = False

    def missing(self, count: int) -> int:
        """Rows to fill in."""
        return 0 if self.but_not_one and count == 1 else max(0, self.least - count)


@dataclass(frozen=True)
class Rows:
    """Rows of a ``batch variate n`` block, in that order, and perhaps some of zeros after them.

    Attributes:
        batch: series at once.
        variates: of each.
        count: ``n``: the positions of a context, or the samples of one position.
        padding: how many there should be.
    """

    batch: int
    variates: int
    count: int
    padding: Padding

    @property
    def series(self) -> int:
        """Batch times variates."""
        return self.batch * self.variates

    def flatten(self, block: torch.Tensor) -> torch.Tensor:
        """``batch variate n features`` to ``row features``."""
        rows = self.pad(block.reshape(-1, block.shape[-1]), dim=0).contiguous()
        # Always laid out alike, for compiled code.
        return rows.clone() if rows.storage_offset() else rows

    def unflatten(self, rows: torch.Tensor, *features: int) -> torch.Tensor:
        """``row features`` to ``batch variate n features``, these in another shape if given."""
        count = self.series * self.count
        real = rows if rows.shape[0] == count else rows[:count]
        return real.view(self.batch, self.variates, self.count, *(features or rows.shape[1:]))

    def pad(self, rows: torch.Tensor, dim: int) -> torch.Tensor:
        """Fill up with rows of zeros, along a dimension."""
        missing = self.padding.missing(rows.shape[dim])
        if not missing:
            return rows
        zeros = rows.new_zeros(1).expand(*rows.shape[:dim], missing, *rows.shape[dim + 1 :])
        return torch.cat([rows, zeros], dim=dim)

    def with_count(self, count: int) -> Rows:
        """Rows of as many series with another ``n``."""
        return Rows(self.batch, self.variates, count, self.padding)
