"""export.py: what comes in goes out again, and what can't is said in a line."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    HERE,
    ODD,
    make_docs,
    metrics,
    nats_in_windows,
    ok,
    peak_anonymous_memory,
    run,
    run_prepare,
    same,
    save_byte_bpe,
    spell,
    split_docs,
    train_tokenizer,
    write_docs,
)

import data as data_module
import export
from checkpoint import build_model, load_checkpoint, save_checkpoint
from data import Tokenizer, load_tokenizer
from grow import grow
from model import Config, rope_frequencies, skeleton
from test_grow import CLONE, GROWTHS, KINDS, TOKENS, build, grow_nine, heads, logits, steps, tiny

transformers = pytest.importorskip("transformers")
SIZES = dict(
    num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=40, intermediate_size=70
)
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TALK = [{"role": "user", "content": "Ann sees  the ball.\n"}]


def save_llama(folder, **says):
    """Save a random Llama of transformers, far from its initial values, in a folder. Return it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SIZES | dict(vocab_size=380, max_position_embeddings=64) | says)
    model = transformers.LlamaForCausalLM(config)
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    model.save_pretrained(folder)
    return model


def change(path, **values):
    """Set values of a JSON file's object."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def checkpoint_of(sp_model, **sizes):
    """Return a small checkpoint with a sentencepiece tokenizer of 360 tokens."""
    model = open(sp_model, "rb").read()
    tokenizer = Tokenizer("sentencepiece", "small.model", model).to_dict()
    tokenizer["model"] = export.as_tensor(model)
    return tiny(torch.float32, **dict(vocab_size=360) | sizes) | {"tokenizer": tokenizer}


def import_and_export(hf, tmp_path):
    """Make tmp_path/ckpt.pt of a Llama's folder, and a folder of that. Return it."""
    ok("export.py", "--from", hf, "--out", tmp_path / "ckpt.pt")
    ok("export.py", "--in", tmp_path / "ckpt.pt", "--out", tmp_path / "again")
    return tmp_path / "again"


@pytest.fixture(params=["byte level", "sentencepiece"])
def chat_model(request, tmp_path, sp_model):
    """A folder of a Llama that chats: template, added tokens, generation_config.json, licence."""
    hf = tmp_path / "hf"
    save_llama(hf, bos_token_id=1, eos_token_id=2, pad_token_id=2)
    if request.param == "byte level":
        pre = pytest.importorskip("tokenizers.pre_tokenizers").ByteLevel(add_prefix_space=False)
        special = ("<|endoftext|>", "<s>", "</s>")
        tok = save_byte_bpe(hf / "tokenizer.json", ["Ann sees the ball."], pre, special)
        tok.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        tok.save(str(hf / "tokenizer.json"))
    else:  # as in ChatML fine-tunes of Llama 2: added tokens that tokenizer.model does not have
        shutil.copy(sp_model, hf / "tokenizer.model")
        tokenizers = pytest.importorskip("tokenizers")
        spec = export.tokenizer_json(load_tokenizer(sp_model))
        tok = tokenizers.Tokenizer.from_str(json.dumps(spec))
        tok.add_special_tokens(["<|im_start|>", "<|im_end|>"])
        assert tok.token_to_id("<|im_start|>") == 360
        tok.save(str(hf / "tokenizer.json"))
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    config = special | {"pad_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    config |= {"chat_template": CHAT, "model_max_length": 64}
    generation = {"bos_token_id": 1, "eos_token_id": [2], "temperature": 0.7}
    (hf / "tokenizer_config.json").write_text(json.dumps(config))
    (hf / "special_tokens_map.json").write_text(json.dumps(special))
    (hf / "generation_config.json").write_text(json.dumps(generation))
    front = "license: apache-2.0\nbase_model:\n- someone/small-llama\ntags: [x]\n"
    (hf / "README.md").write_text(f"---\n{front}---\nText.\n")
    (hf / "LICENSE").write_text("As you like.\n")
    return hf


def test_a_hostile_origin_writes_nothing_outside_the_folder(tmp_path):
    data = torch.zeros(1, dtype=torch.uint8)
    for name in ("../x", f"{tmp_path}/x", "a/../../x"):
        with pytest.raises(ValueError, match="not inside the folder"):
            export.write_origin(str(tmp_path / "out"), {"files": {name: data}})
    assert not any(tmp_path.iterdir())
    export.write_origin(str(tmp_path / "out"), {"files": {"a/x": data}})
    assert (tmp_path / "out/a/x").read_bytes() == b"\0"


@pytest.mark.parametrize("known", [None, 2, {"a": 2}, [9, 2]])
def test_the_generation_config_that_a_model_came_with_gets_its_stop_tokens(known, tmp_path):
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"eos_token_id": known, "temperature": 0.7}))
    export.write_generation(str(path), 1, [2, 9])
    stop = known if known == [9, 2] else [2, 9]  # another order is no other set
    assert json.loads(path.read_text()) == {"eos_token_id": stop, "temperature": 0.7}


def test_a_grown_model_does_not_report_the_loss_of_another(tmp_path):
    path = tmp_path / "metrics.jsonl"
    untrained, trained = ({"step": s, "tokens": 64 * s, "bpb": 9.0 - s} for s in (0, 8))
    path.write_text("".join(json.dumps(line) + "\n" for line in (untrained, trained)) + '{"step": 8, "bpb')
    assert export.last_evaluation(path, 8, 512) == trained  # a kill has cut the last line
    assert export.last_evaluation(path, 0, 512) == {}  # grown from it: step 0, after as many tokens
    path.write_text('["bpb"]\n')
    with pytest.raises(ValueError, match="not a metrics.jsonl"):
        export.last_evaluation(path, 8, 512)


def test_a_text_that_was_prepared_anew_is_not_measured(sp_model, tmp_path):
    ckpt, tok = checkpoint_of(sp_model), load_tokenizer(sp_model)
    meta = dict.fromkeys(("vocab_size", "dtype", "bos", "dummy_prefix", "splits"))
    export.write_json(tmp_path / "meta.json", meta | {"tokenizer": {"sha256": "another"}})
    np.arange(300, dtype="<u2").tofile(tmp_path / "val.bin")
    ckpt |= {"settings": {"data": str(tmp_path)}}
    assert export.measure(ckpt, tok, build(ckpt), None).count("\n") == 1  # no figures


@pytest.mark.parametrize("dummy_prefix", [True, False])
def test_the_tokenizer_json_of_a_model_with_and_without_a_dummy_prefix(dummy_prefix, tmp_path):
    tokenizers = pytest.importorskip("tokenizers")
    train_tokenizer(tmp_path / "t.model", make_docs(100), 320, add_dummy_prefix=dummy_prefix)
    tok = load_tokenizer(str(tmp_path / "t.model"))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(export.tokenizer_json(tok)))
    assert tok.dummy_prefix == dummy_prefix
    for text in ("the dog sat", " the  dog", "日本 🙂"):
        ids = tok.encode(text)
        assert theirs.encode(text, add_special_tokens=False).ids == ids and theirs.decode(ids) == text


def test_a_model_that_chats_comes_back_as_it_was(chat_model, tmp_path):
    again = import_and_export(chat_model, tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json", "tokenizer.json", "LICENSE"):
        assert (again / name).read_bytes() == (chat_model / name).read_bytes(), name
    before, after = (transformers.AutoTokenizer.from_pretrained(folder) for folder in (chat_model, again))
    for text in ("Ann sees  the ball.", " <|im_start|>Ann</s>", "\n\n日本"):
        assert before(text)["input_ids"] == after(text)["input_ids"]
    prompts = [t.apply_chat_template(TALK, add_generation_prompt=True) for t in (before, after)]
    assert prompts[0]["input_ids"] == prompts[1]["input_ids"]
    start, end = before.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert start in prompts[1]["input_ids"] and after.all_special_ids == before.all_special_ids

    load = transformers.AutoModelForCausalLM.from_pretrained
    a, b = load(chat_model).eval(), load(again).eval()
    ids = torch.tensor([prompts[0]["input_ids"]])
    with torch.no_grad():
        assert (a(ids).logits - b(ids).logits).abs().max() <= 1e-5
    for name in ("bos_token_id", "pad_token_id"):
        assert getattr(a.config, name) == getattr(b.config, name), name
    origin = load_checkpoint(tmp_path / "ckpt.pt")["origin"]
    assert origin["stop"] == b.config.eos_token_id == b.generation_config.eos_token_id == [2, end]
    assert b.generation_config.temperature == 0.7  # the rest of generation_config.json stays
    assert origin["ids"] == {"bos": 1, "eos": 2, "pad": 2}
    assert (origin["license"], origin["base_model"]) == ("apache-2.0", "someone/small-llama")
    card = (again / "README.md").read_text()
    assert 'license: "apache-2.0"\nbase_model: "someone/small-llama"\n---' in card
    assert "hf was made from someone/small-llama" in card
    ok("export.py", "--from", again, "--out", tmp_path / "second.pt")
    second = load_checkpoint(tmp_path / "second.pt")["origin"]
    for kept in (origin, second):
        del kept["name"], kept["files"]
    assert second == origin


def test_an_exported_model_stops_where_a_document_ends(sp_model, tmp_path):
    ckpt = checkpoint_of(sp_model)
    head, prompt = ckpt["model"]["head.0"], TOKENS[:, :9]
    with torch.no_grad():  # <s>, which goes before the next document, comes first after anything
        model = build(ckpt)
        x, _ = model.trunk(prompt)
        head.zero_()
        head[1] = 100 * x.flatten(0, 1).mean(0)
        assert (x[:, -1] @ head.T).argmax(-1).tolist() == [1, 1, 1]
    save_checkpoint(tmp_path / "a.pt", ckpt)
    ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf")
    for name in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / "hf" / name).read_text())
        assert values["eos_token_id"] == [2, 1] and values["bos_token_id"] == 1
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    written = model.generate(prompt[:1], max_new_tokens=9, do_sample=False, pad_token_id=0)
    assert written[0, 9:].tolist() == [1]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert tokenizer.eos_token == "<s>"  # what llama.cpp stops at


def test_an_imported_model_that_was_trained_on_stops_at_bos_too(chat_model, tmp_path):
    again = import_and_export(chat_model, tmp_path)
    ckpt = load_checkpoint(tmp_path / "ckpt.pt")
    bos, stop = Tokenizer.from_dict(ckpt["tokenizer"]).bos, ckpt["origin"]["stop"]
    ckpt["ledger"]["tokens"] = 512
    save_checkpoint(tmp_path / "trained.pt", ckpt)
    ok("export.py", "--in", tmp_path / "trained.pt", "--out", tmp_path / "trained")
    assert json.loads((again / "config.json").read_text())["eos_token_id"] == stop
    for name in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "trained" / name).read_text())["eos_token_id"] == [*stop, bos]


@pytest.mark.parametrize("style", ["own export", "saved by transformers", "hub", "metaspace"])
def test_a_sentencepiece_tokenizer_that_is_there_as_json_alone(style, sp_model, tmp_path):
    """As transformers 5 saves a Llama 2 folder."""
    hf = tmp_path / "hf"
    save_llama(hf, vocab_size=360)
    tok = load_tokenizer(sp_model)
    spec = export.tokenizer_json(tok)
    if style == "hub":  # merges as older files have them
        spec["model"]["merges"] = [" ".join(pair) for pair in spec["model"]["merges"]]
    if style == "metaspace":
        metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
        spec |= {"normalizer": None, "pre_tokenizer": metaspace}
    (hf / "tokenizer.json").write_text(json.dumps(spec))
    if style == "saved by transformers":
        save_checkpoint(tmp_path / "a.pt", checkpoint_of(sp_model))
        ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "first")
        transformers.AutoTokenizer.from_pretrained(tmp_path / "first").save_pretrained(tmp_path / "second")
        shutil.copy(tmp_path / "second/tokenizer.json", hf / "tokenizer.json")
    again = import_and_export(hf, tmp_path)
    mine = Tokenizer.from_dict(load_checkpoint(tmp_path / "ckpt.pt")["tokenizer"])
    assert (mine.kind, mine.bos, mine.eos, mine.dummy_prefix) == ("sentencepiece", 1, 2, True)
    # what prepare.py makes of the same file
    assert mine.sha256 == load_tokenizer(str(hf / "tokenizer.json")).sha256
    for text in ("Ann sees the ball.\n\nBen  likes   the dog.", " a", "日本 🙂\t<s>", "x\n y", ""):
        ids = mine.encode(text)
        assert ids == tok.encode(text) and mine.decode(ids) == text
        arr, prev = np.array(ids, int), np.array([mine.bos, *ids[:-1]], int)[: len(ids)]
        n = data_module.count_bytes(arr, prev, mine.token_bytes(), mine.bos, mine.dummy_prefix)
        assert n == len(text.encode())
    assert (again / "tokenizer.json").read_bytes() == (hf / "tokenizer.json").read_bytes()


def test_a_tokenizer_json_that_no_sentencepiece_model_says(sp_model, tmp_path):
    spec = export.tokenizer_json(load_tokenizer(sp_model))
    model, merges = spec["model"], "not those of a sentencepiece model"
    split = {"normalizer": None, "pre_tokenizer": {"type": "Metaspace"}}
    for changed, message in [
        ({"model": model | {"merges": model["merges"][:-1]}}, merges),
        ({"normalizer": {"type": "NFKC"}}, "it changes or splits the text"),
        (split, "it changes or splits the text"),
        ({"model": {"type": "BPE", "byte_fallback": True}}, "or a broken one"),
        ({"model": model | {"merges": ["ab"]}}, merges),
        ({"model": model | {"vocab": ["a"]}}, "or a broken one"),
        ({"added_tokens": [3]}, "or a broken one"),
    ]:
        (tmp_path / "tokenizer.json").write_text(json.dumps(spec | changed))
        with pytest.raises(ValueError, match=message):
            load_tokenizer(str(tmp_path / "tokenizer.json"))


def test_a_tokenizer_is_that_of_a_checkpoint(sp_model, tmp_path):
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(sp_model))
    assert load_tokenizer(str(tmp_path / "a.pt")).sha256 == load_tokenizer(sp_model).sha256


@pytest.mark.parametrize("other", ["tiktoken", "lfs", "another"])
def test_a_tokenizer_model_that_is_none_gives_way_to_the_json(other, sp_model, tmp_path):
    hf = tmp_path / "hf"
    save_llama(hf)
    pre = pytest.importorskip("tokenizers.pre_tokenizers").ByteLevel(add_prefix_space=False)
    save_byte_bpe(hf / "tokenizer.json", ["Ann sees the ball."], pre)
    if other == "another":
        shutil.copy(sp_model, hf / "tokenizer.model")
    else:
        said = {"tiktoken": "IQ== 0\nIg== 1\n", "lfs": "version https://git-lfs.github.com/spec/v1\n"}
        (hf / "tokenizer.model").write_text(said[other])
    ok("export.py", "--from", hf, "--out", tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt")["tokenizer"]["kind"] == "tokenizers"
    (hf / "tokenizer.json").unlink()
    if other != "another":
        error, _ = run("export.py", "--from", hf, "--out", tmp_path / "b.pt")
        assert {"tiktoken": "in tiktoken's format", "lfs": "a Git LFS pointer"}[other] in error


def test_the_context_is_not_the_training_length(data, stage, tmp_path):
    hf = tmp_path / "hf"
    n = json.loads(open(f"{data}/meta.json").read())["vocab_size"]
    save_llama(hf, vocab_size=n, max_position_embeddings=8192, head_dim=10)
    shutil.copy(f"{data}/tokenizer.model", hf)
    a, b = tmp_path / "a.pt", tmp_path / "b"
    ok("export.py", "--from", hf, "--out", a)
    config = load_checkpoint(a)["config"]
    assert (config["context"], config["block_size"]) == (8192, 4096)
    settings = [f"--data={data}", f"--init_from={a}", f"--out_dir={b}"]
    settings += ["--block_size=32", "--tokens_per_step=128", "--max_steps=2", "--compile=False"]
    settings += ["--device=cpu", "--eval_tokens=256", "--sample_tokens=0"]
    ok("train.py", *settings)
    config = load_checkpoint(b / "ckpt.pt")["config"]
    assert (config["context"], config["block_size"]) == (8192, 32)
    ok("grow.py", "--in", b / "ckpt.pt", "--double", "depth")
    assert load_checkpoint(b / "grown.pt")["config"]["context"] == 8192
    ok("export.py", "--in", b / "ckpt.pt", "--out", tmp_path / "hf2")
    assert json.loads((tmp_path / "hf2/config.json").read_text())["max_position_embeddings"] == 8192
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf2")
    mine = build_model(load_checkpoint(b / "ckpt.pt"))
    ids = torch.randint(n, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # beyond what a sequence of the training has
        assert (theirs(ids).logits - mine(ids)).abs().max() <= 1e-4


def test_a_longer_training_length_is_a_longer_context_and_old_checkpoints_have_theirs():
    cfg = Config(block_size=24)
    assert cfg.context == 24 and Config(**vars(cfg) | {"block_size": 16}).context == 24
    assert Config(**vars(cfg) | {"block_size": 48}).context == 48
    old = cfg.plain()
    del old["context"]
    assert Config(**old) == cfg
    assert cfg.flops_per_token() == Config(block_size=24, context=999).flops_per_token()


def test_an_old_checkpoint_keeps_its_context_when_it_is_trained_on_shorter(tmp_path):
    ckpt = tiny()
    del ckpt["config"]["context"]
    save_checkpoint(tmp_path / "a.pt", ckpt)
    config = load_checkpoint(tmp_path / "a.pt")["config"]
    assert Config(**config | {"block_size": 8}).context == 24


def test_sizes_that_no_llama_has_are_named_at_once(tmp_path, sp_model):
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(sp_model, n_embd=64, n_head=6, n_kv_head=2))
    error, _ = run("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf")
    assert "n_embd = 64 is no multiple of n_head = 6" in error and "--width 66 --heads 6" in error
    assert ", or" not in error  # no number of heads would do
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(sp_model, n_embd=64, n_head=6, n_kv_head=3))
    error, _ = run("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf")
    assert "or --heads 8" in error


@pytest.mark.parametrize("tied", [False, True])
def test_tokens_without_a_row_get_little_of_the_probability(tied, sp_model, tmp_path):
    rows = torch.arange(0, 360, 1)[:300]
    ckpt = checkpoint_of(sp_model, vocab_size=300, n_tokens=360, block_size=64, tied=tied)
    ckpt["model"]["row_of"][:] = -1
    ckpt["model"]["row_of"][rows] = torch.arange(300)
    (tmp_path / "d").mkdir()
    start = torch.full((150, 1), 1)  # text of the model's own
    columns = build(ckpt).generate(start, 59, rng=torch.Generator().manual_seed(7))
    torch.cat([start, *columns], 1).numpy().astype("<u2").tofile(tmp_path / "d/val.bin")
    meta = dict.fromkeys(("vocab_size", "dtype", "bos", "dummy_prefix", "splits"))
    export.write_json(tmp_path / "d/meta.json", meta | {"tokenizer": ckpt["tokenizer"] | {"model": None}})
    save_checkpoint(tmp_path / "a.pt", ckpt | {"settings": {"data": str(tmp_path / "d")}})
    printed = ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf")
    theirs, mine = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf"), build(ckpt)
    x = torch.randint(300, (8, 60), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        there, here = theirs(x).logits, mine(x)
        others = theirs.get_input_embeddings().weight[300:] - mine.wte.full().mean(0)
    assert (there[..., :300] - here).abs().max() <= 1e-5 and others.abs().max() <= 1e-6
    lost = there.softmax(-1)[..., 300:].sum(-1).mean().item()
    assert 0.1 < lost < 0.3 if tied else lost < 0.06, lost  # of random states, the hardest
    card = (tmp_path / "hf/README.md").read_text()
    said = "It was trained with rows for 300 of the 360 tokens."
    assert said in printed and said in card
    before, after = (float(n) for n in re.findall(r"(\d+\.\d{4}) (?:before|after)", card))
    assert (0 < after - before < 0.1) == (not tied)  # 0.18 with the mean
    assert re.search(r"\d\.\d{4} as this folder's tokenizer reads it", card)


def test_a_model_with_all_rows_says_nothing_of_rows(sp_model, tmp_path):
    save_checkpoint(tmp_path / "a.pt", checkpoint_of(sp_model))
    ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf")
    assert "rows" not in (tmp_path / "hf/README.md").read_text()


def test_a_mistral_without_a_window_is_a_llama(sp_model, tmp_path):
    hf = tmp_path / "hf"
    more = dict(vocab_size=380, max_position_embeddings=64, sliding_window=None)
    config = transformers.MistralConfig(**SIZES | more)
    theirs = transformers.MistralForCausalLM(config)
    theirs.save_pretrained(hf)
    shutil.copy(sp_model, hf / "tokenizer.model")
    again = import_and_export(hf, tmp_path)
    other = transformers.AutoModelForCausalLM.from_pretrained(again)
    x = torch.randint(380, (2, 40), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        assert type(other).__name__ == "LlamaForCausalLM"
        assert torch.allclose(theirs.eval()(x).logits, other.eval()(x).logits, atol=1e-6)
    change(hf / "config.json", sliding_window=32)
    error, _ = run("export.py", "--from", hf, "--out", tmp_path / "b.pt")
    assert "sliding_window is 32, and model.py has none: --context 32 keeps below it" in error
    ok("export.py", "--from", hf, "--out", tmp_path / "b.pt", "--context", 32)
    assert load_checkpoint(tmp_path / "b.pt")["config"]["context"] == 32
    config = json.loads((hf / "config.json").read_text())
    del config["sliding_window"]  # 4096 in transformers
    (hf / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4097}))
    assert "sliding_window is 4096" in run("export.py", "--from", hf, "--out", tmp_path / "c.pt")[0]


def test_broken_weights_are_refused_by_name(sp_model, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    hf, out = tmp_path / "hf", tmp_path / "out/a.pt"
    save_llama(hf)
    shutil.copy(sp_model, hf / "tokenizer.model")
    tensors = safetensors.load_file(hf / "model.safetensors")
    for name, value in [
        ("model.layers.1.mlp.down_proj.weight", float("nan")),
        ("model.embed_tokens.weight", float("inf")),
        ("model.norm.weight", float("-inf")),
        ("lm_head.weight", float("nan")),
    ]:
        broken = {key: x.clone() for key, x in tensors.items()}
        broken[name].view(-1)[3] = value
        safetensors.save_file(broken, hf / "model.safetensors", {"format": "pt"})
        assert f"{name} holds NaN or infinity" in run("export.py", "--from", hf, "--out", out)[0]
        assert sorted(os.listdir(tmp_path)) == ["hf"]


@pytest.mark.parametrize("stored", ["head", "embedding", "both"])
def test_a_tied_llama_may_store_either_name(stored, sp_model, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    hf = tmp_path / "hf"
    theirs = save_llama(hf, tie_word_embeddings=True).eval()
    shutil.copy(sp_model, hf / "tokenizer.model")
    tensors = safetensors.load_file(hf / "model.safetensors")
    w = tensors.pop("model.embed_tokens.weight", None)
    w = tensors.pop("lm_head.weight", w)
    if stored != "embedding":
        tensors["lm_head.weight"] = w.clone()
    if stored != "head":
        tensors["model.embed_tokens.weight"] = w.clone()
    safetensors.save_file(tensors, hf / "model.safetensors", {"format": "pt"})
    ok("export.py", "--from", hf, "--out", tmp_path / "a.pt")
    mine = build_model(load_checkpoint(tmp_path / "a.pt"))
    with torch.no_grad():
        assert (theirs(TOKENS).logits - mine(TOKENS)).abs().max() <= 1e-5


def test_folders_that_are_no_llama_are_refused_in_a_line(sp_model, tmp_path):
    hf, out = tmp_path / "hf", tmp_path / "out/a.pt"
    save_llama(hf)
    shutil.copy(sp_model, hf / "tokenizer.model")

    def refused(folder, *messages):
        error, _ = run("export.py", "--from", folder, "--out", out)
        for message in messages:
            assert message in error, error
        assert "Errno" not in error and "Traceback" not in error and len(error.splitlines()) == 1
        assert not out.parent.exists()

    def folder(*names):
        made = tmp_path / f"made{len(list(tmp_path.iterdir()))}"
        made.mkdir()
        for name in names:
            if (hf / name).exists():
                shutil.copy(hf / name, made)
            else:
                (made / name).write_text("{}")
        return made

    refused(folder(), "an empty folder")
    refused(folder("model.safetensors"), "no config.json in it", "hf download")
    refused(folder("adapter_config.json", "adapter_model.safetensors"), "a LoRA adapter", "merge_and_unload")
    refused(folder("x.Q4_0.gguf"), "but GGUF: give the file, --from", "x.Q4_0.gguf")
    refused(folder("params.json", "consolidated.00.pth"), "Meta's params.json")
    pytorch = folder("config.json", "tokenizer.model", "pytorch_model.bin")
    refused(pytorch, "only pytorch_model.bin", "save_pretrained")
    refused(hf / "model.safetensors", "neither a folder nor a .gguf file")
    refused(hf / "config.json", "neither a folder nor a .gguf file")
    refused(tmp_path / "none.gguf", "no such")
    lfs, pointer = folder("config.json", "tokenizer.model"), "version https://git-lfs.github.com/spec/v1\n"
    (lfs / "model.safetensors").write_text(pointer + "oid sha256:0\nsize 9\n")
    refused(lfs, "a Git LFS pointer, not the weights: git lfs pull")
    folder_of_folder = folder("tokenizer.model")
    (folder_of_folder / "config.json").mkdir()
    refused(folder_of_folder, "config.json: Is a directory")

    sharded = folder("config.json", "tokenizer.model", "model.safetensors")
    index = sharded / "model.safetensors.index.json"
    one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    (sharded / "model.safetensors").rename(sharded / one)
    index.write_text(json.dumps({"weight_map": {"model.norm.weight": one, "lm_head.weight": two}}))
    refused(sharded, f"{two}: missing", "1 of the 2 files")
    where = dict.fromkeys(("model.norm.weight", "lm_head.weight", "model.layers.9.x"), one)
    index.write_text(json.dumps({"weight_map": where}))
    refused(sharded, "model.layers.9.x is missing")
    for odd in ({"a": 3}, {"a": None}, {"a": "../hf/model.safetensors"}, {"a": ["x"]}):
        index.write_text(json.dumps({"weight_map": odd}))
        refused(sharded, "its weight_map names what is no file of the folder")
    for name in ("generation_config.json", "tokenizer_config.json", "tokenizer.json"):
        odd = folder("config.json", "tokenizer.model", "model.safetensors")
        for text in ("[]", "{", "\ufeff{", "null"):
            (odd / name).write_text(text)
            refused(odd, name)


def test_added_tokens_that_are_none_are_refused(sp_model, tmp_path):
    hf = tmp_path / "hf"
    save_llama(hf)
    shutil.copy(sp_model, hf / "tokenizer.model")
    for added in ([3], [{"special": True}], "x"):
        (hf / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
        error, _ = run("export.py", "--from", hf, "--out", tmp_path / "a.pt")
        assert "tokenizer.json: broken: its added_tokens are none" in error


def test_bfloat16_becomes_float32_and_bfloat16_again(sp_model, tmp_path):
    hf = tmp_path / "hf"
    save_llama(hf, dtype=torch.bfloat16)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.bfloat16)
    theirs.save_pretrained(hf)
    shutil.copy(sp_model, hf / "tokenizer.model")
    printed = ok("export.py", "--from", hf, "--out", tmp_path / "a.pt")
    assert "BF16" in printed and "a checkpoint has float32" in printed
    command = [sys.executable, f"{HERE}/export.py", "--from", hf]
    command += ["--out", tmp_path / "b.pt", "--dtype", "bfloat16"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 2 and "a checkpoint has float32, since" in said.stderr
    ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf2", "--dtype", "bfloat16")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf2", dtype=torch.bfloat16)
    assert same(theirs.state_dict(), back.state_dict())  # to the bit


def write_gguf(path, model, tok, chat=""):
    """Write a Llama of transformers as a GGUF file, as llama.cpp's converter does."""
    # the sizes
    gguf = pytest.importorskip("gguf")
    c, w = model.config, gguf.GGUFWriter(path, "llama")
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_rope_dimension_count(c.head_dim)
    w.add_key_length(c.head_dim)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    if c.rope_parameters["rope_theta"] != 1e4:  # llama.cpp's default
        w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_license("mit")

    # the tensors
    names = {there: here for here, there in export.GGUF_NAMES.items()}
    outside = {there: here for here, there in export.GGUF_OUTSIDE.items()}
    for name, x in model.state_dict().items():
        name, x = name.removesuffix(".weight"), x.numpy()
        if name == "lm_head" and c.tie_word_embeddings:
            continue
        heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-1])
        if heads:
            x = x.reshape(heads, 2, -1, x.shape[1]).swapaxes(1, 2).reshape(x.shape)
        if name in outside:
            w.add_tensor(f"{outside[name]}.weight", np.ascontiguousarray(x))
        else:
            _, _, layer, kind = name.split(".", 3)
            w.add_tensor(f"blk.{layer}.{names[kind]}.weight", np.ascontiguousarray(x))
    if c.rope_parameters["rope_type"] == "llama3":
        cfg = export.babel_config("", c.to_dict())
        plain = Config(**vars(cfg) | {"rope_scaling": {}})
        factors = rope_frequencies(plain) / rope_frequencies(cfg)
        w.add_tensor("rope_freqs.weight", factors.float().numpy())

    # the tokenizer
    if hasattr(tok, "sp"):
        kind = {"is_unknown": 2, "is_control": 3, "is_unused": 5, "is_byte": 6}
        w.add_tokenizer_model("llama")
        ids = range(tok.vocab_size)
        w.add_token_list([tok.sp.id_to_piece(i) for i in ids])
        w.add_token_scores([tok.sp.get_score(i) for i in ids])
        w.add_token_types([next((k for f, k in kind.items() if getattr(tok.sp, f)(i)), 1) for i in ids])
    else:
        spec = json.loads(tok.model)
        special = {token["id"] for token in spec["added_tokens"]}
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre("gpt-2")
        by_id = sorted(spec["model"]["vocab"], key=spec["model"]["vocab"].get)
        w.add_token_list(by_id)
        w.add_token_types([3 if i in special else 1 for i in range(len(by_id))])
        w.add_token_merges([" ".join(pair) for pair in spec["model"]["merges"]])
    w.add_bos_token_id(tok.bos)
    w.add_eos_token_id(tok.eos)
    if chat:
        w.add_chat_template(chat)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


LLAMA31 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize("kind", ["sentencepiece", "byte level", "llama3"])
def test_a_gguf_file_is_the_llama_it_was_made_of(kind, sp_model, tmp_path):
    pytest.importorskip("gguf")
    says = {"tie_word_embeddings": kind == "byte level"}
    if kind == "llama3":
        says["rope_parameters"] = LLAMA31
    tok = load_tokenizer(sp_model)
    if kind == "byte level":
        pre = pytest.importorskip("tokenizers.pre_tokenizers").ByteLevel(add_prefix_space=False)
        save_byte_bpe(tmp_path / "tokenizer.json", ["Ann sees the ball. It's 12 balls."], pre)
        tok = load_tokenizer(str(tmp_path / "tokenizer.json"))
    theirs = save_llama(tmp_path / "hf", vocab_size=tok.vocab_size, **says).eval()
    write_gguf(tmp_path / "small.gguf", theirs, tok, CHAT)
    ok("export.py", "--from", tmp_path / "small.gguf", "--out", tmp_path / "a.pt")
    ckpt = load_checkpoint(tmp_path / "a.pt")
    mine = build_model(ckpt)
    with torch.no_grad():
        assert (theirs(TOKENS).logits - mine(TOKENS)).abs().max() <= 1e-5
    read = Tokenizer.from_dict(ckpt["tokenizer"])
    for text in ("Ann sees  the ball.\n", " a 12 it's", "日本 🙂"):
        assert read.encode(text) == tok.encode(text) and read.decode(read.encode(text)) == text
    assert (read.bos, read.eos) == (tok.bos, tok.eos) and ckpt["origin"]["stop"] == [tok.eos]
    assert ckpt["origin"]["license"] == "mit" and ckpt["ledger"]["from"] == "small"
    ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "out")
    there = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    said = there.apply_chat_template(TALK, tokenize=False)
    assert said == "<|im_start|>user\nAnn sees  the ball.\n<|im_end|>\n"
    other = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert (theirs(TOKENS).logits - other(TOKENS).logits).abs().max() <= 1e-5


def test_bad_gguf_files_are_refused_in_a_line(sp_model, tmp_path):
    gguf = pytest.importorskip("gguf")
    theirs = save_llama(tmp_path / "hf", vocab_size=360)
    write_gguf(tmp_path / "good.gguf", theirs, load_tokenizer(sp_model))
    good = (tmp_path / "good.gguf").read_bytes()

    def refused(name, message):
        error, _ = run("export.py", "--from", tmp_path / name, "--out", tmp_path / "a.pt")
        assert message in error and "Traceback" not in error, (name, error)

    for data in (b"", b"hello" * 99, good[: len(good) // 2], good[:200]):
        (tmp_path / "bad.gguf").write_bytes(data)
        refused("bad.gguf", "truncated, or no GGUF file")
    w = gguf.GGUFWriter(tmp_path / "qwen.gguf", "qwen2")
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    refused("qwen.gguf", "general.architecture is qwen2")
    shutil.copy(tmp_path / "good.gguf", tmp_path / "good-00001-of-00002.gguf")
    refused("good-00001-of-00002.gguf", "one of several")


def test_odd_values_of_a_gguf_file_are_one_line():
    tokens, name = ["<unk>", "<s>", "<|im_start|>", "a"], "tokenizer.ggml."
    right = {"model": "gpt2", "tokens": tokens, "token_type": [2, 3, 4, 1], "merges": [], "pre": "llama-bpe"}
    files = export.gguf_files("x", {name + key: value for key, value in right.items()})
    added = json.loads(files["tokenizer.json"])["added_tokens"]  # what is kept whole
    assert [(token["content"], token["special"]) for token in added] == [
        ("<unk>", True),
        ("<s>", True),
        ("<|im_start|>", False),
    ]
    for key, value in [
        ("tokens", 3),
        ("tokens", [1, 1, 1, 1]),
        ("token_type", 7),
        ("scores", 1),
        ("merges", [1]),
        ("pre", ["a"]),
    ]:
        with pytest.raises(ValueError, match="^x: "):
            export.gguf_files("x", {name + k: v for k, v in (right | {key: value}).items()})
    assert export.gguf_files("x", {name + k: v for k, v in (right | {"bos_token_id": "a"}).items()})


def test_a_scaling_that_a_gguf_file_does_not_name_is_linear():
    for says in ({"rope.scaling.factor": 2.0}, {"rope.scale_linear": 4.0}):
        with pytest.raises(ValueError, match="rope.scaling.type is linear"):
            export.gguf_scaling("x", says, None)
    assert export.gguf_scaling("x", {"rope.scaling.factor": 1.0}, None) is None
    for theta, n in (("1e4", 4), (1e4, 0)):
        with pytest.raises(ValueError, match="x: broken: rope.freq_base"):
            export.gguf_scaling("x", {"rope.freq_base": theta}, SimpleNamespace(data=np.ones(n)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("growth", ["none", *GROWTHS, "stack", "clone", "nine"])
def test_exported_logits_are_those_of_transformers(kind, growth, tmp_path, monkeypatch):
    ckpt = tiny(torch.float32, **KINDS[kind])
    others = {"stack": dict(n_layer=5, init="stack"), "clone": CLONE | heads(kind, 12)}
    if growth == "nine":
        ckpt = grow_nine(ckpt, kind)
    elif growth != "none":
        ckpt, *_ = grow(ckpt, **others.get(growth) or GROWTHS[growth](kind))
    if growth != "none":
        ckpt = steps(ckpt, 3, lr=1e-2)
    cfg = Config(**ckpt["config"])
    monkeypatch.setattr(export, "SHARD", 50_000 if kind == "gqa" else 10**9)  # several files, or one
    export.write_json(tmp_path / "config.json", export.llama_config(cfg, "float32", 1, 2))
    export.write_safetensors(tmp_path, export.llama_tensors(cfg, ckpt["model"]), "float32")
    theirs, loading = transformers.LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert (tmp_path / "model.safetensors").exists() == (kind != "gqa")
    with torch.no_grad():
        assert (logits(ckpt) - theirs.eval()(TOKENS[:, :-1]).logits).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_llama_comes_back_to_the_bit(kind, tmp_path, sp_model):
    pytest.importorskip("safetensors")
    model = torch.from_numpy(np.fromfile(sp_model, np.uint8))
    tokenizer = {"kind": "sentencepiece", "name": "tokenizer.model"}
    tokenizer["sha256"] = data_module.sha256(open(sp_model, "rb").read())
    sizes = dict(vocab_size=380, norm_eps=3e-6, rope_theta=5e5)  # 20 rows more than tokens
    ckpt = tiny(torch.float32, **sizes, **KINDS[kind])
    save_checkpoint(tmp_path / "a.pt", ckpt | {"tokenizer": tokenizer | {"model": model}})
    ok("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf")
    ok("export.py", "--from", tmp_path / "hf", "--out", tmp_path / "new/b.pt")
    ok("export.py", "--in", tmp_path / "new/b.pt", "--out", tmp_path / "hf2")
    again = load_checkpoint(tmp_path / "new/b.pt")
    assert again["config"] == ckpt["config"] and same(again["model"], ckpt["model"])
    assert again["ledger"]["tokens"] == 0 and torch.equal(again["tokenizer"].pop("model"), model)
    assert again["tokenizer"] == tokenizer and os.listdir(tmp_path / "new") == ["b.pt"]
    for name in set(os.listdir(tmp_path / "hf")) - {"README.md"}:  # the second's says where it is from
        assert (tmp_path / "hf2" / name).read_bytes() == (tmp_path / "hf" / name).read_bytes(), name
    assert "made with Babel from hf of width 40" in (tmp_path / "hf2/README.md").read_text()
    ok("export.py", "--from", tmp_path / "hf", "--out", tmp_path / "short.pt", "--block_size", 16)
    short = load_checkpoint(tmp_path / "short.pt")["config"]
    assert short == ckpt["config"] | {"block_size": 16, "context": 24}


SCALED = {"rope_parameters": LLAMA31 | {"rope_theta": 1e2, "original_max_position_embeddings": 64}}
LLAMAS = {  # of transformers: what a config says beside the sizes, and how it is stored
    "gqa": ({}, {}),
    "tied": ({"tie_word_embeddings": True}, {}),
    "mha": ({"num_key_value_heads": 4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {}),
    "head_dim": ({"head_dim": 18, "rms_norm_eps": 3e-5}, {}),
    "llama3": (SCALED, {}),
    "bfloat16": ({}, {"dtype": torch.bfloat16}),
    "float16": ({}, {"dtype": torch.float16}),
    "shards": ({}, {"max_shard_size": "50KB"}),
    "old": ({"num_key_value_heads": 4, "rms_norm_eps": 1e-6}, {"without": True}),
}


@pytest.mark.parametrize("kind", LLAMAS)
def test_a_llama_of_transformers_grows(kind, tmp_path, sp_model):
    """Its logits, those of what it becomes, and those of what that leaves as."""
    says, stored = LLAMAS[kind]
    hf, out = tmp_path / "hf", tmp_path / "ckpt.pt"
    theirs = save_llama(tmp_path / "first", **dict(max_position_embeddings=24) | says)
    size = stored.get("max_shard_size", "1GB")
    theirs.to(stored.get("dtype", torch.float32)).save_pretrained(hf, max_shard_size=size)
    if "without" in stored:  # what Llama 1's config.json lacks
        c = json.loads((hf / "config.json").read_text())
        for name in ("num_key_value_heads", "head_dim", "rope_parameters", "attention_bias", "mlp_bias"):
            del c[name]
        (hf / "config.json").write_text(json.dumps(c | {"torch_dtype": "float16"}))
    assert (hf / "model.safetensors.index.json").exists() == (kind == "shards")
    shutil.copy(sp_model, hf / "tokenizer.model")
    ok("export.py", "--from", hf, "--out", out)
    ckpt = load_checkpoint(out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(hf, dtype=torch.float32)
    sizes = ["--width", 60, "--heads", 6, "--depth", 3, "--head_dim", 2 * ckpt["config"]["head_dim"]]
    with torch.no_grad():
        wanted = theirs(TOKENS[:, :-1]).logits
        assert (logits(ckpt) - wanted).abs().max() <= 1e-5
        ok("grow.py", "--in", out, *sizes)
        ok("export.py", "--in", tmp_path / "grown.pt", "--out", tmp_path / "hf2")
        grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf2")
        assert grown.config.hidden_size == 60 and (grown(TOKENS[:, :-1]).logits - wanted).abs().max() <= 2e-5


def test_tokenizer_json(tmp_path):
    pre = pytest.importorskip("tokenizers.pre_tokenizers")
    from tokenizers import Regex, normalizers

    words = pre.Split(Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+|\s+"), "isolated")
    llama3 = pre.Sequence([words, pre.ByteLevel(add_prefix_space=False, use_regex=False)])
    smol = pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])
    docs = ODD + make_docs(50)
    for name, split, special, bos_eos in [
        ("llama3", llama3, ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"), (0, 1)),
        ("smol", smol, ("<|endoftext|>", "<|im_start|>"), (0, 0)),
    ]:
        path, options = tmp_path / f"{name}.json", ("--words", "5,all", "--val", "0.2")
        theirs = save_byte_bpe(path, make_docs(200), split, special)
        source = write_docs(tmp_path / f"{name}.jsonl", docs)
        files, meta = run_prepare(tmp_path / name, source, str(path), *options)
        tok = load_tokenizer(str(path))
        assert (tok.bos, tok.eos) == bos_eos and meta["bos"] == tok.bos and meta["dummy_prefix"] is False
        assert meta["vocab_size"] == theirs.get_vocab_size() == tok.vocab_size
        assert files["tokenizer.json"] == path.read_bytes()
        assert data_module.sha256(path.read_bytes()) == meta["tokenizer"]["sha256"]
        val = split_docs(tmp_path / name, "val", tok)
        assert sorted(val) == sorted(set(docs) & set(val))
        for text in docs + [" ".join(special)]:
            ids = tok.encode(text)
            assert tok.decode([tok.bos, *ids]) == text and tok.token_bytes()[ids].sum() == len(text.encode())
            assert ids == theirs.encode(text).ids or "<|" in text  # which is text here, not a special token
            assert tok.decode(spell(ids, tok.spelling(), lambda i: True)) == text
    changed = "not byte-level BPE that keeps the text as it is"
    for name, split, options, message in [
        ("prefix", pre.ByteLevel(add_prefix_space=True), {}, changed),
        ("nfc", smol, {"normalizer": normalizers.NFC()}, changed),
        ("metaspace", pre.Metaspace(), {}, changed),
        ("special", smol, {"special": ("<s>", "</s>")}, "has neither <|begin_of_text|> nor <|endoftext|>"),
    ]:
        save_byte_bpe(tmp_path / f"{name}.json", make_docs(200), split, **options)
        with pytest.raises(ValueError, match=re.escape(message)):
            data_module.load_tokenizer(str(tmp_path / f"{name}.json"))
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ValueError, match="no tokenizer.json, or a broken one"):
        data_module.load_tokenizer(str(tmp_path / "broken.json"))


@pytest.mark.parametrize("kind", ["tokenizer.model", "tokenizer.json"])
def test_growing_your_own_llama(kind, data, tmp_path):
    """A Llama of transformers, imported, trained, grown, trained on, sampled from, exported."""
    transformers = pytest.importorskip("transformers")
    hf, folder = tmp_path / "hf", data
    if kind == "tokenizer.json":
        hf.mkdir()
        pre = pytest.importorskip("tokenizers.pre_tokenizers").ByteLevel(add_prefix_space=False)
        text = f"{os.path.dirname(data)}/text.txt"
        save_byte_bpe(hf / kind, open(text).read().splitlines(), pre)
        folder, options = str(tmp_path / "d"), ["--tokenizer", hf / kind, "--val", 0.2, "--workers", 1]
        ok("prepare.py", "--input", text, "--out", folder, *options)
    n = json.loads(open(f"{folder}/meta.json").read())["vocab_size"]
    sizes = SIZES | dict(num_hidden_layers=1, hidden_size=32, vocab_size=n + 5, max_position_embeddings=64)
    config = transformers.LlamaConfig(**sizes, tie_word_embeddings=kind == "tokenizer.json")
    transformers.LlamaForCausalLM(config).save_pretrained(hf)
    if kind == "tokenizer.model":
        shutil.copy(f"{data}/tokenizer.model", hf)
    a, b, c, text = tmp_path / "a.pt", tmp_path / "b", tmp_path / "c", tmp_path / "t.txt"

    # imported, and sampled from
    ok("export.py", "--from", hf, "--out", a)
    error, _ = run("sample.py", "--in", a, "--check")
    assert "the checkpoint has no validation text: give --text FILE" in error
    text.write_text("Ann sees the ball.")
    ok("sample.py", "--in", a, "--check", "--text", text, "--n", 1, "--tokens", 9, "--device", "cpu")

    # trained, grown, trained on
    stage = [f"--data={folder}", "--tokens_per_step=512", "--batch_size=4", "--max_steps=8"]
    stage += ["--learning_rate=1e-2", "--warmup_tokens=1024", "--log_interval=1"]
    stage += ["--compile=False", "--device=cpu"]
    ok("train.py", *stage, f"--init_from={a}", f"--out_dir={b}")
    before = metrics(b, "bpb")
    assert metrics(b, "tokens")[8] == 8 * 512 and before[8] < before[0]
    said = ok("grow.py", "--in", b / "ckpt.pt", "--double", "width")
    assert float(re.search(r"max \|dlogit\| (\S+),", said)[1]) < 1e-5
    ok("train.py", *stage, f"--init_from={b / 'grown.pt'}", f"--out_dir={c}")
    after = metrics(c, "bpb")
    assert after[0] == pytest.approx(before[8], abs=1e-3) and after[8] < before[8]
    few = ["--prompt", "Ann", "--tokens", 5, "--device", "cpu"]
    assert ok("sample.py", "--in", c / "ckpt.pt", *few).startswith("Ann")

    # exported
    ok("export.py", "--in", c / "ckpt.pt", "--out", tmp_path / "hf2")
    grown = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf2").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf2")
    model = build_model(load_checkpoint(c / "ckpt.pt"))
    ids = torch.tensor([tokenizer("Ann sees the ball. Ben likes the dog.")["input_ids"]])
    with torch.no_grad():
        assert (grown(ids).logits - model(ids)).abs().max() <= 1e-5
    card = (tmp_path / "hf2/README.md").read_text()
    for said in ("grown with Babel from hf of width 32", "read 8,192 tokens", "beside what that had read"):
        assert said in card

    # a text of another tokenizer
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    meta = json.loads((other / "meta.json").read_text())
    meta["tokenizer"]["sha256"] = "0"
    (other / "meta.json").write_text(json.dumps(meta))
    error, _ = run("train.py", *stage, f"--init_from={a}", f"--out_dir={tmp_path / 'e'}", f"--data={other}")
    assert "not the one that" in error


@pytest.fixture
def llama(tmp_path, sp_model):
    """A small Llama's folder, in Hugging Face's format."""
    ckpt, folder = tiny(torch.float32, vocab_size=380), tmp_path / "hf"
    folder.mkdir()
    cfg = Config(**ckpt["config"])
    export.write_json(folder / "config.json", export.llama_config(cfg, "float32", 1, 2))
    export.write_safetensors(folder, export.llama_tensors(cfg, ckpt["model"]), "float32")
    shutil.copy(sp_model, folder / "tokenizer.model")
    return folder


def test_bad_input_to_export(llama, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    config = json.loads((llama / "config.json").read_text())
    weights = (llama / "model.safetensors").read_bytes()
    tensors = safetensors.load(weights)
    q, out = "model.layers.1.self_attn.q_proj.weight", tmp_path / "out/ckpt.pt"

    def refused(message, *args):
        error, _ = run("export.py", *args or ("--from", llama, "--out", out))
        assert message in error, (message, error)
        assert not out.parent.exists()

    # config.json
    linear = {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": None}
    yarn = {"rope_type": "yarn", "factor": 4}
    odd_width = "no head_dim, and hidden_size = 42 is no multiple of num_attention_heads = 4"
    tied = "its config.json ties the head to the embedding, but lm_head.weight is another"
    for changed, message in [
        ({"model_type": "qwen2"}, "model_type is qwen2, and model.py has only llama"),
        ({"architectures": ["LlamaForOther"]}, "architectures is ['LlamaForOther']"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is gelu, and model.py has only silu"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is True"),
        (linear, "rope_scaling is linear, and model.py has"),
        ({"rope_parameters": yarn}, "rope_scaling is yarn, and model.py has only default or"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "rope_scaling is dynamic"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor = None, expected a number"),
        ({"rope_parameters": "yes"}, "rope_parameters = 'yes', expected an object"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"hidden_size": None}, "hidden_size = None, expected a whole number"),
        ({"num_hidden_layers": "2"}, "num_hidden_layers = '2', expected a whole number"),
        ({"rms_norm_eps": "tiny"}, "rms_norm_eps = 'tiny', expected a number"),
        ({"num_key_value_heads": 3}, "n_head = 4 is not a multiple of n_kv_head = 3"),
        ({"head_dim": 7}, "head_dim = 7 is odd"),
        ({"head_dim": None, "hidden_size": 42}, odd_width),
        ({"num_hidden_layers": 0}, "n_layer = 0: must be positive"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm.weight is missing"),
        ({"num_hidden_layers": 1}, "a Llama of this config.json has no model.layers.1."),
        ({"intermediate_size": 80}, "mlp.gate_proj.weight is F32 [70, 40], expected [80, 40]"),
        ({"hidden_size": 2**62}, "hidden_size is too large"),
        ({"num_hidden_layers": 10**7}, "10000000 layers, but only 21 tensors"),
        ({"max_position_embeddings": 2**40}, "max_position_embeddings is too large"),
        ({"rope_parameters": {"rope_theta": 10**400}}, "rope_theta is too large"),
        ({"vocab_size": 300}, "its tokenizer has 360 tokens, its config.json a vocab_size of 300"),
        ({"tie_word_embeddings": True}, tied),
    ]:
        export.write_json(llama / "config.json", config | changed)
        refused(message)
    for text in ("{", "[" * 200_000):
        (llama / "config.json").write_text(text)
        refused("config.json: broken, or no JSON")
    (llama / "config.json").write_text("[]")
    refused("config.json: expected an object, not a list")
    export.write_json(llama / "config.json", config)

    # the weights
    long_header, bad_header = b"\xff" * 8 + weights[8:], weights[:8] + b"x" + weights[9:]
    for bad in (weights[:-1], weights[:100], b"", long_header, bad_header):
        (llama / "model.safetensors").write_bytes(bad)
        refused("model.safetensors: missing, truncated, or no safetensors file")
    without, turned = {k: v for k, v in tensors.items() if k != q}, tensors[q].T.contiguous()
    bias = {f"{q[:-6]}bias": tensors[q][:, 0].contiguous()}
    for changed, message in [
        (without, f"{q} is missing"),
        (tensors | {q: turned}, f"{q} is F32 [40, 24], expected [24, 40] of F32, BF16, F16"),
        (tensors | {q: tensors[q].to(torch.int8)}, f"{q} is I8 [24, 40]"),
        (tensors | bias, "a Llama of this config.json has no model.layers.1."),
    ]:
        safetensors.save_file(changed, llama / "model.safetensors")
        refused(message)
    (llama / "model.safetensors").unlink()
    refused("no model.safetensors, nor its index, in it")
    export.write_json(llama / "model.safetensors.index.json", {})
    refused("no weight_map in it")
    export.write_json(llama / "model.safetensors.index.json", {"weight_map": {q: "gone.safetensors"}})
    refused("gone.safetensors: missing, truncated")

    # the tokenizer, and the command line
    (llama / "tokenizer.model").unlink()
    refused("no tokenizer.model and no tokenizer.json in it")
    (llama / "tokenizer.model").write_text("x")
    refused("no sentencepiece model, or a broken one")
    refused("no such folder", "--from", tmp_path / "none", "--out", out)
    refused("it can only be shorter", "--from", llama, "--out", out, "--block_size", 25)
    refused("a folder: name a file in it, ", "--from", llama, "--out", f"{out.parent}/")
    refused("block_size = 0: must be positive", "--from", llama, "--out", out, "--block_size", 0)
    refused("exists: name a new file with --out", "--from", llama, "--out", llama / "config.json")
    assert sorted(os.listdir(tmp_path)) == ["hf"]


def test_a_model_that_cannot_be_exported_leaves_no_folder(sp_model, tmp_path):
    for changed, message in [
        ({"layers.1.attn.q.0": None}, "tensors are not those of its config"),
        ({"layers.1.attn.norm.gain.0": torch.ones(1)}, "tensors are not those of its config"),
        ({"head.0": torch.full((360, 40), 7e4)}, "lm_head.weight holds NaN, or more than float16 can"),
    ]:
        ckpt = checkpoint_of(sp_model)
        weights = {name: w for name, w in (ckpt["model"] | changed).items() if w is not None}
        save_checkpoint(tmp_path / "a.pt", ckpt | {"model": weights})
        command = ("export.py", "--in", tmp_path / "a.pt", "--out", tmp_path / "hf", "--dtype", "float16")
        assert message in run(*command)[0] and os.listdir(tmp_path) == ["a.pt"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_importing_takes_the_memory_of_a_tensor_not_of_a_model(tmp_path, sp_model):
    pytest.importorskip("safetensors")
    peak, sizes = {}, dict(n_head=2, n_embd=256, head_dim=128, ffn_dim=1024, vocab_size=400, block_size=64)
    for n_layer in (1, 48):
        cfg = Config(n_layer=n_layer, **sizes)
        folder = tmp_path / f"hf{n_layer}"
        folder.mkdir()
        export.write_json(folder / "config.json", export.llama_config(cfg, "float32", 1, 2))
        weights = {name: torch.zeros(p.shape) for name, p in skeleton(cfg).state_dict().items()}
        export.write_safetensors(folder, export.llama_tensors(cfg, weights), "float32")
        shutil.copy(sp_model, folder / "tokenizer.model")
        out = tmp_path / f"{n_layer}.pt"
        command = [sys.executable, f"{HERE}/export.py", "--from", folder, "--out", out]
        peak[n_layer] = peak_anonymous_memory(command)
    assert os.path.getsize(out) > 200e6 and peak[48] < peak[1] + 50, peak  # MB; its largest tensor has 1 MB


@pytest.mark.parametrize("kind, context", [("llama", None), ("mistral", 4096)])
def test_what_a_config_json_leaves_out_is_as_in_transformers(kind, context):
    says = dict(num_hidden_layers=1, num_attention_heads=16, hidden_size=64, intermediate_size=70)
    theirs = transformers.AutoConfig.for_model(kind, vocab_size=97, **says)
    cfg = export.babel_config("x", says | {"model_type": kind, "vocab_size": 97}, context)
    rope = theirs.rope_parameters or {"rope_theta": theirs.default_theta}
    assert (cfg.n_kv_head, cfg.head_dim) == (theirs.num_key_value_heads, theirs.head_dim or 64 // 16)
    assert (cfg.norm_eps, cfg.rope_theta) == (theirs.rms_norm_eps, rope["rope_theta"])
    longest = theirs.max_position_embeddings
    with pytest.raises(ValueError, match=f"its own is {longest}, and it can only be shorter"):
        export.babel_config("x", says | {"model_type": kind, "vocab_size": 97}, longest + 1)


@pytest.mark.parametrize(
    "pre, pieces, starts",
    [
        ("gpt-2", ["It", "'s", "Ġ12345", "Ċ", "x"], False),
        ("smollm", ["It", "'s", "Ġ", "1", "2", "3", "4", "5", "Ċ", "x"], False),
        ("llama-bpe", ["It", "'s", "Ġ", "123", "45", "Ċ", "x"], True),
    ],
)
def test_a_gguf_files_text_is_cut_as_it_names(pre, pieces, starts):
    tokenizers = pytest.importorskip("tokenizers")
    says = {"pre": pre, "tokens": ["<s>", "a"], "token_type": [3, 1], "merges": []}
    spec = export.byte_level_json("x", says, "<s>")
    tok = tokenizers.Tokenizer.from_str(json.dumps(spec))
    assert [piece for piece, _ in tok.pre_tokenizer.pre_tokenize_str("It's 12345\nx")] == pieces
    assert (spec["post_processor"] is not None, spec["model"]["ignore_merges"]) == (starts, starts)


def test_generation_stops_at_each_token_that_a_file_names_or_that_ends_a_turn(sp_model):
    added = {"<|end_of_text|>": 361, "<|im_end|>": 362, "<|eot_id|>": 363, "<|x|>": 364}
    files = {"generation_config.json": {"eos_token_id": [5]}, "added_tokens.json": added}
    files = {name: json.dumps(values).encode() for name, values in files.items()}
    tok = load_tokenizer(sp_model)
    assert export.find_origin("x", {"eos_token_id": 2}, files, tok)["stop"] == [5, 2, 361, 362, 363]
    assert export.find_origin("x", {"eos_token_id": 7}, {}, tok)["stop"] == [7]
    assert export.find_origin("x", {}, {}, tok)["stop"] == [tok.eos]


def test_bits_per_byte_weigh_a_short_window_by_its_tokens():
    model, ids = build(tiny()), np.random.default_rng(0).integers(97, size=60)  # windows of 24, 24 and 11
    nats = nats_in_windows(model, ids, 24)
    assert export.bits_per_byte(model, ids, 100) == pytest.approx(nats / math.log(2) / 100)


def test_the_row_of_absent_tokens_is_the_best_for_as_many_as_there_are():
    model = build(tiny(torch.float32))
    one, many = (export.absent_row(model, 1, n) for n in (1, 1000))
    with torch.no_grad():
        start, rng = torch.full((32, 1), 1), torch.Generator().manual_seed(0)  # the text that it reads
        x, head = model.trunk(torch.cat([start, *model.generate(start, 23, rng=rng)], 1))

    def lost(row):  # nats a token, with 1,000 tokens of this row
        others = (x @ head.T).logsumexp(-1)
        return torch.nn.functional.softplus(x @ row + math.log(1000) - others).mean().item()

    assert lost(many) < lost(one)
