//! Damages to what is on disk, and what is served, found and made anew after them.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{FOLLOWING, Home, Lab, end_all, files, listed};
use crate::{Dice, Tally};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    Blob,
    Entry,
    /// With what belongs to it, as what was written down of the steps until then.
    Checkpoint,
    Record,
    Sources,
}

/// One damage in a state that is good, and what follows; it has to be good again afterwards.
pub fn turn(lab: &Lab, dice: &mut Dice, turn: u64, tally: &mut Tally) {
    let home = lab.home("damages");
    if !home.folder.exists() && !home.run(&[]).status.success() {
        return tally.wrong(format!("turn {turn}: the run before any damage failed"));
    }
    let target = match dice.below(100) {
        0..40 => Target::Blob,
        40..60 => Target::Entry,
        60..80 => Target::Checkpoint,
        80..92 => Target::Record,
        _ => Target::Sources,
    };
    if target == Target::Checkpoint {
        leave_checkpoint(&home);
    }
    let candidates = candidates(&home, target);
    let Some(path) = dice.pick(&candidates) else { return };
    // What an entry names, what has a seal.
    let is_content = match target {
        Target::Blob => is_named(&home, path),
        Target::Checkpoint => is_in_checkpoint(path),
        Target::Entry | Target::Record => true,
        Target::Sources => false,
    };
    let name = path.strip_prefix(&home.folder).unwrap_or(path).display().to_string();
    let done = damage(path, dice);
    tally.damages += 1;
    let mut story = format!("turn {turn}: {target:?} {name} {}", done.what);
    let before = tally.wrong.len();
    if dice.percent(50) {
        // Whatever computes now gets the right bytes, or is told.
        let stage = *dice.pick(&FOLLOWING).unwrap();
        story += &format!(", then --force={stage}");
        let ran = home.run(&[&format!("--force={stage}")]);
        match ran.status.code() {
            Some(0) => {
                if let Some(fault) = home.fault(stage) {
                    tally.wrong(format!("{story}: {fault}"));
                }
            }
            Some(1 | 2) if !ran.stderr.is_empty() => tally.refused += 1,
            code => tally.wrong(format!("{story}: ended with {code:?}")),
        }
        let verified = home.pipe(&["cache", "verify"]);
        if !matches!(verified.status.code(), Some(0 | 1)) {
            tally.wrong(format!("{story}: verify ended with {:?}", verified.status.code()));
        }
    } else {
        let verified = home.pipe(&["cache", "verify"]);
        let expected = is_content && !done.leaves_no_trace;
        if expected && verified.status.success() {
            let text = String::from_utf8_lossy(&verified.stdout).into_owned();
            tally.wrong(format!("{story}: verify found nothing: {text}"));
        }
    }
    let ran = home.run(&[]);
    if !ran.status.success() {
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        tally.wrong(format!("{story}: the run after verify failed: {text}"));
    }
    tally.compared += 1;
    for fault in [home.fault(""), home.wrong_entry()].into_iter().flatten() {
        tally.wrong(format!("{story}: after verify and a run: {fault}"));
    }
    let again = home.pipe(&["cache", "verify"]);
    if !again.status.success() {
        let text = String::from_utf8_lossy(&again.stdout).into_owned();
        tally.wrong(format!("{story}: after verify and a run, verify says {text}"));
    }
    end_all(&home.folder);
    if tally.wrong.len() > before || turn % 50 == 49 {
        // The next one begins with a good state, and there are not too many runs in it.
        home.remove();
    }
}

/// Has training done again, and kills it once a checkpoint is there.
fn leave_checkpoint(home: &Home<'_>) {
    for path in listed(&home.cache().join("entries")) {
        let entry: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap_or_default();
        if entry["kind"] == "train_soft_prompt" {
            fs::remove_file(path).unwrap();
        }
    }
    let mut child = home.start(&[]);
    let began = Instant::now();
    while !unfinished(home).iter().any(|path| is_in_checkpoint(path)) && began.elapsed() < WAIT {
        if child.try_wait().is_ok_and(|status| status.is_some()) {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// How long a checkpoint is waited for.
const WAIT: Duration = Duration::from_secs(30);

/// The files of work that is not done.
fn unfinished(home: &Home<'_>) -> Vec<PathBuf> {
    files(&home.cache().join("unfinished"))
}

fn is_in_checkpoint(path: &Path) -> bool {
    let folder = path.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
    folder.starts_with("step-") || folder.starts_with("interim-")
}

fn candidates(home: &Home<'_>, target: Target) -> Vec<PathBuf> {
    let mut found = match target {
        Target::Blob => files(&home.cache().join("blobs")),
        Target::Entry => listed(&home.cache().join("entries")),
        Target::Checkpoint => unfinished(home),
        Target::Record => {
            listed(&home.folder.join("runs")).into_iter().map(|run| run.join("run.json")).collect()
        }
        Target::Sources => files(&home.folder.join("cache")),
    };
    if target == Target::Sources {
        found.retain(|path| path.ends_with("sources.json"));
    }
    // `latest` is another name of one of them; an empty file has nothing to damage.
    found.retain(|path| {
        !path.parent().is_some_and(|run| run.ends_with("latest"))
            && fs::metadata(path).is_ok_and(|m| m.is_file() && m.len() > 0)
    });
    found
}

/// Whether an entry names the blob.
fn is_named(home: &Home<'_>, blob: &Path) -> bool {
    let name = blob.file_name().unwrap_or_default().to_string_lossy();
    let digest = name.split('.').next().unwrap_or_default();
    let names = |path: &PathBuf| fs::read_to_string(path).is_ok_and(|text| text.contains(digest));
    listed(&home.cache().join("entries")).iter().any(names)
}

struct Done {
    what: String,
    /// Nothing says any more that something was there: a result that is gone is one to be made.
    leaves_no_trace: bool,
}

/// A bit, a cut, other bytes of the same length, or the file is gone; in place or as a new file, in half of the cases
/// with the time it had.
fn damage(path: &Path, dice: &mut Dice) -> Done {
    let mut bytes = fs::read(path).unwrap();
    let meta = fs::metadata(path).unwrap();
    let length = bytes.len() as u64;
    let what = match dice.below(4) {
        0 => {
            let (at, bit) = (dice.below(length) as usize, dice.below(8));
            bytes[at] ^= 1 << bit;
            format!("bit {bit} of byte {at}")
        }
        1 => {
            bytes.truncate(dice.below(length) as usize);
            format!("cut to {} of {length} bytes", bytes.len())
        }
        2 => {
            let before = bytes.clone();
            bytes.iter_mut().for_each(|byte| *byte = dice.draw() as u8);
            if bytes == before {
                bytes[0] ^= 1;
            }
            "replaced".into()
        }
        _ => {
            fs::remove_file(path).unwrap();
            let name = path.file_name().unwrap_or_default();
            let leaves_no_trace = name == "seal.json"
                || name == "run.json"
                || path.parent().is_some_and(|f| f.ends_with("entries"));
            return Done { what: "missing".into(), leaves_no_trace };
        }
    };
    let in_place = dice.percent(50);
    if in_place {
        // As a program would that has the right to: others that share the file see it.
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, meta.permissions()).unwrap();
    } else {
        let new = path.with_extension("new");
        fs::write(&new, bytes).unwrap();
        fs::set_permissions(&new, meta.permissions()).unwrap();
        fs::rename(&new, path).unwrap();
    }
    let keeps_time = dice.percent(50);
    if keeps_time {
        // A file that nobody may write can't be opened for its time by everybody.
        let set = File::open(path).and_then(|file| file.set_modified(meta.modified()?));
        set.unwrap();
    }
    let what = format!(
        "{what}{}{}",
        if in_place { " in place" } else { "" },
        if keeps_time { ", its time kept" } else { "" }
    );
    Done { what, leaves_no_trace: false }
}
