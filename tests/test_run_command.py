"""``run``: the script behaves as it does alone, and toto is patched in all of its processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import toto_compile_patch
from toto_compile_patch.tools import run as run_command

HOOK = Path(toto_compile_patch.__file__).parent / "tools" / "hook"
RUN = ("-m", "toto_compile_patch", "run")

STATE = """
import os, sys
if __name__ == "__main__":
    spec = __spec__ and (__spec__.name, __spec__.origin)
    for seen in (sys.argv, sys.flags, sys.orig_argv[1:], sys.path, __file__, spec, __package__,
                 os.getcwd(), sys.warnoptions, sys._xoptions, sys.stdout.write_through,
                 [name for name in sys.modules if "custom" in name or "toto" in name]):
        print(seen)
"""

PROCESSES = """
import argparse, multiprocessing, subprocess, sys
def work(number):
    if number == 13:
        raise ValueError("thirteen")
    return number, __name__, sys.argv, sys.path
if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--start", choices=("spawn", "fork", "forkserver"))
    parser.add_argument("numbers", nargs="+", type=int)
    options = parser.parse_args()
    subprocess.run([sys.executable, "-c", "import sys; print(sys.path, sys.argv)"])
    with multiprocessing.get_context(options.start).Pool(1) as pool:
        print(pool.map(work, options.numbers))
    sys.exit(3)
"""


def python(
    *arguments: str, folder: Path, environment: dict[str, str] | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        input=stdin,
    )


def outcome(done: subprocess.CompletedProcess[str]) -> tuple[int, str, str]:
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """A folder of scripts, and a module of each."""
    for name, text in {
        "state": STATE,
        "processes": PROCESSES,
        "raises": "def f():\n    raise KeyError('lost')\ntry:\n    f()\nfinally:\n    f()\n",
        "message": "import sys; print('out'); sys.exit('no such series')",
        "killed": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "interrupted": "import os, signal; os.kill(os.getpid(), signal.SIGINT); input()",
        "reads": "import sys; print(sys.stdin.read().upper())",
        "broken": "print('never')\nif True\n    pass\n",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    shutil.copy(tmp_path / "state.py", tmp_path / "package" / "__main__.py")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.write(tmp_path / "state.py", "__main__.py")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "state.py --help -m -h -- run",
        "./state.py",
        "-m state --help -m run",
        "-m package.__main__ -x",
        "-m package",
        "package a",
        "archive.zip a",
        "-m no_such_module",
        "processes.py --help",
        "processes.py --start spawn",
        "processes.py --start spawn 1 2",
        "processes.py --start fork 1 2",
        "processes.py --start forkserver 1 2",
        "processes.py --start spawn 1 13",
        "-m processes --start spawn 1 13",
        "processes.py --start fork 1 13",
        "raises.py",
        "-m raises",
        "message.py",
        "killed.py",
        "interrupted.py",
        "reads.py",
        "broken.py",
    ],
)
def test_it_runs_as_if_alone(command: str, scripts: Path) -> None:
    words = command.split()
    alone = python(*words, folder=scripts, stdin="abc")
    patched = python(*RUN, *words, folder=scripts, stdin="abc")
    assert alone.stdout + alone.stderr or alone.returncode < 0
    assert outcome(patched) == outcome(alone)


@pytest.mark.parametrize(
    "flags",
    ["-u", "-OO -Bs", "-W error -W ignore::ImportWarning", "-Xdev -X utf8", "-bdW once -x"],
)
def test_pythons_own_flags_hold(flags: str, scripts: Path) -> None:
    alone = python(*flags.split(), "state.py", "-u", folder=scripts)
    patched = python(*flags.split(), *RUN, "state.py", "-u", folder=scripts)
    assert alone.returncode == 0
    assert outcome(patched) == outcome(alone)


@pytest.mark.parametrize(
    ("command", "flags"),
    [
        (["python", "script.py", "-u"], []),
        (["python", "-uB", "-m", "module", "-O"], ["-uB"]),
        (["python", "-Bmmodule", "-O"], ["-B"]),
        (["python", "-BcO", "-O"], ["-B"]),
        (["python", "-u", "-", "-O"], ["-u"]),
        (["python", "-Werror", "-OWi::m", "-X", "dev"], ["-Werror", "-OWi::m", "-X", "dev"]),
        (["python", "--check-hash-based-pycs", "never", "-B"],
         ["--check-hash-based-pycs", "never", "-B"]),
    ],
)  # fmt: skip
def test_flags_are_told_from_the_rest(command: list[str], flags: list[str]) -> None:
    assert run_command._flags(command) == flags


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("-m toto_compile_patch run", "give a script"),
        ("-m toto_compile_patch run -m", "give a module"),
        ("-m toto_compile_patch run nowhere.py --help", "no file nowhere.py: give the path"),
        ("-m toto_compile_patch run --windows 8 state.py", "unrecognized arguments: --windows"),
        ("-E -m toto_compile_patch run state.py", "-E, -I and -S"),
        ("-I -m toto_compile_patch run state.py", "-E, -I and -S"),
        ("-S -m toto_compile_patch run state.py", "-E, -I and -S"),
    ],
)
def test_bad_usage_gets_one_clear_line(command: str, says: str, scripts: Path) -> None:
    # Where -S leaves out site-packages, it is found by its path.
    path = {"PYTHONPATH": str(HOOK.parents[2])}
    done = python(*command.split(), folder=scripts, environment=path)
    assert done.returncode == 2
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout


def test_bad_settings_are_refused_before_the_script_starts(scripts: Path) -> None:
    setting = {"TOTO_COMPILE_PATCH_RUNTIME": "warp"}
    done = python(*RUN, "state.py", folder=scripts, environment=setting)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "TOTO_COMPILE_PATCH_RUNTIME='warp': choose one of auto" in done.stderr


@pytest.mark.parametrize("help_flag", ["-h", "--help"])
def test_help_is_ours_before_a_script_is_named(help_flag: str, scripts: Path) -> None:
    done = python(*RUN, help_flag, "state.py", folder=scripts)
    assert done.returncode == 0
    assert "run -m MODULE [ARGS ...]" in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there, a process cannot replace itself")
def test_it_is_one_process(scripts: Path) -> None:
    (scripts / "pid.py").write_text("import os; print(os.getpid())")
    command = [sys.executable, *RUN, "pid.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=scripts) as process:
        assert process.communicate()[0] == f"{process.pid}\n"


@pytest.mark.parametrize("text", ["print('theirs')", "1 / 0", "import sys; sys.x = __file__"])
def test_another_sitecustomize_still_runs(text: str, scripts: Path) -> None:
    other = scripts / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text(text)
    there = {"PYTHONPATH": str(other)}
    alone = python("state.py", folder=scripts, environment=there)
    patched = python(*RUN, "state.py", folder=scripts, environment=there)
    # The process that `run` itself starts in reads it, too.
    own = python("-c", "", folder=scripts, environment=there)
    assert str(other) in alone.stdout
    assert patched.stdout == own.stdout + alone.stdout
    assert patched.stderr == own.stderr + alone.stderr


def test_run_within_run_adds_the_folder_once() -> None:
    once = run_command._environment({"PYTHONPATH": "theirs"})
    assert once["PYTHONPATH"].split(os.pathsep) == [str(HOOK), "theirs"]
    assert run_command._environment(once) == once
    assert run_command._environment({})["PYTHONPATH"] == str(HOOK)


def test_windows_waits_for_the_script(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    script = "import os, sys; print(os.environ['X']); sys.exit(3)"
    assert run_command._become([sys.executable, "-c", script], {**os.environ, "X": "there"}) == 3
    assert capfd.readouterr().out.strip() == "there"


# The hook by itself, beside a stand-in for this package and one for toto.

PACKAGE = """
def apply():
    print("apply")
    import toto.inference.forecaster
    import toto.model.toto
    print("applied")
"""


@pytest.fixture
def stand_ins(tmp_path: Path) -> Path:
    """A package of this one's name that is on no path, and a ``toto`` that is."""
    package = tmp_path / "home" / "toto_compile_patch"
    (package / "tools").mkdir(parents=True)
    (package / "__init__.py").write_text(PACKAGE)
    shutil.copytree(HOOK, package / "tools" / "hook")
    shutil.copy(HOOK.parent.parent / "import_hook.py", package)
    toto = tmp_path / "site" / "toto"
    for folder in (toto / "inference", toto / "model"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").touch()
    (toto / "__init__.py").touch()
    (toto / "inference" / "forecaster.py").write_text("print('forecaster')")
    (toto / "model" / "toto.py").write_text("import toto.model.util; print('toto')")
    (toto / "model" / "util.py").write_text("import time; time.sleep(0.1)")
    return tmp_path


def hooked(script: str, stand_ins: Path, *, package: str = PACKAGE) -> tuple[int, str, str]:
    """Run a script under the hook of the stand-ins: code, output, errors."""
    home = stand_ins / "home" / "toto_compile_patch"
    (home / "__init__.py").write_text(package)
    (stand_ins / "script.py").write_text(script)
    path = os.pathsep.join([str(home / "tools" / "hook"), str(stand_ins / "site")])
    return outcome(python("script.py", folder=stand_ins, environment={"PYTHONPATH": path}))


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        ("import toto.inference.forecaster", "forecaster apply toto applied"),
        ("from toto.inference import forecaster", "forecaster apply toto applied"),
        ("import toto.model.toto", "toto apply forecaster applied"),
        ("import toto_compile_patch", "apply forecaster toto applied"),
        ("import toto_compile_patch, toto.model.toto", "apply forecaster toto applied"),
        (
            "import toto.model.toto, importlib; importlib.reload(toto.model.toto)",
            "toto apply forecaster applied toto",
        ),
    ],
)
def test_it_applies_once_at_the_first_import(statements: str, said: str, stand_ins: Path) -> None:
    code, out, err = hooked(f"print('start')\n{statements}\nprint('end')", stand_ins)
    assert (code, err) == (0, "")
    assert out.split() == ["start", *said.split(), "end"]


@pytest.mark.parametrize(
    "statements",
    [
        "",
        "import importlib.util; importlib.util.find_spec('toto')",
        "import toto.model.util; del sys.modules['toto']",
        "import importlib.util; importlib.util.find_spec('toto_compile_patch')",
    ],
)
def test_it_does_nothing_before(statements: str, stand_ins: Path) -> None:
    loaded = "print({'toto', 'toto_compile_patch', 'torch', 'wrapt'} & set(sys.modules))"
    assert hooked(f"import sys\n{statements}\n{loaded}", stand_ins) == (0, "set()\n", "")


@pytest.mark.parametrize("namesake", ["toto.py", "toto/__init__.py"])
@pytest.mark.parametrize("statement", ["import toto", "import toto_compile_patch"])
def test_a_namesake_is_left_alone(namesake: str, statement: str, stand_ins: Path) -> None:
    (stand_ins / namesake).parent.mkdir(exist_ok=True)
    (stand_ins / namesake).write_text("print('mine')\n")
    code, out, err = hooked(statement, stand_ins)
    assert code == 0
    assert "applied" not in out
    assert not err


@pytest.mark.parametrize("error", ["OSError('theirs')", "ImportError('theirs')"])
def test_the_traceback_of_a_failed_import_is_its_own(error: str, stand_ins: Path) -> None:
    (stand_ins / "site" / "toto" / "model" / "toto.py").write_text(f"raise {error}\n")
    ours = hooked("import toto.model.toto", stand_ins)
    site = {"PYTHONPATH": str(stand_ins / "site")}
    assert ours == outcome(python("script.py", folder=stand_ins, environment=site))
    assert ours[0] == 1


def test_the_module_does_not_see_it(stand_ins: Path) -> None:
    script = (
        "import toto.model.toto, toto_compile_patch, inspect\n"
        "for module in (toto.model.toto, toto_compile_patch):\n"
        "    assert module.__loader__ is module.__spec__.loader\n"
        "    print(type(module.__loader__).__name__)\n"
        "print(inspect.getsource(toto_compile_patch))\n"
    )
    code, out, err = hooked(script, stand_ins)
    assert (code, err) == (0, "")
    assert out.count("SourceFileLoader") == 2
    assert PACKAGE in out


@pytest.mark.parametrize("error", ["ValueError('a\\nb')", "ImportError('a b')"])
@pytest.mark.fault(
    injected="apply() fails",
    where="within the import of Toto, under run",
    observed="one line on standard error",
    afterwards="the script runs on upstream's code",
)
def test_a_failure_is_one_line_and_the_script_goes_on(error: str, stand_ins: Path) -> None:
    package = f"def apply():\n    raise {error}\n"
    script = "import toto.model.toto, toto_compile_patch\nprint('ran')"
    done = hooked(script, stand_ins, package=package)
    assert done == (0, "toto\nran\n", "toto_compile_patch: not applied: a b\n")


@pytest.mark.fault(
    injected="an interrupt",
    where="apply() within the import of Toto, under run",
    observed="the script gets it",
    afterwards="the next import applies",
)
def test_an_interrupt_is_the_scripts_and_leaves_another_turn(stand_ins: Path) -> None:
    package = (
        "turns = []\n"
        "def apply():\n"
        "    turns.append(1)\n"
        "    print('turn', len(turns))\n"
        "    if len(turns) == 1:\n"
        "        raise KeyboardInterrupt\n"
    )
    script = (
        "try:\n    import toto.model.toto\n"
        "except KeyboardInterrupt:\n    print('stopped')\n"
        "import toto.model.toto\n"
    )
    code, out, err = hooked(script, stand_ins, package=package)
    assert (code, err) == (0, "")
    assert out.split("\n") == ["toto", "turn 1", "stopped", "toto", "turn 2", ""]


def test_threads_that_import_at_once_do_not_wait_for_one_another(stand_ins: Path) -> None:
    script = (
        "import threading, importlib\n"
        "names = ['toto.model.util', 'toto.inference.forecaster', 'toto.model.toto', 'toto',\n"
        "         'toto_compile_patch'] * 2\n"
        "threads = [threading.Thread(target=importlib.import_module, args=[x]) for x in names]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
    )
    code, out, err = hooked(script, stand_ins)
    assert (code, err) == (0, "")
    words = ("applied", "apply", "forecaster", "toto")
    assert [out.count(word) for word in words] == [1, 1, 1, 1]


def test_every_kind_of_process_gets_it(stand_ins: Path) -> None:
    script = (
        "import multiprocessing, subprocess, sys\n"
        "def work():\n"
        "    import toto.model.toto\n"
        "if __name__ == '__main__':\n"
        "    for start in ('fork', 'spawn', 'forkserver'):\n"
        "        print(start, flush=True)\n"
        "        process = multiprocessing.get_context(start).Process(target=work)\n"
        "        process.start()\n"
        "        process.join()\n"
        "    print('python', flush=True)\n"
        "    subprocess.run([sys.executable, '-c', 'import toto.model.toto'])\n"
        "    print('main', flush=True)\n"
        "    work()\n"
        "    print('fork of patched', flush=True)\n"
        "    process = multiprocessing.get_context('fork').Process(target=work)\n"
        "    process.start()\n"
        "    process.join()\n"
    )
    kinds = ("fork", "spawn", "forkserver", "python", "main")
    said = "".join(f"{kind}\ntoto\napply\nforecaster\napplied\n" for kind in kinds)
    assert hooked(script, stand_ins) == (0, f"{said}fork of patched\n", "")


# With toto itself.

REAL = """
import multiprocessing, subprocess, sys
import toto.model.toto, toto.model.backbone
def state(kind):
    from toto_compile_patch import settings
    cache = toto.model.backbone.KVCache.__module__
    print(kind, cache.startswith("toto_compile_patch"), "compile" in vars(toto.model.toto.Toto),
          settings.in_force().runtime, flush=True)
def child(start):
    process = multiprocessing.get_context(start).Process(target=state, args=(start,))
    process.start()
    process.join()
if __name__ == "__main__":
    if sys.argv[1] == "child":
        sys.exit(state("python"))
    state("main")
    for start in sys.argv[2:]:
        child(start)
    subprocess.run([sys.executable, __file__, "child"])
    if sys.argv[1] == "revert":
        import toto_compile_patch
        toto_compile_patch.revert()
        import toto.model.rope
        state("reverted")
        child("fork")
    sys.exit(3)
"""


@pytest.mark.slow
def test_toto_is_patched_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "real.py").write_text(REAL)
    environment = {"TOTO_COMPILE_PATCH_RUNTIME": "eager", "PYTHONWARNINGS": "ignore"}
    starts = ("fork", "spawn", "forkserver")
    done = python(*RUN, "real.py", "revert", *starts, folder=tmp_path, environment=environment)
    assert done.stdout.splitlines() == [
        *(f"{kind} True True eager" for kind in ("main", *starts, "python")),
        "reverted False False auto",
        "fork False False auto",
    ]
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.slow
@pytest.mark.parametrize(("toggle", "cache"), [("0", False), ("kv_cache", True)])
def test_the_toggle_holds(toggle: str, cache: bool, tmp_path: Path) -> None:
    (tmp_path / "real.py").write_text(REAL)
    environment = {"TOTO_COMPILE_PATCH": toggle, "PYTHONWARNINGS": "ignore"}
    done = python(*RUN, "real.py", "leave", folder=tmp_path, environment=environment)
    assert done.stdout.splitlines() == [f"{kind} {cache} False auto" for kind in ("main", "python")]
    assert (done.returncode, done.stderr) == (3, "")


@pytest.mark.slow
def test_a_traceback_with_toto_in_it_is_the_same(tmp_path: Path) -> None:
    text = "from toto.inference.forecaster import TotoForecaster\nTotoForecaster()\n"
    (tmp_path / "real.py").write_text(text)
    alone, patched = (python(*how, "real.py", folder=tmp_path) for how in ((), RUN))
    assert outcome(patched) == outcome(alone)
    assert alone.returncode == 1


@pytest.mark.slow
def test_toto_that_is_not_supported_runs_as_upstream(stand_ins: Path) -> None:
    (stand_ins / "script.py").write_text("import toto.model.toto\nprint('ran')\n")
    site = {"PYTHONPATH": str(stand_ins / "site")}
    done = python(*RUN, "script.py", folder=stand_ins, environment=site)
    # To see that nothing of it is supported, apply() imports what forecasts, too.
    assert (done.returncode, done.stdout) == (0, "toto\nforecaster\nran\n")
    assert done.stderr.startswith("toto_compile_patch: not applied: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_threads_that_import_toto_at_once(tmp_path: Path) -> None:
    names = ["toto.model.util", "toto.inference.forecaster", "toto.model.toto"]
    (tmp_path / "script.py").write_text(
        "import threading, importlib\n"
        f"names = [*{names}, 'toto_compile_patch']\n"
        "threads = [threading.Thread(target=importlib.import_module, args=[x]) for x in names]\n"
        "for thread in threads: thread.start()\n"
        "for thread in threads: thread.join()\n"
        "import toto_compile_patch\n"
        "print(toto_compile_patch.is_applied())\n"
    )
    done = python("-W", "ignore", *RUN, "script.py", folder=tmp_path)
    assert outcome(done) == (0, "True\n", "")
