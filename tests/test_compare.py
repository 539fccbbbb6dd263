"""runs/compare.py: trunks and their branches, and what the table says of an arm."""

import json
import math
import os
import re
import runpy
import shutil

import compare
import pytest
import torch
from helpers import HERE, ok, run

import data as data_module
from checkpoint import load_checkpoint
from model import Config, skeleton

TINY = (
    "budget, seeds, control = 2.6e9, [1], 'scratch'\n"
    "common = dict(data={data!r}, n_layer=2, n_head=2, n_embd=32, head_dim=16, block_size=64,\n"
    "    tokens_per_step=512, batch_size=8, eval_interval=5, eval_tokens=512, compile=False, device='cpu',\n"
    "    warmup_tokens=512, log_interval=1, save_interval=2)\n"
)


def test_a_trunk_is_trained_once_and_its_branches_decay_off_it(data, tmp_path, forks):
    (tmp_path / "arms.py").write_text(
        TINY.format(data=data) + "trunk = [dict(until=0.4, learning_rate=2e-3), dict(until=0.7)]\n"
        "small, decay = dict(until=0.4, n_layer=1), dict(branch='decay')\n"
        "arms = {'scratch, early': [trunk[0], decay], 'scratch, late': [*trunk, decay],\n"
        "    'grown': [small, dict(grow='--depth 2 --init stack', until=0.8), decay]}\n"
    )
    command = ("runs/compare.py", tmp_path, "--out", tmp_path / "out")
    printed = ok(*command)
    folders = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(folders) == 7 and sum(name.endswith("-decay") for name in folders) == 3
    lines = list(map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines()))
    names = ("scratch, early", "scratch, late", "grown")
    arms = {name: [line for line in lines if line["arm"] == name] for name in names}
    for name, run_ in arms.items():
        assert abs(run_[-1]["flops"] / 2.6e9 - 1) < 0.05
        # the branch goes on from the trunk
        first = next(i for i, line in enumerate(run_) if line["stage"] == run_[-1]["stage"])
        assert run_[first]["step"] == 0 and run_[first]["bpb"] == run_[first - 1]["bpb"]
        for i, folder in enumerate(dict.fromkeys(line["folder"] for line in run_)):
            with open(tmp_path / "out" / folder / "metrics.jsonl") as f:
                rates = [line["lr"][0] for line in map(json.loads, f) if "lr" in line]
            peak = 1e-3 if name == "grown" else 2e-3
            if folder.endswith("-decay"):
                assert rates[0] > 0.8 * peak and rates[-1] < 0.2 * peak
            else:
                assert rates[i == 0 :] == [peak] * len(rates[i == 0 :])
            generations = load_checkpoint(tmp_path / "out" / folder / "ckpt.pt")["config"]["generations"]
            assert all(g["learning_rate"] == peak for g in generations)
    # killed between the two renames of a save, it goes on
    last = tmp_path / "out" / arms["grown"][-1]["folder"]
    step = load_checkpoint(last / "ckpt.pt")["step"]
    (last / "ckpt.pt").unlink()
    assert (last / "ckpt.prev.pt").exists()
    kept = [line for line in lines if line["arm"] != "grown"]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    ok(*command)
    assert load_checkpoint(last / "ckpt.pt")["step"] == step

    folders = (arms[name][-1]["folder"] for name in names[:2])
    early, late = (load_checkpoint(tmp_path / "out" / folder / "ckpt.pt") for folder in folders)
    assert early["ledger"]["dealt"] == late["ledger"]["dealt"]  # the same sequences
    # only 'grown' grew, when it had read half its tokens
    assert "| 0.7" not in printed and printed.count("| 0.5") == 1
    ok("runs/ends.py", tmp_path, "--out", tmp_path / "ends.png")
    assert (tmp_path / "ends.png").stat().st_size > 10_000
    (tmp_path / "arms.py").write_text(TINY.format(data=data) + "arms = {'scratch': [dict(branch='decay')]}\n")
    (tmp_path / "lines.jsonl").unlink()
    assert "'branch' is for the last stage" in run(*command)[0]


def test_arms_may_name_a_training_script_of_their_own(data, tmp_path):
    trained = {}
    for script in ("train.py", "runs/results/muon/train_muon.py"):
        (tmp_path / "arms.py").write_text(
            TINY.format(data=data) + f"train = {script!r}\n"
            "arms = {'grown': [dict(n_layer=1, until=0.3), dict(grow='--depth 2 --init stack', until=0.8),\n"
            "    dict(branch='decay')]}\n"
        )
        ok("runs/compare.py", tmp_path, "--out", tmp_path / "out")
        lines = list(map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines()))
        (tmp_path / "lines.jsonl").unlink()
        trained[script] = {line["folder"] for line in lines}, lines[-1]["bpb"]
    (adamw, adamw_bpb), (muon, muon_bpb) = trained.values()
    assert not adamw & muon  # none took a stage of the other's
    assert adamw_bpb != muon_bpb and abs(adamw_bpb - muon_bpb) < 0.5


def test_muon_moves_matrices_inside_layers_by_orthogonal_updates():
    room = runpy.run_path(os.path.join(HERE, "runs/results/muon/train_muon.py"))
    model = skeleton(Config(n_layer=2, n_embd=64, n_head=4, head_dim=16, ffn_dim=192, vocab_size=99))
    model.allocate("cpu")
    model.init_weights(1)
    optimizer = room["optimizer"](model, 0.5)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    inside = {p for p in model.layers.parameters() if p.ndim > 1}
    assert optimizer.inside == inside and len(inside) == 14
    before = {p: p.detach().clone() for p in model.parameters()}
    gradients = {p: torch.randn_like(p) for p in before}
    for p, gradient in gradients.items():
        p.grad = gradient.clone()
    optimizer.step()
    for p, old in before.items():
        decay = 0.5 if p.ndim > 1 else 0.0
        update = ((1 - 0.01 * decay) * old - p.detach()) / 0.01
        assert torch.equal(p.grad, gradients[p]) and optimizer.state[p]["step"] == 1
        if p in inside:  # descends, by 0.2 sqrt(larger side) x singular values of about 1
            update, gradient = update.flatten(0, -2), gradients[p].flatten(0, -2)
            singular = torch.linalg.svdvals(update) / (0.2 * max(update.shape) ** 0.5)
            assert 0.65 < singular.median() and singular.max() < 1.25
            assert (update * gradient).sum() > 0
        else:  # Adam's first step
            torch.testing.assert_close(update, gradients[p].sign(), rtol=1e-3, atol=1e-3)


def test_the_ends_of_a_budget_and_the_flops_for_a_loss():
    ends = runpy.run_path(os.path.join(HERE, "runs/ends.py"))
    End, small, large = ends["End"], ("1 x 8",), ("1 x 8", "2 x 8")
    half = End(102.0, ("2 x 8",), {1: 3.5, 2: 3.9}, "half the budget", False)
    control = End(200.0, ("2 x 8",), {1: 2.0}, "scratch", False)
    grown, twice = End(100.0, large, {1: 3.0}, "grown", True), End(101.0, large, {1: 2.9}, "twice", True)
    points = [
        control,
        half,
        End(100.0, ("2 x 8",), {1: 3.4}, "one seed", False),  # the same budget; two seeds count more than one
        grown,
        twice,  # the better of two ways
    ]
    found = ends["lines"](points)
    assert found == {("2 x 8", False): [half, control], ("2 x 8", True): [twice]}
    assert ends["best_size"](found) == [(102.0, half.bpb), (200.0, 2.0)] and half.bpb == pytest.approx(3.7)
    # a seed ahead of the mean of its size, which is the best size, is worth no more of that than of its own
    assert ends["worths_of"](End(102.0, large, {1: 3.5}, "", True), found) == pytest.approx((1.0, 1.0))

    # a smaller size ends at 3.2 on 100 and at 2.8 on 200, so that 2 x 8 is the best on 200 alone
    points += [End(100.0, small, {1: 3.2}, "", False), End(200.0, small, {1: 2.8}, "", False)]
    found = ends["lines"](points)
    assert ends["best_size"](found) == [(100.0, 3.2), (200.0, 2.0)]
    own = (200 / 102) ** (math.log(3.5 / 3.0) / math.log(3.5 / 2.0)) * 1.02
    best = 2 ** (math.log(3.2 / 3.0) / math.log(3.2 / 2.0))
    better, worse = list(ends["table"](points, found))[2:]
    assert better.startswith("| 2 x 8: twice | 1.0e+02 | 2.9000 | 1 |")
    assert worse == f"| 2 x 8: grown | 1.0e+02 | 3.0000 | 1 | {own:.2f} x | {best:.2f} x |"
    # where its own size has one run, no line of that can be drawn
    points.remove(half)
    points = [end for end in points if end.arm != "one seed"]
    *_, alone = ends["table"](points, ends["lines"](points))
    assert alone == f"| 2 x 8: grown | 1.0e+02 | 3.0000 | 1 |  | {best:.2f} x |"

    flops_for, line = compare.flops_for, [(100.0, 4.0), (200.0, 2.0), (800.0, 1.0)]
    # loss x FLOPs is 400 at first, and then loss^2 x FLOPs 800
    levels = (8.0, 4.0, 3.0, 2.0, 1.0, 0.5)
    assert [round(flops_for(line, level)) for level in levels] == [50, 100, 133, 200, 800, 3200]
    assert math.isnan(flops_for(line[:1], 4.0))
    # of seed 2 the control was run at 100 alone, where it is twice seed 1's, and so it is at 200 and 800
    line = [(100.0, {1: 4.0, 2: 8.0}), (200.0, {1: 2.0}), (400.0, {3: 5.0}), (800.0, {1: 1.0})]
    assert compare.worths({1: 2.0, 2: 2.0, 4: 1.0}, 100.0, line) == pytest.approx([2, 8, 8])
    # seed 1, which has as many runs as seed 2, was not run at 800
    line = [(100.0, {1: 4.0, 2: 8.0}), (400.0, {1: 2.0}), (800.0, {2: 2.0})]
    assert compare.worths({1: 1.0, 2: 2.0}, 100.0, line) == pytest.approx([8, 8])
    assert all(math.isnan(compare.worths({1: 2.0}, 100.0, few)[0]) for few in ([], line[:1]))


def test_what_the_table_says_of_an_arm():
    """There are a control, the control at half the budget, and an arm that grows at half the FLOPs from a
    model of half the cost."""
    spec = {"seeds": [1], "budget": 100, "control": "scratch"}
    spec["common"] = dict(learning_rate=1.0, decay_share=0.25)
    spec["arms"] = {
        "scratch": [{}],
        "scratch, half": [dict(until=0.5)],
        "scratch, another decay": [dict(until=0.6), dict(branch="decay")],
        "grown": [dict(until=0.5), dict(grow="--double depth")],
        "grown, a branch": [dict(until=0.5), dict(grow="--double depth", until=0.75), dict(branch="decay")],
    }

    def lines(arm, *points):
        for stage, tokens, flops, bpb in points:
            grow = "--double depth" if arm.startswith("grown") and stage == 1 else ""
            how = {"parameters": 50, "head": 0.4 if arm == "grown" and not stage else 0.2}
            at = {"tokens": tokens, "flops": flops, "bpb": bpb}
            yield {"arm": arm, "seed": 1, "stage": stage, "grow": grow} | at | how

    # (stage, tokens, FLOPs, bits per byte)
    start = (0, 0, 0, 8.0)
    whole = [start, (0, 50, 50, 4.0), (0, 75, 75, 3.5), (0, 90, 90, 3.0), (0, 100, 100, 2.0)]
    everything = [
        *lines("scratch", *whole),
        *lines("scratch, half", *whole[:2]),
        *lines("scratch, another decay", start, (0, 60, 60, 3.8), (1, 60, 60, 3.8), (1, 100, 100, 2.5)),
        *lines("grown", start, (0, 100, 50, 5.0), (1, 100, 50, 6.0), (1, 150, 100, 1.0)),
        *lines("grown, a branch", start, (0, 9, 50, 5.0), (1, 9, 50, 6.0), (1, 9, 75, 3.0), (2, 9, 75, 3.0)),
    ]
    compared, _ = compare.compare(spec, everything)
    rows = {row["arm"]: row for row in compared}
    grown, control, other = (rows[name] for name in ("grown", "scratch", "scratch, another decay"))
    # the slope is -1, from the best two budgets
    assert grown["R"] == 1.5 and grown["worth"] == pytest.approx(2)
    spec["arms"]["scratch, half, at another rate"] = [dict(until=0.5, learning_rate=2.0)]
    better = [*everything, *lines("scratch, half, at another rate", start, (0, 50, 50, 3.0))]
    steeper = {row["arm"]: row for row in compare.compare(spec, better)[0]}["grown"]
    assert steeper["worth"] == pytest.approx(2 ** (math.log(2) / math.log(1.5)))
    assert grown["growths"] == [100 / 150] and control["growths"] == other["growths"] == []
    assert grown["a_parameter"] == 3
    assert (grown["head"], control["head"]) == pytest.approx((0.3, 0.2))
    ends = {"scratch": -1.5, "scratch, another decay": -1.3, "grown": -5.0}  # what the decay brings
    assert {name: rows[name]["decay"] for name in ends} == pytest.approx(ends)
    assert "behind" not in rows["grown, a branch"]  # no control of its regime has a trunk
    text = {line.split(" | ")[0].strip("| *"): line for line in compare.table(compared)}
    assert "| 2.00 x | 1.50 | 1.33 | 0.67 | 30% | -5.0000 |  |" in text["grown"]
    assert "| 1.00 x | 1.00 | 1.00 |  | 20% | -1.5000 |" in text["scratch"]


def test_what_the_table_says_of_seeds_and_of_tokens_that_cost_less():
    """A control's token takes 0.5 FLOPs, an arm's two thirds of one. There are two seeds, of which one ends
    lower, and two trunks, of which the longer counts."""
    decay = dict(branch="decay")
    spec = {"seeds": [1, 2], "budget": 100, "control": "scratch", "common": dict(learning_rate=1.0)}
    spec["arms"] = {
        "scratch": [dict(until=0.8), decay],
        "scratch, half": [dict(until=0.4), decay | dict(until=0.5)],
        "grown": [dict(until=0.5), dict(grow="--double depth", until=0.8), decay],
    }
    ends, lines = {1: 1.0, 2: 0.5}, []
    for seed, end in ends.items():
        points = {  # of an arm: (stage, tokens, FLOPs, bits per byte)
            "scratch": [(0, 0, 0, 8), (0, 160, 80, 3), (1, 160, 80, 3), (1, 200, 100, 2)],
            "scratch, half": [(0, 0, 0, 8), (0, 80, 40, 5), (1, 80, 40, 5), (1, 100, 50, 4)],
            "grown": [(0, 0, 0, 8), (0, 75, 50, 5), (1, 75, 50, 6), (1, 120, 80, 4.5), (2, 120, 80, 4.5)],
        }
        points["grown"].append((2, 150, 100, end))
        for arm in points:
            for stage, tokens, flops, bpb in points[arm]:
                grow = "--double depth" if arm == "grown" and stage == 1 else ""
                at = dict(tokens=tokens, flops=flops, bpb=bpb, parameters=50)
                lines.append(dict(arm=arm, seed=seed, stage=stage, grow=grow) | at)
    grown = {row["arm"]: row for row in compare.compare(spec, lines)[0]}["grown"]
    assert grown["R"] == pytest.approx(0.75)
    assert grown["worths"] == pytest.approx([2, 4]) and grown["worth"] == pytest.approx(3)
    assert grown["behind"] == pytest.approx(4.5 - 4.25)  # the control fell from 8 to 3 in 160 tokens
    rows = compare.compare(spec | {"budget": 400}, lines)[0]  # whose control is not trained yet
    assert {row["arm"]: row for row in rows}["grown"]["worth"] == pytest.approx(3)
    assert not any("eta" in row for row in rows)
    assert compare.same_budget(100, 104) and not compare.same_budget(100, 106)


def test_what_decides_is_trained_with_all_seeds(tmp_path, monkeypatch):
    fakes = {
        "run": lambda *_: None,
        "chain": lambda name, spec, seed: [dict(folder=f"{name}{seed}", parent=None)],
        "results": lambda out, name, seed, stages: [dict(arm=name, seed=seed, bpb=1.0)],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(compare, name, fake)
    lines, spec = [dict(arm="a", seed=1)], dict(seeds=[1, 2], deciding=["b"], common={"device": "cpu"})
    spec["arms"] = dict.fromkeys("abc")
    compare.train_missing(spec, lines, str(tmp_path), tmp_path / "lines.jsonl", 1)
    assert [(line["arm"], line["seed"]) for line in lines] == [("a", 1), ("b", 1), ("c", 1), ("b", 2)]


def test_the_heads_share_of_the_flops(tmp_path):
    sizes = dict(n_layer=1, n_head=1, n_embd=16, head_dim=16, block_size=64)
    (tmp_path / "metrics.jsonl").write_text('{"bpb": 1}\n')
    stage = dict(config=Config(vocab_size=300, **sizes), folder="", grow=[], edit="")
    (line,) = compare.results(tmp_path, "x", 1, [stage])
    half, whole = (Config(vocab_size=n, **sizes).flops_per_token() for n in (150, 300))
    assert line["head"] == pytest.approx(2 * (whole - half) / whole, abs=1e-4)


def test_a_stage_may_change_the_block_size_and_its_regime():
    common = dict(n_layer=2, n_head=2, n_embd=32, head_dim=16, vocab_size=300, block_size=64)
    common |= dict(tokens_per_step=1024, learning_rate=1e-3)
    arms = {
        "longer": [dict(until=0.5), dict(block_size=1024)],
        "grown": [dict(until=0.5, learning_rate=2e-3), dict(grow="--double depth")],
    }
    spec = dict(budget=1e11, common=common, arms=arms)
    for name in arms:
        stages = compare.chain(name, spec, 1, lambda data, stage: 300)
        flops = sum(s["steps"] * 1024 * s["config"].flops_per_token() for s in stages)
        assert flops == pytest.approx(1e11, rel=0.02)
        assert [s["config"].block_size for s in stages] == [64, 1024 if name == "longer" else 64]
    assert compare.regime("grown", spec)[0] == 1e-3  # a growth begins again with what is common
    only_last = [{"tokens": 10, "bpb": 2.0, "stage": 0}]
    assert math.isnan(compare.before_decay(only_last, 0.2, False))


def test_how_far_a_grown_arm_is_behind():

    def run_of(*points):
        return [{"stage": s, "tokens": t, "bpb": b, "grow": "depth" if s == 1 else ""} for s, t, b in points]

    control = run_of((0, 0, 8.0), (0, 100, 7.0), (2, 100, 7.0), (2, 120, 1.0))
    # 9.0 is at the growth itself, and 9.0 again the fourth from the decay
    points = [
        (1, 20, 9.0),
        (1, 30, 9.0),
        (1, 40, 7.7),
        (1, 50, 7.6),
        (1, 60, 7.6),
        (2, 60, 7.6),
        (2, 90, 1.0),
    ]
    assert compare.behind(run_of((0, 20, 7.9), *points), control) == pytest.approx((0.1 + 0.1 + 0.2) / 3)
    points[4] = (1, 101, 7.6)  # the control did not read as many
    assert math.isnan(compare.behind(run_of((0, 20, 7.9), *points), control))


def test_compare(data, tmp_path, forks):
    arms = TINY.format(data=data) + (
        "common |= dict(eval_interval=10, log_interval=10)\n"
        "first = dict(n_layer=1, until=0.5)\n"
        "arms = {'scratch': [{}], 'random': [first, dict(grow='--double depth --init random')],\n"
        "    'stack': [first, dict(grow='--double depth --init stack')],\n"
        "    'edited': [first, dict(grow='--double depth --init random', edit='forget')]}\n"
        "def forget(ckpt):\n    ckpt['model']['wte.0'].zero_()\n"
    )
    (tmp_path / "arms.py").write_text(arms)
    command = ("runs/compare.py", tmp_path, "--out", tmp_path / "out", "--jobs", 2)
    ok(*command)
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 5  # the first stage once, for all that grow
    lines = (tmp_path / "lines.jsonl").read_text()
    records = list(map(json.loads, lines.splitlines()))
    end = {line["arm"]: line["flops"] for line in records}
    assert end.keys() == {"scratch", "random", "stack", "edited"}
    assert all(abs(flops / 2.6e9 - 1) < 0.05 for flops in end.values())
    first = {line["arm"]: line["val_loss"] for line in records if line["stage"] and not line["step"]}
    chance = pytest.approx(math.log(data_module.read_meta(data)["vocab_size"]))
    assert first["edited"] == chance != first["random"]
    # all rates decay to zero at the end of their arm, whose first half is on the flat part
    for folder in folders:
        ckpt = load_checkpoint(f"{folder}/ckpt.pt")
        now, schedule = ckpt["ledger"]["tokens"], ckpt["schedule"]
        flat = now < schedule["decay_from"]
        assert now == schedule["horizon"] or flat and ckpt["config"]["n_layer"] == 1
    shutil.rmtree(tmp_path / "out")
    assert "| random |" in ok(*command)  # and nothing is trained again
    assert (tmp_path / "lines.jsonl").read_text() == lines and not (tmp_path / "out").exists()
    (tmp_path / "arms.py").write_text(arms.replace("n_layer=1", "n_layers=1") + "seeds = [2]\n")
    assert "no setting is called n_layers" in run(*command)[0]


def test_picture(grown_run, tmp_path, monkeypatch):
    """A ladder has six panels, also without its checkpoints, and its generations' curves begin where they
    were born. With a control there are three."""
    figure = pytest.importorskip("matplotlib.figure")
    figures, (_, one) = [], grown_run
    monkeypatch.setattr(figure.Figure, "savefig", lambda fig, path: figures.append(fig))

    def write(name, first, generations, n=4):
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "metrics.jsonl", "w") as f:
            for i in range(n):
                at = {"step": i, "tokens": first + i, "flops": (first + i) * 1e9, "seconds": float(first + i)}
                f.write(json.dumps(at | {"val_loss": 1.0, "bpb": 2.0 - 0.1 * i}) + "\n")
                lists = {key: [0.1] * generations for key in ("lr", "grad_norm", "update_rms")}
                f.write(json.dumps(at | {"loss": 1.0, "norm": 1.0} | lists) + "\n")
            f.write('{"step": 9, "los')  # it is being written
        return tmp_path / name / "metrics.jsonl"

    ladder = [write("first", 0, 1), write("second", 3, 2)]
    printed = ok("runs/picture.py", *ladder, "--out", tmp_path / "x.png")
    assert "first: no ckpt.pt beside metrics.jsonl" in printed
    assert re.search(r"^second +- +- +3 +3.00e\+09 +6.00e\+09", printed, re.M)
    panels = figures[-1].axes
    curves = [len(line.get_xdata()) for line in panels[3].lines if line.get_linestyle() == "-"]
    assert len(panels) == 6 and curves == [8, 4]
    names = ("learning rate", "gradient norm", "update, RMS")
    assert [panel.get_title("left") for panel in panels[3:]] == [f"{name}, by generation" for name in names]
    ok("runs/picture.py", *ladder, write("control", 0, 1, 9), "--log", "--out", tmp_path / "x.png")
    assert len(figures[-1].axes) == 3
    assert [text.get_text() for text in figures[-1].legends[0].texts] == ["first to second", "control"]
    printed = ok("runs/picture.py", one / "metrics.jsonl", "--out", tmp_path / "x.png")
    assert re.search("^one +3 x 48", printed, re.M) and "no ckpt.pt" not in printed
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "text.jsonl").write_text("hello\n")
    wrong = {"empty": "no evaluation in it yet", "text": "not a metrics.jsonl", "none": "No such file"}
    for name, message in wrong.items():
        assert message in run("runs/picture.py", tmp_path / f"{name}.jsonl")[0]
