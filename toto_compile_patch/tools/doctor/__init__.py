"""``doctor``: look at an environment, or at a script that runs in it, and say what is in the way.

Needs nothing but Python, so that it runs where something is broken; rich makes it prettier.
"""

from toto_compile_patch.tools.doctor.examine import run

__all__ = ["run"]
