# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""The metrics of click prediction as an `evaluate.Metric` that needs no network. A module of its own: importing
`evaluate` takes seconds, and the recipes need the numbers alone."""

import datasets
import evaluate

from flip_ctr.train.outputs.metrics import click_metrics


class ClickMetrics(evaluate.Metric):
    """What [`click_metrics`] computes: `compute(predictions=logits, references=labels, users=...)`.

    Predictions are log odds, `users` integers, -1 for none; where all are -1 GAUC is left out.

    Raises:
        ValueError: the labels are all of one class.
    """

    def _info(self):
        return evaluate.MetricInfo(
            description="Metrics of click prediction.",
            citation="",
            inputs_description="Log odds, clicks (0 or 1) and user numbers.",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("float32"),
                    "references": datasets.Value("int8"),
                    "users": datasets.Value("int64"),
                }
            ),
            format="numpy",
        )

    def _compute(self, predictions, references, users):
        # evaluate before 0.4.6 gives a column of `datasets`, of which a slice is the array
        return click_metrics(predictions[:], references[:], users[:])
