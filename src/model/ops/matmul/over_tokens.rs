//! Products of two matrices that have tokens in rows, summed over the tokens.
//!
//! A sum is cut by the number of tokens alone and never shared between threads. Knows how both factors are packed. It does
//! not know what the products are added to.

use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

use super::f32::{Panel, Panels, Vectors, panel_rows};
use super::operand::cut_evenly;
use super::pack::{LANES, Lines, Matrix};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::{FEW_ROWS, parts::Parts, tiles, unit};
use super::{From, PANEL, Precision, scratch};
use crate::model::lined::Lined;

thread_local! {
    static LEFT: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
    static RIGHT: Cell<Lined<f32>> = const { Cell::new(Lined::new()) };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    static RIGHT_TILES: Cell<Lined<u32>> = const { Cell::new(Lined::new()) };
}

/// Tokens summed up in registers: as deep as the other products' blocks.
const DEPTH: usize = 384;

/// Panels of the left factor that a thread takes at most: with all tokens, half of the second cache.
const LEFT_PANELS: usize = 8;

/// Panels of the right factor that a thread packs at a time.
const RIGHT_PANELS: usize = 8;

/// Some columns of a matrix with a token in each row.
pub(super) struct Columns<'a> {
    pub matrix: Matrix<'a, f32>,
    pub range: Range<usize>,
}

/// `y[m, n] += Σ_t left[t, m] · right[t, n]`: `y` has a row for each column on the left, as long as there are columns
/// on the right.
pub(super) fn add_product(y: &mut [&mut [f32]], left: &Columns, right: &Columns) {
    let tokens = right.matrix.numbers.len().checked_div(right.matrix.stride).unwrap_or(0);
    if tokens == 0 || right.range.is_empty() || y.is_empty() {
        return;
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let (Some(unit), pulp::Arch::V4(simd)) = (unit::Unit::get(), pulp::Arch::new())
        && unit.is_for(Parts::Three)
        && tokens > FEW_ROWS
    {
        return add_tiles((unit, simd), y, tokens, left, right);
    }
    add_vectors(y, tokens, left, right);
}

/// How many of `all` groups of rows a task takes, `most` at most: few enough that threads end together.
fn groups_of_a_task(all: usize, most: usize) -> usize {
    (all / (4 * rayon::current_num_threads())).clamp(1, most)
}

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn add_tiles(
    (unit, simd): (unit::Unit, pulp::x86::V4),
    y: &mut [&mut [f32]],
    tokens: usize,
    left: &Columns,
    right: &Columns,
) {
    let parts = Parts::Three;
    let blocks: Vec<Range<usize>> = cut_evenly(0..tokens, tiles::deepest(parts)).collect();
    let panels = right.range.len().div_ceil(PANEL);
    let len = |depth: &Range<usize>| panels * tiles::panel_len(depth.len(), parts);
    let rows = groups_of_a_task(y.len().div_ceil(unit::SQUARE), LEFT_PAIRS) * unit::SQUARE;
    scratch::with(&RIGHT_TILES, blocks.iter().map(len).sum(), |packed| {
        let mut rest = &mut *packed;
        let mut packed = Vec::with_capacity(blocks.len());
        for depth in &blocks {
            let (block, others) = rest.split_at_mut(len(depth));
            let strips =
                block.par_chunks_mut(RIGHT_PANELS * tiles::panel_len(depth.len(), parts)).enumerate();
            strips.for_each(|(i, strip)| {
                tiles::pack_columns(simd, parts, right.matrix, depth.clone(), right.strip(i), strip);
            });
            packed.push((depth.clone(), &*block));
            rest = others;
        }
        y.par_chunks_mut(rows).enumerate().for_each(|(i, y)| {
            let first = left.range.start + i * rows;
            let columns = first..first + y.len();
            for (depth, packed) in &packed {
                let (depth, columns) = (depth.clone(), columns.clone());
                tiles::Tiles::with_columns((unit, simd), parts, left.matrix, depth, columns, |left| {
                    left.add_packed(packed, y, right.range.len());
                });
            }
        });
    });
}

/// Twos of tiles of the left factor that a thread takes at most: a block of them takes a fifth of the second cache.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const LEFT_PAIRS: usize = 4;

fn add_vectors(y: &mut [&mut [f32]], tokens: usize, left: &Columns, right: &Columns) {
    let width = right.range.len();
    let panels = width.div_ceil(PANEL);
    let blocks: Vec<Range<usize>> = cut_evenly(0..tokens, DEPTH).collect();
    let rows = groups_of_a_task(y.len().div_ceil(panel_rows()), LEFT_PANELS) * panel_rows();
    scratch::with(&RIGHT, tokens * panels * PANEL, |packed| {
        right.pack(&blocks, packed);
        let packed = &*packed;
        y.par_chunks_mut(rows).enumerate().for_each(|(i, y)| {
            let first = left.range.start + i * rows;
            let panels = Panels { rows: y.len(), count: y.len().div_ceil(panel_rows()) };
            scratch::with(&LEFT, panels.count * tokens * LANES, |packed_left| {
                for (panel, out) in packed_left.chunks_exact_mut(tokens * LANES).enumerate() {
                    left.pack_panel(first + panels.rows(panel).start, out);
                }
                let x = &Vectors { packed: packed_left, panels, depth: tokens, precision: Precision::F32 };
                for depth in &blocks {
                    let right = &packed[depth.start * width.next_multiple_of(PANEL)..];
                    let columns = (0..width).step_by(PANEL).map(|start| start..width.min(start + PANEL));
                    for (columns, weight) in columns.zip(right.chunks_exact(depth.len() * PANEL)) {
                        pulp::Arch::new().dispatch(Panel {
                            x,
                            rows: 0..x.panels.count,
                            depth: depth.clone(),
                            weight,
                            y,
                            columns,
                            from: From::OUTPUT,
                            next: &mut Lines::none(),
                            lines: 0,
                        });
                    }
                }
            });
        });
    });
}

impl Columns<'_> {
    /// The columns of one of the strips of panels that are packed at a time.
    fn strip(&self, index: usize) -> Range<usize> {
        let start = self.range.start + index * RIGHT_PANELS * PANEL;
        start..self.range.end.min(start + RIGHT_PANELS * PANEL)
    }

    /// Packs the columns of every block of tokens into panels `[block, panel, token, 32]`.
    fn pack(&self, blocks: &[Range<usize>], mut packed: &mut [f32]) {
        let panels = self.range.len().div_ceil(PANEL);
        for depth in blocks {
            let (block, rest) = packed.split_at_mut(panels * depth.len() * PANEL);
            let strips = block.par_chunks_mut(RIGHT_PANELS * depth.len() * PANEL).enumerate();
            strips.for_each(|(i, strip)| {
                self.matrix.copy_to_panels::<PANEL>(depth.clone(), self.strip(i), strip);
            });
            packed = rest;
        }
    }

    /// Packs sixteen columns of every token; which of them count, whoever reads them knows.
    fn pack_panel(&self, first: usize, panel: &mut [f32]) {
        let (panel, _) = panel.as_chunks_mut::<LANES>();
        let rows = self.matrix.numbers[first..].chunks(self.matrix.stride.max(1));
        for (out, row) in panel.iter_mut().zip(rows) {
            match row.first_chunk() {
                Some(all) => *out = *all,
                None => {
                    out.fill(0.0);
                    out[..row.len()].copy_from_slice(row);
                }
            }
        }
    }
}
