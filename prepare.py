"""
Raw text in, tokens out: train.bin and val.bin hold the ids of all documents, one after another, a BOS before each.

  $ python prepare.py --input stories.txt.xz --out data/stories
  $ python prepare.py --input corpus/ more.jsonl.gz --out data/mix --val 0.005
  $ python prepare.py --input pages.parquet --field content --out data/pages --tokenizer gpt2 --workers 8
  $ python prepare.py --input corpus/ --out data/smol --tokenizer SmolLM-135M/tokenizer.json
  $ python prepare.py --input tinystories corpus/ --out data/babel --words 2000,5000,10000,all --report

Input is .txt, .jsonl and .parquet, each also .gz or .xz, and folders of them; or tinystories, simplewiki, fineweb-edu,
streamed from the Hugging Face hub. A .txt holds documents with a line <|doc|> between them; without one it is one
document. A .jsonl has a document a line, a .parquet a document a row.

With --words there is no train.bin, but stages that widen: words2000 holds the chunks of which 95 % (--known) of the
words are among the 2,000 most frequent ones or names, words5000 what 5,000 words add to that, and so on to all. A
chunk is a few paragraphs, 200 to 500 words, and a document of its own. With --by structure the numbers are not words
known but words a sentence (see by_structure): --words 12,18,all makes structure12, structure18 and all.

The output folder appears when all is done, and is the same for any number of workers:
  train.bin, val.bin   raw little-endian ids, uint16, or uint32 for a vocabulary above 65,535
  meta.json            tokenizer, vocab_size, dtype, bos, dummy_prefix; a split's documents, tokens, bytes, sha256
  token_bytes.bin      uint16 an id: the bytes of UTF-8 text that it stands for (see count_bytes)
  tokenizer.model      the sentencepiece model; or tokenizer.json, the Hugging Face tokenizer; for tiktoken, neither
and with --words, for each stage, instead of train.bin (val.bin holds the same whole documents as without --words):
  STAGE.train.bin, STAGE.val.bin   the chunks that the stage adds, from the documents of either side
  STAGE.rows.bin       the ids that a model of the stage has: those that can't be spelled (special and byte tokens), and
                       the most frequent of its text so far; begins with the stage before's, the last one has all ids
  spelling.bin         for each id, the byte tokens that spell it: see Tokenizer.spelling
  words.txt            the text's 100,000 most frequent words: --wordlist for another text that is to have its stages
  report.png           with --report
"""

import argparse
import bisect
import collections
import contextlib
import functools
import glob
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import lzma
import math
import os
import re
import shutil
import signal
import sys
import textwrap
import time
import unicodedata
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path

import numpy as np

from data import MODEL_FILES, Tokenizer, load_tokenizer, one_line

SOURCES = {  # of the Hugging Face hub: what load_dataset takes
    "tinystories": ("roneneldan/TinyStories",),
    "simplewiki": ("wikimedia/wikipedia", "20231101.simple"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}
FILE_NAME = re.compile(r"\.(txt|jsonl|parquet)(\.gz|\.xz)?$")
OWN_FILE = re.compile(
    r"((\w+\.)?(train|val)|\w+\.rows|token_bytes|spelling)\.bin|meta\.json|tokenizer\.(model|json)|words\.txt|report\.png"
)
# Bytes that a worker gets at a time. A document of more than two of these is read in pieces; the first one's hash
# decides on train or val, so another value here moves long documents from one to the other.
PIECE = 1 << 18
# Where to cut, best first: between lines, before a space, between characters, anywhere. The first two change no token
# of Llama's, and next to none of tiktoken's.
CUTS = [re.compile(cut) for cut in (rb"(?<=\n)(?=\S)", rb"(?= )", rb"(?=[^\x80-\xbf])", b"")]


class InputError(Exception):
    """What the user gave can't be used; the message is one line that says what and why."""


# ---- reading: files -> documents, in pieces of bounded size ---------------------------------------------------------


def list_files(inputs: list[str]) -> list[str]:
    """The files given, and those below the folders given, sorted; names of SOURCES stand for themselves."""
    files = []
    for path in inputs:
        if not os.path.exists(path):
            if path in SOURCES:
                files.append(path)
                continue
            raise InputError(f"{path}: no such file or folder")
        below = sorted(filter(os.path.isfile, glob.glob(f"{glob.escape(path)}/**", recursive=True)))
        known = [name for name in below or [path] if FILE_NAME.search(name)]
        if not known:
            raise InputError(f"{path}: neither .txt, .jsonl or .parquet (also .gz, .xz) nor a folder of such")
        if len(known) < len(below):
            print(f"{path}: passing over {len(below) - len(known)} files of other kinds", file=sys.stderr)
        files += known
    return list(dict.fromkeys(files))  # a file given twice is read once


def read_file(path: str, field: str, marker: bytes, bad: Callable) -> Iterator[tuple[str | None, bool]]:
    """Yield (text, starts a document?): the documents of a file, long ones in pieces, None for what isn't UTF-8.

    bad(fault, remedy) is called at each fault, and may raise."""
    kind, packing = FILE_NAME.search(path).groups() if path not in SOURCES else ("hub", None)
    opened = {None: open, ".gz": gzip.open, ".xz": lzma.open}[packing]
    try:
        with opened(path, "rb") if kind != "hub" else contextlib.nullcontext() as f:
            if kind == "txt":
                yield from cut_documents(path, f, marker, bad)
            else:
                for data in read_rows(path, f, field, bad, kind):
                    yield from cut_documents(path, io.BytesIO(data + b"\n"), None, bad)
    except (EOFError, OSError, ValueError, lzma.LZMAError, zlib.error) as e:  # pyarrow's are ValueErrors
        bad(f"{path}: broken or cut short ({one_line(e)})", "fetch it again")


def cut_documents(path: str, f: io.BufferedIOBase, marker: bytes | None, bad: Callable) -> Iterator[tuple[str | None, bool]]:
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


def read_rows(path: str, f: io.BufferedIOBase | None, field: str, bad: Callable, kind: str) -> Iterator[bytes]:
    """Yield the text field, as UTF-8, of each row of a .parquet or of a source of the hub, or line of a .jsonl."""
    rows, row_name, text_of = f, "line", lambda line: json.loads(line.decode("utf-8-sig"))[field]
    if kind == "hub":
        rows, row_name, text_of = stream(path), "row", lambda row: row[field]
    elif kind == "parquet":
        try:
            import pyarrow.parquet
        except ImportError:
            raise InputError(f"{path}: to read .parquet: pip install pyarrow") from None
        table = pyarrow.parquet.ParquetFile(f, buffer_size=PIECE)
        if field not in table.schema_arrow.names:
            return bad(f"{path}: no column {field}, only {', '.join(table.schema_arrow.names)}", "name it with --field")
        rows = (value for batch in table.iter_batches(64, columns=[field]) for value in batch.column(0))
        row_name, text_of = "row", lambda value: value.as_py()
    for number, row in enumerate(rows, 1):
        if kind == "jsonl" and not row.strip():
            continue
        try:
            yield text_of(row).encode()
        except UnicodeError:  # also half a surrogate pair, which JSON can spell
            bad(f"{path}, {row_name} {number}: not UTF-8", "convert it")
        except (ValueError, RecursionError):
            bad(f"{path}, {row_name} {number}: not JSON", "repair it")
        except (KeyError, TypeError, AttributeError):
            bad(f"{path}, {row_name} {number}: no text in field {field}", "name another with --field")


def stream(name: str) -> Iterator[dict]:
    """Yield the rows of a source of the Hugging Face hub, which is read anew each time and not kept."""
    try:
        import datasets
    except ImportError:
        raise InputError(f"{name}: to stream it from the Hugging Face hub: pip install datasets") from None
    try:
        yield from datasets.load_dataset(*SOURCES[name], split="train", streaming=True)
    except Exception as e:  # its own, the hub's, those of any network library
        raise InputError(f"{name}: the Hugging Face hub gives an error: {one_line(e)}: give files of your own") from None


# ---- splitting: documents -> train or val ---------------------------------------------------------------------------


def split_by_hash(pieces: Iterable[tuple[str | None, bool]], limit: float, seen: dict) -> Iterator[tuple[str, bool, str]]:
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


def split_at(pieces: Iterable[tuple[str, bool, str]], at: int) -> Iterator[tuple[str, bool, str]]:
    """Split a single document: what follows its last space before character `at` becomes a document, for val."""
    for text, start, _ in pieces:
        if 0 < at < len(text):
            cut = 1 + max(text.rfind("\n", 0, at), text.rfind(" ", 0, at)) or at
            yield text[:cut], start, "train"
            text, at = text[cut:], 0
        yield text, start or at == 0, "train" if at > 0 else "val"
        at -= len(text)


# ---- stages: documents -> chunks, and how difficult each is ------------------------------------------------------------

# Where to cut a text into chunks, best first: paragraphs, lines, sentences, words. A unit ends where a match does.
ENDS = [re.compile(end) for end in (r"\n\s*\n", r"\n", r"[.!?]['\"’”)]*\s+|[。！？]", r"\s+")]
UPPER = "".join(filter(str.isupper, map(chr, range(1 << 16))))
MARKS = "".join(c for c in map(chr, range(1 << 16)) if unicodedata.category(c) in ("Mn", "Mc"))
# A capitalised word (not all capitals) behind a word, a comma, or Mr. and the like, on the same line
NAME = re.compile(rf"[{UPPER}](?![{UPPER}])(?:(?<=[\w,;] .)|(?<=\b[MDS][rt]\. .)|(?<=\bMrs\. .))\w+(?:['-]\w+)*")
# Apostrophes, and the points and commas of numbers, belong to a word; a hyphen parts two. \0: a name
WORD = re.compile(rf"[\w\0{MARKS}]+(?:'[\w{MARKS}]+|(?<=\d)[.,]\d+)*")
# Words that join a clause to another, of those that seldom do anything else
JOINING = set("although because if that though unless until what when where whether which while who whom whose why".split())


def size(text: str) -> float:
    """The words of a text, counted quickly; a word for each 10 characters at least, for text without spaces."""
    return max(len(text.split()), len(text) / 10)


def units(text: str, ends: list[re.Pattern] = ENDS) -> Iterator[tuple[str, float]]:
    """Yield (a part of text, its size), parts of at most 300 words, cut at the best of ENDS that does."""
    if len(text) <= 3000 and (n := size(text)) <= 300:
        yield text, n
    elif ends:
        for a, b in itertools.pairwise([0, *(m.end() for m in ends[0].finditer(text)), len(text)]):
            yield from units(text[a:b], ends[1:])
    else:
        yield from ((text[i : i + 3000], 300) for i in range(0, len(text), 3000))


def chunks(text: str) -> list[str]:
    """Gather paragraphs into chunks of 200 to 500 words; only the last can be shorter. Joined, they are the text."""
    out, sizes = [], [200]
    for unit, n in units(text):
        if sizes[-1] >= 200:
            out.append("")
            sizes.append(0)
        out[-1] += unit
        sizes[-1] += n
    if len(out) > 1 and sizes[-1] < 200 and sizes[-2] + sizes[-1] <= 500:
        out[-2:] = [out[-2] + out[-1]]
    return out


def words(text: str) -> list[str]:
    """The words of a text, case folded; "\\0" stands for each name."""
    text = unicodedata.normalize("NFC", text).replace("’", "'").replace("_", " ")
    return WORD.findall(NAME.sub("\0", text).casefold())


def by_vocabulary(chunk: str, ranks: dict[str, int], known: float) -> float:
    """How many of the most frequent words one must know to know this share of the chunk's. Names, "\\0", rank 0th."""
    needed = sorted(map(ranks.get, words(chunk), itertools.repeat(math.inf)))
    return needed[max(math.ceil(known * len(needed) - 1e-9), 1) - 1] if needed else math.inf


def by_structure(chunk: str) -> float:
    """Words a sentence, and one more for each comma, semicolon, colon, dash and joining word in it."""
    # Length is what readability formulas agree on; what is counted twice are the places where a sentence takes in
    # another part, so that of two as long the one of more parts is the harder.
    found = words(chunk)
    parts = len(re.findall(r"[,;:—–]|--", chunk)) + sum(word in JOINING for word in found)
    sentences = len(re.findall(r"[.!?]['\"’”)]*(?:\s|$)|\n\s*\n|[。！？]", chunk))
    return (len(found) + parts) / max(sentences, 1) if found else math.inf


class Stages:
    """names of the stages; limits: the difficulty up to which each goes; score: a chunk in, its difficulty out."""

    def __init__(self, by: str, limits: list[int], ranks: dict[str, int], known: float) -> None:
        score = {"vocabulary": functools.partial(by_vocabulary, ranks=ranks, known=known), "structure": by_structure}
        self.names = [("words" if by == "vocabulary" else by) + str(n) for n in limits] + ["all"]
        self.limits, self.score = [*limits, math.inf], score[by]

    def split(self, text: str, start: bool, split: str) -> Iterator[tuple[str, bool, str]]:
        """Yield (text, starts a document?, split) of the chunks of a text, and of the whole if it is for val."""
        if split == "val":
            yield text, start, split
        for chunk in chunks(text):
            yield chunk, True, f"{self.names[bisect.bisect_left(self.limits, self.score(chunk))]}.{split}"


# ---- tokenising, in parallel ----------------------------------------------------------------------------------------


def start_worker(tokenizer: dict, stages: Stages | None) -> None:
    global worker
    worker = Tokenizer.from_dict(tokenizer), stages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and its handler of SIGTERM not for us


def call(work: Callable, batch: list[tuple[str, bool, str]]) -> dict:
    return work(batch, *worker)


def count_words(
    batch: list[tuple[str, bool, str]], tok: Tokenizer | None = None, stages: Stages | None = None
) -> collections.Counter[str]:
    """[(text, starts a document?, split)] -> how often each word occurs in the documents for train"""
    texts = (text for text, _, split in batch if split == "train")
    return collections.Counter(itertools.chain.from_iterable(map(words, texts)))


def encode_batch(batch: list[tuple[str, bool, str]], tok: Tokenizer, stages: Stages | None = None) -> dict[str, tuple]:
    """[(text, starts a document?, split)] -> {split: (ids, (documents, tokens, bytes of text), sources, a sample)}

    ids are raw bytes. With stages the splits are theirs, and their documents chunks; sources: which of the batch's
    documents these are from, counted from 1 (0: the one that goes on); the sample is (hash, chunk), of the lowest hash."""
    out, bos, source = {}, np.array(tok.bos, tok.dtype).tobytes(), 0
    for piece in batch:
        source += piece[1]
        for text, start, split in stages.split(*piece) if stages else [piece]:
            if tok.kind == "sentencepiece":
                text = text.replace("▁", " ")  # U+2581 is a space to sentencepiece, so let it count as one
            data, ids = text.encode(), bos * start + tok.encode_raw(text, start)
            parts, count, sources, sample = out.setdefault(split, ([], np.zeros(3, np.int64), set(), [(math.inf, "")]))
            parts.append(ids)
            count += start, len(ids) // tok.dtype.itemsize, len(data)
            if stages:
                sources.add(source)
                sample[0] = min(sample[0], (zlib.crc32(data), text))
    return {split: (b"".join(parts), count, sources, sample[0]) for split, (parts, count, sources, sample) in out.items()}


def run_all(
    work: Callable, pieces: Iterable[tuple[str, bool, str]], tok: Tokenizer, stages: Stages | None, workers: int
) -> Generator[dict, None, None]:
    """Yield work(batch, tok, stages) for all pieces, in order, and show how far it is.

    At most 3 batches a worker are read ahead: that bounds the memory."""
    tty, begun, shown, read = sys.stderr.isatty(), time.time(), time.time(), 0

    def batches():
        nonlocal read
        batch, length = [], 0
        for piece in pieces:
            batch.append(piece)
            length += len(piece[0].encode())
            if length >= PIECE:
                yield batch
                read += length
                batch, length = [], 0
        yield batch

    def results():
        if workers == 1:
            yield from (work(batch, tok, stages) for batch in batches())
            return
        pool = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(tok.to_dict(), stages))
        pool.submit(int)  # forks all workers now: reading .parquet starts threads, after which forking isn't safe
        ahead = collections.deque()
        try:
            for batch in batches():
                ahead.append(pool.submit(call, work, batch))
                if len(ahead) >= 3 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    with contextlib.ExitStack() as stack:
        if tty:
            stack.callback(print, file=sys.stderr)  # leave the line that is updated
        for result in stack.enter_context(contextlib.closing(results())):
            yield result
            if time.time() - shown > (0.2 if tty else 10):
                shown = time.time()
                line = f"{work.__name__}: {read / 1e6:,.1f} MB, {read / 1e6 / (shown - begun):.1f} MB/s"
                print(line, end="   \r" if tty else "\n", file=sys.stderr, flush=True)


def write_splits(
    pieces: Iterable[tuple[str, bool, str]], tok: Tokenizer, stages: Stages | None, workers: int, folder: str
) -> tuple[dict[str, dict], dict[str, np.ndarray], dict[str, str], dict[str, int]]:
    """Write folder/<split>.bin for pieces of (text, starts a document?, split).

    Returns meta.json's part on splits, and for stages {train split: how often each token occurs}, {split: a sample},
    {split: the number of documents that its chunks are from}."""
    names = [f"{stage}.{side}" for stage in stages.names for side in ("train", "val")] + ["val"] if stages else ["train", "val"]
    counts = {name: np.zeros(3, np.int64) for name in names}  # documents, tokens, bytes
    tokens = {name: np.zeros(tok.vocab_size, np.int64) for name in names if stages and name.endswith(".train")}
    hashes, samples = {name: hashlib.sha256() for name in names}, {}
    n_sources, last, before = collections.Counter(), {}, 0  # last: by split, the number of its last document, before: of all
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(f"{folder}/{name}.bin", "wb")) for name in names}
        for result in stack.enter_context(contextlib.closing(run_all(encode_batch, pieces, tok, stages, workers))):
            for name, (ids, count, sources, sample) in result.items():
                files[name].write(ids)
                hashes[name].update(ids)
                counts[name] += count
                if name in tokens:
                    tokens[name] += np.bincount(np.frombuffer(ids, tok.dtype), minlength=tok.vocab_size)
                if sources:
                    samples[name] = min(samples.get(name, sample), sample)
                    n_sources[name] += len(sources) - (before + min(sources) == last.get(name))
                    last[name] = before + max(sources)
            before = max(last.values(), default=0)
    splits = {
        name: {**dict(zip(("documents", "tokens", "bytes"), counts[name].tolist())), "sha256": hashes[name].hexdigest()}
        for name in names
    }
    return splits, tokens, {name: text for name, (_, text) in samples.items()}, n_sources


# ---- the stages' vocabularies, table and picture --------------------------------------------------------------------


def read_wordlist(path: str) -> list[str]:
    """The words of a list, the most frequent first: of each line its first word."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            ranked = list(dict.fromkeys(word for line in f for word in words(line)[:1]))
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8: convert it") from None
    if not ranked:
        raise InputError(f"{path}: no words: give one a line, the most frequent first")
    return ranked


def choose_rows(counts: list[np.ndarray], share: float, first: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """For each stage (the ids that its model has, the share of its text's tokens so far that they are).

    The ids are those of the stage before (of none: `first`), then the most frequent ones of its text so far up to this
    share of the tokens, or, if it is above 1, to this number of ids; and more of these up to a multiple of 128."""
    rows, so_far, out = np.array(first), np.zeros_like(counts[0]), []
    for count in counts:
        so_far = so_far + count
        rest = np.argsort(-so_far, kind="stable")
        rest = rest[~np.isin(rest, rows)]
        covered = so_far[rows].sum() + np.cumsum([0, *so_far[rest]])
        more = int(share) - len(rows) if share > 1 else np.searchsorted(covered, share * so_far.sum())
        more = -(len(rows) + max(more, 0)) % 128 + max(more, 0) if len(out) < len(counts) - 1 else len(rest)
        rows = np.concatenate([rows, rest[:more]])
        out.append((rows, float(covered[min(more, len(rest))] / max(covered[-1], 1))))
    return out


def describe(
    stages: Stages,
    covered: np.ndarray,
    tok: Tokenizer,
    share: float,
    splits: dict[str, dict],
    tokens: dict[str, np.ndarray],
    samples: dict[str, str],
    n_sources: dict[str, int],
    folder: str,
) -> list[dict]:
    """Write spelling.bin and each stage's rows.bin; return meta.json's part on stages.

    covered: the share of the text's words that the n most frequent ones are, by n; empty with --by structure."""
    offsets, spelling = tok.spelling()
    spelling.tofile(f"{folder}/spelling.bin")
    first = np.flatnonzero(np.diff(offsets) == 1)
    first = first[spelling[offsets[first]] == first]
    for count in tokens.values():
        count[tok.bos] = 0  # isn't text
    out = []
    for name, limit, (rows, rows_coverage) in zip(stages.names, stages.limits, choose_rows([*tokens.values()], share, first)):
        rows.astype(tok.dtype).tofile(f"{folder}/{name}.rows.bin")
        split, n = splits[f"{name}.train"], min(limit, len(covered) - 1)
        stage = {"name": name, "words": max(n, 0) if limit == math.inf else limit, "documents": n_sources[f"{name}.train"]}
        stage |= {"chunks": split["documents"], "tokens": split["tokens"]}
        stage |= {"distinct_tokens": int((tokens[f"{name}.train"] > 0).sum()), "coverage": float(covered[n]) if n >= 0 else None}
        stage |= {"rows": len(rows), "rows_coverage": rows_coverage, "sample": samples.get(f"{name}.train", "")}
        out.append(stage)
    return out


def print_stages(stages: list[dict]) -> None:
    print(
        f"{'stage':14}{'documents':>12}{'chunks':>10}{'tokens':>14}{'distinct':>10}{'coverage':>10}{'rows':>8}{'they cover':>12}"
    )
    for s in stages:
        coverage = "-" if s["coverage"] is None else f"{s['coverage']:.1%}"
        counts = f"{s['documents']:12,}{s['chunks']:12,}{s['tokens']:12,}{s['distinct_tokens']:12,}{coverage:>12}{s['rows']:12,}"
        print(f"{s['name']:14}{counts}{s['rows_coverage']:12.2%}")
    for s in stages:
        text = textwrap.shorten(s["sample"], 400) or "no chunk"
        print(f"\n{s['name']}, for instance:\n" + textwrap.indent(textwrap.fill(text, 100), "  "))
    print()


def report(path: str, stages: list[dict], covered: np.ndarray) -> None:
    """The picture: how much of the text the most frequent words are, and how much text each stage adds."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 2 if len(covered) else 1, squeeze=False, figsize=(11, 4), layout="constrained")
    colors = plt.cm.viridis(np.linspace(0.15, 0.85, len(stages)))
    if len(covered):
        ax = axes[0, 0]
        ax.plot(range(1, len(covered)), 100 * covered[1:], color="0.3")
        for s, color in zip(stages[:-1], colors):
            at = s["words"], 100 * s["coverage"]
            ax.plot(*at, "o", color=color, label=f"{at[0]:,} words: {at[1]:.1f} %")
        ax.legend(frameon=False)
        ax.set(xscale="log", ylim=(0, 102), xlabel="most frequent words", ylabel="% of all words in the text")
        ax.set_title("coverage over rank", loc="left")
        ax.grid(alpha=0.3)
    ax, total = axes[0, -1], max(sum(s["tokens"] for s in stages), 1)
    bars = ax.bar([s["name"] for s in stages], [s["tokens"] / 1e6 for s in stages], color=colors)
    ax.bar_label(bars, [f"{s['tokens'] / 1e6:,.2f} M\n{s['tokens'] / total:.1%}\n{s['rows']:,} rows" for s in stages], padding=2)
    ax.margins(y=0.25)
    ax.set(ylabel="million tokens for training")
    ax.set_title("tokens that each stage adds", loc="left")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)
    plt.close(fig)


# ---- all of it ------------------------------------------------------------------------------------------------------


def prepare(args: argparse.Namespace) -> None:
    """Make the folder args.out; InputError, with nothing written, if that can't be done."""
    begun = time.time()
    out = os.path.realpath(args.out)
    if os.path.exists(out):
        other = [name for name in os.listdir(out) if not OWN_FILE.fullmatch(name)]
        if other:  # never delete what isn't ours
            raise InputError(f"{args.out}: holds {other[0]}, not a file of prepare.py: name another folder with --out")
        if os.listdir(out) and not args.force:
            raise InputError(f"{args.out}: prepared before: overwrite it with --force")
    if args.report and not importlib.util.find_spec("matplotlib"):
        raise InputError("to make --report: pip install matplotlib")
    files = list_files(args.input)
    ranked = read_wordlist(args.wordlist) if args.wordlist else []
    tok = load_tokenizer(args.tokenizer)
    if args.words:
        tok.spelling()  # fails now, if it does
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

    # look for a document that falls to val, about the 100th, and one to train, before the work begins
    limit, at, sides = args.val * 2**64, 0, set()
    for _, _, split in documents(limit, looking=True):
        sides.add(split)
        if len(sides) == 2:
            break
    else:
        if seen["documents"] > 1:
            print("no document falls to val by its hash, or all do: taking the one of the lowest", file=sys.stderr)
            limit = seen["lowest"] + 1
        elif seen["documents"] == 1:
            print("only one document: cutting off its end for val", file=sys.stderr)
            at = min(int(seen["characters"] * (1 - max(args.val, 0.01))), seen["characters"] - 1)

    def pieces(looking=False):
        return split_at(documents(limit, looking), at) if at else documents(limit, looking)

    stages, covered = None, np.zeros(0)
    if args.words:
        if args.by == "vocabulary":
            table = collections.Counter()
            for counted in run_all(count_words, pieces(looking=True), tok, None, args.workers):
                table.update(counted)
            del table["\0"]
            ranked = ranked or sorted(table, key=lambda word: (-table[word], word))
            covered = np.cumsum([0, *map(table.__getitem__, ranked)]) / max(table.total(), 1)
        ranks = {"\0": 0} | {word: rank for rank, word in enumerate(ranked[: max(args.words)], 1)}
        stages = Stages(args.by, args.words, ranks, args.known)

    aside = f"{out}.{os.getpid()}"
    os.makedirs(aside)
    try:
        splits, tokens, samples, n_sources = write_splits(pieces(), tok, stages, args.workers, aside)
        if not splits["val"]["documents"] or not sum(s["documents"] for name, s in splits.items() if "train" in name):
            raise InputError(f"{args.input[0]}: too little text for a train and a val split")
        meta = {
            "tokenizer": {"kind": tok.kind, "name": tok.name, "sha256": tok.sha256},
            "vocab_size": tok.vocab_size,
            "dtype": tok.dtype.name,
            "bos": tok.bos,
            "dummy_prefix": tok.dummy_prefix,
            "splits": splits,
        }
        if stages:
            meta |= {"by": args.by, "known": args.known}
            meta["stages"] = describe(stages, covered, tok, args.rows, splits, tokens, samples, n_sources, aside)
            if ranked:
                Path(aside, "words.txt").write_text("".join(f"{word}\n" for word in ranked[:100_000]), "utf-8")
            if args.report:
                report(f"{aside}/report.png", meta["stages"], covered)
        Path(aside, "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
        tok.token_bytes().astype("<u2").tofile(f"{aside}/token_bytes.bin")
        if tok.model:
            Path(aside, MODEL_FILES[tok.kind]).write_bytes(tok.model)
        os.sync()
        if os.path.exists(out):
            os.rename(out, f"{aside}.old")
        os.rename(aside, out)
        shutil.rmtree(f"{aside}.old", ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)

    if stages:
        print_stages(meta["stages"])
    width = max(map(len, splits)) + 2
    print(f"{'split':{width}}{'documents':>12}{'tokens':>16}{'MB':>12}{'tokens/byte':>14}")
    for name, s in splits.items():
        rate = s["tokens"] / max(s["bytes"], 1)
        print(f"{name:{width}}{s['documents']:12,}{s['tokens']:16,}{s['bytes'] / 1e6:12,.2f}{rate:14.4f}")
    length = sum(s["bytes"] for name, s in splits.items() if not stages or name != "val") / 1e6
    seconds = time.time() - begun
    print(
        f"{args.out}: {length:,.1f} MB in {seconds:.1f} s, {length / seconds:.1f} MB/s; left out: "
        f"{seen['empty']:,} empty documents, {seen['bad']:,} broken parts"
    )


def limits(text: str) -> list[int]:
    """--words: rising whole numbers, then all -> the numbers"""
    numbers = [int(n) for n in re.findall(r"(\d+),", text)]
    if text != ",".join(map(str, numbers + ["all"])) or not numbers or [0, *numbers] != sorted({0, *numbers}):
        raise argparse.ArgumentTypeError(f"{text}: give rising whole numbers, then all: 2000,5000,all")
    return numbers


def main(argv: list[str] | None = None) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help=f"files, or folders of files, or {', '.join(SOURCES)}")
    add("--out", required=True, metavar="FOLDER", help="the folder to make")
    names = "llama2 (default; fetched at first use), the path of a sentencepiece model or tokenizer.json, or a tiktoken encoding"
    add("--tokenizer", default="llama2", metavar="NAME", help=names)
    add("--separator", default="<|doc|>", metavar="LINE", help="the line between the documents of a .txt: <|doc|>")
    add("--field", default="text", metavar="NAME", help="the field of .jsonl, or column of .parquet: text")
    side = "share of the documents for val, 0.01. A hash of its text decides, so a document falls on the same side in any input"
    add("--val", type=float, default=0.01, metavar="SHARE", help=side)
    add("--words", type=limits, metavar="N,N,all", help="make stages: the words that one must know for each; the last is all")
    add("--known", type=float, default=0.95, metavar="SHARE", help="share of a chunk's words that must be known: 0.95")
    add("--wordlist", metavar="FILE", help="a word a line, the most frequent first; default: rank the words of the text")
    add("--by", choices=["vocabulary", "structure"], default="vocabulary", help="what makes a chunk difficult")
    rows = "a stage's own ids: the share of its tokens that they are, 0.998, or their number"
    add("--rows", type=float, default=0.998, metavar="SHARE", help=rows)
    add("--report", action="store_true", help="draw the stages: report.png")
    add("--workers", type=int, default=cores, metavar="N", help="processes; default: all cores")
    add("--skip_bad", action="store_true", help="leave out, and count, broken documents, lines and ends of files")
    add("--force", action="store_true", help="overwrite a folder that prepare.py made")
    args = parser.parse_args(argv)
    if not 0 < args.val < 1 or args.workers < 1:
        parser.error("--val must lie between 0 and 1, and --workers be 1 or more")
    if not 0 < args.known <= 1 or args.rows <= 0:
        parser.error("--known must lie between 0 and 1, and --rows above 0")
    if args.report and not args.words:
        parser.error("--report is about stages: give --words too")
    try:
        prepare(args)
    except (InputError, ValueError) as e:
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
