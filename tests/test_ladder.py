"""runs/ladder.py: what a ladder takes, runs of it, and its control."""

import glob
import os
import re
import runpy
import subprocess
import sys

import pytest
import torch
from helpers import HERE, Forked, metrics, ok, run
from ladder import control, kind_of, memory, train

from checkpoint import load_checkpoint, save_checkpoint
from grow import asked_sizes, parse_args, with_sizes
from model import Config, Llama, skeleton
from test_grow import tiny_rows
from train import configure, shape_of


def test_the_plan_of_a_ladder(tmp_path):
    """The bytes that activations are said to take are those that autograd saves under bf16 autocast."""
    sizes = dict(n_layer=3, n_head=4, n_embd=128, head_dim=32, ffn_dim=384, vocab_size=300, block_size=64)

    def saved(n_layer, tokens, recompute):
        model, storages = Llama(Config(**sizes | {"n_layer": n_layer})), {}
        model.init_weights(0)
        own = {x.untyped_storage().data_ptr() for x in [*model.parameters(), *model.buffers()]}
        for block in model.layers:
            block.recompute = recompute

        def pack(t):
            if t.untyped_storage().data_ptr() not in own:
                storages[t.untyped_storage().data_ptr()] = t
            return t

        x = torch.zeros(tokens // 64, 65, dtype=torch.long)
        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        with hooks, torch.autocast("cpu", torch.bfloat16):
            model(x[:, :-1], x[:, 1:])
        return sum(t.untyped_storage().nbytes() for t in storages.values())

    for recompute in (False, True):
        a, b = (Config(**sizes | {"n_layer": n}) for n in (2, 3))
        weights = 18 * (skeleton(b).count_params()["total"] - skeleton(a).count_params()["total"])
        planned = memory(b, 256, 1, False, recompute) - memory(a, 256, 1, False, recompute) - weights
        counted = [saved(n, 256, recompute) - saved(n, 128, recompute) for n in (2, 3)]
        assert 2 * (counted[1] - counted[0]) == pytest.approx(planned, rel=0.01)

    # what is printed. Stage 8 is grown when 0.93 of 3.71 are spent
    stages = sorted(glob.glob(f"{HERE}/config/stage?.py"))
    printed = ok("runs/ladder.py", "plan", *stages, "--gpu", "h200", "--count", 8)
    assert len(re.findall(r"^stage\d ", printed, re.M)) == 9 and "6,738,415,616" in printed
    assert re.findall(r"^stage[0678] .* (\d+)%", printed, re.M) == ["0", "4", "8", "25"]
    flops = float(re.search(r"all: .*?, (\S+) FLOPs", printed)[1])
    assert flops == pytest.approx(3.71e21, rel=0.01)
    assert "a width after a depth, expected worth = R x eta = 1.73 x 0.72 to 0.76 = 1.2 to 1.3\n" in printed
    # a 1B by depth alone: depth doubles at an eighth and a quarter of the FLOPs that stages 0 to 5 take
    depths = sorted(glob.glob(f"{HERE}/config/depth?.py"))
    by_depth = ok("runs/ladder.py", "plan", *depths)
    assert re.findall(r"^depth\d .* (\d+)%", by_depth, re.M) == ["0", "12", "25"]
    assert "by depth alone, early, expected worth = R x eta = 1.40 x " in by_depth
    assert "1.66e+20 FLOPs" in by_depth
    late = ok("runs/ladder.py", "plan", *depths, "--max_steps=9")
    assert re.search(r"^depth2 .* 45%", late, re.M) and "by depth alone, expected worth" in late
    widths_first = ok("runs/ladder.py", "plan", *stages[:6])
    assert re.findall(r"^stage[345] .* (\d+)%", widths_first, re.M) == ["4", "13", "25"]
    assert (
        "widths first, early, expected worth = R x eta = 1.56 x 0.76 to 1.11 = 1.2 to 1.7\n" in widths_first
    )
    assert "1.66e+20 FLOPs" in widths_first
    late = ok("runs/ladder.py", "plan", *stages[:6], "--max_steps=9")
    assert "\nwidths first, expected worth" in late
    alone = [Config(n_layer=2, n_embd=n_embd, n_head=1, vocab_size=64) for n_embd in (128, 256)]
    assert kind_of(alone, 0.25) == "widths first"  # no depth follows
    assert "--gpu tpu: one of h200" in run("runs/ladder.py", "plan", *stages, "--gpu", "tpu")[0]
    (tmp_path / "stage0.py").write_text("out_dir = 'x'\n")
    assert "stage0.py: max_steps is missing" in run("runs/ladder.py", "plan", tmp_path / "stage0.py")[0]


def test_a_plan_of_what_cannot_be(tmp_path):
    good = "out_dir, max_steps, tokens_per_step, batch_size, block_size = 'x', 10, 512, 4, 64\n"
    good += "learning_rate = 1e-3\nn_layer, n_head, n_embd, head_dim, vocab_size = 2, 2, 32, 16, 300\n"
    config = tmp_path / "stage0.py"
    config.write_text(good)
    alone = ok("runs/ladder.py", "plan", config)
    assert re.search(r"^stage0 .* 2 x 32 ", alone, re.M) and "worth" not in alone  # nothing grows
    for args, message in [
        (["--count", 0], "--count 0: at least 1"),
        (["--count", -1], "--count -1: at least 1"),
        (["--mfu", 0], "--mfu 0.0: a share of the peak, above 0 and at most 1"),
        (["--mfu", -0.4], "--mfu -0.4: a share"),
        (["--mfu", "nan"], "--mfu nan: a share"),
        (["--mfu", 40], "--mfu 40.0: a share"),
    ]:
        assert message in run("runs/ladder.py", "plan", config, *args)[0], args
    for line, message in [
        ("n_layer = = 2", "stage0.py: SyntaxError: "),
        ("import nothing_of_this_name", "stage0.py: ModuleNotFoundError: "),
        ("n_layer = 1 / 0", "stage0.py: ZeroDivisionError: "),
        ("n_layer = 'two'", "stage0.py: n_layer = 'two' is str, expected int"),
        ("max_steps = 0", "stage0.py: max_steps = 0, expected above 0"),
        ("tokens_per_step = -512", "stage0.py: tokens_per_step = -512, expected"),
        ("n_embd = 32.5", "stage0.py: n_embd = 32.5 is float, expected int"),
        ("learning_rate = float('nan')", "stage0.py: learning_rate = nan, expected above 0"),
        ("n_head, n_kv_head = 3, 2", "stage0.py: n_head = 3 is not a multiple of n_kv_head = 2"),
        ("generations = 3", "stage0.py: no setting is called generations"),
    ]:
        config.write_text(f"{good}{line}\n")
        error, _ = run("runs/ladder.py", "plan", config)
        assert message in error, (line, error)
    assert "nowhere.py: no such config file" in run("runs/ladder.py", "plan", tmp_path / "nowhere.py")[0]


@pytest.fixture
def ladder(data, tmp_path):
    """Return the configs of two tiny stages."""
    paths = [tmp_path / "stage0.py", tmp_path / "stage1.py"]
    paths[0].write_text(
        f"data, out_dir = {data!r}, {str(tmp_path / 's0')!r}\n"
        "n_layer, n_embd, n_head, head_dim, block_size = 2, 32, 2, 16, 64\n"
        "tokens_per_step, batch_size, max_steps, learning_rate = 512, 4, 4, 1e-2\n"
        "eval_interval, eval_tokens, sample_tokens, log_interval = 0, 2048, 0, 1\n"
        "device, compile = 'cpu', False\n"
    )
    paths[1].write_text(
        f"out_dir, init_from = {str(tmp_path / 's1')!r}, {str(tmp_path / 's0/grown.pt')!r}\n"
        "_after, _grow, n_embd, n_head = 'stage0.py', '--double width', 64, 4\n"
    )
    return paths


class Stage(Forked):
    """What ladder.py starts: a script, or torchrun of one process."""

    def __init__(self, command, cwd=None):
        script = next(i for i, word in enumerate(command) if word.endswith(".py"))
        super().__init__([sys.executable, *command[script:]], cwd)

    def wait(self):
        code = super().wait()
        print(open(self.files[0].name).read())
        return code


def test_a_ladder_is_one_schedule_and_goes_on_where_it_stopped(ladder, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Stage)
    assert "stopped before the end of" in run("runs/ladder.py", "run", *ladder, "--stop_at=2")[0]
    printed = ok("runs/ladder.py", "run", *ladder)
    assert f"the ladder is done: {tmp_path}/s1/ckpt.pt" in printed
    assert "resumed at step 2" in printed
    ckpt = load_checkpoint(tmp_path / "s1/ckpt.pt")
    assert ckpt["ledger"]["tokens"] == 8 * 512 == ckpt["schedule"]["horizon"] and len(ckpt["lineage"]) == 1
    rates = [x[0] for folder in ("s0", "s1") for x in metrics(tmp_path / folder, "lr").values()]
    assert rates[4] == rates[5] == 1e-2 and rates[-1] < 0.5e-2  # they fall in the last fifth of the ladder
    assert ok("runs/ladder.py", "run", *ladder) == printed.splitlines()[-1] + "\n"  # nothing is left to do
    assert (
        f"{tmp_path}/s0 was grown before step 9" in run("runs/ladder.py", "run", *ladder, "--max_steps=9")[0]
    )
    # what was grown from the last stage, by hand, is not the ladder's; and the stage may become longer
    ok("grow.py", "--in", tmp_path / "s1/ckpt.pt", "--double", "ffn")
    with open(ladder[1], "a") as f:
        f.write("max_steps = 5\n")
    assert "resumed at step 4" in ok("runs/ladder.py", "run", *ladder)
    assert load_checkpoint(tmp_path / "s1/ckpt.pt")["step"] == 5

    # the control: the same size and FLOPs, from scratch
    command = ("runs/ladder.py", "control", tmp_path / "s1/ckpt.pt", "1e-3")
    ok(*command)
    ckpt, control = (load_checkpoint(tmp_path / folder / "ckpt.pt") for folder in ("s1", "s1-control-1e-3"))
    assert control["ledger"]["flops"] == pytest.approx(ckpt["ledger"]["flops"], rel=0.2)
    assert not control["lineage"]
    assert control["config"]["n_embd"] == 64 and control["schedule"]["horizon"] == control["ledger"]["tokens"]
    assert "s0 has a control of 4 steps, not of" in run(*command, "--out", tmp_path / "s0")[0]


def test_a_config_has_what_the_one_before_it_has(ladder):
    """But what it gives itself; and a bad setting is the file's that gives it."""
    first, second = (configure([str(path)]) for path in ladder)
    own = ("out_dir", "n_embd", "n_head", "init_from")
    assert second == first | {key: second[key] for key in own} and second["n_embd"] == 64
    ladder[0].write_text("n_layers = 2\n")
    with pytest.raises(ValueError, match="stage0.py: no setting is called n_layers"):
        configure([str(ladder[1])])
    ladder[0].unlink()
    with pytest.raises(ValueError, match="stage0.py: no such config file"):
        configure([str(ladder[1])])


def test_the_configs_know_the_ladders_end():
    for name, n in (("stage", 9), ("tiny", 3)):
        stages = [configure([path]) for path in sorted(glob.glob(f"{HERE}/config/{name}?.py"))]
        tokens = sum(s["max_steps"] * s["tokens_per_step"] for s in stages)
        assert len(stages) == n and {s["horizon_tokens"] for s in stages} == {tokens}


def test_a_stage_has_the_sizes_that_its_growth_makes():
    def sizes_of(path):
        return Config(**shape_of(configure([path])))

    grown = sorted(glob.glob(f"{HERE}/config/*[1-9].py"))
    for path in grown:
        stage = runpy.run_path(path)
        before = sizes_of(os.path.join(os.path.dirname(path), stage["_after"]))
        args = parse_args(["--in", "-", *stage["_grow"].split()])
        asked = asked_sizes(before, args)
        asked.pop("vocab_size", None)
        expected = with_sizes(before, asked)
        after = sizes_of(path)
        assert {name: getattr(after, name) for name in expected} == expected, path
    assert len(grown) == 14


def test_stages_that_do_not_follow_each_other_are_refused(ladder, tmp_path):
    error, _ = run("runs/ladder.py", "run", *ladder, f"--out_dir={tmp_path / 'x'}")
    assert "stage1.py: init_from = " in error and not (tmp_path / "x").exists()


def test_a_ladder_runs_from_any_folder(ladder, tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", Stage)
    monkeypatch.chdir(tmp_path)
    assert "the ladder is done" in ok("runs/ladder.py", "run", "stage0.py", "stage1.py", "--max_steps=2")
    error, _ = run("runs/ladder.py", "control", "s1/ckpt.pt", "abc")
    assert error == "ladder.py: train.py failed: see above"
    ckpt = load_checkpoint("s1/ckpt.pt") | {"settings": {}, "schedule": None}
    torch.save(ckpt, "imported.pt")
    assert "imported.pt: was never trained" in run("runs/ladder.py", "control", "imported.pt", "1e-3")[0]


def test_docs_have_the_plan_of_a_ladder():
    """Memory, sharded memory and hours of the table in docs/speed.md; hours and memory in the README."""
    printed = ok("runs/ladder.py", "plan", *sorted(glob.glob(f"{HERE}/config/stage?.py")))
    planned = re.findall(r"^stage(\d).*% +(\d+) +\d+ +(\d+) +\d+ +(\S+)$", printed, re.M)
    with open(f"{HERE}/docs/speed.md") as f:
        said = re.findall(r"^\| (\d) \|.* \| (\d+) \((\d+)\) \| (\S+) \|$", f.read(), re.M)
    assert len(planned) == 9 and said == planned
    evening = sorted(glob.glob(f"{HERE}/config/evening?.py"))
    printed = ok("runs/ladder.py", "plan", *evening, "--count", 1)
    assert re.search(r"^evening2.* 37 +10 ", printed, re.M) and ", 3.2 hours\n" in printed
    assert ", 4.5 hours, 1.41 times\n" in printed


def test_a_device_plans_for_its_part_of_a_step(tmp_path):
    """Not for batch_size, where that is more."""
    config = "out_dir, max_steps, tokens_per_step, batch_size, learning_rate = 'x', 10, 65536, 64, 1e-3\n"
    (tmp_path / "stage0.py").write_text(config + "n_layer, n_embd, block_size = 8, 512, 1024\n")

    def planned(count):
        printed = ok("runs/ladder.py", "plan", tmp_path / "stage0.py", "--count", count)
        return int(re.search(r"0% +(\d+)", printed)[1])

    assert planned(1) > 2 * planned(4) and planned(4) > planned(64)


def test_a_control_has_what_its_run_had_but_for_what_is_the_runs_own(tmp_path, monkeypatch):
    """All tokens, the rows of the last stage, no decay before its end, and nothing frozen."""
    ckpt, ids, _ = tiny_rows()
    settings = {"freeze": "[0]", "horizon_tokens": 9, "tokens_per_step": 1000, "batch_size": 3, "floor": 0.1}
    ckpt |= {"settings": settings | {"data_mix": "natural"}, "schedule": {"horizon": 9}}
    ckpt["lineage"] = [{"vocab": "words20"}, {}, {"vocab": "words50"}]
    flops = Config(**ckpt["config"]).flops_per_token()
    save_checkpoint(tmp_path / "ckpt.pt", ckpt | {"ledger": ckpt["ledger"] | {"flops": 7700 * flops}})
    asked = []
    monkeypatch.setitem(control.__globals__, "train", lambda n_processes, *args: asked.append(args))
    how = (str(tmp_path / "ckpt.pt"), "1e-3", [], 1, str(tmp_path / "c"))
    control(*how)
    given = dict(arg.removeprefix("--").split("=", 1) for arg in asked[0])
    assert given["max_steps"] == "8" and given["floor"] == "0.0" and given["batch_size"] == "3"
    assert given["vocab_size"] == str(ckpt["config"]["n_tokens"]) and given["rows"] == "words50"
    assert given["learning_rate"] == "1e-3" and not {"freeze", "horizon_tokens"} & given.keys()
    (tmp_path / "c").mkdir()
    save_checkpoint(tmp_path / "c/ckpt.pt", ckpt | {"settings": {"max_steps": 8}})  # it was stopped
    control(*how)
    assert "--resume=False" in asked[0] and "--resume=True" in asked[1]
    save_checkpoint(tmp_path / "ckpt.pt", ckpt | {"lineage": [{}]})  # it began with some rows, untold which
    with pytest.raises(ValueError, match="has rows for some tokens only: give --rows=STAGE"):
        control(*how)
    control(*how[:2], ["--rows=words20"], 1, str(tmp_path / "d"))
    assert "--rows=words20" in asked[2]


def test_several_processes_have_an_hour_for_their_last_save(monkeypatch):
    hour, asked = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", []
    monkeypatch.setenv(hour, "")  # so that it is taken back
    monkeypatch.delenv(hour)
    monkeypatch.setitem(train.__globals__, "call", lambda *command: asked.extend(command))
    train(2, "config/tiny0.py")
    assert "--nproc_per_node=2" in asked and os.environ[hour] == "3600"
