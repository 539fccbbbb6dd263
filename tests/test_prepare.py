"""What users meet in prepare.py: odd folders, broken files, and what it must not delete, lose or read."""

import collections
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import lzma
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import tracemalloc
import types
import unicodedata

import numpy as np
import pytest
from helpers import BAD, ODD, long_docs, make_docs, prepare_command, run, run_prepare, split_docs, write_docs

import data as data_module
import prepare

DOCS = make_docs(9)
TEXT = "\n<|doc|>\n".join(DOCS).encode() + b"\n"


def texts(out, tok):
    """Return all documents of the folder, sorted."""
    tok = data_module.load_tokenizer(tok)
    return sorted(split_docs(out, "train", tok) + split_docs(out, "val", tok))


def prepared(tmp_path, inputs, tok, *options, name="out"):
    """Run prepare.py, and return the documents that come of it, sorted."""
    run_prepare(tmp_path / name, inputs, tok, "--force", *options)
    return texts(tmp_path / name, tok)


def refused(tmp_path, inputs, tok, message, *options, name="refused"):
    """Assert that prepare.py ends with one line that message is found in, and leaves nothing behind."""
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(SystemExit, match=message) as e:
        run_prepare(tmp_path / name, inputs, tok, *options)
    assert "\n" not in e.value.code and sorted(os.listdir(tmp_path)) == before


def files_of(folder):
    """Return {name: bytes} of a folder."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


# -----------------------------------------------------------------------------
# --out


@pytest.fixture
def meanwhile(monkeypatch):
    """A function of a function, which is called once the text is tokenised, before the folder is replaced."""

    def at_the_end(act):
        write = prepare.write_splits

        def write_and_act(*args):
            result = write(*args)
            act()
            return result

        monkeypatch.setattr(prepare, "write_splits", write_and_act)

    return at_the_end


@pytest.mark.parametrize("before", [True, False])
def test_what_comes_into_the_folder_meanwhile_stays(tmp_path, sp_model, meanwhile, capsys, before):
    name, out = write_docs(tmp_path / "a.txt", DOCS), tmp_path / "out"
    if before:
        run_prepare(out, write_docs(tmp_path / "b.txt", make_docs(5, 1)), sp_model)

    def come():
        (out / "mine" / "below").mkdir(parents=True)
        (out / "notes.md").write_text("keep")
        (out / "stage.train.bin").write_text("named as one of ours")
        os.symlink("nowhere", out / "link")

    meanwhile(come)
    files = [name, "--force"] if before else [name]
    prepare.main(["--input", *files, "--out", str(out), "--tokenizer", sp_model, "--workers", "1"])
    assert (out / "notes.md").read_text() == "keep" and (out / "mine" / "below").is_dir()
    assert (out / "stage.train.bin").read_text() == "named as one of ours"
    assert os.readlink(out / "link") == "nowhere"
    assert "notes.md came meanwhile, and stays" in capsys.readouterr().err
    assert texts(out, sp_model) == sorted(DOCS)
    assert set(os.listdir(tmp_path)) - {"b.txt"} == {"a.txt", "out"}


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_what_another_run_makes_meanwhile_is_not_overwritten(tmp_path, sp_model, meanwhile, force):
    name, other = write_docs(tmp_path / "a.txt", DOCS), write_docs(tmp_path / "b.txt", make_docs(5, 1))
    run_prepare(tmp_path / "other", other, sp_model)
    if force:
        run_prepare(tmp_path / "out", name, sp_model)

    def come():
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "other", tmp_path / "out")

    meanwhile(come)
    with pytest.raises(SystemExit, match=r"written there meanwhile: .* lies in .*out\.\d+\.done") as e:
        run_prepare(tmp_path / "out", name, sp_model, *force)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")
    kept = tmp_path / os.path.basename(e.value.code.split()[-1])  # and the work isn't lost
    assert texts(kept, sp_model) == sorted(DOCS)
    assert sorted(os.listdir(tmp_path)) == sorted(["a.txt", "b.txt", "other", "out", kept.name])


def test_a_rename_that_fails_puts_all_back_and_keeps_the_work(tmp_path, sp_model, monkeypatch):
    name, rename = write_docs(tmp_path / "a.txt", DOCS), os.rename
    old, _ = run_prepare(tmp_path / "out", write_docs(tmp_path / "b.txt", make_docs(5, 1)), sp_model)

    def fail(a, b):
        if str(b) == str(tmp_path / "out") and not str(a).endswith(".old"):
            raise OSError(16, "Device or resource busy")
        rename(a, b)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(SystemExit, match=r"out: Device or resource busy: .* lies in .*out\.\d+\.done") as e:
        run_prepare(tmp_path / "out", name, sp_model, "--force")
    assert files_of(tmp_path / "out") == old
    assert texts(tmp_path / os.path.basename(e.value.code.split()[-1]), sp_model) == sorted(DOCS)


def test_a_folder_that_cannot_be_made_is_named_before_the_work(tmp_path, sp_model, monkeypatch):
    name, work = write_docs(tmp_path / "a.txt", DOCS), []
    monkeypatch.setattr(prepare, "read_file", lambda *args: work.append(args) or iter(()))
    monkeypatch.setattr(prepare, "is_mount", lambda folder: folder == str(tmp_path / "mount"))
    (tmp_path / "mount").mkdir()
    (tmp_path / "file").write_text("mine")
    os.symlink("loop", tmp_path / "loop")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.model").write_text("mine, though its name is one of ours")
    (tmp_path / "dirs" / "meta.json").mkdir(parents=True)
    before = sorted(os.listdir(tmp_path))
    for out, message in [
        ("mount", "a mount point, .*: name a folder in it"),
        ("file", "file is not a folder"),
        ("loop", "loop is not a folder"),
        ("file/a/out", "file is not a folder"),
        ("tokenizer", "holds tokenizer.model, not a file of prepare.py"),
        ("dirs", "holds meta.json, not a file of prepare.py"),
    ]:
        with pytest.raises(SystemExit, match=message) as e:
            run_prepare(tmp_path / out, name, sp_model, "--force")
        assert "\n" not in e.value.code and sorted(os.listdir(tmp_path)) == before and not work

    def fail(path, *args):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(SystemExit, match="Read-only file system"):
        run_prepare(tmp_path / "out", name, sp_model)
    assert not work


def test_a_folder_that_cannot_be_written_is_named_before_the_work(tmp_path, sp_model, monkeypatch):
    name = write_docs(tmp_path / "a.txt", DOCS)
    old, _ = run_prepare(tmp_path / "out", name, sp_model)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    refused(tmp_path, name, sp_model, "out: can't be written", "--force", name="out")
    assert files_of(tmp_path / "out") == old


@pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="needs a mount point")
def test_a_mount_point_is_known(tmp_path, sp_model):
    name = write_docs(tmp_path / "a.txt", DOCS)
    error, _ = run("prepare.py", "--input", name, "--out", "/dev/shm/", "--tokenizer", sp_model)
    assert "/dev/shm/: a mount point" in error
    assert not prepare.is_mount(str(tmp_path))


def test_a_mount_within_a_file_system_is_known(tmp_path):
    script = f"mount --bind '{tmp_path}/a b' '{tmp_path}/b c' && "
    script += f"exec {sys.executable} -c \"$0\" '{tmp_path}/b c'"
    (tmp_path / "a b").mkdir()
    (tmp_path / "b c").mkdir()
    code = "import prepare, sys; print(prepare.is_mount(sys.argv[1]))"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, code]
    env = {**os.environ, "PYTHONPATH": os.path.dirname(prepare.__file__)}
    with contextlib.suppress(FileNotFoundError):
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        if done.returncode == 0:
            assert done.stdout == "True\n"
            return
    pytest.skip("needs namespaces of its own")


def test_parents_that_were_made_go_with_a_run_that_fails(tmp_path, sp_model):
    name, bad = write_docs(tmp_path / "a.txt", ["one", "two"]), tmp_path / "bad.txt"
    bad.write_bytes(b"\xff")
    with pytest.raises(SystemExit, match="not UTF-8"):
        prepare.main(["--input", str(bad), "--out", f"{tmp_path}/x/y/z", "--tokenizer", sp_model])
    assert sorted(os.listdir(tmp_path)) == ["a.txt", "bad.txt"]
    run_prepare(tmp_path / "x" / "y" / "z", name, sp_model)


def test_what_a_killed_run_left_is_in_nobodys_way(tmp_path, sp_model):
    name = write_docs(tmp_path / "a.txt", DOCS)
    for left in (f"out.{os.getpid()}", f"out.{os.getpid() + 1}.old"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "words.txt").write_text("left")
    prepare.main(["--input", name, "--out", str(tmp_path / "out"), "--tokenizer", sp_model, "--workers", "1"])
    assert len(list(tmp_path.glob("out.*/words.txt"))) == 2 and (tmp_path / "out" / "meta.json").exists()


# -----------------------------------------------------------------------------
# --input: which files


def test_a_file_counts_once_however_it_is_spelled(tmp_path, sp_model, monkeypatch):
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    write_docs(folder / "below" / "a.txt", DOCS)
    os.symlink(folder, tmp_path / "link")
    os.symlink("..", folder / "below" / "loop")
    os.symlink("below", folder / "another")
    os.symlink("below/a.txt", folder / "b.txt")
    monkeypatch.chdir(tmp_path)
    spellings = ["in", "./in", "in/", "in/../in/below", str(folder), "link", "in/below/a.txt", "link/b.txt"]
    for inputs in (spellings, spellings[::-1], ["in"]):
        assert prepared(tmp_path, inputs, sp_model) == sorted(DOCS)


def test_the_order_of_files_is_that_of_their_names(tmp_path, sp_model):
    for name in ("b/a.txt", "b.txt", "a/z.txt", "a.txt", "a/.hidden.txt", ".git/x.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text(name)
    found = prepare.list_files([str(tmp_path / "in")], str(tmp_path / "out"))
    found = [os.path.relpath(name, tmp_path / "in") for name in found]
    assert found == ["a.txt", "a/z.txt", "b.txt", "b/a.txt"]


def test_what_prepare_wrote_is_no_input(tmp_path, sp_model):
    folder = tmp_path / "in"
    folder.mkdir()
    name, out = write_docs(folder / "a.txt", DOCS), folder / "out"
    first, _ = run_prepare(out, folder, sp_model, "--words", "5,all")
    assert run_prepare(out, folder, sp_model, "--words", "5,all", "--force")[0] == first
    assert run_prepare(folder / "second", folder, sp_model, "--words", "5,all")[0] == first  # nor another's
    (folder / "out.77").mkdir()  # of a run that was killed
    (folder / "out.77" / "words.txt").write_text("left")
    os.symlink("out/words.txt", folder / "link.txt")
    assert prepare.list_files([str(folder)], str(out)) == [name]
    (out / "mine.txt").write_text("not ours, so it is read")
    assert prepare.list_files([str(out)], str(tmp_path / "other")) == [str(out / "mine.txt")]
    (out / "mine.txt").unlink()
    for own in (out, out / "words.txt", folder / "link.txt"):
        with pytest.raises(SystemExit, match="neither .txt|in a folder that prepare.py made: copy it"):
            run_prepare(out, own, sp_model, "--force")
    assert files_of(out) == first


@pytest.mark.parametrize("kind", ["txt", "txt.gz", "jsonl", "parquet"])
def test_what_is_no_file_is_named(tmp_path, sp_model, kind, capsys):
    folder = tmp_path / "in"
    folder.mkdir()
    write_docs(folder / "a.txt", DOCS)
    for make, message in [
        (os.mkfifo, "not a regular file"),
        (lambda path: os.symlink("nowhere", path), "can't be read .No such file or directory"),
        (lambda path: os.symlink(path, path), "can't be read .Too many levels of symbolic links"),
    ]:
        odd = folder / f"b.{kind}"
        make(odd)
        refused(tmp_path, folder, sp_model, rf"b\.{kind}: {message}")
        if os.path.exists(odd):
            refused(tmp_path, odd, sp_model, message)
        assert prepared(tmp_path, folder, sp_model, "--skip_bad") == sorted(DOCS)
        assert f"left out: {odd}: {message[:10]}" in capsys.readouterr().err
        odd.unlink()
    (folder / f"c.{kind}" / "d.md").mkdir(parents=True)  # folders, whatever their names
    (folder / f"c.{kind}" / "d.TXT").write_text("found")
    assert prepared(tmp_path, folder, sp_model) == sorted([*DOCS, "found"])
    refused(tmp_path, folder / f"c.{kind}" / "d.md", sp_model, r"d\.md: neither .txt")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, sp_model, monkeypatch):
    folder, scandir = tmp_path / "in", os.scandir
    (folder / "secret").mkdir(parents=True)
    write_docs(folder / "a.txt", DOCS)

    def fail(path):
        if os.path.basename(path) == "secret":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", fail)  # root may read anything
    refused(tmp_path, folder, sp_model, "in/secret: Permission denied")


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf", b"<|doc|>\n<|doc|>"])
def test_no_text_at_all_is_said_before_the_work(tmp_path, sp_model, data, monkeypatch):
    monkeypatch.setattr(prepare, "write_splits", lambda *args: 1 / 0)
    for name, content in [
        ("a.txt", data),
        ("a.TXT.GZ", gzip.compress(data)),
        ("a.jsonl", b""),
        ("b.txt.xz", lzma.compress(data)),
    ]:
        (tmp_path / name).write_bytes(content)
        refused(tmp_path, [tmp_path / name], sp_model, rf"{name}: too little text")
    both = [tmp_path / "a.txt", tmp_path / "a.jsonl"]
    refused(tmp_path, both, sp_model, "a.txt and 1 more: too little text")


def test_the_case_of_an_ending_does_not_matter(tmp_path, sp_model):
    for name, content, docs in [
        ("A.TXT", TEXT, sorted(DOCS)),
        ("B.Txt.GZ", gzip.compress(TEXT), sorted(DOCS)),
        ("C.JSONL.Xz", lzma.compress(b'{"text": "x"}\n{"text": "y"}'), ["x", "y"]),
    ]:
        (tmp_path / name).write_bytes(content)
        assert prepared(tmp_path, tmp_path / name, sp_model) == docs
    os.rename(write_docs(tmp_path / "d.parquet", DOCS), tmp_path / "D.PARQUET")
    assert prepared(tmp_path, tmp_path / "D.PARQUET", sp_model) == sorted(DOCS)


# -----------------------------------------------------------------------------
# --input: what is in them


def test_a_document_that_begins_with_more_blanks_than_a_piece_is_kept(tmp_path, sp_model):
    name = write_docs(tmp_path / "a.txt", ["x", "\n" * 600_000 + "begins"])
    _, meta = run_prepare(tmp_path / "out", name, sp_model)
    assert sum(s["bytes"] for s in meta["splits"].values()) == 600_007


@pytest.mark.parametrize("kind", ["txt", "jsonl"])
@pytest.mark.parametrize("blank", ["\n" * 20, "\n" * 3000, " \n\t" * 1000, "\u3000\r\n" * 500], ids=len)
def test_a_document_that_begins_with_blanks_is_kept_to_the_byte(tmp_path, sp_model, kind, blank, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 64)
    docs = [*DOCS, blank + "here it begins", blank, "end"]
    name = write_docs(tmp_path / f"a.{kind}", docs)
    _, meta = run_prepare(tmp_path / "out", name, sp_model)
    assert sum(s["bytes"] for s in meta["splits"].values()) == len("".join([*DOCS, docs[-3], "end"]).encode())
    assert sorted(docs[:-2] + ["end"]) == texts(tmp_path / "out", sp_model)
    _, meta = run_prepare(tmp_path / "words", name, sp_model, "--words", "5,all")
    parts = [s["bytes"] for split, s in meta["splits"].items() if split != "val"]
    assert sum(parts) == len("".join([*DOCS, docs[-3], "end"]).encode())


def test_blanks_at_the_start_are_not_held_in_memory():
    piece = " " * (1 << 18)
    blanks = (piece, False)
    pieces = [("a", True), *[blanks] * 2, (piece, True), *[blanks] * 200, ("x", False), (" ", True)]
    seen = {"empty": 0, "documents": 0, "characters": 0, "end": 0, "lowest": 2**64}
    tracemalloc.start()
    got = prepare.split_by_hash(iter(pieces), 2**63, seen)
    n = sum(len(text) for text, _, _ in got)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 203 * len(piece) + 2 == seen["characters"] == seen["end"] and peak < 8e6  # 53 MB of blanks
    assert (seen["documents"], seen["empty"]) == (2, 1)


def test_the_last_part_of_a_single_document_is_text(tmp_path, sp_model):
    (tmp_path / "a.txt").write_text("one two three four five" + "\n" * 5000)
    run_prepare(tmp_path / "out", tmp_path / "a.txt", sp_model)
    (val,) = split_docs(tmp_path / "out", "val", data_module.load_tokenizer(sp_model))
    assert val.strip() == "five"


def long_text(kind, size=5_200_000):
    """Return text of lines, or of one, or of one word, in which every word is another."""
    words = [f"w{i}" for i in range(size // 8)]
    if kind == "lines":
        words = [f"{word}\n" if i % 12 == 0 else f"{word} " for i, word in enumerate(words)]
    return {"lines": "", "line": " ", "word": "日"}[kind].join(words).encode()


@pytest.mark.parametrize("at", [0, 1, 100_000, 262_144, 3_000_000, -1])
@pytest.mark.parametrize("kind", ["lines", "line", "word"])
def test_a_bad_byte_costs_no_more_than_a_kilobyte_or_two(kind, at):
    whole, faults = long_text(kind), []
    at %= len(whole)

    def bad(*fault):
        faults.append(fault)

    pieces = list(prepare.cut_documents("a.txt", [whole[:at] + b"\xff" + whole[at:]], b"<|doc|>", bad))
    left = "".join(text for text, _ in pieces).encode()
    ((fault, remedy, length),) = faults
    assert len(whole) + 1 - len(left.removesuffix(b"\n")) - length in (0, 1) and 0 < length <= 2100
    line = 1 + whole.count(b"\n", 0, at)
    assert fault == f"a.txt, line {line}: not UTF-8" and remedy == "convert it"
    assert [start for _, start in pieces] == [True] + [False] * (len(pieces) - 1)
    if kind == "lines":  # what is left are whole lines
        assert set(left.split(b"\n")) <= {b"", *whole.split(b"\n")}


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet", "txt.gz"])
def test_skip_bad_leaves_out_the_bad_part_of_a_long_document(tmp_path, sp_model, kind, capsys):
    whole = long_text("lines", 1_000_000)
    start, end = whole[:600_000], whole[600_000:]
    bad = start + b"\xff" + end
    if kind == "jsonl":
        content = b'{"text": "' + bad.replace(b"\n", b"\\n") + b'"}\n{"text": "x"}\n'
    elif kind == "parquet":
        content = parquet([bad, b"x"], "binary")
    else:
        content = bad + b"\n<|doc|>\nx"
    name = tmp_path / f"a.{kind}"
    name.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    refused(tmp_path, name, sp_model, rf"a.{kind}, (line|row) \d+: not UTF-8: convert it, or leave it out")
    run_prepare(tmp_path / "out", name, sp_model, "--skip_bad")
    first, second = texts(tmp_path / "out", sp_model)
    assert first[:5] == "w0\nw1" and second == "x" and len(whole) - 2100 < len(first) < len(whole)
    captured = capsys.readouterr()
    # in a .jsonl the byte is counted as the surrogate that stands for it
    lost = len(whole) - len(first) + (3 if kind == "jsonl" else 1)
    assert f"not UTF-8 ({lost:,} bytes)" in captured.err
    assert f"1 broken parts, {lost:,} bytes of text" in captured.out


BAD_ENDS = [
    ("cut", lambda packed, other: packed[:-9]),
    ("garbage", lambda packed, other: packed + b"garbage"),
    ("a byte", lambda packed, other: packed + b"\x1f"),
    ("garbage behind zeros", lambda packed, other: packed + b"\0" * 9000 + b"PK\3\4" * 5000),
    ("a second one, cut", lambda packed, other: packed + other[: len(other) // 2]),
    ("a second one's head", lambda packed, other: packed + other[:4]),
    ("a second one, damaged", lambda packed, other: packed + b"\0\0\0\0" + b"?" + other[1:]),
]


@pytest.mark.parametrize("kind", ["txt.gz", "txt.xz", "jsonl.gz", "jsonl.xz"])
@pytest.mark.parametrize("what, spoil", BAD_ENDS)
def test_a_bad_end_costs_nothing_before_it(tmp_path, sp_model, kind, what, spoil, capsys):
    docs = make_docs(300)
    name, other = tmp_path / f"a.{kind}", tmp_path / f"b.{kind}"
    write_docs(name, docs)
    write_docs(other, ["other"] * 2)
    name.write_bytes(spoil(name.read_bytes(), other.read_bytes()))
    refused(tmp_path, name, sp_model, rf"a.{kind}: broken or cut short \(.*\): fetch it again")
    run_prepare(tmp_path / "out", name, sp_model, "--skip_bad")
    got = texts(tmp_path / "out", sp_model)
    whole = [doc for doc in docs if doc in got]
    # what can be read of a cut file may be a document's beginning
    cut = what in ("cut", "a second one, cut")
    assert len(whole) > 280 and len(got) - len(whole) <= 1 if cut else sorted(docs) == got
    assert re.search(r"[12] broken parts", capsys.readouterr().out)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
@pytest.mark.parametrize("between", [b"", b"\0" * 4, b"\0" * 100_000])
def test_packed_files_may_follow_one_another(tmp_path, sp_model, pack, between):
    half = len(TEXT) // 2
    name = tmp_path / ("a.txt.gz" if pack is gzip.compress else "a.txt.xz")
    parts = [TEXT[:half], b"", TEXT[half:]]
    name.write_bytes(b"".join(pack(part) + between for part in parts))
    assert prepared(tmp_path, name, sp_model) == sorted(DOCS)


def test_an_empty_packed_file_is_broken(tmp_path, sp_model):
    for kind in ("txt.gz", "jsonl.xz", "parquet", "parquet.gz"):
        (tmp_path / f"a.{kind}").write_bytes(b"")
        refused(tmp_path, tmp_path / f"a.{kind}", sp_model, rf"a.{kind}: broken or cut short")


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("piece", [1 << 18, 40])
def test_markers_are_known_by_any_line_end_and_behind_a_bom(tmp_path, sp_model, end, bom, piece, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", piece)
    docs = ["one", f"two{end}lines", "x<|doc|> is no marker, nor <|doc|>", "z" * 99 + "<|doc|>", f"{end}last"]
    lines = [f"{bom}<|doc|>", docs[0], "<|doc|>", docs[1], " <|doc|>\t", docs[2], "<|doc|>", docs[3], ""]
    text = end.join(lines)
    text += f"{bom}<|doc|>{end}" + docs[4] + end  # as of another file with a BOM, appended
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert prepared(tmp_path, tmp_path / "a.txt", sp_model) == sorted(docs)
    (tmp_path / "a.jsonl").write_bytes((bom + end.join(json.dumps({"text": doc}) for doc in docs)).encode())
    assert prepared(tmp_path, tmp_path / "a.jsonl", sp_model, name="j") == sorted(docs)
    with open(tmp_path / "a.jsonl", "ab") as f:
        f.write(f"{end}{end}not JSON{end}".encode())
    refused(tmp_path, tmp_path / "a.jsonl", sp_model, "a.jsonl, line 7: not JSON")
    (tmp_path / "b.txt").write_bytes((text + "<|doc|>" + end + "a" + end + "b").encode() + b"\xff")
    line = text.count(end) + 3
    refused(tmp_path, tmp_path / "b.txt", sp_model, rf"b.txt, line {line if piece > 99 else '.*'}: not UTF-8")


WIDE = ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be", "utf-16-le bom"]


@pytest.mark.parametrize("code", WIDE)
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_utf_16_and_32_are_named(tmp_path, sp_model, code, kind):
    (tmp_path / "in").mkdir()
    for docs in (make_docs(5), ["Привет, мир", "это, наверное, текст."], ["x, y", "z"]):
        name = write_docs(tmp_path / "in" / f"a.{kind}", docs)
        text = open(name, encoding="utf-8").read()
        if kind == "jsonl":
            text = "".join(json.dumps({"text": doc}, ensure_ascii=False) + "\n" for doc in docs)
        if code.endswith("bom"):
            text = "\ufeff" + text
        with open(name, "wb") as f:
            f.write(text.encode(code.split()[0]))
        message = rf"a.{kind}, line \d: (full of NULs|UTF-16 or UTF-32|not UTF-8).*: convert it"
        refused(tmp_path, tmp_path / "in", sp_model, message)
        write_docs(tmp_path / "in" / "b.txt", DOCS)
        assert prepared(tmp_path, tmp_path / "in", sp_model, "--skip_bad") == sorted(DOCS)
        os.unlink(tmp_path / "in" / "b.txt")


def test_nuls_are_named_but_a_single_one_may_be_meant(tmp_path, sp_model, capsys):
    (tmp_path / "a.txt").write_bytes(TEXT + b"\0" * 100_000)  # as after a power failure
    refused(tmp_path, tmp_path / "a.txt", sp_model, "full of NULs")
    run_prepare(tmp_path / "out", tmp_path / "a.txt", sp_model, "--skip_bad")
    lost = re.search(r"([\d,]+) bytes of text", capsys.readouterr().out)[1].replace(",", "")
    assert int(lost) in (100_000, 100_000 + len(DOCS[-1]) + 1)
    (tmp_path / "b.jsonl").write_text('{"text": "a\\u0000b"}\n{"text": "c"}\n')
    assert prepared(tmp_path, tmp_path / "b.jsonl", sp_model) == ["a\0b", "c"]
    (tmp_path / "c.jsonl").write_text('{"text": "a\\u0000b\\u0000"}\n{"text": "c"}\n')
    refused(tmp_path, tmp_path / "c.jsonl", sp_model, "c.jsonl, line 1: full of NULs")


@pytest.mark.parametrize("options", [["--words", "5,all"], ["--words", "5,all", "--workers", "2"], []])
def test_a_text_that_changes_between_the_passes_is_noticed(tmp_path, sp_model, options, monkeypatch):
    name = tmp_path / "a.txt"
    name.write_text("one two three")  # a single document, so that two passes are made without --words too
    run_all = prepare.run_all

    def grows(work, *args):
        if work is prepare.encode_batch:
            with open(name, "a") as f:
                f.write(" four")
        return run_all(work, *args)

    monkeypatch.setattr(prepare, "run_all", grows)
    refused(tmp_path, name, sp_model, "a.txt: has changed since it was first read", *options)


# -----------------------------------------------------------------------------
# parquet


def parquet(values, kind, **options):
    """Return the bytes of a .parquet whose column text has the values, as type kind."""
    import pyarrow
    import pyarrow.parquet

    kinds = {
        "list": pyarrow.list_(pyarrow.string()),
        "null": pyarrow.null(),
        "int": pyarrow.int64(),
        "struct": pyarrow.struct([("a", pyarrow.string())]),
        "dictionary of binary": pyarrow.dictionary(pyarrow.int8(), pyarrow.binary()),
        "dictionary": pyarrow.dictionary(pyarrow.int8(), pyarrow.string()),
        "binary(3)": pyarrow.binary(3),
    }
    buf, column = io.BytesIO(), pyarrow.array(values, kinds.get(kind) or getattr(pyarrow, kind)())
    pyarrow.parquet.write_table(pyarrow.table({"id": range(len(values)), "text": column}), buf, **options)
    return buf.getvalue()


@pytest.mark.parametrize("kind", ["string", "large_string", "string_view", "dictionary"])
@pytest.mark.parametrize("rows", [1, 64, 100])
def test_parquet_text_of_any_type(tmp_path, sp_model, kind, rows):
    a, b, docs = tmp_path / "a.parquet", tmp_path / "b.parquet", [*make_docs(99), "naïve 日本"]
    a.write_bytes(parquet(docs, kind, row_group_size=rows))
    assert prepared(tmp_path, a, sp_model) == sorted(docs)
    binary = "dictionary of binary" if kind == "dictionary" else kind.replace("string", "binary")
    coded = [doc.encode() for doc in docs]
    b.write_bytes(parquet(coded, binary, row_group_size=rows))
    assert files_of(tmp_path / "out") == run_prepare(tmp_path / "b", b, sp_model)[0]
    b.write_bytes(parquet([*coded[:69], b"\xffx", None, *coded[69:]], binary, row_group_size=rows))
    refused(tmp_path, b, sp_model, "b.parquet, row 70: not UTF-8: convert it, or")

    def bad(fault, *rest):
        if "UTF-8" not in fault:
            sys.exit(fault)

    with pytest.raises(SystemExit, match="b.parquet, row 71: no text in field text"):
        list(prepare.read_file(str(b), "text", b"", bad))
    assert prepared(tmp_path, b, sp_model, "--skip_bad") == sorted(docs)


def test_parquet_of_other_types_is_named_once(tmp_path, sp_model, capsys):
    (tmp_path / "in").mkdir()
    write_docs(tmp_path / "in" / "b.txt", DOCS)
    for kind, values, shown in [
        ("list", [["a"], ["b"]], "list<element: string>"),
        ("null", [None, None], "null"),
        ("int", [1, 2], "int64"),
        ("struct", [{"a": "x"}, None], "struct<a: string>"),
    ]:
        (tmp_path / "in" / "a.parquet").write_bytes(parquet(values, kind))
        message = f"column text holds {shown}, not text: name another with --field"
        refused(tmp_path, tmp_path / "in", sp_model, message)
        assert prepared(tmp_path, tmp_path / "in", sp_model, "--skip_bad") == sorted(DOCS)
        assert "1 broken parts" in capsys.readouterr().out
    (tmp_path / "in" / "a.parquet").write_bytes(parquet([], "string"))
    assert prepared(tmp_path, tmp_path / "in", sp_model) == sorted(DOCS)
    (tmp_path / "in" / "a.parquet").write_bytes(parquet([b"abc", b"def"], "binary(3)"))
    assert prepared(tmp_path, tmp_path / "in", sp_model) == sorted([*DOCS, "abc", "def"])


def test_a_broken_row_group_costs_its_rows_only(tmp_path, sp_model):
    docs = [f"{i} " + hashlib.sha256(b"%d" % i).hexdigest() for i in range(90)]
    whole = bytearray(parquet(docs, "string", row_group_size=30, compression="gzip", use_dictionary=False))
    import pyarrow.parquet

    chunk = pyarrow.parquet.ParquetFile(io.BytesIO(whole)).metadata.row_group(1).column(1)
    at = chunk.data_page_offset + chunk.total_compressed_size // 2
    whole[at : at + 50] = b"\xff" * 50
    (tmp_path / "a.parquet").write_bytes(whole)
    message = r"a.parquet, rows 31 to 60: broken \(.*\): fetch it again"
    refused(tmp_path, tmp_path / "a.parquet", sp_model, message)
    assert prepared(tmp_path, tmp_path / "a.parquet", sp_model, "--skip_bad") == sorted(docs[:30] + docs[60:])


# -----------------------------------------------------------------------------
# time


LONG = {
    "marks": lambda n: "a" + "\u0301\u0323" * (n // 2),
    "marks of one class": lambda n: "a" + "\u0301" * n,
    "marks of three classes": lambda n: "a" + "\u0301\u0323\u0345" * (n // 3),
    "marks beyond the first plane": lambda n: "a" + "\U0001d16d\u0334" * (n // 2),
    "short runs of marks": lambda n: ("a" + "\u0301\u0323" * 20) * (n // 41),
    "a word": lambda n: "z" * n,
    "numbers": lambda n: "1.1," * (n // 4),
    "apostrophes": lambda n: "a'" * (n // 2),
    "quotes": lambda n: "!" + "'" * n,
    "a name": lambda n: "the A" + "-b" * (n // 2),
    "capitals": lambda n: "aA" * (n // 2),
    "names": lambda n: "Mr. A" * (n // 5),
    "newlines": lambda n: "\n" * n,
    "spaces": lambda n: "\n" + " " * n + "x",
    "lines of a space": lambda n: "\n " * (n // 2) + "x",
    "sentences": lambda n: "a. " * (n // 3),
    "jamo": lambda n: "\u1100\u1161\u11a8" * (n // 3),
    "Chinese": lambda n: "日本語" * (n // 3),
}


@pytest.mark.parametrize("kind", LONG)
def test_time_is_linear_in_the_length(kind):
    def seconds(work, n):
        text, best = LONG[kind](n), 9.0
        for _ in range(3):
            begun = time.process_time()
            work(text)
            best = min(best, time.process_time() - begun)
        return max(best, 1e-3)

    for work in (prepare.words, prepare.chunks, prepare.by_structure):
        # 8 times the text; 64 times as long if quadratic
        assert seconds(work, 80_000) < 20 * seconds(work, 10_000), work.__name__


def test_no_mark_is_dropped_that_is_not_the_31st_in_a_row():
    rng, used = random.Random(0), []
    marks = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(c)]
    for n in [*range(40), 300]:
        used.append("".join(rng.choices(marks, k=n)))
    text = " ".join(rng.choice("aeo\U0001f600") + run for run in used)
    short = " ".join(piece[0] + piece[1:31] for piece in text.split(" "))
    assert prepare.words(text) == prepare.WORD.findall(unicodedata.normalize("NFC", short).casefold())
    emoji = "\U0001f600" * 50 + "\U00010330" * 50
    assert prepare.words(emoji) == ["\U00010330" * 50] and prepare.RUN.search(emoji)


def test_reading_is_linear_in_the_length_of_a_line():
    times = []
    for n in (2_000_000, 16_000_000):
        blocks, begun = [b"z" * 1000] * (n // 1000), time.process_time()
        assert sum(map(len, prepare.read_lines(blocks))) == n
        assert sum(len(text) for text, _ in prepare.cut_documents("a", blocks, b"<|doc|>", None)) == n
        times.append(max(time.process_time() - begun, 1e-3))
    assert times[1] < 20 * times[0]


# -----------------------------------------------------------------------------
# guarantees that hold for all of it


def test_a_line_that_is_too_long_is_not_read_whole(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "LONGEST", 1 << 20)
    name = write_docs(tmp_path / "a.jsonl", [*make_docs(9), "a" * (3 << 20), *make_docs(9, seed=1)])
    with pytest.raises(SystemExit, match="a.jsonl, line 10: more than 1 MB: split it"):
        run_prepare(tmp_path / "out", name, sp_model)
    _, meta = run_prepare(tmp_path / "out", name, sp_model, "--skip_bad", "--val", "0.2")
    assert sum(meta["splits"][split]["documents"] for split in ("train", "val")) == 18


def test_words_are_counted_in_bounded_memory(tmp_path, sp_model, monkeypatch):
    """The rarest are forgotten; the stages' own words, which are the most frequent, are not."""
    rare = [f"the cat sat on the mat by x{i}" for i in range(300)]
    name = write_docs(tmp_path / "a.jsonl", make_docs(300) + rare)
    monkeypatch.setattr(prepare, "PIECE", 2000)
    how = ("--words", "5,20,all", "--val", "0.1")
    files, _ = run_prepare(tmp_path / "whole", name, sp_model, *how)
    monkeypatch.setattr(prepare, "MOST_WORDS", 100)
    bounded, _ = run_prepare(tmp_path / "bounded", name, sp_model, *how)
    assert bounded["words.txt"].count(b"\n") < files["words.txt"].count(b"\n") / 2
    assert all(bounded[f] == files[f] for f in files if f.endswith(".train.bin"))


def test_odd_input_gives_the_same_bytes_for_any_number_of_workers(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 2000)
    folder = tmp_path / "in"
    folder.mkdir()
    docs = ["\n" * 9999 + "begins late", *make_docs(50), "long " * 3000, "a" + "\u0301\u0323" * 2000]
    text = "\r\n<|doc|>\r\n".join(docs).encode()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbf<|doc|>\n" + text[:30_000] + b"\xff" + text[30_000:])
    (folder / "b.txt.gz").write_bytes(gzip.compress(text) + b"garbage")
    (folder / "c.parquet").write_bytes(parquet([doc.encode() for doc in docs], "binary"))
    for options in ([], ["--words", "5,20,all"]):
        results = []
        for workers in ("1", "2", "3"):
            more = ["--skip_bad", "--force", "--workers", workers, *options]
            results.append(run_prepare(tmp_path / f"out{workers}", folder, sp_model, *more)[0])
        assert results[0] == results[1] == results[2]
        meta = json.loads(results[0]["meta.json"])
        for name, split in meta["splits"].items():
            ids = np.frombuffer(results[0][f"{name}.bin"], meta["dtype"])
            assert (ids == meta["bos"]).sum() == split["documents"] and len(ids) == split["tokens"]


def test_options_that_would_fail_late_are_refused(tmp_path, sp_model, capsys):
    name = write_docs(tmp_path / "a.txt", DOCS)
    odd = ("--rows", "inf"), ("--rows", "nan"), ("--separator", "a\nb"), ("--val", "nan"), ("--known", "nan")
    for option in odd:
        with pytest.raises(SystemExit):
            run_prepare(tmp_path / "out", name, sp_model, "--words", "5,all", *option)
        assert "error: --" in capsys.readouterr().err and os.listdir(tmp_path) == ["a.txt"]
    for ignored, message in [
        (["--rows", "0.9"], "--rows is about stages"),
        (["--known", "0.9"], "--known is about stages"),
        (["--by", "structure"], "--by is about stages"),
        (["--wordlist", name], "--wordlist is about stages"),
        (["--words", "5,all", "--by", "structure", "--known", "0.9"], "--known are about words"),
    ]:
        with pytest.raises(SystemExit):
            run_prepare(tmp_path / "out", name, sp_model, *ignored)
        assert message in capsys.readouterr().err and os.listdir(tmp_path) == ["a.txt"]


def test_a_report_needs_no_display_and_no_terminal_that_shows_all(tmp_path, sp_model):
    name = write_docs(tmp_path / "a.txt", [f"naïve 日本 {doc}" for doc in DOCS])
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "MPLBACKEND": "tkagg"}
    options = ["--words", "5,all", "--report", "--workers", "1"]
    command = prepare_command(tmp_path / "out", name, sp_model, *options)
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "na\\xefve" in done.stdout, done.stderr
    assert (tmp_path / "out" / "report.png").read_bytes()[1:4] == b"PNG"


def test_formats_give_the_same_tokens(tmp_path, sp_model):
    docs, results = ODD[:6] + make_docs(150), []
    for kind in ("txt", "jsonl", "parquet", "txt.gz", "txt.xz", "jsonl.gz", "jsonl.xz", "parquet.xz"):
        name = write_docs(tmp_path / f"in.{kind}", docs)
        results.append(run_prepare(tmp_path / kind, name, sp_model, "--val", "0.1")[0])
    assert set(results[0]) == {"train.bin", "val.bin", "meta.json", "token_bytes.bin", "tokenizer.model"}
    assert all(r == results[0] for r in results)
    tok = data_module.load_tokenizer(sp_model)
    got = split_docs(tmp_path / "txt", "train", tok) + split_docs(tmp_path / "txt", "val", tok)
    assert sorted(got) == sorted(d.replace("▁", " ") for d in docs)


def test_workers_give_the_same_bytes(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 2000)
    docs = make_docs(200) + [" ".join(make_docs(300, 1)), "\n".join(make_docs(300, 2))]
    name = write_docs(tmp_path / "in.txt", docs)
    one, _ = run_prepare(tmp_path / "one", name, sp_model)
    three, _ = run_prepare(tmp_path / "three", name, sp_model, "--workers", "3")
    assert one == three


def test_command_line_under_spawn(tmp_path, sp_model):
    name = write_docs(tmp_path / "in.txt", make_docs(50))
    one, _ = run_prepare(tmp_path / "one", name, sp_model)
    args = ["--input", name, "--out", str(tmp_path / "s"), "--tokenizer", sp_model, "--workers", "2"]
    code = 'import multiprocessing\nif __name__ == "__main__":\n multiprocessing.set_start_method("spawn")\n'
    code += f" import prepare; prepare.main({args})"
    (tmp_path / "main.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": os.path.dirname(prepare.__file__)}
    subprocess.run([sys.executable, str(tmp_path / "main.py")], check=True, env=env)
    assert files_of(tmp_path / "s") == one


def test_long_documents_are_cut_without_a_trace(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 1000)
    tok = data_module.load_tokenizer(sp_model)
    lines, words = "\n".join(make_docs(99, 1) + ODD), " ".join(make_docs(99, 2)).replace("\n", " ")
    long = [lines, words, "日本語🙂" * 999, "z" * 9999]
    name = write_docs(tmp_path / "in.txt", long)
    files, meta = run_prepare(tmp_path / "out", name, sp_model, "--val", "0.5")
    assert sum(s["documents"] for s in meta["splits"].values()) == 4
    got = {d: s for s in ("train", "val") for d in split_docs(tmp_path / "out", s, tok)}
    assert set(got) == {d.replace("▁", " ") for d in long}
    # between lines and before spaces the tokens are those of sentencepiece on the whole document
    for doc in long[:2]:
        ids = np.array([tok.bos] + tok.sp.encode(doc), meta["dtype"]).tobytes()
        assert tok.encode(doc) == tok.sp.encode(doc)
        assert any(ids in files[f"{s}.bin"] for s in ("train", "val"))


def test_a_document_always_falls_on_the_same_side(tmp_path, sp_model):
    tok, docs = data_module.load_tokenizer(sp_model), make_docs(120)
    a, b = write_docs(tmp_path / "a.txt", docs[:60]), write_docs(tmp_path / "b.jsonl", docs[60:])
    c = write_docs(tmp_path / "c.txt", make_docs(80, 7))
    run_prepare(tmp_path / "ab", [a, b], sp_model, "--val", "0.2")
    run_prepare(tmp_path / "cba", [c, b, a], sp_model, "--val", "0.2")
    val = split_docs(tmp_path / "ab", "val", tok)
    assert 8 < len(val) < 40 and set(val) == set(split_docs(tmp_path / "cba", "val", tok)) & set(docs)


def test_tiny_inputs_have_a_val_split(tmp_path, sp_model, capsys):
    tok = data_module.load_tokenizer(sp_model)
    two = write_docs(tmp_path / "two.txt", make_docs(2))
    _, meta = run_prepare(tmp_path / "two", two, sp_model, "--val", "1e-9")
    assert [s["documents"] for s in meta["splits"].values()] == [1, 1]
    doc = " ".join(make_docs(20))
    run_prepare(tmp_path / "one", write_docs(tmp_path / "one.txt", [doc]), sp_model, "--val", "0.1")
    (train,), (val,) = (split_docs(tmp_path / "one", s, tok) for s in ("train", "val"))
    assert train + val == doc and 0.1 * len(doc) <= len(val) < 0.12 * len(doc)
    assert "only one document" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="too little text"):
        run_prepare(tmp_path / "x", write_docs(tmp_path / "x.txt", ["x"]), sp_model)
    with pytest.raises(SystemExit, match="too little text"):
        run_prepare(tmp_path / "e", write_docs(tmp_path / "e.txt", ["", " "]), sp_model)


@pytest.mark.parametrize("name, data, message, left", BAD)
def test_bad_input_is_named_and_nothing_is_written(tmp_path, sp_model, capsys, name, data, message, left):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    with pytest.raises(SystemExit, match=message) as e:
        run_prepare(tmp_path / "out", tmp_path / "in", sp_model)
    assert "\n" not in e.value.code and os.listdir(tmp_path) == ["in"]
    write_docs(tmp_path / "in" / "b.txt", make_docs(3))
    _, meta = run_prepare(tmp_path / "out", tmp_path / "in", sp_model, "--skip_bad")
    documents = sum(s["documents"] for s in meta["splits"].values()) - 3
    assert documents == left if left is not None else 100 < documents < 400
    assert "left out: " + str(tmp_path / "in" / name) in capsys.readouterr().err


def test_other_errors_are_one_line(tmp_path, sp_model, monkeypatch):
    good, odd = write_docs(tmp_path / "a.parquet", make_docs(3)), tmp_path / "a.doc"
    odd.write_text("x")
    (tmp_path / "bad.model").write_bytes(b"garbage")
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.md").write_text("keep")
    monkeypatch.setattr("tiktoken.get_encoding", lambda name: (_ for _ in ()).throw(OSError("no network")))
    before = sorted(os.listdir(tmp_path))
    for message, out, args in [
        ("nowhere: no such file", "o", [tmp_path / "nowhere", sp_model]),
        (r"a\.doc: neither \.txt", "o", [odd, sp_model]),
        ("no column body, only id, text", "o", [good, sp_model, "--field", "body"]),
        (r"bad\.model: no sentencepiece model", "o", [good, str(tmp_path / "bad.model")]),
        (r"empty\.model: no sentencepiece model", "o", [good, str(tmp_path / "empty.model")]),
        (r"none\.model: No such file", "o", [good, "none.model"]),
        ("tokenizer gpt2: its first use must fetch it, but: no network", "o", [good, "gpt2"]),
        ("tokenizer gpt9: no such file, and not one of llama2, gpt2", "o", [good, "gpt9"]),
        ("mine: holds notes.md", "mine", [good, sp_model, "--force"]),
    ]:
        with pytest.raises(SystemExit, match=message) as e:
            run_prepare(tmp_path / out, *args)
        assert "\n" not in e.value.code and sorted(os.listdir(tmp_path)) == before


def test_force(tmp_path, sp_model):
    a, b = (write_docs(tmp_path / f"{n}.txt", make_docs(9, n)) for n in (1, 2))
    old, _ = run_prepare(tmp_path / "out", a, sp_model)
    with pytest.raises(SystemExit, match="--force"):
        run_prepare(tmp_path / "out", b, sp_model)
    (tmp_path / "x.txt.gz").write_bytes(b"no")
    with pytest.raises(SystemExit, match="broken"):  # what was there outlives a run that fails
        run_prepare(tmp_path / "out", tmp_path / "x.txt.gz", sp_model, "--force")
    assert files_of(tmp_path / "out") == old
    assert run_prepare(tmp_path / "out", b, sp_model, "--force")[0] != old


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_leaves_nothing(tmp_path, sp_model, workers, signum):
    name = write_docs(tmp_path / "in.txt", make_docs(2000) * 60)

    def obey():  # a shell's background jobs ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = prepare_command(tmp_path / "out", name, sp_model, "--workers", workers)
    p = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=obey)
    while not list(tmp_path.glob("out.*/*")):
        time.sleep(0.01)
    time.sleep(0.3)
    p.send_signal(signum)
    err = p.communicate(timeout=20)[1]
    assert p.returncode == 1 and err.count("\n") == 1 and os.listdir(tmp_path) == ["in.txt"]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_sources_of_the_hub(tmp_path, sp_model, monkeypatch, kind):
    docs, asked = long_docs(20), []

    def load_dataset(*args, **options):  # stands for that of datasets, on a file of the sources' schema
        asked.append((args, options))
        name = write_docs(tmp_path / f"a.{kind}", docs)
        if kind == "jsonl":
            return map(json.loads, open(name))
        import pyarrow.parquet

        return iter(pyarrow.parquet.read_table(name).to_pylist())

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    name = write_docs(tmp_path / "in.txt", docs)
    local, _ = run_prepare(tmp_path / "local", name, sp_model, "--words", "50,all")
    assert run_prepare(tmp_path / "hub", "simplewiki", sp_model, "--words", "50,all")[0] == local
    assert asked[0] == (("wikimedia/wikipedia", "20231101.simple"), {"split": "train", "streaming": True})
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *a, **k: 1 / 0)
    message = "tinystories: the Hugging Face hub gives an error: division by zero"
    with pytest.raises(SystemExit, match=message):
        run_prepare(tmp_path / "o", "tinystories", sp_model)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SystemExit, match="fineweb-edu: .*pip install datasets"):
        run_prepare(tmp_path / "o", "fineweb-edu", sp_model)


@pytest.mark.skipif("BABEL_SLOW" not in os.environ, reason="slow: BABEL_SLOW=1 (GB, also a fraction) runs it")
def test_memory_is_bounded(tmp_path, sp_model):
    rng, size = random.Random(0), float(os.environ["BABEL_SLOW"]) * 1e9
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(200000)]
    weights = list(itertools.accumulate(1 / (i + 3) for i in range(len(words))))
    with lzma.open(tmp_path / "in.txt.xz", "wt", preset=0) as f:
        while size > 0:  # documents of up to many MB
            text = " ".join(rng.choices(words, cum_weights=weights, k=50000)).replace(" the", ".\n") + "\n"
            size -= f.write(text * 2 if rng.random() < 0.5 else text + "<|doc|>\n")
    code = "import prepare, resource, sys; prepare.main(sys.argv[1:]); "
    for who in ("SELF", "CHILDREN"):
        code += f"print(resource.getrusage(resource.RUSAGE_{who}).ru_maxrss // 1024, end=' '); "
    command = [sys.executable, "-c", code, "--tokenizer", sp_model, "--words", "2000,5000,all"]
    command += ["--workers", "2", "--input", str(tmp_path / "in.txt.xz"), "--out", str(tmp_path / "o")]
    env = {**os.environ, "PYTHONPATH": os.path.dirname(prepare.__file__)}
    done = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
    parent, worker = map(int, done.stdout.split()[-2:])
    print(done.stdout)
    assert parent < 400 and worker < 400, (parent, worker)  # MB, of any input


def test_the_hash_of_a_document_stays_what_it_is():
    """Else a text that is prepared anew trains on what models were evaluated on."""
    seen = collections.Counter(lowest=2**64)
    list(prepare.split_by_hash(iter([("The cat sat.", True)]), 0, seen))
    assert seen["lowest"] == 0xBDF8C2FBBAAFFB4A


def test_the_defaults_are_those_that_help_names(monkeypatch):
    given = []
    monkeypatch.setattr(prepare, "prepare", given.append)
    prepare.main(["--input", "a.txt", "--out", "o"])
    (args,) = given
    assert (args.val, args.known, args.rows, args.by) == (0.01, 0.95, 0.998, "vocabulary")


@pytest.mark.parametrize("options", [[], ["--words", "15,all"]])
def test_the_table_of_a_folder_is_that_of_its_meta_json(tmp_path, sp_model, capsys, options):
    name = write_docs(tmp_path / "a.jsonl", make_docs(2000))
    _, meta = run_prepare(tmp_path / "o", name, sp_model, "--val", "0.3", *options)
    printed = capsys.readouterr().out
    for split, s in meta["splits"].items():
        _, documents, tokens, mb, rate = re.search(rf"^{split} .*", printed, re.M)[0].replace(",", "").split()
        assert (int(documents), int(tokens)) == (s["documents"], s["tokens"])
        assert float(mb) == pytest.approx(s["bytes"] / 1e6, abs=6e-3)
        assert float(rate) == pytest.approx(s["tokens"] / max(s["bytes"], 1), abs=6e-5)
    text = sum(len(doc.encode()) for doc in make_docs(2000))
    assert f": {text / 1e6:.1f} MB in " in printed
