"""GPU memory of LoRA training as a sum of named parts.

Weights, adapter, gradients and optimizer state follow from the configuration and from the dtypes that the backends were
seen to keep (the audit of the committed records). Activations are counted from the tensors that autograd saves in each
backend's own code (the letters are widths: h hidden, q queries, k keys, f MLP; bytes a token and block):

    hf-peft, float32 adapters      18h + 6q + 4k + 8f    norms save float32 (8h); PEFT casts each module's input to the
                                                         adapter's float32 and autocast back, a copy a module
                                                         (2h x 5, 2q, 2f); rotated q, k, v and attention's output;
                                                         gate, its SiLU and up
    hf-peft, float32 residuals     18h + 6q + 4k + 14f   the cast to float32 of PEFT's preparation: MLP in float32
    hf-peft, bfloat16 throughout   12h + 6q + 4k + 8f    no such cast: modules share their input
    Unsloth                         8h + 4q + 4k + 4f    fused MLP and QKV save inputs, gate and up (fast_lora.py)
    norms beyond those two          4 n; Unsloth 2 n     q + k where heads have their own (Qwen3, Gemma 3), 2h where the
                                                         sublayers' outputs have (Gemma); float32, Unsloth their input

While the down projection's backward runs, gradients of the MLP's width are live besides ("working": 8f, 10f, 4f, and
10f for Unsloth). The fitted coefficients (``Coefficients``) scale these counts; each says what it stands for.

bitsandbytes keeps the input of every int8 matrix beside autograd's saved tensors (MatMul8bitLt's ctx.tensors), where
PyTorch's checkpointing (use_reentrant=False, as TRL asks) cannot drop it: with hf-peft these inputs of all blocks stay,
8h + 2q + 4f bytes a token and block over float32 residuals, half of h and f over bfloat16. Unsloth's own checkpointing
makes none in its forward.

Memory peaks at one of four moments, and the parts are those of the largest one:

    loaded      no step, but embedding and head in 16 bits, freed by PEFT's cast to float32 and kept by the allocator
    loss        all checkpoints, and one chunk of logits
    first       backward of the last block: all checkpoints, one block's activations, no gradients yet (unless kept from
                the pass before: gradient accumulation)
    last        backward of the first block: every gradient, one block's activations
"""

from dataclasses import dataclass, replace
from typing import Literal

from bench.advise.setup import Setup
from bench.advise.shapes import Shape
from bench.backends.hf_peft import QUANTISED
from bench.cell import Frozen

Moment = Literal["loading", "loaded", "loss", "first", "last"]
MIB = 2**20
SLACK, CONTEXT = "allocator slack", "CUDA context and libraries"
BASE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""A weight: 4 bits, an 8-bit constant a block of 64, a float32 constant for 256 of those (QLoRA, section 3)."""
NF4_MODULE_BYTES = 2048
"""Two lookup tables and an offset a module, in blocks of torch's 512 bytes."""
SMALL_TENSOR = 4096
"""bitsandbytes keeps the state of smaller tensors in 32 bits (its min_8bit_size)."""
OUTLIER_SHARE = 0.001
"""Share of feature columns that int8 keeps in 16 bits (LLM.int8(), section 3: about 0.1 %)."""
TRL_TILE = (4096, 32768)
"""Tokens and vocabulary entries of one tile of logits (trl.kernels.chunked_logprob)."""
UNSLOTH_ROWS, UNSLOTH_CHUNK_BYTES, UNSLOTH_PLANNED_LOGIT_BYTES = 512, 2 * 2**30, 8
"""Least labelled rows of a chunk, its budget and the bytes a logit that it plans with (unsloth_zoo.fused_losses)."""
UNSLOTH_LOGIT_BYTES = 4
"""Bytes a logit that a chunk then takes: logits and their gradient in 16 bits (chunked_logprob, unsloth_chunked_ce)."""


class Coefficients(Frozen):
    """What formulas cannot tell; fitted on records within the bounds of ``fit.BOUNDS``."""

    hf_workspace_mib: float = 64
    """cuBLAS workspaces and kernels' scratch under plain transformers."""
    hf_saved: float = 1
    """Saved activations of a block over the count above."""
    hf_working: float = 1
    """Gradients live in the MLP's backward over the count above."""
    hf_slack: float = 0.4
    """Memory that the allocator holds and cannot use, as a share of the block's saved and working tensors."""
    adapter_slack: float = 0.5
    """More of it, as a share of the adapter's gradients, which every step frees and takes anew."""
    unsloth_workspace_mib: float = 64
    unsloth_saved: float = 1
    unsloth_working: float = 1
    unsloth_slack: float = 0.15
    unsloth_buffers: float = 4
    """Checkpoints on the GPU while 'unsloth' checkpointing moves the others to host memory."""
    eager_bytes: float = 11
    """Bytes a score that eager attention holds: bf16 scores, float32 softmax, its bf16 copy, and their gradients."""
    context_mib: float = 758
    """CUDA context, loaded kernels and libraries: what NVML counts beyond torch's memory."""
    offload_context_mib: float = 72
    """More of it where checkpoints move to host memory."""


@dataclass(frozen=True)
class Part:
    """One part of the memory, bytes."""

    name: str
    size_bytes: float
    formula: str


@dataclass(frozen=True)
class Estimate:
    """Memory of a setup at its largest moment, bytes. The parts sum to the NVML process; torch's meters leave out what
    they cannot see."""

    moment: Moment
    parts: list[Part]
    allocated_elsewhere: float = 0.0
    """Largest torch allocated of the other moments: one with less slack can hold more tensors than the largest."""

    def _total(self, without: tuple[str, ...] = ()) -> float:
        return sum(part.size_bytes for part in self.parts if part.name not in without)

    @property
    def torch_allocated(self) -> float:
        return max(self.allocated_elsewhere, self._total((SLACK, CONTEXT)))

    @property
    def torch_reserved(self) -> float:
        return self._total((CONTEXT,))

    @property
    def nvml_process(self) -> float:
        return self._total()


def weights_parts(shape: Shape, setup: Setup) -> list[Part]:
    """Base weights as they lie on the GPU."""
    modules = shape.layers * len(shape.linears)
    rows = shape.layers * sum(m.n_out for m in shape.linears)
    linear = shape.linear_weights
    kept = 4 if setup.upcast else BASE_BYTES.get(setup.precision, 2)
    if setup.precision == "nf4":
        blocks = Part(name="linear weights", size_bytes=linear * NF4_BYTES + modules * NF4_MODULE_BYTES,
                      formula="NF4: weights x (1/2 + 1/64 + 4/(64 x 256)), and 2 KiB a module")  # fmt: skip
    elif setup.precision == "int8":
        blocks = Part(name="linear weights", size_bytes=linear + 4 * rows, formula="int8: weights, and 4 a row")
    else:
        size = BASE_BYTES[setup.precision]
        blocks = Part(name="linear weights", size_bytes=linear * size, formula=f"weights x {size}")
    other = Part(name="embedding, head, norms", size_bytes=shape.other_weights * kept,
                 formula=f"parameters x {kept}" + (" (PEFT's cast to float32)" if setup.upcast else ""))  # fmt: skip
    return [blocks, other]


def estimate(shape: Shape, setup: Setup, c: Coefficients) -> Estimate:
    """The parts of the largest moment."""
    moments: tuple[Moment, ...] = ("first", "last", "loss")
    made = [Estimate(moment, _at(moment, shape, setup, c)) for moment in moments] + [_loaded(shape, setup, c)]
    largest = max(made, key=lambda one: one.nvml_process)
    return replace(largest, allocated_elsewhere=max(one.torch_allocated for one in made if one is not largest))


def _loaded(shape: Shape, setup: Setup, c: Coefficients) -> Estimate:
    """Between steps: torch does not give back what loading took, and small steps do not fill it."""
    adapter = shape.trainable(setup.r, setup.target_modules) * setup.adapter_bytes
    freed = 2 * shape.embedding_weights * (1 if shape.tied else 2) if setup.upcast else 0
    parts = [
        *weights_parts(shape, setup),
        Part(name="LoRA weights", size_bytes=adapter, formula=f"r x (in + out) x {setup.adapter_bytes}"),
        Part(name="gradients", size_bytes=adapter, formula="as the adapter"),
        Part(name="optimizer states", size_bytes=state_bytes(shape, setup), formula=setup.optimizer),
        Part(name=SLACK, size_bytes=freed, formula="embedding and head in 16 bits, freed by PEFT's cast"),
        Part(name=CONTEXT, size_bytes=c.context_mib * MIB, formula="context_mib"),
    ]
    return Estimate("loaded", parts)


def loading(shape: Shape, setup: Setup, c: Coefficients) -> Estimate:
    """While the model is made ready: its weights, and the largest matrix that PEFT's preparation casts, twice."""
    cast = shape.embedding_weights * 2 if setup.upcast else 0
    parts = [
        *weights_parts(shape, setup),
        Part(name="cast to float32", size_bytes=cast, formula="the embedding once more in bfloat16"),
        Part(name=CONTEXT, size_bytes=c.context_mib * MIB, formula="context_mib"),
    ]
    return Estimate(moment="loading", parts=parts)


def state_bytes(shape: Shape, setup: Setup) -> float:
    """AdamW's two states: in the adapter's dtype, or of 8 bits with a float32 constant for 256 (small tensors: 32)."""
    if setup.optimizer == "adamw":
        return 2.0 * setup.adapter_bytes * shape.trainable(setup.r, setup.target_modules)
    tensors = [setup.r * width for m in shape.adapted(setup.target_modules) for width in (m.n_in, m.n_out)]
    largest_small = 8 * (SMALL_TENSOR - 1)  # a tensor just above is given no less, so that memory never falls with r
    return shape.layers * sum(8.0 * n if n < SMALL_TENSOR else max(largest_small, n * (2 + 8 / 256)) for n in tensors)


def _at(moment: Moment, shape: Shape, setup: Setup, c: Coefficients) -> list[Part]:
    tokens, trainable = setup.tokens, shape.trainable(setup.r, setup.target_modules)
    side = "unsloth" if setup.unsloth else "hf"
    saved_scale, working_scale, slack, workspace_mib = (
        getattr(c, f"{side}_{name}") for name in ("saved", "working", "slack", "workspace_mib")
    )
    adapter = trainable * setup.adapter_bytes
    gradients = adapter if moment == "last" or setup.accumulation > 1 else 0

    scores = c.eager_bytes * shape.heads * setup.batch * setup.sequence**2 if setup.eager else 0.0
    block = tokens * saved_scale * _saved_bytes(shape, setup) + scores
    every = shape.layers if setup.kind == "off" else 0
    blocks = {"first": every or 1, "last": 1, "loss": every}[moment]

    residual = 4 if setup.upcast else 2
    boundaries = {"off": 0.0, "on": float(shape.layers), "offload": min(c.unsloth_buffers, shape.layers)}[setup.kind]
    if moment == "last" and setup.kind == "on":
        boundaries = 1.0

    inputs = 0.0
    if setup.precision == "int8" and setup.kind == "on" and not setup.unsloth:
        inputs = (1 if moment == "last" else shape.layers) * tokens * _int8_inputs_bytes(shape, setup)

    loss = working = int8 = 0.0
    if moment == "loss":
        loss = transient = _loss_bytes(shape, setup)
    else:
        cast_adapter = 2 * trainable / shape.layers if setup.adapter_bytes == 4 and not setup.unsloth else 0
        working = tokens * working_scale * _working_bytes(shape, setup) + cast_adapter
        int8 = _int8_bytes(shape, setup)
        transient = block + working + int8
    context_mib = c.context_mib + c.offload_context_mib * (setup.kind == "offload")

    sizes = {
        "LoRA weights": (adapter, f"r x (in + out) x {setup.adapter_bytes}"),
        "gradients": (gradients, "as the adapter; none at the first block of the first pass"),
        "optimizer states": (state_bytes(shape, setup), setup.optimizer),
        "checkpoints": (boundaries * tokens * shape.hidden * residual, f"boundaries x tokens x hidden x {residual}"),
        "inputs of int8 matrices": (inputs, "kept through checkpointing by bitsandbytes, x tokens x blocks"),
        "block activations": (blocks * block, f"saved tensors x tokens x {blocks} blocks, {side}_saved"),
        "backward's working set": (working, f"gradients of the MLP's width, {side}_working"),
        "int8 outliers, weight for backward": (int8, "2 x largest matrix, and 0.1 % of the input's columns in 16 bits"),
        "logits and loss": (loss, "one chunk of logits, and the labelled rows"),
        "workspace": (workspace_mib * MIB, f"{side}_workspace_mib"),
        SLACK: (
            slack * transient + c.adapter_slack * adapter,
            f"{side}_slack x one block and its working set + adapter_slack x gradients",
        ),
        CONTEXT: (context_mib * MIB, "context_mib"),
    }
    return weights_parts(shape, setup) + [Part(name, *content) for name, content in sizes.items()]


def _saved_bytes(shape: Shape, setup: Setup) -> float:
    """Of one block, a token; see the module's docstring. Each adapter's inner product adds its rank, and each head its
    log-sum-exp."""
    h, q, k, f = shape.hidden, shape.queries, shape.keys, shape.mlp
    inner = 2 * setup.r * len(shape.adapted(setup.target_modules)) + 4 * shape.heads
    inner += (2 if setup.unsloth else 4) * shape.further_norms
    if setup.unsloth:
        return 8 * h + 4 * q + 4 * k + 4 * f + inner
    if setup.upcast:
        return 18 * h + 6 * q + 4 * k + 14 * f + inner
    if setup.precision in QUANTISED:
        return 12 * h + 6 * q + 4 * k + 8 * f + inner
    return 18 * h + 6 * q + 4 * k + 8 * f + inner


def _working_bytes(shape: Shape, setup: Setup) -> float:
    if setup.unsloth or setup.upcast:
        return 10 * shape.mlp
    return (4 if setup.precision in QUANTISED else 8) * shape.mlp


def _int8_inputs_bytes(shape: Shape, setup: Setup) -> float:
    """Of one block, a token: the norms' outputs (for q, k, v and for gate, up), attention's, and the MLP's product."""
    wide = 4 if setup.upcast else 2
    return wide * (2 * shape.hidden + shape.mlp) + 2 * shape.queries


def _int8_bytes(shape: Shape, setup: Setup) -> float:
    """int8 alone: the largest weight as 16 bits for its backward, and the outlier columns of the widest input."""
    if setup.precision != "int8":
        return 0.0
    largest = max(m.weights for m in shape.linears)
    return 2.0 * largest + 2 * setup.tokens * OUTLIER_SHARE * max(m.n_in for m in shape.linears)


def _loss_bytes(shape: Shape, setup: Setup) -> float:
    """Neither trainer makes all logits, and both take labelled rows alone: one chunk, the rows and their gradient."""
    rows, residual = setup.labelled * setup.tokens, 4 if setup.upcast else 2
    hidden_states = 2 * setup.tokens * shape.hidden * residual + rows * shape.hidden * (residual + 4)
    if setup.unsloth:
        most = UNSLOTH_CHUNK_BYTES / (shape.vocab * UNSLOTH_PLANNED_LOGIT_BYTES)
        chunk = min(rows, most, max(UNSLOTH_ROWS, rows / 8)) * shape.vocab * UNSLOTH_LOGIT_BYTES
    else:
        width = min(TRL_TILE[1], shape.vocab)
        chunk = min(rows, TRL_TILE[0]) * width * 2 + (width * shape.hidden * 2 if setup.upcast else 0)
    return chunk + hidden_states
