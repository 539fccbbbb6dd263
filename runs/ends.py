"""
Draw the end of every arm: final bits per byte over training FLOPs, from scratch and grown, of several folders
of compare.py. An arrow says how many times the FLOPs the same size needs from scratch to end as well.

$ python runs/ends.py runs/results/{late,doublings,three_doublings} --out assets/ends.png

Of each size, from scratch and grown, the best arm of a budget is drawn, of those with the most seeds. Small
dots are single seeds, the rest is their mean: of a worth, too, each seed's against the control of its own.
"""

import argparse
import json
import os
import runpy
import statistics
import sys

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter, NullFormatter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from compare import best_of_budgets, chain, compare, worths


def sizes(name, spec):
    """Return the sizes of an arm's stages, from the first to the last: ('3 x 64', '6 x 64')."""
    configs = [stage["config"] for stage in chain(name, spec, spec["seeds"][0], rows=lambda *_: 256)]
    return tuple(dict.fromkeys(f"{cfg.n_layer} x {cfg.n_embd}" for cfg in configs))


def read(folder):
    """Return [(sizes, FLOPs, {seed: final bits per byte})] of a folder's arms. Raise ValueError if no control
    has its budget."""
    spec = runpy.run_path(f"{folder}/arms.py")
    with open(f"{folder}/lines.jsonl") as f:
        rows, _ = compare(spec, list(map(json.loads, f)))
    if not any(row["best"] for row in rows):
        raise ValueError(f"{folder}: no control of its budget is done")
    return [(sizes(row["arm"], spec), row["flops"], row["values"]) for row in rows]


def mean(values):
    """Return the mean of {seed: bits per byte}."""
    return statistics.mean(values.values())


def lines(points):
    """Return {(final size, grown?): [(FLOPs, sizes, values)]}, by FLOPs, with one arm for each budget."""
    found = {}
    for shapes, flops, values in points:
        found.setdefault((shapes[-1], len(shapes) > 1), []).append((flops, shapes, values))
    return {key: best_of_budgets(ends) for key, ends in found.items()}


def path_of(shapes):
    """Return what grew into what: layers, such as 3 → 6 → 12, or sizes where widths differ."""
    layers, widths = zip(*(shape.split(" x ") for shape in shapes))
    return " → ".join(layers if len(set(widths)) == 1 else shapes)


def draw(found, path):
    """Draw a line for each size from scratch, and a dot for what was grown, with its worth."""
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    fig, ax = plt.subplots(figsize=(9, 5.5), dpi=150)
    targets = list(dict.fromkeys(target for target, _ in found))
    beside = dict(textcoords="offset points", va="center")
    for (target, grown), line in found.items():
        color = f"C{targets.index(target)}"
        x, y = [flops for flops, *_ in line], [mean(values) for *_, values in line]
        for flops, _, values in line:
            if len(values) > 1:
                ax.plot([flops] * len(values), values.values(), ".", color=color, ms=3)
        if not grown:
            ax.plot(x, y, "s-", color=color, ms=4, mfc="w", zorder=3, label=f"{target} from scratch")
            continue
        ax.plot(x, y, "o", color=color, ms=6, zorder=3)
        control = [(flops, values) for flops, _, values in found.get((target, False), [])]
        side = 7 if targets.index(target) % 2 else -7  # points: two targets may end alike
        for (flops, shapes, values), level in zip(line, y):
            label, worth = path_of(shapes), statistics.mean(worths(values, flops, control))
            if worth > 1:  # it is nan where no line can be drawn
                label += f": {worth:.2f} x"
                arrow = dict(arrowstyle="->", color="0.4", shrinkA=4, shrinkB=0)
                ax.annotate("", (flops * worth, level), (flops, level), arrowprops=arrow)
            ax.annotate(label, (flops, level), (-8, side), ha="right", color=color, **beside)
    ax.set_xscale("log")
    ax.set_xticks([flops for line in found.values() for flops, *_ in line])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.1e}".replace("e+", "e")))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.margins(x=0.2, y=0.1)
    ax.legend(frameon=False)
    ax.grid(alpha=0.25)
    ax.set_xlabel("training FLOPs, all stages summed")
    ax.set_ylabel("final bits per byte")
    fig.tight_layout()
    fig.savefig(path)


def main():
    p = argparse.ArgumentParser(description="Draw final bits per byte over FLOPs.")
    p.add_argument("folders", nargs="+", help="as compare.py takes them")
    p.add_argument("--out", default="ends.png")
    args = p.parse_args()
    draw(lines(point for folder in args.folders for point in read(folder)), args.out)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"ends.py: {e}")
