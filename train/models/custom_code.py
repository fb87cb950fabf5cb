# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A user's own code, imported by the commands: what it registers (an ID tower, a PLM) is known from then on."""

import importlib
import os
import sys
from hashlib import blake2b
from pathlib import Path
from traceback import walk_tb
from types import ModuleType

from flip_ctr.modeling_flip.tower_code_flip import package_modules


def import_custom_code(names: list[str] | str | None) -> None:
    """Imports Python files, each once in a process.

    A file is imported as a part of a package that is its folder: it may import files beside it as `from .other import
    name`, which is how a checkpoint carries them, and is never mistaken for an installed module of the same name.

    Raises:
        ValueError: there is no such file, it is no Python file, or it fails when imported.
    """
    for name in [names] if isinstance(names, str) else names or []:
        name = os.path.expanduser(name)
        try:
            importlib.import_module(_module_of(name))
        except Exception as error:  # whatever the file does
            lines = (
                line
                for frame, line in walk_tb(error.__traceback__)
                if frame.f_code.co_filename == os.path.abspath(name)
            )
            where = next((f" (line {line})" for line in lines), "")
            raise ValueError(
                f"--custom_code {name}{where}: {type(error).__name__}: {error}{_hint(name, error)}"
            ) from error


def _module_of(path: str) -> str:
    """The name under which a file is imported."""
    file = Path(path).absolute()
    if not file.is_file():
        hint = f"; did you mean {path}.py?" if os.path.isfile(f"{path}.py") else ""
        raise FileNotFoundError(f"there is no such file{hint}")
    if file.suffix != ".py":
        raise ValueError("it is no Python file (*.py)")
    if not file.stem.isidentifier():
        raise ValueError("the file's name must be one that Python can import: letters, digits and _")
    if file.stem in package_modules():
        raise ValueError("it has the name of a file of this package, which a checkpoint has beside it; rename it")
    package = f"flip_ctr_custom_{blake2b(str(file.parent.resolve()).encode(), digest_size=6).hexdigest()}"
    if package not in sys.modules:
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = [str(file.parent)]
        for name in package_modules():  # the file imports `from .id_tower import …`, as in a checkpoint
            sys.modules[f"{package}.{name}"] = importlib.import_module(f"flip_ctr.modeling_flip.{name}")
    return f"{package}.{file.stem}"


def _hint(name: str, error: Exception) -> str:
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return ""
    beside = Path(name).with_name(f"{error.name}.py").is_file()
    return f". {error.name}.py lies beside it: write `from .{error.name} import …`" if beside else ""
