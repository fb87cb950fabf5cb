# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Exported graphs in the place of torch modules."""

import json
import tempfile
from pathlib import Path

import torch

from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.serve.candidate_model import OUTPUTS
from flip_ctr.serve.export import (
    CANDIDATES,
    FORMAT,
    MANIFEST,
    MODEL,
    check_installed,
    checkpoint_digest,
    export_model,
    graphs_of,
    ready_to_trace,
    write_graph,
)


class OnnxGraph:
    """An ONNX file as a function of torch tensors on the CPU: takes what [`CandidateModel`] takes (of a model with row
    prompts, what [`FlipForCTR`] takes), and returns the `OUTPUTS` by the names of the model's output. ONNX Runtime
    computes it on as many threads as torch has when this is built."""

    def __init__(self, path: str | Path):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = {one.name: one.type for one in self.session.get_inputs()}
        outputs = [one.name for one in self.session.get_outputs()]
        self.outputs = [name for name in OUTPUTS if name in outputs]

    def __call__(self, **given: torch.Tensor) -> dict[str, torch.Tensor]:
        dtypes = {"tensor(int64)": torch.int64, "tensor(float)": torch.float32}
        feed = {name: given[name].to(dtypes[kind]).numpy() for name, kind in self.inputs.items()}
        return dict(zip(self.outputs, map(torch.from_numpy, self.session.run(self.outputs, feed))))


def onnx_graph(model: FlipForCTR, processor: FlipProcessor, folder: str | Path | None = None) -> OnnxGraph:
    """The graph that computes a request of [`FlipRanker`].

    Args:
        folder: of an export; one is written there where there is none yet. When None only this graph is made, and kept
            in memory.

    Raises:
        ValueError: the model is not on the CPU; a part of it cannot become a graph; or the folder's graphs are not for
            ONNX Runtime, or of another checkpoint.
        ImportError: what ONNX needs is not installed.
    """
    check_installed("onnx")
    if model.device.type != "cpu":
        raise ValueError(f"backend 'onnx' computes on the CPU, and the model is on {model.device}")
    name = MODEL if model.flip.text_interaction is None else CANDIDATES
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return OnnxGraph(write_graph(name, graphs_of(ready_to_trace(model))[name], Path(temporary)))
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        export_model(model, processor, folder)
    about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if about["format"] > FORMAT:
        raise ValueError(f"{folder}: format {about['format']}, and this code reads {FORMAT}; install a newer flip-ctr")
    if about["runtime"] != "onnx":
        raise ValueError(f"{folder}: its graphs are for {about['runtime']}; export them with --format onnx")
    if about["checkpoint"] != checkpoint_digest(model, processor):
        raise ValueError(f"{folder}: its graphs are of another checkpoint; export this one to another folder")
    return OnnxGraph(folder / f"{name}.onnx")
