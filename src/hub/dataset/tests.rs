use super::*;

/// The files that the cards below speak of.
const FILES: &str = "train.csv test.csv data/a.csv data/b.csv data/sub/c.csv data/n.jsonl x/train.csv x/test.csv \
                     y/1.csv y/2.csv .h/z.csv __s/z.csv";

/// Files, the YAML of the card, the configuration asked for, and what `datasets` 5.2 makes of it:
/// `load_dataset_builder(folder, name).config` of a folder with these files, its name and `data_files`.
const AGREED: &[(&str, &str, Option<&str>, &str)] = &[
    ("data.csv", "", None, "default = train: data.csv"),
    ("a.csv b.csv contest.csv", "", None, "default = train: a.csv b.csv contest.csv"),
    ("train.csv test.csv", "", None, "default = train: train.csv | test: test.csv"),
    (
        "README.md train.jsonl valid.jsonl eval.jsonl",
        "",
        None,
        "default = train: train.jsonl | validation: valid.jsonl | test: eval.jsonl",
    ),
    (
        "data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet data/test-00000-of-00001.parquet",
        "",
        None,
        "default = train: data/train-00000-of-00002.parquet data/train-00001-of-00002.parquet | test: data/test-00000-of-00001.parquet",
    ),
    (
        "data/train-00000-of-00001.parquet data/other-00000-of-00001.parquet data/validation-00000-of-00001.parquet data/a_b.c-00000-of-00001.parquet data/test.parquet extra.csv",
        "",
        None,
        "default = train: data/train-00000-of-00001.parquet | validation: data/validation-00000-of-00001.parquet | a_b.c: data/a_b.c-00000-of-00001.parquet | other: data/other-00000-of-00001.parquet",
    ),
    (
        "data/train-00000-of-00001-abcdef0123.parquet data/test-00000-of-00001-ffff.parquet",
        "",
        None,
        "default = train: data/train-00000-of-00001-abcdef0123.parquet | test: data/test-00000-of-00001-ffff.parquet",
    ),
    (
        "train/a.csv train/b.csv test/a.csv",
        "",
        None,
        "default = train: train/a.csv train/b.csv | test: test/a.csv",
    ),
    (
        "data/train/x/a.csv data/dev/a.csv",
        "",
        None,
        "default = train: data/train/x/a.csv | validation: data/dev/a.csv",
    ),
    ("my-train/a.csv my_test.csv", "", None, "default = train: my-train/a.csv"),
    (
        "train-1/a.csv train_2/b.csv 3.test/c.csv",
        "",
        None,
        "default = train: train-1/a.csv train_2/b.csv | test: 3.test/c.csv",
    ),
    (
        "data/train.csv data/dev.csv data/testing.csv data/notes.csv",
        "",
        None,
        "default = train: data/train.csv | validation: data/dev.csv | test: data/testing.csv",
    ),
    (
        "a_train.csv train.csv training.csv b-train-1.csv",
        "",
        None,
        "default = train: train.csv a_train.csv b-train-1.csv training.csv",
    ),
    ("train_test.csv test.csv", "", None, "default = train: train_test.csv | test: test.csv train_test.csv"),
    ("mytrain.csv detest.csv", "", None, "default = train: detest.csv mytrain.csv"),
    ("Train.csv TEST.csv", "", None, "default = train: TEST.csv Train.csv"),
    ("train1.csv test2.csv", "", None, "default = train: train1.csv | test: test2.csv"),
    ("x.train.csv x.val.csv", "", None, "default = train: x.train.csv | validation: x.val.csv"),
    (
        "validation.csv val.csv valid.csv dev.csv val-dev.csv",
        "",
        None,
        "default = validation: validation.csv valid.csv dev.csv val-dev.csv val-dev.csv val.csv",
    ),
    ("evaluation/a.csv eval.csv", "", None, "default = test: evaluation/a.csv"),
    ("train/test.csv", "", None, "default = train: train/test.csv"),
    ("test/train/x.csv", "", None, "default = train: test/train/x.csv | test: test/train/x.csv"),
    ("trainer/a.csv b.csv", "", None, "default = train: b.csv trainer/a.csv"),
    ("a train.csv b.csv", "", None, "default = train: train.csv"),
    ("__pycache__/train.csv a.csv", "", None, "default = train: a.csv"),
    (".hidden/train.csv .test.csv a.csv", "", None, "default = train: a.csv"),
    ("d/.x/train.csv d/test.csv", "", None, "default = test: d/test.csv"),
    ("a.csv b.csv c.json", "", None, "default = train: a.csv b.csv"),
    ("a.csv b.json", "", None, "default = train: b.json"),
    ("a.csv b.jsonl", "", None, "default = train: b.jsonl"),
    ("a.parquet b.csv", "", None, "default = train: a.parquet"),
    ("a.arrow b.jsonl", "", None, "default = train: a.arrow"),
    ("a.txt b.csv", "", None, "default = train: b.csv"),
    ("a.txt b.txt c.csv", "", None, "default = train: a.txt b.txt"),
    ("a.json b.jsonl c.csv", "", None, "default = train: a.json b.jsonl"),
    ("x.csv metadata.csv", "", None, "default = train: metadata.csv x.csv"),
    ("a.v1.csv b.v1.csv c.v1.json", "", None, "default = train: a.v1.csv b.v1.csv"),
    ("LICENSE data.csv", "", None, "default = train: data.csv"),
    ("a.ndjson b.parquet c.ndjson", "", None, "default = train: a.ndjson c.ndjson"),
    (FILES, "configs:\n- config_name: default\n  data_files: train.csv", None, "default = train: train.csv"),
    (
        FILES,
        "configs:\n- config_name: one\n  data_files: data/*.csv",
        None,
        "one = train: data/a.csv data/b.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: one\n  data_files:\n  - data/b.csv\n  - data/a.csv\n  - data/*.csv",
        None,
        "one = train: data/b.csv data/a.csv data/a.csv data/b.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: one\n  data_files:\n  - split: test\n    path: test.csv\n  - split: train\n    path:\n    - train.csv\n    - data/**/*.csv",
        None,
        "one = test: test.csv | train: train.csv data/a.csv data/b.csv data/sub/c.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: one\n  data_files:\n  - split: train\n    path: '**/*.csv'",
        None,
        "one = train: data/a.csv data/b.csv data/sub/c.csv test.csv train.csv x/test.csv x/train.csv y/1.csv y/2.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: one\n  data_files:\n  - split: a.b_c\n    path: y/[1-9].csv\n  - split: rest\n    path: '?est.csv'",
        None,
        "one = a.b_c: y/1.csv y/2.csv | rest: test.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: one\n  data_files: '[!t]*/[ab].csv'",
        None,
        "one = train: data/a.csv data/b.csv",
    ),
    (FILES, "configs:\n- config_name: one\n  data_files: ./data/a.csv", None, "one = train: data/a.csv"),
    (FILES, "configs:\n- config_name: one\n  data_files: .h/*.csv", None, "one = train: .h/z.csv"),
    (FILES, "configs:\n- config_name: one\n  data_files: __s/*.csv", None, "one = train: __s/z.csv"),
    (
        FILES,
        "configs:\n- config_name: a\n  data_files: data/a.csv\n- config_name: b\n  data_files: data/b.csv",
        Some("b"),
        "b = train: data/b.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: a\n  data_files: data/a.csv\n- config_name: b\n  data_files: data/b.csv\n  default: true",
        None,
        "b = train: data/b.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: default\n  data_files: data/a.csv\n- config_name: b\n  data_files: data/b.csv",
        None,
        "default = train: data/a.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: x\n  data_dir: x\n- config_name: y\n  data_dir: y",
        Some("x"),
        "x = train: x/train.csv | test: x/test.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: x\n  data_dir: x\n- config_name: y\n  data_dir: y",
        Some("y"),
        "y = train: y/1.csv y/2.csv",
    ),
    (
        FILES,
        "configs:\n- config_name: x\n  data_dir: ./x/",
        None,
        "x = train: x/train.csv | test: x/test.csv",
    ),
    (
        "x/train.csv x/test.csv test.csv tail.csv",
        "configs:\n- config_name: x\n  data_dir: x\n  data_files: t*.csv",
        None,
        "x = train: x/test.csv x/train.csv",
    ),
    ("train.csv test.csv", "configs:\n- config_name: x", None, "x = train: train.csv | test: test.csv"),
    ("train.csv", "license: mit", None, "default = train: train.csv"),
    ("train.csv", "license: mit", Some("default"), "default = train: train.csv"),
];

fn owned(paths: &str) -> Vec<String> {
    paths.split(' ').map(str::to_owned).collect()
}

fn card(yaml: &str) -> Card {
    Card::parse(&format!("---\n{yaml}\n---\n# Words\n")).unwrap()
}

fn found(paths: &[String], card: &Card, config: Option<&str>) -> DataFiles {
    match find(&Repository { name: Some("raft"), paths, card }, config).unwrap() {
        Finding::Here(files) => files,
        elsewhere => panic!("{paths:?}: {elsewhere:?}"),
    }
}

/// `config = split: path path | split: path`
fn told(files: &DataFiles) -> String {
    let splits: Vec<String> =
        files.splits.iter().map(|f| format!("{}: {}", f.split, f.paths.join(" "))).collect();
    format!("{} = {}", files.config, splits.join(" | "))
}

fn refusal(paths: &str, yaml: &str, config: Option<&str>) -> String {
    let paths = owned(paths);
    match Card::parse(&format!("---\n{yaml}\n---\n"))
        .and_then(|card| find(&Repository { name: Some("raft"), paths: &paths, card: &card }, config))
    {
        Err(error) => error.to_string(),
        Ok(Finding::Elsewhere { why }) => format!("elsewhere: {why}"),
        Ok(Finding::Here(files)) => panic!("{}", told(&files)),
    }
}

#[test]
fn the_same_files_as_in_python() {
    for (paths, yaml, config, want) in AGREED {
        let card = if yaml.is_empty() { Card::default() } else { card(yaml) };
        let files = found(&owned(paths), &card, *config);
        assert_eq!(told(&files), *want, "{paths}\n{yaml}");
        // What was pinned is all that is there when the rows are read.
        let again = found(&files.needed, &card, *config);
        assert_eq!((again.config, again.splits, again.needed), (files.config, files.splits, files.needed));
    }
}

#[test]
fn what_a_folder_of_mixed_files_holds() {
    // Python refuses splits of different formats, and takes the notes of `data/**` for csv.
    let told_of = |paths: &str, yaml: &str| told(&found(&owned(paths), &card(yaml), None));
    assert_eq!(told_of("train.csv test.jsonl", ""), "default = train: train.csv | test: test.jsonl");
    assert_eq!(
        told_of(FILES, "configs:\n- config_name: one\n  data_files: data/**"),
        "one = train: data/a.csv data/b.csv data/sub/c.csv"
    );
    assert_eq!(
        told_of("train.py test_it.py rows.csv LICENSE.md CHANGES.md", ""),
        "default = train: rows.csv"
    );
    let yaml = "configs:\n- config_name: one\n  data_files: { test: x/*.csv, train: y/1.csv }";
    assert_eq!(told_of(FILES, yaml), "one = train: y/1.csv | test: x/test.csv x/train.csv");
}

#[test]
fn what_is_needed_and_what_is_left_out() {
    let paths =
        owned("README.md dataset_infos.json data/train.csv data/dev.csv data/x.csv data/train.json LICENSE");
    let files = found(&paths, &Card::default(), None);
    assert_eq!(files.needed, ["README.md", "data/dev.csv", "data/train.json", "dataset_infos.json"]);
    assert_eq!(
        files.warnings,
        [
            "left out: data/x.csv; no name of theirs tells a split, as others' do",
            "left out: data/train.csv; most files of their split are in another format",
        ]
    );
    let many: Vec<String> = (0..9).map(|n| format!("{n}.csv")).chain(["train.csv".into()]).collect();
    let warnings = found(&many, &Card::default(), None).warnings;
    assert_eq!(
        warnings,
        ["left out: 0.csv, 1.csv, 2.csv and 6 more; no name of theirs tells a split, as others' do"]
    );
}

#[test]
fn what_can_not_be_read_here_may_be_converted() {
    for (paths, want) in [
        ("README.md raft.py data/train.csv", "raft.py is a loading script, which pipe does not run"),
        ("README.md glue.py", "there is no file with data in it"),
        ("train.csv.gz test.csv.gz", "train.csv.gz is in a format that pipe does not read"),
        ("a.csv a.csv.gz", "a.csv.gz is in a format that pipe does not read"),
        ("1.png 2.PNG metadata.csv", "1.png is in a format that pipe does not read"),
        ("train.tsv", "train.tsv is in a format that pipe does not read"),
        ("train.csv test.zip", "test.zip is in a format that pipe does not read"),
    ] {
        assert_eq!(refusal(paths, "", None), format!("elsewhere: {want}"));
    }
}

#[test]
fn what_makes_no_sense_is_said() {
    let one = |data_files: &str| format!("configs:\n- config_name: one\n  data_files: {data_files}");
    let two =
        "configs:\n- config_name: en\n  data_files: x/*.csv\n- config_name: 'de'\n  data_files: y/*.csv";
    for (yaml, config, want) in [
        (two.to_owned(), None, "the dataset has 2 configurations: `en`, `de`"),
        (
            two.to_owned(),
            Some("english"),
            "no configuration `english` (did you mean `en`?); there are `en`, `de`",
        ),
        ("license: mit".into(), Some("x"), "no configuration `x`; there are `default`"),
        (
            two.replace("*.csv", "*.csv\n  default: true"),
            None,
            "README.md: `en` and `de` are both the default configuration",
        ),
        (one("gone.csv"), None, "configuration `one`: README.md names gone.csv, which is not there"),
        (
            one("'gone*.csv'"),
            None,
            "configuration `one`: no file for split `train`: nothing with data matches `gone*.csv`",
        ),
        (
            one("'*/z.csv'"),
            None,
            "configuration `one`: no file for split `train`: nothing with data matches `*/z.csv`",
        ),
        (
            one("[{split: train, path: train.csv}, {split: test, path: ['x*.csv', 'y*.csv']}]"),
            None,
            "configuration `one`: no file for split `test`: nothing with data matches `x*.csv`, `y*.csv`",
        ),
        (
            "configs: [{config_name: one, data_dir: z}]".into(),
            None,
            "configuration `one`: no file for split `train`: nothing with data matches `z/**`",
        ),
        (
            one("data/**a.csv"),
            None,
            "configuration `one`: README.md has the pattern `data/**a.csv`: `**` has to stand alone between slashes",
        ),
        (
            one("'{train,test}.csv'"),
            None,
            "configuration `one`: README.md names {train,test}.csv, which is not there",
        ),
        (
            one("../rows.csv"),
            None,
            "configuration `one`: README.md names `../rows.csv`, which is no path within the dataset",
        ),
        (
            one("/etc/passwd"),
            None,
            "configuration `one`: README.md names `/etc/passwd`, which is no path within the dataset",
        ),
        (
            one("hf://datasets/a/b/c.csv"),
            None,
            "configuration `one`: README.md names `hf://datasets/a/b/c.csv`, which is no path within the dataset",
        ),
        (
            "configs: [{config_name: one, data_dir: a/../..}]".into(),
            None,
            "configuration `one`: README.md names `a/../..`, which is no path within the dataset",
        ),
        (
            one("[{split: ../x, path: train.csv}]"),
            None,
            "`../x` can't be the name of a split: letters, digits, `_`, `-` and `.` are allowed",
        ),
        (
            one("[{split: train, path: train.csv}, {split: train, path: test.csv}]"),
            None,
            "README.md: `data_files` of configuration `one` has split `train` twice",
        ),
        (
            one("[{split: train}]"),
            None,
            "README.md: `data_files` of configuration `one` is neither a path, nor a list of paths, nor a list of \
             entries with `split` and `path`",
        ),
        ("configs: train.csv".into(), None, "README.md: `configs` is no list"),
        ("configs: [{data_files: a}]".into(), None, "README.md: an entry of `configs` has no `config_name`"),
        ("just words".into(), None, "README.md: the YAML between the two `---` is no mapping"),
        ("license: mit\na: [b".into(), None, "README.md: the YAML at the top can't be read (line 3)"),
    ] {
        assert_eq!(refusal(FILES, &yaml, config), want, "{yaml}");
    }
    let names: Vec<String> = (0..50).map(|n| format!("c{n}")).collect();
    let listed = FindError::WhichConfig(names).to_string();
    assert!(listed.ends_with("`c38`, `c39` and 10 more"), "{listed}");
}

#[test]
fn a_card_is_held_to_a_measure() {
    let error = |text: &str| Card::parse(text).unwrap_err().to_string();
    assert_eq!(
        error(&"a".repeat(card::MAX_CARD + 1)),
        "README.md: the file has 4194305 bytes; at most 4194304 are read"
    );
    let too_many = "README.md: the YAML at the top is nested deeper than 64 levels or, its aliases followed, has more \
                    than 400000 values";
    let levels: String =
        (1..30).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", "))).collect();
    assert_eq!(error(&format!("---\na0: &a0 x\n{levels}---\n")), too_many);
    let deep = format!("---\na: {}{}\n---\n", "[".repeat(500), "]".repeat(500));
    assert_eq!(error(&deep), "README.md: the YAML at the top can't be read (line 2)");
    let patterns = vec!["- '*.csv'"; 1001].join("\n  ");
    let many: Vec<String> = (0..10_000).map(|n| format!("{n}.csv")).collect();
    let card = card(&format!("configs:\n- config_name: one\n  data_files:\n  {patterns}"));
    assert_eq!(
        find(&Repository { name: None, paths: &many, card: &card }, None).unwrap_err().to_string(),
        "configuration `one`: README.md has 1001 patterns for 10000 files, which are too many to compare"
    );
    for nothing in
        ["", "# Words", "---\nno end\n", "# Words\n---\nconfigs: x\n---\n", "---\n---\n", "---\n# a\n---\n"]
    {
        assert!(Card::parse(nothing).unwrap().configs.is_empty(), "{nothing}");
    }
}

#[test]
fn the_card_knows_the_class_names() {
    let label = "    features:\n    - name: text\n      dtype: string\n    - name: label\n      dtype:\n        \
                 class_label:\n          names:\n            '0': Unlabeled\n            1: complaint\n            \
                 '2': no complaint\n    splits:\n    - name: train\n";
    let names = |features: &BTreeMap<String, Feature>| {
        let names = |f: &Feature| f.class_names.clone().unwrap().join(", ");
        features.iter().map(|(column, f)| format!("{column}: {}", names(f))).collect::<Vec<_>>()
    };
    let want = ["label: Unlabeled, complaint, no complaint"];
    let single = card(&format!("dataset_info:\n{label}"));
    assert_eq!(names(&single.features("default")), want);
    assert_eq!(names(&found(&owned("a.csv"), &single, None).features), want);
    let named = card(&format!("dataset_info:\n    config_name: tweets\n{label}"));
    assert_eq!(names(&found(&owned("a.csv"), &named, Some("tweets")).features), want);
    let of_two = card(&format!(
        "dataset_info:\n  - config_name: tweets\n{label}  - config_name: other\n    features:\n    - name: y\n      \
         class_label: {{ names: ['no', 'yes'] }}\nconfigs:\n- config_name: tweets\n  data_files: a.csv\n\
         - config_name: other\n  data_files: b.csv"
    ));
    assert_eq!(names(&found(&owned("a.csv b.csv"), &of_two, Some("tweets")).features), want);
    assert_eq!(names(&found(&owned("a.csv b.csv"), &of_two, Some("other")).features), ["y: no, yes"]);
    let missing = label.replace("            1: complaint\n", "");
    assert_eq!(
        refusal("a.csv", &format!("dataset_info:\n{missing}"), None),
        "README.md: column `label` has class names that are not those of the ids 0, 1, 2 and so on"
    );
}

fn converted(paths: &str, yaml: &str, config: Option<&str>) -> Result<String, String> {
    find_converted(&owned(paths), &card(yaml), config)
        .map(|files| [told(&files)].into_iter().chain(files.warnings).collect::<Vec<_>>().join("; "))
        .map_err(|error| error.to_string())
}

#[test]
fn the_branch_of_converted_files_has_its_own_layout() {
    let raft =
        "ade/train/0000.parquet tweets/test/0000.parquet tweets/train/0001.parquet tweets/train/0000.parquet";
    assert_eq!(
        converted(raft, "", Some("tweets")).unwrap(),
        "tweets = train: tweets/train/0000.parquet tweets/train/0001.parquet | test: tweets/test/0000.parquet"
    );
    assert_eq!(converted(raft, "", None).unwrap_err(), "the dataset has 2 configurations: `ade`, `tweets`");
    assert_eq!(
        converted(raft, "", Some("tweet")).unwrap_err(),
        "no configuration `tweet` (did you mean `tweets`?); there are `ade`, `tweets`"
    );
    let default = "configs: [{config_name: ade, default: true}, {config_name: tweets}]";
    assert_eq!(converted(raft, default, None).unwrap(), "ade = train: ade/train/0000.parquet");
    assert_eq!(
        converted("c/partial-train/0000.parquet c/test/0000.parquet", "", None).unwrap(),
        "c = train: c/partial-train/0000.parquet | test: c/test/0000.parquet; \
         of split `train` the Hub has converted only the first part"
    );
    assert_eq!(
        converted(
            "c/raft-train-00001-of-00002.parquet c/raft-train-00000-of-00002.parquet c/raft-test.parquet",
            "",
            None
        )
        .unwrap(),
        "c = train: c/raft-train-00000-of-00002.parquet c/raft-train-00001-of-00002.parquet | test: c/raft-test.parquet"
    );
    assert_eq!(
        converted(".gitattributes README.md", "", None).unwrap_err(),
        "there is no file with data in it"
    );
    let refused =
        |path: &str| find_converted(&[path.to_owned()], &Card::default(), None).unwrap_err().to_string();
    assert_eq!(
        refused("c/a b/0000.parquet"),
        "`a b` can't be the name of a split: letters, digits, `_`, `-` and `.` are allowed"
    );
    assert_eq!(
        refused("c/../train/0000.parquet"),
        "the commit has a file `c/../train/0000.parquet`, which is no path within a folder"
    );
    assert_eq!(
        refusal("train.csv ../test.csv", "", None),
        "the commit has a file `../test.csv`, which is no path within a folder"
    );
}
