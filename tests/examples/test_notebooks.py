"""The notebooks of `examples/` run, on small data; their outputs are those of whole runs (`make notebooks`)."""

import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny

from flip_ctr.data.datasets import synthetic

EXAMPLES = Path(__file__).parents[2] / "examples"
NOTEBOOKS = {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(EXAMPLES.glob("*.ipynb"))}
SHORT = 'max_train_samples=96, max_eval_samples=64, stages={"all": {"num_train_epochs": 1}}'
SMALL = synthetic.CatalogueSettings(users=40, items=60, rows=900)


ABSOLUTE = re.compile(r"""(?:^|[\s"'(=\[])/\w[\w.-]*/""")  # the start of a path of some machine


def texts_of(part, key: str = "") -> list[str]:
    """All texts of a notebook but the pictures."""
    if isinstance(part, dict):
        return [text for name, one in part.items() for text in texts_of(one, name)]
    if isinstance(part, list):
        return [text for one in part for text in texts_of(one, key)]
    return [part] if isinstance(part, str) and not key.startswith("image/") else []


def code_of(name: str) -> list[dict]:
    return [cell for cell in NOTEBOOKS[name]["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name, tmp_path, plm, monkeypatch):
    """Its cells in order, in a folder of their own, with a tiny PLM and little data in the place of the real ones."""
    tiny.write_raw_100k(tmp_path / "raw")
    replaced = {"DATA_DIR = None": 'DATA_DIR = "raw"', "max_minutes=MINUTES": SHORT}
    replaced |= {"sentence-transformers/all-MiniLM-L6-v2": str(plm)}
    generate = synthetic.generate_catalogue
    monkeypatch.setattr(synthetic, "generate_catalogue", lambda: generate(SMALL))
    if "IPython" not in sys.modules:
        display = ModuleType("IPython.display")
        display.Image = lambda path, width: path
        monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
        monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    try:
        for number, cell in enumerate(code_of(name)):
            code = "".join(cell["source"])
            for shown, small in replaced.items():
                code = code.replace(shown, small)
            exec(compile(code, f"{name}, cell {number}", "exec"), scope)
    finally:
        if "server" in scope:
            scope["server"].kill()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_outputs_are_kept_and_are_of_no_machine(name):
    counts = [cell["execution_count"] for cell in code_of(name)]
    assert counts == list(range(1, len(counts) + 1)), "the cells were run in order, once"
    for text in texts_of(NOTEBOOKS[name]):
        for word in ("Traceback", "Warning", "site-packages"):
            assert word not in text, text
        assert not ABSOLUTE.search(text), text


def test_links_between_notebooks_and_pages_lead_somewhere():
    for name, notebook in NOTEBOOKS.items():
        for cell in notebook["cells"]:
            for target in re.findall(r"\]\((?!http)([^)#]+)", "".join(cell["source"])):
                assert (EXAMPLES / target).is_file(), f"{name}: {target}"
