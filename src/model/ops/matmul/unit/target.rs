//! What the sums of a product begin with, and where they go.
//!
//! Knows where rows of numbers are in memory. It does not know who sums up what.

use std::marker::PhantomData;

use super::{SIDE, SQUARE};

/// Rows of a matrix that products can be written to.
pub struct Output<'a, 'y> {
    pub(super) rows: &'a mut [&'y mut [f32]],
    /// From row to row, in bytes, where all are equally far apart.
    pub(super) stride: Option<usize>,
    /// Of the shortest row.
    len: usize,
}

impl<'a, 'y> Output<'a, 'y> {
    /// Rows of any lengths anywhere.
    pub fn new(rows: &'a mut [&'y mut [f32]]) -> Self {
        let mut places = rows.iter_mut().map(|row| row.as_mut_ptr().expose_provenance());
        let stride = places.next().zip(places.next()).map(|(first, second)| {
            let stride = second.wrapping_sub(first);
            let mut last = second;
            let even = places.all(|place| place.wrapping_sub(std::mem::replace(&mut last, place)) == stride);
            even.then_some(stride)
        });
        let len = rows.iter().map(|row| row.len()).min().unwrap_or(0);
        Self { rows, stride: stride.flatten(), len }
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Some of the rows, at most 32.
    pub fn square(&mut self, first: usize) -> impl Iterator<Item = &mut [f32]> {
        self.rows.iter_mut().skip(first).take(SQUARE).map(|row| &mut **row)
    }

    /// 32 columns of so many rows, if there are so many, equally far apart.
    pub fn target(&mut self, (row, height): (usize, Height), column: usize) -> Option<Target<'_>> {
        if row + height.rows() > self.rows.len() || column + SQUARE > self.len {
            return None;
        }
        let first = self.rows[row][column..].as_mut_ptr().addr();
        let first = std::ptr::with_exposed_provenance_mut(first);
        Some(Target { first, stride: self.stride?, height, rows: PhantomData })
    }
}

/// How many rows of sums a product computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Height {
    /// 16: one tile of x.
    One,
    /// 32: two.
    Two,
}

impl Height {
    /// Of what is needed for so many rows, at most 32.
    pub fn of(rows: usize) -> Self {
        if rows <= SIDE { Self::One } else { Self::Two }
    }

    pub(super) fn rows(self) -> usize {
        match self {
            Self::One => SIDE,
            Self::Two => SQUARE,
        }
    }
}

/// Where the sums of a product go: 32 columns of 16 or 32 rows.
pub struct Target<'a> {
    pub(super) first: *mut f32,
    /// From row to row, in bytes.
    pub(super) stride: usize,
    pub(super) height: Height,
    rows: PhantomData<&'a mut [f32]>,
}

impl<'a> Target<'a> {
    /// Rows end to end.
    pub fn of(rows: &'a mut [[f32; SQUARE]; SQUARE]) -> Self {
        let stride = size_of::<[f32; SQUARE]>();
        Self { first: rows.as_mut_ptr().cast(), stride, height: Height::Two, rows: PhantomData }
    }

    /// Rows of a matrix `[.., width]`, from a row and a column on.
    ///
    /// # Panics
    /// They are not within it.
    pub fn within(
        matrix: &'a mut [f32],
        width: usize,
        (row, height): (usize, Height),
        column: usize,
    ) -> Self {
        assert!(column + SQUARE <= width, "32 columns from {column} on of rows of {width}");
        let rows = &mut matrix[row * width..(row + height.rows()) * width];
        let stride = width * size_of::<f32>();
        Self { first: rows[column..].as_mut_ptr(), stride, height, rows: PhantomData }
    }
}

/// What the sums of a product begin with.
#[derive(Clone, Copy)]
pub enum Begin<'a> {
    /// Zero.
    Zero,
    /// What is there already.
    There,
    /// These, as many rows and columns as the product has.
    With(Added<'a>),
}

impl<'a> Begin<'a> {
    /// The numbers, if there are any.
    ///
    /// # Panics
    /// There are not as many as the product has sums.
    pub(super) fn of(self, target: &Target<'a>) -> Option<Added<'a>> {
        let &Target { first, stride, height, .. } = target;
        match self {
            Begin::Zero => None,
            Begin::There => Some(Added { first: first.cast_const(), stride, height, rows: PhantomData }),
            Begin::With(added) => {
                assert!(added.height == height, "as many rows are added as there are sums");
                Some(added)
            }
        }
    }
}

/// 32 columns of 16 or 32 rows that are added to a product.
#[derive(Clone, Copy)]
pub struct Added<'a> {
    pub(super) first: *const f32,
    /// From row to row, in bytes.
    pub(super) stride: usize,
    pub(super) height: Height,
    rows: PhantomData<&'a [f32]>,
}

impl<'a> Added<'a> {
    /// The first columns of rows that are `width` numbers long, if there are so many; with a width of 0 it is the same
    /// row again and again.
    pub fn of(rows: &'a [f32], width: usize, height: Height) -> Option<Self> {
        let all = (height.rows() - 1) * width + SQUARE;
        let stride = width * size_of::<f32>();
        (rows.len() >= all).then_some(Self { first: rows.as_ptr(), stride, height, rows: PhantomData })
    }
}

/// Space for the sums of a product that do not go where they belong at once.
#[repr(align(64))]
pub struct Sums(pub [[f32; SQUARE]; SQUARE]);

impl Sums {
    /// Space for sums.
    pub fn new() -> Self {
        Self([[0.0; SQUARE]; SQUARE])
    }

    /// So many rows of it.
    pub fn target(&mut self, height: Height) -> Target<'_> {
        Target { height, ..Target::of(&mut self.0) }
    }
}
