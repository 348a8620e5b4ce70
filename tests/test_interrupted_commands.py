"""Ctrl-C in the middle of a command: one line, its exit code, no process and no half a file left.

A terminal sends the interrupt to every process of the command, as is done here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals"),
]

PATIENCE = 300.0
"""Seconds that a machine with other work may need until a command has begun."""


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell starts it."""
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path).rstrip(os.pathsep)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def processes_of(group: int) -> set[int]:
    """The processes that are alive in a group."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state, _, process_group = (
                    (entry / "stat").read_text().rpartition(") ")[2].split()[:3]
                )
            except OSError:
                continue
            if int(process_group) == group and state != "Z":
                found.add(int(entry.name))
    return found


def interrupted(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a command has printed, when it has been interrupted and nothing of it is left."""
    os.killpg(process.pid, signal.SIGINT)
    return ended(process)


def ended(process: subprocess.Popen[str]) -> tuple[str, str]:
    """What a command has printed, when it has ended and nothing of it is left."""
    out, error = process.communicate(timeout=PATIENCE)
    end = time.monotonic() + 10
    while processes_of(process.pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert processes_of(process.pid) == set()
    return out, error


def package_is_loaded(process: subprocess.Popen[str]) -> bool:
    """Whether a process has loaded torch, so that the command itself is at work."""
    return "libtorch_cpu" in Path(f"/proc/{process.pid}/maps").read_text()


def seconds_of_processor(process: subprocess.Popen[str]) -> float:
    """What a process has computed for."""
    user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(") ")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


needs_proc = pytest.mark.skipif(not Path("/proc").exists(), reason="there is no /proc")

AB = "ab --windows 300 --samples 16 --horizon 24 --context 128 --json ab.json --report r.html"
COMMANDS = {"ab": AB, "bench": "bench --workload W3 --pairs 50 --json bench.json"}


@needs_proc
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.fault(
    injected="Ctrl-C",
    where="ab and bench, as they begin",
    observed="one line, exit code 130",
    afterwards="no process and no file is left",
)
def test_as_it_begins(name: str, tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "toto_compile_patch", *COMMANDS[name].split())
    wait_until(lambda: package_is_loaded(process), process)
    _, error = interrupted(process)
    assert process.returncode == 130
    assert error == "python -m toto_compile_patch: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@needs_proc
def test_ab_while_its_sides_forecast(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "toto_compile_patch", *AB.split())
    # The command, multiprocessing's own helper, and a process for each side.
    wait_until(lambda: len(processes_of(process.pid)) == 4, process)
    time.sleep(5)
    _, error = interrupted(process)
    assert process.returncode == 130
    assert error == "python -m toto_compile_patch: interrupted\n"
    assert list(tmp_path.iterdir()) == []


@needs_proc
@pytest.mark.parametrize("seconds", [0, 5], ids=["as it loads", "as it forecasts"])
@pytest.mark.fault(
    injected="SIGKILL",
    where="a side of ab",
    observed="one line that says what to do, exit code 1",
    afterwards="no process and no file is left",
)
def test_a_side_of_ab_that_is_killed(seconds: float, tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "toto_compile_patch", *AB.split())
    wait_until(lambda: len(processes_of(process.pid)) == 4, process)
    time.sleep(seconds)
    # As a kernel without memory kills the largest; the last one that was started is a side.
    os.kill(max(processes_of(process.pid)), signal.SIGKILL)
    _, error = ended(process)
    assert process.returncode == 1
    (line,) = error.splitlines()
    assert "killed by SIGKILL, perhaps for want of memory: try fewer" in line
    assert list(tmp_path.iterdir()) == []


@needs_proc
def test_bench_while_it_measures(tmp_path: Path) -> None:
    process = start(tmp_path, "-m", "toto_compile_patch", *COMMANDS["bench"].split())
    # To load everything takes half of this, on a slow machine, and to measure it takes minutes.
    wait_until(lambda: seconds_of_processor(process) > 25, process)
    _, error = interrupted(process)
    assert process.returncode == 130
    assert error == "python -m toto_compile_patch: interrupted\n"
    assert list(tmp_path.iterdir()) == []


SCRIPT = """\
import sys
from toto.inference.forecaster import TotoForecaster
from toto_cases import series, small_model
forecaster = TotoForecaster(small_model().model)
print("begun", flush=True)
while True:
    forecaster.forecast(series(40), 16)
"""


@pytest.mark.parametrize("caught", [False, True], ids=["", "caught"])
@pytest.mark.fault(
    injected="Ctrl-C",
    where="a script under run",
    observed="the script ends as without the package, or catches it",
    afterwards="one that catches it goes on forecasting by the fast path",
)
def test_run_leaves_it_to_the_script(caught: bool, tmp_path: Path) -> None:
    """The script is interrupted as it is without the package."""
    script = SCRIPT
    if caught:
        script = SCRIPT.replace("while True:", "try:\n  while True:") + (
            "except KeyboardInterrupt:\n"
            "    import toto_compile_patch\n"
            "    path = toto_compile_patch.last_path()\n"
            "    mean = forecaster.forecast(series(40), 16).mean\n"
            "    print(path and path.taken, mean.sum().item())\n"
            "    sys.exit(7)\n"
        )
    (tmp_path / "script.py").write_text(script)
    seen = []
    for command in ((), ("-m", "toto_compile_patch", "run")):
        process = start(tmp_path, *command, "script.py")
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(1)
        out, error = interrupted(process)
        seen.append((process.returncode, error.splitlines()[-1:], out.split()))
    (code, said, plain), (same_code, same_said, patched) = seen
    assert (same_code, same_said) == (code, said)
    if caught:
        assert (code, plain[0], patched[0]) == (7, "None", "fast")
        assert float(patched[1]) == pytest.approx(float(plain[1]), rel=1e-6)
    else:
        # By the signal itself, unless something that is imported keeps Python from that.
        assert code in (-signal.SIGINT, 1)
        assert said == ["KeyboardInterrupt"]
