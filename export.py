"""
Turn a checkpoint into a stock Llama: a folder that transformers, vLLM, lm-evaluation-harness and llama.cpp's
converter load. Or turn a stock Llama into a checkpoint of one generation, for grow.py and train.py.

$ python export.py --in out/stage2/ckpt.pt --out out/stage2/hf
$ python export.py --in out/stage2/ckpt.pt --out out/stage2/hf --dtype bfloat16
$ python export.py --from TinyLlama-1.1B/ --out out/tinyllama/ckpt.pt
$ python export.py --from Llama-3.2-1B/ --out out/llama3/ckpt.pt --context 8192
$ python export.py --from SmolLM2-135M-Instruct.Q8_0.gguf --out out/smol/ckpt.pt

An export folds what growing has added into the weights, and keeps the logits:

| here                                                     | there
|----------------------------------------------------------|-----------------------------------------------
| a tensor's slabs                                         | one tensor
| a norm's factor sqrt(born / n_embd)                      | in its gain
| eps, norm_eps x n_embd of generation 0 / n_embd          | rms_norm_eps
| the scores' scale, head_dim of generation 0 ^ -1/2       | head_dim ^ -1/2, and the rest in q
| RoPE's pairs in the order of their birth                 | by falling frequency: Hugging Face's half-split
| rows for some of the tokens, in an order of their own    | all, in the tokenizer's order; see absent_row
"""

import argparse
import functools
import glob
import itertools
import json
import math
import os
import re
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from checkpoint import (
    Lazy,
    build_model,
    load_checkpoint,
    materialise,
    stop_ids,
    unwritten,
    write_checkpoint,
)
from data import (
    CONTROL,
    LLAMA2_PIECES,
    MODEL_FILES,
    PAGE,
    UNKNOWN,
    USER_DEFINED,
    Tokenizer,
    control_pieces,
    count_bytes,
    fetch_llama2,
    make_aside,
    one_line,
    sentencepiece_model,
    sha256,
    speller,
    spread,
    tokenizer_from,
)
from grow import fused, grow, not_stock, val_text, working
from model import SCALING, Config, Llama, assembled, rope_places, row_ids, skeleton

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD = 5 * 10**9  # bytes a file, as Hugging Face has it
KEPT_FILES = (  # the small ones that an import keeps, and an export writes back
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "generation_config.json",
    "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "NOTICE.txt", "USE_POLICY.md",
)  # fmt: skip
TEMPLATES = "additional_chat_templates/*.jinja"
CARD = ("license", "license_name", "license_link", "base_model")  # of a model card's front matter
STOPS = ("<|end_of_text|>", "<|im_end|>", "<|eot_id|>")  # what generation stops at, where a tokenizer has it
# What tokenizer_config.json says. Not LlamaTokenizer: transformers 5 builds its own from the vocabulary, and
# that reads "a  b" and " a" differently.
READ_AS = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}


def llama_config(
    cfg: Config, dtype: str, bos: int | None, eos: int | list[int] | None, pad: int | None = None
) -> dict:
    """Return the config.json of the stock Llama that computes what a model of Config cfg does. Raise
    ValueError if there is none. bos, eos, pad: token ids."""
    if reason := not_stock(cfg):
        raise ValueError(reason)
    scaling = {"rope_type": "llama3"} | cfg.rope_scaling if cfg.rope_scaling else None
    parameters = (scaling or {"rope_type": "default"}) | {"rope_theta": cfg.rope_theta}
    padding = {} if pad is None else {"pad_token_id": pad}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": cfg.n_embd,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.n_layer,
        "num_attention_heads": cfg.n_head,
        "num_key_value_heads": cfg.n_kv_head,
        "head_dim": cfg.head_dim,
        "vocab_size": cfg.n_tokens or cfg.vocab_size,
        "max_position_embeddings": cfg.context,
        "rms_norm_eps": cfg.norm_eps * (cfg.generations[0].n_embd / cfg.n_embd),
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": parameters,  # transformers 5 reads these
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    } | padding


NAMES = [  # of a layer's tensors: here, there, and in a GGUF file
    ("attn.norm.gain", "input_layernorm", "attn_norm"),
    ("attn.q", "self_attn.q_proj", "attn_q"),
    ("attn.k", "self_attn.k_proj", "attn_k"),
    ("attn.v", "self_attn.v_proj", "attn_v"),
    ("attn.o", "self_attn.o_proj", "attn_output"),
    ("mlp.norm.gain", "post_attention_layernorm", "ffn_norm"),
    ("mlp.gate", "mlp.gate_proj", "ffn_gate"),
    ("mlp.up", "mlp.up_proj", "ffn_up"),
    ("mlp.down", "mlp.down_proj", "ffn_down"),
]
TRANSPOSED = ("o", "down")  # kinds whose matrix is the other way round there


def llama_names(cfg: Config) -> dict[str, str]:
    """Return {a tensor's name here: its name there}."""
    names = {"wte": "model.embed_tokens.weight"}
    for i in range(cfg.n_layer):
        names |= {f"layers.{i}.{here}": f"model.layers.{i}.{there}.weight" for here, there, _ in NAMES}
    return names | {"norm.gain": "model.norm.weight"} | ({} if cfg.tied else {"head": "lm_head.weight"})


def llama_shape(cfg: Config, kind: str) -> tuple[int, ...]:
    """Return the shape there of a tensor that is `kind` in SHAPES."""
    *out, width = cfg.shape(kind)
    if kind == "norm":
        return (width,)
    n_out = cfg.n_tokens if cfg.n_tokens and kind in ("wte", "head") else math.prod(out)
    return (width, n_out) if kind in TRANSPOSED else (n_out, width)


# a tensor's shape, and a function that makes it
Made = tuple[tuple[int, ...], Callable[[], torch.Tensor]]


def llama_tensors(
    cfg: Config, weights: dict[str, torch.Tensor], absent: torch.Tensor | None = None
) -> dict[str, Made]:
    """Return {Hugging Face's name: Made} of a checkpoint's config and slabs. Tokens without a row get the
    rows' mean; in the head they get `absent`, (n_embd,), if it is given."""
    model = skeleton(cfg)
    order = torch.tensor(rope_places(cfg)).argsort()
    scale = math.sqrt(cfg.head_dim / cfg.generations[0].head_dim)

    def full(name, kind, plan):
        w = assembled(cfg, weights, name, kind, plan)
        if kind == "norm":
            return w * model.get_submodule(name.removesuffix(".gain")).factor
        if kind in ("q", "k"):  # (heads, 2, pairs, n_embd), by falling frequency
            w = w[:, :, order] * (scale if kind == "q" else 1)
        if kind in ("wte", "head") and cfg.n_tokens:  # (vocab_size, n_embd) -> (n_tokens, n_embd)
            other = w.mean(0) if absent is None or kind == "wte" else absent
            rows, w = w, other.expand(cfg.n_tokens, -1).clone()
            w[row_ids(weights["row_of"], cfg.vocab_size)] = rows
        w = w.reshape(-1, cfg.n_embd)
        return w.T if kind in TRANSPOSED else w

    names = llama_names(cfg)
    return {
        names[name]: (llama_shape(cfg, tensor.kind), functools.partial(full, name, tensor.kind, tensor.plan))
        for name, tensor in model.growables().items()
    }


def write_safetensors(folder: str, tensors: dict[str, Made], dtype: str) -> None:
    """Write model.safetensors, or above SHARD bytes several files and their index. One tensor at a time is in
    memory; safetensors' own save_file has them all. The format: huggingface.co/docs/safetensors."""
    # share the tensors out to files: {name: its entry in the header}
    torch_dtype, files, start, total = getattr(torch, dtype), [{}], 0, 0
    for name, (shape, _) in tensors.items():
        size = math.prod(shape) * torch_dtype.itemsize
        if start and start + size > SHARD:
            files.append({})
            start = 0
        files[-1][name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, start + size]}
        start += size
        total += size
    names = ["model.safetensors"]
    if len(files) > 1:
        names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]

    # write them, and an index of several
    for file_name, entries in zip(names, files):
        header = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
        header += b" " * (-len(header) % 8)
        with open(f"{folder}/{file_name}", "wb") as f:
            f.write(struct.pack("<Q", len(header)) + header)
            for name in entries:
                shape, make = tensors[name]
                tensor = make().to(torch_dtype).contiguous()
                assert tensor.shape == shape, name
                if not tensor.isfinite().all():
                    raise ValueError(f"{name} holds NaN, or more than {dtype} can: try another --dtype")
                f.write(tensor.flatten().view(torch.uint8).numpy())
            f.flush()
            os.fsync(f.fileno())
    if len(files) > 1:
        where = {name: file_name for file_name, entries in zip(names, files) for name in entries}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        write_json(f"{folder}/model.safetensors.index.json", index)


def write_json(path: str, values: dict) -> None:
    """Write values as a JSON file."""
    Path(path).write_text(json.dumps(values, indent=2) + "\n", "utf-8")


def write_tokenizer(folder: str, tok: Tokenizer, context: int, end: int) -> None:
    """Write the tokenizer's own file, and what tells Hugging Face's tokenizers how to read it. Files that the
    model came with stay. end: the token at which text ends; llama.cpp stops at eos_token alone."""
    path = Path(folder, MODEL_FILES[tok.kind])
    if not path.exists():
        path.write_bytes(tok.model)
    if os.path.exists(f"{folder}/tokenizer_config.json"):
        return
    ids = {"bos_token": tok.bos, "eos_token": end}
    if tok.kind == "sentencepiece":
        if not os.path.exists(f"{folder}/tokenizer.json"):
            write_json(f"{folder}/tokenizer.json", tokenizer_json(tok))
        ids["unk_token"] = tok.sp.unk_id()
    token_of = tok.sp.id_to_piece if tok.kind == "sentencepiece" else tok.hf.id_to_token
    special = {name: token_of(i) for name, i in ids.items() if 0 <= i < tok.vocab_size}
    write_json(f"{folder}/tokenizer_config.json", READ_AS | {"model_max_length": context} | special)
    write_json(f"{folder}/special_tokens_map.json", special)


def numbers(value: object) -> list[int]:
    """Return the token ids in a value of a JSON file: those of a list, or the one that it is itself."""
    value = value if isinstance(value, list) else [value]
    return [i for i in value if type(i) is int and i >= 0]


def write_generation(path: str, bos: int | None, stop: int | list[int] | None) -> None:
    """Write generation_config.json, or put the stop tokens into the one that the model came with."""
    if not os.path.exists(path):
        return write_json(path, {"bos_token_id": bos, "eos_token_id": stop})
    values = parse_json(path, read_file(path))
    if stop is not None and {*numbers(stop)} != {*numbers(values.get("eos_token_id"))}:
        write_json(path, values | {"eos_token_id": stop})


def write_origin(folder: str, origin: dict) -> None:
    """Write the small files that an imported model came with, as they were. Raise ValueError where a
    checkpoint names one outside the folder."""
    for name, data in origin.get("files", {}).items():
        path = Path(folder, name)
        if not path.resolve().is_relative_to(Path(folder).resolve()):
            raise ValueError(f"the checkpoint's origin has a file {name!r}, which is not inside the folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.numpy())


def tokenizer_json(tok: Tokenizer) -> dict:
    """Return a sentencepiece BPE model as Hugging Face's tokenizers describe it, as in the repositories of
    Llama 2."""
    sp = tok.sp
    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    special = control_pieces(sp)
    merges = []  # the pairs that make each piece, those of the best piece first
    for piece, i in vocab.items():
        if piece in special or sp.is_byte(i):
            continue
        cuts = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        pairs = [(a, b) for a, b in cuts if a in vocab and b in vocab]
        merges += [(-sp.get_score(i), vocab[a], vocab[b], a, b) for a, b in pairs]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prepend, strip = [], []
    if tok.dummy_prefix:
        prepend = [{"type": "Prepend", "prepend": "▁"}]
        strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    return {
        "version": "1.0",
        "added_tokens": added_tokens((i, piece, CONTROL) for piece, i in special.items()),
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, spaces]},
        "pre_tokenizer": None,
        "post_processor": bos_first(sp.id_to_piece(sp.bos_id()), sp.bos_id()),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                *strip,
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": sp.id_to_piece(sp.unk_id()),
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [[a, b] for *_, a, b in sorted(merges)],
        },
    }


def added_tokens(pieces: Iterable[tuple[int, str, int]]) -> list[dict]:
    """Return a tokenizer.json's added_tokens, of (id, token, type): those that it keeps whole."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole = (UNKNOWN, CONTROL, USER_DEFINED)
    return [
        {"id": i, "content": token, "special": kind != USER_DEFINED} | flags
        for i, token, kind in pieces
        if kind in whole
    ]


def bos_first(bos: str, bos_id: int) -> dict:
    """Return the post_processor of a tokenizer.json that puts a bos before each text."""
    text = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    special = {bos: {"id": bos, "ids": [bos_id], "tokens": [bos]}}
    return {"type": "TemplateProcessing", "single": text, "pair": text + second, "special_tokens": special}


def model_card(ckpt: dict, cfg: Config, n_params: int, last: dict, stop: list[int], figures: str) -> str:
    """Return the README.md: what the model is, where it is from, how it grew, what it read, how well it
    does."""
    # how it grew
    lines = ["| tokens read | FLOPs | to | init | max abs dlogit |", "|---|---|---|---|---|"]
    for g in ckpt["lineage"]:
        sizes = [f"{name} {size}" for name, size in g["sizes"].items()]
        rows = [f"rows for {g['vocab']}"] if g["vocab"] else []
        to = ", ".join(sizes + rows) or ("condensed" if g.get("condense") else "the same sizes")
        read = f"{g['tokens']:,} | {g['flops']:.3g}"
        lines.append(f"| {read} | {to} | {g['init']} | {g['max_dlogit']:.1e} |")
    grown = "\n".join(lines) if ckpt["lineage"] else "It has not been grown."

    # where it is from
    ledger, origin = ckpt["ledger"], ckpt.get("origin") or {}
    name = ledger.get("from", "one")
    how = "grown" if ckpt["lineage"] else "made"
    of = f" from {name} of width {cfg.generations[0].n_embd}" if ckpt["lineage"] or "from" in ledger else ""
    grown_from = f"{how} with Babel{of}."
    kept = {key: origin[key] for key in CARD if origin.get(key)}
    front = "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in kept.items())
    based = f"\n{name} was made from {kept['base_model']}." if "base_model" in kept else ""
    licence = f"\nIts licence is that of {name}: {kept['license']}." if "license" in kept else ""

    # what it read, and how well it does
    spent = f"{ledger['tokens']:,} tokens for {ledger['flops']:.4g} training FLOPs"
    beside = ", beside what that had read" if "from" in ledger else ""
    loss = f"Validation text, at step {last['step']}: {last['bpb']:.4f} bits per byte.\n" if last else ""
    return f"""---
library_name: transformers
tags: [llama, babel]
{front}---
A Llama of {n_params:,} parameters ({cfg.n_layer} layers x {cfg.n_embd}), {grown_from}{based}{licence}

It has read {spent}, those of the smaller models included{beside}.
{f"Generation stops at the tokens {stop}." if stop else ""}
{loss}{figures}
{grown}
"""


def last_evaluation(path: str, step: int, tokens: int) -> dict:
    """Return what metrics.jsonl at path says of the evaluation at this step and these tokens, {} if there is
    none. Both must agree: beside a grown.pt, whose step is 0, lies the log of the run before, and its step 0
    was another model."""
    if not os.path.isfile(path):
        return {}
    with open(path) as f:
        lines = [line for line in f if '"bpb"' in line and line.endswith("\n")]  # a kill may cut the last
    try:
        return next((e for e in map(json.loads, lines) if (e["step"], e["tokens"]) == (step, tokens)), {})
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path}: not a metrics.jsonl of train.py: move it away") from None


# -----------------------------------------------------------------------------
# tokens without a row


def absent_row(model: Llama, bos: int, n_absent: int) -> torch.Tensor:
    """Return the head's row, (n_embd,), for all n_absent tokens that the model has no row for. On text that
    the model writes, it gives them about the least probability that one row can.

    A Llama's head has no bias, so no row is improbable after every text. This one minimises the mean of
    log(1 + p(absent) / p(others)) over text that the model writes. That is convex in the row. In the demo's
    models the absent tokens had 14 to 18 % of the probability with the rows' mean, and have 0.02 to 2 % with
    this row. A head that is tied to the embedding keeps the mean, since there the row is an input too."""
    # states of the model on its own text, and what to compare the row's logits with there
    rng = torch.Generator().manual_seed(0)
    length = min(model.cfg.context, 128)
    n_texts = max(32, 8 * model.cfg.n_embd // length)  # about 8 states for each of the row's n_embd numbers
    starts = torch.full((n_texts, 1), bos)
    written = torch.cat([starts, *model.generate(starts, length - 1, rng=rng)], 1)
    states, others = [], []
    with torch.no_grad():
        for idx in written.split(8):
            x, head = model.trunk(idx)
            states.append(x.flatten(0, 1))
            others.append(F.linear(states[-1], head).logsumexp(-1))
    x = torch.cat(states)  # (n_texts * length, n_embd)
    other = torch.cat(others) - math.log(n_absent)  # x @ row - other: log(absent tokens / others)

    # the row of the least loss, from the rows' mean on
    row = head.detach().mean(0).requires_grad_()
    optimizer = torch.optim.LBFGS([row], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.softplus(x @ row - other).mean() + 1e-6 * row.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return row.detach()


def with_all_rows(model: Llama, absent: torch.Tensor | None) -> Llama:
    """Return the model with a row for every token: the mean of those it has, or in the head `absent`."""
    ckpt = {"config": model.cfg.plain(), "model": model.state_dict(), "optimizer": {}}
    lacking = (model.row_of < 0).nonzero()[:, 0]
    ckpt, _ = grow(ckpt | {"ledger": {"tokens": 0}}, rows=torch.cat([model.token_ids(), lacking]).numpy())
    if absent is not None:
        ckpt["model"]["head.1"][:] = absent
    return build_model(ckpt).eval()


@torch.no_grad()
def bits_per_byte(model: Llama, ids: np.ndarray, n_bytes: int) -> float:
    """Return the bits that the model needs for each of the n_bytes of text that ids stand for, reading them
    in windows of block_size."""
    nats, size = 0.0, model.cfg.block_size
    ids = torch.from_numpy(ids.astype(np.int64))
    for start in range(0, len(ids) - 1, size):
        window = ids[None, start : start + size + 1]
        nats += model(window[:, :-1], window[:, 1:]).item() * (window.size(1) - 1)
    return nats / math.log(2) / n_bytes


def measure(ckpt: dict, tok: Tokenizer, model: Llama, absent: torch.Tensor | None) -> str:
    """Return what the card says of a model that lacks rows: how many it has and, where the validation text is
    at hand, the bits per byte of about 16,384 tokens before and after the export."""
    n_rows, n = model.cfg.vocab_size, model.cfg.n_tokens
    said = f"It was trained with rows for {n_rows:,} of the {n:,} tokens.\n"
    path = val_text(ckpt)
    if not path:
        return said
    ids = spread(np.fromfile(path, tok.dtype), 16384)
    n_bytes = count_bytes(ids[1:], ids[:-1], tok.token_bytes(), tok.bos, tok.dummy_prefix)
    spelled = speller(model.token_ids(), tok.vocab_size, tok.spelling)(ids)
    before = bits_per_byte(model, spelled, n_bytes)
    there = with_all_rows(model, absent)
    after, own = bits_per_byte(there, spelled, n_bytes), bits_per_byte(there, ids, n_bytes)
    return (
        f"{said}Bits per byte of a part of the validation text: {before:.4f} before the export and "
        f"{after:.4f} after\nit, where the other tokens are spelled in bytes as in training, and "
        f"{own:.4f} as this folder's tokenizer reads it.\n"
    )


# -----------------------------------------------------------------------------
# the other way


def parse_json(path: str, data: bytes) -> dict:
    """Return the object in a JSON file's bytes. Raise ValueError if there is none."""
    try:
        values = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{path}: broken, or no JSON ({e})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, not a {type(values).__name__}")
    return values


def read_file(path: str) -> bytes:
    """Return a file's bytes. Raise ValueError if it can't be read."""
    try:
        with open(path, "rb") as f:
            return f.read()
    except OSError as e:
        raise ValueError(f"{path}: {e.strerror}") from None


def object_in(files: dict[str, bytes], name: str) -> dict:
    """Return the object in one of a model's small JSON files, {} without the file."""
    return parse_json(name, files.get(name, b"{}"))


def babel_config(path: str, c: dict, context: int | None = None) -> Config:
    """Return the Config, of one generation, that computes what the Llama of a parsed config.json, c, does.
    What c leaves out is as in transformers' LlamaConfig. Raise ValueError, which names the reason, if there
    is none.

    context: a shorter one than its own. A Mistral is a Llama if it has no sliding window, or one as long."""
    # refuse what model.py has not
    mistral, rope = c.get("model_type") == "mistral", {}
    for name in ("rope_scaling", "rope_parameters"):  # the latter since transformers 5
        if not isinstance(c.get(name) or {}, dict):
            raise ValueError(f"{path}: {name} = {c[name]!r}, expected an object")
        rope |= c.get(name) or {}
    scaled = rope.get("rope_type", rope.get("type", "default"))
    its_class = ["MistralForCausalLM" if mistral else "LlamaForCausalLM"]
    for what, has, can in [
        ("model_type", c.get("model_type"), "mistral" if mistral else "llama"),
        ("architectures", c.get("architectures") or its_class, its_class),
        ("quantization_config", bool(c.get("quantization_config")), False),
        ("hidden_act", c.get("hidden_act", "silu"), "silu"),
        ("attention_bias", c.get("attention_bias", False), False),
        ("mlp_bias", c.get("mlp_bias", False), False),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 1)), 1),
    ]:
        if has != can:
            raise ValueError(f"{path}: {what} is {has}, and model.py has only {can}")
    if scaled not in ("default", "llama3"):
        raise ValueError(f"{path}: rope_scaling is {scaled}, and model.py has only default or llama3")

    def number(name, default=None, kind=int):
        value = default if c.get(name) is None else c[name]
        if type(value) not in (int, kind):
            expected = "a whole number" if kind is int else "a number"
            raise ValueError(f"{path}: {name} = {value!r}, expected {expected}")
        if abs(value) > (2**24 if kind is int else 1e30):  # above any Llama's, and soon above the memory
            raise ValueError(f"{path}: {name} is too large")
        return value

    # the context, within a Mistral's window
    longest = number("max_position_embeddings", 131072 if mistral else 2048)
    if context is not None and not 0 < context <= longest:
        raise ValueError(f"--context {context}: its own is {longest}, and it can only be shorter")
    context = context or longest
    window = c.get("sliding_window", 4096) if mistral else None
    if window is not None and number("sliding_window", 4096) < context:
        raise ValueError(
            f"{path}: sliding_window is {window}, and model.py has none: --context {window} keeps below it"
        )

    # the sizes
    c = c | rope  # rope_theta, and what scales it
    n_head, n_embd = number("num_attention_heads"), number("hidden_size")
    if not c.get("head_dim") and n_embd % max(n_head, 1):
        raise ValueError(
            f"{path}: no head_dim, and hidden_size = {n_embd} "
            f"is no multiple of num_attention_heads = {n_head}"
        )
    return Config(
        n_layer=number("num_hidden_layers"),
        n_head=n_head,
        n_kv_head=number("num_key_value_heads", 8 if mistral else n_head),
        n_embd=n_embd,
        head_dim=number("head_dim", n_embd // max(n_head, 1)),
        ffn_dim=number("intermediate_size"),
        vocab_size=number("vocab_size"),
        block_size=min(context, PAGE),
        context=context,
        rope_theta=number("rope_theta", 10000.0, float),
        rope_scaling={key: number(key, kind=float) for key in SCALING} if scaled == "llama3" else {},
        norm_eps=number("rms_norm_eps", 1e-6, float),
        tied=bool(c.get("tie_word_embeddings")),
    )


class Stored(NamedTuple):
    """A tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]


def open_safetensors(folder: str) -> dict[str, Stored]:
    """Return the tensors of a folder's model.safetensors, or of the files that its index names. Raise
    ValueError if they are not all there."""
    # the files
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError("--from needs safetensors: pip install safetensors") from None
    index = f"{folder}/model.safetensors.index.json"
    if os.path.isfile(f"{folder}/model.safetensors"):
        where, files = {}, ["model.safetensors"]
    elif os.path.isfile(index):
        where = parse_json(index, read_file(index)).get("weight_map")
        if not where or not isinstance(where, dict):
            raise ValueError(f"{index}: no weight_map in it")
        if not all(isinstance(name, str) and name == os.path.basename(name) for name in where.values()):
            raise ValueError(f"{index}: its weight_map names what is no file of the folder")
        files = sorted(set(where.values()))
    else:
        weights = r"\.(bin|pth|pt|h5|msgpack|safetensors)$"
        other = sorted(name for name in os.listdir(folder) if re.search(weights, name))
        found = f", only {other[0]}" if other else ""
        raise ValueError(
            f"{folder}: no model.safetensors, nor its index, in it{found}; "
            "save_pretrained of transformers makes it"
        )

    # the tensors in them
    tensors = {}
    for name in files:
        path = f"{folder}/{name}"
        if not os.path.isfile(path):
            lacking = sum(not os.path.isfile(f"{folder}/{other}") for other in files)
            raise ValueError(
                f"{path}: missing, truncated or not fetched: {lacking} of the {len(files)} files "
                f"that {index} names are not there"
            )
        with open(path, "rb") as f:
            if f.read(24).startswith(b"version https://git-lfs"):
                raise ValueError(f"{path}: a Git LFS pointer, not the weights: git lfs pull")
        try:
            f = safe_open(path, "pt")
        except (OSError, SafetensorError) as e:
            raise ValueError(f"{path}: missing, truncated, or no safetensors file ({one_line(e)})") from None
        for key in f.keys():
            part = f.get_slice(key)
            read = functools.partial(f.get_tensor, key)
            tensors[key] = Stored(part.get_dtype(), tuple(part.get_shape()), read)
    absent = sorted(where.keys() - tensors.keys())
    if absent:
        raise ValueError(f"{folder}: {absent[0]} is missing: {index} says that {where[absent[0]]} has it")
    return tensors


def read_hf(folder: str) -> tuple[dict, dict[str, bytes], Callable[[], dict[str, Stored]]]:
    """Return (config.json's values, {name: bytes} of the small files, a function that opens the tensors) of a
    Hugging Face folder. Raise ValueError if it is none."""
    names = os.listdir(folder)
    if "config.json" not in names:
        raise ValueError(f"{folder}: {no_model(folder, names)}")
    config = parse_json(f"{folder}/config.json", read_file(f"{folder}/config.json"))
    small = [name for name in (*KEPT_FILES, "README.md") if os.path.isfile(f"{folder}/{name}")]
    small += sorted(glob.glob(TEMPLATES, root_dir=folder))
    files = {name: read_file(f"{folder}/{name}") for name in small}
    if not any(name in files for name in MODEL_FILES.values()):
        neither = " and no ".join(MODEL_FILES.values())
        raise ValueError(f"{folder}: no {neither} in it: fetch it with the weights")
    return config, files, functools.partial(open_safetensors, folder)


def no_model(folder: str, names: list[str]) -> str:
    """Return what a folder without config.json is, and what to do."""
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if "adapter_config.json" in names:
        merge = "merge it into its base model with peft's merge_and_unload, and save that"
        return f"a LoRA adapter, not a model: {merge}"
    if ggufs:
        return f"no config.json, but GGUF: give the file, --from {folder.rstrip('/')}/{ggufs[0]}"
    if "params.json" in names:
        return "no config.json, but Meta's params.json: fetch the model in Hugging Face's format"
    what = "no config.json in it" if names else "an empty folder"
    return f"{what}; from the Hugging Face hub: hf download NAME --local-dir {folder}"


def choose_tokenizer(where: str, files: dict[str, bytes]) -> Tokenizer:
    """Return the tokenizer of tokenizer.model, or of tokenizer.json where the former is missing, broken or at
    odds with it. Raise ValueError if neither will do. where: the model, for the message."""
    errors = []
    for name in [name for name in MODEL_FILES.values() if name in files]:
        try:
            tok = tokenizer_from(name, files[name])
        except ValueError as e:
            errors.append(str(e))
            continue
        if name == "tokenizer.json" or agree(tok, files.get("tokenizer.json")):
            return tok
        errors.append(f"tokenizer {name}: another one than the tokenizer.json beside it")
    raise ValueError(f"{where}: {'; '.join(errors)}")


def agree(tok: Tokenizer, spec: bytes | None) -> bool:
    """Return whether a sentencepiece tokenizer gives each of its pieces the id that the tokenizer.json beside
    it does."""
    try:
        spec = json.loads(spec or b"{}")
        added = {token["content"]: token["id"] for token in spec.get("added_tokens", [])}
        vocab = spec["model"]["vocab"] | added
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # none, broken, or not of BPE
        return True
    return all(vocab.get(tok.sp.id_to_piece(i)) == i for i in range(tok.vocab_size))


def special_tokens(files: dict[str, bytes], tok: Tokenizer) -> dict[str, int]:
    """Return {token: id} of a model's special tokens. Raise ValueError if its files don't tell."""
    special = control_pieces(tok.sp) if tok.kind == "sentencepiece" else {}
    added = object_in(files, "added_tokens.json")
    special |= {token: i for token, i in added.items() if isinstance(i, int)}
    described = object_in(files, "tokenizer.json").get("added_tokens") or []
    try:
        special |= {token["content"]: int(token["id"]) for token in described}
    except (KeyError, TypeError, ValueError):
        raise ValueError("tokenizer.json: broken: its added_tokens are none") from None
    return special


def find_origin(name: str, config: dict, files: dict[str, bytes], tok: Tokenizer) -> dict:
    """Return ckpt["origin"]: what an imported model came with and export.py gives back. config: the values of
    config.json; files: {name: bytes} of the small ones."""
    generation = object_in(files, "generation_config.json")
    tokens = object_in(files, "tokenizer_config.json")
    special = special_tokens(files, tok)

    # its special tokens, and those at which generation stops
    ids = {}
    for key in ("bos", "eos", "pad"):
        token = tokens.get(f"{key}_token")
        token = token.get("content") if isinstance(token, dict) else token
        known = numbers(config.get(f"{key}_token_id")) + numbers(generation.get(f"{key}_token_id"))
        known += [special[token]] if isinstance(token, str) and token in special else []
        if known:
            ids[key] = known[0]
    stop = numbers(generation.get("eos_token_id")) + numbers(config.get("eos_token_id"))
    stop += [special[token] for token in STOPS if token in special]
    stop = list(dict.fromkeys(stop)) or numbers(ids.get("eos", tok.eos))

    # its licence, and the model that it was made from
    readme = files.get("README.md", b"").decode(errors="replace")
    front = re.match(r"---\r?\n(.*?)\r?\n---", readme, re.DOTALL)
    card = {key: front_value(front[1] if front else "", key) for key in CARD}
    known_as = config.get("_name_or_path")
    if not card["base_model"] and isinstance(known_as, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", known_as):
        card["base_model"] = known_as

    # the small files, but for those that an export makes anew
    kept = {key: data for key, data in files.items() if data and key != "README.md" and data != tok.model}
    kept = {key: as_tensor(data) for key, data in kept.items()}
    return {"name": name, "stop": stop, "ids": ids, "files": kept} | card


def as_tensor(data: bytes) -> torch.Tensor:
    """Return bytes as a checkpoint has them."""
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def front_value(front: str, key: str) -> str:
    """Return a plain value, or the first of a list, of a model card's front matter; '' if there is none."""
    in_list = r"(?:\[|(?:\r?\n[ \t]*)?-[ \t]+)?"
    found = re.search(rf"^{key}:[ \t]*{in_list}[ \t]*[\"']?([^\"'\r\n,\]]*)", front, re.MULTILINE)
    return found[1].strip() if found else ""


def babel_tensors(cfg: Config, stored: dict[str, Stored], where: str) -> dict[str, Lazy]:
    """Return {slab: Lazy} of a Config of one generation and a model's tensors. Raise ValueError if these are
    not what the Config wants."""
    # refuse tensors that a Llama has not
    names, wte, head = llama_names(cfg), "model.embed_tokens.weight", "lm_head.weight"
    known = {*names.values(), head}  # a tied one may have a head as well
    buffer = "rotary_emb.inv_freq"  # of older ones
    unknown = [name for name in stored if name not in known and not name.endswith(buffer)]
    if unknown:
        raise ValueError(f"{where}: a Llama of this config.json has no {unknown[0]}")
    if cfg.tied and wte not in stored and head in stored:  # tied, so it is the embedding too
        stored = stored | {wte: stored[head]}

    def fill(out, name, kind):
        w = stored[name].read()
        out.copy_((w.T if kind in TRANSPOSED else w).view(out.shape))
        if not all(map(math.isfinite, out.aminmax())):
            raise ValueError(
                f"{where}: {name} holds NaN or infinity: this model is broken, fetch or train it again"
            )
        if cfg.tied and name == wte and head in stored and not torch.equal(w, stored[head].read()):
            raise ValueError(
                f"{where}: its config.json ties the head to the embedding, but {head} is another: "
                f"put tie_word_embeddings right, or take {head} out"
            )

    # make a slab of each. GGUF's types are dequantised on the way; safetensors' integers are no weights
    slabs, is_gguf = {}, where.endswith(".gguf")
    for name, tensor in skeleton(cfg).growables().items():
        there, shape = names[name], llama_shape(cfg, tensor.kind)
        if there not in stored:
            raise ValueError(f"{where}: {there} is missing")
        found = stored[there]
        if found.shape != shape or not is_gguf and found.dtype not in DTYPES.values():
            expected = f"{list(shape)} of {', '.join(DTYPES.values())}"
            raise ValueError(f"{where}: {there} is {found.dtype} {list(found.shape)}, expected {expected}")
        made = functools.partial(fill, name=there, kind=tensor.kind)
        slabs[f"{name}.0"] = Lazy(tensor.plan[0][2], torch.float32, made)
    return slabs


def read_llama(source: str, out: str, block_size: int | None = None, context: int | None = None) -> None:
    """Make the checkpoint `out` from a Hugging Face folder or a GGUF file, with one tensor in memory at a
    time. Raise ValueError if it is no Llama.

    block_size: tokens a sequence in training, by default the context, up to PAGE; context: one shorter than
    its own."""
    # what the source says
    if os.path.isdir(source):
        config, files, opened = read_hf(source)
        path = f"{source}/config.json"
    elif not os.path.exists(source):
        raise ValueError(
            f"{source}: no such folder; from the Hugging Face hub: hf download NAME --local-dir {source}"
        )
    elif source.endswith(".gguf"):
        config, files, opened = read_gguf(source)
        path = source
    else:
        raise ValueError(f"{source}: neither a folder nor a .gguf file: give the folder that it is in")
    cfg = babel_config(path, config, context)
    if block_size is not None:
        if block_size > cfg.context:
            raise ValueError(
                f"--block_size {block_size}: {source} has a context of {cfg.context}, and it can only be "
                "shorter"
            )
        cfg = replace(cfg, block_size=block_size)
    tok = choose_tokenizer(source, files)
    if tok.vocab_size > cfg.vocab_size:
        raise ValueError(
            f"{source}: its tokenizer has {tok.vocab_size} tokens, "
            f"its config.json a vocab_size of {cfg.vocab_size}"
        )
    stored = opened()
    if cfg.n_layer > len(stored):
        raise ValueError(f"{source}: {cfg.n_layer} layers, but only {len(stored)} tensors")

    # the checkpoint, of tensors that are yet to be made
    name = re.sub(r"\.gguf$", "", os.path.basename(os.path.realpath(source)))
    n_params = skeleton(cfg).count_params()["total"]
    ledger = {"tokens": 0, "flops": 0, "seconds": 0.0, "dealt": 0, "read": {}, "from": name}
    tensors = babel_tensors(cfg, stored, source)
    ckpt = {
        "config": cfg.plain(),
        "model": tensors,
        "optimizer": {},
        "ledger": ledger,
        "lineage": [],
        "step": 0,
        "settings": {},
        "tokenizer": tok.to_dict() | {"model": as_tensor(tok.model)},
        "schedule": None,
        "branch": None,
        "origin": find_origin(name, config, files, tok),
    }

    # make them, aside
    dtypes = sorted({tensor.dtype for tensor in stored.values()})
    print(f"reading {source}: {n_params:,} parameters, {' and '.join(dtypes)}", flush=True)
    with make_aside(os.path.abspath(out)) as aside, working(f"reading {source}", f"{aside}/ckpt.pt"):
        write_checkpoint(f"{aside}/ckpt.pt", materialise(ckpt, f"{aside}/scratch"))
        os.rename(f"{aside}/ckpt.pt", out)
    spare = cfg.vocab_size - tok.vocab_size
    rows = f", {spare} rows more than it has tokens" if spare > 0 else ""
    lengths = f"block_size {cfg.block_size}, context {cfg.context}"
    print(
        f"wrote {out}: {cfg.n_layer} x {cfg.n_embd}, {n_params:,} parameters, {lengths}, "
        f"tokenizer {tok.name}{rows}"
    )
    if dtypes != ["F32"]:
        print("a checkpoint has float32: steps of training are too small for less")


# -----------------------------------------------------------------------------
# GGUF

GGUF_NAMES = {in_gguf: there for _, there, in_gguf in NAMES}
GGUF_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
GGUF_IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
# what the text is cut by before the merges, by llama.cpp's names: those of tokenizer.ggml.pre
CUT_BY = {"gpt-2": [GPT2], "smollm": [r"\p{N}", GPT2], "llama-bpe": [LLAMA3], "llama3": [LLAMA3]}


def read_gguf(path: str) -> tuple[dict, dict[str, bytes], Callable[[], dict[str, Stored]]]:
    """Return for a GGUF file what read_hf returns for a folder, its tensors dequantised. Raise ValueError if
    it has no Llama."""
    # the file
    try:
        from gguf import GGUFReader, dequantize
    except ImportError:
        raise ValueError(f"{path}: pip install gguf, which reads it") from None
    if re.search(r"-\d+-of-\d+\.gguf$", path):
        raise ValueError(
            f"{path}: one of several: join them first, with llama.cpp's llama-gguf-split --merge"
        )
    try:
        reader = GGUFReader(path)
        values = {key: field.contents() for key, field in reader.fields.items()}
    except (ValueError, OSError, IndexError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: truncated, or no GGUF file ({one_line(e)})") from None
    architecture = values.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{path}: general.architecture is {architecture}, and model.py has only llama")
    llama = {key.removeprefix("llama."): value for key, value in values.items() if key.startswith("llama.")}
    in_file = {tensor.name.removesuffix(".weight"): tensor for tensor in reader.tensors}
    if "token_embd" not in in_file:
        raise ValueError(f"{path}: no token_embd.weight in it: a vocabulary, or an adapter, not a model")

    # what it says, as config.json would
    n_head, head_dim = llama.get("attention.head_count"), llama.get("attention.key_length")
    turned = llama.get("rope.dimension_count", head_dim)
    if head_dim and turned != head_dim:
        raise ValueError(f"{path}: RoPE turns {turned} of a head's {head_dim} dimensions, model.py all")
    config = {
        "model_type": "llama",
        "num_hidden_layers": llama.get("block_count"),
        "num_attention_heads": n_head,
        "num_key_value_heads": llama.get("attention.head_count_kv", n_head),
        "hidden_size": llama.get("embedding_length"),
        "intermediate_size": llama.get("feed_forward_length"),
        "max_position_embeddings": llama.get("context_length"),
        "rms_norm_eps": llama.get("attention.layer_norm_rms_epsilon"),
        "rope_theta": llama.get("rope.freq_base", 10000.0),
        "head_dim": head_dim or turned,
        "vocab_size": len(in_file["token_embd"].data),
        "tie_word_embeddings": "output" not in in_file,
        "rope_scaling": gguf_scaling(path, llama, in_file.pop("rope_freqs", None)),
    }
    for key in ("bos", "eos", "pad"):
        config[f"{key}_token_id"] = values.get(f"tokenizer.ggml.{GGUF_IDS[key]}_token_id")

    # its tensors, under Hugging Face's names
    def read(tensor, heads):
        kind = tensor.tensor_type
        try:
            w = torch.from_numpy(np.array(dequantize(tensor.data, kind), np.float32))
        except NotImplementedError:
            raise ValueError(f"{path}: {tensor.name} is {kind.name}, which gguf can't read") from None
        if not heads:
            return w
        # llama.cpp has RoPE's pairs side by side: (heads, pairs, 2, n_embd) -> (heads, 2, pairs, n_embd)
        return w.view(heads, -1, 2, w.size(1)).transpose(1, 2).reshape(w.shape)

    heads_of = {"attn_q": n_head, "attn_k": config["num_key_value_heads"]}
    stored = {}
    for name, tensor in in_file.items():
        if re.match(r"blk\.\d+\.", name):
            _, layer, kind = name.split(".", 2)
            there = f"model.layers.{layer}.{GGUF_NAMES.get(kind, kind)}"
        else:
            kind, there = name, GGUF_OUTSIDE.get(name, name)
        shape = tuple(map(int, reversed(tensor.shape)))
        reads = functools.partial(read, tensor, heads_of.get(kind, 0))
        stored[f"{there}.weight"] = Stored(tensor.tensor_type.name, shape, reads)
    return config, gguf_files(path, values), lambda: stored


def gguf_scaling(path: str, llama: dict, factors: object) -> dict | None:
    """Return the rope_scaling of a GGUF file, or None. llama: its values; factors: its tensor rope_freqs, by
    which Llama 3.1's scaling divides the frequencies. Raise ValueError if the scaling is another."""
    linear = llama.get("rope.scaling.factor") or llama.get("rope.scale_linear")  # llama.cpp's default type
    named = llama.get("rope.scaling.type", "linear" if linear not in (None, 0, 1) else "none")
    if named != "none":
        raise ValueError(f"{path}: rope.scaling.type is {named}, and model.py has only Llama 3.1's")
    if factors is None:
        return None

    # compare the divisors with those of model.py's rope_frequencies
    found = torch.from_numpy(np.array(factors.data, np.float32))
    theta, context, low, high = llama.get("rope.freq_base", 10000.0), 8192, 1.0, 4.0
    if not isinstance(theta, (int, float)) or not found.numel():
        raise ValueError(f"{path}: broken: rope.freq_base = {theta!r}, with {found.numel()} rope_freqs")
    turns = context * theta ** (-torch.arange(len(found)) / len(found)) / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    factor = found.max().item()
    if not torch.allclose(1 / found, kept + (1 - kept) / factor, rtol=1e-3):
        raise ValueError(f"{path}: its rope_freqs are not those of Llama 3.1's scaling, which model.py has")
    return {"rope_type": "llama3"} | dict(zip(SCALING, (factor, low, high, context)))


def gguf_files(path: str, values: dict) -> dict[str, bytes]:
    """Return {name: bytes} of the small files that a Hugging Face folder would have, from a GGUF file's
    values. Raise ValueError if its tokenizer can't be made."""
    # the tokenizer
    prefix = "tokenizer.ggml."
    says = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    for key, kind in {"tokens": str, "token_type": int, "scores": float, "merges": str}.items():
        value = says.get(key, [])
        if not isinstance(value, list) or not all(type(x) is kind for x in value):
            raise ValueError(f"{path}: broken: {prefix}{key} is no list of {kind.__name__}")
    tokens, kinds = says.get("tokens"), says.get("token_type")
    if not tokens or not kinds:
        raise ValueError(f"{path}: no tokens, or no types of them, in it: import the model's own folder")
    if says.get("model") not in ("llama", "gpt2"):
        raise ValueError(
            f"{path}: its tokenizer is {says.get('model')}, and only llama's and gpt2's can be read"
        )
    ids = {key: says.get(f"{name}_token_id") for key, name in GGUF_IDS.items()}
    ids = {key: i for key, i in ids.items() if type(i) is int and 0 <= i < len(tokens)}
    special = {f"{key}_token": tokens[i] for key, i in ids.items()}
    if says["model"] == "llama":
        unknown = next((token for token, kind in zip(tokens, kinds) if kind == UNKNOWN), "<unk>")
        ends = special.get("bos_token", "<s>"), special.get("eos_token", "</s>")
        if sha256("\n".join(tokens).encode()) == LLAMA2_PIECES:
            model = fetch_llama2()
        else:
            pieces = list(zip(tokens, says.get("scores") or [0.0] * len(tokens), kinds))
            model = sentencepiece_model(pieces, unknown, *ends, says.get("add_space_prefix", True))
        described = tokenizer_json(tokenizer_from("tokenizer.model", model))
        # sentencepiece does not tell which pieces are user-defined
        described["added_tokens"] = added_tokens(zip(itertools.count(), tokens, kinds))
        files = {"tokenizer.model": model, "tokenizer.json": json.dumps(described).encode()}
    else:
        described = byte_level_json(path, says, special.get("bos_token"))
        files = {"tokenizer.json": json.dumps(described).encode()}

    # what else is known of it, and of the model
    template = values.get("tokenizer.chat_template")
    chat = {"chat_template": template} if template else {}
    files["tokenizer_config.json"] = json.dumps(special | chat | READ_AS).encode()
    files["special_tokens_map.json"] = json.dumps(special).encode()
    if values.get("general.license"):
        files["README.md"] = f"---\nlicense: {values['general.license']}\n---\n".encode()
    return files


def byte_level_json(path: str, says: dict, bos: str | None) -> dict:
    """Return the tokenizer.json of a GGUF file's byte-level BPE. says: its values of tokenizer.ggml; bos: the
    token. Raise ValueError if it cuts the text in an unknown way."""
    cut = says.get("pre", "default")
    if cut not in list(CUT_BY):  # a list, which may be asked for what can't be hashed
        raise ValueError(
            f"{path}: tokenizer.ggml.pre is {cut}, and only {', '.join(CUT_BY)} can be read: "
            "import the model's own folder, which has a tokenizer.json"
        )
    tokens = says["tokens"]
    vocab = {token: i for i, token in enumerate(tokens)}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    cuts = [split | {"pattern": {"Regex": regex}} for regex in CUT_BY[cut]]
    is_llama3 = CUT_BY[cut] == [LLAMA3]
    starts = bos and says.get("add_bos_token", is_llama3)
    return {
        "version": "1.0",
        "added_tokens": added_tokens(zip(itertools.count(), tokens, says["token_type"])),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*cuts, byte_level]},
        "post_processor": bos_first(bos, vocab[bos]) if starts else None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": vocab,
            "merges": [merge.split(" ", 1) for merge in says.get("merges") or []],
            "ignore_merges": is_llama3,  # a word that is a token is that token
        },
    }


# -----------------------------------------------------------------------------
# all of it


def export(path: str, out: str, dtype: str = "float32") -> None:
    """Make the folder `out`, a stock Llama, of the checkpoint at path. Raise ValueError if there is none."""
    ckpt = load_checkpoint(path)
    cfg, origin, kind = Config(**ckpt["config"]), ckpt.get("origin"), ckpt["tokenizer"]["kind"]
    tok = Tokenizer.from_dict(ckpt["tokenizer"])

    # where generation stops, and the config.json
    ids = origin.get("ids", {}) if origin else {"bos": tok.bos, "eos": tok.eos}
    stop = stop_ids(ckpt, tok)
    eos = stop[0] if len(stop) == 1 else stop or None
    config = llama_config(cfg, dtype, ids.get("bos"), eos, ids.get("pad"))
    build_model(ckpt, assign=True)  # fails now if tensors are missing
    n_params = sum(math.prod(shape) for shape, _ in llama_tensors(cfg, ckpt["model"]).values())
    print(f"exporting {path}: {n_params:,} parameters", flush=True)
    for i, g in enumerate(cfg.generations):
        if g.ramp:
            print(f"note: generation {i} has come in to {g.ramped:.0%}, and is exported as it is")

    # a row for all tokens, and what the model card says
    absent, figures = None, ""
    if cfg.n_tokens > cfg.vocab_size:
        print("finding a row for the tokens without one", flush=True)
        model = fused(ckpt)
        if not cfg.tied:
            absent = absent_row(model, tok.bos, cfg.n_tokens - cfg.vocab_size)
        figures = measure(ckpt, tok, model, absent)
        print(figures, end="")
    tensors = llama_tensors(cfg, ckpt["model"], absent)
    beside = os.path.join(os.path.dirname(path), "metrics.jsonl")
    last = last_evaluation(beside, ckpt["step"], ckpt["ledger"]["tokens"])

    # write all, aside
    try:
        with make_aside(os.path.abspath(out)) as aside, working(f"writing {out}"):
            if origin:
                write_origin(aside, origin)
            if kind in MODEL_FILES:
                write_tokenizer(aside, tok, cfg.context, ids.get("eos", tok.eos) if origin else tok.bos)
            else:
                name = ckpt["tokenizer"]["name"]
                print(f"no tokenizer files for tiktoken's {name}: add those of its own repository")
            write_json(f"{aside}/config.json", config)
            write_generation(f"{aside}/generation_config.json", ids.get("bos"), eos)
            write_safetensors(aside, tensors, dtype)
            card = model_card(ckpt, cfg, n_params, last, stop, figures)
            Path(aside, "README.md").write_text(card, "utf-8")
            os.rename(aside, out)
    except OSError as e:
        raise unwritten(out, e) from None
    print(f"wrote {out}: {n_params:,} parameters in {dtype}, {len(tensors)} tensors")


def main() -> None:
    about = "Write a checkpoint as a stock Llama of Hugging Face's format, or the other way."
    p = argparse.ArgumentParser(description=about)
    given = "a checkpoint, of which --out becomes a stock Llama"
    p.add_argument("--in", dest="input", metavar="CKPT", help=given)
    p.add_argument("--from", dest="source", metavar="SOURCE", help="a Llama's folder, or a GGUF file")
    p.add_argument("--out", required=True, metavar="PATH", help="a new one")
    p.add_argument("--dtype", choices=DTYPES, help="with --in (default: float32); a checkpoint has float32")
    p.add_argument("--context", type=int, help="with --from: a context shorter than its own")
    length = "with --from: a training length (default: the context, up to 4096)"
    p.add_argument("--block_size", type=int, help=length)
    args = p.parse_args()
    if bool(args.input) == bool(args.source):
        p.error("give --in CKPT, or --from FOLDER")
    if args.dtype and args.source:
        why = "a checkpoint has float32, since steps of training are too small for less"
        p.error(f"--dtype goes with --in: {why}")
    if args.input and (args.block_size is not None or args.context is not None):
        p.error("--block_size and --context go with --from")
    if args.source and not os.path.basename(args.out):
        raise ValueError(f"{args.out}: a folder: name a file in it, {args.out}ckpt.pt")
    if os.path.exists(args.out):
        raise ValueError(f"{args.out} exists: name a new {'folder' if args.input else 'file'} with --out")
    if args.source:
        read_llama(args.source, args.out, args.block_size, args.context)
    else:
        export(args.input, args.out, args.dtype or "float32")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"export.py: {e}")
    except KeyboardInterrupt:
        sys.exit("export.py: interrupted: nothing written")
