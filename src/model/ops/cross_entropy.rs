//! Cross entropy of the kept positions' logits.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

use super::{slice, with_values};

/// Sum over rows of `-log softmax(logits)[target]`, divided by `divisor`: a scalar.
///
/// `logits` is `[rows, vocabulary]`, one target a row. The divisor is the number of kept labels the mean is
/// over, which is more than the rows where a batch is worked off in parts.
///
/// # Errors
/// As many targets as rows are needed, all inside the vocabulary.
pub fn cross_entropy(logits: &Tensor, targets: &[u32], divisor: usize) -> Result<Tensor> {
    let (rows, vocabulary) = logits.dims2()?;
    if targets.len() != rows {
        candle_core::bail!("cross_entropy: {rows} rows of logits, {} targets", targets.len());
    }
    if let Some(target) = targets.iter().find(|&&t| t as usize >= vocabulary) {
        candle_core::bail!("cross_entropy: target {target} is outside the vocabulary of {vocabulary}");
    }
    logits.contiguous()?.apply_op1(CrossEntropy { targets: targets.to_vec(), divisor: divisor as f64 })
}

/// The logarithm of the sum of exponentials, safe for large numbers.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let (max, sum) = max_and_sum(row);
    f64::from(max) + sum.ln()
}

/// The largest number, and the sum of the exponentials of all numbers' distances from it.
fn max_and_sum(row: &[f32]) -> (f32, f64) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (max, row.iter().map(|x| f64::from((x - max).exp())).sum())
}

struct CrossEntropy {
    targets: Vec<u32>,
    divisor: f64,
}

impl CustomOp1 for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, vocabulary) = layout.shape().dims2()?;
        let losses: Vec<f64> = slice(storage, layout)?
            .par_chunks(vocabulary)
            .zip(&self.targets)
            .map(|(row, &target)| log_sum_exp(row) - f64::from(row[target as usize]))
            .collect();
        let loss = losses.iter().sum::<f64>() / self.divisor;
        Ok((CpuStorage::F32(vec![loss as f32]), Shape::from(())))
    }

    fn bwd(&self, logits: &Tensor, _: &Tensor, gradient: &Tensor) -> Result<Option<Tensor>> {
        let (_, vocabulary) = logits.dims2()?;
        let scale = (f64::from(gradient.to_scalar::<f32>()?) / self.divisor) as f32;
        let mut d_logits = vec![0.0; logits.elem_count()];
        with_values(logits, |x| {
            let rows = d_logits.par_chunks_mut(vocabulary).zip(x.par_chunks(vocabulary)).zip(&self.targets);
            rows.for_each(|((d, row), &target)| {
                let (max, sum) = max_and_sum(row);
                let share = (f64::from(scale) / sum) as f32;
                for (d, x) in d.iter_mut().zip(row) {
                    *d = share * (x - max).exp();
                }
                d[target as usize] -= scale;
            });
        })?;
        Ok(Some(Tensor::from_vec(d_logits, logits.dims(), logits.device())?))
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{check, numbers};
    use super::*;

    #[test]
    fn value_and_gradient() {
        let targets = [3u32, 0, 10];
        let index = Tensor::new(&[[3u32], [0], [10]], &candle_core::Device::Cpu).unwrap();
        check(
            &(numbers(&[3, 11], 1) * 5.0).unwrap(),
            |x| cross_entropy(x, &targets, 7),
            |x| {
                let total = x.exp()?.sum_keepdim(1)?.log()?;
                (total - x.gather(&index, 1)?)?.sum_all()? / 7.0
            },
        );
    }

    #[test]
    fn large_logits_stay_finite() {
        let logits = Tensor::new(&[[1e4f32, -1e4, 0.0]], &candle_core::Device::Cpu).unwrap();
        let loss = cross_entropy(&logits, &[1], 1).unwrap().to_scalar::<f32>().unwrap();
        assert_eq!(loss, 2e4);
    }

    #[test]
    fn a_target_outside_the_vocabulary_is_refused() {
        let error = cross_entropy(&numbers(&[1, 4], 1), &[4], 1).unwrap_err().to_string();
        assert!(error.starts_with("cross_entropy: target 4 is outside the vocabulary of 4"), "{error}");
    }
}
