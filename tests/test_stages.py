"""prepare.py --words: stages of text, and their rows."""

import collections
import itertools
import math
import os

import numpy as np
import pytest
from helpers import BAD, ODD, STRANGE, long_docs, make_docs, run_prepare, split_docs, write_docs

import data as data_module
import prepare

WORDS = ("--words", "5,10,all", "--wordlist")


@pytest.fixture
def wordlist(tmp_path):
    path = tmp_path / "words.list"
    path.write_text("the\ncat\nSat 120\non\na\nmat\ndog\nand\nran\nit's\nhome\n")
    return str(path)


@pytest.mark.parametrize(
    "text, found",
    [
        ("Don’t stop; it's o'clock, 'quoted' well-known", "don't stop it's o'clock quoted well known"),
        ("1,000 cats, 3.5. 2 NASA _so_ I", "1,000 cats 3.5 2 nasa so i"),
        ("Élan ÉCOLE naïve cafe\u0301 straße день हिन्दी", "élan école naïve café strasse день हिन्दी"),
        ("Lily met Tom, Mr. Brown-Lee and Élise. Tom's hat", "lily met \0 \0 \0 and \0 tom's hat"),
        ("“Oh Tom!” He said: No, McX", "oh \0 he said no \0"),
        ("The end\nThe start, I say", "the end the start i say"),
        ("Mrs. Hill. Dr. Hall. Ms. Hull", "mrs \0 dr \0 ms \0"),
        ("... — !", ""),
    ],
)
def test_words(text, found):
    assert prepare.words(text) == found.split(" ") * (found > "")


@pytest.mark.parametrize("docs", [ODD, long_docs(60), STRANGE])
def test_chunks_are_the_text_in_bounded_parts(docs):
    for doc in docs:
        parts = prepare.chunks(doc)
        sizes = [prepare.word_count(part) for part in parts]
        assert "".join(parts) == doc and all(parts) and max(sizes) <= 500
        assert "日" in doc or all(n >= 200 for n in sizes[:-1])
    text = "\n\n".join(["One two three four five. " * 20 + "End."] * 9)  # 101 words each
    assert all(part.startswith("One") and part.count("End.") == 2 for part in prepare.chunks(text)[:-1])
    for sentence in ("One two three four five six end. ", "日本語。"):  # of one paragraph
        assert all(part.endswith(sentence) for part in prepare.chunks(sentence * 2000)[:-1])


def test_scores():
    ranks = {word: rank for rank, word in enumerate("\0 the cat sat on a mat".split(" "))}

    def known(text, share):
        return prepare.by_vocabulary(text, ranks, share)

    assert known("The cat sat on a mat.", 1) == 6 and known("The cat sat on a mat.", 0.5) == 3
    assert known("The cat, Tom, sat", 1) == 3
    assert known("the the the elephant", 0.75) == 1 and known("the elephant", 0.6) == math.inf
    assert known("the " * 95 + "x " * 5, 0.95) == 1 and known("the " * 94 + "x " * 6, 0.95) == math.inf
    assert known("—", 0.95) == math.inf
    assert known("the " * 55 + "x " * 45, 0.55) == 1  # 0.55 * 100 is above 55
    assert prepare.by_structure("The cat sat. The dog ran.") == 3
    assert prepare.by_structure("The cat sat, and the dog, which was old, ran.") == 10 + 3 + 1
    assert prepare.by_structure("A heading\n\nA line. Another!") == 5 / 3
    assert prepare.by_structure("—") == math.inf
    assert prepare.by_structure("One; two: three — four–five -- six.") == 6 + 5
    assert prepare.by_structure("“Oh!” he said. (Yes.) No.") == 5 / 4
    assert prepare.by_structure("日本。日本。") == 1
    joining = "although because if that though unless until what when where whether which while "
    joining += "who whom whose why"
    assert prepare.by_structure(joining) == 2 * len(joining.split())


def test_right_stages(tmp_path, sp_model, wordlist):
    mats = "The cat sat on the Mat. " * 9 + "Dog."
    dogs = "a cat sat on the mat and a Dog sat on the cat.\n\nThe dog ran"
    right = {
        "words5": ["The cat sat on a cat.", "a cat, Elephant, sat", mats, "tHE CAT"],
        "words10": ["The dog ran.", "It’s a mat", dogs],
        "all": ["An elephant.", "the cat sat HOME", "日本語", "...", "1 cat"],
    }
    name = write_docs(tmp_path / "in.txt", sum(right.values(), []))
    _, meta = run_prepare(tmp_path / "o", name, sp_model, "--val", "0.2", *WORDS, wordlist)
    tok = data_module.load_tokenizer(sp_model)
    for stage, texts in right.items():
        found = [split_docs(tmp_path / "o", f"{stage}.{side}", tok) for side in ("train", "val")]
        assert sorted(found[0] + found[1]) == sorted(texts)
    stages, splits = meta["stages"], meta["splits"]
    assert [s["name"] for s in stages] == list(right) and stages[0]["sample"] in right["words5"]
    assert all(s["chunks"] == splits[f"{s['name']}.train"]["documents"] for s in stages)
    structure = ("--words", "3,6,all", "--by", "structure", "--report")
    _, meta = run_prepare(tmp_path / "s", name, sp_model, *structure)
    assert [s["name"] for s in meta["stages"]] == ["structure3", "structure6", "all"]
    assert "The dog ran." in split_docs(tmp_path / "s", "structure3.train", tok)


@pytest.mark.parametrize(
    "docs", [ODD + make_docs(200) + long_docs(80), [" ".join(long_docs(9))], ["\n\n x" * 5000, "y"]]
)
def test_stages_are_the_input(tmp_path, sp_model, docs, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 5000)
    name, tok = write_docs(tmp_path / "in.jsonl", docs), data_module.load_tokenizer(sp_model)
    plain, plain_meta = run_prepare(tmp_path / "plain", name, sp_model, "--val", "0.1")
    files, meta = run_prepare(tmp_path / "out", name, sp_model, "--val", "0.1", "--words", "20,200,all")
    names = [s["name"] for s in meta["stages"]]
    assert names == ["words20", "words200", "all"] and files["val.bin"] == plain["val.bin"]
    own = {f"{n}.{end}.bin" for n in names for end in ("train", "val", "rows")}
    assert set(files) == set(plain) - {"train.bin"} | own | {"spelling.bin", "words.txt"}
    again = ("--val", "0.1", "--words", "20,200,all", "--wordlist", str(tmp_path / "out" / "words.txt"))
    assert run_prepare(tmp_path / "again", name, sp_model, *again)[0] == files
    table = np.fromfile(tmp_path / "out" / "token_bytes.bin", "<u2")
    for side in ("train", "val"):
        # the same characters, nothing lost or twice
        text = "".join(split_docs(tmp_path / "plain", side, tok))
        shards = [f"{n}.{side}" for n in names]
        assert sorted("".join("".join(split_docs(tmp_path / "out", s, tok)) for s in shards)) == sorted(text)
        assert sum(meta["splits"][s]["bytes"] for s in shards) == plain_meta["splits"][side]["bytes"]
        for s in shards:
            ids = np.fromfile(tmp_path / "out" / f"{s}.bin", meta["dtype"])
            split = meta["splits"][s]
            assert len(ids) == split["tokens"] and (ids == meta["bos"]).sum() == split["documents"]
            assert data_module.count_bytes(ids[1:], ids[:-1], table, meta["bos"], True) == split["bytes"]
            assert data_module.sha256(files[f"{s}.bin"]) == split["sha256"]
    rows = [np.fromfile(tmp_path / "out" / f"{n}.rows.bin", meta["dtype"]).tolist() for n in names]
    assert sorted(rows[-1]) == list(range(tok.vocab_size))
    assert [len(r) for r in rows] == [s["rows"] for s in meta["stages"]]
    assert all(late[: len(early)] == early for early, late in itertools.pairwise(rows))


def test_stages_with_workers_and_in_any_order(tmp_path, sp_model, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 3000)
    a = write_docs(tmp_path / "a.parquet", long_docs(60))
    b = write_docs(tmp_path / "b.txt.xz", long_docs(50, 1) + ODD)
    options = (sp_model, "--val", "0.1", "--words", "60,200,all")
    one, meta = run_prepare(tmp_path / "one", [a, b], *options)
    assert all(s["chunks"] > 5 for s in meta["stages"])
    assert run_prepare(tmp_path / "four", [a, b], *options, "--workers", "4")[0] == one
    _, other = run_prepare(tmp_path / "ba", [b, a], *options)
    assert other["stages"] == meta["stages"]
    tok = data_module.load_tokenizer(sp_model)
    for split in meta["splits"]:
        got = [sorted(split_docs(tmp_path / name, split, tok)) for name in ("one", "ba")]
        assert got[0] == got[1]


def test_rows():
    rng, first = np.random.default_rng(0), np.arange(3, 262)
    counts = [rng.zipf(1.3, 1000).clip(0, 10**6) * (rng.random(1000) < share) for share in (0.3, 0.6, 1, 1)]
    got = prepare.choose_rows(counts, 0.9, first)
    for (rows, share), count in zip(got, np.cumsum(counts, 0)):
        assert len(set(rows.tolist())) == len(rows)
        assert share == pytest.approx(count[rows].sum() / count.sum())
        assert share >= 0.9 and (len(rows) % 128 == 0 or len(rows) == 1000)
    (one, _), (two, _), (three, _), (last, share) = got
    assert (one[:259] == first).all() and (two[: len(one)] == one).all() and (three[: len(two)] == two).all()
    assert (last[: len(three)] == three).all() and len(last) == 1000 and share == 1
    inside = counts[0][one[259:]]
    assert (np.diff(inside) <= 0).all() and counts[0][np.setdiff1d(range(1000), one)].max() <= inside[-1]
    assert counts[0][one[:-128]].sum() < 0.9 * counts[0].sum() or len(one) == 384  # no more than it takes
    assert [len(rows) for rows, _ in prepare.choose_rows(counts, 300, first)] == [384, 384, 384, 1000]
    assert [len(rows) for rows, _ in prepare.choose_rows([counts[0] * 0] * 2, 0.998, first)] == [384, 1000]


@pytest.mark.parametrize("name, data, message, left", BAD)
def test_bad_input_with_stages(tmp_path, sp_model, name, data, message, left):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(data)
    for workers in ("1", "2"):
        with pytest.raises(SystemExit, match=message) as e:
            run_prepare(tmp_path / "out", tmp_path / "in", sp_model, "--words", "5,all", "--workers", workers)
        assert "\n" not in e.value.code and os.listdir(tmp_path) == ["in"]
    write_docs(tmp_path / "in" / "b.txt", ["", "good"] + make_docs(3))
    _, meta = run_prepare(tmp_path / "out", tmp_path / "in", sp_model, "--skip_bad", "--words", "5,all")
    chunks = sum(s["documents"] for n, s in meta["splits"].items() if n != "val") - 4
    assert chunks == left if left is not None else 100 < chunks < 400


def test_other_errors_with_stages(tmp_path, sp_model, capsys):
    good = write_docs(tmp_path / "a.txt", make_docs(9))
    bad, empty = tmp_path / "bad.list", tmp_path / "empty.list"
    bad.write_bytes(b"\xff\n")
    empty.write_text("\n--\n")
    for message, options in [
        ("bad.list: not UTF-8", ["--words", "5,all", "--wordlist", str(bad)]),
        ("empty.list: no words", ["--words", "5,all", "--wordlist", str(empty)]),
        ("none.list: No such file", ["--words", "5,all", "--wordlist", "none.list"]),
    ]:
        with pytest.raises(SystemExit, match=message) as e:
            run_prepare(tmp_path / "o", good, sp_model, *options)
        assert "\n" not in e.value.code and not (tmp_path / "o").exists()
    for options in [*(["--words", limits] for limits in ("all", "5,3,all", "5,10", "x,all")), ["--report"]]:
        with pytest.raises(SystemExit):
            run_prepare(tmp_path / "o", good, sp_model, *options)
        assert "give " in capsys.readouterr().err
    # --force replaces all that --words made, and nothing else
    run_prepare(tmp_path / "o", good, sp_model, "--words", "5,all", "--report")
    assert (tmp_path / "o" / "report.png").read_bytes()[1:4] == b"PNG"
    files, _ = run_prepare(tmp_path / "o", good, sp_model, "--force")
    assert set(files) == {"train.bin", "val.bin", "meta.json", "token_bytes.bin", "tokenizer.model"}
    (tmp_path / "o" / "weights.bin").write_bytes(b"mine")
    with pytest.raises(SystemExit, match="holds weights.bin"):
        run_prepare(tmp_path / "o", good, sp_model, "--force")


def test_a_word_counts_once_in_a_list(tmp_path):
    (tmp_path / "words.list").write_text("the\nThe 9\ncat\n")
    assert prepare.read_wordlist(str(tmp_path / "words.list")) == ["the", "cat"]


def test_words_are_ranked_and_counted_in_the_text_for_training(tmp_path, sp_model):
    """Names are none, ties are in the order of the alphabet, and the coverage is of what is left."""
    docs = [f"it met Tom, said {doc}" for doc in make_docs(60)] + ["zebra yak"] * 3
    name = write_docs(tmp_path / "a.jsonl", docs)
    files, meta = run_prepare(tmp_path / "o", name, sp_model, "--val", "0.3", "--words", "2,5,all")
    val = split_docs(tmp_path / "o", "val", data_module.load_tokenizer(sp_model))
    n = collections.Counter(word for doc in docs if doc not in val for word in prepare.words(doc))
    assert val and n.pop("\0") > 30
    ranked = sorted(n, key=lambda word: (-n[word], word))
    assert files["words.txt"].decode().split("\n") == [*ranked, ""]
    covered = [sum(n[word] for word in ranked[:most]) / n.total() for most in (2, 5, len(n))]
    assert [s["coverage"] for s in meta["stages"]] == pytest.approx(covered)
    assert [s["words"] for s in meta["stages"]] == [2, 5, len(n)]


def test_the_figures_of_a_stages_tokens_leave_bos_out(tmp_path, sp_model):
    name = write_docs(tmp_path / "a.jsonl", make_docs(60))
    _, meta = run_prepare(tmp_path / "o", name, sp_model, "--words", "15,all", "--rows", "300")
    so_far = np.zeros(360, int)
    for s in meta["stages"]:
        ids, rows = (
            np.fromfile(tmp_path / f"o/{s['name']}.{kind}.bin", meta["dtype"]) for kind in ("train", "rows")
        )
        n = np.bincount(ids[ids != meta["bos"]], minlength=360)
        so_far += n
        assert s["distinct_tokens"] == (n > 0).sum()
        assert s["rows_coverage"] == pytest.approx(so_far[rows].sum() / so_far.sum())
