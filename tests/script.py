"""A script of data_scripts/ as a command, in this process: to start another one takes seconds."""

import io
import sys
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest


def run(module, *arguments) -> SimpleNamespace:
    """Exit code, output and error output of the script that was imported as ``module``."""
    words = [module.__file__, *map(str, arguments), *([] if "--help" in arguments else ["--no-progress"])]
    out, error, code = io.StringIO(), "", 0
    with redirect_stdout(out), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", words)
        try:
            module.common.start(module.prepare, module.Options, module.__doc__)
        except SystemExit as end:
            error, code = str(end.code), int(end.code not in (None, 0))
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=error)
