"""Copies of Toto's code that apply() does not reach: who says so, when, and what to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import toto

from toto_compile_patch import carriers
from toto_compile_patch.tested_code import FINGERPRINTS

HERE = Path(__file__).parent
INSTALLED = Path(toto.__file__).parent
AUTOGLUON = "autogluon.timeseries.models.toto._internal"

WITHOUT_TOTO = """\
import os, sys
class NotInstalled:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "toto":
            # Where toto-ts is not installed, nothing but another folder of that name is found.
            from importlib.machinery import PathFinder
            code = os.path.join("toto", "inference", "forecaster.py")
            rest = [at for at in sys.path if not os.path.exists(os.path.join(at, code))]
            spec = PathFinder.find_spec(name, rest)
            if spec is None:
                raise ModuleNotFoundError("No module named 'toto'", name="toto")
            return spec
sys.meta_path.insert(0, NotInstalled)
"""

MODEL = f"""\
import json, logging, sys, threading, warnings
sys.path.append({str(HERE)!r})
import torch
ARGUMENTS = dict(
    patch_size=8, stride=8, embed_dim=32, num_layers=2, num_heads=4, mlp_hidden_dim=64, dropout=0.0,
    spacewise_every_n_layers=2, scaler_cls="<class 'model.scaler.CausalPatchStdMeanScaler'>",
    output_distribution_classes=["<class 'model.distribution.MixtureOfStudentTsOutput'>"],
    spacewise_first=False, output_distribution_kwargs=dict(k_components=3),
    use_memory_efficient_attention=False,
)
"""


def copy(files: dict[str, str], folder: Path, imports: dict[str, str]) -> Path:
    """Copy files of the installed toto; its imports by other names."""
    for source, target in files.items():
        text = (INSTALLED / source).read_text()
        for found, instead in imports.items():
            text = re.sub(rf"^( *from ){found}(?=[\w. ])", rf"\1{instead}", text, flags=re.M)
        to = folder / target
        to.parent.mkdir(parents=True, exist_ok=True)
        to.write_text(text)
    return folder


def modules(*folders: str) -> list[str]:
    found = [file for folder in folders for file in (INSTALLED / folder).glob("*.py")]
    return [str(file.relative_to(INSTALLED)) for file in found]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone's inner folder, from which ``model.toto`` and ``inference.forecaster`` import."""
    files = modules("inference", "model", "data/util")
    imports = {r"\.\.(?=\w)": "", r"toto\.": ""}
    return copy({file: file for file in files}, tmp_path / "toto", imports)


@pytest.fixture
def namespace(tmp_path: Path) -> Path:
    """A folder that holds a clone, from which ``toto.toto.model`` imports."""
    files = {file: f"toto/{file}" for file in ("__init__.py", *modules("inference", "model"))}
    files |= {file: f"toto/{file}" for file in modules("data/util")}
    copy(files, tmp_path / "parent" / "toto", {r"toto\.": "toto.toto."})
    return tmp_path / "parent"


@pytest.fixture
def autogluon(tmp_path: Path) -> Path:
    """A folder with AutoGluon's layout of Toto's code, in packages that must not be imported."""
    files = {file: file.replace("model/", "backbone/") for file in modules("model")}
    files["inference/forecaster.py"] = "forecaster.py"
    files["data/util/dataset.py"] = "dataset.py"
    imports = {
        r"\.\.model\.backbone": ".backbone.backbone",
        r"\.\.model\.": ".",
        r"\.\.data\.util\.": ".",
    }
    top = tmp_path / "site"
    copy(files, top.joinpath(*AUTOGLUON.split(".")), imports)
    heavy = top / "autogluon" / "timeseries" / "__init__.py"
    heavy.write_text("import sys\nif not hasattr(sys, 'may_import'): raise SystemExit('heavy')\n")
    return top


def python(
    code: str, *folders: Path, arguments: tuple[str, ...] = (), cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *(arguments or ("-c", textwrap.dedent(code)))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path.rstrip(os.pathsep), "COLUMNS": "250"},
        cwd=cwd,
    )


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


BEFORE_APPLY = """
from model.toto import Toto
from inference.forecaster import TotoForecaster
import toto_compile_patch as p
from toto_cases import forecast, series, tiny_model

told = []
handler = logging.Handler()
handler.emit = told.append
logging.getLogger("toto_compile_patch").addHandler(handler)
assert p.last_path().taken == "unreached"
for _ in range(2):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        p.apply()
    print(json.dumps([(w.category.__name__, str(w.message), w.filename) for w in caught]))
warned = [record for record in told if record.levelno == logging.WARNING]
assert len(warned) == 1 and "`inference and model`" in warned[0].getMessage(), warned
assert p.is_applied()

TotoForecaster(Toto(**ARGUMENTS).model).forecast(series(40), prediction_length=8)
path = p.last_path()
assert path.taken == "unreached" and "`inference and model`" in path.reason, path
forecast(tiny_model().model, series(40), 8)
assert p.last_path().taken == "fast"
elsewhere = []
thread = threading.Thread(target=lambda: elsewhere.append(p.last_path().taken))
thread.start(); thread.join()
assert elsewhere == ["unreached"]

found = {carrier.name: carrier for carrier in p.status().carriers}
assert set(found) == {"toto", "inference and model"}, found
assert (found["toto"].loaded, found["toto"].reached) == (True, True)
other = found["inference and model"]
assert (other.loaded, other.reached, other.code) == (True, False, "code that was tested")
assert "from toto.inference.forecaster import TotoForecaster" in other.advice
assert [row.state for row in p.status()] == ["applied"] * 5
assert "loaded, not reached" in str(p.status())
"""


def test_a_clone_that_is_loaded_before_apply(clone: Path) -> None:
    first, second = map(json.loads, done(python(MODEL + BEFORE_APPLY, clone)).splitlines())
    [(category, message, file)] = first
    assert (category, file) == ("UnreachedCarrierWarning", "<string>")
    assert str(clone) in message
    assert "instead of importing from `inference` and `model`" in message
    assert second == []


AFTER_APPLY = """
import toto_compile_patch as p
p.apply()
assert p.last_path() is None
assert [c.loaded for c in p.status().carriers if not c.reached] == [False]
from model.toto import Toto
path = p.last_path()
assert path.taken == "unreached" and "`inference and model`" in path.reason, path
assert [c.loaded for c in p.status().carriers if not c.reached] == [True]
"""

AS_AN_ERROR = """
p.revert()
import os, warnings
warnings.simplefilter("error", p.UnreachedCarrierWarning)
for call in (p.apply, p.patched().__enter__):
    try:
        call()
    except p.UnreachedCarrierWarning:
        pass
    else:
        raise SystemExit("no error")
    assert {row.state for row in p.status()} == {"not applied"}
# Nothing is asked for, so that nothing can miss it.
p.apply([])
os.environ["TOTO_COMPILE_PATCH"] = "0"
p.apply()
del os.environ["TOTO_COMPILE_PATCH"]
warnings.simplefilter("default")
p.apply()
p.apply()
"""


def test_a_clone_that_is_loaded_after_apply_and_warnings_that_are_errors(clone: Path) -> None:
    run = python(AFTER_APPLY + AS_AN_ERROR, clone)
    done(run)
    assert run.stderr.count("UnreachedCarrierWarning: ") == 1


NOT_INSTALLED = """
import sys
import toto_compile_patch as p
try:
    p.apply()
except p.TotoNotFoundError as error:
    print(error)
else:
    raise SystemExit("apply() went through")
assert {row.state for row in p.status()} == {"unavailable"}
[carrier] = p.status().carriers
print(carrier.name, carrier.state, carrier.code, sep="|")
assert carrier.advice in str(p.status())
"""


def test_where_a_clone_is_all_there_is(clone: Path, namespace: Path) -> None:
    said, state = done(python(WITHOUT_TOTO + NOT_INSTALLED, clone)).splitlines()
    assert "`inference and model`" in said
    assert "instead of importing from `inference` and `model`" in said
    assert state == "inference and model|importable, not reached|code that was tested"
    loaded = "from toto.toto.model.toto import Toto\n"
    said, state = done(python(WITHOUT_TOTO + loaded + NOT_INSTALLED, namespace)).splitlines()
    assert "instead of importing from `toto.toto`" in said
    assert state == "toto.toto|loaded, not reached|code that was tested"


def test_where_autogluon_is_all_there_is(autogluon: Path) -> None:
    said, state = done(python(WITHOUT_TOTO + NOT_INSTALLED, autogluon)).splitlines()
    assert "AutoGluon forecasts with a copy of Toto" in said
    assert state == f"{AUTOGLUON}|importable, not reached|code that was tested"


def test_autogluons_copy_is_named_where_it_is_loaded(autogluon: Path) -> None:
    file = autogluon.joinpath(*AUTOGLUON.split("."), "backbone", "rope.py")
    text = file.read_text()
    changed = re.sub(r"(def get_scale\(.*?\):\n)", r"\1        self.other = 0\n", text, flags=re.S)
    file.write_text(changed)
    code = f"""
    import sys, warnings
    sys.may_import = True
    import {AUTOGLUON}.forecaster as theirs
    import toto_compile_patch as p
    p.apply()
    [other] = [c for c in p.status().carriers if not c.reached]
    print(other.name, other.state, other.code, sep="|")
    """
    run = python(code, autogluon)
    differs = "differs in TimeAwareRotaryEmbedding.get_scale"
    assert done(run).strip() == f"{AUTOGLUON}|loaded, not reached|{differs}"
    assert "UnreachedCarrierWarning" in run.stderr


def test_where_toto_2_is_all_there_is(tmp_path: Path) -> None:
    nested = tmp_path / "toto2" / "toto2"
    nested.mkdir(parents=True)
    (nested / "__init__.py").touch()
    look = "from toto_compile_patch import carriers; print(carriers.found())"
    assert done(python(WITHOUT_TOTO + look, tmp_path)).strip() == "()"
    (tmp_path / "toto2" / "__init__.py").write_text("from .model import Toto2Model\n")
    (tmp_path / "toto2" / "model.py").write_text("class Toto2Model:\n    pass\n")
    for loaded in ("", "import toto2\n"):
        said, state = done(python(WITHOUT_TOTO + loaded + NOT_INSTALLED, tmp_path)).splitlines()
        assert "Toto 2.0 (toto-2) is another model, which this package does not patch" in said
        assert state.endswith("not reached|another model")


def test_toto_2_beside_toto_is_named_and_not_warned_of(tmp_path: Path) -> None:
    (tmp_path / "toto2").mkdir()
    (tmp_path / "toto2" / "__init__.py").write_text("from .model import Toto2Model\n")
    (tmp_path / "toto2" / "model.py").write_text("class Toto2Model:\n    pass\n")
    code = """
    import toto2
    import toto_compile_patch as p
    p.apply()
    print([(c.name, c.state) for c in p.status().carriers], p.last_path().taken)
    """
    run = python(code, tmp_path)
    carriers_found = [("toto", "loaded, reached"), ("toto2", "loaded, not reached")]
    assert done(run).strip() == f"{sorted(carriers_found, reverse=True)} unreached"
    assert "UnreachedCarrierWarning" not in run.stderr


def test_namesakes_are_not_named(tmp_path: Path) -> None:
    for package in ("inference", "model"):
        (tmp_path / package).mkdir()
    namesake = "class TotoForecaster:\n    def predict(self): ...\nKVCache = TotoBackbone = 1\n"
    (tmp_path / "inference" / "forecaster.py").write_text(namesake)
    (tmp_path / "model" / "backbone.py").write_text("class TotoBackbone: pass\n")
    code = """
    import inference.forecaster, model.backbone, sys
    from toto_compile_patch import carriers
    sys.modules["odd"] = object()
    sys.modules["none"] = None
    print([(carrier.name, carrier.loaded) for carrier in carriers.found()])
    assert not {"torch", "toto"} & set(sys.modules)
    """
    assert done(python(code, tmp_path)).strip() == "[('toto', False)]"


def test_a_toto_that_is_imported_anew_is_not_reached() -> None:
    code = """
    import sys, warnings
    import toto_compile_patch as p
    p.apply()
    assert p.last_path() is None and [c.reached for c in p.status().carriers] == [True]
    for name in [name for name in sys.modules if name.split(".")[0] == "toto"]:
        del sys.modules[name]
    import toto.inference.forecaster
    assert p.last_path().taken == "unreached"
    assert [c.name for c in p.status().carriers if not c.reached] == ["toto"]
    p.apply()
    """
    run = python(code)
    done(run)
    assert "toto was imported anew" in run.stderr


def test_a_copy_in_a_single_file_is_named_by_its_module(tmp_path: Path) -> None:
    (tmp_path / "pasted.py").write_text(
        "class TotoForecaster:\n"
        "    def __init__(self, model): ...\n"
        "    def generate_mean(self): ...\n"
        "    def generate_samples(self): ...\n"
    )
    code = """
    import pasted
    from toto_compile_patch import carriers
    class TotoForecaster(pasted.TotoForecaster):
        generate_mean = generate_samples = lambda self: 0
    [other] = carriers.unreached()
    print(other.name, other.folder, other.code, sep="|")
    """
    found = done(python(code, tmp_path)).strip()
    assert found == f"pasted|{tmp_path / 'pasted.py'}|code that was not tested"


def test_the_installed_toto_is_known_by_its_files_as_by_its_objects() -> None:
    [found] = [carrier for carrier in carriers.found() if carrier.name == "toto"]
    assert (found.reached, found.differs) == (True, ())
    # All of it: no version of toto-ts lacks anything that the patches replace or rely on.
    assert found.tested == len(FINGERPRINTS)
    assert found.code == "code that was tested"


@pytest.mark.parametrize("command", ["run", "doctor"])
def test_commands_say_what_a_script_forecasts_with(
    command: str, clone: Path, tmp_path: Path
) -> None:
    # As people run a clone: from its inner folder, with a script that lies there.
    script = clone / "script.py"
    script.write_text(
        MODEL
        + "from inference.forecaster import TotoForecaster\n"
        + "from model.toto import Toto\n"
        + "from data.util.dataset import MaskedTimeseries\n"
        + "forecaster = TotoForecaster(Toto(**ARGUMENTS).model)\n"
        + "x, step = torch.randn(1, 40), torch.full((1,), 60)\n"
        + "inputs = MaskedTimeseries(x, x == x, torch.zeros(1, 40), torch.zeros(1, 40), step)\n"
        + "forecaster.forecast(inputs, prediction_length=8)\n"
        + "print('forecast')\n"
    )
    if command == "run":
        run = python("", arguments=("-m", "toto_compile_patch", "run", str(script)), cwd=clone)
        assert done(run) == "forecast\n"
        assert run.stderr.count("UnreachedCarrierWarning: ") == 1
        return
    found = tmp_path / "found.json"
    options = ("-m", "toto_compile_patch", "doctor", "--json", str(found), "--script", str(script))
    run = python("", arguments=options, cwd=clone)
    report = json.loads(found.read_text())
    assert run.returncode == 1
    [finding] = report["findings"]
    place = f"script.py:{len(script.read_text().splitlines()) - 1}"
    assert "1 forecast was made by `inference and model`" in finding["what"]
    assert finding["what"].endswith(f"at {place}.")
    assert "from toto.inference.forecaster import TotoForecaster" in finding["cure"]
    assert "inference and model, not reached by apply()" in run.stdout


def test_doctor_lists_them(clone: Path, autogluon: Path) -> None:
    look = "from toto_compile_patch.tools.cli import main; import sys; sys.exit(main(['doctor'"
    run = python(look + "]))", autogluon, clone)
    text = " ".join(done(run).split())
    assert "where Toto's code is" in text
    assert text.count("importable, not reached code that was tested") == 2
    assert "! apply() does not reach `inference and model`" in text
    assert "AutoGluon forecasts with a copy of Toto" in text
    run = python(WITHOUT_TOTO + look + ", '--json', '-']))", autogluon)
    report = json.loads(run.stdout)
    assert run.returncode == 1
    [carrier] = report["carriers"]
    assert (carrier["name"], carrier["reached"]) == (AUTOGLUON, False)
    assert {f["level"] for f in report["findings"] if "does not reach" in f["what"]} == {"problem"}
