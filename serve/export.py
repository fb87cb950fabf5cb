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
from flip_ctr.train.models.build import load_click_model
from flip_ctr.train.models.custom_code import import_custom_code
from flip_ctr.train.models.digests import digest
from flip_ctr.train.serve_arguments import ExportArguments

MANIFEST = "export.json"
MODEL, CANDIDATES, TEXTS = "model", "candidates", "texts"
ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}
OPSET = 20
FORMAT = 1  # of the manifest
# what a configuration says of how it was saved and loaded
OF_SAVING = {"_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version"}
# of the example that a graph is traced with, all different; the graph takes others
SIZES = {"users": 2, "rows": 6, "prompts": 4, "tokens": 7, "entries": 5, "sets": 11}


class Input(NamedTuple):
    """An input of a graph.

    Args:
        shape: the size of each dimension, or its name where it may be any.
        sizes: of the example, by those names.
    """

    shape: tuple[int | str, ...]
    dtype: torch.dtype
    sizes: dict[str, int] = SIZES

    @property
    def example(self) -> torch.Tensor:
        return torch.ones([self.sizes.get(size, size) for size in self.shape], dtype=self.dtype)

    @property
    def axes(self) -> dict[int, str]:
        """The names of the dimensions that may have any size."""
        return {axis: size for axis, size in enumerate(self.shape) if isinstance(size, str)}


def ids(*shape: int | str) -> Input:
    return Input(shape, torch.long)


def states(*shape: int | str) -> Input:
    return Input(shape, torch.float32)


class Graph(NamedTuple):
    """What becomes a graph: a module that is called with the inputs by name, and gives a dict of tensors."""

    module: nn.Module
    inputs: dict[str, Input]


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
    flip, config, joint = model.flip, model.config, model.fusion is not None
    on_ids = flip.id_tower is not None and flip.id_tower.history is not None
    reads_ids = flip.id_tower is not None or model.text_numbers is not None
    on_text = flip.text_interaction is not None and flip.text_interaction.history is not None

    def features(whose: str) -> dict[str, Input]:
        """The inputs that are no text; histories are of rows, or of users who share them."""
        inputs = {"feature_ids": ids("rows", config.num_slots)} if reads_ids else {}
        if on_ids:
            inputs["history_ids"] = ids(whose, "entries", len(config.history_slots))
        return inputs | ({"history_outcomes": ids(whose, "entries")} if on_ids or on_text else {})

    if flip.text_encoder is None:
        return {MODEL: Graph(ClickGraph(CandidateModel(model), joint), features("users"))}
    whose = "rows" if flip.text_interaction is None else "prompts"
    texts = {"input_ids": ids(whose, "tokens"), "attention_mask": ids(whose, "tokens")}
    if flip.text_interaction is None:
        return {MODEL: Graph(ClickGraph(model, joint), features("rows") | texts)}
    entities, size, rank = len(flip.entities), config.text_config.hidden_size, flip.text_interaction.product.in_features
    index, both = ids("rows", entities), "entities_and_entries"
    if on_text:
        index = Input(("rows", both), torch.long, SIZES | {both: entities + SIZES["entries"]})
    kept = {"item_own": states("rows", size), "item_factors": states("rows", rank)}
    kept |= {"user_own": states("users", size), "user_factors": states("users", rank)}
    if on_text:
        kept["item_query"] = states("rows", ATTENTION_DIM)
        kept["history_entry"] = states("users", "entries", 2 * ATTENTION_DIM)
    return {
        MODEL: Graph(ClickGraph(model, joint), features("rows") | texts | {"prompt_index": index}),
        CANDIDATES: Graph(ClickGraph(CandidateModel(model), joint), features("users") | kept),
        TEXTS: Graph(TextGraph(model), texts | {"prompt_index": ids("sets", entities)}),
    }


def write_graph(name: str, graph: Graph, folder: Path) -> Path:
    """Writes a graph as ONNX; returns the file. `ValueError` where it cannot be one: names the part of the model."""
    path, axes = folder / f"{name}.onnx", {one: given.axes for one, given in graph.inputs.items()}
    example = {one: given.example for one, given in graph.inputs.items()}
    try:
        with torch.no_grad(), quiet():
            outputs = list(graph.module(**example))
            exported = torch.export.export(
                ByName(graph.module),
                (example,),
                dynamic_shapes=({one: dict.fromkeys(names, torch.export.Dim.DYNAMIC) for one, names in axes.items()},),
                # that each user has as many rows is known when the graph runs
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            program = torch.onnx.export(
                exported,
                input_names=list(example),
                output_names=outputs,
                opset_version=OPSET,
                dynamic_shapes=(axes,),
                verbose=False,
            )
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # the lines of code that made it, with the paths of this machine
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
    remove(path)
    small.replace(path)


def as_openvino(path: Path) -> None:
    """Replaces an ONNX file by OpenVINO's two, `.xml` and `.bin`."""
    import openvino

    openvino.save_model(openvino.convert_model(path), path.with_suffix(ENDINGS["openvino"]), compress_to_fp16=False)
    remove(path)


def remove(path: Path) -> None:
    """Removes an ONNX file, and the weights beside it, which one of more than 2 GB has."""
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


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

    def settings(values: dict[str, Any]) -> dict[str, Any]:
        return {
            name: settings(value) if isinstance(value, dict) else value
            for name, value in values.items()
            if name not in OF_SAVING
        }

    return digest({"config": settings(model.config.to_dict()), "processor": processor.fingerprint}, [model])


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
