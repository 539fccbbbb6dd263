"""
Grows a checkpoint: a bigger model that computes what the smaller one did, with its optimizer state. Depth
alone is grown by plain copies of the layers (--init stack), which change the function, and learn faster. Of a
finished model, one that was imported or whose rates have decayed, the function is kept, by --init copy.

$ python grow.py --in out/stage0/ckpt.pt --double width          # n_embd, heads and ffn_dim: layers hold 4 x as much
$ python grow.py --in out/stage0/ckpt.pt --params 2x --along width  # the width with the nearest to twice the parameters
$ python grow.py --in out/stage0/ckpt.pt --depth 16 --init copy --place interleave
$ python grow.py --in out/stage0/ckpt.pt --width 768 --heads 8 --explain --dry_run
$ python grow.py --in out/stage2/ckpt.pt --vocab words5000 --params 2x --along depth
$ python grow.py --in out/stage3/ckpt.pt --condense 1 --out out/stage3/condensed.pt
$ python grow.py --in llama.pt --double depth --place interleave --text book.txt  # checked on a text
$ python grow.py --plan config/ --device h200 --count 8           # what a ladder takes: FLOPs, memory, hours

The rule, for every operator: old slabs are untouched, and of each product of two new factors exactly one is zero, so
that the function stays and yet every new parameter gets a gradient.

| growth    | zero at birth                                                        | drawn (--init) at birth
|-----------|----------------------------------------------------------------------|------------------------------------
| width     | what writes the new residual dimensions: wte's, o's, down's columns  | what reads them: q, k, v, gate, up, head
| heads     | the new heads' o                                                     | their q, k, v
| ffn       | the new units' down                                                  | their gate and up
| depth     | the new block's o and down, but for --init stack                     | everything else in it
| vocab     | -                                                                    | the new rows: the mean of the old
| head_dim  | the new pairs of k, the new rows of o                                | the new pairs of q, the new rows of v
New norm gains are 1.

--init clone is another rule, HyperCloning's (arXiv 2409.12903), for widths of an integer factor k: all is tiled k times, and
what reads a tiled input is divided by k, plus noise that cancels in the sum, or AdamW would keep the copies equal for ever.
It rewrites what was learnt: one generation is left, with the schedule of the stage that trains it next.
"""

import argparse
import bisect
import contextlib
import functools
import glob
import hashlib
import itertools
import math
import os
import re
import runpy
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F

from checkpoint import allocate_checkpoint, build_model, load_checkpoint, lock, reason, remove, seal, sha256
from data import Tokenizer, count_bytes, read_meta, read_spelling, read_stage_rows, speller
from model import (
    CHUNK,
    DEVICES,
    SHAPES,
    SIZES,
    Config,
    Generation,
    Llama,
    Plan,
    concatenate,
    ffn_width,
    init_std,
    row_ids,
)

ZERO = {  # (tensor, axis grown): why the new slab is zero
    ("wte", "n_embd"): "writes the new residual dimensions",
    ("o", "n_embd"): "writes the new residual dimensions",
    ("down", "n_embd"): "writes the new residual dimensions",
    ("o", "n_head"): "writes what the new heads read",
    ("o", "head_dim"): "writes what the new dimensions of v hold",
    ("down", "ffn_dim"): "writes what the new units compute",
    ("k", "pairs"): "the new pairs must not change the scores",
}
INITS = ("random", "copy", "eye", "stack", "clone")
SECONDS = dict.fromkeys(("hash", "draw", "write", "check"), 0.0)  # what main() says of its time


@contextlib.contextmanager
def timed(what: str) -> Iterator[None]:
    start = time.time()
    yield
    SECONDS[what] += time.time() - start


TICK = (0.5, 10.0)  # seconds between two lines of progress: on a terminal, and elsewhere
WRITING = {"done": 0, "whole": 0}  # bytes of the file that make() writes; whole: 0 when it writes none


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Say on stderr what is being done, and for how long: a line every 10 s, or on a terminal one line, which
    goes away at the end. A thread of its own says it, so that hashing and matrix products show too."""
    terminal, start, over = sys.stderr.isatty(), time.time(), threading.Event()

    def tick():
        while not over.wait(TICK[0] if terminal else TICK[1]):
            line = f"{what}: {time.time() - start:.0f} s"
            if WRITING["whole"]:
                line += f", {count(WRITING['done'])}B of {count(WRITING['whole'])}B"
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
    """The ffn_dim that goes with n_embd: 8/3 n_embd where cfg has that, else in proportion."""
    return ffn_width(n_embd) if cfg.ffn_dim == ffn_width(cfg.n_embd) else -(-cfg.ffn_dim * n_embd // cfg.n_embd)


def heads_like(cfg: Config, n_head: int) -> dict[str, int]:
    """n_head and the n_kv_head that keeps the group of query heads a kv head."""
    if n_head * cfg.n_kv_head % cfg.n_head:
        raise ValueError(f"{n_head} heads: not a multiple of the group of {cfg.n_head // cfg.n_kv_head} query heads a kv head")
    return {"n_head": n_head, "n_kv_head": n_head * cfg.n_kv_head // cfg.n_head}


def widen(cfg: Config, n_embd: int, n_head: int | None = None) -> dict[str, int]:
    """The sizes at width n_embd: heads (unless given) and ffn_dim grow with it."""
    if not n_head and cfg.n_head * n_embd % cfg.n_embd:
        raise ValueError(f"width {n_embd}: {cfg.n_head} heads can't grow in proportion from {cfg.n_embd}; give --heads")
    heads = heads_like(cfg, n_head or cfg.n_head * n_embd // cfg.n_embd)
    return {"n_embd": n_embd, "ffn_dim": ffn_like(cfg, n_embd)} | heads


def non_embedding(cfg: Config, sizes: dict[str, int]) -> int:
    """Return the parameters beside embedding and head that a model of cfg has at other sizes: count_params'
    'non_embedding', without making a model."""
    new = {name: getattr(cfg, name) for name in ("n_layer", *SIZES)} | sizes
    attention = 2 * new["head_dim"] * (new["n_head"] + new["n_kv_head"])
    a_layer = new["n_embd"] * (attention + 3 * new["ffn_dim"] + 2)  # 2: its norms
    return new["n_layer"] * a_layer + new["n_embd"]


def size_steps(cfg: Config, along: str, multiple: int = 0) -> tuple[range, Callable[[int], dict[str, int]]]:
    """Return the depths or the widths that cfg can grow to, and a function that gives the sizes that go with
    one. Widths go in steps of one kv head; with `multiple`, only multiples of it (of 256, say, for the GPU's
    sake)."""
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


def skeleton(cfg: Config) -> Llama:
    """The model without memory for its parameters."""
    with torch.device("meta"):
        return Llama(cfg)


def grown_config(
    cfg: Config, sizes: dict[str, int], place: str = "top", init: str = "random", birth: int = 0
) -> tuple[Config, list[tuple[int, bool]]]:
    """-> (the grown Config, [(layer of cfg, is it new)] for each layer of it). A new layer's source is the one it
    copies, if it copies. ValueError where the sizes don't fit or the init does not apply."""
    new = {name: getattr(cfg, name) for name in ("n_layer", *SIZES)}
    unknown = sizes.keys() - new.keys()
    if unknown:
        raise ValueError(f"can't grow {unknown.pop()}")
    new |= sizes
    for name, size in new.items():
        if size < getattr(cfg, name):
            raise ValueError(f"{name} {getattr(cfg, name)} -> {size}: a model only grows")
    if all(size == getattr(cfg, name) for name, size in new.items()):
        raise ValueError("nothing grows: these are the sizes it has")
    if new["head_dim"] % cfg.head_dim:
        raise ValueError(f"head_dim {cfg.head_dim} -> {new['head_dim']}: only by integer multiples, so that RoPE stays standard")
    if new["n_head"] * cfg.n_kv_head != new["n_kv_head"] * cfg.n_head:
        raise ValueError(
            f"{new['n_head']} heads and {new['n_kv_head']} kv heads: the group must stay {cfg.n_head // cfg.n_kv_head}"
        )
    extra = new.pop("n_layer") - cfg.n_layer
    wider = any(new[name] != getattr(cfg, name) for name in SIZES if name != "vocab_size")
    if init == "stack" and (wider or not extra):
        raise ValueError("--init stack copies whole layers: it grows depth, and depth alone")
    if init == "eye" and (extra or new["n_embd"] == cfg.n_embd or new["n_head"] == cfg.n_head or new["head_dim"] != cfg.head_dim):
        raise ValueError("--init eye grows n_embd and heads, together, and neither depth nor head_dim")
    if init == "eye" and (new["n_head"] - cfg.n_head) * cfg.head_dim > new["n_embd"] - cfg.n_embd:
        raise ValueError("--init eye needs as many new dimensions of n_embd as the new heads have: more rows would stay zero")
    if place == "interleave" and not extra:
        raise ValueError("--place interleave is for depth, which does not grow")

    if place == "top":
        layers = [(i, False) for i in range(cfg.n_layer)] + [(i % cfg.n_layer, True) for i in range(extra)]
    else:  # spread evenly, each new layer above the one it would copy
        layers = []
        for i in range(cfg.n_layer):
            layers += [(i, False)] + [(i, True)] * ((i + 1) * extra // cfg.n_layer - i * extra // cfg.n_layer)
    copied = init in ("copy", "stack")  # a copied norm was trained with its factor: it keeps it
    grown = (
        vars(cfg)
        | new
        | {
            "n_layer": len(layers),
            "generations": [*cfg.generations, Generation(**new, birth=birth)],
            "layer_birth": [len(cfg.generations) if is_new else cfg.layer_birth[i] for i, is_new in layers],
            "layer_born": [new["n_embd"] if is_new and not copied else cfg.layer_born[i] for i, is_new in layers],
        }
    )
    return Config(**grown), layers


def finished(ckpt: dict) -> str:
    """Return why a checkpoint's model is finished: it was imported, before whatever growths, or its rates
    have decayed. '' if it is not. A growth must keep what a finished model knows: no training at a full rate
    comes to mend it."""
    ledger, schedule, settings = ckpt["ledger"], ckpt.get("schedule"), ckpt.get("settings", {})
    if "from" in ledger or ckpt.get("origin"):
        return f"{ledger.get('from') or ckpt['origin'].get('name', 'the model')} was imported"
    if ckpt.get("branch"):
        return "its rates were decayed, by --branch=decay"
    if not schedule or ledger["tokens"] <= schedule["decay_from"]:
        return ""
    # --init clone forgets a peak; the settings have it
    peaks = [g.learning_rate or settings.get("learning_rate") for g in Config(**ckpt["config"]).generations]
    left = max((rate / peak for rate, peak in zip(schedule["rates"], peaks) if peak), default=1.0)
    return f"its rates have decayed to {left:.0%} of their peaks" if left <= 0.5 else ""


# -----------------------------------------------------------------------------
# the new slabs


@dataclass
class Unmade:
    """A tensor of a grown checkpoint that is yet to be made: fill(out) writes it into zeros and says why it is so."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    fill: Callable[[torch.Tensor], str | None]


def newborn(out: torch.Tensor, kind: str, axis: int | None, before: Callable, cfg: Config, init: str, rng: Callable) -> str:
    """Makes one new slab of `out`, which is zeros -> why it starts so.

    axis: the one it is appended on, or None for the base slab of a new layer; before: a function, since few need it,
    that gives the tensor it is appended to, or that of the layer it may copy; cfg: the grown Config; rng: a function
    that gives the slab's own torch.Generator."""
    if axis is None:
        if init == "stack" or init == "copy" and kind not in ("o", "down"):
            out.copy_(before())
            return "copied"
        if kind in ("o", "down"):
            return "zero: the new block adds nothing yet"
    role = axis is not None and SHAPES[kind][axis]
    if role == "vocab_size":  # the mean bounds the loss's rise by log(new / old rows), by Jensen's inequality
        out.copy_(before().mean(0).expand(out.shape))
        return "mean of the old rows"
    if kind == "norm":
        out.fill_(1.0)
        return "one"
    if init == "eye" and kind in ("q", "k", "v", "o") and role in ("n_head", "n_kv_head"):
        return "zero: the new heads read only the new dimensions"
    if init == "eye" and kind in ("q", "k", "v", "o"):  # n_embd: identity where the new heads meet the new dimensions
        out[cfg.shape(kind, -2)[0] :].view(-1, out.shape[-1]).fill_diagonal_(1.0)
        return "eye for the new heads, else zero"
    if (kind, role) in ZERO:
        return f"zero: {ZERO[kind, role]}"
    if init == "copy" and axis is not None:
        old = before()
        n = old.shape[axis]
        for start in range(0, out.shape[axis], n):
            part = out.narrow(axis, start, min(n, out.shape[axis] - start))
            part.copy_(old.narrow(axis, 0, part.shape[axis]))
        if out.any():
            out.mul_(rms(old) / rms(out))
            return f"copied along {role}, RMS {rms(old):.3g}"
    std = init_std(kind, cfg)
    with timed("draw"):
        out.normal_(0, std, generator=rng())
    return f"N(0, {std:.3g})"


def assembled(weights: dict[str, torch.Tensor], name: str, plan: Plan) -> torch.Tensor:
    """The tensor `name`, or its first slabs if plan is cut, from {slab's name: slab}."""
    return concatenate(plan, [weights[f"{name}.{i}"] for i in range(len(plan))])


def rms(x: torch.Tensor) -> float:
    """The root mean square; row by row, so that nothing of its size is made."""
    return math.sqrt(sum(row.double().square().sum().item() for row in x) / x.numel())


def make(ckpt: dict, path: str = "") -> tuple[dict, list[str]]:
    """Makes what is Unmade in ckpt -> (ckpt, [why each slab is so]), in memory; with a path in a new file there, into which
    the rest is copied, and the checkpoint is that file's. In memory are at most two or three tensors at a time."""
    why = []

    def visit(tree, place, offset):
        for key, x in tree.items() if isinstance(tree, dict) else enumerate(tree):
            if isinstance(x, (dict, list)):
                visit(x, place and place[key], offset and offset[key])
                continue
            if isinstance(x, Unmade):
                tree[key] = torch.zeros(x.shape, dtype=x.dtype)
                why.extend(filter(None, [x.fill(tree[key])]))  # Adam's moments have none
            if path and isinstance(tree[key], torch.Tensor):
                write(f, tree[key], offset[key])
                WRITING["done"] += tree[key].nbytes
                tree[key] = place[key]

    if not path:
        visit(ckpt, None, None)
        return ckpt, why
    made, offsets = allocate_checkpoint(path, ckpt)
    WRITING.update(done=0, whole=os.path.getsize(path))
    with open(path, "r+b", buffering=0) as f:
        visit(ckpt, made, offsets)
    WRITING.update(done=0, whole=0)
    return made, why


def write(f: BinaryIO, x: torch.Tensor, offset: int) -> None:
    """A tensor into an open file. Into a mapping of it would take half as long again: a page fault for every 4 KB."""
    f.seek(offset)
    data = memoryview(x.reshape(-1).view(torch.uint8).numpy())
    while data:  # 2 GB at most go at once
        data = data[f.write(data) :]


def grow(
    ckpt: dict,
    place: str = "top",
    init: str = "random",
    seed: int = 1337,
    copy_state: bool = False,
    rows: np.ndarray | None = None,
    path: str = "",
    **sizes: int,
) -> tuple[dict, list[tuple[str, tuple, str]]]:
    """-> (the grown checkpoint, [(slab's name, its shape, why it starts so)] of the new slabs).

    sizes: any of n_layer, n_head, n_kv_head, n_embd, head_dim, ffn_dim, at their new values. rows: the token ids of all
    rows of a growing vocabulary, the old ones first. Old slabs are those of ckpt, not copies, unless there is a path: a
    file to make it in. Adam's state stays with old slabs; new slabs have none, or with copy_state, where a layer is
    copied, a copy. ValueError where the sizes don't fit."""
    grown, born = planned(ckpt, place, init, seed, copy_state, rows, **sizes)
    grown, reasons = make(grown, path)
    return grown, [(*slab, why) for slab, why in zip(born, reasons)]


def planned(
    ckpt: dict, place: str, init: str, seed: int, copy_state: bool, rows: np.ndarray | None, **sizes: int
) -> tuple[dict, list[tuple[str, tuple]]]:
    """grow's result, new slabs Unmade, and the [(name, shape)] of these."""
    if init == "clone":
        if place != "top" or copy_state or rows is not None:
            raise ValueError("--init clone goes without --place, --copy_state and --vocab: it tiles the model that there is")
        return plan_clone(ckpt, seed, **sizes)
    return plan_growth(ckpt, place, init, seed, copy_state, rows, **sizes)


def plan_growth(
    ckpt: dict, place: str, init: str, seed: int, copy_state: bool, rows: np.ndarray | None, **sizes: int
) -> tuple[dict, list[tuple[str, tuple]]]:
    """planned's result, but for --init clone."""
    old = Config(**ckpt["config"])
    if rows is not None:
        if not old.n_tokens:
            raise ValueError(f"the vocabulary can't grow: the model has all {old.vocab_size} rows")
        if not np.array_equal(rows[: old.vocab_size], row_ids(ckpt["model"].get("row_of"), old.vocab_size)):
            raise ValueError("the new rows do not begin with the model's own: they are of another folder of prepare.py")
        sizes = sizes | {"vocab_size": len(rows)}
    cfg, layers = grown_config(old, sizes, place, init, ckpt["ledger"]["tokens"])
    weights, state, born = ungrown(ckpt), {}, []
    if rows is not None:
        weights["row_of"] = torch.full((old.n_tokens,), -1)
        weights["row_of"][torch.as_tensor(rows)] = torch.arange(len(rows))
    tensors, dtype = skeleton(cfg).growables(), ckpt["model"]["wte.0"].dtype

    def old_layers_first(name):
        return name.startswith("layers.") and layers[int(name.split(".")[1])][1]

    for name in sorted(tensors, key=old_layers_first):
        plan, kind, source, is_new = tensors[name].plan, tensors[name].kind, name, False
        if name.startswith("layers."):
            _, i, rest = name.split(".", 2)
            layer, is_new = layers[int(i)]
            source = f"layers.{layer}.{rest}"  # its name in the old model
            if is_new:  # the layer it may copy, as it is after this growth
                source = f"layers.{layers.index((layer, False))}.{rest}"
        for i, (_, axis, shape) in enumerate(plan):
            slab, from_slab = f"{name}.{i}", f"{source}.{i}"
            if not is_new and from_slab in ckpt["model"]:
                weights[slab] = ckpt["model"][from_slab]
                if from_slab in ckpt["optimizer"]:
                    state[slab] = dict(ckpt["optimizer"][from_slab])
                continue
            whole, source_plan = (source, tensors[source].plan) if is_new else (name, plan[:i])
            before = functools.partial(assembled, weights, whole, source_plan)
            rng = functools.partial(generator, seed, slab)
            fill = functools.partial(newborn, kind=kind, axis=axis, before=before, cfg=cfg, init=init, rng=rng)
            weights[slab] = Unmade(shape, dtype, fill)
            born.append((slab, shape))
            if copy_state and is_new and (init == "stack" or kind not in ("o", "down")):
                state |= fused_state(source, source_plan, slab, state)
    return ckpt | {"config": cfg.plain(), "model": weights, "optimizer": state, "step": 0}, born


def generator(seed: int, slab: str) -> torch.Generator:
    """The slab's own: a draw depends on nothing but seed and name."""
    digest = hashlib.sha256(f"{seed} {slab}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7]))


# For every tensor that reads what is tiled, the axis on which it reads it. The rest (wte, norm) is tiled, not divided.
READS = {"q": 3, "k": 3, "v": 2, "o": 0, "gate": 1, "up": 1, "down": 0, "head": 1}
TILED = ("n_head", "n_kv_head", "n_embd", "ffn_dim")


def plan_clone(ckpt: dict, seed: int, noise: float = 10**-0.5, **sizes: int) -> tuple[dict, list[tuple[str, tuple]]]:
    """planned's result for --init clone. noise: its RMS over that of what it is added to; the default is
    HyperCloning's 10 dB. Adam's moments are tiled, and divided, as the gradients are, by the copies of what a tensor
    writes: its gradients are as many times smaller."""
    old = Config(**ckpt["config"])
    k = sizes.get("n_embd", 0) // old.n_embd
    wanted = {name: k * getattr(old, name) for name in TILED}
    near = sizes | {"ffn_dim": wanted["ffn_dim"]} if sizes.get("ffn_dim") == ffn_like(old, k * old.n_embd) else sizes
    if k < 2 or near != wanted:
        raise ValueError("--init clone multiplies n_embd, heads and ffn_dim by an integer, and nothing else: --double width")

    def times(values):
        return values | {name: k * values[name] for name in TILED}

    generations = [times(vars(g)) for g in old.generations]
    generations[-1] |= {"learning_rate": None, "warmup": 0}  # train.py gives it the next stage's
    born_at = {"layer_born": [k * born for born in old.layer_born], "n_fused": len(generations)}
    cfg = Config(**times(vars(old)) | {"generations": generations} | born_at)
    weights, state, born, dtype = ungrown(ckpt), {}, [], ckpt["model"]["wte.0"].dtype
    for name, tensor in skeleton(old).growables().items():
        slab, kind, shape = f"{name}.0", tensor.kind, cfg.shape(tensor.kind)
        gain_of_tied = old.tied and name == "norm.gain"  # a tied head reads what wte, undivided, has written
        fill = functools.partial(tile, k=k, kind=kind, scale=1 / k if kind in READS or gain_of_tied else 1,
                                 noise=noise * (kind in READS), rng=functools.partial(generator, seed, slab),
                                 before=functools.partial(assembled, ckpt["model"], name, tensor.plan))  # fmt: skip
        weights[slab] = Unmade(shape, dtype, fill)
        born.append((slab, shape))
        writes = 1 if kind == "head" or gain_of_tied else k
        for key, s in fused_state(name, tensor.plan, slab, ckpt["optimizer"]).get(slab, {}).items():
            if isinstance(s, Unmade):
                scale = 1 / writes if key == "exp_avg" else 1 / writes**2
                fill = functools.partial(tile, k=k, kind=kind, scale=scale, before=functools.partial(made, s), why=None)
                s = Unmade(shape, s.dtype, fill)
            state.setdefault(slab, {})[key] = s
    return ckpt | {"config": cfg.plain(), "model": weights, "optimizer": state, "step": 0}, born


def made(x: Unmade) -> torch.Tensor:
    """What is Unmade, made in memory."""
    out = torch.zeros(x.shape, dtype=x.dtype)
    x.fill(out)
    return out


def tile(
    out: torch.Tensor,
    before: Callable[[], torch.Tensor],
    k: int,
    kind: str,
    scale: float,
    noise: float = 0.0,
    rng: Callable[[], torch.Generator] | None = None,
    why: str | None = "tiled",
) -> str | None:
    """Writes scale x before(), tiled k times on every axis that TILED names, into out, which is zeros, plus noise that sums
    to zero over the copies of what the tensor reads -> why."""
    old, tiled = before(), [axis for axis, role in enumerate(SHAPES[kind]) if role in TILED]
    view, w = out, old
    for axis in reversed(tiled):  # view: each tiled axis as (k, its old size); w: as (1, its old size)
        view, w = view.unflatten(axis, (k, -1)), w.unsqueeze(axis)
    if noise:
        with timed("draw"):
            view.normal_(0, noise * scale * rms(old), generator=rng())
        view -= view.mean(READS[kind] + sum(axis < READS[kind] for axis in tiled), keepdim=True)
    view += scale * w
    return why


def ungrown(ckpt: dict) -> dict:
    """What a checkpoint's model holds beside its growable tensors: the map of token ids to rows, if there is one."""
    return {name: w for name, w in ckpt["model"].items() if name == "row_of"}


def fused_state(name: str, plan: Plan, slab: str, state: dict) -> dict[str, dict]:
    """{slab: the Adam state of the tensor `name` as one slab, Unmade}; {} where none of its slabs has one. Slabs without
    count as zeros; the step is the largest."""
    states = [state.get(f"{name}.{j}") for j in range(len(plan))]
    known = [s for s in states if s]
    if not known:
        return {}

    def fill(out, key):
        zeros = known[0][key].new_zeros
        out.copy_(concatenate(plan, [s[key] if s else zeros(shape) for s, (_, _, shape) in zip(states, plan)]))

    shape = concatenate(plan, [torch.empty(shape, device="meta") for _, _, shape in plan]).shape
    moments = {key: Unmade(shape, known[0][key].dtype, functools.partial(fill, key=key)) for key in ("exp_avg", "exp_avg_sq")}
    return {slab: {"step": max(s["step"] for s in known).clone()} | moments}


def condense(ckpt: dict, keep: int, path: str = "") -> tuple[dict, list[str]]:
    """-> (the checkpoint with its oldest generations fused so that `keep` remain, what is not exact about it).

    In memory, or with a path in a new file there. The function stays to the bit. The fused slabs follow the schedule of
    the youngest among them and the largest of their step counts: exact for the next optimizer step where they agree."""
    condensed, notes = plan_condensing(ckpt, keep)
    return make(condensed, path)[0], notes


def plan_condensing(ckpt: dict, keep: int) -> tuple[dict, list[str]]:
    """condense's result, fused slabs Unmade."""
    old = Config(**ckpt["config"])
    n_fused = len(old.generations) - keep + 1
    if keep < 1 or n_fused <= old.n_fused:
        remain = len(old.generations) - old.n_fused + 1
        raise ValueError(
            f"--condense {keep}: {remain} generation{'s' * (remain > 1)} remain; give at least 1 and fewer than that"
        )
    cfg = Config(**vars(old) | {"n_fused": n_fused})
    weights, state, steps = ungrown(ckpt), {}, set()
    old_tensors = skeleton(old).growables()
    for name, tensor in skeleton(cfg).growables().items():
        plan = old_tensors[name].plan
        m = len(plan) - len(tensor.plan) + 1  # slabs that become one
        for i in range(len(plan)):
            if f"{name}.{i}" in ckpt["optimizer"] and i < m > 1:
                steps.add(int(ckpt["optimizer"][f"{name}.{i}"]["step"]))
        weights[f"{name}.0"] = ckpt["model"][f"{name}.0"]
        if m > 1:
            fill = functools.partial(fuse, weights=ckpt["model"], name=name, plan=plan[:m])
            weights[f"{name}.0"] = Unmade(tensor.plan[0][2], weights[f"{name}.0"].dtype, fill)
        state |= fused_state(name, plan[:m], f"{name}.0", ckpt["optimizer"])
        for i in range(m, len(plan)):
            weights[f"{name}.{i - m + 1}"] = ckpt["model"][f"{name}.{i}"]
            if f"{name}.{i}" in ckpt["optimizer"]:
                state[f"{name}.{i - m + 1}"] = dict(ckpt["optimizer"][f"{name}.{i}"])
    notes = []
    fused = cfg.generations[old.n_fused - 1 : n_fused]
    if not fused[-1].learning_rate and any(g.learning_rate for g in fused):
        newborn = f"generation {n_fused - 1} was never trained"
        notes.append(f"{newborn}, and what is fused with it follows its schedule, as if all were new")
    elif len({(g.learning_rate, g.warmup, g.warm_start if g.warmup else 0) for g in fused}) > 1:
        notes.append(f"the fused generations had schedules of their own: all follow generation {n_fused - 1}'s from now on")
    if len(steps) > 1:
        notes.append(f"their Adam step counts differ ({min(steps)} to {max(steps)}): the largest is kept, which shifts the bias"
                     " corrections (by nothing, at beta2 = 0.95, after about 700 steps)")  # fmt: skip
    return ckpt | {"config": cfg.plain(), "model": weights, "optimizer": state}, notes


def fuse(out: torch.Tensor, weights: dict[str, torch.Tensor], name: str, plan: Plan) -> None:
    out.copy_(assembled(weights, name, plan))


# -----------------------------------------------------------------------------
# the check and what is printed


def data_of(ckpt: dict) -> str:
    """The folder that the checkpoint was trained on, '' for none."""
    return ckpt.get("settings", {}).get("data", "")


def probe_tokens(ckpt: dict, text: str = "", count: int = 2, longest: int = 128) -> tuple:
    """Return (token ids to compare models on, (windows, T + 1); what they are; the bytes of text that they
    stand for, each window's first left out, or 0 where that is not known). They are of the text file; without
    one, of validation text, where the checkpoint's data is still there; else random. Tokens without a row are
    spelled."""
    if text:
        tokens, n_bytes = text_tokens(ckpt, text)
        return tokens, f"tokens of {text}", n_bytes
    cfg = Config(**ckpt["config"])
    n, ids = count * (min(cfg.block_size, longest) + 1), row_ids(ckpt["model"].get("row_of"), cfg.vocab_size)
    data = data_of(ckpt)
    if os.path.isfile(f"{data}/val.bin") and os.path.isfile(f"{data}/meta.json"):
        meta = read_meta(data)
        tokens = np.fromfile(f"{data}/val.bin", meta["dtype"], n)
        if meta["tokenizer"]["sha256"] == ckpt["tokenizer"]["sha256"] and len(tokens) == n:
            tokens = speller(ids, meta["vocab_size"], lambda: read_spelling(data))(tokens)[:n]
            return torch.from_numpy(tokens.astype(np.int64)).view(count, -1), f"tokens of {data}/val.bin", 0
    picked = torch.randint(cfg.vocab_size, (count, n // count), generator=torch.Generator().manual_seed(0))
    return ids[picked], "random tokens", 0


def text_tokens(ckpt: dict, path: str, longest: int = 512) -> tuple[torch.Tensor, int]:
    """Return (the first `longest` tokens or so of a text file, a bos first, (windows, T + 1), where each
    window begins with the last token of the one before; the bytes they stand for, each window's first left
    out). Tokens without a row are spelled. Raise ValueError where the file holds no text, or the checkpoint
    no tokenizer."""
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


def compare(a: dict, b: dict, tokens: torch.Tensor) -> tuple[float, float, float]:
    """Two checkpoints on the same tokens -> (max |dlogit| of the tokens that a has, losses of a and b in nats a token).
    Of their weights, one tensor at a time is in memory."""
    dlogit, _, *losses = differences(a, b, tokens)
    return dlogit, *losses


@torch.no_grad()
def differences(a: dict, b: dict, tokens: torch.Tensor, n: int = 64) -> tuple[float, float, float, float]:
    """Return (max |dlogit|, the largest |logit| of a, the two losses), as compare. Logits exist for n tokens
    at a time."""
    models, T = [build_model(c, assign=True) for c in (a, b)], tokens.size(1) - 1
    # of each (what the head multiplies, (windows, T, C); the head, (vocab_size, C))
    hidden = [model.trunk(tokens[:, :-1], model.cos[:T], model.sin[:T]) for model in models]
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
    """{slab: share of its elements that two AdamW updates have moved or the backward after them would}. Of wte only
    the rows of tokens read count, if there are any. Weight decay off: it moves the dead as well."""
    model = build_model(ckpt)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if name in slabs}
    optimizer = model.optimizer(weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    for update in range(3):
        model.zero_grad()
        model(tokens[:, :-1], tokens[:, 1:]).backward()
        if update < 2:
            optimizer.step()
    params, share, top = dict(model.named_parameters()), {}, 0
    read = torch.zeros(model.cfg.vocab_size, dtype=torch.bool)
    read[model.rows(tokens[:, :-1])] = True
    rows = {}  # of each slab of wte, those that were read
    for i, (_, axis, shape) in enumerate(model.wte.plan):
        rows[f"wte.{i}"] = read[:top] if axis == 1 else read[top : top + shape[0]]
        top += shape[0] * (axis != 1)
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
    """The table before and after, as lines. What is Unmade counts as made."""
    configs = [Config(**ckpt["config"]) for ckpt in ckpts]
    counts, columns = [skeleton(cfg).count_params() for cfg in configs], []
    generations = sorted({g for n in counts for g in n["generations"]})
    for ckpt, cfg, n in zip(ckpts, configs, counts):
        tensors = [t for s in ckpt["optimizer"].values() for t in s.values()] + list(ckpt["model"].values())
        columns.append({
            "n_layer x n_embd": f"{cfg.n_layer} x {cfg.n_embd}",
            "heads x head_dim": f"{cfg.n_head} x {cfg.head_dim}" + f", {cfg.n_kv_head} kv" * (cfg.n_kv_head < cfg.n_head),
            "ffn_dim": str(cfg.ffn_dim),
            "rows": f"{cfg.vocab_size}" + (f" of {cfg.n_tokens}" if cfg.n_tokens else ""),
            "parameters": f"{n['total']:,}",
            "  non-embedding": f"{n['non_embedding']:,}",
            **{f"  generation {g}": f"{n['generations'].get(g, 0):,}" for g in generations},
            "FLOPs a token": count(cfg.flops_per_token()),
            "checkpoint": count(sum(math.prod(t.shape) * t.dtype.itemsize for t in tensors)) + "B",
        })  # fmt: skip
    return [f"{key:<18}" + "".join(f"{column[key]:>18}" for column in columns) for key in columns[0]]


# -----------------------------------------------------------------------------
# what a ladder takes


def memory(cfg: Config, tokens: int, count: int, sharded: bool, recompute: bool) -> float:
    """Bytes a device: parameters, gradients and two moments in fp32, weights cast to bf16, and the activations of `tokens`
    tokens a forward without torch.compile, which keeps less. tokens: of one device.

    The activations are what autograd saves under bf16 autocast (test_plan counts them); of the chunked loss, a chunk."""
    n = skeleton(cfg).count_params()
    layer = (n["non_embedding"] - cfg.n_embd) // cfg.n_layer
    unit = max(layer, n["total"] - n["non_embedding"])  # what FSDP gathers at a time
    a_layer = tokens * (26 * cfg.n_embd + 10 * cfg.n_head * cfg.head_dim + 8 * cfg.ffn_dim)
    activations = a_layer + tokens * 4 * cfg.n_embd * cfg.n_layer if recompute else a_layer * cfg.n_layer
    loss = 10 * CHUNK + 4 * cfg.vocab_size * cfg.n_embd  # logits, their gradient; the head's
    # sharded: two units of bf16 weights, this and the next, and the gradients of one before they are scattered
    weights = 16 * n["total"] / count + (2 * 2 + 4) * unit if sharded else 18 * n["total"]
    return weights + activations + loss


def read_stage(path: str) -> tuple[dict, Config]:
    """Return the settings in a stage's config file, and its Config. Raise a ValueError that names the file
    where it is broken, or lacks something that plan() needs."""
    try:
        s = runpy.run_path(path)
    except Exception as e:
        raise ValueError(f"{path}: {type(e).__name__}: {reason(e)}") from None
    needed = "max_steps tokens_per_step batch_size block_size learning_rate n_layer vocab_size".split()
    missing = [name for name in needed if name not in s]
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing")
    kinds = {f.name: f.type for f in fields(Config) if f.type in (int, float)}
    kinds |= dict.fromkeys(needed[:3], int) | {"learning_rate": float}
    for name in kinds.keys() & s.keys():
        kind, x = kinds[name], s[name]
        if type(x) not in (int, float) or not 0 <= x < math.inf or kind(x) != x or name in needed and not x:
            expected = "a whole number" if kind is int else "a number"
            above = " above 0" if name in needed else ""
            raise ValueError(f"{path}: {name} = {x!r}, expected {expected}{above}")
        s[name] = kind(x)  # 1e6 for an int
    try:
        return s, Config(**{f.name: s[f.name] for f in fields(Config) if f.name in s})
    except (TypeError, ValueError) as e:
        raise ValueError(f"{path}: {reason(e)}") from None


def plan(folder: str, device: str, n_devices: int, mfu: float) -> None:
    """Prints what the stages of a folder of configs take, one after another, on `n_devices` devices."""
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu {mfu}: a share of the peak, above 0 and at most 1")
    names = {name.lower(): name for name in DEVICES}
    if device.lower() not in names:
        raise ValueError(f"--device {device}: one of {', '.join(names)}")
    peak, room = DEVICES[names[device.lower()]]
    paths = sorted(
        glob.glob(f"{folder}/stage*.py"), key=lambda path: [int(n) for n in re.findall(r"\d+", os.path.basename(path))]
    )
    if not paths:
        raise ValueError(f"{folder}: no stage*.py in it")
    print(f"{n_devices} x {names[device.lower()]} of {room / 1e9:.0f} GB at {mfu:.0%} MFU. GB a device; *: recomputing")
    print("grown: at this share of the FLOPs up to the stage's end; 10 to 25 % did best so far (runs/results)")
    heads = "stage,layers x width,parameters,tokens,rate,FLOPs,grown,GB,*,sharded,*,hours"
    print(("{:<8}{:>14}{:>16}" + "{:>9}" * 9).format(*heads.split(",")))
    tokens = flops = 0
    for path in paths:
        s, cfg = read_stage(path)
        n = s["max_steps"] * s["tokens_per_step"]
        this = n * cfg.flops_per_token()
        tokens, flops = tokens + n, flops + this
        forward = min(s["batch_size"] * s["block_size"], s["tokens_per_step"] // n_devices)
        gb = [memory(cfg, forward, n_devices, *how) / 1e9 for how in itertools.product((False, True), repeat=2)]
        name, shape, hours = os.path.basename(path)[:-3], f"{cfg.n_layer} x {cfg.n_embd}", this / (n_devices * peak * mfu) / 3600
        print(f"{name:<8}{shape:>14}{skeleton(cfg).count_params()['total']:>16,}{count(n):>9}{s['learning_rate']:>9.1e}"
              f"{this:>9.2e}{1 - this / flops:>9.0%}" + "".join(f"{g:>9.0f}" for g in gb) + f"{hours:>9.1f}")  # fmt: skip
    scratch, speed = tokens * cfg.flops_per_token(), n_devices * peak * mfu * 3600
    print(f"all: {count(tokens)} tokens, {flops:.2e} FLOPs, {flops / speed:,.1f} hours")
    print(
        f"the last stage from scratch on as many: {scratch:.2e} FLOPs, {scratch / speed:,.1f} hours, {scratch / flops:.2f} times"
    )


# -----------------------------------------------------------------------------


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description="Grow a checkpoint: a bigger model that computes what the smaller one did.")
    p.add_argument("--in", dest="input", metavar="CKPT", help="the checkpoint to grow; never overwritten")
    p.add_argument("--out", metavar="CKPT", help="where to write (default: grown.pt beside the input)")
    p.add_argument("--double", choices=("width", "depth", "ffn", "head_dim"), help="width: n_embd, heads and ffn_dim")
    p.add_argument("--params", metavar="N", help="non-embedding parameters to come near to: 2x, 1.5x, 110e6; with --along")
    p.add_argument("--along", choices=("width", "depth"))
    p.add_argument("--multiple", type=int, default=0, help="with --params: widths are multiples of this (default: one kv head)")
    p.add_argument("--width", type=int, help="n_embd; heads and ffn_dim go with it unless given")
    p.add_argument("--depth", type=int, help="n_layer")
    p.add_argument("--heads", type=int, help="n_head; n_kv_head goes with it")
    p.add_argument("--ffn", type=int, help="ffn_dim")
    p.add_argument("--head_dim", type=int, help="an integer multiple of the old one")
    p.add_argument("--vocab", metavar="STAGE", help="rows for the tokens of a stage of prepare.py --words (words5000, all)")
    p.add_argument("--init", choices=INITS, help="how the new starts (default: random; for depth alone "
                   "stack, not exact, or copy if the model is finished: imported, or decayed)")  # fmt: skip
    p.add_argument("--place", choices=("top", "interleave"), default="top", help="where new layers go (default: top)")
    p.add_argument("--copy_state", action="store_true", help="copied layers copy Adam's state too")
    p.add_argument("--fresh_optimizer", action="store_true", help="drop Adam's state")
    p.add_argument("--condense", type=int, metavar="K", help="fuse the oldest generations so that K remain, after the growth")
    p.add_argument("--seed", type=int, default=1337)
    p.add_argument("--text", metavar="FILE", help="check on the first 512 tokens of a text file (default: on "
                   "validation text of the checkpoint's data, or on random tokens)")  # fmt: skip
    p.add_argument("--tolerance", type=float, default=3e-5, help="of a growth that keeps the function: the "
                   "largest |dlogit| may be this times the largest |logit| before, or times 1 where that is "
                   "below 1 (default: 3e-5; rounding gives up to 8e-6)")  # fmt: skip
    p.add_argument("--explain", action="store_true", help="list every new slab, and whether it is alive")
    p.add_argument("--dry_run", action="store_true", help="write nothing but a temporary file in $TMPDIR")
    p.add_argument("--force", action="store_true", help="overwrite an existing output")
    p.add_argument("--plan", metavar="FOLDER", help="print what the ladder of a folder's stage*.py takes, and nothing else")
    p.add_argument("--device", default="h100", help="for --plan (default: h100)")
    p.add_argument("--count", type=int, default=8, help="for --plan: devices (default: 8)")
    p.add_argument("--mfu", type=float, default=0.4, help="for --plan: share of the peak FLOP/s that is reached (default: 0.4)")
    args = p.parse_args(argv)
    if bool(args.input) == bool(args.plan):
        p.error("give --in CKPT, or --plan FOLDER")
    for name in ("width", "depth", "heads", "ffn", "head_dim", "condense", "count"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} {getattr(args, name)}: at least 1")
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


def is_sharded(folder: str) -> bool:
    """Return whether a folder is a checkpoint, as sharded training writes them."""
    return os.path.exists(f"{folder}/.metadata") and os.path.exists(f"{folder}/rest.pt")


def asked_sizes(cfg: Config, args: argparse.Namespace) -> dict[str, int]:
    """The sizes that the command line asks for, {} if none."""
    explicit = any((args.width, args.depth, args.heads, args.ffn, args.head_dim))
    if bool(args.double) + bool(args.params) + explicit > 1:
        raise ValueError("give one of --double, --params, or explicit sizes")
    if bool(args.params) != bool(args.along):
        raise ValueError("--params and --along width|depth go together")
    if args.double:
        return {
            "width": lambda: widen(cfg, 2 * cfg.n_embd),
            "depth": lambda: {"n_layer": 2 * cfg.n_layer},
            "ffn": lambda: {"ffn_dim": 2 * cfg.ffn_dim},
            "head_dim": lambda: {"head_dim": 2 * cfg.head_dim},
        }[args.double]()
    if args.params:
        return nearest_size(cfg, asked_params(cfg, args.params), args.along, args.multiple)
    sizes = widen(cfg, args.width, args.heads) if args.width else {}
    if args.heads:
        sizes |= heads_like(cfg, args.heads)
    given = {"n_layer": args.depth, "ffn_dim": args.ffn, "head_dim": args.head_dim}
    return sizes | {name: size for name, size in given.items() if size}


def enough_room(cfg: Config, sizes: dict[str, int], path: str) -> None:
    """Raise OSError where not even the parameters of cfg at other sizes have room at path: at once, before a
    model of that size is planned."""
    new = {name: getattr(cfg, name) for name in SIZES} | sizes
    n_bytes = 4 * (non_embedding(cfg, sizes) + new["vocab_size"] * new["n_embd"] * (1 if cfg.tied else 2))
    free = shutil.disk_usage(os.path.dirname(path) or ".").free
    if n_bytes > free:
        needed = f"{count(n_bytes)}B of parameters, and {count(free)}B are free"
        raise OSError(f"{path}: can't be written: {needed} on that disk")


@contextlib.contextmanager
def work_files(out: str, dry_run: bool, force: bool) -> Iterator[list[str]]:
    """Give the names of two files to work in, which are gone at the end. They are beside out, the first of
    them locked; for a dry run, in $TMPDIR."""
    if dry_run:
        with tempfile.TemporaryDirectory(prefix="grow-") as folder:
            yield [f"{folder}/grown.pt", f"{folder}/condensed.pt"]
        return
    files = [f"{out}.tmp", f"{out}.tmp2"]
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
    return f"python train.py --data={data or 'DATA'} --init_from={out} --out_dir={folder} --freeze=[{old}]"


def main() -> None:
    args = parse_args()
    if args.plan:
        return plan(args.plan, args.device, args.count, args.mfu)
    source, out = file_names(args.input, args.out)
    with contextlib.ExitStack() as at_end:
        loaded = source
        if args.dry_run and os.path.isdir(source) and not os.path.exists(f"{source}/whole.pt"):
            loaded = at_end.enter_context(tempfile.TemporaryDirectory(prefix="grow-"))  # for its whole.pt
            for name in os.listdir(source):
                os.symlink(os.path.abspath(f"{source}/{name}"), f"{loaded}/{name}")
        with working(f"reading {source}"):
            ckpt = load_checkpoint(loaded)
        whole = f"{loaded}/whole.pt" if os.path.isdir(loaded) else loaded
        with timed("hash"), working(f"hashing {source}"):
            parent_sha256 = sha256(whole)
        grow_file(ckpt, parent_sha256, out, args)


def grow_file(ckpt: dict, parent_sha256: str, out: str, args: argparse.Namespace) -> None:
    """Grow a checkpoint as the command line asks, check it, and write it to `out`."""
    # --- what is asked for
    cfg = Config(**ckpt["config"])
    sizes = asked_sizes(cfg, args)
    if args.vocab and not cfg.n_tokens:
        raise ValueError(f"--vocab {args.vocab}: the model has all {cfg.vocab_size} rows: leave --vocab out")
    rows = read_stage_rows(data_of(ckpt), args.vocab, f"--vocab {args.vocab}") if args.vocab else None
    grows = bool(sizes) or rows is not None
    if not grows and not args.condense and not args.fresh_optimizer:
        raise ValueError("nothing to do: give --double, --params with --along, sizes, --vocab, or --condense")
    if not sizes and (args.init or args.place != "top" or args.copy_state):
        raise ValueError("--init, --place and --copy_state are for a growth, and nothing grows")

    # at equal FLOPs, of one seed, plain copies ended at 1.841 bits per byte; what keeps the function, at
    # 1.849 (copies) and 1.861 (random layers); from scratch, at the best rate, 1.852: runs/results/best_size
    deeper, why = sizes.keys() == {"n_layer"}, finished(ckpt)
    init = args.init or ("random" if not deeper else "copy" if why else "stack")
    if args.copy_state and (init not in ("copy", "stack") or "n_layer" not in sizes):
        raise ValueError("--copy_state is for copied layers: --init copy or stack, with depth")
    if deeper and why and not args.init:
        print(f"{why}: --init copy keeps its function; --init stack would not")
    if args.params:
        print(chosen(cfg, args))

    with work_files(out, args.dry_run, args.force) as files:
        enough_room(cfg, sizes | ({} if rows is None else {"vocab_size": len(rows)}), files[0])
        tokens, what, n_bytes = probe_tokens(ckpt, args.text)

        # --- what is to be made
        step = {"sizes": sizes, "vocab": args.vocab or "", "init": init, "place": args.place}
        step |= {"condense": args.condense or 0, "seed": args.seed, "parent_sha256": parent_sha256}
        step |= {k: ckpt["ledger"][k] for k in ("tokens", "flops")}
        step["max_dlogit"] = torch.zeros((), dtype=torch.float64)  # a tensor: it is put in when it is known
        new, born, reasons = ckpt | {"lineage": [*ckpt["lineage"], step]}, [], []
        new |= {"optimizer": {}} if args.fresh_optimizer else {}
        if grows:
            new, born = planned(new, args.place, init, args.seed, args.copy_state, rows, **sizes)
        last, notes = plan_condensing(new, args.condense) if args.condense else (new, [])
        print("\n".join(size_table(ckpt, last)))
        grown_cfg = Config(**last["config"])
        if not_stock(grown_cfg):
            print(f"warning: export.py will not make a stock Llama of it: {not_stock(grown_cfg)}")

        # --- making it; a dry run has no use for Adam's state
        unused = {"optimizer": {}} if args.dry_run else {}
        if grows or not args.condense:
            with timed("write"), working(f"writing {files[0]}"):
                new, reasons = make(new | unused, files[0])
        if args.explain and born:
            with working("looking for dead parameters"):
                share = alive(new, tokens, {slab for slab, _ in born})
            for (slab, shape), reason_why in zip(born, reasons):
                print(f"{slab:<24} {str(list(shape)):<22} {share[slab]:>4.0%} alive  {reason_why}")
        if args.condense:
            with timed("write"), working(f"writing {files[1]}"):
                new, _ = condense(new | unused, args.condense, path=files[1])

        # --- the check
        with timed("check"), working("checking"):
            dlogit, largest, *losses = differences(ckpt, new, tokens)
        loss = f"loss {losses[0]:.4f} -> {losses[1]:.4f}"
        print(f"check on {tokens.numel()} {what}: max |dlogit| {dlogit:.1e}, {loss}")
        if n_bytes:
            bpb = [loss * tokens[:, 1:].numel() / n_bytes / math.log(2) for loss in losses]
            print(f"bits per byte of {args.text}: {bpb[0]:.4f} -> {bpb[1]:.4f}")
        if what == "random tokens":
            print("random tokens tell of exactness only: --text FILE checks on text")
        if not math.isfinite(largest):
            raise ValueError(f"{args.input}: not a model: its logits are not finite: nothing written")
        if rows is not None and init != "stack":
            bound, rise = math.log(len(rows) / cfg.vocab_size), losses[1] - losses[0]
            print(f"{len(rows)} rows: the loss may rise by {bound:.4f} at most, and rises by {rise:.4f}")
        for note in notes:
            print(f"note: {note}")
        allowed = args.tolerance * max(1.0, largest)
        if not dlogit <= allowed:
            if init != "stack":
                of = f"{allowed:.1e}, {args.tolerance:g} x {max(1.0, largest):.3g}"
                raise ValueError(f"max |dlogit| {dlogit:.1e} is above the tolerance of {of}: nothing written")
            print("plain copies of layers (--init stack) do not keep the function; --init random and --init copy do")
        if args.dry_run:
            return print("dry run: nothing written")

        # --- the file
        new["lineage"][-1]["max_dlogit"].fill_(dlogit)
        written = files[1] if args.condense else files[0]
        with timed("write"), working(f"writing {out}"), open(written, "r+b") as f:
            os.fsync(f.fileno())
        with timed("hash"), working(f"writing {out}"):
            seal(written)
        os.replace(written, out)
        SECONDS["write"] -= SECONDS["draw"]
        print(f"wrote {out}; " + ", ".join(f"{what} {s:.1f} s" for what, s in SECONDS.items()))
        if why and "n_layer" in sizes and init != "stack" and grown_cfg.n_fused < len(grown_cfg.generations):
            command = next_command(grown_cfg, data_of(ckpt), out)
            print(f"to train the new and keep the old as it is: {command}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"grow.py: {e}")
    except KeyboardInterrupt:
        sys.exit("grow.py: interrupted: nothing written")
