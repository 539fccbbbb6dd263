"""
Grow a checkpoint: make a bigger model that computes what the smaller one did, with its optimizer state. When
depth alone grows, new layers are copies of old ones, which learns fastest. A factor that rises from 0 to 1
brings them in (--init stack --ramp TOKENS). In a finished model, imported or decayed, the copies write zero
instead (--init copy): then the old layers can be frozen.

$ python grow.py --in out/stage0/ckpt.pt --double width             # n_embd, heads, ffn_dim: 4 x a layer
$ python grow.py --in out/stage0/ckpt.pt --params 2x --along width  # the width nearest to 2 x the parameters
$ python grow.py --in out/stage0/ckpt.pt --depth 16 --init copy --place interleave
$ python grow.py --in out/stage0/ckpt.pt --width 768 --heads 8 --explain --dry_run
$ python grow.py --in out/stage2/ckpt.pt --vocab words5000 --params 2x --along depth
$ python grow.py --in out/stage3/ckpt.pt --condense 1 --out out/stage3/condensed.pt
$ python grow.py --in llama.pt --double depth --place interleave --text book.txt  # checked on a text

The rule, for every operator: old slabs are untouched, and of each product of two new factors exactly one is
zero, so that the function stays and yet every new parameter gets a gradient. `role_of` says which, tensor by
tensor, and RULES of what. --explain prints both for a checkpoint, slab by slab. With --ramp what writes is
drawn or copied, too, under a factor that rises from 0 to 1 over the first tokens after the growth. So plain
copies of layers are exact, too.

--init clone is another rule, HyperCloning's (arXiv 2409.12903), for widths of an integer factor k: all is
tiled k times, and what reads a tiled input is divided by k. Noise is added that cancels in the sum: without
it AdamW would keep the copies equal for ever. It rewrites what was learnt. One generation is left, with the
schedule of the stage that trains it next.
"""

import argparse
import bisect
import contextlib
import dataclasses
import functools
import hashlib
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from checkpoint import (
    Lazy,
    build_model,
    is_sharded,
    load_checkpoint,
    lock,
    materialise,
    remove,
    write_checkpoint,
)
from data import Tokenizer, count_bytes, file_sha256, read_meta, read_spelling, read_stage_rows, speller
from model import (
    SHAPES,
    SIZES,
    Config,
    Generation,
    Llama,
    Plan,
    assembled,
    axis_name,
    concatenate,
    ffn_width,
    init_std,
    row_ids,
    skeleton,
    writes,
)

ROLES = WRITES, READS, GAIN, ROW = "writes", "reads", "gain", "row"

# What a new slab reads or writes, by its tensor and the axis it is appended on; "layer" is the whole tensor
# of a new block.
RULES = {
    **{(kind, "n_embd"): "the new residual dimensions" for kind in SHAPES},
    ("o", "n_head"): "what the new heads have read",
    ("q", "n_head"): "the residual, for new heads",
    ("k", "n_kv_head"): "the residual, for new heads",
    ("v", "n_kv_head"): "the residual, for new heads",
    ("down", "ffn_dim"): "what the new units compute",
    ("gate", "ffn_dim"): "the residual, for new units",
    ("up", "ffn_dim"): "the residual, for new units",
    ("k", "pairs"): "the scores, with the new pairs of q",
    ("q", "pairs"): "the residual, for new pairs",
    ("o", "head_dim"): "what the new dimensions of v hold",
    ("v", "head_dim"): "the residual, for new dimensions",
    ("o", "layer"): "the residual, from the new block",
    ("down", "layer"): "the residual, from the new block",
    **{(kind, "layer"): "the residual, in the new block" for kind in ("q", "k", "v", "gate", "up", "norm")},
    ("wte", "vocab_size"): "a new token",
    ("head", "vocab_size"): "a new token",
}
AXES = {"depth": "n_layer", "ffn": "ffn_dim", "head_dim": "head_dim"}  # options, and the sizes they give
RAMP_INITS = ("random", "copy", "stack")  # the inits that a ramp goes with
INITS = ("random", "copy", "eye", "stack", "clone")
SECONDS = dict.fromkeys(("hash", "draw", "write", "check"), 0.0)  # what main() says of its time


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.time()
    yield
    SECONDS[what] += time.time() - start


TICK = (0.5, 10.0)  # seconds between two lines of progress: on a terminal, and elsewhere


@contextlib.contextmanager
def working(what: str, path: str = "") -> Iterator[None]:
    """Say on stderr what is being done, for how long, and how large the file at path is by now: a line every
    10 s, or on a terminal one line, which goes away at the end. A thread of its own says it, so that hashing
    and matrix products show too."""
    terminal, start, over = sys.stderr.isatty(), time.time(), threading.Event()

    def tick() -> None:
        while not over.wait(TICK[0] if terminal else TICK[1]):
            line = f"{what}: {time.time() - start:.0f} s"
            if os.path.exists(path):
                line += f", {count(os.path.getsize(path))}B"
            if terminal:
                columns = shutil.get_terminal_size().columns
                line = "\r\033[K" + line[: columns - 1]  # \033[K clears what was there
            print(line, end="" if terminal else "\n", file=sys.stderr, flush=True)

    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        if terminal:
            print(end="\r\033[K", file=sys.stderr, flush=True)


# -----------------------------------------------------------------------------
# which sizes


def ffn_like(cfg: Config, n_embd: int) -> int:
    """Return the ffn_dim that goes with n_embd: 8/3 n_embd where cfg has that, else in proportion."""
    if cfg.ffn_dim == ffn_width(cfg.n_embd):
        return ffn_width(n_embd)
    return -(-cfg.ffn_dim * n_embd // cfg.n_embd)  # rounded up


def heads_like(cfg: Config, n_head: int) -> dict[str, int]:
    """Return n_head and the n_kv_head that keeps the group of query heads a kv head."""
    if n_head * cfg.n_kv_head % cfg.n_head:
        raise ValueError(
            f"{n_head} heads: not a multiple of the group of {cfg.n_head // cfg.n_kv_head} "
            "query heads a kv head"
        )
    return {"n_head": n_head, "n_kv_head": n_head * cfg.n_kv_head // cfg.n_head}


def widen(cfg: Config, n_embd: int, n_head: int | None = None) -> dict[str, int]:
    """Return the sizes at width n_embd: heads (unless given) and ffn_dim grow with it."""
    if not n_head and cfg.n_head * n_embd % cfg.n_embd:
        raise ValueError(
            f"width {n_embd}: {cfg.n_head} heads can't grow in proportion from {cfg.n_embd}; give --heads"
        )
    heads = heads_like(cfg, n_head or cfg.n_head * n_embd // cfg.n_embd)
    return {"n_embd": n_embd, "ffn_dim": ffn_like(cfg, n_embd)} | heads


def with_sizes(cfg: Config, sizes: dict[str, int]) -> dict[str, int]:
    """Return all sizes of cfg, n_layer among them, with other values for those in `sizes`."""
    return {name: getattr(cfg, name) for name in ("n_layer", *SIZES)} | sizes


def non_embedding(cfg: Config, sizes: dict[str, int]) -> int:
    """Return the parameters beside embedding and head that a model of cfg has at other sizes: count_params'
    'non_embedding', without making a model."""
    new = with_sizes(cfg, sizes)
    attention = 2 * new["head_dim"] * (new["n_head"] + new["n_kv_head"])
    a_layer = new["n_embd"] * (attention + 3 * new["ffn_dim"] + 2)  # 2: its norms
    return new["n_layer"] * a_layer + new["n_embd"]


def size_steps(cfg: Config, along: str, multiple: int = 0) -> tuple[range, Callable[[int], dict[str, int]]]:
    """Return (the depths or widths that cfg can grow to, in order; a function of one that returns its sizes).
    A width is a multiple of one kv head's share, and of `multiple` if given."""
    most = 10**12
    if along == "depth":
        return range(cfg.n_layer + 1, most), lambda n_layer: {"n_layer": n_layer}
    step = math.lcm(cfg.n_embd // math.gcd(cfg.n_embd, cfg.n_kv_head), multiple or 1)
    return range((cfg.n_embd // step + 1) * step, most * step, step), lambda n_embd: widen(cfg, n_embd)


def nearest_size(cfg: Config, n_params: float, along: str, multiple: int = 0) -> dict[str, int]:
    """Return the sizes along 'width' or 'depth' whose non-embedding parameters are nearest to n_params."""
    return sizes_around(cfg, n_params, along, multiple)[0]


def sizes_around(cfg: Config, n_params: float, along: str, multiple: int = 0) -> list[dict[str, int]]:
    """Return the sizes of size_steps next below and next above n_params, the nearest first. One, where none
    is below."""
    steps, sizes = size_steps(cfg, along, multiple)
    above = bisect.bisect_left(steps, n_params, key=lambda size: non_embedding(cfg, sizes(size)))
    around = [sizes(size) for size in steps[max(0, above - 1) : above + 1]]
    return sorted(around, key=lambda new: abs(non_embedding(cfg, new) - n_params))


def not_stock(cfg: Config) -> str:
    """Return why a model of these sizes can't be a stock Llama, and what would mend it; '' if it can."""
    if cfg.n_embd % cfg.n_head == 0:
        return ""
    wide, group = -(-cfg.n_embd // cfg.n_head) * cfg.n_head, cfg.n_head // cfg.n_kv_head
    many = [n for n in range(cfg.n_head, cfg.n_embd + 1, group) if cfg.n_embd % n == 0]  # there may be none
    fault = f"n_embd = {cfg.n_embd} is no multiple of n_head = {cfg.n_head}, as transformers wants"
    remedy = f"grow.py --width {wide} --heads {cfg.n_head} would make it one"
    return f"{fault}: {remedy}" + (f", or --heads {many[0]}" if many else "")


def check_growth(cfg: Config, new: dict[str, int], place: str, skip: int, init: str) -> None:
    """Raise ValueError where cfg can't grow to `new`, all its sizes, or with place, skip or init."""
    for name, size in new.items():
        if size < getattr(cfg, name):
            raise ValueError(f"{name} {getattr(cfg, name)} -> {size}: a model only grows")
    grows = {name for name, size in new.items() if size > getattr(cfg, name)}
    if not grows:
        raise ValueError("nothing grows: these are the sizes it has")
    if new["head_dim"] % cfg.head_dim:
        raise ValueError(
            f"head_dim {cfg.head_dim} -> {new['head_dim']}: only by integer multiples, so that RoPE "
            "stays standard"
        )
    if new["n_head"] * cfg.n_kv_head != new["n_kv_head"] * cfg.n_head:
        raise ValueError(
            f"{new['n_head']} heads and {new['n_kv_head']} kv heads: the group must stay "
            f"{cfg.n_head // cfg.n_kv_head}"
        )
    if init == "stack" and grows - {"vocab_size"} != {"n_layer"}:
        raise ValueError("--init stack copies whole layers: it grows depth, and depth alone")
    if init == "eye":
        if not {"n_embd", "n_head"} <= grows or grows & {"n_layer", "head_dim"}:
            raise ValueError("--init eye grows n_embd and heads, together, and neither depth nor head_dim")
        if (new["n_head"] - cfg.n_head) * cfg.head_dim > new["n_embd"] - cfg.n_embd:
            raise ValueError(
                "--init eye needs as many new dimensions of n_embd as the new heads have: more rows would "
                "stay zero"
            )
    if place == "interleave" and "n_layer" not in grows:
        raise ValueError("--place interleave is for depth, which does not grow")
    if skip and ("n_layer" not in grows or place != "top" or init not in ("copy", "stack")):
        raise ValueError("--skip is for copied layers on top: --init copy or stack, with depth")
    if not 0 <= skip < cfg.n_layer:
        raise ValueError(f"--skip {skip}: 0 or more, and below the {cfg.n_layer} layers that there are")


def settled(g: Generation) -> Generation:
    """Return a generation of which all has come in."""
    return dataclasses.replace(g, ramp=0, ramped=1.0)


def grown_config(
    cfg: Config,
    sizes: dict[str, int],
    place: str = "top",
    skip: int = 0,
    init: str = "random",
    birth: int = 0,
    ramp: int = 0,
) -> tuple[Config, list[tuple[int, bool]]]:
    """Return (the grown Config, [(layer of cfg, is it new)] for each layer of it). A new layer's source is
    the one it copies, if it copies. skip: see plan_growth. Raise ValueError where the sizes don't fit or the
    init does not apply."""
    unknown = sizes.keys() - {"n_layer", *SIZES}
    if unknown:
        raise ValueError(f"can't grow {unknown.pop()}")
    new = with_sizes(cfg, sizes)
    check_growth(cfg, new, place, skip, init)

    extra = new["n_layer"] - cfg.n_layer
    if place == "top":
        # 6 layers on 6 copy 1 to 6. With skip 2 they copy 5, 6, 3, 4, 5, 6: the last copies the last, which
        # fed the head
        copied = range(skip, cfg.n_layer)
        begin = -extra if skip else 0
        layers = [(i, False) for i in range(cfg.n_layer)]
        layers += [(copied[(begin + i) % len(copied)], True) for i in range(extra)]
    else:  # spread evenly, each new layer above the one it would copy
        layers = []
        for i in range(cfg.n_layer):
            copies = (i + 1) * extra // cfg.n_layer - i * extra // cfg.n_layer
            layers += [(i, False)] + [(i, True)] * copies

    # a copied norm was trained with its factor: it keeps it
    own_width = init not in ("copy", "stack")
    n = len(cfg.generations)
    grown = vars(cfg) | new
    youngest = {name: new[name] for name in SIZES} | dict(birth=birth, ramp=ramp, ramped=0.0 if ramp else 1.0)
    grown["generations"] = [*cfg.generations, Generation(**youngest)]
    grown["layer_birth"] = [n if is_new else cfg.layer_birth[i] for i, is_new in layers]
    grown["layer_born"] = [
        new["n_embd"] if is_new and own_width else cfg.layer_born[i] for i, is_new in layers
    ]
    return Config(**grown), layers


def why_finished(ckpt: dict) -> str:
    """Return why a model counts as finished: it was imported, or its rates have decayed; '' if it does not.

    What a finished model knows must be kept. In mid-schedule, training on at a full rate mends a jump."""
    ledger, schedule, settings = ckpt["ledger"], ckpt.get("schedule"), ckpt.get("settings", {})
    if "from" in ledger or ckpt.get("origin"):
        return f"{ledger.get('from') or ckpt['origin'].get('name', 'the model')} was imported"
    if ckpt.get("branch"):
        return "its rates were decayed, by --branch=decay"
    if not schedule:
        return ""
    generations, falls_from = Config(**ckpt["config"]).generations, schedule["decay_from"]
    if schedule["shape"] == "cosine":  # it falls from the end of the warmup on
        falls_from = max(g.warm_end for g in generations)
    if ledger["tokens"] <= falls_from:
        return ""
    # --init clone forgets a peak; the settings have it
    peaks = [g.learning_rate or settings.get("learning_rate") for g in generations]
    left = max((rate / peak for rate, peak in zip(schedule["rates"], peaks) if peak), default=1.0)
    return f"its rates have decayed to {left:.0%} of their peaks" if left <= 0.5 else ""


# -----------------------------------------------------------------------------
# the new slabs


def role_of(kind: str, axis: str) -> str:
    """Return which of ROLES a new slab has: of a tensor, by the axis that it is appended on, or "layer"."""
    if axis == "vocab_size":
        return ROW
    if kind == "norm":
        return GAIN
    return WRITES if writes(kind, axis) else READS


def start_of(kind: str, axis: str, init: str, ramp: bool = False) -> tuple[str, str]:
    """Return (how a new slab starts, why). axis: one of SHAPES[kind], or "layer". ramp: a factor rises from
    0, so that what writes need not start at zero."""
    role, what = role_of(kind, axis), RULES[kind, axis]
    why = f"{role} of {what}" if role == GAIN else f"{role} {what}"
    # a layer is copied whole, but --init copy without a ramp starts what writes at zero
    if axis == "layer" and (init == "stack" or init == "copy" and (ramp or role != WRITES)):
        return "copied", f"{why}, as the layer it copies"
    if role == ROW:  # the mean bounds the loss's rise by log(new / old rows), by Jensen's inequality
        return "mean", f"of the old rows: {what}"
    if role == GAIN:
        return "one", why
    if init == "eye" and kind in ("q", "k", "v", "o"):
        if axis in ("n_head", "n_kv_head"):
            return "zero", "the new heads meet only the new dimensions"
        return "eye", f"for the new heads, else zero: {why}"
    if role == WRITES and not ramp:
        return "zero", why
    return "copied" if init == "copy" else "drawn", why


@dataclasses.dataclass
class Birth:
    """What a new slab is made of. before() returns the tensor it is appended to, or the layer it copies. It
    is a function, because few slabs need it."""

    slab: str
    kind: str
    axis: int | None  # the one it is appended on; None: the base slab of a new layer's tensor
    how: str  # of start_of
    before: Callable[[], torch.Tensor]
    cfg: Config  # the grown one
    seed: int

    def fill(self, out: torch.Tensor) -> None:
        """Make the slab in `out`, which is zeros."""
        if self.how == "mean":
            out.copy_(self.before().mean(0).expand(out.shape))
        elif self.how == "one":
            out.fill_(1.0)
        elif self.how == "eye":  # identity where the new heads meet the new dimensions
            old_heads = self.cfg.shape(self.kind, -2)[0]
            out[old_heads:].view(-1, out.shape[-1]).fill_diagonal_(1.0)
        elif self.how == "copied":
            self.copy(out)
        elif self.how == "drawn":
            with timed("draw"):
                out.normal_(0, init_std(self.kind, self.cfg), generator=generator(self.seed, self.slab))

    def copy(self, out: torch.Tensor) -> None:
        """Copy what is before the slab: all of it for a new layer, else tiled along the axis, at its RMS."""
        old, axis = self.before(), self.axis
        if axis is None:
            out.copy_(old)
            return
        n = old.shape[axis]
        for start in range(0, out.shape[axis], n):
            part = out.narrow(axis, start, min(n, out.shape[axis] - start))
            part.copy_(old.narrow(axis, 0, part.shape[axis]))
        if out.any():
            out.mul_(rms(old) / rms(out))


def rms(x: torch.Tensor) -> float:
    """The root mean square; row by row, so that nothing of its size is made."""
    return math.sqrt(sum(row.double().square().sum().item() for row in x) / x.numel())


Born = list[tuple[str, tuple[int, ...], str]]  # new slabs: name, shape, why it starts so


def grow(ckpt: dict, **how: object) -> tuple[dict, Born]:
    """Return (the grown checkpoint, in memory; its new slabs). how: of plan_growth."""
    grown, born = plan_growth(ckpt, **how)
    return materialise(grown), born


def plan_growth(
    ckpt: dict,
    place: str = "top",
    skip: int = 0,
    init: str = "random",
    seed: int = 1337,
    copy_state: bool = False,
    rows: np.ndarray | None = None,
    ramp: int = 0,
    **sizes: int,
) -> tuple[dict, Born]:
    """Return (the grown checkpoint, its new slabs Lazy; what they are).

    sizes: any of n_layer, n_head, n_kv_head, n_embd, head_dim, ffn_dim, at their new values. skip: how many
    of the first layers have no copy on top; 0: copies begin with the first. rows: the token ids of all rows
    of a growing vocabulary, the old ones first. ramp: tokens in which what the new slabs write comes in; 0:
    it is zero, or with stack, there at once. Old slabs are those of ckpt, not copies. Adam's state stays with
    old slabs; new slabs have none, or with copy_state, where a layer is copied, a copy. Raise ValueError
    where the sizes don't fit."""
    if ramp and init not in RAMP_INITS:
        raise ValueError(f"--ramp goes with --init {', '.join(RAMP_INITS)}: {init} is exact without")
    if init == "clone":
        if place != "top" or skip or copy_state or rows is not None:
            raise ValueError(
                "--init clone goes without --place, --skip, --copy_state and --vocab: it tiles the model "
                "that there is"
            )
        return plan_clone(ckpt, seed, **sizes)
    old = Config(**ckpt["config"])
    if rows is not None:
        check_rows(old, ckpt["model"].get("row_of"), rows)
        sizes = sizes | {"vocab_size": len(rows)}
    cfg, layers = grown_config(old, sizes, place, skip, init, ckpt["ledger"]["tokens"], ramp)
    dtype = ckpt["model"]["wte.0"].dtype
    weights, state, born = ungrown(ckpt), {}, []
    if rows is not None:
        weights["row_of"] = torch.full((old.n_tokens,), -1)
        weights["row_of"][torch.as_tensor(rows)] = torch.arange(len(rows))
    # a copy takes older slabs times their ramp factors so far, and slabs of this growth in full
    come_in = dataclasses.replace(cfg, generations=[*cfg.generations[:-1], settled(cfg.generations[-1])])
    tensors = skeleton(cfg).growables()
    for name, source, is_new in sources(tensors, layers):
        kind, plan = tensors[name].kind, tensors[name].plan
        for i, (_, axis, shape) in enumerate(plan):
            slab, old_slab = f"{name}.{i}", f"{source}.{i}"
            if not is_new and old_slab in ckpt["model"]:
                weights[slab] = ckpt["model"][old_slab]
                if old_slab in ckpt["optimizer"]:
                    state[slab] = dict(ckpt["optimizer"][old_slab])
                continue

            # a new slab: in a new layer it may copy a tensor, in an old one it is appended to slabs before it
            whole, its_plan = (source, tensors[source].plan) if is_new else (name, plan[:i])
            how, why = start_of(kind, axis_name(kind, axis), init, ramp > 0)
            before = functools.partial(assembled, come_in, weights, whole, kind, its_plan)
            weights[slab] = Lazy(shape, dtype, Birth(slab, kind, axis, how, before, cfg, seed).fill)
            born.append((slab, shape, f"{how}: {why}"))
            if copy_state and is_new and how == "copied":
                if moments := fused_state(source, its_plan, state):
                    state[slab] = moments
    return ckpt | {"config": cfg.plain(), "model": weights, "optimizer": state, "step": 0}, born


def check_rows(cfg: Config, row_of: torch.Tensor | None, rows: np.ndarray) -> None:
    """Raise ValueError where the model's vocabulary can't grow to these rows."""
    if not cfg.n_tokens:
        raise ValueError(f"the vocabulary can't grow: the model has all {cfg.vocab_size} rows")
    if len(rows) < cfg.vocab_size:
        raise ValueError(f"rows {cfg.vocab_size} -> {len(rows)}: a model only grows")
    if not np.array_equal(rows[: cfg.vocab_size], row_ids(row_of, cfg.vocab_size)):
        raise ValueError(
            "the new rows do not begin with the model's own: they are of another folder of prepare.py"
        )


def sources(tensors: dict, layers: list[tuple[int, bool]]) -> list[tuple[str, str, bool]]:
    """Return [(name, source, is_new)] of every tensor of the grown model, those of old layers first.

    source: its name in the old model; of a new layer, the name in the grown model of what it may copy."""
    out = []
    for name in tensors:
        source, is_new = name, False
        if name.startswith("layers."):
            _, i, rest = name.split(".", 2)
            layer, is_new = layers[int(i)]
            source = f"layers.{layers.index((layer, False)) if is_new else layer}.{rest}"
        out.append((name, source, is_new))
    return sorted(out, key=lambda row: row[2])


def generator(seed: int, slab: str) -> torch.Generator:
    """The slab's own: a draw depends on nothing but seed and name."""
    digest = hashlib.sha256(f"{seed} {slab}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


# The axis on which each tensor reads what is tiled: it is divided by k. wte and norm are not, but for the
# last norm of a tied model.
READ_AXIS = {"q": 3, "k": 3, "v": 2, "o": 0, "gate": 1, "up": 1, "down": 0, "head": 1}
TILED = ("n_head", "n_kv_head", "n_embd", "ffn_dim")


def times(values: dict, k: int) -> dict:
    """Return the values, with k times the sizes that are tiled."""
    return values | {name: k * values[name] for name in TILED}


def cloned_config(old: Config, sizes: dict[str, int]) -> tuple[Config, int]:
    """Return (the Config of --init clone, k). Raise ValueError where the sizes are not k times the old."""
    k = sizes.get("n_embd", 0) // old.n_embd
    wanted = {name: k * getattr(old, name) for name in TILED}
    if sizes.get("ffn_dim") == ffn_like(old, k * old.n_embd):  # --width's, rounded up from 8/3 n_embd
        sizes = sizes | {"ffn_dim": wanted["ffn_dim"]}
    if k < 2 or sizes != wanted:
        raise ValueError(
            "--init clone multiplies n_embd, heads and ffn_dim by an integer, and nothing else: "
            "--double width"
        )
    generations = [times(vars(settled(g)), k) for g in old.generations]
    generations[-1] |= {"learning_rate": None, "warmup": 0}  # train.py gives it the next stage's
    born_at = {"layer_born": [k * born for born in old.layer_born], "n_fused": len(generations)}
    return Config(**times(vars(old), k) | {"generations": generations} | born_at), k


def plan_clone(ckpt: dict, seed: int, noise: float = 10**-0.5, **sizes: int) -> tuple[dict, Born]:
    """Return plan_growth's result for --init clone. noise: its RMS relative to the weights it is added to;
    HyperCloning's 10 dB by default.

    A tensor that writes k copies gets a gradient 1/k as large. So Adam's first moments are tiled and divided
    by k, the second by k^2."""
    old = Config(**ckpt["config"])
    cfg, k = cloned_config(old, sizes)
    dtype = ckpt["model"]["wte.0"].dtype
    weights, state, born = ungrown(ckpt), {}, []
    for name, tensor in skeleton(old).growables().items():
        slab, kind, shape = f"{name}.0", tensor.kind, cfg.shape(tensor.kind)
        reads = kind in READ_AXIS
        last_gain = old.tied and name == "norm.gain"  # before a tied head: wte, which is not divided

        # the weights
        tiled = functools.partial(tile, k=k, kind=kind)
        before = functools.partial(assembled, old, ckpt["model"], name, kind, tensor.plan)
        scale = 1 / k if reads or last_gain else 1
        rng = functools.partial(generator, seed, slab)
        fill = functools.partial(tiled, before=before, scale=scale, noise=noise if reads else 0.0, rng=rng)
        weights[slab] = Lazy(shape, dtype, fill)
        born.append((slab, shape, "tiled"))

        # Adam's moments
        copies = 1 if kind == "head" or last_gain else k
        if moments := fused_state(name, tensor.plan, ckpt["optimizer"]):
            for key, power in ("exp_avg", 1), ("exp_avg_sq", 2):
                moment = moments[key]
                smaller = functools.partial(tiled, before=moment.made, scale=1 / copies**power)
                moments[key] = Lazy(shape, moment.dtype, smaller)
            state[slab] = moments
    return ckpt | {"config": cfg.plain(), "model": weights, "optimizer": state, "step": 0}, born


def tile(
    out: torch.Tensor,
    before: Callable[[], torch.Tensor],
    k: int,
    kind: str,
    scale: float,
    noise: float = 0.0,
    rng: Callable[[], torch.Generator] | None = None,
) -> None:
    """Write scale x before(), tiled k times on every axis that TILED names, into out, which is zeros, plus
    noise that sums to zero over the copies of what the tensor reads."""
    old, tiled = before(), [axis for axis, size in enumerate(SHAPES[kind]) if size in TILED]
    view, w = out, old
    for axis in reversed(tiled):  # view: each tiled axis as (k, its old size); w: as (1, its old size)
        view, w = view.unflatten(axis, (k, -1)), w.unsqueeze(axis)
    if noise:
        with timed("draw"):
            view.normal_(0, noise * scale * rms(old), generator=rng())
        read = READ_AXIS[kind]
        view -= view.mean(read + tiled.index(read), keepdim=True)
    view += scale * w


def copy_of(out: torch.Tensor, before: Callable[[], torch.Tensor]) -> None:
    """Copy what before() returns into out."""
    out.copy_(before())


def ungrown(ckpt: dict) -> dict:
    """Return what a checkpoint's model holds beside its growable tensors: the map of token ids to rows, or
    nothing."""
    return {name: w for name, w in ckpt["model"].items() if name == "row_of"}


def fused_state(name: str, plan: Plan, state: dict) -> dict:
    """Return the Adam state of the tensor `name` as that of one slab, its moments Lazy; {} where no slab of
    its plan has a state. Slabs without one count as zeros; the step is the largest."""
    states = [state.get(f"{name}.{i}") for i in range(len(plan))]
    known = [s for s in states if s]
    if not known:
        return {}

    def fill(out: torch.Tensor, key: str) -> None:
        zeros = known[0][key].new_zeros
        slabs = [s[key] if s else zeros(shape) for s, (_, _, shape) in zip(states, plan)]
        out.copy_(concatenate(plan, slabs))

    whole = concatenate(plan, [torch.empty(shape, device="meta") for _, _, shape in plan])
    moments = {"step": max(s["step"] for s in known).clone()}
    for key in ("exp_avg", "exp_avg_sq"):
        moments[key] = Lazy(tuple(whole.shape), known[0][key].dtype, functools.partial(fill, key=key))
    return moments


def condense(ckpt: dict, keep: int) -> tuple[dict, list[str]]:
    """Return (the checkpoint, in memory, with its oldest generations fused so that `keep` remain; what is not
    exact about it).

    The function stays to the bit: a ramp that is not over is folded in. The fused slabs follow the schedule
    of the youngest among them and the largest of their step counts: exact for the next optimizer step where
    they agree, and no ramp was folded in."""
    condensed, notes = plan_condensing(ckpt, keep)
    return materialise(condensed), notes


def fused(ckpt: dict) -> Llama:
    """Return a checkpoint's model, its generations fused: else every forward would concatenate them."""
    cfg = Config(**ckpt["config"])
    if cfg.n_fused < len(cfg.generations):
        ckpt, _ = condense(ckpt | {"optimizer": {}}, 1)
    return build_model(ckpt).eval()


def plan_condensing(ckpt: dict, keep: int) -> tuple[dict, list[str]]:
    """Return what condense does, with the fused slabs Lazy. ckpt may hold Lazy slabs, if they are made before
    these."""
    old = Config(**ckpt["config"])
    n_fused = len(old.generations) - keep + 1
    if keep < 1 or n_fused <= old.n_fused:
        remain = len(old.generations) - old.n_fused + 1
        remaining = f"{remain} generations remain: give 1 to {remain - 1}"
        if remain == 1:
            remaining = "1 generation remains: nothing to fuse"
        raise ValueError(f"--condense {keep}: {remaining}")
    generations = [*map(settled, old.generations[:n_fused]), *old.generations[n_fused:]]
    cfg = dataclasses.replace(old, n_fused=n_fused, generations=generations)
    weights, state = ungrown(ckpt), {}
    was, old_tensors = ckpt["optimizer"], skeleton(old).growables()
    steps = set()  # the Adam step counts of slabs that become one
    for name, tensor in skeleton(cfg).growables().items():
        kind, plan = tensor.kind, old_tensors[name].plan
        m = len(plan) - len(tensor.plan) + 1  # so many slabs become the first
        slab, first = f"{name}.0", ckpt["model"][f"{name}.0"]
        if m > 1:
            steps |= {int(was[f"{name}.{i}"]["step"]) for i in range(m) if f"{name}.{i}" in was}
        if m > 1 or old.factors(kind, plan[:1]) != cfg.factors(kind, tensor.plan[:1]):  # or a ramp ends
            before = functools.partial(assembled, old, ckpt["model"], name, kind, plan[:m])
            first = Lazy(tensor.plan[0][2], first.dtype, functools.partial(copy_of, before=before))
        weights[slab] = first
        if moments := fused_state(name, plan[:m], was):
            state[slab] = moments
        for i, later in enumerate(range(m, len(plan)), 1):  # the others move up
            weights[f"{name}.{i}"] = ckpt["model"][f"{name}.{later}"]
            if f"{name}.{later}" in was:
                state[f"{name}.{i}"] = dict(was[f"{name}.{later}"])
    notes = what_fusing_changes(old, n_fused, steps)
    return ckpt | {"config": cfg.plain(), "model": weights, "optimizer": state}, notes


def what_fusing_changes(old: Config, n_fused: int, steps: set[int]) -> list[str]:
    """Return what is not exact about fusing the n_fused oldest generations of a Config. steps: the Adam step
    counts of the slabs that become one."""
    first, last, notes = old.n_fused - 1, n_fused - 1, []
    fusing = old.generations[first:n_fused]
    if not fusing[-1].learning_rate and any(g.learning_rate for g in fusing):
        follows = "what is fused with it follows its schedule, as if all were new"
        notes.append(f"generation {last} was never trained, and {follows}")
    elif len({(g.learning_rate, g.warmup, g.warm_start if g.warmup else 0) for g in fusing}) > 1:
        follows = f"all follow generation {last}'s from now on"
        notes.append(f"the fused generations had schedules of their own: {follows}")
    if len(steps) > 1:
        shift = "shifts the bias corrections (by nothing, at beta2 = 0.95, after about 700 steps)"
        counts = f"their Adam step counts differ ({min(steps)} to {max(steps)})"
        notes.append(f"{counts}: the largest is kept, which {shift}")
    for i, g in enumerate(fusing, first):
        if g.ramp:
            stays = "what it writes stays as it is, and Adam's moments follow in some steps"
            notes.append(f"generation {i}'s ramp stood at {g.ramped:.0%} and is folded in: {stays}")
    return notes


# -----------------------------------------------------------------------------
# the check and what is printed


def data_of(ckpt: dict) -> str:
    """Return the folder that the checkpoint was trained on, '' for none."""
    return ckpt.get("settings", {}).get("data", "")


def val_text(ckpt: dict) -> str:
    """Return the path of the validation text beside what the checkpoint was trained on, '' where it is gone,
    or was prepared anew with another tokenizer."""
    folder = data_of(ckpt)
    if not folder or not all(os.path.isfile(f"{folder}/{name}") for name in ("val.bin", "meta.json")):
        return ""
    if read_meta(folder)["tokenizer"]["sha256"] != ckpt["tokenizer"]["sha256"]:
        return ""
    return f"{folder}/val.bin"


def probe_tokens(ckpt: dict, text: str | None = None) -> tuple:
    """Return (token ids to compare models on, (windows, T + 1); a name for them; their bytes of text).

    The ids come from the text file, else from the checkpoint's validation text, else at random. The first
    token of a window counts no bytes; the bytes are 0 where unknown. Tokens without a row are spelled."""
    if text:
        tokens, n_bytes = text_tokens(ckpt, text)
        return tokens, f"tokens of {text}", n_bytes
    cfg, data, path = Config(**ckpt["config"]), data_of(ckpt), val_text(ckpt)
    ids = row_ids(ckpt["model"].get("row_of"), cfg.vocab_size)
    shape = 2, min(cfg.block_size, 128) + 1
    n = math.prod(shape)
    if path:
        meta = read_meta(data)
        tokens = np.fromfile(path, meta["dtype"], n)
        if len(tokens) == n:
            spell = speller(ids, meta["vocab_size"], lambda: read_spelling(data))
            tokens = spell(tokens)[:n].astype(np.int64)
            return torch.from_numpy(tokens).view(shape), f"tokens of {path}", 0
    picked = torch.randint(cfg.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    return ids[picked], "random tokens", 0


def text_tokens(ckpt: dict, path: str, longest: int = 512) -> tuple[torch.Tensor, int]:
    """Return (up to `longest` tokens of a text file after a bos, (windows, T + 1); their bytes of text). A
    window begins with the last token of the one before, which counts no bytes. Tokens without a row are
    spelled. Raise ValueError where the file holds no text, or the checkpoint no tokenizer."""
    if "tokenizer" not in ckpt:
        raise ValueError("--text: the checkpoint has no tokenizer")
    with open(path, encoding="utf-8-sig", newline="") as f:
        try:
            text = f.read(2**14)
        except UnicodeDecodeError as e:
            raise ValueError(f"--text {path}: not UTF-8 ({e.reason})") from None
    cfg, tok = Config(**ckpt["config"]), Tokenizer.from_dict(ckpt["tokenizer"])
    rows = row_ids(ckpt["model"].get("row_of"), cfg.vocab_size)
    ids = speller(rows, tok.vocab_size, tok.spelling)([tok.bos, *tok.encode(text)])
    ids = np.asarray(ids, np.int64)[: longest + 1]
    if len(ids) < 2:
        raise ValueError(f"--text {path}: no text in it")
    T = min(cfg.block_size, len(ids) - 1)
    windows = np.stack([ids[i : i + T + 1] for i in range(0, len(ids) - T, T)])
    n_bytes = count_bytes(windows[:, 1:], windows[:, :-1], tok.token_bytes(), tok.bos, tok.dummy_prefix)
    return torch.from_numpy(windows), n_bytes


@torch.no_grad()
def differences(a: dict, b: dict, tokens: torch.Tensor, n: int = 64) -> tuple[float, float, float, float]:
    """Return (max |dlogit| of the tokens that a has, the largest |logit| of a, the losses of a and of b, in
    nats a token) of two checkpoints on the same tokens. One tensor at a time of their weights is in memory,
    and logits of n tokens."""
    models = [build_model(c, assign=True) for c in (a, b)]
    # of each (what the head multiplies, (windows, T, C); the head, (vocab_size, C))
    hidden = [model.trunk(tokens[:, :-1]) for model in models]
    rows = [model.rows(tokens[:, 1:]).flatten() for model in models]
    dlogit, largest, losses = [], [], [0.0, 0.0]
    for i in range(0, len(rows[0]), n):
        logits = [F.linear(x.flatten(0, 1)[i : i + n], w) for x, w in hidden]  # (n, vocab_size) each
        dlogit.append((logits[0] - logits[1][:, : logits[0].size(1)]).abs().max())
        largest.append(logits[0].abs().max())
        for m in range(2):
            losses[m] += F.cross_entropy(logits[m], rows[m][i : i + n], reduction="sum").item() / len(rows[m])
    return torch.stack(dlogit).max().item(), torch.stack(largest).max().item(), *losses


def alive(ckpt: dict, tokens: torch.Tensor, slabs: set[str]) -> dict[str, float]:
    """Return {slab: the share of its elements that two AdamW updates have moved, or the backward after them
    would}. Of an untied wte only the rows of tokens read count, if there are any. Weight decay is off: it
    moves the dead as well."""
    model = build_model(ckpt)
    model.ramp(max(g.birth + g.ramp / 2 for g in model.cfg.generations))  # at 0, nothing would move
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in slabs}
    optimizer = model.optimizer(weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for update in range(3):
        model.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        if update < 2:
            optimizer.step()
    params, share = dict(model.named_parameters()), {}
    read = torch.zeros(model.cfg.vocab_size, dtype=torch.bool)
    read[model.rows(tokens[:, :-1])] = True
    rows, n = {}, 0  # {slab of wte: which of its rows were read}; the rows so far
    for i, (_, axis, shape) in enumerate(model.wte.plan):
        start = 0 if axis == 1 else n  # n_embd: more columns of all rows so far
        n = start + shape[0]
        rows[f"wte.{i}"] = read[start:n]
    for name, w in before.items():
        moved = (params[name] != w) | (params[name].grad != 0)
        if not model.cfg.tied and name in rows and rows[name].any():
            moved = moved[rows[name]]
        share[name] = moved.double().mean().item()
    return share


def count(n: float) -> str:
    """1234567 -> '1.23M'"""
    for unit in ("", "k", "M", "G", "T"):
        if abs(n) < 999.5:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:.3g}P"


def size_table(*ckpts: dict) -> list[str]:
    """Return the table before and after, as lines. What is Lazy counts as made."""
    configs = [Config(**ckpt["config"]) for ckpt in ckpts]
    counts, columns = [skeleton(cfg).count_params() for cfg in configs], []
    generations = sorted({g for n in counts for g in n["generations"]})
    for ckpt, cfg, n in zip(ckpts, configs, counts):
        kv = f", {cfg.n_kv_head} kv" if cfg.n_kv_head < cfg.n_head else ""
        tensors = [t for s in ckpt["optimizer"].values() for t in s.values()] + list(ckpt["model"].values())
        columns.append({
            "n_layer x n_embd": f"{cfg.n_layer} x {cfg.n_embd}",
            "heads x head_dim": f"{cfg.n_head} x {cfg.head_dim}" + kv,
            "ffn_dim": str(cfg.ffn_dim),
            "rows": f"{cfg.vocab_size}" + (f" of {cfg.n_tokens}" if cfg.n_tokens else ""),
            "parameters": f"{n['total']:,}",
            "  non-embedding": f"{n['non_embedding']:,}",
            **{f"  generation {g}": f"{n['generations'].get(g, 0):,}" for g in generations},
            "FLOPs a token": count(cfg.flops_per_token()),
            "checkpoint": count(sum(t.nbytes for t in tensors)) + "B",
        })  # fmt: skip
    return [f"{key:<18}" + "".join(f"{column[key]:>18}" for column in columns) for key in columns[0]]


# -----------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description="Grow a checkpoint: a bigger model that computes what it did.")
    add = p.add_argument
    add("--in", dest="input", required=True, metavar="CKPT", help="the checkpoint to grow; never overwritten")
    add("--out", metavar="CKPT", help="where to write (default: grown.pt beside the input)")
    # how large
    add("--double", choices=("width", *AXES), help="width: n_embd, heads and ffn_dim")
    add(
        "--params",
        metavar="N",
        help="non-embedding parameters to come near to: 2x, 1.5x, 110e6; with --along",
    )
    add("--along", choices=("width", "depth"))
    add("--multiple", type=int, default=0, help="of widths, with --params (default: one kv head)")
    add("--width", type=int, help="n_embd; heads and ffn_dim go with it unless given")
    add("--depth", type=int, help="n_layer")
    add("--heads", type=int, help="n_head; n_kv_head goes with it")
    add("--ffn", type=int, help="ffn_dim")
    add("--head_dim", type=int, help="an integer multiple of the old one")
    add(
        "--vocab",
        metavar="STAGE",
        help="rows for the tokens of a stage of prepare.py --words (words5000, all)",
    )
    # how it starts
    add(
        "--init",
        choices=INITS,
        help="how the new starts. random: what writes is zero, what reads is drawn. copy: what reads is "
        "copied. stack: layers are copied whole. eye: new heads are identities. clone: all is tiled, as "
        "HyperCloning does (default: random; depth alone: stack with a --ramp, or copy if the model is "
        "finished: imported, or decayed)",
    )
    add("--place", choices=("top", "interleave"), default="top", help="where new layers go (default: top)")
    add(
        "--skip",
        type=int,
        default=0,
        metavar="N",
        help="with copies on top: copy none of the first N layers; the last copy is of the last layer "
        "(default: 0)",
    )
    add(
        "--ramp",
        type=float,
        metavar="TOKENS",
        help="with --init random, copy or stack: what is new comes in over so many tokens of training "
        "(default: at once; without --init, a stack over a fortieth of the tokens read so far)",
    )
    add("--copy_state", action="store_true", help="copied layers copy Adam's state too")
    add("--fresh_optimizer", action="store_true", help="drop Adam's state")
    add(
        "--condense",
        type=int,
        metavar="K",
        help="fuse the oldest generations so that K remain, after growing",
    )
    add("--seed", type=int, default=1337)
    # the check
    add(
        "--text",
        metavar="FILE",
        help="check on the first 512 tokens of a text file (default: validation text of the checkpoint's "
        "data, or random tokens)",
    )
    add(
        "--tolerance",
        type=float,
        default=3e-5,
        help="the largest |dlogit|, over the largest |logit| before, or 1 where that is below 1 (default: "
        "3e-5; rounding gives up to 8e-6)",
    )
    add("--explain", action="store_true", help="list every new slab, and whether it is alive")
    add("--dry_run", action="store_true", help="write nothing but a temporary file in $TMPDIR")
    add("--force", action="store_true", help="overwrite an existing output")
    args = p.parse_args(argv)
    for name in ("width", "depth", "heads", "ffn", "head_dim", "condense"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: at least 1")
    if args.ramp is not None:
        if not 0 <= args.ramp < math.inf or args.ramp % 1:
            raise ValueError(f"--ramp {args.ramp:g}: a number of tokens, at least 0")
        args.ramp = int(args.ramp)  # 2e6, too
    if args.multiple and args.along != "width":
        raise ValueError("--multiple is for --params with --along width")
    if args.multiple < 0 or math.isnan(args.tolerance):
        raise ValueError("--multiple is at least 0, and --tolerance a number")
    return args


def asked_params(cfg: Config, asked: str) -> float:
    """Return the non-embedding parameters that --params asks for. Raise ValueError if that is no number, or
    not more than there are."""
    now = non_embedding(cfg, {})
    try:
        n = float(asked.removesuffix("x")) * (now if asked.endswith("x") else 1)
    except ValueError:
        n = math.nan
    if not math.isfinite(n):
        raise ValueError(f"--params {asked}: a number, or a factor such as 2x")
    if n <= now:
        raise ValueError(f"--params {asked}: it has {now:,} already")
    return n


def chosen(cfg: Config, args: argparse.Namespace) -> str:
    """Return a line that says what --params asked for, what was chosen, and what was next to it."""
    now, asked = non_embedding(cfg, {}), asked_params(cfg, args.params)
    around = sizes_around(cfg, asked, args.along, args.multiple)

    def said(n):
        return f"{n / now:.2f} x" if args.params.endswith("x") else count(n)

    n = [non_embedding(cfg, sizes) for sizes in around]
    line = f"asked for {said(asked)}, chose {said(n[0])}"
    if len(n) == 1:  # a growth is at least one step
        return f"{line}: the smallest step"
    size = around[1]["n_layer" if args.along == "depth" else "n_embd"]
    return f"{line}: the {args.along} {'above' if n[1] > n[0] else 'below'}, {size}, is {said(n[1])}"


def file_names(source: str, out: str | None) -> tuple[str, str]:
    """Return the checkpoint to grow and the file to write, normalised. Raise ValueError where one of them
    can't be it."""
    source = os.path.normpath(source)
    folder, name = os.path.split(source)
    if name == "whole.pt" and is_sharded(folder):
        source, folder = folder, os.path.dirname(folder)
    out = os.path.join(folder, "grown.pt") if out is None else out
    if os.path.exists(out) and os.path.exists(source) and os.path.samefile(source, out):
        raise ValueError(f"--out {out} is the input: give another name")
    if not os.path.basename(out) or os.path.isdir(out):
        raise ValueError(f"--out {out} is a folder: name a file, such as {os.path.join(out, 'grown.pt')}")
    within = os.path.dirname(os.path.realpath(out))
    if os.path.exists(source) and not os.path.isdir(within):
        raise ValueError(f"{os.path.dirname(out)}: no such folder")
    while within != os.path.dirname(within):
        if is_sharded(within):  # the next save would take the file away
            raise ValueError(f"--out {out} is inside the checkpoint {within}: name a file elsewhere")
        within = os.path.dirname(within)
    return source, out


def asked_sizes(cfg: Config, args: argparse.Namespace) -> dict[str, int]:
    """Return the sizes that the command line asks for, {} if none."""
    explicit = any((args.width, args.depth, args.heads, args.ffn, args.head_dim))
    if bool(args.double) + bool(args.params) + explicit > 1:
        raise ValueError("give one of --double, --params, or explicit sizes")
    if bool(args.params) != bool(args.along):
        raise ValueError("--params and --along width|depth go together")
    if args.double == "width":
        return widen(cfg, 2 * cfg.n_embd)
    if args.double:
        return {AXES[args.double]: 2 * getattr(cfg, AXES[args.double])}
    if args.params:
        return nearest_size(cfg, asked_params(cfg, args.params), args.along, args.multiple)
    sizes = {}
    if args.width:
        sizes = widen(cfg, args.width, args.heads)
    elif args.heads:
        sizes = heads_like(cfg, args.heads)
    return sizes | {name: size for option, name in AXES.items() if (size := getattr(args, option))}


def enough_room(cfg: Config, sizes: dict[str, int], path: str) -> None:
    """Raise OSError where not even the parameters of cfg at other sizes have room at path: at once, before a
    model of that size is planned."""
    new = with_sizes(cfg, sizes)
    n_bytes = 4 * (non_embedding(cfg, sizes) + new["vocab_size"] * new["n_embd"] * (1 if cfg.tied else 2))
    free = shutil.disk_usage(os.path.dirname(path) or ".").free
    if n_bytes > free:
        needed = f"{count(n_bytes)}B of parameters, and {count(free)}B are free"
        raise OSError(f"{path}: can't be written: {needed} on that disk")


@contextlib.contextmanager
def work_files(out: str, dry_run: bool, force: bool) -> Iterator[list[str]]:
    """Give the names of three files to work in, which are gone at the end. They are beside out, the first of
    them locked; for a dry run, in $TMPDIR."""
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="grow-") as folder:
            yield [f"{folder}/{i}" for i in range(3)]
        return
    files = [f"{out}.tmp{i}" for i in ("", 1, 2)]
    with lock(files[0]):  # two at a time would write into the same files
        try:
            if os.path.exists(out) and not force:
                raise ValueError(f"{out} exists: --force overwrites it, --out names another")
            yield files
        finally:
            for path in files:
                remove(path)


def next_command(cfg: Config, data: str, out: str) -> str:
    """Return the command that trains the youngest generation of a grown checkpoint of Config cfg, and nothing
    else."""
    old = ",".join(str(g) for g in range(cfg.n_fused - 1, len(cfg.generations) - 1))
    folder = os.path.splitext(out)[0]
    # a rate to start with: what a finished model knows does not survive the default of a start from scratch
    return (
        f"python train.py --data={data or 'DATA'} --init_from={out} --out_dir={folder} --freeze='[{old}]' "
        "--learning_rate=1e-4"
    )


@dataclasses.dataclass
class Growth:
    """What the command line asks for, of a checkpoint."""

    sizes: dict[str, int]
    rows: np.ndarray | None  # token ids, of a growing vocabulary
    init: str
    ended: str  # why the model is finished; '' if it is not
    ramp: int  # tokens in which what is new comes in

    @property
    def exact(self) -> bool:
        return self.init != "stack" or self.ramp > 0


def default_depth(ckpt: dict, args: argparse.Namespace, ended: str) -> tuple[str, int]:
    """Return (--init, --ramp) where depth alone grows, and no --init is given; print why. ended: why the
    model is finished."""
    # plain copies learn fastest, then copies that write zeros, then random layers: docs/experiments.md
    if ended:
        if not args.ramp:
            print(f"{ended}: --init copy keeps its function; --init stack would not")
        return "copy", args.ramp or 0
    if args.ramp is not None or args.condense == 1:
        return "stack", args.ramp or 0

    # a fortieth ended level with copies that are there at once at one doubling, 0.004 behind at two.
    # Longer ramps were 0.003 and 0.004 behind at one: docs/experiments.md
    ramp = max(1, ckpt["ledger"]["tokens"] // 40)
    print(f"the copies come in over {ramp:,} tokens; --ramp 0: at once")
    return "stack", ramp


def asked_growth(ckpt: dict, args: argparse.Namespace) -> Growth:
    """Return what is to grow, and how. Raise ValueError where nothing is, or options don't go together."""
    cfg = Config(**ckpt["config"])
    asked = asked_sizes(cfg, args)
    sizes = {name: size for name, size in asked.items() if size != getattr(cfg, name)}
    if args.vocab and not cfg.n_tokens:
        raise ValueError(f"--vocab {args.vocab}: the model has all {cfg.vocab_size} rows: leave --vocab out")
    rows = read_stage_rows(data_of(ckpt), args.vocab, f"--vocab {args.vocab}") if args.vocab else None
    if asked and not sizes and rows is None:
        raise ValueError("nothing grows: these are the sizes it has")
    if not sizes:  # rows alone may grow
        if rows is None and not args.condense and not args.fresh_optimizer:
            raise ValueError(
                "nothing to do: give --double, --params with --along, sizes, --vocab, or --condense"
            )
        if args.ramp:
            raise ValueError("--ramp is for a growth, and of rows there is none: leave it out")
        if args.init or args.place != "top" or args.skip or args.copy_state:
            raise ValueError("--init, --place, --skip and --copy_state are for a growth, and nothing grows")
    if args.ramp and args.condense == 1:
        raise ValueError("--condense 1 would fold the ramp in before it began: leave it out, or train first")

    ended = why_finished(ckpt)
    init, ramp = args.init or "random", args.ramp or 0
    if sizes.keys() == {"n_layer"} and not args.init:
        init, ramp = default_depth(ckpt, args, ended)
    if args.copy_state and (init not in ("copy", "stack") or "n_layer" not in sizes):
        raise ValueError("--copy_state is for copied layers: --init copy or stack, with depth")
    if args.params:
        print(chosen(cfg, args))
    return Growth(sizes, rows, init, ended, ramp)


def make(
    ckpt: dict, growth: Growth, args: argparse.Namespace, scratch: list[str], tokens: torch.Tensor
) -> dict:
    """Return the grown checkpoint, its new slabs in the scratch files; print its sizes, and if asked, its new
    slabs."""
    new, born = ckpt, []
    if args.fresh_optimizer:
        new = ckpt | {"optimizer": {}}
    if growth.sizes or growth.rows is not None:
        new, born = plan_growth(
            new,
            place=args.place,
            skip=args.skip,
            init=growth.init,
            seed=args.seed,
            copy_state=args.copy_state,
            rows=growth.rows,
            ramp=growth.ramp,
            **growth.sizes,
        )
    # planned here for its errors and its sizes, and again once its slabs are made
    condensed, notes = plan_condensing(new, args.condense) if args.condense else (new, [])
    print("\n".join(size_table(ckpt, condensed)))
    odd = not_stock(Config(**condensed["config"]))
    if odd:
        print(f"warning: export.py will not make a stock Llama of it: {odd}")

    if args.dry_run:  # which has no use for Adam's state
        new = new | {"optimizer": {}}
    with timed("write"), working("making new slabs"):
        new = materialise(new, scratch[0])
    if args.explain and born:
        if growth.rows is not None:  # the probe has none of the new
            ids = torch.as_tensor(growth.rows[ckpt["config"]["vocab_size"] :])
            tokens = tokens.clone()
            tokens[0, : len(ids)] = ids[: tokens.size(1)]
        with working("looking for dead parameters"):
            share = alive(new, tokens, {slab for slab, _, _ in born})
        for slab, shape, why in born:
            print(f"{slab:<24} {str(list(shape)):<22} {share[slab]:>4.0%} alive  {why}")
    if args.condense:
        with timed("write"), working("fusing generations"):
            new = materialise(plan_condensing(new, args.condense)[0], scratch[1])
    for note in notes:
        print(f"note: {note}")
    return new


def check(ckpt: dict, new: dict, growth: Growth, args: argparse.Namespace, probe: tuple) -> float:
    """Print how the two checkpoints differ on the probe, and return max |dlogit|. Raise ValueError where the
    growth should have kept the function and did not."""
    tokens, what, n_bytes = probe
    with timed("check"), working("checking"):
        dlogit, largest, *losses = differences(ckpt, new, tokens)
    lost = f"loss {losses[0]:.4f} -> {losses[1]:.4f}"
    print(f"check on {tokens.numel()} {what}: max |dlogit| {dlogit:.1e}, {lost}")
    if n_bytes:
        bpb = [loss * tokens[:, 1:].numel() / n_bytes / math.log(2) for loss in losses]
        print(f"bits per byte of {args.text}: {bpb[0]:.4f} -> {bpb[1]:.4f}")
    if what == "random tokens":
        print("random tokens tell of exactness only: --text FILE checks on text")
    if not math.isfinite(largest):
        raise ValueError(f"{args.input}: not a model: its logits are not finite: nothing written")
    if growth.rows is not None and growth.exact:
        n, rise = len(growth.rows), losses[1] - losses[0]
        bound = math.log(n / ckpt["config"]["vocab_size"])
        print(f"{n} rows: the loss may rise by {bound:.4f} at most, and rises by {rise:.4f}")
    allowed = args.tolerance * max(1.0, largest)
    if not dlogit <= allowed:  # or it is NaN
        if growth.exact:
            of = f"{allowed:.1e}, {args.tolerance:g} x {max(1.0, largest):.3g}"
            raise ValueError(f"max |dlogit| {dlogit:.1e} is above the tolerance of {of}: nothing written")
        print("plain copies of layers (--init stack) do not keep the function; under a --ramp they do")
    return dlogit


def read_input(source: str, dry_run: bool, at_end: contextlib.ExitStack) -> tuple[dict, str]:
    """Return (the checkpoint at source, the sha256 of its one file). A dry run makes that file of a sharded
    checkpoint in $TMPDIR, and hashes nothing."""
    loaded = source
    if dry_run and is_sharded(source):
        loaded = at_end.enter_context(tempfile.TemporaryDirectory(prefix="grow-"))
        for name in os.listdir(source):
            os.symlink(os.path.abspath(f"{source}/{name}"), f"{loaded}/{name}")
    with working(f"reading {source}"):
        ckpt = load_checkpoint(loaded)
    if dry_run:  # no lineage is written
        return ckpt, ""
    with timed("hash"), working(f"hashing {source}"):
        return ckpt, file_sha256(f"{loaded}/whole.pt" if os.path.isdir(loaded) else loaded)


def main() -> None:
    args = parse_args()
    source, out = file_names(args.input, args.out)
    with contextlib.ExitStack() as at_end:
        ckpt, parent_sha256 = read_input(source, args.dry_run, at_end)
        cfg, growth = Config(**ckpt["config"]), asked_growth(ckpt, args)
        aside, *scratch = at_end.enter_context(work_files(out, args.dry_run, args.force))
        wider = {} if growth.rows is None else {"vocab_size": len(growth.rows)}
        if not args.dry_run:
            enough_room(cfg, growth.sizes | wider, aside)
        probe = probe_tokens(ckpt, args.text)
        new = make(ckpt, growth, args, scratch, probe[0])
        dlogit = check(ckpt, new, growth, args, probe)
        if args.dry_run:
            print("dry run: nothing written")
            return

        # how it grew, for whoever reads the checkpoint
        step = {
            "sizes": {name: new["config"][name] for name in growth.sizes},  # clone has an ffn_dim of its own
            "vocab": args.vocab or "",
            "init": growth.init,
            "place": args.place,
            "skip": args.skip,
            "ramp": growth.ramp,
            "condense": args.condense or 0,
            "seed": args.seed,
            "parent_sha256": parent_sha256,
            "max_dlogit": dlogit,
            "tokens": ckpt["ledger"]["tokens"],
            "flops": ckpt["ledger"]["flops"],
        }
        with timed("write"), working(f"writing {out}", aside):
            write_checkpoint(aside, new | {"lineage": [*ckpt["lineage"], step]})
        os.replace(aside, out)
    SECONDS["write"] -= SECONDS["draw"]  # slabs are drawn while they are written
    print(f"wrote {out}; " + ", ".join(f"{what} {s:.1f} s" for what, s in SECONDS.items()))
    grown = Config(**new["config"])
    if growth.ended and "n_layer" in growth.sizes and growth.exact and grown.n_fused < len(grown.generations):
        print(f"to train the new and keep the old as it is: {next_command(grown, data_of(ckpt), out)}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"grow.py: {e}")
    except KeyboardInterrupt:
        sys.exit("grow.py: interrupted: nothing written")
