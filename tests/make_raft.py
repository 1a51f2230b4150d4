"""Writes tests/data/raft/0000.parquet: messages with the names of their classes, as `datasets` writes them.

    pip install -r tests/requirements.txt
    python tests/make_raft.py
"""
import os
from datasets import ClassLabel, Dataset, Features, Value

MESSAGES = """my parcel never came and nobody answers
thank you, the driver was very kind
the app loses my basket every time
we have a new shop in the old town
why was I charged twice this month
see you all at the market on Sunday
no water since this morning, and no word from you
the new tea is lovely
your queue has been stuck for an hour
happy birthday to the whole team
the lamp broke after two days
good morning from the harbour""".splitlines()
CLASSES = ["Unlabeled", "complaint", "no complaint"]

rows = {"Tweet text": MESSAGES, "ID": list(range(len(MESSAGES))), "Label": [1 + i % 2 for i in range(len(MESSAGES))]}
features = Features({"Tweet text": Value("string"), "ID": Value("int32"), "Label": ClassLabel(names=CLASSES)})
folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "raft")
os.makedirs(folder, exist_ok=True)
Dataset.from_dict(rows, features=features).to_parquet(os.path.join(folder, "0000.parquet"))
