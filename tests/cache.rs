//! What is served is what was written: whoever else has a file of a result, whatever becomes of it on the disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod project;

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use project::Project;

/// A pipeline of commands: `name inputs run output`, a line each.
fn commands(stages: &[(&str, &str, &str, &str)]) -> Project {
    let project = Project::new();
    let mut text = "pipeline: p\nstages:\n".to_owned();
    for (name, inputs, run, output) in stages {
        text += &format!(
            "  {name}:\n    uses: command\n    inputs: {{ {inputs} }}\n    with:\n      run: |\n        {}\n      outputs: {{ it: {{ path: '{output}' }} }}\n",
            run.replace('\n', "\n        ")
        );
    }
    project.write("p.yaml", &text);
    project
}

fn result(project: &Project, path: &str) -> String {
    project.read(&format!(".pipe/runs/latest/stages/{path}"))
}

fn entries(project: &Project) -> Vec<PathBuf> {
    let files = project.files(".pipe/cache/v2/entries");
    files.into_iter().map(|(path, ..)| path).collect()
}

/// Replaces a file's bytes in place; its length and time of writing stay.
fn damage(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    change(&mut bytes);
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, Permissions::from_mode(0o444)).unwrap();
    File::open(path).unwrap().set_modified(modified).unwrap();
}

#[test]
fn a_command_may_do_with_its_inputs_as_it_likes() {
    let project = commands(&[
        ("a", "", "echo original > x", "x"),
        (
            "b",
            "x: a",
            "echo EDITED > $PIPE_INPUT_X; cp $PIPE_INPUT_X y; touch $(dirname $PIPE_INPUT_X)/more",
            "y",
        ),
        ("c", "x: a, after: b", "cat $PIPE_INPUT_X > z; ls $(dirname $PIPE_INPUT_X) > names", "."),
    ]);
    project.run(0, &["p.yaml"]);
    assert_eq!(result(&project, "a/x"), "original\n");
    assert_eq!(result(&project, "b/y"), "EDITED\n");
    assert_eq!(result(&project, "c/z"), "original\n");
    assert_eq!(result(&project, "c/names"), "x\n");
    assert_eq!(project.run(0, &["p.yaml"]).with_status("cached"), ["a", "b", "c"]);
    assert_eq!(project.pipe(&["cache", "verify"]).code, Some(0));
}

#[test]
fn a_file_with_another_name_stays_the_users() {
    let project = Project::new();
    project.write("data.csv", "text,label\nabc,1\n");
    let data = project.path("data.csv");
    fs::set_permissions(&data, Permissions::from_mode(0o644)).unwrap();
    project.write(
        "p.yaml",
        &format!(
            "pipeline: p\nstages:\n  a: {{ uses: command, with: {{ run: 'ln {} rows.csv', outputs: {{ rows: {{ path: rows.csv }} }} }} }}\n",
            data.display()
        ),
    );
    project.run(0, &["p.yaml"]);
    let found = fs::metadata(&data).unwrap();
    assert_eq!((found.nlink(), found.mode() & 0o777), (1, 0o644));
    fs::write(&data, "text,label\nxyz,0\n").unwrap();
    project.run(0, &["p.yaml"]);
    assert_eq!(result(&project, "a/rows.csv"), "text,label\nabc,1\n");
}

#[test]
fn modes_empty_folders_and_names_of_any_bytes_reach_the_next_stage() {
    let tool = "printf '#!/bin/sh\\necho hi\\n' > t";
    let project = commands(&[
        ("plain", "", tool, "t"),
        (
            "tool",
            "after: plain",
            &format!(
                "{tool}\nchmod 4755 t\nmkdir -p x/empty\nprintf 1 > \"$(printf 'l\\351')\"\nprintf 2 > \"$(printf 'l\\350')\""
            ),
            ".",
        ),
        (
            "use",
            "t: tool",
            "$PIPE_INPUT_T/t > said\nls -1b $PIPE_INPUT_T > names\ntest -d $PIPE_INPUT_T/x/empty\nstat -c %a $PIPE_INPUT_T/t > mode",
            ".",
        ),
    ]);
    project.run(0, &["p.yaml"]);
    assert_eq!(result(&project, "use/said"), "hi\n");
    assert_eq!(result(&project, "use/names"), "command.log\nl\\350\nl\\351\nt\nx\n");
    assert_eq!(result(&project, "use/mode"), "755\n");
    let mode = |path: &str| {
        fs::metadata(project.path(&format!(".pipe/runs/latest/stages/{path}"))).unwrap().mode() & 0o7777
    };
    assert_eq!((mode("plain/t"), mode("tool/t")), (0o444, 0o555));
    assert_eq!(project.pipe(&["cache", "verify"]).code, Some(0));
}

#[test]
fn a_link_is_no_result() {
    let project = commands(&[("a", "", "mkdir d; ln -s /etc/hostname d/name", "d")]);
    let ran = project.pipe(&["run", "p.yaml"]);
    assert_eq!(ran.code, Some(1));
    let expected =
        "error: stage `a` failed\n  d/name is a symbolic link: only files and folders can be results\n";
    assert!(ran.stderr.ends_with(expected), "{}", ran.stderr);
}

#[test]
fn a_stage_never_computes_from_damaged_bytes() {
    let (clean, project) = (Project::tweets(), Project::tweets());
    clean.run(0, &["tweets.yaml"]);
    project.run(0, &["tweets.yaml", "prompt"]);
    let adapter = project.path(".pipe/runs/latest/stages/prompt/adapter_model.safetensors");
    damage(&adapter, |bytes| *bytes.last_mut().unwrap() ^= 0x40);
    let ran = project.pipe(&["run", "tweets.yaml", "scores"]);
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let expected = "error: stage `scores` failed\n  `adapter_model.safetensors` of prompt.adapter is not what its digest says\n  help: the damaged result was taken out of the cache: run again, and it is made anew\n";
    assert!(ran.stderr.contains(expected), "{}", ran.stderr);
    let again = project.run(0, &["tweets.yaml"]);
    assert!(again.with_status("ran").contains(&"prompt"));
    assert_eq!(project.adapter(), clean.adapter());
    let metrics = ".pipe/runs/latest/stages/scores/metrics.json";
    assert_eq!(project.read(metrics), clean.read(metrics));
}

#[test]
fn a_file_that_was_written_to_is_made_anew() {
    let project = commands(&[
        ("a", "", "echo first > a.txt; echo second > b.txt", "."),
        ("b", "x: a", "cat $PIPE_INPUT_X/*.txt > both", "both"),
    ]);
    project.run(0, &["p.yaml"]);
    // As an editor or a program does, on purpose or not: the time changes.
    let path = project.path(".pipe/runs/latest/stages/a/b.txt");
    fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
    fs::write(&path, "Xecond\n").unwrap();
    let again = project.run(0, &["p.yaml"]);
    assert_eq!((again.with_status("ran"), again.with_status("cached")), (vec!["a"], vec!["b"]));
    assert_eq!(result(&project, "a/b.txt"), "second\n");
}

#[test]
fn verify_takes_out_every_damaged_file_and_what_was_made_from_it() {
    let project = commands(&[
        ("a", "", "echo first > a.txt; echo second > b.txt", "."),
        ("b", "x: a", "cat $PIPE_INPUT_X/*.txt > both", "both"),
        ("c", "", "echo unrelated > c", "c"),
    ]);
    let ran = project.run(0, &["p.yaml"]);
    for name in ["a.txt", "b.txt"] {
        damage(&project.path(&format!(".pipe/runs/latest/stages/a/{name}")), |bytes| bytes[0] = b'X');
    }
    let key = |stage: &str| ran.stage(stage)["key"].as_str().unwrap()[..12].to_string();
    let verified = project.pipe(&["cache", "verify"]);
    assert_eq!(
        verified.stdout,
        format!(
            "damaged: a.txt of command {0}; the next run makes it anew\n\
             damaged: b.txt of command {0}; the next run makes it anew\n\
             taken out: command {1}, which was made from {0}; the next run makes it anew\n",
            key("a"),
            key("b")
        )
    );
    assert_eq!(verified.code, Some(1));
    assert_eq!(project.pipe(&["cache", "verify"]).stdout, "every file is what its digest says\n");
    assert_eq!(project.run(0, &["p.yaml"]).with_status("cached"), ["c"]);
    assert_eq!(result(&project, "b/both"), "first\nsecond\n");
}

#[test]
fn force_heals() {
    let project = commands(&[("a", "", "echo first > a.txt", ".")]);
    project.run(0, &["p.yaml"]);
    damage(&project.path(".pipe/runs/latest/stages/a/a.txt"), |bytes| bytes[0] = b'X');
    assert_eq!(project.run(0, &["p.yaml"]).with_status("cached"), ["a"]);
    assert_eq!(result(&project, "a/a.txt"), "Xirst\n", "nobody computes from it: only its bytes tell");
    project.run(0, &["p.yaml", "--force"]);
    assert_eq!(result(&project, "a/a.txt"), "first\n");
    assert_eq!(project.pipe(&["cache", "verify"]).stdout, "every file is what its digest says\n");
}

#[test]
fn a_damaged_entry_is_never_served_and_is_named() {
    let project = commands(&[("a", "", "echo first > a.txt", "a.txt")]);
    project.run(0, &["p.yaml"]);
    let [entry] = &entries(&project)[..] else { panic!("one entry") };
    let right = fs::read_to_string(entry).unwrap();
    for (wrong, why) in [
        (right.replace("\"a.txt\"", "\"b.txt\""), "it is not what was written: its seal does not fit"),
        (right[..200].to_string(), "it has no seal: it is cut off, or pipe did not write it"),
    ] {
        fs::write(entry, &wrong).unwrap();
        let verified = project.pipe(&["cache", "verify"]);
        let shown = entry.strip_prefix(project.path("")).unwrap().display();
        assert_eq!(verified.stdout, format!("damaged: {shown}: {why}; the next run makes the result anew\n"));
        assert_eq!(project.run(0, &["p.yaml"]).with_status("ran"), ["a"]);
        fs::write(entry, &wrong).unwrap();
        assert_eq!(project.run(0, &["p.yaml"]).with_status("ran"), ["a"]);
    }
}

#[test]
fn gc_says_what_it_frees_and_takes_what_killed_processes_left() {
    let project = commands(&[("a", "", "head -c 3000000 /dev/zero > x", "x")]);
    project.run(0, &["p.yaml"]);
    let collect = || project.pipe(&["cache", "gc", "--size", "0B", "--grace", "0s"]).stdout;
    assert_eq!(
        collect(),
        "removed 1 results and 2 files, 0 B; 3.0 MB more are free once the runs that have them are removed: `pipe runs rm`\n"
    );
    // A folder of an attempt whose process is gone.
    let work = project.path(".pipe/cache/v2/work");
    assert!(entries(&project).is_empty());
    fs::create_dir_all(work.join(format!("{}-7/out", "0".repeat(64)))).unwrap();
    fs::write(work.join(format!("{}-7/out/x", "0".repeat(64))), [0; 2000]).unwrap();
    assert_eq!(collect(), "removed 0 results and 0 files, 1 folders of killed processes, 2.0 kB\n");
    assert!(fs::read_dir(work).unwrap().next().is_none());
}

#[test]
fn gc_leaves_what_was_used_a_moment_ago() {
    let project = commands(&[("a", "", "echo 1 > x", "x"), ("b", "", "echo 2 > x", "x")]);
    project.run(0, &["p.yaml"]);
    let month = SystemTime::now() - Duration::from_secs(40 * 86400);
    for entry in entries(&project) {
        File::open(entry).unwrap().set_modified(month).unwrap();
    }
    project.run(0, &["p.yaml", "a"]);
    let collected = project.pipe(&["cache", "gc", "--age", "30d"]).stdout;
    assert!(collected.starts_with("removed 1 results and 1 files, 0 B"), "{collected}");
    assert_eq!(project.run(0, &["p.yaml"]).with_status("cached"), ["a"]);
}

#[test]
fn a_cache_of_an_earlier_version_is_not_read_and_that_is_said() {
    let project = commands(&[("a", "", "echo 1 > x", "x")]);
    project.write(".pipe/cache/v1/entries/nothing.json", "{}");
    let expected = "note: .pipe/cache/v1 is the cache of an earlier pipe and is not read: its results can't tell \
                    whether they are damaged; remove it once no earlier pipe uses it: rm -r .pipe/cache/v1\n";
    let ran = project.pipe(&["run", "p.yaml"]);
    assert!(ran.code == Some(0) && ran.stderr.contains(expected), "{}", ran.stderr);
    // Said once.
    let ran = project.pipe(&["run", "p.yaml"]);
    assert!(!ran.stderr.contains("earlier pipe"), "{}", ran.stderr);
}

#[test]
fn an_output_is_what_its_path_means_however_it_is_written() {
    let project = commands(&[
        ("a", "", "mkdir -p d/e; cat ../../../../../../which > d/e/x", "./d//e/"),
        ("b", "x: a", "cat $PIPE_INPUT_X/x > y", "y"),
    ]);
    for which in ["one\n", "two\n"] {
        project.write("which", which);
        project.run(0, &["p.yaml", "--force=a"]);
        assert_eq!(result(&project, "b/y"), which);
    }
}

#[test]
fn a_folder_that_was_put_in_the_place_of_the_stages_own_stays_the_users() {
    for replace in ["rmdir $PIPE_OUTPUT; ln -s {user} $PIPE_OUTPUT", "rmdir $PIPE_OUTPUT; exit 0"] {
        let project = Project::new();
        project.write("user/thesis.txt", "years of work");
        let replace = replace.replace("{user}", &project.path("user").display().to_string());
        let run = format!("{replace}; ls $PIPE_OUTPUT > $PIPE_OUTPUT/list");
        project.write(
            "p.yaml",
            &format!("pipeline: p\nstages:\n  a: {{ uses: command, with: {{ run: '{run}', outputs: {{ list: {{ path: list }} }} }} }}\n"),
        );
        let ran = project.pipe(&["run", "p.yaml"]);
        let expected = "error: stage `a` failed\n  the program removed or replaced the folder that it was to write to, \
                        $PIPE_OUTPUT\n  help: write into that folder; nothing of what stands there now was taken or \
                        changed\n";
        assert!(ran.code == Some(1) && ran.stderr.contains(expected), "{}", ran.stderr);
        assert_eq!(project.read("user/thesis.txt"), "years of work");
        assert!(fs::metadata(project.path("user/thesis.txt")).unwrap().mode() & 0o200 != 0);
    }
}

#[test]
fn a_folder_in_the_place_of_a_file_is_found_and_healed() {
    let project = commands(&[("a", "", "echo first > a.txt", "a.txt")]);
    let ran = project.run(0, &["p.yaml"]);
    let key = ran.stage("a")["key"].as_str().unwrap()[..12].to_string();
    let blob = |project: &Project| {
        let files = project.files(".pipe/cache/v2/blobs").into_iter();
        files.map(|(path, ..)| path).find(|path| fs::read(path).unwrap() == b"first\n").unwrap()
    };
    let replace = |path: &Path| {
        fs::remove_file(path).unwrap();
        fs::create_dir(path).unwrap();
        fs::write(path.join("x"), "").unwrap();
    };
    for _ in 0..2 {
        replace(&blob(&project));
        let verified = project.pipe(&["cache", "verify"]).stdout;
        assert_eq!(verified, format!("damaged: a.txt of command {key}; the next run makes it anew\n"));
        assert_eq!(project.run(0, &["p.yaml"]).with_status("ran"), ["a"]);
        replace(&blob(&project));
        assert_eq!(project.run(0, &["p.yaml"]).with_status("ran"), ["a"]);
        replace(&entries(&project)[0]);
        assert_eq!(project.pipe(&["cache", "verify"]).code, Some(1));
        assert_eq!(project.run(0, &["p.yaml"]).with_status("ran"), ["a"]);
        let entry = &entries(&project)[0];
        replace(entry);
        assert_eq!(project.run(0, &["p.yaml"]).with_status("ran"), ["a"]);
    }
    assert_eq!(project.pipe(&["cache", "verify"]).stdout, "every file is what its digest says\n");
}

#[test]
fn gc_takes_a_damaged_entry_with_its_blobs() {
    let project = commands(&[("a", "", "echo first > a.txt", "a.txt")]);
    project.run(0, &["p.yaml"]);
    let entry = entries(&project).remove(0);
    fs::write(&entry, "{").unwrap();
    project.pipe(&["cache", "gc", "--size", "1GB"]);
    assert!(entries(&project).is_empty());
}
