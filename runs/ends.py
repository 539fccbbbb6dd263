"""
Draw the ends of arms: final bits per byte over training FLOPs, from scratch and grown, of several folders of
compare.py. Print what everything grown is worth.

$ python runs/ends.py runs/results/{late,doublings,three_doublings} --out assets/ends.png

An arrow says how many times the FLOPs the same size takes from scratch to end as well; it is dotted beyond
what was trained. Of each size, from scratch and grown, the best arm of a budget is drawn, of those with the
most seeds. Small dots are single seeds, the rest is their mean: of a worth, too, each seed's against the
control of its own.
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
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from compare import best_of_budgets, chain, compare, flops_for, same_budget, worths


def sizes(name, spec):
    """Return the sizes of an arm's stages, from the first to the last: ('3 x 64', '6 x 64')."""
    configs = [stage["config"] for stage in chain(name, spec, spec["seeds"][0], rows=lambda *_: 256)]
    return tuple(dict.fromkeys(f"{cfg.n_layer} x {cfg.n_embd}" for cfg in configs))


def read(folder):
    """Return [(sizes, FLOPs, {seed: final bits per byte}, arm)] of a folder's arms. Raise ValueError if no
    control has its budget."""
    spec = runpy.run_path(f"{folder}/arms.py")
    with open(f"{folder}/lines.jsonl") as f:
        rows, _ = compare(spec, list(map(json.loads, f)))
    if not any(row["best"] for row in rows):
        raise ValueError(f"{folder}: no control of its budget is done")
    return [(sizes(row["arm"], spec), row["flops"], row["values"], row["arm"]) for row in rows]


def mean(values):
    """Return the mean of {seed: bits per byte}."""
    return statistics.mean(values.values())


def lines(points):
    """Return {(final size, grown?): [(FLOPs, sizes, values)]}, by FLOPs, with one arm for each budget."""
    found = {}
    for shapes, flops, values, _ in points:
        found.setdefault((shapes[-1], len(shapes) > 1), []).append((flops, shapes, values))
    return {key: best_of_budgets(ends) for key, ends in found.items()}


def best_size(found):
    """Return [(FLOPs, bits per byte)] of the size from scratch that ends lowest at each budget, by FLOPs."""
    scratch = [line for (_, grown), line in found.items() if not grown]
    lowest = []
    for bpb, flops in sorted((mean(values), flops) for line in scratch for flops, _, values in line):
        if not any(same_budget(flops, other) for other, _ in lowest):
            lowest.append((flops, bpb))
    return sorted(lowest)


def worths_of(shapes, flops, values, found):
    """Return (how many times the FLOPs its own size takes from scratch to end as well as what was grown, and
    how many times the best size takes)."""
    control = [(x, runs) for x, _, runs in found.get((shapes[-1], False), [])]
    own = statistics.mean(worths(values, flops, control))
    return own, min(
        own, flops_for(best_size(found), mean(values)) / flops
    )  # the best may be its own, of other seeds


def table(points, found):
    """Yield the lines of a Markdown table: all that was grown, and its worths."""
    yield "| grown | FLOPs | bits per byte | seeds | worth | of the best size |"
    yield "|---" * 6 + "|"
    for shapes, flops, values, arm in sorted(points, key=lambda point: (point[1], mean(point[2]))):
        if len(shapes) > 1:
            own, best = worths_of(shapes, flops, values, found)
            ends = f"{flops:.1e} | {mean(values):.4f} | {len(values)}"
            yield f"| {shapes[-1]}: {arm} | {ends} | {own:.2f} x | {best:.2f} x |"


def path_of(shapes):
    """Return what grew into what: layers, such as 3 → 6 → 12, or sizes where widths differ."""
    layers, widths = zip(*(shape.split(" x ") for shape in shapes))
    return " → ".join(layers if len(set(widths)) == 1 else shapes)


def draw(found, path):
    """Draw a line for each size from scratch, and a dot for what was grown, with its worth."""
    plt.rcParams |= {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    fig, ax = plt.subplots(figsize=(9, 5.5), dpi=150)
    targets = list(dict.fromkeys(target for target, _ in found))
    dots = [(x, mean(values)) for (_, grown), line in found.items() if grown for x, _, values in line]
    arrow = dict(arrowstyle="->", color="0.4", shrinkA=0, shrinkB=0)
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
        trained = max((flops for flops, *_ in found.get((target, False), [])), default=0)
        for (flops, shapes, values), level in zip(line, y):
            label, (worth, _) = path_of(shapes), worths_of(shapes, flops, values, found)
            if worth > 1:  # it is nan where no line can be drawn
                label += f": {worth:.2f} x"
                ends = flops, max(flops, min(flops * worth, trained)), flops * worth
                ax.plot(ends[:2], (level, level), color="0.4", lw=1, zorder=1)
                ax.plot(ends[1:], (level, level), ":", color="0.4", lw=1, zorder=1)
                ax.annotate("", (ends[2], level), (ends[2] * 0.999, level), arrowprops=arrow)
            # below the dot, or above where another dot just below has its label there
            above = any(same_budget(flops, x) and 0 < level - bpb < 0.009 for x, bpb in dots)
            where = dict(xytext=(-8, 7 if above else -7), textcoords="offset points", ha="right", va="center")
            ax.annotate(label, (flops, level), color=color, **where)
    ticks = {f"{flops:.1e}": flops for line in found.values() for flops, *_ in line}  # one a budget
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
    p = argparse.ArgumentParser(description="Draw final bits per byte over FLOPs.")
    p.add_argument("folders", nargs="+", help="as compare.py takes them")
    p.add_argument("--out", default="ends.png")
    args = p.parse_args()
    points = [point for folder in args.folders for point in read(folder)]
    found = lines(points)
    print("\n".join(table(points, found)))
    draw(found, args.out)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"ends.py: {e}")
