//! Continues prompts, behind a soft prompt or without one.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::base::{self, Base, DType};
use super::prompt::{self, Prompt};
use crate::artifact::dataset::Dataset;
use crate::location::Location;
use crate::model::generate::{Decoding, GenerateProgress, Sequence, generate_on};
use crate::model::sampling::{Sampling, Stream};
use crate::stage::{ArtifactKind, Context, Fault, Lane, Output, Port, Source, Stage, StageError};

/// The configuration.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Generate {
    /// The model; default: the one the adapter was trained on.
    #[serde(default)]
    pub model: Option<Location>,
    /// A folder with an adapter, instead of the port `adapter`.
    #[serde(default)]
    pub adapter: Option<Location>,
    /// The branch, tag or commit of a model on the Hub.
    #[serde(default)]
    pub revision: Option<String>,
    /// The branch, tag or commit of an adapter on the Hub.
    #[serde(default)]
    pub adapter_revision: Option<String>,
    /// The texts to continue.
    #[serde(default)]
    pub prompts: Vec<String>,
    /// The column of the dataset whose texts are continued, instead of `prompts`.
    #[serde(default)]
    pub column: Option<String>,
    /// The split of the dataset.
    #[serde(default = "train_split")]
    pub split: String,
    /// At most so many new tokens a prompt; default: 20, unless `max_length` is given. Of both this one counts.
    #[serde(default)]
    pub max_new_tokens: Option<usize>,
    /// At most so many tokens a prompt and its continuation together; virtual tokens do not count.
    #[serde(default)]
    pub max_length: Option<usize>,
    /// No end token before so many new tokens.
    #[serde(default)]
    pub min_new_tokens: usize,
    /// Draw tokens by their probability instead of taking the likeliest.
    #[serde(default)]
    pub do_sample: bool,
    /// Divides the logits: below 1 likely tokens become likelier; default: 1.
    #[serde(default)]
    pub temperature: Option<f64>,
    /// Draw only among so many of the likeliest tokens; 0: among all; default: 50.
    #[serde(default)]
    pub top_k: Option<usize>,
    /// Of those, draw only among the likeliest that together have this probability; default: 1, all.
    #[serde(default)]
    pub top_p: Option<f64>,
    /// Divides the positive logits of tokens that the prompt or the continuation has already, multiplies the negative
    /// ones; 1 changes nothing.
    #[serde(default = "one")]
    pub repetition_penalty: f64,
    /// What the draws depend on, beside which token of which sample of which prompt it is. They are not torch's.
    #[serde(default)]
    pub seed: u64,
    /// Samples a prompt.
    #[serde(default = "one_sample")]
    pub num_return_sequences: usize,
    /// A continuation ends where it contains one of these texts, and is cut before it.
    #[serde(default)]
    pub stop: Option<Texts>,
    /// Puts what follows the last occurrence of this text, in prompt and continuation, into a field `reply`; all of it
    /// if there is none.
    #[serde(default)]
    pub split_after: Option<String>,
    /// A text ends with any of these token ids; default: the tokenizer's own end.
    #[serde(default)]
    pub eos_token_id: Option<Ids>,
    /// Prompts that are continued together; changes no result.
    #[serde(default = "eight")]
    pub batch_size: usize,
    /// What the model computes in.
    #[serde(default)]
    pub dtype: DType,
    /// On a GPU: round what products of f32 numbers take to tf32, as `torch` does when told to.
    #[serde(default)]
    pub tf32: bool,
    /// On a GPU: the same inputs give the same bits; `false` may be faster.
    #[serde(default = "base::yes")]
    pub deterministic: bool,
}

/// One id or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Ids {
    /// One.
    One(u32),
    /// Several.
    Several(Vec<u32>),
}

/// One text or several.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Texts {
    /// One.
    One(String),
    /// Several.
    Several(Vec<String>),
}

impl Texts {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Several(texts) => texts,
        }
    }
}

/// transformers' defaults.
const MAX_NEW_TOKENS: usize = 20;
const TOP_K: usize = 50;

fn train_split() -> String {
    "train".into()
}
fn one() -> f64 {
    1.0
}
fn one_sample() -> usize {
    1
}
fn eight() -> usize {
    8
}

impl Stage for Generate {
    const KIND: &'static str = "generate";
    const VERSION: u32 = 8;
    const LANE: Lane = Lane::Device;
    const ABOUT: &'static str =
        "Continues prompts with a model or adapter, by the likeliest token or by sampling.";
    const EXAMPLE: &'static str = "\
answers:
  uses: generate
  inputs: { adapter: prompt }
  with:
    prompts: [\"Tweet text : I have no water. Label : \"]
    max_new_tokens: 10
";
    const INPUTS: &'static [Port] = &[
        Port {
            name: "adapter",
            accepts: &[ArtifactKind::Adapter],
            required: false,
            about: "the prompt; its model comes along",
        },
        Port {
            name: "model",
            accepts: &[ArtifactKind::Model, ArtifactKind::Files],
            required: false,
            about: "the model, instead of the key `model`",
        },
        Port {
            name: "dataset",
            accepts: &[ArtifactKind::Dataset],
            required: false,
            about: "rows whose `column` is continued, instead of `prompts`",
        },
    ];

    fn outputs(&self) -> Vec<Output> {
        vec![Output::new("text", ArtifactKind::Text, &["generations.jsonl"])]
    }

    fn sources(&self) -> Vec<Source> {
        prompt::sources(self.base(), self.prompt())
    }

    fn check(&self, inputs: &[&str]) -> Vec<Fault> {
        let mut faults = prompt::check(self.base(), self.prompt(), inputs);
        match (self.prompts.is_empty(), inputs.contains(&"dataset"), &self.column) {
            (true, false, _) => faults.push(
                Fault::new("", "there is nothing to continue")
                    .help("give `prompts`, or connect `dataset` and name its `column`"),
            ),
            (true, true, None) => faults.push(
                Fault::new("", "which column of the dataset is to be continued?").help("name it: `column`"),
            ),
            (false, true, _) => faults.push(
                Fault::new("prompts", "`prompts` and a dataset can't both be given").help("keep one of them"),
            ),
            _ => {}
        }
        faults.extend(self.check_numbers());
        faults.extend(self.check_texts());
        faults
    }

    fn run(&self, context: &Context<'_>) -> Result<(), StageError> {
        let texts = self.texts(context)?;
        let numerics = self.dtype.numerics(self.tf32, self.deterministic);
        let base = Base::load_for(context, self.base(), self.prompt(), numerics)?;
        let prompt = Prompt::load(context, self.prompt(), &base)?;
        let rows = base.tokenizer.encode_all(&texts, true)?;
        let limits = self.limits(context, &rows)?;
        let longest = rows.iter().zip(&limits).map(|(ids, new)| ids.len() + new).max().unwrap_or(0);
        base.has_room(prompt.as_ref().map_or(0, Prompt::len), longest)?;
        let end = match &self.eos_token_id {
            Some(Ids::One(id)) => vec![*id],
            Some(Ids::Several(ids)) => ids.clone(),
            None => base.tokenizer.eos_id().into_iter().collect(),
        };

        let samples = 0..self.num_return_sequences;
        let sequences: Vec<Sequence> = rows
            .iter()
            .zip(&limits)
            .enumerate()
            .flat_map(|(prompt, (ids, &max_new_tokens))| {
                let stream = move |sample| Stream { prompt, sample };
                samples.clone().map(move |sample| Sequence { ids, max_new_tokens, stream: stream(sample) })
            })
            .collect();
        let stops = self.stop.as_ref().map_or(&[][..], Texts::as_slice);
        let text = |ids: &[u32]| base.tokenizer.decode(ids, true);
        let decoding = Decoding {
            sampling: self.sampling(),
            repetition_penalty: self.repetition_penalty,
            min_new_tokens: self.min_new_tokens,
            end: &end,
            // What can't be decoded yet is no text with a stop in it; after the last token it is an error.
            over: &|ids| !stops.is_empty() && text(ids).is_ok_and(|text| first_stop(&text, stops).is_some()),
            batch_size: self.batch_size,
        };
        let most = sequences.iter().map(|sequence| sequence.max_new_tokens as u64).sum();
        let mut watch = |progress: GenerateProgress| {
            context.progress(progress.tokens as u64, most, "tokens", "");
            if context.cancel.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let prompt = prompt.as_ref().map(|p| &p.rows);
        let ids = generate_on(&base.model, prompt, &sequences, &decoding, &mut watch)?;

        base.say_peak(context);

        let path = context.out.join("generations.jsonl");
        let file = File::create(&path).map_err(|e| StageError::io(&path, &e))?;
        let mut file = BufWriter::new(file);
        for (sequence, ids) in sequences.iter().zip(&ids) {
            let prompt = &texts[sequence.stream.prompt];
            let mut text = text(ids)?;
            if let Some(start) = first_stop(&text, stops) {
                text.truncate(start);
            }
            if sequences.len() <= SHOWN {
                context.note(format!("{prompt}→ {text}"));
            }
            let mut line = self.settings();
            let mut put = |name: &str, value: Value| line.insert(name.into(), value);
            if let Some(mark) = &self.split_after {
                let whole = format!("{prompt}{text}");
                put("reply", json!(whole.rsplit_once(mark.as_str()).map_or(&*whole, |(_, reply)| reply)));
            }
            put("prompt", json!(prompt));
            put("sample", json!(sequence.stream.sample));
            put("text", json!(text));
            put("ids", json!(ids));
            put("eos_token_id", json!(end));
            writeln!(file, "{}", Value::Object(line)).map_err(|e| StageError::io(&path, &e))?;
        }
        file.flush().map_err(|e| StageError::io(&path, &e))
    }
}

/// With more continuations than this the texts are only in the file.
const SHOWN: usize = 5;

/// Where the first of the stops in a text begins.
fn first_stop(text: &str, stops: &[String]) -> Option<usize> {
    stops.iter().filter_map(|stop| text.find(stop.as_str())).min()
}

impl Generate {
    /// What the keys say of the model.
    fn base(&self) -> base::Named<'_> {
        base::Named { location: self.model.as_ref(), revision: self.revision.as_deref() }
    }

    /// What the keys say of the adapter.
    fn prompt(&self) -> prompt::Named<'_> {
        prompt::Named { location: self.adapter.as_ref(), revision: self.adapter_revision.as_deref() }
    }

    fn check_numbers(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let positive = |x: f64| x.is_finite() && x > 0.0;
        if let Some(temperature) = self.temperature.filter(|t| !positive(*t)) {
            faults.push(
                Fault::new("temperature", format!("`temperature` is greater than 0, not {temperature}"))
                    .help("for the likeliest token at a time leave out `do_sample`"),
            );
        }
        if let Some(top_p) = self.top_p.filter(|p| !(positive(*p) && *p <= 1.0)) {
            faults.push(Fault::new("top_p", format!("`top_p` is greater than 0 and at most 1, not {top_p}")));
        }
        if !positive(self.repetition_penalty) {
            faults.push(
                Fault::new(
                    "repetition_penalty",
                    format!("`repetition_penalty` is greater than 0, not {}", self.repetition_penalty),
                )
                .help("1 changes nothing, above 1 tokens come again less"),
            );
        }
        for (key, value) in
            [("num_return_sequences", self.num_return_sequences), ("batch_size", self.batch_size)]
        {
            if value == 0 {
                faults.push(Fault::new(key, format!("`{key}` is at least 1")));
            }
        }
        if !self.do_sample {
            let unused = [
                ("temperature", self.temperature.is_some()),
                ("top_k", self.top_k.is_some()),
                ("top_p", self.top_p.is_some()),
                ("num_return_sequences", self.num_return_sequences > 1),
            ];
            for (key, _) in unused.into_iter().filter(|(_, given)| *given) {
                faults.push(
                    Fault::new(key, format!("`{key}` changes nothing without sampling"))
                        .help("add `do_sample: true`, or remove it"),
                );
            }
        }
        faults
    }

    fn check_texts(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let stops = self.stop.as_ref().map_or(&[][..], Texts::as_slice);
        if stops.iter().any(String::is_empty) {
            faults.push(Fault::new("stop", "`stop` has an empty text, which is in every text"));
        }
        if self.split_after.as_deref() == Some("") {
            faults.push(Fault::new("split_after", "`split_after` is empty: every text ends with that"));
        }
        faults
    }

    fn sampling(&self) -> Option<Sampling> {
        self.do_sample.then(|| Sampling {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(TOP_K),
            top_p: self.top_p.unwrap_or(1.0),
            seed: self.seed,
        })
    }

    /// At most how many new tokens each prompt gets.
    fn limits(&self, context: &Context<'_>, rows: &[Vec<u32>]) -> Result<Vec<usize>, StageError> {
        let Some(most) = self.max_length.filter(|_| self.max_new_tokens.is_none()) else {
            if let (Some(length), Some(new)) = (self.max_length, self.max_new_tokens) {
                context.warn(format!(
                    "`max_new_tokens` ({new}) and `max_length` ({length}) are both given: `max_new_tokens` counts"
                ));
            }
            return Ok(vec![self.max_new_tokens.unwrap_or(MAX_NEW_TOKENS); rows.len()]);
        };
        let limit = |(i, ids): (usize, &Vec<u32>)| match most.checked_sub(ids.len()) {
            None | Some(0) => Err(StageError::with_help(
                format!(
                    "prompt {i} has {} tokens and `max_length` is {most}: no token can follow",
                    ids.len()
                ),
                "raise `max_length`, or give `max_new_tokens`, which does not count the prompt",
            )),
            Some(new) => Ok(new),
        };
        rows.iter().enumerate().map(limit).collect()
    }

    /// What tokens were chosen by, for a line of `generations.jsonl`.
    fn settings(&self) -> Map<String, Value> {
        let mut settings = Map::new();
        let mut put = |name: &str, value: Value| settings.insert(name.into(), value);
        match self.max_length.filter(|_| self.max_new_tokens.is_none()) {
            Some(length) => put("max_length", json!(length)),
            None => put("max_new_tokens", json!(self.max_new_tokens.unwrap_or(MAX_NEW_TOKENS))),
        };
        put("do_sample", json!(self.do_sample));
        if let Some(Sampling { temperature, top_k, top_p, seed }) = self.sampling() {
            put("temperature", json!(temperature));
            put("top_k", json!(top_k));
            put("top_p", json!(top_p));
            put("seed", json!(seed));
        }
        if self.repetition_penalty != 1.0 {
            put("repetition_penalty", json!(self.repetition_penalty));
        }
        if self.min_new_tokens > 0 {
            put("min_new_tokens", json!(self.min_new_tokens));
        }
        if let Some(stop) = &self.stop {
            put("stop", json!(stop));
        }
        settings
    }

    fn texts(&self, context: &Context<'_>) -> Result<Vec<String>, StageError> {
        let (Some(artifact), Some(column)) = (context.inputs.get("dataset"), &self.column) else {
            return Ok(self.prompts.clone());
        };
        let folder = artifact.path.clone();
        let dataset = context.cancel.or_abandon(move || Dataset::load(&folder))??;
        let split = dataset.split(&self.split)?;
        (0..split.rows())
            .map(|row| {
                split.text_at(column, row)?.ok_or_else(|| {
                    StageError::failed(format!("row {row} of split `{}` has no `{column}`", self.split))
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::stage::{Cancel, Saying};
    use crate::stages::testing::{fault, run};

    const TWEET: &str = "Tweet text : it is bad Label : ";

    /// A stage on the tiny BLOOM with these keys.
    fn stage(keys: Value) -> Generate {
        let mut stage = json!({
            "model": concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/bloom"),
            "prompts": [TWEET, "Tweet text : thank you Label :", "the cat"],
            "eos_token_id": 3,
        });
        for (key, value) in keys.as_object().unwrap() {
            stage[key] = value.clone();
        }
        serde_json::from_value(stage).unwrap()
    }

    fn lines(out: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(out.join("generations.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn generations(keys: Value) -> Vec<Value> {
        let out = tempfile::tempdir().unwrap();
        run(&stage(keys), out.path(), &Cancel::default()).0.unwrap();
        lines(out.path())
    }

    fn texts(lines: &[Value]) -> Vec<String> {
        lines.iter().map(|line| line["text"].as_str().unwrap().to_string()).collect()
    }

    #[test]
    fn the_seed_decides_what_is_drawn_and_the_batch_does_not() {
        let sampled = |seed: u64, batch_size: usize| {
            let keys = json!({
                "do_sample": true, "temperature": 1.5, "top_k": 0, "seed": seed, "batch_size": batch_size,
                "num_return_sequences": 3, "max_new_tokens": 12,
            });
            texts(&generations(keys))
        };
        let first = sampled(7, 8);
        assert_eq!(first.len(), 9);
        for batch_size in [1, 3, 8] {
            assert_eq!(sampled(7, batch_size), first, "in batches of {batch_size}");
        }
        assert!(first[0] != first[1] && first[1] != first[2], "{first:?}");
        let other = sampled(8, 8);
        assert!(first.iter().zip(&other).all(|(a, b)| a != b), "{first:?} {other:?}");
    }

    #[test]
    fn a_line_says_how_its_text_was_chosen() {
        let line = generations(json!({
            "do_sample": true, "temperature": 0.7, "top_p": 0.9, "repetition_penalty": 1.2, "seed": 5,
            "num_return_sequences": 2, "max_new_tokens": 3,
        }))
        .remove(1);
        let settings = json!({
            "do_sample": true, "temperature": 0.7, "top_k": 50, "top_p": 0.9, "repetition_penalty": 1.2,
            "seed": 5, "max_new_tokens": 3, "sample": 1, "prompt": TWEET, "eos_token_id": [3],
        });
        for (key, value) in settings.as_object().unwrap() {
            assert_eq!(&line[key], value, "{key}");
        }
        let greedy = generations(json!({ "max_length": 24 })).remove(0);
        assert_eq!((&greedy["do_sample"], &greedy["max_length"]), (&json!(false), &json!(24)));
        assert!(greedy.get("temperature").is_none() && greedy.get("max_new_tokens").is_none());
    }

    #[test]
    fn the_likeliest_token_alone_is_the_greedy_one() {
        let greedy = generations(json!({ "max_new_tokens": 8 }));
        let one = generations(json!({ "max_new_tokens": 8, "do_sample": true, "top_k": 1, "seed": 3 }));
        assert_eq!(texts(&greedy), texts(&one));
        let sharp = json!({ "max_new_tokens": 8, "do_sample": true, "top_p": 1e-9, "temperature": 0.5 });
        assert_eq!(texts(&greedy), texts(&generations(sharp)));
    }

    #[test]
    fn a_penalty_keeps_tokens_from_coming_again() {
        let repeated = |ids: &Value| {
            let ids = ids.as_array().unwrap();
            (1..ids.len()).filter(|&i| ids[..i].contains(&ids[i])).count()
        };
        let plain = generations(json!({ "max_new_tokens": 8 }));
        let penalised = generations(json!({ "max_new_tokens": 8, "repetition_penalty": 5.0 }));
        assert!(plain.iter().all(|line| repeated(&line["ids"]) > 2));
        assert!(penalised.iter().all(|line| repeated(&line["ids"]) == 0), "{penalised:?}");
    }

    #[test]
    fn a_text_ends_before_a_stop_that_crosses_tokens() {
        let whole = generations(json!({ "prompts": [TWEET], "max_new_tokens": 12 })).remove(0);
        let (text, ids) = (whole["text"].as_str().unwrap(), whole["ids"].as_array().unwrap());
        // From inside one token to inside the next.
        let tokenizer =
            crate::tokenizer::Tokenizer::open(Path::new(stage(json!({})).model.unwrap().text())).unwrap();
        let new: Vec<u32> = ids.iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let upto = |n: usize| tokenizer.decode(&new[..n], true).unwrap();
        let (start, end) = (upto(4).len() - 1, upto(4).len() + 1);
        let (before, stop) = (&text[..text.find(&text[start..end]).unwrap()], &text[start..end]);
        let cut = generations(json!({ "prompts": [TWEET], "max_new_tokens": 12, "stop": ["never", stop] }));
        assert_eq!(cut[0]["text"], json!(before));
        // What made the stop whole is the last token there is.
        let ended = cut[0]["ids"].as_array().unwrap().len();
        assert!(upto(ended).contains(stop) && !upto(ended - 1).contains(stop), "{text} {stop}");
        // The other rows go on.
        let all = generations(json!({ "max_new_tokens": 12, "stop": stop }));
        let free = generations(json!({ "max_new_tokens": 12 }));
        for (cut, free) in all.iter().zip(&free) {
            let free = free["text"].as_str().unwrap();
            assert_eq!(cut["text"], json!(free.find(stop).map_or(free, |end| &free[..end])));
        }
    }

    #[test]
    fn the_reply_is_what_follows_the_last_mark() {
        let line = |mark: &str| generations(json!({ "prompts": [TWEET], "split_after": mark })).remove(0);
        let found = line("Label : ");
        assert_eq!(found["reply"], found["text"]);
        let absent = line("Assistant: ");
        assert_eq!(absent["reply"], json!(format!("{TWEET}{}", absent["text"].as_str().unwrap())));
    }

    #[test]
    fn max_length_counts_the_prompt_and_max_new_tokens_does_not() {
        let counts = |keys| -> Vec<usize> {
            generations(keys).iter().map(|line| line["ids"].as_array().unwrap().len()).collect()
        };
        let tokenizer =
            crate::tokenizer::Tokenizer::open(Path::new(stage(json!({})).model.unwrap().text())).unwrap();
        let prompts: Vec<usize> =
            stage(json!({})).prompts.iter().map(|p| tokenizer.encode(p, true).unwrap().len()).collect();
        let longest = *prompts.iter().max().unwrap();
        let most = longest + 2;
        let left: Vec<usize> = prompts.iter().map(|p| most - p).collect();
        assert_eq!(counts(json!({ "max_length": most, "eos_token_id": [] })), left);
        assert_eq!(counts(json!({ "eos_token_id": [] })), [20; 3]);

        let out = tempfile::tempdir().unwrap();
        let both = stage(json!({ "max_length": most, "max_new_tokens": 3, "eos_token_id": [] }));
        let (result, said) = run(&both, out.path(), &Cancel::default());
        result.unwrap();
        assert!(lines(out.path()).iter().all(|line| line["ids"].as_array().unwrap().len() == 3));
        let warning =
            format!("`max_new_tokens` (3) and `max_length` ({most}) are both given: `max_new_tokens` counts");
        assert!(said.iter().any(|s| matches!(s, Saying::Warning(text) if *text == warning)), "{said:?}");

        let short = stage(json!({ "max_length": longest }));
        let i = prompts.iter().position(|p| *p == longest).unwrap();
        let (message, help) = fault(run(&short, out.path(), &Cancel::default()).0.unwrap_err());
        assert_eq!(
            message,
            format!("prompt {i} has {longest} tokens and `max_length` is {longest}: no token can follow")
        );
        assert_eq!(
            help.as_deref(),
            Some("raise `max_length`, or give `max_new_tokens`, which does not count the prompt")
        );
    }

    #[test]
    fn no_end_comes_before_min_new_tokens() {
        // Whatever comes first ends the text, unless it may not yet.
        let first = generations(json!({ "max_new_tokens": 1 })).remove(0)["ids"][0].clone();
        let count = |least: usize| {
            let keys = json!({ "prompts": [TWEET], "eos_token_id": first, "min_new_tokens": least });
            generations(keys)[0]["ids"].as_array().unwrap().len()
        };
        assert_eq!(count(0), 1);
        assert!(count(5) > 5, "{}", count(5));
    }

    #[test]
    fn what_can_not_be_is_refused_before_anything_runs() {
        let faults = |keys| -> Vec<(&str, String)> {
            stage(keys).check(&[]).into_iter().map(|fault| (fault.key, fault.message)).collect()
        };
        let wrong = faults(json!({
            "do_sample": true, "temperature": 0, "top_p": 1.5, "repetition_penalty": -1,
            "num_return_sequences": 0, "batch_size": 0, "stop": ["a", ""], "split_after": "",
        }));
        let expected = [
            ("temperature", "`temperature` is greater than 0, not 0"),
            ("top_p", "`top_p` is greater than 0 and at most 1, not 1.5"),
            ("repetition_penalty", "`repetition_penalty` is greater than 0, not -1"),
            ("num_return_sequences", "`num_return_sequences` is at least 1"),
            ("batch_size", "`batch_size` is at least 1"),
            ("stop", "`stop` has an empty text, which is in every text"),
            ("split_after", "`split_after` is empty: every text ends with that"),
        ];
        assert_eq!(wrong, expected.map(|(key, message)| (key, message.to_string())));
        assert_eq!(
            faults(json!({ "do_sample": true, "top_p": 0 }))[0].1,
            "`top_p` is greater than 0 and at most 1, not 0"
        );
        let unused = faults(json!({ "temperature": 0.5, "top_k": 10, "num_return_sequences": 2 }));
        let keys = ["temperature", "top_k", "num_return_sequences"];
        assert_eq!(unused, keys.map(|key| (key, format!("`{key}` changes nothing without sampling"))));
        assert_eq!(faults(json!({ "do_sample": true, "temperature": 0.5, "top_k": 0, "seed": 9 })), []);
    }
}
