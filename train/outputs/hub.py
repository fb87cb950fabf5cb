# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Publishing on the Hugging Face Hub: what of a checkpoint folder goes there, and when."""

import json
import os
import shlex
from hashlib import sha256

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, PROCESSOR_NAME

from flip_ctr.modeling_flip.base_flip import naming_weights
from flip_ctr.modeling_flip.configuration_flip import FlipConfig
from flip_ctr.modeling_flip.fingerprint_flip import check_checkpoint, json_text
from flip_ctr.modeling_flip.modeling_flip import FlipForCTR, FlipForPretraining, FlipModel
from flip_ctr.train.arguments import TrainingOptions
from flip_ctr.train.models.lora import is_adapter
from flip_ctr.train.outputs.card import CARD, PLACEHOLDER
from flip_ctr.train.outputs.checkpoint import CODE, PROCESSOR, REPORTS, WEIGHTS, matches
from flip_ctr.train.outputs.record import RECORD
from flip_ctr.train.outputs.run_log import logger

CLASSIFIER = "classifier.json"  # the classes and columns of a FlipClassifier
# What of a checkpoint folder is published, of its top level alone: step checkpoints, optimizer and RNG states, tracker
# logs and files of the user stay out because they are not named here.
PUBLISHED = (*WEIGHTS, *CODE, *PROCESSOR, RECORD, CLASSIFIER, *REPORTS)
HANDLER = "handler.py"  # of Inference Endpoints


def published_files(folder: str) -> dict[str, str]:
    """Name -> path of what is published of a checkpoint folder: also the file of a user's own tower, which its code
    imports."""
    names = {name for name in os.listdir(folder) if matches(name, PUBLISHED)}
    for name in [name for name in names if name.endswith(".py")]:
        names |= {
            os.path.basename(path)
            for path in get_relative_import_files(os.path.join(folder, name))
            if os.path.isfile(path)
        }
    return {name: os.path.join(folder, name) for name in names}


def default_repository(args: TrainingOptions) -> str:
    return args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))


def check_hub_arguments(args: TrainingOptions) -> None:
    """Finds before training what can be found without the network. `ValueError` names the flag."""
    flags = ("hub_model_id", "hub_private_repo", "hub_pretraining_heads")
    given = [name for name in flags if getattr(args, name, None)]
    if given and not args.push_to_hub:
        raise ValueError(f"--{given[0]} has no effect without --push_to_hub")
    if args.push_to_hub:
        check_repository(default_repository(args))
        if getattr(args, "lora_adapter_only", False) and not getattr(args, "hub_pretraining_heads", True):
            raise ValueError(
                "--lora_adapter_only of a pretraining model holds its heads; add --hub_pretraining_heads to publish "
                "them"
            )
        if not get_token():
            raise ValueError("--push_to_hub needs a token: run `hf auth login`, or set HF_TOKEN")


def check_repository(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id {repo_id}: {error}") from None


def push(args: TrainingOptions) -> str:
    """Publishes the checkpoint of a run as its arguments say; see [`push_checkpoint`]."""
    heads = getattr(args, "hub_pretraining_heads", False)
    return push_checkpoint(args.output_dir, default_repository(args), args.hub_private_repo, pretraining_heads=heads)


def push_checkpoint(
    folder: str,
    repo_id: str,
    private: bool = False,
    token: str | None = None,
    pretraining_heads: bool = False,
    commit_message: str | None = None,
) -> str:
    """Publishes a checkpoint folder in one commit: weights, processor, code, card, results, training arguments.

    A model that predicts has a `handler.py` for Inference Endpoints: the folder's own, or else that of
    `endpoint_handler.py`.

    Weights, code and processor files of an earlier upload that this checkpoint does not have are removed from the
    repository.

    Args:
        folder: a checkpoint that a recipe (or `save_pretrained` of model and processor) wrote.
        repo_id: `name` or `organisation/name`; made where it does not exist.
        private: make a new repository private.
        pretraining_heads: of a pretrained model publish the MLM and MTM heads too. They can return a user's
            demographics from an id; without them the repository holds the two aligned towers, which is all that
            fine-tuning starts from.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the folder is no checkpoint, or the name is none that the Hub takes.
        ConnectionError: the upload failed, or the repository must be private and is not; the message says how to do it
            later. The folder is never changed.
    """
    check_repository(repo_id)
    config = whole_config(folder)
    architecture = config["architectures"][0]
    files: dict[str, str | bytes] = published_files(folder)
    if architecture == FlipForPretraining.__name__ and not pretraining_heads:
        if is_adapter(folder):
            raise ValueError(
                f"{folder} is a LoRA adapter of a pretraining model with its heads; add --hub_pretraining_heads to "
                "publish it"
            )
        architecture = FlipModel.__name__
        files = {name: path for name, path in files.items() if not matches(name, WEIGHTS)} | without_heads(
            folder, config
        )
    if architecture == FlipForCTR.__name__ and not is_adapter(folder):
        own = os.path.join(folder, HANDLER)
        files[HANDLER] = own if os.path.isfile(own) else os.path.join(os.path.dirname(__file__), "endpoint_handler.py")
    api = HfApi(token=token)
    try:
        # None where nothing is asked: an organisation may have its own default
        repository = api.create_repo(repo_id, private=private or None, exist_ok=True)
        if private and not api.model_info(repository.repo_id).private:
            raise ValueError(
                f"{repository.repo_id} exists and is public; make it private on the Hub, or leave out "
                "--hub_private_repo"
            )
        if CARD in files:
            files[CARD] = _card_for(files[CARD], repository.repo_id).encode()
        operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
        there = api.list_repo_files(repository.repo_id)
        stale = [
            name
            for name in there
            if "/" not in name and matches(name, (*WEIGHTS, *CODE, *PROCESSOR)) and name not in files
        ]
        operations += [CommitOperationDelete(name) for name in stale]
        api.create_commit(repository.repo_id, operations, commit_message=commit_message or f"Upload {architecture}")
    except Exception as error:  # whatever the network, the server or the client raise
        retry = ["flip-ctr", "push", "--model_name_or_path", folder, "--hub_model_id", repo_id]
        retry += ["--hub_private_repo"] * private + ["--hub_pretraining_heads"] * pretraining_heads
        reason = " ".join(str(error).split())[:500].rstrip(".")
        raise ConnectionError(
            f"the checkpoint was not published to {repo_id}: {type(error).__name__}: {reason}. It is whole in "
            f"{folder}; publish it later with: {shlex.join(retry)}"
        ) from error
    logger.info(f"published: {repository}")
    return str(repository)


def whole_config(folder: str) -> dict:
    """The configuration of a checkpoint folder; `ValueError` says what it lacks to be one that others can load, or what
    is damaged."""
    path = os.path.join(folder, "config.json")
    if not os.path.isfile(path):
        raise ValueError(f"{folder} is not a checkpoint folder: it has no config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
    except ValueError as error:
        raise ValueError(f"{path} is not JSON in UTF-8: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is no configuration of a model: it holds {type(config).__name__}, not an object")
    if config.get("model_type") != FlipConfig.model_type or not config.get("architectures"):
        raise ValueError(
            f"{folder} is not a FLIP checkpoint: its config.json is of a {config.get('model_type')!r} model"
        )
    names = os.listdir(folder)
    for kind, patterns in (("weights", ("*.safetensors",)), ("processor", ("processor_config.json",))):
        if not any(matches(name, patterns) for name in names):
            raise ValueError(f"{folder} is not a whole checkpoint: it has no {kind} ({', '.join(patterns)})")
    for name in (CONFIG_NAME, PROCESSOR_NAME):
        check_checkpoint(folder, name, {})
    return config


def without_heads(folder: str, config: dict) -> dict[str, bytes]:
    """Weights and configuration of a pretrained checkpoint as those of a [`FlipModel`]: the towers and what ICL
    compares."""
    prefix, state = f"{FlipModel.base_model_prefix}.", {}
    for name in os.listdir(folder):
        if matches(name, ("model*.safetensors",)):
            with naming_weights(os.path.join(folder, name)):
                tensors = load_file(os.path.join(folder, name))
            state |= {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    module = config["auto_map"]["AutoModel"].split(".")[0]
    config = config | {"architectures": [FlipModel.__name__]}
    config["auto_map"] = config["auto_map"] | {"AutoModel": f"{module}.{FlipModel.__name__}"}
    weights = serialize(state, metadata={"format": "pt"})
    sums = {name: sha for name, sha in config.pop("sha256", {}).items() if name.endswith(".py")}
    sums["model.safetensors"] = sha256(weights).hexdigest()
    return {"model.safetensors": weights, CONFIG_NAME: json_text(CONFIG_NAME, config, sums).encode()}


def _card_for(path: str, repo_id: str) -> str:
    """The card with the name that the checkpoint has on the Hub."""
    card = ModelCard.load(path)
    if card.data.eval_results:
        card.data.model_name = repo_id.split("/")[-1]
    return str(card).replace(PLACEHOLDER, repo_id)
