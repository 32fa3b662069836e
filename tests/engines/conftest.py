"""Settings of vLLM, and the students that it is asked about.

`make test-engines` runs this folder in an environment of its own; it reads no other conftest.
"""

import importlib.util
import os
from pathlib import Path

import pytest

# Before anything imports vLLM: one process, so that its tensors can be read; no thread bound to a
# processor; 16-bit activations also where the processor would multiply 8-bit ones.
SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_INT4_W4A8": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}
for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)


def pytest_collection_modifyitems(items):
    """Without vLLM nothing here can run."""
    if importlib.util.find_spec("vllm") is None:
        reason = pytest.mark.skip(reason="vllm is not installed here: make test-engines")
        for item in items:
            if Path(__file__).parent in item.path.parents:
                item.add_marker(reason)


@pytest.fixture(scope="session")
def students(tmp_path_factory) -> Path:
    """The folder of the trained students; ENGINES_STUDENTS names one to keep them in."""
    from students import make_students

    kept = os.environ.get("ENGINES_STUDENTS")
    return make_students(Path(kept) if kept else tmp_path_factory.mktemp("students"))
