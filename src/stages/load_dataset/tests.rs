use std::fs;

use super::*;
use crate::artifact::dataset::{Dataset, Split};
use crate::stage::{Cancel, Saying};
use crate::stages::testing::{Refusal, fault, run};

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    dir
}

fn path(at: &Path, text: &str) -> LoadDataset {
    let path = Some(Location::new(text, at));
    LoadDataset { path, files: BTreeMap::new(), name: None, revision: None, split: None }
}

fn load(stage: &LoadDataset) -> (Result<Dataset, Refusal>, Vec<Saying>) {
    let out = tempfile::tempdir().unwrap();
    let (result, said) = run(stage, out.path(), &Cancel::default());
    (result.map_err(fault).map(|()| Dataset::load(out.path()).unwrap()), said)
}

fn warnings(said: &[Saying]) -> Vec<&str> {
    said.iter()
        .filter_map(|s| if let Saying::Warning(text) = s { Some(text.as_str()) } else { None })
        .collect()
}

fn shape(dataset: &Dataset) -> Vec<(&str, Vec<String>)> {
    let cells =
        |s: &Split| (0..s.rows()).map(|row| s.text_at(&s.column_names()[0], row).unwrap().unwrap()).collect();
    dataset.splits.iter().map(|s| (s.name.as_str(), cells(s))).collect()
}

fn loaded(stage: &LoadDataset) -> Dataset {
    load(stage).0.unwrap()
}

fn refusal(stage: &LoadDataset) -> String {
    load(stage).0.unwrap_err().0
}

#[test]
fn a_lone_file_is_the_split_train() {
    let dir = folder(&[("test.csv", "a\nx\ny\n")]);
    let strings = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
    assert_eq!(shape(&loaded(&path(dir.path(), "test.csv"))), [("train", strings(&["x", "y"]))]);
}

#[test]
fn names_of_files_and_folders_tell_the_splits() {
    let dir = folder(&[
        ("README.md", "no data"),
        ("dataset_info.json", r#"{"features": {"a": {"_type": "ClassLabel", "names": ["no", "yes"]}}}"#),
        ("data/train-1.csv", "a\n2\n"),
        ("data/train-0.csv", "a\n1\n"),
        ("rows.dev.json", "[{\"a\": 3}]"),
        ("my_test.csv", "a\n4\n"),
        ("notes.csv", "a\n5\n"),
        ("train.json", "[{\"a\": 6}]"),
        (".hidden/train.csv", "a\n7\n"),
    ]);
    let (result, said) = load(&path(dir.path(), "."));
    let dataset = result.unwrap();
    let ids = |cells: &[i64]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
    assert_eq!(shape(&dataset), [("train", ids(&[1, 2])), ("validation", ids(&[3])), ("test", ids(&[4]))]);
    assert_eq!(dataset.class_names("a").unwrap(), ["no", "yes"]);
    assert_eq!(
        warnings(&said),
        [
            "left out: notes.csv; no name of theirs tells a split, as others' do",
            "left out: train.json; most files of their split are in another format",
        ]
    );
    let matched = loaded(&path(dir.path(), "data/*.csv"));
    assert_eq!(shape(&matched), [("train", ids(&[1, 2]))]);
    // What names of folders or shards tell comes before what names of files do.
    let in_folder = |name: &str| {
        fs::create_dir_all(dir.path().join(name).parent().unwrap()).unwrap();
        fs::write(dir.path().join(name), "a\n8\n").unwrap();
        loaded(&path(dir.path(), "."))
    };
    assert_eq!(shape(&in_folder("dev/rows.csv")), [("validation", ids(&[8]))]);
    assert_eq!(shape(&in_folder("data/test-00000-of-00001.csv")), [("test", ids(&[8]))]);
}

#[test]
fn files_without_a_split_in_their_names_are_all_train() {
    let dir = folder(&[("b.csv", "a\n2\n"), ("a.csv", "a\n1\n"), ("contest.csv", "a\n3\n")]);
    let dataset = loaded(&path(dir.path(), "*.csv"));
    assert_eq!(shape(&dataset), [("train", ["1", "2", "3"].map(String::from).to_vec())]);
}

#[test]
fn named_splits_take_a_path_or_a_list() {
    let dir = folder(&[("x.csv", "a\n1\n"), ("y.csv", "a\n2\n"), ("z.csv", "a\n3\n"), ("w.csv", "a\n4\n")]);
    let place = |text: &str| Location::new(text, dir.path());
    let files = BTreeMap::from([
        ("held_out".into(), Locations(vec![place("w.csv")])),
        ("test".into(), Locations(vec![place("[z].csv")])),
        ("train".into(), Locations(vec![place("y.csv"), place("x.csv")])),
    ]);
    let stage = LoadDataset { path: None, files, ..path(dir.path(), "") };
    let ids = |cells: &[i64]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
    assert_eq!(
        shape(&loaded(&stage)),
        [("train", ids(&[2, 1])), ("test", ids(&[3])), ("held_out", ids(&[4]))]
    );
    let roles: Vec<String> = stage.sources().into_iter().map(|s| s.role).collect();
    assert_eq!(roles, ["files.held_out", "files.test", "files.train[0]", "files.train[1]"]);
}

#[test]
fn slices_are_kept_in_their_order() {
    let rows = |from: usize, to: usize| {
        let rows: String = (from..to).map(|row| format!("{row}\n")).collect();
        format!("a\n{rows}")
    };
    let dir = folder(&[("train.csv", &rows(0, 25)), ("test.csv", &rows(50, 55))]);
    let kept = |split: &str| {
        let stage = LoadDataset { split: Some(split.into()), ..path(dir.path(), ".") };
        let dataset = loaded(&stage);
        let (name, rows) = shape(&dataset).remove(0);
        assert_eq!(dataset.splits.len(), 1);
        (name.to_owned(), rows.join(" "))
    };
    let want = |name: &str, rows: &str| (name.to_owned(), rows.to_owned());
    assert_eq!(kept("train[20:]"), want("train", "20 21 22 23 24"));
    assert_eq!(kept("train[:10%]+train[-80%:-70%]"), want("train", "0 1 5 6"));
    assert_eq!(kept("test+train[:1]"), want("test", "50 51 52 53 54 0"));
    let refused = |split: &str| refusal(&LoadDataset { split: Some(split.into()), ..path(dir.path(), ".") });
    assert_eq!(refused("train[7:7]"), "`train[7:7]` holds no row: split `train` has 25");
    assert_eq!(refused("trian[:5]"), "no split `trian` (did you mean `train`?); there are `train`, `test`");
    let dir = folder(&[("train.csv", "a\n1\n"), ("test.csv", "a\nx\n")]);
    let both = LoadDataset { split: Some("train+test".into()), ..path(dir.path(), ".") };
    assert_eq!(refusal(&both), "splits `train` and `test` have different columns: a (i64); and a (str)");
}

#[test]
fn a_line_of_text_is_a_row() {
    let dir = folder(&[("b.txt", "one\n\ntwo"), ("c.txt", "three\r\n"), ("empty.txt", "")]);
    let texts = |texts: &[&str]| texts.iter().map(|t| t.to_string()).collect::<Vec<_>>();
    assert_eq!(shape(&loaded(&path(dir.path(), "*.txt"))), [("train", texts(&["one", "", "two", "three"]))]);
    let last = LoadDataset { split: Some("train[-2:]".into()), ..path(dir.path(), ".") };
    assert_eq!(shape(&loaded(&last)), [("train", texts(&["two", "three"]))]);
    assert_eq!(loaded(&last).splits[0].column_names(), ["text"]);
    let at = dir.path().display();
    assert_eq!(refusal(&path(dir.path(), "empty.txt")), format!("{at}/empty.txt: the file is empty"));
    fs::write(dir.path().join("rows.csv"), "a\n1\n").unwrap();
    assert_eq!(shape(&loaded(&path(dir.path(), "."))), [("train", texts(&["1"]))]);
}

#[test]
fn files_of_one_split_have_to_agree() {
    let at = |dir: &tempfile::TempDir| format!("{}/./", dir.path().display());
    let message = |files: &[(&str, &str)]| {
        let dir = folder(files);
        refusal(&path(dir.path(), "./")).replace(&at(&dir), "")
    };
    assert_eq!(
        message(&[("1.csv", "a,b\n1,2\n"), ("2.csv", "a\n1\n")]),
        "2.csv: has no column `b`, as has 1.csv"
    );
    assert_eq!(message(&[("1.csv", "a\n1\n"), ("2.csv", "a,b\n1,2\n")]), "2.csv: column `b` is not in 1.csv");
    assert_eq!(
        message(&[("1.csv", "a\n1\n"), ("2.csv", "a\nx\n")]),
        "2.csv: column `a` is str here and i64 in 1.csv"
    );
    assert_eq!(
        message(&[("1.json", "[{\"a\": {\"b\": [1]}}]"), ("2.json", "[{\"a\": {\"b\": [\"x\"]}}]")]),
        "2.json: column `a` is struct[b: list[str]] here and struct[b: list[i64]] in 1.json"
    );
    let dir = folder(&[("1.csv", "a,b\n1,\n"), ("2.csv", "b,a\n7,1.5\n"), ("3.csv", "a,b\n,\n")]);
    let dataset = loaded(&path(dir.path(), "."));
    let types: Vec<String> = dataset.splits[0].frame.dtypes().iter().map(|t| t.to_string()).collect();
    assert_eq!((types, dataset.splits[0].rows()), (vec!["f64".to_owned(), "i64".to_owned()], 3));
}

#[test]
fn what_can_not_be_read_is_named() {
    let dir =
        folder(&[("bad.csv", "a,b\n1,2\n1,2,3\n"), ("bad.jsonl", "{\"a\": 1}\n{\"a\": 1\n"), ("d/x.md", "")]);
    let at = dir.path().display();
    assert_eq!(
        refusal(&path(dir.path(), "bad.csv")),
        format!(
            "{at}/bad.csv:3: this row has 3 fields, the header has 2; \
             a field with commas needs quotes around it"
        )
    );
    assert_eq!(
        refusal(&path(dir.path(), "bad.jsonl")),
        format!("{at}/bad.jsonl:2: not readable as JSON: EOF while parsing an object (column 7)")
    );
    assert_eq!(refusal(&path(dir.path(), "gone.csv")), format!("dataset: nothing is at {at}/gone.csv"));
    assert_eq!(refusal(&path(dir.path(), "*.tsv")), format!("dataset: no file matches {at}/*.tsv"));
    assert_eq!(refusal(&path(dir.path(), "d")), format!("dataset: no file in {at}/d can be read"));
    assert_eq!(
        refusal(&path(dir.path(), "ought/raft")),
        "dataset ought/raft at revision `main` is not on this machine, and pipe is offline"
    );
}

#[test]
fn faults_are_found_without_running() {
    let faults =
        |stage: &LoadDataset| -> Vec<String> { stage.check(&[]).into_iter().map(|f| f.message).collect() };
    let none = LoadDataset { path: None, ..path(Path::new("."), "") };
    assert_eq!(faults(&none), ["nothing says what to load"]);
    let files = BTreeMap::from([("a b".to_owned(), Locations(vec![]))]);
    let both = LoadDataset { files, split: Some("train[1]".into()), ..path(Path::new("."), "x") };
    assert_eq!(
        faults(&both),
        [
            "`path` and `files` are both given",
            "`a b` can't be the name of a split: letters, digits, `_`, `-` and `.` are allowed",
            "the list of files for split `a b` is empty",
            "`train[1]` is neither a split nor a slice of one",
        ]
    );
}

#[test]
fn keys_that_choose_nothing_are_noted() {
    let dir = folder(&[("a.csv", "a\n1\n")]);
    let stage = LoadDataset {
        name: Some("tweets".into()),
        revision: Some("main".into()),
        ..path(dir.path(), "a.csv")
    };
    let (_, said) = load(&stage);
    let notes: Vec<&str> =
        said.iter().filter_map(|s| if let Saying::Note(n) = s { Some(n.as_str()) } else { None }).collect();
    assert_eq!(
        notes,
        [
            "`revision` is for datasets on the Hub; a.csv is local",
            "`name` chooses between configurations, and a.csv has none"
        ]
    );
}

const CARD: &str = "\
---
configs:
- config_name: tweets
  data_files:
  - { split: train, path: tweets/part-*.csv }
  - { split: held_out, path: tweets/rest.csv }
- config_name: other
  data_files: other.csv
dataset_info:
- config_name: tweets
  features:
  - { name: a, dtype: { class_label: { names: { '0': 'no', '1': 'yes' } } } }
---
";

#[test]
fn a_clone_has_the_configurations_of_its_card() {
    let dir = folder(&[
        ("README.md", CARD),
        ("tweets/part-0.csv", "a\n1\n"),
        ("tweets/part-1.csv", "a\n0\n"),
        ("tweets/rest.csv", "a\n1\n"),
        ("other.csv", "b\nx\n"),
    ]);
    let cells = |cells: &[&str]| cells.iter().map(|c| c.to_string()).collect::<Vec<_>>();
    let named = |name: &str| LoadDataset { name: Some(name.into()), ..path(dir.path(), ".") };
    let tweets = loaded(&named("tweets"));
    assert_eq!(shape(&tweets), [("train", cells(&["1", "0"])), ("held_out", cells(&["1"]))]);
    assert_eq!(tweets.class_names("a").unwrap(), ["no", "yes"]);
    assert_eq!(shape(&loaded(&named("other"))), [("train", cells(&["x"]))]);
    assert_eq!(
        load(&path(dir.path(), ".")).0.unwrap_err(),
        (
            "dataset: the dataset has 2 configurations: `tweets`, `other`".into(),
            Some("say which, such as `name: tweets`".into())
        )
    );
    assert_eq!(
        load(&named("tweet")).0.unwrap_err(),
        (
            "dataset: no configuration `tweet` (did you mean `tweets`?); there are `tweets`, `other`".into(),
            Some("`name` takes one of these".into())
        )
    );
}

#[test]
fn a_parquet_file_of_datasets_knows_its_class_names() {
    let dataset = loaded(&path(Path::new("."), &saved("labelled.parquet")));
    assert_eq!(dataset.class_names("label").unwrap(), ["Unlabeled", "complaint", "no complaint"]);
    let column = dataset.splits[0].column("label").unwrap();
    assert_eq!((column.len(), spelled(column.dtype())), (3, "i64".into()));
}

/// What `tests/make_saved.py` wrote.
fn saved(name: &str) -> String {
    format!("{}/tests/saved/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A split of a saved folder holds the rows of a jsonl file, however their types were written.
fn holds(split: &Split, name: &str) {
    let want = formats::read(Path::new(&saved(name)), &Cancel::default()).unwrap().frame;
    let columns = want.columns().iter().map(|want| {
        let column = split.column(want.name()).unwrap();
        column.cast(want.dtype()).unwrap()
    });
    let frame = DataFrame::new(split.rows(), columns.collect()).unwrap();
    assert!(frame.equals_missing(&want), "{name}: {frame} {want}");
}

#[test]
fn what_datasets_saved_comes_back() {
    let one = loaded(&path(Path::new("."), &saved("one")));
    assert_eq!(one.split_names(), ["train"]);
    holds(&one.splits[0], "one.jsonl");
    let names = ["Unlabeled", "complaint", "no complaint"];
    assert_eq!(one.class_names("label").unwrap(), names);
    let kinds: Vec<String> = one.splits[0].frame.dtypes().iter().map(spelled).collect();
    assert_eq!(
        kinds,
        [
            "i32",
            "str",
            "str",
            "f64",
            "f32",
            "bool",
            "null",
            "i64",
            "struct[text: list[str], score: list[i64]]",
            "list[struct[url: str, at: i64]]"
        ]
    );
    let splits = loaded(&path(Path::new("."), &saved("splits")));
    assert_eq!(
        (splits.split_names(), splits.class_names("label").unwrap()),
        (vec!["train".into(), "test".into()], &names.map(String::from)[..])
    );
    holds(&splits.splits[0], "splits.train.jsonl");
    holds(&splits.splits[1], "splits.test.jsonl");
    let last =
        LoadDataset { split: Some("test[-1:]+train[:1]".into()), ..path(Path::new("."), &saved("splits")) };
    let ids: Vec<_> =
        (0..2).map(|row| loaded(&last).splits[0].text_at("id", row).unwrap().unwrap()).collect();
    assert_eq!(ids, ["6", "0"]);
}

#[test]
fn a_saved_folder_can_be_one_of_the_files() {
    let place = |text: &str| Locations(vec![Location::new(saved(text), ".")]);
    let files = BTreeMap::from([("test".into(), place("splits/test")), ("train".into(), place("one"))]);
    let dataset = loaded(&LoadDataset { path: None, files, ..path(Path::new("."), "") });
    holds(dataset.split("train").unwrap(), "one.jsonl");
    holds(dataset.split("test").unwrap(), "splits.test.jsonl");
    assert_eq!(dataset.class_names("label").unwrap().len(), 3);
    let files = BTreeMap::from([("train".into(), place("splits"))]);
    assert_eq!(
        load(&LoadDataset { path: None, files, ..path(Path::new("."), "") }).0.unwrap_err(),
        (
            format!("dataset: {} has several splits: train, test", saved("splits")),
            Some(format!("name the folder of one, such as {}/train", saved("splits")))
        )
    );
}

/// A copy of the saved folder `one`, changed; what is said of it.
fn refused_copy(change: impl Fn(&Path)) -> Refusal {
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(saved("one")).unwrap().flatten() {
        fs::copy(file.path(), dir.path().join(file.file_name())).unwrap();
    }
    change(dir.path());
    let (message, help) = load(&path(dir.path(), ".")).0.unwrap_err();
    (message.replace(&format!("{}/./", dir.path().display()), ""), help)
}

#[test]
fn a_shard_that_is_broken_is_named() {
    let cut = |name: &'static str, length: usize| {
        move |dir: &Path| {
            let bytes = fs::read(dir.join(name)).unwrap();
            fs::write(dir.join(name), &bytes[..length.min(bytes.len())]).unwrap();
        }
    };
    const SECOND: &str = "data-00001-of-00003.arrow";
    let again = "copy it again from where it was saved, or save the dataset again";
    assert_eq!(
        refused_copy(cut(SECOND, 2000)),
        (
            format!("{SECOND}: cut off: the Arrow stream has no end marker, so rows may be missing"),
            Some(format!("{again}; the other 2 shards can be read"))
        )
    );
    assert_eq!(
        refused_copy(|dir| {
            cut(SECOND, 0)(dir);
            cut("data-00002-of-00003.arrow", 9)(dir);
        }),
        (
            format!("{SECOND}: the file is empty"),
            Some(format!("{again}; data-00002-of-00003.arrow can't be read either"))
        )
    );
    let overwritten = refused_copy(|dir| {
        let mut bytes = fs::read(dir.join(SECOND)).unwrap();
        // Within the message that describes the rows.
        bytes[1700..1900].fill(0x5a);
        fs::write(dir.join(SECOND), bytes).unwrap();
    });
    assert!(
        overwritten.0.starts_with(&format!("{SECOND}: not readable as an Arrow stream: ")),
        "{overwritten:?}"
    );
    assert_eq!(
        refused_copy(|dir| fs::write(dir.join(SECOND), "ARROW1\0\0").unwrap()).0,
        format!("{SECOND}: an Arrow (Feather) file, not an Arrow stream, which `datasets` writes")
    );
    assert_eq!(
        refused_copy(|dir| fs::write(dir.join(SECOND), "PAR1").unwrap()).0,
        format!("{SECOND}: not an Arrow stream")
    );
}

/// Broken bytes are an error or other values, and never end the program.
#[test]
fn no_broken_byte_of_a_shard_is_fatal() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, broken) =
        (fs::read(saved("one/data-00000-of-00003.arrow")).unwrap(), dir.path().join("a.arrow"));
    for at in (0..whole.len()).step_by(7) {
        for value in [0xff, 0x00, 0x7f] {
            let mut bytes = whole.clone();
            bytes[at] = value;
            fs::write(&broken, bytes).unwrap();
            let _ = formats::read(&broken, &Cancel::default());
        }
    }
}

#[test]
fn a_state_that_lists_no_rows_is_refused() {
    let state =
        |text: &'static str| refused_copy(move |dir| fs::write(dir.join("state.json"), text).unwrap()).0;
    assert_eq!(
        state(r#"{"_data_files": []}"#),
        "state.json: lists no data files: the dataset was saved without a row"
    );
    assert_eq!(
        state(r#"{"_fingerprint": "x"}"#),
        "state.json: not what `save_to_disk` writes: missing field `_data_files` at line 1 column 21"
    );
    assert_eq!(
        state(r#"{"_data_files": [{"filename": "data-00009.arrow"}]}"#),
        "state.json: lists the shard data-00009.arrow, which is missing"
    );
    assert_eq!(
        state(r#"{"_data_files": [{"filename": "../rows.arrow"}]}"#),
        "state.json: `../rows.arrow` is no file of this folder"
    );
    assert_eq!(
        state(
            r#"{"_data_files": [{"filename": "data-00000-of-00003.arrow"}], "_indices_data_files": [{"filename": "indices.arrow"}]}"#
        ),
        "state.json: the rows are a selection of the shards' by an indices table, which pipe can't follow: load the \
         folder in Python and save it with `flatten_indices().save_to_disk(…)`"
    );
    let dir = folder(&[("dataset_dict.json", r#"{"splits": ["train"]}"#)]);
    assert_eq!(
        refusal(&path(dir.path(), ".")).replace(&format!("{}/./", dir.path().display()), ""),
        "dataset_dict.json: names the split `train`, and train/state.json is missing"
    );
}

#[test]
fn the_fifty_tweets_come_in_order() {
    let file =
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/raft_twitter_complaints.jsonl"));
    if !file.exists() {
        println!("skipped: {} is not there", file.display());
        return;
    }
    let dataset = loaded(&path(Path::new("."), &file.to_string_lossy()));
    let train = dataset.split("train").unwrap();
    assert_eq!(
        (train.rows(), train.column_names()),
        (50, vec!["Tweet text".into(), "ID".into(), "Label".into()])
    );
    assert_eq!(train.text_at("Tweet text", 0).unwrap().unwrap(), "@HMRCcustomers No this is my first job");
    assert_eq!(train.text_at("ID", 49).unwrap().unwrap(), "49");
}

#[test]
fn the_nested_questions_keep_their_shape() {
    let file = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../shared/data/eli5_shaped.jsonl"));
    if !file.exists() {
        println!("skipped: {} is not there", file.display());
        return;
    }
    let dataset = loaded(&path(Path::new("."), &file.to_string_lossy()));
    let train = dataset.split("train").unwrap();
    assert_eq!(train.rows(), 300);
    let answers = spelled(train.column("answers").unwrap().dtype());
    assert!(answers.starts_with("struct[a_id: list[str], text: list[str], score: list[i64]"), "{answers}");
}

#[test]
fn nested_columns_are_kept() {
    let line = |id: &str, texts: &str| format!("{{\"id\": \"{id}\", \"answers\": {{\"text\": {texts}}}}}\n");
    let rows = line("q0", "[\"x\", \"y\"]") + &line("q1", "[]");
    let dir = folder(&[("1.jsonl", &rows), ("2.jsonl", &line("q2", "[\"z\"]"))]);
    let dataset = loaded(&path(dir.path(), "*.jsonl"));
    let answers = dataset.splits[0].column("answers").unwrap();
    assert_eq!(spelled(answers.dtype()), "struct[text: list[str]]");
    assert_eq!(dataset.splits[0].rows(), 3);
    assert_eq!(
        dataset.splits[0].text_at("answers", 0).unwrap_err().to_string(),
        "column `answers` holds struct[1], which is not text, a number or true/false"
    );
}
