//! What runs again, what does not, and what is said about it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod project;

use project::{Project, TWEETS};

const ALL: [&str; 6] = ["tweets", "labelled", "tokens", "prompt", "scores", "answers"];

#[test]
fn the_second_run_is_cached_and_writes_nothing_but_its_record() {
    let project = Project::tweets();
    let first = project.run(0, &["tweets.yaml"]);
    assert_eq!(first.with_status("ran"), ALL);
    // A file written a moment ago is read again, and not yet remembered: wait until the project's have settled.
    std::thread::sleep(std::time::Duration::from_millis(200));
    project.run(0, &["tweets.yaml"]);
    let (cache, runs) = (project.files(".pipe/cache"), project.files(".pipe/runs").len());
    let adapter = project.adapter();
    let second = project.run(0, &["tweets.yaml"]);
    assert_eq!(second.with_status("cached"), ALL);
    assert_eq!(project.files(".pipe/cache"), cache);
    assert!(project.files(".pipe/runs").len() > runs);
    assert_eq!(project.adapter(), adapter);
}

#[test]
fn a_learning_rate_reruns_training_and_what_follows() {
    let project = Project::tweets();
    project.run(0, &["tweets.yaml"]);
    let plan = project.pipe(&["plan", "tweets.yaml", "--set", "learning_rate=0.02"]);
    assert_eq!(
        plan.stdout,
        "\
cached  tweets    load_dataset
cached  labelled  relabel
cached  tokens    tokenize
run     prompt    train_soft_prompt  learning_rate changed from 0.01 to 0.02
maybe   scores    evaluate           runs if prompt comes out different
maybe   answers   generate           runs if prompt comes out different
3 to run, 3 cached
"
    );
    let changed = project.run(0, &["tweets.yaml", "--set", "learning_rate=0.02"]);
    assert_eq!(changed.with_status("cached"), ["tweets", "labelled", "tokens"]);
    assert_eq!(changed.with_status("ran"), ["prompt", "scores", "answers"]);
    assert_eq!(changed.stage("prompt")["why"][0], "learning_rate changed from 0.01 to 0.02");
}

#[test]
fn order_comments_and_quotes_rerun_nothing() {
    let project = Project::tweets();
    project.run(0, &["tweets.yaml"]);
    project.edit(
        "tweets.yaml",
        "      epochs: 2\n      batch_size: 4\n",
        "      \"batch_size\": 4 # rows\n      epochs: 2\n",
    );
    project.edit("tweets.yaml", "with: { path: data }", "with:\n      path: 'data'\n");
    assert_eq!(project.run(0, &["tweets.yaml"]).with_status("cached"), ALL);
}

#[test]
fn an_input_that_comes_out_the_same_stops_the_rerun() {
    let project = Project::tweets();
    project.edit(
        "tweets.yaml",
        "column: Label, into: text_label, names: [Unlabeled, complaint, no_complaint]",
        "column: Label",
    );
    project.edit("tweets.yaml", "{text_label}", "{Label}");
    project.write("data/train.csv", "Tweet text,ID,Label\nbad,0,a_complaint\ngood,1,no_complaint\n");
    std::fs::remove_file(project.path("data/test.csv")).unwrap();
    project.run(0, &["tweets.yaml"]);
    project.write("data/train.csv", "Tweet text,ID,Label\nbad,0,a complaint\ngood,1,no complaint\n");
    let again = project.run(0, &["tweets.yaml"]);
    assert_eq!(again.with_status("ran"), ["tweets", "labelled"]);
    assert_eq!(again.stage("tweets")["why"][0], "the content of `path` changed");
    assert_eq!(again.with_status("cached"), ["tokens", "prompt", "scores", "answers"]);
}

#[test]
fn force_makes_anew_and_comes_to_the_same() {
    let project = Project::tweets();
    project.run(0, &["tweets.yaml"]);
    let adapter = project.adapter();
    let forced = project.run(0, &["tweets.yaml", "--force", "prompt"]);
    assert_eq!(forced.with_status("ran"), ["prompt"]);
    assert_eq!(forced.stage("prompt")["why"][0], "forced");
    assert_eq!(project.adapter(), adapter);
    assert_eq!(project.run(0, &["tweets.yaml", "--force"]).with_status("ran"), ALL);
}

#[test]
fn asked_for_stages_bring_what_they_need_and_no_more() {
    let project = Project::tweets();
    let some = project.run(0, &["tweets.yaml", "tokens"]);
    assert_eq!(some.with_status("ran"), ["tweets", "labelled", "tokens"]);
    assert_eq!(some.with_status("skipped"), ["prompt", "scores", "answers"]);
    let wrong = project.pipe(&["run", "tweets.yaml", "token"]);
    assert_eq!(wrong.code, Some(2));
    assert_eq!(wrong.stderr, "error: the manifest has no stage `token`; did you mean `tokens`?\n");
}

#[test]
fn another_checkout_elsewhere_comes_to_the_same_keys() {
    let (a, b) = (Project::tweets(), Project::tweets());
    let (a, b) = (a.run(0, &["tweets.yaml"]), b.run(0, &["tweets.yaml"]));
    for stage in ALL {
        assert_eq!(a.stage(stage)["key"], b.stage(stage)["key"], "{stage}");
    }
}

#[test]
fn jobs_and_cold_or_warm_make_no_difference_to_the_bytes() {
    let (a, b) = (Project::tweets(), Project::tweets());
    a.run(0, &["tweets.yaml", "--jobs", "1"]);
    b.run(0, &["tweets.yaml", "tokens"]);
    let mut command = b.command(&["run", "tweets.yaml", "--jobs", "8"]);
    assert!(command.env("RAYON_NUM_THREADS", "1").status().unwrap().success());
    assert_eq!(a.adapter(), b.adapter());
}

#[test]
fn a_manifest_in_a_folder_reads_beside_itself_and_set_reads_from_here() {
    let project = Project::tweets();
    project.write(
        "deep/tweets.yaml",
        &TWEETS
            .replace("path: data", "path: \"${params.data}\"")
            .replace("params:\n", "params:\n  data: ../data\n"),
    );
    project.edit("deep/tweets.yaml", "model: model\n", "model: ../model\n");
    project.run(0, &["deep/tweets.yaml", "labelled"]);
    let here = project.run(0, &["deep/tweets.yaml", "labelled", "--set", "data=data/train.csv"]);
    assert_eq!(here.with_status("ran"), ["tweets", "labelled"]);
}
