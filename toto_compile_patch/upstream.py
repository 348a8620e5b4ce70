"""What this package knows of Toto's code: the modules and classes of each carrier that is loaded.

Imports torch, and no Toto by its name: ``load`` is told where the code lives.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch

from toto_compile_patch.carriers import AUTOGLUON, KNOWN, TOTO, place_of
from toto_compile_patch.errors import UnsupportedTotoError
from toto_compile_patch.fingerprint import fingerprint
from toto_compile_patch.locks import Lock
from toto_compile_patch.tested_code import HOW_TO_COMPARE, METHODS_OF_ATTENTION

TESTED_VERSIONS = "toto-ts 0.1.3, 0.1.4 and 0.2.0, and AutoGluon 1.5 and 1.6"

MISSING: Any = object()
"""Stands for an attribute that its owner inherits or lacks."""

BYPASSED_METHODS_OF_FORECASTER = (
    "create_affine_transformed",
    "assert_ev_compatibility",
    "round_ft_ev",
)
"""What a subclass of ``TotoForecaster`` may override. The last two came with toto-ts 0.2.0."""

_BYPASSED_METHODS = {
    "TotoBackbone": ("forward", "backbone", "allocate_kv_cache"),
    "Transformer": ("forward", "_get_mask"),
    "TransformerLayer": ("forward",),
    "BaseMultiheadAttention": METHODS_OF_ATTENTION,
    "TimeWiseMultiheadAttention": METHODS_OF_ATTENTION,
    "SpaceWiseMultiheadAttention": METHODS_OF_ATTENTION,
    "TimeAwareRotaryEmbedding": ("rotate_queries_and_keys", "get_scale", "forward", "get_seq_pos"),
    "RMSNorm": ("forward",),
    "SwiGLU": ("forward",),
    "PatchEmbedding": ("forward", "_patchify"),
    "MixtureOfStudentTsOutput": ("forward",),
    "StudentTOutput": ("forward",),
    "StdMeanScaler": ("__call__",),
    "CausalStdMeanScaler": ("__call__",),
    "CausalPatchStdMeanScaler": ("__call__",),
}


_FROM_ELSEWHERE = (
    ("BaseMultiheadAttention", "scaled_dot_product_attention", "torch"),
    ("BaseMultiheadAttention", "memory_efficient_attention", "xformers"),
    ("RMSNorm", "rms_norm", "xformers"),
    ("TimeAwareRotaryEmbedding", "apply_rotary_emb", "rotary_embedding_torch"),
    ("Transformer", "make_batched_block_mask", ""),
    ("TotoForecaster", "AffineTransformed", "gluonts"),
    ("StudentTOutput", "StudentT", "gluonts"),
)
"""What ``decode`` does in its own way and a class's module imports: its name there, and the package
that defines it, if the carrier does not."""

_INHERITED_FROM_ELSEWHERE = (
    ("TimeAwareRotaryEmbedding", "forward", "rotary_embedding_torch"),
    ("TimeAwareRotaryEmbedding", "get_seq_pos", "rotary_embedding_torch"),
)
"""Likewise, what a class inherits."""

_FUNCTIONS_OF_TORCH = ("linear", "silu", "softmax", "softplus")
"""Likewise, what upstream's code and torch's modules take from ``torch.nn.functional`` at each
call, where others may replace it, to multiply in fewer bits say."""


@dataclass(frozen=True, eq=False)
class TotoCode:
    """The classes of one carrier: a copy of Toto's code that is loaded.

    Attributes:
        carrier: its name, as ``carriers`` has it.
        modules: of its code, by their names.
        Toto: None where the carrier has no such class; so with all that follow it here.
    """

    carrier: str
    modules: dict[str, ModuleType]
    TotoForecaster: Any
    TotoBackbone: Any
    Transformer: Any
    TransformerLayer: Any
    BaseMultiheadAttention: Any
    TimeWiseMultiheadAttention: Any
    SpaceWiseMultiheadAttention: Any
    KVCache: Any
    RMSNorm: Any
    SwiGLU: Any
    PatchEmbedding: Any
    TimeAwareRotaryEmbedding: Any
    CausalPatchStdMeanScaler: Any
    StudentTOutput: Any
    MixtureOfStudentTsOutput: Any
    MaskedTimeseries: Any
    is_extreme_value: Any
    Toto: Any = None
    StdMeanScaler: Any = None
    CausalStdMeanScaler: Any = None
    Fusion: Any = None

    def classes(self) -> Iterator[tuple[str, type]]:
        """Its classes, by their names in toto-ts."""
        for one in fields(self):
            found = getattr(self, one.name)
            if isinstance(found, type):
                yield one.name, found

    def module_of(self, kind: type) -> ModuleType:
        """The module that defines one of its classes."""
        # Where somebody put a class of his own there, that is no module of the carrier's.
        return self.modules.get(kind.__module__) or sys.modules[kind.__module__]

    def modules_with_kv_cache(self) -> tuple[ModuleType, ...]:
        """The modules that bind the name ``KVCache``: those that define, construct and annotate."""
        return tuple(module for module in self.modules.values() if "KVCache" in vars(module))

    @cached_property
    def bypassed(self) -> tuple[tuple[Any, str], ...]:
        """What ``decode`` does in its own way, as owner and attribute; it stands aside where
        somebody has replaced any of it."""
        of_classes = tuple(
            (owner, method)
            for name, methods in _BYPASSED_METHODS.items()
            if (owner := getattr(self, name)) is not None
            for method in methods
        )
        return (
            *of_classes,
            (self.module_of(self.CausalPatchStdMeanScaler), "compute_causal_statistics"),
            (self.module_of(self.TotoForecaster), "replace_extreme_values"),
            (self.module_of(self.TotoBackbone), "KVCache"),
            (self.TotoForecaster, "create_affine_transformed"),
        )

    @cached_property
    def from_elsewhere(self) -> tuple[tuple[Any, str, str], ...]:
        """What ``decode`` does in its own way and another package defines: owner, attribute, and
        that package, empty where the carrier itself does."""
        modules = ((self.module_of(getattr(self, one)), *rest) for one, *rest in _FROM_ELSEWHERE)
        classes = ((getattr(self, one), *rest) for one, *rest in _INHERITED_FROM_ELSEWHERE)
        functions = ((torch.nn.functional, name, "torch") for name in _FUNCTIONS_OF_TORCH)
        every = (*modules, *classes, *functions)
        return tuple((one, name, home) for one, name, home in every if hasattr(one, name))

    def is_from(self, home: str, name: str, occupant: Any) -> bool:
        """Whether a function or class is defined by a package or by this carrier, by a name.

        Whoever wraps a function makes it say what the original says of itself, but for where its
        code is.
        """
        while _is_torchs_decorator(occupant):
            occupant = occupant.__wrapped__
        if getattr(occupant, "__name__", None) != name:
            return False
        if isinstance(occupant, BuiltinFunctionType):
            return home == str(occupant.__module__).partition(".")[0]
        code = getattr(occupant, "__globals__", {}).get("__name__")
        place = str(occupant.__module__ if isinstance(occupant, type) else code)
        return place in self.modules or (home != "" and place.partition(".")[0] == home)


_lock = Lock()
_codes: dict[str, TotoCode] = {}
_names: dict[type, str] = {}
_owners: dict[type, TotoCode] = {}


def load(carrier: str) -> TotoCode:
    """Import a carrier, if need be, and find its classes; the same object each time.

    Args:
        carrier: its name, as ``carriers`` has it.

    Raises:
        ImportError: its modules cannot be imported.
        UnsupportedTotoError: they lack a class that is relied on.
    """
    if carrier in _codes:
        return _codes[carrier]
    place = place_of(carrier)
    for name in place.imported:
        importlib.import_module(name)
    # Not held while anything is imported. Two threads that find the same classes would otherwise
    # make two objects of one carrier.
    with _lock.held:
        if carrier not in _codes:
            every = sys.modules.copy().items()
            modules = {name: module for name, module in every if place.holds(name)}
            code = TotoCode(carrier, modules, **_found_in(modules, carrier))
            for name, kind in code.classes():
                _names[kind], _owners[kind] = name, code
            _codes[carrier] = code
        return _codes[carrier]


def codes() -> tuple[TotoCode, ...]:
    """The carriers that were loaded, in that order."""
    return tuple(_codes.values())


def is_loaded(carrier: str) -> bool:
    """Whether a carrier of this name was loaded."""
    return carrier in _codes


def is_of_loaded_code(kind: type) -> bool:
    """Whether a class is one of those that were found when its carrier was loaded."""
    return kind in _owners


def leave_alone(carrier: str, why: str) -> None:
    """Note that a carrier stays unpatched, and what to do; an empty text: that it does not."""
    _left_alone[carrier] = why


def why_left_alone(carrier: str) -> str:
    """Why a carrier stays unpatched; empty where it does not."""
    return _left_alone.get(carrier, "")


_left_alone: dict[str, str] = {}


def kind_of(thing: Any) -> str:
    """The name of an object's class in toto-ts, whichever carrier it is of; else empty."""
    return _names.get(type(thing), "")


def code_of(thing: Any) -> TotoCode | None:
    """The carrier that an object's class belongs to or is derived from; None where to none."""
    for base in type(thing).__mro__:
        if base in _owners:
            return _owners[base]
    return None


def _found_in(modules: dict[str, ModuleType], carrier: str) -> dict[str, Any]:
    """The classes, by their names in toto-ts, and what stands there in place of one.

    Raises:
        UnsupportedTotoError: one is missing that each carrier needs.
    """
    found: dict[str, Any] = {}
    for one in fields(TotoCode)[2:]:
        bound = [vars(module)[one.name] for module in modules.values() if one.name in vars(module)]
        own = [thing for thing in bound if getattr(thing, "__module__", None) in modules]
        if bound:
            found[one.name] = (own or bound)[0]
        elif one.default is not None:
            raise UnsupportedTotoError(
                f"the modules of {carrier} have no {one.name}: this is no Toto that was tested. "
                f"{HOW_TO_COMPARE}."
            )
    return found


_NO_GRAD = torch.no_grad()(lambda: None)
"""One function that ``torch.no_grad()`` decorates: the code of its wrapper tells all of them. From
torch 2.15 on, each wrapper has a code object of its own, equal to the others."""


def symbol(owner: Any, attribute: str) -> str:
    """Name an attribute of a class or module the way an import statement would reach it."""
    if isinstance(owner, type):
        return f"{owner.__module__}.{owner.__qualname__}.{attribute}"
    return f"{owner.__name__}.{attribute}"


def why_untested(owner: Any, attribute: str) -> str | None:
    """Say why the code that now stands at an attribute is not code that was tested, else None.

    An attribute that its owner merely inherits has nothing of its own to compare.
    """
    current = vars(owner).get(attribute, MISSING)
    if current is MISSING:
        return None if hasattr(owner, attribute) else "it does not exist"
    name = current.__qualname__ if isinstance(current, type) else _qualified(owner, attribute)
    if fingerprint(_undecorated(current)) in KNOWN.get(name, ()):
        return None
    return f"it is {describe(current)}, whose source is not that of {TESTED_VERSIONS}"


def _qualified(owner: Any, attribute: str) -> str:
    """The name of an attribute within its module: carriers' modules have other names."""
    return f"{owner.__qualname__}.{attribute}" if isinstance(owner, type) else attribute


_own: dict[int, Any] = {}
_tested: dict[tuple[Any, str], tuple[Any, Any]] = {}
"""What was found at an attribute and is known, and the code that it then had."""


def remember_as_own(replacement: Any) -> None:
    """Remember a replacement as one of this package's."""
    _own[id(replacement)] = replacement


def why_unknown(owner: Any, attribute: str) -> str | None:
    """Say why the code at an attribute is neither tested code nor this package's, else None.

    Ours is known by identity: a wrapper that somebody put around it is not ours.
    """
    current = vars(owner).get(attribute, MISSING)
    if id(current) in _own:
        return None
    code = getattr(_undecorated(current), "__code__", None)
    found, its_code = _tested.get((owner, attribute), (None, None))
    if code is not None and found is current and its_code is code:
        return None
    reason = why_untested(owner, attribute)
    if reason is None and code is not None:
        _tested[owner, attribute] = current, code
    return reason


def is_replaced(code: TotoCode, owner: Any, attribute: str, home: str) -> bool:
    """Whether what is imported or inherited at a place is another one than it should be."""
    current = getattr(owner, attribute, None)
    if _from_home.get((owner, attribute)) is current:
        return False
    if not code.is_from(home, attribute, current):
        return True
    _from_home[owner, attribute] = current
    return False


_from_home: dict[tuple[Any, str], Any] = {}
"""What was found at a place and is the right one."""


def _undecorated(current: Any) -> Any:
    """The function in a static method, or that ``torch.no_grad()`` decorates."""
    if type(current) is staticmethod:
        return current.__func__
    if type(current) is FunctionType and _is_torchs_wrapper(current):
        return vars(current)["__wrapped__"]
    return current


def _is_torchs_decorator(occupant: Any) -> bool:
    """Whether a function is what torch, by ``autocast`` say, puts around another."""
    if not isinstance(occupant, FunctionType) or "__wrapped__" not in vars(occupant):
        return False
    return str(occupant.__globals__.get("__name__")).startswith("torch.")


def _is_torchs_wrapper(function: FunctionType) -> bool:
    """Whether a function is what ``torch.no_grad()`` puts around another."""
    is_of_its_module = function.__globals__ is _NO_GRAD.__globals__
    return is_of_its_module and function.__code__ == _NO_GRAD.__code__


def describe(occupant: Any) -> str:
    """Name an object that stands at a patched symbol, with the module that it comes from."""
    # functools.wraps and wrapt make a wrapper claim the module of what it wraps.
    author = getattr(occupant, "_self_wrapper", occupant)
    home = getattr(author, "__globals__", {}).get("__name__") or getattr(
        author, "__module__", type(occupant).__module__
    )
    name = getattr(author, "__qualname__", type(occupant).__qualname__)
    return f"{name} of module {home}"


def distribution(carrier: str = TOTO) -> str:
    """Name and version of the installed distribution that provides a carrier."""
    if carrier == AUTOGLUON:
        names = ["autogluon.timeseries"]
    else:
        top = carrier.partition(".")[0]
        names = importlib.metadata.packages_distributions().get(top, [carrier])
    found = []
    for name in dict.fromkeys(names):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"{name} (version unknown)")
    return ", ".join(found)
