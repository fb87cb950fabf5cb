# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Time of a request that scores a catalogue's candidates: torch, ONNX Runtime, and ONNX Runtime with int8 weights.

    python benchmarks/export_speed.py

The weights are random. The three take turns, request by request, so that what else the machine does hits all alike.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from flip_ctr.benchmarks.children import print_numbers, write_rows
from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.serve.candidate_model import CandidateModel
from flip_ctr.serve.export import MODEL, graphs_of, quantized, write_graph
from flip_ctr.serve.onnx_graph import OnnxGraph
from flip_ctr.train.options import Options, option
from flip_ctr.train.parser import parse_arguments

# of MovieLens-1M as `prepare` makes it: user, gender, age, occupation, zip code, movie, title, genre
ML_1M = [6044, 6, 11, 25, 3443, 3710, 3710, 305]


@dataclass
class SpeedArguments(Options):
    id_tower: str = option("dcnv2", "ID tower")
    field_sizes: list[int] = option(ML_1M, "feature ids of each field", at_least=5)
    candidates: int = option(1000, "items of a request", at_least=1)
    requests: int = option(100, "requests whose median time counts", at_least=1)
    threads: int = option(1, "threads of torch and of ONNX Runtime", at_least=1)
    seed: int = option(0, "seed of weights and ids")
    output_file: str | None = option(None, "JSON file for the numbers", path=True)


def run(args: SpeedArguments) -> dict[str, float]:
    """Median milliseconds of a request, and the largest difference between probabilities."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    fields = [{"name": f"field_{number}", "vocab_size": size} for number, size in enumerate(args.field_sizes)]
    model = FlipForCTR(FlipConfig(fields=fields, id_tower=args.id_tower, strategy="id")).eval()
    ids = torch.stack([torch.randint(size, (args.candidates,)) for size in args.field_sizes], dim=1)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = write_graph(MODEL, graphs_of(model)[MODEL], Path(folder))
        backends: dict[str, Callable] = {"torch": CandidateModel(model), "onnx": OnnxGraph(path)}
        quantized(path)
        backends["int8"] = OnnxGraph(path)
        seconds: dict[str, list[float]] = {name: [] for name in backends}
        scores = {name: backend(feature_ids=ids)["logits"].sigmoid() for name, backend in backends.items()}  # warms up
        for _ in range(args.requests):
            for name, backend in backends.items():
                started = time.perf_counter()
                backend(feature_ids=ids)
                seconds[name].append(time.perf_counter() - started)
    results = {f"{name}_ms": statistics.median(times) * 1e3 for name, times in seconds.items()}
    for name in ("onnx", "int8"):
        results[f"{name}_over_torch"] = results[f"{name}_ms"] / results["torch_ms"]
        results[f"{name}_difference"] = (scores[name] - scores["torch"]).abs().max().item()
    return results


if __name__ == "__main__":
    args = parse_arguments(SpeedArguments, description=__doc__)
    results = run(args)
    print_numbers(results)
    write_rows(results, args.output_file)
