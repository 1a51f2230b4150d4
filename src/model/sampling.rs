//! How the next token is chosen from logits: penalties, warpers and draws as Hugging Face defines them.
//!
//! Each function works on one sequence's logits, in the order that transformers applies them in: repetition penalty,
//! no end too early, temperature, top-k, top-p, draw. What is ruled out gets negative infinity. Random numbers are not
//! torch's: a draw depends on nothing but the seed and which token of which sequence it is for.

/// How a token is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it: above 0.
    pub temperature: f64,
    /// Only so many of the likeliest tokens; 0: all.
    pub top_k: usize,
    /// Only the likeliest tokens that together have this probability: above 0, at most 1.
    pub top_p: f64,
    /// What the draws are derived from.
    pub seed: u64,
}

/// Which sequence a draw is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The index of its prompt.
    pub prompt: usize,
    /// Which of the prompt's samples it is.
    pub sample: usize,
}

impl Sampling {
    /// The token that follows `token` others of a sequence; `logits` are warped in place. `None` if no logit is a
    /// number.
    pub fn draw(&self, logits: &mut [f32], stream: Stream, token: usize) -> Option<u32> {
        divide(logits, self.temperature);
        if self.top_k > 0 {
            keep_top_k(logits, self.top_k);
        }
        if self.top_p < 1.0 {
            keep_top_p(logits, self.top_p);
        }
        pick(logits, uniform(self.seed, stream, token))
    }
}

/// Makes tokens less likely that occur in `ids`, once however often they do: transformers'
/// `RepetitionPenaltyLogitsProcessor`. Below 1 it makes them likelier.
pub fn penalise(logits: &mut [f32], ids: impl Iterator<Item = u32>, penalty: f64) {
    let mut ids: Vec<u32> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    let penalty = penalty as f32;
    for id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// Rules tokens out.
pub fn forbid(logits: &mut [f32], ids: &[u32]) {
    for &id in ids {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

/// transformers' `TemperatureLogitsWarper`.
fn divide(logits: &mut [f32], temperature: f64) {
    let temperature = temperature as f32;
    logits.iter_mut().for_each(|logit| *logit /= temperature);
}

/// transformers' `TopKLogitsWarper`: what equals the last one kept is kept as well.
fn keep_top_k(logits: &mut [f32], k: usize) {
    if k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, &mut last, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
    logits.iter_mut().filter(|logit| **logit < last).for_each(|logit| *logit = f32::NEG_INFINITY);
}

/// transformers' `TopPLogitsWarper`: the least likely tokens go whose probabilities, renormalised over those still
/// there, add up to at most `1 - p`; of equals the first goes first, and the likeliest stays.
fn keep_top_p(logits: &mut [f32], p: f64) {
    let mut order: Vec<usize> = (0..logits.len()).filter(|&i| logits[i] > f32::NEG_INFINITY).collect();
    order.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let Some((&likeliest, others)) = order.split_last() else { return };
    let weight = |i: usize| weight(logits[i], logits[likeliest]);
    let total: f64 = order.iter().map(|&i| weight(i)).sum();
    let mut sum = 0.0;
    let gone = others.iter().take_while(|&&i| {
        sum += weight(i) / total;
        sum <= 1.0 - p
    });
    let gone = gone.count();
    others[..gone].iter().for_each(|&i| logits[i] = f32::NEG_INFINITY);
}

/// The token at this point, from 0 to 1, of the softmax's cumulated probabilities.
fn pick(logits: &[f32], point: f64) -> Option<u32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|&logit| weight(logit, max)).sum();
    if !total.is_finite() {
        return None;
    }
    let mut left = point * total;
    let mut last = None;
    for (id, &logit) in logits.iter().enumerate() {
        let weight = weight(logit, max);
        if weight > 0.0 {
            last = Some(id as u32);
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
    }
    last
}

/// What a token's probability is proportional to: 1 for the likeliest.
fn weight(logit: f32, max: f32) -> f64 {
    (f64::from(logit) - f64::from(max)).exp()
}

/// A number from 0 to 1, below 1, from a hash of all that the draw may depend on.
fn uniform(seed: u64, stream: Stream, token: usize) -> f64 {
    let mut hasher = blake3::Hasher::new();
    for part in [seed, stream.prompt as u64, stream.sample as u64, token as u64] {
        hasher.update(&part.to_le_bytes());
    }
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    (u64::from_le_bytes(bytes) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const GONE: f32 = f32::NEG_INFINITY;

    /// What is left of probabilities.
    fn left_by_top_p(probabilities: &[f32], p: f64) -> Vec<u8> {
        let mut logits: Vec<f32> = probabilities.iter().map(|p| p.ln()).collect();
        keep_top_p(&mut logits, p);
        logits.iter().map(|l| u8::from(*l > GONE)).collect()
    }

    // import torch; from transformers import *
    // l = torch.tensor([[2.0, -1.0, 0.5, 3.0, 0.5, -2.5, 1.0, 0.0]])
    // r = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([[3, 1, 3, 7]]), l)
    // t = TemperatureLogitsWarper(0.7)(None, r)
    // k = TopKLogitsWarper(5)(None, t)   # TopKLogitsWarper(4)(None, t) is the same: a tie
    // p = TopPLogitsWarper(0.9)(None, k)
    #[test]
    fn each_step_gives_transformers_numbers() {
        let mut logits = [2.0, -1.0, 0.5, 3.0, 0.5, -2.5, 1.0, 0.0];
        penalise(&mut logits, [3, 1, 3, 7, 900].into_iter(), 1.3);
        assert_eq!(logits, [2.0, -1.3, 0.5, 2.307_692_3, 0.5, -2.5, 1.0, 0.0]);
        divide(&mut logits, 0.7);
        let cold = [
            2.857_143,
            -1.857_142_8,
            0.714_285_73,
            3.296_703_3,
            0.714_285_73,
            -3.571_428_5,
            1.428_571_5,
            0.0,
        ];
        assert_eq!(logits, cold);
        let mut four = logits;
        keep_top_k(&mut four, 4);
        keep_top_k(&mut logits, 5);
        assert_eq!(logits, [cold[0], GONE, cold[2], cold[3], cold[4], GONE, cold[6], GONE]);
        assert_eq!(four, logits);
        let left = |p| {
            let mut logits = logits;
            keep_top_p(&mut logits, p);
            logits
        };
        assert_eq!(left(0.9), [cold[0], GONE, GONE, cold[3], GONE, GONE, cold[6], GONE]);
        assert_eq!(left(0.3), [GONE, GONE, GONE, cold[3], GONE, GONE, GONE, GONE]);
        assert_eq!(left(0.8), [cold[0], GONE, GONE, cold[3], GONE, GONE, GONE, GONE]);
        assert_eq!(left(0.95), [cold[0], GONE, GONE, cold[3], cold[4], GONE, cold[6], GONE]);
        let mut all = cold;
        keep_top_k(&mut all, 50);
        assert_eq!(all, cold);
    }

    // x = torch.tensor([[0.25, 0.25, 0.125, 0.25, 0.125]]).log()
    // (TopPLogitsWarper(p)(None, x) > -1e9).int()
    #[test]
    fn top_p_breaks_ties_as_transformers_does() {
        let left = |p| left_by_top_p(&[0.25, 0.25, 0.125, 0.25, 0.125], p);
        for (p, expected) in [
            (0.01, [0, 0, 0, 1, 0]),
            (0.25, [0, 0, 0, 1, 0]),
            (0.4, [0, 1, 0, 1, 0]),
            (0.5, [0, 1, 0, 1, 0]),
            (0.75, [1, 1, 0, 1, 0]),
            (0.8, [1, 1, 0, 1, 1]),
            (0.9, [1, 1, 1, 1, 1]),
        ] {
            assert_eq!(left(p), expected, "{p}");
        }
    }

    // y = torch.tensor([[0.4, 0.2, 0.2, 0.1, 0.1]]).log()
    // TopPLogitsWarper(0.6)(None, TopKLogitsWarper(1)(None, y)) and TopPLogitsWarper(0.6)(None, y)
    #[test]
    fn top_p_counts_what_top_k_left_as_everything() {
        let mut logits: Vec<f32> = [0.4f32, 0.2, 0.2, 0.1, 0.1].iter().map(|p| p.ln()).collect();
        assert_eq!(left_by_top_p(&[0.4, 0.2, 0.2, 0.1, 0.1], 0.7), [1, 1, 1, 0, 0]);
        keep_top_k(&mut logits, 2);
        keep_top_p(&mut logits, 0.7);
        assert_eq!(logits.iter().map(|l| u8::from(*l > GONE)).collect::<Vec<_>>(), [1, 0, 1, 0, 0]);
    }

    #[test]
    fn draws_are_as_frequent_as_they_are_likely() {
        let logits = [1.0, -0.5, 2.0, 0.0, GONE, 1.5];
        let sampling = Sampling { temperature: 0.8, top_k: 4, top_p: 0.97, seed: 7 };
        let mut warped = logits;
        sampling.draw(&mut warped, Stream::default(), 0);
        let total: f64 = warped.iter().map(|&l| weight(l, 0.0)).sum();
        let draws = 20_000;
        let mut counts = [0usize; 6];
        // Draws for other prompts, samples and tokens are as independent as any.
        for i in 0..draws {
            let stream = Stream { prompt: i % 7, sample: i % 11 };
            counts[sampling.draw(&mut logits.clone(), stream, i / 77).unwrap() as usize] += 1;
        }
        assert_eq!((counts[1], counts[4]), (0, 0), "{counts:?}");
        let deviation = |i: usize| {
            let expected = weight(warped[i], 0.0) / total * draws as f64;
            (counts[i] as f64 - expected).powi(2) / expected
        };
        // Of 3 degrees of freedom: exceeded once in 10,000 times.
        let chi_square: f64 = [0, 2, 3, 5].map(deviation).iter().sum();
        assert!(chi_square < 21.1, "{chi_square} {counts:?}");
    }

    #[test]
    fn a_draw_depends_on_the_seed_and_on_which_token_it_is() {
        let drawn = |seed, prompt, sample, token| uniform(seed, Stream { prompt, sample }, token);
        let all =
            [drawn(0, 0, 0, 0), drawn(1, 0, 0, 0), drawn(0, 1, 0, 0), drawn(0, 0, 1, 0), drawn(0, 0, 0, 1)];
        for (i, a) in all.iter().enumerate() {
            assert!((0.0..1.0).contains(a));
            assert!(all[..i].iter().all(|b| a != b), "{all:?}");
        }
        assert_eq!(drawn(5, 4, 3, 2), drawn(5, 4, 3, 2));
    }

    #[test]
    fn ends_of_the_range_are_tokens_and_nothing_is_not() {
        assert_eq!(pick(&[GONE, 0.0, 0.0, GONE], 0.0), Some(1));
        assert_eq!(pick(&[GONE, 0.0, 0.0, GONE], 1.0 - f64::EPSILON), Some(2));
        assert_eq!(pick(&[GONE, GONE], 0.5), None);
        assert_eq!(pick(&[0.0, f32::NAN], 0.5), None);
    }
}
