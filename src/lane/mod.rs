//! Where the work of stages runs. A lane takes a job and runs it; how many it takes at once is the
//! scheduler's rule.
//!
//! Knows no graph, no cache, no stage.

pub mod cpu;
pub mod device;

use std::collections::BTreeMap;

use crate::device::Device;

/// A piece of work that reports its end by itself.
pub type Job = Box<dyn FnOnce() + Send + 'static>;

/// Takes jobs; a test puts its own in place of the threads.
pub trait Lanes {
    /// Runs the job on this track, without waiting for it.
    fn submit(&mut self, track: Track, job: Job);
}

/// What a stage's work waits for: each device has a track of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Track {
    /// The processor, beside others.
    Cpu,
    /// A model device, alone.
    Device(Device),
}

/// The lanes of a real run.
pub struct Threads {
    cpu: cpu::CpuLane,
    devices: BTreeMap<Device, device::DeviceLane>,
}

impl Threads {
    /// Starts the lanes; a device's with its first job.
    pub fn start() -> Self {
        Self { cpu: cpu::CpuLane, devices: BTreeMap::new() }
    }
}

impl Lanes for Threads {
    fn submit(&mut self, track: Track, job: Job) {
        match track {
            Track::Cpu => self.cpu.submit(job),
            Track::Device(device) => {
                self.devices.entry(device).or_insert_with(device::DeviceLane::start).submit(job);
            }
        }
    }
}
