"""
Write text with a model, or check how coherent that is.

$ python sample.py --in out/tiny2/ckpt.pt --prompt "In the beginning" --n 3 --temperature 0.8 --top_k 50
$ python sample.py --in out/smol/ckpt.pt --chat --prompt "What is the capital of France?" --system "Be brief."
$ python sample.py --in out/tiny2/ckpt.pt --check           # bits per byte on its validation text, repetition
$ python sample.py --in out/stage0/ckpt.pt out/stage0/grown.pt --check --text book.txt     # side by side
"""

import argparse
import contextlib
import datetime
import glob
import io
import json
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F

from checkpoint import load_checkpoint, stop_ids
from data import Tokenizer, count_bytes, one_line, read_meta, speller, spread
from grow import data_of, fused
from model import Llama

DEFAULT = "out/ckpt.pt"  # --in

# --check
EVALUATED = 262144  # tokens of a validation text that are read, as in train.py
WINDOW = 4096  # tokens that are read at a time, at most
CHUNK = 256  # tokens of these that have logits at a time, at most
AT_ONCE = 1024  # samples that are drawn at once, at most


# -----------------------------------------------------------------------------
# the model, and what is put into it


def load(path: str, device: str) -> tuple[Llama, Tokenizer, Callable, dict]:
    """Return (model, its generations fused; tokenizer; a function that spells ids which the model has no row
    for; checkpoint). Raise ValueError if there is none at path."""
    ckpt = load_checkpoint(path)
    model, tokenizer = fused(ckpt), Tokenizer.from_dict(ckpt["tokenizer"])
    spelled = speller(model.token_ids(), tokenizer.vocab_size, tokenizer.spelling)
    return model.to(device), tokenizer, spelled, ckpt


def missing() -> ValueError:
    """Return the error to raise where no --in was given, and no checkpoint is at the default path."""
    folder = os.path.dirname(DEFAULT)
    there = glob.glob(f"{folder}/*/ckpt.pt") + glob.glob(f"{folder}/demo/*/ckpt.pt")  # of runs/demo.sh
    there = sorted(there, key=os.path.getmtime, reverse=True)[:5]
    if there:
        others = f"; or {', '.join(there[1:])}" if there[1:] else ""
        return ValueError(f"{DEFAULT}: no such checkpoint: try the newest, --in {there[0]}{others}")
    how = "bash runs/demo.sh trains a small model, and README.md says how to train yours"
    return ValueError(f"{DEFAULT}: no such checkpoint: name one with --in, or make one: {how}")


def check_device(device: str) -> None:
    """Raise ValueError where torch can't use the device."""
    try:
        torch.zeros(1, device=device).item()
        torch.Generator(device)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"--device {device}: {one_line(e)}: use another, as --device cpu") from None


def render_chat(template: str, tokens: dict[str, str], message: str, system: str | None) -> str:
    """Return a user's message, after a system message if there is one, as the template writes it, up to where
    the answer begins. Raise ValueError where the template fails.

    As in transformers' apply_chat_template, in a sandbox: a template is a program of whoever made the model.
    tokens: what the template knows as bos_token and so on."""
    import jinja2.ext  # here, since only --chat needs it; torch brings it
    import jinja2.sandbox

    # what a template may call
    def raise_exception(text):
        raise jinja2.TemplateError(text)

    def strftime_now(form):
        return datetime.datetime.now().strftime(form)

    def tojson(x, ensure_ascii=False, **options):  # jinja's own escapes < and >
        return json.dumps(x, ensure_ascii=ensure_ascii, **options)

    options = {"trim_blocks": True, "lstrip_blocks": True, "extensions": [jinja2.ext.loopcontrols]}
    sandbox = jinja2.sandbox.ImmutableSandboxedEnvironment(**options)
    sandbox.filters["tojson"] = tojson
    sandbox.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}

    # {% generation %} marks the answers, for training, and writes nothing
    template = re.sub(r"(\{%[-+]?\s*)generation(\s*[-+]?%\})", r"\1if true\2", template)
    template = re.sub(r"(\{%[-+]?\s*)endgeneration(\s*[-+]?%\})", r"\1endif\2", template)
    messages = [] if system is None else [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": message})
    given = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
    try:
        return sandbox.from_string(template).render(given | tokens)
    except Exception as e:  # a template can fail in any way
        raise ValueError(f"--chat: the model's chat template fails: {one_line(e)}") from None


def kept_object(files: dict[str, bytes], name: str) -> dict:
    """Return the object in a JSON file that the model came with, {} where it is missing or broken."""
    with contextlib.suppress(ValueError, TypeError):
        return dict(json.loads(files.get(name, b"{}")))
    return {}


def chat_ids(ckpt: dict, tokenizer: Tokenizer, message: str, system: str | None) -> list[int]:
    """Return the ids of a user's message in the model's chat template, as transformers' apply_chat_template
    has them. Raise ValueError where the model has no template, or it fails."""
    # the template, of the files that the model came with
    kept = (ckpt.get("origin") or {}).get("files", {})
    files = {name: x.numpy().tobytes() for name, x in kept.items()}
    config = kept_object(files, "tokenizer_config.json")
    template = files.get("chat_template.jinja", b"").decode(errors="replace") or config.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = {t["name"]: t["template"] for t in template}.get("default")
    if not isinstance(template, str):
        raise ValueError("--chat: the model came with no chat template: leave --chat out")

    # {name: token}, as bos_token; a file has a token's text, or a dict of its properties
    tokens = {}
    if tokenizer.kind == "sentencepiece":
        ids = {"bos_token": tokenizer.bos, "eos_token": tokenizer.eos, "unk_token": tokenizer.sp.unk_id()}
        tokens = {name: tokenizer.sp.id_to_piece(i) for name, i in ids.items() if i >= 0}
    for name, token in (kept_object(files, "special_tokens_map.json") | config).items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            tokens[name] = token

    # {token: id} of those that were added to a sentencepiece model
    added = kept_object(files, "added_tokens.json")
    added |= {token["content"]: int(i) for i, token in config.get("added_tokens_decoder", {}).items()}
    more = kept_object(files, "tokenizer.json").get("added_tokens", [])
    added |= {token["content"]: token["id"] for token in more}

    # LlamaTokenizer puts its space before the whole text only. A legacy one, or another class, puts it before
    # each part between special tokens
    each = config.get("legacy", "Llama" not in (config.get("tokenizer_class") or "Llama"))
    return tokenizer.encode_with_special(render_chat(template, tokens, message, system), added, each)


def prompt_ids(
    args: argparse.Namespace, model: Llama, tokenizer: Tokenizer, spelled: Callable, ckpt: dict
) -> list[int]:
    """Return the ids of the prompt, all with a row: a bos and the text, or with --chat a message. Say so on
    stderr where the context is too short for them. Raise ValueError where a chat can't be read."""
    if args.chat:
        try:
            ids = chat_ids(ckpt, tokenizer, args.prompt, args.system)
        except (KeyError, TypeError, AttributeError) as e:
            raise ValueError(f"--chat: a file that the model came with is broken: {one_line(e)}") from None
    else:
        ids = [tokenizer.bos, *tokenizer.encode(args.prompt)]
    ids, context = spelled(ids).tolist(), model.cfg.context
    if not ids or not np.isin(ids, model.token_ids().cpu()).all():
        raise ValueError("--chat: the chat template writes no token, or one that the model has no row for")
    if len(ids) > context:
        left = f"{len(ids):,} tokens, and the context {context:,}: its beginning is not read"
        print(f"sample.py: the prompt has {left}", file=sys.stderr)
    return ids


# -----------------------------------------------------------------------------
# text out


def samples(
    model: Llama, start: list[int], n: int, stop: list[int], args: argparse.Namespace, seed: int
) -> Iterator[list[list[int]]]:
    """Yield, token by token, the n continuations so far of the ids `start`, each without its stop token."""
    new, ended = [[] for _ in range(n)], [False] * n
    rng = torch.Generator(args.device).manual_seed(seed)
    idx = torch.tensor([start] * n, device=args.device)
    for column in model.generate(idx, args.tokens, args.temperature, args.top_k, args.top_p, rng, stop):
        for i, token in enumerate(column[:, 0].tolist()):
            ended[i] = ended[i] or token in stop
            if not ended[i]:
                new[i].append(token)
        yield new


def pieces(tokenizer: Tokenizer, begun: list[int], growing: Iterator[list[list[int]]]) -> Iterator[str]:
    """Yield the text of the ids `begun` and of a single sample, a piece whenever its characters are complete.
    Joined, the pieces are what decoding all ids gives, which would take ever longer with every token."""
    ids, shown, ready = list(begun), 0, 0
    for (new,) in growing:
        ids += new[len(ids) - len(begun) :]
        # ids[shown:ready] have been written. They are decoded again, since a token's text may depend on the
        # one before
        before, text = tokenizer.decode(ids[shown:ready]), tokenizer.decode(ids[shown:])
        if len(text) > len(before) and not text.endswith("\ufffd"):  # which is in the middle of a character
            yield text[len(before) :]
            shown, ready = ready, len(ids)
    yield tokenizer.decode(ids[shown:])[len(tokenizer.decode(ids[shown:ready])) :]


# -----------------------------------------------------------------------------
# --check


def hidden(model: Llama, ids: np.ndarray, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (what the head multiplies, (T, C); the head's weight, (vocab_size, C)) for T ids, a 1-d
    array."""
    x, head = model.trunk(torch.from_numpy(ids.astype(np.int64))[None].to(device))
    return x[0], head


@torch.no_grad()
def log_probs(model: Llama, tokens: np.ndarray, device: str) -> torch.Tensor:
    """Return, for a 1-d array of T tokens, the log-probability in nats of each but the first, (T - 1,), given
    those before it in its window. Windows of block_size, or of WINDOW if that is less, overlap by one token;
    the last one reaches back so as to be full."""
    B, n = min(model.cfg.block_size, WINDOW), len(tokens) - 1
    out = torch.empty(n)
    for start in range(0, n, B):
        first = max(0, min(start, n - B))
        window = tokens[first : first + B + 1]
        x, head = hidden(model, window[:-1], device)
        rows = model.rows(torch.from_numpy(window[1:].astype(np.int64)).to(device))
        for i in range(start - first, len(rows), CHUNK):
            logits = F.linear(x[i : i + CHUNK], head).float()
            losses = F.cross_entropy(logits, rows[i : i + CHUNK], reduction="none")
            out[first + i : first + i + len(losses)] = -losses.cpu()
    return out


def max_dlogit(one: tuple[torch.Tensor, torch.Tensor], two: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Return the largest difference between two models' logits on the rows of the first. Each is what
    hidden() returns."""
    (x, head), (y, other) = one, two
    largest = 0.0
    for i in range(0, len(x), CHUNK):
        a, b = F.linear(x[i : i + CHUNK], head), F.linear(y[i : i + CHUNK], other[: len(head)])
        largest = max(largest, (a.float() - b.float()).abs().max().item())
    return largest


def repetition(samples: list[list[int]]) -> tuple[float, float]:
    """Return (share of 4-grams that repeat one of the same sample, distinct 2-grams as a share of all) of
    lists of ids; nan where there are none."""
    fours = [list(zip(*(s[i:] for i in range(4)))) for s in samples]
    twos = [pair for s in samples for pair in zip(s, s[1:])]
    repeated = distinct = math.nan
    if n := sum(map(len, fours)):
        repeated = 1 - sum(len(set(f)) for f in fours) / n
    if twos:
        distinct = len(set(twos)) / len(twos)
    return repeated, distinct


def reference_text(ckpt: dict, tokenizer: Tokenizer, path: str | None) -> tuple[np.ndarray, int]:
    """Return (ids, a bos first; the bytes of text that they stand for) of the file at path. Without a path:
    of the part of the checkpoint's validation text that train.py evaluates on by default. Raise ValueError
    where there is no text."""
    if path is not None:
        try:
            with open(path, encoding="utf-8-sig", newline="") as f:  # -sig: as prepare.py reads it
                text = f.read()
        except UnicodeDecodeError:
            raise ValueError(f"--text {path}: not UTF-8 text: convert it") from None
        except OSError as e:
            raise ValueError(f"--text {path}: {e.strerror}") from None
        ids, n_bytes = np.array([tokenizer.bos, *tokenizer.encode(text)]), len(text.encode())
    else:
        path = f"{data_of(ckpt)}/val.bin"
        if not os.path.isfile(path):
            gone = "the checkpoint has no validation text"
            if data_of(ckpt):
                gone = f"{path}, the checkpoint's validation text, is gone"
            raise ValueError(f"{gone}: give --text FILE")
        if read_meta(data_of(ckpt))["tokenizer"]["sha256"] != tokenizer.sha256:
            raise ValueError(f"{path} was made with another tokenizer than the checkpoint: give --text FILE")
        ids = spread(np.fromfile(path, tokenizer.dtype), EVALUATED)
        known = tokenizer.token_bytes(), tokenizer.bos, tokenizer.dummy_prefix
        n_bytes = count_bytes(ids[1:], ids[:-1], *known)
    if not n_bytes:
        raise ValueError(f"{path}: no text in it: give another with --text FILE")
    return ids, n_bytes


ROWS = {  # of the table of --check, and how each is written
    "bits per byte of the text": ".4f",
    "repeated 4-grams": ".1%",
    "distinct 2-grams": ".3f",
    "mean log-probability under itself": ".3f",
}


def distance(first: dict, model: Llama, tokenizer: Tokenizer, device: str) -> str:
    """Return the line that says how far a model's logits are from those of the first checkpoint of --check,
    on its first window, or why that can't be said."""
    if tokenizer.sha256 != first["tokenizer"]:
        return "their tokenizers differ: no max |dlogit|"
    if len(first["window"]) > model.cfg.context:
        return "the second's context is shorter: no max |dlogit|"
    if not torch.equal(model.token_ids()[: len(first["rows"])], first["rows"]):
        return "the second has not the tokens of the first: no max |dlogit|"
    return f"max |dlogit| {max_dlogit(first['hidden'], hidden(model, first['window'], device)):.1e}"


@torch.no_grad()
def check(args: argparse.Namespace, autocast: contextlib.AbstractContextManager) -> None:
    """Print the table of --check: a column for each checkpoint, and one for the text itself; for two, also
    how far their logits are apart. Raise ValueError where they know different texts."""
    # the figures of each checkpoint
    rows, first, apart, device = {}, None, "", args.device
    for path in args.inputs:
        model, tokenizer, spelled, ckpt = load(path, device)
        ids, n_bytes = reference_text(ckpt, tokenizer, args.text)
        if first and args.text is None and not np.array_equal(ids, first["ids"]):
            raise ValueError("the two know different validation texts: give --text FILE")
        read, start = spelled(ids), prompt_ids(args, model, tokenizer, spelled, ckpt)
        with autocast:
            # what it makes of the text, and of what it writes
            lp = log_probs(model, read, device)
            *_, said = samples(model, start, args.n, stop_ids(ckpt, tokenizer), args, args.seed)
            own = [log_probs(model, np.array(start + s), device)[len(start) - 1 :] for s in said]

            # how far its logits are from those of the first, on the first window
            if first:
                apart = distance(first, model, tokenizer, device)
            else:
                window = read[: min(model.cfg.block_size, WINDOW)]
                first = {"ids": ids, "tokenizer": tokenizer.sha256, "rows": model.token_ids()}
                first |= {"window": window, "hidden": hidden(model, window, device)}
        values = -lp.sum().item() / n_bytes / math.log(2), *repetition(said), torch.cat(own).mean().item()
        for name, value in zip(ROWS, values):
            rows.setdefault(name, []).append(value)

    # the figures of the text, cut like the samples, and the table
    n = args.tokens
    alike = [ids[i * n : (i + 1) * n].tolist() for i in range(args.n)]
    itself = math.nan, *repetition(alike), lp[: n * args.n].mean().item()
    columns = [*args.inputs, "the text itself"]
    width = max(16, *map(len, columns)) + 2
    print(f"{'':<36}" + "".join(f"{name:>{width}}" for name in columns))
    for (name, form), last in zip(ROWS.items(), itself):
        shown = ["-" if math.isnan(value) else format(value, form) for value in [*rows[name], last]]
        print(f"{name:<36}" + "".join(f"{text:>{width}}" for text in shown))
    if apart:
        print(apart)


# -----------------------------------------------------------------------------
# the command line


def main() -> None:
    p = argparse.ArgumentParser(description="Sample from a checkpoint, or check how coherent it is.")
    which = "one, or two with --check (default: out/ckpt.pt)"
    p.add_argument("--in", dest="inputs", nargs="+", default=[DEFAULT], metavar="CKPT", help=which)
    p.add_argument("--prompt", default="Once upon a time")
    p.add_argument("--chat", action="store_true", help="the prompt is a message, for an imported chat model")
    p.add_argument("--system", metavar="TEXT", help="with --chat: how the model is to answer")
    p.add_argument("--n", type=int, help="samples (default: 1, with --check 8)")
    p.add_argument("--tokens", type=int, default=200, help="at most so many new tokens a sample")
    p.add_argument("--temperature", type=float, help="0: greedy (default: 0.8, with --check 1)")
    p.add_argument("--top_k", type=int, default=0, help="only the k likeliest tokens; 0: all")
    p.add_argument("--top_p", type=float, default=1.0, help="only the likeliest tokens of this share")
    p.add_argument("--seed", type=int, default=1337)
    p.add_argument("--check", action="store_true", help="bits per byte, repetition and confidence, a table")
    p.add_argument("--text", metavar="FILE", help="with --check: text to read instead of the validation set")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args()
    if args.n is None:
        args.n = 8 if args.check else 1
    if args.temperature is None:
        args.temperature = 1.0 if args.check else 0.8
    validate(args)
    autocast = contextlib.nullcontext()
    if args.device.startswith("cuda"):
        autocast = torch.autocast("cuda", torch.bfloat16)
    if args.check:
        return check(args, autocast)

    # write the samples, each as it grows
    model, tokenizer, spelled, ckpt = load(args.inputs[0], args.device)
    start, stop = prompt_ids(args, model, tokenizer, spelled, ckpt), stop_ids(ckpt, tokenizer)
    begun = [] if args.chat else start  # of a chat, the answer alone
    for i in range(args.n):
        growing = samples(model, start, 1, stop, args, args.seed + i)
        with autocast:
            for text in pieces(tokenizer, begun, growing):
                print(text, end="", flush=True)
        print()
        if i + 1 < args.n:
            print("-" * 80)


def validate(args: argparse.Namespace) -> None:
    """Raise ValueError where an argument makes no sense, before anything is loaded."""
    if args.inputs == [DEFAULT] and not os.path.exists(DEFAULT):
        raise missing()
    if len(args.inputs) > (2 if args.check else 1):
        raise ValueError("give one checkpoint, or two with --check")
    if not 0 <= args.temperature < math.inf or args.top_k < 0:
        raise ValueError("temperature and top_k are at least 0, and finite")
    if not 0 < args.top_p <= 1 or args.n < 1 or args.tokens < 1:
        raise ValueError("top_p above 0 and at most 1, n and tokens at least 1")
    if args.check and args.n > AT_ONCE:
        raise ValueError(f"--n {args.n}: --check draws all samples at once, at most {AT_ONCE:,}")
    if not -(2**63) <= args.seed < 2**63:
        raise ValueError(f"--seed {args.seed}: give a number of at most 63 bits")
    if args.text is not None and not args.check:
        raise ValueError('--text goes with --check; to go on from a text: --prompt "$(cat FILE)"')
    if args.system is not None and not args.chat:
        raise ValueError("--system goes with --chat")
    for name, text in (("--prompt", args.prompt), ("--system", args.system or "")):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{name}: not UTF-8 text: convert it, or set the terminal to UTF-8") from None
    check_device(args.device)


if __name__ == "__main__":
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a model may write what a terminal can't show
    try:
        main()
        print(end="", flush=True)
    except BrokenPipeError:  # as of `| head -1`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the exit writes there once more
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit("sample.py: interrupted")
    except (ValueError, OSError) as e:
        sys.exit(f"sample.py: {e}")
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, MemoryError) and "memory" not in str(e):
            raise
        sys.exit(f"sample.py: out of memory ({one_line(e)}): give a smaller --n or a shorter prompt")
