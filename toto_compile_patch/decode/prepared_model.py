"""What travels together through a forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from toto_compile_patch.decode.precision import Precision
from toto_compile_patch.decode.regions import Regions
from toto_compile_patch.decode.weights import Weights
from toto_compile_patch.upstream import code_of


@dataclass(frozen=True)
class PreparedModel:
    """A model that is ready to decode.

    Attributes:
        backbone: upstream's.
        weights: prepared from the backbone's.
        regions: the parts of the arithmetic, compiled or not.
        precision: of the products in the transformer.
    """

    backbone: Any
    weights: Weights
    regions: Regions
    precision: Precision

    @property
    def patch_size(self) -> int:
        """Time steps of a patch."""
        size: int = self.backbone.patch_embed.patch_size
        return size

    def is_extreme_value(self, values: torch.Tensor) -> torch.Tensor:
        """Where values are none that upstream would go on with, as its own code has it."""
        # Nothing decodes a backbone that is of no carrier (see ``support``).
        code: Any = code_of(self.backbone)
        found: torch.Tensor = code.is_extreme_value(values)
        return found

    @property
    def rotary(self) -> Any:
        """Upstream's rotary embedding."""
        return self.backbone.transformer.rotary_emb
