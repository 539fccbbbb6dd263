"""
Turn raw text into tokens. train.bin and val.bin hold the ids of all documents, one after another, a BOS
before each.

  $ python prepare.py --input stories.txt.xz --out data/stories
  $ python prepare.py --input corpus/ more.jsonl.gz --out data/mix --val 0.005
  $ python prepare.py --input pages.parquet --field content --out data/pages --tokenizer gpt2 --workers 8
  $ python prepare.py --input corpus/ --out data/smol --tokenizer SmolLM-135M/tokenizer.json
  $ python prepare.py --input tinystories corpus/ --out data/babel --words 2000,5000,10000,all --report

Input is .txt, .jsonl and .parquet, each also .gz or .xz, and folders of them; or tinystories, simplewiki,
fineweb-edu, streamed from the Hugging Face hub. A .txt holds documents with a line <|doc|> between them;
without one it is one document. A .jsonl has a document a line, a .parquet a document a row. A file is read
once, whatever links lead to it. Hidden files are not read, nor those that prepare.py wrote.

It stops at what is broken or not UTF-8. --skip_bad leaves out no more than it must: in a text a kilobyte
around the byte, in a .jsonl the line, in a .gz or .xz all that follows.

With --words the text is cut into chunks: a few paragraphs, 200 to 500 words, each a document of its own.
words2000 holds the chunks in which 95 % of the words (--known) are names or among the 2,000 most frequent.
words5000 holds what 5,000 words add to that, and so on to all. There is no train.bin then. With --by
structure the numbers are not words known but words a sentence (see by_structure): --words 12,18,all makes
structure12, structure18 and all.

The output folder appears when all is done, and is the same for any number of workers:
  train.bin, val.bin   raw little-endian ids, uint16, or uint32 for a vocabulary above 65,535
  meta.json            tokenizer, vocab_size, dtype, bos, dummy_prefix; the documents, tokens, bytes and
                       sha256 of each split
  token_bytes.bin      uint16 for each id: the bytes of UTF-8 text that it stands for (see count_bytes)
  tokenizer.model      the sentencepiece model; or tokenizer.json, the Hugging Face tokenizer; for tiktoken,
                       neither
and with --words, for each stage, instead of train.bin:
  STAGE.train.bin,     the chunks that the stage adds, from the documents of either side; val.bin holds the
  STAGE.val.bin        same whole documents as without --words
  STAGE.rows.bin       the ids that a model of the stage has. First those of the stage before; in the first
                       stage, the special and byte tokens, which can't be spelled. Then the most frequent of
                       the text so far. The last stage has all ids
  spelling.bin         for each id, the byte tokens that spell it (see Tokenizer.spelling)
  words.txt            the text's 100,000 most frequent words: as --wordlist it gives another text the same
                       stages
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
import signal
import sys
import textwrap
import time
import unicodedata
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np

from data import MODEL_FILES, Tokenizer, load_tokenizer, make_aside, one_line

SOURCES = {  # of the Hugging Face hub: what load_dataset takes
    "tinystories": ("roneneldan/TinyStories",),
    "simplewiki": ("wikimedia/wikipedia", "20231101.simple"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}
FILE_NAME = re.compile(r"\.(txt|jsonl|parquet)(\.gz|\.xz)?$", re.IGNORECASE)
MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\0"}  # how such a file begins
BROKEN = EOFError, OSError, ValueError, lzma.LZMAError, zlib.error  # what reading a broken file raises
OWN_FILE = re.compile(
    r"((\w+\.)?(train|val)|\w+\.rows|token_bytes|spelling)\.bin"
    r"|meta\.json|tokenizer\.(model|json)|words\.txt|report\.png"
)
# Bytes that a worker gets at a time. A document of more than two of these is read in pieces. The hash of the
# first decides on train or val, so another value here moves long documents from one to the other.
PIECE = 1 << 18
LONGEST = 1 << 26  # bytes of a line of a .jsonl
# How many distinct words are counted at a time, about 200 MB. Beyond that the rarer half is forgotten. The
# few thousand words that stages are made of are in practice never in that half.
MOST_WORDS = 1_000_000
# Where to cut, best first: between lines, before a space, between characters, anywhere. The first two change
# no token of Llama's, and next to none of tiktoken's.
CUTS = [re.compile(cut) for cut in (rb"(?<=\n)(?=\S)", rb"(?= )", rb"(?=[^\x80-\xbf])", b"")]
# What is left out around a byte that is no text: about a kilobyte, up to the end of a line, word or character
PART = re.compile(rb"(?s:.){1,1000}(?:[^\n]{0,1000}\n|[^ \n]{0,100}(?= )|[\x80-\xbf]*)")
NULS = re.compile(b"\0.?\0", re.DOTALL)  # as UTF-16 has them; one by itself may be meant
OTHER_BOMS = codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE  # UTF-32-LE's begins as UTF-16's

Documents = Iterator[tuple[str | None, bool]]  # (text, starts a document?); None: nothing of it is text
Pieces = Iterable[tuple[str, bool, str]]  # (text, starts a document?, split)


# -----------------------------------------------------------------------------
# reading: files -> documents, in pieces of bounded size


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
    if re.fullmatch(re.escape(out) + r"(\.\d+(\.\w+)?)?", folder):
        return True
    return {"meta.json", "token_bytes.bin"} <= set(os.listdir(folder))


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
    """Yield parts, up to where reading on fails, and report that."""
    try:
        yield from parts
    except BROKEN as e:
        report_broken(path, e, bad)


def report_broken(path: str, e: Exception, bad: Callable) -> None:
    """Call bad for a file that can't be read, or is no such file."""
    if getattr(e, "errno", None):  # the system's
        bad(f"{path}: can't be read ({one_line(e)})", "see to that")
    else:
        bad(f"{path}: broken or cut short ({one_line(e)})", "fetch it again")


def read_blocks(path: str, packing: str | None) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked. A .gz or .xz may be several in a row, with zeros between them.

    Raise one of BROKEN where it is broken, after all that comes before.
    """
    with open(path, "rb") as f:
        if not packing:
            yield from iter(lambda: f.read(PIECE), b"")
            return
        read = functools.partial(f.read, 1 << 13)  # 8 KB unpack to 8 MB at most; of .xz, 56 MB
        magic = MAGIC[packing]
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
    rest = b""  # a line that may go on in the next block
    begins = True  # does rest have the line's beginning?
    for block in itertools.chain(blocks, [None]):
        # take whole lines; a CR at the end may be half of a CRLF, a long line goes on in parts
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

    marker None: the blocks are one document, to which a LF was appended.
    """
    line = 1  # the number of the piece's first one
    for piece, start, last in cut_pieces(split_at_markers(blocks, marker)):
        n_lines = count_lines(piece, len(piece))
        if last:
            n_lines += 1  # the marker
            piece = piece.removesuffix(b"\n").removesuffix(b"" if marker is None else b"\r")
        if start:
            piece = piece.removeprefix(codecs.BOM_UTF8)
        yield decode(piece, where, line, marker, bad), start
        line += n_lines


def cut_pieces(parts: Iterable[tuple[bytes, bool]]) -> Iterator[tuple[bytes, bool, bool]]:
    """Yield (at most 2 PIECE bytes, starts a document?, ends it?) of (bytes, is a marker?)."""
    text, start = bytearray(), True
    for part, is_marker in itertools.chain(parts, [(b"", True)]):
        if not is_marker:
            text += part
        while len(text) > 2 * PIECE:
            end = next(m.start() for cut in CUTS if (m := cut.search(text, PIECE, 2 * PIECE)))
            yield bytes(text[:end]), start, False
            start = False
            del text[:end]
        if is_marker:
            yield bytes(text), start, True
            start = True
            text.clear()


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


def decode(data: bytes, where: str, line: int, marker: bytes | None, bad: Callable) -> str | None:
    """Return data as text, without those of its PARTs that are no text; None if nothing is left.

    line: the number of its first one; without a marker, lines don't count.
    """
    with contextlib.suppress(UnicodeDecodeError):
        return check_text(data)
    # where NULs come as UTF-16 has them, none is meant
    good, nuls = [], re.compile(b"\0") if NULS.search(data) else NULS
    for part in PART.findall(data):
        try:
            good.append(check_text(part, nuls))
        except UnicodeDecodeError as e:
            place = where if marker is None else f"{where}, line {line + count_lines(part, e.start)}"
            bad(f"{place}: {e.reason}", "convert it", len(part))
        line += count_lines(part, len(part))
    return "".join(good) or None


def read_rows(
    path: str, packing: str | None, field: str, bad: Callable[[str, str, int], None], kind: str
) -> Iterator[tuple[str, bytes]]:
    """Yield (where, the text field) of each row of a .parquet or of a source of the hub, or line of a .jsonl.

    The text need not be UTF-8: half a surrogate pair, which JSON can spell, is not.
    """
    if kind == "jsonl":
        rows = read_records(path, packing, bad)
    elif kind == "parquet":
        rows = ((number, {field: text}) for number, text in read_column(path, packing, field, bad))
    else:
        rows = enumerate(stream(path), 1)
    for number, row in rows:
        where = f"{path}, {'line' if kind == 'jsonl' else 'row'} {number}"
        try:
            text = row[field]
            data = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        except (KeyError, TypeError, AttributeError):
            bad(f"{where}: no text in field {field}", "name another with --field")
        else:
            yield where, data


def read_records(
    path: str, packing: str | None, bad: Callable[[str, str, int], None]
) -> Iterator[tuple[int, object]]:
    """Yield (number, what it holds) of each line of a .jsonl that is not blank."""
    for number, line in enumerate(until_broken(path, read_lines(read_blocks(path, packing)), bad), 1):
        where = f"{path}, line {number}"
        if isinstance(line, int):
            bad(f"{where}: more than {LONGEST >> 20} MB", "split it", line)
        elif line.strip():
            try:
                record = read_json(line)
            except UnicodeDecodeError as e:
                bad(f"{where}: {e.reason}", "convert it", len(line))
            except (ValueError, RecursionError):
                bad(f"{where}: not JSON", "repair it", len(line))
            else:
                yield number, record


def read_lines(blocks: Iterable[bytes]) -> Iterator[bytes | int]:
    """Yield the lines of blocks without their ends, which are LF, CRLF or CR. Of one of more than LONGEST
    bytes, which would be in memory several times, yield how many they are."""
    parts, held, length = [], b"", 0
    for block in blocks:
        block = held + block
        held = b"\r" if block.endswith(b"\r") else b""  # it may be half of a CRLF
        block = block.removesuffix(held).replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *whole, rest = block.split(b"\n")
        for line in whole:
            yield length + len(line) if length > LONGEST else b"".join([*parts, line])
            parts, length = [], 0
        parts.append(rest)
        length += len(rest)
        if length > LONGEST:
            parts.clear()
    yield length if length > LONGEST else b"".join(parts)


def read_json(line: bytes) -> object:
    """Return what a line of JSON holds, with surrogates for bytes that aren't UTF-8. Raise ValueError."""
    try:
        return json.loads(line.decode("utf-8-sig", "surrogateescape"))
    except ValueError:
        check_text(line)  # says more if it isn't text
        raise


def read_column(path: str, packing: str | None, field: str, bad: Callable) -> Iterator[tuple[int, bytes]]:
    """Yield (row number from 1, bytes or None) of a column of a .parquet. Report broken row groups."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: to read .parquet: pip install pyarrow") from None
    broken = (*BROKEN, pyarrow.ArrowException)
    with contextlib.ExitStack() as stack:
        # the file, and whether the column is text
        try:
            f = stack.enter_context({None: open, ".gz": gzip.open, ".xz": lzma.open}[packing](path, "rb"))
            table = pyarrow.parquet.ParquetFile(f, buffer_size=PIECE, pre_buffer=False)
            schema = table.schema_arrow
        except broken as e:
            return report_broken(path, e, bad)
        if field not in schema.names:
            return bad(f"{path}: no column {field}, only {', '.join(schema.names)}", "name it with --field")
        kind = schema.types[schema.names.index(field)]
        # a dictionary or an extension holds a plain type
        plain = kind.value_type if pyarrow.types.is_dictionary(kind) else getattr(kind, "storage_type", kind)
        if not re.fullmatch(r"(large_)?(string|binary)(_view)?|fixed_size_binary.*", str(plain)):
            return bad(f"{path}: column {field} holds {kind}, not text", "name another with --field")

        # its values
        end = 0
        for group in range(table.num_row_groups):
            done, end = end, end + table.metadata.row_group(group).num_rows
            try:
                # without threads, after whose start forking workers isn't safe
                for batch in table.iter_batches(64, row_groups=[group], columns=[field], use_threads=False):
                    for value in batch.column(0).cast(pyarrow.large_binary()):
                        done += 1
                        yield done, value.as_py()
            except broken as e:
                bad(f"{path}, rows {done + 1} to {end}: broken ({one_line(e)})", "fetch it again")


def stream(name: str) -> Iterator[dict]:
    """Yield the rows of a source of the Hugging Face hub. It is read anew each time, and not kept."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"{name}: to stream it from the Hugging Face hub: pip install datasets") from None
    try:
        yield from datasets.load_dataset(*SOURCES[name], split="train", streaming=True)
    except Exception as e:  # its own, the hub's, those of any network library
        error = one_line(e)
        raise ValueError(f"{name}: the Hugging Face hub gives an error: {error}: give own files") from None


# -----------------------------------------------------------------------------
# splitting: documents -> train or val


def split_by_hash(pieces: Documents, limit: float, seen: dict) -> Pieces:
    """Add the split to (text, starts a document?): val if its first piece with text has a hash below limit.

    Leave out empty documents. Blank pieces at a document's start are kept compressed until text follows.
    limit: 0 to 2^64, as the hash. seen is updated: documents, empty, characters, end (the characters up to
    the last that is not blank), lowest (hash).
    """
    for text, start in pieces:
        if start:
            blank, split = [], None
            is_empty = text is not None  # until its text comes; None is broken
            if is_empty:
                seen["empty"] += 1
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
            if is_empty:
                seen["empty"] -= 1
        for part in itertools.chain((zlib.decompress(packed).decode() for packed in blank), [text]):
            if length := len(part.rstrip()):
                seen["end"] = seen["characters"] + length
            seen["characters"] += len(part)
            yield part, begins, split
            begins = False
        blank.clear()


def split_at(pieces: Pieces, at: int) -> Pieces:
    """Split a single document: what follows its last space before character `at` is a document for val."""
    for text, start, _ in pieces:  # at: of the characters from here on; 0 or less behind the cut
        if 0 < at < len(text):
            cut = 1 + max(text.rfind("\n", 0, at), text.rfind(" ", 0, at)) or at
            yield text[:cut], start, "train"
            text, at = text[cut:], 0
        yield text, start or at == 0, "train" if at > 0 else "val"
        at -= len(text)


# -----------------------------------------------------------------------------
# stages: documents -> chunks, and how difficult each is

# Where to cut a text into chunks, best first: paragraphs, lines, sentences, words. A unit ends with a match.
ENDS = [re.compile(end) for end in (r"\n\s*\n", r"\n", r"[.!?]['\"’”)]*\s+|[。！？]", r"\s+")]
UPPER = "".join(filter(str.isupper, map(chr, range(1 << 16))))
MARKS = "".join(c for c in map(chr, range(1 << 16)) if unicodedata.category(c) in ("Mn", "Mc"))
# A mark that normalize() sorts, or anything beyond U+FFFF, where some are; and 31 of these in a row
COMBINING = "".join(filter(unicodedata.combining, map(chr, range(1 << 16)))) + "\U00010000-\U0010ffff"
MARK, RUN = re.compile(f"[{COMBINING}]"), re.compile(f"[{COMBINING}][{COMBINING}]{{30,}}")
# A capitalised word (not all capitals) behind a word, a comma, or Mr. and the like, on the same line
NAME = re.compile(
    rf"[{UPPER}](?![{UPPER}])(?:(?<=[\w,;] .)|(?<=\b(?:[MDS][rt]|Ms)\. .)|(?<=\bMrs\. .))\w+(?:['-]\w+)*"
)
# Apostrophes, and the points and commas of numbers, belong to a word; a hyphen parts two. \0: a name
WORD = re.compile(rf"[\w\0{MARKS}]+(?:'[\w{MARKS}]+|(?<=\d)[.,]\d+)*")
# Words that join clauses and seldom do anything else
JOINING = set(
    "although because if that though unless until what when where whether which while "
    "who whom whose why".split()
)


def word_count(text: str) -> float:
    """Return about how many words a text has, quickly: at least one for 10 characters, as without spaces."""
    return max(len(text.split()), len(text) / 10)


def units(text: str, ends: list[re.Pattern] = ENDS) -> Iterator[tuple[str, float]]:
    """Yield (a part of text, its word count): parts of at most 300 words, cut at the best ends that do."""
    if len(text) <= 3000 and (n := word_count(text)) <= 300:
        yield text, n
    elif ends:
        for a, b in itertools.pairwise([0, *(m.end() for m in ends[0].finditer(text)), len(text)]):
            yield from units(text[a:b], ends[1:])
    else:
        yield from ((text[i : i + 3000], 300) for i in range(0, len(text), 3000))


def chunks(text: str) -> list[str]:
    """Gather paragraphs into chunks of 200 to 500 words; only the last can be shorter. Joined they are the
    text."""
    out, counts = [], []
    for unit, n in units(text):
        if not out or counts[-1] >= 200:
            out.append("")
            counts.append(0)
        out[-1] += unit
        counts[-1] += n
    if len(out) > 1 and counts[-1] < 200 and counts[-2] + counts[-1] <= 500:
        out[-2:] = [out[-2] + out[-1]]
    return out


def shorten_marks(run: re.Match) -> str:
    """Return the text of run with at most 30 marks in a row, as in Unicode's stream-safe text format.

    normalize() takes a time quadratic in their number.
    """
    out, n = [], 0
    for character in run[0]:
        n = n + 1 if unicodedata.combining(character) else 0
        if n <= 30:
            out.append(character)
    return "".join(out)


def words(text: str) -> list[str]:
    """Return the words of a text, case folded; "\\0" stands for each name."""
    if MARK.search(text[::31]):  # else there can't be 31 in a row
        text = RUN.sub(shorten_marks, text)
    text = unicodedata.normalize("NFC", text).replace("’", "'").replace("_", " ")
    return WORD.findall(NAME.sub("\0", text).casefold())


def by_vocabulary(chunk: str, ranks: dict[str, int], known: float) -> float:
    """Return how many of the most frequent words one must know to know this share of the chunk's. A name,
    "\\0", ranks 0th."""
    found = sorted(ranks.get(word, math.inf) for word in words(chunk))
    n_known = max(math.ceil(known * len(found) - 1e-9), 1)
    return found[n_known - 1] if found else math.inf


def by_structure(chunk: str) -> float:
    """Return the words a sentence, plus one for each comma, semicolon, colon, dash and joining word in it.

    Length is what readability formulas agree on. Of two sentences as long, the one of more parts is the
    harder, so the places where a part begins count once more.
    """
    found = words(chunk)
    if not found:
        return math.inf
    parts = len(re.findall(r"[,;:—–]|--", chunk)) + sum(word in JOINING for word in found)
    sentences = len(re.findall(r"[.!?]['\"’”)]*(?:\s|$)|\n\s*\n|[。！？]", chunk))
    return (len(found) + parts) / max(sentences, 1)


class Stages:
    """names: those of the stages; limits: the difficulty up to which each goes; score(chunk): a
    difficulty."""

    def __init__(self, by: str, limits: list[int], ranks: dict[str, int], known: float) -> None:
        if by == "vocabulary":
            prefix, self.score = "words", functools.partial(by_vocabulary, ranks=ranks, known=known)
        else:
            prefix, self.score = "structure", by_structure
        self.names, self.limits = [*(f"{prefix}{n}" for n in limits), "all"], [*limits, math.inf]

    def split(self, text: str, start: bool, split: str) -> Pieces:
        """Yield a text's chunks, each a document of its stage's split; first the whole, if it is for val."""
        if split == "val":
            yield text, start, split
        for chunk in chunks(text):
            yield chunk, True, f"{self.names[bisect.bisect_left(self.limits, self.score(chunk))]}.{split}"


# -----------------------------------------------------------------------------
# tokenising, in parallel


def start_worker(tokenizer: dict, stages: Stages | None) -> None:
    """Set up a worker process: what it needs for each batch, and which signals it obeys."""
    global worker
    worker = Tokenizer.from_dict(tokenizer), stages
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business,
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # and its handler of SIGTERM not for us


def call(work: Callable, batch: list) -> dict:
    """Return work(batch, tok, stages), in a worker process."""
    return work(batch, *worker)


def count_words(batch: list, tok: Tokenizer, stages: Stages | None) -> dict[str, int]:
    """Return how often each word occurs in the documents for train of a batch, a list of Pieces."""
    texts = (text for text, _, split in batch if split == "train")
    return collections.Counter(itertools.chain.from_iterable(map(words, texts)))


class Encoded:
    """What a batch has of a split; with stages, of one of theirs, whose documents are chunks."""

    def __init__(self) -> None:
        self.ids, self.counts = bytearray(), np.zeros(3, np.int64)  # documents, tokens, bytes
        self.sample = math.inf, ""  # (hash, a chunk), of the lowest hash


def encode_batch(batch: list, tok: Tokenizer, stages: Stages | None) -> dict[str, Encoded]:
    """Return {split: Encoded} of a batch, a list of Pieces."""
    out, bos = collections.defaultdict(Encoded), np.array(tok.bos, tok.dtype).tobytes()
    for piece in batch:
        for text, start, split in stages.split(*piece) if stages else [piece]:
            if tok.kind == "sentencepiece":
                text = text.replace("▁", " ")  # U+2581 is a space to sentencepiece, so let it count as one
            data, ids = text.encode(), tok.encode_raw(text, start)
            if start:
                ids = bos + ids
            found = out[split]
            found.ids += ids
            found.counts += start, len(ids) // tok.dtype.itemsize, len(data)
            if stages:
                found.sample = min(found.sample, (zlib.crc32(data), text))
    return out


def run_all(
    work: Callable, pieces: Pieces, tok: Tokenizer, stages: Stages | None, workers: int
) -> Generator[dict, None, None]:
    """Yield work(batch, tok, stages) for all pieces, in order, and show how far it is.

    At most 3 batches a worker are read ahead: that bounds the memory.
    """
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


class Split:
    """A split of the folder, as it is written: its file, and what is counted of it."""

    def __init__(self, file: BinaryIO, vocab_size: int) -> None:
        self.file, self.hash = file, hashlib.sha256()
        self.counts = np.zeros(3, np.int64)  # documents, tokens, bytes
        # for a stage's split, of which the documents are chunks of others
        self.occurs = np.zeros(vocab_size, np.int64)  # how often each token does
        self.sample = math.inf, ""  # (hash, a chunk)

    def describe(self) -> dict[str, int | str]:
        """Return what meta.json says of it."""
        counts = dict(zip(("documents", "tokens", "bytes"), self.counts.tolist()))
        return counts | {"sha256": self.hash.hexdigest()}


def write_splits(
    pieces: Pieces, tok: Tokenizer, stages: Stages | None, workers: int, folder: str
) -> dict[str, Split]:
    """Write folder/<split>.bin for all pieces, and return {name: Split}."""
    names = ["train", "val"]
    if stages:
        names = [f"{stage}.{side}" for stage in stages.names for side in ("train", "val")] + ["val"]
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(open(f"{folder}/{name}.bin", "wb")) for name in names}
        splits = {name: Split(file, tok.vocab_size) for name, file in files.items()}
        results = run_all(encode_batch, pieces, tok, stages, workers)
        for result in stack.enter_context(contextlib.closing(results)):
            for name, found in result.items():
                split = splits[name]
                split.file.write(found.ids)
                split.hash.update(found.ids)
                split.counts += found.counts
                if stages:
                    ids = np.frombuffer(found.ids, tok.dtype)
                    split.occurs += np.bincount(ids, minlength=tok.vocab_size)
                    split.sample = min(split.sample, found.sample)
    return splits


# -----------------------------------------------------------------------------
# the stages' vocabularies, table and picture


def read_wordlist(path: str) -> list[str]:
    """Return the words of a list, the most frequent first: the first word of each line. Raise ValueError if
    it has none."""
    try:
        with open(path, encoding="utf-8-sig") as f:
            ranked = list(dict.fromkeys(word for line in f for word in words(line)[:1]))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8: convert it") from None
    if not ranked:
        raise ValueError(f"{path}: no words: give one a line, the most frequent first")
    return ranked


def choose_rows(counts: list[np.ndarray], share: float, first: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Return for each stage (its model's ids, the share of its text's tokens so far that they are).

    A stage keeps the ids of the stage before; the first one begins with `first`. Then come the most frequent
    ids of the text so far, until all cover `share` of its tokens, or, if share is above 1, until there are
    that many. The number is rounded up to a multiple of 128. The last stage has all.
    """
    rows, so_far, out = np.array(first), np.zeros_like(counts[0]), []
    for count in counts:
        # the other ids, most frequent first; covered[n]: the tokens that the rows and n of these are
        so_far = so_far + count
        rest = np.argsort(-so_far, kind="stable")
        rest = rest[~np.isin(rest, rows)]
        covered = so_far[rows].sum() + np.cumsum([0, *so_far[rest]])

        # how many of them become rows
        if share > 1:
            more = max(int(share) - len(rows), 0)
        else:
            more = np.searchsorted(covered, share * so_far.sum())
        more = min(more + -(len(rows) + more) % 128, len(rest))
        if len(out) == len(counts) - 1:
            more = len(rest)
        rows = np.concatenate([rows, rest[:more]])
        out.append((rows, float(covered[more] / max(covered[-1], 1))))
    return out


def write_stages(
    stages: Stages, covered: np.ndarray, tok: Tokenizer, share: float, splits: dict[str, Split], folder: str
) -> list[dict]:
    """Write spelling.bin and each stage's rows.bin. Return what meta.json says of the stages.

    covered: the share of the text's words that the n most frequent ones are, by n; empty with --by structure.
    """
    offsets, spelling = tok.spelling()
    spelling.tofile(f"{folder}/spelling.bin")
    first = np.flatnonzero(np.diff(offsets) == 1)
    first = first[spelling[offsets[first]] == first]  # what stands for itself, since it can't be spelled
    trains = [splits[f"{name}.train"] for name in stages.names]
    for train in trains:
        train.occurs[tok.bos] = 0  # isn't text
    chosen = choose_rows([train.occurs for train in trains], share, first)
    out = []
    for name, limit, train, (rows, rows_coverage) in zip(stages.names, stages.limits, trains, chosen):
        rows.astype(tok.dtype).tofile(f"{folder}/{name}.rows.bin")
        n_words = min(limit, len(covered) - 1)
        n_chunks, n_tokens, _ = train.counts.tolist()
        stage = {
            "name": name,
            "words": max(n_words, 0) if limit == math.inf else limit,
            "chunks": n_chunks,
            "tokens": n_tokens,
            "distinct_tokens": int((train.occurs > 0).sum()),
            "coverage": float(covered[n_words]) if len(covered) else None,
            "rows": len(rows),
            "rows_coverage": rows_coverage,
            "sample": train.sample[1],
        }
        out.append(stage)
    return out


def print_stages(stages: list[dict]) -> None:
    """Print the table of the stages, and a chunk of each."""
    heads = ("chunks", "tokens", "distinct", "coverage", "rows", "they cover")
    print(f"{'stage':14}" + "".join(f"{head:>12}" for head in heads))
    for s in stages:
        coverage = "-" if s["coverage"] is None else f"{s['coverage']:.1%}"
        counts = [f"{s[key]:12,}" for key in ("chunks", "tokens", "distinct_tokens")]
        print(f"{s['name']:14}{''.join(counts)}{coverage:>12}{s['rows']:12,}{s['rows_coverage']:12.2%}")
    for s in stages:
        text = textwrap.shorten(s["sample"], 400) or "no chunk"
        print(f"\n{s['name']}, for instance:\n" + textwrap.indent(textwrap.fill(text, 100), "  "))
    print()


def draw_report(path: str, stages: list[dict], covered: np.ndarray) -> None:
    """Draw how much of the text the most frequent words are, and how much text each stage adds."""
    import matplotlib
    from matplotlib.figure import Figure  # not pyplot, which may want a display

    fig = Figure(figsize=(11, 4), layout="constrained")
    axes = fig.subplots(1, 2 if len(covered) else 1, squeeze=False)
    colors = matplotlib.colormaps["viridis"](np.linspace(0.15, 0.85, len(stages)))
    if len(covered):  # over rank, a point for each stage
        ax = axes[0, 0]
        ax.plot(range(1, len(covered)), 100 * covered[1:], color="0.3")
        for s, color in zip(stages[:-1], colors):
            at = s["words"], 100 * s["coverage"]
            ax.plot(*at, "o", color=color, label=f"{at[0]:,} words: {at[1]:.1f} %")
        ax.legend(frameon=False)
        ax.set(xscale="log", ylim=(0, 102), xlabel="most frequent words", ylabel="% of all words in the text")
        ax.set_title("coverage over rank", loc="left")
        ax.grid(alpha=0.3)

    # a bar for each stage
    ax, total = axes[0, -1], max(sum(s["tokens"] for s in stages), 1)
    bars = ax.bar([s["name"] for s in stages], [s["tokens"] / 1e6 for s in stages], color=colors)
    said = [f"{s['tokens'] / 1e6:,.2f} M\n{s['tokens'] / total:.1%}\n{s['rows']:,} rows" for s in stages]
    ax.bar_label(bars, said, padding=2)
    ax.margins(y=0.25)
    ax.set(ylabel="million tokens for training")
    ax.set_title("tokens that each stage adds", loc="left")
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=130)


# -----------------------------------------------------------------------------
# the output folder


def list_stamps(folder: str) -> dict[str, tuple]:
    """Return {name: what tells a file from others, and from itself before a change}; {} without a folder."""
    if not os.path.lexists(folder):
        return {}
    stats = {entry.name: entry.stat(follow_symlinks=False) for entry in os.scandir(folder)}
    return {name: (stat.st_dev, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in stats.items()}


def is_mount(folder: str) -> bool:
    """Return whether the folder is a mount point. Unlike os.path.ismount, find a bind mount within one file
    system, too."""
    with contextlib.suppress(OSError):
        points = [line.split(b" ")[4] for line in Path("/proc/self/mountinfo").read_bytes().splitlines()]
        # a space in them is written \040
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


def replace(out: str, aside: str, mine: dict[str, tuple]) -> None:
    """Put the folder aside in the place of out. Delete of out only the files of `mine`, as they were.

    What else has come into out stays there. If that can't be, keep aside, renamed, and raise ValueError.
    """
    # exchange the folders
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

    # empty the old one
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


# -----------------------------------------------------------------------------
# all of it


class Text:
    """The documents of all files, which are read several times: to look for a split, to rank words, to
    tokenise. seen: what the last pass counted."""

    def __init__(self, files: list[str], args: argparse.Namespace) -> None:
        self.files, self.args, self.seen = files, args, {}
        self.marker = args.separator.strip().encode("utf-8", "surrogateescape")
        self.checksums = {}  # of each file's text, by path
        self.limit = args.val * 2**64  # documents of a hash below fall to val,
        self.cut_at = 0  # and of a single one what comes from this character on

    def bad(self, fault: str, remedy: str, length: int = 0) -> None:
        """Leave `length` bytes out, count them, and say so of the first 10 faults. Raise ValueError without
        --skip_bad."""
        if not self.args.skip_bad:
            raise ValueError(f"{fault}: {remedy}, or leave it out with --skip_bad")
        self.seen["bad"] += 1
        self.seen["bytes"] += length
        if self.seen["bad"] <= 10 and not self.looking:
            lost = f" ({length:,} bytes)" if length else ""
            print(f"left out: {fault}{lost}", file=sys.stderr)

    def read(self) -> Documents:
        """Yield the documents of all files. Raise ValueError if one has changed since an earlier pass."""
        for path in self.files:
            checksum = 0
            for text, start in read_file(path, self.args.field, self.marker, self.bad):
                checksum = zlib.crc32((text or "").encode(), checksum)
                yield text, start
            if self.checksums.setdefault(path, checksum) != checksum:
                raise ValueError(f"{path}: has changed since it was first read: wait until it is written")

    def pieces(self, looking: bool = False) -> Pieces:
        """Begin a pass, and return its pieces. looking: say nothing of faults, which the last pass does."""
        self.looking, self.seen = looking, collections.Counter(lowest=2**64)
        pieces = split_by_hash(self.read(), self.limit, self.seen)
        return split_at(pieces, self.cut_at) if self.cut_at else pieces

    def choose_split(self) -> None:
        """Read on until a document has fallen to val, about the 100th, and one to train. If there are none,
        choose another limit, or where to cut. Raise ValueError if there is too little text."""
        sides = set()
        for _, _, split in self.pieces(looking=True):
            sides.add(split)
            if len(sides) == 2:
                return
        if self.seen["documents"] > 1:
            said = "no document falls to val by its hash, or all do: taking the one of the lowest"
            print(said, file=sys.stderr)
            self.limit = self.seen["lowest"] + 1
            return
        if self.seen["documents"] == 1:
            print("only one document: cutting off its end for val", file=sys.stderr)
            end = self.seen["end"]
            self.cut_at = min(int(end * (1 - max(self.args.val, 0.01))), end - 1)
        if not self.cut_at:
            inputs = self.args.input
            more = f" and {len(inputs) - 1} more" if inputs[1:] else ""
            raise ValueError(f"{inputs[0]}{more}: too little text for a train and a val split")


def prepare(args: argparse.Namespace) -> None:
    """Make the folder args.out. Raise ValueError or OSError, with nothing written, if that can't be done."""
    # all that may fail before the work begins
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

    # the folder, beside its place, then in it
    text = Text(files, args)
    with make_aside(out) as aside:
        meta = write_folder(aside, args, text, tok, ranked)
        os.sync()
        replace(out, aside, mine)

    # what it holds
    if args.words:
        print_stages(meta["stages"])
    splits = meta["splits"]
    width = max(map(len, splits)) + 2
    print(f"{'split':{width}}{'documents':>12}{'tokens':>16}{'MB':>12}{'tokens/byte':>14}")
    for name, s in splits.items():
        rate = s["tokens"] / max(s["bytes"], 1)
        print(f"{name:{width}}{s['documents']:12,}{s['tokens']:16,}{s['bytes'] / 1e6:12,.2f}{rate:14.4f}")
    length = sum(s["bytes"] for name, s in splits.items() if not args.words or name != "val") / 1e6
    seconds, seen = time.time() - begun, text.seen
    print(
        f"{args.out}: {length:,.1f} MB in {seconds:.1f} s, {length / seconds:.1f} MB/s; left out: "
        f"{seen['empty']:,} empty documents, {seen['bad']:,} broken parts, {seen['bytes']:,} bytes of text"
    )


def rank_words(text: Text, tok: Tokenizer, ranked: list[str], workers: int) -> tuple[list[str], np.ndarray]:
    """Return (the words, the most frequent first, or `ranked` if it has any; the share of the text's words
    that the first 0, 1, 2, ... of them cover)."""
    table, n_words = collections.Counter(), 0
    for counted in run_all(count_words, text.pieces(looking=True), tok, None, workers):
        del counted["\0"]
        table.update(counted)
        n_words += counted.total()
        if len(table) > MOST_WORDS:  # the rarest make room
            table = collections.Counter(dict(table.most_common(MOST_WORDS // 2)))
    ranked = ranked or sorted(table, key=lambda word: (-table[word], word))
    return ranked, np.cumsum([0, *map(table.__getitem__, ranked)]) / max(n_words, 1)


def write_folder(
    folder: str, args: argparse.Namespace, text: Text, tok: Tokenizer, ranked: list[str]
) -> dict[str, object]:
    """Write all files of the folder, and return what meta.json holds. ranked: the words of --wordlist. Raise
    ValueError if there is too little text."""
    text.choose_split()

    # rank the words, which takes a pass of its own
    stages, covered = None, np.zeros(0)
    if args.words:
        if args.by == "vocabulary":
            ranked, covered = rank_words(text, tok, ranked, args.workers)
        ranks = {"\0": 0} | {word: rank for rank, word in enumerate(ranked[: max(args.words)], 1)}
        stages = Stages(args.by, args.words, ranks, args.known)

    # tokenise
    written = write_splits(text.pieces(), tok, stages, args.workers, folder)
    splits = {name: split.describe() for name, split in written.items()}
    trained = sum(split["documents"] for name, split in splits.items() if "train" in name)
    if not splits["val"]["documents"] or not trained:
        raise ValueError(f"{args.input[0]}: too little text for a train and a val split")

    # what tells of them
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
        meta["stages"] = write_stages(stages, covered, tok, args.rows, written, folder)
        if ranked:
            Path(folder, "words.txt").write_text("".join(f"{word}\n" for word in ranked[:100_000]), "utf-8")
        if args.report:
            draw_report(f"{folder}/report.png", meta["stages"], covered)
    Path(folder, "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
    tok.token_bytes().astype("<u2").tofile(f"{folder}/token_bytes.bin")
    if tok.model:
        Path(folder, MODEL_FILES[tok.kind]).write_bytes(tok.model)
    return meta


def parse_limits(text: str) -> list[int]:
    """Return the numbers of --words: rising whole numbers, then all. Raise ArgumentTypeError for another."""
    numbers = [int(n) for n in text.split(",")[:-1]] if re.fullmatch("([1-9][0-9]*,)+all", text) else []
    if not numbers or numbers != sorted(set(numbers)):
        raise argparse.ArgumentTypeError(f"{text}: give rising whole numbers, then all: 2000,5000,all")
    return numbers


def main(argv: list[str] | None = None) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    inputs = f"files, or folders of files, or {', '.join(SOURCES)}"
    add("--input", nargs="+", required=True, metavar="PATH", help=inputs)
    add("--out", required=True, metavar="FOLDER", help="the folder to make")
    names = "llama2 (default; fetched at first use), the path of a sentencepiece model or tokenizer.json, "
    names += "or a tiktoken encoding"
    add("--tokenizer", default="llama2", metavar="NAME", help=names)
    line = "the line between the documents of a .txt: <|doc|>"
    add("--separator", default="<|doc|>", metavar="LINE", help=line)
    add("--field", default="text", metavar="NAME", help="the field of .jsonl, or column of .parquet: text")
    side = "share of the documents for val, 0.01. A hash of its text decides, so a document falls on the "
    side += "same side in any input"
    add("--val", type=float, default=0.01, metavar="SHARE", help=side)
    limits = "make stages: the words that one must know for each; the last is all"
    add("--words", type=parse_limits, metavar="N,N,all", help=limits)
    known = "share of a chunk's words that must be known: 0.95"
    add("--known", type=float, default=0.95, metavar="SHARE", help=known)
    ranked = "a word a line, the most frequent first; default: rank the words of the text"
    add("--wordlist", metavar="FILE", help=ranked)
    kinds = ["vocabulary", "structure"]
    add("--by", choices=kinds, default="vocabulary", help="what makes a chunk difficult")
    rows = "a stage's own ids: the share of its tokens that they are, 0.998, or their number"
    add("--rows", type=float, default=0.998, metavar="SHARE", help=rows)
    add("--report", action="store_true", help="draw the stages: report.png")
    add("--workers", type=int, default=cores, metavar="N", help="processes; default: all cores")
    skipped = "leave out, and count, broken documents, lines and ends of files"
    add("--skip_bad", action="store_true", help=skipped)
    add("--force", action="store_true", help="overwrite a folder that prepare.py made")
    args = parser.parse_args(argv)
    if not 0 < args.val < 1 or args.workers < 1:
        parser.error("--val must lie between 0 and 1, and --workers be 1 or more")
    if not 0 < args.known <= 1 or not 0 < args.rows < math.inf:
        parser.error("--known must lie between 0 and 1, and --rows above 0")
    if re.search(r"[\n\r]", args.separator.strip()):
        parser.error("--separator must be one line")
    for name in ("report", "wordlist", "by", "known", "rows"):
        if not args.words and getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name} is about stages: give --words too")
    if args.by == "structure" and (args.wordlist or args.known != parser.get_default("known")):
        parser.error("--wordlist and --known are about words: leave them out with --by structure")
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
