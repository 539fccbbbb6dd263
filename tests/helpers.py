"""What the tests of several rooms call."""

import contextlib
import gc
import gzip
import io
import json
import lzma
import multiprocessing
import os
import random
import re
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import sentencepiece
import torch
import torch._dynamo  # which the first step would import
import torch.distributed.run
from reliability import start

import prepare
from checkpoint import load_checkpoint

HERE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # the repository

# run() collects garbage after every script. What is imported is none: frozen, it costs 0.2 s a run less.
# train.py would freeze what a failed run has left, too.
gc.freeze()
gc.freeze = lambda: None

# What is forked for every script of Forked has imported these: 0.3 s each, not 4
multiprocessing.get_context("forkserver").set_forkserver_preload(
    ["train", "grow", "torch._dynamo", "torch.distributed.fsdp", "torch.distributed.run"]
)


def make_docs(n, seed=0):
    """Return n documents of 3 to 60 words, drawn from a few."""
    rng = random.Random(seed)
    words = 'the a cat dog sat on mat and then it ran home, looked up. "Oh!" said 42 birds'.split()
    return [" ".join(rng.choices(words, k=rng.randint(3, 60))).replace(". ", ".\n") for _ in range(n)]


def train_tokenizer(path, lines, vocab_size, hard_vocab_limit=False, **options):
    """Write a sentencepiece model of Llama's kind to path (x.model)."""
    llama = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    llama |= {"remove_extra_whitespaces": False, "hard_vocab_limit": hard_vocab_limit, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(path.with_suffix("")),
        vocab_size=vocab_size,
        **llama | options,
    )


def write_docs(path, docs):
    """Write docs as path's ending says: .txt, .jsonl or .parquet, also .gz or .xz. Return the path as
    text."""
    name = str(path)
    if ".parquet" in name:
        import pyarrow
        import pyarrow.parquet

        buf = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table({"id": range(len(docs)), "text": docs}), buf)
        data = buf.getvalue()
    elif ".jsonl" in name:
        data = "".join(json.dumps({"id": 1, "text": d}) + "\n" for d in docs).encode()
    else:
        data = "\n<|doc|>\n".join(docs).encode() + b"\n"
    if name.endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".xz"):
        data = lzma.compress(data)
    path.write_bytes(data)
    return name


def run_prepare(out, inputs, tok, *options):
    """Run prepare.py with one worker, and return (the folder's {name: bytes}, meta.json)."""
    inputs = [str(i) for i in (inputs if isinstance(inputs, list) else [inputs])]
    prepare.main(["--input", *inputs, "--out", str(out), "--tokenizer", tok, "--workers", "1", *options])
    files = {p.name: p.read_bytes() for p in out.iterdir()}
    assert not [p for p in out.parent.iterdir() if p.suffix[1:].isdigit()]  # nothing left aside
    return files, json.loads(files["meta.json"])


def prepare_command(out, name, tok, *options):
    """Return the command for prepare.py in a process of its own."""
    return [sys.executable, prepare.__file__, "--input", name, "--out", out, "--tokenizer", tok, *options]


def split_docs(folder, split, tok):
    """Return the documents of a folder's split, decoded."""
    meta = json.loads((folder / "meta.json").read_text())
    ids = np.fromfile(folder / f"{split}.bin", meta["dtype"])
    starts = [*np.flatnonzero(ids == meta["bos"]), len(ids)]
    return [tok.decode(ids[a + 1 : b]) for a, b in zip(starts, starts[1:])]


def run(script, *args):
    """Run a script as its command line would. Return (its one-line error or '', what it printed)."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    out, argv, error = io.StringIO(), sys.argv, ""
    sys.argv = [script, *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            runpy.run_path(os.path.join(HERE, script), run_name="__main__")
    except SystemExit as e:
        if e.code not in (0, None):
            error = str(e.code)
    finally:
        sys.argv = argv
        for s, handler in handlers.items():
            signal.signal(s, handler)
        gc.collect()  # what failed may be held by a cycle, and its lock with it
    assert "\n" not in error, error
    return error, out.getvalue()


def ok(script, *args):
    """Run a script, which must succeed, and return what it printed."""
    error, printed = run(script, *args)
    assert not error, error
    return printed


class Forked:
    """A script in a process of its own, as subprocess.Popen has it, but forked from one that has imported
    torch."""

    def __init__(self, command, cwd=HERE, env=None, stdout=None, stderr=None):
        """command: [sys.executable, script, *arguments]. stdout, stderr: open files; None: into memory."""
        self.files = [file or tempfile.NamedTemporaryFile("r") for file in (stdout, stderr)]
        log, errors = (file.name for file in self.files)
        with pytest.MonkeyPatch.context() as patch:  # for the process that is forked, which the first starts
            patch.setenv("PYTHONPATH", HERE)
            self.process = start(*command[1:], log=log, errors=errors, cwd=cwd, env=env)

    def wait(self):
        self.process.join()
        return self.process.exitcode

    def result(self):
        code = self.wait()
        return subprocess.CompletedProcess(None, code, *(open(file.name).read() for file in self.files))


def forked(command, **options):
    """Do what subprocess.run does."""
    return Forked(command, **options).result()


def together(n, args):
    """Run train.py in n processes, as torchrun does, but for starting them again. Return what they print. All
    of them must succeed."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(s.getsockname()[1])}
    world = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n), "PYTHONUNBUFFERED": "1"} | address
    command = [sys.executable, "train.py", *args]
    ranks = [os.environ | world | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]
    done = [process.result() for process in [Forked(command, env=env) for env in ranks]]
    assert [x.returncode for x in done] == [0] * n, [x.stderr for x in done]
    return "".join(x.stdout for x in done)


def write_stage(data, tmp_path, out):
    """Write the config of a small stage. Return train.py's arguments for it."""
    config = tmp_path / "stage.py"
    config.write_text(
        f"data = {data!r}\nout_dir = {str(out)!r}\n"
        "n_layer, n_head, n_embd, head_dim, block_size = 2, 2, 32, 16, 64\n"
        "tokens_per_step, batch_size, max_steps = 512, 4, 12\n"
        "learning_rate = 1e-2\nwarmup_tokens = 2048\nhorizon_tokens = 1e6\n"
        "eval_interval, eval_tokens, sample_tokens = 5, 2048, 0\n"
        "log_interval, compile, device = 1, False, 'cpu'\n"
    )
    return [config]


def weights(folder):
    """Return the tensors of a run's checkpoint, Adam's too, by name."""
    ckpt = load_checkpoint(f"{folder}/ckpt.pt")
    return ckpt["model"] | {f"{n}/{k}": v for n, s in ckpt["optimizer"].items() for k, v in s.items()}


def same(a, b):
    """Return whether two dicts of tensors are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def metrics(folder, key):
    """Return {step: what metrics.jsonl of a run says of key}. No line may be there twice."""
    with open(f"{folder}/metrics.jsonl") as f:
        lines = list(map(json.loads, f))
    assert len(lines) == len({(m["step"], *m) for m in lines})  # a step's lines differ in what they have
    return {m["step"]: m[key] for m in lines if key in m}


@torch.no_grad()
def nats_in_windows(model, ids, size):
    """Return the loss of all ids but the first, summed, where `size` at a time are read by themselves."""
    x, y = torch.tensor(ids[None, :-1]), torch.tensor(ids[None, 1:])
    windows = [(x[:, i : i + size], y[:, i : i + size]) for i in range(0, x.size(1), size)]
    return sum(model(a, b).item() * b.numel() for a, b in windows)


def torchrun(n, args, *options, popen=None, script="train.py"):
    """Run a script in n processes, by torchrun. Return what popen does, by default a CompletedProcess."""
    command = [torch.distributed.run.__file__, f"--nproc_per_node={n}", "--standalone"]
    command = [sys.executable, *command, *options, os.path.join(HERE, script), *map(str, args)]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": HERE}
    if popen is None:
        return forked(command, env=env)
    return popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def near(a, b, tolerance=1e-5):
    """Return whether two dicts of tensors are equal within the tolerance."""
    within = {"atol": tolerance, "rtol": 1e-3}
    return a.keys() == b.keys() and all(torch.allclose(a[k].double(), b[k].double(), **within) for k in a)


def peak_anonymous_memory(command):
    """Return the MB that a command had at most. Pages of files are not counted: the kernel takes them back
    when it needs them."""
    peak = 0
    with subprocess.Popen([*map(str, command)], stdout=subprocess.DEVNULL) as p:
        while p.poll() is None:
            with contextlib.suppress(OSError, TypeError), open(f"/proc/{p.pid}/status") as f:
                peak = max(peak, int(re.search(r"RssAnon:\s+(\d+)", f.read())[1]) / 1000)
            time.sleep(0.002)
    assert p.returncode == 0
    return peak


def save_byte_bpe(path, lines, pre, special=("<|endoftext|>",), **options):
    """Write a tokenizer.json of byte-level BPE, as Llama 3's and SmolLM's. Return the tokenizer."""
    tokenizers = pytest.importorskip("tokenizers")
    tok = tokenizers.Tokenizer(tokenizers.models.BPE())
    tok.pre_tokenizer, tok.decoder = pre, tokenizers.decoders.ByteLevel()
    tok.normalizer = options.get("normalizer")
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(lines, trainer)
    tok.save(str(path))
    return tok


ODD = [  # documents that a careless tokenizer changes
    "  two spaces, then\ta tab\r\nand CRLF\r\n\r\nlast",
    "\n\nempty lines first\n\n\n  indented\n",
    "naïve café — “quotes” 日本語",
    "🙂👩‍👩‍👧 emoji\u2028and a ▁ U+2581, a \ufeff BOM, a \0 NUL",
    "<s> </s> <0x0A> <unk> <|endoftext|>",
    "x",
    " ",
    "\t.",
]


def spell(ids, spelling, which):
    """Return ids with those spelled in bytes for which which(id) holds."""
    offsets, spelled = spelling
    return [j for i in ids for j in (spelled[offsets[i] : offsets[i + 1]].tolist() if which(i) else [i])]


def long_docs(n, seed=0):
    """Return n documents of 1 to 1,500 words, of words of all ranks, in paragraphs, lines and none."""
    rng, out = random.Random(seed), []
    for i in range(n):
        length = rng.choice([5, 150, 400, 1500])
        vocabulary = [f"w{int(rng.paretovariate(0.6)) % 3000}" for _ in range(length)]
        text = " ".join(word + rng.choice([""] * 9 + [".", ". Then", ", said Tom"]) for word in vocabulary)
        out.append(f"{i} " + text.replace(". ", rng.choice([". ", ".\n", ".\n\n", ".\r\n\r\n"])))
    return out


STRANGE = ["z" * 20000, "日本語。" * 5000, " " * 9999 + "x", "a b\n" * 3000, "word " * 3000]


TEXT = "\n<|doc|>\n".join(make_docs(400)).encode()
GOOD = b'{"text": "fine"}\n'


NOT_UTF8 = b"one\n\n<|doc|>\ntwo\nthr\xffee\n<|doc|>\nfour\n<|doc|>\nfive"
NO_TEXT = b'{"txt": "x"}\n[1]\n{"text": null}\n'
SURROGATE = b'{"text": "\\ud800"}\n{"text": "\xff"}\n'


BAD = [  # file name, contents, the message's pattern, documents left with --skip_bad
    ("a.txt", NOT_UTF8, r"a\.txt, line 5: not UTF-8", 3),
    ("a.jsonl", GOOD * 2 + b'\n{"text": \n' + GOOD, r"a\.jsonl, line 4: not JSON", 3),
    ("a.jsonl", GOOD * 2 + NO_TEXT, r"a\.jsonl, line 3: no text in field text", 2),
    ("a.jsonl", GOOD * 2 + SURROGATE, r"a\.jsonl, line 3: not UTF-8", 2),
    ("a.txt.xz", lzma.compress(TEXT)[:-700], r"a\.txt\.xz: broken or cut short", None),
    ("a.txt.gz", gzip.compress(TEXT, mtime=0)[:-700], r"a\.txt\.gz: broken or cut short", None),
    ("a.txt.gz", b"not gzip", r"a\.txt\.gz: broken or cut short", 0),
    ("a.parquet", b"not parquet", r"a\.parquet: broken or cut short", 0),
]
