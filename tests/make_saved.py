"""Writes tests/saved: folders of `save_to_disk`, and the rows they hold as jsonl.

    pip install -r tests/requirements.txt
    python tests/make_saved.py

  one/          a Dataset in three shards
  splits/       a DatasetDict: train in two shards, test in one
  labelled.parquet   three rows with a class label, as `to_parquet` writes them
  split.jsonl   the rows of each, as `to_json` writes them (splits.SPLIT.jsonl, one.jsonl)
"""
import os, shutil
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "saved")
FEATURES = Features({
    "id": Value("int32"), "text": Value("string"), "note": Value("large_string"), "score": Value("float64"),
    "weight": Value("float32"), "answered": Value("bool"), "nothing": Value("null"),
    "label": ClassLabel(names=["Unlabeled", "complaint", "no complaint"]),
    "answers": {"text": List(Value("string")), "score": List(Value("int64"))},
    "links": List({"url": Value("string"), "at": Value("int64")}),
})


def row(i):
    texts = [f"answer {k} of {i}, longer than the twelve bytes of a view" for k in range(i % 3)]
    return dict(id=i, text=f"트윗 {i}", note=None if i % 4 == 1 else f"note {i}", score=i / 4, weight=i / 2,
                answered=i % 2 == 0, nothing=None, label=i % 3, answers=dict(text=texts, score=[i] * len(texts)),
                links=[dict(url=f"u{i}", at=i)] if i % 2 else [])


def rows(indices):
    return Dataset.from_list([row(i) for i in indices], features=FEATURES)


shutil.rmtree(OUT, ignore_errors=True)
os.makedirs(OUT)
one = rows(range(7)).select([6, 0, 1, 2, 3, 4, 5])  # saved in this order
one.save_to_disk(f"{OUT}/one", num_shards=3)
splits = DatasetDict(train=rows(range(5)).with_format("numpy", columns=["id"]), test=rows([5, 6]))
splits.save_to_disk(f"{OUT}/splits", num_shards=dict(train=2, test=1))
one.to_json(f"{OUT}/one.jsonl", force_ascii=False)
for name, split in splits.items():
    split.with_format(None).to_json(f"{OUT}/splits.{name}.jsonl", force_ascii=False)
labels = Features({"text": FEATURES["text"], "label": FEATURES["label"]})
Dataset.from_dict(dict(text=["a", "b", "c"], label=[1, 2, 1]), features=labels).to_parquet(f"{OUT}/labelled.parquet")
