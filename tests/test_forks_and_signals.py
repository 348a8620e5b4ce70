"""Neither a fork nor a signal handler waits for a lock that nobody will release.

Torch runs with one thread here: a fork after OpenMP has run hangs in upstream's code as well.
"""

from __future__ import annotations

import sys

import forked
import pytest

PRELUDE = """
import os, signal, sys, threading, time
import torch
torch.set_num_threads(1)
import toto_compile_patch
from toto.inference.forecaster import TotoForecaster
from toto_cases import PATCH, series, small_model

toto_compile_patch.apply(fallback="error")
model = small_model(embed_dim=128, mlp_hidden_dim=256).model
forecaster, inputs = TotoForecaster(model), series(40)

def mean():
    # No seed is set: ``torch.manual_seed`` has a lock of its own.
    return forecaster.forecast(inputs, PATCH).mean

expected = mean()
"""

FORKS = """
stop = threading.Event()

def prepare():
    while not stop.is_set():
        toto_compile_patch.refresh(model)
        mean()

thread = threading.Thread(target=prepare)
thread.start()
hung = wrong = 0
for _ in range(COUNT):
    child = os.fork()
    if not child:
        same = torch.equal(mean(), expected)
        path = toto_compile_patch.last_path()
        os._exit(0 if same and path.taken == "fast" else 3)
    deadline = time.monotonic() + 60
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.002)
    if not ended[0]:
        hung += 1
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    elif ended[1]:
        wrong += 1
stop.set()
thread.join()
print("hung", hung, "wrong", wrong)
"""

HANDLER = """
handled = []

def handler(signum, frame):
    handled.append(torch.equal(mean(), expected))
    # Only now, or the handler would be interrupted by itself; each time a little later.
    signal.setitimer(signal.ITIMER_REAL, 0.0005 * (1 + len(handled) % 16))

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001)
while len(handled) < COUNT:
    toto_compile_patch.refresh(model)
    assert torch.equal(mean(), expected)
signal.setitimer(signal.ITIMER_REAL, 0)
print("all", all(handled), len(handled) >= COUNT)
"""

HELD = """
from toto_compile_patch.locks import Lock
from toto_compile_patch.patches import dynamo_config

lock, taken, leave = Lock(), threading.Event(), threading.Event()

def hold():
    with lock.held, dynamo_config._cached_forecast(model):
        taken.set()
        leave.wait()

thread = threading.Thread(target=hold, daemon=True)
thread.start()
assert taken.wait(60)
lock_of_mine = Lock()
with lock_of_mine.held:
    child = os.fork()
    if not child:
        with lock.held, lock_of_mine.held:
            pass
        static = torch._dynamo.config.assume_static_by_default
        os._exit(0 if static else 3)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
leave.set()
thread.join()
print("child", code)
"""


def run(code: str, **values: int) -> str:
    for name, value in values.items():
        code = code.replace(name, str(value))
    done = forked.python(PRELUDE + code)
    assert done.returncode == 0, done.stderr
    return done.stdout


pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")


@pytest.mark.parametrize(
    "count", [20, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.fault(
    injected="forks",
    where="while another thread prepares weights",
    observed="no child hangs",
    afterwards="each child's forecast is bit for bit the parent's",
)
def test_forks_while_another_thread_prepares_weights(count: int) -> None:
    assert run(FORKS, COUNT=count) == "hung 0 wrong 0\n"


@pytest.mark.parametrize(
    "count", [20, pytest.param(200, marks=pytest.mark.slow)], ids=["few", "many"]
)
@pytest.mark.fault(
    injected="a signal whose handler forecasts",
    where="any moment of a forecast",
    observed="neither waits for the other",
    afterwards="both forecasts are bit for bit as ever",
)
def test_forecasts_in_a_signal_handler(count: int) -> None:
    assert run(HANDLER, COUNT=count) == "all True True\n"


@pytest.mark.slow
@pytest.mark.fault(
    injected="a fork",
    where="while another thread holds locks and settings",
    observed="the child takes them",
    afterwards="dynamo's settings are torch's own there",
)
def test_what_another_thread_held_is_free_in_a_child() -> None:
    assert run(HELD) == "child 0\n"
