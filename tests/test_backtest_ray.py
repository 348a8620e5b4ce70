"""``backtest`` by Ray: the same parts as of one process, byte by byte, whoever dies meanwhile.

Each run is in processes of its own: the driver, and Ray's, which end with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from backtest_cases import QUICK, contents, long_table, parts, start

pytest.importorskip("pyarrow", exc_type=ImportError)
pytest.importorskip("ray")

pytestmark = pytest.mark.slow

ON_RAY = ("--engine", "ray", "--workers", 2)
QUIET = {"RAY_TMPDIR": "/tmp", "RAY_DISABLE_MEMORY_MONITOR": "1"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file, and in the folder ``out`` beside it what one process makes of it."""
    folder = tmp_path_factory.mktemp("whole")
    table = long_table(folder / "a.parquet", series=60, rows=100)
    table.loc[table.item_id == "series 7", "target"] = float("nan")
    table.to_parquet(folder / "a.parquet", index=False)
    process = start(*arguments(folder), "--output", folder / "out")
    assert process.wait() == 0
    return folder


def arguments(folder: Path) -> tuple[object, ...]:
    return (folder / "a.parquet", *QUICK, "--windows", 5, "--shard", 5)


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    processes = []

    def begin(*given: object) -> subprocess.Popen[str]:
        processes.append(start(*given, *ON_RAY, environ=QUIET))
        return processes[-1]

    yield begin
    for process in processes:
        # Ray's own processes look after themselves once their driver is gone.
        process.kill()
        process.communicate()


def wait_for_parts(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    while len(list(out.glob("part-*.parquet"))) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)


def workers_of(driver: int) -> list[int]:
    """Processes in which Ray's workers are, by the name that Ray gives them, of one driver."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_text().partition("\0")[0]
            parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
            grandparent = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[1]
        except OSError:
            continue
        if name.startswith("ray::Worker") and driver in (int(parent), int(grandparent)):
            found.append(int(folder.name))
    return found


def test_two_workers_make_what_one_process_makes(
    whole: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    process = started(*arguments(whole), "--output", tmp_path / "out")
    said, error = process.communicate()
    assert process.returncode == 0, error
    assert "by 2 workers of Ray" in said
    # What was found out about the file, and nothing that Ray says.
    (line,) = error.splitlines()
    assert line.endswith("; hourly")
    assert contents(tmp_path / "out") == contents(whole / "out")


@pytest.mark.fault(
    injected="SIGKILL",
    where="a worker of Ray's",
    observed="its part is made again",
    afterwards="the very files of one process",
)
def test_a_worker_that_is_killed_costs_nothing(
    whole: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    process = started(*arguments(whole), "--output", out)
    wait_for_parts(out, 5, process)
    workers = workers_of(process.pid)
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    assert len(parts(out)) < 60
    _, error = process.communicate()
    assert process.returncode == 0, error
    assert contents(out) == contents(whole / "out")


def test_a_driver_that_is_killed_is_started_again(
    whole: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    process = started(*arguments(whole), "--output", out)
    wait_for_parts(out, 5, process)
    process.kill()
    process.wait()
    there = parts(out)
    assert 5 <= len(there) < 60
    again = started(*arguments(whole), "--output", out, "--resume")
    _, error = again.communicate()
    assert again.returncode == 0, error
    assert contents(out) == contents(whole / "out")
    assert there.items() <= parts(out).items()


@pytest.mark.fault(
    injected="Ctrl-C",
    where="backtest on Ray",
    observed="one line says how to go on, exit code 130",
    afterwards="no half a part",
)
def test_an_interrupt_says_how_to_go_on(
    whole: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    process = started(*arguments(whole), "--output", out)
    wait_for_parts(out, 5, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode == 130
    assert "--resume" in error
    assert not list(out.glob(".*"))


def test_a_model_that_is_none_is_one_line(
    whole: Path, tmp_path: Path, started: Callable[..., subprocess.Popen[str]]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("config.json", "model.safetensors"):
        (broken / name).write_text("{}")
    process = started(*arguments(whole), "--output", tmp_path / "out", "--model", broken)
    _, error = process.communicate()
    assert process.returncode == 2
    *_, line = error.strip().splitlines()
    assert f"--model {broken} cannot be loaded" in line
    assert not (tmp_path / "out").exists()


def with_other_workers(program: str, folder: Path, whole: Path) -> subprocess.CompletedProcess[str]:
    """A run of a program that puts a class of its own in the place of the workers'."""
    (folder / "program.py").write_text(program)
    given = map(str, (*arguments(whole), "--output", folder / "out", *ON_RAY))
    command = [sys.executable, "-W", "ignore", str(folder / "program.py"), *given]
    paths = [str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, **QUIET, "PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


DEADLY = """
import os, sys
from toto_compile_patch.tools import cli
from toto_compile_patch.tools.backtest import engine_ray

class Deadly(engine_ray.Worker):
    def begin(self):
        super().begin()
        part = self._forecasting.part
        self._forecasting.part = lambda shard: os._exit(1) if shard.index == 3 else part(shard)

engine_ray.Worker = Deadly
sys.exit(cli.main(["backtest", *sys.argv[1:]]))
"""


@pytest.mark.fault(
    injected="a part kills its worker each time",
    where="backtest on Ray",
    observed="one line, exit code 2",
    afterwards="the parts before it are there",
)
def test_a_part_that_kills_worker_after_worker_ends_the_run(whole: Path, tmp_path: Path) -> None:
    done = with_other_workers(DEADLY, tmp_path, whole)
    assert done.returncode == 2
    assert "workers died over part 3" in done.stderr.splitlines()[-1]
    assert {f"part-{i:06d}.parquet" for i in range(3)} <= set(parts(tmp_path / "out"))


LOST = """
import sys
from toto_compile_patch.tools import cli
from toto_compile_patch.tools.backtest import engine_ray

class Lost(engine_ray.Worker):
    def __init__(self, *arguments):
        raise OSError("no such disk")

engine_ray.Worker = Lost
sys.exit(cli.main(["backtest", *sys.argv[1:]]))
"""


@pytest.mark.fault(
    injected="no worker can begin",
    where="backtest on Ray",
    observed="one line, exit code 2",
    afterwards="no part is there",
)
def test_workers_of_which_none_can_begin_end_the_run(whole: Path, tmp_path: Path) -> None:
    done = with_other_workers(LOST, tmp_path, whole)
    assert done.returncode == 2
    line = done.stderr.splitlines()[-1]
    assert "worker after worker is lost" in line
    assert "\x1b" not in line
    assert not parts(tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--cpus-per-worker", 1000), "no room for 1 worker of 1000 CPUs and 0 GPUs: ask for no"),
        (("--address", "auto"), "no Ray cluster at --address auto (ConnectionError"),
    ],
)
def test_what_ray_has_not_is_one_line(
    more: tuple[object, ...], says: str, whole: Path, tmp_path: Path
) -> None:
    # Where no cluster has left its address.
    environ = {**QUIET, "RAY_TMPDIR": str(tmp_path)} if "auto" in more else QUIET
    given = (*arguments(whole), "--output", tmp_path / "out", "--engine", "ray", *more)
    process = start(*given, environ=environ)
    _, error = process.communicate()
    assert process.returncode == 2
    assert says in error.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_an_address_where_nothing_is_gets_one_clear_line(whole: Path, tmp_path: Path) -> None:
    out = ("--output", tmp_path / "out")
    process = start(*arguments(whole), *out, *ON_RAY, "--address", "127.0.0.1:1")
    _, error = process.communicate()
    assert process.returncode == 2
    *_, line = error.strip().splitlines()
    assert "no Ray cluster at --address 127.0.0.1:1" in line
    assert not (tmp_path / "out").exists()
