# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A command line to [`Options`]: flags over `--config FILE.yaml` over `--preset NAME` over the defaults."""

import argparse
import dataclasses
import os
import re
import sys
import textwrap
import traceback
from typing import Any, NoReturn, TypeVar, get_args

import yaml

from flip_ctr.train.options import (
    did_you_mean,
    is_list,
    nearest,
    option_types,
    read_value,
    shown_default,
    simple_type,
)

Arguments = TypeVar("Arguments")

WIDTH, COLUMN = 100, 34  # of --help, and where its texts begin
EVERYWHERE = "Of every command"
NUMBER = re.compile(r"-\.?\d")


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=COLUMN, width=WIDTH)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        """`N ...` for a list, nothing for a switch."""
        return f"{action.metavar} ..." if action.nargs == "+" else str(action.metavar or "")


class OptionParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without all options before it, and which option may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists the options)\n")

    def names(self) -> list[str]:
        return [name[2:] for action in self._actions for name in action.option_strings if name.startswith("--")]


def parse_arguments(
    arguments: type[Arguments],
    argv: list[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
    epilog: str | None = None,
    more_options: tuple[str, ...] = (),
) -> Arguments:
    """Reads a dataclass of options from flags over `--config FILE.yaml` over `--preset NAME` over the defaults.

    Args:
        more_options: names of options that are read elsewhere, for what is said of a mistyped one.

    Exits with a message that names the flag, key or file where a value is wrong or a name unknown.
    """
    argv = [_with_underscores(part) for part in (sys.argv[1:] if argv is None else argv)]
    parser = make_parser(arguments, prog, description, epilog)
    for part in argv:
        if part.startswith("-") and not NUMBER.match(part):
            name = part.split("=")[0]
            if name not in ("-h", *(f"--{one}" for one in parser.names())):
                near = nearest(name.lstrip("-"), [*parser.names(), *more_options])
                parser.error(f"there is no option {name}{f'; did you mean --{near}?' if near else ''}")
    flags = vars(parser.parse_args(argv))
    debug, config = flags.pop("debug", False), flags.pop("config", None)
    try:
        values = (_read_yaml(arguments, parser, config) if config is not None else {}) | flags
        missing = [
            f"--{one.name}"
            for one in dataclasses.fields(arguments)  # type: ignore[arg-type]
            if one.default is dataclasses.MISSING
            and one.default_factory is dataclasses.MISSING
            and one.name not in values
        ]
        if missing:
            raise ValueError(f"{' and '.join(missing)} must be given")
        return arguments(**values)
    except ValueError as error:
        if debug:
            traceback.print_exc()
        parser.error(str(error))


def _with_underscores(part: str) -> str:
    """`--learning-rate=1e-3` as `--learning_rate=1e-3`."""
    name, equals, value = part.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if part.startswith("--") else part


def make_parser(
    arguments: type, prog: str | None = None, description: str | None = None, epilog: str | None = None
) -> OptionParser:
    """A parser whose options are the fields of a dataclass, in its groups; it leaves out what is not given."""
    fields, kinds = dataclasses.fields(arguments), option_types(arguments)
    needed = [one for one in fields if one.default is one.default_factory is dataclasses.MISSING]
    usage = [prog or "%(prog)s", *(f"--{one.name} {_placeholder(one, kinds[one.name])}" for one in needed), "[OPTIONS]"]
    parser = OptionParser(
        prog=prog,
        usage=textwrap.fill(" ".join(usage), WIDTH - len("usage: "), subsequent_indent="    "),
        description=textwrap.fill(description or "", WIDTH),
        epilog=textwrap.fill(epilog or "", WIDTH),
        formatter_class=HelpFormatter,
        allow_abbrev=False,
        add_help=False,
        argument_default=argparse.SUPPRESS,
    )
    # the group of an option is the class that has it first; the command's own class may say more of it
    owners: dict[str, type] = {}
    for owner in reversed(arguments.__mro__):
        for name in vars(owner).get("__annotations__", {}):
            owners.setdefault(name, owner)
    ordered = sorted(fields, key=lambda one: (owners[one.name] is not arguments, getattr(owners[one.name], "place", 0)))
    groups: dict[str, Any] = {}
    for one in ordered:
        title = vars(owners[one.name]).get("title", "Options")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        _add_option(groups[title], arguments, one, kinds[one.name], one in needed)
    group = parser.add_argument_group(EVERYWHERE)
    group.add_argument("--config", metavar="FILE", help="YAML file with any of these options; flags win over it")
    group.add_argument("--debug", action="store_true", help="show where in the code an error arose, too")
    group.add_argument("-h", "--help", action="help", help="show this text")
    return parser


def _add_option(group: Any, arguments: type, one: dataclasses.Field, kind: Any, needed: bool) -> None:
    shown = shown_default(arguments, one)
    text = one.metadata["help"] + (" (required)" if needed else f" ({shown})" if shown else "")
    more: dict[str, Any] = {"metavar": _placeholder(one, kind)}
    if is_list(kind):
        more["nargs"] = one.metadata.get("length", "+")
    elif simple_type(kind) is bool:
        more = {"nargs": "?", "const": True, "metavar": ""}
    group.add_argument(f"--{one.name}", help=text.replace("%", "%%"), **more)


def _placeholder(one: dataclasses.Field, kind: Any) -> str:
    """What stands for an option's value in `--help`."""
    if choices := one.metadata.get("choices"):
        whole = "{" + ",".join(choices) + "}"
        return whole if len(whole) < 40 else "NAME"
    if one.metadata.get("path"):
        return "PATH"
    return "MODEL" if one.metadata.get("model") else {int: "N", float: "X", str: "TEXT"}.get(simple_type(kind), "")


def _read_yaml(arguments: type, parser: OptionParser, path: str) -> dict[str, Any]:
    """The settings of a YAML file. `ValueError` names the file and what is wrong in it."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8") as file:
            settings = yaml.safe_load(file) or {}
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = "" if isinstance(error, OSError) else "no YAML in UTF-8: "
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise ValueError(f"--config {path}{where}: {what}{problem}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"--config {path}: expected `option: value` lines")
    fields, kinds = {one.name: one for one in dataclasses.fields(arguments)}, option_types(arguments)
    unknown = [f"{name}{did_you_mean(name, fields, synonyms=True)}" for name in settings if name not in fields]
    if unknown:
        raise ValueError(f"--config {path}: there is no option {', '.join(unknown)}")
    for name, value in settings.items():
        if value is None and type(None) not in get_args(kinds[name]):
            raise ValueError(f"--config {path}: {name} has no value; leave the line out for the default")
        if value is not None:
            try:
                read_value(fields[name], kinds[name], value)
            except ValueError as error:
                raise ValueError(f"--config {path}: {error}") from None
    return settings
