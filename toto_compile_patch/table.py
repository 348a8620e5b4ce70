"""The table of patches. A new patch is one row here and one file of its name in ``patches``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from toto_compile_patch.sites import Site
    from toto_compile_patch.upstream import TotoCode


@dataclass(frozen=True)
class Patch:
    """One row of the table.

    Attributes:
        name: what users call it.
        why: what it is for, in half a sentence.
    """

    name: str
    why: str

    def sites(self, code: TotoCode) -> tuple[Site, ...]:
        """The places that it replaces for a carrier's code, in order; none where there are none.

        A place that belongs to torch is the same object for every carrier. Imports torch.
        """
        module = importlib.import_module(f"toto_compile_patch.patches.{self.name}")
        sites: tuple[Site, ...] = module.sites(code)
        return sites


TABLE = (
    Patch("kv_cache", "the cache's positions live on the host: no wait for the device, no guard"),
    Patch("positional_embedding", "what reads the cache runs uncompiled, after a graph break"),
    Patch("dynamo_config", "scalars captured, room for recompilations, dynamic shapes at once"),
    Patch("compile_method", "`toto.compile()` compiles the backbone instead of nothing"),
    Patch("fast_decode", "the context once for all samples, nothing that is thrown away"),
)
