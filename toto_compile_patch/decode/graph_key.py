"""What decides whether a captured forecast can be replayed for another one.

Each part of the key is made beside the code that reads what it stands for, so that whoever lets
that code read more of a model finds the key there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from toto_compile_patch.decode.precision import TorchSettings
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.request import Request, RequestShape
from toto_compile_patch.decode.rotary import RotarySettings
from toto_compile_patch.decode.runtime import Runtime
from toto_compile_patch.decode.scaling import ScalerSettings


class GraphKey(NamedTuple):
    """All that decides which kernels run and which memory they read, but the request's tensors,
    which are copied in.

    Attributes:
        request: shapes, types and plain values of the request.
        options: how the forecast is made.
        runtime: the name of the runtime.
        regions: identity of the regions, compiled or not.
        weights: number of the prepared weights, which are of the model's sizes and constants,
            and of all its parameters and buffers where they lie now.
        scaler: constants of its scaler.
        rotary: constants of its rotary embedding.
        torch: settings of torch's in this thread.
    """

    request: RequestShape
    options: Any
    runtime: str
    regions: int
    weights: int
    scaler: ScalerSettings
    rotary: RotarySettings
    torch: TorchSettings


def graph_key(model: PreparedModel, request: Request, options: Any, runtime: Runtime) -> GraphKey:
    """The key of a forecast.

    Args:
        model: the model.
        request: series and horizon.
        options: how it is made; hashable.
        runtime: the runtime that captures.
    """
    return GraphKey(
        request=request.shape(),
        options=options,
        runtime=runtime.name,
        regions=id(runtime.regions),
        weights=model.weights.number,
        scaler=ScalerSettings.of(model.backbone.scaler),
        rotary=RotarySettings.of(model.rotary),
        torch=TorchSettings.now(request.inputs.device),
    )
