"""
Try what goes wrong while a model is trained and grown: kills, damaged and hostile files, full and read-only
disks, two runs at once. Print a table of what came of it.

$ python runs/reliability.py                # all of it, with 100 kills
$ python runs/reliability.py --kills 10

A refusal must be one line that says what is wrong, an exit status that is not 0, and every file as it was. A
killed training must go on to the same parameters, to the bit, as one that was not. What is otherwise stops
this script. It makes its own text in a temporary folder. It runs the scripts as they are, in processes forked
from one that has imported torch, since these start fast.
"""

import argparse
import collections
import contextlib
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import sentencepiece
import torch

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), ".."))
from checkpoint import load_checkpoint, lock
from data import file_sha256

ROOT = sys.path[0]
TRAIN = {  # a model so small that it is saved many times a second
    "n_layer": 1, "n_head": 2, "n_embd": 16, "head_dim": 8, "block_size": 32,
    "tokens_per_step": 64, "batch_size": 2, "max_steps": 400, "warmup_tokens": 640,
    "save_interval": 1, "eval_interval": 100, "eval_tokens": 512, "log_interval": 1,
    "compile": False, "device": "cpu",
}  # fmt: skip
WORDS = "Ann Ben Cleo Dan Eve sees takes likes wants gives the ball cat dog egg fish hat".split()

# -----------------------------------------------------------------------------
# running the scripts


def work(script, args, out, errors, cwd, env, file_size):
    """Run a script as its command line would, in a process of its own. What it prints goes to the end of the
    files out and errors.

    file_size: the most bytes that it may write into a file; 0: any."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in ((1, out), (2, errors)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout.reconfigure(line_buffering=True)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.argv = [script, *map(str, args)]
    runpy.run_path(os.path.join(ROOT, script), run_name="__main__")


def start(script, *args, log, errors=None, cwd=None, env=None, file_size=0):
    """Start a script, and return its process. log: the file for what it prints; errors: one for its errors,
    by default the same."""
    where = (str(log), str(errors or log), str(cwd or os.getcwd()), dict(env or os.environ))
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=work, args=(script, args, *where, file_size))
    process.start()
    return process


def run(script, *args, **limits):
    """Run a script. Return (its one-line error or '', what it printed). Raise AssertionError if its error has
    more lines."""
    with tempfile.NamedTemporaryFile("r") as log:
        process = start(script, *args, log=log.name, **limits)
        process.join()
        printed = log.read()
    last = printed.splitlines()[-1] if process.exitcode else ""
    assert not process.exitcode or last.startswith(f"{script}: ") and "Traceback" not in printed, printed
    return last.removeprefix(f"{script}: "), printed


def ok(script, *args):
    """Run a script that must succeed, and return what it printed."""
    error, printed = run(script, *args)
    assert not error, error
    return printed


# -----------------------------------------------------------------------------
# what is tried on files: each function yields (case, what was done, what the user sees, what is left). The
# tests call them, too

SAME = "all as it was"


def files(folder):
    """Return {path: bytes} of all that is in a folder, but locks."""
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    return {path: open(path, "rb").read() for path in paths if os.path.basename(path) != ".lock"}


def refused(folder, run, commands, message, **limits):
    """Run commands that must each fail with one line, in which `message` is, and change nothing. Return the
    first one's line."""
    before, errors = files(folder), []
    for command in commands:
        error, _ = run(*command, **limits)
        assert error and message in error, f"{command}: expected '... {message} ...', not '{error}'"
        errors.append(error)
    after = files(folder)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
    assert not changed, changed
    return f"`{errors[0].replace(f'{folder}/', '')}`"


def prepare_command(folder, out):
    """Return the command that prepares the folder's text."""
    tokenizer = ("--tokenizer", f"{folder}/t.model", "--val", 0.2, "--workers", 1)
    return "prepare.py", "--input", f"{folder}/text.txt", *tokenizer, "--out", out


def setup(folder, ok):
    """Write into a folder: text, prepared in d, a stage's config, a checkpoint of four of its steps in a, and
    grown.pt. Return the config's path."""
    rng = random.Random(0)
    docs = [" ".join(rng.choices(WORDS, k=rng.randint(20, 200))) for _ in range(400)]
    with open(f"{folder}/text.txt", "w") as f:
        f.write("\n<|doc|>\n".join(docs))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(docs),
        model_prefix=f"{folder}/t",
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",  # it keeps the text as it is: prepare.py takes no other
        remove_extra_whitespaces=False,
        vocab_size=300,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    ok(*prepare_command(folder, f"{folder}/d"))
    config = f"{folder}/stage.py"
    settings = TRAIN | {"data": f"{folder}/d", "out_dir": f"{folder}/a"}
    with open(config, "w") as f:
        f.writelines(f"{key} = {value!r}\n" for key, value in settings.items())
    ok("train.py", config, "--stop_at=4")
    ok("grow.py", "--in", f"{folder}/a/ckpt.pt", "--double", "width", "--out", f"{folder}/grown.pt")
    return config


def readers(folder, config, path):
    """Return the commands that read a checkpoint."""
    return [
        ("train.py", config, f"--init_from={path}", f"--out_dir={folder}/new"),
        ("grow.py", "--in", path, "--double", "width", "--out", f"{folder}/new.pt"),
        ("sample.py", "--in", path, "--tokens", 1, "--device", "cpu"),
        ("export.py", "--in", path, "--out", f"{folder}/new_hf"),
    ]


def content(ckpt):
    """Return a checkpoint as plain values, which == compares."""
    if isinstance(ckpt, torch.Tensor):
        return str(ckpt.dtype), list(ckpt.shape), ckpt.numpy().tobytes()
    if isinstance(ckpt, list):
        ckpt = dict(enumerate(ckpt))
    if isinstance(ckpt, dict):
        return {key: content(x) for key, x in ckpt.items()}
    return ckpt


def flip(path, n, seed=0):
    """Load the checkpoint at path, a file or a folder, n times, each time with another bit flipped. Return
    (how often that was noticed, how often it changed nothing that is read). Raise AssertionError if something
    else was read."""
    whole, rng, seen = content(load_checkpoint(path)), random.Random(seed), collections.Counter()
    if os.path.isdir(path):
        os.remove(f"{path}/whole.pt")
    originals = sorted(files(path).items()) or [(path, open(path, "rb").read())]
    for i in range(n):
        name, data = originals[i % len(originals)]
        at = rng.randrange(8 * len(data))
        with open(name, "r+b") as f:
            f.seek(at // 8)
            f.write(bytes([data[at // 8] ^ 1 << at % 8]))
        try:
            same = content(load_checkpoint(path)) == whole
            assert same, f"{name}: bit {at} was flipped, and it was not noticed"
            seen["harmless"] += 1
        except ValueError as e:
            assert "\n" not in str(e)
            seen["noticed"] += 1
        with open(name, "r+b") as f:
            f.write(data)
        if os.path.isdir(path) and os.path.exists(f"{path}/whole.pt"):
            os.remove(f"{path}/whole.pt")
    return seen["noticed"], seen["harmless"]


class Evil:
    """An object that makes a folder when it is unpickled by a loader that trusts what it reads."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damaged_checkpoints(folder, config, run, n_flips=300):
    """Try cut, flipped, foreign and hostile checkpoints on all that read one."""
    path, bad, evil = f"{folder}/a/ckpt.pt", f"{folder}/bad.pt", f"{folder}/evil"
    data = open(path, "rb").read()

    def written(content):
        with open(bad, "wb") as f:
            f.write(content)
        return readers(folder, config, bad)

    for n in (0, 1, 100, len(data) // 2, len(data) - 1):
        saw = refused(folder, run, written(data[:n]), "bad.pt: truncated, or not a checkpoint")
    yield "truncated checkpoint", f"cut to 0, 1, 100, half and all but one of {len(data):,} bytes", saw, SAME

    ckpt = load_checkpoint(path)
    at = data.index(ckpt["model"]["wte.0"].numpy().tobytes()) + 9
    commands = written(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    saw = refused(folder, run, commands, "bad.pt: damaged: ")
    noticed, harmless = map(sum, zip(*(flip(p, n_flips // 2) for p in (path, f"{folder}/grown.pt"))))
    did = f"{noticed + harmless} times another bit of a checkpoint, trained or grown"
    left = f"{noticed} noticed, {harmless} in padding and unread fields: what is read is the same"
    yield "flipped bit", did, saw, left

    foreign = [{"model": {}}, dict(ckpt["model"]), [1]]
    foreign += [ckpt | {"config": 3}, ckpt | {"config": {"n_layer": "2"}}]
    for other in foreign:
        torch.save(other, bad)
        saw = refused(folder, run, readers(folder, config, bad), "bad.pt: not a Babel checkpoint")
    refused(folder, run, written(json.dumps([1, 2]).encode()), "bad.pt: truncated, or not a checkpoint")
    did = "other dicts, a state dict, a list, a config of other types, JSON"
    yield "foreign checkpoint", did, saw, SAME

    refused(folder, run, written(pickle.dumps(Evil(evil))), "bad.pt: truncated, or not a checkpoint")
    torch.save(ckpt | {"lineage": [Evil(evil)]}, bad)
    message = "bad.pt: not loaded, since it holds more than tensors"
    saw = refused(folder, run, readers(folder, config, bad), message)
    assert not os.path.exists(evil)
    did = "a pickle that makes a folder when it is loaded, bare and inside a right checkpoint"
    yield "hostile checkpoint", did, saw, "no code ran"
    os.remove(bad)


def damaged_data(folder, config, run):
    """Try damaged and exchanged files of a prepared folder on train.py."""
    new = ("train.py", config, f"--out_dir={folder}/new")
    again = ("train.py", config, f"--out_dir={folder}/a", "--resume", "--max_steps=500")

    def tried(name, change, commands, message):
        path = f"{folder}/d/{name}"
        data = open(path, "rb").read()
        with open(path, "wb") as f:
            f.write(change(data))
        saw = refused(folder, run, commands, message)
        with open(path, "wb") as f:
            f.write(data)
        return saw

    def flipped(data):
        return data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]

    def cut(data):
        return data[:-2]

    # the tokens
    saw = tried("train.bin", cut, [new, again], "train.bin: ")
    yield "truncated shard", "train.bin without its last token; a start and a resumption", saw, SAME
    message = "damaged: its sha256 is not that of meta.json"
    saw = tried("train.bin", flipped, [new], f"train.bin: {message}")
    did = "one bit of train.bin; a start (`--check_data`, which resuming leaves out)"
    yield "corrupted shard", did, saw, SAME
    saw = tried("val.bin", flipped, [new, again], f"val.bin: {message}")
    yield "corrupted shard", "one bit of val.bin; a start and a resumption", saw, SAME
    message = "train.bin: damaged: token 65535, where there are "
    saw = tried("train.bin", lambda data: b"\xff" * len(data), [again], message)
    yield "corrupted shard", "token ids that do not exist in train.bin; a resumption", saw, SAME

    # what lies beside them
    saw = tried("token_bytes.bin", cut, [new, again], "token_bytes.bin: ")
    yield "damaged folder", "token_bytes.bin without its last entry", saw, SAME
    for change in (lambda data: data[:99], lambda data: b"[]", lambda data: b'{"a": 1}', lambda data: b""):
        saw = tried("meta.json", change, [new, again], "meta.json: damaged, or not what prepare.py wrote")
    yield "damaged folder", "meta.json cut, empty, and of something else", saw, SAME
    message = "tokenizer.model: not the one that the text was"
    saw = tried("tokenizer.model", lambda data: data + b"x", [new, again], message)
    yield "tokenizer swapped after preparing", "another tokenizer.model in the folder", saw, SAME

    # a folder that is whole, but not the model's
    shutil.copytree(f"{folder}/d", f"{folder}/e")
    with open(f"{folder}/e/tokenizer.model", "ab") as f:
        f.write(b"x")
    with open(f"{folder}/e/meta.json", "r+") as f:
        meta = json.load(f)
        meta["tokenizer"] |= {"name": "other", "sha256": file_sha256(f"{folder}/e/tokenizer.model")}
        f.seek(0)
        json.dump(meta, f)
        f.truncate()
    saw = refused(folder, run, [(*again, f"--data={folder}/e")], "has the tokenizer other, not the one that")
    did = "`--resume --data` of a folder prepared with another"
    yield "another tokenizer than the model's", did, saw, SAME
    shutil.rmtree(f"{folder}/e")


def damaged_safetensors(folder, config, run):
    """Try cut and hostile safetensors files on export.py --from. folder/hf is a model that it wrote."""
    path = f"{folder}/hf/model.safetensors"
    data = open(path, "rb").read()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    name = next(name for name in header if name != "__metadata__")
    evil = f"{folder}/evil"

    def with_header(header):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + int.from_bytes(data[:8], "little") :]

    def changed(**entry):
        return with_header(header | {name: header[name] | entry})

    def tried(contents):
        command = ("export.py", "--from", f"{folder}/hf", "--out", f"{folder}/new.pt")
        for content in contents:
            with open(path, "wb") as f:
                f.write(content)
            saw = refused(folder, run, [command], "")
        with open(path, "wb") as f:
            f.write(data)
        return saw

    saw = tried(data[:n] for n in (0, 7, 100, len(data) // 2, len(data) - 1))
    yield "truncated safetensors", "cut to 0, 7, 100, half and all but one of its bytes", saw, SAME
    begin, end = header[name]["data_offsets"]
    bad = [b"\xff" * 8 + data[8:], with_header(b"[1, 2"), with_header({})]
    bad += [changed(data_offsets=[begin, 10**15]), changed(data_offsets=[-end, end])]
    bad += [changed(shape=[2**40, 2**40]), changed(dtype="X7")]
    bad += [with_header({key: x for key, x in header.items() if key != name}), pickle.dumps(Evil(evil))]
    saw = tried(bad)
    assert not os.path.exists(evil)
    did = "sizes, offsets, shapes and dtypes that are not so; a pickle by that name"
    yield "hostile safetensors", did, saw, "no code ran"


# -----------------------------------------------------------------------------
# what is tried on running processes


def steps(folder):
    """Return the last step whose loss is in the folder's metrics.jsonl, 0 if none. The last line may be
    cut."""
    if not os.path.exists(f"{folder}/metrics.jsonl"):
        return 0
    with open(f"{folder}/metrics.jsonl") as f:
        lines = [json.loads(line) for line in f if line.endswith("\n") and '"loss"' in line]
    return max((line["step"] for line in lines), default=0)


def newest(folder):
    """Return the checkpoint that --resume takes, None if there is none."""
    paths = [path for path in (f"{folder}/ckpt.pt", f"{folder}/ckpt.prev.pt") if os.path.exists(path)]
    return paths[0] if paths else None


def check_killed(out, last, began):
    """Check the folder of a run that was killed: it has a complete checkpoint, at most one step behind the
    log, and not behind the one of step `last` that was there after the kill before.

    Return (the checkpoint's step, where in a save the kill came, or ""). The save is one of the process that
    began at `began`."""
    path = newest(out)
    assert path or last == 0 and steps(out) <= 1, f"{out}: no checkpoint after step {steps(out)}"
    step, logged = load_checkpoint(path)["step"] if path else 0, steps(out)
    assert step >= max(last, logged - 1), f"{out}: the checkpoint is of step {step}, but {logged} are logged"
    written = (f"{out}/ckpt.prev.pt", f"{out}/ckpt.pt.tmp")
    prev, aside = (os.path.exists(p) and os.stat(p).st_ctime > began for p in written)
    if prev and "prev" in path:
        return step, "between the renames"
    return step, "in the writing" if aside else ""


def check_end(out, whole):
    """Check that a run which was killed ended as the one in the folder `whole`, which was not, and left
    nothing else."""
    a, b = (content(load_checkpoint(f"{folder}/ckpt.pt")) for folder in (whole, out))
    for ckpt in (a, b):  # what may differ; 'branch' means nothing where there is none
        del ckpt["settings"]["out_dir"], ckpt["settings"]["resume"], ckpt["ledger"]["seconds"], ckpt["branch"]
    assert a == b, f"{out} and {whole} are not the same"
    logs = (map(json.loads, open(f"{folder}/metrics.jsonl")) for folder in (whole, out))
    a, b = ([(line["step"], line["loss"], line["norm"]) for line in log if "loss" in line] for log in logs)
    assert a == b, f"{out}: other losses than those of {whole}"
    assert set(os.listdir(out)) == set(os.listdir(whole)), os.listdir(out)


def kills(folder, config, n, seed=0):
    """Kill training at random moments, and resume it, until it was killed n times, in as many runs as that
    takes."""
    ok("train.py", config, f"--out_dir={folder}/whole")
    rng, killed, runs, where = random.Random(seed), 0, 0, collections.Counter()
    while killed < n:
        out, last, done = f"{folder}/killed{runs}", 0, False
        while not done:
            args = [config, f"--out_dir={out}", *(["--resume"] if newest(out) else [])]
            open(f"{folder}/log", "w").close()
            began, in_loop = time.time(), rng.random() < 0.8
            process = start("train.py", *args, log=f"{folder}/log")
            while in_loop and process.is_alive() and "tokens/s" not in open(f"{folder}/log").read():
                time.sleep(0.005)  # most are killed in the loop, the rest from the start on
            process.join(rng.uniform(0, 0.5 if in_loop else 1.5) if killed < n else None)
            process.kill()
            process.join()
            done = process.exitcode == 0
            assert done or process.exitcode == -signal.SIGKILL, open(f"{folder}/log").read()
            if not done:
                killed += 1
                last, moment = check_killed(out, last, began)
                where[moment] += 1
        check_end(out, f"{folder}/whole")
        runs += 1
    did = f"{runs} runs of {TRAIN['max_steps']} steps that save at each; `--resume` after each kill"
    writing, renames = where["in the writing"], where["between the renames"]
    when = f"{writing} came in the writing of a checkpoint, {renames} between its renames"
    left = "always a complete checkpoint, at most a step behind the log; "
    left += "at the end all is as without a kill, to the bit"
    yield f"{n} x SIGKILL of training", did, when, left


def torchrun(log, config, *args, restarts=0):
    """Start train.py in two processes under torchrun, and return torchrun's process."""
    options = ["--nproc_per_node=2", "--standalone", f"--max-restarts={restarts}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, f"{ROOT}/train.py", config, *args]
    return subprocess.Popen(command, stdout=log, stderr=log)


def kills_of_torchrun(folder, config, n, *options, seed=0):
    """Kill one of two processes at random moments, n times. torchrun starts them again."""
    sharded = "--shard" in options
    name = "sharded" if sharded else "plain"
    options = (*options, "--max_steps=200")
    out, whole, rng = f"{folder}/{name}", f"{folder}/{name}_whole", random.Random(seed)
    left = sorted(rng.sample(range(190), n))  # the steps at which a kill is due
    with open(f"{folder}/log", "w") as log:
        assert torchrun(log, config, f"--out_dir={whole}", *options).wait() == 0, open(log.name).read()
        process = torchrun(log, config, f"--out_dir={out}", *options, restarts=n)
        while process.poll() is None:
            time.sleep(rng.uniform(0, 0.05))
            found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True)
            children = found.stdout.split()
            if left and len(children) == 2 and steps(out) >= left[0]:
                del left[0]
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(rng.choice(children)), signal.SIGKILL)
                while children and os.path.exists(f"/proc/{children[0]}"):  # torchrun ends the other
                    time.sleep(0.05)
        assert process.returncode == 0 and not left, open(log.name).read()
    check_end(out, whole)
    if sharded:
        noticed, harmless = flip(f"{out}/ckpt.pt", 300)
        did = f"{noticed + harmless} times, of all files in turn"
        unread = f"{noticed} noticed, {harmless} in padding and unread fields: what is read is the same"
        yield "flipped bit, sharded", did, "a line as below", unread
    case = f"{n} x SIGKILL of one of two processes" + (", sharded" if sharded else "")
    did, ended = f"one run under `torchrun --max-restarts={n}`", "at the end all is as without, to the bit"
    yield case, did, "torchrun's report of each", ended


@contextlib.contextmanager
def disk(path, size):
    """Mount a file system of so many bytes in memory. The context is whether that worked, as it does for
    root."""
    os.mkdir(path)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path]
    mounted = not subprocess.run(command, capture_output=True).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", path], check=True)


def full_disk(folder, config):
    """Try a disk with room for half a checkpoint, if one can be mounted. Else no file may be larger, which
    fails alike."""
    out, half = f"{folder}/disk", os.path.getsize(f"{folder}/a/ckpt.pt") // 2
    size = sum(len(data) + 4096 for data in files(f"{folder}/a").values()) + half
    quiet = ("--log_interval=1000", "--eval_interval=0")
    commands = [
        ("train.py", config, f"--out_dir={out}/a", "--resume", *quiet),
        ("grow.py", "--in", f"{folder}/a/ckpt.pt", "--double", "width", "--out", f"{out}/new.pt"),
        ("export.py", "--in", f"{folder}/grown.pt", "--out", f"{out}/hf"),
    ]
    with disk(out, size) as mounted:
        shutil.copytree(f"{folder}/a", f"{out}/a")
        limits, where = {}, "a tmpfs with room for half a checkpoint"
        if not mounted:
            limits, where = {"file_size": half}, "no file may be larger than half a checkpoint"
        for command in commands:
            saw = refused(folder, run, [command], "can't be written", **limits)
            yield "full disk", f"`{command[0]}`, {where}", saw, SAME


def read_only(folder, config):
    """Try a folder that can't be written, by its mode. A mode does not keep root out: root gets a disk,
    mounted read-only."""
    out, root, closed = f"{folder}/ro", os.geteuid() == 0, []
    with contextlib.ExitStack() as stack:
        if not root:
            os.mkdir(out)
        elif not stack.enter_context(disk(out, 2**24)):
            why = "root writes into any, and can mount none here"
            return print(f"not tried: a read-only folder; {why}", file=sys.stderr)
        shutil.copytree(f"{folder}/a", f"{out}/a")
        if root:
            subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        else:
            closed = [f"{out}/a", out]
        for path in closed:
            os.chmod(path, 0o555)
        for command in [
            ("train.py", config, f"--out_dir={out}/a", "--resume"),
            ("train.py", config, f"--out_dir={out}/new"),
            ("grow.py", "--in", f"{folder}/a/ckpt.pt", "--double", "width", "--out", f"{out}/new.pt"),
            ("export.py", "--in", f"{folder}/a/ckpt.pt", "--out", f"{out}/hf"),
            prepare_command(folder, f"{out}/d"),
        ]:
            saw = refused(folder, run, [command], "Read-only" if root else "Permission denied")
            did = f"`{command[0]}`" + (", `--resume`" if "--resume" in command else "")
            yield "read-only folder", did, saw, SAME
        for path in reversed(closed):
            os.chmod(path, 0o755)


def two_at_once(folder, config):
    """Try a second run into the folder of one that trains, and grow.py twice into one file. The first goes
    on as if nothing had been."""
    out, log = f"{folder}/two", f"{folder}/log"
    first = start("train.py", config, f"--out_dir={out}", log=log)
    while steps(out) < 3:
        time.sleep(0.01)
    saw = [run("train.py", config, f"--out_dir={out}", *args)[0] for args in (["--resume"], [], ["--seed=2"])]
    assert all(".lock is locked: another process writes there" in error for error in saw), saw
    assert first.is_alive(), open(log).read()
    first.join()
    assert first.exitcode == 0, open(log).read()
    check_end(out, f"{folder}/whole")
    did, saw = "a second `train.py`, with `--resume` and without, while one trains", saw[0]
    left = "the first ends as one alone, to the bit"
    yield "two runs into one folder", did, f"`{saw.replace(f'{folder}/', '')}`", left

    # under torchrun
    os.mkdir(f"{folder}/held")
    with lock(f"{folder}/held/.lock"), open(log, "w+") as printed:
        assert torchrun(printed, config, f"--out_dir={folder}/held").wait(120) != 0
        printed.seek(0)
        saw = re.search("train.py: (.*locked.*)", printed.read())[1].replace(f"{folder}/", "")
    assert os.listdir(f"{folder}/held") == [".lock"]
    did, saw = "the second under torchrun, 2 processes", f"`{saw}`, in torchrun's report; both end"
    yield "two runs into one folder", did, saw, SAME

    # grow.py
    args = ["grow.py", "--in", f"{folder}/a/ckpt.pt", "--double", "width", "--out", f"{folder}/new.pt"]
    both = [start(*args, log=f"{log}{i}") for i in range(2)]
    for process in both:
        process.join()
    printed = [open(f"{log}{i}").read() for i in range(2)]
    assert sorted(process.exitcode for process in both) == [0, 1], printed
    loser = printed[both[0].exitcode == 0]
    assert "is locked" in loser or "exists: --force" in loser, loser
    content(load_checkpoint(f"{folder}/new.pt"))
    assert not [name for name in os.listdir(folder) if ".tmp" in name]
    os.remove(f"{folder}/new.pt")
    saw = loser.strip().removeprefix("grow.py: ").replace(f"{folder}/", "")
    did, left = "`grow.py` twice at the same time", "the file of one of them, complete"
    yield "two runs into one file", did, f"`{saw}`", left


# -----------------------------------------------------------------------------


def main():
    p = argparse.ArgumentParser(description="Try what goes wrong, and print a table of what came of it.")
    n_kills = "of training; twice a 20th as many under torchrun (default: 100)"
    p.add_argument("--kills", type=int, default=100, help=n_kills)
    p.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = p.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "grow", "export"])
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        config = setup(folder, ok)
        ok("export.py", "--in", f"{folder}/a/ckpt.pt", "--out", f"{folder}/hf")
        print("| case | what was done | what the user sees | what is left |\n|---|---|---|---|")
        few = -(-args.kills // 20)
        for case in [
            kills(folder, config, args.kills, args.seed),
            kills_of_torchrun(folder, config, few, seed=args.seed),
            kills_of_torchrun(folder, config, few, "--shard", seed=args.seed),
            damaged_checkpoints(folder, config, run),
            damaged_data(folder, config, run),
            damaged_safetensors(folder, config, run),
            full_disk(folder, config),
            read_only(folder, config),
            two_at_once(folder, config),
        ]:
            for row in case:
                print("| " + " | ".join(row) + " |", flush=True)
        print(f"\nin {(time.time() - begun) / 60:.1f} minutes, seed {args.seed}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
