"""grow.py's command line, and growing a model that is finished."""

import contextlib
import io
import math
import os
import re
import shlex
import shutil
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import HERE, ok, peak_anonymous_memory, run, together, write_stage

import grow
from checkpoint import Lazy, build_model, load_checkpoint, materialise, save_checkpoint, write_checkpoint
from data import load_tokenizer
from export import llama_config
from grow import nearest_size
from model import Config, Llama, skeleton
from test_grow import CLONE, TOKENS, build, heads, steps, tiny

DEPTH = ("--double", "depth")


@pytest.fixture(scope="session")
def run_in_its_constant_part(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("constant")
    ok("train.py", *write_stage(data, folder, folder / "a"))
    return folder / "a/ckpt.pt"


@pytest.fixture
def trained(run_in_its_constant_part, tmp_path):
    """A checkpoint of a run that stands in the constant part of its schedule, for one test alone."""
    (tmp_path / "a").mkdir()
    return shutil.copy(run_in_its_constant_part, tmp_path / "a/ckpt.pt")


@pytest.fixture
def imported(trained, tmp_path):
    """A checkpoint as export.py --from makes one: with a tokenizer and an origin, no data, never trained."""
    ckpt = load_checkpoint(trained)
    ledger = {"tokens": 0, "flops": 0, "seconds": 0.0, "dealt": 0, "read": {}, "from": "SmolLM2"}
    (generation,) = ckpt["config"]["generations"]
    generation |= {"birth": 0, "learning_rate": None, "warmup": 0, "warm_start": 0}
    new = {"config": ckpt["config"] | {"generations": [generation]}, "ledger": ledger}
    new |= {"lineage": [], "step": 0, "schedule": None, "branch": None}
    new |= {"model": dict(ckpt["model"]), "optimizer": {}, "settings": {}, "tokenizer": ckpt["tokenizer"]}
    save_checkpoint(tmp_path / "llama.pt", new)
    return tmp_path / "llama.pt"


def test_an_imported_model_is_not_resumed(imported, data, tmp_path):
    shutil.copy(imported, tmp_path / "ckpt.pt")
    error, _ = run("train.py", f"--data={data}", f"--out_dir={tmp_path}", "--block_size=64", "--resume")
    assert f"{tmp_path}/ckpt.pt was never trained: give it as --init_from, with another out_dir" in error


def with_schedule(rates, tokens=900, peaks=(1e-2,), decay_from=800, **more):
    """A tiny checkpoint whose schedule stands as told."""
    ckpt = tiny()
    for peak in peaks[1:]:
        ckpt = grow.grow(ckpt, n_layer=ckpt["config"]["n_layer"] + 1)[0]
    for generation, peak in zip(ckpt["config"]["generations"], peaks):
        generation["learning_rate"] = peak
    schedule = {"start": 0, "decay_from": decay_from, "horizon": 1000, "shape": "wsd", "rates": rates}
    return ckpt | {"ledger": ckpt["ledger"] | {"tokens": tokens}, "schedule": schedule} | more


# -----------------------------------------------------------------------------
# a finished model


def test_what_is_finished():
    assert grow.why_finished(tiny()) == ""
    assert grow.why_finished(with_schedule([1e-2])) == ""
    assert grow.why_finished(with_schedule([1e-4])) == "its rates have decayed to 1% of their peaks"
    assert grow.why_finished(with_schedule([1e-4], tokens=100)) == ""  # in its warmup
    # old generations at 0, but new ones at full rate: what is learnt now is not finished
    assert grow.why_finished(with_schedule([0.0, 1e-2], peaks=(1e-2, 1e-2))) == ""
    assert grow.why_finished(with_schedule([0.0, 1e-4], peaks=(1e-2, 1e-2)))
    # policy shared: all have the youngest's peak, far below that of the first
    assert grow.why_finished(with_schedule([1e-3, 1.3e-3], peaks=(1e-2, 1e-3))) == ""
    # grown, and not trained yet: with a generation that has no rate; by --init clone, with a peak forgotten
    decayed = with_schedule([1e-4], settings={"learning_rate": 1e-2})
    assert grow.why_finished(grow.grow(decayed, n_layer=3)[0])
    assert grow.why_finished(grow.grow(decayed, **CLONE, **heads("gqa", 12))[0])
    # a cosine falls from the end of the warmup on, wherever a decay would begin
    ckpt = with_schedule([1e-3], tokens=700)
    assert grow.why_finished(ckpt) == ""
    ckpt["schedule"]["shape"] = "cosine"
    assert grow.why_finished(ckpt) == "its rates have decayed to 10% of their peaks"
    assert "--branch=decay" in grow.why_finished(
        tiny() | {"branch": {"tokens": 1, "length": 1, "rates": [1e-2]}}
    )
    assert grow.why_finished(tiny() | {"origin": {"name": "SmolLM2"}}) == "SmolLM2 was imported"
    ckpt = tiny()
    ckpt["ledger"]["from"] = "SmolLM2"
    for growth in (dict(n_layer=4), dict(n_embd=60), dict(ffn_dim=140)):
        assert grow.why_finished(ckpt) == "SmolLM2 was imported"
        ckpt, _ = grow.grow(ckpt, **growth)
    assert grow.why_finished(grow.condense(ckpt, 1)[0]) == "SmolLM2 was imported"


def test_the_default_for_depth_keeps_a_finished_model(imported, trained, stage, tmp_path):
    printed = ok("grow.py", "--in", trained, *DEPTH, "--dry_run")
    assert "the copies come in over 153 tokens; --ramp 0: at once" in printed and "--freeze" not in printed
    assert "max |dlogit| 0.0e+00" in printed
    # a size that stays is no growth in width
    assert "the copies come in" in ok("grow.py", "--in", trained, "--depth", 4, "--width", 32, "--dry_run")
    for at_once in (["--ramp", 0], ["--init", "stack"], ["--condense", 1]):
        printed = ok("grow.py", "--in", trained, *DEPTH, *at_once, "--dry_run")
        assert "plain copies of layers (--init stack) do not keep" in printed and "come in" not in printed
    why = "SmolLM2 was imported: --init copy keeps its function; --init stack would not\n"
    printed = ok("grow.py", "--in", imported, *DEPTH)
    grown = tmp_path / "grown.pt"
    assert why in printed and "max |dlogit| 0.0e+00" in printed
    assert load_checkpoint(grown)["lineage"][-1]["init"] == "copy"
    # the exact next command keeps the old as it is, and trains the new
    command = re.search(r"python (train\.py .*)", printed)[1]
    freeze = "--freeze='[0]' --learning_rate=1e-4"
    assert command == f"train.py --data=DATA --init_from={grown} --out_dir={tmp_path / 'grown'} {freeze}"
    options = [*stage, "--n_layer=4", *(x for x in shlex.split(command)[1:] if x != "--data=DATA")]
    ok("train.py", *options)
    old, before, after = (load_checkpoint(x)["model"] for x in (imported, grown, tmp_path / "grown/ckpt.pt"))
    assert all(torch.equal(after[name], w) for name, w in old.items())
    assert all(not torch.equal(after[name], before[name]) for name in after.keys() - old.keys())
    # trained on, it is imported still; what is asked for is done; for a width the default is exact anyway
    assert why in ok("grow.py", "--in", tmp_path / "grown/ckpt.pt", *DEPTH, "--dry_run")
    printed = ok("grow.py", "--in", imported, *DEPTH, "--init", "stack", "--dry_run")
    assert "do not keep the function" in printed and why not in printed
    assert why not in ok("grow.py", "--in", imported, "--double", "width", "--dry_run")


def test_the_default_for_depth_keeps_a_decayed_model(stage, tmp_path):
    ok("train.py", *stage, f"--horizon_tokens={12 * 512}")
    printed = ok("grow.py", "--in", tmp_path / "a/ckpt.pt", *DEPTH, "--dry_run")
    assert re.search("^its rates have decayed .*: --init copy keeps its function", printed, re.M)
    assert "max |dlogit| 0.0e+00" in printed
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}")
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}", "--branch=decay", "--branch_tokens=1024")
    assert "the copies come in" in ok("grow.py", "--in", tmp_path / "b/ckpt.pt", *DEPTH, "--dry_run")
    assert "max |dlogit| 0.0e+00" in ok("grow.py", "--in", tmp_path / "b-decay/ckpt.pt", *DEPTH, "--dry_run")


# -----------------------------------------------------------------------------
# the check


def test_the_tolerance_is_relative_to_the_logits(tmp_path):
    ckpt = tiny(torch.float32)
    ckpt["model"]["head.0"] *= 300
    save_checkpoint(tmp_path / "a.pt", ckpt)
    clone = ("grow.py", "--in", tmp_path / "a.pt", "--double", "width", "--init", "clone")
    printed = ok(*clone, "--dry_run")
    assert float(re.search(r"max \|dlogit\| (\S+),", printed)[1]) > 1e-4  # where it was
    error, _ = run(*clone, "--dry_run", "--tolerance", 1e-9)
    found = re.search(r"above the tolerance of (\S+), (\S+) x (\S+):", error)
    of, times, largest = map(float, found.groups())
    assert largest > 100 and of == pytest.approx(times * largest, rel=0.1)
    # where logits are small the tolerance does not shrink with them
    ckpt["model"]["head.0"] *= 1e-6
    save_checkpoint(tmp_path / "a.pt", ckpt)
    assert re.search(r"above the tolerance of -1.0e\+00, -1 x 1:", run(*clone, "--tolerance", -1)[0])


def test_differences_are_those_of_all_logits_at_once():
    a, tokens = tiny(), torch.randint(97, (3, 25), generator=torch.Generator().manual_seed(1))
    b = steps(grow.grow(a, n_embd=60)[0], 2)
    with torch.no_grad():
        logits = [build(x)(tokens[:, :-1]) for x in (a, b)]
    torch.set_default_dtype(torch.float64)
    try:
        measured = grow.differences(a, b, tokens, n=7)
    finally:
        torch.set_default_dtype(torch.float32)
    losses = [F.cross_entropy(x.flatten(0, 1), tokens[:, 1:].flatten()).item() for x in logits]
    expected = [(logits[0] - logits[1]).abs().max().item(), logits[0].abs().max().item(), *losses]
    assert measured == pytest.approx(expected, abs=1e-12)


def test_a_text_to_check_on(imported, trained, data, tmp_path):
    said = "Ann sees the ball. Ben likes the dog."
    (tmp_path / "t.txt").write_text(said)
    printed = ok("grow.py", "--in", imported, *DEPTH, "--text", tmp_path / "t.txt", "--dry_run")
    model, tok = build_model(load_checkpoint(imported)), load_tokenizer(f"{data}/tokenizer.model")
    ids = torch.tensor([[tok.bos, *tok.encode(said)]])
    loss = model(ids[:, :-1], ids[:, 1:]).item()
    bpb = loss * (ids.size(1) - 1) / len(said.encode()) / math.log(2)
    assert f"check on {ids.numel()} tokens of {tmp_path / 't.txt'}: " in printed
    assert f"loss {loss:.4f} -> {loss:.4f}\n" in printed and f": {bpb:.4f} -> {bpb:.4f}\n" in printed
    # a long one: some hundred tokens, in windows of block_size, whatever ends its lines; a BOM is no text
    (tmp_path / "long.txt").write_bytes("\ufeff".encode() + b"\r\n".join([said.encode()] * 5000))
    tokens, what, n_bytes = grow.probe_tokens(load_checkpoint(imported), tmp_path / "long.txt")
    assert tokens.shape == (8, 65) and tokens[0, 0] == tok.bos and (tokens[1:, 0] == tokens[:-1, -1]).all()
    read = tok.decode([*tokens[0].tolist()[1:], *tokens[1:, 1:].flatten().tolist()])
    assert read.startswith("Ann sees") and n_bytes == len(read.encode())
    for path, data_, message in [
        ("empty.txt", b"", "empty.txt: no text in it"),
        ("bom.txt", "\ufeff".encode(), "bom.txt: no text in it"),
        ("latin.txt", "é".encode("latin1"), "latin.txt: not UTF-8"),
        ("none.txt", None, "none.txt"),
    ]:
        if data_ is not None:
            (tmp_path / path).write_bytes(data_)
        error, _ = run("grow.py", "--in", imported, *DEPTH, "--text", tmp_path / path)
        assert message in error and not os.path.exists(tmp_path / "grown.pt")
    # without a text: the validation text if there is one, and random tokens are called that
    printed = ok("grow.py", "--in", trained, *DEPTH, "--dry_run")
    assert re.search(r"check on 130 tokens of \S+/val.bin: max", printed)
    printed = ok("grow.py", "--in", imported, *DEPTH, "--dry_run")
    assert "check on 130 random tokens: max" in printed and "tell of exactness only: --text FILE" in printed


def test_a_text_is_spelled_where_rows_are_missing(data):
    tok = load_tokenizer(f"{data}/tokenizer.model")
    n_rows = 3 + 256  # specials, bytes
    cfg = Config(n_layer=1, n_head=1, n_embd=8, head_dim=8, vocab_size=n_rows, n_tokens=tok.vocab_size)
    model = Llama(cfg)
    model.init_weights(0)
    model.row_of[:n_rows] = torch.arange(n_rows)
    tokenizer = tok.to_dict() | {"model": torch.from_numpy(np.frombuffer(tok.model, np.uint8).copy())}
    ckpt = tiny() | {"config": cfg.plain(), "model": model.state_dict(), "tokenizer": tokenizer}
    path = f"{os.path.dirname(data)}/text.txt"
    tokens, _, n_bytes = grow.probe_tokens(ckpt, path)
    with open(path) as f:
        text = f.read(512)
    assert tokens.max() < n_rows and n_bytes == 512 - 1  # sentencepiece's space before the text
    assert tok.decode([*tokens[0].tolist()[1:], *tokens[1:, 1:].flatten().tolist()]) == text[:-1]


def test_the_lineage_has_the_sizes_that_were_made(tmp_path):
    save_checkpoint(tmp_path / "a.pt", tiny(torch.float32))
    ok("grow.py", "--in", tmp_path / "a.pt", "--double", "width", "--init", "clone")
    ckpt = load_checkpoint(tmp_path / "grown.pt")
    sizes = ckpt["lineage"][-1]["sizes"]
    assert sizes and sizes == {name: ckpt["config"][name] for name in sizes}
    how = [*DEPTH, "--init", "copy", "--skip", 1]
    ok("grow.py", "--in", tmp_path / "a.pt", *how, "--out", tmp_path / "b.pt")
    ckpt = load_checkpoint(tmp_path / "b.pt")
    w, n = ckpt["model"], ckpt["config"]["n_layer"]
    assert ckpt["lineage"][-1]["skip"] == 1
    assert all(torch.equal(w[f"layers.{i}.mlp.up.0"], w["layers.1.mlp.up.0"]) for i in range(n // 2, n))


def test_weights_that_are_not_finite_are_named(tmp_path):
    ckpt = tiny(torch.float32)
    ckpt["model"]["layers.1.mlp.up.0"][0, 0] = math.nan
    save_checkpoint(tmp_path / "a.pt", ckpt)
    for growth in (DEPTH, ("--double", "ffn"), ("--double", "depth", "--init", "stack")):
        assert "its logits are not finite" in run("grow.py", "--in", tmp_path / "a.pt", *growth)[0]
    assert os.listdir(tmp_path) == ["a.pt"]


def test_what_is_new_is_alive_on_top_of_a_ramp():
    ckpt, _ = grow.grow(tiny(torch.float32), n_embd=60, ramp=100)
    grown, born = grow.grow(ckpt, ffn_dim=91)
    assert set(grow.alive(grown, TOKENS, {slab for slab, *_ in born}).values()) == {1}


# -----------------------------------------------------------------------------
# files


def test_a_dry_run_writes_nothing_beside_the_input(trained, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = os.stat(trained.parent).st_mtime_ns  # a file made and removed would show
    os.chmod(trained.parent, 0o555)
    condensed, explained = ("--double", "width", "--condense", 1), ("--double", "ffn", "--explain")
    for options in [DEPTH, condensed, explained, ("--fresh_optimizer",)]:
        printed = ok("grow.py", "--in", trained, *options, "--dry_run")
        assert printed.endswith("dry run: nothing written\n") and "max |dlogit|" in printed
    os.chmod(trained.parent, 0o755)
    assert os.stat(trained.parent).st_mtime_ns == before and os.listdir(tmp_path / "tmp") == []


def test_a_dry_run_says_what_the_growth_will(trained):
    dry, wet = (ok("grow.py", "--in", trained, "--double", "width", *x) for x in (["--dry_run"], []))
    table = re.compile(r"^(n_layer|heads|ffn_dim|rows|  |parameters|FLOPs|checkpoint|check on).*", re.M)
    assert [m[0] for m in table.finditer(dry)] == [m[0] for m in table.finditer(wet)]
    assert len(table.findall(dry)) >= 10


def test_paths_are_read_as_they_are_meant(stage, tmp_path):
    a = tmp_path / "a"
    together(1, [*stage, "--shard", "--stop_at=2"])
    path = a / "ckpt.pt"
    files, before = sorted(os.listdir(path)), os.stat(path).st_mtime_ns
    assert "whole.pt" not in files
    assert "nothing written" in ok("grow.py", "--in", path, "--double", "width", "--dry_run")
    assert os.stat(path).st_mtime_ns == before
    for spelled in (f"{path}/", f"{path}//", f"{path}/.", f"{path}/whole.pt"):
        assert f"wrote {a / 'grown.pt'};" in ok("grow.py", "--in", spelled, "--double", "width", "--force")
        assert sorted(os.listdir(path)) == sorted([*files, "whole.pt"])
    (tmp_path / "folder").mkdir()
    for options, message in [
        (["--out", path], "is the input: give another name"),
        (["--out", f"{path}/"], "is the input: give another name"),
        (["--out", path / "grown.pt"], f"is inside the checkpoint {path}: name a file elsewhere"),
        (["--out", tmp_path / "folder", "--force"], "folder is a folder: name a file, such as "),
        (["--out", f"{tmp_path / 'folder'}/", "--force"], "folder/ is a folder: name a file, such as "),
        (["--out", f"{tmp_path / 'new'}/"], "new/ is a folder: name a file, such as "),
        (["--in", a], f"{a} is a folder with a checkpoint in it: give {path}"),
        (["--in", f"{a}/"], f"{a} is a folder with a checkpoint in it: give {path}"),
        (["--in", a, "--dry_run"], f"{a} is a folder with a checkpoint in it: give {path}"),
        (["--in", tmp_path / "folder"], "folder: not a checkpoint"),
    ]:
        error, _ = run("grow.py", "--in", path, "--double", "width", *options)
        assert message in error, (options, error)
    assert os.listdir(tmp_path / "folder") == [] and sorted(os.listdir(path)) == sorted([*files, "whole.pt"])


# -----------------------------------------------------------------------------
# sizes


SHAPES = [
    dict(n_layer=3, n_head=4, n_kv_head=2, n_embd=40, head_dim=6, ffn_dim=70),
    dict(n_layer=30, n_head=9, n_kv_head=3, n_embd=576, head_dim=64, ffn_dim=1536),
    dict(n_layer=2, n_head=2, n_embd=32, head_dim=16),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("along, multiple", [("depth", 0), ("width", 0), ("width", 96)])
def test_the_nearest_size_is_that_of_a_search(shape, along, multiple):
    cfg = Config(**shape)
    now = grow.skeleton(cfg).count_params()["non_embedding"]
    assert grow.non_embedding(cfg, {}) == now
    sizes, of = grow.size_steps(cfg, along, multiple)
    for size in sizes[:2]:
        names = ("n_layer", *grow.SIZES)
        new = Config(**{name: getattr(cfg, name) for name in names} | of(size))
        assert grow.skeleton(new).count_params()["non_embedding"] == grow.non_embedding(cfg, of(size))
    for times in (1.0001, 1.5, 2, 3.7, 60):
        n = [grow.non_embedding(cfg, of(size)) for size in sizes[:2000]]
        best = min(range(2000), key=lambda i: abs(n[i] - times * now))
        assert grow.nearest_size(cfg, times * now, along, multiple) == of(sizes[best])
    start = time.time()
    for times in (1e3, 1e6, 1e30):
        assert grow.nearest_size(cfg, times * now, along, multiple)
    assert time.time() - start < 1


def test_what_was_asked_for_and_what_was_chosen(trained):
    now = grow.non_embedding(Config(**load_checkpoint(trained)["config"]), {})
    for params, along, line in [
        ("2x", "width", "asked for 2.00 x, chose 1.69 x: the width above, 64, is 3.99 x"),
        ("3.5x", "width", "asked for 3.50 x, chose 3.99 x: the width below, 48, is 1.69 x"),
        ("2x", "depth", "asked for 2.00 x, chose 2.00 x: the depth above, 5, is 2.50 x"),
        ("1.1x", "depth", "asked for 1.10 x, chose 1.50 x: the smallest step"),
        (str(1.6 * now), "depth", "asked for 52.7k, chose 49.4k: the depth above, 4, is 65.8k"),
    ]:
        printed = ok("grow.py", "--in", trained, "--params", params, "--along", along, "--dry_run")
        assert f"{line}\n" in printed
    # the table stands before the growth begins, with it: sizes of both, all generations in order
    printed = ok("grow.py", "--in", trained, "--width", 48, "--condense", 1, "--dry_run")
    rows = [line.rsplit(maxsplit=2) for line in printed.splitlines() if line.startswith("  generation")]
    assert [row[0] for row in rows] == ["  generation 0", "  generation 1"]
    assert rows[0][2] == rows[1][1] == "0" and rows[0][1] != "0" != rows[1][2]


def test_what_is_no_stock_llama_is_said_before_the_training(tmp_path):
    cfg = Config(n_layer=1, n_head=6, n_kv_head=2, n_embd=64, head_dim=8)  # no multiple of 3 divides 64
    said = "n_embd = 64 is no multiple of n_head = 6, as transformers wants: "
    said += "grow.py --width 66 --heads 6 would make it one"
    assert grow.not_stock(cfg) == said
    with pytest.raises(ValueError, match=said):
        llama_config(cfg, "float32", 1, 2)
    save_checkpoint(tmp_path / "a.pt", tiny(torch.float32))  # 4 heads, 2 kv heads, of 40
    for options, remedy in [
        (["--heads", 6], "--width 42 --heads 6 would make it one, or --heads 8"),
        (["--width", 42, "--heads", 4], "--width 44 --heads 4 would make it one, or --heads 6"),
    ]:
        command = ("grow.py", "--in", tmp_path / "a.pt", "--dry_run")
        printed = ok(*command, *options)
        assert "warning: export.py will not make a stock Llama of it: n_embd" in printed and remedy in printed
        again = re.search(r"grow.py (--width \d+ --heads \d+)", printed)[1].split()
        assert "warning" not in ok(*command, *again)
        assert "warning" not in ok(*command, *options, *remedy.split()[-2:])


def test_a_growth_with_no_room_is_refused_at_once(trained):
    start = time.time()
    vast = ["--params", "1e30x", "--along", "depth"]
    for options in (["--depth", 10**9], ["--width", 10**9], ["--ffn", 10**12], vast):
        error, _ = run("grow.py", "--in", trained, *options)
        assert re.search(r"pt.tmp: can't be written: \S+B of parameters, and \S+B are free", error), error
    assert time.time() - start < 20 and os.listdir(trained.parent).count("grown.pt.tmp") == 0


# -----------------------------------------------------------------------------
# what is said on the way, and refused


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_said(terminal, monkeypatch, tmp_path):
    err = io.StringIO()
    err.isatty = lambda: terminal
    monkeypatch.setattr(grow, "TICK", (0.05, 0.1))
    with contextlib.redirect_stderr(err):
        with grow.working("writing x.pt", str(tmp_path / "x.pt")):
            time.sleep(0.5)
            (tmp_path / "x.pt").write_bytes(bytes(30_000))
            time.sleep(0.5)
        said = err.getvalue()
        time.sleep(0.3)
    assert err.getvalue() == said  # it stops
    lines = said.split("\r\033[K" if terminal else "\n")
    assert lines[1 if terminal else 0] == "writing x.pt: 0 s"
    assert lines[-2].endswith("s, 30kB") and lines[-1] == ""
    assert ("\n" in said) != terminal and len(lines) < 25


def test_arguments_that_cannot_be(trained, tmp_path):
    before = trained.read_bytes()
    for args, message in [
        (["--params", "nan", "--along", "width"], "--params nan: a number, or a factor such as 2x"),
        (["--params", "inf", "--along", "depth"], "--params inf: a number"),
        (["--params", "infx", "--along", "depth"], "--params infx: a number"),
        (["--params", "nanx", "--along", "depth"], "--params nanx: a number"),
        (["--params", "x", "--along", "depth"], "--params x: a number"),
        (["--params", "abc", "--along", "depth"], "--params abc: a number"),
        (["--params", "0", "--along", "depth"], "--params 0: it has"),
        (["--params", "0x", "--along", "width"], "--params 0x: it has"),
        (["--params=-2x", "--along", "width"], "--params -2x: it has"),
        (["--params", "2x", "--along", "width", "--multiple", -256], "--multiple is at least 0"),
        ([*DEPTH, "--tolerance", "nan"], "--tolerance a number"),
        (["--vocab", "all"], "--vocab all: the model has all 300 rows"),
        (["--width", 0], "--width 0: at least 1"),
        (["--depth", -3], "--depth -3: at least 1"),
        (["--heads", 0], "--heads 0: at least 1"),
        (["--ffn", -3], "--ffn -3: at least 1"),
        (["--head_dim", 0], "--head_dim 0: at least 1"),
        (["--condense", 0], "--condense 0: at least 1"),
        (["--condense", -1], "--condense -1: at least 1"),
        ([*DEPTH, "--ramp", -1], "--ramp -1: a number of tokens, at least 0"),
        ([*DEPTH, "--ramp", 9, "--condense", 1], "--condense 1 would fold the ramp in before it began"),
        (["--condense", 1, "--ramp", 9], "--ramp is for a growth, and of rows there is none"),
        ([*DEPTH, "--ramp", 0.5], "--ramp 0.5: a number of tokens, at least 0"),
        ([*DEPTH, "--ramp", "nan"], "--ramp nan: a number of tokens, at least 0"),
        (
            ["--double", "width", "--init", "clone", "--ramp", 9],
            "--ramp goes with --init random, copy, stack",
        ),
    ]:
        error, _ = run("grow.py", "--in", trained, *args)
        assert message in error, (args, error)
    assert trained.read_bytes() == before and not os.path.exists(trained.parent / "grown.pt")
    for seed in (-1, 10**30):  # any will do
        ok("grow.py", "--in", trained, "--double", "ffn", "--seed", seed, "--force")
        assert load_checkpoint(trained.parent / "grown.pt")["lineage"][-1]["seed"] == seed


def test_fusing_what_was_just_born_is_noted(trained):
    note = "note: generation 1 was never trained, and what is fused with it follows its schedule"
    assert note in ok("grow.py", "--in", trained, "--double", "ffn", "--condense", 1, "--dry_run")
    assert "note" not in ok("grow.py", "--in", trained, "--double", "ffn", "--dry_run")
    error, printed = run("grow.py", "--in", trained, "--double", "ffn", "--condense", 2)
    assert "--condense 2: 2 generations remain" in error and "n_embd" not in printed  # nothing was made


def rules_by_growth():
    """Yield the lines of a Markdown table of grow.RULES, a line a growth."""
    growths = {
        "width": ("n_embd",),
        "heads": ("n_head", "n_kv_head"),
        "ffn": ("ffn_dim",),
        "head_dim": ("pairs", "head_dim"),
        "depth": ("layer",),
        "vocab": ("vocab_size",),
    }
    yield "| growth | writes: zero at birth | reads: drawn, or copied | gain: 1 | row: mean of the old |"
    yield "|---|---|---|---|---|"
    for growth, axes in growths.items():
        rules = [(kind, grow.role_of(kind, axis)) for kind, axis in grow.RULES if axis in axes]
        columns = [", ".join(kind for kind, its in rules if its == role) or "-" for role in grow.ROLES]
        yield f"| {growth} | " + " | ".join(columns) + " |"


def test_the_readme_has_the_rules_that_are_executed():
    with open(f"{HERE}/README.md") as f:
        assert "\n".join(rules_by_growth()) + "\n" in f.read()


def test_every_slab_that_can_be_born_has_a_rule():
    for kind, axes in grow.SHAPES.items():
        names = [axis for axis in axes if type(axis) is str] + (
            ["layer"] if kind not in ("wte", "head") else []
        )
        for axis in names:
            for init in ("random", "copy", "eye", "stack"):
                how = grow.start_of(kind, axis, init)[0]
                assert how in ("zero", "drawn", "copied", "eye", "one", "mean"), (kind, axis)
            ramped = {grow.start_of(kind, axis, init, True)[0] for init in grow.RAMP_INITS}
            assert "zero" not in ramped, (kind, axis)


def test_nearest_size():
    ladder = [
        (8, 512, 4),
        (8, 768, 6),
        (8, 1024, 8),
        (16, 1024, 8),
        (16, 1536, 12),
        (16, 2048, 16),
        (32, 2048, 16),
    ]
    for (layers, width, n_head), (next_layers, next_width, _) in zip(ladder, ladder[1:]):
        cfg = Config(n_layer=layers, n_embd=width, n_head=n_head)
        n = 2 * skeleton(cfg).count_params()["non_embedding"]
        if next_layers > layers:
            assert nearest_size(cfg, n, "depth") == {"n_layer": next_layers}
        else:
            assert nearest_size(cfg, n, "width", 256)["n_embd"] == next_width


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_growing_takes_the_memory_of_a_tensor_not_of_a_model(tmp_path):
    peak = {}
    for n_layer in (1, 48):
        cfg = Config(
            n_layer=n_layer, n_head=2, n_embd=256, head_dim=128, ffn_dim=1024, vocab_size=300, block_size=64
        )
        shapes = skeleton(cfg).state_dict()

        def lazy(w, fill):
            return Lazy(tuple(w.shape), torch.float32, fill)

        drawn = {
            k: lazy(w, lambda out, k=k: out.fill_(1.0) if "norm" in k else out.normal_(0, 0.02))
            for k, w in shapes.items()
        }
        moments = {
            k: {m: lazy(w, lambda out: None) for m in ("exp_avg", "exp_avg_sq")} for k, w in shapes.items()
        }
        state = {k: {"step": torch.zeros(())} | both for k, both in moments.items()}
        ckpt = tiny() | {"config": cfg.plain(), "model": drawn, "optimizer": state}
        path = tmp_path / f"{n_layer}.pt"
        write_checkpoint(path, materialise(ckpt, f"{path}.scratch"))
        size = os.path.getsize(path) / 1e6
        peak[n_layer] = peak_anonymous_memory(
            [sys.executable, f"{HERE}/grow.py", "--in", path, "--double", "width", "--force"]
        )
    assert size > 600 and peak[48] < peak[1] + 100, (size, peak)  # MB; its largest tensor has 1 MB


def test_bad_input_to_grow(stage, tmp_path):
    ok("train.py", *stage, "--stop_at=1")
    path = tmp_path / "a/ckpt.pt"
    before = path.read_bytes()
    (tmp_path / "short.pt").write_bytes(before[: len(before) // 2])
    (tmp_path / "there.pt").write_text("mine")
    for args, message in [
        ([], "nothing to do"),
        (["--depth", 1], "n_layer 2 -> 1: a model only grows"),
        (["--depth", 2], "nothing grows"),
        (["--depth", 2, "--width", 32, "--condense", 1], "nothing grows"),
        (["--depth", 3, "--multiple", 2], "--multiple is for --params with --along width"),
        (["--width", 33], "2 heads can't grow in proportion from 32; give --heads"),
        (["--head_dim", 24], "head_dim 16 -> 24: only by integer multiples"),
        (["--double", "width", "--depth", 4], "give one of --double, --params, or explicit sizes"),
        (["--params", "2x"], "--params and --along width|depth go together"),
        (["--params", "two", "--along", "width"], "--params two: a number, or a factor such as 2x"),
        (["--params", "10", "--along", "width"], "it has"),
        (["--double", "depth", "--init", "eye"], "--init eye grows n_embd and heads"),
        (["--double", "width", "--init", "stack"], "--init stack copies whole layers"),
        (["--double", "width", "--place", "interleave"], "--place interleave is for depth"),
        (["--double", "width", "--skip", 1], "--skip is for copied layers on top"),
        ([*DEPTH, "--place", "interleave", "--skip", 1], "--skip is for copied layers on top"),
        ([*DEPTH, "--skip", 4], "--skip 4: 0 or more, and below the"),
        ([*DEPTH, "--skip", -1], "--skip -1: 0 or more, and below the"),
        (["--double", "width", "--init", "clone", "--skip", 1], "--init clone goes without --place, --skip"),
        ([*DEPTH, "--init", "random", "--skip", 1], "--skip is for copied layers on top"),
        (["--condense", 1, "--skip", 1], "--place, --skip and --copy_state are for a growth"),
        (["--double", "depth", "--init", "random", "--copy_state"], "--copy_state is for copied layers"),
        (["--condense", 1], "--condense 1: 1 generation remain"),
        (["--double", "depth", "--out", path], "is the input"),
        (["--double", "depth", "--out", tmp_path / "there.pt"], "there.pt exists: --force overwrites it"),
        (["--double", "depth", "--out", tmp_path / "no/x.pt"], "no such folder"),
        (["--double", "depth", "--init", "random", "--tolerance", -1], "is above the tolerance"),
        (["--double", "depth", "--in", tmp_path / "short.pt"], "short.pt: truncated, or not a checkpoint"),
        (["--double", "depth", "--in", tmp_path / "none.pt"], "none.pt: no such checkpoint"),
    ]:
        error, _ = run("grow.py", "--in", path, *args)
        assert message in error, (args, error)
    for init, kept in ([], True), (["--init", "stack"], False), (["--init", "random"], True):
        said = ok("grow.py", "--in", path, "--double", "depth", "--dry_run", *init)
        assert ("do not keep the function" in said) != kept and ("max |dlogit| 0.0e+00" in said) == kept
    assert path.read_bytes() == before and (tmp_path / "there.pt").read_text() == "mine"
    assert not os.path.exists(tmp_path / "a/grown.pt")
