"""checkpoint.py: kills, full disks, damaged files, two runs at once."""

import functools
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers import HERE, ok, run, same, torchrun, weights

from checkpoint import build_model, load_checkpoint, load_state, lock, save_checkpoint
from test_grow import tiny


def test_sigterm_saves_and_exits_cleanly(stage, tmp_path):
    stage += ["--max_steps=100000", "--eval_interval=0", "--horizon_tokens=0"]
    command = [sys.executable, os.path.join(HERE, "train.py"), *map(str, stage)]
    env = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as p:
        while "step 3/" not in p.stdout.readline():
            assert p.poll() is None
        p.send_signal(signal.SIGTERM)
        rest = p.stdout.read()
    assert p.returncode == 0 and "go on with --resume" in rest
    assert load_checkpoint(tmp_path / "a/ckpt.pt")["step"] >= 3


@pytest.mark.parametrize(
    "kill, left",
    [
        ("os.fsync = lambda *a: os.kill(os.getpid(), 9)", "ckpt.pt"),
        ("os.replace = lambda *a: (replace(*a), os.kill(os.getpid(), 9))", "ckpt.prev.pt"),
    ],
    ids=["os.fsync", "os.replace"],
)
def test_a_kill_in_the_middle_of_a_save_loses_nothing(tmp_path, kill, left):
    """Killed with all written but nothing renamed, and between the renames."""
    path, keep = str(tmp_path / "ckpt.pt"), str(tmp_path / "ckpt.prev.pt")
    save_checkpoint(path, tiny())
    code = f"import os; import checkpoint; replace = os.replace; {kill}; "
    code += f"checkpoint.save_checkpoint({path!r}, {{'model': {{}}}}, {keep!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=HERE)
    assert done.returncode == -9
    assert same(load_checkpoint(tmp_path / left)["model"], tiny()["model"])


@pytest.mark.parametrize("n", [1, 2])
def test_a_full_disk_leaves_the_last_checkpoint(grown_run, tmp_path, n):
    stage, one = grown_run
    shutil.copytree(one, tmp_path / "b")
    before = weights(tmp_path / "b")

    def small():  # no file above 200 kB: writing fails as on a full disk, with another number
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    longer = [*stage, f"--out_dir={tmp_path / 'b'}", "--resume", "--max_steps=13", *["--shard"] * (n - 1)]
    done = torchrun(n, longer, popen=functools.partial(subprocess.run, preexec_fn=small))
    assert done.returncode and "can't be written (File too large)" in done.stderr.replace("[Errno 27] ", "")
    command = [sys.executable, "grow.py", "--in", tmp_path / "b/ckpt.pt", "--double", "width"]
    done = subprocess.run(command, cwd=HERE, preexec_fn=small, capture_output=True, text=True)
    assert done.returncode == 1 and "grown.pt.tmp1: can't be written" in done.stderr
    assert "Traceback" not in done.stderr
    assert same(before, weights(tmp_path / "b")) and "grown.pt" not in " ".join(os.listdir(tmp_path / "b"))


def test_a_save_that_cannot_begin_says_why(tmp_path):
    with pytest.raises(OSError, match="no/ckpt.pt.tmp: can't be written .No such file"):
        save_checkpoint(tmp_path / "no/ckpt.pt", tiny())


def test_damaged_and_hostile_files(tmp_path):
    """The quick ones of runs/reliability.py's cases."""
    cases, folder = runpy.run_path(os.path.join(HERE, "runs/reliability.py")), str(tmp_path)
    config = cases["setup"](folder, ok)
    rows = list(cases["damaged_checkpoints"](folder, config, run, n_flips=100))
    assert "flipped bit" in rows[1] and int(rows[1][3].split()[0]) > 60
    assert len(rows) == 4 and len(list(cases["damaged_data"](folder, config, run))) == 8


def test_one_run_at_a_time_writes_into_a_folder(stage, tmp_path):
    code = "import sys, time, checkpoint; held = checkpoint.lock(sys.argv[1]); "
    code += "print(1, flush=True); time.sleep(99)"
    (tmp_path / "a").mkdir()
    command = [sys.executable, "-c", code, tmp_path / "a/.lock"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=HERE) as other:
        other.stdout.readline()
        assert "a/.lock is locked: another process writes there" in run("train.py", *stage)[0]
        other.kill()
    ok("train.py", *stage, "--stop_at=1")  # a kill leaves nothing locked
    command = ("grow.py", "--in", tmp_path / "a/ckpt.pt", "--double", "width")
    with lock(tmp_path / "a/grown.pt.tmp"):
        assert "grown.pt.tmp is locked" in run(*command)[0]
    ok(*command)


@pytest.mark.parametrize("moment", [torch.full((1,), 7.0), torch.zeros(3, 3), None])
def test_an_adam_state_of_another_shape_is_refused_before_anything_is_loaded(moment):
    ckpt = tiny()
    state = {key: torch.zeros_like(ckpt["model"]["wte.0"]) for key in ("exp_avg", "exp_avg_sq")}
    state |= {"step": torch.tensor(1.0), "exp_avg": moment}
    ckpt |= {"optimizer": {"wte.0": {key: x for key, x in state.items() if x is not None}}}
    model = build_model(tiny())
    model.init_weights(1)
    before = {name: w.clone() for name, w in model.state_dict().items()}
    with pytest.raises(ValueError, match="tensors are not those of its config: wte.0, exp_avg"):
        load_state(model, model.optimizer(0.0), ckpt)
    assert same(before, model.state_dict())
