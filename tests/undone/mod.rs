//! A training pass with one of its savings undone: what the tests hold equal and the benchmark times.

// Each binary compiles this file and uses its own part of it.
#![allow(dead_code)]

use pipe::model::decoder::Keep;
use pipe::model::layout::{Layout, PackedRow};
use pipe::model::ops::cross_entropy::judge_with_gradient;
use pipe::model::{Decoder, Rows};
use pipe::train::{Pads, Row};

/// What a pass does not do, because the result is the same without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saving {
    /// Padding: here it goes through the model as tokens that nobody sees.
    Padding,
    /// Logits where there is no label.
    Logits,
    /// The virtual tokens of every row but the first.
    VirtualTokens,
    /// The tokens that all rows begin with, in every row but the first.
    SharedTokens,
    /// The tokens that no label depends on.
    Tails,
    /// The last layer's queries, projection and MLP where there is no label.
    LastLayer,
    /// The gradient of the first layer's input for what is no virtual token.
    FirstLayer,
}

impl Saving {
    /// All of them, with words for a table.
    pub const ALL: [(Self, &'static str); 7] = [
        (Self::Padding, "no padding"),
        (Self::Logits, "logits only at labels"),
        (Self::VirtualTokens, "virtual tokens once a batch"),
        (Self::SharedTokens, "tokens that all rows begin with once a batch"),
        (Self::Tails, "no token that no label depends on"),
        (Self::LastLayer, "last layer only at labels"),
        (Self::FirstLayer, "first layer's input gradient only for virtual tokens"),
    ];
}

/// Mean loss of the rows' labels behind the prompt and its gradient, with everything saved but `undone`.
pub fn pass(model: &Decoder, prompt: &[f32], rows: &[Row], undone: Option<Saving>) -> (f64, Vec<f32>) {
    let hidden = model.shape().hidden;
    let undo = |saving| undone == Some(saving);
    let virtual_tokens = prompt.len() / hidden;
    let pads = |row: &Row| match row.pads {
        Pads::Before(pads) => pads,
        Pads::ToLongest => panic!("these rows say how much"),
    };
    let texts: Vec<&[u32]> = rows
        .iter()
        .map(|row| match row.labels.iter().rposition(Option::is_some) {
            Some(last) if !undo(Saving::Tails) => &row.ids[..last],
            _ => &row.ids[..],
        })
        .collect();
    let same_positions =
        !model.counts_padding(virtual_tokens) || rows.iter().all(|row| pads(row) == pads(&rows[0]));
    let shared = match same_positions && !undo(Saving::SharedTokens) && !undo(Saving::VirtualTokens) {
        true => {
            (0..texts[0].len()).take_while(|&i| texts.iter().all(|t| t.get(i) == texts[0].get(i))).count()
        }
        false => 0,
    };

    // What stands before the rows, and then each row as it is packed.
    let mut numbers: Vec<f32> = Vec::new();
    let embed = |ids: &[u32], numbers: &mut Vec<f32>| numbers.extend_from_slice(&model.embed(ids).unwrap());
    let prefix = if undo(Saving::VirtualTokens) { 0 } else { virtual_tokens };
    if prefix > 0 {
        numbers.extend_from_slice(prompt);
        embed(&texts[0][..shared], &mut numbers);
    }
    let (mut packed, mut asked, mut targets, mut prompts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (row, text) in rows.iter().zip(&texts) {
        if undo(Saving::Padding) && pads(row) > 0 {
            embed(&vec![0; pads(row)], &mut numbers);
            packed.push(PackedRow { tokens: pads(row), pads_before: 0 });
        }
        let mut start = numbers.len() / hidden;
        if undo(Saving::VirtualTokens) {
            prompts.push(start);
            numbers.extend_from_slice(prompt);
            start += virtual_tokens;
        }
        embed(&text[shared..], &mut numbers);
        let own =
            numbers.len() / hidden - start + if undo(Saving::VirtualTokens) { virtual_tokens } else { 0 };
        packed.push(PackedRow { tokens: own, pads_before: pads(row) });
        for (i, label) in row.labels.iter().enumerate().filter_map(|(i, l)| Some((i, (*l)?))) {
            let before = if i <= shared && prefix > 0 { prefix + i } else { start + i - shared };
            asked.push(before as u32 - 1);
            targets.push(label);
        }
    }
    let first = PackedRow { tokens: shared, pads_before: pads(&rows[0]) };
    let layout = Layout::behind(prefix, first, &packed);
    let x = model.pool().copied(&numbers, hidden);
    let all: Vec<u32> = (0..layout.tokens() as u32).collect();
    let scale = 1.0 / targets.len() as f32;
    let wanted = match undo(Saving::FirstLayer) || undo(Saving::VirtualTokens) {
        true => layout.tokens(),
        false => virtual_tokens,
    };

    let everywhere = undo(Saving::LastLayer) || undo(Saving::Logits);
    let last_asked = if everywhere { &all } else { &asked };
    let (states, trace) = model.trace(x, &layout, last_asked, Keep::Everything).unwrap();
    let (nll, d_states) = if undo(Saving::Logits) {
        // A target everywhere, of which those without a label are forgotten again.
        let mut everything = vec![0; all.len()];
        asked.iter().zip(&targets).for_each(|(&at, &target)| everything[at as usize] = target);
        let (judged, d_all) = judge_with_gradient(model.head(), &states, &everything, scale);
        let labelled = d_all.select(&asked);
        (
            asked.iter().map(|&at| judged[at as usize].nll).sum::<f64>(),
            scattered(&labelled, &asked, all.len()),
        )
    } else if undo(Saving::LastLayer) {
        let (judged, d_asked) = judge_with_gradient(model.head(), &states.select(&asked), &targets, scale);
        (judged.iter().map(|j| j.nll).sum(), scattered(&d_asked, &asked, all.len()))
    } else {
        let (judged, d_asked) = judge_with_gradient(model.head(), &states, &targets, scale);
        (judged.iter().map(|j| j.nll).sum(), d_asked)
    };
    let gradient = model.backward(trace, &d_states, wanted);
    let mut prompt_gradient = vec![0.0; prompt.len()];
    let places = if prompts.is_empty() { vec![0] } else { prompts };
    for place in places {
        let part = &gradient[place * hidden..][..prompt.len()];
        prompt_gradient.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
    }
    (nll / targets.len() as f64, prompt_gradient)
}

/// Rows put where they belong among `count`, zeros elsewhere.
fn scattered(rows: &Rows, places: &[u32], count: usize) -> Rows {
    let mut all = rows.pool().zeros(count, rows.width());
    all.add_at(places, rows);
    all
}
