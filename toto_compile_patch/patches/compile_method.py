"""``compile_method``: ``toto.compile()``, the line of upstream's README, compiles the backbone.

``Toto`` inherits ``compile`` from ``torch.nn.Module``, has no ``forward``, and the forecaster calls
``toto.model``: unpatched, the line compiles nothing.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from toto_compile_patch.decode.compile_call import CompiledOffACpu
from toto_compile_patch.decode.runtime import BOTH, COMPILE
from toto_compile_patch.settings import in_force
from toto_compile_patch.sites import AttributeSite
from toto_compile_patch.upstream import TotoCode, kind_of

_logger = logging.getLogger("toto_compile_patch")


@cache
def sites(code: TotoCode) -> tuple[AttributeSite, ...]:
    if code.Toto is None:
        return ()
    needs = ((code.Toto, "__init__"), (code.TotoForecaster, "__init__"))
    return (AttributeSite(code.Toto, "compile", lambda inherited: compile_backbone, needs=needs),)


def compile_backbone(self: Any, *args: Any, **kwargs: Any) -> None:
    """Compile the backbone that a ``TotoForecaster`` calls, in place.

    Takes what ``torch.compile`` takes. Where the model makes its forecasts on a CPU, they run
    uncompiled, unless ``apply(runtime="compile")`` insists: compiling takes longer there than it
    gains. The model stays compiled when the patch is taken out.
    """
    backbone = self.model
    before = getattr(backbone, "_compiled_call_impl", None)
    backbone.compile(*args, **kwargs)
    if kind_of(backbone) == "TotoBackbone" and (
        before is None or isinstance(before, CompiledOffACpu)
    ):
        compiled = backbone._compiled_call_impl
        backbone._compiled_call_impl = CompiledOffACpu(backbone, compiled, _insisted)
        _logger.info("toto.compile(): forecasts are compiled on a GPU; on a CPU they run as before")


def _insisted() -> bool:
    """Whether the user's settings want compiled forecasts on a CPU as well."""
    return in_force().runtime in (COMPILE, BOTH)
