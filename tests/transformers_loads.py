"""transformers_loads.py RUN: transformers loads the model folder of a run and computes the same loss.

    pip install -r tests/requirements.txt

Compares the loss that `evaluate` recorded row by row with the loss transformers computes for the same rows. RUN is a
folder under .pipe/runs with stages tuned (fine_tune) and scores.
"""
import json
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

stages = os.path.join(sys.argv[1], "stages")
folder = os.path.join(stages, "tuned", "model")
model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
tokenizer = AutoTokenizer.from_pretrained(folder)
model.eval()
with open(os.path.join(stages, "scores", "predictions.jsonl"), encoding="utf-8") as file:
    rows = [json.loads(line) for line in file]
worst = 0.0
with torch.no_grad():
    for row in rows:
        ids = torch.tensor([row["prompt_ids"] + row["target_ids"]])
        logits = model(input_ids=ids).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:]).item()
        worst = max(worst, abs(loss - row["loss"]) / row["loss"])
print(len(rows), "rows, losses differ by at most", worst, "relative;", tokenizer.vocab_size, "tokens")
assert worst < 1e-3, worst
