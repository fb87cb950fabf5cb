"""Runs the notebooks of `examples/` whole, each in a folder of its own, and keeps their outputs: `make notebooks`.

    python tests/run_notebooks.py [--data_dir ml-100k.zip] [PART OF A NAME ...]

Progress bars and logs are not kept, nor is the data folder in the notebook that needs one.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"
DATA = "DATA_DIR = None"

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("names", nargs="*", help="parts of the names of notebooks; all of them when not given")
parser.add_argument("--data_dir", help="raw files of MovieLens-100K; downloaded when not given")
args = parser.parse_args()
os.environ["TQDM_DISABLE"] = "1"
os.environ["PYTHONWARNINGS"] = "ignore"
for path in sorted(EXAMPLES.glob("*.ipynb")):
    if args.names and not any(name in path.name for name in args.names):
        continue
    notebook, started = nbformat.read(path, 4), time.perf_counter()
    sources = [cell.source for cell in notebook.cells]
    with tempfile.TemporaryDirectory() as folder:
        if args.data_dir:
            for cell in notebook.cells:
                cell.source = cell.source.replace(DATA, f"DATA_DIR = {str(Path(args.data_dir).resolve())!r}")
        NotebookClient(
            notebook, resources={"metadata": {"path": folder}}, timeout=7200, coalesce_streams=True
        ).execute()
    for cell, source in zip(notebook.cells, sources):
        cell.source = source
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [one for one in cell.outputs if one.get("name") != "stderr"]
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - started:.0f} seconds")
