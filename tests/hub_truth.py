"""hub_truth.py HUB_SERVER: the tests' Hub is one to Python's own clients.

    pip install -r tests/requirements.txt

HUB_SERVER is the program that `cargo build --example hub_server` makes. What is asserted here is what huggingface_hub,
datasets, transformers and peft see of it, so that what `pipe` sees of it is what it would see of the Hub.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile

import serving

work = tempfile.mkdtemp()
os.environ.update(HF_HOME=os.path.join(work, "home"), HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HF_HUB_OFFLINE", None)
TOKEN = "hf_truth"
TINY = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "bloom")


def write(path, content):
    path = os.path.join(work, "root", path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def read(path):
    with open(path, "rb") as file:
        return file.read()


# A model, a dataset of parquet with two configurations in its card, a script dataset with its parquet beside it.
weights = bytes(range(256)) * 1000
write("models/ada/tiny/main/config.json", '{"model_type": "bloom"}')
write("models/ada/tiny/main/sub/deep/notes.txt", "hello\n")
write("models/ada/tiny/main/model.safetensors", weights)
write("models/ada/tiny/main/README.md", "---\nlibrary_name: peft\nbase_model: ada/base\n---\n# Tiny\n")
write("models/ada/tiny/other/config.json", '{"model_type": "gpt2"}')
write("models/ada/secret/main/config.json", "{}")
write("models/ada/secret/.private", "")
write("models/ada/gated/main/config.json", "{}")
write("models/ada/gated/.gated", "")
for name in os.listdir(TINY):
    write(f"models/ada/bloom/main/{name}", read(os.path.join(TINY, name)))

import pyarrow as pa
import pyarrow.parquet as pq


def parquet(texts, labels):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": texts, "label": labels}), sink)
    return sink.getvalue().to_pybytes()


CARD = """---
configs:
- config_name: first
  data_files:
  - split: train
    path: first/train-*.parquet
  - split: test
    path: first/test-*.parquet
- config_name: second
  data_files: second/*.parquet
dataset_info:
- config_name: first
  features:
  - name: text
    dtype: string
  - name: label
    dtype:
      class_label:
        names:
          '0': bad
          '1': good
---
# Messages
"""
write("datasets/ada/messages/main/README.md", CARD)
write("datasets/ada/messages/main/first/train-00000.parquet", parquet(["a", "b", "c"], [0, 1, 0]))
write("datasets/ada/messages/main/first/test-00000.parquet", parquet(["d"], [1]))
write("datasets/ada/messages/main/second/data.parquet", parquet(["e", "f"], [1, 1]))
write("datasets/ada/script/main/script.py", "raise SystemExit\n")
write("datasets/ada/script/refs%2Fconvert%2Fparquet/tweets/train/0000.parquet", parquet(["x", "y"], [0, 1]))

def start(*options):
    command = [sys.argv[1], "--root", os.path.join(work, "root"), "--token", TOKEN, *options]
    return serving.serve(command)[1]


log = os.path.join(work, "requests.jsonl")
os.environ["HF_ENDPOINT"] = start("--page-size", "2", "--log", log)

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, errors
from huggingface_hub.file_download import hf_hub_url

ENDPOINT = os.environ["HF_ENDPOINT"]
anonymous, api = HfApi(token=False), HfApi(token=TOKEN)


def refused(kind, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except kind as error:
        return error
    raise AssertionError(f"{kind.__name__} was to come of {call}")


def requests(host=None):
    with open(log, encoding="utf-8") as file:
        return [request for request in map(json.loads, file) if host in (None, request["host"])]


def reading():
    info = anonymous.model_info("ada/tiny", files_metadata=True)
    files = {sibling.rfilename: sibling for sibling in info.siblings}
    assert sorted(files) == ["README.md", "config.json", "model.safetensors", "sub/deep/notes.txt"], files
    assert info.library_name == "peft" and info.card_data.base_model == "ada/base", info
    assert info.private is False and info.gated is False and info.author == "ada"
    assert files["config.json"].blob_id == git_oid(b'{"model_type": "bloom"}') and files["config.json"].lfs is None
    assert files["model.safetensors"].lfs.sha256 == hashlib.sha256(weights).hexdigest()
    assert files["model.safetensors"].size == len(weights)
    other = anonymous.model_info("ada/tiny", revision="other")
    assert other.sha != info.sha and [s.rfilename for s in other.siblings] == ["config.json"], other
    assert anonymous.model_info("ada/tiny", revision=info.sha).sha == info.sha
    assert anonymous.dataset_info("ada/messages").id == "ada/messages"
    refs = anonymous.list_repo_refs("ada/script", repo_type="dataset")
    assert [c.ref for c in refs.converts] == ["refs/convert/parquet"] and [b.name for b in refs.branches] == ["main"]

    # Seven entries in pages of two.
    before = len(requests())
    tree = {entry.path: entry for entry in anonymous.list_repo_tree("ada/tiny", recursive=True)}
    assert sorted(tree) == ["README.md", "config.json", "model.safetensors", "sub", "sub/deep", "sub/deep/notes.txt"]
    assert len(requests()) - before == 3, requests()[before:]
    assert tree["model.safetensors"].lfs.sha256 == files["model.safetensors"].lfs.sha256
    assert hasattr(tree["sub"], "tree_id") and not hasattr(tree["config.json"], "tree_id")
    flat = [entry.path for entry in anonymous.list_repo_tree("ada/tiny", "sub", expand=True)]
    assert flat == ["sub/deep"], flat
    paths = anonymous.get_paths_info("ada/tiny", ["config.json", "sub", "nothing"], expand=True)
    assert [p.path for p in paths] == ["config.json", "sub"] and paths[0].last_commit.oid == info.sha, paths
    return info


def trees_are_gits(info):
    """Commits have the ids that git gives their trees."""
    folder = os.path.join(work, "root/models/ada/tiny/main")
    if shutil.which("git") is None:
        return print("skipped: no git")
    repo = os.path.join(work, "git")
    shutil.copytree(folder, repo)
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{hashlib.sha256(weights).hexdigest()}\nsize {len(weights)}\n"
    with open(os.path.join(repo, "model.safetensors"), "w", encoding="utf-8") as file:
        file.write(pointer)
    git = lambda *words: subprocess.run(["git", *words], cwd=repo, check=True, capture_output=True, text=True).stdout
    git("init", "-q")
    git("add", "-A")
    git("-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "x")
    ours = {e.path: e.tree_id for e in anonymous.list_repo_tree("ada/tiny", recursive=True) if hasattr(e, "tree_id")}
    theirs = {name: git("rev-parse", f"HEAD:{name}").strip() for name in ours}
    assert ours == theirs and len(ours) == 2, (ours, theirs)


def downloading(info):
    folder = anonymous.snapshot_download("ada/tiny")
    cache = os.path.join(constants.HF_HUB_CACHE, "models--ada--tiny")
    assert folder == os.path.join(cache, "snapshots", info.sha), folder
    assert read(os.path.join(cache, "refs", "main")).decode() == info.sha
    assert read(os.path.join(folder, "model.safetensors")) == weights
    assert read(os.path.join(folder, "sub/deep/notes.txt")) == b"hello\n"
    blobs = set(os.listdir(os.path.join(cache, "blobs")))
    assert {hashlib.sha256(weights).hexdigest(), git_oid(b"hello\n")} <= blobs and len(blobs) == 4, blobs
    assert os.path.basename(os.readlink(os.path.join(folder, "sub/deep/notes.txt"))) == git_oid(b"hello\n")
    assert read(anonymous.hf_hub_download("ada/tiny", "config.json", revision="other")) == b'{"model_type": "gpt2"}'
    # Large files come from the other host, and the token stays away from it.
    shutil.rmtree(cache)
    api.hf_hub_download("ada/tiny", "model.safetensors")
    storage = requests("storage")
    assert len(storage) == 2 and all(r["target"].startswith("/cdn/") for r in storage), storage
    assert TOKEN not in json.dumps(storage) and TOKEN in json.dumps(requests("endpoint"))
    # Parts of a file.
    from huggingface_hub.utils import get_session

    url = hf_hub_url("ada/tiny", "model.safetensors")
    part = get_session().get(url, headers={"Range": "bytes=300-309"}, follow_redirects=True)
    assert part.status_code == 206 and part.content == weights[300:310], part
    assert part.headers["Content-Range"] == f"bytes 300-309/{len(weights)}", part.headers
    behind = get_session().get(url, headers={"Range": f"bytes={len(weights)}-"}, follow_redirects=True)
    assert behind.status_code == 416, behind


def refusing():
    refused(errors.RepositoryNotFoundError, anonymous.model_info, "ada/nothing")
    assert refused(errors.RepositoryNotFoundError, api.model_info, "ada/nothing").response.status_code == 404
    refused(errors.RevisionNotFoundError, anonymous.model_info, "ada/tiny", revision="nothing")
    refused(errors.EntryNotFoundError, anonymous.hf_hub_download, "ada/tiny", "nothing.json")
    refused(errors.RepositoryNotFoundError, anonymous.model_info, "ada/secret")
    assert api.model_info("ada/secret").private is True
    assert read(api.hf_hub_download("ada/secret", "config.json")) == b"{}"
    wrong = refused(errors.HfHubHTTPError, HfApi(token="hf_wrong").model_info, "ada/tiny")
    assert wrong.response.status_code == 401, wrong
    assert anonymous.model_info("ada/gated").gated == "manual"
    refused(errors.GatedRepoError, anonymous.hf_hub_download, "ada/gated", "config.json")
    assert refused(errors.GatedRepoError, api.hf_hub_download, "ada/gated", "config.json").response.status_code == 403
    assert api.whoami()["name"] == "tester"
    refused(errors.HfHubHTTPError, HfApi(token="hf_wrong").whoami)


def loading():
    from datasets import get_dataset_config_names, load_dataset

    assert get_dataset_config_names("ada/messages") == ["first", "second"]
    first = load_dataset("ada/messages", "first")
    assert {name: split.num_rows for name, split in first.items()} == {"train": 3, "test": 1}, first
    assert first["train"].features["label"].names == ["bad", "good"] and first["train"]["text"][:] == ["a", "b", "c"]
    assert load_dataset("ada/messages", "second", split="train")["text"][:] == ["e", "f"]
    converted = load_dataset("ada/script", data_dir="tweets", revision="refs/convert/parquet", split="train")
    assert converted["text"][:] == ["x", "y"], converted

    # What `datasets` pushes, it loads.
    from datasets import Dataset

    Dataset.from_dict({"text": ["p", "q"]}).push_to_hub("ada/pushed", token=TOKEN)
    pushed = load_dataset("ada/pushed", split="train", token=TOKEN)
    assert pushed["text"][:] == ["p", "q"] and api.dataset_info("ada/pushed").card_data["dataset_info"], pushed

    import torch
    from peft import PeftModel, PromptTuningConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained("ada/bloom").eval()
    tokenizer = AutoTokenizer.from_pretrained("ada/bloom")
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    local = AutoModelForCausalLM.from_pretrained(TINY).eval()
    assert torch.equal(model(ids).logits, local(ids).logits)
    tuned = get_peft_model(model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    with torch.no_grad():
        expected = tuned(ids).logits
    tuned.push_to_hub("ada/adapter", token=TOKEN)
    assert "adapter_model.safetensors" in api.list_repo_files("ada/adapter")
    base = AutoModelForCausalLM.from_pretrained("ada/bloom")
    with torch.no_grad():
        assert torch.equal(PeftModel.from_pretrained(base, "ada/adapter").eval()(ids).logits, expected)


def pushing(repo):
    """Everything a push does, whichever way large files go."""
    refused(errors.RepositoryNotFoundError, api.create_commit, repo, [], commit_message="x")
    refused(errors.HfHubHTTPError, anonymous.create_repo, repo)
    url = api.create_repo(repo, private=True)
    assert url == f"{ENDPOINT}/{repo}" and api.model_info(repo).private is True, url
    assert refused(errors.HfHubHTTPError, api.create_repo, repo).response.status_code == 409
    assert api.create_repo(repo, exist_ok=True) == url
    assert api.list_repo_files(repo) == [".gitattributes"]

    big = os.urandom(300_000) + bytes(100_000)
    folder = tempfile.mkdtemp(dir=work)
    for name, content in {"config.json": b"{}", "adapter_model.safetensors": big, "a/b.txt": b"b"}.items():
        os.makedirs(os.path.dirname(os.path.join(folder, name)), exist_ok=True)
        with open(os.path.join(folder, name), "wb") as file:
            file.write(content)
    first = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="All of it")
    head = api.model_info(repo).sha
    assert first.oid == head and first.commit_url == f"{ENDPOINT}/{repo}/commit/{head}", first
    assert read(api.hf_hub_download(repo, "adapter_model.safetensors")) == big
    assert read(api.hf_hub_download(repo, "a/b.txt")) == b"b"
    assert [c.title for c in api.list_repo_commits(repo)] == ["All of it", "initial commit"]
    # Nothing new, nothing done.
    assert api.upload_folder(repo_id=repo, folder_path=folder).oid == head
    assert api.model_info(repo).sha == head

    # A pull request leaves the branch as it is.
    operations = [CommitOperationAdd("new.bin", b"new" * 1000), CommitOperationDelete("config.json")]
    pull = api.create_commit(repo, operations, commit_message="In review", create_pr=True)
    assert pull.pr_num == 1 and pull.pr_revision == "refs/pr/1" and api.model_info(repo).sha == head, pull
    assert read(api.hf_hub_download(repo, "new.bin", revision="refs/pr/1")) == b"new" * 1000
    names = api.list_repo_files(repo, revision="refs/pr/1")
    assert names == [".gitattributes", "a/b.txt", "adapter_model.safetensors", "new.bin"], names
    refs = api.list_repo_refs(repo, include_pull_requests=True)
    assert [r.target_commit for r in refs.pull_requests] == [pull.oid]

    api.create_branch(repo, branch="try/it")
    assert refused(errors.HfHubHTTPError, api.create_branch, repo, branch="try/it").response.status_code == 409
    api.create_branch(repo, branch="try/it", exist_ok=True)
    api.upload_file(repo_id=repo, path_or_fileobj=b"[1]", path_in_repo="config.json", revision="try/it")
    assert read(api.hf_hub_download(repo, "config.json", revision="try/it")) == b"[1]"
    assert read(api.hf_hub_download(repo, "config.json")) == b"{}"
    late = lambda: [CommitOperationAdd("late.txt", os.urandom(9))]
    commit = api.create_commit(repo, late(), commit_message="Late", parent_commit=head)
    assert api.model_info(repo).sha == commit.oid
    stale = refused(errors.HfHubHTTPError, api.create_commit, repo, late(), commit_message="x", parent_commit=head)
    assert stale.response.status_code == 412, stale
    api.create_tag(repo, tag="v1", revision=head)
    assert api.model_info(repo, revision="v1").sha == head
    api.delete_branch(repo, branch="try/it")
    refused(errors.RevisionNotFoundError, api.model_info, repo, revision="try/it")

    # A pointer to what never came: all of the commit is refused.
    lines = [
        {"key": "header", "value": {"summary": "Half"}},
        {"key": "file", "value": {"path": "half.txt", "content": "aGk=", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": "gone.bin", "algo": "sha256", "oid": "0" * 64, "size": 1}},
    ]
    from huggingface_hub.utils import build_hf_headers, get_session

    answer = get_session().post(
        f"{ENDPOINT}/api/models/{repo}/commit/main",
        content="\n".join(map(json.dumps, lines)),
        headers={**build_hf_headers(token=TOKEN), "Content-Type": "application/x-ndjson"},
    )
    assert answer.status_code == 400 and "does not exist" in answer.json()["error"], answer.text
    assert api.model_info(repo).sha == commit.oid and "half.txt" not in api.list_repo_files(repo)
    api.delete_repo(repo)
    refused(errors.RepositoryNotFoundError, api.model_info, repo)


def resuming():
    """A connection that breaks off, a server that asks for patience, and one that knows no ranges."""
    content = os.urandom(900_000)
    constants.DOWNLOAD_CHUNK_SIZE = 10_000
    write("models/ada/broken/main/model.bin", content)
    for faults, ranges in {
        ("GET /cdn/*model.bin cut=0.3 x1",): ["bytes=270000-"],
        ("GET /cdn/*model.bin cut=0.3 x1", "GET /cdn/*model.bin no-range x1"): ["bytes=270000-"],
        ("GET /cdn/*model.bin 429=1 x2",): [],
    }.items():
        log_there = os.path.join(work, "broken.jsonl")
        options = [word for fault in faults for word in ("--fault", fault)]
        there = HfApi(endpoint=start("--log", log_there, *options), token=TOKEN)
        shutil.rmtree(os.path.join(constants.HF_HUB_CACHE, "models--ada--broken"), ignore_errors=True)
        assert read(there.hf_hub_download("ada/broken", "model.bin")) == content
        with open(log_there, encoding="utf-8") as file:
            storage = [dict(r["headers"]) for r in map(json.loads, file) if r["host"] == "storage"]
        assert [h["range"] for h in storage if "range" in h] == ranges and len(storage) > 1, (faults, storage)


def pushed_by(path):
    return [request for request in requests("storage") if request["target"].startswith(path)]


def pulling_by_xet():
    """What came as chunks goes as chunks, whole and twice the same."""
    log_there = os.path.join(work, "xet.jsonl")
    there = HfApi(endpoint=start("--xet", "push-and-pull", "--log", log_there), token=TOKEN)
    there.create_repo("ada/chunks")
    content = os.urandom(700_000)
    for name, part in {"a.bin": content, "b.bin": content[:500_000] + b"other end"}.items():
        there.upload_file(repo_id="ada/chunks", path_or_fileobj=part, path_in_repo=name)
        assert read(there.hf_hub_download("ada/chunks", name)) == part
    folder = there.snapshot_download("ada/chunks", cache_dir=os.path.join(work, "another"))
    assert read(os.path.join(folder, "a.bin")) == content and sorted(os.listdir(folder))[1:] == ["a.bin", "b.bin"]
    with open(log_there, encoding="utf-8") as file:
        storage = [request for request in map(json.loads, file) if request["host"] == "storage"]
    fetched = [request["target"].split("/")[1] for request in storage if request["method"] == "GET"]
    assert "cdn" not in fetched and fetched.count("xorb") >= 4, fetched
    assert TOKEN not in json.dumps(storage)


try:
    info = reading()
    trees_are_gits(info)
    downloading(info)
    refusing()
    constants.HF_HUB_DISABLE_XET = True
    pushing("ada/by-lfs")
    assert len(pushed_by("/lfs/")) == 2 and not pushed_by("/v1/"), requests("storage")
    constants.HF_HUB_DISABLE_XET = False
    pushing("ada/by-xet")
    assert len(pushed_by("/lfs/")) == 2 and len(pushed_by("/v1/xorbs/")) == 2, requests("storage")
    pulling_by_xet()
    resuming()
    loading()
    assert TOKEN not in json.dumps(requests("storage"))
    print(f"{len(requests())} requests: the tests' Hub is one to huggingface_hub, datasets, transformers and peft")
finally:
    shutil.rmtree(work, ignore_errors=True)
