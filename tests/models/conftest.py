"""The fixtures of the comparison's tests: the same checkpoints, tasks and ways of running."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location(
    "comparison_fixtures", Path(__file__).parents[1] / "compare" / "conftest.py"
)
assert _SPEC is not None and _SPEC.loader is not None
_FIXTURES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_FIXTURES)

bert = _FIXTURES.bert
llama = _FIXTURES.llama
tasks = _FIXTURES.tasks
small = _FIXTURES.small
finished = _FIXTURES.finished
deltakit = _FIXTURES.deltakit
read = _FIXTURES.read
make = _FIXTURES.make
_own_place = _FIXTURES._own_place
_one_thread = _FIXTURES._one_thread
decoder = _FIXTURES.decoder
