//! Frozen weights as they lie in their file: shared numbers, their format and their orientation.
//!
//! Knows where the number of an (output, input) pair is. It does not know how products are computed.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Arc;

use super::pack::{Lines, Number};
use super::parts::Parts;
use crate::model::lined::Lined;
use crate::model::ops::gradients::TensorId;

/// A part of a shared, immutable sequence of numbers; cheap to clone.
#[derive(Clone)]
pub struct Slice<T: 'static> {
    owner: Arc<dyn AsRef<[T]> + Send + Sync>,
    range: Range<usize>,
    /// The parameter whose numbers these all are, if it is trained.
    tensor: Option<TensorId>,
}

impl<T> Slice<T> {
    /// The numbers `range` of `owner`, which may be a memory map.
    pub fn new(owner: Arc<dyn AsRef<[T]> + Send + Sync>, range: Range<usize>) -> Self {
        let len = owner.as_ref().as_ref().len();
        assert!(range.start <= range.end && range.end <= len, "numbers {range:?} of only {len}");
        Self { owner, range, tensor: None }
    }

    /// All numbers of a parameter that is trained.
    pub fn trained(owner: Arc<Vec<T>>, tensor: TensorId) -> Self
    where
        T: Send + Sync,
    {
        let range = 0..owner.len();
        Self { tensor: Some(tensor), ..Self::new(owner, range) }
    }

    /// The numbers themselves.
    pub fn as_slice(&self) -> &[T] {
        &self.owner.as_ref().as_ref()[self.range.clone()]
    }
}

impl<T: Send + Sync> From<Vec<T>> for Slice<T> {
    fn from(numbers: Vec<T>) -> Self {
        let range = 0..numbers.len();
        Self { owner: Arc::new(numbers), range, tensor: None }
    }
}

/// The numbers of a frozen matrix in one of the formats of weight files.
#[derive(Clone)]
pub enum Numbers {
    /// 32-bit floats.
    F32(Slice<f32>),
    /// IEEE half precision.
    F16(Slice<f16>),
    /// The upper half of 32-bit floats.
    BF16(Slice<bf16>),
}

impl Numbers {
    /// How many numbers there are.
    pub fn len(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.range.len(),
            Self::F16(numbers) => numbers.range.len(),
            Self::BF16(numbers) => numbers.range.len(),
        }
    }

    /// Bytes of each.
    pub(super) fn size(&self) -> usize {
        match self {
            Self::F32(_) => size_of::<f32>(),
            Self::F16(_) => size_of::<f16>(),
            Self::BF16(_) => size_of::<bf16>(),
        }
    }

    /// A copy in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(numbers) => numbers.as_slice().to_vec(),
            Self::F16(numbers) => numbers.as_slice().iter().map(|n| n.to_f32()).collect(),
            Self::BF16(numbers) => numbers.as_slice().iter().map(|n| n.to_f32()).collect(),
        }
    }

    /// Of how many bf16 numbers each is the sum at most.
    fn parts(&self) -> Parts {
        match self {
            Self::F32(_) => Parts::Three,
            Self::F16(_) => Parts::Two,
            Self::BF16(_) => Parts::One,
        }
    }

    /// The memory of a block of the matrix that they are, whose rows are `stride` numbers long.
    pub(super) fn lines(&self, stride: usize, rows: Range<usize>, columns: Range<usize>) -> Lines<'_> {
        match self {
            Self::F32(numbers) => Lines::new(numbers.as_slice(), stride, rows, columns),
            Self::F16(numbers) => Lines::new(numbers.as_slice().reinterpret_cast(), stride, rows, columns),
            Self::BF16(numbers) => Lines::new(numbers.as_slice().reinterpret_cast(), stride, rows, columns),
        }
    }

    /// Where in memory they are.
    fn address(&self) -> usize {
        match self {
            Self::F32(numbers) => numbers.as_slice().as_ptr() as usize,
            Self::F16(numbers) => numbers.as_slice().as_ptr() as usize,
            Self::BF16(numbers) => numbers.as_slice().as_ptr() as usize,
        }
    }

    /// The parameter whose numbers these are, if it is trained.
    pub fn tensor(&self) -> Option<TensorId> {
        match self {
            Self::F32(numbers) => numbers.tensor,
            Self::F16(numbers) => numbers.tensor,
            Self::BF16(numbers) => numbers.tensor,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        Self::F32(numbers.into())
    }
}

impl From<Vec<f16>> for Numbers {
    fn from(numbers: Vec<f16>) -> Self {
        Self::F16(numbers.into())
    }
}

impl From<Vec<bf16>> for Numbers {
    fn from(numbers: Vec<bf16>) -> Self {
        Self::BF16(numbers.into())
    }
}

/// How a weight lies for products of many rows.
pub(super) enum LaidOut {
    /// For the bf16 unit.
    Tiled(Tiled),
    /// In its own format as vectors take it, for a sum over the inputs: `[panel of 32 outputs, inputs, 32]`, with zeros where
    /// outputs end.
    Panels(Numbers),
}

/// A weight as the bf16 unit takes it: pairs of bf16 numbers `[panel, step, part, 2, 16 pairs, 16 columns]`, all panels
/// of 32 columns with the whole depth.
pub(super) struct Tiled {
    /// What the numbers were made into.
    pub parts: Parts,
    /// For a sum over the inputs.
    pub inputs: Lined<u32>,
    /// For one over the outputs, where it is not made of the other each time.
    pub outputs: Option<Lined<u32>>,
}

/// Which index of a stored matrix counts its rows.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Orientation {
    OutputsByInputs,
    InputsByOutputs,
}

/// Outputs of a part that are too few for a sum of their own.
const SHORT: usize = 256;

/// Some outputs of one stored row-major matrix.
#[derive(Clone)]
pub(super) struct Part {
    pub numbers: Numbers,
    pub orientation: Orientation,
    /// Length of a stored row.
    pub stride: usize,
    /// The stored outputs this part consists of.
    pub outputs: Range<usize>,
    /// Of how many bf16 numbers one of these is the sum.
    pub parts: Parts,
}

/// A frozen weight `[outputs, inputs]`: one stored matrix, or several stacked along the outputs
/// (q|k|v, gate|up) without a copy. Cheap to clone.
#[derive(Clone)]
pub struct Weight {
    inputs: usize,
    outputs: usize,
    parts: Vec<Part>,
    /// The numbers as products of many rows take them, instead of as they were stored.
    laid_out: Option<Arc<LaidOut>>,
}

impl Weight {
    /// A matrix stored row-major as `[outputs, inputs]` (a linear layer of torch).
    pub fn from_outputs_by_inputs(numbers: Numbers, outputs: usize, inputs: usize) -> Self {
        Self::stored(numbers, Orientation::OutputsByInputs, outputs, inputs)
    }

    /// A matrix stored row-major as `[inputs, outputs]` (a `Conv1D` of GPT-2).
    pub fn from_inputs_by_outputs(numbers: Numbers, inputs: usize, outputs: usize) -> Self {
        Self::stored(numbers, Orientation::InputsByOutputs, outputs, inputs)
    }

    fn stored(numbers: Numbers, orientation: Orientation, outputs: usize, inputs: usize) -> Self {
        assert_eq!(numbers.len(), outputs * inputs, "numbers of a weight [{outputs}, {inputs}]");
        let stride = match orientation {
            Orientation::OutputsByInputs => inputs,
            Orientation::InputsByOutputs => outputs,
        };
        Self {
            inputs,
            outputs,
            parts: vec![Part { parts: numbers.parts(), numbers, orientation, stride, outputs: 0..outputs }],
            laid_out: None,
        }
    }

    /// Weights of the same inputs as one: their outputs one after another.
    pub fn stacked(weights: Vec<Weight>) -> Self {
        let inputs = weights.first().map_or(0, |weight| weight.inputs);
        assert!(
            weights.iter().all(|weight| weight.inputs == inputs),
            "stacked weights differ in their inputs"
        );
        let outputs = weights.iter().map(|weight| weight.outputs).sum();
        let parts = weights.into_iter().flat_map(|weight| weight.parts).collect();
        Self { inputs, outputs, parts, laid_out: None }
    }

    /// Some of the outputs, as a view of the same numbers.
    pub fn outputs(&self, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.outputs,
            "outputs {range:?} of {}",
            self.outputs
        );
        let parts = self.placed_parts().filter_map(|(place, part)| {
            let (start, end) = (range.start.max(place.start), range.end.min(place.end));
            let stored = |output: usize| output - place.start + part.outputs.start;
            (start < end).then(|| Part { outputs: stored(start)..stored(end), ..part.clone() })
        });
        Self { inputs: self.inputs, outputs: range.len(), parts: parts.collect(), laid_out: None }
    }

    /// The inputs' weights of one output, in f32: a row of an embedding table.
    ///
    /// # Panics
    /// There is no such output, or `row` is not as long as there are inputs.
    pub fn output_row(&self, output: usize, row: &mut [f32]) {
        assert_eq!(row.len(), self.inputs, "a row of a weight of {} inputs", self.inputs);
        assert!(output < self.outputs, "output {output} of {}", self.outputs);
        let found = self.placed_parts().find(|(place, _)| place.contains(&output));
        let Some((place, part)) = found else { return };
        let output = output - place.start + part.outputs.start;
        match &part.numbers {
            Numbers::F32(numbers) => part.widen(numbers.as_slice(), output, row),
            Numbers::F16(numbers) => part.widen(numbers.as_slice(), output, row),
            Numbers::BF16(numbers) => part.widen(numbers.as_slice(), output, row),
        }
    }

    /// Whether both are the same numbers in memory.
    pub fn is(&self, other: &Self) -> bool {
        let first = |weight: &Self| weight.parts.first().map(|part| part.numbers.address());
        (self.outputs, self.inputs, first(self)) == (other.outputs, other.inputs, first(other))
    }

    /// How many numbers go into a product.
    pub fn inputs_len(&self) -> usize {
        self.inputs
    }

    /// How many numbers come out of a product.
    pub fn outputs_len(&self) -> usize {
        self.outputs
    }

    /// The same weight rounded to bf16 (nearest, ties to even). Parts that are bf16 are shared, not copied.
    pub fn to_bf16(&self) -> Self {
        let parts = self.parts.iter().map(|part| part.to_bf16(self.inputs)).collect();
        Self { parts, laid_out: None, ..*self }
    }

    /// The same numbers in one stored matrix, a copy. Parts of different formats, or stored the other way, stay as
    /// they are.
    pub(super) fn gathered(self) -> Self {
        let joined = match self.parts.first().map(|part| &part.numbers) {
            _ if self.parts.len() < 2 => None,
            Some(Numbers::F32(_)) => self.joined(|n| if let Numbers::F32(n) = n { Some(n) } else { None }),
            Some(Numbers::F16(_)) => self.joined(|n| if let Numbers::F16(n) = n { Some(n) } else { None }),
            Some(Numbers::BF16(_)) => self.joined(|n| if let Numbers::BF16(n) = n { Some(n) } else { None }),
            None => None,
        };
        match joined {
            Some(numbers) => Self::from_outputs_by_inputs(numbers, self.outputs, self.inputs),
            None => self,
        }
    }

    /// Whether any of its numbers are those of a parameter that is trained.
    pub(super) fn is_trained(&self) -> bool {
        self.parts.iter().any(|part| part.numbers.tensor().is_some())
    }

    /// The same weight, with f32 numbers that happen to be sums of fewer bf16 numbers known as such.
    pub(super) fn measured(mut self) -> Self {
        for part in &mut self.parts {
            if let Numbers::F32(numbers) = &part.numbers {
                part.parts = Parts::needed(numbers.as_slice());
            }
        }
        self
    }

    /// Whether a sum over the outputs would be one of many short ones.
    pub(super) fn is_scattered(&self) -> bool {
        self.parts.len() > 1 && self.parts.iter().any(|part| part.outputs.len() < SHORT)
    }

    fn joined<T: Copy + Send + Sync>(&self, format: fn(&Numbers) -> Option<&Slice<T>>) -> Option<Numbers>
    where
        Numbers: From<Vec<T>>,
    {
        let mut all = Vec::with_capacity(self.outputs * self.inputs);
        for part in &self.parts {
            if part.orientation != Orientation::OutputsByInputs {
                return None;
            }
            let Range { start, end } = part.outputs;
            all.extend_from_slice(&format(&part.numbers)?.as_slice()[start * self.inputs..end * self.inputs]);
        }
        Some(all.into())
    }

    /// The only part, if there is one.
    pub(super) fn only_part(&self) -> Option<&Part> {
        match &self.parts[..] {
            [part] => Some(part),
            _ => None,
        }
    }

    /// The same weight, so laid out; the numbers as they were stored are let go.
    pub(super) fn lying(self, laid_out: LaidOut) -> Self {
        let gone = Numbers::F32(Vec::new().into());
        let parts = self.parts.into_iter().map(|part| Part { numbers: gone.clone(), ..part }).collect();
        Self { parts, laid_out: Some(Arc::new(laid_out)), ..self }
    }

    /// Whether the numbers lie as products of many rows take them.
    pub fn is_laid_out(&self) -> bool {
        self.laid_out.is_some()
    }

    /// How the numbers lie, if they were laid out.
    pub(super) fn lies(&self) -> Option<&LaidOut> {
        self.laid_out.as_deref()
    }

    /// The parts, each with the outputs of this weight that it makes up.
    pub(super) fn placed_parts(&self) -> impl Iterator<Item = (Range<usize>, &Part)> {
        self.parts.iter().scan(0, |end, part| {
            let start = *end;
            *end += part.outputs.len();
            Some((start..*end, part))
        })
    }
}

impl Part {
    fn widen<T: Number>(&self, numbers: &[T], output: usize, row: &mut [f32]) {
        let (first, step) = match self.orientation {
            Orientation::OutputsByInputs => (output * self.stride, 1),
            Orientation::InputsByOutputs => (output, self.stride),
        };
        let from = numbers[first..].iter().step_by(step);
        row.iter_mut().zip(from).for_each(|(to, number)| *to = number.to_f32());
    }

    fn to_bf16(&self, inputs: usize) -> Self {
        let numbers = match &self.numbers {
            Numbers::F32(numbers) => self.rounded(numbers.as_slice(), inputs),
            Numbers::F16(numbers) => self.rounded(numbers.as_slice(), inputs),
            Numbers::BF16(_) => return self.clone(),
        };
        let (orientation, outputs) = (self.orientation, self.outputs.len());
        let stride = match orientation {
            Orientation::OutputsByInputs => inputs,
            Orientation::InputsByOutputs => outputs,
        };
        let numbers = Numbers::BF16(numbers.into());
        Self { parts: numbers.parts(), numbers, orientation, stride, outputs: 0..outputs }
    }

    /// This part's numbers alone, row by row.
    fn rounded<T: Number>(&self, numbers: &[T], inputs: usize) -> Vec<bf16> {
        let round = |number: &T| bf16::from_f32(number.to_f32());
        let Range { start, end } = self.outputs;
        match self.orientation {
            Orientation::OutputsByInputs => {
                numbers[start * inputs..end * inputs].par_iter().map(round).collect()
            }
            Orientation::InputsByOutputs if start == end => Vec::new(),
            Orientation::InputsByOutputs => numbers
                .par_chunks(self.stride)
                .flat_map_iter(|row| row[start..end].iter().map(round))
                .collect(),
        }
    }
}
