"""The package's import hook: what it sees, whom it tells, and that there is one in a process."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

import toto_compile_patch
from toto_compile_patch import import_hook

HOOK = Path(toto_compile_patch.__file__).parent / "tools" / "hook"
AUTOGLUON = "autogluon.timeseries.models.toto._internal.forecaster"

LISTEN = """
import sys, importlib
from toto_compile_patch import import_hook
told = []
def finders():
    return [f for f in sys.meta_path if type(f).__module__ == "toto_compile_patch.import_hook"]
"""


def python(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run code in an interpreter of its own, with folders on its path."""
    found = os.pathsep.join([*map(str, path), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": found.rstrip(os.pathsep)},
    )


def said(code: str, *path: Path) -> str:
    """What code prints that ends well and complains of nothing."""
    done = python(code, *path)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """Modules of the names that Toto's have: of carriers, and of others."""
    for name, text in {
        "toto.inference.forecaster": "class TotoForecaster: ...",
        "toto.model.toto": "class Toto: ...",
        "inference.forecaster": "class TotoForecaster: ...",
        AUTOGLUON: "class TotoForecaster: ...",
        "toto2.model": "class Toto2Model: ...",
        "prophet.forecaster": "class Prophet: ...",
        "forecaster": "raise OSError('theirs')",
        "toto.model.other": "class TotoForecaster: ...",
    }.items():
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        for package in file.relative_to(tmp_path).parents[:-1]:
            (tmp_path / package / "__init__.py").touch()
        file.write_text(text)
    return tmp_path


def test_the_package_is_told_of_every_module_that_holds_totos_code(places: Path) -> None:
    code = f"""
    import_hook.follow(told.append)
    import_hook.follow(told.append)
    assert len(finders()) == 1
    import prophet.forecaster, toto.model.other
    from inference import forecaster
    import toto2.model, toto.model.toto, toto.inference.forecaster, {AUTOGLUON}
    importlib.reload(forecaster)
    assert type(forecaster.__loader__).__name__ == "SourceFileLoader"
    print(told)
    import_hook.unfollow()
    import_hook.unfollow()
    assert not finders()
    importlib.reload(forecaster)
    print(len(told))
    """
    expected = ["inference.forecaster", "toto2.model", "toto.model.toto"]
    expected += ["toto.inference.forecaster", AUTOGLUON, "inference.forecaster"]
    assert said(LISTEN + textwrap.dedent(code), places) == f"{expected}\n{len(expected)}\n"


def test_nobody_is_told_before_that_is_asked_for(places: Path) -> None:
    code = "import inference.forecaster\nprint(told, finders())"
    assert said(LISTEN + code, places) == "[] []\n"


@pytest.mark.fault(
    injected="an error",
    where="within the import hook",
    observed="one line on standard error",
    afterwards="the import ends as it would",
)
def test_a_failure_is_one_line_and_the_import_goes_on(places: Path) -> None:
    code = """
    def fail(name): raise ValueError("a\\nb")
    import_hook.follow(fail)
    import inference.forecaster
    print(inference.forecaster.TotoForecaster.__name__)
    """
    done = python(LISTEN + textwrap.dedent(code), places)
    assert (done.returncode, done.stdout) == (0, "TotoForecaster\n")
    assert done.stderr == "toto_compile_patch: a b\n"


def test_a_modules_own_error_is_its_own(places: Path) -> None:
    code = """
    import_hook.follow(told.append)
    try:
        import forecaster
    except OSError as error:
        print(error, told)
    """
    assert said(LISTEN + textwrap.dedent(code), places) == "theirs []\n"


def test_other_finders_find_first_and_ours_asks_the_rest(places: Path) -> None:
    # Two finders that each ask all that come after them would ask one another without end.
    code = """
    import_hook.follow(told.append)
    class Wrapper:
        def find_spec(self, name, path=None, target=None):
            others = sys.meta_path[sys.meta_path.index(self) + 1:]
            return next(filter(None, (f.find_spec(name, path, target) for f in others)), None)
    sys.meta_path.insert(0, Wrapper())
    sys.meta_path.insert(2, Wrapper())
    import inference.forecaster
    print(told)
    """
    assert said(LISTEN + textwrap.dedent(code), places) == "['inference.forecaster']\n"


def test_it_is_one_module_and_one_finder_in_a_process_that_run_began(places: Path) -> None:
    code = """
    import sys
    [before] = [f for f in sys.meta_path if type(f).__module__ == "toto_compile_patch.import_hook"]
    assert not [name for name in sys.modules if name.startswith("toto_compile_patch")]
    import toto_compile_patch.import_hook
    import importlib
    from toto_compile_patch import import_hook
    assert sys.modules["toto_compile_patch.import_hook"] is import_hook
    assert toto_compile_patch.import_hook is import_hook
    assert importlib.reload(import_hook) is import_hook
    import_hook.follow(print)
    import_hook.arm()
    import_hook.unfollow()
    [after] = [f for f in sys.meta_path if type(f).__module__ == "toto_compile_patch.import_hook"]
    assert after is before and after.armed
    print(import_hook.__spec__.origin == import_hook.__file__, import_hook.__loader__.path)
    """
    (places / "toto" / "inference" / "forecaster.py").unlink()
    file = Path(toto_compile_patch.__file__).with_name("import_hook.py")
    assert said(code, HOOK, places) == f"True {file}\n"


@pytest.mark.parametrize(
    ("asked_first", "expected"),
    [
        ("", ["apply"]),
        ("follow(asked.append)", ["inference.forecaster", "toto.inference.forecaster"]),
        ("unfollow()", []),
    ],
)
def test_what_a_script_asks_for_first_holds(
    asked_first: str, expected: list[str], places: Path
) -> None:
    # The package's import applies nothing, because the toto that is found then is a namesake.
    (places / "namesake" / "toto").mkdir(parents=True)
    (places / "namesake" / "toto" / "__init__.py").touch()
    code = f"""
    import sys
    import toto_compile_patch
    from toto_compile_patch import import_hook
    asked = []
    toto_compile_patch.apply = lambda: asked.append("apply")
    {asked_first and f"import_hook.{asked_first}"}
    sys.path.insert(0, {str(places)!r})
    import inference.forecaster, toto.inference.forecaster
    print(asked)
    """
    assert said(code, HOOK, places / "namesake") == f"{expected}\n"


def test_the_package_imports_nothing_heavy() -> None:
    code = """
    import sys
    import toto_compile_patch
    heavy = {"torch", "toto", "numpy", "wrapt", "pandas", "gluonts", "einops", "rich", "argparse",
             "importlib.metadata", "importlib.resources", "multiprocessing", "asyncio", "email",
             "subprocess", "json", "autogluon", "joblib", "ray"}
    print(sorted(heavy & set(sys.modules)))
    """
    assert said(code) == "[]\n"


class TestInThisProcess:
    """What the hook does here, with a module of a name that Toto's have."""

    CODE = "class TotoForecaster:\n    made = 'by hand'\n"

    @pytest.fixture(autouse=True)
    def as_before(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
        monkeypatch.setattr(import_hook._finder, "told", None)
        monkeypatch.syspath_prepend(tmp_path)
        yield
        import_hook.unfollow()
        sys.modules.pop("forecaster", None)

    def test_a_module_that_is_not_there_is_found_by_nobody(self) -> None:
        told: list[str] = []
        import_hook.follow(told.append)
        assert importlib.util.find_spec("forecaster") is None
        with pytest.raises(ModuleNotFoundError, match="No module named 'forecaster'"):
            importlib.import_module("forecaster")
        assert not told

    def test_a_module_never_sees_who_follows_it(self, tmp_path: Path) -> None:
        told: list[str] = []
        (tmp_path / "forecaster.py").write_text(self.CODE)
        import_hook.follow(told.append)
        module = importlib.import_module("forecaster")
        assert told == ["forecaster"]
        assert module.__spec__ is not None
        assert type(module.__loader__) is type(module.__spec__.loader) is SourceFileLoader

    def test_a_loader_that_is_called_by_hand(self, tmp_path: Path) -> None:
        """Into a module that has no spec, and that no other will find."""
        told: list[str] = []
        (tmp_path / "forecaster.py").write_text(self.CODE)
        import_hook.follow(told.append)
        spec = importlib.util.find_spec("forecaster")
        assert spec is not None
        assert spec.loader is not None
        module = ModuleType("forecaster")
        spec.loader.exec_module(module)
        assert module.TotoForecaster.made == "by hand"
        assert module.__spec__ is None
        assert not told

    def test_a_failure_where_there_is_no_standard_error(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """As in a program with windows of its own, on Windows: its output is not for that."""
        told: list[str] = []

        def fail(name: str) -> None:
            told.append(name)
            raise ValueError(name)

        (tmp_path / "forecaster.py").write_text(self.CODE)
        import_hook.follow(fail)
        monkeypatch.setattr(sys, "stderr", None)
        assert importlib.import_module("forecaster").TotoForecaster
        assert told == ["forecaster"]
        assert capsys.readouterr().out == ""

    def test_the_last_copy_that_is_armed_takes_the_place_of_others(self) -> None:
        import_hook.follow(print)
        spec = importlib.util.spec_from_file_location(import_hook.__name__, import_hook.__file__)
        assert spec is not None
        assert spec.loader is not None
        other = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(other)
        others = [finder for finder in sys.meta_path if finder is not import_hook._finder]
        other.arm()
        assert sys.meta_path == [other._finder, *others]
