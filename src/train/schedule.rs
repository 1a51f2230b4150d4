//! The learning rate of every step, as transformers' schedules give it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate goes after warmup.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Down to 0 in a straight line.
    #[default]
    Linear,
    /// Stays.
    Constant,
    /// Down to 0 along half a cosine.
    Cosine,
}

impl Schedule {
    /// What the learning rate of step `step` (from 0) of `total` is multiplied by; the first `warmup` steps
    /// climb from 0.
    pub fn factor(self, step: usize, warmup: usize, total: usize) -> f64 {
        if step < warmup {
            return step as f64 / warmup as f64;
        }
        let rest = total.saturating_sub(warmup).max(1) as f64;
        match self {
            Self::Linear => (total.saturating_sub(step) as f64 / rest).max(0.0),
            Self::Constant => 1.0,
            Self::Cosine => {
                let done = (step - warmup) as f64 / rest;
                (0.5 * (1.0 + (std::f64::consts::PI * done).cos())).max(0.0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schedule_climbs_then_goes_its_way() {
        let rates = |s: Schedule| (0..6).map(|i| s.factor(i, 2, 6)).collect::<Vec<_>>();
        assert_eq!(rates(Schedule::Linear), [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(rates(Schedule::Constant), [0.0, 0.5, 1.0, 1.0, 1.0, 1.0]);
        let cosine = rates(Schedule::Cosine);
        assert_eq!(cosine[..3], [0.0, 0.5, 1.0]);
        assert!((cosine[3] - 0.853_553_390_593_273_8).abs() < 1e-15 && (cosine[4] - 0.5).abs() < 1e-15);
    }
}
