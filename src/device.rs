//! The device that model stages run on: its name in a manifest or on the command line, and opening it.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

/// A device as it is asked for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum DeviceSpec {
    /// The first GPU where there is one, else the processor.
    #[default]
    Auto,
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
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// This build of the program has no GPU code.
    #[error(
        "`{0}` was asked for, but this build of pipe has no CUDA: use `cpu`, or build with `--features cuda`"
    )]
    NotBuilt(DeviceSpec),
    /// There is no such GPU, or its driver refuses.
    #[error("`{spec}` can't be opened: {reason}")]
    NotThere {
        /// What was asked for.
        spec: DeviceSpec,
        /// What the driver says.
        reason: String,
    },
}

impl DeviceSpec {
    /// Opens the device.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            // A machine that has no GPU, or a GPU that does not answer, is no fault where none was asked for.
            Self::Auto => Ok(Device::new_cuda(0).unwrap_or(Device::Cpu)),
            Self::Cuda(_) if !candle_core::utils::cuda_is_available() => Err(DeviceError::NotBuilt(self)),
            Self::Cuda(number) => Device::new_cuda(number)
                .map_err(|error| DeviceError::NotThere { spec: self, reason: error.to_string() }),
        }
    }
}

/// What of a device changes results, and so goes into keys: its kind, not its number.
pub fn class(device: &Device) -> &'static str {
    if device.is_cuda() { "cuda" } else { "cpu" }
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
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn without_cuda_a_gpu_is_refused_and_auto_is_the_processor() {
        if candle_core::utils::cuda_is_available() {
            return;
        }
        assert!(DeviceSpec::Auto.open().unwrap().is_cpu());
        let error = DeviceSpec::Cuda(1).open().unwrap_err();
        assert_eq!(
            error.to_string(),
            "`cuda:1` was asked for, but this build of pipe has no CUDA: \
             use `cpu`, or build with `--features cuda`"
        );
    }
}
