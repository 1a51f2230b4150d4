"""Runs inputs behind public bug reports, one folder a case, and holds what pipe makes of them to what is right.

    python3 tests/public_cases.py PIPE CASES [NAME…]

PIPE is the program; CASES the folder of cases, which is not part of this repository: each holds `manifest.yaml`, run
from within the folder, `make.sh` where something has to be made first (links, odd names), or `reproduce.sh`, which does
the whole of it. What is right stands here, case by case; a folder that is not named here is listed at the end. Needs
the packages of tests/requirements.txt (the values were computed with transformers, PEFT and datasets).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow.parquet

ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "pipelines" / "embedded" / "model"


class Wrong(Exception):
    """What pipe made of a case is not right."""


class Case:
    """A copy of one case's folder, and what running it made."""

    def __init__(self, pipe, folder, scratch):
        self.pipe, self.dir, self.home = pipe, scratch / folder.name, scratch / "home"
        shutil.copytree(folder, self.dir, symlinks=True)
        for path in [self.dir, *self.dir.rglob("*")]:
            if not path.is_symlink():
                path.chmod(path.stat().st_mode | 0o200)
        self.env = {
            **os.environ,
            "PIPE": str(pipe), "SRC": str(ROOT), "EMBEDDED_MODEL": str(MODEL), "PIPE_HOME": str(self.home),
            "NO_COLOR": "1", "HF_HUB_OFFLINE": "1", "SCRIPT": str(self.dir / "mk.sh"),
        }
        for manifest in self.dir.glob("*.yaml"):
            # Unquoted between braces this is no YAML.
            manifest.write_text(manifest.read_text().replace("${env.EMBEDDED_MODEL}", str(MODEL)))
        if (self.dir / "make.sh").exists():
            subprocess.run(["bash", "make.sh"], cwd=self.dir, env=self.env, check=True, capture_output=True)

    def run(self, *arguments):
        call = [str(self.pipe), "run", "manifest.yaml", "--keep-going", "--json", *arguments]
        made = subprocess.run(call, cwd=self.dir, env=self.env, capture_output=True, timeout=120)
        lines = made.stdout.decode(errors="replace").splitlines()
        self.events = [json.loads(line) for line in lines]
        self.said = made.stderr.decode(errors="replace") + made.stdout.decode(errors="replace")
        self.stages = {s["stage"]: s for s in self.events[-1].get("stages", [])} if self.events else {}
        return self

    def well(self):
        bad = {name: stage for name, stage in self.stages.items() if stage["status"] not in ("ran", "cached")}
        if bad or not self.stages:
            raise Wrong(f"not all well: {list(bad) or self.said[-600:]} {self.errors()}")
        return self

    def errors(self):
        return "\n".join(str(e.get("error") or "") for e in self.events if e.get("error"))

    def reproduced(self):
        made = subprocess.run(
            ["bash", "reproduce.sh"], cwd=self.dir, env=self.env, capture_output=True, timeout=600
        )
        return (made.stdout + made.stderr).decode(errors="replace")

    def file(self, stage, name):
        return self.home / "runs" / "latest" / "stages" / stage / name

    def rows(self, stage, split="train"):
        return pyarrow.parquet.read_table(self.file(stage, f"{split}.parquet")).to_pylist()

    def column(self, stage, name, split="train"):
        return [row[name] for row in self.rows(stage, split)]

    def jsonl(self, stage, name):
        return [json.loads(line) for line in self.file(stage, name).read_text().splitlines()]


def equal(have, want):
    if have != want:
        raise Wrong(f"{have!r}, and {want!r} is right")


def near(have, want):
    if len(have) != len(want) or any(abs(h - w) > 2e-5 for h, w in zip(have, want)):
        raise Wrong(f"{have!r}, and {want!r} is right")


def shown(*want):
    """The column `shown` of the stage `shown`."""
    return lambda case: equal(case.run().well().column("shown", "shown"), list(want))


def rows(count, stage="data"):
    return lambda case: equal(len(case.run().well().rows(stage)), count)


def losses(*want):
    return lambda case: near([p["loss"] for p in case.run().well().jsonl("scores", "predictions.jsonl")], want)


def answers(*want):
    """How the ids of the first answer begin, or are where they end with None."""

    def check(case):
        ids = case.run().well().jsonl("answers", "generations.jsonl")[0]["ids"]
        whole = want[-1] is None
        equal(ids if whole else ids[: len(want)], list(want[:-1] if whole else want))

    return check


def ids(*want):
    return lambda case: equal(case.run().well().rows("tokens")[0]["input_ids"][: len(want)], list(want))


def chat(case):
    """Texts as transformers renders them, cut in tokens."""
    from transformers import AutoTokenizer

    case.run().well()
    tokenizer = AutoTokenizer.from_pretrained(case.dir / "model")
    for have, line in zip(case.rows("tokens"), (case.dir / "rows.jsonl").read_text().splitlines()):
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        equal(tokenizer.decode(have["input_ids"]), text)


def category(case):
    case.run().well()
    equal({row["target"] for row in case.rows("tokens")} <= {"complaint", "praise"}, True)
    equal(set(case.column("mapped", "label")) <= {"bad", "good"}, True)


def cut_off(case):
    """No accuracy as if a label that was cut off had been measured."""
    case.run()
    if case.stages["scores"]["status"] == "failed":
        return
    for row in case.jsonl("scores", "predictions.jsonl"):
        if row.get("likeliest") is not None and not row["target_ids"]:
            raise Wrong(f"a row without a label has a likeliest one: {row}")
    equal("accuracy" in json.loads(case.file("scores", "metrics.json").read_text()), False)


def own_end(case):
    """The end token of config.json ends answers, and `end: eos` has the class's default one."""
    end = json.loads((case.dir / "model" / "config.json").read_text())["eos_token_id"]
    case.run().well()
    equal(case.jsonl("answers", "generations.jsonl")[0]["eos_token_id"], [end])
    equal(case.rows("tokens")[0]["input_ids"][-1], end)


def same_words(case):
    case.run().well()
    equal(json.loads(case.file("scores", "metrics.json").read_text())["generation_accuracy"], 1.0)


def extra_tensor(case):
    case.run()
    if case.stages["scores"]["status"] == "failed":
        if "embed_tokens" not in case.errors():
            raise Wrong(case.errors())
        return
    losses(5.58003, 4.95801)(case)


def empty_split(case):
    case.run().well()
    equal([len(case.rows("named", split)) for split in ("train", "test")], [len(case.rows("data")), 0])


def reproduced(*absent, present=()):
    """What the case's own script says, without some patterns and with others."""

    def check(case):
        said = case.reproduced()
        for pattern in absent:
            if found := re.search(pattern, said):
                raise Wrong(f"`{found.group()}` in\n{said}")
        for pattern in present:
            if not re.search(pattern, said):
                raise Wrong(f"no `{pattern}` in\n{said}")

    return check


def edited(case):
    """The case's own script edits the data between two runs: the second one must not be from cache."""
    script = case.dir / "reproduce.sh"
    if not script.exists():
        return rows(1)(case)
    said = case.reproduced()
    if re.search(r"cached +data", said):
        raise Wrong(said)


RIGHT = {
    "02-csv-unnamed-index": lambda case: equal(list(case.run().well().rows("data")[0])[0], "Unnamed: 0"),
    "03-csv-big-ids": lambda case: equal(
        [text.split(":")[0] for text in case.run().well().column("shown", "shown")],
        ["10000000000000000001", "10000000000000000002"],
    ),
    "04-csv-bool-labels": shown("the sky is green -> False", "water is wet -> True"),
    "11-jsonl-nan": lambda case: case.run().well(),
    "12-json-one-object": rows(1),
    "17-brackets-in-folder": rows(2),
    "18-symlinked-subfolder": edited,
    "19-same-size-and-mtime": edited,
    "21d-saved-empty-split": empty_split,
    "25-parquet-date": shown("2024-03-01"),
    "25-parquet-duration": shown("0:01:30"),
    "25-parquet-fixed-list": shown("[1, 2]"),
    "25-parquet-int8": lambda case: case.run().well(),
    "25-parquet-ts": shown("2024-03-01 12:30:05.123000"),
    "25-parquet-ts-tz": shown("2024-03-01 13:30:05+01:00"),
    "25e-pandas-category": category,
    "27-non-utf8-file-name": rows(2),
    "27b-stray-non-utf8-name": lambda case: case.run().well(),
    "28-symlink-loop": rows(2),
    "31-tied-but-head-differs": losses(4.77232, 4.60451),
    "32-only-head-stored": losses(4.32679, 4.99951),
    "41-generation-config-eos-list": answers(34, 13, 72, None),
    "41b-generation-config-repetition": answers(37, 40, 12, 60),
    "41c-eos-in-config-only": answers(34, 13, 72, None),
    "42-gpt2-default-eos": own_end,
    "44c-post-processor-bos-flag-eos-false": ids(1, 13, 23),
    "44d-post-processor-bos-flag-bos-false": ids(1, 13, 23),
    "45b-adapter-bf16": losses(3.60179, 4.48734),
    "45g-adapter-extra-tensor": extra_tensor,
    "46-chat-tojson-ascii": chat,
    "46-chat-tojson-options": chat,
    "47-chat-null-content": chat,
    "47f-chat-extra-keys-ignored": chat,
    "50c-max-length-below-prompt": cut_off,
    "51-target-with-leading-space": same_words,
    "56-number-formats": shown("1e-05 1e+16 1e+22 0.1 True 3.0 -0.0 123456789.125"),
    "65-label-cut-off-in-every-row-of-a-class": cut_off,
    "67b-output-empty-dir": lambda case: case.run().well(),
    "67g-same-bytes-two-modes": lambda case: case.run().well(),
    "67h-output-non-utf8-name": lambda case: case.run().well(),
    "68e-filter": rows(1, "kept"),
    "77-several-shards-differ": lambda case: equal(
        all(isinstance(text, str) for text in case.run().well().column("data", "text")), True
    ),
    "82-glob-from-own-folder": rows(2),
    "r08-panic-outside-a-stage-hangs": reproduced("panicked", "exit 137", present=("exit 1",)),
    "r10-sigbus-on-truncated-input": reproduced("Bus error", "exit 135"),
    "r17-stderr-closed-panics": reproduced("panicked", "exit 101"),
    "r20-absurd-sizes-abort": reproduced("memory alloc", "panicked", "fault in pipe", "exit 134"),
    "r21-damaged-inputs-panic": reproduced("fault in pipe"),
}


def main():
    pipe, cases, names = Path(sys.argv[1]).resolve(), Path(sys.argv[2]), sys.argv[3:]
    wrong = 0
    for name, check in RIGHT.items():
        folder = cases / name
        if names and not any(name.startswith(n) for n in names):
            continue
        if not folder.is_dir():
            print(f"absent  {name}")
            continue
        with tempfile.TemporaryDirectory() as scratch:
            try:
                check(Case(pipe, folder, Path(scratch)))
                print(f"right   {name}", flush=True)
            except (Wrong, KeyError, OSError, IndexError, json.JSONDecodeError, subprocess.SubprocessError) as error:
                wrong += 1
                print(f"WRONG   {name}: {type(error).__name__}: {error}", flush=True)
    left = sorted(f.name for f in cases.iterdir() if f.is_dir() and f.name not in RIGHT)
    print(f"{wrong} wrong; not looked at here: {', '.join(left)}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
