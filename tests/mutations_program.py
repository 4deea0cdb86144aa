"""Run by test_mutations: breaks lines of a copy of the package, one at a time, and runs tests on it.

Reads [objective, tests, file, right, wrong] of each on stdin, prints pytest's exit statuses, null for a line
that is not there once. The libraries are imported once; each
run is a fork of that process, which then imports the copy.
"""

import contextlib
import json
import os
import sys
from pathlib import Path

import datasets  # noqa: F401
import open_clip  # noqa: F401
import pytest
import timm  # noqa: F401
import torch
import transformers  # noqa: F401

copy, root = Path(sys.argv[1]), Path(__file__).parent.parent
torch.set_num_threads(1)
statuses = []
for objective, tests, file, right, wrong in json.load(sys.stdin):
    path = copy / "crossmodal" / file if file else None
    whole = path.read_text(encoding="utf-8") if path else ""
    if path and whole.count(right) != 1:
        statuses.append(None)
        continue
    if path:
        path.write_text(whole.replace(right, wrong), encoding="utf-8")
    child = os.fork()
    if child == 0:
        sys.path.insert(0, str(copy))
        import crossmodal  # before pytest, which looks for it beside the tests

        assert Path(crossmodal.__file__).is_relative_to(copy)
        with Path(os.devnull).open("w") as quiet, contextlib.redirect_stdout(quiet):
            status = pytest.main(["-x", "-q", "-p", "no:xdist", str(root / "tests" / "objectives" / f"test_{objective}.py"), "-k", tests])
        os._exit(status)
    statuses.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    if path:
        path.write_text(whole, encoding="utf-8")
print(json.dumps(statuses))
