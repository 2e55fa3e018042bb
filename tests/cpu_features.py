"""Print the processor features numpy may be told not to use here, for ``NPY_DISABLE_CPU_FEATURES`` (see the
Makefile).

Only features that this machine has and numpy dispatches on can be disabled; naming any other draws a warning,
which would land in a notebook's output.
"""

from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

if __name__ == "__main__":
    print(" ".join(name for name in __cpu_dispatch__ if __cpu_features__.get(name)))
