# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A user's own ID tower travels with a checkpoint, as all remote code does: its file is copied, and so are the files
that it imports relatively (`from .other import name`). `from .id_tower import IdTower` is how it names what it needs of
this package."""

import ast
import os
import shutil
import sys
from pathlib import Path

from transformers.utils import logging

from .configuration_flip import CUSTOM_ENTRY
from .id_tower import IdTower, is_built_in

logger = logging.get_logger(__name__)

PACKAGE = "flip_ctr"


def save_tower_code(tower: IdTower | None, folder: str) -> str | None:
    """Copies the code of a user's own tower into a checkpoint, beside an entry module that registers the tower before
    the models load.

    Returns the name of that module for `auto_map`; None where there is nothing to copy (no tower, or one of this
    package) and where the code cannot be copied (a tower of `__main__` or a notebook, imports that mean nothing
    elsewhere), which is logged.
    """
    if tower is None or is_built_in(type(tower)):
        return None
    try:
        files = _files_of(type(tower))
    except (ValueError, OSError, SyntaxError) as error:
        logger.warning(
            f"the checkpoint does not carry the code of the ID tower {type(tower).__name__}: {error}. It loads only "
            "where that tower is registered."
        )
        return None
    ours = Path(__file__).with_name("modeling_flip.py")
    lines = [f"from .{files[0].stem} import {type(tower).__name__}  # registers the tower"]
    # transformers before 5.9 copies what this file itself imports, and follows no imports of imports
    lines += [
        f"from .{module} import {name}" for path in (*files, ours) for module, name in _relative_imports(path).items()
    ]
    lines += ["from .modeling_flip import FlipForCTR, FlipForPretraining, FlipModel"]
    for path in files:
        if not os.path.exists(target := os.path.join(folder, path.name)) or not os.path.samefile(path, target):
            shutil.copy(path, target)
    Path(folder, f"{CUSTOM_ENTRY}.py").write_text("\n".join(dict.fromkeys(lines)) + "\n", encoding="utf-8")
    return CUSTOM_ENTRY


def package_modules() -> set[str]:
    """Names of the files that every checkpoint carries."""
    return set(_relative_imports(Path(__file__).with_name("modeling_flip.py"))) | {"modeling_flip"}


def _files_of(tower: type[IdTower]) -> list[Path]:
    """The file of a tower, and those beside it that it imports, directly or not.

    Raises:
        ValueError: there is no file, or an import means nothing in a checkpoint; the message says what to write.
    """
    path = getattr(sys.modules.get(tower.__module__), "__file__", None)
    if tower.__module__ == "__main__" or path is None:
        raise ValueError(f"it is defined in {tower.__module__}, which is no file that could be copied")
    ours = package_modules()
    files = [Path(path)]
    if files[0].stem in ours:
        raise ValueError(f"its file has the name of a file of this package, {files[0].name}")
    for file in files:  # grows while it is read
        for module in _relative_imports(file):
            beside = file.with_name(f"{module}.py")
            if module not in ours and beside not in files:
                files.append(beside)
    return files


def _relative_imports(path: Path) -> dict[str, str]:
    """The modules that a file imports from beside it, each with a name that it takes from there.

    Raises:
        ValueError: an import means nothing in a checkpoint.
    """
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        where = f"{path.name}, line {getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "level", 0):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [one.name for one in node.names]
            for name in names:
                if name.split(".")[0] == PACKAGE:
                    raise ValueError(
                        f"{where}: write `from .id_tower import …` instead of an import of {PACKAGE}, as all remote "
                        "code imports"
                    )
                if path.with_name(f"{name.split('.')[0]}.py").is_file():
                    raise ValueError(
                        f"{where}: write `from .{name.split('.')[0]} import …` for {name}, a file of yours"
                    )
        elif isinstance(node, ast.ImportFrom):
            if node.level > 1 or not node.module or "." in node.module:
                raise ValueError(f"{where}: only files beside it travel: write `from .name import …`")
            found.setdefault(node.module, node.names[0].name)
    return found
