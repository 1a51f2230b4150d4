//! Runs that are killed or interrupted at any moment, and the run after them.

use std::time::{Duration, Instant};

use crate::lab::{Lab, end_all, listed, processes, signal};
use crate::{Dice, Tally};

/// One to five kills in a state of their own, then a run to its end, whose bytes have to be the right ones.
pub fn turn(lab: &Lab, dice: &mut Dice, turn: u64, tally: &mut Tally) {
    let home = lab.home(&format!("kills-{turn}"));
    let mut abandoned = false;
    let mut story = Vec::new();
    for _ in 0..=dice.below(5) {
        let force: &[&str] = if dice.percent(15) { &["--force"] } else { &[] };
        let mut child = home.start(force);
        let wait = dice.below(lab.takes.as_micros() as u64 * 11 / 10);
        std::thread::sleep(Duration::from_micros(wait));
        let way = dice.below(100);
        let (name, both) = match way {
            0..70 => ("-KILL", false),
            70..85 => ("-KILL", true),
            _ => ("-INT", false),
        };
        // Those that watch over programs are the run's own children.
        let children = if both { children(child.id()) } else { Vec::new() };
        signal(name, child.id());
        abandoned |= !children.is_empty();
        children.iter().for_each(|process| signal(name, *process));
        let _ = child.wait();
        story.push(format!(
            "{name}{} after {} ms",
            if both { " with its children" } else { "" },
            wait / 1000
        ));
        tally.kills += 1;
    }
    let story = format!("turn {turn} ({})", story.join(", "));
    let ran = home.run(&[]);
    if !ran.status.success() {
        let text = String::from_utf8_lossy(&ran.stderr).into_owned();
        tally.wrong(format!("{story}: the run after it failed: {text}"));
    }
    tally.compared += 1;
    for fault in [home.fault(""), home.wrong_entry()].into_iter().flatten() {
        tally.wrong(format!("{story}: {fault}"));
    }
    let verified = home.pipe(&["cache", "verify"]);
    if !verified.status.success() {
        let text = String::from_utf8_lossy(&verified.stdout).into_owned();
        tally.wrong(format!("{story}: verify says {text}"));
    }
    // Where those that watch were killed as well nobody is left to end daemons.
    if !abandoned && !ends(&home.folder) {
        tally.wrong(format!("{story}: processes were left running: {:?}", processes(&home.folder)));
    }
    end_all(&home.folder);
    if tally.wrong.is_empty() {
        home.remove();
    }
}

fn children(process: u32) -> Vec<u32> {
    let tasks = listed(std::path::Path::new(&format!("/proc/{process}/task")));
    let text = |task: &std::path::PathBuf| std::fs::read_to_string(task.join("children")).unwrap_or_default();
    let all: Vec<String> = tasks.iter().map(text).collect();
    all.iter().flat_map(|text| text.split_whitespace()).filter_map(|id| id.parse().ok()).collect()
}

/// Whether all that ran for a state is gone soon.
fn ends(folder: &std::path::Path) -> bool {
    let began = Instant::now();
    while !processes(folder).is_empty() {
        if began.elapsed() > Duration::from_secs(20) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}
