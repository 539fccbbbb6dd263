"""
Raw text in, tokens out: train.bin and val.bin hold the ids of all documents, one after another, a BOS before
each.

  $ python prepare.py --input stories.txt.xz --out data/stories
  $ python prepare.py --input corpus/ more.jsonl.gz --out data/mix --val 0.005
  $ python prepare.py --input pages.parquet --field content --out data/pages --tokenizer gpt2 --workers 8
  $ python prepare.py --input corpus/ --out data/smol --tokenizer SmolLM-135M/tokenizer.json
  $ python prepare.py --input tinystories corpus/ --out data/babel --words 2000,5000,10000,all --report

Input is .txt, .jsonl and .parquet, each also .gz or .xz, and folders of them; or tinystories, simplewiki,
fineweb-edu, streamed from the Hugging Face hub. A .txt holds documents with a line <|doc|> between them;
without one it is one document. A .jsonl has a document a line, a .parquet a document a row. A file is read
once, whatever links lead to it. Hidden files are not read, nor those that prepare.py wrote. It stops at what
is broken or no UTF-8. With --skip_bad that is left out: of a text a kilobyte around the byte, of a .jsonl the
line, of a .gz all that follows.

With --words there is no train.bin, but stages that widen: words2000 holds the chunks of which 95 % (--known)
of the words are among the 2,000 most frequent ones or names, words5000 what 5,000 words add to that, and so
on to all. A chunk is a few paragraphs, 200 to 500 words, and a document of its own. With --by structure the
numbers are not words known but words a sentence (see by_structure): --words 12,18,all makes structure12,
structure18 and all.

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
import codecs
import collections
import contextlib
import functools
import gzip
import hashlib
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
FILE_NAME = re.compile(r"\.(txt|jsonl|parquet)(\.gz|\.xz)?$", re.IGNORECASE)
MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0"}  # how such a file begins
BROKEN = EOFError, OSError, ValueError, lzma.LZMAError, zlib.error  # what reading a broken file raises
OWN_FILE = re.compile(
    r"((\w+\.)?(train|val)|\w+\.rows|token_bytes|spelling)\.bin|meta\.json|tokenizer\.(model|json)|words\.txt|report\.png"
)
# Bytes that a worker gets at a time. A document of more than two of these is read in pieces; the first one's
# hash decides on train or val, so another value here moves long documents from one to the other.
PIECE = 1 << 18
# Where to cut, best first: between lines, before a space, between characters, anywhere. The first two change
# no token of Llama's, and next to none of tiktoken's.
CUTS = [re.compile(cut) for cut in (rb"(?<=\n)(?=\S)", rb"(?= )", rb"(?=[^\x80-\xbf])", b"")]
# What is left out around a byte that is no text: about a kilobyte, up to the end of a line, word or character
PART = re.compile(rb"(?s:.){1,1000}(?:[^\n]{0,1000}\n|[^ \n]{0,100}(?= )|[\x80-\xbf]*)")
NULS = re.compile(b"\0.?\0", re.DOTALL)  # as UTF-16 has them; one by itself may be meant
OTHER_BOMS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE  # UTF-32-LE's begins as UTF-16's

Documents = Iterator[tuple[str | None, bool]]  # (text, starts a document?); None: nothing of it is text


# ---- reading: files -> documents, in pieces of bounded size ---------------------------------------------------------


def list_files(inputs: list[str], out: str) -> list[str]:
    """Return the files given and those below the folders given, sorted, each once, whatever links lead to it.

    Names of SOURCES stand for themselves. What prepare.py wrote, to `out` or elsewhere, is passed over.
    Raise ValueError for what isn't there or holds no text, OSError for a folder that can't be read.
    """
    files = {}  # by real path
    for path in inputs:
        if path in SOURCES and not os.path.exists(path):
            files[path] = path
            continue
        if not os.path.exists(path):
            raise ValueError(f"{path}: no such file or folder")
        below = sorted(walk(path)) if os.path.isdir(path) else [path]
        known = [name for name in below if FILE_NAME.search(name)]
        text = [name for name in known if not is_own(os.path.realpath(name), out)]
        if path in known and not text:
            raise ValueError(f"{path}: in a folder that prepare.py made: copy it elsewhere")
        if not text:
            raise ValueError(f"{path}: neither .txt, .jsonl or .parquet (also .gz, .xz) nor a folder of such")
        if len(text) < len(below):
            print(f"{path}: passing over {len(below) - len(text)} other files", file=sys.stderr)
        for name in text:
            files.setdefault(os.path.realpath(name), name)
    return list(files.values())


def walk(folder: str) -> Iterator[str]:
    """Yield the files below a folder, without hidden ones. Go into each folder once, whatever links say."""

    def fail(error):
        raise error

    been = set()
    for at, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if os.path.realpath(at) in been:
            folders.clear()
            continue
        been.add(os.path.realpath(at))
        yield from (os.path.join(at, name) for name in names if not name.startswith("."))


def is_own(path: str, out: str) -> bool:
    """Return whether prepare.py wrote the file: to `out`, beside it when killed, or to another folder."""
    folder, name = os.path.split(path)
    if not OWN_FILE.fullmatch(name):
        return False
    beside_out = folder.startswith(out) and re.fullmatch(r"(\.\d+(\.\w+)?)?", folder.removeprefix(out))
    return bool(beside_out) or {"meta.json", "token_bytes.bin"} <= set(os.listdir(folder))


def read_file(path: str, field: str, marker: bytes, bad: Callable) -> Documents:
    """Yield the documents of a file, long ones in pieces.

    bad(fault, remedy, bytes lost) is called at each fault, and may raise.
    """
    found = FILE_NAME.search(path.lower())
    kind, packing = found.groups() if found else ("hub", None)
    if found and os.path.exists(path) and not os.path.isfile(path):  # a pipe can be read only once
        bad(f"{path}: not a regular file", "write its text to one")
    elif kind == "txt":
        yield from cut_documents(path, until_broken(path, read_blocks(path, packing), bad), marker, bad)
    else:
        for where, data in read_rows(path, packing, field, bad, kind):
            yield from cut_documents(where, [data, b"\n"], None, bad)


def until_broken(path: str, parts: Iterable, bad: Callable) -> Iterator:
    """Yield parts, up to where they can't be read on, which is a fault."""
    try:
        yield from parts
    except BROKEN as e:
        report_broken(path, e, bad)


def report_broken(path: str, e: Exception, bad: Callable) -> None:
    if getattr(e, "errno", None):  # the system's
        bad(f"{path}: can't be read ({one_line(e)})", "see to that")
    else:
        bad(f"{path}: broken or cut short ({one_line(e)})", "fetch it again")


def read_blocks(path: str, packing: str | None) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked. A .gz or .xz may be several in a row, with zeros between them.

    Raise one of BROKEN where it is broken, when all before has been given.
    """
    with open(path, "rb") as f:
        if not packing:
            yield from iter(lambda: f.read(PIECE), b"")
            return
        read, magic = functools.partial(f.read, 1 << 13), MAGIC[packing]  # 8 KB become some MB at most
        data = read()
        while True:
            member = lzma.LZMADecompressor() if packing == ".xz" else zlib.decompressobj(zlib.MAX_WBITS | 16)
            while not member.eof:
                if not data:
                    raise EOFError("it ends too early")
                yield member.decompress(data)
                data = member.unused_data if member.eof else read()
            while len(data := data.lstrip(b"\0")) < len(magic) and (more := read()):
                data += more
            if not data:
                return
            if not data.startswith(magic):
                raise ValueError("something else follows its end")


def split_at_markers(blocks: Iterable[bytes], marker: bytes | None) -> Iterator[tuple[bytes, bool]]:
    """Yield (bytes, False) of blocks, (line, True) for a line that is marker. Lines end in LF, CRLF or CR."""
    if marker is None:
        yield from ((block, False) for block in blocks)
        return
    rest, begins = b"", True  # a line that may go on in the next block, and whether rest has its beginning
    for block in itertools.chain(blocks, [None]):
        rest += block or b""
        end = max(rest.rfind(b"\n"), rest.rfind(b"\r", 0, -1)) + 1
        if block is None or not end and len(rest) > PIECE:
            end = len(rest)
        lines, rest = rest[:end], rest[end:]
        if marker in lines:
            for line in lines.splitlines(keepends=True):
                # a BOM stands before it where a file begins, also one that was appended to another
                yield line, begins and line.strip().removeprefix(codecs.BOM_UTF8).strip() == marker
                begins = line.endswith((b"\n", b"\r"))
        elif lines:
            yield lines, False
            begins = lines.endswith((b"\n", b"\r"))


def cut_documents(where: str, blocks: Iterable[bytes], marker: bytes | None, bad: Callable) -> Documents:
    """Yield the documents between lines that are marker, less the line end before these; long ones in pieces.

    marker None: blocks are one document, and end in a LF that isn't its own.
    """
    text, start, number = bytearray(), True, 1  # number: of the first line in text
    for part, done in itertools.chain(split_at_markers(blocks, marker), [(b"", True)]):
        if not done:
            text += part
        while done or len(text) > 2 * PIECE:
            last = len(text) <= 2 * PIECE
            if last:
                end = len(text)
                piece = bytes(text).removesuffix(b"\n").removesuffix(b"" if marker is None else b"\r")
            else:
                end = next(m.start() for cut in CUTS if (m := cut.search(text, PIECE, 2 * PIECE)))
                piece = bytes(text[:end])
            if start:
                piece = piece.removeprefix(codecs.BOM_UTF8)
            yield decode(piece, where, number, marker, bad), start
            number += count_lines(text, end)
            if last:
                number += 1  # the marker
            start, done = last, done and not last
            del text[:end]


def count_lines(data: bytes | bytearray, end: int) -> int:
    """Return how many line ends, LF, CRLF or CR, come before byte `end`."""
    return max(data.count(b"\n", 0, end), data.count(b"\r", 0, end))


def check_text(data: bytes, nuls: re.Pattern = NULS) -> str:
    """Return data as text. Raise UnicodeDecodeError, with our reason, if it isn't UTF-8 or holds nuls."""
    found = nuls.search(data) if b"\0" in data else None
    if found and not data.startswith(OTHER_BOMS):
        raise UnicodeDecodeError("utf-8", data, *found.span(), "full of NULs, as UTF-16 is, not UTF-8")
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        e.reason = "UTF-16 or UTF-32, not UTF-8" if data.startswith(OTHER_BOMS) else "not UTF-8"
        raise


def decode(data: bytes, where: str, number: int, marker: bytes | None, bad: Callable) -> str | None:
    """Return data as text, without those of its PARTs that are no text; None if nothing is left.

    number: of its first line, where marker says that lines count.
    """
    try:
        return check_text(data)
    except UnicodeDecodeError:
        good, nuls = [], re.compile(b"\0") if NULS.search(data) else NULS
    for part in PART.findall(data):
        try:
            good.append(check_text(part, nuls))
        except UnicodeDecodeError as e:
            line = number + count_lines(part, e.start)
            place = where if marker is None else f"{where}, line {line}"
            bad(f"{place}: {e.reason}", "convert it", len(part))
        number += count_lines(part, len(part))
    return "".join(good) or None


def read_rows(
    path: str, packing: str | None, field: str, bad: Callable[[str, str, int], None], kind: str
) -> Iterator[tuple[str, bytes]]:
    """Yield (where, the text field) of each row of a .parquet or of a source of the hub, or line of a .jsonl.

    It may not be UTF-8: half a surrogate pair, which JSON can spell, is not.
    """
    if kind == "jsonl":
        row_name, rows = "line", enumerate(read_lines(until_broken(path, read_blocks(path, packing), bad)), 1)
    elif kind == "parquet":
        row_name, rows = "row", read_column(path, packing, field, bad)
    else:
        row_name, rows = "row", enumerate(stream(path), 1)
    for number, row in rows:
        where = f"{path}, {row_name} {number}"
        if kind == "jsonl" and not row.strip():
            continue
        try:
            text = row if kind == "parquet" else (read_json(row) if kind == "jsonl" else row)[field]
            data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        except UnicodeDecodeError as e:
            bad(f"{where}: {e.reason}", "convert it", len(row))
        except (ValueError, RecursionError):
            bad(f"{where}: not JSON", "repair it", len(row))
        except (KeyError, TypeError, AttributeError):
            bad(f"{where}: no text in field {field}", "name another with --field")
        else:
            yield where, data


def read_lines(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the lines of blocks without their ends, which are LF, CRLF or CR."""
    parts, held = [], b""
    for block in blocks:
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""  # it may be half of a CRLF
        block = block.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = block.split(b"\n")
        for line in whole:
            yield b"".join([*parts, line])
            parts = []
        parts.append(rest)
    yield b"".join(parts)


def read_json(line: bytes) -> object:
    """Return what a line of JSON holds, bytes that aren't UTF-8 as surrogates. Raise ValueError."""
    try:
        return json.loads(line.decode("utf-8-sig", "surrogateescape"))
    except ValueError:
        check_text(line)  # says more if it isn't text
        raise


def read_column(path: str, packing: str | None, field: str, bad: Callable) -> Iterator[tuple[int, bytes]]:
    """Yield (row, bytes) of a column of a .parquet, from 1; None for null. A broken row group is a fault."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: to read .parquet: pip install pyarrow") from None
    broken = (*BROKEN, pyarrow.ArrowException)
    with contextlib.ExitStack() as stack:
        try:
            f = stack.enter_context({None: open, ".gz": gzip.open, ".xz": lzma.open}[packing](path, "rb"))
            table = pyarrow.parquet.ParquetFile(f, buffer_size=PIECE)
            schema = table.schema_arrow
        except broken as e:
            return report_broken(path, e, bad)
        if field not in schema.names:
            return bad(f"{path}: no column {field}, only {', '.join(schema.names)}", "name it with --field")
        kind = schema.types[schema.names.index(field)]
        values = kind.value_type if pyarrow.types.is_dictionary(kind) else getattr(kind, "storage_type", kind)
        if not re.fullmatch(r"(large_)?(string|binary)(_view)?|fixed_size_binary.*", str(values)):
            return bad(f"{path}: column {field} holds {kind}, not text", "name another with --field")
        end = 0
        for group in range(table.num_row_groups):
            done, end = end, end + table.metadata.row_group(group).num_rows
            try:
                for batch in table.iter_batches(64, row_groups=[group], columns=[field]):
                    for value in batch.column(0).cast(pyarrow.large_binary()):
                        done += 1
                        yield done, value.as_py()
            except broken as e:
                bad(f"{path}, rows {done + 1} to {end}: broken ({one_line(e)})", "fetch it again")


def stream(name: str) -> Iterator[dict]:
    """Yield the rows of a source of the Hugging Face hub, which is read anew each time and not kept."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{name}: to stream it from the Hugging Face hub: pip install datasets") from None
    try:
        yield from datasets.load_dataset(*SOURCES[name], split="train", streaming=True)
    except Exception as e:  # its own, the hub's, those of any network library
        error = one_line(e)
        raise ValueError(f"{name}: the Hugging Face hub gives an error: {error}: give own files") from None


# ---- splitting: documents -> train or val ---------------------------------------------------------------------------


def split_by_hash(pieces: Documents, limit: float, seen: dict) -> Iterator[tuple[str, bool, str]]:
    """Add the split to (text, starts a document?): val if its first piece with text has a hash below limit.

    Leave out empty documents: blank pieces at the start wait, packed, for text. seen counts documents, empty
    ones, characters, and those up to the last that isn't blank (end). lowest is the lowest hash, of 64 bits.
    """
    for text, start in pieces:
        if start:
            blank, split = [], None
            is_broken = text is None
            seen["empty"] += 0 if is_broken else 1
        if not text:
            continue
        if not split and not text.strip():
            blank.append(zlib.compress(text.encode()))
            continue
        begins = not split
        if begins:
            key = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
            split = "val" if key < limit else "train"
            seen["lowest"] = min(seen["lowest"], key)
            seen["documents"] += 1
            seen["empty"] -= 0 if is_broken else 1
        for part in itertools.chain((zlib.decompress(packed).decode() for packed in blank), [text]):
            if length := len(part.rstrip()):
                seen["end"] = seen["characters"] + length
            seen["characters"] += len(part)
            yield part, begins, split
            begins = False
        blank.clear()


def split_at(pieces: Iterable[tuple[str, bool, str]], at: int) -> Iterator[tuple[str, bool, str]]:
    """Split a single document: what follows its last space before character `at` becomes a document, for
    val."""
    for text, start, _ in pieces:
        if 0 < at < len(text):
            cut = 1 + max(text.rfind("\n", 0, at), text.rfind(" ", 0, at)) or at
            yield text[:cut], start, "train"
            text, at = text[cut:], 0
        yield text, start or at == 0, "train" if at > 0 else "val"
        at -= len(text)


# ---- stages: documents -> chunks, and how difficult each is ------------------------------------------------------------

# Where to cut a text into chunks, best first: paragraphs, lines, sentences, words. A unit ends where a match
# does.
ENDS = [re.compile(end) for end in (r"\n\s*\n", r"\n", r"[.!?]['\"’”)]*\s+|[。！？]", r"\s+")]
UPPER = "".join(filter(str.isupper, map(chr, range(1 << 16))))
MARKS = "".join(c for c in map(chr, range(1 << 16)) if unicodedata.category(c) in ("Mn", "Mc"))
# A mark that normalize() sorts, or anything beyond U+FFFF, where some are; and 31 of these in a row
COMBINING = "".join(filter(unicodedata.combining, map(chr, range(1 << 16)))) + "\U00010000-\U0010ffff"
MARK, RUN = re.compile(f"[{COMBINING}]"), re.compile(f"[{COMBINING}][{COMBINING}]{{30,}}")
# A capitalised word (not all capitals) behind a word, a comma, or Mr. and the like, on the same line
NAME = re.compile(
    rf"[{UPPER}](?![{UPPER}])(?:(?<=[\w,;] .)|(?<=\b[MDS][rt]\. .)|(?<=\bMrs\. .))\w+(?:['-]\w+)*"
)
# Apostrophes, and the points and commas of numbers, belong to a word; a hyphen parts two. \0: a name
WORD = re.compile(rf"[\w\0{MARKS}]+(?:'[\w{MARKS}]+|(?<=\d)[.,]\d+)*")
# Words that join a clause to another, of those that seldom do anything else
JOINING = set(
    "although because if that though unless until what when where whether which while who whom whose why".split()
)


def size(text: str) -> float:
    """The words of a text, counted quickly; a word for each 10 characters at least, for text without
    spaces."""
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
    """Gather paragraphs into chunks of 200 to 500 words; only the last can be shorter. Joined, they are the
    text."""
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


def shorten_marks(run: re.Match) -> str:
    """Return the text of run with at most 30 marks in a row, as in Unicode's stream-safe text format.

    normalize() takes a time that is quadratic in their number.
    """
    out, n = [], 0
    for character in run[0]:
        n = n + 1 if unicodedata.combining(character) else 0
        if n <= 30:
            out.append(character)
    return "".join(out)


def words(text: str) -> list[str]:
    """The words of a text, case folded; "\\0" stands for each name."""
    if MARK.search(text[::31]):  # else there can't be 31 in a row
        text = RUN.sub(shorten_marks, text)
    text = unicodedata.normalize("NFC", text).replace("’", "'").replace("_", " ")
    return WORD.findall(NAME.sub("\0", text).casefold())


def by_vocabulary(chunk: str, ranks: dict[str, int], known: float) -> float:
    """How many of the most frequent words one must know to know this share of the chunk's. Names, "\\0", rank
    0th."""
    needed = sorted(map(ranks.get, words(chunk), itertools.repeat(math.inf)))
    return needed[max(math.ceil(known * len(needed) - 1e-9), 1) - 1] if needed else math.inf


def by_structure(chunk: str) -> float:
    """Words a sentence, and one more for each comma, semicolon, colon, dash and joining word in it."""
    # Length is what readability formulas agree on; what is counted twice are the places where a sentence
    # takes in another part, so that of two as long the one of more parts is the harder.
    found = words(chunk)
    parts = len(re.findall(r"[,;:—–]|--", chunk)) + sum(word in JOINING for word in found)
    sentences = len(re.findall(r"[.!?]['\"’”)]*(?:\s|$)|\n\s*\n|[。！？]", chunk))
    return (len(found) + parts) / max(sentences, 1) if found else math.inf


class Stages:
    """names of the stages; limits: the difficulty up to which each goes; score: a chunk in, its difficulty
    out."""

    def __init__(self, by: str, limits: list[int], ranks: dict[str, int], known: float) -> None:
        score = {
            "vocabulary": functools.partial(by_vocabulary, ranks=ranks, known=known),
            "structure": by_structure,
        }
        self.names = [("words" if by == "vocabulary" else by) + str(n) for n in limits] + ["all"]
        self.limits, self.score = [*limits, math.inf], score[by]

    def split(self, text: str, start: bool, split: str) -> Iterator[tuple[str, bool, str]]:
        """Yield (text, starts a document?, split) of the chunks of a text, and of the whole if it is for
        val."""
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


def encode_batch(
    batch: list[tuple[str, bool, str]], tok: Tokenizer, stages: Stages | None = None
) -> dict[str, tuple]:
    """[(text, starts a document?, split)] -> {split: (ids, (documents, tokens, bytes of text), sources, a
    sample)}

    ids are raw bytes. With stages the splits are theirs, and their documents chunks; sources: which of the
    batch's documents these are from, counted from 1 (0: the one that goes on); the sample is (hash, chunk),
    of the lowest hash."""
    out, bos, source = {}, np.array(tok.bos, tok.dtype).tobytes(), 0
    for piece in batch:
        source += piece[1]
        for text, start, split in stages.split(*piece) if stages else [piece]:
            if tok.kind == "sentencepiece":
                text = text.replace("▁", " ")  # U+2581 is a space to sentencepiece, so let it count as one
            data, ids = text.encode(), bos * start + tok.encode_raw(text, start)
            parts, count, sources, sample = out.setdefault(
                split, ([], np.zeros(3, np.int64), set(), [(math.inf, "")])
            )
            parts.append(ids)
            count += start, len(ids) // tok.dtype.itemsize, len(data)
            if stages:
                sources.add(source)
                sample[0] = min(sample[0], (zlib.crc32(data), text))
    return {
        split: (b"".join(parts), count, sources, sample[0])
        for split, (parts, count, sources, sample) in out.items()
    }


def run_all(
    work: Callable,
    pieces: Iterable[tuple[str, bool, str]],
    tok: Tokenizer,
    stages: Stages | None,
    workers: int,
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
        pool.submit(
            int
        )  # forks all workers now: reading .parquet starts threads, after which forking isn't safe
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

    Returns meta.json's part on splits, and for stages {train split: how often each token occurs}, {split: a
    sample}, {split: the number of documents that its chunks are from}."""
    names = (
        [f"{stage}.{side}" for stage in stages.names for side in ("train", "val")] + ["val"]
        if stages
        else ["train", "val"]
    )
    counts = {name: np.zeros(3, np.int64) for name in names}  # documents, tokens, bytes
    tokens = {
        name: np.zeros(tok.vocab_size, np.int64) for name in names if stages and name.endswith(".train")
    }
    hashes, samples = {name: hashlib.sha256() for name in names}, {}
    n_sources, last, before = (
        collections.Counter(),
        {},
        0,
    )  # last: by split, the number of its last document, before: of all
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(f"{folder}/{name}.bin", "wb")) for name in names}
        for result in stack.enter_context(
            contextlib.closing(run_all(encode_batch, pieces, tok, stages, workers))
        ):
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
        name: {
            **dict(zip(("documents", "tokens", "bytes"), counts[name].tolist())),
            "sha256": hashes[name].hexdigest(),
        }
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
        raise ValueError(f"{path}: not UTF-8: convert it") from None
    if not ranked:
        raise ValueError(f"{path}: no words: give one a line, the most frequent first")
    return ranked


def choose_rows(counts: list[np.ndarray], share: float, first: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """For each stage (the ids that its model has, the share of its text's tokens so far that they are).

    The ids are those of the stage before (of none: `first`), then the most frequent ones of its text so far
    up to this share of the tokens, or, if it is above 1, to this number of ids; and more of these up to a
    multiple of 128."""
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

    covered: the share of the text's words that the n most frequent ones are, by n; empty with --by
    structure."""
    offsets, spelling = tok.spelling()
    spelling.tofile(f"{folder}/spelling.bin")
    first = np.flatnonzero(np.diff(offsets) == 1)
    first = first[spelling[offsets[first]] == first]
    for count in tokens.values():
        count[tok.bos] = 0  # isn't text
    out = []
    for name, limit, (rows, rows_coverage) in zip(
        stages.names, stages.limits, choose_rows([*tokens.values()], share, first)
    ):
        rows.astype(tok.dtype).tofile(f"{folder}/{name}.rows.bin")
        split, n = splits[f"{name}.train"], min(limit, len(covered) - 1)
        stage = {
            "name": name,
            "words": max(n, 0) if limit == math.inf else limit,
            "documents": n_sources[f"{name}.train"],
        }
        stage |= {"chunks": split["documents"], "tokens": split["tokens"]}
        stage |= {
            "distinct_tokens": int((tokens[f"{name}.train"] > 0).sum()),
            "coverage": float(covered[n]) if n >= 0 else None,
        }
        stage |= {
            "rows": len(rows),
            "rows_coverage": rows_coverage,
            "sample": samples.get(f"{name}.train", ""),
        }
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
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which may want a display

    fig = Figure(figsize=(11, 4), layout="constrained")
    axes = fig.subplots(1, 2 if len(covered) else 1, squeeze=False)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.85, len(stages)))
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
    ax.bar_label(
        bars,
        [f"{s['tokens'] / 1e6:,.2f} M\n{s['tokens'] / total:.1%}\n{s['rows']:,} rows" for s in stages],
        padding=2,
    )
    ax.margins(y=0.25)
    ax.set(ylabel="million tokens for training")
    ax.set_title("tokens that each stage adds", loc="left")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)


# ---- all of it ------------------------------------------------------------------------------------------------------


def list_stamps(folder: str) -> dict[str, tuple]:
    """Return {name: what tells a file from others, and from itself before a change}; {} without a folder."""
    if not os.path.lexists(folder):
        return {}
    stats = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    return {name: (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


def is_mount(folder: str) -> bool:
    """Return whether the folder is a mount point, also of its own file system, as os.path.ismount doesn't."""
    with contextlib.suppress(OSError):
        points = [line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
        points = [re.sub(rb"\\(\d{3})", lambda found: bytes([int(found[1], 8)]), point) for point in points]
        if os.fsencode(folder) in points:
            return True
    return os.path.ismount(folder)


def check_output(path: str, force: bool) -> tuple[str, dict[str, tuple]]:
    """Return the real path of the folder to make, and the stamps of what is there, all ours.

    Raise ValueError if it can't be made, or something else is there.
    """
    out = os.path.realpath(path)
    there = next(name for name in (out, *map(str, Path(out).parents)) if os.path.lexists(name))
    if not os.path.isdir(there):
        raise ValueError(f"{path}: {there} is not a folder: name another with --out")
    if is_mount(out):
        raise ValueError(f"{path}: a mount point, which can't be replaced: name a folder in it, {path}/NAME")
    mine = list_stamps(out)
    other = [name for name in mine if not OWN_FILE.fullmatch(name) or os.path.isdir(f"{out}/{name}")]
    if not other and "meta.json" not in mine:
        other = list(mine)  # a tokenizer's folder, for instance
    if other:  # never delete what isn't ours
        raise ValueError(f"{path}: holds {min(other)}, not a file of prepare.py: name another with --out")
    if mine and not force:
        raise ValueError(f"{path}: prepared before: overwrite it with --force")
    if mine and not os.access(out, os.W_OK):
        raise ValueError(f"{path}: can't be written: name another folder with --out")
    return out, mine


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


def replace(out: str, aside: str, mine: dict[str, tuple]) -> None:
    """Put the folder aside in the place of out. Delete of out only the files of `mine`, as they were.

    What else has come into out stays there. If that can't be, keep aside, renamed, and raise ValueError.
    """
    old, kept = f"{aside}.old", f"{aside}.done"
    try:
        come = {name for name, stamp in list_stamps(out).items() if mine.get(name) != stamp}
        taken = come.intersection(os.listdir(aside))
        if taken:
            raise FileExistsError(f"{min(taken)} has been written there meanwhile")
        try:
            if os.path.exists(out):
                os.rename(out, old)
            os.rename(aside, out)
        except BaseException:
            if os.path.exists(old) and not os.path.exists(out):
                os.rename(old, out)
            raise
    except OSError as e:
        os.rename(aside, kept)
        raise ValueError(f"{out}: {one_line(e)}: the text is prepared, but lies in {kept}") from None
    try:
        for name, stamp in list_stamps(old).items():
            if mine.get(name) == stamp:
                os.unlink(f"{old}/{name}")
            elif not os.path.lexists(f"{out}/{name}"):
                os.rename(f"{old}/{name}", f"{out}/{name}")
                print(f"{out}: {name} came meanwhile, and stays", file=sys.stderr)
        if os.path.exists(old):
            os.rmdir(old)
    except OSError as e:
        print(f"{old}: what else was in {out} is left here ({one_line(e)})", file=sys.stderr)


def prepare(args: argparse.Namespace) -> None:
    """Make the folder args.out. Raise ValueError or OSError, with nothing written, if that can't be done."""
    begun = time.time()
    out, mine = check_output(args.out, args.force)
    if args.report:
        try:
            import matplotlib.figure  # noqa: F401
        except ImportError:
            raise ValueError("to make --report: pip install matplotlib") from None
    files = list_files(args.input, out)
    ranked = read_wordlist(args.wordlist) if args.wordlist else []
    tok = load_tokenizer(args.tokenizer)
    if args.words:
        tok.spelling()  # fails now, if it does
    with make_aside(out) as aside:
        meta, seen = fill(aside, args, files, tok, ranked)
        os.sync()
        replace(out, aside, mine)

    if args.words:
        print_stages(meta["stages"])
    splits = meta["splits"]
    width = max(map(len, splits)) + 2
    print(f"{'split':{width}}{'documents':>12}{'tokens':>16}{'MB':>12}{'tokens/byte':>14}")
    for name, s in splits.items():
        rate = s["tokens"] / max(s["bytes"], 1)
        print(f"{name:{width}}{s['documents']:12,}{s['tokens']:16,}{s['bytes'] / 1e6:12,.2f}{rate:14.4f}")
    length = sum(s["bytes"] for name, s in splits.items() if not args.words or name != "val") / 1e6
    seconds = time.time() - begun
    print(
        f"{args.out}: {length:,.1f} MB in {seconds:.1f} s, {length / seconds:.1f} MB/s; left out: "
        f"{seen['empty']:,} empty documents, {seen['bad']:,} broken parts, {seen['bytes']:,} bytes of text"
    )


def fill(
    folder: str, args: argparse.Namespace, files: list[str], tok: Tokenizer, ranked: list[str]
) -> tuple[dict[str, object], dict[str, int]]:
    """Write all files of the folder; return (what meta.json holds, counts of what was seen and left out)."""
    seen, checksums = {}, {}  # checksums: of each file's text, by path
    marker = args.separator.strip().encode("utf-8", "surrogateescape")

    def bad(fault, remedy, length=0):
        if not args.skip_bad:
            raise ValueError(f"{fault}: {remedy}, or leave it out with --skip_bad")
        seen["bad"] += 1
        seen["bytes"] += length
        if seen["bad"] <= 10 and not seen["looking"]:
            print(f"left out: {fault}" + (f" ({length:,} bytes)" if length else ""), file=sys.stderr)

    def read_all():
        for path in files:
            checksum = 0
            for text, start in read_file(path, args.field, marker, bad):
                checksum = zlib.crc32((text or "").encode(), checksum)
                yield text, start
            if checksums.setdefault(path, checksum) != checksum:
                raise ValueError(f"{path}: has changed since it was first read: wait until it is written")

    def documents(limit, looking=False):
        seen.update(looking=looking, bad=0, bytes=0, empty=0, documents=0, characters=0, end=0, lowest=2**64)
        return split_by_hash(read_all(), limit, seen)

    # look for a document that falls to val, about the 100th, and one to train, before the work begins
    limit, at, sides = args.val * 2**64, 0, set()
    for _, _, split in documents(limit, looking=True):
        sides.add(split)
        if len(sides) == 2:
            break
    else:
        if seen["documents"] > 1:
            print(
                "no document falls to val by its hash, or all do: taking the one of the lowest",
                file=sys.stderr,
            )
            limit = seen["lowest"] + 1
        elif seen["documents"] == 1:
            print("only one document: cutting off its end for val", file=sys.stderr)
            at = min(int(seen["end"] * (1 - max(args.val, 0.01))), seen["end"] - 1)
        if not seen["documents"] or seen["documents"] == 1 and at == 0:
            more = f" and {len(args.input) - 1} more" if args.input[1:] else ""
            raise ValueError(f"{args.input[0]}{more}: too little text for a train and a val split")

    def pieces(looking=False):
        return split_at(documents(limit, looking), at) if at else documents(limit, looking)

    # rank the words, which takes a pass of its own
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

    splits, tokens, samples, n_sources = write_splits(pieces(), tok, stages, args.workers, folder)
    trained = sum(split["documents"] for name, split in splits.items() if "train" in name)
    if not splits["val"]["documents"] or not trained:
        raise ValueError(f"{args.input[0]}: too little text for a train and a val split")
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
        meta["stages"] = describe(stages, covered, tok, args.rows, splits, tokens, samples, n_sources, folder)
        if ranked:
            Path(folder, "words.txt").write_text("".join(f"{word}\n" for word in ranked[:100_000]), "utf-8")
        if args.report:
            report(f"{folder}/report.png", meta["stages"], covered)
    Path(folder, "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    tok.token_bytes().astype("<u2").tofile(f"{folder}/token_bytes.bin")
    if tok.model:
        Path(folder, MODEL_FILES[tok.kind]).write_bytes(tok.model)
    return meta, seen


def limits(text: str) -> list[int]:
    """--words: rising whole numbers, then all -> the numbers"""
    numbers = [int(n) for n in re.findall(r"(\d+),", text)]
    if text != ",".join(map(str, numbers + ["all"])) or not numbers or [0, *numbers] != sorted({0, *numbers}):
        raise argparse.ArgumentTypeError(f"{text}: give rising whole numbers, then all: 2000,5000,all")
    return numbers


def main(argv: list[str] | None = None) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        required=True,
        metavar="PATH",
        help=f"files, or folders of files, or {', '.join(SOURCES)}",
    )
    add("--out", required=True, metavar="FOLDER", help="the folder to make")
    names = "llama2 (default; fetched at first use), the path of a sentencepiece model or tokenizer.json, or a tiktoken encoding"
    add("--tokenizer", default="llama2", metavar="NAME", help=names)
    add(
        "--separator",
        default="<|doc|>",
        metavar="LINE",
        help="the line between the documents of a .txt: <|doc|>",
    )
    add("--field", default="text", metavar="NAME", help="the field of .jsonl, or column of .parquet: text")
    side = "share of the documents for val, 0.01. A hash of its text decides, so a document falls on the same side in any input"
    add("--val", type=float, default=0.01, metavar="SHARE", help=side)
    add(
        "--words",
        type=limits,
        metavar="N,N,all",
        help="make stages: the words that one must know for each; the last is all",
    )
    add(
        "--known",
        type=float,
        default=0.95,
        metavar="SHARE",
        help="share of a chunk's words that must be known: 0.95",
    )
    add(
        "--wordlist",
        metavar="FILE",
        help="a word a line, the most frequent first; default: rank the words of the text",
    )
    add(
        "--by", choices=["vocabulary", "structure"], default="vocabulary", help="what makes a chunk difficult"
    )
    rows = "a stage's own ids: the share of its tokens that they are, 0.998, or their number"
    add("--rows", type=float, default=0.998, metavar="SHARE", help=rows)
    add("--report", action="store_true", help="draw the stages: report.png")
    add("--workers", type=int, default=cores, metavar="N", help="processes; default: all cores")
    add(
        "--skip_bad",
        action="store_true",
        help="leave out, and count, broken documents, lines and ends of files",
    )
    add("--force", action="store_true", help="overwrite a folder that prepare.py made")
    args = parser.parse_args(argv)
    if not 0 < args.val < 1 or args.workers < 1:
        parser.error("--val must lie between 0 and 1, and --workers be 1 or more")
    if not 0 < args.known <= 1 or not 0 < args.rows < math.inf:
        parser.error("--known must lie between 0 and 1, and --rows above 0")
    if re.search(r"[\n\r]", args.separator.strip()):
        parser.error("--separator must be one line")
    if args.report and not args.words:
        parser.error("--report is about stages: give --words too")
    try:
        prepare(args)
    except ValueError as e:
        sys.exit(f"prepare.py: {e}")
    except OSError as e:
        sys.exit(f"prepare.py: {e.filename or args.out}: {one_line(e)}")
    except BrokenExecutor:
        sys.exit("prepare.py: a worker was killed (out of memory?): try fewer --workers")
    except KeyboardInterrupt:
        sys.exit("prepare.py: interrupted")


if __name__ == "__main__":
    with contextlib.suppress(AttributeError):  # not a file's
        sys.stdout.reconfigure(errors="backslashreplace")  # a sample may hold what it can't show
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("prepare.py: terminated"))
    main()
