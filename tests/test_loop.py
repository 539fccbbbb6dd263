"""The loop: all scripts, one after another."""

import json
import os
import random
import re
import runpy

import pytest
import torch
from helpers import HERE, ODD, STRANGE, metrics, ok, run, same, train_tokenizer, weights, write_docs

import data as data_module
from checkpoint import build_model, load_checkpoint
from model import Config, skeleton


def test_the_whole_loop(stage, tmp_path):
    a, b, c = (tmp_path / x for x in "abc")

    # from scratch, and wider
    printed = ok("train.py", *stage)
    assert re.search(r"^bpb: \d\.\d{4}$", printed, re.M)
    assert metrics(a, "loss")[12] < metrics(a, "loss")[1] - 1
    printed = ok("grow.py", "--in", a / "ckpt.pt", "--double", "width", "--explain")
    assert float(re.search(r"max \|dlogit\| (\S+),", printed)[1]) < 1e-5
    alive = re.findall(r" (\d+)% alive", printed)
    slabs = skeleton(Config(**load_checkpoint(a / "grown.pt")["config"])).state_dict()
    assert len(alive) == len(slabs) - len(load_checkpoint(a / "ckpt.pt")["model"])
    assert set(alive) == {"100"}

    # on, at a lower rate, and in longer windows, in which bits per byte are near, not equal
    wide = ["--n_embd=64", "--n_head=4"]
    other = ["--learning_rate=5e-3", "--block_size=128"]
    ok("train.py", *stage, "--init_from", a / "grown.pt", "--out_dir", b, *wide, *other)
    assert metrics(b, "bpb")[0] == pytest.approx(metrics(a, "bpb")[12], rel=0.05)
    assert metrics(b, "tokens")[12] == 2 * 12 * 512
    first, second = load_checkpoint(a / "ckpt.pt")["config"], load_checkpoint(b / "ckpt.pt")["config"]
    flops = 12 * 512 * (Config(**first).flops_per_token() + Config(**second).flops_per_token())
    assert metrics(b, "flops")[12] == flops
    assert [g["learning_rate"] for g in second["generations"]] == [1e-2, 5e-3]
    assert second["generations"][1]["birth"] == 6144
    moved = metrics(b, "update_rms")
    assert moved[1][1] < moved[12][1] and moved[12][0] > 0

    # deeper, in one generation, and on
    g = tmp_path / "g.pt"
    ok("grow.py", "--in", b / "ckpt.pt", "--depth", 3, "--init", "copy", "--condense", 1, "--out", g)
    ok("train.py", *stage, f"--init_from={g}", f"--out_dir={c}", *wide, "--n_layer=3")
    lineage = load_checkpoint(c / "ckpt.pt")["lineage"]
    assert [step["tokens"] for step in lineage] == [6144, 12288]
    assert [step["parent_sha256"] for step in lineage] == [
        data_module.file_sha256(x / "ckpt.pt") for x in (a, b)
    ]

    # what came out
    how = ["--n", 2, "--device", "cpu"]
    sample = ["sample.py", "--in", c / "ckpt.pt", "--prompt", "Ann sees", "--tokens", 8, *how]
    text = ok(*sample)
    assert text.startswith("Ann sees") and text == ok(*sample)
    table = ok("sample.py", "--in", b / "ckpt.pt", g, "--check", "--tokens", 30, *how)
    assert float(re.search(r"max \|dlogit\| (\S+)", table)[1]) < 1e-5 and "bits per byte" in table


def test_the_curriculum_loop(tmp_path):
    """Text comes in stages. A model has rows for the first one's tokens, and gets the rest as it grows. All
    are evaluated on any text."""
    easy, hard = ("the cat sat on a mat . the dog ran home .".split(), [f"w{i}x" for i in range(300)])
    rng, docs = random.Random(0), []
    for i in range(160):
        docs.append(f"{i} " + " ".join(rng.choices(easy + hard * (i % 2), k=300)))
    data, a, b = tmp_path / "d", tmp_path / "a", tmp_path / "b"
    train_tokenizer(tmp_path / "t.model", docs, 900)
    text = write_docs(tmp_path / "in.txt", docs)
    options = ["--tokenizer", tmp_path / "t.model", "--val", 0.2, "--workers", 1]
    options += ["--words", "12,all", "--known", 0.9, "--rows", 0.99]
    ok("prepare.py", "--input", text, "--out", data, *options)
    meta = json.loads((data / "meta.json").read_text())
    assert [s["name"] for s in meta["stages"]] == ["words12", "all"]

    # a few rows, on easy text
    stage = [f"--data={data}", f"--vocab_size={meta['vocab_size']}"]  # the tokenizer's, as in the ladder
    stage += "--n_layer=2 --n_head=2 --n_embd=32 --head_dim=16 --block_size=64 --tokens_per_step=512".split()
    stage += "--max_steps=8 --eval_interval=0 --log_interval=1 --compile=False --device=cpu".split()
    stage += ["--learning_rate=1e-2"]
    printed = ok("train.py", *stage, f"--out_dir={a}", "--rows=words12", "--data_mix=words12")
    shares = (rf"spelled in byte.*?(\S+)% of {name}\b" for name in ("words12", "val"))
    words12, val = (float(re.search(share, printed)[1]) for share in shares)
    assert words12 < 1 < val < 100
    small = load_checkpoint(a / "ckpt.pt")["config"]
    assert small["vocab_size"] == meta["stages"][0]["rows"] < small["n_tokens"] == meta["vocab_size"]
    assert metrics(a, "bpb_words12")[8] < metrics(a, "bpb_all")[8]

    # all rows, and on
    stacked = ["--vocab", "all", "--double", "depth", "--init", "stack", "--dry_run"]
    assert "plain copies of layers" in ok("grow.py", "--in", a / "ckpt.pt", *stacked)
    printed = ok("grow.py", "--in", a / "ckpt.pt", "--vocab", "all", "--double", "ffn", "--explain")
    assert float(re.search(r"max \|dlogit\| (\S+),", printed)[1]) < 1e-5
    assert "100% alive" in printed and " 0% alive" not in printed  # of new rows those that are read count
    bound, rise = map(float, re.search(r"rise by (\S+) at most, and rises by (\S+)", printed).groups())
    assert 0 < rise <= bound
    mix = "--data_mix={'words12': 0.2, 'all': 0.8}"
    ok("train.py", *stage, f"--out_dir={b}", f"--init_from={a / 'grown.pt'}", mix, "--stop_at=3")
    printed = ok("train.py", *stage, f"--out_dir={b}", "--resume", mix, "--eval_stages=False")
    assert re.search(r"bits per byte$", printed, re.M)  # and no stage's
    ok("grow.py", "--in", a / "ckpt.pt", "--vocab", "all", "--depth", 2, "--dry_run")  # it has 2 layers
    error, _ = run("grow.py", "--in", b / "ckpt.pt", "--vocab", "words12")
    assert f"rows {meta['vocab_size']} -> {meta['stages'][0]['rows']}: a model only grows" in error
    c = tmp_path / "c"
    ok("train.py", *stage, f"--out_dir={c}", f"--init_from={a / 'grown.pt'}", mix, "--eval_interval=2")
    assert same(weights(b), weights(c)) and metrics(c, "bpb_all")[8] < metrics(a, "bpb_all")[8]

    # the control of the one with all rows has them, too
    control, asked = runpy.run_path(os.path.join(HERE, "runs/ladder.py"))["control"], []
    control.__globals__["train"] = lambda n_processes, *args: asked.extend(args)
    control(f"{b}/ckpt.pt", "1e-3", [], 1, str(tmp_path / "control"))
    assert "--rows=all" in asked and f"--vocab_size={meta['vocab_size']}" in asked

    how = ["--n", 2, "--tokens", 20, "--device", "cpu"]
    table = ok("sample.py", "--in", a / "ckpt.pt", b / "ckpt.pt", "--check", *how)
    assert "bits per byte" in table

    # a stock Llama of the one with a few rows: it has all tokens, in the tokenizer's order
    for dtype, tolerance in [("float32", 1e-5), ("bfloat16", 0.02)]:
        hf = tmp_path / dtype
        ok("export.py", "--in", a / "ckpt.pt", "--out", hf, "--dtype", dtype)
        transformers = pytest.importorskip("transformers")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32).eval()
        model = build_model(load_checkpoint(a / "ckpt.pt"))
        rng = torch.Generator().manual_seed(0)
        ids = model.token_ids()[torch.randint(300, model.cfg.vocab_size, (2, 20), generator=rng)]
        with torch.no_grad():
            difference = theirs(ids).logits[..., model.token_ids()] - model(ids)
        assert theirs.config.vocab_size == meta["vocab_size"] and difference.abs().max() <= tolerance
    tokenizer = transformers.AutoTokenizer.from_pretrained(hf)
    for strange in [*docs[:9], *ODD, *STRANGE, "a  b", " x", "\n\n"]:
        read = data_module.load_tokenizer(str(tmp_path / "t.model")).encode(strange)
        assert tokenizer(strange)["input_ids"][1:] == read or "\0" in strange or "<s>" in strange, strange
    assert tokenizer("")["input_ids"] == [meta["bos"]] and "grown" in (hf / "README.md").read_text()
    assert "exists: name a new folder" in run("export.py", "--in", a / "ckpt.pt", "--out", hf)[0]

    # stages that are not there
    for args, message in [
        (["--rows=words13"], "rows = 'words13': "),
        (["--rows=words12", "--vocab_size=5000"], "vocab_size = 5000, but the tokenizer"),
        (["--rows=all", f"--init_from={a / 'ckpt.pt'}"], "grow.py --vocab adds rows"),
        (["--data_mix={'all': 'a'}"], "the shares are not positive"),
        (["--data_mix=words13"], "has no stage words13, only words12, all"),
        (["--data_mix={'natural': 0.5, 'all': 0.5}"], "has no stage natural, only words12, all"),
        (["--data_mix={'all': 0.5}"], "the shares are not positive, or sum to 0.5, not to 1"),
    ]:
        error, _ = run("train.py", *stage, f"--out_dir={tmp_path / 'x'}", *args)
        assert message in error, (args, error)
