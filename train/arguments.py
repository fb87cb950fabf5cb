# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Arguments of the commands: groups of options, each a dataclass, and what each command is made of.

From Python: `FinetuneArguments(dataset_dir="D", output_dir="M", strategy="id", preset="paper")`. Nothing here imports
torch or transformers at the start, so that `--help` and what is wrong with a command line come at once.
"""

import json
import sys
from dataclasses import dataclass
from typing import ClassVar

from flip_ctr.train.options import Options, by_case, did_you_mean, option, preset_names, required

OWN_DROPOUT = -1.0  # as --plm_dropout: the rates that the PLM has
EMBEDDING_OPTIMIZERS = ("dense", "rowwise_adagrad", "lazy_adam")

# the choices of settings of the model, as `modeling_flip` and `data` have them, which import torch; tests compare them
STRATEGIES = ("id", "plm", "joint", "frozen")
FUSIONS = ("scalar", "gate", "raw")
MASK_UNITS = ("field", "entity", "token")
ID_TOWERS = (
    *("dcnv2", "lr", "fm", "afm", "widedeep", "deepfm", "pnn", "fibinet", "dcn", "gdcn", "xdeepfm", "autoint"),
    *("afn", "masknet", "finalmlp"),
)
# those of transformers that need the number of steps alone
SCHEDULES = (
    *("linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup", "inverse_sqrt"),
)
PRECISIONS = ("no", "bf16", "fp16")

# arguments of pretraining, and settings of FlipConfig, that say what its objectives see
OBJECTIVES = ("mlm_weight", "mtm_weight", "icl_weight", "mlm_id_dropout", "mtm_text_dropout")

DATASET_DIR = "dataset folder written by `flip-ctr prepare`"
CLICK_MODEL = "a fine-tuned FLIP checkpoint: a path or hub id"
OVERWRITE = "write into an output folder that already holds files"
BASE = "base of a LoRA adapter, where the one that it names cannot be found"
CUSTOM_CODE = "Python files to import first, which register what is yours: my_towers.py for an ID tower of your own"
PRIVATE_REPO = "make a new repository private"
HEADS = "of a pretrained model publish the MLM and MTM heads too: they can return a user's demographics from an id"
PRESET = "named settings: `paper` takes the paper's choices where the defaults differ"


# --- groups


@dataclass(kw_only=True)
class RunOptions(Options):
    title = "Run"

    dataset_dir: str = required(DATASET_DIR, path=True)
    output_dir: str = required("folder for the checkpoint, results and history", path=True)
    overwrite_output_dir: bool = option(False, OVERWRITE, private=True)
    preset: str | None = option(None, PRESET, choices=preset_names())
    seed: int = option(42, "seed of initialisation, order, masks and noise")
    custom_code: list[str] | None = option(None, CUSTOM_CODE, path=True)


@dataclass(kw_only=True)
class DataOptions(Options):
    title = "Data"

    max_train_samples: int | None = option(None, "train on a seeded random sample of so many rows", at_least=1)
    max_eval_samples: int | None = option(None, "evaluate on a seeded random sample of so many rows", at_least=1)
    streaming: bool = option(
        False,
        "read the training rows anew in each epoch, a window at a time, instead of encoding them to disk once "
        "(only neighbours are mixed: prepare writes training rows in random order)",
    )
    prompt_fields: list[str] | None = option(
        None,
        "fields of the prompts, e.g. title genre; those that the dataset's schema puts there when not given (a "
        "checkpoint brings its own)",
    )
    min_frequency: int = option(1, "values in fewer training rows share the id [UNK]", at_least=1)
    unk_rate: float = by_case(
        "share of training rows whose user's, or item's, key ids are dropped to [UNK]", at_least=0, below=1
    )
    hash_user_values: bool = option(
        False, "keep raw values of the user's fields out of the vocabulary: store keyed hashes"
    )


@dataclass(kw_only=True)
class ModelOptions(Options):
    title = "Model"

    model_name_or_path: str | None = option(None, "the PLM, or a FLIP checkpoint: a path or hub id", model=True)
    id_model: str | None = option(
        None,
        "FLIP checkpoint, trained on the same rows, whose ID tower this run starts with (path or hub id)",
        model=True,
    )
    id_tower: str | None = option(
        None,
        f"ID-based backbone: {', '.join(ID_TOWERS)}, or one that --custom_code registers; dcnv2 in a new model",
    )
    id_tower_kwargs: str | None = option(None, "arguments of the tower as JSON, e.g. '{\"num_cross_layers\": 3}'")
    id_embedding_size: int | None = option(None, "size of a feature embedding; 32 in a new model", at_least=1)
    id_hidden_dims: list[int] | None = option(None, "layers of the tower's DNN; 300 300 128 in a new model", at_least=1)
    id_initializer_range: float | None = by_case("standard deviation of new feature embeddings; 0.02", above=0)
    id_dropout: float | None = option(None, "dropout in the tower's DNN; 0 in a new model", at_least=0, below=1)
    id_embedding_dropout: float | None = option(
        None, "dropout on the feature embeddings; 0 in a new model", at_least=0, below=1
    )
    text_pooling: str | None = option(None, "the PLM's pooled state; cls in a new model", choices=("cls", "mean"))
    plm_dropout: float | None = by_case(
        f"every dropout of the PLM; {OWN_DROPOUT:.0f}: its own rates. 0 learns more in a few epochs, and is faster",
        at_least=0,
        below=1,
        also=(OWN_DROPOUT,),
    )
    freeze_plm_layers: int = option(
        0,
        "leave the PLM's embeddings and so many of its lowest layers as they are; all of its layers: all of the PLM",
        at_least=0,
    )


@dataclass(kw_only=True)
class ObjectiveOptions(Options):
    title = "Objectives of pretraining"

    mlm_weight: float = option(1.0, "weight of masked language modelling; 0 switches it off", at_least=0)
    mtm_weight: float = option(1.0, "weight of masked tabular modelling; 0 switches it off", at_least=0)
    icl_weight: float = option(1.0, "weight of instance-level contrastive learning; 0 switches it off", at_least=0)
    mlm_id_dropout: float = option(
        0.0,
        "share of rows whose ids MLM does not see; 1: plain masked language modelling on the prompts",
        at_least=0,
        at_most=1,
    )
    mtm_text_dropout: float = option(
        0.0,
        "share of rows whose text MTM does not see; 1: ids are recovered from the other ids alone (MAP)",
        at_least=0,
        at_most=1,
    )
    text_mask_ratio: float = by_case(
        "share of the units (--mask_unit) masked in the text, at least one", above=0, at_most=1
    )
    id_mask_ratio: float = by_case("share of the units masked on the ID side, at least one", above=0, at_most=1)
    mask_unit: str = by_case(
        "what is masked together: field, entity (all fields of the user, or of the item; of a view with fields of one "
        "entity only: field) or token (of the text; ids by field)",
        choices=MASK_UNITS,
    )
    mlm_vocabulary: str | None = by_case(
        "MLM's softmax is over the tokens that the training prompts have (dataset), or over all of the PLM's (plm)",
        choices=("dataset", "plm"),
    )
    mtm_noise: str = by_case(
        "noise features come from the target's own field, or are global (the paper's)", choices=("field", "global")
    )
    icl_similarity: str = by_case("cosine with a learnable scale, or dot (the release)", choices=("cosine", "dot"))
    icl_temperature: float | None = by_case("start of the temperature of cosine (0.07), or that of dot (0.7)", above=0)
    projection_dim: int = option(128, "size of the space of contrastive learning", at_least=1)
    grad_cache_chunk_size: int | None = option(
        None,
        "rows of one forward pass of a batch, where the whole batch does not fit into memory: ICL still sees all its "
        "rows (GradCache)",
        at_least=1,
    )

    # the same as of FlipConfig, which imports transformers; a test compares them

    @property
    def pretrains_text(self) -> bool:
        """Whether an objective uses the PLM."""
        return self.mlm_weight > 0 or self.icl_weight > 0 or self._mtm_uses_text

    @property
    def pretrains_id_tower(self) -> bool:
        """Whether an objective uses the ID tower."""
        return self.mtm_weight > 0 or self.icl_weight > 0 or self._mlm_uses_ids

    @property
    def aligns(self) -> bool:
        """Whether an objective sees both views."""
        return self._mlm_uses_ids or self._mtm_uses_text or self.icl_weight > 0

    @property
    def _mlm_uses_ids(self) -> bool:
        return self.mlm_weight > 0 and self.mlm_id_dropout < 1

    @property
    def _mtm_uses_text(self) -> bool:
        return self.mtm_weight > 0 and self.mtm_text_dropout < 1


@dataclass(kw_only=True)
class ClickOptions(Options):
    title = "Click prediction"

    strategy: str = option(
        "joint",
        "which towers predict: id, plm or joint; or frozen: the ID tower, with the frozen PLM's text embedding as one "
        "more field",
        choices=STRATEGIES,
    )
    fusion: str = by_case(
        "how joint weighs the towers: scalar, gate (each row its own weight) or raw (the release)", choices=FUSIONS
    )
    early_stopping_patience: int | None = option(
        3, "stop after so many evaluations without a better AUC - LogLoss", at_least=1
    )


@dataclass(kw_only=True)
class OptimisationOptions(Options):
    title = "Optimisation"

    num_train_epochs: float = by_case("epochs", above=0)
    max_train_steps: int = option(-1, "optimizer steps; overrides the epochs when above 0", at_least=-1)
    per_device_train_batch_size: int = by_case("rows a process takes in one forward pass", at_least=1)
    gradient_accumulation_steps: int = option(1, "batches added up before an optimizer step", at_least=1)
    learning_rate: float = by_case("of the ID tower and all heads", above=0)
    plm_learning_rate: float = by_case("of the PLM", above=0)
    id_learning_rate: float | None = by_case(
        "of the ID tower; --learning_rate when not given. 0 leaves the tower as it is", at_least=0
    )
    embedding_learning_rate: float | None = by_case("of the feature tables; the ID tower's when not given", above=0)
    embedding_optimizer: str = option(
        "dense",
        "of the feature tables: dense (AdamW; a step costs as much as the vocabulary is large), rowwise_adagrad or "
        "lazy_adam (touched rows only)",
        choices=EMBEDDING_OPTIMIZERS,
    )
    embedding_l2: float = by_case(
        "factor of the sum of squares of the whole feature tables, added to the loss", at_least=0
    )
    weight_decay: float = by_case("AdamW's, on weight matrices outside the embedding tables", at_least=0)
    lr_scheduler_type: str = by_case(f"shape of the learning rate: {', '.join(SCHEDULES)}", choices=SCHEDULES)
    warmup_ratio: float = option(0.05, "share of the steps with a rising learning rate", at_least=0, below=1)
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: not at all", at_least=0)


@dataclass(kw_only=True)
class LoraOptions(Options):
    title = "LoRA"

    use_lora: bool = option(
        False, "of the PLM train low-rank updates only (LoRA); the ID tower and the heads train in full"
    )
    lora_r: int = option(8, "rank of the updates", at_least=1)
    lora_alpha: float = option(16.0, "the updates are scaled by this / rank", above=0)
    lora_dropout: float = option(0.0, "dropout before the updates", at_least=0, below=1)
    lora_target_modules: list[str] | None = option(
        None, "names of the PLM's linear layers that are updated, e.g. query value; all of them when not given"
    )
    lora_adapter_only: bool = option(
        False, "save the updates, the ID tower and the heads without the PLM, instead of a merged model"
    )


@dataclass(kw_only=True)
class ScoringOptions(Options):
    title = "Memory and speed"

    per_device_eval_batch_size: int = option(512, "rows a process takes in one pass without gradients", at_least=1)
    mixed_precision: str = option("no", "bf16 and fp16 are faster where the machine has them", choices=PRECISIONS)


@dataclass(kw_only=True)
class SpeedOptions(ScoringOptions):
    title = ScoringOptions.title

    torch_compile: bool = option(False, "compile the PLM")
    attn_implementation: str | None = option(None, "attention of the PLM: eager, sdpa, flash_attention_2, ...")
    gradient_checkpointing: bool = option(False, "recompute the PLM's activations to save memory")
    dataloader_num_workers: int = option(0, "processes that compose batches", at_least=0)


@dataclass(kw_only=True)
class CheckpointOptions(Options):
    title = "Evaluations, reports and step checkpoints"

    logging_steps: int = option(50, "optimizer steps between entries of the history", at_least=1)
    eval_steps: int | None = option(None, "optimizer steps between evaluations; each epoch when not given", at_least=1)
    report_to: str = option(
        "none",
        "tracker that gets the history too",
        choices=("none", "tensorboard", "wandb", "trackio"),
        private=True,
    )
    checkpointing_steps: str | None = option(
        None, "save all that a killed run needs to go on, every so many optimizer steps or each `epoch`", private=True
    )
    checkpoints_total_limit: int | None = option(
        None, "keep only so many of these step checkpoints, the newest", at_least=1, private=True
    )
    resume_from_checkpoint: str | None = option(
        None,
        "go on from a step checkpoint: its folder, or `latest` of the output folder (from the beginning where there "
        "is none)",
        path=True,
    )


@dataclass(kw_only=True)
class HubOptions(Options):
    title = "Hugging Face Hub"

    push_to_hub: bool = option(
        False,
        "publish the checkpoint when done, with the token of `hf auth login` or HF_TOKEN; `flip-ctr push` does so "
        "later",
        private=True,
    )
    hub_model_id: str | None = option(
        None, "repository to publish to, e.g. org/flip-ml1m; the output folder's name when not given", private=True
    )
    hub_private_repo: bool = option(False, PRIVATE_REPO, private=True)


@dataclass(kw_only=True)
class HeadsOptions(Options):
    title = HubOptions.title

    hub_pretraining_heads: bool = option(False, HEADS, private=True)


@dataclass(kw_only=True)
class BaseOptions(Options):
    title = ModelOptions.title

    base_model_name_or_path: str | None = option(None, BASE, model=True)


# --- training


@dataclass(kw_only=True)
class TrainArguments(
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
        return [self.embedding_optimizer] + ["--use_lora"] * self.use_lora

    def use_dense_tables(self) -> None:
        """Goes back to `--embedding_optimizer dense`, and to its defaults where those of the other one were not
        changed."""
        before = self.case_defaults()
        self.embedding_optimizer = "dense"
        for name, value in (dict.fromkeys(before) | self.case_defaults()).items():
            if getattr(self, name) == before[name]:
                setattr(self, name, value)

    def shown_defaults(self, defaults: dict) -> dict:
        """An argument of the model that is not given has the model's default."""
        from flip_ctr.modeling_flip.configuration_flip import FlipConfig

        config = FlipConfig()
        return {name: getattr(config, name, None) if value is None else value for name, value in defaults.items()}

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
            try:
                valid = isinstance(json.loads(self.id_tower_kwargs), dict)
            except json.JSONDecodeError:
                valid = False
            if not valid:
                raise ValueError(
                    f'--id_tower_kwargs must be a JSON object such as {{"low_rank": 32}}; got {self.id_tower_kwargs}'
                )

    def check_id_tower(self, new: bool) -> None:
        """Raises `ValueError` where a new ID tower, one that `--id_model` does not start either, is to stay as it
        is."""
        if new and self.id_model is None and self.id_learning_rate == 0:
            raise ValueError(
                "--id_learning_rate 0 would leave a new ID tower as it was drawn: name one that was trained with "
                "--id_model"
            )


@dataclass(kw_only=True)
class PretrainArguments(TrainArguments, ObjectiveOptions, HeadsOptions):
    """Of `flip-ctr pretrain`."""

    recipe: ClassVar[str] = "pretrain"

    model_name_or_path: str | None = option(
        None,
        "the PLM: a path or hub id of a masked language model; none where no objective uses one (--mtm_text_dropout 1 "
        "--mlm_weight 0 --icl_weight 0)",
        model=True,
    )

    def cases(self) -> list[str]:
        holds = {
            "with a PLM": self.pretrains_text,
            "with MLM": self.mlm_weight > 0,
            "--streaming": self.streaming and self.mlm_weight > 0,
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
            self.no_effect("as no objective uses the PLM", prompt_fields=None, model_name_or_path=None)
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
class FinetuneArguments(TrainArguments, ClickOptions, BaseOptions):
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
        if self.strategy == "id":
            self.no_effect(f"{given}, which reads no prompts", prompt_fields=None)
        if self.strategy == "frozen":
            self.no_effect(
                f"{given}, which trains nothing of the PLM",
                use_lora=False,
                freeze_plm_layers=0,
                gradient_checkpointing=False,
                plm_dropout=None,
            )


# --- the other commands


@dataclass(kw_only=True)
class LoadingOptions(Options):
    title = "Loading"

    base_model_name_or_path: str | None = option(None, BASE, model=True)
    custom_code: list[str] | None = option(None, CUSTOM_CODE, path=True)


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
    max_eval_samples: int | None = option(None, "fit and score on seeded random samples of so many rows", at_least=1)
    seed: int = option(42, "seed of those samples, and of the folds")


@dataclass
class EvaluateArguments(LoadingOptions, ScoringOptions):
    """Of `flip-ctr evaluate`."""

    dataset_dir: str = required(DATASET_DIR, path=True)
    model_name_or_path: str = required(CLICK_MODEL, model=True)
    split: str = option("test", "rows to score", choices=("train", "validation", "test"))
    output_dir: str | None = option(
        None, "folder for all_results.json and reliability.png; only printed when not given", path=True
    )
    max_eval_samples: int | None = option(None, "evaluate on a seeded random sample of so many rows", at_least=1)
    seed: int = option(42, "seed of that sample")


@dataclass
class PredictArguments(LoadingOptions, ScoringOptions):
    """Of `flip-ctr predict`."""

    model_name_or_path: str = required(CLICK_MODEL, model=True)
    input: str = required("file with the rows (.parquet, .csv, .jsonl)", path=True)
    output: str = required("file to write, the rows with their probabilities (the same formats)", path=True)


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
    seed: int = option(42, "seed of data, initialisation, order, masks and noise")
    mixed_precision: str = option("no", "bf16 and fp16 are faster where the machine has them", choices=PRECISIONS)

    def check(self) -> None:
        if self.dataset != "demo" and self.model_name_or_path is None:
            raise ValueError(
                f"--dataset {self.dataset} needs a PLM: --model_name_or_path (PLM=… for make) with the path or hub id "
                "of a masked language model, such as huawei-noah/TinyBERT_General_4L_312D"
            )
        if self.dataset == "demo" and self.data_dir is not None:
            raise ValueError(f"--data_dir {self.data_dir} needs --dataset ml-100k or ml-1m (DATASET=… for make)")


# --- prepare

TABLE = "table"
DATASETS = ("ml-100k", "ml-1m", "bookcrossing", "goodreads", TABLE)
SPLITS = ("random", "time", "leave_last_out", "by_user", "cold_items", "cold_users")
# options that mean nothing to some dataset, and what says it there
OF_RATINGS = {
    "drop_ratings": "`drop` of the schema",
    "click_threshold": "`label` of the schema",
    "ids_in_prompt": "`sides` of the schema's fields",
    "preset": "`sides` of the schema's fields",
}
OF_TABLES = ("schema", "data_files")


@dataclass(kw_only=True)
class TableOptions(Options):
    title = "A table of your own"

    schema: str | None = option(
        None,
        "YAML file that describes a table (docs/datasets.md), or with --infer_schema the one to write: schema.yaml "
        "when not given",
        path=True,
    )
    data_files: list[str] | None = option(
        None,
        "files or patterns of the events, in place of the schema's: relative to --data_dir, or to the current folder "
        "without it",
        path=True,
    )
    infer_schema: list[str] | None = option(
        None,
        "write a first --schema to edit from a sample of these files, and no dataset. The first are the events; files "
        "with other columns are side tables",
        path=True,
    )


@dataclass(kw_only=True)
class RowOptions(Options):
    title = "Rows and splits"

    split: str | None = option(
        None,
        "random (when neither this nor a schema says): rows, by hash; time: the latest rows are test; leave_last_out: "
        "each user's last row is test (neither of them for bookcrossing or the CSV of goodreads, which have no times); "
        "by_user: a share of each user's rows, by hash; cold_*: whole items or users, by hash",
        choices=SPLITS,
    )
    split_seed: int | None = option(None, "part of what is hashed; 42 when neither this nor a schema says")
    ratios: list[int] | None = option(
        None,
        "three whole numbers, the shares of train, validation and test; 8 1 1 when neither this nor a schema says",
        length=3,
        at_least=1,
    )
    drop_ratings: str | None = option(
        None,
        "ratings to drop, comma separated; '' drops none. When not given: 3 of MovieLens, 0 (a book without a rating) "
        "of bookcrossing and goodreads. Not of a table",
    )
    click_threshold: int | None = option(
        None, "a rating of at least this is a click. When not given: 4 of MovieLens and goodreads, 8 of bookcrossing"
    )
    max_malformed_share: float = option(
        0.001, "share of a file's lines that may be malformed; above it nothing is written", at_least=0, at_most=1
    )


@dataclass(kw_only=True)
class PromptOptions(Options):
    title = "Prompts"

    preset: str | None = option(None, "named settings: paper puts the ids into the prompt", choices=preset_names())
    ids_in_prompt: bool = by_case("put the ids into the prompt (as the paper does)")
    tokenizer_name: str | None = option(
        None, "a PLM (path or hub id) whose tokens the card counts the prompts in; words when not given", model=True
    )


@dataclass(kw_only=True)
class EngineOptions(Options):
    title = "Engine"

    engine: str = option(
        "duckdb",
        "what joins, labels and splits: DuckDB in this process, or Spark (pip install 'flip-ctr[spark]', Java 17)",
        choices=("duckdb", "pyspark"),
    )
    memory_limit: str | None = option(
        None,
        "most memory that DuckDB takes, e.g. 4GB; the rest goes through files. Four fifths of the machine's when not "
        "given",
    )


@dataclass
class PrepareArguments(TableOptions, RowOptions, PromptOptions, EngineOptions):
    """Of `flip-ctr prepare`."""

    recipe: ClassVar[str] = "prepare"
    title = "Files"

    dataset: str | None = option(
        None, "which dataset the raw files are; table: any table, which --schema describes", choices=DATASETS
    )
    output_dir: str | None = option(None, "dataset folder to write", path=True)
    data_dir: str | None = option(
        None,
        "folder with the raw files, or their zip. Without it the official archive is downloaded (MovieLens only). Of a "
        "table the folder to which the schema's files are relative; that of the schema when not given",
        path=True,
    )
    overwrite_output_dir: bool = option(False, "replace an existing dataset folder")

    def check(self) -> None:
        if self.infer_schema is not None:
            self._refuse(self.given - {"dataset", "infer_schema", "schema"}, "--infer_schema")
            if self.dataset not in (None, TABLE):
                raise ValueError(f"--infer_schema is for --dataset {TABLE}; {self.dataset} is known already.")
            return
        if self.dataset is None:
            raise ValueError(f"--dataset must be one of {', '.join(DATASETS)}.")
        if self.output_dir is None:
            raise ValueError("--output_dir is needed: the dataset folder to write.")
        if self.dataset != TABLE:
            self._refuse(OF_TABLES, f"--dataset {self.dataset}")
            self._check_ratings()
            return
        self._refuse(OF_RATINGS, f"--dataset {TABLE}")
        if self.schema is None:
            raise ValueError(
                f"--schema is needed for --dataset {TABLE}: a YAML file that describes it (docs/datasets.md); "
                "--infer_schema FILE writes a first one."
            )

    def _refuse(self, names, owner: str) -> None:
        """`ValueError` where one of the options was given, as it would have no effect."""
        for name in sorted(self.given.intersection(names)):
            instead = f"; {OF_RATINGS[name]} says that" if owner == f"--dataset {TABLE}" else ""
            raise ValueError(f"--{name} has no effect with {owner}{instead}.")

    def _check_ratings(self) -> None:
        """Sets what is not given to what the dataset has, and raises `ValueError` where a value is not for it."""
        from flip_ctr.data.datasets.public_datasets import PUBLIC_DATASETS
        from flip_ctr.data.prepare.splits import SEED, check_split

        raw = PUBLIC_DATASETS[self.dataset]
        self.split, self.split_seed = self.split or "random", SEED if self.split_seed is None else self.split_seed
        if self.data_dir is None and raw.described_at:
            raise ValueError(
                f"--data_dir is needed for {self.dataset}, which is not downloaded: name a folder or zip with "
                f"{', '.join(raw.files)}. They are described in {raw.described_at}."
            )
        check_split(self.split, user=raw.user, item=raw.item, time=raw.time)
        lowest, highest = raw.ratings[0], raw.ratings[-1]
        if self.drop_ratings is None:
            self.drop_ratings = ",".join(map(str, raw.drop_ratings))
        given = [rating.strip() for rating in self.drop_ratings.split(",")] if self.drop_ratings.strip() else []
        if not set(given) <= set(map(str, raw.ratings)):
            raise ValueError(
                f"--drop_ratings takes ratings from {lowest} to {highest} for {self.dataset}, as '3' or '2,3'; "
                f"got {self.drop_ratings!r}."
            )
        if self.click_threshold is None:
            self.click_threshold = raw.click_threshold
        if not lowest < self.click_threshold <= highest:
            raise ValueError(
                f"--click_threshold must be from {lowest + 1} to {highest} for {self.dataset}, whose ratings go from "
                f"{lowest} to {highest}; got {self.click_threshold}."
            )

    @property
    def dropped_ratings(self) -> list[int]:
        return sorted({int(rating) for rating in self.drop_ratings.split(",") if rating.strip()})
