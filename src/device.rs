//! The device that model stages run on: its name in a manifest or on the command line, what there is, and why what is
//! not there is not.
//!
//! Knows what can be known without a model; memory and kernels of a card are [`crate::model`]'s to know.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::model::ops::matmul::units;

/// A device as it is asked for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The first GPU that can be used, else the processor.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// A device that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

/// Text that names no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no device: use auto, cpu, cuda or cuda:N")]
pub struct UnknownDevice(String);

/// A device that can't be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// No GPU can be used.
    #[error("`{spec}` was asked for, but {reason}")]
    NoCards {
        /// What was asked for.
        spec: DeviceSpec,
        /// Why.
        reason: NoCards,
    },
    /// There is no GPU of this number.
    #[error("`{spec}` was asked for, but there is only {}", list(there))]
    NoSuchCard {
        /// What was asked for.
        spec: DeviceSpec,
        /// Those there are.
        there: Vec<Card>,
    },
    /// The GPU is too old.
    #[error("`{spec}` was asked for, but {}", too_old(card))]
    TooOld {
        /// What was asked for.
        spec: DeviceSpec,
        /// The GPU.
        card: Card,
    },
}

/// Why no GPU can be used at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCards {
    /// The program has no code for it.
    #[error(
        "this build of pipe has no CUDA: use `cpu`, or build with `cargo build --release --features cuda`"
    )]
    NotBuilt,
    /// There is no driver on this machine.
    #[error("there is no NVIDIA driver here: libcuda.so.1 is not found")]
    NoDriver,
    /// The driver does not work.
    #[error("the NVIDIA driver refuses: {0}")]
    Driver(String),
    /// The driver works and has no GPU to offer.
    #[error("the NVIDIA driver sees no GPU (is CUDA_VISIBLE_DEVICES set?)")]
    None,
    /// One of CUDA's libraries is missing.
    #[error(
        "{library} is not found: install CUDA 12 or 13 and set CUDA_HOME, or put the folder that has it on \
         LD_LIBRARY_PATH"
    )]
    NoLibrary {
        /// Its name without a version.
        library: &'static str,
    },
    /// The libraries are newer than the driver.
    #[error("the NVIDIA driver knows CUDA {driver} and {library} is of CUDA {needs}: update the driver")]
    OldDriver {
        /// What the driver knows, `12.4`.
        driver: String,
        /// The library.
        library: &'static str,
        /// What it is made for, `13.0`.
        needs: String,
    },
}

/// The compute capability from which on a GPU has all that is used: bf16 and tf32 products came with 8.0.
pub const OLDEST: (u32, u32) = (8, 0);

/// A GPU.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Card {
    /// Its number behind `cuda:`.
    pub number: usize,
    /// What it calls itself.
    pub name: String,
    /// Its compute capability, major and minor.
    pub capability: (u32, u32),
    /// Bytes of memory.
    pub memory: u64,
    /// How many of them nobody uses now, where somebody asked.
    pub free: Option<u64>,
}

impl Card {
    /// Whether it is too old.
    pub fn is_too_old(&self) -> bool {
        self.capability < OLDEST
    }
}

/// The processor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Processor {
    /// What it calls itself.
    pub name: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Whether products use vectors of 512 bits.
    pub avx512: bool,
    /// Whether there are such vectors of bf16 numbers, which bf16 products use where there is no matrix unit.
    pub avx512_bf16: bool,
    /// Whether products use the matrix unit.
    pub amx: bool,
}

/// What there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The processor.
    pub processor: Processor,
    /// The GPUs, or why there are none.
    pub cards: Result<Vec<Card>, NoCards>,
}

impl Seen {
    /// Looks at this machine.
    pub fn here() -> Self {
        let mut cards = cards();
        for card in cards.iter_mut().flatten() {
            card.free = free(card.number);
        }
        Self { processor: Processor::here(), cards }
    }

    /// What `auto` means here.
    pub fn auto(&self) -> Device {
        let usable = self.cards.iter().flatten().find(|card| !card.is_too_old());
        usable.map_or(Device::Cpu, |card| Device::Cuda(card.number))
    }
}

impl Processor {
    fn here() -> Self {
        let about = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = about.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let units = units();
        Self {
            name: name.map_or(std::env::consts::ARCH, |(_, name)| name.trim()).into(),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            avx512: units.vectors_of_512_bits,
            avx512_bf16: units.vectors_of_bf16,
            amx: units.matrix_unit,
        }
    }
}

/// The GPUs that the driver sees, if they can be computed with.
fn cards() -> Result<Vec<Card>, NoCards> {
    #[cfg(feature = "cuda")]
    return crate::model::cuda::cards();
    #[cfg(not(feature = "cuda"))]
    Err(NoCards::NotBuilt)
}

/// Bytes of a GPU's memory that nobody uses: asking takes a moment.
fn free(number: usize) -> Option<u64> {
    #[cfg(feature = "cuda")]
    return crate::model::cuda::free_memory(number);
    #[cfg(not(feature = "cuda"))]
    {
        let _ = number;
        None
    }
}

impl DeviceSpec {
    /// Looks whether the device is there.
    ///
    /// # Errors
    /// A GPU that was asked for by number and can't be used.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            // A machine that has no GPU, or a GPU that does not answer, is no fault where none was asked for.
            Self::Auto => Ok(Seen { processor: Processor::here(), cards: cards() }.auto()),
            Self::Cuda(number) => self.choose(number, cards()),
        }
    }

    fn choose(self, number: usize, cards: Result<Vec<Card>, NoCards>) -> Result<Device, DeviceError> {
        let cards = cards.map_err(|reason| DeviceError::NoCards { spec: self, reason })?;
        match cards.iter().find(|card| card.number == number) {
            None => Err(DeviceError::NoSuchCard { spec: self, there: cards }),
            Some(card) if card.is_too_old() => Err(DeviceError::TooOld { spec: self, card: card.clone() }),
            Some(_) => Ok(Device::Cuda(number)),
        }
    }
}

impl Device {
    /// What of it changes results, and so goes into keys: its kind, not its number.
    pub fn class(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cuda(_) => "cuda",
        }
    }
}

/// Why a GPU can't be used.
pub fn too_old(card: &Card) -> String {
    let ((major, minor), (least, least_minor)) = (card.capability, OLDEST);
    format!("{} has compute capability {major}.{minor}, {least}.{least_minor} is needed", card.name)
}

fn list(cards: &[Card]) -> String {
    let names: Vec<String> =
        cards.iter().map(|card| format!("{} ({})", Device::Cuda(card.number), card.name)).collect();
    names.join(", ")
}

impl FromStr for DeviceSpec {
    type Err = UnknownDevice;
    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| UnknownDevice(text.into())),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => Device::Cpu.fmt(f),
            Self::Cuda(number) => Device::Cuda(*number).fmt(f),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(number: usize, name: &str, capability: (u32, u32)) -> Card {
        Card { number, name: name.into(), capability, memory: 1 << 34, free: None }
    }

    #[test]
    fn reads_what_it_shows() {
        for spec in [DeviceSpec::Auto, DeviceSpec::Cpu, DeviceSpec::Cuda(0), DeviceSpec::Cuda(3)] {
            assert_eq!(spec.to_string().parse(), Ok(spec));
        }
        assert_eq!("cuda".parse(), Ok(DeviceSpec::Cuda(0)));
    }

    #[test]
    fn names_what_it_does_not_know() {
        let error = "cuda:x".parse::<DeviceSpec>().unwrap_err();
        assert_eq!(error.to_string(), "`cuda:x` is no device: use auto, cpu, cuda or cuda:N");
    }

    #[test]
    fn a_gpu_that_can_not_be_used_says_why() {
        let refused = |number, cards| DeviceSpec::Cuda(number).choose(number, cards).unwrap_err().to_string();
        let cards = vec![card(0, "Old One", (7, 5)), card(1, "New One", (9, 0))];
        assert_eq!(
            refused(1, Err(NoCards::NotBuilt)),
            "`cuda:1` was asked for, but this build of pipe has no CUDA: use `cpu`, or build with \
             `cargo build --release --features cuda`"
        );
        assert_eq!(
            refused(0, Err(NoCards::NoDriver)),
            "`cuda:0` was asked for, but there is no NVIDIA driver here: libcuda.so.1 is not found"
        );
        let old = NoCards::OldDriver { driver: "12.4".into(), library: "libcublas", needs: "13.0".into() };
        assert_eq!(
            refused(0, Err(old)),
            "`cuda:0` was asked for, but the NVIDIA driver knows CUDA 12.4 and libcublas is of CUDA 13.0: update \
             the driver"
        );
        assert_eq!(
            refused(2, Ok(cards.clone())),
            "`cuda:2` was asked for, but there is only cuda:0 (Old One), cuda:1 (New One)"
        );
        assert_eq!(
            refused(0, Ok(cards.clone())),
            "`cuda:0` was asked for, but Old One has compute capability 7.5, 8.0 is needed"
        );
        assert_eq!(DeviceSpec::Cuda(1).choose(1, Ok(cards)), Ok(Device::Cuda(1)));
    }

    #[test]
    fn auto_is_the_first_gpu_that_will_do_else_the_processor() {
        let auto = |cards| Seen { processor: Processor::here(), cards }.auto();
        let cards = vec![card(0, "Old One", (7, 5)), card(1, "New One", (8, 0))];
        assert_eq!(auto(Ok(cards)), Device::Cuda(1));
        assert_eq!(auto(Ok(vec![card(0, "Old One", (7, 5))])), Device::Cpu);
        assert_eq!(auto(Err(NoCards::NoDriver)), Device::Cpu);
    }
}
