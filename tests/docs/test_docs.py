"""The README and the pages of `docs/`: what they show runs, or where it needs the Hub, a GPU or hours, its options are
parsed and its names are resolved.

Python blocks of a page run in order, in a folder with stand-ins for what the page names (`D`, `P`, `PLM`, ...). An HTML
comment above a block changes that: `<!-- not run: WHY -->` (compiled, and its imports run), `<!-- file: NAME -->` (the
block is that file).
"""

import ast
import contextlib
import functools
import importlib
import io
import json
import os
import re
import runpy
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import tiny
import yaml

from flip_ctr.data.prepare.dataset_folder import read_split
from flip_ctr.modeling_flip.id_tower import ID_TOWERS
from flip_ctr.train import cli, prepare
from flip_ctr.train.parser import parse_arguments

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
PAGES |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")}
COMMENT = re.compile(r"<!-- (not run|file): (.+?) -->")
LAUNCHER = {"--accelerate_config", "--num_processes", "--num_machines", "--machine_rank"}
LAUNCHER |= {"--main_process_ip", "--main_process_port"}
# stand-ins of names in the pages
NAMES = {
    "bert-base-uncased": "PLM",
    "sentence-transformers/all-MiniLM-L6-v2": "PLM",
    "path/or/hub-id": "M",
}
HOUR, SECOND = "max_minutes=60", "max_minutes=0.02"


def blocks(page: str, *languages: str) -> list[SimpleNamespace]:
    """The fenced blocks of a page in these languages: `text`, and `mark` and `value` of the comment above."""
    found = []
    for match in re.finditer(r"(?:^(<!-- [^\n]* -->)\n+)?^```(\w*)\n(.*?)^```", PAGES[page], re.M | re.S):
        if match[2] in languages:
            mark, value = comment.groups() if (comment := COMMENT.fullmatch(match[1] or "")) else (None, None)
            found.append(SimpleNamespace(text=match[3], mark=mark, value=value))
    return found


def lines(page: str) -> list[list[str]]:
    """The commands of a page's shell blocks as words, without what is set for the environment."""
    text = "\n".join(block.text for block in blocks(page, "bash"))
    words = [shlex.split(line, comments=True) for line in re.sub(r"\\\n\s*", " ", text).splitlines()]
    return [line for line in ([one for one in line if not re.match(r"[A-Z_]+=", one)] for line in words) if line]


def inline(page: str) -> list[str]:
    """The inline code of a page."""
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.M | re.S)
    return [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def without_launcher(argv: list[str]) -> list[str]:
    """A recipe's own arguments; the launcher's config must exist."""
    rest = iter(argv)
    own = []
    for word in rest:
        if word in LAUNCHER:
            value = next(rest)
            if word == "--accelerate_config":
                assert (ROOT / "train" / "accelerate_configs" / f"{value}.yaml").is_file(), value
        else:
            own.append(word)
    return own


def parse(command: str, argv: list[str]):
    """What a command would run with. Fails where an option or a value is not one of the command's."""
    assert command in cli.COMMANDS, f"flip-ctr has no command {command}"
    try:
        return cli.parse(command, without_launcher(argv))
    except SystemExit:  # it has said why
        pytest.fail(f"flip-ctr {command} {' '.join(argv)}")


@pytest.fixture(scope="module")
def made(tmp_path_factory, plm) -> dict[str, Path]:
    """A dataset folder `D`, a PLM, a pretrained checkpoint `P` and a joint click model `M`."""
    folder = tmp_path_factory.mktemp("made")
    raw = tiny.write_raw_100k(folder / "ml-100k")
    prepare.run(prepare.PrepareArguments("ml-100k", str(folder / "D"), str(raw)))
    tiny.pretrain(folder / "D", plm, folder / "P", num_train_epochs=1)
    tiny.finetune(folder / "D", folder / "P", folder / "M", strategy="joint", num_train_epochs=1)
    return {"PLM": plm, **{name: folder / name for name in ("D", "P", "M")}}


@pytest.fixture
def folder(tmp_path, monkeypatch, made):
    """The current folder, with what the pages name: a dataset folder `D`, a PLM, checkpoints, raw files."""
    for name, path in made.items():
        (tmp_path / name).symlink_to(path)
    rows = read_split(str(made["D"]), "train").slice(0, 48).to_pylist()
    frame = pd.DataFrame(rows).drop(columns=["genre", "label", "timestamp"])
    frame.assign(genre="Drama", rating=np.arange(48) % 5 + 1).to_csv(tmp_path / "rows.csv", index=False)
    random = np.random.default_rng(0)
    clicks = pd.DataFrame({"user_id": random.integers(1, 20, 160), "item_id": random.integers(100, 120, 160)})
    for name in ("clicks.csv", "day1.csv", "day2.csv"):
        clicks.assign(clicked=random.integers(0, 2, 160)).to_csv(tmp_path / name, index=False)
    items = ({"item_id": item, "title": f"Film {item % 7}", "maker": f"Maker {item % 3}"} for item in range(100, 120))
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    ID_TOWERS.pop("product", None)


def clear(output: Path) -> None:
    """Makes room for a run's output; what a stand-in links to stays."""
    if output.is_symlink():
        output.unlink()
    elif output.is_dir():
        shutil.rmtree(output)


def write_files(page: str, folder: Path) -> None:
    for block in blocks(page, "python", "yaml"):
        if block.mark == "file":
            (folder / block.value).write_text(block.text)


# --- Python


def frame_of_impressions() -> pd.DataFrame:
    """A user's own frame, for the README."""
    random = np.random.default_rng(1)
    frame = pd.DataFrame({"user_id": random.integers(1, 20, 200), "item_id": random.integers(100, 120, 200)})
    frame["country"] = random.choice(["nl", "be"], 200)
    frame["title"] = [f"Film {item % 7}" for item in frame.item_id]
    return frame.assign(clicked=random.integers(0, 2, 200))


def test_python_of_the_readme_runs(folder):
    """On a frame that is not one of the datasets, from the frame to scores, without and with text."""
    for name in ("D", "M", "P"):
        (folder / name).unlink()
    scope = {"frame": frame_of_impressions()}
    found = [block.text for block in blocks("README.md", "python")]
    assert len(found) == 3
    for block in found:
        exec(compile(block.replace("path/or/hub-id", "M"), "README.md", "exec"), scope)
    assert scope["probabilities"].shape == (200,)
    assert scope["frame"].click_probability.between(0, 1).all() and (folder / "M" / "README.md").is_file()
    assert "click_probability" in scope["score"](scope["frame"])[0]


WITH_PYTHON = [page for page in PAGES if page != "README.md" and blocks(page, "python")]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs(page, folder):
    if page == "docs/lora.md":
        tiny.finetune(folder / "D", "P", "A", use_lora=True, lora_adapter_only=True)
    if page == "docs/serving.md":
        assert cli.main(["embed", "--model_name_or_path", "M", "--input", "D", "--output", "items.parquet"]) == 0
    if page == "docs/finetune.md":
        (folder / "M").unlink()
    write_files(page, folder)
    scope = {"rows": read_split("D", "train").slice(0, 48).to_pylist(), "frame": frame_of_impressions()}
    for block in blocks(page, "python"):
        code = block.text
        for name, stand_in in NAMES.items():
            code = code.replace(f'"{name}"', f'"{stand_in}"').replace(HOUR, SECOND)
        if block.mark == "not run":
            imports = [node for node in ast.parse(code).body if isinstance(node, ast.Import | ast.ImportFrom)]
            code = ast.unparse(ast.Module(imports, []))
        if block.mark != "file":
            exec(compile(code, page, "exec"), scope)
    for name in ("probability", "results", "answer"):
        if name in scope:
            assert scope[name] is not None


# --- commands

CHEAP = ("evaluate", "predict", "explain", "rank", "embed")


def is_cheap(command: str, argv: list[str]) -> bool:
    """Whether the command runs in a second or two on the stand-ins, without the network."""
    own_table = command == "prepare" and {"--infer_schema", "table"} & set(argv)
    return "--accelerate_config" not in argv and bool(command in CHEAP or own_table or "--custom_code" in argv)


@pytest.mark.parametrize("page", [page for page in PAGES if lines(page)])
def test_commands(page, folder):
    """The cheap ones run; of the others the options are parsed. The guide to data of one's own trains, in seconds."""
    write_files(page, folder)
    for program, *argv in lines(page):
        if program == "flip-ctr":
            command, *argv = argv
            arguments = parse(command, argv)
            if is_cheap(command, argv):
                if getattr(arguments, "output_dir", None):
                    clear(folder / arguments.output_dir)
                elif command == "prepare":
                    (folder / "schema.yaml").unlink(missing_ok=True)
                assert cli.main([command, *argv]) == 0
                if "--infer_schema" in argv:  # the page's own schema is what was inferred, corrected
                    write_files(page, folder)
            elif page == "docs/own-data.md" and arguments.output_dir == "M":
                clear(folder / "M")
                tiny.finetune("D", None, "M", strategy="id", num_train_epochs=1)
        elif program == "python" and (folder / argv[0]).is_file():
            runpy.run_path(argv[0])
        elif program == "python" and argv[0].startswith("examples/"):
            check_example(argv)
        elif program == "python":
            parse_benchmark(argv[0], argv[1:])
        elif program == "accelerate":
            parse_launch(argv)
        elif program == "make":
            for target in (word for word in argv if "=" not in word):
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"make {target}"
        elif program == "pip":
            check_extras(argv[-1])
        elif program.startswith("benchmarks/") and program.endswith(".sh"):  # it starts the script of its name
            assert os.access(ROOT / program, os.X_OK)
            parse_benchmark(program.replace(".sh", ".py"), argv)
        else:
            assert program in ("export", "git", "cd"), f"{page} shows a command that no test knows: {program}"


def parse_benchmark(script: str, argv: list[str]) -> None:
    """Reads the options of a script of `benchmarks/` with the dataclass that it declares."""
    module = importlib.import_module("flip_ctr." + script.removesuffix(".py").replace("/", "."))
    classes = [
        one for name, one in vars(module).items() if name.endswith("Arguments") and one.__module__ == module.__name__
    ]
    (arguments,) = classes
    read = parse_arguments(arguments, argv)
    for path in (getattr(read, "grid", None), getattr(read, "schema", None)):
        assert path is None or (ROOT / path).is_file()


def parse_launch(argv: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    launched = launch_command_parser().parse_args(argv[1:])
    assert argv[0] == "launch"
    if launched.training_script.startswith("examples/"):
        check_example([launched.training_script, *launched.training_script_args])
        return
    assert (ROOT / launched.config_file).is_file()
    assert launched.training_script == "flip_ctr.train.cli"
    command, *rest = launched.training_script_args
    parse(command, rest)


def check_example(argv: list[str]) -> None:
    """The script is there and has these options; `tests/examples/` runs it."""
    code = (ROOT / argv[0]).read_text(encoding="utf-8")
    assert all(f'"{word}"' in code for word in argv if word.startswith("--")), argv


def check_extras(requirement: str) -> None:
    import tomllib

    extras = re.search(r"\[(.*)\]", requirement)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert requirement.startswith(".") and set(extras[1].split(",") if extras else []) <= set(known), requirement


@pytest.mark.parametrize("page", PAGES)
def test_inline_commands_and_flags(page, options):
    for code in inline(page):
        words = shlex.split(code) if code.startswith(("flip-ctr ", "pip ", "--")) else []
        if words[:1] == ["flip-ctr"]:
            command, *argv = words[1:]
            assert command in (*cli.COMMANDS, "COMMAND", "--version"), f"{page}: flip-ctr has no command {command}"
            if not argv or argv == ["--help"]:
                continue
            for required in ("--dataset_dir", "--output_dir"):  # left out in tables, for space
                argv += [required, "X"] if required in options[command] and required not in argv else []
            parse(command, argv)
        elif words[:1] == ["pip"]:
            check_extras(words[-1])
        elif words and words[0] not in LAUNCHER | {"--help", "--config"}:
            assert any(words[0] in known for known in options.values()), f"{page}: no command has {words[0]}"


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Command -> its flags, from its help; `compare` too."""
    compare = importlib.import_module("flip_ctr.benchmarks.compare").CompareArguments
    helps = {command: functools.partial(cli.parse, command) for command in cli.COMMANDS}
    found = {}
    for name, show in (helps | {"compare": functools.partial(parse_arguments, compare)}).items():
        text = io.StringIO()
        with contextlib.redirect_stdout(text), pytest.raises(SystemExit):
            show(["--help"])
        found[name] = set(re.findall(r"--[a-z]\w*", text.getvalue()))
    return found


# --- requests to a server


def test_requests_of_the_page_of_the_server(folder):
    """Each is answered, by a server with the catalogue of the stand-ins."""
    from fastapi.testclient import TestClient

    from flip_ctr.serve.server import make_app
    from flip_ctr.serve.service import Served

    rows = read_split("D", "train").to_pandas()
    rows[["movie_id", "title", "genre"]].drop_duplicates("movie_id").to_parquet("items.parquet")
    requests = re.findall(r"<!-- ([A-Z]+) (/\w+) -->\n```json\n(.*?)^```", PAGES["docs/server.md"], re.M | re.S)
    args = cli.arguments_of("serve")(model_name_or_path="M", items="items.parquet")
    with TestClient(make_app(args, Served.load(args, ("M", "items.parquet")))) as client:
        for method, route, text in requests:
            answer = client.request(method, route, json=json.loads(text))
            assert answer.status_code == 200, f"{method} {route}: {answer.text}"
            if "skip" in text and route == "/rank":
                assert len(answer.json()["items"]) == 2 and answer.json()["skipped"] == {"candidates": [9999]}
    assert len(requests) == 5


def test_the_image():
    """What it installs and starts is there."""
    text = (ROOT / "Dockerfile").read_text()
    check_extras(re.search(r"pip install .* '(.*)'", text)[1])
    program, command, *argv = json.loads(re.search(r"^ENTRYPOINT (.*)", text, re.M)[1])
    arguments = parse(command, [*argv, "--model_name_or_path", "M", "--items", "items.parquet"])
    assert program == "flip-ctr" and arguments.host == "0.0.0.0"
    for line in (f"EXPOSE {arguments.port}", f"127.0.0.1:{arguments.port}/health", "USER flip"):
        assert line in text


# --- names, paths, links


@pytest.mark.parametrize("page", PAGES)
def test_names_paths_and_links_exist(page):
    text = PAGES[page]
    for name in set(re.findall(r"\bflip_ctr(?:\.\w+)+", text)):
        assert resolves(name), f"{page}: {name}"
    for path in inline(page):
        if re.fullmatch(r"(benchmarks|tests|train|data|modeling_flip|docs|model_cards|examples)/[\w./*-]*", path):
            exists = list(ROOT.glob(path.rstrip("/"))) or path.endswith(".parquet")
            assert exists, f"{page}: {path}"
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", link):
            assert (ROOT / page).parent.joinpath(link).exists(), f"{page}: {link}"


def resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something in one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found is not None
    return False


def test_every_page_is_in_the_navigation():
    def pages(entries):
        for entry in entries:
            for value in entry.values():
                yield from pages(value) if isinstance(value, list) else [value]

    shown = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert {os.path.basename(page) for page in PAGES} <= set(shown)


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 150 and len(PAGES["README.md"].split()) <= 1300
