"""What users meet in sample.py: memory, where a text stops, chats, terminals, and what can't be read."""

import contextlib
import json
import math
import os
import re
import runpy
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import HERE, ODD, make_docs, metrics, ok, peak_anonymous_memory, run, save_byte_bpe, together

import checkpoint
import data as data_module
import export
import sample
from checkpoint import load_checkpoint, save_checkpoint
from export import as_tensor
from model import Config, KVCache, Llama, pick
from test_grow import KINDS, TOKENS, build, grow_nine, tiny, tiny_rows

PROMPT = torch.randint(97, (2, 5), generator=torch.Generator().manual_seed(1))


def tokenizer_of(path, kind="sentencepiece"):
    """Return a checkpoint's entry for a tokenizer's file."""
    model, name = open(path, "rb").read(), os.path.basename(path)
    return {"kind": kind, "name": name, "sha256": data_module.sha256(model), "model": as_tensor(model)}


def untrained(path, tokenizer, **more):
    """Write the checkpoint of a small untrained model, and return the path."""
    vocab_size = data_module.Tokenizer.from_dict(tokenizer).vocab_size
    sizes = {"vocab_size": vocab_size, "block_size": 64} | more.pop("sizes", {})
    ckpt = tiny(torch.float32, **sizes)
    save_checkpoint(path, ckpt | {"tokenizer": tokenizer} | more)
    return path


def shell(*args, env=None, **options):
    """Run sample.py as a process of its own. Return (exit code, what it printed, its errors), as bytes."""
    command = [sys.executable, f"{HERE}/sample.py", *args]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | (env or {})
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    done = subprocess.run(command, env=env, **options)
    return done.returncode, done.stdout, done.stderr


# -----------------------------------------------------------------------------
# the key-value cache, and where generation stops


def test_the_cache_has_memory_for_what_was_read_and_changes_no_logit():
    model = build(tiny(n_layer=1, block_size=16, context=100_000))
    with torch.no_grad():
        cache = KVCache(model.cfg)
        model(PROMPT, cache=cache)
        assert cache.kv[0].size(3) < 100
        idx, rooms, parts = torch.randint(97, (2, 700)), set(), []
        cache = KVCache(model.cfg)
        for start in range(700):
            parts.append(model(idx[:, start : start + 1], cache=cache))
            rooms.add(cache.kv[0].size(3))
            assert max(rooms) <= 2 * start + 66
        assert len(rooms) < 8  # so that a token is copied once on average
        assert (torch.cat(parts, 1) - model(idx)).abs().max() <= 1e-12


def test_the_cache_never_takes_more_than_the_context():
    model = build(tiny(block_size=16, context=90))
    with torch.no_grad():
        cache = KVCache(model.cfg)
        for token in range(90):
            model(PROMPT[:, token % 5 : token % 5 + 1], cache=cache)
        assert cache.kv[0].size(3) == 90


def test_a_prompt_is_read_without_the_logits_of_all_its_tokens(monkeypatch):
    model, seen, linear = build(tiny()), [], F.linear
    monkeypatch.setattr(F, "linear", lambda x, w: seen.append((len(w), x.size(1))) or linear(x, w))
    next(model.generate(PROMPT, 1))
    assert [n for rows, n in seen if rows == 97] == [1]


def test_generation_ends_when_every_row_has_met_one_of_the_stops():
    model = build(tiny(block_size=16, context=64))
    free = torch.cat(list(model.generate(PROMPT, 40, temperature=0)), 1)
    one, two = free[0, 3].item(), free[1, 6].item()
    first = [next(i for i, token in enumerate(row.tolist()) if token in (one, two)) for row in free]
    stopped = torch.cat(list(model.generate(PROMPT, 40, temperature=0, stop=[one, two])), 1)
    assert torch.equal(stopped, free[:, : max(first) + 1])


def test_samples_end_before_their_stop(sp_model):
    model = build(tiny(torch.float32, block_size=64))
    args = sample.argparse.Namespace(tokens=60, temperature=1.0, top_k=0, top_p=1.0, device="cpu")
    *_, free = sample.samples(model, [1, 5], 4, set(), args, 7)
    stop = {free[0][5], free[1][0], free[2][30]}
    *_, stopped = sample.samples(model, [1, 5], 4, stop, args, 7)
    for all_of_it, part in zip(free, stopped):
        at = next((i for i, token in enumerate(all_of_it) if token in stop), 60)
        assert part == all_of_it[:at] and not stop & set(part)


def test_stops_are_those_a_model_came_with_else_bos_and_eos(sp_model, tmp_path):
    tokenizer = data_module.load_tokenizer(sp_model)
    bos, eos = tokenizer.bos, tokenizer.eos
    untouched, trained = {"tokens": 0}, {"tokens": 512}
    for ckpt, stop in [
        ({"ledger": untouched}, [eos, bos]),
        ({"ledger": trained, "origin": None}, [eos, bos]),
        ({"ledger": untouched, "origin": {"stop": []}}, [eos, bos]),
        ({"ledger": untouched, "origin": {"stop": [7, 9]}}, [7, 9]),
        ({"ledger": trained, "origin": {"stop": [7, 9]}}, [7, 9, bos]),
    ]:
        assert sample.stop_ids(ckpt, tokenizer) == stop
    # every token that the model writes is one, so that nothing is written
    origin = {"origin": {"stop": list(range(tokenizer.vocab_size)), "files": {}}}
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model), **origin)
    said = ok("sample.py", "--in", path, "--prompt", "Ann", "--n", 2)
    assert said.split("\n") == ["Ann", "-" * 80, "Ann", ""]
    table = ok("sample.py", "--in", path, "--check", "--text", __file__, "--n", 2)
    assert re.search(r"itself +- +-\d", table) and re.search(r"repeated 4-grams +- +\d", table)


@pytest.mark.parametrize("top", [{}, {"n_kv_head": 4}])
def test_greedy_text_is_that_of_transformers_to_the_stop(top, sp_model, tmp_path):
    """Also beyond the training length, in a context that is longer."""
    transformers = pytest.importorskip("transformers")
    tokenizer = data_module.load_tokenizer(sp_model)
    sizes = {"block_size": 16, "context": 120} | top
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model), sizes=sizes)
    ckpt = load_checkpoint(path)
    config = Config(**ckpt["config"])
    export.write_json(tmp_path / "config.json", export.llama_config(config, "float32", 1, 2))
    export.write_safetensors(tmp_path, export.llama_tensors(config, ckpt["model"]), "float32")
    theirs = transformers.LlamaForCausalLM.from_pretrained(tmp_path).eval()
    start = [tokenizer.bos, *tokenizer.encode("Ann sees")]
    ids = torch.tensor([start])

    def their_text(stop):
        with torch.no_grad():
            out = theirs.generate(ids, max_new_tokens=100, do_sample=False, eos_token_id=stop, pad_token_id=0)
        return out[0, len(start) :].tolist()

    free = their_text(None)
    assert len(free) == 100
    stops = [free[40], free[70]]
    assert any(token in free[:70] for token in stops) and len(set(free[:35])) > 5
    for stop in (stops, [free[60]], [2]):
        written = their_text(stop)
        written = written[:-1] if written[-1] in stop else written
        save_checkpoint(tmp_path / "b.pt", ckpt | {"origin": {"stop": stop, "files": {}}})
        args = ["--prompt", "Ann sees", "--temperature", 0, "--tokens", 100]
        said = ok("sample.py", "--in", tmp_path / "b.pt", *args)
        assert said == tokenizer.decode(start + written) + "\n"


def test_low_temperatures_are_greedy_and_never_overflow():
    logits = torch.tensor([[1.0, 3.0, 2.999, -50.0]])
    for temperature in (0, 1e-300, 1e-40, 1e-7, 1e-5):
        assert pick(logits, temperature, 0, 1.0).item() == 1
    assert pick(logits, 1e300, 10**6, 1.0).item() in range(4)


@pytest.mark.parametrize("top_k, top_p, kept", [(2, 1.0, {1, 2}), (0, 0.6, {1, 2}), (0, 0.4, {1})])
def test_top_k_and_top_p_keep_the_likeliest(top_k, top_p, kept):
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log()
    assert {pick(logits, 1.0, top_k, top_p).item() for _ in range(99)} == kept


def test_broken_weights_are_one_line(sp_model, tmp_path):
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model))
    ckpt = load_checkpoint(path)
    ckpt["model"] = ckpt["model"] | {"norm.gain.0": torch.full_like(ckpt["model"]["norm.gain.0"], math.nan)}
    save_checkpoint(tmp_path / "b.pt", ckpt)
    error, _ = run("sample.py", "--in", tmp_path / "b.pt")
    assert "logits are not finite" in error and "ckpt.prev.pt" in error


# -----------------------------------------------------------------------------
# --check


def test_check_reads_windows_in_bounded_memory(sp_model, tmp_path):
    """A window of 8,192 tokens would have 1 GB of logits for the 32,000 rows, several times."""
    sizes = {"n_layer": 1, "n_embd": 16, "ffn_dim": 32, "vocab_size": 32_000, "block_size": 8192}
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model), sizes=sizes)
    (tmp_path / "t.txt").write_text(" ".join(make_docs(300))[:50_000])
    ids = data_module.load_tokenizer(sp_model).encode((tmp_path / "t.txt").read_text())
    assert len(ids) > 8192
    command = [sys.executable, f"{HERE}/sample.py", "--in", path, path, "--check", "--n", 1, "--tokens", 4]
    peak = peak_anonymous_memory([*command, "--text", tmp_path / "t.txt", "--device", "cpu"])
    assert peak < 900  # MB, of which python and torch take 350


@pytest.mark.parametrize("n", [2, 24, 25, 26, 49, 300])
def test_log_probs_in_chunks_are_those_of_whole_windows(n, monkeypatch):
    model, tokens = build(tiny()), np.random.default_rng(0).integers(97, size=n)
    with torch.no_grad():
        expected = torch.empty(n - 1)
        for start in range(0, n - 1, 24):
            first = max(0, min(start, n - 1 - 24))
            window = torch.from_numpy(tokens[first : first + 25])[None]
            losses = F.cross_entropy(model(window[:, :-1])[0], window[0, 1:], reduction="none")
            expected[start : start + 24] = -losses[start - first :]
    monkeypatch.setattr(sample, "CHUNK", 7)
    assert (sample.log_probs(model, tokens, "cpu") - expected).abs().max() <= 1e-6
    monkeypatch.setattr(sample, "WINDOW", 11)
    assert sample.log_probs(model, tokens, "cpu").isfinite().all()


def test_the_figure_is_that_of_training(stage, tmp_path):
    ok("train.py", *stage, "--eval_tokens=262144")
    few = ["--check", "--n", 1, "--tokens", 9, "--device", "cpu"]
    table = ok("sample.py", "--in", tmp_path / "a/ckpt.pt", *few)
    figure = float(re.search(r"bits per byte of the text +(\S+)", table)[1])
    assert figure == pytest.approx(metrics(tmp_path / "a", "bpb")[12], abs=2e-3)


def test_two_checkpoints_side_by_side(stage, sp_model, data, tmp_path):
    text = tmp_path / "t.txt"
    text.write_text("Ann sees the ball. Ben likes the dog. " * 9)
    few = ["--check", "--n", 1, "--tokens", 9, "--device", "cpu"]
    ok("train.py", *stage, "--stop_at=1")
    trained, tokenizer = tmp_path / "a/ckpt.pt", tokenizer_of(f"{data}/tokenizer.model")
    other = untrained(tmp_path / "b.pt", tokenizer_of(sp_model))
    assert "max |dlogit| 0.0e+00" in ok("sample.py", "--in", trained, trained, *few)
    said = ok("sample.py", "--in", trained, other, *few, "--text", text)
    assert "their tokenizers differ: no max |dlogit|" in said and said.count("bits per byte") == 1
    for sizes in ({"block_size": 32}, {"vocab_size": 400}):
        same = untrained(tmp_path / "c.pt", tokenizer, sizes=sizes)
        said = ok("sample.py", "--in", trained, same, *few, "--text", text)
        assert "is shorter: no max |dlogit|" in said or re.search(r"max \|dlogit\| \d", said)
    # another validation text
    shutil.copytree(data, tmp_path / "d")
    ids = np.fromfile(tmp_path / "d/val.bin", np.uint16)
    ids[: len(ids) // 2].tofile(tmp_path / "d/val.bin")
    elsewhere = load_checkpoint(trained)
    elsewhere["settings"] = elsewhere["settings"] | {"data": str(tmp_path / "d")}
    save_checkpoint(tmp_path / "e.pt", elsewhere)
    error, _ = run("sample.py", "--in", trained, tmp_path / "e.pt", *few)
    assert "the two know different validation texts: give --text FILE" in error
    ok("sample.py", "--in", trained, tmp_path / "e.pt", *few, "--text", text)
    # the folder was prepared again, with another tokenizer
    meta = json.loads((tmp_path / "d/meta.json").read_text())
    meta["tokenizer"]["sha256"] = "0"
    (tmp_path / "d/meta.json").write_text(json.dumps(meta))
    error, _ = run("sample.py", "--in", tmp_path / "e.pt", *few)
    assert "val.bin was made with another tokenizer than the checkpoint: give --text FILE" in error


# -----------------------------------------------------------------------------
# text on any terminal


@pytest.mark.parametrize("kind", ["sentencepiece", "tokenizers"])
def test_text_comes_piece_by_piece_and_is_that_of_all_ids(kind, sp_model, tmp_path):
    if kind == "sentencepiece":
        tokenizer = data_module.load_tokenizer(sp_model)
    else:
        pre = pytest.importorskip("tokenizers.pre_tokenizers").ByteLevel(add_prefix_space=False)
        save_byte_bpe(tmp_path / "tokenizer.json", make_docs(200), pre)
        tokenizer = data_module.load_tokenizer(str(tmp_path / "tokenizer.json"))
    rng = np.random.default_rng(0)
    texts = [tokenizer.encode(text) for text in ODD]
    texts += rng.integers(tokenizer.vocab_size, size=(200, 30)).tolist()
    spell = data_module.speller(np.arange(3), tokenizer.vocab_size, tokenizer.spelling)
    texts += [spell(ids).tolist() for ids in texts[:20]]
    for ids in texts:
        for begun in ([], [tokenizer.bos], [tokenizer.bos, *ids[:3]]):
            growing = ([ids[: i + 1]] for i in range(len(ids)))
            came = list(sample.pieces(tokenizer, begun, growing))
            assert "".join(came) == tokenizer.decode(begun + ids), (begun, ids)
    ids, lengths, decode = tokenizer.encode(" ".join(make_docs(9)))[:400], [], tokenizer.decode
    tokenizer.decode = lambda ids: lengths.append(len(ids)) or decode(ids)
    list(sample.pieces(tokenizer, [], ([ids[: i + 1]] for i in range(len(ids)))))
    assert max(lengths) < 20 < len(ids)  # a token costs the same, however many there are


@pytest.fixture(scope="module")
def model_file(sp_model, tmp_path_factory):
    return str(untrained(tmp_path_factory.mktemp("model") / "a.pt", tokenizer_of(sp_model)))


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_replaced(encoding, model_file):
    args = ["--in", model_file, "--prompt", "naïve 日本 ☃", "--tokens", "40", "--temperature", "9"]
    shown = {}
    for name in ("utf-8", encoding):
        code, out, error = shell(*args, env={"PYTHONIOENCODING": name})
        assert code == 0 and not error
        shown[name] = out.decode(name)
    assert len(shown[encoding]) == len(shown["utf-8"]) > 20
    assert shown[encoding].startswith("naïve 日本 ☃".encode(encoding, "replace").decode(encoding))


def test_nobody_reads_on(model_file):
    """As in: python sample.py | head -1"""
    reading, writing = os.pipe()
    os.close(reading)
    for args in (["--n", "3"], ["--check", "--n", "1", "--tokens", "5", "--text", __file__]):
        code, _, error = shell("--in", model_file, *args, stdout=writing)
        assert code == 141 and error == b""
    os.close(writing)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_a_full_disk_is_one_line(model_file):
    with open("/dev/full", "wb") as full:
        code, _, error = shell("--in", model_file, stdout=full)
    assert code == 1 and error == b"sample.py: [Errno 28] No space left on device\n"


def test_a_prompt_that_is_no_text_is_one_line(model_file):
    for name in ("--prompt", "--system"):
        more = ["--chat"] if name == "--system" else []
        code, out, error = shell("--in", model_file, *more, name, b"na\xefve")
        assert (code, out) == (1, b"") and error.startswith(f"sample.py: {name}: not UTF-8 text".encode())
        assert error.count(b"\n") == 1


def test_prompts_of_all_lengths(model_file):
    few = ["--in", model_file, "--tokens", 4, "--temperature", 0]
    ok("sample.py", *few, "--prompt", "")
    assert ok("sample.py", *few, "--prompt", "a\0b").startswith("a\0b")
    assert ok("sample.py", *few, "--prompt", "\n \n").startswith("\n \n")
    long = "Ann sees the ball. " * 50
    said = ok("sample.py", *few, "--prompt", long)
    assert re.search(r"the prompt has [\d,]+ tokens, and the context 64: its beginning is not read\n", said)
    assert long in said
    code, out, error = shell("--in", model_file, "--tokens", "4", "--prompt", long)
    assert code == 0 and out.decode().startswith(long) and error.count(b"\n") == 1
    assert "-" in ok("sample.py", *few, "--check", "--prompt", "", "--text", __file__, "--n", 1)


# -----------------------------------------------------------------------------
# chats

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}\n{% if add_generation_prompt %}\n{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}\n    <<SYS>>{{ m.content | tojson }}\n"
    "    {% else %}[INST] {{ m['content'] | trim }} [/INST]{{ eos_token }}{% endif %}{% endfor %}"
    "{{ pad_token }}"
)
BLOCKS = (
    "{% set ns = namespace(n=0) %}{%- for m in messages -%}{% if ns.n > 5 %}{% break %}{% endif %}"
    "{% set ns.n = ns.n + 1 %}{%- generation -%} {{ m.content }} {%- endgeneration %}"
    "{% if tools is none %}!{% endif %}{% endfor %}{{ strftime_now('%Y')[:2] }}<|im_start|>"
)
IM = ["<|im_start|>", "<|im_end|>"]
CHATS = [
    ("Ann sees the ball.", None),
    (" two  spaces\n\n\nx ", 'Be "brief" <b>.'),
    ("<s>a</s> <|im_end|>x<|im_start|>", ""),
    ("naïve 日本", "x"),
    ("", None),
]


def byte_level_folder(folder, sp_model):
    """Return transformers' tokenizer of byte-level BPE."""
    transformers, pre = pytest.importorskip("transformers"), pytest.importorskip("tokenizers.pre_tokenizers")
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>")
    save_byte_bpe(folder / "tokenizer.json", make_docs(200), pre.ByteLevel(add_prefix_space=False), special)
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)


def exported_folder(folder, sp_model):
    """Return transformers' tokenizer of what export.py writes for a sentencepiece model, with added
    tokens."""
    transformers, tok = pytest.importorskip("transformers"), data_module.load_tokenizer(sp_model)
    export.write_json(folder / "tokenizer.json", export.tokenizer_json(tok))
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    tokenizer.add_special_tokens({"additional_special_tokens": IM, "pad_token": "<pad>"})
    return tokenizer


def llama_folder(folder, sp_model):
    """Return transformers' LlamaTokenizer of a sentencepiece model, with added tokens."""
    transformers, tok = pytest.importorskip("transformers"), data_module.load_tokenizer(sp_model)
    model = export.tokenizer_json(tok)["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = transformers.LlamaTokenizer(vocab=model["vocab"], merges=merges)
    tokenizer.add_special_tokens({"additional_special_tokens": IM})
    return tokenizer


@pytest.mark.parametrize("make", [byte_level_folder, exported_folder, llama_folder])
@pytest.mark.parametrize("template", [CHATML, INST, BLOCKS])
def test_a_chat_has_the_ids_of_transformers(make, template, sp_model, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = make(tmp_path, sp_model)
    theirs.chat_template = template
    theirs.save_pretrained(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    entry = tokenizer_of(sp_model)
    if make is byte_level_folder:
        entry = tokenizer_of(tmp_path / "tokenizer.json", "tokenizers")
    tokenizer = data_module.Tokenizer.from_dict(entry)
    files = {p.name: as_tensor(p.read_bytes()) for p in tmp_path.iterdir()}
    assert "chat_template.jinja" in files
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    kept = [files]
    for older in (template, [{"name": "default", "template": template}]):
        config["chat_template"] = older
        kept.append(files | {"tokenizer_config.json": as_tensor(json.dumps(config).encode())})
        del kept[-1]["chat_template.jinja"]
    for message, system in CHATS:
        messages = [{"role": "user", "content": message}]
        messages = ([] if system is None else [{"role": "system", "content": system}]) + messages
        ids = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        for files in kept:
            assert sample.chat_ids({"origin": {"files": files}}, tokenizer, message, system) == ids


def test_added_tokens_are_found_in_older_files_too(sp_model):
    tokenizer = data_module.load_tokenizer(sp_model)
    n = tokenizer.vocab_size
    added = {"<s>": 1, "<|im_start|>": n, "<|im_end|>": n + 1}
    decoder = {str(i): {"content": token} for token, i in added.items()}
    for files in (
        {"tokenizer_config.json": {"added_tokens_decoder": decoder}},
        {"added_tokens.json": added, "tokenizer_config.json": {}},
        {"tokenizer.json": {"added_tokens": [{"content": token, "id": i} for token, i in added.items()]}},
    ):
        kept = {name: as_tensor(json.dumps(values).encode()) for name, values in files.items()}
        broken = {"special_tokens_map.json": b"{", "added_tokens.json": b"[1]", "tokenizer.json": b""}
        kept |= {name: as_tensor(data) for name, data in broken.items() if name not in kept}
        kept["chat_template.jinja"] = as_tensor(CHATML.encode())
        ids = sample.chat_ids({"origin": {"files": kept}}, tokenizer, "Ann", None)
        assert ids[0] == n and (ids.count(n), ids.count(n + 1)) == (2, 1)
        assert tokenizer.decode(ids) == "user\nAnn\nassistant\n"


def test_special_tokens_are_meant_only_where_asked(sp_model):
    tokenizer = data_module.load_tokenizer(sp_model)
    text = "<s>Ann</s>"
    assert tokenizer.bos not in tokenizer.encode(text)
    for each in (False, True):
        ids = tokenizer.encode_with_special(text, {}, each)
        assert (ids[0], ids[-1]) == (tokenizer.bos, tokenizer.eos)
        assert ids[1:-1] == tokenizer.encode("Ann", start=each)
        assert tokenizer.encode_with_special("Ann sees", {}, each) == tokenizer.encode("Ann sees")
    assert tokenizer.bos not in tokenizer.encode(text)


def test_a_chat_writes_the_answer_alone(sp_model, tmp_path):
    template = CHATML.replace("<|im_start|>", "<s>").replace("<|im_end|>", "</s>")
    files = {"chat_template.jinja": as_tensor(template.encode())}
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model), origin={"stop": [2], "files": files})
    args = ["--in", path, "--prompt", "Ann?", "--temperature", 0, "--tokens", 9]
    said = ok("sample.py", *args, "--chat")
    model, tokenizer, spelled, ckpt = sample.load(path, "cpu")
    start = sample.chat_ids(ckpt, tokenizer, "Ann?", None)
    new = torch.cat(list(model.generate(torch.tensor([start]), 9, temperature=0, stop=[2])), 1)[0].tolist()
    assert said == tokenizer.decode([i for i in new if i != 2]) + "\n" and "user" not in said
    assert ok("sample.py", *args, "--chat", "--system", "Be brief.") != said
    ok("sample.py", *args, "--chat", "--check", "--n", 1, "--text", __file__)


@pytest.mark.parametrize(
    "template, message",
    [
        (None, "--chat: the model came with no chat template: leave --chat out"),
        ("", "--chat: the model came with no chat template"),
        ("{{ raise_exception('No system role') }}", "the model's chat template fails: No system role"),
        ("{% if %}", "the model's chat template fails: "),
        ("{{ messages[7].content }}", "the model's chat template fails: "),
        ("{{ 1 + 'a' }}", "the model's chat template fails: "),
        ("{{ messages.append(1) }}", "the model's chat template fails: "),  # nothing may be changed,
        ("{{ ''.__class__.__mro__ }}", "the model's chat template fails: "),  # and no way leads to Python
        ("{{ cycler.__init__.__globals__.os.system('touch hacked') }}", "the model's chat template fails: "),
        ("{{ strftime_now.__globals__['os'] }}", "the model's chat template fails: "),
        ("{{ unknown }}", "the chat template writes no token, or one that the model has no row for"),
        ("<|im_start|>", "the chat template writes no token, or one that the model has no row for"),
    ],
)
def test_a_chat_that_cannot_be_says_why(template, message, sp_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = {"added_tokens.json": as_tensor(b'{"<|im_start|>": 100000}')}
    if template is not None:
        files["chat_template.jinja"] = as_tensor(template.encode())
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model), origin={"stop": [2], "files": files})
    error, _ = run("sample.py", "--in", path, "--chat", "--prompt", "Ann")
    assert message in error and not os.path.exists("hacked")


@pytest.mark.parametrize(
    "broken",
    [
        {"tokenizer_config.json": b'{"added_tokens_decoder": null}'},
        {"tokenizer.json": b'{"added_tokens": null}'},
        {"chat_template.jinja": b"", "tokenizer_config.json": b'{"chat_template": [{"name": "default"}]}'},
    ],
)
def test_broken_files_that_a_chat_model_came_with_are_one_line(broken, sp_model, tmp_path):
    files = {name: as_tensor(data) for name, data in ({"chat_template.jinja": b"a"} | broken).items()}
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model), origin={"stop": [2], "files": files})
    error, _ = run("sample.py", "--in", path, "--chat", "--prompt", "Ann")
    assert "--chat: a file that the model came with is broken" in error


# -----------------------------------------------------------------------------
# what can't be done


@pytest.mark.parametrize(
    "args, message",
    [
        (["--temperature", "nan"], "temperature and top_k are at least 0, and finite"),
        (["--temperature", "inf"], "temperature and top_k are at least 0, and finite"),
        (["--temperature", "-1"], "temperature and top_k are at least 0, and finite"),
        (["--top_k", "-1"], "temperature and top_k are at least 0, and finite"),
        (["--top_p", "nan"], "top_p above 0 and at most 1"),
        (["--top_p", "0"], "top_p above 0 and at most 1"),
        (["--n", "0"], "n and tokens at least 1"),
        (["--tokens", "0"], "n and tokens at least 1"),
        (["--seed", "99999999999999999999"], "--seed 99999999999999999999: "),
        (["--seed", "-99999999999999999999"], "--seed -99999999999999999999: "),
        (["--device", "foo"], "--device foo: "),
        (["--device", "meta"], "--device meta: "),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--device", "cpu:x"], "--device cpu:x: "),
        (["--check", "--n", "100000000000"], "--check draws all samples at once, at most 1,024"),
        (["--text", __file__], "--text goes with --check"),
        (["--system", "x"], "--system goes with --chat"),
        (["--chat"], "the model came with no chat template"),
        (["--check"], "the checkpoint has no validation text: give --text FILE"),
        (["--check", "--text", ""], "--text : No such file"),
        (["--check", "--text", "none.txt"], "--text none.txt: No such file"),
        (["--check", "--text", HERE], "Is a directory"),
    ],
)
def test_arguments_that_make_no_sense_are_one_line(args, message, model_file):
    error, _ = run("sample.py", "--in", model_file, *args)
    assert message in error


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", "no text in it"),
        (b"\xef\xbb\xbf", "no text in it"),  # a byte order mark
        (b"\x89PNG\r\n\x1a\n\0\xff", "not UTF-8 text: convert it"),
        ("Ann".encode("utf-16"), "not UTF-8 text: convert it"),
        (b"a", ""),
        (b"\n", ""),
        (b"Ann\0 sees\0", ""),
    ],
)
def test_texts_of_all_kinds(text, message, model_file, tmp_path):
    (tmp_path / "t.txt").write_bytes(text)
    args = ["--in", model_file, "--check", "--n", 1, "--tokens", 3, "--text", tmp_path / "t.txt"]
    if message:
        error, _ = run("sample.py", *args)
        assert message in error and "t.txt" in error
    else:
        table = ok("sample.py", *args)
        assert "nan" not in table and float(re.search(r"bits per byte of the text +(\S+)", table)[1]) > 0


def test_large_and_negative_numbers_that_do_make_sense(model_file):
    few = ["--in", model_file, "--tokens", 3]
    huge = 10**30
    ok("sample.py", *few, "--top_k", huge)
    assert ok("sample.py", *few, "--seed", -1) == ok("sample.py", *few, "--seed", -1)
    ok("sample.py", *few, "--seed", 2**63 - 1, "--n", 2)
    ok("sample.py", *few, "--temperature", 1e-40)


def test_too_little_memory_is_one_line(model_file, monkeypatch):
    for e in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")):

        def fail(*args, **options):
            raise e

        monkeypatch.setattr(Llama, "generate", fail)
        error, _ = run("sample.py", "--in", model_file)
        assert "sample.py: out of memory (" in error and "give a smaller --n or a shorter prompt" in error


def test_without_arguments(tmp_path, monkeypatch, model_file):
    monkeypatch.chdir(tmp_path)
    error, _ = run("sample.py")
    assert "out/ckpt.pt: no such checkpoint: name one with --in" in error and "bash runs/demo.sh" in error
    for age, name in enumerate(["new", "old"]):
        os.makedirs(f"out/{name}")
        shutil.copy(model_file, f"out/{name}/ckpt.pt")
        os.utime(f"out/{name}/ckpt.pt", (1e9 - age, 1e9 - age))
    error, _ = run("sample.py")
    assert error.endswith("try the newest, --in out/new/ckpt.pt; or out/old/ckpt.pt")
    assert "a folder with a checkpoint in it: give out/new/ckpt.pt" in run("sample.py", "--in", "out/new")[0]
    shutil.copy(model_file, "out/ckpt.pt")
    assert ok("sample.py", "--tokens", 2).startswith("Once upon a time")


def test_sampling_yields_only_tokens_with_a_row():
    ckpt, ids, tokens = tiny_rows()
    new = torch.cat(list(build(ckpt).generate(tokens[:, :4], 100, temperature=5.0)), 1)
    assert set(new.unique().tolist()) == set(ids[:60].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_key_value_cache(kind):
    model = build(grow_nine(tiny(**KINDS[kind]), kind))
    with torch.no_grad():
        full, cache = model(TOKENS[:, :24]), KVCache(model.cfg)
        parts = [model(TOKENS[:, a:b], cache=cache) for a, b in ((0, 7), (7, 8), (8, 15), (15, 16), (16, 24))]
    assert (torch.cat(parts, 1) - full).abs().max() <= 1e-12


def test_greedy_generation_is_that_of_the_full_forward():
    model, n = build(tiny()), 60  # beyond block_size = 24, where half of the context is dropped
    idx, start = TOKENS[:, :5], 0
    new = torch.cat(list(model.generate(idx, n, temperature=0)), 1)
    with torch.no_grad():
        for _ in range(n):
            if idx.size(1) - start > 24:
                start = idx.size(1) - 12
            idx = torch.cat([idx, model(idx[:, start:])[:, -1:].argmax(-1)], 1)
    assert torch.equal(idx[:, 5:], new)


def test_tools_read_sharded_checkpoints(grown_run, tmp_path, monkeypatch):
    stage, _ = grown_run
    b = tmp_path / "b"
    together(2, [*stage, f"--out_dir={b}", "--shard", "--stop_at=4", "--save_interval=2"])
    assert load_checkpoint(b / "ckpt.prev.pt")["step"] == 2 and load_checkpoint(b / "ckpt.pt")["step"] == 4
    printed = ok("grow.py", "--in", b / "ckpt.pt", "--double", "width")
    assert float(re.search(r"max \|dlogit\| (\S+),", printed)[1]) < 1e-5
    options = ("--check", "--n", 2, "--tokens", 9, "--device", "cpu")
    assert "ckpt.pt" in ok("sample.py", "--in", b / "ckpt.pt", b / "grown.pt", *options)
    ok("export.py", "--in", b / "ckpt.pt", "--out", tmp_path / "hf")

    # one that its run replaces while it is read
    read, read_folder = tmp_path / "read", checkpoint.read_folder
    shutil.copytree(b / "ckpt.prev.pt", read, ignore=shutil.ignore_patterns("whole.pt"))

    def read_late(path, *args, **options):
        read_folder(path, *args, **options)
        shutil.copy(b / "ckpt.pt/.metadata", f"{path}/.metadata")

    with monkeypatch.context() as patch, pytest.raises(ValueError, match="replaced by its run while"):
        patch.setattr(checkpoint, "read_folder", read_late)
        load_checkpoint(read)
    assert not [name for name in os.listdir(read) if name.startswith("whole")]

    # damaged, incomplete and hostile folders
    flip = runpy.run_path(os.path.join(HERE, "runs/reliability.py"))["flip"]
    assert flip(str(b / "ckpt.pt"), 60)[0] > 30
    for missing in (".metadata", "rest.pt"):
        shutil.copytree(b / "ckpt.prev.pt", tmp_path / missing)
        os.remove(tmp_path / missing / missing)
        with contextlib.suppress(FileNotFoundError):
            os.remove(tmp_path / missing / "whole.pt")
        error, _ = run("sample.py", "--in", tmp_path / missing)
        assert "not a checkpoint, or an incomplete one: use the one before" in error
    shutil.copytree(b / "ckpt.prev.pt", tmp_path / "other", ignore=shutil.ignore_patterns("whole.pt"))
    torch.save({"step": 2}, tmp_path / "other/rest.pt")
    assert "other/rest.pt: not a Babel checkpoint" in run("sample.py", "--in", tmp_path / "other")[0]
    hidden = b"ctorch.distributed.checkpoint.filesystem\n_get_device_module\n(S'_import_dotted_name'\ntR."
    cut = (b / "ckpt.prev.pt/.metadata").read_bytes()[:99]
    for evil in (b"cos\nsystem\n(S'touch evil'\ntR.", hidden, b"", cut):
        (b / "ckpt.prev.pt/whole.pt").unlink(missing_ok=True)
        (b / "ckpt.prev.pt/.metadata").write_bytes(evil)
        error, _ = run("sample.py", "--in", b / "ckpt.prev.pt")
        assert ".metadata: broken, or not what train.py wrote" in error


def test_bad_input_to_sample(stage, tmp_path):
    ok("train.py", *stage, "--stop_at=1")
    path = tmp_path / "a/ckpt.pt"
    for args, message in [
        (["--in", tmp_path / "none.pt"], "none.pt: no such checkpoint"),
        (["--in", path, path], "give one checkpoint, or two with --check"),
        (["--in", path, "--top_p", 0], "top_p above 0"),
        (["--in", path, "--check", "--text", tmp_path / "none.txt"], "none.txt"),
    ]:
        error, _ = run("sample.py", *args)
        assert message in error, (args, error)


@pytest.mark.parametrize(
    "samples, repeated, distinct",
    [
        ([[1, 2, 1, 2, 1, 2]], 1 / 3, 2 / 5),
        ([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]], 0.0, 1 / 2),  # 4-grams count by sample, 2-grams over all
        ([[1], []], math.nan, math.nan),
    ],
)
def test_repetition(samples, repeated, distinct):
    assert sample.repetition(samples) == pytest.approx((repeated, distinct), nan_ok=True)


def test_the_largest_difference_of_logits_may_be_anywhere_and_of_either_sign(monkeypatch):
    monkeypatch.setattr(sample, "CHUNK", 2)
    x, head = torch.zeros(5, 3), torch.eye(3)
    x[1, 2] = -7.0
    x[4, 0] = 3.0
    assert sample.max_dlogit((x, head), (torch.zeros(5, 3), torch.eye(4, 3))) == 7


def test_the_table_of_check(sp_model, tmp_path):
    """What a model says of its samples is of these alone; the text is cut into as many, as long."""
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model))
    text = " ".join(make_docs(9)) + " naïve 日本"
    (tmp_path / "t.txt").write_text(text)
    few = ["--check", "--text", tmp_path / "t.txt", "--n", 3, "--tokens", 20, "--prompt", "the cat sat on"]
    table = ok("sample.py", "--in", path, *few, "--device", "cpu")
    model, tokenizer, _, ckpt = sample.load(str(path), "cpu")
    args = SimpleNamespace(tokens=20, temperature=1.0, top_k=0, top_p=1.0, device="cpu")
    start, stop = [tokenizer.bos, *tokenizer.encode("the cat sat on")], sample.stop_ids(ckpt, tokenizer)
    *_, said = sample.samples(model, start, 3, stop, args, 1337)
    ids = np.array([tokenizer.bos, *tokenizer.encode(text)])
    lp = sample.log_probs(model, ids, "cpu")
    own = [sample.log_probs(model, np.array(start + s), "cpu")[-len(s) :] for s in said if s]
    alike = sample.repetition([ids[i : i + 20].tolist() for i in (0, 20, 40)])
    bpb = -lp.sum().item() / math.log(2) / len(text.encode())
    rows = [(bpb, math.nan), *zip(sample.repetition(said), alike), (torch.cat(own).mean(), lp[:60].mean())]
    for (name, form), pair in zip(sample.ROWS.items(), rows):
        shown = ["-" if math.isnan(value) else format(float(value), form) for value in pair]
        assert re.search(rf"^{name} +(\S+) +(\S+)$", table, re.M).groups() == tuple(shown), name


@pytest.mark.parametrize("check, n, temperature", [([], 1, 0.8), (["--check"], 8, 1.0)])
def test_defaults_of_samples_and_of_a_check(check, n, temperature, monkeypatch):
    given = []
    monkeypatch.setattr(sys, "argv", ["sample.py", "--in", "a.pt", *check])
    monkeypatch.setattr(sample, "validate", lambda args: given.append(args) or sys.exit())
    with pytest.raises(SystemExit):
        sample.main()
    assert (given[0].n, given[0].temperature) == (n, temperature)


def test_each_sample_is_another(sp_model, tmp_path):
    path = untrained(tmp_path / "a.pt", tokenizer_of(sp_model))
    said = ok("sample.py", "--in", path, "--n", 3, "--tokens", 30, "--device", "cpu")
    assert len(set(said.removesuffix("\n").split(f"\n{'-' * 80}\n"))) == 3
