"""What a model is given is checked where it enters: each wrong input is named, with its shape and what was expected."""

import copy
import math

import pytest
import tiny
import torch
from transformers import BertConfig

from flip_ctr import FlipCollator, FlipField, FlipForCTR, FlipForPretraining, FlipModel, FlipProcessor
from flip_ctr.data.batches.encoded import EncodedDataset
from flip_ctr.modeling_flip.inputs_flip import INPUTS

HISTORY = FlipField("seen", "int", kind="history", history_of="movie_id", entity="user", max_values=3)
# name of a model: strategy, prompts and what else its configuration has
CTR = {
    "id": {"strategy": "id"},
    "plm": {"strategy": "plm"},
    "joint": {"strategy": "joint", "fusion": "gate"},
    "frozen": {"strategy": "frozen"},
    "entity": {"strategy": "joint", "prompts": "entity"},
    "history": {"strategy": "joint", "prompts": "entity", "id_tower": "widedeep"},
}


@pytest.fixture(scope="module")
def given():
    """name -> a model in eval mode and a batch for it; made once, and never changed."""
    rows, tokenizer = tiny.toy_rows(), tiny.wordpiece()
    text = BertConfig(**tiny._SIZES | {"vocab_size": len(tokenizer)}, max_position_embeddings=100)
    seen = [
        {name: rows[number][name] for name in ("movie_id", "title", "genre")} | {"clicked": number % 2}
        for number in range(3)
    ]
    with_history = [row | {"seen": seen[: number % 4]} for number, row in enumerate(rows)]
    row = FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer, max_length=96)
    entity = FlipProcessor.from_dataset(rows, tiny.FIELDS, tokenizer, max_length=96, prompts="entity")
    history = FlipProcessor.from_dataset(
        with_history, [*tiny.FIELDS, HISTORY], tokenizer, max_length=96, prompts="entity"
    )
    made = {}
    for name, settings in CTR.items():
        processor = {"entity": entity, "history": history}.get(name, row)
        config = tiny.flip_config(processor.fields, copy.deepcopy(text), **settings)
        dataset = EncodedDataset(processor, with_history if name == "history" else rows)
        batch = FlipCollator(processor)(dataset.__getitems__(range(4)))
        made[name] = FlipForCTR(config).eval(), batch
    read = {"feature_ids", "input_ids", "attention_mask"}
    made["towers"] = (
        FlipModel(tiny.flip_config(row.fields, copy.deepcopy(text))).eval(),
        {name: values for name, values in made["joint"][1].items() if name in read},
    )
    for name, processor in (("pretraining", row), ("entity pretraining", entity)):
        config = tiny.flip_config(processor.fields, copy.deepcopy(text), prompts=processor.prompts)
        model = FlipForPretraining(config).eval()
        model.set_feature_counts(processor.count_features(rows))
        made[name] = model, tiny.pretraining_batch(processor, rows)
    return made


def put(value, *place):
    """A change of an input: `value` in one place."""

    def change(values):
        values = values.clone()
        values[place] = value
        return values

    return change


def shorter(values):
    return values[:3]


def unsqueezed(values):
    return values.float()[:, None]


def as_list(values):
    return values.tolist()


FLOAT, NAN, INFINITE = (lambda v: v.float()), put(math.nan, 1), put(math.inf, 1)
# models, input, change, error, and what its message must say beside the name of the input
WRONG = [
    # the id one past its field is a row of the next field's
    (["id", "joint", "frozen", "towers"], "feature_ids", put(11, 1, 0), ValueError, "row 1 has 11 in column 0"),
    (["pretraining", "entity pretraining"], "feature_ids", put(11, 1, 0), ValueError, "from 0 to 10"),
    (["pretraining", "entity pretraining"], "masked_feature_ids", put(11, 1, 0), ValueError, "row 1 has 11"),
    (["id", "history", "pretraining"], "feature_ids", put(-1, 0, 2), ValueError, "-1 in column 2"),
    (["id", "history", "pretraining"], "feature_ids", put(2**63 - 1, 0, 2), ValueError, "in column 2"),
    (["id", "history", "pretraining", "towers"], "feature_ids", FLOAT, TypeError, "torch.float32"),
    (["id", "history"], "feature_ids", lambda v: v > 0, TypeError, "torch.bool"),
    (["id", "history"], "feature_ids", lambda v: v.to_sparse(), TypeError, "sparse"),
    (["id", "history"], "feature_ids", as_list, TypeError, "got list"),
    (["id", "history"], "feature_ids", lambda v: v.numpy(), TypeError, "got ndarray"),
    (["id", "entity pretraining"], "feature_ids", lambda v: v[:, :5], ValueError, "6); got ("),
    (["id", "history"], "feature_ids", lambda v: v[None], ValueError, "(1, 4, 6)"),
    (["joint", "frozen", "towers", "pretraining"], "input_ids", shorter, ValueError, "(3,"),
    (["entity", "history"], "prompt_index", shorter, ValueError, "`feature_ids`"),
    (["plm", "joint", "entity", "pretraining"], "input_ids", put(10**6, 0, 0), ValueError, "from 0 to 106"),
    (["plm", "joint", "entity", "pretraining"], "input_ids", put(-1, 0, 0), ValueError, "got -1 at [0, 0]"),
    (["plm", "frozen", "entity", "pretraining"], "input_ids", FLOAT, TypeError, "torch.float32"),
    (["plm", "entity"], "input_ids", as_list, TypeError, "got list"),
    (["plm"], "input_ids", lambda v: v[:, :0], ValueError, "(4, 0)"),
    (["plm"], "input_ids", lambda v: v[:, None], ValueError, "prompts='row'"),
    (["plm", "entity", "pretraining"], "attention_mask", lambda v: v[:, :3], ValueError, "3)"),
    (["plm", "entity", "pretraining"], "attention_mask", put(2, 0, 0), ValueError, "0 (padding) or 1"),
    (["plm", "entity", "pretraining"], "attention_mask", lambda v: v * 0.5, ValueError, "got 0.5 at [0, 0]"),
    (["plm", "entity", "pretraining"], "attention_mask", put(0, 0), ValueError, "at least one token"),
    (["plm", "entity"], "attention_mask", as_list, TypeError, "got list"),
    (["entity", "history", "entity pretraining"], "prompt_index", put(99, 0, 0), ValueError, "prompts, from 0; got 99"),
    (["entity", "history", "entity pretraining"], "prompt_index", put(-1, 0, 0), ValueError, "got -1 at [0, 0]"),
    (["entity", "history", "entity pretraining"], "prompt_index", FLOAT, TypeError, "torch.float32"),
    (["entity", "history"], "prompt_index", as_list, TypeError, "got list"),
    (["history"], "history_ids", put(10**4, 3, 0, 0), ValueError, "row 3, entry 0 has 10000 in column 0"),
    (["history"], "history_ids", put(-1, 3, 0, 0), ValueError, "has -1"),
    (["history"], "history_ids", FLOAT, TypeError, "torch.float32"),
    (["history"], "history_ids", lambda v: v[..., :1], ValueError, "(4, 3, 1)"),
    (["history"], "history_outcomes", put(3, 0, 0), ValueError, "2 (clicked); got 3"),
    (["history"], "history_outcomes", FLOAT, TypeError, "torch.float32"),
    (["history"], "history_outcomes", lambda v: v[:, :1], ValueError, "(4, 1)"),
    (["history"], "history_outcomes", lambda v: None, ValueError, "is needed"),
    (["history"], "history_ids", lambda v: None, ValueError, "is needed"),
    (["id", "joint"], "labels", unsqueezed, ValueError, "here (4,), as `feature_ids` has it; got (4, 1)"),
    (["id", "joint"], "labels", shorter, ValueError, "(3,)"),
    (["id", "joint"], "labels", put(2, 0), ValueError, "got 2 at [0] of the shape (4,)"),
    (["id", "joint"], "labels", lambda v: NAN(v.float()), ValueError, "got nan"),
    (["id", "joint"], "labels", lambda v: v * 0.5, ValueError, "got 0.5"),
    (["id", "joint"], "labels", as_list, TypeError, "got list"),
    (["id", "joint"], "labels", lambda v: v.numpy(), TypeError, "got ndarray"),
    (["id", "joint"], "labels", lambda v: v.to(torch.complex64), TypeError, "complex64"),
    (["pretraining", "entity pretraining"], "mtm_labels", put(11, 0, 0), ValueError, "from 4 to 10"),
    (["pretraining", "entity pretraining"], "mtm_labels", put(3, 0, 0), ValueError, "from 4 to 10"),
    (["pretraining", "entity pretraining"], "mtm_labels", shorter, ValueError, "(3, 6)"),
    (["pretraining", "entity pretraining"], "mtm_labels", FLOAT, TypeError, "torch.float32"),
    (["pretraining", "entity pretraining"], "mlm_labels", put(107, 0, 1), ValueError, "from 0 to 106; got 107"),
    (["pretraining", "entity pretraining"], "mlm_labels", put(-1, 0, 1), ValueError, "got -1"),
    (["pretraining", "entity pretraining"], "mlm_labels", lambda v: v[:, :-1], ValueError, "here ("),
    (["pretraining", "entity pretraining"], "mlm_labels", FLOAT, TypeError, "torch.float32"),
    (["pretraining", "entity pretraining"], "masked_input_ids", put(107, 0, 1), ValueError, "got 107"),
    (["pretraining", "entity pretraining"], "noise_uniform", shorter, ValueError, "(3, 6, 25)"),
    (["pretraining", "entity pretraining"], "noise_uniform", NAN, ValueError, "got nan"),
    (["pretraining", "entity pretraining"], "noise_uniform", lambda v: v + 1, ValueError, "from 0 to 1"),
    (["entity pretraining"], "mlm_pairs", lambda v: v.long(), TypeError, "torch.int64"),
]


@pytest.mark.parametrize("number", range(len(WRONG)), ids=lambda n: f"{WRONG[n][1]}-{n}")
def test_a_wrong_input_is_named(given, number):
    models, name, change, error, says = WRONG[number]
    for one in models:
        model, batch = given[one]
        with pytest.raises(error) as caught:
            model(**batch | {name: change(batch[name])})
        assert f"`{name}`" in str(caught.value) and says in str(caught.value), (one, str(caught.value))


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (-torch.ones(4), "from 0 to 1e+30; got -1"),
        (NAN(torch.ones(4)), "got nan at [1]"),
        (INFINITE(torch.ones(4)), "got inf at [1]"),
        (INFINITE(torch.ones(4).half()), "got inf at [1]"),
        (torch.ones(4) * 1e31, "from 0 to 1e+30"),
        (torch.ones(4, 1), "got (4, 1)"),
        (torch.ones(3), "got (3,)"),
        ([1, 1, 1, 1], "got list"),
    ],
)
def test_a_wrong_weight_is_named(given, weight, says):
    model, batch = given["id"]
    with pytest.raises((ValueError, TypeError)) as caught:
        model(**batch, sample_weight=weight)
    assert "`sample_weight`" in str(caught.value) and says in str(caught.value)


@pytest.mark.parametrize(
    ("pooled", "says"),
    [
        (torch.full((8, 16), math.nan), "must be finite; got nan"),
        (torch.zeros(8, 15), "(P, H), here (8, 16); got (8, 15)"),
        (torch.zeros(8, 16, dtype=torch.long), "torch.int64"),
        (torch.zeros(1, 16), "`prompt_index` must be numbers of the 1 prompts"),
    ],
)
def test_wrong_known_states_are_named(given, pooled, says):
    model, batch = given["entity"]
    ids = {name: batch[name] for name in ("feature_ids", "prompt_index")}
    with pytest.raises((ValueError, TypeError)) as caught:
        model(**ids, text_pooled=pooled)
    assert says in str(caught.value)


def test_what_is_unusual_and_right_passes(given):
    model, batch = given["id"]
    expected = model(**batch)
    for type_ in (torch.bool, torch.int8, torch.float16, torch.float64):
        same = batch | {"labels": batch["labels"].to(type_)}
        torch.testing.assert_close(
            model(**same, sample_weight=torch.ones(4).to(type_)).loss, expected.loss, check_dtype=False
        )
    for type_ in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(model(batch["feature_ids"].to(type_)).logits, expected.logits)
    assert model(**batch, sample_weight=torch.zeros(4)).loss == 0
    # a strategy's unused view is not looked at
    assert torch.equal(model(batch["feature_ids"], input_ids="nothing").logits, expected.logits)
    for name in ("plm", "entity"):
        model, batch = given[name]
        for type_ in (torch.bool, torch.float32):
            mask = batch["attention_mask"].to(type_)
            assert torch.equal(model(**batch | {"attention_mask": mask}).logits, model(**batch).logits)


@pytest.mark.parametrize("name", CTR)
def test_no_rows_have_no_scores_and_no_loss(given, name):
    model, batch = given[name]
    empty = {one: values[:0] for one, values in batch.items()}
    labels = empty.pop("labels")
    assert model(**empty).logits.shape == (0, 1)
    with pytest.raises(ValueError, match=r"`labels` has the shape \(0,\): a loss needs at least one row"):
        model(**empty, labels=labels)


@pytest.mark.parametrize("name", ["pretraining", "entity pretraining"])
def test_pretraining_needs_rows(given, name):
    model, batch = given[name]
    with pytest.raises(ValueError, match=r"has the shape \(0, 6\): a loss needs at least one row"):
        model(**{one: values[:0] for one, values in batch.items()})


def test_a_prompt_beyond_the_positions_of_the_plm_is_named(given):
    model, batch = given["plm"]
    longer = {name: batch[name].repeat(1, 4) for name in ("input_ids", "attention_mask")}
    length = longer["input_ids"].shape[1]
    with pytest.raises(
        ValueError, match=rf"`input_ids` has the shape \(4, {length}\), and the PLM has positions for 100"
    ):
        model(**longer)


def test_evaluation_without_a_masked_token(given):
    """As one process has it, where another one has all of a batch's masked prompts."""
    model, batch = given["entity pretraining"]
    output = model(**batch | {"mlm_labels": torch.full_like(batch["mlm_labels"], -100)})
    assert output.num_mlm_targets == 0 and output.loss.isfinite()


def test_noise_that_was_rounded_to_one_is_of_its_field(given):
    head = given["pretraining"][0].mtm_head
    fields = torch.arange(6)
    drawn = head.sample_noise(fields, torch.ones(6, 3))
    starts = torch.tensor(head.field_starts)[:, None]
    assert ((drawn >= starts) & (drawn < starts + torch.tensor(head.field_sizes)[:, None])).all()


def on_meta(batch):
    return {name: values.to("meta") for name, values in batch.items()}


def test_a_device_is_not_waited_for(given):
    """A meta tensor has no values, so that looking at one is an error: so would be waiting for a GPU."""
    model, batch = given["id"]
    output = copy.deepcopy(model).to("meta")(**on_meta(batch), sample_weight=torch.ones(4, device="meta"))
    assert output.loss.is_meta and output.logits.shape == (4, 1)
    for name in ("joint", "history", "pretraining", "entity pretraining"):  # other parts of these do wait
        model, batch = given[name]
        last = model.flip.id_tower.embeddings.last_ids.to("meta")
        model.flip.inputs.check(last, **on_meta({one: values for one, values in batch.items() if one in INPUTS}))


def test_checks_break_no_graph(given):
    model, batch = given["pretraining"]

    def checked(**inputs):
        model.flip.inputs.check(model.flip.id_tower.embeddings.last_ids, **inputs)
        return inputs["feature_ids"] + 1

    batch = {one: values for one, values in batch.items() if one in INPUTS}
    torch._dynamo.reset()
    compiled = torch.compile(checked, backend="eager", fullgraph=True, dynamic=True)
    assert torch.equal(compiled(**batch), batch["feature_ids"] + 1)
    with pytest.raises(Exception, match="must have the shape"):  # a shape is still checked
        compiled(**batch | {"feature_ids": batch["feature_ids"][0]})
    torch._dynamo.reset()


def test_a_model_is_exported(given):
    model, batch = given["id"]
    rows = {"feature_ids": {0: torch.export.Dim("rows")}, "return_dict": None}
    program = torch.export.export(
        model, (), {"feature_ids": batch["feature_ids"], "return_dict": False}, dynamic_shapes=rows
    )
    ids = batch["feature_ids"][:3]
    assert torch.equal(program.module()(feature_ids=ids, return_dict=False)[0], model(ids).logits)
