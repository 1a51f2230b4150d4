//! Weights in the form in which many rows are multiplied fastest.
//!
//! Knows what that is on this processor, and what it takes of memory. It does not know how tiles and panels
//! are packed.

use super::parts::Parts;
use super::weight::{LaidOut, Part, Weight};
use super::{Precision, panels, units};
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
use super::{
    operand::{Operand, Sum},
    tiles, unit,
    weight::Tiled,
};

impl Weight {
    /// The same weight as products of this precision take it: in one piece where it was scattered, rounded once, and for
    /// bf16 in tiles for both directions where the processor has instructions for them.
    pub fn prepared(self, precision: Precision) -> Self {
        match precision {
            Precision::F32 if self.is_scattered() => self.gathered(),
            Precision::F32 => self,
            Precision::BF16 => tiled(self.to_bf16().gathered(), Parts::Rounded),
        }
    }

    /// The same weight for many products of many rows in f32, in as much memory: in panels, or for a matrix unit in tiles of
    /// the bf16 numbers whose sums its numbers are, where these are few enough. A trained weight stays as it is, as its
    /// numbers change.
    pub fn laid_out(self) -> Self {
        if self.is_trained() || self.is_laid_out() {
            return self;
        }
        if !units().matrix_unit {
            return in_panels(self.gathered());
        }
        let measured = self.measured();
        let fits = |part: &Part| part.parts.of_weight() * size_of::<u16>() <= part.numbers.size();
        let most = measured.placed_parts().map(|(_, part)| part.parts).max();
        match most {
            Some(parts) if measured.placed_parts().all(|(_, part)| fits(part)) => {
                tiled(measured.gathered(), parts)
            }
            _ => measured,
        }
    }
}

/// In tiles, where the processor has a unit that is fast at them and takes the weight. Numbers that are not rounded are laid
/// out for one direction only, and turned around in the other.
fn tiled(weight: Weight, parts: Parts) -> Weight {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if let (Some(unit), pulp::Arch::V4(simd)) = (unit::Unit::get(), pulp::Arch::new())
        && unit.is_for(parts)
        && weight.only_part().is_some()
        && weight.inputs_len() * weight.outputs_len() > 0
    {
        let panels = |sum| tiles::panels(simd, parts, &Operand::of(&weight, sum));
        let outputs = (parts == Parts::Rounded).then(|| panels(Sum::Outputs));
        let tiled = Tiled { parts, inputs: panels(Sum::Inputs), outputs };
        return weight.lying(LaidOut::Tiled(tiled));
    }
    weight
}

/// In panels for vectors, where it is one stored matrix.
fn in_panels(weight: Weight) -> Weight {
    match weight.only_part().and_then(|part| panels::of(part, weight.inputs_len())) {
        Some(panels) => weight.lying(LaidOut::Panels(panels)),
        None => weight,
    }
}
