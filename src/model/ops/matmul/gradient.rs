//! The gradients of trained weights: products `dyᵀ · x` over all tokens, added to the tensors the weights lie in.
//!
//! Knows which stored tensor a weight's outputs are parts of, and which way it lies there. It does not know how the
//! products are computed. Factors are f32 and are not rounded, whatever precision the forward pass had.

use std::ops::Range;

use super::over_tokens::{Columns, add_product};
use super::pack::Matrix;
use super::weight::{Orientation, Part, Weight};
use crate::model::ops::gradients::{Gradients, TensorId};

/// Where the gradient of a weight `[outputs, inputs]` goes: the trained tensors that its outputs lie in.
#[derive(Clone)]
pub struct Origin {
    inputs: usize,
    outputs: usize,
    places: Vec<Place>,
}

/// Some outputs of a weight in a stored tensor.
#[derive(Clone)]
struct Place {
    tensor: TensorId,
    orientation: Orientation,
    /// Length of a stored row.
    stride: usize,
    /// Of the weight.
    outputs: Range<usize>,
    /// The stored output that is the first of them.
    stored: usize,
}

impl Weight {
    /// Where its gradient goes; `None` if it is frozen. A weight that was prepared for products no longer knows.
    pub fn origin(&self) -> Option<Origin> {
        let place = |(outputs, part): (Range<usize>, &Part)| {
            Some(Place {
                tensor: part.numbers.tensor()?,
                orientation: part.orientation,
                stride: part.stride,
                stored: part.outputs.start,
                outputs,
            })
        };
        let places = self.placed_parts().map(place).collect::<Option<Vec<_>>>()?;
        Some(Origin { inputs: self.inputs_len(), outputs: self.outputs_len(), places })
    }
}

/// Some outputs of a weight, and where their numbers are in a stored tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// The tensor.
    pub tensor: TensorId,
    /// Of the weight.
    pub outputs: Range<usize>,
    /// Where the first output's number for the first input is.
    pub first: usize,
    /// How far the next output's is, and the next input's.
    pub steps: (usize, usize),
}

impl Origin {
    /// Where the numbers of the weight are.
    pub fn stretches(&self) -> impl Iterator<Item = Stretch> {
        self.places.iter().map(|place| {
            let Place { tensor, stride, stored, .. } = *place;
            let (first, steps) = match place.orientation {
                Orientation::OutputsByInputs => (stored * stride, (stride, 1)),
                Orientation::InputsByOutputs => (stored, (1, stride)),
            };
            Stretch { tensor, outputs: place.outputs.clone(), first, steps }
        })
    }

    /// Adds the gradient of `range` of the outputs, from the inputs `x` `[tokens, inputs]` and those outputs' gradient
    /// `dy` `[tokens, range]`.
    pub fn add_outputs(&self, range: Range<usize>, x: &[f32], dy: &[f32], gradients: &mut Gradients) {
        let places = self.places.iter().filter_map(|place| {
            let (start, end) = (range.start.max(place.outputs.start), range.end.min(place.outputs.end));
            (start < end).then(|| Place {
                outputs: start - range.start..end - range.start,
                stored: start - place.outputs.start + place.stored,
                ..place.clone()
            })
        });
        let part = Self { places: places.collect(), outputs: range.len(), inputs: self.inputs };
        part.add(x, dy, gradients);
    }

    /// Adds the gradient, from the inputs `x` `[tokens, inputs]` and the outputs' gradient `dy` `[tokens, outputs]`.
    pub fn add(&self, x: &[f32], dy: &[f32], gradients: &mut Gradients) {
        let (x, dy) =
            (Matrix { numbers: x, stride: self.inputs }, Matrix { numbers: dy, stride: self.outputs });
        // Stored rows of one tensor are filled by one product, even where others lie between them.
        let runs = self.places.chunk_by(|a, b| {
            let by_rows = a.orientation == Orientation::OutputsByInputs;
            by_rows && a.tensor == b.tensor && a.stored + a.outputs.len() <= b.stored
        });
        for run in runs {
            let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
            let outputs = Columns { matrix: dy, range: first.outputs.start..last.outputs.end };
            let inputs = Columns { matrix: x, range: 0..self.inputs };
            let tensor = gradients.of(first.tensor);
            match first.orientation {
                Orientation::OutputsByInputs => add_product(&mut rows(tensor, run), &outputs, &inputs),
                Orientation::InputsByOutputs => {
                    let columns = first.stored..first.stored + first.outputs.len();
                    let rows = tensor.chunks_exact_mut(first.stride).map(|row| &mut row[columns.clone()]);
                    add_product(&mut rows.collect::<Vec<_>>(), &inputs, &outputs);
                }
            }
        }
    }

    /// Adds row `i` of `rows` `[count, inputs]` to the gradient of output `outputs[i]`, in their order: what an
    /// embedding table gets.
    pub fn add_rows(&self, outputs: impl Iterator<Item = u32>, rows: &[f32], gradients: &mut Gradients) {
        for (output, row) in outputs.zip(rows.chunks_exact(self.inputs.max(1))) {
            let output = output as usize;
            let Some(place) = self.places.iter().find(|place| place.outputs.contains(&output)) else {
                continue;
            };
            let output = output - place.outputs.start + place.stored;
            let (first, step) = match place.orientation {
                Orientation::OutputsByInputs => (output * place.stride, 1),
                Orientation::InputsByOutputs => (output, place.stride),
            };
            let into = gradients.of(place.tensor)[first..].iter_mut().step_by(step);
            into.zip(row).for_each(|(into, x)| *into += x);
        }
    }
}

/// The stored rows of places that lie behind each other in a tensor.
fn rows<'a>(mut tensor: &'a mut [f32], places: &[Place]) -> Vec<&'a mut [f32]> {
    let (mut rows, mut at) = (Vec::new(), 0);
    for Place { stride, outputs, stored, .. } in places {
        let (_, rest) = tensor.split_at_mut((stored - at) * stride);
        let (own, rest) = rest.split_at_mut(outputs.len() * stride);
        rows.extend(own.chunks_exact_mut((*stride).max(1)));
        (tensor, at) = (rest, stored + outputs.len());
    }
    rows
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{Numbers, Slice};
    use super::*;
    use crate::model::ops::testing::{close, numbers, same_bits};

    fn trained(tensor: TensorId, len: usize) -> Numbers {
        Numbers::F32(Slice::trained(Arc::new(vec![0.0; len]), tensor))
    }

    /// `dyᵀ · x`, `[outputs, inputs]`.
    fn expected(x: &[f32], dy: &[f32], inputs: usize, outputs: usize) -> Vec<f64> {
        let mut sums = vec![0.0; outputs * inputs];
        for (x, dy) in x.chunks_exact(inputs).zip(dy.chunks_exact(outputs)) {
            for (sums, dy) in sums.chunks_exact_mut(inputs).zip(dy) {
                sums.iter_mut().zip(x).for_each(|(sum, x)| *sum += f64::from(*dy) * f64::from(*x));
            }
        }
        sums
    }

    #[test]
    fn products_of_odd_sizes_in_both_orientations() {
        for (tokens, inputs, outputs) in
            [(1, 1, 1), (3, 5, 7), (40, 33, 65), (500, 17, 130), (800, 70, 31), (0, 4, 4)]
        {
            let (x, dy) = (numbers(tokens * inputs, 1), numbers(tokens * outputs, 2));
            let right = expected(&x, &dy, inputs, outputs);
            let by_rows = Weight::from_outputs_by_inputs(trained(0, inputs * outputs), outputs, inputs);
            let by_columns = Weight::from_inputs_by_outputs(trained(1, inputs * outputs), inputs, outputs);
            let mut gradients = Gradients::zeros([inputs * outputs; 2].into_iter());
            by_rows.origin().unwrap().add(&x, &dy, &mut gradients);
            close(&gradients.tensors()[0], &right, 1e-6);
            by_columns.origin().unwrap().add(&x, &dy, &mut gradients);
            let turned: Vec<f32> = (0..inputs * outputs)
                .map(|i| gradients.tensors()[1][i % inputs * outputs + i / inputs])
                .collect();
            close(&turned, &right, 1e-6);
            // A second time, it is added; in two parts, it is the same.
            by_rows.origin().unwrap().add(&x, &dy, &mut gradients);
            close(&gradients.tensors()[0], &right.iter().map(|r| 2.0 * r).collect::<Vec<_>>(), 1e-6);
        }
    }

    #[test]
    fn parts_of_several_tensors_get_their_own() {
        let (tokens, inputs) = (50, 6);
        let whole = Weight::from_outputs_by_inputs(trained(0, 40 * inputs), 40, inputs);
        let other = Weight::from_outputs_by_inputs(trained(1, 5 * inputs), 5, inputs);
        let conv = Weight::from_inputs_by_outputs(trained(2, inputs * 9), inputs, 9);
        // Rows with others between them, another tensor, rows before the first ones, some columns of a turned tensor.
        let stacked =
            [whole.outputs(10..14), whole.outputs(20..23), other, whole.outputs(0..2), conv.outputs(3..7)];
        let weight = Weight::stacked(stacked.to_vec());
        let outputs = weight.outputs_len();
        let (x, dy) = (numbers(tokens * inputs, 1), numbers(tokens * outputs, 2));
        let right = expected(&x, &dy, inputs, outputs);
        let check = |gradients: &Gradients| {
            let [first, second, third] = gradients.tensors() else { panic!("three") };
            let stored = [10, 11, 12, 13, 20, 21, 22].map(|row| &first[row * inputs..][..inputs]).concat();
            close(&stored, &right[..7 * inputs], 1e-6);
            close(second, &right[7 * inputs..12 * inputs], 1e-6);
            close(&first[..2 * inputs], &right[12 * inputs..14 * inputs], 1e-6);
            assert!(
                first[2 * inputs..10 * inputs]
                    .iter()
                    .chain(&first[14 * inputs..20 * inputs])
                    .all(|g| *g == 0.0)
            );
            for (i, row) in third.chunks(9).enumerate() {
                let column: Vec<f64> = (14..18).map(|o| right[o * inputs + i]).collect();
                close(&row[3..7], &column, 1e-5);
                assert!(row[..3].iter().chain(&row[7..]).all(|g| *g == 0.0));
            }
        };
        let origin = weight.origin().unwrap();
        let zeros = || Gradients::zeros([40 * inputs, 5 * inputs, 9 * inputs].into_iter());
        let mut gradients = zeros();
        origin.add(&x, &dy, &mut gradients);
        check(&gradients);
        let mut gradients = zeros();
        for range in [0..2, 2..9, 9..16, 16..18] {
            let part: Vec<f32> = dy.chunks(outputs).flat_map(|row| row[range.clone()].to_vec()).collect();
            origin.add_outputs(range, &x, &part, &mut gradients);
        }
        check(&gradients);
    }

    #[test]
    fn rows_of_a_table_are_added_as_often_as_they_are_named() {
        let table = Weight::from_outputs_by_inputs(trained(0, 8), 4, 2);
        let mut gradients = Gradients::zeros([8].into_iter());
        let rows = [1.0, 2.0, 10.0, 20.0, 100.0, 200.0];
        table.origin().unwrap().add_rows([3, 1, 3].into_iter(), &rows, &mut gradients);
        assert_eq!(gradients.tensors()[0], [0.0, 0.0, 10.0, 20.0, 0.0, 0.0, 101.0, 202.0]);
    }

    #[test]
    fn threads_change_nothing() {
        let (x, dy) = (numbers(450 * 100, 1), numbers(450 * 200, 2));
        let origin = Weight::from_outputs_by_inputs(trained(0, 20_000), 200, 100).origin().unwrap();
        same_bits(|| {
            let mut gradients = Gradients::zeros([20_000].into_iter());
            origin.add(&x, &dy, &mut gradients);
            gradients.tensors()[0].clone()
        });
    }

    #[test]
    fn a_frozen_weight_has_no_origin() {
        let frozen = Weight::from_outputs_by_inputs(vec![0.0f32; 6].into(), 2, 3);
        assert!(frozen.origin().is_none());
    }
}
