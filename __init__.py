# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""FLIP: click-through rate prediction with an ID-based model and a pretrained language model, aligned row by row.

Importing the package registers its classes, so that `AutoModel`, `AutoProcessor` and the other Auto classes of
transformers load a FLIP checkpoint.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForSequenceClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY

from .data.batches.collators import FlipCollator, FlipPretrainingCollator
from .modeling_flip.configuration_flip import PIPELINE_TASK, FlipConfig
from .modeling_flip.feature_extraction_flip import FlipFeatureExtractor
from .modeling_flip.fields_flip import FlipField
from .modeling_flip.id_tower import IdTower, register_id_tower
from .modeling_flip.modeling_flip import FlipForCTR, FlipForPretraining, FlipModel, FlipPreTrainedModel
from .modeling_flip.pipeline_flip import ClickThroughRatePipeline
from .modeling_flip.processing_flip import FlipProcessor

__version__ = version("flip-ctr")

AutoConfig.register("flip", FlipConfig, exist_ok=True)
# of several classes AutoModel takes the one that the checkpoint's `architectures` names
AutoModel.register(FlipConfig, (FlipModel, FlipForPretraining, FlipForCTR), exist_ok=True)
AutoModelForPreTraining.register(FlipConfig, FlipForPretraining, exist_ok=True)
AutoModelForSequenceClassification.register(FlipConfig, FlipForCTR, exist_ok=True)
AutoFeatureExtractor.register(FlipConfig, FlipFeatureExtractor, exist_ok=True)
AutoProcessor.register(FlipConfig, FlipProcessor, exist_ok=True)
if PIPELINE_TASK not in PIPELINE_REGISTRY.supported_tasks:
    PIPELINE_REGISTRY.register_pipeline(PIPELINE_TASK, ClickThroughRatePipeline, AutoModelForSequenceClassification)


# what needs libraries that nothing else here does, by the module that is imported when it is asked for
LAZY = {
    "DatasetSchema": ".data.readers.dataset_schema",
    "FlipClassifier": ".estimator.classifier",
    "FlipRanker": ".serve.ranker",
    "FlipTrainer": ".train.flip_trainer",
    "compute_metrics": ".train.outputs.metrics",
    "explain": ".train.loop.leave_out",
    "infer_schema": ".data.datasets.infer_schema",
    "parameter_groups": ".train.loop.optimizer",
    "train_model": ".train.train_model",
}


def __getattr__(name: str) -> Any:
    if name in LAZY:
        return getattr(import_module(LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FlipConfig",
    "FlipField",
    "FlipFeatureExtractor",
    "FlipProcessor",
    "FlipCollator",
    "FlipPretrainingCollator",
    "FlipPreTrainedModel",
    "FlipModel",
    "FlipForPretraining",
    "FlipForCTR",
    "ClickThroughRatePipeline",
    "IdTower",
    "register_id_tower",
    "FlipClassifier",
    "FlipRanker",
    "explain",
    "infer_schema",
    "train_model",
    "DatasetSchema",
    "FlipTrainer",
    "compute_metrics",
    "parameter_groups",
]
