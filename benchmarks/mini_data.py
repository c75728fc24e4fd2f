"""Lay out the data of recipes/mini.yaml in one folder, which the recipe calls $BRD_DATA.

    python benchmarks/mini_data.py FOLDER OUT

FOLDER holds corpus/, tasks/, bigbench/, ner/ and qa/ (docs/results says which public sources these are). Tasks and gold
data are linked as they are. The corpus becomes one JSON lines file a genre, one record a book or article: the books'
file has chapters as documents, which are joined, so that a book is in one part of the split only.
"""

import json
import sys
from pathlib import Path

GENRES = {
    "encyclopedia": "enwiki_sample.txt",
    "featured_articles": "wikitext2_test_detok.txt",
    "web": "ewt_train_web.txt",
    "news": "onestopenglish_adv.txt",
    "books": "standardebooks.txt",
}
# Number of the first chapter of each of the ten books: Doyle, Franklin, Washington, Darwin, Wells, Jerome, Verne,
# Montgomery, Twain, Wodehouse.
BOOKS = (0, 12, 32, 51, 73, 100, 120, 169, 207, 270)


def main(folder: Path, out: Path) -> None:
    (out / "corpus").mkdir(parents=True, exist_ok=True)
    for name in ("tasks", "bigbench", "ner", "qa"):
        if not (out / name).exists():
            (out / name).symlink_to((folder / name).resolve(), target_is_directory=True)
    for genre, name in GENRES.items():
        text = (folder / "corpus" / name).read_text(encoding="utf-8")
        documents = [d.strip("\n") for d in text.split("\n\n") if d.strip()]
        if genre == "books":
            documents = ["\n".join(documents[a:b]) for a, b in zip(BOOKS, (*BOOKS[1:], None), strict=True)]
        with (out / "corpus" / f"{genre}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": d}, ensure_ascii=False) + "\n" for d in documents)
        print(f"{genre}: {len(documents)} documents, {sum(len(d.split()) for d in documents)} words")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
