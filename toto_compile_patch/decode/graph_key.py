"""What decides whether a captured forecast can be replayed for another one.

Each part of the key is made beside the code that reads what it stands for, so that whoever lets
that code read more of a model finds the key there.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from toto_compile_patch.decode.attention import RotarySettings
from toto_compile_patch.decode.modules import tensors_of
from toto_compile_patch.decode.precision import TorchSettings
from toto_compile_patch.decode.prepared_model import PreparedModel
from toto_compile_patch.decode.request import Request, RequestShape
from toto_compile_patch.decode.runtime import Runtime
from toto_compile_patch.decode.scaling import ScalerSettings
from toto_compile_patch.decode.weights import ModelSettings


class GraphKey(NamedTuple):
    """All that decides which kernels run and which memory they read, but the request's tensors,
    which are copied in.

    Attributes:
        request: shapes, types and plain values of the request.
        options: how the forecast is made.
        runtime: the name of the runtime.
        regions: identity of the regions, compiled or not.
        weights: identity of the prepared weights.
        model: sizes and constants of the model.
        scaler: constants of its scaler.
        rotary: constants of its rotary embedding.
        torch: settings of torch's in this thread.
        places: where its parameters and buffers lie.
    """

    request: RequestShape
    options: Any
    runtime: str
    regions: int
    weights: int
    model: ModelSettings
    scaler: ScalerSettings
    rotary: RotarySettings
    torch: TorchSettings
    places: tuple[int, ...]


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
        weights=id(model.weights),
        model=ModelSettings.of(model.backbone),
        scaler=ScalerSettings.of(model.backbone.scaler),
        rotary=RotarySettings.of(model.rotary),
        torch=TorchSettings.now(request.inputs.device),
        places=tuple(tensor.data_ptr() for tensor in tensors_of(model.backbone)),
    )
