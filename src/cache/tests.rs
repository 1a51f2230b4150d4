use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::fingerprint::Writer;

fn key(name: &str) -> (Key, Fingerprint) {
    Writer::new(name, 1).finish()
}

fn make(cache: &Cache, name: &str, files: &[(&str, &str)]) -> Entry {
    make_with(cache, key(name), files)
}

fn make_with(cache: &Cache, (key, fingerprint): (Key, Fingerprint), files: &[(&str, &str)]) -> Entry {
    let Lookup::Miss(miss) = cache.lookup(&key, &Cancel::default(), || ()).unwrap() else {
        panic!("there is nothing yet")
    };
    let attempt = miss.attempt().unwrap();
    for (path, text) in files {
        let path = attempt.out().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let outputs = vec![Output::new("dataset", ArtifactKind::Dataset, &["."])];
    miss.commit(attempt, finished(outputs, fingerprint), &Cancel::default()).unwrap().entry.clone()
}

fn finished(outputs: Vec<Output>, fingerprint: Fingerprint) -> Finished<'static> {
    Finished {
        kind: "test",
        seconds: 0.0,
        outputs,
        metrics: BTreeMap::new(),
        warnings: Vec::new(),
        fingerprint,
    }
}

#[test]
fn a_result_comes_back_and_is_placed_read_only() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = make(&cache, "a", &[("x.txt", "one"), ("deep/y.txt", "two")]);
    let found = cache.peek(&made.key, &Cancel::default()).unwrap();
    assert_eq!(found.files, made.files);
    let out = dir.path().join("placed");
    cache.place(&found, &out).unwrap();
    assert_eq!(fs::read_to_string(out.join("deep/y.txt")).unwrap(), "two");
    assert!(fs::metadata(out.join("x.txt")).unwrap().permissions().readonly());
}

#[test]
fn a_miss_that_is_dropped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let (key, _) = key("a");
    let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
    let attempt = miss.attempt().unwrap();
    fs::write(attempt.out().join("half"), "…").unwrap();
    drop((attempt, miss));
    assert!(cache.peek(&key, &Cancel::default()).is_none());
    assert!(files::walk(&cache.work()).is_empty());
}

#[test]
fn a_declared_output_that_is_not_there_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let (key, fingerprint) = key("a");
    let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
    let outputs = vec![Output::new("model", ArtifactKind::Model, &["model.gguf"])];
    let attempt = miss.attempt().unwrap();
    let error = miss.commit(attempt, finished(outputs, fingerprint), &Cancel::default()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the stage finished but did not write `model.gguf`, which its output `model` is made of"
    );
    assert!(cache.peek(&key, &Cancel::default()).is_none());
}

/// Writes to a blob in place, as somebody who may can.
fn damage(path: &Path, bytes: &[u8]) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(path, bytes).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o444)).unwrap();
}

#[test]
fn a_blob_that_was_cut_or_written_to_is_a_miss_and_one_with_another_time_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = make(&cache, "a", &[("x", "one")]);
    let blob = cache.blob(&made.files[0]);
    damage(&blob, b"on");
    assert!(cache.peek(&made.key, &Cancel::default()).is_none());
    damage(&blob, b"eno");
    assert!(cache.peek(&made.key, &Cancel::default()).is_none());
    damage(&blob, b"one");
    assert!(cache.peek(&made.key, &Cancel::default()).is_some());
    assert_eq!(Modified::of(&fs::metadata(&blob).unwrap()), made.files[0].modified);
    fs::remove_file(&blob).unwrap();
    assert!(cache.peek(&made.key, &Cancel::default()).is_none());
}

#[test]
fn verify_finds_what_its_time_does_not_tell_and_what_was_made_from_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = make(&cache, "a", &[("x", "one"), ("y", "two"), ("z", "three")]);
    let other = make(&cache, "b", &[("x", "one")]);
    let unrelated = make(&cache, "c", &[("x", "four")]);
    let from = |name: &str, input: &Entry| {
        let mut writer = Writer::new(name, 1);
        writer.part(crate::fingerprint::Aspect::Input, "in", &input.outputs["dataset"].digest.to_string());
        make_with(&cache, writer.finish(), &[("made", name)])
    };
    let second = from("second", &made);
    let third = from("third", &second);
    for (at, text) in [(0, "eno"), (1, "owt")] {
        let blob = cache.blob(&made.files[at]);
        damage(&blob, text.as_bytes());
        set_modified(&blob, made.files[at].modified).unwrap();
    }
    assert!(cache.peek(&made.key, &Cancel::default()).is_some(), "only its bytes tell");
    let mut found = cache.verify(&Cancel::default()).unwrap();
    let file = |entry: &Entry, at: usize| Damage::File {
        key: entry.key,
        kind: "test".into(),
        path: entry.files[at].path.clone(),
    };
    let made_from = |entry: &Entry, from: &Entry| Damage::MadeFrom {
        key: entry.key,
        kind: "test".into(),
        from: from.key,
    };
    let mut expected = vec![
        file(&made, 0),
        file(&made, 1),
        file(&other, 0),
        made_from(&second, &made),
        made_from(&third, &second),
    ];
    found.sort_by_key(|d| format!("{d:?}"));
    expected.sort_by_key(|d| format!("{d:?}"));
    assert_eq!(found, expected);
    assert!(
        [&made, &other, &second, &third].iter().all(|e| cache.peek(&e.key, &Cancel::default()).is_none())
    );
    assert!(cache.peek(&unrelated.key, &Cancel::default()).is_some());
    assert_eq!(cache.verify(&Cancel::default()).unwrap(), []);
    // Made anew, all of it is right.
    let again = make(&cache, "a", &[("x", "one"), ("y", "two"), ("z", "three")]);
    assert!(cache.peek(&again.key, &Cancel::default()).is_some());
    assert_eq!(cache.verify(&Cancel::default()).unwrap(), []);
}

#[test]
fn a_damaged_entry_is_a_miss_and_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = make(&cache, "a", &[("x", "one")]);
    let path = cache.entry(&made.key);
    let bytes = fs::read(&path).unwrap();
    let text = String::from_utf8(bytes.clone()).unwrap();
    for (damaged, wrong) in [
        (
            text.replace("\"seconds\": 0.0", "\"seconds\": 1.0"),
            "it is not what was written: its seal does not fit",
        ),
        (text[..200].to_string(), "it has no seal: it is cut off, or pipe did not write it"),
        (String::new(), "it has no seal: it is cut off, or pipe did not write it"),
    ] {
        fs::write(&path, damaged).unwrap();
        assert!(cache.peek(&made.key, &Cancel::default()).is_none());
        let found = cache.verify(&Cancel::default()).unwrap();
        assert_eq!(found, [Damage::Entry { path: path.clone(), wrong: wrong.into() }]);
        assert!(!path.exists());
    }
    // The right bytes under another name.
    let elsewhere = cache.entry(&key("b").0);
    fs::write(&elsewhere, bytes).unwrap();
    assert!(cache.peek(&key("b").0, &Cancel::default()).is_none());
    assert_eq!(cache.verify(&Cancel::default()).unwrap().len(), 1);
}

#[test]
fn a_damaged_blob_is_replaced_by_the_next_result_with_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = make(&cache, "a", &[("x", "one")]);
    let blob = cache.blob(&made.files[0]);
    damage(&blob, b"eno");
    set_modified(&blob, made.files[0].modified).unwrap();
    make(&cache, "b", &[("y", "one")]);
    assert_eq!(fs::read_to_string(&blob).unwrap(), "one");
    assert!(cache.peek(&made.key, &Cancel::default()).is_some());
}

#[test]
fn what_others_can_write_to_is_copied_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let (users, open) = (dir.path().join("users"), dir.path().join("open"));
    fs::write(&users, "mine").unwrap();
    fs::set_permissions(&users, fs::Permissions::from_mode(0o664)).unwrap();
    let (key, fingerprint) = key("a");
    let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
    let attempt = miss.attempt().unwrap();
    let out = attempt.out().to_path_buf();
    fs::hard_link(&users, out.join("linked")).unwrap();
    fs::write(&open, "0.50").unwrap();
    fs::rename(&open, out.join("open")).unwrap();
    let writer = OpenOptions::new().write(true).open(out.join("open")).unwrap();
    fs::write(out.join("run"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(out.join("run"), fs::Permissions::from_mode(0o6775)).unwrap();
    let hit = miss.commit(attempt, finished(Vec::new(), fingerprint), &Cancel::default()).unwrap();
    let found = fs::metadata(&users).unwrap();
    assert_eq!((found.nlink(), found.mode() & 0o7777), (1, 0o664));
    let placed = dir.path().join("placed");
    hit.place(&placed).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&writer, b"0.99", 0).unwrap();
    assert_eq!(fs::read_to_string(placed.join("open")).unwrap(), "0.50");
    let mode = |name: &str| fs::metadata(placed.join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("linked"), mode("open"), mode("run")), (0o444, 0o444, 0o555));
    assert_eq!(cache.verify(&Cancel::default()).unwrap(), []);
}

#[test]
fn modes_empty_folders_and_raw_names_are_content() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let make = |name: &str, prepare: &dyn Fn(&Path)| {
        let (key, fingerprint) = key(name);
        let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
        let attempt = miss.attempt().unwrap();
        fs::create_dir(attempt.out().join("d")).unwrap();
        prepare(&attempt.out().join("d"));
        let outputs = vec![Output::new("dataset", ArtifactKind::Dataset, &["d"])];
        miss.commit(attempt, finished(outputs, fingerprint), &Cancel::default()).unwrap()
    };
    let write = |path: PathBuf, mode: u32| {
        fs::write(&path, "echo hi\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let plain = make("plain", &|d| write(d.join("t"), 0o600));
    let executable = make("executable", &|d| write(d.join("t"), 0o700));
    let folder = make("folder", &|d| {
        write(d.join("t"), 0o644);
        fs::create_dir_all(d.join("x/checkpoints")).unwrap();
    });
    let raw = |byte: u8| {
        PathBuf::from(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(&[b'l', byte]))
    };
    let names = make("names", &|d| {
        fs::write(d.join(raw(0xe9)), "first").unwrap();
        fs::write(d.join(raw(0xe8)), "second").unwrap();
    });
    let hits = [&plain, &executable, &folder, &names];
    let digests: std::collections::BTreeSet<Digest> =
        hits.iter().map(|hit| hit.entry.outputs["dataset"].digest).collect();
    assert_eq!(digests.len(), 4);
    for (at, hit) in hits.iter().enumerate() {
        hit.place(&dir.path().join(format!("placed{at}"))).unwrap();
    }
    let mode = |at: usize| fs::metadata(dir.path().join(format!("placed{at}/d/t"))).unwrap().mode() & 0o777;
    assert_eq!((mode(0), mode(1)), (0o444, 0o555));
    assert!(dir.path().join("placed2/d/x/checkpoints").is_dir());
    let read = |byte| fs::read_to_string(dir.path().join("placed3/d").join(raw(byte))).unwrap();
    assert_eq!((read(0xe9), read(0xe8)), ("first".into(), "second".into()));
}

#[test]
fn what_is_no_file_can_be_no_result() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let (key, fingerprint) = key("a");
    let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
    let attempt = miss.attempt().unwrap();
    std::os::unix::fs::symlink("/etc/hostname", attempt.out().join("link")).unwrap();
    let error = miss.commit(attempt, finished(Vec::new(), fingerprint), &Cancel::default()).err().unwrap();
    assert_eq!(error.to_string(), "link is a symbolic link: only files and folders can be results");
}

#[test]
fn no_two_attempts_share_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let begin = || cache.begin(&key("a").0, &Cancel::default(), || ()).unwrap();
    let mut folders = Vec::new();
    for _ in 0..2 {
        let miss = begin();
        for _ in 0..2 {
            let attempt = miss.attempt().unwrap();
            folders.push(attempt.out().to_path_buf());
            // As if the process were killed.
            std::mem::forget(attempt);
        }
    }
    assert!(folders[..2].iter().all(|folder| !folder.exists()), "the next who holds the lock clears up");
    folders.dedup();
    assert_eq!(folders.len(), 4);
    // A lock that says something else leads to no number that was counted.
    let miss = begin();
    fs::write(cache.root.join("locks").join(key("a").0.to_string()), "\0\0").unwrap();
    let far = miss.attempt().unwrap().out().to_path_buf();
    assert!(!folders.contains(&far) && far.to_string_lossy().len() > folders[0].to_string_lossy().len());
}

#[test]
fn what_a_stage_reads_is_held_to_its_digest() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = make(&cache, "a", &[("d/x", "one"), ("d/y", "two")]);
    let folder = dir.path().join("placed");
    cache.place(&made, &folder).unwrap();
    let placed = Placed::new(&made, "dataset", &folder, "a.dataset".into());
    let check = || cache.check(&placed, &Cancel::default());
    let seen = check().unwrap();
    // Another name for the same bytes is no change.
    fs::hard_link(folder.join("d/x"), dir.path().join("link")).unwrap();
    seen.still(&placed, &Cancel::default()).unwrap();
    // A file of the run's folder that was replaced is put there anew: the blob is right.
    fs::remove_file(folder.join("d/x")).unwrap();
    fs::write(folder.join("d/x"), "eno").unwrap();
    let error = seen.still(&placed, &Cancel::default()).unwrap_err();
    assert_eq!(error.to_string(), "`d/x` of a.dataset changed while the stage was reading it");
    check().unwrap();
    assert_eq!(fs::read_to_string(folder.join("d/x")).unwrap(), "one");
    fs::write(folder.join("d/more"), "").unwrap();
    let error = check().err().unwrap();
    assert_eq!(error.to_string(), "`d/more` of a.dataset was put into the result's folder by somebody else");
    fs::remove_file(folder.join("d/more")).unwrap();
    // A copy is the reader's own.
    let copy = cache.copy(&placed, &dir.path().join("own"), &Cancel::default()).unwrap();
    fs::write(copy.join("d/x"), "mine").unwrap();
    check().unwrap();
    // The bytes of both names are wrong, and only they tell.
    let blob = cache.blob(&made.files[0]);
    damage(&blob, b"eno");
    set_modified(&blob, made.files[0].modified).unwrap();
    for error in [
        check().err().unwrap(),
        cache.copy(&placed, &dir.path().join("own2"), &Cancel::default()).unwrap_err(),
    ] {
        assert_eq!(error.to_string(), "`d/x` of a.dataset is not what its digest says");
        assert_eq!(
            error.help().unwrap(),
            "the damaged result was taken out of the cache: run again, and it is made anew"
        );
    }
    assert!(cache.peek(&made.key, &Cancel::default()).is_none());
}

#[test]
fn two_that_want_one_key_make_it_once() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = std::sync::atomic::AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (key, fingerprint) = key("a");
                if let Lookup::Miss(miss) = cache.lookup(&key, &Cancel::default(), || ()).unwrap() {
                    made.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    std::thread::sleep(Duration::from_millis(80));
                    let attempt = miss.attempt().unwrap();
                    fs::write(attempt.out().join("x"), "one").unwrap();
                    miss.commit(attempt, finished(Vec::new(), fingerprint), &Cancel::default()).unwrap();
                }
            });
        }
    });
    assert_eq!(made.into_inner(), 1);
}

/// Collects what is beyond so many bytes.
fn collect(cache: &Cache, bytes: u64, in_use: &[Key]) -> Collected {
    let limit = Limit { bytes: Some(bytes), ..Limit::default() };
    cache.gc(&limit, &in_use.iter().copied().collect(), &Cancel::default()).unwrap()
}

fn last_used(cache: &Cache, entry: &Entry, ago: u64) {
    let file = File::open(cache.entry(&entry.key)).unwrap();
    file.set_modified(SystemTime::now() - Duration::from_secs(ago)).unwrap();
}

#[test]
fn collection_drops_the_least_recently_used_and_keeps_shared_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let old = make(&cache, "old", &[("x", "shared"), ("y", "only old")]);
    let new = make(&cache, "new", &[("x", "shared")]);
    last_used(&cache, &old, 60);
    assert_eq!(collect(&cache, 6, &[]), Collected { entries: 1, blobs: 1, bytes: 8, ..Collected::default() });
    assert!(cache.peek(&old.key, &Cancel::default()).is_none());
    assert!(cache.peek(&new.key, &Cancel::default()).is_some());
    // A look that finds it is a use.
    let other = make(&cache, "other", &[("x", "123456")]);
    last_used(&cache, &new, 120);
    last_used(&cache, &other, 60);
    assert!(matches!(cache.lookup(&new.key, &Cancel::default(), || ()).unwrap(), Lookup::Hit(_)));
    assert_eq!(collect(&cache, 6, &[]).entries, 1);
    assert!(cache.peek(&new.key, &Cancel::default()).is_some());
}

#[test]
fn collection_says_what_it_frees() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let made = make(&cache, "a", &[("x", "12345"), ("y", "123")]);
    cache.place(&made, &dir.path().join("placed")).unwrap();
    fs::remove_file(dir.path().join("placed/y")).unwrap();
    assert_eq!(collect(&cache, 0, &[made.key]), Collected::default(), "a run uses it");
    let expected = Collected { entries: 1, blobs: 2, bytes: 3, linked: 5, ..Collected::default() };
    assert_eq!(collect(&cache, 0, &[]), expected);
    assert_eq!(fs::read_to_string(dir.path().join("placed/x")).unwrap(), "12345");
}

#[test]
fn collection_takes_what_killed_processes_left_and_nothing_that_is_worked_on() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let leave = |name: &str| {
        let miss = cache.begin(&key(name).0, &Cancel::default(), || ()).unwrap();
        let attempt = miss.attempt().unwrap();
        fs::write(attempt.out().join("half"), "1234").unwrap();
        std::mem::forget(attempt);
        miss
    };
    let (killed, working) = (leave("killed"), leave("working"));
    // Its lock goes, its folder stays.
    drop(killed);
    let entry = make(&cache, "a", &[("x", "one")]);
    fs::write(cache.entry(&entry.key).with_file_name(".tmpAbC"), "12").unwrap();
    let limit = Limit { age: Some(Duration::from_secs(600)), ..Limit::default() };
    let collected = cache.gc(&limit, &Default::default(), &Cancel::default()).unwrap();
    assert_eq!(collected, Collected { attempts: 1, bytes: 6, ..Collected::default() });
    let left = files::walk(&cache.work());
    assert!(
        matches!(left.as_slice(), [one] if one.starts_with(cache.work().join(format!("{}-1", key("working").0))))
    );
    drop(working);
}

#[test]
fn a_collection_waits_for_a_result_that_is_being_named() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let old = make(&cache, "old", &[("x", "shared")]);
    let (key, fingerprint) = key("new");
    let miss = cache.begin(&key, &Cancel::default(), || ()).unwrap();
    let attempt = miss.attempt().unwrap();
    fs::write(attempt.out().join("x"), "shared").unwrap();
    let hit = miss.commit(attempt, finished(Vec::new(), fingerprint), &Cancel::default()).unwrap();
    std::thread::scope(|scope| {
        let collecting = scope.spawn(|| collect(&cache, 0, &[key]));
        std::thread::sleep(Duration::from_millis(200));
        assert!(cache.peek(&old.key, &Cancel::default()).is_some() && !collecting.is_finished());
        hit.place(&dir.path().join("placed")).unwrap();
        drop(hit);
        assert_eq!(collecting.join().unwrap().entries, 1);
    });
    assert!(cache.peek(&key, &Cancel::default()).is_some());
}

#[test]
fn unfinished_work_outlives_the_miss_and_goes_when_there_is_no_room_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let (key, fingerprint) = key("a");
    let begin = || cache.begin(&key, &Cancel::default(), || ()).unwrap();
    let leave = |miss: &Miss| {
        fs::create_dir_all(miss.unfinished()).unwrap();
        fs::write(miss.unfinished().join("half"), "1234").unwrap();
    };
    let miss = begin();
    leave(&miss);
    let gone = |bytes| collect(&cache, bytes, &[]).unfinished;
    assert_eq!(gone(0), 0, "somebody works on it");
    drop(miss);
    assert_eq!(gone(4), 0);
    assert_eq!(fs::read_to_string(begin().unfinished().join("half")).unwrap(), "1234");
    assert_eq!(gone(3), 1);
    assert!(!begin().unfinished().exists());
    let miss = begin();
    leave(&miss);
    miss.forget_unfinished().unwrap();
    leave(&miss);
    let attempt = miss.attempt().unwrap();
    miss.commit(attempt, finished(Vec::new(), fingerprint), &Cancel::default()).unwrap();
    assert!(files::walk(&cache.root.join(UNFINISHED)).is_empty());
}

#[test]
fn verify_takes_out_damaged_checkpoints() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let miss = cache.begin(&key("a").0, &Cancel::default(), || ()).unwrap();
    let (good, bad) = (miss.unfinished().join("step-1"), miss.unfinished().join("step-2"));
    for folder in [&good, &bad] {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("tensors"), "1234").unwrap();
        sealed::seal_folder(folder).unwrap();
    }
    fs::write(bad.join("tensors"), "1235").unwrap();
    let wrong = "tensors is not what its digest says".to_string();
    assert_eq!(cache.verify(&Cancel::default()).unwrap(), [Damage::Unfinished { path: bad.clone(), wrong }]);
    assert!(good.is_dir() && !bad.exists());
}

#[test]
fn collection_leaves_what_is_young() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::new(dir.path());
    let entry = make(&cache, "a", &[("x", "one")]);
    let limit = Limit { bytes: Some(0), grace: Duration::from_secs(600), ..Limit::default() };
    assert_eq!(cache.gc(&limit, &Default::default(), &Cancel::default()).unwrap(), Collected::default());
    assert!(cache.peek(&entry.key, &Cancel::default()).is_some());
}
