# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The best known recipe as one run: from a dataset folder to the model that validation prefers.

    flip-ctr train --dataset_dir D --model_name_or_path PLM --output_dir M
    flip-ctr train --dataset_dir D --output_dir M                                 # ids alone
    flip-ctr train --dataset_dir D --model_name_or_path PLM --max_minutes 60 --output_dir M

Its [stages][flip_ctr.train.stages] are runs of `pretrain`, `finetune` and `fuse` in `M/stages`; the model that is best
on validation lies in `M` itself. The same command goes on where a killed run was.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from huggingface_hub import ModelCard

from flip_ctr.data.outputs import LOCK, claimed
from flip_ctr.data.prepare.markdown import markdown_table
from flip_ctr.data.readers.shards import SplitRows, has_split, open_splits
from flip_ctr.train import finetune, fuse, pretrain
from flip_ctr.train.arguments import FinetuneArguments, FuseArguments, PretrainArguments, TrainArguments
from flip_ctr.train.loop.distributed import splits_states
from flip_ctr.train.loop.resume import discard, step_checkpoints
from flip_ctr.train.loop.run import check_output_dir, make_accelerator
from flip_ctr.train.models.build import check_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.models.lora import is_flip_checkpoint
from flip_ctr.train.outputs.card import CARD
from flip_ctr.train.outputs.checkpoint import clear_leftovers, clear_reports, link, new_checkpoint
from flip_ctr.train.outputs.hub import check_hub_arguments, published_files, push
from flip_ctr.train.outputs.plots import plot_comparison
from flip_ctr.train.outputs.results import write_json
from flip_ctr.train.outputs.run_log import logger, set_up_logging
from flip_ctr.train.stages import BEST_ID, FOLDER, PLM, STAGES, Stage, stage_arguments, stage_folder, stages_of

STATE = "train.json"
RECIPES = {PretrainArguments: pretrain, FinetuneArguments: finetune, FuseArguments: fuse}


def train_model(
    dataset: str | os.PathLike, output_dir: str | os.PathLike, model_name_or_path: str | None = None, **options: Any
) -> dict:
    """Trains the best known recipe, as `flip-ctr train` does.

    ```python
    >>> from flip_ctr import FlipForCTR, train_model
    >>> report = train_model("D", "M", "PLM", max_minutes=60)
    >>> model = FlipForCTR.from_pretrained("M")
    ```

    Args:
        dataset: a dataset folder.
        output_dir: folder for the model, and for the stages that lead to it.
        model_name_or_path: the PLM; None for ids alone.
        options: the others of [`TrainArguments`], such as `stages={"map": {"num_train_epochs": 60}}`.

    Returns:
        what `train.json` holds: `stages`, by name each one's `results` and `minutes`, and `kept`, the name of the one
        whose model is in `output_dir`.

    Raises:
        ValueError: an option, the dataset folder or the PLM does not fit; the message names it.
    """
    folders = {"dataset_dir": os.fspath(dataset), "output_dir": os.fspath(output_dir)}
    return run(TrainArguments(**folders, model_name_or_path=model_name_or_path, **options))


def run(args: TrainArguments) -> dict:
    """Runs the stages that are left, keeps the model that is best on validation, and reports; see [`train_model`]."""
    # 1. What is asked for, and all settings of the stages: what is wrong is said before anything is trained
    import_custom_code(args.custom_code)
    check_hub_arguments(args)
    accelerator = make_accelerator(args.mixed_precision)
    set_up_logging(accelerator)
    rows = check(accelerator, args)
    sizes = len(rows), accelerator.num_processes
    stages = stages_of(args)
    for stage in stages:
        stage_arguments(stage, args, dict.fromkeys(stage.starts, "x"), *sizes, None)

    with output_folder(accelerator, args, rows) as state:
        # 2. The stages that an earlier run has not done
        for stage in stages:
            sources, minutes = sources_of(stage, args, state), minutes_for(stage, stages, args, state)
            if stage.name in state["stages"] or any(name not in sources for name in stage.needs):
                continue
            if minutes == 0 and stage.share and click_models(state):
                logger.info(f"{stage.name} is left out: --max_minutes are over")
                continue
            settings = stage_arguments(stage, args, sources, *sizes, minutes if stage.share else None)
            logger.info(f"\n{stage.name}: {stage.title}")
            started = time.perf_counter()
            results = RECIPES[stage.arguments].run(settings)
            done = [{"results": results, "minutes": (time.perf_counter() - started) / 60}]
            state["stages"][stage.name] = broadcast_object_list(done)[0]  # of the first process, as the clock is
            if accelerator.is_main_process:
                write_json(accelerator, args.output_dir, STATE, state)
                for checkpoint in step_checkpoints(settings.output_dir):
                    discard(checkpoint)

        # 3. The best model
        if state["kept"] is None:
            state["kept"] = best(state, click_models(state))
            if accelerator.is_main_process:
                keep(args, state)
                write_json(accelerator, args.output_dir, STATE, state)

    if accelerator.is_main_process:
        draw(args, state)
        print(f"\n{table(state)}\n\nkept in {args.output_dir}: {state['kept']}")
        if args.push_to_hub:
            push(args)
    accelerator.wait_for_everyone()
    return state


def check(accelerator: Accelerator, args: TrainArguments) -> SplitRows:
    """The training rows. `ValueError` where the run cannot be."""
    if splits_states(accelerator):
        raise ValueError(
            f"train does not run under {accelerator.distributed_type.value}, as ID-only models do not; choose the "
            "Accelerate config multi_gpu"
        )
    if not has_split(args.dataset_dir, "validation"):
        raise ValueError(
            f"train chooses by validation rows, which {args.dataset_dir} has not; prepare the dataset with some "
            "(--ratios 8 1 1)"
        )
    source = args.model_name_or_path
    if source is not None:
        check_model("model_name_or_path", source)
        if is_flip_checkpoint(source):
            raise ValueError(
                f"--model_name_or_path {source} is a FLIP checkpoint, and train starts from a PLM; `flip-ctr finetune` "
                "goes on from a checkpoint"
            )
    rows = open_splits(args.dataset_dir, {"train": args.max_train_samples}, args.seed)["train"]
    if source is not None and not any(field.on_text_side for field in rows.schema.fields):
        raise ValueError(
            f"--model_name_or_path {source} would read nothing: {args.dataset_dir} has no field on the text side. "
            "Leave it out, or prepare the dataset with `sides: [id, text]` for what is worth reading"
        )
    return rows


# --- what is done, and what is next


def click_models(state: dict) -> list[str]:
    """The stages that are done and gave a click model."""
    return [stage.name for stage in STAGES if stage.predicts and stage.name in state["stages"]]


def best(state: dict, names: list[str]) -> str | None:
    """The stage whose model is best on validation, of those of these names that are done."""
    done = {name: state["stages"][name]["results"] for name in names if name in state["stages"]}
    return max(done, key=lambda name: finetune.criterion(done[name]), default=None)


def sources_of(stage: Stage, args: TrainArguments, state: dict) -> dict[str, str]:
    """Argument -> the path, or name, of what the stage starts from; none for what is not there."""
    there = {name: stage_folder(args, name) for name in state["stages"]}
    best_id = best(state, ["id_only", "id"])
    there |= {PLM: args.model_name_or_path, BEST_ID: best_id and stage_folder(args, best_id)}
    found = {
        argument: next((there[one] for one in sources if there.get(one)), None)
        for argument, sources in stage.starts.items()
    }
    return {argument: source for argument, source in found.items() if source is not None}


def minutes_for(stage: Stage, stages: list[Stage], args: TrainArguments, state: dict) -> float | None:
    """The stage's share of the time that is left; None without a limit."""
    if args.max_minutes is None:
        return None
    left = args.max_minutes - sum(done["minutes"] for done in state["stages"].values())
    waiting = sum(one.share for one in stages if one.name not in state["stages"])
    return max(0.0, left) * stage.share / waiting if waiting else 0.0


# --- the output folder


@contextmanager
def output_folder(accelerator: Accelerator, args: TrainArguments, rows: SplitRows) -> Iterator[dict]:
    """Keeps other runs out of the output folder. Gives the state of the run: a new one, or that of the killed run that
    lies there.

    Raises:
        FileExistsError: another run writes there.
        ValueError: the folder holds other files, or a run of other options or rows.
    """
    folder = Path(args.output_dir)
    options = args.published() | {"stages": args.stages, "num_processes": accelerator.num_processes}
    new = json.loads(json.dumps({"options": options, "rows": rows.content_digest(), "stages": {}, "kept": None}))
    with ExitStack() as held:
        state, problem = new, None
        if accelerator.is_main_process:
            try:
                check_output_dir(args, goes_on=(folder / STATE).is_file())
                held.enter_context(claimed(folder, folder / LOCK))
                state = former_state(args, folder, new) or new
                clear_leftovers(args.output_dir)
                write_json(accelerator, args.output_dir, STATE, state)
            except (ValueError, OSError) as error:
                problem = error
        state, problem = broadcast_object_list([state, problem])  # all processes end, or none
        if problem is not None:
            raise problem
        yield state


def former_state(args: TrainArguments, folder: Path, new: dict) -> dict | None:
    """The state of the run that lies in the folder. `ValueError` where it is of other options or rows."""
    if not (folder / STATE).is_file():
        return None
    if args.overwrite_output_dir:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        clear_reports(str(folder))
        return None
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    differs = [f"--{name}" for name, value in new["options"].items() if state["options"].get(name) != value]
    differs += ["training rows"] * (state["rows"] != new["rows"])
    if differs:
        raise ValueError(
            f"--output_dir {folder} holds a run with other {', '.join(differs)}: give what it had, and it goes on, or "
            "add --overwrite_output_dir"
        )
    if state["stages"]:
        logger.info(f"going on in {folder}; done: {', '.join(state['stages'])}")
    return state


def keep(args: TrainArguments, state: dict) -> None:
    """Puts the checkpoint of the stage that was kept into the output folder; its card says what all stages gave."""
    files = published_files(stage_folder(args, state["kept"]))
    card = ModelCard.load(files[CARD])
    card.text = f"{card.text.rstrip()}\n\n## Stages of `flip-ctr train`\n\n{table(state)}\n"
    with new_checkpoint(args.output_dir) as new:
        for name, path in files.items():
            if name != CARD:
                link(path, os.path.join(new, name))
        card.save(os.path.join(new, CARD))


# --- the report


def table(state: dict) -> str:
    """What each stage gave, as a Markdown table."""
    first = next(iter(click_models(state)))
    least = finetune.criterion(state["stages"][first]["results"])
    rows = []
    for stage in STAGES:
        done = state["stages"].get(stage.name)
        if done is None:
            continue
        results, minutes = done["results"], f"{done['minutes']:.1f}"
        if "planned_steps" in results:
            minutes += f", {results['train_steps'] / results['planned_steps']:.0%} of its steps"
        numbers = [results.get(name) for name in ("eval_auc", "eval_logloss", "test_auc", "test_logloss")]
        gain = f"{finetune.criterion(results) - least:+.4f}" if stage.predicts and stage.name != first else ""
        title = f"**{stage.title}**" if stage.name == state["kept"] else stage.title
        rows.append([title, minutes, *("" if one is None else f"{one:.4f}" for one in numbers[:2]), gain])
        rows[-1] += ["" if one is None else f"{one:.4f}" for one in numbers[2:]]
    header = ["stage", "minutes", "validation AUC", "LogLoss", "gain", "test AUC", "LogLoss"]
    start = next(stage.title for stage in STAGES if stage.name == first)
    note = f"Gain: AUC − LogLoss on validation, by which the best is kept, above {start}."
    return f"{markdown_table(header, rows)}\n\n{note}"


def draw(args: TrainArguments, state: dict) -> None:
    """The click models side by side, where matplotlib is installed."""
    columns = {"eval_auc": "AUC on validation", "eval_logloss": "LogLoss on validation\n(lower is better)"}
    rows = [
        {"method": stage.title, "group": stage.group}
        | {name: state["stages"][stage.name]["results"][name] for name in columns}
        for stage in STAGES
        if stage.name in click_models(state)
    ]
    plot_comparison(rows, args.output_dir, columns)
