"""
Train a stage, grow it as the next stage's config says (_grow), train that: the ladder. Plan it, and check it.

$ python runs/ladder.py run config/stage?.py                  # stop it at any time; started again, it goes on
$ python runs/ladder.py run config/tiny?.py --data=data/mine  # settings of train.py for all stages
$ python runs/ladder.py plan config/stage?.py --gpu h200 --count 8    # FLOPs, memory, hours; trains nothing
$ python runs/ladder.py control out/stage8/ckpt.pt 3e-4       # did growing pay? The same size from scratch

The rates of all stages end together, with the last stage. --nproc: processes a training (default: one a GPU).

A control trains the size of a grown checkpoint from scratch, on the FLOPs that all of its stages took
together, decayed to zero at their end. It has the same data, and is evaluated on the same text. Give it at
least three learning rates, and compare the best: a control that is not tuned proves nothing. Compare it
against a ladder that is decayed as well.
"""

import argparse
import itertools
import os
import runpy
import signal
import subprocess
import sys

import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from checkpoint import load_checkpoint
from grow import count
from model import CHUNK, DEVICES, Config, skeleton
from train import DEFAULTS, configure, last_checkpoint, shape_of

HERE = sys.path[0]  # the folder of train.py

# -----------------------------------------------------------------------------
# stages


def read_stage(path: str, settings: dict) -> dict:
    """Return the settings of a stage's config, with those of the command line, and its _grow. Raise
    ValueError if it lacks one that a stage must give."""
    given = configure([path]) | settings
    for name in ("out_dir", "max_steps", "tokens_per_step", "learning_rate"):
        if name not in given:
            raise ValueError(f"{path}: {name} is missing")
    return DEFAULTS | given | {"_grow": runpy.run_path(path).get("_grow", "")}


def call(*command: object) -> None:
    """Run Python with a command, and wait for it. Raise ValueError if it fails, SystemExit if it was stopped.

    SIGTERM and Ctrl-C are passed on, so that train.py saves."""
    child = subprocess.Popen([sys.executable, *map(str, command)])
    stopped = []

    def stop(number: int, _: object) -> None:
        stopped.append(number)
        child.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    code = child.wait()
    for number, handler in before.items():
        signal.signal(number, handler)
    if stopped:
        sys.exit("ladder.py: stopped; the same command goes on")
    if code:
        script = next(word for word in command if str(word).endswith(".py"))
        raise ValueError(f"{os.path.basename(script)} failed: see above")


def train(n_processes: int, *args: str) -> None:
    """Run train.py in so many processes: one by itself, more under torchrun."""
    torchrun = []
    if n_processes != 1:
        # asked to stop, train.py ends its step and saves; by default torchrun kills it after 30 s
        os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "3600")
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    call(*torchrun, os.path.join(HERE, "train.py"), *args)


def finished(folder: str, steps: int) -> bool:
    """Return whether a folder's checkpoint has taken so many steps. train.py's exit status does not say: it
    is 0 also where train.py was stopped."""
    path = f"{folder}/ckpt.pt"
    return os.path.exists(path) and load_checkpoint(path, whole=False, verify=False)["step"] >= steps


def run(paths: list[str], options: list[str], n_processes: int) -> None:
    """Train and grow all stages, from where they were left."""
    settings = configure(options)
    stages = [read_stage(path, settings) for path in paths]
    tokens = sum(stage["max_steps"] * stage["tokens_per_step"] for stage in stages)
    for path, before, stage in zip(paths[1:], stages, stages[1:]):
        grown = os.path.join(before["out_dir"], "grown.pt")
        if os.path.normpath(stage["init_from"]) != os.path.normpath(grown):
            given = f"{path}: init_from = {stage['init_from']!r}"
            raise ValueError(f"{given}, but the stage before it ends in {grown}")
    for path, stage, after in itertools.zip_longest(paths, stages, stages[1:]):
        out, steps = stage["out_dir"], stage["max_steps"]
        if after and os.path.exists(f"{out}/grown.pt"):  # grow.py writes it whole or not at all
            if os.path.exists(f"{out}/ckpt.pt") and not finished(out, steps):
                raise ValueError(f"{out} was grown before step {steps}: remove it, or lower max_steps")
            continue
        if not finished(out, steps):
            resume = ["--resume"] if os.path.exists(last_checkpoint(out)) else []
            print(f"=== {path}", *resume, flush=True)
            train(n_processes, path, f"--horizon_tokens={tokens}", *resume, *options)
            if not finished(out, steps):
                sys.exit(f"ladder.py: stopped before the end of {path}; the same command goes on")
        if after:
            call(os.path.join(HERE, "grow.py"), "--in", f"{out}/ckpt.pt", *after["_grow"].split())
    print(f"the ladder is done: {out}/ckpt.pt")


def control(path: str, rate: str, options: list[str], n_processes: int, out: str) -> None:
    """Train the size of a checkpoint from scratch, on its FLOPs."""
    ckpt = load_checkpoint(path, whole=False, verify=False)
    if not ckpt["schedule"]:
        raise ValueError(f"{path}: was never trained, so that it took no FLOPs")

    # what it was trained with, but for what is a run's own
    own = "out_dir init_from resume branch branch_tokens stop_at freeze".split()
    own += "learning_rate horizon_tokens wandb_name".split()
    known = ckpt["settings"] | ckpt["config"]
    settings = {key: known[key] for key in DEFAULTS if key in known and key not in own}
    settings["vocab_size"] = ckpt["config"]["n_tokens"] or ckpt["config"]["vocab_size"]
    widened = [growth["vocab"] for growth in ckpt["lineage"] if growth.get("vocab")]
    if widened:  # the stage of text whose tokens have rows by now
        settings["rows"] = widened[-1]
    asked = configure(options)
    if ckpt["config"]["n_tokens"] and not (settings.get("rows") or "rows" in asked):
        raise ValueError(f"{path} has rows for some tokens only: give --rows=STAGE, as its first stage had")

    # its FLOPs, and a folder
    a_step = Config(**ckpt["config"]).flops_per_token() * settings["tokens_per_step"]
    steps = asked.get("max_steps", round(ckpt["ledger"]["flops"] / a_step))
    out = out or f"{os.path.dirname(os.path.abspath(path))}-control-{rate}"
    begun = os.path.exists(last_checkpoint(out))
    if begun:
        was = load_checkpoint(last_checkpoint(out), whole=False, verify=False)["settings"]["max_steps"]
        if was != steps:
            raise ValueError(f"{out} has a control of {was} steps, not of {steps}: give another --out")
    settings |= {"max_steps": steps, "floor": 0.0, "out_dir": out, "learning_rate": rate, "resume": begun}
    train(n_processes, *(f"--{key}={value}" for key, value in settings.items() if value != ""), *options)


# -----------------------------------------------------------------------------
# what a ladder takes

# what a token that a ladder reads counts for, beside one that the control reads (docs/experiments.md):
#   depth doubled twice, by 25 % of the FLOPs   1.03 to 1.22 at R 1.4
#   by 12 %, and by 6 % (one seed)              1.36 at R 1.2, and 1.48 at R 1.1
#   once, at 25 %                               0.98 at R 1.2
#   by 50 %                                     0.63 to 0.88 at R 1.8
#   thrice, by 25 %, by 50 %                    1.04 at R 1.6, 0.70 at R 2.3
#   width doubled at 2 %, then depth twice,
#   by 25 %, by seed                            0.88 to 1.11 at R 1.5
#   the same at 87 tokens a parameter           0.76 at R 1.5
#   by 50 %, and with width at 8 %              0.67 at R 2.0, and 0.59 at R 2.4
#   width doubled at 12 %, between depths
#   at 2 and 25 %, by seed                      0.72 and 0.76 at R 1.8
#   width alone, at 25 %                        0.62 at R 1.5
ETA = {
    "by depth alone, early": (0.98, 1.22),
    "by depth alone": (0.63, 0.88),
    "widths first, early": (0.76, 1.11),
    "widths first": (0.59, 0.67),
    "a width after a depth": (0.72, 0.76),
}
EARLY = 0.3  # of the FLOPs, by the last growth


def memory(cfg: Config, tokens: int, n_devices: int, sharded: bool, recompute: bool) -> float:
    """Return the bytes that a device needs with `tokens` tokens a forward: parameters, gradients and two
    moments in fp32, weights cast to bf16, and activations.

    Activations are what autograd saves under bf16 autocast, of the chunked loss a chunk
    (test_the_plan_of_a_ladder counts them). torch.compile keeps less."""
    n = skeleton(cfg).count_params()
    layer = (n["non_embedding"] - cfg.n_embd) // cfg.n_layer
    unit = max(layer, n["total"] - n["non_embedding"])  # what FSDP gathers at a time
    a_layer = tokens * (26 * cfg.n_embd + 10 * cfg.n_head * cfg.head_dim + 8 * cfg.ffn_dim)
    activations = a_layer + tokens * 4 * cfg.n_embd * cfg.n_layer if recompute else a_layer * cfg.n_layer
    loss = 10 * CHUNK + 4 * cfg.vocab_size * cfg.n_embd  # logits, their gradient; the head's
    weights = 18 * n["total"]
    if sharded:  # bf16 weights of two units, this and the next; gradients of one, before they are scattered
        weights = 16 * n["total"] / n_devices + (2 * 2 + 4) * unit
    return weights + activations + loss


def kind_of(cfgs: list[Config], last: float) -> str:
    """Return which of ETA holds for a ladder of these sizes, whose last growth comes at this share of the
    FLOPs."""
    early = ", early" if last < EARLY else ""
    widths = [cfg.n_embd for cfg in cfgs]
    wide = widths.index(widths[-1])  # the first stage of the final width
    if not wide:
        return "by depth alone" + early
    if cfgs[wide - 1].n_layer > cfgs[0].n_layer:
        return "a width after a depth"
    deepens = cfgs[-1].n_layer > cfgs[wide].n_layer
    return "widths first" + (early if deepens else "")  # a width alone is no better early: 0.62


def plan(paths: list[str], options: list[str], device: str, n_devices: int, mfu: float) -> None:
    """Print what the stages take, one after another, on so many devices."""
    names = {name.lower(): name for name in DEVICES}
    if device.lower() not in names:
        raise ValueError(f"--gpu {device}: one of {', '.join(names)}")
    if n_devices < 1:
        raise ValueError(f"--count {n_devices}: at least 1")
    if not 0 < mfu <= 1:
        raise ValueError(f"--mfu {mfu}: a share of the peak, above 0 and at most 1")
    peak, room = DEVICES[names[device.lower()]]
    stages = [read_stage(path, configure(options)) for path in paths]
    cfgs = []
    for path, s in zip(paths, stages):
        try:
            cfgs.append(Config(**shape_of(s) | {"vocab_size": s["vocab_size"] or 32000}))
        except ValueError as e:
            raise ValueError(f"{path}: {e}") from None
    devices = f"{n_devices} x {names[device.lower()]} of {room / 1e9:.0f} GB"
    print(f"{devices} at {mfu:.0%} MFU. GB a device; *: recomputing")
    print("grown: at this share of all FLOPs; docs/evidence.md says what did best")
    heads = "stage,layers x width,parameters,tokens,rate,FLOPs,grown,GB,*,sharded,*,hours"
    print(("{:<8}{:>14}{:>16}" + "{:>9}" * 9).format(*heads.split(",")))
    reads = [s["max_steps"] * s["tokens_per_step"] for s in stages]
    takes = [n * cfg.flops_per_token() for n, cfg in zip(reads, cfgs)]
    tokens, flops, an_hour = sum(reads), sum(takes), n_devices * peak * mfu * 3600  # an_hour: FLOPs
    for i, (path, s, cfg) in enumerate(zip(paths, stages, cfgs)):
        forward = min(s["batch_size"] * s["block_size"], s["tokens_per_step"] // n_devices)
        ways = itertools.product((False, True), repeat=2)  # sharded, recomputing
        gb = "".join(f"{memory(cfg, forward, n_devices, *way) / 1e9:>9.0f}" for way in ways)
        name, size = os.path.basename(path).removesuffix(".py"), f"{cfg.n_layer} x {cfg.n_embd}"
        n_params = skeleton(cfg).count_params()["total"]
        print(
            f"{name:<8}{size:>14}{n_params:>16,}{count(reads[i]):>9}{s['learning_rate']:>9.1e}"
            f"{takes[i]:>9.2e}{sum(takes[:i]) / flops:>9.0%}{gb}{takes[i] / an_hour:>9.1f}"
        )
    print(f"all: {count(tokens)} tokens, {flops:.2e} FLOPs, {flops / an_hour:,.1f} hours")
    if len(stages) == 1:
        return
    scratch = tokens * cfg.flops_per_token()
    took, r = f"{scratch:.2e} FLOPs, {scratch / an_hour:,.1f} hours", scratch / flops
    print(f"the last stage from scratch on as many tokens: {took}, {r:.2f} times")
    kind = kind_of(cfgs, sum(takes[:-1]) / flops)
    low, high = ETA[kind]
    worth = f"{r:.2f} x {low} to {high} = {r * low:.1f} to {r * high:.1f}"
    print(f"{kind}, expected worth = R x eta = {worth}")
    print("eta was measured at 1.3M parameters and less (docs/evidence.md)")


# -----------------------------------------------------------------------------


def main() -> None:
    p = argparse.ArgumentParser(description="Train, plan and check a ladder of stages.", allow_abbrev=False)
    p.add_argument("what", choices=("run", "plan", "control"))
    files = "config files, the first stage first; control: CKPT RATE"
    p.add_argument("args", nargs="+", metavar="STAGE", help=files)
    n_gpus = torch.cuda.device_count()
    p.add_argument("--nproc", type=int, default=n_gpus or 1, help="processes (default: one a GPU)")
    p.add_argument("--out", default="", help="with control: the folder (default: CKPT's, -control-RATE)")
    p.add_argument("--gpu", default="h100", help="with plan (default: h100)")
    p.add_argument("--count", type=int, default=8, help="with plan: devices (default: 8)")
    share = "with plan: the share of peak FLOP/s reached (default: 0.4)"
    p.add_argument("--mfu", type=float, default=0.4, help=share)
    args, options = p.parse_known_args()  # options: settings of train.py
    if args.what == "control":
        if len(args.args) != 2:
            p.error("control takes a checkpoint and a learning rate")
        return control(*args.args, options, args.nproc, args.out)
    if args.what == "plan":
        return plan(args.args, options, args.gpu, args.count, args.mfu)
    run(args.args, options, args.nproc)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"ladder.py: {e}")
