//! The training loop as its users see it: killed and resumed, stopped early, taken at its best.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod numbers;

use std::path::Path;
use std::time::Duration;

use numbers::{data, ids, json, load, tensors};
use pipe::cancel::Cancel;
use pipe::model::Decoder;
use pipe::model::decoder::Keep;
use pipe::train::checkpoint::{Checkpoints, Journal};
use pipe::train::order::Shuffle;
use pipe::train::recipe::{EarlyStopping, Every, Length};
use pipe::train::soft_prompt::SoftPrompt;
use pipe::train::training::{Course, Epoch, Observer, Step};
use pipe::train::{Pads, Recipe, Row, TrainError, Training};

fn rows() -> Vec<Row> {
    let expected = json(&data("llama").join("expected.json"));
    let row = |r: &serde_json::Value| Row {
        ids: ids(&r["ids"]),
        labels: r["labels"].as_array().unwrap().iter().map(|v| v.as_u64().map(|l| l as u32)).collect(),
        pads: Pads::Before(0),
    };
    expected["rows"].as_array().unwrap().iter().map(row).collect()
}

fn recipe() -> Recipe {
    Recipe {
        length: Length::Epochs(4),
        batch_size: 2,
        gradient_accumulation: 2,
        max_grad_norm: Some(0.5),
        shuffle: Some(Shuffle::Trainer),
        seed: 42,
        ..Recipe::default()
    }
}

fn checkpoints(folder: &Path) -> Checkpoints {
    Checkpoints {
        folder: folder.to_path_buf(),
        every: Some(Every::Steps(2)),
        keep: 2,
        interval: Duration::from_secs(3600),
        from: None,
        cancel: Cancel::default(),
    }
}

/// Stops training after some step, as a Ctrl-C or, without leaving anything behind, as a kill.
#[derive(Default)]
struct Stop {
    after: Option<usize>,
    kill: bool,
    seen: Vec<(usize, Vec<usize>, f64)>,
    warnings: Vec<String>,
}

impl<L> Observer<L> for Stop {
    fn begins(&mut self, step: usize, _: Option<&Journal>) -> Result<(), TrainError> {
        self.seen.truncate(step);
        Ok(())
    }
    fn step(&mut self, step: &Step) -> Result<(), TrainError> {
        self.seen.push((step.step, step.rows.clone(), step.loss));
        match self.kill && self.after == Some(step.step) {
            true => Err(TrainError::Observer("killed".into())),
            false => Ok(()),
        }
    }
    fn warning(&mut self, text: &str) {
        self.warnings.push(text.into());
    }
    fn cancelled(&self) -> bool {
        !self.kill && self.after.is_some_and(|after| self.seen.len() >= after)
    }
}

fn run(
    model: &Decoder,
    recipe: &Recipe,
    checkpoints: Option<&Checkpoints>,
    observer: &mut Stop,
) -> (Vec<f32>, Result<Course, TrainError>) {
    let rows = rows();
    let init = &tensors(&data("llama").join("expected.safetensors"))["init"];
    let mut prompt = SoftPrompt::new(model, init, Keep::Everything).unwrap();
    let eval = &rows[..3];
    let course = Training { recipe, rows: &rows, eval, checkpoints }.run(&mut prompt, observer);
    (prompt.tensor().unwrap().flatten_all().unwrap().to_vec1().unwrap(), course)
}

#[test]
fn stopped_or_killed_after_any_step_training_comes_to_the_same_bits() {
    let model = load(&data("llama"));
    for recipe in [recipe(), Recipe { load_best: true, learning_rate: 0.3, ..recipe() }] {
        let mut undisturbed = Stop::default();
        let (prompt, course) = run(&model, &recipe, None, &mut undisturbed);
        let course = course.unwrap();
        for (after, kill) in (1..course.steps).flat_map(|after| [(after, true), (after, false)]) {
            let dir = tempfile::tempdir().unwrap();
            let checkpoints = checkpoints(dir.path());
            let mut observer = Stop { after: Some(after), kill, ..Stop::default() };
            let error = run(&model, &recipe, Some(&checkpoints), &mut observer).1.unwrap_err();
            assert_eq!(error.to_string(), if kill { "killed" } else { "interrupted" });
            observer.after = None;
            let (again, resumed) = run(&model, &recipe, Some(&checkpoints), &mut observer);
            assert_eq!(again, prompt, "after {after}");
            assert_eq!(resumed.unwrap(), course, "after {after}");
            assert_eq!(observer.seen, undisturbed.seen, "after {after}");
        }
    }
}

#[test]
fn the_newest_checkpoints_stay() {
    let model = load(&data("llama"));
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = checkpoints(dir.path());
    let course = run(&model, &recipe(), Some(&checkpoints), &mut Stop::default()).1.unwrap();
    let kept: Vec<_> = checkpoints.kept().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
    assert_eq!(course.steps, 12);
    assert_eq!(kept, ["step-10", "step-12"]);
}

#[test]
fn a_checkpoint_of_another_training_is_refused_and_says_where_they_differ() {
    let model = load(&data("llama"));
    let dir = tempfile::tempdir().unwrap();
    run(&model, &recipe(), Some(&checkpoints(dir.path())), &mut Stop::default()).1.unwrap();
    let refusal = |recipe: Recipe, from: &str| {
        let from = dir.path().join(from);
        let elsewhere = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints { from: Some(from.clone()), ..checkpoints(elsewhere.path()) };
        let error = run(&model, &recipe, Some(&checkpoints), &mut Stop::default()).1.unwrap_err();
        error.to_string().replace(from.to_str().unwrap(), "FOLDER")
    };
    assert_eq!(
        refusal(Recipe { learning_rate: 0.1, ..recipe() }, "step-10"),
        "FOLDER: it was made with learning_rate 0.03, and this training has 0.1"
    );
    // The same recipe from another prompt, as from another model's embeddings.
    let rows = rows();
    let init = (&tensors(&data("llama").join("expected.safetensors"))["init"] * 2.0).unwrap();
    let mut prompt = SoftPrompt::new(&model, &init, Keep::Everything).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let from = Some(dir.path().join("step-10"));
    let checkpoints = Checkpoints { from, ..checkpoints(elsewhere.path()) };
    let same = recipe();
    let training = Training { recipe: &same, rows: &rows, eval: &rows[..3], checkpoints: Some(&checkpoints) };
    let error = training.run(&mut prompt, &mut Stop::default()).unwrap_err().to_string();
    assert!(error.contains(": it was made with first numbers "), "{error}");
    assert_eq!(refusal(recipe(), "step-4"), "FOLDER: no checkpoint is here (it has no state.json)");
    let tensors = dir.path().join("step-10/tensors.safetensors");
    std::fs::write(&tensors, &std::fs::read(&tensors).unwrap()[..300]).unwrap();
    let message = refusal(recipe(), "step-10");
    assert!(message.starts_with("FOLDER: it is damaged: tensors.safetensors has 300 bytes; "), "{message}");
}

/// Changes one bit of a file.
fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_is_never_taken() {
    let model = load(&data("llama"));
    let (prompt, _) = run(&model, &recipe(), None, &mut Stop::default());
    let tensors = "tensors.safetensors";
    let end = |path: &Path| std::fs::metadata(path).unwrap().len() as usize - 1;
    for (kill, damage, expected) in [
        // A number of the newest that was to stay; the one that Ctrl-C left; the list of digests; a file that is gone.
        (
            true,
            &(|f: &Path| flip(&f.join("step-4").join(tensors), end(&f.join("step-4").join(tensors))))
                as &dyn Fn(&Path),
            "the checkpoint after step 4 is damaged: tensors.safetensors is not what its digest says; training goes on after step 2",
        ),
        (
            false,
            &|f: &Path| flip(&f.join("interim-5/state.json"), 40),
            "the checkpoint after step 5 is damaged: state.json is not what its digest says; training goes on after step 4",
        ),
        (
            true,
            &|f: &Path| flip(&f.join("step-4/seal.json"), 40),
            "the checkpoint after step 4 is damaged: seal.json: it is not what was written: its seal does not fit; training goes on after step 2",
        ),
        (
            true,
            &|f: &Path| std::fs::remove_file(f.join("step-4/seal.json")).unwrap(),
            "the checkpoint after step 4 is damaged: seal.json: No such file or directory (os error 2); training goes on after step 2",
        ),
        // Later ones go with one that was to stay: it has to be made again, and they come after it.
        (
            true,
            &|f: &Path| flip(&f.join("step-2").join(tensors), 100),
            "the checkpoint after step 2 is damaged: tensors.safetensors is not what its digest says; training starts over",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = checkpoints(dir.path());
        let mut observer = Stop { after: Some(5), kill, ..Stop::default() };
        run(&model, &recipe(), Some(&checkpoints), &mut observer).1.unwrap_err();
        damage(dir.path());
        observer.after = None;
        let (again, course) = run(&model, &recipe(), Some(&checkpoints), &mut observer);
        assert_eq!((again, course.unwrap().steps), (prompt.clone(), 12), "{expected}");
        assert_eq!(observer.warnings, [expected]);
        let kept: Vec<_> = checkpoints.kept().iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        assert_eq!(kept, ["step-10", "step-12"]);
        checkpoints.verify_kept().unwrap();
    }
}

#[test]
fn a_checkpoint_from_before_there_were_seals_is_taken_if_it_is_named() {
    let model = load(&data("llama"));
    let (prompt, _) = run(&model, &recipe(), None, &mut Stop::default());
    let dir = tempfile::tempdir().unwrap();
    run(&model, &recipe(), Some(&checkpoints(dir.path())), &mut Stop::default()).1.unwrap();
    let old = dir.path().join("step-10");
    let state = std::fs::read_to_string(old.join("state.json")).unwrap();
    std::fs::write(old.join("state.json"), state.replace("\"format\": 2", "\"format\": 1")).unwrap();
    std::fs::remove_file(old.join("seal.json")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let named = Checkpoints { from: Some(old.clone()), ..checkpoints(elsewhere.path()) };
    let mut observer = Stop::default();
    let (again, course) = run(&model, &recipe(), Some(&named), &mut observer);
    assert_eq!((again, course.unwrap().steps), (prompt, 12));
    assert_eq!(observer.seen.len(), 2);
    // One of today needs its seal.
    std::fs::write(old.join("state.json"), state).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let named = Checkpoints { from: Some(old.clone()), ..checkpoints(elsewhere.path()) };
    let error = run(&model, &recipe(), Some(&named), &mut Stop::default()).1.unwrap_err().to_string();
    assert!(error.ends_with(": it is damaged: seal.json: No such file or directory (os error 2)"), "{error}");
}

#[test]
fn it_stops_when_it_no_longer_gets_better_and_takes_the_best() {
    let model = load(&data("llama"));
    // A learning rate at which the loss rises.
    let recipe = Recipe {
        length: Length::Epochs(40),
        learning_rate: 3.0,
        load_best: true,
        early_stopping: Some(EarlyStopping { patience: 3, threshold: 0.0 }),
        ..recipe()
    };
    let (prompt, course) = run(&model, &recipe, None, &mut Stop::default());
    let course = course.unwrap();
    let best = course.evaluations.iter().min_by(|a, b| a.loss.total_cmp(&b.loss)).unwrap();
    assert!(course.stopped_early && course.epochs.len() < 40, "{course:?}");
    assert_eq!(course.best_step, Some(best.step));
    assert_eq!(course.evaluations.last().unwrap().step, best.step + 3 * 3);
    // The prompt is the one of that step.
    struct At(usize, Vec<f32>);
    impl Observer<SoftPrompt<'_>> for At {
        fn epoch(&mut self, epoch: &Epoch, prompt: &mut SoftPrompt<'_>) -> Result<(), TrainError> {
            if epoch.step == self.0 {
                self.1 = prompt.tensor()?.flatten_all()?.to_vec1()?;
            }
            Ok(())
        }
    }
    let mut at = At(best.step, Vec::new());
    let rows = rows();
    let init = &tensors(&data("llama").join("expected.safetensors"))["init"];
    let mut again = SoftPrompt::new(&model, init, Keep::Everything).unwrap();
    let training = Training { recipe: &recipe, rows: &rows, eval: &rows[..3], checkpoints: None };
    training.run(&mut again, &mut at).unwrap();
    assert_eq!(prompt, at.1);
}

#[test]
fn best_and_early_need_something_to_go_by() {
    let model = load(&data("llama"));
    let rows = rows();
    let init = &tensors(&data("llama").join("expected.safetensors"))["init"];
    let mut prompt = SoftPrompt::new(&model, init, Keep::Everything).unwrap();
    let recipe = Recipe { load_best: true, ..recipe() };
    let training = Training { recipe: &recipe, rows: &rows, eval: &[], checkpoints: None };
    let error = training.run(&mut prompt, &mut Stop::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`load_best` and `early_stopping` need an evaluation split with rows in it"
    );
}
