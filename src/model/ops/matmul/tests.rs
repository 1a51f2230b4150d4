//! Products against a naive f64 implementation.
#![allow(clippy::unwrap_used)]

use super::super::testing::numbers;
use super::weight::Orientation;
use super::*;
use half::{bf16, f16};

#[derive(Clone, Copy, Debug)]
enum Format {
    F32,
    F16,
    BF16,
}

/// A weight of every orientation and format, and its numbers as f64 `[outputs, inputs]`.
fn weight(
    format: Format,
    orientation: Orientation,
    outputs: usize,
    inputs: usize,
    seed: u64,
) -> (Weight, Vec<f64>) {
    let numbers = numbers(outputs * inputs, seed);
    let exact: Vec<f64> = match format {
        Format::F32 => numbers.iter().map(|&x| f64::from(x)).collect(),
        Format::F16 => numbers.iter().map(|&x| f16::from_f32(x).to_f64()).collect(),
        Format::BF16 => numbers.iter().map(|&x| bf16::from_f32(x).to_f64()).collect(),
    };
    let numbers = match format {
        Format::F32 => Numbers::F32(numbers.into()),
        Format::F16 => Numbers::F16(numbers.into_iter().map(f16::from_f32).collect::<Vec<_>>().into()),
        Format::BF16 => Numbers::BF16(numbers.into_iter().map(bf16::from_f32).collect::<Vec<_>>().into()),
    };
    match orientation {
        Orientation::OutputsByInputs => (Weight::from_outputs_by_inputs(numbers, outputs, inputs), exact),
        Orientation::InputsByOutputs => {
            let transposed =
                (0..outputs * inputs).map(|i| exact[i % inputs * outputs + i / inputs]).collect();
            (Weight::from_inputs_by_outputs(numbers, inputs, outputs), transposed)
        }
    }
}

/// Σ_k x[m, k] · w(k, n), and the same of absolute values, which bounds the error of a sum.
fn naive(
    x: &[f32],
    rows: usize,
    depth: usize,
    columns: usize,
    w: impl Fn(usize, usize) -> f64,
) -> Vec<(f64, f64)> {
    let sum = |i: usize| {
        (0..depth).fold((0.0, 0.0), |(sum, size), k| {
            let product = f64::from(x[i / columns * depth + k]) * w(k, i % columns);
            (sum + product, size + product.abs())
        })
    };
    (0..rows * columns).map(sum).collect()
}

fn close(y: &[f32], expected: &[(f64, f64)], start: impl Fn(usize) -> f32, tolerance: f64, what: &str) {
    assert_eq!(y.len(), expected.len());
    for (i, (&y, &(sum, size))) in y.iter().zip(expected).enumerate() {
        let start = f64::from(start(i));
        let allowed = tolerance * (size + start.abs()) + 1e-30;
        assert!((f64::from(y) - sum - start).abs() <= allowed, "{what}: {i}: {y} instead of {}", sum + start);
    }
}

/// Both directions with one weight.
fn check(w: &Weight, exact: &[f64], rows: usize, precision: Precision, tolerance: f64, what: &str) {
    let (inputs, outputs) = (w.inputs_len(), w.outputs_len());
    let rounded = |x: f32| if precision == Precision::BF16 { bf16::from_f32(x).to_f32() } else { x };
    let rounded_exact: Vec<f64> = exact.iter().map(|&w| f64::from(rounded(w as f32))).collect();
    for sum in [Sum::Inputs, Sum::Outputs] {
        let (depth, columns) = if sum == Sum::Inputs { (inputs, outputs) } else { (outputs, inputs) };
        let x = numbers(rows * depth, 7);
        let x_rounded: Vec<f32> = x.iter().map(|&x| rounded(x)).collect();
        let expected = naive(&x_rounded, rows, depth, columns, |k, n| match sum {
            Sum::Inputs => rounded_exact[n * inputs + k],
            Sum::Outputs => rounded_exact[k * inputs + n],
        });
        let (bias, start) = (numbers(columns, 8), numbers(rows * columns, 9));
        let starts: [(Start, &dyn Fn(usize) -> f32); 5] = [
            (Start::Zero, &|_| 0.0),
            (Start::Bias(&bias), &|i| bias[i % columns]),
            (Start::Rows(&start), &|i| start[i]),
            (Start::RowsAndBias { rows: &start, bias: &bias }, &|i| start[i] + bias[i % columns]),
            (Start::Output, &|i| start[i]),
        ];
        for (from, start_at) in starts {
            let mut y = match from {
                Start::Output => start.clone(),
                _ => vec![f32::NAN; rows * columns],
            };
            match sum {
                Sum::Inputs => forward(&mut y, Left::There(&x), w, from, precision, Threads::All),
                Sum::Outputs => backward(&mut y, Left::There(&x), w, from, precision, Threads::All),
            }
            close(&y, &expected, start_at, tolerance, what);
        }
    }
}

const ORIENTATIONS: [Orientation; 2] = [Orientation::OutputsByInputs, Orientation::InputsByOutputs];
const PRECISIONS: [Precision; 2] = [Precision::F32, Precision::BF16];
const FORMATS: [Format; 3] = [Format::F32, Format::F16, Format::BF16];

#[test]
fn every_size_format_and_orientation_agrees_with_f64() {
    for (rows, outputs, inputs) in [
        (1, 1, 1),
        (1, 70, 33),
        (2, 33, 500),
        (3, 5, 7),
        (14, 64, 32),
        (15, 31, 65),
        (29, 97, 401),
        (61, 66, 130),
        (130, 40, 70),
        (161, 97, 601),
    ] {
        for format in FORMATS {
            for orientation in ORIENTATIONS {
                let (w, exact) = weight(format, orientation, outputs, inputs, 3);
                for (precision, tolerance) in [(Precision::F32, 1e-6), (Precision::BF16, 1e-6)] {
                    let what = format!("{rows}x{outputs}x{inputs} {format:?} {precision:?}");
                    check(&w, &exact, rows, precision, tolerance, &what);
                }
            }
        }
    }
}

#[test]
fn every_number_of_rows_is_right() {
    let (w, exact) = weight(Format::F32, Orientation::OutputsByInputs, 40, 19, 3);
    for rows in 1..=60 {
        check(&w, &exact, rows, Precision::F32, 1e-6, &format!("{rows} rows"));
        check(&w, &exact, rows, Precision::BF16, 1e-6, &format!("{rows} rows in bf16"));
    }
}

#[test]
fn stacked_parts_and_views_are_one_weight() {
    let inputs = 45;
    let sizes = [(Format::F32, 40), (Format::BF16, 3), (Format::F16, 67)];
    for orientation in ORIENTATIONS {
        let parts: Vec<_> =
            sizes.iter().map(|&(format, outputs)| weight(format, orientation, outputs, inputs, 5)).collect();
        let exact: Vec<f64> = parts.iter().flat_map(|(_, exact)| exact.clone()).collect();
        let whole = Weight::stacked(parts.into_iter().map(|(w, _)| w).collect());
        for range in [0..110, 1..110, 41..42, 30..50, 43..43, 40..43] {
            let view = whole.outputs(range.clone());
            let exact = &exact[range.start * inputs..range.end * inputs];
            for rows in [1, 5, 70, 135, 144, 150] {
                check(&view, exact, rows, Precision::F32, 1e-6, "view");
                check(&view, exact, rows, Precision::BF16, 1e-6, "view in bf16");
            }
            let rounded: Vec<f64> = exact.iter().map(|&w| bf16::from_f64(w).to_f64()).collect();
            check(&view.to_bf16(), &rounded, 9, Precision::F32, 1e-6, "to_bf16");
            let view = whole.to_bf16().outputs(range.clone()).outputs(0..range.len());
            check(&view, &rounded, 9, Precision::F32, 1e-6, "view of to_bf16");
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (outputs, inputs) = (515, 803);
    for orientation in ORIENTATIONS {
        let (stored, exact) = weight(Format::F16, orientation, outputs, inputs, 3);
        let wide = Numbers::F32(exact.iter().map(|&w| w as f32).collect::<Vec<_>>().into());
        let laid_out = Weight::from_outputs_by_inputs(wide, outputs, inputs).laid_out();
        for w in [&stored, &stored.clone().prepared(Precision::BF16), &laid_out] {
            for (rows, precision) in [1, 20, 100, 200].into_iter().flat_map(|r| PRECISIONS.map(|p| (r, p))) {
                let (x, g) = (numbers(rows * inputs, 4), numbers(rows * outputs, 5));
                let both = |threads| {
                    let (mut y, mut dx) = (vec![0.0; rows * outputs], vec![0.0; rows * inputs]);
                    forward(&mut y, Left::There(&x), w, Start::Zero, precision, threads);
                    backward(&mut dx, Left::There(&g), w, Start::Zero, precision, threads);
                    y.into_iter().chain(dx).map(f32::to_bits).collect::<Vec<_>>()
                };
                let one = both(Threads::One);
                for count in [1, 2, 5] {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(count).build().unwrap();
                    assert!(pool.install(|| both(Threads::All)) == one, "{count} threads");
                }
            }
        }
    }
}

#[test]
fn rows_that_are_made_are_multiplied_as_those_that_are_there() {
    let (inputs, outputs, more) = (75, 130, 40);
    for (format, orientation) in FORMATS.into_iter().flat_map(|f| ORIENTATIONS.map(|o| (f, o))) {
        let (w, _) = weight(format, orientation, outputs, inputs, 3);
        // Of another format, so that both are packed alike in some cases and not in others.
        let (other, _) = weight(Format::F16, Orientation::OutputsByInputs, more, inputs, 4);
        for (rows, precision) in [1, 30, 70, 150].into_iter().flat_map(|r| PRECISIONS.map(|p| (r, p))) {
            let (x, bias) = (numbers(rows * inputs, 4), numbers(more, 5));
            let there = Left::There(&x);
            let make = |row: usize, out: &mut [f32]| out.copy_from_slice(&x[row * inputs..][..inputs]);
            let (mut y, mut z) = (vec![0.0; rows * outputs], vec![0.0; rows * more]);
            forward(&mut y, there, &w, Start::Zero, precision, Threads::All);
            forward(&mut z, there, &other, Start::Bias(&bias), precision, Threads::All);
            for left in [there, Left::Made(&make)] {
                let (mut both_y, mut both_z) = (vec![f32::NAN; y.len()], vec![f32::NAN; z.len()]);
                let both =
                    [(&mut both_y[..], &w, Start::Zero), (&mut both_z[..], &other, Start::Bias(&bias))];
                forward_both(left, both, precision, Threads::All);
                assert!(both_y == y && both_z == z, "{rows} rows {format:?} {precision:?}");
            }
        }
    }
}

#[test]
fn empty_products_are_what_they_start_from() {
    for (rows, outputs, inputs) in [(0, 5, 4), (3, 0, 4), (3, 5, 0)] {
        let (w, _) = weight(Format::F32, Orientation::OutputsByInputs, outputs, inputs, 1);
        let bias = numbers(outputs, 2);
        let mut y = vec![f32::NAN; rows * outputs];
        forward(
            &mut y,
            Left::There(&numbers(rows * inputs, 1)),
            &w,
            Start::Bias(&bias),
            Precision::F32,
            Threads::All,
        );
        let expected: Vec<f32> = (0..rows).flat_map(|_| bias.clone()).collect();
        assert_eq!(y, if inputs == 0 { expected } else { vec![] });
        let mut dx = vec![f32::NAN; rows * inputs];
        backward(
            &mut dx,
            Left::There(&numbers(rows * outputs, 1)),
            &w,
            Start::Zero,
            Precision::F32,
            Threads::All,
        );
        assert_eq!(dx, vec![0.0; rows * inputs]);
    }
}

#[test]
fn nan_and_infinity_are_not_hidden() {
    for precision in PRECISIONS {
        for rows in [1, 3, 40, 140] {
            let (w, _) = weight(Format::F32, Orientation::OutputsByInputs, 50, 70, 3);
            for (bad, row) in [(f32::NAN, 0), (f32::INFINITY, rows - 1)] {
                let mut x = numbers(rows * 70, 4);
                x[row * 70 + 69] = bad;
                let mut y = vec![0.0; rows * 50];
                forward(&mut y, Left::There(&x), &w, Start::Zero, precision, Threads::All);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(y.is_finite(), i / 50 != row, "{precision:?} {rows} {bad}");
                }
            }
        }
    }
}

#[test]
fn a_prepared_weight_multiplies_as_the_one_it_was_made_of() {
    for (rows, outputs, inputs) in [(1, 70, 33), (5, 33, 500), (40, 300, 1100), (61, 66, 130), (140, 66, 70)]
    {
        for (format, orientation) in FORMATS.into_iter().flat_map(|f| ORIENTATIONS.map(|o| (f, o))) {
            let (w, exact) = weight(format, orientation, outputs, inputs, 3);
            // In one piece, and scattered as the heads of a fused projection are.
            let ends: Vec<usize> = (0..outputs).step_by(24).chain([outputs]).collect();
            let parts = Weight::stacked(ends.windows(2).map(|e| w.outputs(e[0]..e[1])).collect());
            for precision in PRECISIONS {
                let what = format!("{rows}x{outputs}x{inputs} {format:?} {precision:?} prepared");
                check(&w.clone().prepared(precision), &exact, rows, precision, 1e-6, &what);
                check(&parts.clone().prepared(precision), &exact, rows, precision, 1e-6, &what);
            }
            // Some of the outputs of a fused weight.
            let part = outputs / 3..outputs;
            let (view, rest) = (w.outputs(part), &exact[outputs / 3 * inputs..]);
            for precision in PRECISIONS {
                check(&view.clone().prepared(precision), rest, rows, precision, 1e-6, "a view, prepared");
            }
            check(&view.laid_out(), rest, rows, Precision::F32, 1e-6, "a view, laid out");
            let what = format!("{rows}x{outputs}x{inputs} {format:?} laid out");
            check(&w.clone().laid_out(), &exact, rows, Precision::F32, 1e-6, &what);
            check(&parts.laid_out(), &exact, rows, Precision::F32, 1e-6, &what);
            // f32 numbers of fewer digits, as those of a file that was made from one of another format.
            let narrow = Numbers::F32(exact.iter().map(|&w| w as f32).collect::<Vec<_>>().into());
            let narrow = Weight::from_outputs_by_inputs(narrow, outputs, inputs);
            check(&narrow.laid_out(), &exact, rows, Precision::F32, 1e-6, &what);
        }
    }
}

#[test]
fn an_outputs_weights_are_a_row_of_a_table() {
    for (format, orientation) in FORMATS.into_iter().flat_map(|f| ORIENTATIONS.map(|o| (f, o))) {
        let (w, exact) = weight(format, orientation, 7, 5, 3);
        let stacked = Weight::stacked(vec![w.outputs(4..7), w]);
        let mut row = [f32::NAN; 5];
        stacked.output_row(4, &mut row);
        let expected: Vec<f32> = exact[5..10].iter().map(|&x| x as f32).collect();
        assert_eq!(row, expected[..], "{format:?} {}", orientation == Orientation::OutputsByInputs);
    }
}
