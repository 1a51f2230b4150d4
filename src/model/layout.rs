//! How a batch lies in one tensor without padding: a shared prefix and rows packed end to end.
//!
//! Knows which rows of the packed tensor belong to which segment, which keys a segment and each query sees and
//! which position each token has; knows nothing of heads, weights or what the tokens are.

use std::ops::Range;

/// What a segment is, and where its keys are kept when there is a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// What stands before all rows: virtual tokens, and what all rows begin with; sees only itself.
    Prefix,
    /// The row of this index; sees the prefix and itself.
    Row(usize),
    /// What goes on behind the tokens of the batch from `trunk` on, as many as are its past; sees the prefix, those
    /// and itself. Several may go on behind the same tokens; none is kept in a cache.
    Branch {
        /// The first of those tokens.
        trunk: usize,
    },
}

/// A stretch of consecutive tokens that attend to one another causally.
///
/// Its keys are `past` earlier ones (in the cache, or a branch's trunk) and its own; a token sees the keys up to its
/// own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What it is.
    pub slot: Slot,
    /// Its rows of the packed tensor.
    pub tokens: Range<usize>,
    /// How many of its keys come before the first token.
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

/// What some rows begin with, once, and how many tokens each of them goes on with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trunk {
    /// Its own tokens, and the padding before it.
    pub row: PackedRow,
    /// The tokens of each branch.
    pub branches: Vec<usize>,
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

/// A token that asks: one row of the query matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// Its row of the query matrix and of attention's output.
    pub row: u32,
    /// How many of its segment's keys (past and own, without the prefix's) it sees: at least 1.
    pub sees: u32,
}

/// Which tokens ask: for each segment its queries, those that see less first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queries {
    queries: Vec<Query>,
    /// Where the queries of each segment end.
    ends: Vec<usize>,
}

impl Queries {
    /// Number of rows of the query matrix.
    pub fn count(&self) -> usize {
        self.queries.len()
    }

    /// The queries of each segment, in the segments' order.
    pub fn by_segment(&self) -> impl ExactSizeIterator<Item = &[Query]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| &self.queries[std::mem::replace(&mut start, end)..end])
    }
}

/// The arrangement of a packed batch `[tokens, hidden]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    prefix: usize,
    segments: Vec<Segment>,
    positions: Vec<u32>,
}

impl Layout {
    /// A batch from its beginning: virtual tokens, then each row.
    ///
    /// A token's position is what padding would have given it: virtual tokens + pads before + its index.
    pub fn packed(virtual_tokens: usize, rows: &[PackedRow]) -> Self {
        Self::behind(virtual_tokens, PackedRow { tokens: 0, pads_before: 0 }, rows)
    }

    /// The same where all rows begin with the same tokens at the same positions: the prefix is the virtual
    /// tokens and `shared`, the rows go on behind it.
    pub fn behind(virtual_tokens: usize, shared: PackedRow, rows: &[PackedRow]) -> Self {
        let prefix = virtual_tokens + shared.tokens;
        let mut layout = Self { prefix, segments: Vec::with_capacity(rows.len() + 1), positions: Vec::new() };
        if prefix > 0 {
            layout.push(Slot::Prefix, 0, virtual_tokens, 0);
            layout.segments[0].tokens.end = prefix;
            let first = (virtual_tokens + shared.pads_before) as u32;
            layout.positions.extend(first..first + shared.tokens as u32);
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

    /// Rows behind a prefix that is in the cache, which none of them is to enter: each trunk, then its branches.
    ///
    /// Tokens have the positions that [`Layout::behind`] gives them.
    pub fn branching(prefix: usize, trunks: &[Trunk]) -> Self {
        let mut layout = Self { prefix, segments: Vec::new(), positions: Vec::new() };
        for Trunk { row, branches } in trunks {
            let (trunk, first) = (layout.tokens(), prefix + row.pads_before);
            layout.push(Slot::Branch { trunk }, 0, row.tokens, first);
            for &tokens in branches {
                layout.push(Slot::Branch { trunk }, row.tokens, tokens, first + row.tokens);
            }
        }
        layout
    }

    fn push(&mut self, slot: Slot, past: usize, tokens: usize, first_position: usize) {
        let start = self.positions.len();
        self.segments.push(Segment { slot, tokens: start..start + tokens, past });
        self.positions.extend((first_position..first_position + tokens).map(|p| p as u32));
    }

    /// Number of tokens that every row sees.
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

    /// Whether every key that a token sees is in the batch itself and none in a cache.
    pub fn is_whole(&self) -> bool {
        let prefix = match self.segments.first() {
            Some(Segment { slot: Slot::Prefix, tokens, .. }) => tokens.len(),
            _ => 0,
        };
        prefix == self.prefix && self.segments.iter().all(|segment| segment.past == 0)
    }

    /// Every token asks; the query matrix has the tokens' rows.
    pub fn all_queries(&self) -> Queries {
        let all: Vec<u32> = (0..self.tokens() as u32).collect();
        self.queries_at(&all)
    }

    /// Only these tokens ask: row `i` of the query matrix is token `keep[i]`. Any order, repeats allowed.
    ///
    /// # Panics
    /// A token is not in the batch.
    pub fn queries_at(&self, keep: &[u32]) -> Queries {
        let mut rows: Vec<u32> = (0..keep.len() as u32).collect();
        rows.sort_by_key(|&row| keep[row as usize]);
        if let Some(&last) = rows.last() {
            let token = keep[last as usize];
            assert!((token as usize) < self.tokens(), "token {token} of a batch of {} asks", self.tokens());
        }
        let mut queries = Vec::with_capacity(keep.len());
        let mut rows = rows.into_iter().peekable();
        let ends = self.segments.iter().map(|segment| {
            while let Some(row) = rows.next_if(|&row| segment.tokens.contains(&(keep[row as usize] as usize)))
            {
                let index = keep[row as usize] as usize - segment.tokens.start;
                queries.push(Query { row, sees: (segment.past + index + 1) as u32 });
            }
            queries.len()
        });
        let ends = ends.collect();
        Queries { queries, ends }
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
        let ranges: Vec<_> = layout.segments().iter().map(|s| s.tokens.clone()).collect();
        assert_eq!(ranges, [0..2, 2..4, 4..5]);
    }

    #[test]
    fn what_all_rows_begin_with_lies_behind_the_virtual_tokens() {
        let row = |tokens, pads_before| PackedRow { tokens, pads_before };
        let layout = Layout::behind(2, row(3, 4), &[row(2, 4), row(1, 4)]);
        assert_eq!(layout.prefix(), 5);
        assert_eq!(layout.positions(), [0, 1, 6, 7, 8, 9, 10, 9]);
        let ranges: Vec<_> = layout.segments().iter().map(|s| s.tokens.clone()).collect();
        assert_eq!(ranges, [0..5, 5..7, 7..8]);
    }

    #[test]
    fn a_cached_row_goes_on_behind_its_past() {
        let layout = Layout::cached(2, &[CachedRow { row: 4, past: 3, tokens: 1 }]);
        assert_eq!(layout.positions(), [5]);
        assert_eq!(layout.segments(), [Segment { slot: Slot::Row(4), tokens: 0..1, past: 3 }]);
    }

    #[test]
    fn branches_go_on_behind_their_trunk() {
        let trunk = |tokens, pads_before, branches: &[usize]| Trunk {
            row: PackedRow { tokens, pads_before },
            branches: branches.to_vec(),
        };
        let layout = Layout::branching(3, &[trunk(1, 0, &[]), trunk(2, 4, &[1, 0, 2])]);
        assert_eq!(layout.positions(), [3, 7, 8, 9, 9, 10]);
        let branch = |trunk, tokens, past| Segment { slot: Slot::Branch { trunk }, tokens, past };
        let behind = [branch(1, 3..4, 2), branch(1, 4..4, 2), branch(1, 4..6, 2)];
        assert_eq!(layout.segments()[..2], [branch(0, 0..1, 0), branch(1, 1..3, 0)]);
        assert_eq!(layout.segments()[2..], behind);
        assert!(!layout.is_whole());
    }

    #[test]
    fn queries_are_sorted_by_segment_and_by_what_they_see() {
        let rows = [2, 0, 3].map(|tokens| PackedRow { tokens, pads_before: 0 });
        let queries = Layout::packed(2, &rows).queries_at(&[6, 4, 1, 6, 3]);
        let query = |row, sees| Query { row, sees };
        let expected: [&[Query]; 4] =
            [&[query(2, 2)], &[query(4, 2)], &[], &[query(1, 1), query(0, 3), query(3, 3)]];
        assert_eq!(queries.by_segment().collect::<Vec<_>>(), expected);
        assert_eq!(queries.count(), 5);
    }

    #[test]
    fn every_token_of_a_cached_row_asks_and_sees_its_past() {
        let layout = Layout::cached(2, &[CachedRow { row: 4, past: 3, tokens: 2 }]);
        let all = layout.all_queries();
        let expected: [&[Query]; 1] = [&[Query { row: 0, sees: 4 }, Query { row: 1, sees: 5 }]];
        assert_eq!(all.by_segment().collect::<Vec<_>>(), expected);
        assert!(!layout.is_whole());
        assert!(Layout::packed(2, &[]).is_whole());
    }

    #[test]
    #[should_panic(expected = "token 2 of a batch of 2 asks")]
    fn a_query_outside_the_batch_is_refused() {
        Layout::packed(2, &[]).queries_at(&[0, 2]);
    }
}
