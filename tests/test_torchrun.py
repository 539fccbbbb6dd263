"""train.py under torchrun: what is killed and started again, on one node and on two."""

import math
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist
from helpers import HERE, metrics, near, ok, together, torchrun, weights

import train
from checkpoint import build_model, load_checkpoint, load_state
from test_grow import TOKENS

# train.py, in which PLAN says what happens to a process: {(start, rank): (step, act)}. A rank's starts, from
# 1, are counted in a file. Step 0 is before all. 'wait' hangs until torchrun asks the process to end.
SCRIPT = """
import os, signal, sys, time, torch
rank, starts = os.environ["RANK"], os.path.dirname(os.path.abspath(__file__)) + "/starts" + os.environ["RANK"]
open(starts, "a").write("x")
when, act = PLAN.get((os.path.getsize(starts), int(rank)), (None, None))
clip, steps = torch.nn.utils.clip_grad_norm_, []
def at(step):
    if step != when:
        return
    while act == "wait" and signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # train.py's handler sets it
        time.sleep(0.05)
    if act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
def clipped(*args):
    steps.append(1)
    at(len(steps))
    return clip(*args)
torch.nn.utils.clip_grad_norm_ = clipped
at(0)
import train
try:
    train.main()
except (ValueError, OSError) as e:
    sys.exit(f"train.py: {e}")
"""


def write_script(tmp_path, plan):
    (tmp_path / "planned.py").write_text(SCRIPT.replace("PLAN", repr(plan)))
    return tmp_path / "planned.py"


def agrees(one, folder, tolerance=1e-4):
    """Assert that the run in folder logged what `one`, without kills, did, and ended with its weights."""
    a, b = metrics(one, "loss"), metrics(folder, "loss")
    assert list(a) == list(b) and max(abs(a[k] - b[k]) for k in a) < tolerance
    assert near(weights(one), weights(folder), tolerance)


def two_agents(script, args, *options, rendezvous="c10d", limit=240):
    """Run the script on two nodes, here two torchruns. Return what each printed. Both must end well in
    time."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    where = [f"--rdzv_backend={rendezvous}", f"--rdzv_endpoint=127.0.0.1:{port}", "--local_addr=127.0.0.1"]
    if rendezvous == "static":
        where = ["--master_addr=127.0.0.1", f"--master_port={port}"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
    command += [*where, *options]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONPATH": HERE}
    env["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "5"
    agents, printed, end = [], [], time.time() + limit
    for node in range(2):
        number = [f"--node_rank={node}"] if rendezvous == "static" else []
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        agents.append(subprocess.Popen([*command, *number, str(script), *map(str, args)], env=env, **pipes))
    try:
        for agent in agents:
            printed.append(agent.communicate(timeout=max(1, end - time.time()))[0])
    finally:
        for agent in agents:
            agent.send_signal(signal.SIGTERM)
        for agent in agents:
            agent.communicate()
    assert [agent.returncode for agent in agents] == [0, 0], printed
    return printed


@pytest.mark.parametrize("options, left", [([], "a/ckpt.pt"), (["--branch=decay"], "a-decay/ckpt.prev.pt")])
def test_torchrun_does_not_resume_what_another_launch_started(stage, tmp_path, options, left):
    """Refused, it is started again, and refused again."""
    ok("train.py", *stage, "--stop_at=4", "--save_interval=2")
    if options:
        ok("train.py", *stage, *options, "--branch_tokens=2048", "--save_interval=2")
    folder = tmp_path / left.split("/")[0]
    os.remove(folder / ("ckpt.pt" if "prev" in left else "ckpt.prev.pt"))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    script = write_script(tmp_path, {})
    done = torchrun(1, [*stage, *options, "--seed=7"], "--max-restarts=1", script=script)
    assert done.returncode != 0
    error = f"train.py: {tmp_path / left} exists: go on with --resume, or give another out_dir"
    assert done.stderr.count(error) == 2
    assert "resumed" not in done.stdout and before == {path: path.read_bytes() for path in folder.iterdir()}


def test_torchrun_starts_again_what_had_no_checkpoint_yet(grown_run, tmp_path):
    stage, one = grown_run
    script = write_script(tmp_path, {(1, 1): (2, "kill")})
    done = torchrun(2, [*stage, f"--out_dir={tmp_path / 'b'}"], "--max-restarts=1", script=script)
    assert done.returncode == 0 and "resumed" not in done.stdout, done.stderr
    agrees(one, tmp_path / "b")


def test_torchrun_goes_on_when_both_are_killed_and_when_one_is_killed_again(grown_run, tmp_path):
    stage, one = grown_run
    script = write_script(tmp_path, {(1, 0): (5, "kill"), (1, 1): (5, "kill"), (2, 0): (6, "kill")})
    args = [*stage, f"--out_dir={tmp_path / 'b'}", "--save_interval=3"]
    done = torchrun(2, args, "--max-restarts=2", script=script)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 3" in done.stdout and "resumed at step 6" in done.stdout
    agrees(one, tmp_path / "b")


def test_torchrun_does_not_take_back_a_run_that_another_took_over(stage, tmp_path):
    """Killed at step 5; before it is started again, somebody ends the run by hand."""
    script = write_script(tmp_path, {(1, 0): (5, "kill")})
    by_hand = [sys.executable, os.path.join(HERE, "train.py"), *map(str, stage), "--resume"]
    end_by_hand = f"""
import subprocess
if os.path.getsize(starts) == 2:
    plain = {{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")}}
    subprocess.run({by_hand}, check=True, env=plain)
"""
    script.write_text(script.read_text().replace("at(0)", end_by_hand))
    done = torchrun(1, [*stage, "--save_interval=3", "--max_steps=50"], "--max-restarts=1", script=script)
    assert done.returncode != 0 and "a/ckpt.pt exists: go on with --resume" in done.stderr
    assert load_checkpoint(tmp_path / "a/ckpt.pt")["step"] == 12


def test_a_resumed_run_goes_on_by_itself(grown_run, tmp_path):
    """The first start is a --resume of another launch's run."""
    stage, one = grown_run
    args = [*stage, f"--out_dir={tmp_path / 'b'}", "--save_interval=3"]
    ok("train.py", *args, "--stop_at=4")
    script = write_script(tmp_path, {(1, 0): (4, "kill")})
    done = torchrun(2, [*args, "--resume"], "--max-restarts=1", script=script)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 4" in done.stdout and "resumed at step 6" in done.stdout
    agrees(one, tmp_path / "b")


@pytest.mark.parametrize("rendezvous", ["c10d", "static"])
def test_two_nodes_agree_when_only_one_counts_a_restart(grown_run, tmp_path, rendezvous):
    """A process that dies as it starts, which only its own node notices; later both are killed at once."""
    stage, one = grown_run
    plan = {(1, 1): (0, "kill"), (2, 1): (5, "kill")} | dict.fromkeys([(1, 0), (2, 0)], (5, "kill"))
    args = [*stage, f"--out_dir={tmp_path / 'b'}", "--save_interval=3"]
    printed = two_agents(write_script(tmp_path, plan), args, "--max-restarts=3", rendezvous=rendezvous)
    assert "resumed at step 3" in "".join(printed)
    agrees(one, tmp_path / "b")


def test_two_nodes_go_on_when_one_process_hangs_and_the_other_is_killed(grown_run, tmp_path):
    """The hanging one's node joins the new round without counting a restart."""
    stage, one = grown_run
    script = write_script(tmp_path, {(1, 0): (5, "wait"), (1, 1): (5, "kill")})
    args = [*stage, f"--out_dir={tmp_path / 'b'}", "--save_interval=3", "--shard"]
    printed = two_agents(script, args, "--max-restarts=1")
    assert "resumed at step 3" in "".join(printed)
    agrees(one, tmp_path / "b")


def test_a_launch_is_known_while_one_of_its_agents_is(tmp_path):
    """Agents are replaced one by one; another launch, and a run without torchrun, are refused."""
    (tmp_path / "ckpt.pt").write_bytes(b"")

    def begin(resume, launch):
        return train.claim(str(tmp_path), "g.pt", resume, launch)[1:]

    assert begin(True, ["a", "b"]) == (True, f"{tmp_path}/ckpt.pt")
    assert begin(False, ["b", "c"])[0] and begin(False, ["c"])[0]
    for other in (["d"], []):
        with pytest.raises(ValueError, match="ckpt.pt exists: go on with --resume"):
            begin(False, other)
    assert begin(False, ["a"])[0] and begin(True, [])[0]  # by hand: from then on it is nobody's
    with pytest.raises(ValueError, match="ckpt.pt exists"):
        begin(False, ["c"])
    os.remove(tmp_path / "ckpt.pt")
    assert begin(False, ["d"]) == (False, "g.pt")


def test_an_agent_is_known_by_the_folder_of_its_logs(monkeypatch):
    monkeypatch.setenv("RANK", "0")
    for path, name in [("/l/t_x/1_y/attempt_2/0/error.json", "/l/t_x/1_y"), ("", ""), ("/dev/null", "")]:
        monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", path)
        assert train.agent() == name
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", "/l/t_x/1_y/attempt_2/0/error.json")
    monkeypatch.delenv("RANK")
    assert train.agent() == ""


def test_processes_agree_on_an_attempt_whatever_the_dead_wrote():
    """Attempts follow each other in one store. In the last, rank 0 comes again after it was answered."""
    store, names = dist.HashStore(), []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            names.append({*pool.map(lambda rank: train.agree_on_attempt(store, rank, 3), range(3))})
        others = [pool.submit(train.agree_on_attempt, store, rank, 3) for rank in (1, 2)]
        time.sleep(0.2)
        for rank in (1, 2):  # what a rank 0 wrote that died before all had heard it
            store.set(f"answer to {store.get(f'asked by {rank}').decode()}", "dead")
        time.sleep(0.3)
        names.append({train.agree_on_attempt(store, 0, 3), *(f.result(timeout=20) for f in others)})
    assert [len(name) for name in names] == [1, 1, 1, 1] and len(set.union(*names)) == 4


@pytest.mark.parametrize("slash", ["b/", "b//", "b/.", "./b/", "b"])
def test_a_branch_of_a_folder_with_a_slash_is_beside_it(stage, tmp_path, slash, monkeypatch):
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}", "--stop_at=2")
    monkeypatch.chdir(tmp_path)
    printed = ok("train.py", *stage, f"--out_dir={slash}", "--branch=decay", "--branch_tokens=512")
    assert "checkpoint: b-decay/ckpt.pt" in printed
    assert sorted(os.listdir(tmp_path / "b")) == [".lock", "ckpt.pt", "metrics.jsonl"]


def test_a_branch_of_the_folder_one_is_in_is_beside_it(stage, tmp_path, monkeypatch):
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}", "--stop_at=2")
    monkeypatch.chdir(tmp_path / "b")
    ok("train.py", *stage, "--out_dir=.", "--branch=decay", "--branch_tokens=512")
    assert load_checkpoint(tmp_path / "b-decay/ckpt.pt")["step"] == 1


@pytest.mark.parametrize("n, options, batch", [
    (2, ["--batch_size=2"], "2 processes x 2 accumulated x 2 sequences"),
    (4, [], "4 processes x 1 accumulated x 2 sequences"),
    (2, ["--shard", "--batch_size=2"], "2 processes x 2 accumulated x 2 sequences"),
])  # fmt: skip
def test_one_and_several_processes_agree(stage, tmp_path, n, options, batch):
    ok("train.py", *stage)
    assert batch in together(n, [*stage, f"--out_dir={tmp_path / 'b'}", *options])
    for key in ("loss", "bpb"):
        one, two = metrics(tmp_path / "a", key), metrics(tmp_path / "b", key)
        assert one.keys() == two.keys() and max(abs(one[k] - two[k]) for k in one) < 1e-5 * n
    one, two = (load_checkpoint(tmp_path / folder / "ckpt.pt") for folder in "ab")
    assert one["ledger"]["read"] == two["ledger"]["read"]


@pytest.mark.parametrize(
    "n, options", [(2, []), (4, []), (2, ["--recompute", "--freeze=[0]"]), (4, ["--batch_size=1"])]
)
def test_sharded_is_as_plain(grown_run, tmp_path, n, options):
    """Three heads over two and four processes: shards of unequal sizes, and empty ones."""
    stage, one = grown_run
    if "--freeze=[0]" in options:
        one = tmp_path / "one"
        ok("train.py", *stage, f"--out_dir={one}", "--freeze=[0]")
    together(n, [*stage, f"--out_dir={tmp_path / 'b'}", "--shard", *options])
    for key in ("loss", "bpb", "norm"):
        a, b = metrics(one, key), metrics(tmp_path / "b", key)
        assert a.keys() == b.keys() and max(abs(a[k] - b[k]) for k in a) < 1e-4, (key, a, b)
    for key in ("update_rms", "grad_norm"):
        a, b = metrics(one, key), metrics(tmp_path / "b", key)
        assert np.allclose([a[k] for k in a], [b[k] for k in a], rtol=0.01), key
    assert os.path.isdir(tmp_path / "b/ckpt.pt") and near(weights(one), weights(tmp_path / "b"), 1e-4)
    a, b = load_checkpoint(one / "ckpt.pt"), load_checkpoint(tmp_path / "b/ckpt.pt")
    assert a.keys() == b.keys() and all(a[key] == b[key] for key in ("config", "step", "branch"))
    assert a["ledger"]["read"] == b["ledger"]["read"]
    assert torch.equal(a["tokenizer"]["model"], b["tokenizer"]["model"])


def test_gradient_norms_by_generation(grown_run, tmp_path):
    """They are those of the gradients, add up to the norm of all, and are those before clipping."""
    stage, one = grown_run
    ok("train.py", *stage, f"--out_dir={tmp_path / 'b'}", "--grad_clip=1e-3", "--stop_at=2")
    for folder in (one, tmp_path / "b"):
        for step, norm in metrics(folder, "norm").items():
            assert math.hypot(*metrics(folder, "grad_norm")[step]) == pytest.approx(norm, rel=1e-5)
    assert metrics(tmp_path / "b", "grad_norm")[1] == pytest.approx(metrics(one, "grad_norm")[1], rel=1e-4)
    ckpt = load_checkpoint(one / "ckpt.pt")
    model = build_model(ckpt)
    optimizer = model.optimizer(0.0)
    load_state(model, optimizer, ckpt)
    tokens = TOKENS[:, :25] % model.cfg.vocab_size
    model(tokens[:, :-1], tokens[:, 1:]).backward()
    optimizer.step()
    expected = [0.0, 0.0]
    for tensor in model.growables().values():
        for (g, _, _), p in zip(tensor.plan, tensor):
            expected[g] += p.grad.double().square().sum().item()
    assert train.squares(optimizer, 2)[0].tolist() == pytest.approx(expected, rel=1e-5)


def test_resume_on_another_number_of_processes(grown_run, tmp_path):
    """2 sharded -> 4 sharded -> 1 -> 2 not sharded -> 2 sharded: each goes on where the one before
    stopped."""
    stage, one = grown_run
    stage = [*stage, f"--out_dir={tmp_path / 'b'}"]
    runs = [(2, ["--shard"]), (4, ["--shard"]), (1, []), (2, []), (2, ["--shard"])]
    for i, (n, options) in enumerate(runs):
        resume = ["--resume"] if i else []
        together(n, [*stage, *options, *resume, f"--stop_at={2 * i + 2}"])
        assert os.path.isdir(tmp_path / "b/ckpt.pt") == bool(options)
    ok("train.py", *stage, "--resume")
    a, b = metrics(one, "loss"), metrics(tmp_path / "b", "loss")
    assert list(a) == list(b) and max(abs(a[k] - b[k]) for k in a) < 1e-4
    assert near(weights(one), weights(tmp_path / "b"), 1e-4)


@pytest.mark.parametrize("options", [["--shard"], []])
def test_torchrun_goes_on_by_itself_when_a_process_is_killed(grown_run, tmp_path, options):
    stage, one = grown_run
    stage = [*stage, f"--out_dir={tmp_path / 'b'}", *options, "--save_interval=3"]
    (tmp_path / "killed.py").write_text("""
import os, train
rates, calls = train.rates, []
def killed(*args, **how):
    calls.append(args)
    if len(calls) == 6 and (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        os.kill(os.getpid(), 9)
    return rates(*args, **how)
train.rates = killed
train.main()
""")
    done = torchrun(2, stage, "--max-restarts=1", script=tmp_path / "killed.py")
    assert done.returncode == 0 and "resumed at step 3" in done.stdout, done.stderr
    a, b = metrics(one, "loss"), metrics(tmp_path / "b", "loss")
    assert list(a) == list(b) and max(abs(a[k] - b[k]) for k in a) < 1e-4


def test_sigterm_to_torchrun_saves(grown_run, tmp_path):
    stage, _ = grown_run
    long = ["--max_steps=100000", "--eval_interval=0", "--horizon_tokens=0"]
    stage = [*stage, f"--out_dir={tmp_path / 'b'}", "--shard", *long]
    with torchrun(2, stage, popen=subprocess.Popen) as p:
        while "step 3/" not in p.stdout.readline():
            assert p.poll() is None, p.stderr.read()
        p.send_signal(signal.SIGTERM)
        assert "go on with --resume" in p.stdout.read()
    assert load_checkpoint(tmp_path / "b/ckpt.pt")["step"] >= 3
