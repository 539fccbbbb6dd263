"""
What growable tensors cost in speed: the training step of one Llama in four arms, side by side.

$ python bench.py                                                # the sizes for this device, four arms
$ python bench.py --sizes 55M 1.3B --rounds 9 --json bench.json  # two sizes; every round's figures in a file
$ python bench.py --sizes 125M --profile grown                   # and where the time of one arm goes
$ python bench.py --sizes cpu --no-compile --rounds 3 --steps 2  # seconds, on a CPU

| arm          | what it is
|--------------|----------------------------------------------------------------------------
| babel        | model.py with one generation
| grown        | model.py: the same shape, after three growths (grow.py: width, depth, width)
| plain        | the same Llama in torch's own modules, as in a nanoGPT; below
| transformers | LlamaForCausalLM, where transformers is installed
| ramping      | grown, while what the growths added is half in (--ramp); only where --arms names it
| bfloat16     | babel in bf16 autocast on a CPU, as train.py --dtype=bfloat16; only where --arms names it
| torch_loss   | babel with the linear_cross_entropy of torch 2.13, in chunks; only where --arms names it

All have as many parameters, read the same batch and go through one train_step: fused AdamW, on CUDA bf16
autocast over fp32 weights. They take turns: in each round every arm makes a few steps, so that a drifting
clock drifts for all. Ratios are taken within a round. The median over rounds is printed, with the smallest
and the largest. Neither compiling nor the first two steps of a turn are timed. Peak memory is that of a step
with the arm alone on the device. MFU is tokens/s x Config.flops_per_token() / the device's dense bf16 peak,
for all arms alike.
"""

import argparse
import functools
import gc
import json
import math
import os
import platform
import statistics
import sys
import time
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F

from checkpoint import build_model
from export import llama_config
from grow import grow, widen
from model import Config, Llama, this_device

try:
    import transformers
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
except ImportError:
    transformers = None

SIZES = {  # the shape; sequences x tokens a step on a GPU of 80 GB
    "cpu": (dict(n_layer=4, n_embd=256, n_head=4, head_dim=64, vocab_size=4096), 32, 256),
    "55M": (dict(n_layer=8, n_embd=512, n_head=4, head_dim=128), 32, 1024),
    "125M": (dict(n_layer=12, n_embd=768, n_head=12, head_dim=64), 32, 1024),
    "350M": (dict(n_layer=24, n_embd=1024, n_head=8, head_dim=128), 16, 1024),
    "1.3B": (dict(n_layer=24, n_embd=2048, n_head=16, head_dim=128), 4, 2048),
}
ARMS = ("babel", "grown", "plain", "transformers", "ramping", "bfloat16", "torch_loss")
# ratios of tokens/s
RATIOS = (
    ("grown", "babel"),
    ("babel", "plain"),
    ("babel", "transformers"),
    ("ramping", "grown"),
    ("bfloat16", "babel"),
    ("torch_loss", "babel"),
)

# -----------------------------------------------------------------------------
# the plain reference


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, self.head_dim = cfg.n_head * cfg.head_dim, cfg.head_dim
        self.attn_norm = nn.RMSNorm(cfg.n_embd, cfg.norm_eps)
        self.qkv = nn.Linear(cfg.n_embd, 3 * width, bias=False)  # one product for three, as nanoGPT's c_attn
        self.o = nn.Linear(width, cfg.n_embd, bias=False)
        self.mlp_norm = nn.RMSNorm(cfg.n_embd, cfg.norm_eps)
        self.gate = nn.Linear(cfg.n_embd, cfg.ffn_dim, bias=False)
        self.up = nn.Linear(cfg.n_embd, cfg.ffn_dim, bias=False)
        self.down = nn.Linear(cfg.ffn_dim, cfg.n_embd, bias=False)

    def forward(self, x, cos, sin):
        B, T, _ = x.shape
        qkv = self.qkv(self.attn_norm(x)).chunk(3, -1)
        q, k, v = (w.view(B, T, -1, self.head_dim).transpose(1, 2) for w in qkv)  # each (B, nh, T, hd)
        y = F.scaled_dot_product_attention(rope(q, cos, sin), rope(k, cos, sin), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(B, T, -1))  # (B, T, nh * hd) -> (B, T, C)
        h = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


def rope(x, cos, sin):
    """Apply RoPE, half-split. x (B, nh, T, hd); cos, sin (T, hd/2)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


class Plain(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        self.blocks = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.norm = nn.RMSNorm(cfg.n_embd, cfg.norm_eps)
        self.head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        place = torch.arange(0, cfg.head_dim, 2, dtype=torch.float64) / cfg.head_dim
        at = torch.arange(cfg.block_size, dtype=torch.float64)
        angle = torch.outer(at, cfg.rope_theta**-place)  # (block_size, hd/2)
        self.register_buffer("cos", angle.cos().to(self.wte.weight.dtype), persistent=False)
        self.register_buffer("sin", angle.sin().to(self.wte.weight.dtype), persistent=False)

    def forward(self, idx, targets=None):
        x, T = self.wte(idx), idx.size(1)  # (B, T, C)
        for block in self.blocks:
            x = block(x, self.cos[:T], self.sin[:T])
        logits = self.head(self.norm(x))
        return logits if targets is None else F.cross_entropy(logits.flatten(0, 1), targets.flatten())


# -----------------------------------------------------------------------------
# the arms


def grown(cfg, ramp=0):
    """Return the model of cfg's shape that three growths make of one with half the width and half the
    layers. ramp: as grow.py's; the model is half way through it."""
    half = {name: getattr(cfg, name) // 2 for name in ("n_layer", "n_head", "n_embd")}
    same = {name: getattr(cfg, name) for name in ("head_dim", "vocab_size", "block_size")}
    small = Config(**half, **same)
    model = Llama(small)
    model.init_weights(1337)
    ckpt = {"config": small.plain(), "model": model.state_dict(), "optimizer": {}, "ledger": {"tokens": 0}}
    for sizes in (widen(small, cfg.n_embd * 3 // 4), {"n_layer": cfg.n_layer}, widen(small, cfg.n_embd)):
        ckpt, _ = grow(ckpt, ramp=ramp, **sizes)
    model = build_model(ckpt)
    model.ramp(ramp / 2)  # at 0 new slabs would get no gradient, and a GPU is faster with zeros
    return model


def stock(cfg):
    """Return transformers' Llama, with its "sdpa" under another name.

    Compiled, "sdpa" builds a T x T mask before torch 2.14, which rules flash attention out. For an attention
    whose name it does not know, transformers builds none, and SDPA is causal."""
    transformers.AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
    config = transformers.LlamaConfig(**llama_config(cfg, "float32", 1, 2), use_cache=False)
    return transformers.AutoModelForCausalLM.from_config(config, attn_implementation="sdpa_causal")


def build(name, cfg, device, compile=False):
    """Return an arm: {'model', 'params', 'optimizer', 'loss': a function of x and y, 'autocast'}."""
    if name not in ("plain", "transformers"):
        make = {"grown": grown, "ramping": functools.partial(grown, ramp=10**12)}.get(name, Llama)
        model = make(cfg).to(device)
        optimizer = model.optimizer(weight_decay=0.1)
    else:
        with torch.device(device):
            model = (Plain if name == "plain" else stock)(cfg)
        groups = [{"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1}]
        groups += [{"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for group in optimizer.param_groups:
        group["lr"] = 3e-4
    params = list(model.parameters())
    torch.manual_seed(1337)
    for p in params:  # newborn slabs too: a GPU multiplies zeros faster than numbers
        if p.dim() == 1:
            nn.init.ones_(p)
        else:
            nn.init.normal_(p, std=0.02)
    if compile:  # in place: model.py's Llama as train.py does in one process, the others whole
        (model.compile_blocks if isinstance(model, Llama) else model.compile)()

    def shifted(x, y):  # transformers' loss of y; its own shift would drop a token
        return model(input_ids=x, labels=y, shift_labels=y).loss

    def torch_loss(x, y):  # Babel with torch's chunked loss in place of LinearCrossEntropy
        h, w = model.trunk(x)
        return F.linear_cross_entropy(h.flatten(0, 1), w, y.flatten(), options=nn.LinearCrossEntropyOptions())

    loss = {"transformers": shifted, "torch_loss": torch_loss}.get(name, model)
    autocast = torch.autocast(device, torch.bfloat16, enabled=device == "cuda" or name == "bfloat16")
    return {"model": model, "params": params, "optimizer": optimizer, "loss": loss, "autocast": autocast}


def move(arm, device):
    """Move an arm in place, parameter by parameter: what is compiled stays compiled."""
    arm["model"].to(device)
    for state in arm["optimizer"].state.values():
        state.update({key: value.to(device) for key, value in state.items()})
    gc.collect()
    torch.cuda.empty_cache()


# -----------------------------------------------------------------------------
# the measurement


def train_step(arm, x, y):
    """Make one step, the same for every arm, and return its loss. Nothing in it waits for the device."""
    with arm["autocast"]:
        loss = arm["loss"](x, y)
    loss.backward()
    nn.utils.clip_grad_norm_(arm["params"], 1.0)
    arm["optimizer"].step()
    arm["optimizer"].zero_grad()
    return loss.detach()


def run(arm, x, y, steps):
    """Return (seconds a step, the device's work included; the last loss) of so many steps."""
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(steps):
        loss = train_step(arm, x, y)
    wait()
    return (time.perf_counter() - start) / steps, loss.item()


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "by_round": values}


def measure(size, names, args):
    """Return what --json holds of one size."""
    cuda = args.device == "cuda"
    shape, batch, block_size = SIZES[size]
    if not cuda:
        batch, block_size = 2, 256
    batch, block_size = args.batch or batch, args.block_size or block_size
    cfg = Config(**shape, block_size=block_size)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randint(cfg.vocab_size, (2, batch, block_size), generator=rng).to(args.device)
    torch._dynamo.reset()  # or the shapes of the size before would make those of this one dynamic
    gc.collect()  # a compiled model is a reference cycle: the arms of the size before are still there
    torch.cuda.empty_cache()

    # alone on the device: the first step compiles, those after it show the peak
    arms, out, seconds = {}, {}, {name: [] for name in names}
    for name in names:
        arm = arms[name] = build(name, cfg, args.device, args.compile)
        first, _ = run(arm, x, y, 1)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        run(arm, x, y, 2)
        counts = [p.numel() for p in arm["params"]]
        out[name] = {
            "parameters": sum(counts),
            "tensors": len(counts),
            "generations": len(getattr(arm["model"], "cfg", cfg).generations),
            "first_step_seconds": first,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        }
        as_many = out[name]["parameters"] == out[names[0]]["parameters"]
        assert as_many, f"{size}: {name} and {names[0]} differ in size"
        print(f"{size} {name}: the first step took {first:.1f} s", file=sys.stderr)
        move(arm, "cpu")

    # in turns. An arm that waits holds 12 bytes a parameter. It waits on the CPU if all arms together would
    # take more than half of the device's memory
    crowded = cuda and 12 * len(names) * sum(counts) > torch.cuda.mem_get_info()[1] / 2
    for i in range(args.rounds):
        for name in names[::-1] if i % 2 else names:  # there and back
            move(arms[name], args.device)
            run(arms[name], x, y, 2)
            time_a_step, out[name]["loss"] = run(arms[name], x, y, args.steps)
            seconds[name].append(time_a_step)
            if crowded:
                move(arms[name], "cpu")

    # figures
    _, peak_flops = this_device(args.device)
    for name, arm in out.items():
        if not math.isfinite(arm["loss"]):
            raise ValueError(f"{size} {name}: the loss is {arm['loss']}")
        arm["step_seconds"] = spread(seconds[name])
        arm["tokens_per_second"] = spread([batch * block_size / s for s in seconds[name]])
        arm["mfu"] = arm["compile_seconds"] = None
        if peak_flops:
            arm["mfu"] = arm["tokens_per_second"]["median"] * cfg.flops_per_token() / peak_flops
        if args.compile:
            arm["compile_seconds"] = arm["first_step_seconds"] - arm["step_seconds"]["median"]
    ratios = {}
    for a, b in RATIOS:
        if a in out and b in out:
            ratios[f"{a}/{b}"] = spread([theirs / own for own, theirs in zip(seconds[a], seconds[b])])

    # where the time goes
    if args.profile:
        move(arms[args.profile], args.device)
        with torch.profiler.profile() as profile:
            run(arms[args.profile], x, y, args.steps)
        by = "self_device_time_total" if cuda else "self_cpu_time_total"
        print(f"\n{size} {args.profile}, {args.steps} steps")
        print(profile.key_averages().table(sort_by=by, row_limit=25))
    result = {"config": cfg.plain(), "flops_per_token": cfg.flops_per_token()}
    result |= {"batch": batch, "block_size": block_size}
    return result | {"arms": out, "tokens_per_second_ratios": ratios}


def report(size, result):
    """Print what --json holds of one size."""

    def show(s, form, unit=1):
        return f"{s['median'] / unit:{form}} ({s['min'] / unit:{form}} to {s['max'] / unit:{form}})"

    def maybe(value, form):
        return "-" if value is None else form.format(value)

    cfg, arms = result["config"], result["arms"]
    n = next(iter(arms.values()))["parameters"]
    tokens = f"{result['batch']} x {result['block_size']} tokens a step"
    print(f"\n{size}: {cfg['n_layer']} x {cfg['n_embd']}, {n:,} parameters, {tokens}")
    line = "{:<14}{:>8}{:>30}{:>32}{:>8}{:>14}{:>10}"
    print(line.format("arm", "tensors", "ms a step", "tokens/s", "MFU", "peak memory", "compile"))
    for name, arm in arms.items():
        memory = arm["peak_memory_bytes"] and arm["peak_memory_bytes"] / 2**30
        cells = [show(arm["step_seconds"], ".1f", 1e-3), show(arm["tokens_per_second"], ",.0f")]
        cells += [maybe(arm["mfu"], "{:.1%}"), maybe(memory, "{:.2f} GiB")]
        cells += [maybe(arm["compile_seconds"], "{:.1f} s")]
        print(line.format(name, arm["tensors"], *cells))
    for name, ratio in result["tokens_per_second_ratios"].items():
        print(f"{name + ' in tokens/s':<36}{show(ratio, '.3f')}")


# -----------------------------------------------------------------------------


def parse_args():
    what = "The speed of a training step: grown, not grown, plain, transformers."
    p = argparse.ArgumentParser(description=what)
    known = f"of {', '.join(SIZES)} (default: all for CUDA, two for a CPU)"
    p.add_argument("--sizes", nargs="+", metavar="SIZE", help=known)
    known = f"of {', '.join(ARMS)} (default: the first four)"
    p.add_argument("--arms", nargs="+", metavar="ARM", default=ARMS[:4], help=known)
    p.add_argument("--rounds", type=int, default=5, help="turns of every arm (default: 5)")
    p.add_argument("--steps", type=int, default=10, help="timed steps a turn (default: 10)")
    p.add_argument("--batch", type=int, help="sequences a step (default: the size's; 2 on a CPU)")
    p.add_argument("--block_size", type=int, help="tokens a sequence (default: the size's; 256 on a CPU)")
    p.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    found = "cuda" if torch.cuda.is_available() else "cpu"
    p.add_argument("--device", choices=("cuda", "cpu"), default=found)
    p.add_argument("--profile", metavar="ARM", help="print where the time of this arm's steps goes, too")
    p.add_argument("--json", metavar="FILE", help="write all figures, those of every round too")
    return p.parse_args()


def main():
    args = parse_args()
    cuda = args.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds none")
    sizes = args.sizes or (list(SIZES)[1:] if cuda else list(SIZES)[:2])
    for kind, given, known in (("size", sizes, SIZES), ("arm", args.arms, ARMS)):
        for name in given:
            if name not in known:
                raise ValueError(f"no {kind} is called {name}: it is one of {', '.join(known)}")
    if min(n for n in (args.rounds, args.steps, args.batch, args.block_size) if n is not None) < 1:
        raise ValueError("--rounds, --steps, --batch and --block_size are 1 or more")
    if args.json and not os.path.isdir(os.path.dirname(args.json) or "."):
        raise ValueError(f"{os.path.dirname(args.json)}: no such folder")
    names = [name for name in ARMS if name in args.arms]
    if "transformers" in names and not transformers:
        names.remove("transformers")
        print("transformers is not installed: its arm is left out", file=sys.stderr)
    if "torch_loss" in names and not hasattr(F, "linear_cross_entropy"):
        names.remove("torch_loss")
        print("this torch has no linear_cross_entropy: torch_loss is left out", file=sys.stderr)
    if not names or args.profile and args.profile not in names:
        raise ValueError(f"--profile {args.profile}: no such arm is run" if names else "no arm is left")
    if cuda and "bfloat16" in names:
        raise ValueError("--arms bfloat16 is for a CPU: on CUDA all arms are in bf16")

    torch.set_float32_matmul_precision("high" if cuda else "highest")  # as train.py
    if args.compile:
        warnings.filterwarnings("ignore", "dynamo_pgo force disabled")
        torch._inductor.config.force_disable_caches = True  # or a second run would hardly compile
        # all arms compile the same code of nn.Module, and beyond the limit they would not
        torch._dynamo.config.recompile_limit = 64
        # what starts once is no arm's compile time
        torch.compile(lambda x: x @ x + 1)(torch.ones(8, 8, device=args.device))

    result = {
        "command": " ".join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "device": this_device(args.device)[0],
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "transformers": transformers and transformers.__version__,
        "precision": "bf16 autocast" if cuda else "fp32",
        "compile": args.compile,
        "rounds": args.rounds,
        "steps": args.steps,
        "sizes": {},
    }
    how = "compiled" if args.compile else "not compiled"
    print(
        f"{result['device']}, torch {torch.__version__}, {result['precision']}, {how}; "
        f"{args.rounds} rounds of {args.steps} steps, median (min to max)"
    )
    for size in sizes:
        result["sizes"][size] = measure(size, names, args)
        report(size, result["sizes"][size])
        if args.json:  # after every size, since the next may not fit
            with open(args.json, "w") as f:
                json.dump(result, f, indent=1)


if __name__ == "__main__":
    try:
        main()
    except torch.OutOfMemoryError as e:
        sys.exit(f"bench.py: {str(e).splitlines()[0]} Try a smaller --batch")
    except (ValueError, OSError) as e:
        sys.exit(f"bench.py: {e}")
