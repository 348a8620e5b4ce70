"""``ab``: the user's series forecast by upstream's code and patched, side by side."""

from toto_compile_patch.tools.ab.compare import run

__all__ = ["run"]
