"""Writes tests/data: tiny models of the three families, and what transformers and PEFT compute with them.

    pip install -r tests/requirements.txt
    python tests/make_tiny.py           # everything
    python tests/make_tiny.py weights   # weights.safetensors alone

Each family takes the paths that the bigger references leave out: BLOOM has three heads and takes its residual
after the norm, GPT-2 is stored in f16 with an inner size of its own and scores divided by the layer's number,
Llama has several files, an untied head, biases and llama3's rotary scaling.

  expected.json         rows (ids, labels, pads_before), the order and loss of every training step under a
                        DataLoader seeded 0, greedy continuations behind the trained prompt
  expected.safetensors  logits.N of row N without a prompt; init, grad, trained: the prompt; loss of the first batch
  weights.safetensors   the gradient of every weight, by name, of the mean loss over all labels of the first five rows'
                        tokens, without padding; loss
"""
import json, os, shutil, sys
import torch
from peft import PromptTuningConfig, PromptTuningInit, TaskType, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import DataLoader
from transformers import (AutoModelForCausalLM, BloomConfig, GPT2Config, LlamaConfig, PreTrainedTokenizerFast,
                          default_data_collator, get_linear_schedule_with_warmup)

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data")
TEXTS = [("the tram was late again", "bad"), ("lovely bread today", "good"), ("my order came broken", "bad"),
         ("thank you for the quick help", "good"), ("nobody answers the phone", "bad"), ("great seats", "good"),
         ("the room was cold and loud", "bad"), ("what a kind driver", "good"), ("still no water", "bad"),
         ("best soup in town", "good")]
LENGTH, PROMPT, EPOCHS, BATCH, RATE = 24, 4, 4, 4, 3e-2
SPECIAL = dict(bos_token_id=1, eos_token_id=2, pad_token_id=3)


def tokenizer():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.train_from_iterator([f"{a} : {b}" for a, b in TEXTS], trainers.BpeTrainer(
        vocab_size=80, special_tokens=["<unk>", "<s>", "</s>", "<pad>"], show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=t, unk_token="<unk>", bos_token="<s>", eos_token="</s>",
                                   pad_token="<pad>")


def config(family, vocab):
    if family == "bloom":
        return BloomConfig(vocab_size=vocab, hidden_size=24, n_layer=2, n_head=3, hidden_dropout=0., attention_dropout=0.,
                           apply_residual_connection_post_layernorm=True, **SPECIAL)
    if family == "gpt2":
        return GPT2Config(vocab_size=vocab, n_embd=16, n_layer=2, n_head=2, n_inner=40, n_positions=48, resid_pdrop=0.,
                          embd_pdrop=0., attn_pdrop=0., scale_attn_by_inverse_layer_idx=True, **SPECIAL)
    rope = dict(rope_type="llama3", rope_theta=100.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=32)
    return LlamaConfig(vocab_size=vocab, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                       intermediate_size=36, max_position_embeddings=128, rope_parameters=rope, tie_word_embeddings=False,
                       attention_bias=True, mlp_bias=True, **SPECIAL)


def write(family):
    d = os.path.join(OUT, family)
    shutil.rmtree(d, ignore_errors=True)
    os.makedirs(d)
    tok = tokenizer()
    tok.save_pretrained(d)
    torch.manual_seed(0)
    m = AutoModelForCausalLM.from_config(config(family, len(tok)))
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for n, p in m.named_parameters():
            mean = 1. if p.dim() == 1 and "weight" in n else 0.
            p.copy_(mean + (0.1 if p.dim() == 1 else 0.2) * torch.randn(p.shape, generator=g))
    m.tie_weights()
    (m.half() if family == "gpt2" else m).save_pretrained(d, max_shard_size="12KB" if family == "llama" else "1GB")
    load = lambda: AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation="eager")

    rows, padded = [], []
    for i, (text, label) in enumerate(TEXTS):
        s, l = tok(f"{text} : ")["input_ids"], tok(label)["input_ids"] + [3]
        ids, labels = s + l, [-100] * len(s) + l
        pads = LENGTH - len(ids)
        assert pads > 0, (text, len(ids))
        rows.append({"ids": ids, "labels": labels, "pads_before": pads})
        padded.append({"input_ids": torch.tensor([3] * pads + ids), "labels": torch.tensor([-100] * pads + labels),
                       "attention_mask": torch.tensor([0] * pads + [1] * len(ids)), "row": i})
    tensors = {}
    with torch.no_grad():
        base = load()
        for i in (0, 1):
            o = base(input_ids=padded[i]["input_ids"][None], attention_mask=padded[i]["attention_mask"][None])
            tensors[f"logits.{i}"] = o.logits[0, rows[i]["pads_before"]:].contiguous()
    m = get_peft_model(load(), PromptTuningConfig(
        task_type=TaskType.CAUSAL_LM, prompt_tuning_init=PromptTuningInit.TEXT, num_virtual_tokens=PROMPT,
        prompt_tuning_init_text="good or bad", tokenizer_name_or_path=d))
    prompt = m.prompt_encoder["default"].embedding.weight
    tensors["init"] = prompt.detach().clone()
    batch = default_data_collator(padded[:BATCH])
    batch.pop("row")
    loss = m(**batch).loss
    loss.backward()
    tensors["loss"], tensors["grad"] = loss.detach().reshape(1), prompt.grad.clone()
    m.zero_grad()

    data = DataLoader(padded, shuffle=True, collate_fn=default_data_collator, batch_size=BATCH,
                      generator=torch.Generator().manual_seed(0))
    opt = torch.optim.AdamW(m.parameters(), lr=RATE)
    schedule = get_linear_schedule_with_warmup(opt, 0, len(data) * EPOCHS)
    steps = []
    for _ in range(EPOCHS):
        for b in data:
            order = b.pop("row").tolist()
            loss = m(**b).loss
            loss.backward()
            opt.step(), schedule.step(), opt.zero_grad()
            steps.append({"rows": order, "loss": loss.item()})
    tensors["trained"] = prompt.detach().clone()
    save_file(tensors, os.path.join(d, "expected.safetensors"))
    m.eval()
    generations = []
    for text, _ in TEXTS[:5]:
        b = tok(f"{text} : ", return_tensors="pt")
        ids = m.generate(input_ids=b["input_ids"], attention_mask=b["attention_mask"], max_new_tokens=6, eos_token_id=3,
                         do_sample=False)[0].tolist()
        n = b["input_ids"].shape[1]
        generations.append({"ids": ids[:n], "new": ids[n:]})
    expected = {"init_text_ids": tok("good or bad")["input_ids"], "virtual_tokens": PROMPT, "epochs": EPOCHS,
                "batch_size": BATCH, "learning_rate": RATE, "parameters": base.num_parameters(), "rows": rows, "steps": steps,
                "generations": generations}
    with open(os.path.join(d, "expected.json"), "w") as f:
        json.dump(expected, f, indent=1)
        f.write("\n")
    print(family, steps[0]["loss"], steps[-1]["loss"], [g["new"] for g in generations])


def weights(family):
    d = os.path.join(OUT, family)
    m = AutoModelForCausalLM.from_pretrained(d, dtype=torch.float32, attn_implementation="eager")
    with open(os.path.join(d, "expected.json")) as f:
        rows = [torch.tensor(r["ids"]) for r in json.load(f)["rows"][:5]]
    nll = sum(torch.nn.functional.cross_entropy(m(input_ids=r[None]).logits[0, :-1], r[1:], reduction="sum") for r in rows)
    loss = nll / sum(len(r) - 1 for r in rows)
    loss.backward()
    gradients = {n: p.grad for n, p in m.named_parameters()}
    save_file({"loss": loss.detach().reshape(1), **gradients}, os.path.join(d, "weights.safetensors"))
    print(family, "weights", loss.item())


if __name__ == "__main__":
    torch.set_num_threads(1)
    for family in ("bloom", "gpt2", "llama"):
        if sys.argv[1:] != ["weights"]:
            write(family)
        weights(family)
