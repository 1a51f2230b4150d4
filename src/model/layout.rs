//! How a batch lies in one tensor without padding: a shared prefix and rows packed end to end.
//!
//! Knows which rows of the packed tensor are queries of which segment, which keys a segment sees and which
//! position each token has; knows nothing of heads, weights or what the tokens are.

use std::ops::Range;

/// What a segment is, and where its keys are kept when there is a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// The virtual tokens that all rows share; sees only itself.
    Prefix,
    /// The row of this index; sees the prefix and itself.
    Row(usize),
}

/// A stretch of consecutive tokens that attend to one another causally.
///
/// Its keys are `past` earlier ones (in the cache) and its own; query `i` sees the keys up to its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Prefix or row.
    pub slot: Slot,
    /// Its rows of the packed tensor.
    pub queries: Range<usize>,
    /// How many of its keys come before the first query.
    pub past: usize,
}

/// A row to be packed behind the prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedRow {
    /// Number of tokens.
    pub tokens: usize,
    /// Padding that would stand between the prefix and the row: it moves positions and costs nothing.
    pub pads_before: usize,
}

/// A row that goes on where the cache ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CachedRow {
    /// Its index in the cache.
    pub row: usize,
    /// Tokens of it that the cache holds already.
    pub past: usize,
    /// New tokens.
    pub tokens: usize,
}

/// The arrangement of a packed batch `[tokens, hidden]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    prefix: usize,
    segments: Vec<Segment>,
    positions: Vec<u32>,
}

impl Layout {
    /// A batch from its beginning: `prefix` virtual tokens, then each row.
    ///
    /// A token's position is what padding would have given it: prefix + pads before + its index.
    pub fn packed(prefix: usize, rows: &[PackedRow]) -> Self {
        let mut layout = Self { prefix, segments: Vec::with_capacity(rows.len() + 1), positions: Vec::new() };
        if prefix > 0 {
            layout.push(Slot::Prefix, 0, prefix, 0);
        }
        for (i, row) in rows.iter().enumerate() {
            layout.push(Slot::Row(i), 0, row.tokens, prefix + row.pads_before);
        }
        layout
    }

    /// Further tokens of rows whose beginnings, and the prefix of `prefix` tokens, are in the cache.
    pub fn cached(prefix: usize, rows: &[CachedRow]) -> Self {
        let mut layout = Self { prefix, segments: Vec::with_capacity(rows.len()), positions: Vec::new() };
        for row in rows {
            layout.push(Slot::Row(row.row), row.past, row.tokens, prefix + row.past);
        }
        layout
    }

    fn push(&mut self, slot: Slot, past: usize, tokens: usize, first_position: usize) {
        let start = self.positions.len();
        self.segments.push(Segment { slot, queries: start..start + tokens, past });
        self.positions.extend((first_position..first_position + tokens).map(|p| p as u32));
    }

    /// Number of virtual tokens that every row sees.
    pub fn prefix(&self) -> usize {
        self.prefix
    }

    /// The segments, in the order in which they lie in the packed tensor.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The position of each token, as learned and rotary position embeddings count.
    pub fn positions(&self) -> &[u32] {
        &self.positions
    }

    /// Number of tokens in the packed tensor.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_the_padding_that_is_not_there() {
        let rows = [PackedRow { tokens: 2, pads_before: 3 }, PackedRow { tokens: 1, pads_before: 0 }];
        let layout = Layout::packed(2, &rows);
        assert_eq!(layout.positions(), [0, 1, 5, 6, 2]);
        let ranges: Vec<_> = layout.segments().iter().map(|s| s.queries.clone()).collect();
        assert_eq!(ranges, [0..2, 2..4, 4..5]);
    }

    #[test]
    fn a_cached_row_goes_on_behind_its_past() {
        let layout = Layout::cached(2, &[CachedRow { row: 4, past: 3, tokens: 1 }]);
        assert_eq!(layout.positions(), [5]);
        assert_eq!(layout.segments(), [Segment { slot: Slot::Row(4), queries: 0..1, past: 3 }]);
    }
}
