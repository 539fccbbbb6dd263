"""
Does growing pay? Train arms, each a chain of stages, on the same training FLOPs, and compare them.

$ python runs/compare.py runs/results/cpu --jobs 2            # train what its lines.jsonl lacks, then report
$ python runs/compare.py runs/results/cpu --report            # the table and the picture of lines.jsonl alone

The folder holds arms.py, which says what is compared:

    budget = 3e13                                 # training FLOPs of an arm, all stages, attention and head
    seeds = [1, 2, 3]                             # of the weights and of the order of the data
    deciding = ["scratch 4e-3"]                   # if given: these arms get all seeds, others the first alone
    common = dict(data="data/babel", n_embd=128)  # settings of train.py, for all
    train = "runs/results/muon/train_muon.py"     # if given: a script to train with in place of train.py
    control = "scratch"                           # arms that begin so, and do not grow, are the controls
    arms = {
        "scratch 4e-3": [dict(n_layer=8, learning_rate=4e-3)],
        "stacked at 25 %": [dict(n_layer=4, until=0.25), dict(grow="--double depth --init stack")],
    }

A stage is a dict of settings, and of three more:

    until   the share of the budget at which it ends; of the last stage 1, unless given
    grow    grow.py's arguments
    edit    the name of a function in arms.py that changes the grown checkpoint, a dict, in place: for what
            grow.py does not do

Every arm reads the same sequences in the same order, and is decayed to zero at its own end. Stages that arms
have in common are trained once. Stopped, compare.py goes on where it was. It never trains again what is in
lines.jsonl.

A stage that does not grow goes on with the settings of the one before it. If the last stage is
dict(branch="decay"), those before it are a trunk at a constant rate, which does not depend on where its
branches end, and one clock decays all:

    _trunk = [dict(until=0.6), dict(until=0.8)]
    _stacked = [dict(n_layer=3, until=0.3), dict(grow="--depth 6 --init stack", until=0.8)]
    arms = {
        "scratch, decay 40 %": [_trunk[0], dict(branch="decay")],
        "scratch, decay 20 %": [*_trunk, dict(branch="decay")],
        "scratch, half the budget, decay 20 %": [dict(until=0.4), dict(branch="decay", until=0.5)],
        "stacked at 30 %": [*_stacked, dict(branch="decay")],
    }
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
from dataclasses import replace

import numpy as np
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from ladder import finished

import train
from checkpoint import load_checkpoint, save_checkpoint
from data import read_meta, read_stage_rows
from grow import asked_sizes, count, parse_args, with_sizes
from model import SIZES, Config, skeleton, this_device

# -----------------------------------------------------------------------------
# what is to be trained

FAR = 10**15  # tokens: the horizon of a trunk


def n_rows(data, stage):
    """Return how many rows a stage of text has, or the tokenizer if none is named."""
    return len(read_stage_rows(data, stage, "rows")) if stage else read_meta(data)["vocab_size"]


def branches(name, spec):
    """Return whether an arm's last stage is a branch, of a trunk at a constant rate."""
    return "branch" in spec["arms"][name][-1]


def merged(name, spec):
    """Return the stages of an arm, each with the settings that it goes on with: of the stage before it, or
    of all arms if it grows."""
    stages = []
    for stage in spec["arms"][name]:
        before = stages[-1] if stages and "grow" not in stage else spec["common"]
        kept = {key: value for key, value in before.items() if key not in ("until", "grow", "edit")}
        stages.append(kept | stage)
    return stages


def chain(name, spec, seed, rows=n_rows):
    """Return the stages of an arm: {'folder', which all that went before names, 'parent', 'grow', 'edit',
    'settings', 'steps', 'config'}. Raise a ValueError that names the stage that can't be."""
    stages, cfg, flops, tokens, defaults = [], None, 0.0, 0, train.DEFAULTS
    for i, stage in enumerate(merged(name, spec)):
        until, growth = stage.pop("until", 1.0), shlex.split(stage.pop("grow", ""))
        edit = stage.pop("edit", "")
        unknown = stage.keys() - defaults.keys()
        if unknown:
            raise ValueError(f"{name}, stage {i}: no setting is called {unknown.pop()}")
        if growth and not i:
            raise ValueError(f"{name}, stage {i}: 'grow' is for the stages after the first")
        if "branch" in stage and (not i or growth or i < len(spec["arms"][name]) - 1):
            raise ValueError(f"{name}, stage {i}: 'branch' is for the last stage, which does not grow")

        # the model: the settings', or what the growth makes of the one before
        settings = {key: defaults[key] for key in ("data", "tokens_per_step", "block_size")} | stage
        if cfg is None:
            vocab_size = rows(settings["data"], settings.get("rows", ""))
            cfg = Config(**train.shape_of(settings) | {"vocab_size": vocab_size})
        elif growth:
            args = parse_args(["--in", "-", *growth])
            sizes = asked_sizes(cfg, args)
            if args.vocab:
                sizes |= {"vocab_size": rows(settings["data"], args.vocab)}
            cfg = Config(**with_sizes(cfg, sizes), tied=cfg.tied)
        cfg = replace(cfg, block_size=settings["block_size"])
        if i:
            sizes = {"n_layer", "tied", "rows", *SIZES}
            settings = {key: value for key, value in settings.items() if key not in sizes}

        # its length: as many steps as the FLOPs allow
        a_step = cfg.flops_per_token() * settings["tokens_per_step"]
        steps = round((until * spec["budget"] - flops) / a_step)
        if steps < 1:
            raise ValueError(f"{name}, stage {i}: until = {until} leaves it no step")
        n_tokens = steps * settings["tokens_per_step"]
        flops, tokens = flops + steps * a_step, tokens + n_tokens
        settings |= {"branch_tokens": n_tokens} if "branch" in stage else {"max_steps": steps}
        settings["seed"] = seed
        stages.append({"grow": growth, "edit": edit, "settings": settings, "steps": steps, "config": cfg})

    # all stages end their rates with the arm, unless they are a trunk
    parent = None
    for stage in stages:
        stage["settings"]["horizon_tokens"] = FAR if branches(name, spec) else tokens
        begun = parent or spec.get("train")
        known = json.dumps([begun, stage["grow"], stage["edit"], stage["settings"]], sort_keys=True)
        folder = hashlib.sha256(known.encode()).hexdigest()[:12]
        if "branch" in stage["settings"]:
            folder += f"-{stage['settings']['branch']}"  # where train.py writes it
        stage |= {"parent": parent, "folder": folder}
        parent = folder
    return stages


def run(out, stage, threads, spec):
    """Train a stage, whose parent is done, unless it is done itself."""
    folder, parent = f"{out}/{stage['folder']}", f"{out}/{stage['parent']}"
    if finished(folder, stage["steps"]):
        return
    os.makedirs(folder, exist_ok=True)
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with open(f"{folder}/log.txt", "a") as log:

        def call(*command):
            where = dict(cwd=sys.path[0], env=env, stdout=log, stderr=log)
            if subprocess.run([sys.executable, *command], **where).returncode:
                raise ValueError(f"{shlex.join(command)} failed: see {folder}/log.txt")

        branch = stage["settings"].get("branch")
        settings = [f"--{key}={value}" for key, value in stage["settings"].items()]
        settings.append(f"--out_dir={folder.removesuffix(f'-{branch}')}")
        if os.path.exists(train.last_checkpoint(folder)):
            settings.append("--resume")
        elif stage["grow"]:
            start = f"{folder}/start.pt"
            call("grow.py", "--in", f"{parent}/ckpt.pt", "--out", start, "--force", *stage["grow"])
            if stage["edit"]:
                grown = load_checkpoint(start)
                spec[stage["edit"]](grown)
                save_checkpoint(start, grown)
            settings.append(f"--init_from={start}")
        elif stage["parent"]:
            settings.append(f"--init_from={parent}/ckpt.pt")
        call(spec.get("train", "train.py"), *settings)
    if not finished(folder, stage["steps"]):
        raise ValueError(f"{folder}: stopped before its end; the same command goes on")


def results(out, name, seed, stages):
    """Yield the lines of a finished arm: its evaluations, and what identifies them."""
    for i, stage in enumerate(stages):
        cfg = stage["config"]
        head = 6 * cfg.vocab_size * cfg.n_embd / cfg.flops_per_token()  # its share of the FLOPs
        how = {"arm": name, "seed": seed, "stage": i, "folder": stage["folder"]}
        how |= {"grow": shlex.join(stage["grow"]), "edit": stage["edit"]}
        how |= {"parameters": skeleton(cfg).count_params()["non_embedding"], "head": round(head, 4)}
        with open(f"{out}/{stage['folder']}/metrics.jsonl") as f:
            yield from (how | line for line in map(json.loads, f) if "bpb" in line)


def train_missing(spec, lines, out, path, jobs):
    """Train the arms that lines lack. When an arm is done, its lines go to the end of lines, and of the file
    at path."""
    have = {(line["arm"], line["seed"]) for line in lines}
    deciding, wanted = spec.get("deciding", spec["arms"]), []
    for seed in spec["seeds"]:
        for name in spec["arms"]:
            asked = seed == spec["seeds"][0] or name in deciding
            if asked and (name, seed) not in have:
                wanted.append((name, seed, chain(name, spec, seed)))
    threads = 0 if jobs == 1 else max(1, os.cpu_count() // jobs)
    cuda = spec["common"].get("device") != "cpu" and torch.cuda.is_available()
    where, _ = this_device("cuda" if cuda else "cpu")

    # all stages in order, until they are done; a stage can begin when its parent is not among them
    todo = {stage["folder"]: stage for *_, stages in wanted for stage in stages}
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


def flops_for(line, level):
    """Return the FLOPs at which a line of (FLOPs, bits per byte), in that order, reaches the level: straight
    in log-log, and straight on beyond its ends; nan if it has one point."""
    points = [(math.log(flops), math.log(bpb)) for flops, bpb in line]
    found = math.nan
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if math.isnan(found) or math.log(level) < y0:
            found = math.exp(x0 + (y0 - math.log(level)) / (y0 - y1) * (x1 - x0))
    return found


def worths(values, flops, line):
    """Return how many times `flops` a control takes to end as well as an arm, for each of the arm's seeds.

    values: {seed: bits per byte}. line: [(FLOPs, values)] of the control, by FLOPs. A seed is compared with
    the control of its own, or if it has none, of the seed with the most runs. Where that was not run, the
    mean of the others stands for it, each times what both differ by elsewhere. nan: fewer than two
    budgets."""
    runs = [seed for _, control in line for seed in control]
    most = max(runs, key=runs.count, default=None)

    def control_of(seed):
        """Return [(FLOPs, bits per byte)] of a seed of the control, its own or the likely."""
        points = []
        for x, control in line:
            if seed in control:
                points.append((x, control[seed]))
                continue
            likely = []  # what it would have by each seed that was run there
            for other in control:
                both = [there[seed] / there[other] for _, there in line if {seed, other} <= there.keys()]
                if both:
                    likely.append(control[other] * statistics.mean(both))
            if likely:
                points.append((x, statistics.mean(likely)))
        return points

    return [
        flops_for(control_of(seed if seed in runs else most), value) / flops for seed, value in values.items()
    ]


def best_of_budgets(ends):
    """Return the best of (FLOPs, what, {seed: bits per byte}) at each budget, by FLOPs.

    That is the lowest mean among those with the most seeds."""
    found = []
    for end in sorted(ends, key=lambda end: (-len(end[2]), statistics.mean(end[2].values()))):
        if not any(same_budget(end[0], other[0]) for other in found):
            found.append(end)
    return sorted(found, key=lambda end: end[0])


def same_budget(a, b):
    """Return whether two budgets, in FLOPs, differ by less than 5 %, and so count as one."""
    return max(a / b, b / a) < 1.05


def curve(runs):
    """Return (FLOPs, bits per byte) of an arm, the mean of its seeds."""
    same = list(zip(*runs.values()))
    bpb = [statistics.mean(p["bpb"] for p in points) for points in same]
    return [points[0]["flops"] for points in same], bpb


def growths(run):
    """Return the indices of the evaluations that follow a growth."""
    return [i for i, (a, b) in enumerate(zip(run, run[1:]), 1) if b["stage"] > a["stage"] and b["grow"]]


def regime(name, spec):
    """Return what is tuned: (rate, tokens a step, share of the arm in which the rate falls)."""
    stages = spec["arms"][name]
    settings = train.DEFAULTS | merged(name, spec)[-1]
    share = settings["decay_share"]
    if settings["branch"]:
        share = round(1 - stages[-2]["until"] / stages[-1].get("until", 1.0), 2)
    return settings["learning_rate"], settings["tokens_per_step"], share


def before_decay(run, share, branch):
    """Return the bits per byte where the last decay begins, or at the last evaluation before it; nan if all
    of the arm decays. branch: the decay is the last stage, and begins with an evaluation."""
    if branch:
        return next(line["bpb"] for line in run if line["stage"] == run[-1]["stage"])
    start = (1 - share) * run[-1]["tokens"] * (1 + 1e-6)
    before = [line["bpb"] for line in run if line["tokens"] <= start and share < 1]
    return before[-1] if before else math.nan


def behind(run, trunk):
    """Return by how many bits per byte a grown arm is behind a control that has read as many tokens, both at
    the constant rate: the mean of the arm's last three evaluations before its decay; nan if the control has
    not read as many. Both runs end with a branch."""
    grown = [line for line in run[growths(run)[-1] + 1 :] if line["stage"] < run[-1]["stage"]][-3:]
    control = [line for line in trunk if line["stage"] < trunk[-1]["stage"]]
    if not grown or grown[-1]["tokens"] > control[-1]["tokens"]:
        return math.nan
    tokens, bpb = zip(*((line["tokens"], line["bpb"]) for line in control))
    return statistics.mean(line["bpb"] - np.interp(line["tokens"], tokens, bpb) for line in grown)


def compare(spec, lines):
    """Return (the rows of the table, arms).

    worth: how many times the arm's FLOPs the control needs for the arm's final loss, the mean of its seeds.
    The control is the best one at each budget. Best: the lowest mean, among the controls with the most seeds.
    R: the tokens the arm read, over those that the best control reads on the same FLOPs. eta = worth / R.
    behind: as `behind` says, of the control that reads the most at the best one's rate, batch and decay."""
    arms = {}  # {arm: {seed: [evaluation], in order}}
    for line in lines:
        arms.setdefault(line["arm"], {}).setdefault(line["seed"], []).append(line)
    final = {name: {seed: r[-1]["bpb"] for seed, r in runs.items()} for name, runs in arms.items()}
    one = {name: next(iter(runs.values())) for name, runs in arms.items()}  # a run of each
    ends = {name: run[-1]["flops"] for name, run in one.items()}
    controls = [name for name in arms if name.startswith(spec["control"]) and not growths(one[name])]
    mean = {name: statistics.mean(values.values()) for name, values in final.items()}
    bests = best_of_budgets([(ends[name], name, final[name]) for name in controls])
    control = [(flops, values) for flops, _, values in bests]
    best = next((name for flops, name, _ in bests if same_budget(flops, spec["budget"])), None)
    regimes = {name: regime(name, spec) for name in arms}
    alike = [name for name in controls if best and regimes[name] == regimes[best] and branches(name, spec)]
    trunk = max(alike, key=lambda name: ends[name], default=None)

    # a row an arm; what can't be said of it is left out
    rows = []
    for name, runs in arms.items():
        run, branch = one[name], branches(name, spec)
        end, grown_at = run[-1], growths(run)
        before = statistics.mean(before_decay(r, regimes[name][2], branch) for r in runs.values())
        row = {
            "arm": name,
            "best": name == best,
            "values": final[name],
            "bpb": mean[name],
            "decay": mean[name] - before,
            "tokens": end["tokens"],
            "flops": end["flops"],
            "a_parameter": end["tokens"] / end["parameters"],
            "growths": [run[i]["tokens"] / end["tokens"] for i in grown_at],
        }
        if "head" in end:
            steps = [(b["flops"] - a["flops"]) * b["head"] for a, b in zip([{"flops": 0}, *run], run)]
            row["head"] = sum(steps) / end["flops"]
        if branch and grown_at and trunk:
            row["behind"] = behind(run, one[trunk])
        if best:
            row["R"] = end["tokens"] / end["flops"] * ends[best] / one[best][-1]["tokens"]
        if len(control) > 1:
            row["worths"] = worths(final[name], ends[name], control)
            row["worth"] = statistics.mean(row["worths"])
            if best:
                row["eta"] = row["worth"] / row["R"]
        rows.append(row)
    return sorted(rows, key=lambda row: -row.get("worth", 0)), arms


def table(rows):
    """Yield the lines of a Markdown table."""

    def among(values, form):
        return f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""

    def shown(row, key, form):
        value = row.get(key, math.nan)  # nan: it can't be said
        return "" if math.isnan(value) else format(value, form)

    for i, row in enumerate(rows):
        worth = shown(row, "worth", ".2f")
        cells = {
            "arm": f"**{row['arm']}**" if row["best"] else row["arm"],
            "tokens": count(row["tokens"]),
            "a parameter": shown(row, "a_parameter", ".1f"),
            "bits per byte": shown(row, "bpb", ".4f") + among(row["values"].values(), ".4f"),
            "seeds": str(len(row["values"])),
            "worth": worth and f"{worth} x{among(row['worths'], '.2f')}",
            "R": shown(row, "R", ".2f"),
            "eta": shown(row, "eta", ".2f"),
            "grown at, of the tokens": ", ".join(f"{share:.2f}" for share in row["growths"]),
            "head, of the FLOPs": shown(row, "head", ".0%"),
            "the last decay": shown(row, "decay", "+.4f"),
            "behind before it": shown(row, "behind", "+.4f"),
        }
        if i == 0:
            yield f"| {' | '.join(cells)} |"
            yield "|---" * len(cells) + "|"
        yield f"| {' | '.join(cells.values())} |"


def picture(rows, arms, path):
    """Draw bits per byte over FLOPs, and the final ones of every seed. The arms with the most seeds have
    colours."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    size = (11, max(4.5, 0.22 * len(rows)))
    fig, (ax, last) = plt.subplots(1, 2, figsize=size, dpi=150, width_ratios=(3, 2))
    most = max(len(row["values"]) for row in rows)
    for i, row in enumerate(rows):
        x, y = curve(arms[row["arm"]])
        color = f"C{i % 10}" if len(row["values"]) == most else "0.8"
        if row["best"]:
            color = "k"
        style = dict(color=color, zorder=1 if color == "0.8" else 2)
        ax.plot(x, y, lw=1, **style)
        for j in growths(next(iter(arms[row["arm"]].values()))):
            ax.plot(x[j], y[j - 1], "v", ms=5, **style)
        last.plot(row["values"].values(), [i] * len(row["values"]), ".", **style)
        last.plot(row["bpb"], i, "|", ms=12, **style)
    low = min(min(row["values"].values()) for row in rows)
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
    p.add_argument("folder", help="has arms.py, and gets lines.jsonl, table.md and curves.png")
    p.add_argument("--out", help="where the runs go (default: out/compare/ and the folder's name)")
    p.add_argument("--jobs", type=int, default=1, help="so many at a time, which share the CPU's threads")
    p.add_argument("--report", action="store_true", help="train nothing")
    args = p.parse_args()
    if args.jobs < 1:
        raise ValueError(f"--jobs {args.jobs}: at least 1")
    spec = runpy.run_path(f"{args.folder}/arms.py")
    missing = {"budget", "seeds", "common", "control", "arms"} - spec.keys()
    if missing:
        raise ValueError(f"{args.folder}/arms.py: {missing.pop()} is missing")
    out = args.out or f"out/compare/{os.path.basename(os.path.normpath(args.folder))}"
    path = f"{args.folder}/lines.jsonl"
    lines = []
    if os.path.exists(path):
        with open(path) as f:
            lines = list(map(json.loads, f))
    if not args.report:
        train_missing(spec, lines, out, path, args.jobs)
    if not lines:
        raise ValueError(f"{path}: nothing in it yet")
    if gone := {line["arm"] for line in lines} - spec["arms"].keys():
        raise ValueError(f"{path} has the arm {min(gone)!r}, {args.folder}/arms.py does not: put it back")
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
