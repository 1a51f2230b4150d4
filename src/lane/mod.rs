//! Where the work of stages runs. A lane takes a job and runs it; how many it takes at once is the
//! scheduler's rule.
//!
//! Knows no graph, no cache, no stage.

pub mod cpu;
pub mod device;

use crate::stage::Lane;

/// A piece of work that reports its end by itself.
pub type Job = Box<dyn FnOnce() + Send + 'static>;

/// Takes jobs; a test puts its own in place of the threads.
pub trait Lanes {
    /// Runs the job on this lane, without waiting for it.
    fn submit(&mut self, lane: Lane, job: Job);
}

/// The lanes of a real run.
pub struct Threads {
    cpu: cpu::CpuLane,
    device: device::DeviceLane,
}

impl Threads {
    /// Starts the lanes.
    pub fn start() -> Self {
        Self { cpu: cpu::CpuLane, device: device::DeviceLane::start() }
    }
}

impl Lanes for Threads {
    fn submit(&mut self, lane: Lane, job: Job) {
        match lane {
            Lane::Cpu => self.cpu.submit(job),
            Lane::Device => self.device.submit(job),
        }
    }
}
