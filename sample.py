"""
Text out: is the model coherent?

$ python sample.py --in out/tiny2/ckpt.pt --prompt "In the beginning" --n 3 --temperature 0.8 --top_k 50
$ python sample.py --in out/tiny2/ckpt.pt --check                    # bits per byte on its validation text, repetition
$ python sample.py --in out/stage0/ckpt.pt out/stage0/grown.pt --check --text book.txt    # side by side
"""

import argparse
import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from checkpoint import build_model, load_checkpoint
from data import Tokenizer, count_bytes, speller, spread, token_dtype
from grow import condense, data_of
from model import Config, Llama


def load(path: str, device: str) -> tuple[Llama, Tokenizer, Callable, dict]:
    """-> (model, tokenizer, a function that spells ids which the model has no row for, checkpoint). Generations are
    fused: each would be concatenated again for every token."""
    ckpt = load_checkpoint(path)
    cfg = Config(**ckpt["config"])
    if cfg.n_fused < len(cfg.generations):
        ckpt, _ = condense(ckpt | {"optimizer": {}}, 1)
    model, tokenizer = build_model(ckpt), Tokenizer.from_dict(ckpt["tokenizer"])
    spelled = speller(model.token_ids(), tokenizer.vocab_size, tokenizer.spelling)
    return model.to(device).eval(), tokenizer, spelled, ckpt


@torch.no_grad()
def log_probs(model: Llama, tokens: np.ndarray, device: str) -> torch.Tensor:
    """The log-probability, in nats, of every token of the 1-d array but the first, each given those before it in its
    window: windows of block_size overlap by one token, and the last one reaches back so as to be full."""
    B, n = model.cfg.block_size, len(tokens) - 1
    out = torch.empty(n)
    for start in range(0, n, B):
        first = max(0, min(start, n - B))
        window = torch.from_numpy(tokens[first : first + B + 1].astype(np.int64))[None].to(device)
        losses = F.cross_entropy(model(window[:, :-1])[0].float(), model.rows(window[0, 1:]), reduction="none")
        out[start : start + B] = -losses[start - first :].cpu()
    return out


def repetition(samples: list[list[int]]) -> tuple[float, float]:
    """(share of 4-grams that repeat one of the same sample, distinct 2-grams as a share of all) of lists of ids."""
    fours = [list(zip(*(s[i:] for i in range(4)))) for s in samples]
    twos = [pair for s in samples for pair in zip(s, s[1:])]
    return 1 - sum(len(set(f)) for f in fours) / max(1, sum(map(len, fours))), len(set(twos)) / max(1, len(twos))


def reference_text(ckpt: dict, tokenizer: Tokenizer, path: str | None, longest: int = 262144) -> tuple[np.ndarray, int]:
    """(ids, a bos first, and the bytes of text they stand for) of the file, or of the validation text it knows: the same
    part of it that train.py evaluates on by default."""
    if path:
        with open(path, encoding="utf-8", newline="") as f:
            text = f.read()
        return np.array([tokenizer.bos, *tokenizer.encode(text)]), len(text.encode())
    data = data_of(ckpt)
    if not os.path.isfile(f"{data}/val.bin"):
        gone = f"{data}/val.bin, the checkpoint's validation text, is gone" if data else "the checkpoint has no validation text"
        raise ValueError(f"{gone}: give --text FILE")
    ids = spread(np.fromfile(f"{data}/val.bin", token_dtype(tokenizer.vocab_size)), longest)
    return ids, count_bytes(ids[1:], ids[:-1], tokenizer.token_bytes(), tokenizer.bos, tokenizer.dummy_prefix)


def samples(
    model: Llama, start: list[int], n: int, args: argparse.Namespace, seed: int, device: str
) -> Iterator[list[list[int]]]:
    """Yields, token by token, the n continuations so far of the ids `start`, each ending before its first stop."""
    rng, stop = torch.Generator(device).manual_seed(seed), start[0]  # the bos of another document
    idx, new = torch.tensor([start] * n, device=device), [[] for _ in range(n)]
    for column in model.generate(idx, args.tokens, args.temperature, args.top_k, args.top_p, rng, stop):
        for ids, token in zip(new, column[:, 0].tolist()):
            ids.append(token)
        yield [ids[: ids.index(stop)] if stop in ids else ids for ids in new]


def stream(model: Llama, tokenizer: Tokenizer, start: list[int], args: argparse.Namespace, seed: int, device: str) -> None:
    """Prints one sample's text as it comes."""
    shown = 0
    for (ids,) in samples(model, start, 1, args, seed, device):
        text = tokenizer.decode(start + ids)
        if not text.endswith("\ufffd"):  # in the middle of a character
            print(text[shown:], end="", flush=True)
            shown = len(text)
    print()


def check(paths: list[str], args: argparse.Namespace, device: str, autocast: contextlib.AbstractContextManager) -> None:
    """The table of --check: one column a checkpoint, and one for the text itself."""
    rows, logits = {}, []
    for path in paths:
        model, tokenizer, spelled, ckpt = load(path, device)
        ids, n_bytes = reference_text(ckpt, tokenizer, args.text)
        read, start = spelled(ids), spelled([tokenizer.bos, *tokenizer.encode(args.prompt)]).tolist()
        with autocast:
            lp = log_probs(model, read, device)
            *_, said = samples(model, start, args.n, args, args.seed, device)
            own = [log_probs(model, np.array(start + s), device)[len(start) - 1 :] for s in said]
            if not logits:
                window = torch.from_numpy(read[: model.cfg.block_size].astype(np.int64))[None].to(device)
            if window.size(1) <= model.cfg.block_size and model.rows(window).min() >= 0:
                logits.append((model.token_ids(), model(window)[0].float()))
        rep, distinct = repetition(said)
        values = (
            f"{-lp.sum().item() / n_bytes / math.log(2):.4f}",
            f"{rep:.1%}",
            f"{distinct:.3f}",
            f"{torch.cat(own).mean().item():.3f}",
        )
        names = ("bits per byte of the text", "repeated 4-grams", "distinct 2-grams", "mean log-probability under itself")
        for name, value in zip(names, values):
            rows.setdefault(name, []).append(value)
    n = args.tokens
    rep, distinct = repetition([ids[i * n : (i + 1) * n].tolist() for i in range(args.n)])
    for name, value in zip(rows, ("", f"{rep:.1%}", f"{distinct:.3f}", f"{lp[: n * args.n].mean().item():.3f}")):
        rows[name].append(value)
    width = max(map(len, [*paths, "x" * 16])) + 2
    print(f"{'':<36}" + "".join(f"{name:>{width}}" for name in [*paths, "the text itself"]))
    for name, values in rows.items():
        print(f"{name:<36}" + "".join(f"{value:>{width}}" for value in values))
    if len(paths) == 2:  # on the tokens of the first, which the second may have more of
        n = len(logits[0][0])
        if len(logits) < 2 or not torch.equal(logits[0][0], logits[1][0][:n]):
            raise ValueError("the second has not the tokens of the first, or is shorter: no max |dlogit|")
        print(f"max |dlogit| {(logits[0][1] - logits[1][1][:, :n]).abs().max().item():.1e}")


def main() -> None:
    p = argparse.ArgumentParser(description="Sample from a checkpoint, or check how coherent it is.")
    p.add_argument("--in", dest="inputs", nargs="+", default=["out/ckpt.pt"], metavar="CKPT", help="one, or two with --check")
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--n", type=int, help="samples (default: 1, with --check 8)")
    p.add_argument("--tokens", type=int, default=200, help="at most so many new tokens a sample")
    p.add_argument("--temperature", type=float, help="0: greedy (default: 0.8, with --check 1)")
    p.add_argument("--top_k", type=int, default=0, help="only the k likeliest tokens; 0: all")
    p.add_argument("--top_p", type=float, default=1.0, help="only the likeliest tokens that make up this share")
    p.add_argument("--seed", type=int, default=1337)
    p.add_argument("--check", action="store_true", help="bits per byte, repetition, and confidence, in a table")
    p.add_argument("--text", metavar="FILE", help="with --check: text to read instead of the validation set")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    args.n = (8 if args.check else 1) if args.n is None else args.n
    args.temperature = (1.0 if args.check else 0.8) if args.temperature is None else args.temperature
    if len(args.inputs) > 1 + args.check:
        raise ValueError("give one checkpoint, or two with --check")
    if args.temperature < 0 or args.top_k < 0 or not 0 < args.top_p <= 1 or args.n < 1 or args.tokens < 1:
        raise ValueError("temperature and top_k are at least 0, top_p above 0 and at most 1, n and tokens at least 1")
    autocast = torch.autocast("cuda", torch.bfloat16) if args.device.startswith("cuda") else contextlib.nullcontext()
    if args.check:
        return check(args.inputs, args, args.device, autocast)
    model, tokenizer, spelled, _ = load(args.inputs[0], args.device)
    start = spelled([tokenizer.bos, *tokenizer.encode(args.prompt)]).tolist()
    for i in range(args.n):
        with autocast:
            stream(model, tokenizer, start, args, args.seed + i, args.device)
        if i + 1 < args.n:
            print("-" * 80)


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
