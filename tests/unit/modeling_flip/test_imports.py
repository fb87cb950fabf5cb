"""What a checkpoint carries can be imported where only torch, transformers and numpy are installed, and transformers
finds every file of it."""

import ast
import sys
from pathlib import Path

import pytest

from flip_ctr import modeling_flip

FOLDER = Path(modeling_flip.__file__).parent
FILES = sorted(path for path in FOLDER.glob("*.py") if path.stem != "__init__")
LIBRARIES = {"torch", "transformers", "numpy"}


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """Every import of a file, those inside functions and behind conditions too."""
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_imports_its_siblings_and_three_libraries(path):
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            # `from .name import …`: the only form that transformers' copying of a checkpoint's code follows
            assert node.level == 1 and node.module and "." not in node.module, ast.unparse(node)
            assert (FOLDER / f"{node.module}.py").is_file(), ast.unparse(node)
            continue
        names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        for name in names:
            top = name.split(".")[0]
            assert top in LIBRARIES | sys.stdlib_module_names, f"{path.name}, line {node.lineno}: {ast.unparse(node)}"


def test_the_folder_is_flat():
    """A checkpoint is one folder: code of a sub-folder would not travel."""
    assert not list(FOLDER.glob("*/*.py"))


@pytest.mark.parametrize("entry", ["modeling_flip", "processing_flip", "feature_extraction_flip", "pipeline_flip"])
def test_an_entry_module_imports_every_file_that_it_reaches(entry):
    """transformers before 5.9 copies what an entry module itself imports, and no further."""
    direct, reached, left = set(), set(), [entry]
    while left:
        name = left.pop()
        found = {
            node.module for node in imports(FOLDER / f"{name}.py") if isinstance(node, ast.ImportFrom) and node.level
        }
        direct = direct or found
        left += found - reached
        reached |= found
    assert direct == reached - {entry}


def test_the_model_brings_the_whole_folder():
    """The model's module is the one through which a folder's code is found, each file on a line of its own."""
    lines = (FOLDER / "modeling_flip.py").read_text().splitlines()
    for path in FILES:
        if path.stem != "modeling_flip":
            assert sum(line.startswith(f"from .{path.stem} import ") for line in lines) == 1, path.name
