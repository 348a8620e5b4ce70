"""Launches a forecast's CUDA graph before the forecast is checked: the GPU works meanwhile.

To check a forecast (see ``support``), to find its weights and to make its graph's key takes a host
as long as a GPU takes for a short forecast. So the graph that was used last for this backbone, and
for a request like this, is launched first. Whether it was the right one is found out by the code
that chooses a graph in any case: ``graphs.run`` takes the outputs if it has come to the same graph
and the same seed. Else, and where the forecast is refused, nobody looks at them: a replay
writes to no memory but its graph's own and what is noted of the weights (see ``noticing``), and
draws from no generator but its graph's own.

What could make a replay read memory that was freed, or write where there is none, is looked at
before: the request's shapes, that the graph is kept, and that the model's memory is where it was.
"""

from __future__ import annotations

from typing import Any

from toto_compile_patch.decode import graphs
from toto_compile_patch.decode.captured import Replay
from toto_compile_patch.decode.precision import TorchSettings
from toto_compile_patch.decode.random_numbers import OwnRandomNumbers, RandomNumbers
from toto_compile_patch.decode.request import Request
from toto_compile_patch.errors import is_of_a_signal

_WHERE_GRAPHS_ARE = "cuda"


def launch(
    backbone: Any, request: Request, options: Any, numbers: RandomNumbers | None
) -> Replay | None:
    """Launch the graph that a forecast will most likely need; None where there is none.

    The caller holds the lock of the device, until the outputs are taken or it is known that they
    are not.

    Args:
        backbone: whatever stands in the model's place: nothing has been checked.
        request: series and horizon.
        options: how to forecast.
        numbers: the forecast's random numbers; none are drawn here.
    """
    device = request.inputs.device
    if device.type != _WHERE_GRAPHS_ARE or not isinstance(numbers, OwnRandomNumbers):
        return None
    kept = graphs.kept_for(backbone)
    if kept is None or kept.why_not(device):
        return None
    captured = kept.used_last_for(request.shape(), options, TorchSettings.now(device))
    if captured is None or not captured.may_go_ahead or captured.weights.have_moved():
        return None
    captured.may_go_ahead = False
    try:
        return captured.replay(request, None if request.num_samples is None else numbers.next_seed)
    except RuntimeError as error:
        if is_of_a_signal(error):
            raise
        # Memory that is short, say: the forecast may be refused yet, in upstream's words.
        return None
