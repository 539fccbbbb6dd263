"""Fixtures that the tests of several rooms share."""

import random
import subprocess

import pytest
from helpers import forked, make_docs, ok, train_tokenizer, write_stage


@pytest.fixture(scope="session")
def sp_model(tmp_path_factory):
    """A small sentencepiece model of Llama's kind."""
    path = tmp_path_factory.mktemp("sp") / "small.model"
    train_tokenizer(path, "\n".join(make_docs(200)).splitlines(), 360, hard_vocab_limit=True)
    return str(path)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A folder as prepare.py makes it, of a small language of names, verbs and things."""
    folder, rng = tmp_path_factory.mktemp("data"), random.Random(0)
    names, verbs = "Ann Ben Cleo Dan Eve".split(), "sees takes likes wants gives".split()
    things = "ball cat dog egg fish hat".split()

    def sentence():
        return f"{rng.choice(names)} {rng.choice(verbs)} the {rng.choice(things)}."

    docs = [" ".join(sentence() for _ in range(rng.randint(5, 40))) for _ in range(400)]
    (folder / "text.txt").write_text("\n<|doc|>\n".join(docs))
    train_tokenizer(folder / "t.model", docs, 300)
    options = ["--tokenizer", folder / "t.model", "--val", 0.2, "--workers", 1]
    ok("prepare.py", "--input", folder / "text.txt", "--out", folder / "d", *options)
    return str(folder / "d")


@pytest.fixture
def stage(data, tmp_path):
    """train.py's arguments for a small stage that writes to tmp_path/a."""
    return write_stage(data, tmp_path, tmp_path / "a")


@pytest.fixture(scope="session")
def grown_run(data, tmp_path_factory):
    """train.py's arguments for a stage that starts from a grown checkpoint, with Adam's state and two
    generations, the second of which comes in over half of the stage; and the folder that one process trained
    with them."""
    tmp = tmp_path_factory.mktemp("grown")
    config = write_stage(data, tmp, tmp / "a")
    ok("train.py", *config, "--stop_at=4")
    sizes = ["--width", 48, "--heads", 3, "--depth", 3, "--ramp", 3000]
    ok("grow.py", "--in", tmp / "a/ckpt.pt", *sizes, "--out", tmp / "g.pt")
    sizes = ["--n_embd=48", "--n_head=3", "--n_layer=3"]
    stage = [*config, f"--init_from={tmp / 'g.pt'}", *sizes, "--learning_rate=5e-3"]
    ok("train.py", *stage, f"--out_dir={tmp / 'one'}")
    return stage, tmp / "one"


@pytest.fixture
def forks(monkeypatch):
    """Let scripts fork what they start by subprocess.run."""
    monkeypatch.setattr(subprocess, "run", forked)
