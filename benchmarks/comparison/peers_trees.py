# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""CatBoost on our rows; see [`peers`] for what it sees.

Each field is a categorical column, for which CatBoost computes target statistics in its own way; a multi-valued one is
a categorical column whose values are whole lists; a numeric one is the number of its bucket. Weights of rows count in
splits and leaves, but not in those statistics, which have none. Trees have no epochs and no learning-rate schedule:
after each tree validation AUC - LogLoss is measured, training ends after `early_stopping_patience` trees without a
better one, and the best number of trees is kept.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from flip_ctr.benchmarks.comparison.peers import PeerArguments, PeerData, best_evaluation, save_predictions
from flip_ctr.train.options import option


@dataclass(kw_only=True)
class CatBoostArguments(PeerArguments):
    iterations: int = option(2000, "most trees")
    early_stopping_patience: int = option(100, "stop after so many trees without a better AUC - LogLoss")
    learning_rate: float | None = option(None, "CatBoost's own choice when not given")
    depth: int = option(6, "of a tree; CatBoost's default")
    l2_leaf_reg: float = option(3.0, "CatBoost's default")
    max_ctr_complexity: int = option(4, "how many fields it crosses at most; CatBoost's default")


def run(args: CatBoostArguments, folder: Path) -> dict:
    """Trains, saves predictions into the folder and returns the costs; `parameters` are the values of all leaves."""
    from catboost import CatBoostClassifier, Pool

    data = PeerData(args.dataset_dir)
    categorical = [one.name for one in data.columns if one.field.kind != "numeric"]
    tables = {split: table(data, split) for split in data.splits}
    pools = {
        split: Pool(
            tables[split],
            data.labels(split),
            cat_features=categorical,
            weight=data.weights(split) if split == "train" else None,
        )
        for split in data.splits
    }
    history, started = [], time.perf_counter()

    def after_tree(info) -> bool:
        """Keeps the history; False ends training."""
        measured = {name: info.metrics["validation"][key][-1] for name, key in (("auc", "AUC"), ("logloss", "Logloss"))}
        history.append({"seconds": time.perf_counter() - started, "epoch": info.iteration, **measured})
        return len(history) - 1 - best_evaluation(history) < args.early_stopping_patience

    model = CatBoostClassifier(
        iterations=args.iterations,
        learning_rate=args.learning_rate,
        depth=args.depth,
        l2_leaf_reg=args.l2_leaf_reg,
        max_ctr_complexity=args.max_ctr_complexity,
        loss_function="Logloss",
        custom_metric=["AUC:hints=skip_train~true", "Logloss"],
        use_best_model=False,
        random_seed=args.seed,
        thread_count=torch.get_num_threads(),
        allow_writing_files=False,
        verbose=100,
    )
    model.fit(
        pools["train"],
        eval_set=pools["validation"],
        callbacks=[type("AfterTree", (), {"after_iteration": staticmethod(after_tree)})()],
    )
    seconds = time.perf_counter() - started
    trees = 1 + best_evaluation(history)
    model.shrink(trees)

    def score(split: str) -> np.ndarray:
        rows, size = tables[split], args.per_device_eval_batch_size
        parts = [Pool(rows[start : start + size], cat_features=categorical) for start in range(0, len(rows), size)]
        return np.concatenate([model.predict(part, prediction_type="RawFormulaVal") for part in parts]).astype(
            np.float32
        )

    return save_predictions(folder, data, score) | {
        "train_seconds": seconds,
        "train_rows": len(tables["train"]),
        "train_steps": len(history),
        "best_epoch": trees,
        "history": history,
        "parameters": int(model.get_leaf_values().size),
    }


def table(data: PeerData, split: str) -> pd.DataFrame:
    """The rows as a frame: ids, and lists of ids as text."""
    ids = data.ids(split)
    columns = {}
    for one in data.columns:
        part = ids[:, one.start : one.stop]
        columns[one.name] = (
            [" ".join(map(str, row[row > 0])) for row in part] if one.field.is_multi_valued else part[:, 0]
        )
    return pd.DataFrame(columns)
