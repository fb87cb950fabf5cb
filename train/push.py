# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Publishing: a checkpoint folder to the Hugging Face Hub, with its code, card and results.

flip-ctr push --model_name_or_path M --hub_model_id org/flip-ml1m
"""

from flip_ctr.train.arguments import PushArguments
from flip_ctr.train.outputs.hub import push_checkpoint


def run(args: PushArguments) -> str:
    """Returns the address of the repository. See [`push_checkpoint`] for what is published and what is raised."""
    return push_checkpoint(
        args.model_name_or_path, args.hub_model_id, args.hub_private_repo, pretraining_heads=args.hub_pretraining_heads
    )


def main(args: PushArguments) -> None:
    print(run(args))
