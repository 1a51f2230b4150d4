//! Weights as right factors, and how they are cut into blocks of the sum and tasks of columns.
//!
//! Knows which stored numbers a block is made of, and how these lie. It does not know how a block is computed, nor which
//! thread does it.

use std::ops::Range;

use super::pack::{self, Lines, Matrix};
use super::panels::Panels;
use super::weight::{LaidOut, Numbers, Orientation, Part, Tiled, Weight};
use super::{FEW_ROWS, PANEL, Parts, Precision};

/// Rows up to which it does not pay to cut an f32 weight into parts for the bf16 unit.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const ROWS_WITHOUT_PARTS: usize = 128;

/// The index of a weight over which a product sums.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Sum {
    Inputs,
    Outputs,
}

/// A weight as the right factor `[depth, columns]` of a product.
pub(super) struct Operand<'a> {
    pub weight: &'a Weight,
    pub sum: Sum,
    pub depth: usize,
    pub columns: usize,
}

/// Some of the depth and columns of an operand, all in one stored matrix.
pub(super) struct Block<'a> {
    /// Which of the pieces of the depth.
    pub index: usize,
    /// What of the product's depth, and of its columns.
    pub depth: Range<usize>,
    pub columns: Range<usize>,
    pub part: &'a Part,
    /// The same in the stored matrix.
    pub stored_depth: Range<usize>,
    pub stored_columns: Range<usize>,
    /// Whether the depth counts the rows of the stored matrix, or its columns.
    pub rows: StoredRows,
    /// Columns of the whole product.
    pub width: usize,
    pub laid: Laid<'a>,
}

/// How the numbers of an operand lie.
#[derive(Clone, Copy)]
pub(super) enum Laid<'a> {
    /// As they were stored.
    Stored,
    /// All of them in tiles for this sum; there is one stored matrix only.
    Tiled(&'a [u32]),
    /// The same for the other sum.
    Across(&'a [u32]),
    /// All of them in panels; there is one stored matrix only.
    Panels(Panels<'a>),
}

#[derive(Clone, Copy, PartialEq)]
pub(super) enum StoredRows {
    Depth,
    Columns,
}

/// Columns of y that one thread computes; they all lie in one stored matrix.
pub(super) struct Task<'y> {
    pub columns: Range<usize>,
    /// Those of the task behind it, which the same thread takes as a rule; there may be none.
    pub next: Range<usize>,
    pub y: Vec<&'y mut [f32]>,
}

impl<'a> Operand<'a> {
    pub fn of(weight: &'a Weight, sum: Sum) -> Self {
        let (depth, columns) = match sum {
            Sum::Inputs => (weight.inputs_len(), weight.outputs_len()),
            Sum::Outputs => (weight.outputs_len(), weight.inputs_len()),
        };
        Self { weight, sum, depth, columns }
    }

    /// How its numbers lie for this sum.
    fn laid(&self) -> Laid<'a> {
        match self.weight.lies() {
            None => Laid::Stored,
            Some(LaidOut::Tiled(Tiled { inputs, outputs, .. })) => match (self.sum, outputs) {
                (Sum::Inputs, _) => Laid::Tiled(inputs),
                (Sum::Outputs, Some(outputs)) => Laid::Tiled(outputs),
                (Sum::Outputs, None) => Laid::Across(inputs),
            },
            Some(LaidOut::Panels(numbers)) => {
                Laid::Panels(Panels { numbers, inputs: self.weight.inputs_len(), sum: self.sum })
            }
        }
    }

    /// What the bf16 unit makes of the factors of a product of so many rows, if it should.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    pub fn parts(&self, rows: usize, precision: Precision) -> Option<Parts> {
        match self.weight.lies() {
            Some(LaidOut::Tiled(tiled)) => return Some(tiled.parts),
            Some(LaidOut::Panels(_)) => return None,
            None => {}
        }
        let exact = self.weight.placed_parts().map(|(_, part)| part.parts).max()?;
        match precision {
            Precision::BF16 => Some(Parts::Rounded),
            Precision::F32 if exact == Parts::One && rows > FEW_ROWS => Some(exact),
            Precision::F32 if rows > ROWS_WITHOUT_PARTS => Some(exact),
            Precision::F32 => None,
        }
    }

    /// Cuts y into tasks: several a thread, so that all end together, but each several panels wide where there are
    /// many columns, and wide where the sum is deep, so that stored rows are read in long pieces.
    pub fn tasks<'y>(&self, y: &'y mut [f32]) -> Vec<Task<'y>> {
        let threads = rayon::current_num_threads();
        let panels = self.columns.div_ceil(PANEL);
        let count = match (self.laid(), self.depth) {
            // These need no stored rows, and a task's list of rows costs more than smaller tasks balance.
            (Laid::Tiled(_), 0..16384) => panels.div_ceil(16).max(2 * threads).next_multiple_of(threads),
            (_, 0..16384) => panels.div_ceil(8).max(4 * threads).next_multiple_of(threads),
            _ => 2 * threads,
        };
        let segments: Vec<Range<usize>> = match self.sum {
            Sum::Inputs => self.weight.placed_parts().map(|(place, _)| place).collect(),
            Sum::Outputs => std::iter::once(0..self.columns).collect(),
        };
        // All of a segment are equally wide, but for a panel.
        let cut = |segment: Range<usize>| {
            let panels = segment.len().div_ceil(PANEL);
            let count = (count * segment.len()).div_ceil(self.columns).min(panels);
            let end = move |i: usize| segment.end.min(segment.start + panels * i / count * PANEL);
            (0..count).map(move |i| end(i)..end(i + 1))
        };
        let rows = y.len() / self.columns;
        let mut tasks: Vec<Task> = segments
            .into_iter()
            .flat_map(cut)
            .map(|columns| Task { columns, next: 0..0, y: Vec::with_capacity(rows) })
            .collect();
        for i in 1..tasks.len() {
            tasks[i - 1].next = tasks[i].columns.clone();
        }
        for mut row in y.chunks_exact_mut(self.columns) {
            for task in &mut tasks {
                let (part, rest) = row.split_at_mut(task.columns.len());
                task.y.push(part);
                row = rest;
            }
        }
        tasks
    }

    /// The pieces in which the depth is summed up, at most `deepest` long. None has parts of two stored matrices, of
    /// which the one that it is in is told where the outputs are summed.
    pub fn depths(&self, deepest: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
        let segments: Vec<Range<usize>> = match self.sum {
            Sum::Inputs => std::iter::once(0..self.depth).collect(),
            Sum::Outputs => self.weight.placed_parts().map(|(place, _)| place).collect(),
        };
        let pieces = move |(part, segment)| cut_evenly(segment, deepest).map(move |depth| (part, depth));
        segments.into_iter().enumerate().flat_map(pieces)
    }

    /// What the rows of a stored matrix are in the product.
    fn rows(&self, part: &Part) -> StoredRows {
        match (part.orientation, self.sum) {
            (Orientation::OutputsByInputs, Sum::Outputs) | (Orientation::InputsByOutputs, Sum::Inputs) => {
                StoredRows::Depth
            }
            _ => StoredRows::Columns,
        }
    }

    /// Whether what is summed lies together in all stored matrices.
    pub fn rows_run_along_sum(&self) -> bool {
        self.weight.placed_parts().all(|(_, part)| self.rows(part) == StoredRows::Columns)
    }

    /// The blocks, at most `deepest` deep, that make up the columns of a task, in the order of the sum.
    pub fn blocks(&self, columns: &Range<usize>, deepest: usize) -> Vec<Block<'a>> {
        let parts: Vec<_> = self.weight.placed_parts().collect();
        let column_part = parts.iter().position(|(place, _)| columns.end <= place.end).unwrap_or(0);
        let block = |(index, (depth_part, depth)): (usize, (usize, Range<usize>))| {
            let (place, part) = &parts[if self.sum == Sum::Inputs { column_part } else { depth_part }];
            let stored = |outputs: &Range<usize>| {
                outputs.start - place.start + part.outputs.start
                    ..outputs.end - place.start + part.outputs.start
            };
            let (stored_depth, stored_columns) = match self.sum {
                Sum::Inputs => (depth.clone(), stored(columns)),
                Sum::Outputs => (stored(&depth), columns.clone()),
            };
            Block {
                index,
                depth,
                columns: columns.clone(),
                part,
                stored_depth,
                stored_columns,
                rows: match self.laid() {
                    Laid::Panels(panels) => panels.rows(),
                    Laid::Stored | Laid::Tiled(_) | Laid::Across(_) => self.rows(part),
                },
                width: self.columns,
                laid: self.laid(),
            }
        };
        self.depths(deepest).enumerate().map(block).collect()
    }
}

/// Columns of a block that are packed at once.
type Strip<'a> = (&'a Block<'a>, Range<usize>);

/// The strips of every block, so many columns wide, each with the one after it; after the last one the first of the
/// block `next`.
pub(super) fn strips<'a>(
    blocks: &'a [Block<'a>],
    columns: usize,
    next: Option<&'a Block<'a>>,
    width: impl Fn(&Block) -> usize + Copy,
) -> impl Iterator<Item = (Strip<'a>, Option<Strip<'a>>)> {
    let of = move |block: &'a Block<'a>, columns: usize| {
        let width = width(block);
        (0..columns).step_by(width).map(move |start| (block, start..columns.min(start + width)))
    };
    let last = next.and_then(|block| of(block, block.stored_columns.len()).next());
    let strips = move || blocks.iter().flat_map(move |block| of(block, columns));
    strips().zip(strips().skip(1).map(Some).chain([last]))
}

impl<'a> Block<'a> {
    /// The panel of all of the operand's in which some of the block's columns are.
    pub fn panel(&self, columns: &Range<usize>) -> usize {
        (self.columns.start + columns.start) / PANEL
    }

    /// Packs some of the block's depth and columns into panels `[panel, depth, 32]`.
    pub fn pack(&self, depth: Range<usize>, columns: Range<usize>, panels: &mut [f32]) {
        if let Laid::Panels(laid) = self.laid {
            let depth = self.depth.start + depth.start..self.depth.start + depth.end;
            return laid.pack(depth, self.of_the_product(&columns), panels);
        }
        match &self.part.numbers {
            Numbers::F32(numbers) => self.pack_from(numbers.as_slice(), depth, columns, panels),
            Numbers::F16(numbers) => self.pack_from(numbers.as_slice(), depth, columns, panels),
            Numbers::BF16(numbers) => self.pack_from(numbers.as_slice(), depth, columns, panels),
        }
    }

    /// Copies columns that are stored as rows to `[columns, stride]`, a multiple of 16 numbers apart.
    pub fn widen(&self, columns: Range<usize>, rows: &mut [f32], stride: usize) {
        let stored = self.stored_columns.start + columns.start..self.stored_columns.start + columns.end;
        let (depth, from) = (self.stored_depth.clone(), self.part.stride);
        match &self.part.numbers {
            Numbers::F32(numbers) => {
                Matrix { numbers: numbers.as_slice(), stride: from }.copy(stored, depth, rows, stride)
            }
            Numbers::F16(numbers) => {
                Matrix { numbers: numbers.as_slice(), stride: from }.copy(stored, depth, rows, stride)
            }
            Numbers::BF16(numbers) => {
                Matrix { numbers: numbers.as_slice(), stride: from }.copy(stored, depth, rows, stride)
            }
        }
    }

    /// All the depth of a panel of columns, where it lies as `pack` would leave it.
    pub fn packed(&self, columns: &Range<usize>) -> Option<&'a [f32]> {
        let Laid::Panels(panels) = self.laid else { return None };
        panels.packed(self.depth.clone(), self.of_the_product(columns))
    }

    /// Some of its columns among all of the product's.
    fn of_the_product(&self, columns: &Range<usize>) -> Range<usize> {
        self.columns.start + columns.start..self.columns.start + columns.end
    }

    /// The memory that `pack` will read.
    pub fn lines(&self, columns: Range<usize>) -> Lines<'a> {
        if let Laid::Panels(panels) = self.laid {
            return panels.lines(self.depth.clone(), self.of_the_product(&columns));
        }
        let columns = self.stored_columns.start + columns.start..self.stored_columns.start + columns.end;
        let (rows, columns) = match self.rows {
            StoredRows::Depth => (self.stored_depth.clone(), columns),
            StoredRows::Columns => (columns, self.stored_depth.clone()),
        };
        self.part.numbers.lines(self.part.stride, rows, columns)
    }

    fn pack_from<T: pack::Number>(
        &self,
        numbers: &[T],
        depth: Range<usize>,
        columns: Range<usize>,
        panels: &mut [f32],
    ) {
        let matrix = Matrix { numbers, stride: self.part.stride };
        let columns = self.stored_columns.start + columns.start..self.stored_columns.start + columns.end;
        let panel = depth.len() * PANEL;
        let depth = self.stored_depth.start + depth.start..self.stored_depth.start + depth.end;
        match self.rows {
            StoredRows::Depth => matrix.copy_to_panels::<PANEL>(depth, columns, panels),
            StoredRows::Columns => {
                for (start, panel) in columns.clone().step_by(PANEL).zip(panels.chunks_exact_mut(panel)) {
                    matrix.transpose(start..columns.end.min(start + PANEL), depth.clone(), panel, PANEL);
                }
            }
        }
    }
}

/// Cuts a range into as few pieces as possible of at most `longest`, all but the last of the same length, a
/// multiple of 32.
pub(super) fn cut_evenly(range: Range<usize>, longest: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = range.len().div_ceil(longest).max(1);
    let length = range.len().div_ceil(pieces).next_multiple_of(32).max(1);
    let end = range.end;
    range.step_by(length).map(move |start| start..end.min(start + length))
}
