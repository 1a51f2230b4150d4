//! Cross entropy and its gradient, and the choice of the next token.

use pipe::model::ops::cross_entropy::judge_with_gradient;
use pipe::model::ops::linear::Linear;
use pipe::model::ops::matmul::{Numbers, Precision, Weight};
use pipe::model::ops::softmax::argmax;
use pipe::model::rows::Pool;
use pipe::model::sampling::penalise;

use crate::compare::{Errors, in_each_format, numbers, scaled, unwritten, wide};
use crate::emulated::{Argument::Nothing, Emulated, read, write};

/// What the vocabulary says about rows of logits, of which it has some pieces one after the other.
struct Judged {
    nll: Vec<f64>,
    likeliest: Vec<u32>,
    stats: Vec<f32>,
}

/// The logits are `[rows, piece]` for each piece; `splits` blocks share out a row of each.
fn judge(cuda: &mut Emulated, pieces: &[(Vec<f32>, usize)], targets: &[u32], splits: usize) -> Judged {
    let (rows, a_row) = (targets.len(), splits * pieces.len());
    let mut parts = vec![[u32::MAX; 4]; rows * a_row];
    let mut target_logits = unwritten(rows);
    let mut first = 0;
    for (i, (logits, vocabulary)) in pieces.iter().enumerate() {
        let arguments = vec![
            read(logits),
            read(targets),
            write(&mut parts),
            write(&mut target_logits),
            (*vocabulary as i32).into(),
            first.into(),
            ((i * splits) as i32).into(),
            (a_row as i32).into(),
        ];
        cuda.launch("cross_entropy_partial", [splits, rows], [64, 1], 0, arguments);
        first += *vocabulary as i32;
    }
    let mut judged =
        Judged { nll: vec![f64::NAN; rows], likeliest: vec![9; rows], stats: unwritten(2 * rows) };
    let arguments = vec![
        read(&parts),
        read(&target_logits),
        read(targets),
        write(&mut judged.nll),
        write(&mut judged.likeliest),
        write(&mut judged.stats),
        (rows as i32).into(),
        (a_row as i32).into(),
    ];
    cuda.launch("cross_entropy_judge", [rows.div_ceil(2), 1], [64, 1], 0, arguments);
    judged
}

#[test]
fn loss_likeliest_token_and_gradient() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    for (rows, vocabulary, splits) in [(1, 11, 1), (3, 700, 3), (2, 1301, 5), (5, 64, 2), (1, 1, 1)] {
        let logits = scaled(rows * vocabulary, 4, 9.0);
        let mut targets: Vec<u32> = (0..rows).map(|i| (i * 7919 % vocabulary) as u32).collect();
        if rows > 2 {
            targets[1] = u32::MAX;
        }
        let scale = [0.25f32];
        let mut expected = Vec::new();
        let (mut nll, mut likeliest) = (Vec::new(), Vec::new());
        for (row, &target) in wide(&logits).chunks(vocabulary).zip(&targets) {
            let sum: f64 = row.iter().map(|x| x.exp()).sum();
            let one = |i: usize| f64::from(u8::from(i as u32 == target));
            let gradient = row.iter().enumerate().map(|(i, x)| 0.25 * (x.exp() / sum - one(i)));
            match target {
                u32::MAX => {
                    expected.extend(vec![0.0; vocabulary]);
                    nll.push(0.0);
                }
                _ => {
                    expected.extend(gradient);
                    nll.push(sum.ln() - row[target as usize]);
                }
            }
            let best = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            likeliest.push(row.iter().position(|x| *x == best).unwrap() as u32);
        }

        let judged = judge(&mut cuda, &[(logits.clone(), vocabulary)], &targets, splits);
        let found: Vec<f32> = judged.nll.iter().map(|x| *x as f32).collect();
        errors.check("cross entropy loss", &found, &nll, 3e-7);
        assert_eq!(judged.likeliest, likeliest);
        in_each_format(&mut cuda, logits.len(), |cuda, format, narrow| {
            // In the logits' place.
            let mut gradient = logits.clone();
            let arguments = vec![
                read(&logits),
                read(&judged.stats),
                read(&targets),
                read(&scale),
                write(&mut gradient),
                narrow,
                (vocabulary as i32).into(),
                0.into(),
            ];
            cuda.launch(&format!("cross_entropy_gradient_{format}"), [splits, rows], [64, 1], 0, arguments);
            errors.check("cross entropy gradient", &gradient, &expected, 1e-6);
            gradient
        });

        // The same in two pieces of the vocabulary.
        let cut = vocabulary / 3;
        let piece = |columns: std::ops::Range<usize>| -> (Vec<f32>, usize) {
            let width = columns.len();
            (logits.chunks(vocabulary).flat_map(|row| row[columns.clone()].to_vec()).collect(), width)
        };
        let pieces = [piece(0..cut), piece(cut..vocabulary)];
        let again = judge(&mut cuda, &pieces, &targets, splits);
        let found: Vec<f32> = again.nll.iter().map(|x| *x as f32).collect();
        errors.check("cross entropy loss", &found, &nll, 3e-7);
        assert_eq!(again.likeliest, likeliest);
        let (second, width) = &pieces[1];
        let mut gradient = unwritten(second.len());
        let arguments = vec![
            read(second),
            read(&again.stats),
            read(&targets),
            read(&scale),
            write(&mut gradient),
            Nothing,
            (*width as i32).into(),
            (cut as i32).into(),
        ];
        cuda.launch("cross_entropy_gradient_f32", [splits, rows], [64, 1], 0, arguments);
        let of_second: Vec<f64> = expected.chunks(vocabulary).flat_map(|row| row[cut..].to_vec()).collect();
        errors.check("cross entropy gradient", &gradient, &of_second, 1e-6);
    }
}

#[test]
fn the_head_on_the_processor_says_the_same() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut errors = Errors::default();
    // A head that is the identity: the states are the logits.
    let (rows, vocabulary) = (4, 300);
    let mut weight = vec![0.0; vocabulary * vocabulary];
    weight.iter_mut().step_by(vocabulary + 1).for_each(|w| *w = 1.0);
    let weight = Weight::from_outputs_by_inputs(Numbers::from(weight), vocabulary, vocabulary);
    let mut logits = scaled(rows * vocabulary, 4, 5.0);
    // The first of equals.
    (logits[17], logits[250]) = (7.0, 7.0);
    let targets = [250u32, 0, 299, 31];
    let states = Pool::default().copied(&logits, vocabulary);
    let (expected, d_expected) =
        judge_with_gradient(&Linear::head(weight, Precision::F32), &states, &targets, 0.5);

    let judged = judge(&mut cuda, &[(logits.clone(), vocabulary)], &targets, 2);
    assert_eq!(judged.likeliest[0], 17);
    for (row, expected) in expected.iter().enumerate() {
        assert!((judged.nll[row] - expected.nll).abs() < 1e-6);
        assert_eq!(judged.likeliest[row], expected.likeliest);
    }
    let mut gradient = unwritten(logits.len());
    let arguments = vec![
        read(&logits),
        read(&judged.stats),
        read(&targets),
        read(&[0.5f32]),
        write(&mut gradient),
        Nothing,
        (vocabulary as i32).into(),
        0.into(),
    ];
    cuda.launch("cross_entropy_gradient_f32", [2, rows], [32, 1], 0, arguments);
    errors.check("cross entropy gradient, processor", &gradient, &wide(&d_expected), 1e-6);
}

#[test]
fn what_is_not_a_number_is_not_hidden() {
    let Some(mut cuda) = Emulated::start() else { return };
    let mut logits = numbers(3 * 70, 1);
    logits[100] = f32::NAN;
    // Of nothing but ruled out tokens there is no loss either.
    logits[140..].fill(f32::NEG_INFINITY);
    let judged = judge(&mut cuda, &[(logits, 70)], &[3, 3, 3], 2);
    assert!(judged.nll[0].is_finite() && judged.nll[1].is_nan() && judged.nll[2].is_nan());
}

fn most(cuda: &mut Emulated, logits: &[f32], vocabulary: usize, splits: usize) -> Vec<u32> {
    let rows = logits.len() / vocabulary;
    let (mut parts, mut tokens) = (vec![0u64; rows * splits], vec![9u32; rows]);
    let arguments = vec![read(logits), write(&mut parts), (vocabulary as i32).into()];
    cuda.launch("argmax_partial", [splits, rows], [64, 1], 0, arguments);
    let arguments = vec![read(&parts), write(&mut tokens), (rows as i32).into(), (splits as i32).into()];
    cuda.launch("argmax_finish", [rows.div_ceil(2), 1], [64, 1], 0, arguments);
    tokens
}

#[test]
fn the_first_of_the_largest_logits_is_the_next_token() {
    let Some(mut cuda) = Emulated::start() else { return };
    for (vocabulary, splits) in [(1, 1), (50, 1), (601, 3), (2000, 40)] {
        let mut logits = numbers(6 * vocabulary, 1);
        let at = |row: usize, share: usize| row * vocabulary + (vocabulary - 1) * share / 4;
        // Of equals, of infinite ones and of NaN the first.
        for (row, value, shares) in
            [(1, 2.0, &[1, 3][..]), (2, f32::INFINITY, &[2, 4]), (3, f32::NAN, &[1, 3, 4])]
        {
            shares.iter().for_each(|share| logits[at(row, *share)] = value);
        }
        logits[at(3, 2)] = f32::INFINITY;
        logits[4 * vocabulary..5 * vocabulary].fill(f32::NEG_INFINITY);
        let expected: Vec<u32> = logits.chunks(vocabulary).map(|row| argmax(row).0 as u32).collect();
        assert_eq!(most(&mut cuda, &logits, vocabulary, splits), expected, "{vocabulary}");
    }
}

#[test]
fn tokens_that_were_seen_are_penalised_and_ends_forbidden() {
    let Some(mut cuda) = Emulated::start() else { return };
    let (rows, vocabulary) = (2, 41);
    let logits = scaled(rows * vocabulary, 1, 3.0);
    let (ids, rows_of) = ([3u32, 40, u32::MAX, 3, 7], [0u32, 1, 1, 0, 1]);
    let mut seen = vec![0u8; rows * vocabulary];
    let arguments = vec![write(&mut seen), read(&ids), read(&rows_of), 5.into(), (vocabulary as i32).into()];
    cuda.launch("mark_ids", [1, 1], [32, 1], 0, arguments);
    let mut found = logits.clone();
    let sizes = || [(rows as i32).into(), (vocabulary as i32).into()];
    let arguments = [write(&mut found), read(&seen), 1.3f32.into()].into_iter().chain(sizes()).collect();
    cuda.launch("penalise", [1, 1], [64, 1], 0, arguments);
    let mut expected = logits;
    penalise(&mut expected[..vocabulary], [3, 3].into_iter(), 1.3);
    penalise(&mut expected[vocabulary..], [40, 7].into_iter(), 1.3);
    assert_eq!(found, expected);

    let ends = [0u32, 40, 999];
    let arguments = [write(&mut found), read(&ends), 3.into()].into_iter().chain(sizes()).collect();
    cuda.launch("forbid", [rows, 1], [32, 1], 0, arguments);
    for end in [0, 40, 41, 81] {
        expected[end] = f32::NEG_INFINITY;
    }
    assert_eq!(found, expected);
}

#[test]
fn a_greedy_token_moves_its_row_on_until_it_is_over() {
    let Some(mut cuda) = Emulated::start() else { return };
    // Row 0 goes on; row 1 has one token left; row 2 meets an end; row 3 is over already.
    let next = [5u32, 6, 2, 7];
    let (mut ids, mut left) = ([11u32, 12, 13, u32::MAX], [9u32, 1, 9, 0]);
    let (mut queries, mut positions) = ([0, 4, 1, 5, 2, 6, 3, 0], [3u32, 4, 5, 6]);
    let mut segments = [0i32; 32];
    segments.iter_mut().skip(7).step_by(8).for_each(|own| *own = 2);
    let mut cache_rows = [10u32, 20, 30, u32::MAX];
    let (mut history, mut step) = ([0u32; 12], [1u32]);
    let arguments = vec![
        read(&next),
        write(&mut ids),
        write(&mut left),
        write(&mut queries),
        write(&mut segments),
        write(&mut positions),
        write(&mut cache_rows),
        write(&mut history),
        write(&mut step),
        read(&[2u32, 3]),
        2.into(),
        4.into(),
        3.into(),
    ];
    cuda.launch("advance", [1, 1], [32, 1], 0, arguments);
    assert_eq!(ids, [5, u32::MAX, u32::MAX, u32::MAX]);
    assert_eq!(queries, [0, 5, 1, 0, 2, 0, 3, 0]);
    assert_eq!((segments[7], positions[0], cache_rows), (3, 4, [11, u32::MAX, u32::MAX, u32::MAX]));
    assert_eq!((history, step), ([0, 5, 0, 0, 6, 0, 0, 2, 0, 0, 0, 0], [2]));
}
