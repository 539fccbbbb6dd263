"""
Trains one stage: from scratch, from a grown checkpoint, or on from where it stopped.

$ python train.py config/tiny0.py                                   # one process
$ torchrun --nproc_per_node=8 train.py config/stage0.py             # eight GPUs
$ python train.py config/tiny0.py --max_steps=500 --seed=2          # any setting below, in a file or here
$ python train.py config/tiny0.py --resume                          # go on after a stop
$ torchrun --nproc_per_node=8 --max-restarts=9 train.py config/stage8.py --shard    # too big for one GPU; goes on by itself
$ python train.py config/tiny0.py --branch=decay                    # decay a copy to zero, to report; the trunk stays
"""

import ast
import dataclasses
import difflib
import gc
import json
import math
import os
import resource
import runpy
import shutil
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from checkpoint import load_checkpoint, load_state, lock, optimizer_state, save_checkpoint, sha256
from data import (
    MODEL_FILES,
    PAGE,
    Mixture,
    Shard,
    Tokenizer,
    count_bytes,
    read_meta,
    read_spelling,
    read_stage_rows,
    shares_of,
    speller,
    spread,
)
from model import Config, Generation, Llama, this_device

# -----------------------------------------------------------------------------
# settings: their names, defaults and, by the defaults, their types
out_dir = "out"
init_from = ""  # a checkpoint to start a stage from: one that grow.py wrote, or any other
resume = False  # go on from out_dir/ckpt.pt
branch = ""  # 'decay': from init_from, or else out_dir/ckpt.pt, decay all rates to zero, in out_dir-decay
branch_tokens = 0  # length of the branch; 0: a tenth of the tokens read so far
stop_at = 0  # save and exit after so many steps, as on SIGTERM; 0: never
# data
data = "data/babel"  # a folder that prepare.py wrote
check_data = True  # at a start, but not when resuming, hash all training tokens that are read: 1 s a GB
data_mix = "natural"  # in a folder with stages: by their tokens; or {stage: share}; or a stage: that one, and review
review = 0.2  # with data_mix a stage's name: the share of the stages before it, so that nothing is forgotten
rows = ""  # from scratch: the stage whose tokens the model has rows for; grow.py --vocab adds more. '': all tokens
tokens_per_step = 65536  # over all processes; accumulation is derived from it
batch_size = 16  # at most so many sequences a forward and process
max_steps = 1000  # of this stage
seed = 1337  # of the initial weights and of the order of the data
# model: for a start from scratch; with init_from the checkpoint's sizes hold, and what is given here must agree
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
learning_rate = 1e-3  # peak of the generation born with this stage; older ones keep what they were born with
weight_decay = 0.1  # of matrices
beta1 = 0.9
beta2 = 0.95
adam_eps = 1e-8
grad_clip = 1.0  # 0: off
freeze = []  # generations that are not trained
# schedule, in tokens
schedule = "wsd"  # warmup-stable-decay, or 'cosine'
warmup_tokens = 0  # of the generation born with this stage; 0: 100 steps
horizon_tokens = 0  # on the ledger, where the schedule of that generation ends; 0: with this stage
decay_share = 0.2  # wsd: the last part of the way to the horizon, in which the rate falls
floor = 0.0  # the share of the peak at which the rate ends
policy = "own"  # 'own': every generation follows its own schedule; 'shared': see rates(). Equal so far: runs/results
new_rate = 1.3  # shared: the youngest generation's rate, as a multiple of the others'
# evaluation, logging, saving
eval_interval = 250  # steps; 0: at the end only
eval_tokens = 262144  # of a validation shard, spread evenly over it
eval_stages = True  # in a folder with stages: on the text of each, too
sample_tokens = 64  # written at an evaluation, after the first 16 of the validation text; 0: none, and no tokenizer needed
log_interval = 10
save_interval = 1000  # steps; 0: at the end only
wandb = False
wandb_project = "babel"
wandb_name = ""  # default: out_dir
# system
device = ""  # default: cuda, then mps, then cpu
dtype = ""  # of products and activations, by autocast: 'bfloat16', the default on cuda, or 'float32'; a CPU with AMX gains, too
shard = False  # parameters, gradients and Adam's state over all processes (FSDP2); checkpoints are folders
recompute = False  # keep no activations inside blocks for the backward pass: less memory, a third more FLOPs
compile = True

DEFAULTS = {k: v for k, v in globals().items() if k[0] != "_" and type(v) in (bool, int, float, str, list)}
KINDS = {"data_mix": (str, dict)}  # settings of more than one type
CHOICES = {"branch": ("", "decay"), "schedule": ("wsd", "cosine"), "policy": ("own", "shared"),
           "dtype": ("", "float32", "bfloat16")}  # fmt: skip


def configure(args: list[str]) -> dict:
    """Command-line arguments, config files and --key=value, -> {setting: value} of those that they give; the later
    wins. ValueError names the bad one."""
    given = {}

    def put(key, value, where):
        if key not in DEFAULTS:
            near = difflib.get_close_matches(key, DEFAULTS, 1)
            raise ValueError(f"{where}: no setting is called {key}" + (f"; did you mean {near[0]}?" if near else ""))
        kind = type(DEFAULTS[key])
        if {kind, type(value)} == {int, float} and value == kind(value):  # 1e6 for an int, 1 for a float
            value = kind(value)
        if type(value) not in KINDS.get(key, (kind,)):
            raise ValueError(f"{where}: {key} = {value!r} is {type(value).__name__}, expected {kind.__name__}")
        if value not in CHOICES.get(key, (value,)):
            raise ValueError(f"{where}: {key} = {value!r}, expected one of {CHOICES[key]}")
        given[key] = value

    args = list(args)
    while args:
        arg = args.pop(0)
        if not arg.startswith("--"):
            if not os.path.isfile(arg):
                raise ValueError(f"{arg}: no such config file")
            try:
                values = runpy.run_path(arg)
            except Exception as e:
                raise ValueError(f"{arg}: {type(e).__name__}: {e}") from None
            for key, value in values.items():
                if key[0] != "_" and type(value) is not type(os):  # imports and _private names are the file's own
                    put(key, value, arg)
            continue
        key, equals, text = arg[2:].partition("=")
        kind = type(DEFAULTS.get(key))
        if not equals:  # --resume, --branch decay
            text = "True" if kind is bool else args.pop(0) if args else ""
        try:
            value = text if kind is str and text[:1] != "{" else ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        put(key, value, f"--{key}")
    return given


# -----------------------------------------------------------------------------
# learning rates


def height(g: Generation, tokens: float) -> float:
    """The rate of generation g at `tokens` on the ledger, as a share of its peak."""
    t, whole = tokens - g.birth, g.horizon - g.birth
    if t < g.warmup:
        return t / g.warmup
    if schedule == "cosine":
        x = (t - g.warmup) / max(1, whole - g.warmup)
        return floor + (1 - floor) * (1 + math.cos(math.pi * min(1.0, x))) / 2
    x = (t - whole * (1 - decay_share)) / max(1, whole * decay_share)
    return 1 - (1 - floor) * min(1.0, max(0.0, x))


def rates(generations: list[Generation], tokens: float) -> list[float]:
    """The learning rate of every generation at `tokens` on the ledger.

    own: each has its own peak, warmup and horizon, counted from its birth. shared: all have the peak and the horizon
    of the youngest, on generation 0's clock; the youngest alone warms up, to new_rate times the others' rate
    (SPARKLING, arXiv 2602.02472). generation 0 alone: the same."""
    if policy == "own" or len(generations) == 1:
        return [g.learning_rate * height(g, tokens) for g in generations]
    young = generations[-1]
    clock = dataclasses.replace(generations[0], horizon=young.horizon)
    lr = young.learning_rate * height(clock, tokens)
    warmed = min(1.0, (tokens - young.birth) / max(1, young.warmup))
    return [lr] * (len(generations) - 1) + [lr * new_rate * warmed]


@torch.no_grad()
def squares(optimizer: torch.optim.Optimizer, n: int) -> torch.Tensor:
    """(3, n): for each of n generations, the sums of squares of its gradient and of the update that the step just taken made
    to its parameters, decay included, and their number; of sharded ones, of this process's part. The update is read off
    Adam's state: no copy of the parameters is needed."""
    gradient, update, size = totals = torch.zeros(3, n, dtype=torch.float64)
    for group in optimizer.param_groups:
        (b1, b2), lr, g = group["betas"], group["lr"], group["generation"]
        for p in group["params"]:
            size[g] += local(p).numel()
            if p.grad is not None:  # it is not frozen
                s = {key: local(x) for key, x in optimizer.state[p].items()}
                adam = s["exp_avg"] / (1 - b1 ** s["step"]) / ((s["exp_avg_sq"] / (1 - b2 ** s["step"])).sqrt() + group["eps"])
                before = (local(p) + lr * adam) / (1 - lr * group["weight_decay"])
                update[g] += (before - local(p)).square().sum().cpu()
                gradient[g] += local(p.grad).square().sum().cpu()
    return totals


def local(x: torch.Tensor) -> torch.Tensor:
    """This process's part of a tensor."""
    return x.to_local() if isinstance(x, DTensor) else x


# -----------------------------------------------------------------------------


def main() -> None:
    given = configure(sys.argv[1:])
    globals().update(given)

    # --- processes and device
    ddp, restarts = "RANK" in os.environ, int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    master = rank == 0
    kind = device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    where = kind
    if kind == "cuda":
        where = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
        torch.cuda.set_device(where)
        torch.set_float32_matmul_precision("high")  # TF32 where autocast leaves fp32
    if ddp:
        # of their own for every restart: torch 2.13 would find the dead processes' addresses, and wait for them
        addresses = dist.PrefixStore(f"restart {restarts}", next(dist.rendezvous("env://"))[0])
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", store=addresses, rank=rank, world_size=world)
    bf16 = dtype == "bfloat16" or not dtype and kind == "cuda"
    autocast = torch.autocast(kind, torch.bfloat16, enabled=bf16)
    say = show if master else lambda *a, **k: None

    def everywhere(x):
        """The sum of a tensor over all processes."""
        if ddp:
            x = x.to(where)
            dist.all_reduce(x)
        return x.cpu()

    # --- data
    meta = read_meta(data)
    shares = shares_of(meta, data_mix, review)
    shards = [Shard(data, split, meta, block_size, seed) for split in shares]
    val_sets = {
        split.removesuffix(".val"): Shard(data, split, meta, block_size, seed)
        for split, s in meta["splits"].items()
        if (split == "val" or eval_stages and split.endswith(".val")) and s["tokens"]
    }
    token_bytes, its_tokenizer = np.fromfile(f"{data}/token_bytes.bin", np.uint16), read_tokenizer(meta)
    if len(token_bytes) != meta["vocab_size"]:
        raise ValueError(f"{data}/token_bytes.bin: {len(token_bytes)} entries for {meta['vocab_size']} tokens; prepare it again")

    # --- checkpoint: where to start
    folder, source = f"{out_dir}-{branch}" if branch else out_dir, init_from
    if master:  # one run at a time writes there
        os.makedirs(folder, exist_ok=True)
        held = lock(f"{folder}/.lock")  # noqa: F841
    last = f"{out_dir}/ckpt.pt" if os.path.exists(f"{out_dir}/ckpt.pt") else f"{out_dir}/ckpt.prev.pt"
    if branch:
        source, last = init_from or last, f"{folder}/ckpt.pt"
    if restarts and os.path.exists(last):
        globals()["resume"] = True  # torchrun --max-restarts starts again after a failure
    if resume:
        source = last
    elif os.path.exists(last):
        raise ValueError(f"{last} exists: go on with --resume, or give another out_dir")
    ckpt = load_checkpoint(source, whole=False) if source else None
    for text in [*val_sets.values(), *(shards if check_data and not resume else [])][rank::world]:
        text.verify()

    # --- model
    shape = {f.name: globals()[f.name] for f in dataclasses.fields(Config) if f.name in DEFAULTS}
    if ckpt:
        has = ckpt["config"] | {"vocab_size": ckpt["config"]["n_tokens"] or ckpt["config"]["vocab_size"]}
        for key in given.keys() & shape.keys() - {"block_size"}:
            if given[key] and given[key] != has[key]:
                raise ValueError(f"{key} = {given[key]}, but {source} has {has[key]}: grow.py changes sizes")
        if ckpt["tokenizer"]["sha256"] != meta["tokenizer"]["sha256"]:
            raise ValueError(f"{data} has the tokenizer {meta['tokenizer']['name']}, not the one that {source} was trained with")
        if "block_size" not in given:
            globals()["block_size"] = ckpt["config"]["block_size"]
        cfg = Config(**ckpt["config"] | {"block_size": block_size})
        ledger, step = dict(ckpt["ledger"]), ckpt["step"] if resume else 0
    else:
        if 0 < vocab_size < meta["vocab_size"]:
            raise ValueError(f"vocab_size = {vocab_size}, but the tokenizer of {data} has {meta['vocab_size']}")
        shape["vocab_size"] = vocab_size or meta["vocab_size"]
        if rows:
            ids = read_stage_rows(data, rows, f"rows = {rows!r}")
            shape |= {"vocab_size": len(ids), "n_tokens": meta["vocab_size"]}
        cfg = Config(**shape)
        ledger, step = {"tokens": 0, "flops": 0, "seconds": 0.0, "dealt": 0, "read": {}}, 0
    tokenizer = Tokenizer.from_dict(its_tokenizer) if sample_tokens else None
    flops_per_token = cfg.flops_per_token()
    if block_size > PAGE:
        raise ValueError(f"block_size = {block_size}: at most {PAGE}, or raise PAGE in train.py")
    for text, least in [(text, PAGE + 1) for text in shards] + [(val_sets["val"], block_size + 1)]:
        if len(text.tokens) < least:
            raise ValueError(f"{text.path}: too little text: {len(text.tokens)} tokens, and at least {least} are needed")
    for text in shards:
        text.block_size = block_size
    train = Mixture(shards, list(shares.values()), ledger["read"], ledger["dealt"])

    # --- batch: tokens a step -> sequences a process -> accumulation
    per_process, rest = divmod(tokens_per_step, block_size * world)
    if rest or not per_process:
        raise ValueError(f"tokens_per_step = {tokens_per_step} is no multiple of block_size {block_size} x {world} processes")
    micro = max(b for b in range(1, min(batch_size, per_process) + 1) if per_process % b == 0)
    accumulation = per_process // micro

    # --- schedules: a generation never trained before is born now
    start = (
        ckpt["branch"] if branch and resume else {"tokens": ledger["tokens"], "length": branch_tokens or ledger["tokens"] // 10}
    )
    last_step = -(-start["length"] // tokens_per_step) if branch else max_steps
    end = ledger["tokens"] + (last_step - step) * tokens_per_step
    newest = {"learning_rate": learning_rate, "warmup": warmup_tokens or 100 * tokens_per_step, "horizon": horizon_tokens or end}
    for g in cfg.generations:
        if not g.learning_rate:
            g.birth = ledger["tokens"]
            vars(g).update(newest)
    for key, name in {"learning_rate": "learning_rate", "warmup_tokens": "warmup", "horizon_tokens": "horizon"}.items():
        kept = getattr(cfg.generations[-1], name)
        if given.get(key, 0) not in (0, kept):
            raise ValueError(f"{key} = {given[key]}, but the youngest generation was born with {kept} and keeps it")
    if cfg.generations[-1].horizon <= ledger["tokens"] and not branch and step < last_step:
        raise ValueError(f"the rates ended at {cfg.generations[-1].horizon} tokens, and {ledger['tokens']} are read: grow first")

    # --- model and optimizer; memory is taken only when it is known which shard of a parameter is this process's
    sharded = shard and ddp
    # the CPU's switch, too: there, in bf16, short sequences are faster in plain products, 128 tokens in 2.3 ms instead of 5.2
    torch.backends.cuda.enable_flash_sdp(not (bf16 and kind == "cpu" and block_size <= 128))
    with torch.device("meta"):
        model = Llama(cfg)
    for block in model.layers:
        block.recompute = recompute
    if compile:
        model.compile(alone=not ddp and not recompute)  # in place: torch.compile(model) would rename every parameter
    if sharded:
        mesh, low = init_device_mesh(kind, (world,)), torch.bfloat16 if bf16 else None
        mixed = MixedPrecisionPolicy(param_dtype=low, reduce_dtype=low and torch.float32, cast_forward_inputs=False)
        for module in [*model.layers, model]:
            fully_shard(module, mesh=mesh, mp_policy=mixed)
    model.materialise(where)
    optimizer = model.optimizer(weight_decay, (beta1, beta2), adam_eps)
    if ckpt:
        load_state(model, optimizer, ckpt)
    else:
        model.init_weights(seed)
        if rows:
            model.row_of[torch.from_numpy(ids)] = torch.arange(len(ids), device=where)
    ids = model.token_ids().cpu()
    spelled = speller(ids, meta["vocab_size"], lambda: read_spelling(data))
    absent = {name: 1 - np.isin(spread(text.tokens, eval_tokens), ids).mean() for name, text in val_sets.items()}

    # --- what is trained, and DDP
    unknown = set(freeze) - {group["generation"] for group in optimizer.param_groups}
    if unknown:
        raise ValueError(f"freeze = {freeze}: no generation {unknown.pop()}")
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.requires_grad_(group["generation"] not in freeze)
    trained = [p for p in model.parameters() if p.requires_grad]
    if not trained:
        raise ValueError(f"freeze = {freeze}: nothing is left to train")
    warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated")  # torch 2.11 does not have its successor
    ddp_model = model
    if ddp and not sharded:  # gradients in DDP's own buckets: 4 bytes a parameter less
        ddp_model = DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    # --- what is about to happen
    n = model.count_params()
    say(f"{source or 'from scratch'}: {cfg.n_layer} x {cfg.n_embd}, {n['total']:,} parameters, "
        f"{n['non_embedding']:,} without embedding and head")  # fmt: skip
    say(f"{tokens_per_step:,} tokens a step = {world} processes x {accumulation} accumulated x {micro} sequences x {block_size}")
    for g, gen in enumerate(cfg.generations):
        if g in n["generations"]:
            say(f"generation {g}: {n['generations'][g]:,} parameters, born at {gen.birth:,} tokens, peak rate "
                f"{gen.learning_rate:.2e} after {gen.warmup:,} tokens, until {gen.horizon:,}"
                + ", frozen" * (g in freeze))  # fmt: skip
    if model.row_of is not None:
        say("spelled in byte tokens: " + ", ".join(f"{share:.2%} of {name}" for name, share in absent.items()))
    if resume:
        was = {k: v for k, v in ckpt["settings"].items() if k in DEFAULTS.keys() - {"resume", "stop_at"} and v != globals()[k]}
        say(f"resumed at step {step}" + "".join(f"; {k} {v} -> {globals()[k]}" for k, v in was.items()))
    if master:
        keep_metrics(f"{folder}/metrics.jsonl", step if resume else -1)
    metrics = open(f"{folder}/metrics.jsonl" if master else os.devnull, "a")
    run = start_wandb() if wandb and master else None

    def record(**values):
        """One line of metrics.jsonl, and of wandb."""
        values = {
            "step": step,
            "tokens": ledger["tokens"],
            "flops": ledger["flops"],
            "seconds": round(ledger["seconds"], 3),
        } | values
        metrics.write(json.dumps(values) + "\n")
        metrics.flush()
        if run:
            flat = {f"{k}/{i}": x for k, v in values.items() if isinstance(v, list) for i, x in enumerate(v)}
            run.log({k: v for k, v in values.items() if not isinstance(v, list)} | flat, step=step)

    def save():
        """Writes folder/ckpt.pt; the one before becomes ckpt.prev.pt."""
        if master or sharded:
            settings = {k: globals()[k] for k in DEFAULTS}
            ledger["dealt"] = train.next
            ledger["read"].update(train.read())
            state = {"config": cfg.plain(), "model": model.state_dict(), "optimizer": optimizer_state(model, optimizer)}
            state |= {"ledger": ledger, "lineage": ckpt["lineage"] if ckpt else [], "step": step, "settings": settings}
            state |= {"tokenizer": ckpt["tokenizer"] if ckpt else its_tokenizer, "branch": start}
            save_checkpoint(f"{folder}/ckpt.pt", state, keep=f"{folder}/ckpt.prev.pt")
        if ddp:
            dist.barrier()

    @torch.no_grad()
    def evaluate(shard):
        """(loss in nats a token, bits per byte) on eval_tokens of a validation shard, the same text whatever rows and
        block_size the model has, in windows of block_size of which the last may be shorter."""
        ids = spelled(spread(shard.tokens, eval_tokens)).astype(np.int64)
        total = torch.zeros(3, dtype=torch.float64)  # nats, tokens, bytes
        n_full = (len(ids) - 1) // block_size
        batches = [range(i, min(i + micro, n_full)) for i in range(0, n_full, micro)] + [range(n_full, n_full + 1)]
        batches = [b for b in batches if len(ids) - 1 > b[0] * block_size]
        for i in range(rank, -(-len(batches) // world) * world, world):  # all processes the same number: sharded, they must
            part = np.stack([ids[j * block_size : (j + 1) * block_size + 1] for j in batches[i % len(batches)]])
            x, y = part[:, :-1], part[:, 1:]
            # a shape that training does not have would be compiled for any shape, and then training, too
            with autocast, torch.compiler.set_stance("default" if x.shape == (micro, block_size) else "force_eager"):
                loss = model(torch.from_numpy(x).to(where), torch.from_numpy(y).to(where)).item()
            if i < len(batches):
                n_bytes = count_bytes(y, x, token_bytes, meta["bos"], meta["dummy_prefix"])
                total += torch.tensor([loss * y.size, y.size, n_bytes], dtype=torch.float64)
        nats, tokens, n_bytes = everywhere(total).tolist()
        return nats / tokens, nats / n_bytes / math.log(2)

    def sample():
        """The beginning of the validation text and how the model goes on, by the same draws every time. A token is a forward
        of its own, which assembles and reads all weights; sharded, all processes gather them, so all call it."""
        start = torch.from_numpy(spelled(val_sets["val"].tokens[:16]).astype(np.int64))[None].to(where)  # (1, T)
        rng = torch.Generator(where).manual_seed(seed)
        with autocast, torch.compiler.set_stance("force_eager"):  # compiled, it would be compiled for every length again
            ids = torch.cat([start, *model.generate(start, sample_tokens, temperature=0.8, rng=rng)], 1)[0].tolist()
        text = tokenizer.decode(i for i in ids if i < len(token_bytes) and token_bytes[i])  # ids that stand for text
        return "".join(c if c.isprintable() or c == "\n" else " " for c in text)  # the model may write control characters

    # --- signals: a flag, so that the step is finished and all processes stop together; a second one kills
    stopping = []

    def stop(number, _):
        stopping.append(number)
        signal.signal(number, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    # --- batches: the processes read sequences number .. + per_process * world between them
    def fetch(number, m):
        """Micro-batch m of the step that begins with sequence `number`: (micro, block_size + 1)"""
        first = number + (m * world + rank) * micro
        batch = torch.from_numpy(np.stack([train.sequence(first + j, spelled) for j in range(micro)]).astype(np.int64))
        return batch.pin_memory() if kind == "cuda" else batch

    reader = ThreadPoolExecutor(1)  # one batch ahead
    ahead = reader.submit(fetch, train.next, 0)

    # --- the loop
    _, peak = this_device(kind)
    val_loss, bpb, epochs = math.nan, math.nan, train.epochs()
    first_step, lap, busy = step, time.time(), 0.0  # busy: seconds of training, without evaluation and saving
    logged = {"step": step, "busy": busy}
    gc.collect()
    gc.freeze()
    gc.disable()  # it would run in the middle of a step, at another time in every process; a step makes no cycles
    while True:
        if step >= last_step or eval_interval and step % eval_interval == 0:
            gc.collect()
            results = {name: evaluate(text) for name, text in val_sets.items()}
            val_loss, bpb = results.pop("val")
            by_stage = {f"bpb_{name}": stage_bpb for name, (_, stage_bpb) in results.items()}
            say(f"step {step}: val loss {val_loss:.4f}, {bpb:.4f} bits per byte"
                + "".join(f", {name} {b:.4f}" for name, (_, b) in results.items()))  # fmt: skip
            record(val_loss=val_loss, bpb=bpb, **by_stage)
            if sample_tokens and (master or sharded) and math.isfinite(val_loss):
                text = sample()
                say("\n".join(f"    {line}" for line in text.splitlines() if line.strip()))
                record(sample=text)
            lap = time.time()
        if step >= last_step:
            break

        # rates at the middle of the step, so that neither the first nor the last is lost on zero
        middle = ledger["tokens"] + tokens_per_step / 2
        lr = rates(cfg.generations, start["tokens"] if branch else middle)
        if branch:
            lr = [r * (1 - (middle - start["tokens"]) / (last_step * tokens_per_step)) for r in lr]
        for group in optimizer.param_groups:
            group["lr"] = lr[group["generation"]]

        # forward and backward
        optimizer.zero_grad()  # not model.zero_grad(): after an evaluation, FSDP2's model still has the gathered parameters
        loss = torch.zeros((), device=where)
        for m in range(accumulation):
            batch, last = ahead.result().to(where, non_blocking=True), m == accumulation - 1
            ahead = reader.submit(fetch, train.next + last * per_process * world, 0 if last else m + 1)
            if sharded:
                model.set_requires_gradient_sync(last)
            elif ddp:
                ddp_model.require_backward_grad_sync = last
            with autocast:
                part = ddp_model(batch[:, :-1], batch[:, 1:]) / accumulation  # (micro, block_size) each
            part.backward()
            loss += part.detach()
        norm = torch.nn.utils.clip_grad_norm_(trained, grad_clip or math.inf)
        norm = norm.full_tensor() if sharded else norm
        if not math.isfinite(norm):  # on all processes alike, since gradients are averaged; the only wait for the GPU
            good = [c for c in (f"{folder}/ckpt.pt", f"{folder}/ckpt.prev.pt", source) if c and os.path.exists(c)]
            raise ValueError(f"step {step}: loss {loss.item():.4g}, gradient norm {norm.item():.4g}, rates {lr}; nothing saved; "
                             f"last good checkpoint: {good[0] if good else 'none'}")  # fmt: skip
        optimizer.step()

        # the ledger
        step += 1
        train.next += per_process * world
        ledger["tokens"] += tokens_per_step
        ledger["flops"] += tokens_per_step * flops_per_token
        now = time.time()
        ledger["seconds"] += now - lap
        busy += now - lap
        lap = now
        read_before, epochs = epochs, train.epochs()
        for text, before, times in zip(shards, read_before, epochs):
            if times > before:
                say(f"step {step}: {text.path} has been read {times} times, and is dealt anew")

        # logging
        if step % log_interval == 0 or step == last_step:
            loss = everywhere(loss).item() / world
            sums = squares(optimizer, len(cfg.generations))
            gradient, update, size = everywhere(sums) if sharded else sums
            share = gradient / gradient.sum().clamp(min=1e-30)  # clipping scales all alike
            norms = (norm.item() * share.sqrt()).tolist()
            moved = (update / size.clamp(min=1)).sqrt().tolist()
            speed = (step - logged["step"]) * tokens_per_step / (busy - logged["busy"])
            mfu = speed * flops_per_token / (peak * world) if peak else None
            left = (last_step - step) * busy / (step - first_step)
            logged = {"step": step, "busy": busy}
            say(f"step {step}/{last_step} {step / last_step:.0%} | loss {loss:.4f} | {left / 60:.0f} min left | "
                f"{speed:,.0f} tokens/s" + (f", MFU {mfu:.1%}" if mfu else "") + f" | norm {norm:.2f} | "
                + " ".join(f"g{g} {lr[g]:.1e} moves {moved[g]:.1e}" for g in sorted(n["generations"])),
                progress=True)  # fmt: skip
            record(loss=loss, norm=norm.item(), lr=lr, grad_norm=norms, update_rms=moved, tokens_per_second=speed, mfu=mfu)

        # saving, and stopping when asked to
        halt = everywhere(torch.tensor(float(bool(stopping)))).item() > 0 or step == stop_at
        if halt or step >= last_step or save_interval and step % save_interval == 0:
            save()
        if halt and step < last_step:
            say(f"stopped at step {step}, saved in {folder}/ckpt.pt; go on with --resume")
            break
        lap = time.time()

    # --- summary, for grep
    end_progress()
    peak_memory = torch.cuda.max_memory_allocated() if kind == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_memory *= 1024 if kind != "cuda" and sys.platform == "linux" else 1
    summary = {"step": step, "tokens": ledger["tokens"], "flops": f"{ledger['flops']:.4g}", "seconds": f"{ledger['seconds']:.1f}",
               "parameters": n["total"], "spelled": f"{absent['val']:.4f}", "val_loss": f"{val_loss:.4f}", "bpb": f"{bpb:.4f}",
               "peak_memory_MiB": f"{peak_memory / 2**20:.0f}", "checkpoint": f"{folder}/ckpt.pt"}  # fmt: skip
    for key, value in summary.items():
        say(f"{key}: {value}")
    if run:
        run.finish()
    if ddp:
        time.sleep(0.2)  # gloo's thread wants the GIL for the last tensors, and what comes next waits for it with the GIL held
        dist.destroy_process_group()


progress_line = ""  # what a terminal shows at its bottom


def show(line: str, progress: bool = False) -> None:
    """Prints a line. On a terminal, one of progress takes the place of the one before, and all others go above it."""
    global progress_line
    encoding = sys.stdout.encoding or "utf-8"
    line = line.encode(encoding, "replace").decode(encoding)  # of a model's text, it may lack characters
    if not sys.stdout.isatty():
        return print(line)
    if progress:
        progress_line = line[: shutil.get_terminal_size().columns - 1]
    print("\r\033[K" + (progress_line if progress else f"{line}\n{progress_line}"), end="", flush=True)  # \033[K: clear


def end_progress() -> None:
    """Leaves the line of progress: what comes next, an error too, begins a new one."""
    global progress_line
    print(end="\n" * bool(progress_line))
    progress_line = ""


def read_tokenizer(meta: dict) -> dict:
    """The tokenizer as a checkpoint carries it: meta's entry and, unless it is tiktoken's, the model file's bytes. ValueError
    where the file is not the one that the text was prepared with."""
    tokenizer = dict(meta["tokenizer"])
    if tokenizer["kind"] in MODEL_FILES:
        path = f"{data}/{MODEL_FILES[tokenizer['kind']]}"
        if sha256(path) != tokenizer["sha256"]:
            raise ValueError(f"{path}: not the one that the text was prepared with; prepare it again")
        tokenizer["model"] = torch.from_numpy(np.fromfile(path, np.uint8))
    return tokenizer


def keep_metrics(path: str, step: int) -> None:
    """Drops the lines of metrics.jsonl that a run resumed at `step` writes again."""
    if os.path.isfile(path):
        with open(path) as f:
            lines = [line for line in f if line.endswith("\n")]  # a kill may have cut the last one
        with open(f"{path}.tmp", "w") as f:
            for line in lines:
                at = json.loads(line)
                if at["step"] < step or at["step"] == step and "loss" in at:
                    f.write(line)
        os.replace(f"{path}.tmp", path)


def start_wandb():
    """A wandb run, or None and one line where wandb can't start; the training goes on without it."""
    try:
        import wandb

        return wandb.init(project=wandb_project, name=wandb_name or out_dir, config={k: globals()[k] for k in DEFAULTS})
    except Exception as e:
        print(f"wandb: {str(e).splitlines()[0]}; going on without it (WANDB_MODE=offline logs to disk)")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"train.py: {e}")
    finally:
        end_progress()
