"""train.py: settings, rates, where a stage starts, and what it says."""

import contextlib
import dataclasses
import json
import math
import os
import pty
import re
import signal
import subprocess
import sys
import termios
import types

import numpy as np
import pytest
import torch
from helpers import HERE, metrics, nats_in_windows, ok, run, same, together, weights

import data as data_module
import train
from checkpoint import load_checkpoint, save_checkpoint
from model import Config, Generation, Llama
from test_grow import build, tiny
from train import Clock, rates, stage_clock, warm_again, warmed

BASE = """--n_layer=2 --n_head=2 --n_embd=32 --head_dim=16 --block_size=64 --tokens_per_step=512
    --batch_size=4 --max_steps=20 --learning_rate=1e-2 --warmup_tokens=2048 --eval_interval=0
    --eval_tokens=2048 --log_interval=1 --compile=False --device=cpu --sample_tokens=0""".split()


@pytest.fixture
def base(data):
    """Return arguments of 20 steps of 512 tokens, with nothing said of a ladder."""
    return [f"--data={data}", *BASE]


def lr(folder, generation=0):
    """Return the rates of a generation, step by step."""
    return [values[generation] for values in metrics(folder, "lr").values()]


def expected(peak, n=20, warm=4, fall=4, low=0.0):
    """Return the rates of n steps: up from low x peak in `warm` steps, flat, down to 0 in the last `fall`."""
    middle = np.arange(n) + 0.5
    up = np.minimum(1, low + (1 - low) * middle / warm)
    return (peak * up * np.minimum(1, (n - middle) / fall)).tolist()


# -----------------------------------------------------------------------------
# rates as a function


OLD = Generation(4, 4, 64, 16, 128, 97, birth=0, learning_rate=0.5, warmup=100)
YOUNG = dataclasses.replace(OLD, birth=2000, warm_start=2000, learning_rate=1.0, warmup=200)
CLOCK = Clock(0, 8000, 10000)


def test_rates_of_a_generation_climb_stay_and_fall():
    at = {50: 0.25, 5000: 0.5, 9000: 0.25, 10000: 0.0, 20000: 0.0}
    assert {t: rates([OLD], t, CLOCK)[0] for t in at} == at


def test_a_generation_keeps_its_peak_and_all_fall_together():
    both = [OLD, YOUNG]
    assert [rates(both, t, CLOCK) for t in (2100, 3000)] == [[0.5, 0.5], [0.5, 1.0]]
    assert rates(both, 9000, CLOCK) == [0.25, 0.5] and rates(both, 10000, CLOCK) == [0.0, 0.0]


def test_what_was_learnt_is_never_faster_than_what_is_new():
    slow = dataclasses.replace(YOUNG, learning_rate=0.1)
    assert rates([OLD, slow], 5000, CLOCK) == [0.1, 0.1]


def test_shared_gives_the_multiple_to_the_youngest_alone():
    shared = dict(policy="shared", new_rate=1.3)
    assert rates([OLD, YOUNG], 2100, CLOCK, **shared) == pytest.approx([1.0, 1.3 / 2])
    third = dataclasses.replace(YOUNG, birth=4000, warm_start=4000)
    assert rates([OLD, YOUNG, third], 5000, CLOCK, **shared) == pytest.approx([1.0, 1.0, 1.3])
    assert rates([OLD], 5000, CLOCK, **shared) == [0.5]


def test_a_condensed_model_has_no_multiple():
    shared = dict(policy="shared", new_rate=1.3)
    assert rates([OLD, YOUNG], 5000, CLOCK, n_fused=2, **shared)[-1] == 1.0
    assert rates([OLD, YOUNG, YOUNG], 5000, CLOCK, n_fused=2, **shared)[-2:] == [1.0, 1.3]


def test_cosine_counts_from_the_end_of_a_warmup_and_ends_at_the_floor():
    cosine = Clock(0, 0, 10000, "cosine", 0.1)
    half = 0.1 + 0.9 * (1 + np.cos(np.pi * 2850 / 7800)) / 2
    assert rates([OLD, YOUNG], 5050, cosine) == pytest.approx([0.5 * 0.55, half])
    assert rates([OLD, YOUNG], 20000, cosine) == pytest.approx([0.05, 0.1])
    assert rates([OLD], 5100, Clock(5000, 0, 10000, "cosine")) == [0.5]  # of a stage with its own clock
    both = rates([OLD, YOUNG], 5050, Clock(0, 0, 10000, "cosine"), policy="shared")
    assert both[1] == pytest.approx(1.3 * both[0])  # all follow the oldest's


def test_rates_are_never_negative_or_above_the_peak():
    rng = np.random.default_rng(0)
    for _ in range(300):
        start, decay_from, horizon = np.sort(rng.integers(0, 5000, 3)).tolist()
        clock = Clock(start, decay_from, horizon, rng.choice(["wsd", "cosine"]), rng.choice([0.0, 0.1]))
        g = dataclasses.replace(OLD, warm_start=int(rng.integers(0, 5000)), warmup=int(rng.integers(0, 3000)))
        for t in rng.integers(0, 9000, 20):
            assert 0 <= rates([g, YOUNG], int(t), clock)[0] <= 0.5


def test_a_stage_has_a_clock_of_its_own_unless_the_ladders_end_is_told():
    assert stage_clock(None, 1000, 2000, 0, "wsd", 0.0, 0.2) == Clock(1000, 1800, 2000)
    assert stage_clock(None, 1000, 2000, 9000, "wsd", 0.0, 0.2) == Clock(0, 7200, 9000)
    # resumed: longer, shorter, and shorter than where the fall would have begun
    was = Clock(1000, 1800, 2000)
    assert stage_clock(was, 1500, 3000, 0, "wsd", 0.0, 0.2) == Clock(1000, 2600, 3000)
    assert stage_clock(was, 1500, 1600, 0, "wsd", 0.0, 0.2) == Clock(1000, 1500, 1600)


def test_rates_climb_back_where_they_would_jump():
    old = [dataclasses.replace(OLD), dataclasses.replace(YOUNG)]
    warm_again(old, last=[0.05, 1.0], due=[0.5, 1.0], at=9950, now=10000, warmup=400)
    assert (old[0].warm_start, old[0].warmup, old[0].warm_share) == (10000, 400, pytest.approx(0.1))
    assert warmed(old[0], 10200) == pytest.approx(0.55) and old[1] == YOUNG
    warming = [dataclasses.replace(OLD, warmup=200), dataclasses.replace(OLD)]
    warm_again(warming, last=[0.1, 0.35], due=[0.25, 0.5], at=100, now=110, warmup=50)
    # the first was warmed up to a half, and then jumped to 2.5 times its rate
    assert [g.warm_share for g in warming] == pytest.approx([0.5 * 0.4, 0.7])


# -----------------------------------------------------------------------------
# from the outside: train, grow, train on


@pytest.mark.parametrize("policy", ["own", "shared"])
def test_train_grow_train_on_without_a_setting(base, tmp_path, policy):
    base = [*base, f"--policy={policy}"]
    printed = ok("train.py", *base, f"--out_dir={tmp_path / 'a'}")
    assert lr(tmp_path / "a") == pytest.approx(expected(1e-2))
    assert "rates fall from 8,192 tokens on, to 0 at 10,240, the end of this stage" in printed
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "width")
    grown = [*base, "--n_embd=64", "--n_head=4", f"--init_from={tmp_path / 'a/grown.pt'}"]
    printed = ok("train.py", *grown, f"--out_dir={tmp_path / 'b'}")
    times = 1.3 if policy == "shared" else 1
    assert lr(tmp_path / "b", 0) == pytest.approx(expected(1e-2, low=0.125))  # where the last step left it
    assert lr(tmp_path / "b", 1) == pytest.approx(expected(times * 1e-2))
    assert "warmed up again, from 12% until 12,288" in printed
    ok("train.py", *grown, f"--out_dir={tmp_path / 'c'}", "--stop_at=7")
    ok("train.py", *grown, f"--out_dir={tmp_path / 'c'}", "--resume")
    assert same(weights(tmp_path / "b"), weights(tmp_path / "c"))


def test_a_grown_run_that_had_not_decayed_goes_on_at_its_rate(base, tmp_path):
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--stop_at=12")
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn")
    grown = f"--init_from={tmp_path / 'a/grown.pt'}"
    ok("train.py", *base, grown, f"--out_dir={tmp_path / 'b'}", "--ffn_dim=0")
    assert lr(tmp_path / "b", 0) == pytest.approx(expected(1e-2, low=1.0))


def test_a_told_ladder_is_one_schedule(base, tmp_path):
    base = [*base, "--horizon_tokens=20480"]
    printed = ok("train.py", *base, f"--out_dir={tmp_path / 'a'}")
    assert "to 0 at 20,480, the ladder's end; this stage ends at 10,240" in printed
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "width")
    untold = [*base[:-1], "--n_embd=64", "--n_head=4"]
    ok("train.py", *untold, f"--init_from={tmp_path / 'a/grown.pt'}", f"--out_dir={tmp_path / 'b'}")
    both = lr(tmp_path / "a") + lr(tmp_path / "b")
    assert both == pytest.approx(expected(1e-2, n=40, fall=8))
    # the stage after the ladder's end is one of its own, and says so
    after = f"--init_from={tmp_path / 'b/ckpt.pt'}"
    printed = ok("train.py", *untold, after, f"--out_dir={tmp_path / 'c'}")
    assert "the ladder ends at 20,480 tokens, before this stage does" in printed
    assert lr(tmp_path / "c")[4:] == pytest.approx(expected(1e-2)[4:])


def test_training_on_without_growing_takes_the_rate_that_is_given(base, tmp_path):
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}")
    on = f"--init_from={tmp_path / 'a/ckpt.pt'}"
    ok("train.py", *base, on, f"--out_dir={tmp_path / 'b'}", "--learning_rate=3e-3")
    assert lr(tmp_path / "b") == pytest.approx(expected(3e-3, low=0.00125 / 0.003))


def test_growing_a_branch_warms_it_up_again(base, tmp_path):
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--horizon_tokens=1e6")
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--branch=decay", "--branch_tokens=4096")
    ok("grow.py", "--in", tmp_path / "a-decay/ckpt.pt", "--double", "ffn")
    ok("train.py", *base, f"--init_from={tmp_path / 'a-decay/grown.pt'}", f"--out_dir={tmp_path / 'b'}")
    assert lr(tmp_path / "b", 0)[:5] == pytest.approx(expected(1e-2, n=999, low=1 / 16)[:5])
    assert lr(tmp_path / "b", 1)[:5] == pytest.approx(expected(1e-2, n=999)[:5])


def test_condensing_keeps_rates_sensible(base, tmp_path):
    base = [*base, "--policy=shared"]
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}")
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn", "--condense", 1)
    ok("train.py", *base, f"--init_from={tmp_path / 'a/grown.pt'}", f"--out_dir={tmp_path / 'b'}")
    # not 1.3 times that: all is one slab, old and new
    assert max(lr(tmp_path / "b", 1)) == pytest.approx(1e-2)


# -----------------------------------------------------------------------------
# a stage whose length changes on the way


@pytest.mark.parametrize(
    "option, steps",
    [
        ("--max_steps=40", 40),
        ("--max_steps=16", 16),
        ("--tokens_per_step=1024", 20),
        ("--tokens_per_step=256", 20),
    ],
)
def test_a_resumed_stage_of_another_length_ends_at_its_end(base, tmp_path, option, steps):
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--stop_at=12")
    printed = ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--resume", option)
    got = lr(tmp_path / "a")
    assert len(got) == steps and all(0 < rate <= 1e-2 for rate in got)
    assert got[-1] < 0.3e-2 and max(np.abs(np.diff(got[4:]))) < 0.4e-2  # it decays, and never jumps
    assert "rates fall from" in printed and "the end of this stage" in printed


def test_a_finished_stage_that_is_made_longer_climbs_back(base, tmp_path):
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}")
    printed = ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--resume", "--max_steps=40")
    got = lr(tmp_path / "a")[20:]
    assert got[:12] == pytest.approx(expected(1e-2, n=99, low=0.125)[:12]) and got[-1] < 0.2e-2
    assert "warmed up again, from 12%" in printed


def test_a_resumed_branch_keeps_its_length(base, tmp_path):
    a = f"--out_dir={tmp_path / 'a'}"
    ok("train.py", *base, a, "--stop_at=10")
    branch = [*base, a, "--branch=decay"]
    ok("train.py", *branch, "--branch_tokens=2048", "--stop_at=2")
    error, _ = run("train.py", *branch, "--resume", "--branch_tokens=4096")
    assert error == "train.py: branch_tokens = 4096, but this branch began with 2048 and keeps it"
    printed = ok("train.py", *branch, "--resume")
    assert "resumed at step 2\n" in printed and "step 4/4" in printed


@pytest.mark.parametrize("options, share, tokens", [
    (["--decay_share=0"], "100%", "0"), (["--max_steps=2", "--warmup_tokens=0"], "100%", "205"),
])  # fmt: skip
def test_a_fall_that_is_shorter_than_two_steps_is_said(base, tmp_path, options, share, tokens):
    printed = ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", *options)
    fall = f"the last step is at {share} of the peaks: the rates fall over {tokens} tokens"
    assert f"note: {fall}, and a step has 512; see decay_share" in printed
    assert "the last step is at" not in ok("train.py", *base, f"--out_dir={tmp_path / 'b'}")


def test_a_branch_ends_at_zero_whatever_a_step_is(base, tmp_path):
    out = f"--out_dir={tmp_path / 'a'}"
    ok("train.py", *base, out, "--horizon_tokens=1e6")
    branch = ["--branch=decay", "--branch_tokens=10240"]
    ok("train.py", *base, out, *branch, "--stop_at=10")
    for name, tokens in (("b", 256), ("c", 1024), ("d", 512)):
        (tmp_path / f"{name}-decay").mkdir()
        save_checkpoint(f"{tmp_path}/{name}-decay/ckpt.pt", load_checkpoint(tmp_path / "a-decay/ckpt.pt"))
        size = f"--tokens_per_step={tokens}"
        ok("train.py", *base, f"--out_dir={tmp_path / name}", *branch, "--resume", size)
        got = lr(tmp_path / f"{name}-decay")
        assert len(got) == 5120 // tokens and all(0 < rate < 0.5e-2 for rate in got) and got[-1] < 0.06e-2
        assert np.diff(got) == pytest.approx([-1e-2 * tokens / 10240] * (len(got) - 1))


def test_what_has_ended_has_no_branch(base, tmp_path):
    out = f"--out_dir={tmp_path / 'a'}"
    ok("train.py", *base, out)
    error, _ = run("train.py", *base, out, "--branch=decay")
    assert "a/ckpt.pt: its rates have ended, so that nothing is left to decay: branch off earlier" in error
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn")
    grown = f"--init_from={tmp_path / 'a/grown.pt'}"
    error, _ = run("train.py", *base, f"--out_dir={tmp_path / 'b'}", "--branch=decay", grown)
    assert "grown.pt: part of it was never trained: train it, then branch off" in error
    assert not (tmp_path / "b-decay/ckpt.pt").exists()


def test_what_was_cloned_has_no_branch_until_it_was_trained(base, tmp_path):
    """Its generation is the old one, but its peak is forgotten."""
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--stop_at=4")
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "width", "--init", "clone")
    cfg = load_checkpoint(tmp_path / "a/grown.pt")["config"]
    grown = [f"--init_from={tmp_path / 'a/grown.pt'}", f"--out_dir={tmp_path / 'b'}", "--branch=decay"]
    grown += [f"--{name}={cfg[name]}" for name in ("n_head", "n_embd")]
    error, _ = run("train.py", *base, *grown)
    assert "grown.pt: part of it was never trained: train it, then branch off" in error


def test_a_branch_of_a_grown_stage_is_of_its_run_not_of_its_start(base, tmp_path):
    ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--horizon_tokens=1e6")
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn")
    stage = [*base, f"--init_from={tmp_path / 'a/grown.pt'}", f"--out_dir={tmp_path / 'b'}"]
    ok("train.py", *stage, "--horizon_tokens=1e6", "--stop_at=4")
    ok("train.py", *base, stage[-1], "--resume", "--horizon_tokens=1e6", "--stop_at=6")  # by its folder alone
    branch = ["--branch=decay", "--branch_tokens=512"]
    ok("train.py", *stage, *branch)
    assert load_checkpoint(tmp_path / "b-decay/ckpt.pt")["ledger"]["tokens"] == (20 + 6 + 1) * 512
    # init_from names another start than the run's
    (tmp_path / "b-decay").rename(tmp_path / "c-decay")
    other = [f"--init_from={tmp_path / 'a/ckpt.pt'}", f"--out_dir={tmp_path / 'b'}"]
    ok("train.py", *base, *branch, *other)
    assert load_checkpoint(tmp_path / "b-decay/ckpt.pt")["ledger"]["tokens"] == (20 + 1) * 512


@pytest.mark.parametrize("steps", [20, 60])
def test_the_default_warmup_ends_and_is_followed_without_a_jump(base, tmp_path, steps):
    ok("train.py", *base, "--warmup_tokens=0", f"--max_steps={steps}", f"--out_dir={tmp_path / 'a'}")
    assert lr(tmp_path / "a") == pytest.approx(expected(1e-2, steps, warm=steps / 10, fall=steps / 5))


def test_the_default_warmup_takes_100_steps_at_most(base, tmp_path):
    long = ["--warmup_tokens=0", "--max_steps=5000", "--stop_at=1"]
    ok("train.py", *base, *long, f"--out_dir={tmp_path / 'a'}")
    assert lr(tmp_path / "a") == pytest.approx([1e-2 * 0.5 / 100])


def test_a_branch_reads_a_tenth_of_the_trunks_tokens_by_default(stage, tmp_path):
    ok("train.py", *stage, "--max_steps=20")
    assert "step 2/2 100%" in ok("train.py", *stage, "--branch=decay")


def test_a_warmup_that_is_too_long_is_said_and_never_jumps(base, tmp_path):
    printed = ok("train.py", *base, "--warmup_tokens=9216", f"--out_dir={tmp_path / 'a'}")
    assert "generation 0 never reaches its peak" in printed
    got = np.array(lr(tmp_path / "a"))
    assert np.abs(np.diff(got)).max() < 0.25e-2 and got[-1] < 0.2e-2


def test_a_horizon_before_the_end_is_refused_or_said(base, tmp_path):
    out = f"--out_dir={tmp_path / 'a'}"
    error, _ = run("train.py", *base, out, "--horizon_tokens=5120")
    assert "horizon_tokens = 5120: the rates end there, and the stage at 10240" in error
    printed = ok("train.py", *base, out, "--horizon_tokens=5120", "--floor=0.1")
    assert "from 5,120 tokens on, all rates are 10% of their peaks, the floor" in printed
    assert lr(tmp_path / "a")[10:] == pytest.approx([1e-3] * 10)


# -----------------------------------------------------------------------------
# settings


BAD_NUMBERS = {  # (value, what is expected): the settings that it is given to
    ("-1", "0 or more"): """grad_clip eval_interval save_interval log_interval weight_decay warmup_tokens
        horizon_tokens branch_tokens stop_at seed sample_tokens vocab_size n_kv_head""",
    ("-0.01", "above 0"): "learning_rate adam_eps new_rate norm_eps",
    ("0", "above 0"): """learning_rate max_steps batch_size tokens_per_step eval_tokens block_size n_layer
        rope_theta""",
    ("1.5", "0 or more, and at most 1"): "review decay_share floor",
    ("1.0", "0 or more, and below 1"): "beta1 beta2",
    ("1e999", "above 0"): "learning_rate",
    ("gpu", "one of ('', 'cuda', 'mps', 'cpu')"): "device",
}


@pytest.mark.parametrize(
    "setting, expects",
    [
        (f"{name}={value}", expects)
        for (value, expects), names in BAD_NUMBERS.items()
        for name in names.split()
    ],
)
def test_numbers_of_the_wrong_sign_are_refused(setting, expects):
    message = re.escape(f"--{setting.split('=')[0]}: ") + ".*expected " + re.escape(expects)
    with pytest.raises(ValueError, match=message):
        train.configure([f"--{setting}"])


def test_intervals_of_zero_mean_at_the_end_only(base, tmp_path):
    zero = ["--log_interval=0", "--eval_interval=0", "--save_interval=0", "--max_steps=3"]
    printed = ok("train.py", *base, *zero, f"--out_dir={tmp_path / 'a'}")
    assert printed.count("| loss") == 1 and "step 3/3" in printed
    assert list(metrics(tmp_path / "a", "bpb")) == [3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA")
def test_a_device_that_is_not_there_is_named(base, tmp_path):
    error, _ = run("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--device=cuda")
    assert error == "train.py: device = cuda: torch finds none here, only cpu"


def test_memory_is_told_before_the_training(base, tmp_path):
    printed = ok("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--n_embd=256", "--max_steps=1")
    n = int(re.search(r"([\d,]+) parameters, ", printed)[1].replace(",", ""))
    assert n > 1e6 and f"memory: {16 * n / 1e9:.2f} GB for weights, gradients and Adam's moments" in printed


def test_the_first_step_is_adamws_with_the_settings_given(stage, tmp_path):
    how = ["--weight_decay=0.5", "--beta1=0.5", "--beta2=0.75", "--adam_eps=1e-3", "--grad_clip=0.5"]
    ok("train.py", *stage, *how, "--seed=7", "--stop_at=1")
    ckpt, (rate,) = load_checkpoint(tmp_path / "a/ckpt.pt"), metrics(tmp_path / "a", "lr")[1]
    model = Llama(Config(**ckpt["config"]))
    model.init_weights(7)
    moved = clipped = 0.0
    for name, w in model.state_dict().items():
        state, decay = ckpt["optimizer"][name], 0.5 if w.ndim > 1 else 0.0
        gradient = state["exp_avg"] / (1 - 0.5)
        assert torch.allclose(state["exp_avg_sq"], (1 - 0.75) * gradient**2)
        after = w - rate * decay * w - rate * gradient / (gradient.abs() + 1e-3)
        assert torch.allclose(ckpt["model"][name], after, atol=1e-6), name
        moved += (after - w).square().sum().item()
        clipped += gradient.square().sum().item()
    assert metrics(tmp_path / "a", "norm")[1] > 0.5 and math.sqrt(clipped) == pytest.approx(0.5, rel=1e-3)
    update = math.sqrt(moved / model.count_params()["total"])
    assert metrics(tmp_path / "a", "update_rms")[1] == pytest.approx([update], rel=1e-3)


def test_the_seed_orders_the_text_and_what_is_not_read_keeps_its_place(stage, tmp_path):
    ok("train.py", *stage, "--stop_at=1")
    ckpt = load_checkpoint(tmp_path / "a/ckpt.pt")
    ckpt["ledger"]["read"]["another text"] = (5, 64)
    save_checkpoint(tmp_path / "b.pt", ckpt)
    on = [*stage, f"--init_from={tmp_path / 'b.pt'}", "--stop_at=1"]
    for seed in "12":
        ok("train.py", *on, f"--seed={seed}", f"--out_dir={tmp_path / seed}")
    assert metrics(tmp_path / "1", "loss") != metrics(tmp_path / "2", "loss")
    assert load_checkpoint(tmp_path / "1/ckpt.pt")["ledger"]["read"]["another text"] == (5, 64)


def test_windows_of_an_evaluation_count_by_their_tokens():
    model, ids = build(tiny()), np.arange(61) % 97  # 60 are predicted, in windows of 24, 24 and 12
    how = (2, (0, 1), "cpu", contextlib.nullcontext(), lambda tokens, _: tokens.size)
    loss, _ = train.evaluate(model, ids, *how)
    assert loss == pytest.approx(nats_in_windows(model, ids, 24) / 60, abs=1e-9)


def test_resume_is_exact_whatever_the_evaluation_interval(stage, tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    ok("train.py", *stage)
    ok("train.py", *stage, f"--out_dir={b}", "--stop_at=6", "--eval_interval=2", "--save_interval=2")
    assert os.path.isfile(b / "ckpt.prev.pt") and load_checkpoint(b / "ckpt.prev.pt")["step"] == 4
    ok("train.py", *stage, f"--out_dir={b}", "--resume", "--eval_interval=0")
    assert same(weights(a), weights(b)) and metrics(a, "loss") == metrics(b, "loss")
    seconds = list(metrics(b, "seconds").values())
    assert seconds == sorted(seconds)
    os.remove(b / "ckpt.pt")  # as after a kill between the two renames of a save
    ok("train.py", *stage, f"--out_dir={b}", "--resume")
    assert same(weights(a), weights(b)) and list(metrics(b, "loss")) == list(range(1, 13))


def test_bfloat16_trains_as_float32(grown_run, tmp_path):
    """What a GPU does by default, on a grown model: near float32 without being it, exact when resumed, and
    sharded the same."""
    stage, one = grown_run
    stage = [*stage, "--dtype=bfloat16"]
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}")
    a, b = metrics(one, "loss"), metrics(tmp_path / "b", "loss")
    assert a.keys() == b.keys() and 1e-5 < max(abs(a[k] - b[k]) for k in a) < 0.02
    assert all(p.dtype == torch.float32 for p in weights(tmp_path / "b").values())
    ok("train.py", *stage, f"--out_dir={tmp_path / 'c'}", "--stop_at=8")
    ok("train.py", *stage, f"--out_dir={tmp_path / 'c'}", "--resume")
    assert same(weights(tmp_path / "b"), weights(tmp_path / "c"))
    together(2, [*stage, f"--out_dir={tmp_path / 'd'}", "--shard"])
    d = metrics(tmp_path / "d", "loss")
    assert b.keys() == d.keys() and max(abs(b[k] - d[k]) for k in b) < 0.02


def test_an_evaluation_writes_a_sample_and_changes_no_number(stage, data, tmp_path, monkeypatch):
    def backend(*args):
        raise AssertionError("compiled")

    generate, compiled = Llama.generate, torch.compile(lambda x: x + 1, backend=backend)

    def also_compiled(*args, **options):
        compiled(torch.ones(1))
        return generate(*args, **options)

    monkeypatch.setattr(Llama, "generate", also_compiled)
    written = [*stage, "--sample_tokens=64"]
    printed, samples = ok("train.py", *written), metrics(tmp_path / "a", "sample")
    tok = data_module.load_tokenizer(f"{data}/tokenizer.model")
    start = tok.decode(np.fromfile(f"{data}/val.bin", tok.dtype)[:16])
    assert list(samples) == [0, 5, 10, 12] and len(set(samples.values())) == 4
    for text in samples.values():
        assert text.startswith(start) and len(text) > len(start) + 16
        assert all(f"    {line}\n" in printed for line in text.splitlines() if line.strip())
    b, c = (f"--out_dir={tmp_path / x}" for x in "bc")
    ok("train.py", *stage, b)
    assert not metrics(tmp_path / "b", "sample")
    assert metrics(tmp_path / "a", "loss") == metrics(tmp_path / "b", "loss")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    # rows that are no tokens; a full cache
    ok("train.py", *written, c, "--vocab_size=1000", "--block_size=16", "--max_steps=1")
    assert list(metrics(tmp_path / "c", "sample")) == [0, 1]


def terminal(stage, columns=50, until=None):
    """Run train.py on a terminal, with SIGINT once it shows `until`. Return (exit status, the lines that the
    terminal shows, the texts that its last line had on the way)."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    env = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    command = [sys.executable, os.path.join(HERE, "train.py"), *map(str, stage)]
    raw = b""
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as p:
        os.close(theirs)
        with contextlib.suppress(OSError):  # Linux: the other end is closed
            while part := os.read(ours, 1 << 16):
                raw += part
                if until and until in raw:
                    p.send_signal(signal.SIGINT)
                    until = None
    os.close(ours)
    lines = [line.split("\r\033[K") for line in raw.decode().replace("\r\n", "\n").split("\n")]
    shown = [text for line in lines for text in line if text.startswith("step ")]
    return p.returncode, [line[-1] for line in lines], shown


def test_progress_is_one_line_of_a_terminal(stage, tmp_path):
    code, lines, shown = terminal(stage)
    progress = [text for text in shown if "val loss" not in text]
    assert {text.split(" | ")[0].split()[1] for text in progress} == {f"{i}/12" for i in range(1, 13)}
    assert max(map(len, progress)) == 49 and progress[-1].startswith("step 12/12 100% | loss ")
    i = lines.index(progress[-1])  # all that is left of them, after the evaluations and before the summary
    assert code == 0 and [text for text in lines if " | " in text] == [lines[i]]
    assert lines[i + 1] == "step: 12"
    evaluations = [text.split(":")[0] for text in lines[:i] if "val loss" in text]
    assert evaluations == [f"step {k}" for k in (0, 5, 10, 12)]
    assert lines[-2].startswith("checkpoint: ") and lines[-1] == ""
    assert not re.search(r"[\r\033]", ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}"))


def test_a_stop_and_an_error_are_whole_lines_of_a_terminal(stage, tmp_path):
    code, lines, _ = terminal([*stage, "--max_steps=100000", "--horizon_tokens=0"], until=b"step 7/")
    (stopped,) = (i for i, line in enumerate(lines) if line.startswith("stopped at step "))
    assert code == 0 and lines[stopped].endswith("go on with --resume")
    assert lines[stopped + 1].startswith("step ")
    code, lines, _ = terminal([*stage, f"--out_dir={tmp_path / 'b'}", "--learning_rate=1e38"])
    assert code == 1 and lines[-3].startswith("step ")
    assert re.match("train.py: step 1: loss .*nothing saved", lines[-2])


@pytest.mark.parametrize("ramp", [0, 4000])
def test_resume_of_a_grown_stage_is_exact(stage, tmp_path, ramp):
    a, b, c = (tmp_path / name for name in "abc")
    ok("train.py", *stage)
    ok("grow.py", "--in", a / "ckpt.pt", "--width", 48, "--depth", 3, "--ramp", ramp)
    stage += [f"--init_from={a / 'grown.pt'}", "--policy=shared"]
    stage += ["--n_embd=48", "--n_head=3", "--n_layer=3"]
    printed = ok("train.py", *stage, f"--out_dir={b}")
    assert ("what it writes comes in until 10,144" in printed) == bool(ramp)
    ok("train.py", *stage, f"--out_dir={c}", "--stop_at=5", "--eval_interval=2")
    assert load_checkpoint(c / "ckpt.pt")["config"]["generations"][1]["ramped"] == (
        2560 / ramp if ramp else 1
    )
    ok("train.py", *stage, f"--out_dir={c}", "--resume")
    assert same(weights(b), weights(c)) and metrics(b, "bpb")[12] == metrics(c, "bpb")[12]
    assert metrics(b, "bpb")[0] == pytest.approx(metrics(a, "bpb")[12], abs=1e-5)
    assert metrics(b, "grad_norm")[1][1] > 0  # a ramp begins with the first step
    early = ok("train.py", *stage, f"--out_dir={tmp_path / 'd'}", "--max_steps=1")
    note = "note: generation 1 has not come in yet at the end, 6,656 tokens"
    assert (note in early) == bool(ramp) and note not in printed
    young = load_checkpoint(b / "ckpt.pt")["config"]["generations"][1]
    assert (young["ramp"], young["ramped"]) == (0, 1)


def test_branch_decay_leaves_the_trunk(stage, tmp_path):
    ok("train.py", *stage)
    before = (tmp_path / "a/ckpt.pt").read_bytes()
    stage += ["--branch_tokens=4096"]
    ok("train.py", *stage, "--branch", "decay")
    assert (tmp_path / "a/ckpt.pt").read_bytes() == before
    lr = [x[0] for x in metrics(tmp_path / "a-decay", "lr").values()]
    assert lr == pytest.approx([1e-2 * (7.5 - i) / 8 for i in range(8)])
    b = [*stage, "--branch=decay", f"--out_dir={tmp_path / 'b'}"]
    ok("train.py", *b, f"--init_from={tmp_path / 'a/ckpt.pt'}", "--stop_at=3")
    ok("train.py", *b, "--resume")
    assert same(weights(tmp_path / "a-decay"), weights(tmp_path / "b-decay"))


def test_frozen_generations_stay(stage, tmp_path):
    ok("train.py", *stage)
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn")
    stage += [f"--init_from={tmp_path / 'a/grown.pt'}", "--ffn_dim=256"]
    ok("train.py", *stage, "--freeze=[0]", f"--out_dir={tmp_path / 'b'}")
    paths = ("a/ckpt.pt", "a/grown.pt", "b/ckpt.pt")
    old, grown, new = (load_checkpoint(tmp_path / path)["model"] for path in paths)
    assert all(torch.equal(new[name], w) for name, w in old.items())
    assert all(not torch.equal(new[name], grown[name]) for name in new.keys() - old.keys())
    assert all(norms[0] == 0 < norms[1] for norms in metrics(tmp_path / "b", "grad_norm").values())


def test_a_loss_that_is_not_finite_stops_the_run(stage, tmp_path):
    ok("train.py", *stage, "--stop_at=2")
    before = (tmp_path / "a/ckpt.pt").read_bytes()
    ckpt = load_checkpoint(tmp_path / "a/ckpt.pt")
    ckpt["model"] = {k: v * float("inf") if k == "norm.gain.0" else v for k, v in ckpt["model"].items()}
    save_checkpoint(tmp_path / "bad.pt", ckpt)
    error, _ = run("train.py", *stage, f"--init_from={tmp_path / 'bad.pt'}", f"--out_dir={tmp_path / 'b'}")
    assert "step 0: loss nan" in error and "rates [" in error
    assert f"last good checkpoint: {tmp_path / 'bad.pt'}" in error
    assert (tmp_path / "a/ckpt.pt").read_bytes() == before and not os.path.exists(tmp_path / "b/ckpt.pt")

    # weights that were saved before their gradient was known are not called good
    save_checkpoint(tmp_path / "a/ckpt.pt", ckpt, keep=f"{tmp_path / 'a/ckpt.prev.pt'}")
    error, _ = run("train.py", *stage, "--resume")
    assert f"last good checkpoint: {tmp_path / 'a/ckpt.prev.pt'}" in error


def test_bad_input_to_train(stage, tmp_path, data):
    ok("train.py", *stage, "--stop_at=1")
    (tmp_path / "syntax.py").write_text("n_layer = = 2")
    short = (tmp_path / "a/ckpt.pt").read_bytes()[:5000]
    (tmp_path / "short.pt").write_bytes(short)
    torch.save({"model": {}}, tmp_path / "other.pt")
    ckpt = load_checkpoint(tmp_path / "a/ckpt.pt")
    torch.save(ckpt | {"config": ckpt["config"] | {"tied": True}}, tmp_path / "tied.pt")
    b = f"--out_dir={tmp_path / 'b'}"
    kept = "learning_rate = 0.001, but this stage began with 0.01 and keeps it"
    multiple = "tokens_per_step = 1000 is no multiple of block_size 64 x 1 processes"
    for args, message in [
        (["--n_layers=3"], "no setting is called n_layers; did you mean n_layer?"),
        (["--PAGE=64"], "no setting is called PAGE"),
        (["--n_layer=2.5"], "n_layer = 2.5 is float, expected int"),
        (["--compile=0"], "compile = 0 is int, expected bool"),
        (["--init_from"], "--init_from: its value is missing"),
        ([b, f"--init_from={tmp_path / 'tied.pt'}", "--tied=False"], "tied = False, but"),
        (["--policy=mine"], "policy = 'mine', expected one of ('own', 'shared')"),
        (["--dtype=bf16"], "dtype = 'bf16', expected one of ('', 'float32', 'bfloat16')"),
        ([tmp_path / "none.py"], "none.py: no such config file"),
        ([tmp_path / "syntax.py"], "syntax.py: SyntaxError"),
        ([b, "--data=nowhere"], "nowhere/meta.json: not found; prepare.py makes it"),
        ([], "ckpt.pt exists: go on with --resume, or give another out_dir"),
        ([b, "--resume"], "no such checkpoint"),
        ([b, f"--init_from={tmp_path / 'short.pt'}"], "short.pt: truncated, or not a checkpoint"),
        ([b, f"--init_from={tmp_path / 'other.pt'}"], "other.pt: not a Babel checkpoint"),
        ([b, f"--init_from={tmp_path / 'a/ckpt.pt'}", "--n_embd=64"], "n_embd = 64, but"),
        (["--resume", "--learning_rate=1e-3"], kept),
        ([b, "--tokens_per_step=1000"], multiple),
        ([b, "--n_head=3", "--n_kv_head=2"], "n_head = 3 is not a multiple of n_kv_head = 2"),
        ([b, "--head_dim=15"], "head_dim = 15 is odd"),
        ([b, "--n_embd=0"], "n_embd = 0, expected above 0"),
        ([b, "--vocab_size=100"], "vocab_size = 100, but the tokenizer"),
        ([b, "--block_size=8192"], "block_size = 8192: at most 4096"),
        ([b, "--freeze=[1]"], "freeze = [1]: no generation 1"),
        ([b, "--freeze=[0]"], "nothing is left to train"),
    ]:
        error, _ = run("train.py", *stage, *args)
        assert message in error, (args, error)
    assert not os.path.exists(tmp_path / "b/ckpt.pt")


def test_wandb_offline_or_missing_goes_on(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "nonsense")
    assert "going on without it" in ok("train.py", *stage, "--wandb=True", "--max_steps=1")


def test_wandb_gets_what_metrics_jsonl_gets(stage, tmp_path, monkeypatch):
    logged = {}

    def log(values, step):
        logged.setdefault(step, {}).update(values)

    run = types.SimpleNamespace(log=log, finish=lambda: None)
    wandb = types.SimpleNamespace(init=lambda **settings: run, Settings=dict)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    ok("train.py", *stage, "--wandb=True", "--max_steps=3", "--sample_tokens=64")
    for line in map(json.loads, open(tmp_path / "a/metrics.jsonl")):
        got = logged[line["step"]]
        for key, value in line.items():
            if isinstance(value, list):
                assert got[f"{key}/0"] == value[0]
            else:
                assert got[key] == value
    assert {"lr/0", "grad_norm/0", "update_rms/0", "loss", "norm", "bpb", "sample"} <= logged[3].keys()


def test_a_stage_that_is_made_shorter_while_its_rates_fall_does_not_jump():
    was = Clock(0, 8000, 10000)
    for end, share in ((9000, 0.2), (10000, 0.5), (9000, 0.9)):
        clock = stage_clock(was, 8500, end, 0, "wsd", 0.0, share)
        assert train.fall(clock, 0, 8500) == pytest.approx(0.75, abs=1e-3)
        assert train.fall(clock, 0, end) == 0
    floored = Clock(0, 8000, 10000, "wsd", 0.1)
    clock = stage_clock(floored, 8500, 9000, 0, "wsd", 0.1, 0.2)
    assert train.fall(clock, 0, 8500) == pytest.approx(train.fall(floored, 0, 8500), abs=1e-3)
    assert train.fall(clock, 0, 9000) == pytest.approx(0.1)
    assert stage_clock(was, 8500, 20000, 0, "wsd", 0.0, 0.2) == Clock(0, 16000, 20000)


def test_a_policy_that_changes_between_stages_does_not_jump(base, tmp_path):
    told = [*base[:1], "--horizon_tokens=61440", *(x for x in base[1:] if "learning_rate" not in x)]
    ok("train.py", *told, f"--out_dir={tmp_path / 'a'}", "--learning_rate=5e-4")
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn")
    grown = f"--init_from={tmp_path / 'a/grown.pt'}"
    ok("train.py", *told, grown, f"--out_dir={tmp_path / 'b'}", "--policy=shared")
    assert lr(tmp_path / "b", 0)[:5] == pytest.approx(expected(1e-3, n=999, low=0.5)[:5])


def test_lists_and_dicts_that_cannot_be_are_one_line():
    with pytest.raises(ValueError, match=re.escape("freeze = [[0]], expected whole numbers")):
        train.configure(["--freeze=[[0]]"])
    for text in ("[1]", "{[1]: 2}"):  # shares_of says of both that there is no such stage
        assert train.configure([f"--data_mix={text}"]) == {"data_mix": text}


def test_more_processes_than_gpus_are_one_line(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(ValueError, match="a process needs a GPU of its own, and torch finds 1"):
        train.find_device("")


def test_one_token_is_evaluated_and_one_step_warmed_up(base, tmp_path):
    least = ["--eval_tokens=1", "--block_size=1", "--tokens_per_step=8", "--warmup_tokens=0", "--max_steps=1"]
    ok("train.py", *base, *least, "--sample_tokens=3", f"--out_dir={tmp_path / 'a'}")
    ok("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "ffn")
    ok("train.py", *base, *least, f"--init_from={tmp_path / 'a/grown.pt'}", f"--out_dir={tmp_path / 'b'}")
    assert lr(tmp_path / "a")[0] > 0 and lr(tmp_path / "b", 1)[0] > 0


def test_a_branch_that_is_none(base, tmp_path):
    ok("train.py", *base, f"--out_dir={tmp_path / 'a-decay'}", "--max_steps=1")
    error, _ = run("train.py", *base, f"--out_dir={tmp_path / 'a'}", "--branch=decay", "--resume")
    assert "a-decay/ckpt.pt is no branch" in error


def test_a_branch_goes_on_as_a_branch_alone(base, tmp_path):
    a = f"--out_dir={tmp_path / 'a'}"
    ok("train.py", *base, a, "--stop_at=4")
    ok("train.py", *base, a, "--branch=decay", "--branch_tokens=1024")
    error, _ = run("train.py", *base, f"{a}-decay", "--resume")
    assert "a-decay/ckpt.pt is a branch: give --branch=decay, and the out_dir of its trunk" in error
