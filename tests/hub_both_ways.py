"""hub_both_ways.py PIPE HUB_SERVER: the guide from the Hub to the Hub, and Python at every door of it.

    pip install -r tests/requirements.txt

PIPE is the program, HUB_SERVER what `cargo build --example hub_server` makes. The guide's pipeline runs as the
repository has it, on a small BLOOM and ought/raft as the Hub lays it out, up to the push; a clone elsewhere generates
from what was pushed, by its name; Python's PEFT loads the same and generates the same. Either side then finds in its
cache what the other one downloaded.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import serving

PIPE, SERVER = map(os.path.abspath, sys.argv[1:3])
HERE = os.path.dirname(os.path.abspath(__file__))
TOKEN = "hf_both_ways"
MODEL, PUSHED = "tester/bloom", "your-name/bloomz-560m_PROMPT_TUNING_CAUSAL_LM"
GUIDE, GENERATE = "twitter_prompt_tuning.yaml", "generate_from_hub.yaml"

work = tempfile.mkdtemp()
hub = os.path.join(work, "hub")
shutil.copytree(os.path.join(HERE, "..", "pipelines", "embedded", "model"), os.path.join(hub, "models", MODEL, "main"))
raft = os.path.join(hub, "datasets", "ought", "raft")
os.makedirs(os.path.join(raft, "main"))
open(os.path.join(raft, "main", "raft.py"), "w").write("import datasets\n")
open(os.path.join(raft, "main", "README.md"), "w").write("---\nlicense: other\n---\n# RAFT\n")
converted = os.path.join(raft, "refs%2Fconvert%2Fparquet", "twitter_complaints", "train")
os.makedirs(converted)
shutil.copy(os.path.join(HERE, "data", "raft", "0000.parquet"), converted)

log = os.path.join(work, "requests.jsonl")
server, endpoint = serving.serve([SERVER, "--root", hub, "--token", TOKEN, "--log", log])


def environment(home, **more):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING", "PIPE_"))}
    return env | {"HF_ENDPOINT": endpoint, "HF_HOME": home, "NO_COLOR": "1", "HF_HUB_DISABLE_TELEMETRY": "1"} | more


def pipe(folder, *arguments, **env):
    ran = subprocess.run([PIPE, *arguments], cwd=folder, env=environment(**env), capture_output=True, text=True)
    assert ran.returncode == 0, (arguments, ran.stdout, ran.stderr)
    assert TOKEN not in ran.stdout + ran.stderr
    return ran


def clone(name):
    folder = os.path.join(work, name)
    os.makedirs(os.path.join(folder, "pipelines"))
    for manifest in (GUIDE, GENERATE):
        shutil.copy(os.path.join(HERE, "..", "pipelines", manifest), os.path.join(folder, "pipelines"))
    return folder


def generated(folder):
    path = os.path.join(folder, ".pipe", "runs", "latest", "stages", "answers", "generations.jsonl")
    return [json.loads(line)["text"] for line in open(path)]


def python(home, code, **env):
    ran = subprocess.run([sys.executable, "-c", code], env=environment(home, **env), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


# From the Hub to the Hub.
first, mine = clone("first"), os.path.join(work, "home")
pipe(first, "run", f"pipelines/{GUIDE}", "--set", f"model={MODEL}", "--set", "epochs=8", "--set", "push=true",
     home=mine, HF_TOKEN=TOKEN)
texts = generated(first)
for folder, _, files in os.walk(first):
    for file in files:
        assert TOKEN.encode() not in open(os.path.join(folder, file), "rb").read(), file
for line in open(log):
    request = json.loads(line)
    assert request["host"] == "endpoint" or TOKEN not in line, line

# A clone elsewhere, with nothing but the name.
second = clone("second")
pipe(second, "run", f"pipelines/{GENERATE}", "--set", f"adapter={PUSHED}", home=os.path.join(work, "other"))
assert generated(second) == texts, (generated(second), texts)

# Python's PEFT, by the same name, from the same server.
LOAD = f"""
import json, torch, transformers, peft
prompt = json.load(open({os.path.join(second, "prompt.json")!r}))
tokenizer = transformers.AutoTokenizer.from_pretrained({MODEL!r})
model = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained({MODEL!r}, dtype=torch.float32), {PUSHED!r})
ids = tokenizer(prompt, return_tensors="pt")
out = model.generate(**ids, max_new_tokens=10, do_sample=False, eos_token_id=3)
print(json.dumps(tokenizer.decode(out[0][ids["input_ids"].shape[1]:], skip_special_tokens=True)))
"""
path = os.path.join(second, ".pipe", "runs", "latest", "stages", "answers", "generations.jsonl")
with open(os.path.join(second, "prompt.json"), "w") as file:
    json.dump(json.loads(open(path).readline())["prompt"], file)
theirs = os.path.join(work, "theirs")
assert json.loads(python(theirs, LOAD).splitlines()[-1]) == texts[0]

# What either downloaded, the other finds: the server is gone by then.
serving.end(server)
assert json.loads(python(os.path.join(work, "other"), LOAD, HF_HUB_OFFLINE="1").splitlines()[-1]) == texts[0]
third = clone("third")
pipe(third, "run", f"pipelines/{GENERATE}", "--set", f"adapter={PUSHED}", "--offline", home=theirs)
assert generated(third) == texts

shutil.rmtree(work)
print("from the Hub to the Hub and back, in Rust and in Python:", texts)
