"""Copies of Toto's code: which apply() patches, whenever they come, and which it leaves alone."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import forked
import pytest
import toto
from carrier_cases import AUTOGLUON, CLONE, NAMESPACE

from toto_compile_patch import carriers
from toto_compile_patch.tested_code import FINGERPRINTS

HERE = Path(__file__).parent
INSTALLED = Path(toto.__file__).parent

alone = pytest.mark.skipif(
    importlib.util.find_spec("autogluon") is not None,
    reason="AutoGluon is installed, whose copy of Toto would be named as well",
)

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


@pytest.fixture
def folders(clone: Path, namespace: Path, autogluon: Path) -> dict[str, Path]:
    """Of each carrier but the installed one, the folder from which it is imported."""
    return {CLONE: clone, NAMESPACE: namespace, AUTOGLUON: autogluon}


def edit(folder: Path) -> None:
    """Make a carrier a fork: one of its methods is other code."""
    [file] = folder.rglob("rope.py")
    text = file.read_text()
    changed = re.sub(r"(def get_scale\(.*?\):\n)", r"\1        self.other = 0\n", text, flags=re.S)
    assert changed != text
    file.write_text(changed)


EITHER_ORDER = """
import sys, warnings
from carrier_cases import Carrier, check_equal, check_same
import toto_compile_patch as p

warnings.simplefilter("error", p.UnreachedCarrierWarning)

name, order = sys.argv[1:]
if order == "apply, import":
    p.apply(rng="upstream", fallback="error")
    assert [c.reached for c in p.status().carriers if c.name == name] == [True]
carrier = Carrier(name)
p.revert()
before, upstream = carrier.held(), carrier.forecasts()
p.apply(rng="upstream", fallback="error")
assert p.is_applied(), p.status()
states = {row.name: row.state for row in p.status() if row.carrier == name}
assert states.pop("compile_method") == ("nothing to patch" if "autogluon" in name else "applied")
assert set(states.values()) == {"applied"} and len(states) == 4, states
patched = carrier.forecasts()
assert p.last_path().taken == "fast"
check_equal(upstream, patched)
p.revert()
assert not p.is_applied()
check_same(before, carrier.held())
check_equal(upstream, carrier.forecasts())
"""


@pytest.mark.parametrize(
    ("name", "with_toto", "order"),
    [
        (CLONE, True, "import, apply"),
        (AUTOGLUON, True, "apply, import"),
        (NAMESPACE, False, "apply, import"),
        *(
            pytest.param(*others, marks=pytest.mark.slow)
            for others in (
                (CLONE, True, "apply, import"),
                (AUTOGLUON, True, "import, apply"),
                (AUTOGLUON, False, "apply, import"),
                (AUTOGLUON, False, "import, apply"),
                (NAMESPACE, False, "import, apply"),
            )
        ),
    ],
)
def test_carriers_are_patched_in_either_order(
    folders: dict[str, Path], name: str, order: str, with_toto: bool
) -> None:
    code = EITHER_ORDER if with_toto else WITHOUT_TOTO + EITHER_ORDER
    done(forked.python(code, folders[name], HERE, arguments=(name, order)))


AT_ITS_IMPORT = """
import torch
from carrier_cases import AUTOGLUON, Carrier
import toto_compile_patch as p

p.apply(fallback="error")
toto = Carrier("toto")
toto.forecasts()
theirs = Carrier(AUTOGLUON)
assert p.last_path().taken == "fast"
for carrier in (theirs, toto, theirs):
    p.apply(fallback="error")
    carrier.forecasts()
# What one carrier's place replaced is not another's.
models = [carrier.forecaster.model for carrier in (theirs, toto)]
kinds = {type(model.allocate_kv_cache(1, 3, 64, "cpu", torch.float32)) for model in models}
assert len(kinds) == 2, kinds
p.apply(carriers="autogluon", fallback="error")
assert p.is_applied()
states = {(r.carrier, r.state) for r in p.status()}
assert states == {("toto", "not applied"), (AUTOGLUON, "applied"), (AUTOGLUON, "nothing to patch")}
"""


def test_two_carriers_in_one_process(autogluon: Path) -> None:
    done(forked.python(AT_ITS_IMPORT, autogluon, HERE))


NARROWED = """
import os, sys, warnings
from carrier_cases import AUTOGLUON, Carrier
import toto_compile_patch as p

warnings.simplefilter("error", p.UnreachedCarrierWarning)

os.environ["TOTO_COMPILE_PATCH_CARRIERS"] = "AutoGluon"
p.apply()
assert "toto" not in sys.modules
[one] = [c for c in p.status().carriers if c.name == "toto"]
assert not one.reached and "leaves it out" in one.advice
Carrier("toto").forecasts()
assert p.last_path().taken == "unreached"
theirs = Carrier(AUTOGLUON)
theirs.forecasts()
assert p.last_path().taken == "fast" and p.is_applied()
p.apply(carriers=["toto"])
assert {row.state for row in p.status() if row.carrier == AUTOGLUON} == {
    "not applied", "nothing to patch"
}
wrong_ones = {"tutu": ValueError, 3: TypeError, (None,): TypeError, "clone": p.TotoNotFoundError}
for wrong, kind in wrong_ones.items():
    try:
        p.apply(carriers=wrong)
    except kind as error:
        assert "carrier" in str(error)
    else:
        raise SystemExit("apply() went through")
"""


def test_carriers_are_chosen(autogluon: Path) -> None:
    done(forked.python(NARROWED, autogluon, HERE))


FORK = """
import sys, warnings
from carrier_cases import Carrier
import toto_compile_patch as p

warnings.simplefilter("default", p.UnreachedCarrierWarning)
name, order = sys.argv[1:]
if order == "apply, import":
    p.apply()
    assert p.is_applied()
fork = Carrier(name)
before = fork.held()
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    p.apply()
    p.apply()
said = [w for w in caught if w.category is p.UnreachedCarrierWarning]
assert len(said) == (order == "import, apply"), said
[other] = [c for c in p.status().carriers if not c.reached]
print(other.name, other.state, other.code, sep="|")
fork.forecasts()
assert p.last_path().taken == "unreached"
assert p.is_applied()
p.revert()
"""


@pytest.mark.slow
@pytest.mark.parametrize("order", ["import, apply", "apply, import"])
def test_a_fork_of_a_clone_is_named_and_left_alone(clone: Path, order: str) -> None:
    edit(clone)
    run = forked.python(FORK, clone, HERE, arguments=(CLONE, order))
    differs = "differs in TimeAwareRotaryEmbedding.get_scale"
    assert done(run).strip() == f"{CLONE}|loaded, not reached|{differs}"
    assert run.stderr.count("UnreachedCarrierWarning: ") == (order == "apply, import")


MISFIT = """
import sys, warnings
from carrier_cases import AUTOGLUON, Carrier
import toto_compile_patch as p

warnings.simplefilter("default", p.UnreachedCarrierWarning)
p.apply()
misfit = Carrier(AUTOGLUON)
assert not p.is_applied()
states = {row.name: row.state for row in p.status() if row.carrier == AUTOGLUON}
assert states["fast_decode"] == "unavailable", states
assert "applied" not in states.values(), states
assert {row.state for row in p.status() if row.carrier == "toto"} == {"applied"}
misfit.forecasts()
Carrier("toto").forecasts()
assert p.last_path().taken == "fast"
held = misfit.held()
p.revert()
# It is loaded now: apply() says that it does not fit, and nothing is applied.
try:
    p.apply()
except p.UnsupportedTotoError as error:
    assert "autogluon" in str(error) and "get_scale" in str(error), error
else:
    raise SystemExit("apply() went through")
assert {row.state for row in p.status() if row.carrier == "toto"} == {"not applied"}
p.apply(strict=False)
states = {row.name: row.state for row in p.status() if row.carrier == AUTOGLUON}
assert states["kv_cache"] == "applied" and states["fast_decode"] == "unavailable", states
# No longer left alone as a whole.
[theirs] = [carrier for carrier in p.status().carriers if carrier.name == AUTOGLUON]
assert theirs.reached and not theirs.advice, theirs
p.revert()
"""


@pytest.mark.fault(
    injected="a copy of Toto that was not tested is imported",
    where="after apply()",
    observed="a warning in the log; its import goes on",
    afterwards="it is upstream's, whole; what stood stands",
)
def test_a_carrier_that_comes_later_and_does_not_fit(autogluon: Path) -> None:
    edit(autogluon)
    run = forked.python(MISFIT, autogluon, HERE)
    done(run)
    assert run.stderr.count("UnreachedCarrierWarning: ") == 1


AS_AN_ERROR = """
import os, warnings
from carrier_cases import CLONE, Carrier
import toto_compile_patch as p

Carrier(CLONE)
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


@pytest.mark.slow
@pytest.mark.fault(
    injected="warnings are errors",
    where="apply() beside a fork of Toto",
    observed="the warning is raised before anything changes",
    afterwards="nothing is applied",
)
def test_warnings_of_forks_that_are_errors(clone: Path) -> None:
    edit(clone)
    run = forked.python(AS_AN_ERROR, clone, HERE)
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


@alone
def test_where_a_fork_is_all_there_is(clone: Path) -> None:
    edit(clone)
    said, state = done(forked.python(WITHOUT_TOTO + NOT_INSTALLED, clone)).splitlines()
    assert "`inference and model`" in said
    assert "instead of importing from `inference` and `model`" in said
    differs = "differs in TimeAwareRotaryEmbedding.get_scale"
    assert state == f"inference and model|importable, not reached|{differs}"


@alone
@pytest.mark.slow
def test_where_toto_2_is_all_there_is(tmp_path: Path) -> None:
    nested = tmp_path / "toto2" / "toto2"
    nested.mkdir(parents=True)
    (nested / "__init__.py").touch()
    look = "from toto_compile_patch import carriers; print(carriers.found())"
    assert done(python(WITHOUT_TOTO + look, tmp_path)).strip() == "()"
    (tmp_path / "toto2" / "__init__.py").write_text("from .model import Toto2Model\n")
    (tmp_path / "toto2" / "model.py").write_text("class Toto2Model:\n    pass\n")
    for loaded in ("", "import toto2\n"):
        said, state = done(
            forked.python(WITHOUT_TOTO + loaded + NOT_INSTALLED, tmp_path)
        ).splitlines()
        assert "Toto 2.0 (toto-2) is another model, which this package does not patch" in said
        assert state.endswith("not reached|another model")


OTHER_TOTO = """
import toto_compile_patch as p
try:
    p.apply()
except p.UnsupportedTotoError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("instead", "says"),
    [
        ("import torch\ntorch.no_such_thing\n", "has no attribute 'no_such_thing'"),
        ("class TotoForecaster: ...\n", "the modules of toto have no TotoBackbone"),
    ],
)
def test_a_toto_that_is_none(instead: str, says: str, tmp_path: Path) -> None:
    for package in ("toto", "toto/inference", "toto/model"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
    (tmp_path / "toto" / "inference" / "forecaster.py").write_text(instead)
    (tmp_path / "toto" / "model" / "toto.py").write_text("class Toto: ...\n")
    said = done(forked.python(OTHER_TOTO, tmp_path))
    assert says in said
    assert "toto_compile_patch fingerprints` lists what differs" in said


@alone
@pytest.mark.slow
def test_toto_2_beside_toto_is_named_and_not_warned_of(tmp_path: Path) -> None:
    (tmp_path / "toto2").mkdir()
    (tmp_path / "toto2" / "__init__.py").write_text("from .model import Toto2Model\n")
    (tmp_path / "toto2" / "model.py").write_text("class Toto2Model:\n    pass\n")
    code = """
    import toto2
    import toto_compile_patch as p
    p.apply()
    print(sorted((c.name, c.state) for c in p.status().carriers), p.last_path().taken)
    """
    run = forked.python(code, tmp_path)
    carriers_found = [("toto", "loaded, reached"), ("toto2", "loaded, not reached")]
    assert done(run).strip() == f"{carriers_found} unreached"
    assert "UnreachedCarrierWarning" not in run.stderr


@alone
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


@alone
@pytest.mark.slow
@pytest.mark.fault(
    injected="Toto's modules are deleted and imported anew",
    where="while patched",
    observed="UnreachedCarrierWarning; last_path() says unreached",
    afterwards="the old classes stay patched",
)
def test_a_toto_that_is_imported_anew_is_not_reached() -> None:
    code = """
    import sys, warnings
    import toto_compile_patch as p
    warnings.simplefilter("default", p.UnreachedCarrierWarning)
    p.apply()
    assert p.last_path() is None and [c.reached for c in p.status().carriers] == [True]
    for name in [name for name in sys.modules if name.split(".")[0] == "toto"]:
        del sys.modules[name]
    import toto.inference.forecaster
    assert p.last_path().taken == "unreached"
    assert [c.name for c in p.status().carriers if not c.reached] == ["toto"]
    p.apply()
    """
    run = forked.python(code)
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


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "doctor"])
def test_commands_say_what_a_script_forecasts_with(
    command: str, clone: Path, tmp_path: Path
) -> None:
    # As people run a clone: from its inner folder, with a script that lies there.
    edit(clone)
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


@alone
@pytest.mark.slow
def test_doctor_lists_them(clone: Path, autogluon: Path) -> None:
    look = "from toto_compile_patch.tools.cli import main; import sys; sys.exit(main(['doctor'"
    edit(clone)
    run = python(look + "]))", autogluon, clone)
    text = " ".join(done(run).split())
    assert "where Toto's code is" in text
    assert "importable, reached code that was tested" in text
    assert "importable, not reached differs in TimeAwareRotaryEmbedding.get_scale" in text
    assert "! apply() does not reach `inference and model`" in text
    run = python(WITHOUT_TOTO + look + ", '--json', '-']))", clone)
    report = json.loads(run.stdout)
    assert run.returncode == 1
    [carrier] = report["carriers"]
    assert (carrier["name"], carrier["reached"]) == (CLONE, False)
    assert {f["level"] for f in report["findings"] if "does not reach" in f["what"]} == {"problem"}


DOCTOR = """\
sys.may_import = True
from toto_compile_patch.tools.cli import main
sys.exit(main(["doctor", "--json", "-"]))
"""


@pytest.mark.slow
def test_the_doctor_forecasts_with_what_is_here(autogluon: Path) -> None:
    run = python(WITHOUT_TOTO + DOCTOR, autogluon)
    found = json.loads(run.stdout)
    [trial] = found["trials"]
    assert trial["path"]["taken"] == "fast", trial
    assert found["healthy"] == (run.returncode == 0)
    assert found["healthy"], found["findings"]


def test_the_doctor_names_a_carrier_that_cannot_be_imported(autogluon: Path) -> None:
    run = python(WITHOUT_TOTO + DOCTOR.replace("sys.may_import = True", ""), autogluon)
    found = json.loads(run.stdout)
    assert run.returncode == 1
    assert "SystemExit: heavy" in found["last_word"]
    assert "Traceback" not in run.stderr
