"""
Print a table of runs, and draw them: bits per byte of the validation text over tokens, FLOPs and time, with
growths marked. Of one run or one ladder, draw each generation's learning rate, gradient norm and update, too.

$ python runs/picture.py out/demo/tiny?/metrics.jsonl --out out/demo/loss.png
$ python runs/picture.py out/stage?/metrics.jsonl out/stage8-control-*/metrics.jsonl --out loss.png --log

A file that starts at the FLOPs at which the one before it ends goes on with its curve: it is the stage that
was grown. Sizes are read from the ckpt.pt beside each file, if it is there.
"""

import argparse
import json
import math
import os
import re
import sys

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from checkpoint import load_checkpoint
from grow import count
from model import Config, skeleton

STYLE = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.xmargin": 0.02,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
TIMES = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


def read(path):
    """Return what a stage's folder knows of it: {'name', 'shape', 'size', 'growth', 'evaluations', 'steps'}.
    Raise ValueError if metrics.jsonl is something else, or has no evaluation yet."""
    folder = os.path.dirname(os.path.abspath(path))
    with open(path) as f:
        try:
            lines = [json.loads(line) for line in f if line.endswith("\n")]  # the last may not be whole yet
            evaluations, steps = ([p for p in lines if key in p] for key in ("bpb", "lr"))
        except (ValueError, TypeError):
            raise ValueError(f"{path}: not a metrics.jsonl of train.py") from None
    if not evaluations:
        raise ValueError(f"{path}: no evaluation in it yet")
    stage = {"name": os.path.basename(folder), "shape": "-", "size": 0, "growth": None}
    stage |= {"evaluations": evaluations, "steps": steps}
    if not os.path.exists(f"{folder}/ckpt.pt"):
        missing = "no ckpt.pt beside metrics.jsonl, so its sizes are not shown"
        print(f"{stage['name']}: {missing}", file=sys.stderr)
        return stage
    ckpt = load_checkpoint(f"{folder}/ckpt.pt", whole=False, verify=False)
    cfg = Config(**ckpt["config"])
    growth = next((g for g in ckpt["lineage"] if g["tokens"] == evaluations[0]["tokens"]), None)
    return stage | {
        "shape": f"{cfg.n_layer} x {cfg.n_embd}",
        "size": skeleton(cfg).count_params()["total"],
        "growth": growth,
    }


def table(curves):
    """Yield a heading, then one line a stage, and one a growth."""
    line = "{:<12}{:>14}{:>16}{:>16}{:>10}{:>10}{:>20}"
    yield line.format("stage", "layers x width", "parameters", "tokens", "FLOPs", "total", "bits per byte")
    for stages in curves:
        for s in stages:
            if s["growth"]:
                yield f"  grown to {s['shape']}: max |dlogit| {s['growth']['max_dlogit']:.1e}"
            first, last = s["evaluations"][0], s["evaluations"][-1]
            tokens, flops = (last[key] - first[key] for key in ("tokens", "flops"))
            size = f"{s['size']:,}" if s["size"] else "-"
            bpb = f"{first['bpb']:.4f} -> {last['bpb']:.4f}"
            spent = f"{flops:.2e}", f"{last['flops']:.2e}"
            yield line.format(s["name"], s["shape"], size, f"{tokens:,}", *spent, bpb)


def picture(curves, path, log):
    """Draw the picture. One ladder has a colour a generation; several curves have one each."""
    plt.rcParams.update(STYLE)
    one = len(curves) == 1
    n_rows, height = (2, 4.8) if one else (1, 2.6)
    how = dict(figsize=(9, height), dpi=200, squeeze=False, layout="constrained")
    fig, axes = plt.subplots(n_rows, 3, **how)
    points = [p for stages in curves for s in stages for p in s["evaluations"]]
    longest = max(p["seconds"] for p in points)
    unit, units = next((n, name) for n, name in TIMES if longest >= 2 * n or n == 1)
    # the youngest generation of each stage
    youngest = [max((len(p["lr"]) for p in s["steps"]), default=1) - 1 for s in curves[0]]
    shades = plt.cm.plasma([0.8 * g / max(1, max(youngest)) for g in range(max(youngest) + 1)])

    number = FuncFormatter(lambda x, _: re.sub(r"e\+?(-?)0?", r"e\1", f"{x:g}"))  # 1e13, 1e-5

    def over(ax, key):
        """Set up the axis of what is drawn over tokens, flops or seconds. Return the function that gives a
        record's x."""
        scale, label, form = {
            "tokens": (1, "tokens", EngFormatter(sep="")),
            "flops": (1, "training FLOPs", number),
            "seconds": (unit, f"{units} of training", number),
        }[key]
        if log and ax in axes[0]:
            ax.set_xscale("log")
        else:
            ax.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        ax.xaxis.set_major_formatter(form)
        ax.set_xlabel(label)
        for s in curves[0][1:] if one else []:  # growths
            ax.axvline(s["evaluations"][0][key] / scale, color="0.6", ls="--", lw=0.8, zorder=0)
        return lambda p: p[key] / scale or (math.nan if log else 0)

    # bits per byte. The fall from ln(vocabulary) in the first steps is cut off: it would flatten the rest
    shown = 0.2 * curves[0][0]["evaluations"][-1]["flops"]
    low, high = min(p["bpb"] for p in points), max(p["bpb"] for p in points if p["flops"] >= shown)
    for ax, key in zip(axes[0], ("tokens", "flops", "seconds")):
        x = over(ax, key)
        for i, stages in enumerate(curves):
            for k, s in enumerate(stages):
                color = shades[youngest[k]] if one else f"C{i}"
                if k:  # a growth
                    ends = stages[k - 1]["evaluations"][-1], s["evaluations"][0]
                    ax.plot([x(p) for p in ends], [p["bpb"] for p in ends], "-", color=color, lw=1.2)
                    ax.plot(x(ends[1]), ends[1]["bpb"], "o", color=color, mfc="white", ms=4, zorder=3)
                bpb = [p["bpb"] for p in s["evaluations"]]
                ax.plot([x(p) for p in s["evaluations"]], bpb, ".-", color=color, ms=3, lw=1.2)
        ax.set_ylim(low - 0.05 * (high - low), high + 0.15 * (high - low))
        ax.tick_params(labelleft=ax is axes[0, 0])
    axes[0, 0].set_title("bits per byte of validation text")

    # what each generation does, where it is trained
    names = {"lr": "learning rate", "grad_norm": "gradient norm", "update_rms": "update, RMS"}
    steps = [p for s in curves[0] for p in s["steps"]]
    for ax, (name, title) in zip(axes[1] if one else [], names.items()):
        x = over(ax, "tokens")
        for g, color in enumerate(shades):
            own = [p for p in steps if len(p.get(name, [])) > g and p["update_rms"][g]]
            ax.plot([x(p) for p in own], [p[name][g] for p in own], color=color, lw=1)
        ax.set_title(f"{title}, by generation")
        if name == "lr":
            ax.set_ylim(0)
        else:
            ax.set_yscale("log")
            least, most = ax.get_ylim()
            labelled = LogLocator(subs=(1, 2, 5) if most < 100 * least else (1,))
            ax.yaxis.set(major_locator=labelled, major_formatter=number, minor_formatter=NullFormatter())

    # the legend: the first stage of each generation, or each curve
    if one:
        labels = [f"generation {g}" for g in range(len(shades))]
        for g, s in zip(youngest, curves[0]):
            size = f"{s['shape']}, {count(s['size'])} parameters" if s["size"] else s["name"]
            if ":" not in labels[g]:
                labels[g] = f"{size}: {labels[g]}"
    else:
        labels = [" to ".join(dict.fromkeys([stages[0]["name"], stages[-1]["name"]])) for stages in curves]
    lines = [Line2D([], [], color=shades[i] if one else f"C{i}", lw=2) for i in range(len(labels))]
    fig.legend(lines, labels, loc="outside upper center", ncols=3)
    fig.savefig(path)


def main():
    p = argparse.ArgumentParser(description="The table and the picture of runs.")
    p.add_argument("metrics", nargs="+", help="metrics.jsonl files, the stages of a ladder in their order")
    p.add_argument("--out", default="loss.png", help="the picture (default: loss.png)")
    p.add_argument("--log", action="store_true", help="bits per byte over logarithmic axes")
    args = p.parse_args()
    curves = []
    for stage in map(read, args.metrics):
        if curves and stage["evaluations"][0]["flops"] == curves[-1][-1]["evaluations"][-1]["flops"]:
            curves[-1].append(stage)
        else:
            curves.append([stage])
    print("\n".join(table(curves)))
    picture(curves, args.out, args.log)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"picture.py: {e}")
