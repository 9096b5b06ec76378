"""Loading of the checkout's scripts, which lie outside of any package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from tests.helpers.paths import ROOT


def load_script(path: str | Path) -> ModuleType:
    """Run a Python file and return it as a new module named after the file.

    The module is listed in ``sys.modules``, because dataclasses look themselves up there, and so
    does ``pickle`` when functions are sent to forked processes.

    Args:
        path: relative to the checkout, such as ``"tools/doctor.py"``, or absolute.
    """
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module
