# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""Publishing: a checkpoint folder to the Hugging Face Hub, with its code, card and results.

flip-ctr push --model_name_or_path M --hub_model_id org/flip-ml1m
"""

from dataclasses import dataclass

from flip_ctr.train.arguments import option, parse_arguments, required
from flip_ctr.train.outputs.hub import push_checkpoint


@dataclass
class PushArguments:
    model_name_or_path: str = required("folder of a checkpoint")
    hub_model_id: str = required("repository to publish to, e.g. org/flip-ml1m")
    hub_private_repo: bool = option(False, "make a new repository private")
    hub_token: str | None = option(None, "token of the Hub; that of `hf auth login` or HF_TOKEN when not given")
    hub_pretraining_heads: bool = option(
        False,
        "of a pretrained model publish the MLM and MTM heads too: they can return a user's demographics from an id",
    )


def run(args: PushArguments) -> str:
    """Returns the address of the repository. See [`push_checkpoint`] for what is published and what is raised."""
    return push_checkpoint(
        args.model_name_or_path, args.hub_model_id, args.hub_private_repo, args.hub_token, args.hub_pretraining_heads
    )


def main(argv: list[str] | None = None) -> None:
    print(run(parse_arguments(PushArguments, argv, prog="flip-ctr push", description=__doc__.split("\n")[0])))


if __name__ == "__main__":
    main()
