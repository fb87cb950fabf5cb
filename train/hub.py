# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Publishing on the Hugging Face Hub: what of a checkpoint folder goes there, and when."""

import json
import logging
import os
import tempfile

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.dynamic_module_utils import get_relative_import_files

from flip_ctr.modeling_flip import FlipForPretraining, FlipModel
from flip_ctr.train.arguments import TrainArguments
from flip_ctr.train.card import CARD, PLACEHOLDER, RECORD
from flip_ctr.train.checkpoint import CODE, PROCESSOR, WEIGHTS, matches
from flip_ctr.train.lora import is_adapter
from flip_ctr.train.plots import CURVES_FILE, RELIABILITY_FILE
from flip_ctr.train.results import HISTORY_FILE, RESULTS_FILE

logger = logging.getLogger("flip_ctr")

# What of a checkpoint folder is published, of its top level alone: step checkpoints, optimizer and RNG states, tracker logs and
# files of the user stay out because they are not named here.
PUBLISHED = (*WEIGHTS, *CODE, *PROCESSOR, CARD, RECORD, RESULTS_FILE, HISTORY_FILE, CURVES_FILE, RELIABILITY_FILE)


def published_files(folder: str) -> dict[str, str]:
    """Name -> path of what is published of a checkpoint folder: also the file of a user's own tower, which its code imports."""
    names = {name for name in os.listdir(folder) if matches(name, PUBLISHED)}
    for name in [name for name in names if name.endswith(".py")]:
        names |= {os.path.basename(path) for path in get_relative_import_files(os.path.join(folder, name)) if os.path.isfile(path)}
    return {name: os.path.join(folder, name) for name in names}


def default_repository(args: TrainArguments) -> str:
    return args.hub_model_id or os.path.basename(os.path.abspath(args.output_dir))


def check_hub_arguments(args: TrainArguments) -> None:
    """Finds before training what can be found without the network. `ValueError` names the flag."""
    flags = ("hub_model_id", "hub_private_repo", "hub_token", "hub_pretraining_heads")
    given = [name for name in flags if getattr(args, name, None)]
    if given and not args.push_to_hub:
        raise ValueError(f"--{given[0]} has no effect without --push_to_hub")
    if args.push_to_hub:
        check_repository(default_repository(args))
        if not (args.hub_token or get_token()):
            raise ValueError("--push_to_hub needs a token: run `hf auth login`, set HF_TOKEN, or give --hub_token")


def check_repository(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--hub_model_id {repo_id}: {error}") from None


def push(args: TrainArguments) -> str:
    """Publishes the checkpoint of a run as its arguments say; see [`push_checkpoint`]."""
    heads = getattr(args, "hub_pretraining_heads", False)
    return push_checkpoint(args.output_dir, default_repository(args), args.hub_private_repo, args.hub_token, heads)


def push_checkpoint(folder: str, repo_id: str, private: bool = False, token: str | None = None,
                    pretraining_heads: bool = False, commit_message: str | None = None) -> str:  # fmt: skip
    """Publishes a checkpoint folder in one commit: weights, processor, code, card, results, training arguments.

    Files of an earlier upload that this checkpoint no longer has are removed from the repository.

    Args:
        folder: a checkpoint that a recipe (or `save_pretrained` of model and processor) wrote.
        repo_id: `name` or `organisation/name`; made where it does not exist.
        private: make a new repository private.
        pretraining_heads: of a pretrained model publish the MLM and MTM heads too. They can return a user's demographics from
            an id; without them the repository holds the two aligned towers, which is all that fine-tuning starts from.

    Returns:
        The address of the repository.

    Raises:
        ValueError: the folder is no checkpoint, or the name is none that the Hub takes.
        ConnectionError: the upload failed; the message says how to do it later. The folder is never changed.
    """
    if not os.path.isfile(os.path.join(folder, "config.json")):
        raise ValueError(f"{folder} is not a checkpoint folder: it has no config.json")
    check_repository(repo_id)
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        architecture = json.load(file).get("architectures", [None])[0]
    without_heads = architecture == FlipForPretraining.__name__ and not pretraining_heads
    if without_heads and is_adapter(folder):
        raise ValueError(f"{folder} is a LoRA adapter of a pretraining model with its heads; add --hub_pretraining_heads to publish it")
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as stripped:
        files = published_files(folder)
        if without_heads:
            FlipModel.from_pretrained(folder).save_pretrained(stripped)
            files = {name: path for name, path in files.items() if not matches(name, WEIGHTS)}
            files |= {name: os.path.join(stripped, name) for name in os.listdir(stripped)}
        try:
            repository = api.create_repo(repo_id, private=private, exist_ok=True)
            if CARD in files:
                files[CARD] = _card_for(files[CARD], repository.repo_id).encode()
            operations = [CommitOperationAdd(name, content) for name, content in sorted(files.items())]
            stale = [name for name in api.list_repo_files(repository.repo_id) if matches(name, PUBLISHED) and name not in files]
            operations += [CommitOperationDelete(name) for name in stale]
            message = commit_message or f"Upload {FlipModel.__name__ if without_heads else architecture}"
            api.create_commit(repository.repo_id, operations, commit_message=message)
        except Exception as error:  # whatever the network, the server or the client raise
            heads = " --hub_pretraining_heads" if pretraining_heads else ""
            raise ConnectionError(
                f"the checkpoint was not published to {repo_id}: {type(error).__name__}: {' '.join(str(error).split())[:500]}. It is "
                f"whole in {folder}; publish it later with: flip-ctr push --model_name_or_path {folder} --hub_model_id {repo_id}"
                f"{' --hub_private_repo' if private else ''}{heads}"
            ) from error
    logger.info(f"published: {repository}")
    return str(repository)


def _card_for(path: str, repo_id: str) -> str:
    """The card with the name that the checkpoint has on the Hub."""
    card = ModelCard.load(path)
    if card.data.eval_results:
        card.data.model_name = repo_id.split("/")[-1]
    return str(card).replace(PLACEHOLDER, repo_id)
