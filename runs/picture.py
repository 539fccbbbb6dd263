"""
The table and the picture of runs: bits per byte of the validation text over training FLOPs, growths marked.

$ python runs/picture.py out/demo/tiny?/metrics.jsonl --out out/demo/loss.png
$ python runs/picture.py out/stage?/metrics.jsonl out/control-*/metrics.jsonl --out loss.png --log

A file that starts at the FLOPs at which the one before it ends goes on with its curve, as a stage does that was grown.
ckpt.pt is read beside each: it knows the sizes.
"""

import argparse
import json
import math
import os
import sys

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from grow import count, skeleton
from model import Config, load_checkpoint


def read(path):
    """What a stage's folder knows of it."""
    folder = os.path.dirname(path)
    with open(path) as f:
        points = [p for p in map(json.loads, f) if "bpb" in p]
    if not points:
        raise ValueError(f"{path}: no evaluation in it yet")
    ckpt = load_checkpoint(f"{folder}/ckpt.pt", whole=False)
    cfg = Config(**ckpt["config"])
    return {
        "name": os.path.basename(folder),
        "shape": f"{cfg.n_layer} x {cfg.n_embd}",
        "parameters": skeleton(cfg).count_params()["total"],
        "tokens": points[-1]["tokens"] - points[0]["tokens"],
        "x": [p["flops"] for p in points],
        "y": [p["bpb"] for p in points],
        "growth": next((g for g in ckpt["lineage"] if g["tokens"] == points[0]["tokens"]), None),
    }


def table(curves):
    """One line a stage, and one a growth."""
    yield f"{'stage':<12}{'layers x width':>14}{'parameters':>16}{'tokens':>16}{'FLOPs':>10}{'total':>10}{'bits per byte':>20}"
    for stages in curves:
        for s in stages:
            if s["growth"]:
                yield f"  grown to {s['shape']}: max |dlogit| {s['growth']['max_dlogit']:.1e}"
            x, y = s["x"], s["y"]
            bpb = f"{y[0]:.4f} -> {y[-1]:.4f}"
            sizes = f"{s['name']:<12}{s['shape']:>14}{s['parameters']:>16,}{s['tokens']:>16,}"
            yield f"{sizes}{x[-1] - x[0]:>10.2e}{x[-1]:>10.2e}{bpb:>20}"


def picture(curves, path, log):
    """Writes the picture."""
    fig, ax = plt.subplots(figsize=(8, 4.5), dpi=150)
    points = [point for stages in curves for s in stages for point in zip(s["x"], s["y"])]
    shown = 0.2 * curves[0][0]["x"][-1]  # the fall from ln(vocabulary) in the first steps would flatten the rest
    low, high = min(y for _, y in points), max(y for x, y in points if x >= shown)
    high += 0.15 * (high - low)
    for color, stages in enumerate(curves):
        x = [v or (math.nan if log else 0) for s in stages for v in s["x"]]
        y = [v for s in stages for v in s["y"]]
        name = " to ".join(dict.fromkeys([stages[0]["name"], stages[-1]["name"]]))
        ax.plot(x, y, ".-", color=f"C{color}", ms=4, lw=1.5, label=name)
        for s in stages * (len(stages) > 1):  # a ladder
            if s["growth"]:
                ax.axvline(s["x"][0], color=f"C{color}", ls="--", lw=1)
            text = s["shape"]
            if sum(map(len, curves)) <= 4:  # there is room
                text += f"\n{count(s['parameters'])} parameters"
                text += f"\nmax |dlogit| {s['growth']['max_dlogit']:.2g}" if s["growth"] else "\nfrom scratch"
            start = s["x"][0] or shown * log
            ax.annotate(text, (start, high), (0, 4), textcoords="offset points", fontsize=8, color=f"C{color}")
    if log:
        ax.set_xscale("log")
    ax.set_xlim(shown * log, 1.02 * max(x for x, _ in points))
    ax.set_ylim(low - 0.1 * (high - low), high)
    ax.set_xlabel("training FLOPs, all stages summed")
    ax.set_ylabel("bits per byte of validation text")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    if len(curves) > 1:
        ax.legend(frameon=False, loc="upper right")
    fig.tight_layout()
    fig.savefig(path)


def main():
    p = argparse.ArgumentParser(description="The table and the picture of runs.")
    p.add_argument("metrics", nargs="+", help="metrics.jsonl files, the stages of a ladder in their order")
    p.add_argument("--out", default="loss.png", help="the picture (default: loss.png)")
    p.add_argument("--log", action="store_true", help="FLOPs on a logarithmic axis")
    args = p.parse_args()
    curves = []
    for stage in map(read, args.metrics):
        if curves and stage["x"][0] == curves[-1][-1]["x"][-1]:
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
