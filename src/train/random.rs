//! Random numbers that are the same on every machine: torch's Mersenne Twister.

/// MT19937 as `torch.Generator` seeds and reads it.
#[derive(Clone)]
pub struct Mt19937 {
    state: [u32; Self::N],
    next: usize,
}

impl Mt19937 {
    const N: usize = 624;
    const M: usize = 397;

    /// The generator after `manual_seed(seed)`, which uses the seed's lower 32 bits.
    pub fn new(seed: u64) -> Self {
        let mut state = [0; Self::N];
        state[0] = seed as u32;
        for i in 1..Self::N {
            let before: u32 = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(before ^ (before >> 30)).wrapping_add(i as u32);
        }
        Self { state, next: Self::N }
    }

    /// The next 32 bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == Self::N {
            for i in 0..Self::N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % Self::N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + Self::M) % Self::N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `torch.randperm(n, generator)`: a permutation of `0..n`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut rows: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            let offset = self.next_u32() as usize % (n - i);
            rows.swap(i, i + offset);
        }
        rows
    }

    /// A number in 0..1, never 0 itself.
    fn uniform(&mut self) -> f64 {
        (f64::from(self.next_u32()) + 0.5) / 4_294_967_296.0
    }

    /// Numbers from N(0, 1) by Box and Muller; not the ones that `torch.randn` gives.
    pub fn normals(&mut self, n: usize) -> Vec<f32> {
        let mut values = Vec::with_capacity(n + 1);
        while values.len() < n {
            let radius = (-2.0 * self.uniform().ln()).sqrt();
            let (sin, cos) = (2.0 * std::f64::consts::PI * self.uniform()).sin_cos();
            values.extend([(radius * cos) as f32, (radius * sin) as f32]);
        }
        values.truncate(n);
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_first_numbers() {
        // mt19937 with its default seed 5489.
        let mut generator = Mt19937::new(5489);
        assert_eq!([(); 3].map(|()| generator.next_u32()), [3_499_211_612, 581_869_302, 3_890_346_734]);
        let mut generator = Mt19937::new(5489);
        let last = (0..10_000).map(|_| generator.next_u32()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn permutations_are_torchs() {
        // torch.randperm(10, generator=torch.Generator().manual_seed(0))
        assert_eq!(Mt19937::new(0).permutation(10), [4, 1, 7, 5, 3, 9, 0, 8, 6, 2]);
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let values = Mt19937::new(3).normals(20_001);
        assert_eq!(values.len(), 20_001);
        let n = values.len() as f64;
        let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let variance = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
        assert!(mean.abs() < 0.03 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
    }
}
