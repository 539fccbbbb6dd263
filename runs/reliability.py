"""
What goes wrong while a model is trained and grown, tried: kills, damaged and hostile files, full and
read-only disks, two runs at once. Prints the README's table.

$ python runs/reliability.py                # all of it, with 100 kills
$ python runs/reliability.py --kills 10

A refusal must be one line that says what is wrong, an exit status that is not 0, and every file as it was. A
killed training must go on to the same parameters, to the bit, as one that was not. What is otherwise stops
this script. It makes its own text in a temporary folder, and runs the scripts as they are, in processes
forked from one that has imported torch: they start fast.
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
from checkpoint import load_checkpoint, lock, sha256

ROOT = sys.path[0]
TRAIN = {  # a model so small that it is saved many times a second
    "n_layer": 1, "n_head": 2, "n_embd": 16, "head_dim": 8, "block_size": 32, "tokens_per_step": 64, "batch_size": 2,
    "max_steps": 400, "warmup_tokens": 640, "save_interval": 1, "eval_interval": 100, "eval_tokens": 512, "log_interval": 1,
    "compile": False, "device": "cpu",
}  # fmt: skip
WORDS = "Ann Ben Cleo Dan Eve sees takes likes wants gives the ball cat dog egg fish hat".split()

# -----------------------------------------------------------------------------
# running the scripts


def work(script, args, log, file_size):
    """In a process of its own: the script as its command line would run it, what it prints into a file."""
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(fd, 1), os.dup2(fd, 2)
    sys.stdout.reconfigure(line_buffering=True)
    if file_size:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    sys.argv = [script, *map(str, args)]
    runpy.run_path(os.path.join(ROOT, script), run_name="__main__")


def start(script, *args, log, file_size=0):
    process = multiprocessing.get_context("forkserver").Process(
        target=work, args=(script, args, str(log), file_size)
    )
    process.start()
    return process


def run(script, *args, **limits):
    """-> (its one-line error or '', what it printed). AssertionError for an error of more lines."""
    with tempfile.NamedTemporaryFile("r") as log:
        process = start(script, *args, log=log.name, **limits)
        process.join()
        printed = log.read()
    last = printed.splitlines()[-1] if process.exitcode else ""
    assert not process.exitcode or last.startswith(f"{script}: ") and "Traceback" not in printed, printed
    return last.removeprefix(f"{script}: "), printed


def ok(script, *args):
    error, printed = run(script, *args)
    assert not error, error
    return printed


# -----------------------------------------------------------------------------
# what is tried on files: each function yields (case, what was done, what the user sees, what is left). The
# tests call them, too


def files(folder):
    """{path: bytes} of all that is in a folder."""
    paths = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    return {path: open(path, "rb").read() for path in paths if os.path.basename(path) != ".lock"}


def refused(folder, run, commands, message, **limits):
    """Runs commands that must each fail with one line, in which `message` is, and change nothing -> the first
    one's line."""
    before, errors = files(folder), []
    for command in commands:
        error, _ = run(*command, **limits)
        assert error and message in error, f"{command}: expected '... {message} ...', not '{error}'"
        errors.append(error)
    after = files(folder)
    assert before == after, {
        path for path in before.keys() | after.keys() if before.get(path) != after.get(path)
    }
    return f"`{errors[0].replace(f'{folder}/', '')}`"


def prepare_command(folder, out):
    tokenizer = ("--tokenizer", f"{folder}/t.model", "--val", 0.2, "--workers", 1)
    return "prepare.py", "--input", f"{folder}/text.txt", *tokenizer, "--out", out


def setup(folder, ok):
    """In a folder with text prepared in d: a stage's config, whose path is returned, a checkpoint of four of
    its steps in a, and grown.pt."""
    config = f"{folder}/stage.py"
    with open(config, "w") as f:
        f.writelines(
            f"{key} = {value!r}\n"
            for key, value in (TRAIN | {"data": f"{folder}/d", "out_dir": f"{folder}/a"}).items()
        )
    ok("train.py", config, "--stop_at=4")
    ok("grow.py", "--in", f"{folder}/a/ckpt.pt", "--double", "width", "--out", f"{folder}/grown.pt")
    return config


def readers(folder, config, path):
    """The commands that read a checkpoint."""
    return [
        ("train.py", config, f"--init_from={path}", f"--out_dir={folder}/new"),
        ("grow.py", "--in", path, "--double", "width", "--out", f"{folder}/new.pt"),
        ("sample.py", "--in", path, "--tokens", 1, "--device", "cpu"),
        ("export.py", "--in", path, "--out", f"{folder}/new_hf"),
    ]


def content(ckpt):
    """A checkpoint as plain values, which == compares."""
    if isinstance(ckpt, torch.Tensor):
        return str(ckpt.dtype), list(ckpt.shape), ckpt.numpy().tobytes()
    items = ckpt.items() if isinstance(ckpt, dict) else enumerate(ckpt) if isinstance(ckpt, list) else None
    return ckpt if items is None else {key: content(x) for key, x in items}


def flip(path, n, seed=0):
    """Loads the checkpoint at path, a file or a folder, n times, each time with another bit flipped -> (how
    often that was noticed, how often it changed nothing that is read). AssertionError if something else was
    read."""
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
            assert content(load_checkpoint(path)) == whole, (
                f"{name}: bit {at} was flipped, and it was not noticed"
            )
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
    """Unpickled by a loader that trusts what it reads, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def damaged_checkpoints(folder, config, run, n_flips=300):
    path, bad, evil = f"{folder}/a/ckpt.pt", f"{folder}/bad.pt", f"{folder}/evil"
    data = open(path, "rb").read()

    def written(content):
        with open(bad, "wb") as f:
            f.write(content)
        return readers(folder, config, bad)

    for n in (0, 1, 100, len(data) // 2, len(data) - 1):
        saw = refused(folder, run, written(data[:n]), "bad.pt: truncated, or not a checkpoint")
    yield (
        "truncated checkpoint",
        f"cut to 0, 1, 100, half and all but one of {len(data):,} bytes",
        saw,
        "all as it was",
    )
    ckpt = load_checkpoint(path)
    at = data.index(ckpt["model"]["wte.0"].numpy().tobytes()) + 9
    commands = written(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    saw = refused(folder, run, commands, "bad.pt: damaged: ")
    noticed, harmless = map(sum, zip(*(flip(p, n_flips // 2) for p in (path, f"{folder}/grown.pt"))))
    yield ("flipped bit", f"{noticed + harmless} times another bit of a checkpoint, trained or grown", saw,
           f"{noticed} noticed, {harmless} in padding and unread fields: what is read is the same")  # fmt: skip
    for i, foreign in enumerate(
        [{"model": {}}, dict(ckpt["model"]), [1], ckpt | {"config": 3}, ckpt | {"config": {"n_layer": "2"}}]
    ):
        torch.save(foreign, bad)
        saw = refused(folder, run, readers(folder, config, bad), "bad.pt: not a Babel checkpoint")
    refused(folder, run, written(json.dumps([1, 2]).encode()), "bad.pt: truncated, or not a checkpoint")
    yield (
        "foreign checkpoint",
        "other dicts, a state dict, a list, a config of other types, JSON",
        saw,
        "all as it was",
    )
    refused(folder, run, written(pickle.dumps(Evil(evil))), "bad.pt: truncated, or not a checkpoint")
    torch.save(ckpt | {"lineage": [Evil(evil)]}, bad)
    saw = refused(
        folder, run, readers(folder, config, bad), "bad.pt: not loaded, since it holds more than tensors"
    )
    assert not os.path.exists(evil)
    yield (
        "hostile checkpoint",
        "a pickle that makes a folder when it is loaded, bare and inside a right checkpoint",
        saw,
        "no code ran",
    )
    os.remove(bad)


def damaged_data(folder, config, run):
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

    saw = tried("train.bin", lambda data: data[:-2], [new, again], "train.bin: ")
    yield (
        "truncated shard",
        "train.bin without its last token; a start and a resumption",
        saw,
        "all as it was",
    )
    saw = tried("train.bin", flipped, [new], "train.bin: damaged: its sha256 is not that of meta.json")
    yield (
        "corrupted shard",
        "one bit of train.bin; a start (`--check_data`, which resuming leaves out)",
        saw,
        "all as it was",
    )
    saw = tried("val.bin", flipped, [new, again], "val.bin: damaged: its sha256 is not that of meta.json")
    yield "corrupted shard", "one bit of val.bin; a start and a resumption", saw, "all as it was"
    saw = tried(
        "train.bin",
        lambda data: b"\xff" * len(data),
        [again],
        "train.bin: damaged: token 65535, where there are ",
    )
    yield "corrupted shard", "token ids that do not exist in train.bin; a resumption", saw, "all as it was"
    saw = tried("token_bytes.bin", lambda data: data[:-2], [new, again], "token_bytes.bin: ")
    yield "damaged folder", "token_bytes.bin without its last entry", saw, "all as it was"
    for change in (lambda data: data[:99], lambda data: b"[]", lambda data: b'{"a": 1}', lambda data: b""):
        saw = tried("meta.json", change, [new, again], "meta.json: damaged, or not what prepare.py wrote")
    yield "damaged folder", "meta.json cut, empty, and of something else", saw, "all as it was"
    saw = tried(
        "tokenizer.model",
        lambda data: data + b"x",
        [new, again],
        "tokenizer.model: not the one that the text was",
    )
    yield "tokenizer swapped after preparing", "another tokenizer.model in the folder", saw, "all as it was"
    shutil.copytree(f"{folder}/d", f"{folder}/e")
    with open(f"{folder}/e/tokenizer.model", "ab") as f:
        f.write(b"x")
    with open(f"{folder}/e/meta.json", "r+") as f:
        meta = json.load(f)
        meta["tokenizer"] |= {"name": "other", "sha256": sha256(f"{folder}/e/tokenizer.model")}
        f.seek(0)
        json.dump(meta, f)
        f.truncate()
    saw = refused(folder, run, [(*again, f"--data={folder}/e")], "has the tokenizer other, not the one that")
    yield (
        "another tokenizer than the model's",
        "`--resume --data` of a folder prepared with another",
        saw,
        "all as it was",
    )
    shutil.rmtree(f"{folder}/e")


def damaged_safetensors(folder, config, run):
    """folder/hf is a model that export.py wrote."""
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
        for content in contents:
            with open(path, "wb") as f:
                f.write(content)
            saw = refused(
                folder, run, [("export.py", "--from", f"{folder}/hf", "--out", f"{folder}/new.pt")], ""
            )
        with open(path, "wb") as f:
            f.write(data)
        return saw

    yield ("truncated safetensors", "cut to 0, 7, 100, half and all but one of its bytes",
           tried(data[:n] for n in (0, 7, 100, len(data) // 2, len(data) - 1)), "all as it was")  # fmt: skip
    begin, end = header[name]["data_offsets"]
    bad = [
        b"\xff" * 8 + data[8:],
        with_header(b"[1, 2"),
        with_header({}),
        changed(data_offsets=[begin, 10**15]),
    ]
    bad += [changed(data_offsets=[-end, end]), changed(shape=[2**40, 2**40]), changed(dtype="X7")]
    bad += [with_header({key: x for key, x in header.items() if key != name}), pickle.dumps(Evil(evil))]
    saw = tried(bad)
    assert not os.path.exists(evil)
    yield (
        "hostile safetensors",
        "sizes, offsets, shapes and dtypes that are not so; a pickle by that name",
        saw,
        "no code ran",
    )


# -----------------------------------------------------------------------------
# what is tried on running processes


def steps(folder):
    """The last step that metrics.jsonl in a folder has the loss of, 0 if none; the last line may be cut."""
    if not os.path.exists(f"{folder}/metrics.jsonl"):
        return 0
    with open(f"{folder}/metrics.jsonl") as f:
        return max(
            (json.loads(line)["step"] for line in f if line.endswith("\n") and '"loss"' in line), default=0
        )


def newest(folder):
    """The checkpoint that --resume takes, None if there is none."""
    paths = [path for path in (f"{folder}/ckpt.pt", f"{folder}/ckpt.prev.pt") if os.path.exists(path)]
    return paths[0] if paths else None


def check_killed(out, last, began):
    """Of the folder of a run that was killed: it has a complete checkpoint, at most one step behind the log,
    and not behind the one of step `last` that was there after the kill before -> (its step, where in a save
    of the process that began then the kill came, if in one)."""
    path = newest(out)
    assert path or last == 0 and steps(out) <= 1, f"{out}: no checkpoint after step {steps(out)}"
    step = load_checkpoint(path)["step"] if path else 0
    assert step >= max(last, steps(out) - 1), (
        f"{out}: the checkpoint is of step {step}, but {steps(out)} are logged"
    )
    prev, aside = (
        os.path.exists(p) and os.stat(p).st_ctime > began
        for p in (f"{out}/ckpt.prev.pt", f"{out}/ckpt.pt.tmp")
    )
    return step, "between the renames" if prev and "prev" in path else "in the writing" if aside else ""


def check_end(out, whole):
    """That a run which was killed ended as the one in the folder `whole`, which was not, and left nothing
    else."""
    a, b = (content(load_checkpoint(f"{folder}/ckpt.pt")) for folder in (whole, out))
    for ckpt in (a, b):  # what may differ; 'branch' means nothing where there is none
        del ckpt["settings"]["out_dir"], ckpt["settings"]["resume"], ckpt["ledger"]["seconds"], ckpt["branch"]
    assert a == b, f"{out} and {whole} are not the same"
    losses = [
        [line for line in map(json.loads, open(f"{folder}/metrics.jsonl")) if "loss" in line]
        for folder in (whole, out)
    ]
    a, b = ([(line["step"], line["loss"], line["norm"]) for line in lines] for lines in losses)
    assert a == b, f"{out}: other losses than those of {whole}"
    assert {name for name in os.listdir(out)} == {name for name in os.listdir(whole)}, os.listdir(out)


def kills(folder, config, n, seed=0):
    """Kills training at random moments, and resumes it, until it was killed n times, in as many runs as that
    takes."""
    ok("train.py", config, f"--out_dir={folder}/whole")
    rng, killed, runs, where = random.Random(seed), 0, 0, collections.Counter()
    while killed < n:
        out, last, done = f"{folder}/killed{runs}", 0, False
        while not done:
            args = [config, f"--out_dir={out}"] + ["--resume"] * bool(newest(out))
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
    when = f"{where['in the writing']} came in the writing of a checkpoint, {where['between the renames']} between its renames"
    left = "always a complete checkpoint, at most a step behind the log; at the end all is as without a kill, to the bit"
    yield f"{n} x SIGKILL of training", did, when, left


def torchrun(log, config, *args, restarts=0):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--standalone",
        f"--max-restarts={restarts}",
    ]
    return subprocess.Popen([*command, f"{ROOT}/train.py", config, *args], stdout=log, stderr=log)


def kills_of_torchrun(folder, config, n, *options, seed=0):
    """Kills one of two processes at random moments, n times; torchrun starts them again."""
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
            children = subprocess.run(
                ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
            ).stdout.split()
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
        yield ("flipped bit, sharded", f"{noticed + harmless} times, of all files in turn", "a line as below",
               f"{noticed} noticed, {harmless} in padding and unread fields: what is read is the same")  # fmt: skip
    case = f"{n} x SIGKILL of one of two processes" + ", sharded" * sharded
    yield (
        case,
        f"one run under `torchrun --max-restarts={n}`",
        "torchrun's report of each",
        "at the end all is as without, to the bit",
    )


@contextlib.contextmanager
def disk(path, size):
    """A file system of so many bytes in memory -> whether it could be mounted, as root can."""
    os.mkdir(path)
    mounted = not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], capture_output=True
    ).returncode
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", path], check=True)


def full_disk(folder, config):
    """A disk with room for half a checkpoint, if one can be mounted; else no file may be larger, which fails
    alike."""
    out, half = f"{folder}/disk", os.path.getsize(f"{folder}/a/ckpt.pt") // 2
    size = sum(len(data) + 4096 for data in files(f"{folder}/a").values()) + half
    with disk(out, size) as mounted:
        shutil.copytree(f"{folder}/a", f"{out}/a")
        for command in [
            (
                "train.py",
                config,
                f"--out_dir={out}/a",
                "--resume",
                "--log_interval=1000",
                "--eval_interval=0",
            ),
            ("grow.py", "--in", f"{folder}/a/ckpt.pt", "--double", "width", "--out", f"{out}/new.pt"),
            ("export.py", "--in", f"{folder}/grown.pt", "--out", f"{out}/hf"),
        ]:
            saw = refused(
                folder, run, [command], "can't be written", **({} if mounted else {"file_size": half})
            )
            where = (
                "a tmpfs with room for half a checkpoint"
                if mounted
                else "no file may be larger than half a checkpoint"
            )
            yield "full disk", f"`{command[0]}`, {where}", saw, "all as it was"


def read_only(folder, config):
    """A folder that can't be written: by its mode, or for root, whom that does not keep from it, on a disk
    that is mounted so."""
    out = f"{folder}/ro"
    with disk(out, 2**24) if os.geteuid() == 0 else contextlib.nullcontext(os.mkdir(out)) as mounted:
        shutil.copytree(f"{folder}/a", f"{out}/a")
        if mounted:
            subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        elif os.geteuid() == 0:
            return print(
                "not tried: a read-only folder; root writes into any, and can mount none here",
                file=sys.stderr,
            )
        for path in (f"{out}/a", out) * (not mounted):
            os.chmod(path, 0o555)
        for command in [
            ("train.py", config, f"--out_dir={out}/a", "--resume"),
            ("train.py", config, f"--out_dir={out}/new"),
            ("grow.py", "--in", f"{folder}/a/ckpt.pt", "--double", "width", "--out", f"{out}/new.pt"),
            ("export.py", "--in", f"{folder}/a/ckpt.pt", "--out", f"{out}/hf"),
            prepare_command(folder, f"{out}/d"),
        ]:
            saw = refused(folder, run, [command], "Read-only" if mounted else "Permission denied")
            yield (
                "read-only folder",
                f"`{command[0]}`" + ", `--resume`" * ("--resume" in command),
                saw,
                "all as it was",
            )
        for path in (out, f"{out}/a") * (not mounted):
            os.chmod(path, 0o755)


def two_at_once(folder, config):
    """A second run into the folder of one that trains; grow.py twice; and training goes on as if nothing had
    been."""
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
    did, saw = (
        "a second `train.py`, with `--resume` and without, while one trains",
        saw[0].replace(f"{folder}/", ""),
    )
    yield "two runs into one folder", did, f"`{saw}`", "the first ends as one alone, to the bit"
    os.mkdir(f"{folder}/held")
    with lock(f"{folder}/held/.lock"), open(log, "w+") as printed:
        assert torchrun(printed, config, f"--out_dir={folder}/held").wait(120) != 0
        printed.seek(0)
        saw = re.search("train.py: (.*locked.*)", printed.read())[1].replace(f"{folder}/", "")
    assert os.listdir(f"{folder}/held") == [".lock"]
    yield (
        "two runs into one folder",
        "the second under torchrun, 2 processes",
        f"`{saw}`, in torchrun's report; both end",
        "all as it was",
    )
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
    yield (
        "two runs into one file",
        "`grow.py` twice at the same time",
        f"`{saw}`",
        "the file of one of them, complete",
    )


# -----------------------------------------------------------------------------


def main():
    p = argparse.ArgumentParser(description="Try what goes wrong, and print a table of what came of it.")
    p.add_argument(
        "--kills",
        type=int,
        default=100,
        help="of training; twice a 20th as many under torchrun (default: 100)",
    )
    p.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = p.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train", "grow", "export"])
    begun = time.time()
    with tempfile.TemporaryDirectory() as folder:
        rng = random.Random(0)
        docs = [" ".join(rng.choices(WORDS, k=rng.randint(20, 200))) for _ in range(400)]
        with open(f"{folder}/text.txt", "w") as f:
            f.write("\n<|doc|>\n".join(docs))
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(docs), model_prefix=f"{folder}/t", model_type="bpe", byte_fallback=True, vocab_size=300,
            hard_vocab_limit=False, minloglevel=2,
        )  # fmt: skip
        ok(*prepare_command(folder, f"{folder}/d"))
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
