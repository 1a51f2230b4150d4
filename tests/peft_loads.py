"""peft_loads.py MODEL RUN: Python's PEFT loads the adapter of a run onto the same weights and computes the same.

    pip install -r tests/requirements.txt

Compares the loss that `evaluate` recorded row by row with the loss PEFT computes for the same rows, and the greedy
text of `generate`. MODEL is a Hugging Face folder, RUN a folder under .pipe/runs with stages prompt, tokens, scores
and answers.
"""
import json
import os
import sys

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

model_folder, run = sys.argv[1:3]
stages = os.path.join(run, "stages")
base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="eager")
tokenizer = AutoTokenizer.from_pretrained(model_folder)
peft = PeftModel.from_pretrained(base, os.path.join(stages, "prompt")).eval()
prompt = peft.prompt_encoder["default"].embedding.weight
size = os.path.getsize(os.path.join(stages, "prompt", "adapter_model.safetensors"))
assert size < prompt.numel() * 4 + 512, size
print("prompt", tuple(prompt.shape), "adapter of", size, "bytes")


def lines(*path):
    with open(os.path.join(stages, *path), encoding="utf-8") as file:
        return [json.loads(line) for line in file]


worst = 0.0
rows = lines("scores", "predictions.jsonl")
with torch.no_grad():
    for row in rows:
        prompt_ids, target_ids, pads = row["prompt_ids"], row["target_ids"], row["pads_before"]
        ids = torch.tensor([prompt_ids + target_ids])
        labels = torch.tensor([[-100] * (pads + len(prompt_ids)) + target_ids])
        padded = torch.cat([torch.full((1, pads), tokenizer.pad_token_id or 0, dtype=torch.long), ids], 1)
        mask = torch.tensor([[0] * pads + [1] * ids.shape[1]])
        loss = peft(input_ids=padded, attention_mask=mask, labels=labels).loss.item()
        worst = max(worst, abs(loss - row["loss"]) / max(abs(loss), 1.0))
print(len(rows), "rows, largest relative difference of a row's loss", worst)
assert worst < 1e-4, worst

for row in lines("answers", "generations.jsonl"):
    encoded = tokenizer(row["prompt"], return_tensors="pt")
    ids, mask, stop = encoded["input_ids"], encoded["attention_mask"], row["eos_token_id"]
    most = row["max_new_tokens"]
    out = peft.generate(input_ids=ids, attention_mask=mask, max_new_tokens=most, do_sample=False, eos_token_id=stop)
    ours = row["ids"]
    theirs = out[0][ids.shape[1]:].tolist()
    assert theirs[: len(ours)] == ours and all(t in stop for t in theirs[len(ours):]), (theirs, ours)
    print(repr(row["text"]))
print("PEFT computes the same")
