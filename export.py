"""
A checkpoint in, a stock Llama out: a folder that transformers, vLLM, lm-evaluation-harness and llama.cpp's converter load.
And a stock Llama in, a checkpoint out, of one generation, for grow.py and train.py.

$ python export.py --in out/stage2/ckpt.pt --out out/stage2/hf
$ python export.py --in out/stage2/ckpt.pt --out out/stage2/hf --dtype bfloat16
$ python export.py --from TinyLlama-1.1B/ --out out/tinyllama/ckpt.pt
$ python export.py --from Llama-3.2-1B/ --out out/llama3/ckpt.pt --block_size 4096

What growing has added is folded into the weights, and the logits stay:

| here                                                     | there
|----------------------------------------------------------|---------------------------------------------------------------
| a tensor's slabs                                         | one tensor
| a norm's factor sqrt(born / n_embd)                      | in its gain
| the one eps, norm_eps x n_embd of generation 0 / n_embd  | rms_norm_eps
| the scores' scale, head_dim of generation 0 ^ -1/2       | head_dim ^ -1/2, and the rest in q
| RoPE's pairs in the order of their birth                 | by falling frequency, the half-split order that Hugging Face has
| rows for some of the tokens, in an order of their own    | all, in the tokenizer's order; what had no row gets the rows' mean
"""

import argparse
import functools
import json
import math
import os
import shutil
import struct
import sys
from collections.abc import Callable

import numpy as np
import sentencepiece
import torch

from checkpoint import Lazy, load_checkpoint, materialise, remove, unwritten, write_checkpoint
from data import MODEL_FILES, Tokenizer, load_tokenizer, one_line
from grow import assembled, not_stock, skeleton
from model import SCALING, Config, rope_places, row_ids

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD = 5 * 10**9  # bytes a file, as Hugging Face has it


def llama_config(cfg: Config, dtype: str, bos: int | None, eos: int | None) -> dict:
    """config.json of the stock Llama that computes what a model of Config cfg does. ValueError where there is none."""
    if not_stock(cfg):
        raise ValueError(not_stock(cfg))
    scaling = {"rope_type": "llama3"} | cfg.rope_scaling if cfg.rope_scaling else None
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
        "max_position_embeddings": cfg.block_size,
        "rms_norm_eps": cfg.norm_eps * (cfg.generations[0].n_embd / cfg.n_embd),
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": (scaling or {"rope_type": "default"}) | {"rope_theta": cfg.rope_theta},  # transformers 5 reads this
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    }


NAMES = {  # of a layer's tensors, here and there
    "attn.norm.gain": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "mlp.norm.gain": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}
TRANSPOSED = ("o", "down")


def llama_names(cfg: Config) -> dict[str, str]:
    """{a tensor's name here: its name there}"""
    names = {"wte": "model.embed_tokens.weight"}
    for i in range(cfg.n_layer):
        names |= {f"layers.{i}.{here}": f"model.layers.{i}.{there}.weight" for here, there in NAMES.items()}
    return names | {"norm.gain": "model.norm.weight"} | ({} if cfg.tied else {"head": "lm_head.weight"})


def llama_shape(cfg: Config, kind: str) -> tuple[int, ...]:
    """The shape there of the tensor `kind` of SHAPES."""
    *out, width = cfg.shape(kind)
    if kind == "norm":
        return (width,)
    out = cfg.n_tokens or cfg.vocab_size if kind in ("wte", "head") else math.prod(out)
    return (width, out) if kind in TRANSPOSED else (out, width)


def llama_tensors(cfg: Config, weights: dict[str, torch.Tensor]) -> dict[str, tuple[tuple, Callable[[], torch.Tensor]]]:
    """{Hugging Face's name: (shape, a function that makes the tensor)} of a checkpoint's config and slabs."""
    model = skeleton(cfg)
    order = torch.tensor(rope_places(cfg)).argsort()
    scale = math.sqrt(cfg.head_dim / cfg.generations[0].head_dim)

    def full(name, kind, plan):
        w = assembled(weights, name, plan)
        if kind == "norm":
            return w * model.get_submodule(name.removesuffix(".gain")).factor
        if kind in ("q", "k"):  # (heads, 2, pairs, n_embd), by falling frequency
            w = w[:, :, order] * (scale if kind == "q" else 1)
        if kind in ("wte", "head") and cfg.n_tokens:  # (vocab_size, n_embd) -> (n_tokens, n_embd)
            rows, w = w, w.mean(0).expand(cfg.n_tokens, -1).clone()
            w[row_ids(weights["row_of"], cfg.vocab_size)] = rows
        w = w.reshape(-1, cfg.n_embd)
        return w.T if kind in TRANSPOSED else w

    names = llama_names(cfg)
    return {
        names[name]: (llama_shape(cfg, tensor.kind), functools.partial(full, name, tensor.kind, tensor.plan))
        for name, tensor in model.growables().items()
    }


def write_safetensors(folder: str, tensors: dict[str, tuple[tuple, Callable[[], torch.Tensor]]], dtype: str) -> None:
    """Write model.safetensors, or from SHARD bytes on several and their index, a tensor at a time: safetensors' own
    save_file has them all in memory. The format: huggingface.co/docs/safetensors."""
    kind, files, size = getattr(torch, dtype), [{}], 0
    for name, (shape, _) in tensors.items():
        n = math.prod(shape) * kind.itemsize
        if size and size + n > SHARD:
            files.append({})
            size = 0
        files[-1][name] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [size, size + n]}
        size += n
    names = [f"model-{i + 1:05}-of-{len(files):05}.safetensors" for i in range(len(files))]
    names = names if len(files) > 1 else ["model.safetensors"]
    for file_name, entries in zip(names, files):
        header = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
        header += b" " * (-len(header) % 8)
        with open(f"{folder}/{file_name}", "wb") as f:
            f.write(struct.pack("<Q", len(header)) + header)
            for name in entries:
                tensor = tensors[name][1]().to(kind).contiguous()
                assert tensor.shape == tensors[name][0], name
                f.write(tensor.flatten().view(torch.uint8).numpy())
            f.flush()
            os.fsync(f.fileno())
    if len(files) > 1:
        where = {name: file_name for file_name, entries in zip(names, files) for name in entries}
        total = sum(e["data_offsets"][1] - e["data_offsets"][0] for entries in files for e in entries.values())
        write_json(f"{folder}/model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": where})


def write_json(path: str, values: dict) -> None:
    with open(path, "w", encoding="utf-8") as f:
        json.dump(values, f, indent=2)
        f.write("\n")


def write_tokenizer(folder: str, tok: Tokenizer, block_size: int) -> None:
    """The tokenizer's own file; of a tokenizer.model tokenizer.json too, which says the same for Hugging Face's tokenizers;
    and what reads it."""
    with open(f"{folder}/{MODEL_FILES[tok.kind]}", "wb") as f:
        f.write(tok.model)
    if tok.kind == "sentencepiece":
        write_json(f"{folder}/tokenizer.json", tokenizer_json(tok.sp))
        ids = {"bos_token": tok.bos, "eos_token": tok.eos, "unk_token": tok.sp.unk_id()}
        special = {name: tok.sp.id_to_piece(i) for name, i in ids.items() if i >= 0}
    else:
        special = {"bos_token": tok.hf.id_to_token(tok.bos), "eos_token": tok.hf.id_to_token(tok.eos)}
    # not LlamaTokenizer: transformers 5 makes one of its own of the vocabulary, which reads "a  b" and " a" differently
    flags = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(f"{folder}/tokenizer_config.json", flags | {"model_max_length": block_size} | special)
    write_json(f"{folder}/special_tokens_map.json", special)


def tokenizer_json(sp: sentencepiece.SentencePieceProcessor) -> dict:
    """A sentencepiece BPE model as Hugging Face's tokenizers describe it, as in the repositories of Llama 2."""
    vocab = {sp.id_to_piece(i): i for i in range(sp.vocab_size())}
    merges = []  # the pairs that make each piece, those of the best piece first
    for piece, i in vocab.items():
        if sp.is_control(i) or sp.is_unknown(i) or sp.is_byte(i):
            continue
        cuts = [(piece[:n], piece[n:]) for n in range(1, len(piece))]
        pairs = [(a, b) for a, b in cuts if a in vocab and b in vocab]
        merges += [(-sp.get_score(i), vocab[a], vocab[b], a, b) for a, b in pairs]
    special = [i for i in vocab.values() if sp.is_control(i) or sp.is_unknown(i)]
    bos = sp.id_to_piece(sp.bos_id())
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": sp.id_to_piece(i), "special": True, "normalized": False}
            | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
            for i in special
        ],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
            + [{"SpecialToken": {"id": bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [sp.bos_id()], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
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


def model_card(ckpt: dict, cfg: Config, n_params: int, last: dict) -> str:
    """README.md: what the model is, how it grew, what it read, how well it does."""
    ledger, lines = ckpt["ledger"], []
    for g in ckpt["lineage"]:
        sizes = ", ".join(f"{name} {size}" for name, size in g["sizes"].items()) or "condensed"
        vocab = f", rows for {g['vocab']}" if g["vocab"] else ""
        lines.append(f"| {g['tokens']:,} | {g['flops']:.3g} | {sizes}{vocab} | {g['init']} | {g['max_dlogit']:.1e} |")
    grown = "\n".join(["| tokens read | FLOPs | to | init | max abs dlogit |", "|---|---|---|---|---|", *lines])
    first = cfg.generations[0]
    origin, beside = (ledger["from"], ", beside what that had read") if "from" in ledger else ("one", "")
    loss = f"Validation text, at step {last['step']}: {last['bpb']:.4f} bits per byte.\n" if last else ""
    return f"""---
library_name: transformers
tags: [llama, babel]
---
A Llama of {n_params:,} parameters ({cfg.n_layer} layers x {cfg.n_embd}), grown with Babel from {origin} of width {first.n_embd}.

It has read {ledger["tokens"]:,} tokens for {ledger["flops"]:.4g} training FLOPs, those of the smaller models included{beside}.
{loss}
{grown if lines else "It has not been grown."}
"""


def last_evaluation(path: str, step: int) -> dict:
    """What metrics.jsonl beside the checkpoint says of its step, {} if nothing."""
    if not os.path.isfile(path):
        return {}
    with open(path) as f:
        return next((e for line in f if '"bpb"' in line and (e := json.loads(line))["step"] == step), {})


# -----------------------------------------------------------------------------
# the other way


def read_json(path: str) -> dict:
    """The object in a JSON file. ValueError where it holds none."""
    try:
        with open(path, encoding="utf-8") as f:
            values = json.load(f)
    except ValueError as e:
        raise ValueError(f"{path}: broken, or no JSON ({e})") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected an object, not a {type(values).__name__}")
    return values


def babel_config(path: str) -> Config:
    """The Config, of one generation, that computes what the Llama of a config.json does; what it leaves out is as in
    transformers' LlamaConfig. ValueError, which names the reason, where there is none."""
    c, rope = read_json(path), {}
    for name in ("rope_scaling", "rope_parameters"):  # the latter since transformers 5
        if not isinstance(c.get(name) or {}, dict):
            raise ValueError(f"{path}: {name} = {c[name]!r}, expected an object")
        rope |= c.get(name) or {}
    scaled = rope.get("rope_type", rope.get("type", "default"))
    for what, has, can in [
        ("model_type", c.get("model_type"), "llama"),
        ("architectures", c.get("architectures") or ["LlamaForCausalLM"], ["LlamaForCausalLM"]),
        ("quantization_config", bool(c.get("quantization_config")), False),
        ("hidden_act", c.get("hidden_act", "silu"), "silu"),
        ("attention_bias", c.get("attention_bias", False), False),
        ("mlp_bias", c.get("mlp_bias", False), False),
        ("rope_scaling", scaled, scaled if scaled in ("default", "llama3") else "default or llama3"),
        ("partial_rotary_factor", rope.get("partial_rotary_factor", c.get("partial_rotary_factor", 1)), 1),
    ]:
        if has != can:
            raise ValueError(f"{path}: {what} is {has}, and model.py has only {can}")

    def number(name, default=None, kind=int):
        value = default if c.get(name) is None else c[name]
        if type(value) not in (int, kind):
            raise ValueError(f"{path}: {name} = {value!r}, expected {'a whole number' if kind is int else 'a number'}")
        return value

    c |= rope  # rope_theta, and what scales it
    n_head, n_embd = number("num_attention_heads"), number("hidden_size")
    if not c.get("head_dim") and n_embd % max(n_head, 1):
        raise ValueError(f"{path}: no head_dim, and hidden_size = {n_embd} is no multiple of num_attention_heads = {n_head}")
    return Config(
        n_layer=number("num_hidden_layers"),
        n_head=n_head,
        n_kv_head=number("num_key_value_heads", n_head),
        n_embd=n_embd,
        head_dim=number("head_dim", n_embd // max(n_head, 1)),
        ffn_dim=number("intermediate_size"),
        vocab_size=number("vocab_size"),
        block_size=number("max_position_embeddings", 2048),
        rope_theta=number("rope_theta", 10000.0, float),
        rope_scaling={key: number(key, kind=float) for key in SCALING} if scaled == "llama3" else {},
        norm_eps=number("rms_norm_eps", 1e-6, float),
        tied=bool(c.get("tie_word_embeddings")),
    )


def open_safetensors(folder: str) -> dict:
    """{a tensor's name: the open file that has it} of a folder's model.safetensors, or of the files that its index names."""
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError:
        raise ValueError("--from needs safetensors: pip install safetensors") from None
    files = ["model.safetensors"]
    if not os.path.isfile(f"{folder}/{files[0]}"):
        index = f"{folder}/model.safetensors.index.json"
        if not os.path.isfile(index):
            raise ValueError(f"{folder}: no model.safetensors, nor its index, in it; save_pretrained of transformers makes it")
        where = read_json(index).get("weight_map")
        if not where or not isinstance(where, dict):
            raise ValueError(f"{index}: no weight_map in it")
        files = sorted(set(where.values()))
    tensors = {}
    for name in files:
        try:
            f = safe_open(f"{folder}/{name}", "pt")
        except (OSError, SafetensorError) as e:
            raise ValueError(f"{folder}/{name}: missing, truncated, or no safetensors file ({one_line(e)})") from None
        tensors |= dict.fromkeys(f.keys(), f)
    return tensors


def babel_tensors(cfg: Config, files: dict, folder: str) -> dict[str, Lazy]:
    """{slab: Lazy} of a Config of one generation and what open_safetensors found. ValueError where that is not what the
    Config wants."""
    names, slabs = llama_names(cfg), {}
    known = {*names.values(), "lm_head.weight"}  # which a tied one may have as well
    unknown = [name for name in files if name not in known and not name.endswith("rotary_emb.inv_freq")]  # older ones' buffer
    if unknown:
        raise ValueError(f"{folder}: a Llama of this config.json has no {unknown[0]}")

    tied_to = files.get("lm_head.weight") if cfg.tied else None
    wte = names["wte"]
    if tied_to and wte in files and not torch.equal(tied_to.get_tensor("lm_head.weight"), files[wte].get_tensor(wte)):
        raise ValueError(f"{folder}: its config.json ties the head to the embedding, but lm_head.weight is another: put "
                         "tie_word_embeddings right, or take lm_head.weight out")  # fmt: skip

    def fill(out, name, kind):
        w = files[name].get_tensor(name)
        out.copy_((w.T if kind in TRANSPOSED else w).view(out.shape))

    for name, tensor in skeleton(cfg).growables().items():
        there, shape = names[name], llama_shape(cfg, tensor.kind)
        if there not in files:
            raise ValueError(f"{folder}: {there} is missing")
        stored = files[there].get_slice(there)
        if tuple(stored.get_shape()) != shape or stored.get_dtype() not in DTYPES.values():
            raise ValueError(f"{folder}: {there} is {stored.get_dtype()} {stored.get_shape()}, expected {list(shape)} of "
                             + ", ".join(DTYPES.values()))  # fmt: skip
        slab_shape = tensor.plan[0][2]
        slabs[f"{name}.0"] = Lazy(slab_shape, torch.float32, functools.partial(fill, name=there, kind=tensor.kind))
    return slabs


def read_llama(folder: str, out: str, block_size: int | None = None) -> None:
    """Makes the checkpoint `out` of a Hugging Face folder, with a shorter context if a block_size is given; of its tensors,
    one at a time is in memory."""
    if not os.path.isdir(folder):
        raise ValueError(f"{folder}: no such folder; from the Hugging Face hub: hf download NAME --local-dir {folder}")
    cfg = babel_config(f"{folder}/config.json")
    if block_size is not None and block_size > cfg.block_size:
        raise ValueError(f"--block_size {block_size}: {folder} has a context of {cfg.block_size}, and it can only be shorter")
    cfg = Config(**vars(cfg) | {"block_size": cfg.block_size if block_size is None else block_size})
    names = [name for name in MODEL_FILES.values() if os.path.isfile(f"{folder}/{name}")]
    if not names:
        raise ValueError(f"{folder}: no {' and no '.join(MODEL_FILES.values())} in it: fetch it with the weights")
    tok = load_tokenizer(f"{folder}/{names[0]}")
    if tok.vocab_size > cfg.vocab_size:
        raise ValueError(f"{folder}: its tokenizer has {tok.vocab_size} tokens, its config.json a vocab_size of {cfg.vocab_size}")
    tokenizer = tok.to_dict() | {"model": torch.from_numpy(np.frombuffer(tok.model, np.uint8).copy())}
    name = os.path.basename(os.path.realpath(folder))
    ledger = {"tokens": 0, "flops": 0, "seconds": 0.0, "dealt": 0, "read": {}, "from": name}
    ckpt = {"config": cfg.plain(), "model": babel_tensors(cfg, open_safetensors(folder), folder), "optimizer": {}}
    ckpt |= {"ledger": ledger, "lineage": [], "step": 0, "settings": {}, "tokenizer": tokenizer, "schedule": None, "branch": None}
    os.makedirs(os.path.dirname(out) or ".", exist_ok=True)
    aside = f"{out}.{os.getpid()}"
    try:
        write_checkpoint(aside, materialise(ckpt, f"{aside}.scratch"))
        os.rename(aside, out)
    finally:
        remove(aside)
        remove(f"{aside}.scratch")
    n, spare = skeleton(cfg).count_params()["total"], cfg.vocab_size - tok.vocab_size
    print(f"wrote {out}: {cfg.n_layer} x {cfg.n_embd}, {n:,} parameters, block_size {cfg.block_size}, tokenizer {tok.name}"
          + f", {spare} rows more than it has tokens" * (spare > 0))  # fmt: skip


# -----------------------------------------------------------------------------


def main() -> None:
    p = argparse.ArgumentParser(description="Write a checkpoint as a stock Llama of Hugging Face's format, or the other way.")
    p.add_argument("--in", dest="input", metavar="CKPT", help="a checkpoint, of which --out becomes a stock Llama")
    p.add_argument("--from", dest="folder", metavar="FOLDER", help="a stock Llama, of which --out becomes a checkpoint")
    p.add_argument("--out", required=True, metavar="PATH", help="a new one")
    p.add_argument("--dtype", choices=DTYPES, help="with --in (default: float32); a checkpoint has float32")
    p.add_argument("--block_size", type=int, help="with --from: a context shorter than its own; train.py reads at most 4096")
    args = p.parse_args()
    if bool(args.input) == bool(args.folder):
        p.error("give --in CKPT, or --from FOLDER")
    if args.dtype and args.folder or args.block_size and args.input:
        p.error("--dtype goes with --in, --block_size with --from")
    if os.path.exists(args.out):
        raise ValueError(f"{args.out} exists: name a new {'folder' if args.input else 'file'} with --out")
    if args.folder:
        return read_llama(args.folder, args.out, args.block_size)
    ckpt, dtype = load_checkpoint(args.input), args.dtype or "float32"
    cfg = Config(**ckpt["config"])
    tok = Tokenizer.from_dict(ckpt["tokenizer"]) if ckpt["tokenizer"]["kind"] in MODEL_FILES else None
    bos, eos = (tok.bos, tok.eos) if tok else (None, None)
    config, tensors = llama_config(cfg, dtype, bos, eos), llama_tensors(cfg, ckpt["model"])
    aside = f"{args.out.rstrip('/')}.{os.getpid()}"
    os.makedirs(aside)
    try:
        write_json(f"{aside}/config.json", config)
        write_json(f"{aside}/generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
        if tok:
            write_tokenizer(aside, tok, cfg.block_size)
        else:
            print(f"no tokenizer files for tiktoken's {ckpt['tokenizer']['name']}: add those of its own repository")
        write_safetensors(aside, tensors, dtype)
        last = last_evaluation(os.path.join(os.path.dirname(args.input), "metrics.jsonl"), ckpt["step"])
        n_params = sum(math.prod(shape) for shape, _ in tensors.values())
        with open(f"{aside}/README.md", "w", encoding="utf-8") as f:
            f.write(model_card(ckpt, cfg, n_params, last))
        os.rename(aside, args.out)
    except OSError as e:
        raise unwritten(args.out, e) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"wrote {args.out}: {n_params:,} parameters in {dtype}, {len(tensors)} tensors")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"export.py: {e}")
