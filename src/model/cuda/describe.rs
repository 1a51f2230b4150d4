//! How a packed batch lies, as arrays for the card: what goes in, where, and which keys each query sees.
//!
//! All arrays of a pass lie in one stretch of words, so that they travel in one copy; padded up to a form, they lie at
//! the same places for every batch of that form, and work that was recorded for one can be done for the other.

use std::ops::Range;

use super::super::layout::{Layout, Queries, Segment, Slot};
use super::card::{BackSpans, Card, Groups, Spans, Words};

/// What stands for nobody in an array of rows or ids.
const NOBODY: u32 = u32::MAX;
/// Queries whose say about the prefix's keys is added up at a time.
const CHUNK: usize = 128;
/// Up to so many queries of a segment each looks at its keys alone: those of a text that grows by a token.
const FEW: usize = 2;

/// Arrays on their way to the card.
#[derive(Default)]
pub struct Draft {
    words: Vec<u32>,
}

impl Draft {
    /// Adds an array; where it lies.
    pub fn put(&mut self, values: impl IntoIterator<Item = u32>) -> Range<usize> {
        let start = self.words.len();
        self.words.extend(values);
        let end = self.words.len();
        // Every array begins at a multiple of 16 bytes.
        self.words.resize(end.next_multiple_of(4), 0);
        start..end
    }

    /// All arrays.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

/// The numbers of a batch's parts, padded or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Form {
    /// Tokens.
    pub tokens: usize,
    /// Tokens whose final states are asked for.
    pub asked: usize,
    /// Segments, the padded one included.
    pub segments: usize,
    /// Tokens that every row sees: never padded.
    pub prefix: usize,
}

impl Form {
    /// Of this batch as it is.
    pub fn exact(layout: &Layout, asked: usize) -> Self {
        let (tokens, segments) = (layout.tokens(), layout.segments().len() + 1);
        Self { tokens, asked, segments, prefix: layout.prefix() }
    }

    /// The same padded, so that batches that differ a little have one form.
    pub fn padded(self) -> Self {
        Self {
            tokens: padded(self.tokens, 32),
            asked: padded(self.asked, 16),
            segments: padded(self.segments, 8),
            ..self
        }
    }
}

/// The next multiple of an eighth of a number's size, and at least of `least`.
fn padded(number: usize, least: usize) -> usize {
    number.next_multiple_of((number.next_power_of_two() / 8).max(least))
}

/// Where the keys of a batch's prefix and of its rows' earlier tokens lie in a cache.
#[derive(Clone, Copy, Debug)]
pub struct CachePlaces {
    /// Rows of the cache that a row of the batch has, behind those of the prefix.
    pub longest: usize,
}

impl CachePlaces {
    /// The row of the cache that a token of a slot has; `None`: it is not kept.
    pub fn row(self, slot: Slot, prefix: usize, token: usize) -> Option<usize> {
        match slot {
            Slot::Prefix => Some(token),
            Slot::Row(row) => Some(prefix + row * self.longest + token),
            Slot::Branch { .. } => None,
        }
    }
}

/// Where the arrays of [`Spans`] lie in a draft.
pub struct DraftedSpans {
    queries: Range<usize>,
    segments: Range<usize>,
    tiles: Range<usize>,
    query_segments: Option<Range<usize>>,
    back: Option<(Range<usize>, usize, usize)>,
}

impl DraftedSpans {
    /// The arrays on the card.
    pub fn on<C: Card>(&self, arrays: &Words<C>) -> Spans<C> {
        let at = |range: &Range<usize>| arrays.part(range.clone());
        Spans {
            queries: at(&self.queries),
            segments: at(&self.segments),
            tiles: at(&self.tiles),
            query_segments: self.query_segments.as_ref().map(at),
            back: self.back.as_ref().map(|(key_tiles, prefix, parts)| BackSpans {
                key_tiles: at(key_tiles),
                prefix: *prefix,
                parts: *parts,
            }),
        }
    }
}

/// Whether there is a way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// No.
    Forth,
    /// Yes.
    AndBack,
}

/// Writes down which keys each query sees. `rows` is the number of rows of the query matrix, `form` that of the batch,
/// `tile` how many queries or keys go together.
pub fn spans(
    draft: &mut Draft,
    layout: &Layout,
    queries: &Queries,
    (rows, form, tile): (usize, Form, usize),
    cache: Option<CachePlaces>,
    way: Way,
) -> DraftedSpans {
    let prefix = layout.prefix();
    let seen_prefix = |segment: &Segment| if segment.slot == Slot::Prefix { 0 } else { prefix };
    let (mut asked, mut segments, mut tiles, mut of_query) = (vec![], vec![], vec![], vec![]);
    let mut key_tiles: Vec<[u32; 6]> = Vec::new();
    let below = |row: usize| (-1 - row as i32) as u32;
    let mut most = 0;
    for (index, (segment, queries)) in layout.segments().iter().zip(queries.by_segment()).enumerate() {
        let (first, before) = (asked.len() as u32, seen_prefix(segment));
        most = most.max(queries.len());
        let seen = queries.iter().map(|query| before as u32 + query.sees);
        asked.extend(queries.iter().zip(seen.clone()).map(|(query, seen)| [query.row, seen]));
        of_query.extend(queries.iter().map(|_| index as u32));
        let starts = (0..queries.len()).step_by(tile);
        tiles.extend(starts.map(|start| [index as u32, first + start as u32]));
        let prefix_first = if cache.is_some() { below(0) } else { 0 };
        let past_first = match segment.slot {
            Slot::Branch { trunk } => trunk as u32,
            slot => cache.and_then(|places| places.row(slot, prefix, 0)).map_or(0, below),
        };
        let (past, own) = (segment.past as u32, segment.tokens.clone());
        segments.push([
            first,
            queries.len() as u32,
            prefix_first,
            before as u32,
            past_first,
            past,
            own.start as u32,
            own.len() as u32,
        ]);
        if segment.slot != Slot::Prefix {
            for start in own.clone().step_by(tile) {
                let keys = tile.min(own.end - start);
                let place = before + segment.past + (start - own.start);
                let unseen = seen.clone().take_while(|seen| *seen as usize <= place).count() as u32;
                let (from, to) = (first + unseen, first + queries.len() as u32);
                key_tiles.push([start as u32, keys as u32, place as u32, from, to, start as u32]);
            }
        }
    }
    // The padded queries and keys: a segment of their own that sees nothing.
    let (real, tokens) = (asked.len(), layout.tokens());
    let starts = (real..rows).step_by(tile);
    tiles.extend(starts.map(|start| [segments.len() as u32, start as u32]));
    of_query.extend((real..rows).map(|_| segments.len() as u32));
    segments.push([real as u32, (rows - real) as u32, 0, 0, 0, 0, 0, 0]);
    asked.extend((real..rows).map(|row| [row as u32, 0]));
    for start in (tokens..form.tokens).step_by(tile) {
        let keys = tile.min(form.tokens - start);
        key_tiles.push([start as u32, keys as u32, 0, 0, 0, start as u32]);
    }
    let last = [rows as u32, 0, 0, 0, 0, 0, 0, 0];
    segments.resize(segments.len().max(form.segments), last);
    tiles.resize(tiles.len().max(rows / tile + form.segments), [NOBODY, 0]);
    let back = (way == Way::AndBack).then(|| {
        key_tiles.resize(key_tiles.len().max(form.tokens / tile + form.segments), [0, NOBODY, 0, 0, 0, 0]);
        let chunks = rows.div_ceil(CHUNK);
        for chunk in 0..chunks {
            for start in (0..prefix).step_by(tile) {
                let (keys, queries) =
                    (tile.min(prefix - start), chunk * CHUNK..rows.min((chunk + 1) * CHUNK));
                let part = below(chunk * prefix + start);
                let (from, to) = (queries.start as u32, queries.end as u32);
                key_tiles.push([start as u32, keys as u32, start as u32, from, to, part]);
            }
        }
        (draft.put(key_tiles.into_iter().flatten()), prefix, chunks)
    });
    DraftedSpans {
        queries: draft.put(asked.into_iter().flatten()),
        segments: draft.put(segments.into_iter().flatten()),
        tiles: draft.put(tiles.into_iter().flatten()),
        query_segments: (way == Way::Forth && most <= FEW).then(|| draft.put(of_query)),
        back,
    }
}

/// Where the arrays of [`Groups`] lie in a draft.
pub struct DraftedGroups {
    order: Range<usize>,
    starts: Range<usize>,
    targets: Range<usize>,
}

impl DraftedGroups {
    /// The arrays on the card.
    pub fn on<C: Card>(&self, arrays: &Words<C>) -> Groups<C> {
        let at = |range: &Range<usize>| arrays.part(range.clone());
        Groups { order: at(&self.order), starts: at(&self.starts), targets: at(&self.targets) }
    }
}

/// Writes down which rows are added to which target, in the rows' order; `None`: to none. There are as many groups as
/// there are rows at most, or `count`.
pub fn groups(draft: &mut Draft, targets: &[Option<u32>], count: usize) -> DraftedGroups {
    let mut order: Vec<u32> =
        (0..targets.len() as u32).filter(|&row| targets[row as usize].is_some()).collect();
    order.sort_by_key(|&row| targets[row as usize]);
    let (mut starts, mut groups): (Vec<u32>, Vec<u32>) = (vec![], vec![]);
    for (at, &row) in order.iter().enumerate() {
        let target = targets[row as usize].unwrap_or(NOBODY);
        if groups.last() != Some(&target) {
            starts.push(at as u32);
            groups.push(target);
        }
    }
    groups.resize(count.max(groups.len()), NOBODY);
    starts.resize(groups.len() + 1, order.len() as u32);
    order.resize(count.max(order.len()), 0);
    DraftedGroups { order: draft.put(order), starts: draft.put(starts), targets: draft.put(groups) }
}

/// Rows or ids, and nobody from there up to `count`.
pub fn up_to(values: &[u32], count: usize) -> impl Iterator<Item = u32> {
    values.iter().copied().chain(std::iter::repeat_n(NOBODY, count - values.len()))
}

/// The words of floats.
pub fn floats(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|value| value.to_bits())
}

#[cfg(test)]
mod tests {
    use super::super::super::layout::PackedRow;
    use super::*;

    #[test]
    fn padded_forms_are_few_and_never_an_eighth_too_large() {
        for number in 1..5000 {
            let to = padded(number, 32);
            assert!(to >= number && to < number + (number / 4).max(32), "{number} {to}");
        }
        assert_eq!([1, 32, 33, 300, 513, 1000].map(|n| padded(n, 32)), [32, 32, 64, 320, 640, 1024]);
    }

    #[test]
    fn arrays_of_one_form_lie_at_the_same_places() {
        let rows = |lengths: &[usize]| -> Vec<PackedRow> {
            lengths.iter().map(|&tokens| PackedRow { tokens, pads_before: 0 }).collect()
        };
        let places = |lengths: &[usize], asked: &[u32]| {
            let layout = Layout::packed(3, &rows(lengths));
            let form = Form::exact(&layout, asked.len()).padded();
            let mut draft = Draft::default();
            let all =
                spans(&mut draft, &layout, &layout.all_queries(), (form.tokens, form, 4), None, Way::AndBack);
            let some = layout.queries_at(asked);
            let last = spans(&mut draft, &layout, &some, (form.asked, form, 4), None, Way::AndBack);
            (form, [all.queries, all.segments, all.tiles, last.queries, last.tiles], draft.words().len())
        };
        assert_eq!(places(&[5, 9, 1], &[7, 16]), places(&[20, 2, 4], &[4, 5, 6]));
    }

    #[test]
    fn rows_are_grouped_by_target_in_their_order() {
        let mut draft = Draft::default();
        let drafted = groups(&mut draft, &[Some(4), None, Some(2), Some(4), Some(2)], 5);
        let at = |range: &Range<usize>| draft.words()[range.clone()].to_vec();
        assert_eq!(at(&drafted.order), [2, 4, 0, 3, 0]);
        assert_eq!(at(&drafted.starts), [0, 2, 4, 4, 4, 4]);
        assert_eq!(at(&drafted.targets), [2, 4, NOBODY, NOBODY, NOBODY]);
    }
}
