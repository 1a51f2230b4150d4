//! What a model computes in, as a stage asks for it.
//!
//! Does not know on which device; some numbers are for one kind of device alone.

use super::{ModelError, Precision};

/// The numbers that matrix products take; they are summed in 32-bit floats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Numbers {
    /// 32-bit floats.
    #[default]
    F32,
    /// The upper half of 32-bit floats.
    BF16,
    /// IEEE half precision.
    F16,
}

/// What a model computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Numerics {
    /// What products take.
    pub numbers: Numbers,
    /// Whether a GPU may round what products of 32-bit floats take to tf32, 10 bits behind the point.
    pub tf32: bool,
    /// Whether the same inputs have to give the same bits on a GPU.
    pub deterministic: bool,
}

impl Default for Numerics {
    fn default() -> Self {
        Self { numbers: Numbers::F32, tf32: false, deterministic: true }
    }
}

impl Numerics {
    /// These numbers, every bit the same each time.
    pub fn of(numbers: Numbers) -> Self {
        Self { numbers, ..Self::default() }
    }

    /// What the processor computes in.
    ///
    /// # Errors
    /// It does not compute in these numbers.
    pub fn precision(self) -> Result<Precision, ModelError> {
        match self.numbers {
            Numbers::F32 => Ok(Precision::F32),
            Numbers::BF16 => Ok(Precision::BF16),
            Numbers::F16 => Err(ModelError::OnlyOnCards),
        }
    }
}
