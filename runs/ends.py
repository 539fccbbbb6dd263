"""
Draw the ends of arms: final bits per byte over training FLOPs, from scratch and grown, of several folders of
compare.py. Print what everything grown is worth.

$ python runs/ends.py runs/results/{late,doublings,three_doublings} --out assets/ends.png

The folders have one text and one tokenizer. Worths are against the size that was grown, and against the best
of all sizes from scratch in these folders. An arrow says how many times the FLOPs the same size takes from
scratch to end as well; it is dotted beyond what was trained. Of each size, from scratch and grown, the best
arm of a budget is drawn, of those with the most seeds. Small dots are single seeds, the rest is their mean:
of a worth, too, each seed's against the control of its own.
"""

import argparse
import json
import math
import os
import runpy
import statistics
import sys
from typing import NamedTuple

import matplotlib

matplotlib.use("Agg")  # a file, no window
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from compare import best_of_budgets, chain, compare, flops_for, same_budget, worths


class End(NamedTuple):
    """Where an arm ended."""

    flops: float
    sizes: tuple[str, ...]  # of its stages, from the first to the last: ('3 x 64', '6 x 64')
    values: dict[int, float]  # {seed: final bits per byte}
    arm: str
    grown: bool

    @property
    def bpb(self):
        """The mean of its seeds."""
        return statistics.mean(self.values.values())


def read(folder):
    """Return the End of each arm of a folder. Raise ValueError if no control has its budget."""
    spec = runpy.run_path(f"{folder}/arms.py")
    with open(f"{folder}/lines.jsonl") as f:
        rows, _ = compare(spec, list(map(json.loads, f)))
    if not any(row["best"] for row in rows):
        raise ValueError(f"{folder}: no control of its budget is done")

    def sizes(arm):
        stages = chain(arm, spec, spec["seeds"][0], rows=lambda *_: 256)
        shapes = (f"{stage['config'].n_layer} x {stage['config'].n_embd}" for stage in stages)
        return tuple(dict.fromkeys(shapes))

    return [
        End(row["flops"], sizes(row["arm"]), row["values"], row["arm"], bool(row["growths"])) for row in rows
    ]


def lines(ends):
    """Return {(final size, grown?): [End]}, by FLOPs, with one arm for each budget."""
    found = {}
    for end in ends:
        found.setdefault((end.sizes[-1], end.grown), []).append(end)
    return {key: best_of_budgets(line) for key, line in found.items()}


def best_size(found):
    """Return [(FLOPs, bits per byte)] of the size from scratch that ends lowest at each budget, by FLOPs. A
    size that was not trained on a budget is left out there."""
    scratch = [end for (_, grown), line in found.items() if not grown for end in line]
    means = [(end.flops, end.sizes, {"mean": end.bpb}) for end in scratch]  # however many seeds it has
    return [(flops, values["mean"]) for flops, _, values in best_of_budgets(means)]


def worths_of(end, found):
    """Return (how many times the FLOPs its own size takes from scratch to end as well as what was grown, and
    how many times the best size takes); nan where no line can be drawn."""
    control = [(scratch.flops, scratch.values) for scratch in found.get((end.sizes[-1], False), [])]
    own = statistics.mean(worths(end.values, end.flops, control))
    best = flops_for(best_size(found), end.bpb) / end.flops
    # the best may be its own size, of other seeds: it is worth no more of that than of its own
    return own, best if math.isnan(own) else min(own, best)


def table(ends, found):
    """Yield the lines of a Markdown table: all that was grown, and its worths."""
    yield "| grown | FLOPs | bits per byte | seeds | worth | of the best size |"
    yield "|---" * 6 + "|"
    for end in sorted(ends, key=lambda end: (float(f"{end.flops:.1e}"), end.bpb)):
        if end.grown:
            own, best = ("" if math.isnan(worth) else f"{worth:.2f} x" for worth in worths_of(end, found))
            ended = f"{end.flops:.1e} | {end.bpb:.4f} | {len(end.values)}"
            yield f"| {end.sizes[-1]}: {end.arm} | {ended} | {own} | {best} |"


def path_of(sizes):
    """Return what grew into what: layers, such as 3 → 6 → 12, or sizes where widths differ."""
    layers, widths = zip(*(size.split(" x ") for size in sizes))
    return " → ".join(layers if len(set(widths)) == 1 else sizes)


A_LABEL = 0.009  # bits per byte that a label is high


def draw(found, path):
    """Draw a line for each size from scratch, and a dot for what was grown, with its worth."""
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    fig, ax = plt.subplots(figsize=(9, 5.5), dpi=150)
    targets = list(dict.fromkeys(target for target, _ in found))
    dots = [end for (_, grown), line in found.items() if grown for end in line]
    arrow = dict(arrowstyle="->", color="0.4", shrinkA=0, shrinkB=0)
    for (target, grown), line in found.items():
        color = f"C{targets.index(target)}"
        x, y = [end.flops for end in line], [end.bpb for end in line]
        for end in line:
            if len(end.values) > 1:
                ax.plot([end.flops] * len(end.values), end.values.values(), ".", color=color, ms=3)
        if not grown:
            ax.plot(x, y, "s-", color=color, ms=4, mfc="w", zorder=3, label=f"{target} from scratch")
            continue
        ax.plot(x, y, "o", color=color, ms=6, zorder=3)
        trained = max((scratch.flops for scratch in found.get((target, False), [])), default=0)
        for end in line:
            label, (worth, _) = path_of(end.sizes), worths_of(end, found)
            if worth > 1:  # it is nan where no line can be drawn
                label += f": {worth:.2f} x"
                at = end.flops, max(end.flops, min(end.flops * worth, trained)), end.flops * worth
                ax.plot(at[:2], [end.bpb] * 2, color="0.4", lw=1, zorder=1)
                ax.plot(at[1:], [end.bpb] * 2, ":", color="0.4", lw=1, zorder=1)
                ax.annotate("", (at[2], end.bpb), (at[2] * 0.999, end.bpb), arrowprops=arrow)
            # below the dot, or above where another dot just below has its label there
            above = any(same_budget(end.flops, dot.flops) and 0 < end.bpb - dot.bpb < A_LABEL for dot in dots)
            where = dict(xytext=(-8, 7 if above else -7), textcoords="offset points", ha="right", va="center")
            ax.annotate(label, (end.flops, end.bpb), color=color, **where)
    ticks = {f"{end.flops:.1e}": end.flops for line in found.values() for end in line}  # one a budget
    ax.set_xscale("log")
    ax.set_xticks(list(ticks.values()))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.1e}".replace("e+", "e")))
    ax.minorticks_off()
    ax.margins(x=0.2, y=0.1)
    handles, _ = ax.get_legend_handles_labels()
    handles.append(Line2D([], [], color="k", marker="o", ls="", label="grown"))
    times = "that size from scratch needs so many times\nthe FLOPs; dotted: beyond what was trained"
    handles.append(Line2D([], [], color="0.4", marker=">", ms=4, markevery=[1], label=times))
    ax.legend(handles=handles, frameon=False)
    ax.grid(alpha=0.25)
    ax.set_xlabel("training FLOPs, all stages summed")
    ax.set_ylabel("final bits per byte")
    fig.tight_layout()
    fig.savefig(path)


def main():
    what = "Draw final bits per byte over FLOPs, and print the worths of what was grown."
    p = argparse.ArgumentParser(description=what)
    p.add_argument("folders", nargs="+", help="as compare.py takes them")
    p.add_argument("--out", default="ends.png")
    args = p.parse_args()
    ends = [end for folder in args.folders for end in read(folder)]
    found = lines(ends)
    print("\n".join(table(ends, found)))
    draw(found, args.out)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"ends.py: {e}")
