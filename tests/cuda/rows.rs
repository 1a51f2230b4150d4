//! Operations on each row by itself: embeddings, sums, norms, activations, rotary positions.

use half::{bf16, f16};
use pipe::model::ops::activation::Activation;
use pipe::model::ops::dropout::{Dropout, Site};
use pipe::model::ops::norm::Norm;
use pipe::model::ops::rotary::{Direction, Rotation};

use crate::compare::{Errors, gradient, in_each_format, numbers, scaled, unwritten, wide};
use crate::emulated::{Argument::Nothing, Emulated, maybe, read, write};

/// Rows and widths, in fours and not.
const SIZES: [(usize, usize); 6] = [(1, 1), (1, 64), (5, 3), (5, 17), (7, 200), (2, 1100)];

/// The rows that ids name in a table; none is zeros.
fn looked_up(table: &[f32], width: usize, ids: &[u32]) -> Vec<f32> {
    let row = |&id: &u32| match id {
        u32::MAX => vec![0.0; width],
        _ => table[id as usize * width..][..width].to_vec(),
    };
    ids.iter().flat_map(row).collect()
}

#[test]
fn embeddings_of_prompt_and_tokens() {
    let Some(mut cuda) = Emulated::start() else { return };
    for width in [1, 8, 21, 132] {
        let (table, places, prompt) = (numbers(9 * width, 1), numbers(6 * width, 2), numbers(2 * width, 3));
        let (ids, positions) = ([8u32, 0, u32::MAX, 8], [0u32, 1, 4, 5, 3, 5]);
        for learned in [false, true] {
            let expect = |round: &dyn Fn(f32) -> f32| -> Vec<f32> {
                let rounded = |x: &[f32]| x.iter().map(|x| round(*x)).collect::<Vec<f32>>();
                let tokens = looked_up(&rounded(&table), width, &ids);
                let mut all = [prompt.clone(), tokens].concat();
                let places = looked_up(&rounded(&places), width, &positions);
                if learned {
                    for (i, (x, place)) in all.iter_mut().zip(places).enumerate() {
                        if i / width != 4 {
                            *x += place;
                        }
                    }
                }
                all
            };
            let mut y = unwritten(6 * width);
            macro_rules! check {
                ($kernel:literal, $table:expr, $places:expr, $round:expr) => {
                    let (table, places) = ($table, $places);
                    let places = if learned { read(&places) } else { Nothing };
                    let arguments = vec![
                        read(&prompt),
                        2.into(),
                        read(&table),
                        read(&ids),
                        places,
                        maybe(learned.then_some(&positions[..])),
                        write(&mut y),
                        6.into(),
                        (width as i32).into(),
                    ];
                    cuda.launch($kernel, [6, 1], [64, 1], 0, arguments);
                    assert_eq!(y, expect($round), "{} {width}", $kernel);
                };
            }
            check!("embed_f32", table.clone(), places.clone(), &|x| x);
            let b = |x: &[f32]| x.iter().map(|x| bf16::from_f32(*x).to_bits()).collect::<Vec<u16>>();
            check!("embed_bf16", b(&table), b(&places), &|x| bf16::from_f32(x).to_f32());
            let h = |x: &[f32]| x.iter().map(|x| f16::from_f32(*x).to_bits()).collect::<Vec<u16>>();
            check!("embed_f16", h(&table), h(&places), &|x| f16::from_f32(x).to_f32());
        }
    }
}

#[test]
fn rows_are_gathered_scattered_and_added_up_by_place() {
    let Some(mut cuda) = Emulated::start() else { return };
    for width in [1, 20, 33] {
        let x = numbers(6 * width, 1);
        let ids = [5u32, 2, u32::MAX, 2, 0];
        let sizes = || (5.into(), (width as i32).into());
        let mut y = unwritten(5 * width);
        let (rows, columns) = sizes();
        cuda.launch(
            "gather_f32",
            [5, 1],
            [32, 1],
            0,
            vec![read(&x), read(&ids), write(&mut y), rows, columns],
        );
        assert_eq!(y, looked_up(&x, width, &ids));

        let before = numbers(5 * width, 2);
        let mut y = before.clone();
        let (rows, columns) = sizes();
        let arguments = vec![read(&x), read(&ids), write(&mut y), rows, columns];
        cuda.launch("gather_add_f32", [5, 1], [32, 1], 0, arguments);
        let sum = looked_up(&x, width, &ids).iter().zip(&before).map(|(a, b)| b + a).collect::<Vec<_>>();
        assert_eq!(y, sum);

        let places = [3u32, 0, u32::MAX, 5, 4];
        let mut y = before.iter().chain(&before[..width]).copied().collect::<Vec<_>>();
        let mut expected = y.clone();
        for (row, &place) in x.chunks(width).zip(&places).filter(|(_, place)| **place != u32::MAX) {
            expected[place as usize * width..][..width].copy_from_slice(row);
        }
        let (rows, columns) = sizes();
        let arguments = vec![read(&x), read(&places), write(&mut y), rows, columns];
        cuda.launch("scatter_rows", [5, 1], [32, 1], 0, arguments);
        assert_eq!(y, expected);

        // Rows 4, 0 and 5 to row 2, none to row 0, row 1 to nowhere.
        let (order, starts, targets) = ([4u32, 0, 5, 1], [0u32, 3, 3, 4], [2u32, 0, u32::MAX]);
        let mut y = before.clone();
        let mut expected = before.clone();
        for part in [4, 0, 5] {
            for i in 0..width {
                expected[2 * width + i] += x[part * width + i];
            }
        }
        let arguments = vec![
            read(&x),
            read(&order),
            read(&starts),
            read(&targets),
            write(&mut y),
            3.into(),
            (width as i32).into(),
        ];
        cuda.launch("add_grouped_rows", [3, 1], [32, 1], 0, arguments);
        assert_eq!(y, expected);
    }
}

#[test]
fn sums_casts_and_scales() {
    let Some(mut cuda) = Emulated::start() else { return };
    for (rows, width) in SIZES {
        let n = rows * width;
        let (residual, bias, x) = (numbers(n, 1), numbers(width, 2), numbers(n, 3));
        for (with_residual, with_bias) in [(true, true), (true, false), (false, true), (false, false)] {
            let (mut y, mut z) = (unwritten(n), x.clone());
            let optional =
                || (maybe(with_residual.then_some(&residual[..])), maybe(with_bias.then_some(&bias[..])));
            let (r, b) = optional();
            let sizes = [(rows as i32).into(), (width as i32).into()];
            let arguments = [r, b, write(&mut y)].into_iter().chain(sizes).collect();
            cuda.launch("fill_start", [rows, 1], [96, 1], 0, arguments);
            let (r, b) = optional();
            let arguments = vec![
                read(&x),
                b,
                r,
                Nothing,
                0u32.into(),
                0.0f32.into(),
                write(&mut z),
                (rows as i32).into(),
                (width as i32).into(),
            ];
            cuda.launch("add_half", [rows, 1], [96, 1], 0, arguments);
            for i in 0..n {
                let r = if with_residual { residual[i] } else { 0.0 };
                let b = if with_bias { bias[i % width] } else { 0.0 };
                assert_eq!((y[i], z[i]), (r + b, r + (x[i] + b)));
            }
        }
        let mut y = residual.clone();
        cuda.launch("add", [2, 1], [64, 1], 0, vec![read(&x), write(&mut y), (n as i64).into()]);
        cuda.launch("scale", [1, 1], [32, 1], 0, vec![write(&mut y), read(&[-3.0f32]), (n as i64).into()]);
        assert!(y.iter().zip(&x).zip(&residual).all(|((y, x), r)| *y == (r + x) * -3.0));
    }
}

#[test]
fn numbers_are_rounded_to_the_nearest_and_widened_exactly() {
    let Some(mut cuda) = Emulated::start() else { return };
    let special = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-8,
        -3e-5,
        65519.0,
        65520.0,
        1e38,
        f32::MAX,
    ];
    // Halfway between two of either format, and all magnitudes.
    let halfway = (0..64).map(|i| f32::from_bits(0x3f80_0000 + i * 0x1000));
    let sizes = (0..255).map(|e| f32::from_bits((e << 23) | 0x0012_3456));
    let x: Vec<f32> = special.into_iter().chain(halfway).chain(sizes).collect();
    let n = || (x.len() as i64).into();
    let (mut short, mut back) = (vec![0u16; x.len()], unwritten(x.len()));
    cuda.launch("cast_bf16", [2, 1], [32, 1], 0, vec![read(&x), write(&mut short), n()]);
    cuda.launch("widen_bf16", [2, 1], [32, 1], 0, vec![read(&short), write(&mut back), n()]);
    for (i, x) in x.iter().enumerate() {
        let expected = bf16::from_f32(*x);
        assert_eq!((short[i], back[i].to_bits()), (expected.to_bits(), expected.to_f32().to_bits()), "{x}");
    }
    cuda.launch("cast_f16", [2, 1], [32, 1], 0, vec![read(&x), write(&mut short), n()]);
    cuda.launch("widen_f16", [2, 1], [32, 1], 0, vec![read(&short), write(&mut back), n()]);
    for (i, x) in x.iter().enumerate().filter(|(_, x)| !x.is_nan()) {
        let expected = f16::from_f32(*x);
        assert_eq!((short[i], back[i]), (expected.to_bits(), expected.to_f32()), "{x}");
    }
    assert!(back[4].is_nan());
}

#[test]
fn dropout_drops_what_the_processor_drops() {
    let Some(mut cuda) = Emulated::start() else { return };
    for (rows, width) in SIZES {
        let x = numbers(rows * width, 1);
        let mask = Dropout::On { seed: 5, pass: 9 << 32 | 3 }.mask(Site::MlpOutput, 4, 0.3).unwrap();
        let mut expected = x.clone();
        mask.apply(&mut expected, width);
        let (key, threshold, scale) = mask.parts();
        let key = [key];
        in_each_format(&mut cuda, x.len(), |cuda, format, narrow| {
            let mut y = x.clone();
            let arguments = vec![
                read(&x),
                read(&key),
                threshold.into(),
                scale.into(),
                write(&mut y),
                narrow,
                (rows as i32).into(),
                (width as i32).into(),
            ];
            cuda.launch(&format!("dropout_{format}"), [rows, 1], [64, 1], 0, arguments);
            assert_eq!(y, expected);
            y
        });
    }
}

/// A row's norm by the formula; no bias: RMS norm.
fn norm(x: &[f64], weight: &[f32], bias: Option<&[f32]>) -> Vec<f64> {
    let n = x.len() as f64;
    let mean = if bias.is_some() { x.iter().sum::<f64>() / n } else { 0.0 };
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance + 1e-5).sqrt();
    let bias = bias.map_or(vec![0.0; x.len()], wide);
    x.iter().zip(weight).zip(bias).map(|((x, w), b)| (x - mean) * scale * f64::from(*w) + b).collect()
}

#[test]
fn norms_and_their_gradients() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    for (rows, width) in SIZES.into_iter().chain([(130, 37)]) {
        let n = rows * width;
        let (weight, bias) = (numbers(width, 2), numbers(width, 3));
        let x: Vec<f32> = numbers(n, 1).iter().map(|x| 3.0 * x + 0.5).collect();
        let (add, add_bias) = (numbers(n, 4), numbers(width, 5));
        let (dy, carry) = (numbers(n, 6), numbers(n, 7));
        for (layer, added) in [(true, true), (true, false), (false, true), (false, false)] {
            let name = if layer { "layer norm" } else { "RMS norm" };
            let bias = layer.then_some(&bias[..]);
            let sum: Vec<f32> = match added {
                true => (0..n).map(|i| x[i] + (add[i] + add_bias[i % width])).collect(),
                false => x.clone(),
            };
            let (mut found, mut stats) = (unwritten(n), unwritten(2 * rows));
            in_each_format(&mut cuda, n, |cuda, format, narrow| {
                let mut y = unwritten(n);
                let arguments = vec![
                    read(&x),
                    maybe(added.then_some(&add[..])),
                    maybe(added.then_some(&add_bias[..])),
                    write(&mut found),
                    read(&weight),
                    maybe(bias),
                    write(&mut y),
                    narrow,
                    write(&mut stats),
                    (rows as i32).into(),
                    (width as i32).into(),
                    1e-5f32.into(),
                ];
                cuda.launch(&format!("norm_forward_{format}"), [rows, 1], [128, 1], 0, arguments);
                assert_eq!(found, sum, "{name} {rows} {width}");
                for (y, x) in y.chunks(width).zip(sum.chunks(width)) {
                    errors.check(&format!("{name} forward"), y, &norm(&wide(x), &weight, bias), 2e-6);
                }
                y
            });

            let processor = match bias {
                Some(bias) => Norm::layer(weight.clone(), bias.to_vec(), 1e-5),
                None => Norm::rms(weight.clone(), 1e-5),
            };
            let mut ours = carry.clone();
            processor.add_backward(&sum, &dy, &mut ours);
            in_each_format(&mut cuda, n, |cuda, format, narrow| {
                // In place, as a gradient is added to what came by the residual.
                let mut dx = carry.clone();
                let arguments = vec![
                    read(&sum),
                    read(&stats),
                    read(&weight),
                    read(&dy),
                    read(&carry),
                    write(&mut dx),
                    narrow,
                    i32::from(layer).into(),
                    (rows as i32).into(),
                    (width as i32).into(),
                ];
                cuda.launch(&format!("norm_backward_{format}"), [rows, 1], [96, 1], 0, arguments);
                let tolerance = if width < 17 { 2e-5 } else { 2e-6 };
                errors.check(&format!("{name} backward, processor"), &dx, &wide(&ours), tolerance);
                // Differences of every number take long.
                if rows < 8 && width < 1000 && format == "f32" {
                    for row in 0..rows {
                        let row = row * width..(row + 1) * width;
                        let mut expected = gradient(&wide(&sum[row.clone()]), &wide(&dy[row.clone()]), |x| {
                            norm(x, &weight, bias)
                        });
                        expected.iter_mut().zip(&carry[row.clone()]).for_each(|(d, c)| *d += f64::from(*c));
                        errors.check(&format!("{name} backward"), &dx[row], &expected, tolerance);
                    }
                }
                dx
            });

            // Weight and bias, in parts and then added up.
            let chunks = rows.div_ceil(64);
            let mut parts = unwritten(chunks * 2 * width);
            let arguments = vec![
                read(&sum),
                read(&stats),
                read(&dy),
                write(&mut parts),
                (rows as i32).into(),
                (width as i32).into(),
            ];
            cuda.launch("norm_gradients_partial", [width.div_ceil(32), chunks], [32, 8], 0, arguments);
            let unit = vec![1.0; width];
            let mut expected = [vec![0.0; width], vec![0.0; width]];
            for (x, dy) in sum.chunks(width).zip(dy.chunks(width)) {
                let zeros = layer.then(|| vec![0.0; width]);
                for (i, y) in norm(&wide(x), &unit, zeros.as_deref()).iter().enumerate() {
                    expected[0][i] += f64::from(dy[i]) * y;
                    expected[1][i] += f64::from(dy[i]);
                }
            }
            for (part, expected) in expected.iter().enumerate() {
                let before = numbers(width, 8);
                for keep in [0.0f32, 1.0] {
                    let mut total = if keep == 0.0 { unwritten(width) } else { before.clone() };
                    let arguments = vec![
                        read(&parts[part * width..]),
                        (chunks as i32).into(),
                        (2 * width as i64).into(),
                        write(&mut total),
                        (width as i32).into(),
                        keep.into(),
                    ];
                    cuda.launch("sum_parts", [width.div_ceil(64), 1], [64, 1], 0, arguments);
                    let sum: Vec<f64> =
                        expected.iter().zip(wide(&before)).map(|(e, b)| e + f64::from(keep) * b).collect();
                    errors.check(&format!("{name} weight and bias"), &total, &sum, 2e-6);
                }
            }
        }
    }
}

#[test]
fn columns_are_added_up() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    for (rows, width) in [(1, 1), (64, 33), (65, 32), (300, 70)] {
        let x: Vec<f32> = numbers(rows * width, 1).iter().map(|x| x + 10.0).collect();
        let chunks = rows.div_ceil(64);
        let (mut parts, mut y) = (unwritten(chunks * width), unwritten(width));
        let arguments = vec![read(&x), write(&mut parts), (rows as i32).into(), (width as i32).into()];
        cuda.launch("column_sums_partial", [width.div_ceil(32), chunks], [32, 8], 0, arguments);
        let arguments = vec![
            read(&parts),
            (chunks as i32).into(),
            (width as i64).into(),
            write(&mut y),
            (width as i32).into(),
            0.0f32.into(),
        ];
        cuda.launch("sum_parts", [1, 1], [96, 1], 0, arguments);
        let column = |j: usize| x.iter().skip(j).step_by(width).map(|x| f64::from(*x)).sum();
        errors.check("column sums", &y, &(0..width).map(column).collect::<Vec<f64>>(), 2e-7);
    }
}

/// A row's activation by the formula.
fn activated(activation: Activation, u: &[f64]) -> Vec<f64> {
    let gelu = |x: f64| {
        let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
        0.5 * x * (1.0 + z.tanh())
    };
    match activation {
        Activation::GeluTanh => u.iter().map(|x| gelu(*x)).collect(),
        Activation::SwiGlu => {
            let (gate, up) = u.split_at(u.len() / 2);
            gate.iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
        }
    }
}

#[test]
fn activations_and_their_gradients() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    for (name, activation) in [("gelu", Activation::GeluTanh), ("swiglu", Activation::SwiGlu)] {
        for (rows, inner) in [(1, 1), (1, 64), (5, 3), (5, 17), (3, 300)] {
            for (size, biased) in [(1.0, true), (6.0, false)] {
                let width = activation.width(inner);
                let (u, bias, dy) =
                    (scaled(rows * width, 1, size), numbers(width, 2), numbers(rows * inner, 3));
                let sum: Vec<f32> = match biased {
                    true => u.iter().zip(bias.iter().cycle()).map(|(u, b)| u + b).collect(),
                    false => u.clone(),
                };
                in_each_format(&mut cuda, rows * inner, |cuda, format, narrow| {
                    let (mut u, mut y) = (u.clone(), unwritten(rows * inner));
                    let arguments = vec![
                        write(&mut u),
                        maybe(biased.then_some(&bias[..])),
                        write(&mut y),
                        narrow,
                        (rows as i32).into(),
                        (inner as i32).into(),
                    ];
                    cuda.launch(&format!("{name}_forward_{format}"), [rows, 1], [64, 1], 0, arguments);
                    assert_eq!(u, sum);
                    for (u, y) in u.chunks(width).zip(y.chunks(inner)) {
                        errors.check(&format!("{name} forward"), y, &activated(activation, &wide(u)), 6e-7);
                    }
                    y
                });
                let mut ours = vec![0.0; sum.len()];
                activation.backward(&sum, &dy, &mut ours, inner);
                in_each_format(&mut cuda, rows * width, |cuda, format, narrow| {
                    let mut du = unwritten(rows * width);
                    let arguments = vec![
                        read(&sum),
                        read(&dy),
                        write(&mut du),
                        narrow,
                        (rows as i32).into(),
                        (inner as i32).into(),
                    ];
                    cuda.launch(&format!("{name}_backward_{format}"), [rows, 1], [64, 1], 0, arguments);
                    errors.check(&format!("{name} backward, processor"), &du, &wide(&ours), 1e-6);
                    for row in 0..rows {
                        let (i, o) = (row * width..(row + 1) * width, row * inner..(row + 1) * inner);
                        let expected =
                            gradient(&wide(&sum[i.clone()]), &wide(&dy[o]), |u| activated(activation, u));
                        errors.check(&format!("{name} backward"), &du[i], &expected, 1e-6);
                    }
                    du
                });
            }
        }
    }
}

#[test]
fn gelu_of_large_numbers_is_finite() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut u = [-1e30f32, -1e4, -50.0, 0.0, 50.0, 1e4, 1e30];
    let mut y = [f32::NAN; 7];
    let arguments = vec![write(&mut u), Nothing, write(&mut y), Nothing, 1.into(), 7.into()];
    cuda.launch("gelu_forward_f32", [1, 1], [32, 1], 0, arguments);
    assert_eq!(y, [0.0, 0.0, 0.0, 0.0, 50.0, 1e4, 1e30]);
    let arguments = vec![read(&u), read(&[1.0f32; 7]), write(&mut y), Nothing, 1.into(), 7.into()];
    cuda.launch("gelu_backward_f32", [1, 1], [32, 1], 0, arguments);
    assert_eq!(y, [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0]);
}

#[test]
fn heads_are_turned_as_on_the_processor() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    for (half, first, step, heads, width) in
        [(1, 0, 2, 1, 2), (3, 2, 6, 4, 30), (3, 1, 7, 3, 21), (32, 64, 64, 3, 256), (5, 0, 3, 1, 10)]
    {
        let frequencies: Vec<f32> = (0..half).map(|i| 0.3f32.powi(i)).collect();
        let positions: Vec<u32> = (0..6).map(|i| i * 37 % 50 + 1000 * i).collect();
        let half = half as usize;
        let mut turns = unwritten(6 * 2 * half);
        let arguments =
            vec![read(&positions), read(&frequencies), write(&mut turns), 6.into(), (half as i32).into()];
        cuda.launch("rotary_turns", [6, 1], [64, 1], 0, arguments);
        let angle = |p: u32, f: f32| f64::from(p as f32 * f);
        let expected: Vec<f64> = positions
            .iter()
            .flat_map(|&p| {
                let of = |f: fn(f64) -> f64| frequencies.iter().map(move |&x| f(angle(p, x)));
                of(f64::cos).chain(of(f64::sin)).collect::<Vec<_>>()
            })
            .collect();
        errors.check("rotary turns", &turns, &expected, 1e-7);

        for selected in [None, Some([4u32, 0, u32::MAX, 4, 5, 1])] {
            let keep = selected.unwrap_or([0, 1, 2, 3, 4, 5]);
            let before = numbers(6 * width, 1);
            for (sign, direction) in [(1.0f32, Direction::Forward), (-1.0, Direction::Back)] {
                let known: Vec<u32> = keep.iter().map(|&t| if t == u32::MAX { 0 } else { t }).collect();
                let mut expected = before.clone();
                let rotation = Rotation::new(&positions, &frequencies, 2 * half).at(&known);
                rotation.turn(&mut expected, width, first, step, heads, direction);
                if let Some(row) = keep.iter().position(|t| *t == u32::MAX) {
                    expected[row * width..][..width].copy_from_slice(&before[row * width..][..width]);
                }
                let mut x = before.clone();
                let arguments = vec![
                    write(&mut x),
                    read(&turns),
                    maybe(selected.as_ref().map(|s| &s[..])),
                    6.into(),
                    (width as i32).into(),
                    (first as i32).into(),
                    (step as i32).into(),
                    (heads as i32).into(),
                    (half as i32).into(),
                    sign.into(),
                ];
                cuda.launch("rotary", [6, 1], [64, 1], 0, arguments);
                errors.check("rotary, processor", &x, &wide(&expected), 3e-7);
            }
        }
    }
}
