"""
Train one stage: from scratch, from a grown checkpoint, or on from where it stopped.

$ python train.py config/tiny0.py                                   # one process
$ torchrun --nproc_per_node=8 train.py config/stage0.py             # eight GPUs
$ python train.py config/tiny0.py --max_steps=500 --seed=2          # any setting below, in a file or here
$ python train.py config/tiny0.py --resume                          # go on after a stop
$ python train.py config/tiny0.py --branch=decay                    # decay a copy to zero; the trunk stays
$ torchrun --nproc_per_node=8 --max-restarts=9 train.py config/stage8.py --shard    # too big for one GPU
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import gc
import json
import math
import os
import re
import resource
import runpy
import shutil
import signal
import sys
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from checkpoint import load_checkpoint, load_state, lock, optimizer_state, save_checkpoint
from data import (
    MODEL_FILES,
    PAGE,
    Mixture,
    Shard,
    Tokenizer,
    count_bytes,
    file_sha256,
    one_line,
    read_meta,
    read_spelling,
    read_stage_rows,
    read_token_bytes,
    shares_of,
    speller,
    spread,
)
from model import Config, Generation, Llama, is_shard, skeleton, this_device

# -----------------------------------------------------------------------------
# settings: their names, defaults and, by the defaults, their types
out_dir = "out"
init_from = ""  # a checkpoint to start a stage from: one that grow.py wrote, or any other
resume = False  # go on from out_dir/ckpt.pt
branch = ""  # 'decay': decay a copy of out_dir's run, or of an init_from not its own, in out_dir-decay
branch_tokens = 0  # length of the branch; 0: a tenth of the tokens read so far
stop_at = 0  # save and exit after so many steps, as on SIGTERM; 0: never
# data
data = "data/babel"  # a folder that prepare.py wrote
check_data = True  # verify the sha256 of the training files when a run starts (1 s/GB); not on --resume
data_mix = "natural"  # all stages of text, by their tokens; or {stage: share}; or one stage, with review
review = 0.2  # where data_mix names a stage: the share of those before it, so that nothing is forgotten
rows = ""  # from scratch: the stage whose tokens get rows, '': all tokens. grow.py --vocab adds more
tokens_per_step = 65536  # over all processes; accumulation is derived from it
batch_size = 16  # sequences that a process takes in one forward, at most
max_steps = 1000  # of this stage
seed = 1337  # of the initial weights and of the order of the data
# model, at a start from scratch; with init_from the checkpoint's sizes hold, and what is given must agree
n_layer = 8
n_head = 4
n_kv_head = 0  # 0: n_head
n_embd = 512
head_dim = 128
ffn_dim = 0  # 0: 8/3 n_embd, rounded up to a multiple of 128
vocab_size = 0  # 0: the tokenizer's
block_size = 1024  # tokens a sequence; may change from stage to stage
rope_theta = 10000.0
norm_eps = 1e-5
tied = False
# optimizer
learning_rate = 1e-3  # peak of the youngest generation; older ones keep theirs, but never above it
weight_decay = 0.1  # of matrices
beta1 = 0.9
beta2 = 0.95
adam_eps = 1e-8
grad_clip = 1.0  # 0: off
freeze = []  # generations that are not trained
# schedule, in tokens
schedule = "wsd"  # warmup-stable-decay, or 'cosine'
warmup_tokens = 0  # in which new rates, and decayed ones, climb; 0: 100 steps, at most a tenth of the stage
horizon_tokens = 0  # on the ledger, where all rates end: the ladder's last token. 0: with this stage
decay_share = 0.2  # wsd: the last part of the way to the horizon, in which all rates fall
floor = 0.0  # the share of the peak at which the rates end
policy = "own"  # 'own': a peak for each generation; 'shared': one for all, as good so far. See peaks()
new_rate = 1.3  # shared: the youngest generation's rate, as a multiple of the others'
# evaluation, logging, saving
eval_interval = 250  # steps; 0: at the end only
eval_tokens = 262144  # of a validation shard, spread evenly over it
eval_stages = True  # in a folder with stages: on the text of each, too
sample_tokens = 64  # written at an evaluation, after the first 16 of the validation text; 0: none
log_interval = 10  # steps; 0: at the end only
save_interval = 1000  # steps; 0: at the end only
wandb = False
wandb_project = "babel"
wandb_name = ""  # default: out_dir
# system
device = ""  # default: cuda, then mps, then cpu
dtype = ""  # of products and activations, by autocast: 'bfloat16', the default on cuda, or 'float32'
shard = False  # parameters, gradients and Adam's state over all processes (FSDP2); checkpoints are folders
recompute = False  # keep no activations inside blocks for the backward pass: less memory, a third more FLOPs
compile = True

SETTING = (bool, int, float, str, list)
DEFAULTS = {k: v for k, v in globals().items() if k[0] != "_" and k.islower() and type(v) in SETTING}
KINDS = {"data_mix": (str, dict)}  # settings of more than one type
CHOICES = {
    "branch": ("", "decay"),
    "schedule": ("wsd", "cosine"),
    "policy": ("own", "shared"),
    "device": ("", "cuda", "mps", "cpu"),
    "dtype": ("", "float32", "bfloat16"),
}
ABOVE_ZERO = """tokens_per_step batch_size max_steps n_layer n_head n_embd head_dim block_size rope_theta
    norm_eps learning_rate adam_eps new_rate eval_tokens""".split()
BOUNDS = dict.fromkeys(ABOVE_ZERO, ("above 0", lambda x: x > 0))  # of numbers; all others are 0 or more
BOUNDS |= dict.fromkeys(("beta1", "beta2"), ("0 or more, and below 1", lambda x: 0 <= x < 1))
BOUNDS |= dict.fromkeys(
    ("review", "decay_share", "floor"), ("0 or more, and at most 1", lambda x: 0 <= x <= 1)
)


def check_setting(key: str, value: object, where: str) -> object:
    """Return the value of a setting, in the setting's type. Raise ValueError if it can't be one.

    where: the place it was given in, which begins the message."""
    if key not in DEFAULTS:
        near = difflib.get_close_matches(key, DEFAULTS, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{where}: no setting is called {key}{hint}")
    kind = type(DEFAULTS[key])
    if {kind, type(value)} == {int, float} and math.isfinite(value) and value == kind(value):
        value = kind(value)  # 1e6 for an int, 1 for a float
    if type(value) not in KINDS.get(key, (kind,)):
        raise ValueError(f"{where}: {key} = {value!r} is {type(value).__name__}, expected {kind.__name__}")
    if value not in CHOICES.get(key, (value,)):
        raise ValueError(f"{where}: {key} = {value!r}, expected one of {CHOICES[key]}")
    if kind is list and not all(type(item) is int for item in value):
        raise ValueError(f"{where}: {key} = {value!r}, expected whole numbers")
    if kind in (int, float):
        expected, holds = BOUNDS.get(key, ("0 or more", lambda x: x >= 0))
        if not (holds(value) and math.isfinite(value)):
            raise ValueError(f"{where}: {key} = {value}, expected {expected}")
    return value


def read_config(path: str) -> dict:
    """Return {setting: value} of a config file. Where it names the config of the stage before as _after, that
    one's settings hold unless it gives others. Raise ValueError where a file can't be read."""
    if not os.path.isfile(path):
        raise ValueError(f"{path}: no such config file")
    try:
        values = runpy.run_path(path)
    except Exception as e:
        raise ValueError(f"{path}: {type(e).__name__}: {e}") from None
    given = {}
    if "_after" in values:
        given = read_config(os.path.join(os.path.dirname(path), str(values["_after"])))
    for key, value in values.items():
        if key[0] != "_" and not isinstance(value, ModuleType):  # imports and _names are the file's own
            given[key] = check_setting(key, value, path)
    return given


def configure(args: list[str]) -> dict:
    """Read command-line arguments, which are config files and --key=value. Return {setting: value} of those
    that they give; the later wins. Raise a ValueError that names the bad one."""
    given, args = {}, list(args)
    while args:
        arg = args.pop(0)
        if not arg.startswith("--"):
            given |= read_config(arg)
            continue
        key, equals, text = arg[2:].partition("=")
        kind = type(DEFAULTS.get(key))
        if not equals and kind is bool:  # --resume
            text = "True"
        elif not equals and args:  # --branch decay
            text = args.pop(0)
        elif not equals and kind is str:
            raise ValueError(f"--{key}: its value is missing")
        value = text
        if kind is not str or text.startswith("{"):  # data_mix may be a dict
            with contextlib.suppress(ValueError, TypeError, SyntaxError):
                value = ast.literal_eval(text)
        given[key] = check_setting(key, value, f"--{key}")
    return given


def shape_of(settings: dict) -> dict:
    """Return {field of Config: value} of those settings that are sizes of the model."""
    return {f.name: settings[f.name] for f in dataclasses.fields(Config) if f.name in settings}


# -----------------------------------------------------------------------------
# learning rates


@dataclass
class Clock:
    """When the rates of all generations fall, in tokens on the ledger. At the horizon they are floor x peak.

    With shape 'wsd' they fall from decay_from on. With 'cosine' each generation falls from the end of a
    warmup on, which counts from its birth or from the clock's start, whichever is later."""

    start: int
    decay_from: int
    horizon: int
    shape: str = "wsd"
    floor: float = 0.0


def stage_clock(
    was: Clock | None, now: int, end: int, told: int, shape: str, floor: float, share: float
) -> Clock:
    """Return the clock of a stage that stands at `now` and ends at `end` tokens.

    was: the stage's clock, if it is resumed. told: where the whole ladder ends, or 0. If told, all stages are
    on one clock, from token 0 to there; else a stage has one of its own. share: the last part of the way to
    the horizon, in which the rates fall."""
    start, horizon = now, told or end
    if was:
        start = was.start
    elif told:
        start = 0
    decay_from = round(horizon - share * (horizon - start))

    # if it became shorter, fall from where the rates are by now, and don't jump
    if was and was.shape == shape == "wsd" and decay_from < now < horizon:
        left = fall(was, 0, now)
        if left > floor:
            decay_from = max(decay_from, round(horizon - (horizon - now) * (1 - floor) / (left - floor)))
    return Clock(start, decay_from, horizon, shape, floor)


def warmed(g: Generation, tokens: float) -> float:
    """Return the share of its peak that a generation is warmed up to at `tokens` on the ledger."""
    if tokens >= g.warm_end:
        return 1.0
    return g.warm_share + (1 - g.warm_share) * max(0.0, tokens - g.warm_start) / max(1, g.warmup)


def fall(clock: Clock, begin: float, tokens: float) -> float:
    """Return the share of its peak that the clock leaves to a generation at `tokens` on the ledger.

    begin: the tokens at which its cosine begins."""
    if clock.shape == "cosine":
        x = (tokens - begin) / max(1, clock.horizon - begin)
        return clock.floor + (1 - clock.floor) * (1 + math.cos(math.pi * min(1.0, max(0.0, x)))) / 2
    x = (tokens - clock.decay_from) / max(1, clock.horizon - clock.decay_from)
    return 1 - (1 - clock.floor) * min(1.0, max(0.0, x))


def peaks(generations: list[Generation], policy: str, new_rate: float, n_fused: int) -> list[float]:
    """Return the peak rate of every generation.

    own: a generation has the peak that it was born with, but never more than the youngest. shared: all have
    the youngest's, and the youngest has new_rate times that (SPARKLING, arXiv 2602.02472). A condensed model
    has no multiple while its youngest generation is one of the n_fused that share their slabs."""
    young = generations[-1].learning_rate
    if policy == "own":
        return [min(g.learning_rate, young) for g in generations]
    multiple = new_rate if len(generations) > n_fused else 1.0
    return [young] * (len(generations) - 1) + [young * multiple]


def rates(
    generations: list[Generation],
    tokens: float,
    clock: Clock,
    policy: str = "own",
    new_rate: float = 1.3,
    n_fused: int = 1,
) -> list[float]:
    """Return the learning rate of every generation at `tokens` on the ledger.

    It is the generation's peak (see peaks), times how far it is warmed up, times what the clock leaves."""
    out = []
    for g, peak in zip(generations, peaks(generations, policy, new_rate, n_fused)):
        first = g if policy == "own" else generations[0]  # shared: all follow the oldest's cosine
        begin = max(first.birth, clock.start) + first.warmup
        out.append(peak * warmed(g, tokens) * fall(clock, begin, tokens))
    return out


def begin_stage(
    generations: list[Generation], now: int, peak: float, new_peak: bool, warmup: int
) -> list[Generation]:
    """Give the generations that were never trained their birth, peak and warmup, and return them.

    Where there are none, a peak that is new (new_peak) goes to the youngest."""
    fresh = [g for g in generations if g.learning_rate is None]
    for g in fresh:
        g.birth = g.warm_start = now
        g.learning_rate, g.warmup, g.warm_share = peak, warmup, 0.0
    if new_peak and not fresh:
        generations[-1].learning_rate = peak
    return fresh


def warm_again(
    old: list[Generation], last: list[float], due: list[float], at: float, now: int, warmup: int
) -> None:
    """Let the rates of old generations climb over `warmup` tokens from `now` on, where they would jump up.

    last: the rates of the last step, taken at `at` tokens. due: what the new stage's clock gives there. A
    rate would jump where the last is below the due."""
    for g, was, rate in zip(old, last, due):
        if was < 0.99 * rate:
            share = was / rate * warmed(g, at)
            g.warm_start, g.warm_share, g.warmup = now, share, warmup


# -----------------------------------------------------------------------------
# what the loop calls


@torch.no_grad()
def squares(optimizer: torch.optim.Optimizer, n: int) -> torch.Tensor:
    """Return (2, n) for n generations: the sums of squares of the gradient, and of the update that the step
    just taken made, decay included.

    Of sharded parameters, this process's part counts. The update is read off Adam's state: no copy of the
    parameters is needed."""
    totals = torch.zeros(2, n, dtype=torch.float64)
    generations, pairs = [], []  # of every parameter that is trained; pairs: (gradient, update)
    for group in optimizer.param_groups:
        (b1, b2), lr, g = group["betas"], group["lr"], group["generation"]
        for p in group["params"]:
            if p.grad is not None:  # it is not frozen
                s = {key: local(x) for key, x in optimizer.state[p].items()}
                second = (s["exp_avg_sq"] / (1 - b2 ** s["step"])).sqrt() + group["eps"]
                adam = s["exp_avg"] / (1 - b1 ** s["step"]) / second
                before = (local(p) + lr * adam) / (1 - lr * group["weight_decay"])
                pair = local(p.grad).square().sum(), (before - local(p)).square().sum()
                generations.append(g)
                pairs.append(torch.stack(pair))
    # wait for the device once, not twice for each of a grown model's hundreds of slabs
    for g, pair in zip(generations, torch.stack(pairs).cpu().double()):
        totals[:, g] += pair
    return totals


def local(x: torch.Tensor) -> torch.Tensor:
    """Return this process's part of a tensor."""
    return x.to_local() if is_shard(x) else x


def summed(x: torch.Tensor, where: str) -> torch.Tensor:
    """Return the sum of a tensor over all processes, on the CPU.

    where: this process's device."""
    if dist.is_initialized():
        x = x.to(where)
        dist.all_reduce(x)
    return x.cpu()


class Reader:
    """This process's micro-batches of a mixture, one made ahead by a thread.

    The processes take turns: `micro` sequences each, from the mixture's next on."""

    def __init__(
        self, mixture: Mixture, spelled: Callable, micro: int, ranks: tuple[int, int], pin: bool
    ) -> None:
        """ranks: (this process, how many there are)."""
        self.mixture, self.spelled, self.micro, self.pin = mixture, spelled, micro, pin
        rank, world = ranks
        self.first, self.turn = mixture.next + rank * micro, world * micro
        self.thread = ThreadPoolExecutor(1)
        self.ahead = self.thread.submit(self.make)

    def make(self) -> torch.Tensor:
        """Return the micro-batch that begins with sequence `first`: (micro, block_size + 1)."""
        rows = [self.mixture.sequence(self.first + j, self.spelled) for j in range(self.micro)]
        batch = torch.from_numpy(np.stack(rows).astype(np.int64))
        return batch.pin_memory() if self.pin else batch

    def next(self) -> torch.Tensor:
        """Return the next micro-batch, and begin to make the one after it."""
        batch = self.ahead.result()
        self.first += self.turn
        self.ahead = self.thread.submit(self.make)
        return batch


@torch.no_grad()
def evaluate(
    model: Llama,
    ids: np.ndarray,
    batch_size: int,
    ranks: tuple[int, int],
    where: str,
    autocast: torch.autocast,
    bytes_of: Callable[[np.ndarray, np.ndarray], int],
) -> tuple[float, float]:
    """Return (loss in nats a token, bits per byte) of a text's token ids.

    They are read in windows of the model's block_size, the last of which may be shorter. bytes_of(targets,
    inputs) counts the bytes that targets stand for."""
    block_size, (rank, world) = model.cfg.block_size, ranks
    total = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
    n_full = (len(ids) - 1) // block_size
    batches = [range(i, min(i + batch_size, n_full)) for i in range(0, n_full, batch_size)]
    if (len(ids) - 1) % block_size:
        batches.append(range(n_full, n_full + 1))  # the last window, which is shorter

    # all processes read as many batches, since sharded they must; what is read twice counts once
    for i in range(rank, -(-len(batches) // world) * world, world):
        windows = batches[i % len(batches)]
        part = np.stack([ids[j * block_size : (j + 1) * block_size + 1] for j in windows]).astype(np.int64)
        x, y = part[:, :-1], part[:, 1:]  # (windows, T) each
        # a shape that training does not have would be compiled for any shape, and then training, too
        stance = "default" if x.shape == (batch_size, block_size) else "force_eager"
        with autocast, torch.compiler.set_stance(stance):
            loss = model(torch.from_numpy(x).to(where), torch.from_numpy(y).to(where)).item()
        if i < len(batches):
            total += torch.tensor([loss * y.size, y.size, bytes_of(y, x)], dtype=torch.float64)
    nats, tokens, n_bytes = summed(total, where).tolist()
    return nats / tokens, nats / max(1.0, n_bytes) / math.log(2)


def continuation(
    model: Llama, start: np.ndarray, n_new: int, seed: int, where: str, autocast: torch.autocast
) -> list[int]:
    """Return the ids `start` and n_new that the model adds, by the same draws every time.

    Where parameters are sharded, all processes must call it, since each forward gathers them."""
    idx = torch.from_numpy(start.astype(np.int64))[None].to(where)  # (1, T)
    rng = torch.Generator(where).manual_seed(seed)
    with autocast, torch.compiler.set_stance("force_eager"):  # else every length is compiled
        return torch.cat([idx, *model.generate(idx, n_new, temperature=0.8, rng=rng)], 1)[0].tolist()


class Log:
    """metrics.jsonl, a line a record, and wandb if there is a run of it."""

    def __init__(self, path: str, run: object = None) -> None:
        self.file, self.run = open(path, "a"), run

    def record(self, step: int, ledger: dict, **values: object) -> None:
        """Write one line: the step, where the ledger stands, and the values."""
        stand = {"step": step, "tokens": ledger["tokens"], "flops": ledger["flops"]}
        values = stand | {"seconds": round(ledger["seconds"], 3)} | values
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()
        if self.run:
            flat = {f"{k}/{i}": x for k, v in values.items() if isinstance(v, list) for i, x in enumerate(v)}
            self.run.log({k: v for k, v in values.items() if not isinstance(v, list)} | flat, step=step)


def on_signals() -> list[int]:
    """Return a list that SIGTERM and SIGINT add their number to. The loop reads it after a step, so that all
    processes stop together. A second signal kills."""
    came = []

    def note(number: int, _: object) -> None:
        came.append(number)
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, note)
    return came


# -----------------------------------------------------------------------------


def main() -> None:
    """Train the stage that the command line describes."""
    global out_dir, resume, block_size, branch_tokens, horizon_tokens  # settings that main completes
    given = configure(sys.argv[1:])
    globals().update(given)

    # processes: one, or as many as torchrun started, each with its device
    ddp = "RANK" in os.environ
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    master, ranks = rank == 0, (rank, world)
    kind, where = find_device(device)
    if ddp:
        join(ranks, "nccl" if kind == "cuda" else "gloo")
    bf16 = dtype == "bfloat16" or not dtype and kind == "cuda"
    autocast = torch.autocast(kind, torch.bfloat16, enabled=bf16)
    say = show if master else lambda *a, **k: None

    # where to start: at a checkpoint or from scratch. The folder stays locked until this process ends
    out_dir = tidy(out_dir)
    folder = f"{out_dir}-{branch}" if branch else out_dir
    trunk = trunk_of(out_dir, init_from) if branch and not resume else init_from
    folder_lock, resume, source = claim_for_all(folder, trunk, resume, ranks)
    ckpt = load_checkpoint(source, whole=False) if source else {}
    if ckpt and "block_size" not in given:
        block_size = min(ckpt["config"]["block_size"], PAGE)
    if block_size > PAGE:
        raise ValueError(f"block_size = {block_size}: at most {PAGE}, or raise PAGE in data.py")

    # text: what is trained on, and what is evaluated on
    meta = read_meta(data)
    shares = shares_of(meta, data_mix, review)
    shards = [Shard(data, split, meta, block_size, seed) for split in shares]
    val_sets = {
        split.removesuffix(".val"): Shard(data, split, meta, block_size, seed)
        for split, s in meta["splits"].items()
        if split == "val" or eval_stages and split.endswith(".val") and s["tokens"] > 1
    }
    for text, least in [(text, PAGE + 1) for text in shards] + [(val_sets["val"], 2)]:
        n = len(text.tokens)
        if n < least:
            raise ValueError(f"{text.path}: too little text: {n} tokens, and {least} are needed")

    # its files, of which each process verifies its share
    checked = [*val_sets.values()]
    if check_data and not resume:
        checked += shards
    for text in checked[rank::world]:
        text.verify()
    token_bytes, its_tokenizer = read_token_bytes(data, meta), read_tokenizer(data, meta)

    # the model's config and the ledger: the checkpoint's, or those of a start from scratch
    row_ids = read_stage_rows(data, rows, f"rows = {rows!r}") if rows else ()
    if ckpt:
        check_sizes(shape_of(given), ckpt["config"], source)
        if ckpt["tokenizer"]["sha256"] != meta["tokenizer"]["sha256"]:
            name = meta["tokenizer"]["name"]
            raise ValueError(f"{data} has the tokenizer {name}, not the one that {source} was trained with")
        cfg = Config(**ckpt["config"] | {"block_size": block_size})
        if rows and len(row_ids) != cfg.vocab_size:
            has = f"{len(row_ids)}, but {source} has {cfg.vocab_size}"
            raise ValueError(f"rows = {rows!r}: {has}: grow.py --vocab adds rows")
        ledger = dict(ckpt["ledger"])
        step = ckpt["step"] if resume else 0
    else:
        n_tokens = meta["vocab_size"]
        if 0 < vocab_size < n_tokens or rows and vocab_size > n_tokens:
            raise ValueError(f"vocab_size = {vocab_size}, but the tokenizer of {data} has {n_tokens}")
        shape = shape_of({key: globals()[key] for key in DEFAULTS})
        shape |= {"vocab_size": vocab_size or n_tokens}
        if rows:
            shape |= {"vocab_size": len(row_ids), "n_tokens": n_tokens}
        cfg = Config(**shape)
        ledger = {"tokens": 0, "flops": 0, "seconds": 0.0, "dealt": 0, "read": {}}
        step = 0
    mixture = Mixture(shards, list(shares.values()), ledger["read"], ledger["dealt"])
    flops_per_token = cfg.flops_per_token()

    # the batch: tokens a step -> sequences a process -> accumulation
    per_process, rest = divmod(tokens_per_step, block_size * world)
    if rest or not per_process:
        least = f"block_size {block_size} x {world} processes"
        raise ValueError(f"tokens_per_step = {tokens_per_step} is no multiple of {least}")
    micro = max(b for b in range(1, min(batch_size, per_process) + 1) if per_process % b == 0)
    accumulation = per_process // micro

    # the rates that the checkpoint's run had
    old_settings, old_schedule = ckpt.get("settings", {}), ckpt.get("schedule")
    old_clock = None
    if resume and not old_schedule:
        raise ValueError(f"{source} was never trained: give it as --init_from, with another out_dir")
    if old_schedule:
        old_clock = Clock(**{f.name: old_schedule[f.name] for f in dataclasses.fields(Clock)})
    how = dict(policy=policy, new_rate=new_rate, n_fused=cfg.n_fused)
    now, notes, fork = ledger["tokens"], [], None

    # those of a branch, which decays them from where it left its trunk
    if branch:
        fork = ckpt["branch"] if resume else branch_off(ckpt, source, branch_tokens)
        if not fork:
            raise ValueError(f"{source} is no branch: give another out_dir")
        if branch_tokens:
            check_kept(given, {"branch_tokens": fork["length"]}, "branch")
        branch_tokens = fork["length"]
        to_read = max(0, fork["tokens"] + branch_tokens - now)
        steps = -(-to_read // tokens_per_step)  # rounded up
        last_step, end = step + steps, now + steps * tokens_per_step
        clock = old_clock

    # or of a stage: on the ladder's clock where this stage or one before was told its end, else on its own
    else:
        if resume and ckpt["branch"]:
            raise ValueError(f"{source} is a branch: give --branch=decay, and the out_dir of its trunk")
        last_step = max_steps
        end = now + max(0, last_step - step) * tokens_per_step
        earlier = old_settings.get("horizon_tokens", 0)
        if not horizon_tokens and earlier >= end:
            horizon_tokens = earlier
        if horizon_tokens and floor == 0 and end > horizon_tokens + tokens_per_step:
            raise ValueError(
                f"horizon_tokens = {horizon_tokens}: the rates end there, and the stage at {end}: raise it, "
                "lower max_steps, or leave it out: then they end with the stage"
            )
        if earlier and not horizon_tokens:
            ends = f"the ladder ends at {earlier:,} tokens, before this stage does"
            notes.append(f"{ends}: this stage has a schedule of its own")

        # a stage that is resumed as it was keeps its schedule to the bit
        was = old_clock if resume else None
        clock = stage_clock(was, now, end, horizon_tokens, schedule, floor, decay_share)
        kept = ("decay_share", "schedule", "floor")
        if was and was.horizon == clock.horizon and all(old_settings[key] == globals()[key] for key in kept):
            clock = was

        # what is new gets its peak, and what was decayed climbs back to its own
        if resume:
            check_kept(given, {key: old_settings[key] for key in ("learning_rate", "warmup_tokens")}, "stage")
        warmup = warmup_tokens or min(100 * tokens_per_step, (end - now) // 10)
        new_peak = "learning_rate" in given and not resume
        fresh = begin_stage(cfg.generations, now, learning_rate, new_peak, warmup)
        if old_schedule:
            old = cfg.generations[: len(cfg.generations) - len(fresh)]
            at = old_schedule["at"]
            due = rates(cfg.generations, at, clock, **how)
            warm_again(old, old_schedule["rates"], due, at, now, warmup)
        notes += warnings_of(cfg.generations, clock, now, end, tokens_per_step, freeze)

    # on a CPU, attention in bf16 over 128 tokens takes 2.3 ms unfused and 5.2 ms fused. torch's switch for
    # cuda is the CPU's as well
    torch.backends.cuda.enable_flash_sdp(not (bf16 and kind == "cpu" and block_size <= 128))

    # the model: without memory until it is known which part of each parameter is this process's
    sharded = shard and ddp
    model = skeleton(cfg)
    for block in model.layers:
        block.recompute = recompute
    if compile:
        model.compile_blocks(alone=not ddp and not recompute)  # torch.compile would rename every parameter
    if sharded:
        shard_model(model, kind, world, bf16)
    model.allocate(where)

    # its state and its optimizer
    optimizer = model.optimizer(weight_decay, (beta1, beta2), adam_eps)
    if ckpt:
        load_state(model, optimizer, ckpt)
    else:
        model.init_weights(seed)
        if rows:
            model.row_of[torch.from_numpy(row_ids)] = torch.arange(len(row_ids), device=where)
    trained = freeze_generations(optimizer, freeze)
    ddp_model = model
    if ddp and not sharded:  # gradients in DDP's own buckets: 4 bytes a parameter less
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # torch 2.11 has no other
        ddp_model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    # text as the model reads it: tokens without a row are spelled
    ids = model.token_ids().cpu()
    spelled = speller(ids, meta["vocab_size"], lambda: read_spelling(data))
    val_ids = {name: spread(text.tokens, eval_tokens) for name, text in val_sets.items()}
    spelled_share = {name: 1 - np.isin(tokens, ids).mean() for name, tokens in val_ids.items()}
    val_ids = {name: spelled(tokens) for name, tokens in val_ids.items()}
    start_ids = spelled(val_sets["val"].tokens[:16])
    bytes_of = functools.partial(
        count_bytes, token_bytes=token_bytes, bos=meta["bos"], dummy_prefix=meta["dummy_prefix"]
    )
    tokenizer = Tokenizer.from_dict(its_tokenizer) if sample_tokens else None

    # what is about to happen: sizes, memory, the batch
    counts = model.count_params()
    sizes = torch.tensor([counts["generations"].get(g, 1) for g in range(len(cfg.generations))])
    counted = f"{counts['total']:,} parameters, {counts['non_embedding']:,} without embedding and head"
    say(f"{source or 'from scratch'}: {cfg.n_layer} x {cfg.n_embd}, {counted}")
    n_trained = sum(p.numel() for p in trained)
    gb = (4 * counts["total"] + 12 * n_trained) / (world if sharded else 1) / 1e9
    say(f"memory: {gb:.2f} GB for weights, gradients and Adam's moments, a process; activations come on top")
    factors = f"{world} processes x {accumulation} accumulated x {micro} sequences x {block_size}"
    say(f"{tokens_per_step:,} tokens a step = {factors}")

    # the rates
    peak = peaks(cfg.generations, **how)
    for g in sorted(counts["generations"]):
        life = describe(cfg.generations[g], peak[g], now, g in freeze)
        say(f"generation {g}: {counts['generations'][g]:,} parameters, {life}")
    if branch:
        say(f"all rates fall from where they are to 0, from {fork['tokens']:,} to {end:,} tokens")
    else:
        say(describe_clock(clock, end, bool(horizon_tokens)))

    # the text, what a resumed run changes, and notes
    small = [s["name"] for s in meta.get("stages", []) if 0 < s["tokens"] <= PAGE]
    if small and data_mix == "natural":
        notes.append(f"too little text to be read: {', '.join(small)} (less than {PAGE + 1} tokens)")
    if model.row_of is not None:
        parts = ", ".join(f"{share:.2%} of {name}" for name, share in spelled_share.items())
        say(f"spelled in byte tokens: {parts}")
    settings = {key: globals()[key] for key in DEFAULTS}
    if resume:
        settings["init_from"] = old_settings["init_from"]  # where the stage began
        ours = DEFAULTS.keys() - {"resume", "stop_at"}
        changed = [key for key, value in old_settings.items() if key in ours and value != settings[key]]
        changes = "".join(f"; {key} {old_settings[key]} -> {settings[key]}" for key in changed)
        say(f"resumed at step {step}{changes}")
    for i, g in enumerate(cfg.generations):
        if g.ramp and g.birth + g.ramp > end:
            notes.append(f"generation {i} has not come in yet at the end, {end:,} tokens; see grow.py --ramp")
    for note in notes:
        say(f"note: {note}")

    # the log
    if master:
        keep_metrics(f"{folder}/metrics.jsonl", step if resume else -1)
    run = start_wandb(wandb_project, wandb_name or out_dir, settings) if wandb and master else None
    log = Log(f"{folder}/metrics.jsonl" if master else os.devnull, run)

    # the loop
    stopping = on_signals()
    reader = Reader(mixture, spelled, micro, ranks, pin=kind == "cuda")
    _, device_flops = this_device(kind)
    val_loss = bpb = math.nan
    epochs = mixture.epochs()
    first_step, first_seconds = step, ledger["seconds"]
    logged_step, logged_seconds = first_step, first_seconds
    saved_step = step if resume else -1

    # collect garbage at evaluations only: a step makes no cycles, and one process that collects halts all
    gc.collect()
    gc.freeze()
    gc.disable()

    while True:
        # evaluate, and write a sample
        if step >= last_step or eval_interval and step % eval_interval == 0:
            gc.collect()
            results = {
                name: evaluate(model, tokens, micro, ranks, where, autocast, bytes_of)
                for name, tokens in val_ids.items()
            }
            val_loss, bpb = results.pop("val")
            listed = "".join(f", {name} {stage_bpb:.4f}" for name, (_, stage_bpb) in results.items())
            say(f"step {step}: val loss {val_loss:.4f}, {bpb:.4f} bits per byte{listed}")
            by_stage = {f"bpb_{name}": stage_bpb for name, (_, stage_bpb) in results.items()}
            log.record(step, ledger, val_loss=val_loss, bpb=bpb, **by_stage)
            if sample_tokens and (master or sharded) and math.isfinite(val_loss):
                sampled = continuation(model, start_ids, sample_tokens, seed, where, autocast)
                sample = printable(tokenizer, token_bytes, sampled)
                say("\n".join(f"    {line}" for line in sample.splitlines() if line.strip()))
                log.record(step, ledger, sample=sample)
        if step >= last_step:
            break
        began = time.time()

        # rates and ramps at the middle of the step: at its ends, the first step or the last would have rate 0
        at = ledger["tokens"] + tokens_per_step / 2
        model.ramp(at)
        if branch:
            left = 1 - (at - fork["tokens"]) / (end - fork["tokens"])
            lr = [rate * left for rate in fork["rates"]]
        else:
            lr = rates(cfg.generations, at, clock, **how)
        for group in optimizer.param_groups:
            group["lr"] = lr[group["generation"]]

        # forward and backward. Not model.zero_grad(): after an evaluation, FSDP2's model lists the parameters
        # that it gathered, not their shards. DDP's gradients stay, as views of its buckets
        optimizer.zero_grad(set_to_none=ddp_model is model)
        loss = torch.zeros((), device=where)
        for m in range(accumulation):
            batch = reader.next().to(where, non_blocking=True)
            last = m == accumulation - 1
            if sharded:
                model.set_requires_gradient_sync(last)
            elif ddp:
                ddp_model.require_backward_grad_sync = last
            with autocast:
                part = ddp_model(batch[:, :-1], batch[:, 1:]) / accumulation  # (micro, block_size) each
            part.backward()
            loss += part.detach()

        # whether a process was asked to stop, over all. The number is made on the GPU: a copy from the CPU
        # would wait for the backward pass
        asked = torch.full((), float(bool(stopping)), device=where)
        if ddp:
            dist.all_reduce(asked)

        # update; a gradient that is not finite is so on all processes alike, since gradients are averaged
        norm = torch.nn.utils.clip_grad_norm_(trained, grad_clip or math.inf)
        norm = norm.full_tensor() if sharded else norm
        asked = asked.item() > 0  # with norm, the only wait for the GPU
        if not math.isfinite(norm):
            saved = [last_checkpoint(folder), source]
            if saved_step == step:  # of the very weights that gave this gradient
                saved = [f"{folder}/ckpt.prev.pt", settings["init_from"]]
            good = next(filter(os.path.exists, saved), "none")
            raise ValueError(
                f"step {step}: loss {loss.item():.4g}, gradient norm {norm.item():.4g}, rates {lr}; "
                f"nothing saved; last good checkpoint: {good}"
            )
        optimizer.step()

        # the ledger; its seconds are those of training, without evaluating, logging and saving
        step += 1
        mixture.next += per_process * world
        ledger["tokens"] += tokens_per_step
        ledger["flops"] += tokens_per_step * flops_per_token
        model.ramp(ledger["tokens"])  # for what is evaluated and saved
        ledger["seconds"] += time.time() - began
        epochs_before, epochs = epochs, mixture.epochs()
        for text, times_before, times in zip(shards, epochs_before, epochs):
            if times > times_before:
                say(f"step {step}: {text.path} has been read {times} times, and is dealt anew")

        # log gradients and updates by generation, and the speed
        if log_interval and step % log_interval == 0 or step == last_step:
            loss = summed(loss, where).item() / world
            sums = squares(optimizer, len(cfg.generations))
            gradient, update = summed(sums, where) if sharded else sums
            share = gradient / gradient.sum().clamp(min=1e-30)  # clipping scales all alike
            norms = (norm.item() * share.sqrt()).tolist()
            moved = (update / sizes).sqrt().tolist()
            seconds = ledger["seconds"]
            speed = (step - logged_step) * tokens_per_step / max(1e-9, seconds - logged_seconds)
            logged_step, logged_seconds = step, seconds
            mfu = speed * flops_per_token / (device_flops * world) if device_flops else None
            minutes = (last_step - step) * (seconds - first_seconds) / (step - first_step) / 60

            # a line for the reader, and one for metrics.jsonl
            done = f"step {step}/{last_step} {step / last_step:.0%}"
            fast = f"{speed:,.0f} tokens/s" + (f", MFU {mfu:.1%}" if mfu else "")
            how_far = {g: f"{lr[g]:.1e} moves {moved[g]:.1e}" for g in counts["generations"]}
            each = " ".join(f"g{g} {'frozen' if g in freeze else how_far[g]}" for g in sorted(how_far))
            line = f"{done} | loss {loss:.4f} | {minutes:.0f} min left | {fast} | norm {norm:.2f} | {each}"
            say(line, progress=True)
            values = dict(loss=loss, norm=norm.item(), lr=lr, grad_norm=norms, update_rms=moved)
            log.record(step, ledger, **values, tokens_per_second=speed, mfu=mfu)

        # save, and stop when asked to
        halt = asked or step == stop_at
        if halt or step >= last_step or save_interval and step % save_interval == 0:
            ledger["dealt"] = mixture.next
            ledger["read"].update(mixture.read())
            if master or sharded:
                state = {
                    "lineage": ckpt.get("lineage", []),
                    "tokenizer": ckpt.get("tokenizer", its_tokenizer),
                    "config": cfg.plain(),
                    "model": model.state_dict(),
                    "optimizer": optimizer_state(model, optimizer),
                    "ledger": ledger,
                    "step": step,
                    "settings": settings,
                    "branch": fork,
                    "schedule": vars(clock) | {"rates": lr, "at": at},
                }
                if "origin" in ckpt:
                    state["origin"] = ckpt["origin"]
                save_checkpoint(f"{folder}/ckpt.pt", state, keep=f"{folder}/ckpt.prev.pt")
            saved_step = step
            if ddp:
                dist.barrier()
        if halt and step < last_step:
            say(f"stopped at step {step}, saved in {folder}/ckpt.pt; go on with --resume")
            break

    # summary, for grep
    end_progress()
    summary = {
        "step": step,
        "tokens": ledger["tokens"],
        "flops": f"{ledger['flops']:.4g}",
        "seconds": f"{ledger['seconds']:.1f}",
        "parameters": counts["total"],
        "spelled": f"{spelled_share['val']:.4f}",
        "val_loss": f"{val_loss:.4f}",
        "bpb": f"{bpb:.4f}",
        "peak_memory_MiB": f"{peak_memory(kind) / 2**20:.0f}",
        "checkpoint": f"{folder}/ckpt.pt",
    }
    for key, value in summary.items():
        say(f"{key}: {value}")
    if run:
        run.finish()
    if ddp:
        # gloo's thread needs the GIL for its last tensors, and destroying would wait for it with the GIL held
        time.sleep(0.2)
        dist.destroy_process_group()


# -----------------------------------------------------------------------------
# what main calls around the loop


def find_device(asked: str) -> tuple[str, str]:
    """Return (the kind of device, this process's own), and make it torch's. Raise ValueError if there is none
    of the kind."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind = asked or next(kind for kind, is_there in there.items() if is_there)
    if not there[kind]:
        found = ", ".join(name for name, is_there in there.items() if is_there)
        raise ValueError(f"device = {kind}: torch finds none here, only {found}")
    if kind != "cuda":
        return kind, kind
    local, n_gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= n_gpus:
        raise ValueError(f"--nproc_per_node: a process needs a GPU of its own, and torch finds {n_gpus}")
    where = f"cuda:{local}"
    torch.cuda.set_device(where)
    torch.set_float32_matmul_precision("high")  # TF32 where autocast leaves fp32
    return kind, where


def join(ranks: tuple[int, int], backend: str) -> None:
    """Join the process group of all processes that torchrun started."""
    rank, world = ranks
    warnings.filterwarnings("ignore", r"barrier\(\): using the device")  # nccl's: it is the right one
    store = next(dist.rendezvous("env://"))[0]
    # names of its own in the store: else torch 2.13 finds dead processes' addresses, and waits for them
    addresses = dist.PrefixStore(agree_on_attempt(store, rank, world), store)
    dist.init_process_group(backend, store=addresses, rank=rank, world_size=world)


def agree_on_attempt(store: dist.Store, rank: int, world: int) -> str:
    """Return a name that all processes of this attempt share, and no process of an earlier attempt.

    torchrun gives none: each node's agent counts its own restarts, and the store keeps what dead processes
    wrote. So rank 0 draws the name, and the others ask for it with a word that is as new. Rank 0 answers
    until all have heard the name, and then says that it begins. Until then the others read the answer again
    and again: a rank 0 that was started again gives another."""
    word = uuid.uuid4().hex
    if rank == 0:
        deaf = range(1, world)
        while deaf:
            for other in deaf:
                asked = store.get(f"asked by {other}").decode()  # by a dead process perhaps: nobody hears
                store.set(f"answer to {asked}", word)
            time.sleep(0.1)
            deaf = [other for other in deaf if not store.check([f"{word} heard by {other}"])]
        store.set(f"{word} begins", "")
        return word
    store.set(f"asked by {rank}", word)
    while True:
        attempt = store.get(f"answer to {word}").decode()
        store.set(f"{attempt} heard by {rank}", "")
        if store.check([f"{attempt} begins"]):
            return attempt
        time.sleep(0.1)


def agent() -> str:
    """Return what identifies the torchrun process that started this one, "" if none did.

    It is the folder that torchrun drew for its logs: a restart keeps it, and no other launch has it."""
    path = os.environ.get("TORCHELASTIC_ERROR_FILE", "") if "RANK" in os.environ else ""
    match = re.fullmatch(r"(.+)/attempt_\d+/\d+/error\.json", path)
    return match[1] if match else ""


def tidy(folder: str) -> str:
    """Return a folder's path so that a suffix can be added to it: b for b/ and b/., the absolute path
    for . and .."""
    path = Path(folder)
    return str(path.resolve() if path.name in ("", "..") else path)


def last_checkpoint(folder: str) -> str:
    """Return the path of the last complete checkpoint: ckpt.pt, or ckpt.prev.pt where a kill left only it."""
    paths = [f"{folder}/ckpt.pt", f"{folder}/ckpt.prev.pt"]
    return next(filter(os.path.exists, paths), paths[0])


def claim(folder: str, trunk: str, resume: bool, launch: list[str]) -> tuple[BinaryIO, bool, str]:
    """Lock the folder. Return (the lock, whether its run is resumed, the checkpoint to begin with, or "").
    Raise ValueError if another process has the lock, or another launch left a checkpoint and no --resume is
    given.

    .lock lists the launches of torchrun that train there. If this process's own is among them, this is a
    restart, and goes on without --resume. trunk: the checkpoint that a run begins with if not resumed."""
    os.makedirs(folder, exist_ok=True)
    held = lock(f"{folder}/.lock")
    last = last_checkpoint(folder)
    exists = os.path.exists(last)
    with open(f"{folder}/.lock") as f:
        known = f.read().splitlines()
    ours = not set(known).isdisjoint(launch)
    if exists and not ours and not resume:
        raise ValueError(f"{last} exists: go on with --resume, or give another out_dir")
    if not ours:
        held.truncate(0)
    held.write("".join(f"{name}\n" for name in launch if name not in known).encode())
    held.flush()
    os.fsync(held.fileno())  # for the node that may have rank 0 after a restart
    resumed = resume or exists
    return held, resumed, last if resumed else trunk


def claim_for_all(folder: str, trunk: str, resume: bool, ranks: tuple[int, int]) -> tuple:
    """Return what claim returns to rank 0, or raise its error, in all processes. Rank 0 alone holds the lock.

    Rank 0 decides, since on another node the folder may look older."""
    rank, world = ranks
    if not dist.is_initialized():
        return claim(folder, trunk, resume, sorted({agent()} - {""}))
    launch = [None] * world
    dist.all_gather_object(launch, agent())
    held, answer = None, [None]  # what rank 0 found, or its error
    if rank == 0:
        try:
            held, *answer[0] = claim(folder, trunk, resume, sorted(set(launch) - {""}))
        except (ValueError, OSError) as e:
            answer[0] = e
    dist.broadcast_object_list(answer)
    if isinstance(answer[0], Exception):
        raise answer[0]
    return held, *answer[0]


def check_sizes(asked: dict, has: dict, source: str) -> None:
    """Raise ValueError if sizes were asked for that the checkpoint's config does not have."""
    has = has | {"vocab_size": has["n_tokens"] or has["vocab_size"]}
    for key, value in asked.items():
        if key != "block_size" and (value or key == "tied") and value != has[key]:
            raise ValueError(f"{key} = {value}, but {source} has {has[key]}: grow.py changes sizes")


def trunk_of(out_dir: str, init_from: str) -> str:
    """Return what a branch starts from: the run in out_dir, unless init_from names another start than its."""
    run = last_checkpoint(out_dir)
    if not init_from or not os.path.exists(run):
        return init_from or run
    began = load_checkpoint(run, whole=False, verify=False)["settings"].get("init_from", "")
    return run if os.path.normpath(began) == os.path.normpath(init_from) else init_from


def check_kept(given: dict, began: dict, what: str) -> None:
    """Raise ValueError where another value is given of a setting that a stage or a branch (what) keeps.
    began: the values that it began with."""
    for key, value in began.items():
        if given.get(key, value) != value:
            raise ValueError(f"{key} = {given[key]}, but this {what} began with {value} and keeps it")


def branch_off(ckpt: dict, source: str, length: int) -> dict:
    """Return {'tokens', 'length', 'rates'} of a branch: the tokens it begins at, how many it reads, and the
    rates that it decays. Raise ValueError if there is nothing to decay."""
    tokens, was = ckpt["ledger"]["tokens"], ckpt["schedule"]
    length = length or tokens // 10
    if not was or any(g["learning_rate"] is None for g in ckpt["config"]["generations"]):
        raise ValueError(f"{source}: part of it was never trained: train it, then branch off")
    if ckpt["branch"] or was["floor"] == 0 and tokens >= was["horizon"]:
        ended = f"{source}: its rates have ended, so that nothing is left to decay"
        raise ValueError(f"{ended}: branch off earlier")
    return {"tokens": tokens, "length": length, "rates": was["rates"]}


def warnings_of(
    generations: list[Generation], clock: Clock, now: int, end: int, a_step: int, freeze: list[int]
) -> list[str]:
    """Return what a user should know of the rates before a stage from `now` to `end` tokens begins, in steps
    of a_step tokens."""
    notes = []
    # where the rates fall from, and the last token at which a warmup can still end at the peak
    begin, peak_ends = clock.decay_from, min(end, clock.decay_from)
    if clock.shape == "cosine":
        begin, peak_ends = clock.start, min(end, clock.horizon)
    for i, g in enumerate(generations):
        if i not in freeze and g.warm_end > max(now, peak_ends):
            notes.append(
                f"generation {i} never reaches its peak: its warmup ends at {g.warm_end:,} tokens, and the "
                f"rates fall, or the stage ends, from {peak_ends:,} on; see warmup_tokens"
            )
    last = fall(clock, begin, end - a_step)
    if clock.horizon <= end and last > clock.floor + (1 - clock.floor) / 2:
        notes.append(
            f"the last step is at {last:.0%} of the peaks: the rates fall over "
            f"{clock.horizon - begin:,} tokens, and a step has {a_step:,}; see decay_share"
        )
    if clock.horizon < end:
        share = f"{clock.floor:.0%} of their peaks, the floor"
        notes.append(f"from {clock.horizon:,} tokens on, all rates are {share}")
    return notes


def describe(g: Generation, peak: float, now: int, frozen: bool) -> str:
    """Return when a generation was born, and what its rates will be, in words."""
    text = f"born at {g.birth:,} tokens, peak rate {peak:.2e}"
    if g.ramp:
        text += f", what it writes comes in until {g.birth + g.ramp:,}"
    if frozen:
        return text + ", frozen"
    if g.warm_end <= now:
        return text
    again = f" again, from {g.warm_share:.0%}" if g.warm_start > g.birth else ""
    return text + f", warmed up{again} until {g.warm_end:,}"


def describe_clock(clock: Clock, end: int, told: bool) -> str:
    """Return when all rates fall, in words."""
    how = "along a cosine" if clock.shape == "cosine" else f"from {clock.decay_from:,} tokens on"
    to = f"to {clock.floor:.0%} of their peaks" if clock.floor else "to 0"
    what = "the ladder's end" if told else "the end of this stage"
    if told and end < clock.horizon:
        what += f"; this stage ends at {end:,}"
    return f"rates fall {how}, {to} at {clock.horizon:,}, {what}"


def shard_model(model: Llama, kind: str, world: int, bf16: bool) -> None:
    """Spread a model's parameters over all processes (FSDP2), block by block."""
    from torch.distributed.device_mesh import init_device_mesh  # here, since they take 1 s
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(kind, (world,))
    dtypes = dict(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else {}
    mixed = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
    for module in [*model.layers, model]:
        fully_shard(module, mesh=mesh, mp_policy=mixed)


def freeze_generations(optimizer: torch.optim.Optimizer, freeze: list[int]) -> list[torch.nn.Parameter]:
    """Freeze the parameters of generations, and return those that are trained. Raise ValueError if there is
    no such generation, or if nothing is left."""
    unknown = set(freeze) - {group["generation"] for group in optimizer.param_groups}
    if unknown:
        raise ValueError(f"freeze = {freeze}: no generation {unknown.pop()}")
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.requires_grad_(group["generation"] not in freeze)
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    if not trained:
        raise ValueError(f"freeze = {freeze}: nothing is left to train")
    return trained


def printable(tokenizer: Tokenizer, token_bytes: np.ndarray, ids: list[int]) -> str:
    """Return the text of those ids that stand for text, with a space for each control character."""
    text = tokenizer.decode(i for i in ids if i < len(token_bytes) and token_bytes[i])
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def peak_memory(kind: str) -> float:
    """Return the most bytes that this process had: of the GPU's memory, or else of the machine's."""
    if kind == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1024 if sys.platform == "linux" else 1  # of ru_maxrss, in bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


progress_line = ""  # what a terminal shows at its bottom


def show(line: str, progress: bool = False) -> None:
    """Print a line. On a terminal, a line of progress takes the place of the one before, and others go above
    it."""
    global progress_line
    encoding = sys.stdout.encoding or "utf-8"
    line = line.encode(encoding, "replace").decode(encoding)  # a model may write what it has no bytes for
    if not sys.stdout.isatty():
        return print(line, flush=True)
    if progress:
        progress_line = line[: shutil.get_terminal_size().columns - 1]
    shown = progress_line if progress else f"{line}\n{progress_line}"
    print("\r\033[K" + shown, end="", flush=True)  # \033[K: clear


def end_progress() -> None:
    """End the line of progress, so that what comes next, an error too, begins a new one."""
    global progress_line
    print(end="\n" if progress_line else "")
    progress_line = ""


def read_tokenizer(folder: str, meta: dict) -> dict:
    """Return the tokenizer as a checkpoint carries it: meta's entry and, unless it is tiktoken's, the model
    file's bytes. Raise ValueError if the file is not the one that the text was prepared with."""
    tokenizer = dict(meta["tokenizer"])
    if tokenizer["kind"] in MODEL_FILES:
        path = f"{folder}/{MODEL_FILES[tokenizer['kind']]}"
        if file_sha256(path) != tokenizer["sha256"]:
            raise ValueError(f"{path}: not the one that the text was prepared with; prepare it again")
        tokenizer["model"] = torch.from_numpy(np.fromfile(path, np.uint8))
    return tokenizer


def keep_metrics(path: str, step: int) -> None:
    """Drop the lines of metrics.jsonl that a run resumed at `step` writes again; with -1, all."""
    if os.path.isfile(path):
        with open(path) as f:
            lines = [line for line in f if line.endswith("\n")]  # a kill may have cut the last one
        with open(f"{path}.tmp", "w") as f:
            for line in lines:
                record = json.loads(line)
                if record["step"] < step or record["step"] == step and "loss" in record:
                    f.write(line)
        os.replace(f"{path}.tmp", path)


def start_wandb(project: str, name: str, settings: dict) -> object:
    """Return a wandb run. Where wandb can't start, say so in a line and return None: training goes on."""
    try:
        import wandb

        patience = wandb.Settings(init_timeout=20, login_timeout=20)  # seconds; 90 and more by default
        return wandb.init(project=project, name=name, config=settings, settings=patience)
    except Exception as e:
        print(f"wandb: {one_line(e)}; going on without it (WANDB_MODE=offline logs to disk)")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"train.py: {e}")
    finally:
        end_progress()
