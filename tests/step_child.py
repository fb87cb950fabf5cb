"""Gradients of one training step, of this process's share of each batch; `test_step` runs it alone and as two
processes."""

import sys

import tiny
import torch
from accelerate import Accelerator
from transformers import BertConfig

from flip_ctr import FlipForCTR, FlipForPretraining, FlipProcessor
from flip_ctr.data.batches.collators import FlipCollator, FlipPretrainingCollator
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.train.finetune import FinetuneArguments
from flip_ctr.train.loop.optimizer import keep_out_of_ddp, make_optimizer, use_sparse_tables
from flip_ctr.train.loop.step import TrainingStep
from flip_ctr.train.pretrain import PretrainArguments

BATCH = 16  # rows of a global batch
OFF = dict.fromkeys(("mlm_weight", "mtm_weight", "icl_weight"), 0.0)
SPARSE = {"embedding_optimizer": "lazy_adam", "embedding_l2": 0.1}
ENTITY = {"prompts": "entity"}
# name -> objective's settings, batches of the group, arguments of the run
CASES = {
    "MLM": (OFF | {"mlm_weight": 1.0}, 1, {}),
    "MTM": (OFF | {"mtm_weight": 1.0}, 1, {}),
    "ICL": (OFF | {"icl_weight": 1.0}, 1, {}),
    "ICL, dot": (OFF | {"icl_weight": 1.0, "icl_similarity": "dot"}, 1, {}),
    "all, 3 batches": ({"mlm_weight": 0.5, "icl_weight": 2.0}, 3, {}),
    "all, weights of 1, 3 batches": ({}, 3, {}),
    "all, GradCache": ({"mlm_weight": 0.5, "icl_weight": 2.0}, 1, {"grad_cache_chunk_size": 3}),
    "all, GradCache, 3 batches": ({"mlm_weight": 0.5, "icl_weight": 2.0}, 3, {"grad_cache_chunk_size": 3}),
    "all, sparse tables, 3 batches": ({}, 3, SPARSE),
    "all, sparse tables, GradCache": ({}, 1, SPARSE | {"grad_cache_chunk_size": 3}),
    "all, every kind of field": ({"kinds": True}, 1, {}),
    "all, every kind of field, sparse tables, GradCache": ({"kinds": True}, 1, SPARSE | {"grad_cache_chunk_size": 3}),
    "entity prompts": (ENTITY, 1, {}),
    "entity prompts, 3 batches": (ENTITY, 3, {}),
    "entity prompts, 3 steps": (ENTITY, 3, {"plm_every": 3}),
    "entity prompts, GradCache, 3 steps": (ENTITY, 3, {"plm_every": 3, "grad_cache_chunk_size": 3}),
    "entity prompts, clicks, sparse tables, every kind of field": (
        ENTITY | {"strategy": "joint", "id_tower": "deepfm", "kinds": True},
        1,
        SPARSE,
    ),
    "entity prompts, clicks, joint": (ENTITY | {"strategy": "joint", "fusion": "gate"}, 1, {}),
    "entity prompts, clicks, plm, 3 steps": (ENTITY | {"strategy": "plm"}, 3, {"plm_every": 3}),
    "clicks, id": ({"strategy": "id"}, 1, {}),
    "clicks, id, sparse tables": ({"strategy": "id", "id_tower": "deepfm"}, 3, SPARSE),
    "clicks, AFN+, sparse tables": (
        {"strategy": "id", "id_tower": "afn", "id_tower_kwargs": {"num_neurons": 6, "use_dnn": True}},
        3,
        SPARSE,
    ),
    "clicks, every kind of field": (
        {"strategy": "joint", "id_tower": "deepfm", "fusion": "gate", "kinds": True},
        1,
        {},
    ),
    "clicks, every kind of field, sparse tables": ({"strategy": "id", "id_tower": "deepfm", "kinds": True}, 1, SPARSE),
    "clicks, plm": ({"strategy": "plm"}, 1, {}),
    "clicks, joint, 3 batches": ({"strategy": "joint", "fusion": "gate"}, 3, {}),
    "clicks, joint, weighted": ({"strategy": "joint", "weighted": True}, 3, {}),
}


def processor(kinds: bool = False, prompts: str = "row") -> FlipProcessor:
    rows, fields = (tiny.kind_rows(60), tiny.KIND_FIELDS) if kinds else (tiny.toy_rows(60), tiny.FIELDS)
    return FlipProcessor.from_dataset(rows, fields, tiny.wordpiece(), max_length=128, weight="w", prompts=prompts)


def new_model(settings: dict, fields, dropout: float = 0.0):
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "vocab_size": len(tiny.wordpiece()),
    }
    text_config = BertConfig(**sizes, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    # noise and full softmax both occur: age has 7 values, movie_id 9
    config = tiny.flip_config(
        fields, text_config, **{"mtm_full_softmax_size": 7, "projection_dropout": dropout} | settings
    )
    torch.manual_seed(0)
    model = (FlipForCTR if "strategy" in settings else FlipForPretraining)(config)
    if "strategy" not in settings:
        model.set_feature_counts(torch.arange(sum(config.field_sizes)) % 5 + 1)
    return tiny.shake(model, 0.1).train()


def batches(settings: dict, number: int, index: int = 0, processes: int = 1) -> list[dict[str, torch.Tensor]]:
    """This process's rows of so many global batches."""
    kinds = settings.get("kinds", False)
    rows = tiny.kind_rows(60) if kinds else tiny.toy_rows(60)
    rows = [row | ({"w": 0.1 + row["age"] % 4} if settings.get("weighted") else {}) for row in rows]
    flip_processor = processor(kinds, settings.get("prompts", "row"))
    dataset = EncodedDataset(flip_processor, rows)
    clicks = "strategy" in settings
    collator = (
        FlipCollator(flip_processor) if clicks else FlipPretrainingCollator(flip_processor, seed=3, id_mask_ratio=0.25)
    )
    starts = range(0, number * BATCH, BATCH)
    return [collator(dataset.__getitems__(list(range(start + index, start + BATCH, processes)))) for start in starts]


def gradients(case: str, chunk_size: int = 1000) -> dict[str, torch.Tensor]:
    """The gradients that the optimizer would get, dense, and the loss as it is logged; of several steps with one of the
    PLM the sum of those of all else.

    Args:
        chunk_size: most entity prompts that the PLM reads at once.
    """
    settings, number, options = CASES[case]
    accelerator = Accelerator(cpu=True)
    of_model = {name: value for name, value in settings.items() if name not in ("weighted", "kinds")}
    model = new_model(of_model, processor(settings.get("kinds", False)).fields)
    arguments = FinetuneArguments if "strategy" in settings else PretrainArguments
    args = arguments(dataset_dir="d", output_dir="o", model_name_or_path="m", **{"embedding_l2": 0.0} | options)
    args.per_device_train_batch_size = chunk_size
    if args.embedding_optimizer != "dense":
        use_sparse_tables(model)
    keep_out_of_ddp(model, plm=model.config.prompts == "entity")
    step = TrainingStep(accelerator, *accelerator.prepare(model, make_optimizer(model, args, accelerator.device)), args)
    group = batches(settings, number, accelerator.process_index, accelerator.num_processes)
    groups = [group] if args.plm_every == 1 else [[batch] for batch in group]
    outputs = [output for group in step.windows(iter(groups), len(groups)) for output in step.backward(group)]
    step.tables.exchange()
    step.tables.add_l2()
    step.backward_plm()
    found = {name: parameter.grad.to_dense() for name, parameter in model.named_parameters()}
    loss = torch.stack([output["loss"] for output in outputs]).mean()
    return found | {"loss": accelerator.reduce(loss, "mean")}


if __name__ == "__main__":
    results = {case: gradients(case) for case in CASES}
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        torch.save(results, sys.argv[1])
    accelerator.end_training()
