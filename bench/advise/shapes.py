"""Dimensions of a decoder from its Hugging Face configuration: what parameter counts and activations are made of.

Any configuration with the usual keys is read; what had to be assumed is listed in ``assumed`` and shown to the user.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bench.cell import Frozen
from bench.errors import InputError
from bench.flops import ATTENTION_MODULES, GATED_MLP_DECODERS

FUSED = frozenset({"phi3"})
"""Architectures whose q/k/v and gate/up projections are one matrix each: fewer, wider adapters."""
GATED_MOE = frozenset({"mixtral", "qwen2_moe", "qwen3_moe", "olmoe"})
QKV_BIAS = frozenset({"qwen2", "qwen2_moe"})
HEAD_NORMS = frozenset({"qwen3", "qwen3_moe", "gemma3_text"})
FOUR_NORMS = frozenset({"gemma2", "gemma3_text"})
EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class Linear:
    """A linear module of one block."""

    name: str
    n_in: int
    n_out: int
    bias: bool = False

    @property
    def weights(self) -> int:
        return self.n_in * self.n_out


class Shape(Frozen):
    """One architecture; widths in elements."""

    model_type: str
    layers: int
    hidden: int
    heads: int
    queries: int
    """Heads times head dimension."""
    keys: int
    """Key-value heads times head dimension."""
    mlp: int
    """Width of the MLP that one token goes through: of all its experts together where there are several."""
    vocab: int
    tied: bool
    """The head is the embedding."""
    norms: int
    """Norm parameters of one block."""
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    fused: bool
    expert_weights: int
    """Weights of all routed experts and the router of one sparse block; 0 for a dense model."""
    shared_mlp: int
    """Width of a sparse block's shared expert, which is made of plain linear modules."""
    sparse_layers: int
    assumed: list[str]

    @cached_property
    def linears(self) -> tuple[Linear, ...]:
        """The linear modules of a block that bitsandbytes quantises and PEFT's all-linear adapts (experts apart)."""
        h, q, k, f = self.hidden, self.queries, self.keys, self.shared_mlp if self.expert_weights else self.mlp
        if self.fused:
            return (
                Linear("qkv_proj", h, q + 2 * k), Linear("o_proj", q, h),
                Linear("gate_up_proj", h, 2 * f), Linear("down_proj", f, h),
            )  # fmt: skip
        attention = (
            Linear("q_proj", h, q, self.qkv_bias), Linear("k_proj", h, k, self.qkv_bias),
            Linear("v_proj", h, k, self.qkv_bias), Linear("o_proj", q, h, self.o_bias),
        )  # fmt: skip
        if not f:
            return attention
        b = self.mlp_bias
        return *attention, Linear("gate_proj", h, f, b), Linear("up_proj", h, f, b), Linear("down_proj", f, h, b)

    @cached_property
    def linear_weights(self) -> int:
        """Weights that are quantised, over all blocks."""
        return self.layers * sum(m.weights for m in self.linears)

    @cached_property
    def other_weights(self) -> int:
        """Embedding, head, norms, biases and routed experts: what stays unquantised."""
        biases = sum(m.n_out for m in self.linears if m.bias)
        blocks = self.layers * (self.norms + biases) + self.sparse_layers * self.expert_weights
        return blocks + self.hidden + self.embedding_weights * (1 if self.tied else 2)

    @property
    def further_norms(self) -> int:
        """Width of a block's norms beside the two of a Llama: of each head's queries and keys, after each sublayer."""
        heads = self.queries + self.keys if self.model_type in HEAD_NORMS else 0
        return heads + (2 * self.hidden if self.model_type in FOUR_NORMS else 0)

    @property
    def embedding_weights(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of the base model, a tied matrix once."""
        return self.linear_weights + self.other_weights

    def adapted(self, target_modules: tuple[str, ...] | str) -> tuple[Linear, ...]:
        """The modules of a block that carry an adapter."""
        modules = self.linears
        if target_modules == "all-linear":
            return modules
        wanted = ATTENTION_MODULES + ("qkv_proj",) if target_modules == "attention" else tuple(target_modules)
        known = {m.name for m in modules}
        if missing := [] if target_modules == "attention" else [n for n in wanted if n not in known]:
            raise InputError("target_modules", f"no module {missing[0]!r}", f"known: {', '.join(sorted(known))}")
        return tuple(m for m in modules if m.name in wanted)

    def trainable(self, r: int, target_modules: tuple[str, ...] | str = "all-linear") -> int:
        """Parameters of LoRA: r times (in + out) a module (Hu et al. 2021, section 4.1)."""
        return self.layers * sum(r * (m.n_in + m.n_out) for m in self.adapted(target_modules))


def shape_of(config: dict[str, Any], where: str = "config.json") -> Shape:
    """The shape of a configuration; InputError where a dimension that nothing can stand in for is missing."""
    config = config.get("text_config") or config
    if missing := [key for key in NEEDED if not isinstance(config.get(key), int)]:
        raise InputError(where, f"no {missing[0]!r} in the configuration", "give that of a decoder-only language model")
    kind, assumed = str(config.get("model_type")), list[str]()
    experts = next((int(config[key]) for key in EXPERTS if config.get(key)), 0)
    if kind not in GATED_MLP_DECODERS | GATED_MOE:
        assumed.append(f"model_type {kind!r} is not known here: taken as a Llama-like decoder with a gated MLP")
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    head = int(config.get("head_dim") or hidden // heads)
    mlp = int(config.get("intermediate_size") or 4 * hidden)
    if not config.get("intermediate_size"):
        assumed.append("no intermediate_size: taken as 4 times hidden_size")
    layers = int(config["num_hidden_layers"])
    width, shared, weights, sparse = mlp, 0, 0, 0
    if experts:
        one = int(config.get("moe_intermediate_size") or mlp)
        chosen = int(config.get("num_experts_per_tok") or 2)
        shared = int(config.get("shared_expert_intermediate_size") or 0)
        width, weights, sparse = one * chosen + shared, experts * (3 * hidden * one + hidden), layers
        if kind not in GATED_MOE:
            assumed.append(f"{experts} experts in every block, each with a gated MLP of width {one}")
        assumed.append("routed experts are neither quantised nor adapted: transformers keeps them as plain parameters")
    bias = bool(config.get("attention_bias"))
    if "tie_word_embeddings" not in config:
        assumed.append(f"tie_word_embeddings is not set: taken as {kind.startswith('gemma')}")
    norms = hidden * (4 if kind in FOUR_NORMS else 2) + (2 * head if kind in HEAD_NORMS else 0)
    return Shape(
        model_type=kind, layers=layers, hidden=hidden, heads=heads, queries=heads * head,
        keys=int(config.get("num_key_value_heads") or heads) * head, mlp=width, vocab=int(config["vocab_size"]),
        tied=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))), norms=norms,
        qkv_bias=kind in QKV_BIAS or bias, o_bias=bias and kind not in QKV_BIAS, mlp_bias=bool(config.get("mlp_bias")),
        fused=kind in FUSED, expert_weights=weights, shared_mlp=shared, sparse_layers=sparse, assumed=assumed,
    )  # fmt: skip
