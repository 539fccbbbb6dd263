"""
Does growing pay? Trains arms, each a chain of stages, on the same training FLOPs, and compares them.

$ python runs/compare.py runs/results/cpu --jobs 2            # train what its lines.jsonl lacks, then report
$ python runs/compare.py runs/results/cpu --report            # the table and the picture of lines.jsonl alone

The folder holds arms.py, which says what is compared:

    budget = 3e13                                   # training FLOPs of an arm: all stages, attention and head included
    seeds = [1, 2, 3]                               # of the weights and of the order of the data
    deciding = ["scratch 4e-3"]                     # if given: the arms that are trained with all seeds, others with the first
    common = dict(data="data/babel", n_embd=128)    # settings of train.py, for all
    control = "scratch"                             # the arms that begin so, and have one stage, are the controls
    arms = {
        "scratch 4e-3": [dict(n_layer=8, learning_rate=4e-3)],
        "stacked at 25 %": [dict(n_layer=4, until=0.25), dict(grow="--double depth --init stack")],
    }

A stage is a dict of settings; until: the share of the budget at which it ends (the last: 1); grow: grow.py's arguments; edit: the
name of a function in arms.py that then changes the grown checkpoint, a dict, in place: for what grow.py does not do.
Every arm reads the same sequences in the same order and is decayed to zero at its own end. Stages that
arms have in common are trained once. Stopped, it goes on where it was, and what is in lines.jsonl is never trained again.
"""

import argparse
import hashlib
import json
import math
import os
import runpy
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import fields

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
import train
from checkpoint import load_checkpoint, save_checkpoint
from data import read_meta, read_stage_rows
from grow import asked_sizes, count, parse_args, skeleton
from model import SIZES, Config, this_device

# -----------------------------------------------------------------------------
# what is to be trained


def chain(name, spec, seed):
    """-> [stage] of an arm: {'folder': named by all that went before, 'parent', 'grow', 'settings', 'config', 'flops'}."""
    stages, cfg, flops, tokens, defaults = [], None, 0.0, 0, train.DEFAULTS
    for i, stage in enumerate(spec["arms"][name]):
        stage = spec["common"] | stage
        until, growth, edit = stage.pop("until", 1.0), shlex.split(stage.pop("grow", "")), stage.pop("edit", "")
        unknown = stage.keys() - defaults.keys()
        if unknown or bool(i) != bool(growth):
            raise ValueError(f"{name}, stage {i}: " + (f"no setting is called {unknown.pop()}" if unknown
                             else "'grow' is for the stages after the first, and for all of them"))  # fmt: skip
        settings = {key: defaults[key] for key in ("data", "tokens_per_step", "block_size")} | stage
        if cfg is None:
            shape = {f.name: settings[f.name] for f in fields(Config) if f.name in settings}
            shape["vocab_size"] = n_rows(settings["data"], settings.get("rows", ""))
            cfg = Config(**shape)
        else:
            args = parse_args(["--in", "-", *growth])
            sizes = asked_sizes(cfg, args)
            if args.vocab:
                sizes |= {"vocab_size": n_rows(settings["data"], args.vocab)}
            same = {f.name: getattr(cfg, f.name) for f in fields(Config) if f.name in ("n_layer", "block_size", "tied", *SIZES)}
            cfg = Config(**same | sizes)
            settings = {key: value for key, value in settings.items() if key not in same | {"rows": 0} or key == "block_size"}
        a_step = cfg.flops_per_token() * settings["tokens_per_step"]
        steps = round((until * spec["budget"] - flops) / a_step)
        if steps < 1:
            raise ValueError(f"{name}, stage {i}: until = {until} leaves it no step")
        flops, tokens = flops + steps * a_step, tokens + steps * settings["tokens_per_step"]
        settings |= {"max_steps": steps, "seed": seed}
        stages.append({"grow": growth, "edit": edit, "settings": settings, "config": cfg, "flops": flops})
    parent = None
    for stage in stages:  # the whole arm's tokens are the horizon of every generation
        stage["settings"]["horizon_tokens"] = tokens
        known = json.dumps([parent, stage["grow"], stage["edit"], stage["settings"]], sort_keys=True)
        stage |= {"parent": parent, "folder": hashlib.sha256(known.encode()).hexdigest()[:12]}
        parent = stage["folder"]
    return stages


def n_rows(data, stage):
    return len(read_stage_rows(data, stage, "rows")) if stage else read_meta(data)["vocab_size"]


def finished(folder, stage):
    path = f"{folder}/ckpt.pt"
    return os.path.exists(path) and load_checkpoint(path, whole=False, verify=False)["step"] >= stage["settings"]["max_steps"]


def run(out, stage, threads, spec):
    """Trains a stage, whose parent is done, unless it is done."""
    folder, parent = f"{out}/{stage['folder']}", f"{out}/{stage['parent']}"
    if finished(folder, stage):
        return
    os.makedirs(folder, exist_ok=True)
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with open(f"{folder}/log.txt", "a") as log:

        def call(*command):
            if subprocess.run([sys.executable, *command], cwd=sys.path[0], env=env, stdout=log, stderr=log).returncode:
                raise ValueError(f"{shlex.join(command)} failed: see {folder}/log.txt")

        settings = [f"--{key}={value}" for key, value in stage["settings"].items()] + [f"--out_dir={folder}"]
        if os.path.exists(f"{folder}/ckpt.pt"):
            settings.append("--resume")
        elif stage["parent"]:
            call("grow.py", "--in", f"{parent}/ckpt.pt", "--out", f"{folder}/start.pt", "--force", *stage["grow"])
            if stage["edit"]:
                grown = load_checkpoint(f"{folder}/start.pt")
                spec[stage["edit"]](grown)
                save_checkpoint(f"{folder}/start.pt", grown)
            settings.append(f"--init_from={folder}/start.pt")
        call("train.py", *settings)
    if not finished(folder, stage):
        raise ValueError(f"{folder}: stopped before its end; the same command goes on")


def results(out, name, seed, stages):
    """The lines of a finished arm: its evaluations, and what identifies them."""
    for i, stage in enumerate(stages):
        n = skeleton(stage["config"]).count_params()["non_embedding"]
        how = {"grow": shlex.join(stage["grow"]), "edit": stage["edit"], "parameters": n}
        with open(f"{out}/{stage['folder']}/metrics.jsonl") as f:
            for line in filter(lambda m: "bpb" in m, map(json.loads, f)):
                yield {"arm": name, "seed": seed, "stage": i, "folder": stage["folder"]} | how | line


def train_missing(spec, lines, out, path, jobs):
    """Trains the arms that lines lack; the lines of each go to the end of lines, and of the file at path, when it is done."""
    have = {(line["arm"], line["seed"]) for line in lines}
    wanted = [(name, seed) for seed in spec["seeds"] for name in spec["arms"]
              if seed == spec["seeds"][0] or name in spec.get("deciding", spec["arms"])]  # fmt: skip
    wanted = [(name, seed, chain(name, spec, seed)) for name, seed in wanted if (name, seed) not in have]
    threads = 0 if jobs == 1 else max(1, os.cpu_count() // jobs)
    where, _ = this_device("cuda" if spec["common"].get("device") != "cpu" and torch.cuda.is_available() else "cpu")
    todo = {stage["folder"]: stage for *_, stages in wanted for stage in stages}  # in order; a parent leaves it when done
    running = {}
    with ThreadPoolExecutor(jobs) as pool:
        while todo:
            for folder, stage in todo.items():
                if len(running) < jobs and folder not in running.values() and stage["parent"] not in todo:
                    running[pool.submit(run, out, stage, threads, spec)] = folder
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                future.result()
                del todo[running.pop(future)]
            for name, seed, stages in [arm for arm in wanted if arm[2][-1]["folder"] not in todo]:
                wanted.remove((name, seed, stages))
                new = list(results(out, name, seed, stages))
                new[-1] |= {"date": time.strftime("%Y-%m-%d"), "machine": where}
                lines += new
                with open(path, "a") as f:
                    f.write("".join(json.dumps(line) + "\n" for line in new))
                print(f"{name}, seed {seed}: {new[-1]['bpb']:.4f} bits per byte", flush=True)


# -----------------------------------------------------------------------------
# what came of it


def at(x, y, level):
    """Where the falling curve first reaches the level, interpolated in log x; nan where it does not."""
    for (x0, y0), (x1, y1) in zip(zip(x, y), zip(x[1:], y[1:])):
        if y1 <= level < y0 and x0:
            return math.exp(math.log(x0) + (y0 - level) / (y0 - y1) * math.log(x1 / x0))
    return math.nan


def gather(lines):
    """{arm: {seed: [evaluation], in order}}"""
    arms = {}
    for line in lines:
        arms.setdefault(line["arm"], {}).setdefault(line["seed"], []).append(line)
    return arms


def curve(runs):
    """(FLOPs, bits per byte) of an arm, the mean of its seeds."""
    same = list(zip(*runs.values()))
    return [points[0]["flops"] for points in same], [statistics.mean(p["bpb"] for p in points) for points in same]


def compare(spec, lines):
    """-> (rows of the table, arms). An arm's final losses are turned into FLOPs by the best control's mean (of those with the
    most seeds) and the log-log slope of the controls of its rate at other budgets; the ideal is read off the curve of the
    control that has the arm's rate."""
    arms = gather(lines)
    final = {name: {seed: r[-1]["bpb"] for seed, r in runs.items()} for name, runs in arms.items()}
    ends = {name: next(iter(runs.values()))[-1]["flops"] for name, runs in arms.items()}
    controls = [name for name in arms if name.startswith(spec["control"]) and len(spec["arms"][name]) == 1]
    full = [name for name in controls if abs(ends[name] / spec["budget"] - 1) < 0.05]
    first = spec["seeds"][0]  # the one that all arms have
    best = min(full, key=lambda name: (-len(final[name]), statistics.mean(final[name].values())), default=None)
    rate = {name: (spec["common"] | spec["arms"][name][-1]).get("learning_rate") for name in arms}
    line = [name for name in controls if rate[name] == rate[best]] if best else []
    slope = base = None
    if len(line) > 1:
        base = statistics.mean(final[best].values())
        slope, _ = np.polyfit([math.log(ends[n]) for n in line], [math.log(final[n][first]) for n in line], 1)
    rows = []
    for name, runs in arms.items():
        values = list(final[name].values())
        row = {"arm": name, "values": values, "bpb": statistics.mean(values), "best": name == best,
               "tokens": next(iter(runs.values()))[-1]["tokens"]}  # fmt: skip
        if slope:
            row["worths"] = [(value / base) ** (1 / slope) * ends[best] / ends[name] for value in values]
            row["worth"] = statistics.mean(row["worths"])
        if slope and len(spec["arms"][name]) == 2:
            flops, bpb = curve(runs)
            grown = next(i for i, e in enumerate(next(iter(runs.values()))) if e["stage"]) - 1
            big = next((control for control in full if rate[control] == rate[name]), best)
            ideal = at(*curve(arms[big]), bpb[grown]) - flops[grown]
            row |= {"grown_at": bpb[grown], "ideal": ideal / ends[name]}
            if row["ideal"] > 0.03:  # it is read off no better, and of easier text it would be negative
                row["share"] = (row["worth"] - 1) / row["ideal"]
        rows.append(row)
    return sorted(rows, key=lambda row: -row.get("worth", 0)), arms


def table(rows):
    """The lines of a Markdown table."""
    yield "| arm | tokens | bits per byte | seeds | worth | at the growth | ideal | share of it |"
    yield "|---|---|---|---|---|---|---|---|"

    def among(values, form):
        return f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""

    for r in rows:
        worth = f"{r['worth']:.2f} x{among(r['worths'], '.2f')}" if "worth" in r else ""
        share = f"{r['share']:.0%}" if "share" in r else ""
        grown = f"{r['grown_at']:.4f} | {r['ideal']:.2f} | {share}" if "ideal" in r else "| |"
        name = f"**{r['arm']}**" if r["best"] else r["arm"]
        bpb, n = f"{r['bpb']:.4f}{among(r['values'], '.4f')}", len(r["values"])
        yield f"| {name} | {count(r['tokens'])} | {bpb} | {n} | {worth} | {grown} |"


def picture(rows, arms, path):
    """Bits per byte over FLOPs, and the final ones of every seed; in colour, the arms with the most seeds."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, (ax, last) = plt.subplots(1, 2, figsize=(11, max(4.5, 0.22 * len(rows))), dpi=150, width_ratios=(3, 2))
    most = max(len(row["values"]) for row in rows)
    for i, row in enumerate(rows):
        x, y = curve(arms[row["arm"]])
        color = "k" if row["best"] else f"C{i % 10}" if len(row["values"]) == most else "0.8"
        style = dict(color=color, zorder=1 if color == "0.8" else 2)
        ax.plot(x, y, lw=1, **style)
        for j, (a, b) in enumerate(zip(x, x[1:])):
            if a == b:  # an evaluation before and one after the growth
                ax.plot(x[j], y[j], "v", ms=5, **style)
        last.plot(row["values"], [i] * len(row["values"]), ".", **style)
        last.plot(row["bpb"], i, "|", ms=12, **style)
    low = min(min(row["values"]) for row in rows)
    ax.set_ylim(low * 0.99, low * 1.5)
    ax.set_xlabel("training FLOPs, all stages summed")
    ax.set_ylabel("bits per byte of validation text")
    last.set_yticks(range(len(rows)), [row["arm"] for row in rows], fontsize=8)
    last.invert_yaxis()
    last.set_xlabel("final bits per byte, a dot a seed")
    for a in (ax, last):
        a.grid(alpha=0.25)
        a.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(path)


# -----------------------------------------------------------------------------


def main():
    p = argparse.ArgumentParser(description="Train arms on the same FLOPs, and compare them.")
    p.add_argument("folder", help="with arms.py in it; lines.jsonl, table.md and curves.png are written there")
    p.add_argument("--out", help="where the runs go (default: out/compare/ and the folder's name)")
    p.add_argument("--jobs", type=int, default=1, help="so many at a time; the CPU's threads are shared among them")
    p.add_argument("--report", action="store_true", help="train nothing")
    args = p.parse_args()
    spec = runpy.run_path(f"{args.folder}/arms.py")
    missing = {"budget", "seeds", "common", "control", "arms"} - spec.keys()
    if missing:
        raise ValueError(f"{args.folder}/arms.py: {missing.pop()} is missing")
    out, path = args.out or f"out/compare/{os.path.basename(os.path.normpath(args.folder))}", f"{args.folder}/lines.jsonl"
    lines = []
    if os.path.exists(path):
        with open(path) as f:
            lines = list(map(json.loads, f))
    if not args.report:
        train_missing(spec, lines, out, path, args.jobs)
    if not lines:
        raise ValueError(f"{path}: nothing in it yet")
    rows, arms = compare(spec, lines)
    text = "\n".join(table(rows)) + "\n"
    print(text, end="")
    with open(f"{args.folder}/table.md", "w") as f:
        f.write(text)
    picture(rows, arms, f"{args.folder}/curves.png")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"compare.py: {e}")
