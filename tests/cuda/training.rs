//! The optimizer, and what is told about a step.

use half::{bf16, f16};
use pipe::train::adamw::{AdamW, AdamWOptions};

use crate::compare::{Errors, numbers, scaled};
use crate::emulated::{Argument::Nothing, Emulated, read, write};

#[test]
fn adamw_takes_the_processors_steps_to_the_bit() {
    let Some(mut cuda) = Emulated::start() else { return };
    let options = AdamWOptions { weight_decay: 0.1, ..AdamWOptions::default() };
    let (beta1, beta2) = options.betas;
    for n in [1usize, 4, 259] {
        let mut expected = numbers(n, 1);
        let mut adamw = AdamW::new(n);
        let (mut parameter, mut mean, mut square) = (expected.clone(), vec![0.0; n], vec![0.0; n]);
        let mut narrow = vec![0u16; n];
        for (step, factor) in [(1, 1.0f32), (2, 0.3), (3, 1.0)] {
            let (rate, gradient) = (3e-2 / f64::from(step), scaled(n, 7 + step as u64, 0.5));
            adamw.step(&options, rate, &mut expected, &gradient, factor);
            let scalars = [
                (1.0 - rate * options.weight_decay) as f32,
                (1.0 - beta1) as f32,
                beta2 as f32,
                (1.0 - beta2) as f32,
                (1.0 - beta2.powi(step)).sqrt() as f32,
                options.eps as f32,
                -(rate / (1.0 - beta1.powi(step))) as f32,
            ];
            let factor = [factor];
            let format = if step == 2 { "f16" } else { "bf16" };
            let arguments = vec![
                write(&mut parameter),
                read(&gradient),
                write(&mut mean),
                write(&mut square),
                read(&scalars),
                if factor[0] == 1.0 { Nothing } else { read(&factor) },
                write(&mut narrow),
                (n as i64).into(),
            ];
            cuda.launch(&format!("adamw_{format}"), [2, 1], [32, 1], 0, arguments);
            assert_eq!(parameter, expected);
            assert_eq!((&mean[..], &square[..]), adamw.moments());
            let rounded = |x: &f32| match format {
                "f16" => f16::from_f32(*x).to_bits(),
                _ => bf16::from_f32(*x).to_bits(),
            };
            assert_eq!(narrow, expected.iter().map(rounded).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_gradient_is_clipped_by_its_norm() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    // Two tensors, whose parts stand behind each other.
    let (a, b) = (scaled(1003, 1, 3.0), scaled(5, 2, 1e-3));
    let mut parts = [f64::NAN; 4];
    let (first, second) = parts.split_at_mut(3);
    let arguments = vec![read(&a), (a.len() as i64).into(), write(first)];
    cuda.launch("square_sum_partial", [3, 1], [64, 1], 0, arguments);
    let arguments = vec![read(&b), (b.len() as i64).into(), write(second)];
    cuda.launch("square_sum_partial", [1, 1], [64, 1], 0, arguments);
    let expected = a.iter().chain(&b).map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    for max_norm in [0.0, 1.0, 1e6] {
        let (mut norm, mut factor) = ([f64::NAN], [f32::NAN]);
        let arguments = vec![read(&parts), 4.into(), max_norm.into(), write(&mut norm), write(&mut factor)];
        cuda.launch("clip_scale", [1, 1], [64, 1], 0, arguments);
        errors.check("gradient norm", &[norm[0] as f32], &[expected], 1e-7);
        let allowed = if max_norm > 0.0 { (max_norm / (norm[0] + 1e-6)).min(1.0) } else { 1.0 };
        assert_eq!(factor[0], allowed as f32);
    }
}

#[test]
fn losses_go_to_their_step() {
    let Some(mut cuda) = Emulated::start() else { return };
    let nll: Vec<f64> = (0..70).map(|i| f64::from(i) * 0.5).collect();
    let mut losses = [0.0, 1.0, 0.0];
    let slot = [1u32];
    for slot in [read(&slot), Nothing] {
        let arguments = vec![read(&nll), 70.into(), read(&[0.25f32]), slot, write(&mut losses)];
        cuda.launch("sum_loss", [1, 1], [32, 1], 0, arguments);
    }
    let sum = 0.25 * 0.5 * f64::from(69 * 70 / 2);
    assert_eq!(losses, [sum, 1.0 + sum, 0.0]);
}
