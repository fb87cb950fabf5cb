"""MkDocs hooks. They add the pages that lie outside `docs/` to the site and keep links that work on GitHub working."""

import contextlib
import io
import os
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "model_cards/flip*.md", "model_cards/*/*.png"]
OUTSIDE += [
    "benchmarks/results/**/*.md",
    "benchmarks/results/**/*.png",
    "examples/*.py",
    "examples/*.ipynb",
    "examples/README.md",
]
LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]*)([^)]*\))")
HELP = re.compile(r"<!-- flip-ctr (.*?)--help -->")
CODE = re.compile(r"<!-- code: (.*?) -->")


def on_files(files, config):
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown, page, config, files):
    here = page.file.src_uri
    in_repository = here if page.file.src_dir == str(ROOT) else f"docs/{here}"

    def link(found: re.Match) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository), found[2]))
        target = posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")
        return f"{found[1]}{target}{found[3]}"

    return CODE.sub(code_of_file, HELP.sub(command_help, LINK.sub(link, markdown)))


def on_page_content(html, page, config, files):
    """Docstrings name other classes as [`FlipModel`], as those of transformers do."""
    return re.sub(r"\[(<code>[\w.]+</code>)\]", r"\1", html)


def code_of_file(found: re.Match) -> str:
    """A script, in the place of a comment that names it."""
    return f"```python\n{(ROOT / found[1]).read_text(encoding='utf-8')}```"


def command_help(found: re.Match) -> str:
    """The help text of a command, in the place of a comment that names it."""
    from flip_ctr.train import cli

    os.environ["COLUMNS"] = "110"  # the width that argparse wraps to
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        cli.main([*found[1].split(), "--help"])
    if not text.getvalue().strip():
        raise ValueError(f"flip-ctr {found[1]}--help printed nothing")
    return f"```text\n{text.getvalue()}```"
