# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The stages of `flip-ctr train`: what each does, what it starts from, and the arguments of its recipe."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flip_ctr.train.arguments import FinetuneArguments, FuseArguments, PretrainArguments, TrainArguments
from flip_ctr.train.loop.loaders import fitting_batch_size
from flip_ctr.train.loop.resume import LATEST
from flip_ctr.train.option_groups import OF_PLM
from flip_ctr.train.options import did_you_mean

FOLDER = "stages"
ALL = "all"  # in `--stages`: what is for every stage
PLM, BEST_ID = "the PLM", "the better of id_only and id"
# With entity prompts the PLM makes about PLM_STEPS steps in a stage, each for at most MOST_STEPS of the ID tower's, as
# more were not tried (docs/entity-prompts.md).
PLM_STEPS, MOST_STEPS = 200, 32
# settings that are the run's, or each stage's own business
NOT_HERE = ("dataset_dir", "output_dir", "overwrite_output_dir", "resume_from_checkpoint", "max_minutes", "seed")
NOT_HERE += ("push_to_hub", "hub_model_id", "hub_private_repo", "hub_pretraining_heads", "lora_adapter_only")
NOT_HERE += ("teacher", "teacher_weight", "pairs_per_row")


@dataclass(frozen=True)
class Stage:
    """A run of a recipe.

    Attributes:
        name: of its folder, and in `--stages`.
        title: its row in the report.
        arguments: of its recipe.
        sets: what makes it this stage.
        settings: where its defaults differ from those of its recipe.
        starts: argument -> the stages, or the PLM, that it may start from: the first that there is.
        needs: arguments without which there is no such stage.
        share: of the time that `--max_minutes` leaves; 0: it takes none worth sharing.
        group: its colour in the picture, see `plots.GROUPS`.
    """

    name: str
    title: str
    arguments: type
    sets: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    starts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    share: float = 0.0
    group: str = "FLIP"

    @property
    def reads_text(self) -> bool:
        return self.arguments is FuseArguments or any(PLM in sources for sources in self.starts.values())

    @property
    def predicts(self) -> bool:
        """Whether it gives a click model."""
        return self.arguments is not PretrainArguments


# The settings are those that did best on validation in benchmarks/grids/ml-100k.yaml, with entity prompts.
ON_IDS = {"id_embedding_dropout": 0.3, "early_stopping_patience": 3}
STAGES = (
    Stage("id_only", "ID-only", FinetuneArguments, {"strategy": "id"}, ON_IDS, share=1, group="ID-only"),
    Stage(
        "map",
        "MAP: ids recovered from ids",
        PretrainArguments,
        {"mlm_weight": 0, "icl_weight": 0, "mtm_text_dropout": 1},
        {"num_train_epochs": 30, "per_device_train_batch_size": 1024, "id_embedding_dropout": 0.2},
        share=2,
    ),
    Stage(
        "align",
        "alignment of the PLM",
        PretrainArguments,
        settings={"num_train_epochs": 5, "prompts": "entity"},
        starts={"model_name_or_path": (PLM,), "id_model": ("map",)},
        needs=("model_name_or_path",),
        share=4,
    ),
    Stage(
        "id",
        "FLIP_ID",
        FinetuneArguments,
        {"strategy": "id"},
        ON_IDS,
        {"model_name_or_path": ("align", "map")},
        needs=("model_name_or_path",),
        share=1,
    ),
    Stage(
        "plm",
        "FLIP_PLM",
        FinetuneArguments,
        {"strategy": "plm"},
        {"prompts": "entity"},
        {"model_name_or_path": ("align", PLM)},
        needs=("model_name_or_path",),
        share=2,
    ),
    Stage(
        "joint",
        "FLIP, tuned together",
        FinetuneArguments,
        {"strategy": "joint"},
        {
            "prompts": "entity",
            "num_train_epochs": 2,
            "learning_rate": 1e-3,
            "id_learning_rate": 1e-4,
            "id_embedding_dropout": 0.3,
        },
        {"model_name_or_path": ("align", PLM), "id_model": (BEST_ID,)},
        needs=("model_name_or_path",),
        share=3,
    ),
    Stage(
        "fused",
        "FLIP, tuned apart and fused",
        FuseArguments,
        starts={"id_model": (BEST_ID,), "plm_model": ("plm",)},
        needs=("id_model", "plm_model"),
    ),
)


def stages_of(args: TrainArguments) -> list[Stage]:
    """The stages of a run, by what `--stages` leaves out and whether there is a PLM.

    Raises:
        ValueError: `--stages` names a stage or setting that there is not, or leaves out all that predict.
    """
    own, names = own_settings(args), [stage.name for stage in STAGES]
    for name, settings in own.items():
        if name not in (ALL, *names):
            raise ValueError(
                f"--stages: there is no stage {name}{did_you_mean(name, names)}; there are {', '.join(names)}"
            )
        if not isinstance(settings, dict) and (settings is not None or name == ALL):
            raise ValueError(
                f'--stages: {name} takes settings, such as {{"num_train_epochs": 5}}'
                f"{'' if name == ALL else ', or null, which leaves it out'}; got {json.dumps(settings)}"
            )
        of = [stage for stage in STAGES if name in (ALL, stage.name)]
        known = {setting for stage in of for setting in known_settings(stage)}
        for setting in settings or ():
            if setting not in known:
                raise ValueError(
                    f"--stages: {name} has no setting {setting}{did_you_mean(setting, known, synonyms=True)}"
                )
    there = [
        stage
        for stage in STAGES
        if own.get(stage.name, {}) is not None and not (stage.reads_text and args.model_name_or_path is None)
    ]
    if not any(stage.predicts for stage in there):
        raise ValueError(
            "--stages leaves out every stage that gives a click model; keep one of id_only, id, plm, joint"
        )
    return there


def own_settings(args: TrainArguments) -> dict[str, Any]:
    """What `--stages` says."""
    return json.loads(args.stages) if args.stages else {}


def known_settings(stage: Stage) -> set[str]:
    """The settings that `--stages` may give a stage."""
    names = {one.name for one in dataclasses.fields(stage.arguments)}
    return names - {*stage.sets, *stage.starts, *NOT_HERE, "model_name_or_path", "id_model"}


def stage_folder(args: TrainArguments, name: str) -> str:
    return str(Path(args.output_dir, FOLDER, name))


def stage_arguments(
    stage: Stage, args: TrainArguments, sources: dict[str, str], rows: int, processes: int, minutes: float | None
) -> Any:
    """The arguments of a stage's recipe: what the run says; over that the stage's defaults, and over these what
    `--stages` says for all stages and for this one.

    Args:
        sources: argument -> path or name of what the stage starts from.
        rows: of training; `processes` share them.
        minutes: that it may take; None without a limit.

    Raises:
        ValueError: a setting does not fit; names the stage.
    """
    own, known = own_settings(args), known_settings(stage)
    given = {name: value for name, value in own.get(ALL, {}).items() if name in known}
    if not stage.reads_text:
        given = {name: value for name, value in given.items() if name not in OF_PLM}
    given |= own.get(stage.name, {})
    of_run = {name: getattr(args, name) for name in vars(args) if name in known and getattr(args, name) is not None}
    trains = stage.arguments is not FuseArguments
    if trains:  # goes on where a killed one was
        going_on = {"checkpointing_steps": "epoch", "checkpoints_total_limit": 1, "resume_from_checkpoint": LATEST}
        of_run |= going_on | {"max_minutes": minutes}
    else:
        of_run |= {"overwrite_output_dir": True}
    settings = of_run | stage.settings | given

    def make(**fitting: Any) -> Any:
        try:
            return stage.arguments(
                dataset_dir=args.dataset_dir,
                output_dir=stage_folder(args, stage.name),
                seed=args.seed,
                **stage.sets,
                **sources,
                **settings | fitting,
            )
        except ValueError as error:
            raise ValueError(f"stage {stage.name}: {error}") from error

    made, fitting = make(), {}
    if trains and "per_device_train_batch_size" not in given:
        fitting["per_device_train_batch_size"] = fitting_batch_size(rows // processes, made.per_device_train_batch_size)
    if trains and settings.get("prompts") == "entity" and not {"plm_every", "freeze_plm"} & given.keys():
        batch = fitting.get("per_device_train_batch_size", made.per_device_train_batch_size)
        steps = made.num_train_epochs * rows / (batch * processes * made.gradient_accumulation_steps)
        fitting["plm_every"] = max(1, min(MOST_STEPS, int(steps / PLM_STEPS)))
    return make(**fitting)
