# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""A click model as graphs that ONNX Runtime or OpenVINO compute, without torch.

flip-ctr export --model_name_or_path M --format onnx --output_dir S
flip-ctr export --model_name_or_path M --format onnx --quantize int8 --output_dir S

The folder holds the processor, `export.json`, and of a model without a PLM, or with row prompts, one graph: `model`,
rows as the processor encodes them -> probabilities. Of a model with entity prompts there are two more, of which each
text is read once: `texts`, prompts -> what is kept of them, and `candidates`, ids and what was kept -> probabilities.

Shapes: B rows, U users with C candidates each (their rows together: B = U C), S slots, P distinct prompts of L tokens,
E entities with a prompt, N sets of prompts, n entries of a history, H the PLM's hidden size, R the rank of the text
interaction.
"""

import copy
import json
import logging
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from flip_ctr.data.outputs import new_folder
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR
from flip_ctr.modeling_flip.pipeline_flip import PROBABILITIES
from flip_ctr.modeling_flip.processing_flip import FlipProcessor
from flip_ctr.modeling_flip.target_attention_flip import ATTENTION_DIM
from flip_ctr.serve.candidate_model import CandidateModel
from flip_ctr.serve.digests import digest
from flip_ctr.train.arguments import ExportArguments
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.custom_code import import_custom_code

MANIFEST = "export.json"
MODEL, CANDIDATES, TEXTS = "model", "candidates", "texts"
ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}
OPSET = 20
FORMAT = 1  # of the manifest
MOST_BYTES = 2**31 - 2**20  # of an ONNX file; larger ones have their weights beside them
# the sizes of the example that graphs are traced with, all different; graphs take others
USERS, CANDIDATES_EACH, ENTRIES, PROMPTS, TOKENS = 2, 3, 5, 4, 7


class Graph(NamedTuple):
    """What becomes a graph.

    Args:
        module: called with the inputs by name, gives a dict of tensors.
        inputs: an example.
        axes: the names of the dimensions of each input that may have any size.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    axes: dict[str, dict[int, str]]


class ByName(nn.Module):
    """A module that is called with a dict of its inputs: of `**inputs` torch.export knows no dynamic shapes."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.module(**inputs)


class ClickGraph(nn.Module):
    """A [`CandidateModel`] or [`FlipForCTR`] with its probabilities: `logits` and `click_probability`, of strategy
    `joint` also both towers' own and `id_weight`; `(B, 1)` each, `(1,)` the weight where it is one for all rows."""

    def __init__(self, module: nn.Module, joint: bool):
        super().__init__()
        self.module, self.joint = module, joint

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        output = self.module(**inputs)
        logits = {name: output[name] for name in (PROBABILITIES if self.joint else ["logits"])}
        weight = {"id_weight": output["id_weight"]} if self.joint else {}
        return logits | {PROBABILITIES[name]: values.sigmoid() for name, values in logits.items()} | weight


class TextGraph(nn.Module):
    """Prompts -> [`TextParts`] of sets of them, each the prompts of one user or one item."""

    def __init__(self, model: FlipForCTR):
        super().__init__()
        self.flip = model.flip

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, prompt_index: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """
        Args:
            input_ids, attention_mask: `(P, L)`.
            prompt_index: `(N, E)`, which prompt each set has of each entity, -1 where the entity is of the other side.
        """
        interaction = self.flip.text_interaction
        states = self.flip.pooled_text(input_ids, attention_mask)[prompt_index.clamp(min=0)]
        own, factors = interaction.parts(states, range(len(self.flip.entities)), prompt_index >= 0)
        parts = {"own": own, "factors": factors}
        if interaction.history is not None:
            item = states[:, interaction.history_entity]
            parts |= {"query": interaction.history.target(item), "entry": interaction.history.entry(item)}
        return parts


def graphs_of(model: FlipForCTR) -> dict[str, Graph]:
    """The graphs of a model, by their names."""
    flip, config, rows, joint = model.flip, model.config, USERS * CANDIDATES_EACH, model.fusion is not None
    on_ids = flip.id_tower is not None and flip.id_tower.history is not None
    on_text = flip.text_interaction is not None and flip.text_interaction.history is not None

    def ids(of_histories: str, histories: int) -> tuple[dict[str, torch.Tensor], dict[str, dict[int, str]]]:
        inputs, axes = {}, {}
        if flip.id_tower is not None:
            inputs["feature_ids"], axes["feature_ids"] = zeros(rows, config.num_slots), {0: "rows"}
        if on_ids:
            inputs["history_ids"] = zeros(histories, ENTRIES, len(config.history_slots))
        if on_ids or on_text:
            inputs["history_outcomes"] = zeros(histories, ENTRIES)
        return inputs, axes | {name: {0: of_histories, 1: "entries"} for name in inputs if name != "feature_ids"}

    if flip.text_encoder is None:
        return {MODEL: Graph(ClickGraph(CandidateModel(model), joint), *ids("users", USERS))}
    inputs, axes = ids("rows", rows)
    prompts = PROMPTS if config.prompts == "entity" else rows
    inputs |= {"input_ids": zeros(prompts, TOKENS), "attention_mask": zeros(prompts, TOKENS) + 1}
    of_prompts = {0: "prompts" if config.prompts == "entity" else "rows", 1: "tokens"}
    axes |= {"input_ids": of_prompts, "attention_mask": of_prompts}
    if flip.text_interaction is None:
        return {MODEL: Graph(ClickGraph(model, joint), inputs, axes)}
    entities, size = len(flip.entities), config.text_config.hidden_size
    texts = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    text_axes = dict.fromkeys(texts, of_prompts) | {"prompt_index": {0: "sets"}}
    inputs["prompt_index"] = zeros(rows, entities + (ENTRIES if on_text else 0))
    axes["prompt_index"] = {0: "rows"} | ({1: "entities_and_entries"} if on_text else {})
    kept, kept_axes = ids("users", USERS)
    rank = flip.text_interaction.product.in_features
    kept |= {f"item_{name}": torch.zeros(rows, width) for name, width in (("own", size), ("factors", rank))}
    kept |= {f"user_{name}": torch.zeros(USERS, width) for name, width in (("own", size), ("factors", rank))}
    kept_axes |= {name: {0: name.replace("item", "row").split("_")[0] + "s"} for name in kept if name not in kept_axes}
    if on_text:
        kept["item_query"], kept_axes["item_query"] = torch.zeros(rows, ATTENTION_DIM), {0: "rows"}
        kept["history_entry"] = torch.zeros(USERS, ENTRIES, 2 * ATTENTION_DIM)
        kept_axes["history_entry"] = {0: "users", 1: "entries"}
    return {
        MODEL: Graph(ClickGraph(model, joint), inputs, axes),
        CANDIDATES: Graph(ClickGraph(CandidateModel(model), joint), kept, kept_axes),
        TEXTS: Graph(TextGraph(model), texts | {"prompt_index": zeros(7 * USERS, entities)}, text_axes),
    }


def zeros(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.long)


def write_graph(name: str, graph: Graph, folder: Path) -> Path:
    """Writes a graph as ONNX; returns the file. `ValueError` where it cannot be one: names the part of the model."""
    shapes = {one: dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for one, axes in graph.axes.items()}
    path = folder / f"{name}.onnx"
    try:
        with torch.no_grad(), quiet():
            outputs = list(graph.module(**graph.inputs))
            exported = torch.export.export(
                ByName(graph.module),
                (graph.inputs,),
                dynamic_shapes=(shapes,),
                # that there are as many rows for each user is no size that the trace must know
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            program = torch.onnx.export(
                exported,
                input_names=list(graph.inputs),
                output_names=outputs,
                opset_version=OPSET,
                dynamic_shapes=(graph.axes,),
                verbose=False,
            )
            program.save(path)
    except Exception as error:  # each step of torch raises types of its own
        raise ValueError(
            f"{part_of(error, graph.module)} cannot become a graph ({name}): {str(error).strip().splitlines()[0]}"
        ) from error
    return path


def part_of(error: BaseException, module: nn.Module) -> str:
    """The innermost module that was computing when an error arose."""
    names = {id(part): name for name, part in module.named_modules()}
    found = "", module
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            part = frame.f_locals.get("self")
            if isinstance(part, nn.Module) and id(part) in names:
                found = names[id(part)], part
        error = error.__cause__ or error.__context__
    name, part = found
    return f"{name.removeprefix('module.').removeprefix('model.') or 'the model'} ({type(part).__name__})"


@contextmanager
def quiet() -> Iterator[None]:
    """The exporter and the quantizer warn of what nobody here can change, and torch writes down each step."""
    loggers = [logging.getLogger(name) for name in (None, "torch.onnx", "torch.__trace", "onnx_ir", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def quantized(path: Path) -> None:
    """Replaces an ONNX file by one whose weights are int8, and whose inner products round their inputs to int8."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = path.with_name(f"int8-{path.name}")
    with quiet():
        quantize_dynamic(path, small, weight_type=QuantType.QInt8, per_channel=True)
    small.replace(path)


def as_openvino(path: Path) -> None:
    """Replaces an ONNX file by OpenVINO's two, `.xml` and `.bin`."""
    import openvino

    openvino.save_model(openvino.convert_model(path), path.with_suffix(ENDINGS["openvino"]), compress_to_fp16=False)
    path.unlink()


def described(path: Path) -> dict[str, Any]:
    """The inputs and outputs of an ONNX file: their types, and shapes with names for the sizes that may be any."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph

    def values(those) -> dict[str, dict[str, Any]]:
        found = {}
        for one in those:
            tensor = one.type.tensor_type
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            found[one.name] = {"dtype": dtype, "shape": [dim.dim_param or dim.dim_value for dim in tensor.shape.dim]}
        return found

    return {"inputs": values(graph.input), "outputs": values(graph.output)}


def export_model(
    model: FlipForCTR,
    processor: FlipProcessor,
    folder: str | Path,
    format: str = "onnx",
    quantize: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Writes the folder, whole or not at all; returns what its `export.json` says.

    Args:
        format: `onnx` or `openvino`.
        quantize: `int8`: dynamic quantization.

    Raises:
        FileExistsError: there is something already, and it is no export or `overwrite` is off.
        ImportError: what the format needs is not installed.
        ValueError: a part of the model cannot become a graph; names it.
    """
    check_installed(format)
    place = Path(folder).expanduser().resolve()
    if place.exists() and not place.is_dir():
        raise FileExistsError(f"--output_dir {place} is a file; name a folder")
    if place.exists() and any(place.iterdir()):
        if not overwrite:
            raise FileExistsError(
                f"--output_dir {place} is not empty; name another folder, or replace it with --overwrite_output_dir"
            )
        if not (place / MANIFEST).is_file():
            raise FileExistsError(f"--output_dir {place} is no export (it has no {MANIFEST}), and is not replaced")
    about = {
        "format": FORMAT,
        "graphs": {},
        "runtime": format,
        "quantization": quantize,
        "opset": OPSET,
        "strategy": model.config.strategy,
        "prompts": model.config.prompts,
        "entities": model.flip.entities,
        "checkpoint": checkpoint_digest(model, processor),
        "versions": {name: version(name) for name in ("flip-ctr", "torch", "transformers", format)},
    }
    place.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(place) as new:
        new.mkdir()
        for name, graph in graphs_of(ready_to_trace(model)).items():
            path = write_graph(name, graph, new)
            if quantize == "int8":
                quantized(path)
            about["graphs"][name] = described(path)
            if format == "openvino":
                as_openvino(path)
        processor.save_pretrained(new)
        (new / MANIFEST).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return about


def ready_to_trace(model: FlipForCTR) -> FlipForCTR:
    """The model in float32 on the CPU; a copy where it is not."""
    if model.device.type != "cpu" or any(part.dtype != torch.float32 for part in model.parameters()):
        model = copy.deepcopy(model).to("cpu", torch.float32)
    return model.eval()


def check_installed(format: str) -> None:
    """`ImportError` where the libraries are missing that a format needs."""
    needed = {"onnx": ["onnx", "onnxscript", "onnxruntime"], "openvino": ["onnx", "onnxscript", "openvino"]}[format]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        raise ImportError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: pip install "
            f"'flip-ctr[{format}]'"
        )


def checkpoint_digest(model: FlipForCTR, processor: FlipProcessor) -> str:
    """Of all that a model's graphs are made from."""
    config = model.config.to_diff_dict()
    of_saving = ("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version")
    return digest({"config": {k: v for k, v in config.items() if k not in of_saving}} | processor.fingerprint, [model])


def run(args: ExportArguments) -> dict[str, Any]:
    """Returns what the folder's `export.json` says. See [`export_model`] for what is raised."""
    check_installed(args.format)
    import_custom_code(args.custom_code)
    model, processor = load_click_model(args.model_name_or_path, args.base_model_name_or_path)
    about = export_model(model, processor, args.output_dir, args.format, args.quantize, args.overwrite_output_dir)
    folder = Path(args.output_dir)
    for path in sorted(folder.iterdir()):
        if path.stem.split(".")[0] in about["graphs"]:
            print(f"{path}: {path.stat().st_size / 2**20:,.2f} MiB")
    return about
