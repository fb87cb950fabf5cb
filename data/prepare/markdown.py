# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Markdown of text that others have written: what they call a dataset, a column or a licence is shown as it is, and is
never markup, HTML or a link."""

import html
import re
from collections.abc import Sequence
from urllib.parse import quote, urlsplit

SCHEMES = ("", "http", "https", "mailto")  # of links; "" is a path beside the page
# signs that are markup wherever they stand, or between other signs than letters, or at the start of a line
ALWAYS, BETWEEN = re.compile(r"[\\`*\[\]|~]|!(?=\[)"), re.compile(r"(?<![^\W_])_|_(?![^\W_])")
CODE = re.compile(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)")
AT_START = re.compile(r"^(#{1,6}(?=\s|$)|[-+=>:](?=[\s\-=]|$)|\d+(?=[.)](?:\s|$)))")


def one_line(text: object) -> str:
    """Text without line breaks and signs that cannot be seen."""
    return " ".join("".join(one if one.isprintable() else " " for one in str(text)).split())


def plain(text: object) -> str:
    """Text as one line of Markdown that shows it and nothing else."""
    return _with_start(_escaped(one_line(text)))


def prose(text: object) -> str:
    """As `plain`, of a sentence of this package that quotes others as code: what stands in backticks stays code."""
    line, parts, end = one_line(text), [], 0
    for found in CODE.finditer(line):
        parts += [_escaped(line[end : found.start()]), found[0]]
        end = found.end()
    return _with_start("".join([*parts, _escaped(line[end:])]))


def _escaped(line: str) -> str:
    line = BETWEEN.sub(lambda found: "\\" + found[0], ALWAYS.sub(lambda found: "\\" + found[0], line))
    return re.sub(r"&(?=#?\w+;)", "&amp;", line).replace("<", "&lt;")


def _with_start(line: str) -> str:
    """What would begin a heading, a list or a rule begins nothing."""
    return AT_START.sub(lambda found: found[0] + "\\" if found[0].isdigit() else "\\" + found[0], line)


def code(text: object) -> str:
    """Text as code within a line."""
    line = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def fenced(text: str, language: str = "") -> str:
    """Text as a block of code."""
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def link(text: object, target: object) -> str:
    """A link; the text alone where the target is none that a reader may follow (`javascript:`, say)."""
    target = one_line(target)
    try:
        scheme = urlsplit(target).scheme.lower()
    except ValueError:
        return plain(text)
    if not target or scheme not in SCHEMES or target.startswith(("//", "\\")):
        return plain(text)
    return f"[{plain(text)}]({html.escape(quote(target, safe='/:?#@!$&*+,;=%~-._'))})"


def markdown_table(header: Sequence[object], rows: Sequence[Sequence], right: bool = True) -> str:
    """A Markdown table of cells that are Markdown already; all columns but the first are set right, unless told
    otherwise. What would end a cell, or begin HTML, is escaped in each."""
    cells = [header, ["---"] + ["---:" if right else "---"] * (len(header) - 1), *rows]
    lines = [[f"{cell:,}" if isinstance(cell, int) else _cell(str(cell)) for cell in row] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    line = re.sub(r"(?<!\\)((?:\\\\)*)\|", r"\1\\|", " ".join(text.split()))
    # not in code, where entities are shown as they are written
    return re.sub(f"{CODE.pattern}|<", lambda found: found[0] if found[1] else "&lt;", line)
