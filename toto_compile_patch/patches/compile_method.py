"""``compile_method``: ``toto.compile()``, the line of upstream's README, compiles the backbone.

``Toto`` inherits ``compile`` from ``torch.nn.Module``, has no ``forward``, and the forecaster calls
``toto.model``: unpatched, the line compiles nothing.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from toto_compile_patch.sites import AttributeSite
from toto_compile_patch.upstream import Toto, TotoForecaster


@cache
def sites() -> tuple[AttributeSite, ...]:
    needs = ((Toto, "__init__"), (TotoForecaster, "__init__"))
    return (AttributeSite(Toto, "compile", lambda inherited: compile_backbone, needs=needs),)


def compile_backbone(self: Any, *args: Any, **kwargs: Any) -> None:
    """Compile the backbone that a ``TotoForecaster`` calls, in place.

    Takes what ``torch.compile`` takes. The model stays compiled when the patch is taken out.
    """
    self.model.compile(*args, **kwargs)
