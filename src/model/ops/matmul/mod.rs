//! Products of activations with frozen weights, which stay as they lie in their file.
//!
//! Knows how a product is cut into blocks of the sum and into tasks of columns, which threads share. A sum is never
//! shared, so that its order depends on the shapes alone. It does not know how a block is computed: that is for the
//! kernels.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
mod dot;
mod f32;
mod gradient;
mod laid_out;
mod left;
mod over_tokens;
mod pack;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod pairs;
mod parts;
mod pieces;
mod scratch;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
mod weight;

use rayon::prelude::*;
use std::ops::Range;

use half::slice::HalfFloatSliceExt;
use pack::{Lines, Matrix};
use parts::Parts;
use weight::{Orientation, Part, Tiled};

pub use gradient::{Origin, Stretch};
pub use left::Left;
pub use pieces::{LONGEST, Lanes, Packed, Piece};
pub use weight::{Numbers, Slice, Weight};

/// How the factors of a product are rounded; sums are always f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// Not at all.
    F32,
    /// To bf16, to nearest even.
    BF16,
}

/// What of the processor products use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    /// Vectors of 512 bits: AVX-512.
    pub vectors_of_512_bits: bool,
    /// The matrix unit, for bf16 and for f32 as sums of bf16 numbers: AMX.
    pub matrix_unit: bool,
}

/// What this processor has.
pub fn units() -> Units {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return Units {
        vectors_of_512_bits: matches!(pulp::Arch::new(), pulp::Arch::V4(_)),
        matrix_unit: amx::Unit::get().is_some(),
    };
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    Units { vectors_of_512_bits: false, matrix_unit: false }
}

/// Who computes a product. The result has the same bits either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread alone.
    One,
    /// The threads of the current rayon pool.
    All,
}

/// What a product `[rows, columns]` is added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// Nothing.
    Zero,
    /// A bias `[columns]`, the same for every row.
    Bias(&'a [f32]),
    /// Numbers `[rows, columns]`, such as a residual stream.
    Rows(&'a [f32]),
    /// Both.
    RowsAndBias {
        /// `[rows, columns]`
        rows: &'a [f32],
        /// `[columns]`
        bias: &'a [f32],
    },
    /// What the output holds already.
    Output,
}

/// `y[m, o] = start + Σ_i x[m, i] · w[o, i]` for x `[M, inputs]` and y `[M, outputs]`, both contiguous.
pub fn forward(y: &mut [f32], x: Left, w: &Weight, start: Start, precision: Precision, threads: Threads) {
    let operand = Operand::of(w, Sum::Inputs);
    products(x, &mut [Product { y, operand, start }], precision, threads);
}

/// [`forward`] of the same x with two weights: each with its y and what is added.
pub fn forward_both(
    x: Left,
    both: [(&mut [f32], &Weight, Start); 2],
    precision: Precision,
    threads: Threads,
) {
    let product = |(y, w, start)| Product { y, operand: Operand::of(w, Sum::Inputs), start };
    products(x, &mut both.map(product), precision, threads);
}

/// `y[m, i] = start + Σ_o x[m, o] · w[o, i]` for x `[M, outputs]` and y `[M, inputs]`, both contiguous: the gradient
/// of `forward`'s x.
pub fn backward(y: &mut [f32], x: Left, w: &Weight, start: Start, precision: Precision, threads: Threads) {
    let operand = Operand::of(w, Sum::Outputs);
    products(x, &mut [Product { y, operand, start }], precision, threads);
}

/// Rows up to which it does not pay to pack a weight that is stored along the sum.
const FEW_ROWS: usize = 32;

/// Rows up to which it does not pay to cut an f32 weight into parts for the matrix unit.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
const ROWS_WITHOUT_PARTS: usize = 128;

/// Columns that a kernel computes at a time.
const PANEL: usize = 32;

/// What a kernel is.
trait Kernel: Sync {
    /// `y = from + x · weight` for all rows of the x that it holds, for the first `columns` columns of the blocks. The
    /// block `next` is probably what is asked for after these.
    fn add(&self, blocks: &[Block], next: Option<&Block>, y: &mut [&mut [f32]], columns: usize, from: From);
}

/// What the first block of a sum of some columns is added to; those behind it are added to the output.
#[derive(Clone, Copy)]
struct From<'a> {
    start: Start<'a>,
    /// The first of the columns.
    column: usize,
    /// Columns of the whole product.
    width: usize,
}

/// What some columns of a row of the output are added to.
#[derive(Clone, Copy)]
enum Addend<'a> {
    Nothing,
    Output,
    One(&'a [f32]),
    Two(&'a [f32], &'a [f32]),
}

impl<'a> From<'a> {
    /// The output.
    const OUTPUT: Self = Self { start: Start::Output, column: 0, width: 0 };

    /// For one of a sum's blocks.
    fn of(self, blocks: &[Block], block: &Block) -> Self {
        if blocks.first().is_some_and(|first| first.index == block.index) { self } else { Self::OUTPUT }
    }

    /// For some of the columns of a row.
    #[inline(always)]
    fn addend(&self, row: usize, columns: &Range<usize>) -> Addend<'a> {
        let columns = self.column + columns.start..self.column + columns.end;
        let part = |rows: &'a [f32]| &rows[row * self.width..][columns.clone()];
        match self.start {
            Start::Zero => Addend::Nothing,
            Start::Output => Addend::Output,
            Start::Bias(bias) => Addend::One(&bias[columns]),
            Start::Rows(rows) => Addend::One(part(rows)),
            Start::RowsAndBias { rows, bias } => Addend::Two(part(rows), &bias[columns]),
        }
    }

    /// Makes some columns of a row what the product is added to.
    fn fill(&self, y: &mut [f32], row: usize) {
        match self.addend(row, &(0..y.len())) {
            Addend::Nothing => y.fill(0.0),
            Addend::Output => {}
            Addend::One(first) => y.copy_from_slice(first),
            Addend::Two(first, second) => {
                for ((y, first), second) in y.iter_mut().zip(first).zip(second) {
                    *y = first + second;
                }
            }
        }
    }
}

/// The index of a weight over which a product sums.
#[derive(Clone, Copy, PartialEq)]
enum Sum {
    Inputs,
    Outputs,
}

/// A weight as the right factor `[depth, columns]` of a product.
struct Operand<'a> {
    weight: &'a Weight,
    sum: Sum,
    depth: usize,
    columns: usize,
}

/// Some of the depth and columns of an operand, all in one stored matrix.
struct Block<'a> {
    /// Which of the pieces of the depth.
    index: usize,
    /// What of the product's depth, and of its columns.
    depth: Range<usize>,
    columns: Range<usize>,
    part: &'a Part,
    /// The same in the stored matrix.
    stored_depth: Range<usize>,
    stored_columns: Range<usize>,
    /// Whether the depth counts the rows of the stored matrix, or its columns.
    rows: StoredRows,
    /// Columns of the whole product.
    width: usize,
    laid: Laid<'a>,
}

/// How the numbers of an operand lie.
#[derive(Clone, Copy)]
enum Laid<'a> {
    /// As they were stored.
    Stored,
    /// All of them in tiles for this sum; there is one stored matrix only.
    Tiled(&'a [u32]),
    /// The same for the other sum.
    Across(&'a [u32]),
}

#[derive(Clone, Copy, PartialEq)]
enum StoredRows {
    Depth,
    Columns,
}

/// Columns of y that one thread computes; they all lie in one stored matrix.
struct Task<'y> {
    columns: Range<usize>,
    /// Those of the task behind it, which the same thread takes as a rule; there may be none.
    next: Range<usize>,
    y: Vec<&'y mut [f32]>,
}

/// One of the products of some rows.
struct Product<'a, 'y> {
    y: &'y mut [f32],
    operand: Operand<'a>,
    start: Start<'a>,
}

/// Which kernel computes a product, and with what.
#[derive(Clone, Copy)]
enum Form {
    Dots,
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Tiles((amx::Unit, pulp::x86::V4), Parts),
    Vectors,
}

/// All products of the rows x. Where several that follow each other are of one form, x is packed for all of them once:
/// they have to sum over the same.
fn products(x: Left, products: &mut [Product], precision: Precision, threads: Threads) {
    for alike in products.chunk_by_mut(|a, b| a.form(precision).is(b.form(precision))) {
        let first = &alike[0];
        let (rows, depth, form) = (first.rows(), first.operand.depth, first.form(precision));
        alike.iter().for_each(|product| product.check(rows, depth));
        if rows == 0 {
            continue;
        }
        if let Left::There(x) = x {
            assert_eq!(x.len(), rows * depth, "x [{rows}, {depth}]");
        }
        if depth == 0 {
            alike.iter_mut().for_each(Product::fill);
            continue;
        }
        match form {
            Form::Dots => x.with_all(rows, depth, threads, |x| {
                dot::Dots::with(x, rows, precision, |kernel| run(kernel, dot::DEPTH, alike, threads));
            }),
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Form::Tiles(unit, parts) => {
                let deepest = tiles::deepest(parts);
                let depths: Vec<_> = first.operand.depths(deepest).map(|(_, depth)| depth).collect();
                tiles::Tiles::with(unit, parts, x, rows, &depths, threads, |kernel| {
                    run(kernel, deepest, alike, threads);
                });
            }
            Form::Vectors => x.with_all(rows, depth, threads, |x| {
                f32::Vectors::with(x, rows, precision, threads, |kernel| {
                    run(kernel, f32::deepest(rows), alike, threads);
                });
            }),
        }
    }
}

/// Computes all of every y in tasks, whose sums the kernel takes in blocks at most `deepest` deep.
fn run<K: Kernel>(kernel: &K, deepest: usize, products: &mut [Product], threads: Threads) {
    let tasks = products.iter_mut().flat_map(|Product { y, operand, start }| {
        let (operand, start) = (&*operand, *start);
        operand.tasks(y).into_iter().map(move |task| (operand, start, task))
    });
    each(threads, tasks.collect(), |(operand, start, mut task): (&Operand, Start, Task)| {
        let from = From { start, column: task.columns.start, width: operand.columns };
        let blocks = operand.blocks(&task.columns, deepest);
        let next =
            operand.blocks(&task.next, deepest).into_iter().find(|block| !block.stored_columns.is_empty());
        kernel.add(&blocks, next.as_ref(), &mut task.y, task.columns.len(), from);
    });
}

impl Form {
    /// Whether both take x in the same form.
    fn is(self, other: Self) -> bool {
        match (self, other) {
            (Self::Dots, Self::Dots) | (Self::Vectors, Self::Vectors) => true,
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            (Self::Tiles(_, parts), Self::Tiles(_, others)) => parts == others,
            _ => false,
        }
    }
}

impl Product<'_, '_> {
    fn rows(&self) -> usize {
        self.y.len().checked_div(self.operand.columns).unwrap_or(0)
    }

    fn form(&self, precision: Precision) -> Form {
        let (operand, rows) = (&self.operand, self.rows());
        if rows <= FEW_ROWS && operand.rows_run_along_sum() && operand.weight.tiled().is_none() {
            return Form::Dots;
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let (Some(unit), pulp::Arch::V4(simd)) = (amx::Unit::get(), pulp::Arch::new())
            && let Some(parts) = operand.parts(rows, precision)
        {
            return Form::Tiles((unit, simd), parts);
        }
        Form::Vectors
    }

    /// Refuses what is of other sizes.
    fn check(&self, rows: usize, depth: usize) {
        let columns = self.operand.columns;
        assert_eq!(self.y.len(), rows * columns, "an output of {columns} columns");
        assert_eq!(self.operand.depth, depth, "products of the same rows");
        self.start.check(rows, columns);
    }

    /// Makes y what a product that sums over nothing leaves.
    fn fill(&mut self) {
        let columns = self.operand.columns;
        let from = From { start: self.start, column: 0, width: columns };
        self.y.chunks_exact_mut(columns).enumerate().for_each(|(row, y)| from.fill(y, row));
    }
}

/// Does `f` with each item.
fn each<T: Send>(threads: Threads, items: Vec<T>, f: impl Fn(T) + Sync + Send) {
    match threads {
        Threads::One => items.into_iter().for_each(f),
        Threads::All => items.into_par_iter().with_max_len(1).for_each(f),
    }
}

impl Start<'_> {
    fn check(&self, rows: usize, columns: usize) {
        let (start, bias) = match self {
            Start::Zero | Start::Output => (None, None),
            Start::Bias(bias) => (None, Some(bias)),
            Start::Rows(rows) => (Some(rows), None),
            Start::RowsAndBias { rows, bias } => (Some(rows), Some(bias)),
        };
        assert!(
            start.is_none_or(|start| start.len() == rows * columns),
            "rows to start from [{rows}, {columns}]"
        );
        assert!(bias.is_none_or(|bias| bias.len() == columns), "bias [{columns}]");
    }
}

impl<'a> Operand<'a> {
    fn of(weight: &'a Weight, sum: Sum) -> Self {
        let (depth, columns) = match sum {
            Sum::Inputs => (weight.inputs_len(), weight.outputs_len()),
            Sum::Outputs => (weight.outputs_len(), weight.inputs_len()),
        };
        Self { weight, sum, depth, columns }
    }

    fn laid(&self) -> Laid<'a> {
        match (self.weight.tiled(), self.sum) {
            (None, _) => Laid::Stored,
            (Some(tiled), Sum::Inputs) => Laid::Tiled(&tiled.inputs),
            (Some(Tiled { outputs: Some(outputs), .. }), Sum::Outputs) => Laid::Tiled(outputs),
            (Some(tiled), Sum::Outputs) => Laid::Across(&tiled.inputs),
        }
    }

    /// What the matrix unit makes of the factors of a product of so many rows, if it should.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    fn parts(&self, rows: usize, precision: Precision) -> Option<Parts> {
        if let Some(tiled) = self.weight.tiled() {
            return Some(tiled.parts);
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
    fn tasks<'y>(&self, y: &'y mut [f32]) -> Vec<Task<'y>> {
        let threads = rayon::current_num_threads();
        let panels = self.columns.div_ceil(PANEL);
        let count = match self.depth {
            0..16384 => panels.div_ceil(8).max(4 * threads).next_multiple_of(threads),
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
    fn depths(&self, deepest: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
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
    fn rows_run_along_sum(&self) -> bool {
        self.weight.placed_parts().all(|(_, part)| self.rows(part) == StoredRows::Columns)
    }

    /// The blocks, at most `deepest` deep, that make up the columns of a task, in the order of the sum.
    fn blocks(&self, columns: &Range<usize>, deepest: usize) -> Vec<Block<'a>> {
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
                rows: self.rows(part),
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
fn strips<'a>(
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
    fn panel(&self, columns: &Range<usize>) -> usize {
        (self.columns.start + columns.start) / PANEL
    }

    /// Packs some of the block's depth and columns into panels `[panel, depth, 32]`.
    fn pack(&self, depth: Range<usize>, columns: Range<usize>, panels: &mut [f32]) {
        match &self.part.numbers {
            Numbers::F32(numbers) => self.pack_from(numbers.as_slice(), depth, columns, panels),
            Numbers::F16(numbers) => self.pack_from(numbers.as_slice(), depth, columns, panels),
            Numbers::BF16(numbers) => self.pack_from(numbers.as_slice(), depth, columns, panels),
        }
    }

    /// Copies columns that are stored as rows to `[columns, stride]`, a multiple of 16 numbers apart.
    fn widen(&self, columns: Range<usize>, rows: &mut [f32], stride: usize) {
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

    /// The memory that `pack` will read.
    fn lines(&self, columns: Range<usize>) -> Lines<'a> {
        let columns = self.stored_columns.start + columns.start..self.stored_columns.start + columns.end;
        let (rows, columns) = match self.rows {
            StoredRows::Depth => (self.stored_depth.clone(), columns),
            StoredRows::Columns => (columns, self.stored_depth.clone()),
        };
        match &self.part.numbers {
            Numbers::F32(numbers) => Lines::new(numbers.as_slice(), self.part.stride, rows, columns),
            Numbers::F16(numbers) => {
                Lines::new(numbers.as_slice().reinterpret_cast(), self.part.stride, rows, columns)
            }
            Numbers::BF16(numbers) => {
                Lines::new(numbers.as_slice().reinterpret_cast(), self.part.stride, rows, columns)
            }
        }
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
fn cut_evenly(range: Range<usize>, longest: usize) -> impl Iterator<Item = Range<usize>> {
    let pieces = range.len().div_ceil(longest).max(1);
    let length = range.len().div_ceil(pieces).next_multiple_of(32).max(1);
    let end = range.end;
    range.step_by(length).map(move |start| start..end.min(start + length))
}

#[cfg(test)]
mod tests;
