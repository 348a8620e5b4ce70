"""How the patches of a forecast lie in the rows of a hidden state."""

from __future__ import annotations

from dataclasses import dataclass, replace

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


@dataclass(frozen=True, eq=False)
class RowLayout:
    """Rows of a ``batch variate n`` block, in that order, and perhaps some of zeros after them.

    Attributes:
        batch: series at once.
        variates: of each.
        count: ``n``: the positions of a context, or the samples of one position.
        padding: how many there should be.
        groups: True where one variate may see another, ``batch #n variate variate``; None: all
            may see all.
    """

    batch: int
    variates: int
    count: int
    padding: Padding
    groups: torch.Tensor | None = None

    @property
    def series(self) -> int:
        """Batch times variates."""
        return self.batch * self.variates

    def flatten(self, block: torch.Tensor) -> torch.Tensor:
        """``... features``, in the order of ``batch variate n``, to ``row features``."""
        return _alike(self.pad(block.reshape(-1, block.shape[-1])))

    def unflatten(self, rows: torch.Tensor, *features: int) -> torch.Tensor:
        """``row features`` to ``batch variate n features``, these in another shape if given."""
        shape = self.batch, self.variates, self.count
        return self.real(rows).view(*shape, *(features or rows.shape[1:]))

    def real(self, rows: torch.Tensor) -> torch.Tensor:
        """``row ...`` without those that fill up."""
        count = self.series * self.count
        return rows if rows.shape[0] == count else rows[:count]

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """Fill up ``row ...`` with rows of zeros."""
        missing = self.padding.missing(rows.shape[0])
        if not missing:
            return rows
        return torch.constant_pad_nd(rows, [0, 0] * (rows.ndim - 1) + [0, missing])

    def last_position(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of ``row ...`` that are at the last position."""
        last = self.unflatten(rows)[:, :, -1:].flatten(0, 2)
        return _alike(self.of_last_position().pad(last))

    def of_last_position(self) -> RowLayout:
        """The layout of a context's last position alone."""
        groups = None if self.groups is None else self.groups[:, -1:]
        return replace(self, count=1, groups=groups)

    def of_samples(self, count: int) -> RowLayout:
        """The layout of one position in so many samples, which all have the groups of this one."""
        return replace(self, count=count)


def _alike(rows: torch.Tensor) -> torch.Tensor:
    """Always laid out alike, for compiled code."""
    rows = rows.contiguous()
    return rows.clone() if rows.storage_offset() else rows
