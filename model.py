"""
The whole decoder: Llama 2 (pre-norm RMSNorm, SwiGLU, RoPE, no biases) with parameters that grow.

A growable tensor is a base slab followed by further slabs, each concatenated along one axis and born in one
generation. Forward concatenates them and does one matrix product, so a grown model computes what a plain one
of its size computes; but every slab is a parameter of its own, with its own learning rate and its own Adam
state.

The architecture is a function of Config alone: Llama(cfg) has exactly the parameters of cfg's checkpoints.
"""

import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

# -----------------------------------------------------------------------------
# sizes and generations


@dataclass
class Generation:
    """The sizes the model had from one growth to the next, and the rates of the parameters born with them."""

    n_head: int
    n_kv_head: int
    n_embd: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    birth: int = 0  # tokens the model had read when this generation was born
    learning_rate: float | None = None  # the peak; None until train.py first trains the generation
    warmup: int = 0  # tokens in which the rate climbs to the peak
    warm_start: int = 0  # where it climbs from, in tokens: birth, or where a later stage warms it up again
    warm_share: float = 0.0  # the share of the peak it climbs from
    ramp: int = 0  # tokens from its birth on over which its writes are scaled from 0 to 1; 0: it is in
    ramped: float = 1.0  # the scale of its writes now

    @property
    def pairs(self) -> int:  # RoPE turns a head's dimensions in pairs
        return self.head_dim // 2

    @property
    def warm_end(self) -> int:  # tokens at which the rate is at the peak
        return self.warm_start + self.warmup


Plan = list[tuple[int, int | None, tuple[int, ...]]]  # what Config.slabs returns


@dataclass
class Config:
    """Everything the architecture depends on. A checkpoint carries what plain() returns."""

    n_layer: int = 8
    n_head: int = 4
    n_kv_head: int = 0  # 0: as n_head; fewer: grouped-query attention
    n_embd: int = 512
    head_dim: int = 128
    ffn_dim: int = 0  # 0: 8/3 n_embd, rounded up to a multiple of 128
    vocab_size: int = 32000  # rows of the embedding and the head
    n_tokens: int = 0  # 0: row i is token i. Else the tokenizer's ids, of which vocab_size have a row
    block_size: int = 1024  # tokens a sequence in training
    context: int = 0  # the longest the model is meant for, in tokens; at least block_size
    rope_theta: float = 10000.0
    rope_scaling: dict = field(default_factory=dict)  # {}: none. Else Llama 3.1's, with the keys of SCALING
    norm_eps: float = 1e-5
    tied: bool = False  # the output head is the embedding
    generations: list = field(default_factory=list)  # of Generation, oldest first; the last has these sizes
    layer_birth: list = field(default_factory=list)  # for every layer, the index of its generation
    layer_born: list = field(default_factory=list)  # for every layer, the n_embd its norms were born with
    n_fused: int = 1  # so many of the oldest generations are kept as one slab (grow.py --condense)

    def __post_init__(self) -> None:
        self.n_kv_head = self.n_kv_head or self.n_head
        self.ffn_dim = self.ffn_dim or ffn_width(self.n_embd)
        self.context = max(self.context, self.block_size)
        for name in ("n_layer", *SIZES, "block_size", "rope_theta", "norm_eps", "n_fused"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} = {getattr(self, name)}: must be positive")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"n_head = {self.n_head} is not a multiple of n_kv_head = {self.n_kv_head}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim = {self.head_dim} is odd: RoPE turns pairs")

        # without a history, all was born now
        self.generations = [g if isinstance(g, Generation) else Generation(**g) for g in self.generations]
        if not self.generations:
            self.generations = [Generation(**{name: getattr(self, name) for name in SIZES})]
        self.layer_birth = self.layer_birth or [0] * self.n_layer
        self.layer_born = self.layer_born or [self.n_embd] * self.n_layer
        if any(getattr(self, name) != getattr(self.generations[-1], name) for name in SIZES):
            raise ValueError(
                "the sizes and those of the last generation differ: sizes change by grow.py only"
            )
        if not len(self.layer_birth) == len(self.layer_born) == self.n_layer:
            raise ValueError(f"n_layer = {self.n_layer}, but {len(self.layer_birth)} layers have a birth")

    def shape(self, kind: str, generation: int = -1) -> tuple[int, ...]:
        """Return the shape that the tensor `kind` of SHAPES has from a generation on."""
        g = self.generations[generation]
        return tuple(axis if isinstance(axis, int) else getattr(g, axis) for axis in SHAPES[kind])

    def slabs(self, kind: str, birth: int = 0) -> Plan:
        """Return [(generation, axis, shape)] of the slabs of a tensor born in generation `birth`.

        The base has axis None. An axis that does not grow adds no slab."""
        first = max(birth, self.n_fused - 1)
        shape = list(self.shape(kind, first))
        slabs = [(first, None, tuple(shape))]
        for g in range(first + 1, len(self.generations)):
            for axis, size in enumerate(self.shape(kind, g)):
                if size > shape[axis]:
                    slabs.append((g, axis, (*shape[:axis], size - shape[axis], *shape[axis + 1 :])))
                    shape[axis] = size
        return slabs

    def factors(self, kind: str, plan: Plan) -> list[float]:
        """Return the factor of each slab of a tensor's plan: below 1 for a slab that writes while its
        generation comes in, else 1."""
        return [
            self.generations[g].ramped if writes(kind, axis_name(kind, axis)) else 1.0 for g, axis, _ in plan
        ]

    def plain(self) -> dict:
        """Return the plain values that a checkpoint stores. Config(**plain) is the inverse."""
        return vars(self) | {"generations": [vars(g) for g in self.generations]}

    def flops_per_token(self) -> int:
        """Return the training FLOPs a token: forward, and a backward of twice that.

        Every matrix product counts, the head's too, and the full T x T attention at T = block_size. What is
        recomputed does not. torch.utils.flop_counter counts the same."""
        layer = self.n_embd * (2 * self.head_dim * (self.n_head + self.n_kv_head) + 3 * self.ffn_dim)
        attention = 2 * self.block_size * self.n_head * self.head_dim  # q k^T and its product with v
        return 3 * 2 * (self.n_layer * (layer + attention) + self.vocab_size * self.n_embd)


def ffn_width(n_embd: int) -> int:
    """Return Llama's feed-forward width: 8/3 n_embd, rounded up to a multiple of 128 (4096 -> 11008)."""
    return 128 * -(-8 * n_embd // 384)


# what a generation may change
SIZES = ("n_head", "n_kv_head", "n_embd", "head_dim", "ffn_dim", "vocab_size")

# The natural shape of every tensor: in it, each growth is a concatenation along one axis. q and k keep RoPE's
# two halves (the 2) apart, so that a head that gets more pairs stays half-split.
SHAPES = {
    "wte": ("vocab_size", "n_embd"),
    "norm": ("n_embd",),
    "q": ("n_head", 2, "pairs", "n_embd"),
    "k": ("n_kv_head", 2, "pairs", "n_embd"),
    "v": ("n_kv_head", "head_dim", "n_embd"),
    "o": ("n_head", "head_dim", "n_embd"),  # transposed: its columns write the residual
    "gate": ("ffn_dim", "n_embd"),
    "up": ("ffn_dim", "n_embd"),
    "down": ("ffn_dim", "n_embd"),  # transposed, as o
    "head": ("vocab_size", "n_embd"),
}


def axis_name(kind: str, axis: int | None) -> str:
    """Return what a slab of Config.slabs is appended on: an axis of SHAPES[kind], or "layer" for a base."""
    return "layer" if axis is None else SHAPES[kind][axis]


def writes(kind: str, axis: str) -> bool:
    """Return whether a new slab writes: into the residual stream, or into the scores of attention. Where it
    is zero, or multiplied by 0, the function stays. axis: its axis_name."""
    return kind in ("o", "down") or (kind, axis) in (("wte", "n_embd"), ("k", "pairs"))


def init_std(kind: str, cfg: Config) -> float:
    """Return the standard deviation that `kind` is drawn with at its birth; norm gains are 1.

    | tensor                       | distribution                 | why
    |------------------------------|------------------------------|----
    | wte, q, k, v, gate, up, head | N(0, 0.02)                   | Llama's and GPT-2's
    | o, down                      | N(0, 0.02 / sqrt(2 n_layer)) | 2 n_layer writers add up in the residual
    | norm                         | 1                            |
    grow.py's start_of says which new slabs are zero, or copied, instead.
    """
    return 0.02 / math.sqrt(2 * cfg.n_layer) if kind in ("o", "down") else 0.02


def rope_places(cfg: Config) -> list[int]:
    """Return for every stored pair its place among the head_dim/2 frequencies theta^(-2 place / head_dim).

    Growing a head from D to kD puts old pair i at place k i, where it keeps its frequency. The new pairs are
    stored behind the old ones, and take the places between. The result is a standard RoPE in another order.
    """
    places = list(range(cfg.generations[0].pairs))
    for g in cfg.generations[1:]:
        k = g.pairs // len(places)
        places = [k * p for p in places] + [p for p in range(g.pairs) if p % k]
    return places


# Llama 3.1's rope_scaling: {factor: 8, low_freq_factor: 1, high_freq_factor: 4,
# original_max_position_embeddings: 8192}
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def rope_frequencies(cfg: Config) -> torch.Tensor:
    """Return for every stored pair the angle in radians by which it turns from a token to the next, in
    float64.

    rope_scaling is Llama 3.1's (transformers' modeling_rope_utils). What turns fewer than low_freq_factor
    times in the original context turns `factor` times slower. What turns more than high_freq_factor times
    stays. Between them it is linear. All depends on the frequency alone: growing head_dim changes nothing."""
    place = torch.tensor(rope_places(cfg), dtype=torch.float64, device="cpu")
    frequency = cfg.rope_theta ** (-2 * place / cfg.head_dim)
    if not cfg.rope_scaling:
        return frequency
    factor, low, high, context = (cfg.rope_scaling[key] for key in SCALING)
    kept = ((context * frequency / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return frequency * (kept + (1 - kept) / factor)


# -----------------------------------------------------------------------------
# modules


class Growable(nn.ParameterList):
    """A base slab, then further slabs, each concatenated along its own axis.

    While a generation comes in, a factor scales its slabs that write. It is a buffer, so that its rise
    compiles nothing anew. At 1 it is removed."""

    def __init__(self, cfg: Config, kind: str, birth: int = 0) -> None:
        self.kind, self.plan = kind, cfg.slabs(kind, birth)
        super().__init__(nn.Parameter(torch.empty(shape)) for _, _, shape in self.plan)
        factors = cfg.factors(kind, self.plan)
        self.ramping = [i for i, factor in enumerate(factors) if factor < 1]
        if self.ramping:
            factor = torch.tensor(factors, dtype=torch.get_default_dtype(), device="cpu")
            self.register_buffer("factor", factor, persistent=False)  # (slabs,)

    def full(self) -> torch.Tensor:
        """Return the whole tensor, of shape SHAPES[kind]."""
        slabs = list(self)
        for i in self.ramping:
            slabs[i] = slabs[i] * self.factor[i].to(slabs[i].dtype)
        return concatenate(self.plan, slabs)

    def ramp(self, cfg: Config) -> None:
        """Take the factors that cfg has by now. Once all are 1 they are gone, and code is compiled anew."""
        factors = cfg.factors(self.kind, self.plan)
        for i in self.ramping:
            self.factor[i] = factors[i]
        if self.ramping and min(factors) == 1:
            self.ramping = []
            del self.factor


def concatenate(plan: Plan, slabs: list[torch.Tensor]) -> torch.Tensor:
    """Return the slabs of Config.slabs' plan, or the first few of them, as one tensor."""
    w = slabs[0]
    for (_, axis, _), slab in zip(plan[1:], slabs[1:]):
        w = torch.cat([w, slab], axis)
    return w


def assembled(
    cfg: Config, weights: dict[str, torch.Tensor], name: str, kind: str, plan: Plan
) -> torch.Tensor:
    """Return the tensor `name`, or its first slabs if plan is cut, from {slab's name: slab}, with cfg's
    ramps folded in."""
    slabs = [weights[f"{name}.{i}"] for i in range(len(plan))]
    factors = cfg.factors(kind, plan)
    return concatenate(plan, [w * f if f < 1 else w for w, f in zip(slabs, factors)])


class RMSNorm(nn.Module):
    """An RMSNorm that zero-padding of its input does not change.

    Padded from the n_embd that it was born with, `width`, to n_embd = d, the input's mean square falls by
    width/d. The factor sqrt(width/d) makes up for that, and so does an eps that shrinks with it."""

    def __init__(self, cfg: Config, birth: int, width: int) -> None:
        super().__init__()
        self.gain = Growable(cfg, "norm", birth)
        # from generation 0's width in all norms, so that they share one eps, as a Llama's config has
        self.eps = cfg.norm_eps * (cfg.generations[0].n_embd / cfg.n_embd)
        self.factor = math.sqrt(width / cfg.n_embd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:], self.gain.full().to(x.dtype) * self.factor, self.eps)


class KVCache:
    """The keys and values of the tokens read so far, for generation. Its memory doubles as they grow, up to
    cfg.context tokens."""

    def __init__(self, cfg: Config) -> None:
        self.cfg, self.length, self.kv = cfg, 0, {}

    def extend(self, layer: int, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append one layer's k and v (B, n_kv_head, T, hd). Return all of that layer's so far."""
        B, nkv, T, hd = k.shape
        kv, end = self.kv.get(layer), self.length + T
        if kv is None or end > kv.size(3):  # doubled, so that a token is copied once on average
            room = min(self.cfg.context, max(end + 64, 2 * self.length))
            larger = k.new_empty(2, B, nkv, room, hd)
            if kv is not None:
                larger[:, :, :, : self.length] = kv[:, :, :, : self.length]
            kv = self.kv[layer] = larger
        kv[0, :, :, self.length : end], kv[1, :, :, self.length : end] = k, v
        return kv[0, :, :, :end], kv[1, :, :, :end]


class Attention(nn.Module):
    def __init__(self, cfg: Config, layer: int) -> None:
        super().__init__()
        birth = cfg.layer_birth[layer]
        self.norm = RMSNorm(cfg, birth, cfg.layer_born[layer])
        self.q, self.k, self.v, self.o = (Growable(cfg, kind, birth) for kind in "qkvo")
        self.layer, self.head_dim, self.gqa = layer, cfg.head_dim, cfg.n_kv_head < cfg.n_head
        self.scale = cfg.generations[0].head_dim ** -0.5  # when head_dim grows it stays, and so do the scores

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        B, T, C = x.shape
        x = self.norm(x)
        # each (B, nh, T, hd), k and v with n_kv_head heads
        q, k, v = (
            F.linear(x, w.full().reshape(-1, C)).view(B, T, -1, self.head_dim).transpose(1, 2)
            for w in (self.q, self.k, self.v)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        mask = None
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
            if 1 < T < k.size(2):  # more than one token after some are cached
                mask = torch.ones(T, k.size(2), dtype=torch.bool, device=x.device).tril(k.size(2) - T)
        y = F.scaled_dot_product_attention(
            q, k, v, mask, is_causal=T > 1 and mask is None, scale=self.scale, enable_gqa=self.gqa
        )
        return y.transpose(1, 2).reshape(B, T, -1) @ self.o.full().view(-1, C)  # (B, T, nh * hd) -> (B, T, C)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply RoPE, half-split: the pair of dimension i is i + hd/2. x (B, nh, T, hd); cos, sin (T, hd/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)


class MLP(nn.Module):
    def __init__(self, cfg: Config, layer: int) -> None:
        super().__init__()
        birth = cfg.layer_birth[layer]
        self.norm = RMSNorm(cfg, birth, cfg.layer_born[layer])
        self.gate, self.up, self.down = (Growable(cfg, kind, birth) for kind in ("gate", "up", "down"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        x = F.silu(F.linear(x, self.gate.full())) * F.linear(x, self.up.full())  # (B, T, ffn)
        return x @ self.down.full()  # (B, T, C)


class Block(nn.Module):
    def __init__(self, cfg: Config, layer: int) -> None:
        super().__init__()
        self.attn = Attention(cfg, layer)
        self.mlp = MLP(cfg, layer)
        self.recompute = False  # keep x alone for the backward pass, and compute the activations again there

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self.layer, x, cos, sin, use_reentrant=False)
        return self.layer(x, cos, sin, cache)

    def layer(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, cache: KVCache | None = None
    ) -> torch.Tensor:
        x = x + self.attn(x, cos, sin, cache)
        return x + self.mlp(x)


CHUNK = 2**26  # logits; 2,048 tokens at 32,000 rows


class LinearCrossEntropy(torch.autograd.Function):
    """The mean cross-entropy, in nats, of the logits x w^T against targets. x (N, C), w (vocab, C), targets
    (N,) rows.

    The logits exist CHUNK at a time: all of them, in fp32, would be 4 GB for 32k tokens. Their gradient is
    made on the way forward, where they are. So nothing is computed twice, and it is as fast as plain
    cross-entropy (docs/speed.md)."""

    @staticmethod
    def forward(
        ctx, x: torch.Tensor, w: torch.Tensor, targets: torch.Tensor, softmax_loss: Callable
    ) -> torch.Tensor:
        kind, need = x.device.type, ctx.needs_input_grad
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        exact = torch.promote_types(dtype, torch.float32)
        a, b = x.to(dtype), w.to(dtype)
        # tokens a chunk, a power of two: chunks of one shape are compiled once
        n = 2 ** int(math.log2(max(1, CHUNK // len(w))))
        dx = torch.empty_like(a) if need[0] else None
        dw = torch.zeros_like(w, dtype=exact) if need[1] else None
        total = x.new_zeros((), dtype=exact)
        for i in range(0, len(x), n):
            chunk, rows = a[i : i + n], targets[i : i + n]
            loss, grad = softmax_loss(chunk @ b.T, rows)  # (n, vocab) logits, then their gradient
            total += loss
            if need[0]:
                dx[i : i + n] = grad @ b
            if need[1]:
                dw += grad.T @ chunk
        ctx.save_for_backward(dx, dw)
        ctx.n, ctx.dtypes = len(x), (x.dtype, w.dtype)
        return total / len(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        made = zip(ctx.saved_tensors, ctx.dtypes)
        dx, dw = (None if d is None else (d * (g / ctx.n)).to(dtype) for d, dtype in made)
        return dx, dw, None, None


def softmax_loss(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (the sum of the cross-entropies, its gradient in the logits' dtype) of logits (n, vocab), which
    may be overwritten, and targets (n,)."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    at = targets[:, None]
    lse = z.logsumexp(-1, keepdim=True)
    loss = (lse - z.gather(-1, at)).sum()
    if torch.compiler.is_compiling():  # fused: nothing is stored but the result
        p = (z - lse).exp()
        p = torch.where(torch.arange(z.size(1), device=z.device) == at, p - 1, p)
    else:  # in place: fresh memory would take half as long again on a CPU
        p = z.sub_(lse).exp_()
        p.scatter_add_(-1, at, p.new_full(at.shape, -1.0))
    return loss, p.to(logits.dtype)


class Llama(nn.Module):
    """The decoder. Its parameters are uninitialised: call init_weights, or load a state dict."""

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        self.cfg = cfg
        self.wte = Growable(cfg, "wte")
        self.layers = nn.ModuleList(Block(cfg, i) for i in range(cfg.n_layer))
        self.norm = RMSNorm(cfg, 0, cfg.generations[0].n_embd)
        self.head = None if cfg.tied else Growable(cfg, "head")
        self.softmax_loss = softmax_loss
        # (n_tokens,): a token's row, -1 for none. Buffers are made on the CPU, and so also where the
        # parameters are on the meta device
        row_of = torch.full((cfg.n_tokens,), -1, device="cpu") if cfg.n_tokens else None
        self.register_buffer("row_of", row_of)
        angle = torch.outer(torch.arange(cfg.context, device="cpu"), rope_frequencies(cfg))
        dtype = torch.get_default_dtype()
        self.register_buffer("cos", angle.cos().to(dtype), persistent=False)  # (context, hd/2)
        self.register_buffer("sin", angle.sin().to(dtype), persistent=False)

    def forward(
        self,
        idx: torch.Tensor,
        targets: torch.Tensor | None = None,
        cache: KVCache | None = None,
        last: bool = False,
    ) -> torch.Tensor:
        """Return the logits (B, T, vocab_size) of the rows after idx (B, T), token ids. Given targets (B, T),
        token ids, return their mean loss in nats instead. All tokens must have a row.

        With a cache, idx continues what the cache holds. With `last`, the logits are those of the last token
        alone, (B, 1, vocab_size). Raise ValueError if the context is exceeded."""
        x, w = self.trunk(idx, cache)
        if targets is None:
            return F.linear(x[:, -1:] if last else x, w)
        if not torch.is_grad_enabled():
            w = w.detach()  # else an evaluation would compute its gradient, too
        return LinearCrossEntropy.apply(x.flatten(0, 1), w, self.rows(targets).flatten(), self.softmax_loss)

    def trunk(self, idx: torch.Tensor, cache: KVCache | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (what the head multiplies, (B, T, C); the head's weight, (vocab_size, C)). Raise ValueError
        if the context is exceeded."""
        start, T = 0 if cache is None else cache.length, idx.size(1)
        if start + T > self.cfg.context:
            raise ValueError(f"{start + T} tokens, but the model's context has {self.cfg.context}")
        cos, sin = self.cos[start : start + T], self.sin[start : start + T]  # (T, hd/2)
        x = F.embedding(self.rows(idx), self.wte.full())  # (B, T, C)
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # the residual stays fp32, also where the parameters are gathered as bf16
        for block in self.layers:
            x = block(x, cos, sin, cache)
        if cache is not None:
            cache.length += T
        return self.norm(x), (self.wte if self.head is None else self.head).full()

    def compile_blocks(self, alone: bool = True) -> None:
        """Compile the blocks in place, and the loss but for its matrix products.

        Blocks of one structure share their code: 32 layers start as fast as 2. DDP, FSDP2 and recomputing
        take them one by one. Without these (alone) up to 12 layers are one piece, which is 3 % faster."""
        torch._dynamo.config.recompile_limit = 64  # blocks differ by the generation they were born in
        if alone and self.cfg.n_layer <= 12:
            self.trunk = torch.compile(self.trunk)
        else:
            for block in self.layers:
                block.compile()
        self.softmax_loss = torch.compile(softmax_loss)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the rows of token ids."""
        return ids if self.row_of is None else self.row_of[ids]

    def token_ids(self) -> torch.Tensor:
        """Return (vocab_size,) the token id of every row."""
        return row_ids(self.row_of, self.cfg.vocab_size)

    def growables(self) -> dict[str, Growable]:
        """Return {name: Growable} of every tensor."""
        return {name: m for name, m in self.named_modules() if isinstance(m, Growable)}

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Draw every parameter by init_std's table. A seed gives the same weights on any device."""
        rng = torch.Generator().manual_seed(seed)
        for tensor in self.growables().values():
            for p in tensor:
                if tensor.kind == "norm":
                    p.fill_(1.0)
                else:
                    put(p, torch.randn(p.shape, generator=rng) * init_std(tensor.kind, self.cfg))

    def allocate(self, device: str | torch.device) -> None:
        """Take memory, uninitialised, for the parameters of a model that was made on the meta device."""
        buffers = {name: b.clone() for name, b in self.named_buffers()}
        self.to_empty(device=device)
        for name, b in self.named_buffers():
            b.copy_(buffers[name])

    def ramp(self, tokens: float) -> None:
        """Let what generations write come in as far as it has at `tokens` on the ledger, here and in cfg."""
        ramping = [g for g in self.cfg.generations if g.ramp]
        for g in ramping:
            g.ramped = min(1.0, max(0.0, (tokens - g.birth) / g.ramp))
            if g.ramped == 1:
                g.ramp = 0
        if ramping:
            for tensor in self.growables().values():
                tensor.ramp(self.cfg)

    def count_params(self) -> dict:
        """Return {'total', 'non_embedding' (neither embedding nor head), 'generations': {generation: n}}, in
        parameters."""
        n = {"total": 0, "non_embedding": 0, "generations": {}}
        for tensor in self.growables().values():
            for g, _, shape in tensor.plan:
                size = math.prod(shape)
                n["total"] += size
                if tensor.kind not in ("wte", "head"):
                    n["non_embedding"] += size
                n["generations"][g] = n["generations"].get(g, 0) + size
        return n

    def optimizer(
        self, weight_decay: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8
    ) -> torch.optim.AdamW:
        """Return AdamW with two groups a generation: its matrices, which decay, and its norm gains, which do
        not. Every group has 'generation', and its rate is set at every step. Fused where torch has it."""
        groups = {}
        for tensor in self.growables().values():
            for (g, _, shape), p in zip(tensor.plan, tensor):
                decay = weight_decay if len(shape) > 1 else 0.0
                group = {"params": [], "generation": g, "weight_decay": decay}
                groups.setdefault((g, len(shape) > 1), group)["params"].append(p)
        grouped = sorted(id(p) for group in groups.values() for p in group["params"])
        assert grouped == sorted(map(id, self.parameters())), "a parameter is not in exactly one group"
        fused = next(self.parameters()).device.type in ("cpu", "cuda")
        return torch.optim.AdamW(groups.values(), lr=0.0, betas=betas, eps=eps, fused=fused)

    @torch.no_grad()
    def generate(
        self,
        idx: torch.Tensor,
        n_new: int,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        rng: torch.Generator | None = None,
        stop: Iterable[int] = (),
    ) -> Iterator[torch.Tensor]:
        """Yield up to n_new columns (B, 1) of sampled ids that continue idx (B, T). End when every row has
        yielded one of the ids `stop`. Raise ValueError if the logits are not finite.

        temperature = 0 is greedy; top_k = 0 and top_p = 1 keep the whole distribution. Beyond the context its
        older half is dropped, and its newer half read again."""
        done = torch.zeros(len(idx), 1, dtype=torch.bool, device=idx.device)
        token_ids = self.token_ids().to(idx.device)
        stop = torch.tensor(list(stop), dtype=torch.long, device=idx.device)
        cache = None
        for _ in range(n_new):
            fresh = cache is None or cache.length == self.cfg.context
            if fresh:
                keep = self.cfg.context if cache is None else max(1, self.cfg.context // 2)
                idx = new = idx[:, -keep:]
                cache = KVCache(self.cfg)
            logits = self(new, cache=cache, last=True)[:, -1].float()  # (B, vocab)
            if fresh and not logits.isfinite().all():  # not at every token: it waits for the GPU
                raise ValueError("the model's logits are not finite: use an earlier checkpoint, ckpt.prev.pt")
            new = token_ids[pick(logits, temperature, top_k, top_p, rng)]
            idx = torch.cat([idx, new], 1)
            yield new
            if len(stop):
                done |= torch.isin(new, stop)
                if done.all():
                    return


def skeleton(cfg: Config) -> Llama:
    """Return the model of cfg without memory for its parameters."""
    with torch.device("meta"):
        return Llama(cfg)


def row_ids(row_of: torch.Tensor | None, vocab_size: int) -> torch.Tensor:
    """Return (vocab_size,) the token id of every row. row_of: the row of every id, -1 for none; or None where
    row i is token i."""
    if row_of is None:
        return torch.arange(vocab_size)
    return row_of.argsort()[-vocab_size:]  # ids without a row, -1, come first


def pick(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, rng: torch.Generator | None = None
) -> torch.Tensor:
    """Return one sampled id (B, 1) of each row of logits (B, vocab)."""
    if temperature < 1e-6:  # the quotient would overflow
        return logits.argmax(-1, keepdim=True)
    logits, ids = (logits / temperature).sort(-1, descending=True)
    if top_k:
        logits[:, top_k:] = -torch.inf
    p = logits.softmax(-1)
    if top_p < 1:
        p[p.cumsum(-1) - p > top_p] = 0.0  # drop what comes after the first top_p of the mass
    return ids.gather(-1, torch.multinomial(p, 1, generator=rng))


def is_shard(x: torch.Tensor) -> bool:
    """Return whether this process has a part of a tensor only: a DTensor. The import of that class takes 1 s,
    which every command would wait for."""
    return hasattr(x, "to_local")


def put(place: torch.Tensor, tensor: torch.Tensor) -> None:
    """Copy a whole tensor into a parameter or its state. This process may have a shard of it only."""
    if is_shard(place):
        from torch.distributed.tensor import distribute_tensor

        tensor = distribute_tensor(tensor, place.device_mesh, place.placements, src_data_rank=None).to_local()
        place = place.to_local()
    place.copy_(tensor)


# -----------------------------------------------------------------------------
# devices

DEVICES = {  # dense bf16 FLOP/s, bytes of memory; the first name that a GPU's contains counts
    "H200": (989e12, 141e9),
    "H100": (989e12, 80e9),
    "A100": (312e12, 80e9),
    "L40S": (362e12, 48e9),
    "L40": (181e12, 48e9),
    "L4": (121e12, 24e9),
    "4090": (165e12, 24e9),
}


def this_device(kind: str) -> tuple[str, float | None]:
    """Return (the name of the GPU, or of the CPU and its cores; its dense bf16 FLOP/s, or None where DEVICES
    does not say)."""
    if kind == "cuda":
        name = torch.cuda.get_device_name()
        return name, next((flops for gpu, (flops, _) in DEVICES.items() if gpu in name), None)
    name = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            names = [line.split(": ")[1].strip() for line in f if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name}, {os.cpu_count()} cores", None
