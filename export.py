"""
A checkpoint in, a stock Llama out: a folder that transformers, vLLM, lm-evaluation-harness and llama.cpp's converter load.

$ python export.py --in out/stage2/ckpt.pt --out out/stage2/hf
$ python export.py --in out/stage2/ckpt.pt --out out/stage2/hf --dtype bfloat16

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
import json
import math
import os
import shutil
import struct
import sys

import sentencepiece
import torch

from grow import assembled, skeleton
from model import Config, load_checkpoint, rope_places, row_ids, unwritten

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
SHARD = 5 * 10**9  # bytes a file, as Hugging Face has it


def llama_config(cfg, dtype, bos, eos):
    """config.json of the stock Llama that computes what a model of Config cfg does. ValueError where there is none."""
    if cfg.n_embd % cfg.n_head:
        wide, many = -(-cfg.n_embd // cfg.n_head) * cfg.n_head, cfg.n_head
        while cfg.n_embd % many or many % (cfg.n_head // cfg.n_kv_head):
            many += 1
        raise ValueError(f"n_embd = {cfg.n_embd} is no multiple of n_head = {cfg.n_head}, as transformers wants: "
                         f"grow.py --width {wide} --heads {cfg.n_head} would make it one, or --heads {many}")  # fmt: skip
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
        "rms_norm_eps": cfg.norm_eps * cfg.generations[0].n_embd / cfg.n_embd,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},  # what transformers 5 reads instead
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": cfg.tied,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "torch_dtype": dtype,
    }


def llama_tensors(cfg, weights):
    """{Hugging Face's name: (shape, a function that makes the tensor)} of a checkpoint's config and slabs."""
    plans = {name: tensor.plan for name, tensor in skeleton(cfg).growables().items()}
    order = torch.tensor(rope_places(cfg)).argsort()
    width, n_tokens = cfg.n_embd, cfg.n_tokens or cfg.vocab_size

    def full(name):
        return assembled(weights, name, plans[name])

    def rows(name):  # (vocab_size, n_embd) -> (n_tokens, n_embd)
        w = full(name)
        if not cfg.n_tokens:
            return w
        out = w.mean(0).expand(n_tokens, width).clone()
        out[row_ids(weights["row_of"], cfg.vocab_size)] = w
        return out

    def by_frequency(name, scale):  # (heads, 2, pairs, n_embd) -> (heads * head_dim, n_embd)
        return full(name)[:, :, order].mul(scale).reshape(-1, width)

    def norm(name, born):
        return (width,), lambda: full(f"{name}.gain") * math.sqrt(born / width)

    scale = math.sqrt(cfg.head_dim / cfg.generations[0].head_dim)
    out = {"model.embed_tokens.weight": ((n_tokens, width), lambda: rows("wte"))}
    for i, born in enumerate(cfg.layer_born):
        a, b, n, n_kv = f"layers.{i}.", f"model.layers.{i}.", cfg.n_head * cfg.head_dim, cfg.n_kv_head * cfg.head_dim
        out |= {
            f"{b}input_layernorm.weight": norm(f"{a}attn.norm", born),
            f"{b}self_attn.q_proj.weight": ((n, width), lambda a=a: by_frequency(f"{a}attn.q", scale)),
            f"{b}self_attn.k_proj.weight": ((n_kv, width), lambda a=a: by_frequency(f"{a}attn.k", 1)),
            f"{b}self_attn.v_proj.weight": ((n_kv, width), lambda a=a: full(f"{a}attn.v").reshape(-1, width)),
            f"{b}self_attn.o_proj.weight": ((width, n), lambda a=a: full(f"{a}attn.o").reshape(-1, width).T),
            f"{b}post_attention_layernorm.weight": norm(f"{a}mlp.norm", born),
            f"{b}mlp.gate_proj.weight": ((cfg.ffn_dim, width), lambda a=a: full(f"{a}mlp.gate")),
            f"{b}mlp.up_proj.weight": ((cfg.ffn_dim, width), lambda a=a: full(f"{a}mlp.up")),
            f"{b}mlp.down_proj.weight": ((width, cfg.ffn_dim), lambda a=a: full(f"{a}mlp.down").T),
        }
    out["model.norm.weight"] = norm("norm", cfg.generations[0].n_embd)
    if not cfg.tied:
        out["lm_head.weight"] = (n_tokens, width), lambda: rows("head")
    return out


def write_safetensors(folder, tensors, dtype):
    """Write model.safetensors, or from SHARD bytes on several and their index, a tensor at a time: safetensors' own
    save_file has them all in memory. The format: huggingface.co/docs/safetensors."""
    kind, files, size = getattr(torch, dtype), [{}], 0
    for name, (shape, make) in tensors.items():
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


def write_json(path, values):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(values, f, indent=2)
        f.write("\n")


def write_tokenizer(folder, sp, model, block_size):
    """tokenizer.model; tokenizer.json, which says the same for Hugging Face's tokenizers; and what reads it."""
    model.tofile(f"{folder}/tokenizer.model")
    write_json(f"{folder}/tokenizer.json", tokenizer_json(sp))
    names = {"bos_token": sp.bos_id(), "eos_token": sp.eos_id(), "unk_token": sp.unk_id()}
    special = {name: sp.id_to_piece(i) for name, i in names.items() if i >= 0}
    # not LlamaTokenizer: transformers 5 makes one of its own of the vocabulary, which reads "a  b" and " a" differently
    flags = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    write_json(f"{folder}/tokenizer_config.json", flags | {"model_max_length": block_size} | special)
    write_json(f"{folder}/special_tokens_map.json", special)


def tokenizer_json(sp):
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


def model_card(ckpt, cfg, n_params, last):
    """README.md: what the model is, how it grew, what it read, how well it does."""
    ledger, lines = ckpt["ledger"], []
    for g in ckpt["lineage"]:
        sizes = ", ".join(f"{name} {size}" for name, size in g["sizes"].items()) or "condensed"
        vocab = f", rows for {g['vocab']}" if g["vocab"] else ""
        lines.append(f"| {g['tokens']:,} | {g['flops']:.3g} | {sizes}{vocab} | {g['init']} | {g['max_dlogit']:.1e} |")
    grown = "\n".join(["| tokens read | FLOPs | to | init | max abs dlogit |", "|---|---|---|---|---|", *lines])
    first = cfg.generations[0]
    loss = f"Validation text, at step {last['step']}: {last['bpb']:.4f} bits per byte.\n" if last else ""
    return f"""---
library_name: transformers
tags: [llama, babel]
---
A Llama of {n_params:,} parameters ({cfg.n_layer} layers x {cfg.n_embd}), grown with Babel from one of width {first.n_embd}.

It has read {ledger["tokens"]:,} tokens for {ledger["flops"]:.4g} training FLOPs, those of the smaller models included.
{loss}
{grown if lines else "It has not been grown."}
"""


def last_evaluation(path, step):
    """What metrics.jsonl beside the checkpoint says of its step, {} if nothing."""
    if not os.path.isfile(path):
        return {}
    with open(path) as f:
        return next((e for line in f if '"bpb"' in line and (e := json.loads(line))["step"] == step), {})


def main():
    p = argparse.ArgumentParser(description="Write a checkpoint as a stock Llama of Hugging Face's format.")
    p.add_argument("--in", dest="input", required=True, metavar="CKPT")
    p.add_argument("--out", required=True, metavar="FOLDER", help="a new one")
    p.add_argument("--dtype", choices=DTYPES, default="float32")
    args = p.parse_args()
    ckpt = load_checkpoint(args.input)
    cfg = Config(**ckpt["config"])
    if os.path.exists(args.out):
        raise ValueError(f"{args.out} exists: name a new folder with --out")
    sp = None
    if ckpt["tokenizer"]["kind"] == "sentencepiece":
        sp = sentencepiece.SentencePieceProcessor(model_proto=ckpt["tokenizer"]["model"].numpy().tobytes())
    bos, eos = (sp.bos_id(), sp.eos_id()) if sp else (None, None)
    config, tensors = llama_config(cfg, args.dtype, bos, eos), llama_tensors(cfg, ckpt["model"])
    aside = f"{args.out.rstrip('/')}.{os.getpid()}"
    os.makedirs(aside)
    try:
        write_json(f"{aside}/config.json", config)
        write_json(f"{aside}/generation_config.json", {"bos_token_id": bos, "eos_token_id": eos})
        if sp:
            write_tokenizer(aside, sp, ckpt["tokenizer"]["model"].numpy(), cfg.block_size)
        else:
            print(f"no tokenizer files for tiktoken's {ckpt['tokenizer']['name']}: add those of its own repository")
        write_safetensors(aside, tensors, args.dtype)
        last = last_evaluation(os.path.join(os.path.dirname(args.input), "metrics.jsonl"), ckpt["step"])
        n_params = sum(math.prod(shape) for shape, _ in tensors.values())
        with open(f"{aside}/README.md", "w", encoding="utf-8") as f:
            f.write(model_card(ckpt, cfg, n_params, last))
        os.rename(aside, args.out)
    except OSError as e:
        raise unwritten(args.out, e) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    print(f"wrote {args.out}: {n_params:,} parameters in {args.dtype}, {len(tensors)} tensors")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"export.py: {e}")
