"""What the processes of `test_accelerate_configs` run under FSDP2 and DeepSpeed: several recipes, since importing the
stack takes longer than a run."""

import json
import os
import sys
from pathlib import Path

import tiny
from accelerate import DistributedType
from accelerate.state import AcceleratorState, PartialState
from torch.distributed.fsdp import FSDPModule

from flip_ctr.train.loop import training_loop
from flip_ctr.train.models import build


def without_projection_dropout(new_config=build.new_config):
    """In place of `build.new_config`: with dropout no two runs on different numbers of processes are alike."""

    def new_calm_config(*args):
        config = new_config(*args)
        config.projection_dropout = 0.0
        return config

    return new_calm_config


def main(data: str, plm: str, out: str, runs: str, shared: str) -> None:
    PartialState(cpu=True)  # gloo
    del os.environ["ACCELERATE_USE_CPU"]
    build.new_config = without_projection_dropout()
    prepare = training_loop.prepare

    def prepare_and_tell(accelerator, model, optimizer, args):
        model, optimizer = prepare(accelerator, model, optimizer, args)
        seen = {
            "kind": accelerator.distributed_type.value,
            "units": sorted({type(module).__name__ for module in model.modules() if isinstance(module, FSDPModule)}),
            "stage": model.zero_optimization_stage()
            if accelerator.distributed_type == DistributedType.DEEPSPEED
            else None,
        }
        Path(out, f"{Path(args.output_dir).name}.json").write_text(json.dumps(seen))
        return model, optimizer

    training_loop.prepare = prepare_and_tell
    for name, options in json.loads(runs).items():
        # Accelerate gives FSDP and DeepSpeed to GPUs only; all that follows is its own code
        AcceleratorState._reset_state()
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        recipe = tiny.finetune if "strategy" in options else tiny.pretrain
        recipe(data, plm, f"{out}/{name}", **json.loads(shared), **options)


if __name__ == "__main__":
    main(*sys.argv[1:])
