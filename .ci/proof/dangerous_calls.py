"""What in the package could run code that is not its own, or leave files that others read.

    python .ci/proof/dangerous_calls.py      list them; exit code 1 where one has no reason

Looks at the syntax tree of each file, and of the line that ``activate`` writes into an environment.
A name counts wherever it is mentioned, called or not, and by whatever name it was imported.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from itertools import accumulate
from pathlib import Path

import toto_compile_patch
from toto_compile_patch.tools import activate

PACKAGE = Path(toto_compile_patch.__file__).parent

RUNS_WHAT_IT_READS = (
    *("pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"),
    *("torch.load", "torch.hub", "torch.jit.load", "torch.package", "yaml", "jsonpickle"),
    *("pandas.read_pickle", "numpy.load", "numpy.fromfile", "ctypes", "code", "codeop"),
)
RUNS_A_PROGRAM = ("os.system", "os.popen", "os.exec*", "os.*spawn*", "os.startfile", "pty")
STARTS_A_PROCESS = ("subprocess", "asyncio.create_subprocess*")
RUNS_PYTHON = ("runpy", "importlib.import_module", "importlib.util.spec_from_file_location")
MAKES_FILES = ("tempfile", "os.chmod", "os.umask", "os.mkfifo")
NAMES = (*RUNS_WHAT_IT_READS, *RUNS_A_PROGRAM, *STARTS_A_PROCESS, *RUNS_PYTHON, *MAKES_FILES)
"""Modules and what is in them."""

SHARED_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")
BUILTINS = ("eval", "exec", "compile", "__import__")
METHODS = ("exec_module", "load_module", "recv", "chmod", "read_pickle", "to_pickle")
KEYWORDS = {"shell": True, "allow_pickle": True, "weights_only": False, "trust_remote_code": True}

OWN = "a module of this package, by a written name"
PRIVATE = "a folder of mode 0700 and of a random name, which goes with the block"
USERS_SCRIPT = "the script that the user names on the command line is what the command is to run"
REASONS = {
    ("api.py", "importlib.import_module"): OWN + ", and torch",
    ("import_hook.py", "exec_module"): "hands an import that the program itself makes on to the "
    "loader that Python has found for it",
    ("table.py", "importlib.import_module"): OWN,
    (
        "upstream.py",
        "importlib.import_module",
    ): "a module of Toto's, by a written name",
    ("tools/cli.py", "importlib.import_module"): OWN,
    ("tools/hook/sitecustomize.py", "exec_module"): "the package's import hook, by its own path",
    ("the line of activate", "exec"): "a text without anything of the user's: the package's path "
    "is all that is put into it, quoted",
    ("tools/run.py", "os.execve"): USERS_SCRIPT + ", by this very Python",
    ("tools/run.py", "subprocess.Popen"): USERS_SCRIPT + "; no shell",
    ("tools/doctor/script.py", "subprocess.run"): USERS_SCRIPT + ", by this very Python; no shell",
    ("tools/doctor/script.py", "tempfile.TemporaryDirectory"): PRIVATE,
    ("tools/doctor/run_watched.py", "runpy.run_path"): USERS_SCRIPT,
    ("tools/start.py", "tempfile.TemporaryDirectory"): PRIVATE,
    ("tools/turns.py", "tempfile.TemporaryDirectory"): PRIVATE,
    ("tools/workers.py", "tempfile.TemporaryDirectory"): PRIVATE,
    ("tools/workers.py", "recv"): "both ends of the pipe are this process's and its own child's",
}
"""Why what is found is no danger, by file and name."""


@dataclass(frozen=True)
class Mention:
    """Something that could be dangerous, where it stands, and why it is not ("": nothing known)."""

    file: str
    line: int
    what: str

    @property
    def reason(self) -> str:
        return REASONS.get((self.file, self.what), "")


@cache
def mentions() -> tuple[Mention, ...]:
    """All of the package."""
    files = ((str(file.relative_to(PACKAGE)), file) for file in sorted(PACKAGE.rglob("*.py")))
    sources = {name: file.read_text() for name, file in files}
    sources["the line of activate"] = activate._line()
    return tuple(found for name, text in sources.items() for found in mentions_in(name, text))


def mentions_in(file: str, text: str) -> Iterator[Mention]:
    """Those of one file, each line's once."""
    tree = ast.parse(text)
    imported = names_of_imports(tree)
    defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    found = {
        (node.lineno, what)
        for node in ast.walk(tree)
        if isinstance(node, ast.expr)
        for what in named(node, imported, defined)
    }
    yield from (Mention(file, line, what) for line, what in sorted(found))


def names_of_imports(tree: ast.Module) -> dict[str, str]:
    """What each name that an import binds stands for."""
    found: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                top = name.name.partition(".")[0]
                found[name.asname or top] = name.name if name.asname else top
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for name in node.names:
                found[name.asname or name.name] = f"{node.module}.{name.name}"
    return found


def named(node: ast.expr, imported: dict[str, str], defined: set[str]) -> Iterator[str]:
    """What is dangerous about an expression itself, not about its parts."""
    if isinstance(node, ast.Name) and node.id in BUILTINS and node.id not in {*imported, *defined}:
        yield node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from (folder for folder in SHARED_FOLDERS if node.value.startswith(folder))
    if isinstance(node, ast.Attribute) and node.attr in METHODS:
        yield node.attr
    if isinstance(node, ast.Name | ast.Attribute):
        name = dotted(node, imported)
        # A module alone is but the beginning of what it is asked for.
        if "." in name and is_dangerous(name):
            yield name
    if isinstance(node, ast.Call):
        for keyword in node.keywords:
            if keyword.arg in KEYWORDS and may_be(keyword.value, KEYWORDS[keyword.arg]):
                yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def may_be(node: ast.expr, value: object) -> bool:
    """Whether an argument is that value, or one that is known only when the program runs."""
    return node.value is value if isinstance(node, ast.Constant) else True


def is_dangerous(name: str, among: Sequence[str] = NAMES) -> bool:
    """Whether a dotted name, or what it is a part of, is among some."""
    wholes = list(accumulate(name.split("."), "{}.{}".format))
    return any(fnmatchcase(whole, one) for whole in wholes for one in among)


def dotted(node: ast.expr, imported: dict[str, str]) -> str:
    """``os.path.join``, of a name that was imported; empty for all else."""
    if isinstance(node, ast.Name):
        return imported.get(node.id, "")
    if isinstance(node, ast.Attribute) and (owner := dotted(node.value, imported)):
        return f"{owner}.{node.attr}"
    return ""


def table() -> str:
    """The mentions and their reasons, in Markdown."""
    rows = dict.fromkeys((found.file, found.what, found.reason) for found in mentions())
    lines = ["| where | what | why it is no danger |", "| --- | --- | --- |"]
    lines += [f"| {file} | `{what}` | {reason} |" for file, what, reason in rows]
    return "\n".join(lines)


def main() -> int:
    """List them; 1 where one has no reason."""
    found = mentions()
    for one in found:
        print(f"{one.file}:{one.line}: {one.what}: {one.reason or 'NO REASON IS KNOWN'}")
    return int(not all(one.reason for one in found))


if __name__ == "__main__":
    sys.exit(main())
