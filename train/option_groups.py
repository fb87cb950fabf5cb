# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The groups of options that the commands share, in the order in which `--help` shows them.

Nothing here imports torch or transformers, so that `--help` and what is wrong with a command line come at once.
"""

from dataclasses import dataclass

from flip_ctr.train.options import MAX_SEED, Options, by_case, option, preset_names, required

OWN_DROPOUT = -1.0  # as --plm_dropout: the rates that the PLM has
EMBEDDING_OPTIMIZERS = ("dense", "rowwise_adagrad", "lazy_adam")

# the choices of settings of the model, as `modeling_flip` and `data` have them, which import torch; tests compare them
STRATEGIES = ("id", "plm", "joint", "frozen")
FUSIONS = ("scalar", "gate", "raw")
PROMPTS = ("row", "entity")
CALIBRATIONS = ("platt", "isotonic")
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
TRAINING_PRECISION = (
    "bf16 and fp16 are faster where the machine has them; when not given bf16 on a CPU that multiplies it (AVX-512 "
    "BF16), and else no"
)

# settings that are of no use where no PLM is
TRAINS_PLM = ("freeze_plm", "freeze_plm_layers", "use_lora", "gradient_checkpointing", "plm_learning_rate", "plm_every")
OF_LORA = ("lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_adapter_only")
OF_PLM = (
    *TRAINS_PLM,
    *OF_LORA,
    "prompts",
    "prompt_fields",
    "plm_dropout",
    "text_pooling",
    "text_numbers",
    "fusion",
    "torch_compile",
)

# arguments of pretraining, and settings of FlipConfig, that say what its objectives see
OBJECTIVES = ("mlm_weight", "mtm_weight", "icl_weight", "mlm_id_dropout", "mtm_text_dropout")

DATASET_DIR = "dataset folder written by `flip-ctr prepare`"
CLICK_MODEL = "a fine-tuned FLIP checkpoint: a path or hub id"
OVERWRITE = "write into an output folder that already holds files"
BASE = "base of a LoRA adapter, where the one that it names cannot be found"
CUSTOM_CODE = "Python files to import first, which register what is yours: my_towers.py for an ID tower of your own"
PRIVATE_REPO = "make a new repository private"
HEADS = "of a pretrained model publish the MLM and MTM heads too: they can return a user's demographics from an id"
CALIBRATION = (
    "fit probabilities to the clicks of validation: platt (two numbers) or isotonic (a rising curve, for thousands of "
    "clicks)"
)
PRESET = "named settings: `paper` takes the paper's choices where the defaults differ"
ROW_FILES = (
    "files with the rows, as the model's data had them or plain (.csv, .tsv, .jsonl, .parquet, also packed), paths or "
    "patterns"
)
EVENTS = (
    "file with what users did, an event a row, of which histories and click rates are made: the user's key, the item's "
    "key, other fields that click rates are of, and `clicked`"
)
ESCAPE = (
    "write ' before text that a spreadsheet would take for a formula (it begins with = + - @, a tab or a carriage "
    "return, and is no number); for a .csv output"
)


# --- groups


@dataclass(kw_only=True)
class RunOptions(Options):
    title = "Run"

    dataset_dir: str = required(DATASET_DIR, path=True)
    output_dir: str = required("folder for the checkpoint, results and history", path=True)
    overwrite_output_dir: bool = option(False, OVERWRITE, private=True)
    preset: str | None = option(None, PRESET, choices=preset_names())
    seed: int = option(42, "seed of initialisation, order, masks and noise", at_least=0, at_most=MAX_SEED)
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
    cold_rate: float = option(
        0.0,
        "share of users, and of items, that an epoch of training treats as new: key ids [UNK] in all their rows",
        at_least=0,
        below=1,
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
        "FLIP checkpoint whose ids and ID tower this run starts with (path or hub id)",
        model=True,
    )
    grow: bool = option(
        False,
        "give new values of the training rows, such as new users and items, ids of their own in the vocabulary of the "
        "checkpoint that this run starts with",
    )
    id_tower: str | None = option(
        None,
        f"ID-based backbone: {', '.join(ID_TOWERS)}, or one that --custom_code registers; dcnv2 in a new model",
    )
    id_tower_kwargs: str | None = option(None, "arguments of the tower as JSON, e.g. '{\"num_cross_layers\": 3}'")
    id_embedding_size: int | None = option(
        None, "size of a feature embedding; 32 in a new model", at_least=1, limit=2**16
    )
    id_hidden_dims: list[int] | None = option(
        None, "layers of the tower's DNN; 300 300 128 in a new model", at_least=1, limit=2**16
    )
    id_initializer_range: float | None = by_case("standard deviation of new feature embeddings; 0.02", above=0)
    id_dropout: float | None = option(None, "dropout in the tower's DNN; 0 in a new model", at_least=0, below=1)
    id_embedding_dropout: float | None = option(
        None, "dropout on the feature embeddings; 0 in a new model", at_least=0, below=1
    )
    prompts: str | None = option(
        None,
        "one prompt a row (the paper's), or one for each entity of a row, which the PLM reads once for all rows that "
        "share it; row in a new model",
        choices=PROMPTS,
    )
    text_pooling: str | None = option(
        None,
        "the PLM's pooled state: first token (cls), last token, or mean over the tokens; in a new model last for a "
        "decoder, cls for other PLMs",
        choices=("cls", "mean", "last"),
    )
    plm_dropout: float | None = by_case(
        f"every dropout of the PLM; {OWN_DROPOUT:.0f}: its own rates. 0 learns more in a few epochs, and is faster",
        at_least=0,
        below=1,
        also=(OWN_DROPOUT,),
    )
    freeze_plm: bool = option(
        False, "leave the PLM as it is; with --prompts entity what it says of a prompt is kept from epoch to epoch"
    )
    freeze_plm_layers: int = option(
        0,
        "leave the PLM's embeddings and so many of its lowest layers as they are",
        at_least=0,
    )


@dataclass(kw_only=True)
class ObjectiveOptions(Options):
    title = "Objectives of pretraining"

    mlm_weight: float = by_case(
        "weight of masked language modelling; 0 switches it off, which is the default of a decoder", at_least=0
    )
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
    projection_dim: int = option(128, "size of the space of contrastive learning", at_least=1, limit=2**16)
    grad_cache_chunk_size: int | None = option(
        None,
        "rows of one forward pass of a batch, where the whole batch does not fit into memory: ICL still sees all its "
        "rows (GradCache)",
        at_least=1,
    )

    @property
    def uses_mlm(self) -> bool:
        return self.mlm_weight != 0  # None while its default is not filled in

    # the same as of FlipConfig, which imports transformers; a test compares them

    @property
    def pretrains_text(self) -> bool:
        """Whether an objective uses the PLM."""
        return self.uses_mlm or self.icl_weight > 0 or self._mtm_uses_text

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
        return self.uses_mlm and self.mlm_id_dropout < 1

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
    text_numbers: bool = option(
        False,
        "with strategies plm and joint: the PLM's click layer also reads the numbers that no prompt says, such as the "
        "click rates of `prepare --statistics`",
    )
    negative_sampling_rate: float | None = option(
        None,
        "share of the non-clicks that was kept in the training rows, where validation and test have all: probabilities "
        "are corrected for it; a checkpoint brings its own, 1 in a new model",
        above=0,
        at_most=1,
    )
    calibration: str | None = option(None, CALIBRATION, choices=CALIBRATIONS)
    early_stopping_patience: int | None = option(
        3, "stop after so many evaluations without a better AUC - LogLoss", at_least=1
    )
    short_history_rate: float = option(
        0.0,
        "share of training rows whose history is cut to a random number of its last entries, 0 included",
        at_least=0,
        at_most=1,
    )


@dataclass(kw_only=True)
class TeacherOptions(Options):
    title = "Distillation"

    teacher: str | None = option(
        None,
        "fine-tuned FLIP checkpoint (path or hub id) of any strategy, from whose log odds an ID-only model learns too",
        model=True,
    )
    teacher_weight: float = option(
        0.5, "weight of the teacher in the loss; that of the clicks is the rest to 1", above=0, at_most=1
    )
    pairs_per_row: int = option(
        10,
        "pairs of a training row's user and the item of another row, drawn at random, that the teacher scores for each "
        "row; an epoch takes one of them in turn. 0: the training rows alone",
        at_least=0,
    )


@dataclass(kw_only=True)
class OptimisationOptions(Options):
    title = "Optimisation"

    num_train_epochs: float = by_case("epochs", above=0)
    max_train_steps: int = option(-1, "optimizer steps; overrides the epochs when above 0", at_least=-1)
    max_minutes: float | None = option(
        None,
        "end training after so many minutes (reading the rows and scoring the test split come on top); the learning "
        "rate falls with the time where that runs out before the steps do",
        at_least=0,
    )
    per_device_train_batch_size: int = by_case("rows a process takes in one forward pass", at_least=1)
    plm_every: int = option(
        1,
        "with --prompts entity: the PLM reads the prompts of so many optimizer steps together, and makes one step for "
        "them",
        at_least=1,
    )
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

    mixed_precision: str | None = option(None, TRAINING_PRECISION, choices=PRECISIONS)
    torch_compile: bool = option(False, "compile the PLM")
    attn_implementation: str | None = option(
        None, "attention of the PLM: eager, sdpa, flash_attention_2, ...; when not given the fastest on the first batch"
    )
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


@dataclass(kw_only=True)
class LoadingOptions(Options):
    title = "Loading"

    base_model_name_or_path: str | None = option(None, BASE, model=True)
    custom_code: list[str] | None = option(None, CUSTOM_CODE, path=True)
