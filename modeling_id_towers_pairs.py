# Copyright 2026 The flip-ctr authors. Licensed under the Apache License, Version 2.0.
"""ID towers of single features and of pairs of fields: LR, FM, AFM, Wide&Deep, DeepFM, PNN, FiBiNET.

Shapes below: B rows, F fields, D the size of an embedding, P = F (F - 1) / 2 pairs of fields.
"""

import torch
from torch import nn
from transformers import initialization as init

from .configuration_flip import FlipConfig, check_choice, check_count
from .modeling_id_tower import DNN, FieldPairs, IdTower, TowerLinear, bi_interaction, register_id_tower

PRODUCTS = ("inner", "outer", "both")
BILINEAR = ("all", "each", "interaction")


@register_id_tower("lr")
class LR(IdTower):
    """Logistic regression (Richardson et al., WWW 2007): no interaction, `h_id = [e_1; ...; e_F]`, no DNN.

    The click logit, linear in `h_id`, gives feature i of field f the weight `<v_f, e_i>`: logistic regression with each weight written
    as a product. FLIP needs a vector that tells the row's features apart, which a sum of weights does not.
    """

    def __init__(self, config: FlipConfig):
        super().__init__(config, deep=False)
        self.output_dim = self.input_dim

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return embeds.flatten(1)


@register_id_tower("fm")
class FM(IdTower):
    """Factorization machine (Rendle, ICDM 2010): `h_id` is the bi-interaction, and the click logit adds the first-order term; no DNN.

    FM's second-order term is the sum of the bi-interaction's elements; here the click logit weighs them, as in a neural factorization
    machine without hidden layers (He and Chua, SIGIR 2017).
    """

    has_first_order = True
    min_fields = 2

    def __init__(self, config: FlipConfig):
        super().__init__(config, deep=False)
        self.output_dim = self.embedding_size

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return bi_interaction(embeds)


@register_id_tower("afm")
class AFM(IdTower):
    """Attentional factorization machine (Xiao et al., IJCAI 2017, section 3): `h_id = sum_ij a_ij e_i * e_j` over the pairs, `a` a softmax
    of `h^T relu(W (e_i * e_j) + b)`; a first-order term in the click logit, no DNN. `id_dropout` is on the products of the pairs.

    Args:
        attention_size: size of the attention network's layer; that of an embedding when None (as in the paper).
    """

    has_first_order = True
    min_fields = 2

    def __init__(self, config: FlipConfig, attention_size: int | None = None):
        super().__init__(config, deep=False)
        if attention_size is None:
            attention_size = self.embedding_size
        check_count("AFM", "attention_size", attention_size, 1)
        self.pairs = FieldPairs(self.num_fields)
        self.attention = TowerLinear(self.embedding_size, attention_size)
        self.score = TowerLinear(attention_size, 1, bias=False)
        self.dropout = nn.Dropout(config.id_dropout)
        self.output_dim = self.embedding_size

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        left, right = self.pairs(embeds)
        products = self.dropout(left * right)  # (B, P, D)
        weights = self.score(self.attention(products).relu()).softmax(1)  # (B, P, 1)
        return (weights * products).sum(1)


@register_id_tower("widedeep")
class WideDeep(IdTower):
    """Wide & Deep (Cheng et al., DLRS 2016): `h_id = deep`; the wide part is the first-order term in the click logit.

    The paper's hand-made cross-product features are fields of their own, if there are any.
    """

    has_first_order = True

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.dnn(embeds.flatten(1))


@register_id_tower("deepfm")
class DeepFM(IdTower):
    """DeepFM (Guo et al., IJCAI 2017): `h_id = [bi-interaction; deep]`, and a first-order term in the click logit."""

    has_first_order = True

    def __init__(self, config: FlipConfig):
        super().__init__(config)
        self.output_dim += self.embedding_size

    def interact(self, embeds: torch.Tensor) -> torch.Tensor:
        return bi_interaction(embeds)


@register_id_tower("pnn")
class PNN(IdTower):
    """Product-based network (Qu et al., ICDM 2016): `h_id` is a DNN over the embeddings and products of them.

    Args:
        products: `inner` (IPNN, also FLIP's baseline): `<e_i, e_j>` of each pair; `outer` (OPNN): `s s^T` with `s` the sum of the
            embeddings, the paper's superposition of all outer products; `both` (PNN*).
    """

    min_fields = 2

    def __init__(self, config: FlipConfig, products: str = "inner"):
        super().__init__(config, deep=False)
        check_choice("PNN", "products", products, PRODUCTS)
        self.inner, self.outer = products != "outer", products != "inner"
        self.pairs = FieldPairs(self.num_fields) if self.inner else None
        size = self.input_dim + self.inner * self.num_fields * (self.num_fields - 1) // 2 + self.outer * self.embedding_size**2
        self.dnn = DNN(size, config.id_hidden_dims, config.id_dropout)
        self.output_dim = self.dnn.output_dim

    def products(self, embeds: torch.Tensor) -> list[torch.Tensor]:
        """`(B, F, D)` -> the inner products `(B, P)` and the outer one `(B, D * D)`, or one of them."""
        parts = [self.pairs.inner_products(embeds)] if self.inner else []
        if self.outer:
            total = embeds.sum(1)  # (B, D)
            parts.append((total[:, :, None] * total[:, None, :]).flatten(1))
        return parts

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        return self.dnn(torch.cat([embeds.flatten(1), *self.products(embeds)], dim=1))


class Excitation(nn.Linear):
    """A linear layer that starts with positive weights: before a relu, a field whose weights are all negative would be off for good."""

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.uniform_(self.weight, 0.0, (6 / sum(self.weight.shape)) ** 0.5)  # the positive half of Xavier's


class SENet(nn.Module):
    """FiBiNET's squeeze and excitation: weighs each field by what the means of all embeddings say. `(B, F, D)` to the same."""

    def __init__(self, num_fields: int, reduction_ratio: int):
        super().__init__()
        reduced = max(1, num_fields // reduction_ratio)
        self.squeeze = TowerLinear(num_fields, reduced, bias=False)
        self.excite = Excitation(reduced, num_fields, bias=False)

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        weights = self.excite(self.squeeze(embeds.mean(-1)).relu()).relu()  # (B, F)
        return embeds * weights[..., None]


class BilinearInteraction(nn.Module):
    """FiBiNET's `(v_i W) * v_j` of each pair i < j: `(B, F, D)` -> `(B, P, D)`.

    One W for all pairs (`all`), one for each first field (`each`), or one for each pair (`interaction`).
    """

    def __init__(self, num_fields: int, size: int, kind: str):
        super().__init__()
        self.kind, self.pairs = kind, FieldPairs(num_fields)
        # the last field is the first of no pair
        matrices = {"all": 1, "each": num_fields - 1, "interaction": self.pairs.num_pairs}[kind]
        # filled by init_flip_weights; zeros until then, so that a tower built alone holds no garbage
        self.weight = nn.Parameter(torch.zeros(matrices, size, size))

    def init_flip_weights(self, config: FlipConfig) -> None:
        init.normal_(self.weight, std=self.weight.shape[-1] ** -0.5)  # Xavier of each matrix

    def forward(self, embeds: torch.Tensor) -> torch.Tensor:
        left, right = self.pairs(embeds)
        if self.kind == "interaction":
            left = torch.einsum("bpd,pde->bpe", left, self.weight)
        else:  # before the pairs: each field is in several
            firsts = embeds[:, :-1]
            firsts = firsts @ self.weight[0] if self.kind == "all" else torch.einsum("bfd,fde->bfe", firsts, self.weight)
            left = firsts.index_select(1, self.pairs.left)
        return left * right


@register_id_tower("fibinet")
class FiBiNET(IdTower):
    """FiBiNET (Huang et al., RecSys 2019): `h_id` is a DNN over the bilinear products of all pairs, of the embeddings and of the
    embeddings weighed by SENet; a first-order term in the click logit.

    Args:
        bilinear: whose matrix a pair takes: `all` have one, `each` first field has its own, or each `interaction` has.
        reduction_ratio: SENet's layer has so many times fewer units than there are fields (3 in the paper).
    """

    has_first_order = True
    min_fields = 2

    def __init__(self, config: FlipConfig, bilinear: str = "interaction", reduction_ratio: int = 3):
        super().__init__(config, deep=False)
        check_choice("FiBiNET", "bilinear", bilinear, BILINEAR)
        check_count("FiBiNET", "reduction_ratio", reduction_ratio, 1)
        self.senet = SENet(self.num_fields, reduction_ratio)
        self.bilinear, self.senet_bilinear = (
            BilinearInteraction(self.num_fields, self.embedding_size, bilinear) for _ in range(2)
        )
        size = 2 * self.bilinear.pairs.num_pairs * self.embedding_size
        self.dnn = DNN(size, config.id_hidden_dims, config.id_dropout)
        self.output_dim = self.dnn.output_dim

    def encode(self, embeds: torch.Tensor) -> torch.Tensor:
        products = [self.bilinear(embeds), self.senet_bilinear(self.senet(embeds))]  # (B, P, D) each
        return self.dnn(torch.cat(products, dim=1).flatten(1))
