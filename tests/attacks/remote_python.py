"""A warm Python that has transformers and torch, and neither this package nor the libraries that people may lack."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

MODULES = (
    "torch",
    "transformers",
    "transformers.pipelines",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "loading_routes",
)


@contextmanager
def remote_python(home: Path):
    """The server of forks, as [`warm_python.Process`] takes it.

    Args:
        home: where it keeps what the libraries keep, such as copies of code.
    """
    here = Path(__file__).parent
    environment = dict(os.environ) | {
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": f"{here.parent}{os.pathsep}{here}",
    }
    server = subprocess.Popen(
        [sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=home
    )
    try:
        yield SimpleNamespace(address=server.stdout.readline().strip())
    finally:
        server.stdin.close()
        server.wait()


if __name__ == "__main__":
    from remote_code import BLOCKED

    for name in BLOCKED:
        sys.modules[name] = None  # importing it fails from now on
    import warm_python

    warm = warm_python.Warm(MODULES, lambda: None)
    print(warm.address, flush=True)
    sys.stdin.read()
    warm.close()
