# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A scikit-learn estimator: a frame and its clicks in, probabilities out."""

import copy
import json
import math
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from transformers import AutoConfig
from transformers.utils import cached_file

from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.data.datasets.infer_schema import infer_fields
from flip_ctr.data.readers.dataset_schema import DatasetSchema
from flip_ctr.estimator.frames import as_frame, is_matrix, matrix_frame, named_by_text
from flip_ctr.estimator.isolation import isolated
from flip_ctr.estimator.parameters import json_value, published_parameters, published_settings
from flip_ctr.estimator.targets import held_out_rows, read_labels, read_weights
from flip_ctr.estimator.training import Trained, fit_model
from flip_ctr.modeling_flip.columns_flip import read_columns
from flip_ctr.modeling_flip.configuration_flip import FlipConfig, is_decoder
from flip_ctr.modeling_flip.fields_flip import FlipField, read_fields
from flip_ctr.modeling_flip.rows_flip import RawRows
from flip_ctr.train.arguments import FinetuneArguments
from flip_ctr.train.loop.leave_out import explain
from flip_ctr.train.loop.loaders import fitting_batch_size
from flip_ctr.train.loop.run import make_accelerator
from flip_ctr.train.loop.scoring import score
from flip_ctr.train.models.build import check_model, load_click_model
from flip_ctr.train.models.lora import is_flip_checkpoint
from flip_ctr.train.option_groups import OF_PLM, TRAINS_PLM
from flip_ctr.train.options import did_you_mean
from flip_ctr.train.outputs.card import CARD
from flip_ctr.train.outputs.hub import CLASSIFIER, push_checkpoint
from flip_ctr.train.outputs.record import RECORD, read_record

DATASET = "data-frame"  # what a card calls the rows
# settings of the recipe that are parameters here
OWN = {"seed": "random_state"} | {
    name: name
    for name in (
        *("strategy", "model_name_or_path", "num_train_epochs", "learning_rate", "per_device_train_batch_size"),
        *("early_stopping_patience", "max_minutes"),
    )
}
# settings of folders and of runs, of which there are none
NOT_HERE = ("dataset_dir", "output_dir", "overwrite_output_dir", "streaming", "max_train_samples", "max_eval_samples")
NOT_HERE += ("grow", "report_to", "checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint")
NOT_HERE += ("push_to_hub", "hub_model_id", "hub_private_repo", "lora_adapter_only")
NOT_HERE += ("teacher", "teacher_weight", "pairs_per_row")
OF_NEW_MODELS = ("id_model", "prompt_fields", "prompts", "text_pooling")  # which a model has for good
# A PLM stays as it is unless a setting asks for something else: what it says of each text is then computed once.
FROZEN = {"prompts": "entity", "freeze_plm": True}
EPOCHS = 10  # with a PLM that stays as it is: as many as of ids alone
FLAG = re.compile(r"--(?=[a-z])")
KEPT = re.compile(r" Kept in .+: .+?\.(?= )")  # what of a run that broke off is in its folder


@contextmanager
def naming_parameters() -> Iterator[None]:
    """What is wrong with an option of the recipe is said of the parameter or setting of that name."""
    try:
        yield
    except (ValueError, OSError, FloatingPointError) as error:
        if not FLAG.search(str(error)):
            raise
        kind = next(one for one in (ValueError, OSError, FloatingPointError) if isinstance(error, one))
        raise kind(FLAG.sub("", KEPT.sub("", str(error)))) from error


class FlipClassifier(ClassifierMixin, BaseEstimator):
    """Click probabilities of the rows of a frame, as a scikit-learn classifier.

    ```python
    >>> from flip_ctr import FlipClassifier
    >>> model = FlipClassifier().fit(frame, clicks)
    >>> probabilities = model.predict_proba(frame)[:, 1]
    ```

    A row is what a click is predicted for: columns of the user, of the item, and of all else, with numbers, text, lists
    and nulls as they are. Rows come in every form that [`FlipProcessor`] takes; a matrix of numbers has the columns x0,
    x1, .... What columns are is inferred ([`infer_schema`]) or given. Training is that of `flip-ctr finetune`; nothing
    is written.

    Args:
        model_name_or_path: a PLM (path or hub id), which reads the text of users, items, ... and stays as it is, unless
            `settings` say `{"freeze_plm": False}`; or a FLIP checkpoint to start from. None for a model of ids alone.
        fields: a list of [`FlipField`] (or dicts); inferred when None.
        strategy: `id`, `plm`, `joint` or `frozen`, see `flip-ctr finetune`. `auto`: `id` without a PLM; with one both
            `id` and `joint` are trained, and the one with the better AUC - LogLoss on the validation rows is kept.
        num_train_epochs: at most so many epochs; the recipe's default of the strategy when None.
        learning_rate: of the ID tower and the heads; the recipe's default when None.
        per_device_train_batch_size: rows of a step; when None the recipe's default, or fewer where an epoch would have
            less than 32 steps.
        validation_fraction: share of the rows that early stopping sees and training does not, in the same share of
            each class. 0, or rows of which a class has only one: the last model is kept.
        early_stopping_patience: stop after so many epochs without a better AUC - LogLoss on the validation rows.
        max_minutes: end training after so many minutes, and keep the best model until then; the learning rate falls
            with the time.
        random_state: seed of initialisation, order and noise, and of the validation rows: an int, or as scikit-learn
            takes it. On a CPU equal seeds give equal models.
        verbose: show a progress bar, and each evaluation.
        settings: further settings of [`FinetuneArguments`] by name, such as `{"id_tower": "deepfm"}`.

    Attributes:
        classes_: `(2,)` the labels; the second one is the click.
        n_features_in_: number of columns of the rows in `fit`.
        feature_names_in_: their names, where they have some.
        fields_: the fields that the model reads.
        model_, processor_: the [`FlipForCTR`] and its [`FlipProcessor`].
        strategy_: the strategy that was trained, or chosen.
        history_: losses and evaluations by step, of `strategy_`.
    """

    def __init__(
        self,
        model_name_or_path: str | None = None,
        *,
        fields: list | None = None,
        strategy: str = "auto",
        num_train_epochs: float | None = None,
        learning_rate: float | None = None,
        per_device_train_batch_size: int | None = None,
        validation_fraction: float = 0.1,
        early_stopping_patience: int | None = 3,
        max_minutes: float | None = None,
        random_state: Any = 42,
        verbose: bool = False,
        settings: dict[str, Any] | None = None,
    ):
        self.model_name_or_path = model_name_or_path
        self.fields = fields
        self.strategy = strategy
        self.num_train_epochs = num_train_epochs
        self.learning_rate = learning_rate
        self.per_device_train_batch_size = per_device_train_batch_size
        self.validation_fraction = validation_fraction
        self.early_stopping_patience = early_stopping_patience
        self.max_minutes = max_minutes
        self.random_state = random_state
        self.verbose = verbose
        self.settings = settings

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = tags.input_tags.string = True
        tags.non_deterministic = torch.cuda.is_available()
        return tags

    # --- training

    def fit(self, X: Any, y: Any, eval_set: tuple[Any, Any] | None = None, sample_weight: Any = None):
        """Trains a new model.

        Args:
            X: n rows.
            y: `(n,)` labels of two classes: 0 and 1, bools, or any two values; the larger one is the click.
            eval_set: rows and labels of validation, in the place of `validation_fraction`.
            sample_weight: `(n,)` what each row counts in the loss, at least 0.

        Returns: the estimator.

        Raises:
            TypeError: `X` has a form that is not read.
            ValueError: a parameter, a column or a value does not fit; names it, and its row. `y` has a null, another
                length, or not two classes.
        """
        self._check_parameters()
        frame, fields = self._read_training(X)
        codes, classes = read_labels(y, len(frame))
        sets = self._sets(frame, fields, codes, classes, eval_set, sample_weight)
        self._train(sets, self._starts(fields, validates=sets[2] is not None), self.settings or {})
        self.classes_, self.fields_ = classes, fields
        return self

    def continue_fit(self, X: Any, y: Any, eval_set: tuple[Any, Any] | None = None, sample_weight: Any = None):
        """Goes on training on newer rows. Values that the model has not seen, such as new users and items, get ids of
        their own; it keeps its fields, strategy and classes. Arguments and errors are those of `fit`."""
        check_is_fitted(self, "model_")
        self._check_parameters()
        frame = self._read_known(X)
        codes, _ = read_labels(y, len(frame), self.classes_)
        sets = self._sets(frame, self.fields_, codes, self.classes_, eval_set, sample_weight)
        settings = {name: value for name, value in (self.settings or {}).items() if name not in OF_NEW_MODELS}
        if self._record and self._record["arguments"].get("freeze_plm") and settings.keys().isdisjoint(TRAINS_PLM):
            settings["freeze_plm"] = True
        with tempfile.TemporaryDirectory(prefix="flip-ctr-") as folder:
            self.save_pretrained(folder)
            self._train(sets, {self.strategy_: folder}, settings | {"grow": True})
        return self

    def _check_parameters(self) -> None:
        """Raises `ValueError` where a parameter does not fit, but for those that the recipe checks."""
        for name, value, low, high in (
            ("validation_fraction", self.validation_fraction, 0, 1),
            ("max_minutes", self.max_minutes, 0, math.inf),
        ):
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            if not (value is None or (is_number and low <= value < high)):
                limits = "at least 0" if high == math.inf else f"at least {low} and below {high}"
                raise ValueError(f"{name} must be a number of {limits}, or None; got {value!r}")
        settings = self.settings or {}
        if not isinstance(settings, dict):
            raise ValueError(f"settings must be a dict of settings of FinetuneArguments; got {settings!r}")
        known = {name for name in FinetuneArguments.__dataclass_fields__ if name not in (*OWN, *NOT_HERE)}
        for name in settings:
            if name in OWN:
                raise ValueError(f"settings: {name!r} is the parameter {OWN[name]} of FlipClassifier; give it there")
            if name not in known:
                raise ValueError(f"settings: there is no {name!r} here{did_you_mean(name, known, synonyms=True)}")

    def _read_training(self, X: Any) -> tuple[pd.DataFrame, list[FlipField]]:
        """The rows of `fit` as a frame, and the fields."""
        if is_matrix(X):
            matrix = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan")
            frame, fields = matrix_frame(matrix)
        else:
            frame, fields = as_frame(X), None
            self.feature_names_in_ = np.array(list(frame.columns), dtype=object)
            self.n_features_in_ = len(frame.columns)
            if not frame.size:
                raise ValueError(f"X has {len(frame)} rows and {len(frame.columns)} columns: there is nothing to learn")
        if self.fields is not None:
            fields = read_fields(copy.deepcopy(self.fields))  # sizes will be set
        elif fields is None:
            fields, unread = infer_fields(frame)
            if unread:
                reasons = ", ".join(f"{name!r} ({reason})" for name, reason in unread.items())
                warnings.warn(f"columns of X that are not read: {reasons}", stacklevel=3)
            nulls = {repr(one.name): ", ".join(map(repr, one.null_values)) for one in fields if one.null_values}
            if nulls:
                texts = "; ".join(f"{words} of {name}" for name, words in nulls.items())
                warnings.warn(f"texts of X that are read as null: {texts}. `fields` can say otherwise", stacklevel=3)
        if not fields:
            raise ValueError("X has no column that a click could be predicted by")
        return self._with_fields(frame, fields), fields

    def _read_known(self, X: Any) -> pd.DataFrame:
        """The rows of later calls as a frame."""
        return self._with_fields(as_frame(self._named(X)), self.fields_)

    def _named(self, X: Any) -> Any:
        """Rows of later calls, with names where they are a matrix."""
        if not is_matrix(X):
            return X
        if hasattr(self, "feature_names_in_"):
            raise ValueError(
                f"X is a matrix without names, and the model reads the columns "
                f"{', '.join(map(repr, self.feature_names_in_))}; give a frame with them"
            )
        return matrix_frame(validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False))[0]

    @staticmethod
    def _with_fields(frame: pd.DataFrame, fields: list[FlipField]) -> pd.DataFrame:
        """The columns of the fields, whose values can all be read: an error names a row as the caller counts them."""
        read_columns(frame, fields)
        return pd.DataFrame(RawRows.of(frame).columns(fields))

    def _sets(self, frame, fields, codes, classes, eval_set, sample_weight):
        """The schema of the rows, and those of training and of validation (None without), with labels and weights."""
        names = [field.name for field in fields]
        label, weight = _free_name("label", names), None
        frame = frame.assign(**{label: codes})
        if sample_weight is not None:
            weight = _free_name("sample_weight", names)
            frame[weight] = read_weights(sample_weight, len(frame))
        schema = DatasetSchema(DATASET, fields, label, weight_column=weight)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        if eval_set is not None:
            if not isinstance(eval_set, tuple) or len(eval_set) != 2:
                raise ValueError(f"eval_set is a pair (X, y) of rows and labels; got {type(eval_set).__name__}.")
            X, y = eval_set
            held_out = self._with_fields(as_frame(self._named(X)), fields)
            held_out[label] = read_labels(y, len(held_out), classes)[0]
            return schema, frame, held_out
        held_out = held_out_rows(codes, self.validation_fraction, self._seed) if self.validation_fraction else None
        if held_out is None:
            return schema, frame, None
        return schema, frame[~held_out], frame[held_out]

    def _train(self, sets, starts: dict[str, str | None], settings: dict) -> None:
        """Trains a model with each of the strategies, and takes the one that validation prefers.

        Args:
            starts: strategy -> what it starts from, a PLM or a FLIP checkpoint.
        """
        started = time.perf_counter()
        tried: dict[str, Trained] = {}
        for strategy, start in starts.items():
            minutes = None
            if self.max_minutes is not None:
                left = self.max_minutes - (time.perf_counter() - started) / 60
                minutes = max(0.0, left / (len(starts) - len(tried)))
            with isolated(), naming_parameters(), tempfile.TemporaryDirectory(prefix="flip-ctr-") as folder:
                args = self._arguments(folder, strategy, start, settings, sets, minutes)
                tried[strategy] = fit_model(args, *sets, progress=bool(self.verbose))
        self.strategy_ = max(tried, key=lambda one: tried[one].value or 0.0)
        best = tried[self.strategy_]
        self.model_, self.processor_, self.history_ = best.model, best.processor, best.history
        self._record, self._card = best.record, best.card

    def _arguments(
        self, folder: str, strategy: str, start: str | None, settings: dict, sets: tuple, minutes: float | None
    ) -> FinetuneArguments:
        if self.strategy == "auto" and strategy == "id":
            settings = {name: value for name, value in settings.items() if name not in OF_PLM}
        is_plm = start is not None and not is_flip_checkpoint(start)
        if is_plm and strategy in ("joint", "plm") and settings.keys().isdisjoint(TRAINS_PLM):
            decodes = is_decoder(AutoConfig.from_pretrained(start))  # its last token alone has seen the whole text
            settings = FROZEN | ({} if decodes else {"text_pooling": "mean"}) | settings
        given = {name: getattr(self, name) for name in OWN.values() if name not in ("random_state", "strategy")}
        args = FinetuneArguments(
            dataset_dir=folder,
            output_dir=folder,
            seed=self._seed,
            strategy=strategy,
            **given | {"model_name_or_path": start, "max_minutes": minutes},
            **settings,
        )
        if self.num_train_epochs is None and args.freeze_plm:
            args.num_train_epochs = EPOCHS
        if self.per_device_train_batch_size is None:
            most = args.per_device_train_batch_size  # the recipe's default
            args.per_device_train_batch_size = fitting_batch_size(len(sets[1]), most)
        return args

    def _starts(self, fields: list[FlipField], validates: bool) -> dict[str, str | None]:
        """The strategies to try, and what each starts from.

        Args:
            validates: whether there are rows to choose by.
        """
        path = self.model_name_or_path
        if path is not None:
            with naming_parameters():
                check_model("model_name_or_path", path)
        if self.strategy != "auto" or path is None:
            return {"id" if self.strategy == "auto" else self.strategy: path}
        config = AutoConfig.from_pretrained(path)
        is_plm = config.model_type != FlipConfig.model_type
        starts = {"id": None if is_plm else path, "joint": path}
        if not any(field.on_text_side for field in fields) or not (is_plm or config.text_config):
            del starts["joint"]  # nothing to read, or no one who reads it
        elif not validates:
            del starts["id"]
        return starts

    # --- predicting

    def decision_function(self, X: Any) -> np.ndarray:
        """Log odds of a click `(n,)`.

        Args:
            X: n rows, with the columns that the model reads; others are ignored.

        Raises:
            ValueError: a column is missing, or a value has another type: names column and row.
            NotFittedError: there is no model yet.
        """
        check_is_fitted(self, "model_")
        rows = self._named(X)
        rows = named_by_text(rows) if hasattr(rows, "columns") and hasattr(rows, "iloc") else rows
        columns = self.processor_.read_rows(rows).columns(self.processor_.feature_extractor.all_fields)
        with isolated():
            settings = self.settings or {}
            accelerator = make_accelerator(settings.get("mixed_precision", "no"))
            dataset = EncodedDataset(self.processor_, columns, prompts=self.model_.config.strategy != "id")
            if not len(dataset):
                return np.empty(0)
            size = settings.get("per_device_eval_batch_size", 512)
            logits = score(accelerator, self.model_.to(accelerator.device), dataset, size)["logits"]
        return logits.astype(np.float64)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `(n, 2)` of the two classes, in the order of `classes_`; arguments and errors as of
        `decision_function`."""
        log_odds = self.decision_function(X)
        return np.stack([expit(-log_odds), expit(log_odds)], axis=1)

    def predict(self, X: Any) -> np.ndarray:
        """The more probable class of each row `(n,)`; arguments and errors as of `decision_function`."""
        clicks = self.decision_function(X) > 0
        return self.classes_[clicks.astype(int)]

    def explain(self, X: Any) -> list[dict[str, Any]]:
        """How much of each row's score is each column, and of a joint model the ids and the text: a list of what
        [`flip_ctr.explain`] says. Arguments and errors as of `decision_function`."""
        check_is_fitted(self, "model_")
        return explain(self.model_, self.processor_, self._read_known(X))

    # --- keeping

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Saves the model as a FLIP checkpoint with a card, which transformers and all commands read, and the classes
        beside it."""
        check_is_fitted(self, "model_")
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.model_.save_pretrained(folder)
        self.processor_.save_pretrained(folder)
        names = getattr(self, "feature_names_in_", None)
        of_classifier = {
            "classes": self.classes_.tolist(),
            "n_features_in": self.n_features_in_,
            "feature_names_in": None if names is None else names.tolist(),
            "parameters": published_parameters(self.get_params(deep=False)),
        }
        texts = {CLASSIFIER: of_classifier, RECORD: self._record}
        for name, content in texts.items():
            text = json.dumps(content, indent=2, ensure_ascii=False, default=json_value)
            (folder / name).write_text(text + "\n", encoding="utf-8")
        if self._card is not None:
            (folder / CARD).write_text(self._card, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **parameters) -> "FlipClassifier":
        """A fitted classifier from a fine-tuned FLIP checkpoint, whoever wrote it.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            parameters: of the classifier, for `continue_fit`, `fit` and copies. The others are those with which it was
                trained, where a classifier saved the checkpoint (of a PLM in a folder its name alone); else the
                checkpoint's strategy, and defaults.

        Raises:
            OSError: there is no such checkpoint.
            ValueError: it is damaged, or no fine-tuned click model.
        """
        path = str(pretrained_model_name_or_path)
        with isolated():
            model, processor = load_click_model(path)
        file = cached_file(path, CLASSIFIER, _raise_exceptions_for_missing_entries=False)
        said = {} if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
        kept = said.get("parameters", {"strategy": model.config.strategy})
        kept = {name: kept[name] for name in cls._get_param_names() if name in kept}
        kept |= {"settings": published_settings(kept.get("settings"))}  # whoever wrote them
        classifier = cls(**kept | parameters)
        classifier.model_, classifier.processor_ = model, processor
        classifier.model_.requires_grad_(False)
        classifier.fields_ = classifier.processor_.feature_extractor.all_fields
        classifier.strategy_, classifier.history_ = classifier.model_.config.strategy, []
        classifier.classes_ = np.array(said.get("classes", [0, 1]))
        names = said.get("feature_names_in", [field.column or field.name for field in classifier.fields_])
        classifier.n_features_in_ = said.get("n_features_in", len(classifier.fields_))
        if names is not None:
            classifier.feature_names_in_ = np.array(names, dtype=object)
        card = cached_file(path, CARD, _raise_exceptions_for_missing_entries=False)
        classifier._record = read_record(path)
        classifier._card = None if card is None else Path(card).read_text(encoding="utf-8")
        return classifier

    def push_to_hub(self, repo_id: str, private: bool = False, token: str | None = None) -> str:
        """Publishes what `save_pretrained` saves; returns the repository's address. `ConnectionError` where that
        failed."""
        with tempfile.TemporaryDirectory(prefix="flip-ctr-") as folder:
            self.save_pretrained(folder)
            try:
                return push_checkpoint(folder, repo_id, private, token)
            except ConnectionError as error:
                reason = str(error).split(" It is whole in ")[0]
                raise ConnectionError(f"{reason} Keep the model with save_pretrained") from error.__cause__

    def __getstate__(self) -> dict[str, Any]:
        """Without a GPU, which the machine that reads it may lack."""
        state = super().__getstate__()
        if "model_" in state and state["model_"].device.type != "cpu":
            state = state | {"model_": copy.deepcopy(state["model_"]).cpu()}
        return state


def _free_name(name: str, taken: list[str]) -> str:
    """A name for a column that is no field."""
    while name in taken:
        name += "_"
    return name
