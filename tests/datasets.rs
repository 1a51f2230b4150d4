//! Data as it comes, on its way to the rows a guide trains on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use std::path::{Path, PathBuf};

use pipe::artifact::dataset::{Dataset, Stored};
use project::Project;

/// What a stage of the newest run wrote.
fn rows(project: &Project, stage: &str) -> Dataset {
    Dataset::load(&project.path(".pipe/runs/latest/stages").join(stage)).unwrap()
}

/// A file of the material beside the repository, where that is there.
fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    match path.exists() {
        true => Some(path.canonicalize().unwrap()),
        false => {
            println!("skipped: {} is not there", path.display());
            None
        }
    }
}

/// DistilGPT2 on ELI5, up to the tokenizer: slice, split, flatten, join.
const QUESTIONS: &str = r#"pipeline: questions
stages:
  questions:
    uses: load_dataset
    with: { files: { train_asks: data.jsonl }, split: "train_asks[:50%]" }
  halves:
    uses: split
    inputs: { dataset: questions }
    with: { test_size: 0.2, seed: 7 }
  answers:
    uses: transform
    inputs: { dataset: halves }
    with:
      steps:
        - flatten: true
        - join: { column: answers.text, into: text }
        - filter: { column: text, min_length: 1 }
        - select: [q_id, text]
"#;

#[test]
fn questions_and_answers_become_text() {
    let Some(data) = shared("eli5_shaped.jsonl") else { return };
    let project = Project::new();
    std::os::unix::fs::symlink(&data, project.path("data.jsonl")).unwrap();
    project.write("questions.yaml", QUESTIONS);
    project.run(0, &["questions.yaml"]);
    let answers = rows(&project, "answers");
    assert_eq!(answers.split_names(), ["train", "test"]);
    let (train, test) = (&answers.splits[0], &answers.splits[1]);
    assert_eq!(
        (train.rows(), test.rows(), train.column_names()),
        (120, 30, vec!["q_id".into(), "text".into()])
    );
    // Every row's text is the texts of the first 150 questions' answers, joined by spaces.
    let text = std::fs::read_to_string(data).unwrap();
    let mut want = std::collections::BTreeMap::new();
    for line in text.lines().take(150) {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let texts: Vec<&str> =
            row["answers"]["text"].as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect();
        want.insert(row["q_id"].as_str().unwrap().to_owned(), texts.join(" "));
    }
    for split in [train, test] {
        for row in 0..split.rows() {
            let id = split.text_at("q_id", row).unwrap().unwrap();
            assert_eq!(split.text_at("text", row).unwrap(), want.remove(&id), "{id}");
        }
    }
    assert!(want.is_empty());
}

#[test]
fn a_saved_folder_goes_through_and_is_cached() {
    let project = Project::new();
    let saved = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/saved/splits");
    std::os::unix::fs::symlink(saved, project.path("saved")).unwrap();
    project.write(
        "rows.yaml",
        r#"pipeline: rows
stages:
  rows:
    uses: load_dataset
    with: { path: saved, split: "train[:3]+test" }
  named:
    uses: relabel
    inputs: { dataset: rows }
    with: { column: label, into: name }
  text:
    uses: transform
    inputs: { dataset: named }
    with:
      steps:
        - flatten: [answers]
        - join: { column: answers.text, with: " | " }
        - filter: { column: label, in: [0, 2] }
        - template: { into: line, text: "{id} {name}: {answers.text}" }
"#,
    );
    assert_eq!(project.run(0, &["rows.yaml"]).with_status("ran"), ["rows", "named", "text"]);
    let train = rows(&project, "text").splits.remove(0);
    let texts: Vec<String> =
        (0..train.rows()).map(|row| train.text_at("line", row).unwrap().unwrap()).collect();
    let answer = |k: usize, i: usize| format!("answer {k} of {i}, longer than the twelve bytes of a view");
    assert_eq!(
        texts,
        [
            "0 Unlabeled: ".to_owned(),
            format!("2 no complaint: {} | {}", answer(0, 2), answer(1, 2)),
            format!("5 no complaint: {} | {}", answer(0, 5), answer(1, 5)),
            "6 Unlabeled: ".to_owned(),
        ]
    );
    assert_eq!(project.run(0, &["rows.yaml"]).with_status("cached"), ["rows", "named", "text"]);
}

#[test]
fn a_long_text_file_is_kept_in_pieces() {
    let project = Project::new();
    let lines = 40_000;
    let text: String = (0..lines).map(|line| format!("line {line}\n\n")).collect();
    project.write("text.txt", &text);
    project.write(
        "text.yaml",
        "pipeline: text\nstages:\n  text:\n    uses: load_dataset\n    with: { path: text.txt, split: \"train[:-2]\" }\n",
    );
    project.run(0, &["text.yaml"]);
    let stored =
        Stored::open(&project.path(".pipe/runs/latest/stages/text"), &pipe::stage::Cancel::default())
            .unwrap();
    let batches: Vec<_> = stored.batches("train").unwrap().map(Result::unwrap).collect();
    assert_eq!(batches.len(), 5);
    let last = batches.last().unwrap();
    assert_eq!(last.first + last.rows.rows(), 2 * lines - 2);
    assert_eq!(last.rows.text_at("text", 0).unwrap(), Some(format!("line {}", last.first / 2)));
}
