"""The programs that ship with safemerge, registered on import."""

from safemerge.config.program import register
from safemerge.generation.program import GENERATE
from safemerge.optimize.program import OPTIMIZE
from safemerge.robustness.program import ROBUSTNESS

for _program in (OPTIMIZE, GENERATE, ROBUSTNESS):
    register(_program)
