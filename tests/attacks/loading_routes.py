"""Ways to load a checkpoint and to score rows with it, with the package and without it: this file needs transformers
alone."""

import contextlib
import io
import json
import logging
import os
import sys


def auto(folder: str, rows: list[dict], scratch: str, **remote) -> list[float]:
    import torch
    from transformers import AutoModel, AutoProcessor

    model, processor = (one.from_pretrained(folder, **remote) for one in (AutoModel, AutoProcessor))
    with torch.no_grad():
        return model.eval()(**processor(rows)).logits[:, 0].double().sigmoid().tolist()


def piped(folder: str, rows: list[dict], scratch: str, **remote) -> list[float]:
    from transformers import pipeline

    return [answer["click_probability"] for answer in pipeline("click-through-rate", model=folder, **remote)(rows)]


def merged(folder: str, rows: list[dict], scratch: str, base: str) -> list[float]:
    """Of an adapter, with its base."""
    import torch

    from flip_ctr import FlipProcessor
    from flip_ctr.train.models.lora import load_adapter

    model, processor = load_adapter(folder, base), FlipProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model.eval()(**processor(rows)).logits[:, 0].double().sigmoid().tolist()


class CommandError(ValueError):
    """A command's standard error, and its exit code."""


def predicted(folder: str, rows: list[dict], scratch: str, base: str | None = None) -> list[float]:
    """By the command."""
    from flip_ctr.train import cli

    source, output = (os.path.join(scratch, name) for name in ("rows.jsonl", "scores.jsonl"))
    with open(source, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    said = io.StringIO()
    argv = ["predict", "--model_name_or_path", folder, "--input", source, "--output", output, "--overwrite_output"]
    argv += [] if base is None else ["--base_model_name_or_path", base]
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = cli.main(argv)
    if code:
        raise CommandError(said.getvalue().strip().splitlines()[-1])
    with open(output, encoding="utf-8") as file:
        return [json.loads(line)["click_probability"] for line in file]


WITH_PACKAGE = {"AutoModel": auto, "pipeline": piped, "predict": predicted}
OF_ADAPTER = {"load_adapter": merged, "predict": predicted}
WITHOUT_PACKAGE = {"AutoModel": auto, "pipeline": piped}


def attempt(task: str) -> None:
    """Tries the routes in turn, and writes what each gave: `{"scores": ...}` or `{"kinds": ..., "text": ...}`."""
    folder, rows, scratch, routes, options, out = json.loads(task)
    with open(rows, encoding="utf-8") as file:
        wanted = json.load(file)
    logging.disable(logging.CRITICAL)
    found = {}
    for name in routes:
        route = (OF_ADAPTER | WITH_PACKAGE)[name]
        try:
            found[name] = {"scores": route(folder, wanted, scratch, **options)}
        except BaseException as error:
            found[name] = {"kinds": [one.__name__ for one in type(error).__mro__], "text": str(error)}
        with open(out, "w", encoding="utf-8") as file:
            json.dump(found, file)
    if "trust_remote_code" in options:
        assert not sys.modules.get("flip_ctr"), "the package was imported"
