//! Weights in panels of 32 outputs `[panel, inputs, 32]`, in their own format, as vectors take them for a sum over the inputs.
//!
//! Knows how a weight is brought into them, and where they have what a product of either direction asks for. It does not
//! know who asks.

use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

use super::PANEL;
use super::operand::{StoredRows, Sum};
use super::pack::{Lines, Matrix, Number};
use super::weight::{Numbers, Orientation, Part, Slice};
use crate::model::lined::Lined;

/// The panels of a weight, for one of the sums.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub numbers: &'a Numbers,
    pub inputs: usize,
    pub sum: Sum,
}

/// The numbers of a stored matrix in panels, with zeros where outputs end, if there are any.
pub(super) fn of(part: &Part, inputs: usize) -> Option<Numbers> {
    if part.outputs.is_empty() || inputs == 0 {
        return None;
    }
    Some(match &part.numbers {
        Numbers::F32(numbers) => Numbers::F32(panels(part, numbers.as_slice(), inputs)),
        Numbers::F16(numbers) => Numbers::F16(panels(part, numbers.as_slice(), inputs)),
        Numbers::BF16(numbers) => Numbers::BF16(panels(part, numbers.as_slice(), inputs)),
    })
}

fn panels<T: Number>(part: &Part, numbers: &[T], inputs: usize) -> Slice<T> {
    let outputs = part.outputs.clone();
    let mut panels = Lined::zeros(outputs.len().div_ceil(PANEL) * inputs * PANEL);
    panels.par_chunks_exact_mut(inputs * PANEL).enumerate().for_each(|(i, panel)| {
        let first = outputs.start + i * PANEL;
        let count = PANEL.min(outputs.end - first);
        let (lines, _) = panel.as_chunks_mut::<PANEL>();
        match part.orientation {
            Orientation::InputsByOutputs => {
                for (line, row) in lines.iter_mut().zip(numbers.chunks(part.stride)) {
                    line[..count].copy_from_slice(&row[first..first + count]);
                }
            }
            Orientation::OutputsByInputs => {
                for (column, row) in numbers.chunks(part.stride).skip(first).take(count).enumerate() {
                    lines.iter_mut().zip(row).for_each(|(line, number)| line[column] = *number);
                }
            }
        }
    });
    let len = panels.len();
    Slice::new(Arc::new(panels), 0..len)
}

impl<'a> Panels<'a> {
    /// What a panel's 32 are in the product: its columns, of which one panel is at hand at a time, or its depth.
    pub fn rows(self) -> StoredRows {
        match self.sum {
            Sum::Inputs => StoredRows::Columns,
            Sum::Outputs => StoredRows::Depth,
        }
    }

    /// Which panels, and what of each: some of the product's depth and columns, either of which begins with a panel.
    fn place(self, depth: Range<usize>, columns: Range<usize>) -> (Range<usize>, Range<usize>) {
        let (outputs, inputs) = match self.sum {
            Sum::Inputs => (columns, depth),
            Sum::Outputs => (depth, columns),
        };
        (outputs.start / PANEL..outputs.end.div_ceil(PANEL), inputs.start * PANEL..inputs.end * PANEL)
    }

    /// The memory of these.
    pub fn lines(self, depth: Range<usize>, columns: Range<usize>) -> Lines<'a> {
        let (panels, part) = self.place(depth, columns);
        self.numbers.lines(self.inputs * PANEL, panels, part)
    }

    /// A panel of columns as it lies, where that is as it is packed.
    pub fn packed(self, depth: Range<usize>, columns: Range<usize>) -> Option<&'a [f32]> {
        let (Numbers::F32(numbers), Sum::Inputs) = (self.numbers, self.sum) else { return None };
        let (panels, part) = self.place(depth, columns);
        let panel = &numbers.as_slice()[panels.start * self.inputs * PANEL..];
        (panels.len() == 1).then(|| &panel[part])
    }

    /// Packs these into panels `[panel of 32 columns, depth, 32]`.
    pub fn pack(self, depth: Range<usize>, columns: Range<usize>, out: &mut [f32]) {
        match self.numbers {
            Numbers::F32(numbers) => self.pack_from(numbers.as_slice(), depth, columns, out),
            Numbers::F16(numbers) => self.pack_from(numbers.as_slice(), depth, columns, out),
            Numbers::BF16(numbers) => self.pack_from(numbers.as_slice(), depth, columns, out),
        }
    }

    fn pack_from<T: Number>(
        self,
        numbers: &[T],
        depth: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) {
        let (stride, len) = (self.inputs * PANEL, depth.len() * PANEL);
        if self.sum == Sum::Inputs {
            let (panels, part) = self.place(depth, columns);
            return Matrix { numbers, stride }.copy(panels, part, out, len);
        }
        // A square of 32 by 32 after the other, in the order of memory.
        for from in depth.clone().step_by(PANEL) {
            let rows = PANEL.min(depth.end - from);
            let panel = Matrix { numbers: &numbers[from / PANEL * stride..], stride: PANEL };
            for (start, out) in columns.clone().step_by(PANEL).zip(out.chunks_exact_mut(len)) {
                let out = &mut out[(from - depth.start) * PANEL..][..rows * PANEL];
                panel.transpose(start..columns.end.min(start + PANEL), 0..rows, out, PANEL);
            }
        }
    }
}
