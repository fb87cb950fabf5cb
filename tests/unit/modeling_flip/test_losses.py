"""Each loss against a slow, obvious computation, and at the value that theory gives for the start of training."""

import math

import numpy as np
import pytest
import tiny
import torch

from flip_ctr import FlipForCTR, FlipForPretraining
from flip_ctr.modeling_flip.heads_flip import FlipFusion, contrastive_logits
from flip_ctr.modeling_flip.losses_flip import (
    click_loss,
    contrastive_accuracy,
    contrastive_loss,
    masked_tabular_loss,
    nce_loss,
    soft_click_loss,
)
from flip_ctr.modeling_flip.mtm_head_flip import FlipMTMHead

START_OF_NCE = math.log(1 + 25) + 25 * math.log(1 + 1 / 25)  # 4.24


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# --- noise-contrastive estimation


def test_nce_is_the_formula_of_the_paper():
    generator = np.random.default_rng(0)
    target, noise = generator.normal(size=6), generator.normal(size=(6, 5))
    p_target, p_noise = generator.uniform(0.01, 0.5, 6), generator.uniform(0.01, 0.5, (6, 5))
    expected = []
    for i in range(6):
        loss = -math.log(sigmoid(target[i] - math.log(5 * p_target[i])))
        for j in range(5):
            loss -= math.log(1 - sigmoid(noise[i, j] - math.log(5 * p_noise[i, j])))
        expected.append(loss)
    tensors = (torch.tensor(array) for array in (target, noise, np.log(p_target), np.log(p_noise)))
    torch.testing.assert_close(nce_loss(*tensors), torch.tensor(expected, dtype=torch.double))


def test_nce_starts_at_its_known_value():
    log_p, log_noise = torch.rand(8).log(), torch.rand(8, 25).log()
    torch.testing.assert_close(nce_loss(log_p, log_noise, log_p, log_noise), torch.full((8,), START_OF_NCE))
    assert round(START_OF_NCE, 2) == 4.24


def mtm_head(sizes=(8, 30), **settings) -> FlipMTMHead:
    """A head with counts 1, 2, 3, ... for the values of each field, and counts of reserved ids that must be ignored."""
    head = FlipMTMHead(tiny.flip_config(tiny.sized_fields(*sizes), **{"mtm_full_softmax_size": 0} | settings), 6, 5)
    head.set_feature_counts(torch.cat([torch.tensor([99, 98, 97, 96, *range(1, size - 3)]) for size in sizes]))
    return head


def unigram(sizes, fields, noise: str) -> list[dict[int, float]]:
    """Slow reference: for each field, table row -> probability as noise."""
    rows, start = [], 0
    for size in sizes:
        rows.append({start + 4 + i: i + 1 for i in range(size - 4)})
        start += size
    pools = [dict(item for part in rows for item in part.items())] * len(sizes) if noise == "global" else rows
    return [{row: count / sum(pools[f].values()) for row, count in pools[f].items()} for f in fields]


@pytest.mark.parametrize("noise", ["field", "global"])
def test_noise_follows_the_unigram_distribution(noise):
    sizes = (8, 12)
    head = mtm_head(sizes, mtm_noise=noise, mtm_num_noise=50)
    for field, expected in enumerate(unigram(sizes, [0, 1], noise)):
        drawn = head.sample_noise(torch.full((800,), field)).flatten().tolist()
        assert set(drawn) == set(expected)  # in-field: nothing of the other; global: all; reserved ids: never
        for row, probability in expected.items():
            assert drawn.count(row) / len(drawn) == pytest.approx(probability, abs=0.012)


@torch.no_grad()
@pytest.mark.parametrize("noise", ["field", "global"])
def test_mtm_loss_is_the_sum_over_masked_features(noise):
    sizes, k = (8, 30), 5
    head = tiny.shake(mtm_head(sizes, mtm_noise=noise, mtm_num_noise=k)).double()
    vectors = torch.randn(3, 2, 4, dtype=torch.double)
    labels = torch.tensor([[4, -100], [-100, -100], [7, 33 - 4]])
    uniform = torch.rand(3, 2, k, dtype=torch.double)
    noise_ids = head.sample_noise(torch.arange(2).repeat(3), uniform.flatten(0, 1)).reshape(3, 2, k)
    probability = unigram(sizes, [0, 1], noise)
    expected = 0.0
    for b in range(3):
        for f in range(2):
            if labels[b, f] == -100:
                continue

            def logit(row):
                score = head.bias.weight[row, 0] + sum(
                    vectors[b, f, d] * head.embeddings.weight[row, d] for d in range(4)
                )
                return float(score - math.log(k * probability[f][row]))

            expected -= math.log(sigmoid(logit(int(labels[b, f]) + [0, 8][f])))
            expected -= sum(math.log(1 - sigmoid(logit(row))) for row in noise_ids[b, f].tolist())
    assert masked_tabular_loss(head.scores(vectors, labels, uniform)).item() == pytest.approx(expected, rel=1e-5)


def test_noise_numbers_of_another_k_are_refused():
    head = mtm_head((8, 30), mtm_num_noise=5)
    labels = torch.tensor([[4, -100]])
    with pytest.raises(ValueError, match="noise_uniform has 3 numbers a feature, `config.mtm_num_noise` is 5"):
        masked_tabular_loss(head.scores(torch.randn(1, 2, 4), labels, torch.rand(1, 2, 3, dtype=torch.double)))


@pytest.mark.parametrize("noise", ["field", "global"])
def test_a_new_model_starts_at_the_known_mtm_loss(processor, rows, batch, text_config, noise):
    config = tiny.flip_config(processor.fields, text_config, mtm_full_softmax_size=0, mtm_noise=noise)
    model = FlipForPretraining(config).eval()
    counts = torch.cat(
        [torch.bincount(batch["feature_ids"][:, f], minlength=n) for f, n in enumerate(config.field_sizes)]
    )
    model.set_feature_counts(counts)
    assert model(**batch).mtm_loss.item() == pytest.approx(START_OF_NCE, abs=0.05)


@torch.no_grad()
def test_small_fields_use_the_full_softmax():
    head = mtm_head((8, 30), mtm_full_softmax_size=10)
    vectors, labels = torch.randn(4, 2, 4), torch.tensor([[4, -100], [6, -100], [7, -100], [5, -100]])
    expected = 0.0
    for b in range(4):
        scores = [
            float(vectors[b, 0] @ head.embeddings.weight[row] + head.bias.weight[row, 0]) for row in range(4, 8)
        ]  # reserved ids are no candidates
        expected -= scores[labels[b, 0] - 4] - math.log(sum(math.exp(score) for score in scores))
    assert masked_tabular_loss(head.scores(vectors, labels)).item() == pytest.approx(expected, rel=1e-5)


def test_the_full_softmax_starts_at_the_cross_entropy_of_the_unigram_distribution():
    head = mtm_head((8, 30), mtm_full_softmax_size=128)
    labels = torch.tensor([[4, 10], [5, -100], [-100, 29]])
    (small, large) = unigram((8, 30), [0, 1], "field")
    expected = -sum(math.log(p) for p in (small[4], small[5], large[8 + 10], large[8 + 29]))
    assert masked_tabular_loss(head.scores(torch.zeros(3, 2, 4), labels)).item() == pytest.approx(expected, rel=1e-5)


def test_global_noise_never_uses_the_full_softmax():
    head = mtm_head((8, 30), mtm_full_softmax_size=128, mtm_noise="global", mtm_num_noise=25)
    loss = masked_tabular_loss(head.scores(torch.zeros(1, 2, 4), torch.tensor([[4, -100]])))
    assert loss.item() == pytest.approx(START_OF_NCE, abs=1e-4)


def test_feature_counts_are_checked():
    head = mtm_head((8, 30))
    with pytest.raises(ValueError, match="38 features, got .5,"):
        head.set_feature_counts(torch.ones(5))
    with pytest.raises(ValueError, match="field 'f1'.*no value was counted"):
        head.set_feature_counts(torch.tensor([1] * 12 + [0] * 26))


def test_mtm_accuracy_ranks_among_the_values_of_the_field():
    head = mtm_head((8, 30))
    head.embeddings.weight.data.zero_()
    head.bias.weight.data.copy_(torch.arange(38.0)[:, None])  # the last value of a field wins
    labels = torch.tensor([[7, -100], [6, 29], [-100, 10]])
    assert head.accuracy(torch.zeros(3, 2, 4), labels).item() == pytest.approx(2 / 4)


# --- masked features of fields with several slots

SLOT_SIZES = (12, 9, 40)
SLOT_FIELDS = [0, 0, 0, 1, 2, 2]
SLOT_LABELS = torch.tensor([[4, 11, -100, 5, 39, 4], [-100, 7, -100, -100, 20, -100], [4, 5, 6, 8, 4, 5], [-100] * 6])


def slotted_head(**settings) -> FlipMTMHead:
    slots = [{"kind": "multi-valued", "max_values": 3}, {}, {"kind": "multi-valued", "max_values": 2}]
    fields = [field | extra for field, extra in zip(tiny.sized_fields(*SLOT_SIZES), slots)]
    head = FlipMTMHead(tiny.flip_config(fields, **{"mtm_full_softmax_size": 0} | settings), 6, 5)
    head.set_feature_counts(torch.cat([torch.tensor([99, 98, 97, 96, *range(1, size - 3)]) for size in SLOT_SIZES]))
    return tiny.shake(head, 1.0)


@torch.no_grad()
@pytest.mark.parametrize("noise", ["field", "global"])
@pytest.mark.parametrize("softmax_size", [0, 8, 99])
def test_each_value_of_a_field_is_recovered_from_the_fields_vector(noise, softmax_size):
    """As if each slot were a field of one value, with the vector of its field."""
    k = 5
    head = slotted_head(mtm_noise=noise, mtm_num_noise=k, mtm_full_softmax_size=softmax_size).double()
    vectors, uniform = torch.randn(4, 3, 4, dtype=torch.double), torch.rand(4, 6, k, dtype=torch.double)
    probability, expected = unigram(SLOT_SIZES, range(3), noise), 0.0
    for b, slot in (SLOT_LABELS != -100).nonzero().tolist():
        field, label = SLOT_FIELDS[slot], int(SLOT_LABELS[b, slot])
        start = sum(SLOT_SIZES[:field])

        def score(row):
            return float(head.bias.weight[row, 0] + head.embeddings.weight[row] @ vectors[b, field])

        if noise == "field" and SLOT_SIZES[field] - 4 <= softmax_size:
            everyone = [score(row) for row in range(start + 4, start + SLOT_SIZES[field])]
            expected -= score(start + label) - math.log(sum(math.exp(one) for one in everyone))
            continue
        drawn = head.sample_noise(torch.tensor([field]), uniform[b, slot][None])[0].tolist()
        for row, sign in [(start + label, 1), *((row, -1) for row in drawn)]:
            expected -= math.log(sigmoid(sign * (score(row) - math.log(k * probability[field][row]))))
    assert masked_tabular_loss(head.scores(vectors, SLOT_LABELS, uniform)).item() == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("scores_at_once", [3, 200, 2**20])
def test_mtm_accuracy_of_several_targets(monkeypatch, scores_at_once):
    """A target is recovered when it is among the first n of its field's values, n the number of the field's targets in
    the row."""
    monkeypatch.setattr("flip_ctr.modeling_flip.mtm_head_flip.SCORES_AT_ONCE", scores_at_once)
    head, hits, count = slotted_head(), 0, 0
    random = np.random.default_rng(0)
    labels = torch.full((60, 6), -100)
    for b in range(60):
        for field, slots in enumerate(([0, 1, 2], [3], [4, 5])):
            chosen = random.choice(np.arange(4, SLOT_SIZES[field]), random.integers(0, len(slots) + 1), replace=False)
            labels[b, slots[: len(chosen)]] = torch.from_numpy(chosen)
    vectors = torch.randn(60, 3, 4)
    for b in range(60):
        for field, slots in enumerate(([0, 1, 2], [3], [4, 5])):
            start, targets = sum(SLOT_SIZES[:field]), [one for one in labels[b, slots].tolist() if one != -100]
            of_field = slice(start, start + SLOT_SIZES[field])
            scores = head.embeddings.weight[of_field] @ vectors[b, field] + head.bias.weight[of_field, 0]
            best = sorted(range(4, SLOT_SIZES[field]), key=lambda one: -scores[one])
            hits += sum(one in best[: len(targets)] for one in targets)
            count += len(targets)
    assert 0.1 < hits / count < 0.9
    assert head.accuracy(vectors, labels).item() == pytest.approx(hits / count)


@torch.no_grad()
def test_equal_scores_rank_by_id(monkeypatch):
    monkeypatch.setattr("flip_ctr.modeling_flip.mtm_head_flip.SCORES_AT_ONCE", 6)
    head = slotted_head()
    head.embeddings.weight.zero_(), head.bias.weight.zero_()
    labels = torch.tensor([[4, 5, -100, 4, 5, -100], [6, 5, -100, 5, 4, -100]])
    # hits: 4 and 5; 4; (5 is second of one); 5; (5 is second of one); 4
    assert head.accuracy(torch.randn(2, 3, 4), labels).item() == pytest.approx(5 / 8)


def test_no_target_no_accuracy():
    assert slotted_head().accuracy(torch.randn(4, 3, 4), torch.full((4, 6), -100)) == 0


# --- contrastive learning


def slow_info_nce(first, second, scale) -> float:
    total = 0.0
    for own, other in ((first, second), (second, first)):
        for i in range(len(own)):
            similarities = [scale * sum(a * b for a, b in zip(own[i], row)) for row in other]
            total -= similarities[i] - math.log(sum(math.exp(s) for s in similarities))
    return total / (2 * len(first))


def contrast(first, second, scale) -> tuple[torch.Tensor, torch.Tensor]:
    similarities = contrastive_logits(first, second, scale)
    return contrastive_loss(*similarities), contrastive_accuracy(*similarities)


def test_info_nce_is_the_formula_and_symmetric():
    first, second = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    loss, accuracy = contrast(first, second, 3.0)
    assert loss.item() == pytest.approx(slow_info_nce(first.tolist(), second.tolist(), 3.0), rel=1e-5)
    assert loss.item() == pytest.approx(contrast(second, first, 3.0)[0].item(), rel=1e-6)
    hits = sum(int((first[i] @ second.T).argmax()) == i for i in range(5))
    assert accuracy.item() == pytest.approx(hits / 5)


def test_info_nce_is_log_b_at_chance_and_0_when_solved():
    same = torch.ones(8, 4)
    assert contrast(same, same, 14.0)[0].item() == pytest.approx(math.log(8))
    loss, accuracy = contrast(torch.eye(8), torch.eye(8), 100.0)
    assert loss.item() == pytest.approx(0, abs=1e-6) and accuracy == 1


@pytest.mark.parametrize(
    ("settings", "scale"), [({}, 1 / 0.07), ({"icl_temperature": 0.2}, 5), ({"icl_similarity": "dot"}, 1 / 0.7)]
)
def test_icl_scale_at_the_start(text_config, settings, scale):
    model = FlipForPretraining(tiny.flip_config(tiny.sized_fields(8), text_config, **settings))
    assert float(model.icl_scale()) == pytest.approx(scale, rel=1e-5)
    assert (model.logit_scale is None) == (settings.get("icl_similarity") == "dot")


def test_icl_scale_is_bounded(text_config):
    model = FlipForPretraining(tiny.flip_config(tiny.sized_fields(8), text_config))
    model.logit_scale.data.fill_(50.0)
    assert model.icl_scale().item() == 100


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_icl_of_the_model_compares_the_clean_views(processor, batch, text_config, similarity):
    config = tiny.flip_config(processor.fields, text_config, icl_similarity=similarity)
    model = tiny.shake(FlipForPretraining(config)).eval()
    views = model.flip(**{name: batch[name] for name in ("feature_ids", "input_ids", "attention_mask")})
    if similarity == "cosine":
        torch.testing.assert_close(views.id_embeds.norm(dim=-1), torch.ones(len(views.id_embeds)))
    expected = slow_info_nce(views.id_embeds.tolist(), views.text_embeds.tolist(), float(model.icl_scale()))
    assert model(**batch).icl_loss.item() == pytest.approx(expected, rel=1e-3)


# --- masked language modelling


def test_mlm_is_the_cross_entropy_at_masked_positions_only(processor, batch, text_config):
    config = tiny.flip_config(processor.fields, text_config, mtm_weight=0, icl_weight=0)
    model = tiny.shake(FlipForPretraining(config)).eval()
    states = model.flip.encode_text(batch["masked_input_ids"], batch["attention_mask"])
    h_id = model.flip.id_tower(batch["feature_ids"])  # the unmasked tabular view
    losses, hits = [], []
    for b, position in (batch["mlm_labels"] != -100).nonzero().tolist():
        logits = model.mlm_head(states[b, position][None], h_id[b][None])[0]
        label = batch["mlm_labels"][b, position]
        losses.append(-logits.log_softmax(-1)[label].item())
        hits.append(logits.argmax() == label)
    output = model(**batch)
    assert output.num_mlm_targets == len(losses) > 0
    assert output.mlm_loss.item() == pytest.approx(np.mean(losses), rel=1e-4)
    assert output.mlm_accuracy.item() == pytest.approx(np.mean(hits), abs=1e-6)


def test_mlm_over_the_tokens_of_a_dataset(processor, batch, text_config):
    """Is MLM over all tokens, with the others' logits at minus infinity; in evaluation a token from outside comes in
    addition."""
    config = tiny.flip_config(processor.fields, text_config, mtm_weight=0, icl_weight=0)
    model = tiny.shake(FlipForPretraining(config))
    labels = batch["mlm_labels"]
    tokens = labels[labels != -100].unique()
    vocabulary = torch.cat([tokens, torch.arange(3)]).unique()
    outside = torch.ones(len(model.mlm_head.decoder.bias), dtype=torch.bool)
    outside[vocabulary] = False
    results = {}
    for name in ("all", "some"):
        if name == "some":
            model.set_mlm_vocabulary(vocabulary)
        else:
            with torch.no_grad():
                bias = model.mlm_head.decoder.bias.clone()
                model.mlm_head.decoder.bias[outside] = -1e9
        model.train().zero_grad()
        torch.manual_seed(0)
        output = model(**batch)
        output.loss.backward()
        model.mlm_head.decoder.bias.data = bias.clone()
        results[name] = (
            output.loss.item(),
            {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None},
        )
    assert results["some"][0] == pytest.approx(results["all"][0], rel=1e-5)
    for name, gradient in results["all"][1].items():
        torch.testing.assert_close(results["some"][1][name], gradient, atol=1e-6, rtol=1e-4)

    model.eval().set_mlm_vocabulary(vocabulary)
    whole = model(**batch)
    model.set_mlm_vocabulary(vocabulary[~torch.isin(vocabulary, tokens[:2])])  # two labels are unknown
    torch.testing.assert_close(model(**batch).mlm_loss, whole.mlm_loss)
    assert model(**batch).mlm_accuracy == whole.mlm_accuracy
    with pytest.raises(IndexError, match="Target -1"):
        model.train()(**batch)
    assert not {"mlm_head.vocabulary", "mlm_head.places"} & model.state_dict().keys()
    model.set_mlm_vocabulary(None)
    assert model.mlm_head(torch.zeros(1, 16), torch.zeros(1, model.flip.id_tower.output_dim)).shape[1] == len(outside)


def test_the_loss_is_the_weighted_sum(processor, batch, text_config):
    weights = {"mlm_weight": 0.5, "mtm_weight": 2.0, "icl_weight": 3.0}
    model = FlipForPretraining(
        tiny.flip_config(processor.fields, text_config, mtm_full_softmax_size=999, **weights)
    ).eval()
    output = model(**batch)
    expected = 0.5 * output.mlm_loss + 2 * output.mtm_loss + 3 * output.icl_loss
    torch.testing.assert_close(output.loss, expected)


# --- clicks and fusion


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.5]])
def test_click_loss_is_weighted_binary_cross_entropy(weights):
    logits, labels = [0.3, -2.0, 1.5], [1, 0, 0]
    losses = [-math.log(sigmoid(x) if y else 1 - sigmoid(x)) for x, y in zip(logits, labels)]
    expected = np.average(losses, weights=weights)
    weight = None if weights is None else torch.tensor(weights)
    assert click_loss(torch.tensor(logits)[:, None], torch.tensor(labels), weight).item() == pytest.approx(expected)


@pytest.mark.parametrize("weights", [None, [1.0, 0.0, 2.5]])
def test_soft_click_loss_is_cross_entropy_to_probabilities(weights):
    logits, probabilities, labels = [0.3, -2.0, 1.5], [0.8, 0.1, 0.0], [1, 0, 0]
    losses = [-p * math.log(sigmoid(x)) - (1 - p) * math.log(1 - sigmoid(x)) for x, p in zip(logits, probabilities)]
    weight = None if weights is None else torch.tensor(weights)
    scores, soft, hard = torch.tensor(logits)[:, None], torch.tensor(probabilities), torch.tensor(labels)
    loss = soft_click_loss(scores, soft, weight)
    assert loss.item() == pytest.approx(np.average(losses, weights=weights))
    # of a mean of clicks and probabilities it is the mean of both losses
    mixed = soft_click_loss(scores, 0.3 * hard + 0.7 * soft, weight)
    assert mixed.item() == pytest.approx((0.3 * click_loss(scores, hard, weight) + 0.7 * loss).item())
    with pytest.raises(ValueError, match="`soft_targets` must be probabilities, from 0 to 1; got 1.5"):
        soft_click_loss(scores, torch.tensor([0.2, 1.5, 0.1]), weight)
    with pytest.raises(ValueError, match="`soft_targets` must have the shape .3,."):
        soft_click_loss(scores, soft[:2], weight)
    with pytest.raises(TypeError, match="`soft_targets` must be a tensor .* of floating-point numbers"):
        soft_click_loss(scores, hard, weight)


@pytest.mark.parametrize("strategy", ["id", "plm", "joint"])
def test_the_click_model_sums_the_losses_of_its_logits(processor, batch, text_config, strategy):
    model = tiny.shake(FlipForCTR(tiny.flip_config(processor.fields, text_config, strategy=strategy))).eval()
    views = {name: batch[name] for name in ("feature_ids", "input_ids", "attention_mask")}
    labels, weight = torch.arange(24) % 2, torch.rand(24)
    output = model(**views, labels=labels, sample_weight=weight)
    heads = [output.logits, output.id_logits, output.text_logits] if strategy == "joint" else [output.logits]
    expected = sum(click_loss(logits, labels, weight) for logits in heads)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6) and output.logits.shape == (24, 1)
    soft = torch.rand(24)
    expected = sum(soft_click_loss(logits, soft, weight) for logits in heads)
    loss = model(**views, soft_targets=soft, sample_weight=weight).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="`soft_targets` stand in the place of `labels`"):
        model(**views, labels=labels, soft_targets=soft)
    assert (output.id_logits is None, output.text_logits is None) == (strategy == "plm", strategy == "id")


@pytest.mark.parametrize(("fusion", "start"), [("scalar", 0.5), ("raw", 0.0), ("gate", 0.5)])
def test_fusion_starts_where_it_should(processor, batch, text_config, fusion, start):
    model = FlipForCTR(tiny.flip_config(processor.fields, text_config, fusion=fusion)).eval()
    output = model(**{name: batch[name] for name in ("feature_ids", "input_ids", "attention_mask")})
    torch.testing.assert_close(output.logits, start * output.id_logits + (1 - start) * output.text_logits)


@pytest.mark.parametrize("fusion", ["scalar", "raw", "gate"])
def test_fusion_weighs_the_two_logits(fusion):
    part = tiny.shake(FlipFusion(tiny.flip_config(tiny.sized_fields(8, 9), fusion=fusion), 3, 5), 1.0)
    id_logits, text_logits, feature_ids = (
        torch.randn(4, 1),
        torch.randn(4, 1),
        torch.tensor([[4, 5], [2, 5], [4, 2], [2, 2]]),
    )
    state, pooled = torch.randn(4, 3), torch.randn(4, 5)
    logits, alpha = part(id_logits, text_logits, state, pooled, feature_ids)
    for b in range(4):
        if fusion == "gate":
            unknown = torch.tensor([float(id_ == 2) for id_ in feature_ids[b]])
            inputs = torch.cat([part.id_norm(state[b]), part.text_norm(pooled[b]), unknown])
            a = sigmoid(float(part.gate.weight[0] @ inputs + part.gate.bias))
        else:
            a = part.alpha.item() if fusion == "raw" else sigmoid(part.alpha.item())
        assert logits[b].item() == pytest.approx(a * id_logits[b].item() + (1 - a) * text_logits[b].item(), abs=1e-5)
    assert alpha.shape == ((4, 1) if fusion == "gate" else (1,))
