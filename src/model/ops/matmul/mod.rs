//! Products of activations with frozen weights, which stay as they lie in their file.
//!
//! Knows which kernel takes which product, and what its sums begin with. Threads share tasks of columns and never a sum, so
//! that its order depends on the shapes alone. It does not know how a block is computed: that is for the kernels.

mod dot;
mod f32;
mod gradient;
mod laid_out;
mod left;
mod operand;
mod over_tokens;
mod pack;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod pairs;
mod panels;
mod parts;
mod pieces;
mod scratch;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
pub mod small;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod tiles;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod unit;
mod weight;

use rayon::prelude::*;
use std::ops::Range;

use operand::{Block, Operand, Sum, Task};
use pack::Lines;
use parts::Parts;

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
    /// Such vectors of pairs of bf16 numbers, for bf16: AVX512-BF16.
    pub vectors_of_bf16: bool,
    /// The matrix unit, for bf16 and for f32 as sums of bf16 numbers: AMX.
    pub matrix_unit: bool,
}

/// What this processor has.
pub fn units() -> Units {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return Units {
        vectors_of_512_bits: matches!(pulp::Arch::new(), pulp::Arch::V4(_)),
        vectors_of_bf16: unit::Unit::get().is_some(),
        matrix_unit: unit::Unit::get().is_some_and(unit::Unit::is_matrix),
    };
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    Units { vectors_of_512_bits: false, vectors_of_bf16: false, matrix_unit: false }
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

/// Rows that the bf16 unit computes at a time: others take as long as the next multiple of them.
pub const ROWS_AT_A_TIME: usize = 16;

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
    Tiles((unit::Unit, pulp::x86::V4), Parts),
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
        if rows <= FEW_ROWS && operand.rows_run_along_sum() && !operand.weight.is_laid_out() {
            return Form::Dots;
        }
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        if let (Some(unit), pulp::Arch::V4(simd)) = (unit::Unit::get(), pulp::Arch::new())
            && let Some(parts) = operand.parts(rows, precision)
            && unit.is_for(parts)
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

#[cfg(test)]
mod tests;
