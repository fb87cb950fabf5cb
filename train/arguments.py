# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands, each made of groups of options.

From Python: `FinetuneArguments(dataset_dir="D", output_dir="M", strategy="id", preset="paper")`.
"""

import json
import sys
from dataclasses import dataclass
from typing import ClassVar

from flip_ctr.train.option_groups import (
    CALIBRATION,
    CALIBRATIONS,
    CLICK_MODEL,
    CUSTOM_CODE,
    DATASET_DIR,
    FUSIONS,
    HEADS,
    ID_TOWERS,
    OVERWRITE,
    PRECISIONS,
    PRIVATE_REPO,
    TRAINING_PRECISION,
    BaseOptions,
    CheckpointOptions,
    ClickOptions,
    DataOptions,
    HeadsOptions,
    HubOptions,
    LoadingOptions,
    LoraOptions,
    ModelOptions,
    ObjectiveOptions,
    OptimisationOptions,
    RunOptions,
    ScoringOptions,
    SpeedOptions,
    TeacherOptions,
)
from flip_ctr.train.options import MAX_SEED, Options, did_you_mean, option, required
from flip_ctr.train.prepare_arguments import PrepareArguments  # noqa: F401  all arguments are found here
from flip_ctr.train.scoring_arguments import (  # noqa: F401
    EvaluateArguments,
    ExplainArguments,
    PredictArguments,
    RowFileOptions,
)
from flip_ctr.train.serve_arguments import (  # noqa: F401
    EmbedArguments,
    ExportArguments,
    RankArguments,
    ServeArguments,
    SpaceArguments,
)


def json_object(name: str, text: str, example: str) -> str:
    """The JSON object of an option, in one form; `ValueError` names the option where it is none."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise ValueError(f"--{name} must be a JSON object such as {example}; got {text}")
    return json.dumps(value)


@dataclass(kw_only=True)
class TrainingOptions(
    RunOptions,
    DataOptions,
    ModelOptions,
    OptimisationOptions,
    LoraOptions,
    SpeedOptions,
    CheckpointOptions,
    HubOptions,
):
    """What `pretrain` and `finetune` share."""

    def cases(self) -> list[str]:
        fewer_steps = ["--plm_every above 1"] * (self.plm_every > 1)
        return [self.embedding_optimizer, *fewer_steps, *["--use_lora"] * self.use_lora]

    def change(self, **settings) -> None:
        """Sets options otherwise than was asked for, and to the defaults of the case that this makes where those of the
        former case were not changed. `ValueError` where the options do not fit each other any more."""
        before = self.case_defaults()
        for name, value in settings.items():
            setattr(self, name, value)
        for name, value in (dict.fromkeys(before) | self.case_defaults()).items():
            if name not in settings and getattr(self, name) == before.get(name):
                setattr(self, name, value)
        self.check()

    def use_dense_tables(self) -> None:
        """Goes back to `--embedding_optimizer dense`."""
        self.change(embedding_optimizer="dense")

    def shown_defaults(self, defaults: dict) -> dict:
        """An argument of the model that is not given has the model's default, and the precision what the run chose."""
        from flip_ctr.modeling_flip.configuration_flip import FlipConfig

        config = FlipConfig()
        shown = {name: getattr(config, name, None) if value is None else value for name, value in defaults.items()}
        return shown if "mixed_precision" in self.given else shown | {"mixed_precision": self.mixed_precision}

    def check(self) -> None:
        if not self.use_lora:
            self.no_effect(
                "without --use_lora",
                lora_r=8,
                lora_alpha=16.0,
                lora_dropout=0.0,
                lora_target_modules=None,
                lora_adapter_only=False,
            )
        if self.freeze_plm_layers and self.use_lora:
            raise ValueError(
                "--freeze_plm_layers has no place beside --use_lora, which freezes all of the PLM and adds updates to "
                "it"
            )
        for name in ("use_lora", "freeze_plm_layers", "gradient_checkpointing"):
            if self.freeze_plm and getattr(self, name):
                raise ValueError(f"--{name} has no place beside --freeze_plm, which trains nothing of the PLM")
        if self.prompts == "row" and self.plm_every > 1:
            raise ValueError(f"--plm_every {self.plm_every} is for --prompts entity: rows share no prompts")
        if self.prompts == "entity" and self.mixed_precision == "fp16":
            raise ValueError("--mixed_precision fp16 does not run with --prompts entity; choose bf16 or no")
        every = self.checkpointing_steps
        if every is not None and every != "epoch" and not (every.isdigit() and int(every) > 0):
            raise ValueError(f"--checkpointing_steps must be a number of steps of at least 1, or `epoch`; got {every}")
        if self.checkpoints_total_limit is not None and every is None:
            raise ValueError("--checkpoints_total_limit has no effect without --checkpointing_steps")
        if self.id_tower is not None and self.id_tower not in ID_TOWERS and self.custom_code is None:
            module = sys.modules.get("flip_ctr.modeling_flip.id_tower")  # what was registered in this process
            if self.id_tower not in getattr(module, "ID_TOWERS", ()):
                raise ValueError(
                    f"--id_tower must be one of {', '.join(ID_TOWERS)}, or one that --custom_code my_towers.py "
                    f"registers; got {self.id_tower!r}{did_you_mean(self.id_tower, ID_TOWERS)}"
                )
        if self.id_tower_kwargs is not None:
            json_object("id_tower_kwargs", self.id_tower_kwargs, '{"low_rank": 32}')

    def check_id_tower(self, new: bool) -> None:
        """Raises `ValueError` where a new ID tower, one that `--id_model` does not start either, is to stay as it
        is."""
        if new and self.id_model is None and self.id_learning_rate == 0:
            raise ValueError(
                "--id_learning_rate 0 would leave a new ID tower as it was drawn: name one that was trained with "
                "--id_model"
            )


@dataclass(kw_only=True)
class PretrainArguments(TrainingOptions, ObjectiveOptions, HeadsOptions):
    """Of `flip-ctr pretrain`."""

    recipe: ClassVar[str] = "pretrain"

    model_name_or_path: str | None = option(
        None,
        "the PLM: a path or hub id of a masked language model, or of a decoder (then without MLM); none where no "
        "objective uses one (--mtm_text_dropout 1 --mlm_weight 0 --icl_weight 0)",
        model=True,
    )

    def cases(self) -> list[str]:
        holds = {
            "with a PLM": self.pretrains_text,
            "with MLM": self.uses_mlm,
            "--streaming": self.streaming and self.uses_mlm,
            "a PLM is aligned to --id_model": self.id_model is not None and self.aligns,
        }
        return [case for case, here in holds.items() if here] + super().cases()

    def check(self) -> None:
        super().check()
        if not (self.mlm_weight or self.mtm_weight or self.icl_weight):
            raise ValueError("--mlm_weight, --mtm_weight and --icl_weight are all 0: nothing to learn")
        if self.pretrains_text and self.model_name_or_path is None:
            raise ValueError(
                "an objective uses the PLM: --model_name_or_path must name it (without one only --mtm_text_dropout 1 "
                "--mlm_weight 0 --icl_weight 0)"
            )
        if not self.pretrains_text:
            self.no_effect(
                "as no objective uses the PLM",
                prompt_fields=None,
                model_name_or_path=None,
                prompts=None,
                plm_every=1,
                freeze_plm=False,
            )
        if not self.pretrains_id_tower:
            why = "as no objective uses the ID tower (--mtm_weight, --icl_weight, --mlm_id_dropout)"
            self.no_effect(why, id_model=None, id_learning_rate=None)
        self.check_id_tower(new=True)
        if self.id_learning_rate == 0:
            self.no_effect(
                "on a tower that stays as it is (--id_learning_rate 0, the default where a PLM is aligned to "
                "--id_model)",
                embedding_l2=0.0,
                id_dropout=None,
                id_embedding_dropout=None,
            )
        if not self.mtm_weight:
            self.no_effect("with --mtm_weight 0", mtm_text_dropout=0.0)
        if not self.mlm_weight:
            self.no_effect("with --mlm_weight 0", mlm_id_dropout=0.0, mlm_vocabulary=None)
        if self.mlm_vocabulary == "dataset" and self.streaming:
            raise ValueError(
                "--mlm_vocabulary dataset needs the rows encoded beforehand, to know which tokens they have; leave "
                "it, or --streaming, out"
            )
        if self.grad_cache_chunk_size is not None and not self.icl_weight:
            raise ValueError(
                "--grad_cache_chunk_size has no effect without ICL (--icl_weight 0): use --gradient_accumulation_steps"
            )


@dataclass(kw_only=True)
class FinetuneArguments(TrainingOptions, ClickOptions, TeacherOptions, BaseOptions):
    """Of `flip-ctr finetune`."""

    recipe: ClassVar[str] = "finetune"

    model_name_or_path: str | None = option(
        None,
        "a pretrained FLIP checkpoint, or a bare PLM (no pretraining); none for an ID-only model from scratch",
        model=True,
    )

    def cases(self) -> list[str]:
        started = self.strategy == "id" and (self.model_name_or_path or self.id_model) is not None
        return [self.strategy] + ["id from a checkpoint"] * started + super().cases()

    def check(self) -> None:
        super().check()
        given = f"with --strategy {self.strategy}"
        if self.model_name_or_path is None and self.strategy != "id":
            raise ValueError(f"--strategy {self.strategy} needs a PLM or a FLIP checkpoint: --model_name_or_path")
        if self.strategy in ("plm", "frozen"):
            self.no_effect(f"{given}, which has no ID tower that could start from it", id_model=None)
        if self.strategy == "plm":
            self.no_effect(f"{given}, which has no ID tower", id_learning_rate=None)
        self.check_id_tower(new=self.model_name_or_path is None)
        if self.strategy != "joint":
            self.no_effect(f"{given}, of which one tower predicts", fusion="scalar")
        if self.strategy in ("id", "frozen"):
            self.no_effect(f"{given}, whose ID tower reads all numbers", text_numbers=False)
        if self.strategy == "id":
            self.no_effect(f"{given}, which reads no prompts", prompt_fields=None, prompts=None, plm_every=1)
        if self.teacher is None:
            self.no_effect("without --teacher", teacher_weight=0.5, pairs_per_row=10)
        elif self.strategy != "id":
            raise ValueError(f"--teacher is for --strategy id, an ID-only student; got --strategy {self.strategy}")
        elif self.streaming:
            raise ValueError(
                "--teacher scores the rows before training, and --streaming keeps none; leave one of them out"
            )
        if self.strategy == "frozen":
            self.no_effect(
                f"{given}, which trains nothing of the PLM",
                use_lora=False,
                freeze_plm=False,
                freeze_plm_layers=0,
                gradient_checkpointing=False,
                plm_dropout=None,
            )


@dataclass(kw_only=True)
class TrainArguments(HubOptions):
    """Of `flip-ctr train`."""

    dataset_dir: str = required(DATASET_DIR, path=True)
    output_dir: str = required("folder for the model that is kept, and for the stages that lead to it", path=True)
    model_name_or_path: str | None = option(
        None, "the PLM: a path or hub id of a masked language model, or of a decoder; none for ids alone", model=True
    )
    overwrite_output_dir: bool = option(False, f"{OVERWRITE}; a killed run goes on without it", private=True)
    max_minutes: float | None = option(
        None,
        "time for all stages, which share it; reading the rows and scoring the test split come on top",
        above=0,
    )
    stages: str | None = option(
        None,
        "settings of the stages id_only, map, align, id, plm, joint and fused, or of all, as JSON, and in a --config "
        'file as YAML: {"map": {"num_train_epochs": 60}, "joint": null}; null leaves a stage out',
    )
    id_tower: str | None = option(None, "ID-based backbone, see `flip-ctr finetune`; dcnv2 when not given")
    calibration: str | None = option(None, CALIBRATION, choices=CALIBRATIONS)
    custom_code: list[str] | None = option(None, CUSTOM_CODE, path=True)
    max_train_samples: int | None = option(None, "train on a seeded random sample of so many rows", at_least=1)
    max_eval_samples: int | None = option(None, "evaluate on a seeded random sample of so many rows", at_least=1)
    mixed_precision: str | None = option(None, TRAINING_PRECISION, choices=PRECISIONS)
    seed: int = option(42, "seed of initialisation, order, masks and noise", at_least=0, at_most=MAX_SEED)

    def check(self) -> None:
        if self.stages is not None:
            self.stages = json_object("stages", self.stages, '{"map": {"num_train_epochs": 60}}')


# --- the other commands


@dataclass(kw_only=True)
class FuseArguments(LoadingOptions, ScoringOptions):
    """Of `flip-ctr fuse`."""

    recipe: ClassVar[str] = "fuse"

    dataset_dir: str = required("dataset folder that both models were trained on", path=True)
    id_model: str = required(
        "fine-tuned FLIP checkpoint whose ID tower is taken (strategy id or joint): a path or hub id", model=True
    )
    plm_model: str = required("fine-tuned FLIP checkpoint whose PLM is taken (strategy plm or joint)", model=True)
    output_dir: str = required("folder for the checkpoint and results", path=True)
    overwrite_output_dir: bool = option(False, OVERWRITE, private=True)
    fusion: str = option(
        "scalar", "scalar: one weight for all rows; gate: each row its own; raw: one without bounds", choices=FUSIONS
    )
    calibration: str | None = option(None, CALIBRATION, choices=CALIBRATIONS)
    max_eval_samples: int | None = option(None, "fit and score on seeded random samples of so many rows", at_least=1)
    seed: int = option(42, "seed of those samples, and of the folds", at_least=0, at_most=MAX_SEED)


@dataclass(kw_only=True)
class CalibrateArguments(LoadingOptions, ScoringOptions):
    """Of `flip-ctr calibrate`."""

    recipe: ClassVar[str] = "calibrate"

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    dataset_dir: str = required(
        "dataset folder, to whose validation split the probabilities are fitted; its rows are at their natural rate",
        path=True,
    )
    output_dir: str = required("folder for the calibrated checkpoint and results", path=True)
    overwrite_output_dir: bool = option(False, OVERWRITE, private=True)
    calibration: str = option("platt", CALIBRATION, choices=CALIBRATIONS)
    max_eval_samples: int | None = option(None, "fit and score on seeded random samples of so many rows", at_least=1)
    seed: int = option(42, "seed of those samples, and of the folds", at_least=0, at_most=MAX_SEED)


@dataclass
class PushArguments(Options):
    """Of `flip-ctr push`."""

    model_name_or_path: str = required("folder of a checkpoint", path=True)
    hub_model_id: str = required("repository to publish to, e.g. org/flip-ml1m")
    hub_private_repo: bool = option(False, PRIVATE_REPO)
    hub_pretraining_heads: bool = option(False, HEADS)


@dataclass
class DemoArguments(Options):
    """Of `flip-ctr demo`."""

    dataset: str = option(
        "demo", "demo: a generated catalogue; or a real dataset", choices=("demo", "ml-100k", "ml-1m")
    )
    data_dir: str | None = option(
        None, "folder or zip with the raw files of a real dataset; downloaded when not given", path=True
    )
    model_name_or_path: str | None = option(
        None, "the PLM, a path or hub id; the generated catalogue makes its own", model=True
    )
    output_dir: str = option("runs/demo", "folder for data, checkpoints, results and pictures", path=True)
    overwrite_output_dir: bool = option(False, "replace the output folder of a former demo")
    num_pretrain_epochs: float | None = option(None, "epochs of pretraining", above=0)
    num_train_epochs: float | None = option(None, "epochs of each fine-tuning", above=0)
    max_train_samples: int | None = option(None, "train on a seeded random sample of so many rows", at_least=1)
    seed: int = option(42, "seed of data, initialisation, order, masks and noise", at_least=0, at_most=MAX_SEED)
    mixed_precision: str | None = option(None, TRAINING_PRECISION, choices=PRECISIONS)

    def check(self) -> None:
        if self.dataset != "demo" and self.model_name_or_path is None:
            raise ValueError(
                f"--dataset {self.dataset} needs a PLM: --model_name_or_path (PLM=… for make) with the path or hub id "
                "of a masked language model, such as huawei-noah/TinyBERT_General_4L_312D"
            )
        if self.dataset == "demo" and self.data_dir is not None:
            raise ValueError(f"--data_dir {self.data_dir} needs --dataset ml-100k or ml-1m (DATASET=… for make)")
